"""Connections that half ask, never ask, ask slowly, or do not take their answer, against real sockets."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.http import door as doors
from gateway.http import server as servers
from gateway.http.server import Server
from tests.support.box import free_port
from tests.support.fake_view import FakeView


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "HEAD_WITHIN_S", 0.4)
    monkeypatch.setattr(doors, "IDLE_S", 0.8)
    monkeypatch.setattr(doors, "LOOK_EVERY_S", 0.05)


@contextlib.asynccontextmanager
async def serving(folder: Path, view: FakeView | None = None, **given: str) -> AsyncIterator[tuple[int, Path]]:
    port, path = free_port(), folder / "control.sock"
    server = Server(view or FakeView(), listen=f"127.0.0.1:{port}", control_socket=path, token=given.get("token"))
    task = asyncio.create_task(server.run())
    try:
        while not (server.url and path.exists()):  # noqa: ASYNC110 - the server has no event for tests
            await asyncio.sleep(0.01)
        yield port, path
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(port: int, head: str = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") -> bytes:
    """The first line of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode("latin-1"))
    line = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    return line


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """Everything that comes until the other end closes."""
    with contextlib.suppress(ConnectionResetError):
        return await asyncio.wait_for(reader.read(), 5)
    return b""


@pytest.mark.parametrize(
    "begun", [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", b"\r\n\r\n"]
)
async def test_a_request_that_is_not_finished_in_time_is_given_up(tmp_path: Path, begun: bytes) -> None:
    async with serving(tmp_path) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)

        await until_closed(reader)
        writer.close()


async def test_a_request_that_trickles_is_given_up_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        closed = asyncio.create_task(until_closed(reader))
        for byte in b"GET /healthz HTTP/1.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":
            if closed.done():
                break
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.05)

        assert closed.done(), "each byte would be a new time"
        assert await closed == b""
        writer.close()


async def test_a_connection_that_is_idle_is_closed_and_one_in_use_is_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(8):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b"200" in await asyncio.wait_for(reader.readuntil(b"ok\n"), 5)
            await asyncio.sleep(0.15)
        await until_closed(reader)
        writer.close()


async def test_an_answer_that_nobody_takes_does_not_hold_its_place(tmp_path: Path) -> None:
    view = FakeView()
    view.shown["gateway"]["name"] = "x" * 30_000_000
    async with serving(tmp_path, view) as (port, _):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await asyncio.to_thread(sock.recv, 1)  # the answer has begun
            await asyncio.sleep(2.0)
            taken = await asyncio.to_thread(_drain, sock)

    assert taken < 30_000_000


def _drain(sock: socket.socket) -> int:
    count = 0
    sock.settimeout(5)
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 20):
            count += len(data)
    return count


async def test_half_sent_requests_by_the_hundred_leave_the_page_to_others(tmp_path: Path) -> None:
    async with serving(tmp_path) as (port, _):
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3 * servers.MAX_PAGES)]
        for _, writer in crowd:
            writer.write(b"GET / HTTP/1.1\r\nHost:")

        assert b"200" in await ask(port)
        for _, writer in crowd:
            writer.close()


async def test_a_flood_of_whole_requests_leaves_the_loop_to_the_links(tmp_path: Path) -> None:
    class Slow(FakeView):
        def status(self) -> dict[str, Any]:
            time.sleep(0.02)  # of processor, as a box with many devices
            return super().status()

    async with serving(tmp_path, Slow()) as (port, _):
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        for _, writer in crowd:
            writer.write(b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 20)
        turns, latest_s = 0, 0.0
        until_s = asyncio.get_running_loop().time() + 1.5
        while (now_s := asyncio.get_running_loop().time()) < until_s:
            await asyncio.sleep(0.001)
            turns, latest_s = turns + 1, max(latest_s, asyncio.get_running_loop().time() - now_s)
        assert b"200" in await ask(port)
        for _, writer in crowd:
            writer.transport.abort()

    assert latest_s < 1.2
    assert turns > 50


async def test_more_than_the_bound_are_turned_away_with_words_while_all_are_served(tmp_path: Path) -> None:
    view = FakeView()
    let_go = asyncio.Event()

    async def slow(_: object) -> object:
        await let_go.wait()
        return {}

    view.verbs = {"slow": slow}
    async with serving(tmp_path, view) as (_, path):
        asked = []
        for _ in range(servers.MAX_VERBS):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"POST /control/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            asked.append((reader, writer))
        await asyncio.sleep(1.0)  # longer than anybody may take to ask
        reader, writer = await asyncio.open_unix_connection(path)
        refused = await until_closed(reader)
        writer.close()
        let_go.set()
        served = [await asyncio.wait_for(reader.readline(), 5) for reader, _ in asked]
        for _, writer in asked:
            writer.close()

    assert refused.startswith(b"HTTP/1.1 503")
    assert all(b"200" in line for line in served)


async def test_arguments_that_never_come_whole_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.http.control.BODY_WITHIN_S", 0.2)
    async with serving(tmp_path) as (_, path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"POST /control/status HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{")

        answer = await until_closed(reader)
        writer.close()

    assert b"422" in answer
    assert b"did not come" in answer


@pytest.mark.parametrize(
    "given", ["Bearer \xff\xfe", "Bearer t\xf6ken-of-this-box", "Basic \xff", "\xe9", "Basic /////w==", "Bearer", ""]
)
async def test_any_bytes_as_authorization_are_refused_not_crashed_on(tmp_path: Path, given: str) -> None:
    head = f"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {given}\r\n\r\n"
    async with serving(tmp_path, token="token-of-this-box") as (port, _):
        assert b"401" in await ask(port, head)
        assert b"200" in await ask(
            port, head.replace(f"Authorization: {given}", "Authorization: Bearer token-of-this-box")
        )
