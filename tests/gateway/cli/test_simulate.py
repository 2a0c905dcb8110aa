"""simulate and street: values that name themselves, values that fit each other, and who is played."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import street
from gateway.cli.simulate import counter_of, wave_of
from gateway.plan import Plan, make_plan
from gateway.registry import Registry
from gateway.sdk.quantities import quantities
from tests.gateway.cli.conftest import Command
from tests.support.box import Process, eventually, free_port

CONFIG = """\
version: 1
gateway: {{id: gw-1, city: milano, location: [9.1, 45.5]}}
buffer: {{path: {folder}/buffer.db}}
links:
  plant: {{driver: modbus, host: 127.0.0.1, port: {port}, devices: {{meter-1: {{template: eastron/sdm120, unit_id: 1, every: 1 s}}}}}}
  air: {{driver: serial, port: {folder}/air, devices: {{air-1: {{template: nova/sds011}}}}}}
clock: {{trust: system}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "citygate.yaml").write_text(CONFIG.format(folder=tmp_path, port=free_port()))
    return tmp_path


@pytest.fixture
def plan(folder: Path) -> Plan:
    return make_plan(folder, Registry())


def points(plan: Plan) -> list[tuple[str, str]]:
    return [(device.name, point) for device in plan.devices.values() for point in device.points]


def test_a_counters_values_differ_and_stay_plausible(plan: Plan) -> None:
    value = counter_of(plan)
    for device, point in points(plan):
        served = [value(device, point, n) for n in range(90)]
        assert len(set(served)) == 90, (device, point)
        declared = plan.devices[device].points[point]
        low, high = plan.devices[device].template.points[point].range or quantities()[declared.quantity].range or (0, 0)
        assert all(low <= one <= high for one in served), (device, point)


def test_a_streets_values_stay_plausible_for_days(plan: Plan) -> None:
    value = wave_of(plan)
    for device, point in points(plan):
        declared = plan.devices[device].points[point]
        low, high = plan.devices[device].template.points[point].range or quantities()[declared.quantity].range or (0, 0)
        assert all(low <= value(device, point, n) <= high for n in range(0, 100_000, 997)), (device, point)


@given(n=st.integers(0, 10**6), pace=st.integers(1, 5))
def test_power_fits_voltage_and_current(n: int, pace: int) -> None:
    def of(quantity: str) -> float:
        value = street.value(quantity, pace, n)
        assert value is not None
        return value

    assert of("apparent_power") == pytest.approx(of("voltage") * of("current"))
    assert of("active_power") == pytest.approx(of("apparent_power") * of("power_factor"))
    assert math.hypot(of("active_power"), of("reactive_power")) == pytest.approx(of("apparent_power"))
    assert street.value("active_energy", pace, n + 1) > of("active_energy")  # type: ignore[operator]


def test_every_usual_quantity_is_in_the_closed_list() -> None:
    assert {*street.USUAL, *street.ELECTRIC} <= set(quantities())


def served(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_only_the_link_asked_for_is_played_and_what_it_serves_is_written_down(folder: Path) -> None:
    file = folder / "served.jsonl"
    process = Process(
        folder / "simulate.log", "-m", "gateway", "simulate", "-c", str(folder), "--link", "air", "--values", "counter", "--served", str(file)
    )  # fmt: skip
    try:
        eventually("two lines", lambda: len(served(file)) >= 2)
        assert (folder / "air").is_char_device()
        first, second = served(file)[:2]
        assert set(first) == {"at", "device", "values"}
        assert (first["device"], set(first["values"])) == ("air-1", {"pm2_5", "pm10"})
        assert first["values"] != second["values"]
        assert "meter-1" not in process.text()
    finally:
        assert process.end() == 0
    assert not (folder / "air").exists()


def test_a_silent_device_says_nothing(folder: Path) -> None:
    file = folder / "served.jsonl"
    process = Process(
        folder / "simulate.log", "-m", "gateway", "simulate", "-c", str(folder), "--silent", "air-1", "--served", str(file)
    )  # fmt: skip
    try:
        eventually("playing", lambda: "playing" in process.text())
        eventually("a read of the other", lambda: _read(folder) == 0)
        assert {line["device"] for line in served(file)} == {"meter-1"}
    finally:
        process.end()


def _read(folder: Path) -> int:
    process = Process(folder / "read.log", "-m", "gateway", "read", "meter-1", "-c", str(folder), "--json")
    return process.popen.wait(90)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--link", "nope"), "there are plant, air"),
        (("--silent", "nope"), "there are meter-1, air-1"),
        (("--late", "nope=1 s"), "there are meter-1, air-1"),
        (("--late", "air-1=soon"), "duration"),
    ],
)
def test_wrong_use_is_told(citygate: Command, folder: Path, arguments: tuple[str, ...], says: str) -> None:
    ended = citygate("simulate", "-c", str(folder), *arguments)
    assert ended.code == 2
    assert says in ended.err


def test_a_real_port_is_never_taken(citygate: Command, folder: Path) -> None:
    (folder / "air").write_text("a file of somebody's")
    ended = citygate("simulate", "-c", str(folder), "--link", "air")
    assert ended.code == 1
    assert "never takes a real port" in ended.err
    assert (folder / "air").read_text() == "a file of somebody's"
