"""Brokers that are no longer in the config: what they are owed stays, and no more than that, until they are forgotten."""

import asyncio
import shutil
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.log.log import Consumer, Log
from gateway.log.segment import microseconds
from gateway.sdk.errors import LogError
from gateway.sdk.reading import ReadingSet
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import CITY, OTHER, a_set, at_rest, counts_of, everything, lose, on_card, opened, settle

OLD = Path(__file__).parents[2] / "data" / "logs" / "format-3" / "buffer.db"
LISBOA = Consumer("lisboa")


async def appended(log: Log, *numbers: int, each: int = 1) -> None:
    """These sets, so many in a segment."""
    for place, n in enumerate(numbers, 1):
        await log.append(a_set(n))
        if place % each == 0:
            await log.commit()
    await log.commit()


async def stored(log: Log) -> list[int]:
    """All sets that the log has, settled or not."""
    counts: list[int] = []
    after = -1
    while (columns := await log.scan(after, max_readings=3)) is not None:
        counts += counts_of(log, columns)
        after = columns.last
    return counts


def owed(log: Log) -> dict[str, int]:
    return {name: its["backlog"] for name, its in log.status()["gone"].items()}


async def with_a_hole(folder: Path) -> Log:
    """Porto is gone and owed 0 and 1; milano has these, and 2 and 3, which are owed to nobody."""
    log = await opened(folder, CITY, OTHER)
    await appended(log, 0, 1)
    await log.set_consumers([CITY])
    await appended(log, 2, 3)
    await settle(log, "milano", 4)
    await log.commit()
    return log


# What is pinned


@pytest.mark.parametrize("restart", [False, True])
async def test_what_lay_between_its_place_and_its_going_stays_and_what_comes_after_does_not(
    tmp_path: Path, restart: bool
) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await appended(log, *range(10))
    await settle(log, "porto", 3)
    if restart:
        await log.close()
        log = await opened(tmp_path, CITY)
    else:
        await log.set_consumers([CITY])
    await appended(log, *range(10, 20))
    await settle(log, "milano", 18)
    for _ in range(2):
        await log.commit()
    assert await stored(log) == [*range(3, 10), 18, 19]
    assert await everything(log, "milano") == [18, 19]
    assert (owed(log), log.backlog("milano")[0]) == ({"porto": 14}, 4)
    await log.close()

    for _ in range(2):
        log = await opened(tmp_path, CITY)
        assert (owed(log), log.backlog("milano")[0]) == ({"porto": 14}, 4)
        await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert await everything(log, "porto") == [*range(3, 10), 18, 19]
    assert (owed(log), log.backlog("porto")[0]) == ({}, 18)
    await log.close()


@pytest.mark.parametrize("back", ["by reload", "by restart", "after kill -9"])
async def test_what_was_in_memory_alone_waits_for_its_commit_and_is_there_when_it_comes_back(
    tmp_path: Path, back: str
) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    for n in range(6):
        await log.append(a_set(n))
    await settle(log, "porto", 2)
    await settle(log, "milano", 6)
    await log.set_consumers([CITY])
    assert log.status()["head_readings"] == 8
    for n in range(6, 9):
        await log.append(a_set(n))
    await settle(log, "milano", 3)
    assert owed(log) == {"porto": 8}
    await log.commit()
    assert owed(log) == {"porto": 8}
    await log.append(a_set(9))
    await settle(log, "milano")
    assert log.status()["head_readings"] == 0  # that is owed to nobody, and never written

    if back == "by reload":
        await log.set_consumers([CITY, OTHER])
        assert (await everything(log, "porto"))[:4] == [2, 3, 4, 5]
    elif back == "after kill -9":
        async with on_card(tmp_path, CITY, OTHER) as found:
            assert (await everything(found, "porto"))[:4] == [2, 3, 4, 5]
    await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert (await everything(log, "porto"))[:4] == [2, 3, 4, 5]
    assert await everything(log, "milano") == []
    await log.close()


async def test_what_it_is_owed_in_memory_is_written_when_it_is_of_age(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await opened(tmp_path, CITY, OTHER, clock=clock, commit_every_s=15.0)
    await log.append(a_set(0))
    await settle(log, "milano")
    await log.set_consumers([CITY])
    await at_rest(log)
    before = log.status()["commits"]
    clock.advance(16)
    await log.append(a_set(1))  # looks
    await at_rest(log)
    assert log.status()["commits"] > before
    async with on_card(tmp_path, CITY, OTHER) as found:
        assert await everything(found, "porto") == [0, 1]
    await log.close()


async def test_stretches_of_several_removed_brokers_are_kept_and_what_lies_between_goes(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER, LISBOA)
    await appended(log, *range(4))
    await settle(log, "lisboa", 4)
    await log.set_consumers([CITY, LISBOA])  # porto: 0 to 3
    await appended(log, *range(4, 8))
    await settle(log, "lisboa", 4)
    await appended(log, *range(8, 12))
    await settle(log, "lisboa", 2)
    await log.set_consumers([CITY])  # lisboa: 10 and 11
    await appended(log, *range(12, 16))
    await settle(log, "milano", 14)
    for _ in range(2):
        await log.commit()
    assert await stored(log) == [0, 1, 2, 3, 10, 11, 14, 15]
    assert owed(log) == {"porto": 8, "lisboa": 4}
    assert log.backlog("milano")[0] == 4
    await log.close()

    log = await opened(tmp_path, CITY, OTHER)
    assert owed(log) == {"lisboa": 4}
    assert log.backlog("porto")[0] == 16  # all that is still stored
    await settle(log, "porto", 5)
    for _ in range(2):
        await log.commit()
    assert await stored(log) == [10, 11, 14, 15]
    assert await everything(log, "porto") == [11, 14, 15]
    assert log.backlog("porto")[0] == 6
    done, total = await log.progress(1 << 62)
    assert (done, total) == (8, 8)
    await log.close()


async def test_a_new_broker_behind_the_holes_gets_all_that_is_stored_and_is_told_how_much(tmp_path: Path) -> None:
    log = await with_a_hole(tmp_path)
    await appended(log, 4)
    await log.set_consumers([CITY, LISBOA])
    assert await everything(log, "lisboa") == [0, 1, 4]
    assert log.backlog("lisboa")[0] == 6
    await log.close()
    log = await opened(tmp_path, CITY, LISBOA)
    assert (log.backlog("lisboa")[0], log.backlog("milano")[0], owed(log)) == (6, 2, {"porto": 4})
    await log.close()


async def test_numbers_and_counts_hold_when_the_newest_stored_sets_are_gone_over_a_restart(tmp_path: Path) -> None:
    log = await with_a_hole(tmp_path)
    assert await stored(log) == [0, 1]
    for n in range(4, 7):
        await log.close()
        log = await opened(tmp_path, CITY)
        assert owed(log) == {"porto": 4}
        await appended(log, n)
        assert log.backlog("milano")[0] == 2 * (n - 3)
    await log.set_consumers([CITY, OTHER])
    assert await everything(log, "porto") == [0, 1, 4, 5, 6]
    assert log.backlog("porto")[0] == 10
    await log.close()


async def test_one_that_owes_nothing_pins_nothing_and_keeps_its_place(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await appended(log, 0)
    await settle(log, "porto")
    await log.set_consumers([CITY])
    await appended(log, 1)
    await settle(log, "milano", 2)
    await log.commit()
    assert (await stored(log), owed(log)) == ([], {"porto": 0})
    await appended(log, 2)
    await log.set_consumers([CITY, OTHER])
    assert await everything(log, "porto") == [2]
    await log.close()


async def test_the_last_broker_that_goes_leaves_all_to_whoever_comes(tmp_path: Path) -> None:
    log = await opened(tmp_path, OTHER)
    await appended(log, 0, 1)
    await settle(log, "porto")
    await log.set_consumers([])
    await appended(log, 2)
    await log.commit()
    assert owed(log) == {"porto": 2}
    await log.set_consumers([LISBOA])
    assert await everything(log, "lisboa") == [0, 1, 2]
    await log.close()


async def test_gone_and_back_twice_with_a_restart_between(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await appended(log, 0, 1)
    await log.set_consumers([CITY])
    await appended(log, 2)
    await settle(log, "milano", 3)
    await log.commit()
    await log.set_consumers([CITY, OTHER])
    await appended(log, 3)
    await settle(log, "milano")
    await settle(log, "porto")
    await log.close()
    log = await opened(tmp_path, CITY)  # gone again: 1 and 3
    await appended(log, 4)
    await settle(log, "milano")
    for _ in range(2):
        await log.commit()
    assert await stored(log) == [1, 3]
    assert owed(log) == {"porto": 4}
    await log.set_consumers([CITY, OTHER])
    await log.append(a_set(5))
    assert await everything(log, "porto") == [1, 3, 5]
    await log.close()


async def test_removed_while_the_card_is_away_it_holds_what_the_card_has_and_what_is_in_memory(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await appended(log, 0, 1)
    await settle(log, "porto")
    await settle(log, "milano", 2)
    await log.close()
    away = tmp_path / "away"
    (tmp_path / "buffer.db").rename(away)
    (tmp_path / "buffer.db").mkdir()  # a folder there: the log runs from memory
    log = await opened(tmp_path, CITY, OTHER)
    await log.append(a_set(2))
    await log.set_consumers([CITY])
    await log.append(a_set(3))
    (tmp_path / "buffer.db").rmdir()
    away.rename(tmp_path / "buffer.db")
    await log.commit()
    await settle(log, "milano", 2)
    for _ in range(2):
        await log.commit()
    assert owed(log) == {"porto": 4}
    await log.set_consumers([CITY, OTHER])
    assert (await everything(log, "porto"))[:2] == [1, 2]
    await log.close()


@pytest.mark.parametrize(
    ("tables", "running", "porto", "milano"),
    [
        (("consumer", "hole"), True, [1, 2, 3], [13, 14]),
        (("cursor", "hole"), True, [1, 2, 3], [13, 14]),
        (("consumer", "hole"), False, [1, 2, 3, 12, 13, 14], [12, 13, 14]),  # its end is lost: rather too much
        (("cursor", "hole"), False, [1, 2, 3], [1, 2, 3, 12, 13, 14]),
    ],
    ids=str,
)
async def test_it_outlives_damage_and_what_lay_in_a_hole_is_no_loss(
    tmp_path: Path, tables: tuple[str, ...], running: bool, porto: list[int], milano: list[int]
) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await appended(log, *range(4))
    await settle(log, "porto", 1)
    await log.set_consumers([CITY])
    await appended(log, *range(4, 14))
    await settle(log, "milano", 12)
    await log.commit()
    if running:
        lose(tmp_path, *tables)
        await settle(log, "milano")
        await appended(log, 14)
        await at_rest(log)
        await log.commit()
    else:
        await log.append(a_set(14))
        await log.close()
        lose(tmp_path, *tables)
        log = await opened(tmp_path, CITY)
    assert "taken over" in log.status()["salvaged"]
    assert await everything(log, "milano") == milano
    assert (owed(log), log.backlog("milano")[0]) == ({"porto": 2 * len(porto)}, 2 * len(milano))
    await settle(log, "milano", len(milano))
    for _ in range(2):
        await log.commit()
    assert await stored(log) == porto
    assert log.status()["lost"] == {"damage": 0}
    await appended(log, 15)
    await log.close()
    log = await opened(tmp_path, CITY)
    assert owed(log) == {"porto": 2 * len(porto)}
    await log.set_consumers([CITY, OTHER])
    assert await everything(log, "porto") == [*porto, 15]
    await log.close()


async def test_with_its_place_lost_it_is_owed_none_of_what_is_kept_though_all_have_it(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER, keep_s=3600.0)
    await appended(log, *range(4))
    await settle(log, "porto", 3)
    await settle(log, "milano", 4)
    await log.set_consumers([CITY])
    await appended(log, 4)
    await log.close()
    lose(tmp_path, "cursor")
    log = await opened(tmp_path, CITY, keep_s=3600.0)
    assert await stored(log) == [0, 1, 2, 3, 4]
    assert owed(log) == {"porto": 2}
    await log.set_consumers([CITY, OTHER])
    assert await everything(log, "porto") == [3, 4]
    await log.close()


# The bounds


async def test_age_takes_it_too_and_counts_it(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await opened(tmp_path, CITY, OTHER, clock=clock, max_age_s=7200.0)
    await appended(log, 0, 1)
    await log.set_consumers([CITY])
    clock.advance(3600)
    await appended(log, 2, 3)
    await settle(log, "milano", 3)
    clock.advance(3601)
    await log.commit()
    [gap] = log.gaps
    assert (gap.reason, gap.readings, dict(gap.owed)) == ("age", 4, {"porto": 4, "milano": 0})
    assert owed(log) == {"porto": 0}
    assert await everything(log, "milano") == [3]
    assert log.backlog("milano")[0] == 2
    await log.set_consumers([CITY, OTHER])
    assert await everything(log, "porto") == [3]
    await log.close()


async def test_what_is_too_old_beyond_its_end_is_none_of_its_loss(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await opened(tmp_path, CITY, OTHER, clock=clock, max_age_s=7200.0)
    await appended(log, 0)
    await log.set_consumers([CITY])
    await appended(log, 1, 2)
    await settle(log, "milano", 2)
    clock.advance(7201)
    await log.commit()
    assert [(gap.readings, dict(gap.owed)) for gap in log.gaps] == [(4, {"porto": 2, "milano": 2})]
    await log.close()


async def test_what_keep_holds_goes_in_time_also_behind_what_a_removed_one_is_owed(tmp_path: Path) -> None:
    clock = ManualClock()
    log = await opened(tmp_path, CITY, OTHER, clock=clock, keep_s=3600.0)
    await appended(log, 0)
    await log.set_consumers([CITY])
    for n in range(1, 5):
        await appended(log, n)
        await settle(log, "milano", 2 if n == 1 else 1)
        clock.advance(1800)
    await log.commit()
    assert await stored(log) == [0, 3, 4]
    assert not log.gaps
    await log.close()


async def test_memory_that_gives_up_counts_what_it_was_owed_and_not_what_came_later(tmp_path: Path) -> None:
    (tmp_path / "buffer.db").mkdir()
    log = await opened(tmp_path, CITY, OTHER, head_bytes=2000)
    await log.append(a_set(0))
    await log.set_consumers([CITY])
    for n in range(1, 12):
        await log.append(a_set(n))
    lost = [gap for gap in log.gaps if gap.reason == "memory"]
    assert sum(gap.owed["porto"] for gap in lost) == 2
    assert sum(gap.owed["milano"] for gap in lost) == sum(gap.readings for gap in lost) > 2
    (tmp_path / "buffer.db").rmdir()
    await log.close()


# How much: what it takes, as before


def counts_only(name: str) -> Consumer:
    return Consumer(name, takes=lambda device, point: point == "count")


@pytest.mark.parametrize("by", ["reload", "restart"])
async def test_it_is_owed_as_many_as_were_told_before(tmp_path: Path, by: str) -> None:
    log = await opened(tmp_path, CITY, counts_only("porto"))
    await appended(log, *range(5))
    await settle(log, "porto", 2)
    await log.commit()
    told = log.backlog("porto")
    assert told[0] == 3
    if by == "reload":
        await log.set_consumers([CITY])
        assert log.status()["gone"]["porto"]["backlog"] == 3
    await log.close()
    for _ in range(2):
        log = await opened(tmp_path, CITY)
        while owed(log) != {"porto": 3}:  # counted beside the work  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert log.status()["gone"]["porto"]["oldest_unsent_at"] == told[1].isoformat().replace("+00:00", "Z")  # type: ignore[union-attr]
        await log.append(a_set(9))
        await log.commit()
        assert owed(log) == {"porto": 3}
        await log.close()


async def test_what_the_file_knows_of_a_broker_is_written_when_it_changes_alone(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, counts_only("porto"))
    await appended(log, 0)
    changes = watch(tmp_path)
    for n in range(3):
        await appended(log, n)
        await log.set_consumers([CITY, counts_only("porto")])
    assert watch(tmp_path) == changes
    await log.append(a_set(5, "meter-2"))
    await log.commit()
    assert watch(tmp_path) != changes
    await log.close()


def watch(folder: Path) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(folder / "buffer.db")
    try:
        return db.execute("SELECT * FROM consumer ORDER BY name").fetchall()
    finally:
        db.close()


# Forgetting


async def test_who_is_forgotten_leaves_a_gap_record_and_frees_the_card(tmp_path: Path) -> None:
    clock = ManualClock(NOON + timedelta(seconds=60))
    log = await opened(tmp_path, CITY, OTHER, clock=clock)
    await log.append(ReadingSet("broker porto", (), {"mode": b"temporal"}))
    await appended(log, *range(4))
    columns = await log.read("porto", max_readings=1)
    assert columns is not None
    await log.held.hold("porto", "urn:x", "meter-1", columns, reason="refused", at=NOON)
    await log.settle("porto", columns.last)
    await log.set_consumers([CITY])
    await appended(log, 4)
    await settle(log, "milano", 5)
    assert log.status()["gone"]["porto"] == {
        "backlog": 6,
        "oldest_unsent_at": "2026-06-01T12:00:01Z",
        "later": 0,
        "dead": 1,
    }
    assert await log.forget("porto")
    assert not await log.forget("porto")
    for _ in range(2):
        await log.commit()
    assert (await stored(log), log.status()["gone"], log.held.pieces()) == ([], {}, [])
    assert sum(gap.readings for gap in log.gaps) == 8
    first = log.gaps[0]
    assert (first.reason, dict(first.owed), first.from_us) == (
        "forgotten",
        {"porto": 6},
        microseconds(NOON + timedelta(seconds=1)),
    )
    assert first.to_us is not None
    assert first.from_us is not None
    assert first.to_us >= first.from_us
    assert (log.status()["state"], log.given_up("porto")) == ("ok", 0)  # a person did it
    assert not any(log.driver_state("broker porto").values())
    await log.close()
    log = await opened(tmp_path, CITY, OTHER)
    assert sum(gap.readings for gap in log.gaps if gap.reason == "forgotten") == 8
    assert log.status()["gone"] == {}
    await log.append(a_set(7))
    assert await everything(log, "porto") == [7]
    await log.close()


async def test_what_is_held_for_one_without_a_place_is_shown_and_forgotten_too(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await appended(log, 0)
    columns = await log.read("milano")
    assert columns is not None
    await log.held.hold("porto", "urn:x", "meter-1", columns, reason="away", at=NOON, next_try_at=NOON)
    assert log.status()["gone"] == {"porto": {"backlog": 0, "oldest_unsent_at": None, "later": 1, "dead": 0}}
    assert await log.forget("porto")
    assert log.status()["gone"] == {}
    assert [(gap.reason, gap.readings) for gap in log.gaps] == [("forgotten", 2)]
    await log.close()


async def test_one_that_is_in_the_config_is_not_forgotten(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    with pytest.raises(LogError, match="milano is in the config"):
        await log.forget("milano")
    await log.close()


# Renaming


@pytest.mark.parametrize("by", ["reload", "restart", "restart after it was removed", "reload after it was removed"])
async def test_a_new_name_takes_over_place_held_pieces_and_notes(tmp_path: Path, by: str) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await log.append(ReadingSet("broker porto", (), {"mode": b"temporal", "month": b"2026-06 5"}))
    await appended(log, *range(4))
    columns = await log.read("porto", max_readings=1)
    assert columns is not None
    await log.held.hold("porto", "urn:x", "meter-1", columns, reason="refused", at=NOON)
    await log.settle("porto", columns.last)
    await log.append(a_set(4))
    renamed = Consumer("lisboa", "now", was="porto")
    if "removed" in by:
        await log.set_consumers([CITY])
    if "restart" in by:
        await log.close()
        log = await opened(tmp_path, CITY, renamed)
    else:
        await log.set_consumers([CITY, renamed])
    for _ in range(3):
        assert await everything(log, "lisboa") == [1, 2, 3, 4]
        assert log.backlog("lisboa")[0] == 8
        assert [piece.broker for piece in log.held.pieces()] == ["lisboa"]
        assert {k: v for k, v in log.driver_state("broker lisboa").items() if v} == {
            "mode": b"temporal",
            "month": b"2026-06 5",
        }
        assert not any(log.driver_state("broker porto").values())
        assert log.status()["gone"] == {}
        await log.close()
        log = await opened(tmp_path, CITY, renamed)  # the key may stay
    await log.close()


async def test_a_rename_is_in_one_commit_with_all_it_takes_over(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await appended(log, *range(3))
    columns = await log.read("porto", max_readings=1)
    assert columns is not None
    await log.held.hold("porto", "urn:x", "meter-1", columns, reason="refused", at=NOON)
    await log.settle("porto", columns.last)
    await log.commit()
    renamed = Consumer("lisboa", was="porto")
    await log.set_consumers([CITY, renamed])  # and kill -9 before its commit, or after
    for _ in range(2):
        async with on_card(tmp_path, CITY, renamed) as found:
            assert await everything(found, "lisboa") == [1, 2]
            assert [piece.broker for piece in found.held.pieces()] == ["lisboa"]
            assert found.status()["gone"] == {}
        await log.commit()
    await log.close()


async def test_the_old_name_can_come_back_as_another_and_go_again(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY, OTHER)
    await appended(log, 0, 1)
    renamed = Consumer("lisboa", was="porto")
    await log.set_consumers([CITY, renamed])
    await log.set_consumers([CITY, Consumer("lisboa"), Consumer("porto", "now")])
    await appended(log, 2)
    assert (await everything(log, "lisboa"), await everything(log, "porto")) == ([0, 1, 2], [2])
    await log.set_consumers([CITY, renamed])  # it has a place: the other one's stays where it is
    assert (await everything(log, "lisboa"), owed(log)) == ([0, 1, 2], {"porto": 2})
    await log.close()


# A file of an older format


async def test_a_log_of_format_3_is_brought_up_to_date_and_a_broker_gone_meanwhile_is_owed_its_rest(
    tmp_path: Path,
) -> None:
    shutil.copy(OLD, tmp_path / "buffer.db")
    log = await opened(tmp_path, CITY)
    assert await everything(log, "milano") == [8, 9, 10]
    assert log.status()["gone"]["porto"] | {"oldest_unsent_at": ""} == {
        "backlog": 14,
        "oldest_unsent_at": "",
        "later": 0,
        "dead": 1,
    }
    await appended(log, 11)
    await settle(log, "milano", 4)
    await log.commit()
    renamed = Consumer("lisboa", was="porto")
    await log.close()
    log = await opened(tmp_path, CITY, renamed)
    assert await everything(log, "lisboa") == [4, 5, 6, 7, 8, 9, 10]
    assert log.driver_state("broker lisboa")["mode"] == b"temporal"
    [piece] = log.held.pieces("lisboa")
    assert counts_of(log, await log.held.readings(piece.id)) == [*range(3, 11)]
    assert not log.gaps
    await log.close()
