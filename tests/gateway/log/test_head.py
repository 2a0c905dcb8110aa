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
