"""What a link remembers of one device: which uplinks it has had, and the frame counter. Saved with each uplink."""

import struct
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

from drivers.lora.codec.uplink import Uplink

STATE = "uplinks"  # key of the driver state
VERSION = 1
KEYS = 32  # identities kept in memory, for repeats that follow at once
SAVED_KEYS = 4  # of them on the card: small states share a page, and the card rests
MAX_GAP = 16384  # uplinks; MAX_FCNT_GAP of LoRaWAN 1.0
_HEAD = struct.Struct("<BBqI4s")  # version, what is known, time, counter, address
_HAS_COUNTER = 1
_NONE = -1


@dataclass(slots=True)
class Memory:
    """One device.

    Attributes:
        last_us: time of the latest uplink, µs since the epoch; -1 before the first. Not the highest ever: one wrong time in
            the future must not stand for good.
        f_cnt: its frame counter; None before the first.
        dev_addr: address of this session; a new one means a new join.
        keys: identities of the latest uplinks.
    """

    last_us: int = _NONE
    f_cnt: int | None = None
    dev_addr: str = ""
    keys: deque[bytes] = field(default_factory=lambda: deque(maxlen=KEYS))

    def known(self, uplink: Uplink, *, redelivered: bool, retained: bool = False) -> bool:
        """Whether this uplink was had before.

        Args:
            redelivered: the broker says that it sends it again. Then neither counter nor time may have gone on; that
                finds also uplinks older than the identities kept. Without it a device may start its counter again.
            retained: the broker keeps the latest of each topic and sends it at every subscription; only one that is newer
                than what was had is new.
        """
        if uplink.key in self.keys:
            return True
        if retained:
            return not self.before(uplink.time)
        if not redelivered or uplink.time is None or uplink.f_cnt is None or self.f_cnt is None:
            return False
        same_session = uplink.dev_addr == self.dev_addr
        return same_session and uplink.f_cnt <= self.f_cnt and _us(uplink.time) <= self.last_us

    def before(self, at: datetime | None) -> bool:
        """Whether the latest uplink was earlier than this."""
        return at is not None and self.last_us < _us(at)

    def lost_before(self, uplink: Uplink) -> int | None:
        """How many uplinks are missing between the last and this one; None when the counter cannot tell. A leap that no
        network would follow is another count, not that many losses."""
        if uplink.f_cnt is None or self.f_cnt is None or uplink.dev_addr != self.dev_addr:
            return None
        return uplink.f_cnt - self.f_cnt - 1 if 0 < uplink.f_cnt - self.f_cnt <= MAX_GAP else None

    def remember(self, uplink: Uplink) -> None:
        """Take it as had."""
        self.keys.append(uplink.key)
        if uplink.time is not None:
            self.last_us = _us(uplink.time)
        if uplink.f_cnt is not None:
            self.f_cnt, self.dev_addr = uplink.f_cnt, uplink.dev_addr

    def pack(self) -> bytes:
        """Driver state, about 50 bytes."""
        known = _HAS_COUNTER if self.f_cnt is not None else 0
        address = bytes.fromhex(self.dev_addr.zfill(8))
        saved = list(self.keys)[-SAVED_KEYS:]
        return _HEAD.pack(VERSION, known, self.last_us, self.f_cnt or 0, address) + b"".join(saved)


def unpack(state: bytes | None) -> Memory:
    """Memory from driver state; an empty one when there is none or it is not ours."""
    if state is None or len(state) < _HEAD.size or state[0] != VERSION or (len(state) - _HEAD.size) % 8:
        return Memory()
    _, known, last_us, f_cnt, address = _HEAD.unpack_from(state)
    keys = (state[at : at + 8] for at in range(_HEAD.size, len(state), 8))
    return Memory(
        last_us=last_us,
        f_cnt=f_cnt if known & _HAS_COUNTER else None,
        dev_addr="" if address == bytes(4) else address.hex(),
        keys=deque(keys, maxlen=KEYS),
    )


def _us(at: datetime) -> int:
    return round((at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)
