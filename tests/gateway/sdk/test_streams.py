"""Byte streams on real ptys and sockets."""

import asyncio
import os
import tty
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gateway.sdk.errors import LinkError, PortClosed
from gateway.sdk.streams import open_serial, open_tcp
from tests.support.box import free_port


@dataclass
class Line:
    """A pty pair; the gateway opens `path`, the test is at `master`."""

    master: int
    path: str
    slave: int

    def hang_up(self) -> None:
        for descriptor in (self.master, self.slave):
            os.close(descriptor)
        self.master = self.slave = -1


@pytest.fixture
def line() -> Iterator[Line]:
    master, slave = os.openpty()
    tty.setraw(slave)
    line = Line(master, os.ttyname(slave), slave)
    yield line
    if line.master >= 0:
        line.hang_up()


async def test_bytes_pass_both_ways(line: Line) -> None:
    async with open_serial(line.path, 9600) as stream:
        await stream.write(b"ask")
        os.write(line.master, b"answer")

        assert os.read(line.master, 16) == b"ask"
        assert await asyncio.wait_for(stream.read(), 2) == b"answer"


async def test_a_port_opened_again_is_heard(line: Line) -> None:
    for word in (b"first", b"second", b"third"):
        async with open_serial(line.path, 9600) as stream:
            os.write(line.master, word)
            assert await asyncio.wait_for(stream.read(), 2) == word


async def test_a_port_that_is_taken_is_refused_with_a_remedy(line: Line) -> None:
    async with open_serial(line.path, 9600):
        with pytest.raises(LinkError, match="another program holds the port"):
            async with open_serial(line.path, 9600):
                pass


async def test_an_absent_port_is_refused_with_a_remedy() -> None:
    with pytest.raises(LinkError, match="is the adapter plugged in"):
        async with open_serial("/dev/no-such-port", 9600):
            pass


async def test_an_unplugged_port_closes_the_stream_at_once(line: Line) -> None:
    async with open_serial(line.path, 9600) as stream:
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        line.hang_up()

        with pytest.raises(PortClosed):
            await asyncio.wait_for(reading, 2)


async def test_discard_throws_away_what_came_before(line: Line) -> None:
    async with open_serial(line.path, 9600) as stream:
        os.write(line.master, b"late answer")
        await asyncio.sleep(0)

        assert stream.discard() == b"late answer"
        os.write(line.master, b"answer")
        assert await asyncio.wait_for(stream.read(), 2) == b"answer"


async def test_a_refused_connection_names_host_port_and_why() -> None:
    port = free_port()

    with pytest.raises(LinkError, match=rf"127\.0\.0\.1:{port}: Connection refused"):
        async with open_tcp("127.0.0.1", port):
            pass


async def test_a_peer_that_closes_closes_the_stream() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, open_tcp("127.0.0.1", port) as stream:
        assert await stream.read() == b"bye"
        with pytest.raises(PortClosed):
            await asyncio.wait_for(stream.read(), 2)
