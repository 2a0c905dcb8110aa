"""A whole box for flow tests: the daemon, simulators and a broker as processes of their own, ended by pid."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

REPOSITORY = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def eventually(what: str, look: Callable[[], T], *, within_s: float = 60.0) -> T:
    """The first truthy result of `look`; fails with its last result otherwise."""
    deadline_s = time.monotonic() + within_s
    while not (last := look()):
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.05)
    else:
        return last
    raise AssertionError(f"{what}: not within {within_s:g} s; last seen: {last!r}")


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def get_json(url: str, *, timeout_s: float = 5.0) -> Any:
    """What this URL answers, or None while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return json.load(answer)
    except OSError:
        return None


class Process:
    """One process of ours with its output in a file."""

    def __init__(self, output: Path, *arguments: str, **environment: str) -> None:
        self.output = output
        with output.open("ab") as out:
            self.popen = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            )

    def kill(self) -> None:
        """kill -9, as a power cut for one process."""
        self.popen.kill()
        self.popen.wait(40)

    def end(self, number: int = signal.SIGTERM, *, within_s: float = 40.0) -> int:
        """Ask it to stop; its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            return self.popen.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"pid {self.popen.pid} did not stop within {within_s:g} s:\n{self.text()[-3000:]}"
            ) from None

    def text(self) -> str:
        """All it has said so far."""
        return self.output.read_text(errors="replace")


@dataclass
class Box:
    """Folder, config and processes of one simulated box.

    Attributes:
        folder: config, log, served values and outputs; `{box}` in a config stands for it.
        port: of the local page.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    processes: list[Process] = field(default_factory=list)
    _runs: int = 0

    @property
    def config(self) -> Path:
        return self.folder / "citygate.yaml"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write(self, config: str) -> None:
        """Write the operator's file."""
        self.config.write_text(config)

    def start(self, name: str, *arguments: str, **environment: str) -> Process:
        """Start a process of this box."""
        self._runs += 1
        process = Process(self.folder / f"{name}-{self._runs}.out", *arguments, **environment)
        self.processes.append(process)
        return process

    def start_daemon(self, **environment: str) -> Process:
        """The daemon as an operator starts it; returns when it answers."""
        daemon = self.start("daemon", "-m", "gateway", "run", "-c", str(self.config), **environment)
        eventually("the daemon answers", lambda: _alive(daemon) and get_json(f"{self.url}/status"))
        return daemon

    def start_simulator(self, link: str, *, values: str = "counter", **environment: str) -> Process:
        """The simulated devices of one link, in a process of their own."""
        return self.start(
            f"simulator-{link}",
            *("-m", "gateway", "simulate", "-c", str(self.config), "--link", link),
            *("--values", values, "--served", str(self.folder / f"served-{link}-{self._runs}.jsonl")),
            **environment,
        )

    def served(self) -> Iterator[dict[str, Any]]:
        """What all simulators put on the wire: {device, values}; a last line cut by a kill is left out."""
        for file in sorted(self.folder.glob("served-*.jsonl")):
            for line in file.read_text().splitlines():
                if line.endswith("}"):
                    yield json.loads(line)

    def status(self) -> Any:
        """The daemon's status, or None while it does not answer."""
        return get_json(f"{self.url}/status")

    def device(self, link: str, device: str) -> dict[str, Any]:
        """One device of the status; {} while there is none."""
        status = self.status() or {}
        found: dict[str, Any] = status.get("links", {}).get(link, {}).get("devices", {}).get(device, {})
        return found

    def close(self) -> None:
        """End all processes that are left."""
        for process in reversed(self.processes):
            if process.popen.poll() is None:
                process.kill()


def _alive(process: Process) -> bool:
    assert process.popen.poll() is None, f"it ended with {process.popen.returncode}:\n{process.text()[-3000:]}"
    return True
