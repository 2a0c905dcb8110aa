"""One unit at work."""

from datetime import timedelta
from typing import Any

import pytest

from drivers.modbus.config import ModbusTemplate
from drivers.modbus.device import MAX_PROBE_S, MAX_SEARCH_PAUSE_S, MIN_PROBE_S, SILENT_CYCLES, Unit
from drivers.modbus.sunspec import Models
from gateway.sdk.reading import Reading, Reason
from gateway.sdk.testing import NOON
from tests.support.modbus_config import link, template


def test_a_read_beside_the_polls_confirms_no_count() -> None:
    """It may come a millisecond after the poll, while the meter still says 0."""
    meter = template(n={"address": 0, "rollover": 65536})
    device = link({"one": {"template": meter, "unit_id": 1}}).devices["one"]
    unit = Unit("one", device, timeout_s=1, start_s=0, grid_s=0, saved={})

    def reading(value: int, at_s: float) -> tuple[Reading]:
        return (Reading("n", value, NOON + timedelta(seconds=at_s)),)

    for at_s, value in enumerate([65400, 65410, 0]):
        polled = unit.finished(reading(value, at_s))
    saved = unit.state()
    shown = [unit.shown(reading(0, 2.001))[0] for _ in range(5)]

    assert polled[0].reason is Reason.OUT_OF_RANGE
    assert shown[0].value is not None or shown[0].reason is Reason.OUT_OF_RANGE
    assert unit.state() == saved
    assert unit.finished(reading(65420, 3))[0].value == 65420


def sunspec_unit() -> Unit:
    points: dict[str, Any] = {
        "a": {"quantity": "index", "address": 2, "model": 1},
        "b": {"quantity": "index", "address": 2, "model": 103},
    }
    its = ModbusTemplate.model_validate({"vendor": "test", "model": "test", "name": "test/test", "points": points})
    device = link({"one": {"template": its, "unit_id": 1, "every": "1 s"}}).devices["one"]
    return Unit("one", device, timeout_s=1.0, start_s=0.0, grid_s=0.0, saved={})


def test_models_that_are_missing_are_looked_for_ever_more_seldom_until_they_are_found() -> None:
    unit = sunspec_unit()
    pauses = []
    for n in range(8):
        unit.place(None, 1000.0 * n)
        pauses.append(unit.search_again_s - 1000.0 * n)
    assert pauses[:3] == [10.0, 20.0, 40.0]
    assert pauses[-1] == MAX_SEARCH_PAUSE_S
    assert unit.lacking == "no SunSpec map in this device"

    unit.place(Models({1: 100}, {1: 166}, True), 9000.0)
    assert unit.lacking == "no SunSpec model 103"
    assert (unit.searching, unit.absent) == (True, ("b",))
    learned = unit.pieces
    unit.place(Models({1: 100}, {1: 166}, True), 10000.0)
    assert unit.pieces is learned, "what was learned of its registers is not forgotten"

    unit.place(Models({1: 100, 103: 168}, {1: 166, 103: 220}, True), 11000.0)
    assert (unit.searching, unit.lacking, unit.absent) == (False, "", ())
    assert unit.pieces is not learned
    unit.forget()
    assert (unit.models, unit.searching, unit.search_again_s) == (None, True, 0.0)
    unit.place(None, 12000.0)
    assert unit.search_again_s == 12010.0, "the pauses begin anew"


def test_another_device_in_its_place_is_searched_from_the_beginning() -> None:
    unit = sunspec_unit()
    before = unit.search
    unit.place(Models({1: 100, 103: 168}, {1: 166, 103: 220}, True), 0.0)
    unit.forget()
    assert unit.search is not before


def test_probes_fall_on_the_grid_and_what_they_leave_out_is_not_missed() -> None:
    unit = sunspec_unit()
    assert unit.plan_next(0.5) == 0
    assert unit.plan_next(5.5) == 4
    assert unit.again_s == pytest.approx(6.0)
    for failures in range(SILENT_CYCLES, SILENT_CYCLES + 8):
        unit.failures = failures
        now_s = unit.again_s + 1.3
        assert unit.plan_next(now_s) == 0
        pause_s = min(MAX_PROBE_S, MIN_PROBE_S * 2 ** (failures - SILENT_CYCLES))
        assert now_s + pause_s / 2 <= unit.again_s <= now_s + pause_s + 1.0
        assert unit.again_s == pytest.approx(round(unit.again_s)), "on its grid"


def test_a_counter_that_has_counted_nothing_is_not_saved() -> None:
    device = link({"one": {"template": template(n={"address": 0, "rollover": 65536}), "unit_id": 1}}).devices["one"]
    assert Unit("one", device, timeout_s=1.0, start_s=0.0, grid_s=0.0, saved={}).state() is None
