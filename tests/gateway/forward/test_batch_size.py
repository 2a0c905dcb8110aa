"""Where the size of a request ends, by the law of a broker's answer times, and what moves it."""

from collections import Counter
from collections.abc import Callable

import pytest

from gateway.forward.broker import BatchSize

Law = Callable[[int], float]


def squared(count: int) -> float:
    """Scorpio as observed: 15 entities 0.06 s, 50: 0.5 s, 500: 50 s."""
    return 0.02 + 2e-4 * count**2


def far(count: int) -> float:
    """Each request costs its way."""
    return 0.1 + 0.002 * count


def even(count: int) -> float:
    """No size is better."""
    return 0.01 * count


def slower(law: Law, times: float) -> Law:
    return lambda count: times * law(count)


class Box:
    """Sends so many entities each second, in requests of the size that is told, to a broker of this law."""

    def __init__(self, start: int, law: Law, *, entities: int = 50, usual: int | None = None) -> None:
        self.law = law
        self.entities = entities
        self.s = 0.0
        self.size = BatchSize(start, usual, now_s=lambda: self.s)
        self.sent: Counter[int] = Counter()
        self.learned = [self.size.learned]

    def rounds(self, count: int) -> int:
        """So many seconds; the size that was learned."""
        for _ in range(count):
            left = self.entities
            while left:
                entities = min(left, self.size.size)
                seconds = self.law(entities)
                self.s += seconds
                self.size.took(entities, seconds, self.entities)
                self.sent[entities] += 1
                left -= entities
                if self.size.learned != self.learned[-1]:
                    self.learned.append(self.size.learned)
            self.s += 1.0
        return self.size.learned


def full(size: BatchSize, rate_per_s: float, batches: int = 4) -> int:
    """So many full batches at this rate, and more to send; the size after them."""
    for _ in range(batches):
        size.took(size.size, size.size / rate_per_s, 1000)
    return size.size


def test_a_size_begins_at_what_is_known() -> None:
    starts = {0: 1, 1: 1, 2: 2, 4: 2, 5: 5, 24: 15, 25: 25, 1000: 200}
    assert {start: (BatchSize(start).size, BatchSize(start).learned) for start in starts} == {
        start: (size, size) for start, size in starts.items()
    }


@pytest.mark.parametrize("start", BatchSize.RUNGS)
def test_where_time_grows_with_the_square_it_ends_between_ten_and_twenty_five_and_stays(start: int) -> None:
    box = Box(start, squared)
    assert box.rounds(20) in (10, 15, 25)
    learned, largest = list(box.learned), max(start, 50)
    box.sent.clear()
    box.rounds(3000)
    assert box.learned == learned
    assert max(box.sent) <= largest
    elsewhere = sum(n for size, n in box.sent.items() if size not in (5, 10, 15))
    assert elsewhere < 0.01 * box.sent.total()


def test_no_step_up_after_one_that_got_worse() -> None:
    box = Box(15, squared, entities=200)
    box.rounds(50)
    assert max(box.sent) == 25
    assert box.sent[25] == BatchSize.SAMPLES


def test_a_size_that_is_far_worse_is_left_after_one_request() -> None:
    size = BatchSize(25)
    assert full(size, 100.0) == 50
    size.took(50, 50 / 49.0, 1000)
    assert size.size == 25


@pytest.mark.parametrize("start", [1, 15, 25])
def test_where_each_request_costs_its_way_it_climbs_as_far_as_that_pays(start: int) -> None:
    assert Box(start, far, entities=500).rounds(60) == 200
    assert Box(start, far, entities=60).rounds(60) == 50  # more are not there


@pytest.mark.parametrize("start", [1, 5, 25, 100])
def test_where_no_size_is_better_it_stays_but_for_the_usual_one(start: int) -> None:
    assert Box(start, even, entities=500).rounds(60) == start
    small = Box(start, even, entities=500, usual=15)
    assert small.rounds(60) in (start, 15, 10, 5)
    assert small.size.learned >= min(start, 2)


def test_below_the_usual_size_a_larger_one_need_only_be_as_good() -> None:
    for gain, usual, after in ((1.01, 15, 15), (1.01, 10, 10), (0.99, 15, 10)):
        size = BatchSize(10, usual)
        assert full(size, 100.0) == 15
        full(size, 100.0 * gain)
        assert size.learned == after


@pytest.mark.parametrize(("gain", "after"), [(1.14, 100), (1.16, 200)])
def test_a_step_up_must_pay(gain: float, after: int) -> None:
    size = BatchSize(100)
    assert full(size, 1000.0) == 200
    assert size.learned == 100
    full(size, 1000.0 * gain)
    assert size.learned == after


@pytest.mark.parametrize(("gain", "after"), [(1.14, 200), (1.16, 100)])
def test_a_step_down_must_pay(gain: float, after: int) -> None:
    size = BatchSize(200)
    assert full(size, 1000.0) == 100
    assert size.learned == 200
    full(size, 1000.0 * gain)
    assert (size.size, size.learned) == (after, after)


def test_quick_requests_are_told_from_each_other_and_no_time_at_all_is_none() -> None:
    size = BatchSize(100)
    full(size, 5000.0)
    assert full(size, 1000.0, 1) == 100
    assert Box(1, lambda _: 0.0, entities=1000).rounds(60) == 200


@pytest.mark.parametrize(("rate", "after"), [(229.0, 200), (231.0, 100)])
def test_the_rate_of_a_size_is_that_of_the_best_of_its_batches(rate: float, after: int) -> None:
    size = BatchSize(200)
    full(size, 200.0, 1)
    assert full(size, 100.0, 3) == 100
    full(size, rate, 1)
    full(size, 120.0, 3)
    assert size.learned == after


def test_a_broker_that_got_slow_gets_less_at_once_and_more_when_it_is_itself_again() -> None:
    box = Box(15, squared)
    assert box.rounds(100) == 15
    box.law = slower(squared, 20.0)
    box.entities = 15
    box.rounds(2)
    assert box.size.learned == 10
    box.entities = 50
    assert box.rounds(500) <= 15
    box.law = squared
    assert box.rounds(1800) in (10, 15)


def test_one_slow_answer_is_a_hiccup() -> None:
    size = BatchSize(25)
    size.took(25, 0.1, 25)
    for _ in range(2):
        size.took(25, 3.0, 25)
        assert size.size == 25
        size.took(25, 0.1, 25)
    for _ in range(2):
        assert size.size == 25
        size.took(25, 3.0, 25)
    assert size.learned == 15


@pytest.mark.parametrize(
    ("usual_s", "slow_s", "after"), [(0.01, 0.30, 25), (0.01, 0.32, 15), (1.0, 2.9, 25), (1.0, 3.1, 15)]
)
def test_slow_is_three_times_as_long_and_noticeably_so(usual_s: float, slow_s: float, after: int) -> None:
    size = BatchSize(25)
    size.took(25, usual_s, 25)
    size.took(25, slow_s, 25)
    size.took(25, slow_s, 25)
    assert size.learned == after


def test_yesterdays_size_is_tried_again() -> None:
    size = Box(25, far, entities=500)
    size.size.failed(25, 500)
    assert size.size.learned == 15
    size.rounds(300)
    assert size.s < BatchSize.HOLDS_S or size.size.learned > 15
    held = Box(25, far, entities=30)
    held.size.failed(25, 500)
    while held.s < BatchSize.HOLDS_S - 5.0:
        assert held.rounds(1) <= 15
    assert held.rounds(30) == 25


def test_a_long_request_makes_the_next_one_smaller_at_once() -> None:
    size = BatchSize(5)
    size.took(5, 5.0, 9)
    assert size.size == 5
    size.took(4, 5.1, 9)
    assert size.size == 5  # it was but the rest
    size.took(5, 5.1, 9)
    assert size.size == 2
    size.took(2, 5.1, 9)
    assert size.size == 1
    size.took(1, 5.1, 9)
    size.failed(1, 9)
    assert size.size == 1


def test_of_less_than_a_full_request_only_all_there_was_tells_of_the_size() -> None:
    size = BatchSize(25)
    size.failed(24, 25)
    size.failed(1, 25)
    size.failed(26, 26)
    assert size.size == 25
    size.failed(24, 24)
    assert (size.size, size.learned) == (15, 15)
    size.failed(12, 12)
    assert size.size == 10
    size.failed(10, 30)
    assert size.size == 5


def test_who_has_few_learns_what_is_good_for_few() -> None:
    box = Box(15, squared, entities=12)
    assert box.rounds(100) == 15
    assert box.sent[12] > 90
    cubed = Box(15, lambda count: 0.001 * count**3, entities=12)
    assert cubed.rounds(100) < 5
    far_away = Box(15, far, entities=12)
    assert far_away.rounds(100) == 15
    assert far_away.sent[12] > 85
    assert Box(200, squared, entities=1).rounds(100) == 200  # there is nothing to choose


def test_what_is_not_there_is_not_tried() -> None:
    box = Box(15, squared, entities=24)
    box.rounds(100)
    assert max(box.sent) == 15
    box = Box(15, squared, entities=25)
    box.rounds(100)
    assert max(box.sent) == 25


def test_a_trial_ends_when_there_is_not_so_much_to_send() -> None:
    size = BatchSize(25)
    assert full(size, 1000.0) == 50
    size.took(30, 0.03, 30)
    assert (size.size, size.learned) == (25, 25)


def test_a_size_that_failed_is_worse_than_the_slowest_and_samples_begin_anew() -> None:
    size = BatchSize(5)
    full(size, 100.0, 3)
    size.failed(5, 9)
    assert full(size, 0.5, 3) == 2
    assert full(size, 0.5, 1) == 1
    size = BatchSize(2)
    size.failed(2, 9)
    assert full(size, 100.0, 40) == 1  # there is nothing smaller, and larger failed


def test_when_one_alone_fails_too_it_is_not_the_size() -> None:
    size = BatchSize(25, 15)
    while size.size > 1:
        size.failed(size.size, 50)
    full(size, 100.0)
    assert size.size == 1
    size.failed(1, 50)
    full(size, 100.0)
    assert size.size == 2


def test_what_is_on_trial_is_not_what_was_learned() -> None:
    size = BatchSize(25)
    assert full(size, 1000.0) == 50
    assert size.learned == 25


def test_batches_of_another_size_are_no_samples_of_this_one() -> None:
    size = BatchSize(25)
    for _ in range(3):
        size.took(10, 0.01, 10)
    size.took(25, 0.025, 50)
    assert size.size == 25
    for _ in range(3):
        size.took(25, 0.025, 50)
    assert size.size == 50


def test_a_size_that_was_good_once_is_judged_anew() -> None:
    """Its old figure is no measure of what is slow by now."""
    size = BatchSize(15)
    full(size, 1000.0)
    full(size, 2000.0)
    assert size.learned == 25
    for _ in range(4):
        size.took(25, 0.05, 25)
    assert size.size == 15
    size.took(15, 0.4, 25)
    assert size.size == 25


def test_a_hiccup_before_a_request_that_failed_does_not_count_after_it() -> None:
    size = BatchSize(15)
    full(size, 1000.0)
    full(size, 2000.0)
    size.took(25, 1.0, 25)  # a hiccup
    size.failed(25, 25)
    assert size.size == 15
    size.took(15, 1.0, 25)  # another one
    assert size.size == 15
