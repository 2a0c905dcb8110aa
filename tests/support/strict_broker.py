"""A context broker for tests, written from ETSI GS CIM 009 V1.9.1: refuses what the specification refuses, keeps state
and history (repeats are kept, not merged), and can be told to fail. It shares no code with the product.

In-process: `async with StrictBroker().serve() as url: ...`. As a process of its own:
`python -m tests.support.strict_broker --port 0 --record FILE` prints its port; FILE gets one JSON line per stored value.
A running one obeys `POST /_strict/behave` (fields of `Behaviour`), `/_strict/restart` (`{"down_s": 1}`) and
`/_strict/database` (`{"away": true}`), and tells all it holds at `GET /_strict/held`.

`StrictBroker(profile="scorpio")` imitates a product (`broker_profiles`); `neighbour` lets others write beside the box;
`judge` compares what was served with what the history holds.
"""

import argparse
import asyncio
import contextlib
import json
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support.broker_judge import Verdict, judge
from tests.support.broker_parts import (
    CORE_CONTEXT,
    ERRORS,
    Behaviour,
    Json,
    Key,
    Refusal,
    Reply,
    Request,
    Row,
    Tenant,
    Value,
    hashable,
)
from tests.support.broker_profiles import PROFILES, Profile

__all__ = ["Behaviour", "Refusal", "StrictBroker", "Value"]

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:[^\s<>\"{}|\\^`\x00-\x20]+")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_DATETIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:[.,]\d{1,6})?Z")
_LINK = re.compile(r'<([^<>]+)>((?:\s*;\s*[a-z]+=(?:"[^"]*"|[^;,"\s]+))*)')
_TENANT = re.compile(r"[A-Za-z0-9_\-]{1,50}")
_NOT_ATTRIBUTES = frozenset({"id", "type", "@context", "scope", "createdAt", "modifiedAt", "deletedAt", "expiresAt"})
_ATTRIBUTE_MEMBER = {
    "Property": "value",
    "GeoProperty": "value",
    "Relationship": "object",
    "LanguageProperty": "languageMap",
    "VocabProperty": "vocab",
    "ListProperty": "valueList",
    "ListRelationship": "objectList",
    "JsonProperty": "json",
}
_RESERVED = frozenset(
    {"type", "observedAt", "unitCode", "datasetId", "instanceId", "createdAt", "modifiedAt", "expiresAt"}
)
_DEPTH = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}
UPSERT_OPTIONS = frozenset({"", "update", "replace"})
NEIGHBOUR = "urn:ngsi-ld:AirQualityObserved:neighbour:"  # ids of other writers' entities: no test counts them


@dataclass(slots=True)
class _Door:
    """One port at which it is served."""

    runner: web.AppRunner
    port: int
    ssl: Any
    site: web.TCPSite | None = None
    held: socket.socket | None = None

    async def open(self) -> None:
        if self.held is None:  # bound and deaf: while it is stopped nobody else gets the port
            self.held = socket.socket()
            self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.held.bind(("127.0.0.1", self.port))
            self.port = self.held.getsockname()[1]
        self.site = web.TCPSite(self.runner, "127.0.0.1", self.port, ssl_context=self.ssl, reuse_port=True)
        await self.site.start()

    async def close(self, spare: asyncio.BaseTransport | None) -> None:
        """Nobody listens any more, and what is connected is cut."""
        site, self.site = self.site, None
        if site is not None:
            await site.stop()
        for handler in list(self.runner.server.connections if self.runner.server else ()):
            if handler.transport is not None and handler.transport is not spare:
                handler.transport.abort()


class StrictBroker:
    """State, history, and the judgement of requests. `answer` is the whole broker; HTTP is around it."""

    def __init__(
        self, behaviour: Behaviour | None = None, *, profile: str | Profile = "plain", record: Path | None = None
    ) -> None:
        self.profile = PROFILES[profile]() if isinstance(profile, str) else profile
        self.behaviour = behaviour or self.profile.behaviour()
        self.tenants: dict[str, Tenant] = {}
        self.stored: list[Value] = []
        self.backwards: list[
            tuple[Value, str]
        ] = []  # a current value replaced by an older one: value, time it replaced
        self.refusals: list[str] = []
        self.requests: list[tuple[float, str, str, int]] = []  # (unix s, method, path, bytes)
        self.bodies: list[bytes] = []  # of accepted or refused POSTs, newest last; at most 2000
        self.forgotten: list[Value] = []  # acknowledged, and lost before it was in the history
        self._doors: list[_Door] = []
        self._starts = 0
        self._running = True
        self._record = record.open("a") if record else None
        self._read = asyncio.Event()
        self._closing = asyncio.Event()  # ends the requests that hang

    # what tests ask

    def state(self, entity: str, tenant: str = "") -> dict[str, Json]:
        """Current entity, normalized; {} when there is none."""
        return self.tenants.get(tenant, Tenant()).entities.get(entity, {})

    def current(self, entity: str, attribute: str, tenant: str = "") -> Json:
        """Current value of an attribute's default instance; None when there is none."""
        for instance in _instances(self.state(entity, tenant).get(attribute, [])):
            if "datasetId" not in instance:
                return _member(instance)
        return None

    def history(self, tenant: str | None = None) -> list[tuple[str, str, str | None, Json]]:
        """Every value stored, by either way, repeats kept, in order of arrival."""
        return [v.key for v in self.stored if tenant is None or v.tenant == tenant]

    def temporal_history(self, tenant: str = "") -> list[tuple[str, str, str | None, Json]]:
        """Every point of the history as the temporal API serves it, repeats kept."""
        self._look()
        return [
            (entity_id, name, instance.get("observedAt"), _member(instance))
            for entity_id, entity in self.tenants.get(tenant, Tenant()).temporal.items()
            if not entity_id.startswith(NEIGHBOUR)
            for name, points in entity.items()
            if name not in ("type",)
            for _, instance in points
        ]

    def points(self, tenant: str = "") -> Counter[Key]:
        """The history as a multiset; of a broker without one what its current state was, one after the other."""
        kept = self.temporal_history(tenant) if self.behaviour.records else self.history(tenant)
        return Counter((entity, name, at, hashable(value)) for entity, name, at, value in kept)

    def judge(self, served: Iterable[tuple[str, str, str | None, Json]], tenant: str = "") -> Verdict:
        """What is missing, doubled or invented in a tenant's history, when these were served."""
        return judge(self.points(tenant), ((entity, name, at, hashable(value)) for entity, name, at, value in served))

    # what tests do to it

    async def stop(self, *, spare: asyncio.BaseTransport | None = None) -> None:
        """End the process, orderly or not: its memory is gone, connections are cut, nobody listens."""
        self._look()
        self._running = False
        self._starts += 1
        self._lose(self.profile.lose_memory())
        for door in self._doors:
            await door.close(spare)

    async def start(self) -> None:
        """Be there again, at the same address."""
        for door in self._doors:
            await door.open()
        self._running = True

    async def restart(self, down_s: float = 0.0) -> None:
        """Stop, and start after a while."""
        await self.stop()
        await asyncio.sleep(down_s)
        await self.start()

    def database_away(self, away: bool = True) -> None:
        """Its database does not answer, until `database_back`."""
        self._look()
        self.profile.database_away = away

    def database_back(self) -> None:
        self.database_away(False)

    @contextlib.asynccontextmanager
    async def neighbour(self, *, every_s: float, tenant: str = "", entities: int = 1) -> AsyncIterator[None]:
        """Another writer on the tenant, with entities of its own; nothing it writes is counted anywhere."""

        async def write() -> None:
            count = 0
            while True:
                count += 1
                at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
                for number in range(entities if self._running and not self.profile.database_away else 0):
                    value = {"type": "Property", "value": count, "observedAt": at}
                    item = {"id": f"{NEIGHBOUR}{number}", "type": "AirQualityObserved", "no2": value}
                    place = self.tenants.setdefault(tenant, Tenant())
                    self._look()
                    self._set(place, tenant, item, CORE_CONTEXT, replace=False)
                await asyncio.sleep(every_s)

        task = asyncio.create_task(write(), name="neighbour")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until(self, condition: Any, *, timeout_s: float = 8.0) -> None:
        """Wait until `condition()` holds; looked at after each request."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._read.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._read.wait(), 0.25)

    # the broker

    def answer(self, request: Request) -> Reply:
        """Judge one request and carry it out."""
        self.requests.append((time.time(), request.method, request.path, len(request.body)))
        if request.method == "POST":
            self.bodies.append(request.body)
            del self.bodies[:-2000]
        self._look()
        try:
            return self.profile.instead(request) or self._route(request)
        except Refusal as refusal:
            self.refusals.append(str(refusal))
            if refusal.status in (411, 415):
                return Reply(refusal.status)
            return Reply(refusal.status, self.profile.problem(refusal, request))
        finally:
            self._read.set()

    def _route(self, request: Request) -> Reply:
        token = self.behaviour.token
        if token and request.headers.get("authorization") != token:
            raise Refusal(401, "Unauthorized", "no valid token", "Unauthorized")
        path = request.path.rstrip("/")
        if not path.startswith("/ngsi-ld/v1"):
            return Reply(404, raw=b"<html><body>not found</body></html>", headers={"Content-Type": "text/html"})
        path = path.removeprefix("/ngsi-ld/v1")
        tenant = self.profile.tenant_name(request.headers.get("ngsild-tenant", ""))
        if tenant and not _TENANT.fullmatch(tenant):
            raise Refusal(400, "bad tenant name", tenant)
        accept = request.headers.get("accept", "*/*")
        if not re.search(r"\*/\*|application/(\*|json|ld\+json|geo\+json)", accept):
            raise Refusal(406, "Not Acceptable", accept, "InvalidRequest")
        routes = {
            "/entityOperations/upsert": ("POST", self._upsert),
            "/entities": ("GET", self._query),
            "/types": ("GET", self._types),
        }
        if self.behaviour.temporal:
            routes |= {"/temporal/entities": ("POST", self._temporal_post)}
            if request.method == "GET" and path == "/temporal/entities":
                return self._temporal_query(request, tenant)
            if request.method == "GET" and path.startswith("/temporal/entities/"):
                return self._temporal_get(request, tenant, path.removeprefix("/temporal/entities/"))
        if request.method == "GET" and path.startswith("/entities/"):
            return self._get(request, tenant, path.removeprefix("/entities/"))
        if path not in routes:
            return Reply(
                404, raw=b"<html><body>Resource not found</body></html>", headers={"Content-Type": "text/html"}
            )
        method, serve = routes[path]
        if method != request.method:
            return Reply(405, headers={"Allow": method})
        return serve(request, tenant)

    def _tenant(self, name: str, *, write: bool) -> Tenant:
        known = self.behaviour.tenants
        exists = not name or name in self.tenants or (write if known is None else name in known)
        self.profile.check_tenant(name, write=write, exists=exists)
        return self.tenants.setdefault(name, Tenant())

    def _upsert(self, request: Request, tenant: str) -> Reply:
        options = request.query.get("options", "")
        if options not in UPSERT_OPTIONS:
            raise Refusal(400, "unknown option", options, "InvalidRequest")
        document, context = self._document(request)
        if not isinstance(document, list):
            raise Refusal(400, "the body is not an array of entities")
        if not document:
            raise Refusal(400, "the array is empty")
        if any(not isinstance(item, dict) for item in document):
            raise Refusal(400, "an item is not an object")
        if len(document) > self.behaviour.max_entities:
            raise Refusal(413, "too many entities", str(len(document)), "TooManyEntities")
        place = self._tenant(tenant, write=True)
        if self.profile.context_refuses == "request":
            for item in document:
                self.profile.check_context(context or item.get("@context"))
        faults = self._judge_all(document, context)
        self._whole(document, faults)
        created: list[str] = []
        sound = [item for item, fault in zip(document, faults, strict=True) if fault is None]
        for item in self.profile.applied(sound):
            if item["id"] not in place.entities:
                created.append(item["id"])
            self._set(place, tenant, item, context or item.get("@context"), replace=options != "update")
        return self._batch_reply(document, faults, created)

    def _judge_all(self, document: list[dict[str, Json]], context: str) -> list[Refusal | None]:
        faults: list[Refusal | None] = []
        for item in document:
            fault: Refusal | None = None
            try:
                check_entity(item, context_in_body=not context)
                if self.profile.context_refuses == "entity":
                    self.profile.check_context(context or item.get("@context"))
                self._rule(item)
            except Refusal as refusal:
                fault = refusal
                self.refusals.append(f"{item.get('id')}: {refusal}")
            faults.append(fault)
        return faults

    def _rule(self, item: dict[str, Json]) -> None:
        behaviour = self.behaviour
        if behaviour.refuse and re.search(behaviour.refuse, item["id"]):
            raise Refusal(behaviour.refuse_status, "refused by rule", item["id"])
        for pattern, status in behaviour.verdicts.items():
            if re.search(pattern, json.dumps(item)):
                raise Refusal(status, f"refused by rule {status}", item["id"])

    def _whole(self, document: list[dict[str, Json]], faults: list[Refusal | None]) -> None:
        culprits = [item.get("id") for item, fault in zip(document, faults, strict=True) if fault is not None]
        if not culprits or not self.behaviour.whole:
            return
        if self.behaviour.whole == "naming":
            raise Refusal(400, "Bad Request", f"the entity {culprits[0]} is not valid")
        if self.behaviour.whole == "500":
            raise Refusal(500, "Internal Server Error", "unsupported Unicode escape sequence (22P05)", "InternalError")
        raise Refusal(400, "Bad Request", "invalid payload")

    def _batch_reply(self, document: list[dict[str, Json]], faults: list[Refusal | None], created: list[str]) -> Reply:
        spelling = self.behaviour.spelling
        errors = [(item.get("id"), fault) for item, fault in zip(document, faults, strict=True) if fault is not None]
        done = [item["id"] for item, fault in zip(document, faults, strict=True) if fault is None][::-1]
        if not errors:
            if spelling == "orion-ld-207" and created and len(created) < len(document):
                return Reply(207, {"success": done, "errors": []})  # Orion-LD's older path: mixed new and old
            if spelling == "old":
                return Reply(200, done)
            return Reply(201, created[::-1]) if created else Reply(204)
        if spelling == "stellio" or spelling == "spec" or spelling.startswith("orion-ld"):
            problems: list[Json] = [{"entityId": i, "error": f.problem()} for i, f in errors]
            return Reply(207, {"success": done, "errors": problems})
        if spelling == "old":
            return Reply(207, {"success": done, "error": [{"entityId": i, "error": f.problem()} for i, f in errors]})
        null = spelling == "scorpio_null"
        problems = [{"id": None if null else i, "ProblemDetails": f.problem(), "type": "Upsert"} for i, f in errors]
        if not done:  # Scorpio: all broken is not 207
            return Reply(503 if any(f.status == 503 for _, f in errors) else 400, {"errors": problems})
        return Reply(207, {"success": done, "errors": problems})

    def _set(self, place: Tenant, tenant: str, item: dict[str, Json], context: Json, *, replace: bool) -> None:
        entity_id = item["id"]
        old = place.entities.get(entity_id, {})
        new: dict[str, Json] = {} if replace else dict(old)
        new["id"], new["type"] = entity_id, item["type"]
        rows: list[Row] = []
        for name, attribute in item.items():
            if name in _NOT_ATTRIBUTES:
                continue
            kept = [] if replace else [i for i in old.get(name, []) if i.get("datasetId") not in _datasets(attribute)]
            for instance in _instances(attribute):
                before = _same(old.get(name, []), instance)
                value = self._note(tenant, item, name, instance, context, via="state", old=before)
                rows.append(Row(tenant, entity_id, item["type"], name, instance, value))
            new[name] = [*kept, *_instances(attribute)]
        place.entities[entity_id] = new
        if self.behaviour.records and not self.profile.holds(rows):
            self._write(rows, time.time() + self.behaviour.records_after_s)

    def _note(
        self, tenant: str, item: dict[str, Json], name: str, instance: dict[str, Json], context: Json, *, via: str,
        old: dict[str, Json] | None = None,
    ) -> Value:  # fmt: skip
        value = Value(
            item["id"], str(item["type"]), name, instance.get("observedAt"), _member(instance), instance.get("unitCode"),
            instance.get("datasetId"), str(context), tenant, via, len(self.requests), time.time(),
        )  # fmt: skip
        if value.entity.startswith(NEIGHBOUR):
            return value
        self.stored.append(value)
        before = (old or {}).get("observedAt")
        back = bool(before and value.observed_at and moment(value.observed_at) < moment(before))
        if back:
            self.backwards.append((value, str(before)))
        if self._record is not None:
            self._record.write(json.dumps({**asdict(value), "backwards": back}) + "\n")
            self._record.flush()
        return value

    def _write(self, rows: Iterable[Row], visible_at: float) -> None:
        """Add to the history."""
        for row in rows:
            entity = self.tenants[row.tenant].temporal.setdefault(row.entity, {"type": row.type})
            entity.setdefault(row.name, []).append((visible_at, row.instance))

    def _look(self) -> None:
        """Time has passed: what the profile kept back may be due."""
        written, lost = self.profile.look()
        self._write(written, time.time())
        self._lose(lost)

    def _lose(self, rows: Iterable[Row]) -> None:
        self.forgotten += [row.value for row in rows if not row.entity.startswith(NEIGHBOUR)]

    def _query(self, request: Request, tenant: str) -> Reply:
        self._may_read(request)
        query = request.query
        if not any(query.get(key) for key in ("type", "attrs", "q", "georel")):
            raise Refusal(400, "at least one of type, attrs, q, georel is needed")
        limit = self._limit(query)
        ids = query["id"].split(",") if query.get("id") else None
        if ids is not None and not all(_URI.fullmatch(i) for i in ids):
            raise Refusal(400, "id is no list of URIs", query["id"])
        types = query.get("type", "").split(",")
        found = [
            entity
            for entity in self._tenant(tenant, write=False).entities.values()
            if (ids is None or entity["id"] in ids) and (types == [""] or entity["type"] in types)
        ]
        return Reply(200, [self._shown(_compact(entity)) for entity in found[:limit]])

    def _get(self, request: Request, tenant: str, entity_id: str) -> Reply:
        self._may_read(request)
        if not _URI.fullmatch(entity_id):
            raise Refusal(400, "id is no URI", entity_id)
        entity = self._tenant(tenant, write=False).entities.get(entity_id)
        if entity is None:
            raise Refusal(404, "ResourceNotFound", entity_id, "ResourceNotFound")
        return Reply(200, self._shown(_compact(entity)))

    def _shown(self, entity: dict[str, Json]) -> dict[str, Json]:
        """As the product spells values when they are read."""

        def instance(one: Json) -> Json:
            return {**one, "value": self.profile.shown(one["value"])} if "value" in one else one

        return {
            name: attribute
            if name in _NOT_ATTRIBUTES
            else [instance(one) for one in attribute]
            if isinstance(attribute, list)
            else instance(attribute)
            for name, attribute in entity.items()
        }

    def _types(self, request: Request, tenant: str) -> Reply:
        self._may_read(request)
        names = sorted({entity["type"] for entity in self._tenant(tenant, write=False).entities.values()})
        return Reply(200, {"id": "urn:ngsi-ld:EntityTypeList:1", "type": "EntityTypeList", "typeList": names})

    def _limit(self, query: Mapping[str, str]) -> int:
        text = query.get("limit", "20")
        if not text.isdigit():
            raise Refusal(400, "limit is no number", text, "InvalidRequest")
        if int(text) > 1000:
            raise Refusal(403, "TooManyResults", text, "TooManyResults")
        return int(text)

    def _may_read(self, request: Request) -> None:
        if not self.behaviour.readable:
            raise Refusal(403, "Forbidden", "reading is not allowed", "Forbidden")
        if "link" in request.headers:
            self.profile.check_context(link_context(request.headers["link"]))

    def _temporal_post(self, request: Request, tenant: str) -> Reply:
        document, context = self._document(request)
        if not isinstance(document, dict):
            raise Refusal(400, "the body is not an entity")
        check_entity(document, context_in_body=not context, temporal=True)
        self.profile.check_context(context or document.get("@context"))
        self._rule(document)
        place = self._tenant(tenant, write=True)
        self.profile.wrote(tenant)
        new = document["id"] not in place.temporal
        for name, attribute in document.items():
            if name in _NOT_ATTRIBUTES:
                continue
            for instance in _instances(attribute):
                told = context or document.get("@context")
                value = self._note(tenant, document, name, instance, told, via="temporal")
                self._write([Row(tenant, document["id"], document["type"], name, instance, value)], time.time())
        if new:
            return Reply(201, headers={"Location": f"/ngsi-ld/v1/temporal/entities/{document['id']}"})
        return Reply(204)

    def _temporal_query(self, request: Request, tenant: str) -> Reply:
        self._may_read(request)
        query = request.query
        if not any(query.get(key) for key in ("type", "attrs", "q", "georel")):
            raise Refusal(400, "at least one of type, attrs, q, georel is needed")
        limit = self._limit(query)
        ids = query["id"].split(",") if query.get("id") else None
        place = self._tenant(tenant, write=False)
        found = [i for i in place.temporal if ids is None or i in ids]
        served = [self._evolution(place, entity_id, query) for entity_id in found[:limit]]
        return Reply(200, [entity for entity in served if entity is not None])

    def _temporal_get(self, request: Request, tenant: str, entity_id: str) -> Reply:
        self._may_read(request)
        entity = self._evolution(self._tenant(tenant, write=False), entity_id, request.query)
        if entity is None:
            raise Refusal(404, "ResourceNotFound", entity_id, "ResourceNotFound")
        return Reply(200, entity)

    def _evolution(self, place: Tenant, entity_id: str, query: Mapping[str, str]) -> dict[str, Json] | None:
        """As Scorpio serves it: newest first, at most `lastN` (default 50) instances, a single one as an object."""
        entity = place.temporal.get(entity_id)
        if entity is None:
            return None
        last = int(query.get("lastN", "50"))
        window = _window(query)
        wanted = query["attrs"].split(",") if query.get("attrs") else None
        served: dict[str, Json] = {"id": entity_id, "type": entity["type"]}
        for name, points in entity.items():
            if name == "type" or (wanted is not None and name not in wanted):
                continue
            visible = [i for at, i in points if at <= time.time() and window(i.get("observedAt"))]
            visible.sort(key=lambda i: moment(i["observedAt"]) if i.get("observedAt") else 0.0, reverse=True)
            if visible:
                served[name] = visible[0] if len(visible) == 1 else visible[:last]
        return self._shown(served) if len(served) > 2 else None

    def _document(self, request: Request) -> tuple[Json, str]:
        """The parsed body and the context its Link header names ("" when the context is in the body)."""
        if "content-length" not in request.headers:
            raise Refusal(411, "Length Required")
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind not in ("application/json", "application/ld+json"):
            raise Refusal(415, "Unsupported Media Type", kind)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(400, "content encoding not understood", request.headers["content-encoding"])
        if len(request.body) > self.behaviour.max_bytes:
            raise Refusal(413, "Payload Too Large", str(len(request.body)), "TooLarge")
        document = parse(request.body)
        if kind == "application/ld+json":
            if "link" in request.headers:
                raise Refusal(400, "application/ld+json with a Link header")
            return document, ""
        context = link_context(request.headers["link"]) if "link" in request.headers else CORE_CONTEXT
        if any(
            isinstance(item, dict) and "@context" in item
            for item in (document if isinstance(document, list) else [document])
        ):
            raise Refusal(400, "@context in an application/json body")
        return document, context

    # HTTP around it

    @contextlib.asynccontextmanager
    async def serve(self, port: int = 0, ssl: Any = None) -> AsyncIterator[str]:
        """Serve on loopback; yields the base URL."""
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, auto_decompress=False)
        await runner.setup()
        door = _Door(runner, port, ssl)
        await door.open()
        self._doors.append(door)
        try:
            yield f"{'https' if ssl else 'http'}://127.0.0.1:{door.port}"
        finally:
            self._doors.remove(door)
            if door.held is not None:
                door.held.close()
            self._closing.set()
            await runner.cleanup()
            self._closing.clear()
            if self._record is not None:
                self._record.close()

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        if http.path.startswith("/_strict/"):
            return await self._control(http)
        body = await http.read()
        headers = {name.lower(): value for name, value in http.headers.items()}
        request = Request(http.method, http.path, dict(http.query), headers, body)
        fault = self._strike(http.path)
        if fault == "slow" or (not fault and self.behaviour.delay_s):
            await asyncio.sleep(self.behaviour.delay_s)
        if fault and fault != "slow" and not fault.endswith("_stored") and fault != "truncated":
            self.requests.append((time.time(), request.method, request.path, len(body)))
            self._read.set()
            return await self._fail(http, fault)
        run = self._starts
        await self.profile.before(request, self.tenants)
        if run != self._starts:  # it ended while it was at work
            return await self._fail(http, "reset")
        reply = self.answer(request)
        if fault.endswith("_stored"):
            return await self._fail(http, fault.removesuffix("_stored"))
        payload = reply.raw if reply.raw is not None else b"" if reply.body is None else json.dumps(reply.body).encode()
        if fault == "truncated":
            return await self._truncate(http, payload or b'{"success": ["urn')
        headers_out = {**(self.profile.headers(request) if payload else {}), **reply.headers}
        if reply.body is not None:
            headers_out.setdefault("Content-Type", "application/json")
        return web.Response(status=reply.status, body=payload or None, headers=headers_out)

    def _strike(self, path: str) -> str:
        behaviour = self.behaviour
        if not behaviour.fault or behaviour.path not in path:
            return ""
        if behaviour.times is not None:
            if behaviour.times <= 0:
                return ""
            behaviour.times -= 1
        return behaviour.fault

    async def _fail(self, http: web.Request, fault: str) -> web.StreamResponse:
        if fault == "hang":
            await self._closing.wait()
            fault = "503"
        if fault == "reset":
            if http.transport is not None:
                http.transport.abort()
            return web.Response()
        if fault == "html200":
            return web.Response(text="<html><body>Please log in to the WiFi</body></html>", content_type="text/html")
        if fault == "redirect":
            return web.Response(status=302, headers={"Location": self.behaviour.location})
        headers = {"Retry-After": self.behaviour.retry_after} if self.behaviour.retry_after else {}
        problem = {"type": ERRORS + "InternalError", "title": "told to fail", "status": int(fault)}
        return web.json_response(problem, status=int(fault), headers=headers)

    async def _truncate(self, http: web.Request, payload: bytes) -> web.StreamResponse:
        response = web.StreamResponse(status=207, headers={"Content-Type": "application/json"})
        response.content_length = len(payload) + 100
        with contextlib.suppress(ConnectionError):  # the client may have gone
            await response.prepare(http)
            await response.write(payload[: len(payload) // 2])
        if http.transport is not None:
            http.transport.close()
        return response

    async def _control(self, http: web.Request) -> web.Response:
        if http.path == "/_strict/behave":
            for name, value in (await http.json()).items():
                setattr(self.behaviour, name, value)
            return web.json_response(asdict(self.behaviour))
        if http.path == "/_strict/database":
            self.database_away((await http.json())["away"])
        if http.path == "/_strict/restart":
            await self.stop(spare=http.transport)
            await asyncio.sleep((await http.json())["down_s"])
            await self.start()
        self._look()
        return web.json_response(
            {
                "stored": [asdict(value) for value in self.stored],
                "forgotten": [asdict(value) for value in self.forgotten],
                "history": {name: self.temporal_history(name) for name in self.tenants},
                "backwards": [[asdict(value), before] for value, before in self.backwards],
                "refusals": self.refusals,
                "requests": self.requests,
                "entities": {name: tenant.entities for name, tenant in self.tenants.items()},
            }
        )


def parse(body: bytes) -> Json:
    """JSON as RFC 8259 and JSON-LD have it: UTF-8, no NaN, no name twice in an object, no NUL, no lone surrogate."""

    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise ValueError(f"a name stands twice among {names}")
        return dict(pairs)

    def constant(text: str) -> Json:
        raise ValueError(f"{text} is no JSON")

    try:
        text = body.decode("utf-8")
        document = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except ValueError as error:  # UnicodeError is one
        raise Refusal(400, "the body is no JSON", str(error), "InvalidRequest") from error
    if "\\u0000" in text and any("\0" in string for string in _strings(document)):
        raise Refusal(400, "U+0000 in a string")
    return document


def link_context(header: str) -> str:
    """The URL of a JSON-LD context Link header (6.3.5)."""
    match = _LINK.fullmatch(header.strip())
    if match is None:
        raise Refusal(400, "malformed Link header", header)
    parameters = dict(part.strip().split("=", 1) for part in match[2].split(";") if part.strip())
    if parameters.get("rel", "").strip('"') != "http://www.w3.org/ns/json-ld#context":
        raise Refusal(400, "Link header without rel of a JSON-LD context", header)
    if parameters.get("type", '"application/ld+json"').strip('"') != "application/ld+json":
        raise Refusal(400, "Link header of another type than application/ld+json", header)
    if not re.match(r"https?://\S+\Z", match[1]):
        raise Refusal(400, "the context's address is no URL", match[1])
    return match[1]


def check_entity(entity: dict[str, Json], *, context_in_body: bool = False, temporal: bool = False) -> None:
    """Raise `Refusal` unless this is an entity (5.2.4), or the temporal evolution of one (5.2.20)."""
    entity_id, entity_type = entity.get("id"), entity.get("type")
    if not isinstance(entity_id, str) or not _URI.fullmatch(entity_id):
        raise Refusal(400, "id is no URI", repr(entity_id))
    types = entity_type if isinstance(entity_type, list) and entity_type else [entity_type]
    if not all(isinstance(name, str) and (_NAME.fullmatch(name) or _URI.fullmatch(name)) for name in types):
        raise Refusal(400, "type is no name", repr(entity_type))
    if context_in_body and not entity.get("@context"):
        raise Refusal(400, "application/ld+json without @context", entity_id)
    for name, attribute in entity.items():
        if name in _NOT_ATTRIBUTES:
            continue
        if not _NAME.fullmatch(name) and not _URI.fullmatch(name):
            raise Refusal(400, "illegal attribute name", name)
        instances = _instances(attribute)
        if not instances:
            raise Refusal(400, "an attribute without instances", name)
        datasets = [i.get("datasetId") if isinstance(i, dict) else None for i in instances]
        if not temporal and len(set(map(str, datasets))) != len(datasets):
            raise Refusal(400, "two instances of one dataset", name)
        for instance in instances:
            _check_instance(name, instance)
            if temporal and not (isinstance(instance, dict) and "observedAt" in instance):
                raise Refusal(400, "an instance of the past without observedAt", name)


def _check_instance(name: str, instance: Json) -> None:
    if not isinstance(instance, dict):  # concise form: the bare value
        if instance is None:
            raise Refusal(400, "an attribute is null", name)
        return
    kind = instance.get("type") or _inferred(instance)
    if kind not in _ATTRIBUTE_MEMBER:
        raise Refusal(400, "unknown type of attribute", f"{name}: {kind!r}")
    member = _ATTRIBUTE_MEMBER[kind]
    value = instance.get(member)
    if value is None:
        raise Refusal(400, f"{kind} without {member}", name)
    _CHECKS.get(kind, lambda *_: None)(name, value)
    if "observedAt" in instance:
        check_time(name, instance["observedAt"])
    unit = instance.get("unitCode")
    if "unitCode" in instance and (
        not isinstance(unit, str) or not unit.strip() or kind not in ("Property", "ListProperty")
    ):
        raise Refusal(400, "unitCode is no text, or not of a Property", f"{name}: {unit!r}")
    dataset = instance.get("datasetId")
    if "datasetId" in instance and (not isinstance(dataset, str) or not _URI.fullmatch(dataset)):
        raise Refusal(400, "datasetId is no URI", f"{name}: {dataset!r}")
    for sub, nested in instance.items():
        if sub in _RESERVED or sub == member:
            continue
        if not _NAME.fullmatch(sub) and not _URI.fullmatch(sub):
            raise Refusal(400, "illegal name", f"{name}.{sub}")
        for one in _instances(nested):
            _check_instance(f"{name}.{sub}", one)


def _inferred(instance: dict[str, Json]) -> str | None:
    for kind, member in _ATTRIBUTE_MEMBER.items():
        if member in instance:
            return kind
    return None


def _check_property(name: str, value: Json) -> None:
    if isinstance(value, dict) and not value.get("@type", "x"):
        raise Refusal(400, "a typed value without type", name)
    if isinstance(value, dict) and value.get("@type") == "DateTime":
        check_time(name, value.get("@value"))


def _check_relationship(name: str, value: Json) -> None:
    targets = value if isinstance(value, list) and value else [value]
    if not all(isinstance(target, str) and _URI.fullmatch(target) for target in targets):
        raise Refusal(400, "object is no URI", f"{name}: {value!r}")


def _check_geo(name: str, value: Json) -> None:
    if not isinstance(value, dict) or value.get("type") not in _DEPTH:
        raise Refusal(400, "value is no GeoJSON geometry", f"{name}: {value!r}")
    positions = list(_positions(name, value.get("coordinates"), _DEPTH[value["type"]]))
    if not positions:
        raise Refusal(400, "a geometry without positions", name)
    for position in positions:
        numbers = (
            isinstance(position, list)
            and 2 <= len(position) <= 3
            and all(isinstance(c, int | float) and not isinstance(c, bool) for c in position)
        )
        if not numbers:
            raise Refusal(400, "a position is not two or three numbers", f"{name}: {position!r}")
        if not (-180 <= position[0] <= 180 and -90 <= position[1] <= 90):
            raise Refusal(400, "a position is not longitude, latitude", f"{name}: {position!r}")


def _positions(name: str, coordinates: Json, depth: int) -> Iterator[Json]:
    if depth == 0:
        yield coordinates
    elif not isinstance(coordinates, list):
        raise Refusal(400, "coordinates are no list", name)
    else:
        for part in coordinates:
            yield from _positions(name, part, depth - 1)


def _check_language(name: str, value: Json) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str | list) for text in value.values()):
        raise Refusal(400, "languageMap is no map of texts", name)


_CHECKS: dict[str, Any] = {
    "Property": _check_property,
    "Relationship": _check_relationship,
    "GeoProperty": _check_geo,
    "LanguageProperty": _check_language,
}


def check_time(name: str, text: Json) -> None:
    """`observedAt` is a DateTime in UTC with `Z` (4.6.3)."""
    if not isinstance(text, str) or not _DATETIME.fullmatch(text):
        raise Refusal(400, "not a UTC DateTime with Z", f"{name}: {text!r}")
    try:
        moment(text)
    except ValueError as error:
        raise Refusal(400, "no such time", f"{name}: {text}") from error


def moment(text: str) -> float:
    """Unix seconds of a wire time."""
    return datetime.fromisoformat(text.replace(",", ".").replace("Z", "+00:00")).astimezone(UTC).timestamp()


def _window(query: Mapping[str, str]) -> Any:
    relation, at, end = query.get("timerel"), query.get("timeAt"), query.get("endTimeAt")
    if relation is None:
        return lambda _: True
    if relation not in ("before", "after", "between") or at is None or (relation == "between" and end is None):
        raise Refusal(400, "timerel, timeAt, endTimeAt do not fit together")
    check_time("timeAt", at)
    if relation == "before":
        return lambda text: text is not None and moment(text) < moment(at)
    if relation == "after":
        return lambda text: text is not None and moment(text) > moment(at)
    check_time("endTimeAt", end)
    return lambda text: text is not None and moment(at) <= moment(text) <= moment(str(end))


def _strings(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _instances(attribute: Json) -> list[dict[str, Json]]:
    many = isinstance(attribute, list) and all(isinstance(item, dict) for item in attribute)
    return [
        i if isinstance(i, dict) else {"type": "Property", "value": i} for i in (attribute if many else [attribute])
    ]


def _datasets(attribute: Json) -> set[str | None]:
    return {instance.get("datasetId") for instance in _instances(attribute)}


def _same(old: list[dict[str, Json]], instance: dict[str, Json]) -> dict[str, Json] | None:
    return next((i for i in old if i.get("datasetId") == instance.get("datasetId")), None)


def _member(instance: dict[str, Json]) -> Json:
    kind = instance.get("type") or _inferred(instance) or "Property"
    return instance.get(_ATTRIBUTE_MEMBER.get(kind, "value"))


def _compact(entity: dict[str, Json]) -> dict[str, Json]:
    return {
        name: value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) else value
        for name, value in entity.items()
    }


async def _main() -> None:
    parser = argparse.ArgumentParser(description="strict NGSI-LD broker for tests")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--behave", default="{}", help="JSON: fields of Behaviour")
    parser.add_argument("--profile", default="plain", choices=sorted(PROFILES))
    parser.add_argument("--profile-with", default="{}", help="JSON: arguments of the profile")
    options = parser.parse_args()
    known = {f.name for f in fields(Behaviour)}
    told = {k: v for k, v in json.loads(options.behave).items() if k in known}
    profile = PROFILES[options.profile](**json.loads(options.profile_with))
    behaviour = replace(profile.behaviour(), **told)
    async with StrictBroker(behaviour, profile=profile, record=options.record).serve(options.port) as url:
        print(url.rsplit(":", 1)[1], flush=True)  # noqa: T201 - the one line the caller waits for
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
