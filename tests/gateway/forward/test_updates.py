"""Updates: what readings change in an entity."""

from dataclasses import replace

from gateway.forward.updates import Feed, Update, instant, is_measured
from gateway.harmonise.entity import Attribute
from tests.gateway.forward.scene import LOCATION, START, entity_id, measured
from tests.gateway.forward.test_verdicts import Scene

STATIC = replace(measured("air-1"), attributes={"location": Attribute("geo", LOCATION)})


def update(held: int = 0) -> Update:
    made = Scene("air-1").update("air-1", 2.0, no2=1.0, pm25=2.0)
    return Update(made.feed, made.readings, 7, held)


def test_a_feed_is_known_by_its_entity_and_its_device() -> None:
    feed = update().feed
    assert feed.key == (entity_id("air-1"), "air-1")
    assert "key" not in Feed.__init__.__annotations__


def test_an_update_comes_from_no_held_piece_unless_it_is_said() -> None:
    made = update()
    assert Update(made.feed, made.readings, 7).held == 0
    assert update(held=3).held == 3


def test_the_entity_is_made_once_and_may_be_taken_apart() -> None:
    made = update()
    entity = made.entity
    assert made.entity is entity
    assert {"no2", "pm25", "dateObserved"} == entity.attributes.keys()
    made.entity = STATIC
    assert made.entity is STATIC


def test_what_is_static_or_says_the_time_is_no_history() -> None:
    past = update().past
    assert past.attributes.keys() == {"no2", "pm25"}
    assert (past.id, past.type, past.device) == (entity_id("air-1"), "AirQualityObserved", "air-1")


def test_an_update_is_as_new_as_its_newest_reading() -> None:
    made = update()
    (value, time_us, number), other = made.readings["no2"], made.readings["pm25"]
    for newest in ({"no2": (value, time_us + 1, number), "pm25": other}, {"no2": other, "pm25": (1, time_us + 1, 2)}):
        assert Update(made.feed, newest, 7).newest_us == time_us + 1
    assert instant(time_us + 1) > instant(time_us)


def test_a_part_is_of_the_same_set_and_the_same_piece() -> None:
    made = update(held=3)
    readings = {"no2": made.readings["no2"]}
    part = made.part(readings)
    assert (part.feed, part.readings, part.seq, part.held) == (made.feed, readings, 7, 3)
    assert "pm25" not in part.entity.attributes


def test_measured_is_what_has_a_time() -> None:
    assert is_measured(measured("air-1", no2=1))
    assert not is_measured(STATIC)
    assert is_measured(replace(STATIC, attributes={**STATIC.attributes, "no2": Attribute("property", 1, "", START)}))
