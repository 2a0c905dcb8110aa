"""Every template against the examples of its vendor's codec, its own samples, the quantities and the models."""

import contextlib
import json
import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from drivers.lora.codec.payload import MAX_FIELDS, Received, decode_layout
from drivers.lora.config import RADIO_POINTS, LoraTemplate
from drivers.lora.driver import CHIRPSTACK
from drivers.lora.layout import JavaScriptCodec, LayoutCodec
from drivers.lora.scan import load_templates
from drivers.lora.simulator import write_payload
from gateway.intake import Intake, rules_of
from gateway.sdk.errors import FrameError
from gateway.sdk.quantities import conversion, quantities
from gateway.sdk.reading import Quality, TimeSource
from gateway.sdk.simulator import Faults, World
from gateway.sdk.testing import NOON

CASES = Path(__file__).parent / "cases" / "lorawan_codecs"
TEMPLATES = load_templates(CHIRPSTACK.templates)
NAMES: dict[str, dict[str, Any]] = yaml.safe_load((CASES / "names.yaml").read_text())
TRUE = {"true", "trigger", "occupied", "tilt", "open", "y", "opened", "alarm", "pushed"}
FALSE = {"false", "idle", "vacant", "normal", "close", "closed", "n", "not pushed"}


def examples() -> list[Any]:
    return [
        pytest.param(file.stem, case, id=f"{file.stem}: {case['name']}")
        for file in sorted(CASES.glob("*.json"))
        for case in json.loads(file.read_text())["cases"]
        if "template" in NAMES[file.stem]
        and case["context"].get("fport") in NAMES[file.stem].get("ports", [case["context"].get("fport")])
    ]


def same(got: Any, want: Any) -> bool:
    """Equal as the vectors' README says: relative 1e-6, or half of the last printed digit."""
    if isinstance(want, str) and want.lower() in TRUE | FALSE:
        return got is (want.lower() in TRUE)
    if isinstance(want, str):
        want = float(want.rstrip(","))
    if isinstance(got, bool):
        return got is bool(want)
    digits = len(repr(float(want)).partition(".")[2])
    return bool(abs(got - want) <= max(1e-6 * abs(want), 0.5 * 10**-digits))


def flat(expect: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, said in expect.items():
        value = said["value"]
        if isinstance(value, list):
            found |= {f"{name}[{n}]": item for n, item in enumerate(value)} or {name: None}
        else:
            found[name] = value
    return found


@pytest.mark.parametrize(("name", "case"), examples())
def test_examples_of_the_vendors_codec_give_their_values(name: str, case: dict[str, Any]) -> None:
    rules = NAMES[name]
    template = TEMPLATES[rules["template"]]
    context = {"received_at": NOON, "f_port": case["context"].get("fport")}
    if "expect_error" in case:
        with pytest.raises(FrameError):
            CHIRPSTACK.decode(template, bytes.fromhex(case["input_hex"]), context)
        return
    readings = {r.point: r for r in CHIRPSTACK.decode(template, bytes.fromhex(case["input_hex"]), context)}
    left, prefixes = rules.get("left", {}), tuple(rules.get("left_prefixes", ()))
    for field, want in flat(case["expect"]).items():
        if field in left or field.partition("[")[0] in left or (prefixes and field.startswith(prefixes)):
            continue
        reading = readings[rules["names"][field]]
        if want == "No Sensor":
            assert reading.quality is Quality.BAD
            continue
        assert reading.value is not None, field
        want = (not want) if field in rules.get("inverted", ()) else want
        scale = rules.get("scale", {}).get(field)
        assert same(reading.value, want * scale if scale else want), f"{field}: {reading.value}, expected {want}"


def test_every_file_of_examples_has_a_template_or_a_reason() -> None:
    assert {file.stem for file in CASES.glob("*.json")} == set(NAMES)
    assert sum("none" in rules for rules in NAMES.values()) <= 7
    assert len(TEMPLATES) >= 50


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda template: template.name)
def test_samples_hold(template: LoraTemplate) -> None:
    assert template.samples, "a template has at least one sample"
    for sample in template.samples:
        readings = CHIRPSTACK.decode(template, bytes.fromhex(sample.hex), {**sample.context, "received_at": NOON})
        judged = Intake(rules_of(template)).judge(readings)
        assert {r.point: r.value for r in judged.readings} == sample.expect
        assert not judged.undeclared


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda template: template.name)
def test_points_are_in_the_closed_list_in_units_that_convert(template: LoraTemplate) -> None:
    for name, point in template.points.items():
        quantity = quantities()[point.quantity]
        if point.unit and point.range is None:  # a gas in ppm needs a range of its own, its quantity's is by mass
            conversion(point.unit, quantity.unit)
        assert bool(point.unit) == bool(quantity.unit) or not quantity.unit, name
    for attribute in template.entity.attributes.values():
        assert attribute is not None
        assert attribute.point in template.points


@given(st.sampled_from(sorted(TEMPLATES)), st.binary(max_size=64), st.integers(0, 255))
def test_any_payload_is_decoded_or_refused_within_bounds(name: str, payload: bytes, port: int) -> None:
    template = TEMPLATES[name]
    if isinstance(template.codec, LayoutCodec):
        with contextlib.suppress(FrameError):
            assert len(decode_layout(template.codec, payload, port, Received(NOON)).readings) <= MAX_FIELDS


@given(
    st.sampled_from([(name, sample) for name, made in sorted(TEMPLATES.items()) for sample in made.samples]),
    st.lists(st.tuples(st.integers(0, 80), st.binary(max_size=2)), max_size=4),
)
def test_a_damaged_sample_gives_declared_points_and_sound_values_or_is_refused(
    chosen: tuple[str, Any], damage: list[tuple[int, bytes]]
) -> None:
    name, sample = chosen
    payload = bytes.fromhex(sample.hex)
    for place, bytes_there in damage:
        payload = payload[:place] + bytes_there + payload[place + 1 :]
    try:
        readings = CHIRPSTACK.decode(TEMPLATES[name], payload, {**sample.context, "received_at": NOON})
    except FrameError as error:
        readings = error.readings
    for reading in readings:
        assert reading.point in TEMPLATES[name].points or name == "generic/cayenne"
        assert (reading.value is None) is (reading.quality is Quality.BAD)
        assert not isinstance(reading.value, float) or math.isfinite(reading.value)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda template: template.name)
def test_one_byte_less_never_gives_a_wrong_value(template: LoraTemplate) -> None:
    """A cut payload gives fewer values, the same values, or is refused: never other values."""
    for sample in template.samples:
        if not isinstance(template.codec, LayoutCodec) or template.name in FIXED_FROM_THE_END:
            continue
        whole = bytes.fromhex(sample.hex)
        for cut in range(len(whole)):
            with contextlib.suppress(FrameError):
                readings = CHIRPSTACK.decode(template, whole[:cut], {**sample.context, "received_at": NOON})
                for r in Intake(rules_of(template)).judge(readings).readings:
                    if r.value is not None and r.point != "people":  # people is a sum that may lack its second part
                        assert r.value == sample.expect[r.point], (sample.name, cut, r.point)


FIXED_FROM_THE_END = {
    "smartrural/grain-probe",
    "adeunis/pulse",
    "emu/professional-ii",
    "dragino/ldds75",
    "opensource/paxcounter",
}


def test_device_time_dates_the_readings() -> None:
    probe = CHIRPSTACK.decode(
        TEMPLATES["smartrural/grain-probe"], bytes.fromhex("0e55010862086760e43cc6"), {"f_port": 2}
    )
    assert {(r.observed_at, r.time_source) for r in probe[1:]} == {
        (datetime.fromtimestamp(1625570502, UTC), TimeSource.DEVICE)
    }
    [meter] = [r for r in CHIRPSTACK.decode(TEMPLATES["adeunis/pulse"], bytes.fromhex("5a6700000127000100020003000414aba3e9"), {})
               if r.point == "counter"]  # fmt: skip
    assert meter.observed_at == datetime(2023, 12, 28, 19, 22, 17, tzinfo=UTC)
    energy = CHIRPSTACK.decode(
        TEMPLATES["emu/professional-ii"], bytes.fromhex("b4d77b6101b4d77b61031207000039"), {"f_port": 1}
    )
    assert energy[0].observed_at == datetime.fromtimestamp(1635506100, UTC)


def test_datalogger_records_carry_their_own_time_and_the_rest_that_of_the_uplink() -> None:
    record = "20ce" + "00fee265" + "3401" + "6500" + "01" + "02" + "e704" + "0700" + "3f27"
    readings = CHIRPSTACK.decode(
        TEMPLATES["milesight/am307"], bytes.fromhex("01755c" + record + "03670001"), {"f_port": 85, "received_at": NOON}
    )
    times = {r.point: (r.observed_at, r.time_source) for r in readings}
    old = datetime.fromtimestamp(0x65E2FE00, UTC)
    assert times["co2"] == (old, TimeSource.DEVICE)
    assert times["battery_level"] == (NOON, TimeSource.GATEWAY)
    assert [(r.value, r.observed_at) for r in readings if r.point == "air_temperature"] == [(30.8, old), (25.6, NOON)]


@pytest.mark.parametrize("unset", ["00000000", "80510100", "ffffffff"])
def test_a_record_of_a_device_whose_clock_was_never_set_is_left_out(unset: str) -> None:
    record = "20ce" + unset + "3401" + "6500" + "01" + "02" + "e704" + "0700" + "3f27"
    payload = bytes.fromhex("01755c" + record + "03670001")
    readings = CHIRPSTACK.decode(TEMPLATES["milesight/am307"], payload, {"f_port": 85, "received_at": NOON})
    assert {r.point: r.value for r in readings} == {"battery_level": 92.0, "air_temperature": 25.6}


def test_a_payload_dated_in_the_future_gets_the_time_of_its_uplink() -> None:
    later = int((NOON + timedelta(hours=1)).timestamp()).to_bytes(4, "little")
    frame = later + bytes.fromhex("031207000039")
    readings = CHIRPSTACK.decode(TEMPLATES["emu/professional-ii"], frame, {"f_port": 1, "received_at": NOON})
    assert [(r.value, r.observed_at, r.time_source) for r in readings] == [(1810.0, NOON, TimeSource.GATEWAY)]


def meanings(steps: Any) -> dict[str, Any]:
    """Point -> how its raw number becomes its value, of the points that the simulator writes."""
    found: dict[str, Any] = {}
    for step in steps:
        for part in step.parts or (step,):
            if step.sum:
                continue
            if part.point and part.polynomial is None and not part.flag and part.values is None and part.power == 1:
                found.setdefault(part.point, part)
        for group in (*(step.mask.groups if step.mask else ()), *(step.tlv.entries.values() if step.tlv else ())):
            if not any(inner.time for inner in group):
                found = {**meanings(group), **found}
    return found


@pytest.mark.parametrize(
    "name", sorted(name for name, made in TEMPLATES.items() if isinstance(made.codec, LayoutCodec))
)
@given(data=st.data())
def test_one_step_of_a_field_moves_its_point_alone(name: str, data: st.DataObject) -> None:
    made = TEMPLATES[name]
    assert isinstance(made.codec, LayoutCodec)
    parts = meanings(next(frame for frame in made.codec.frames if not frame.ignore).read)
    world = World(lambda _d, _p, _n: 0.0, lambda _d, _v: None, Faults())
    served = write_payload("d", made, 0, world)[2]
    if not served.keys() & parts.keys():
        return
    moved = data.draw(st.sampled_from(sorted(served.keys() & parts.keys())))  # in the mode that is simulated
    step = abs(parts[moved].scale / parts[moved].divide)
    n = data.draw(st.integers(1, 12))  # fits the smallest field, of four bits

    def decoded(extra: float) -> dict[str, Any]:
        values = {point: part.offset + (n + part.bias) * part.scale / part.divide for point, part in parts.items()}
        values[moved] += extra * step
        world = World(lambda _d, point, _n: values.get(point, 0.0), lambda _d, _v: None, Faults())
        port, payload, _ = write_payload("d", made, 0, world)
        found = CHIRPSTACK.decode(made, payload, {"f_port": port, "received_at": NOON})
        return {r.point: r.value for r in found}

    before, after = decoded(0), decoded(1)
    changed = {point for point in before if before[point] != after[point]}
    assert changed - ALSO.get((name, moved), set()) == {moved}
    if before[moved] is not None and after[moved] is not None:
        assert after[moved] - before[moved] == pytest.approx(step, rel=1e-6, abs=1e-9)


# one raw number with two meanings, and a sum
ALSO = {("opensource/paxcounter", "wifi"): {"people"}, ("opensource/paxcounter", "ble"): {"people"},
        ("decentlab/dl-5tm", "permittivity"): {"soil_moisture"}}  # fmt: skip


def test_the_readme_lists_every_template_and_the_sample_uses_some() -> None:
    folder = Path(str(CHIRPSTACK.templates)).parent
    listed = set(re.findall(r"^\| `([\w./-]+)` \|", (folder / "README.md").read_text(), re.MULTILINE)) & set(TEMPLATES)
    assert listed == set(TEMPLATES)
    assert any(name in (folder / "sample.yaml").read_text() for name in TEMPLATES)


def test_radio_points_are_there_without_being_declared() -> None:
    for template in TEMPLATES.values():
        assert set(RADIO_POINTS) <= set(template.points)
        assert not isinstance(template.codec, JavaScriptCodec)


def test_a_codec_that_fills_undeclared_points_is_refused() -> None:
    with pytest.raises(ValueError, match="not declared: humdity"):
        LoraTemplate.model_validate(
            {"vendor": "x", "model": "y", "points": {"humidity": {"quantity": "humidity"}},
             "codec": {"kind": "layout", "frames": [{"read": [{"type": "u8", "point": "humdity"}]}]}}
        )  # fmt: skip
