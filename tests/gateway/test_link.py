"""One link at work, with a real log: what reaches it, what health says, one-shot requests, pause."""

import asyncio
import itertools
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway import gate
from gateway.backoff import Backoff
from gateway.driver_run import MAX_REQUESTS
from gateway.health import ALIKE, MAX_REASON_CHARACTERS, MAX_REJECTIONS, Health
from gateway.link import LinkService
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.config import DeviceConfig, LinkConfig, Report
from gateway.sdk.driver import SDK_VERSION, Context, Exchange
from gateway.sdk.errors import Busy, CitygateError, FrameError, LinkError, foreign
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, no_values
from gateway.sdk.template import Template, TemplatePoint
from gateway.sdk.testing import NOON, ManualClock
from gateway.supervisor import supervise
from tests.support import hostile

TEMPLATE = Template(
    vendor="Made",
    model="up",
    points={
        "t": TemplatePoint(quantity="air_temperature"),
        "p": TemplatePoint(quantity="atmospheric_pressure", unit="KPA"),
    },
)


@dataclass
class ScriptedDriver:
    """A driver whose loop is given by the test."""

    work: Callable[[Context], Awaitable[None]]
    name: str = "scripted"
    sdk_version: int = SDK_VERSION
    config_model: type[LinkConfig] = LinkConfig
    template_model: type[Template] = Template
    templates: Any = None

    async def run(self, config: LinkConfig, context: Context) -> None:
        await self.work(context)

    def decode(self, template: Template, frame: bytes, context: Any) -> tuple[Reading, ...]:
        raise FrameError("no frames here", frame=frame)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def log(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Log]:
    log = await Log.open(LogSettings(tmp_path / "buffer.db"), clock=clock, consumers=[Consumer("city")])
    yield log
    await log.close()


def link(log: Log, clock: ManualClock, work: Callable[[Context], Awaitable[None]], **device: Any) -> LinkService:
    config = LinkConfig(driver="scripted", devices={"d": DeviceConfig(template=TEMPLATE, **device)})
    return LinkService("l", ScriptedDriver(work), config, log=log, health=Health(clock), clock=clock)


def values(**of: float) -> ReadingSet:
    return ReadingSet("d", tuple(Reading(point, value, NOON) for point, value in of.items()))


async def idle(context: Context) -> None:
    await asyncio.Event().wait()


async def logged(log: Log) -> list[Any]:
    columns = await log.read("city")
    return columns.value if columns else []


async def test_what_a_driver_emits_is_in_the_log_and_health_is_ok(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(values(t=21.5, p=101.3))

    service = link(log, clock, work)
    await service.run()

    assert await logged(log) == [21.5, 101.3]
    record = service._health.links["l"]
    assert (record.state, record.devices["d"].state, record.devices["d"].last_good_at) == ("ok", "ok", NOON)


async def test_the_plausible_range_is_that_of_the_quantity_in_the_points_unit(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(values(p=1013.0))  # hPa where kPa is declared
        await context.emit(values(p=101.3))

    await link(log, clock, work).run()

    assert await logged(log) == [None, 101.3]


async def test_a_device_without_any_value_is_bad_with_reason_and_remedy(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(no_values("d", ("t", "p"), Reason.TIMEOUT, observed_at=NOON))

    service = link(log, clock, work)
    await service.run()

    device = service._health.links["l"].devices["d"]
    assert (device.state, device.reason) == ("bad", "timeout")
    assert "wiring" in device.remedy


async def test_an_implausible_value_counts_as_bad_and_not_as_good(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(values(t=900.0))

    service = link(log, clock, work)
    await service.run()

    device = service._health.links["l"].devices["d"]
    assert (device.state, device.reason, device.readings, device.bad) == ("bad", "out_of_range", 0, 1)


async def test_a_drivers_remark_stays_in_status_until_it_is_taken_back(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    device = service._health.links["l"].devices["d"]
    context = service._context()

    context.note("d", "answers late", "lengthen timeout:")
    await context.emit(values(t=20.0))
    noted = (device.state, device.reason, device.remedy)
    context.note("d", "", "")
    await context.emit(values(t=20.0))

    assert noted == ("ok", "answers late", "lengthen timeout:")
    assert (device.state, device.reason, device.remedy) == ("ok", "", "")


async def test_a_link_that_works_is_ok_before_anything_was_heard(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    record = service._health.links["l"]
    service.failed(LinkError("Connection refused"))

    service._context().up()

    assert (record.state, record.reason, record.remedy) == ("ok", "", "")
    assert service._context().link == "l"


async def test_a_decoder_that_fails_on_a_flood_of_frames_leaves_one_traceback(
    log: Log, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    context = link(log, clock, idle)._context()

    def decode(frame: bytes) -> int:
        with foreign("frame", frame):
            return frame[7] if frame else int("none")

    for frame in (b"1", b"2", b"") * 200:
        with pytest.raises(FrameError) as refused:
            decode(frame)
        context.reject(refused.value)

    said = capsys.readouterr()
    assert (said.out + said.err).count("frame_fault") == 2, "one of each place and kind"
    assert (said.out + said.err).count("frame_rejected") == 1


async def test_a_remark_does_not_hide_what_is_wrong_and_leaves_it_when_it_goes(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    record, context = service._health.links["l"], service._context()
    service.failed(LinkError("unplugged"))
    context.note("", "heard a stranger", "add it")
    assert record.reason == "unplugged; heard a stranger"
    context.note("", "heard two strangers", "add them")
    assert record.reason == "unplugged; heard two strangers"
    context.note("", "", "")
    assert record.reason == "unplugged"


async def test_remarks_of_an_earlier_run_are_gone_when_the_driver_starts_again(log: Log, clock: ManualClock) -> None:
    async def breaks(context: Context) -> None:
        context.note("", "heard a stranger", "add it")
        context.note("d", "answers late", "lengthen timeout:")
        raise LinkError("unplugged")

    service = link(log, clock, breaks)
    record = service._health.links["l"]
    with pytest.raises(LinkError) as failure:
        await service.run()
    service.failed(failure.value)
    assert record.reason == "unplugged; heard a stranger"

    service._driver.work = idle  # type: ignore[attr-defined]
    again = asyncio.create_task(service.run())
    await asyncio.sleep(0)
    assert (record.state, record.reason, record.devices["d"].reason) == ("down", "unplugged", "")
    service._context().up()
    assert (record.state, record.reason) == ("ok", "")
    again.cancel()


async def test_a_thinned_reading_is_shown_but_not_logged(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(values(t=20.0))
        await context.emit(ReadingSet("d", (Reading("t", 20.4, NOON + timedelta(seconds=1)),)))

    await link(log, clock, work, report={"t": Report(on_change=1.0)}).run()

    assert await logged(log) == [20.0]
    assert log.last_values.device("d")["t"].value == 20.4


async def test_while_paused_nothing_reaches_the_log_and_it_ends_by_itself(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)

    until = service.pause("d", 60.0)
    await service.emit(values(t=99.0))
    record = service._health.links["l"].devices["d"]
    paused = (record.state, record.paused_until)
    clock.advance(61.0)
    service.end_pauses()
    await service.emit(values(t=20.0))

    assert paused == ("paused", until)
    assert await logged(log) == [20.0]
    assert (record.state, record.paused_until) == ("ok", None)


async def test_a_one_shot_request_is_answered_by_the_driver(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        request = await context.requests.get()
        request.reply.set_result(Exchange(b"\x01", b"\x02", values(t=21.0).readings))

    service = link(log, clock, work)
    running = asyncio.create_task(service.run())
    exchange = await service.request("d")
    await running

    assert exchange.received == b"\x02"


async def test_requests_are_bounded_and_time_out(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    asked = [asyncio.create_task(service.request("d", timeout_s=0.05)) for _ in range(MAX_REQUESTS)]
    await asyncio.sleep(0)

    with pytest.raises(Busy):
        await service.request("d")
    results = await asyncio.gather(*asked, return_exceptions=True)

    assert all(isinstance(result, LinkError) for result in results)


async def test_a_link_that_is_down_refuses_requests_with_its_reason(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    service.failed(LinkError("cannot open /dev/ttyUSB0"))

    with pytest.raises(LinkError, match="/dev/ttyUSB0"):
        await service.request("d")


async def test_quality_and_reason_reach_the_log(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(values(t=900.0))

    await link(log, clock, work).run()
    columns = await log.read("city")

    assert columns is not None
    assert (columns.quality, columns.reason) == ([Quality.BAD], [Reason.OUT_OF_RANGE])


def kinds(service: LinkService) -> list[tuple[str, str, int]]:
    return [(row.reason, row.device, row.count) for row in service._health.links["l"].rejected.newest_first()]


async def test_rejections_are_kept_by_reason_and_device_newest_first(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    context = service._context()

    for n in range(3):
        context.reject(FrameError(f"payload version {n}, expected 1", frame=b"\x00" * 40), device="d")
        context.reject(FrameError(f"crc {n:04x} does not fit"))
    context.reject(FrameError("payload version 9, expected 1"))

    assert kinds(service) == [
        ("payload version 9, expected 1", "", 1),
        ("crc 0002 does not fit", "", 3),
        ("payload version 2, expected 1", "d", 3),
    ]


async def test_kinds_of_rejections_are_bounded_and_their_texts_too(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    for word in itertools.product("ghijk", repeat=4):
        service._reject(FrameError("".join(word) * 1000))

    rejected = service._health.links["l"].rejected
    assert len(rejected.newest_first()) == MAX_REJECTIONS
    assert sum(row.count for row in rejected.newest_first()) + rejected.forgotten == 625
    assert max(len(row.reason) for row in rejected.newest_first()) == MAX_REASON_CHARACTERS


async def test_a_link_of_which_nothing_can_be_read_is_bad_until_something_can(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    context, record = service._context(), service._health.links["l"]

    for n in range(ALIKE - 1):
        context.reject(FrameError(f"not JSON: char {n}"), remedy="set json = true")
    before = record.state
    context.reject(FrameError("not JSON: char 9"), remedy="set json = true")
    then = (record.state, record.reason, record.remedy, service._health.bad())
    await context.emit(values(t=20.0))

    assert before == "starting"
    assert then[0] == "bad"
    assert "not JSON" in then[1]
    assert then[2] == "set json = true"
    assert then[3]
    assert record.state == "ok"


async def test_noise_on_a_link_that_works_is_no_fault(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    context, record = service._context(), service._health.links["l"]
    await context.emit(values(t=20.0))

    for _ in range(10 * ALIKE):
        context.reject(FrameError("crc does not fit"))

    assert record.state == "ok"


class Networked(LinkConfig):
    host: str = "127.0.0.1"


class Messaging(LinkConfig):
    url: str = "mqtt://127.0.0.1"


class Wired(LinkConfig):
    port: str = "/dev/ttyUSB0"


@pytest.mark.parametrize("reason", [Reason.TIMEOUT, Reason.BAD_FRAME])
@pytest.mark.parametrize("kind", [Networked, Messaging])
async def test_a_remedy_fits_the_kind_of_link(
    log: Log, clock: ManualClock, reason: Reason, kind: type[LinkConfig]
) -> None:
    remedies = {}
    for model in (kind, Wired):
        config = model(driver="scripted", devices={"d": DeviceConfig(template=TEMPLATE)})
        service = LinkService(model.__name__, ScriptedDriver(idle), config, log=log, health=Health(clock), clock=clock)
        await service.emit(no_values("d", ("t", "p"), reason, observed_at=NOON))
        service._reject(FrameError("x"))
        record = service._health.links[model.__name__]
        remedies[model] = record.devices["d"].remedy + record.rejected.newest_first()[0].remedy

    assert "wiring" in remedies[Wired]
    assert not re.search("wiring|baud|termination", remedies[kind])


GOOD = ReadingSet("d", (Reading("t", 21.5, NOON),))
HUGE_STATE: Any = {"big": bytes(50_000_000), "small": b"\x07", "": b"", "\ud83d": b"", 7: b"x", "text": "x"}


class Unread(dict[str, bytes]):
    """State that cannot be walked."""

    def keys(self) -> Any:
        raise RuntimeError("no keys")

    __iter__ = keys


@pytest.mark.parametrize(
    "handed",
    [
        None,
        "a set",
        hostile.RAISES,
        ReadingSet("nobody", GOOD.readings),
        ReadingSet(None, GOOD.readings),  # type: ignore[arg-type]
        ReadingSet(["d"], GOOD.readings),  # type: ignore[arg-type]
        ReadingSet("\ud83d" * 10_000, ()),
        ReadingSet("d", None),  # type: ignore[arg-type]
        ReadingSet("d", (r for r in GOOD.readings)),  # type: ignore[arg-type]
        ReadingSet("d", (None, "t", ("t", 1.0))),  # type: ignore[arg-type]
        ReadingSet("d", (), state=7),  # type: ignore[arg-type]
        ReadingSet("d", (), state=Unread()),
        ReadingSet("d", (), state={"k": bytearray(b"x")}),  # type: ignore[dict-item]
    ],
)
async def test_what_is_no_set_costs_itself_and_is_told(handed: Any, log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(handed)
        await (await context.emit(GOOD)).durable

    service = link(log, clock, work)
    running = asyncio.create_task(service.run())
    await asyncio.sleep(0)
    await log.commit()
    await running

    record = service._health.links["l"]
    faults = record.counters["driver_faults"] + record.devices["d"].counters["driver_faults"]
    assert (await logged(log), faults, record.state) == ([21.5], 1, "ok")


async def test_readings_in_a_list_and_names_that_only_inherit_are_taken(log: Log, clock: ManualClock) -> None:
    class Name(StrEnum):
        DEVICE = "d"
        POINT = "t"

    service = link(log, clock, idle)
    await service._context().emit(ReadingSet(Name.DEVICE, [Reading(Name.POINT, 20.0, NOON)]))  # type: ignore[arg-type]
    await log.commit()

    assert log.last_values.device("d")["t"].value == 20.0


async def test_state_beyond_its_bounds_is_left_out_and_the_rest_outlives_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await Log.open(LogSettings(tmp_path / "b.db"), clock=clock, consumers=[])
    service = link(log, clock, idle)
    context = service._context()
    await context.emit(ReadingSet("d", GOOD.readings, state=HUGE_STATE))
    for n in range(200):
        await context.emit(ReadingSet("d", (), state={f"k{n}": b"x"}))
    await context.emit(ReadingSet("d", (), state={"small": b"\x08"}))
    await log.commit()
    await log.close()

    log = await Log.open(LogSettings(tmp_path / "b.db"), clock=clock, consumers=[])
    state = log.driver_state("d")
    await log.close()
    assert state["small"] == b"\x08"
    assert len(state) == gate.MAX_STATE_KEYS
    assert "big" not in state
    assert service._health.links["l"].devices["d"].counters["driver_faults"] == 1 + 200 - (gate.MAX_STATE_KEYS - 1)


async def test_counters_remarks_and_times_of_a_driver_are_bounded(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    context = service._context()
    record = service._health.links["l"]
    device = record.devices["d"]
    odd: Any
    for n in range(1000):
        context.count(f"c{n}", device="d")
    for name in (*hostile.TEXTS, *hostile.OBJECTS):
        context.count(name)
    for odd in (-1, 10**400, 0.5, math.nan, "x", None, hostile.RAISES):
        context.count("odd", odd)
    context.count("frames", 2.0)
    context.count("frames", 3, device="nobody")
    for odd in (*hostile.TEXTS, *hostile.OBJECTS):
        context.note("d", odd, odd)
        context.note(odd, "a remark", "")
        json.dumps([device.reason, device.remedy]).encode()
        assert len(device.reason) < 300
    for at in (*hostile.OBJECTS, datetime(2026, 6, 1)):
        context.offer_time(at, 1.0)
    context.offer_time(NOON, math.nan)

    assert len(device.counters) <= gate.MAX_COUNTERS + 1
    assert len(record.counters) <= gate.MAX_COUNTERS + 1
    assert record.counters["frames"] == 2
    assert "odd" not in record.counters
    orjson.dumps([dict(record.counters), dict(device.counters), record.reason, device.reason])


async def test_a_rejected_frame_may_hold_anything(
    log: Log, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    service = link(log, clock, idle)
    context = service._context()
    odd: Any
    for odd in (*hostile.TEXTS, *hostile.OBJECTS):
        clock.advance(120)
        context.reject(FrameError(odd, frame=bytes(10_000_000)), device="d")
        context.reject(FrameError("bad", frame=odd, offset=odd), device=odd)
        context.reject(odd)
        context.reject(FrameError("bad"), remedy=odd)

    assert service._health.links["l"].counters["rejected_frames"] > 0
    assert max(map(len, capsys.readouterr().out.splitlines()), default=0) < 2000


@pytest.mark.parametrize("answer", [None, "x", Exchange("sent", b"", ()), Exchange(b"", b"", None), hostile.RAISES])  # type: ignore[arg-type]
async def test_an_answer_that_is_none_is_told_as_the_drivers_fault(answer: Any, log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        (await context.requests.get()).reply.set_result(answer)
        (await context.requests.get()).reply.set_exception(ZeroDivisionError("oops"))
        (await context.requests.get()).reply.cancel()

    service = link(log, clock, work)
    running = asyncio.create_task(service.run())
    for says in ("no exchange", "oops", "gave the request up"):
        with pytest.raises(CitygateError, match=says):
            await service.request("d", timeout_s=5)
    await running


async def test_a_device_on_a_link_that_goes_down_is_not_ok_any_more(log: Log, clock: ManualClock) -> None:
    async def work(context: Context) -> None:
        await context.emit(values(t=21.5, p=101.3))
        raise LinkError("/dev/ttyUSB0 closed: Input/output error")

    service = link(log, clock, work)
    with pytest.raises(LinkError) as gone:
        await service.run()
    device = service._health.links["l"].devices["d"]
    assert device.state == "ok"

    service.failed(gone.value)
    assert (device.state, device.reason, device.remedy) == ("bad", "link_down", "see the link")

    await service.emit(values(t=21.6, p=101.3))
    assert (device.state, device.reason) == ("ok", "")


async def test_devices_that_were_not_heard_since_the_link_is_back_are_waited_for(log: Log, clock: ManualClock) -> None:
    config = LinkConfig(driver="scripted", devices={name: DeviceConfig(template=TEMPLATE) for name in ("d", "e", "f")})
    service = LinkService("l", ScriptedDriver(idle), config, log=log, health=Health(clock), clock=clock)
    for name in ("d", "e", "f"):
        await service.emit(ReadingSet(name, values(t=21.5, p=101.3).readings))
    service.pause("f", 60)
    service.failed(LinkError("gone"))

    await service.emit(values(t=21.5, p=101.3))

    devices = service._health.links["l"].devices
    assert {name: its.state for name, its in devices.items()} == {"d": "ok", "e": "waiting", "f": "paused"}


async def test_a_set_of_uncertain_values_is_no_sign_of_health(log: Log, clock: ManualClock) -> None:
    service = link(log, clock, idle)
    readings = tuple(Reading("p", value, NOON, Quality.UNCERTAIN, Reason.BAD_TIME) for value in (100.0, 101.0))

    await service.emit(ReadingSet("d", readings))

    device = service._health.links["l"].devices["d"]
    assert (device.state, device.reason, device.last_good_at) == ("bad", "bad_time", None)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.NONE], ids=str)
async def test_a_link_is_up_again_with_any_set_but_one_that_says_it_is_down(
    reason: Reason, log: Log, clock: ManualClock
) -> None:
    async def work(context: Context) -> None:
        await context.emit(no_values("d", ("t", "p"), reason, observed_at=clock.now()))

    service = link(log, clock, work)
    service.failed(LinkError("cannot connect: Connection refused"))
    for _ in range(2):  # the second one is not logged any more
        await service.run()

    record = service._health.links["l"]
    if reason is Reason.LINK_DOWN:
        assert (record.state, record.reason) == ("down", "cannot connect: Connection refused")
    else:
        assert (record.state, record.reason) == ("ok", "")
    assert record.devices["d"].state == "bad"


async def test_a_silent_driver_is_restarted_once_and_has_its_full_time_again(log: Log, clock: ManualClock) -> None:
    """Whatever showed life before: a request, a set, a call of `progress` begin the time anew."""
    runs = asyncio.Queue[Context]()

    async def work(context: Context) -> None:
        runs.put_nowait(context)
        await asyncio.Event().wait()

    service = link(log, clock, work)
    service.silent_after_s = 0.04
    task = asyncio.create_task(supervise(service, backoff=Backoff(0.05, 0.05), clock=clock))
    first = await runs.get()
    clock.advance(0.05)
    second = await asyncio.wait_for(runs.get(), 5)
    record = service._health.links["l"]
    assert (record.restarts, record.state) == (1, "down")
    for lives in (second.progress, lambda: asyncio.ensure_future(second.emit(values(t=21.5)))):
        clock.advance(0.03)
        lives()
        await asyncio.sleep(0.03)  # some looks of the supervisor
    assert (record.restarts, runs.empty()) == (1, True)
    assert record.state == "ok"
    clock.advance(0.05)
    first.progress()  # of a run that is over: no sign of life
    await asyncio.wait_for(runs.get(), 5)
    assert record.restarts == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await logged(log) == [21.5]
