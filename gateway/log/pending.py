"""Pending: what the next commit writes beside the sets. Every room of the log puts its part here; the committer takes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

from gateway.log.boots import Boot
from gateway.log.store import Gap, HeldRow

_STATE_S: Final = 300.0


@dataclass(slots=True)
class Pending:
    """What changed since the last commit.

    Attributes:
        series: names of new points, by number.
        cursors: consumers whose cursor moved.
        consumers: of whom else something is to be known.
        renamed: old name -> new name of consumers.
        forget: consumers whose cursor goes.
        stateless: devices whose driver states went to another name.
        states: driver states, the oldest of them since `states_since_s`.
        recipes: (device, broker) -> recipe; None: it goes.
        moved: series that belong to another device by now.
        held: held pieces whose device or entity is called otherwise by now.
        boots: what was learned of the time, in use from that commit on.
        gaps: what was given up.
    """

    series: dict[int, tuple[str, str]] = field(default_factory=dict)
    cursors: set[str] = field(default_factory=set)
    consumers: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    forget: list[str] = field(default_factory=list)
    stateless: list[str] = field(default_factory=list)
    states: dict[tuple[str, str], bytes] = field(default_factory=dict)
    recipes: dict[tuple[str, str], bytes | None] = field(default_factory=dict)
    moved: dict[int, str] = field(default_factory=dict)
    held: dict[int, tuple[str, str]] = field(default_factory=dict)
    states_since_s: float = 0.0
    boots: list[Boot] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    def urgent(self, now_s: float) -> bool:
        return bool(self.boots) or (bool(self.states) and now_s - self.states_since_s >= _STATE_S)

    def taken(self) -> "Pending":
        """All of it, for a commit; here it begins anew."""
        carried, new = Pending(), Pending()
        for each in fields(self):
            setattr(carried, each.name, getattr(self, each.name))
            setattr(self, each.name, getattr(new, each.name))
        return carried

    def take_back(self, carried: "Pending") -> None:
        """A commit failed: what it carried is for the next one."""
        self.series = {**carried.series, **self.series}
        self.cursors |= carried.cursors
        self.consumers |= carried.consumers
        self.renamed = {**carried.renamed, **self.renamed}
        self.forget = carried.forget + self.forget
        if carried.states:
            self.states_since_s = carried.states_since_s
        gone = set(self.stateless)
        kept = {place: value for place, value in carried.states.items() if place[0] not in gone}
        self.stateless = carried.stateless + self.stateless
        self.states = {**kept, **self.states}
        self.recipes = {**carried.recipes, **self.recipes}
        self.moved = {**carried.moved, **self.moved}
        self.held = {**carried.held, **self.held}
        self.boots = carried.boots + self.boots
        self.gaps = carried.gaps + self.gaps

    def add_gap(self, gap: Gap) -> None:
        """Count what was given up; of one reason in one record."""
        if self.gaps and self.gaps[-1].reason == gap.reason:
            self.gaps[-1] = _joined(self.gaps[-1], gap)
        else:
            self.gaps.append(gap)


def as_called(row: HeldRow, held: Mapping[int, tuple[str, str]]) -> HeldRow:
    """A held piece with the names that are still to be written."""
    device, entity = held.get(row.id, (row.device, row.entity))
    return replace(row, device=device, entity=entity)


def _joined(one: Gap, two: Gap) -> Gap:
    owed = {name: one.owed.get(name, 0) + two.owed.get(name, 0) for name in {**one.owed, **two.owed}}
    return Gap(two.at_us, one.from_us, two.to_us, one.readings + two.readings, one.reason, owed)
