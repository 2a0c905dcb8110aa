"""What the server does after something went wrong: places are given back, limits count anew, sockets are made again."""

import asyncio
import contextlib
import socket
import time
from pathlib import Path

import pytest

from gateway.http import door as doors
from gateway.http import server as servers
from gateway.http.control import ask
from gateway.http.server import Server
from tests.gateway.http.test_door import serving, until_closed
from tests.support.fake_view import FakeView

HEAD_S, IDLE_S = 1.0, 4.0
VERB = b"POST /control/%s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "HEAD_WITHIN_S", HEAD_S)
    monkeypatch.setattr(doors, "IDLE_S", IDLE_S)
    monkeypatch.setattr(doors, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(servers, "RETRY_LISTEN_S", 0.05)
    monkeypatch.setattr(servers, "MAX_VERBS", 5)


class Held(FakeView):
    """A view whose verb `slow` answers when the test says so, and whose verb `broken` never does."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go, self.begun = asyncio.Event(), 0
        self.verbs = {"slow": self._slow, "broken": self._broken}

    async def _slow(self, _: object) -> object:
        self.begun += 1
        await self.let_go.wait()
        return {}

    async def _broken(self, _: object) -> object:
        raise ZeroDivisionError


async def answered(path: Path, verb: bytes) -> bytes:
    """The first line of the answer to one verb, the connection closed after it."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(VERB % verb)
    line = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    return line


async def health(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One question and its answer, the connection kept."""
    writer.write(HEALTH)
    assert b"200" in await asyncio.wait_for(reader.readuntil(b"ok\n"), 10)


@pytest.mark.parametrize(("verb", "status"), [(b"broken", b"500"), (b"nosuch", b"422"), (b"read", b"422")])
async def test_a_request_that_fails_gives_its_place_back(tmp_path: Path, verb: bytes, status: bytes) -> None:
    async with serving(tmp_path, Held()) as (_, path):
        for _ in range(servers.MAX_VERBS + 3):
            assert status in await answered(path, verb)
        kept = []
        for _ in range(servers.MAX_VERBS):
            reader, writer = await asyncio.open_unix_connection(path)
            kept.append(writer)
            writer.write(VERB % verb)
            assert status in await asyncio.wait_for(reader.readline(), 10)
        for writer in kept:
            writer.close()


async def test_who_goes_before_the_answer_gives_the_place_back(tmp_path: Path) -> None:
    view = Held()
    async with serving(tmp_path, view) as (_, path):
        for _ in range(2):
            asked = [await asyncio.open_unix_connection(path) for _ in range(servers.MAX_VERBS)]
            began = view.begun
            for _, writer in asked:
                writer.write(VERB % b"slow")
            async with asyncio.timeout(10):
                while view.begun < began + servers.MAX_VERBS:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.01)
            for _, writer in asked:
                writer.transport.abort()
            await asyncio.sleep(0.1)  # one loop serves both ends: the server hears of it in the next turns
        view.let_go.set()
        assert b"200" in await answered(path, b"slow")


async def test_only_who_has_asked_nothing_makes_room_and_the_longest_of_them(tmp_path: Path) -> None:
    view = Held()
    async with serving(tmp_path, view) as (_, path):
        busy = [await asyncio.open_unix_connection(path) for _ in range(servers.MAX_VERBS - 3)]
        for _, writer in busy:
            writer.write(VERB % b"slow")
        idle = await asyncio.open_unix_connection(path)
        await health(*idle)
        first, second = [await asyncio.open_unix_connection(path) for _ in range(2)]

        newest = await asyncio.open_unix_connection(path)
        assert await until_closed(first[0]) == b"", "the longest gives its place"
        await health(*newest)
        await health(*second)
        await health(*idle)

        turned_away, writer = await asyncio.open_unix_connection(path)
        assert (await until_closed(turned_away)).startswith(b"HTTP/1.1 503"), "all others are in use or have asked"
        view.let_go.set()
        for reader, _ in busy:
            assert b"200" in await asyncio.wait_for(reader.readline(), 10)
        for _, its in (*busy, idle, first, second, newest, (reader, writer)):
            its.close()


async def test_of_many_that_come_at_once_each_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "HEAD_WITHIN_S", 60.0)  # not for that they go
    async with serving(tmp_path) as (_, path):
        old = [await asyncio.open_unix_connection(path) for _ in range(servers.MAX_VERBS)]
        sockets = [socket.socket(socket.AF_UNIX) for _ in range(servers.MAX_VERBS - 1)]
        for its in sockets:
            its.connect(str(path))  # the server has had no turn yet
        new = [await asyncio.open_unix_connection(sock=its) for its in sockets]

        await asyncio.wait_for(asyncio.gather(*(until_closed(reader) for reader, _ in old[:-1])), 10)
        await health(*old[-1])
        for reader, writer in new:
            await health(reader, writer)
        for _, writer in (*old, *new):
            writer.close()


async def test_the_time_for_a_request_counts_anew_after_each_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        until_s = time.monotonic() + 2.5 * HEAD_S
        while time.monotonic() < until_s:
            await health(reader, writer)
            await asyncio.sleep(HEAD_S / 4)

        writer.write(HEALTH[:20])
        began_s = time.monotonic()
        await until_closed(reader)
        assert HEAD_S * 0.9 < time.monotonic() - began_s < IDLE_S - HEAD_S, "half a request is no idle connection"
        writer.close()


async def test_a_connection_that_was_answered_may_rest_longer_than_a_request_may_take(tmp_path: Path) -> None:
    async with serving(tmp_path) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await health(reader, writer)
        await asyncio.sleep(2 * HEAD_S)
        await health(reader, writer)
        writer.close()


async def test_a_connection_rests_from_its_answer_on_however_long_that_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "IDLE_S", 1.0)
    view = Held()
    async with serving(tmp_path, view) as (_, path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(VERB % b"slow")
        await asyncio.sleep(1.2)
        view.let_go.set()
        assert b"200" in await asyncio.wait_for(reader.readuntil(b"{}"), 10)
        await asyncio.sleep(0.3)
        await health(reader, writer)
        writer.close()


async def test_a_wrong_token_spoils_nothing_for_the_right_one_on_the_same_connection(tmp_path: Path) -> None:
    async with serving(tmp_path, token="token-of-this-box") as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        said = []
        for token in ("wrong", "token-of-this-box", "token-of-this-bo", "token-of-this-box"):
            writer.write(f"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
            said.append(head.split()[1])
        writer.close()

    assert said == [b"401", b"200", b"401", b"200"]


async def test_a_port_that_was_taken_is_listened_on_when_it_is_free_and_nothing_is_wrong_any_more(
    tmp_path: Path,
) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port, path = taken.getsockname()[1], tmp_path / "control.sock"
    server = Server(FakeView(), listen=f"127.0.0.1:{port}", control_socket=path)
    task = asyncio.create_task(server.run())
    try:
        async with asyncio.timeout(20):
            while not server.fault:  # noqa: ASYNC110 - the server has no event for tests
                await asyncio.sleep(0.01)
            assert server.url == ""
            taken.close()
            while server.fault or not server.url:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await health(reader, writer)
        writer.close()
    finally:
        taken.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert server.url == ""


async def test_a_server_that_is_run_again_listens_again_and_forgets_why_it_did_not(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server = Server(FakeView(), listen="127.0.0.1:0", control_socket=path)
    for _ in range(2):
        server.failed(RuntimeError("it broke"))
        assert server.fault == "it broke"
        task = asyncio.create_task(server.run())
        async with asyncio.timeout(20):
            while not (server.url and path.exists()):  # noqa: ASYNC110 - the server has no event for tests
                await asyncio.sleep(0.01)
        assert server.fault == ""
        assert (await ask(path, "status"))["gateway"]["id"] == "gw-1"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not path.exists()


async def test_a_socket_that_another_has_made_meanwhile_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server = Server(FakeView(), listen="", control_socket=path)
    task = asyncio.create_task(server.run())
    async with asyncio.timeout(20):
        while not path.exists():  # noqa: ASYNC110 - the server has no event for tests
            await asyncio.sleep(0.01)
    path.unlink()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(path))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert path.exists()
