"""The door for what a driver hands over beside values."""

from collections import Counter
from typing import Any

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
