"""NGSI-LD over HTTP: batch upsert, read back, history; the answers of each broker's spelling.

Sources: ETSI GS CIM 009 V1.9.1 clauses 5.6, 6.3, 6.15, 6.18; answers observed on Scorpio 5.0.3 and read from the
sources of Orion-LD and Stellio.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import orjson

from gateway.config.auth import AuthConfig
from gateway.config.model import BrokerConfig
from gateway.forward.answer import Answer, per_entity, read_answer, wire_moment, words
from gateway.forward.auth import WIRE_FAULTS, Grant, Login, OAuth2, Static, Tls, Way, basic, bearer, body_of
from gateway.forward.broker import (
    BatchRefused,
    BatchSize,
    InDoubt,
    LoginFailed,
    NotOffered,
    Outcome,
    Point,
    Probe,
    ReadRefused,
    Send,
    Traffic,
    bisect,
    observed,
    unavailable,
)
from gateway.forward.dates import Dates, fault_of_dates
from gateway.harmonise.dialects import ngsi_ld, wire_time
from gateway.harmonise.entity import Entity
from gateway.sdk.errors import BrokerUnavailable, FrameError

LINK = '<{}>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"'
ANSWER_LIMIT_BYTES = 4 * 2**20  # a 207 for a full batch is far smaller; a captive portal may send anything
DATE_WITHIN_S = 1.0  # an HTTP date has whole seconds
READ_BACK_IDS = 20  # ids in one query: keeps the URL below 2 kB
MOST_SUSPECTS = 1000
SEARCH_AFTER = 3  # answers of 500 in a row before a poison entity is searched for: a 5xx may be permanent
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
        self,
        settings: NgsiLdSettings,
        way: Way | None = None,
        *,
        offer_time: Callable[[datetime, float], object] | None = None,
    ) -> None:
        self._settings = settings
        base = settings.url.rstrip("/")
        self._base = base if base.endswith("/ngsi-ld/v1") else f"{base}/ngsi-ld/v1"
        self._way = way or Way()
        self._offer_time = offer_time
        self._server_errors, self._search_at, self._searching = 0, SEARCH_AFTER, False
        self._greeted = False
        self._reads = False  # a read worked in this run
        self._suspects: set[str] = set()
        self._size: BatchSize | None = None
        self.traffic = Traffic(warning=self._way.warning)

    async def state(self, entities: Sequence[Entity]) -> Outcome:
        """Upsert current values, `options=update`; one subject context per request."""
        encoded, total = _encode(entities)
        bodies = {entity.id: body for entity, body in encoded}

        async def send(batch: Sequence[Entity]) -> Outcome:
            return await self._upsert(batch, [bodies[entity.id] for entity in batch])

        batches = self._batches(encoded)
        for position, batch in enumerate(batches):
            total += await self._searched(batch, send)
            if total.fault is not None:
                for rest in batches[position + 1 :]:
                    total += unavailable(rest, total.fault, sent=False)
                break
        return total

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

    def _batches(self, encoded: Sequence[tuple[Entity, bytes]]) -> list[list[Entity]]:
        if self._size is None:
            self._size = BatchSize(self.traffic.batch or self._settings.batch_entities)
        self.traffic.batch = self._size.size
        clean = [item for item in encoded if item[0].id not in self._suspects]
        batches = list(_batches(clean, self._size.size, self._settings.batch_bytes))
        if not self._greeted and batches and len(batches[0]) > 1:
            # the first write makes the tenant: several entities at once can deadlock (Scorpio issue 653)
            batches[:1] = [batches[0][:1], batches[0][1:]]
        return batches + [[entity] for entity, _ in encoded if entity.id in self._suspects]

    async def history(self, instances: Sequence[Entity]) -> Outcome:
        """`POST /temporal/entities`: every attribute an array of instances (6.18); repeats would be stored again."""
        entity = instances[0]
        try:
            body = _json(_evolution(instances))
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
            self._raise_for(answer, wrote=True)
        except BrokerUnavailable as fault:
            return unavailable([entity], fault)
        raise AssertionError("unreachable")

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
        if answer.problem is not None and answer.status == 404 and "Tenant" in answer.problem.kind + answer.reason:
            return None
        told = answer.problem is not None or answer.is_empty_refusal
        if told and (answer.status in _UNREADABLE or answer.status in (400, 404)):
            return False
        if answer.status == 403:
            raise ReadRefused(f"{answer.reason}: reading is not allowed, so how history is to be sent cannot be asked")
        self._raise_for(answer)
        raise AssertionError("unreachable")

    async def _found(self, path: str, query: Mapping[str, str], context: str) -> list[dict[str, Any]]:
        """The entities that a query finds; none when the broker knows nothing yet.

        Raises:
            ReadRefused: the broker says so itself, or nobody ever let us read.
        """
        answer = await self._request("GET", path, query=query, context=context)
        if answer.status in (200, 206) and answer.is_entities:
            self._reads = True
            return [item for item in answer.json if isinstance(item.get("id"), str)]
        if answer.status == 404 and answer.problem is not None:
            return []  # nothing recorded yet, or a tenant that its first write makes
        told = answer.problem is not None or answer.is_empty_refusal
        if answer.status in _UNREADABLE and (told or not self._reads):
            raise ReadRefused(answer.reason)
        self._raise_for(answer)
        raise AssertionError("unreachable")

    async def history_back(self, instances: Sequence[Entity]) -> frozenset[Point]:
        """Points held between the oldest and newest of these, asked by type and ids."""
        times = [at for entity in instances for at in observed(entity).values()]
        window = {"timerel": "between", "timeAt": wire_time(min(times)), "endTimeAt": wire_time(_after(max(times)))}
        found: set[Point] = set()
        for (entity_type, context), ids in _by_type(instances).items():
            for start in range(0, len(ids), READ_BACK_IDS):
                some = ids[start : start + READ_BACK_IDS]
                query = {"type": entity_type, "id": ",".join(some), "limit": str(len(some)), "lastN": "1000", **window}
                for item in await self._found("/temporal/entities", query, context):
                    found.update((item["id"], key, at) for key, at in points_of(item))
        return frozenset(found)

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
        await self._way.close()

    async def _upsert(self, batch: Sequence[Entity], bodies: Sequence[bytes]) -> Outcome:
        body = b"[" + b",".join(bodies) + b"]"
        size, asked_s = self._size or BatchSize(1), time.monotonic()
        try:
            answer = await self._request(
                "POST", "/entityOperations/upsert", query={"options": "update"}, body=body, context=batch[0].context
            )
        except InDoubt:
            size.failed(len(batch))
            raise
        if answer.status == 413:
            size.failed(len(batch))
        elif answer.status < 300:
            size.took(len(batch), time.monotonic() - asked_s)
        if answer.status < 500 and not self._searching:
            self._server_errors, self._search_at = 0, SEARCH_AFTER
        outcome, unclear = self._outcome(batch, answer)
        self._greeted = True
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
        if answer.status == 500 and answer.problem is not None:
            self._server_errors += 1
            if self._searching or self._server_errors >= self._search_at:
                self._searching = True
                raise BatchRefused(answer.reason, permanent=False)
        self._raise_for(answer, wrote=True)
        raise AssertionError("unreachable")

    def _raise_for(self, answer: Answer, *, wrote: bool = False) -> None:
        """An answer that is no entity's fault. What somebody on the way says of a write may have been carried out behind."""
        if answer.status in (401, 403, 407):
            raise LoginFailed(answer.reason)
        if 300 <= answer.status < 400:
            raise BrokerUnavailable(
                f"redirect to {answer.location or 'nowhere'} refused; put the final address into url"
            )
        wait_s = answer.retry_after_s
        if wrote and answer.problem is None and (answer.status < 300 or answer.status == 408 or answer.status >= 500):
            raise InDoubt(answer.reason, retry_after_s=wait_s)
        if answer.status in (404, 405, 501):
            raise NotOffered(answer.reason, retry_after_s=wait_s)
        raise BrokerUnavailable(answer.reason, retry_after_s=wait_s)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        context: str = "",
    ) -> Answer:
        headers = {"Accept": "application/json", **(self._settings.headers or {})}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if context:
            headers["Link"] = LINK.format(context)
        if self._settings.tenant:
            headers["NGSILD-Tenant"] = self._settings.tenant
        answer = await self._once(method, self._base + path, query, body, headers)
        if answer.status == 401 and self._way.login.rejected():  # the token was revoked, or ended early
            answer = await self._once(method, self._base + path, query, body, headers)
        if answer.status != 401:
            self._way.login.worked()
        if self._offer_time is not None and answer.date is not None and answer.status < 300 and answer.by_broker:
            self._offer_time(answer.date, DATE_WITHIN_S)
        return answer

    async def _once(
        self, method: str, url: str, query: Mapping[str, str] | None, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        way = self._way
        login = await way.login.headers(way.session, way.proxy)
        self.traffic.requests += 1
        self.traffic.sent_bytes += len(body or b"") + _size(headers) + _size(login) + len(url) + 80
        try:
            async with way.session.request(
                method,
                url,
                params=query,
                data=body,
                headers={**headers, **login},
                allow_redirects=False,
                proxy=way.proxy,
            ) as response:
                content = await body_of(response, ANSWER_LIMIT_BYTES)
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            await way.renew()
            raise BrokerUnavailable(_cause(error), remedy=fault_of_dates(error)[1]) from error
        except WIRE_FAULTS as error:
            await way.renew()  # a half-open connection is not used again
            raise (InDoubt if body is not None else BrokerUnavailable)(_cause(error)) from error
        self.traffic.received_bytes += len(content) + sum(len(k) + len(v) + 4 for k, v in response.raw_headers)
        return read_answer(response.status, response.headers, content, now=datetime.now(UTC))


def _size(headers: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers.items())


def _encode(entities: Sequence[Entity]) -> tuple[list[tuple[Entity, bytes]], Outcome]:
    """Bytes of each entity, made once; one that is no JSON is refused here and spoils no batch."""
    good: list[tuple[Entity, bytes]] = []
    refused: dict[str, str] = {}
    for entity in entities:
        try:
            good.append((entity, _json(ngsi_ld(entity))))
        except (TypeError, ValueError) as error:  # a lone surrogate, an integer beyond 64 bits
            refused[entity.id] = f"cannot be written as JSON: {error}"
    return good, Outcome(refused=refused)


def _json(document: Mapping[str, Any]) -> bytes:
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


def _batches(encoded: Sequence[tuple[Entity, bytes]], most_entities: int, most_bytes: int) -> Iterable[list[Entity]]:
    """Batches of one context each (a `Link` header names one), bounded by count and bytes."""
    by_context: dict[str, list[tuple[Entity, bytes]]] = {}
    for entity, body in encoded:
        by_context.setdefault(entity.context, []).append((entity, body))
    for same in by_context.values():
        batch: list[Entity] = []
        size = 2
        for entity, body in same:
            if batch and (len(batch) >= most_entities or size + len(body) + 1 > most_bytes):
                yield batch
                batch, size = [], 2
            batch.append(entity)
            size += len(body) + 1
        yield batch


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


def _after(at: datetime) -> datetime:
    """The end of an interval is not part of it everywhere (4.11)."""
    return at + timedelta(milliseconds=1)


def _cause(error: BaseException) -> str:
    if reason := fault_of_dates(error)[0]:
        return reason
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return f"TLS: {words(str(error))}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"name not found: {error.host}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return "no answer in time"
    return words(str(error)) or type(error).__name__


PRESETS: Mapping[str, tuple[int, int]] = {  # entities and bytes a request to begin with
    "auto": (25, 200_000),
    "orion-ld": (50, 900_000),  # 1 MB by default
    "scorpio": (15, 200_000),  # time per batch grows with its square
    "stellio": (50, 200_000),  # 256 KiB by default
}


def broker_of(
    config: BrokerConfig,
    *,
    offer_time: Callable[[datetime, float], object] | None = None,
    dates: Dates | None = None,
) -> NgsiLdBroker:
    """The broker of one entry of the operator's file."""
    entities, size_bytes = PRESETS[config.preset]
    settings = NgsiLdSettings(config.url, config.tenant or "", batch_entities=entities, batch_bytes=size_bytes)
    timeout = aiohttp.ClientTimeout(
        total=3 * config.timeout_s, sock_connect=min(10.0, config.timeout_s), sock_read=config.timeout_s
    )
    tls = Tls(config.tls.ca or "", config.tls.certificate or "", config.tls.key or "", config.tls.verify)
    way = Way(login=_login(config.auth), tls=tls, proxy=config.proxy or "", timeout=timeout, dates=dates)
    return NgsiLdBroker(settings, way, offer_time=offer_time)


def _login(auth: AuthConfig) -> Login:
    if auth.basic is not None:
        return basic(auth.basic.user, auth.basic.password)
    if auth.bearer is not None:
        return bearer(auth.bearer)
    if auth.header is not None:
        return Static({auth.header.name: auth.header.value})
    if auth.oauth2 is not None:
        o = auth.oauth2
        return OAuth2(
            Grant(o.token_url, o.client_id, o.client_secret, o.user or "", o.password or "", o.scope or "", o.header)
        )
    return Static({})
