"""What a driver is, and all it sees of the gateway."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from gateway.sdk.config import LinkConfig
from gateway.sdk.errors import DRIVER_FAULT, CitygateError, FrameError, Problem, foreign, said
from gateway.sdk.reading import Reading, ReadingSet, Value
from gateway.sdk.streams import ByteStream
from gateway.sdk.template import Template
from gateway.sdk.values import told

if TYPE_CHECKING:
    import ssl

SDK_VERSION = 1

ConfigT = TypeVar("ConfigT", bound=LinkConfig, contravariant=True)


class Clock(Protocol):
    """Time as the gateway sees it; tests inject a manual one."""

    def now(self) -> datetime:
        """Wall time, aware, UTC."""

    def monotonic_s(self) -> float:
        """Seconds that never step and go on during suspend (CLOCK_BOOTTIME)."""

    async def sleep(self, seconds: float) -> None:
        """Sleep; 0 yields once."""


class Receipt(Protocol):
    """What `emit` gives back: the set is in the log's head."""

    @property
    def durable(self) -> Awaitable[None]:
        """Resolves when the set is committed to disk or settled by every consumer."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """The answer to a one-shot request.

    Attributes:
        sent, received: raw bytes on the wire; b"" where there was none (a device that only talks sends nothing).
        readings: the device's readings, also when it did not answer.
    """

    sent: bytes
    received: bytes
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A one-shot request waiting for this link; the driver answers by resolving `reply`.

    Attributes:
        kind: `read` one device now; `write` `value` to `point`.
        reply: set its result to an `Exchange`, or its exception to a `CitygateError`. It may be cancelled: check `done()`.
    """

    kind: Literal["read", "write"]
    device: str
    point: str = ""
    value: Value | None = None
    reply: "asyncio.Future[Exchange]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


def answered(reply: "asyncio.Future[Exchange]") -> Exchange:
    """The driver's answer to a one-shot request.

    Args:
        reply: the request's future, which is done.

    Raises:
        CitygateError: what the driver says, or that it answers with what is no answer.
    """
    if reply.cancelled():
        raise CitygateError("the driver gave the request up")
    error = reply.exception()
    if error is not None:
        if isinstance(error, CitygateError):
            raise error
        raise CitygateError(
            f"the driver failed at this: {type(error).__name__}: {said(error)}; {DRIVER_FAULT}"
        ) from error
    its: object = reply.result()
    if type(its) is Exchange and [type(part) for part in (its.sent, its.received, its.readings)] == [
        bytes,
        bytes,
        tuple,
    ]:
        if not set(map(type, its.readings)) <= {Reading}:
            raise CitygateError(f"the driver answered with what are no readings; {DRIVER_FAULT}")
        return its
    raise CitygateError(f"the driver answered with a {told(type(its).__name__)} that is no exchange; {DRIVER_FAULT}")


class Requests(Protocol):
    """The bounded queue of one-shot requests of a link; they go before polls."""

    async def get(self) -> Request:
        """Wait for the next request."""

    def get_nowait(self) -> Request | None:
        """The next request, or None."""


class OpenSerial(Protocol):
    def __call__(
        self, port: str, baud_rate: int, *, parity: str = "N", stop_bits: float = 1, data_bits: int = 8
    ) -> AbstractAsyncContextManager[ByteStream]: ...


class OpenTcp(Protocol):
    def __call__(
        self,
        host: str,
        port: int,
        *,
        timeout_s: float = 5.0,
        tls: "ssl.SSLContext | None" = None,
        server_name: str = "",
    ) -> AbstractAsyncContextManager[ByteStream]: ...


class Reject(Protocol):
    def __call__(self, error: FrameError, *, device: str = "", remedy: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Context:
    """All that a driver sees of the gateway: injected callables, so that a test builds one in a line.

    Attributes:
        emit: hand over a set; waits only while the log's head is full.
        reject: a frame or message could not be decoded: counted, its reason shown in status; with `device=` when it is
            known whose it was, with `remedy=` where the driver knows a better one than that of its kind of link.
        count: add to a counter of this link, shown in status and metrics (`frames`, `crc_errors`); with `device=` to
            one of that device.
        now, monotonic_s, sleep: the clock.
        progress: the loop is alive (call it each turn, also when the wire is quiet); without it the link is restarted.
        open_serial, open_tcp: streams; they raise `LinkError` when the port is absent, taken or refuses.
        requests: one-shot reads and writes waiting for this link.
        offer_time: a time source (GNSS, radio network) offers (utc, uncertainty in seconds).
        state: driver state saved by earlier sets of this link, as (device, key) -> bytes.
        note: a remark about a device for status ("answers late"), with remedy; ("", "") clears it. Device "" is the link.
        up: the link works (connected, subscribed, listening), also when nothing was heard yet; what is emitted says so too.
        link: the link's name in the operator's file; "" outside a daemon, where nothing is kept: leave
            sessions and queues that a daemon goes on with as they are.
    """

    emit: Callable[[ReadingSet], Awaitable[Receipt]]
    reject: Reject
    count: Callable[..., None]
    now: Callable[[], datetime]
    monotonic_s: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    progress: Callable[[], None]
    open_serial: OpenSerial
    open_tcp: OpenTcp
    requests: Requests
    offer_time: Callable[[datetime, float], None]
    state: Mapping[tuple[str, str], bytes]
    note: Callable[[str, str, str], None]
    up: Callable[[], None]
    link: str = ""


class Decoded(tuple[Reading, ...]):
    """Readings of one frame with what is to be said of it: `decode` may give it in place of a plain tuple.

    Attributes:
        remark: what was left over, e.g. "3 bytes behind the last field"; "" when all of it was read.
    """

    remark: str

    def __new__(cls, readings: Iterable[Reading], remark: str = "") -> "Decoded":
        made = super().__new__(cls, readings)
        made.remark = remark
        return made


class Driver(Protocol[ConfigT]):
    """A kind of link we can serve."""

    @property
    def name(self) -> str:
        """As written in the config, e.g. `modbus`."""

    @property
    def sdk_version(self) -> int:
        """The `SDK_VERSION` it was written for."""

    @property
    def config_model(self) -> type[LinkConfig]:
        """The link with its devices by name (`devices: dict[str, ...]`); forbids unknown keys."""

    @property
    def template_model(self) -> type[Template]:
        """How to read, added to the common part."""

    @property
    def templates(self) -> Traversable:
        """The folder its templates ship in."""

    async def run(self, config: ConfigT, context: Context) -> None:
        """Serve one link until cancelled. Raise `LinkError` to be restarted."""

    def decode(self, template: Template, frame: bytes, context: Mapping[str, Any]) -> tuple[Reading, ...]:
        """Readings of one captured frame or payload; pure. The door of `decode` and of the templates' samples.

        Args:
            context: what the bytes alone do not say; key `received_at` (datetime) is always there.

        Returns:
            The readings; as `Decoded` where something of the bytes was left over.

        Raises:
            FrameError: the bytes are not a frame of this template, or one that is cut short; then with the `readings`
                up to there.
        """


def decoded(driver: Driver[Any], template: Template, frame: bytes, context: Mapping[str, Any]) -> Decoded:
    """What this driver decodes: the one door to a decoder that somebody else wrote.

    Raises:
        FrameError: it refuses, it raises whatever it likes, or what it gives are no readings.
    """
    with foreign(f"the decoder of driver {driver.name}", frame):
        found = driver.decode(template, frame, context)
        if not isinstance(found, tuple | list) or not set(map(type, found)) <= {Reading}:
            raise FrameError(f"the decoder of driver {driver.name} gives no tuple of readings", frame=frame)
        return Decoded(found, told(found.remark) if isinstance(found, Decoded) else "")


@runtime_checkable
class Scans(Protocol):
    """A driver that can look for devices; see the modbus and lora drivers."""

    def scan(self, options: Mapping[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        """Progress and findings, one dict each; bounded, read-only. `LinkError` when the port cannot be opened.

        Args:
            options: what the command line gave; `templates`: name -> template of this driver, to recognise devices by.
        """


@runtime_checkable
class Provisions(Protocol):
    """A driver that can set address and speed of a new device; see the modbus driver."""

    def provision(self, options: Mapping[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        """What is done, one dict a step, the last one `{"done": …}`; what was written is read back.

        Args:
            options: what the command line gave; `template`: the device's template.
        """


@runtime_checkable
class Solves(Protocol):
    """A driver that can tell how a value on a device's display is encoded; see the modbus driver."""

    def solve(self, options: Mapping[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        """Ways in which what the device sends gives `options["value"]`, the most usual first."""


@runtime_checkable
class SharesLine(Protocol):
    """A driver whose devices share the time of one line; `check` warns when the polls do not fit."""

    def shares(self, config: Any) -> Mapping[str, float]:
        """Device -> part of the link's time that polling it takes when all goes well (0.2: a fifth). Pure."""


@runtime_checkable
class Warns(Protocol):
    """A driver that knows settings which may be, but are rarely meant; `check` tells them as warnings."""

    def warnings(self, config: Any) -> Iterable[Problem]:
        """Each with its path below the link, e.g. ("devices", "meter-12", "unit_id"). Pure."""


@runtime_checkable
class Plans(Protocol):
    """A driver that decides what to ask a device for; see the modbus driver."""

    def plan(self, template: Template) -> tuple[str, ...]:
        """The requests of one poll, one line each, for people."""
