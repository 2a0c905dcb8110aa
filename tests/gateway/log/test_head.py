"""The head against a plain list: what is in it, its bytes and readings, whatever is put in and taken out."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.log.head import Head
from gateway.log.segment import Entry, Stamp
from gateway.sdk.reading import Reading
from gateway.sdk.testing import NOON

STAMP = Stamp(1, 0, 7)
STEPS = st.tuples(
    st.sampled_from(("append", "append", "drop", "take_out", "make_room")), st.integers(0, 60), st.integers(1, 3)
)


def entry(seq: int, readings: int, size_bytes: int) -> Entry:
    return Entry(seq, (1,) * readings, (Reading("p", 1, NOON),) * readings, STAMP, 0.0, size_bytes)


@given(st.lists(STEPS, max_size=40))
def test_bytes_and_readings_are_those_of_the_sets_that_are_in_it(steps: list[tuple[str, int, int]]) -> None:
    head, model, seq = Head(100), list[Entry](), 0
    for what, n, few in steps:
        if what == "append":
            seq += few
            new = entry(seq, 1 + n % 3, n)
            head.append(new)
            model.append(new)
        elif what == "drop":
            gone = [e for e in model if e.seq <= n]
            assert head.drop(n) == sum(len(e.readings) for e in gone)
            model = model[len(gone) :]
        elif what == "take_out":
            seqs = {n, n + few, seq}
            head.take_out(seqs)
            model = [e for e in model if e.seq not in seqs]
        else:
            gone = head.drop_oldest(n)
            assert gone == model[: len(gone)]
            model = model[len(gone) :]
            assert sum(e.size_bytes for e in model) <= n
            if gone:  # and no more than that needs
                assert sum(e.size_bytes for e in (gone[-1], *model)) > n
        assert head.entries == model
        assert head.size_bytes == sum(e.size_bytes for e in model)
        assert head.readings == sum(len(e.readings) for e in model)
        assert head.full == (head.size_bytes >= 100)
        for place in range(-1, seq + 2):
            assert head.after(place) == sum(e.seq <= place for e in model)
            assert head.count(place, place + 3) == sum(len(e.readings) for e in model if place < e.seq <= place + 3)


def test_a_head_is_full_at_its_bound() -> None:
    head = Head(100)
    head.append(entry(1, 1, 99))
    assert not head.full
    head.append(entry(2, 1, 1))
    assert head.full
    assert head.drop_oldest(100) == []
    assert [e.seq for e in head.drop_oldest(99)] == [1]


def test_numbers_of_before_the_file_was_open_all_grow_by_as_much() -> None:
    head = Head(100)
    assert (head.first_seq, head.next_seq, head.stored_last) == (0, 1, 0)
    for readings in (1, 2):
        head.append(entry(head.next_seq, readings, 10))
        assert head.skip() == head.next_seq - 1
    assert (head.next_seq, [e.seq for e in head.entries]) == (5, [1, 3])
    was = 0
    for start, boot in ((4, 8), (9, 9)):  # opened late, and once more
        assert head.renumber(start << 32, {1: boot, boot - 1: boot}, boot) == (start << 32) - was
        was = start << 32
        assert (head.first_seq, head.next_seq) == (was, was + 5)
        assert [(e.seq, e.series) for e in head.entries] == [(was + 1, (boot,)), (was + 3, (boot, boot))]
        one, two = (e.stamp for e in head.entries)
        assert one is two  # as it goes into one segment
        assert one == Stamp(boot, 0, 7)
    assert (head.size_bytes, head.readings) == (20, 3)
