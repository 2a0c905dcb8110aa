"""What the control socket and the command share: JSON shapes of readings, and where the socket is. Pure."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.intake import Intake, rules_of
from gateway.sdk.driver import Exchange
from gateway.sdk.quantities import quantities
from gateway.sdk.reading import Quality, Reading, Reason
from gateway.sdk.template import Template, TemplatePoint


def utc(time: datetime | None) -> str | None:
    """RFC 3339 with `Z`, milliseconds only where there are some."""
    if time is None:
        return None
    precision = "milliseconds" if time.microsecond else "seconds"
    return time.astimezone(UTC).isoformat(timespec=precision).replace("+00:00", "Z")


UNDECLARED = "undeclared"  # reason of a row that the template does not declare: the daemon drops it


def reading_rows(template: Template, readings: Iterable[Reading]) -> list[dict[str, Any]]:
    """Readings as `decode` and `read` print them, judged by the rules of the daemon's intake; what the template does not
    declare comes last, without a value: `{point, quantity, value, unit, quality, reason, observed_at}`."""
    judged = Intake(rules_of(template)).judge(readings)
    declared = [_row(reading, template.points[reading.point]) for reading in judged.readings]
    dropped = {"quantity": "", "value": None, "unit": "", "quality": "bad", "reason": UNDECLARED, "observed_at": None}
    return [*declared, *({"point": name, **dropped} for name in judged.undeclared)]


def _row(reading: Reading, point: TemplatePoint) -> dict[str, Any]:
    try:
        observed_at = utc(reading.observed_at) if reading.observed_at.tzinfo else None
    except (AttributeError, OverflowError, ValueError):  # no time at all, or outside the years that can be told
        observed_at = None
    told = (reading.value, reading.quality, reading.reason)
    value, quality, reason = told if observed_at else (None, Quality.BAD, Reason.BAD_TIME)
    return {
        "point": reading.point,
        "quantity": point.quantity,
        "value": value,
        "unit": _unit(point),
        "quality": quality.value,
        "reason": reason.value,
        "observed_at": observed_at,
    }


def exchange_row(template: Template, exchange: Exchange) -> dict[str, Any]:
    """A one-shot read: `{sent, received, readings}`, the bytes in hexadecimal."""
    return {
        "sent": exchange.sent.hex(),
        "received": exchange.received.hex(),
        "readings": reading_rows(template, exchange.readings),
    }


def _unit(point: TemplatePoint) -> str:
    """Its UN/CEFACT code; a template that gives none means the quantity's own."""
    return point.unit or (quantities()[point.quantity].unit if point.quantity in quantities() else "")


def socket_path(buffer_path: Path) -> Path:
    """Where the daemon with this buffer listens: `/var/lib/NAME/…` → `/run/NAME/control.sock`, else beside the buffer.

    It follows from the config alone, so that the command finds the daemon, and no two buffers share a socket.
    """
    folder = buffer_path.parent
    if folder.is_relative_to("/var/lib") and folder != Path("/var/lib"):
        folder = Path("/run") / folder.relative_to("/var/lib")
    return folder / "control.sock"
