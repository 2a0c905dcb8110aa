"""What systemd sees of the daemon, with a socket in its place."""

import itertools
import signal
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.box import Box, Process, eventually

PACKAGE = Path(__file__).parents[1] / "support" / "hostile_package"
CONFIG = """
version: 1
gateway: {{id: gw-flow, city: testville, location: [9.159, 45.503]}}
buffer: {{path: "{box}/buffer.db"}}
clock: {{trust: system}}
http: {{listen: "127.0.0.1:{http}"}}
"""


class Systemd:
    """The notify socket; keeps what it was told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._told: list[str] = []

    def told(self) -> list[str]:
        """Every line so far."""
        while True:
            try:
                self._told += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self._told

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path / "notify")
    yield systemd
    systemd.close()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    box.write(CONFIG.format(box=tmp_path, http=box.port))
    yield box
    box.close()


def started(box: Box, systemd: Systemd) -> Process:
    return box.start_daemon(NOTIFY_SOCKET=str(systemd.path), WATCHDOG_USEC="900000")


def test_ready_watchdog_and_stopping_are_told(box: Box, systemd: Systemd) -> None:
    daemon = started(box, systemd)
    eventually("ready", lambda: "READY=1" in systemd.told())
    eventually("three watchdogs", lambda: systemd.told().count("WATCHDOG=1") >= 3)

    assert daemon.end() == 0
    assert "STOPPING=1" in systemd.told()


def test_a_daemon_that_hangs_feeds_no_watchdog(box: Box, systemd: Systemd) -> None:
    daemon = started(box, systemd)
    eventually("the first watchdog", lambda: "WATCHDOG=1" in systemd.told())
    daemon.popen.send_signal(signal.SIGSTOP)
    fed = systemd.told().count("WATCHDOG=1")

    with pytest.raises(AssertionError, match="not within"):
        eventually("another watchdog", lambda: systemd.told().count("WATCHDOG=1") > fed + 1, within_s=1.5)
    daemon.popen.send_signal(signal.SIGCONT)


LOWERED = """
import sys
from pathlib import Path
from gateway import daemon
from gateway.environment import Environment
daemon.WRITER_STUCK_S = 1.0  # so that a card needs not hang for a minute
daemon.serve(Path(sys.argv[1]), Environment())
"""
BUSY = """
links:
  roof: {{driver: hostile, does: well, told: "{box}/told", devices: {{roof-1: {{template: acme/gadget}}}}}}
"""


def hungry(lines: list[str]) -> int:
    """How often the loop told its status without feeding the watchdog."""
    told = [line for line in lines if line.startswith(("STATUS=", "WATCHDOG="))]
    return sum(one.startswith("STATUS=") and two.startswith("STATUS=") for one, two in itertools.pairwise(told))


@pytest.mark.timeout(120)  # on a busy machine
def test_while_the_writer_is_stuck_no_watchdog_is_fed_though_the_loop_lives_and_then_again(
    box: Box, systemd: Systemd
) -> None:
    """A card that hangs: here another process has the file locked, and the writer waits for it."""
    box.write(
        (CONFIG + BUSY).format(box=box.folder, http=box.port).replace('buffer.db"', 'buffer.db", commit_every: 3 s')
    )
    environment = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "300000", "PYTHONPATH": str(PACKAGE)}
    daemon = box.start("daemon", "-c", LOWERED, str(box.config), **environment)
    eventually("it is at work", lambda: (box.folder / "told").exists(), within_s=40)
    eventually("it is fed", lambda: systemd.told().count("WATCHDOG=1") >= 20)
    assert hungry(systemd.told()) == 0  # a writer that rests is not stuck
    lock = sqlite3.connect(box.folder / "buffer.db", isolation_level=None, timeout=20)
    lock.execute("BEGIN IMMEDIATE")
    eventually("the watchdog is hungry", lambda: hungry(systemd.told()) >= 4)
    lock.execute("ROLLBACK")
    lock.close()

    fed = systemd.told().count("WATCHDOG=1")
    eventually("it is fed again", lambda: systemd.told().count("WATCHDOG=1") >= fed + 10)
    eventually("all is well", lambda: "STATUS=all is well" in systemd.told()[-3:])
    assert daemon.end() == 0


def test_a_reload_is_told_with_its_time_and_its_end(box: Box, systemd: Systemd) -> None:
    daemon = started(box, systemd)
    eventually("ready", lambda: "READY=1" in systemd.told())

    daemon.popen.send_signal(signal.SIGHUP)

    eventually("reloaded", lambda: systemd.told().count("READY=1") == 2)
    told = systemd.told()
    assert told.index("RELOADING=1") < len(told) - 1 - told[::-1].index("READY=1")
    assert any(line.startswith("MONOTONIC_USEC=") for line in told)


def test_an_invalid_config_at_start_exits_3_and_says_where(box: Box) -> None:
    box.write(CONFIG.format(box=box.folder, http=box.port).replace("city:", "citty:"))

    daemon = box.start("daemon", "-m", "gateway", "run", "-c", str(box.config))

    assert daemon.popen.wait(60) == 3
    assert "citygate.yaml:3:24" in daemon.text()


def test_a_second_daemon_on_the_same_log_is_refused_and_harms_nothing(box: Box) -> None:
    first = box.start_daemon()

    second = box.start("second", "-m", "gateway", "run", "-c", str(box.config))

    assert second.popen.wait(60) == 1
    assert f"process {first.popen.pid}" in second.text() or "another daemon" in second.text()
    assert box.status() is not None
