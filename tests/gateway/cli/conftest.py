"""The command in this process, and a daemon's control socket over a fake view in a thread beside it."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.main import main
from gateway.http.server import Server
from tests.support.box import eventually
from tests.support.fake_view import FakeView


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output, which must be one JSON document."""
        return json.loads(self.out)


Command = Callable[..., Ended]


@pytest.fixture
def citygate(capsys: pytest.CaptureFixture[str]) -> Command:
    """`citygate("status", "--json")`."""

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config without links; its daemon, if any, listens in the same folder."""
    config = f"version: 1\ngateway: {{id: gw-1, city: milano}}\nbuffer: {{path: {tmp_path}/buffer.db}}\n"
    (tmp_path / "citygate.yaml").write_text(config)
    return tmp_path


@pytest.fixture
def daemon(folder: Path) -> Iterator[FakeView]:
    """A control socket for `folder`, served in a thread of its own."""
    view = FakeView()
    loop = asyncio.new_event_loop()
    server = Server(view, listen="", control_socket=folder / "control.sock")
    task = loop.create_task(server.run(), name="server")

    def serve() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    thread = threading.Thread(target=serve, name="daemon")
    thread.start()
    eventually("socket", (folder / "control.sock").exists, within_s=60)
    yield view
    loop.call_soon_threadsafe(task.cancel)
    thread.join(5)
