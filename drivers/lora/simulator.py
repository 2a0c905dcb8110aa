"""Plays LoRa devices: a network server's events over MQTT, concentrators over UDP with their own cryptography, modems on a
pty. Payloads are written from the template's layout; frames, MIC and MQTT packets are built here from their specifications."""

import asyncio
import base64
import contextlib
import hashlib
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from drivers.lora.config import (
    ChirpstackLink,
    LoraDevice,
    LoraModemLink,
    LoraTemplate,
    RadioDevice,
    SemtechUdpLink,
    ServerDevice,
    TtsLink,
)
from drivers.lora.layout import SIZES, Frame, LayoutCodec, Meaning, Step
from gateway.sdk.config import LinkConfig
from gateway.sdk.errors import CitygateError
from gateway.sdk.simulator import World, open_pty

PERIOD_S = 10.0  # real devices speak every few minutes; nobody watches a demo for so long
CONCENTRATORS = ("0016c001f153a14c", "0016c001f153a14d")
DRIFT_S = 3600.0  # how far the clock of a drifting concentrator is off


class MqttError(CitygateError):
    """The simulator's own MQTT connection failed."""


# --- payloads ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Writer:
    """Writes one payload after a layout; `served` is what a reader can learn from it."""

    world: World
    device: str
    n: int
    big: bool
    data: bytes = b""
    served: dict[str, float] | None = None
    modes: dict[str, float] = field(
        default_factory=dict
    )  # numbers that choose what is read: the first that is asked for

    def steps(self, steps: tuple[Step, ...], turn: int = 0) -> None:
        for step in steps:
            self.step(step, turn)

    def step(self, step: Step, turn: int) -> None:
        if any(self.modes.get(name, 0) not in allowed for name, allowed in step.when.items()):
            return
        big = self.big if step.endian is None else step.endian == "big"
        if step.type is not None and step.at is None:
            size = SIZES[step.type]
            raw = self.raw(step.parts or (step,), step.type, turn)
            self.data += self.number(step.type, raw, size, big)
        elif step.skip is not None:
            self.data += bytes(step.skip)
        elif step.mask is not None:
            self.data += ((1 << len(step.mask.groups)) - 1).to_bytes(SIZES[step.mask.type], "big" if big else "little")
            for group in step.mask.groups:
                self.steps(group)
        elif step.repeat is not None and isinstance(step.repeat.times, int):
            for turn_now in range(step.repeat.times):
                self.steps(step.repeat.read, turn_now)
        elif step.tlv is not None:
            self.records(step)

    def records(self, step: Step) -> None:
        """Each record that measures something, once; not the ones that carry old measurements."""
        assert step.tlv is not None
        said: set[str] = set()
        for tag, group in step.tlv.entries.items():
            points = {part.point for inner in group for part in (inner, *inner.parts) if part.point}
            if not points or points & said or any(inner.time for inner in group):
                continue
            said |= points
            before = self.data
            self.data = b""
            self.steps(group)
            length = bytes((len(self.data),)) if step.tlv.length else b""
            self.data = before + bytes.fromhex(tag) + length + self.data
        self.data += bytes(step.tlv.tail)

    def raw(self, parts: tuple[Meaning, ...], kind: str, turn: int) -> float:
        """The number that carries the parts' values, as near as its steps allow."""
        whole = 0
        for part in parts:
            low, count = part.bits or (0, 8 * SIZES[kind])
            if part.point is None and part.name in self.modes:
                whole |= int(self.modes[part.name]) << low
            if part.point is None or part.polynomial is not None or count == 0:
                continue
            point = part.point.replace("{n}", str(turn))
            value = self.world.value(self.device, point, self.n)
            if kind[0] == "f" and part.bits is None:
                assert self.served is not None
                self.served[point] = float(f"{value:.6g}")
                return self.served[point]
            raw = self.code(part, value, count, signed=part.signed or (kind[0] == "i" and part.bits is None))
            whole |= (raw & ((1 << count) - 1)) << low
        if kind[0] == "i" and whole >> (8 * SIZES[kind] - 1):
            whole -= 1 << 8 * SIZES[kind]
        return whole

    def code(self, part: Meaning, value: float, count: int, *, signed: bool) -> int:
        assert self.served is not None
        assert part.point is not None
        if part.values is not None:
            return next(iter(part.values))
        if part.flag:
            self.served[part.point] = float(value >= 0.5)
            return int(value >= 0.5)
        wanted = value - part.offset
        if part.power != 1 and wanted > 0:
            wanted **= 1 / part.power
        raw = round(wanted * part.divide / part.scale - part.bias)
        low, high = (-(1 << count - 1), (1 << count - 1) - 1) if signed else (0, (1 << count) - 1)
        raw = min(max(raw, low), high)
        while raw in part.none or raw % (1 << count) in part.none:
            raw -= 1 if raw > low else -1
        carried = (raw + part.bias) * part.scale / part.divide
        if part.power < 0 and carried == 0:
            return raw
        self.served[part.point] = float(f"{carried**part.power + part.offset:.12g}")
        return raw

    def number(self, kind: str, raw: float, size: int, big: bool) -> bytes:
        if kind in ("f32", "f64"):
            return struct.pack((">" if big else "<") + {"f32": "f", "f64": "d"}[kind], raw)
        if kind.startswith("bcd"):
            digits = bytes.fromhex(f"{int(raw) % 10 ** (2 * size):0{2 * size}d}")
            return digits if big else digits[::-1]
        data = int(raw).to_bytes(size, "big" if big else "little", signed=kind[0] == "i")
        return data[2:] + data[:2] if kind == "u32w" else data


def _modes(steps: Iterable[Step]) -> dict[str, float]:
    """What each number that is asked for must be, so that the first steps that ask are read."""
    modes: dict[str, float] = {}
    for step in steps:
        for name, allowed in step.when.items():
            modes.setdefault(name, allowed[0])
        groups = (step.repeat.read,) if step.repeat else step.mask.groups if step.mask else ()
        groups = (*groups, *(step.tlv.entries.values() if step.tlv else ()))
        for group in groups:
            modes = {**_modes(group), **modes}
    return modes


def write_payload(device: str, template: LoraTemplate, n: int, world: World) -> tuple[int, bytes, dict[str, float]]:
    """Port, bytes and values of the nth uplink of a device.

    Raises:
        CitygateError: the template has no layout, so nobody knows what to send.
    """
    if not isinstance(template.codec, LayoutCodec):
        raise CitygateError(f"{device}: no simulator for a template without a layout")
    frame: Frame = next(frame for frame in template.codec.frames if not frame.ignore)
    writer = _Writer(world, device, n, template.codec.endian == "big", served={}, modes=_modes(frame.read))
    writer.steps(frame.read)
    data = writer.data
    if frame.starts:
        start = bytes.fromhex(frame.starts)
        data = start + data[len(start) :]
    assert writer.served is not None
    return (frame.port[0] if frame.port else 1), data, writer.served


def _template(device: LoraDevice) -> LoraTemplate:
    assert isinstance(device.template, LoraTemplate)
    return device.template


def _says(device: str, world: World) -> bool:
    return device not in world.faults.silent


def _has(world: World, fault: str, device: str) -> bool:
    return device in world.faults.extra.get(fault, ())


def _served(device: str, values: dict[str, float], world: World) -> None:
    world.served(device, values)


# --- a network server over MQTT ------------------------------------------------------------------------------------------


class _Publisher:
    """MQTT 3.1.1, QoS 1, one packet at a time. Source: OASIS MQTT 3.1.1, sections 2 and 3."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._number = reader, writer, 0

    async def hello(self, username: str, password: str) -> None:
        flags = 0x02 | (0x80 if username else 0) | (0x40 if password else 0)
        body = _text("MQTT") + bytes((4, flags)) + (0).to_bytes(2, "big")
        body += _text(f"citygate-simulator-{random.getrandbits(48):x}")
        body += (_text(username) if username else b"") + (_text(password) if password else b"")
        await self._send(0x10, body)
        answer = await self._reader.readexactly(4)
        if answer[0] != 0x20 or answer[3] != 0:
            raise MqttError(f"the broker refuses the simulator: code {answer[3]}")

    async def publish(self, topic: str, body: bytes) -> None:
        self._number = self._number % 65535 + 1
        await self._send(0x32, _text(topic) + self._number.to_bytes(2, "big") + body)
        answer = await self._reader.readexactly(4)
        if answer[0] != 0x40 or int.from_bytes(answer[2:], "big") != self._number:
            raise MqttError("no acknowledgement from the broker")

    async def _send(self, kind: int, body: bytes) -> None:
        length, left = b"", len(body)
        while True:
            left, seven = divmod(left, 128)
            length += bytes((seven | (0x80 if left else 0),))
            if not left:
                break
        self._writer.write(bytes((kind,)) + length + body)
        await self._writer.drain()


def _text(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(2, "big") + raw


@contextlib.asynccontextmanager
async def publisher(url: str, username: str = "", password: str = "") -> AsyncIterator[_Publisher]:
    """A connection to the broker."""
    parts = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 1883)
    except OSError as error:
        raise MqttError(f"the simulator needs a broker at {url}: {error}") from error
    try:
        talk = _Publisher(reader, writer)
        await talk.hello(username, password)
        yield talk
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@dataclass(slots=True)
class _Sent:
    """One uplink as a network server passes it on."""

    dev_eui: str
    f_cnt: int
    port: int
    payload: bytes
    at: datetime

    @property
    def time(self) -> str:
        return self.at.isoformat(timespec="microseconds").replace("+00:00", "Z")

    @property
    def dev_addr(self) -> str:
        return hashlib.sha256(self.dev_eui.encode()).hexdigest()[:8]


def chirpstack_event(sent: _Sent) -> tuple[str, bytes]:
    """Topic and body as ChirpStack v4 writes them; zero values are left out."""
    unique = hashlib.sha256(f"{sent.dev_eui} {sent.f_cnt} {sent.time}".encode()).hexdigest()
    body: dict[str, Any] = {
        "deduplicationId": f"{unique[:8]}-{unique[8:12]}-{unique[12:16]}-{unique[16:20]}-{unique[20:32]}",
        "time": sent.time,
        "deviceInfo": {"applicationId": "sim", "deviceName": sent.dev_eui, "devEui": sent.dev_eui},
        "devAddr": sent.dev_addr,
        "fPort": sent.port,
        "data": base64.b64encode(sent.payload).decode(),
        "rxInfo": [{"gatewayId": eui, "rssi": -60 - 20 * n, "snr": 9.5 - n} for n, eui in enumerate(CONCENTRATORS)],
        "txInfo": {"frequency": 868100000, "modulation": {"lora": {"bandwidth": 125000, "spreadingFactor": 7}}},
    }
    if sent.f_cnt:
        body["fCnt"] = sent.f_cnt
    return f"application/sim/device/{sent.dev_eui}/event/up", json.dumps(body).encode()


def tts_message(sent: _Sent) -> tuple[str, bytes]:
    """Topic and body as The Things Stack v3 writes them."""
    uplink: dict[str, Any] = {
        "session_key_id": "c2ltdWxhdGVk",
        "f_port": sent.port,
        "frm_payload": base64.b64encode(sent.payload).decode(),
        "rx_metadata": [
            {"gateway_ids": {"gateway_id": "roof", "eui": CONCENTRATORS[0].upper()}, "rssi": -60, "snr": 9.5}
        ],
        "settings": {"data_rate": {"lora": {"bandwidth": 125000, "spreading_factor": 7}}, "frequency": "868100000"},
        "received_at": sent.time,
    }
    if sent.f_cnt:
        uplink["f_cnt"] = sent.f_cnt
    ids = {"device_id": f"eui-{sent.dev_eui}", "dev_eui": sent.dev_eui.upper(), "dev_addr": sent.dev_addr.upper()}
    body = {"end_device_ids": ids, "received_at": sent.time, "uplink_message": uplink}
    return f"v3/sim@ttn/devices/eui-{sent.dev_eui}/up", json.dumps(body).encode()


@dataclass(frozen=True, slots=True)
class ServerSimulator:
    """Publishes what a network server would. See `gateway.sdk.simulator.Simulator`. Own faults (`faults.extra`, sets of
    devices): `loss` (the counter goes on, the uplink is lost), `twice` (sent again), `junk` (rubbish before it)."""

    name: str

    async def run(self, config: LinkConfig, world: World) -> None:
        """Publish until cancelled; the broker at the link's url must run."""
        assert isinstance(config, ChirpstackLink | TtsLink)
        async with publisher(config.url, config.username, config.password) as talk:
            n = 0
            while True:
                for device, its in config.devices.items():
                    if _says(device, world):
                        await self._speak(talk, device, its, n, world)
                n += 1
                await world.sleep(PERIOD_S)

    async def _speak(self, talk: _Publisher, device: str, its: ServerDevice, n: int, world: World) -> None:
        port, payload, values = write_payload(device, _template(its), n, world)
        if _has(world, "loss", device):
            return
        message = chirpstack_event if self.name == "chirpstack" else tts_message
        topic, body = message(_Sent(its.dev_eui, n, port, payload, datetime.now(UTC)))
        if _has(world, "junk", device):
            await talk.publish(topic, b'{"deviceInfo": ')
        _served(device, values, world)
        await talk.publish(topic, body)
        if _has(world, "twice", device):
            await talk.publish(topic, body)


# --- concentrators over UDP ------------------------------------------------------------------------------------------------


def aes(key: bytes, block: bytes) -> bytes:
    """One AES block."""
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)


def aes_cmac(key: bytes, data: bytes) -> bytes:
    """AES-CMAC by hand. Source: RFC 4493."""

    def double(block: bytes) -> bytes:
        number = int.from_bytes(block, "big") << 1
        return ((number & ((1 << 128) - 1)) ^ (0x87 if number >> 128 else 0)).to_bytes(16, "big")

    first = double(aes(key, bytes(16)))
    second = double(first)
    blocks = [data[i : i + 16] for i in range(0, len(data), 16)] or [b""]
    last = blocks[-1]
    blocks[-1] = (
        _xor(last, first)
        if len(last) == 16
        else _xor(last.ljust(16, b"\x80")[: len(last) + 1].ljust(16, b"\0"), second)
    )
    state = bytes(16)
    for block in blocks:
        state = aes(key, _xor(state, block))
    return state


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def phy_payload(dev_addr: str, nwk_s_key: bytes, app_s_key: bytes, f_cnt: int, port: int, payload: bytes) -> bytes:
    """An unconfirmed uplink. Source: LoRaWAN 1.0.4, sections 4.3 and 4.4."""
    address = bytes.fromhex(dev_addr)[::-1]
    counter = f_cnt.to_bytes(4, "little")
    head = b"\x40" + address + b"\x80" + counter[:2] + bytes((port,))  # unconfirmed data up, ADR
    clear = b""
    for i in range(0, len(payload), 16):
        block = b"\x01\0\0\0\0\0" + address + counter + b"\0" + bytes((i // 16 + 1,))
        piece = payload[i : i + 16]
        clear += _xor(piece, aes(app_s_key, block)[: len(piece)])
    signed = head + clear
    b0 = b"\x49\0\0\0\0\0" + address + counter + b"\0" + bytes((len(signed),))
    return signed + aes_cmac(nwk_s_key, b0 + signed)[:4]


def push_data(token: int, gateway: str, packets: list[dict[str, Any]]) -> bytes:
    """A PUSH_DATA datagram. Source: Lora-net packet_forwarder PROTOCOL.TXT, section 3.2."""
    return b"\x02" + struct.pack("<H", token) + b"\0" + bytes.fromhex(gateway) + json.dumps({"rxpk": packets}).encode()


def rxpk(phy: bytes, *, rssi: int = -60, snr: float = 9.5, at: datetime | None = None) -> dict[str, Any]:
    """One received packet as a forwarder describes it."""
    packet: dict[str, Any] = {
        "tmst": random.getrandbits(32),
        "freq": 868.1,
        "stat": 1,
        "modu": "LORA",
        "datr": "SF7BW125",
        "codr": "4/5",
        "rssi": rssi,
        "lsnr": snr,
        "size": len(phy),
        "data": base64.b64encode(phy).decode(),
    }
    if at is not None:
        packet["time"] = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return packet


class ConcentratorSimulator:
    """Two concentrators that hear the link's devices. Own faults (`faults.extra`): sets of devices for `loss` (counter goes
    on), `replay` (an old frame again), `bad_mic`; numbers for `junk` (datagrams of rubbish before each uplink); `drift`
    (true: the concentrators' clocks are an hour off)."""

    name = "semtech-udp"

    async def run(self, config: LinkConfig, world: World) -> None:
        """Send until cancelled to where the link listens."""
        assert isinstance(config, SemtechUdpLink)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            n = 0
            while True:
                for device, its in config.devices.items():
                    if _says(device, world):
                        for datagram in _uplink(device, its, n, world):
                            await loop.sock_sendto(sock, datagram, (config.host, config.port))
                n += 1
                await world.sleep(PERIOD_S)


def _uplink(device: str, its: RadioDevice, n: int, world: World) -> list[bytes]:
    """The datagrams of the nth uplink of a device, copies and faults included."""
    port, payload, values = write_payload(device, _template(its), n, world)
    abp = its.activation.abp
    f_cnt = n if abp.f_cnt is None else abp.f_cnt + 1 + n
    keys = bytes.fromhex(abp.nwk_s_key), bytes.fromhex(abp.app_s_key)
    phy = phy_payload(abp.dev_addr, *keys, f_cnt, port, payload)
    out = [random.randbytes(random.randrange(64)) for _ in range(int(world.faults.extra.get("junk", 0)))]
    if _has(world, "loss", device):
        return out
    if _has(world, "bad_mic", device):
        return [*out, push_data(n, CONCENTRATORS[0], [rxpk(phy[:-1] + bytes((phy[-1] ^ 1,)))])]
    if _has(world, "replay", device) and f_cnt:
        out.append(push_data(n, CONCENTRATORS[0], [rxpk(phy_payload(abp.dev_addr, *keys, f_cnt - 1, port, payload))]))
    at = datetime.now(UTC) + timedelta(seconds=DRIFT_S if world.faults.extra.get("drift") else 0)
    _served(device, values, world)
    for k, gateway in enumerate(CONCENTRATORS):
        out.append(push_data(n % 65536, gateway, [rxpk(phy, rssi=-80 + 20 * k, snr=5.0 + k, at=at)]))
    return out


# --- a modem on a pty -------------------------------------------------------------------------------------------------------


class ModemSimulator:
    """A receiving modem. Own fault (`faults.extra`): `noise`, a set of devices."""

    name = "lora-modem"

    async def run(self, config: LinkConfig, world: World) -> None:
        """Print what is heard at the link's port until cancelled; what the gateway tells the modem is not needed."""
        assert isinstance(config, LoraModemLink)
        async with open_pty(config.port) as line:
            n = 0
            while True:
                for device, its in config.devices.items():
                    if _says(device, world):
                        _, payload, values = write_payload(device, _template(its), n, world)
                        if _has(world, "noise", device):
                            line.write(b"\xff+RC\r\n")
                        _served(device, values, world)
                        line.write(_printed(config.modem, its.address or 0, payload))
                n += 1
                await world.sleep(PERIOD_S)


def _printed(modem: str, address: int, payload: bytes) -> bytes:
    if modem == "rylr":
        return b"+RCV=%d,%d,%s,-60,9\r\n" % (address, len(payload), payload)
    digits = payload.hex().upper().encode()
    if modem == "rn2483":
        return b"radio_rx  " + digits + b"\r\n"
    return b'+TEST: LEN:%d, RSSI:-60, SNR:9\r\n+TEST: RX "%s"\r\n' % (len(payload), digits)


CHIRPSTACK = ServerSimulator("chirpstack")
TTS = ServerSimulator("tts")
SEMTECH_UDP = ConcentratorSimulator()
LORA_MODEM = ModemSimulator()
