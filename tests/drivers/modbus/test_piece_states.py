"""What is known of the requests of one unit, poll after poll: cut, tried merged, cut again, and forgotten in time."""

from collections.abc import Iterable

import pytest

from drivers.modbus.codec.blocks import Block, Field
from drivers.modbus.codec.registers import Encoding
from drivers.modbus.pieces import FIRST_PAUSE_S, MAX_PAUSE_S, Piece, Pieces
from gateway.sdk.reading import Reason

WORD = Encoding("uint16")


def block(*addresses: int) -> Block:
    fields = tuple(Field(f"p{address}", "holding", address, WORD) for address in addresses)
    return Block("holding", addresses[0], addresses[-1] - addresses[0] + 1, fields)


def pieces(*blocks: Block) -> Pieces:
    return Pieces(1, blocks or (block(0, 1, 2, 3),))


def shown(its: Iterable[Piece]) -> list[str]:
    return [" ".join(field.point for field in piece.block.fields) for piece in its]


def cut_to_ones(its: Pieces, now_s: float) -> tuple[Piece, ...]:
    """The one request of four fields, cut twice."""
    [root] = its.leaves
    for half in its.part(root, now_s):
        its.part(half, now_s)
    return tuple(its.leaves)


def test_what_is_cut_is_asked_in_parts_and_what_brought_nothing_comes_last() -> None:
    its = pieces(block(0, 1), block(10, 11))
    first, second = its.leaves
    assert shown(its.part(first, 100.0)) == ["p0", "p1"]
    assert shown(its.leaves) == ["p0", "p1", "p10 p11"], "listed at once"
    p0, p1, _ = its.leaves
    p0.reason = Reason.TIMEOUT
    its.settle([p1, second], [p0], 100.0)
    assert shown(its.leaves) == ["p1", "p10 p11", "p0"]
    p0.reason = Reason.NONE
    its.settle([p0, p1, second], [], 101.0)
    assert shown(its.leaves) == ["p0", "p1", "p10 p11"]


def test_whoever_cuts_a_piece_first_the_other_finds_it_cut_and_the_parts_stay_the_same() -> None:
    its = pieces()
    [root] = its.leaves
    halves = its.part(root, 100.0)
    assert its.part(root, 100.0) == halves
    its.part(halves[0], 100.0)
    assert shown(its.part(root, 100.0)) == ["p0", "p1", "p2 p3"]
    its.tried(root, 200.0, worked=True)
    again = its.part(root, 1000.0)
    assert again[1] is halves[1], "what was learned of a part is not forgotten by a cut"


def test_a_single_field_is_not_cut_and_a_piece_is_not_cut_again_before_its_time() -> None:
    its = pieces()
    for piece in cut_to_ones(its, 100.0):
        assert its.part(piece, 100.0) == ()
    its = pieces()
    [root] = its.leaves
    halves = its.part(root, 100.0)
    its.settle([], halves, 100.0)  # nothing of it works: undone
    assert shown(its.leaves) == ["p0 p1 p2 p3"]
    assert its.part(root, 100.0 + FIRST_PAUSE_S) == ()
    assert root.pause_s == 2 * FIRST_PAUSE_S
    assert shown(its.part(root, 100.0 + 2 * FIRST_PAUSE_S)) == ["p0 p1", "p2 p3"]


def test_cuts_under_which_something_works_stay_and_the_vain_ones_below_them_are_undone() -> None:
    its = pieces()
    ones = cut_to_ones(its, 100.0)
    for piece in ones[2:]:
        piece.reason = Reason.TIMEOUT
    its.settle(ones[:2], ones[2:], 100.0)
    assert shown(its.leaves) == ["p0", "p1", "p2 p3"]


def test_what_was_not_asked_in_a_poll_may_work() -> None:
    its = pieces()
    ones = cut_to_ones(its, 100.0)
    its.settle([], ones[:1], 100.0)  # cut short: the others had no turn
    assert shown(its.leaves) == ["p0", "p1", "p2", "p3"]


def test_all_cuts_below_one_that_works_are_looked_at() -> None:
    its = pieces()
    ones = cut_to_ones(its, 100.0)
    its.settle(ones[:1], ones[1:], 100.0)
    assert shown(its.leaves) == ["p0", "p1", "p2 p3"], "the second half too, though the first one works"


def test_merged_again_is_tried_the_widest_first_when_its_time_has_come() -> None:
    its = pieces()
    assert its.due(1e9) is None
    ones = cut_to_ones(its, 100.0)
    its.settle(ones, [], 100.0)
    assert its.due(100.0 + FIRST_PAUSE_S - 0.1) is None
    due = its.due(100.0 + FIRST_PAUSE_S)
    assert due is not None
    assert shown([due]) == ["p0 p1 p2 p3"]
    its.tried(due, 100.0 + FIRST_PAUSE_S, worked=False)
    half = its.due(100.0 + FIRST_PAUSE_S)
    assert half is not None
    assert len(half.block.fields) == 2
    its.tried(half, 100.0 + FIRST_PAUSE_S, worked=True)
    assert len(its.leaves) == 3, "asked so from now on"
    assert half in its.leaves


def test_pauses_double_while_a_cut_proves_right_and_are_short_again_after_a_calm_time() -> None:
    its = pieces()
    [root] = its.leaves
    its.settle(its.part(root, 0.0), [], 0.0)
    now_s, pauses = 0.0, list[float]()
    while len(pauses) < 11:
        now_s = root.again_s
        pauses.append(root.pause_s)
        assert its.due(now_s) is root
        its.tried(root, now_s, worked=False)
    assert pauses[:4] == [10.0, 20.0, 40.0, 80.0]
    assert pauses[-1] == MAX_PAUSE_S
    its.tried(root, now_s + 10 * MAX_PAUSE_S, worked=False)
    assert root.pause_s == MAX_PAUSE_S, "found true again, however long ago it was looked at"
    now_s += 20 * MAX_PAUSE_S
    its.tried(root, now_s, worked=True)
    its.part(root, now_s + 4 * MAX_PAUSE_S + 1)
    assert root.pause_s == FIRST_PAUSE_S, "a long time without trouble"


def test_a_piece_that_is_merged_again_may_be_cut_at_once_but_with_a_longer_pause() -> None:
    its = pieces()
    [root] = its.leaves
    its.part(root, 100.0)
    its.tried(root, 200.0, worked=True)
    assert root.reason is Reason.NONE
    assert its.part(root, 201.0)
    assert root.pause_s == 2 * FIRST_PAUSE_S, "soon again: no calm time"


@pytest.mark.parametrize("what", ["cut", "reason"])
def test_there_is_nothing_to_look_after_once_all_is_merged_and_works(what: str) -> None:
    its = pieces()
    [root] = its.leaves
    assert its.calm
    if what == "cut":
        halves = its.part(root, 100.0)
        assert not its.calm
        its.settle(halves, [], 100.0)
        assert not its.calm
        its.tried(root, 200.0, worked=True)
    else:
        root.reason = Reason.BUSY
        its.settle([], [root], 100.0)
        assert not its.calm
        root.reason = Reason.NONE
    its.settle([root], [], 201.0)
    assert its.calm


def test_a_part_that_brought_nothing_while_it_is_merged_does_not_keep_the_unit_from_calm() -> None:
    its = pieces()
    [root] = its.leaves
    half, other = its.part(root, 100.0)
    half.reason = Reason.TIMEOUT
    its.settle([other], [half], 100.0)
    its.tried(root, 200.0, worked=True)
    its.settle([root], [], 201.0)
    assert its.calm


def test_a_probe_is_another_field_each_time_and_none_of_one() -> None:
    its = pieces(block(0, 1), block(10, 11))
    found = [its.probe() for _ in range(8)]
    assert sorted(shown(piece for piece in found[:4] if piece)) == ["p0", "p1", "p10", "p11"]
    assert shown(piece for piece in found[4:] if piece) == shown(piece for piece in found[:4] if piece)
    assert pieces(block(0)).probe() is None
