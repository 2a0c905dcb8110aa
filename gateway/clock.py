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
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

import structlog

BUILT_AT: Final = datetime(2026, 11, 22, tzinfo=UTC)  # moved on with each release: no box runs before its software
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_TIMESYNCD: Final = Path("/run/systemd/timesync/synchronized")  # set by systemd-timesyncd
_RTC: Final = Path("/sys/class/rtc/rtc0")
_BUILT_NS: Final = int(BUILT_AT.timestamp()) * 10**9
_CHECK_EVERY_S: Final = 5.0
_WORST_OFFER_S: Final = 5.0  # a source that is less sure than this is no help
_AGREES_S: Final = 2.0  # closer than this two say the same
_LATEST: Final = BUILT_AT + timedelta(days=20 * 365)  # no box runs its software for longer
_SMALL_STEP_S: Final = 60.0  # a trusted time that another source supports is moved by no more
_EQUALS_STEP_S: Final = 3600.0  # a source moves the time of its own rank by no more
_SUPPORT_S: Final = 3600.0  # so long an offer that agreed with our time speaks for it
_MAX_OFFERING: Final = 16  # sources whose offers are remembered
_events = structlog.get_logger()


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


class Proof(NamedTuple):
    """What it takes to move the clock: so many offers of one source that agree with each other, over so long."""

    offers: int
    over_s: float


_FIRST: Final = Proof(2, 10.0)  # nobody vouches for our time: soon, but no single packet
_OVER_RTC: Final = Proof(3, 60.0)  # a coin cell does
_OVER_TOLD: Final = Proof(5, 600.0)  # a source did


@dataclass(slots=True)
class _Offering:
    """What a source says again and again that does not agree with our time.

    Attributes:
        offset_ns: the wall time it tells, minus boot time; of its newest offer.
        within_ns: how sure it is of that.
        first_ns: boot time of its first offer that agrees with this one.
    """

    source: Source
    offset_ns: int
    within_ns: float
    first_ns: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Trust:
    """What the wall time is worth, and since when (by the time of then)."""

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
        self._since_ns = self._box.boot_ns()  # boot time since which the time is trusted, or is not
        self._offering: dict[str, _Offering] = {}
        self._supported: dict[str, int] = {}  # who agreed with our time -> boot time of then
        self._doubt = ""  # what is offered and not believed
        self.raise_floor(BUILT_AT)
        self._trust = Trust(Source.NONE, self.now())
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
        if wall_ns >= self._floor_ns or self._system or self._told is Source.KERNEL:
            return wall_ns
        return self._floor_ns + self._box.boot_ns() - self._floor_boot_ns

    @property
    def earliest(self) -> datetime:
        """It cannot be earlier now, whatever the clock says."""
        passed_ns = self._box.boot_ns() - self._floor_boot_ns
        return _EPOCH + timedelta(milliseconds=(self._floor_ns + passed_ns) // 1_000_000)

    @property
    def trust(self) -> Trust:
        """What the wall time is worth; the kernel is asked every few seconds at most."""
        if self._box.boot_ns() >= self._next_check_ns:
            self._check()
        return self._trust

    def raise_floor(self, at: datetime) -> None:
        """It cannot be earlier than this: the newest time found on disk. A source that says otherwise is still heard."""
        floor_ns = (at - _EPOCH) // timedelta(microseconds=1) * 1000
        if floor_ns > self._floor_ns and at <= _LATEST:  # later: an earlier citygate believed a time that cannot be
            self._floor_ns, self._floor_boot_ns = floor_ns, self._box.boot_ns()
            self._next_check_ns = 0

    def offer(self, utc: datetime, uncertainty_s: float, source: Source = Source.RADIO, who: str = "") -> bool:
        """A source says what time it is now. Returns whether that was used: it confirmed our time, or moved it.

        One offer moves nothing (docs/decisions/0107): a time that is not ours has to be told again and again, going on as
        time does, or by a second source. One of lower rank than a source heard before is not listened to.

        Args:
            who: tells one source from another of the same rank.
        """
        who = who or source.name.lower()
        if not self._listens(utc, uncertainty_s, source):
            return False
        boot_ns = self._box.boot_ns()
        told_ns = (utc - _EPOCH) // timedelta(microseconds=1) * 1000
        within_ns = max(_AGREES_S, uncertainty_s) * 1e9
        apart_ns = told_ns - self._now_ns()
        if abs(apart_ns) <= within_ns:
            self._agreed(who, source, boot_ns)
        elif not self._proven(who, source, told_ns - boot_ns, within_ns) or not self._may_move(who, source, apart_ns):
            self._doubt = f"{who} says {utc:%Y-%m-%d %H:%M:%S} UTC, {_apart(apart_ns)} ours"
            return False
        else:
            _events.warning("clock_moved", by=who, source=source.name.lower(), seconds=round(apart_ns / 1e9, 1))
            self._offset_ns = told_ns - boot_ns
            self._offering.clear()
            self._supported = {who: boot_ns}
        self._doubt = ""
        self._told = max(source, self._told)
        self._check()
        return True

    def _listens(self, utc: datetime, uncertainty_s: float, source: Source) -> bool:
        """Whether an offer is one at all: a time that can be, told surely enough, by a rank that counts now."""
        try:
            possible = BUILT_AT <= utc <= _LATEST and 0 <= uncertainty_s <= _WORST_OFFER_S
        except TypeError:  # naive, or no time at all
            possible = False
        if not possible and self._told is Source.NONE and not self._system:
            self._doubt = f"{source.name.lower()} offers a time that cannot be: {str(utc)[:40]}"
        return possible and not self._system and Source.FLOOR < source < Source.KERNEL and source >= self._told

    def _agreed(self, who: str, source: Source, boot_ns: int) -> None:
        """Somebody says what we say: nobody of his rank, or below, is heard who says otherwise."""
        if len(self._supported) >= _MAX_OFFERING:
            self._supported.clear()
        self._supported[who] = boot_ns
        self._offering = {name: offering for name, offering in self._offering.items() if offering.source > source}

    def _proven(self, who: str, source: Source, offset_ns: int, within_ns: float) -> bool:
        """Whether this other time was told often and long enough, or by two."""
        boot_ns, now = self._box.boot_ns(), self._offering.get(who)
        if now is None or abs(now.offset_ns - offset_ns) > max(now.within_ns, within_ns):
            if now is None and len(self._offering) >= _MAX_OFFERING:
                self._offering.clear()
            now = self._offering[who] = _Offering(source, offset_ns, within_ns, boot_ns)
        else:
            now.offset_ns, now.within_ns, now.source, now.count = offset_ns, within_ns, source, now.count + 1
        others = (offering for name, offering in self._offering.items() if name != who)
        if any(abs(o.offset_ns - offset_ns) <= max(o.within_ns, within_ns) for o in others):
            return True
        proof = _FIRST
        if self._trust.trusted:
            proof = _OVER_TOLD if self._told is not Source.NONE else _OVER_RTC
        return now.count >= proof.offers and boot_ns - now.first_ns >= proof.over_s * 1e9

    def _may_move(self, who: str, source: Source, apart_ns: int) -> bool:
        """Whether a step is small enough for who wants it: what others vouch for is not thrown over by one."""
        if not self._trust.trusted:
            return True
        since_ns = self._box.boot_ns() - _SUPPORT_S * 1e9
        supported = any(name != who and at_ns >= since_ns for name, at_ns in self._supported.items())
        if supported and abs(apart_ns) > _SMALL_STEP_S * 1e9:
            return False
        return source > self._told or abs(apart_ns) <= _EQUALS_STEP_S * 1e9

    def _check(self) -> None:
        self._next_check_ns = self._box.boot_ns() + int(_CHECK_EVERY_S * 1e9)
        source = self._source()
        if source is not self._trust.source:
            was, self._trust = self._trust, Trust(source, self.now())
            if was.trusted is not self._trust.trusted:
                self._since_ns = self._box.boot_ns()

    def _source(self) -> Source:
        if self._system:
            return Source.SYSTEM
        if self._told is not Source.KERNEL and self._box.synchronised() and self._box.wall_ns() >= _BUILT_NS:
            self._told, self._offset_ns, self._doubt = Source.KERNEL, None, ""
        if self._told is not Source.NONE:  # a source that falls silent leaves a clock that goes on well
            return self._told
        wall_ns, rtc_s = self._box.wall_ns(), self._box.rtc_s()
        if wall_ns < self._floor_ns:
            return Source.FLOOR
        return Source.RTC if rtc_s is not None and rtc_s * 10**9 >= self._floor_ns else Source.NONE

    def status(self) -> dict[str, Any]:
        """What `status` and the page show of the clock. `since` is told by what is the time now: the clock of then knew less."""
        trust, now = self.trust, self.now()
        for_s = (self._box.boot_ns() - self._since_ns) / 1e9
        return {
            "state": "ok" if trust.trusted else "unconfirmed",
            "source": trust.source.name.lower(),
            "since": now - timedelta(seconds=for_s),
            "now": now,
            "correction_s": round((self._now_ns() - self._box.wall_ns()) / 1e9, 3),
            "doubt": self._doubt,
            "remedy": self._remedy(trust),
        }

    def _remedy(self, trust: Trust) -> str:
        if trust.trusted:
            return "two time sources disagree: set the one that is wrong" if self._doubt else ""
        waits = f"{self._doubt}: once it goes on to say so, or another agrees, it is believed; " if self._doubt else ""
        return (
            f"{waits}connect a time source (NTP, GNSS, a LoRa gateway with GPS, any broker that answers), or fit a "
            "real-time clock with battery; clock: {trust: system} takes the system's word"
        )


def _apart(apart_ns: int) -> str:
    seconds = abs(apart_ns) / 1e9
    amount = f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else f"{seconds:.0f} s"
    return f"{amount} {'after' if apart_ns > 0 else 'before'}"


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
    return disciplined(state, timex.status, timex.maxerror)


def disciplined(state: int, status: int, max_error_us: int) -> bool:
    """What the kernel says of its clock (adjtimex(2): return value, `status`, `maxerror`): whether somebody keeps it."""
    return state not in (-1, _TIME_ERROR) and not status & _STA_UNSYNC and max_error_us < _MAX_ERROR_US


def rtc_s() -> int | None:
    """Time of the hardware clock that set the system's at boot; None without one."""
    try:
        if (_RTC / "hctosys").read_text().strip() != "1":
            return None
        return int((_RTC / "since_epoch").read_text())
    except (OSError, ValueError):
        return None
