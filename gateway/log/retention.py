"""Retention: what exceeds size and age goes, oldest first and counted; what is settled goes after `keep`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from gateway.log.places import stretches
from gateway.log.segment import Header, TimeState
from gateway.log.store import PAGE_BYTES, Batch, Gap, Store

_CHUNK = 16  # segments looked at and deleted at a time


@dataclass(frozen=True, slots=True)
class Retention:
    """The bounds of the operator's file.

    Attributes:
        cursors: consumer -> settled up to; of those that hold readings back.
        ends: what a removed one of them is owed ends here.
    """

    max_age_s: float
    keep_s: float
    cursors: Mapping[str, int]
    ends: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, store: Store, batch: Batch, need_bytes: int) -> list[Gap]:
        """Make room for so many bytes, within the transaction of a commit; returns what was given up."""
        gaps = []
        now_us = store.now_us()
        if now_us is not None:  # with an untrusted clock nothing is too old
            if self.keep_s:
                self._drop_kept(store, batch, now_us - int(self.keep_s * 1e6))
            before_us = now_us - int(self.max_age_s * 1e6)
            gaps += self._drop(store, batch, "age", lambda h: _sealed_us(store, h) < before_us)
        need_pages = 2 * need_bytes // PAGE_BYTES + 1
        if store.room_pages() < need_pages:
            target = need_pages + store.max_pages // 100  # some more at once: deleting is cheaper in bulk
            gaps += self._drop(store, batch, "size", lambda _: store.room_pages() < target)
        return gaps

    def _drop_kept(self, store: Store, batch: Batch, before_us: int) -> None:
        for after, upto in ((-1, batch.settled), *batch.free):
            found = store.between(after, upto, _CHUNK * 4)
            old = list(takewhile(lambda its: its[2] is None or _sealed_us(store, its[2]) < before_us, found))
            if old:
                store.drop(old[0][0], old[-1][1])

    def _drop(self, store: Store, batch: Batch, reason: str, doomed: Callable[[Header], bool]) -> list[Gap]:
        """Give up the oldest segments as long as the next one is doomed."""
        readings, owed, from_us, to_us = 0, dict.fromkeys(self.cursors, 0), None, None
        unsettled, owing = False, stretches(self.cursors, self.ends)
        look_at = 1  # at most commits nothing is doomed
        while chunk := store.oldest(look_at):
            look_at = _CHUNK
            for last, count, header in chunk:
                if header is not None and not doomed(header):
                    break
                for name, cursor in self.cursors.items():
                    owed[name] += store.owed_in(cursor, min(last, self.ends.get(name, last)))
                first = last if header is None else header.first
                if any(after < last and first <= upto for after, upto in owing):
                    unsettled = True
                    lost = sum(store.owed_in(after, min(last, upto)) for after, upto in owing)
                    readings += count if header is None else lost
                    if header is not None:
                        shift_us = store.boots.resolve(header.stamp)[0]
                        from_us = header.oldest_us + shift_us if from_us is None else from_us
                        to_us = header.sealed_us + shift_us
                store.delete_upto(last)
            else:
                continue
            break
        return [Gap(batch.now_us, from_us, to_us, readings, reason, owed)] if unsettled else []


def _sealed_us(store: Store, header: Header) -> int:
    shift_us, state = store.boots.resolve(header.stamp)
    return 1 << 62 if state is TimeState.UNCONFIRMED else header.sealed_us + shift_us
