"""Where the log of a config was when its daemon last ran: noted in the box's state folder, for the day the file names another."""

import contextlib
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from gateway.config.loader import config_files
from gateway.environment import Environment
from gateway.sdk.files import read_bytes

_PATH_BYTES = 8192
_OF_SERVICES = Path("/var/lib")


def _name(config: Path) -> str:
    return f"buffer-{blake2b(os.fsencode(config_files(config)[0].resolve()), digest_size=8).hexdigest()}"


def last_place(config: Path, environment: Environment) -> Path | None:
    """Where the log was; None when nobody noted it."""
    return next(noted_places(config, environment), None)


def noted_places(config: Path, environment: Environment) -> Iterator[Path]:
    """Where the log was by our own note, then by those of services, whose folders a person's command knows by name alone."""
    for folder in (environment.noted_in, *sorted(_OF_SERVICES.glob("citygate*"))):
        with contextlib.suppress(OSError, ValueError):
            text = read_bytes(folder / _name(config), _PATH_BYTES).decode().strip() if folder else ""
            if text.startswith("/"):
                yield Path(text)


def note_place(config: Path, log: Path, environment: Environment) -> None:
    """The log is here from now on. A box that cannot keep the note works all the same."""
    folder, place = environment.noted_in, log.absolute()
    if folder is None or last_place(config, environment) == place:
        return
    note = folder / _name(config)
    with contextlib.suppress(OSError):
        note.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        new = note.with_name(f"{note.name}.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640), "w") as file:
            file.write(f"{place}\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(note)
