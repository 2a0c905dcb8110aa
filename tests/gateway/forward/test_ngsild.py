"""NGSI-LD: every broker's spelling of partial success, what belongs to no entity, requests as the specification wants them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
from aiohttp import web

from gateway.forward.auth import Way
from gateway.forward.broker import InDoubt, LoginFailed, Outcome
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.forward.transport import OfferTime
from gateway.harmonise.entity import Attribute
from gateway.models.refresh import served_at
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.scene import AIR, LOCATION, START, entity_id, measured
from tests.support.strict_broker import StrictBroker

IDS = [entity_id(f"air-{n}") for n in range(4)]
ENTITIES = [measured(f"air-{n}", no2=n) for n in range(4)]
PROBLEM = {"type": "https://uri.etsi.org/ngsi-ld/errors/BadRequestData", "title": "bad", "detail": "no2", "status": 400}
OPENAPI = Path(__file__).parents[2] / "data" / "openapi" / "ngsi-ld-openapi.json"


class Canned:
    """Answers each POST with what the test says; keeps the requests."""

    def __init__(self, *answers: tuple[int, Any, Mapping[str, str]]) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[Mapping[str, str], bytes]] = []

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests.append((dict(request.headers), await request.read()))
        status, body, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(body, str):
            return web.Response(status=status, text=body, content_type="text/html", headers=headers)
        return (
            web.json_response(body, status=status, headers=headers) if body is not None else web.Response(status=status)
        )

    @contextlib.asynccontextmanager
    async def broker(self, *, offer_time: OfferTime | None = None, **settings: Any) -> AsyncIterator[NgsiLdBroker]:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        broker = NgsiLdBroker(NgsiLdSettings(url, **settings), offer_time=offer_time)
        broker._batches.greeted = True  # the first write alone is another test's
        try:
            yield broker
        finally:
            await broker.close()
            await runner.cleanup()


async def outcome_of(status: int, body: Any, **headers: str) -> Outcome:
    async with Canned((status, body, headers)).broker() as broker:
        return await broker.state(ENTITIES)


@pytest.mark.parametrize(
    ("status", "body", "created"),
    [
        (204, None, []),
        (201, IDS[:2], IDS[:2]),
        (201, [IDS[3], "urn:other:1"], IDS[3:]),
        (201, None, IDS),
        (200, IDS, []),
        (207, {"success": IDS, "errors": []}, IDS),
    ],
)
async def test_all_accepted_and_which_may_be_new(status: int, body: Any, created: list[str]) -> None:
    assert await outcome_of(status, body) == Outcome(accepted=frozenset(IDS), created=frozenset(created))


@pytest.mark.parametrize("status", [207, 400, 409])
@pytest.mark.parametrize("id_key", ["entityId", "id"])
@pytest.mark.parametrize("problem_key", ["error", "ProblemDetails"])
@pytest.mark.parametrize("errors_key", ["errors", "error"])
async def test_each_spelling_names_the_refused_one(status: int, id_key: str, problem_key: str, errors_key: str) -> None:
    body = {"success": [IDS[3], IDS[0], IDS[2]], errors_key: [{id_key: IDS[1], problem_key: PROBLEM}]}
    outcome = await outcome_of(status, body)
    assert outcome.accepted == {IDS[0], IDS[2], IDS[3]}
    assert outcome.refused == {IDS[1]: "bad: no2"}
    assert outcome.created == frozenset()


@pytest.mark.parametrize("status", [503, "503", 500, 429])
async def test_an_inner_status_that_may_pass_is_for_later(status: Any) -> None:
    errors = [{"id": IDS[2], "ProblemDetails": {**PROBLEM, "status": status}}]
    outcome = await outcome_of(207, {"success": [IDS[0], IDS[1], IDS[3]], "errors": errors})
    assert outcome.later.keys() == {IDS[2]}
    assert outcome.refused == {}
    assert outcome.fault is None


async def test_an_error_without_an_id_means_the_one_that_did_not_succeed() -> None:
    body = {"success": [IDS[3], IDS[0], IDS[2]], "errors": [{"id": None, "ProblemDetails": PROBLEM}]}
    assert (await outcome_of(207, body)).refused.keys() == {IDS[1]}


async def test_errors_without_ids_are_told_apart_one_by_one() -> None:
    body = {
        "success": IDS[:2],
        "errors": [{"id": None, "ProblemDetails": PROBLEM}, {"id": None, "ProblemDetails": PROBLEM}],
    }
    one = {"errors": [{"id": None, "ProblemDetails": PROBLEM}]}
    async with Canned((207, body, {}), (400, one, {}), (204, None, {})).broker() as broker:
        outcome = await broker.state(ENTITIES)
    assert outcome.refused.keys() == {IDS[2]}
    assert outcome.accepted == {IDS[0], IDS[1], IDS[3]}


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, "<html>welcome to the hotel</html>", "captive portal"),
        (200, {"hello": "world"}, "not a context broker"),
        (302, None, "redirect"),
        (301, "<html>moved</html>", "redirect"),
        (404, "<html>nothing here</html>", "404"),
        (404, {**PROBLEM, "title": "NonexistentTenant", "detail": "x", "status": 404}, "NonexistentTenant"),
        (405, None, "405"),
        (411, None, "411"),
        (415, None, "415"),
        (429, None, "429"),
        (501, None, "501"),
        (502, "<html>bad gateway</html>", "502"),
        (503, None, "503"),
        (504, {**PROBLEM, "title": "LdContextNotAvailable", "detail": "", "status": 504}, "LdContextNotAvailable"),
    ],
)
async def test_what_is_no_entitys_fault_refuses_none(status: int, body: Any, says: str) -> None:
    outcome = await outcome_of(status, body)
    assert outcome.refused == {}
    assert outcome.later.keys() == set(IDS)
    assert isinstance(outcome.fault, BrokerUnavailable)
    assert says in str(outcome.fault)


@pytest.mark.parametrize("status", [401, 403, 407])
async def test_a_login_that_is_refused_is_told_as_such(status: int) -> None:
    assert isinstance((await outcome_of(status, None)).fault, LoginFailed)


async def test_retry_after_is_passed_on() -> None:
    fault = (await outcome_of(503, {"title": "busy"}, **{"Retry-After": "7"})).fault
    assert fault is not None
    assert fault.retry_after_s == 7.0


async def test_a_500_that_one_entity_causes_is_found_after_a_few() -> None:
    strict = StrictBroker()
    strict.behaviour.refuse, strict.behaviour.whole = "air-2$", "500"
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        outcomes = [await broker.state(ENTITIES) for _ in range(4)]
        await broker.close()
    assert outcomes[0].fault is not None
    assert outcomes[-1].fault is None
    assert outcomes[-1].later.keys() == {IDS[2]}
    assert outcomes[-1].accepted == {IDS[0], IDS[1], IDS[3]}


async def test_a_500_of_every_entity_is_the_brokers() -> None:
    async with Canned((500, PROBLEM, {})).broker() as broker:
        outcomes = [await broker.state(ENTITIES) for _ in range(8)]
        asked = broker.traffic.requests
    assert all(outcome.fault is not None for outcome in outcomes)
    assert asked < 40  # the search is not repeated at every try


async def test_one_that_goes_alone_goes_with_the_others_again_when_it_was_accepted() -> None:
    strict = StrictBroker()
    strict.behaviour.refuse, strict.behaviour.whole = "air-2$", "silent"
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        assert (await broker.state(ENTITIES)).refused.keys() == {IDS[2]}
        for refuse, requests in (("air-2$", 2), ("", 2), ("", 1)):
            strict.behaviour.refuse = refuse
            asked = len(strict.bodies)
            assert (await broker.state(ENTITIES)).accepted >= {IDS[0], IDS[1], IDS[3]}
            assert len(strict.bodies) - asked == requests
        await broker.close()


async def test_one_known_for_its_500_says_nothing_of_the_broker() -> None:
    strict = StrictBroker()
    strict.behaviour.refuse, strict.behaviour.whole = "air-2$", "500"
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        while (await broker.state(ENTITIES)).fault is not None:
            assert len(strict.bodies) < 20
        for _ in range(6):
            asked = len(strict.bodies)
            outcome = await broker.state(ENTITIES)
            assert outcome.fault is None
            assert outcome.later.keys() == {IDS[2]}
            assert len(strict.bodies) - asked <= 3  # it is not searched for; a smaller size may be on trial
        strict.behaviour.fault, strict.behaviour.times = "500", 1  # the broker's own, now and then
        asked = len(strict.requests)
        outcome = await broker.state(ENTITIES)
        assert outcome.fault is not None
        assert len(strict.requests) - asked == 1
        await broker.close()


@pytest.mark.parametrize("tries", [3, 4, 9, 20])
async def test_a_broker_that_failed_for_long_is_searched_for_a_culprit_as_soon_as_a_new_one(tries: int) -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        strict.behaviour.fault = "500"
        for _ in range(tries):
            assert (await broker.state(ENTITIES)).fault is not None
        assert len(strict.requests) <= tries + 40
        strict.behaviour.fault = ""
        assert (await broker.state(ENTITIES)).accepted == set(IDS)
        strict.behaviour.fault, strict.behaviour.times = "500", 2
        for _ in range(2):
            asked = len(strict.requests)
            assert (await broker.state(ENTITIES)).fault is not None
            assert len(strict.requests) - asked == 1  # two are no reason to search
        strict.behaviour.refuse, strict.behaviour.whole = "air-2$", "500"
        outcomes = [await broker.state(ENTITIES) for _ in range(3)]
        await broker.close()
    assert outcomes[-1].fault is None
    assert outcomes[-1].accepted == {IDS[0], IDS[1], IDS[3]}


async def test_an_answer_that_does_not_come_makes_the_next_request_smaller() -> None:
    strict = StrictBroker()
    many = [measured(f"air-{n}", no2=n) for n in range(26)]
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url, batch_entities=25), Way(timeout=aiohttp.ClientTimeout(sock_read=0.3)))
        await broker.state(many[:1])
        strict.behaviour.fault, strict.behaviour.times = "reset_stored", 1
        outcome = await broker.state(many)
        assert outcome.doubtful == {entity.id for entity in many[:25]}  # the last one was not sent
        assert outcome.later.keys() == {entity.id for entity in many}
        assert len(strict.bodies) == 2
        await broker.state(many)
        assert len(json.loads(strict.bodies[2])) < 25
        assert broker.traffic.batch < 25
        await broker.close()


async def test_413_makes_requests_smaller_and_a_single_one_waits() -> None:
    strict = StrictBroker()
    strict.behaviour.max_bytes = 500
    big = measured("air-9", no2="x" * 600)
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        outcome = await broker.state([*ENTITIES, big])
        await broker.close()
    assert outcome.accepted == set(IDS)
    assert outcome.later.keys() == {big.id}
    assert outcome.refused == {}


async def test_the_request_is_as_the_specification_wants_it() -> None:
    canned = Canned((204, None, {}))
    async with canned.broker(tenant="milano") as broker:
        await broker.state(ENTITIES)
    [(headers, body)] = canned.requests
    assert headers["Content-Type"] == "application/json"
    assert headers["Content-Length"] == str(len(body))
    assert "Transfer-Encoding" not in headers
    assert "Content-Encoding" not in headers
    assert headers["NGSILD-Tenant"] == "milano"
    assert (
        headers["Link"] == f'<{served_at(AIR)}>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"'
    )
    assert [entity["id"] for entity in json.loads(body)] == IDS


async def test_each_context_has_a_request_of_its_own() -> None:
    other = [measured("air-1", no2=1)]
    other[0] = type(other[0])(
        other[0].id + "-w", "WeatherObserved", AIR.replace("Environment", "Weather"), other[0].attributes, "w"
    )
    canned = Canned((204, None, {}))
    async with canned.broker() as broker:
        await broker.state([ENTITIES[0], other[0], ENTITIES[1]])
    assert [headers["Link"].count("Weather") for headers, _ in canned.requests] == [0, 1]


async def test_nul_never_leaves_the_box_and_what_is_no_json_spoils_nothing() -> None:
    strict = StrictBroker()
    nul = measured("air-7", no2="a\0b\\u0000")
    surrogate = measured("air-8", no2="\ud800")
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        outcome = await broker.state([nul, surrogate, ENTITIES[0]])
        await broker.close()
    assert outcome.refused.keys() == {surrogate.id}
    assert strict.current(nul.id, "no2") == "ab\\u0000"
    assert strict.refusals == []


async def test_history_goes_as_arrays_of_instances_without_touching_the_present() -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        await broker.state([measured("air-0", 100, no2=5)])
        outcome = await broker.history([measured("air-0", n, no2=n) for n in range(3)])
        found = await broker.history_back([measured("air-0", n, no2=n) for n in range(4)])
        await broker.close()
    assert outcome == Outcome(accepted=frozenset({IDS[0]}))
    assert found == {(IDS[0], "no2", START + timedelta(seconds=n)) for n in range(3)}
    assert strict.current(IDS[0], "no2") == 5


async def test_a_stretch_of_one_entity_is_read_once_however_many_updates_it_has() -> None:
    strict = StrictBroker()
    sent = [measured("air-0", n, no2=n) for n in range(50)]
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        await broker.history(sent)
        asked = len(strict.requests)
        assert len(await broker.history_back(sent)) == len(sent)
        assert (await broker.read_back(sent)).keys() == set()
        await broker.close()
    assert len(strict.requests) - asked == 2


async def test_a_broker_is_found_by_ipv6_too() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=204)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "::1", 0).start()
    broker = NgsiLdBroker(NgsiLdSettings(f"http://[::1]:{runner.addresses[0][1]}"))
    outcome = await broker.state(ENTITIES[:1])
    await broker.close()
    await runner.cleanup()
    assert outcome.accepted == {IDS[0]}


async def test_a_request_that_may_have_been_carried_out_is_in_doubt_a_refused_connection_is_not() -> None:
    strict = StrictBroker()
    strict.behaviour.fault = "reset"
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url), Way(timeout=aiohttp.ClientTimeout(total=2.0)))
        doubtful = await broker.state(ENTITIES[:1])
    refused = await broker.state(ENTITIES[:1])
    await broker.close()
    assert isinstance(doubtful.fault, InDoubt)
    assert doubtful.doubtful == {IDS[0]}
    assert refused.doubtful == frozenset()
    assert refused.fault is not None


async def test_the_date_of_a_broker_is_offered_to_the_clock_but_not_a_captive_portals() -> None:
    offered: list[Any] = []

    def offer(at: datetime, within_s: float) -> None:
        offered.append((at, within_s))

    async with Canned((204, None, {})).broker(offer_time=offer) as broker:
        await broker.state(ENTITIES[:1])
        assert [within_s for _, within_s in offered] == [1.0]
    async with Canned((200, "<html/>", {})).broker(offer_time=offer) as broker:
        await broker.state(ENTITIES[:1])
    assert len(offered) == 1


def schema() -> dict[str, Any]:
    """The body of batch upsert in the OpenAPI document, as a JSON Schema by itself."""
    text = OPENAPI.read_text().replace("#/components/schemas/", "#/$defs/")
    document = json.loads(text)
    operation = document["paths"]["/entityOperations/upsert"]["post"]
    body: dict[str, Any] = next(iter(operation["requestBody"]["content"].values()))["schema"]
    schemas = document["components"]["schemas"]
    members = schemas["Property"]["properties"]
    members["value"] = {}  # the document has names of types where schemas must stand
    members["unitCode"] = {"type": "string"}  # the document lets no Property have one; clause 5.2.5 does
    return {**body, "$defs": schemas}


@pytest.mark.parametrize("broken", [False, True])
async def test_request_bodies_fit_the_openapi_document(broken: bool) -> None:
    """The document is of an old edition (1.3): the specification wins, but what we send is in both."""
    canned = Canned((204, None, {}))
    whole = measured("air-1", no2=31.5, on=True, text="a", n=3)
    whole.attributes["location"] = Attribute("geo", LOCATION)
    whole.attributes["refDevice"] = Attribute("relationship", "urn:ngsi-ld:Device:1")
    whole.attributes["dateObserved"] = Attribute("property", START, "", START)
    async with canned.broker() as broker:
        await broker.state([whole, ENTITIES[0]])
    [(_, body)] = canned.requests
    document = json.loads(body)
    if broken:
        document[0]["no2"] = {"value": 1}
    errors = list(jsonschema.Draft202012Validator(schema()).iter_errors(document))
    assert bool(errors) == broken, errors[:1]


async def test_slow_is_not_down() -> None:
    strict = StrictBroker()
    strict.behaviour.delay_s = 0.2
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url), Way(timeout=aiohttp.ClientTimeout(sock_read=2.0)))
        outcome = await asyncio.wait_for(broker.state(ENTITIES), 5.0)
        await broker.close()
    assert outcome.accepted == set(IDS)


# what a history holds


async def test_a_stretch_with_more_than_one_answer_holds_is_asked_in_parts() -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        first, last = [measured("air-0", n, no2=n) for n in (0, 2499)]
        for start in range(0, 2500, 500):
            await broker.history([measured("air-0", n, no2=n) for n in range(start, start + 500)])
            await broker.history([measured("air-1", n, no2=n) for n in range(start, start + 5)])
        asked = len(strict.requests)
        found = await broker.history_back([first, last, measured("air-1", 4, no2=4)])
        assert len(strict.requests) - asked == 3
        assert {at for entity, _, at in found if entity == first.id} == {
            START + timedelta(seconds=n) for n in range(2500)
        }
        assert sum(entity != first.id for entity, _, at in found) == 25
        await broker.close()


async def test_a_thousand_of_one_moment_end_the_question() -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        for _ in range(4):
            await broker.history([measured("air-0", 1, no2=n) for n in range(300)])
        async with asyncio.timeout(5):
            found = await broker.history_back([measured("air-0", n, no2=n) for n in (0, 1)])
        assert found == {(entity_id("air-0"), "no2", START + timedelta(seconds=1))}
        await broker.close()


async def test_the_newest_points_of_some_entities() -> None:
    strict = StrictBroker()
    async with strict.serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        for n in range(5):
            await broker.history([measured("air-0", n, no2=n, pm25=n)])
            await broker.history([measured("air-1", n, no2=n)] * 2)
        both = [measured(f"air-{n}", 0) for n in (0, 1, 2)]
        at = [START + timedelta(seconds=n) for n in range(5)]
        a, b = entity_id("air-0"), entity_id("air-1")
        assert await broker.history_newest(both) == {a: [("no2", at[4]), ("pm25", at[4])], b: [("no2", at[4])]}
        assert await broker.history_newest(both, attributes=["pm25"]) == {a: [("pm25", at[4])]}
        assert await broker.history_newest(both, since=at[4] + timedelta(seconds=1)) == {}
        assert set(await broker.history_newest(both, since=at[4])) == {a, b}  # that one, too
        doubled = await broker.history_newest(both[1:2], last=3)
        assert doubled == {b: [("no2", at[4]), ("no2", at[4]), ("no2", at[3])]}
        await broker.close()
