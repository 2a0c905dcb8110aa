"""init, schema, templates, drivers: shapes and exit codes."""

import json
from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Command


def test_what_init_writes_passes_check_and_an_existing_file_is_left_alone(citygate: Command, tmp_path: Path) -> None:
    box = tmp_path / "box"
    assert citygate("init", "-c", str(box), "--id", "gw-1", "--city", "milano").code == 0
    checked = citygate("check", "-c", str(box), "--json")
    assert (checked.code, checked.json["problems"]) == (0, [])
    (box / "citygate.yaml").write_text("mine")
    ended = citygate("init", "-c", str(box))
    assert ended.code == 1
    assert "is there already" in ended.err
    assert (box / "citygate.yaml").read_text() == "mine"


def test_the_first_line_of_a_new_config_leads_the_editor_to_the_schema_beside_it(
    citygate: Command, tmp_path: Path
) -> None:
    file = tmp_path / "box.yaml"
    written = citygate("init", "-c", str(file), "--json").json
    assert written == {"config": str(file), "schema": str(tmp_path / "citygate.schema.json")}
    assert file.read_text().startswith("# yaml-language-server: $schema=./citygate.schema.json\n")
    assert json.loads((tmp_path / "citygate.schema.json").read_text())["title"] == "citygate.yaml"


def test_a_folder_that_cannot_be_written_is_named(citygate: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = citygate("init", "-c", str(tmp_path / "file" / "box"))
    assert ended.code == 1
    assert "cannot be written: Not a directory" in ended.err


def test_init_to_standard_output_writes_nothing(citygate: Command, tmp_path: Path) -> None:
    ended = citygate("init", "--stdout", "-c", str(tmp_path / "box"))
    assert ended.code == 0
    assert "gateway:" in ended.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [(), ("--fragment",), ("--template", "serial"), ("--profile",)])
def test_each_schema_is_json(citygate: Command, options: tuple[str, ...]) -> None:
    assert json.loads(citygate("schema", *options).out)["$schema"].startswith("http://json-schema.org/draft-07")


def test_the_schema_knows_the_templates_beside_the_config(citygate: Command, tmp_path: Path) -> None:
    (tmp_path / "templates" / "mine").mkdir(parents=True)
    (tmp_path / "templates" / "mine" / "dust.yaml").write_text("extends: nova/sds011\n")
    assert '"mine/dust"' in citygate("schema", "-c", str(tmp_path)).out


def test_templates_are_listed_with_their_points(citygate: Command, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in citygate("templates", "-c", str(tmp_path), "--json").json}
    assert rows["nova/sds011"]["points"] == ["pm10", "pm2_5"]
    assert set(rows["nova/sds011"]) == {"name", "driver", "vendor", "model", "description", "points"}


def test_a_template_is_shown_with_its_traps(citygate: Command, tmp_path: Path) -> None:
    shown = citygate("templates", "show", "nova/sds011", "-c", str(tmp_path)).out
    assert "pm2_5  pm25  GQ  → pm25" in shown
    assert "beware:" in shown
    assert citygate("templates", "show", "nova/sds01", "-c", str(tmp_path)).code == 2


def test_all_shipped_templates_pass_their_own_test(citygate: Command, tmp_path: Path) -> None:
    checked = citygate("templates", "check", "-c", str(tmp_path), "--json")
    assert [problem for problem in checked.json["problems"] if problem["severity"] == "error"] == []
    assert checked.code == 0
    assert checked.json["samples"] > 10


def test_an_own_template_with_a_wrong_sample_ends_with_1(citygate: Command, tmp_path: Path) -> None:
    folder = tmp_path / "templates" / "mine"
    folder.mkdir(parents=True)
    (folder / "dust.yaml").write_text(
        "extends: nova/sds011\n"
        "samples: [{name: wrong, hex: aac00600060058d93dab, expect: {pm2_5: 0.7}, source: made up}]\n"
    )
    ended = citygate("templates", "check", "mine/dust", "-c", str(tmp_path))
    assert ended.code == 1
    assert "dust.yaml:2:11: error: samples.0: wrong: pm2_5 is 0.6, expected 0.7 [sample-failed]" in ended.err


def test_a_wrong_mapping_of_an_own_template_is_told_with_its_place_in_the_file(
    citygate: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "templates" / "mine"
    folder.mkdir(parents=True)
    (folder / "dust.yaml").write_text("extends: nova/sds011\nentity: {attributes: {pm99: pm10}}\n")
    ended = citygate("templates", "check", "mine/dust", "-c", str(tmp_path))
    assert ended.code == 1
    assert "dust.yaml:2:23: error: entity.attributes.pm99: " in ended.err


def test_check_says_which_template_file_a_device_uses_and_what_is_not_sent(citygate: Command, tmp_path: Path) -> None:
    (tmp_path / "templates" / "nova").mkdir(parents=True)
    own = tmp_path / "templates" / "nova" / "sds011.yaml"
    own.write_text("extends: nova/sds011\nentity: {attributes: {pm10: null}}\n")
    (tmp_path / "citygate.yaml").write_text(
        "version: 1\ngateway: {id: gw, city: milano, location: [9.1, 45.5]}\n"
        "links: {air: {driver: serial, port: /dev/ttyAMA0, devices: {air-1: {template: nova/sds011}}}}\n"
    )
    device = citygate("check", "-c", str(tmp_path), "--json").json["devices"]["air-1"]
    assert device["file"] == str(own)
    assert device["unmapped"] == ["pm10"]
    assert device["entities"] == ["urn:ngsi-ld:AirQualityObserved:milano:gw:air-1"]


def test_drivers_are_listed_with_their_package(citygate: Command) -> None:
    rows = {row["name"]: row for row in citygate("drivers", "--json").json}
    assert rows["serial"]["package"].startswith("citygate ")
    assert rows["serial"]["fault"] == ""
    assert rows["serial"]["templates"] >= 1


def test_check_always_says_what_it_found(citygate: Command, tmp_path: Path) -> None:
    file = tmp_path / "citygate.yaml"
    file.write_text(
        "version: 1\ngateway: {id: gw-1, city: milano, location: [9.159, 45.503]}\n"
        "brokers: {milano: {url: 'https://broker.example'}}\nlinks:\n  roof:\n    driver: modbus\n    host: 192.0.2.1\n"
        "    devices:\n      meter-1: {template: eastron/sdm630, unit_id: 1}\n"
        "      meter-2: {template: eastron/sdm630, unit_id: 2}\n"
    )
    assert citygate("check", "-c", str(file)).out.endswith("1 link, 2 devices, 1 broker: fine: no problem found\n")
    assert citygate("check", "-c", str(file), "--json").json["found"] == "1 link, 2 devices, 1 broker"

    whole = file.read_text()
    file.write_text(whole[: whole.index("      meter-2")])
    assert citygate("check", "-c", str(file)).out.endswith("1 link, 1 device, 1 broker: fine: no problem found\n")

    file.write_text(whole.removesuffix("\n"))
    ended = citygate("check", "-c", str(file))
    assert ended.out.endswith("1 link, 2 devices, 1 broker: 1 warning\n")
    assert "the file ends here without a line end [cut-off]" in ended.err

    file.write_text(whole + "buffer:\n  max_syze: 1 GB\n")
    ended = citygate("check", "-c", str(file))
    assert ended.out.endswith("1 link, 2 devices, 1 broker: 1 error\n")
