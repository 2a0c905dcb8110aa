"""kill -9, again and again: what was committed or accepted is there, and the current state never goes back."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.box import Box
from tests.support.scenario import Scenario, Stage, excused, judge

COMMIT_EVERY_S = 1.0

CONFIG = """
version: 1
gateway: {id: gw-flow, city: testville, location: [9.159, 45.503]}
buffer: {path: "{box}/buffer.db", commit_every: 1 s}
clock: {trust: system}
http: {listen: "127.0.0.1:{http}"}
links:
  plant:
    driver: modbus
    host: 127.0.0.1
    port: {plant}
    devices:
      meter-1: {template: eastron/sdm120, unit_id: 1, every: 200 ms}
      meter-2: {template: eastron/sdm120, unit_id: 2, every: 300 ms}
brokers:
  testville: {kind: ngsi-ld, url: "{broker}", linger: 200 ms}
"""


def kills(count: int, *, seed: int) -> Scenario:
    """A scenario with kills at random moments, every other one while the broker is away."""
    chance = random.Random(seed)
    steps: list[dict[str, str]] = []
    at_s = 0.5
    for n in range(count):
        at_s += chance.uniform(0.2, 0.6)
        if n % 2:
            steps.append({"at": f"{at_s:.2f} s", "broker": "away"})
            at_s += chance.uniform(0.1, 0.5)
        steps.append({"at": f"{at_s:.2f} s", "daemon": "kill"})
        steps.append({"at": f"{at_s:.2f} s", "daemon": "start"})
        at_s += 0.9  # a start takes that long
        if n % 2:
            steps.append({"at": f"{at_s:.2f} s", "broker": "back"})
    steps.append({"at": f"{at_s + 0.5:.2f} s", "links": "stop"})
    return Scenario("kills", {"plant": "tcp"}, CONFIG, steps, {})


def played(folder: Path, scenario: Scenario) -> Iterator[Stage]:
    box = Box(folder)
    try:
        stage = Stage(box, scenario, in_flight_s=COMMIT_EVERY_S + 0.6, waits=False)  # kills fall into starts too
        stage.play()
        yield stage
    finally:
        box.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    yield from played(tmp_path_factory.mktemp("kills"), kills(5, seed=5))


def test_only_what_was_younger_than_the_declared_window_is_lost(stage: Stage) -> None:
    verdict = judge(stage)

    assert verdict.served > 200
    assert [key for at_s, key in verdict.lost if not excused(stage, at_s)] == []
    assert verdict.invented == ()


def test_the_current_state_never_went_back_over_a_crash(stage: Stage) -> None:
    assert stage.held()["backwards"] == []


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path) -> None:
    for round_ in range(20):
        folder = tmp_path / str(round_)
        folder.mkdir()
        for stage in played(folder, kills(10, seed=round_)):
            verdict = judge(stage)
            assert [key for at_s, key in verdict.lost if not excused(stage, at_s)] == []
            assert verdict.invented == ()
            assert stage.held()["backwards"] == []
