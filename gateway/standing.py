"""How the box stands with the operator's file: what is at work, what waits, what was refused, what is kept for a bad day."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.changes import Change, waiting
from gateway.config.explain import as_json
from gateway.config.last_good import Kept, LastGood, NotKept, Snapshot, Unpacked, snapshot
from gateway.config.loader import MAIN_FILE, config_files
from gateway.config.model import Config
from gateway.config.secrets import Secrets
from gateway.environment import NOTHING, Environment
from gateway.journal import event
from gateway.plan import Drivers, Plan, make_plan
from gateway.sdk.errors import ConfigError, Problem
from gateway.sdk.values import told

KEEP_AGAIN_S = 60.0
MAX_LINE = 1000
SHOWN = 20  # problems of a refused file; `citygate check` has all
CHECK = "`citygate check` lists what is wrong; mend it, then `citygate reload`"


@dataclass
class Standing:
    """One box and its file.

    Args:
        path: the operator's file or its folder.
        kept: where the last good config is kept; None keeps none.
        now: the time.
        environment: what the process is told from outside.

    Attributes:
        opened: what the daemon was started with: log, HTTP and clock are as it says; with when.
        since: when the config at work was read.
        running: the last good config, while that is at work.
        problems: why the file is not, newest try; with when.
        waiting: what only a restart of the daemon applies.
        fault: why no last good config could be kept.
    """

    path: Path
    registry: Drivers
    kept: LastGood | None
    now: Callable[[], datetime]
    environment: Environment = NOTHING
    opened: Config | None = None
    opened_at: datetime | None = None
    since: datetime | None = None
    running: Kept | None = None
    problems: tuple[Problem, ...] = ()
    refused_at: datetime | None = None
    waiting: tuple[Change, ...] = ()
    missing: tuple[Problem, ...] = ()
    fault: str = ""
    left_out: tuple[str, ...] = ()
    _unpacked: Unpacked | None = None
    _read: Snapshot | None = None
    _to_keep: Snapshot | None = None
    _due: asyncio.Event = field(default_factory=asyncio.Event)

    # --- reading ---------------------------------------------------------------------------------------------------

    def start(self, *, fall_back: bool) -> Plan:
        """The plan to start with: that of the file, else, when that may be, of the last good config.

        Raises:
            ConfigError: neither; with the problems of both.
        """
        try:
            plan = self.read()
        except Exception as error:
            self.refused(error)
            if not fall_back or self.kept is None:
                raise
            plan = self._from_last_good(self.kept, error)
        self.opened, self.opened_at = plan.config, self.now()
        self.at_work(plan)
        return plan

    def read(self, at_work: Plan | None = None) -> Plan:
        """The plan of the operator's file.

        Raises:
            ConfigError: with every problem.
        """
        before = self._snapshot()
        remembered = at_work.secret_texts if at_work is not None else {}
        plan = make_plan(self.path, self.registry, degraded=True, remembered=remembered, environment=self.environment)
        # somebody may be writing it: what is kept must be what was read
        self._read = before if before == self._snapshot() else None
        return plan

    def _snapshot(self) -> Snapshot | None:
        if self.kept is not None:
            with contextlib.suppress(NotKept):
                return snapshot(self.path)
        return None

    def _from_last_good(self, kept: LastGood, error: Exception) -> Plan:
        problems = error.problems if isinstance(error, ConfigError) else self.problems
        try:
            found = kept.read()
            if not self._is_ours(found):
                raise NotKept(f"the last good config {kept.file} is that of {found.config}")
            self._unpacked = Unpacked(found, self.environment.runtime)
            home = Path(found.config).parent
            plan = make_plan(self._unpacked.main, self.registry, degraded=True, home=home, environment=self.environment)
        except NotKept as why:
            self._forget_copy()
            raise ConfigError((*problems, _last_good_problem(self.kept, str(why)))) from error
        except ConfigError as second:
            shown = [self._unpacked.shown(problem) for problem in second.problems] if self._unpacked else []
            self._forget_copy()
            said = "the last good config cannot be used either"
            raise ConfigError((*problems, _last_good_problem(self.kept, said), *shown)) from error
        self.running = found
        event("last_good_config_at_work", of=found.at.isoformat(), config=found.config, reason=self._first())
        return plan

    def _is_ours(self, found: Kept) -> bool:
        """It is of this file; two boxes that share a folder for their state must not take each other's."""
        path = self.path.absolute()  # what is there cannot be asked: it may be gone, or locked
        return Path(found.config) in (path, path / MAIN_FILE)

    # --- what becomes of it ----------------------------------------------------------------------------------------

    def at_work(self, plan: Plan) -> None:
        """This plan is applied."""
        assert self.opened is not None
        self.since = self.now()
        self.waiting = waiting(self.opened, plan.config, plan.secrets)
        self.missing = tuple(p for p in plan.warnings if p.code == "missing-secret" and _is_at_work(plan, p))

    def taken(self) -> None:
        """What was read from the file is at work; it is to be kept."""
        self.problems, self.refused_at, self.running = (), None, None
        self._forget_copy()
        self.good()

    def good(self) -> None:
        """What was read works: keep it. Nothing was when the last good one itself is at work."""
        if self._read is not None:
            self._to_keep = self._read
            self._due.set()

    def refused(self, error: Exception) -> None:
        """The file cannot be used."""
        ours = Problem("internal", (), f"{type(error).__name__}: {error}", "please report it", file=str(self.path))
        self.problems = tuple(p for p in getattr(error, "problems", (ours,)) if p.severity == "error") or (ours,)
        self.refused_at = self.now()
        for problem in self.problems[:SHOWN]:
            where = f"{problem.file}:{problem.line}:{problem.column}"
            event("config_problem", where=where, reason=problem.message, remedy=problem.remedy)

    def _forget_copy(self) -> None:
        if self._unpacked is not None:
            self._unpacked.close()
            self._unpacked = None

    def close(self) -> None:
        """The daemon ends."""
        self._forget_copy()

    async def keep(self) -> None:
        """Write the last good config when there is a new one; a card that refuses is asked again."""
        while True:
            await self._due.wait()
            self._due.clear()
            found, kept = self._to_keep, self.kept
            if found is None or kept is None:
                continue
            config = str(self.file)
            try:
                written = await asyncio.to_thread(kept.write, found, config=config, at=self.now())
            except NotKept as error:
                if self.fault != str(error):
                    event("last_good_not_written", reason=str(error))
                self.fault = str(error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._due.wait(), KEEP_AGAIN_S)
                self._due.set()
                continue
            self.fault, self.left_out = "", found.left_out
            if written:
                event("last_good_written", file=str(kept.file), left_out=list(found.left_out))

    # --- secrets ---------------------------------------------------------------------------------------------------

    @property
    def file(self) -> Path:
        """The operator's main file."""
        return config_files(self.path)[0].absolute()

    def secrets(self, plan: Plan) -> dict[str, Any]:
        """Of each secret at work where it was read, what is there now and what takes that up; never a text:
        `{config, secrets: {NAME: {place, read_at, now: same | changed | gone, taken_up_by: reload | restart}}}`."""
        beside = self.file.parent / "secrets"
        now = Secrets(beside, self.environment)
        found = {}
        for name, text in plan.secret_texts.items():
            place = plan.secret_places.get(name, "")
            # what the service manager gave, it gives anew at a start alone
            by = "reload" if place in ("", str(beside / name)) else "restart"
            read_at = _utc(self.since if by == "reload" else self.opened_at)
            found[name] = {"place": place, "read_at": read_at, "now": _now(now, name, text), "taken_up_by": by}
        return {"config": str(self.file), "secrets": found}

    # --- showing ---------------------------------------------------------------------------------------------------

    def reasons(self) -> list[str]:
        """What of the file is not at work, one line each."""
        lines = []
        if self.running is not None:
            lines.append(
                f"config: the file is wrong, at work is the last good one of {_utc(self.running.at)}: {self._first()}; {CHECK}"
            )
        elif self.problems:
            lines.append(
                f"config: refused at {_utc(self.refused_at)}, at work is what was read at {_utc(self.since)}: {self._first()}; {CHECK}"
            )
        lines += [f"config: {row.text} waits for a restart of the daemon" for row in self.waiting]
        lines += [f"config: {problem.message}; {problem.remedy}" for problem in self.missing]
        if self.fault:
            lines.append(
                f"config: no last good one is kept: {self.fault}; a wrong file would stop this box at its start"
            )
        return [told(line, MAX_LINE) for line in lines]

    def _first(self) -> str:
        first = self.problems[0]
        place = f"{first.file}:{first.line}:{first.column}: " if first.line else f"{first.file}: " if first.file else ""
        path = ".".join(map(str, first.path))
        more = len(self.problems) - 1
        return f"{place}{path}{': ' if path else ''}{first.message}{f' (and {more} more)' if more else ''}"

    def status(self) -> dict[str, Any]:
        """For the status: `{path, using, since, refused_at, problems, waiting, last_good}`."""
        return {
            "path": str(self.path),
            "using": "last good" if self.running else "file",
            "since": _utc(self.since),
            "refused_at": _utc(self.refused_at),
            "problems": [as_json(problem) for problem in self.problems[:SHOWN]],
            "waiting": [{"path": row.path, "running": row.old, "file": row.new} for row in self.waiting],
            "last_good": {
                "path": str(self.kept.file) if self.kept else "",
                "of": _utc(self.running.at) if self.running else None,
                "fault": self.fault,
                "left_out": list(self.left_out),
            },
        }


def _now(secrets: Secrets, name: str, text: str) -> str:
    try:
        return "same" if secrets.get(name) == text else "changed"
    except LookupError:
        return "gone"


def _is_at_work(plan: Plan, problem: Problem) -> bool:
    """Whether what lacks its secret runs on; else its own state says it."""
    part, name = (*map(str, problem.path[:2]), "", "")[:2]
    if part == "links":
        return name not in plan.links or not plan.links[name].fault
    return part != "brokers" or name not in plan.brokers or not plan.brokers[name].fault


def _last_good_problem(kept: LastGood | None, said: str) -> Problem:
    return Problem("last-good", (), said, "mend the config", file=str(kept.file) if kept else "")


def _utc(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds").replace("+00:00", "Z")
