"""What a config makes of the devices that the log knows: their names, kinds, recipes and entities. Pure; no box runs."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gateway.harmonise.recipe import kind_of, recipe_of
from gateway.log.recipes import Change, Row
from gateway.plan import Plan
from gateway.recipes import Devices
from tests.gateway.test_devices_that_go import MILLIVOLT
from tests.gateway.test_plan import BASE, plan_of

METER = "      meter-1: {template: acme/meter, unit_id: 1}\n"
ENTITY = "urn:ngsi-ld:ACMeasurement:milano:gw-1:"
Config = Callable[[str], tuple[Devices, Plan]]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    own = tmp_path / "templates" / "acme" / "millivolt.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(MILLIVOLT)

    def devices(text: str) -> tuple[Devices, Plan]:
        plan = plan_of(tmp_path, text)
        tables = {name: its.mappings for name, its in plan.brokers.items()}
        were = {name: its.config.was for name, its in plan.brokers.items() if its.config.was}
        off = {name for link in plan.links.values() for name in link.device_names} - plan.devices.keys()
        return Devices(plan.devices, tables, off=off, brokers_were=were), plan

    return devices


def rows_of(plan: Plan, device: str = "meter-1", broker: str = "milano") -> Mapping[Row, bytes]:
    its = plan.devices[device]
    return {
        (device, ""): kind_of(its.template, its.points),
        (device, broker): recipe_of(plan.brokers[broker].mappings[device]),
    }


def changed(config: Config, old: str, new: str, text: str = BASE) -> tuple[Change, Mapping[Row, bytes]]:
    """What the changed config makes of all that the one before had, and that."""
    first, _ = config(text)
    known = first({}).rows
    assert first(known) == first({}), "of what it made itself it makes the same"
    assert old in text
    then, _ = config(text.replace(old, new))
    return then(known), known


def test_of_a_device_that_is_gone_everything_stays(config: Config) -> None:
    change, known = changed(config, METER, "")

    assert "meter-1" not in change.devices
    for row, body in known.items():
        if row[0] in ("meter-1", "@meter-1"):
            assert change.rows[row] == body
    assert "@meter-1" in change.quiet
    assert "meter-1" not in change.quiet
    assert change.entities == {}


def test_a_new_name_takes_all_and_its_entities_are_called_by_it(config: Config) -> None:
    change, _ = changed(config, "meter-1: {", "meter-3: {was: meter-1, ")

    assert change.moves == {"meter-1": "meter-3", "@meter-1": "@meter-3"}
    assert change.states == {"meter-1": "meter-3"}
    assert not {row for row in change.rows if row[0] in change.moves}
    assert change.entities["milano", "meter-3", f"{ENTITY}meter-1"] == f"{ENTITY}meter-3"
    assert all(old != new for (_, _, old), new in change.entities.items())


def test_another_kind_leaves_the_name_and_the_first_one_again_takes_it_back(config: Config) -> None:
    other = METER.replace("acme/meter", "acme/millivolt")
    change, known = changed(config, METER, other)
    [(name, called)] = change.moves.items()
    assert name == "meter-1"
    assert called.startswith("meter-1 (acme/meter ")
    assert change.rows[called, "milano"] == known["meter-1", "milano"]
    assert change.rows[called, ""] == known["meter-1", ""]
    assert change.rows["meter-1", ""] != known["meter-1", ""]
    assert change.states == {}, "the driver's state is that of the device"

    again, _ = config(BASE)
    back = again(change.rows)
    assert back.moves[called] == "meter-1"
    assert back.moves["meter-1"].startswith("meter-1 (acme/millivolt ")
    assert back.rows["meter-1", "milano"] == known["meter-1", "milano"]
    assert (called, "milano") not in back.rows


def test_a_new_name_and_another_kind_at_once_are_told_apart(config: Config) -> None:
    change, known = changed(
        config, "meter-1: {template: acme/meter", "meter-3: {was: meter-1, template: acme/millivolt"
    )
    called = change.moves["meter-1"]
    assert called.startswith("meter-3 (acme/meter ")
    assert change.rows[called, "milano"] == known["meter-1", "milano"]
    assert change.states == {"meter-1": "meter-3"}
    assert change.moves["@meter-1"] == "@meter-3"


def test_a_kind_with_one_point_more_is_the_same(config: Config, tmp_path: Path) -> None:
    more = tmp_path / "templates" / "acme" / "meter.yaml"
    before, plan = config(BASE)
    known = before({}).rows
    points = "points:\n  voltage: {quantity: voltage, unit: VLT}\n"
    text = "vendor: Acme\nmodel: Meter\n" + points + MILLIVOLT[MILLIVOLT.index("entity:") :]
    more.write_text(text.replace(points, points + "  current: {quantity: current}\n"))
    then, after = config(BASE)
    assert set(after.devices["meter-1"].points) > set(plan.devices["meter-1"].points)
    assert then(known).moves == {}


def test_a_city_with_a_new_name_has_the_recipes_of_the_old_one(config: Config) -> None:
    first, _ = config(BASE)
    known = first({}).rows
    text = BASE.replace(METER, "")
    gone, _ = config(text)
    change = gone(known)
    renamed, _ = config(text.replace("  milano: {", "  lisboa: {was: milano, "))
    then = renamed(change.rows)
    assert then.rows["meter-1", "lisboa"] == known["meter-1", "milano"]
    assert not [row for row in then.rows if row[1] == "milano"]
    assert renamed.gone_takes("lisboa", "meter-1", "voltage")


def test_a_city_that_is_gone_keeps_the_recipes_of_devices_that_are_there(config: Config) -> None:
    text = '  milano: {url: "https://broker.example", send: ["meter-*"]}\n'
    change, known = changed(config, text, "")
    assert change.rows["meter-1", "milano"] == known["meter-1", "milano"]
    back, _ = config(BASE.replace("acme/meter, unit_id: 1", f"acme/meter, unit_id: 1, entity: {{id: '{ENTITY}x'}}"))
    assert back(change.rows).rows["meter-1", "milano"] != known["meter-1", "milano"], "put back it has the new mapping"


def test_a_city_that_is_no_longer_sent_a_device_has_no_recipe_of_it(config: Config) -> None:
    change, known = changed(config, '["meter-*"]', "[meter-2]")
    assert ("meter-1", "milano") in known
    assert ("meter-1", "milano") not in change.rows
    assert ("meter-1", "") in change.rows


def test_what_a_device_that_is_gone_is_sent_to_whom(config: Config) -> None:
    first, plan = config(BASE)
    known = first({}).rows
    gone, _ = config(BASE.replace(METER, ""))
    assert not gone.gone_takes("milano", "meter-1", "voltage"), "nothing is known yet"
    gone(known)
    assert gone.gone_takes("milano", "meter-1", "voltage")
    assert not gone.gone_takes("milano", "meter-1", "current")
    assert not gone.gone_takes("porto", "meter-1", "voltage")
    assert not gone.gone_takes("milano", "meter-2", "voltage"), "it is not gone"
    gone({**known, ("meter-1", "milano"): b"no recipe"})
    assert gone.gone_takes("milano", "meter-1", "current"), "held, whatever it is"
    gone(rows_of(plan))
    assert gone.gone_takes("milano", "meter-1", "voltage")
    assert not gone.gone_takes("milano", "meter-1", "current")


def test_a_device_whose_driver_cannot_be_had_is_not_said_to_be_gone(config: Config) -> None:
    first, _ = config(BASE)
    known = first({}).rows
    off, _ = config(BASE.replace("driver: bench\n    host", "driver: broken\n    host"))
    change = off(known)
    assert "air-1" in change.quiet
    assert change.rows["air-1", "porto"] == known["air-1", "porto"]


def test_one_that_takes_the_name_of_a_device_that_is_gone_keeps_its_own_recipe_for_a_city_that_is_gone(
    config: Config,
) -> None:
    """Of both there is one: that of the device which has the name."""
    text = BASE.replace('["meter-*"]', '["*"]')
    first, _ = config(text)
    known = first({}).rows
    milano = '  milano: {url: "https://broker.example", send: ["*"]}\n'
    without, _ = config(text.replace(milano, "").replace("meter-2: {", "meter-2: {was: meter-1, ").replace(METER, ""))
    change = without(known)
    assert change.moves["meter-1"] == "meter-2"
    assert change.rows["meter-2", "milano"] == known["meter-2", "milano"]
