"""Dead, slow and noisy units on a line that others share, with time on the wire played byte for byte."""

import pytest

from drivers.modbus.config import ModbusConfig
from drivers.modbus.driver import DRIVER
from gateway.sdk.errors import LinkError, PortClosed
from gateway.sdk.testing import ManualClock, RecordingContext
from tests.support import modbus_slave as slave
from tests.support.modbus_config import link, template

TEN_FLOATS = template(**{f"p{n}": {"address": 2 * n, "type": "float32", "table": "input"} for n in range(10)})
CHARACTER_S = 10 / 9600  # 8N1
TURNAROUND_S = 0.01


def units(count: int, every: str, **its: object) -> ModbusConfig:
    devices = {f"u{n}": {"template": TEN_FLOATS, "unit_id": n, "every": every} for n in range(1, count + 1)}
    return link(devices, **its)


class Line:
    """A driver on a line with some units silent."""

    def __init__(self, config: ModbusConfig, silent: set[int]) -> None:
        self.config, self.silent = config, silent
        self.clock = ManualClock()
        self.line = slave.MemoryLine(self.clock, self._answer, lambda: PortClosed("end of the test"))
        self.recorder = RecordingContext(self.line, self.clock)
        self._tcp = config.wire == "tcp"
        self.free_at_s = 0.0

    def _answer(self, frame: bytes) -> list[tuple[float, bytes]]:
        request = slave.parse_tcp(frame) if self._tcp else slave.parse_rtu(frame)
        if request.unit in self.silent:
            return []
        pdu = slave.words(request.function, [0x4366, 0x8000] * (request.count // 2))
        if self._tcp:
            return [(0.004, slave.tcp(request.number, request.unit, pdu))]
        reply = slave.rtu(request.unit, pdu)
        return [((len(frame) + len(reply)) * CHARACTER_S + TURNAROUND_S, reply)]

    async def run_for(self, seconds: float) -> None:
        self.line.closed_at_s = self.clock.monotonic_s() + seconds
        with pytest.raises(LinkError):
            await DRIVER.run(self.config, self.recorder.context)

    def share_of_polls(self, unit: int, since_s: float, seconds: float) -> float:
        """Good polls of one unit in the last `seconds`, by how many there should be."""
        start = self.clock.now().timestamp() - seconds
        good = [
            s for s in self.recorder.sets
            if s.device == f"u{unit}" and s.values() and s.readings[0].observed_at.timestamp() >= start
        ]  # fmt: skip
        return len(good) * self.config.devices[f"u{unit}"].every_s / seconds


async def test_ten_units_at_9600_baud_with_three_silent_keep_their_rate() -> None:
    bus = Line(units(10, "1 s", baud_rate=9600), silent={3, 6, 9})

    await bus.run_for(660)

    shares = {unit: bus.share_of_polls(unit, 60, 600) for unit in range(1, 11) if unit not in bus.silent}
    assert min(shares.values()) >= 0.98, shares


async def test_fifty_units_behind_one_gateway_with_one_silent_keep_their_rate() -> None:
    bus = Line(units(50, "1 s", host="192.0.2.1"), silent={17})

    await bus.run_for(360)

    shares = {unit: bus.share_of_polls(unit, 60, 300) for unit in range(1, 51) if unit != 17}
    assert min(shares.values()) >= 0.98, shares


@pytest.mark.parametrize("place", [{}, {"host": "192.0.2.1"}], ids=["line", "tcp"])
async def test_a_unit_that_returns_is_back_within_a_probe_period(place: dict[str, object]) -> None:
    bus = Line(units(4, "1 s", **place), silent={2})
    back_at_s = bus.clock.monotonic_s() + 400

    class Returning(set[int]):
        def __contains__(self, unit: object) -> bool:
            return unit == 2 and bus.clock.monotonic_s() < back_at_s

    bus.silent = Returning()
    await bus.run_for(462)

    assert any(s.device == "u2" and s.values() for s in bus.recorder.sets)


async def test_no_request_leaves_before_the_line_was_silent_for_three_and_a_half_characters() -> None:
    bus = Line(units(5, "100 ms", baud_rate=9600), silent={3})
    ends_s: list[float] = []
    answer = bus.line.answer

    def noting(frame: bytes) -> list[tuple[float, bytes]]:
        pieces = answer(frame)
        ends_s.append(bus.clock.monotonic_s() + max((after_s for after_s, _ in pieces), default=0.0))
        return pieces

    bus.line.answer = noting
    await bus.run_for(20)

    starts_s = [when for when, _ in bus.line.written]
    assert len(starts_s) > 100
    assert min(b - a for a, b in zip(ends_s, starts_s[1:], strict=False)) >= 3.5 * CHARACTER_S - 1e-6


async def test_an_overloaded_line_serves_all_units_alike_and_counts_what_it_missed() -> None:
    bus = Line(units(20, "200 ms", baud_rate=9600), silent=set())

    await bus.run_for(60)

    polls = [sum(s.device == f"u{n}" and bool(s.values()) for s in bus.recorder.sets) for n in range(1, 21)]
    assert max(polls) - min(polls) <= 2
    missed = [bus.recorder.device_counts[f"u{n}"]["missed_polls"] for n in range(1, 21)]
    assert all(poll + miss == pytest.approx(300, abs=8) for poll, miss in zip(polls, missed, strict=True))


async def test_a_unit_that_answers_quickly_costs_little_when_it_dies() -> None:
    bus = Line(units(2, "1 s", timeout="5 s"), silent=set())
    dies_at_s = bus.clock.monotonic_s() + 100

    class Dying(set[int]):
        def __contains__(self, unit: object) -> bool:
            return unit == 2 and bus.clock.monotonic_s() > dies_at_s

    bus.silent = Dying()
    await bus.run_for(400)

    assert bus.share_of_polls(1, 0, 280) > 0.95
