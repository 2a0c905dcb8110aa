"""Encodings: what is written reads back; what is no value gives none."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.client.mixin import ModbusClientMixin

from drivers.modbus.codec.registers import Encoding, Order, Type, raw_range
from gateway.sdk.reading import Reason

RANGES: dict[Type, tuple[int, int]] = {
    "uint16": (0, 2**16 - 1), "int16": (-(2**15), 2**15 - 1), "uint32": (0, 2**32 - 1), "int32": (-(2**31), 2**31 - 1),
    "uint64": (0, 2**64 - 1), "int64": (-(2**63), 2**63 - 1), "bcd16": (0, 9999), "bcd32": (0, 99_999_999),
    "signmag16": (1 - 2**15, 2**15 - 1), "signmag32": (1 - 2**31, 2**31 - 1),
}  # fmt: skip
orders = st.sampled_from(["big", "little"])


def read(encoding: Encoding, data: bytes) -> object:
    [unpacked] = struct.unpack(">" + encoding.code, data)
    value, reason = encoding.value(unpacked)
    assert (value is None) == (reason is not Reason.NONE)
    return value


@given(st.data(), st.sampled_from(sorted(RANGES)), orders, orders)
def test_integers_read_back_as_written_in_every_order(data, kind: Type, word_order, byte_order) -> None:  # type: ignore[no-untyped-def]
    value = data.draw(st.integers(*RANGES[kind]))
    encoding = Encoding(kind, word_order=word_order, byte_order=byte_order)

    assert read(encoding, encoding.encode(value)) == value


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), orders, orders)
def test_floats_read_back_as_written_in_every_order(value: float, word_order, byte_order) -> None:  # type: ignore[no-untyped-def]
    for kind in ("float32", "float64"):
        encoding = Encoding(kind, word_order=word_order, byte_order=byte_order)
        got = read(encoding, encoding.encode(value))
        assert isinstance(got, float)
        assert struct.unpack(">f", struct.pack(">f", got)) == (value,)
    assert got == value  # a float64 to the bit


@pytest.mark.parametrize("text", ["230.2", "0.9570000", "657.506", "1e-05", "16777216", "0.1", "-1234.5"])
def test_a_float32_reads_as_the_shortest_decimal_that_it_is(text: str) -> None:
    encoding = Encoding("float32")

    assert read(encoding, struct.pack(">f", float(text))) == float(text)


@given(st.integers(0, 65535))
def test_a_step_of_the_register_is_a_step_of_the_value(raw: int) -> None:
    encoding = Encoding("uint16", scale=0.1, offset=-40)

    value = read(encoding, raw.to_bytes(2, "big"))

    assert value == raw / 10 - 40
    assert encoding.encode(value) == raw.to_bytes(2, "big")


@pytest.mark.parametrize("word_order", ["big", "little"])
@pytest.mark.parametrize("kind", ["INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "FLOAT32", "FLOAT64"])
def test_word_orders_agree_with_another_implementation(kind: str, word_order) -> None:  # type: ignore[no-untyped-def]
    their = ModbusClientMixin.DATATYPE[kind]
    for value in (0, 1, 77, 12345):
        registers = ModbusClientMixin.convert_to_registers(value, their, word_order=word_order)
        encoding = Encoding(kind.lower(), word_order=word_order)  # type: ignore[arg-type]  # the same names

        assert encoding.encode(value) == struct.pack(f">{len(registers)}H", *registers)


@pytest.mark.parametrize(
    ("abcd", "word_order", "byte_order"),
    [
        ("43668000", "big", "big"),
        ("80004366", "little", "big"),
        ("66430080", "big", "little"),
        ("00806643", "little", "little"),
    ],
)
def test_the_four_orders_of_a_float(abcd: str, word_order, byte_order) -> None:  # type: ignore[no-untyped-def]
    assert read(Encoding("float32", word_order=word_order, byte_order=byte_order), bytes.fromhex(abcd)) == 230.5


@pytest.mark.parametrize(
    ("encoding", "data", "value"),
    [
        (Encoding("uint16", bits=(4, 3)), "0050", 5),
        (Encoding("uint16", bits=(7, 1)), "0080", True),
        (Encoding("uint16", bits=(7, 1)), "ff7f", False),
        (Encoding("uint16", enum=((0, "off"), (3, "alarm"))), "0003", "alarm"),
        (Encoding("signmag16"), "8001", -1),
        (Encoding("signmag16"), "8000", 0),
        (Encoding("bcd16"), "1234", 1234),
        (Encoding("string", words=3), "53756e530000", "SunS"),
        (Encoding("string", words=2, byte_order="little"), "7553536e", "SunS"),
        (Encoding("string", words=3), "5ac3bc7269 00".replace(" ", ""), "Züri"),
        (Encoding("string", words=3), "41001bff0000", "A"),  # what is behind the end is none of it
        (Encoding("int16", scale=0.1), "ff9b", -10.1),
        (Encoding("uint16", scale=100), "0003", 300),
    ],
)
def test_a_value_of_each_kind(encoding: Encoding, data: str, value: object) -> None:
    got = read(encoding, bytes.fromhex(data))

    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("encoding", "data", "reason"),
    [
        (Encoding("int16", invalid=(-32768,)), "8000", Reason.NOT_AVAILABLE),
        (Encoding("uint16", invalid=(65535,)), "ffff", Reason.NOT_AVAILABLE),
        (Encoding("float32"), "ffc00000", Reason.NOT_AVAILABLE),
        (Encoding("float32"), "7fc00000", Reason.NOT_AVAILABLE),
        (Encoding("float32"), "7f800000", Reason.NOT_FINITE),
        (Encoding("bcd16"), "12a4", Reason.BAD_FRAME),
        (Encoding("uint16", enum=((0, "off"),)), "0007", Reason.OUT_OF_RANGE),
        (Encoding("string", words=1), "0000", Reason.NOT_AVAILABLE),
        (Encoding("string", words=3), "ffffffffffff", Reason.NOT_AVAILABLE),
        (Encoding("string", words=3), "41ff42000000", Reason.BAD_FRAME),
        (Encoding("string", words=3), "eda080410000", Reason.BAD_FRAME),  # half a character
        (Encoding("string", words=2), "411b5b4a", Reason.BAD_FRAME),  # a terminal's command
    ],
)
def test_what_is_no_value_gives_none_and_why(encoding: Encoding, data: str, reason: Reason) -> None:
    [unpacked] = struct.unpack(">" + encoding.code, bytes.fromhex(data))

    assert encoding.value(unpacked) == (None, reason)


@pytest.mark.parametrize(
    ("encoding", "value"),
    [
        (Encoding("uint16"), -1),
        (Encoding("uint16"), 65536),
        (Encoding("int16", scale=0.1), 0.05),
        (Encoding("uint16"), math.nan),
        (Encoding("bcd16"), 10000),
        (Encoding("signmag16"), 2**15),
        (Encoding("float32"), 1e300),
        (Encoding("uint16", enum=((0, "off"),)), "on"),
        (Encoding("uint16"), "12"),
        (Encoding("bit"), 2),
        (Encoding("string", words=1), "abc"),
        (Encoding("uint16", bits=(0, 1)), 1),
    ],
)
def test_a_value_that_does_not_fit_is_not_written(encoding: Encoding, value: object) -> None:
    with pytest.raises(ValueError, match=r"fit|step|number|none of|flag|longer|alone"):
        encoding.encode(value)  # type: ignore[arg-type]  # the point of the test


WIDTHS: dict[Type, int] = {
    "uint16": 16, "int16": 16, "uint32": 32, "int32": 32, "uint64": 64, "int64": 64, "bcd16": 16, "bcd32": 32,
    "signmag16": 16, "signmag32": 32,
}  # fmt: skip


@given(st.data(), st.sampled_from(["uint16", "int16", "uint32", "int32", "uint64", "int64"]), orders, orders)
def test_a_bit_field_holds_what_was_put_there_with_its_sign(
    data: st.DataObject, kind: Type, word_order: Order, byte_order: Order
) -> None:
    """Also at its extremes, whatever its neighbours hold."""
    width = WIDTHS[kind]
    low = data.draw(st.integers(0, width - 2))
    count = data.draw(st.integers(2, width - low))
    signed = kind.startswith("int") or data.draw(st.booleans())
    half = 1 << (count - 1)
    least, most = (-half, half - 1) if signed else (0, 2 * half - 1)
    value = data.draw(st.sampled_from([least, most, 0]) | st.integers(least, most))
    others = data.draw(st.integers(0, 2**width - 1)) & ~(((1 << count) - 1) << low)
    pattern = others | (value & (1 << count) - 1) << low
    encoding = Encoding(
        kind, word_order=word_order, byte_order=byte_order, bits=(low, count), signed=signed and kind[0] == "u"
    )

    assert read(encoding, encoding.ordered(pattern.to_bytes(width // 8, "big"))) == value
    assert raw_range(kind, (low, count), signed=signed) == (least, most)


@given(st.data(), st.sampled_from(sorted(WIDTHS)), orders, orders)
def test_a_sentinel_is_compared_before_sign_and_digits_however_it_is_written(
    data: st.DataObject, kind: Type, word_order: Order, byte_order: Order
) -> None:
    width = WIDTHS[kind]
    pattern = data.draw(st.sampled_from([0, 1 << (width - 1), 2**width - 1]) | st.integers(0, 2**width - 1))
    if kind.startswith("bcd") and pattern < 10 ** (width // 4):
        pattern = int(str(pattern), 16)  # such a number means the digits
    plain = Encoding(kind, word_order=word_order, byte_order=byte_order)
    [unpacked] = struct.unpack(">" + plain.code, plain.ordered(pattern.to_bytes(width // 8, "big")))
    number = plain.raw(unpacked)
    written = (
        [pattern] if number is None or not isinstance(number, int) or number == 0 != pattern else [pattern, number]
    )
    if kind.startswith("bcd") and number is not None:
        written = [number]

    for one in written:
        its = Encoding(kind, word_order=word_order, byte_order=byte_order, invalid=(one,))
        assert its.value(unpacked) == (None, Reason.NOT_AVAILABLE), one
        [other] = struct.unpack(">" + its.code, its.ordered(((pattern + 1) % 2**width).to_bytes(width // 8, "big")))
        assert its.value(other)[1] is not Reason.NOT_AVAILABLE


def test_the_sentinel_of_a_bit_field_is_that_of_the_field() -> None:
    field = Encoding("int16", bits=(8, 8), invalid=(0x80,))

    assert field.value(-32768 + 5) == (None, Reason.NOT_AVAILABLE)  # 0x8005
    assert field.value(-1) == (-1, Reason.NONE)
    assert Encoding("int16", bits=(8, 8), invalid=(-128,)).value(-32768) == (None, Reason.NOT_AVAILABLE)


def test_the_sentinel_of_64_bits_is_exact() -> None:
    encoding = Encoding("uint64", scale=0.01, invalid=(2**64 - 1,))

    assert encoding.value(2**64 - 1) == (None, Reason.NOT_AVAILABLE)
    assert encoding.value(2**64 - 2)[1] is Reason.NONE


@given(st.binary(min_size=8, max_size=8), st.sampled_from([*WIDTHS, "float32", "float64"]), st.data())
def test_any_registers_give_a_value_or_a_reason(data: bytes, kind: Type, draw: st.DataObject) -> None:
    scale = draw.draw(st.sampled_from([1, -1, 0.1, 1e15, 1e-15, 10, 3]))
    encoding = Encoding(kind, scale=scale, offset=draw.draw(st.sampled_from([0, -40, 1e15])))
    value = read(encoding, data[: 2 * encoding.words])
    assert value is None or isinstance(value, int | float)
