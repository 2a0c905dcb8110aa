"""What a set passes on its way into the log: declared? plausible? paused? worth reporting? Pure: time comes with the set."""

import hashlib
import hmac
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, TypeVar

from gateway.sdk.config import Report
from gateway.sdk.quantities import plausible_range, quantities
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, TimeSource, Value
from gateway.sdk.template import Template
from gateway.sdk.values import Kind, told, value_of

BAD_AGAIN_S = 60.0  # a point that stays bad for the same reason is logged at most this often
MAX_UNDECLARED_NAMES = 32
MAX_NAME_CHARACTERS = 64  # of an undeclared name
CROWD_BACK_S = 86_400.0
MAX_CROWD = 100_000  # different values counted in one period of one point; about 10 MB
HASH_CHARACTERS = 16  # 64 bits: enough to count with, too few to be anybody's name elsewhere

# No sensor of a city measures what is smaller than the one, and not 0, or larger than the other: such numbers are bytes
# of something else read as a float. The larger one also keeps every integer within 64 bits.
TINY = 1e-30
CEILING = 9e18


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
        thins: whether some readings of this point are not reported.
    """

    low: float = -CEILING
    high: float = CEILING
    kind: Kind = "number"
    personal: Literal["", "drop", "hash", "blur", "count"] = ""
    blur_to: float = 0.0
    count_every_s: float = 900.0
    fewest: int = 0
    on_change: float | None = None
    at_least_s: float | None = None

    thins: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "thins", self.on_change is not None or self.at_least_s is not None)


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


@dataclass(frozen=True, slots=True)
class Judged:
    """What the rules make of readings that are not logged.

    Attributes:
        readings: of declared points, as they would be logged, before anything personal is hidden.
        undeclared: names that the template does not declare: their readings would be dropped.
    """

    readings: tuple[Reading, ...]
    undeclared: tuple[str, ...] = ()


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
        for handed in readings.readings:
            reading = handed if type(handed.point) is str else _named(handed)
            rule = self.rules.get(reading.point)
            if rule is None:
                self._count_undeclared(reading.point)
                changed = True
                continue
            checked = _check(reading, rule)
            if rule.personal:
                hidden = self._count(checked, rule) if rule.personal == "count" else _hide(checked, rule, self.salt)
                if hidden is None:
                    changed = True
                    continue
                checked = hidden
            changed = changed or checked is not handed
            if (not rule.thins and checked.quality is Quality.GOOD) or self._worth_reporting(checked, rule):
                kept.append(checked)
            else:
                shown.append(checked)
        if not changed and not shown:
            return Admitted(readings)
        if not kept and not readings.state:
            return Admitted(None, tuple(shown))
        return Admitted(replace(readings, readings=tuple(kept)), tuple(shown))

    def judge(self, readings: Iterable[Reading]) -> Judged:
        """What `admit` would make of these readings, without remembering anything: for who shows and does not log."""
        kept: list[Reading] = []
        undeclared: dict[str, None] = {}
        for reading in map(_named, readings):
            rule = self.rules.get(reading.point)
            if rule is None:
                undeclared[told(reading.point, MAX_NAME_CHARACTERS)] = None
            else:
                kept.append(_check(reading, rule))
        return Judged(tuple(kept), tuple(undeclared))

    def _count(self, reading: Reading, rule: PointRule) -> Reading | None:
        """The number of different values of a period, told with the first value of a later one; None meanwhile."""
        if reading.value is None:
            return reading
        crowd = self._crowds.setdefault(reading.point, _Crowd())
        period = int(reading.observed_at.timestamp() // rule.count_every_s)
        number: Reading | None = None
        # a period far behind: the one before was of a clock that was wrong
        if period > crowd.period or (crowd.period - period) * rule.count_every_s > CROWD_BACK_S:
            if crowd.period >= 0 and len(crowd.seen) >= rule.fewest:
                end = datetime.fromtimestamp((crowd.period + 1) * rule.count_every_s, UTC)
                number = replace(reading, value=len(crowd.seen), observed_at=end)
            crowd.period, crowd.seen = period, set()
        if period == crowd.period and len(crowd.seen) < MAX_CROWD:
            crowd.seen.add(hmac.digest(self.salt, str(reading.value).encode(), "sha256")[:12])
        return number

    def _count_undeclared(self, name: str) -> None:
        point = told(name, MAX_NAME_CHARACTERS)
        if point in self.undeclared or len(self.undeclared) < MAX_UNDECLARED_NAMES:
            self.undeclared[point] = self.undeclared.get(point, 0) + 1

    def _worth_reporting(self, reading: Reading, rule: PointRule) -> bool:
        memory = self._memory.get(reading.point)
        if memory is None:
            memory = self._memory[reading.point] = _Memory()
        if reading.quality is not Quality.GOOD:
            return _bad_is_news(reading, memory)
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
        digest = hmac.new(salt, f"{day} {value}".encode(), hashlib.sha256)
        return replace(reading, value=digest.hexdigest()[:HASH_CHARACTERS])
    if isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value / rule.blur_to):
        return replace(reading, value=round(round(value / rule.blur_to) * rule.blur_to, 9))
    return None


def _check(reading: Reading, rule: PointRule) -> Reading:
    """The reading itself, or the same as it may be logged: exact types, and without a value the reason why."""
    value = reading.value
    if (
        type(value) is float
        and rule.low <= value <= rule.high
        and (value >= TINY or value <= -TINY or not value)
        and rule.kind == "number"
        and reading.quality is Quality.GOOD
        and reading.reason is Reason.NONE
        and type(reading.time_source) is TimeSource
    ):
        return reading  # by far the most
    quality, reason = _member(Quality, reading.quality), _member(Reason, reading.reason)
    source = _member(TimeSource, reading.time_source)
    if quality is None or reason is None or source is None:
        value, quality, reason = None, Quality.BAD, Reason.WRONG_TYPE
    elif quality is Quality.BAD:
        value = None
    elif value is None:
        if quality is Quality.GOOD:  # no value cannot be good
            quality, reason = Quality.BAD, Reason.NOT_AVAILABLE
    else:
        value, fault = _judged(value, rule)
        if fault is not Reason.NONE:
            quality, reason = Quality.BAD, fault
    same = value is reading.value and quality is reading.quality and reason is reading.reason
    if same and source is reading.time_source:
        return reading
    return Reading(reading.point, value, reading.observed_at, quality, reason, source or TimeSource.GATEWAY)


def _judged(raw: Value, rule: PointRule) -> tuple[Value | None, Reason]:
    if rule.personal == "count":
        return _somebody(raw)
    if rule.kind != "text" and issubclass(type(raw), float) and not math.isfinite(raw):  # type: ignore[arg-type]
        return None, Reason.NOT_FINITE
    value = value_of(rule.kind, raw)
    if value is None:
        return None, Reason.WRONG_TYPE
    if isinstance(value, str | bool):
        return value, Reason.NONE
    if not rule.low <= value <= rule.high or 0 < abs(value) < TINY:
        return None, Reason.OUT_OF_RANGE
    return value, Reason.NONE


def _somebody(raw: Value) -> tuple[Value | None, Reason]:
    """Who is to be counted: a text or a number that stands for somebody."""
    value = value_of("text", raw)
    if value is None:
        value = value_of("integer", raw)
    if value is None or (isinstance(value, int) and not -CEILING <= value <= CEILING):
        return None, Reason.WRONG_TYPE
    return value, Reason.NONE


_Member = TypeVar("_Member", bound=StrEnum)


def _member(kind: type[_Member], given: Any) -> _Member | None:
    """The member that is meant, also by its plain text; None when there is none."""
    if type(given) is kind:
        return given
    try:
        return kind(str.__str__(given)) if issubclass(type(given), str) else None
    except ValueError:
        return None


def _named(reading: Reading) -> Reading:
    """With its point's name as a plain text; one that is no text becomes a name that nothing declares."""
    point: Any = reading.point
    if type(point) is str:
        return reading
    return replace(reading, point=str.__str__(point) if issubclass(type(point), str) else told(point))


def rules_of(template: Template, report: Mapping[str, Report] | None = None) -> Mapping[str, PointRule]:
    """The rules of a device with this template, compiled once.

    Args:
        report: thinning by point.
    """
    rules = {}
    for name, point in template.points.items():
        quantity = quantities()[point.quantity]
        bounds = point.range or plausible_range(quantity, point.unit or quantity.unit)
        low, high = sorted(bounds) if bounds else (-CEILING, CEILING)
        thinning = (report or {}).get(name, Report())
        rules[name] = PointRule(
            max(low, -CEILING),
            min(high, CEILING),
            quantity.kind,
            point.privacy,
            point.blur_to or 0.0,
            point.count_every_s,
            point.fewest,
            on_change=thinning.on_change,
            at_least_s=thinning.at_least_s,
        )
    return rules
