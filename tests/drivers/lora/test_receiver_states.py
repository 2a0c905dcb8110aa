"""One uplink after another of one link, over restarts: what was had, who waits, whose remark stands. Without a broker."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from drivers.lora.codec.uplink import TEST_PORT, Status, Uplink
from drivers.lora.config import LoraDevice
from drivers.lora.receiver import SILENT_AFTER, TURN_S, WAIT_S, Receiver
from gateway.sdk.driver import Request
from gateway.sdk.errors import CitygateError
from gateway.sdk.reading import Reason
from gateway.sdk.testing import NOON, ManualClock
from tests.drivers.lora.support import HeldContext, counter_template, running, until

ADDRESS = "26011bda"


def device(**its: Any) -> LoraDevice:
    return LoraDevice.model_validate({"template": counter_template(), **its})


def uplink(n: int, *, at_s: float | None = None, **its: Any) -> Uplink:
    """Uplink number n; it carries n, and is of its n-th second."""
    at = NOON + timedelta(seconds=n if at_s is None else at_s)
    known: dict[str, Any] = {"dev_addr": ADDRESS, "f_port": 2, "f_cnt": n, "payload": n.to_bytes(4, "big"), "time": at}
    return Uplink(n.to_bytes(8, "big"), **{**known, **its})


def status(n: int, at: datetime | None = None, percent: float | None = 50.0) -> Status:
    return Status((10**6 + n).to_bytes(8, "big"), "", at, percent, None)


class Enough(Exception):
    """The loop has run for as long as the test asked."""


class Scene:
    """The receiver of one link with one device, `d`; `restarted` has the state that the log kept."""

    def __init__(self, state: dict[tuple[str, str], bytes] | None = None, **its: Any) -> None:
        self.clock = ManualClock()
        self.context = HeldContext(self.clock)
        self.context.state.update(state or {})
        self.context.automatic = True
        self.receiver = Receiver({"d": device(**its)}, self.context.context)

    def restarted(self) -> "Scene":
        return Scene(self.context.state)

    async def take(self, taken: Uplink, **its: bool) -> Any:
        return await self.receiver.take("d", taken, **its)

    async def watched(self, seconds: float) -> None:
        """The loop that looks for silence, for so long."""
        until_s = self.clock.monotonic_s() + seconds

        def look() -> None:
            if self.clock.monotonic_s() >= until_s:
                raise Enough

        with pytest.raises(Enough):
            await self.receiver.watch_silence(look)

    def values(self, point: str) -> list[Any]:
        """Every value of a point that was handed over."""
        return [values[point] for values in (one.values() for one in self.context.sets) if point in values]


async def test_a_status_had_before_is_a_repeat_also_after_a_restart_and_is_as_durable_as_the_first() -> None:
    scene = Scene()
    assert await scene.receiver.take_status("d", status(1, NOON)) is not None
    later = scene.restarted()
    again = await scene.receiver.take_status("d", status(1, NOON))
    assert again is not None, "to be acknowledged when the first one is durable"
    assert await later.receiver.take_status("d", status(1, NOON)) is not None
    assert await later.receiver.take_status("d", status(2, NOON)) is not None

    assert [scene.values("battery_level"), later.values("battery_level")] == [[50.0], [50.0]]
    assert [its.context.total("duplicates") for its in (scene, later)] == [1, 1]


async def test_a_status_that_the_broker_had_kept_is_new_only_when_it_is_newer_than_what_was_had() -> None:
    scene = Scene()
    await scene.take(uplink(60))
    await scene.receiver.take_status("d", status(1, NOON + timedelta(seconds=60)), retained=True)
    await scene.receiver.take_status("d", status(2, None), retained=True)
    assert scene.values("battery_level") == []
    await scene.receiver.take_status("d", status(3, NOON + timedelta(seconds=61)), retained=True)
    assert scene.values("battery_level") == [50.0]


async def test_a_status_that_says_nothing_is_no_duplicate_later() -> None:
    scene = Scene()
    assert await scene.receiver.take_status("d", status(1, NOON, None)) is None
    await scene.receiver.take_status("d", status(1, NOON))
    assert scene.values("battery_level") == [50.0]


@pytest.mark.parametrize("changes", [{"simulated": True}, {"f_port": TEST_PORT}])
async def test_what_is_no_real_uplink_is_not_had_and_moves_no_counter(changes: dict[str, Any]) -> None:
    scene = Scene()
    await scene.take(uplink(1))
    assert await scene.take(uplink(50, **changes)) is None
    await scene.take(uplink(3))
    assert scene.values("count") == [1, 3]
    assert scene.values("lost_uplinks") == [1], "the one between them"
    await scene.take(uplink(50))
    assert scene.values("count") == [1, 3, 50]


async def test_what_was_had_before_a_restart_is_known_and_the_count_of_losses_goes_on() -> None:
    scene = Scene()
    for n in (1, 2, 3):
        await scene.take(uplink(n))
    later = scene.restarted()
    await later.take(uplink(2))
    await later.take(uplink(3), redelivered=True)
    await later.take(uplink(1), redelivered=True)
    await later.take(uplink(6))
    assert (later.values("count"), later.values("lost_uplinks")) == ([6], [2])
    assert later.context.total("lost_uplinks") == 2
    assert later.context.total("duplicates") == 3


async def test_a_new_session_begins_its_own_count_and_the_old_one_does_not_come_back() -> None:
    scene = Scene()
    await scene.take(uplink(100))
    await scene.take(uplink(0, at_s=101, dev_addr="26011bdb"))
    assert scene.context.total("sessions_restarted") == 1
    await scene.take(uplink(2, at_s=102, dev_addr="26011bdb"))
    assert scene.values("lost_uplinks") == [1]
    await scene.restarted().take(uplink(3, at_s=103, dev_addr="26011bdb"))
    again = scene.restarted()
    await again.take(uplink(1, at_s=101.5, dev_addr="26011bdb"), redelivered=True)
    assert again.values("count") == [], "of this session and before what was had"
    await again.take(uplink(101, at_s=99), redelivered=True)
    assert again.values("count") == [101], "of the one before nobody knows"


async def test_sent_again_is_only_what_neither_counter_nor_time_has_gone_on_in() -> None:
    scene = Scene()
    await scene.take(uplink(10))
    await scene.take(uplink(11, at_s=5), redelivered=True)
    await scene.take(uplink(3, at_s=12), redelivered=True)
    await scene.take(uplink(2, at_s=11), redelivered=True)
    assert scene.values("count") == [10, 11, 3]


async def test_of_two_that_the_broker_had_kept_the_newer_is_taken_and_neither_twice() -> None:
    scene = Scene()
    await scene.take(uplink(5), retained=True)
    await scene.take(uplink(5), retained=True)
    await scene.take(uplink(4), retained=True)
    await scene.take(replace(uplink(6), time=None), retained=True)
    await scene.take(uplink(7), retained=True)
    assert scene.values("count") == [5, 7]


async def test_a_wrong_time_in_the_future_does_not_make_repeats_of_all_that_comes() -> None:
    scene = Scene()
    await scene.take(uplink(1, at_s=10**8))
    await scene.take(uplink(2))
    await scene.take(uplink(3), retained=True)
    assert scene.values("count") == [1, 2, 3]


async def test_who_waits_for_a_device_gets_its_next_uplink_at_once_and_later_ones_the_newest() -> None:
    scene = Scene()
    async with running(scene.receiver.answer_requests()):
        waiting = Request("read", "d")
        scene.context.requests.put(waiting)
        await until(lambda: scene.receiver._waiting)
        await scene.take(uplink(1))
        assert [r.value for r in (await waiting.reply).readings if r.point == "count"] == [1]
        assert not scene.receiver._waiting

        await scene.take(uplink(2))
        second = Request("read", "d")
        scene.context.requests.put(second)
        exchange = await asyncio.wait_for(second.reply, 5)
        assert [r.value for r in exchange.readings if r.point == "count"] == [2]


async def test_who_waits_in_vain_is_told_once_and_who_went_is_not_waited_for() -> None:
    scene = Scene()
    waiting, gone = Request("read", "d"), Request("read", "d")
    async with running(scene.receiver.answer_requests()):
        for request in (waiting, gone):
            scene.context.requests.put(request)
        await until(lambda: len(scene.receiver._waiting) == 2)
    gone.reply.cancel()
    await scene.watched(WAIT_S - TURN_S)
    assert not waiting.reply.done()
    assert len(scene.receiver._waiting) == 1
    await scene.watched(2 * TURN_S)
    with pytest.raises(CitygateError, match=f"was not heard within {WAIT_S:g} s"):
        await waiting.reply
    assert not scene.receiver._waiting


async def test_silence_is_told_each_time_it_is_due_and_taken_back_by_the_next_uplink() -> None:
    scene = Scene(every="60 s")
    due_s = 60.0 * SILENT_AFTER
    await scene.watched(2 * due_s + 2 * TURN_S)
    assert len(scene.context.sets) == 2, "not each turn"
    assert {r.reason for one in scene.context.sets for r in one.readings} == {Reason.TIMEOUT}
    assert scene.context.notes["d"][0] == f"no uplink for {due_s:g} s"

    await scene.take(uplink(1))
    assert scene.context.notes == {}
    await scene.watched(due_s - TURN_S)
    assert len(scene.context.sets) == 3, "from the uplink on"
    await scene.watched(2 * TURN_S)
    assert len(scene.context.sets) == 4


async def test_a_payload_that_cannot_be_read_is_remarked_until_one_is_and_the_servers_word_stands_longer() -> None:
    scene = Scene()
    await scene.take(uplink(1, payload=b"\1"))
    assert "payload not (wholly) read" in scene.context.notes["d"][0]
    await scene.take(uplink(2))
    assert scene.context.notes == {}

    scene.receiver.remark("d", "the server says so", "", for_s=60.0)
    await scene.take(uplink(3))
    assert scene.context.notes["d"][0] == "the server says so"
    scene.clock.advance(60)
    await scene.take(uplink(3))
    assert "d" in scene.context.notes, "a repeat says nothing"
    await scene.take(uplink(4))
    assert scene.context.notes == {}
