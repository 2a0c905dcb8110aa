"""Simulators: the executable statement of how a device behaves; where they speak, and the values they serve.

A simulator builds its bytes from the data sheet. It shares the template with the product, but no codec, no framing and
no protocol library.
"""

import asyncio
import contextlib
import os
import tty
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gateway.sdk.config import LinkConfig
from gateway.sdk.errors import CitygateError


@dataclass(slots=True)
class Faults:
    """What goes wrong, by device; a scenario changes it while the simulator runs.

    Attributes:
        silent: devices that do not answer or speak.
        late_s: added before each answer.
        extra: a simulator's own faults by name (`bad_crc`, `exception`), see its README.
    """

    silent: set[str] = field(default_factory=set)
    late_s: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class World:
    """All that a simulator sees.

    Attributes:
        value: (device, point, n) -> the nth value that this device serves for this point, in the point's unit.
        served: told what was put on the wire: (device, {point: value}).
        faults: see `Faults`.
        sleep: the clock.
    """

    value: Callable[[str, str, int], float]
    served: Callable[[str, dict[str, float]], None]
    faults: Faults
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Simulator(Protocol):
    """Plays all devices of one link, at the place where the link's config expects them."""

    @property
    def name(self) -> str:
        """The driver whose devices it plays."""

    async def run(self, config: LinkConfig, world: World) -> None:
        """Speak until cancelled. The place (pty link or listening socket) exists once this first waits."""


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


class Pty:
    """The device's end of a pty pair; the gateway opens `path` as its serial port."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """At least one byte, as they come."""
        while True:
            ready: asyncio.Future[None] = self._loop.create_future()
            self._loop.add_reader(self._master, _wake, ready)
            try:
                await ready
            finally:
                self._loop.remove_reader(self._master)
            with contextlib.suppress(BlockingIOError):
                return os.read(self._master, 4096)

    def write(self, data: bytes) -> None:
        """Bytes onto the line; what nobody reads is lost, as on a wire."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._master, data)


@contextlib.asynccontextmanager
async def open_pty(path: str) -> AsyncIterator[Pty]:
    """A pty whose far end is linked at `path`, raw, kept open so that the gateway may close and reopen it.

    Raises:
        CitygateError: `path` exists and is no link of an earlier simulator.
    """
    link = Path(path)
    if link.exists() and not link.is_symlink():
        raise CitygateError(f"{path} exists and is not a simulator's link; a simulator never takes a real port")
    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        os.set_blocking(master, False)
        link.unlink(missing_ok=True)
        link.symlink_to(os.ttyname(slave))
        yield Pty(master)
    finally:
        with contextlib.suppress(OSError):
            if link.is_symlink() and os.readlink(link) == os.ttyname(slave):
                link.unlink()
        os.close(master)
        os.close(slave)


@contextlib.asynccontextmanager
async def serve_tcp(
    host: str, port: int, session: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[None]:
    """A listening socket; each connection gets one `session`. All are closed at the end."""
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            await session(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the gateway went away; it comes back when it likes
        finally:
            writers.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, host, port)
    try:
        yield
    finally:
        server.close()
        for writer in tuple(writers):
            writer.close()
        await server.wait_closed()
