"""One run of a driver on a leash: what it opened, started and may say ends with it, also when it does not end itself."""

import asyncio
import contextlib
from asyncio import TimerHandle
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from contextvars import Context, ContextVar
from typing import Any, Final, ParamSpec
from weakref import WeakSet

from gateway.journal import event
from gateway.sdk.driver import Clock, Receipt, Request, Requests
from gateway.sdk.errors import Busy, LinkError
from gateway.sdk.reading import ReadingSet
from gateway.sdk.streams import ByteStream

MAX_REQUESTS: Final = 8  # one-shot reads and writes waiting for a link; more are refused, not queued
MAX_THREADS: Final = 8  # for the blocking calls of one link's driver, over all its runs
EMITS_A_TURN: Final = 16  # then the loop has its turn, also under a driver that never waits
REFUSED_PAUSE_S: Final = 1.0  # one that was cut off and ignores every error must not spin

Open = Callable[..., AbstractAsyncContextManager[ByteStream]]
P = ParamSpec("P")

_RUN: ContextVar["DriverRun | None"] = ContextVar("driver_run", default=None)


class RequestQueue:
    """One-shot requests of a link, bounded; it outlives the runs of its driver."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Request] = asyncio.Queue(maxsize=MAX_REQUESTS)

    def put(self, request: Request) -> None:
        """Raises Busy when too many wait already."""
        try:
            self._queue.put_nowait(request)
        except asyncio.QueueFull:
            raise Busy(f"{MAX_REQUESTS} requests wait for this link already; try again in a moment") from None

    async def get(self) -> Request:
        return await self._queue.get()

    def get_nowait(self) -> Request | None:
        try:
            return self._queue.get_nowait()
        except asyncio.QueueEmpty:
            return None


class DriverRun:
    """What one run of one driver holds.

    Args:
        name: of its link, for events.
        emit: takes a set into the gateway.
        threads: for what it calls in threads (`asyncio.to_thread`, names looked up).
    """

    def __init__(
        self, name: str, emit: Callable[[ReadingSet], Awaitable[Receipt]], clock: Clock, threads: Executor
    ) -> None:
        self._name = name
        self.threads = threads
        self._emit = emit
        self._clock = clock
        self._over = False
        self._emits = 0
        self._open: set[AbstractAsyncContextManager[ByteStream]] = set()
        self._taken: list[Request] = []  # and not answered; bounded by who waits for an answer
        self._tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._closing: set[asyncio.Task[Any]] = set()

    async def drive(self, run: Coroutine[Any, Any, None]) -> None:
        """Run the driver; whatever it leaves behind is closed and cancelled."""
        _RUN.set(self)
        try:
            await run
        finally:
            self.end()

    async def emit(self, readings: ReadingSet) -> Receipt:
        """Hand over a set. Raises `LinkError` once the run is over."""
        if self._over:
            await self._clock.sleep(REFUSED_PAUSE_S)
            raise LinkError("this run of the driver is over; what it says is not taken any more")
        self._emits += 1
        if self._emits % EMITS_A_TURN == 0:
            await asyncio.sleep(0)
        return await self._emit(readings)

    def heard(self, say: Callable[P, None]) -> Callable[P, None]:
        """The same, without any effect once the run is over."""

        def while_it_runs(*args: P.args, **kwargs: P.kwargs) -> None:
            if not self._over:
                say(*args, **kwargs)

        return while_it_runs

    def opener(self, open_stream: Open) -> Any:
        """The same opener; what it opened is closed with the run."""

        @contextlib.asynccontextmanager
        async def opened(*args: Any, **kwargs: Any) -> AsyncIterator[ByteStream]:
            if self._over:
                raise LinkError("this run of the driver is over; it opens nothing any more")
            held = open_stream(*args, **kwargs)
            stream = await held.__aenter__()
            self._open.add(held)
            try:
                if self._over:  # cut off while it opened
                    raise LinkError("this run of the driver is over; it opens nothing any more")
                yield stream
            finally:
                if held in self._open:
                    self._open.discard(held)
                    await held.__aexit__(None, None, None)

        return opened

    def requests(self, queue: RequestQueue) -> Requests:
        """The same queue; a run that is over takes nothing out of it, and what it took is answered when it ends."""
        return _OfRun(queue, lambda: self._over, self._takes)

    def _takes(self, request: Request) -> None:
        self._taken = [its for its in self._taken if not its.reply.done()]
        self._taken.append(request)

    def end(self) -> None:
        """From now on it is heard no more; its streams are closed and its tasks cancelled."""
        self._over = True
        left = [task for task in self._tasks if not task.done()]
        for task in left:
            task.cancel()
        if left or self._open:
            event("driver_left_behind", service=self._name, tasks=len(left), streams=len(self._open))
        for held in self._open:
            closing = asyncio.create_task(_closed(held), name=f"close {self._name}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self._open = set()
        for request in self._taken:
            refuse(request, self._name)
        self._taken = []


class _OfRun:
    """The link's queue as one run sees it."""

    def __init__(self, queue: RequestQueue, over: Callable[[], bool], takes: Callable[[Request], None]) -> None:
        self._queue, self._over, self._takes = queue, over, takes

    async def get(self) -> Request:
        request = await self._queue.get()
        if self._over():  # cut off while it waited: the request is the next run's
            try:
                self._queue.put(request)
            except Busy as error:
                request.reply.set_exception(error)
            raise LinkError("this run of the driver is over; requests go to the next one")
        self._takes(request)
        return request

    def get_nowait(self) -> Request | None:
        request = None if self._over() else self._queue.get_nowait()
        if request is not None:
            self._takes(request)
        return request


def refuse(request: Request, service: str) -> None:
    """Nobody comes to it any more: who waits for the answer is told at once."""
    what_now = "ask again" if request.kind == "read" else "whether it was written is not known: read the point"
    if not request.reply.done():
        request.reply.set_exception(LinkError(f"{service} was ended before it answered; {what_now}"))


async def _closed(held: AbstractAsyncContextManager[ByteStream]) -> None:
    await held.__aexit__(None, None, None)


class SharedLoop(asyncio.SelectorEventLoop):
    """The loop that drivers share with each other and with the gateway: what one of them does with it stays its own
    matter."""

    def call_at(  # type: ignore[override]  # the arguments are passed on as they are
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        """As ever, but not at NaN: that is neither before nor after any other time, and one such timer would leave the
        timers of everybody out of order for good."""
        if when != when:
            raise ValueError("a timer at NaN")
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]  # the arguments are passed on as they are
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """As ever, but in threads of the link where a driver calls: calls that never return must not use up the threads
        that its neighbours look names up in, and the gateway stops with."""
        run = _RUN.get()
        if executor is None and run is not None:
            executor = run.threads
        return super().run_in_executor(executor, func, *args)


def owned_task(loop: asyncio.AbstractEventLoop, work: Any, **kwargs: Any) -> "asyncio.Task[Any]":
    """The loop's task factory: a task that a driver starts belongs to its run, except work of the gateway itself that a
    driver's call happens to start (a commit)."""
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **kwargs)
    run = _RUN.get()
    if run is not None and not _is_gateways(work):
        run._tasks.add(task)
    return task


def _is_gateways(work: Any) -> bool:
    frame = getattr(work, "cr_frame", None)
    name = frame.f_globals.get("__name__", "") if frame is not None else ""
    return name.startswith("gateway.") and not name.startswith("gateway.sdk.")
