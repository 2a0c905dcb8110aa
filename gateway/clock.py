"""Wall and boot time of this box, and how far the wall time can be trusted."""

import asyncio
import functools
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

BUILT_AT = datetime(2026, 11, 22, tzinfo=UTC)  # moved on with each release: no box runs before its software was made
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")


class Source(IntEnum):
    """Who says what time it is; a higher one wins."""

    NONE = 0
    FLOOR = 1  # not before this software was built, or before the newest time on disk
    BROKER = 2  # HTTP Date of a broker, ±1 s
    RADIO = 3  # LoRa gateway
    GNSS = 4
    RTC = 5  # a battery-backed clock that survived the power cut
    KERNEL = 6  # NTP, PTP: the kernel says it is synchronised
    SYSTEM = 7  # by option: the operator vouches for the system's clock


@dataclass(frozen=True, slots=True)
class Trust:
    """What the clock is worth now. `source` is NONE or FLOOR exactly when it is not trusted."""

    source: Source
    since: datetime

    @property
    def trusted(self) -> bool:
        return self.source > Source.FLOOR


@runtime_checkable
class BoxClock(Protocol):
    """A clock that knows its boot and its worth; one that lacks these (a test's) is trusted."""

    def now(self) -> datetime: ...
    def monotonic_s(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...

    @property
    def boot_id(self) -> str: ...

    @property
    def trust(self) -> Trust: ...

    def raise_floor(self, at: datetime) -> None: ...


class SystemClock:
    """The clock of this box.

    Args:
        trust: `auto` asks for a source or a real-time clock that survived; `system` takes the system's word.
    """

    def __init__(self, trust: Literal["auto", "system"] = "auto") -> None:
        self.boot_id = boot_id()
        self._system = trust == "system"
        self._trust = Trust(Source.SYSTEM if self._system else Source.NONE, self.now())

    def now(self) -> datetime:
        """Wall time, UTC, in whole milliseconds: finer digits are noise that the card would have to store."""
        ms = time.time_ns() // 1_000_000
        return _EPOCH + timedelta(milliseconds=ms)

    def monotonic_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @property
    def trust(self) -> Trust:
        return self._trust

    def raise_floor(self, at: datetime) -> None:
        """The newest time found on disk: it cannot be earlier now."""

    def offer(self, utc: datetime, uncertainty_s: float, source: Source) -> None:
        """A time source speaks."""


@functools.cache
def boot_id() -> str:
    """The kernel's id of this boot."""
    return _BOOT_ID.read_text().strip()


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
