"""An HTTP sink for benchmarks, as a process: takes any POST at once with 204, counts requests and bytes. It has no
temporal API, so that history goes in order, one request for state and past, as the floor program sends it.

python tests/benchmarks/sink.py                prints its port, serves until killed
GET /stats                                     {"requests", "bytes", "entities"}
"""

import asyncio
import json
from typing import ClassVar


class Sink(asyncio.Protocol):
    """One keep-alive connection."""

    stats: ClassVar[dict[str, int]] = {"requests": 0, "bytes": 0, "entities": 0}

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            start = head.find(b"content-length:")
            size = int(head[start + 15 :].split(b"\r", 1)[0]) if start >= 0 else 0
            if len(self._buffer) < end + 4 + size:
                return
            body, self._buffer = self._buffer[end + 4 : end + 4 + size], self._buffer[end + 4 + size :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"post"):
            self.stats["requests"] += 1
            self.stats["bytes"] += len(body)
            self.stats["entities"] += body.count(b'"id":')
            self._transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            return
        if b"/temporal" in head[:200]:  # no temporal API, as Orion-LD without its history option
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        answer = json.dumps(self.stats).encode() if head.startswith(b"get /stats") else b"[]"
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer
        )


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
