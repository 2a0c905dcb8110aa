"""Receipts: who waits for the card. A source until its set is durable or given up, `append` for room in the head."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.log.condition import Condition
from gateway.log.head import Head
from gateway.sdk.errors import LogError

_GIVEN_UP_KEPT: Final = 1000  # stretches of numbers, for receipts that ask later


class SetReceipt:
    """Receipt of one appended set; see `gateway.sdk.driver.Receipt`."""

    __slots__ = ("_number", "_receipts")

    def __init__(self, receipts: "Receipts", number: int) -> None:
        self._receipts = receipts
        self._number = number  # within this run: the sequence number changes when the file is opened late

    @property
    def durable(self) -> Awaitable[None]:
        """Resolves when committed or settled by all; `LogError` when the set had to be given up before."""
        return self._receipts.when_durable(self._number)


class Receipts:
    """Those who wait, by the number of their set.

    Attributes:
        durable_upto: all up to here is on the card, or nobody waits for it any more.
        room: resolves when there is room in the head, or the card refuses.
        settled: up to where every consumer is done.
        wanted: called when somebody waits for a set that no commit is due for.
    """

    def __init__(self, head: Head, condition: Condition, *, each_set: bool) -> None:
        self.settled: Callable[[], int]
        self.wanted: Callable[[], None]
        self._loop = asyncio.get_running_loop()
        self.durable_upto = 0
        self.room = self._loop.create_future()
        self._head = head
        self._condition = condition
        self._each_set = each_set  # is committed: `commit_every` is 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._given_up: deque[tuple[int, int, str]] = deque(maxlen=_GIVEN_UP_KEPT)  # first, last number, why

    def when_durable(self, number: int) -> Awaitable[None]:
        """What a receipt waits for; `number` counts from the first of this run."""
        seq = self._head.first_seq + number
        future: asyncio.Future[None] = self._loop.create_future()
        why = next((why for first, last, why in self._given_up if first <= seq <= last), "")
        if why:
            self._refuse(future, why)
            return future
        if seq <= self.done():
            future.set_result(None)
            return future
        if self._condition.closed:
            self._refuse(future, "was closed before the set was written")
            return future
        self._waiting.append((seq, future))
        if self._each_set:
            self.wanted()
        return future

    def resolve(self) -> None:
        """Sets have become durable, or were settled by all."""
        if not self._waiting:
            return
        upto = self.done()
        waiting = []
        for seq, future in self._waiting:
            if seq > upto:
                waiting.append((seq, future))
            elif not future.done():
                future.set_result(None)
        self._waiting = waiting

    @property
    def first_waited_for(self) -> int | None:
        """Number of the oldest set whose receipt somebody waits for."""
        return min((seq for seq, future in self._waiting if not future.done()), default=None)

    def give_up(self, first: int, last: int, why: str) -> None:
        """These sets will never be durable."""
        self._given_up.append((first, last, why))
        waiting = []
        for seq, future in self._waiting:
            if not first <= seq <= last:
                waiting.append((seq, future))
            elif not future.done():
                self._refuse(future, why)
        self._waiting = waiting

    def close(self) -> None:
        """What is not durable by now will not be."""
        self.give_up(self.done() + 1, self._head.next_seq, "was closed before the set was written")

    def done(self) -> int:
        """Up to here sets are durable, or settled by all."""
        return max(self.durable_upto, self.settled())

    def _refuse(self, future: "asyncio.Future[None]", why: str) -> None:
        future.set_exception(LogError(f"{self._condition.path} {why}"))
        future.exception()  # whoever awaits it gets it; nobody has to

    def renumber(self, more: int) -> None:
        """The file is open: the numbers given before have grown, those of the lanes not yet."""
        self.durable_upto = max(self.done(), self._head.first_seq - more) + more
        self._given_up = deque(((a + more, b + more, why) for a, b, why in self._given_up), self._given_up.maxlen)
        self._waiting = [(seq + more, future) for seq, future in self._waiting]

    def make_room(self) -> None:
        """Sets have left the head, or the card refuses: whoever waits for room looks again."""
        if not self.room.done() and (not self._head.full or self._condition.failure):
            self.room.set_result(None)
        if self.room.done():
            self.room = self._loop.create_future()
