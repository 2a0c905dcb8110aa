"""Every fault of a network, a broker or a login, in both ways of sending, at Scorpio where it leaves a doubt: nothing lost,
nothing twice, state never back, other brokers unaffected, and status says what is wrong. All cells run side by side; each
test looks at one of them.
"""

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.forward.auth import Grant, OAuth2, Tls, Way
from gateway.forward.forwarder import Forwarder
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.forward.settings import ForwardSettings
from gateway.health import BrokerHealth
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.reading import Reading, ReadingSet
from tests.gateway.forward.identity import Authority, IdentityServer
from tests.gateway.forward.scene import START, RealClock, entity_id, measured_only, tables, wire
from tests.support.broker_profiles import Scorpio
from tests.support.fault_proxy import FaultProxy
from tests.support.strict_broker import StrictBroker

DEVICES = ("air-0", "air-1", "air-2", "air-3")
BAD = "air-2"
SETTINGS = ForwardSettings(
    linger_s=0.2,
    rate_per_s=1e6,
    records_within_s=1.0,
    look_s=0.05,
    learn_s=1.0,
    unseen_s=2.0,
    gather_s=0.1,
    held_every_s=0.1,
    retry_first_s=0.1,
    retry_quick_s=0.3,
    retry_cap_s=0.3,
)
TIMEOUT = aiohttp.ClientTimeout(total=4.0, sock_connect=1.0, sock_read=1.0)
CELL_S = 180.0  # for one cell, others running beside it
ABREAST = 24

pytestmark = pytest.mark.timeout(900)  # the first test waits for all cells

Point = tuple[str, str, str | None, Any]


@dataclass
class Cell:
    """One fault in one way of sending: what is set up, and what came of it."""

    name: str
    history: str
    strict: StrictBroker = field(default_factory=StrictBroker)
    other: StrictBroker = field(default_factory=StrictBroker)
    identity: IdentityServer = field(default_factory=IdentityServer)
    health: BrokerHealth = field(default_factory=BrokerHealth)
    other_health: BrokerHealth = field(default_factory=BrokerHealth)
    resolver: "Names" = field(default_factory=lambda: Names())
    proxy: FaultProxy | None = None
    tls_ports: dict[str, int] = field(default_factory=dict)
    log: Log | None = None
    expected: set[Point] = field(default_factory=set)
    dead: set[Point] = field(default_factory=set)
    other_late_s: float = 0.0
    error: str = ""


class Names(AbstractResolver):
    """A name server that can fail, or name another address."""

    def __init__(self) -> None:
        self.address: str | None = "127.0.0.1"

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        if self.address is None:
            raise OSError(None, "Temporary failure in name resolution")
        found = ResolveResult(
            hostname=host, host=self.address, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
        )
        return [found]

    async def close(self) -> None:
        pass


@dataclass(frozen=True)
class Fault:
    """How a fault begins and ends, and what status must say meanwhile.

    Attributes:
        state: of the broker's health while it lasts; "" when it is dealt with while it lasts: what was carried out is
            read back.
        says: part of the reason.
        refuses: one device's entity is refused for good: its readings must be dead letters, all others arrive.
    """

    begin: Callable[[Cell], Awaitable[None]]
    state: str = "down"
    says: str = ""
    refuses: bool = False
    scheme: str = "http"
    login: bool = False
    host: str = "127.0.0.1"
    tls: str = "good"  # certificate that is served while the fault lasts


def proxied(mode: str, **options: Any) -> Callable[[Cell], Awaitable[None]]:
    async def begin(cell: Cell) -> None:
        assert cell.proxy is not None
        await cell.proxy.set(mode, **options)

    return begin


def behaving(**changes: Any) -> Callable[[Cell], Awaitable[None]]:
    async def begin(cell: Cell) -> None:
        for name, value in changes.items():
            setattr(cell.strict.behaviour, name, value)

    return begin


async def name_gone(cell: Cell) -> None:
    cell.resolver.address = None
    await proxied("refuse")(cell)  # what is known of the name is used until a connection fails


async def name_moved(cell: Cell) -> None:
    cell.resolver.address = "127.0.0.2"
    await proxied("refuse")(cell)


async def wrong_certificate(cell: Cell) -> None:
    assert cell.proxy is not None
    cell.proxy.target = ("127.0.0.1", cell.tls_ports["fault"])
    await cell.proxy.set("pass")


async def token_revoked(cell: Cell) -> None:
    cell.strict.behaviour.token = "Bearer token-2"
    cell.identity.tokens = ["token-2"]


async def token_server_down(cell: Cell) -> None:
    cell.strict.behaviour.token = "Bearer token-2"
    cell.identity.status = 503


async def login_refused(cell: Cell) -> None:
    cell.strict.behaviour.token = "Bearer token-2"
    cell.identity.status = 401


def one_refused(spelling: str = "spec", whole: str = "", status: int = 400) -> Fault:
    begin = behaving(refuse=f"{BAD}$", spelling=spelling, whole=whole, refuse_status=status)
    return Fault(begin, state="", refuses=True)


FAULTS = {
    "refused": Fault(proxied("refuse"), says="Connect call failed"),
    "blackhole": Fault(proxied("blackhole"), says="no answer in time"),
    "reset in mid-request": Fault(proxied("reset_request", after_bytes=400)),
    "reset in mid-response": Fault(proxied("reset_response", after_bytes=20)),
    "half-open": Fault(proxied("half_open"), says="no answer in time"),
    "slow answer": Fault(proxied("slow", delay_s=0.3), state=""),
    "answer too late": Fault(behaving(fault="hang_stored", path="upsert"), state=""),
    "answer lost": Fault(behaving(fault="reset_stored", path="upsert"), state=""),
    "answer lost once": Fault(behaving(fault="reset_stored", path="upsert", times=2), state=""),
    "history's answer lost once": Fault(behaving(fault="reset_stored", path="temporal", times=2), state=""),
    "503": Fault(behaving(fault="503"), says="503"),
    "500": Fault(behaving(fault="500", path="upsert"), says="500"),
    "429": Fault(behaving(fault="429", retry_after="1"), says="429"),
    "413": Fault(behaving(max_bytes=1200), state=""),
    "207": one_refused(),
    "207 of an old document": one_refused("old"),
    "207 of Scorpio": one_refused("scorpio"),
    "207 of Scorpio without ids": one_refused("scorpio_null"),
    "207 of Orion-LD": one_refused("orion-ld"),
    "207 without errors": Fault(behaving(spelling="orion-ld-207"), state=""),
    "207 of Stellio": one_refused("stellio"),
    "400 that names one": one_refused(whole="naming"),
    "400 that names none": one_refused(whole="silent"),
    "401, then ok": Fault(token_revoked, state="", login=True),
    "token endpoint down": Fault(token_server_down, login=True, says="token endpoint"),
    "login refused": Fault(login_refused, state="login", login=True, says="token endpoint: 401"),
    "403": Fault(behaving(fault="403", path="upsert"), state="login", says="403"),
    "404": Fault(behaving(fault="404", path="upsert"), says="404"),
    "expired certificate": Fault(wrong_certificate, scheme="https", tls="expired", says="expired"),
    "wrong host name": Fault(wrong_certificate, scheme="https", tls="other", says="TLS"),
    "page of a captive portal": Fault(behaving(fault="html200"), says="captive portal"),
    "truncated answer": Fault(behaving(fault="truncated", path="upsert"), state=""),
    "DNS failure": Fault(name_gone, host="broker.city.test", says="name not found"),
    "DNS change": Fault(name_moved, host="broker.city.test"),
    "redirect": Fault(behaving(fault="redirect"), says="redirect to https://login.example/"),
    "413 for each entity": Fault(behaving(max_bytes=100), says="413"),
    "every entity put off": Fault(behaving(refuse=".", refuse_status=503), says="refused by rule"),
    "every entity refused": Fault(behaving(refuse="."), state="config_fault", says="refused by rule"),
}
WAYS = ("temporal", "in-order")
IN_DOUBT = (  # at a broker that shows late what it took, and may lose it
    "refused",
    "reset in mid-request",
    "reset in mid-response",
    "half-open",
    "answer too late",
    "answer lost",
    "answer lost once",
    "history's answer lost once",
    "truncated answer",
    "503",
    "500",
    "207 of Scorpio",
    "every entity put off",
)
CELLS = [(name, way) for way in WAYS for name in FAULTS] + [(name, "scorpio") for name in IN_DOUBT]
EACH = pytest.mark.parametrize(("name", "way"), CELLS, ids=["-".join(cell) for cell in CELLS])


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Cell]:
    """All cells, run side by side."""
    folder = tmp_path_factory.mktemp("matrix")
    authority = Authority(folder)

    async def run_all() -> list[Cell]:
        cells = [Cell(name, way) for name, way in CELLS]
        abreast = asyncio.Semaphore(ABREAST)

        async def one(number: int, cell: Cell) -> None:
            async with abreast:
                await run(cell, folder / str(number), authority)

        await asyncio.gather(*(one(number, cell) for number, cell in enumerate(cells)))
        return cells

    return {(cell.name, cell.history): cell for cell in asyncio.run(run_all())}


async def run(cell: Cell, folder: Path, authority: Authority) -> None:
    try:
        async with asyncio.timeout(CELL_S):
            await play(cell, FAULTS[cell.name], folder, authority)
    except Exception as error:  # noqa: BLE001 - told by the cell's own test
        cell.error = f"{type(error).__name__}: {error}; status {cell.health.state}: {cell.health.reason}"


async def play(cell: Cell, fault: Fault, folder: Path, authority: Authority) -> None:
    """Healthy, then the fault, then healthy again; live data all the time."""
    if cell.history == "scorpio":
        cell.strict = StrictBroker(profile=Scorpio(silence_s=0.2, look_s=0.1, batch_s=None))
    cell.strict.behaviour.records_after_s = 0.2
    async with contextlib.AsyncExitStack() as stack:
        tls = fault.scheme == "https"
        url = await stack.enter_async_context(cell.strict.serve(ssl=authority.server("127.0.0.1") if tls else None))
        if tls:
            days = (-20, -10) if fault.tls == "expired" else (-1, 30)
            name = "127.0.0.1" if fault.tls == "expired" else "elsewhere.test"
            second = await stack.enter_async_context(cell.strict.serve(ssl=authority.server(name, days=days)))
            cell.tls_ports = {"good": _port(url), "fault": _port(second)}
        cell.proxy = FaultProxy("127.0.0.1", _port(url))
        port = await stack.enter_async_context(cell.proxy.serve())
        other_url = await stack.enter_async_context(cell.other.serve())
        token_url = await stack.enter_async_context(cell.identity.serve())
        way = Way(
            timeout=TIMEOUT,
            login=OAuth2(Grant(token_url, "gw", "secret")) if fault.login else None,
            tls=Tls(ca=str(authority.ca)) if tls else None,
            resolver=(lambda: cell.resolver) if fault.host != "127.0.0.1" else None,
        )
        if fault.login:
            cell.strict.behaviour.token = "Bearer token-1"
        broker = NgsiLdBroker(NgsiLdSettings(f"{fault.scheme}://{fault.host}:{port}"), way)
        settings = LogSettings(folder / "buffer.db", commit_every_s=3600.0)
        log = await Log.open(settings, clock=RealClock(), consumers=[Consumer("city"), Consumer("other")])
        cell.log = log
        stack.push_async_callback(log.close)
        await _forward(stack, "city", broker, log, cell.health, cell.history)
        plain = NgsiLdBroker(NgsiLdSettings(other_url), Way(timeout=TIMEOUT))
        await _forward(stack, "other", plain, log, cell.other_health, "in-order")
        await _three_acts(cell, fault, log)
        await _dead_letters(cell, log)


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


async def _forward(
    stack: contextlib.AsyncExitStack, name: str, broker: NgsiLdBroker, log: Log, health: BrokerHealth, history: str
) -> None:
    settings = replace(SETTINGS, history=history)
    if history == "scorpio":
        settings = replace(SETTINGS, look_s=0.2, learn_s=600.0, unseen_s=7200.0)
    forwarder = Forwarder(name, broker, tables(*DEVICES), log=log, health=health, clock=RealClock(), settings=settings)
    task = asyncio.create_task(forwarder.run())

    async def stop() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(stop)


async def _three_acts(cell: Cell, fault: Fault, log: Log) -> None:
    before = replace(cell.strict.behaviour)
    await _live(cell, log, 0, 6)
    await _until(lambda: log.backlog("city")[0] == 0)
    await fault.begin(cell)
    await _live(cell, log, 6, 14)
    started_s = time.monotonic()
    await _until(lambda: log.backlog("other")[0] == 0)
    cell.other_late_s = time.monotonic() - started_s
    if fault.state:
        await _until(lambda: cell.health.state == fault.state and fault.says in cell.health.reason)
        assert cell.health.next_try_at is not None
        assert cell.health.backlog > 0
    else:
        await _until(lambda: log.backlog("city")[0] == 0)
    await _live(cell, log, 14, 18)
    await _end(cell, before, fault)
    await _live(cell, log, 18, 24)
    await _until(lambda: log.backlog("city")[0] == 0 and cell.health.state == "ok" and log.backlog("other")[0] == 0)
    wanted = len(cell.expected) - (sum(point[0] == entity_id(BAD) for point in cell.expected) if fault.refuses else 0)
    with contextlib.suppress(TimeoutError):  # the test tells what is missing
        await _until(
            lambda: (
                len(measured_only(cell.strict.temporal_history())) >= wanted
                and (fault.refuses or log.held.count("city")[0] == 0)  # what the history has is let go a moment later
            ),
            within_s=3.0,
        )


async def _end(cell: Cell, before: Any, fault: Fault) -> None:
    """The world is well again; a refused entity stays refused, so that what became of its readings can be told."""
    if not fault.refuses:
        token = cell.strict.behaviour.token
        cell.strict.behaviour = replace(before, token=token)
    cell.identity.status = 200
    if fault.login:
        cell.identity.tokens = [cell.strict.behaviour.token.removeprefix("Bearer ")]
    cell.resolver.address = "127.0.0.1"
    assert cell.proxy is not None
    if fault.scheme == "https":
        cell.proxy.target = ("127.0.0.1", cell.tls_ports["good"])
    if cell.proxy.mode != "pass" or fault.scheme == "https":
        await cell.proxy.set("pass")


async def _live(cell: Cell, log: Log, first: int, last: int) -> None:
    for n in range(first, last):
        for device in DEVICES:
            at = START + timedelta(seconds=n)
            value = n + DEVICES.index(device) / 10
            await log.append(ReadingSet(device, (Reading("no2", value, at), Reading("pm25", n, at))))
            cell.expected |= {(entity_id(device), "no2", wire(n), value), (entity_id(device), "pm25", wire(n), n)}
        await asyncio.sleep(0.03)  # the sensors' own pace


async def _until(condition: Callable[[], bool], *, within_s: float = CELL_S) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - of another task, without an event
            await asyncio.sleep(0.02)


async def _dead_letters(cell: Cell, log: Log) -> None:
    await _until(lambda: log.backlog("city")[0] == 0)
    for piece in log.held.pieces("city"):
        columns = await log.held.readings(piece.id)
        for number, time_us, value in zip(columns.series, columns.time_us, columns.value, strict=True):
            series = log.series[number]
            at_s = time_us / 1e6 - START.timestamp()
            cell.dead.add((entity_id(series.device), series.point, wire(at_s), value))


@EACH
def test_a_fault_loses_nothing_repeats_nothing_and_is_told(
    cells: dict[tuple[str, str], Cell], name: str, way: str
) -> None:
    cell, fault = cells[name, way], FAULTS[name]
    assert cell.error == ""
    found = Counter(measured_only(cell.strict.temporal_history()))
    refused = {point for point in cell.expected if point[0] == entity_id(BAD)} if fault.refuses else set()

    assert {point: n for point, n in found.items() if n > 1} == {}
    assert cell.expected - found.keys() - cell.dead == set(), "lost"
    assert found.keys() - cell.expected == set(), "invented"
    assert cell.dead <= refused, "a dead letter that no rule refused"
    assert cell.strict.backwards == []


@EACH
def test_another_broker_does_not_notice(cells: dict[tuple[str, str], Cell], name: str, way: str) -> None:
    cell = cells[name, way]
    assert Counter(measured_only(cell.other.history())) == Counter(cell.expected)
    assert cell.other_health.state == "ok"
    assert cell.other_late_s < 20.0  # generous: all cells share two cores, others too
