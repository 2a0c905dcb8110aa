"""The head: the newest part of the log, in memory, bounded by bytes. Pure; who waits and what is written is decided above."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import attrgetter

from gateway.log.segment import Entry

_seq_of = attrgetter("seq")


class Head:
    """Sets in order of their sequence numbers, until they are committed or settled by every consumer.

    Args:
        max_bytes: `full` from here on; one set more always fits.

    Attributes:
        first_seq: numbers from here on are of this run: start of the file << 32 | n; 0 until the file was open.
        next_seq: of the next set.
        stored_last: newest number in the file.
    """

    def __init__(self, max_bytes: int) -> None:
        self.first_seq = 0
        self.next_seq = 1
        self.stored_last = 0
        self.max_bytes = max_bytes
        self.entries: list[Entry] = []
        self.size_bytes = 0
        self.readings = 0

    @property
    def full(self) -> bool:
        return self.size_bytes >= self.max_bytes

    def append(self, entry: Entry) -> None:
        self.next_seq = entry.seq + 1
        self.entries.append(entry)
        self.size_bytes += entry.size_bytes
        self.readings += len(entry.readings)

    def skip(self) -> int:
        """A number for a set that is not taken."""
        self.next_seq += 1
        return self.next_seq - 1

    def renumber(self, first_seq: int, series: Mapping[int, int], boot: int) -> int:
        """Numbers given before the file could be read were provisional, below all that a file can hold.

        Args:
            series: provisional number of a point -> the one in the file.
            boot: the number of this boot there.

        Returns:
            By how much they have grown.
        """
        more = first_seq - self.first_seq
        self.first_seq = first_seq
        self.next_seq += more
        stamps = {e.stamp: replace(e.stamp, boot=boot) for e in self.entries}
        self.entries = [
            e._replace(seq=e.seq + more, stamp=stamps[e.stamp], series=tuple(series[number] for number in e.series))
            for e in self.entries
        ]
        return more

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
