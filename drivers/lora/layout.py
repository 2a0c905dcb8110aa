"""The language in which a template describes a payload: data only. `codec/payload.py` reads it, the simulator writes it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from gateway.sdk.template import TemplateModel

Number = Literal[
    "u8", "i8", "u16", "i16", "u24", "i24", "u32", "i32", "u48", "u64", "i64", "u32w", "f32", "f64",
    "bcd8", "bcd16", "bcd24", "bcd32",
]  # fmt: skip
SIZES: dict[str, int] = {
    "u8": 1, "i8": 1, "u16": 2, "i16": 2, "u24": 3, "i24": 3, "u32": 4, "i32": 4, "u48": 6, "u64": 8, "i64": 8,
    "u32w": 4, "f32": 4, "f64": 8, "bcd8": 1, "bcd16": 2, "bcd24": 3, "bcd32": 4,
}  # fmt: skip
EPOCHS_S = {"unix": 0, "y2000": 946684800, "y2013": 1356998400, "gps": 315964800}
Hex = Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2})+$")]
Raw = int | float


class Meaning(TemplateModel):
    """What a raw number stands for: bits taken out, then point = ((raw + bias) x scale)^power + offset, or a table."""

    point: str | None = Field(None, description="declared point that takes the value; none: only for `name` or padding")
    name: str | None = Field(None, description="keeps the raw number for `when`, `times` and `sum`")
    bits: tuple[int, int] | None = Field(None, description="lowest bit (0 = least significant) and how many")
    signed: bool = Field(False, description="the bits are two's complement")
    bias: float = Field(0.0, description="added to the raw number first")
    scale: float = 1.0
    divide: float = Field(1.0, description="instead of a scale that has no exact decimal, e.g. 65536")
    polynomial: tuple[float, ...] | None = Field(None, description="coefficients from x^0 on, of the scaled number")
    power: int = 1
    offset: float = 0.0
    integer: bool = Field(False, description="the point takes an integer")
    flag: bool = Field(False, description="true when the raw number is not 0")
    values: dict[int, bool | int | float | str] | None = Field(None, description="raw number: value")
    none: tuple[Raw, ...] = Field((), description="raw numbers that say: no value")


class Tlv(TemplateModel):
    """Records that begin with a tag, to the end of the payload."""

    tag: int = Field(ge=1, le=4, description="bytes of a tag")
    length: bool = Field(
        False, description="a byte after the tag counts the bytes of the value; unknown tags are skipped"
    )
    tail: int = Field(0, ge=0, description="bytes at the end that are no record (a checksum)")
    entries: dict[Hex, tuple["Step", ...]]


class Mask(TemplateModel):
    """A word whose set bits, lowest first, say which groups follow."""

    type: Literal["u8", "u16", "u32"] = "u16"
    groups: tuple[tuple["Step", ...], ...]


class Repeat(TemplateModel):
    """The same group several times: several probes, or old measurements. `{n}` in a point's name is the turn, from 0."""

    times: int | str | None = Field(None, description="a number, the name of a number read before; default: to the end")
    limit: int = Field(64, ge=1, le=256, description="more is refused")
    step_s: float = Field(0.0, description="each turn's time is this much later than the one before; negative: older")
    read: tuple["Step", ...]


class Step(Meaning):
    """One step through the payload. Exactly one of: type (a number), skip, tlv, mask, repeat, sum."""

    type: Number | None = Field(None, description="number to read")
    endian: Literal["big", "little"] | None = Field(None, description="default: the layout's")
    parts: tuple[Meaning, ...] = Field((), description="several meanings of one number (bit fields)")
    time: Literal["unix", "y2000", "y2013", "gps"] | None = Field(
        None, description="the number is a time in seconds; it dates what follows in this group"
    )
    at: int | None = Field(None, description="read at this place (negative: from the end) without moving on")
    skip: int | None = Field(None, ge=1)
    tlv: Tlv | None = None
    mask: Mask | None = None
    repeat: Repeat | None = None
    sum: tuple[str, ...] = Field((), description="names of numbers read before, added up")
    when: dict[str, tuple[Raw, ...]] = Field({}, description="only if each named number is one of these")
    optional: bool = Field(False, description="the payload may end before this step")

    @model_validator(mode="after")
    def _one_action(self) -> Self:
        actions = (self.type, self.skip, self.tlv, self.mask, self.repeat, self.sum or None)
        if sum(action is not None for action in actions) != 1:
            raise ValueError("a step takes exactly one of type, skip, tlv, mask, repeat, sum")
        return self


class Frame(TemplateModel):
    """A kind of payload, chosen by port, length and first bytes."""

    port: tuple[int, ...] = Field((), description="any when absent")
    length: tuple[int, ...] = Field((), description="any when absent")
    starts: Hex | None = Field(None, description="the payload begins with these bytes")
    ignore: str = Field("", description="a known payload without measurements; says what it is")
    read: tuple[Step, ...] = ()

    @model_validator(mode="after")
    def _read_or_ignore(self) -> Self:
        if bool(self.ignore) == bool(self.read):
            raise ValueError("a frame takes either read or ignore")
        return self


class LayoutCodec(TemplateModel):
    """A payload described field by field; the first frame that fits is read."""

    kind: Literal["layout"]
    endian: Literal["big", "little"] = "big"
    frames: tuple[Frame, ...] = Field(min_length=1)


class CayenneCodec(TemplateModel):
    """Cayenne LPP: fields are named type_channel, e.g. temperature_3."""

    kind: Literal["cayenne"]
    fields: dict[str, str] = Field({}, description="point: field; default: the point's own name")


class ObjectCodec(TemplateModel):
    """What the network server's own codec made of the payload."""

    kind: Literal["object"]
    fields: dict[str, str] = Field({}, description="point: path such as values.temp or probes[0].t; default: the name")


class JavaScriptCodec(TemplateModel):
    """The vendor's JavaScript: decodeUplink({bytes, fPort}) as The Things Stack and ChirpStack v4 call it, or
    Decode(fPort, bytes) as ChirpStack v3 did."""

    kind: Literal["javascript"]
    source: str = Field("", max_length=200_000, description="the program itself")
    file: str = Field("", description="instead: absolute path of a file with the program")
    form: Literal["decodeUplink", "Decode"] = "decodeUplink"
    fields: dict[str, str] = Field({}, description="point: path in the result; default: the name")

    @model_validator(mode="after")
    def _source_or_file(self) -> Self:
        if bool(self.source) == bool(self.file):
            raise ValueError("javascript takes either source or file")
        return self


Codec = Annotated[LayoutCodec | CayenneCodec | ObjectCodec | JavaScriptCodec, Field(discriminator="kind")]


def layout_points(layout: LayoutCodec) -> set[str]:
    """Names of all points that a layout fills; `{n}` stays as it is."""
    found: set[str] = set()

    def walk(steps: Any) -> None:
        for step in steps:
            found.update(part.point for part in (step, *step.parts) if part.point)
            for group in _groups(step):
                walk(group)

    for frame in layout.frames:
        walk(frame.read)
    return found


def _groups(step: Step) -> tuple[tuple[Step, ...], ...]:
    if step.tlv:
        return tuple(step.tlv.entries.values())
    if step.mask:
        return step.mask.groups
    return (step.repeat.read,) if step.repeat else ()
