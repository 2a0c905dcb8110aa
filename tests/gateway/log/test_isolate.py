"""Of a batch that cannot be written the piece that is to blame is left out, alone, and the rest is in the file."""

import sqlite3
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gateway.log import isolate
from gateway.log.boots import Boot
from gateway.log.isolate import Unwritable
from gateway.log.segment import Entry, Stamp, microseconds
from gateway.log.store import Batch, Gap, Store
from gateway.sdk.reading import Reading
from gateway.sdk.testing import NOON
from tests.gateway.log.test_poison import FAULTS, Faulty

NOW_US = microseconds(NOON)
BAD: Any = object()  # nothing that a file takes
NOTHING: dict[str, list[Any]] = {each.name: [] for each in fields(Unwritable) if each.name not in ("gap", "why")}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "buffer.db", 1_000_000)
    store.load("b1", NOW_US)
    yield store
    store.close()


def a_set(seq: int, *values: Any, series: int = 1, at: Any = NOON) -> Entry:
    readings = tuple(Reading("count", value, at) for value in values or (seq,))
    return Entry(seq, (series,) * len(readings), readings, Stamp(1, 0, 7), 0.0, 0)


def a_gap(readings: Any) -> Gap:
    return Gap(NOW_US, None, None, readings, "size", {})


def a_batch() -> Batch:
    """Some pieces of every kind."""
    return Batch(
        entries=[a_set(1), a_set(2, 5, 6), a_set(3, series=2)],
        series={1: ("d", "count"), 2: ("e", "count")},
        cursors={"milano": 1, "porto": 2},
        forget=["gone"],
        states={("d", "a"): b"1", ("d", "b"): b"2"},
        boots=[Boot(1, "b1", 5), Boot(2, "b2")],
        last_values=[a_set(1), a_set(3, series=2)],
        statistics={7: b"x", 8: b"y"},
        gaps=[a_gap(1)],
        now_us=NOW_US,
    )


def commit(store: Store, batch: Batch, *, in_doubt: bool = False) -> Unwritable | None:
    done, found = isolate.commit(store, batch, lambda *_: [], {"milano": 1, "porto": 2}, in_doubt=in_doubt)
    assert done.total == store.total
    return found


def contents(store: Store) -> dict[str, Any]:
    """What a start finds, and whose readings are whose."""
    loaded = store.load("b1", NOW_US)
    columns = store.read(0, 1000)
    return {
        "sets": list(zip(columns.seq, columns.value, strict=True)) if columns else [],
        "last values": [columns.seq for _, columns in loaded.last_values],
        "gaps": [(gap.readings, gap.reason, gap.owed) for gap in loaded.gaps],
        "boots": [boot.name for boot in loaded.boots],
        **{name: getattr(loaded, name) for name in ("series", "cursors", "states", "statistics")},
    }


WHOLE: dict[str, Any] = {
    "sets": [(1, 1), (2, 5), (2, 6), (3, 3)],
    "last values": [[1, 3]],
    "gaps": [(1, "size", {})],
    "boots": ["b1", "b2"],
    "series": {1: ("d", "count"), 2: ("e", "count")},
    "cursors": {"milano": 1, "porto": 2},
    "states": {("d", "a"): b"1", ("d", "b"): b"2"},
    "statistics": {7: b"x", 8: b"y"},
}


def lost(readings: int, **owed: int) -> tuple[int, str, dict[str, int]]:
    return readings, "unwritable", {"milano": 0, "porto": 0, **owed}


def test_a_batch_without_fault_is_written_whole(store: Store) -> None:
    assert commit(store, a_batch()) is None
    assert contents(store) == WHOLE


def test_a_piece_of_each_kind_that_cannot_be_written_costs_itself_and_the_rest_is_in_the_file(store: Store) -> None:
    batch = a_batch()
    poison = a_set(4, BAD, 7), a_set(5, BAD)
    batch.entries = [*batch.entries, poison[0]]
    batch.last_values = [*(batch.last_values or ()), poison[1]]
    batch.series = {**batch.series, 3: ("d", BAD)}
    batch.cursors = {**batch.cursors, "\ud800": 3}
    batch.forget = [*batch.forget, BAD]
    batch.states = {**batch.states, ("d", "c"): BAD}
    batch.boots = [*batch.boots, Boot(3, BAD)]
    batch.statistics = {**batch.statistics, 9: BAD}
    batch.gaps = [*batch.gaps, a_gap(BAD)]

    found = commit(store, batch)
    assert found is not None
    assert found.entries == [poison[0]]
    assert found.last_values == [poison[1]]
    assert (found.series, found.cursors, found.forget) == ([3], ["\ud800"], [BAD])
    assert (found.states, found.statistics) == ([("d", "c")], [9])
    assert ([boot.id for boot in found.boots], [gap.readings for gap in found.gaps]) == ([3], [BAD])
    assert len(found.why) == 9
    what, _, why = str(found).partition(": ")
    assert what == (
        "1 places to forget, 1 boots, 1 gap records, 1 sets, 1 last values, 1 names of points, 1 places of brokers,"
        " 1 driver states, 1 hours of statistics"
    )
    assert why.startswith("TypeError: Object of type object is not JSON serializable; UnicodeEncodeError")
    assert found.gap == Gap(NOW_US, NOW_US, NOW_US, 2, "unwritable", {"milano": 2, "porto": 2})
    assert contents(store) == {**WHOLE, "gaps": [(1, "size", {}), lost(2, milano=2, porto=2)]}


@pytest.mark.parametrize("place", range(3))
def test_of_sets_that_cannot_be_written_each_is_left_out_wherever_it_stands(store: Store, place: int) -> None:
    batch = a_batch()
    entries = list(batch.entries)
    entries[place] = entries[place]._replace(readings=(Reading("count", BAD, NOON),) * len(entries[place].readings))
    batch.entries = entries
    found = commit(store, batch)
    assert found is not None
    assert {**NOTHING, "entries": [entries[place]]} == {name: getattr(found, name) for name in NOTHING}
    kept = [entry.seq for entry in batch.entries if entry is not entries[place]]
    assert list(dict.fromkeys(seq for seq, _ in contents(store)["sets"])) == kept
    count = len(entries[place].readings)
    owed = {"milano": count * (place > 0), "porto": count * (place > 1)}  # it has settled the first, the other two
    assert contents(store)["gaps"][-1] == lost(count, **owed)


@pytest.mark.parametrize("new", [(), (11, 12)])
@pytest.mark.parametrize("in_doubt", [False, True])
def test_of_a_later_batch_too_with_sets_or_without_whatever_is_in_the_file_by_then(
    store: Store, new: tuple[int, ...], in_doubt: bool
) -> None:
    assert commit(store, a_batch()) is None
    entries = [*(a_batch().entries if in_doubt else ()), *map(a_set, new)]
    poison = [a_set(13, BAD, 7)] if new else []
    batch = Batch(entries=[*entries, *poison], states={("d", "c"): BAD, ("d", "d"): b"4"}, gaps=[], now_us=NOW_US)
    found = commit(store, batch, in_doubt=in_doubt)
    assert found is not None
    assert {**NOTHING, "entries": poison, "states": [("d", "c")]} == {name: getattr(found, name) for name in NOTHING}
    assert contents(store) == {
        **WHOLE,
        "sets": [*WHOLE["sets"], *((seq, seq) for seq in new)],
        "last values": [[1, 3], *([list(new)] if new else [])],
        "states": {**WHOLE["states"], ("d", "d"): b"4"},
        "gaps": [(1, "size", {}), lost(2 * len(poison), milano=2 * len(poison), porto=2 * len(poison))],
    }


def test_sets_of_a_point_whose_name_cannot_be_written_go_with_it(store: Store) -> None:
    batch = a_batch()
    both = a_set(4, BAD, series=2)
    batch.entries = [*batch.entries, both]
    batch.series = {1: ("d", "count"), 2: ("e", BAD)}
    found = commit(store, batch)
    assert found is not None
    assert found.series == [2]
    assert found.entries == [both, batch.entries[2]]
    assert contents(store)["sets"] == WHOLE["sets"][:3]


def test_the_gap_of_what_is_lost_tells_from_when_to_when(store: Store) -> None:
    first, last = NOON.replace(hour=3), NOON.replace(hour=4)
    entries = [a_set(1, BAD, at=last), a_set(2, BAD, at=None), a_set(3, BAD, 4, at=first)]
    gap = isolate.lost(entries, 5, {"milano": 1, "porto": 2, "all": 3})
    owed = {"milano": 3, "porto": 2, "all": 0}
    assert gap == Gap(5, microseconds(first), microseconds(last), 4, "unwritable", owed)
    assert isolate.lost(entries[1:2], 5, {}) == Gap(5, None, None, 1, "unwritable", {})


def test_what_is_told_names_the_kinds_and_three_of_the_reasons_once_each() -> None:
    found = Unwritable(entries=[a_set(1)] * 2, states=[("d", "k")], why=["a", "a", "b", "c"])
    assert str(found) == "2 sets, 1 driver states: a; b"


class Flaky(Faulty):
    """Refuses a set at some of the times that one is written."""

    def __init__(self, faults: dict[int, str]) -> None:
        super().__init__()
        self.faults, self._times = faults, 0

    def _check(self, sql: str) -> None:
        if sql.startswith("INSERT INTO segment"):
            self._times += 1
            if self._times in self.faults:
                raise FAULTS[self.faults[self._times]]()


@pytest.mark.parametrize(
    "faults",
    [
        dict.fromkeys(range(9), "key"),
        {1: "key", 2: "key"},
        {1: "key", 3: "key"},
        {1: "key", 3: "full", 4: "full"},
        {1: "key", 3: "key", 4: "key", 5: "full"},
    ],
    ids=["every set", "a harmless one too", "once", "for want of room", "then all"],
)
def test_a_set_that_is_not_to_blame_is_not_given_up(tmp_path: Path, faults: dict[int, str]) -> None:
    """A card that refuses it with the batch, and then a harmless one as well; or it alone, but not again."""
    card = Flaky(faults)
    store = Store(tmp_path / "buffer.db", 1_000_000, card.connect)
    store.load("b1", NOW_US)
    with pytest.raises(KeyError):
        commit(store, Batch(entries=[a_set(1)], now_us=NOW_US))
    card.faults = {}
    assert commit(store, a_batch()) is None
    assert contents(store) == WHOLE
    store.close()


def test_a_card_that_refuses_is_not_asked_piece_by_piece(tmp_path: Path) -> None:
    card = Faulty()
    store = Store(tmp_path / "buffer.db", 1_000_000, card.connect)
    store.load("b1", NOW_US)
    card.stage, card.fault = "INSERT INTO segment", FAULTS["full"]
    with pytest.raises(sqlite3.OperationalError):
        commit(store, a_batch())
    assert card.failed == 1
    store.close()
