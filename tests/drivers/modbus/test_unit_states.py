"""One unit in turn: silent and back, lost and found, asked beside its polls. What it was before leaves no mark."""

import asyncio
from itertools import pairwise

import pytest

from drivers.modbus.config import ModbusConfig
from drivers.modbus.device import MAX_PROBE_S, MIN_PROBE_S, MIN_TIMEOUT_S, SILENT_CYCLES, Patience
from gateway.sdk.driver import Request
from gateway.sdk.reading import Reason
from tests.support import modbus_slave as slave
from tests.support.modbus_bench import Bench, served
from tests.support.modbus_config import link, template

PAIR = template(a={"address": 0}, b={"address": 1})
TIMEOUT_S = 0.3


def one(**its: object) -> ModbusConfig:
    return link({"one": {"template": PAIR, "unit_id": 1, "every": "1 s"}}, timeout="300 ms", **its)


class Yielding(slave.MemoryLine):
    """A line on which others have their turn while somebody waits for an answer."""

    __slots__ = ()

    async def read_within(self, timeout_s: float) -> bytes:
        for _ in range(10):
            await asyncio.sleep(0)
        return await slave.MemoryLine.read_within(self, timeout_s)


class Moody:
    """A device that is silent at some of its requests: `lost` says which, by number from 1."""

    def __init__(self, config: ModbusConfig | None = None) -> None:
        self.bench = Bench(config or one(), self.answer)
        self.start_s = self.bench.clock.monotonic_s()
        self.silent_at: list[tuple[float, float]] = []
        self.lost: set[int] = set()

    def now_s(self) -> float:
        return self.bench.clock.monotonic_s() - self.start_s

    def answer(self, request: slave.Request) -> list[tuple[float, bytes]]:
        away = any(start <= self.now_s() < end for start, end in self.silent_at)
        return [] if away or len(self.bench.asked) in self.lost else served(request)

    def times(self) -> list[float]:
        return [when - self.start_s for when, _ in self.bench.line.written]


async def test_each_glitch_is_tried_once_more_however_many_there_were() -> None:
    moody = Moody()
    moody.lost = {3, 7, 11, 15}

    await moody.bench.run_for(20)

    assert set(moody.bench.reasons("one")[:-1]) == {Reason.NONE}
    assert moody.bench.recorder.device_counts["one"]["timeouts"] == 4


async def test_a_unit_that_comes_back_is_polled_as_ever_at_once_and_its_next_glitch_is_only_one() -> None:
    moody = Moody()
    moody.silent_at = [(5, 100)]

    await moody.bench.run_for(100 + MAX_PROBE_S)
    back_s = next(at for at in moody.times() if at >= 100)
    count = len(moody.bench.asked)
    moody.lost = {count + 3}
    await moody.bench.run_for(30)

    pauses = [later - earlier for earlier, later in pairwise(at for at in moody.times() if at >= back_s)]
    assert max(pauses) < 2.5, "the period, or a second try"
    assert moody.bench.sets("one")[-2] == {"a": 100, "b": 101}


async def test_pauses_between_probes_grow_from_the_shortest_to_the_longest() -> None:
    moody = Moody()
    moody.silent_at = [(5, 1e9)]

    await moody.bench.run_for(400)

    probes = [at for at in moody.times() if at > 5]
    pauses = [later - earlier for earlier, later in pairwise(probes)][SILENT_CYCLES - 1 :]
    for n, pause_s in enumerate(pauses):
        most = min(MAX_PROBE_S, MIN_PROBE_S * 2**n)
        assert most / 2 <= pause_s <= most + 2, (n, [later - earlier for earlier, later in pairwise(probes)])


async def test_what_is_said_of_a_refusal_is_taken_back_and_said_again() -> None:
    said: list[bool] = []

    def answer(request: slave.Request) -> list[tuple[float, bytes]]:
        said.append(any(text for text, _ in bench.recorder.notes.values()))
        now_s = bench.clock.monotonic_s() - start_s
        if 5 <= now_s < 20 or 60 <= now_s < 80:
            return [(0.02, slave.rtu(1, bytes((request.function | 0x80, 2))))]
        return served(request)

    bench = Bench(one(), answer)
    start_s = bench.clock.monotonic_s()
    await bench.run_for(120)

    assert [now for before, now in pairwise(said) if now is not before] == [True, False, True, False]


async def test_a_unit_that_failed_is_left_alone_for_as_long_since_it_was_asked_and_others_go_on() -> None:
    config = link(
        {
            "one": {"template": PAIR, "unit_id": 1, "every": "100 ms"},
            "two": {"template": PAIR, "unit_id": 2, "every": "100 ms"},
        },
        timeout="300 ms",
        quiet="2 s",
    )
    bench = Bench(config, lambda r: [] if r.unit == 1 and len(bench.asked) == 1 else served(r))
    start_s = bench.clock.monotonic_s()
    await bench.run_for(3)

    asked = {unit: [when - start_s for when, frame in bench.line.written if frame[0] == unit] for unit in (1, 2)}
    assert asked[1][0] == 0
    assert 2.0 <= asked[1][1] < 2.15
    assert sum(0.3 < at < 2 for at in asked[2]) > 10


async def test_a_read_that_waited_for_the_line_does_not_ask_a_unit_that_failed_meanwhile() -> None:
    requests: list[Request] = []

    def answer(request: slave.Request) -> list[tuple[float, bytes]]:
        if len(bench.asked) == 2:
            requests.append(Request("read", "one"))
            bench.recorder.requests.put(requests[-1])
            return []
        return served(request)

    bench = Bench(one(quiet="2 s"), answer)
    bench.line.__class__ = Yielding
    start_s = bench.clock.monotonic_s()
    await bench.run_for(8)

    times = [when - start_s for when, _ in bench.line.written]
    assert times[2] - times[1] >= 2.0
    assert [r.value for r in requests[0].reply.result().readings] == [100, 101]


async def test_a_device_gets_the_rest_it_needs_after_each_of_its_answers_and_no_other_does() -> None:
    slow = PAIR.model_copy(update={"read": PAIR.read.model_copy(update={"gap_s": 0.5})})
    config = link(
        {
            "one": {"template": slow, "unit_id": 1, "every": "1 s"},
            "two": {"template": PAIR, "unit_id": 2, "every": "100 ms"},
        },
        timeout="300 ms",
    )
    bench = Bench(config, served)
    await bench.run_for(10)

    frames = [(when, frame[0]) for when, frame in bench.line.written]
    after = {unit: [later - when for (when, of), (later, _) in pairwise(frames) if of == unit] for unit in (1, 2)}
    assert min(after[1]) >= 0.52
    assert min(after[2]) < 0.2


async def test_polls_stay_on_their_grid_after_an_absence() -> None:
    moody = Moody()
    moody.silent_at = [(3.5, 5.2)]

    await moody.bench.run_for(30)

    late = [at % 1 for at in moody.times() if at > 12]
    grid = moody.times()[1] % 1
    assert all(min(abs(at - grid), 1 - abs(at - grid)) < 0.05 for at in late)


async def test_a_read_beside_the_polls_moves_no_counter_and_settles_no_doubt() -> None:
    meter = template(n={"address": 0, "quantity": "count", "unit": "C62", "rollover": 65536})
    left = iter([65500, 65530, 20, 50, 80, 110])
    requests: list[Request] = []

    def answer(request: slave.Request) -> list[tuple[float, bytes]]:
        if len(bench.asked) == 2:
            requests.append(Request("read", "one"))
            bench.recorder.requests.put(requests[-1])
        return [(0.02, slave.rtu(1, slave.words(3, [next(left)])))]

    bench = Bench(link({"one": {"template": meter, "unit_id": 1, "every": "1 s"}}), answer)
    await bench.run_for(4.5)

    assert [r.reason for r in requests[0].reply.result().readings] == [Reason.OUT_OF_RANGE], "in doubt for itself"
    assert [s.get("n") for s in bench.sets("one")][:5] == [65500, 65530, None, 65536 + 80, 65536 + 110]


@pytest.mark.parametrize("left", [5, 8])  # within the head of a frame, and behind it
async def test_bytes_left_over_from_a_connection_do_not_reach_the_next_one(left: int) -> None:
    config = link({"one": {"template": PAIR, "unit_id": 1, "every": "1 s"}}, timeout="300 ms", host="192.0.2.1")

    def answer(request: slave.Request) -> list[tuple[float, bytes]]:
        reply = slave.tcp(request.number, 1, slave.words(3, [100 + n for n in range(request.count)]))
        if len(bench.asked) % 3 == 0:
            bench.line.hang_up(0.5)
            return [(0.02, reply + reply[:left])]
        return [(0.02, reply)]

    bench = Bench(config, answer)
    await bench.run_for(20)

    assert bench.connected > 4
    assert set(bench.reasons("one")[:-1]) == {Reason.NONE}
    assert bench.recorder.device_counts["one"]["timeouts"] == 0


def test_patience_is_learned_quickly_upwards_and_slowly_downwards() -> None:
    patience = Patience(5.0)
    assert (patience.known, patience.timeout_s(0)) == (False, 5.0)
    patience.answered(0.5)
    assert patience.timeout_s(0) == pytest.approx(4 * 0.5 + MIN_TIMEOUT_S)
    for _ in range(10):
        patience.answered(0.01)
    assert patience.timeout_s(0) == pytest.approx(4 * 0.5 * 0.98**10 + MIN_TIMEOUT_S)
    patience.answered(1.0)
    assert patience.timeout_s(0) == pytest.approx(4 * 1.0 + MIN_TIMEOUT_S)

    assert patience.timeout_s(0, again=True) == 5.0
    assert [patience.timeout_s(n) == 5.0 for n in (6, 7, 8, 15)] == [False, True, False, True]
    patience.answered(100.0)
    assert patience.timeout_s(0) == 5.0, "never more than what is configured"


def test_a_unit_never_heard_of_gets_the_full_time_only_now_and_then_once_it_is_probed() -> None:
    patience = Patience(5.0)

    assert [patience.timeout_s(n) for n in range(9)] == [5.0, 5.0, 5.0, 0.2, 5.0, 0.2, 0.2, 0.2, 5.0]


async def test_a_remark_of_the_same_words_is_said_again_after_it_was_taken_back() -> None:
    notes: list[tuple[float, str]] = []

    def answer(request: slave.Request) -> list[tuple[float, bytes]]:
        now_s = bench.clock.monotonic_s() - start_s
        notes.append((now_s, bench.recorder.notes.get("one", ("", ""))[0]))
        if 5 <= now_s < 20 or 60 <= now_s < 80:
            return [(0.02, slave.rtu(1, bytes((request.function | 0x80, 2))))]
        return served(request)

    single = link({"one": {"template": template(a={"address": 0}), "unit_id": 1, "every": "1 s"}}, timeout="300 ms")
    bench = Bench(single, answer)
    start_s = bench.clock.monotonic_s()
    await bench.run_for(120)

    changes = [words for (_, before), (_, words) in pairwise(notes) if words != before]
    assert len(changes) == 4
    assert changes[0] == changes[2] != ""
    assert changes[1] == changes[3] == ""


async def test_registers_that_are_read_between_refused_ones_are_all_found_in_the_first_poll() -> None:
    def answer(request: slave.Request) -> list[tuple[float, bytes]]:
        if any(address % 2 for address in range(request.address, request.address + request.count)):
            return [(0.02, slave.rtu(1, bytes((request.function | 0x80, 2))))]
        return served(request)

    points = template(**{f"p{n}": {"address": n} for n in range(32)})
    bench = Bench(link({"one": {"template": points, "unit_id": 1, "every": "60 s"}}, timeout="300 ms"), answer)
    await bench.run_for(30)

    first = bench.sets("one")[0]
    assert first == {f"p{n}": 100 + n for n in range(0, 32, 2)}


async def test_a_set_of_a_silent_device_has_every_point_however_many_requests_they_take() -> None:
    points = template(a={"address": 0}, b={"address": 500}, c={"address": 1000})
    bench = Bench(
        link({"one": {"template": points, "unit_id": 1, "every": "1 s"}}, timeout="300 ms"), lambda request: []
    )
    await bench.run_for(20)

    assert len(bench.recorder.sets) > 2
    assert {"".join(sorted(reading.point for reading in one.readings)) for one in bench.recorder.sets} == {"abc"}


async def test_a_read_that_nobody_waits_for_any_more_is_not_asked() -> None:
    bench = Bench(link({"one": {"template": PAIR, "unit_id": 1, "every": "60 s"}}), served)
    gone, waiting = Request("read", "one"), Request("read", "one")
    for request in (gone, waiting):
        bench.recorder.requests.put(request)
    gone.reply.cancel()
    await bench.run_for(5)

    assert waiting.reply.result().readings
    assert len(bench.asked) == 2, "the poll and the read"


async def test_a_cut_is_tried_merged_at_the_next_poll_when_the_device_was_busy_at_the_try() -> None:
    merged: list[tuple[float, str]] = []

    def answer(request: slave.Request) -> list[tuple[float, bytes]]:
        now_s = bench.clock.monotonic_s() - start_s
        if request.count == 2 and now_s < 15:
            how = 2 if now_s < 5 else 6
            merged.append((now_s, "refused" if how == 2 else "busy"))
            return [(0.02, slave.rtu(1, bytes((request.function | 0x80, how))))]
        if request.count == 2:
            merged.append((now_s, "read"))
        return served(request)

    bench = Bench(one(), answer)
    start_s = bench.clock.monotonic_s()
    await bench.run_for(30)

    assert {how for _, how in merged} == {"refused", "busy", "read"}
    assert next(at for at, how in merged if how == "read") < 17
    assert set(bench.reasons("one")[:-1]) == {Reason.NONE}


async def test_a_register_that_stays_silent_is_asked_for_ever_more_seldom_and_the_others_go_on() -> None:
    points = template(a={"address": 0}, b={"address": 500})
    bench = Bench(
        link({"one": {"template": points, "unit_id": 1, "every": "1 s"}}, timeout="300 ms"),
        lambda request: [] if request.address == 0 else served(request),
    )
    await bench.run_for(200)

    asked = sum(request.address == 0 for request in bench.asked)
    assert 3 <= asked <= 12, "after 10, 20, 40, 80 s"
    assert len([one for one in bench.sets("one") if one == {"b": 600}]) > 150
