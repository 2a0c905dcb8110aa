"""Driver `serial`: one instrument that talks by itself on its own serial line."""

import asyncio
import importlib.resources
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.resources.abc import Traversable
from typing import Any, Protocol

from drivers.serial.codec import sds011
from drivers.serial.config import SerialLink, SerialTemplate
from gateway.sdk.driver import SDK_VERSION, Context, Decoded, Exchange, Request
from gateway.sdk.errors import CitygateError, FrameError, LinkError, foreign
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, no_values
from gateway.sdk.streams import ByteStream
from gateway.sdk.template import Template

SILENT_AFTER_PERIODS = 5  # so many frames in a row must be missing before the device counts as silent
LATE_S = 2.0  # a frame whose time is not known better than this (or a period, where that is longer) is not published
TURN_S = 1.0  # at least this often the loop shows that it lives, and looks for one-shot requests


class Framer(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...

    def give_back(self) -> None: ...


class Codec(Protocol):
    """What a module in `codec/` offers."""

    def framer(self) -> Framer: ...

    def decode(self, frame: bytes, *, received_at: datetime) -> tuple[Reading, ...]: ...

    def identity(self, frame: bytes) -> bytes:
        """What names the sender in a sound frame."""


CODECS: Mapping[str, Codec] = {"sds011": sds011}


class SerialDriver:
    """See `gateway.sdk.driver.Driver`."""

    name = "serial"
    sdk_version = SDK_VERSION
    config_model = SerialLink
    template_model = SerialTemplate

    @property
    def templates(self) -> Traversable:
        return importlib.resources.files("drivers.serial") / "templates"

    async def run(self, config: SerialLink, context: Context) -> None:
        """Read the line of one link until cancelled; `PortClosed` asks for a restart."""
        [(name, device)] = config.devices.items()  # point to point: the model allows exactly one
        template = device.template
        assert isinstance(template, SerialTemplate)
        line = _Line(name, template, context)
        try:
            async with context.open_serial(config.port, config.baud_rate or template.baud_rate) as port:
                await line.listen(port)
        except LinkError:
            await line.mark_down()
            raise

    def decode(self, template: Template, frame: bytes, context: Mapping[str, Any]) -> tuple[Reading, ...]:
        """Readings of all frames in captured bytes; noise between them is skipped as on the wire."""
        assert isinstance(template, SerialTemplate)
        codec = CODECS[template.codec]
        received_at = context.get("received_at", datetime.now(UTC))
        framer, readings, failure = codec.framer(), list[Reading](), None
        used = 0
        for found in framer.feed(frame):
            try:
                readings += codec.decode(found, received_at=received_at)
                used += len(found)
            except FrameError as error:
                framer.give_back()
                failure = failure or error
        if not readings:
            raise failure or FrameError(f"no complete {template.codec} frame", frame=frame, offset=len(frame))
        over = len(frame) - used
        return Decoded(readings, f"{over} of {len(frame)} bytes belong to no frame" if over else "")


class _Line:
    """One device on its line: frames become sets, silence becomes a set without values."""

    def __init__(self, device: str, template: SerialTemplate, context: Context) -> None:
        self._device = device
        self._codec = CODECS[template.codec]
        self._points = tuple(template.points)
        self._context = context
        self._identity: bytes | None = None
        self._stranger: bytes | None = None
        self._late_s = max(LATE_S, template.period_s)
        self._silent_s = template.period_s * SILENT_AFTER_PERIODS
        self._deadline_s = context.monotonic_s() + self._silent_s
        self._waiting: list[Request] = []

    async def listen(self, port: ByteStream) -> None:
        framer = self._codec.framer()
        while True:
            self._context.progress()
            self._take_requests()
            data = await self._read(port)
            if data:
                received_at = self._context.now() - timedelta(seconds=port.age_s)
                in_time = port.age_doubt_s <= self._late_s
                for frame in framer.feed(data):
                    readings = self._decoded(frame, received_at)
                    if readings:
                        await self._frame(frame, readings, in_time=in_time)
                    else:
                        framer.give_back()
            if self._context.monotonic_s() >= self._deadline_s:
                await self._silence()

    async def mark_down(self) -> None:
        """The port is gone: the device says nothing any more."""
        down = no_values(self._device, self._points, Reason.LINK_DOWN, observed_at=self._context.now())
        self._answer(b"", down.readings)
        await self._context.emit(down)

    async def _read(self, port: ByteStream) -> bytes:
        """What came within this turn; b"" when nothing did."""
        left_s = self._deadline_s - self._context.monotonic_s()
        try:
            async with asyncio.timeout(max(0.0, min(TURN_S, left_s))):
                return await port.read()
        except TimeoutError:
            return b""

    def _decoded(self, frame: bytes, received_at: datetime) -> tuple[Reading, ...]:
        """The readings of a sound frame of our device; none of anything else, which is told."""
        try:
            with foreign("frame", frame):
                readings = self._codec.decode(frame, received_at=received_at)
                self._recognise(self._codec.identity(frame), frame)
        except FrameError as error:
            self._context.reject(error, device=self._device)
            return ()
        return readings

    def _recognise(self, identity: bytes, frame: bytes) -> None:
        """One frame in 256 that are damaged has the right sum. It also has to come from the device that spoke before;
        another one is believed when it speaks twice in a row."""
        if identity not in (self._identity or identity, self._stranger):
            self._stranger = identity
            known = (self._identity or b"").hex()
            raise FrameError(f"sent by {identity.hex()}, not by {known}: damaged, or another device now", frame=frame)
        self._identity, self._stranger = identity, None

    async def _frame(self, frame: bytes, readings: tuple[Reading, ...], *, in_time: bool) -> None:
        self._context.count("frames")
        self._context.note(self._device, "", "")
        self._deadline_s = self._context.monotonic_s() + self._silent_s
        if not in_time:  # it lay in the kernel while this process did not run: nobody knows since when
            self._context.count("late_frames", device=self._device)
            readings = tuple(replace(its, quality=Quality.UNCERTAIN, reason=Reason.BAD_TIME) for its in readings)
        self._answer(frame, readings)
        await self._context.emit(ReadingSet(self._device, readings))

    async def _silence(self) -> None:
        """Bytes without a sound frame are silence too: the device says nothing that counts."""
        self._deadline_s = self._context.monotonic_s() + self._silent_s
        self._context.note(
            self._device,
            f"no sound frame for {self._silent_s:g} s",
            "is it powered and awake, its TX wired to our RX, the baud rate right?",
        )
        nothing = no_values(self._device, self._points, Reason.TIMEOUT, observed_at=self._context.now())
        self._answer(b"", nothing.readings)
        await self._context.emit(nothing)

    def _take_requests(self) -> None:
        while (request := self._context.requests.get_nowait()) is not None:
            if request.kind == "read":
                self._waiting.append(request)  # bounded by the queue it comes from: answered at the next frame
            elif not request.reply.done():
                request.reply.set_exception(CitygateError(f"{request.device} only talks; nothing can be written to it"))

    def _answer(self, frame: bytes, readings: tuple[Reading, ...]) -> None:
        for request in self._waiting:
            if not request.reply.done():
                request.reply.set_result(Exchange(b"", frame, readings))
        self._waiting.clear()


DRIVER = SerialDriver()
