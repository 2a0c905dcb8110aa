"""Who may come in, how many at once, and how long a request may take to arrive: sits between sockets and aiohttp, which
bounds none of it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

HEAD_WITHIN_S: Final = 10.0  # from the first byte, or from connecting, to the end of a request's head
IDLE_S: Final = 60.0  # between two requests of one connection, and for an answer to be taken
LOOK_EVERY_S: Final = 1.0
_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 5\r\n\r\n"


class Door:
    """The connections of one listener, at most `most` of them. One that only began to ask makes room for a new one.

    Args:
        most: connections at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[Any, _Connection] = {}  # by aiohttp's handler, the oldest first
        self.refused = 0  # turned away because all places were taken
        self.late = 0  # closed because a request did not arrive in time

    def through(self, server: Callable[[], Any]) -> Callable[[], asyncio.Protocol]:
        """A protocol factory for `create_server`."""
        return lambda: _Connection(self, server)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Tells the door when a request has arrived whole, and when it is answered."""
        connection = self._open.get(request.protocol)
        if connection is None:
            return await handler(request)
        connection.busy = True
        try:
            return await handler(request)
        finally:
            connection.busy = False
            connection.since_s, connection.begun = time.monotonic(), False

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While this is open, late and idle connections are closed."""
        task = asyncio.create_task(self._watch(), name="http door")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now_s = time.monotonic()
            for connection in list(self._open.values()):
                if not connection.busy and now_s - connection.since_s > (HEAD_WITHIN_S if connection.begun else IDLE_S):
                    self.late += connection.begun
                    connection.abort()

    def admit(self, connection: "_Connection") -> bool:
        """Whether there is a place; the oldest that has asked nothing yet gives its own."""
        if len(self._open) >= self._most:
            waiting = next((its for its in self._open.values() if its.begun and not its.busy), None)
            self.refused += 1
            if waiting is None:
                return False
            waiting.abort()
            self._open.pop(waiting.handler, None)
        self._open[connection.handler] = connection
        return True

    def left(self, connection: "_Connection") -> None:
        """It is closed."""
        self._open.pop(connection.handler, None)


class _Connection(asyncio.Protocol):
    """Hands everything on to aiohttp's handler and notes when something came.

    Attributes:
        begun: something of a request may have come, not all of it (true from the start: who connects is to ask).
        busy: a request is being answered.
        since_s: since when it is so.
    """

    def __init__(self, door: Door, server: Callable[[], Any]) -> None:
        self._door = door
        self.handler = server()
        self._transport: asyncio.Transport | None = None
        self._admitted = False
        self.begun, self.busy = True, False
        self.since_s = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._admitted = self._door.admit(self)
        if self._admitted:
            self.handler.connection_made(transport)
        else:
            transport.write(_FULL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._admitted:
            return
        if not self.begun and not self.busy:
            self.begun, self.since_s = True, time.monotonic()
        self.handler.data_received(data)

    def eof_received(self) -> bool | None:
        return self.handler.eof_received() if self._admitted else None

    def connection_lost(self, error: Exception | None) -> None:
        if self._admitted:
            self._door.left(self)
            self.handler.connection_lost(error)

    def pause_writing(self) -> None:
        if self._admitted:
            self.handler.pause_writing()

    def resume_writing(self) -> None:
        if self._admitted:
            self.handler.resume_writing()

    def abort(self) -> None:
        """Close it at once, without an answer."""
        if self._transport is not None:
            self._transport.abort()
