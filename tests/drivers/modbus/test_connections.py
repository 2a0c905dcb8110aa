"""Real TCP connections that are closed, reset, refused or lent: what is normal, what is an outage, and in which words."""

import asyncio
import contextlib
import dataclasses
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest

from drivers.modbus.driver import DRIVER
from gateway.sdk.driver import Request
from gateway.sdk.errors import CitygateError, LinkError
from gateway.sdk.reading import Reason
from gateway.sdk.streams import ByteStream, open_tcp
from gateway.sdk.testing import RecordingContext
from tests.support import modbus_slave as slave
from tests.support.modbus_config import link, template

WRITABLE = template(a={"address": 0, "write": {}}, b={"address": 1})


class Server:
    """A Modbus TCP device; `rule` says what becomes of each request: `answer`, `close`, `reset` or `hang`.

    Attributes:
        idle_s: it closes a connection on which nothing came for so long.
        most: connections served at a time; more are accepted and closed.
        first_after_s: it hears nothing for so long after the connect, and closes when something is said.
    """

    def __init__(self, rule: Callable[["Server", slave.Request], str] = lambda server, request: "answer") -> None:
        self.rule = rule
        self.idle_s: float | None = None
        self.most = 100
        self.first_after_s = 0.0
        self.accepted = self.open = 0
        self.on_this = 0
        self.requests: list[slave.Request] = []
        self.port = 0
        self.stop: Callable[[], None] = lambda: None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        self.on_this = 0
        since_s = time.monotonic()
        try:
            while self.open <= self.most:
                async with asyncio.timeout(self.idle_s):
                    frame = await reader.read(256)
                if not frame:
                    return
                if time.monotonic() - since_s < self.first_after_s:
                    return
                request = slave.parse_tcp(frame) if frame[2:4] == b"\0\0" and frame[5] == 6 else slave.parse_rtu(frame)
                self.requests.append(request)
                self.on_this += 1
                what = self.rule(self, request)
                if what == "reset":
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                if what in ("reset", "close"):
                    return
                if what == "answer":
                    writer.write(slave.tcp(request.number, request.unit, self._pdu(request)))
        except (TimeoutError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    @staticmethod
    def _pdu(request: slave.Request) -> bytes:
        if request.function == 6:
            return request.pdu
        return slave.words(request.function, [5 + request.address + n for n in range(request.count)])

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Server"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            self.stop = server.close
            yield self
        finally:
            server.close()


class Driven:
    """The driver on real sockets."""

    def __init__(self, server: Server, *, units: int = 1, every: str = "200 ms", **its: object) -> None:
        devices = {
            f"u{n}": {"template": WRITABLE, "unit_id": n, "every": every, "writes": ["a"]} for n in range(1, units + 1)
        }
        self.config = link(devices, **{"host": "127.0.0.1", "port": server.port, "timeout": "300 ms", **its})
        self.recorder = RecordingContext()
        self.context = dataclasses.replace(
            self.recorder.context, open_tcp=open_tcp, sleep=asyncio.sleep, monotonic_s=time.monotonic
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        task = asyncio.create_task(DRIVER.run(self.config, self.context))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, count: int, device: str = "u1") -> None:
        """So many sets of a device have come."""
        async with asyncio.timeout(60):
            while len(self.sets(device)) < count:  # noqa: ASYNC110 - a list of the recorder
                await asyncio.sleep(0.01)

    def sets(self, device: str = "u1") -> list[dict[str, object]]:
        return [dict(s.values()) for s in self.recorder.sets if s.device == device]


GOOD = {"a": 5, "b": 6}


@pytest.mark.parametrize("units", [1, 3])
async def test_a_connection_closed_while_idle_is_no_outage(units: int) -> None:
    server = Server()
    server.idle_s = 0.05
    async with server.listening():
        driven = Driven(server, units=units)
        async with driven.running() as task:
            await driven.until(8)
            assert not task.done()

    assert all(values == GOOD for n in range(1, units + 1) for values in driven.sets(f"u{n}"))
    assert driven.recorder.notes == {}
    assert driven.recorder.counts["reconnects"] >= 7


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("every_nth", [2, 3, 5])
async def test_a_connection_lost_instead_of_an_answer_costs_no_reading(how: str, every_nth: int) -> None:
    server = Server(lambda server, _: how if server.on_this >= every_nth else "answer")
    async with server.listening():
        driven = Driven(server)
        async with driven.running():
            await driven.until(8)

    assert driven.sets() == [GOOD] * len(driven.sets())


async def test_a_device_that_closes_after_each_answer_is_read() -> None:
    server = Server()
    server.idle_s = 0.001
    async with server.listening():
        driven = Driven(server, units=2)
        async with driven.running():
            await driven.until(6)

    assert driven.sets() == [GOOD] * len(driven.sets())


@pytest.mark.parametrize("how", ["accept and close", "close", "reset"])
@pytest.mark.parametrize("framing", ["tcp", "rtu"])
async def test_connections_that_are_closed_before_any_answer_are_an_outage_with_words(how: str, framing: str) -> None:
    server = Server(lambda *_: how)
    if how == "accept and close":
        server.most = 0
    async with server.listening():
        driven = Driven(server, framing=framing)
        with pytest.raises(LinkError, match="closed before anybody has answered"):
            async with asyncio.timeout(60):
                await DRIVER.run(driven.config, driven.context)

    assert server.accepted <= 4
    text, remedy = driven.recorder.notes[""]
    assert text == "it accepts connections and closes them at once"
    assert "one client" in remedy
    assert "framing" in remedy
    assert [s.readings[0].reason for s in driven.recorder.sets] == [Reason.LINK_DOWN]


async def test_the_words_are_taken_back_when_it_answers() -> None:
    server = Server()
    server.most = 0
    async with server.listening():
        driven = Driven(server)
        with pytest.raises(LinkError):
            await DRIVER.run(driven.config, driven.context)
        assert "" in driven.recorder.notes
        server.most = 9
        async with driven.running():
            await driven.until(4)

    assert driven.recorder.notes == {}


async def test_a_connection_that_cannot_be_opened_again_is_an_outage() -> None:
    server = Server()
    server.idle_s = 0.05
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(server.listening())
        driven = Driven(server)
        task = await stack.enter_async_context(driven.running())
        await driven.until(1)
        server.stop()
        with pytest.raises(LinkError, match="cannot connect"):
            await asyncio.wait_for(task, 5)

    assert driven.recorder.sets[-1].readings[0].reason is Reason.LINK_DOWN


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_write_that_was_sent_is_never_made_twice(how: str) -> None:
    server = Server(lambda _, request: how if request.function == 6 else "answer")
    async with server.listening():
        driven = Driven(server)
        async with driven.running():
            await driven.until(1)
            request = Request("write", "u1", "a", 5)
            driven.recorder.requests.put(request)
            with pytest.raises(CitygateError, match="not known"):
                await asyncio.wait_for(request.reply, 5)
            await driven.until(len(driven.sets()) + 2)

    assert sum(r.function == 6 for r in server.requests) == 1
    assert driven.sets()[-1] == GOOD


async def test_a_write_over_a_connection_that_was_closed_while_idle_is_made_once() -> None:
    server = Server()
    server.idle_s = 0.05
    async with server.listening():
        driven = Driven(server, every="10 s")
        async with driven.running():
            await driven.until(1)
            async with asyncio.timeout(60):
                while server.open:  # noqa: ASYNC110 - for a test, no event needed
                    await asyncio.sleep(0.01)
            request = Request("write", "u1", "a", 5)
            driven.recorder.requests.put(request)
            await asyncio.wait_for(request.reply, 5)

    assert sum(r.function == 6 for r in server.requests) == 1


async def test_a_connection_is_given_back_after_each_poll() -> None:
    server = Server()
    server.most = 1
    async with server.listening():
        driven = Driven(server, units=2, every="500 ms", keep_open=False)
        async with driven.running():
            await driven.until(3)
            async with asyncio.timeout(60):  # between two polls another client is served
                while server.open:  # noqa: ASYNC110 - for a test, no event needed
                    await asyncio.sleep(0.005)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(slave.tcp(1, 1, bytes.fromhex("0300000001")))
            assert await asyncio.wait_for(reader.readexactly(11), 5)
            writer.close()
            request = Request("read", "u2")
            driven.recorder.requests.put(request)
            await asyncio.wait_for(request.reply, 5)
            await driven.until(len(driven.sets()) + 2)

    assert driven.sets()[-1] == GOOD


async def test_a_connection_is_given_back_after_a_read_beside_the_polls_too() -> None:
    server = Server()
    async with server.listening():
        driven = Driven(server, units=2, every="600 s", keep_open=False)
        async with driven.running():
            await driven.until(1)
            request = Request("read", "u2")
            driven.recorder.requests.put(request)
            await asyncio.wait_for(request.reply, 5)
            async with asyncio.timeout(20):
                while server.open:  # noqa: ASYNC110 - for a test, no event needed
                    await asyncio.sleep(0.005)


async def test_a_device_that_needs_a_moment_after_the_connect_gets_it() -> None:
    server = Server()
    server.first_after_s = 0.15
    async with server.listening():
        driven = Driven(server, connect_pause="200 ms")
        async with driven.running():
            await driven.until(2)

    assert driven.sets()[0] == GOOD
    assert server.accepted == 1


def answer_in_a_thread(listening: socket.socket) -> None:
    """A device that answers at once, whatever our own loop is doing."""
    with contextlib.suppress(OSError):
        connection, _ = listening.accept()
        with connection:
            while frame := connection.recv(256):
                request = slave.parse_tcp(frame)
                connection.sendall(slave.tcp(request.number, request.unit, slave.words(3, [5, 6])))


async def test_an_answer_that_came_while_our_own_process_was_starved_is_no_timeout() -> None:
    class Starved:
        """The process gets no CPU for longer than the timeout, just when a request has left it."""

        def __init__(self, stream: ByteStream) -> None:
            self._stream = stream
            self.read_within, self.discard = stream.read_within, stream.discard

        async def write(self, data: bytes) -> None:
            await self._stream.write(data)
            time.sleep(0.35)  # noqa: ASYNC251 - the loop is meant to stand still

    @contextlib.asynccontextmanager
    async def starved_tcp(*args: object, **its: object) -> AsyncIterator[Starved]:
        async with open_tcp(*args, **its) as stream:  # type: ignore[arg-type]  # as the driver gives them
            yield Starved(stream)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer_in_a_thread, args=(listening,), daemon=True)
        thread.start()
        server = Server()
        server.port = listening.getsockname()[1]
        driven = Driven(server)
        driven.context = dataclasses.replace(driven.context, open_tcp=starved_tcp)  # type: ignore[arg-type]  # it passes on what it gets
        async with driven.running():
            await driven.until(3)

    assert driven.sets()[:3] == [GOOD] * 3
    assert driven.recorder.counts["timeouts"] == 0
