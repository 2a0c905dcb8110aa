"""The local server: any bytes at its door, with page, read API and verbs over a real log behind it; whatever comes is answered or
turned away, nothing reaches the loop and no answer is a 500."""

import asyncio
import base64
import contextlib
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import structlog

from gateway.http import control
from gateway.http.server import MAX_PAGES, Server
from gateway.log import console
from gateway.sdk.errors import FrameError
from tests.fuzz.runner import NASTY_JSON, Parser, mutate_bytes, mutate_json
from tests.gateway.log.scene import CITY, a_set, opened
from tests.support.fake_view import NOON, FakeView, air, meter

TOKEN = "token-of-this-box"
PATIENCE_S = 30.0  # for an answer
VERBS: dict[str, dict[str, Any]] = {
    "status": {},
    "read": {"device": "meter-12"},
    "preview": {"device": "meter-12"},
    "pause": {"device": "meter-12", "seconds": 60},
    "echo": {"a": [1, {"b": None}]},
    "buffer-status": {},
    "buffer-held-list": {"broker": "milano", "entity": "urn:x", "device": "meter-1"},
    "buffer-held-show": {"id": 1},
    "buffer-requeue": {"ids": [1], "broker": "milano"},
    "buffer-purge": {"ids": [7], "device": "meter-9"},
    "buffer-export": {"after": -1, "device": "meter-1", "from": "2026-06-01T12:00:00Z", "to": "2026-06-02T12:00:00Z"},
    "buffer-verify": {"after": -1},
    "buffer-forget": {"consumer": "porto"},
}
PATHS = (
    "/", "/status", "/readyz", "/healthz", "/metrics", "/static/page.js", "/ngsi-ld/v1/jsonldContexts/citygate",
    "/ngsi-ld/v1/entities?type=ACMeasurement&limit=1&offset=1&count=true", "/ngsi-ld/v1/entities?options=keyValues&attrs=pm25,refDevice",
    "/ngsi-ld/v1/entities/urn:ngsi-ld:AirQualityObserved:1?format=concise", "/ngsi-ld/v1/entities?id=urn:ngsi-ld:ACMeasurement:1&limit=2",
)  # fmt: skip
HEADERS = (
    "Accept: application/geo+json", "Accept: application/ld+json;q=0.5, */*;q=x", "Connection: upgrade\r\nUpgrade: websocket",
    "Content-Length: 5", "Content-Length: -1", "Content-Length: 99999999999999999999", "Transfer-Encoding: chunked", "Expect: 100-continue",
    "Content-Encoding: deflate", "Content-Encoding: br", "Host: evil.example", "Host: [::1", "Host: \xff", "Host:", "Range: bytes=0-",
    "Authorization: Bearer \xff", "Authorization: Basic /////w==", "If-None-Match: *", "If-Modified-Since: x", "Cookie: a=" + "b" * 900,
    "X: " + "a" * 3000, "Content-Type: multipart/form-data; boundary=\xe9", "Content-Type: a/b; charset=utf-99", "X-Forwarded-For: ::",
)  # fmt: skip
IN_PATHS = (
    "%00", "%ff", "%ed%a0%80", "..", "//", "/../", "%2e%2e/", "?", "&", "=", "#", ";", "\xff", "limit=-1", "limit=" + "9" * 40, "limit=%D9%A3",
    "offset=" + "9" * 5000, "attrs=,", "type=*", "id=", "q=%", "+", " ", "\t", "{}", "http://", "options=", "count=1&", "*",
)  # fmt: skip


def _request(path: str, body: bytes | None = None, headers: tuple[str, ...] = (), method: str = "GET") -> bytes:
    more = (*headers, *((f"Content-Length: {len(body)}",) if body is not None else ()))
    head = "\r\n".join((f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {TOKEN}", *more))
    return (head + "\r\n\r\n").encode("latin-1") + (body or b"")


def _pages() -> tuple[bytes, ...]:
    login = "Authorization: Basic " + base64.b64encode(f"a:{TOKEN}".encode()).decode()
    one = [_request(path) for path in PATHS]
    return (
        *one,
        one[3] + one[1],
        _request("/status", headers=(login,)),
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    )


def mutate_page(random: Random, seed: bytes) -> bytes:
    """Another method, version or header, pieces in the path, the same again; now and then any bytes."""
    if random.random() < 0.4 or b"\r\n" not in seed:
        return mutate_bytes(random, seed)
    line, _, rest = seed.partition(b"\r\n")
    method, _, path = line.removesuffix(b" HTTP/1.1").partition(b" ")
    if random.random() < 0.3:
        method = random.choice(
            (b"HEAD", b"OPTIONS", b"POST", b"PUT", b"DELETE", b"CONNECT", b"PRI", b"get", b"X" * 300)
        )
    if random.random() < 0.7:
        at = random.randint(0, len(path))
        path = path[:at] + random.choice(IN_PATHS).encode("latin-1") + path[at:]
    headers = b"".join(random.choice(HEADERS).encode("latin-1") + b"\r\n" for _ in range(random.randint(0, 2)))
    case = (
        method
        + b" "
        + path
        + random.choice((b" HTTP/1.1", b" HTTP/1.0", b" HTTP/1.1", b" HTTP/9.9", b""))
        + b"\r\n"
        + headers
        + rest
    )
    return case * random.choice((1, 1, 1, 3))


def mutate_verb(random: Random, seed: bytes) -> bytes:
    """Other arguments, whole; now and then any bytes, another verb, or an end in the middle."""
    if random.random() < 0.15:
        return mutate_bytes(random, seed)
    head, _, body = seed.partition(b"\r\n\r\n")
    verb = head.split(b" ", 2)[1].decode()
    given = mutate_json(random, body)
    if random.random() < 0.3:
        name = random.choice(("ids", "id", "after", "all", "device", "broker", "seconds", "from", "consumer", ""))
        given = json.dumps({**json.loads(body), name: random.choice(NASTY_JSON)}).encode()
    case = _request(verb, given, method="POST")
    return case[: random.randint(len(case) // 2, len(case))] if random.random() < 0.05 else case


class _Wire(asyncio.Transport):
    """The other end of a connection: keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 8580)})
        self.written, self.closed = bytearray(), False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def writelines(self, data: Any) -> None:
        self.written += b"".join(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_reading(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class _Box:
    """Both listeners of a server in a loop of its own, over a small log."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.reached_loop: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.reached_loop.append(context))
        self.folder = tempfile.TemporaryDirectory()
        self.kept = contextlib.AsyncExitStack()
        self.page, self.verbs = self.loop.run_until_complete(self._open())

    async def _open(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        log = await opened(Path(self.folder.name), CITY)
        for n in range(20):
            await log.append(a_set(n))
        await log.commit()
        columns = await log.read(CITY.name, max_readings=4)
        assert columns is not None
        await log.held.hold("milano", "urn:x", "meter-1", columns, reason="400 no", at=NOON)
        view = FakeView(meter(1), meter(2), air(1))
        view.verbs = {**view.verbs, **console.verbs(log)}
        server = Server(view, listen="127.0.0.1:8580", token=TOKEN)
        page = await self.kept.enter_async_context(server._serving(MAX_PAGES, [], server._guard))
        verbs = await self.kept.enter_async_context(server._serving(MAX_PAGES, control.routes()))
        return page, verbs

    async def ask(self, factory: Callable[[], Any], case: bytes) -> bytes:
        """All that is answered; the connection is lost when nothing more comes."""
        wire, connection = _Wire(), factory()
        connection.connection_made(wire)
        for part in (case[: len(case) // 3], case[len(case) // 3 :]):
            if not wire.closed:
                connection.data_received(part)
            await asyncio.sleep(0)
        turns, before = 0, -1
        until_s = self.loop.time() + PATIENCE_S
        whole = any(case in parser.seeds for parser in PARSERS.values())  # is answered, however slow the machine is
        while not wire.closed and (  # quiet, or waiting for more of the request
            turns < 8 or (whole and not wire.written and self.loop.time() < until_s)
        ):
            turns, before = (0 if len(wire.written) != before else turns + 1), len(wire.written)
            await asyncio.sleep(0.002 if connection.busy and turns > 4 else 0)
        connection.connection_lost(None)
        while connection.busy:
            assert self.loop.time() < until_s, "no answer"
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        return bytes(wire.written)


@functools.cache
def _box() -> _Box:
    return _Box()


def _asked(which: str) -> Callable[[bytes], object]:
    def call(case: bytes) -> object:
        box = _box()
        with structlog.testing.capture_logs() as events:
            answer = box.loop.run_until_complete(box.ask(getattr(box, which), case))
        said, box.reached_loop = box.reached_loop, []
        assert not said, said
        assert not events, events
        assert b"HTTP/1.1 50" not in answer, answer
        if not answer.startswith(b"HTTP/1.1 2"):
            raise FrameError("refused", frame=case)
        return answer

    return call


PARSERS = {
    "http page": Parser(_pages()[:-2], _asked("page"), (FrameError,), mutate_page),
    "http verb": Parser(
        tuple(_request(f"/control/{verb}", json.dumps(given).encode(), method="POST") for verb, given in VERBS.items() if verb != "buffer-forget"),
        _asked("verbs"), (FrameError,), mutate_verb,
    ),
}  # fmt: skip
