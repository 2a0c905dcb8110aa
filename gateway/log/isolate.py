"""What of a batch cannot be written, found by trying one piece after the other, so that the rest can be."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.log.boots import Boot
from gateway.log.refusal import of_the_file
from gateway.log.segment import EPOCH, Entry, Stamp, microseconds
from gateway.log.store import Batch, Committed, Gap, Known, Store
from gateway.sdk.reading import Reading

REASON: Final = "unwritable"
_SHOWN: Final = 3
_NO_ENDS: Final[Mapping[str, int]] = {}
_MAPPINGS: Final = ("series", "cursors", "consumers", "states", "statistics")
_LISTS: Final = ("forget", "boots", "gaps", "entries", "last_values")


@dataclass(slots=True)
class Unwritable:
    """Pieces that are given up. Of mappings the keys.

    Attributes:
        why: the errors, in words.
        gap: the record of them; it is in the batch that was written instead.
    """

    entries: list[Entry] = field(default_factory=list)
    last_values: list[Entry] = field(default_factory=list)
    series: list[int] = field(default_factory=list)
    states: list[tuple[str, str]] = field(default_factory=list)
    cursors: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    statistics: list[int] = field(default_factory=list)
    boots: list[Boot] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    forget: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    gap: Gap | None = None

    def __str__(self) -> str:
        found = {name: len(getattr(self, name)) for name in (*_LISTS, *_MAPPINGS)}
        what = ", ".join(f"{count} {_WORDS[name]}" for name, count in found.items() if count)
        return f"{what}: {'; '.join(dict.fromkeys(self.why[:_SHOWN]))}"


_WORDS: Final = {
    "entries": "sets",
    "last_values": "last values",
    "series": "names of points",
    "states": "driver states",
    "cursors": "places of brokers",
    "consumers": "notes on brokers",
    "statistics": "hours of statistics",
    "boots": "boots",
    "gaps": "gap records",
    "forget": "places to forget",
}


def commit(
    store: Store,
    batch: Batch,
    retain: Callable[[Store, Batch, int], list[Gap]],
    cursors: Mapping[str, int],
    ends: Mapping[str, int] = _NO_ENDS,
    *,
    in_doubt: bool,
) -> tuple[Committed, Unwritable | None]:
    """Write a batch; what cannot be written is left out, returned, and counted in a gap record.

    Args:
        cursors: consumer -> settled up to.
        ends: what a removed one of them is owed ends here.
    """
    try:
        return store.commit(batch, retain, in_doubt=in_doubt), None
    except Exception as error:
        if of_the_file(error):
            raise
        # sets that an earlier commit in doubt has written after all are neither to blame nor to be written again
        batch = replace(batch, entries=store.not_yet_stored(batch.entries))
        found = unwritable(store, batch)
        if found is None:
            raise
    found.gap = lost(found.entries, batch.now_us, cursors, ends)
    rest = _without(batch, found)
    return store.commit(rest, retain, in_doubt=in_doubt), found


def unwritable(store: Store, batch: Batch) -> Unwritable | None:
    """The pieces that cannot be written although others of their kind can; None when it is not the pieces."""
    if store.refusal(_plain(batch)) is not None:
        return None
    found = Unwritable()
    for name, piece, one in _pieces(batch):
        error = store.refusal(one)
        if error is None or of_the_file(error) or store.refusal(one) is None:
            continue
        getattr(found, name).append(piece)
        found.why.append(f"{type(error).__name__}: {str(error)[:200]}")
    nameless = set(found.series)
    if nameless:
        known = {entry.seq for entry in found.entries}
        found.entries += [e for e in batch.entries if e.seq not in known and not nameless.isdisjoint(e.series)]
    if not found.why or store.refusal(_plain(batch)) is not None:
        return None
    return found


def lost(entries: list[Entry], now_us: int, cursors: Mapping[str, int], ends: Mapping[str, int] = _NO_ENDS) -> Gap:
    """The gap record of sets that cannot be written."""
    times = [time_us for entry in entries for reading in entry.readings if (time_us := _time_us(reading)) is not None]
    owed = {
        name: sum(len(e.readings) for e in entries if cursor < e.seq <= ends.get(name, e.seq))
        for name, cursor in cursors.items()
    }
    readings = sum(len(entry.readings) for entry in entries)
    return Gap(now_us, min(times, default=None), max(times, default=None), readings, REASON, owed)


def _time_us(reading: Reading) -> int | None:
    try:
        return microseconds(reading.observed_at)
    except Exception:  # noqa: BLE001  it may be anything: that is why it is here
        return None


def _pieces(batch: Batch) -> Iterator[tuple[str, Any, Batch]]:
    """Each piece with a batch of its own: kind, piece, batch."""

    def alone(name: str, piece: Any) -> Batch:
        one = Batch(settled=batch.settled, now_us=batch.now_us)
        setattr(one, name, piece)
        return one

    for name in _MAPPINGS:
        for key, value in getattr(batch, name).items():
            yield name, key, alone(name, {key: value})
    for name in _LISTS:
        for piece in getattr(batch, name) or ():
            yield name, piece, alone(name, [piece])


def _plain(batch: Batch) -> Batch:
    """One harmless piece of each kind, in the place of the first that is to be written."""
    seq = batch.entries[0].seq if batch.entries else 1
    entry = Entry(seq, (1,), (Reading("", 0, EPOCH),), Stamp(0, 0, 0), 0.0, 0)
    return Batch(
        entries=[entry] if batch.entries else (),
        series={1: ("", "")},
        cursors={"": 0},
        consumers={"": Known()},
        forget=[""],
        boots=[Boot(0, "")],
        states={("", ""): b""},
        last_values=[entry],
        statistics={0: b""},
        gaps=[Gap(0, None, None, 0, REASON, {})],
    )


def _without(batch: Batch, found: Unwritable) -> Batch:
    changes: dict[str, Any] = {
        name: {key: value for key, value in getattr(batch, name).items() if key not in getattr(found, name)}
        for name in _MAPPINGS
    }
    for name in _LISTS:
        gone = {id(piece) for piece in getattr(found, name)}
        pieces = getattr(batch, name)
        changes[name] = None if pieces is None else [piece for piece in pieces if id(piece) not in gone]
    assert found.gap is not None
    changes["gaps"].append(found.gap)
    return replace(batch, **changes)
