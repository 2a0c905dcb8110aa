"""The exact entities a device gives, per broker and in its dialect, from given values or from its template's samples. Pure."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from gateway.harmonise.compile import Mapping as Table
from gateway.harmonise.dialects import key_values, ngsi_ld, ngsi_v2
from gateway.harmonise.entity import harmonise
from gateway.intake import Intake, rules_of
from gateway.models.validator import Validator
from gateway.sdk.driver import Driver, decoded
from gateway.sdk.errors import FrameError
from gateway.sdk.reading import Quality, Value
from gateway.sdk.template import Template

Good = Mapping[str, tuple[Value, int]]
"""Point -> (value, time in UTC microseconds) of good readings."""


def previewed(
    source: str, good: Good, tables: Mapping[str, tuple[str, Iterable[Table]]], validator: Validator
) -> dict[str, Any]:
    """The answer to `preview`: where the values are from, what the models have against it, what is left out, the entities.

    Args:
        tables: of the device, by broker, with the broker's kind.
    """
    of = {broker: (kind, list(its)) for broker, (kind, its) in tables.items()}
    every = [table for _, its in of.values() for table in its]
    return {
        "source": source,
        "remarks": remarks(every, good, validator),
        "blanks": blanks(every, good),
        "brokers": {broker: entities(its, good, kind=kind) for broker, (kind, its) in of.items()},
    }


def entities(tables: Iterable[Table], good: Good, *, kind: str = "ngsi-ld") -> list[dict[str, Any]]:
    """The entities of these values as a broker of this kind gets them."""
    write = ngsi_v2 if kind == "ngsi-v2" else ngsi_ld
    return [write(harmonise(table, good)) for table in tables]


def remarks(tables: Iterable[Table], good: Good, validator: Validator | None = None) -> list[str]:
    """What the model has against these entities: mandatory attributes not known yet, values it does not allow.

    Args:
        validator: with it, what the official schema says against them as well.
    """
    found: list[str] = []
    for table in tables:
        missing = sorted(table.missing(set(good)))
        if missing:
            found.append(f"{table.entity_id}: not sent before {', '.join(missing)} is known")
        entity = harmonise(table, good)
        found += [f"{table.entity_id}: {why}" for why in entity.dropped.values()]
        if validator is not None:
            faults = validator.faults(key_values(entity), entity.context, whole=not missing)
            found += [f"{table.entity_id}: held, not valid as {entity.type}: {fault}" for fault in faults]
    return list(dict.fromkeys(found))


def blanks(tables: Iterable[Table], good: Good) -> list[str]:
    """Attributes that are mapped and not shown, each with the point that has no good value here."""
    left = [
        f"{table.entity_id}: without {slot.key}: no good value of {point} here"
        for table in tables
        for point, slots in table.slots.items()
        for slot in slots
        if point not in good
    ]
    return list(dict.fromkeys(left))


def sample_values(driver: Driver[Any], template: Template, *, now: datetime) -> dict[str, tuple[Value, int]]:
    """Good values of the template's own sample frames, as if received now; the first sample that has a point counts."""
    good: dict[str, tuple[Value, int]] = {}
    intake = Intake(rules_of(template))
    now_us = round(now.astimezone(UTC).timestamp() * 1e6)
    for sample in template.samples:
        try:
            readings = decoded(driver, template, bytes.fromhex(sample.hex), {**sample.context, "received_at": now})
        except (FrameError, ValueError):
            continue  # `templates check` is where a sample that does not decode is told
        for reading in intake.judge(readings).readings:
            if reading.quality is Quality.GOOD and reading.value is not None:
                good.setdefault(reading.point, (reading.value, now_us))
    return good
