"""What a config that is only checked would make of what the box here still owes: asked of its daemon, else of its log's file."""

import asyncio
import contextlib
import dataclasses
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli import box
from gateway.http.outcome import NoDaemon, Refused
from gateway.sdk.errors import CitygateError

if TYPE_CHECKING:
    from gateway.log.recipes import Change, Row
    from gateway.plan import Plan

MAX_BYTES = 200_000_000  # a larger file is not copied to be looked at


def becomes(config: Path, plan: "Plan") -> list[dict[str, Any]]:
    """As a reload says it; nothing where there is no log that may be read: who checks elsewhere is told of the file alone."""
    with contextlib.suppress(NoDaemon, Refused, CitygateError):
        found: list[dict[str, Any]] = box.ask_of_this(config, "reload", dry_run=True).get("becomes", [])
        return found
    with contextlib.suppress(OSError, sqlite3.Error, CitygateError), tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "buffer.db"
        if _copied(box.buffer_path(config), copy):
            return asyncio.run(_of_file(copy, plan))
    return []


def _copied(file: Path, copy: Path) -> bool:
    """What is committed, read only: neither a daemon that runs nor one that starts is kept from anything."""
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        return False
    with (
        contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as theirs,
        contextlib.closing(sqlite3.connect(copy)) as ours,
    ):
        theirs.backup(ours)
    return True


async def _of_file(file: Path, plan: "Plan") -> list[dict[str, Any]]:
    from gateway.clock import SystemClock
    from gateway.fates import foretell
    from gateway.log.log import Log, LogSettings
    from gateway.recipes import devices_of

    settings = LogSettings(file, max_size_bytes=2 * MAX_BYTES, max_age_s=1e9, unconfirmed="mark", leave_foreign=True)
    log = await Log.open(settings, clock=SystemClock(), consumers=None, devices=_as_they_are)
    try:
        await log.counted()
        known = log.recipes
        told = await foretell(
            log, plan, devices_of(plan)(known), there={device for device, _ in known}, cities=_cities(log)
        )
        return [dataclasses.asdict(fate) for fate in told.fates]
    finally:
        await log.close()


def _as_they_are(known: "Mapping[Row, bytes]") -> "Change":
    """Whether a device was gone before nobody knows."""
    from gateway.log.recipes import Change

    return Change({device for device, _ in known}, {broker for _, broker in known}, known)


def _cities(log: Any) -> Mapping[str, str]:
    names: Sequence[str] = list(log.status()["consumers"])
    return {name: log.driver_state(f"broker {name}").get("city", b"").decode("ascii", "replace") for name in names}
