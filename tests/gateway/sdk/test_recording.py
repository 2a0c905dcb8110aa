"""Recordings: what is written reads back; anything else is refused with its line."""

import contextlib
import os
import tty

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk.errors import CitygateError
from gateway.sdk.recording import HEAD, Chunk, exchanges, parsed, written
from gateway.sdk.streams import Tap, open_serial

chunks = st.lists(
    st.builds(
        Chunk,
        st.integers(0, 10**9).map(lambda n: n / 1e6),
        st.sampled_from([">", "<"]),
        st.binary(min_size=1, max_size=40),
    )
).map(lambda found: sorted(found, key=lambda chunk: chunk.at_s))


@given(chunks)
def test_what_is_written_reads_back(found: list[Chunk]) -> None:
    assert parsed(written(found, remark="link x")) == found


@given(chunks)
def test_exchanges_lose_no_byte(found: list[Chunk]) -> None:
    asked = exchanges(found)

    assert b"".join(request for request, _, _ in asked) == b"".join(c.data for c in found if c.direction == ">")
    assert b"".join(reply for _, reply, _ in asked) == b"".join(c.data for c in found if c.direction == "<")


@given(st.text(max_size=200))
def test_any_text_is_a_recording_or_refused(text: str) -> None:
    for given_text in (text, f"{HEAD}\n{text}"):
        with contextlib.suppress(CitygateError):
            parsed(given_text)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("x > 01", "no `seconds > bytes`"),
        ("0.1 > zz", "no `seconds > bytes`"),
        ("0.1 ? 01", "goes back in time or holds nothing"),
        ("0.1 >", "goes back in time or holds nothing"),
        ("nan > 01", "goes back in time or holds nothing"),
        ("5 > 01\n4 < 02", "line 3"),
    ],
)
def test_a_broken_line_is_named(line: str, why: str) -> None:
    with pytest.raises(CitygateError, match=why):
        parsed(f"{HEAD}\n{line}\n")


async def test_a_tap_hears_both_directions_also_of_streams_opened_before_it_listened() -> None:
    tap, heard = Tap(), list[tuple[str, bytes]]()
    master, slave = os.openpty()
    tty.setraw(slave)
    try:
        async with tap.through(open_serial)(os.ttyname(slave), 9600) as stream:
            await stream.write(b"unheard")
            os.read(master, 64)
            with tap.listen(lambda direction, data: heard.append((direction, data))):
                await stream.write(b"ask")
                os.write(master, b"answer")
                assert await stream.read() == b"answer"
                with pytest.raises(CitygateError, match="recorded already"), tap.listen(lambda *_: None):
                    pass
            await stream.write(b"unheard")
    finally:
        os.close(master)
        os.close(slave)

    assert heard == [(">", b"ask"), ("<", b"answer")]
