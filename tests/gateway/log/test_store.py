"""The store against a plain list: what it counts, deletes and finds is what such a list would, whatever was written and pruned."""

import random
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.log.boots import Boot, Boots
from gateway.log.retention import Retention
from gateway.log.segment import Entry, Stamp, microseconds
from gateway.log.store import PAGE_BYTES, Batch, Gap, Store
from gateway.sdk.reading import Reading
from gateway.sdk.testing import NOON

HOUR_US = 3_600_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "buffer.db", 8_000_000)
    store.load("b1", 0)
    yield store
    store.close()


def rows(store: Store, sql: str) -> list[tuple[int, ...]]:
    """What somebody else finds in the file."""
    db = sqlite3.connect(store.path)
    found = db.execute(sql).fetchall()
    db.close()
    return found


def a_set(seq: int, readings: int = 1, stamp: int = 0) -> Entry:
    """Sets of different stamps are in different segments. Of many readings the first is the newest."""
    at = [NOON + timedelta(seconds=10 * seq - n) for n in range(readings)]
    return Entry(seq, (1,) * readings, tuple(Reading("p", 1, t) for t in at), Stamp(1, stamp, 7), 0.0, 0)


def readings_of(entries: list[Entry]) -> int:
    return sum(len(entry.readings) for entry in entries)


def oldest_of(entries: list[Entry]) -> int | None:
    return min((microseconds(r.observed_at) for entry in entries for r in entry.readings), default=None)


class Model:
    """Segments as lists of sets."""

    def __init__(self) -> None:
        self.segments: list[list[Entry]] = []
        self.seq = 0

    def new(self, chance: random.Random) -> list[Entry]:
        made = []
        for stamp in range(chance.randint(1, 3)):
            self.segments.append([])
            for _ in range(chance.randint(1, 3)):
                self.seq += chance.choice((1, 1, 2))
                self.segments[-1].append(a_set(self.seq, chance.randint(1, 3), stamp))
            made += self.segments[-1]
        return made

    def drop(self, upto: int) -> None:
        self.segments = [segment for segment in self.segments if segment[-1].seq > upto]

    def check(self, store: Store) -> None:
        there = [entry for segment in self.segments for entry in segment]
        ends = [segment[-1].seq for segment in self.segments]
        for place in range(-1, self.seq + 2):
            above = [entry for entry in there if entry.seq > place]
            first = next(
                ([e for e in segment if e.seq > place] for segment in self.segments if segment[-1].seq > place), []
            )
            assert store.owed(place) == (readings_of(above), oldest_of(first))
            assert store.progress(place) == (readings_of(there) - readings_of(above), readings_of(there))
            for end in ends:
                assert store.owed_in(place, end) == readings_of([e for e in above if e.seq <= end])
            columns = store.read(place, 4)
            assert (columns.seq[0] if columns else None) == (above[0].seq if above else None)
        for few in (1, 2, len(ends) + 1):
            found = [(last, readings) for last, readings, _ in store.oldest(few)]
            assert found == [(segment[-1].seq, readings_of(segment)) for segment in self.segments[:few]]
        for entry in there:
            for time_us in (oldest_of([entry]) or 0, microseconds(entry.readings[0].observed_at)):
                behind = (e.seq for e in there if any(microseconds(r.observed_at) >= time_us for r in e.readings))
                assert store.before(time_us) == next(behind) - 1
        assert store.before(1 << 60) == (there[-1].seq if there else 0)


@pytest.mark.parametrize("seed", range(4))
def test_counts_and_places_are_those_of_a_plain_list(store: Store, seed: int) -> None:
    chance, model = random.Random(seed), Model()
    for _ in range(12):
        settled = chance.randint(0, model.seq)
        what = chance.random()
        if what < 0.6:
            store.commit(Batch(entries=model.new(chance)))
        elif what < 0.8:
            assert not store.commit(Batch(settled=settled, prune=True)).more
            model.drop(settled)
        elif model.segments:
            last = chance.choice(model.segments)[-1].seq
            store.delete_upto(last)
            model.drop(last)
        model.check(store)


def test_a_commit_prunes_200_segments_and_says_whether_there_may_be_more(store: Store) -> None:
    store.commit(Batch(entries=[a_set(n, stamp=n) for n in range(1, 600)]))
    assert len(store.oldest(1000)) == 599
    for settled, left, more in (
        (199, 400, False),
        (399, 200, True),
        (399, 200, False),
        (599, 0, True),
        (599, 0, False),
    ):
        assert store.commit(Batch(settled=settled, prune=True)).more is more
        assert len(store.oldest(1000)) == left
    store.commit(Batch(entries=[a_set(600)], settled=600))
    assert len(store.oldest(9)) == 1  # kept, though everybody has it


def test_a_segment_holds_250_readings_or_one_set(store: Store) -> None:
    sizes = (100, 150, 1, 249, 1, 300, 125, 126, 2)
    store.commit(Batch(entries=[a_set(n, size) for n, size in enumerate(sizes, 1)]))
    assert [readings for _, readings, _ in store.oldest(20)] == [250, 250, 1, 300, 125, 128]


def test_of_sets_that_may_be_in_the_file_those_behind_its_newest_are_written(store: Store) -> None:
    entries = [a_set(n, 2) for n in range(1, 5)]
    store.commit(Batch(entries=entries[:2]), in_doubt=True)
    store.total = 77  # of a commit that was written, and yet failed
    done = store.commit(Batch(entries=entries), in_doubt=True)
    assert (done.total, store.total) == (8, 8)
    columns = store.read(0, 100)
    assert columns is not None
    assert columns.seq == [1, 1, 2, 2, 3, 3, 4, 4]


def test_a_name_is_written_twice_and_no_more_and_that_of_a_commit_that_failed_with_the_next(store: Store) -> None:
    def fails(*_: object) -> list[Gap]:
        raise KeyError

    def written() -> list[tuple[int, ...]]:
        return rows(store, "SELECT (SELECT count(*) FROM record), (SELECT count(*) FROM record_copy)")

    batch = Batch(entries=[a_set(1)], series={1: ("d", "p")})
    with pytest.raises(KeyError):
        store.commit(batch, fails)
    assert written() == [(0, 0)]
    store.commit(batch)
    names = written()
    for n in range(2, 5):
        store.commit(Batch(entries=[a_set(n)]))
    assert written() == names
    store.load("b1", 0)
    assert [columns.seq for _, columns in store.load("b1", 0).last_values] == [[1], [2], [3], [4]]
    assert store.load("b1", 0).series == {1: ("d", "p")}


def test_a_commit_tells_how_large_the_file_is(store: Store) -> None:
    for n in range(1, 4):
        done = store.commit(Batch(entries=[a_set(n, 5000)], settled=n - 1, prune=True))
        [(pages,)], [(free,)] = rows(store, "PRAGMA page_count"), rows(store, "PRAGMA freelist_count")
        assert done.size_bytes == (pages - free) * PAGE_BYTES
        assert store.room_pages() == store.max_pages - 24 - (pages - free)


# Damage


def spoil(store: Store, number: int) -> None:
    with store.transaction():
        store._db.execute("UPDATE segment SET body = x'00' WHERE id = ?", (number,))


def test_what_a_damaged_segment_held_is_known_from_its_neighbours(store: Store) -> None:
    for n in range(1, 5):
        store.commit(Batch(entries=[a_set(2 * n - 1, n), a_set(2 * n, n)]))
    spoil(store, 3)
    found = store.oldest(9)
    assert [(last, readings, header is None) for last, readings, header in found] == [
        (2, 2, False),
        (4, 4, True),
        (6, 6, False),
        (8, 8, False),
    ]
    assert store.owed_in(2, 4) == 4
    assert store.owed_in(3, 6) == 6  # settled in part: how much of it is not known
    store.delete_upto(2)
    assert [(last, readings) for last, readings, _ in store.oldest(2)] == [(4, 0), (6, 6)]
    assert store.progress(6) == (6, 14)


def test_a_damaged_segment_behind_those_that_are_too_old_goes_with_them_and_is_counted(store: Store) -> None:
    for n in range(1, 6):
        store.commit(Batch(entries=[a_set(n, n)], now_us=n * HOUR_US))
    spoil(store, 3)
    store.now_us = lambda: 10 * HOUR_US
    retain = Retention(max_age_s=7.5 * 3600, keep_s=0.0, cursors={"a": 0, "b": 1, "c": 3})  # older than the third
    [gap] = store.commit(Batch(settled=0), retain).gaps
    assert (gap.reason, gap.readings, gap.owed["b"], gap.owed["c"]) == ("age", 6, gap.owed["a"] - 1, 0)
    assert (gap.from_us, gap.to_us) == (microseconds(NOON) + 10_000_000, 2 * HOUR_US)
    assert [last for last, _, _ in store.oldest(9)] == [4, 5]


def test_a_damaged_segment_that_everybody_has_is_kept_no_longer_than_the_one_before(store: Store) -> None:
    for n in range(1, 4):
        store.commit(Batch(entries=[a_set(n)], now_us=n * HOUR_US))
    spoil(store, 2)
    store.now_us = lambda: 10 * HOUR_US
    retain = Retention(max_age_s=1e9, keep_s=7.5 * 3600, cursors={"a": 3})
    assert store.commit(Batch(settled=3), retain).gaps == []
    assert [last for last, _, _ in store.oldest(9)] == [3]


# Gaps


def a_gap(at_us: int, readings: int, reason: str = "age", to_us: int | None = None, **owed: int) -> Gap:
    return Gap(at_us, 5, to_us, readings, reason, owed)


def test_a_gap_is_added_to_the_newest_of_its_reason_within_an_hour(store: Store) -> None:
    store.commit(Batch(gaps=[a_gap(1000, 2, to_us=8, a=2)]))
    store.commit(Batch(gaps=[a_gap(1000, 3, to_us=9, a=1, b=3), a_gap(999 + HOUR_US, 4, b=4)]))
    wide = Gap(1000, 5, 9, 9, "age", {"a": 3, "b": 7})
    assert store.gaps() == [wide]
    others = [a_gap(1000 + HOUR_US, 1), a_gap(999, 1), a_gap(999, 1, "size"), a_gap(999, 1)]
    store.commit(Batch(gaps=others))  # an hour later; of before: the clock was set; of another reason, and between
    assert store.gaps() == [wide, *others]


def test_the_newest_thousand_gaps_are_kept(store: Store) -> None:
    gaps = [a_gap(1000, n, f"reason {n}") for n in range(1003)]
    store.commit(Batch(gaps=gaps))
    assert store.gaps() == gaps[3:]
    store.commit(Batch(gaps=[a_gap(1000, 1, "last")]))
    assert store.gaps() == [*gaps[4:], a_gap(1000, 1, "last")]


# States, statistics


def test_of_many_nodes_states_are_appended_and_from_time_to_time_put_in_order(store: Store) -> None:
    def written(*numbers: int, value: bytes = b"1") -> tuple[int, int]:
        store.commit(Batch(states={(f"d{n}", "k"): value for n in numbers}))
        [(old, newer)] = rows(store, "SELECT (SELECT count(*) FROM state), (SELECT count(*) FROM newer_state)")
        return old, newer

    assert written(*range(30)) == (30, 0)
    assert written(*range(20, 40), value=b"2") == (40, 0)
    assert written(40) == (40, 1)
    assert written(3, value=b"3") == (40, 2)
    assert written(*range(510), value=b"4") == (40, 512)
    expected = {(f"d{n}", "k"): b"4" for n in range(510)}
    assert written(7, value=b"5") == (510, 0)
    assert written(8, value=b"6") == (510, 1)
    assert written(8, value=b"7") == (510, 2)
    assert store.load("b1", 0).states == {**expected, ("d7", "k"): b"5", ("d8", "k"): b"7"}
    assert written(*range(510), value=b"8") == (510, 512)


def test_a_boot_is_as_old_as_it_was_said_to_be_last(store: Store) -> None:
    store.boots = Boots([Boot(1, "b1")], 1)
    store.commit(Batch(boots=[Boot(1, "b1", 5, 6, 10), Boot(2, "b2", up_us=20)]))
    store.commit(Batch(up_us=99))
    store.commit(Batch())
    assert store.load("b1", 0).boots == [Boot(1, "b1", 5, 6, 99), Boot(2, "b2", up_us=20)]


def test_hours_of_statistics_go_when_new_ones_come(store: Store) -> None:
    store.commit(Batch(statistics=dict.fromkeys(range(5), b"x")))
    store.commit(Batch(statistics_from=3))
    assert set(store.statistics(0)) == set(range(5))
    store.commit(Batch(statistics={3: b"y"}, statistics_from=3))
    assert store.statistics(0) == {3: b"y", 4: b"x"}
    assert store.statistics(4) == {4: b"x"}


def test_last_values_are_all_replaced_or_left(store: Store) -> None:
    store.commit(Batch(last_values=[a_set(1), a_set(2, stamp=1)]))
    store.commit(Batch())
    assert [columns.seq for _, columns in store.load("b1", 0).last_values] == [[1], [2]]
    store.commit(Batch(last_values=[a_set(3)]))
    assert [columns.seq for _, columns in store.load("b1", 0).last_values] == [[3]]
    store.commit(Batch(last_values=[]))
    assert store.load("b1", 0).last_values == []
