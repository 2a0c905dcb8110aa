"""The documents say what is there: paths exist, samples load, commands run."""

import re
from pathlib import Path

import pytest

from gateway.cli.main import parser
from gateway.plan import make_plan
from gateway.registry import Registry
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


def test_the_config_in_the_readme_is_valid(tmp_path: Path) -> None:
    [config] = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (tmp_path / "citygate.yaml").write_text(config)

    plan = make_plan(tmp_path, Registry(), with_secrets=False)

    assert set(plan.devices) == {"meter-12", "air-1"}


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
