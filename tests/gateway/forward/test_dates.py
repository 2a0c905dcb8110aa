"""TLS with a clock that is wrong: the box gets going by itself, nobody gets a credential for less, words that are true."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.clock import BUILT_AT, Box, Source, SystemClock
from gateway.forward.auth import Grant, OAuth2, Tls, Way, bearer
from gateway.forward.dates import CLOCK_REMEDY, RENEW_REMEDY, Dates
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.identity import Authority, IdentityServer
from tests.support.strict_broker import StrictBroker

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMEOUT = aiohttp.ClientTimeout(total=5.0, sock_connect=1.0, sock_read=2.0)


class WrongBox:
    """A box whose clock is off; its boot time goes on as the test says."""

    def __init__(self, wall: datetime) -> None:
        self.passed_s = 100.0
        self._wall = wall

    def clock(self) -> SystemClock:
        return SystemClock(
            "auto",
            Box(
                boot_id=lambda: "boot-1",
                wall_ns=lambda: int(((self._wall - EPOCH).total_seconds() + self.passed_s) * 1e9),
                boot_ns=lambda: int(self.passed_s * 1e9),
                synchronised=lambda: False,
                rtc_s=lambda: None,
            ),
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@asynccontextmanager
async def broker_at(url: str, ca: Path, clock: SystemClock, **way: Any) -> AsyncIterator[NgsiLdBroker]:
    def offer(at: datetime, within_s: float) -> bool:
        return clock.offer(at, within_s, Source.BROKER)

    its = Way(tls=Tls(ca=str(ca)), timeout=TIMEOUT, dates=Dates(clock), **way)
    broker = NgsiLdBroker(NgsiLdSettings(url), its, offer_time=offer)
    try:
        yield broker
    finally:
        await broker.close()


@pytest.mark.parametrize("wall", [EPOCH, BUILT_AT - timedelta(days=400), datetime(2038, 1, 1, tzinfo=UTC)])
async def test_a_box_without_a_clock_gets_going_by_its_broker_alone(authority: Authority, wall: datetime) -> None:
    box, strict = WrongBox(wall), StrictBroker()
    clock = box.clock()
    async with (
        strict.serve(ssl=authority.server("127.0.0.1")) as url,
        broker_at(url, authority.ca, clock, login=bearer("secret")) as broker,
    ):
        await broker.probe()
        assert not clock.trust.trusted  # one answer is no proof
        box.passed_s += 11
        # in the box's seconds, which the test lets pass; the server's have not
        clock.offer(datetime.now(UTC) + timedelta(seconds=11), 1.0, Source.BROKER)
        assert clock.trust.source is Source.BROKER
        assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=15)
        await broker.probe()


@asynccontextmanager
async def a_server(context: Any, says: datetime | None, seen: list[web.Request]) -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        response = web.json_response([])
        response.headers["Date"] = format_datetime(says, usegmt=True) if says else "yesterday"
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (None, "does not say what time it is"),
        (NOW + timedelta(days=60), "it says that it is"),  # its own certificate would have expired
        (BUILT_AT - timedelta(days=300), "it says that it is"),
        (datetime(2099, 1, 1, tzinfo=UTC), "it says that it is"),
    ],
)
async def test_who_does_not_say_a_time_that_can_be_gets_nothing(
    authority: Authority, says: datetime | None, why: str
) -> None:
    clock, seen = WrongBox(EPOCH).clock(), list[web.Request]()
    async with (
        a_server(authority.server("127.0.0.1"), says, seen) as url,
        broker_at(url, authority.ca, clock, login=bearer("secret")) as broker,
    ):
        with pytest.raises(BrokerUnavailable, match="clock of this box is not confirmed") as raised:
            await broker.probe()
    assert why in str(raised.value)
    assert raised.value.remedy == CLOCK_REMEDY
    assert {(request.method, request.path) for request in seen} == {("HEAD", "/")}
    assert all("Authorization" not in request.headers for request in seen)
    assert not clock.trust.trusted


async def test_asking_the_time_carries_nothing_and_then_the_login_goes_over_a_judged_connection(
    authority: Authority,
) -> None:
    clock, seen = WrongBox(EPOCH).clock(), list[web.Request]()
    async with (
        a_server(authority.server("127.0.0.1"), NOW, seen) as url,
        broker_at(url, authority.ca, clock, login=bearer("secret")) as broker,
    ):
        await broker.probe()
        await broker.probe()
    asked = [request for request in seen if request.method == "HEAD"]
    assert [dict(request.headers).get("Authorization") for request in asked] == [None]
    assert len(seen) > 1
    assert all(r.headers["Authorization"] == "Bearer secret" for r in seen if r.method != "HEAD")


async def test_another_name_or_another_ca_is_refused_whatever_the_clock(authority: Authority, tmp_path: Path) -> None:
    clock, seen = WrongBox(EPOCH).clock(), list[web.Request]()
    stranger = Authority(tmp_path)
    for context, ca in ((authority.server("localhost"), authority.ca), (authority.server("127.0.0.1"), stranger.ca)):
        async with a_server(context, NOW, seen) as url, broker_at(url, ca, clock) as broker:
            with pytest.raises(BrokerUnavailable, match="TLS"):
                await broker.probe()
    assert seen == []


async def test_a_certificate_that_expired_before_the_earliest_possible_time_is_never_taken(
    authority: Authority,
) -> None:
    clock, seen = WrongBox(EPOCH).clock(), list[web.Request]()
    clock.raise_floor(NOW)
    async with (
        a_server(authority.server("127.0.0.1", days=(-20, -10)), NOW - timedelta(days=15), seen) as url,
        broker_at(url, authority.ca, clock) as broker,
    ):
        with pytest.raises(BrokerUnavailable, match="expired") as raised:
            await broker.probe()
    assert raised.value.remedy == RENEW_REMEDY
    assert seen == []


@pytest.mark.parametrize(
    ("days", "why", "remedy"),
    [((-20, -10), "expired|valid from", RENEW_REMEDY), ((10, 20), "not valid yet|valid from", CLOCK_REMEDY)],
)
@pytest.mark.parametrize("apart_days", [0, 365])
async def test_with_a_known_clock_dates_are_judged_as_ever_and_named(
    authority: Authority, days: tuple[int, int], why: str, remedy: str, apart_days: int
) -> None:
    """By OpenSSL while the system's clock is right; by ours when we know better than that."""
    box = WrongBox(NOW - timedelta(seconds=100) - timedelta(days=apart_days))
    clock, seen = box.clock(), list[web.Request]()
    for who in ("one", "two"):
        clock.offer(datetime.now(UTC), 0.5, Source.GNSS, who)
    assert clock.trust.trusted
    async with (
        a_server(authority.server("127.0.0.1", days=days), NOW, seen) as url,
        broker_at(url, authority.ca, clock) as broker,
    ):
        with pytest.raises(BrokerUnavailable, match=why) as raised:
            await broker.probe()
    assert raised.value.remedy == remedy
    assert seen == []


async def test_the_token_endpoint_is_judged_the_same_way(authority: Authority) -> None:
    clock, identity, seen = WrongBox(EPOCH).clock(), IdentityServer(), list[web.Request]()
    async with a_server(authority.server("127.0.0.1"), datetime(2099, 1, 1, tzinfo=UTC), seen) as token_url:
        way = Way(tls=Tls(ca=str(authority.ca)), timeout=TIMEOUT, dates=Dates(clock))
        with pytest.raises(BrokerUnavailable, match=r"token endpoint: TLS: .*clock of this box") as raised:
            await OAuth2(Grant(token_url, "gw", "topsecret")).headers(way.session, None)
        await way.close()
    assert raised.value.remedy == CLOCK_REMEDY
    assert [request.method for request in seen] == ["HEAD"]
    assert identity.asked == []


async def test_once_the_clock_is_known_dates_are_judged_by_openssl_again_on_the_next_connection(
    authority: Authority,
) -> None:
    clock, seen = WrongBox(NOW - timedelta(seconds=100)).clock(), list[web.Request]()
    way = Way(tls=Tls(ca=str(authority.ca)), timeout=TIMEOUT, dates=Dates(clock))
    async with (
        a_server(authority.server("127.0.0.1"), NOW, seen) as sound,
        a_server(authority.server("127.0.0.1", days=(-20, -10)), NOW, seen) as expired,
    ):
        async with way.session.get(sound) as response:
            assert response.status == 200
        for who in ("one", "two"):
            clock.offer(datetime.now(UTC), 0.5, Source.GNSS, who)
        assert clock.trust.trusted
        await way.renew()
        count = len(seen)
        with pytest.raises(aiohttp.ClientConnectorCertificateError, match="expired"):
            await way.session.get(expired)
        assert len(seen) == count
        async with way.session.get(sound) as response:
            assert response.status == 200
    await way.close()
