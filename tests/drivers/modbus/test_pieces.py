"""Merged requests that a device does not take, in whatever way: the parts are read, and merged again when it does."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from drivers.modbus.config import ModbusConfig
from gateway.sdk.driver import Request
from gateway.sdk.errors import PortClosed
from gateway.sdk.reading import Reason
from tests.support import modbus_slave as slave
from tests.support.modbus_bench import Bench
from tests.support.modbus_config import link, template

Pieces = list[tuple[float, bytes]]
ADDRESSES = {"a": 0, "b": 1, "c": 3, "d": 4, "e": 6, "f": 9}
HOLED = template(**{name: {"address": address} for name, address in ADDRESSES.items()})
MANY = template(**{f"p{n}": {"address": n if n < 25 else n + 40} for n in range(50)})  # two requests


class Device:
    """A slave that misbehaves in one way whenever a request covers one of `bad`, while the clock is in `during`."""

    def __init__(self, wire: str, how: str, bad: set[int]) -> None:
        self.wire, self.how, self.bad = wire, how, bad
        self.during: Callable[[], bool] = lambda: True

    def answer(self, request: slave.Request) -> Pieces:
        covered = range(request.address, request.address + request.count)
        values = [100 + address for address in covered]
        if not (self.during() and self.bad & set(covered)):
            return self._framed(request, slave.words(request.function, values))
        if self.how.startswith("exception"):
            return self._framed(request, bytes((request.function | 0x80, int(self.how.split()[1]))))
        if self.how == "alternating":
            self._turn = -getattr(self, "_turn", 1)
            return self._framed(request, bytes((request.function | 0x80, 2 if self._turn > 0 else 4)))
        if self.how == "silence":
            return []
        if self.how == "close":
            raise PortClosed("the other end hangs up")
        if self.how == "short":
            return self._framed(request, slave.words(request.function, values[:-1]))
        if self.how == "long":
            return self._framed(request, slave.words(request.function, [*values, 7]))
        assert self.how == "cut"
        [(after_s, frame)] = self._framed(request, slave.words(request.function, values))
        return [(after_s, frame[:-2])]

    def _framed(self, request: slave.Request, pdu: bytes) -> Pieces:
        frame = slave.rtu(request.unit, pdu) if self.wire == "rtu" else slave.tcp(request.number, request.unit, pdu)
        return [(0.02, frame)]


def config(wire: str, its: object = HOLED, every: str = "1 s") -> ModbusConfig:
    place = {} if wire == "rtu" else {"host": "192.0.2.1"}
    return link({"one": {"template": its, "unit_id": 1, "every": every}}, timeout="300 ms", **place)


def bench_of(device: Device, its: object = HOLED, every: str = "1 s") -> Bench:
    return Bench(config(device.wire, its, every), device.answer)


HOWS = [
    *(f"exception {code}" for code in (1, 2, 3, 4, 5, 6, 7, 8, 99)),
    "alternating",
    "silence",
    "short",
    "long",
    "cut",
]
WAYS = [*(("rtu", how) for how in HOWS), *(("tcp", how) for how in HOWS), ("tcp", "exception 11"), ("tcp", "close")]
NAMES = [" ".join(way) for way in WAYS]


@pytest.mark.parametrize("hole", [{2}, {5}, {8}, {2, 5, 7}], ids=str)
@pytest.mark.parametrize(("wire", "how"), WAYS, ids=NAMES)
async def test_a_hole_in_a_merged_request_costs_no_point(wire: str, how: str, hole: set[int]) -> None:
    bench = bench_of(Device(wire, how, hole))

    await bench.run_for(25)

    whole = {name: 100 + address for name, address in ADDRESSES.items()}
    assert bench.sets("one")[-4:-1] == [whole] * 3, bench.recorder.notes
    assert bench.reasons("one")[-2] is Reason.NONE


@pytest.mark.parametrize("bad", sorted(ADDRESSES))
@pytest.mark.parametrize(("wire", "how"), WAYS, ids=NAMES)
async def test_one_register_that_cannot_be_read_costs_only_itself(wire: str, how: str, bad: str) -> None:
    bench = bench_of(Device(wire, how, {ADDRESSES[bad]}))

    await bench.run_for(40)

    rest = {name: 100 + address for name, address in ADDRESSES.items() if name != bad}
    got = [values for values in bench.sets("one")[-8:-1] if values != rest]
    if how in ("short", "long"):  # one register by itself gives one too few or too many as well
        got = [values for values in got if values]
    assert len(got) <= 1, got


@pytest.mark.parametrize("fault_s", [1.5, 4, 30])
@pytest.mark.parametrize(("wire", "how"), WAYS, ids=NAMES)
async def test_what_a_passing_fault_taught_is_unlearned(wire: str, how: str, fault_s: float) -> None:
    device = Device(wire, how, set(range(100)))
    bench = bench_of(device, MANY)
    start_s = bench.clock.monotonic_s()
    device.during = lambda: 20 <= bench.clock.monotonic_s() - start_s < 20 + fault_s

    await bench.run_for(20 + fault_s + 130)

    times = [when - start_s for when, _ in bench.line.written]
    during = sum(20 <= when < 20 + fault_s for when in times)
    assert during <= 40 * (fault_s + 1), "a fault must not be answered with a flood"
    after = [when for when in times if when > 20 + fault_s + 120]
    assert len(after) <= 2 * 10 + 2, "merged again"
    assert len(bench.sets("one")[-3]) == 50


@pytest.mark.parametrize("wire", ["rtu", "tcp"])
async def test_a_real_hole_is_tried_merged_ever_more_seldom(wire: str) -> None:
    bench = bench_of(Device(wire, "exception 2", {5}))
    start_s = bench.clock.monotonic_s()

    await bench.run_for(4000)

    tried = [when - start_s for when, frame in bench.line.written if covers(wire, frame, 5)]
    assert sum(when > 60 for when in tried) <= 8 * 3  # three requests, one in the other, cover it
    pauses = [later - earlier for earlier, later in pairwise(when for when in tried if when > 60)]
    assert max(pauses[-6:]) > 4 * max(pauses[:6])
    assert len(bench.sets("one")) >= 3995


def covers(wire: str, frame: bytes, address: int) -> bool:
    request = slave.parse_rtu(frame) if wire == "rtu" else slave.parse_tcp(frame)
    return request.address <= address < request.address + request.count


async def test_a_device_that_takes_only_few_registers_at_once_is_read_whole() -> None:
    def narrow(request: slave.Request) -> Pieces:
        device.bad = set(range(100)) if request.count > 6 else set()
        return device.answer(request)

    device = Device("tcp", "exception 3", set())
    bench = Bench(config("tcp", MANY), narrow)

    await bench.run_for(10)

    assert len(bench.sets("one")[-2]) == 50


@pytest.mark.parametrize("how", ["exception 1", "exception 4", "silence", "close", "short"])
async def test_a_dead_device_costs_few_requests(how: str) -> None:
    """Whatever it does to everything it is asked: no request for each of its fifty points."""
    bench = bench_of(Device("tcp", how, set(range(100))), MANY, every="10 s")

    await bench.run_for(300)

    assert len(bench.asked) <= 8 * max(len(bench.sets("one")), bench.runs)


@pytest.mark.parametrize(
    ("wire", "how"), [("rtu", "exception 2"), ("tcp", "exception 4"), ("tcp", "silence"), ("tcp", "close")]
)
async def test_one_shot_reads_beside_the_polls_share_what_is_learned(wire: str, how: str) -> None:
    device = Device(wire, how, {2, 5, 7})
    replies: list[Request] = []

    def answer(request: slave.Request) -> Pieces:
        if len(replies) < 40 and all(earlier.reply.done() for earlier in replies):
            replies.append(Request("read", "one"))
            bench.recorder.requests.put(replies[-1])
        return device.answer(request)

    bench = Bench(config(wire), answer)
    await bench.run_for(30)

    done = [request.reply for request in replies if request.reply.done()]
    assert len(done) >= 30
    last = [reply.result() for reply in done if not reply.exception()][-1]
    assert {r.point: r.value for r in last.readings} == {name: 100 + at for name, at in ADDRESSES.items()}
    assert bench.sets("one")[-2] == {name: 100 + at for name, at in ADDRESSES.items()}


async def test_a_device_that_is_busy_for_one_poll_is_asked_no_more_for_it() -> None:
    device = Device("tcp", "exception 6", set(range(100)))
    device.during = lambda: bench.clock.monotonic_s() - start_s < 0.5
    bench = bench_of(device)
    start_s = bench.clock.monotonic_s()

    await bench.run_for(10)

    assert bench.reasons("one")[0] is Reason.BUSY
    assert bench.recorder.counts["split_blocks"] == 0
    assert len(bench.sets("one")[-2]) == len(ADDRESSES)


async def test_a_device_that_is_replaced_is_read_merged_at_once() -> None:
    device = Device("tcp", "exception 2", {2, 5, 7})
    silent = Device("tcp", "silence", set(range(100)))
    times: list[float] = []

    def answer(request: slave.Request) -> Pieces:
        times.append(bench.clock.monotonic_s() - start_s)
        if times[-1] < 5:
            return device.answer(request)
        if times[-1] < 40:
            return silent.answer(request)
        device.bad = set()
        return device.answer(request)

    bench = Bench(config("tcp"), answer)
    start_s = bench.clock.monotonic_s()
    await bench.run_for(120)

    late = [at for at in times if at > 100]
    assert len(late) <= 21
