"""The tool itself, on made-up packages: what it finds, what it leaves out of the score, that it leaves nothing running."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tests.mutants.__main__ import main
from tests.support.box import eventually

PRODUCT = """def level(value: int) -> str:
    if value > 3:
        return str(value)
    return "low" if value < 0 else "mid"
"""
TESTS = """from product.levels import level


def test_the_limit() -> None:
    assert [level(3), level(4)] == ["mid", "4"]
"""
ENDLESS = """import subprocess


def test_that_waits_for_a_process() -> None:
    subprocess.run(["sleep", "600"])
"""
SUITES = {"product/": ("checks",)}
PROGRAM = "import sys; from tests.mutants.__main__ import program; sys.exit(program({suites}))"


def made_up(root: Path, *, product: str = PRODUCT, tests: str = TESTS) -> Path:
    for name, text in {"product/levels.py": product, "checks/test_levels.py": tests}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (root / ".gitignore").write_text(".mutants/\n__pycache__/\n.pytest_cache/\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def called_equivalent(root: Path, *becomes: str) -> None:
    was = 'return "low" if value < 0 else "mid"'
    entry = {"module": "product/levels.py", "function": "level", "was": was, "why": "made up"}
    (root / "tests/mutants").mkdir(parents=True)
    path = root / "tests/mutants/equivalents.yaml"
    path.write_text(yaml.safe_dump([entry | {"becomes": was.replace("< 0", other)} for other in becomes]))


def test_a_mutant_that_a_test_sees_is_killed_and_one_that_none_sees_survives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = made_up(tmp_path)
    called_equivalent(root, "< 1", "< 7")

    assert main(["--all", "--fail-under", "70"], root, SUITES) == 1

    said = capsys.readouterr().out
    assert "survived: product/levels.py:4 level\n" in said
    assert '- return "low" if value < 0 else "mid"\n  + return "low" if value <= 0 else "mid"' in said
    assert "+ if value >= 3:" not in said, "the test at the limit kills it"
    assert "equivalent: product/levels.py:4 level" in said
    assert '+ return "low" if value < 1 else "mid"' not in said, "called equivalent, therefore no survivor"
    assert "product/levels.py | 7 | 7 | 4 | 0 | 2 | 1 | 67 %" in said
    assert "no such mutant any more: tests/mutants/equivalents.yaml: product/levels.py: level" in said
    assert "< 7" in said.splitlines()[-1], "the entry that matches nothing"
    assert (root / "product/levels.py").read_text() == PRODUCT

    assert main(["--list", "--all", "--fail-under", "60"], root, SUITES) == 0
    assert "product/levels.py | 7 | 7 | 4 | 0 | 2 | 1 | 67 %" in capsys.readouterr().out, "it is remembered"


@pytest.mark.slow
def test_constants_are_tried_by_a_pytest_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    product = "LIMIT, SPARE = 3, 4\n\n\n" + PRODUCT.replace("3", "LIMIT")

    main(["--all"], made_up(tmp_path, product=product), SUITES)

    said = capsys.readouterr().out
    assert "+ LIMIT, SPARE = 4, 4" not in said, "the test at the limit kills it"
    assert "+ LIMIT, SPARE = 3, 5" in said


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_with_the_tool_ends_all_that_it_started(tmp_path: Path, sent: signal.Signals) -> None:
    root = made_up(tmp_path, tests=ENDLESS)
    program = [sys.executable, "-c", PROGRAM.format(suites=SUITES)]
    paths = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(program, cwd=root, env=paths, stdout=subprocess.DEVNULL) as tool:

        def started() -> list[psutil.Process]:
            found = psutil.Process(tool.pid).children(recursive=True)
            return found if any(process.name() == "sleep" for process in found) else []

        processes = eventually("a test waits for its process", started)
        assert len(processes) == 3, "pytest, its fork, the test's process"

        tool.send_signal(sent)

        tool.wait(20)
    eventually("all have ended", lambda: not any(map(lives, processes)), within_s=20)


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
