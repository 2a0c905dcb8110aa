"""What waits to be seen in a history, look by look: when it is looked for, what settles it, what is sent again. Pure: a
broker by script, a clock by hand."""

import contextlib
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from gateway.forward.broker import ReadRefused
from gateway.forward.recording import Recording
from gateway.forward.settings import ForwardSettings
from gateway.forward.updates import UNKNOWN, Mark, Update
from gateway.forward.verify import ENTITIES_A_LOOK, PATIENCE, Unseen
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.scene import START, entity_id
from tests.gateway.forward.test_verdicts import A, B, Scene

SETTINGS = ForwardSettings(
    look_s=5.0, look_updates=4, look_within_s=3600.0, unseen_s=7200.0, unseen_points=1000, learn_s=600.0
)


class Waits(Scene):
    """Something waits."""

    def __init__(self, *devices: str, recording: Recording | None = None, **settings: Any) -> None:
        super().__init__(*(devices or ("air-1", "air-2")))
        self.done: list[Update] = []
        self.recording = recording or Recording(True, "scorpio")
        self.unseen = Unseen(
            self.broker, self.recording, self.clock, replace(SETTINGS, **settings), done=self.done.append
        )

    def put(self, at_s: float, order: int, epoch: int | None = 0, device: str = "air-1", known: bool = True) -> Update:
        """An update of that time waits."""
        update = self.update(device, at_s, no2=at_s)
        self.unseen.put(update, Mark(order, epoch), known=known)
        return update

    def shows(self, at_s: float, device: str = "air-1", key: str = "no2") -> None:
        self.broker.newest = {**self.broker.newest, entity_id(device): [(key, START + timedelta(seconds=at_s))]}

    def holds(self, *times_s: float, device: str = "air-1") -> None:
        self.broker.points = frozenset((entity_id(device), "no2", START + timedelta(seconds=at_s)) for at_s in times_s)

    async def after(self, seconds: float) -> list[float]:
        """Let time pass and look, if it is time; the times of what is to be sent."""
        self.clock.advance(seconds)
        forgotten = await self.unseen.look() if self.unseen.due() else []
        return [update.newest_us / 1e6 - START.timestamp() for update in forgotten]

    def waiting(self) -> int:
        return len(self.unseen)


async def test_a_look_comes_with_so_many_updates_of_one_entity_and_takes_those_along_that_are_half_there() -> None:
    waits = Waits("air-1", "air-2", "air-3")
    for n in range(3):
        waits.put(n, n + 1)
    for n in range(2):
        waits.put(n, n + 1, device="air-2")
    waits.put(0, 1, device="air-3")
    await waits.after(100.0)
    assert waits.broker.asked == []
    waits.put(3, 4)
    await waits.after(5.0)
    assert waits.broker.asked == [[A, B]]
    await waits.after(1000.0)
    assert waits.broker.asked == [[A, B]]  # nothing has come since
    for n in range(4, 8):
        waits.put(n, n + 1)
    await waits.after(5.0)
    assert waits.broker.asked == [[A, B], [A]]


async def test_what_waits_for_an_hour_is_looked_for_and_again_after_another() -> None:
    waits = Waits()
    waits.put(0, 1)
    await waits.after(3599.0)
    assert waits.broker.asked == []
    await waits.after(5.0)
    assert waits.broker.asked == [[A]]
    await waits.after(3590.0)
    assert waits.broker.asked == [[A]]
    await waits.after(10.0)
    assert waits.broker.asked == [[A]] * 2


async def test_a_witness_settles_what_was_accepted_before_it_and_nothing_else() -> None:
    waits = Waits()
    before = [waits.put(n, n + 1) for n in range(3)]
    witness, later = waits.put(3, 4), waits.put(4, 5)
    other = waits.put(3, 4, device="air-2")
    waits.shows(3)
    assert await waits.after(5.0) == []
    assert waits.done == [*before, witness]
    assert (waits.waiting(), waits.unseen.oldest_seq) == (2, min(later.seq, other.seq))
    early = waits.put(2.5, 3)  # read late
    assert waits.done[-1] is early
    assert waits.waiting() == 2


async def test_a_point_of_another_attribute_or_time_is_no_witness() -> None:
    waits = Waits()
    for n in range(4):
        waits.put(n, n + 1)
    waits.shows(3, key="pm25")
    await waits.after(5.0)
    waits.shows(3.5)
    waits.put(8, 9)
    await waits.after(3600.0)
    assert waits.done == []


async def test_a_fault_between_is_no_bridge_and_the_stretch_is_read_a_look_after_the_witness() -> None:
    waits = Waits()
    lost, kept = waits.put(0, 1, epoch=0), waits.put(1, 2, epoch=0)
    witness = waits.put(2, 4, epoch=1)
    later = waits.put(3, 5, epoch=1)
    waits.holds(1)
    assert await waits.after(5.0) == []
    assert waits.broker.asked == [[A]]  # at once, although only few wait
    assert waits.done == []
    waits.shows(2)
    assert await waits.after(10.0) == []
    assert waits.done == [witness]
    assert await waits.after(4.9) == []
    assert waits.waiting() == 3
    assert await waits.after(0.2) == [0.0]
    assert waits.broker.asked[-1] == [A, A]  # the stretch
    assert waits.done == [witness, kept]
    assert (waits.waiting(), waits.unseen.oldest_seq) == (1, later.seq)
    assert lost not in waits.done
    asked = len(waits.broker.asked)
    await waits.after(60.0)
    assert len(waits.broker.asked) == asked


async def test_what_is_read_a_moment_after_the_witness_is_no_verdict() -> None:
    """A history is written row by row: what was accepted before may come a moment after it."""
    devices = [f"d-{n}" for n in range(ENTITIES_A_LOOK + 1)]
    waits = Waits(*devices)
    for device in devices:
        waits.put(0, 1, epoch=0, device=device)
        waits.put(1, 2, epoch=1, device=device)
        waits.shows(1, device)
    await waits.after(100.0)
    assert await waits.after(0.01) == []  # the rest are asked at once
    assert [len(asked) for asked in waits.broker.asked] == [ENTITIES_A_LOOK, 1]
    assert await waits.after(4.9) == []
    assert len(waits.broker.asked) == 2
    assert await waits.after(0.1) == [0.0]


async def test_what_is_not_there_without_a_later_witness_waits() -> None:
    waits = Waits()
    waits.put(0, 1, epoch=None)
    assert await waits.after(1.0) == []
    assert waits.broker.asked == [[A]]
    waits.shows(-1)
    for seconds in (5.0, 60.0, 1000.0):
        assert await waits.after(seconds) == []
    assert waits.waiting() == 1
    waits.holds(0)
    assert await waits.after(3600.0) == []  # looked for again by the hour
    assert len(waits.done) == 1


async def test_without_an_epoch_only_itself_or_a_later_point_counts() -> None:
    waits = Waits()
    waits.put(0, 3, epoch=None)
    waits.put(1, 2, epoch=0)
    waits.shows(1)
    for _ in range(5):
        assert await waits.after(3600.0 if _ == 0 else 5.0) == []
    assert waits.waiting() == 1  # the witness was accepted before it
    waits.put(5, 9, epoch=0)
    waits.shows(5)
    sent = [await waits.after(5.0) for _ in range(6)]
    assert [one for some in sent for one in some] == [0.0]


async def test_what_an_earlier_run_may_have_sent_is_judged_by_any_point_of_this_one() -> None:
    waits = Waits()
    for n in range(3):
        waits.unseen.put(waits.update("air-1", n, no2=n), UNKNOWN, known=False)
    waits.holds(1)
    assert await waits.after(1.0) == []  # read at once: what is there is done with
    assert waits.waiting() == 2
    waits.put(9, 1)
    waits.shows(9)
    sent = [await waits.after(5.0) for _ in range(4)]
    assert [one for some in sent for one in some] == [0.0, 2.0]
    assert waits.waiting() == 0


async def test_of_a_forgotten_update_goes_what_is_not_there() -> None:
    waits = Waits()
    update = waits.update("air-1", 0, no2=1, pm25=2)
    waits.unseen.put(update, Mark(1, 0), known=True)
    waits.put(5, 2, epoch=1)
    waits.shows(5)
    waits.holds(0)
    for _ in range(4):
        await waits.after(5.0)
    assert update.past.attributes.keys() == {"pm25"}


async def test_a_look_that_shows_nothing_is_followed_by_a_later_one_and_one_that_shows_by_a_soon_one() -> None:
    waits = Waits()
    waits.put(0, 1, epoch=0)
    waits.put(1, 2, epoch=1)  # suspicious: it is looked for all the time
    times = []
    for n in range(1, 400):
        asked = len(waits.broker.asked)
        await waits.after(1.0)
        if len(waits.broker.asked) > asked:
            times.append(n)
    steps = [b - a for a, b in pairwise(times)]
    assert steps[:5] == [10, 20, 40, 60, 60]
    assert max(steps) == PATIENCE * SETTINGS.look_s
    waits.broker.traffic.faults += 1
    assert waits.unseen.due() is False
    await waits.after(5.0)
    await waits.after(1.0)
    assert len(waits.broker.asked) > len(times)  # after a fault soon again


async def test_time_counts_only_while_the_broker_is_there() -> None:
    waits = Waits()
    waits.put(0, 1)
    waits.unseen.due()
    for _ in range(100):
        waits.broker.traffic.faults += 1
        assert await waits.after(100.0) == []
    assert (waits.broker.asked, waits.unseen.given_up) == ([], 0)
    await waits.after(3600.0)
    assert waits.broker.asked == [[A]]


async def test_time_counts_when_looks_alone_fail_for_hours() -> None:
    waits = Waits()
    waits.put(1, 1)
    waits.broker.fault, traffic = BrokerUnavailable("500"), waits.broker.traffic
    for _ in range(122):
        traffic.faults, traffic.requests = traffic.faults + 1, traffic.requests + 2
        with contextlib.suppress(BrokerUnavailable):
            await waits.after(60.0)
    assert waits.unseen.overdue() == []
    assert (waits.unseen.given_up, waits.waiting()) == (1, 0)


async def test_one_query_asks_for_entities_of_one_kind_and_so_many() -> None:
    devices = [f"d-{n}" for n in range(ENTITIES_A_LOOK + 5)]
    waits = Waits(*devices)
    for device in devices:
        for n in range(4):
            waits.put(n, n + 1, device=device)
        waits.shows(3, device)
    await waits.after(5.0)
    await waits.after(0.01)  # the rest at once, as it shows
    assert [len(asked) for asked in waits.broker.asked] == [ENTITIES_A_LOOK, 5]
    assert waits.waiting() == 0


async def test_who_was_not_asked_for_longest_is_asked_next() -> None:
    devices = [f"d-{n}" for n in range(ENTITIES_A_LOOK + 5)]
    waits = Waits(*devices, recording=Recording())
    for device in devices:
        waits.put(0, 1, device=device)
    await waits.after(5.0)
    await waits.after(9.9)  # nothing showed: the others have time
    assert len(waits.broker.asked) == 1
    await waits.after(0.1)
    first, second = waits.broker.asked
    assert {entity_id(device) for device in devices} == {*first, *second}


async def test_what_waited_too_long_is_given_up_or_sent() -> None:
    waits = Waits()
    waits.put(0, 1)
    waits.unseen.put(waits.update("air-2", 1), UNKNOWN, known=False)
    await waits.after(7190.0)
    assert waits.waiting() == 2
    sent = [await waits.after(15.0) for _ in range(4)]
    assert [one for some in sent for one in some] == [1.0]
    assert (len(waits.done), waits.unseen.given_up, waits.waiting()) == (1, 1, 0)


async def test_what_is_gone_is_counted_by_its_points_and_does_not_delay_the_next_look() -> None:
    waits = Waits()
    for n in range(4):
        waits.unseen.put(waits.update("air-1", n, no2=n, pm25=n), Mark(n + 1, 0), known=True)
    await waits.after(5.0)
    await waits.after(7200.0)
    await waits.after(60.0)
    assert (waits.waiting(), waits.unseen.given_up) == (0, 8)
    for n in range(4, 8):
        waits.put(n, n + 1)
    asked = len(waits.broker.asked)
    await waits.after(60.0)
    assert len(waits.broker.asked) == asked + 1


async def test_of_one_that_does_not_record_what_waited_too_long_is_sent() -> None:
    waits = Waits(recording=Recording(False))
    waits.put(0, 1)
    sent = [await waits.after(3700.0) for _ in range(3)]
    assert [one for some in sent for one in some] == [0.0]
    assert (waits.done, waits.unseen.given_up) == ([], 0)


async def test_too_much_goes_from_its_oldest_on_and_what_nobody_knows_stops_the_reading() -> None:
    waits = Waits(unseen_points=10)
    for n in range(10):
        waits.put(n, n + 1)
    assert (waits.waiting(), waits.unseen.given_up, waits.unseen.full) == (10, 0, False)
    waits.put(10, 11, device="air-2")
    assert (waits.waiting(), waits.unseen.given_up) == (10, 1)
    assert [update.newest_us for update in waits.done] == [round(START.timestamp() * 1e6)]
    for n in range(10):
        assert not waits.unseen.full
        waits.put(n, 0, epoch=None, device="air-2", known=False)
    assert waits.unseen.full
    assert (waits.waiting(), waits.unseen.given_up) == (20, 1)


async def test_what_comes_from_a_held_piece_does_not_hold_the_log() -> None:
    waits = Waits()
    update = waits.update("air-1", 0)
    update.seq, update.held = 0, 7
    waits.unseen.put(update, Mark(1, 0), known=True)
    assert waits.unseen.oldest_seq is None
    later = waits.put(1, 2)
    assert waits.unseen.oldest_seq == later.seq


async def test_a_history_that_may_not_be_read_is_asked_again_later_and_ends_with_the_bounds() -> None:
    waits = Waits()
    for n in range(4):
        waits.put(n, n + 1)
    waits.broker.fault = ReadRefused("403")
    assert await waits.after(5.0) == []
    await waits.after(PATIENCE * SETTINGS.look_s - 1)
    assert len(waits.broker.asked) == 1
    await waits.after(7200.0)
    assert (waits.unseen.given_up, waits.waiting()) == (4, 0)
    waits.put(9, 9, epoch=None)
    waits.broker.fault = BrokerUnavailable("500")
    with pytest.raises(BrokerUnavailable):
        await waits.after(PATIENCE * SETTINGS.look_s)
    assert waits.waiting() == 1


async def test_who_looks_no_more_hands_back_what_nobody_knows() -> None:
    waits = Waits()
    known, open_ = waits.put(0, 1), waits.put(1, 0, epoch=None, known=False)
    assert waits.unseen.take_all() == [open_]
    assert waits.done == [known]
    assert (waits.waiting(), waits.unseen.oldest_seq) == (0, None)


# whether it records


async def test_what_was_sent_as_state_alone_and_shows_says_yes() -> None:
    waits = Waits(recording=Recording())
    waits.unseen.put(waits.update("air-2", 0), UNKNOWN, known=False)
    waits.broker.points = frozenset((B, "no2", START) for _ in "1")
    await waits.after(5.0)
    assert waits.recording.by_itself is None  # an earlier run may have sent it by the temporal API
    waits.unseen.put(waits.update("air-2", 1), UNKNOWN, known=False)
    waits.put(2, 1, device="air-2")
    waits.shows(1, "air-2")
    await waits.after(60.0)
    await waits.after(60.0)
    assert waits.recording.by_itself is None
    waits.put(0, 1)
    waits.shows(0)
    await waits.after(60.0)
    assert (waits.recording.shown, waits.recording.verified) == ("yes (seen)", True)


async def test_no_takes_ten_minutes_of_looks_that_were_answered() -> None:
    waits = Waits(recording=Recording())
    waits.put(0, 1)
    for _ in range(100):  # away
        waits.broker.traffic.faults += 1
        await waits.after(60.0)
    assert waits.recording.shown == "not known yet"
    await waits.after(3000.0)  # one look after a long sleep is no ten minutes of them
    await waits.after(3000.0)
    assert waits.recording.shown == "not known yet"
    passed_s = 0
    while waits.recording.by_itself is None:
        await waits.after(5.0)
        passed_s += 5
        assert passed_s < 700
    assert passed_s >= 480
    assert (waits.recording.shown, waits.recording.verified) == ("no", False)


async def test_a_no_ends_when_what_waited_shows_or_a_point_stands_there_twice() -> None:
    for doubled in (True, False):
        waits = Waits(recording=Recording(False))
        waits.put(0, 1)
        waits.broker.newest = {A: [("no2", START + timedelta(seconds=9))] * 2 if doubled else [("no2", START)]}
        if doubled:
            waits.unseen.goes_past([waits.update("air-1", 9, no2=9)])
            await waits.after(590.0)
            assert waits.recording.shown == "no"
            await waits.after(15.0)
        else:
            await waits.after(3600.0)
        assert waits.recording.shown == "yes (seen)"


async def test_several_times_are_no_doubled_point() -> None:
    waits = Waits(recording=Recording(False))
    went = [waits.update("air-1", 0, no2=1, pm25=1), waits.update("air-1", 1, no2=1)]
    waits.broker.newest = {A: [("no2", START), ("pm25", START), ("no2", START + timedelta(seconds=1))]}
    waits.unseen.goes_past(went)
    await waits.after(605.0)
    assert waits.broker.asked == [[A]]
    assert waits.recording.shown == "no"
    await waits.after(3600.0)
    assert waits.broker.asked == [[A]]  # nothing has gone since
    waits.unseen.goes_past(went)
    await waits.after(5.0)
    waits.unseen.goes_past(went)
    await waits.after(2390.0)
    assert waits.broker.asked == [[A]] * 2  # less and less often
    await waits.after(15.0)
    assert waits.broker.asked == [[A]] * 3


async def test_what_we_sent_twice_ourselves_is_no_doubled_point() -> None:
    waits = Waits(recording=Recording(False))
    point = ("no2", START)
    waits.unseen.goes_past([waits.update("air-1", 0, no2=1), waits.update("air-1", 0, no2=2)])  # a device's own
    waits.broker.newest = {A: [point] * 2}
    await waits.after(605.0)
    waits.unseen.goes_past([waits.update("air-1", 0, no2=3)])  # a request in doubt, or a device that repeats itself
    waits.broker.newest = {A: [point] * 3}
    await waits.after(1205.0)
    assert (waits.broker.asked, waits.recording.shown) == ([[A]] * 2, "no")
    waits.unseen.goes_past([waits.update("air-2", 0, no2=3)])  # the other one is silent
    await waits.after(2405.0)
    waits.unseen.goes_past([waits.update("air-2", 1, no2=3)])
    waits.broker.newest = {B: [("no2", START + timedelta(seconds=1))] * 2}
    await waits.after(5.0)
    assert (waits.broker.asked[-1], waits.recording.shown) == ([B], "yes (seen)")


async def test_what_went_by_the_temporal_api_too_tells_nothing_and_is_no_witness() -> None:
    for recording in (Recording(), Recording(True, "scorpio")):
        waits = Waits(recording=recording)
        for n in range(4):
            waits.put(n, n + 1)
        waits.unseen.goes_past([waits.update("air-1", 3, no2=99)])  # another value of that time
        waits.shows(3)
        assert await waits.after(5.0) == []
        assert (waits.waiting(), waits.recording is recording, recording.why) == (
            4,
            True,
            "scorpio" * bool(recording.by_itself),
        )
        waits.shows(2)
        waits.put(8, 9)
        await waits.after(3600.0)
        assert waits.waiting() == 2


def test_what_a_product_is_known_for_and_what_is_kept_of_it() -> None:
    recording = Recording()
    recording.named("")
    assert recording.shown == "not known yet"
    recording.named("stellio")
    assert (recording.shown, recording.verified) == ("yes (stellio)", False)
    recording.named("scorpio")
    assert (recording.shown, recording.verified) == ("yes (scorpio)", True)
    recording.named("Jetty(9.4)")
    assert recording.shown == "yes (scorpio)"
    recording.named("orion-ld")
    assert recording.shown == "not known yet"
    for shown, verified in (("yes (scorpio)", True), ("yes (stellio)", False), ("yes (seen)", True), ("no", False)):
        recalled = Recording()
        recalled.recall(shown)
        assert (recalled.shown, recalled.verified) == (shown, verified)
    recording.named("stellio")
    recording.recall("no")
    assert recording.shown == "yes (stellio)"
    nothing = Recording()
    nothing.recall("maybe")
    assert nothing.by_itself is None
