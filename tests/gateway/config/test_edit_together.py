"""Two that write the operator's file at once, and one that is killed while it does: nothing is lost, nothing is half there."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli.configure import write_new
from gateway.cli.editor import Editor
from gateway.cli.main import main
from gateway.config import edit
from gateway.sdk.errors import CitygateError, ConfigError

HEAD = "version: 1\nlinks:\n  roof:\n    driver: bench\n    devices:\n      m-0: {template: acme/meter}\n"
ADD_AND_DIE = """
import resource, signal, sys
from pathlib import Path
from gateway.config.edit import put_device
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills it where the new text passes the bound
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
put_device(Path(sys.argv[1]), "roof", "m-1", {"template": "acme/meter"})
"""


def devices(folder: Path) -> set[str]:
    found = yaml.safe_load((folder / "citygate.yaml").read_text())
    return set(found["links"]["roof"]["devices"])


def test_two_that_add_at_once_both_do(tmp_path: Path) -> None:
    (tmp_path / "citygate.yaml").write_text(HEAD)
    begin = threading.Barrier(2)

    def add(name: str) -> None:
        begin.wait(10)
        for n in range(10):
            edit.put_device(tmp_path, "roof", f"{name}-{n}", {"template": "acme/meter"})

    with ThreadPoolExecutor(2) as both:
        list(both.map(add, ("a", "b")))

    assert devices(tmp_path) == {"m-0", *(f"{name}-{n}" for name in ("a", "b") for n in range(10))}
    assert [file.name for file in tmp_path.iterdir()] == ["citygate.yaml"]


class _AskedFor(dict[str, Any]):
    """Settings of a device; when they are asked for, somebody writes the file."""

    def __init__(self, file: Path) -> None:
        super().__init__(template="acme/meter")
        self._file = file

    def __iter__(self) -> Iterator[str]:
        self._file.write_text(HEAD + "      by-hand: {template: acme/meter}\n")
        return super().__iter__()


def test_what_an_editor_wrote_meanwhile_stays(tmp_path: Path) -> None:
    file = tmp_path / "citygate.yaml"
    file.write_text(HEAD)

    with pytest.raises(ConfigError, match=r"citygate\.yaml was changed meanwhile and stays as it is; try again"):
        edit.put_device(tmp_path, "roof", "m-1", _AskedFor(file))

    assert devices(tmp_path) == {"m-0", "by-hand"}


def test_one_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    text = HEAD + "# " + "x" * 30_000 + "\n"
    (tmp_path / "citygate.yaml").write_text(text)
    ended = subprocess.run([sys.executable, "-B", "-c", ADD_AND_DIE, tmp_path, "20000"], check=False, timeout=60)

    assert ended.returncode == -signal.SIGXFSZ
    assert (tmp_path / "citygate.yaml").read_text() == text
    edit.put_device(tmp_path, "roof", "m-1", {"template": "acme/meter"})  # what it left is in nobody's way
    assert devices(tmp_path) == {"m-0", "m-1"}
    assert [file.name for file in tmp_path.iterdir()] == ["citygate.yaml"]


def test_an_init_that_is_killed_leaves_no_half_file_and_is_done_again(tmp_path: Path) -> None:
    init = [sys.executable, "-m", "gateway", "init", "-c", str(tmp_path), "--location", "45.503,9.159"]
    process = subprocess.Popen(init, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not any(tmp_path.iterdir()):
        time.sleep(0.0002)  # it is caught in the midst of its work
    process.kill()
    process.wait()

    file = tmp_path / "citygate.yaml"
    if not file.exists():
        assert main(init[3:]) == 0
    assert yaml.safe_load(file.read_text().replace("!secret", ""))["version"] == 1
    with pytest.raises(CitygateError, match="has been written meanwhile and stays as it is"):
        write_new(tmp_path, "version: 1\n", Editor(tmp_path))
