"""JSON of foreign values."""

import json
from typing import Any

import orjson
from hypothesis import given

from gateway.encode import to_json
from tests.support import hostile


@given(hostile.json_trees())
def test_whatever_is_in_it_comes_out_as_json(tree: Any) -> None:
    json.loads(to_json(tree))


def test_only_what_json_cannot_say_is_changed() -> None:
    sound = {"a": [1, 2.5, True, None, "é"], "b": {"c": -(2**63), "d": 2**64 - 1}}
    assert to_json(sound) == orjson.dumps(sound)
    assert json.loads(to_json({**sound, "\ud83d": ["a\ud83d", 2**70, 10**400, {1}, hostile.RAISES]})) == {
        **sound,
        "\ufffd": ["a\ufffd", 2.0**70, None, [1], "(_Raises)"],
    }


def test_neither_a_deep_nest_nor_a_key_that_is_no_text_raises() -> None:
    for tree in (hostile.nested(2000), hostile.nested(2000, key="a"), {(1, 2): "\ud83d", None: 1}):
        json.loads(to_json(tree))
