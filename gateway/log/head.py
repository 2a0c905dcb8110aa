"""The head: the newest part of the log, in memory, bounded by bytes. Pure; who waits and what is written is decided above."""

from bisect import bisect_right
from collections.abc import Iterable
from operator import attrgetter

from gateway.log.segment import Entry

_seq_of = attrgetter("seq")


class Head:
    """Sets in order of their sequence numbers, until they are committed or settled by every consumer.

    Args:
        max_bytes: `full` from here on; one set more always fits.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.entries: list[Entry] = []
        self.size_bytes = 0
        self.readings = 0

    @property
    def full(self) -> bool:
        return self.size_bytes >= self.max_bytes

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.size_bytes += entry.size_bytes
        self.readings += len(entry.readings)

    def replace(self, entries: list[Entry]) -> None:
        """The same sets under other numbers."""
        self.entries = entries

    def after(self, seq: int) -> int:
        """Index of the first set above `seq`."""
        return bisect_right(self.entries, seq, key=_seq_of)

    def drop(self, upto: int) -> int:
        """Forget the sets up to and including `upto`; returns how many readings they had."""
        return self._forget(self.after(upto))

    def drop_oldest(self, down_to_bytes: int) -> list[Entry]:
        """Make room by giving up the oldest sets: the card has failed and nobody took them."""
        excess, count = self.size_bytes - down_to_bytes, 0
        while excess > 0 and count < len(self.entries):
            excess -= self.entries[count].size_bytes
            count += 1
        dropped = self.entries[:count]
        self._forget(count)
        return dropped

    def take_out(self, seqs: Iterable[int]) -> None:
        """Forget single sets."""
        gone = set(seqs)
        kept = [entry for entry in self.entries if entry.seq not in gone]
        for entry in self.entries:
            if entry.seq in gone:
                self.size_bytes -= entry.size_bytes
                self.readings -= len(entry.readings)
        self.entries = kept

    def _forget(self, count: int) -> int:
        gone = self.entries[:count]
        del self.entries[:count]
        readings = sum(len(entry.readings) for entry in gone)
        self.size_bytes -= sum(entry.size_bytes for entry in gone)
        self.readings -= readings
        return readings

    def count(self, after: int, upto: int) -> int:
        """Readings in the sets above `after`, up to and including `upto`."""
        return sum(len(entry.readings) for entry in self.entries[self.after(after) : self.after(upto)])
