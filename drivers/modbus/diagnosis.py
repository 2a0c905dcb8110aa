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
        other_framing: replies over TCP that were RTU where we speak Modbus TCP, or the reverse.
    """

    answered: int = 0
    silent: int = 0
    damaged: int = 0
    by_unit: Counter[tuple[int, str]] = field(default_factory=Counter)
    junk_bytes: int = 0
    echoes: int = 0
    late: set[int] = field(default_factory=set)
    twice: Counter[int] = field(default_factory=Counter)
    other_framing: int = 0

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
        self.other_framing //= 2
        for counts in (self.by_unit, self.twice):
            for key in list(counts):
                counts[key] //= 2  # type: ignore[index]  # both are counters, of different keys


def of_link(seen: Evidence, *, baud_rate: int, echo: bool, wire: str = "rtu", busy_s: float = 0.0) -> tuple[str, str]:
    """What is wrong with the whole line, and what to do; ("", "") when nothing is.

    Args:
        baud_rate: of the serial line; 0 on TCP.
        echo: whether the link is configured to expect its own requests back.
        wire: how frames travel: `rtu`, `ascii` or `tcp`.
        busy_s: how long the gateway behind a TCP connection is busy with a unit that does not answer, when that is longer
            than we wait.
    """
    if not baud_rate:
        return _of_connection(seen, wire, busy_s)
    asked = seen.answered + seen.silent + seen.damaged
    if asked < MIN_REQUESTS:
        return "", ""
    if not seen.answered and seen.damaged >= SHARE * asked:
        return (
            "noise instead of answers: no frame is whole",
            f"the baud rate (now {baud_rate}), parity or stop bits are not those of the devices; or A and B are swapped",
        )
    if not (seen.answered or echo) and seen.echoes >= SHARE * asked:
        return (
            "our own requests come back (echo), and nothing else",
            "set echo: true on this link; then: no power, A and B swapped, or another baud rate",
        )
    if not seen.answered and seen.silent >= SHARE * asked:
        return (
            "all units are silent",
            f"no power, A and B swapped, another baud rate than {baud_rate}, or the wrong port",
        )
    if not echo and seen.echoes >= SHARE * asked:
        return "our own requests come back (echo)", "set echo: true on this link"
    return "", ""


def _of_connection(seen: Evidence, wire: str, busy_s: float) -> tuple[str, str]:
    asked = seen.answered + seen.silent + seen.damaged
    if seen.other_framing >= 2 and not seen.answered:
        if wire == "tcp":
            return "RTU frames come over this connection: a transparent converter", "set framing: rtu on this link"
        return "this device speaks Modbus TCP", f"remove framing: {wire} from this link"
    if busy_s:
        return (
            f"the gateway waits {busy_s:.1f} s for a unit that does not answer; its neighbours wait as well",
            f"set the gateway's own timeout shorter (it may well be 500 ms), or the link's timeout: {busy_s + 0.5:.1f} s;"
            " take units out that are not there",
        )
    if seen.answered or asked < MIN_REQUESTS:
        return "", ""
    if seen.silent >= SHARE * asked and seen.late:
        return "answers come later than the timeout", "set timeout: of this link longer than its devices take"
    if seen.silent >= SHARE * asked:
        return "nobody answers on this connection", (
            f"are the unit ids right, and is the line behind the gateway alive? {_other_wire(wire)}"
        )
    if seen.damaged >= SHARE * asked:
        return "what comes over this connection is no answer", f"is it the right port? {_other_wire(wire)}"
    return "", ""


def _other_wire(wire: str) -> str:
    if wire == "tcp":
        return "if it is a transparent converter (RTU over TCP), set framing: rtu"
    return f"if the device speaks Modbus TCP, remove framing: {wire}"


def of_hang_ups(wire: str) -> tuple[str, str]:
    """Connections are accepted and closed again before anybody has answered, and what to do."""
    return (
        "it accepts connections and closes them at once",
        f"many devices serve one client only: is another one connected? then keep_open: false there; {_other_wire(wire)}",
    )


def of_unit(seen: Evidence, unit: int, *, timeout_s: float, serial: bool = True) -> tuple[str, str]:
    """What is wrong with one unit of a line on which others work, and what to do; ("", "") when it is not known.

    Args:
        timeout_s: the longest wait for it.
        serial: it hangs on our own line, not behind TCP.
    """
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
            f"two units with id {unit}? else its cable, its distance or its baud rate"
            if serial
            else f"does unit {unit} keep to the protocol? a recording of the link shows it",
        )
    if counts["silent"] >= SHARE * asked:
        return "it is silent while others answer", f"is it powered, is its unit id {unit}, is its own connection sound?"
    return "", ""
