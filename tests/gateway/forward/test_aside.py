"""Pieces set aside: when their times let them go."""

from datetime import timedelta

import pytest

from gateway.claims import AHEAD_US
from gateway.forward.aside import FUTURE, in_time
from gateway.log.held import HeldPiece
from gateway.log.segment import Columns, microseconds
from tests.gateway.forward.scene import START

HELD_US = microseconds(START)


def piece(reason: str) -> HeldPiece:
    return HeldPiece(1, "city", "urn:x:1", "air-1", "later", reason, START, START, 0, START + timedelta(seconds=1), 1)


@pytest.mark.parametrize(
    ("reason", "ahead_us", "clock_us", "goes", "time_us"),
    [
        (FUTURE, 2 * AHEAD_US, 0, False, 2 * AHEAD_US),  # waits for itself, its time is not touched
        (FUTURE, 2 * AHEAD_US, 2 * AHEAD_US - 1, False, 2 * AHEAD_US),
        (FUTURE, 2 * AHEAD_US, 2 * AHEAD_US, True, 2 * AHEAD_US),
        ("503", AHEAD_US, 0, False, AHEAD_US),  # plausible when it was held: the clock was set back since
        ("503", AHEAD_US, AHEAD_US, True, AHEAD_US),
        ("503", 2 * AHEAD_US, 0, True, 0),  # cannot be: it was there when it was held
        ("503", -HELD_US, 0, True, 0),
        ("503", -5, 0, True, -5),
    ],
)
def test_a_held_piece_waits_for_its_time_and_a_time_that_cannot_be_is_that_of_its_reception(
    reason: str, ahead_us: int, clock_us: int, goes: bool, time_us: int
) -> None:
    columns = Columns(1, time_us=[HELD_US - 1, HELD_US + ahead_us])

    assert in_time(piece(reason), columns, HELD_US + clock_us) is goes
    assert columns.time_us == [HELD_US - 1, HELD_US + time_us]
