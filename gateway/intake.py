"""What a set passes on its way into the log: declared? plausible? paused? worth reporting? Pure: time comes with the set."""

import hashlib
import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason

BAD_AGAIN_S = 60.0  # a point that stays bad for the same reason is logged at most this often
MAX_TEXT_CHARACTERS = 512
MAX_UNDECLARED_NAMES = 32
MAX_CROWD = 100_000  # different values counted in one period of one point; about 10 MB
HASH_CHARACTERS = 16  # 64 bits: enough to count with, too few to be anybody's name elsewhere

_TYPES: dict[str, tuple[type, ...]] = {"number": (float, int), "integer": (int,), "boolean": (bool,), "text": (str,)}


@dataclass(frozen=True, slots=True)
class PointRule:
    """What is asked of one declared point, fixed when the config is loaded.

    Attributes:
        low, high: plausible range in the point's unit.
        kind: what values the quantity has.
        personal: what becomes of personal data before it is logged or shown; "" = it is none.
        count_every_s, fewest: of `count`: period after which the number of different values is told; fewer than that are
            not told at all, because few are somebody.
        blur_to: step to which a blurred number is rounded, in the point's unit.
        on_change: report when the value moved by at least this; None = report every reading.
        at_least_s: report at least this often; None = only on change.
    """

    low: float = -math.inf
    high: float = math.inf
    kind: Literal["number", "integer", "boolean", "text"] = "number"
    personal: Literal["", "drop", "hash", "blur", "count"] = ""
    blur_to: float = 0.0
    count_every_s: float = 900.0
    fewest: int = 0
    on_change: float | None = None
    at_least_s: float | None = None

    @property
    def thins(self) -> bool:
        """Whether some readings of this point are not reported."""
        return self.on_change is not None or self.at_least_s is not None


@dataclass(slots=True)
class _Memory:
    """What was last let through for one point."""

    value: float | int | bool | str | None = None
    reported_at: datetime | None = None
    reason: Reason = Reason.NONE
    bad_at: datetime | None = None


@dataclass(slots=True)
class _Crowd:
    """Who was seen in one period, as hashes in memory; never written."""

    period: int = -1
    seen: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Admitted:
    """What becomes of a set.

    Attributes:
        logged: what goes into the log, and so to the cities; None when nothing does.
        shown: readings that only page, status and read API see.
    """

    logged: ReadingSet | None
    shown: tuple[Reading, ...] = ()


@dataclass(slots=True)
class Intake:
    """The rules and the memory of one device.

    Attributes:
        rules: every point the template declares.
        salt: secret of this run, never stored, so that hashes of one day cannot be undone or compared with another run's.
        undeclared: names that came but are not declared, with how often; bounded.
    """

    rules: Mapping[str, PointRule]
    salt: bytes = b""
    undeclared: dict[str, int] = field(default_factory=dict)
    _memory: dict[str, _Memory] = field(default_factory=dict)
    _crowds: dict[str, _Crowd] = field(default_factory=dict)

    def admit(self, readings: ReadingSet) -> Admitted:
        """Check each reading; drop what is undeclared, strip what is implausible, hold back what need not be reported."""
        kept: list[Reading] = []
        shown: list[Reading] = []
        changed = False
        for reading in readings.readings:
            rule = self.rules.get(reading.point)
            if rule is None:
                self._count_undeclared(reading.point)
                changed = True
                continue
            if rule.personal == "count":
                counted = self._count(reading, rule)
                changed = True
                if counted is None:
                    continue
                reading = counted
            checked = _check(reading, rule)
            if rule.personal:
                hidden = _hide(checked, rule, self.salt)
                if hidden is None:
                    changed = True
                    continue
                checked = hidden
            changed = changed or checked is not reading
            if self._worth_reporting(checked, rule):
                kept.append(checked)
            else:
                shown.append(checked)
        if not changed and not shown:
            return Admitted(readings)
        if not kept and not readings.state:
            return Admitted(None, tuple(shown))
        return Admitted(replace(readings, readings=tuple(kept)), tuple(shown))

    def _count(self, reading: Reading, rule: PointRule) -> Reading | None:
        """The number of different values of a period, told with the first value of a later one; None meanwhile."""
        if reading.value is None:
            return reading
        crowd = self._crowds.setdefault(reading.point, _Crowd())
        period = int(reading.observed_at.timestamp() // rule.count_every_s)
        told: Reading | None = None
        if period > crowd.period:
            if crowd.period >= 0 and len(crowd.seen) >= rule.fewest:
                end = datetime.fromtimestamp((crowd.period + 1) * rule.count_every_s, UTC)
                told = replace(reading, value=len(crowd.seen), observed_at=end)
            crowd.period, crowd.seen = period, set()
        if period == crowd.period and len(crowd.seen) < MAX_CROWD:
            crowd.seen.add(hmac.digest(self.salt, str(reading.value).encode("utf-8", "surrogatepass"), "sha256")[:12])
        return told

    def _count_undeclared(self, point: str) -> None:
        if point in self.undeclared or len(self.undeclared) < MAX_UNDECLARED_NAMES:
            self.undeclared[point] = self.undeclared.get(point, 0) + 1

    def _worth_reporting(self, reading: Reading, rule: PointRule) -> bool:
        memory = self._memory.get(reading.point)
        if memory is None:
            memory = self._memory[reading.point] = _Memory()
        if reading.quality is not Quality.GOOD:
            return _bad_is_news(reading, memory)
        if not rule.thins:
            return True
        if memory.reported_at is not None and not _moved(reading, memory, rule):
            return False
        memory.value, memory.reported_at = reading.value, reading.observed_at
        return True


def _bad_is_news(reading: Reading, memory: _Memory) -> bool:
    """Bad quality is logged when it begins or its reason changes, then once a minute, also while it comes and goes."""
    same = reading.reason is memory.reason and memory.bad_at is not None
    if same and abs((reading.observed_at - memory.bad_at).total_seconds()) < BAD_AGAIN_S:  # type: ignore[operator]
        return False
    memory.reason, memory.bad_at = reading.reason, reading.observed_at
    memory.reported_at = None  # the first good value after a fault is always reported
    return True


def _moved(reading: Reading, memory: _Memory, rule: PointRule) -> bool:
    since_s = abs((reading.observed_at - memory.reported_at).total_seconds())  # type: ignore[operator]
    if rule.at_least_s is not None and since_s >= rule.at_least_s:
        return True
    value, last = reading.value, memory.value
    if rule.on_change is None:
        return False
    if isinstance(value, str | bool) or isinstance(last, str | bool) or value is None or last is None:
        return value != last
    return value != last and abs(value - last) >= rule.on_change


def _hide(reading: Reading, rule: PointRule, salt: bytes) -> Reading | None:
    """The reading without what is personal in it; None when nothing may be kept."""
    if rule.personal == "drop":
        return None
    value = reading.value
    if value is None or rule.personal == "count":
        return reading
    if rule.personal == "hash":
        day = reading.observed_at.astimezone(UTC).date().isoformat()  # the same tag cannot be followed over days
        digest = hmac.new(salt, f"{day} {value}".encode("utf-8", "surrogatepass"), hashlib.sha256)
        return replace(reading, value=digest.hexdigest()[:HASH_CHARACTERS])
    if isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value):
        return replace(reading, value=round(round(value / rule.blur_to) * rule.blur_to, 9))
    return None


def _check(reading: Reading, rule: PointRule) -> Reading:
    """The reading itself, or the same without its value and with the reason."""
    value = reading.value
    if value is None:
        if reading.quality is Quality.GOOD:  # no value cannot be good
            return replace(reading, quality=Quality.BAD, reason=Reason.NOT_AVAILABLE)
        return reading
    if reading.quality is Quality.BAD:
        return replace(reading, value=None)
    if type(value) is float and not math.isfinite(value):
        return replace(reading, value=None, quality=Quality.BAD, reason=Reason.NOT_FINITE)
    if type(value) not in _TYPES[rule.kind]:
        return replace(reading, value=None, quality=Quality.BAD, reason=Reason.BAD_FRAME)
    if isinstance(value, str):
        if len(value) > MAX_TEXT_CHARACTERS or "\0" in value:
            return replace(reading, value=None, quality=Quality.BAD, reason=Reason.BAD_FRAME)
    elif not rule.low <= value <= rule.high:
        return replace(reading, value=None, quality=Quality.BAD, reason=Reason.OUT_OF_RANGE)
    return reading
