"""A login over its life: tokens that end, are revoked, refused, redirected; and that no login is ever told or sent elsewhere."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from gateway.forward.auth import Grant, Login, OAuth2, Static, Way, basic, bearer
from gateway.forward.broker import LoginFailed, ReadRefused
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.hidden import keep_secret
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.identity import IdentityServer
from tests.gateway.forward.raw import ERRORS, Raw, http
from tests.gateway.forward.scene import entity_id, measured
from tests.gateway.forward.test_two_lanes import FAST, Box
from tests.support.strict_broker import StrictBroker

SHORT = aiohttp.ClientTimeout(total=2.0, sock_connect=0.5, sock_read=1.0)
ENTITY = measured("air-0", no2=1)
TEMPORAL = replace(FAST, history="temporal", records=True)
REDIRECTS = pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
SECRET = "hunter2-of-the-gateway"


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


@pytest.mark.parametrize("place", ["another host", "the same host"])
@REDIRECTS
async def test_a_redirected_token_endpoint_gets_the_login_to_nobody(status: int, place: str) -> None:
    identity, elsewhere = IdentityServer(), Raw(http(200, b'{"access_token": "stolen"}'))
    identity.status = status
    async with elsewhere.serve() as other, identity.serve() as token_url, aiohttp.ClientSession() as session:
        identity.headers = {"Location": f"{other}/token" if place == "another host" else "/oauth2/token"}
        login = OAuth2(Grant(token_url, "gw", SECRET, user="u", password="p"))
        for tries in (1, 2):
            with pytest.raises(BrokerUnavailable, match=f"token endpoint: {status}") as caught:
                await login.headers(session, None)
            assert not isinstance(caught.value, LoginFailed)
            assert len(identity.asked) == tries
    assert elsewhere.requests == []


@pytest.mark.parametrize("place", ["another host", "the same host"])
@REDIRECTS
async def test_a_redirected_request_goes_nowhere_neither_with_login_nor_with_data(status: int, place: str) -> None:
    elsewhere = Raw(http(204))
    async with elsewhere.serve() as other:
        to = other if place == "another host" else "/elsewhere"
        front = Raw(http(status, headers=f"Location: {to}\r\n".encode()))
        async with front.serve() as url:
            broker = NgsiLdBroker(NgsiLdSettings(url), Way(login=bearer(SECRET), timeout=SHORT))
            for outcome in (await broker.state([ENTITY]), await broker.history([ENTITY])):
                assert str(outcome.fault).startswith(f"redirect to {to} refused")
                assert not outcome.doubtful
            for read in (broker.probe(), broker.read_back([ENTITY]), broker.history_back([ENTITY])):
                with pytest.raises(BrokerUnavailable, match="redirect to") as caught:
                    await read
                assert not isinstance(caught.value, LoginFailed | ReadRefused)
            await broker.close()
        assert len(front.requests) == 6  # a probe makes two
    assert elsewhere.requests == []


async def test_a_token_is_renewed_before_it_ends_however_the_box_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = IdentityServer()
    identity.tokens, identity.expires_in = ["token-1", "token-2"], 3.0
    async with identity.serve() as token_url, aiohttp.ClientSession() as session:
        login = OAuth2(Grant(token_url, "gw", "s"))
        begun_s = time.monotonic()
        assert await login.headers(session, None) == {"Authorization": "Bearer token-1"}
        for wall_s in (0.0, 4e9):  # 1970, 2096
            with monkeypatch.context() as stepped:
                stepped.setattr(time, "time", lambda wall_s=wall_s: wall_s)
                assert await login.headers(session, None) == {"Authorization": "Bearer token-1"}
        assert len(identity.asked) == 1
        while await login.headers(session, None) == {"Authorization": "Bearer token-1"}:  # noqa: ASYNC110 - its own time
            await asyncio.sleep(0.02)
        assert 1.4 < time.monotonic() - begun_s < 3.0
    assert len(identity.asked) == 2


async def test_a_token_lives_from_when_it_was_asked_for_however_long_the_answer_took() -> None:
    identity = IdentityServer()
    identity.tokens, identity.expires_in, identity.takes_s = ["token-1", "token-2"], 1.6, 0.8
    async with identity.serve() as token_url, aiohttp.ClientSession() as session:
        login = OAuth2(Grant(token_url, "gw", "s"))
        begun_s = time.monotonic()
        assert await login.headers(session, None) == {"Authorization": "Bearer token-1"}
        await asyncio.sleep(max(0.0, begun_s + 0.85 - time.monotonic()))  # half of its life is over
        assert await login.headers(session, None) == {"Authorization": "Bearer token-2"}


async def test_each_revocation_costs_one_token_and_a_token_that_is_refused_at_once_no_second() -> None:
    strict, identity = StrictBroker(), IdentityServer()
    async with strict.serve() as url, identity.serve() as token_url:
        broker = NgsiLdBroker(NgsiLdSettings(url), Way(login=OAuth2(Grant(token_url, "gw", "s")), timeout=SHORT))
        for n in range(3):  # given, taken, revoked, given anew
            identity.tokens, strict.behaviour.token = [f"token-{n}"], f"Bearer token-{n}"
            assert (await broker.state([measured("air-0", n, no2=n)])).accepted
            assert len(identity.asked) == n + 1
        strict.behaviour.token = "Bearer other"
        asked, requests = len(identity.asked), len(strict.requests)
        for tries, tokens in ((1, 1), (2, 1), (3, 2)):  # a fresh one that is refused may be tried once more
            assert isinstance((await broker.state([ENTITY])).fault, LoginFailed)
            assert len(identity.asked) == asked + tokens
            assert len(strict.requests) == requests + tries + 1
        identity.tokens = ["other"]
        assert (await broker.state([measured("air-0", 5, no2=5)])).accepted
        strict.behaviour.token, identity.tokens = "Bearer last", ["last"]
        assert (await broker.state([measured("air-0", 6, no2=6)])).accepted  # once taken, a revocation is one again
        await broker.close()


async def test_a_token_server_that_was_away_is_asked_again_and_the_old_token_is_not_used(box: Box) -> None:
    strict, identity = StrictBroker(), IdentityServer()
    strict.behaviour.token = "Bearer token-1"
    async with strict.serve() as url, identity.serve() as token_url:
        login = OAuth2(Grant(token_url, "gw", "s"))
        async with box.running(url, TEMPORAL, login=login) as health:
            await box.put("air-0", 1, no2=1)
            await strict.until(lambda: box.settled)
            strict.behaviour.token, identity.status = "Bearer token-2", 503
            await box.put("air-0", 2, no2=2)
            await strict.until(lambda: health.state == "down" and "token endpoint: 503" in health.reason)
            since = health.since
            identity.status = 401
            await strict.until(lambda: health.state == "login" and "token endpoint: 401" in health.reason)
            assert health.since != since
            assert "check auth:" in health.remedy
            refused = len([r for r in strict.requests if r[2].endswith("upsert")])
            asked = len(identity.asked)
            await strict.until(lambda: len(identity.asked) > asked + 2)
            assert len([r for r in strict.requests if r[2].endswith("upsert")]) == refused  # not without a token
            identity.status, identity.tokens = 200, ["token-2"]
            await strict.until(lambda: box.settled and health.state == "ok")
            assert (health.reason, health.remedy, health.next_try_at) == ("", "", None)
            assert health.dead == 0


class Echo:
    """A broker that repeats in its answers whatever it was sent; `answer` names the way."""

    def __init__(self) -> None:
        self.answer = "401"

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._reply)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _reply(self, request: web.Request) -> web.Response:
        body = await request.read()
        said = request.headers.get("Authorization", "") + request.headers.get("X-Key", "")
        plain = base64.b64decode(said.removeprefix("Basic ")).decode() if said.startswith("Basic ") else said
        text = f"you said {said}, {plain}; {said.upper()}"
        kind = "BadRequestData" if self.answer in ("400", "207") else "InternalError"
        problem = {"type": ERRORS + kind, "title": text, "detail": text}
        if request.method == "GET" and self.answer in ("400", "207"):
            return web.json_response([])
        if self.answer == "207":
            ids = [entity["id"] for entity in json.loads(body)]
            errors = [{"entityId": i, "error": problem} for i in ids if i == ENTITY.id]
            return web.json_response({"success": [i for i in ids if i != ENTITY.id], "errors": errors}, status=207)
        if self.answer == "400":
            ids = [entity["id"] for entity in json.loads(body)]
            return web.Response(status=204) if ENTITY.id not in ids else web.json_response(problem, status=400)
        if self.answer == "redirect":
            return web.Response(status=302, headers={"Location": f"https://login.example/?t={said}"})
        if self.answer == "gateway":
            return web.json_response({"message": text}, status=502, headers={"Server": f"nginx {plain}"})
        return web.json_response(problem, status=int(self.answer))


LOGINS: dict[str, Callable[[str], Login]] = {
    "basic": lambda _: basic("gw-017", SECRET),
    "bearer": lambda _: bearer(SECRET),
    "header": lambda _: Static({"X-Key": SECRET}),
    "oauth2": lambda url: OAuth2(Grant(url, "gw-017", SECRET)),
}


@pytest.mark.parametrize("answer", ["401", "403", "500", "503", "400", "207", "redirect", "gateway"])
@pytest.mark.parametrize("kind", LOGINS)
async def test_a_login_that_a_broker_repeats_is_shown_nowhere_and_kept_nowhere(
    box: Box, kind: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In reason, remedy, refusing, held reasons, journal; on the card."""
    echo, identity = Echo(), IdentityServer()
    identity.tokens = ["token-of-this-very-run"]
    keep_secret({SECRET})  # as whoever read the config does
    echo.answer = answer
    shown = []
    async with echo.serve() as url, identity.serve() as token_url:
        login = LOGINS[kind](token_url)
        async with asyncio.timeout(8.0), box.running(url, replace(FAST, history="in-order"), login=login) as health:
            await box.put("air-1", 0, no2=0)
            await box.put("air-0", 1, no2=1)
            while not (health.dead if answer in ("400", "207") else health.state in ("down", "login")):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            shown += [asdict(health), *(box.log.held.pieces() if box.log else ())]
            assert "you said" in repr(shown) or answer == "redirect"
    files = b"".join(file.read_bytes() for file in box.settings.path.parent.iterdir())
    everywhere = repr(shown) + capsys.readouterr().out + files.decode("latin-1")
    login_sent = base64.b64encode(f"gw-017:{SECRET}".encode()).decode()
    for secret in (SECRET, SECRET.upper(), login_sent, identity.tokens[0], identity.tokens[0].upper()):
        assert secret not in everywhere


@pytest.mark.parametrize("grant", ["client", "password"])
async def test_a_login_that_the_token_endpoint_repeats_is_not_told(
    box: Box, grant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    strict, identity = StrictBroker(), IdentityServer()
    identity.status, identity.echo = 401, True
    keep_secret({SECRET, "password-of-the-user"})
    user = {"user": "box", "password": "password-of-the-user"} if grant == "password" else {}
    async with strict.serve() as url, identity.serve() as token_url:
        login = OAuth2(Grant(token_url, "gw-017", SECRET, **user))
        async with box.running(url, TEMPORAL, login=login) as health:
            await strict.until(lambda: health.state == "login")
            shown = repr(asdict(health))
    assert "token endpoint: 401 unknown: " in shown
    everywhere = shown + capsys.readouterr().out
    for secret in (SECRET, "password-of-the-user", base64.b64encode(f"gw-017:{SECRET}".encode()).decode()):
        assert secret not in everywhere


async def test_a_token_that_has_ended_is_still_not_told() -> None:
    """A broker's log of yesterday may be quoted today."""
    identity = IdentityServer()
    identity.tokens, identity.expires_in = ["the-first-token", "the-second-token"], 1e-9
    async with identity.serve() as token_url, aiohttp.ClientSession() as session:
        login = OAuth2(Grant(token_url, "gw", "s"))
        await login.headers(session, None)
        await login.headers(session, None)
    body = json.dumps({"type": ERRORS + "InternalError", "title": "the-first-token and the-second-token"}).encode()
    async with Raw(http(503, body, kind="application/json")).serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url), Way(timeout=SHORT))
        outcome = await broker.state([ENTITY])
        await broker.close()
    assert "-token" not in str(outcome.fault)
    assert entity_id("air-0") in outcome.later
