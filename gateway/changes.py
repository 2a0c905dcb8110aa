"""What a new config changes, for people: old and new value of each key, what restarts, what waits. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, SecretBytes, SecretStr

from gateway.config.hiding import NAMED
from gateway.config.model import Config
from gateway.config.secrets import hide_tokens, looks_secret, redacted
from gateway.hidden import HIDDEN
from gateway.plan import Difference, Plan
from gateway.sdk.config import DURATIONS_S, SIZES_BYTES, Secret
from gateway.sdk.template import Template

DAEMON_PARTS = ("buffer", "http", "clock")  # opened at the start of the daemon
MAX_SHOWN = 100  # characters of a value
_LONG_UNITS = ("d", "h", "min", "s", "ms")
_SIZE_UNITS = ("GB", "MB", "kB", "GiB", "MiB", "KiB")
Path = tuple[str, ...]


class Leaf(NamedTuple):
    """One value of a config.

    Attributes:
        value: to compare.
        shown: as it may be shown.
        written: it stands in the file; else it is a default.
    """

    value: Any
    shown: str
    written: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One key, or a link, device or broker that is new or gone.

    Attributes:
        old, new: as they may be shown; None where there is none.
        applies: what applies it: `restart link NAME`, `restart broker NAME`, `restart the daemon`, `at once`, `new brokers`.
    """

    path: str
    old: str | None
    new: str | None
    applies: str

    @property
    def text(self) -> str:
        """One line."""
        if self.old is None:
            return f"{self.path}: new: {self.new}"
        if self.new is None:
            return f"{self.path}: gone, was: {self.old}"
        if self.old == self.new:
            return f"{self.path}: {'another secret' if HIDDEN in self.new else self.new + ', changed'}"
        return f"{self.path}: {self.old} → {self.new}"


def changes(old: Plan, new: Plan, found: Difference, waits: Set[str] = frozenset()) -> tuple[Change, ...]:
    """Every key that differs, in the order of the file; one line for a link, device or broker that comes or goes.

    Args:
        waits: paths of what only a restart of the daemon applies.
    """
    before, after = _leaves_of(old), _leaves_of(new)
    secrets = old.secrets | new.secrets
    were, are = _parts(old), _parts(new)
    whole = were.keys() ^ are.keys()
    rows: dict[Path, tuple[str | None, str | None]] = {}
    for path in (*before, *(path for path in after if path not in before)):
        was, is_ = before.get(path), after.get(path)
        part = next((path[:n] for n in range(len(path) + 1) if path[:n] in whole), None)
        if part is not None:
            rows[part] = were.get(part), are.get(part)
        elif _differ(was, is_):
            rows[path] = _told(was), _told(is_)
    _moved(rows)
    return tuple(
        Change(_dotted(path), _safe(was, secrets), _safe(is_, secrets), _applies(path, found, waits))
        for path, (was, is_) in rows.items()
        if (was, is_) not in ((None, ""), ("", None))
    )


def _moved(rows: dict[Path, tuple[str | None, str | None]]) -> None:
    """A device that is gone from one link and new on another is the same device."""
    devices = {path: texts for path, texts in rows.items() if path[2:3] == ("devices",) and len(path) == 4}
    left = {path[3]: (path, texts[0]) for path, texts in devices.items() if texts[1] is None}
    for path, (was, is_) in devices.items():
        if was is None and path[3] in left:
            before, was = left[path[3]]
            del rows[before], rows[path]
            rows[f"device {path[3]}",] = f"on link {before[1]}, {was}", f"on link {path[1]}, {is_}"


def waiting(at_work: Config, file: Config, secrets: Iterable[str]) -> tuple[Change, ...]:
    """What only a restart of the daemon applies."""
    rows: list[Change] = []
    for part in DAEMON_PARTS:
        before = dict(_leaves(getattr(at_work, part), (part,)))
        after = dict(_leaves(getattr(file, part), (part,)))
        for path in (*before, *(path for path in after if path not in before)):
            was, is_ = before.get(path), after.get(path)
            if _differ(was, is_):
                texts = _safe(_told(was), secrets), _safe(_told(is_), secrets)
                rows.append(Change(_dotted(path), *texts, "restart the daemon"))
    return tuple(rows)


def _differ(was: Leaf | None, is_: Leaf | None) -> bool:
    if was is None or is_ is None:  # a default beside what was written first is no news
        return any(leaf is not None and leaf.written for leaf in (was, is_))
    return bool(was.value != is_.value)


def _told(leaf: Leaf | None) -> str | None:
    if leaf is None:
        return None
    return leaf.shown if leaf.written else f"{leaf.shown} (default)"


def _safe(text: str | None, secrets: Iterable[str]) -> str | None:
    if text is None:
        return None
    text = hide_tokens(redacted(text, secrets))
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _dotted(path: Path) -> str:
    return ".".join(path)


def _applies(path: Path, found: Difference, waits: Set[str]) -> str:
    part, name, key = (*path, "", "", "")[:3]
    if _dotted(path) in waits:
        return "restart the daemon"
    if part == "links" and name in found.links:
        return f"restart link {name}"
    if part == "brokers" and key == "from":
        return "new brokers"
    if part == "brokers" and name in found.brokers:
        return f"restart broker {name}"
    return "at once"


# the parts that come and go as one, and what is said of each


def _parts(plan: Plan) -> dict[Path, str]:
    parts: dict[Path, str] = {}
    for name, link in plan.links.items():
        parts["links", name] = f"{link.driver_name}, devices: {', '.join(link.device_names) or 'none'}"
        for device in link.device_names:
            config = getattr(link.config, "devices", {}).get(device)
            parts["links", name, "devices", device] = _brief(config) if config is not None else "a device"
    for name, broker in plan.brokers.items():
        parts["brokers", name] = _brief(broker.config)
        if broker.config.use:
            parts[(broker.config.use,)] = ""  # the line of whoever uses it says it
    return parts | {(_of_template(device.template),): "" for device in plan.devices.values()}


def _of_template(template: Template) -> str:
    return f"template {template.name}"


def _brief(model: BaseModel) -> str:
    """What is written of it, in a line."""
    return ", ".join(f"{_dotted(path)} {leaf.shown}" for path, leaf in _leaves(model, ()) if leaf.written)


# all values by path


def _leaves_of(plan: Plan) -> dict[Path, Leaf]:
    found = dict(_leaves(plan.config, ()))
    for link in plan.links.values():
        for device in link.device_names:  # also where the driver is missing, so that nothing can be compared
            found.setdefault(("links", link.name, "devices", device, ""), Leaf(None, "", written=False))
        found.setdefault(("links", link.name, ""), Leaf(None, "", written=False))
    for device_plan in plan.devices.values():
        found.update(_leaves(device_plan.template, (_of_template(device_plan.template),)))
    for broker in plan.brokers.values():
        if broker.config.use:
            profile = broker.profile.model_copy(update={"broker": {}})  # shown at the broker
            found.update(_leaves(profile, (broker.config.use,)))
    return found


def _leaves(model: BaseModel, path: Path) -> Iterator[tuple[Path, Leaf]]:
    for name, its in type(model).model_fields.items():
        written = name in model.model_fields_set
        yield from _of_value((*path, its.alias or name), name, getattr(model, name), written=written)


def _of_value(path: Path, name: str, value: Any, *, written: bool) -> Iterator[tuple[Path, Leaf]]:
    if value is None or value in ("", ()):
        return
    if isinstance(value, Template):
        yield path, Leaf(value.name, value.name, written)
    elif isinstance(value, BaseModel):
        yield from _leaves(value, path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _of_value((*path, str(key)), str(key), item, written=written)
    else:
        yield path, Leaf(value, _shown(name, value), written)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, Secret | SecretStr | SecretBytes) or (isinstance(value, str) and _is_secret(name, value)):
        return HIDDEN
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _number(name, value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, BaseModel):
        return f"{{{_brief(value)}}}"
    if isinstance(value, tuple | list | set | frozenset):
        return f"[{', '.join(_shown(name, item) for item in value)}]"
    return str(value)


def _is_secret(name: str, text: str) -> bool:
    return bool(NAMED.fullmatch(name)) or looks_secret(text)


def _number(name: str, value: float) -> str:
    """With the unit in which people write it; in Python the field's name ends in it."""
    if name.endswith("_per_s"):
        return f"{value:.15g}/s"
    if name.endswith("_bytes"):
        return _in_units(value, {unit: SIZES_BYTES[unit] for unit in _SIZE_UNITS}, "B")
    if name.endswith("_s"):
        return _in_units(value, {unit: DURATIONS_S[unit] for unit in _LONG_UNITS}, "s")
    return f"{value:.15g}"


def _in_units(value: float, units: Mapping[str, float], else_: str) -> str:
    """In the largest unit of which it is a whole number."""
    for unit, size in units.items():
        count = value / size
        if value and abs(count - round(count)) < 1e-9:
            return f"{round(count)} {unit}"
    return f"{value:.15g} {else_}"
