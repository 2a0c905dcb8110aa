"""Claimed times, from the driver to the file and back: bounded by reception, never an order, an obstacle or the newest.

A real link, a real log, a manual clock that is worth what the test says. The oracle knows the true time of reception.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.claims import AHEAD, BACK, EARLIEST, FOREVER, Reception, TimeGate, utc_or_none
from gateway.clock import Source
from gateway.health import DeviceHealth, Health
from gateway.link import WRONG_TIME_SHOWN_S, LinkService
from gateway.log.log import Columns, Consumer, Log, LogSettings, TimeState
from gateway.log.segment import microseconds, wall_time
from gateway.sdk.config import DeviceConfig, LinkConfig
from gateway.sdk.driver import SDK_VERSION, Context
from gateway.sdk.errors import FrameError
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, TimeSource
from gateway.sdk.template import Template, TemplatePoint
from gateway.sdk.testing import NOON
from tests.gateway.log.scene import BootClock

MAX_AGE = timedelta(days=90)
TO_1970_S = (datetime(1970, 1, 1, tzinfo=UTC) - NOON).total_seconds()
POINTS = {name: TemplatePoint(quantity="air_temperature") for name in ("t", "u")}


@dataclass
class ScriptedDriver:
    work: Callable[[Context], Awaitable[None]]
    name: str = "scripted"
    sdk_version: int = SDK_VERSION
    config_model: type[LinkConfig] = LinkConfig
    template_model: type[Template] = Template
    templates: Any = None

    async def run(self, config: LinkConfig, context: Context) -> None:
        await self.work(context)

    def decode(self, template: Template, frame: bytes, context: Any) -> tuple[Reading, ...]:
        raise FrameError("no frames here", frame=frame)


class Box:
    """One boot of one box: link and log over a clock.

    Args:
        wrong_s: how far its clock is off.
    """

    def __init__(self, path: Path, clock: BootClock, *, keeps_history: bool = False, **settings: Any) -> None:
        self.clock = clock
        self._settings = LogSettings(
            path / "buffer.db", commit_every_s=3600.0, max_age_s=MAX_AGE.total_seconds(), **settings
        )
        self._template = Template(vendor="Made", model="up", points=POINTS, keeps_history=keeps_history)
        self.log: Log
        self.link: LinkService

    async def __aenter__(self) -> "Box":
        self.log = await Log.open(self._settings, clock=self.clock, consumers=[Consumer("city")])
        config = LinkConfig(driver="scripted", devices={"d": DeviceConfig(template=self._template)})

        async def idle(context: Context) -> None:
            await asyncio.Event().wait()

        driver = ScriptedDriver(idle)
        self.link = LinkService("l", driver, config, log=self.log, health=Health(self.clock), clock=self.clock)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.log.close()

    async def emit(self, value: float, at: Any, source: Any = TimeSource.NETWORK, point: str = "t") -> datetime:
        """Hand over one reading; the true time of reception."""
        await self.link.emit(ReadingSet("d", (Reading(point, value, at, time_source=source),)))
        return self.clock.true

    async def read(self) -> list[tuple[Any, datetime, TimeSource, TimeState]]:
        found: list[tuple[Any, datetime, TimeSource, TimeState]] = []
        after = None
        while (columns := await self.log.read("city", after=after)) is not None:
            found += rows(columns)
            after = columns.last
        return found

    @property
    def device(self) -> DeviceHealth:
        return self.link._record.devices["d"]

    def shown(self, point: str = "t") -> Any:
        """Value that page, status and read API show."""
        return self.log.last_values.device("d")[point]

    def current(self, point: str = "t") -> Any:
        """Value that a broker gets as current."""
        number = next(n for n, series in self.log.series.items() if series.point == point)
        return self.log.last_values.good(number)


def rows(columns: Columns) -> list[tuple[Any, datetime, TimeSource, TimeState]]:
    times = map(wall_time, columns.time_us)
    return list(zip(columns.value, times, columns.time_source, columns.time_state, strict=True))


CLAIMS = {
    "now": timedelta(0),
    "a little ahead": AHEAD - timedelta(seconds=1),
    "half an hour ahead": timedelta(minutes=30),
    "a day ahead": timedelta(days=1),
    "2046": timedelta(days=20 * 365),
    "9999": datetime.max.replace(tzinfo=UTC) - NOON - timedelta(days=1),
    "an hour ago": -timedelta(hours=1),
    "two days ago": -timedelta(days=2),
    "80 days ago": -timedelta(days=80),
    "100 days ago": -timedelta(days=100),
    "2012": datetime(2012, 1, 1, tzinfo=UTC) - NOON,
    "1980": datetime(1980, 1, 21, tzinfo=UTC) - NOON,
    "year 1": datetime(1, 1, 1, tzinfo=UTC) - NOON,
}


def within(ahead: timedelta, source: TimeSource, at: datetime, *, keeps_history: bool) -> bool:
    """The rule, in its own words: 2020, five minutes, a day for a device's clock, `max_age` for others."""
    back = timedelta(days=1) if source is TimeSource.DEVICE and not keeps_history else MAX_AGE
    return at + ahead >= datetime(2020, 1, 1, tzinfo=UTC) and -back <= ahead <= timedelta(minutes=5)


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("source", [TimeSource.DEVICE, TimeSource.NETWORK])
@pytest.mark.parametrize("keeps_history", [False, True])
@pytest.mark.parametrize(
    "clock_state", ["known", "by its coin cell", "learned", "learned after a restart", "next boot"]
)
@pytest.mark.parametrize("committed", [False, True])
async def test_a_claimed_time_is_believed_within_its_bounds_and_else_that_of_reception(
    tmp_path: Path, claim: str, source: TimeSource, keeps_history: bool, clock_state: str, committed: bool
) -> None:
    known = {"known": Source.KERNEL, "by its coin cell": Source.RTC}.get(clock_state, Source.NONE)
    clock = BootClock("b1", NOON, 0.0 if known else TO_1970_S, known)
    box = Box(tmp_path, clock, keeps_history=keeps_history)
    async with box:
        clock.advance(60)
        received = await box.emit(1.0, clock.true + CLAIMS[claim], source)
        if committed:
            await box.log.commit()
        if not known:
            assert await box.read() == []
            assert box.current() is None
        if clock_state == "learned":
            clock.learn(Source.BROKER)
        clock.advance(300)
        await box.emit(2.0, clock.now(), TimeSource.GATEWAY)
        if clock_state == "learned":
            await box.log.commit()
        assert box.shown().value == 2.0
        found = await box.read()
    if clock_state == "learned after a restart":
        box = Box(tmp_path, clock, keeps_history=keeps_history)
        async with box:
            assert await box.read() == []
            clock.learn(Source.GNSS)
            await box.emit(3.0, clock.now(), TimeSource.GATEWAY)
            await box.log.commit()
            found = (await box.read())[:2]
            assert box.current().value == 3.0
    if clock_state == "next boot":
        later = BootClock("b2", clock.true + timedelta(minutes=2), source=Source.KERNEL)
        box = Box(tmp_path, later, keeps_history=keeps_history)
        async with box:
            await box.emit(3.0, later.now(), TimeSource.GATEWAY)
            await box.log.commit()
            found = (await box.read())[:2]
            assert box.current().value == 3.0

    value, at, whose, state = found[0]
    assert value == 1.0  # the value stays good
    if within(CLAIMS[claim], source, received, keeps_history=keeps_history):
        assert (at, whose, state) == (received + CLAIMS[claim], source, TimeState.SURE)
    else:
        assert whose is TimeSource.GATEWAY
        off = timedelta(minutes=8) if clock_state == "next boot" else timedelta(milliseconds=1)
        assert abs(at - received) <= off
        assert state is (TimeState.ESTIMATED if clock_state == "next boot" else TimeState.SURE)
    assert found[1][0] == 2.0


@pytest.mark.parametrize("ahead", [CLAIMS[name] for name in ("half an hour ahead", "2046", "9999")])
@pytest.mark.parametrize("known", [True, False])
async def test_one_time_in_the_future_hides_nothing_and_is_told(tmp_path: Path, ahead: timedelta, known: bool) -> None:
    clock = BootClock("b1", NOON, source=Source.KERNEL if known else Source.NONE)
    async with Box(tmp_path, clock) as box:
        for n in range(1, 6):
            clock.advance(10)
            await box.emit(float(n), clock.now() + (ahead if n == 3 else timedelta(0)))
            assert box.shown().value == n
        if known:
            assert box.current().value == 5.0
            assert box.device.state == "ok"
            assert box.device.counters["wrong_times"] == 1
            assert "time of reception is taken" in box.device.reason
            assert "clock" in box.device.remedy
            clock.advance(WRONG_TIME_SHOWN_S)
            await box.emit(6.0, clock.now())
            assert (box.device.reason, box.device.remedy) == ("", "")


NAIVE = NOON.replace(tzinfo=None)


class Broken(tzinfo):
    """A zone that cannot say its offset."""

    def utcoffset(self, at: datetime | None) -> timedelta:
        raise RuntimeError("no zone file")

    def dst(self, at: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, at: datetime | None) -> str:
        return "broken"


UNREADABLE = [
    NAIVE,
    NAIVE.replace(tzinfo=Broken()),
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-23, minutes=-59))),
    "2026-03-01T12:00:00Z",
    1_772_366_400,
    None,
    NOON.date(),
]


@pytest.mark.parametrize("at", UNREADABLE)
@pytest.mark.parametrize("source", [*TimeSource, "network", "nonsense", None])
@pytest.mark.parametrize("known", [True, False])
async def test_a_time_that_cannot_be_read_costs_its_reading_the_value(
    tmp_path: Path, at: Any, source: Any, known: bool
) -> None:
    clock = BootClock("b1", NOON, source=Source.KERNEL if known else Source.NONE)
    async with Box(tmp_path, clock, unconfirmed="mark") as box:
        both = (Reading("t", 1.0, at, time_source=source), Reading("u", 2.0, clock.now()))
        await box.link.emit(ReadingSet("d", both))
        await box.log.commit()  # nothing of it stops the card
        bad, good = await box.read()
        assert bad[:3] == (None, clock.now(), TimeSource.GATEWAY)
        assert good[0] == 2.0
        shown = box.shown()
        assert (shown.quality, shown.reason) == (Quality.BAD, Reason.BAD_TIME)
        assert box.device.counters["unreadable_times"] == 1
        assert box.device.remedy


@pytest.mark.parametrize("at", [datetime(1970, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)])
@pytest.mark.parametrize("wrong_s", [0.0, TO_1970_S])
async def test_a_driver_that_calls_a_wild_time_the_gateways_is_not_believed(
    tmp_path: Path, at: datetime, wrong_s: float
) -> None:
    clock = BootClock("b1", NOON, wrong_s, Source.NONE if wrong_s else Source.KERNEL)
    clock.advance(2 * 86400)  # else 1970 is now
    async with Box(tmp_path, clock) as box:
        received = await box.emit(1.0, at, TimeSource.GATEWAY)
        if wrong_s:
            clock.learn(Source.KERNEL)
            await box.emit(2.0, clock.now(), TimeSource.GATEWAY)
        await box.log.commit()
        assert (await box.read())[0] == (1.0, received, TimeSource.GATEWAY, TimeState.SURE)
        assert box.device.counters["wrong_times"] == 1


async def test_a_gateway_time_of_just_before_the_clock_was_set_is_no_wild_one(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, TO_1970_S)
    async with Box(tmp_path, clock) as box:
        await box.emit(0.0, clock.now(), TimeSource.GATEWAY)
        at, taken = clock.now(), clock.true
        clock.advance(5)
        clock.learn(Source.KERNEL)
        await box.emit(1.0, at, TimeSource.GATEWAY)
        await box.log.commit()
        assert [row[1] for row in await box.read()] == [NOON, taken]
        assert box.device.counters["wrong_times"] == 0


async def test_another_zone_is_the_same_moment(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, source=Source.KERNEL)
    async with Box(tmp_path, clock) as box:
        await box.emit(1.0, NOON.astimezone(timezone(timedelta(hours=5, minutes=45))))
        assert await box.read() == [(1.0, NOON, TimeSource.NETWORK, TimeState.SURE)]


async def test_a_device_is_judged_by_when_its_network_heard_it(tmp_path: Path) -> None:
    """A server that queued for a week: the device's clock was right then."""
    clock = BootClock("b1", NOON, source=Source.KERNEL)
    heard = NOON - timedelta(days=7)
    async with Box(tmp_path, clock) as box:
        for at in (heard - timedelta(minutes=1), NOON - timedelta(days=300)):
            of_device = Reading("t", 1.0, at, time_source=TimeSource.DEVICE)
            await box.link.emit(ReadingSet("d", (of_device, Reading("u", 2.0, heard, time_source=TimeSource.NETWORK))))
        assert [row[1] for row in await box.read()] == [heard - timedelta(minutes=1), heard, heard, heard]


@pytest.mark.parametrize("stored", ["trusted", "untrusted"])
@pytest.mark.parametrize("claim", ["2046", "1980", "half an hour ahead", "an hour ago"])
async def test_a_log_of_an_earlier_version_is_judged_when_it_is_read(tmp_path: Path, stored: str, claim: str) -> None:
    """That one asked no gate: its sets go past the link, into the file as they were claimed."""
    clock = BootClock("b1", NOON, source=Source.KERNEL if stored == "trusted" else Source.NONE)
    async with Box(tmp_path, clock) as box:
        claimed = clock.now() + CLAIMS[claim]
        await box.log.append(ReadingSet("d", (Reading("t", 1.0, claimed, time_source=TimeSource.NETWORK),)))
        for entry in box.log._head.entries:
            box.log._head.entries[0] = entry._replace(claim=None)
        clock.advance(10)
        await box.log.append(ReadingSet("d", (Reading("t", 2.0, clock.now(), time_source=TimeSource.NETWORK),)))
        for n, entry in enumerate(box.log._head.entries):
            box.log._head.entries[n] = entry._replace(claim=None)
        await box.log.commit()
    async with Box(tmp_path, clock) as box:
        if stored == "untrusted":
            clock.learn(Source.KERNEL)
        clock.advance(10)
        await box.emit(3.0, clock.now())
        await box.log.commit()
        found = await box.read()
        assert box.shown().value == 3.0
        assert box.current().value == 3.0
        assert [row[0] for row in found] == [1.0, 2.0, 3.0]
        _, at, _, state = found[0]
        assert state is TimeState.SURE
        if claim == "an hour ago":
            assert at == claimed
        else:
            assert abs(at - NOON) <= timedelta(minutes=1)  # when it was written, which is all that is known


async def test_last_values_that_an_earlier_version_saved_do_not_stick(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, source=Source.KERNEL)
    async with Box(tmp_path, clock) as box:
        await box.log.append(ReadingSet("d", (Reading("t", 2.0, NOON, time_source=TimeSource.NETWORK),)))
        at = NOON + CLAIMS["2046"]
        await box.log.append(ReadingSet("d", (Reading("t", 1.0, at, time_source=TimeSource.NETWORK),)))
        assert box.shown().value == 1.0  # as that version had it
    async with Box(tmp_path, BootClock("b2", NOON + timedelta(minutes=1), source=Source.KERNEL)) as box:
        assert box.shown().value == 2.0


async def test_what_came_before_is_not_pruned_for_its_claimed_age(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, source=Source.KERNEL)
    async with Box(tmp_path, clock) as box:
        await box.emit(1.0, datetime(1980, 1, 21, tzinfo=UTC))
        await box.emit(2.0, clock.now() - MAX_AGE + timedelta(seconds=5))
        await box.log.commit()
        clock.advance(86400)
        await box.emit(3.0, clock.now())
        await box.log.commit()
        assert [row[0] for row in await box.read()] == [1.0, 2.0, 3.0]
        assert not box.log.gaps


async def test_the_same_reading_has_the_same_time_from_memory_and_from_the_file(tmp_path: Path) -> None:
    """Else a broker would have it twice after a crash."""
    clock = BootClock("b1", NOON, TO_1970_S)
    async with Box(tmp_path, clock, unconfirmed="hold") as box:
        for claim in CLAIMS.values():
            clock.advance(7)
            await box.emit(1.0, clock.true + claim, TimeSource.DEVICE)
        clock.learn(Source.BROKER)
        box.log._stamps.look()
        box.log._committer._use_boots(box.log._committer._pending)  # as when the card refuses: from memory
        in_memory = await box.read()
        assert len(in_memory) == len(CLAIMS)
        await box.log.commit()
        assert await box.read() == in_memory


async def test_a_hardware_clock_that_was_wrong_is_seen_through_later(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, 86400.0, Source.RTC)  # a day ahead of the truth
    async with Box(tmp_path, clock) as box:
        right, wild = clock.true, clock.now()  # of a network that knows, and of a device that is as wrong
        await box.emit(1.0, right)
        await box.emit(2.0, wild, TimeSource.DEVICE)
        clock.learn(Source.KERNEL)
        assert box.log.before_step() == clock.now() + timedelta(days=1)  # it looks at the clock, as its tick does
        await box.log.commit()
        clock.advance(10)
        await box.emit(3.0, clock.now())
        await box.log.commit()
        assert [row[1] for row in await box.read()] == [right, right, clock.now()]
        assert box.current().value == 3.0


def times() -> st.SearchStrategy[Any]:
    zones = st.builds(timezone, st.integers(-1439, 1439).map(lambda minutes: timedelta(minutes=minutes)))
    return st.datetimes(timezones=st.none() | st.just(UTC) | zones) | st.sampled_from(UNREADABLE[2:]) | st.text()


@given(
    claimed=st.lists(st.tuples(times(), st.sampled_from([*TimeSource, "device", 7])), min_size=1, max_size=5),
    now=st.datetimes(datetime(1970, 1, 1), datetime(2060, 1, 1)).map(lambda at: at.replace(tzinfo=UTC)),
    confirmed=st.booleans(),
    back=st.sampled_from([BACK, MAX_AGE, FOREVER]),
)
def test_any_time_comes_out_aware_and_within_its_bounds(
    claimed: list[tuple[Any, Any]], now: datetime, confirmed: bool, back: timedelta
) -> None:
    readings = ReadingSet("d", tuple(Reading("t", 1.0, at, time_source=source) for at, source in claimed))
    gate = TimeGate(back, MAX_AGE)
    dated, waits = (readings, False)
    if not gate.ordinary(readings.readings, now):
        dated, waits = gate.admit(readings, Reception(now, confirmed))
    for (at, _), reading in zip(claimed, dated.readings, strict=True):
        microseconds(reading.observed_at)
        assert reading.observed_at.tzinfo is UTC
        assert type(reading.time_source) is TimeSource
        if reading.time_source is TimeSource.GATEWAY:
            assert now - BACK <= reading.observed_at <= now + AHEAD
        else:
            assert reading.observed_at >= EARLIEST
            assert waits is not confirmed
        if confirmed:
            assert reading.observed_at <= now + AHEAD
        readable = utc_or_none(at) is not None
        assert (reading.value is not None) is readable
        assert (reading.reason is Reason.BAD_TIME) is not readable


async def test_wrong_times_after_an_hour_of_right_ones_are_an_event_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = BootClock("b1", NOON, source=Source.KERNEL)
    async with Box(tmp_path, clock) as box:
        for hour in range(2):
            for _ in range(2):
                await box.emit(1.0, clock.now() + timedelta(hours=1))
            assert capsys.readouterr().out.count("wrong_times") == 1, hour
            clock.advance(WRONG_TIME_SHOWN_S)
            await box.emit(2.0, clock.now())


async def test_times_that_are_wrong_or_cannot_be_read_are_counted_one_by_one(tmp_path: Path) -> None:
    clock = BootClock("b1", NOON, source=Source.KERNEL)
    async with Box(tmp_path, clock) as box:
        for sets in range(1, 4):
            wrong = [Reading(point, 1.0, clock.now() + timedelta(hours=1)) for point in ("t", "t")]
            noon: Any = "noon"
            unreadable = [replace(reading, observed_at=noon) for reading in wrong]
            await box.link.emit(ReadingSet("d", (*wrong, *unreadable)))
            assert (box.device.counters["wrong_times"], box.device.counters["unreadable_times"]) == (2 * sets, 2 * sets)
