"""Every type at both of its ends, in each order of words and bytes, from bytes that another hand has put in order."""

import struct

import pytest

from drivers.modbus.codec.registers import Encoding, Order, Type, raw_range

# type, value, most significant byte first
ENDS: list[tuple[Type, int | float, str]] = [
    ("uint16", 0, "0000"), ("uint16", 1, "0001"), ("uint16", 0x8000, "8000"), ("uint16", 65535, "ffff"),
    ("int16", -32768, "8000"), ("int16", -1, "ffff"), ("int16", 0, "0000"), ("int16", 32767, "7fff"),
    ("uint32", 65536, "00010000"), ("uint32", 0x80000000, "80000000"), ("uint32", 4294967295, "ffffffff"),
    ("int32", -2147483648, "80000000"), ("int32", -65536, "ffff0000"), ("int32", -1, "ffffffff"),
    ("int32", 2147483647, "7fffffff"),
    ("uint64", 1, "0000000000000001"), ("uint64", 2**64 - 1, "ffffffffffffffff"), ("uint64", 2**63, "8000000000000000"),
    ("int64", -(2**63), "8000000000000000"), ("int64", -1, "ffffffffffffffff"), ("int64", 2**63 - 1, "7fffffffffffffff"),
    ("bcd16", 0, "0000"), ("bcd16", 1234, "1234"), ("bcd16", 9999, "9999"),
    ("bcd32", 12345678, "12345678"), ("bcd32", 99999999, "99999999"), ("bcd32", 10000, "00010000"),
    ("signmag16", 0, "0000"), ("signmag16", 32767, "7fff"), ("signmag16", -1, "8001"), ("signmag16", -32767, "ffff"),
    ("signmag32", 2147483647, "7fffffff"), ("signmag32", -1, "80000001"), ("signmag32", -65536, "80010000"),
    ("signmag32", -2147483647, "ffffffff"),
    ("float32", 1.5, "3fc00000"), ("float32", -1.5, "bfc00000"), ("float32", 230.2, "43663333"),
    ("float64", 1.5, "3ff8000000000000"), ("float64", -0.1, "bfb999999999999a"),
]  # fmt: skip
ORDERS: list[tuple[Order, Order]] = [("big", "big"), ("little", "big"), ("big", "little"), ("little", "little")]


def on_the_wire(high_first: str, words: Order, octets: Order) -> bytes:
    registers = [high_first[at : at + 4] for at in range(0, len(high_first), 4)]
    if words == "little":
        registers.reverse()
    if octets == "little":
        registers = [register[2:] + register[:2] for register in registers]
    return bytes.fromhex("".join(registers))


@pytest.mark.parametrize(("words", "octets"), ORDERS)
def test_each_end_is_read_and_written_in_each_order(words: Order, octets: Order) -> None:
    for kind, value, high_first in ENDS:
        encoding, data = Encoding(kind, word_order=words, byte_order=octets), on_the_wire(high_first, words, octets)
        [unpacked] = struct.unpack(">" + encoding.code, data)
        got, _ = encoding.value(unpacked)
        assert (got, type(got)) == (value, type(value)), (kind, value)
        assert encoding.encode(value) == data, (kind, value)


@pytest.mark.parametrize("kind", ["signmag16", "signmag32"])
@pytest.mark.parametrize(("words", "octets"), ORDERS)
def test_a_sign_without_a_magnitude_is_zero(kind: Type, words: Order, octets: Order) -> None:
    encoding = Encoding(kind, word_order=words, byte_order=octets, scale=0.1, offset=2.0)
    [unpacked] = struct.unpack(">" + encoding.code, on_the_wire("8000" + "0000" * (encoding.words - 1), words, octets))

    assert encoding.value(unpacked)[0] == 2.0


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("uint16", (0, 65535)), ("int16", (-32768, 32767)), ("signmag16", (-32767, 32767)), ("bcd16", (0, 9999)),
        ("uint32", (0, 2**32 - 1)), ("int32", (-(2**31), 2**31 - 1)), ("signmag32", (1 - 2**31, 2**31 - 1)),
        ("bcd32", (0, 99_999_999)), ("int64", (-(2**63), 2**63 - 1)), ("bit", (0, 1)), ("float32", None),
    ],
)  # fmt: skip
def test_the_ends_of_each_type_are_known(kind: Type, ends: tuple[int, int] | None) -> None:
    assert raw_range(kind) == ends
    assert raw_range("uint16", (4, 4), signed=True) == (-8, 7)
    assert raw_range("int16", (0, 1)) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "words", "octets", "text"),
    [("string", "little", "big", "4142434400"), ("string", "big", "little", "42414443"), ("string", "little", "little", "42414443")],
)  # fmt: skip
def test_the_words_of_a_text_stay_in_their_order(kind: Type, words: Order, octets: Order, text: str) -> None:
    data = bytes.fromhex(text)[:4]

    assert Encoding(kind, words=2, word_order=words, byte_order=octets).value(data)[0] == "ABCD"


def test_a_sign_bit_below_other_bits_is_not_the_sign_of_the_field() -> None:
    field = Encoding("uint16", bits=(4, 4), signed=True)

    assert [field.value(raw)[0] for raw in (0x0080, 0xFF7F, 0xF0F0, 0x0000)] == [-8, 7, -1, 0]
