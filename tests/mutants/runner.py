"""Runs mutants within one pytest process: collected once, then forked for each mutant, the code of its functions exchanged.

A pytest plugin. The file is changed as well, for processes that a test starts, and for what no exchange of code reaches
(constants, defaults): those are tried by a pytest of their own.
"""

import contextlib
import ctypes
import gc
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import hypothesis
import psutil
import pytest

from tests.mutants.mutant import Mutant

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CHECK_S = 120.0  # for one test on clean code
START_S = 60.0  # until a pytest of its own is at its first test
KILLED, SURVIVED, TIMED_OUT, NO_TEST = "killed", "survived", "timed out", "no test"
COLD = "cold"


def pytest_configure(config: pytest.Config) -> None:
    _end_with(int(os.environ["MUTANTS_PARENT"]))
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, deadline=None)
    hypothesis.settings.load_profile("mutants")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Do what the work file says: the clean run, then each mutant; one line of JSON for each."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    work = json.loads(Path(os.environ["MUTANTS_WORK"]).read_text())
    with open(os.environ["MUTANTS_OUT"], "a", buffering=1) as out:
        server = _Server(session.items, Path.cwd(), lambda line: out.write(json.dumps(line) + "\n"))
        if work["clean"]:
            server.clean(work["clean"], work["folders"])
        for entry in work["mutants"]:
            server.tries(Mutant(**entry["mutant"]), entry["tests"], entry["limit_s"])
    return True


class _Server:
    def __init__(self, items: list[pytest.Item], root: Path, tell: Callable[[dict[str, Any]], object]) -> None:
        self._items = {item.nodeid: item for item in items}
        self._root = root
        self._tell = tell

    def clean(self, files: list[str], folders: list[str]) -> None:
        """What each test of these files costs, which lines it runs, and whether it passes at all."""
        for file in files:
            items = [item for name, item in self._items.items() if name.partition("::")[0] == file]
            measured = _forked(partial(_measured, items, folders), limit_s=1200.0) if items else {}
            self._tell({"file": file, "items": measured})

    def tries(self, mutant: Mutant, tests: dict[str, float], limit_s: float) -> None:
        started_s = time.monotonic()
        known = {name: test_s for name, test_s in tests.items() if name in self._items}
        verdict, by = self._verdict(mutant, known, limit_s) if known else (NO_TEST, None)
        self._tell({"key": mutant.key, "verdict": verdict, "by": by, "took_s": round(time.monotonic() - started_s, 2)})

    def _verdict(self, mutant: Mutant, tests: dict[str, float], limit_s: float) -> tuple[str | None, str | None]:
        """The verdict and the test it is owed to; None when the machine is too slow to tell."""
        path = self._root / mutant.module
        source = path.read_text()
        mutated = mutant.applied(source)
        functions_of(path)  # looked for once, before the fork
        while tests:
            with _written(path, mutated, source):
                answer = _forked(partial(self._tried, tests, path, mutated), limit_s)
                if answer == COLD:
                    answer = _cold(list(tests), limit_s)
            if answer is None:
                clean = _forked(partial(self._tried, tests), limit_s)
                return (TIMED_OUT if clean == [] else None), None
            if not answer:
                return SURVIVED, None
            verdict, by = answer
            if by not in tests or _forked(partial(self._tried, {by: tests[by]}), CHECK_S) == []:
                return verdict, by
            tests = {name: test_s for name, test_s in tests.items() if name != by}  # fails without the mutant as well
        return NO_TEST, None

    def _tried(self, tests: dict[str, float], path: Path | None = None, mutated: str = "") -> list[str] | str:
        """The verdict and the test that fails, or nothing; COLD when there is no code to exchange."""
        if path is not None and not exchange(path, mutated):
            return COLD
        items = [self._items[name] for name in tests]
        for item in items:
            item.add_marker(pytest.mark.timeout(tests[item.nodeid]), append=False)
        for _, reports in _run(items):
            if reports.failed:
                return [TIMED_OUT if reports.late else KILLED, reports.failed]
        return []


def _end_with(parent: int) -> None:
    """On SIGTERM, which comes also when the parent is gone, end with all that was started."""

    def end(*_: object) -> None:
        _end_children()
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        end()


@contextlib.contextmanager
def _written(path: Path, mutated: str, source: str) -> Iterator[None]:
    path.write_text(mutated)
    try:
        yield
    finally:
        path.write_text(source)


def _cold(names: list[str], limit_s: float) -> list[str] | None:
    """The same answer by a pytest of its own, which imports the file as it is now."""
    arguments = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-rfE", "-p", "no:cacheprovider", *names]
    arguments.append(f"--basetemp={os.environ['TMPDIR']}/cold")
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(arguments, stdout=said, stderr=said) as process:
        try:
            if process.wait(limit_s + START_S) == 0:
                return []
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_children()
        said.seek(0)
        failed = [line.split(" ")[1].strip() for line in said if line.startswith(("FAILED ", "ERROR "))]
    return [KILLED, failed[0] if failed else ""]


def _forked(work: Callable[[], Any], limit_s: float) -> Any:
    """What the work answers in a process of its own; nothing (None) when it took too long or died."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            os.close(reads)
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            with open(writes, "w") as pipe:
                json.dump(work(), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writes)
    with open(reads, "rb") as pipe_:
        answer = _read(pipe_.fileno(), time.monotonic() + limit_s)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    _end_children()
    return None if answer is None else json.loads(answer)


def _read(descriptor: int, until_s: float) -> bytes | None:
    """All that comes before the other end closes; None when it is late or empty."""
    parts: list[bytes] = []
    while (left_s := until_s - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left_s)[0]:
            return None
        part = os.read(descriptor, 1 << 20)
        if not part:
            return b"".join(parts) or None
        parts.append(part)
    return None


def _end_children() -> None:
    """Whatever a test left behind: orphans come to us, so none gets away."""
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


class _Reports:
    """What the tests of one process came to; forgets nothing but what is taken."""

    def __init__(self) -> None:
        self.failed = ""
        self.late = False
        self.costs: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.costs[report.when or ""] = report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid
            self.late = "from pytest-timeout" in str(report.longrepr)


def _run(items: list[pytest.Item]) -> Iterator[tuple[pytest.Item, _Reports]]:
    """Run tests one after the other, and tell after each; the first failure stays in the reports until it is taken."""
    reports = _Reports()
    items[0].config.pluginmanager.register(reports)
    for item, following in itertools.zip_longest(items, items[1:]):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        yield item, reports


def _measured(items: list[pytest.Item], folders: list[str]) -> dict[str, Any]:
    measure = coverage.Coverage(data_file=None, include=[f"{folder}*" for folder in folders], config_file=False)
    measured: dict[str, Any] = {}
    measure.start()
    measure.switch_context(items[0].nodeid)
    names = [item.nodeid for item in items]
    for (item, reports), following in zip(_run(items), [*names[1:], "end"], strict=True):
        costs = reports.costs
        measured[item.nodeid] = {
            "setup_s": round(costs.get("setup", 0.0), 3),
            "call_s": round(costs.get("call", 0.0) + costs.get("teardown", 0.0), 3),
            "passes": not reports.failed,
            "lines": defaultdict(list),
        }
        reports.failed = ""
        reports.costs.clear()
        measure.switch_context(following)
    measure.stop()
    data = measure.get_data()
    for path in data.measured_files():
        for line, tests in data.contexts_by_lineno(path).items():
            for name in tests:
                if name in measured:
                    measured[name]["lines"][os.path.relpath(path)].append(line)
    return measured


Functions = dict[tuple[str, int], list[FunctionType]]


@cache
def functions_of(path: Path) -> Functions:
    """The functions a loaded file defined, by name and first line."""
    functions: Functions = defaultdict(list)
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__.co_filename == str(path):
            functions[thing.__code__.co_qualname, thing.__code__.co_firstlineno].append(thing)
    return functions


def exchange(path: Path, source: str) -> bool:
    """Give the functions of a loaded file the code of another text of it; whether any was changed and none refused."""
    functions = functions_of(path)
    changed = False
    for code in _codes(compile(source, str(path), "exec", dont_inherit=True)):
        for function in functions.get((code.co_qualname, code.co_firstlineno), ()):
            if function.__code__ != code:
                try:
                    function.__code__ = code
                except ValueError:  # other free names
                    return False
                changed = True
    return changed


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)
