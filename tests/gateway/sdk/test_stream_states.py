"""One stream after something has happened to it: filled, emptied, closed, heard, stood still, opened anew."""

import array
import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.sdk.errors import CitygateError, PortClosed
from gateway.sdk.streams import MAX_PENDING_BYTES, ON_TIME_S, ByteStream, Tap, open_tcp

WITHIN_S = 20.0
MUCH = 16 * MAX_PENDING_BYTES  # more than the kernel's buffers take


@contextlib.asynccontextmanager
async def connected(open_stream: Any = open_tcp) -> AsyncIterator[tuple[ByteStream, socket.socket]]:
    """A stream and the raw socket at its other end, which blocks when it is used."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with open_stream("127.0.0.1", server.getsockname()[1]) as stream:
            peer, _ = server.accept()
            with peer:
                yield stream, peer


async def read(stream: ByteStream, count: int) -> bytes:
    """So many bytes, in as many reads as it takes."""
    data = bytearray()
    async with asyncio.timeout(WITHIN_S):
        while len(data) < count:
            data += await stream.read()
    return bytes(data)


async def settled() -> None:
    """The loop has taken from the kernel what was there."""
    for _ in range(3):
        await asyncio.sleep(0.01)


def numbered(count: int) -> bytes:
    return array.array("I", range(count // 4)).tobytes()


async def test_more_than_anybody_reads_waits_in_the_kernel_and_comes_whole_and_in_order() -> None:
    sent = numbered(MUCH)
    async with connected() as (stream, peer):
        sending = asyncio.create_task(asyncio.to_thread(peer.sendall, sent))
        await asyncio.sleep(0.3)  # nobody reads meanwhile
        assert not sending.done()
        assert await read(stream, len(sent)) == sent
        await sending


async def test_what_comes_after_too_much_was_read_is_thrown_away_like_ever() -> None:
    async with connected() as (stream, peer):
        sending = asyncio.create_task(asyncio.to_thread(peer.sendall, bytes(2 * MAX_PENDING_BYTES)))
        await read(stream, 2 * MAX_PENDING_BYTES)
        await sending
        peer.sendall(b"late")
        assert stream.discard() == b"late"


async def test_a_stream_that_was_full_is_heard_again_after_all_was_thrown_away() -> None:
    async with connected() as (stream, peer):
        sending = asyncio.create_task(asyncio.to_thread(peer.sendall, bytes(2 * MAX_PENDING_BYTES)))
        await asyncio.sleep(0.3)
        thrown = len(stream.discard())
        assert thrown >= MAX_PENDING_BYTES
        assert await read(stream, 2 * MAX_PENDING_BYTES - thrown) == bytes(2 * MAX_PENDING_BYTES - thrown)
        await sending
        peer.sendall(b"fresh")
        assert await read(stream, 5) == b"fresh"


async def test_all_that_has_come_is_thrown_away_however_much_the_kernel_has() -> None:
    async with connected() as (stream, peer):
        peer.sendall(bytes(50_000))
        assert len(stream.discard()) == 50_000
        assert stream.discard() == b""
        peer.sendall(b"x")
        assert await stream.read_within(WITHIN_S) == b"x"


@pytest.mark.parametrize("within", [False, True])
async def test_what_came_before_the_end_is_read_before_the_end_is_told(within: bool) -> None:
    async with connected() as (stream, peer):
        peer.sendall(b"last words")
        peer.close()
        await settled()
        await settled()
        assert await (stream.read_within(1.0) if within else stream.read()) == b"last words"
        for _ in range(2):
            with pytest.raises(PortClosed):
                await (stream.read_within(1.0) if within else stream.read())
        with pytest.raises(PortClosed):
            await stream.write(b"x")


async def test_who_waits_with_a_limit_is_told_of_the_end_at_once() -> None:
    async with connected() as (stream, peer):
        waits = asyncio.create_task(stream.read_within(60.0))
        await settled()
        assert not waits.done()
        peer.close()
        with pytest.raises(PortClosed):
            await asyncio.wait_for(waits, WITHIN_S)


async def test_a_limit_that_has_passed_ends_no_later_read() -> None:
    async with connected() as (stream, peer):
        peer.sendall(b"a")
        assert await stream.read_within(0.2) == b"a"
        waits = asyncio.create_task(stream.read())
        await asyncio.sleep(0.4)
        assert not waits.done()
        peer.sendall(b"b")
        assert await asyncio.wait_for(waits, WITHIN_S) == b"b"
        assert await stream.read_within(0.01) == b""


async def test_more_than_the_kernel_takes_is_written_whole_and_in_order() -> None:
    sent = numbered(MUCH)

    def received(peer: socket.socket) -> bytes:
        data = bytearray()
        peer.settimeout(WITHIN_S)
        while len(data) < len(sent):
            data += peer.recv(65_536)
        return bytes(data)

    async with connected() as (stream, peer):
        writing = asyncio.create_task(stream.write(sent))
        await asyncio.sleep(0.1)
        assert not writing.done()
        assert await asyncio.to_thread(received, peer) == sent
        await writing
        await stream.write(b"more")
        assert peer.recv(4) == b"more"


async def test_bytes_that_came_together_are_as_old_as_the_first_of_them() -> None:
    async with connected() as (stream, peer):
        peer.sendall(b"a")
        await asyncio.sleep(0.06)
        peer.sendall(b"b")
        await settled()
        await stream.read()
        assert stream.age_s >= 0.06


async def test_only_what_lay_in_the_kernel_is_of_doubtful_age_and_not_what_came_later_or_on_a_fresh_stream() -> None:
    async with connected() as (stream, peer):
        peer.sendall(b"first")
        assert await read(stream, 5) == b"first"
        assert stream.age_doubt_s == 0.0, "nobody was late yet"

        await asyncio.sleep(0.3)
        async with connected() as (other, its_peer):
            peer.sendall(b"old")
            time.sleep(ON_TIME_S + 0.4)  # noqa: ASYNC251 - the process stands still
            assert await read(stream, 3) == b"old"
            assert ON_TIME_S < stream.age_doubt_s < 10
            its_peer.sendall(b"x")
            await asyncio.sleep(1.0)  # the loop is on time again
            await other.read()
        peer.sendall(b"new")
        assert await read(stream, 3) == b"new"
        assert stream.age_doubt_s == 0.0

        await asyncio.sleep(0.3)
        peer.sendall(b"again")
        time.sleep(ON_TIME_S + 0.4)  # noqa: ASYNC251 - the other stream is closed, this one is watched on
        assert await read(stream, 5) == b"again"
        assert stream.age_doubt_s > ON_TIME_S


async def test_a_tap_hears_while_it_listens_whatever_was_opened_before_and_meanwhile() -> None:
    tap = Tap()
    heard: list[tuple[str, bytes]] = []

    async def says(stream: ByteStream, peer: socket.socket, data: bytes) -> None:
        peer.sendall(data)
        await read(stream, len(data))
        await stream.write(data.upper())

    async with connected(tap.through(open_tcp)) as (early, its_peer):
        with tap.listen(lambda direction, data: heard.append((direction, data))):
            async with connected(tap.through(open_tcp)) as (late, late_peer):
                await says(early, its_peer, b"early")
                await says(late, late_peer, b"late")
                with pytest.raises(CitygateError, match="recorded already"), tap.listen(lambda direction, data: None):
                    pass
                await says(late, late_peer, b"on")
        assert heard == [
            ("<", b"early"),
            (">", b"EARLY"),
            ("<", b"late"),
            (">", b"LATE"),
            ("<", b"on"),
            (">", b"ON"),
        ]
        await says(early, its_peer, b"unheard")
        assert len(heard) == 6
        with tap.listen(lambda direction, data: heard.append((direction, data))):
            await says(early, its_peer, b"anew")
        assert heard[6:] == [("<", b"anew"), (">", b"ANEW")]
