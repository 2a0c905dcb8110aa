"""A broker behind a check: what does not fit the official schema is refused here, with the reason, and never sent."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from gateway.forward.broker import Broker, Outcome, Point, Probe, Traffic
from gateway.harmonise.dialects import key_values
from gateway.harmonise.entity import Entity
from gateway.journal import event
from gateway.models.validator import Validator

MAX_LEFT_OUT_NAMES = 32
SAMPLE_OF = 50  # with `sampled`, one update in so many, and the first of every entity


class Checked:
    """See `Broker`. An update is checked as it is: what the broker already has of the entity was checked when it was sent.

    Args:
        validator: None checks nothing; values that the mapping left out are counted all the same.
        left_out: "device: attribute" -> how many values were left out because the model does not allow them; bounded.
    """

    def __init__(
        self, broker: Broker, validator: Validator | None, *, every: int = 1, left_out: dict[str, int] | None = None
    ) -> None:
        self._broker = broker
        self._validator = validator
        self._left_out = {} if left_out is None else left_out
        self._every = every
        self._count = 0
        self._seen: set[str] = set()

    @property
    def traffic(self) -> Traffic:
        return self._broker.traffic

    async def probe(self) -> Probe:
        return await self._broker.probe()

    async def state(self, entities: Sequence[Entity]) -> Outcome:
        """Send the sound ones; the others are refused with what the schema says."""
        refused = self._refused(entities)
        sound = [entity for entity in entities if entity.id not in refused] if refused else entities
        outcome = await self._broker.state(sound) if sound else Outcome()
        return outcome + Outcome(refused=refused) if refused else outcome

    async def history(self, instances: Sequence[Entity]) -> Outcome:
        """As `state`; one unsound instance refuses its entity's part of this request."""
        refused = self._refused(instances)
        sound = [entity for entity in instances if entity.id not in refused] if refused else instances
        outcome = await self._broker.history(sound) if sound else Outcome()
        return outcome + Outcome(refused=refused) if refused else outcome

    async def read_back(self, entities: Sequence[Entity]) -> Mapping[str, Mapping[str, datetime]]:
        return await self._broker.read_back(entities)

    async def history_back(self, instances: Sequence[Entity]) -> frozenset[Point]:
        return await self._broker.history_back(instances)

    async def history_newest(
        self,
        entities: Sequence[Entity],
        *,
        since: datetime | None = None,
        attributes: Sequence[str] = (),
        last: int = 1,
    ) -> Mapping[str, Sequence[tuple[str, datetime]]]:
        return await self._broker.history_newest(entities, since=since, attributes=attributes, last=last)

    async def close(self) -> None:
        await self._broker.close()

    def _refused(self, entities: Sequence[Entity]) -> dict[str, str]:
        refused: dict[str, str] = {}
        for entity in entities:
            for key in entity.dropped:
                self._count_left_out(f"{entity.device}: {key}", entity.dropped[key])
            if self._validator is not None and self._due(entity.id):
                faults = self._validator.faults(key_values(entity), entity.context, whole=False)
                if faults:
                    refused[entity.id] = f"not valid as {entity.type}: {'; '.join(faults)}"
        return refused

    def _count_left_out(self, name: str, why: str) -> None:
        if name not in self._left_out:
            if len(self._left_out) >= MAX_LEFT_OUT_NAMES:
                name = "others"
            else:
                event("value_left_out", attribute=name, reason=why)
        self._left_out[name] = self._left_out.get(name, 0) + 1

    def _due(self, entity_id: str) -> bool:
        if entity_id not in self._seen:
            self._seen.add(entity_id)
            return True
        self._count += 1
        return self._count % self._every == 0
