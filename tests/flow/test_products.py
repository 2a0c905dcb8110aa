"""A broker that keeps its history in memory for a while, and a daemon that is killed: each value is in the history once."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.flow.test_kill import COMMIT_EVERY_S, CONFIG
from tests.support.box import Box, eventually
from tests.support.scenario import Scenario, Stage, excused, judge, recorded

# silence: longer than the meters are silent, so that all is in memory until they stop
SCORPIO = ("--profile", "scorpio", "--profile-with", '{"silence_s": 1.0, "look_s": 0.25, "batch_s": null}')
KILLS = [
    {"at": "1.5 s", "daemon": "kill"},
    {"at": "1.6 s", "daemon": "start"},
    {"at": "3.2 s", "broker": "away"},
    {"at": "3.4 s", "daemon": "kill"},
    {"at": "3.5 s", "daemon": "start"},
    {"at": "4.6 s", "broker": "back"},
    {"at": "5.2 s", "links": "stop"},
]
ALL = [
    {"at": "2.0 s", "broker": "restart"},
    {"at": "5.0 s", "broker": "database"},
    {"at": "9.0 s", "broker": "database back"},
    {"at": "11.0 s", "links": "stop"},
    {"at": "25.0 s", "daemon": "kill"},
    {"at": "25.1 s", "daemon": "start"},
    {"at": "27.0 s", "links": "stop"},
]


def played(folder: Path, steps: list[dict[str, str]]) -> Iterator[Stage]:
    box = Box(folder)
    try:
        scenario = Scenario("products", {"plant": "tcp"}, CONFIG, steps, {})
        stage = Stage(box, scenario, in_flight_s=COMMIT_EVERY_S + 0.6, waits=False, broker=SCORPIO)
        stage.play()
        yield stage
    finally:
        box.close()


def wrong(stage: Stage) -> str:
    """What is missing from the history or doubled in it."""
    verdict = judge(stage, recorded(stage))
    lost = [key for at_s, key in verdict.lost if not excused(stage, at_s)]
    return f"{len(lost)} of {verdict.served} lost: {lost[:5]}, {verdict.repeated} doubled" * bool(
        lost or verdict.repeated
    )


def _right(stage: Stage) -> bool:
    return not wrong(stage)


def test_a_daemon_that_is_killed_before_scorpio_wrote_its_history_doubles_and_loses_nothing(tmp_path: Path) -> None:
    for stage in played(tmp_path, KILLS):
        eventually("the history is written", partial(_right, stage), within_s=5.0)
        assert judge(stage).served > 100
        assert stage.held()["backwards"] == []


@pytest.mark.slow
def test_what_scorpio_forgets_a_daemon_sends_again_even_after_a_kill(tmp_path: Path) -> None:
    for stage in played(tmp_path, ALL):
        eventually("the history is whole", partial(_right, stage))
        assert stage.held()["forgotten"]
        assert stage.held()["backwards"] == []
