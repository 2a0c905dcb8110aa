"""One line, one request at a time: gap, echo, late replies. A transaction is never cut short.

On a serial line nothing in a reply says which request it answers. So a unit that did not answer, or whose answer was
damaged, is asked nothing until `quiet` has passed since that request: a reply that comes later than its timeout finds
nobody waiting for that unit, and other units' requests go on meanwhile, since a reply does name its unit. In TCP the
transaction id tells replies apart and nobody has to wait.
"""

import asyncio
from dataclasses import dataclass

from drivers.modbus.codec.frames import TABLES, Ask, Framing, OutOfStep, reply_data, rtu_sound
from drivers.modbus.diagnosis import Evidence
from gateway.sdk.driver import Context
from gateway.sdk.errors import FrameError, NoAnswer
from gateway.sdk.streams import ByteStream

MIN_GAP_S = 0.00175  # above 19200 baud the specification fixes 1.75 ms (serial line 2.5.1.1)
CLOCK_STEP_S = 1e-6  # what is nearer than this is now
MAX_REPLY_BYTES = 1024  # more than this for one request is noise
MAX_NOISE_S = 0.5  # a line that is never quiet is spoken to all the same


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
    """Owns the stream of one link while it is open."""

    def __init__(
        self, stream: ByteStream, framing: Framing, timing: Timing, context: Context, evidence: Evidence
    ) -> None:
        self._stream, self._framing, self._timing, self._context = stream, framing, timing, context
        self._lock = asyncio.Lock()  # fair: a one-shot request waits for one transaction at most
        self._number = 0
        self._free_at_s = 0.0
        self._barred_until_s: dict[int, float] = {}
        self._begun = b""
        self._asked: set[int] = set()
        self.evidence = evidence
        self.out_of_step = False  # only a new connection helps
        self.silent = 0  # requests in a row without any answer from anybody
        self._answered_at_s = context.monotonic_s()

    def silent_for_s(self) -> float:
        """Since anybody answered."""
        return self._context.monotonic_s() - self._answered_at_s

    def free_at_s(self, unit: int) -> float:
        """When this unit may be asked again (monotonic)."""
        return self._barred_until_s.get(unit, 0.0)

    async def exchange(self, ask: Ask, *, timeout_s: float, rest_s: float = 0.0) -> Answered:
        """Send one request and wait for its reply, however long the line is busy with others before.

        Args:
            timeout_s: for the answer to come; time on the wire is added.
            rest_s: silence this device needs after its answer.

        Raises:
            NoAnswer: nothing came.
            DeviceException: the device answered with an exception.
            FrameError: what came was no sound reply to this request.
            PortClosed: the link is gone.
        """
        while True:
            await self._until(self.free_at_s(ask.unit))
            async with self._lock:
                if self.free_at_s(ask.unit) - self._context.monotonic_s() > CLOCK_STEP_S:
                    continue  # another request to the unit failed while this one waited
                await self._rest()
                return await self._transact(ask, timeout_s, rest_s)

    async def _until(self, at_s: float) -> None:
        while (left_s := at_s - self._context.monotonic_s()) > CLOCK_STEP_S:
            await self._context.sleep(left_s)

    async def _rest(self) -> None:
        """Wait until the line has been silent for the gap."""
        if self._framing.tells_requests_apart and not self._timing.gap_s:
            return
        give_up_s = self._context.monotonic_s() + MAX_NOISE_S + self._timing.gap_s
        await self._until(self._free_at_s)
        while (stray := self._stream.discard()) and self._context.monotonic_s() < give_up_s:
            self._stray(stray)
            await self._until(self._context.monotonic_s() + self._timing.gap_s)

    async def _transact(self, ask: Ask, timeout_s: float, rest_s: float) -> Answered:
        self._number = self._number % 0xFFFF + 1
        frame = self._framing.frame(ask, self._number)
        sent_at_s = self._context.monotonic_s()
        self._asked.add(ask.unit)
        self._context.count("requests")
        how = "answered"
        try:
            await self._stream.write(frame)
            return await self._reply(ask, frame, sent_at_s, timeout_s)
        except (NoAnswer, FrameError) as error:
            how = "silent" if isinstance(error, NoAnswer) else "damaged"
            self.out_of_step = self.out_of_step or isinstance(error, OutOfStep)
            if not self._framing.tells_requests_apart:
                self._barred_until_s[ask.unit] = sent_at_s + self._wire_s(ask) + self._timing.quiet_s
            raise
        finally:
            now_s = self._context.monotonic_s()
            self._free_at_s = now_s + self._timing.gap_s + rest_s
            self.evidence.note(ask.unit, how)
            self._context.count("busy_ms", round((now_s - sent_at_s) * 1000))

    def _wire_s(self, ask: Ask) -> float:
        if not self._timing.character_s:
            return 0.0
        sizes = self._framing.wire_bytes(len(ask.pdu)) * (2 if self._timing.echo else 1)
        return (sizes + self._framing.wire_bytes(ask.reply_size)) * self._timing.character_s

    async def _reply(self, ask: Ask, frame: bytes, sent_at_s: float, timeout_s: float) -> Answered:
        received, self._begun = self._begun, b""
        skip = 0
        deadline_s = sent_at_s + self._wire_s(ask) + timeout_s
        last = False
        while not last:
            left_s = deadline_s - self._context.monotonic_s()
            last = left_s <= 0 or len(received) >= MAX_REPLY_BYTES
            if not last:
                chunk = await self._stream.read_within(left_s)
                received += chunk
                last = not chunk
            if not skip and self._is_echo(ask, frame, received):
                skip = len(frame)
            found = self._framing.find(ask, self._number, received[skip:], last=last)
            if found is not None:
                pdu, end = found
                if self._framing.tells_requests_apart:
                    self._begun = received[skip + end :]  # the beginning of a frame to be stepped over
                elif before := received[skip : skip + end - self._framing.wire_bytes(len(pdu))]:
                    self._heard(before, ask.unit)
                return self._answered(ask, frame, received, pdu, sent_at_s)
        raise self._failure(ask, received[skip:], timeout_s)

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

    def _answered(self, ask: Ask, frame: bytes, received: bytes, pdu: bytes, sent_at_s: float) -> Answered:
        self.silent = 0
        self._answered_at_s = self._context.monotonic_s()
        data = reply_data(ask, pdu)  # an exception is an answer too
        latency_s = max(0.0, self._answered_at_s - sent_at_s - self._wire_s(ask))
        return Answered(data, frame, received, latency_s)

    def _failure(self, ask: Ask, received: bytes, timeout_s: float) -> NoAnswer | FrameError:
        if not received:
            self.silent += 1
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
