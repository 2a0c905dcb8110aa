"""`make mutants`: does a test see it when the product is changed in one place?"""

import argparse
import contextlib
import difflib
import fcntl
import fnmatch
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.mutants import mutate
from tests.mutants.mutant import Mutant
from tests.mutants.mutate import mutants_of

# A folder or a module, and the tests that are to see its mutants; the most precise line counts.
SUITES = {
    "gateway/log/": ("tests/gateway/log",),
    "gateway/log/console.py": ("tests/gateway/cli/test_buffer.py", "tests/gateway/log"),
    "gateway/forward/": ("tests/gateway/forward",),
    "gateway/harmonise/": ("tests/gateway/harmonise",),
    "gateway/intake.py": (
        "tests/gateway/test_intake.py",
        "tests/gateway/test_link.py",
        "tests/gateway/test_link_states.py",
        "tests/gateway/test_privacy.py",
        "tests/gateway/test_thinning.py",
    ),
    "gateway/gate.py": ("tests/gateway/test_gate.py", "tests/gateway/test_intake.py", "tests/gateway/test_link.py"),
    "gateway/backoff.py": ("tests/gateway/test_backoff.py",),
    "gateway/claims.py": ("tests/gateway/test_claims_bounds.py", "tests/gateway/test_claims.py"),
    "gateway/supervisor.py": ("tests/gateway/test_supervisor.py", "tests/gateway/test_link.py"),
    "gateway/clock.py": ("tests/gateway/test_clock.py", "tests/gateway/log/test_time.py"),
    "gateway/plan.py": (
        "tests/gateway/test_plan.py",
        "tests/gateway/test_rules.py",
        "tests/gateway/cli/test_config_verbs.py",
        "tests/gateway/config/test_cases.py",
    ),
    "drivers/lora/codec/": ("tests/drivers/lora/codec", "tests/drivers/lora/test_layout.py"),
    "drivers/modbus/codec/": (
        "tests/drivers/modbus/codec",
        "tests/drivers/modbus/test_device.py",
        "tests/drivers/modbus/test_scan.py",
    ),
    "drivers/serial/codec/": ("tests/drivers/serial",),
}
EQUIVALENTS = Path("tests/mutants/equivalents.yaml")
STATE = Path(".mutants")  # in the checkout, kept between runs: copies, what the clean run showed, the verdicts
SEEN = ("killed", "timed out")


@dataclass(slots=True)
class Verdict:
    """What is remembered of a mutant, and of which state of its function and of the tests."""

    verdict: str
    by: str | None
    took_s: float
    state: str
    tests: str


def is_path(name: str) -> bool:
    return "/" in name or name.endswith(".py")


def _is_named(mutant: Mutant, name: str) -> bool:
    last = mutant.function.rpartition(".")[2]
    words = re.split(r"[._]", mutant.function)
    return (
        fnmatch.fnmatch(mutant.function, name)
        or fnmatch.fnmatch(last.strip("_"), name)
        or name in words
        or Path(mutant.module).stem == name
    )


class Equivalents:
    """Mutants that change nothing anybody can see, each with its reason; they are no part of the score."""

    def __init__(self, root: Path) -> None:
        self._root = root
        path = root / EQUIVALENTS
        entries = yaml.safe_load(path.read_text()) if path.exists() else None
        self._why = {(e["module"], e["function"], e["was"], e["becomes"]): e["why"] for e in entries or ()}
        self._met: set[tuple[str, ...]] = set()

    def why(self, mutant: Mutant) -> str | None:
        place = mutant.module, mutant.function, mutant.was, mutant.becomes
        if place in self._why:
            self._met.add(place)
        return self._why.get(place)

    def stale(self, modules: Iterable[str]) -> list[str]:
        """Entries of these modules that match nothing any more, and those of modules that are gone."""
        missed = [place for place in self._why if place not in self._met]
        gone = [place for place in missed if place[0] in modules or not (self._root / place[0]).exists()]
        return [f"{module}: {function}: {was} → {becomes}" for module, function, was, becomes in gone]


class Checkout:
    """The tree under test, what is remembered of it, and copies of it that may be spoilt."""

    def __init__(self, root: Path, suites: Mapping[str, Sequence[str]]) -> None:
        self.root = root
        self.suites = suites
        self.state = root / STATE
        self.state.mkdir(exist_ok=True)
        self._verdicts = self.state / "verdicts.jsonl"
        self.verdicts: dict[str, Verdict] = {}
        if self._verdicts.exists():
            for line in self._verdicts.read_text().splitlines():
                entry = json.loads(line)
                key = entry.pop("key")
                self.verdicts[key] = Verdict(**entry)

    def suite_of(self, module: str) -> str:
        return max((place for place in self.suites if module.startswith(place)), key=len)

    def modules(self) -> list[str]:
        places = [self.root / place for place in self.suites]
        files = {file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])}
        return sorted(str(file.relative_to(self.root)) for file in files)

    def mutants(self, names: Sequence[str]) -> list[Mutant]:
        """Those of the named modules (path, folder, glob) and functions (name, glob, or a word of the name)."""
        paths = [name for name in names if is_path(name)]
        functions = [name for name in names if not is_path(name)]
        found: list[Mutant] = []
        for module in self.modules():
            if paths and not any(module.startswith(path) or fnmatch.fnmatch(module, path) for path in paths):
                continue
            source = (self.root / module).read_text()
            known = self.state / "mutants" / f"{_digest(source, Path(mutate.__file__).read_text(), module)}.json"
            if not known.exists():
                known.parent.mkdir(exist_ok=True)
                known.write_text(json.dumps([asdict(mutant) for mutant in mutants_of(module, source)]))
            found += [Mutant(**entry) for entry in json.loads(known.read_text())]
        return [mutant for mutant in found if not functions or any(_is_named(mutant, name) for name in functions)]

    def remember(self, key: str, verdict: Verdict) -> None:
        self.verdicts[key] = verdict
        with self._verdicts.open("a") as file:
            file.write(json.dumps({"key": key, **asdict(verdict)}) + "\n")

    def copy(self, number: int) -> Path:
        """A copy of all that git knows or would take, brought up to date."""
        target = self.state / f"copy-{number}"
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=self.root,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split("\0")
        wanted = {name for name in names if name and (self.root / name).is_file()}
        for path in [path for path in target.rglob("*") if path.is_file()]:
            if str(path.relative_to(target)) not in wanted:
                path.unlink()
        for name in wanted:
            source, copied = self.root / name, target / name
            if not copied.exists() or copied.read_bytes() != source.read_bytes():
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copied)
        return target


class Suite:
    """The tests of one line of the table: what each costs and which lines it runs, by file of tests.

    Args:
        only: files with one of these in their name, not all of them.
    """

    def __init__(self, checkout: Checkout, place: str, only: Sequence[str] = ()) -> None:
        self._root = checkout.root
        self.place = place
        self.paths = checkout.suites[place]
        self._known = checkout.state / f"clean-{place.replace('/', '_')}.json"
        self._files = self._read()
        around = sorted((self._root / "tests/support").rglob("*.py"))
        product = sorted((self._root / place).rglob("*.py")) if place.endswith("/") else [self._root / place]
        self._base = _digest(*(path.read_text() for path in [*around, *product]))
        found = [self._root / path for path in self.paths]
        files = [file for path in found for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
        self._helpers = [path for path in files if not path.name.startswith("test_")]
        self.test_files = [str(p.relative_to(self._root)) for p in files if p.name.startswith("test_")]
        if only:
            self.test_files = [file for file in self.test_files if any(word in Path(file).name for word in only)]
        self.tests = _digest(*(path.read_text() for path in files))
        self._states = {file: self._state(file) for file in self.test_files}  # now: a run takes long

    def _read(self) -> dict[str, Any]:
        return json.loads(self._known.read_text()) if self._known.exists() else {}

    def _state(self, file: str) -> str:
        return _digest(self._base, *(path.read_text() for path in [*self._helpers, self._root / file]))

    def to_measure(self) -> list[str]:
        """Files of tests that are not measured as they are now, or did not pass when they were."""
        return [
            file
            for file in self.test_files
            if self._files.get(file, {}).get("state") != self._states[file] or self._failing(file) is not None
        ]

    def _failing(self, file: str) -> str | None:
        items = self._files[file]["items"]
        if items is None:
            return file
        return next((name for name, item in items.items() if not item["passes"]), None)

    def failing(self) -> list[str]:
        return [failing for file in self.test_files if (failing := self._failing(file))]

    def measured(self, file: str, items: dict[str, Any]) -> None:
        self._files[file] = {"state": self._states[file], "items": items}
        self._known.write_text(json.dumps(self._files))

    def tests_of(self, mutant: Mutant, first: Counter[str], longest_s: float, spend_s: float) -> dict[str, float]:
        """The tests that run its lines, and what each costs: those that killed its neighbours, then the quick ones.

        Of a test with parameters the first choice comes in the first round, the next in the second.

        Args:
            longest_s: what takes longer is left out.
            spend_s: for all of them; the rest is left out.
        """
        lines = set(range(mutant.line, mutant.last_line + 1))
        items = {
            name: (item, self._cost_s(file, item))
            for file in self.test_files
            for name, item in (self._files[file]["items"] or {}).items()
            if item["passes"]
        }
        running = {
            name: cost_s for name, (item, cost_s) in items.items() if lines & set(item["lines"].get(mutant.module, ()))
        }
        if not running:
            running = {name: cost_s for name, (item, cost_s) in items.items() if mutant.module in item["lines"]}
        short = {name: cost_s for name, cost_s in running.items() if cost_s <= longest_s}
        ordered = sorted(short.items(), key=lambda entry: (-first[entry[0]], entry[1], entry[0]))
        turns: Counter[str] = Counter()
        rounds = {}
        for name, _ in ordered:
            function = name.partition("[")[0]
            rounds[name] = turns[function]
            turns[function] += 1
        ordered.sort(key=lambda entry: rounds[entry[0]])
        spent_s = itertools.accumulate(cost_s for _, cost_s in ordered)
        return dict(entry for entry, so_far_s in zip(ordered, spent_s, strict=True) if so_far_s <= spend_s)

    def _cost_s(self, file: str, item: dict[str, Any]) -> float:
        """A fixture of the whole file is paid by whoever comes first."""
        shared_s = max(other["setup_s"] for other in self._files[file]["items"].values())
        return float(item["call_s"] + (shared_s if shared_s > 1 else item["setup_s"]))


class Server:
    """One pytest with the plugin, in a copy; its answers come as lines of a file."""

    def __init__(self, copy: Path, suite: Suite, work: dict[str, Any]) -> None:
        self._temporary = Path(tempfile.mkdtemp(prefix="mutants-"))
        (self._temporary / "work.json").write_text(json.dumps(work))
        out = self._temporary / "out.jsonl"
        out.touch()
        environment = os.environ | {
            "PYTHONPATH": str(copy),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self._temporary),
            "MUTANTS_WORK": str(self._temporary / "work.json"),
            "MUTANTS_OUT": str(out),
            "MUTANTS_PARENT": str(os.getpid()),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "tests.mutants.runner", "-p", "no:cacheprovider"]
        command += ["-p", "no:xdist", f"--basetemp={self._temporary / 't'}", *suite.test_files]
        self._said = (self._temporary / "said").open("w")
        self._process = subprocess.Popen(
            command,
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            start_new_session=True,
        )
        self._answers = out.open()
        self._part = ""

    def answers(self) -> Iterator[dict[str, Any]]:
        self._part += self._answers.read()
        *whole, self._part = self._part.split("\n")
        yield from (json.loads(line) for line in whole)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> str:
        """End it with all that it started; what it said, when it failed by itself."""
        failed = self._process.poll() not in (None, 0, 5)
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self._said.close()
        self._answers.close()
        said = (self._temporary / "said").read_text()[-3000:] if failed else ""
        shutil.rmtree(self._temporary, ignore_errors=True)
        return said


class Run:
    """Tries mutants, suite by suite, until all are tried or the time is up; all as the checkout was when it began."""

    def __init__(
        self,
        checkout: Checkout,
        mutants: Sequence[Mutant],
        *,
        jobs: int,
        longest_s: float,
        spend_s: float,
        until_s: float,
        only: Sequence[str] = (),
    ) -> None:
        self._checkout = checkout
        self._mutants = mutants
        places = {checkout.suite_of(mutant.module) for mutant in mutants}
        self._suites = {place: Suite(checkout, place, only) for place in places}
        self._jobs = jobs
        self._longest_s = longest_s
        self._spend_s = spend_s
        self._until_s = until_s
        self._done = 0
        self._started_s = time.monotonic()

    def tries(self) -> None:
        copies = [self._checkout.copy(number + 1) for number in range(self._jobs)]
        left: dict[str, list[Mutant]] = defaultdict(list)
        for mutant in self._mutants:  # in the sample's order: what is tried when the time is up is a sample too
            if not self.known(mutant):
                left[self._checkout.suite_of(mutant.module)].append(mutant)
        self._done = len(self._mutants) - sum(map(len, left.values()))
        for place, of_suite in sorted(left.items()):
            if self._in_time():
                self._suite(self._suites[place], of_suite, copies)
        self._say("")

    def known(self, mutant: Mutant) -> Verdict | None:
        """What was found before, while it holds: a kill until the function changes, a survivor until tests change too."""
        verdict = self._checkout.verdicts.get(mutant.key)
        if verdict is None or verdict.state != mutant.state:
            return None
        suite = self._suites[self._checkout.suite_of(mutant.module)]
        return verdict if verdict.verdict in SEEN or verdict.tests == suite.tests else None

    def _suite(self, suite: Suite, left: list[Mutant], copies: list[Path]) -> None:
        if stale := suite.to_measure():
            self._say(f"{suite.place}: clean run of {len(stale)} files of tests …")
            works = [{"clean": share, "folders": [suite.place], "mutants": []} for share in self._shares(stale)]
            for answer in self._served(suite, works, copies):
                suite.measured(answer["file"], answer["items"])
            if not self._in_time():
                return
            for name in suite.failing():
                self._say(f"left out, fails without a mutant: {name}\n")
        by_key = {mutant.key: mutant for mutant in left}
        first: dict[str, Counter[str]] = defaultdict(Counter)
        for key, verdict in self._checkout.verdicts.items():
            if verdict.by:
                first[key.partition(":")[0]][verdict.by] += 1
        entries = [self._entry(suite, mutant, first[mutant.module]) for mutant in left]
        works = [{"clean": [], "folders": [], "mutants": share} for share in self._shares(entries)]
        for answer in self._served(suite, works, copies):
            mutant = by_key[answer["key"]]
            self._done += 1
            if answer["verdict"] is None:
                self._say(f"{mutant.module}:{mutant.line} not judged, the tests take too long now\n")
                continue
            verdict = Verdict(answer["verdict"], answer["by"], answer["took_s"], mutant.state, suite.tests)
            self._checkout.remember(mutant.key, verdict)
            self._say(f"{mutant.module}:{mutant.line} {verdict.verdict}")

    def _entry(self, suite: Suite, mutant: Mutant, first: Counter[str]) -> dict[str, Any]:
        costs = suite.tests_of(mutant, first, self._longest_s, self._spend_s)
        return {
            "mutant": asdict(mutant),
            "tests": {name: 10 + 4 * cost_s for name, cost_s in costs.items()},
            "limit_s": 60 + 3 * sum(costs.values()),
        }

    def _shares(self, work: list[Any]) -> list[list[Any]]:
        return [share for number in range(self._jobs) if (share := work[number :: self._jobs])]

    def _served(self, suite: Suite, works: list[Any], copies: list[Path]) -> Iterator[dict[str, Any]]:
        servers = [Server(copy, suite, work) for copy, work in zip(copies, works, strict=False)]
        try:
            while self._in_time():
                over = all(server.ended for server in servers)
                for server in servers:
                    yield from server.answers()
                if over:
                    return
                time.sleep(0.1)
        finally:
            for said in [server.close() for server in servers]:
                if said:
                    print(f"\npytest failed:\n{said}", file=sys.stderr)

    def _in_time(self) -> bool:
        return time.monotonic() < self._until_s

    def _say(self, what: str) -> None:
        passed_s = time.monotonic() - self._started_s
        end = "" if what and sys.stdout.isatty() else "\n"
        print(
            f"\r\033[K[{self._done}/{len(self._mutants)} · {passed_s:.0f} s] {what}"
            if sys.stdout.isatty()
            else f"[{self._done}/{len(self._mutants)} · {passed_s:.0f} s] {what}",
            end=end,
            flush=True,
        )


def sample(mutants: Sequence[Mutant], size: int, seed: int) -> list[Mutant]:
    """As good as random, yet who is in it depends on no other mutant: it stays when code elsewhere changes."""
    return sorted(mutants, key=lambda mutant: _digest(str(seed), mutant.key))[:size]


def table(run: Run, mutants: Sequence[Mutant], equivalents: Equivalents) -> float:
    """Print what came of them, survivors by name; the score of all in percent."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    survivors: list[tuple[Mutant, str]] = []
    for mutant in mutants:
        verdict = run.known(mutant)
        what = verdict.verdict if verdict else "untried"
        why = equivalents.why(mutant)
        if why is not None and what not in SEEN:
            print(
                f"equivalent: {mutant.module}:{mutant.line} {mutant.function}: {mutant.was} → {mutant.becomes}\n    {why}"
            )
            what = "equivalent"
        elif why is not None:
            print(f"called equivalent but {what}: {mutant.key}")
        if what in ("survived", "no test"):
            survivors.append((mutant, what))
        counts[mutant.module][what] += 1
    for mutant, what in survivors:
        print(f"\n{_id(mutant)} {what}: {mutant.module}:{mutant.line} {mutant.function}")
        print(f"  - {mutant.was}\n  + {mutant.becomes}")
    head = ("module", "mutants", "tried", "killed", "timed out", "survived", "equivalent", "score")
    print("\n" + " | ".join(head))
    whole: Counter[str] = Counter()
    for module in sorted(counts):
        whole += counts[module]
        print(_row(module, counts[module]))
    print(_row("all", whole))
    return _score(whole)


def _row(name: str, count: Counter[str]) -> str:
    lost = count["survived"] + count["no test"]
    tried = count["killed"] + count["timed out"] + lost + count["equivalent"]
    cells = (name, count.total(), tried, count["killed"], count["timed out"], lost, count["equivalent"])
    return " | ".join(str(cell) for cell in cells) + f" | {_score(count):.0f} %"


def _score(count: Counter[str]) -> float:
    seen = count["killed"] + count["timed out"]
    tried = seen + count["survived"] + count["no test"]
    return 100 * seen / tried if tried else 100.0


def show(checkout: Checkout, mutants: Sequence[Mutant], wanted: str) -> None:
    for mutant in mutants:
        if wanted in (_id(mutant), mutant.key):
            source = (checkout.root / mutant.module).read_text()
            was, becomes = (text.splitlines(keepends=True) for text in (source, mutant.applied(source)))
            sys.stdout.writelines(difflib.unified_diff(was, becomes, f"a/{mutant.module}", f"b/{mutant.module}"))
            verdict = checkout.verdicts.get(mutant.key)
            print(f"{verdict.verdict} {verdict.by or ''} {verdict.took_s} s" if verdict else "untried")


def _id(mutant: Mutant) -> str:
    return _digest(mutant.key)[:7]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def main(
    arguments: Sequence[str] | None = None,
    root: Path = Path(),
    suites: Mapping[str, Sequence[str]] = SUITES,
) -> int:
    parser = argparse.ArgumentParser(prog="make mutants ARGS=…", description=__doc__)
    parser.add_argument("names", nargs="*", help="modules (path, folder, glob) and functions (name, glob, word of it)")
    parser.add_argument("--all", action="store_true", help="every mutant of what is named, not a sample")
    parser.add_argument("--functions", default="", help="names with commas between them")
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--longest", type=float, default=30, help="seconds; tests that take longer are left out")
    parser.add_argument(
        "--spend", type=float, default=600, help="seconds; tests of one mutant, the likeliest come first"
    )
    parser.add_argument("--tests", default="", help="only files of tests with one of these words in their name")
    parser.add_argument("--list", action="store_true", help="how many there are and what is known of them; tries none")
    parser.add_argument("--show", help="the diff of a survivor, by the seven digits before it")
    parser.add_argument("--fail-under", type=float, default=0, help="percent; the exit code is 1 below")
    options = parser.parse_args(arguments)
    checkout = Checkout(root.absolute(), suites)
    with (checkout.state / "lock").open("w") as lock:
        every = mutants = checkout.mutants([*options.names, *filter(None, options.functions.split(","))])
        if options.show:
            show(checkout, every, options.show)
            return 0
        if not options.all and len(every) > options.sample:
            mutants = sample(every, options.sample, options.seed)
        equivalents = Equivalents(checkout.root)
        for mutant in every:
            equivalents.why(mutant)
        narrowed = options.functions or not all(map(is_path, options.names))
        seen = set() if narrowed else {mutant.module for mutant in every}
        until_s = time.monotonic() + 60 * options.minutes
        run = Run(
            checkout,
            mutants,
            jobs=options.jobs,
            longest_s=options.longest,
            spend_s=options.spend,
            until_s=until_s,
            only=[*filter(None, options.tests.split(","))],
        )
        if not options.list:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                parser.error("another run is at work in this checkout")
            with contextlib.suppress(KeyboardInterrupt):
                run.tries()
        score = table(run, sorted(mutants, key=lambda mutant: mutant.key), equivalents)
    for entry in equivalents.stale(seen):
        print(f"no such mutant any more: {EQUIVALENTS}: {entry}")
    return int(score < options.fail_under)


def program(suites: Mapping[str, Sequence[str]] = SUITES) -> int:
    """SIGTERM is as good as Ctrl-C: what was started ends, what was found is told."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return main(suites=suites)


if __name__ == "__main__":
    sys.exit(program())
