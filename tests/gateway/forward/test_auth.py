"""Logins: each kind against a server that asks for it; tokens renewed in time; TLS that verifies; a proxy that is used."""

import base64
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from gateway.config.auth import AuthConfig
from gateway.config.model import BrokerConfig
from gateway.forward.auth import RENEW_BEFORE_S, Grant, OAuth2, Static, Tls, Way, basic, bearer
from gateway.forward.broker import LoginFailed, Outcome
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings, broker_of
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.identity import Authority, IdentityServer
from tests.gateway.forward.scene import entity_id, measured
from tests.support.strict_broker import StrictBroker

TIMEOUT = aiohttp.ClientTimeout(total=5.0, sock_connect=1.0, sock_read=2.0)
ENTITY = measured("air-1", no2=1)


async def one_request(url: str, way: Way) -> Outcome:
    broker = NgsiLdBroker(NgsiLdSettings(url), way)
    try:
        return await broker.state([ENTITY])
    finally:
        await broker.close()


@pytest.mark.parametrize(
    ("login", "expected"),
    [
        (basic("gw", "pä:ss"), "Basic " + base64.b64encode("gw:pä:ss".encode()).decode()),
        (bearer("abc"), "Bearer abc"),
        (Static({"Authorization": "ApiKey 7"}), "ApiKey 7"),
    ],
)
async def test_static_logins(login: Static, expected: str) -> None:
    strict = StrictBroker()
    strict.behaviour.token = expected
    async with strict.serve() as url:
        assert (await one_request(url, Way(login=login))).accepted == {ENTITY.id}
        assert isinstance((await one_request(url, Way())).fault, LoginFailed)


async def test_client_credentials_as_keyrock_wants_them() -> None:
    strict, identity = StrictBroker(), IdentityServer()
    strict.behaviour.token = "Bearer token-1"
    async with strict.serve() as url, identity.serve() as token_url:
        login = OAuth2(Grant(token_url, "gw-017", "s3cret", scope="permanent"))
        assert (await one_request(url, Way(login=login))).accepted == {ENTITY.id}
    [(authorization, form)] = identity.asked
    assert authorization == "Basic " + base64.b64encode(b"gw-017:s3cret").decode()
    assert form == {"grant_type": ["client_credentials"], "scope": ["permanent"]}


async def test_the_password_grant() -> None:
    identity = IdentityServer()
    async with identity.serve() as token_url, aiohttp.ClientSession() as session:
        headers = await OAuth2(Grant(token_url, "gw", "s", user="u", password="p")).headers(session, None)
    assert headers == {"Authorization": "Bearer token-1"}
    assert identity.asked[0][1] == {"grant_type": ["password"], "username": ["u"], "password": ["p"]}


async def test_another_header_takes_the_bare_token() -> None:
    identity = IdentityServer()
    async with identity.serve() as token_url, aiohttp.ClientSession() as session:
        headers = await OAuth2(Grant(token_url, "gw", "s", header="X-Auth-Token")).headers(session, None)
    assert headers == {"X-Auth-Token": "token-1"}


@pytest.mark.parametrize(
    ("expires_in", "asked"), [(3600, 1), (RENEW_BEFORE_S + 0.0, 1), (0, 1), ("3600", 1), (None, 1), (1e-9, 3)]
)
async def test_a_token_is_kept_until_shortly_before_its_end(expires_in: object, asked: int) -> None:
    identity = IdentityServer()
    identity.expires_in = expires_in
    async with identity.serve() as token_url, aiohttp.ClientSession() as session:
        login = OAuth2(Grant(token_url, "gw", "s"))
        for _ in range(3):
            await login.headers(session, None)
    assert len(identity.asked) == asked


async def test_a_revoked_token_is_fetched_anew_once_and_no_more() -> None:
    strict, identity = StrictBroker(), IdentityServer()
    identity.tokens = ["old", "new"]
    strict.behaviour.token = "Bearer new"
    async with strict.serve() as url, identity.serve() as token_url:
        assert (
            await one_request(url, Way(login=OAuth2(Grant(token_url, "gw", "s"))))
        ).fault is not None  # fresh: no 2nd
        way = Way(login=OAuth2(Grant(token_url, "gw", "s")))
        broker = NgsiLdBroker(NgsiLdSettings(url), way)
        assert (await broker.state([ENTITY])).accepted
        strict.behaviour.token = "Bearer other"
        asked = len(identity.asked)
        assert isinstance((await broker.state([ENTITY])).fault, LoginFailed)
        assert len(identity.asked) == asked + 1
        await broker.close()


@pytest.mark.parametrize(
    ("status", "kind"), [(401, LoginFailed), (400, LoginFailed), (503, BrokerUnavailable), (302, BrokerUnavailable)]
)
async def test_a_token_endpoint_that_refuses_is_told_from_one_that_is_down(status: int, kind: type[Exception]) -> None:
    identity = IdentityServer()
    identity.status = status
    async with identity.serve() as token_url, aiohttp.ClientSession() as session:
        with pytest.raises(kind, match=f"token endpoint: {status}") as raised:
            await OAuth2(Grant(token_url, "gw", "topsecret")).headers(session, None)
    assert type(raised.value) is kind
    assert "topsecret" not in str(raised.value)


async def test_a_token_endpoint_that_nobody_serves_is_told_with_what_the_system_said() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(BrokerUnavailable, match=r"token endpoint: .*127\.0\.0\.1:9\b"):
            await OAuth2(Grant("http://127.0.0.1:9/token", "gw", "topsecret")).headers(session, None)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


async def test_a_citys_own_ca_is_trusted_when_named_and_only_then(authority: Authority) -> None:
    strict = StrictBroker()
    async with strict.serve(ssl=authority.server("127.0.0.1")) as url:
        assert (await one_request(url, Way(tls=Tls(ca=str(authority.ca))))).accepted
        assert "TLS" in str((await one_request(url, Way())).fault)
        blind = Way(tls=Tls(verify=False))
        assert (await one_request(url, blind)).accepted
        assert "not verified" in NgsiLdBroker(NgsiLdSettings(url), blind).traffic.warning


async def test_mutual_tls_and_a_certificate_that_comes_later(authority: Authority, tmp_path: Path) -> None:
    strict = StrictBroker()
    certificate, key = authority.issue("gw-017.test")
    placed = tmp_path / "gw.pem"
    async with strict.serve(ssl=authority.server("127.0.0.1", clients=True)) as url:
        way = Way(tls=Tls(ca=str(authority.ca), certificate=str(placed), key=str(key)), timeout=TIMEOUT)
        broker = NgsiLdBroker(NgsiLdSettings(url), way)
        fault = str((await broker.state([ENTITY])).fault)
        assert f"TLS files {authority.ca}, {placed}, {key} cannot be used: " in fault
        placed.write_bytes(certificate.read_bytes())
        assert (await broker.state([ENTITY])).accepted == {ENTITY.id}
        await broker.close()
        assert (await one_request(url, Way(tls=Tls(ca=str(authority.ca)), timeout=TIMEOUT))).fault is not None


async def test_a_proxy_is_used_and_the_environment_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def proxy(request: web.Request) -> web.Response:
        seen.append(str(request.url))
        return web.Response(status=204)

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", proxy)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    strict = StrictBroker()
    async with strict.serve() as url:
        assert (await one_request(url, Way())).accepted
        through = Way(proxy=f"http://127.0.0.1:{runner.addresses[0][1]}")
        assert (await one_request("http://broker.city.test", through)).accepted == {entity_id("air-1")}
    await runner.cleanup()
    assert seen == ["http://broker.city.test/ngsi-ld/v1/entityOperations/upsert?options=update"]


async def test_the_operators_file_becomes_a_way() -> None:
    strict, identity = StrictBroker(), IdentityServer()
    strict.behaviour.token = "Bearer token-1"
    async with strict.serve() as url, identity.serve() as token_url:
        auth = {"oauth2": {"token_url": token_url, "client_id": "gw", "client_secret": "s"}}
        config = BrokerConfig.model_validate({"url": url, "tenant": "milano", "auth": auth, "preset": "scorpio"})
        broker = broker_of(config)
        assert (await broker.state([ENTITY])).accepted
        await broker.close()
    assert strict.tenants.keys() == {"milano"}


def test_two_ways_to_log_in_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="choose one"):
        AuthConfig.model_validate({"bearer": "x", "basic": {"user": "u", "password": "p"}})


@pytest.mark.parametrize("written", ["abc", "Bearer abc", "bearer  abc"])
def test_a_token_is_sent_the_same_copied_with_its_word_or_without(written: str) -> None:
    assert AuthConfig.model_validate({"bearer": written}).bearer == "abc"
