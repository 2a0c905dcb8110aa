"""commission: what a box proved while it was watched, and what is still open."""

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.cli.conftest import Command, Ended
from tests.support.fake_view import FakeView

PLACE = {"type": "GeoProperty", "value": {"type": "Point", "coordinates": [9.1, 45.5]}}


@pytest.fixture
def box(daemon: FakeView, folder: Path) -> FakeView:
    """A box on which everything goes on while it is watched."""
    file = folder / "citygate.yaml"
    file.write_text(file.read_text() + "clock: {trust: system}\n")
    first = copy.deepcopy(daemon.shown)
    asked = 0

    def going_on() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return first if asked == 1 else daemon.shown

    daemon.status = going_on  # type: ignore[method-assign]  # the counters of a box at work
    device = daemon.shown["links"]["roof"]["devices"]["meter-12"]
    device.update(sets=13, readings=133, bad=0)
    daemon.shown["brokers"]["milano"].update(accepted=15)

    async def preview(device: str) -> dict[str, Any]:
        entity = {"id": "urn:x", "type": "T", "location": PLACE}
        return {"source": "last values", "remarks": [], "brokers": {"milano": [entity]}}

    daemon.preview = preview  # type: ignore[method-assign]
    return daemon


def run(citygate: Command, folder: Path, *more: str) -> Ended:
    return citygate("commission", "--for", "10 ms", "-c", str(folder), *more)


def opened(ended: Ended) -> dict[str, str]:
    """What did not pass, with what was said."""
    return {proof["what"]: proof["said"] for proof in ended.json["proofs"] if not proof["passed"]}


def test_a_box_that_works_passes(citygate: Command, box: FakeView, folder: Path) -> None:
    ended = run(citygate, folder, "--json")
    assert (ended.code, opened(ended), ended.json["passed"]) == (0, {}, True)
    said = {proof["what"]: proof["said"] for proof in ended.json["proofs"]}
    assert said["meter-12 reads"].startswith("10 sets, 130 good readings, 0.0% bad")


@pytest.mark.parametrize(
    ("device", "open_point"),
    [
        ({"sets": 3, "readings": 3}, "meter-12 reads"),  # nothing new while watched
        ({"bad": 20}, "meter-12 reads"),
        ({"state": "bad", "reason": "timeout"}, "meter-12 reads"),
    ],
)
def test_a_device_that_does_not_read_well_is_open(
    citygate: Command, box: FakeView, folder: Path, device: dict[str, Any], open_point: str
) -> None:
    box.shown["links"]["roof"]["devices"]["meter-12"].update(device)
    ended = run(citygate, folder, "--json")
    assert ended.code == 1
    assert list(opened(ended)) == [open_point]


@pytest.mark.parametrize(
    "broker",
    [
        {"accepted": 5},
        {"refused": 1},
        {"state": "down", "reason": "no route"},
        {"backlog": 9, "oldest_unsent_at": "2026-06-01T11:00:00Z"},
    ],
)
def test_a_broker_that_does_not_take_everything_is_open(
    citygate: Command, box: FakeView, folder: Path, broker: dict[str, Any]
) -> None:
    box.shown["brokers"]["milano"].update(broker)
    ended = run(citygate, folder, "--json")
    assert ended.code == 1
    assert list(opened(ended)) == ["broker milano"]


@pytest.mark.parametrize(
    ("preview", "says"),
    [
        ({"source": "sample frames of template x"}, "no value of its own yet"),
        ({"remarks": ["urn:x: not sent before dateObserved is known"]}, "dateObserved"),
        ({"brokers": {"milano": [{"id": "urn:x", "type": "T"}]}}, "has no location"),
        ({"brokers": {}}, "no broker gets an entity"),
    ],
)
def test_an_entity_that_is_not_whole_is_open(
    citygate: Command, box: FakeView, folder: Path, preview: dict[str, Any], says: str
) -> None:
    whole = {"source": "last values", "remarks": [], "brokers": {"milano": [{"id": "urn:x", "location": PLACE}]}}

    async def found(device: str) -> dict[str, Any]:
        return {**whole, **preview}

    box.preview = found  # type: ignore[method-assign]
    ended = run(citygate, folder, "--json")
    assert ended.code == 1
    assert says in opened(ended)["meter-12 entity"]


def test_the_report_has_verdict_values_and_a_place_to_sign(citygate: Command, box: FakeView, folder: Path) -> None:
    box.shown["gateway"]["name"] = "Roof | School"
    ended = run(citygate, folder, "--output", str(folder / "report.md"))
    assert ended.code == 0
    report = (folder / "report.md").read_text()
    for words in (
        "# Acceptance of Roof \\| School",
        "**passed**",
        "| ok | meter-12 reads |",
        "230.5 V",
        "SHA-256",
        "Technician",
    ):
        assert words in report, words


def test_without_a_daemon_there_is_nothing_to_accept(citygate: Command, folder: Path) -> None:
    assert run(citygate, folder).code == 4
