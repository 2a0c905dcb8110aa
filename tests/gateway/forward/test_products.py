"""Which product answers: told by what it reveals to few reads, and by nothing that somebody on the way could say."""

import json
from collections.abc import Callable

import pytest

from gateway.forward.broker import LoginFailed, Probe
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.raw import Raw, as_json, http, problem
from tests.support.broker_profiles import PROFILES, OrionLd, Profile, Scorpio, Stellio
from tests.support.strict_broker import StrictBroker

VERTX = http(404, b"<html><body><h1>Resource not found</h1></body></html>", kind="text/html; charset=utf-8")
LINK = b'Link: <https://uri.etsi.org/ngsi-ld/v1/ngsi-ld-core-context-v1.8.jsonld>; rel="http://www.w3.org/ns/json-ld#context"\r\n'
SPRING = as_json(404, {"timestamp": "2026", "path": "/", "status": 404, "error": "Not Found", "requestId": "a-1"})
INFO, VERSION = "/ngsi-ld/v1/info/sourceIdentity", "/ngsi-ld/ex/v1/version"


async def probed(url: str, tenant: str = "") -> Probe:
    broker = NgsiLdBroker(NgsiLdSettings(url, tenant=tenant))
    try:
        return await broker.probe()
    finally:
        await broker.close()


@pytest.mark.parametrize(
    ("profile", "tenant", "told"),
    [
        (Profile(), "", ("", "")),
        (Scorpio(), "", ("scorpio", "")),
        (Scorpio(), "not_there_yet", ("scorpio", "")),
        (Stellio(), "", ("stellio", "")),
        (Stellio(tenants=["milano"]), "milano", ("stellio", "")),
        (Stellio(), "not_configured", ("stellio", "")),
        (OrionLd(), "", ("orion-ld", "1.8.0")),
        (OrionLd(info=False), "", ("orion-ld", "1.8.0")),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_each_product_is_told_by_few_reads(profile: Profile, tenant: str, told: tuple[str, str]) -> None:
    strict = StrictBroker(profile=profile)
    async with strict.serve() as url:
        probe = await probed(url, tenant)
    assert (probe.product, probe.version) == told
    assert len(strict.requests) <= 4
    assert {method for _, method, _, _ in strict.requests} == {"GET"}


async def test_an_orion_is_told_with_its_version_and_where_to_go() -> None:
    strict = StrictBroker(profile="orion")
    async with strict.serve() as url:
        with pytest.raises(BrokerUnavailable, match=r"Orion 4\.7\.0-next speaks NGSIv2.*Service not found") as caught:
            await probed(url)
    assert "NGSI-LD" in caught.value.remedy
    assert "url" in caught.value.remedy
    assert len(strict.requests) == 2


async def test_an_orion_whose_version_is_not_to_be_had_is_one_all_the_same() -> None:
    refused = as_json(400, {"error": "BadRequest", "description": "x"}, headers=b"Fiware-Correlator: 1\r\n")
    async with Raw(lambda what: http(404) if what.endswith("/version") else refused).serve() as url:
        with pytest.raises(BrokerUnavailable, match="Orion speaks NGSIv2"):
            await probed(url)


@pytest.mark.parametrize("headers", [b"", b"Fiware-Correlator: 1\r\n"])
@pytest.mark.parametrize("status", [400, 404, 401, 500])
async def test_who_only_looks_like_orion_is_not_named(status: int, headers: bytes) -> None:
    """A proxy may spell its errors like it; a correlator may stand in front of anything."""
    body = {"error": "BadRequest", "description": "x"} if status in (401, 500) or not headers else {"error": "x"}
    async with Raw(as_json(status, body, headers=headers)).serve() as url:
        with pytest.raises(BrokerUnavailable) as caught:
            await probed(url)
    assert not str(caught.value).startswith("Orion")
    assert isinstance(caught.value, LoginFailed) == (status == 401)


def told_by(info: bytes, *, head: bytes = LINK, further: bytes = http(404)) -> Callable[[str], bytes]:
    """A broker whose answer to `sourceIdentity` is this, and to anything after it `further`."""

    def answer(what: str) -> bytes:
        if what.endswith("sourceIdentity"):
            return info
        return as_json(200, [], headers=head) if "type=Device" in what else further

    return answer


def identity(**members: object) -> bytes:
    return as_json(200, {"id": "x", "type": "ContextSourceIdentity", "contextSourceAlias": "x", **members})


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (told_by(VERTX), ("scorpio", "")),
        (told_by(VERTX, head=b""), ("", "")),  # any service behind Vert.x
        (told_by(VERTX, head=b"Link: <https://city.example/context.jsonld>\r\n"), ("", "")),
        (told_by(http(404, b"<html><body>not found</body></html>", kind="text/html")), ("", "")),  # a proxy's
        (told_by(http(200, b"http://scorpio.example:9090", kind="application/json")), ("scorpio", "")),
        (told_by(http(200, b'"http://scorpio.example:9090"', kind="application/json")), ("scorpio", "")),
        (told_by(http(200, b"http://scorpio.example:9090", kind="text/plain"), head=b""), ("", "")),
        (told_by(http(200, b"<html>log in</html>", kind="text/html")), ("", "")),  # a portal's
        (told_by(http(503, b"http://scorpio.example:9090", kind="text/plain")), ("", "")),
        (told_by(identity(id="http://a:9090", contextSourceAlias="http://a:9090")), ("scorpio", "")),
        (told_by(identity(id="http://a:9090", contextSourceAlias="http://a:9090"), head=b""), ("", "")),
        (told_by(identity(id="http://a:9090", contextSourceAlias="b")), ("", "")),
        (told_by(identity(contextSourceAlias=["x"])), ("", "")),
        (told_by(identity(contextSourceExtras={"Orion-LD version": "1.9.0"})), ("orion-ld", "1.9.0")),
        (told_by(identity(contextSourceExtras={"Orion-LD version": "9" * 99})), ("orion-ld", "9" * 40)),
        (told_by(identity(contextSourceExtras={"version": "4.0.0"})), ("", "")),  # an adapter before an Orion
        (told_by(identity(contextSourceExtras="Orion-LD version")), ("", "")),
        (told_by(http(404), further=as_json(200, {"Orion-LD version": "1.5.1"})), ("orion-ld", "1.5.1")),
        (told_by(http(404), further=as_json(200, {"Orion-LD version": None})), ("", "")),
        (told_by(http(404), further=as_json(200, ["Orion-LD version"])), ("", "")),
        (
            told_by(SPRING, further=as_json(400, problem(instance="/ngsi-ld/v1/entities"))),
            ("stellio", ""),
        ),
        (told_by(SPRING, further=as_json(400, problem())), ("", "")),  # Spring's gateway before another broker
        (told_by(SPRING, further=as_json(400, {"instance": "/ngsi-ld/v1/entities"})), ("", "")),
        (told_by(SPRING, further=as_json(404, problem(instance="/ngsi-ld/v1/entities"))), ("", "")),
        (told_by(as_json(404, {"timestamp": 1, "path": "/", "status": 404}), further=SPRING), ("", "")),
    ],
)
async def test_only_what_one_product_says_names_it(answer: Callable[[str], bytes], told: tuple[str, str]) -> None:
    raw = Raw(answer)
    async with raw.serve() as url:
        probe = await probed(url)
    assert (probe.product, probe.version) == told
    assert probe.temporal
    assert len(raw.requests) <= 4


@pytest.mark.parametrize("fault", ["reset", "hang", "401", "500", "html200"])
async def test_what_cannot_be_learned_is_no_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.forward.ngsild.IDENTIFIED_WITHIN_S", 0.2)
    strict = StrictBroker(profile="orion-ld")
    strict.behaviour.fault, strict.behaviour.path = fault, "/info/"
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        probe = await broker.probe()
        assert (probe.readable, probe.temporal) == (True, False)
        assert probe.product in ("", "orion-ld")  # the other address may tell it
        strict.behaviour.fault = ""
        assert (await broker.probe()).product == "orion-ld"  # asked again
        asked = len(strict.requests)
        assert (await broker.probe()).product == "orion-ld"
        assert len(strict.requests) == asked + 2  # who told its name is not asked for it with every probe
        await broker.close()


async def test_a_product_may_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.forward.ngsild.IDENTITY_AGAIN_S", 0.0)
    strict = StrictBroker(profile="orion-ld")
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        assert (await broker.probe()).product == "orion-ld"
        for name in ("scorpio", "plain"):
            strict.profile = PROFILES[name]()
            assert (await broker.probe()).product == ("" if name == "plain" else name)
        await broker.close()


async def test_a_name_is_a_name_whatever_else_the_server_calls_itself() -> None:
    async with Raw(told_by(http(404), head=b"Server: scorpio/5\r\n")).serve() as url:
        assert (await probed(url)).product == ""


async def test_an_address_that_ends_with_the_api_is_the_same() -> None:
    strict = StrictBroker(profile=OrionLd(info=False))
    async with strict.serve() as url:
        assert (await probed(f"{url}/ngsi-ld/v1/")).product == "orion-ld"
    assert json.dumps([path for _, _, path, _ in strict.requests]).count("/ngsi-ld/ex/v1/version") == 1
