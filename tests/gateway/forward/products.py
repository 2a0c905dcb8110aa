"""A city in small for the matrix of products: an imitated broker, boxes that can be killed, other writers, and its own time.

Each value names itself, so that the history can be judged to the last point.
"""

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway.config.model import BrokerConfig
from gateway.forward.forwarder import Forwarder
from gateway.forward.ngsild import broker_of
from gateway.forward.settings import ForwardSettings, settings_of
from gateway.forward.updates import Told
from gateway.health import BrokerHealth
from gateway.log.log import Consumer, Log, LogSettings
from gateway.log.store import Connection, connect_file
from gateway.sdk.reading import Reading, ReadingSet
from tests.gateway.forward.scene import AIR, LeapClock, entity_id, tables
from tests.support.broker_profiles import PROFILES, Profile, Scorpio, Stellio
from tests.support.strict_broker import StrictBroker, moment

Point = tuple[str, str, float, Any]  # entity, attribute, unix seconds, value

TICK_S = 0.02
SILENCE_S = 0.3  # of a tenant, until Scorpio writes its history; looked at every
LOOK_S = 0.1
COMMIT_EVERY_S = 0.4
YOUNG_S = 2 * COMMIT_EVERY_S  # what was younger at a kill may be gone; generous, as the card is shared
ROUND_S = 0.04  # the sensors' own pace
SEEN_S = 30.0  # at most; less when nothing happens any more
STILL_S = 8.0
LOOKS_S = 1.0  # a box has looked at what it sent
HOURS_S = 3 * 3600.0  # longer than anything is waited for
# times of a forwarder, so that minutes pass in parts of a second
SCALED: dict[str, Any] = {
    "linger_s": 0.05,
    "records_within_s": 0.7,
    "gather_s": 0.05,
    "held_every_s": 0.05,
    "retry_first_s": 0.1,
    "retry_quick_s": 0.2,
    "retry_cap_s": 0.2,
    "probe_again_s": 0.2,
    "look_s": 0.2,
    "look_updates": 8,
    "look_within_s": 20.0,
    "learn_s": 30.0,
}
OWN_TIMES = {"no record": {"learn_s": 1.0, "unseen_s": 3.0}}  # it is learned within the scene


class Ticks:
    """Time that stands still while the machine does: nothing falls silent because a test was not served."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        async def go() -> None:
            while True:
                await asyncio.sleep(TICK_S)
                self.s += TICK_S

        task = asyncio.create_task(go(), name="ticks")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def passed(self, seconds: float) -> None:
        """Wait so long."""
        until_s = self.s + seconds
        while self.s < until_s:  # noqa: ASYNC110 - it is time itself that is waited for
            await asyncio.sleep(TICK_S)


def profile_of(product: str, tenant: str, ticks: Ticks) -> Profile:
    """The imitation, in the time of the city. Contexts are another test's: all can be had, with the right type."""
    profile: Profile
    match product:
        case "scorpio":
            profile = Scorpio(silence_s=SILENCE_S, look_s=LOOK_S, tenant_s=0.1, batch_s=None, now_s=ticks)
        case "stellio":
            profile = Stellio(tenants=[tenant] if tenant else [])
        case "no record":
            profile = Profile()
        case _:
            profile = PROFILES[product]()
    profile.contexts.serve(AIR)
    return profile


class Box:
    """One box: its log, its forwarder, and what its devices served.

    Attributes:
        must: points that the history has to hold. may: younger than `commit_every` at a kill.
        killed: of runs that were killed: what the broker forgets of it may be nowhere.
        newest: of each entity and attribute.
    """

    def __init__(self, name: str, folder: Path, ticks: Ticks, *, devices: int = 2) -> None:
        self.devices = tuple(f"{name}-{n}" for n in range(devices))
        self.must: set[Point] = set()
        self.may: set[Point] = set()
        self.killed: set[Point] = set()
        self.newest: dict[tuple[str, str], Any] = {}
        self.health = BrokerHealth()
        self.clock = LeapClock()
        self.log: Log | None = None
        self.card_away = False  # when it starts
        self._folder = folder
        self._ticks = ticks
        self._task: asyncio.Task[None] | None = None
        self._forwarder: Forwarder
        self._told: Told | None = None
        self._config: tuple[BrokerConfig, Mapping[str, Any]]
        self._served: list[tuple[float, Point]] = []  # in this run, with when
        self._count = 0
        self._runs = 0

    @property
    def running(self) -> bool:
        return self._task is not None

    @property
    def settled(self) -> bool:
        """Whether nothing is owed."""
        return self.log is not None and self.log.backlog("city")[0] == 0

    async def start(self, url: str, tenant: str, preset: str, times: Mapping[str, Any]) -> None:
        """As the daemon makes it, with scaled times."""
        folder = self._folder / str(self._runs)
        settings = LogSettings(folder / "buffer.db", commit_every_s=COMMIT_EVERY_S)
        self.log = await Log.open(settings, clock=self.clock, consumers=[Consumer("city")], connect=self._connect)
        said = {"url": url, "preset": preset, "timeout": "5 s", **({"tenant": tenant} if tenant else {})}
        self._config = BrokerConfig.model_validate(said), times
        self._forward()

    def _connect(self, path: Path) -> Connection:
        if self.card_away:
            raise OSError(5, "Input/output error")
        return connect_file(path)

    def _forward(self) -> None:
        assert self.log is not None
        config, times = self._config
        self.health = BrokerHealth()
        forwarder = Forwarder(
            "city",
            broker_of(config),
            tables(*self.devices),
            log=self.log,
            health=self.health,
            clock=self.clock,
            settings=scaled(settings_of(config), times),
            before=self._told,
        )
        self._forwarder = forwarder
        self._task = asyncio.create_task(forwarder.run(), name="box")

    async def reload(self) -> None:
        """The forwarder is made anew, on the same log."""
        await self._end()
        self._forward()

    async def stop(self) -> None:
        """A clean stop."""
        if self.log is not None:
            await self._end()
            await self.log.close()
            self.log = self._told = None
            self._served.clear()

    async def _end(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._told = self._forwarder.told()

    async def kill(self) -> None:
        """kill -9: what the card holds at this moment is what the next run finds."""
        here, there = (self._folder / str(self._runs + more) for more in (0, 1))
        self.may |= {point for at_s, point in self._served if self._ticks.s - at_s < YOUNG_S}
        self.must -= self.may
        self.killed |= self.must & {point for _, point in self._served}
        while not _copied(here, there):  # noqa: ASYNC110 - a commit was at work: a moment later
            await asyncio.sleep(TICK_S)
        await self.stop()  # what this still does is no longer of any use
        self._runs += 1

    async def serve(self) -> None:
        """One value of each point of each device."""
        if self.log is None or not self.running:
            return
        self._count += 1
        for n, device in enumerate(self.devices):
            at = self.clock.now()
            at = at.replace(microsecond=at.microsecond // 1000 * 1000)  # what every product keeps
            values = {"no2": self._count + n / 10, "pm25": self._count}
            await self.log.append(ReadingSet(device, tuple(Reading(p, v, at) for p, v in values.items())))
            for name, value in values.items():
                point = (entity_id(device), name, at.timestamp(), value)
                self.must.add(point)
                self._served.append((self._ticks.s, point))
                self.newest[entity_id(device), name] = value


def scaled(settings: ForwardSettings, times: Mapping[str, Any]) -> ForwardSettings:
    """What the operator's file says, in the time of the city."""
    return replace(settings, **{**SCALED, **times})


def _copied(here: Path, there: Path) -> bool:
    """Copy the files of a log as they are on the card at one moment; whether that was one."""

    def look() -> list[tuple[str, int, int]]:
        return sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in here.iterdir())

    before = look()
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(here, there, ignore=shutil.ignore_patterns("*-shm"))
    return look() == before


@dataclass
class City:
    """One broker with all who write to it."""

    strict: StrictBroker
    ticks: Ticks
    boxes: list[Box]
    url: str
    tenant: str = ""
    preset: str = "auto"
    busy: bool = False  # somebody else writes to the tenant, all the time
    times: Mapping[str, Any] = field(default_factory=dict)
    double_fault: bool = False  # what the broker forgot may be missing
    _neighbour: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def start(self, boxes: Iterable[Box]) -> None:
        for box in boxes:
            await box.start(self.url, self.tenant, self.preset, self.times)

    async def live(self, rounds: int) -> None:
        """Devices serve and others write, as ever."""
        if self.busy:
            await self._come()
        for _ in range(rounds):
            for box in self.boxes:
                await box.serve()
            await self.ticks.passed(ROUND_S)

    async def quiet(self) -> None:
        """Nobody writes for a while."""
        await self._neighbour.aclose()
        await self.ticks.passed(SILENCE_S + 2 * LOOK_S)

    async def _come(self) -> None:
        await self._neighbour.aclose()
        await self._neighbour.enter_async_context(self.strict.neighbour(every_s=TICK_S, tenant=self.tenant))

    async def seen(self) -> str:
        """Nobody else writes any more; wait until all that can be in the history is. What is wrong for good, or ""."""
        await self.quiet()
        faults, told, end_s, changed_s = "", -1, self.ticks.s + SEEN_S, self.ticks.s
        while True:
            now_s, stored = self.ticks.s, len(self.strict.stored)
            if stored != told or now_s - changed_s >= STILL_S:
                faults = self.faults()
                if told != stored:
                    told, changed_s = stored, now_s
            settled = all(box.settled for box in self.boxes)
            if (settled and not faults) or now_s >= end_s or now_s - changed_s >= STILL_S:
                return faults if settled else f"{faults}\nstill owed" + "\n".join(self._around())
            await self.ticks.passed(0.1)

    async def close(self) -> None:
        await self._neighbour.aclose()
        for box in self.boxes:
            await box.stop()

    # what came of it

    def faults(self) -> str:
        """What is missing, doubled, invented or older than it was; "" when all is well."""
        must = {point for box in self.boxes for point in box.must}
        may = {point for box in self.boxes for point in box.may}
        kept = Counter(_point(key) for key in self._history() if _ours(key[1], key[2]))
        killed = {point for box in self.boxes for point in box.killed}
        forgotten = self.forgotten()
        missing = must - kept.keys()
        told = {
            "missing and forgotten by the broker": set() if self.double_fault else missing & forgotten - killed,
            "missing, not forgotten": missing - forgotten,
            "doubled": {point for point, count in kept.items() if count > 1},
            "invented": kept.keys() - must - may,
            "back": {_point(value.key) for value, _ in self.strict.backwards},
            "not current": {
                (entity, name, 0.0, value)
                for box in self.boxes
                for (entity, name), value in box.newest.items()
                if not box.may and self.strict.current(entity, name, self.tenant) != value
            },
        }
        lines = [f"{len(points)} {what}: {_some(points)}" for what, points in told.items() if points]
        counted = f"of {len(must)} points the broker forgot {len(must & forgotten)}"
        return "\n".join([*lines, counted, *self._around()] if lines else [])

    def _history(self) -> Iterable[tuple[str, str, str | None, Any]]:
        """What the history holds; of a broker that offers none, what its current state was."""
        return (self.strict.temporal_history if self.strict.behaviour.temporal else self.strict.history)(self.tenant)

    def forgotten(self) -> set[Point]:
        """What the broker acknowledged and lost."""
        return {_point(value.key) for value in self.strict.forgotten if _ours(value.attribute, value.observed_at)}

    def _around(self) -> list[str]:
        return [
            f"{box.devices[0][:-2]}: {box.health.state} {box.health.reason} history={box.health.history} "
            f"backlog={box.health.backlog} later={box.health.later} dead={box.health.dead}"
            for box in self.boxes
        ]


def _ours(name: str, at: str | None) -> bool:
    return at is not None and name != "dateObserved"


def _point(key: tuple[str, str, str | None, Any]) -> Point:
    entity, name, at, value = key
    return entity, name, moment(at) if at else 0.0, value


def _some(points: set[Point], most: int = 6) -> str:
    listed = sorted(points, key=lambda point: (point[2], point[0], point[1]))
    named = [f"{entity.rpartition(':')[2]} {name}={value}" for entity, name, _, value in listed]
    return ", ".join(named if len(named) <= most else [*named[: most - 1], f"… {named[-1]}"])


@contextlib.asynccontextmanager
async def city(
    folder: Path,
    product: str,
    *,
    ticks: Ticks,
    boxes: int = 1,
    busy: bool = False,
    tenant: str = "",
    preset: str = "auto",
) -> AsyncIterator[City]:
    """A broker and its boxes, all at work."""
    strict = StrictBroker(profile=profile_of(product, tenant, ticks))
    if product == "stellio":
        strict.behaviour.records_after_s = 0.1  # another service writes it
    strict.behaviour.records = strict.behaviour.records and product != "no record"
    async with strict.serve() as url:
        made = [Box(name, folder / name, ticks) for name in ("air", "sea")[:boxes]]
        of = City(strict, ticks, made, url, tenant, preset, busy, OWN_TIMES.get(product, {}))
        try:
            await of.start(made)
            yield of
        finally:
            await of.close()
