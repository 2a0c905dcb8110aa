"""The secrets of the running daemon, as a person may know them: names, places and times, never a text."""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli import box
from gateway.http.outcome import START, NoDaemon, Refused

if TYPE_CHECKING:
    from gateway.plan import Plan


@dataclass
class AtDaemon:
    """The secrets of the daemon that runs this config: names, places and times, never a text. It is asked when it has to be."""

    config: Path

    @functools.cached_property
    def _told(self) -> tuple[dict[str, Any] | None, str]:
        """What it says, and why it says nothing."""
        try:
            return box.asked(self.config, "secrets", box.TELL_WITHIN_S, lambda _: None, {}), ""
        except NoDaemon:
            return None, f"put it there; what only the service is given, its daemon has: {START}, then again"
        except Refused as error:
            return None, f"the daemon may have it, but {'; '.join(filter(None, (str(error), error.remedy)))}"

    @property
    def of_this_file(self) -> dict[str, Any] | None:
        """What the daemon says, see `Standing.secrets`; None when there is none, or one that runs another file."""
        found, _ = self._told
        return None if found is None or box.is_other(self.config, Path(found["config"])) else found

    def secrets_of(self, plan: "Plan") -> dict[str, dict[str, str]]:
        """Of each secret of a plan made here where it is, `place`; `state`, `ok` when the daemon has the same as far as anybody may
        know; `said`: what there is to know of it, if anything."""
        names = sorted({*plan.secret_texts, *plan.untold.values()})
        told = self.of_this_file if names else None
        found = {}
        for name in names:
            state, said = _said_of(plan, name, told) if told else ("ok", "")
            found[name] = {"place": plan.secret_places.get(name, ""), "state": state, "said": said}
        return found

    def held(self, name: str) -> tuple[bool, str]:
        """See `gateway.config.secrets.Held`."""
        found, why = self._told
        if found is None:
            return False, f"{why}; `check --no-secrets` goes without"
        if self.of_this_file is None:
            has = f", and has a secret {name} for that" if name in found["secrets"] else ""
            return False, f"put it there; the daemon here runs {found['config']}, not this file{has}"
        if name in found["secrets"]:
            return True, ""
        again = "`citygate reload` reads it, `sudo systemctl restart citygate` what the unit is given"
        return False, f"put it there; the daemon does not have it either: {again}"


_APPLIED_BY = {
    "reload": "`citygate reload` reads it again",
    "restart": "`sudo systemctl restart citygate` takes up a new one",
}


def _said_of(plan: "Plan", name: str, told: Mapping[str, Any]) -> tuple[str, str]:
    """Of one secret: that the daemon alone has it; that it is another by now than the one at work."""
    here, its = plan.secret_places.get(name, ""), told["secrets"].get(name)
    if its is None:
        return "unread", f"the daemon at work has none of this name; {_APPLIED_BY['reload']}"
    read_at, again = its["read_at"], _APPLIED_BY[its["taken_up_by"]]
    if its["now"] == "gone":
        return "gone", "is gone; the daemon goes on with the text that it had"
    if its["now"] == "changed":
        return "changed", f"has changed since the daemon read it at {read_at}; {again}"
    if not here:
        return "ok", f"only the daemon has it, from {its['place']}, read at {read_at}; {again}"
    if here != its["place"] and _changed_since(Path(here), read_at):
        return "changed", f"{here} has changed since the daemon read its own from {its['place']} at {read_at}; {again}"
    if here != its["place"]:
        return "ok", f"{here}; the daemon has its own from {its['place']}, read at {read_at}; {again}"
    return "ok", ""


def _changed_since(file: Path, at: str) -> bool:
    """A text that nobody may compare: the daemon's is not told to anybody."""
    with contextlib.suppress(OSError, ValueError):
        return file.stat().st_ctime > datetime.fromisoformat(at).timestamp() + 1
    return False
