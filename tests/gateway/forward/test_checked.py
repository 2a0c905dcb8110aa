"""What does not fit the official schema never reaches the broker; all else does."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.forward.broker import Outcome, Point, Probe, Traffic
from gateway.forward.checked import Checked
from gateway.harmonise.entity import Attribute, Entity
from gateway.models.catalogue import catalogue
from gateway.models.validator import Validator

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
WEATHER = "https://raw.githubusercontent.com/smart-data-models/dataModel.Weather/master/context.jsonld"


class Open:
    """A broker that takes everything and remembers it."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.traffic = Traffic()

    async def probe(self) -> Probe:
        return Probe(readable=True, temporal=False)

    async def state(self, entities: Sequence[Entity]) -> Outcome:
        self.got += [entity.id for entity in entities]
        return Outcome(accepted=frozenset(entity.id for entity in entities))

    history = state

    async def read_back(self, entities: Sequence[Entity]) -> Mapping[str, Mapping[str, datetime]]:
        return {}

    async def history_back(self, instances: Sequence[Entity]) -> frozenset[Point]:
        return frozenset()

    async def history_newest(self, entities: Sequence[Entity], **_: Any) -> Mapping[str, list[tuple[str, datetime]]]:
        return {}

    async def close(self) -> None: ...


def weather(name: str, humidity: float) -> Entity:
    attributes = {"relativeHumidity": Attribute("property", humidity, "C62", NOON)}
    return Entity(f"urn:ngsi-ld:WeatherObserved:{name}", "WeatherObserved", WEATHER, attributes, name)


@pytest.mark.parametrize("verb", ["state", "history"])
async def test_the_unsound_one_is_refused_with_its_reason_and_the_others_are_sent(verb: str) -> None:
    broker = Open()
    checked = Checked(broker, Validator(catalogue()))
    outcome = await getattr(checked, verb)([weather("a", 0.5), weather("b", 50.0), weather("c", 0.6)])
    assert [name.rpartition(":")[2] for name in broker.got] == ["a", "c"]
    assert outcome.accepted == {"urn:ngsi-ld:WeatherObserved:a", "urn:ngsi-ld:WeatherObserved:c"}
    assert "relativeHumidity" in outcome.refused["urn:ngsi-ld:WeatherObserved:b"]


async def test_nothing_is_asked_of_the_broker_when_nothing_is_sound() -> None:
    broker = Open()
    outcome = await Checked(broker, Validator(catalogue())).state([weather("b", 50.0)])
    assert (broker.got, set(outcome.refused)) == ([], {"urn:ngsi-ld:WeatherObserved:b"})


async def test_sampling_checks_the_first_of_every_entity_and_then_one_in_so_many() -> None:
    broker = Open()
    checked = Checked(broker, Validator(catalogue()), every=3)
    refused = [bool((await checked.state([weather("a", 50.0)])).refused) for _ in range(7)]
    assert refused == [True, False, False, True, False, False, True]


async def test_values_that_the_mapping_left_out_are_counted_by_name_and_the_names_are_bounded() -> None:
    left_out: dict[str, int] = {}
    checked = Checked(Open(), None, left_out=left_out)
    for n in range(40):
        entity = weather(f"s{n}", 0.5)
        await checked.state([dataclasses.replace(entity, dropped={"status": "'broken' is no member"})] * 2)

    assert left_out["s0: status"] == 2
    assert left_out["others"] == 2 * 8
    assert len(left_out) == 33
