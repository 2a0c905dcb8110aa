"""For tests of drivers: a port that plays bytes, a context that records, a clock moved by hand."""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.sdk.driver import Context, Request
from gateway.sdk.errors import FrameError, LinkError, PortClosed
from gateway.sdk.reading import ReadingSet
from gateway.sdk.streams import ByteStream

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


class ManualClock:
    """A clock that moves when told to, or when somebody sleeps."""

    def __init__(self, now: datetime = NOON) -> None:
        self._now = now
        self._monotonic_s = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic_s(self) -> float:
        return self._monotonic_s

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += timedelta(seconds=seconds)
        self._monotonic_s += seconds

    def step(self, seconds: float) -> None:
        """Set the wall clock, as NTP or a technician does; monotonic time does not move."""
        self._now += timedelta(seconds=seconds)


class FakePort:
    """A byte stream that plays chunks and then closes; what is written is kept in `written`."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = list(chunks)
        self.written: list[bytes] = []
        self.age_s = 0.0
        self.age_doubt_s = 0.0

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if not self._chunks:
            raise PortClosed("the fake port has no more bytes")
        return self._chunks.pop(0)

    async def read_within(self, timeout_s: float) -> bytes:
        """An empty chunk plays a silence longer than anybody waits."""
        return await self.read()

    def discard(self) -> bytes:
        return b""

    async def write(self, data: bytes) -> None:
        self.written.append(data)


class _Done:
    @property
    def durable(self) -> Awaitable[None]:
        return asyncio.sleep(0)


class RecordedRequests:
    """The one-shot queue of a recording context."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Request] = asyncio.Queue(maxsize=16)

    def put(self, request: Request) -> None:
        """Ask as the control socket does."""
        self._queue.put_nowait(request)

    async def get(self) -> Request:
        return await self._queue.get()

    def get_nowait(self) -> Request | None:
        return None if self._queue.empty() else self._queue.get_nowait()


class RecordingContext:
    """Builds a `Context` whose effects are kept: `sets`, `rejected`, `remedies`, `counts`, `device_counts`, `notes`, `ups`. Pass
    `.context` to a driver."""

    def __init__(self, port: ByteStream | None = None, clock: ManualClock | None = None) -> None:
        self.port = port
        self.clock = clock or ManualClock()
        self.sets: list[ReadingSet] = []
        self.rejected: list[FrameError] = []
        self.counts: Counter[str] = Counter()
        self.device_counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.remedies: list[str] = []
        self.notes: dict[str, tuple[str, str]] = {}
        self.ups = 0
        self.times: list[tuple[datetime, float]] = []
        self.requests = RecordedRequests()
        self.state: dict[tuple[str, str], bytes] = {}
        self.progressed = 0

    @property
    def context(self) -> Context:
        return Context(
            emit=self._emit,
            reject=self._reject,
            count=self._count,
            now=self.clock.now,
            monotonic_s=self.clock.monotonic_s,
            sleep=self.clock.sleep,
            progress=self._progress,
            open_serial=self._open,
            open_tcp=self._open,
            requests=self.requests,
            offer_time=lambda utc, uncertainty_s: self.times.append((utc, uncertainty_s)),
            state=self.state,
            note=self._note,
            up=self._up,
            link="recorded",
        )

    async def _emit(self, readings: ReadingSet) -> _Done:
        self.sets.append(readings)
        for key, value in (readings.state or {}).items():
            self.state[readings.device, key] = value
        await asyncio.sleep(0)
        return _Done()

    def _reject(self, error: FrameError, *, device: str = "", remedy: str = "") -> None:
        self.rejected.append(error)
        self.remedies.append(remedy)

    def _count(self, name: str, n: int = 1, device: str = "") -> None:
        if device:
            self.device_counts[device][name] += n
        else:
            self.counts[name] += n

    def _progress(self) -> None:
        self.progressed += 1

    def _note(self, device: str, text: str, remedy: str) -> None:
        if text:
            self.notes[device] = (text, remedy)
        else:
            self.notes.pop(device, None)

    def _up(self) -> None:
        self.ups += 1

    @contextlib.asynccontextmanager
    async def _open(self, *_: Any, **__: Any) -> AsyncIterator[ByteStream]:
        if self.port is None:
            raise LinkError("no port given to this recording context")
        yield self.port
