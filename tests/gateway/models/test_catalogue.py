"""The shipped index is what the shipped schemas say, and its units are ones that exist."""

import json
from typing import Any

import pytest

from gateway.models.catalogue import DEFAULT_VOCABULARY, catalogue
from gateway.models.refresh import index_folder, unit_of
from gateway.sdk.quantities import units
from tests.support.ngsi import ROOT, SCHEMAS

NOT_A_UNIT = {"-1 to +1", "0 to 1", "Total number of bacteria/100mL", "Douglas sea scale", "kW/m2"}
NAMES = catalogue().names()


def test_the_shipped_index_is_made_of_the_shipped_schemas() -> None:
    shipped = json.loads((ROOT / "gateway" / "models" / "index.json").read_text())
    assert shipped == json.loads(json.dumps(index_folder(SCHEMAS))), (
        "run citygate models refresh and put the index in place"
    )


def test_the_published_types_and_the_projects_own_are_there() -> None:
    assert len(NAMES) == 73
    assert {"WasteMeasurement", "synchronicity/EVChargingStation", "EVChargingStation"} <= set(NAMES)
    own = catalogue().type("synchronicity/EVChargingStation")
    assert own is not None
    assert (own.name, own.origin) == ("EVChargingStation", "synchronicity")


@pytest.mark.parametrize("name", NAMES)
def test_units_of_a_type_exist_and_agree_with_its_texts(name: str) -> None:
    model = catalogue().type(name)
    assert model is not None
    assert model.mandatory <= set(model.attributes)
    for attribute, spec in model.attributes.items():
        assert not spec.unit or spec.unit in units(), attribute
        if spec.units_text and spec.units_text not in NOT_A_UNIT and "string" not in spec.json:
            assert spec.unit, f"{attribute}: {spec.units_text}"


def test_a_unit_text_that_is_none_gives_no_code() -> None:
    assert unit_of("Kilometer per hour (Km/h).") == "KMH"
    assert unit_of("volts-ampere-reactive (VAr)") == "D44"
    assert {unit_of(text) for text in NOT_A_UNIT} == {""}


@pytest.mark.parametrize(
    ("type_name", "term", "iri"),
    [
        ("AirQualityObserved", "temperature", "https://smartdatamodels.org/dataModel.Environment/temperature"),
        ("WeatherObserved", "temperature", "https://smartdatamodels.org/dataModel.Weather/temperature"),
        ("AirQualityObserved", "typeOfLocation", DEFAULT_VOCABULARY + "typeOfLocation"),
        ("AirQualityObserved", "location", "https://uri.etsi.org/ngsi-ld/location"),
        ("Device", "value", "https://uri.etsi.org/ngsi-ld/hasValue"),
    ],
)
def test_a_term_means_what_its_subject_says_and_the_core_wins(type_name: str, term: str, iri: str) -> None:
    model: Any = catalogue().type(type_name)
    assert catalogue().iri(model.context, term) == iri
