"""A TCP proxy that does to a connection what networks do: refuse, swallow, cut, delay. It knows nothing of what passes.

`async with FaultProxy(host, port).serve() as port: ...`; change `mode` at any time: a change ends all connections, since
a client that keeps one alive would otherwise not see it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

MODES = ("pass", "refuse", "blackhole", "reset_request", "reset_response", "slow", "half_open")


class FaultProxy:
    """One listening port in front of one target.

    Modes:
        pass: everything, at once. refuse: nobody listens. blackhole: accepted and read, never answered.
        reset_request: RST after `after_bytes` of the request. reset_response: the request passes, RST after `after_bytes`
        of the answer. slow: each chunk of the answer `delay_s` late. half_open: what was said so far stands, nothing
        passes any more and nobody is told.

    Attributes:
        times: connections that the mode strikes, then it is `pass` again; None: all.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self._mode = "pass"
        self.times: int | None = None
        self.after_bytes = 0
        self.delay_s = 0.0
        self.connections = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def mode(self) -> str:
        return self._mode

    async def set(self, mode: str, *, times: int | None = None, after_bytes: int = 0, delay_s: float = 0.0) -> None:
        """Change what is done to connections, those that are open included (except for `half_open`)."""
        assert mode in MODES, mode
        self._mode, self.times, self.after_bytes, self.delay_s = mode, times, after_bytes, delay_s
        if mode != "half_open":
            self._abort_all()
        if mode == "refuse":
            await self._close()
        elif self._server is None:
            await self._listen()

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        """Listen on a free port; yields it."""
        await self._listen()
        try:
            yield self.port
        finally:
            self._abort_all()
            await self._close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _abort_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    def _strike(self) -> str:
        if self.times is not None:
            if self.times <= 0:
                return "pass"
            self.times -= 1
        return self._mode

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            await self._serve_one(self._strike(), reader, writer)
        except (ConnectionError, OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._open.discard(writer)
            self._tasks.discard(task)

    async def _serve_one(self, mode: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if mode == "blackhole":
            while await reader.read(65536):
                pass
            return
        up_reader, up_writer = await asyncio.open_connection(*self.target)
        self._open.add(up_writer)
        try:
            towards = asyncio.create_task(self._pump(reader, up_writer, mode, "request"))
            back = asyncio.create_task(self._pump(up_reader, writer, mode, "response"))
            try:
                await asyncio.wait({towards, back}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (towards, back):
                    task.cancel()
                await asyncio.gather(towards, back, return_exceptions=True)
        finally:
            up_writer.transport.abort()
            self._open.discard(up_writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mode: str, way: str) -> None:
        passed = 0
        while data := await reader.read(65536):
            while self._mode == "half_open":  # noqa: ASYNC110 - for a test, no event needed
                await asyncio.sleep(0.05)
            if mode == "slow" and way == "response":
                await asyncio.sleep(self.delay_s)
            if mode == f"reset_{way}" and passed + len(data) > self.after_bytes:
                writer.write(data[: max(0, self.after_bytes - passed)])
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                return
            writer.write(data)
            await writer.drain()
            passed += len(data)
