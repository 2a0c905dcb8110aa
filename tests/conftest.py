"""For every test: a task left behind or a blocked loop fails it (warnings do by configuration)."""

import asyncio
import functools
import inspect
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from gateway import hidden

BLOCKED_S = 4.0  # a test that blocks the loop for real blocks it for longer
GRACE_S = 1.0  # for tasks that end because the test ended

# For every property, here alone: how long an example takes to draw and to run is the machine's matter, which is shared;
# a test has its timeout. Fixtures that properties use (a folder, the command) are written anew by each example.
settings.register_profile(
    "shared", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("shared")


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_reaches_what_is_started() -> None:
    """A shell starts what runs in its background with SIGINT ignored, and that is handed down to every process."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a box notes of itself stays out of the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _nothing_is_known_of_other_tests() -> Iterator[None]:
    """Secrets that a test made known, and where the journal goes, end with it."""
    yield
    hidden.keep_secret(())
    hidden._passing.clear()
    structlog.reset_defaults()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _guarded(item.obj)


def _guarded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        before = asyncio.all_tasks()
        beats = _Beats()
        heart = asyncio.create_task(beats.run(), name="heartbeat")
        try:
            await test(*args, **kwargs)
        finally:
            heart.cancel()
            await asyncio.gather(heart, return_exceptions=True)
        left = {task for task in asyncio.all_tasks() - before if not _of_a_server(task)}
        if left:
            _, left = await asyncio.wait(left, timeout=GRACE_S)
        assert not left, f"tasks left behind: {sorted(task.get_name() for task in left)}"
        assert beats.longest_s < BLOCKED_S, f"the loop was blocked for {beats.longest_s:.1f} s"

    return run


class _Beats:
    """The longest time between two turns of the loop, without the time in which the machine let others run."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def run(self) -> None:
        last_s = time.monotonic() - _starved_s()
        while True:
            await asyncio.sleep(0.05)
            now_s = time.monotonic() - _starved_s()
            self.longest_s = max(self.longest_s, now_s - last_s)
            last_s = now_s


def _starved_s() -> float:
    """How long this thread was ready to run and did not get a processor, since it began."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def _of_a_server(task: asyncio.Task[Any]) -> bool:
    """aiohttp keeps one task per open connection; the fixture that owns the server ends it."""
    return "RequestHandler.start" in getattr(task.get_coro(), "__qualname__", "")
