"""The door for what a driver hands over beside values."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.gate import (
    MAX_COUNT,
    MAX_COUNTERS,
    MAX_NAME_CHARACTERS,
    MAX_READINGS,
    MAX_STATE_BYTES,
    MAX_STATE_KEYS,
    added,
    is_sound,
    mended,
    offered,
)
from gateway.sdk.errors import FrameError
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON
from tests.support import hostile

ONE = Reading("t", 1.0, NOON)
anything = st.one_of(hostile.values(), hostile.json_trees(), hostile.dates())
names = st.one_of(st.sampled_from(["d", "frames"]), anything)
bytes_or_not = st.one_of(st.binary(max_size=300), anything)
states = st.one_of(anything, st.dictionaries(st.one_of(st.text(max_size=3), hostile.texts()), bytes_or_not, max_size=5))


@given(names, st.one_of(st.lists(st.one_of(st.just(ONE), anything), max_size=4), anything), states)
def test_a_set_is_refused_or_becomes_one_that_can_be_stored(device: Any, readings: Any, state: Any) -> None:
    handed: Any = ReadingSet(device, tuple(readings) if isinstance(readings, list) else readings, state)
    try:
        made, remark = mended(handed, {"d"}, lambda _: {})
    except FrameError as error:
        str(error).encode()
        return
    remark.encode()
    assert made.device == "d"
    assert set(map(type, made.readings)) <= {Reading}
    for key, value in (made.state or {}).items():
        assert 0 < len(key.encode()) <= 4 * MAX_NAME_CHARACTERS
        assert type(value) is bytes
        assert len(value) <= MAX_STATE_BYTES
    if is_sound(handed, {"d"}):
        assert (made, remark) == (handed, "")


def test_a_set_has_a_bound_and_so_have_the_keys_of_a_device_also_one_that_has_too_many_already() -> None:
    many, remark = mended(ReadingSet("d", (ONE,) * 2 * MAX_READINGS), {"d"}, lambda _: {})
    assert (len(many.readings), remark != "") == (MAX_READINGS, True)

    for there in (0, MAX_STATE_KEYS, 2 * MAX_STATE_KEYS):
        known = {f"k{n}": b"" for n in range(there)}
        given = {f"k{n}": b"x" for n in range(3 * MAX_STATE_KEYS)}
        made, remark = mended(ReadingSet("d", (), given), {"d"}, lambda _, known=known: known)  # type: ignore[misc]
        assert len(made.state or {}) == max(there, MAX_STATE_KEYS)
        assert remark


@given(st.lists(st.tuples(names, st.one_of(st.integers(), anything)), max_size=20))
def test_counters_stay_names_and_numbers_whatever_is_counted(counted: list[tuple[Any, Any]]) -> None:
    counters = Counter({f"c{n}": MAX_COUNT - 1 for n in range(MAX_COUNTERS - 2)})
    for name, n in counted:
        added(counters, name, n).encode()

    assert len(counters) <= MAX_COUNTERS
    for name, n in counters.items():
        name.encode()
        assert (type(n), 0 <= n <= MAX_COUNT) == (int, True)


@given(anything, anything)
def test_a_time_that_is_offered_is_one_or_is_refused(utc: Any, uncertainty_s: Any) -> None:
    if not offered(utc, uncertainty_s):
        assert utc.tzinfo is not None
        assert 0 <= float(uncertainty_s) <= MAX_COUNT


# What exactly fits, and what is said of the rest: as `drivers/_blueprint/README.md` has it

LONG = type("L" * 50, (), {})()  # a foreign class is told by 40 characters
LONG_NAME = "L" * 39 + "…"


def test_a_set_of_ten_thousand_readings_passes_as_it_is_and_what_is_left_out_is_counted() -> None:
    most = ReadingSet("d", (ONE,) * 10_000)
    assert is_sound(most, {"d"})
    assert mended(most, {"d"}, lambda _: {}) == (most, "")

    more = ReadingSet("d", (*most.readings, ONE, ONE))
    assert not is_sound(more, {"d"})
    assert mended(more, {"d"}, lambda _: {}) == (
        most,
        "2 readings left out of a set: too many, or no readings",
    )
    text: Any = {"k": "text"}
    handed: Any = ReadingSet("d", (ONE, LONG, ONE), text)
    assert mended(handed, {"d"}, lambda _: {}) == (
        ReadingSet("d", (ONE, ONE)),
        "1 readings left out of a set: too many, or no readings",
    )


@pytest.mark.parametrize(
    ("handed", "said"),
    [
        (LONG, f"a {LONG_NAME} handed over in place of a set of readings"),
        (ReadingSet("other", ()), "a set of device other, which this link does not have"),
        (ReadingSet(5, ()), "a set of device (int), which this link does not have"),  # type: ignore[arg-type]
        (ReadingSet("d", LONG), f"a set whose readings are a {LONG_NAME}, not a tuple"),
        (ReadingSet("d", (), 5), "set of readings: TypeError: 'int' object is not iterable"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_set_of_a_device_is_refused_by_what_is_wrong(handed: Any, said: str) -> None:
    with pytest.raises(FrameError) as refused:
        mended(handed, {"d"}, lambda _: {})
    assert str(refused.value).startswith(said)


N = "n" * 64  # the longest name


@pytest.mark.parametrize(
    ("known", "state", "kept", "said"),
    [
        (0, {"k": b"x" * 256, N: b"", "": b""}, ["k", N], "the key "),
        (0, {"k": b"x" * 257}, [], "k has 257 bytes, at most 256 are kept"),
        (0, {N + "n": b""}, [], f"the key {N[:39]}…"),
        (0, {"k": LONG, 5: b""}, [], f"k is a {LONG_NAME}, not bytes and 1 more"),
        (0, {5: b"", "k": 7, "x": 8}, [], "the key (int) and 2 more"),
        (63, {"k": b"", "x": b"", "k0": b"new"}, ["k", "k0"], "more than 64 keys"),
        (64, {"x": 7}, [], "x is a int, not bytes"),
    ],
)
def test_of_a_state_what_fits_is_kept_and_the_first_that_does_not_is_told(
    known: int, state: Any, kept: list[str], said: str
) -> None:
    there = {f"k{n}": b"" for n in range(known)}
    made, remark = mended(ReadingSet("d", (), state), {"d"}, lambda _: there)
    assert made.state == ({key: state[key] for key in kept} or None)
    assert remark == f"driver state left out: {said}"


@pytest.mark.parametrize(
    ("name", "n", "said"),
    [
        ("c0", 3, ""),
        ("c0", 3.0, ""),  # also when there is room for no other
        (N, 2**53, ""),
        ("c", 0.0, ""),
        ("c", -1, "c counted by less than 0 or too much"),
        ("c0", 2**53 + 1, "c0 counted by less than 0 or too much"),
        ("c", LONG, f"c counted by a {LONG_NAME}"),
        (N, 2.5, f"{N[:39]}… counted by a float"),
        (N + "n", 1, f"a counter named {N[:39]}…"),
        ("", 1, "a counter named "),
    ],
)
def test_a_count_is_added_or_what_is_wrong_with_it_is_told(name: str, n: Any, said: str) -> None:
    counters = Counter({f"c{n}": 5 for n in range(127)})
    before = Counter(counters)
    assert added(counters, name, n) == said
    if not said:
        before[name] += int(n)
    assert counters == before
    if len(counters) == 128:
        assert added(counters, "one-too-many", 1) == "more than 128 counters, one-too-many among them"
        assert added(counters, "c1", 1.0) == added(counters, "c1", 1) == ""
        assert (len(counters), counters["c1"]) == (128, 7)


def test_a_count_ends_where_json_cannot_hold_it_any_more() -> None:
    for n in (2**53, 2.0**53):
        counters = Counter({"c": 7})
        assert added(counters, "c", n) == ""
        assert counters["c"] == 2**53


@pytest.mark.parametrize(
    ("utc", "uncertainty_s", "said"),
    [
        (NOON, 0, ""),
        (NOON, 0.5, ""),
        (NOON, 2**53, ""),
        (NOON.astimezone(None), 1.0, ""),
        (NOON.replace(tzinfo=None), 1.0, "a datetime without a time zone offered as the time"),
        (LONG, 1.0, f"a {LONG_NAME} without a time zone offered as the time"),
        (NOON, -0.5, "the time offered with an uncertainty of a float"),
        (NOON, 2**53 + 2, "the time offered with an uncertainty of a int"),
        (NOON, timedelta(1), "the time offered with an uncertainty of a timedelta"),
    ],
)
def test_of_a_time_that_is_offered_it_is_told_what_is_wrong(utc: Any, uncertainty_s: Any, said: str) -> None:
    assert offered(utc, uncertainty_s) == said


def test_of_several_states_that_cannot_be_kept_the_first_is_named_and_the_others_are_counted() -> None:
    state: Any = {"one": 1, "fine": b"1", "two": "2", "three": None}
    made, remark = mended(ReadingSet("d", (), state), {"d"}, lambda _: {})
    assert made.state == {"fine": b"1"}
    assert remark == "driver state left out: one is a int, not bytes and 2 more"
