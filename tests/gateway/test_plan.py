"""A plan is everything the daemon needs, checked; two plans compared say what has to be restarted."""

import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import pytest

from gateway.plan import Difference, Plan, difference, make_plan
from gateway.registry import DriverUnavailable
from gateway.sdk.errors import ConfigError
from gateway.sdk.reading import Point
from tests.support.bench_driver import BenchRegistry

BASE = """\
version: 1
gateway: {id: gw-1, city: milano, location: [9.1590, 45.5030]}
buffer: {path: /tmp/buffer.db}
links:
  roof:
    driver: bench
    port: /dev/serial/by-id/usb-x
    devices:
      meter-1: {template: acme/meter, unit_id: 1}
      meter-2: {template: acme/meter, unit_id: 2, location: [9.2, 45.6]}
  air:
    driver: bench
    host: 192.0.2.1
    devices:
      air-1: {template: acme/air}
brokers:
  milano: {url: "https://broker.example", send: ["meter-*"]}
  porto: {url: "https://porto.example", send: [air-1]}
"""


def plan_of(tmp_path: Path, text: str = BASE) -> Plan:
    (tmp_path / "citygate.yaml").write_text(text)
    return make_plan(tmp_path, BenchRegistry())


def test_a_plan_holds_every_device_with_its_points_and_its_place(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)

    assert list(plan.devices) == ["meter-1", "meter-2", "air-1"]
    assert plan.devices["meter-1"].points == {"voltage": Point("voltage", "voltage", "VLT")}
    assert plan.devices["meter-1"].location == (9.1590, 45.5030)
    assert plan.devices["meter-2"].location == (9.2, 45.6)
    assert plan.devices["air-1"].template.name == "acme/air"
    assert plan.devices["air-1"].template_file.endswith("acme/air.yaml")


def test_a_broker_has_the_tables_of_the_devices_sent_to_it_and_the_read_api_has_all(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)

    assert set(plan.brokers["milano"].mappings) == {"meter-1", "meter-2", "@meter-1", "@meter-2", "@"}
    assert set(plan.brokers["porto"].mappings) == {"air-1", "@air-1", "@"}, "what the box tells goes along"
    assert {name for name in plan.read_api if not name.startswith("@")} == {"meter-1", "meter-2", "air-1"}
    [table] = plan.read_api["air-1"]
    assert table.entity_id == "urn:ngsi-ld:AirQualityObserved:milano:gw-1:air-1"


def test_a_driver_that_cannot_be_imported_leaves_its_link_off_and_all_else_stands(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, BASE.replace("driver: bench\n    host", "driver: broken\n    host"))

    assert plan.links["air"].fault == "driver broken cannot be imported: no module named nowhere"
    assert plan.links["air"].remedy == "install nowhere"
    assert plan.links["air"].device_names == ("air-1",)
    assert set(plan.devices) == {"meter-1", "meter-2"}


def test_a_city_profile_gives_the_brokers_entry_what_it_does_not_say_itself(tmp_path: Path) -> None:
    (tmp_path / "cities").mkdir()
    (tmp_path / "cities" / "porto.yaml").write_text(
        "city: porto\nid: 'urn:ngsi-ld:{Type}:{city}:{device}'\nprovider: Câmara do Porto\n"
        "broker: {url: 'https://porto.example', tenant: porto, linger: 3 s}\n"
    )
    text = BASE.replace('{url: "https://porto.example", send', "{use: cities/porto, linger: 5 s, send")

    broker = plan_of(tmp_path, text).brokers["porto"]

    assert (broker.config.url, broker.config.tenant, broker.config.linger_s) == ("https://porto.example", "porto", 5.0)
    [table] = broker.mappings["air-1"]
    assert table.entity_id == "urn:ngsi-ld:AirQualityObserved:porto:air-1"
    assert table.static["dataProvider"].value == "Câmara do Porto"


def test_the_same_device_config_in_another_city_is_one_broker_entry(tmp_path: Path) -> None:
    text = BASE + "  braga: {use: cities/braga, send: [air-1]}\n"
    (tmp_path / "cities").mkdir()
    (tmp_path / "cities" / "braga.yaml").write_text("city: braga\nbroker: {url: 'https://braga.example'}\n")

    plan = plan_of(tmp_path, text)

    ids = {
        name: broker.mappings["air-1"][0].entity_id
        for name, broker in plan.brokers.items()
        if "air-1" in broker.mappings
    }
    assert ids == {
        "porto": "urn:ngsi-ld:AirQualityObserved:milano:gw-1:air-1",
        "braga": "urn:ngsi-ld:AirQualityObserved:braga:gw-1:air-1",
    }


def test_two_hundred_devices_are_checked_in_time(tmp_path: Path) -> None:
    devices = "\n".join(
        f"      m{n}: {{template: acme/meter, unit_id: {n % 12 + 1}, every: 1 min, report: {{voltage: {{on_change: 0.5}}}}}}"
        for n in range(200)
    )
    text = BASE.replace("      meter-1:", f"{devices}\n      meter-1:")

    started_s = time.thread_time()  # of a processor: others take time, too
    plan = plan_of(tmp_path, text)
    took_s = time.thread_time() - started_s

    assert len(plan.devices) == 203
    assert took_s < 3


def test_every_problem_of_every_part_comes_at_once(tmp_path: Path) -> None:
    text = BASE.replace("unit_id: 1}", "unit_id: 0}").replace("send: [air-1]", "sent: [air-1]")
    text = text.replace("template: acme/air", "template: acme/air, entity: {attributes: {pm25: pm2}}")

    with pytest.raises(ConfigError) as caught:
        plan_of(tmp_path, text)

    assert {problem.code for problem in caught.value.problems} >= {"out-of-range", "unknown-key", "mapping-point"}


METER_2 = "      meter-2: {template: acme/meter, unit_id: 2, location: [9.2, 45.6]}\n"


@pytest.mark.parametrize(
    ("old", "new", "links", "brokers", "devices", "restart"),
    [
        ("version", "version", (), (), (), ()),
        ("unit_id: 1}", "unit_id: 9}", ("roof",), (), ("meter-1",), ()),
        ("port: /dev/serial/by-id/usb-x", "port: /dev/serial/by-id/usb-y", ("roof",), (), (), ()),
        (METER_2, "", ("roof",), ("milano",), ("meter-2",), ()),
        (METER_2, METER_2 + "      meter-3: {template: acme/meter}\n", ("roof",), ("milano",), ("meter-3",), ()),
        ("[9.2, 45.6]", "[9.3, 45.6]", (), ("milano",), ("meter-2",), ()),
        ("unit_id: 1}", "unit_id: 1, entity: {static: {name: x}}}", (), ("milano",), ("meter-1",), ()),
        ("porto.example", "porto.example:8443", (), ("porto",), (), ()),
        ("[9.1590, 45.5030]", "[9.1, 45.5]", (), ("milano", "porto"), ("air-1", "meter-1"), ()),
        ("city: milano", "city: monza", (), ("milano", "porto"), (), ()),
        ("{id: gw-1,", "{id: gw-1, name: Roof,", (), ("milano", "porto"), (), ()),
        ("brokers:", "publish: {provider: x}\nbrokers:", (), ("milano", "porto"), (), ()),
        ("brokers:", 'http: {listen: "127.0.0.1:1"}\nbrokers:', (), (), (), ("http",)),
        ("/tmp/buffer.db", "/tmp/other.db", (), (), (), ("buffer",)),
        ("brokers:", "clock: {trust: system}\nbrokers:", (), (), (), ("clock",)),
        ("driver: bench\n    host", "driver: broken\n    host", ("air",), ("porto",), ("air-1",), ()),
    ],
)
def test_only_what_changed_is_to_be_restarted(
    tmp_path: Path,
    old: str,
    new: str,
    links: tuple[str, ...],
    brokers: tuple[str, ...],
    devices: tuple[str, ...],
    restart: tuple[str, ...],
) -> None:
    before = plan_of(tmp_path)
    after = plan_of(tmp_path, BASE.replace(old, new))

    found = difference(before, after)

    assert (found.links, found.brokers, found.devices, found.restart) == (links, brokers, devices, restart)
    assert len(found.said) == len(links) + len(brokers) + len(devices) + len(restart)


def test_a_device_that_hangs_on_another_link_now_has_changed(tmp_path: Path) -> None:
    before = plan_of(tmp_path)
    moved = BASE.replace(METER_2, "").replace("acme/air}\n", "acme/air}\n" + METER_2)

    found = difference(before, plan_of(tmp_path, moved))

    assert (found.links, found.brokers, found.devices) == (("air", "roof"), (), ("meter-2",))


class WithoutBench(BenchRegistry):
    """A registry whose driver cannot be had, for a reason that changes."""

    def __init__(self, why: str) -> None:
        self._why = why

    def driver(self, name: str) -> NoReturn:
        raise DriverUnavailable(self._why, "install it")


def test_another_reason_why_a_driver_cannot_be_had_is_a_change(tmp_path: Path) -> None:
    (tmp_path / "citygate.yaml").write_text(BASE)
    one, again, other = (
        make_plan(tmp_path, WithoutBench(why)) for why in ("no module a", "no module a", "no module b")
    )

    assert difference(one, again).links == ()
    assert difference(one, other).links == ("air", "roof")


def test_models_that_changed_in_the_folder_beside_are_a_change_for_the_brokers_that_are_sent_such_entities(
    tmp_path: Path,
) -> None:
    before = plan_of(tmp_path)
    (tmp_path / "models").mkdir()
    index = json.loads((files("gateway.models") / "index.json").read_text())

    def after(name: str, like: str, **changes: Any) -> Difference:
        own = {"types": {name: {**index["types"][like], **changes}}, "terms": {}}
        (tmp_path / "models" / "index.json").write_text(json.dumps(own))
        return difference(before, plan_of(tmp_path))

    assert after("Own", "Anomaly") == Difference((), (), (), (), ())
    found = after("AirQualityObserved", "AirQualityObserved", version="99.0")
    assert (found.links, found.brokers, found.devices) == ((), ("porto",), ())


def test_a_difference_says_what_is_new_gone_and_changed(tmp_path: Path) -> None:
    before = plan_of(tmp_path)
    after = plan_of(
        tmp_path, BASE.replace(METER_2, "      meter-3: {template: acme/meter}\n").replace("unit_id: 1", "unit_id: 5")
    )

    assert difference(before, after).said == (
        "link roof: changed",
        "device meter-1: changed",
        "device meter-2: gone",
        "device meter-3: new",
        "broker milano: changed",
    )


def test_a_plan_does_not_differ_from_itself_read_twice(tmp_path: Path) -> None:
    assert difference(plan_of(tmp_path), plan_of(tmp_path)) == Difference((), (), (), (), ())
