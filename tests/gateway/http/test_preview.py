"""`preview` says what the schema has against an entity before anything is sent."""

from gateway.http.preview import blanks, entities, remarks
from gateway.models.catalogue import catalogue
from gateway.models.validator import Validator
from tests.support.ngsi import compiled, device

NOON_US = 1_780_315_200_000_000
STATION = device(
    {"t": "air_temperature", "rh": "humidity"},
    {"type": "WeatherObserved", "attributes": {"temperature": "t", "relativeHumidity": "rh"}},
)


def test_a_sound_entity_has_no_remark() -> None:
    tables, _ = compiled(STATION)
    good = {"t": (21.5, NOON_US), "rh": (43.0, NOON_US)}
    assert remarks(tables, good, Validator(catalogue())) == []
    assert [entity["type"] for entity in entities(tables, good)] == ["WeatherObserved"]
    assert [entity["temperature"]["type"] for entity in entities(tables, good, kind="ngsi-v2")] == ["Number"]


def test_what_the_model_does_not_allow_and_what_is_missing_is_said() -> None:
    tables, _ = compiled(STATION)
    [remark] = remarks(tables, {"t": (21.5, NOON_US), "rh": (430.0, NOON_US)}, Validator(catalogue()))
    assert "relativeHumidity" in remark
    [remark] = remarks(tables, {}, Validator(catalogue()))
    assert "not sent before dateObserved is known" in remark


def test_an_attribute_that_is_left_out_is_named_with_the_point_it_waits_for() -> None:
    tables, _ = compiled(STATION)
    assert blanks(tables, {"t": (21.5, NOON_US), "rh": (43.0, NOON_US)}) == []
    [left] = blanks(tables, {"t": (21.5, NOON_US)})
    assert left.endswith(": without relativeHumidity: no good value of rh here")
