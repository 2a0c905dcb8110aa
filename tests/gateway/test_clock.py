"""The box's clock: who is believed, what `now` is while nobody is, and that it never runs before the floor."""

import ctypes
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import clock as clocks
from gateway.clock import BUILT_AT, Box, BoxClock, Source, SystemClock, disciplined, rtc_s, synchronised, this_box

TODAY = BUILT_AT + timedelta(days=100)
S = 10**9


def ns(at: datetime) -> int:
    return int((at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * S


@dataclass
class FakeBox:
    wall: datetime = TODAY
    boot_s: int = 100
    synchronised: bool = False
    rtc: datetime | None = None
    asked: list[str] = field(default_factory=list)

    def clock(self, trust: Literal["auto", "system"] = "auto") -> SystemClock:
        return SystemClock(
            trust,
            Box(
                boot_id=lambda: "boot-1",
                wall_ns=lambda: ns(self.wall),
                boot_ns=lambda: self.boot_s * S,
                synchronised=lambda: self.synchronised,
                rtc_s=lambda: None if self.rtc is None else ns(self.rtc) // S,
            ),
        )

    def advance(self, seconds: int) -> None:
        self.wall += timedelta(seconds=seconds)
        self.boot_s += seconds


def test_a_plausible_time_without_a_source_is_not_trusted() -> None:
    clock = FakeBox().clock()
    assert clock.now() == TODAY
    assert clock.trust.source is Source.NONE
    assert not clock.trust.trusted
    assert clock.status()["remedy"]


def test_system_takes_the_systems_word() -> None:
    clock = FakeBox(wall=datetime(1970, 1, 1, tzinfo=UTC)).clock("system")
    assert clock.trust.source is Source.SYSTEM
    assert clock.now() == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_1970_boot_starts_at_the_floor_and_goes_on_from_there() -> None:
    box = FakeBox(wall=datetime(1970, 1, 1, tzinfo=UTC))
    clock = box.clock()
    assert clock.now() == BUILT_AT
    clock.raise_floor(TODAY)
    box.advance(30)
    assert clock.now() == TODAY + timedelta(seconds=30)
    assert clock.trust.source is Source.FLOOR
    clock.raise_floor(BUILT_AT)  # an older one changes nothing
    assert clock.now() == TODAY + timedelta(seconds=30)


def test_kernel_synchronisation_is_noticed_and_outlives_the_network() -> None:
    box = FakeBox(wall=datetime(1970, 1, 1, tzinfo=UTC))
    clock = box.clock()
    box.wall, box.synchronised = TODAY, True
    assert not clock.trust.trusted  # asked a moment ago
    box.advance(6)
    assert clock.trust.source is Source.KERNEL
    assert clock.trust.since == TODAY + timedelta(seconds=6)
    box.synchronised = False
    box.advance(86400)
    assert clock.trust.source is Source.KERNEL


def test_a_synchronised_kernel_before_the_floor_is_not_believed() -> None:
    clock = FakeBox(wall=datetime(2001, 1, 1, tzinfo=UTC), synchronised=True).clock()
    assert not clock.trust.trusted


@pytest.mark.parametrize(("rtc", "source"), [(TODAY, Source.RTC), (datetime(1970, 1, 2, tzinfo=UTC), Source.NONE)])
def test_a_hardware_clock_counts_when_it_survived_the_power_cut(rtc: datetime, source: Source) -> None:
    assert FakeBox(rtc=rtc).clock().trust.source is source


def test_an_offer_that_agrees_confirms_and_does_not_move_the_time() -> None:
    clock = FakeBox().clock()
    assert clock.offer(TODAY + timedelta(seconds=1), 1.0, Source.BROKER)
    assert clock.trust.source is Source.BROKER
    assert clock.now() == TODAY


def told(clock: SystemClock, box: FakeBox, apart_s: float, source: Source, who: str = "", *, times: int = 2) -> bool:
    """A source says every 10 minutes what lies so far from the system's clock; whether its last word was used."""
    used = False
    for n in range(times):
        if n:
            box.advance(600)
        used = clock.offer(box.wall + timedelta(seconds=apart_s), 0.1, source, who)
    return used


def test_two_offers_that_agree_move_an_unconfirmed_time_which_then_follows_boot_time() -> None:
    box = FakeBox()
    clock = box.clock()
    true = TODAY + timedelta(days=3)
    assert not clock.offer(true, 0.1, Source.GNSS)
    assert not clock.offer(true + timedelta(seconds=1), 0.1, Source.GNSS)  # the same packet by another way
    assert clock.now() == TODAY
    assert not clock.trust.trusted
    assert "is believed" in clock.status()["remedy"]
    box.boot_s += 10
    assert clock.offer(true + timedelta(seconds=10), 0.1, Source.GNSS)
    box.boot_s += 60
    box.wall -= timedelta(days=9)  # somebody sets the system's clock: ours no longer asks it
    assert clock.now() == true + timedelta(seconds=70)
    assert clock.status()["correction_s"] > 0


def test_two_sources_that_agree_are_believed_at_once() -> None:
    clock = FakeBox().clock()
    assert not clock.offer(TODAY + timedelta(days=3), 1.0, Source.BROKER, "milano")
    assert clock.offer(TODAY + timedelta(days=3, seconds=1), 1.0, Source.BROKER, "porto")
    assert clock.trust.source is Source.BROKER


def test_a_time_that_stands_still_is_not_believed() -> None:
    box = FakeBox()
    clock = box.clock()
    for _ in range(20):
        assert not clock.offer(TODAY + timedelta(days=3), 1.0, Source.BROKER)
        box.advance(60)
    assert not clock.trust.trusted


def test_lower_ranks_and_vague_offers_are_not_listened_to() -> None:
    clock = FakeBox().clock()
    assert clock.offer(TODAY, 0.1, Source.GNSS)
    assert not clock.offer(TODAY + timedelta(days=1), 1.0, Source.BROKER)
    assert not clock.offer(TODAY, 60.0, Source.GNSS)
    assert not clock.offer(TODAY, -1.0, Source.GNSS)
    assert not clock.offer(TODAY, float("nan"), Source.GNSS)
    assert not clock.offer(TODAY + timedelta(days=1), 0.1, Source.SYSTEM)
    assert clock.now() == TODAY


@pytest.mark.parametrize(
    "utc",
    [
        BUILT_AT - timedelta(days=1),
        BUILT_AT + timedelta(days=21 * 365),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-23))),
        TODAY.replace(tzinfo=None),
        "2026-12-01T00:00:00Z",
        None,
    ],
)
def test_what_cannot_be_the_time_is_refused_however_often_it_is_said(utc: Any) -> None:
    box = FakeBox()
    clock = box.clock()
    for who in ("one", "two", "one"):
        box.advance(60)
        assert not clock.offer(utc, 0.1, Source.GNSS, who)
    assert not clock.trust.trusted


@pytest.mark.parametrize("apart_s", [-1800.0, 5.0, 1800.0, 7 * 86400.0, 13 * 365 * 86400.0])
@pytest.mark.parametrize("state", ["none", "floor", "rtc", "broker", "radio", "kernel", "system"])
def test_no_single_packet_moves_the_clock(state: str, apart_s: float) -> None:
    box = FakeBox(rtc=TODAY if state == "rtc" else None, synchronised=state == "kernel")
    clock = box.clock("system" if state == "system" else "auto")
    if state == "floor":
        clock.raise_floor(TODAY + timedelta(days=1))
    if state in ("broker", "radio"):
        assert clock.offer(TODAY, 1.0, Source[state.upper()], "first")
    before, trusted = clock.now(), clock.trust.trusted
    for _ in range(50):  # one after the other, in no time
        assert not clock.offer(before + timedelta(seconds=apart_s), 1.0, Source.RADIO, "link lora")
    assert clock.now() == before
    assert clock.trust.trusted is trusted


@pytest.mark.parametrize(("apart_s", "moves"), [(5.0, True), (3600.0, True), (3601.0, False), (-86400.0, False)])
def test_a_source_corrects_its_own_drift_and_no_more(apart_s: float, moves: bool) -> None:
    box = FakeBox()
    clock = box.clock()
    assert clock.offer(TODAY, 0.1, Source.RADIO)
    assert not told(clock, box, apart_s, Source.RADIO, times=4)
    box.advance(600)
    assert clock.offer(box.wall + timedelta(seconds=apart_s), 0.1, Source.RADIO) is moves
    assert clock.now() == box.wall + timedelta(seconds=apart_s if moves else 0)
    assert bool(clock.status()["doubt"]) is not moves


def offers(
    clock: SystemClock, box: FakeBox, *said: tuple[float, float], every_s: int = 150, source: Source = Source.RADIO
) -> list[bool]:
    """What one source says, as seconds from the system's clock and how sure it is of that; which of it was used."""
    used = []
    for n, (apart_s, uncertainty_s) in enumerate(said):
        if n:
            box.advance(every_s)
        used.append(clock.offer(box.wall + timedelta(seconds=apart_s), uncertainty_s, source))
    return used


def test_a_source_that_drifts_in_small_steps_is_one_and_its_newest_word_counts() -> None:
    box = FakeBox()
    clock = box.clock()
    assert clock.offer(TODAY, 0.1, Source.RADIO)
    assert offers(clock, box, *((5.0 + n, 0.1) for n in range(5))) == [False] * 4 + [True]
    assert clock.now() == box.wall + timedelta(seconds=9)


def test_a_word_in_between_that_contradicts_begins_the_count_anew() -> None:
    box = FakeBox()
    clock = box.clock()
    assert clock.offer(TODAY, 0.1, Source.RADIO)
    said = [(5.0, 0.1)] * 4 + [(100.0, 0.1)] + [(5.0, 0.1)] * 5
    assert offers(clock, box, *said) == [False] * 9 + [True]


def test_words_of_before_it_contradicted_itself_are_no_proof_later() -> None:
    box = FakeBox()
    clock = box.clock()
    assert clock.offer(TODAY, 0.1, Source.RADIO)
    assert not any(offers(clock, box, *[(5.0, 0.1)] * 4, (100.0, 0.1), (5.0, 0.1)))
    box.advance(600)
    assert offers(clock, box, (5.0, 0.1)) == [False]


def test_a_time_that_cannot_be_raises_no_doubt_about_one_that_was_told() -> None:
    clock = FakeBox().clock()
    assert clock.offer(TODAY, 0.1, Source.BROKER)
    assert not clock.offer(datetime(1999, 1, 1, tzinfo=UTC), 0.1, Source.BROKER)
    assert clock.status()["doubt"] == ""


def test_a_source_that_confirms_us_in_between_takes_back_what_it_said_against_us() -> None:
    box = FakeBox()
    clock = box.clock()
    said = [(0.0, 0.1)] + [(30.0, 0.1)] * 4 + [(0.0, 0.1)] + [(30.0, 0.1)] * 5
    assert offers(clock, box, *said) == [True] + [False] * 4 + [True] + [False] * 4 + [True]


@pytest.mark.parametrize(
    ("said", "used"),
    [
        ([(100, 5.0), (104, 0.1), (105, 0.1)], True),
        ([(100, 0.1), (104, 5.0), (108, 0.1)], True),
        ([(100, 5.0), (104, 0.1), (108, 0.1)], False),  # the sure word counts from now on
        ([(100, 0.1), (104, 0.1), (104, 0.1)], False),
        ([(100, 0.1), (102, 0.1), (104, 0.1)], True),
    ],
)
def test_two_words_of_one_source_agree_as_far_as_the_vaguer_one_allows(
    said: list[tuple[float, float]], used: bool
) -> None:
    box = FakeBox(rtc=TODAY)
    assert offers(box.clock(), box, *said, every_s=30)[-1] is used


@pytest.mark.parametrize(("first", "second"), [(5.0, 0.1), (0.1, 5.0)])
def test_two_sources_agree_as_far_as_the_vaguer_one_allows(first: float, second: float) -> None:
    clock = FakeBox().clock()
    assert not clock.offer(TODAY + timedelta(seconds=100), first, Source.BROKER, "milano")
    assert clock.offer(TODAY + timedelta(seconds=104), second, Source.BROKER, "porto")


def test_one_that_says_what_we_say_confirms_within_what_it_is_sure_of() -> None:
    for apart_s, uncertainty_s, agrees in ((2.0, 0.1, True), (2.1, 0.1, False), (5.0, 5.0, True), (5.1, 5.0, False)):
        at = TODAY + timedelta(seconds=apart_s)
        assert FakeBox().clock().offer(at, uncertainty_s, Source.BROKER) is agrees


@pytest.mark.parametrize(("other", "used"), [(Source.BROKER, False), (Source.RADIO, True)])
def test_one_that_agrees_with_us_silences_his_own_rank_and_none_above(other: Source, used: bool) -> None:
    """Within a minute; whoever was not silenced goes on counting."""
    box = FakeBox()
    clock = box.clock()
    assert clock.offer(box.wall, 0.1, Source.BROKER, "milano")
    assert offers(clock, box, *[(30.0, 0.1)] * 4, source=other) == [False] * 4
    assert clock.offer(box.wall, 0.1, Source.BROKER, "milano")
    box.advance(150)
    assert offers(clock, box, (30.0, 0.1), source=other) == [used]


@pytest.mark.parametrize(("apart_s", "moves"), [(60.0, True), (61.0, False)])
@pytest.mark.parametrize("again", [False, True])
def test_a_supporter_speaks_for_our_time_for_an_hour(apart_s: float, moves: bool, again: bool) -> None:
    box = FakeBox()
    clock = box.clock()
    assert clock.offer(box.wall, 1.0, Source.BROKER, "milano")
    if again:
        box.advance(1000)
        assert clock.offer(box.wall, 1.0, Source.BROKER, "milano")
    box.advance(3000)
    assert offers(clock, box, *[(apart_s, 0.1)] * 5) == [False] * 4 + [moves]  # the last after an hour exactly
    if not moves:
        box.advance(1)
        assert offers(clock, box, (apart_s, 0.1)) == [True]


def test_who_supported_the_time_that_was_does_not_support_the_new_one() -> None:
    box = FakeBox()
    clock = box.clock()
    assert clock.offer(box.wall, 1.0, Source.BROKER, "milano")
    assert offers(clock, box, *[(30.0, 0.1)] * 5)[-1]
    assert offers(clock, box, *[(2000.0, 0.1)] * 5)[-1]
    assert clock.now() == box.wall + timedelta(seconds=2000)


def test_what_was_said_against_the_time_that_was_is_no_proof_against_the_new_one() -> None:
    box = FakeBox()
    clock = box.clock()
    assert not clock.offer(box.wall + timedelta(seconds=170), 0.1, Source.BROKER, "porto")
    assert offers(clock, box, *[(200.0, 0.1)] * 2, source=Source.BROKER, every_s=10) == [False, True]
    for _ in range(4):
        box.advance(200)
        assert not clock.offer(box.wall + timedelta(seconds=170), 0.1, Source.BROKER, "porto")
    assert clock.now() == box.wall + timedelta(seconds=200)


@pytest.mark.parametrize(
    ("state", "times", "every_s"), [("none", 2, 10), ("rtc", 3, 30), ("told", 5, 150)], ids=lambda value: str(value)
)
def test_so_much_proof_moves_the_clock_and_no_less(state: str, times: int, every_s: int) -> None:
    for short_s, fewer in ((0, 0), (1, 0), (0, 1)):
        box = FakeBox(rtc=TODAY if state == "rtc" else None)
        clock = box.clock()
        if state == "told":
            assert clock.offer(TODAY, 0.1, Source.BROKER, "milano")
        said = [(30.0, 0.1)] * (times - fewer - 1)
        assert not any(offers(clock, box, *said, every_s=every_s))
        box.advance(every_s * (times - 1 if not said else times - len(said)) - short_s)
        assert offers(clock, box, (30.0, 0.1)) == [not short_s and not fewer]


def test_a_time_once_told_is_kept_when_its_source_falls_silent() -> None:
    box = FakeBox()
    clock = box.clock()
    assert offers(clock, box, *[(3 * 86400.0, 0.1)] * 2, source=Source.BROKER)[-1]
    box.advance(90 * 86400)
    assert clock.trust.source is Source.BROKER
    assert clock.now() == box.wall + timedelta(days=3)


def test_a_kernel_that_is_synchronised_after_a_source_was_believed_wins_and_ends_every_doubt() -> None:
    box = FakeBox()
    clock = box.clock()
    assert offers(clock, box, *[(5 * 86400.0, 0.1)] * 2, source=Source.BROKER)[-1]
    assert not clock.offer(box.wall, 0.1, Source.BROKER)
    assert clock.status()["doubt"]
    box.synchronised = True
    box.advance(5)
    assert clock.trust.source is Source.KERNEL
    assert clock.now() == box.wall
    assert (clock.status()["doubt"], clock.status()["remedy"], clock.status()["correction_s"]) == ("", "", 0.0)
    for source in (Source.KERNEL, Source.GNSS, Source.BROKER):
        assert not clock.offer(box.wall, 0.1, source)


def test_ranks_that_tell_no_time_are_not_listened_to() -> None:
    for source in (Source.NONE, Source.FLOOR, Source.KERNEL, Source.SYSTEM):
        clock = FakeBox().clock()
        assert not clock.offer(TODAY, 0.1, source)
        assert not clock.trust.trusted
    assert not FakeBox().clock("system").offer(TODAY, 0.1, Source.GNSS)
    clock = FakeBox().clock()
    assert clock.offer(TODAY, 0.1, Source.RTC)
    assert clock.trust.trusted  # at once, not with the next look


def test_a_newer_time_on_disk_than_a_hardware_clocks_is_known_at_once() -> None:
    box = FakeBox(rtc=TODAY)
    clock = box.clock()
    assert clock.trust.source is Source.RTC
    clock.raise_floor(TODAY)
    assert clock.trust.source is Source.RTC
    clock.raise_floor(TODAY + timedelta(days=1))
    assert clock.status()["source"] == "floor"
    box.advance(30)
    assert clock.earliest == clock.now() == TODAY + timedelta(days=1, seconds=30)
    clock.raise_floor(BUILT_AT + timedelta(days=20 * 365))
    assert clock.now() == BUILT_AT + timedelta(days=20 * 365)


def test_a_better_source_that_agrees_changes_who_and_not_since_when() -> None:
    box = FakeBox()
    clock = box.clock()
    box.advance(100)
    assert clock.offer(box.wall, 0.1, Source.BROKER)
    box.advance(100)
    assert clock.offer(box.wall, 0.1, Source.GNSS)
    assert clock.status()["source"] == "gnss"
    assert clock.status()["since"] == box.wall - timedelta(seconds=100)


def test_what_another_source_supports_is_not_thrown_over_by_a_better_one() -> None:
    box = FakeBox()
    clock = box.clock()
    for _ in range(12):
        box.advance(600)
        assert clock.offer(box.wall, 1.0, Source.BROKER, "milano")
        assert not clock.offer(box.wall + timedelta(days=7168), 0.1, Source.RADIO, "link lora")  # GPS weeks rolled over
    assert clock.now() == box.wall
    assert "link lora" in clock.status()["doubt"]
    assert clock.status()["remedy"]


def test_a_better_source_corrects_a_worse_one_that_has_fallen_silent() -> None:
    box = FakeBox()
    clock = box.clock()
    assert told(clock, box, 5 * 86400.0, Source.BROKER, "milano")
    assert clock.now() == box.wall + timedelta(days=5)
    box.advance(7200)
    assert told(clock, box, 0.0, Source.GNSS, "gnss", times=5)
    assert clock.now() == box.wall
    assert clock.status()["doubt"] == ""


def test_a_hardware_clock_that_is_wrong_gives_way_to_a_broker_within_minutes() -> None:
    box = FakeBox(rtc=TODAY)
    clock = box.clock()
    for n in range(3):
        assert clock.offer(box.wall + timedelta(days=2), 1.0, Source.BROKER) is (n == 2)
        box.advance(30)
    assert clock.now() == box.wall + timedelta(days=2)


@given(st.lists(st.tuples(st.integers(-(10**9), 10**9), st.sampled_from("abc"), st.integers(0, 9)), max_size=40))
def test_scattered_offers_never_move_a_trusted_clock(offers: list[tuple[int, str, int]]) -> None:
    box = FakeBox()
    clock = box.clock()
    assert clock.offer(TODAY, 0.1, Source.BROKER, "good")
    said: list[int] = []
    for apart_s, who, wait_s in offers:
        box.advance(wait_s)
        if all(abs(apart_s - other) > 60 for other in said):
            clock.offer(box.wall + timedelta(seconds=apart_s), 0.1, Source.RADIO, who)
            said.append(apart_s)
    assert abs(clock.now() - box.wall) <= timedelta(seconds=2)


def test_since_when_it_is_unconfirmed_is_the_start_by_the_best_knowledge() -> None:
    box = FakeBox(wall=datetime(1970, 1, 1, tzinfo=UTC))
    clock = box.clock()
    box.advance(300)
    clock.raise_floor(TODAY)
    assert clock.status()["since"] == TODAY - timedelta(seconds=300)  # not the date of the build
    told(clock, box, (TODAY + timedelta(days=1) - box.wall).total_seconds(), Source.BROKER)
    box.advance(60)
    assert clock.status()["state"] == "ok"
    assert clock.status()["since"] == clock.now() - timedelta(seconds=60)


@pytest.mark.parametrize("synchronised", ["at the start", "later"])
def test_who_keeps_the_kernel_in_time_is_believed_below_the_floor(synchronised: str) -> None:
    """The file has times of a clock that ran ahead: they must not make a box of the future of one that NTP set right."""
    box = FakeBox(synchronised=synchronised == "at the start")
    clock = box.clock()
    clock.raise_floor(TODAY + timedelta(days=400))
    box.synchronised = True
    box.advance(60)
    assert clock.trust.source is Source.KERNEL
    assert clock.now() == box.wall


def test_a_floor_that_cannot_be_is_not_taken_over() -> None:
    clock = FakeBox().clock()
    clock.raise_floor(BUILT_AT + timedelta(days=30 * 365))  # an earlier citygate had believed it
    assert clock.now() == TODAY


def test_the_real_clock_has_whole_milliseconds_and_answers_the_protocol() -> None:
    clock = SystemClock("system", this_box())
    assert isinstance(clock, BoxClock)
    assert clock.now().microsecond % 1000 == 0
    assert clock.now().tzinfo is UTC
    assert clock.monotonic_s() > 0
    assert synchronised() in (True, False)
    assert len(clock.boot_id) == 36


def test_one_that_contradicts_itself_takes_no_word_from_the_others_however_many_they_are() -> None:
    box = FakeBox()
    clock = box.clock()
    for n in range(16):  # as many as are remembered
        assert not clock.offer(TODAY + timedelta(seconds=1000 * (n + 1)), 0.1, Source.RADIO, f"link {n}")
    assert not clock.offer(TODAY + timedelta(days=2), 0.1, Source.RADIO, "link 3")
    box.advance(10)
    assert clock.offer(box.wall + timedelta(seconds=1000), 0.1, Source.RADIO, "link 0")


def test_a_source_that_is_forgotten_for_too_many_others_begins_its_proof_anew() -> None:
    box = FakeBox()
    clock = box.clock()
    assert not clock.offer(TODAY + timedelta(days=9), 0.1, Source.RADIO, "link 0")
    for n in range(16):
        assert not clock.offer(TODAY + timedelta(seconds=1000 * (n + 1)), 0.1, Source.RADIO, f"other {n}")
    box.advance(20)
    assert not clock.offer(box.wall + timedelta(days=9), 0.1, Source.RADIO, "link 0"), "its first word is gone"
    box.advance(20)
    assert clock.offer(box.wall + timedelta(days=9), 0.1, Source.RADIO, "link 0")


def test_the_numbers_of_sources_are_those_in_the_files_of_earlier_versions() -> None:
    assert [source.name for source in sorted(Source)] == [
        "NONE",
        "FLOOR",
        "RTC",
        "BROKER",
        "RADIO",
        "GNSS",
        "KERNEL",
        "SYSTEM",
    ]
    assert [int(source) for source in sorted(Source)] == list(range(8))


@pytest.mark.parametrize(
    ("apart", "who", "words"),
    [
        (timedelta(seconds=-90), "", "radio says {} UTC, 90 s before ours"),
        (timedelta(days=2), "link roof", "link roof says {} UTC, 2 days after ours"),
        (timedelta(days=2) - timedelta(seconds=1), "", "radio says {} UTC, 172799 s after ours"),
        (timedelta(days=-40), "", "radio says {} UTC, 40 days before ours"),
    ],
)
def test_who_is_not_believed_yet_is_told_with_what_he_says_and_how_far_that_is(
    apart: timedelta, who: str, words: str
) -> None:
    clock, words = FakeBox().clock(), words.format(f"{TODAY + apart:%Y-%m-%d %H:%M:%S}")
    assert clock.status()["doubt"] == ""
    assert clock.status()["remedy"].startswith("connect a time source")
    assert not clock.offer(TODAY + apart, 0.1, Source.RADIO, who)
    assert clock.status()["doubt"] == words
    assert clock.status()["remedy"].startswith(
        f"{words}: once it goes on to say so, or another agrees, it is believed; "
    )
    assert clock.offer(TODAY, 0.1, Source.RADIO)
    assert (clock.status()["doubt"], clock.status()["remedy"]) == ("", ""), "it is over when somebody agrees with us"


LATEST = BUILT_AT + timedelta(days=20 * 365)


@pytest.mark.parametrize(
    ("utc", "uncertainty_s", "can_be"),
    [
        (BUILT_AT, 0.1, True),
        (BUILT_AT - timedelta(seconds=1), 0.1, False),
        (LATEST, 0.1, True),
        (LATEST + timedelta(seconds=1), 0.1, False),
        (TODAY, 0.0, True),
        (TODAY, 5.0, True),
        (TODAY, 5.1, False),
        (TODAY, -0.1, False),
        (TODAY.replace(tzinfo=None), 0.1, False),  # of no zone
    ],
)
def test_a_time_that_cannot_be_is_told_as_that_until_somebody_is_believed(
    utc: datetime, uncertainty_s: float, can_be: bool
) -> None:
    words = f"gnss offers a time that cannot be: {utc}"
    box = FakeBox()
    clock = box.clock()
    clock.offer(utc, uncertainty_s, Source.GNSS)
    assert (clock.status()["doubt"] == words) is not can_be
    assert clock.offer(TODAY, 0.1, Source.GNSS)
    clock.offer(utc, uncertainty_s, Source.GNSS)
    assert "cannot be" not in clock.status()["doubt"], "it has a better one now"

    told = box.clock("system")
    told.offer(utc, uncertainty_s, Source.GNSS)
    assert told.status()["doubt"] == "", "the system's word is taken"


def test_a_rank_that_tells_no_time_leaves_no_doubt() -> None:
    clock = FakeBox().clock()
    for source in (Source.NONE, Source.FLOOR, Source.KERNEL, Source.SYSTEM):
        assert not clock.offer(TODAY + timedelta(days=1), 0.1, source)
        assert clock.status()["doubt"] == ""


def test_the_earliest_moment_goes_on_with_time_also_when_the_same_floor_is_found_again() -> None:
    box = FakeBox()
    clock = box.clock()
    floor = TODAY + timedelta(microseconds=1500)
    clock.raise_floor(floor)
    box.advance(100)
    for again in (floor, BUILT_AT):
        clock.raise_floor(again)
        assert clock.earliest == TODAY + timedelta(seconds=100, microseconds=1000), "in whole milliseconds"


def test_status_says_how_far_the_systems_clock_is_off_and_whether_that_is_confirmed() -> None:
    box = FakeBox()
    clock = box.clock()
    assert clock.trust.since == TODAY
    assert (clock.status()["state"], clock.status()["correction_s"]) == ("unconfirmed", 0.0)
    assert told(clock, box, 100.5, Source.GNSS)
    assert (clock.status()["state"], clock.status()["correction_s"]) == ("ok", 100.5)
    assert told(clock, box, -99.75, Source.GNSS, times=5)
    assert clock.status()["correction_s"] == -99.75


async def test_the_clock_waits_and_counts_in_seconds() -> None:
    clock = SystemClock("system")
    begun_s = clock.monotonic_s()
    await clock.sleep(0.05)
    assert 0.04 < clock.monotonic_s() - begun_s < 20
    assert clock.monotonic_s() == pytest.approx(float(Path("/proc/uptime").read_text().split()[0]), abs=5)


@pytest.mark.parametrize(
    ("state", "status", "max_error_us", "kept"),
    [
        (0, 0x2001, 999_999, True),
        (4, 0x2001, 0, True),  # a leap second has just been
        (5, 0x2001, 0, False),  # TIME_ERROR
        (-1, 0x2001, 0, False),  # no such call, or not permitted
        (0, 0x2041, 0, False),  # STA_UNSYNC
        (0, 0x0040, 0, False),
        (0, 0x2001, 1_000_000, False),  # nobody has corrected it for long
    ],
)
def test_a_kernel_clock_is_kept_when_it_says_so_in_each_of_three_ways(
    state: int, status: int, max_error_us: int, kept: bool
) -> None:
    assert disciplined(state, status, max_error_us) is kept


def test_what_timesyncd_has_noted_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "_TIMESYNCD", tmp_path / "synchronized")
    without = synchronised()
    assert without is kept_by_adjtimex()
    (tmp_path / "synchronized").touch()
    assert synchronised() is True


def kept_by_adjtimex() -> bool:
    """The same question, asked with the field offsets of adjtimex(2) on 64 bits instead of a structure."""
    buffer = ctypes.create_string_buffer(512)
    state = ctypes.CDLL(None).adjtimex(buffer)
    [max_error_us] = struct.unpack_from("=q", buffer, 24)
    [status] = struct.unpack_from("=i", buffer, 40)
    return disciplined(state, status, max_error_us)


@pytest.mark.parametrize(
    ("hctosys", "since_epoch", "told_s"),
    [("1\n", "1800000000\n", 1_800_000_000), ("0\n", "1800000000\n", None), ("1\n", "x", None), ("1\n", "", None)],
)
def test_a_hardware_clock_is_asked_that_set_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hctosys: str, since_epoch: str, told_s: int | None
) -> None:
    monkeypatch.setattr(clocks, "_RTC", tmp_path)
    assert rtc_s() is None
    (tmp_path / "hctosys").write_text(hctosys)
    (tmp_path / "since_epoch").write_text(since_epoch)
    assert rtc_s() == told_s
    assert this_box().rtc_s() == told_s
