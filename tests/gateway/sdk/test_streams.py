"""Byte streams on real ptys and sockets."""

import asyncio
import fcntl
import os
import re
import socket
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.sdk.errors import LinkError, PortClosed
from gateway.sdk.streams import open_serial, open_tcp
from tests.support.box import free_port
from tests.support.rights import without_root


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
        assert await asyncio.wait_for(stream.read(), 20) == b"answer"


async def test_a_port_opened_again_is_heard(line: Line) -> None:
    for word in (b"first", b"second", b"third"):
        async with open_serial(line.path, 9600) as stream:
            os.write(line.master, word)
            assert await asyncio.wait_for(stream.read(), 20) == word


async def test_a_port_that_is_taken_is_refused_with_a_remedy(line: Line) -> None:
    async with open_serial(line.path, 9600):
        with pytest.raises(LinkError, match="another link of this program holds the port"):
            async with open_serial(line.path, 9600):
                pass


def in_words(refused: "pytest.ExceptionInfo[LinkError]") -> None:
    """A person can read it: no tuple, no number of an error."""
    assert not re.search(r"Errno|\(\d+, ", str(refused.value)), refused.value


async def test_the_program_that_holds_the_port_is_named(line: Line) -> None:
    hold = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", hold, line.path, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        await holder.stdout.readline()
        with pytest.raises(
            LinkError, match=rf"another program, .* \(process {holder.pid}\), holds the port"
        ) as refused:
            async with open_serial(line.path, 9600):
                pass
        in_words(refused)
    finally:
        holder.kill()
        await holder.wait()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parity": "E"}, "parity"),
        ({"parity": "O"}, "parity"),
        ({"data_bits": 7}, "data_bits"),
        ({"data_bits": 7, "parity": "E"}, "data_bits"),
        ({"stop_bits": 3}, "stop bit"),
        ({"baud_rate": -1}, "baud"),
        ({"baud_rate": 2**40}, "cannot open"),
    ],
)
async def test_what_a_line_cannot_do_is_refused_in_words_and_leaves_nothing_behind(
    line: Line, settings: dict[str, Any], said: str
) -> None:
    """A pty has neither parity nor seven bits."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(LinkError, match=said) as refused:
            async with open_serial(line.path, **{"baud_rate": 9600, **settings}):
                pass
        in_words(refused)

    assert len(os.listdir("/proc/self/fd")) == before
    async with open_serial(line.path, 9600, stop_bits=2):
        pass


@pytest.mark.parametrize("baud_rate", [50, 110, 300, 9600, 12345, 250_000, 3_000_000])
async def test_usual_and_odd_rates_are_set(line: Line, baud_rate: int) -> None:
    async with open_serial(line.path, baud_rate) as stream:
        os.write(line.master, b"x")
        assert await asyncio.wait_for(stream.read(), 20) == b"x"


async def test_what_is_no_serial_port_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        before = len(os.listdir("/proc/self/fd"))
        for place, said in {
            str(tmp_path): "Is a directory; a port is a file in it",
            str(tmp_path / "file"): "no serial port",
            str(tmp_path / "fifo"): "no serial port",
            str(tmp_path / "loop"): "symbolic links",
            str(tmp_path / "dangling"): "is the adapter plugged in",
            str(tmp_path / "socket"): "No such device or address; the name is there, but no working hardware",
            str(tmp_path / "file" / "x"): "Not a directory",
            "/dev/null": "no serial port",
            "/dev/\0": "null",
            "/dev/" + 300 * "x": "File name too long",
            "usb:nonsense": "is not usb:VID:PID",
        }.items():
            with pytest.raises(LinkError, match=said) as refused:
                async with open_serial(place, 9600):
                    pass
            in_words(refused)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_port_of_somebody_else_is_refused_with_the_group_to_join(line: Line) -> None:
    """Also one that was left marked exclusive: that binds all but root."""
    os.chmod(line.path, 0)
    with without_root(), pytest.raises(LinkError, match=r"Permission denied; .*dialout"):
        async with open_serial(line.path, 9600):
            pass
    os.chmod(line.path, 0o666)
    fcntl.ioctl(line.slave, termios.TIOCEXCL)
    with without_root(), pytest.raises(LinkError, match="holds the port"):
        async with open_serial(line.path, 9600):
            pass


@pytest.mark.parametrize("fails", [False, True])
async def test_a_port_that_was_closed_can_be_opened_by_others(line: Line, fails: bool) -> None:
    os.chmod(line.path, 0o666)
    if fails:
        with pytest.raises(LinkError):
            async with open_serial(line.path, 9600, data_bits=7):
                pass
    else:
        async with open_serial(line.path, 9600):
            pass
    with without_root():
        os.close(os.open(line.path, os.O_RDWR | os.O_NOCTTY))


async def test_a_pty_whose_holder_was_killed_can_be_opened_again(line: Line) -> None:
    os.chmod(line.path, 0o666)
    holder = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio, sys; from gateway.sdk.streams import open_serial\n"
        "async def hold():\n"
        "    async with open_serial(sys.argv[1], 9600):\n"
        "        print('held', flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(hold())",
        line.path,
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    with without_root(), pytest.raises(LinkError, match="holds the port"):
        async with open_serial(line.path, 9600):
            pass
    holder.kill()
    await holder.wait()
    with without_root():
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
            await asyncio.wait_for(reading, 20)


async def test_discard_throws_away_what_came_before(line: Line) -> None:
    async with open_serial(line.path, 9600) as stream:
        os.write(line.master, b"late answer")
        await asyncio.sleep(0)

        assert stream.discard() == b"late answer"
        os.write(line.master, b"answer")
        assert await asyncio.wait_for(stream.read(), 20) == b"answer"


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
            await asyncio.wait_for(stream.read(), 20)


def addresses(monkeypatch: pytest.MonkeyPatch, *found: tuple[str, int]) -> None:
    """The name `meter.example` has these addresses; other names are asked for as ever."""
    ask = socket.getaddrinfo

    def answer(host: Any, *more: Any, **its: Any) -> Any:
        if host != "meter.example":
            return ask(host, *more, **its)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", answer)  # the resolver is the one thing that a test cannot stand in for


async def listening() -> tuple[asyncio.Server, int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def deaf() -> socket.socket:
    """A listener whose queue is full: connecting to it is neither accepted nor refused."""
    sock = socket.socket()
    sock.bind(("127.0.0.2", 0))
    sock.listen(0)
    return sock


@pytest.mark.parametrize("first", ["refuses", "silent"])
async def test_the_second_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    server, port = await listening()
    silent = deaf()
    fill = [socket.socket() for _ in range(4)]
    for sock in fill:
        sock.setblocking(False)
        sock.connect_ex(silent.getsockname())
    dead = ("127.0.0.1", free_port()) if first == "refuses" else silent.getsockname()
    addresses(monkeypatch, dead, ("127.0.0.1", port))

    async with server, asyncio.timeout(25), open_tcp("meter.example", port, timeout_s=30) as stream:
        assert await stream.read() == b"hello"

    for sock in (silent, *fill):
        sock.close()


async def test_a_name_is_looked_up_anew_at_each_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    server, port = await listening()
    async with server:
        addresses(monkeypatch, ("127.0.0.1", free_port()))
        with pytest.raises(LinkError):
            async with open_tcp("meter.example", port):
                pass
        addresses(monkeypatch, ("127.0.0.1", port))
        async with open_tcp("meter.example", port) as stream:
            assert await stream.read() == b"hello"


async def test_when_no_address_answers_each_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses(monkeypatch, ("127.0.0.1", free_port()), ("127.0.0.3", free_port()))

    with pytest.raises(LinkError, match=r"meter.example:502: 127\.0\.0\.1: Connection refused; 127\.0\.0\.3: Conn"):
        async with open_tcp("meter.example", 502):
            pass


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "\ud800", "a\0b", "", "no-such-name.invalid"])
async def test_a_name_that_cannot_be_looked_up_is_a_refusal_in_words(host: str) -> None:
    with pytest.raises(LinkError, match=r"cannot connect|did not accept"):
        async with open_tcp(host, 1):
            pass


async def test_bytes_are_dated_by_their_arrival_not_by_their_reading(line: Line) -> None:
    async with open_serial(line.path, 9600) as stream:
        os.write(line.master, b"early")
        await asyncio.sleep(0.6)  # nobody reads; the loop runs
        os.write(line.master, b"late")
        await asyncio.sleep(0.05)

        assert await stream.read() == b"early"
        assert stream.age_s == pytest.approx(0.65, abs=0.3)
        assert await stream.read() == b"late"
        assert stream.age_s < 0.3
        assert stream.age_doubt_s == 0


async def test_bytes_that_lay_in_the_kernel_while_the_loop_stood_still_are_of_doubtful_age(line: Line) -> None:
    async with open_serial(line.path, 9600) as stream:
        await asyncio.sleep(0.1)
        os.write(line.master, b"old")
        time.sleep(1.6)  # noqa: ASYNC251 - the loop stands still

        assert await stream.read() == b"old"
        assert stream.age_s + stream.age_doubt_s >= 1.5

        await asyncio.sleep(1.2)
        os.write(line.master, b"new")
        assert await stream.read() == b"new"
        assert stream.age_doubt_s == 0


async def test_no_beat_is_left_when_the_last_stream_is_closed(line: Line) -> None:
    loop = asyncio.get_running_loop()
    before = len(getattr(loop, "_scheduled", ()))
    async with open_serial(line.path, 9600):
        pass

    assert len([handle for handle in getattr(loop, "_scheduled", ()) if not handle.cancelled()]) <= before
