"""The read API, judged by what ETSI GS CIM 009 says about queries, media types, context and errors."""

from datetime import timedelta
from typing import Any

import aiohttp
import pytest

from gateway.harmonise.entity import Attribute
from tests.gateway.http.conftest import Running, Start
from tests.support.fake_view import AIR, ENERGY, NOON, FakeView, air, meter

CONTEXT = "http://www.w3.org/ns/json-ld#context"
ENTITIES = "/ngsi-ld/v1/entities"


async def found(running: Running, query: str = "", **how: Any) -> list[dict[str, Any]]:
    response = await running.get(ENTITIES + query, **how)
    assert response.status == 200, await response.text()
    body: list[dict[str, Any]] = await response.json(content_type=None)
    return body


def numbers(bodies: list[dict[str, Any]]) -> list[int]:
    return [int(body["id"].rpartition(":")[2]) for body in bodies]


async def test_entities_come_normalized_with_time_and_unit(start: Start) -> None:
    async with start(FakeView(meter(1))) as running:
        [body] = await found(running)
    voltage = {"type": "Property", "value": 230.5, "unitCode": "VLT", "observedAt": "2026-06-01T12:00:00Z"}
    assert body == {"id": "urn:ngsi-ld:ACMeasurement:1", "type": "ACMeasurement", "phaseVoltage": voltage}


@pytest.mark.parametrize(
    "query", ["?options=keyValues", "?options=simplified", "?format=simplified", "?format=keyValues"]
)
async def test_simplified_entities_are_plain_values(start: Start, query: str) -> None:
    async with start(FakeView(meter(1))) as running:
        assert (await found(running, query))[0]["phaseVoltage"] == 230.5


async def test_types_ids_and_attributes_choose(start: Start) -> None:
    async with start(FakeView(meter(1), meter(2), air(3))) as running:
        assert numbers(await found(running, "?type=ACMeasurement")) == [1, 2]
        assert numbers(await found(running, "?type=ACMeasurement,AirQualityObserved")) == [1, 2, 3]
        assert numbers(await found(running, "?id=urn:ngsi-ld:ACMeasurement:2")) == [2]
        assert await found(running, "?type=NoSuchType") == []
        [only] = await found(running, "?attrs=pm25")
        assert set(only) == {"id", "type", "pm25"}


async def test_pages_follow_each_other_without_gap_or_repeat(start: Start) -> None:
    async with start(FakeView(*[meter(n) for n in range(9, 0, -1)])) as running:
        seen: list[int] = []
        path = f"{ENTITIES}?limit=4&count=true&type=ACMeasurement"
        while path:
            response = await running.get(path)
            assert response.headers["NGSILD-Results-Count"] == "9"
            seen += numbers(await response.json())
            links = [link for link in response.headers.getall("Link") if 'rel="next"' in link]
            path = links[0].partition("<")[2].partition(">")[0] if links else ""
        assert seen == list(range(1, 10))


async def test_limit_zero_only_counts(start: Start) -> None:
    async with start(FakeView(meter(1))) as running:
        response = await running.get(f"{ENTITIES}?count=true&limit=0")
        assert (await response.json(), response.headers["NGSILD-Results-Count"]) == ([], "1")


async def test_json_names_the_one_context_in_a_link(start: Start) -> None:
    async with start(FakeView(meter(1), meter(2))) as running:
        response = await running.get(ENTITIES)
    assert response.content_type == "application/json"
    assert response.headers.getall("Link") == [f'<{ENERGY}>; rel="{CONTEXT}"; type="application/ld+json"']
    assert all("@context" not in body for body in await response.json())


async def test_json_of_several_models_names_a_context_document_of_the_box_that_lists_them(start: Start) -> None:
    async with start(FakeView(meter(1), air(2))) as running:
        [link] = (await running.get(ENTITIES)).headers.getall("Link")
        document = await running.session.get(link.partition("<")[2].partition(">")[0])
        assert document.content_type == "application/ld+json"
        listed = (await document.json(content_type=None))["@context"]
    assert listed[:2] == [ENERGY, AIR]
    assert listed[-1].startswith("https://uri.etsi.org/ngsi-ld/v1/ngsi-ld-core-context")


async def test_json_ld_carries_the_context_in_each_entity_and_no_link(start: Start) -> None:
    async with start(FakeView(meter(1), air(2))) as running:
        response = await running.get(ENTITIES, headers={"Accept": "application/ld+json"})
        one = await running.get(f"{ENTITIES}/urn:ngsi-ld:ACMeasurement:1", headers={"Accept": "application/ld+json"})
    assert response.content_type == "application/ld+json"
    assert CONTEXT not in str(response.headers)
    assert [body["@context"][0] for body in await response.json(content_type=None)] == [ENERGY, AIR]
    assert (await one.json(content_type=None))["@context"][0] == ENERGY


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/html, application/ld+json;q=0.9, */*;q=0.1", "application/ld+json"),
        ("application/json;q=0.5, application/ld+json", "application/ld+json"),
        ("application/ld+json;q=0, application/json", "application/json"),
        ("application/json;q=0, */*", "application/ld+json"),
        ("*/*;q=nan, application/ld+json;q=0.1", "application/ld+json"),
        ("APPLICATION/JSON", "application/json"),
    ],
)
async def test_accept_chooses_the_media_type(start: Start, accept: str, media: str) -> None:
    async with start(FakeView(meter(1))) as running:
        assert (await running.get(ENTITIES, headers={"Accept": accept})).content_type == media


async def test_a_map_gets_features_where_the_entities_are(start: Start) -> None:
    placed = meter(1)
    point = {"type": "Point", "coordinates": [9.1, 45.5]}
    placed.attributes["location"] = Attribute("geo", point)
    headers = {"Accept": "application/geo+json"}
    async with start(FakeView(placed, air(2))) as running:
        response = await running.get(ENTITIES + "?options=keyValues", headers=headers)
        one = await running.get(f"{ENTITIES}/{placed.id}?options=keyValues", headers=headers)
    assert response.content_type == "application/geo+json"
    body = await response.json(content_type=None)
    assert body["type"] == "FeatureCollection"
    here, nowhere = body["features"]
    assert (here["id"], here["type"], here["geometry"]) == (placed.id, "Feature", point)
    assert here["properties"]["phaseVoltage"] == 230.5
    assert nowhere["geometry"] is None
    assert await one.json(content_type=None) == here


async def test_what_several_devices_know_of_one_entity_is_one_entity(start: Start) -> None:
    first, second = meter(1), meter(1)
    later = NOON + timedelta(seconds=5)
    second.attributes["phaseVoltage"] = Attribute("property", 231.0, unit="VLT", observed_at=later)
    second.attributes["current"] = Attribute("property", 2.0, unit="AMP", observed_at=NOON)
    for order in ((first, second), (second, first)):
        async with start(FakeView(*order)) as running:
            [body] = await found(running, "?options=keyValues")
            one = await running.get(f"{ENTITIES}/{first.id}?options=keyValues")
        assert (body["phaseVoltage"], body["current"]) == (231.0, 2.0)
        assert await one.json() == body


async def test_one_entity_is_found_by_its_id(start: Start) -> None:
    async with start(FakeView(meter(1), meter(2))) as running:
        response = await running.get(f"{ENTITIES}/urn:ngsi-ld:ACMeasurement:2?options=keyValues")
        assert (await response.json())["id"] == "urn:ngsi-ld:ACMeasurement:2"


@pytest.mark.parametrize(
    ("path", "status", "name"),
    [
        ("/urn:ngsi-ld:ACMeasurement:77", 404, "ResourceNotFound"),
        ("/urn:ngsi-ld:ACMeasurement:1?q=x", 400, "InvalidRequest"),
        ("?limit=-1", 400, "BadRequestData"),
        ("?limit=1001", 400, "BadRequestData"),
        ("?limit=ten", 400, "BadRequestData"),
        ("?limit=%D9%A1", 400, "BadRequestData"),  # a digit, but not ours
        ("?limit=" + "9" * 5000, 400, "BadRequestData"),
        ("?offset=1.5", 400, "BadRequestData"),
        ("?options=everything", 400, "BadRequestData"),
        ("?format=concise&options=normalized", 400, "BadRequestData"),
        ("?q=pm25>10", 400, "InvalidRequest"),
        ("?georel=near", 400, "InvalidRequest"),
    ],
)
async def test_a_refusal_is_problem_details(start: Start, path: str, status: int, name: str) -> None:
    async with start(FakeView(meter(1))) as running:
        response = await running.get(ENTITIES + path)
    body = await response.json()
    assert (response.status, body["type"]) == (status, f"https://uri.etsi.org/ngsi-ld/errors/{name}")
    assert body["title"]
    assert body["detail"]


async def test_a_media_type_that_we_do_not_write_is_not_acceptable(start: Start) -> None:
    async with start(FakeView(meter(1))) as running:
        response = await running.get(ENTITIES, headers={"Accept": "text/csv"})
    assert response.status == 406


async def test_nothing_can_be_written(start: Start) -> None:
    async with start(FakeView(meter(1))) as running:
        for method in ("POST", "PATCH", "PUT", "DELETE"):
            async with aiohttp.ClientSession() as session:
                response = await session.request(method, running.server.url.rstrip("/") + ENTITIES, data=b"[]")
                assert response.status == 405
