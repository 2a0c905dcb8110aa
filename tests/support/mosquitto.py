"""A real mosquitto on a free loopback port, with persistence, that tests can stop and start again."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.box import free_port

SEARCHED = f"{Path('/usr/sbin')}:{Path('/usr/local/sbin')}:{Path('/usr/bin')}"


class Mosquitto:
    """One broker. Its sessions and queues survive `stop` and `start`."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\n{'' if 'allow_anonymous' in extra else 'allow_anonymous true'}\npersistence true\n"
            f"persistence_location {folder}/\nautosave_interval 1\nautosave_on_changes true\nmax_queued_messages 100000\n"
            + ("user root\n" if os.geteuid() == 0 else "")  # else it gives up root, and with it this folder
            + extra
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it accepts connections."""
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path=SEARCHED)
        if program is None and not os.environ.get("CI"):
            pytest.skip("mosquitto is not installed: apt-get install mosquitto")
        assert program, "mosquitto is not installed"
        self._process = subprocess.Popen(
            [program, "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end_s = time.monotonic() + 10
        while time.monotonic() < end_s:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self._process.poll() is None, "mosquitto ended at start"
            time.sleep(0.02)
        raise AssertionError("mosquitto did not start")

    def stop(self) -> None:
        """End it; it writes its sessions to disk."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@contextlib.contextmanager
def mosquitto(folder: Path, extra: str = "") -> Iterator[Mosquitto]:
    """A running broker."""
    broker = Mosquitto(folder, extra)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
