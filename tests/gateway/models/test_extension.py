"""A city's own model: written from a brief, checked, used like a standard type, and expanded to the terms that were meant."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pyld import jsonld
from referencing import Registry

from gateway.config.model import CityProfile
from gateway.harmonise.compile import compile_device
from gateway.harmonise.dialects import key_values, ngsi_ld
from gateway.harmonise.entity import harmonise
from gateway.models.catalogue import catalogue
from gateway.models.extension import Brief, check_models, extended, faults, read_brief, write_model
from tests.support.ngsi import ROOT, _document, _retrieve, device

SAMPLE = ROOT / "config" / "models" / "BenchObserved.yaml"
HOME = "dataModel.MilanoFurniture/BenchObserved"
NOON_US = 1_780_315_200_000_000


def written(folder: Path, **changes: Any) -> Path:
    text = yaml.safe_dump({**yaml.safe_load(SAMPLE.read_text()), **changes})
    brief_file = folder / "brief.yaml"
    brief_file.write_text(text)
    write_model(read_brief(brief_file), folder / "models", text)
    return folder / "models"


def test_every_file_of_a_contribution_is_there_and_the_check_is_content(tmp_path: Path) -> None:
    models = written(tmp_path)
    found = {str(f.relative_to(models)) for f in models.rglob("*") if f.is_file()}
    assert found == {
        "dataModel.MilanoFurniture/context.jsonld",
        *(f"{HOME}/{name}" for name in ("schema.json", "model.yaml", "CHANGELOG.md", "doc/spec.md")),
        *(f"{HOME}/examples/example{form}" for form in (".json", ".jsonld", "-normalized.json", "-normalized.jsonld")),
    }
    assert check_models(models) == []


def test_a_type_does_not_change_under_the_same_version(tmp_path: Path) -> None:
    models = written(tmp_path)
    before = {file: file.read_bytes() for file in models.rglob("*") if file.is_file()}
    written(tmp_path)  # the same again says the same
    attributes = yaml.safe_load(SAMPLE.read_text())["attributes"]
    fewer = dict(list(attributes.items())[:-1])
    with pytest.raises(ValueError, match=r"0\.0\.1 is there already .* higher `version:`"):
        written(tmp_path, attributes=fewer)
    assert {file: file.read_bytes() for file in models.rglob("*") if file.is_file()} == before
    written(tmp_path, attributes=fewer, version="0.0.2", changes="One fewer.")
    assert json.loads((models / HOME / "schema.json").read_text())["$schemaVersion"] == "0.0.2"


def test_the_schema_is_sound_and_its_examples_are_valid(tmp_path: Path) -> None:
    home = written(tmp_path) / HOME
    schema = json.loads((home / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(
        schema,
        registry=Registry(retrieve=_retrieve),  # type: ignore[call-arg]
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )
    for name in ("example.json", "example.jsonld"):
        assert [e.message for e in validator.iter_errors(json.loads((home / "examples" / name).read_text()))] == []
    example = json.loads((home / "examples" / "example.json").read_text())
    for fault in (
        {"benchState": "broken"},
        {"seatTemperature": 400},
        {"dateLastPainted": "in spring"},
        {"temperature": "warm"},
    ):
        assert list(validator.iter_errors({**example, **fault})), fault
    del example["benchState"]
    assert list(validator.iter_errors(example))


def test_a_config_uses_it_like_a_standard_type_and_every_term_is_the_intended_one(tmp_path: Path) -> None:
    models, problems = extended(written(tmp_path))
    assert problems == ()
    plan = device(
        {
            "seat": {"quantity": "surface_temperature", "unit": "FAH"},
            "air": "air_temperature",
            "ok": "fault",
            "kwh": "active_energy",
        },
        {
            "type": "BenchObserved",
            "attributes": {
                "seatTemperature": "seat",
                "temperature": "air",
                "benchState": {"point": "ok", "translate": {"true": "damaged", "false": "ok"}},
                "charging.usb": "kwh",
            },
            "static": {"refPark": "urn:ngsi-ld:Park:milano:sempione"},
        },
    )
    [table], problems = compile_device(plan, gateway_id="gw", city="milano", profile=CityProfile(), models=models)
    assert problems == ()
    entity = harmonise(
        table, {"seat": (86.0, NOON_US), "air": (21.5, NOON_US), "ok": (False, NOON_US), "kwh": (3.5, NOON_US)}
    )
    assert entity.attributes["seatTemperature"].value == pytest.approx(30.0)
    assert entity.attributes["seatTemperature"].unit == "CEL"
    assert entity.attributes["charging"].value == {"usb": 3.5}
    assert entity.attributes["charging"].unit == "KWH"
    assert entity.context == "https://models.milano.example/furniture/context.jsonld"
    assert key_values(entity)["benchState"] == "ok"

    context = json.loads((tmp_path / "models" / "dataModel.MilanoFurniture" / "context.jsonld").read_text())

    def load(url: str, _: Any) -> dict[str, Any]:
        document = context if url == entity.context else _document(url)
        return {"contextUrl": None, "documentUrl": url, "document": document, "contentType": "application/ld+json"}

    core = "https://uri.etsi.org/ngsi-ld/v1/ngsi-ld-core-context-v1.9.jsonld"
    [expanded] = jsonld.expand({**ngsi_ld(entity), "@context": [entity.context, core]}, {"documentLoader": load})
    assert expanded["@type"] == ["https://models.milano.example/furniture/BenchObserved"]
    assert {
        "https://models.milano.example/furniture/seatTemperature",
        "https://models.milano.example/furniture/benchState",
        "https://models.milano.example/furniture/refPark",
        "https://smartdatamodels.org/dataModel.Weather/temperature",  # kept with its meaning from the base
        "https://smartdatamodels.org/dateObserved",
        "https://uri.etsi.org/ngsi-ld/location",
    } <= set(expanded)
    assert not [iri for iri in expanded if "default-context" in iri]


def test_mistakes_in_the_use_of_an_extension_are_found_like_any_other(tmp_path: Path) -> None:
    models, _ = extended(written(tmp_path))
    plan = device({"t": "air_temperature"}, {"type": "BenchObserved", "attributes": {"seatTemprature": "t"}})
    _, problems = compile_device(plan, gateway_id="gw", city="milano", profile=CityProfile(), models=models)
    assert {(p.code, p.remedy) for p in problems} >= {("mapping-attribute", "did you mean seatTemperature?")}
    assert any("benchState" in p.message for p in problems if p.code == "mapping-mandatory")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"type": "benchObserved"}, "begins with a capital"),
        ({"type": "WeatherObserved"}, "is a published model"),
        ({"subject": "dataModel.Weather"}, "programme's own"),
        ({"subject": "../up"}, "subject ../up"),
        ({"extends": "WetherObserved"}, "did you mean WeatherObserved"),
        ({"vocabulary": "https://models.milano.example"}, "must end in"),
        ({"context": "context.jsonld"}, "not a URL"),
        ({"mandatory": ["benchColour"]}, "neither the base nor this model"),
        ({"attributes": {"Seat": {"description": "x"}}}, "camelCase"),
        ({"attributes": {"seat_temp": {"description": "x"}}}, "camelCase"),
        ({"attributes": {"temperature": {"description": "x"}}}, "has it already"),
        ({"attributes": {"value": {"description": "x"}}}, "core context"),
        ({"attributes": {"painted": {"type": "datetime", "description": "x"}}}, "begin with date"),
        ({"attributes": {"park": {"type": "relationship", "description": "x"}}}, "begin with ref"),
        ({"attributes": {"heat": {"unit": "HPA", "description": "x"}}}, "HPA is not a unit"),
        ({"attributes": {"mood": {"type": "text", "enum": ["good"], "example": "bad", "description": "x"}}}, "not in the enum"),
        ({"attributes": {"heat": {"maximum": 1, "example": 2, "description": "x"}}}, "above the maximum"),
    ],
)  # fmt: skip
def test_the_naming_rules_of_the_programme_are_kept(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    content = {**yaml.safe_load(SAMPLE.read_text()), "mandatory": [], **change}
    assert any(said in fault for fault in faults(Brief.model_validate(content), catalogue()))
    kept = {"mandatory": [], **change}
    with pytest.raises(ValueError, match=r".+"):
        written(tmp_path, **kept)
    assert not (tmp_path / "models").exists()


def test_a_second_type_of_the_subject_shares_the_context_and_may_not_bend_its_terms(tmp_path: Path) -> None:
    models = written(tmp_path)
    written(
        tmp_path,
        type="TableObserved",
        extends=None,
        mandatory=[],
        attributes={"tableLength": {"description": "length", "unit": "MTR"}},
    )
    context = json.loads((models / "dataModel.MilanoFurniture" / "context.jsonld").read_text())["@context"]
    assert {"BenchObserved", "TableObserved", "seatTemperature", "tableLength"} <= set(context)
    assert check_models(models) == []
    with pytest.raises(ValueError, match="seatTemperature already means"):
        written(
            tmp_path,
            type="ChairObserved",
            attributes={"seatTemperature": {"description": "x", "iri": "https://other.example/t"}},
            mandatory=[],
        )


def test_a_new_version_keeps_the_changelog(tmp_path: Path) -> None:
    written(tmp_path)
    models = written(tmp_path, version="0.0.2", changes="Sockets are measured.")
    text = (models / HOME / "CHANGELOG.md").read_text()
    assert text.index("## 0.0.2") < text.index("## 0.0.1")
    assert check_models(models) == []


def test_the_check_finds_what_was_changed_by_hand(tmp_path: Path) -> None:
    models = written(tmp_path)
    schema = models / HOME / "schema.json"
    schema.write_text(schema.read_text().replace("120", "1200"))
    (models / HOME / "doc" / "spec.md").unlink()
    assert {(Path(p.file).name, p.message) for p in check_models(models)} == {
        ("schema.json", "is not what model.yaml says"),
        ("spec.md", "is missing"),
    }


@pytest.mark.parametrize("text", ["{", "[]", "type: 1\nattributes: {}\n", "{}"])
def test_a_broken_model_is_a_problem_and_not_a_crash(text: str, tmp_path: Path) -> None:
    models = written(tmp_path)
    (models / HOME / "model.yaml").write_text(text)
    _, problems = extended(models)
    assert problems
    (models / HOME / "schema.json").write_text(text)
    _, problems = extended(models)
    assert problems


def test_no_folder_is_no_problem(tmp_path: Path) -> None:
    assert extended(tmp_path / "models") == (catalogue(), ())


def test_a_folder_that_did_not_change_gives_an_equal_catalogue(tmp_path: Path) -> None:
    models = written(tmp_path)
    first, _ = extended(models)
    first.type("BenchObserved")
    assert extended(models)[0] == first, "else every reload would restart every broker"
    written(tmp_path, version="0.0.2")
    assert extended(models)[0] != first
