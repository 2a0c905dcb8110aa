"""What cannot be right in a template or a link is refused when it is loaded, with place and remedy."""

from typing import Any

import pytest
from pydantic import ValidationError

from drivers.modbus.config import ModbusConfig, ModbusTemplate
from tests.support.modbus_config import link, template

POINTS = template(a={"address": 0})
U32 = {"type": "uint32"}


@pytest.mark.parametrize(
    ("its", "said"),
    [
        ({"bits": [8, 9]}, "bits: .* within the 16 bits of uint16"),
        ({"bits": [16, 1]}, "bits: .* within the 16 bits"),
        ({"bits": [-1, 4]}, "bits: .* within"),
        ({"bits": [0, 0]}, "bits: .* within"),
        ({**U32, "bits": [0, 33]}, "bits: .* within the 32 bits of uint32"),
        ({"type": "float32", "bits": [0, 8]}, "bits: a float32 has no bit fields; take uint16"),
        ({"type": "bcd16", "bits": [0, 8]}, "bits: a bcd16 has no bit fields"),
        ({"type": "signmag16", "bits": [0, 8]}, "bits: a signmag16 has no bit fields"),
        ({"type": "string", "words": 2, "bits": [0, 8]}, "bits: a string has no bit fields"),
        ({"table": "coil", "type": "bit", "bits": [0, 1]}, "bits: a bit has no bit fields"),
        ({"signed": True}, "signed: belongs to bits"),
        ({"bits": [3, 1], "signed": True}, "signed: one bit is a flag"),
        ({"scale": 0}, "scale: 0 makes every value the same"),
        ({"scale": 1e-320}, "scale: .* beyond"),
        ({"scale": 1e300}, "scale: .* beyond"),
        ({"scale": "nan"}, "finite"),
        ({"offset": "inf"}, "finite"),
        ({"offset": 1e200}, "offset: .* beyond"),
        ({"enum": {0: "off"}, "scale": 0.1}, "scale: does nothing to a text"),
        ({"bits": [0, 1], "scale": 2}, "scale: does nothing to a flag"),
        ({"type": "string", "words": 2, "offset": 1}, "offset: does nothing to a text"),
        ({"bits": [0, 1], "factor": 9}, "factor: does nothing to a flag"),
        ({"enum": {65536: "never"}}, "enum: 65536 is outside 0 to 65535"),
        ({"type": "int16", "enum": {40000: "never"}}, "enum: 40000 is outside -32768 to 32767"),
        ({"enum": {-1: "never"}}, "enum: -1 is outside"),
        ({"bits": [0, 2], "enum": {4: "never"}}, "enum: 4 is outside 0 to 3"),
        ({"type": "int16", "bits": [0, 2], "enum": {3: "never"}}, "enum: 3 is outside -2 to 1"),
        ({"type": "bcd16", "enum": {10000: "never"}}, "enum: 10000 is outside 0 to 9999"),
        ({"type": "float32", "enum": {0: "off"}}, "enum: belongs to whole numbers"),
        ({"invalid": [65536]}, "invalid: 65536 cannot stand in 16 bits"),
        ({"invalid": [6553.5]}, "invalid: 6553.5 cannot stand"),
        ({"type": "int16", "invalid": [-32769]}, "invalid: -32769 cannot stand"),
        ({"type": "uint16", "bits": [8, 8], "invalid": [65535]}, "invalid: 65535 cannot stand in 8 bits"),
        ({"type": "bcd16", "invalid": [-1]}, "invalid: -1 cannot stand"),
        ({"type": "signmag16", "invalid": [-32768]}, "invalid: -32768 cannot stand"),
        ({"type": "float32", "invalid": [1e39]}, "invalid: no float32 is beyond"),
        ({"type": "string", "words": 2, "invalid": [0]}, "invalid: a string has no number"),
        ({"table": "coil", "type": "bit", "invalid": [0]}, "invalid: a bit has no number"),
        ({"word_order": "little"}, "word_order: one register has no order of words"),
        ({"type": "string", "words": 2, "word_order": "little"}, "word_order: .* nor has a text"),
        ({"table": "coil", "type": "bit", "byte_order": "little"}, "byte_order: a bit has none"),
        ({**U32, "address": 65535}, "address: 2 registers from 65535 on end beyond 65535"),
        ({"address": 4, "factor": 4}, "factor: is the register of the value itself"),
        ({**U32, "address": 4, "factor": 5}, "factor: is the register of the value itself"),
        ({"rollover": 0}, "greater than 0"),
        ({"rollover": -5}, "greater than 0"),
        ({"type": "int32", "rollover": 1e6}, "rollover: a counter is an unsigned whole number"),
        ({"type": "float32", "rollover": 1e6}, "rollover: a counter is an unsigned whole number"),
        ({"type": "signmag32", "rollover": 1e6}, "rollover: a counter is an unsigned"),
        ({"type": "int16", "bits": [0, 8], "rollover": 100}, "rollover: a counter is an unsigned"),
        ({"type": "string", "words": 2, "rollover": 100}, "rollover: a counter is an unsigned"),
        ({"bits": [0, 1], "rollover": 2}, "rollover: a counter is an unsigned"),
        ({"rollover": 65537}, "rollover: 65537 is never reached, uint16 ends at 65536"),
        ({**U32, "scale": 0.001, "rollover": 4294967296}, "rollover: .* is never reached"),
        ({"scale": -1, "rollover": 100}, "rollover: a counter restarts from 0"),
        ({"offset": 5, "rollover": 100}, "rollover: a counter restarts from 0"),
        ({"scale": 100, "rollover": 100}, "rollover: that is no counter"),
        ({"write": {}, "rollover": 100}, "write: a running total cannot be written"),
        ({"write": {"range": [5, 1]}}, "write: range is"),
        ({"write": {"range": [0, 70000]}}, "write: range reaches beyond what uint16 can hold"),
        ({"enum": {0: "off"}, "write": {"range": [0, 1]}}, "write: range is"),
    ],
)
def test_a_point_that_cannot_be_right_is_refused_with_key_and_remedy(its: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        template(a={"address": 0, **its})


@pytest.mark.parametrize(
    "its",
    [
        {"type": "int16", "bits": [8, 8]},
        {"type": "uint16", "bits": [8, 8], "signed": True},
        {"type": "int16", "invalid": [0x8000]},
        {"type": "int16", "invalid": [-32768]},
        {"type": "bcd16", "invalid": [0xFFFF]},
        {"type": "signmag16", "invalid": [0x8000]},
        {"type": "uint64", "invalid": [2**64 - 1]},
        {"type": "int64", "invalid": [-(2**63)]},
        {"type": "uint16", "byte_order": "little"},
        {"type": "uint32", "scale": 0.001, "rollover": 4294967.296},
        {"type": "bcd32", "scale": 0.01, "rollover": 1_000_000},
        {"type": "uint32", "factor": 9, "rollover": 1e9},
        {"type": "int16", "enum": {-1: "fault", 0: "ok"}},
        {"type": "int16", "scale": 0.1, "offset": -40, "write": {"range": [-50, 60]}},
    ],
)
def test_a_point_that_can_be_right_is_taken(its: dict[str, Any]) -> None:
    template(a={"address": 0, **its})


@pytest.mark.parametrize(
    ("points", "more", "said"),
    [
        ({"a": {**U32, "address": 0, "write": {}}, "b": {"address": 1, "write": {}}}, {}, r"points\.b\.write: register 1 is a"),
        ({"a": {"address": 7, "write": {}}}, {"settings": {"unit_id": {"address": 7}}}, r"register 7 is settings\.unit_id"),
        ({"a": {"address": 0, **U32}}, {"read": {"max_words": 1}}, r"points\.a: 2 registers, but read: asks for 1"),
        ({"a": {"address": 0}}, {"status": {"point": "b"}}, r"status\.point: b is none"),
        ({"a": {"address": 0, "enum": {0: "ok"}}}, {"status": {"point": "a"}}, r"status\.point: a is a text"),
        ({"a": {"address": 0}}, {"serial": {"baud_rate": 0}}, "baud_rate"),
    ],
)  # fmt: skip
def test_points_that_cannot_be_right_together_are_refused(
    points: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    named = {name: {"quantity": "index", **its} for name, its in points.items()}
    with pytest.raises(ValidationError, match=said.replace(r"\.baud", "baud")):
        ModbusTemplate.model_validate({"vendor": "t", "model": "t", "points": named, **more})


def test_two_readers_of_one_register_are_fine_and_so_is_one_of_them_writing() -> None:
    template(word={"address": 0, "write": {}}, low={"address": 0, "bits": [0, 8]}, flag={"address": 0, "bits": [15, 1]})


def test_rounds_belong_to_a_point_with_rollover() -> None:
    with pytest.raises(ValidationError, match="rounds: a is no point with rollover"):
        link({"d": {"template": POINTS, "unit_id": 1, "rounds": {"a": 1}}})


def one(**its: Any) -> ModbusConfig:
    return link({"d": {"template": POINTS, "unit_id": 1}}, **its)


@pytest.mark.parametrize(
    ("its", "line"),
    [
        ({}, (8, "N", 1)),
        ({"parity": "E"}, (8, "E", 1)),
        ({"framing": "ascii"}, (7, "E", 1)),
        ({"framing": "ascii", "parity": "O"}, (7, "O", 1)),
        ({"framing": "ascii", "parity": "N", "stop_bits": 2}, (7, "N", 2)),
        ({"framing": "ascii", "data_bits": 8}, (8, "N", 1)),
        ({"framing": "ascii", "data_bits": 8, "parity": "E"}, (8, "E", 1)),
        ({"framing": "ascii", "host": "192.0.2.1"}, (8, "N", 1)),
    ],
)
def test_the_line_is_8_bits_for_rtu_and_7e1_for_ascii_unless_said(
    its: dict[str, Any], line: tuple[int, str, int]
) -> None:
    config = one(**its)

    assert (config.data_bits, config.parity, config.stop_bits) == line
    bits = 1 + line[0] + (line[1] != "N") + line[2]
    assert config.character_s == (0 if config.host else pytest.approx(bits / 9600))


@pytest.mark.parametrize(
    ("its", "said"),
    [
        ({"data_bits": 7}, "data_bits: 7 belongs to framing: ascii"),
        ({"data_bits": 7, "framing": "rtu"}, "data_bits: 7 belongs to framing: ascii"),
        ({"data_bits": 7, "framing": "ascii", "host": "192.0.2.1"}, "data_bits: 7 belongs to framing: ascii on a serial"),
        ({"data_bits": 9}, "data_bits"),
        ({"baud_rate": 49}, "baud_rate"),
        ({"host": "192.0.2.1", "port": "0"}, "port: '0' is no TCP port"),
        ({"host": "192.0.2.1", "port": 65536}, "port: '65536' is no TCP port"),
        ({"host": "192.0.2.1", "port": "/dev/ttyUSB0"}, "is no TCP port"),
        ({"host": "192.0.2.1", "port": "５０２"}, "is no TCP port"),
        ({"host": "192.0.2.1:502"}, "write host: 192.0.2.1 and port: 502"),
        ({"host": "tcp://192.0.2.1"}, "name or the IP address alone"),
        ({"port": "tcp://192.0.2.1:502"}, "port: .* has host: and port:"),
        ({"port": "192.0.2.1:502"}, "port: .* has host: and port:"),
        ({"port": 502}, "port: .* has host: and port:"),
        ({"port": "ttyUSB0"}, "write /dev/ttyUSB0"),
        ({"port": "COM3"}, "is not a whole path"),
    ],
)  # fmt: skip
def test_a_link_that_cannot_be_right_is_refused_with_what_to_write_instead(its: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        one(**its)
