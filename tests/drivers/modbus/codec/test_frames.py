"""Frames against the specification's examples, and against pymodbus's framers as a second opinion."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymodbus.framer import FramerAscii, FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU

from drivers.modbus.codec.frames import (
    AsciiFraming,
    DeviceException,
    Framing,
    RtuFraming,
    TcpFraming,
    ask_of,
    read_request,
    reply_data,
    write_request,
)
from gateway.sdk.errors import FrameError

THEIRS = {RtuFraming: FramerRTU, TcpFraming: FramerSocket, AsciiFraming: FramerAscii}
framings = pytest.mark.parametrize(
    "framing", [RtuFraming(), TcpFraming(), AsciiFraming()], ids=lambda f: type(f).__name__
)

units = st.integers(1, 247)
register_reads = st.builds(
    read_request, units, st.sampled_from(["holding", "input"]), st.integers(0, 65000), st.integers(1, 125)
)
bit_reads = st.builds(
    read_request, units, st.sampled_from(["coil", "discrete"]), st.integers(0, 60000), st.integers(1, 2000)
)
reads = st.one_of(register_reads, bit_reads)


def reply(ask_pdu_function: int, data: bytes) -> bytes:
    return bytes((ask_pdu_function, len(data))) + data


def test_the_specifications_example_of_reading_holding_registers() -> None:
    ask = read_request(1, "holding", 0x6B, 3)  # application protocol 6.3

    assert ask.pdu == bytes.fromhex("03006b0003")
    assert reply_data(ask, bytes.fromhex("0306022b00000064")) == bytes.fromhex("022b00000064")


def test_writes_as_in_the_specification() -> None:
    assert write_request(1, "coil", 0xAC, b"\1").pdu == bytes.fromhex("0500acff00")  # 6.5
    assert write_request(1, "holding", 1, b"\0\3").pdu == bytes.fromhex("0600010003")  # 6.6
    assert write_request(1, "holding", 1, b"\0\x0a\1\2").pdu == bytes.fromhex("1000010002" + "04000a0102")  # 6.12


@framings
@given(ask=reads, number=st.integers(1, 65535))
def test_another_implementation_reads_our_requests(framing: Framing, ask, number: int) -> None:  # type: ignore[no-untyped-def]
    their = THEIRS[type(framing)](DecodePDU(is_server=True))

    used, pdu = their.handleFrame(framing.frame(ask, number), 0, 0)

    assert pdu is not None
    assert used == len(framing.frame(ask, number))
    assert (pdu.dev_id, bytes((pdu.function_code,)) + pdu.encode()) == (ask.unit, ask.pdu)


@framings
@given(ask=reads, number=st.integers(1, 65535), data=st.data())
def test_we_read_replies_of_another_implementation(framing: Framing, ask, number: int, data) -> None:  # type: ignore[no-untyped-def]
    payload = data.draw(st.binary(min_size=ask.reply_size - 2, max_size=ask.reply_size - 2))
    their = THEIRS[type(framing)](DecodePDU(is_server=True))
    wire = their.encode(reply(ask.function, payload), ask.unit, number)

    found = framing.find(ask, number, wire, last=False)

    assert found is not None
    assert found[1] == len(wire)
    assert reply_data(ask, found[0]) == payload


@framings
@given(
    ask=reads,
    payload=st.binary(max_size=250),
    cut=st.integers(0, 600),
    damage=st.integers(0, 2000),
    bit=st.integers(0, 7),
)
def test_a_damaged_reply_gives_no_data(framing: Framing, ask, payload: bytes, cut: int, damage: int, bit: int) -> None:  # type: ignore[no-untyped-def]
    payload = payload.ljust(ask.reply_size - 2, b"\x5a")[: ask.reply_size - 2]
    wire = bytearray(THEIRS[type(framing)](DecodePDU(is_server=True)).encode(reply(ask.function, payload), ask.unit, 9))
    wire[damage % len(wire)] ^= 1 << bit
    if isinstance(framing, TcpFraming) and damage % len(wire) >= 9:
        return  # TCP has no checksum of its own: the payload is TCP's to protect

    try:
        found = framing.find(ask, 9, bytes(wire), last=True)
        read = None if found is None else reply_data(ask, found[0])
    except (FrameError, DeviceException):
        return
    assert read in (None, payload)  # an ASCII digit's case may change nothing


@framings
@given(ask=reads, noise=st.binary(max_size=300))
def test_any_bytes_are_a_reply_or_refused(framing: Framing, ask, noise: bytes) -> None:  # type: ignore[no-untyped-def]
    for last in (False, True):
        try:
            found = framing.find(ask, 7, noise, last=last)
            if found is not None:
                reply_data(ask, found[0])
        except (FrameError, DeviceException):
            pass


@given(ask=register_reads, junk=st.binary(min_size=1, max_size=20), data=st.data())
def test_noise_before_an_rtu_reply_is_stepped_over(ask, junk: bytes, data) -> None:  # type: ignore[no-untyped-def]
    payload = data.draw(st.binary(min_size=ask.reply_size - 2, max_size=ask.reply_size - 2))
    wire = FramerRTU(DecodePDU(is_server=True)).encode(reply(ask.function, payload), ask.unit, 0)

    found = RtuFraming().find(ask, 0, junk + wire, last=True)

    assert found is not None
    assert reply_data(ask, found[0]) == payload


def test_an_exception_is_told_with_its_meaning() -> None:
    ask = read_request(1, "input", 0, 2)

    found = RtuFraming().find(ask, 0, bytes.fromhex("018402c2c1"), last=False)

    assert found is not None
    with pytest.raises(DeviceException, match=r"exception 2 \(illegal data address\) to input 0-1"):
        reply_data(ask, found[0])


def test_an_exception_of_no_known_code_is_told_as_such() -> None:
    with pytest.raises(DeviceException, match=r"exception 99 \(unknown exception\)"):
        reply_data(read_request(1, "input", 0, 2), bytes((0x84, 99)))


def test_a_tcp_reply_to_another_function_is_handed_on_whole_to_be_refused() -> None:
    ask = read_request(1, "holding", 100, 4)
    other = bytes.fromhex("040c") + bytes(12)

    found = TcpFraming().find(ask, 5, bytes((0, 5, 0, 0, 0, len(other) + 1, 1)) + other, last=False)

    assert found == (other, len(other) + 7)
    with pytest.raises(FrameError):
        reply_data(ask, other)


@pytest.mark.parametrize(
    ("data", "cut"),
    [
        (b":010302ABCD82\r\n", False),
        (b"~\x01:010302ABCD82\r\n:0103", False),
        (b":010302ABCD82", False),
        (b":010302ABCD", True),
        (b":010302ABCD83\r\n", True),
        (b"\x00\xff", True),
    ],
)
def test_ascii_that_holds_no_whole_line_was_cut(data: bytes, cut: bool) -> None:
    assert AsciiFraming().looks_cut(data) is cut


def test_a_reply_to_another_transaction_is_stepped_over() -> None:
    ask = read_request(1, "input", 0, 1)
    late, ours = bytes.fromhex("000100000005010402aaaa"), bytes.fromhex("000200000005010402bbbb")

    assert TcpFraming().find(ask, 2, late, last=False) is None
    assert TcpFraming().find(ask, 2, late + ours, last=False) == (bytes.fromhex("0402bbbb"), 22)


@pytest.mark.parametrize(
    ("wire", "why"),
    [("000200010005010402bbbb", "no Modbus TCP header"), ("000200000005020402bbbb", "unit 2 answers for unit 1")],
)
def test_a_tcp_stream_out_of_step_is_refused(wire: str, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        TcpFraming().find(read_request(1, "input", 0, 1), 2, bytes.fromhex(wire), last=True)


@pytest.mark.parametrize(
    ("table", "address", "count"), [("input", 0, 126), ("coil", 0, 2001), ("input", 65535, 2), ("input", 0, 0)]
)
def test_a_read_beyond_the_limits_is_refused(table: str, address: int, count: int) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        read_request(1, table, address, count)  # type: ignore[arg-type]  # the point of the test


@given(reads)
def test_a_captured_request_says_what_was_asked(ask) -> None:  # type: ignore[no-untyped-def]
    assert ask_of(ask.unit, ask.pdu) == ask


@pytest.mark.parametrize("framing", [RtuFraming(), AsciiFraming()], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("noise", [b"", b"\x55", b"\x01\x01\x03"])
def test_an_echo_is_never_the_reply_also_behind_noise_and_where_it_looks_like_one(
    framing: Framing, noise: bytes
) -> None:
    ask = read_request(1, "coil", 0x0305, 24)
    echo = framing.frame(ask, 0)

    assert framing.find(ask, 0, noise + echo, last=True) is None


@pytest.mark.parametrize("off", [-2, -1, 0, 1, 2, 3])
@pytest.mark.parametrize("more", [b"", b"\x12\x34", b"\x00"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_tcp_reply_with_a_wrong_length_is_taken_and_the_next_one_found(off: int, more: bytes, cut: bool) -> None:
    """The request says how long the reply is; what is too much is stepped over."""
    if off < 0 and more:
        pytest.skip("a reply too short by its header is never filled up with what came behind it")
    first, second = read_request(1, "holding", 100, 4), read_request(1, "holding", 200, 1)
    pdu = bytes.fromhex("0308") + bytes(range(8))
    wire = bytes.fromhex("00050000") + bytes((0, len(pdu) + 1 + off, 1)) + pdu + more

    found = TcpFraming().find(first, 5, wire, last=False)

    assert found is not None
    assert found[0] == pdu
    rest = wire[found[1] :] + bytes.fromhex("000600000005010302abcd")
    assert TcpFraming().find(second, 6, rest[:-3] if cut else rest, last=False) == (
        None if cut else (bytes.fromhex("0302abcd"), len(rest))
    )


@pytest.mark.parametrize("said", [3, 4, 5])
@pytest.mark.parametrize("more", [b"", b"\x00", b"\x00\x00"])
def test_a_tcp_exception_with_a_wrong_length_is_an_exception(said: int, more: bytes) -> None:
    ask = read_request(1, "holding", 100, 4)

    found = TcpFraming().find(ask, 5, bytes((0, 5, 0, 0, 0, said, 1, 0x83, 2)) + more, last=False)

    assert found is not None
    with pytest.raises(DeviceException, match="exception 2"):
        reply_data(ask, found[0])


@given(number=st.integers(0, 65535), count=st.integers(1, 20), late=st.binary(max_size=60), said=st.integers(0, 255))
def test_a_short_tcp_reply_is_never_filled_up_with_what_follows(
    number: int, count: int, late: bytes, said: int
) -> None:
    ask = read_request(1, "holding", 0, count)
    body = bytes((3, 2 * count)) + b"\xaa" * (2 * count - 2)  # one register short
    wire = _mbap(7, len(body) + 1) + body + _mbap(number, said) + late

    try:
        found = TcpFraming().find(ask, 7, wire, last=True)
        data = reply_data(ask, found[0]) if found is not None else b""
    except (FrameError, DeviceException):
        return
    assert data == b""


def _mbap(number: int, length: int) -> bytes:
    return number.to_bytes(2, "big") + b"\0\0" + length.to_bytes(2, "big") + b"\1"
