"""A YAML file as a tree: what is refused, what a scalar means, and that any bytes give a tree or placed problems."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.tree import (
    MAX_FILE_BYTES,
    Items,
    Map,
    Node,
    Place,
    Scalar,
    Source,
    find,
    override,
    plain_value,
    read_tree,
)
from gateway.sdk.errors import Problem

NOWHERE = Place(Source("", []), 1, 1)


def read(tmp_path: Path, text: str | bytes) -> tuple[Map, list[Problem]]:
    file = tmp_path / "citygate.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    problems: list[Problem] = []
    return read_tree(file, problems), problems


def plain(node: Node) -> object:
    if isinstance(node, Map):
        return {key: plain(entry.node) for key, entry in node.entries.items()}
    return [plain(item) for item in node.items] if isinstance(node, Items) else plain_value(node)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("12", 12),
        ("-3", -3),
        ("0x1F", 31),
        ("1.50", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("NO", "NO"),
        ("on", "on"),
        ("010", "010"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("0o17", "0o17"),
        ("CB:B8:33:4C:88:4F", "CB:B8:33:4C:88:4F"),
        ("2026-06-01", "2026-06-01"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_a_plain_scalar_means_what_both_yaml_versions_agree_on_and_is_a_text_otherwise(
    written: str, meant: object
) -> None:
    value = plain_value(Scalar(written, NOWHERE))
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize("written", ["12", "true", "null", "0x1F", ""])
def test_a_quoted_scalar_is_a_text(written: str) -> None:
    assert plain_value(Scalar(written, NOWHERE, plain=False)) == written


def test_merge_keys_and_aliases_are_expanded_and_what_is_written_wins(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: 2}\nmore: &more {b: 3, c: 4}\none: {<<: *base, b: 9}\ntwo: {<<: [*base, *more]}\n"
    tree, problems = read(tmp_path, text)

    assert problems == []
    assert plain(tree)["one"] == {"a": 1, "b": 9}  # type: ignore[index]
    assert plain(tree)["two"] == {"a": 1, "b": 2, "c": 4}  # type: ignore[index]


def test_a_problem_behind_an_alias_is_shown_where_the_value_was_written(tmp_path: Path) -> None:
    tree, _ = read(tmp_path, "base: &base\n  every: 3\nroof: {<<: *base}\n")
    assert find(tree, ("roof", "every")).node.place.line == 2


@pytest.mark.parametrize("text", ["? {a: 1}\n: 2\n", "? [a, b]\n: 2\n", "[a]: 1\n"])
def test_a_key_that_is_no_text_is_a_problem(tmp_path: Path, text: str) -> None:
    _, problems = read(tmp_path, text)
    assert [problem.code for problem in problems] == ["wrong-key"]


def test_a_huge_file_is_refused_without_being_parsed(tmp_path: Path) -> None:
    tree, problems = read(tmp_path, b"#" * (MAX_FILE_BYTES + 1))
    assert [problem.code for problem in problems] == ["file-too-large"]
    assert tree.entries == {}


def test_a_folder_in_place_of_the_file_is_a_problem(tmp_path: Path) -> None:
    problems: list[Problem] = []
    read_tree(tmp_path, problems)
    assert [problem.code for problem in problems] == ["unreadable-file"]


def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    problems: list[Problem] = []
    read_tree(tmp_path / "absent.yaml", problems)
    assert [problem.code for problem in problems] == ["unreadable-file"]
    assert "absent.yaml" in problems[0].file


def test_an_override_finds_a_key_whatever_its_case_and_dashes(tmp_path: Path) -> None:
    tree, _ = read(tmp_path, "links: {roof-rs485.a: {port: /dev/a}}\n")

    environment = {"CITYGATE__LINKS__ROOF_RS485_A__PORT": "/dev/b", "CITYGATE__HTTP__LISTEN": "[::1]:1"}
    changed = override(tree, environment, [])

    assert plain(changed) == {"links": {"roof-rs485.a": {"port": "/dev/b"}}, "http": {"listen": "[::1]:1"}}
    assert str(find(changed, ("http", "listen")).node.place) == "environment CITYGATE__HTTP__LISTEN"
    assert str(find(changed, ("http",)).key) == "environment CITYGATE__HTTP__LISTEN"
    assert find(changed, ("links", "roof-rs485.a")).key.line == 1  # what is wrong with the link itself is in the file


def test_an_override_may_be_a_list_or_a_map(tmp_path: Path) -> None:
    tree, problems = read(tmp_path, "brokers: {milano: {send: [x]}}\n")

    changed = override(tree, {"CITYGATE__BROKERS__MILANO__SEND": '["air-*", 012]', "CITYGATE__A": "{b: 1}"}, problems)
    override(tree, {"CITYGATE__A": "[a: b: c]"}, problems)

    assert plain(changed) == {"brokers": {"milano": {"send": ["air-*", "012"]}}, "a": {"b": 1}}
    assert [(problem.code, problem.file) for problem in problems] == [("yaml-syntax", "environment CITYGATE__A")]


def test_an_override_may_name_a_secret_or_take_away(tmp_path: Path) -> None:
    tree, problems = read(
        tmp_path, "http: {listen: a, token: b}\nlinks: {roof: {devices: {m-1: {unit_id: 1}, m-2: {}}}}\n"
    )

    changed = override(
        tree,
        {
            "CITYGATE__HTTP__TOKEN": "!secret page",
            "CITYGATE__HTTP__LISTEN": "null",
            "CITYGATE__LINKS__ROOF__DEVICES__M_1": "null",
            "CITYGATE__BUFFER": "null",
            "CITYGATE__GATEWAY__NAME": "",
            "CITYGATE__A": " [1] ",
        },
        problems,
    )

    assert plain(changed) == {
        "http": {"token": "page"},
        "links": {"roof": {"devices": {"m-2": {}}}},
        "buffer": None,  # nothing to take away: found wrong
        "gateway": {"name": None},
        "a": [1],
    }
    token = find(changed, ("http", "token")).node
    assert (getattr(token, "tag", ""), problems) == ("!secret", [])


def test_two_variables_of_one_key_are_an_error(tmp_path: Path) -> None:
    tree, problems = read(tmp_path, "links: {a-b: {port: x}}\n")
    variables = ("CITYGATE__LINKS__A_B__PORT", "CITYGATE__links__a-b__port", "CITYGATE__LINKS__A_B__X")

    override(tree, dict.fromkeys(variables, "y"), problems)

    assert [(its.code, its.file, its.message) for its in problems] == [
        ("duplicate-key", f"environment {variables[1]}", f"{variables[0]} and {variables[1]} are one key")
    ]


@given(st.binary(max_size=200))
def test_any_bytes_give_a_tree_or_problems_with_a_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    tree, problems = read(tmp_path_factory.getbasetemp(), data)
    assert isinstance(tree, Map)
    assert all(problem.file and problem.message for problem in problems)


YAMLISH = st.text(alphabet="ab:-[]{}&*!<>|#'\"\n\t ,?%@0", max_size=60)


@given(YAMLISH)
def test_any_yaml_like_text_gives_a_tree_or_placed_problems(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    tree, problems = read(tmp_path_factory.getbasetemp(), text)
    assert isinstance(tree, Map)
    lines = text.count("\n") + 1
    assert all(1 <= problem.line <= lines and problem.column >= 1 for problem in problems)


@pytest.mark.parametrize("text", ["18446744073709551615", "-9223372036854775808", "0xFFFFFFFFFFFFFFFF", "0"])
def test_an_integer_of_64_bits_is_exact(text: str) -> None:
    """As a float the sentinel of a uint64 would never be found."""
    value = plain_value(Scalar(text, Place(Source("", []), 0, 0)))

    assert type(value) is int
    assert value == int(text, 0)


def test_an_integer_beyond_64_bits_is_a_float_as_everywhere_behind_the_file() -> None:
    assert type(plain_value(Scalar("18446744073709551616", Place(Source("", []), 0, 0)))) is float
