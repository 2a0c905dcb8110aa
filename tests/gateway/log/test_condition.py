"""What is wrong with the log, and since when: one state that lasts is one, whatever happens beside it."""

from pathlib import Path

from gateway.log.condition import Condition
from gateway.log.pending import Pending
from gateway.log.store import Gap
from gateway.sdk.errors import LogError
from gateway.sdk.testing import ManualClock


def gap(reason: str) -> Gap:
    return Gap(0, None, None, 1, reason, {})


def test_readings_given_up_again_and_again_for_one_reason_are_one_state_until_ten_minutes_without() -> None:
    clock = ManualClock()
    condition = Condition(Path("buffer.db"), clock)
    clock.advance(100)
    first = clock.now()
    for _ in range(4):
        condition.note_gaps([gap("size")])
        clock.advance(599)
        condition.note_kept()
        shown = condition.shown(held_back=False)
        assert (shown["state"], shown["since"]) == ("bad", first)
    clock.advance(1)
    condition.note_kept()
    assert condition.shown(held_back=False)["state"] == "ok"
    condition.note_gaps([gap("size")])
    assert condition.shown(held_back=False)["since"] == clock.now()


def test_that_nothing_is_given_up_any_more_is_not_said_of_a_card_that_refuses() -> None:
    clock = ManualClock()
    condition = Condition(Path("buffer.db"), clock)
    condition.note_gaps([gap("memory")])
    condition.failed(LogError("full"))
    clock.advance(600)
    condition.note_kept()
    condition.worked()
    assert "memory" in condition.shown(held_back=False)["reason"]
    condition.note_kept()
    assert condition.shown(held_back=False)["state"] == "ok"


def test_what_is_given_up_in_turn_for_one_reason_is_one_record_from_the_first_to_the_last() -> None:
    pending = Pending()
    pending.add_gap(Gap(1, 10, 20, 2, "memory", {"milano": 2}))
    pending.add_gap(Gap(2, 21, 30, 3, "memory", {"milano": 1, "porto": 3}))
    assert pending.gaps == [Gap(2, 10, 30, 5, "memory", {"milano": 3, "porto": 3})]
