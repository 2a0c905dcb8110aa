"""RTU, ASCII, TCP, TLS, RTU over TCP; ports by what is plugged in; a port that goes and comes back."""

import asyncio
import contextlib
import dataclasses
import datetime
import os
import ssl
import time
import tty
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from drivers.modbus.config import ModbusConfig
from drivers.modbus.driver import DRIVER
from gateway.sdk.errors import LinkError
from gateway.sdk.streams import open_serial, open_tcp, usb_path
from gateway.sdk.testing import RecordingContext
from tests.support import modbus_slave as slave
from tests.support.modbus_config import link, template

ONE_WORD = template(a={"address": 0})


def config(**its: object) -> ModbusConfig:
    return link({"one": {"template": ONE_WORD, "unit_id": 1, "every": "50 ms"}}, timeout="300 ms", **its)


async def first_value(its: ModbusConfig) -> object:
    """What the driver reads first over a real stream."""
    recorder = RecordingContext()
    context = dataclasses.replace(
        recorder.context, open_serial=open_serial, open_tcp=open_tcp, sleep=asyncio.sleep, monotonic_s=time.monotonic
    )
    running = asyncio.create_task(DRIVER.run(its, context))
    try:
        async with asyncio.timeout(60):
            while not any(s.values() for s in recorder.sets):
                if running.done():
                    running.result()
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return next(s.values()["a"] for s in recorder.sets if s.values())


@contextlib.asynccontextmanager
async def server(answer: object, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1024):
                writer.write(answer(data))  # type: ignore[operator]  # a function of the test
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await listening.wait_closed()


def answer_tcp(frame: bytes) -> bytes:
    request = slave.parse_tcp(frame)
    return slave.tcp(request.number, request.unit, slave.words(3, [4711]))


def answer_ascii(line: bytes) -> bytes:
    assert line == b":010300000001FB\r\n"  # as in the specification: LRC is the two's complement of the sum
    body = b"\x01" + slave.words(3, [4711])
    return b":" + (body + bytes((-sum(body) & 0xFF,))).hex().upper().encode() + b"\r\n"


async def test_plain_tcp() -> None:
    async with server(answer_tcp) as port:
        assert await first_value(config(host="127.0.0.1", port=port)) == 4711


async def test_rtu_over_tcp() -> None:
    async with server(lambda frame: slave.rtu(1, slave.words(3, [4711]))) as port:
        assert await first_value(config(host="127.0.0.1", port=port, framing="rtu")) == 4711


async def test_ascii() -> None:
    async with server(answer_ascii) as port:
        assert await first_value(config(host="127.0.0.1", port=port, framing="ascii")) == 4711


@dataclass
class Authority:
    """Certificates made for the test."""

    folder: Path

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "device")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("device")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.file = self.folder / "both.pem"
        pem = serialization.Encoding.PEM
        secret = self.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.file.write_bytes(certificate.public_bytes(pem) + secret)

    def of_server(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.file))
        context.load_cert_chain(self.file)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


async def test_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with server(answer_tcp, authority.of_server()) as port:
        tls = {"ca": str(authority.file), "certificate": str(authority.file), "server_name": "device"}
        assert await first_value(config(host="127.0.0.1", port=port, tls=tls)) == 4711


@pytest.mark.parametrize(
    ("tls", "why"),
    [({}, "certificate is not trusted"), ({"ca": "/does/not/exist"}, "cannot use the certificates")],
)
async def test_tls_that_cannot_be_is_a_link_error(tmp_path: Path, tls: dict[str, str], why: str) -> None:
    async with server(answer_tcp, Authority(tmp_path).of_server()) as port:
        with pytest.raises(LinkError, match=why):
            await first_value(config(host="127.0.0.1", port=port, tls={**tls, "server_name": "device"}))


@dataclass
class Adapter:
    device: str
    vid: int | None
    pid: int | None
    serial_number: str | None
    location: str | None


PLUGGED = [
    Adapter("/dev/ttyS0", None, None, None, None),
    Adapter("/dev/ttyUSB0", 0x0403, 0x6001, "A50285BI", "1-1.1"),
    Adapter("/dev/ttyUSB1", 0x1A86, 0x7523, None, "1-1.2"),
    Adapter("/dev/ttyUSB2", 0x1A86, 0x7523, None, "1-1.4"),
]


@pytest.mark.parametrize(
    ("port", "path"),
    [
        ("usb:0403:6001", "/dev/ttyUSB0"),
        ("usb:0403:6001:A50285BI", "/dev/ttyUSB0"),
        ("usb:1a86:7523@1-1.4", "/dev/ttyUSB2"),
        ("usb:1A86:7523@1-1.2", "/dev/ttyUSB1"),
    ],
)
def test_a_port_is_found_by_what_is_plugged_in(port: str, path: str) -> None:
    assert usb_path(port, PLUGGED) == path


@pytest.mark.parametrize(
    ("port", "why"),
    [
        ("usb:1a86:7523", "2 adapters fit; add serial number or @location: usb:1a86:7523@1-1.2"),
        ("usb:0403:6001:OTHER", "no such adapter is plugged in; there are: usb:0403:6001:A50285BI@1-1.1"),
        ("usb:banana", "is not usb:VID:PID"),
    ],
)
def test_a_port_that_is_not_there_or_not_the_only_one_says_so(port: str, why: str) -> None:
    with pytest.raises(LinkError, match=why):
        usb_path(port, PLUGGED)


def answer_length(master: int) -> None:
    """Answer a request with the number of its bytes."""
    os.write(master, slave.rtu(1, slave.words(3, [len(os.read(master, 256))])))


async def test_an_unplugged_port_is_a_link_error_and_opens_again_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    for _ in range(2):  # the second time is the adapter plugged in again, with another number
        master, end = os.openpty()
        tty.setraw(end)
        path.unlink(missing_ok=True)
        path.symlink_to(os.ttyname(end))

        loop = asyncio.get_running_loop()
        loop.add_reader(master, answer_length, master)
        assert await first_value(config(port=str(path))) == 8
        loop.remove_reader(master)
        os.close(master)
        os.close(end)
        with pytest.raises(LinkError):
            await first_value(config(port=str(path)))


@pytest.mark.parametrize(
    "its",
    [
        {"port": ""},
        {"host": "192.0.2.1", "port": "banana"},
        {"host": "192.0.2.1", "port": 70000},
        {"framing": "tcp"},
        {"tls": {}},
        {"host": "192.0.2.1", "tls": {"key": "x"}},
    ],
)
def test_a_link_that_cannot_be_is_refused_when_it_is_loaded(its: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        config(**its)
