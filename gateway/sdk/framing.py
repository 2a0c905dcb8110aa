"""Framing: cut a byte stream into frames; checksums; a cursor that cannot read past the end. Pure."""

import struct
from collections.abc import Iterator

from gateway.sdk.errors import FrameError


class Cursor:
    """Reads fields off a frame in order; raises FrameError instead of reading past the end."""

    def __init__(self, frame: bytes, offset: int = 0) -> None:
        self.frame = frame
        self.offset = offset

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self.frame) - self.offset

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count < 0 or count > self.left:
            raise FrameError(f"{self.left} bytes left, {count} needed", frame=self.frame, offset=self.offset)
        self.offset += count
        return self.frame[self.offset - count : self.offset]

    def unpack(self, layout: struct.Struct) -> tuple[int | float, ...]:
        """The next fields in `struct` layout."""
        return layout.unpack(self.take(layout.size))


class FixedFramer:
    """Frames of one length between a header and an end byte, found again after noise.

    Header and end can stand in noise, and in a frame: who finds a frame's checksum wrong says so with `give_back`, and a
    sound frame that began inside it is found.

    Args:
        header: how each frame begins.
        size: bytes of a frame, header and tail included.
        tail: how each frame ends; b"" when only the header tells.
    """

    def __init__(self, header: bytes, size: int, tail: bytes = b"") -> None:
        self._header, self._size, self._tail = header, size, tail
        self._buffer = b""
        self._at = 0  # up to here the buffer is done with
        self.skipped = 0  # bytes of noise thrown away so far

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Complete frames. A candidate without the tail is given up byte by byte, so a good frame inside it is found."""
        self._buffer, self._at = self._buffer[self._at :] + data, 0
        while True:
            start = self._buffer.find(self._header, self._at)
            if start < 0:
                keep = min(len(self._header) - 1, len(self._buffer) - self._at)
                keep = next((n for n in range(keep, 0, -1) if self._buffer.endswith(self._header[:n])), 0)
                self._skip(len(self._buffer) - keep - self._at)
                return
            self._skip(start - self._at)
            if len(self._buffer) - self._at < self._size:
                return
            frame = self._buffer[self._at : self._at + self._size]
            if frame.endswith(self._tail):
                self._at += self._size
                yield frame
            else:
                self._skip(1)

    def give_back(self) -> None:
        """The frame handed over last is none: what stands behind its first byte is searched again."""
        self._at -= self._size
        self._skip(1)

    def _skip(self, count: int) -> None:
        self.skipped += count
        self._at += count


class LineFramer:
    """Lines ended by CR, LF or both; longer ones than the bound are thrown away whole and counted.

    Args:
        max_line_bytes: bound of a line without its end.
    """

    def __init__(self, max_line_bytes: int = 1024) -> None:
        self._max = max_line_bytes
        self._buffer = b""
        self._overlong = False
        self.dropped = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Complete, non-empty lines without their end."""
        *lines, self._buffer = (self._buffer + data.replace(b"\r", b"\n")).split(b"\n")
        for line in lines:
            if self._overlong or len(line) > self._max:
                self.dropped += 1
            elif line:
                yield line
            self._overlong = False
        if len(self._buffer) > self._max:
            self._buffer = b""
            self._overlong = True


def crc16_modbus(data: bytes) -> int:
    """CRC-16/MODBUS: polynomial 0xA001 reflected, start 0xFFFF. Check value of b"123456789": 0x4B37."""
    crc = 0xFFFF
    for byte in data:
        crc = _CRC16_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def sum8(data: bytes) -> int:
    """Sum of all bytes modulo 256."""
    return sum(data) & 0xFF


def _crc16_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ 0xA001 if value & 1 else value >> 1
        table.append(value)
    return tuple(table)


_CRC16_TABLE = _crc16_table()
