"""Requests that are none, by the real server: answered or dropped, and the journal is not filled by whoever sends them."""

import asyncio
import contextlib
from pathlib import Path

import pytest
import structlog

from gateway.http import server as servers
from tests.gateway.http.test_door import serving, until_closed

BROKEN = {
    "version": b"GET / HTTP/1.\xff\r\n\r\n",
    "method": b"p\xffST / HTTP/1.1\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "TLS": bytes.fromhex("16030102000100") + b"\1\xfc\3\3" + b"x" * 500,
    "a head of 100 kB": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "a path of 100 kB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "chunks that are none": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "an encoding that is none": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "any bytes": bytes(range(256)) * 4,
}


async def said_to(path: Path, request: bytes, *, hang_up: bool = False) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    if hang_up:
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.05)
        return b""
    answer = await until_closed(reader)
    writer.close()
    return answer


@pytest.mark.parametrize("kind", BROKEN)
async def test_what_is_no_request_is_told_to_its_sender_and_not_to_the_journal(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with structlog.testing.capture_logs() as events:
        async with serving(tmp_path) as (_, path):
            for _ in range(3):
                answer = await said_to(path, BROKEN[kind])

    assert b" 50" not in answer.partition(b"\r\n")[0]
    assert events == []
    assert caplog.messages == []


def post(body: bytes, verb: str = "echo", length: int | None = None, more: str = "") -> bytes:
    head = f"POST /control/{verb} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}Content-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    "request_",
    [
        post(b'{"a": "' + b"x" * servers.MAX_BODY_BYTES + b'"}'),
        post(b"abcd", more="Content-Encoding: deflate\r\n"),
        post(b"abcd", more="Content-Encoding: gzip\r\n"),
        post(b""[:0], more="Content-Encoding: br\r\n"),
        post(b"[" * 60_000),
        post(b'{"a": ' * 10_000),
        post(b"\xff\xfe"),
        post(b'{"a": NaN}'),
        post(b'{"a": "\\ud800"}'),
    ],
)
async def test_arguments_that_cannot_be_read_are_told_with_words(tmp_path: Path, request_: bytes) -> None:
    with structlog.testing.capture_logs() as events:
        async with serving(tmp_path) as (_, path):
            answer = await said_to(path, request_)

    line = answer.partition(b"\r\n")[0]
    assert any(status in line for status in (b"200", b"400", b"413", b"422")), answer[:300]
    assert events == []


async def test_who_hangs_up_in_the_middle_of_the_arguments_is_no_event(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as events:
        async with serving(tmp_path) as (_, path):
            await said_to(path, post(b'{"a"', length=40), hang_up=True)
            assert b"200" in await said_to(path, post(b"{}"))

    assert events == []


async def test_a_fault_of_our_own_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_request: object) -> None:
        raise KeyError("page")

    monkeypatch.setattr(servers, "_healthz", broken)
    with structlog.testing.capture_logs() as events:
        async with serving(tmp_path) as (_, path):
            answer = await said_to(path, b"GET /healthz HTTP/1.0\r\nHost: x\r\n\r\n")

    assert b"500" in answer
    assert [(event["event"], type(event["exc_info"])) for event in events] == [("http_failed", KeyError)]
