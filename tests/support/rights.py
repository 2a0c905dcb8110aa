"""Rights that a test must have or must not have, the same for whoever runs it: root gives up what is too much, everybody
gets a room of their own in which they may mount."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.box import REPOSITORY

NOBODY = 65534
ROOM = ("unshare", "--user", "--map-root-user", "--mount", "--net")


def give_up_root() -> None:
    """For a process of a test, once it has loaded what it needs."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """What rights deny is denied in here."""
    was = os.geteuid()
    try:
        if was == 0:
            os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(was)


def run_on_a_card(folder: Path, size: str, code: str) -> None:
    """Run Python code with a file system of its own at `folder`, which is `sys.argv[1]` to it and ends with it."""
    if subprocess.run([*ROOM, "true"], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here: the machine lets nobody have name spaces of their own")
    mount_and_run = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && exec "$3" -c "$4" "$2"'
    arguments = [*ROOM, "sh", "-ec", mount_and_run, "sh", size, str(folder), sys.executable, code]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
