"""Products that the strict broker can imitate: what was observed of them, and nothing else.

A comment names the fact that a behaviour stands for; times are scaled by `SCALE` where nothing else is said. What is not
known of a product is as in `Profile`, which is the specification's broker.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tests.support.broker_contexts import JSON_LD, Contexts, addresses
from tests.support.broker_parts import CORE_CONTEXT, Behaviour, Json, Refusal, Reply, Request, Row, Tenant

SCALE = 1 / 20
DATABASE_AWAY = "Connection refused: the database does not answer"
_VERSIONED = "https://uri.etsi.org/ngsi-ld/v1/ngsi-ld-core-context-v{}.jsonld"
LINK = '<{}>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"'
INFO = "/ngsi-ld/v1/info/sourceIdentity"
_WRITES = ("/entityOperations/", "/temporal/entities")


class Profile:
    """The broker of the specification: at once, for ever, nothing to be fetched. `plain`.

    Attributes:
        records: whether there is a history of its own.
        context_refuses: what a context that is not there takes with it.
        contexts: the hosts of contexts.
        database_away: its database does not answer.
    """

    name: ClassVar[str] = "plain"
    records: ClassVar[bool] = True
    context_refuses: ClassVar[Literal["nothing", "entity", "request"]] = "nothing"

    def __init__(self) -> None:
        self.contexts = Contexts()
        self.database_away = False

    def behaviour(self) -> Behaviour:
        """How it answers when the test does not say otherwise."""
        return Behaviour(records=self.records)

    async def before(self, request: Request, tenants: dict[str, Tenant]) -> None:
        """Take the time that this request takes, before it is carried out."""

    def instead(self, request: Request) -> Reply | None:
        """An answer that needs no look at the request."""
        if self.database_away:  # observed of Scorpio and Orion; of the others unknown
            raise Refusal(500, "Internal error", DATABASE_AWAY, "InternalError")
        return None

    def headers(self, request: Request) -> dict[str, str]:
        """What stands in the head of every answer that carries a body."""
        return {}

    def problem(self, refusal: Refusal, request: Request) -> Json:
        """The report of a request that is refused whole."""
        return refusal.problem()

    def tenant_name(self, name: str) -> str:
        """The tenant that is meant."""
        return name

    def check_tenant(self, name: str, *, write: bool, exists: bool) -> None:
        """Raise `Refusal` unless the tenant can be used. `exists` is what the specification has to say."""
        if not exists:
            raise Refusal(404, "NonexistentTenant", name, "NonexistentTenant")

    def check_context(self, context: Json) -> None:
        """Raise `Refusal` unless all that is to be fetched for a context is there."""

    def applied(self, items: Sequence[dict[str, Json]]) -> Sequence[dict[str, Json]]:
        """The entities of a batch as they are carried out."""
        return items

    def holds(self, rows: Sequence[Row]) -> bool:
        """Whether what one entity's update adds to the history is kept back for now."""
        return False

    def wrote(self, tenant: str) -> None:
        """Somebody wrote to the tenant by the temporal API."""

    def look(self) -> tuple[list[Row], list[Row]]:
        """What is to be written now of what was kept back, and what is lost."""
        return [], []

    def lose_memory(self) -> list[Row]:
        """The process ends; what is lost with it."""
        return []

    def shown(self, value: Json) -> Json:
        """A value as it is read back."""
        return value


class _Fetching(Profile):
    """Fetches contexts, and keeps them for a time."""

    types: ClassVar[frozenset[str]] = frozenset({JSON_LD, "application/json", "text/plain"})
    bundled: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *, cache_s: float = 0.5, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.cache_s = cache_s  # about 5 min
        self.now_s = now_s
        self._until_s: dict[str, float] = {}

    def check_context(self, context: Json) -> None:
        now_s = self.now_s()
        for url in addresses(context):
            if url in self.bundled or now_s < self._until_s.get(url, 0.0):
                continue
            found = self.contexts.fetch(url)
            if found not in self.types:
                why = "nobody answers" if found is None else f"served as {found}"
                raise Refusal(503, "context not available", f"{url}: {why}", "LdContextNotAvailable")
            self._until_s[url] = now_s + self.cache_s

    def lose_memory(self) -> list[Row]:
        self._until_s.clear()
        return []


@dataclass(slots=True)
class _Buffer:
    """What one tenant's history still lacks."""

    rows: list[Row] = field(default_factory=list)
    updates: int = 0
    last_s: float = 0.0


class Scorpio(_Fetching):
    """Scorpio 5.0.3 with in-memory messaging.

    Args:
        silence_s: the history is written after so long without any update of that tenant; 1 s.
        look_s: how often that is looked at; 5 s.
        flush_at: updates of entities that are written without silence; 50,000.
        tenant_s: a tenant's first write takes so long; 4-20 s.
        batch_s: seconds of a batch of so many entities; None: none.
        named: False: a proxy on the way hides what it could be known by.
        now_s: the clock of silence and cache.
    """

    name = "scorpio"
    # a context that is not there: 503 on GET and on temporal POST, and inside 207 for entities of that context alone
    context_refuses = "entity"
    # the core context unversioned, v1.6 and v1.8 work without internet, all others are fetched
    bundled = frozenset({CORE_CONTEXT, _VERSIONED.format("1.6"), _VERSIONED.format("1.8")})

    def __init__(
        self,
        *,
        silence_s: float = 1.0 * SCALE,
        look_s: float = 5.0 * SCALE,
        flush_at: int = round(50_000 * SCALE),
        tenant_s: float = 4.0 * SCALE,
        cache_s: float = 0.5,
        batch_s: Callable[[int], float] | None = lambda count: _squared_s(count) * SCALE,
        named: bool = True,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(cache_s=cache_s, now_s=now_s)
        self.silence_s, self.look_s, self.flush_at, self.tenant_s = silence_s, look_s, flush_at, tenant_s
        self.batch_s, self.named = batch_s, named
        self.half_made: set[str] = set()
        self._making: set[str] = set()
        self._started_s = now_s()
        self._buffers: dict[str, _Buffer] = {}
        self._one_batch = asyncio.Lock()

    def behaviour(self) -> Behaviour:
        # bodies up to 10 MiB, no limit of entities enforced; 207 names `id` and `ProblemDetails`
        return Behaviour(spelling="scorpio", max_bytes=10 * 2**20, max_entities=10**9)

    def instead(self, request: Request) -> Reply | None:
        # 5.0.3 has no sourceIdentity (InfoController.java came later): Vert.x answers for what nobody serves
        if request.path == INFO and self.named:
            page = b"<html><body><h1>Resource not found</h1></body></html>"
            return Reply(404, raw=page, headers={"Content-Type": "text/html; charset=utf-8"})
        return super().instead(request)

    def headers(self, request: Request) -> dict[str, str]:
        # GET: `Link` to the core context always, even if the request's Link named another one
        return {"Link": LINK.format(_VERSIONED.format("1.8"))} if request.method == "GET" and self.named else {}

    async def before(self, request: Request, tenants: dict[str, Tenant]) -> None:
        path = request.path.removeprefix("/ngsi-ld/v1")
        if request.method != "POST" or not path.startswith(_WRITES) or self.database_away:
            return
        await self._make(request.headers.get("ngsild-tenant", ""), tenants)
        if self.batch_s is not None and path.startswith("/entityOperations/"):
            async with self._one_batch:  # four connections at once were not faster than one
                await asyncio.sleep(self.batch_s(request.body.count(b'"id"')))

    async def _make(self, tenant: str, tenants: dict[str, Tenant]) -> None:
        """The first write makes a tenant, slowly; of several made at once some stay half-made for ever."""
        if not tenant or tenant in tenants or tenant in self._making:
            while tenant in self._making:  # noqa: ASYNC110 - several may wait for one
                await asyncio.sleep(self.tenant_s / 20)
            return
        if self._making:
            self.half_made.add(tenant)
        self._making.add(tenant)
        try:
            await asyncio.sleep(self.tenant_s)
        finally:
            self._making.discard(tenant)
        tenants.setdefault(tenant, Tenant())

    def check_tenant(self, name: str, *, write: bool, exists: bool) -> None:
        if name in self.half_made:
            raise Refusal(500, "Internal error", 'relation "entity" does not exist', "InternalError")
        if not exists or name in self._making:  # reading an unknown tenant
            raise Refusal(404, "Tenant not found", name, "TenantNotFound")

    def holds(self, rows: Sequence[Row]) -> bool:
        for row in rows[:1]:
            buffer = self._buffers.setdefault(row.tenant, _Buffer())
            buffer.updates += 1
            buffer.last_s = self.now_s()  # of any writer: another one keeps all of the tenant invisible
            buffer.rows.extend(rows)
        return True

    def wrote(self, tenant: str) -> None:
        if tenant in self._buffers:
            self._buffers[tenant].last_s = self.now_s()  # no silence: "any write to that tenant"

    def look(self) -> tuple[list[Row], list[Row]]:
        written: list[Row] = []
        now_s = self.now_s()
        for buffer in self._buffers.values():
            ripe_s = buffer.last_s if buffer.updates >= self.flush_at else buffer.last_s + self.silence_s
            if buffer.rows and self._next_look_s(ripe_s) <= now_s:
                written += buffer.rows
                buffer.rows, buffer.updates = [], 0
        # taken from memory before it is written: with the database away it is gone
        return ([], written) if self.database_away else (written, [])

    def _next_look_s(self, at_s: float) -> float:
        return self._started_s + math.ceil((at_s - self._started_s) / self.look_s) * self.look_s

    def lose_memory(self) -> list[Row]:
        """Restart and crash alike: what was acknowledged and is not yet written is gone, current state stays."""
        super().lose_memory()
        lost = [row for buffer in self._buffers.values() for row in buffer.rows]
        self._buffers.clear()
        return lost

    def shown(self, value: Json) -> Json:
        """One-element arrays come back as scalars, nested ones flat, a DateTime with `type`."""
        if isinstance(value, list):
            flat = [item for part in value for item in (part if isinstance(part, list) else [part])]
            return flat[0] if len(flat) == 1 else flat
        if isinstance(value, dict) and "@type" in value:
            return {"type": value["@type"], **{key: item for key, item in value.items() if key != "@type"}}
        return value


def _squared_s(count: int) -> float:
    """15 entities 0.06 s, 25: 0.15 s, 50: 0.5 s, 100: 1.5-2 s, 500: 50 s."""
    return 0.02 + 2e-4 * count**2


class Stellio(_Fetching):
    """Stellio of 2026: history in its own database, nothing lost by a kill or a database that is away.

    Args:
        tenants: those of its configuration, beside the default one.
    """

    name = "stellio"
    # a context that is served as text/plain is refused, and with it all that uses it
    types = frozenset({JSON_LD, "application/json"})
    context_refuses = "request"

    def __init__(self, *, tenants: Sequence[str] = (), cache_s: float = 0.5) -> None:
        super().__init__(cache_s=cache_s)
        self.tenants = list(tenants)

    def behaviour(self) -> Behaviour:
        # codec limit of 256 KiB unless configured; tenants are configured in advance
        return Behaviour(spelling="stellio", max_bytes=256 * 2**10, tenants=self.tenants)

    def instead(self, request: Request) -> Reply | None:
        # sourceIdentity is not there yet (its issue 1666); its gateway, Spring WebFlux, answers for what it has no route to
        if request.path == INFO:
            told = {"timestamp": "2026-11-28T10:00:00.000+00:00", "path": INFO, "status": 404, "error": "Not Found"}
            return Reply(404, {**told, "requestId": "5f1a3c2e-17"})
        return super().instead(request)

    def headers(self, request: Request) -> dict[str, str]:
        # ApiResponses.kt: Link to the context of the answer; TenantWebFilter.kt: the tenant is told back
        told = {"Link": request.headers.get("link", LINK.format(_VERSIONED.format("1.8")))}
        tenant = request.headers.get("ngsild-tenant")
        return {**(told if request.method == "GET" else {}), **({"NGSILD-Tenant": tenant} if tenant else {})}

    def problem(self, refusal: Refusal, request: Request) -> Json:
        # ExceptionHandler.kt: Spring's ProblemDetail, which names the address that was asked for
        return {**refusal.problem(), "instance": request.path}


class OrionLd(Profile):
    """Orion-LD, older write path. Without TRoE there is no history; with it, queries go to another port.

    Args:
        troe: it records, where this API does not show it.
        info: it is of September 2024 or later.
    """

    name = "orion-ld"
    records = False

    def __init__(self, *, troe: bool = False, info: bool = True) -> None:
        super().__init__()
        self.troe, self.info = troe, info

    def behaviour(self) -> Behaviour:
        # 1 MiB a request; 207 with empty errors when new and old entities are mixed
        return Behaviour(spelling="orion-ld-207", max_bytes=2**20, temporal=False, records=self.troe)

    def instead(self, request: Request) -> Reply | None:
        # orionldGetVersion.cpp; orionldGetInfo.cpp is of September 2024
        version = {"Orion-LD version": "1.8.0", "based on orion": "1.15.0-next", "branch": ""}
        if request.path == "/ngsi-ld/ex/v1/version":
            return Reply(200, version)
        if request.path == INFO and self.info:
            who = {"id": "urn:ngsi-ld:cs:000001", "type": "ContextSourceIdentity", "contextSourceAlias": "orionld"}
            return Reply(200, {**who, "contextSourceUptime": "PT00H00M01S", "contextSourceExtras": version})
        return super().instead(request)

    def tenant_name(self, name: str) -> str:
        return name.lower()

    def applied(self, items: Sequence[dict[str, Json]]) -> Sequence[dict[str, Json]]:
        """Duplicates of an entity in one batch are merged before anything is written: what was between is history lost."""
        merged: dict[str, dict[str, Json]] = {}
        for item in items:
            merged[item["id"]] = {**merged.get(item["id"], {}), **item}
        return list(merged.values())


class Orion(Profile):
    """Orion, which speaks NGSIv2 alone: for the probe."""

    name = "orion"
    records = False

    def instead(self, request: Request) -> Reply | None:
        # the reason is in `description`; `Fiware-Correlator` on every answer
        correlator = {"Fiware-Correlator": "3c1c1b1e-0000-11f0-9d0c-000000000001"}
        if request.path == "/version":
            return Reply(200, {"orion": {"version": "4.7.0-next", "uptime": "0 d, 0 h, 0 m, 3 s"}}, correlator)
        return Reply(400, {"error": "BadRequest", "description": "Service not found"}, correlator)


PROFILES: dict[str, type[Profile]] = {kind.name: kind for kind in (Profile, Scorpio, Stellio, OrionLd, Orion)}
