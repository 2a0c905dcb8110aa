"""Each folder of tests/config/cases is a config and exactly what is said about it: message, line, column, caret, remedy.

`expected.txt` begins with `# why` lines; `environment.env` sets variables. To write the expectation of a new case, run this
module with CITYGATE_WRITE_CASES=1 and read the result before it is committed.
"""

import os
from pathlib import Path

import pytest

from gateway.config.explain import text
from gateway.environment import Environment
from gateway.plan import make_plan
from gateway.sdk.errors import ConfigError, Problem
from tests.support.bench_driver import BenchRegistry

CASES = Path(__file__).parents[2] / "config" / "cases"
WRITE = bool(os.environ.get("CITYGATE_WRITE_CASES"))


def problems_of(folder: Path) -> tuple[Problem, ...]:
    try:
        return make_plan(folder, BenchRegistry(), environment=Environment()).warnings
    except ConfigError as error:
        return error.problems


@pytest.fixture
def _environment(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = case / "environment.env"
    for line in file.read_text().splitlines() if file.exists() else ():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize("case", sorted(CASES.iterdir()), ids=lambda case: case.name)
def test_a_broken_config_is_explained_with_its_place(case: Path) -> None:
    said = "\n".join(text(problem) for problem in problems_of(case)).replace(f"{case}/", "") + "\n"

    expected = case / "expected.txt"
    lines = expected.read_text().splitlines(keepends=True) if expected.exists() else []
    why = "".join(line for line in lines if line.startswith("# "))
    if WRITE:
        expected.write_text(why + said)
    assert said == "".join(lines[why.count("\n") :])


def test_there_are_at_least_a_hundred_and_eighty_cases() -> None:
    assert len(list(CASES.iterdir())) >= 180
