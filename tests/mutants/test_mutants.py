"""The tool itself: on a made-up package, a mutant that a test sees is killed, one that none sees survives."""

import subprocess
from pathlib import Path

import pytest

from tests.mutants.__main__ import main

PRODUCT = """LIMIT = 3


def level(value: int) -> str:
    if value > LIMIT:
        return str(value)
    return "low" if value < 0 else "mid"
"""
TESTS = """from product.levels import level


def test_the_limit() -> None:
    assert [level(3), level(4)] == ["mid", "4"]
"""


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    for name, text in {"product/levels.py": PRODUCT, "checks/test_levels.py": TESTS}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (tmp_path / ".gitignore").write_text(".mutants/\n__pycache__/\n.pytest_cache/\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.slow
def test_a_mutant_that_a_test_sees_is_killed_and_one_that_none_sees_survives(
    made_up: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suites = {"product/": ("checks",)}
    assert main(["--all"], made_up, suites) == 0
    first = capsys.readouterr().out

    assert "survived: product/levels.py:7 level\n" in first
    assert '- return "low" if value < 0 else "mid"\n  + return "low" if value < 1 else "mid"' in first
    assert "+ if value >= LIMIT:" not in first, "the test at the limit kills it"
    assert "+ LIMIT = 4" not in first, "constants are tried too"
    assert (made_up / "product/levels.py").read_text() == PRODUCT

    (made_up / "tests/mutants").mkdir(parents=True)
    entry = 'was: \'return "low" if value < 0 else "mid"\', becomes: \'return "low" if value < 1 else "mid"\''
    listed = f"- {{module: product/levels.py, function: level, {entry}, why: made up}}\n"
    (made_up / "tests/mutants/equivalents.yaml").write_text(listed + listed.replace("< 1", "< 7"))
    assert main(["--all", "--fail-under", "100"], made_up, suites) == 1
    second = capsys.readouterr().out

    assert "equivalent: product/levels.py:7" in second
    assert "no such mutant any more: tests/mutants/equivalents.yaml: product/levels.py: level" in second
    assert second.count("[") < 3, "nothing is tried again"
