"""What outlives a restart: bytes of the month, the batch size, the way of sending."""

from datetime import UTC, datetime

import pytest

from gateway.forward.broker import Traffic
from gateway.forward.recording import Recording
from gateway.forward.usage import Usage
from gateway.sdk.errors import LogError
from gateway.sdk.reading import ReadingSet
from gateway.sdk.testing import ManualClock

MAY = datetime(2026, 5, 31, 23, 0, tzinfo=UTC)


class Log:
    """Keeps what is noted, by the name of its place."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, bytes]] = {}
        self.notes = 0
        self.refuses = False

    def driver_state(self, device: str) -> dict[str, bytes]:
        return self.kept.get(device, {})

    async def append(self, readings: ReadingSet) -> None:
        if self.refuses:
            raise LogError("database or disk is full")
        assert readings.readings == ()
        assert readings.state is not None
        self.kept.setdefault(readings.device, {}).update(readings.state)
        self.notes += 1


class Run:
    """One run of the box."""

    def __init__(self, log: Log, clock: ManualClock) -> None:
        self.traffic = Traffic()
        self.usage = Usage("city", self.traffic, log, clock)

    def moves(self, sent: int, received: int) -> int:
        self.traffic.sent_bytes += sent
        self.traffic.received_bytes += received
        return self.usage.month_bytes()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(MAY)


def test_nothing_went_over_the_wire_at_the_start() -> None:
    assert Traffic() == Traffic(requests=0, sent_bytes=0, received_bytes=0, batch=0, warning="")


async def test_the_first_run_finds_nothing_and_begins_at_nothing(log: Log, clock: ManualClock) -> None:
    run = Run(log, clock)
    assert run.usage.month_bytes() == 0
    run.traffic.batch = 9
    assert run.usage.recall() == ""
    assert run.traffic.batch == 0
    assert run.moves(10, 5) == 15
    assert run.moves(0, 0) == 15
    assert run.moves(1, 2) == 18


async def test_what_one_run_noted_the_next_takes_up(log: Log, clock: ManualClock) -> None:
    first = Run(log, clock)
    first.usage.recall()
    first.traffic.batch = 50
    first.moves(10, 5)
    await first.usage.note("temporal")
    assert log.kept == {"broker city": {"month": b"2026-05 15", "batch": b"50", "mode": b"temporal"}}
    second = Run(log, clock)
    assert second.usage.recall() == "temporal"
    assert second.traffic.batch == 50
    assert second.moves(1, 1) == 17


async def test_a_recall_in_the_middle_of_a_run_counts_its_bytes_once(log: Log, clock: ManualClock) -> None:
    log.kept["broker city"] = {"month": b"2026-05 100"}
    run = Run(log, clock)
    run.usage.recall()
    assert run.moves(3, 4) == 107
    run.usage.recall()
    assert run.moves(0, 0) == 107


async def test_a_month_ends_and_the_next_begins_at_nothing(log: Log, clock: ManualClock) -> None:
    run = Run(log, clock)
    run.usage.recall()
    assert run.moves(10, 5) == 15
    clock.advance(3600.0)
    assert run.moves(1, 1) == 2
    await run.usage.note("")
    assert log.kept["broker city"]["month"] == b"2026-06 2"


@pytest.mark.parametrize("month", [b"2026-05", b"2026-05 ", b"2026-05 many", b"2026-05 1 2", b"", b"\xff 3"])
def test_a_note_that_makes_no_sense_is_none(log: Log, clock: ManualClock, month: bytes) -> None:
    log.kept["broker city"] = {"month": month, "batch": b"\xff"}
    run = Run(log, clock)
    assert run.usage.recall() == ""
    assert run.usage.month_bytes() == 0
    assert run.traffic.batch == 0


async def test_without_a_way_of_sending_none_is_noted(log: Log, clock: ManualClock) -> None:
    run = Run(log, clock)
    await run.usage.note("")
    assert log.kept["broker city"] == {"month": b"2026-05 0", "batch": b"0"}


async def test_it_is_noted_when_it_changed_and_due_every_hour(log: Log, clock: ManualClock) -> None:
    run = Run(log, clock)
    for notes in (1, 1, 1):
        clock.advance(3599.0)
        assert not run.usage.due
        clock.advance(1.0)
        assert run.usage.due
        clock.step(-3 * 3600)  # the month of before
        await run.usage.note("in-order")
        assert log.notes == notes
    run.moves(1, 0)
    await run.usage.note("in-order")
    assert log.notes == 2
    log.refuses = True
    run.moves(1, 0)
    with pytest.raises(LogError):
        await run.usage.note("in-order")
    assert not run.usage.due


async def test_of_another_city_under_the_name_nothing_holds_but_the_bytes(log: Log, clock: ManualClock) -> None:
    def run(city: str) -> tuple[Usage, Traffic, Recording]:
        traffic, recording = Traffic(), Recording()
        return Usage("city", traffic, log, clock, recording, city=city), traffic, recording

    usage, traffic, recording = run("one")
    usage.recall()
    traffic.batch, traffic.sent_bytes = 50, 10
    recording.seen()
    await usage.note("temporal")

    for city in ("two", "two"):  # not at a later start either
        usage, traffic, recording = run(city)
        assert usage.recall() == ""
        assert (traffic.batch, recording.by_itself) == (0, None)
        assert usage.month_bytes() == 10
        await usage.note("")

    usage, traffic, recording = run("two")
    assert usage.recall() == ""
    traffic.batch = 9
    await usage.note("in-order")
    usage, traffic, _ = run("two")
    assert (usage.recall(), traffic.batch) == ("in-order", 9)


async def test_how_far_was_sent_stands_until_more_was_and_only_for_that_city(log: Log, clock: ManualClock) -> None:
    first = Usage("city", Traffic(), log, clock, city="one")
    first.recall()
    assert first.sent_upto == 0
    await first.note("temporal", 7)
    await first.note("in-order")
    for city, upto in (("one", 7), ("two", 0), ("one", 7)):
        usage = Usage("city", Traffic(), log, clock, city=city)
        usage.recall()
        assert usage.sent_upto == upto
    other = Usage("city", Traffic(), log, clock, city="two")
    other.recall()
    await other.note("temporal")
    back = Usage("city", Traffic(), log, clock, city="two")
    back.recall()
    assert back.sent_upto == 0


async def test_what_an_older_citygate_noted_holds(log: Log, clock: ManualClock) -> None:
    first = Run(log, clock)
    await first.usage.note("temporal")
    assert Usage("city", Traffic(), log, clock, city="one").recall() == "temporal"


async def test_what_was_learned_of_its_history_is_noted_at_once_and_taken_up(log: Log, clock: ManualClock) -> None:
    recording = Recording()
    usage = Usage("city", Traffic(), log, clock, recording)
    usage.recall()
    await usage.note("temporal")
    assert "records" not in log.kept["broker city"]
    recording.seen()
    assert usage.due
    await usage.note("temporal")
    assert not usage.due
    assert log.kept["broker city"]["records"] == b"yes (seen)"
    again = Recording()
    following = Usage("city", Traffic(), log, clock, again)
    following.recall()
    assert again.shown == "yes (seen)"
    assert not following.due
    log.refuses = True
    again.not_seen()
    assert following.due
    with pytest.raises(LogError):
        await following.note("temporal")
    assert not following.due  # a log that refuses is not asked all the time
