"""The language in which a template describes a payload: data only. `codec/payload.py` reads it, the simulator writes it.

What cannot be right is refused at load, so that a payload meets arithmetic that only the payload itself can break.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from gateway.sdk.template import TemplateModel

Number = Literal[
    "u8", "i8", "u16", "i16", "u24", "i24", "u32", "i32", "u48", "u64", "i64", "u32w", "f32", "f64",
    "bcd8", "bcd16", "bcd24", "bcd32",
]  # fmt: skip
SIZES: dict[str, int] = {
    "u8": 1, "i8": 1, "u16": 2, "i16": 2, "u24": 3, "i24": 3, "u32": 4, "i32": 4, "u48": 6, "u64": 8, "i64": 8,
    "u32w": 4, "f32": 4, "f64": 8, "bcd8": 1, "bcd16": 2, "bcd24": 3, "bcd32": 4,
}  # fmt: skip
MAX_PAYLOAD = 255  # bytes of a LoRa frame
MAX_NESTING = 8  # of groups in groups
PROGRAM_BYTES = 200_000  # of a vendor's program
EPOCHS_S = {"unix": 0, "y2000": 946684800, "y2013": 1356998400, "gps": 315964800}
Hex = Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2})+$")]
Raw = int | float
Count = Annotated[int, Field(ge=1, le=MAX_PAYLOAD)]


def raw_range(kind: str) -> tuple[int, int] | None:
    """Lowest and highest raw number of a type; None for floats."""
    size = SIZES[kind]
    if kind[0] == "f":
        return None
    if kind[0] == "i":
        return -(1 << 8 * size - 1), (1 << 8 * size - 1) - 1
    return (0, 10 ** (2 * size) - 1) if kind.startswith("bcd") else (0, (1 << 8 * size) - 1)


class Meaning(TemplateModel):
    """What a raw number stands for: bits taken out, then point = ((raw + bias) x scale)^power + offset, or a table."""

    point: str | None = Field(None, description="declared point that takes the value; none: only for `name` or padding")
    name: str | None = Field(None, description="keeps the raw number for `when`, `times` and `sum`")
    bits: tuple[int, int] | None = Field(None, description="lowest bit (0 = least significant) and how many")
    signed: bool = Field(False, description="the bits are two's complement")
    bias: float = Field(0.0, description="added to the raw number first")
    scale: float = 1.0
    divide: float = Field(1.0, description="instead of a scale that has no exact decimal, e.g. 65536")
    polynomial: tuple[float, ...] | None = Field(
        None, min_length=1, max_length=16, description="coefficients from x^0 on, of the scaled number"
    )
    power: int = Field(1, ge=-8, le=8, description="negative: a raw number that gives 0 is then no value")
    offset: float = 0.0
    integer: bool = Field(False, description="the point takes an integer")
    flag: bool = Field(False, description="true when the raw number is not 0")
    values: dict[int, bool | int | float | str] | None = Field(None, min_length=1, description="raw number: value")
    none: tuple[Raw, ...] = Field(
        (), description="raw numbers that say: no value; of a signed field also as its bits read without a sign"
    )

    @field_validator("scale", "divide", "power")
    @classmethod
    def _not_zero(cls, number: float) -> float:
        if number == 0:
            raise ValueError("0 leaves nothing of the number; leave it out for 1")
        return number

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.signed and self.bits is None:
            raise ValueError("signed goes with bits; a signed number has a type of its own, such as i16")
        if self.bits is not None and (self.bits[0] < 0 or self.bits[1] < 1):
            raise ValueError(
                f"bits {list(self.bits)} are none: give the lowest bit, from 0 on, and how many, from 1 on"
            )
        if self.flag + self.integer + (self.values is not None) > 1:
            raise ValueError("a value is one of flag, integer or a table of values")
        if (self.flag or self.values is not None) and self.computes:
            raise ValueError(
                "a flag or a table of values takes the raw number as it is: no bias, scale, power or offset"
            )
        return self

    @cached_property
    def computes(self) -> bool:
        """Whether the raw number is more than taken as it stands."""
        plain = self.bias == 0 == self.offset and self.scale == 1 == self.divide and self.power == 1
        return not plain or self.polynomial is not None

    def width_problem(self, kind: str) -> str:
        """What of this cannot be of a number of a type; "" when all can."""
        bounds = raw_range(kind)
        if bounds is None:
            return f"{kind} is no whole number: it has no bits and no table" if self.bits or self.values else ""
        low, high = bounds
        if self.bits is not None:
            if kind.startswith("bcd"):
                return f"{kind} holds decimal digits; it has no bits"
            first, count = self.bits
            if first + count > 8 * SIZES[kind]:
                return f"bits {first} to {first + count - 1} are beyond the {8 * SIZES[kind]} bits of {kind}"
            low, high = (-(1 << count - 1), (1 << count - 1) - 1) if self.signed else (0, (1 << count) - 1)
        for raw in self.values or ():
            if not low <= raw <= high:
                return f"values: {raw} cannot be read, the number is {low} to {high}"
        for none in self.none:
            if not (low <= none <= high or (low < 0 <= none <= high - low)) or none != int(none):
                return f"none: {none:g} cannot be read, the number is {low} to {high}"
        return ""


class Tlv(TemplateModel):
    """Records that begin with a tag, to the end of the payload."""

    tag: int = Field(ge=1, le=4, description="bytes of a tag")
    length: bool = Field(
        False, description="a byte after the tag counts the bytes of the value; unknown tags are skipped"
    )
    tail: int = Field(0, ge=0, le=MAX_PAYLOAD, description="bytes at the end that are no record (a checksum)")
    entries: dict[Hex, tuple["Step", ...]] = Field(min_length=1)

    @field_validator("entries")
    @classmethod
    def _lower_case(cls, entries: dict[str, tuple["Step", ...]]) -> dict[str, tuple["Step", ...]]:
        lower = {tag.lower(): steps for tag, steps in entries.items()}
        if len(lower) < len(entries):
            raise ValueError("a tag stands here twice, in small and in capital letters")
        return lower

    @model_validator(mode="after")
    def _tags_have_their_length(self) -> Self:
        for tag in self.entries:
            if len(tag) != 2 * self.tag:
                raise ValueError(f"tag {tag} has {len(tag) // 2} bytes, `tag` says {self.tag}")
        return self


class Mask(TemplateModel):
    """A word whose set bits, lowest first, say which groups follow."""

    type: Literal["u8", "u16", "u32"] = "u16"
    groups: tuple[tuple["Step", ...], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_bits(self) -> Self:
        if len(self.groups) > 8 * SIZES[self.type]:
            raise ValueError(f"{len(self.groups)} groups, but {self.type} has {8 * SIZES[self.type]} bits")
        return self


class Repeat(TemplateModel):
    """The same group several times: several probes, or old measurements. `{n}` in a point's name is the turn, from 0."""

    times: int | str | None = Field(None, description="a number, the name of a number read before; default: to the end")
    limit: int = Field(64, ge=1, le=256, description="more is refused")
    step_s: float = Field(
        0.0,
        ge=-86400 * 31,
        le=86400 * 31,
        description="each turn's time is this much later than the one before; negative: older",
    )
    read: tuple["Step", ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _within_the_limit(self) -> Self:
        if isinstance(self.times, int) and not 1 <= self.times <= self.limit:
            raise ValueError(f"{self.times} times, 1 to `limit` ({self.limit}) are allowed")
        return self


class Step(Meaning):
    """One step through the payload. Exactly one of: type (a number), skip, tlv, mask, repeat, sum."""

    type: Number | None = Field(None, description="number to read")
    endian: Literal["big", "little"] | None = Field(None, description="default: the layout's")
    parts: tuple[Meaning, ...] = Field((), description="several meanings of one number (bit fields)")
    time: Literal["unix", "y2000", "y2013", "gps"] | None = Field(
        None, description="the number is a time in seconds; it dates what follows in this group"
    )
    at: int | None = Field(
        None,
        ge=-MAX_PAYLOAD,
        lt=MAX_PAYLOAD,
        description="read at this place (negative: from the end) without moving on",
    )
    skip: Count | None = None
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

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> Self:
        if self.parts and (self.point is not None or self.name is not None or self.bits is not None):
            raise ValueError("with parts, point, name and bits belong into a part")
        measures = self.parts or self.point is not None or self.name is not None
        if measures and self.type is None and not self.sum:
            raise ValueError("only a number (type) or a sum has point, name or parts")
        if self.type is None and (self.at is not None or self.time is not None):
            raise ValueError("at and time go with a number (type)")
        if self.time is not None and (measures or (self.type or "")[0] != "u"):
            raise ValueError("a time is an unsigned number without point, name or parts")
        if self.sum and (self.parts or self.bits is not None):
            raise ValueError("a sum has neither parts nor bits")
        return self

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if self.type is None:
            return self
        for part in self.parts or (self,):
            if problem := part.width_problem(self.type):
                raise ValueError(problem)
        if self.at is not None and self.at < 0 and -self.at < SIZES[self.type]:
            raise ValueError(f"at: {self.at} leaves {-self.at} bytes, {self.type} takes {SIZES[self.type]}")
        return self

    @model_validator(mode="after")
    def _signed_bits_say_so(self) -> Self:
        """As in a Modbus template the bit field of a signed type is signed; here it has to say it."""
        for part in self.parts or (self,):
            if (self.type or "").startswith("i") and part.bits is not None and part.bits[1] > 1 and not part.signed:
                raise ValueError(f"bits: of {self.type} they are two's complement: say signed: true, or take an u type")
        return self


class Frame(TemplateModel):
    """A kind of payload, chosen by port, length and first bytes."""

    port: tuple[Annotated[int, Field(ge=0, le=255)], ...] = Field((), description="any when absent")
    length: tuple[Count, ...] = Field((), description="any when absent")
    starts: Hex | None = Field(None, description="the payload begins with these bytes")
    ignore: str = Field("", description="a known payload without measurements; says what it is")
    read: tuple[Step, ...] = ()
    rest: str = Field("", description="bytes behind what is read are known; says what they are. Else they are told")

    @model_validator(mode="after")
    def _read_or_ignore(self) -> Self:
        if bool(self.ignore) == bool(self.read):
            raise ValueError("a frame takes either read or ignore")
        if self.starts and self.length and len(self.starts) // 2 > max(self.length):
            raise ValueError("starts is longer than the payload")
        return self

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        names: set[str] = set()
        for step, nesting, repeated in _walk(self.read):
            if nesting > MAX_NESTING:
                raise ValueError(f"groups are nested deeper than {MAX_NESTING}")
            asked = {*step.when, *step.sum}
            if step.repeat is not None and isinstance(step.repeat.times, str):
                asked.add(step.repeat.times)
            if unknown := sorted(asked - names):
                raise ValueError(f"no number named {', '.join(unknown)} is read before it is asked for")
            parts = (step, *step.parts)
            names.update(part.name for part in parts if part.name is not None)
            if not repeated and (loose := [part.point for part in parts if "{n}" in (part.point or "")]):
                raise ValueError(f"{loose[0]}: {{n}} is the turn of a repeat, and here is none")
            if self.length and step.at is not None and step.type is not None:
                end = step.at + SIZES[step.type] if step.at >= 0 else -step.at
                if end > max(self.length):
                    raise ValueError(f"at: {step.at} is beyond the {max(self.length)} bytes of the payload")
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
    source: str = Field("", max_length=PROGRAM_BYTES, description="the program itself")
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
    """Names of all points that a layout fills; of one with `{n}` the names of the turns that are sure to come."""
    found: set[str] = set()
    for frame in layout.frames:
        for step, _, repeated in _walk(frame.read):
            for part in (step, *step.parts):
                if part.point is not None:
                    turns = range(repeated) if "{n}" in part.point else (0,)
                    found.update(re.sub(r"\{n\}", str(turn), part.point) for turn in turns)
    return found


def _walk(steps: tuple[Step, ...], nesting: int = 1, repeated: int = 0) -> Iterator[tuple[Step, int, int]]:
    """Every step in the order of reading, how deep it stands, and how often the innermost repeat is sure to read it."""
    for step in steps:
        yield step, nesting, repeated
        if nesting > MAX_NESTING:
            continue
        turns = repeated
        if step.repeat is not None:
            turns = step.repeat.times if isinstance(step.repeat.times, int) else 1
        for group in _groups(step):
            yield from _walk(group, nesting + 1, turns)


def _groups(step: Step) -> tuple[tuple[Step, ...], ...]:
    if step.tlv:
        return tuple(step.tlv.entries.values())
    if step.mask:
        return step.mask.groups
    return (step.repeat.read,) if step.repeat else ()
