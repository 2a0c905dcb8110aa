"""Template: one device type as data. A driver subclasses `Template` and adds how to read the device."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class TemplateModel(BaseModel):
    """Base of every part of a template: frozen, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_alias=True, validate_by_name=False)


class TemplatePoint(TemplateModel):
    """One value of the device: what it measures and in which unit the driver hands it over."""

    quantity: str = Field(description="name from the closed list of quantities")
    unit: str = Field("", description="UN/CEFACT common code of the values; default: the quantity's canonical unit")
    description: str = Field("", description="what the data sheet calls it")
    range: tuple[float, float] | None = Field(None, description="plausible range in the unit; default: the quantity's")


class EntityMapping(TemplateModel):
    """How points become one entity. As `entity:` in a template it is the default, in a device it overrides.

    Attributes take `attribute: point`; static attributes take `attribute: value`.
    """

    type: str | None = Field(None, description="entity type, e.g. AirQualityObserved")
    id: str | None = Field(
        None, description="entity id or pattern; default urn:ngsi-ld:{Type}:{city}:{gateway}:{device}"
    )
    attributes: dict[str, str] = Field(default={}, description="attribute: point")
    static: dict[str, Any] = Field(default={}, description="attribute: constant value")


class Caveat(TemplateModel):
    """A trap of this device that a technician should know, with who says so."""

    text: str
    source: str = ""


class Sample(TemplateModel):
    """A captured frame or payload with its expected values: the template's own test."""

    name: str
    hex: str = Field(description="the bytes as received, hexadecimal")
    context: dict[str, Any] = Field(default={}, description="what the codec needs beside the bytes (port, request)")
    expect: dict[str, float | int | bool | str | None] = Field(description="point: value; null = no value")
    source: str = Field(description="data sheet or capture the frame comes from, with licence")


class Template(TemplateModel):
    """The part of a template that all drivers share."""

    vendor: str
    model: str
    description: str = ""
    fingerprint: dict[str, Any] = Field(default={}, description="how a scan recognises the device; driver's own form")
    points: dict[str, TemplatePoint] = Field(min_length=1)
    entity: EntityMapping = EntityMapping()
    requirements: tuple[str, ...] = ()
    caveats: tuple[Caveat, ...] = ()
    samples: tuple[Sample, ...] = ()
    sources: tuple[str, ...] = Field(
        default=(), description="where register map or frame format come from, with licence"
    )
    name: str = Field("", description="vendor/model as in the folder; filled in by the loader")
