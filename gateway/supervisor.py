"""Keep services running: one that fails is restarted, a silent one too, and a driver that blocks the loop is named."""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Protocol

from gateway.backoff import Backoff
from gateway.journal import event, fault
from gateway.sdk.driver import Clock
from gateway.sdk.errors import CitygateError, ConfigError

HEALTHY_AFTER_S = 60.0  # ran this long: the next failure starts the backoff anew
CANCEL_WITHIN_S = 3.0  # a service that does not let itself be cancelled is left behind and named
BLOCKED_AFTER_S = 1.0


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

    async def run(self) -> None:
        """Serve until cancelled."""

    def failed(self, error: Exception) -> None:
        """It failed and will be restarted."""

    def stopped(self, error: Exception) -> None:
        """It cannot be helped by a restart; the next reload may."""


class Silent(CitygateError):
    """A service made no progress; it is restarted."""


async def supervise(service: Service, *, backoff: Backoff, clock: Clock) -> None:
    """Keep one service running: restart it after a failure, let cancellation pass."""
    while True:
        started_s = clock.monotonic_s()
        try:
            await _run_watched(service, clock)
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
        await clock.sleep(backoff.next_s())


async def _run_watched(service: Service, clock: Clock) -> None:
    task = asyncio.create_task(service.run(), name=service.name)
    try:
        while not task.done():
            limit_s = service.silent_after_s
            await asyncio.wait({task}, timeout=None if limit_s is None else limit_s / 4)
            if limit_s is not None and not task.done() and clock.monotonic_s() - service.progress_at_s > limit_s:
                raise Silent(f"{service.name} made no progress for {limit_s:g} s and was restarted")
        task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_WITHIN_S)
        if not task.done():
            fault("service_ignores_cancel", service=service.name)
        elif not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it once more


class LagMonitor:
    """Names who blocks the loop: a thread that looks at the running task when the loop's heartbeat is late.

    Args:
        blocked: told the task's name and for how long, once per blockage, in the monitor's thread.
    """

    def __init__(self, blocked: Callable[[str, float], None], *, blocked_after_s: float = BLOCKED_AFTER_S) -> None:
        self._blocked = blocked
        self._limit_s = blocked_after_s
        self._beat_s = time.monotonic()
        self._stop = threading.Event()
        self.longest_s = 0.0

    async def run(self) -> None:
        """Beat until cancelled."""
        loop, main = asyncio.get_running_loop(), threading.get_ident()
        thread = threading.Thread(target=self._watch, args=(loop, main), name="lag-monitor", daemon=True)
        self._beat_s = time.monotonic()
        thread.start()
        try:
            while True:
                self._beat_s = time.monotonic()
                await asyncio.sleep(self._limit_s / 2)
        finally:
            self._stop.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, main: int) -> None:
        named_beat = 0.0
        while not self._stop.wait(self._limit_s):
            beat_s, late_s = self._beat_s, time.monotonic() - self._beat_s
            self.longest_s = max(self.longest_s, late_s)
            if late_s < self._limit_s * 1.5 or beat_s == named_beat:
                continue
            named_beat = beat_s  # one report per blockage
            task = asyncio.current_task(loop)
            name = task.get_name() if task else "the event loop itself"
            frame = sys._current_frames().get(main)
            where = traceback.format_stack(frame, limit=None)[-3:] if frame else []
            event("loop_blocked", task=name, seconds=round(late_s, 1), stack="".join(where))
            self._blocked(name, late_s)
