"""Verb demo: three simulated devices, the real daemon and the local page in a folder of their own; the first minute."""

import argparse
import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.cli.status_text import age, mark, shown_value, time_of
from gateway.cli.terminal import colour, complain, printable, say, say_json, table, width
from gateway.cli.verbs import Verbs, duration
from gateway.http.outcome import FINE, PROBLEM, NoDaemon, Refused
from gateway.http.shapes import socket_path
from gateway.sdk.errors import CitygateError

START_WITHIN_S = 30.0
STOP_WITHIN_S = 6.0
TABLE_EVERY_S = 1.0
LINES_EVERY_S = 10.0  # without a terminal
PR_SET_PDEATHSIG = 1  # prctl(2)

CONFIG = """\
# Written by `citygate demo`. A real box's file looks the same, with real ports.
version: 1

gateway:
  id: demo
  name: A street cabinet that is not there
  location: [9.1590, 45.5030]
  city: milano

buffer:
  path: {folder}/buffer.db
  commit_every: 5 s
  max_age: 7 d

links:
  roof-rs485:
    driver: modbus
    port: {folder}/rs485
    baud_rate: 9600
    devices:
      meter-12: {{template: eastron/sdm120, unit_id: 1, every: 2 s}}
  plant-net:
    driver: modbus
    host: 127.0.0.1
    port: {modbus_port}
    devices:
      meter-13: {{template: eastron/sdm120, unit_id: 1, every: 1 s}}
  air-uart:
    driver: serial
    port: {folder}/air
    devices:
      air-1: {{template: nova/sds011}}

http: {{listen: 127.0.0.1:{http_port}}}
clock: {{trust: system}}
"""
LINKS = ("roof-rs485", "plant-net", "air-uart")


def add_verbs(verbs: Verbs) -> None:
    """demo."""
    verb = verbs.add(
        "demo",
        demo,
        config=False,
        help="simulated devices, the real daemon and the page: the first minute",
        about="Two electricity meters (Modbus RTU and TCP) and a particle sensor, simulated, read by the real daemon; its page "
        "on a free port of this machine. Needs no broker, no root, no network, and leaves nothing behind.",
        examples=("citygate demo", "citygate demo --for 20s --json"),
    )
    verb.add_argument(
        "--for", dest="seconds", metavar="TIME", type=duration, help="end after this time, as in 20s (default: Ctrl-C)"
    )
    verb.add_argument("--keep", metavar="DIR", type=Path, help="keep config and buffer in this new folder")


def demo(given: argparse.Namespace) -> int:
    """`citygate demo`."""
    with _folder(given.keep) as folder:
        return asyncio.run(_demo(folder, given.seconds, as_json=given.json))


@dataclass(slots=True)
class Demo:
    """What runs: where it is, and the processes by name."""

    folder: Path
    url: str
    processes: dict[str, asyncio.subprocess.Process]

    async def status(self) -> dict[str, Any]:
        from gateway.http.control import ask

        found: dict[str, Any] = await ask(socket_path(self.folder / "buffer.db"), "status")
        return found


async def _demo(folder: Path, seconds: float | None, *, as_json: bool) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with _running(folder) as demo:
        await _until_started(demo, stop)
        if not as_json:
            _show_where(demo)
        await _watch(demo, stop, seconds, quiet=as_json)
        summary = await _summary(demo)
    if as_json:
        say_json(summary)
    else:
        counted = ", ".join(f"{summary[key]} {key}" for key in ("sets", "readings", "entities", "errors"))
        say(f"demo ended: {counted}")
    return FINE if summary["readings"] else PROBLEM


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        try:
            keep.mkdir(parents=True)
        except OSError as error:
            raise CitygateError(f"cannot make the folder {keep}: {error.strerror}") from error
        yield keep.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="citygate-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def _running(folder: Path) -> AsyncIterator[Demo]:
    """Simulators and daemon as processes of their own, ended in the other order."""
    http_port, modbus_port = _free_ports(2)
    config = folder / "citygate.yaml"
    config.write_text(CONFIG.format(folder=folder, modbus_port=modbus_port, http_port=http_port))
    from gateway.cli import box
    from gateway.registry import DriverUnavailable

    for problem in box.make_plan(config).warnings:
        if problem.code == "driver-unavailable":
            raise DriverUnavailable(problem.message, problem.remedy)
    demo = Demo(folder, f"http://127.0.0.1:{http_port}/", {})
    try:
        for link in LINKS:
            demo.processes[link] = await _start(folder, link, "simulate", "-c", str(config), "--link", link)
        demo.processes["daemon"] = await _start(folder, "daemon", "run", "-c", str(config))
        yield demo
    finally:
        for process in reversed(demo.processes.values()):
            await _end(process)


async def _start(folder: Path, name: str, *arguments: str) -> asyncio.subprocess.Process:
    with (folder / f"{name}.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us; we end the others in order
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


async def _end(process: asyncio.subprocess.Process) -> None:
    for send in (process.terminate, process.kill):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            send()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_WITHIN_S)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


async def _until_started(demo: Demo, stop: asyncio.Event) -> None:
    """Wait for the daemon's answer. Raises CitygateError with its last words when it ended instead."""
    deadline_s = asyncio.get_running_loop().time() + START_WITHIN_S
    while not stop.is_set():
        ended = [name for name, process in demo.processes.items() if process.returncode is not None]
        if ended or asyncio.get_running_loop().time() > deadline_s:
            name = ended[0] if ended else "daemon"
            said = (demo.folder / f"{name}.log").read_text(errors="replace").strip()[-2000:]
            raise CitygateError(f"{name} did not start; it said:\n{said or '(nothing)'}")
        try:
            await demo.status()
        except (NoDaemon, Refused):
            await _sleep(stop, 0.1)
        else:
            return


def _show_where(demo: Demo) -> None:
    config = (demo.folder / "citygate.yaml").read_text()
    modbus_port = config.partition("host: 127.0.0.1")[2].partition("port: ")[2].split()[0]
    pids = {name: str(process.pid) for name, process in demo.processes.items()}
    say(f"{colour('citygate demo', 'bold')}: three simulated devices, the real daemon; Ctrl-C ends it all")
    rows = [
        ("page", demo.url),
        ("config", str(demo.folder / "citygate.yaml")),
        ("status", f"{_command()} status -c {demo.folder}"),
        ("daemon", f"pid {pids['daemon']}"),
        ("meter-12", f"pid {pids['roof-rs485']}  Modbus RTU on {demo.folder}/rs485"),
        ("meter-13", f"pid {pids['plant-net']}  Modbus TCP on 127.0.0.1:{modbus_port}"),
        ("air-1", f"pid {pids['air-uart']}  SDS011 on {demo.folder}/air"),
    ]
    for line in table(rows, indent="  "):
        say(line)
    say(f"  try: kill {pids['roof-rs485']}, and see which device goes bad")
    say()


def _command() -> str:
    """How this command is called from here."""
    if shutil.which("citygate"):
        return "citygate"
    script = Path(sys.executable).with_name("citygate")
    if not script.exists():
        return f"{sys.executable} -m gateway"
    return os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)


async def _watch(demo: Demo, stop: asyncio.Event, seconds: float | None, *, quiet: bool) -> None:
    """Show the values until stopped or the time is up."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + seconds if seconds is not None else float("inf")
    screen = sys.stdout.isatty() and not quiet
    drawn, next_lines_s = 0, loop.time() + 3.0
    while not stop.is_set() and loop.time() < deadline_s:
        if screen or (not quiet and loop.time() >= next_lines_s):
            next_lines_s = loop.time() + LINES_EVERY_S
            drawn = await _draw(demo, drawn if screen else 0)
        await _sleep(stop, min(TABLE_EVERY_S, max(deadline_s - loop.time(), 0.0)))


async def _draw(demo: Demo, lines_before: int) -> int:
    """Print the table over the one before; returns its number of lines."""
    try:
        lines = value_lines(await demo.status())
    except (NoDaemon, Refused) as error:
        lines = [f"the daemon does not answer: {error}"]
    if lines_before:
        sys.stdout.write(f"\033[{lines_before}A\033[J")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    return len(lines)


def value_lines(status: dict[str, Any]) -> list[str]:
    """One line a device: state, its first values, how old."""
    now = time_of(status["gateway"]["now"])
    lines = []
    for link in status["links"].values():
        for name, device in link["devices"].items():
            heard = age(time_of(device.get("last_good_at")), now)
            said = f"{name:10} {heard:>6}  {printable(_said(link, device))}"
            lines.append(f"{mark(device['state'])} {said[: width() - 3]}")  # a line that wraps cannot be drawn over
    return lines


def _said(link: Mapping[str, Any], device: Mapping[str, Any]) -> str:
    """The first values of a device, or why there are none."""
    why = device["reason"] if link["state"] == "ok" else link["reason"]
    if device["state"] == "bad":
        return str(why).replace("_", " ")
    values = [f"{point} {shown_value(row)}" for point, row in list(device["points"].items())[:4]]
    return "   ".join(values)


async def _summary(demo: Demo) -> dict[str, Any]:
    """What was read until now: `{sets, readings, entities, errors, devices: {NAME: readings}}`."""
    try:
        status = await demo.status()
    except (NoDaemon, Refused) as error:
        complain(f"the daemon does not answer any more: {error}")
        return {"sets": 0, "readings": 0, "entities": 0, "errors": 1, "devices": {}}
    devices = {name: device for link in status["links"].values() for name, device in link["devices"].items()}
    return {
        "sets": sum(device["sets"] for device in devices.values()),
        "readings": sum(device["readings"] for device in devices.values()),
        "entities": await _entities(demo),
        "errors": sum(device["bad"] for device in devices.values()),
        "devices": {name: device["readings"] for name, device in devices.items()},
    }


async def _entities(demo: Demo) -> int:
    """How many entities the read API has."""
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(f"{demo.url}ngsi-ld/v1/entities?count=true&limit=0") as response,
        ):
            return int(response.headers.get("NGSILD-Results-Count", "0"))
    except (aiohttp.ClientError, OSError):
        return 0


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    """Until stopped, at most so long."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
