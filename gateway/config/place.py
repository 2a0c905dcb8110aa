"""Where the log of a config was when its daemon last ran: noted in the box's state folder, for the day the file names another."""

import contextlib
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from gateway.config.loader import config_files
from gateway.sdk.files import read_bytes

_PATH_BYTES = 8192
_OF_SERVICES = Path("/var/lib")


def _folder() -> Path | None:
    """systemd names it to the daemon, else it is the user's; None: there is none."""
    if state := os.environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(state)
    if state := os.environ.get("XDG_STATE_HOME", ""):
        return Path(state) / "citygate"
    home = os.environ.get("HOME", "")
    return Path(home) / ".local/state/citygate" if home else None


def _name(config: Path) -> str:
    return f"buffer-{blake2b(os.fsencode(config_files(config)[0].resolve()), digest_size=8).hexdigest()}"


def last_place(config: Path) -> Path | None:
    """Where the log was; None when nobody noted it."""
    return next(noted_places(config), None)


def noted_places(config: Path) -> Iterator[Path]:
    """Where the log was by our own note, then by those of services, whose folders a person's command knows by name alone."""
    for folder in (_folder(), *sorted(_OF_SERVICES.glob("citygate*"))):
        with contextlib.suppress(OSError, ValueError):
            text = read_bytes(folder / _name(config), _PATH_BYTES).decode().strip() if folder else ""
            if text.startswith("/"):
                yield Path(text)


def note_place(config: Path, log: Path) -> None:
    """The log is here from now on. A box that cannot keep the note works all the same."""
    folder, place = _folder(), log.absolute()
    if folder is None or last_place(config) == place:
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
