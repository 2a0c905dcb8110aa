"""Cayenne LPP against the cases of another implementation, and any bytes."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.lora.codec.cayenne import TYPES, VECTORS, decode
from drivers.lora.codec.payload import Received
from gateway.sdk.errors import FrameError
from gateway.sdk.reading import TimeSource
from gateway.sdk.testing import NOON

CASES = json.loads((Path(__file__).parents[1] / "cases" / "cayenne_lpp.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_cases_of_another_implementation(case: dict[str, Any]) -> None:
    payload = bytes.fromhex(case["input_hex"])
    want = {name: said["value"] for name, said in case["expect"].items()}
    if not want:
        with pytest.raises(FrameError):
            decode(payload, {}, Received(NOON))
        return
    decoded = decode(payload, {}, Received(NOON))
    assert {r.point: r.value for r in decoded.readings} == want
    assert bool(decoded.problem) == ("expect_error" in case)


def test_fields_are_given_the_templates_names() -> None:
    decoded = decode(bytes.fromhex("0188000102030405060708"), {"lat": "gps_1_latitude"}, Received(NOON))
    assert decoded.readings[0].point == "lat"
    assert [r.value for r in decoded.readings] == [0.0258, 19.7637, 3950.16]


def test_readings_have_the_time_of_reception_and_say_whose_clock_it_was() -> None:
    [reading] = decode(bytes.fromhex("016700e1"), {}, Received(NOON, TimeSource.NETWORK)).readings
    assert (reading.observed_at, reading.time_source) == (NOON, TimeSource.NETWORK)


@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(payload: bytes) -> None:
    with contextlib.suppress(FrameError):
        decode(payload, {}, Received(NOON))


@given(st.sampled_from([kind for kind in TYPES if kind not in VECTORS]), st.data())
def test_one_step_of_a_field_moves_its_point_by_one_step(kind: int, data: st.DataObject) -> None:
    name, size, signed, step = TYPES[kind]
    top = 2 ** (8 * size - signed) - 2
    raw = data.draw(st.integers(-top if signed else 0, top))
    other = bytes.fromhex("0967010f")

    def value(number: int) -> tuple[float, float]:
        record = bytes((5, kind)) + number.to_bytes(size, "big", signed=signed)
        found = {r.point: r.value for r in decode(record + other, {}, Received(NOON)).readings}
        return float(found[f"{name}_5"] or 0), float(found["temperature_9"] or 0)

    (before, same), (after, same_after) = value(raw), value(raw + 1)
    assert after - before == pytest.approx(step, rel=1e-3)
    assert same == same_after == 27.1
