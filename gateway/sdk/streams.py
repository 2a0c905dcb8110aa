"""Byte streams over a serial line or TCP, with an exclusive lock on the port."""

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import socket
import termios
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gateway.sdk.errors import CitygateError, LinkError, PortClosed

if TYPE_CHECKING:
    import ssl

READ_BYTES = 4096
MAX_PENDING_BYTES = 1 << 20  # more unread than this means nobody reads: stop taking it from the kernel


class ByteStream(Protocol):
    """Bytes in both directions. One reader at a time."""

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


class _Descriptor:
    """A non-blocking file descriptor on the running loop: serial port, pty or socket.

    It stays registered with the loop and takes bytes as they come: registering anew for each read costs two system
    calls a read, and a connection that the other end closes between two polls would be noticed only by the next one.
    """

    def __init__(self, fd: int, what: str) -> None:
        self._fd = fd
        self._what = what
        self._loop = asyncio.get_running_loop()
        self._pending = b""
        self._lost: PortClosed | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._watching = False
        self.hear: Hear | None = None
        self._watch()

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
            self._pending += data
            if self.hear is not None:
                self.hear("<", data)
            if not data:
                self._lost = self._closed(None)
        if self._lost is not None or len(self._pending) >= MAX_PENDING_BYTES:
            self._unwatch()
        if self._waiter is not None:
            _wake(self._waiter)

    def _handed_over(self) -> bytes:
        data, self._pending = self._pending, b""
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
        while self._lost is None and before < len(self._pending) < MAX_PENDING_BYTES:
            before = len(self._pending)
            self._take()
        return self._handed_over()

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


_REMEDIES = {
    errno.ENOENT: "is the adapter plugged in? `ls /dev/serial/by-id` lists what is there",
    errno.EACCES: "add the daemon's user to the group dialout",
    errno.EBUSY: "another program holds the port (`fuser` shows which); ModemManager likes to",
    errno.EAGAIN: "another program holds the port (`fuser` shows which); ModemManager likes to",
}


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
    """A serial port, held exclusively (flock, which other well-behaved programs respect, and TIOCEXCL, which binds
    every user but root). Works on ptys.

    Args:
        port: a path, or `usb:VID:PID[:SERIAL][@LOCATION]`, which is looked up anew at each open: numbers of ttyUSB move.

    Raises:
        LinkError: absent, not permitted or taken; the message says which and what to do.
    """
    import serial  # only who has a serial link pays for it

    path = usb_path(port) if port.startswith("usb:") else port
    try:
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
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or 0
        said = os.strerror(number) if number else str(error)
        remedy = _REMEDIES.get(number, "")
        raise LinkError(f"cannot open {port}: {said}{f'; {remedy}' if remedy else ''}") from error
    try:
        fcntl.ioctl(device.fileno(), termios.TIOCEXCL)
        attributes = termios.tcgetattr(device.fileno())
        attributes[6][termios.VMIN] = 1  # with pyserial's 0 a read on a quiet line looks like an unplugged port
        termios.tcsetattr(device.fileno(), termios.TCSANOW, attributes)
        with contextlib.closing(_Descriptor(device.fileno(), port)) as stream:
            yield stream
    finally:
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
    loop = asyncio.get_running_loop()
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(timeout_s):
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            failure: OSError | None = None
            for family, kind, protocol, _, address in infos:
                sock = socket.socket(family, kind, protocol)
                sock.setblocking(False)
                try:
                    await loop.sock_connect(sock, address)
                    break
                except OSError as error:
                    failure = error
                    sock.close()
                    sock = None
            if sock is None:
                raise failure or OSError("no address")
    except TimeoutError:
        if sock is not None:
            sock.close()
        raise LinkError(
            f"{host}:{port} did not accept the connection within {timeout_s:g} s; is it reachable?"
        ) from None
    except OSError as error:
        said = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise LinkError(f"cannot connect to {host}:{port}: {said}") from error
    except asyncio.CancelledError:
        if sock is not None:
            sock.close()
        raise
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with contextlib.closing(_Descriptor(sock.fileno(), f"{host}:{port}")) as stream:
            yield stream
    finally:
        sock.close()


@contextlib.asynccontextmanager
async def _open_tls(
    host: str, port: int, timeout_s: float, tls: "ssl.SSLContext", server_name: str
) -> AsyncIterator[ByteStream]:
    import ssl

    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=server_name)
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


class _Secured:
    """A TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> None:
        self._reader, self._writer, self._what = reader, writer, what
        self._reading: asyncio.Task[bytes] | None = None
        self.hear: Hear | None = None

    async def read(self) -> bytes:
        return await self._taken(None)

    async def read_within(self, timeout_s: float) -> bytes:
        return await self._taken(timeout_s)

    async def _taken(self, timeout_s: float | None) -> bytes:
        """What comes; the read goes on when time is up, so that no byte is lost."""
        self._reading = self._reading or asyncio.create_task(self._reader.read(READ_BYTES), name=f"read {self._what}")
        try:
            done, _ = await asyncio.wait({self._reading}, timeout=timeout_s)
        except asyncio.CancelledError:
            self._reading.cancel()
            raise
        if not done:
            return b""
        reading, self._reading = self._reading, None
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
        if self._reading is not None:
            self._reading.cancel()
