"""Every shipped template: its samples, its cases, and that each register moves its own point."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.modbus.codec.frames import read_request
from drivers.modbus.config import ModbusTemplate
from drivers.modbus.device import encoding_of, plan_of, readings_of
from drivers.modbus.driver import DRIVER
from gateway.plan import make_plan
from gateway.registry import Registry
from gateway.sdk.errors import FrameError
from gateway.sdk.quantities import quantities
from gateway.sdk.reading import Quality
from gateway.sdk.testing import NOON
from tests.support.modbus_config import shipped
from tests.support.modbus_slave import rtu, words

FOLDER = Path(str(files("drivers.modbus") / "templates"))
NAMES = sorted(f"{path.parent.name}/{path.stem}" for path in FOLDER.glob("*/*.yaml"))
CASES = sorted(path for path in (Path(__file__).parent / "cases").iterdir() if path.is_dir())
each_template = pytest.mark.parametrize("name", NAMES)


def lines(case: Path) -> list[tuple[str, bytes]]:
    """(request in hexadecimal, reply) of a case."""
    frames = [line.partition(" ")[::2] for line in (case / "frames.hex").read_text().splitlines() if line[:1] in "<>"]
    return [(frames[n][1], bytes.fromhex(frames[n + 1][1])) for n in range(0, len(frames), 2)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_decodes_as_expected(case: Path) -> None:
    config = yaml.safe_load((case / "config.yaml").read_text())
    template = shipped(config["template"])
    context = {"models": config.get("models", {}), "received_at": NOON}
    if (case / "expected.err").exists():
        [(request, reply)] = lines(case)
        with pytest.raises(FrameError) as refused:
            DRIVER.decode(template, reply, {**context, "request": request})
        assert (case / "expected.err").read_text().strip() in str(refused.value)
        return
    got: dict[str, object] = {}
    for request, reply in lines(case):
        got |= {r.point: r.value for r in DRIVER.decode(template, reply, {**context, "request": request})}
    expected = json.loads((case / "expected.json").read_text())
    assert got.keys() == expected.keys()
    for point, value in expected.items():
        assert got[point] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), point


@each_template
def test_every_template_has_a_source_a_mapping_caveats_and_a_case(name: str) -> None:
    template = shipped(name)

    assert template.sources
    assert template.entity.type
    assert all(caveat.source for caveat in template.caveats)
    assert template.caveats
    assert any(yaml.safe_load((case / "config.yaml").read_text())["template"] == name for case in CASES)


@each_template
def test_a_templates_samples_decode_as_expected(name: str) -> None:
    template = shipped(name)
    for sample in template.samples:
        readings = DRIVER.decode(template, bytes.fromhex(sample.hex), {**sample.context, "received_at": NOON})
        assert {r.point: r.value for r in readings} == pytest.approx(sample.expect)


def test_every_template_is_accepted_with_its_mapping(tmp_path: Path) -> None:
    devices = "".join(
        f"      d{n}: {{template: {name}, unit_id: {n}, every: 1 min}}\n" for n, name in enumerate(NAMES, 1)
    )
    (tmp_path / "citygate.yaml").write_text(
        "version: 1\n"
        "gateway: {id: gw, name: test, location: [9.1, 45.5], city: milano}\n"
        f"buffer: {{path: {tmp_path}/buffer.db}}\n"
        f"links:\n  line:\n    driver: modbus\n    host: 192.0.2.1\n    devices:\n{devices}"
        "brokers: {city: {kind: ngsi-ld, url: https://broker.example}}\n"
    )

    plan = make_plan(tmp_path / "citygate.yaml", Registry())

    assert len(plan.devices) == len(NAMES) >= 12


def moved(template: ModbusTemplate, point: str, raws: dict[str, int]) -> set[str]:
    """Points whose reading changes when one register value of `point` moves by a step."""
    bases = dict.fromkeys(template.models, 40070)
    changed = set()
    for block in plan_of(template, bases):
        if all(f.point != point for f in block.fields):
            continue
        ask = read_request(1, block.table, block.address, block.count)
        before, after = bytearray(2 * block.count), bytearray(2 * block.count)
        for f in block.fields:
            start, size = 2 * (f.address - block.address), 2 * f.encoding.words
            before[start : start + size] = f.encoding.ordered(raws.get(f.point, 0).to_bytes(size, "big"))
        after[:] = before
        f = next(f for f in block.fields if f.point == point)
        start, size = 2 * (f.address - block.address), 2 * f.encoding.words
        after[start : start + size] = f.encoding.ordered((raws[point] + 1).to_bytes(size, "big"))
        old, new = (readings_of(template, ask, bytes(data), NOON, bases) for data in (before, after))
        changed |= {a.point for a, b in zip(old, new, strict=True) if a != b}
    return changed


@each_template
@settings(max_examples=20)
@given(data=st.data())
def test_one_register_moved_by_a_step_moves_its_point_alone(name: str, data: st.DataObject) -> None:
    template = shipped(name)
    point = data.draw(
        st.sampled_from([p for p in template.points if not template.status or p != template.status.point])
    )
    raws = {
        p: data.draw(st.integers(1, 6))
        if its.enum
        else 0x42000000 + data.draw(st.integers(1, 0xFFFFF))
        if its.type == "float32"
        else data.draw(st.integers(1, 30000))
        for p, its in template.points.items()
    }
    if template.status:
        raws[template.status.point] = int(template.status.healthy)

    assert moved(template, point, raws) == {point}


@each_template
def test_quantities_and_types_fit(name: str) -> None:
    for point, its in shipped(name).points.items():
        quantity = quantities()[its.quantity]
        encoding = encoding_of(its)
        if quantity.kind == "text":
            assert its.enum or its.type == "string", point
        if quantity.kind == "integer":
            assert encoding.whole is not None, point


@each_template
def test_no_poll_needs_more_than_a_few_requests(name: str) -> None:
    template = shipped(name)

    assert len(plan_of(template, dict.fromkeys(template.models, 40070))) <= 5


def test_a_damaged_case_frame_gives_no_reading() -> None:
    [(request, reply)] = lines(next(case for case in CASES if case.name == "sht20-xy-md02-manual"))
    for place in range(len(reply)):
        damaged = reply[:place] + bytes((reply[place] ^ 1,)) + reply[place + 1 :]
        with pytest.raises(FrameError):
            DRIVER.decode(shipped("sht20/xy-md02"), damaged, {"request": request})


def test_a_device_fault_takes_the_values_with_it() -> None:
    reply = rtu(254, words(4, [0x0020, 0, 0, 400]))

    status, co2 = DRIVER.decode(shipped("senseair/s8"), reply, {"request": "fe0400000004e5c6"})

    assert (status.value, co2.value, co2.quality) == (32, None, Quality.BAD)


_BY_PHASE = {
    "voltage": "phaseVoltage",
    "current": "current",
    "power_factor": "powerFactor",
    "active_power": "activePower",
    "reactive_power": "reactivePower",
    "apparent_power": "apparentPower",
    "energy_import": "activeEnergyImport",
    "energy_export": "activeEnergyExport",
    "reactive_energy_import": "reactiveEnergyImport",
    "reactive_energy_export": "reactiveEnergyExport",
    "thd_voltage": "thdVoltage",
}


@each_template
def test_what_a_meter_measures_by_phase_is_mapped_by_phase(name: str) -> None:
    template = shipped(name)
    if template.entity.type != "ACMeasurement":  # one phase, or none
        pytest.skip("no meter")
    mapped = {source.point: key for key, source in template.entity.attributes.items() if source}
    by_phase = {point: _BY_PHASE.get(point[:-3]) for point in template.points if point[-3:-1] == "_l"}
    assert {point: f"{attribute}.{point[-2:].upper()}" for point, attribute in by_phase.items() if attribute} == {
        point: mapped.get(point) for point, attribute in by_phase.items() if attribute
    }
