"""What a technician would conclude from how a line behaves: evidence in, words and a remedy out. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

MIN_REQUESTS = 6  # fewer say nothing about a line
FADE_AFTER = 32  # requests by unit and outcome; then what was seen counts half
SHARE = 0.8  # of the requests that failed show the same thing


@dataclass(slots=True)
class Evidence:
    """What was seen on the line lately; halved now and then, so that the past fades.

    Attributes:
        answered, silent, damaged: requests by how they ended; damaged = bytes came, but no sound reply.
        by_unit: (unit, how it ended) -> requests.
        junk_bytes: bytes that belonged to no sound frame.
        echoes: own requests that came back.
        late: units whose reply came when nobody waited for it any more, and that have not answered in time since.
        twice: units of which a second reply to one request came.
    """

    answered: int = 0
    silent: int = 0
    damaged: int = 0
    by_unit: Counter[tuple[int, str]] = field(default_factory=Counter)
    junk_bytes: int = 0
    echoes: int = 0
    late: set[int] = field(default_factory=set)
    twice: Counter[int] = field(default_factory=Counter)

    def note(self, unit: int, how: str) -> None:
        """A request to `unit` ended as `answered`, `silent` or `damaged`."""
        self.by_unit[unit, how] += 1
        if how == "answered":
            self.answered += 1
            self.late.discard(unit)
        elif how == "silent":
            self.silent += 1
        else:
            self.damaged += 1
        if self.answered + self.silent + self.damaged >= FADE_AFTER * len(self.by_unit):
            self._fade()

    def _fade(self) -> None:
        self.answered //= 2
        self.silent //= 2
        self.damaged //= 2
        self.junk_bytes //= 2
        self.echoes //= 2
        for counts in (self.by_unit, self.twice):
            for key in list(counts):
                counts[key] //= 2  # type: ignore[index]  # both are counters, of different keys


def of_link(seen: Evidence, *, baud_rate: int, echo: bool) -> tuple[str, str]:
    """What is wrong with the whole line, and what to do; ("", "") when nothing is.

    Args:
        baud_rate: of the serial line; 0 on TCP.
        echo: whether the link is configured to expect its own requests back.
    """
    asked = seen.answered + seen.silent + seen.damaged
    if asked < MIN_REQUESTS:
        return "", ""
    if not seen.answered and seen.damaged >= SHARE * asked and baud_rate:
        return (
            "noise instead of answers: no frame is whole",
            f"the baud rate (now {baud_rate}), parity or stop bits are not those of the devices; or A and B are swapped",
        )
    if not seen.answered and seen.silent >= SHARE * asked:
        if not baud_rate:
            return (
                "nobody answers on this connection",
                "are the unit ids right, and is the line behind the gateway alive?",
            )
        return (
            "all units are silent",
            f"no power, A and B swapped, another baud rate than {baud_rate}, or the wrong port",
        )
    if not echo and seen.echoes >= SHARE * asked:
        return "our own requests come back (echo)", "set echo: true on this link"
    if not seen.answered:
        return "", ""
    return "", ""


def of_unit(seen: Evidence, unit: int, *, timeout_s: float) -> tuple[str, str]:
    """What is wrong with one unit of a line on which others work, and what to do; ("", "") when it is not known."""
    counts: Mapping[str, int] = {how: seen.by_unit[unit, how] for how in ("answered", "silent", "damaged")}
    asked = sum(counts.values())
    others_answer = seen.answered > counts["answered"]
    if unit in seen.late:
        return (
            "its answer comes later than its timeout",
            f"set timeout: {3000 * timeout_s:.0f} ms for this device (now {1000 * timeout_s:.0f} ms)",
        )
    if seen.twice[unit] and seen.twice[unit] + counts["damaged"] >= max(2, asked // 4):
        return f"two units answer as {unit}", "give one of them another unit id"
    if asked < 3 or not others_answer:
        return "", ""
    if counts["damaged"] >= SHARE * asked:
        return (
            "its answers are damaged while others' are whole",
            f"two units with id {unit}? else its cable, its distance or its baud rate",
        )
    if counts["silent"] >= SHARE * asked:
        return "it is silent while others answer", f"is it powered, is its unit id {unit}, is its own connection sound?"
    return "", ""
