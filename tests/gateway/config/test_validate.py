"""A tree becomes a model: a text field takes what is written, a number field only what cannot be misread."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, field_validator

from gateway.config.tree import Map, read_tree
from gateway.config.validate import validate
from gateway.sdk.config import ConfigModel, Duration
from gateway.sdk.errors import Problem


class Fields(ConfigModel):
    text: str = ""
    choice: Literal["1", "2", "NO"] = "1"
    number: int = 0
    real: float = 0.0
    flag: bool = False
    anything: Any = None
    mixed: float | int | bool | str | None = None
    texts: dict[str, str] = Field(default={})
    listed: tuple[str, ...] = ()
    either: int | str = 0
    lowered: Annotated[str, BeforeValidator(lambda value: value.lower())] = ""
    capital: Annotated[str, AfterValidator(str.upper)] = ""
    every_s: Duration = Field(1.0, alias="every")


def tree_of(tmp_path: Path, text: str) -> Map:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    problems: list[Problem] = []
    tree = read_tree(file, problems)
    assert problems == []
    return tree


def read(tmp_path: Path, text: str) -> Fields:
    instance, problems = validate(Fields, tree_of(tmp_path, text))
    assert problems == []
    assert instance is not None
    return instance


AWKWARD = [
    "0123",
    "1.50",
    "1e3",
    "0x1F",
    "12:30",
    "NO",
    "true",
    "010",
    "1_000",
    "24e124713123",
    "-.inf",
    "2026-06-01",
    "+5",
]


@pytest.mark.parametrize("written", AWKWARD)
def test_a_text_field_takes_the_scalar_as_it_is_written(tmp_path: Path, written: str) -> None:
    fields = read(tmp_path, f"text: {written}\ntexts: {{a: {written}}}\nlisted: [x, {written}]\ncapital: {written}\n")
    assert (fields.text, fields.texts["a"], fields.listed[1]) == (written, written, written)
    assert fields.capital == written.upper()


@pytest.mark.parametrize("written", AWKWARD)
def test_a_check_that_expects_a_text_gets_one(tmp_path: Path, written: str) -> None:
    assert read(tmp_path, f"lowered: {written}\n").lowered == written.lower()


@pytest.mark.parametrize(("written", "value"), [("1", "1"), ("2", "2"), ("NO", "NO")])
def test_a_choice_of_texts_may_look_like_a_number(tmp_path: Path, written: str, value: str) -> None:
    assert read(tmp_path, f"choice: {written}\n").choice == value


@pytest.mark.parametrize(
    ("written", "value"),
    [("5", 5), ("1.5", 1.5), ("true", True), ("null", None), ("x", "x"), ("NO", "NO"), ("010", "010"), ("'5'", "5")],
)
def test_where_anything_goes_a_scalar_means_what_yaml_says(tmp_path: Path, written: str, value: object) -> None:
    fields = read(tmp_path, f"anything: {{a: [{written}]}}\nmixed: {written}\n")
    assert fields.anything == {"a": [value]}
    assert type(fields.anything["a"][0]) is type(value)
    assert fields.mixed == value
    assert type(fields.mixed) is type(value)


@pytest.mark.parametrize("written", ["010", "1:30", "0o17", "0b1", "1_000", "NO", "y"])
@pytest.mark.parametrize("key", ["number", "real", "flag"])
def test_what_yaml_versions_read_differently_is_no_number_and_no_flag(tmp_path: Path, key: str, written: str) -> None:
    instance, problems = validate(Fields, tree_of(tmp_path, f"{key}: {written}\ntext: {written}\n"))
    assert instance is None
    assert [(problem.code, problem.path) for problem in problems] == [("yaml-surprise", (key,))]


@pytest.mark.parametrize("written", ["true", "false", "True"])
def test_a_flag_is_no_number(tmp_path: Path, written: str) -> None:
    text = f"number: {written}\nreal: {written}\nflag: {written}\nevery: {written}\n"
    _, problems = validate(Fields, tree_of(tmp_path, text))
    assert sorted((problem.code, problem.path) for problem in problems) == [
        ("invalid-value", ("every",)),
        ("wrong-type", ("number",)),
        ("wrong-type", ("real",)),
    ]
    assert {f"{written} is not a whole number", f"{written} is not a number"} < {its.message for its in problems}


def test_flags_and_numbers_stay_what_they_are_beside_a_check_that_expects_a_text(tmp_path: Path) -> None:
    fields = read(tmp_path, "flag: true\nanything: [true, 5]\nmixed: false\nlowered: abc\neither: 7\n")
    assert (fields.flag, fields.anything, fields.mixed, fields.either) == (True, [True, 5], False, 7)
    assert read(tmp_path, "flag: true\nlowered: True\n").lowered == "true"


def test_a_check_that_expects_a_flag_gets_one_and_numbers_stay_numbers(tmp_path: Path) -> None:
    class Switch(ConfigModel):
        on: Annotated[bool, BeforeValidator(lambda value: value & True)]
        anything: Any

    instance, problems = validate(Switch, tree_of(tmp_path, "on: true\nanything: 5\n"))
    assert problems == []
    assert instance is not None
    assert (instance.on, instance.anything) == (True, 5)


@pytest.mark.parametrize("written", ["", "~", "null"])
def test_nothing_is_no_text(tmp_path: Path, written: str) -> None:
    _, problems = validate(Fields, tree_of(tmp_path, f"text: {written}\n"))
    assert [problem.code for problem in problems] == ["wrong-type" if written else "missing-value"]


def test_a_number_or_text_stays_a_number(tmp_path: Path) -> None:
    assert read(tmp_path, "either: 12\n").either == 12
    assert read(tmp_path, "either: 0012\n").either == "0012"


@pytest.mark.parametrize("written", ["10", "0", "1.5", "10 minutes", "-1 s", "s", "''", "1e3 s", "NO"])
def test_a_duration_needs_a_number_and_a_unit(tmp_path: Path, written: str) -> None:
    _, problems = validate(Fields, tree_of(tmp_path, f"every: {written}\n"))
    assert [problem.code for problem in problems] == ["invalid-value"]
    assert "write a number and one of" in problems[0].message


@given(st.text(alphabet="abcXYZ0123456789.:+_", min_size=1, max_size=20))
def test_any_plain_text_reaches_a_text_field_unchanged(tmp_path_factory: pytest.TempPathFactory, written: str) -> None:
    quoted = f"text: '{written}'\nlisted: [{written!r}]\n"
    assert read(tmp_path_factory.getbasetemp(), quoted).text == written
    if not written.endswith(":") and written != ".":
        assert read(tmp_path_factory.getbasetemp(), f"text: {written}\n").text == written


class Broken(BaseModel):
    """A driver's model with a mistake in its own check."""

    value: str = ""

    @field_validator("value")
    @classmethod
    def _check(cls, value: str) -> str:
        return str(len(value) + value)  # type: ignore[operator]


def test_a_check_that_breaks_is_a_problem_of_the_driver_not_a_traceback(tmp_path: Path) -> None:
    instance, problems = validate(Broken, tree_of(tmp_path, "value: 012\n"))
    assert instance is None
    assert [problem.code for problem in problems] == ["driver-fault"]
    assert "Broken cannot check this: TypeError" in problems[0].message
