"""The box that a verb works on: the running daemon by its control socket."""

from pathlib import Path
from typing import Any

import yaml

from gateway.config.loader import config_files
from gateway.config.model import BufferConfig
from gateway.http.outcome import NoDaemon
from gateway.http.shapes import socket_path


def control_socket(config: Path) -> Path:
    """Where the daemon of this config listens.

    The file is only glanced at, because `status` has to work on a box whose new config is broken.
    """
    return socket_path(Path(_buffer_path(config)))


def ask(config: Path, verb: str, *, timeout_s: float = 30.0, **arguments: Any) -> Any:
    """Ask the running daemon; see `gateway.http.control.ask` for what it raises."""
    from gateway.http.control import ask_now

    return ask_now(control_socket(config), verb, arguments, timeout_s=timeout_s)


def answers(config: Path) -> bool:
    """Whether a daemon with this config runs."""
    try:
        ask(config, "status")
    except NoDaemon:
        return False
    return True


def _buffer_path(config: Path) -> str:
    found = BufferConfig().path
    main, fragments = config_files(config)
    for file in (main, *fragments):
        try:
            content = yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            found = str(content["buffer"]["path"])
        except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
            continue
    return found
