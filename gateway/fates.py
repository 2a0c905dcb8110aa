"""What becomes of readings that are still owed when a config changes, and of the entities they were sent as; for people."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from gateway.forward.greetings import city_of
from gateway.harmonise.devices import MARK
from gateway.harmonise.recipe import RecipeError, entities_of, points_of
from gateway.log.log import Log
from gateway.log.recipes import Change, Row
from gateway.plan import Plan
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Quality

COUNT_WITHIN_S, COUNT_AT_ONCE = 3.0, 5000
Counts = Mapping[tuple[str, str], Mapping[str, int]]  # device, broker -> point -> readings
STAYS = "stays there with its last value"


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of something.

    Attributes:
        of: `device NAME` or `broker NAME`.
        readings: how many are owed; held pieces apart.
        lost: how many of them nobody gets.
    """

    of: str
    readings: int
    lost: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Brokers:
    """The brokers of a config beside those that the log knows.

    Attributes:
        now: of the config.
        renamed: old name -> name of now.
        moved: of those that go by the name they had, who is at another address, or another tenant.
        back: those that were gone.
        bounds: for how long, and how much, is kept for those that are gone.
    """

    now: Set[str]
    renamed: Mapping[str, str]
    moved: Set[str]
    back: Set[str]
    bounds: str


@dataclass(frozen=True, slots=True)
class Foretold:
    """What a change makes of a log.

    Attributes:
        counts: good readings that are to be sent, of devices that are concerned.
        whole: all were counted, in the time there is.
    """

    fates: tuple[Fate, ...]
    counts: Counts
    whole: bool


async def foretell(
    log: Log,
    new: Plan,
    change: Change,
    *,
    there: Set[str],
    cities: Mapping[str, str],
    also: Set[str] = frozenset(),
) -> Foretold:
    """What a new plan makes of what a log owes.

    Args:
        change: what it makes of the devices.
        there: devices of the config until now.
        cities: the brokers until now, each with who goes by the name; "" where that is not known.
        also: devices to be counted though nothing becomes of them.
    """
    known, gone = log.recipes, log.gone_consumers()
    brokers = _brokers(new, cities, gone.keys())
    devices = {*also, *concerned(known, change, brokers.renamed)}
    upto = {name: log.accepted_upto(name) for name in cities}
    counts, whole = await _counted(log, known, upto, devices)
    backlogs = {name: its["backlog"] for name, its in gone.items()} | {name: log.backlog(name)[0] for name in cities}
    held = Counter((piece.device, piece.broker) for piece in log.held.pieces())
    told = fates(known, change, brokers, there=there, owed=counts, backlogs=backlogs, held=held)
    return Foretold(told, counts, whole)


def _brokers(new: Plan, cities: Mapping[str, str], gone: Set[str]) -> Brokers:
    before = {*cities, *gone}
    renamed = {
        was: name
        for name, broker in new.brokers.items()
        if (was := broker.config.was) and was in before and name not in before
    }
    now = {name: city_of(its.config.url, its.config.tenant) for name, its in new.brokers.items()}
    moved = {name for name, city in cities.items() if city and now.get(name, city) != city}
    buffer = new.config.buffer
    most = f"{buffer.max_age_s / 86400:g} days, and while all of the log fits into {buffer.max_size_bytes / 1e6:g} MB"
    return Brokers(now=now.keys(), renamed=renamed, moved=moved, back=gone & now.keys(), bounds=most)


async def _counted(
    log: Log, known: Mapping[Row, bytes], upto: Mapping[str, int], devices: Set[str]
) -> tuple[dict[Row, Counter[str]], bool]:
    """(Device, broker) -> good readings that it is still to get, by point; and whether all were counted in the time there is."""
    takes = {row: _points(body) for row, body in known.items() if row[0] in devices and row[1] in upto}
    of_device: dict[str, list[str]] = {}
    for device, broker in takes:
        of_device.setdefault(device, []).append(broker)
    counts: dict[Row, Counter[str]] = {}
    until_s, place = time.monotonic() + COUNT_WITHIN_S, min(upto.values(), default=0)
    whole = not takes
    while not whole and time.monotonic() < until_s:
        try:
            columns = await log.scan(place, COUNT_AT_ONCE)
        except LogError:
            break  # shown elsewhere
        if columns is None:
            whole = True
            continue
        place = columns.last
        for seq, number, quality in zip(columns.seq, columns.series, columns.quality, strict=True):
            of = log.series.get(number)
            if of is None or quality is not Quality.GOOD:
                continue
            for broker in of_device.get(of.device, ()):
                points = takes[of.device, broker]
                if seq > upto[broker] and (points is None or of.point in points):
                    counts.setdefault((of.device, broker), Counter())[of.point] += 1
    return counts, whole


def concerned(known: Mapping[Row, bytes], change: Change, renamed: Mapping[str, str]) -> set[str]:
    """Devices whose readings become something else, as the log calls them until now."""
    changed = {row[0] for row, body in known.items() if row[1] and _after(row, change, renamed)[1] != body}
    return changed | {device for device, _ in known if device in change.moves or device not in change.devices}


def _after(row: Row, change: Change, renamed: Mapping[str, str]) -> tuple[str, bytes | None]:
    """How a device is called from now on, and its recipe."""
    device, broker = row
    name = change.moves.get(device, device)
    return name, change.rows.get((name, renamed.get(broker, broker)))


def fates(
    known: Mapping[Row, bytes],
    change: Change,
    brokers: Brokers,
    *,
    there: Set[str],
    owed: Counts,
    backlogs: Mapping[str, int],
    held: Mapping[tuple[str, str], int],
) -> tuple[Fate, ...]:
    """What becomes of what.

    Args:
        known: the recipes until now.
        change: what the config makes of the devices.
        there: devices of the config until now: what became of others is no news.
        owed: good readings that are to be sent, of devices that are concerned.
        backlogs: of each broker in all, those that are gone too.
        held: held pieces by device and broker.
    """
    news = {row: body for row, body in known.items() if row[0] in {*there, *change.moves, *change.devices}}
    return (
        *_of_brokers(brokers, backlogs, held),
        *_of_devices(news, change, brokers, owed, held),
        *_of_entities(news, change, brokers),
    )


def _of_brokers(brokers: Brokers, backlogs: Mapping[str, int], held: Mapping[tuple[str, str], int]) -> Iterator[Fate]:
    for name, readings in sorted(backlogs.items()):
        pieces = sum(count for (_, broker), count in held.items() if broker == name)
        what = _what(readings, pieces)
        if not what:
            continue
        if name in brokers.renamed:
            text = f"{what}: go on to {brokers.renamed[name]}"
        elif name not in brokers.now:
            forget = f"`citygate buffer forget {name}`"
            text = f"{what}: kept until it is put back, or {forget}; at most {brokers.bounds}"
        elif name in brokers.moved:
            text = f"{what}: go to the new address or tenant"
        elif name in brokers.back:
            text = f"{what}: go out, it is back"
        else:
            continue
        yield Fate(f"broker {name}", readings, 0, text)


def _of_devices(
    known: Mapping[Row, bytes],
    change: Change,
    brokers: Brokers,
    owed: Counts,
    held: Mapping[tuple[str, str], int],
) -> Iterator[Fate]:
    for device, broker in sorted(known):
        to = brokers.renamed.get(broker, broker)
        if to not in brokers.now or device.startswith(MARK):
            continue
        name, recipe = _after((device, broker), change, brokers.renamed)
        counts = owed.get((device, broker), {})
        readings, pieces = sum(counts.values()), held.get((device, broker), 0)
        points = _points(recipe)
        lost = sum(count for point, count in counts.items() if points is not None and point not in points)
        if lost:
            text = f"{_what(lost, 0)} to {to}: will not be sent, the mapping or `send:` takes them no longer"
            yield Fate(f"device {device}", lost, lost, text)
        what = _what(readings - lost, pieces)
        how = _how(device, name, recipe == known[device, broker], change) if what and recipe is not None else ""
        if how:
            yield Fate(f"device {device}", readings - lost, 0, f"{what} to {to}: {how}")


def _how(device: str, name: str, same: bool, change: Change) -> str:
    """How readings go out; "" as before."""
    if name == device and name not in change.devices:
        return "go out by its last mapping; it is gone from the config"
    if name not in change.devices:
        return "go out by the mapping of its old template"
    if name != device:
        return f"go out as those of {name}"
    return "" if same else "go out by the new mapping"


def _points(recipe: bytes | None) -> frozenset[str] | None:
    """Those that it maps; None: nobody can tell."""
    if recipe is None:
        return frozenset()
    try:
        return points_of(recipe)
    except RecipeError:
        return None


def _of_entities(known: Mapping[Row, bytes], change: Change, brokers: Brokers) -> Iterator[Fate]:
    """The city gets another entity, or none any more; the one that it has nobody takes away."""
    still: dict[str, set[str]] = {name: set() for name in brokers.now}
    for (device, broker), body in change.rows.items():
        if device in change.devices and broker in still:
            still[broker].update(entities_of(body).values())
    told: dict[tuple[str, str], list[str]] = {}
    for (device, broker), body in sorted(known.items()):
        to = brokers.renamed.get(broker, broker)
        if not broker or to not in brokers.now or device.startswith(MARK):
            continue
        name, recipe = _after((device, broker), change, brokers.renamed)
        now = entities_of(recipe) if recipe is not None and name in change.devices else {}
        for place, entity in entities_of(body).items():
            if entity in still[to]:
                continue
            if place in now:
                text = f"entity {entity} becomes {now[place]}, a new one; the old one {STAYS}"
            else:
                text = f"entity {entity} is told no more; it {STAYS}"
            told.setdefault((device, text), []).append(to)
    for (device, text), names in told.items():
        yield Fate(f"device {device}", 0, 0, f"{text} ({', '.join(names)})")


def _what(readings: int, pieces: int) -> str:
    parts = [(readings, "reading", "owed"), (pieces, "piece", "held")]
    return " and ".join(f"{count} {noun}{'' if count == 1 else 's'} {word}" for count, noun, word in parts if count)
