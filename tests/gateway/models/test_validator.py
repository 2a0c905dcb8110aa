"""The product's validator against an independent one, over every official example and over damaged entities."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.models.catalogue import catalogue
from gateway.models.validator import Validator
from tests.support.ngsi import EXAMPLES, schema_errors

OFFICIAL = Validator(catalogue())
RULES = Validator(catalogue(), official=False)
official = pytest.mark.skipif(not OFFICIAL.official, reason="jsonschema-rs is not installed")
NAMES = sorted(folder.name for folder in EXAMPLES.iterdir())


def example(name: str, form: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((EXAMPLES / name / form).read_text())
    body.pop("@context", None)
    return body


def context(name: str) -> str:
    model = catalogue().type(name)
    assert model is not None
    return model.context


@official
@pytest.mark.parametrize("form", ["example.json", "example.jsonld"])
@pytest.mark.parametrize("name", NAMES)
def test_it_agrees_with_an_independent_validator_on_every_official_example(name: str, form: str) -> None:
    body = example(name, form)
    body["type"] = name
    assert (OFFICIAL.faults(body, context(name)) == []) == (schema_errors(body) == [])


SOUND = {
    "id": "urn:ngsi-ld:WeatherObserved:1",
    "type": "WeatherObserved",
    "dateObserved": "2026-06-01T12:00:00Z",
    "location": {"type": "Point", "coordinates": [9.1, 45.5]},
    "temperature": 21.5,
    "relativeHumidity": 0.43,
}


@pytest.mark.parametrize("validator", [OFFICIAL, RULES], ids=["official", "rules"])
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"relativeHumidity": 43}, "relativeHumidity"),
        ({"temperature": "21.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"windDirection": -10}, "windDirection"),
        ({"dateObserved": "2026-06-01T12:00:00"}, "dateObserved"),
        ({"dateObserved": None}, "dateObserved"),
        ({"location": None}, "location"),
    ],
)
def test_a_fault_is_found_and_named(validator: Validator, change: dict[str, Any], word: str) -> None:
    assert validator.faults(SOUND, context("WeatherObserved")) == []
    body = {name: value for name, value in {**SOUND, **change}.items() if value is not None}
    [fault, *_] = validator.faults(body, context("WeatherObserved"))
    assert word in fault


@pytest.mark.parametrize("validator", [OFFICIAL, RULES], ids=["official", "rules"])
def test_an_update_may_lack_what_the_broker_has_but_not_be_wrong(validator: Validator) -> None:
    update = {"id": "urn:x:1", "type": "WeatherObserved", "temperature": 21.5}
    assert validator.faults(update, context("WeatherObserved"))
    assert validator.faults(update, context("WeatherObserved"), whole=False) == []
    assert validator.faults({**update, "relativeHumidity": 43}, context("WeatherObserved"), whole=False)


@official
def test_our_rules_also_see_a_misspelt_name_which_the_schemas_let_pass() -> None:
    assert OFFICIAL.faults({**SOUND, "temprature": 1}, context("WeatherObserved")) == []
    assert RULES.faults({**SOUND, "temprature": 1}, context("WeatherObserved")) == [
        "WeatherObserved has no attribute temprature"
    ]


def test_an_unknown_type_is_a_fault() -> None:
    assert OFFICIAL.faults({"id": "urn:x:1", "type": "Nonsense"}, "https://x.example") == [
        "Nonsense is not a type of the catalogue"
    ]


@given(
    st.sampled_from(sorted(set(SOUND) - {"id", "type"})),
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists),
)
def test_any_value_is_judged_as_the_independent_validator_does(name: str, value: Any) -> None:
    body = {**SOUND, name: value}
    if value == value and value not in (float("inf"), float("-inf")):  # JSON has no NaN
        assert (OFFICIAL.faults(body, context("WeatherObserved")) == []) == (schema_errors(body) == [])
