"""The schemas that editors find beside the config: what they know of this box, and who keeps them fresh."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft7Validator, ValidationError

from gateway.config.tree import read_tree
from gateway.sdk.errors import Problem
from tests.gateway.cli.conftest import Command
from tests.gateway.config.test_schema import plain
from tests.support.box import REPOSITORY

BRIEF = str(REPOSITORY / "config" / "models" / "BenchObserved.yaml")
HEAD = "version: 1\ngateway: {id: gw-1, city: milano, location: [9.1, 45.5]}\n"
DUST = "extends: nova/sds011\npoints: {fine: {quantity: pm25}}\n"
PROFILE = "city: turin\n"


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A folder with a config and an editor's schema, made before there was anything else."""
    (tmp_path / "citygate.yaml").write_text(HEAD)
    (tmp_path / "citygate.schema.json").write_text("{}")
    return tmp_path


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/')}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def faults(schema: Path, text: str) -> list[tuple[str, str]]:
    """Where this schema finds something wrong, and the value it is about."""
    file = schema.with_name("tried.yaml")
    file.write_text(text)
    problems: list[Problem] = []
    tree = plain(read_tree(file, problems))
    file.unlink()
    assert problems == []
    errors = [_deepest(error) for error in Draft7Validator(json.loads(schema.read_text())).iter_errors(tree)]
    return [(".".join(map(str, error.absolute_path)), str(error.instance)) for error in errors]


def _deepest(error: ValidationError) -> ValidationError:
    """What lies inside the alternatives is what an editor underlines."""
    inner = [_deepest(each) for each in error.context or () if len(each.absolute_path) > len(error.absolute_path)]
    return max(inner, key=lambda its: len(its.absolute_path), default=error)


def air(device: str) -> str:
    return HEAD + f"links: {{air: {{driver: serial, port: /dev/ttyAMA0, devices: {{air-1: {device}}}}}}}\n"


def test_the_schema_knows_points_types_attributes_and_cities_of_this_box(citygate: Command, edited: Path) -> None:
    put(edited, templates__mine__dust=DUST, cities__turin=PROFILE)
    assert citygate("models", "new", BRIEF, "-c", str(edited)).code == 0
    assert citygate("schema", "--write", "-c", str(edited)).code == 0
    schema = edited / "citygate.schema.json"

    right = [
        "{template: mine/dust, calibrate: {fine: {gain: 2}}, report: {pm10: {on_change: 1}}}",
        "{template: nova/sds011, entity: {attributes: {pm25: pm10, pm10: null}}}",
        "{template: nova/sds011, entity: {attributes: {pm25: {point: pm10, sub: {pm10: {point: pm2_5}}}}}}",
        "{template: nova/sds011, entity: {type: BenchObserved, attributes: {charging.usb: pm10}}}",
        "{template: nova/sds011, entity: {static: {address: {addressLocality: Milano}}}}",
        "{template: nova/sds011, entity: {type: null, id: null, attributes: {location: {point: null, longitude: pm10}}}}",
        "{template: nova/sds011, entity: {static: {areaServed: Bovisa}, more: {x: {type: Device, attributes: {}}}}}",
    ]
    assert [fault for device in right for fault in faults(schema, air(device))] == []
    at = "links.air.devices.air-1"
    wrong = {
        "{template: nova/sds011, entity: {static: {address.addressLocality: x}}}": (
            f"{at}.entity.static",
            "address.addressLocality",
        ),
        "{template: nova/sds011, entity: {attributes: {location: {longitude: fine}}}}": (
            f"{at}.entity.attributes.location.longitude",
            "fine",
        ),
        "{template: nova/sds011, entity: {attributes: {location: {latitude: fine}}}}": (
            f"{at}.entity.attributes.location.latitude",
            "fine",
        ),
        "{template: nova/sds011, entity: {attributes: {pm25: {sub: {x: {point: fine}}}}}}": (
            f"{at}.entity.attributes.pm25.sub.x.point",
            "fine",
        ),
        "{template: mine/dust, calibrate: {finer: {gain: 2}}}": (f"{at}.calibrate", "finer"),
        "{template: nova/sds011, calibrate: {fine: {gain: 2}}}": (f"{at}.calibrate", "fine"),
        "{template: nova/sds011, report: {fine: {on_change: 1}}}": (f"{at}.report", "fine"),
        "{template: nova/sds011, entity: {attributes: {pm25: fine}}}": (f"{at}.entity.attributes.pm25", "fine"),
        "{template: nova/sds011, entity: {attributes: {pm_25: pm10}}}": (f"{at}.entity.attributes", "pm_25"),
        "{template: nova/sds011, entity: {static: {areaServd: x}}}": (f"{at}.entity.static", "areaServd"),
        "{template: nova/sds011, entity: {type: BenchObserved, attributes: {pm25: pm10}}}": (
            f"{at}.entity.attributes",
            "pm25",
        ),
        "{template: nova/sds011, entity: {more: {x: {attributes: {pm25: fine}}}}}": (
            f"{at}.entity.more.x.attributes.pm25",
            "fine",
        ),
        "{template: nova/sds011, entity: {type: AirQualityObservd}}": (f"{at}.entity.type", "AirQualityObservd"),
    }
    found = {device: faults(schema, air(device)) for device in wrong}
    assert {device: its[0] for device, its in found.items() if its} == wrong

    city = HEAD + "brokers: {x: {use: cities/turin, url: 'https://b.example', tenant: null, history: null}}\n"
    assert faults(schema, city) == []
    assert faults(schema, city.replace("turin", "turing")) == [("brokers.x.use", "cities/turing")]


def test_fragments_templates_and_cities_get_schemas_beside_them(citygate: Command, edited: Path) -> None:
    put(edited, templates__mine__dust=DUST, cities__turin=PROFILE, **{"conf.d__more": "links: {}\n"})
    written = citygate("schema", "--write", "-c", str(edited), "--json").json["files"]
    names = ["citygate.schema.json", "conf.d/citygate.schema.json", "cities/citygate.schema.json"]
    assert written == [str(edited / name) for name in (*names, "templates/serial.schema.json")]
    assert citygate("check", "-c", str(edited), "--json").json["problems"] == []

    fragment = edited / "conf.d" / "citygate.schema.json"
    device = "links: {roof: {devices: {m: {template: eastron/sdm120, unit_id: 1, evry: 10 s}}}}\n"
    assert faults(fragment, device.replace("evry", "every")) == []
    assert faults(fragment, device) != []  # which link of the main file it belongs to, an editor cannot know
    assert faults(edited / "templates" / "serial.schema.json", DUST) == []
    assert faults(edited / "templates" / "serial.schema.json", DUST.replace("pm25", "pm26")) != []
    profile = "types: {AirQualityObserved: {static: {areaServed: x}}}\nbroker: {tenant: a}\n"
    assert faults(edited / "cities" / "citygate.schema.json", profile) == []
    for old, new in (("AirQuality", "AirQuantity"), ("tenant", "tenent")):
        assert faults(edited / "cities" / "citygate.schema.json", profile.replace(old, new)) != []


BASE = """\
version: 1
gateway: {city: milano, location: [9.1, 45.5]}
links:
  air: {driver: serial, port: /dev/ttyAMA0, devices: {air-1: {template: nova/sds011}}}
  yard: {driver: serial, port: /dev/ttyS1, devices: {air-2: {template: nova/sds011}}}
brokers: {milano: {url: "https://b.example", tenant: a, auth: {bearer: !secret b}}, porto: {url: "https://c.example"}}
"""
ON_IT = """\
base: base.yaml
gateway: {id: gw-1, location: null}
buffer: {max_size: null}
links:
  air: {port: null, devices: {air-1: {every: null, entity: {id: null, attributes: {pm10: null}}}}}
  yard: {devices: {air-2: null}}
  other: null
brokers: {milano: {tenant: null, auth: {bearer: null}, use: null}, porto: null}
"""


def test_a_box_on_a_base_need_not_be_complete_and_may_take_away(citygate: Command, edited: Path) -> None:
    assert citygate("schema", "--write", "-c", str(edited)).code == 0
    put(edited, citygate=ON_IT, base=BASE)
    assert "stale-schema" in [its["code"] for its in citygate("check", "-c", str(edited), "--json").json["problems"]]
    assert citygate("schema", "--write", "-c", str(edited)).code == 0
    assert "stale-schema" not in [
        its["code"] for its in citygate("check", "-c", str(edited), "--json").json["problems"]
    ]
    schema = edited / "citygate.schema.json"
    assert (faults(schema, ON_IT), faults(schema, BASE)) == ([], [])
    wrong = {"tenant: null": "tenent: null", "every: null": "every: [1]", "max_size: null": "max_size: []"}
    assert [old for old, new in wrong.items() if not faults(schema, ON_IT.replace(old, new))] == []


def test_check_says_when_a_schema_is_older_than_what_it_is_made_of(citygate: Command, edited: Path) -> None:
    def said() -> list[str]:
        return [problem["code"] for problem in citygate("check", "-c", str(edited), "--json").json["problems"]]

    for text in ("{}", "[]", '{"$comment": 1}', "{", ""):
        (edited / "citygate.schema.json").write_text(text)
        assert said() == ["stale-schema"], text
    put(edited, templates__mine__dust=DUST)
    assert citygate("schema", "--write", "-c", str(edited)).code == 0
    assert said() == []
    (edited / "templates" / "mine" / "dust.yaml").rename(edited / "templates" / "mine" / "other.yaml")
    assert said() == ["stale-schema"]
    (edited / "templates" / "mine" / "other.yaml").rename(edited / "templates" / "mine" / "dust.yaml")
    assert said() == []
    for name in ("templates/mine/new.yaml", "cities/turin.yaml", "models/index.json", "models/x/context.jsonld"):
        file = edited / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"types": {}, "terms": {}}')
        assert "stale-schema" in said(), name
        file.unlink()
        assert said() == [], name


def test_nobody_is_told_of_a_schema_who_has_none(citygate: Command, edited: Path) -> None:
    (edited / "citygate.schema.json").unlink()
    assert citygate("check", "-c", str(edited), "--json").json["problems"] == []
    assert citygate("models", "new", BRIEF, "-c", str(edited)).code == 0
    assert not (edited / "citygate.schema.json").exists()


def test_what_adds_a_name_refreshes_the_schema(citygate: Command, edited: Path) -> None:
    schema = edited / "citygate.schema.json"
    assert citygate("models", "new", BRIEF, "-c", str(edited)).code == 0
    assert '"BenchObserved"' in schema.read_text()
    put(edited, templates__mine__dust=DUST)
    added = citygate("add", "-c", str(edited), "air", "air-1", "mine/dust", "--link", "port=/dev/ttyAMA0", "--no-test")
    assert added.code == 0
    assert '"mine/dust"' in schema.read_text()
    as_it_was = schema.stat()
    citygate("add", "-c", str(edited), "air-2", "air-2", "mine/dust", "--link", "port=/dev/ttyAMA1", "--no-test")
    assert schema.stat() == as_it_was  # there was nothing new
    put(edited, templates__nova__sds011="extends: nova/sds011\npoints: {coarsest: {quantity: pm10}}\n")
    citygate("add", "-c", str(edited), "air-3", "air-3", "mine/dust", "--link", "port=/dev/ttyAMA2", "--no-test")
    shipped = air("{template: nova/sds011, report: {coarsest: {on_change: 1}}}")
    assert faults(schema, shipped) == []  # an own one takes its place


def test_a_schema_that_cannot_be_written_does_not_spoil_what_was_done(citygate: Command, edited: Path) -> None:
    schema = edited / "citygate.schema.json"
    schema.with_name(f".{schema.name}.new").mkdir()
    ended = citygate("models", "new", BRIEF, "-c", str(edited))
    assert ended.code == 0
    assert "later: citygate schema --write" in ended.err
    assert schema.read_text() == "{}"
