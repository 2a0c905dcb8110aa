"""The box that a verb works on: the running daemon by its control socket, else the port opened here under the same lock."""

import asyncio
import contextlib
import errno
import functools
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import yaml

from gateway.cli.outside import environment
from gateway.cli.terminal import complain
from gateway.hidden import keep_secret
from gateway.http.outcome import START, UNREACHABLE, NoDaemon, Refused, UnknownName
from gateway.http.shapes import socket_path
from gateway.sdk.errors import DRIVER_FAULT, CitygateError, FrameError, LinkError, said

if TYPE_CHECKING:
    from gateway.config.loader import Loaded
    from gateway.config.secrets import Held
    from gateway.plan import DevicePlan, Plan
    from gateway.sdk.driver import Exchange, Request
    from gateway.sdk.reading import ReadingSet, Value

READ_WITHIN_S = 30.0
START_WITHIN_S = 30.0
STOP_WITHIN_S = 10.0
TELL_WITHIN_S = 5.0
LEND_S = 60.0


def control_socket(config: Path) -> Path:
    """Where the daemon of this config listens, by what it noted of itself or by the file: the first at which somebody is.

    What the file says may not be at work yet, and what the service manager tells the daemon is not in our environment.
    """
    sockets = [socket_path(place) for place in _places(config)]
    return next((path for path in sockets if _somebody_at(path)), socket_path(buffer_path(config)))


def log_place(config: Path) -> Path:
    """Where the log of this config is that no daemon has open; where it is to be, when there is none yet."""
    by_file = buffer_path(config)
    found = next((place for place in _places(config) if os.path.exists(place)), by_file)
    if found != by_file:
        complain(f"! the daemon of this config had its log at {found}, the file says {by_file}")
    return found


def _places(config: Path) -> list[Path]:
    """Where its log may be, the likeliest first."""
    from gateway.config.place import noted_places

    told = environment()
    by_file, noted = buffer_path(config), noted_places(config, told)
    said_here = _path_told(told.overrides) is not None
    return list(dict.fromkeys((by_file, *noted) if said_here else (*noted, by_file)))


def _somebody_at(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except OSError as error:  # one who is busy is there, and so may be one that we may not reach
            return isinstance(error, TimeoutError) or error.errno in (errno.EACCES, errno.EPERM, errno.EAGAIN)
    return True


def main_file_of(config: Path) -> Path:
    """The file that this config means, as everybody may call it."""
    from gateway.config.loader import config_files

    return Path(os.path.realpath(config_files(config)[0]))


def is_other(config: Path, theirs: Path) -> bool:
    """Whether a daemon with that file runs another config than this one."""
    return main_file_of(config) != Path(os.path.realpath(theirs))


@functools.cache
def _remark(config: Path, theirs: Path) -> None:
    if is_other(config, theirs):
        complain(f"! the daemon here runs {theirs}, not {main_file_of(config)}")


def refuse_another(config: Path) -> None:
    """For what acts on the box. Raises UnknownName when the daemon here runs another file than this one; Refused."""
    heard: list[Path] = []
    try:
        asked(config, "status", TELL_WITHIN_S, heard.append, {})
    except NoDaemon:
        return
    except Refused:
        if not heard:
            raise
    for theirs in heard:
        if is_other(config, theirs):
            mine = main_file_of(config)
            raise UnknownName(
                f"the daemon here runs {theirs}, not {mine}; nothing was done: -c {theirs} means that one"
            )


def buffer_path(config: Path) -> Path:
    """Where the log of this config is to be.

    The file is only glanced at, because `status` has to work on a box whose new config is broken.
    """
    from gateway.config.model import BufferConfig
    from gateway.config.tree import MAX_FILE_BYTES
    from gateway.sdk.config import beside
    from gateway.sdk.files import read_bytes

    told = _path_told(environment().overrides)
    found = told or ""
    files = _lowest_first(config)
    folder = files[-1][0]
    for where, file in files if told is None else ():
        with contextlib.suppress(OSError):
            said = _path_in(read_bytes(file, MAX_FILE_BYTES).decode(errors="replace"))
            found, folder = (said, where) if said is not None else (found, folder)
    with contextlib.suppress(ValueError):  # ~nobody: told by whoever reads the file in full
        found = beside(folder, found) if found else ""
    return Path(found or BufferConfig().path)


class Names(NamedTuple):
    """Names of a config, each with the name that it had before, "" for none."""

    brokers: dict[str, str]
    devices: dict[str, str]


def names(config: Path) -> Names | None:
    """The brokers and devices of this config; None when it cannot be read.

    The file is only glanced at, as for `buffer_path`.
    """
    from gateway.config.tree import MAX_FILE_BYTES
    from gateway.sdk.files import read_bytes

    brokers: dict[str, str] = {}
    links: dict[str, dict[str, str]] = {}
    for _, file in _lowest_first(config):
        try:
            node: Any = yaml.compose(read_bytes(file, MAX_FILE_BYTES), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            for name, broker in _laid(brokers, _inside(node, "brokers")):
                brokers[name] = _was(broker) or brokers.get(name, "")
            for name, link in _laid(links, _inside(node, "links")):
                devices = links.setdefault(name, {})
                for device, its in _laid(devices, _inside(link, "devices")):
                    devices[device] = _was(its) or devices.get(device, "")
        except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError):
            return None
    if told := environment().overrides:
        laid = _names_told(brokers, links, told)
        if laid is None:
            return None
        brokers, links = laid
    return Names(brokers, {name: was for devices in links.values() for name, was in devices.items()})


def _names_told(
    brokers: dict[str, str], links: dict[str, dict[str, str]], overrides: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, dict[str, str]]] | None:
    """The same with what `CITYGATE__BROKERS__PORTO__URL` and its like add, take away and rename; None when they make no sense."""
    from gateway.config.tree import Entry, Map, Place, Scalar, Source, override

    place = Place(Source("", []), 0, 0)

    def tree(its: Mapping[str, Any]) -> Map:
        parts = {name: tree(part) if isinstance(part, Mapping) else Scalar(part, place) for name, part in its.items()}
        return Map({name: Entry(place, part) for name, part in parts.items()}, place)

    def inside(node: Any, name: str) -> dict[str, Any]:
        its = node.get(name) if isinstance(node, Map) else None
        return {key: entry.node for key, entry in its.entries.items()} if isinstance(its, Map) else {}

    def was(node: Any) -> str:
        its = node.get("was") if isinstance(node, Map) else None
        return its.text if isinstance(its, Scalar) else ""

    def entries(names: Mapping[str, str]) -> dict[str, dict[str, str]]:
        return {name: {"was": old} if old else {} for name, old in names.items()}

    known = {
        "brokers": entries(brokers),
        "links": {name: {"devices": entries(devices)} for name, devices in links.items()},
    }
    found = override(tree(known), overrides, [])
    if not all(isinstance(found.get(key), Map | None) for key in known):
        return None
    return (
        {name: was(node) for name, node in inside(found, "brokers").items()},
        {
            link: {name: was(its) for name, its in inside(node, "devices").items()}
            for link, node in inside(found, "links").items()
        },
    )


def _lowest_first(config: Path) -> list[tuple[Path, Path]]:
    """The files of a config, what wins last, each with the folder where its relative paths begin."""
    from gateway.config.loader import config_files, files_of

    main, fragments = config_files(config)
    bases = files_of(config)[1 + len(fragments) :]
    return [*((base.parent, base) for base in bases), *((main.parent, file) for file in (*fragments, main))]


def _inside(node: Any, name: str) -> list[Any]:
    """The values of a key."""
    return [value for key, value in (node.value or () if node is not None else ()) if key.value == name]


def _laid(known: dict[str, Any], parts: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """The entries of maps, one after the other; what is null is taken out of what is known from bases."""
    for part in parts:
        if _takes_away(part):
            known.clear()
            continue
        for name, its in part.value or ():
            if _takes_away(its):
                known.pop(str(name.value), None)
            else:
                yield str(name.value), its


def _was(node: Any) -> str:
    return next((str(was.value) for was in _inside(node, "was")), "")


def _takes_away(node: Any) -> bool:
    """Whether it is a null that somebody wrote: what a base has and this box has not."""
    return bool(node.tag.endswith(":null") and node.value)


def _path_told(overrides: Mapping[str, str]) -> str | None:
    """`buffer.path` as `CITYGATE__BUFFER__PATH` and its like say it; "" is the default, None is what the files say."""
    if not overrides:
        return None
    from gateway.config.tree import Entry, Map, Place, Scalar, Source, find, override

    place = Place(Source("", []), 0, 0)
    buffer = Map({"path": Entry(place, Scalar("", place))}, place)  # "": of the files
    found = find(override(Map({"buffer": Entry(place, buffer)}, place), overrides, []), ("buffer", "path"))
    if found.missing is not None:
        return ""
    return found.node.text or None if isinstance(found.node, Scalar) else None


def _path_in(text: str) -> str | None:
    """`buffer.path` of one file as far as it can be read; None when it says nothing, "" when it takes away what a base says."""
    try:
        node: Any = yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for key in ("buffer", "path"):
            node = next(value for name, value in node.value if name.value == key)
            if _takes_away(node):
                return ""
        return str(node.value) or None
    except yaml.YAMLError:
        near = re.search(
            r"^buffer:(?:[^\S\n]*\{[^}]*?|(?:[^\S\n]*\n[^\S\n]+.*)*?)\bpath:\s*['\"]?([^\s'\",}]+)", text, re.MULTILINE
        )
        return near[1] if near else None
    except (StopIteration, AttributeError, TypeError, ValueError, RecursionError):
        return None


def make_plan(
    config: Path,
    *,
    with_secrets: bool = True,
    degraded: bool = False,
    held: "Held | None" = None,
    home: Path | None = None,
) -> "Plan":
    """The plan of this config, as `gateway.plan.make_plan` makes it; from now on nothing that is said has its secrets.

    Args:
        degraded: see there.
        held: whom to ask of a secret that is not here; default: the running daemon.
        home: see `gateway.config.loader.load`.
    """
    from gateway import plan
    from gateway.cli.at_daemon import AtDaemon
    from gateway.registry import Registry

    asked, told = held or AtDaemon(config).held, environment()
    made = plan.make_plan(
        config,
        Registry(),
        with_secrets=with_secrets,
        degraded=degraded,
        held=asked,
        environment=told,
        home=home,
    )
    keep_secret(made.secrets)
    return made


def somebody_has_it(_: str) -> tuple[bool, str]:
    """For who does not need the text of a secret to go on."""
    return True, ""


def loaded(config: Path, *, with_secrets: bool = True) -> "Loaded":
    """What the files of this config say, right or wrong; from now on nothing that is said has its secrets."""
    from gateway.config.loader import load
    from gateway.plan import find_driver
    from gateway.registry import Registry

    registry = Registry()
    found = load(config, lambda name: find_driver(registry, name), with_secrets=with_secrets, environment=environment())
    keep_secret(found.secrets)
    return found


def ask(config: Path, verb: str, *, timeout_s: float = 40.0, **arguments: Any) -> Any:
    """Ask the running daemon; see `gateway.http.control.ask` for what it raises. One that runs another file is remarked upon."""
    return asked(config, verb, timeout_s, functools.partial(_remark, config), arguments)


def ask_of_this(config: Path, verb: str, **arguments: Any) -> Any:
    """As `ask`; a daemon that runs another file is remarked upon, and is none."""
    theirs: list[Path] = []

    def heard(file: Path) -> None:
        if is_other(config, file):
            theirs.append(file)
            _remark(config, file)

    try:
        answer = asked(config, verb, 40.0, heard, arguments)
    except Refused:
        if not theirs:
            raise
    if theirs:
        raise NoDaemon(f"the daemon here runs {theirs[0]}")
    return answer


def asked(config: Path, verb: str, timeout_s: float, heard: Callable[[Path], None], arguments: dict[str, Any]) -> Any:
    """The same for who wants to know which file the daemon runs."""
    from gateway.http.control import ask_now

    return ask_now(control_socket(config), verb, arguments, timeout_s=timeout_s, heard=heard)


def device_plan(plan: "Plan", name: str) -> "DevicePlan":
    """The device of this name. Raises UnknownName, or CitygateError when its driver cannot be had."""
    if name in plan.devices:
        return plan.devices[name]
    for link in plan.links.values():
        if name in link.device_names:
            raise CitygateError(f"link {link.name} of {name} is off: {link.fault}; {link.remedy}")
    raise UnknownName(f"no device {name}; there are {', '.join(sorted(plan.devices)) or 'none'}")


@dataclass
class Heard:
    """What a driver says of a link at work here: its notes by device ("" is the link), and what it could not read."""

    notes: dict[str, tuple[str, str]] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    def of(self, name: str) -> tuple[str, str]:
        """What is wrong and what to do; ("", "") when nothing is said."""
        return self.notes.get(name, ("", ""))

    def note(self, device: str, text: str, remedy: str) -> None:
        """As a driver's Context has it: an empty text takes it back."""
        self.notes[device] = text, remedy

    def reject(self, error: FrameError, *, device: str = "", remedy: str = "") -> None:
        """As a driver's Context has it; the latest are kept."""
        self.rejected = [*self.rejected[-3:], (said(error), remedy)]


@contextlib.asynccontextmanager
async def open_device(
    plan: "Plan", name: str, *, beside: Iterable[str] = (), heard: Heard | None = None
) -> "AsyncIterator[Callable[..., Awaitable[Exchange]]]":
    """The device of a box whose daemon does not run: its link's driver at work here, for this device alone.

    Args:
        beside: other devices of its link to be polled as well.
        heard: takes what the driver says of them.

    Yields:
        A function that reads the device once, or writes (point, value). It raises LinkError when the port is absent, taken or refuses.
    """
    from gateway.sdk.driver import Request, answered

    device = device_plan(plan, name)
    link = plan.links[device.link]
    for path, secret in plan.untold.items():
        if path[:2] == ("links", link.name):
            raise LinkError(
                f"link {link.name} needs the secret {secret}, which is not to be had here; {START}, then again"
            )
    assert link.driver is not None
    assert link.config is not None
    alone = link.config.model_copy(update={"devices": {each: plan.devices[each].config for each in (name, *beside)}})
    waiting: asyncio.Queue[Request] = asyncio.Queue()
    running = asyncio.create_task(link.driver.run(alone, driver_context(waiting, heard)), name=f"link {link.name}")

    async def read(point: str = "", value: "Value | None" = None) -> "Exchange":
        request = Request("read" if value is None else "write", name, point, value)
        waiting.put_nowait(request)
        either: set[asyncio.Future[Any]] = {running, request.reply}
        await asyncio.wait(either, timeout=READ_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        if request.reply.done():
            return answered(request.reply)
        request.reply.cancel()
        if running.done():
            _ended(link.driver_name, running)
        raise LinkError(f"link {link.name} did not come to the request within {READ_WITHIN_S:g} s")

    try:
        yield read
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):  # what it has to say was said
            await running


def _ended(driver: str, running: "asyncio.Task[None]") -> None:
    """Why a driver has ended: its LinkError says it; anything else is a fault of the driver."""
    try:
        running.result()
    except CitygateError:
        raise
    except Exception as error:
        raise CitygateError(f"driver {driver} failed: {type(error).__name__}: {said(error)}; {DRIVER_FAULT}") from error


class _Waiting:
    """The one-shot queue as a driver sees it."""

    def __init__(self, queue: "asyncio.Queue[Request]") -> None:
        self._queue = queue

    async def get(self) -> "Request":
        return await self._queue.get()

    def get_nowait(self) -> "Request | None":
        return None if self._queue.empty() else self._queue.get_nowait()


class _NotLogged:
    """The receipt of a set that only the terminal sees."""

    @property
    def durable(self) -> Awaitable[None]:
        # nothing is kept here, so a source that waits for this (MQTT) keeps it and sends it to the daemon
        return asyncio.get_running_loop().create_future()


@contextlib.asynccontextmanager
async def borrowed(config: Path, place: dict[str, Any]) -> AsyncIterator[None]:
    """The wire at `port`, or at `host` and `port`, for as long as this lasts: the running daemon leaves it, if it has it."""
    from gateway.http.control import ask

    path, refused = control_socket(config), ""

    async def lend(seconds: float) -> str:
        return str((await ask(path, "lend", {**place, "seconds": seconds}))["link"])

    async def again() -> None:
        while True:
            await asyncio.sleep(LEND_S / 3)
            with contextlib.suppress(CitygateError):
                await lend(LEND_S)

    try:
        link = await lend(LEND_S)
    except NoDaemon:
        link = ""
    except Refused as error:
        link, refused = "", "; ".join(filter(None, (str(error), error.remedy)))
    if not link:
        try:
            yield
        except LinkError as error:
            if not refused:
                raise
            raise LinkError(f"{error}; {refused}") from error
        return
    complain(f"the daemon leaves link {link} to this command; its devices are not read meanwhile")
    lending = asyncio.create_task(again(), name="lending")
    try:
        yield
    finally:
        lending.cancel()
        with contextlib.suppress(CitygateError):
            await lend(0)


def driver_context(waiting: "asyncio.Queue[Request]", heard: Heard | None = None) -> Any:
    """What a driver sees of a box whose daemon does not run: real ports and clock, nothing is logged."""
    from gateway.clock import SystemClock
    from gateway.sdk.driver import Context
    from gateway.sdk.streams import open_serial, open_tcp

    clock = SystemClock()

    async def emit(readings: "ReadingSet") -> _NotLogged:
        return _NotLogged()

    def ignore(*_: Any, **__: Any) -> None:
        """Counters, notes and offered times have no place here."""

    def reject(error: FrameError, *, device: str = "", remedy: str = "") -> None:
        """Noise before the answer; the request goes on."""

    return Context(
        emit=emit,
        reject=heard.reject if heard else reject,
        count=ignore,
        now=clock.now,
        monotonic_s=clock.monotonic_s,
        sleep=clock.sleep,
        progress=ignore,
        open_serial=open_serial,
        open_tcp=open_tcp,
        requests=_Waiting(waiting),
        offer_time=ignore,
        state={},
        note=heard.note if heard else ignore,
        up=ignore,
    )


@contextlib.contextmanager
def some_daemon(config: Path) -> Iterator[bool]:
    """A daemon that answers: the running one (True), else one of our own for as long as this lasts (False).

    Raises:
        CitygateError: our own did not start, with its last words.
        ConfigError: the config is invalid.
    """
    try:
        ask(config, "status")
    except NoDaemon:
        pass
    else:
        yield True
        return
    _refuse_to_be_another(buffer_path(config).parent)
    with tempfile.TemporaryFile() as said:
        process = _start_daemon(config, said)
        try:
            yield False
        finally:
            process.terminate()
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _refuse_to_be_another(folder: Path) -> None:
    """What a daemon of ours writes there, that of the service could not read."""
    try:
        owner = os.stat(folder).st_uid
    except OSError:
        return  # it is made, or told, by whoever starts
    if owner != os.geteuid():
        said = f"no daemon runs, and {folder} belongs to the user of one"
        raise Refused(said, UNREACHABLE, {"remedy": f"{START}, then again"})


def _start_daemon(config: Path, said: IO[bytes]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "gateway", "run", "-c", str(config)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    deadline_s = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(NoDaemon, Refused):
            ask(config, "status")
            return process
        time.sleep(0.05)
    process.kill()
    process.wait()
    said.seek(0)
    raise CitygateError(f"the daemon did not start; it said:\n{said.read().decode(errors='replace')[-2000:]}")
