"""What is marked personal is dropped, hashed or blurred before anything is logged: the raw value never reaches the disk."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.intake import Intake, PointRule, rules_of
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.config import DeviceConfig
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, Value, no_values
from gateway.sdk.template import Template
from gateway.sdk.testing import ManualClock

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
SALT = b"of this run"
PLATE = "AB123CD"
HOME = 45.50312345


def camera(**points: Any) -> DeviceConfig:
    template = Template.model_validate({"vendor": "Acme", "model": "Cam", "points": points})
    return DeviceConfig.model_construct(template=template, report={}, calibrate={}, entity=None, location=None)


CAMERA = camera(
    plate={"quantity": "licence_plate"},
    owner={"quantity": "text", "personal": "drop"},
    lat={"quantity": "latitude", "personal": "blur", "blur_to": 0.01},
    vehicles={"quantity": "vehicle_count"},
)


def seen(at: datetime = NOON, plate: str = PLATE) -> ReadingSet:
    values: dict[str, Value] = {"plate": plate, "owner": "Mario Rossi", "lat": HOME, "vehicles": 1}
    return ReadingSet("cam", tuple(Reading(point, value, at) for point, value in values.items()))


def test_a_plate_is_hashed_by_nature_and_the_marked_points_as_they_say() -> None:
    logged = Intake(rules_of(CAMERA.template), SALT).admit(seen()).logged
    assert logged is not None
    values = logged.values()
    assert set(values) == {"plate", "lat", "vehicles"}
    assert len(str(values["plate"])) == 16
    assert PLATE not in str(values["plate"])
    assert values["lat"] == 45.5
    assert values["vehicles"] == 1


def hashed(intake: Intake, at: datetime = NOON, plate: str = PLATE) -> str:
    logged = intake.admit(seen(at, plate)).logged
    assert logged is not None
    return str(logged.values()["plate"])


def test_a_hash_tells_two_apart_within_a_day_and_links_nothing_beyond() -> None:
    intake = Intake(rules_of(CAMERA.template), SALT)
    assert hashed(intake) == hashed(intake, NOON + timedelta(hours=11))
    assert hashed(intake) != hashed(intake, plate="AB123CE")
    assert hashed(intake) != hashed(intake, NOON + timedelta(hours=13)), "another day"
    assert hashed(intake) != hashed(Intake(rules_of(CAMERA.template), b"another run"))


def test_a_template_can_say_that_an_identifier_is_not_personal() -> None:
    open_ = camera(tag={"quantity": "identifier", "personal": "no"})
    logged = Intake(rules_of(open_.template), SALT).admit(ReadingSet("cam", (Reading("tag", "pallet 7", NOON),))).logged
    assert logged is not None
    assert logged.values() == {"tag": "pallet 7"}


@pytest.mark.parametrize(
    "point",
    [
        {"quantity": "latitude", "personal": "hash"},
        {"quantity": "latitude", "personal": "blur"},
        {"quantity": "text", "personal": "blur", "blur_to": 1},
        {"quantity": "text", "personal": "encrypt"},
    ],
)
def test_a_mark_that_cannot_be_kept_is_refused_at_load(point: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"personal|hashed|blur"):
        camera(p=point)


def test_bad_quality_passes_without_a_value_except_where_all_is_dropped() -> None:
    bad = no_values("cam", tuple(CAMERA.template.points), Reason.TIMEOUT, observed_at=NOON)
    logged = Intake(rules_of(CAMERA.template), SALT).admit(bad).logged
    assert logged is not None
    assert {r.point: (r.value, r.quality) for r in logged.readings} == dict.fromkeys(
        ("plate", "lat", "vehicles"), (None, Quality.BAD)
    )


def test_a_value_of_the_wrong_kind_is_not_let_through_by_blurring() -> None:
    rule = PointRule(kind="number", personal="blur", blur_to=0.01)
    for value in (True, "45.50312345 N", float("nan"), float("inf")):
        admitted = Intake({"lat": rule}, SALT).admit(ReadingSet("cam", (Reading("lat", value, NOON),)))
        assert admitted.logged is None or admitted.logged.values() == {}


def test_a_number_written_as_text_is_blurred_like_the_number() -> None:
    rule = PointRule(kind="number", personal="blur", blur_to=0.01)
    admitted = Intake({"lat": rule}, SALT).admit(ReadingSet("cam", (Reading("lat", "45.50312345", NOON),)))
    assert admitted.logged is not None
    assert admitted.logged.values() == {"lat": 45.5}


async def test_raw_values_never_reach_the_disk(tmp_path: Path) -> None:
    settings = LogSettings(path=tmp_path / "buffer.db", commit_every_s=0.0)
    log = await Log.open(settings, clock=ManualClock(NOON), consumers=[Consumer("city")])
    intake = Intake(rules_of(CAMERA.template), SALT)
    try:
        for n in range(50):
            admitted = intake.admit(seen(NOON + timedelta(seconds=n)))
            assert admitted.logged is not None
            await log.append(admitted.logged)
        columns = await log.read("city")
        assert columns is not None
        assert len(columns.value) == 150
        stored = {value for value in columns.value if isinstance(value, str)} | {str(value) for value in columns.value}
        assert not stored & {PLATE, "Mario Rossi", str(HOME)}
    finally:
        await log.close()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        for raw in (PLATE.encode(), b"Mario Rossi", PLATE.encode("utf-16-le")):
            assert raw not in content, file


COUNTER = camera(people={"quantity": "radio_device_count", "personal": "count", "count_every": "15 min", "fewest": 3})


def probe(name: str, minutes: float) -> ReadingSet:
    return ReadingSet("cam", (Reading("people", name, NOON + timedelta(minutes=minutes)),))


def told(intake: Intake, *probes: ReadingSet) -> list[tuple[Any, datetime]]:
    logged = (intake.admit(one).logged for one in probes)
    return [(reading.value, reading.observed_at) for one in logged if one is not None for reading in one.readings]


def test_identifiers_are_counted_and_only_the_number_of_different_ones_is_logged() -> None:
    intake = Intake(rules_of(COUNTER.template), SALT)
    first = [probe(name, n) for n, name in enumerate(["a", "b", "a", "c", "b", "a"])]
    assert told(intake, *first) == []
    assert told(intake, probe("z", 16)) == [(3, NOON + timedelta(minutes=15))]


def test_few_are_somebody_and_are_not_told() -> None:
    intake = Intake(rules_of(COUNTER.template), SALT)
    assert told(intake, probe("a", 0), probe("b", 1), probe("z", 16), probe("z", 31)) == []


def test_a_late_identifier_of_a_told_period_changes_nothing() -> None:
    intake = Intake(rules_of(COUNTER.template), SALT)
    assert told(intake, *(probe(n, 16) for n in "abc"), probe("late", 3), probe("z", 31)) == [
        (3, NOON + timedelta(minutes=30))
    ]


def test_what_is_counted_must_be_a_number_of_something() -> None:
    with pytest.raises(ValueError, match="whole number"):
        camera(p={"quantity": "identifier", "personal": "count"})
