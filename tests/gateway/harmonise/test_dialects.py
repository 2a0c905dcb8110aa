"""One entity in the forms that brokers take."""

from datetime import UTC, datetime

from gateway.harmonise.dialects import concise, key_values, ngsi_ld, ngsi_v2, wire_time
from gateway.harmonise.entity import Attribute, Entity

NOON = datetime(2026, 6, 1, 12, 0, 0, 123_456, tzinfo=UTC)
RAW = "urn:ngsi-ld:dataset:raw"


def entity(**attributes: Attribute) -> Entity:
    return Entity("urn:ngsi-ld:T:1", "T", "https://c.example/context.jsonld", dict(attributes), "dev")


def test_times_are_utc_with_z_and_keep_microseconds() -> None:
    assert wire_time(NOON) == "2026-06-01T12:00:00.123456Z"
    assert wire_time(NOON.replace(microsecond=0)) == "2026-06-01T12:00:00Z"


def test_sub_properties_stand_inside_their_property() -> None:
    sub = {"reliability": Attribute("property", 0.9)}
    body = ngsi_ld(entity(a=Attribute("property", 1, "CEL", NOON, sub)))
    assert body["a"]["reliability"] == {"type": "Property", "value": 0.9}


def test_instances_with_dataset_ids_become_an_array_in_ld_and_the_default_one_elsewhere() -> None:
    several = Entity("urn:x:1", "T", "", {
        "a": Attribute("property", 1), f"a {RAW}": Attribute("property", 2, dataset_id=RAW)}, "dev")  # fmt: skip
    assert ngsi_ld(several)["a"] == [
        {"type": "Property", "value": 1},
        {"type": "Property", "value": 2, "datasetId": RAW},
    ]
    assert key_values(several)["a"] == 1
    assert ngsi_v2(several)["a"]["value"] == 1


def test_several_targets_of_a_relationship_are_instances_told_apart() -> None:
    body = ngsi_ld(entity(refDevice=Attribute("relationship", ["urn:d:1", "urn:d:2"])))
    assert body["refDevice"] == [
        {"type": "Relationship", "object": "urn:d:1"},
        {"type": "Relationship", "object": "urn:d:2", "datasetId": "urn:d:2"},
    ]
    assert ngsi_ld(entity(refDevice=Attribute("relationship", ["urn:d:1"])))["refDevice"]["object"] == "urn:d:1"


def test_concise_keeps_what_cannot_be_left_out() -> None:
    body = concise(
        entity(
            alone=Attribute("property", 7),
            measured=Attribute("property", 21.5, "CEL", NOON),
            place=Attribute("geo", {"type": "Point", "coordinates": [9.1, 45.5]}),
            structure=Attribute("property", {"L1": 1.0}),
            ref=Attribute("relationship", "urn:d:1"),
        )
    )
    assert body["alone"] == 7
    assert body["measured"] == {"value": 21.5, "unitCode": "CEL", "observedAt": "2026-06-01T12:00:00.123456Z"}
    assert body["place"] == {"type": "Point", "coordinates": [9.1, 45.5]}
    assert body["structure"] == {"value": {"L1": 1.0}}
    assert body["ref"] == {"object": "urn:d:1"}


def test_ngsi_v2_has_time_and_unit_as_metadata_and_a_time_instant() -> None:
    body = ngsi_v2(
        entity(
            t=Attribute("property", 21.5, "CEL", NOON),
            open=Attribute("property", False),
            zero=Attribute("property", 0),
            place=Attribute("geo", {"type": "Point", "coordinates": [9.1, 45.5]}),
            ref=Attribute("relationship", "urn:d:1"),
            when=Attribute("property", NOON),
        )
    )
    stamp = {"type": "DateTime", "value": "2026-06-01T12:00:00.123Z"}
    assert body["t"] == {
        "type": "Number",
        "value": 21.5,
        "metadata": {"unitCode": {"type": "Text", "value": "CEL"}, "TimeInstant": stamp},
    }
    assert body["TimeInstant"] == {**stamp, "metadata": {}}
    assert (body["open"]["type"], body["open"]["value"]) == ("Boolean", False)
    assert (body["zero"]["type"], body["zero"]["value"]) == ("Number", 0)
    assert type(body["zero"]["value"]) is int, "0 must not be exported as false"
    assert body["place"]["type"] == "geo:json"
    assert body["ref"] == {"type": "Relationship", "value": "urn:d:1", "metadata": {}}
    assert body["when"]["type"] == "DateTime"
    assert "@context" not in body


def test_ngsi_v2_marks_texts_with_characters_that_orion_forbids() -> None:
    body = ngsi_v2(entity(flow=Attribute("property", "3h < 6h"), plain=Attribute("property", "ok")))
    assert body["flow"] == {"type": "TextUnrestricted", "value": "3h < 6h", "metadata": {}}
    assert body["plain"]["type"] == "Text"
