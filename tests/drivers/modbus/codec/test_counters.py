"""A running total is true or not told, whatever the count does; and it finds its way back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.modbus.codec.counters import NEW_COUNT_S, Counter, Track

START_S = 1.7e9
ROUND = 4294967.296  # 32 bits of Wh, in kWh
GLITCHES = st.sampled_from([0.0, 0.001, 12.3, 1_000_000.0, 3_900_000.0, ROUND - 0.001, ROUND, -1.0, math.nan, math.inf])
# what comes between two good readings: nothing at all, or one wrong value
BETWEEN = st.lists(st.one_of(st.none(), GLITCHES), max_size=1)


def totals(
    counter: Counter, *values: float | None, rollover: float = ROUND, every_s: float = 1.0
) -> list[float | None]:
    """What is told of each reading; None stands for a poll without a value."""
    told = []
    for n, value in enumerate(values):
        total = None if value is None else counter.take(value, rollover, START_S + n * every_s)
        told.append(None if total is None else round(total, 3))
    return told


def counting(start: float = 3_000_000.0, step: float = 0.1, rollover: float = ROUND) -> Counter:
    """A counter that has seen three readings, the last `step` below `start`, a second each."""
    counter = Counter()
    totals(counter, *(start - step * n for n in (3, 2, 1)), rollover=rollover)
    return counter


@pytest.mark.parametrize(
    ("values", "told"),
    [
        pytest.param([0, 3000000.0], [None, 3000000.0], id="a single 0"),
        pytest.param([0, 0, 0, 3000000.0], [None, None, None, 3000000.0], id="0 while it restarts"),
        pytest.param([0, None, 3000000.0], [None, None, 3000000.0], id="0, then no answer"),
        pytest.param([ROUND - 0.001, 3000000.0], [None, 3000000.0], id="all bits set"),
        pytest.param([3001000.0, 3000000.0], [None, 3000000.0], id="a jump up, once"),
        pytest.param([2990000.0, 3000000.0], [None, 3000000.0], id="a dip, once"),
        pytest.param([0, ROUND - 0.001, 17, 3000000.0], [None, None, None, 3000000.0], id="nothing but glitches"),
        pytest.param([math.nan, math.inf, -1, ROUND, 3000000.0], [None] * 4 + [3000000.0], id="no counts at all"),
        pytest.param([1200.0, 1200.1, 1200.2, 1200.3], [None, None, 1200.2, 1200.3], id="another meter, lower"),
        pytest.param([1200.2, 1200.1, 1200.3, 1200.4], [None, None, 1200.3, 1200.4], id="another one, with a dip"),
        pytest.param([0.0, 0.1, 0.2, 0.3], [None, None, 0.2, 0.3], id="a reset for good"),
        pytest.param([3999999.0, 3999999.1, 3999999.2], [None, 3999999.1, 3999999.2], id="another meter, higher"),
        pytest.param([2999990.0, 2999990.1], [2999990.0, 2999990.1], id="a little back"),
        pytest.param([2990000.0, 2990000.1, 2990000.2], [None, 2990000.1, 2990000.2], id="back by an hour's counts"),
    ],
)
def test_a_count_that_does_not_go_on_is_not_told_until_it_is_clear_what_it_is(
    values: list[float | None], told: list[float | None]
) -> None:
    assert totals(counting(), *values) == told


@pytest.mark.parametrize(("value", "told"), [(499.95, 499.95), (500.5, None)])
def test_in_less_than_a_second_no_more_is_believed_than_fits(value: float, told: float | None) -> None:
    counter = counting(500.0, rollover=1000.0)

    assert counter.take(value, 1000.0, START_S + 2.1) == told


def test_a_new_round_is_told_with_the_second_reading_in_it() -> None:
    counter = counting(ROUND)

    assert totals(counter, 0.05, 0.15, 0.25) == [None, round(ROUND + 0.15, 3), round(ROUND + 0.25, 3)]


def test_a_glitch_at_the_very_end_of_the_round_is_no_new_round() -> None:
    counter = counting(ROUND - 5)

    assert totals(counter, 0.0, ROUND - 4.9, ROUND - 4.8) == [None, round(ROUND - 4.9, 3), round(ROUND - 4.8, 3)]
    # and two of them, which were taken for one, are taken back
    told = totals(counter, 0.0, 0.0, ROUND - 4.7, ROUND - 4.6)
    assert told[-1] == round(ROUND - 4.6, 3)


def test_a_count_that_stands_still_at_another_place_is_believed_after_a_minute() -> None:
    counter = counting()
    told = totals(counter, *[0.0] * 90)

    assert told.count(None) == NEW_COUNT_S
    assert set(told[-20:]) == {0.0}


def test_a_count_that_comes_back_after_it_was_given_up_brings_its_rounds_with_it() -> None:
    counter = Counter(Track(5 * ROUND, 3_000_000.0, START_S), rate=0.1)
    totals(counter, 0.0, 0.1, 0.2)  # believed to be a new meter

    told = totals(counter, 3_000_000.3, 3_000_000.4, 3_000_000.5)

    assert told[-1] == round(5 * ROUND + 3_000_000.5, 3)


def test_the_first_value_ever_being_wrong_is_healed() -> None:
    assert totals(Counter(), 0.0, 3000000.0, 3000000.1)[-1] == 3000000.1
    assert totals(Counter(), ROUND - 0.001, 12.3, 12.4, 12.5, 12.6)[-1] == 12.6


def test_a_meter_that_counts_very_much_faster_than_ever_is_doubted_but_not_for_long() -> None:
    counter = counting(start=1000, step=1, rollover=65536)
    values = [1000.0 + 3000 * n for n in range(1, 12)]

    told = totals(counter, *values, rollover=65536)

    assert told[4:] == values[4:]
    assert all(total in (None, value) for total, value in zip(told, values, strict=True))


def test_after_a_long_absence_the_fewest_rounds_that_fit_are_counted() -> None:
    counter = counting(start=60_000, step=10, rollover=65536)  # goes round in less than two hours
    day_s = 86400.0
    assert counter.take(100, 65536, START_S + day_s) is None
    assert counter.take(110, 65536, START_S + day_s + 1) == 65536 + 110


def test_a_clock_that_steps_makes_no_new_round() -> None:
    for jump_s in (-1e9, 1e9):
        counter = counting()
        assert counter.take(0, ROUND, START_S + jump_s) is None
        assert counter.take(3000000.0, ROUND, START_S + jump_s + 1) == 3000000.0


@given(st.lists(st.tuples(BETWEEN, st.floats(0.0, 0.5)), max_size=60), st.floats(10.0, ROUND - 1), st.booleans())
def test_one_wrong_value_at_a_time_never_makes_a_wrong_total(
    course: list[tuple[list[float | None], float]], start: float, restarts: bool
) -> None:
    """Whatever the count is, whatever comes in between, and whether the gateway restarts after each reading."""
    counter, count, at_s = counting(start), start, START_S + 10
    for between, step in [([], 0.0), *course]:
        for value in (*between, count := (count + step) % ROUND):
            at_s += 1
            truth = count if count >= start else count + ROUND
            told = counter.take(value, ROUND, at_s) if value is not None else None
            good = value == count or (value is not None and abs(value - count) < ROUND / 65536)
            if told is not None and not good:
                pytest.fail(f"{value} told as {told} where the count is {count}")
            if told is not None:
                assert told == pytest.approx(truth, abs=ROUND / 65536)
            if restarts:
                counter = Counter.restored(counter.saved())


@given(st.lists(st.integers(0, 40), min_size=40, max_size=200))
def test_rounds_are_counted_over_and_over(steps: list[int]) -> None:
    counter, true, told = counting(start=100, step=20, rollover=1000), 100, 0
    for n, step in enumerate(steps):
        true += step
        total = counter.take(true % 1000, 1000, START_S + 10 + n)
        assert total in (None, true)
        told += total is not None
    assert told >= len(steps) - 2 * (true // 1000) - 4


@given(
    st.floats(0, 1e12),
    st.floats(0, 1e9),
    st.floats(0, 4e9),
    st.none() | st.floats(0, 1e6),
    st.none() | st.integers(0, 99),
)
def test_a_counter_survives_a_restart(base: float, last: float, at_s: float, rate: float, rounds: int) -> None:
    track = Track(base, last, at_s)
    for former in (None, Track(base / 2, last, at_s)):
        counter = Counter(track, rate, former, rounds=rounds)
        assert Counter.restored(counter.saved()) == counter
        assert len(counter.saved()) <= 256  # what a driver's state may take


@given(st.binary(max_size=60) | st.text("2 0.einfa+-None", max_size=60).map(str.encode))
def test_any_saved_bytes_make_a_counter_that_works(data: bytes) -> None:
    counter = Counter.restored(data)
    counter.take(5.0, 1000.0, START_S)
    assert Counter.restored(counter.saved()).track == counter.track


@pytest.mark.parametrize("number", ["-1.0", "nan", "inf", "1e300"])
@pytest.mark.parametrize(
    "saved", ["2 0.1 None 0.0 {} 5.0 0.0", "2 0.1 None {} 0.0 5.0 0.0", "2 {} None 0.0 0.0 5.0 0.0"]
)
def test_a_saved_number_that_no_counter_has_makes_a_new_one(saved: str, number: str) -> None:
    assert Counter.restored(saved.format(number).encode()) == Counter()
    assert Counter.restored(saved.format("7.0").encode()) != Counter()


def test_what_the_former_version_saved_is_read() -> None:
    counter = Counter.restored(b"131072.0 300.0", counts=65536)

    assert totals(counter, 310, 320, rollover=65536)[-1] == 131072 + 320


def test_rounds_that_the_former_version_made_of_a_single_0_are_taken_back() -> None:
    counter = Counter.restored(b"4294967.296 3000000.3", counts=2**32)

    assert totals(counter, 3000000.4, 3000000.5) == [3000000.4, 3000000.5]


def test_the_operator_has_the_last_word_on_the_rounds_but_says_it_once() -> None:
    counter = Counter(Track(7 * ROUND, 3000000.0, START_S), rate=0.1)
    counter.correct(2, ROUND)
    assert counter.take(3000000.1, ROUND, START_S + 1) == pytest.approx(2 * ROUND + 3000000.1)

    counter.track = Track(3 * ROUND, 5.0, START_S)  # it has gone round since
    again = Counter.restored(counter.saved())
    again.correct(2, ROUND)
    assert again.take(5.1, ROUND, START_S + 1) == pytest.approx(3 * ROUND + 5.1)


def test_rounds_said_before_the_first_reading_count_from_the_first_reading_on() -> None:
    counter = Counter()
    counter.correct(1, ROUND)

    assert counter.take(5.0, ROUND, START_S) == pytest.approx(ROUND + 5)


@pytest.mark.parametrize("wrong_by", [1100, 3_000, 9_000, 14_000, 29_000])
@pytest.mark.parametrize("at", [20_000, 35_000, 64_500], ids=str)
@pytest.mark.parametrize("again", [False, True], ids=["once", "after a restart"])
def test_a_glitch_of_a_size_that_can_be_is_taken_back_with_all_rounds(at: int, wrong_by: int, again: bool) -> None:
    """Sixteen bits of fast pulses: ten times the rate ever seen is half a round."""
    round_, step, counter = 65536, 1500, Counter()
    true = 3 * round_ + at
    for n in range(200, 0, -1):
        counter.take(float((true - n * step) % round_), round_, START_S - 10.0 * n)
    before = counter.take(float(at), round_, START_S)
    assert before is not None

    counter.take(float(min(at + step + wrong_by, round_ - 1)), round_, START_S + 10)
    if again:
        counter = Counter.restored(counter.saved(), counts=round_)
    told = [counter.take(float((true + n * step) % round_), round_, START_S + 10.0 * n) for n in range(2, 12)]

    assert [total for total in told[3:] if total is not None] == [before + n * step for n in range(5, 12)]


def test_after_a_new_round_was_believed_the_next_doubt_begins_anew() -> None:
    counter = counting(start=65_530, step=20, rollover=65536)
    assert totals(counter, 14, 34, rollover=65536) == [None, 65536 + 34]

    assert counter.take(34 + 800, 65536, START_S + 2) is None, "much faster than ever: one reading says nothing"
    assert counter.take(54, 65536, START_S + 3) == 65536 + 54


def test_what_was_learned_by_a_glitch_is_forgotten_with_it() -> None:
    counter = counting(start=10_000, step=1, rollover=65536)
    at_s = START_S + 1000
    assert counter.take(19_000, 65536, at_s) == 19_000, "ten times as fast as ever: it can be"
    assert counter.take(11_001, 65536, at_s + 1) is None
    assert counter.take(11_002, 65536, at_s + 2) == 11_002, "it was none"

    assert counter.take(11_012 + 700, 65536, at_s + 12) is None, "so fast it never was"
    assert counter.take(11_013, 65536, at_s + 13) == 11_013


def test_a_count_that_has_moved_on_since_a_wide_step_does_not_fall_back_to_what_was_before() -> None:
    counter = counting(start=10_000, step=1, rollover=65536)
    at_s = START_S + 1000
    assert counter.take(15_000, 65536, at_s) == 15_000
    for n in range(1, 4):
        assert counter.take(15_000 + 500 * n, 65536, at_s + 500 * n) == 15_000 + 500 * n

    told = [counter.take(10_500 + n, 65536, at_s + 1500 + n) for n in range(1, 4)]

    assert told == [None, None, 10_503], "another count, and no return"


def test_a_rate_that_was_not_reached_again_for_weeks_explains_no_jump() -> None:
    day_s, counter = 86400.0, Counter()
    totals(counter, *(float(n) for n in range(0, 100, 10)), rollover=65536, every_s=100.0)
    at_s = START_S + 1000
    assert counter.take(140, 65536, at_s) == 140, "a tenth of a count a second: it was as fast before"
    for day in range(1, 43):
        assert counter.take(140 + day, 65536, at_s + day * day_s) == 140 + day

    assert counter.take(182 + 50, 65536, at_s + 42 * day_s + 100) is None
    assert counter.take(182, 65536, at_s + 42 * day_s + 200) == 182
