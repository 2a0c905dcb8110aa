"""What a config makes of the devices that the log knows: which are called otherwise, which are gone, and by which recipe each goes."""

from collections.abc import Iterable, Iterator
from collections.abc import Mapping as MappingOf

from gateway.harmonise.compile import DevicePlan, Mapping
from gateway.harmonise.devices import MARK
from gateway.harmonise.recipe import (
    Kind,
    RecipeError,
    entities_of,
    is_same_kind,
    kind_name,
    kind_of,
    points_of,
    recipe_of,
    tables_of,
)
from gateway.log.recipes import Change, Row
from gateway.models.catalogue import Catalogue
from gateway.plan import Plan

Tables = MappingOf[str, tuple[Mapping, ...]]


class Devices:
    """The devices of one config. Called with the recipes that the log holds, it tells what becomes of them; pure.

    Args:
        devices: those of the config, by name.
        brokers: their tables by broker and device.
        off: names of devices whose driver cannot be had: in the config, and sent by what was known of them.
        brokers_were: broker -> the name that it had before.
    """

    def __init__(
        self,
        devices: MappingOf[str, DevicePlan],
        brokers: MappingOf[str, Tables],
        *,
        off: Iterable[str],
        brokers_were: MappingOf[str, str],
    ) -> None:
        self._off = frozenset(off)
        self._kinds = {name: kind_of(plan.template, plan.points) for name, plan in devices.items()}
        self._recipes = dict(_recipes(brokers))
        self._there = {*devices, *(device for device, _ in self._recipes)}
        self._brokers = frozenset(brokers)
        self._was = {name: plan.config.was for name, plan in devices.items() if plan.config.was}
        self._brokers_were = {new: old for new, old in brokers_were.items() if old not in self._brokers}
        self._points: dict[Row, frozenset[str] | None] = {}
        self._known: MappingOf[Row, bytes] = {}

    def __call__(self, known: MappingOf[Row, bytes]) -> Change:
        """What becomes of the recipes that are known."""
        known = dict(self._of_renamed_brokers(known))
        moves, states = self._moves(known), {old: new for new, old in self._was.items()}
        rows = {**self._kept(known, moves), **self._recipes, **{(name, ""): kind for name, kind in self._kinds.items()}}
        self._known, self._points = {**self._known, **rows}, {}
        quiet = self._off | {device for device, _ in rows if device.startswith(MARK)}
        return Change(self._there, self._brokers, rows, moves, states, dict(self._entities(known, moves)), quiet)

    def _of_renamed_brokers(self, known: MappingOf[Row, bytes]) -> Iterator[tuple[Row, bytes]]:
        names = {old: new for new, old in self._brokers_were.items()}
        yield from (((device, names[broker]), body) for (device, broker), body in known.items() if broker in names)
        yield from ((row, body) for row, body in known.items() if row[1] not in names)

    def _moves(self, known: MappingOf[Row, bytes]) -> dict[str, str]:
        """Readings of another kind than a device gives by now are no longer called by its name."""
        moves: dict[str, str] = {}
        for new, old in self._was.items():
            moves[MARK + old] = MARK + new
            moves[old] = self._called(new, known.get((old, "")))
        for name, kind in self._kinds.items():
            called = self._called(name, known.get((name, "")))
            if called != name:
                moves[name] = called
            before = _of_kind(name, kind)  # it was of this kind once
            if (before, "") in known and before not in moves:
                moves[before] = name
        return moves

    def _called(self, name: str, kind: Kind | None) -> str:
        """How readings of a device of this name are called that are of a kind."""
        return name if kind is None or is_same_kind(kind, self._kinds[name]) else _of_kind(name, kind)

    def _kept(self, known: MappingOf[Row, bytes], moves: MappingOf[str, str]) -> dict[Row, bytes]:
        """Recipes of devices that are gone; and by the way those for brokers that are gone."""
        kept: dict[Row, bytes] = {}
        for own in (
            True,
            False,
        ):  # before what comes to a device that has its own; behind what comes to one that is gone
            for (device, broker), body in known.items():
                name = moves.get(device, device)
                first = (device in moves) is not (name in self._there)
                if first is own and not (name in self._there and broker in self._brokers):
                    kept.setdefault((name, broker), body)
        return kept

    def _entities(
        self, known: MappingOf[Row, bytes], moves: MappingOf[str, str]
    ) -> Iterator[tuple[tuple[str, str, str], str]]:
        """(broker, device, entity) of what goes by another id now."""
        for (device, broker), body in known.items():
            name = moves.get(device, device)
            recipe = self._recipes.get((name, broker))
            if recipe is None or recipe == body:
                continue
            now = entities_of(recipe)
            for place, entity in entities_of(body).items():
                if place in now and now[place] != entity:
                    yield (broker, name, entity), now[place]

    def gone_takes(self, broker: str, device: str, point: str) -> bool:
        """Whether a broker is to be sent a point of a device that is gone."""
        row = device, broker
        if device in self._there or row not in self._known:
            return False
        if row not in self._points:
            try:
                self._points[row] = points_of(self._known[row])
            except RecipeError:
                self._points[row] = None  # held, whatever it is
        points = self._points[row]
        return points is None or point in points


def devices_of(plan: Plan) -> Devices:
    """The devices of a plan."""
    brokers_were = {name: its.config.was for name, its in plan.brokers.items() if its.config.was}
    off = {device for link in plan.links.values() for device in link.device_names} - plan.devices.keys()
    tables = {name: its.mappings for name, its in plan.brokers.items()}
    return Devices(plan.devices, tables, off=off, brokers_were=brokers_were)


def _recipes(brokers: MappingOf[str, Tables]) -> Iterator[tuple[Row, bytes]]:
    made: dict[int, bytes] = {}  # brokers of one profile share their tables
    for broker, of_broker in brokers.items():
        for device, tables in of_broker.items():
            if tables:
                if id(tables) not in made:
                    made[id(tables)] = recipe_of(tables)
                yield (device, broker), made[id(tables)]


def _of_kind(device: str, kind: Kind) -> str:
    """How readings of another kind than a device gives by now are called: no device of a config can have such a name."""
    return f"{device} ({kind_name(kind)})"


def gone_tables(device: str, recipe: bytes | None, models: Catalogue) -> tuple[Mapping, ...]:
    """The tables of a device that is gone; none when nobody is owed anything of it.

    Raises:
        RecipeError: its recipe cannot be used.
    """
    return () if recipe is None else tables_of(recipe, device, models)
