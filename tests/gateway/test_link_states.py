"""What status says of a link and its devices, one state after another: it is the present one's reason, not an earlier's."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.health import ALIKE, DeviceHealth, Health, LinkHealth
from gateway.link import REJECT_EVENT_EVERY_S, SILENT_AFTER_S, LinkService
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.config import Report
from gateway.sdk.driver import Context
from gateway.sdk.errors import FrameError, LinkError
from gateway.sdk.reading import Reading, ReadingSet, Reason, no_values
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.test_link import idle, link, logged, values


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def log(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Log]:
    log = await Log.open(LogSettings(tmp_path / "buffer.db"), clock=clock, consumers=[Consumer("city")])
    yield log
    await log.close()


def records(service: LinkService) -> tuple[LinkHealth, DeviceHealth]:
    link_record = service._health.links["l"]
    return link_record, link_record.devices["d"]


def silence(clock: ManualClock, reason: Reason = Reason.TIMEOUT) -> ReadingSet:
    return no_values("d", ("t", "p"), reason, observed_at=clock.now())


def now_at(clock: ManualClock, **of: float) -> ReadingSet:
    return ReadingSet("d", tuple(Reading(point, value, clock.now()) for point, value in of.items()))


async def test_since_is_when_the_present_state_began_whatever_its_reason_became(
    clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    health = Health(clock)
    record = health.link("l")
    for at, (state, reason) in enumerate([("down", "one"), ("down", "two"), ("ok", ""), ("ok", ""), ("down", "two")]):
        clock.advance(10)
        health.set_state(record, "l", state, reason, f"remedy {at}")
        assert (record.state, record.reason, record.remedy) == (state, reason, f"remedy {at}")
        began = {0: 10, 1: 10, 2: 30, 3: 30, 4: 50}[at]
        assert record.since == NOON + timedelta(seconds=began)

    said = capsys.readouterr().out
    assert (said.count("link_down"), said.count("link_ok")) == (2, 1), "a state that lasts is silent"


async def test_a_device_that_was_ok_and_answers_nothing_when_the_link_is_back_is_bad_for_that(
    log: Log, clock: ManualClock
) -> None:
    service = link(log, clock, idle)
    record, device = records(service)
    await service.emit(values(t=20.0))
    service.failed(LinkError("unplugged"))
    assert (device.reason, record.restarts) == ("link_down", 1)

    await service.emit(silence(clock))

    assert (record.state, record.reason) == ("ok", "")
    assert (device.state, device.reason) == ("bad", "timeout")
    assert service._health.bad() == ["device d: timeout"]


async def test_a_device_that_was_bad_before_the_link_went_down_keeps_its_own_reason(
    log: Log, clock: ManualClock
) -> None:
    service = link(log, clock, idle)
    _, device = records(service)
    service.failed(LinkError("unplugged"))
    assert device.state == "waiting", "nobody has heard it yet"
    await service.emit(silence(clock))
    service.failed(LinkError("unplugged"))
    assert (device.state, device.reason) == ("bad", "timeout")

    service._context().up()

    assert (device.state, device.reason) == ("bad", "timeout")
    assert service._health.links["l"].restarts == 2


async def test_a_set_that_holds_only_what_the_driver_remembers_changes_no_reason(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    record, device = records(service)
    only_state = ReadingSet("d", (), state={"fcnt": b"\x07"})
    await service.emit(silence(clock))
    await service.emit(only_state)
    assert (device.state, device.reason) == ("bad", "timeout")
    assert "wiring" in device.remedy
    assert (device.sets, device.last_good_at) == (2, None)

    await service.emit(values(t=20.0))
    service.failed(LinkError("unplugged"))
    await service.emit(only_state)
    assert (device.state, device.reason) == ("bad", "link_down")
    service._context().up()
    assert (record.state, device.state, device.reason) == ("ok", "waiting", "")


async def test_the_last_good_time_stays_while_a_device_is_bad(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    _, device = records(service)
    await service.emit(now_at(clock, t=20.0))
    clock.advance(30)
    await service.emit(silence(clock))
    assert (device.last_good_at, device.last_set_at) == (NOON, NOON + timedelta(seconds=30))

    clock.advance(30)
    await service.emit(ReadingSet("d", (now_at(clock, t=20.0).readings[0], silence(clock).readings[1])))

    assert device.last_good_at == NOON + timedelta(seconds=60)
    assert (device.state, device.reason) == ("ok", "1 of 2 points without value: timeout")


async def test_a_bad_reading_keeps_the_last_good_value_in_sight_and_is_told(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    await service.emit(now_at(clock, t=20.0))
    clock.advance(10)
    await service.emit(ReadingSet("d", (Reading("t", 900.0, clock.now()),)))
    clock.advance(10)
    await service.emit(silence(clock))

    last = log.last_values.device("d")["t"]
    assert (last.quality.value, last.reason) == ("bad", Reason.TIMEOUT)
    series = next(number for number, its in log.series.items() if (its.device, its.point) == ("d", "t"))
    good = log.last_values.good(series)
    assert good is not None
    assert (good.value, good.time_us) == (20.0, round(NOON.timestamp() * 1e6))
    assert await logged(log) == [20.0, None, None, None]


async def test_a_thinned_fault_still_shows_and_so_does_the_thinned_value_after_it(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle, report={"t": Report(on_change=5.0), "p": Report(on_change=5.0)})
    _, device = records(service)
    await service.emit(now_at(clock, t=20.0, p=101.0))
    for s in range(1, 4):
        clock.advance(1)
        await service.emit(silence(clock))
        assert (device.state, device.reason) == ("bad", "timeout"), s
        clock.advance(1)
        await service.emit(now_at(clock, t=20.0, p=101.0))
        assert (device.state, device.reason) == ("ok", ""), s
        assert log.last_values.device("d")["t"].quality.value == "good"

    assert await logged(log) == [20.0, 101.0, None, None, 20.0, 101.0], "begin and end of the first fault"


async def test_a_pause_that_ends_leaves_nothing_of_itself_and_one_anew_counts_from_now(
    log: Log, clock: ManualClock
) -> None:
    service = link(log, clock, idle)
    _, device = records(service)
    service.pause("d", 60)
    clock.advance(50)
    until = service.pause("d", 60)
    clock.advance(59)
    await service.emit(values(t=1.0))
    assert (device.state, device.reason, device.paused_until, device.sets) == ("paused", "maintenance", until, 0)

    clock.advance(1)
    service.end_pauses()
    assert (device.state, device.reason, device.remedy, device.paused_until) == ("waiting", "", "", None)
    await service.emit(silence(clock))
    service.end_pauses()
    assert (device.state, device.reason) == ("bad", "timeout")

    service.pause("d", 60)
    service.pause("d", 0)
    await service.emit(values(t=20.0))
    assert (device.state, await logged(log)) == ("ok", [None, None, 20.0])


async def test_junk_in_a_new_run_is_told_though_the_run_before_could_read(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    record, _ = records(service)

    async def hears(context: Context) -> None:
        for _ in range(ALIKE - 1):
            context.reject(FrameError("crc does not fit"))
        await context.emit(values(t=20.0))
        raise LinkError("unplugged")

    async def hears_junk(context: Context) -> None:
        context.up()
        context.reject(FrameError("crc does not fit"))
        assert record.state == "ok", "one is noise"
        for _ in range(ALIKE):
            context.reject(FrameError("crc does not fit"))
        raise LinkError("unplugged again")

    for work, state in ((hears, "ok"), (hears_junk, "bad")):
        service._driver.work = work  # type: ignore[attr-defined]
        with pytest.raises(LinkError) as gone:
            await service.run()
        assert record.state == state
        assert service.came_up
        service.failed(gone.value)

    async def fails_at_once(context: Context) -> None:
        raise LinkError("no port")

    service._driver.work = fails_at_once  # type: ignore[attr-defined]
    with pytest.raises(LinkError):
        await service.run()
    assert not service.came_up


async def test_rejections_that_never_end_are_told_once_a_minute(
    log: Log, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    context = link(log, clock, idle)._context()
    for _ in range(10):
        context.reject(FrameError("crc does not fit"))
        clock.advance(REJECT_EVENT_EVERY_S / 2)

    assert capsys.readouterr().out.count("frame_rejected") == 5


async def test_a_kind_of_rejection_that_comes_again_is_the_newest_with_its_newest_words(
    log: Log, clock: ManualClock
) -> None:
    service = link(log, clock, idle)
    context, (record, _) = service._context(), records(service)
    context.reject(FrameError("version 1"), remedy="one")
    clock.advance(1)
    context.reject(FrameError("crc"))
    clock.advance(1)
    context.reject(FrameError("version 2"), remedy="two")

    newest, older = record.rejected.newest_first()
    assert (newest.reason, newest.remedy, newest.count, newest.first_at) == ("version 2", "two", 2, NOON)
    assert newest.last_at == NOON + timedelta(seconds=2)
    assert older.reason == "crc"


async def test_different_kinds_of_junk_in_turn_are_no_row_of_one_kind(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    context, (record, _) = service._context(), records(service)
    for _ in range(ALIKE):
        context.reject(FrameError("crc does not fit"))
        context.reject(FrameError("too short"))

    assert record.state == "starting"


async def test_a_request_that_nobody_waits_for_any_more_is_told_so_to_the_driver(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    with pytest.raises(LinkError, match="did not come"):
        await service.request("d", timeout_s=0.01)

    request = service.requests.get_nowait()
    assert request is not None
    assert request.reply.done()


async def test_undeclared_fields_add_up_in_status(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    _, device = records(service)
    for _ in range(2):
        await service.emit(ReadingSet("d", (Reading("t", 20.0, NOON), Reading("battery", 3.0, NOON))))

    assert (device.undeclared, device.state, device.readings) == ({"battery": 2}, "ok", 2)


async def test_a_bad_device_is_told_also_while_its_link_is_down(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    await service.emit(silence(clock))
    service.failed(LinkError("unplugged"))

    assert service._health.bad() == ["link l: down: unplugged", "device d: timeout"]


async def test_a_remark_goes_with_a_fault_and_stays_when_the_fault_goes(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    _, device = records(service)
    context = service._context()
    context.note("d", "answers twice", "two units of one address?")
    told: list[Any] = []
    for one in (silence(clock), values(t=20.0), silence(clock, Reason.BUSY)):
        await service.emit(one)
        told.append((device.state, device.reason))
    context.note("d", "", "")

    assert told == [("bad", "timeout; answers twice"), ("ok", "answers twice"), ("bad", "busy; answers twice")]
    assert (device.state, device.reason) == ("bad", "busy")
    await asyncio.sleep(0)


async def test_a_device_paused_while_its_link_was_down_stays_paused_when_it_is_back(
    log: Log, clock: ManualClock
) -> None:
    service = link(log, clock, idle)
    _, device = records(service)
    await service.emit(values(t=20.0))
    service.failed(LinkError("unplugged"))
    until = service.pause("d", 60)

    service._context().up()

    assert (device.state, device.reason, device.paused_until) == ("paused", "maintenance", until)


async def test_a_driver_that_starts_again_has_all_the_time_of_a_silent_one_before_it(
    log: Log, clock: ManualClock
) -> None:
    service = link(log, clock, idle)
    clock.advance(10 * SILENT_AFTER_S)
    running = asyncio.create_task(service.run())
    await asyncio.sleep(0)
    assert service.progress_at_s == clock.monotonic_s()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
