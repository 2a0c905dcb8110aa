"""Modbus requests and replies as bytes: PDUs, and the frames around them on a serial line (RTU, ASCII) and in TCP.

Sources: MODBUS Application Protocol Specification V1.1b3; MODBUS over Serial Line V1.02; MODBUS Messaging on TCP/IP V1.0b.
"""

import struct
from dataclasses import dataclass
from typing import Literal, Protocol

from gateway.sdk.errors import CitygateError, FrameError
from gateway.sdk.framing import crc16_modbus

Table = Literal["coil", "discrete", "holding", "input"]

READ_FUNCTIONS: dict[Table, int] = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}
TABLES: dict[int, Table] = {function: table for table, function in READ_FUNCTIONS.items()}
WRITE_COIL, WRITE_REGISTER, WRITE_COILS, WRITE_REGISTERS = 5, 6, 15, 16
MAX_READ_WORDS, MAX_READ_BITS = 125, 2000  # specification 6.1-6.4
MAX_WRITE_WORDS = 123
MAX_RTU_BYTES = 256

EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "server device failure",
    5: "acknowledge: still working",
    6: "server device busy",
    7: "negative acknowledge",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target device failed to respond",
}
BUSY_EXCEPTIONS = frozenset({5, 6})
GAVE_UP = 11
ABSENT_EXCEPTIONS = frozenset({10, GAVE_UP})  # a gateway speaks for a unit that does not

_READ = struct.Struct(">BHH")
_MBAP = struct.Struct(">HHHB")
_OWN = struct.Struct(">HH")  # transaction number and protocol, what a header begins with
MAX_LENGTH_OFF = 2  # bytes by which devices were seen to miscount their replies
MAX_EXCEPTION_BYTES = 4  # two, but some devices count a byte more, or the CRC that RTU would have


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to one unit, and what its reply must look like.

    Attributes:
        pdu: function code and data.
        reply_head: the bytes a good reply PDU begins with: function and byte count, or the echo of a write.
        reply_size: bytes of a good reply PDU; 0 when only the reply knows.
        what: for messages, e.g. "input 0-19".
    """

    unit: int
    pdu: bytes
    reply_head: bytes
    reply_size: int
    what: str

    @property
    def function(self) -> int:
        return self.pdu[0]

    @property
    def pdu_if_read(self) -> bytes | None:
        """What an echo of a read carries; it is never the reply, although that of 24 coils from 0x03xx may look so."""
        return self.pdu if self.function in TABLES else None


class DeviceException(CitygateError):
    """The device answered with an exception. Never leaves the driver.

    Attributes:
        code: as in the specification, section 7.
    """

    def __init__(self, ask: Ask, code: int) -> None:
        self.code = code
        self.meaning = EXCEPTIONS.get(code, "unknown exception")
        super().__init__(f"unit {ask.unit} answers exception {code} ({self.meaning}) to {ask.what}")


def read_request(unit: int, table: Table, address: int, count: int) -> Ask:
    """Ask for `count` registers or bits from 0-based wire address `address`."""
    function = READ_FUNCTIONS[table]
    bits = table in ("coil", "discrete")
    if not 1 <= count <= (MAX_READ_BITS if bits else MAX_READ_WORDS) or address < 0 or address + count > 0x10000:
        raise ValueError(f"cannot read {count} from {table} {address} in one request")
    size = (count + 7) // 8 if bits else 2 * count
    return Ask(
        unit,
        _READ.pack(function, address, count),
        bytes((function, size)),
        2 + size,
        f"{table} {address}" + (f"-{address + count - 1}" if count > 1 else ""),
    )


def write_request(unit: int, table: Table, address: int, data: bytes, *, multiple: bool = False) -> Ask:
    """Ask to write registers (`data` as on the wire) or one coil (`data` is one byte, 0 or 1).

    One register is written with function 6 unless `multiple` asks for function 16.
    """
    if table == "coil":
        pdu = _READ.pack(WRITE_COIL, address, 0xFF00 if data[0] else 0)
        return Ask(unit, pdu, pdu, len(pdu), f"write of coil {address}")
    if table != "holding":
        raise ValueError(f"{table} registers cannot be written")
    words = len(data) // 2
    if len(data) % 2 or not 1 <= words <= MAX_WRITE_WORDS or address < 0 or address + words > 0x10000:
        raise ValueError(f"cannot write {len(data)} bytes to holding {address}")
    if words == 1 and not multiple:
        pdu = struct.pack(">BH", WRITE_REGISTER, address) + data
        return Ask(unit, pdu, pdu, len(pdu), f"write of holding {address}")
    head = _READ.pack(WRITE_REGISTERS, address, words)
    return Ask(unit, head + bytes((len(data),)) + data, head, len(head), f"write of holding {address}")


def ask_of(unit: int, pdu: bytes) -> Ask:
    """The read request in a captured PDU. Raises FrameError for anything else."""
    if len(pdu) != _READ.size or pdu[0] not in TABLES:
        raise FrameError("not a read request", frame=pdu)
    function, address, count = _READ.unpack(pdu)
    try:
        return read_request(unit, TABLES[function], address, count)
    except ValueError as error:
        raise FrameError(str(error), frame=pdu) from error


def reply_data(ask: Ask, pdu: bytes) -> bytes:
    """Payload of a reply PDU: the register or bit bytes of a read, what a write echoes.

    Raises:
        DeviceException: the device refuses, is busy or faulty.
        FrameError: not a reply to this request.
    """
    if pdu.startswith(ask.reply_head) and len(pdu) == (ask.reply_size or len(pdu)):
        return pdu[2:] if ask.function in TABLES else pdu[1:]
    if len(pdu) == 2 and pdu[0] == ask.function | 0x80:
        raise DeviceException(ask, pdu[1])
    if not pdu:
        raise FrameError("an empty reply", frame=pdu)
    if pdu[0] & 0x7F != ask.function:
        raise FrameError(f"a reply to function {pdu[0] & 0x7F}, asked was {ask.function}", frame=pdu)
    raise FrameError(f"a reply of {len(pdu)} bytes, {ask.reply_size} expected", frame=pdu)


class Framing(Protocol):
    """How PDUs travel. A reply is looked for in all bytes that came since the request went out."""

    @property
    def tells_requests_apart(self) -> bool:
        """A reply names its request, so a late one can be told (TCP's transaction id)."""

    def frame(self, ask: Ask, number: int) -> bytes:
        """The bytes to send; `number` is the request's transaction id, where there is one."""

    def replies(self, data: bytes) -> list[tuple[int, bytes]]:
        """Number and PDU of each whole reply in `data`, where replies have numbers."""

    def find(self, ask: Ask, number: int, data: bytes, *, last: bool) -> tuple[bytes, int] | None:
        """The reply PDU in `data` and where its frame ends; None when it is not there yet.

        Args:
            last: nothing more will come; a candidate that is not complete is given up.
        """

    def wire_bytes(self, pdu_size: int) -> int:
        """Bytes on the wire for a PDU of this size."""

    def looks_cut(self, data: bytes) -> bool:
        """Bytes came, and no frame in them is whole and sound: noise, a wrong checksum."""

    def is_other(self, ask: Ask, frame: bytes, data: bytes) -> bool:
        """What came back over TCP shows that the other end speaks RTU where we speak Modbus TCP, or the reverse."""


class RtuFraming:
    """Unit, PDU, CRC-16. Nothing says where a frame begins, so noise before it is stepped over, but only a frame
    with the right unit, function, length and CRC counts."""

    tells_requests_apart = False

    def frame(self, ask: Ask, number: int) -> bytes:
        body = bytes((ask.unit,)) + ask.pdu
        return body + crc16_modbus(body).to_bytes(2, "little")

    def find(self, ask: Ask, number: int, data: bytes, *, last: bool) -> tuple[bytes, int] | None:
        good = bytes((ask.unit,)) + ask.reply_head
        refusal = bytes((ask.unit, ask.function | 0x80))
        start = data.find(ask.unit)
        while start >= 0:
            whole = ask.reply_size + 3 if ask.reply_size else max(5, len(data) - start)
            for head, size in ((good, whole), (refusal, 5)):
                candidate = data[start : start + size]
                if not candidate.startswith(head[: len(candidate)]):
                    continue
                if len(candidate) == size and candidate[1:-2] != ask.pdu_if_read and rtu_sound(candidate):
                    return candidate[1:-2], start + size
                if len(candidate) < size and not last:
                    return None  # a later match inside it could be chance
            start = data.find(ask.unit, start + 1)
        return None

    def replies(self, data: bytes) -> list[tuple[int, bytes]]:
        return []

    def wire_bytes(self, pdu_size: int) -> int:
        return pdu_size + 3

    def looks_cut(self, data: bytes) -> bool:
        return not rtu_sound(data)

    def is_other(self, ask: Ask, frame: bytes, data: bytes) -> bool:
        return _is_mbap_reply(frame, data)


def rtu_sound(frame: bytes) -> bool:
    """Is this one whole RTU frame with a right CRC?"""
    return 4 <= len(frame) <= MAX_RTU_BYTES and crc16_modbus(frame[:-2]) == int.from_bytes(frame[-2:], "little")


class TcpFraming:
    """MBAP header (transaction, protocol 0, length, unit) and PDU."""

    tells_requests_apart = True

    def frame(self, ask: Ask, number: int) -> bytes:
        return _MBAP.pack(number, 0, len(ask.pdu) + 1, ask.unit) + ask.pdu

    def find(self, ask: Ask, number: int, data: bytes, *, last: bool) -> tuple[bytes, int] | None:
        """As in the protocol; replies to earlier requests are stepped over, and so is what is no header at all.

        The reply's size is known from the request, so a wrong length in its header is survived.

        Raises:
            FrameError: another unit answers under this request's number, or nothing whole came to the end.
        """
        start, junk = 0, False
        while len(data) - start >= _MBAP.size:
            came, protocol, length, unit = _MBAP.unpack_from(data, start)
            if protocol != 0 or not 2 <= length <= 254:
                junk = True
                start = data.find(_OWN.pack(number, 0), start + 1)
                if start < 0:
                    break
                continue
            if came != number:
                start += 6 + length
                continue
            if unit != ask.unit:
                raise FrameError(f"unit {unit} answers for unit {ask.unit}", frame=data, offset=start + 6)
            found = _own_pdu(ask, data[start + 7 :], length - 1)
            if found is not None:
                return found, start + 7 + len(found)
            break
        if last and data and (junk or start < 0):
            raise FrameError("no Modbus TCP header", frame=data)
        if last and start < len(data):
            raise FrameError("a frame was cut off", frame=data, offset=start)
        return None

    def replies(self, data: bytes) -> list[tuple[int, bytes]]:
        """Number and PDU of each whole reply in `data`, up to the first thing that is none."""
        found, start = list[tuple[int, bytes]](), 0
        while len(data) - start >= _MBAP.size:
            came, protocol, length, _ = _MBAP.unpack_from(data, start)
            end = start + 6 + length
            if protocol != 0 or not 2 <= length <= 254 or end > len(data):
                break
            found.append((came, data[start + 7 : end]))
            start = end
        return found

    def wire_bytes(self, pdu_size: int) -> int:
        return pdu_size + 7

    def looks_cut(self, data: bytes) -> bool:
        return bool(data)

    def is_other(self, ask: Ask, frame: bytes, data: bytes) -> bool:
        return RtuFraming().find(ask, 0, data, last=True) is not None


def _own_pdu(ask: Ask, body: bytes, said: int) -> bytes | None:
    """The reply's PDU at the start of `body`; None while more must come. `said` is its size by the header, which may be
    wrong by a little where all else fits; what is shorter is never filled up with what came behind it."""
    if said >= 2 and len(body) >= 2:
        if body[0] == ask.function | 0x80 and said <= MAX_EXCEPTION_BYTES:
            return body[:2]
        size = ask.reply_size
        if size and body.startswith(ask.reply_head):
            if said >= size and len(body) >= size:
                return body[:size]
            if size - MAX_LENGTH_OFF <= said < size == len(body):
                return body
    return body[:said] if len(body) >= said else None


class AsciiFraming:
    """`:`, unit and PDU and LRC as hexadecimal digits, CR LF."""

    tells_requests_apart = False

    def frame(self, ask: Ask, number: int) -> bytes:
        body = bytes((ask.unit,)) + ask.pdu
        return b":" + (body + bytes((lrc(body),))).hex().upper().encode() + b"\r\n"

    def find(self, ask: Ask, number: int, data: bytes, *, last: bool) -> tuple[bytes, int] | None:
        for line in data.split(b":")[1:]:
            text, end, _ = line.partition(b"\r\n")
            body = ascii_body(text) if end else b""
            if not body or body[0] != ask.unit:
                continue
            pdu = body[1:]
            if pdu == ask.pdu_if_read:
                continue
            if (pdu.startswith(ask.reply_head) and len(pdu) == (ask.reply_size or len(pdu))) or (
                len(pdu) == 2 and pdu[0] == ask.function | 0x80
            ):
                return pdu, len(data)
        return None

    def replies(self, data: bytes) -> list[tuple[int, bytes]]:
        return []

    def wire_bytes(self, pdu_size: int) -> int:
        return 2 * pdu_size + 7

    def is_other(self, ask: Ask, frame: bytes, data: bytes) -> bool:
        return _is_mbap_reply(frame, data)

    def looks_cut(self, data: bytes) -> bool:
        return not any(ascii_body(line.partition(b"\r\n")[0]) for line in data.split(b":")[1:])


def _is_mbap_reply(frame: bytes, data: bytes) -> bool:
    """A server of Modbus TCP took our frame for its own kind: it repeats the first two bytes as transaction number."""
    return len(data) >= 9 and data[:4] == frame[:2] + b"\0\0" and int.from_bytes(data[4:6], "big") == len(data) - 6


def ascii_body(text: bytes) -> bytes:
    """Unit and PDU of one line's digits; b"" when they are no digits or the LRC is wrong."""
    try:
        body = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return b""
    return body[:-1] if len(body) >= 3 and lrc(body[:-1]) == body[-1] else b""


def lrc(data: bytes) -> int:
    """Longitudinal redundancy check of Modbus ASCII: two's complement of the sum."""
    return -sum(data) & 0xFF
