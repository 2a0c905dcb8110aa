"""Template: one device type as data. A driver subclasses `Template` and adds how to read the device."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from gateway.sdk.quantities import quantities


class TemplateModel(BaseModel):
    """Base of every part of a template: frozen, unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_alias=True, validate_by_name=False, allow_inf_nan=False
    )


STORED = {"stored": True}  # context of a validation: what was dumped has its durations in seconds


def _duration_s(value: Any, info: ValidationInfo) -> Any:
    """Seconds of `15 min`; the same words as everywhere, which stand in gateway.sdk.config (it imports this module)."""
    from gateway.sdk.config import parse_duration_s

    return value if info.context is STORED and isinstance(value, float) else parse_duration_s(value)


_DURATION = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ms|s|min|h|d)$", "examples": ["15 min"]}


class TemplatePoint(TemplateModel):
    """One value of the device: what it measures and in which unit the driver hands it over."""

    quantity: str = Field(description="name from the closed list of quantities")
    unit: str = Field("", description="UN/CEFACT common code of the values; default: the quantity's canonical unit")
    description: str = Field("", description="what the data sheet calls it")
    range: tuple[float, float] | None = Field(None, description="plausible range in the unit; default: the quantity's")
    personal: Literal["drop", "hash", "blur", "count", "no"] | None = Field(
        None,
        description="what becomes of personal data before it is logged: drop it, hash it (a text; another hash every day), "
        "blur it (a number), count how many different ones there were (the point's quantity is then the count); "
        "default: hash for what is personal by nature, as number plates, else no",
    )
    count_every_s: Annotated[float, BeforeValidator(_duration_s), WithJsonSchema(_DURATION), Field(gt=0)] = Field(
        900.0, alias="count_every", description="period of `personal: count`"
    )
    fewest: int = Field(
        5, ge=0, description="with `personal: count`: fewer than this are not told, because few are somebody"
    )
    blur_to: float | None = Field(None, gt=0, description="step a blurred number is rounded to, in the unit, e.g. 0.01")

    @property
    def privacy(self) -> Literal["", "drop", "hash", "blur", "count"]:
        """What becomes of the value before it is logged; "" = it is logged as it is."""
        if self.personal == "no":
            return ""
        known = quantities().get(self.quantity)
        return self.personal or ("hash" if known is not None and known.personal else "")

    @model_validator(mode="after")
    def _check_personal(self) -> "TemplatePoint":
        known = quantities().get(self.quantity)
        kind = known.kind if known is not None else "text"
        if self.personal == "hash" and kind != "text":
            raise ValueError(f"only a text can be hashed, and {self.quantity} is none; blur it or drop it")
        if self.personal == "count" and kind != "integer":
            raise ValueError(f"how many there were is a whole number, and {self.quantity} is none; see people_count")
        if self.personal == "blur" and (kind not in ("number", "integer") or self.blur_to is None):
            raise ValueError("to blur a number say to which step, as in blur_to: 0.01; a text can be hashed or dropped")
        return self


def _short_form(value: Any) -> Any:
    return {"point": value} if isinstance(value, str) else value


def _keys_as_text(value: Any) -> Any:
    """`translate: {0: ok, true: occupied}`: YAML reads the keys as number and boolean."""
    if not isinstance(value, dict):
        return value
    return {str(k).lower() if isinstance(k, bool) else str(k): v for k, v in value.items()}


class GasState(TemplateModel):
    """The state of the gas for which a mass by volume is stated."""

    temperature: float = Field(20.0, gt=-100, lt=200, description="degrees Celsius")
    pressure: float = Field(1013.0, gt=100, lt=2000, description="hectopascal")


class SubProperty(TemplateModel):
    """A property of a property: a constant, or the value of a point of the same device."""

    value: Any = Field(None, description="constant")
    point: str | None = Field(None, description="point whose latest value is taken")
    unit: str = Field("", description="UN/CEFACT code it is sent in; default: the point's")


class AttributeMapping(TemplateModel):
    """Where one attribute comes from. Short form: the point's name alone."""

    point: str | None = Field(None, description="point of the device; for a location see longitude and latitude")
    unit: str = Field("", description="UN/CEFACT code it is sent in; default: what model and point settle")
    gain: float = Field(
        1.0, description="factor on the value, e.g. the volume of one pulse; give the unit that results"
    )
    offset: float = Field(
        0.0, description="added after the factor, in the unit of the point (or of `unit` with a gain)"
    )
    translate: Annotated[dict[str, Any], BeforeValidator(_keys_as_text)] = Field(
        default={}, description="point value: attribute value, e.g. {true: occupied, false: free}"
    )
    pattern: str = Field("", description="text or URI around the value, e.g. urn:ngsi-ld:Vehicle:{value}")
    at: GasState | None = Field(None, description="state for gases between ppb and µg/m³; default 20 °C, 1013 hPa")
    longitude: str | None = Field(None, description="point; with latitude it makes a GeoJSON point")
    latitude: str | None = Field(None, description="point")
    sub: dict[str, SubProperty] = Field(default={}, description="properties of this property, by name")
    dataset: str = Field("", description="datasetId (a URI) when an attribute has several instances")


_ShortOrLong = Annotated[AttributeMapping, BeforeValidator(_short_form, json_schema_input_type=str | AttributeMapping)]


class EntityMapping(TemplateModel):
    """How points become an entity. As `entity:` in a template it is the default, in a device it overrides.

    Attributes take `attribute: point` or the long form; `activePower.L1` is a member of a structured value. An attribute
    given as null is not sent. Static attributes take `attribute: value`.
    """

    type: str | None = Field(None, description="entity type, e.g. AirQualityObserved")
    id: str | None = Field(
        None, description="entity id or pattern; default urn:ngsi-ld:{Type}:{city}:{gateway}:{device}"
    )
    attributes: dict[str, _ShortOrLong | None] = Field(default={}, description="attribute: point")
    static: dict[str, Any] = Field(default={}, description="attribute: constant value")
    period_s: Annotated[float, BeforeValidator(_duration_s), WithJsonSchema(_DURATION)] | None = Field(
        None, alias="period", description="length of the observation period, e.g. 15 min: dateObservedFrom and To"
    )
    more: dict[str, "EntityMapping"] = Field(default={}, description="further entities of the same device, by name")

    @field_validator("attributes")
    @classmethod
    def _taken(cls, attributes: dict[str, AttributeMapping | None]) -> dict[str, AttributeMapping | None]:
        """Null for a structured attribute takes away the members that a file below this one gives: those before it."""
        found: dict[str, AttributeMapping | None] = {}
        for key, source in attributes.items():
            if source is None:
                found = {name: its for name, its in found.items() if name.partition(".")[0] != key}
            found[key] = source
        return found


class Caveat(TemplateModel):
    """A trap of this device that a technician should know, with who says so."""

    text: str = Field(description="what happens, and what to do about it")
    source: str = Field("", description="who says so")


class Sample(TemplateModel):
    """A captured frame or payload with its expected values: the template's own test."""

    name: str = Field(description="what it shows")
    hex: str = Field(description="the bytes as received, hexadecimal")
    context: dict[str, Any] = Field(default={}, description="what the codec needs beside the bytes (port, request)")
    expect: dict[str, float | int | bool | str | None] = Field(description="point: value; null = no value")
    source: str = Field(description="data sheet or capture the frame comes from, with licence")


class Template(TemplateModel):
    """The part of a template that all drivers share."""

    vendor: str = Field(description="who makes it, as people write it")
    model: str = Field(description="its name, as printed on it")
    description: str = Field("", description="what it is, in a line")
    fingerprint: dict[str, Any] = Field(default={}, description="how a scan recognises the device; driver's own form")
    points: dict[str, TemplatePoint] = Field(min_length=1, description="what it measures, by name")
    entity: EntityMapping = EntityMapping()
    keeps_history: bool = Field(
        False,
        description="a data logger: it tells what it measured long ago, with times of its own clock; "
        "without it a device's time may be at most 1 day old when it comes",
    )
    requirements: tuple[str, ...] = Field((), description="what must be so for it to work, for technicians")
    needs: dict[str, str] = Field(
        default={},
        description="keys of the device without which the entity would say nothing or something wrong, each with what to "
        "write; `calibrate.counter.gain`. Not asked for when the device has an `entity` of its own",
    )
    caveats: tuple[Caveat, ...] = Field((), description="its traps")
    samples: tuple[Sample, ...] = Field(
        (), description="frames with the values they mean: `templates check` decodes them"
    )
    sources: tuple[str, ...] = Field(
        default=(), description="where register map or frame format come from, with licence"
    )
    name: str = Field("", description="vendor/model as in the folder; filled in by the loader")
