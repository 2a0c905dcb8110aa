"""`citygate models`: what there is, offline; an extension made, checked and used."""

import json
import shutil
from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Command
from tests.support.ngsi import ROOT

BRIEF = str(ROOT / "config" / "models" / "BenchObserved.yaml")


def test_list_names_the_published_types_with_version_and_what_they_ask_for(citygate: Command) -> None:
    ended = citygate("models", "--json")
    types = {row["type"]: row for row in ended.json}
    assert ended.code == 0
    assert len(types) >= 70
    assert types["AirQualityObserved"]["version"] == "0.1.4"
    assert types["AirQualityObserved"]["mandatory"] == ["dateObserved", "location"]
    assert types["AirQualityObserved"]["licence"] == "CC-BY-4.0"


def test_show_has_units_bounds_terms_and_a_sample_mapping(citygate: Command) -> None:
    shown = citygate("models", "show", "WasteContainer")
    assert shown.code == 0
    assert "fillingLevel" in shown.out
    assert "lidOpen" in shown.out
    assert "sample mapping:" in shown.out
    [model] = citygate("models", "show", "WeatherObserved", "--json").json
    assert model["attributes"]["windDirection"]["allows"] == "0..360"
    assert model["attributes"]["windDirection"]["unit"] == "DD"
    assert model["attributes"]["windDirection"]["iri"].startswith("https://smartdatamodels.org/")


def test_a_misspelt_type_gets_a_hint(citygate: Command) -> None:
    ended = citygate("models", "show", "AirQualityObservd")
    assert ended.code != 0
    assert "did you mean AirQualityObserved?" in ended.err


@pytest.mark.parametrize(
    ("words", "first"),
    [(("soil", "moisture"), {"GreenspaceRecord", "AgriParcelRecord"}), (("parking", "spot"), {"ParkingSpot"}),
     (("noise",), {"NoiseLevelObserved"}), (("charging",), {"EVChargingStation"}), (("groundwater",), {"PhreaticObserved"}), (("bin",), {"WasteContainer"})],
)  # fmt: skip
def test_search_finds_the_type_by_what_it_is_about(citygate: Command, words: tuple[str, ...], first: set[str]) -> None:
    ended = citygate("models", "search", *words, "--json")
    assert ended.code == 0
    assert {row["type"] for row in ended.json[: len(first)]} == first


def test_a_search_without_result_says_what_to_do(citygate: Command) -> None:
    ended = citygate("models", "search", "unicorns")
    assert ended.code == 1
    assert "DeviceMeasurement" in ended.err


def test_a_new_model_is_written_checked_and_listed(citygate: Command, tmp_path: Path) -> None:
    into = str(tmp_path / "models")
    made = citygate("models", "new", BRIEF, "--into", into, "--json")
    assert made.code == 0
    assert any(file.endswith("BenchObserved/schema.json") for file in made.json["files"])
    checked = citygate("models", "check", "--into", into, "--json")
    assert (checked.code, checked.json) == (0, {"ok": True, "models": ["BenchObserved"], "problems": []})
    assert "BenchObserved" in citygate("models", "--into", into).out
    schema = tmp_path / "models" / "dataModel.MilanoFurniture" / "BenchObserved" / "schema.json"
    schema.write_text(schema.read_text().replace("seatedPeople", "seatedPeoples"))
    assert citygate("models", "check", "--into", into).code == 1


def test_a_brief_that_breaks_the_rules_says_every_one(citygate: Command, tmp_path: Path) -> None:
    brief = tmp_path / "brief.yaml"
    brief.write_text(
        Path(BRIEF).read_text().replace("type: BenchObserved", "type: bench").replace("seatTemperature", "seat_T")
    )
    ended = citygate("models", "new", str(brief), "--into", str(tmp_path / "models"))
    assert ended.code == 1
    assert "begins with a capital" in ended.err
    assert "camelCase" in ended.err
    assert citygate("models", "new", str(tmp_path / "nothing.yaml")).code != 0


def test_refreshed_schemas_come_before_the_shipped_ones(citygate: Command, tmp_path: Path) -> None:
    source = tmp_path / "schemas" / "dataModel.Environment"
    source.mkdir(parents=True)
    shipped = ROOT / "gateway" / "models" / "schemas" / "dataModel.Environment"
    shutil.copy(shipped / "context.jsonld", source)
    (source / "NoiseLevelObserved").mkdir()
    schema = json.loads((shipped / "NoiseLevelObserved" / "schema.json").read_text())
    (source / "NoiseLevelObserved" / "schema.json").write_text(json.dumps({**schema, "$schemaVersion": "9.9.9"}))
    into = str(tmp_path / "models")
    assert citygate("models", "refresh", str(tmp_path / "schemas"), "--into", into).code == 0
    [model] = citygate("models", "show", "NoiseLevelObserved", "--into", into, "--json").json
    assert model["version"] == "9.9.9"
    assert citygate("models", "show", "AirQualityObserved", "--into", into).code == 0
    assert citygate("models", "refresh", str(tmp_path), "--into", into).code != 0


def test_quantities_and_units_are_listed_for_who_writes_a_template(citygate: Command) -> None:
    soil = {row["quantity"]: row for row in citygate("models", "quantities", "soil", "--json").json}
    assert soil["soil_moisture"]["unit"] == "P1"
    assert "noise_laeq" not in soil
    pressure = {row["code"] for row in citygate("models", "units", "pressure", "--json").json}
    assert {"PAL", "A97", "BAR"} <= pressure
    assert citygate("models", "units", "parsec").code == 1
    assert "A97" in citygate("models", "units", "hectopascal").out


def test_the_contexts_are_written_as_a_city_has_to_serve_them(citygate: Command, tmp_path: Path) -> None:
    ended = citygate("models", "contexts", str(tmp_path / "www"), "--json")
    assert ended.code == 0
    assert len(ended.json["files"]) >= 18
    for subject in ("dataModel.Environment", "dataModel.Device", "synchronicity"):
        assert str(tmp_path / "www" / subject / "context.jsonld") in ended.json["files"]
    shipped = ROOT / "gateway" / "models" / "schemas" / "dataModel.Environment" / "context.jsonld"
    published = json.loads(shipped.read_text())["@context"]
    written = json.loads((tmp_path / "www" / "dataModel.Environment" / "context.jsonld").read_text())["@context"]
    assert written["no2"] == published["no2"]
    assert set(written) == {term for term, iri in published.items() if term in written}
    assert len(written) >= len(published) - 5


def test_a_context_of_an_own_model_is_written_too(citygate: Command, tmp_path: Path) -> None:
    citygate("models", "new", BRIEF, "--into", str(tmp_path / "models"))
    ended = citygate("models", "contexts", str(tmp_path / "www"), "--into", str(tmp_path / "models"), "--json")
    assert [file for file in ended.json["files"] if "dataModel" not in file and "synchronicity" not in file] or any(
        "Bench" in Path(file).read_text() for file in ended.json["files"]
    )


def test_contexts_go_to_one_folder_that_can_be_written(citygate: Command, tmp_path: Path) -> None:
    assert "takes the folder" in citygate("models", "contexts").err
    (tmp_path / "file").write_text("")
    ended = citygate("models", "contexts", str(tmp_path / "file"))
    assert ended.code != 0
    assert str(tmp_path / "file") in ended.err
