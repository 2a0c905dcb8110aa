"""Simulators: the executable statement of how a device behaves; where they speak, and the values they serve.

A simulator builds its bytes from the data sheet. It shares the template with the product, but no codec, no framing and
no protocol library.
"""

import asyncio
import contextlib
import os
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gateway.sdk.config import LinkConfig
from gateway.sdk.errors import CitygateError
from gateway.sdk.recording import Chunk, exchanges


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


class Playback:
    """Plays a recording where a link's config expects its device: the same bytes with the same timing.

    A request gets the answers it got when recorded, one after the other and from the start again; one that was never
    recorded gets none. What a device said unasked is said again and again. Where a recorded answer began with the two
    bytes that its request began with (a transaction number), the answer takes over those of the request now.
    """

    def __init__(self, name: str, chunks: Sequence[Chunk]) -> None:
        self.name = name
        self._answers: dict[bytes, list[list[tuple[float, bytes]]]] = {}
        self._unasked: list[tuple[float, bytes]] = []
        self._turn: dict[bytes, int] = {}
        for request, _, came in exchanges(chunks):
            if not request:
                self._unasked = came
                continue
            self._answers.setdefault(request, []).append(came)
            if all(data[:2] == request[:2] for _, data in came[:1]):
                self._answers.setdefault(request[2:], []).append([(at_s, data) for at_s, data in came])

    async def run(self, config: LinkConfig, world: World) -> None:
        """Speak until cancelled."""
        its: Any = config
        if getattr(its, "host", ""):
            async with serve_tcp(its.host, int(its.port), lambda reader, writer: self._session(reader, writer, world)):
                await asyncio.Event().wait()
        async with open_pty(its.port) as pty:
            if self._unasked:
                await self._talk(pty.write, world)
            while True:
                await self._reply(await pty.read(), pty.write, world)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, world: World) -> None:
        while data := await reader.read(4096):
            await self._reply(data, writer.write, world)

    async def _talk(self, write: Callable[[bytes], None], world: World) -> None:
        while True:
            said_s = 0.0
            for at_s, data in self._unasked:
                await world.sleep(max(0.001, at_s - said_s))
                said_s = at_s
                write(data)

    async def _reply(self, request: bytes, write: Callable[[bytes], None], world: World) -> None:
        key = request if request in self._answers else request[2:]
        takes = self._answers.get(key)
        if takes is None:
            return
        turn = self._turn[key] = self._turn.get(key, -1) + 1
        said_s = 0.0
        for place, (at_s, data) in enumerate(takes[turn % len(takes)]):
            await world.sleep(max(0.0, at_s - said_s))
            said_s = at_s
            write(request[:2] + data[2:] if key != request and place == 0 else data)
