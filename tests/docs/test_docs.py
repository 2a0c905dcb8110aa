"""The documents say what is there: paths exist, samples load, commands run."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from gateway.cli.main import parser
from gateway.plan import check_template, make_plan
from gateway.registry import Registry
from gateway.sdk.errors import ConfigError, Problem
from tests.support.bench_driver import BenchDriver
from tests.support.box import REPOSITORY

DOCUMENTS = sorted(
    {REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/ARCHITECTURE.md")}
    | {*REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("drivers/**/README.md"), *REPOSITORY.glob("*/README.md")}
)
FOLDERS = ("gateway/", "drivers/", "tests/", "docs/", "config/", "systemd/", "hil/")
SAMPLES = sorted(REPOSITORY.glob("drivers/[a-z]*/sample*.yaml"))  # _blueprint is copied, not run


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    named = re.findall(r"`([^`\s]+)`", document.read_text())
    paths = [path for path in named if path.startswith(FOLDERS) and not set(path) & set("<>*{}…")]

    missing = [path for path in paths if not (REPOSITORY / path.split("::")[0].rstrip("/")).exists()]

    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]

    assert [target for target in local if not (document.parent / target).exists()] == []


DECISIONS = sorted(REPOSITORY.glob("docs/decisions/*.md"))


def test_a_number_is_one_decision() -> None:
    numbers = [decision.name[:4] for decision in DECISIONS]

    assert [number for number in numbers if numbers.count(number) > 1] == []
    assert [
        decision.name for decision in DECISIONS if not decision.read_text().startswith(f"# {decision.name[:4]}")
    ] == []


def test_a_decision_that_is_named_by_its_number_exists() -> None:
    texts = {path: path.read_text() for path in (*DOCUMENTS, *DECISIONS, *REPOSITORY.glob("[gdt]*/**/*.py"))}
    named = {
        (name(path), number) for path, text in texts.items() for number in re.findall(r"decisions?[/ ](\d{4})\b", text)
    }

    assert sorted((path, number) for path, number in named if number not in {its.name[:4] for its in DECISIONS}) == []


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.name)
def test_every_link_of_a_decision_leads_somewhere(decision: Path) -> None:
    test_every_link_of_a_document_leads_somewhere(decision)


def _examples(document: Path) -> Iterator[ParameterSet]:
    text = document.read_text()
    for match in re.finditer(r"^```ya?ml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield pytest.param(match[1], id=f"{name(document)}:{text.count(chr(10), 0, match.start()) + 1}")


HEAD = {"version": "version: 1\n", "gateway": "gateway: {id: gw-1, city: milano, location: [9.159, 45.503]}\n"}
POINTS = """points:
  pm2_5: {quantity: pm25, unit: GQ}
  humidity: {quantity: humidity}
  temperature: {quantity: air_temperature}
  no2_ppb: {quantity: no2, unit: "61"}
"""


def _problems(example: str, folder: Path) -> tuple[Problem, ...]:
    """What is said of the example in the smallest file that it is a part of; what it leaves to its reader is filled in."""
    keys = set(re.findall(r"^([a-z]+):", example, re.MULTILINE))
    if keys & {"entity", "extends"}:
        driver = Registry().driver("modbus") if "extends" in keys else BenchDriver()
        whole = example if "extends" in keys else f"vendor: Own\nmodel: Device\n{POINTS}{example}"
        (folder / "own").mkdir()
        (folder / "own" / "device.yaml").write_text(whole)
        return check_template(driver, "own/device", folder)[1]
    if "brokers" in keys and "url:" not in example:
        example = f"{example.rstrip()}\n    url: https://broker.example\n"
    (folder / "citygate.yaml").write_text("".join(text for key, text in HEAD.items() if key not in keys) + example)
    try:
        return make_plan(folder, Registry(), with_secrets=False).warnings
    except ConfigError as error:
        return error.problems


@pytest.mark.parametrize("example", [its for document in DOCUMENTS for its in _examples(document)])
def test_every_example_of_a_document_is_valid(tmp_path: Path, example: str) -> None:
    problems = _problems(example, tmp_path)

    assert [problem.message for problem in problems if problem.severity == "error"] == []


@pytest.mark.parametrize("sample", SAMPLES, ids=name)
def test_the_sample_of_each_driver_is_valid(sample: Path) -> None:
    assert make_plan(sample, Registry(), with_secrets=False).devices


def test_each_driver_has_a_readme_and_a_sample() -> None:
    folders = [path for path in (REPOSITORY / "drivers").iterdir() if (path / "driver.py").exists()]

    assert folders
    assert [
        path.name for path in folders if not ((path / "README.md").exists() and list(path.glob("sample*.yaml")))
    ] == []


def test_every_verb_that_a_document_names_exists() -> None:
    verbs = set(re.findall(r"^  ([a-z][a-z-]*) {2,}", parser().format_help(), re.MULTILINE))
    named = {
        verb
        for document in DOCUMENTS
        if document.name != "CHANGELOG.md"
        for verb in re.findall(r"`citygate ([a-z][a-z-]+)", document.read_text())
    }

    assert named - verbs == set()


def test_the_example_of_a_fleet_is_a_config_of_a_box_on_its_base(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "config.md").read_text()
    for name, example in re.findall(r"^`(\w[\w/.-]+\.yaml)`:\n\n```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(example)
    plan = make_plan(tmp_path / "boxes" / "gw-bovisa-017", Registry())
    assert (list(plan.devices), plan.config.gateway.city) == (["meter-12"], "milano")
