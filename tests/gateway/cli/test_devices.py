"""decode: a captured frame becomes values, without config or hardware."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.cli.conftest import Command
from tests.support import hostile

FRAME = "aac00600060058d93dab"  # captured from an SDS011: 0.6 and 0.6


def test_a_frame_becomes_rows_with_units_by_code(citygate: Command) -> None:
    ended = citygate("decode", "nova/sds011", FRAME, "--json")
    assert ended.code == 0
    first = ended.json[0]
    assert set(first) == {"point", "quantity", "value", "unit", "quality", "reason", "observed_at"}
    assert (first["point"], first["quantity"], first["value"], first["unit"]) == ("pm2_5", "pm25", 0.6, "GQ")
    assert first["observed_at"].endswith("Z")


def test_as_text_the_unit_is_a_symbol(citygate: Command) -> None:
    assert "0.6 µg/m³" in citygate("decode", "nova/sds011", FRAME).out


@pytest.mark.parametrize(
    "written",
    [
        "AA C0 06 00 06 00 58 D9 3D AB",
        "aa:c0:06:00:06:00:58:d9:3d:ab",
        "0xaa,0xc0,0x06,0x00,0x06,0x00,0x58,0xd9,0x3d,0xab",
    ],
)
def test_hexadecimal_is_taken_as_tools_print_it(citygate: Command, written: str) -> None:
    assert citygate("decode", "nova/sds011", written, "--json").json[0]["value"] == 0.6


def test_the_time_of_reception_can_be_given(citygate: Command) -> None:
    ended = citygate(
        "decode", "nova/sds011", FRAME, "--json", "--context", '{"received_at": "2026-06-01T14:00:00+02:00"}'
    )
    assert {row["observed_at"] for row in ended.json} == {"2026-06-01T12:00:00Z"}


@pytest.mark.parametrize(
    ("template", "frame", "context", "says"),
    [
        ("nova/sds01", FRAME, "{}", "did you mean nova/sds011"),
        ("../../etc/passwd", FRAME, "{}", "no template"),
        ("nova/sds011", "aac", "{}", "odd number"),
        ("nova/sds011", "hello", "{}", "not hexadecimal"),
        ("nova/sds011", "", "{}", "0 bytes"),
        ("nova/sds011", FRAME, "[", "not JSON"),
        ("nova/sds011", FRAME, "3", "not a JSON object"),
        ("nova/sds011", FRAME, '{"received_at": "soon"}', "received_at"),
        ("nova/sds011", FRAME, '{"received_at": "0001-01-01T00:00:00+14:00"}', "received_at"),
    ],
)
def test_wrong_use_is_told_apart_from_a_bad_frame(
    citygate: Command, template: str, frame: str, context: str, says: str
) -> None:
    ended = citygate("decode", template, frame, "--context", context)
    assert ended.code == 2
    assert says in ended.err


@pytest.mark.parametrize("decoded", ["{}", "[[[[]]]]"])
def test_decode_says_so_when_nothing_in_a_frame_is_a_value(citygate: Command, decoded: str) -> None:
    options = ("--driver", "chirpstack", "--context", f'{{"object": {decoded}}}')
    ended = citygate("decode", "generic/object", "00", *options)
    assert ended.code == 1
    assert "nothing in it is a value" in ended.err


def test_a_bad_frame_ends_with_1_and_shows_its_bytes(citygate: Command) -> None:
    ended = citygate("decode", "nova/sds011", "00ff00")
    assert ended.code == 1
    assert "00 ff 00" in ended.err
    assert "00 ff 00" in citygate("decode", "nova/sds011", "00ff00", "--json").json["error"]


def test_an_unknown_driver_is_named(citygate: Command) -> None:
    ended = citygate("decode", "nova/sds011", FRAME, "--driver", "nope")
    assert ended.code == 2
    assert "nope" in ended.err


@given(st.text(max_size=20), hostile.json_trees())
@settings(max_examples=10)
def test_no_context_ends_with_a_traceback(citygate: Command, text: str, tree: Any) -> None:
    for context in (
        text,
        json.dumps(tree),
        json.dumps({"received_at": tree}),
        json.dumps({"f_port": tree, "object": tree}),
    ):
        for template in ("nova/sds011", "generic/cayenne", "eastron/sdm120"):
            ended = citygate("decode", template, FRAME, f"--context={context}")
            assert ended.code in (0, 1, 2)
            assert "Traceback" not in ended.err
