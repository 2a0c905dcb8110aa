"""The status as text for a technician's terminal: what is wrong first in colour, what to do beside it. Pure."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from gateway.cli.terminal import colour, printable, table

MARKS = {"ok": ("●", "green"), "paused": ("‖", "yellow"), "waiting": ("○", "dim"), "starting": ("○", "dim")}
BAD = ("✗", "red")
MANY_DEVICES = 12
REJECTED_SHOWN, REJECTED_SHOWN_S = 3, 86400.0  # what was rejected long ago is in the JSON form and the metrics


def status_text(status: Mapping[str, Any], *, values: bool | None = None) -> str:
    """Several lines; see `GatewayView.status` for the shape. What needs somebody is said last, where one looks first.

    Args:
        values: show each device's points; default: when they fit a screen or two.
    """
    now = time_of(status.get("gateway", {}).get("now"))
    links = status.get("links", {})
    if values is None:
        values = sum(len(link.get("devices", {})) for link in links.values()) <= MANY_DEVICES
    lines = [_title(status.get("gateway", {}))]
    for name, link in links.items():
        lines += ["", *_link(name, link, now, values=values)]
    if status.get("brokers"):
        lines += [""]
    for name, broker in status.get("brokers", {}).items():
        lines += [*_broker(name, broker, now)]
    lines += [f"{mark('waiting')} {line}" for line in gone_lines(status.get("log", {}))]
    lines += ["", *_log(status.get("log", {})), *_clock(status.get("clock", {}))]
    return "\n".join([*lines, *_verdict(status)])


def time_of(text: str | None) -> datetime | None:
    """A time of the status."""
    return datetime.fromisoformat(text) if text else None


def age(then: datetime | None, now: datetime | None) -> str:
    """`3 s`, `12 min`, `5 h`, `9 d`; "never" without a time."""
    if then is None or now is None:
        return "never"
    return duration((now - then).total_seconds())


def duration(seconds: float) -> str:
    """One number and one unit, as somebody would say it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def counted(count: int, noun: str) -> str:
    """`1 reading`, `5 readings`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def shown_value(point: Mapping[str, Any]) -> str:
    """`230.1 V`, `on`, or `—` where there is no value."""
    value = point.get("value")
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "on" if value else "off"
    number = f"{value:.6g}" if isinstance(value, float) else str(value)
    unit = "" if point.get("unit") == "C62" else point.get("symbol") or point.get("unit") or ""  # C62: a pure number
    return f"{number} {unit}".rstrip()


def mark(state: str) -> str:
    """A sign for a state, in its colour."""
    sign, name = MARKS.get(state, BAD)
    return colour(sign, name)


def _title(gateway: Mapping[str, Any]) -> str:
    title = f"{gateway.get('id', '')}  {gateway.get('name', '')}".rstrip()
    return (
        f"{colour(printable(title), 'bold')}  citygate {gateway.get('version', '')}  {gateway.get('url', '')}".rstrip()
    )


def _verdict(status: Mapping[str, Any]) -> Iterator[str]:
    """Nothing for a part of a status, which has no log."""
    if "log" not in status:
        return
    reasons = status.get("gateway", {}).get("ready") or ()
    yield ""
    if not reasons:
        yield colour("all is well", "green")
    for reason in reasons:
        yield f"{colour('✗', 'red')} {printable(reason)}"


def _why(record: Mapping[str, Any]) -> str:
    if record.get("state") in ("ok", "waiting", "starting") and not record.get("reason"):
        return ""
    return ": ".join(part for part in (record.get("state", ""), printable(record.get("reason", ""))) if part)


def _link(name: str, link: Mapping[str, Any], now: datetime | None, *, values: bool) -> Iterator[str]:
    why = _why(link) or link.get("state", "")
    yield f"{mark(link.get('state', ''))} link {colour(printable(name), 'bold')}  {link.get('driver', '')}  {why}".rstrip()
    if link.get("remedy"):
        yield f"    → {printable(link['remedy'])}"
    yield from _rejected(link.get("rejected", ()), now)
    for device, record in link.get("devices", {}).items():
        yield from _device(device, record, now, values=values)


def _rejected(rows: Sequence[Mapping[str, Any]], now: datetime | None) -> Iterator[str]:
    """The newest of what could not be read, as long as it is news."""
    for row in rows[:REJECTED_SHOWN]:
        last_at = time_of(row.get("last_at"))
        if now and last_at and (now - last_at).total_seconds() > REJECTED_SHOWN_S:
            return
        of = f" of {printable(row['device'])}" if row.get("device") else ""
        yield f"    {row['count']}× rejected{of}, {age(last_at, now)} ago: {printable(row['reason'])}"
        if row.get("remedy"):
            yield f"      → {printable(row['remedy'])}"
    if len(rows) > REJECTED_SHOWN:
        yield f"    {len(rows) - REJECTED_SHOWN} more kinds of rejection: citygate status --json"


def _device(name: str, device: Mapping[str, Any], now: datetime | None, *, values: bool) -> Iterator[str]:
    last = (
        f"last good {age(time_of(device.get('last_good_at')), now)} ago"
        if device.get("last_good_at")
        else "nothing yet"
    )
    why = _why(device)
    until = time_of(device.get("paused_until"))
    if until and now:
        why += f", {duration(max((until - now).total_seconds(), 0))} left"
    yield f"  {mark(device.get('state', ''))} {printable(name)}  {last}{'  ' + why if why else ''}"
    if device.get("remedy"):
        yield f"      → {printable(device['remedy'])}"
    for broker, reason in device.get("refused_by", {}).items():
        yield f"      {colour('✗', 'red')} {printable(broker)} refuses it: {printable(reason)}"
    rows = [
        (point, shown_value(record), age(time_of(record.get("observed_at")), now), record.get("reason", ""))
        for point, record in device.get("points", {}).items()
        if record.get("value") is not None or device.get("state") != "bad"  # the device's own line says why
    ]
    if values:
        yield from table(rows, indent="      ", right=frozenset((1, 2)))
    for field, count in device.get("undeclared", {}).items():
        yield f"      {printable(field)} came {counted(count, 'time')}, but the template does not declare it; to take it, add to points:"
        yield f"        {printable(field)}: {{quantity: …, unit: …}}   in templates/{device.get('template', '…')}.yaml beside the config"


def _broker(name: str, broker: Mapping[str, Any], now: datetime | None) -> Iterator[str]:
    parts = [_why(broker) or broker.get("state", ""), broker.get("history", "")]
    if broker.get("records"):
        parts.append(f"records: {printable(broker['records'])}")
    backlog = broker.get("backlog") or 0
    if backlog:
        parts.append(f"{backlog} readings owed, oldest {age(time_of(broker.get('oldest_unsent_at')), now)}")
    if broker.get("next_try_at"):
        next_try, at = time_of(broker["next_try_at"]), now
        parts.append(f"next try in {duration(max((next_try - at).total_seconds(), 0))}" if next_try and at else "")
    parts += [f"{broker[key]} {key}" for key in ("later", "dead", "late", "skipped", "unseen") if broker.get(key)]
    if broker.get("given_up"):
        parts.append(f"{counted(broker['given_up'], 'reading')} given up")
    shown = "  ".join(part for part in parts if part)
    yield f"{mark(broker.get('state', ''))} broker {colour(printable(name), 'bold')}  {shown}"
    if broker.get("remedy"):
        yield f"    → {printable(broker['remedy'])}"
    for row in broker.get("refusing", ()):
        since = age(time_of(row["since"]), now)
        yield f"    {colour('✗', 'red')} refuses {printable(row['entity'])} of {printable(row['device'])} since {since}: {printable(row['reason'])}"
        yield f"      → {printable(row['remedy'])}"
    for row in broker.get("contexts", ()):
        since = age(time_of(row["since"]), now)
        yield f"    {colour('✗', 'red')} cannot fetch {printable(row['context'])} since {since}: {printable(row['reason'])}"
        yield f"      waiting for it: {row['entities']} of its entities, nothing else; it is asked for again by itself"
        yield f"      → {printable(row['remedy'])}"
    for entity, missing in broker.get("waiting", {}).items():
        yield f"    {printable(entity)} is sent once {', '.join(missing)} is known"


def gone_lines(log: Mapping[str, Any]) -> Iterator[str]:
    """Brokers and devices that were removed from the config, and what is still owed to them, or of them."""
    for name, its in log.get("gone", {}).items():
        yield f"broker {printable(name)}  gone: {_owed(its)}; put it back, or `citygate buffer forget {quoted(name)}`"
    for name, its in log.get("gone_devices", {}).items():
        to = ", ".join(map(printable, its["brokers"]))
        remedy = f"it is sent, or `citygate buffer forget --device {quoted(name)}`"
        yield f"device {printable(name)}  gone: {_owed(its)} to {to}; {remedy}"


def quoted(name: str) -> str:
    """A name as a shell takes it."""
    return shlex.quote(printable(name))


def _owed(its: Mapping[str, Any]) -> str:
    held = [
        f"{its[state]} held {word}"
        for state, word in (("later", "for later"), ("dead", "as dead letters"))
        if its[state]
    ]
    readings = "readings (being counted)" if its["backlog"] is None else counted(its["backlog"], "reading")
    return ", ".join([f"{readings} owed", *held])


def _log(log: Mapping[str, Any]) -> Iterator[str]:
    if not log:
        return
    parts = [_why(log)]
    if "size_bytes" in log:
        of = f" of {size(log['max_size_bytes'])}" if log.get("max_size_bytes") else ""
        parts.append(f"{size(log['size_bytes'])}{of}")
    if "head_readings" in log:
        parts.append(f"{log['head_readings']} readings in memory")
    parts += [f"{log[key]} {key}" for key in ("gaps", "dropped") if log.get(key)]
    yield f"{mark(log.get('state', 'ok'))} log  {'  '.join(part for part in parts if part)}  {log.get('path', '')}".rstrip()
    if log.get("remedy"):
        yield f"    → {printable(log['remedy'])}"


def _clock(clock: Mapping[str, Any]) -> Iterator[str]:
    if not clock:
        return
    at = time_of(clock.get("now"))
    trusted = clock.get("trusted", clock.get("state", "ok") == "ok")
    told = f"by {clock['source']}" if trusted and clock.get("source") else "not confirmed"
    yield f"{mark('ok' if trusted else 'unconfirmed')} clock  {f'{at:%Y-%m-%d %H:%M:%S} UTC' if at else ''}  {told}"
    if clock.get("doubt"):
        yield f"    {printable(clock['doubt'])}"
    if clock.get("remedy"):
        yield f"    → {printable(clock['remedy'])}"


def size(count: float) -> str:
    """`49.2 kB`, `1.0 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
