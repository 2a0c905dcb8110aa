"""The one thread that owns the store: jobs in, results out, one hop per batch."""

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Writer:
    """A named thread that runs jobs one after the other; the loop is never blocked by the card."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._busy_since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="citygate-log", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> "asyncio.Future[T]":
        """Queue a job; its result or exception comes back in this loop."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    def busy_s(self) -> float:
        """How long the present job has been running; 0 when the thread is idle. What the watchdog looks at."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            self._busy_since_s = time.monotonic()
            result, failure = None, None
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001  the one who waits gets it, whatever it is
                failure = error
            self._busy_since_s = None
            try:
                self._loop.call_soon_threadsafe(_resolve, future, result, failure)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    async def close(self) -> None:
        """Finish what was queued, end the thread."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)


def _resolve(future: "asyncio.Future[Any]", result: Any, failure: BaseException | None) -> None:
    if future.done():  # cancelled by the one who waited
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
