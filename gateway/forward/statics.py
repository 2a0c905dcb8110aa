"""Static attributes: they go to a broker when they are new to it, have changed or may be lost there; not with every update."""

import contextlib
import math
import struct
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING

from gateway.forward.broker import Broker, Outcome, Over
from gateway.forward.usage import Kept
from gateway.harmonise.entity import Entity
from gateway.sdk.driver import Clock
from gateway.sdk.errors import LogError
from gateway.sdk.reading import ReadingSet

if TYPE_CHECKING:
    from gateway.harmonise import compile as compiled

ALL_AGAIN_S = 86_400.0  # somebody may have changed them at the broker
REST_S = 600.0  # faults that follow each other closer than this are one: a thin uplink fails all the time
_DIGEST = 4  # bytes an entity
_A_KEY = 1000  # entities in one value of the log, which has 4096 bytes
_STAMP = struct.Struct(">q")  # unix seconds


class Statics(Over):
    """See `Broker`. Entities come without static attributes; those that the broker may lack go along.

    An entity's are known to be there when they were accepted, in this run or an earlier one; no more when it, or one of
    them, is not found when it is read, a day after all went, and when the broker failed: it may have come back from a
    backup. An upsert that made an entity which was there shows that somebody took it away: they follow at once.

    Args:
        static: entities of nothing but static attributes, by id; those without any need not be among them.
        city: which broker and tenant it is: another one has none of them.
    """

    def __init__(
        self, name: str, broker: Broker, static: Mapping[str, Entity], *, log: Kept, clock: Clock, city: str = ""
    ) -> None:
        self._place = f"broker {name}"
        super().__init__(broker)
        self._static = dict(static)
        self._log = log
        self._clock = clock
        self._city = city
        self._digest = {entity_id: _digest(entity, city) for entity_id, entity in static.items()}
        self._begun = False
        self._known: set[str] = set()
        self._all_s, self._all_at = -math.inf, 0  # since when all go again: monotonic, unix
        self._failed, self._failed_s = False, -math.inf  # and when they last did for a fault
        self._tells = True  # a created entity from an updated one
        self._noted: dict[str, bytes] = {}

    async def state(self, entities: Sequence[Entity]) -> Outcome:
        """Set current values, with the static attributes where they are needed."""
        await self._begin()
        self._look()
        lean = {entity.id for entity in entities if entity.id in self._known}
        outcome = await self._broker.state([self._whole(entity) for entity in entities])
        self._known |= (outcome.accepted & self._static.keys()) - lean
        lost = outcome.created & lean if self._tells else frozenset[str]()
        self._known -= lost
        return await self._restore(lost, outcome) if lost and outcome.fault is None else outcome

    async def read_back(self, entities: Sequence[Entity]) -> Mapping[str, Mapping[str, datetime | None]]:
        """As the broker does; what it does not have of static attributes is sent again."""
        await self._begin()
        found = await self._broker.read_back(entities)
        for entity_id in self._known.intersection(entity.id for entity in entities):
            if not self._static[entity_id].attributes.keys() <= found.get(entity_id, {}).keys():
                self._known.discard(entity_id)
        return found

    def add(self, static: Mapping[str, Entity]) -> None:
        """Those of entities that are no longer in the config and are still owed."""
        for entity_id, entity in static.items():
            if self._static.setdefault(entity_id, entity) is entity:
                self._digest[entity_id] = _digest(entity, self._city)

    def failed(self) -> None:
        """The broker failed; when it is back, it may hold what it held long ago."""
        self._failed = bool(self._known)

    def _look(self) -> None:
        """Forget what is to be sent again by now."""
        now_s = self._clock.monotonic_s()
        if self._failed and now_s - self._failed_s >= REST_S:
            self._failed_s = now_s
        elif now_s - self._all_s < ALL_AGAIN_S:
            return
        self._known.clear()
        self._failed, self._all_s, self._all_at = False, now_s, int(self._clock.now().timestamp())

    def _whole(self, entity: Entity) -> Entity:
        static = self._static.get(entity.id)
        if static is None or entity.id in self._known:
            return entity
        return replace(entity, attributes={**static.attributes, **entity.attributes})

    async def _restore(self, lost: Set[str], outcome: Outcome) -> Outcome:
        """Give entities that were made anew their static attributes, and nothing measured: that would be twice in the history."""
        again = await self._broker.state([self._static[entity_id] for entity_id in sorted(lost)])
        self._known |= again.accepted
        if not again.created.isdisjoint(again.accepted):
            self._tells = False  # they were there for certain: this broker says so of every entity
        return outcome if again.fault is None else replace(outcome, fault=again.fault)

    # over restarts

    async def _begin(self) -> None:
        """Before the first request, when somebody vouches for the time: others than before may go out now."""
        if not self._begun:
            self._begun = True
            self._recall()
            with contextlib.suppress(LogError):  # told by the log itself
                await self.note()

    def _recall(self) -> None:
        """Take up what an earlier run noted; a time that is still to come says nothing."""
        noted = self._log.driver_state(self._place).items()
        self._noted = {key: value for key, value in noted if key.startswith("statics")}
        stamp = self._noted.get("statics", b"")
        if len(stamp) != _STAMP.size:
            return
        [self._all_at] = _STAMP.unpack(stamp)
        ago_s = self._clock.now().timestamp() - self._all_at
        if ago_s < 0:
            return
        self._all_s = self._clock.monotonic_s() - ago_s
        kept = b"".join(value for key, value in self._noted.items() if key != "statics")
        digests = {kept[at : at + _DIGEST] for at in range(0, len(kept), _DIGEST)}
        self._known = {entity_id for entity_id, digest in self._digest.items() if digest in digests}

    async def note(self) -> None:
        """Keep it, if it changed.

        Raises:
            LogError: the log refuses.
        """
        state = dict.fromkeys(self._noted, b"")
        if self._known:
            state["statics"] = _STAMP.pack(self._all_at)
        digests = sorted(self._digest[entity_id] for entity_id in self._known)
        for at in range(0, len(digests), _A_KEY):
            state[f"statics {at // _A_KEY}"] = b"".join(digests[at : at + _A_KEY])
        if state != self._noted:
            await self._log.append(ReadingSet(self._place, (), state))
            self._noted = state


def statics_of(mappings: "Mapping[str, Sequence[compiled.Mapping]]") -> dict[str, Entity]:
    """The static attributes of each entity, of all devices that feed it; what one of them measures is not static."""
    tables = [table for of_device in mappings.values() for table in of_device]
    measured = {(table.entity_id, slot.key) for table in tables for slots in table.slots.values() for slot in slots}
    found: dict[str, Entity] = {}
    for table in tables:
        own = {name: value for name, value in table.static.items() if (table.entity_id, name) not in measured}
        other = found.get(table.entity_id)
        if own or other:
            whole = own if other is None else {**own, **other.attributes}
            found[table.entity_id] = Entity(table.entity_id, table.entity_type, table.context, whole, table.device)
    return found


def _digest(entity: Entity, city: str) -> bytes:
    told = repr((city, entity.id, entity.type, entity.context, sorted(entity.attributes.items())))
    return blake2b(told.encode(), digest_size=_DIGEST).digest()
