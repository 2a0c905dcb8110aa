"""Every scenario of `hil/scenarios`, played on simulators with the daemon as a process of its own."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.box import REPOSITORY, Box
from tests.support.scenario import Scenario, Stage, excused, judge

FILES = sorted((REPOSITORY / "hil" / "scenarios").glob("*.yaml"))


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.stem)
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    file: Path = request.param
    box = Box(tmp_path_factory.mktemp(file.stem))
    try:
        stage = Stage(box, Scenario.load(file))
        stage.play()
        yield stage
    finally:
        box.close()


def test_every_value_served_is_in_the_history_but_polls_in_flight_at_a_kill(stage: Stage) -> None:
    verdict = judge(stage)

    assert verdict.served > 100
    assert [key for at_s, key in verdict.lost if not excused(stage, at_s)] == []


def test_at_most_the_stated_polls_fell_into_a_kill(stage: Stage) -> None:
    lost = Counter(key[:2] for _, key in judge(stage).lost if key[0].startswith("meter"))  # air-1 speaks, heard or not

    assert max(lost.values(), default=0) <= stage.scenario.expect["polls_lost_at_a_kill"] * (len(stage.deaf) - 1)


def test_nothing_is_stored_that_was_not_served(stage: Stage) -> None:
    assert judge(stage).invented == ()


def test_the_current_state_never_went_back(stage: Stage) -> None:
    assert len(stage.held()["backwards"]) == stage.scenario.expect["backwards"]


def test_the_broker_refused_nothing(stage: Stage) -> None:
    assert stage.held()["refusals"] == []
