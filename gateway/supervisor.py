"""Keep services running: one that fails, ends or falls silent is restarted; a driver that blocks the loop is named and
interrupted."""

import asyncio
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from gateway.backoff import Backoff
from gateway.journal import event, fault
from gateway.sdk.driver import Clock
from gateway.sdk.errors import CitygateError, ConfigError

HEALTHY_AFTER_S = 60.0  # ran this long: the next failure starts the backoff anew
CANCEL_WITHIN_S = 3.0  # a service that does not let itself be cancelled is cut off, left behind and named
SHORT_LIVES = 2  # a service that came up and ended at once so often is not hurried any more
BLOCKED_AFTER_S = 1.0
INTERRUPTED_AFTER_S = 5.0  # a link that blocks the loop for so long is interrupted
INTERRUPT = signal.SIGUSR2  # of ours to ourselves: what sleeps in a system call wakes by it


class Service(Protocol):
    """Something that runs until cancelled."""

    @property
    def name(self) -> str:
        """For tasks, events and status, e.g. `link roof-rs485`."""

    @property
    def silent_after_s(self) -> float | None:
        """Without progress for this long it is restarted; None = it may be silent."""

    @property
    def progress_at_s(self) -> float:
        """When it last showed life, on the monotonic clock."""

    @property
    def came_up(self) -> bool:
        """Whether it did its work in the latest run, and not only tried to begin."""

    async def run(self) -> None:
        """Serve until cancelled."""

    def failed(self, error: Exception) -> None:
        """It failed and will be restarted."""

    def stopped(self, error: Exception) -> None:
        """It cannot be helped by a restart; the next reload may."""


class Silent(CitygateError):
    """A service made no progress; it is restarted."""


class Misbehaved(Exception):
    """A service did what no service may do: it ended by itself, cancelled itself, or asked the process to exit."""


class Interrupted(BaseException):
    """Raised inside a link that blocks the event loop, so that its neighbours go on. No `Exception`: a driver that
    catches everything must not catch this."""


async def supervise(
    service: Service, *, backoff: Backoff, clock: Clock, cut_off: Callable[[], None] | None = None
) -> None:
    """Keep one service running: restart it after a failure, let cancellation pass.

    Args:
        cut_off: for code that is not ours: it ignores that it was cancelled, what it does from now on must reach nobody.
    """
    short_lives = 0
    while True:
        started_s = clock.monotonic_s()
        try:
            await _run_watched(service, clock, cut_off)
        except ConfigError as error:
            service.stopped(error)
            return
        except CitygateError as error:
            service.failed(error)
        except Exception as error:  # noqa: BLE001 - our bug or a driver's: keep the traceback, keep the rest running
            fault("service_crashed", error, service=service.name)
            service.failed(error)
        if clock.monotonic_s() - started_s >= HEALTHY_AFTER_S:
            backoff.reset()
            short_lives = 0
        elif service.came_up:  # taken in and thrown out at once: displaced, or the other end refuses in its own way
            short_lives += 1
        await clock.sleep(backoff.next_s(hurry=short_lives <= SHORT_LIVES))


async def _contained(service: Service) -> None:
    """Run it; whatever leaves it is an `Exception`, so that it stays this service's matter."""
    try:
        await service.run()
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise Misbehaved(f"{service.name} raised {type(error).__name__}({error})") from error
    raise Misbehaved(f"{service.name} ended by itself; it is to serve until it is cancelled")


async def _run_watched(service: Service, clock: Clock, cut_off: Callable[[], None] | None) -> None:
    task = asyncio.create_task(_contained(service), name=service.name)
    try:
        while not task.done():
            limit_s = service.silent_after_s
            await asyncio.wait({task}, timeout=None if limit_s is None else limit_s / 4)
            if limit_s is not None and not task.done() and clock.monotonic_s() - service.progress_at_s > limit_s:
                raise Silent(f"{service.name} made no progress for {limit_s:g} s and was restarted")
        if task.cancelled():  # not by us: then `wait` would not have come to an end
            raise Misbehaved(f"{service.name} cancelled itself")
        task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_WITHIN_S)
        if not task.done():
            fault("service_ignores_cancel", service=service.name)
            if cut_off is not None:
                cut_off()
        elif not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it once more


class LagMonitor:
    """Names who blocks the loop: a thread that looks at the running task when the loop's heartbeat is late. A link that
    goes on blocking is interrupted: `Interrupted` is raised where its driver stands, also in a system call.

    Args:
        blocked: told the task's name and for how long, once per blockage, in the monitor's thread.
    """

    def __init__(
        self,
        blocked: Callable[[str, float], None],
        *,
        blocked_after_s: float = BLOCKED_AFTER_S,
        interrupted_after_s: float = INTERRUPTED_AFTER_S,
    ) -> None:
        self._blocked = blocked
        self._limit_s = blocked_after_s
        self._interrupt_s = interrupted_after_s
        self._beat_s = time.monotonic()
        self._stop = threading.Event()
        self._guilty: asyncio.Task[object] | None = None
        self.longest_s = 0.0

    async def run(self) -> None:
        """Beat until cancelled."""
        loop, main = asyncio.get_running_loop(), threading.get_ident()
        thread = threading.Thread(target=self._watch, args=(loop, main), name="lag-monitor", daemon=True)
        self._beat_s = time.monotonic()
        before = signal.signal(INTERRUPT, self._interrupt) if main == threading.main_thread().ident else None
        thread.start()
        try:
            while True:
                self._beat_s = time.monotonic()
                await asyncio.sleep(self._limit_s / 2)
        finally:
            self._stop.set()
            if before is not None:
                signal.signal(INTERRUPT, before)

    def _watch(self, loop: asyncio.AbstractEventLoop, main: int) -> None:
        named_beat, looked_s = 0.0, time.monotonic()
        while not self._stop.wait(self._limit_s):
            now_s = time.monotonic()
            we_slept, looked_s = now_s - looked_s > 3 * self._limit_s, now_s
            beat_s, late_s = self._beat_s, now_s - self._beat_s
            self.longest_s = max(self.longest_s, late_s)
            if late_s < self._limit_s * 1.5 or we_slept:  # the whole process stood still: nobody in it is to blame
                continue
            task = asyncio.current_task(loop)
            name = task.get_name() if task else "the event loop itself"
            if beat_s != named_beat:
                named_beat = beat_s  # one report per blockage
                frame = sys._current_frames().get(main)
                where = traceback.format_stack(frame, limit=None)[-3:] if frame else []
                event("loop_blocked", task=name, seconds=round(late_s, 1), stack="".join(where))
                self._blocked(name, late_s)
            if task is not None and name.startswith("link ") and late_s >= self._interrupt_s:
                self._guilty = task
                signal.pthread_kill(main, INTERRUPT)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, where it stands: only the guilty task is hit, and only in code that is not the gateway's."""
        guilty, self._guilty = self._guilty, None
        running = asyncio.current_task()
        if running is None or running is not guilty or frame is None or _is_ours(frame):
            return
        event("driver_interrupted", task=running.get_name(), stack="".join(traceback.format_stack(frame)[-3:]))
        raise Interrupted(f"blocked the event loop for more than {self._interrupt_s:g} s")


def _is_ours(frame: FrameType) -> bool:
    """Whether what runs is the gateway's own code, whose state must not be torn; the SDK has none."""
    name = str(frame.f_globals.get("__name__", ""))
    return name.startswith(("gateway.", "asyncio.", "sqlite3")) and not name.startswith("gateway.sdk.")
