"""The past rests while more than a second of the rate is used up."""

import pytest

from gateway.forward.pace import Pace
from gateway.sdk.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    clock = ManualClock()
    clock.advance(-clock.monotonic_s())  # the box has just started
    return clock


def test_a_second_may_be_sent_at_once_and_no_more(clock: ManualClock) -> None:
    pace = Pace(clock, rate_per_s=8.0, readings_an_entity=2.0)
    assert not pace.used_up
    pace.spend(4)
    assert not pace.used_up
    pace.spend(1)
    assert pace.used_up
    clock.advance(0.25)
    assert not pace.used_up


def test_what_was_used_up_adds_up_and_what_was_not_used_does_not(clock: ManualClock) -> None:
    pace = Pace(clock, rate_per_s=8.0, readings_an_entity=2.0)
    clock.advance(100.0)
    pace.spend(8)  # two seconds, from now on
    assert pace.used_up
    pace.spend(8)
    clock.advance(2.5)
    assert pace.used_up
    clock.advance(0.5)
    assert not pace.used_up
    pace.spend(0)
    assert not pace.used_up
