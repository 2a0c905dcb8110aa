"""`check DIR…`: every box below some folders, and what two of them must not both have."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.cli.conftest import Command
from tests.support.rights import without_root

BASE = """\
version: 1
gateway: {city: milano}
links:
  air: {driver: serial, port: /dev/ttyAMA0, devices: {air-1: {template: nova/sds011}}}
brokers:
  milano: {url: "https://broker.milano.example", tenant: one, auth: {basic: {user: fleet, password: !secret fleet}}}
"""


def box(number: int, more: str = "", *, base: str = "base.yaml", id: str = "", place: str = "") -> str:
    return f"base: {base}\ngateway: {{id: {id or f'gw-{number}'}, location: {place or f'[9.{number}, 45.5]'}}}\n{more}"


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, where the command stands."""
    monkeypatch.chdir(tmp_path)
    return written(tmp_path / "boxes", {"base.yaml": BASE})


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def between(answer: Any) -> list[tuple[str, str, str, int]]:
    return [(p["code"], p["severity"], p["file"], p["line"]) for p in answer["problems"]]


def test_boxes_that_are_fine_are_one_line(citygate: Command, boxes: Path) -> None:
    written(
        boxes,
        {
            "a.yaml": box(1),
            "north/b/citygate.yaml": box(2, base="../../base.yaml"),
            "north/c.yml": box(3, base="../base.yaml"),
        },
    )
    ended = citygate("check", "boxes")
    assert (ended.code, ended.out, ended.err) == (0, "3 boxes, 3 devices: all fine\n", "")
    rows = citygate("check", "boxes", "--json").json
    assert [(row["name"], row["ok"], row["gateway"], row["devices"]) for row in rows["boxes"]] == [
        ("boxes/a.yaml", True, "gw-1", 1),
        ("boxes/north/b", True, "gw-2", 1),
        ("boxes/north/c.yml", True, "gw-3", 1),
    ]
    assert rows["boxes"][1]["files"] == ["boxes/north/b/citygate.yaml", "boxes/base.yaml"]
    assert (rows["ok"], rows["problems"], rows["left_out"]) == (True, [], [])


def test_each_box_with_a_problem_has_a_line_and_a_problem_of_several_is_told_once(
    citygate: Command, boxes: Path
) -> None:
    written(boxes, {"a.yaml": box(1), "b.yaml": box(2, "http: {listn: x}\n"), "c.yaml": "a: [\n", "d.yaml": box(3)})
    ended = citygate("check", "boxes")
    assert ended.code == 3
    assert ended.out.splitlines() == [
        "boxes/b.yaml: 1 error",
        "boxes/c.yaml: 1 error",
        "4 boxes, 3 devices: 2 without a problem of their own",
    ]
    assert "boxes/b.yaml:3:8: error: http.listn: unknown key" in ended.err

    written(boxes, {"base.yaml": BASE.replace("sds011}", "sds012}")})
    ended = citygate("check", "boxes/a.yaml", "boxes/d.yaml")
    assert ended.err.count("[unknown-template]") == 1
    assert "in 2 boxes: boxes/a.yaml, boxes/d.yaml" in ended.err
    assert ended.out.startswith("boxes/a.yaml: 1 error\nboxes/d.yaml: 1 error\n")


def test_a_template_that_many_share_is_wrong_for_each_of_them(citygate: Command, boxes: Path) -> None:
    written(boxes, {"a.yaml": box(1), "b.yaml": box(2), "own/c.yaml": box(3, base="../base.yaml")})
    written(boxes, {"templates/nova/sds011.yaml": "extends: nova/sds011\ncolour: red\n"})
    rows = citygate("check", "boxes", "--json").json["boxes"]
    assert {row["name"]: [p["code"] for p in row["problems"]] for row in rows} == {
        name: ["unknown-key"] for name in ("boxes/a.yaml", "boxes/b.yaml", "boxes/own/c.yaml")
    }
    written(boxes, {"own/templates/nova/sds011.yaml": "extends: nova/sds011\n"})
    rows = citygate("check", "boxes", "--json").json["boxes"]
    assert [row["ok"] for row in rows] == [False, False, True], "a box may have its own"


def test_one_id_for_two_boxes_is_an_error_in_one_city_and_what_follows_is_not_told(
    citygate: Command, boxes: Path
) -> None:
    written(boxes, {"a.yaml": box(1), "b.yaml": box(2, id="gw-1"), "c.yaml": box(3, id="gw-1")})
    ended = citygate("check", "boxes", "--json")
    assert (ended.code, between(ended.json)) == (3, [("fleet-gateway-id", "error", "boxes/b.yaml", 2)])
    message = ended.json["problems"][0]["message"]
    assert message == "gw-1 in milano is the id of boxes/b.yaml and of boxes/a.yaml (boxes/a.yaml:2:15) and 1 more"

    written(boxes, {"b.yaml": box(2, id="gw-1, city: porto"), "c.yaml": box(3)})
    ended = citygate("check", "boxes", "--json")
    assert (ended.code, between(ended.json)) == (0, [("fleet-gateway-id", "warning", "boxes/b.yaml", 2)])


SHARED = 'links: {air: {devices: {air-1: {entity: {id: "urn:ngsi-ld:AirQualityObserved:milano:one"%s}}}}}\n'


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ("", "error"),
        ('brokers: {milano: {url: "https://Broker.milano.example.:443/"}}\n', "error"),
        ("brokers: {milano: null, other: {url: 'https://broker.milano.example', tenant: one}}\n", "error"),
        ("brokers: {milano: {tenant: two}}\n", ""),
        ("brokers: {milano: {url: 'https://broker.milano.example:1026'}}\n", ""),
        ("brokers: {milano: {url: 'https://broker.milano.example/second'}}\n", ""),
        ("brokers: {milano: {send: [bin-*]}}\n", ""),
    ],
)
def test_one_entity_of_two_boxes_at_one_broker(citygate: Command, boxes: Path, more: str, found: str) -> None:
    written(boxes, {"a.yaml": box(1, SHARED % ""), "b.yaml": box(2, SHARED % "" + more)})
    ended = citygate("check", "boxes", "--json")
    assert between(ended.json) == ([("fleet-entity", found, "boxes/b.yaml", 3)] if found else [])
    assert ended.code == (3 if found else 0)
    if found:
        assert "with pm10, pm25" in ended.json["problems"][0]["message"]


def test_two_boxes_may_fill_one_entity_each_with_its_own_attributes(citygate: Command, boxes: Path) -> None:
    one, other = ", attributes: {pm10: null}", ", attributes: {pm25: null}"
    written(boxes, {"a.yaml": box(1, SHARED % one), "b.yaml": box(2, SHARED % other)})
    ended = citygate("check", "boxes", "--json")
    assert (ended.code, between(ended.json)) == (0, [("fleet-entity", "warning", "boxes/b.yaml", 3)])
    assert "with other attributes" in ended.json["problems"][0]["message"]
    written(boxes, {"c.yaml": box(3, SHARED % one)})
    ended = citygate("check", "boxes", "--json")
    assert (ended.code, between(ended.json)) == (3, [("fleet-entity", "error", "boxes/c.yaml", 3)])
    assert "of boxes/c.yaml and of boxes/a.yaml (boxes/a.yaml:3:" in ended.json["problems"][0]["message"]
    written(boxes, {"c.yaml": box(3, SHARED % other)})
    ended = citygate("check", "boxes", "--json")
    assert (ended.code, between(ended.json)) == (3, [("fleet-entity", "error", "boxes/c.yaml", 3)])
    message = ended.json["problems"][0]["message"]
    assert "of boxes/c.yaml and of boxes/b.yaml (boxes/b.yaml:3:" in message
    assert message.endswith(" and 1 more, with pm10")


def test_two_devices_of_a_box_that_fill_one_entity_are_both_compared(citygate: Command, boxes: Path) -> None:
    devices = "links: {air: {devices: {air-1: {entity: {%(id)s, attributes: {pm10: null}}}}}, more: {driver: serial, port: /dev/ttyS1, devices: {air-2: {template: nova/sds011, entity: {%(id)s, attributes: {pm25: null}}}}}}\n"
    two = devices % {"id": 'id: "urn:ngsi-ld:AirQualityObserved:milano:one"'}
    written(boxes, {"a.yaml": box(1, two), "b.yaml": box(2, SHARED % ", attributes: {pm25: null}")})
    ended = citygate("check", "boxes", "--json")
    assert (ended.code, between(ended.json)) == (3, [("fleet-entity", "error", "boxes/b.yaml", 3)])
    assert ended.json["problems"][0]["message"].endswith(", with pm10")


def test_an_id_pattern_without_the_gateway_collides_where_two_devices_have_one_name(
    citygate: Command, boxes: Path
) -> None:
    written(
        boxes,
        {
            "cities/own.yaml": 'id: "urn:ngsi-ld:{Type}:{city}:{device}"\n',
            "base.yaml": BASE.replace("{url", "{use: cities/own, url"),
        },
    )
    written(
        boxes,
        {
            "a.yaml": box(1),
            "b.yaml": box(2),
            "c.yaml": box(3, "links: {air: {devices: {air-1: null, air-3: {template: nova/sds011}}}}\n"),
        },
    )
    answer = citygate("check", "boxes", "--json").json
    assert between(answer) == [("fleet-entity", "error", "boxes/base.yaml", 4)]
    assert "of boxes/b.yaml and of boxes/a.yaml (boxes/base.yaml:4:" in answer["problems"][0]["message"]


def test_a_broker_on_each_box_is_not_one_broker(citygate: Command, boxes: Path) -> None:
    written(boxes, {"base.yaml": BASE.replace("https://broker.milano.example", "http://localhost:1026")})
    written(boxes, {"a.yaml": box(1, SHARED % ""), "b.yaml": box(2, SHARED % "")})
    assert citygate("check", "boxes", "--json").json["problems"] == []


def lora(url: str, *, eui: str = "24e124713d123456", client_id: str = "box", name: str = "bin-1") -> str:
    device = f"{name}: {{template: milesight/em400-udl, dev_eui: '{eui}', container: {{empty: 1.8 m}}}}"
    return f"links: {{lora: {{driver: chirpstack, url: '{url}', client_id: '{client_id}', devices: {{{device}}}}}}}\n"


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (lora("mqtt://lora.example"), lora("mqtt://LORA.example:1883", eui="24e124713d123457"), ["fleet-session"]),
        (lora("mqtt://lora.example"), lora("mqtt://lora.example:1884", eui="24e124713d123457"), []),
        (lora("mqtt://127.0.0.1"), lora("mqtt://127.0.0.1", eui="24e124713d123457"), []),
        (lora("mqtt://192.168.1.9"), lora("mqtt://192.168.1.9", eui="24e124713d123457"), []),
        (lora("mqtt://chirpstack"), lora("mqtt://chirpstack", eui="24e124713d123457"), []),
        (lora("mqtt://chirpstack.local"), lora("mqtt://chirpstack.local", eui="24e124713d123457"), []),
        (
            lora("mqtt://lora.example"),
            lora("mqtt://127.0.0.1", eui="24:E1:24:71:3D:12:34:56", name="bin-2"),
            ["fleet-device"],
        ),
        (
            lora("mqtt://lora.example", client_id=""),
            lora("mqtt://lora.example", eui="24e124713d123457", client_id=""),
            [],
        ),
    ],
)
def test_sessions_and_devices_of_two_boxes(
    citygate: Command, boxes: Path, one: str, other: str, found: list[str]
) -> None:
    written(boxes, {"a.yaml": box(1, one), "b.yaml": box(2, other)})
    ended = citygate("check", "boxes", "--json")
    assert [code for code, *_ in between(ended.json)] == found
    assert ended.code == (3 if "fleet-session" in found else 0)


def plant(host: str, unit: int = 1) -> str:
    return f"links: {{plant: {{driver: modbus, host: {host}, devices: {{m: {{template: eastron/sdm120, unit_id: {unit}, every: 10 s}}}}}}}}\n"


def heard(key: str) -> str:
    abp = f"{{abp: {{dev_addr: '26011234', nwk_s_key: '{key * 32}', app_s_key: '{key * 32}'}}}}"
    device = f"template: milesight/em400-udl, activation: {abp}, container: {{empty: 1.8 m}}"
    return f"links: {{lora: {{driver: semtech-udp, devices: {{bin-1: {{{device}}}}}}}}}\n"


MODEM = (
    "links: {modem: {driver: lora-modem, port: /dev/ttyS1, modem: rylr, setup: [AT+NETWORKID=5], "
    "devices: {bin-1: {template: milesight/em400-udl, address: 7, container: {empty: 1.8 m}}}}}\n"
)


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (heard("1"), heard("1"), ["fleet-device"]),
        (heard("1"), heard("2"), []),
        (MODEM, MODEM, []),
        (plant("plc.works.example"), plant("plc.works.example"), ["fleet-device"]),
        (plant("plc.works.example"), plant("plc.works.example", 2), []),
        (plant("192.168.1.10"), plant("192.168.1.10"), []),
    ],
)
def test_a_unit_that_two_boxes_poll(citygate: Command, boxes: Path, one: str, other: str, found: list[str]) -> None:
    written(boxes, {"a.yaml": box(1, one), "b.yaml": box(2, other)})
    assert [code for code, *_ in between(citygate("check", "boxes", "--json").json)] == found


def test_a_login_is_shared_on_purpose_in_the_base_and_by_a_copied_line_elsewhere(
    citygate: Command, boxes: Path
) -> None:
    copied = "brokers: {milano: {auth: {basic: {user: copied}}}}\n"
    written(boxes, {"a.yaml": box(1, copied), "b.yaml": box(2, copied), "c.yaml": box(3), "d.yaml": box(4)})
    ended = citygate("check", "boxes", "--json")
    assert (ended.code, between(ended.json)) == (0, [("fleet-login", "warning", "boxes/b.yaml", 3)])


def test_one_place_for_two_boxes_is_a_warning_wherever_it_comes_from(citygate: Command, boxes: Path) -> None:
    written(boxes, {"a.yaml": box(1), "b.yaml": box(2, place="[9.10, 45.500]")})
    ended = citygate("check", "boxes", "--json")
    assert (ended.code, between(ended.json)) == (0, [("fleet-location", "warning", "boxes/b.yaml", 2)])
    written(boxes, {"base.yaml": BASE.replace("{city", "{location: [9.1, 45.5], city")})
    written(boxes, {"a.yaml": "base: base.yaml\ngateway: {id: a}\n", "b.yaml": "base: base.yaml\ngateway: {id: b}\n"})
    answer = citygate("check", "boxes", "--json").json
    assert between(answer) == [("fleet-location", "warning", "boxes/base.yaml", 2)]
    assert "is the place of boxes/b.yaml and of boxes/a.yaml" in answer["problems"][0]["message"]


def test_what_can_be_read_of_a_box_with_errors_is_compared_too(citygate: Command, boxes: Path) -> None:
    written(boxes, {"a.yaml": box(1, "http: {listn: x}\n"), "b.yaml": box(2, id="gw-1")})
    assert between(citygate("check", "boxes", "--json").json) == [("fleet-gateway-id", "error", "boxes/b.yaml", 2)]


def test_a_file_that_is_named_twice_or_is_a_link_counts_once(citygate: Command, boxes: Path) -> None:
    written(boxes, {"a.yaml": box(1), "b.yaml": box(2)})
    assert citygate("check", "boxes", "boxes/a.yaml", "boxes").out == "2 boxes, 2 devices: all fine\n"
    (boxes / "c.yaml").symlink_to("a.yaml")
    (boxes / "loop").symlink_to(boxes)
    ended = citygate("check", "boxes", "--json")
    assert (ended.code, between(ended.json)) == (0, [("fleet-same-file", "warning", "boxes/c.yaml", 0)])


def test_the_files_that_boxes_stand_on_are_no_boxes(citygate: Command, boxes: Path) -> None:
    written(boxes, {"city.yaml": "base: base.yaml\n", "a.yaml": box(1, base="city.yaml")})
    files = [str(file.relative_to(boxes.parent)) for file in sorted(boxes.glob("*.yaml"))]
    assert citygate("check", *files).out == "1 box, 1 device: all fine\n"  # as `boxes/*.yaml` of a shell
    assert citygate("check", "boxes/base.yaml").code == 3, "by itself it is no config"
    written(boxes, {"city.yaml": "base: a.yaml\n", "a.yaml": box(1, base="city.yaml")})
    ended = citygate("check", "boxes/city.yaml", "boxes/a.yaml")
    assert ended.code == 3
    assert "[base-cycle]" in ended.err


def test_files_that_are_no_config_are_left_out_and_named(citygate: Command, boxes: Path) -> None:
    others = {
        "mkdocs.yml": "site_name: x\n",
        ".ci.yml": "a: [\n",
        "cities/own.yaml": "city: x\n",
        ".git/x.yaml": "a: [\n",
    }
    written(boxes, {"a.yaml": box(1), **others})
    ended = citygate("check", "boxes")
    assert (ended.code, ended.out) == (0, "no configs, left out: boxes/mkdocs.yml\n1 box, 1 device: all fine\n")
    ended = citygate("check", "boxes/mkdocs.yml")
    assert ended.code == 3, "who names it wants to hear of it"


def test_no_secret_is_looked_up_and_no_variable_of_this_machine_counts(
    citygate: Command, boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CITYGATE__GATEWAY__ID", "gw-of-this-machine")
    written(boxes, {"a.yaml": box(1), "b.yaml": box(2)})
    assert [row["gateway"] for row in citygate("check", "boxes", "--json").json["boxes"]] == ["gw-1", "gw-2"]


def test_a_folder_that_may_not_be_entered_is_an_error(citygate: Command) -> None:
    with tempfile.TemporaryDirectory() as name:  # the test runner's own folder is for its user alone
        os.chmod(name, 0o755)
        folder = written(Path(name), {"base.yaml": BASE, "a.yaml": box(1), "closed/b/c.yaml": box(2)})
        os.chmod(folder / "closed", 0o000)
        try:
            with without_root():
                ended = citygate("check", name, "--json")
                inside = citygate("check", f"{name}/closed/b")
        finally:
            os.chmod(folder / "closed", 0o755)
    assert (ended.code, between(ended.json)) == (3, [("unreadable-file", "error", f"{name}/closed", 0)])
    assert inside.code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere: there is no such file or folder"),
        (("boxes/empty",), "no config of a box in boxes/empty"),
        (("boxes", "-c", "boxes/base.yaml"), "-c and --effective are for one box"),
        (("boxes", "--effective"), "-c and --effective are for one box"),
    ],
)
def test_wrong_use(citygate: Command, boxes: Path, arguments: tuple[str, ...], said: str) -> None:
    (boxes / "empty").mkdir()
    ended = citygate("check", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


def test_a_flood_of_problems_is_bounded_and_counted(citygate: Command, boxes: Path) -> None:
    written(
        boxes,
        {f"{number}.yaml": box(number % 90, id=f"gw-{number}", more="http: {listn: x}\n") for number in range(23)},
    )
    ended = citygate("check", "boxes")
    assert ended.err.count("[unknown-key]") == 20
    assert "and 3 more of unknown-key; --json has them all" in ended.err
    assert ended.out.count(": 1 error\n") == 23
