"""Byte streams over a serial line or TCP, with an exclusive lock on the port."""

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import socket
import termios
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gateway.sdk.errors import CitygateError, LinkError, PortClosed
from gateway.sdk.libraries import missing

if TYPE_CHECKING:
    import ssl

    import serial

READ_BYTES = 4096
MAX_PENDING_BYTES = 1 << 20  # more unread than this means nobody reads: stop taking it from the kernel
MAX_PENDING_CHUNKS = 4096  # then more is put to the last one
TOGETHER_S = 0.1  # bytes that come so close to each other are one chunk, with one time
BEAT_S = 0.25
ON_TIME_S = 1.0  # a loop that came round within this was on time
NEXT_ADDRESS_S = 0.3  # how long an address may be silent before the name's next one is tried beside it
MAX_ADDRESSES = 8  # of one name


class ByteStream(Protocol):
    """Bytes in both directions. One reader at a time."""

    @property
    def age_s(self) -> float:
        """How long before now the bytes arrived that were read last: `now - age_s` dates them, also when nobody read
        for a while."""

    @property
    def age_doubt_s(self) -> float:
        """How much older still they may be: the kernel held them while our process did not run. 0.0 normally."""

    async def read(self) -> bytes:
        """At least one byte, as they come. Raises PortClosed when the other end is gone."""

    async def read_within(self, timeout_s: float) -> bytes:
        """As `read`, but b"" when nothing came in time."""

    def discard(self) -> bytes:
        """Throw away what has come but was not read; returns it."""

    async def write(self, data: bytes) -> None:
        """Hand all bytes to the kernel. Raises PortClosed."""


Hear = Callable[[Literal[">", "<"], bytes], None]


class Tap:
    """Hears what goes over the streams that are opened through it, without being in the way: while nobody listens it
    costs one comparison a read."""

    def __init__(self) -> None:
        self._streams: set[Any] = set()
        self._hear: Hear | None = None

    def through(self, open_stream: Callable[..., AbstractAsyncContextManager[ByteStream]]) -> Any:
        """The same opener; its streams can be heard."""

        @contextlib.asynccontextmanager
        async def opened(*args: Any, **kwargs: Any) -> AsyncIterator[ByteStream]:
            async with open_stream(*args, **kwargs) as stream:
                self._streams.add(stream)
                stream.hear = self._hear  # type: ignore[attr-defined]  # ours have it, any other ignores it
                try:
                    yield stream
                finally:
                    self._streams.discard(stream)

        return opened

    @contextlib.contextmanager
    def listen(self, hear: Hear) -> Iterator[None]:
        """`hear` is called with `>` and the bytes written, `<` and the bytes that came. One listener at a time."""
        if self._hear is not None:
            raise CitygateError("this link is being recorded already")
        self._set(hear)
        try:
            yield
        finally:
            self._set(None)

    def _set(self, hear: Hear | None) -> None:
        self._hear = hear
        for stream in self._streams:
            stream.hear = hear


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


class _Pulse:
    """When a loop last came round: what the kernel then had not yet, came later. It beats while a stream is open."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._streams = 0
        self._timer: asyncio.TimerHandle | None = None
        self._last_s = self._before_s = 0.0

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "_Pulse":
        """The one of this loop."""
        return _PULSES.setdefault(loop, cls(loop))

    def join(self) -> None:
        """One more stream is open."""
        self._streams += 1
        if self._streams == 1:
            self._last_s = self._before_s = _boot_s()
            self._beat()

    def leave(self) -> None:
        """One stream less."""
        self._streams -= 1
        if not self._streams and self._timer is not None:
            self._timer.cancel()

    def late_s(self, now_s: float) -> float:
        """How long bytes that are found now may have lain in the kernel; 0.0 while the loop is on time.

        Between two beats the loop has asked the kernel at least once, so what is found now was not there at the last
        beat but one. (After the last one it may not have been asked: that beat itself may have been late.)
        """
        late_s = now_s - self._before_s
        return late_s if late_s > ON_TIME_S else 0.0

    def _beat(self) -> None:
        self._before_s, self._last_s = self._last_s, _boot_s()
        loop = self._loop()
        if loop is not None:
            self._timer = loop.call_later(BEAT_S, self._beat)


_PULSES: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Pulse]" = weakref.WeakKeyDictionary()


def _boot_s() -> float:
    """Monotonic, and goes on while the box sleeps."""
    return clock_gettime(CLOCK_BOOTTIME)


# Bytes that came together, when they were taken from the kernel, and how much earlier they may have come.
_Chunk = tuple[bytes | bytearray, float, float]


class _Descriptor:
    """A non-blocking file descriptor on the running loop: serial port, pty or socket.

    It stays registered with the loop and takes bytes as they come: registering anew for each read costs two system
    calls a read, and a connection that the other end closes between two polls would be noticed only by the next one.
    """

    def __init__(self, fd: int, what: str) -> None:
        self._fd = fd
        self._what = what
        self._loop = asyncio.get_running_loop()
        self._pulse = _Pulse.of(self._loop)
        self._pending: deque[_Chunk] = deque()
        self._pending_bytes = 0
        self._lost: PortClosed | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._watching = False
        self._read_at_s = 0.0
        self.age_doubt_s = 0.0
        self.hear: Hear | None = None
        self._watch()
        self._pulse.join()

    @property
    def age_s(self) -> float:
        return max(0.0, _boot_s() - self._read_at_s) if self._read_at_s else 0.0

    def _watch(self) -> None:
        if not self._watching and self._lost is None:
            self._loop.add_reader(self._fd, self._take)
            self._watching = True

    def _unwatch(self) -> None:
        if self._watching:
            self._loop.remove_reader(self._fd)
            self._watching = False

    def close(self) -> None:
        """Leave the loop; the owner closes the descriptor."""
        self._lost = self._lost or PortClosed(f"{self._what} closed")
        self._unwatch()
        self._pulse.leave()

    def _closed(self, error: OSError | None) -> PortClosed:
        return PortClosed(f"{self._what} closed{f': {os.strerror(error.errno)}' if error and error.errno else ''}")

    def _take(self) -> None:
        """Move what the kernel has to `_pending`; the loop calls it when there is something."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:  # EIO: unplugged, or the pty's other end closed
            self._lost = self._closed(error)
        else:
            if data:
                self._keep(data)
            else:
                self._lost = self._closed(None)
        if self._lost is not None or self._pending_bytes >= MAX_PENDING_BYTES:
            self._unwatch()
        if self._waiter is not None:
            _wake(self._waiter)

    def _keep(self, data: bytes) -> None:
        now_s = _boot_s()
        doubt_s = self._pulse.late_s(now_s)
        if not (self._pending and self._joined(data, now_s, doubt_s)):
            self._pending.append((data, now_s, doubt_s))
        self._pending_bytes += len(data)
        if self.hear is not None:
            self.hear("<", data)

    def _joined(self, data: bytes, now_s: float, doubt_s: float) -> bool:
        """Put to the bytes before, which came at the same time, or are more chunks than are kept apart."""
        last, at_s, its_doubt_s = self._pending[-1]
        if (now_s - at_s >= TOGETHER_S or its_doubt_s != doubt_s) and len(self._pending) < MAX_PENDING_CHUNKS:
            return False
        if isinstance(last, bytes):
            last = bytearray(last)
            self._pending[-1] = (last, at_s, its_doubt_s)
        last.extend(data)
        return True

    def _handed_over(self) -> bytes:
        """The oldest bytes that came together; b"" when there are none."""
        data = b""
        if self._pending:
            chunk, self._read_at_s, self.age_doubt_s = self._pending.popleft()
            data = bytes(chunk)
            self._pending_bytes -= len(data)
        self._watch()
        return data

    async def read(self) -> bytes:
        while not self._pending:
            if self._lost is not None:
                raise self._lost
            await self._something(self._loop.create_future())
        return self._handed_over()

    async def read_within(self, timeout_s: float) -> bytes:
        if not self._pending:
            if self._lost is not None:
                raise self._lost
            waiter = self._loop.create_future()
            timer = self._loop.call_later(timeout_s, _wake, waiter)
            try:
                await self._something(waiter)
            finally:
                timer.cancel()
            if not self._pending and self._lost is not None:
                raise self._lost
        return self._handed_over()

    async def _something(self, waiter: "asyncio.Future[None]") -> None:
        self._waiter = waiter
        try:
            await waiter
        finally:
            self._waiter = None

    def discard(self) -> bytes:
        before = -1
        while self._lost is None and before < self._pending_bytes < MAX_PENDING_BYTES:
            before = self._pending_bytes
            self._take()
        data = b"".join(chunk for chunk, _, _ in self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        self._watch()
        return data

    async def write(self, data: bytes) -> None:
        if self._lost is not None:
            raise self._lost
        if self.hear is not None:
            self.hear(">", data)
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                raise self._closed(error) from error

    async def _writable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(self._fd, _wake, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(self._fd)


_PTY_MAJORS = range(136, 144)  # Linux, Documentation/admin-guide/devices.txt: Unix98 pty slaves
_TAKEN = "another program holds the port (`fuser` shows which); ModemManager likes to"
_NO_HARDWARE = "the name is there, but no working hardware behind it: another port? replug the adapter"
_REMEDIES = {
    errno.ENOENT: "is the adapter plugged in? `ls /dev/serial/by-id` lists what is there",
    errno.ENODEV: _NO_HARDWARE,
    errno.ENXIO: _NO_HARDWARE,
    errno.EIO: _NO_HARDWARE,
    errno.EACCES: "add the daemon's user to the group dialout",
    errno.EPERM: "the service may not use this device: see DeviceAllow= of its unit",
    errno.EBUSY: _TAKEN,
    errno.EAGAIN: _TAKEN,
    errno.EISDIR: "a port is a file in it, as /dev/serial/by-id/usb-…",
    errno.ENOTTY: "this is no serial port; `ls /dev/serial/by-id` lists those that are there",
    errno.EINVAL: "it cannot do what is asked of it: see baud_rate, parity, data_bits, stop_bits",
    errno.EMFILE: "too many files are open: see LimitNOFILE= of the service",
}


def _refusal(port: str, path: str, error: Exception) -> LinkError:
    """Why a port cannot be opened, in words."""
    number = _number(error) or _number(error.__context__) or 0
    said, remedy = os.strerror(number) if number else str(error), _REMEDIES.get(number, "")
    if number in (errno.EBUSY, errno.EAGAIN) and (holder := _holder(path)):
        remedy = f"{holder} holds the port"
    return LinkError(f"cannot open {port}: {said}{f'; {remedy}' if remedy else ''}")


def _number(error: BaseException | None) -> int | None:
    """The errno of an error; termios.error is no OSError and keeps it in its arguments."""
    number = error.args[0] if isinstance(error, termios.error) and error.args else getattr(error, "errno", None)
    return number if isinstance(number, int) else None


def _holder(path: str) -> str:
    """The program that has this port open or locked, as far as we may see; "" when we may not."""
    with contextlib.suppress(OSError, ValueError):
        there = os.stat(path)
        inode = f"{os.major(there.st_dev):02x}:{os.minor(there.st_dev):02x}:{there.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if len(words) > 5 and words[1] == "FLOCK" and words[5] == inode:
                return _program(int(words[4]))
    with contextlib.suppress(OSError):
        real = os.path.realpath(path)
        for folder in Path("/proc").glob("[0-9]*/fd"):
            with contextlib.suppress(OSError):  # it ended, or is another user's
                if any(os.readlink(folder / name) == real for name in os.listdir(folder)):
                    return _program(int(folder.parent.name))
    return ""


def _program(pid: int) -> str:
    if pid == os.getpid():
        return "another link of this program"
    with contextlib.suppress(OSError):
        return f"another program, {Path(f'/proc/{pid}/comm').read_text().strip()} (process {pid}),"
    return f"another program (process {pid})"


class UsbPort(Protocol):
    """What is known of a USB serial adapter."""

    device: str
    vid: int | None
    pid: int | None
    serial_number: str | None
    location: str | None


_USB = re.compile(r"usb:([0-9a-f]{4}):([0-9a-f]{4})(?::([^@]+))?(?:@(.+))?", re.IGNORECASE)


def usb_path(port: str, adapters: Iterable[UsbPort] | None = None) -> str:
    """The device file of the one adapter that `usb:VID:PID[:SERIAL][@LOCATION]` names.

    Args:
        port: e.g. `usb:0403:6001:A50285BI`, or `usb:1a86:7523@1-1.4` for cheap adapters that have no serial number.
        adapters: those plugged in; None asks the system.

    Raises:
        LinkError: none such is plugged in, several are, or it is no such name.
    """
    match = _USB.fullmatch(port)
    if match is None:
        raise LinkError(f"{port} is not usb:VID:PID[:SERIAL][@LOCATION], as in usb:0403:6001:A50285BI")
    if adapters is None:
        from serial.tools.list_ports import comports

        adapters = comports()
    there = [its for its in adapters if its.vid is not None]
    found = [
        its
        for its in there
        if (its.vid, its.pid) == (int(match[1], 16), int(match[2], 16))
        and match[3] in (None, its.serial_number)
        and match[4] in (None, its.location)
    ]
    if len(found) == 1:
        return found[0].device
    if not found:
        names = ", ".join(_usb_name(its) for its in there) or "none"
        raise LinkError(f"cannot open {port}: no such adapter is plugged in; there are: {names}")
    names = ", ".join(_usb_name(its) for its in found)
    raise LinkError(f"cannot open {port}: {len(found)} adapters fit; add serial number or @location: {names}")


def _usb_name(its: UsbPort) -> str:
    serial = f":{its.serial_number}" if its.serial_number else ""
    return f"usb:{its.vid:04x}:{its.pid:04x}{serial}@{its.location} ({its.device})"


@contextlib.asynccontextmanager
async def open_serial(
    port: str, baud_rate: int, *, parity: str = "N", stop_bits: float = 1, data_bits: int = 8
) -> AsyncIterator[ByteStream]:
    """A serial port, held exclusively: flock, which other well-behaved programs respect, and but on ptys TIOCEXCL, which
    binds every user but root.

    Args:
        port: a path, or `usb:VID:PID[:SERIAL][@LOCATION]`, which is looked up anew at each open: numbers of ttyUSB move.

    Raises:
        LinkError: absent, not permitted or taken; the message says which and what to do.
    """
    path = usb_path(port) if port[:4].lower() == "usb:" else port
    try:
        device = _configured(path, baud_rate, parity, stop_bits, data_bits)
    except (OSError, ValueError, OverflowError, termios.error) as error:
        raise _refusal(port, path, error) from error
    try:
        with contextlib.closing(_Descriptor(device.fileno(), port)) as stream:
            yield stream
    finally:
        _release(device)


def _configured(path: str, baud_rate: int, parity: str, stop_bits: float, data_bits: int) -> "serial.Serial":
    """The port, open, locked and set as asked; when anything of it fails, nothing of it is left."""
    try:
        import serial  # only who has a serial link pays for it
    except ImportError as error:
        raise missing("serial") from error

    device = serial.Serial(
        path,
        baud_rate,
        parity=parity,
        stopbits=stop_bits,
        bytesize=data_bits,
        timeout=0,
        write_timeout=0,
        exclusive=True,
    )
    try:
        if not _is_pty(device.fileno()):  # its mark would outlive a process that is killed, and shut us out as well
            fcntl.ioctl(device.fileno(), termios.TIOCEXCL)
        attributes = termios.tcgetattr(device.fileno())
        attributes[6][termios.VMIN] = 1  # with pyserial's 0 a read on a quiet line looks like an unplugged port
        termios.tcsetattr(device.fileno(), termios.TCSANOW, attributes)
        set_to = termios.tcgetattr(device.fileno())[2]
        bits = {termios.CS7: 7, termios.CS8: 8}.get(set_to & termios.CSIZE)
        if bits != data_bits or bool(set_to & termios.PARENB) != (parity != "N"):
            # a pty takes parity without a word and does not do it
            raise termios.error(errno.EINVAL, f"it does not do {data_bits}{parity}{stop_bits:g}")
    except BaseException:
        _release(device)
        raise
    return device


def _is_pty(handle: int) -> bool:
    return os.major(os.fstat(handle).st_rdev) in _PTY_MAJORS


def _release(device: "serial.Serial") -> None:
    with contextlib.suppress(OSError):  # unplugged
        device.close()


@contextlib.asynccontextmanager
async def open_tcp(
    host: str, port: int, *, timeout_s: float = 5.0, tls: "ssl.SSLContext | None" = None, server_name: str = ""
) -> AsyncIterator[ByteStream]:
    """A TCP connection with keep-alive and without Nagle's delay, encrypted when `tls` is given.

    Args:
        server_name: what the certificate must be for; default: the host.

    Raises:
        LinkError: no such host, refused, no answer within `timeout_s`, or a certificate that is not trusted.
    """
    if tls is not None:
        async with _open_tls(host, port, timeout_s, tls, server_name or host) as secured:
            yield secured
        return
    sock = await _connected(host, port, timeout_s)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with contextlib.closing(_Descriptor(sock.fileno(), f"{host}:{port}")) as stream:
            yield stream
    finally:
        sock.close()


async def _connected(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connected socket to the first address of the name that accepts; the name is looked up anew each time."""
    tried: dict[str, str] = {}
    try:
        async with asyncio.timeout(timeout_s):
            found = _addresses(host, port) or await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
            return await _first(_in_turns(found)[:MAX_ADDRESSES], tried)
    except TimeoutError:
        where = f" ({', '.join(tried)})" if len(tried) > 1 else ""
        raise LinkError(
            f"{host}:{port}{where} did not accept the connection within {timeout_s:g} s; is it reachable?"
        ) from None
    except (OSError, ValueError, OverflowError) as error:  # ValueError: no name at all, also one that IDNA refuses
        said = "; ".join(f"{address}: {why}" for address, why in tried.items()) if len(tried) > 1 else _words(error)
        raise LinkError(f"cannot connect to {host}:{port}: {said}") from error


def _words(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)


def _addresses(host: str, port: int) -> list[Any]:
    """What an address in figures stands for; nothing for a name, which is looked up in a thread."""
    with contextlib.suppress(OSError):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return []


def _in_turns(found: list[Any]) -> list[Any]:
    """Addresses of different families in turns, in the system's order: one family that leads nowhere does not hide the other."""
    families: dict[Any, list[Any]] = {}
    for info in dict.fromkeys(found):
        families.setdefault(info[0], []).append(info)
    longest = max((len(its) for its in families.values()), default=0)
    return [its[n] for n in range(longest) for its in families.values() if n < len(its)]


async def _first(infos: list[Any], tried: dict[str, str]) -> socket.socket:
    """The socket of the first address that accepts. The next one is tried when one has failed, or is silent for a while.

    Args:
        tried: address -> what became of it.
    """
    failure: Exception = OSError("no address")
    waiting, connecting = list(infos), set[asyncio.Task[socket.socket]]()
    try:
        while waiting or connecting:
            if waiting:
                connecting.add(asyncio.create_task(_connect(waiting.pop(0), tried), name="connect"))
            some = NEXT_ADDRESS_S if waiting else None
            done, connecting = await asyncio.wait(connecting, timeout=some, return_when=asyncio.FIRST_COMPLETED)
            winners = [task.result() for task in done if task.exception() is None]
            for late in winners[1:]:
                late.close()
            if winners:
                return winners[0]
            for task in done:
                failure = task.exception() or failure  # type: ignore[assignment]  # _connect lets out OSError alone
        raise failure
    finally:
        for task in connecting:
            task.cancel()
        for ended in await asyncio.gather(*connecting, return_exceptions=True):
            if isinstance(ended, socket.socket):
                ended.close()


async def _connect(info: Any, tried: dict[str, str]) -> socket.socket:
    family, kind, protocol, _, address = info
    tried[address[0]] = "no answer"
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException as error:
        if isinstance(error, OSError):
            tried[address[0]] = _words(error)
        if sock is not None:
            sock.close()
        raise
    return sock


@contextlib.asynccontextmanager
async def _open_tls(
    host: str, port: int, timeout_s: float, tls: "ssl.SSLContext", server_name: str
) -> AsyncIterator[ByteStream]:
    import ssl

    deadline_s = asyncio.get_running_loop().time() + timeout_s
    sock = await _connected(host, port, timeout_s)
    try:
        async with asyncio.timeout_at(deadline_s):
            reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=server_name)
    except TimeoutError:
        raise LinkError(f"{host}:{port} made no TLS connection within {timeout_s:g} s; is it reachable?") from None
    except ssl.SSLCertVerificationError as error:
        raise LinkError(f"{host}:{port}: its certificate is not trusted: {error.verify_message}") from error
    except OSError as error:  # ssl.SSLError is one
        raise LinkError(f"cannot connect to {host}:{port} by TLS: {error.strerror or error}") from error
    try:
        with contextlib.closing(_Secured(reader, writer, f"{host}:{port}")) as stream:
            yield stream
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await writer.wait_closed()


def _unread_s(left_at_s: float, asked_s: float, came_at_s: float) -> float:
    """How long nobody had been reading when bytes came at once; asyncio keeps them without a time."""
    gap_s = asked_s - left_at_s
    return gap_s if gap_s > ON_TIME_S and came_at_s - asked_s < BEAT_S else 0.0


class _Secured:
    """A TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> None:
        self._reader, self._writer, self._what = reader, writer, what
        self._reading: asyncio.Task[bytes] | None = None
        self._pulse = _Pulse.of(asyncio.get_running_loop())
        self._pulse.join()
        self._left_at_s = _boot_s()
        self.age_s = 0.0
        self.age_doubt_s = 0.0
        self.hear: Hear | None = None

    async def read(self) -> bytes:
        return await self._taken(None)

    async def read_within(self, timeout_s: float) -> bytes:
        return await self._taken(timeout_s)

    async def _taken(self, timeout_s: float | None) -> bytes:
        """What comes; the read goes on when time is up, so that no byte is lost."""
        asked_s = _boot_s()
        self._reading = self._reading or asyncio.create_task(self._reader.read(READ_BYTES), name=f"read {self._what}")
        try:
            done, _ = await asyncio.wait({self._reading}, timeout=timeout_s)
        except asyncio.CancelledError:
            self._reading.cancel()
            raise
        finally:
            self._left_at_s, left_at_s = _boot_s(), self._left_at_s
        if not done:
            return b""
        reading, self._reading = self._reading, None
        self.age_doubt_s = self._pulse.late_s(self._left_at_s) + _unread_s(left_at_s, asked_s, self._left_at_s)
        try:
            data = reading.result()
        except OSError as error:
            raise PortClosed(f"{self._what} closed: {error}") from error
        if not data:
            raise PortClosed(f"{self._what} closed")
        if self.hear is not None:
            self.hear("<", data)
        return data

    def discard(self) -> bytes:
        if self._reading is None or not self._reading.done() or self._reading.exception() is not None:
            return b""
        reading, self._reading = self._reading, None
        return reading.result()

    async def write(self, data: bytes) -> None:
        if self.hear is not None:
            self.hear(">", data)
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise PortClosed(f"{self._what} closed: {error}") from error

    def close(self) -> None:
        """No read is left behind."""
        self._pulse.leave()
        if self._reading is not None:
            self._reading.cancel()
