"""A server of bytes: it reads a request and writes what the test says, HTTP or not. It shares no code with any HTTP library."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

ERRORS = "https://uri.etsi.org/ngsi-ld/errors/"


def http(status: int, body: bytes = b"", *, kind: str = "", headers: bytes = b"", length: str | None = None) -> bytes:
    """One answer as bytes; `headers` stand as they are, each line with its end."""
    said = f"Content-Type: {kind}\r\n".encode() if kind else b""
    size = f"Content-Length: {len(body) if length is None else length}\r\n".encode() if length != "" else b""
    return f"HTTP/1.1 {status} X\r\nConnection: close\r\n".encode() + said + size + headers + b"\r\n" + body


def as_json(status: int, document: Any, *, headers: bytes = b"", kind: str = "application/json") -> bytes:
    return http(status, json.dumps(document).encode(), kind=kind, headers=headers)


def problem(name: str = "BadRequestData", status: int = 400, **more: Any) -> dict[str, Any]:
    return {"type": ERRORS + name, "title": "no good", "detail": "because", "status": status, **more}


class Raw:
    """Answers each request by `answer(method and path)`; what is after the answer is closed.

    Attributes:
        endless: bytes that are repeated behind the answer until the client goes.
    """

    def __init__(self, answer: Callable[[str], bytes] | bytes, *, endless: bytes = b"", pause_s: float = 0.0) -> None:
        self.answer = answer
        self.endless = endless
        self.pause_s = pause_s
        self.requests: list[str] = []

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Yields the base URL."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            for line in head.lower().split("\r\n"):
                if line.startswith("content-length:"):
                    await reader.readexactly(int(line.partition(":")[2]))
            what = head.partition(" HTTP/")[0]
            self.requests.append(what)
            writer.write(self.answer(what) if callable(self.answer) else self.answer)
            await writer.drain()
            while self.endless:
                writer.write(self.endless)
                await writer.drain()
                await asyncio.sleep(self.pause_s)
        with contextlib.suppress(OSError):
            writer.close()
