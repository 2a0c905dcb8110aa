"""Layouts: what cannot be right is refused at load, and whatever a payload says, reading it is total."""

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from drivers.lora.codec import cayenne
from drivers.lora.codec.payload import (
    MAX_DEPTH,
    MAX_FIELDS,
    MAX_TEXT,
    Decoded,
    Received,
    decode_layout,
    flatten,
    read_object,
)
from drivers.lora.config import LoraTemplate
from drivers.lora.driver import CHIRPSTACK
from drivers.lora.layout import SIZES, LayoutCodec
from gateway.sdk.errors import FrameError
from gateway.sdk.reading import Quality, Reading, Reason, TimeSource
from gateway.sdk.testing import NOON
from tests.support import hostile

NOW = Received(NOON)


def layout(*steps: dict[str, Any], **frame: Any) -> LayoutCodec:
    return LayoutCodec.model_validate({"kind": "layout", "frames": [{"read": list(steps), **frame}]})


def decoded(payload: str, *steps: dict[str, Any], **frame: Any) -> Decoded:
    return decode_layout(layout(*steps, **frame), bytes.fromhex(payload), 1, NOW)


def values(payload: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {r.point: r.value for r in decoded(payload, *steps).readings}


U16 = {"type": "u16", "point": "a"}


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ({**U16, "divide": 0}, "0 leaves nothing"),
        ({**U16, "scale": 0}, "0 leaves nothing"),
        ({**U16, "scale": math.nan}, "finite"),
        ({**U16, "scale": math.inf}, "finite"),
        ({**U16, "bias": math.inf}, "finite"),
        ({**U16, "power": 0}, "0 leaves nothing"),
        ({**U16, "power": 99}, "less than or equal"),
        ({**U16, "polynomial": [1.0] * 17}, "at most 16"),
        ({**U16, "polynomial": []}, "at least 1"),
        ({**U16, "bits": [0, 0]}, "are none"),
        ({**U16, "bits": [-1, 2]}, "are none"),
        ({**U16, "bits": [12, 5]}, "beyond the 16 bits"),
        ({**U16, "signed": True}, "signed goes with bits"),
        ({"type": "f32", "point": "a", "bits": [0, 4]}, "no whole number"),
        ({"type": "f32", "point": "a", "values": {1: 2}}, "no whole number"),
        ({"type": "bcd16", "point": "a", "bits": [0, 4]}, "decimal digits"),
        ({**U16, "values": {65536: "x"}}, "cannot be read"),
        ({**U16, "values": {-1: "x"}}, "cannot be read"),
        ({**U16, "bits": [0, 2], "values": {4: "x"}}, "cannot be read"),
        ({**U16, "values": {}}, "at least 1"),
        ({**U16, "none": [65536]}, "cannot be read"),
        ({**U16, "none": [-1]}, "cannot be read"),
        ({**U16, "none": [0.5]}, "cannot be read"),
        ({"type": "i16", "point": "a", "none": [-32769]}, "cannot be read"),
        ({**U16, "flag": True, "integer": True}, "one of flag"),
        ({**U16, "flag": True, "scale": 0.1}, "as it is"),
        ({**U16, "values": {0: 1}, "offset": 2}, "as it is"),
        ({"type": "u16", "parts": [{"point": "b"}], "point": "a"}, "into a part"),
        ({"skip": 2, "point": "a"}, "only a number"),
        ({"skip": 300}, "less than or equal"),
        ({"skip": 1, "at": 0}, "go with a number"),
        ({"type": "u32", "time": "unix", "point": "a"}, "a time is"),
        ({"type": "f32", "time": "unix"}, "a time is"),
        ({**U16, "at": -1}, "leaves 1 bytes"),
        ({**U16, "at": 999}, "less than"),
        ({"type": "u16", "skip": 1}, "exactly one"),
        ({"tlv": {"tag": 2, "entries": {"01": []}}}, "tag 01 has 1 bytes"),
        ({"tlv": {"tag": 1, "entries": {"0a": [], "0A": []}}}, "twice"),
        ({"tlv": {"tag": 1, "entries": {}}}, "at least 1"),
        ({"tlv": {"tag": 5, "entries": {"01": []}}}, "less than or equal"),
        ({"mask": {"type": "u8", "groups": [[]] * 9}}, "has 8 bits"),
        ({"repeat": {"times": 0, "read": [U16]}}, "1 to `limit`"),
        ({"repeat": {"times": 65, "read": [U16]}}, "1 to `limit`"),
        ({"repeat": {"times": 2, "read": []}}, "at least 1"),
        ({"repeat": {"times": "n", "read": [U16]}}, "no number named n"),
        ({"repeat": {"limit": 257, "read": [U16]}}, "less than or equal"),
        ({"repeat": {"step_s": 1e12, "read": [U16]}}, "less than or equal"),
        ({"sum": ["x"], "point": "a"}, "no number named x"),
        ({**U16, "when": {"mode": [1]}}, "no number named mode"),
        ({"type": "u16", "point": "a_{n}"}, "is the turn of a repeat"),
        ({"sum": ["x"], "point": "a", "bits": [0, 1]}, "neither parts nor bits"),
    ],
)
def test_what_cannot_be_right_is_refused_at_load_with_its_place(step: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        layout(step)

    assert caught.value.errors()[0]["loc"][:2] == ("frames", 0)


def test_a_place_beyond_the_payload_and_a_nest_without_end_are_refused() -> None:
    with pytest.raises(ValidationError, match="beyond the 4 bytes"):
        layout({**U16, "at": 3}, length=[2, 4])
    with pytest.raises(ValidationError, match="beyond the 4 bytes"):
        layout({"type": "u8", "point": "a", "at": -5}, length=[2, 4])
    nest: dict[str, Any] = U16
    for _ in range(12):
        nest = {"repeat": {"times": 1, "read": [nest]}}
    with pytest.raises(ValidationError, match="nested deeper"):
        layout(nest)
    with pytest.raises(ValidationError, match="longer than the payload"):
        layout(U16, starts="010203", length=[2])


def test_each_turn_of_a_repeat_needs_its_declared_point() -> None:
    with pytest.raises(ValidationError, match="t_1, t_2"):
        LoraTemplate.model_validate(
            {"vendor": "x", "model": "y", "points": {"t_0": {"quantity": "temperature"}},
             "codec": {"kind": "layout", "frames": [{"read": [{"repeat": {"times": 3, "read": [{"type": "u8", "point": "t_{n}"}]}}]}]}}
        )  # fmt: skip


@pytest.mark.parametrize(
    ("payload", "step", "reason"),
    [
        ("0000", {**U16, "power": -1}, Reason.NOT_FINITE),
        ("0005", {**U16, "power": -8, "bias": -5}, Reason.NOT_FINITE),
        ("ffff", {**U16, "scale": 1e300, "power": 8}, Reason.NOT_FINITE),
        ("ffff", {**U16, "polynomial": [0.0] * 15 + [1e300]}, Reason.NOT_FINITE),
        ("ffff", {**U16, "scale": 1e308, "integer": True}, Reason.NOT_FINITE),
        ("0000", {**U16, "offset": 1.7976931348623151e308}, Reason.NOT_FINITE),
        ("7f800000", {"type": "f32", "point": "a", "integer": True}, Reason.NOT_FINITE),
        ("7fc00000", {"type": "f32", "point": "a", "flag": True}, Reason.NOT_FINITE),
        ("00fa", {"type": "bcd16", "point": "a"}, Reason.NOT_AVAILABLE),
    ],
)
def test_what_only_the_payload_can_break_is_no_value(payload: str, step: dict[str, Any], reason: Reason) -> None:
    [reading] = decoded(payload, step).readings

    assert (reading.value, reading.quality, reading.reason) == (None, Quality.BAD, reason)


@pytest.mark.parametrize("none", [[-1], [65535]])
def test_a_sentinel_is_the_raw_bits_however_it_is_written(none: list[int]) -> None:
    step = {"type": "i16", "point": "a", "scale": 0.1, "none": none}

    assert values("ffff", step) == {"a": None}
    assert values("fffe", step) == {"a": -0.2}


@pytest.mark.parametrize("none", [[15], [-1]])
def test_a_sentinel_of_a_field_is_compared_without_its_neighbours(none: list[int]) -> None:
    step = {"type": "u8", "point": "a", "bits": [2, 4], "signed": True, "none": none}

    assert values("ff", step) == values("3c", step) == {"a": None}
    assert values("20", step) == {"a": -8.0}


def test_an_integer_of_many_digits_keeps_them() -> None:
    assert values("ffffffffffffffff", {"type": "u64", "point": "a", "integer": True}) == {"a": 2**64 - 1}
    assert values("00000b3a73ce2ff2", {"type": "u64", "point": "a", "scale": 0.001}) == {"a": 12345678901.234}


def test_a_float32_is_the_decimal_that_was_meant() -> None:
    assert values("41a66666", {"type": "f32", "point": "a"}) == {"a": 20.8}
    assert values("41a66666", {"type": "f32", "point": "a", "scale": 10}) == {"a": 208.0}
    assert values("c479ffba", {"type": "f32", "point": "a", "none": [-999.9957]}) == {"a": None}


def test_a_float64_keeps_all_its_digits() -> None:
    assert values("3ff3c0ca428c59fb", {"type": "f64", "point": "a"}) == {"a": 1.2345678901234567}


@pytest.mark.parametrize(("endian", "payload"), [("big", "56781234"), ("little", "78563412")])
def test_the_low_word_may_come_first_in_either_order_of_bytes(endian: str, payload: str) -> None:
    codec = {"kind": "layout", "endian": endian, "frames": [{"read": [{"type": "u32w", "point": "a"}]}]}
    [reading] = decode_layout(LayoutCodec.model_validate(codec), bytes.fromhex(payload), 1, NOW).readings
    assert reading.value == 0x12345678


def test_a_record_is_as_long_as_it_says_whatever_is_read_of_it() -> None:
    records = {"tlv": {"tag": 1, "length": True, "entries": {"0a": [{"type": "u8", "point": "a"}],
                                                             "0b": [{"type": "u8", "point": "b"}]}}}  # fmt: skip
    assert values("0a03 01ffff 0b01 02", records) == {"a": 1.0, "b": 2.0}
    assert values("0c02 0b01 0b01 02", records) == {"b": 2.0}, "one that is not known is skipped"


def test_what_is_left_over_or_cut_short_is_told_beside_what_was_read() -> None:
    step = {"type": "u8", "point": "a"}

    assert decoded("01", step).problem == ""
    assert (decoded("010203", step).problem, decoded("010203", step).at) == ("2 bytes are left over", 1)
    assert decoded("010203", step, rest="older values").problem == ""
    assert (decoded("01", step, U16).problem, decoded("01", step, U16).at) == ("0 bytes left, 2 needed", 1)
    assert [r.value for r in decoded("01", step, U16).readings] == [1.0]


def test_decode_of_a_payload_that_is_not_wholly_read_fails_and_has_what_was_read() -> None:
    template = LoraTemplate.model_validate(
        {"vendor": "x", "model": "y", "points": {"a": {"quantity": "temperature", "unit": "CEL"}},
         "codec": {"kind": "layout", "frames": [{"read": [{"type": "u8", "point": "a"}]}]}}
    )  # fmt: skip
    with pytest.raises(FrameError, match="1 bytes are left over") as caught:
        CHIRPSTACK.decode(template, b"\x01\x02", {})

    assert [r.value for r in caught.value.readings] == [1.0]


def test_a_repeat_whose_number_was_not_read_is_refused() -> None:
    steps = ({"type": "u8", "name": "mode"}, {"type": "u8", "name": "n", "when": {"mode": [1]}},
             {"repeat": {"times": "n", "read": [{"type": "u8", "point": "a"}]}})  # fmt: skip
    assert values("0102070800", *steps) == {"a": 8.0}
    with pytest.raises(FrameError, match="how often to repeat"):
        decoded("000208", *steps)


def test_a_repeat_to_the_end_that_reads_nothing_is_refused() -> None:
    made = decoded("01", {"repeat": {"read": [{"type": "u8", "point": "a", "at": 0}]}})
    assert (len(made.readings), made.problem) == (1, "a repetition that reads nothing")


def test_a_small_payload_costs_a_bounded_number_of_steps() -> None:
    inner: dict[str, Any] = {"type": "u8", "at": 0}
    for _ in range(3):
        inner = {"repeat": {"times": 256, "limit": 256, "read": [inner]}}

    with pytest.raises(FrameError, match="more than 4096 steps"):
        decoded("01", inner)


MEANINGS = st.fixed_dictionaries(
    {"type": st.sampled_from(sorted(SIZES))},
    optional={
        "bits": st.tuples(st.integers(0, 31), st.integers(1, 32)),
        "signed": st.booleans(),
        "bias": st.floats(allow_nan=False, allow_infinity=False),
        "scale": st.floats(allow_nan=False, allow_infinity=False),
        "divide": st.floats(allow_nan=False, allow_infinity=False),
        "polynomial": st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=16),
        "power": st.integers(-8, 8),
        "offset": st.floats(allow_nan=False, allow_infinity=False),
        "integer": st.booleans(),
        "flag": st.booleans(),
        "values": st.dictionaries(st.integers(0, 300), st.integers(), min_size=1, max_size=3),
        "none": st.lists(st.integers(-5, 70000), max_size=3),
    },
)


@given(MEANINGS, st.binary(max_size=9), st.booleans())
def test_any_number_that_a_layout_may_say_is_a_value_or_none(
    step: dict[str, Any], payload: bytes, little: bool
) -> None:
    with contextlib.suppress(ValidationError):
        made = layout({**step, "point": "a", "endian": "little" if little else "big"})
        with contextlib.suppress(FrameError):
            for reading in decode_layout(made, payload, 1, NOW).readings:
                assert (reading.value is None) is (reading.quality is Quality.BAD)
                assert not isinstance(reading.value, float) or math.isfinite(reading.value)


# --- objects that somebody else decoded ---------------------------------------------------------------------------------


def read(tree: Any, **fields: str) -> tuple[dict[str, Any], str]:
    made = read_object(tree, fields, NOW)
    return {r.point: r.value for r in made.readings}, made.problem


def test_an_object_gives_the_decimals_that_were_meant() -> None:
    tree = {"t": 20.799999237060547, "h": 20.700000000000003, "n": 3.0, "x": True, "s": "21.50", "big": 2**70}

    assert read(tree) == ({**tree, "t": 20.8, "h": 20.7}, "")


def test_a_field_without_a_value_is_a_point_without_one() -> None:
    [reading] = read_object({"t": None}, {}, Received(NOON, TimeSource.DEVICE)).readings
    assert reading == Reading("t", None, NOON, Quality.BAD, Reason.NOT_AVAILABLE, TimeSource.DEVICE)


def test_a_field_fills_every_point_that_names_it_and_no_other() -> None:
    assert read({"b": 2, "a": 1}, a="b", c="b") == ({"a": 2, "c": 2}, "")  # what is called a is not point a
    assert read({"a": {"b": [{"c": 5}]}}, x="a.b[0].c") == ({"x": 5}, "")
    [one, two] = cayenne.decode(bytes.fromhex("016700e1"), {"t": "temperature_1", "u": "temperature_1"}, NOW).readings
    assert (one.point, two.point) == ("t", "u")


def test_what_does_not_fit_is_left_out_and_told() -> None:
    deep: Any = 1
    for _ in range(980):
        deep = {"d": deep}
    trees: tuple[Any, ...] = (
        {"deep": deep},
        {"long": [7] * 1_000_000},
        {"wide": {str(n): n for n in range(10_000)}},
        {"text": "x" * (MAX_TEXT + 1)},
        {"\ud83d": 1},
        {"k" * 1000: 1},
        {"a.b": 1, "a": {"b": 2}},
        {"a": object()},
        {5: 1},
        [[[[]] * 300] * 300] * 300,
    )
    for tree in trees:
        found, problem = read({"ok": 1, **(tree if isinstance(tree, dict) else {"tree": tree})})
        assert found["ok"] == 1
        assert len(found) <= MAX_FIELDS
        assert "not read" in problem


def test_a_nest_is_read_to_its_depth() -> None:
    tree: Any = 1
    for _ in range(MAX_DEPTH):
        tree = {"d": tree}

    assert read(tree)[1] == ""
    assert "not read" in read({"d": tree})[1]


@given(hostile.values())
def test_any_object_is_read_within_bounds(tree: Any) -> None:
    found, left_out = flatten(tree)

    assert len(found) <= MAX_FIELDS
    assert left_out >= 0
    for path in found:
        path.encode()
    for reading in read_object(tree, {"a": "b"}, NOW).readings:
        assert (reading.value is None) is (reading.quality is Quality.BAD)


@given(st.binary(max_size=64))
def test_any_cayenne_payload_is_decoded_or_refused(payload: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert len(cayenne.decode(payload, {"a": "temperature_1"}, NOW).readings) <= len(payload)
