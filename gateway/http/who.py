"""Who we are, and whose a socket is: for refusals that say what to do."""

import contextlib
import grp
import os
import pwd
from pathlib import Path


def user() -> str:
    """The name of the user at work here."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def closed(path: Path) -> tuple[str, str]:
    """What to say of a socket that this user may not use, and what to do."""
    us, group = user(), _group_of(path)
    if group is None or group.gr_gid == 0:
        return f"user {us} may not use {path}", "`sudo citygate …`"
    name = group.gr_name
    if us in group.gr_mem:
        return (
            f"{path}: this login is older than {us}'s place in the group {name}",
            "log in again, or `sudo citygate …`",
        )
    join = f"`sudo citygate …`, or join it: `sudo usermod -aG {name} {us}`, then log in again"
    return f"user {us} is not in the group {name}, which may use {path}", join


def _group_of(path: Path) -> grp.struct_group | None:
    """The group of the nearest that we may look at."""
    for part in (path, *path.parents):
        with contextlib.suppress(OSError, KeyError):
            return grp.getgrgid(os.stat(part).st_gid)
    return None
