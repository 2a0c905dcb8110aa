"""A run of a driver that is over is over: nothing that it opened, started or says goes on."""

import asyncio
import contextlib
import gc
import math
import threading
import time
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gateway.driver_run import EMITS_A_TURN, MAX_REQUESTS, DriverRun, RequestQueue, SharedLoop, owned_task
from gateway.sdk.driver import Exchange, Receipt, Request
from gateway.sdk.errors import Busy, LinkError
from gateway.sdk.reading import ReadingSet
from gateway.sdk.testing import ManualClock

SET = ReadingSet("d", ())


class Taken:
    """What came through."""

    def __init__(self) -> None:
        self.sets = 0
        self.closed = 0

    async def emit(self, readings: ReadingSet) -> Receipt:
        self.sets += 1
        return None  # type: ignore[return-value]

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        try:
            yield object()
        finally:
            self.closed += 1


@pytest.fixture
def taken() -> Taken:
    return Taken()


@pytest.fixture
def run(taken: Taken) -> DriverRun:
    return DriverRun("link l", taken.emit, ManualClock(), ThreadPoolExecutor(1))


async def test_a_driver_that_never_waits_leaves_the_loop_its_turns(run: DriverRun) -> None:
    turns = 0

    async def neighbour() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(neighbour())
    for _ in range(10 * EMITS_A_TURN):
        await run.emit(SET)
    task.cancel()

    assert turns >= 9


async def test_once_over_nothing_is_taken_and_nobody_spins(run: DriverRun, taken: Taken) -> None:
    told: list[str] = []
    say = run.heard(told.append)
    say("before")
    run.end()
    say("after")
    for _ in range(3):
        with pytest.raises(LinkError, match="over"):
            await run.emit(SET)
    with pytest.raises(LinkError, match="over"):
        async with run.opener(taken.open)():
            pass

    assert (taken.sets, told) == (0, ["before"])


async def test_streams_that_were_left_open_are_closed(run: DriverRun, taken: Taken) -> None:
    opened = asyncio.Event()

    async def deaf() -> None:
        async with run.opener(taken.open)():
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(deaf())
    await opened.wait()
    run.end()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    closed = taken.closed
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert closed == 1
    assert taken.closed == 1  # once is enough


async def test_tasks_that_were_left_behind_end_with_the_run(run: DriverRun) -> None:
    asyncio.get_running_loop().set_task_factory(owned_task)
    left: list[asyncio.Task[None]] = []

    async def forever() -> None:
        await asyncio.Event().wait()

    async def driver() -> None:
        left.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)
        raise LinkError("gone")

    with pytest.raises(LinkError):
        await asyncio.create_task(run.drive(driver()))
    other = asyncio.create_task(forever())
    await asyncio.wait(left, timeout=5)

    assert left[0].cancelled()
    assert not other.done()
    other.cancel()
    asyncio.get_running_loop().set_task_factory(None)


async def test_a_request_goes_to_the_run_that_is_alive() -> None:
    queue, clock, taken = RequestQueue(), ManualClock(), Taken()
    old, new = (DriverRun("link l", taken.emit, clock, ThreadPoolExecutor(1)) for _ in range(2))
    waits = asyncio.create_task(old.requests(queue).get())
    await asyncio.sleep(0)
    old.end()
    request = Request("read", "d")
    queue.put(request)

    with pytest.raises(LinkError):
        await waits
    assert old.requests(queue).get_nowait() is None
    assert await new.requests(queue).get() is request


async def test_a_request_that_a_run_took_too_late_goes_back_into_a_full_queue() -> None:
    """It was woken by the request, and cut off before it could look."""
    queue, taken = RequestQueue(), Taken()
    old, new = (DriverRun("link l", taken.emit, ManualClock(), ThreadPoolExecutor(1)) for _ in range(2))
    waits = asyncio.create_task(old.requests(queue).get())
    await asyncio.sleep(0)
    requests = [Request("read", "d") for _ in range(MAX_REQUESTS)]
    for request in requests:
        queue.put(request)
    old.end()
    with pytest.raises(Busy):
        queue.put(Request("read", "d"))
    with pytest.raises(LinkError):
        await waits
    assert [new.requests(queue).get_nowait() for _ in requests] == [*requests[1:], requests[0]]
    assert not requests[0].reply.done()


async def test_what_a_run_took_and_did_not_answer_is_answered_when_it_ends(run: DriverRun) -> None:
    queue = RequestQueue()
    answered, read, write = Request("read", "d"), Request("read", "d"), Request("write", "d", "p", 1)
    for request in (answered, read, write):
        queue.put(request)
    requests = run.requests(queue)
    assert [await requests.get(), requests.get_nowait(), requests.get_nowait()] == [answered, read, write]
    exchange = Exchange(b"", b"", ())
    answered.reply.set_result(exchange)
    left = Request("read", "d")
    queue.put(left)
    run.end()
    run.end()

    assert answered.reply.result() is exchange
    for request, what_now in ((read, "ask again"), (write, "whether it was written is not known")):
        with pytest.raises(LinkError, match=f"link l was ended before it answered; {what_now}"):
            await request.reply
    assert not left.reply.done(), "it waits for the next run"


async def test_what_was_answered_is_not_held_on_to(run: DriverRun) -> None:
    queue = RequestQueue()
    replies = []
    for _ in range(5):
        queue.put(Request("read", "d"))
        request = await run.requests(queue).get()
        request.reply.set_result(Exchange(b"", b"", ()))
        replies.append(weakref.ref(request.reply))
    del request
    gc.collect()
    assert [reply() is None for reply in replies] == [True, True, True, True, False], "all but the newest"


async def test_a_run_that_ends_twice_closes_what_it_opened_once(run: DriverRun, taken: Taken) -> None:
    async def deaf() -> None:
        async with run.opener(taken.open)():
            await asyncio.Event().wait()

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0.01)
    run.end()
    run.end()
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert taken.closed == 1


async def test_a_stream_that_its_driver_closed_is_not_closed_again_at_the_end(run: DriverRun, taken: Taken) -> None:
    for _ in range(2):
        async with run.opener(taken.open)():
            pass
    run.end()
    await asyncio.sleep(0.01)

    assert taken.closed == 2


async def test_a_stream_that_has_opened_after_the_end_of_its_run_is_closed(run: DriverRun, taken: Taken) -> None:
    opens = asyncio.Event()

    @contextlib.asynccontextmanager
    async def slowly() -> AsyncIterator[Any]:
        await opens.wait()
        async with taken.open() as stream:
            yield stream

    async def driver() -> None:
        async with run.opener(slowly)():
            await asyncio.Event().wait()  # it would hold the port for good

    opening = asyncio.create_task(driver())
    await asyncio.sleep(0)
    run.end()
    opens.set()
    with pytest.raises(LinkError, match="over"):
        await asyncio.wait_for(opening, 5)
    assert taken.closed == 1


async def test_a_stream_that_is_being_closed_is_left_to_who_closes_it(run: DriverRun) -> None:
    closing, go_on = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def slow_to_close() -> AsyncIterator[Any]:
        yield object()
        closing.set()
        await go_on.wait()

    async def driver(leave: asyncio.Event) -> None:
        async with run.opener(slow_to_close)():
            await leave.wait()

    leave = asyncio.Event()
    left_behind = asyncio.create_task(driver(leave))
    await asyncio.sleep(0)
    run.end()
    await asyncio.wait_for(closing.wait(), 5)
    leave.set()
    await asyncio.wait_for(left_behind, 5)
    go_on.set()


async def _sleeps(seconds: float) -> None:
    await asyncio.sleep(seconds)


def test_a_timer_at_nan_is_refused_and_the_timers_of_others_go_on() -> None:
    async def main() -> None:
        before = [asyncio.create_task(_sleeps(n / 1000)) for n in range(50)]
        for _ in range(20):
            with pytest.raises(ValueError, match="NaN"):
                await asyncio.sleep(math.nan)
            before.append(asyncio.create_task(_sleeps(0.01)))
        await asyncio.wait_for(asyncio.gather(*before), 5)

    with asyncio.Runner(loop_factory=SharedLoop) as runner:
        runner.run(main())


def test_threads_that_a_driver_uses_up_are_its_own(taken: Taken) -> None:
    released = threading.Event()

    async def driver() -> None:
        await asyncio.gather(*(asyncio.to_thread(released.wait) for _ in range(100)))

    async def main() -> None:
        run = DriverRun("link l", taken.emit, ManualClock(), ThreadPoolExecutor(2))
        bad = asyncio.create_task(run.drive(driver()))
        await asyncio.sleep(0.01)
        assert await asyncio.wait_for(asyncio.to_thread(time.monotonic), 5)
        bad.cancel()

    with asyncio.Runner(loop_factory=SharedLoop) as runner:
        try:
            runner.run(main())
        finally:
            released.set()
