"""The writer thread: one job after the other, whatever becomes of who waits; at the end what was queued is done."""

import asyncio
import threading

import pytest

from gateway.log.writer import Writer


async def test_jobs_run_in_order_and_each_gets_its_own_end() -> None:
    writer, done = Writer(), list[int]()

    def job(n: int) -> int:
        done.append(n)
        if n % 3 == 1:
            raise KeyError(n)
        if n % 3 == 2:
            raise SystemExit(n)  # not an Exception: the thread outlives it
        return n

    futures = [writer.submit(lambda n=n: job(n)) for n in range(6)]  # type: ignore[misc]
    ends = await asyncio.gather(*futures[:2], *futures[3:5], return_exceptions=True)
    assert [str(end) for end in ends] == ["0", "1", "3", "4"]
    for future in (futures[2], futures[5]):
        with pytest.raises(SystemExit):
            await future
    assert done == list(range(6))
    await writer.close()


async def test_a_job_whose_waiter_is_gone_is_done_all_the_same_and_the_next_one_too() -> None:
    writer, begun, go_on, done = Writer(), threading.Event(), threading.Event(), list[str]()

    def slow() -> None:
        begun.set()
        go_on.wait(10)
        done.append("slow")

    first, second = writer.submit(slow), writer.submit(lambda: done.append("second"))
    third = writer.submit(lambda: done.append("third"))
    await asyncio.to_thread(begun.wait, 10)
    assert writer.busy_s() > 0
    first.cancel()
    second.cancel()
    closing = asyncio.create_task(writer.close())
    await asyncio.sleep(0)
    go_on.set()
    await third
    await closing
    assert done == ["slow", "second", "third"]
    assert writer.busy_s() == 0


async def test_it_is_busy_for_as_long_as_its_present_job_takes() -> None:
    writer, go_on = Writer(), threading.Event()
    assert writer.busy_s() == 0
    for fails in (False, True):
        go_on.clear()

        def job(fails: bool = fails) -> None:
            go_on.wait(10)
            if fails:
                raise KeyError

        waiting = writer.submit(job)
        await asyncio.sleep(0.05)
        assert 0.01 < writer.busy_s() < 10
        go_on.set()
        await asyncio.gather(waiting, return_exceptions=True)
        assert writer.busy_s() == 0
    await writer.close()
