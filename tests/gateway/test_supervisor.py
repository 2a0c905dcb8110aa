"""Services that fail, fall silent or block the loop, and what the supervisor does about them."""

import asyncio
import contextlib
import gc
import math
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gateway import supervisor
from gateway.backoff import Backoff
from gateway.sdk.errors import ConfigError, LinkError
from gateway.sdk.testing import ManualClock
from gateway.supervisor import INTERRUPT, Interrupted, LagMonitor, supervise
from tests.support.box import REPOSITORY

WITHIN_S = 20.0  # a traceback with its locals takes seconds to print on a busy machine


class Scripted:
    """A service whose runs are given one after the other; it notes what it was told."""

    silent_after_s: float | None = None
    name = "link scripted"
    came_up = False

    def __init__(self, *runs: Callable[[], Awaitable[None]]) -> None:
        self._runs = list(runs)
        self.failures: list[str] = []
        self.stops: list[str] = []
        self.cuts = 0
        self.progress_at_s = 0.0
        self.exhausted = asyncio.Event()

    async def run(self) -> None:
        if not self._runs:
            self.exhausted.set()
            await asyncio.Event().wait()
        await self._runs.pop(0)()

    def failed(self, error: Exception) -> None:
        self.failures.append(f"{type(error).__name__}: {error}")

    def stopped(self, error: Exception) -> None:
        self.stops.append(str(error))

    def cut_off(self) -> None:
        self.cuts += 1


def failing(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        raise error

    return run


async def forever() -> None:
    await asyncio.Event().wait()


class RecordingClock(ManualClock):
    """Notes the waits between tries."""

    def __init__(self) -> None:
        super().__init__()
        self.waits_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        await super().sleep(seconds)


@contextlib.asynccontextmanager
async def supervised(service: Scripted, clock: ManualClock) -> AsyncIterator["asyncio.Task[None]"]:
    backoff = Backoff(1.0, 8.0, rng=random.Random(7))
    task = asyncio.create_task(supervise(service, backoff=backoff, clock=clock, cut_off=service.cut_off))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_failing_service_is_restarted_with_growing_bounded_waits() -> None:
    clock = RecordingClock()
    service = Scripted(*[failing(LinkError(f"gone {n}")) for n in range(12)])

    async with supervised(service, clock):
        await asyncio.wait_for(service.exhausted.wait(), WITHIN_S)

    assert service.failures == [f"LinkError: gone {n}" for n in range(12)]
    assert all(0 < wait_s <= min(2.0**n, 8.0) for n, wait_s in enumerate(clock.waits_s))
    assert max(clock.waits_s) > 4.0


async def test_any_exception_is_a_failure_and_ends_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    service = Scripted(failing(ZeroDivisionError("a bug")), failing(KeyError("x")))

    async with supervised(service, ManualClock()) as task:
        await asyncio.wait_for(service.exhausted.wait(), WITHIN_S)
        assert not task.done()

    assert service.failures == ["ZeroDivisionError: a bug", "KeyError: 'x'"]
    journal = capsys.readouterr().out
    assert journal.count("service_crashed") == journal.count("service='link scripted'") == 2
    assert journal.count("raise error") == 2, "with their tracebacks"


async def test_a_service_runs_in_a_task_of_its_name() -> None:
    """Who blocks the loop is named by it."""
    names: list[str] = []

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        names.append(task.get_name())

    service = Scripted(run)
    async with supervised(service, ManualClock()):
        await asyncio.wait_for(service.exhausted.wait(), WITHIN_S)
    assert names == ["link scripted"]


def test_the_limits_are_those_that_are_promised() -> None:
    promised = (REPOSITORY / "docs/ARCHITECTURE.md").read_text()
    assert f"after {supervisor.CANCEL_WITHIN_S:g} s it is cut off" in promised
    assert f"after {supervisor.BLOCKED_AFTER_S:g} s the journal names its task" in promised
    assert f"after {supervisor.INTERRUPTED_AFTER_S:g} s it is interrupted" in promised


async def test_a_config_error_stops_the_service_for_good() -> None:
    service = Scripted(failing(ConfigError("no such register")), forever)

    async with supervised(service, ManualClock()) as task:
        await asyncio.wait_for(task, WITHIN_S)

    assert service.stops == ["no such register"]
    assert service.failures == []


async def test_a_silent_service_is_restarted_although_it_never_returns() -> None:
    clock = ManualClock()
    service = Scripted(forever)
    service.silent_after_s = 0.05
    service.progress_at_s = clock.monotonic_s() - 10

    async with supervised(service, clock):
        await asyncio.wait_for(service.exhausted.wait(), WITHIN_S)

    assert service.failures[0].startswith("Silent: link scripted made no progress for 0.05 s")


async def test_cancellation_passes_and_reaches_the_service() -> None:
    cancelled = asyncio.Event()

    async def run() -> None:
        try:
            await forever()
        finally:
            cancelled.set()

    service = Scripted(run)
    async with supervised(service, ManualClock()) as task:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert cancelled.is_set()
    assert service.failures == []


class MoreThanAnException(BaseException):
    """As a careless library may define one."""


async def returns() -> None:
    return


async def cancels_itself() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (returns, "Misbehaved: link scripted ended by itself"),
        (cancels_itself, "Misbehaved: link scripted cancelled itself"),
        (failing(SystemExit(3)), "Misbehaved: link scripted raised SystemExit(3)"),
        (failing(KeyboardInterrupt()), "Misbehaved: link scripted raised KeyboardInterrupt()"),
        (failing(MoreThanAnException("x")), "Misbehaved: link scripted raised MoreThanAnException(x)"),
        (failing(BaseExceptionGroup("two", [SystemExit(1)])), "Misbehaved: link scripted raised BaseExceptionGroup"),
    ],
)
async def test_however_a_service_ends_it_is_a_failure_of_its_own(run: Callable[[], Awaitable[None]], said: str) -> None:
    service = Scripted(run, run)

    async with supervised(service, ManualClock()) as task:
        await asyncio.wait_for(service.exhausted.wait(), WITHIN_S)
        assert not task.done()

    assert len(service.failures) == 2
    assert all(failure.startswith(said) for failure in service.failures)


async def test_one_that_ignores_cancel_is_cut_off_and_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.supervisor.CANCEL_WITHIN_S", 0.05)
    let_go = asyncio.Event()

    async def deaf() -> None:
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    service = Scripted(deaf)
    async with supervised(service, ManualClock()) as task:
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task}, timeout=WITHIN_S)
        assert task.cancelled()

    assert service.cuts == 1
    let_go.set()
    await asyncio.sleep(0)


class Whole(random.Random):
    """Draws the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


async def waits_of(came_up: bool, runs: int) -> list[float]:
    """Bounds would be drawn from; the draw is always the bound itself."""
    service = Scripted(*[failing(LinkError("closed by the peer"))] * runs)
    service.came_up = came_up
    return await waits_between(service, RecordingClock())


async def waits_between(service: Scripted, clock: RecordingClock, *, first_s: float = 1.0) -> list[float]:
    """All waits until the runs of the service are used up."""
    backoff = Backoff(first_s, 60.0, quick_cap_s=5.0, quick_for_s=300.0, rng=Whole())
    task = asyncio.create_task(supervise(service, backoff=backoff, clock=clock))
    await asyncio.wait_for(service.exhausted.wait(), WITHIN_S)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return clock.waits_s


async def test_while_an_outage_is_young_tries_are_at_most_5_s_apart() -> None:
    assert await waits_of(came_up=False, runs=6) == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


async def test_a_peer_that_takes_us_in_and_throws_us_out_is_left_alone_from_the_third_time_on() -> None:
    assert await waits_of(came_up=True, runs=7) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]


async def test_two_short_lives_are_hurried_and_the_third_is_not_also_after_a_healthy_run() -> None:
    clock = RecordingClock()

    async def lives() -> None:
        clock.advance(3600.0)
        raise LinkError("gone")

    fails = failing(LinkError("closed by the peer"))
    service = Scripted(fails, fails, fails, fails, lives, fails, fails, fails)
    service.came_up = True
    assert await waits_between(service, clock, first_s=4.0) == [4.0, 5.0, 16.0, 32.0, 4.0, 5.0, 5.0, 32.0]


@pytest.mark.parametrize(("lived_s", "after"), [(59.0, [8.0, 16.0, 32.0]), (60.0, [1.0, 2.0, 4.0])])
async def test_a_run_of_healthy_length_starts_the_waits_anew_and_a_shorter_one_does_not(
    lived_s: float, after: list[float]
) -> None:
    """However long all of them together took."""
    clock = RecordingClock()

    async def lives() -> None:
        clock.advance(lived_s)
        raise LinkError("gone")

    fails = failing(LinkError("gone"))
    service = Scripted(fails, fails, fails, lives, fails, fails)
    service.came_up = True
    assert await waits_between(service, clock) == [1.0, 2.0, 4.0, *after]


async def test_a_healthy_run_forgets_the_short_lives_before_it() -> None:
    clock = RecordingClock()

    async def lives() -> None:
        clock.advance(3600.0)
        service.came_up = False
        raise LinkError("gone")

    fails = failing(LinkError("closed by the peer"))
    service = Scripted(fails, fails, fails, lives, *[fails] * 4)
    service.came_up = True
    assert (await waits_between(service, clock))[3:] == [1.0, 2.0, 4.0, 5.0, 5.0]


async def test_silence_is_noticed_after_a_part_of_the_allowed_time() -> None:
    clock = ManualClock()
    service = Scripted(forever)
    service.silent_after_s = 2.0
    service.progress_at_s = clock.monotonic_s() - 10
    async with supervised(service, clock):
        await asyncio.wait_for(service.exhausted.wait(), 6.0)


async def test_silence_of_the_allowed_length_is_none() -> None:
    clock = ManualClock()
    service = Scripted(forever)
    service.silent_after_s = 0.03125  # exact in binary
    service.progress_at_s = clock.monotonic_s() - 0.03125

    async with supervised(service, clock):
        await asyncio.sleep(0.05)  # some looks
        assert service.failures == []
        clock.advance(0.01)
        await asyncio.wait_for(service.exhausted.wait(), WITHIN_S)

    assert len(service.failures) == 1


async def test_a_silent_service_that_fails_says_why_itself() -> None:
    clock = ManualClock()
    service = Scripted(failing(LinkError("gone")))
    service.silent_after_s = 0.04
    service.progress_at_s = clock.monotonic_s() - 10

    async with supervised(service, clock):
        await asyncio.wait_for(service.exhausted.wait(), WITHIN_S)

    assert service.failures[0] == "LinkError: gone"


async def test_what_a_cancelled_service_still_does_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """Its port is closed before the next run opens it; and an error on the way out is nobody's any more."""
    clock = ManualClock()
    done: list[str] = []
    opened = asyncio.Event()

    async def run() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0.02)
            done.append("closed")
            raise ValueError("on the way out")

    async def next_run() -> None:
        done.append("opened")
        opened.set()
        service.progress_at_s = math.inf
        await forever()

    service = Scripted(run, next_run)
    service.silent_after_s = 0.02
    service.progress_at_s = clock.monotonic_s() - 10
    async with supervised(service, clock):
        await asyncio.wait_for(opened.wait(), WITHIN_S)
    gc.collect()

    assert done == ["closed", "opened"]
    assert (len(service.failures), service.cuts) == (1, 0)
    assert "never retrieved" not in caplog.text


async def test_one_that_is_restarted_for_silence_and_ignores_it_is_cut_off_named_and_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.supervisor.CANCEL_WITHIN_S", 0.02)
    let_go = asyncio.Event()
    clock = ManualClock()

    async def deaf() -> None:
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    service = Scripted(deaf, deaf)
    service.silent_after_s = 0.02
    service.progress_at_s = clock.monotonic_s() - 10
    async with supervised(service, clock):
        await asyncio.wait_for(service.exhausted.wait(), WITHIN_S)
        let_go.set()

    assert service.cuts == 2
    assert len(service.failures) >= 2
    told = [line for line in capsys.readouterr().out.splitlines() if "service_ignores_cancel" in line]
    assert ["service='link scripted'" in line for line in told] == [True, True]


@pytest.mark.parametrize("deaf", [True, False])
async def test_a_link_that_goes_on_blocking_is_interrupted_also_when_it_catches_everything(deaf: bool) -> None:
    monitor = asyncio.create_task(
        LagMonitor(lambda task, seconds: None, blocked_after_s=0.05, interrupted_after_s=0.2).run()
    )
    await asyncio.sleep(0.06)

    async def block() -> None:
        while deaf:
            try:
                time.sleep(20)  # noqa: ASYNC251 - blocking is the point
            except Exception:  # noqa: BLE001, S112 - as careless code does
                continue
        time.sleep(20)  # noqa: ASYNC251

    started_s = time.monotonic()
    [outcome] = await asyncio.gather(asyncio.create_task(block(), name="link roof"), return_exceptions=True)
    monitor.cancel()
    await asyncio.gather(monitor, return_exceptions=True)

    assert isinstance(outcome, Interrupted)
    assert time.monotonic() - started_s < 10


@contextlib.asynccontextmanager
async def monitored(
    blocked: Callable[[str, float], None] = lambda task, seconds: None, *, interrupted_after_s: float = 0.05
) -> AsyncIterator[None]:
    monitor = LagMonitor(blocked, blocked_after_s=0.02, interrupted_after_s=interrupted_after_s)
    task = asyncio.create_task(monitor.run())
    await asyncio.sleep(0.03)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("module", "hit"),
    [
        ("gateway.log.store", False),
        ("asyncio.events", False),
        ("sqlite3", False),
        ("gateway.sdk.framing", True),
        ("gateways_of_others", True),
        (None, True),
    ],
)
async def test_a_link_is_interrupted_in_any_code_but_the_gateways_own(module: str | None, hit: bool) -> None:
    """Whose state must not be torn: it is let go on."""
    code: dict[str, Any] = {"time": time, "__name__": module, "for_s": 10.0 if hit else 0.5}
    exec("def works():\n    until_s = time.monotonic() + for_s\n    while time.monotonic() < until_s: pass", code)

    async def link() -> str:
        code["works"]()
        return "done"

    async with monitored():
        [outcome] = await asyncio.gather(asyncio.create_task(link(), name="link roof"), return_exceptions=True)
    assert isinstance(outcome, Interrupted) if hit else outcome == "done"


async def test_who_blocks_is_told_with_the_line_for_how_long_and_that_it_was_interrupted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    named: list[tuple[str, float]] = []

    async def link() -> None:
        time.sleep(5)  # noqa: ASYNC251 - blocking is the point

    async with monitored(lambda task, seconds: named.append((task, seconds)), interrupted_after_s=0.3):
        [outcome] = await asyncio.gather(asyncio.create_task(link(), name="link roof"), return_exceptions=True)
    assert str(outcome) == "blocked the event loop for more than 0.3 s"
    [late_s] = [late_s for name, late_s in named if name == "link roof"]
    assert 0.03 <= late_s < 3
    journal = capsys.readouterr().out
    blocked = next(line for line in journal.split("[info") if "loop_blocked" in line and "link roof" in line)
    assert f"seconds={round(late_s, 1)} " in blocked
    assert "time.sleep(5)" in blocked
    [interrupted] = [line for line in journal.split("[info") if "driver_interrupted" in line]
    assert "task='link roof'" in interrupted
    assert "time.sleep(5)" in interrupted
    assert [told.count("File ") for told in (blocked, interrupted)] == [3, 3], "the innermost calls, not the loop's"
    assert "gateway/supervisor.py" not in interrupted, "where it stood, and not who looked"


async def test_who_is_not_to_blame_is_not_interrupted_by_a_signal_that_comes_late() -> None:
    """The one who blocked has gone on meanwhile: another task runs, or none."""
    called: list[str] = []

    def callback() -> None:
        signal.raise_signal(INTERRUPT)
        called.append("callback")

    async def link() -> str:
        signal.raise_signal(INTERRUPT)
        return "task"

    async with monitored(interrupted_after_s=60.0):
        assert await asyncio.create_task(link(), name="link roof") == "task"
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert called == ["callback"]


async def test_a_callback_that_blocks_is_named_as_the_loop_and_the_next_blockage_is_named_too() -> None:
    named: list[str] = []

    def callback() -> None:
        time.sleep(0.2)

    async def link() -> None:
        time.sleep(0.2)  # noqa: ASYNC251 - blocking is the point

    async with monitored(lambda task, seconds: named.append(task), interrupted_after_s=60.0):
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0.05)
        await asyncio.create_task(link(), name="link roof")
    assert "the event loop itself" in named
    assert "link roof" in named


async def test_nothing_is_left_of_the_monitor_when_it_ends() -> None:
    before = signal.getsignal(INTERRUPT)
    async with monitored():
        assert signal.getsignal(INTERRUPT) != before
        assert [thread.daemon for thread in threading.enumerate() if thread.name == "lag-monitor"] == [True]
    assert signal.getsignal(INTERRUPT) == before
    async with asyncio.timeout(WITHIN_S):
        while any(thread.name == "lag-monitor" for thread in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_loop_of_another_thread_is_watched_without_signals() -> None:
    named: list[str] = []

    async def main() -> None:
        before = signal.getsignal(INTERRUPT)
        async with monitored(lambda task, seconds: named.append(task), interrupted_after_s=60.0):
            assert signal.getsignal(INTERRUPT) == before
            time.sleep(0.3)  # noqa: ASYNC251 - blocking is the point

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join(WITHIN_S)
    assert named


def test_when_the_whole_process_stood_still_nobody_is_blamed() -> None:
    script = """
import asyncio, sys
from gateway.supervisor import LagMonitor
async def main():
    monitor = LagMonitor(lambda task, seconds: print("blamed", seconds > 1), blocked_after_s=0.3)
    task = asyncio.create_task(monitor.run())
    await asyncio.sleep(0.5)
    print("runs", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.sleep(1)
    task.cancel()
asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        process.send_signal(signal.SIGCONT)
        process.stdin.close()
        assert "blamed True" not in process.stdout.read()


async def test_what_is_no_link_is_only_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = asyncio.create_task(
        LagMonitor(lambda task, seconds: None, blocked_after_s=0.02, interrupted_after_s=0.05).run()
    )
    await asyncio.sleep(0.03)

    async def busy() -> str:
        time.sleep(0.5)  # noqa: ASYNC251 - blocking is the point
        return "done"

    assert await asyncio.create_task(busy(), name="broker milano") == "done"
    monitor.cancel()
    await asyncio.gather(monitor, return_exceptions=True)


async def test_a_task_that_blocks_the_loop_is_named() -> None:
    named: list[str] = []
    seen = threading.Event()

    def blocked(task: str, seconds: float) -> None:
        named.append(task)
        seen.set()

    monitor = asyncio.create_task(LagMonitor(blocked, blocked_after_s=0.05).run())
    await asyncio.sleep(0.1)

    async def block() -> None:
        deadline_s = time.monotonic() + 3
        while not seen.is_set() and time.monotonic() < deadline_s:
            time.sleep(0.01)  # noqa: ASYNC251 - blocking is the point

    await asyncio.create_task(block(), name="link roof-rs485")
    monitor.cancel()
    await asyncio.gather(monitor, return_exceptions=True)

    assert named == ["link roof-rs485"]


async def test_a_blockage_is_named_once_however_long_it_lasts() -> None:
    named: list[float] = []

    def blocked(name: str, seconds: float) -> None:
        if name.startswith("link "):  # on a busy machine the loop itself may be late
            named.append(time.monotonic())

    monitor = LagMonitor(blocked, blocked_after_s=0.05)
    assert monitor.longest_s == 0.0
    task = asyncio.create_task(monitor.run())
    await asyncio.sleep(0.1)

    async def block() -> None:
        deadline_s = time.monotonic() + 8
        while time.monotonic() < min(deadline_s, named[0] + 0.4 if named else deadline_s):
            time.sleep(0.01)  # noqa: ASYNC251 - blocking is the point

    await asyncio.create_task(block(), name="link roof-rs485")
    longest_s = monitor.longest_s
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert len(named) == 1
    assert monitor.longest_s >= longest_s > 0.05
