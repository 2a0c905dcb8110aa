"""Recipes: what each device's readings become at each broker, as bytes that the log does not understand; and which devices are gone.

Readings outlive their device's place in the file. What they were to become stays here until nobody is owed any of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.log.head import Head
from gateway.log.held import Held
from gateway.log.pending import Pending
from gateway.log.points import Points
from gateway.log.store import HeldRow, Loaded

_NEVER: Final = 1 << 62
Row = tuple[str, str]  # device, broker; broker "": what the device's readings are


@dataclass(frozen=True, slots=True)
class Change:
    """What a config makes of the devices that the log knows.

    Attributes:
        devices, brokers: of the config.
        rows: every recipe from now on.
        moves: device -> what its readings and held pieces are called from now on; all at once.
        states: device -> who has its driver's state from now on.
        entities: (broker, device as it is called from now on, entity) -> what the entity is called from now on.
        quiet: those that nobody is told of though they are not in the config, or not with all they need.
    """

    devices: Set[str]
    brokers: Set[str]
    rows: Mapping[Row, bytes]
    moves: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    entities: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    quiet: Set[str] = frozenset()


Devices = Callable[[Mapping[Row, bytes]], Change]  # what a config makes of what is known; pure


def looking(devices: Set[str], brokers: Set[str], quiet: Callable[[str], bool]) -> Devices:
    """What somebody makes of the devices who only looks at the file: all are called as they were.

    Args:
        quiet: whether nobody is told of a device.
    """

    def change(known: Mapping[Row, bytes]) -> Change:
        return Change(devices, brokers, known, quiet={device for device, _ in known if quiet(device)})

    return change


class Recipes:
    """The recipes of all devices that are in the config, and of those that are gone and still owed to somebody."""

    def __init__(self, points: Points, pending: Pending, held: Held, head: Head) -> None:
        self._points = points
        self._pending = pending
        self._held = held
        self._head = head
        self._devices: Devices | None = None
        self._rows: dict[Row, bytes] = {}
        self._there: Set[str] = frozenset()
        self._quiet: Set[str] = frozenset()
        self._brokers: Set[str] = frozenset()
        self._gone: dict[str, int] = {}  # device -> all its sets have numbers up to here

    def begin(self, devices: Devices | None) -> None:
        """What the config says; what the file says comes later."""
        self._devices = devices
        if devices is not None:
            self._now(devices({}))

    def use(self, devices: Devices) -> None:
        """The config has changed: what is in memory is called otherwise at once, what is in the file with the next commit."""
        self._devices = devices
        change = devices(self._rows)
        self._points.move(change.moves)
        self._points.move_states(change.states)
        self._held.take(self._held_as(self._held.rows(), change))
        self._put(self._rows, change)
        self._now(change)
        self.look()

    def take(self, loaded: Loaded) -> None:
        """The file was opened: what it holds is called as the config has it, before anybody is told of it."""
        known, self._gone = loaded.recipes, {}
        if (
            self._devices is None
        ):  # a command that only looks: it says of no device that it is gone, and drops no recipe
            return
        made_before, there = self._rows, self._there
        change = self._devices(known)
        self._pending.moved = {}  # of points that the file does not know: they get their numbers now
        for number, (device, point) in loaded.series.items():
            if device in change.moves:
                loaded.series[number] = change.moves[device], point
                self._pending.moved[number] = change.moves[device]
        self._points.move_loaded_states(loaded, change.states)
        loaded.held = self._held_as(loaded.held, change)
        self._pending.recipes = {}
        self._put(known, change)
        self._now(change)
        for row, body in made_before.items():  # gone before the file could be read
            if row[0] not in there and row not in self._rows:
                self._rows[row] = self._pending.recipes[row] = body

    def adopt(self, loaded: Loaded) -> None:
        """Another file's sets are appended to this one: called as the config has it, by its recipes where this one has none."""
        if self._devices is None:
            return
        change = self._devices(loaded.recipes)
        for number, (device, point) in loaded.series.items():
            loaded.series[number] = change.moves.get(device, device), point
        loaded.states = {(change.states.get(device, device), key): v for (device, key), v in loaded.states.items()}
        loaded.held = [_held_as(row, change) for row in loaded.held]
        for row, body in change.rows.items():
            if row[0] not in change.devices and row not in self._rows:
                self._rows[row] = self._pending.recipes[row] = body
        self._gone = {device: _NEVER for device, _ in self._rows if device not in self._there}

    def adopted(self) -> None:
        """All of them have their numbers."""
        self._gone = {}
        self.look()

    def _put(self, known: Mapping[Row, bytes], change: Change) -> None:
        """What is not in the file as it is to be."""
        for row in known.keys() - change.rows.keys():
            self._pending.recipes[row] = None
        for row, body in change.rows.items():
            if known.get(row) != body:
                self._pending.recipes[row] = body

    def _held_as(self, rows: Sequence[HeldRow], change: Change) -> list[HeldRow]:
        """Held pieces as they are called from now on."""
        found = []
        for row in rows:
            its = _held_as(row, change)
            if its != row:
                self._pending.held[row.id] = its.device, its.entity
            found.append(its)
        return found

    def _now(self, change: Change) -> None:
        self._rows, self._there, self._brokers = dict(change.rows), change.devices, change.brokers
        self._quiet = change.quiet

    def look(self) -> None:
        """Up to which number there are sets of devices that are gone."""
        upto = self._head.entries[-1].seq if self._head.entries else self._head.stored_last
        gone = {device for device, _ in self._rows if device not in self._there}
        self._gone = {device: self._gone.get(device, upto) for device in gone}

    def owe_all(self) -> None:
        """The file was made anew: all goes into it with the next commit."""
        self._pending.recipes.update(self._rows)

    def forget_settled(self, cursors: Mapping[str, int]) -> None:
        """A recipe by which nobody is owed anything goes with the next commit.

        Args:
            cursors: of all brokers that the file knows, also of those that are no longer in the config.
        """
        for row in list(self._settled(cursors)):
            del self._rows[row]
            self._pending.recipes[row] = None

    def _settled(self, cursors: Mapping[str, int]) -> Iterator[Row]:
        for device, broker in self._rows:
            if not broker:
                continue  # a device may come back: what its readings were is still known
            if broker not in cursors:
                if broker not in self._brokers:
                    yield device, broker
            elif cursors[broker] >= self._gone.get(device, _NEVER) and not self._held.pieces(broker, device=device):
                yield device, broker

    def forget(self, device: str) -> str:
        """Nobody is owed anything of a device that is gone any more; should it come back, it begins anew.

        Returns how its readings are called from now on.
        """
        called = f"{device} (forgotten)"  # no device of a config can have such a name
        for row in [row for row in self._rows if row[0] == device]:
            del self._rows[row]
            self._pending.recipes[row] = None
        self._points.move({device: called})
        self._gone.pop(device, None)
        return called

    # Who asks

    @property
    def known(self) -> Mapping[Row, bytes]:
        """Every recipe."""
        return dict(self._rows)

    def is_there(self, device: str) -> bool:
        """Whether a device is in the config."""
        return device in self._there

    def is_gone(self, device: str) -> bool:
        """Whether a device is no longer in the config, and people are to know of it."""
        return device not in self._there and device not in self._quiet

    def of(self, device: str, broker: str) -> bytes | None:
        """The recipe of a device that is gone; None when that broker is owed nothing of it."""
        return None if device in self._there else self._rows.get((device, broker))

    def gone(self, cursors: Mapping[str, int]) -> dict[str, list[str]]:
        """Devices that are no longer in the config, with the brokers that may still be owed readings of them."""
        found: dict[str, list[str]] = {}
        for device, broker in sorted(self._rows.keys() - set(self._settled(cursors))):
            if broker and self.is_gone(device):
                found.setdefault(device, []).append(broker)
        return found


def _held_as(row: HeldRow, change: Change) -> HeldRow:
    device = change.moves.get(row.device, row.device)
    return replace(row, device=device, entity=change.entities.get((row.broker, device, row.entity), row.entity))
