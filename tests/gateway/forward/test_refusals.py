"""What is shown as refused: by entity and way, until it is taken in that way again, or given up."""

from datetime import timedelta
from typing import Literal

import pytest

from gateway.forward.broker import Outcome
from gateway.forward.refusals import LASTS_S, LATER_REMEDY, REMEDY, WRITTEN_WITHIN_S, Refusals
from gateway.log.held import HeldPiece
from gateway.sdk.errors import BrokerUnavailable
from gateway.sdk.testing import NOON, ManualClock

AIR, SOIL = "urn:ngsi-ld:X:air", "urn:ngsi-ld:X:soil"
REFUSED = Outcome(refused={AIR: "no such type"})
TAKEN = Outcome(accepted=frozenset({AIR}))


def dead(entity: str) -> dict[str, HeldPiece]:
    """Its newest dead letter."""
    return {entity: HeldPiece(1, "city", entity, "air-1", "dead", "no such type", NOON, NOON, 1, None, 1)}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def refusals(clock: ManualClock) -> Refusals:
    return Refusals("city", clock, {AIR: "air-1", SOIL: "soil-1"})


@pytest.mark.parametrize(("refused", "taken"), [("state", "past"), ("past", "state")])
def test_what_is_taken_in_one_way_is_still_refused_in_the_other(
    refusals: Refusals, refused: Literal["state", "past"], taken: Literal["state", "past"]
) -> None:
    refusals.note(refused, REFUSED)
    refusals.note(taken, TAKEN)
    assert [row["entity"] for row in refusals.now({})] == [AIR]
    refusals.note(refused, TAKEN)
    assert refusals.now({}) == []


def test_since_is_when_it_began_and_the_reason_is_the_last(refusals: Refusals, clock: ManualClock) -> None:
    refusals.note("state", REFUSED)
    clock.advance(30.0)
    refusals.note("state", Outcome(refused={AIR: "no such unit"}))
    [row] = refusals.now({})
    assert (row["reason"], row["since"]) == ("no such unit", NOON.isoformat().replace("+00:00", "Z"))
    refusals.note("state", TAKEN)
    clock.advance(30.0)
    refusals.note("state", REFUSED)
    [row] = refusals.now({})
    assert row["since"] == (NOON + timedelta(seconds=60)).isoformat().replace("+00:00", "Z")


def test_a_dead_letter_of_an_earlier_run_counts_until_its_own_entity_is_taken(refusals: Refusals) -> None:
    assert [row["entity"] for row in refusals.now(dead(AIR))] == [AIR]
    refusals.note("past", Outcome(accepted=frozenset({SOIL})))
    assert [row["entity"] for row in refusals.now(dead(AIR))] == [AIR]
    refusals.note("state", TAKEN)
    assert refusals.now(dead(AIR)) == []
    assert refusals.now(dead("urn:ngsi-ld:X:no-longer-sent")) == []


def test_a_refusal_of_the_past_that_was_purged_is_shown_no_longer_and_one_of_the_state_is(
    refusals: Refusals, clock: ManualClock
) -> None:
    refusals.note("past", REFUSED)
    refusals.note("state", Outcome(refused={SOIL: "no such type"}))
    clock.advance(WRITTEN_WITHIN_S)
    assert [row["entity"] for row in refusals.now({})] == [AIR, SOIL]
    clock.advance(1.0)
    assert [row["entity"] for row in refusals.now(dead(AIR))] == [AIR, SOIL]
    assert [row["entity"] for row in refusals.now({})] == [SOIL]


def test_who_is_put_off_as_state_again_and_again_is_shown_with_the_brokers_words(
    refusals: Refusals, clock: ManualClock
) -> None:
    for said, after_s, shown in (("503", 0.0, 0), ("busy", LASTS_S - 0.1, 0), ("busy", 0.1, 1), ("down", 30.0, 1)):
        clock.advance(after_s)
        refusals.note("state", Outcome(later={AIR: said}))
        assert len(refusals.now({})) == shown
    [row] = refusals.now({})
    assert (row["reason"], row["since"]) == ("put off: down", NOON.isoformat().replace("+00:00", "Z"))
    assert row["remedy"] == LATER_REMEDY
    refusals.note("past", TAKEN)
    assert len(refusals.now({})) == 1
    refusals.note("state", REFUSED)
    [row] = refusals.now({})
    assert (row["reason"], row["remedy"]) == ("no such type", REMEDY)
    refusals.note("state", TAKEN)
    refusals.note("state", Outcome(later={AIR: "503"}))
    assert refusals.now({}) == []  # it is another time


def test_who_is_put_off_with_all_others_or_as_history_is_not_refused(refusals: Refusals, clock: ManualClock) -> None:
    for _ in range(3):
        refusals.note("past", Outcome(later={AIR: "503"}))
        refusals.note("state", Outcome(later={AIR: "away"}, fault=BrokerUnavailable("away")))
        clock.advance(LASTS_S)
    assert refusals.now({}) == []


def test_a_past_that_is_taken_does_not_end_that_the_state_is_put_off(refusals: Refusals, clock: ManualClock) -> None:
    refusals.note("state", Outcome(later={AIR: "busy"}))
    clock.advance(LASTS_S - 1)
    refusals.note("past", TAKEN)
    clock.advance(1)
    refusals.note("state", Outcome(later={AIR: "busy"}))
    assert [row["reason"] for row in refusals.now({})] == ["put off: busy"]
