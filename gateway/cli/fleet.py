"""`check DIR…`: every box below some folders, and what two of them must not both have."""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.terminal import complain, say, say_json
from gateway.config import explain
from gateway.hidden import keep_secret
from gateway.http.outcome import CONFIG, FINE, UnknownName
from gateway.sdk.errors import ConfigError, Problem

if TYPE_CHECKING:
    from gateway.config.loader import Loaded
    from gateway.fleet import Box

NOT_BOXES = frozenset(("conf.d", "templates", "cities", "models", "secrets"))
OUR_KEYS = frozenset(("gateway", "links", "brokers", "base"))
SHOWN = 20  # problems of one code; --json has all
PROGRESS_EVERY_S = 0.2


@dataclass
class _Found:
    """What lies below the folders that were named.

    Attributes:
        boxes: main files, with whether somebody named them.
        closed: folders that this user may not look into.
    """

    boxes: dict[Path, bool] = field(default_factory=dict)
    closed: list[Path] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def look(self, path: Path) -> None:
        """A file or a folder that was named."""
        if os.path.isdir(path):
            self._folder(path)
        elif os.path.lexists(path):
            self.boxes[path] = True
        else:
            raise UnknownName(f"{path}: there is no such file or folder")

    def _folder(self, folder: Path) -> None:
        """A folder with a `citygate.yaml` is one box; else each YAML file may be one, and each folder in it is looked into."""
        from gateway.config.loader import MAIN_FILE
        from gateway.sdk.files import is_closed, listed

        real = os.path.realpath(folder)
        if real in self._seen:
            return
        self._seen.add(real)
        if is_closed(folder):
            self.closed.append(folder)
        elif os.path.lexists(folder / MAIN_FILE):
            self.boxes[folder / MAIN_FILE] = True
        else:
            for its in (Path(str(its)) for its in listed(folder)):
                if its.name.startswith(".") or its.name in NOT_BOXES:
                    continue
                if os.path.isdir(its):
                    self._folder(its)
                elif its.suffix in (".yaml", ".yml"):
                    self.boxes.setdefault(its, False)


def check(given: argparse.Namespace) -> int:
    """`citygate check DIR…`."""
    from gateway.fleet import collisions

    if given.config is not given.no_config or given.effective:
        raise UnknownName("-c and --effective are for one box; folders and files without -c are for many")
    found = _Found()
    for path in given.boxes:
        found.look(path)
    read = list(_read(found))
    boxes, left_out = _without_bases(read)
    if not boxes:
        raise UnknownName(f"no config of a box in {', '.join(map(str, given.boxes))}")
    problems = [*_closed(found.closed), *_same_files(boxes)]
    once = [box for box in boxes if box.files[0] not in {Path(problem.file) for problem in problems}]
    problems += collisions(once)
    ok = not any(p.severity == "error" for p in (*problems, *(its for box in boxes for its in box.problems)))
    if given.json:
        say_json({"ok": ok, "boxes": [_row(box) for box in boxes], "left_out": left_out, "problems": _rows(problems)})
    else:
        _say(boxes, problems, left_out)
    return FINE if ok else CONFIG


def _read(found: _Found) -> Iterator[tuple["Box", bool]]:
    """Each box, with whether it is one for sure."""
    from gateway.config.templates import Shelf
    from gateway.registry import Registry

    registry, shelf = Registry(), Shelf()
    shown_s = time.monotonic()
    for number, (file, named) in enumerate(found.boxes.items(), 1):
        yield _box(file, named, registry, shelf)
        if sys.stderr.isatty() and time.monotonic() - shown_s >= PROGRESS_EVERY_S:
            shown_s = time.monotonic()
            sys.stderr.write(f"\r{number} of {len(found.boxes)} files …\033[K")
            sys.stderr.flush()
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")


def _box(file: Path, named: bool, registry: Any, shelf: Any) -> tuple["Box", bool]:
    """One box as `check` sees it. Secrets are on the boxes, so none is looked up here, nor are variables of this machine."""
    from gateway.cli.configure import of_check
    from gateway.config.loader import MAIN_FILE, load
    from gateway.environment import NOTHING
    from gateway.fleet import Box, holdings
    from gateway.plan import Plan, find_driver, plan_of

    loaded = load(file, lambda name: find_driver(registry, name), with_secrets=False, environment=NOTHING, shelf=shelf)
    keep_secret(loaded.secrets)
    plan: Plan | None = None
    try:
        plan = plan_of(loaded, shelf=shelf)
        problems = tuple(of_check(problem) for problem in plan.warnings)
    except ConfigError as error:
        problems = error.problems
    gateway = loaded.gateway
    name = str(file.parent) if file.name == MAIN_FILE else str(file)
    where = (gateway.id, gateway.city) if gateway else ("", "")
    devices = sum(len(link.devices) for link in loaded.links.values())
    return Box(name, loaded.files, *where, devices, problems, holdings(loaded, plan)), named or _is_ours(loaded)


def _is_ours(loaded: "Loaded") -> bool:
    """Whether a file that was found, not named, is a config: what cannot be read might be."""
    unread = not loaded.root.entries and any(problem.severity == "error" for problem in loaded.problems)
    return unread or bool(OUR_KEYS & loaded.root.entries.keys())


def _without_bases(read: Sequence[tuple["Box", bool]]) -> tuple[list["Box"], list[str]]:
    """Boxes, and the names of files that are none; what others stand on is neither."""
    bases = {os.path.realpath(base) for box, _ in read for base in box.files if base != box.files[0]}
    boxes = [(box, ours) for box, ours in read if os.path.realpath(box.files[0]) not in bases] or list(read)
    return [box for box, ours in boxes if ours], [box.name for box, ours in boxes if not ours]


def _closed(folders: Iterable[Path]) -> Iterator[Problem]:
    for folder in folders:
        remedy = "may this user look into it?"
        yield Problem("unreadable-file", (), "the folder cannot be entered", remedy, file=str(folder))


def _same_files(boxes: Iterable["Box"]) -> Iterator[Problem]:
    first: dict[str, Box] = {}
    for box in boxes:
        owner = first.setdefault(os.path.realpath(box.files[0]), box)
        if owner is not box:
            message = f"this is the file of {owner.name}: it counts once"
            yield Problem("fleet-same-file", (), message, "a box of its own has a file of its own", "warning",
                          file=str(box.files[0]))  # fmt: skip


def _row(box: "Box") -> dict[str, Any]:
    report = explain.report(box.problems)
    return {
        "name": box.name,
        "ok": report["ok"],
        "gateway": box.gateway,
        "devices": box.devices,
        "files": [str(file) for file in box.files],
        "problems": report["problems"],
    }


def _rows(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    return [explain.as_json(problem) for problem in explain.in_order(problems)]


def _say(boxes: Sequence["Box"], problems: Sequence[Problem], left_out: Sequence[str]) -> None:
    """What is wrong in full, each once however many boxes have it; a line for each box with something wrong; the sum."""
    from gateway.cli.configure import summary

    having: dict[Problem, list[str]] = {}
    for box in boxes:
        for problem in dict.fromkeys(box.problems):
            having.setdefault(problem, []).append(box.name)
    _complain(having, having)
    _complain(problems, {})
    for box in boxes:
        if box.problems:
            say(f"{box.name}: {summary(box.problems)}")
    if problems:
        say(f"between boxes: {summary(tuple(problems))}")
    if left_out:
        say(f"no configs, left out: {', '.join(left_out)}")
    fine = sum(not box.problems for box in boxes)
    devices = sum(box.devices for box in boxes)
    say(f"{_counted(len(boxes), 'box', 'boxes')}, {_counted(devices, 'device', 'devices')}: "
        f"{'all fine' if fine == len(boxes) and not problems else f'{fine} without a problem of their own'}")  # fmt: skip


def _complain(problems: Iterable[Problem], having: Mapping[Problem, Sequence[str]]) -> None:
    told: dict[str, int] = {}
    for problem in explain.in_order(problems):
        told[problem.code] = told.get(problem.code, 0) + 1
        if told[problem.code] > SHOWN:
            continue
        names = having.get(problem, ())
        more = f"\n    in {len(names)} boxes: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        complain(explain.text(problem) + (more if len(names) > 1 else ""))
    for code, number in told.items():
        if number > SHOWN:
            complain(f"and {number - SHOWN} more of {code}; --json has them all")


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
