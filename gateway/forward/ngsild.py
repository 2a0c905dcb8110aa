"""NGSI-LD over HTTP: batch upsert, read back, history; the answers of each broker's spelling.

Sources: ETSI GS CIM 009 V1.9.1 clauses 5.6, 6.3, 6.15, 6.18; answers observed on Scorpio 5.0.3 and read from the
sources of Orion-LD and Stellio.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from gateway.config.model import BrokerConfig
from gateway.forward.answer import Answer, per_entity, read_answer, wire_moment
from gateway.forward.auth import Way
from gateway.forward.batches import Batches, Encoded, json_bytes
from gateway.forward.broker import (
    BatchRefused,
    InDoubt,
    Outcome,
    Point,
    Probe,
    ReadRefused,
    Traffic,
    bisect,
    observed,
    unavailable,
)
from gateway.forward.dates import Dates
from gateway.forward.transport import OfferTime, Transport, fault_of, way_of
from gateway.harmonise.dialects import ngsi_ld, wire_time
from gateway.harmonise.entity import Entity
from gateway.sdk.errors import BrokerUnavailable, FrameError

LINK = '<{}>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"'
READ_BACK_IDS = 20  # ids in one query: keeps the URL below 2 kB
LAST_N = 1000  # instances of an attribute in one answer
_UNREADABLE = frozenset({403, 405, 501})  # to a read: the broker works, we may not, or it cannot
_EVER = {"timerel": "after", "timeAt": "2000-01-01T00:00:00Z"}


@dataclass(frozen=True, slots=True)
class NgsiLdSettings:
    """Where and how to speak to one broker.

    Attributes:
        url: base URL; `/ngsi-ld/v1` is added unless it ends so.
        headers: further ones, sent with each request.
        batch_entities: entities a request to begin with; learned from there.
        batch_bytes: bound of one request; 200 kB suits Stellio's default buffer.
    """

    url: str
    tenant: str = ""
    headers: Mapping[str, str] | None = None
    batch_entities: int = 25
    batch_bytes: int = 200_000


class NgsiLdBroker:
    """One NGSI-LD broker. Use from one task: requests go one after the other."""

    def __init__(
        self, settings: NgsiLdSettings, way: Way | None = None, *, offer_time: OfferTime | None = None
    ) -> None:
        base = settings.url.rstrip("/")
        headers = dict(settings.headers or {})
        if settings.tenant:
            headers["NGSILD-Tenant"] = settings.tenant
        self._http = Transport(
            base if base.endswith("/ngsi-ld/v1") else f"{base}/ngsi-ld/v1",
            way or Way(),
            read=read_answer,
            headers=headers,
            offer_time=offer_time,
        )
        self._batches = Batches(self._http.traffic, entities=settings.batch_entities, size_bytes=settings.batch_bytes)
        self._reads = False  # a read worked in this run

    @property
    def traffic(self) -> Traffic:
        """Requests and bytes so far."""
        return self._http.traffic

    async def state(self, entities: Sequence[Entity]) -> Outcome:
        """Upsert current values, `options=update`; one subject context per request."""
        encoded, refused = _encode(entities)
        bodies = {entity.id: body for entity, body in encoded}

        async def send(batch: Sequence[Entity]) -> Outcome:
            return await self._upsert(batch, [bodies[entity.id] for entity in batch])

        return refused + await self._batches.send_all(encoded, send)

    async def history(self, instances: Sequence[Entity]) -> Outcome:
        """`POST /temporal/entities`: every attribute an array of instances (6.18); repeats would be stored again."""
        entity = instances[0]
        try:
            body = json_bytes(_evolution(instances))
        except (TypeError, ValueError) as error:
            return Outcome(refused={entity.id: f"cannot be written as JSON: {error}"})
        try:
            answer = await self._request("POST", "/temporal/entities", body=body, context=entity.context)
            if answer.status in (201, 204) and _all_done(answer, [entity.id]):
                return Outcome(accepted=frozenset({entity.id}))
            if answer.problem is not None and answer.status in (400, 422):
                told = {entity.id: answer.reason}
                return Outcome(refused=told) if answer.problem.blames else Outcome(later=told)
            if answer.status == 413:
                return Outcome(later={entity.id: f"too large for the broker: {answer.reason}"})
            raise fault_of(answer, wrote=True)
        except BrokerUnavailable as fault:
            return unavailable([entity], fault)

    async def probe(self) -> Probe:
        """Reads alone: may current entities be read, is there a history. Only a context broker's word settles it.

        Raises:
            ReadRefused: somebody on the way does not let us read, so that nothing was learned.
        """
        now = await self._request("GET", "/entities", query={"type": "Device", "limit": "1"})
        past = await self._request("GET", "/temporal/entities", query={"type": "Device", "limit": "1", **_EVER})
        readable = self._readable(now)
        sure = past.by_broker or past.is_empty_refusal
        if readable is None:
            temporal = None
        elif past.status == 404 and not sure:
            temporal = False  # the broker spoke beside it; servers say so of a path they lack, and so do proxies
        else:
            temporal = bool(self._readable(past))
        return Probe(readable=readable is not False, temporal=temporal, sure=sure, product=now.server, date=now.date)

    def _readable(self, answer: Answer) -> bool | None:
        """Whether a read is offered and allowed; None: the tenant is not there yet. Raises when no broker answered."""
        if answer.status == 200 and answer.is_entities:
            self._reads = True
            return True
        if _no_tenant(answer):
            return None
        told = answer.problem is not None or answer.is_empty_refusal
        if told and (answer.status in _UNREADABLE or answer.status in (400, 404)):
            return False
        if answer.status == 403:
            raise ReadRefused(f"{answer.reason}: reading is not allowed, so how history is to be sent cannot be asked")
        raise fault_of(answer)

    async def _found(self, path: str, query: Mapping[str, str], context: str) -> list[dict[str, Any]]:
        """The entities that a query finds; none when the broker knows nothing yet.

        Raises:
            ReadRefused: the broker says so itself, or nobody ever let us read.
        """
        answer = await self._request("GET", path, query=query, context=context)
        if answer.status in (200, 206) and answer.is_entities:
            self._reads = True
            return [item for item in answer.json if isinstance(item.get("id"), str)]
        if answer.status == 404 and answer.problem is not None and (path != "/entities" or _no_tenant(answer)):
            return []  # nothing recorded yet, or a tenant that its first write makes
        told = answer.problem is not None or answer.is_empty_refusal
        if (answer.status in _UNREADABLE and (told or not self._reads)) or (answer.status == 404 and told):
            raise ReadRefused(answer.reason)
        raise fault_of(answer)

    async def history_back(self, instances: Sequence[Entity]) -> frozenset[Point]:
        """Points held between the oldest and newest of these, asked by type and ids."""
        times = [at for entity in instances for at in observed(entity).values()]
        found: set[Point] = set()
        for (entity_type, context), ids in _by_type(instances).items():
            for start in range(0, len(ids), READ_BACK_IDS):
                some = ids[start : start + READ_BACK_IDS]
                found |= await self._between(entity_type, context, some, min(times), max(times))
        return frozenset(found)

    async def _between(
        self, entity_type: str, context: str, ids: Sequence[str], first: datetime, last: datetime
    ) -> set[Point]:
        """Points of a stretch; the newest come first, and more than one answer holds are asked for in parts."""
        found: set[Point] = set()
        while True:
            window = {"timerel": "between", "timeAt": wire_time(first), "endTimeAt": wire_time(_after(last))}
            query = {"type": entity_type, "id": ",".join(ids), "limit": str(len(ids)), "lastN": str(LAST_N), **window}
            items = await self._found("/temporal/entities", query, context)
            cut = [oldest for item in items if (oldest := _cut_at(item)) is not None]
            ids = [item["id"] for item in items if _cut_at(item) is not None]
            found.update((item["id"], key, at) for item in items for key, at in points_of(item))
            if not cut or max(cut) >= last:
                return found
            last = max(cut)

    async def history_newest(
        self,
        entities: Sequence[Entity],
        *,
        since: datetime | None = None,
        attributes: Sequence[str] = (),
        last: int = 1,
    ) -> Mapping[str, Sequence[tuple[str, datetime]]]:
        """`lastN` of every attribute: the newest come first."""
        ids = list(dict.fromkeys(entity.id for entity in entities))
        query = {"type": entities[0].type, "id": ",".join(ids), "limit": str(len(ids)), "lastN": str(last), **_EVER}
        if since is not None:
            query["timeAt"] = wire_time(_before(since))
        if attributes:
            query["attrs"] = ",".join(attributes)
        found = await self._found("/temporal/entities", query, entities[0].context)
        return {item["id"]: list(points_of(item)) for item in found}

    async def read_back(self, entities: Sequence[Entity]) -> Mapping[str, Mapping[str, datetime]]:
        """Current `observedAt` of every attribute, by id; asked by type and ids, as `id` alone is no filter."""
        found: dict[str, dict[str, datetime]] = {}
        for (entity_type, context), ids in _by_type(entities).items():
            for start in range(0, len(ids), READ_BACK_IDS):
                some = ids[start : start + READ_BACK_IDS]
                query = {"type": entity_type, "id": ",".join(some), "limit": str(len(some))}
                for item in await self._found("/entities", query, context):
                    found[item["id"]] = _observed(item)
        return found

    async def close(self) -> None:
        """Give connections back."""
        await self._http.close()

    async def _upsert(self, batch: Sequence[Entity], bodies: Sequence[bytes]) -> Outcome:
        body = b"[" + b",".join(bodies) + b"]"
        asked_s = time.monotonic()
        try:
            answer = await self._request(
                "POST", "/entityOperations/upsert", query={"options": "update"}, body=body, context=batch[0].context
            )
        except InDoubt:
            self._batches.unanswered(len(batch))
            raise
        self._batches.answered(len(batch), answer.status, time.monotonic() - asked_s)
        outcome, unclear = self._outcome(batch, answer)
        self._batches.greeted = True
        for entity, one in zip(batch, bodies, strict=True):
            if entity.id in unclear:  # an error that names nobody: alone, its answer is unmistakable
                outcome += (
                    await self._alone(entity, one)
                    if outcome.fault is None
                    else unavailable([entity], outcome.fault, sent=False)
                )
        return outcome

    async def _alone(self, entity: Entity, body: bytes) -> Outcome:
        async def send(batch: Sequence[Entity]) -> Outcome:
            return await self._upsert(batch, [body])

        return await bisect([entity], send)

    def _outcome(self, batch: Sequence[Entity], answer: Answer) -> tuple[Outcome, frozenset[str]]:
        """The outcome as far as the answer tells, and the ids that it leaves unclear."""
        ids = [entity.id for entity in batch]
        if answer.status in (200, 201, 204) and _all_done(answer, ids):
            return Outcome(accepted=frozenset(ids)), frozenset()
        if answer.result is not None:
            try:
                return per_entity(ids, answer.result)
            except FrameError as error:
                raise InDoubt(f"{answer.status}: {error.message}") from error
        if answer.problem is not None and answer.status in (400, 422) and answer.problem.blames:
            raise BatchRefused(answer.reason, suspects=_named(ids, answer.body))
        if answer.status == 413:
            raise BatchRefused(f"{len(batch)} entities are too large for it: {answer.reason}", permanent=False)
        if answer.status == 500 and answer.problem is not None and self._batches.blame_for_500():
            raise BatchRefused(answer.reason, permanent=False)
        raise fault_of(answer, wrote=True)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        context: str = "",
    ) -> Answer:
        link = {"Link": LINK.format(context)} if context else None
        return await self._http.request(method, path, query=query, body=body, headers=link)


def _encode(entities: Sequence[Entity]) -> tuple[list[Encoded], Outcome]:
    """Bytes of each entity, made once; one that is no JSON is refused here and spoils no batch."""
    good: list[Encoded] = []
    refused: dict[str, str] = {}
    for entity in entities:
        try:
            good.append((entity, json_bytes(ngsi_ld(entity))))
        except (TypeError, ValueError) as error:  # a lone surrogate, an integer beyond 64 bits
            refused[entity.id] = f"cannot be written as JSON: {error}"
    return good, Outcome(refused=refused)


def _by_type(entities: Sequence[Entity]) -> dict[tuple[str, str], list[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for entity in entities:
        groups.setdefault((entity.type, entity.context), []).append(entity.id)
    return groups


def _all_done(answer: Answer, ids: Sequence[str]) -> bool:
    """204; 201 names the created ids, or has no body; 200 names all, as brokers before 1.4 answer. `[]` is anybody's."""
    if not answer.body.strip():
        return answer.status in (201, 204)
    return answer.is_ids and not set(ids).isdisjoint(answer.json)


def _no_tenant(answer: Answer) -> bool:
    """Whether the broker says that its first write will make the tenant."""
    problem = answer.problem
    return problem is not None and answer.status == 404 and "Tenant" in problem.kind + answer.reason


def _named(ids: Sequence[str], body: bytes) -> frozenset[str]:
    """Ids that a problem report mentions; longest first, so that `x:1` is not found in `x:12`."""
    text = body.decode("utf-8", "replace")
    found = set()
    for entity_id in sorted(ids, key=len, reverse=True):
        if entity_id in text:
            found.add(entity_id)
            text = text.replace(entity_id, "")
    return frozenset(found)


def _observed(item: Mapping[str, Any]) -> dict[str, datetime]:
    times: dict[str, datetime] = {}
    for key, at in points_of(item):
        if key not in times or at > times[key]:
            times[key] = at
    return times


def points_of(item: Mapping[str, Any]) -> Iterator[tuple[str, datetime]]:
    """Attribute key (as in `Entity.attributes`) and time of every instance; a single one stands without array."""
    for name, attribute in item.items():
        for instance in attribute if isinstance(attribute, list) else [attribute]:
            at = wire_moment(instance.get("observedAt")) if isinstance(instance, dict) else None
            if at is not None:
                dataset = instance.get("datasetId")
                yield f"{name} {dataset}" if isinstance(dataset, str) and dataset else name, at


def _evolution(instances: Sequence[Entity]) -> dict[str, Any]:
    """EntityTemporal (5.2.20): what is measured, each attribute as an array of instances."""
    whole: dict[str, Any] = {"id": instances[0].id, "type": instances[0].type}
    for entity in instances:
        measured = {name: a for name, a in entity.attributes.items() if a.observed_at is not None}
        for name, attribute in ngsi_ld(replace(entity, attributes=measured)).items():
            if name not in ("id", "type"):
                whole.setdefault(name, []).extend(attribute if isinstance(attribute, list) else [attribute])
    return whole


def _cut_at(item: Mapping[str, Any]) -> datetime | None:
    """Where an entity's history ends because the answer holds no more of it; None when it is whole."""
    times: dict[str, list[datetime]] = {}
    for key, at in points_of(item):
        times.setdefault(key, []).append(at)
    return max((min(some) for some in times.values() if len(some) >= LAST_N), default=None)


def _before(at: datetime) -> datetime:
    """Its begin neither."""
    return at - timedelta(milliseconds=1)


def _after(at: datetime) -> datetime:
    """The end of an interval is not part of it everywhere (4.11)."""
    return at + timedelta(milliseconds=1)


PRESETS: Mapping[str, tuple[int, int]] = {  # entities and bytes a request to begin with
    "auto": (25, 200_000),
    "orion-ld": (50, 900_000),  # 1 MB by default
    "scorpio": (15, 200_000),  # time per batch grows with its square
    "stellio": (50, 200_000),  # 256 KiB by default
}


def broker_of(config: BrokerConfig, *, offer_time: OfferTime | None = None, dates: Dates | None = None) -> NgsiLdBroker:
    """The broker of one entry of the operator's file."""
    entities, size_bytes = PRESETS[config.preset]
    settings = NgsiLdSettings(
        url=config.url, tenant=config.tenant or "", batch_entities=entities, batch_bytes=size_bytes
    )
    return NgsiLdBroker(settings, way_of(config, dates), offer_time=offer_time)
