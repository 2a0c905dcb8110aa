"""The judge judged: requests written by hand from the specification, sent as raw bytes, no client code involved."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.forward.by_hand import AIR, ID, JSON, JSON_LD, LINK, UPSERT, entity, no2, send
from tests.gateway.forward.scene import dumps
from tests.support.strict_broker import Behaviour, StrictBroker


@pytest.fixture
async def broker() -> AsyncIterator[tuple[StrictBroker, str]]:
    strict = StrictBroker()
    async with strict.serve() as url:
        yield strict, url


REFUSED_REQUESTS = {
    "no content type": (415, ["X-None: 1"], dumps([entity()])),
    "text/plain": (415, ["Content-Type: text/plain"], dumps([entity()])),
    "json with @context in the body": (400, [JSON], dumps([entity(**{"@context": AIR})])),
    "ld+json with a Link header": (400, [JSON_LD, LINK], dumps([entity(**{"@context": AIR})])),
    "a Link header that is no link": (400, [JSON, "Link: " + AIR], dumps([entity()])),
    "a Link header of another relation": (400, [JSON, f'Link: <{AIR}>; rel="next"'], dumps([entity()])),
    "broken JSON": (400, [JSON], b'[{"id": '),
    "NaN": (400, [JSON], dumps([entity(no2=no2(value=float("nan")))])),
    "a name twice in an object": (400, [JSON], dumps([entity()]).replace(b'"value": 31.5', b'"value": 1, "value": 2')),
    "U+0000 in a string": (400, [JSON], dumps([entity(no2=no2(value="a\0b"))])),
    "no UTF-8": (400, [JSON], dumps([entity(no2=no2(value="X"))]).replace(b'"X"', b'"\xff"')),
    "an object instead of an array": (400, [JSON], dumps(entity())),
    "an empty array": (400, [JSON], b"[]"),
    "a null item": (400, [JSON], dumps([entity(), None])),
    "a compressed body": (400, [JSON, "Content-Encoding: gzip"], dumps([entity()])),
    "an answer format nobody writes": (406, [JSON, "Accept: text/html"], dumps([entity()])),
    "a tenant name with a space": (400, [JSON, "NGSILD-Tenant: a b"], dumps([entity()])),
}


@pytest.mark.parametrize("name", REFUSED_REQUESTS)
async def test_a_malformed_request_is_refused_and_stores_nothing(broker: tuple[StrictBroker, str], name: str) -> None:
    strict, url = broker
    status, headers, body = REFUSED_REQUESTS[name]

    assert (await send(url, "POST", UPSERT, *headers, body=body))[0] == status
    assert strict.history() == []
    assert strict.refusals


REFUSED_ENTITIES = {
    "no id": entity(id=...),
    "id is no URI": entity(id="air-1"),
    "id with a space": entity(id="urn:ngsi-ld:AirQualityObserved:air 1"),
    "no type": entity(type=...),
    "a type that is no name": entity(type="Air Quality"),
    "an attribute that is null": entity(no2=None),
    "an attribute name with a dash": entity(**{"Cr-III": no2()}),
    "a Property without value": entity(no2=no2(value=...)),
    "a value of null": entity(no2=no2(value=None)),
    "an unknown type of attribute": entity(no2=no2(type="Measurement")),
    "observedAt without a zone": entity(no2=no2(observedAt="2026-06-01T12:00:00")),
    "observedAt with an offset": entity(no2=no2(observedAt="2026-06-01T12:00:00+01:00")),
    "observedAt as a number": entity(no2=no2(observedAt=1780315200)),
    "observedAt of a day that is none": entity(no2=no2(observedAt="2026-02-30T12:00:00Z")),
    "observedAt with nanoseconds": entity(no2=no2(observedAt="2026-06-01T12:00:00.123456789Z")),
    "a unit code that is a number": entity(no2=no2(unitCode=61)),
    "a dataset that is no URI": entity(no2=no2(datasetId="raw")),
    "a dataset twice": entity(no2=[no2(), no2(value=3)]),
    "a Relationship without object": entity(refDevice={"type": "Relationship"}),
    "a Relationship to no URI": entity(refDevice={"type": "Relationship", "object": "device-1"}),
    "a point without coordinates": entity(location={"type": "GeoProperty", "value": {"type": "Point"}}),
    "latitude before longitude": entity(
        location={"type": "GeoProperty", "value": {"type": "Point", "coordinates": [45.5, 109.159]}}
    ),
    "coordinates that are texts": entity(
        location={"type": "GeoProperty", "value": {"type": "Point", "coordinates": ["9.1", "45.5"]}}
    ),
    "a location that is no geometry": entity(location={"type": "GeoProperty", "value": "Milano"}),
    "a languageMap that is a text": entity(name={"type": "LanguageProperty", "languageMap": "Bovisa"}),
    "a sub-property without value": entity(no2=no2(reliability={"type": "Property"})),
}


@pytest.mark.parametrize("name", REFUSED_ENTITIES)
async def test_a_malformed_entity_is_refused_alone(broker: tuple[StrictBroker, str], name: str) -> None:
    strict, url = broker
    good = entity(id=ID + "-good")

    status, answer = await send(url, "POST", UPSERT, JSON, LINK, body=dumps([good, REFUSED_ENTITIES[name]]))

    assert status == 207
    assert answer["success"] == [good["id"]]
    [error] = answer["errors"]
    assert error["entityId"] == REFUSED_ENTITIES[name].get("id")
    assert error["error"]["status"] == 400
    assert [key[0] for key in strict.history()] == [good["id"]]


async def test_ld_json_without_context_is_refused(broker: tuple[StrictBroker, str]) -> None:
    _, url = broker
    assert (await send(url, "POST", UPSERT, JSON_LD, body=dumps([entity()])))[0] == 207


async def test_a_chunked_body_is_refused(broker: tuple[StrictBroker, str]) -> None:
    _, url = broker
    content = dumps([entity()])
    body = f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"
    status, _ = await send(url, "POST", UPSERT, JSON, "Transfer-Encoding: chunked", body=body, length=False)
    assert status == 411


async def test_unknown_paths_methods_and_options_are_refused(broker: tuple[StrictBroker, str]) -> None:
    _, url = broker
    body = dumps([entity()])
    assert (await send(url, "POST", "/v2/op/update", JSON, body=body))[0] == 404
    assert (await send(url, "PUT", UPSERT, JSON, body=body))[0] == 405
    assert (await send(url, "POST", UPSERT.replace("update", "upddate"), JSON, body=body))[0] == 400
    assert (await send(url, "GET", "/ngsi-ld/v1/entities?limit=5"))[0] == 400
    assert (await send(url, "GET", "/ngsi-ld/v1/entities?type=T&limit=5000"))[0] == 403


async def test_bodies_beyond_the_limit_are_refused(broker: tuple[StrictBroker, str]) -> None:
    strict, url = broker
    strict.behaviour.max_bytes = 100
    assert (await send(url, "POST", UPSERT, JSON, body=dumps([entity()])))[0] == 413


async def test_created_then_updated_then_read(broker: tuple[StrictBroker, str]) -> None:
    strict, url = broker
    later = entity(no2=no2(value=32.0, observedAt="2026-06-01T12:01:00Z"))

    assert await send(url, "POST", UPSERT, JSON, LINK, body=dumps([entity()])) == (201, [ID])
    assert await send(url, "POST", UPSERT, JSON, LINK, body=dumps([later])) == (204, None)
    status, [read] = await send(url, "GET", f"/ngsi-ld/v1/entities?type=AirQualityObserved&id={ID}", LINK)

    assert (status, read["no2"]["value"]) == (200, 32.0)
    assert strict.current(ID, "no2") == 32.0
    assert [key[2:] for key in strict.history()] == [("2026-06-01T12:00:00Z", 31.5), ("2026-06-01T12:01:00Z", 32.0)]
    assert strict.backwards == []


async def test_repeats_are_kept_and_a_step_back_is_seen(broker: tuple[StrictBroker, str]) -> None:
    strict, url = broker
    newer = entity(no2=no2(observedAt="2026-06-01T13:00:00Z"))
    for item in (newer, entity(), entity()):
        await send(url, "POST", UPSERT, JSON, LINK, body=dumps([item]))

    assert len(strict.history()) == 3
    [(value, replaced)] = strict.backwards
    assert (value.observed_at, replaced) == ("2026-06-01T12:00:00Z", "2026-06-01T13:00:00Z")


async def test_without_update_an_entity_is_replaced(broker: tuple[StrictBroker, str]) -> None:
    strict, url = broker
    await send(url, "POST", UPSERT, JSON, LINK, body=dumps([entity()]))
    await send(url, "POST", UPSERT.split("?")[0], JSON, LINK, body=dumps([entity(no2=..., o3=no2())]))
    assert set(strict.state(ID)) == {"id", "type", "o3"}


async def test_it_fails_as_told_and_recovers(broker: tuple[StrictBroker, str]) -> None:
    strict, url = broker
    strict.behaviour.fault, strict.behaviour.times = "503", 1
    body = dumps([entity()])
    assert (await send(url, "POST", UPSERT, JSON, body=body))[0] == 503
    assert strict.history() == []
    assert (await send(url, "POST", UPSERT, JSON, body=body))[0] == 201


async def test_history_is_served_as_a_temporal_api_does(broker: tuple[StrictBroker, str]) -> None:
    strict, url = broker
    await send(url, "POST", UPSERT, JSON, LINK, body=dumps([entity()]))
    late = entity(
        no2=[no2(value=1, observedAt="2026-06-01T11:00:00Z"), no2(value=2, observedAt="2026-06-01T11:30:00Z")]
    )
    assert (await send(url, "POST", "/ngsi-ld/v1/temporal/entities", JSON, LINK, body=dumps(late)))[0] == 204
    window = "timerel=between&timeAt=2026-06-01T11:15:00Z&endTimeAt=2026-06-01T12:00:00Z"

    status, answer = await send(url, "GET", f"/ngsi-ld/v1/temporal/entities/{ID}?attrs=no2&{window}")

    assert status == 200
    assert [point["value"] for point in answer["no2"]] == [31.5, 2]
    assert strict.current(ID, "no2") == 31.5
    assert len(strict.temporal_history()) == 3


async def test_an_instance_of_the_past_without_time_is_refused(broker: tuple[StrictBroker, str]) -> None:
    _, url = broker
    late = entity(no2=[no2(observedAt=...)])
    assert (await send(url, "POST", "/ngsi-ld/v1/temporal/entities", JSON, LINK, body=dumps(late)))[0] == 400


def test_as_a_process_it_prints_its_port_and_records_each_value(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    command = [sys.executable, "-m", "tests.support.strict_broker", "--port", "0", "--record", str(record)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            body = dumps([entity()])
            assert asyncio.run(send(f"http://127.0.0.1:{port}", "POST", UPSERT, JSON, LINK, body=body))[0] == 201
        finally:
            process.terminate()
    [line] = map(json.loads, record.read_text().splitlines())
    assert (line["entity"], line["attribute"], line["value"], line["backwards"]) == (ID, "no2", 31.5, False)


def test_a_behaviour_starts_without_fault() -> None:
    assert Behaviour().fault == ""
