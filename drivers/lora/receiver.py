"""One uplink becomes one set: had before? what is lost? what does the payload say? The same for all four inputs."""

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from drivers.lora.codec import cayenne
from drivers.lora.codec.payload import Decoded, Received, decode_layout, read_object
from drivers.lora.codec.uplink import TEST_PORT, Status, Uplink
from drivers.lora.config import Container, LoraDevice, LoraTemplate
from drivers.lora.heard import Heard
from drivers.lora.layout import PROGRAM_BYTES, CayenneCodec, JavaScriptCodec, LayoutCodec, ObjectCodec
from drivers.lora.memory import STATE, Memory, unpack
from drivers.lora.worker import Program, ProgramFault, Worker
from gateway.sdk.driver import Context, Exchange, Receipt, Request
from gateway.sdk.errors import CitygateError, FrameError
from gateway.sdk.quantities import conversion
from gateway.sdk.reading import Reading, ReadingSet, Reason, TimeSource, Value, no_values
from gateway.sdk.values import value_of

SILENT_AFTER = 3  # expected intervals without an uplink
COSTLY_S = 0.1  # a program that takes longer to fail is a burden to its neighbours
COSTLY_FAULTS, REST_S = 3, 60.0  # so many in a row, and its device's payloads are left undecoded for so long
TURN_S = 5.0
MAX_DISTANCE = 1e9  # in any unit of length; more is no distance
FAR_OFF_S = 300.0  # a concentrator's clock that is further from ours tells no time of an uplink
REMARK_S = 60.0  # what a network server reports of a device stands at least for so long
WAIT_S = 20.0  # for a device that was not heard yet, when somebody asks for its values


@contextlib.contextmanager
def one_message(context: Context, what: str, frame: bytes) -> Iterator[None]:
    """Whatever is in a foreign message, and whatever it does further in: it costs itself, never the link.

    Rejected, counted, its traceback kept once; the caller goes on with the next. `CitygateError`s other than a refusal
    are no matter of the message (the log, the link) and pass.
    """
    try:
        yield
    except FrameError as error:
        context.reject(error)
    except CitygateError:
        raise
    except Exception as error:  # noqa: BLE001 - else a broker delivers it again and again, and the link is dead for good
        refused = FrameError(f"{what}: {type(error).__name__}: {str(error)[:200]}", frame=frame)
        refused.__cause__ = error
        context.reject(refused)


class Receiver:
    """The devices of one link.

    Args:
        devices: by name in the operator's file.
    """

    def __init__(self, devices: Mapping[str, LoraDevice], context: Context) -> None:
        self._devices = devices
        self._context = context
        self._memory = {name: unpack(context.state.get((name, STATE))) for name in devices}
        self._last: dict[str, Exchange] = {}
        self._waiting: list[tuple[float, Request]] = []
        self._programs = {name: _program(name, device) for name, device in devices.items()}
        self._costly: dict[str, int] = {}
        self._rests_until_s: dict[str, float] = {}
        self._remarks: dict[str, float] = {}  # device -> from when its remark may be taken back
        self._worker = Worker()
        now_s = context.monotonic_s()
        self._due_s = {
            name: now_s + device.every_s * SILENT_AFTER
            for name, device in devices.items()
            if device.every_s is not None
        }
        self.heard = Heard()

    def memory(self, device: str) -> Memory:
        """What is remembered of a device."""
        return self._memory[device]

    async def close(self) -> None:
        """End the JavaScript worker."""
        await self._worker.close()

    async def take(
        self, device: str, uplink: Uplink, *, redelivered: bool = False, retained: bool = False
    ) -> Receipt | None:
        """Take one uplink of a configured device; None when it is nothing that must be kept.

        Args:
            redelivered: the broker says that it sends it again.
            retained: the broker had kept it: it was not published now.
        """
        if uplink.simulated or uplink.f_port == TEST_PORT:
            self._context.count("simulated", device=device)
            return None
        memory = self._memory[device]
        if memory.known(uplink, redelivered=redelivered, retained=retained):
            self._context.count("duplicates", device=device)
            # the first one may still be in the log's head: what comes behind it is durable no earlier
            return await self._context.emit(ReadingSet(device, (), {STATE: memory.pack()}))
        received = self._received(uplink)
        radio = self._radio(device, uplink, memory, received)
        decoded = await self._payload(device, uplink, received)
        memory.remember(uplink)
        self._context.count("uplinks")
        readings = (*decoded.readings, *_fill_levels(self._devices[device], decoded.readings), *radio)
        self._last[device] = Exchange(b"", uplink.payload, readings)
        self._answer_waiting()
        self._heard_from(device)
        receipt = await self._context.emit(ReadingSet(device, readings, {STATE: memory.pack()}))
        if decoded.problem:
            self._complain(device, FrameError(f"{device}: {decoded.problem}", frame=uplink.payload, offset=decoded.at))
        else:
            self._take_back(device)
        return receipt

    def remark(self, device: str, text: str, remedy: str, *, for_s: float = 0.0) -> None:
        """A remark for status that the device's next sound uplink takes back, after so many seconds at the earliest."""
        self._remarks[device] = self._context.monotonic_s() + for_s
        self._context.note(device, text, remedy)

    def _take_back(self, device: str) -> None:
        due_s = self._remarks.get(device)
        if due_s is not None and self._context.monotonic_s() >= due_s:
            del self._remarks[device]
            self._context.note(device, "", "")

    async def take_status(self, device: str, status: Status, *, retained: bool = False) -> Receipt | None:
        """Take a device's battery report."""
        memory = self._memory[device]
        if status.battery_percent is None:
            return None
        if status.key in memory.keys or (retained and not memory.before(status.time)):
            self._context.count("duplicates", device=device)
            return await self._context.emit(ReadingSet(device, (), {STATE: memory.pack()}))
        memory.keys.append(status.key)
        at, source = (status.time, TimeSource.NETWORK) if status.time else (self._context.now(), TimeSource.GATEWAY)
        reading = Reading("battery_level", round(status.battery_percent, 2), at, time_source=source)
        return await self._context.emit(ReadingSet(device, (reading,), {STATE: memory.pack()}))

    async def watch_silence(self, look: Callable[[], None] = lambda: None) -> None:
        """Report devices that should have spoken; also shows that the link's loop lives.

        Args:
            look: called each turn; the link's own watch.
        """
        while True:
            self._context.progress()
            now_s = self._context.monotonic_s()
            for name, due_s in self._due_s.items():
                if now_s >= due_s:
                    await self._silent(name)
            self._answer_waiting()
            look()
            await self._context.sleep(TURN_S)

    async def answer_requests(self) -> None:
        """One-shot reads get the latest uplink, or the next; nothing can be asked of a device that sleeps."""
        while True:
            request = await self._context.requests.get()
            if request.reply.done():
                continue
            if request.kind == "write":
                request.reply.set_exception(CitygateError(f"{request.device}: downlinks are not sent by this driver"))
            elif exchange := self._last.get(request.device):
                request.reply.set_result(exchange)
            else:
                self._waiting.append(
                    (self._context.monotonic_s() + WAIT_S, request)
                )  # at most as many as the queue lets in

    def _answer_waiting(self) -> None:
        now_s = self._context.monotonic_s()
        for due_s, request in tuple(self._waiting):
            if request.reply.done():
                self._waiting.remove((due_s, request))
            elif exchange := self._last.get(request.device):
                self._waiting.remove((due_s, request))
                request.reply.set_result(exchange)
            elif now_s >= due_s:
                self._waiting.remove((due_s, request))
                request.reply.set_exception(
                    CitygateError(f"{request.device} was not heard within {WAIT_S:g} s; it speaks when it likes")
                )

    def _received(self, uplink: Uplink) -> Received:
        if uplink.time is not None:
            return Received(uplink.time, TimeSource.NETWORK)
        return Received(uplink.heard_at or self._context.now(), TimeSource.GATEWAY)

    def _radio(self, device: str, uplink: Uplink, memory: Memory, received: Received) -> tuple[Reading, ...]:
        lost = memory.lost_before(uplink)
        if lost is None and memory.f_cnt is not None and uplink.f_cnt is not None:
            self._context.count("sessions_restarted", device=device)
        if lost:
            self._context.count("lost_uplinks", lost, device=device)
        values: tuple[tuple[str, Value | None], ...] = (
            ("rssi", uplink.rssi),
            ("snr", uplink.snr),
            ("spreading_factor", uplink.spreading_factor),
            ("lost_uplinks", lost),
        )
        return tuple(
            Reading(point, value, received.at, time_source=received.source)
            for point, value in values
            if value is not None
        )

    async def _payload(self, device: str, uplink: Uplink, received: Received) -> Decoded:
        """Readings of the payload; none and the reason when it cannot be read: the uplink itself still counts."""
        codec = _template(self._devices[device]).codec
        if uplink.f_port == 0 or (not uplink.payload and not isinstance(codec, ObjectCodec)):
            return Decoded(())  # MAC commands, or an uplink that only says: I am here
        try:
            if isinstance(codec, JavaScriptCodec):
                result = await self._run(device, uplink, received)
                return read_object(result, codec.fields, received)
            return decode_plain(codec, uplink.payload, uplink.f_port, received, uplink.decoded)
        except FrameError as error:
            return Decoded((), error.message, error.offset)

    async def _run(self, device: str, uplink: Uplink, received: Received) -> object:
        if self._context.monotonic_s() < self._rests_until_s.get(device, 0.0):
            raise FrameError("its program failed too often and rests", frame=uplink.payload)
        program = self._programs[device]
        assert program is not None
        started_s = perf_counter()
        try:
            result: object = await self._worker.decode(program, uplink.payload, uplink.f_port, received.at)
        except ProgramFault:
            costly = self._costly.get(device, 0) + 1 if perf_counter() - started_s > COSTLY_S else 0
            self._costly[device] = costly
            if costly >= COSTLY_FAULTS:
                self._rests_until_s[device] = self._context.monotonic_s() + REST_S
                self._context.count("programs_rested", device=device)
            raise
        except CitygateError as error:
            raise FrameError(str(error), frame=uplink.payload) from None
        self._costly.pop(device, None)
        return result

    def _complain(self, device: str, error: FrameError) -> None:
        self._context.count("payload_errors", device=device)
        remedy = "is it the right template, and its newest firmware?"
        self._context.reject(error, device=device, remedy=remedy)
        self.remark(device, f"payload not (wholly) read: {error}", remedy)

    def _heard_from(self, device: str) -> None:
        every_s = self._devices[device].every_s
        if every_s is not None:
            self._due_s[device] = self._context.monotonic_s() + every_s * SILENT_AFTER

    async def _silent(self, device: str) -> None:
        its = self._devices[device]
        self._heard_from(device)
        points = tuple(name for name in its.template.points if name not in ("lost_uplinks", "battery_level"))
        await self._context.emit(no_values(device, points, Reason.TIMEOUT, observed_at=self._context.now()))
        self.remark(device, f"no uplink for {SILENT_AFTER * (its.every_s or 0):g} s", "battery, range, or the server")


def _fill_levels(device: LoraDevice, readings: tuple[Reading, ...]) -> tuple[Reading, ...]:
    """How full the container is, for each distance; bounded to 0 and 100 %."""
    container, point = device.container, device.template.points.get("distance")
    if container is None or point is None:
        return ()
    scale, offset = conversion(point.unit or "MTR", "MTR")
    distances = ((reading, value_of("number", reading.value)) for reading in readings if reading.point == "distance")
    return tuple(
        replace(reading, point="fill_level", value=_percent_full(container, float(value) * scale + offset))
        for reading, value in distances
        if isinstance(value, float | int) and abs(value) < MAX_DISTANCE
    )


def _percent_full(container: Container, distance_m: float) -> float:
    share = (container.empty_m - distance_m) / (container.empty_m - container.full_m)
    return round(100 * min(max(share, 0.0), 1.0), 1)


def decode_plain(
    codec: LayoutCodec | CayenneCodec | ObjectCodec,
    payload: bytes,
    port: int | None,
    received: Received,
    decoded: object,
) -> Decoded:
    """Decode with any codec that needs no worker.

    Raises:
        FrameError: nothing of the payload could be read.
    """
    if isinstance(codec, LayoutCodec):
        return decode_layout(codec, payload, port, received)
    if isinstance(codec, CayenneCodec):
        return cayenne.decode(payload, codec.fields, received)
    if decoded is None:
        raise FrameError("the server sent no decoded object; set a codec in its device profile", frame=payload)
    return read_object(decoded, codec.fields, received)


def program_of(codec: JavaScriptCodec, name: str) -> Program:
    """The program, read from its file when it has one.

    Raises:
        CitygateError: the file cannot be read.
    """
    try:
        source = codec.source or _text_of(Path(codec.file))
    except (OSError, UnicodeDecodeError) as error:
        raise CitygateError(f"{name}: cannot read {codec.file}: {error}") from None
    return Program(name, source, codec.form)


def _text_of(file: Path) -> str:
    """A program's text, of a regular file and no longer than one in the template: a device never ends, a pipe waits."""
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")
    with file.open("rb") as opened:
        text = opened.read(PROGRAM_BYTES + 1)
    if len(text) > PROGRAM_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {PROGRAM_BYTES} bytes")
    return text.decode("utf-8")


def _program(name: str, device: LoraDevice) -> Program | None:
    codec = _template(device).codec
    if not isinstance(codec, JavaScriptCodec):
        return None
    try:
        return program_of(codec, name)
    except CitygateError as error:  # its neighbours go on; each uplink says why
        return Program(name, f"throw new Error({str(error)!r})", codec.form)


def _template(device: LoraDevice) -> LoraTemplate:
    template = device.template
    assert isinstance(template, LoraTemplate)
    return template


def network_time_or_none(uplink: Uplink, now_s: float) -> Uplink:
    """The uplink without its time when that is far from ours. A concentrator passes on at once what it hears, so a time
    that is far off is wrong by so much: no intake, which must believe servers that queue for weeks, can tell."""
    if uplink.time is None or abs(uplink.time.timestamp() - now_s) <= FAR_OFF_S:
        return uplink
    return replace(uplink, time=None)


async def first_failure(*services: "asyncio.Task[None]") -> None:
    """Run tasks until one fails; cancel the others and raise its error itself."""
    try:
        done, _ = await asyncio.wait(services, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in services:
            task.cancel()
        await asyncio.gather(*services, return_exceptions=True)
