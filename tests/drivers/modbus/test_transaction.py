"""One transaction after another on one line: what the last one left behind is neither lost nor taken for an answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from drivers.modbus.codec.frames import Framing, RtuFraming, TcpFraming, read_request, write_request
from drivers.modbus.diagnosis import Evidence
from drivers.modbus.transaction import (
    DEAD_REQUESTS,
    DEAD_S,
    GUESS_S,
    MAX_HANG_UPS,
    MAX_UNANSWERED,
    SO_FAR_S,
    Answered,
    Bus,
    Connection,
    Gateway,
    HungUp,
    Timing,
)
from gateway.sdk.errors import FrameError, NoAnswer, PortClosed
from gateway.sdk.streams import ByteStream
from gateway.sdk.testing import ManualClock, RecordingContext
from tests.support import modbus_slave as slave

Pieces = list[tuple[float, bytes]]
TCP = TcpFraming()
RTU = RtuFraming()


class Line(slave.MemoryLine):
    """A line on which others have their turn while somebody waits."""

    __slots__ = ()

    async def read_within(self, timeout_s: float) -> bytes:
        await asyncio.sleep(0)
        return await slave.MemoryLine.read_within(self, timeout_s)


class Scene:
    """A bus, over TCP unless it is on a line of its own; every request, and what is answered to it."""

    def __init__(self, framing: Framing = TCP, *, serial: bool = False, timing: Timing | None = None) -> None:
        self.clock = ManualClock()
        self.asked: list[slave.Request] = []
        self.answers: Callable[[slave.Request], Pieces] = self.good
        self.connected = 0
        self._parse = slave.parse_tcp if framing is TCP else slave.parse_rtu
        self._tcp = framing is TCP
        self.line = Line(self.clock, self._answer, lambda: PortClosed("the line is gone"))
        self.recorder = RecordingContext(self.line, self.clock)
        self.evidence = Evidence()
        context = self.recorder.context
        connection = None if serial else Connection(self._connect, 0.0, context)
        self.bus = Bus(
            self.line if serial else None, framing, timing or Timing(), context, self.evidence, connection=connection
        )

    def _answer(self, frame: bytes) -> Pieces:
        self.asked.append(self._parse(frame))
        return self.answers(self.asked[-1])

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[ByteStream]:
        self.connected += 1
        self.line.reopened()
        yield self.line

    def frame(self, request: slave.Request, pdu: bytes, *, number: int | None = None) -> bytes:
        if not self._tcp:
            return slave.rtu(request.unit, pdu)
        return slave.tcp(request.number if number is None else number, request.unit, pdu)

    def good(self, request: slave.Request) -> Pieces:
        """Register n holds 100 * unit + n, at once."""
        values = [100 * request.unit + request.address + n for n in range(request.count)]
        return [(0.01, self.frame(request, slave.words(request.function, values)))]

    async def ask(self, unit: int = 1, *, timeout_s: float = 1.0, expected: bool = False, address: int = 0) -> Answered:
        ask = read_request(unit, "holding", address, 2)
        return await self.bus.exchange(ask, timeout_s=timeout_s, expected=expected)

    async def is_right(self, unit: int = 1) -> None:
        """A request is answered with what that unit holds."""
        answered = await self.ask(unit)
        assert answered.data == (100 * unit).to_bytes(2, "big") + (100 * unit + 1).to_bytes(2, "big")

    async def silent(self, unit: int = 1, *, timeout_s: float = 1.0, expected: bool = False) -> float:
        """A request that gets no answer; how long it waited for one."""
        before_s = self.clock.monotonic_s()
        with pytest.raises(NoAnswer):
            await self.ask(unit, timeout_s=timeout_s, expected=expected)
        return self.clock.monotonic_s() - before_s


def nothing(_: slave.Request) -> Pieces:
    return []


# --- what waits for the lock -------------------------------------------------------------------------------------------


async def test_a_request_that_waited_for_the_line_leaves_a_unit_alone_that_failed_meanwhile() -> None:
    scene = Scene(RTU, serial=True, timing=Timing(quiet_s=3.0))
    scene.answers = lambda request: [] if len(scene.asked) == 1 else scene.good(request)

    failed, answered = await asyncio.gather(scene.ask(1), scene.ask(1), return_exceptions=True)

    assert isinstance(failed, NoAnswer)
    assert isinstance(answered, Answered)
    [first_s, second_s] = [when for when, _ in scene.line.written]
    assert second_s - first_s == pytest.approx(3.0)


async def test_a_request_to_another_unit_does_not_wait_for_the_one_that_failed() -> None:
    scene = Scene(RTU, serial=True, timing=Timing(quiet_s=3.0))
    scene.answers = lambda request: [] if request.unit == 1 else scene.good(request)

    await asyncio.gather(scene.ask(1), scene.ask(2), return_exceptions=True)

    [first_s, second_s] = [when for when, _ in scene.line.written]
    assert 1.0 <= second_s - first_s < 1.1


# --- what is left over of a frame --------------------------------------------------------------------------------------


async def test_the_beginning_of_a_frame_behind_an_answer_goes_on_in_the_next() -> None:
    scene = Scene()
    late = slave.tcp(999, 1, slave.words(3, [7, 7]))
    scene.answers = lambda request: [(0.01, scene.good(request)[0][1] + late[:9])]
    await scene.is_right()
    scene.answers = lambda request: [(0.01, late[9:] + scene.good(request)[0][1])]
    await scene.is_right()


async def test_what_was_left_over_is_looked_at_once() -> None:
    scene = Scene()
    late = slave.tcp(999, 1, slave.words(3, [7, 7]))
    scene.answers = lambda request: [(0.01, scene.good(request)[0][1] + late[:9])]
    await scene.is_right()
    scene.answers = lambda request: [(0.01, late[9:])]
    await scene.silent()
    scene.answers = scene.good
    await scene.is_right()


async def test_the_beginning_of_a_frame_ends_with_its_connection() -> None:
    scene = Scene()
    late = slave.tcp(999, 1, slave.words(3, [7, 7, 7, 7]))
    scene.answers = lambda request: [(0.01, scene.good(request)[0][1] + late[:9])]
    await scene.is_right()
    await scene.bus.hang_up()
    scene.answers = scene.good
    await scene.is_right()
    assert scene.connected == 2


async def test_a_frame_that_began_before_a_write_is_no_answer_to_it() -> None:
    scene = Scene()
    late = slave.tcp(999, 1, slave.words(3, [7, 7]))
    await scene.is_right()
    scene.line.send(0.0, late[:9])

    def written(request: slave.Request) -> Pieces:
        return [(0.01, late[9:] + slave.tcp(request.number, 1, request.pdu))]

    scene.answers = written
    ask = write_request(1, "holding", 0, b"\0\7")
    assert (await scene.bus.exchange(ask, timeout_s=1.0)).received == late + slave.tcp(
        scene.asked[-1].number, 1, ask.pdu
    )


async def test_an_answer_that_came_while_we_were_late_is_taken_whole_however_it_is_handed_over() -> None:
    scene = Scene()

    def lags(request: slave.Request) -> Pieces:
        pieces = [(-5.0 + after_s, data) for after_s, data in scene.good(request)]
        scene.clock.advance(5.0)
        return pieces

    scene.answers, scene.line.most = lags, lambda: 3
    await scene.is_right()


async def test_transaction_numbers_begin_anew_after_the_last() -> None:
    scene = Scene()
    scene.bus._number = 0xFFFE  # sixty-five thousand requests later
    for _ in range(3):
        await scene.is_right()
    assert [request.number for request in scene.asked] == [0xFFFF, 1, 2]


# --- connections -------------------------------------------------------------------------------------------------------


async def test_a_connection_that_is_opened_anew_gets_as_many_requests_and_as_long_as_the_first() -> None:
    scene = Scene()
    scene.answers = nothing
    for _ in range(DEAD_REQUESTS):
        await scene.silent(timeout_s=4.0)
    assert scene.connected == 1
    await scene.silent(timeout_s=1.0)
    assert scene.connected == 2, "cut without our hearing of it"

    scene.clock.advance(2 * DEAD_S)
    await scene.silent(timeout_s=1.0)
    assert scene.connected == 2, "too few requests"


async def test_requests_in_quick_succession_do_not_make_a_young_connection_a_dead_one() -> None:
    scene = Scene()
    scene.answers = nothing
    for _ in range(DEAD_REQUESTS):
        await scene.silent(timeout_s=4.0)
    for _ in range(DEAD_REQUESTS + 2):
        await scene.silent(timeout_s=1.0)
    assert scene.connected == 2


async def test_noise_instead_of_answers_makes_a_connection_a_dead_one_too() -> None:
    scene = Scene(RTU, timing=Timing(quiet_s=0.0))
    scene.answers = lambda request: [(0.01, b"\xff" * 7)]
    for _ in range(DEAD_REQUESTS):
        with pytest.raises(FrameError):
            await scene.ask(timeout_s=4.0)
    scene.answers = scene.good
    scene.clock.advance(DEAD_S)
    await scene.is_right()
    assert scene.connected == 2


async def test_only_a_connection_after_the_first_is_a_reconnect() -> None:
    scene = Scene()
    await scene.is_right()
    assert scene.recorder.counts["reconnects"] == 0
    await scene.bus.hang_up()
    await scene.is_right()
    assert scene.recorder.counts["reconnects"] == 1


async def test_connections_that_are_closed_are_an_outage_only_when_nobody_has_answered_in_between() -> None:
    scene = Scene()

    def closes(_: slave.Request) -> Pieces:
        scene.line.hang_up(0.5)
        return []

    for _ in range(3 * MAX_HANG_UPS):
        scene.answers = closes
        with pytest.raises(HungUp):
            await scene.ask()
        scene.answers = scene.good
        await scene.is_right()

    scene.clock.advance(2 * SO_FAR_S)
    scene.answers = closes
    for _ in range(MAX_HANG_UPS - 1):
        with pytest.raises(HungUp):
            await scene.ask()
    with pytest.raises(PortClosed, match="before anybody has answered"):
        await scene.ask()


async def test_a_unit_that_is_known_to_live_is_asked_once_more_when_its_connection_is_closed_late() -> None:
    scene = Scene()
    await scene.is_right()

    def closes_once(request: slave.Request) -> Pieces:
        if len(scene.asked) == 2:
            scene.line.hang_up(0.5)
            return []
        return scene.good(request)

    scene.answers = closes_once
    answered = await scene.ask(expected=True)
    assert len(answered.data) == 4
    assert len(scene.asked) == 3


async def test_a_unit_that_has_not_answered_before_is_not_asked_twice_when_that_closes_the_connection() -> None:
    scene = Scene()
    await scene.is_right()

    def closes(_: slave.Request) -> Pieces:
        scene.line.hang_up(0.5)
        return []

    scene.answers = closes
    with pytest.raises(HungUp):
        await scene.ask(2)
    assert len(scene.asked) == 2


# --- late answers and busy gateways ------------------------------------------------------------------------------------


async def test_a_gateway_that_says_late_that_it_gave_a_unit_up_has_turned_to_the_next_one_only_then() -> None:
    scene = Scene()

    def gateway(request: slave.Request) -> Pieces:
        if request.unit == 2:
            return [(1.5, slave.tcp(request.number, 2, b"\x83\x0b"))]
        return [(1.3, data) for _, data in scene.good(request)]

    scene.answers = gateway
    await scene.silent(2)
    await scene.is_right(1)  # asked at 1.0 s, turned to at 1.5 s, answered at 2.3 s
    assert scene.recorder.counts["late_answers"] == 1
    assert scene.bus.absent == {2}
    assert scene.bus.gateway.busy_s == pytest.approx(1.5)


async def test_who_is_asked_again_and_stays_silent_was_not_said_to_be_absent() -> None:
    scene = Scene()
    scene.answers = lambda request: (
        [(1.5, slave.tcp(request.number, 2, b"\x83\x0b"))] if request.unit == 2 else [(0.9, scene.good(request)[0][1])]
    )
    await scene.silent(2)
    await scene.is_right(1)
    assert scene.bus.absent == {2}
    scene.answers = nothing
    await scene.silent(2)
    assert scene.bus.absent == set()


async def test_late_answers_of_many_units_are_known_by_their_numbers_and_counted_once() -> None:
    scene = Scene()
    scene.answers = nothing
    for unit in range(1, MAX_UNANSWERED + 3):
        await scene.silent(unit, timeout_s=0.1)
    first, second, last = scene.asked[0], scene.asked[2], scene.asked[-1]
    late = b"".join(slave.tcp(its.number, its.unit, slave.words(3, [1, 2])) for its in (first, second, last))
    scene.line.send(0.0, late)
    scene.line.send(0.01, late)
    await scene.silent(100, timeout_s=0.1)
    assert scene.recorder.counts["late_answers"] == 2, "of the oldest it is not known any more"
    assert scene.evidence.late == {second.unit, last.unit}


async def test_an_answer_in_time_takes_back_that_a_unit_answers_late() -> None:
    scene = Scene()
    scene.answers = nothing
    await scene.silent(2)
    scene.line.send(0.1, slave.tcp(scene.asked[0].number, 2, slave.words(3, [1, 2])))
    await scene.silent(1)
    assert scene.evidence.late == {2}
    scene.answers = scene.good
    await scene.is_right(2)
    assert scene.evidence.late == set()


async def test_a_silent_unit_costs_the_one_behind_it_more_time_twice_and_then_no_more() -> None:
    scene = Scene()
    scene.answers = nothing
    waits_s = []
    for _ in range(3):
        await scene.silent(2)
        waits_s.append(await scene.silent(1, expected=True))
    assert waits_s[0] == pytest.approx(GUESS_S - 1.0 + 1.0, abs=0.1), "until it has surely turned to it, and its time"
    assert waits_s[1] > 2.0
    assert waits_s[2] == pytest.approx(1.0, abs=0.1)


async def test_who_was_silent_on_the_connection_before_is_waited_for_by_nobody() -> None:
    scene = Scene()
    scene.answers = nothing
    await scene.silent(2)
    await scene.bus.hang_up()
    assert await scene.silent(1, expected=True) == pytest.approx(1.0, abs=0.1)


async def test_an_answer_shows_that_all_before_it_are_done_with() -> None:
    scene = Scene()
    scene.answers = nothing
    await scene.silent(2)
    scene.answers = scene.good
    await scene.is_right(1)
    scene.answers = nothing
    assert await scene.silent(1, expected=True) == pytest.approx(1.0, abs=0.1)


def test_what_is_known_of_a_gateways_patience_is_not_unlearned_by_who_waits_shorter() -> None:
    gateway = Gateway()
    gateway.was_busy(5.0)
    gateway.said_nothing(1.0)
    assert gateway.busy_s == 5.0
    gateway.said_nothing(5.0)
    assert gateway.busy_s == pytest.approx(4.5)
    gateway.was_busy(100.0)
    assert gateway.busy_s == 10.0


def test_a_gateway_of_which_nothing_is_known_is_given_time_until_that_was_in_vain_twice() -> None:
    gateway = Gateway()
    allowed_s = []
    for _ in range(3):
        allowed_s.append(gateway.free_after_s)
        gateway.waited_in_vain()
    assert allowed_s == [GUESS_S, GUESS_S, 0.0]


async def test_a_second_answer_of_a_unit_that_was_silent_once_is_late_and_of_one_that_answered_is_a_second_unit() -> (
    None
):
    scene = Scene(RTU, serial=True, timing=Timing(quiet_s=0.5))
    scene.answers = nothing
    await scene.silent(2, timeout_s=0.3)
    scene.answers = scene.good
    await scene.is_right(1)
    scene.clock.advance(10)
    scene.line.send(0.0, slave.rtu(2, slave.words(3, [1, 2])))
    await scene.bus.look()
    assert (scene.recorder.counts["late_answers"], scene.recorder.counts["second_answers"]) == (1, 0)
    scene.line.send(0.0, slave.rtu(1, slave.words(3, [1, 2])))
    await scene.bus.look()
    assert (scene.recorder.counts["late_answers"], scene.recorder.counts["second_answers"]) == (1, 1)
    scene.line.send(0.0, slave.rtu(9, slave.words(3, [1, 2])))
    await scene.bus.look()
    assert scene.recorder.counts["second_answers"] == 1, "of a unit that nobody asked"
