"""Verb simulate: play the devices of a config on ptys and sockets, so that the real daemon can be tried without hardware."""

import argparse
import asyncio
import contextlib
import math
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

import orjson

from gateway.cli import box, street
from gateway.cli.terminal import complain
from gateway.cli.verbs import Verbs
from gateway.http.outcome import FINE, UnknownName
from gateway.http.shapes import utc
from gateway.registry import DriverUnavailable, Registry
from gateway.sdk.config import parse_duration_s
from gateway.sdk.errors import CitygateError
from gateway.sdk.quantities import conversion, quantities
from gateway.sdk.recording import parsed
from gateway.sdk.simulator import Faults, Playback, World

if TYPE_CHECKING:
    from gateway.plan import DevicePlan, LinkPlan, Plan

COUNTS = 10_000  # a counter starts again after so many values at most


def add_verbs(verbs: Verbs) -> None:
    """simulate."""
    verb = verbs.add(
        "simulate",
        simulate,
        help="play the devices of a config, without hardware",
        about="Play the devices of a config at the places where it expects them: a pty linked at a serial port's path, a "
        "listening socket at a host and port of this machine. A real port is never touched.",
        examples=(
            "citygate simulate -c ./my-box",
            "citygate simulate -c ./my-box --link roof-rs485 --values counter --served served.jsonl",
            "citygate simulate -c ./my-box --silent meter-12",
        ),
    )
    verb.add_argument("--link", metavar="NAME", action="append", help="only this link (may be repeated)")
    verb.add_argument(
        "--values",
        choices=("wave", "counter"),
        default="wave",
        help="wave: like a street; counter: each value names itself, for tests (default: wave)",
    )
    verb.add_argument(
        "--from", dest="recording", metavar="FILE", type=Path, help="play back a recording of the link, see `record`"
    )
    verb.add_argument("--served", metavar="FILE", type=Path, help="write what was served, one JSON object a line")
    verb.add_argument("--silent", metavar="DEVICE", action="append", default=[], help="this device says nothing")
    verb.add_argument(
        "--late", metavar="DEVICE=TIME", action="append", default=[], help="answers late, as in meter-12='300 ms'"
    )


def simulate(given: argparse.Namespace) -> int:
    """`citygate simulate`."""
    registry = Registry()
    plan = box.make_plan(given.config, with_secrets=False)
    links = _chosen(plan, given.link)
    playback = _playback(given.recording, links) if given.recording else None
    faults = Faults(silent=set(_known(given.silent, plan)), late_s=_late(given.late, plan))
    values = counter_of(plan) if given.values == "counter" else wave_of(plan)
    with given.served.open("ab", buffering=0) if given.served else contextlib.nullcontext() as served:
        world = World(value=values, served=_recorder(served), faults=faults)
        asyncio.run(play(links, world, registry, playback))
    return FINE


def _playback(file: Path, links: list["LinkPlan"]) -> Playback:
    if len(links) != 1:
        raise UnknownName("a recording is of one link: name it with --link")
    try:
        return Playback(links[0].driver_name, parsed(file.read_text(errors="replace")))
    except OSError as error:
        raise CitygateError(f"cannot read {file}: {error.strerror}") from error


async def play(links: list["LinkPlan"], world: World, registry: Registry, playback: Playback | None = None) -> None:
    """Play these links until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = [
        asyncio.create_task(
            (playback or registry.simulator(link.driver_name)).run(link.config, world), name=f"simulate {link.name}"
        )
        for link in links
        if link.config is not None
    ]
    stopping = asyncio.create_task(stop.wait(), name="stop")
    complain(f"playing {', '.join(device for link in links for device in link.devices)}; Ctrl-C ends it")
    done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in (*tasks, stopping):
        task.cancel()
    await asyncio.wait({*tasks, stopping})
    for task in done - {stopping}:
        task.result()  # a simulator ends by itself only when it failed


def _chosen(plan: "Plan", names: list[str] | None) -> list["LinkPlan"]:
    for name in names or ():
        if name not in plan.links:
            raise UnknownName(f"no link {name}; there are {', '.join(plan.links) or 'none'}")
    chosen = [link for name, link in plan.links.items() if not names or name in names]
    for link in chosen:
        if link.config is None:
            raise DriverUnavailable(link.fault, link.remedy)
    if not chosen:
        raise CitygateError("the config has no link to play")
    return chosen


def _known(devices: list[str], plan: "Plan") -> list[str]:
    for device in devices:
        if device not in plan.devices:
            raise UnknownName(f"no device {device}; there are {', '.join(plan.devices) or 'none'}")
    return devices


def _late(given: list[str], plan: "Plan") -> dict[str, float]:
    late_s: dict[str, float] = {}
    for text in given:
        device, _, time = text.partition("=")
        try:
            late_s[_known([device], plan)[0]] = parse_duration_s(time)
        except ValueError as error:
            raise UnknownName(f"--late {text}: {error}") from None
    return late_s


def _recorder(file: IO[bytes] | None) -> Callable[[str, dict[str, float]], None]:
    """Writes each line with one call, so that a kill leaves no half line of an earlier one."""

    def record(device: str, values: dict[str, float]) -> None:
        if file is not None:
            line = {"at": utc(datetime.now(UTC)), "device": device, "values": values}
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    return record


def counter_of(plan: "Plan") -> Callable[[str, str, int], float]:
    """Values that name themselves: each is another one, in even steps through the plausible range."""
    ranges = _ranges(plan)

    def value(device: str, point: str, n: int) -> float:
        low, high = ranges[device, point]
        if high - max(low, 0.0) >= 100:  # small whole numbers are exact in every register type
            first = math.ceil(max(low, 0.0)) + 1
            return float(first + n % min(int(high) - first, COUNTS))
        return round(low + (n % 100 + 1) * (high - low) / 102, 6)

    return value


def wave_of(plan: "Plan") -> Callable[[str, str, int], float]:
    """Values like a street's: slow waves around what is usual, powers that follow from voltage and current."""
    units = {(device.name, name): point for device in plan.devices.values() for name, point in device.points.items()}
    ranges = _ranges(plan)

    def value(device: str, point: str, n: int) -> float:
        declared = units[device, point]
        canonical = street.value(declared.quantity, _pace(device), n)
        if canonical is None:
            low, high = (max(ranges[device, point][0], 0.0), min(ranges[device, point][1], 1000.0))
            return round(low + (high - low) * (0.3 + 0.05 * street.wave(n, _pace(device + point))), 2)
        scale, offset = _from_canonical(declared.quantity, declared.unit)
        return round(canonical * scale + offset, 3)

    return value


def _pace(name: str) -> int:
    """1 to 5, so that no two devices swing alike."""
    return 1 + sum(map(ord, name)) % 5


def _ranges(plan: "Plan") -> dict[tuple[str, str], tuple[float, float]]:
    """Plausible range in its unit, of each point that is a number."""
    return {(device.name, name): _range(device, name) for device in plan.devices.values() for name in device.points}


def _range(device: "DevicePlan", name: str) -> tuple[float, float]:
    point = device.points[name]
    own = device.template.points[name].range
    if own is not None:
        return own
    low, high = quantities()[point.quantity].range or (0.0, 1.0)
    scale, offset = _from_canonical(point.quantity, point.unit)
    low, high = sorted((low * scale + offset, high * scale + offset))
    return low, high


def _from_canonical(quantity: str, unit: str) -> tuple[float, float]:
    canonical = quantities()[quantity].unit
    return conversion(canonical, unit) if unit and unit != canonical else (1.0, 0.0)
