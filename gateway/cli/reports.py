"""Verb bundle: what somebody far away needs to understand this box, with everything secret taken out."""

import argparse
import importlib.metadata
import io
import os
import platform
import subprocess
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway.cli import box
from gateway.cli.terminal import say, say_json
from gateway.cli.verbs import Verbs
from gateway.encode import to_json
from gateway.http.outcome import FINE
from gateway.sdk.errors import CitygateError, ConfigError

if TYPE_CHECKING:
    from gateway.config.loader import Loaded

JOURNAL_LINES = 5000
JOURNAL_WITHIN_S = 20.0
MAX_FILE_BYTES = 1_000_000  # of one config file or template
MAX_FILES = 500
README = """\
Support bundle of a citygate box, made by `citygate bundle`.

about.json    versions, kernel, board
config/       the config as written, secrets and logins replaced by dots
check.json    what `citygate check` says
doctor.json   what `citygate doctor` says
status.json   what the daemon says, if it ran
metrics.txt   its counters
journal.txt   the last events of the service, if this user may read them

Secrets were looked for by their kind in the config, by value and in addresses. Read the files before you pass them on.
"""


def add_verbs(verbs: Verbs) -> None:
    """bundle."""
    verb = verbs.add(
        "bundle",
        bundle,
        help="a file for support: config, status, checks and journal, without secrets",
        about="Write a compressed archive with the config, what check, doctor and status say, metrics and journal. Secrets, "
        "logins and tokens are replaced by dots. No reading is in it but the latest of each point.",
        examples=("citygate bundle", "citygate bundle --output box.tar.gz"),
    )
    verb.add_argument("--output", "-o", metavar="FILE", type=Path, help="default: citygate-HOST-TIME.tar.gz, here")


def bundle(given: argparse.Namespace) -> int:
    """`citygate bundle`."""
    from gateway.config.secrets import hide_logins
    from gateway.hidden import hidden, keep_secret

    now = datetime.now(UTC)
    path: Path = given.output or Path(f"citygate-{platform.node()}-{now:%Y%m%dT%H%M%SZ}.tar.gz")
    loaded = box.loaded(given.config)
    keep_secret(loaded.secrets)
    contents = {name: hide_logins(hidden(text)) for name, text in _contents(given.config, loaded)}
    try:
        _write(path, contents, now)
    except OSError as error:
        raise CitygateError(f"cannot write {path}: {error.strerror}") from error
    if given.json:
        say_json({"file": str(path), "contents": sorted(contents)})
    else:
        say(f"{path}: {', '.join(sorted(contents))}")
        say("secrets were replaced; look before you pass it on")
    return FINE


def _write(path: Path, contents: dict[str, str], now: datetime) -> None:
    """The archive, readable by its maker alone, never over an existing file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in contents.items():
            data = text.encode()
            entry = tarfile.TarInfo(f"{path.name.partition('.')[0]}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(now.timestamp()), 0o600
            archive.addfile(entry, io.BytesIO(data))


def _contents(config: Path, loaded: "Loaded") -> Iterator[tuple[str, str]]:
    yield "README.txt", README
    yield "about.json", _json(_about())
    yield from _config_files(loaded)
    yield "check.json", _json(_check(config))
    yield "doctor.json", _json(_doctor(config))
    for name, ask in (("status.json", _status), ("metrics.txt", _metrics), ("journal.txt", _journal)):
        try:
            yield name, ask(config)
        except (CitygateError, OSError, subprocess.SubprocessError) as error:
            yield name, f"not available: {error}\n"


def _json(value: Any) -> str:
    return to_json(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def _about() -> dict[str, Any]:
    packages = {its.metadata["Name"]: its.version for its in importlib.metadata.distributions() if its.metadata["Name"]}
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "citygate": packages.get("citygate", ""),
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "system": _text(Path("/etc/os-release")),
        "board": _text(Path("/proc/device-tree/model")).strip("\0"),
        "up_s": round(time.clock_gettime(time.CLOCK_BOOTTIME)),
        "packages": dict(sorted(packages.items())),
    }


def _text(path: Path) -> str:
    from gateway.sdk.files import read_bytes

    try:
        return read_bytes(path, MAX_FILE_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _config_files(loaded: "Loaded") -> Iterator[tuple[str, str]]:
    """Main file, fragments, bases, own templates and city profiles; never the folder `secrets`."""
    from gateway.config.bases import name_in_copy
    from gateway.config.hiding import shown_lines
    from gateway.config.tree import Source

    folder = loaded.files[0].parent
    places = [its / name for its in loaded.folders for name in ("templates", "cities", "models")]
    own = [file for place in places for file in sorted(place.rglob("*.yaml"))]
    for file in (*loaded.files, *own)[:MAX_FILES]:
        if file.is_file():
            source = loaded.sources.get(str(file)) or Source(str(file), _text(file).splitlines(), parsed=False)
            yield f"config/{name_in_copy(file, folder)}", "".join(f"{line}\n" for line in shown_lines(source))


def _check(config: Path) -> dict[str, Any]:
    from gateway.config import explain

    try:
        return explain.report(box.make_plan(config).warnings)
    except ConfigError as error:
        return explain.report(error.problems)


def _doctor(config: Path) -> list[dict[str, str]]:
    from gateway.cli.doctor import findings

    return findings(config)


def _status(config: Path) -> str:
    return _json(box.ask(config, "status"))


def _metrics(config: Path) -> str:
    from gateway.http.metrics import render

    return render(box.ask(config, "status")).decode()


def _journal(_: Path) -> str:
    command = ["journalctl", "--unit", "citygate", "--no-pager", "--lines", str(JOURNAL_LINES), "--output", "short-iso"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=JOURNAL_WITHIN_S).stdout
