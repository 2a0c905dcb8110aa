"""What this user may not read or enter is a problem with its path, never a traceback and never taken for absent."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.plan import make_plan
from gateway.sdk.errors import ConfigError
from tests.support.bench_driver import BenchRegistry
from tests.support.rights import without_root

CONFIG = """version: 1
gateway: {id: gw-1, city: milano, location: [9.159, 45.503]}
links: {roof: {driver: bench, port: /dev/ttyS1, devices: {meter-1: {template: acme/meter}}}}
brokers: {milano: {use: cities/milano, url: 'https://broker.example'}}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A config that everybody may read; the test runner's own folder is for its user alone."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        config = Path(name) / "config"
        for part in ("conf.d", "templates/acme", "cities", "models"):
            (config / part).mkdir(parents=True)
        (config / "citygate.yaml").write_text(CONFIG)
        (config / "conf.d" / "a.yaml").write_text("publish: {provider: Comune}\n")
        yield config
        for its in (config, *config.rglob("*")):
            its.chmod(0o755)


@pytest.mark.parametrize(
    ("closed", "message"),
    [
        ("citygate.yaml", "cannot be read: Permission denied"),
        ("conf.d", "the folder cannot be entered"),
        ("conf.d/a.yaml", "cannot be read: Permission denied"),
        ("templates", "the folder cannot be entered"),
        ("templates/acme", "the folder cannot be entered"),
        ("cities", "the folder cannot be entered"),
        ("models", "the models in it cannot be read"),
    ],
)
def test_what_is_closed_is_the_one_problem(folder: Path, closed: str, message: str) -> None:
    make_plan(folder, BenchRegistry())  # sound as long as all is open
    (folder / closed).chmod(0)

    with without_root(), pytest.raises(ConfigError) as caught:
        make_plan(folder, BenchRegistry())

    [problem] = caught.value.problems
    assert problem.file == str(folder / closed)
    assert problem.message.startswith(message)
    assert problem.remedy


@pytest.mark.parametrize("given", ["config", "config/citygate.yaml"])
@pytest.mark.parametrize("closed", ["config", "."])
def test_a_config_in_a_closed_folder_is_the_one_problem(folder: Path, given: str, closed: str) -> None:
    above = folder.parent
    (above / closed).chmod(0)
    try:
        with without_root(), pytest.raises(ConfigError) as caught:
            make_plan(above / given, BenchRegistry())
    finally:
        (above / closed).chmod(0o755)

    [problem] = caught.value.problems
    assert problem.code == "unreadable-file"
    assert problem.message == "cannot be read: Permission denied"
    assert problem.file.startswith(str(folder))


@pytest.mark.parametrize("closed", ["base.yaml", "templates", "cities"])
def test_what_is_closed_beside_a_base_is_told_too(folder: Path, closed: str) -> None:
    fleet = folder.parent / "fleet"
    for part in ("templates", "cities"):
        (fleet / part).mkdir(parents=True)
    (fleet / "base.yaml").write_text(CONFIG)
    (folder / "citygate.yaml").write_text("base: ../fleet/base.yaml\n")
    make_plan(folder, BenchRegistry())
    (fleet / closed).chmod(0o000)
    with without_root(), pytest.raises(ConfigError) as found:
        make_plan(folder, BenchRegistry())
    (fleet / closed).chmod(0o755)
    assert [problem.code for problem in found.value.problems] == ["unreadable-file"]
