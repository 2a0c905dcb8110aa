"""The verb `add`: a device into the operator's file, asked for what is missing and tried before it is written."""

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway.cli import box, configure
from gateway.cli.configure import latitude_longitude, main_file, writing
from gateway.cli.terminal import complain, say, say_json
from gateway.cli.verbs import Verbs
from gateway.config import edit, explain
from gateway.http.outcome import FINE, PROBLEM, UNREACHABLE, NoDaemon, UnknownName
from gateway.sdk.errors import CitygateError, ConfigError, Problem

if TYPE_CHECKING:
    from gateway.plan import Plan

TRIES = 8  # a line is judged by no fewer requests
PATIENCE_S = 12.0
NEIGHBOURS = 2  # of a silent device: do others on its line answer?
ASKABLE = {"missing-key", "mapping-location"}


def add_verbs(verbs: Verbs) -> None:
    """add."""
    verb = verbs.add(
        "add",
        add,
        help="put a device into the config: tested live first, comments kept",
        about="Check the config as it would be, read the device once, then write it: only lines are added. A device that does "
        "not answer is not written unless --save-anyway says so. A daemon that runs on the link keeps its port: then the "
        "device is written without the test, and `citygate reload` and `citygate read` follow. A new link is made in the "
        "same command, and so is the config of a new box. At a terminal what is missing is asked for.",
        examples=(
            "citygate add roof-rs485 meter-14 eastron/sdm120 unit_id=3 every='10 s'",
            "citygate add air-uart air-2 nova/sds011 --link port=/dev/ttyAMA0",
            "citygate add -c ./new-box --location 45.503,9.159 air-uart air-1 nova/sds011 --link port=/dev/ttyAMA0",
            "citygate add roof-rs485 meter-15 eastron/sdm120 unit_id=4 report.voltage.on_change=0.5 --save-anyway",
        ),
    )
    verb.add_argument("link_name", metavar="LINK", help="the link it hangs on")
    verb.add_argument("device", metavar="DEVICE", help="its name, new in the whole config")
    verb.add_argument("template", metavar="TEMPLATE", help="device type, as in eastron/sdm120")
    verb.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="its keys, as in unit_id=3; dots go deeper")
    verb.add_argument(
        "--link", metavar="KEY=VALUE", action="append", default=[], help="a key of the link, if that is new"
    )
    verb.add_argument(
        "--location",
        metavar="LAT,LON",
        type=latitude_longitude,
        help="where it stands; in a new config: where the box stands",
    )
    verb.add_argument("--save-anyway", action="store_true", help="write it even if it does not answer")
    verb.add_argument("--no-test", action="store_true", help="do not try to read it")


@dataclass
class _Wanted:
    """What is to be put into the file; `link` is None when the link is there already."""

    link_name: str
    device: str
    settings: dict[str, Any]
    link: dict[str, Any] | None

    def put(self, config: Path, home: Path | None = None) -> Path:
        return edit.put_device(config, self.link_name, self.device, self.settings, self.link, home=home)


@dataclass(frozen=True)
class _Tried:
    """What came of trying the device: the exit code, and in words what is wrong and what to do."""

    code: int
    words: str = ""
    remedy: str = ""


def add(given: argparse.Namespace) -> int:
    """`citygate add`."""
    import tempfile

    new_box = not os.path.lexists(main_file(given.config))
    with tempfile.TemporaryDirectory(prefix="citygate-add-") as name, _as_of(main_file(given.config).parent, name):
        trial = _new(given, Path(name)) if new_box else _copy(given.config, Path(name))
        wanted = _wanted(given, trial, new_box=new_box)
        plan = _planned(trial, wanted, given.config)
        _warn(plan, wanted, trial, given.config)
        tested = not given.no_test and _is_free(given.config, given.link_name)
        tried = _try(plan, given) if tested else _Tried(FINE)
        if tried.code != FINE and not given.save_anyway:
            _not_written(given, tried)
            return tried.code
        with writing(main_file(given.config).parent):
            file = _write(given, wanted, trial, new_box=new_box)
    if given.json:
        answered = tested and tried.code == FINE
        say_json({"device": given.device, "file": str(file), "tested": tested, "answered": answered, **_said(tried)})
        return FINE
    say(f"{given.device} is in {file}{'' if tested else ', untested'}; {_next(given, new_box=new_box)}")
    return FINE


def _said(tried: _Tried) -> dict[str, str]:
    return {"reason": tried.words, "remedy": tried.remedy} if tried.words else {}


def _next(given: argparse.Namespace, *, new_box: bool) -> str:
    if new_box:
        return f"`citygate run -c {given.config}` runs it"
    return "a running daemon takes it up with `citygate reload`"


def _not_written(given: argparse.Namespace, tried: _Tried) -> None:
    if given.json:
        say_json({"device": given.device, "file": None, "tested": True, "answered": False, **_said(tried)})
    complain(f"{given.device} is not written; --save-anyway writes it all the same")


def _wanted(given: argparse.Namespace, trial: Path, *, new_box: bool) -> _Wanted:
    settings = {"template": given.template, **_settings(given.settings)}
    if given.location and not new_box:
        settings.setdefault("location", given.location)
    known = edit.link_names(trial, _home(given.config))
    link: dict[str, Any] | None = _settings(given.link) or None
    if given.link_name in known:
        return _Wanted(given.link_name, given.device, settings, link)  # keys of a link that is there are refused
    if link is None and not sys.stdin.isatty():
        raise ConfigError(edit.no_link(given.link_name, known))
    link = link or {}
    if "driver" not in link:
        link = {"driver": _driver_of(given.template, given.config), **link}
    return _Wanted(given.link_name, given.device, settings, link)


def _home(config: Path) -> Path:
    """Where the files of a trial are at home."""
    return main_file(config).parent.absolute()


def _driver_of(template: str, config: Path) -> str:
    """The driver that has this template."""
    from gateway.cli.devices import find_template
    from gateway.config.loader import folders_of
    from gateway.registry import Registry

    own = [folder / "templates" for folder in folders_of(config)]
    folder = next((folder for folder in own if (folder / f"{template}.yaml").is_file()), own[0])
    try:
        return find_template(template, folder, Registry())[0].name
    except UnknownName as error:
        raise UnknownName(str(error).replace("add --driver NAME", "add --link driver=NAME")) from None


def _new(given: argparse.Namespace, folder: Path) -> Path:
    """The config of a new box, as `init` writes it."""
    target = main_file(given.config)
    trial = folder / target.name
    trial.write_text(configure.new_config(given.config, location=given.location)[0], encoding="utf-8")
    return trial


def _write(given: argparse.Namespace, wanted: _Wanted, trial: Path, *, new_box: bool) -> Path:
    from gateway.cli.editor import Editor

    file = main_file(given.config)
    if not new_box:
        written = wanted.put(given.config)
        Editor(file.parent).refresh()  # the device's type may be new in templates/
        return written
    configure.write_new(given.config, trial.read_text(encoding="utf-8"), Editor(file.parent))
    return file


@contextlib.contextmanager
def _as_of(folder: Path, copy: str) -> Iterator[None]:
    """What is wrong with the copy is told as of the folder it was made of."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(tuple(_at_home(problem, copy, folder) for problem in error.problems)) from None


def _at_home(problem: Problem, copy: str, folder: Path) -> Problem:
    told = {name: getattr(problem, name).replace(copy, str(folder)) for name in ("file", "message", "remedy")}
    return replace(problem, **told)


def _planned(trial: Path, wanted: _Wanted, config: Path) -> "Plan":
    """The plan with the device in it; at a terminal what is missing is asked for."""
    as_it_was = {file: file.read_bytes() for file in (trial, *(trial.parent / "conf.d").glob("*.y*ml"))}
    while True:
        try:
            for file, content in as_it_was.items():
                file.write_bytes(content)
            wanted.put(trial, _home(config))
            # what lacks its secret is no hindrance to others
            return box.make_plan(trial, degraded=True, home=_home(config))
        except ConfigError as error:
            missing = [problem for problem in error.problems if _settings_of(problem, wanted) is not None]
            if not (sys.stdin.isatty() and missing):
                raise ConfigError(tuple(_shown(problem, wanted) for problem in error.problems)) from None
            for problem in missing:
                _ask(problem, wanted)


def _settings_of(problem: Problem, wanted: _Wanted) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """Where an answer to this problem goes: the settings of device or link, and the path in them. None: no question."""
    path = tuple(map(str, problem.path))
    above = ("links", wanted.link_name)
    if problem.code not in ASKABLE or path[:2] != above:
        return None
    inside: tuple[str, ...] = ("location",) if problem.code == "mapping-location" else ()
    if path[2:4] == ("devices", wanted.device) and (path[4:] or inside):
        return wanted.settings, path[4:] or inside
    if wanted.link is not None and len(path) > 2 and path[2] != "devices":
        return wanted.link, path[2:]
    return None


def _shown(problem: Problem, wanted: _Wanted) -> Problem:
    """The problem with the words that this command takes."""
    remedy = problem.remedy
    if (where := _settings_of(problem, wanted)) is not None:
        settings, path = where
        option = "--link " if settings is wanted.link else ""
        example = "--location LAT,LON" if path == ("location",) else f"{option}{'.'.join(path)}=…"
        remedy = f"{remedy}; in this command: {example}" if remedy else f"in this command: {example}"
    return replace(problem, remedy=remedy)


def _ask(problem: Problem, wanted: _Wanted) -> None:
    """Put the answer of the person at the terminal where it belongs."""
    where = _settings_of(problem, wanted)
    assert where is not None
    settings, path = where
    key = ".".join(path)
    if path == ("location",):
        settings["location"] = _answer("where does it stand? LAT,LON: ", latitude_longitude)
        return
    if path[-1] == "port" and (ports := _ports()):
        complain(f"ports of this box: {', '.join(ports)}")
    hint = f" ({problem.remedy})" if problem.remedy else ""
    for part in path[:-1]:
        settings = settings.setdefault(part, {})
    settings[path[-1]] = _answer(f"{key}{hint}: ", lambda text: _value(f"{key}={text}", text))


def _answer(question: str, read: Callable[[str], Any]) -> Any:
    """What a person answers; asked again until it can be read, an empty line gives up."""
    while True:
        sys.stderr.write(question)
        sys.stderr.flush()
        text = sys.stdin.readline().strip()
        if not text:
            raise UnknownName("nothing is written")
        try:
            return read(text)
        except (argparse.ArgumentTypeError, UnknownName) as error:
            complain(str(error))


def _ports() -> tuple[str, ...]:
    from gateway.config.sample import look_around

    return look_around().ports


def _warn(plan: "Plan", wanted: _Wanted, trial: Path, config: Path) -> None:
    """What `check` warns of in the new device or link; the others are counted."""
    about = (
        ("links", wanted.link_name)
        if wanted.link is not None
        else ("links", wanted.link_name, "devices", wanted.device)
    )
    mine = [problem for problem in plan.warnings if tuple(map(str, problem.path))[: len(about)] == about]
    for problem in explain.in_order(mine):
        complain(explain.text(_at_home(_shown(problem, wanted), str(trial.parent), main_file(config).parent)))
    if others := len(plan.warnings) - len(mine):
        complain(f"{others} warning{'s' if others > 1 else ''} of what was there before: `citygate check`")


def _settings(pairs: list[str]) -> dict[str, Any]:
    """`a=1 b.c=x` as nested keys; a value is a number, flag or list only when it is written as one."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise UnknownName(f"{pair!r} is not KEY=VALUE, as in unit_id=3")
        *above, last = key.split(".")
        inner = found
        for part in above:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UnknownName(f"{pair!r}: {part} has a value already")
        if last in inner:
            raise UnknownName(f"{key} is given twice")
        inner[last] = _value(pair, text)
    return found


def _value(pair: str, text: str) -> Any:
    if text.startswith(("[", "{")):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            raise UnknownName(f"{pair!r}: what begins with a bracket is JSON, as in location=[9.1,45.5]") from None
    if re.fullmatch(r"-?(?:0|[1-9][0-9]{0,17})", text):
        return int(text)
    return {"true": True, "false": False}.get(text, text)


def _copy(config: Path, folder: Path) -> Path:
    """The config in a folder of its own: its YAML files as copies, all else linked. Returns its main file."""
    from gateway.config.loader import FRAGMENTS, config_files

    main, fragments = config_files(config)
    (folder / FRAGMENTS).mkdir()
    for file in (main, *fragments):
        try:
            shutil.copyfile(file, folder / file.relative_to(main.parent))
        except OSError as error:
            raise CitygateError(f"{file} cannot be read: {error.strerror or error}") from error
    for other in main.parent.iterdir():
        if not (folder / other.name).exists():
            (folder / other.name).symlink_to(other.resolve())
    return folder / main.name


def _is_free(config: Path, link: str) -> bool:
    """Whether no daemon holds the link's port."""
    try:
        return link not in box.ask(config, "status").get("links", {})
    except NoDaemon:
        return True


def _try(plan: "Plan", given: argparse.Namespace) -> _Tried:
    """Read the new device and say what it says, or in a line what is wrong and what to do."""
    from gateway.cli.devices import read_code, reading_lines
    from gateway.http.shapes import reading_rows

    heard = box.Heard()
    try:
        exchange = asyncio.run(_listen(plan, given.device, heard))
    except CitygateError as error:
        tried = _Tried(UNREACHABLE, str(error), _port_remedy(plan, given.device))
        complain(f"{given.device}: {tried.words}")
        if tried.remedy:
            complain(f"    → {tried.remedy}")
        return tried
    rows = reading_rows(box.device_plan(plan, given.device).template, exchange.readings)
    good = any(row["quality"] == "good" for row in rows)
    if good and not given.json:
        for line in reading_lines(rows):
            say(line)
    link_words, own_words = heard.of(""), heard.of(given.device)
    said = [pair for pair in (own_words, link_words) if pair[0]]
    words, remedy = said[0] if said else ("", "") if good else _reasons(plan, given.device, rows, heard)
    if words:
        complain(f"{given.device}: {words}")
        complain(f"    → {remedy}")
    code = FINE if good and not own_words[0] else PROBLEM if good else read_code(rows) or PROBLEM
    return _Tried(code, words, remedy)


def _port_remedy(plan: "Plan", device: str) -> str:
    """The ports that there are, when the one in the file is not."""
    port = getattr(plan.links[box.device_plan(plan, device).link].config, "port", None)
    if isinstance(port, str) and port.startswith("/") and not Path(port).exists() and (ports := _ports()):
        return f"ports of this box: {', '.join(ports)}"
    return ""


def _reasons(plan: "Plan", device: str, rows: list[dict[str, Any]], heard: box.Heard) -> tuple[str, str]:
    """Why there is no value, as `status` says it: once for all points, with what the driver could not read."""
    from gateway.link import remedies

    config = plan.links[box.device_plan(plan, device).link].config
    assert config is not None  # it was read
    reasons = list(dict.fromkeys(row["reason"] for row in rows))
    words = (
        ", ".join("it does not answer" if reason == "timeout" else reason for reason in reasons) or "it says nothing"
    )
    remedy = remedies(config).get(reasons[0] if reasons else "timeout", "")
    if heard.rejected:
        last, its_remedy = heard.rejected[-1]
        return f"{words}; what came: {last}", its_remedy or remedies(config)["bad_frame"]
    return words, remedy


async def _listen(plan: "Plan", device: str, heard: box.Heard) -> Any:
    """Read it until it is known how it is: twice when it answers, a few times when it does not."""
    its_link = plan.links[box.device_plan(plan, device).link].devices
    beside = [name for name in its_link if name != device][:NEIGHBOURS]
    give_up_s = time.monotonic() + PATIENCE_S
    async with box.open_device(plan, device, beside=beside, heard=heard) as read_once:
        exchange = None
        for tries in range(TRIES):
            started_s = time.monotonic()
            last = await read_once()
            good = any(reading.quality == "good" for reading in last.readings)
            exchange = last if good or exchange is None else exchange
            took_s = time.monotonic() - started_s
            known = heard.of(device)[0] or (heard.of("")[0] and tries >= len(beside))
            if known or (good and tries) or time.monotonic() + took_s > give_up_s:
                break
        return exchange
