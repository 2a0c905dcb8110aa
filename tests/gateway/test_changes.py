"""One changed key each over the shipped example: exactly what uses it restarts, and the key is shown with old and new value."""

import shutil
from pathlib import Path

import pytest

from gateway.changes import changes, waiting
from gateway.plan import Plan, difference, make_plan
from gateway.registry import Registry
from tests.gateway.test_plan import BASE, plan_of
from tests.support.box import REPOSITORY

REGISTRY = Registry()
FILES = ("citygate.example.yaml", "conf.d/plant.yaml", "cities/milano.yaml", "cities/santander.yaml")
ALL = "broker milano, broker santander"
AIR = "air-1: {template: nova/sds011, entity: {static: {areaServed: Bovisa}}}"


@pytest.fixture(scope="module")
def before() -> Plan:
    return make_plan(REPOSITORY / "config" / "citygate.example.yaml", REGISTRY)


def changed(folder: Path, old: str, new: str) -> Plan:
    """The plan of the example with one change in whichever file has it."""
    shutil.copytree(REPOSITORY / "config", folder / "config")
    file = next(path for name in FILES if old in (path := folder / "config" / name).read_text())
    file.write_text(file.read_text().replace(old, new, 1))
    return make_plan(folder / "config" / "citygate.example.yaml", REGISTRY)


@pytest.mark.parametrize(
    ("old", "new", "restarts", "waits", "line"),
    [
        ("version: 1", "version: 1  # a comment", "", "", ""),
        ("every: 10 s", "every: 10000 ms", "", "", ""),
        ("history: auto", "rate: 5/s", "broker milano", "", "brokers.milano.rate: new: 5/s"),
        # the box itself
        ("id: gw-bovisa-017", "id: gw-2", ALL, "", "gateway.id: gw-bovisa-017 → gw-2"),
        ("city: milano ", "city: monza ", "", "", "gateway.city: milano → monza"),  # both profiles give their own
        ("name: Bovisa school roof", "name: Roof", ALL, "", "gateway.name: Bovisa school roof → Roof"),
        ("[9.1590, 45.5030]", "[9.1591, 45.5030]", ALL, "", "gateway.location: [9.159, 45.503] → [9.1591, 45.503]"),
        ("CC-BY-4.0, provider", "CC0-1.0, provider", "", "", "publish.licence: CC-BY-4.0 → CC0-1.0"),
        ("data@example.org", "d@example.org", "", "", "publish.contact: data@example.org → d@example.org"),
        ("Comune di Milano,", "Comune,", "", "", "publish.provider: Comune di Milano → Comune"),  # as both profiles
        ("publish: {", "publish: {devices: 5 min, ", "", "", "publish.devices: 15 min (default) → 5 min"),
        ("publish: {", "publish: {devices: 0 s, ", ALL, "", "publish.devices: 15 min (default) → 0 s"),
        # what is opened at the start of the daemon
        ("commit_every: 15 s", "commit_every: 30 s", "", "buffer.commit_every", "buffer.commit_every: 15 s → 30 s"),
        ("max_size: 1 GB", "max_size: 2 GB", "", "buffer.max_size", "buffer.max_size: 1 GB → 2 GB"),
        ("max_age: 30 d", "max_age: 36 h", "", "buffer.max_age", "buffer.max_age: 30 d → 36 h"),
        ("127.0.0.1:8580", "127.0.0.1:8581", "", "http.listen", "http.listen: 127.0.0.1:8580 → 127.0.0.1:8581"),
        ("{trust: auto}", "{trust: system}", "", "clock.trust", "clock.trust: auto → system"),
        ("{trust: auto}", "{unconfirmed: mark}", "", "clock.unconfirmed", "clock.unconfirmed: hold (default) → mark"),
        # links
        ("baud_rate: 9600", "baud_rate: 19200", "link roof-rs485", "", "links.roof-rs485.baud_rate: 9600 → 19200"),
        ("baud_rate: 9600", "baud_rate: 9600\n    echo: true", "link roof-rs485", "", "links.roof-rs485.echo: false (default) → true"),
        ("every: 10 s", "every: 20 s", "link roof-rs485", "", "links.roof-rs485.devices.meter-12.every: 10 s → 20 s"),
        ("/dev/ttyAMA0", "/dev/ttyAMA1", "link air-uart", "", "links.air-uart.port: /dev/ttyAMA0 → /dev/ttyAMA1"),
        ("on_change: 0.5", "on_change: 1", "link roof-rs485", "", "links.roof-rs485.devices.meter-12.report.voltage.on_change: 0.5 → 1"),
        ("at_least: 15 min", "at_least: 1 h", "link roof-rs485", "", "links.roof-rs485.devices.meter-12.report.voltage.at_least: 15 min → 1 h"),
        ("  air-uart:", "  air-port:", "link air-port, link air-uart", "", "links.air-uart: gone, was: serial, devices: air-1"),
        # what becomes of the readings
        ("gain: 1.02", "gain: 1.03", "broker milano", "", "links.roof-rs485.devices.meter-12.calibrate.active_power.gain: 1.02 → 1.03"),
        ("{gain: 1.02}", "{gain: 1.02, by: lab}", "", "", "links.roof-rs485.devices.meter-12.calibrate.active_power.by: new: lab"),
        ("{gain: 1.02}", "{gain: 1.02, valid_from: 2026-05-01}", "broker milano", "", "links.roof-rs485.devices.meter-12.calibrate.active_power.valid_from: new: 2026-05-01"),
        ("areaServed: Bovisa", "areaServed: Dergano", ALL, "", "links.air-uart.devices.air-1.entity.static.areaServed: Bovisa → Dergano"),
        (AIR, AIR.replace("sds011,", "sds011, location: [9.2, 45.6],"), ALL, "", "links.air-uart.devices.air-1.location: new: [9.2, 45.6]"),
        ("unit_id: 1\n", "unit_id: 1\n        entity: {id: 'urn:ngsi-ld:ACMeasurement:x'}\n", "broker milano", "", "links.roof-rs485.devices.meter-12.entity.id: new: urn:ngsi-ld:ACMeasurement:x"),
        # brokers
        ("broker.milano.example", "b.milano.example", "broker milano", "", "brokers.milano.url: https://broker.milano.example → https://b.milano.example"),
        ("history: auto", "history: in-order", "broker milano", "", "brokers.milano.history: auto → in-order"),
        ("from: oldest", "from: now", "", "", "brokers.milano.from: oldest → now"),
        ('send: ["air-*"]', 'send: ["air-1"]', "", "", "brokers.santander.send: [air-*] → [air-1]"),
        ('send: ["air-*"]', 'send: ["meter-*"]', "broker santander", "", "brokers.santander.send: [air-*] → [meter-*]"),
        ("  santander:", "  torrelavega:", "broker santander, broker torrelavega", "", "brokers.santander: gone, was: kind ngsi-ld, use cities/santander, "),
    ],
)  # fmt: skip
def test_one_key_restarts_what_uses_it_and_nothing_else(
    tmp_path: Path, before: Plan, old: str, new: str, restarts: str, waits: str, line: str
) -> None:
    after = changed(tmp_path, old, new)

    found = difference(before, after)
    rows = changes(before, after, found)
    back = difference(after, before)

    assert ", ".join([*(f"link {n}" for n in found.links), *(f"broker {n}" for n in found.brokers)]) == restarts
    assert [row.path for row in waiting(before.config, after.config, after.secrets)] == ([waits] if waits else [])
    told = {row.path: row.applies for row in changes(before, after, found, {waits})}
    assert waits not in told or told.pop(waits) == "restart the daemon"
    assert "restart the daemon" not in told.values()
    assert (back.links, back.brokers) == (found.links, found.brokers), "the way back restarts the same"
    if line:
        assert rows[0].text.startswith(line), [row.text for row in rows]
        assert len(rows) == 1 + (": gone, was: " in line), "what was renamed is gone and new"
    else:
        assert rows == ()


def test_a_changed_template_restarts_its_link_only_when_it_reads_otherwise(tmp_path: Path) -> None:
    own = tmp_path / "templates" / "acme" / "meter.yaml"
    own.parent.mkdir(parents=True)
    before = plan_of(tmp_path)
    text = (REPOSITORY / "tests" / "config" / "templates" / "acme" / "meter.yaml").read_text()

    def after(more: str) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
        own.write_text(f"{text}\n{more}")
        plan = plan_of(tmp_path)
        found = difference(before, plan)
        return found.links, found.brokers, [row.text for row in changes(before, plan, found)]

    assert after("") == ((), (), [])
    links, brokers, lines = after("caveats: [{text: it drifts}]\n")
    assert (links, brokers) == ((), ())
    assert lines == ["template acme/meter.caveats: new: [{text it drifts}]"]
    sample = "  - {name: another, hex: '01', expect: {voltage: 1}, source: made up}\n"
    for words in (
        sample,
        "description: x\n",
        "requirements: [a roof]\n",
        "sources: [a data sheet]\n",
        "needs: {unit_id: x}\n",
    ):
        assert after(words)[:2] == ((), ())
    assert after("order: little\n")[:2] == (("roof",), ())
    assert after("fingerprint: {a: 1}\n")[:2] == (("roof",), ()), "a driver may look for it"


def test_what_is_new_brings_only_what_was_written(tmp_path: Path) -> None:
    one, other = (
        plan_of(tmp_path),
        plan_of(tmp_path, BASE.replace("unit_id: 1}", "unit_id: 1, calibrate: {voltage: {gain: 2}}}")),
    )

    for before, after, text in ((one, other, "new: 2"), (other, one, "gone, was: 2")):
        [row] = changes(before, after, difference(before, after))
        assert row.text == f"links.roof.devices.meter-1.calibrate.voltage.gain: {text}"


def test_a_secret_that_changed_is_said_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir(mode=0o700)
    secret = tmp_path / "secrets" / "milano"
    secret.touch(mode=0o600)
    text = BASE.replace('https://broker.example"', 'https://broker.example", auth: {bearer: !secret milano}')
    text = text.replace("unit_id: 1}", "unit_id: 1, key: first-key}")
    secret.write_text("hunter2hunter2")
    before = plan_of(tmp_path, text)
    secret.write_text("other2other2")
    after = plan_of(tmp_path, text.replace("first-key", "second-key"))

    found = difference(before, after)
    rows = changes(before, after, found)

    assert (found.links, found.brokers) == (("roof",), ("milano",))
    assert [row.text for row in rows] == [
        "links.roof.devices.meter-1.key: another secret",
        "brokers.milano.auth.bearer: another secret",
    ]
    assert not any(word in repr(rows) for word in ("hunter2", "other2", "first", "second"))


AUTH = ('https://broker.example"', 'https://broker.example", auth: {bearer: hunter2hunter2}')
TOLD = ("{id: gw-1,", '{id: gw-1, name: "key is hunter2hunter2, Bearer eyJhbGciOiJIUzI1NiJ9.e30.x",')


@pytest.mark.parametrize(("first", "second"), [((AUTH,), (AUTH, TOLD)), ((), (AUTH, TOLD)), ((AUTH,), (TOLD,))])
def test_a_secret_in_the_middle_of_another_value_is_hidden_too(
    tmp_path: Path, first: tuple[tuple[str, str], ...], second: tuple[tuple[str, str], ...]
) -> None:
    def plan(changes: tuple[tuple[str, str], ...]) -> Plan:
        text = BASE
        for old, new in changes:
            text = text.replace(old, new)
        return plan_of(tmp_path, text)

    before, after = plan(first), plan(second)
    row = next(row for row in changes(before, after, difference(before, after)) if row.path == "gateway.name")

    assert row.text.startswith("gateway.name: new: key is •••, ")
    assert "eyJ" not in row.text


def test_a_device_that_comes_goes_or_moves_is_one_line(tmp_path: Path) -> None:
    before = plan_of(tmp_path)
    text = BASE.replace("meter-1: {", "meter-9: {").replace(", unit_id: 2, location: [9.2, 45.6]}", "}")

    after = plan_of(tmp_path, text)

    assert [row.text for row in changes(before, after, difference(before, after))] == [
        "links.roof.devices.meter-1: gone, was: template acme/meter, unit_id 1",
        "links.roof.devices.meter-2.location: gone, was: [9.2, 45.6]",
        "links.roof.devices.meter-2.unit_id: gone, was: 2",
        "links.roof.devices.meter-9: new: template acme/meter, unit_id 1",
    ]


AIR_1 = "air-1: {template: acme/air"
METER_1 = "meter-1: {template: acme/meter, unit_id: 1"


@pytest.mark.parametrize(
    ("device", "first", "second", "brokers"),
    [
        (METER_1, "entity: {id: 'urn:ngsi-ld:ACMeasurement:a'}", "entity: {id: 'urn:ngsi-ld:ACMeasurement:b'}", ("milano",)),
        (METER_1, "entity: {attributes: {phaseVoltage.L1: {point: voltage, gain: 2}}}", "entity: {attributes: {phaseVoltage.L1: {point: voltage, gain: 3}}}", ("milano",)),
        (METER_1, "entity: {attributes: {phaseVoltage.L1: voltage}}", "entity: {attributes: {phaseVoltage.L1: {point: voltage}}}", ()),
        (METER_1, "entity: {more: {b: {type: ACMeasurement, attributes: {phaseVoltage.L2: {point: voltage, gain: 2}}, static: {phaseType: singlePhase}}}}",
                  "entity: {more: {b: {type: ACMeasurement, attributes: {phaseVoltage.L2: {point: voltage, gain: 3}}, static: {phaseType: singlePhase}}}}", ("milano",)),
        (AIR_1, "entity: {period: 15 min}", "entity: {period: 30 min}", ("porto",)),
        (AIR_1, "entity: {type: AirQualityObserved}", "entity: {}", ()),
        (METER_1, "calibrate: {voltage: {gain: 2, valid_from: 2026-05-01, previous: [{gain: 3}]}}", "calibrate: {voltage: {gain: 2, valid_from: 2026-05-01, previous: [{gain: 4}]}}", ("milano",)),
        (METER_1, "calibrate: {voltage: {offset: 1}}", "calibrate: {voltage: {offset: 2}}", ("milano",)),
        (METER_1, "calibrate: {voltage: {gain: 2, valid_until: 2027-05-01}}", "calibrate: {voltage: {gain: 2, by: lab}}", ()),
        (METER_1, "calibrate: {voltage: {gain: 1}}", "calibrate: {}", ()),
    ],
)  # fmt: skip
def test_a_mapping_that_computes_otherwise_restarts_its_broker_and_one_that_is_only_written_otherwise_does_not(
    tmp_path: Path, device: str, first: str, second: str, brokers: tuple[str, ...]
) -> None:
    text = BASE.replace("brokers:", "publish: {devices: 0 s}\nbrokers:")  # else the sensors' own entities would tell
    one, other = (plan_of(tmp_path, text.replace(device, f"{device}, {its}")) for its in (first, second))

    found = difference(one, other)

    assert (found.links, found.brokers, found.restart) == ((), brokers, ())


def test_a_range_that_a_template_declares_counts_at_the_link_and_its_words_nowhere(
    tmp_path: Path,
) -> None:
    own = tmp_path / "templates" / "acme" / "meter.yaml"
    own.parent.mkdir(parents=True)
    text = (REPOSITORY / "tests" / "config" / "templates" / "acme" / "meter.yaml").read_text()

    def plan(more: str) -> Plan:
        own.write_text(text.replace("unit: VLT", f"unit: VLT{more}"))
        return plan_of(tmp_path)

    before = plan("")
    described = difference(before, plan(", description: of the phase"))
    assert (described.links, described.brokers) == ((), ())
    bounded = difference(before, plan(", range: [100, 300]"))
    assert (bounded.links, bounded.brokers) == (("roof",), ()), "what is not plausible is dropped at the link"


def test_a_city_learns_of_the_sensors_that_are_sent_to_it_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, BASE + '  lodi: {url: "https://lodi.example", send: [nothing]}\n')

    def assets(name: str) -> list[str] | None:
        [box] = plan.brokers[name].mappings["@"]
        found = box.static.get("controlledAsset")
        return None if found is None else [str(asset).rpartition(":")[2] for asset in found.value]

    assert assets("milano") == ["meter-1", "meter-2"]
    assert assets("porto") == ["air-1"]
    assert assets("lodi") is None


@pytest.mark.parametrize("length", [100, 101])
def test_a_long_value_is_shown_as_far_as_there_is_room(tmp_path: Path, length: int) -> None:
    one, other = plan_of(tmp_path), plan_of(tmp_path, BASE.replace("id: gw-1,", f"id: gw-1, name: {'x' * length},"))
    row = changes(one, other, difference(one, other))[0]
    assert row.new == ("x" * 100 if length == 100 else "x" * 99 + "…")


def test_a_profile_that_comes_with_its_broker_has_no_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "cities").mkdir()
    (tmp_path / "cities" / "trento.yaml").write_text("broker: {linger: 2 s}\nprovider: Trento\n")
    one = plan_of(tmp_path)
    other = plan_of(tmp_path, BASE + "  trento: {use: cities/trento, url: 'https://trento.example'}\n")
    rows = changes(one, other, difference(one, other))
    assert [row.path for row in rows] == ["brokers.trento"]
    slower = other
    (tmp_path / "cities" / "trento.yaml").write_text("broker: {linger: 3 s}\nprovider: Trento\n")
    other = plan_of(tmp_path, (tmp_path / "citygate.yaml").read_text())
    rows = changes(slower, other, difference(slower, other))
    assert [row.text for row in rows] == ["brokers.trento.linger: 2 s → 3 s"], "and what it gives is shown there once"


def test_where_a_broker_begins_counts_only_for_a_new_one(tmp_path: Path) -> None:
    before, after = (
        plan_of(tmp_path),
        plan_of(tmp_path, BASE.replace('example", send: [air', 'example", from: now, send: [air')),
    )

    found = difference(before, after)

    assert found.brokers == ()
    assert [row.applies for row in changes(before, after, found)] == ["new brokers"]
