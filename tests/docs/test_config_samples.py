"""The samples load, and the list of problem codes is the list of those that the code can give."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config.templates import template_names
from gateway.plan import check_template, make_plan
from gateway.registry import Registry

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
CODE = re.compile(r"[a-z]+(?:-[a-z0-9]+)+")
GIVEN_BY = {"_Kind", "Problem", "Mismatch", "_problem", "refuse", "_add", "report"}


def test_the_sample_config_is_clean() -> None:
    assert make_plan(CONFIG / "citygate.example.yaml", Registry()).warnings == ()


@pytest.mark.parametrize("name", template_names(CONFIG / "templates"))
def test_a_sample_template_passes_its_own_test(name: str) -> None:
    _, problems = check_template(Registry().driver("modbus"), name, CONFIG / "templates")
    assert problems == ()


@pytest.mark.parametrize("city", [file.stem for file in sorted(CONFIG.glob("cities/*.yaml"))])
def test_a_shipped_city_profile_is_taken_up_with_one_line(tmp_path: Path, city: str) -> None:
    text = (ROOT / "drivers" / "serial" / "sample.yaml").read_text()
    (tmp_path / "citygate.yaml").write_text(f"{text}brokers: {{x: {{use: cities/{city}, url: 'https://b.example'}}}}\n")
    assert make_plan(tmp_path, Registry()).brokers["x"].profile.city == city


def codes_in_the_code() -> set[str]:
    files = [
        *(ROOT / "gateway" / "config").glob("*.py"),
        *(ROOT / "gateway" / name for name in ("plan.py", "fleet.py", "cli/fleet.py", "cli/editor.py")),
    ]
    files += (ROOT / "gateway" / "harmonise").glob("*.py")
    found = {code for file in files for code in _codes(ast.parse(file.read_text())) if CODE.fullmatch(code)}
    drivers = " ".join(file.read_text() for file in (ROOT / "drivers").glob("*/driver.py"))
    return found | set(re.findall(r'\bProblem\(\s*"([a-z-]+)"', drivers))


def _codes(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            named = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            for argument in [*node.args[:1], *named] if name in GIVEN_BY else ():
                yield from _texts(argument)
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            yield from _texts(node.value.elts[0])


def _texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def test_every_code_is_documented_once_and_no_other() -> None:
    text = (ROOT / "docs" / "config-errors.md").read_text()
    documented = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert sorted(documented) == sorted(codes_in_the_code())


# Shown elsewhere: by tests of trees, templates and models, because a folder with a config cannot show them.
WITHOUT_A_CASE = {
    "file-too-large", "driver-fault", "deprecated-key", "open-secret", "sample-failed",
    "no-samples", "shared-listener", "shared-session", "shared-device", "reserved-unit-id", "driver-unavailable",
    "stale-schema",
    "fleet-gateway-id", "fleet-location", "fleet-session", "fleet-device", "fleet-entity", "fleet-login", "fleet-same-file",
}  # fmt: skip


def test_every_code_has_a_case_that_shows_its_message() -> None:
    shown = {
        code
        for file in ROOT.glob("tests/config/cases/*/expected.txt")
        for code in re.findall(r"\[([a-z0-9-]+)\]$", file.read_text(), re.MULTILINE)
    }
    missing = {code for code in codes_in_the_code() - shown - WITHOUT_A_CASE if not code.startswith("mapping-")}
    assert missing == set()
    assert shown & WITHOUT_A_CASE == set()
