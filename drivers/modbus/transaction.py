"""One line, one request at a time: gap, echo, late replies. A transaction is never cut short.

On a serial line nothing in a reply says which request it answers. So a unit that did not answer, or whose answer was
damaged, is asked nothing until `quiet` has passed since that request: a reply that comes later than its timeout finds
nobody waiting for that unit, and other units' requests go on meanwhile, since a reply does name its unit. In TCP the
transaction id tells replies apart and nobody has to wait; but a gateway may still be busy with a unit that is not there
when the next one is asked, so how long it is busy then is learned, and not held against the next.

A TCP connection is opened when it is needed. One that the other end has closed is no outage: the read is made once more
on a new one, at once. Connections that are closed again and again before anybody has answered are.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

from drivers.modbus.codec.frames import (
    ABSENT_EXCEPTIONS,
    GAVE_UP,
    TABLES,
    Ask,
    DeviceException,
    Framing,
    reply_data,
    rtu_sound,
)
from drivers.modbus.diagnosis import Evidence
from gateway.sdk.driver import Context
from gateway.sdk.errors import FrameError, NoAnswer, PortClosed
from gateway.sdk.streams import ByteStream

MIN_GAP_S = 0.00175  # above 19200 baud the specification fixes 1.75 ms (serial line 2.5.1.1)
CLOCK_STEP_S = 1e-6  # what is nearer than this is now
MAX_REPLY_BYTES = 1024  # more than this for one request is noise
MAX_NOISE_S = 0.5  # a line that is never quiet is spoken to all the same
DRAIN_S = 0.001  # after a timeout: what had come while our own loop was late is taken all the same
DEAD_REQUESTS, DEAD_S = 3, 10.0  # a TCP connection on which nobody answers for so long is opened anew
MAX_HANG_UPS = 3  # connections closed in a row without any answer: an outage
MAX_HANG_UPS_SO_FAR, SO_FAR_S = 10, 30.0  # where somebody answered not long ago, it may be what is asked for
GUESS_S, MAX_BUSY_S = 5.0, 10.0  # how long a gateway may be busy with a unit that is not there, before and when known
CLOSED_BEFORE_S = 0.05  # a connection that is found closed sooner had been closed before the request
MAX_UNANSWERED = 16  # requests whose late answers are looked for


class HungUp(NoAnswer):
    """The other end closed the connection instead of answering, twice."""


class Connection:
    """The TCP connection of one link: opened when it is needed.

    Args:
        open_stream: opens one.
        pause_s: rest after each connect, before the first request.
    """

    def __init__(
        self, open_stream: Callable[[], AbstractAsyncContextManager[ByteStream]], pause_s: float, context: Context
    ) -> None:
        self._open, self._pause_s, self._context = open_stream, pause_s, context
        self._stack = AsyncExitStack()
        self._opened = 0

    async def open(self) -> ByteStream:
        """A new connection; the one before is closed. Raises LinkError."""
        await self.close()
        stream = await self._stack.enter_async_context(self._open())
        self._opened += 1
        if self._opened > 1:
            self._context.count("reconnects")
        if self._pause_s:
            await self._context.sleep(self._pause_s)
        return stream

    async def close(self) -> None:
        """Close what is open; opening goes on being possible."""
        await self._stack.aclose()


class Gateway:
    """What is learned of the gateway behind a TCP connection, or of the device itself.

    Attributes:
        busy_s: how long it is busy with a unit that does not answer; 0 while nothing of the kind was seen.
    """

    def __init__(self) -> None:
        self.busy_s = 0.0
        self._in_vain = 0

    def was_busy(self, seconds: float) -> None:
        """It gave a unit up, or turned to the next one, after so long."""
        self.busy_s = min(MAX_BUSY_S, seconds)
        self._in_vain = 0

    def said_nothing(self, waited_s: float) -> None:
        """A unit was silent for `waited_s` and the gateway said nothing about it: perhaps its patience is shorter now."""
        if waited_s >= self.busy_s:
            self.busy_s *= 0.9

    def waited_in_vain(self) -> None:
        """The next unit got more time, and was silent all the same: this is no gateway that is busy."""
        self._in_vain += 1

    @property
    def free_after_s(self) -> float:
        """When it has surely turned to the next request, in seconds after one that stayed unanswered."""
        if self.busy_s:
            return 1.1 * self.busy_s + 0.1
        return GUESS_S if self._in_vain < 2 else 0.0


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast the line is and how much rest it needs.

    Attributes:
        character_s: time of one character; 0 on TCP.
        rest_s: after each answer, beyond the 3.5 characters.
        quiet_s: how long a unit that failed is asked nothing.
        echo: what we send comes back.
    """

    character_s: float = 0.0
    rest_s: float = 0.0
    quiet_s: float = 3.0
    echo: bool = False

    @property
    def gap_s(self) -> float:
        """Silence between two frames: 3.5 characters, and the rest."""
        if not self.character_s:
            return self.rest_s
        return max(3.5 * self.character_s, MIN_GAP_S) + self.rest_s


@dataclass(frozen=True, slots=True)
class Answered:
    """A good reply.

    Attributes:
        data: payload of the reply.
        sent, received: bytes on the wire.
        latency_s: what the device took to answer, time on the wire not counted.
    """

    data: bytes
    sent: bytes
    received: bytes
    latency_s: float


class Bus:
    """Owns the stream of one link while it is open.

    Args:
        stream: an open one; None when `connection` is to open it.
        connection: opens the stream anew when the other end has closed it; None: that is an outage (a serial line).
    """

    def __init__(
        self,
        stream: ByteStream | None,
        framing: Framing,
        timing: Timing,
        context: Context,
        evidence: Evidence,
        *,
        connection: Connection | None = None,
    ) -> None:
        self._framing, self._timing, self._context = framing, timing, context
        self._stream, self._connection = stream, connection
        self._lock = asyncio.Lock()  # fair: a one-shot request waits for one transaction at most
        self._number = 0
        self._free_at_s = self._sent_at_s = 0.0
        self._barred_until_s: dict[int, float] = {}
        self._begun = b""
        self._asked: set[int] = set()
        self._unanswered: dict[int, tuple[int, float]] = {}  # number -> unit, when it was asked
        self._cleared_at_s = 0.0  # when the gateway was last seen to be done with an unanswered request
        self._hang_ups, self._heard_at_s = 0, float("-inf")
        self.evidence = evidence
        self.gateway = Gateway()
        self.absent: set[int] = set()  # units of which the gateway has said, late, that they do not answer
        self.silent = 0  # requests in a row without any answer from anybody
        self._answered_at_s = context.monotonic_s()

    @property
    def hung_up(self) -> bool:
        """Connections were opened and closed again before anybody had answered."""
        so_far = self._context.monotonic_s() - self._heard_at_s <= SO_FAR_S
        return self._hang_ups >= (MAX_HANG_UPS_SO_FAR if so_far else MAX_HANG_UPS)

    def free_at_s(self, unit: int) -> float:
        """When this unit may be asked again (monotonic)."""
        return self._barred_until_s.get(unit, 0.0)

    async def look(self) -> None:
        """Take what came on a line while nobody was asked. Raises PortClosed when the port is gone."""
        if self._connection is not None:
            return  # one that is closed is opened again when it is needed
        async with self._lock:
            assert self._stream is not None
            if stray := await self._stream.read_within(0):
                self._stray(stray)

    async def hang_up(self) -> None:
        """Give the connection back; the next request opens another one."""
        if self._connection is None or self._stream is None:
            return
        async with self._lock:
            await self._disconnect()

    async def exchange(self, ask: Ask, *, timeout_s: float, rest_s: float = 0.0, expected: bool = False) -> Answered:
        """Send one request and wait for its reply, however long the line is busy with others before.

        Args:
            timeout_s: for the answer to come; time on the wire is added.
            rest_s: silence this device needs after its answer.
            expected: this unit is thought to be alive: while a gateway may be busy with another one, it gets more time.

        Raises:
            NoAnswer: nothing came, or the connection was closed instead (`HungUp`).
            DeviceException: the device answered with an exception.
            FrameError: what came was no sound reply to this request.
            LinkError: the link is gone, or cannot be opened.
        """
        while True:
            if self._barred_until_s:
                await self._until(self.free_at_s(ask.unit))
            async with self._lock:
                if self._barred_until_s and self.free_at_s(ask.unit) - self._context.monotonic_s() > CLOCK_STEP_S:
                    continue  # another request to the unit failed while this one waited
                if self._connection is not None and (self._stream is None or self.silent or ask.function not in TABLES):
                    return await self._connected(ask, timeout_s, rest_s, expected, tries=2)
                try:
                    if self._timing.gap_s or not self._framing.tells_requests_apart:
                        await self._rest()
                    return await self._transact(ask, timeout_s, rest_s, expected)
                except PortClosed as closed:
                    if self._connection is None:
                        raise
                    await self._closed(closed)
                    if self._gave_up(expected):
                        raise self._hung_up_on(ask) from closed
                return await self._connected(ask, timeout_s, rest_s, expected, tries=1)

    async def _connected(self, ask: Ask, timeout_s: float, rest_s: float, expected: bool, *, tries: int) -> Answered:
        """One transaction, over a new connection when the other end has closed this one."""
        assert self._connection is not None
        if self._is_dead():
            await self._disconnect()
        for _ in range(tries):
            if self._stream is None:
                self._stream = await self._connection.open()
                self.silent, self._answered_at_s = 0, self._context.monotonic_s()
            sent = False
            try:
                if ask.function not in TABLES:
                    self._begun += await self._stream.read_within(0)  # a closed one shows before anything is sent
                if self._timing.gap_s or not self._framing.tells_requests_apart:
                    await self._rest()
                sent = True
                return await self._transact(ask, timeout_s, rest_s, expected)
            except PortClosed as closed:
                await self._closed(closed)
                if sent and ask.function not in TABLES:
                    raise HungUp(f"{closed} after {ask.what} was sent; whether it was made is not known") from closed
                if sent and self._gave_up(expected):
                    break
        raise self._hung_up_on(ask)

    def _hung_up_on(self, ask: Ask) -> HungUp:
        self.evidence.note(ask.unit, "silent")
        return HungUp(f"the connection is closed instead of an answer of unit {ask.unit} to {ask.what}")

    def _gave_up(self, expected: bool) -> bool:
        """The other end waited for a unit that has not answered before either, and then closed: asked once more, it
        would only do that again, and keep the neighbours waiting."""
        return not expected and self._context.monotonic_s() - self._sent_at_s > CLOSED_BEFORE_S

    async def _closed(self, closed: PortClosed) -> None:
        """The other end has closed the connection. Raises PortClosed when it does nothing else."""
        await self._disconnect()
        self._hang_ups += 1
        if self.hung_up:
            raise PortClosed(f"{closed}: connections are closed before anybody has answered") from closed

    async def _disconnect(self) -> None:
        assert self._connection is not None
        self._stream, self._begun = None, b""
        self._unanswered.clear()
        await self._connection.close()

    def _is_dead(self) -> bool:
        """A connection on which nobody has answered for long: cut without our hearing of it."""
        return self.silent >= DEAD_REQUESTS and self._context.monotonic_s() - self._answered_at_s > DEAD_S

    async def _until(self, at_s: float) -> None:
        while (left_s := at_s - self._context.monotonic_s()) > CLOCK_STEP_S:
            await self._context.sleep(left_s)

    async def _rest(self) -> None:
        """Wait until the line has been silent for the gap."""
        assert self._stream is not None
        give_up_s = self._context.monotonic_s() + MAX_NOISE_S + self._timing.gap_s
        await self._until(self._free_at_s)
        while (stray := self._stream.discard()) and self._context.monotonic_s() < give_up_s:
            self._stray(stray)
            await self._until(self._context.monotonic_s() + self._timing.gap_s)

    async def _transact(self, ask: Ask, timeout_s: float, rest_s: float, expected: bool) -> Answered:
        assert self._stream is not None
        self._number = self._number % 0xFFFF + 1
        frame = self._framing.frame(ask, self._number)
        self._sent_at_s = sent_at_s = self._context.monotonic_s()
        self._asked.add(ask.unit)
        self._context.count("requests")
        how = "answered"
        try:
            await self._stream.write(frame)
            return await self._reply(self._stream, ask, frame, sent_at_s, timeout_s, expected)
        except (NoAnswer, FrameError) as error:
            how = "silent" if isinstance(error, NoAnswer) else "damaged"
            if isinstance(error, FrameError) and self._connection is not None:
                self.evidence.other_framing += self._framing.is_other(ask, frame, error.frame)
            if not self._framing.tells_requests_apart:
                self._barred_until_s[ask.unit] = sent_at_s + self._wire_s(ask) + self._timing.quiet_s
            elif how == "silent":
                self._stays_unanswered(ask.unit, sent_at_s)
            raise
        except PortClosed:
            how = ""
            self._gives_up_by_closing(ask.unit, expected)
            raise
        finally:
            now_s = self._context.monotonic_s()
            self._free_at_s = now_s + self._timing.gap_s + rest_s
            if how:
                self.evidence.note(ask.unit, how)
            self._context.count("busy_ms", round((now_s - sent_at_s) * 1000))

    def _wire_s(self, ask: Ask) -> float:
        if not self._timing.character_s:
            return 0.0
        sizes = self._framing.wire_bytes(len(ask.pdu)) * (2 if self._timing.echo else 1)
        return (sizes + self._framing.wire_bytes(ask.reply_size)) * self._timing.character_s

    async def _reply(
        self, stream: ByteStream, ask: Ask, frame: bytes, sent_at_s: float, timeout_s: float, expected: bool
    ) -> Answered:
        begun = received = self._begun
        self._begun = b""
        skip = 0
        # a gateway that is busy with a unit turns to the next one, or says that it gave up, in the end
        wait_s = max(timeout_s, self.gateway.free_after_s if self.gateway.busy_s else 0.0)
        deadline_s = sent_at_s + self._wire_s(ask) + wait_s
        since_s = sent_at_s  # when the other end turned to this request
        late_s = 0.0  # how long the deadline was put off
        last = False
        while not last:
            left_s = deadline_s - self._context.monotonic_s()
            last = left_s <= 0 or len(received) >= MAX_REPLY_BYTES
            # our own lag is not the device's silence: what has come by now is an answer in time
            chunk = await stream.read_within(DRAIN_S if last else left_s)
            received += chunk
            last = (last and not chunk) or len(received) >= MAX_REPLY_BYTES
            if not skip and self._is_echo(ask, frame, received):
                skip = len(frame)
            if self._unanswered and self._is_told_late(received):
                since_s = self._context.monotonic_s()
                deadline_s = max(deadline_s, since_s + timeout_s)
            if last and not late_s and expected and (late_s := self._busy_for_s(ask.unit)):
                deadline_s, last = self._context.monotonic_s() + late_s + timeout_s, False
            if last and received == begun:
                break
            found = self._framing.find(ask, self._number, received[skip:], last=last)
            if found is not None:
                pdu, end = found
                if self._framing.tells_requests_apart:
                    self._begun = received[skip + end :]  # the beginning of a frame to be stepped over, or surplus
                elif before := received[skip : skip + end - self._framing.wire_bytes(len(pdu))]:
                    self._heard(before, ask.unit)
                if self._unanswered:
                    since_s = self._turned_to(since_s, sent_at_s, timeout_s)
                return self._answered(ask, frame, received[skip:], pdu, since_s)
        if late_s:
            self.gateway.waited_in_vain()
        raise self._failure(ask, received[max(skip, len(begun)) :], wait_s)

    def _stays_unanswered(self, unit: int, sent_at_s: float) -> None:
        """A request over TCP got no answer in time; one may come, or the gateway's word that there will be none."""
        if len(self._unanswered) >= MAX_UNANSWERED:
            del self._unanswered[next(iter(self._unanswered))]
        self._unanswered[self._number] = (unit, sent_at_s)
        self.absent.discard(unit)
        self.gateway.said_nothing(self._context.monotonic_s() - sent_at_s)

    def _gives_up_by_closing(self, unit: int, expected: bool) -> None:
        """The connection was closed. While a request was under way, it may be the gateway's way to give a unit up:
        learn how long it took."""
        now_s = self._context.monotonic_s()
        if now_s - self._sent_at_s < CLOSED_BEFORE_S:
            return
        asked_s = [at_s for other, at_s in self._unanswered.values() if other != unit]
        if asked_s:
            self.gateway.was_busy(now_s - max(*asked_s, self._cleared_at_s))
        elif not expected:
            self.gateway.was_busy(now_s - self._sent_at_s)

    def _busy_for_s(self, unit: int) -> float:
        """How much longer the other end may be busy with other units that did not answer."""
        asked_s = [at_s for other, at_s in self._unanswered.values() if other != unit]
        free_after_s = self.gateway.free_after_s
        if not asked_s or not free_after_s:
            return 0.0
        return max(0.0, max(asked_s) + min(free_after_s, MAX_BUSY_S) - self._context.monotonic_s())

    def _is_told_late(self, received: bytes) -> bool:
        """Whether an earlier request has been answered now; learns how long it took."""
        told = False
        for number, pdu in self._framing.replies(received):
            if number not in self._unanswered:
                continue
            unit, asked_s = self._unanswered.pop(number)
            now_s = self._context.monotonic_s()
            if len(pdu) == 2 and pdu[0] & 0x80 and pdu[1] in ABSENT_EXCEPTIONS:
                self.absent.add(unit)
                self.gateway.was_busy(now_s - max(asked_s, self._cleared_at_s))
            else:
                self.evidence.late.add(unit)
            self._context.count("late_answers")
            self._cleared_at_s = now_s
            told = True
        return told

    def _turned_to(self, since_s: float, sent_at_s: float, timeout_s: float) -> float:
        """An answer shows that the other end is done with what came before; since when it can have been. An answer that
        came too late for its own request shows how long that took."""
        now_s = self._context.monotonic_s()
        asked_s = max(at_s for _, at_s in self._unanswered.values())
        self._unanswered.clear()
        if since_s == sent_at_s and now_s - sent_at_s > timeout_s:
            self.gateway.was_busy(now_s - max(asked_s, self._cleared_at_s))
            since_s = now_s
        self._cleared_at_s = now_s
        return since_s

    def _is_echo(self, ask: Ask, frame: bytes, received: bytes) -> bool:
        """Our own request came back. No reply to a read looks like its request, but for one of 24 coils (see README):
        that one is refused rather than guessed at. The reply to a write may be the request itself."""
        if self._framing.tells_requests_apart or not received.startswith(frame):
            return False
        if not self._timing.echo and ask.function not in TABLES:
            return False
        self._context.count("echoes")
        self.evidence.echoes += 1
        return True

    def _answered(self, ask: Ask, frame: bytes, received: bytes, pdu: bytes, since_s: float) -> Answered:
        self.silent = self._hang_ups = 0
        self._answered_at_s = self._heard_at_s = self._context.monotonic_s()
        latency_s = max(0.0, self._answered_at_s - since_s - self._wire_s(ask))
        try:
            data = reply_data(ask, pdu)
        except DeviceException as refusal:  # an exception is an answer too
            if refusal.code == GAVE_UP and self._connection is not None:
                self.gateway.was_busy(latency_s)
            raise
        return Answered(data, frame, received, latency_s)

    def _failure(self, ask: Ask, received: bytes, timeout_s: float) -> NoAnswer | FrameError:
        self.silent += 1
        if not received or self._framing.tells_requests_apart:  # late answers to other requests are none to this one
            self._context.count("timeouts")
            return NoAnswer(f"unit {ask.unit} did not answer {ask.what} within {timeout_s:g} s")
        if self._framing.looks_cut(received):
            self._context.count("crc_errors")
            self._heard(received, ask.unit)
            return FrameError(f"no sound answer of unit {ask.unit} to {ask.what}", frame=received)
        self._context.count("foreign_frames")
        self._heard(received, ask.unit)
        return FrameError(f"a frame that does not answer {ask.what} of unit {ask.unit}", frame=received)

    def _stray(self, data: bytes) -> None:
        """Bytes that came while nobody was asked."""
        self._context.count("stray_bytes", len(data))
        self._heard(data, 0)

    def _heard(self, data: bytes, asked: int) -> None:
        """Evidence in bytes that answered nothing: a late reply, a second one, or noise."""
        if not rtu_sound(data):
            self.evidence.junk_bytes += len(data)
            return
        unit = data[0]
        if unit == asked or unit not in self._asked:
            return
        if unit in self._barred_until_s:
            self.evidence.late.add(unit)
            self._context.count("late_answers")
        else:
            self.evidence.twice[unit] += 1
            self._context.count("second_answers")
