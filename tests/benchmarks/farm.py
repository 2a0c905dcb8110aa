"""Modbus TCP slaves for benchmarks, as a process: one port per slave, every register pair a float32 counter.

    python tests/benchmarks/farm.py --ports 50 --floats 10     prints the ports as JSON, serves until killed

The nth answered read of a slave returns n in each float. It writes its own bytes.
"""

import argparse
import asyncio
import functools
import json
import struct


class Slave(asyncio.Protocol):
    """One connection to one slave; `counts` is shared by all connections of that slave."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 12:
            request, self._buffer = self._buffer[:12], self._buffer[12:]
            transaction, unit, function, _, count = struct.unpack(">HxxxxBBHH", request)
            self._counts[0] += 1
            body = struct.pack(">f", float(self._counts[0])) * (count // 2)
            head = struct.pack(">HHHBBB", transaction, 0, 3 + len(body), unit, function, len(body))
            self._transport.write(head + body)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ports", type=int, default=50)
    options = parser.parse_args()
    loop = asyncio.get_running_loop()
    servers = []
    for _ in range(options.ports):
        counts = [0]
        servers.append(await loop.create_server(functools.partial(Slave, counts), "127.0.0.1", 0))
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
