"""Wall and boot time of this box, and how far the wall time can be trusted."""

import asyncio
import ctypes
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

BUILT_AT: Final = datetime(2026, 11, 22, tzinfo=UTC)  # moved on with each release: no box runs before its software
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_TIMESYNCD: Final = Path("/run/systemd/timesync/synchronized")  # set by systemd-timesyncd
_RTC: Final = Path("/sys/class/rtc/rtc0")
_BUILT_NS: Final = int(BUILT_AT.timestamp()) * 10**9
_CHECK_EVERY_S: Final = 5.0
_WORST_OFFER_S: Final = 5.0  # a source that is less sure than this is no help
_AGREES_S: Final = 2.0  # closer than this an offer confirms our time and does not move it


class Source(IntEnum):
    """Who says what time it is; a higher one wins. Numbers are stored in the log."""

    NONE = 0
    FLOOR = 1  # not before this software was built, nor before the newest time on disk
    RTC = 2  # a battery-backed clock that survived the power cut
    BROKER = 3  # HTTP Date of a broker, ±1 s
    RADIO = 4  # LoRa gateway
    GNSS = 5
    KERNEL = 6  # NTP or PTP: the kernel says that it is synchronised
    SYSTEM = 7  # by option: the operator vouches for the system's clock


@dataclass(frozen=True, slots=True)
class Trust:
    """What the wall time is worth, and since when (by that time)."""

    source: Source
    since: datetime

    @property
    def trusted(self) -> bool:
        return self.source > Source.FLOOR


@runtime_checkable
class BoxClock(Protocol):
    """A clock that knows its boot and its worth. The log trusts a clock without these, as tests use."""

    def now(self) -> datetime: ...
    def monotonic_s(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...
    def raise_floor(self, at: datetime) -> None: ...

    @property
    def boot_id(self) -> str: ...

    @property
    def trust(self) -> Trust: ...


@dataclass(frozen=True, slots=True)
class Box:
    """What the clock asks the box; tests put their own here.

    Attributes:
        wall_ns, boot_ns: CLOCK_REALTIME and CLOCK_BOOTTIME.
        synchronised: the kernel's wall time is disciplined now.
        rtc_s: seconds since the epoch of a battery-backed clock that set the system's at boot; None without one.
    """

    boot_id: Callable[[], str]
    wall_ns: Callable[[], int]
    boot_ns: Callable[[], int]
    synchronised: Callable[[], bool]
    rtc_s: Callable[[], int | None]


class SystemClock:
    """The clock of this box. It never sets the system's: while that is wrong, it adds what a better source told.

    Args:
        trust: `auto` asks for a source or a real-time clock that survived; `system` takes the system's word.
    """

    def __init__(self, trust: Literal["auto", "system"] = "auto", box: Box | None = None) -> None:
        self._box = box or this_box()
        self.boot_id = self._box.boot_id()
        self._system = trust == "system"
        self._offset_ns: int | None = None  # wall minus boot time as a source told; None: the system's wall time
        self._floor_ns = 0
        self._floor_boot_ns = 0
        self._next_check_ns = 0
        self._told = Source.NONE  # the best that an offer or the kernel reached in this boot
        self._trust = Trust(Source.NONE, BUILT_AT)
        self.raise_floor(BUILT_AT)
        self._check()

    def now(self) -> datetime:
        """Wall time, UTC, in whole milliseconds: finer digits are noise that the card would have to store."""
        return _EPOCH + timedelta(milliseconds=self._now_ns() // 1_000_000)

    def monotonic_s(self) -> float:
        """Seconds since boot; never steps, goes on during suspend."""
        return self._box.boot_ns() / 1e9

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _now_ns(self) -> int:
        if self._offset_ns is not None:
            return self._box.boot_ns() + self._offset_ns
        wall_ns = self._box.wall_ns()
        if wall_ns >= self._floor_ns or self._system:
            return wall_ns
        return self._floor_ns + self._box.boot_ns() - self._floor_boot_ns

    @property
    def trust(self) -> Trust:
        """What the wall time is worth; the kernel is asked every few seconds at most."""
        if self._box.boot_ns() >= self._next_check_ns:
            self._check()
        return self._trust

    def raise_floor(self, at: datetime) -> None:
        """It cannot be earlier than this: the newest time found on disk. A source that says otherwise is still heard."""
        floor_ns = (at - _EPOCH) // timedelta(microseconds=1) * 1000
        if floor_ns > self._floor_ns:
            self._floor_ns, self._floor_boot_ns = floor_ns, self._box.boot_ns()
            self._next_check_ns = 0

    def offer(self, utc: datetime, uncertainty_s: float, source: Source = Source.RADIO) -> bool:
        """A source says what time it is now. Returns whether that was used.

        It confirms our time when the two agree, else ours is moved to it; a source of lower rank than one heard
        before is not listened to, nor one that says a time before this software was built.
        """
        told_ns = (utc - _EPOCH) // timedelta(microseconds=1) * 1000
        listens = not self._system and Source.FLOOR < source < Source.KERNEL and source >= self._told
        if not listens or uncertainty_s > _WORST_OFFER_S or utc < BUILT_AT:
            return False
        if abs(told_ns - self._now_ns()) > max(_AGREES_S, uncertainty_s) * 1e9:
            self._offset_ns = told_ns - self._box.boot_ns()
        self._told = source
        self._check()
        return True

    def _check(self) -> None:
        self._next_check_ns = self._box.boot_ns() + int(_CHECK_EVERY_S * 1e9)
        source = self._source()
        if source is not self._trust.source:
            self._trust = Trust(source, self.now())

    def _source(self) -> Source:
        if self._system:
            return Source.SYSTEM
        if self._told is not Source.KERNEL and self._box.synchronised() and self._box.wall_ns() >= _BUILT_NS:
            self._told, self._offset_ns = Source.KERNEL, None
        if self._told is not Source.NONE:  # a source that falls silent leaves a clock that goes on well
            return self._told
        wall_ns, rtc_s = self._box.wall_ns(), self._box.rtc_s()
        if wall_ns < self._floor_ns:
            return Source.FLOOR
        return Source.RTC if rtc_s is not None and rtc_s * 10**9 >= self._floor_ns else Source.NONE

    def status(self) -> dict[str, Any]:
        """What `status` and the page show of the clock."""
        trust = self.trust
        return {
            "state": "ok" if trust.trusted else "unconfirmed",
            "source": trust.source.name.lower(),
            "since": trust.since,
            "now": self.now(),
            "correction_s": round((self._now_ns() - self._box.wall_ns()) / 1e9, 3),
            "remedy": ""
            if trust.trusted
            else "connect a time source (NTP, GNSS, a LoRa gateway, any broker), or fit a real-time clock with battery; "
            "clock: {trust: system} takes the system's word",
        }


def this_box() -> Box:
    """The real one."""
    return Box(
        boot_id=boot_id,
        wall_ns=time.time_ns,
        boot_ns=functools.partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME),
        synchronised=synchronised,
        rtc_s=rtc_s,
    )


@functools.cache
def boot_id() -> str:
    """The kernel's id of this boot."""
    return _BOOT_ID.read_text().strip()


class _Timex(ctypes.Structure):
    """struct timex up to the fields we read; adjtimex(2)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


_TIME_ERROR: Final = 5
_STA_UNSYNC: Final = 0x40
_MAX_ERROR_US: Final = 1_000_000


def synchronised() -> bool:
    """Whether NTP or PTP disciplines the kernel's clock now."""
    if _TIMESYNCD.exists():
        return True
    timex = _Timex()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (AttributeError, OSError):
        return False
    return state not in (-1, _TIME_ERROR) and not timex.status & _STA_UNSYNC and timex.maxerror < _MAX_ERROR_US


def rtc_s() -> int | None:
    """Time of the hardware clock that set the system's at boot; None without one."""
    try:
        if (_RTC / "hctosys").read_text().strip() != "1":
            return None
        return int((_RTC / "since_epoch").read_text())
    except (OSError, ValueError):
        return None
