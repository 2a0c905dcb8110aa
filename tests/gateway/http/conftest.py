"""A server over a fake view, on a free port and a socket of its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.http.server import Server
from tests.support.fake_view import FakeView


@dataclass
class Running:
    """A server at work; `get` asks it over TCP."""

    server: Server
    view: FakeView
    socket: Path
    session: aiohttp.ClientSession

    async def get(self, path: str, **how: Any) -> aiohttp.ClientResponse:
        response = await self.session.get(self.server.url.rstrip("/") + path, **how)
        await response.read()
        return response


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """`async with start(view, token=…) as running`."""

    @contextlib.asynccontextmanager
    async def run(view: FakeView | None = None, **how: Any) -> AsyncIterator[Running]:
        view = view or FakeView()
        socket = tmp_path / "control.sock"
        server = Server(view, **{"listen": "127.0.0.1:0", "control_socket": socket, **how})
        task = asyncio.create_task(server.run(), name="server")
        try:
            async with asyncio.timeout(90), aiohttp.ClientSession(auto_decompress=False) as session:
                while not server.url and not task.done():  # noqa: ASYNC110 - the server has no event for tests
                    await asyncio.sleep(0.005)
                yield Running(server, view, socket, session)
        finally:
            task.cancel()
            await asyncio.wait({task})

    return run
