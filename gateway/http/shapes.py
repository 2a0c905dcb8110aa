"""JSON shapes of readings and problems that the control socket and the command share. Pure."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from gateway.sdk.errors import Problem
from gateway.sdk.reading import Reading
from gateway.sdk.template import TemplatePoint


def utc(time: datetime | None) -> str | None:
    """RFC 3339 with `Z`, milliseconds only where there are some."""
    if time is None:
        return None
    precision = "milliseconds" if time.microsecond else "seconds"
    return time.astimezone(UTC).isoformat(timespec=precision).replace("+00:00", "Z")


def reading_rows(points: Mapping[str, TemplatePoint], readings: Iterable[Reading]) -> list[dict[str, Any]]:
    """Readings as `decode` and `read` print them: `{point, quantity, value, unit, quality, reason, observed_at}`."""
    return [
        {
            "point": reading.point,
            "quantity": points[reading.point].quantity if reading.point in points else "",
            "value": reading.value,
            "unit": points[reading.point].unit if reading.point in points else "",
            "quality": reading.quality.value,
            "reason": reading.reason.value,
            "observed_at": utc(reading.observed_at),
        }
        for reading in readings
    ]


def problem_row(problem: Problem) -> dict[str, Any]:
    """A problem as `check --json` prints it; `path` is dotted."""
    return {
        "code": problem.code,
        "severity": problem.severity,
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "path": ".".join(map(str, problem.path)),
        "message": problem.message,
        "remedy": problem.remedy,
    }
