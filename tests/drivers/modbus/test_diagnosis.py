"""What status says in words when a line is in trouble."""

from collections.abc import Callable

import pytest

from drivers.modbus.diagnosis import FADE_AFTER, Evidence
from drivers.modbus.driver import DRIVER
from gateway.sdk.errors import LinkError, PortClosed
from gateway.sdk.streams import ByteStream
from gateway.sdk.testing import ManualClock, RecordingContext
from tests.support import modbus_slave as slave
from tests.support.modbus_config import link, template

Pieces = list[tuple[float, bytes]]


class Said(RecordingContext):
    """Keeps every remark in its order, also those that were taken back."""

    def __init__(self, port: ByteStream, clock: ManualClock) -> None:
        super().__init__(port, clock)
        self.said: list[tuple[str, str, str]] = []

    def _note(self, device: str, text: str, remedy: str) -> None:
        self.said.append((device, text, remedy))
        super()._note(device, text, remedy)


TWO_WORDS = template(a={"address": 0}, b={"address": 1})


def good(request: slave.Request) -> bytes:
    return slave.rtu(request.unit, slave.words(request.function, [1, 2]))


async def notes_after(
    seconds: float, answer: Callable[[slave.Request], Pieces], **its: object
) -> dict[str, tuple[str, str]]:
    """Notes of link ("") and devices u1, u2, u7 on a line that answers like this."""
    return (await said_in(seconds, answer, **its)).notes


async def said_in(seconds: float, answer: Callable[[slave.Request], Pieces], **its: object) -> Said:
    devices = {f"u{n}": {"template": TWO_WORDS, "unit_id": n, "every": "1 s"} for n in (1, 2, 7)}
    config = link(devices, **{"timeout": "300 ms", **its})
    clock = ManualClock()
    wire = slave.MemoryLine(clock, lambda frame: answer(slave.parse_rtu(frame)), lambda: PortClosed("end of the test"))
    wire.closed_at_s = clock.monotonic_s() + seconds
    recorder = Said(wire, clock)
    with pytest.raises(LinkError):
        await DRIVER.run(config, recorder.context)
    return recorder


async def test_a_healthy_line_has_nothing_to_say() -> None:
    assert await notes_after(30, lambda r: [(0.02, good(r))]) == {}


async def test_all_silent_points_to_wiring_baud_rate_or_power() -> None:
    notes = await notes_after(60, lambda r: [])

    assert notes[""] == (
        "all units are silent",
        "no power, A and B swapped, another baud rate than 9600, or the wrong port",
    )


async def test_noise_on_every_byte_points_to_the_baud_rate() -> None:
    notes = await notes_after(60, lambda r: [(0.02, b"\xf8\x00\xfe\x80" * 4)])

    assert notes[""][0] == "noise instead of answers: no frame is whole"
    assert "baud rate (now 9600)" in notes[""][1]


async def test_an_echo_is_named_with_its_setting() -> None:
    notes = await notes_after(30, lambda r: [(0.009, slave.rtu(r.unit, r.pdu)), (0.03, good(r))])

    assert notes[""] == ("our own requests come back (echo)", "set echo: true on this link")


async def test_an_echo_and_no_answer_is_no_mere_silence() -> None:
    notes = await notes_after(60, lambda r: [(0.009, slave.rtu(r.unit, r.pdu))])

    assert notes[""][0] == "our own requests come back (echo), and nothing else"
    assert notes[""][1].startswith("set echo: true on this link; then: no power, A and B swapped")


async def test_one_silent_unit_among_others_is_asked_for_its_power() -> None:
    notes = await notes_after(60, lambda r: [(0.02, good(r))] if r.unit != 7 else [])

    assert notes["u7"] == (
        "it is silent while others answer",
        "is it powered, is its unit id 7, is its own connection sound?",
    )
    assert "" not in notes


async def test_two_units_with_one_id_are_told_by_their_second_reply() -> None:
    def twice(request: slave.Request) -> Pieces:
        if request.unit != 7:
            return [(0.02, good(request))]
        jam = [(0.02, b"\x07\x03" + b"\xff" * 9)] if len(seen) % 2 else [(0.02, good(request)), (0.2, good(request))]
        seen.append(1)
        return jam

    seen: list[int] = []
    recorder = await said_in(60, twice)

    assert ("u7", "two units answer as 7", "give one of them another unit id") in recorder.said
    assert "two units" in " ".join(recorder.notes["u7"]), "in the end it may only be damage that is left in sight"


async def test_damaged_answers_of_one_unit_are_its_own_trouble() -> None:
    notes = await notes_after(60, lambda r: [(0.02, good(r) if r.unit != 7 else good(r)[:-1] + b"\x00")])

    assert notes["u7"][0] == "its answers are damaged while others' are whole"


async def test_a_unit_that_answers_late_is_told_with_the_timeout_it_needs() -> None:
    notes = await notes_after(60, lambda r: [(0.02 if r.unit != 7 else 0.45, good(r))])

    assert notes["u7"] == (
        "its answer comes later than its timeout",
        "set timeout: 900 ms for this device (now 300 ms)",
    )


def test_all_that_was_seen_fades_alike_so_that_a_line_put_right_is_believed() -> None:
    seen = Evidence()
    seen.junk_bytes, seen.echoes, seen.other_framing = 100, 8, 6
    seen.twice[1] = 4
    for _ in range(FADE_AFTER - 1):
        seen.note(1, "answered")
    assert (seen.answered, seen.junk_bytes, seen.echoes) == (FADE_AFTER - 1, 100, 8)
    seen.note(1, "answered")
    assert (seen.answered, seen.by_unit[1, "answered"]) == (FADE_AFTER // 2, FADE_AFTER // 2)
    assert (seen.junk_bytes, seen.echoes, seen.other_framing, seen.twice[1]) == (50, 4, 3, 2)

    for _ in range(4 * FADE_AFTER):
        seen.note(2, "silent")
        seen.note(3, "damaged")
    assert max(seen.silent, seen.damaged) < 2 * FADE_AFTER
    assert (seen.echoes, seen.other_framing, seen.twice[1]) == (0, 0, 0), "of long ago"
