"""Where simulators speak: a pty linked at a path, a listening socket; and a recording played back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.sdk.config import LinkConfig
from gateway.sdk.errors import CitygateError
from gateway.sdk.recording import Chunk
from gateway.sdk.simulator import Faults, Playback, World, open_pty
from gateway.sdk.streams import ByteStream, open_serial, open_tcp
from tests.support.box import free_port


class Link(LinkConfig):
    """Only the place."""

    host: str = ""
    port: str = ""


async def briefly(seconds: float) -> None:
    await asyncio.sleep(min(seconds, 0.005))


WORLD = World(value=lambda *_: 0.0, served=lambda *_: None, faults=Faults(), sleep=briefly)


async def test_a_pty_is_linked_at_its_path_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "port"
    async with open_pty(str(path)) as pty, open_serial(str(path), 9600) as port:
        await port.write(b"ask")
        assert await pty.read() == b"ask"
        pty.write(b"answer")
        assert await port.read() == b"answer"

    assert not path.is_symlink()


async def test_a_pty_outlives_a_gateway_that_closes_and_opens_again(tmp_path: Path) -> None:
    path = str(tmp_path / "port")
    async with open_pty(path) as pty:
        for word in (b"first", b"second"):
            async with open_serial(path, 9600) as port:
                pty.write(word)
                assert await port.read() == word


async def test_a_simulator_never_takes_a_real_file(tmp_path: Path) -> None:
    real = tmp_path / "ttyUSB0"
    real.write_bytes(b"")

    with pytest.raises(CitygateError, match="never takes a real port"):
        async with open_pty(str(real)):
            pass


@contextlib.asynccontextmanager
async def playing(chunks: list[Chunk], **place: Any) -> AsyncIterator[ByteStream]:
    config = Link.model_validate({"driver": "any", **place})
    task = asyncio.create_task(Playback("any", chunks).run(config, WORLD))
    try:
        await asyncio.sleep(0.05)  # until it listens
        opened = open_tcp(place["host"], int(place["port"])) if "host" in place else open_serial(place["port"], 9600)
        async with opened as stream:
            yield stream
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_recording_answers_as_it_did_one_take_after_the_other(tmp_path: Path) -> None:
    chunks = [
        Chunk(0.0, ">", b"a?"), Chunk(0.01, "<", b"one"),
        Chunk(1.0, ">", b"b?"), Chunk(1.01, "<", b"b"),
        Chunk(2.0, ">", b"a?"), Chunk(2.01, "<", b"two"),
    ]  # fmt: skip
    async with playing(chunks, port=str(tmp_path / "port")) as port:
        heard = []
        for request in (b"a?", b"a?", b"b?", b"a?"):
            await port.write(request)
            heard.append(await port.read())
        await port.write(b"never recorded")
        assert await port.read_within(0.05) == b""

    assert heard == [b"one", b"two", b"b", b"one"]


async def test_an_answer_takes_over_the_transaction_number_of_the_request_now() -> None:
    chunks = [Chunk(0.0, ">", b"\x00\x07ask"), Chunk(0.01, "<", b"\x00\x07answer")]
    async with playing(chunks, host="127.0.0.1", port=str(free_port())) as connection:
        await connection.write(b"\x12\x34ask")
        assert await connection.read() == b"\x12\x34answer"


async def test_a_device_that_talks_by_itself_talks_on(tmp_path: Path) -> None:
    chunks = [Chunk(0.1, "<", b"tick"), Chunk(0.2, "<", b"tock")]
    async with playing(chunks, port=str(tmp_path / "port")) as port:
        heard = b""
        while len(heard) < 24:
            heard += await port.read()

    assert heard[:20] in b"ticktock" * 4  # it began before anybody listened
