"""Recordings: what went over a wire and when, as lines that people, tests and simulators read. Pure.

    # citygate recording 1
    # link roof-rs485, modbus, since 2026-06-01T12:00:00.000000Z
    0.000000 > 01 04 00 00 00 02 71 cb
    0.021400 < 01 04 04 43 66 80 00 6f df

Seconds since the start with microseconds, `>` to the device or `<` from it, the bytes. Lines with `#` are remarks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from gateway.sdk.errors import CitygateError

HEAD = "# citygate recording 1"
MAX_BYTES = 4 << 20  # of text; a recording is ended rather than that it grows without end

Direction = Literal[">", "<"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes that went over the wire in one piece.

    Attributes:
        at_s: since the start of the recording.
        direction: `>` to the device, `<` from it.
    """

    at_s: float
    direction: Direction
    data: bytes

    def line(self) -> str:
        """As in the file."""
        return f"{self.at_s:.6f} {self.direction} {self.data.hex(' ')}"


def written(chunks: Iterable[Chunk], *, remark: str) -> str:
    """The text of a recording."""
    return "\n".join([HEAD, f"# {remark}", *(chunk.line() for chunk in chunks)]) + "\n"


def parsed(text: str) -> list[Chunk]:
    """The chunks of a recording, in order.

    Raises:
        CitygateError: not a recording; the message names the line.
    """
    if not text.startswith(HEAD):
        raise CitygateError(f"not a recording: its first line is not `{HEAD}`")
    return list(_chunks(text))


def _chunks(text: str) -> Iterator[Chunk]:
    before_s = 0.0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        time, _, rest = line.partition(" ")
        direction, _, data = rest.partition(" ")
        try:
            at_s, read = float(time), bytes.fromhex(data)
        except ValueError:
            raise CitygateError(f"line {number} of the recording is no `seconds > bytes`: {line[:60]!r}") from None
        if not before_s <= at_s < 1e9 or not read or (direction != ">" and direction != "<"):
            raise CitygateError(f"line {number} of the recording goes back in time or holds nothing: {line[:60]!r}")
        before_s = at_s
        yield Chunk(at_s, ">" if direction == ">" else "<", read)


def exchanges(chunks: Iterable[Chunk]) -> list[tuple[bytes, bytes, list[tuple[float, bytes]]]]:
    """Requests with what came after each, up to the next: (request, all that came, [(seconds after the request, bytes)]).

    What a device says before it is asked anything belongs to the request b"" at 0 s.
    """
    found: list[tuple[bytes, bytes, list[tuple[float, bytes]]]] = []
    request, asked_at_s, came = b"", 0.0, list[tuple[float, bytes]]()
    for chunk in chunks:
        if chunk.direction == "<":
            came.append((chunk.at_s - asked_at_s, chunk.data))
            continue
        if request or came:
            found.append((request, b"".join(data for _, data in came), came))
        request, asked_at_s, came = chunk.data, chunk.at_s, []
    if request or came:
        found.append((request, b"".join(data for _, data in came), came))
    return found
