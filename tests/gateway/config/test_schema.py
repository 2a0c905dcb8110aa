"""The JSON Schema says to the editor what the loader would say."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from jsonschema import Draft7Validator

from gateway.config.known import Known
from gateway.config.schema import file_schema, key_paths, profile_schema, template_schema
from gateway.config.templates import template_names
from gateway.config.tree import Items, Map, Node, plain_value, read_tree
from gateway.plan import make_plan
from gateway.registry import Registry
from gateway.sdk.config import (
    DURATIONS_S,
    RATES_PER_S,
    SIZES_BYTES,
    in_words,
    parse_duration_s,
    parse_rate_per_s,
    parse_size_bytes,
)
from gateway.sdk.errors import ConfigError
from tests.gateway.config.test_any_config import FILES, GOOD, PROFILE, TEMPLATE, mutated, write
from tests.support.bench_driver import TEMPLATES, BenchDriver, BenchRegistry, BenchTemplate


def names(*templates: str) -> Known:
    """Device types of which no more is known."""
    return Known({"bench": dict.fromkeys(templates)})


SCHEMA = file_schema({"bench": BenchDriver(), "broken": None}, names("acme/air", "acme/meter", "mine/air"))
VALIDATOR = Draft7Validator(SCHEMA, format_checker=Draft7Validator.FORMAT_CHECKER)


def plain(node: Node) -> Any:
    """A tree as an editor's YAML parser sees it."""
    if isinstance(node, Map):
        return {key: plain(entry.node) for key, entry in node.entries.items()}
    return [plain(item) for item in node.items] if isinstance(node, Items) else plain_value(node)


def faults(tmp_path: Path, text: str, validator: Draft7Validator = VALIDATOR) -> set[str]:
    """Paths that the schema complains about."""
    file = tmp_path / "file.yaml"
    file.write_text(text)
    return {
        ".".join(map(str, each.absolute_path))
        for error in validator.iter_errors(plain(read_tree(file, [])))
        for each in (error, *(error.context or ()))  # what an editor underlines lies inside the alternatives
    }


def test_the_schemas_are_schemas() -> None:
    for schema in (SCHEMA, template_schema(BenchDriver()), profile_schema()):
        Draft7Validator.check_schema(schema)


def test_a_good_file_is_good(tmp_path: Path) -> None:
    assert faults(tmp_path, GOOD) == set()


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("publish:", "publsih:", ""),
        ("version: 1", "version: 2", "version"),
        ("gateway: {id: gw-1, ", "gateway: {", "gateway"),
        ("[9.1590, 45.5030]", "[9.1590]", "gateway.location"),
        ("[9.1590, 45.5030]", "[9.1590, 145.5030]", "gateway.location.1"),
        ("commit_every: 15 s", "commit_every: 15", "buffer.commit_every"),
        ("max_size: 1 GB", "max_size: 1 GiBi", "buffer.max_size"),
        ("driver: bench\n", "driver: bensh\n", "links.roof.driver"),
        ("    driver: bench\n", "", "links.roof"),
        ("baud_rate: 9600", "baud_rate: 12", "links.roof.baud_rate"),
        ("baud_rate", "baud", "links.roof"),
        ("unit_id: 1", "unit_id: 0", "links.roof.devices.meter-1.unit_id"),
        ("unit_id: 1", "unit_id: one", "links.roof.devices.meter-1.unit_id"),
        ("every: 10 s", "evry: 10 s", "links.roof.devices.meter-1"),
        ("template: acme/meter", "template: acme/metre", "links.roof.devices.meter-1.template"),
        ("        template: acme/meter\n", "", "links.roof.devices.meter-1"),
        ("enabled: true", "enabled: NO", "links.roof.devices.meter-1.enabled"),
        ("gain: 1.02", "gian: 1.02", "links.roof.devices.meter-1.calibrate.voltage"),
        ("  roof:", "  ro of:", "links"),
        ("      meter-1:", "      met er:", "links.roof.devices"),
        ("from: oldest", "from: later", "brokers.milano.from"),
        ("rate: 500/s", "rate: 500", "brokers.milano.rate"),
        ("trust: auto", "trust: me", "clock.trust"),
    ],
)
def test_a_bad_file_is_bad_at_the_right_place(tmp_path: Path, old: str, new: str, path: str) -> None:
    assert old in GOOD
    assert path in faults(tmp_path, GOOD.replace(old, new, 1))


@settings(max_examples=150)
@given(files=mutated())
def test_the_editor_raises_no_false_alarm_about_a_file_that_loads(tmp_path: Path, files: dict[str, str]) -> None:
    text = files["citygate.yaml"]
    write(tmp_path, {**FILES, "citygate.yaml": text})
    with contextlib.suppress(ConfigError):
        make_plan(tmp_path, BenchRegistry())
        if text.count("'") == GOOD.count("'") and text.count('"') == GOOD.count('"'):  # quoted numbers are tolerated
            assert faults(tmp_path, text) == set()


def test_a_fragment_need_not_be_complete_but_its_keys_are_checked(tmp_path: Path) -> None:
    fragment = Draft7Validator(file_schema({"bench": BenchDriver()}, names("acme/air"), fragment=True))

    assert faults(tmp_path, "links: {roof: {devices: {a: {template: acme/air}}}}\n", fragment) == set()
    assert faults(tmp_path, "links: {roof: {driver: bench, devices: {a: {every: 3 s}}}}\n", fragment) == set()
    assert faults(tmp_path, "brokers: {milano: {tenant: x}}\n", fragment) == set()
    assert faults(tmp_path, "brokers: {milano: {tenent: x}}\n", fragment) == {"brokers.milano"}
    assert faults(tmp_path, "bufer: {}\n", fragment) == {""}


def test_a_broker_needs_an_address_of_its_own_or_of_its_profile(tmp_path: Path) -> None:
    head = "version: 1\ngateway: {id: a, city: b}\n"
    assert faults(tmp_path, head + "brokers: {x: {use: cities/y}}\n") == set()
    assert faults(tmp_path, head + "brokers: {x: {tenant: y}}\n") == {"brokers.x"}
    assert faults(tmp_path, head + "brokers: {x: {use: null, tenant: y}}\n") == {"brokers.x"}
    secret = "brokers: {x: {url: 'https://b.example', auth: {bearer: 12345678}}}\n"  # a warning of check, no error
    assert faults(tmp_path, head + secret) == set()


def test_a_template_of_one_name_can_mean_another_device_with_another_driver(tmp_path: Path) -> None:
    points = {"mine": {"a": {"quantity": "pm10", "description": "coarse"}}, "yours": {"b": {"quantity": "pm25"}}}
    templates = {
        name: {"acme/air": BenchTemplate.model_validate({"vendor": "A", "model": "B", "points": its})}
        for name, its in points.items()
    }
    made = file_schema({"mine": BenchDriver(), "yours": BenchDriver()}, Known(templates))
    schema = Draft7Validator(made)
    text = "version: 1\ngateway: {{id: a, city: b}}\nlinks: {{l: {{driver: {}, devices: {{d: {{template: acme/air, report: {{{}: {{}}}}}}}}}}}}\n"
    assert faults(tmp_path, text.format("mine", "a"), schema) == set()
    assert faults(tmp_path, text.format("yours", "b"), schema) == set()
    assert faults(tmp_path, text.format("yours", "a"), schema) == {"links.l.devices.d.report"}
    told = {key: its["enumDescriptions"] for key, its in made["definitions"].items() if key.endswith(".point")}
    assert sorted(told.values()) == [["coarse"], ["pm25"]]


def test_links_of_a_driver_that_cannot_be_had_here_may_have_any_key(tmp_path: Path) -> None:
    head = "version: 1\ngateway: {id: a, city: b}\n"
    assert faults(tmp_path, head + "links: {x: {driver: broken, what: ever}}\n") == set()


def test_templates_and_profiles_have_schemas_of_their_own(tmp_path: Path) -> None:
    template = Draft7Validator(template_schema(BenchDriver()))
    for name in template_names(TEMPLATES):
        assert faults(tmp_path, (TEMPLATES / f"{name}.yaml").read_text(), template) == set()
    wrong = "vendor: a\nmodel: b\npoints: {x: {quantity: volatge}}\n"
    assert "points.x.quantity" in faults(tmp_path, wrong, template)
    assert faults(tmp_path, "vendor: a\nmodel: b\n", template) == {""}
    assert faults(tmp_path, "extends: a/b\nordr: big\n", template) == {""}
    assert (
        faults(tmp_path, "extends: a/b\ndescription: null\npoints: {x: {unit: null}, y: {}, z: null}\n", template)
        == set()
    )
    assert faults(tmp_path, "vendor: a\nmodel: b\npoints: {x: {unit: VLT}}\n", template) == {"points.x"}
    assert faults(tmp_path, PROFILE, Draft7Validator(profile_schema())) == set()
    assert faults(tmp_path, PROFILE.replace("static", "statics"), Draft7Validator(profile_schema())) == {""}
    assert faults(tmp_path, TEMPLATE.replace("{pm10: null}", "{}"), template) == set()


def test_every_key_has_a_hover_text() -> None:
    registry = Registry()
    drivers = {name: registry.driver(name) for name in registry.names()}
    schema = file_schema(drivers)
    silent = []
    for name, definition in {"file": schema, **schema["definitions"]}.items():
        for key, child in definition.get("properties", {}).items():
            referred = [*child.get("allOf", ()), child]
            if "description" not in child and not any("$ref" in part for part in referred) and key != "driver":
                silent.append(f"{name}.{key}")
    assert silent == []


@pytest.mark.parametrize(
    ("definition", "key", "text"),
    [
        ("BufferConfig", "commit_every", "duration · default `15 s` · 0 s to 1 h"),
        ("BufferConfig", "max_age", "duration · default `90 d` · at least 1 min"),
        ("bench.BenchDevice", "every", "duration · default `10 s` · above 0 s"),
        ("bench.BenchDevice", "unit_id", "whole number · 1 to 247"),
        ("BrokerConfig", "rate", "rate · above 0/s"),
        ("BrokerConfig", "url", "text · must be given"),
        ("TlsConfig", "verify", "true or false · default `true`"),
        ("GatewayConfig", "location", "place"),
        ("HeaderAuth", "value", "secret · must be given"),
    ],
)
def test_the_hover_text_says_kind_default_and_bounds(definition: str, key: str, text: str) -> None:
    child = SCHEMA["definitions"][definition]["properties"][key]
    assert child["markdownDescription"] == f"{child['description']}\n\n{text}"


def test_the_keys_of_all_drivers_are_known() -> None:
    keys = key_paths(SCHEMA)
    assert ("links", "*", "devices", "*", "every") in keys
    assert ("links", "*", "devices", "*", "calibrate", "*", "gain") in keys
    assert ("brokers", "*", "from") in keys


@pytest.mark.parametrize(
    ("value", "table", "words"),
    [
        (900.0, DURATIONS_S, "15 min"),
        (0.0, DURATIONS_S, "0 s"),
        (0.25, DURATIONS_S, "250 ms"),
        (7776000.0, DURATIONS_S, "90 d"),
        (90.0, DURATIONS_S, "90 s"),
        (10**9, SIZES_BYTES, "1 GB"),
        (65536, SIZES_BYTES, "64 KiB"),
        (500.0, RATES_PER_S, "500/s"),
        (0.5, RATES_PER_S, "30/min"),
    ],
)
def test_a_default_is_written_as_one_would_write_it(value: float, table: dict[str, float], words: str) -> None:
    assert in_words(value, table) == words
    parse = {id(DURATIONS_S): parse_duration_s, id(SIZES_BYTES): parse_size_bytes, id(RATES_PER_S): parse_rate_per_s}
    assert parse[id(table)](words) == pytest.approx(value)
