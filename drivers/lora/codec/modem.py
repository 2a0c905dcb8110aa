"""Lines of point-to-point LoRa modems in receive mode: REYAX RYLR, Microchip RN2483, Seeed LoRa-E5.

Sources: REYAX RYLR896 AT command guide; RN2483 command reference; LoRa-E5 AT command specification.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from gateway.sdk.errors import FrameError
from gateway.sdk.framing import LineFramer

MAX_LINE_BYTES = 600  # RN2483 prints 255 bytes as 510 digits


@dataclass(frozen=True, slots=True)
class Heard:
    """One packet a modem received.

    Attributes:
        address: sender as the modem tells it (RYLR); None where it does not.
        f_port: None where the modem knows none.
    """

    payload: bytes
    address: int | None = None
    f_port: int | None = None
    rssi: float | None = None
    snr: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The modem speaks of itself: `ok`, `retry_later`, `timeout` (nothing heard in its window) or `error`."""

    status: str
    text: str


class Modem(Protocol):
    """What the driver knows of a modem."""

    setup: tuple[bytes, ...]
    listen: bytes

    def feed(self, data: bytes) -> Iterator[Heard | Answer | FrameError]:
        """Packets, answers and what could not be read, as they come off the line."""


@dataclass(slots=True)
class Rylr:
    """`+RCV=address,length,data,rssi,snr`. The data may hold commas and line ends: the length field rules."""

    setup: tuple[bytes, ...] = ()
    listen: bytes = b""
    _buffer: bytes = b""

    def feed(self, data: bytes) -> Iterator[Heard | Answer | FrameError]:
        self._buffer += data
        while (cut := self._cut()) is not None:
            line, self._buffer = self._buffer[:cut], self._buffer[cut:]
            if line.strip():
                yield _rylr(line)

    def _cut(self) -> int | None:
        """Bytes of the first line; data counted by its length field, so that a line end inside is no end."""
        head = re.match(rb"\s*\+RCV=\d{1,5},(\d{1,3}),", self._buffer)
        searched_from = head.end() + int(head[1]) if head else 0
        end = self._buffer.find(b"\n", searched_from)
        if end >= 0:
            return end + 1
        if len(self._buffer) > MAX_LINE_BYTES:
            inner = self._buffer.find(b"\n")  # a length field that lies must not swallow the lines behind it
            return inner + 1 if inner >= 0 else len(self._buffer)
        return None


def _rylr(line: bytes) -> Heard | Answer | FrameError:
    text = line.strip(b"\r\n\0 ")
    if text.startswith(b"+ERR="):
        return Answer("error", text.decode("ascii", "replace"))
    head = re.match(rb"\+RCV=(\d{1,5}),(\d{1,3}),", text)
    if head is None:
        if text == b"+OK" or text.startswith((b"+READY", b"+RESET", b"+ADDRESS", b"+NETWORKID", b"+PARAMETER")):
            return Answer("ok", text.decode("ascii", "replace"))
        return FrameError("no line of this modem", frame=line)
    body = line.lstrip()[head.end() :]
    length = int(head[2])
    tail = re.fullmatch(rb",(-?\d{1,4}),(-?\d{1,4})\s*", body[length:])
    if tail is None:
        return FrameError(f"length {length} does not fit the line", frame=line, offset=head.end())
    return Heard(body[:length], address=int(head[1]), rssi=float(tail[1]), snr=float(tail[2]))


RETRY_LATER = ("no_free_ch", "busy")
ERRORS = ("invalid_param", "mac_err", "not_joined", "silent", "frame_counter_err_rejoin_needed", "mac_paused")


@dataclass(slots=True)
class Rn2483:
    """`radio_rx HEX` and `mac_rx PORT HEX`; answers twice to a command (`ok`, then the outcome)."""

    setup: tuple[bytes, ...] = (b"mac pause\r\n",)
    listen: bytes = b"radio rx 0\r\n"  # ends with each packet and each time-out: to be given again
    _lines: LineFramer = field(default_factory=lambda: LineFramer(MAX_LINE_BYTES))

    def feed(self, data: bytes) -> Iterator[Heard | Answer | FrameError]:
        for line in self._lines.feed(data):
            yield _rn2483(line)


def _rn2483(line: bytes) -> Heard | Answer | FrameError:
    text = line.decode("ascii", "replace").strip()
    if found := re.fullmatch(r"(?:radio_rx|mac_rx (\d{1,3})) +((?:[0-9A-Fa-f]{2})*)", text):
        return Heard(bytes.fromhex(found[2]), f_port=int(found[1]) if found[1] else None)
    if text == "radio_err":
        return Answer("timeout", text)
    if text in RETRY_LATER:
        return Answer("retry_later", text)
    if text in ERRORS:
        return Answer("error", text)
    if text in ("ok", "mac_tx_ok", "radio_tx_ok") or re.fullmatch(r"\d+", text) or text.startswith("RN2"):
        return Answer("ok", text)
    return FrameError("no line of this modem", frame=line)


_E5_RX = re.compile(
    r'\+(?:MSG|MSGHEX|CMSG|CMSGHEX): PORT: (\d{1,3}); RX: "((?:[0-9A-Fa-f]{2} ?)*)"'
)  # firmware 4 prints spaces between bytes
_E5_SIGNAL = re.compile(r"\+(?:MSG|MSGHEX|CMSG|CMSGHEX): RXWIN\d, RSSI (-?\d+), SNR (-?\d+(?:\.\d+)?)")
_E5_TEST_SIGNAL = re.compile(r"\+TEST: LEN:(\d+), RSSI:(-?\d+), SNR:(-?\d+(?:\.\d+)?)")
_E5_TEST_RX = re.compile(r'\+TEST: RX "((?:[0-9A-Fa-f]{2} ?)*)"')


@dataclass(slots=True)
class LoraE5:
    """Payload and signal stand on separate lines: in test mode the signal comes first, after a downlink it comes last."""

    setup: tuple[bytes, ...] = (b"AT+MODE=TEST\r\n",)
    listen: bytes = b"AT+TEST=RXLRPKT\r\n"
    _lines: LineFramer = field(default_factory=lambda: LineFramer(MAX_LINE_BYTES))
    _announced: tuple[int, float, float] | None = None  # bytes, RSSI, SNR of the packet that comes next

    def feed(self, data: bytes) -> Iterator[Heard | Answer | FrameError]:
        for line in self._lines.feed(data):
            yield self._line(line)

    def _line(self, line: bytes) -> Heard | Answer | FrameError:
        text = line.decode("ascii", "replace").strip()
        if found := _E5_TEST_SIGNAL.fullmatch(text):
            self._announced = int(found[1]), float(found[2]), float(found[3])
            return Answer("ok", text)
        if text.startswith("+TEST: RX "):
            return self._received(line, text)
        if found := _E5_RX.fullmatch(text):
            return Heard(bytes.fromhex(found[2]), f_port=int(found[1]))
        if _E5_SIGNAL.fullmatch(text):
            return Answer("ok", text)
        if "ERROR" in text:
            return Answer("error", text)
        if "RX " in text or "RX:" in text:
            return FrameError("the packet's hex digits cannot be read", frame=line)
        return Answer("ok", text) if text.startswith("+") else FrameError("no line of this modem", frame=line)

    def _received(self, line: bytes, text: str) -> Heard | FrameError:
        """The packet of test mode; what the line before said holds for this one alone, whatever is left of it."""
        announced, self._announced = self._announced, None
        found = _E5_TEST_RX.fullmatch(text)
        if found is None:
            return FrameError("the packet's hex digits cannot be read", frame=line)
        payload = bytes.fromhex(found[1])
        if announced is None:
            return Heard(payload)
        length, rssi, snr = announced
        if len(payload) != length:  # a serial line loses characters; what is left may still look like a payload
            return FrameError(f"{len(payload)} bytes, {length} were announced", frame=line)
        return Heard(payload, rssi=rssi, snr=snr)


def e5_signal(text: str) -> tuple[float, float] | None:
    """(RSSI, SNR) of an E5 line that reports the signal of a downlink."""
    found = _E5_SIGNAL.fullmatch(text.strip())
    return (float(found[1]), float(found[2])) if found else None


MODEMS: dict[str, type[Rylr] | type[Rn2483] | type[LoraE5]] = {"rylr": Rylr, "rn2483": Rn2483, "e5": LoraE5}
