"""NGSI-LD over HTTP: batch upsert, read back, history; the answers of each broker's spelling.

Sources: ETSI GS CIM 009 V1.9.1 clauses 5.6, 6.3, 6.15, 6.18; answers observed on Scorpio 5.0.3 and read from the
sources of Orion-LD and Stellio.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from gateway.config.model import BrokerConfig
from gateway.forward.answer import Answer, Result, per_entity, read_answer, wire_moment, words
from gateway.forward.auth import Way
from gateway.forward.batches import Batches, Encoded, json_bytes
from gateway.forward.broker import (
    BatchRefused,
    ContextMissing,
    InDoubt,
    Outcome,
    Point,
    Probe,
    ReadRefused,
    Traffic,
    bisect,
    observed,
    unavailable,
    waiting,
)
from gateway.forward.contexts import REMEDY as CONTEXT_REMEDY
from gateway.forward.dates import Dates
from gateway.forward.greetings import PATIENCE_S, Turns
from gateway.forward.identity import API, NOBODY, Identity, identify, is_orion
from gateway.forward.transport import OfferTime, Transport, fault_of, way_of
from gateway.harmonise.dialects import ngsi_ld, wire_time
from gateway.harmonise.entity import Entity
from gateway.sdk.errors import BrokerUnavailable, FrameError

LINK = '<{}>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"'
READ_BACK_IDS = 20  # ids in one query: keeps the URL below 2 kB
HALF_MADE_REMEDY = "whoever runs the broker has to drop the database of this tenant, so that the next write makes it anew; else take another tenant"
_HALF_MADE = re.compile(r"""relation \\?["'][a-z_]+\\?["'] does not exist""")  # several were made at once
WAITS = "waits for its @context, which the broker cannot fetch"
LAST_N = 1000  # instances of an attribute in one answer
ORION_REMEDY = "ask the city for the address of its NGSI-LD broker (Orion-LD, Scorpio, Stellio) and put it into url"
IDENTIFIED_WITHIN_S = 5.0
WAITS_FOR_TURN = "waits for its turn: another tenant of this broker is being made"
IDENTITY_AGAIN_S = 600.0  # a product is not asked for its name more often; one without a name each time it is probed
_UNREADABLE = frozenset({403, 405, 501})  # to a read: the broker works, we may not, or it cannot
_MEMBERS = frozenset({"id", "type", "@context"})
_EVER = {"timerel": "after", "timeAt": "2000-01-01T00:00:00Z"}


@dataclass(frozen=True, slots=True)
class NgsiLdSettings:
    """Where and how to speak to one broker.

    Attributes:
        url: base URL; `/ngsi-ld/v1` is added unless it ends so.
        headers: further ones, sent with each request.
        batch_entities: entities a request to begin with; learned from there.
        batch_bytes: bound of one request; 200 kB suits Stellio's default buffer.
        contexts: where the city serves the contexts of the published models; "": where they are published.
    """

    url: str
    tenant: str = ""
    headers: Mapping[str, str] | None = None
    batch_entities: int = 25
    batch_bytes: int = 200_000
    contexts: str = ""


class NgsiLdBroker:
    """One NGSI-LD broker. Use from one task: requests go one after the other."""

    def __init__(
        self,
        settings: NgsiLdSettings,
        way: Way | None = None,
        *,
        offer_time: OfferTime | None = None,
        turns: Turns | None = None,
    ) -> None:
        base = settings.url.rstrip("/")
        headers = dict(settings.headers or {})
        if settings.tenant:
            headers["NGSILD-Tenant"] = settings.tenant
        self._http = Transport(
            base.removesuffix(API),
            way or Way(),
            read=read_answer,
            headers=headers,
            offer_time=offer_time,
        )
        self._batches = Batches(self._http.traffic, entities=settings.batch_entities, size_bytes=settings.batch_bytes)
        self._tenant = settings.tenant
        self._turns = turns or Turns()
        self._there = not settings.tenant  # the tenant is: it was read, or written to
        self._reads = False  # a read worked in this run
        self._identity, self._identity_s = NOBODY, 0.0
        self._contexts = self._http.traffic.contexts
        self._contexts.prefix, self._contexts.ask = settings.contexts, self._serves
        self._unread: set[str] = set()  # what the broker holds of these could not be asked for want of their context

    @property
    def traffic(self) -> Traffic:
        """Requests and bytes so far."""
        return self._http.traffic

    async def state(self, entities: Sequence[Entity]) -> Outcome:
        """Upsert current values, `options=update`; one subject context per request."""
        sendable = [e for e in entities if not self._contexts.away(e.context) and e.id not in self._unread]
        encoded, refused = _encode(sendable)
        bodies = {entity.id: body for entity, body in encoded}

        async def send(batch: Sequence[Entity]) -> Outcome:
            if self._contexts.away(batch[0].context):  # by now
                return waiting(batch, WAITS)
            return await self._upsert(batch, [bodies[entity.id] for entity in batch])

        sent = {entity.id for entity in sendable}
        rest = waiting([entity for entity in entities if entity.id not in sent], WAITS)
        return self._judged(refused + await self._batches.send_all(encoded, send) + rest)

    def _judged(self, outcome: Outcome) -> Outcome:
        """Where no context is to be had the broker works for nobody: it is as if it were away."""
        if outcome.absent and outcome.fault is None and self._contexts.all_away:
            return replace(outcome, fault=self._contexts.fault())
        return outcome

    async def history(self, instances: Sequence[Entity]) -> Outcome:
        """`POST /temporal/entities`: every attribute an array of instances (6.18); repeats would be stored again."""
        entity = instances[0]
        if self._contexts.away(entity.context):
            return self._judged(waiting([entity], WAITS))
        try:
            body = json_bytes(_evolution(instances))
        except (TypeError, ValueError) as error:
            return Outcome(refused={entity.id: f"cannot be written as JSON: {error}"})
        await self.traffic.sends(instances)
        try:
            answer = await self._write("/temporal/entities", body, entity.context)
            if answer.status in (201, 204) and _all_done(answer, [entity.id]):
                self._contexts.found(entity.context)
                return Outcome(accepted=frozenset({entity.id}))
            if answer.problem is not None and answer.problem.of_context:
                self._contexts.missed(entity.context, answer.reason)
                return self._judged(waiting([entity], answer.reason))
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
        if is_orion(now):
            version = (await self._identified(now)).version
            said = f"Orion{f' {version}' if version else ''} speaks NGSIv2, not NGSI-LD"
            raise BrokerUnavailable(f"{said}: {now.status} {words(now.json['description'])}", remedy=ORION_REMEDY)
        past = await self._request("GET", "/temporal/entities", query={"type": "Device", "limit": "1", **_EVER})
        readable = self._readable(now)
        sure = past.by_broker or past.is_empty_refusal
        if readable is None:
            temporal = None
        elif past.status == 404 and not sure:
            temporal = False  # the broker spoke beside it; servers say so of a path they lack, and so do proxies
        else:
            temporal = bool(self._readable(past))
        forbidden = past.reason if past.status == 403 and temporal is False else ""
        who = await self._identified(now)
        return Probe(
            readable=readable is not False,
            temporal=temporal,
            sure=sure and not forbidden,  # that may be lifted at any time
            forbidden=forbidden,
            product=who.product,
            version=who.version,
            date=now.date,
        )

    async def _identified(self, read: Answer) -> Identity:
        """Who answers; it is no fault when that cannot be learned."""

        async def ask(path: str, query: Mapping[str, str]) -> Answer:
            return await self._http.request("GET", path, query=query, tells=False)

        if not self._identity.product or time.monotonic() - self._identity_s >= IDENTITY_AGAIN_S:
            self._identity = NOBODY
            with contextlib.suppress(BrokerUnavailable, TimeoutError):
                async with asyncio.timeout(IDENTIFIED_WITHIN_S):
                    self._identity = await identify(read, ask)
            self._identity_s = time.monotonic()
        return self._identity

    def _readable(self, answer: Answer) -> bool | None:
        """Whether a read is offered and allowed; None: the tenant is not there yet. Raises when no broker answered."""
        if answer.status == 200 and answer.is_entities:
            self._reads = self._there = True
            return True
        if _no_tenant(answer):
            self._there = not self._tenant
            return None
        if answer.problem is not None and answer.problem.of_context:  # the core context: no other was named
            raise BrokerUnavailable(f"it has not even the core context: {answer.reason}", remedy=CONTEXT_REMEDY)
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
            ContextMissing: the broker cannot fetch the context.
        """
        if self._contexts.away(context):
            raise self._missing(WAITS)
        answer = await self._request("GET", path, query=query, context=context)
        if answer.problem is not None and answer.problem.of_context:
            self._contexts.missed(context, answer.reason)
            raise self._missing(answer.reason)
        if answer.status in (200, 206) and answer.is_entities:
            self._reads = self._there = True
            self._contexts.found(context)
            return [item for item in answer.json if isinstance(item.get("id"), str)]
        if answer.status == 404 and answer.problem is not None and (path != "/entities" or _no_tenant(answer)):
            return []  # nothing recorded yet, or a tenant that its first write makes
        told = answer.problem is not None or answer.is_empty_refusal
        if (answer.status in _UNREADABLE and (told or not self._reads)) or (answer.status == 404 and told):
            raise ReadRefused(answer.reason)
        raise fault_of(answer)

    def _missing(self, reason: str) -> BrokerUnavailable:
        """What to raise for a read without its context."""
        return self._contexts.fault() if self._contexts.all_away else ContextMissing(reason, remedy=CONTEXT_REMEDY)

    async def _serves(self, context: str) -> bool | None:
        """Whether the broker can fetch a context: a read that finds nothing needs it all the same."""
        query = {"type": "Device", "id": "urn:ngsi-ld:Device:none", "limit": "1"}
        answer = await self._request("GET", "/entities", query=query, context=context)
        if answer.problem is not None and answer.problem.of_context:
            return False
        if answer.status == 200 and answer.is_entities:
            return True
        if answer.status in _UNREADABLE or answer.status == 404:
            return None
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

    async def read_back(self, entities: Sequence[Entity]) -> Mapping[str, Mapping[str, datetime | None]]:
        """Current `observedAt` of every attribute, or None, by id; asked by type and ids, as `id` alone is no filter."""
        found: dict[str, dict[str, datetime | None]] = {}
        for (entity_type, context), ids in _by_type(entities).items():
            for start in range(0, len(ids), READ_BACK_IDS):
                some = ids[start : start + READ_BACK_IDS]
                query = {"type": entity_type, "id": ",".join(some), "limit": str(len(some))}
                try:
                    items = await self._found("/entities", query, context)
                except ContextMissing:
                    self._unread.update(ids[start:])
                    break
                self._unread.difference_update(some)
                for item in items:
                    found[item["id"]] = _observed(item)
        return found

    async def close(self) -> None:
        """Give connections back."""
        await self._http.close()

    async def _upsert(self, batch: Sequence[Entity], bodies: Sequence[bytes]) -> Outcome:
        await self.traffic.sends(batch)
        body = b"[" + b",".join(bodies) + b"]"
        asked_s = time.monotonic()
        try:
            answer = await self._write("/entityOperations/upsert", body, batch[0].context, {"options": "update"})
        except InDoubt:
            self._batches.unanswered(len(batch))
            raise
        self._batches.answered(len(batch), answer.status, time.monotonic() - asked_s)
        outcome, unclear = self._outcome(batch, answer)
        if outcome.accepted:
            self._contexts.found(batch[0].context)
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
            return Outcome(accepted=frozenset(ids), created=_created(answer, ids)), frozenset()
        if answer.problem is not None and answer.problem.of_context:
            self._contexts.missed(batch[0].context, answer.reason)
            return waiting(batch, answer.reason), frozenset()
        if answer.result is not None:
            try:
                outcome, unclear = self._without_context(
                    batch[0].context, answer.result, *per_entity(ids, answer.result)
                )
            except FrameError as error:
                raise InDoubt(f"{answer.status}: {error.message}") from error
            return replace(outcome, created=_created(answer, ids)), unclear
        if answer.problem is not None and answer.status in (400, 422) and answer.problem.blames:
            raise BatchRefused(answer.reason, suspects=_named(ids, answer.body))
        if answer.status == 413:
            raise BatchRefused(f"{len(batch)} entities are too large for it: {answer.reason}", permanent=False)
        if answer.status == 500 and answer.problem is not None and self._batches.blame_for_500():
            raise BatchRefused(answer.reason, permanent=False)
        raise fault_of(answer, wrote=True)

    def _without_context(
        self, context: str, result: Result, outcome: Outcome, unclear: frozenset[str]
    ) -> tuple[Outcome, frozenset[str]]:
        """Of what a result tells, what waits for the context of the request."""
        missing = {entity_id: told.reason for entity_id, told in result.errors if told is not None and told.of_context}
        if not missing:
            return outcome, unclear
        reason = next(iter(missing.values()))
        self._contexts.missed(context, reason)
        absent = frozenset(outcome.later.keys() & missing.keys())
        if None in missing:  # it names nobody: all share one context
            return replace(
                outcome + Outcome(later=dict.fromkeys(unclear, reason)), absent=absent | unclear
            ), frozenset()
        return replace(outcome, absent=absent), unclear

    async def _write(self, path: str, body: bytes, context: str, query: Mapping[str, str] | None = None) -> Answer:
        """One write; the first of a tenant that may not be there yet makes it: patiently, and one at an address."""
        if self._there:
            return await self._request("POST", path, query=query, body=body, context=context)
        self.traffic.waits = WAITS_FOR_TURN if self._turns.taken else ""
        try:
            async with self._turns.turn():
                self.traffic.waits = ""
                answer = await self._request(
                    "POST", path, query=query, body=body, context=context, patience_s=PATIENCE_S
                )
        finally:
            self.traffic.waits = ""
        self._there = answer.by_broker and answer.status < 300
        return answer

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        context: str = "",
        patience_s: float = 0.0,
    ) -> Answer:
        link = {"Link": LINK.format(self._contexts.address(context))} if context else None
        answer = await self._http.request(
            method, API + path, query=query, body=body, headers=link, patience_s=patience_s
        )
        if answer.status == 500 and answer.problem is not None and _HALF_MADE.search(answer.problem.reason):
            raise BrokerUnavailable(
                f"its tenant {self._tenant} is only half made: {answer.reason}", remedy=HALF_MADE_REMEDY
            )
        return answer


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
    """Ids by type and context, each once, of however many updates."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for entity in entities:
        groups.setdefault((entity.type, entity.context), {})[entity.id] = None
    return {key: list(ids) for key, ids in groups.items()}


def _all_done(answer: Answer, ids: Sequence[str]) -> bool:
    """204; 201 names the created ids, or has no body; 200 names all, as brokers before 1.4 answer. `[]` is anybody's."""
    if not answer.body.strip():
        return answer.status in (201, 204)
    return answer.is_ids and not set(ids).isdisjoint(answer.json)


def _created(answer: Answer, ids: Sequence[str]) -> frozenset[str]:
    """Which the broker may have made anew: 201 names them, or nobody; Orion-LD says 207 without errors of new and old together."""
    if answer.status == 201:
        return frozenset(answer.json if answer.is_ids else ids).intersection(ids)
    whole = answer.status == 207 and answer.result is not None and not answer.result.errors
    return answer.result.success.intersection(ids) if whole and answer.result else frozenset()


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


def _observed(item: Mapping[str, Any]) -> dict[str, datetime | None]:
    times: dict[str, datetime | None] = dict.fromkeys(item.keys() - _MEMBERS)
    for key, at in points_of(item):
        known = times.get(key)
        if known is None or at > known:
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


def broker_of(
    config: BrokerConfig,
    *,
    offer_time: OfferTime | None = None,
    dates: Dates | None = None,
    turns: Turns | None = None,
) -> NgsiLdBroker:
    """The broker of one entry of the operator's file.

    Args:
        turns: shared by all entries of its address.
    """
    entities, size_bytes = PRESETS[config.preset]
    settings = NgsiLdSettings(
        url=config.url,
        tenant=config.tenant or "",
        batch_entities=entities,
        batch_bytes=size_bytes,
        contexts=config.contexts or "",
    )
    return NgsiLdBroker(settings, way_of(config, dates), offer_time=offer_time, turns=turns)
