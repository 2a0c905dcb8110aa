"""Batches: how entities share requests, and who is to blame when a request is refused whole. For every kind that sends many at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from gateway.forward.broker import BatchRefused, BatchSize, Outcome, Send, Traffic, bisect, unavailable
from gateway.harmonise.entity import Entity
from gateway.sdk.errors import BrokerUnavailable

MOST_SUSPECTS = 1000
SEARCH_AFTER = 3  # answers of 500 in a row before a poison entity is searched for: a 5xx may be permanent

Encoded = tuple[Entity, bytes]


class Batches:
    """Sends many entities to one broker in requests of a size that it takes well.

    Args:
        entities: a request to begin with; learned from there, or from what `traffic` says was learned before.
        size_bytes: bound of one request.
    """

    def __init__(self, traffic: Traffic, *, entities: int, size_bytes: int) -> None:
        self._traffic = traffic
        self._entities = entities
        self._size_bytes = size_bytes
        self._size: BatchSize | None = None
        self._waiting = 0  # entities of one context that there are to send
        self._suspects: set[str] = set()
        self._server_errors, self._search_at, self._searching = 0, SEARCH_AFTER, False
        self.greeted = False  # the broker answered to a write

    async def send_all(self, encoded: Sequence[Encoded], send: Send) -> Outcome:
        """Batch by batch, until the broker itself fails."""
        total = Outcome()
        for batch in self._batches(encoded):
            if total.fault is not None:
                total += unavailable(batch, total.fault, sent=False)
            else:
                total += await self._searched(batch, send)
        return total

    def answered(self, entities: int, status: int, seconds: float) -> None:
        """What an answer tells of the size, and that the broker does not fail inside."""
        size = self._size or BatchSize(1)
        if status == 413:
            size.failed(entities, self._waiting)
        elif status < 300:
            size.took(entities, seconds, self._waiting)
        self._traffic.batch = size.learned
        if status < 500 and not self._searching:
            self._server_errors, self._search_at = 0, SEARCH_AFTER

    def unanswered(self, entities: int) -> None:
        """No answer came: it may have been too large."""
        if self._size is not None:
            self._size.failed(entities, self._waiting)
            self._traffic.batch = self._size.learned

    def blame_for_500(self) -> bool:
        """The broker failed inside: whether that is searched for an entity that makes it fail."""
        if not self._searching:  # what the search itself meets is no other failure of the broker
            self._server_errors += 1
            self._searching = self._server_errors >= self._search_at
        return self._searching

    async def _searched(self, batch: Sequence[Entity], send: Send) -> Outcome:
        """One batch. Refused whole, it is searched for the culprits, which go alone from then on until they are accepted."""
        whole, suspect = False, batch[0].id in self._suspects

        async def watched(part: Sequence[Entity]) -> Outcome:
            nonlocal whole
            try:
                return await send(part)
            except BatchRefused:
                whole = True
                raise

        self._searching = suspect  # a 500 of one that is known for it says nothing of the broker
        outcome = await bisect(batch, watched)
        if self._searching and outcome.accepted and outcome.later and outcome.fault is None:
            # the broker may have come back in the middle of the search: only who fails again is to blame
            again = await bisect([entity for entity in batch if entity.id in outcome.later], watched)
            outcome = replace(outcome, later={}) + again
        searched, self._searching = self._searching and not suspect, False
        self._suspects -= outcome.accepted
        if searched and not outcome.accepted and not outcome.refused:
            self._search_at *= 2  # all parts failed: it is the broker after all; the next search waits for longer
            return unavailable(batch, BrokerUnavailable(next(iter(outcome.later.values()))))
        if searched:
            self._server_errors, self._search_at = 0, SEARCH_AFTER
        if whole and len(batch) > 1 and outcome.fault is None and len(self._suspects) < MOST_SUSPECTS:
            self._suspects |= outcome.refused.keys() | outcome.later.keys()
        return outcome

    def _batches(self, encoded: Sequence[Encoded]) -> Iterator[list[Entity]]:
        """Batches of one context each (a request names one), each of the size that is right when it goes."""
        self._size = self._size or BatchSize(self._traffic.batch or self._entities, self._entities)
        self._traffic.batch = self._size.learned
        suspects = frozenset(self._suspects)
        by_context: dict[str, list[Encoded]] = {}
        for entity, body in encoded:
            if entity.id not in suspects:
                by_context.setdefault(entity.context, []).append((entity, body))
        # the first write makes the tenant: several entities at once can deadlock (Scorpio issue 653)
        alone = not self.greeted
        for same in by_context.values():
            self._waiting = len(same)
            yield from self._split(same, self._size, alone=alone)
            alone = False
        for entity, _ in encoded:
            if entity.id in suspects:
                self._waiting = 0  # it says nothing of the size
                yield [entity]

    def _split(self, encoded: Sequence[Encoded], size: BatchSize, *, alone: bool) -> Iterator[list[Entity]]:
        batch: list[Entity] = []
        size_bytes = 2
        for entity, body in encoded:
            most = 1 if alone else size.size
            if batch and (len(batch) >= most or size_bytes + len(body) + 1 > self._size_bytes):
                yield batch
                batch, size_bytes, alone = [], 2, False
            batch.append(entity)
            size_bytes += len(body) + 1
        yield batch


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """What goes out. Raises `TypeError` or `ValueError` for a lone surrogate, an integer beyond 64 bits."""
    body = orjson.dumps(document)
    # U+0000 makes PostgreSQL refuse a whole batch, each time again; it means nothing in a value
    return orjson.dumps(_without_nul(document)) if b"\\u0000" in body else body


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, Mapping):
        return {key: _without_nul(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(item) for item in value]
    return value
