"""Held: bounded, on the card when `hold` returns, tried again when its time has come."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.log import console, held
from gateway.log.log import Columns, Log
from gateway.sdk.errors import CitygateError, LogError
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON
from tests.gateway.log.scene import CITY, a_set, on_card, opened
from tests.gateway.log.test_failed_commit import Card, Late


async def page(log: Log, n: int = 1) -> Columns:
    await log.append(a_set(n))
    columns = await log.read("milano")
    assert columns is not None
    await log.settle("milano", columns.last)
    return columns


async def test_held_readings_outlive_their_segment_and_a_restart(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    columns = await page(log)
    number = await log.held.hold("milano", "urn:x", "meter-1", columns, reason="refused: 400 name", at=NOON)
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await log.scan(-1) is None
    [piece] = log.held.pieces("milano")
    assert (piece.id, piece.state, piece.reason, piece.readings, piece.tries) == (
        number,
        "dead",
        "refused: 400 name",
        2,
        1,
    )
    again = await log.held.readings(number)
    assert (again.series, again.time_us, again.value) == (columns.series, columns.time_us, columns.value)
    assert log.held.count("milano") == (0, 1)
    await log.close()


async def names_of(log: Log, piece: int) -> list[tuple[str, str]]:
    columns = await log.held.readings(piece)
    return [(log.series[number].device, log.series[number].point) for number in columns.series]


async def test_a_kill_right_after_a_piece_of_new_points_leaves_it_with_their_names(tmp_path: Path) -> None:
    """Else the next run gives their numbers to others: what is held of one would become the value of another."""
    log = await opened(tmp_path, CITY)
    await log.append(a_set(0))
    await log.commit()
    for device, points in (("meter-2", ("count", "voltage")), ("meter-3", ("voltage",))):
        readings = tuple(Reading(point, 7, NOON) for point in points)
        await log.append(ReadingSet(device, readings))
    columns = await log.read("milano", after=log.first_seq + 1)
    assert columns is not None
    piece = await log.held.hold("milano", "urn:x", "meter-2", columns, reason="400", at=NOON)
    names = [("meter-2", "count"), ("meter-2", "voltage"), ("meter-3", "voltage")]
    async with on_card(tmp_path, CITY) as found:
        await found.append(ReadingSet("meter-4", (Reading("voltage", 1, NOON),)))
        await found.append(ReadingSet("meter-2", (Reading("voltage", 1, NOON), Reading("count", 1, NOON))))
        await found.commit()
        assert await names_of(found, piece) == names
    await log.commit()
    await log.held.hold("milano", "urn:x", "meter-2", columns, reason="400", at=NOON)
    await log.close()
    log = await opened(tmp_path, CITY)
    assert await names_of(log, piece) == await names_of(log, piece + 1) == names
    await log.close()


@pytest.mark.parametrize("known", [True, False])
async def test_what_was_read_before_the_card_came_is_held_under_the_numbers_of_the_card(
    tmp_path: Path, known: bool
) -> None:
    if known:
        log = await opened(tmp_path, CITY)
        await log.append(ReadingSet("meter-1", (Reading("voltage", 1, NOON), Reading("count", 1, NOON))))
        await log.close()
    card = Late()
    log = await opened(tmp_path, CITY, connect=card.connect)
    await log.append(a_set(1))
    columns = await log.read("milano")
    assert columns is not None
    with pytest.raises(LogError):
        await log.held.hold("milano", "urn:x", "meter-1", columns, reason="400", at=NOON)
    card.open()
    await log.commit()
    piece = await log.held.hold("milano", "urn:x", "meter-1", columns, reason="400", at=NOON)
    async with on_card(tmp_path, CITY) as found:
        assert await names_of(found, piece) == [("meter-1", "count"), ("meter-1", "voltage")]
    await log.close()


async def test_later_pieces_come_due_and_end_as_released_or_dead(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    columns = await page(log)
    soon, late = NOON + timedelta(seconds=30), NOON + timedelta(hours=1)
    one = await log.held.hold("milano", "urn:x", "d", columns, reason="503", at=NOON, next_try_at=soon)
    two = await log.held.hold("milano", "urn:y", "d", columns, reason="503", at=NOON, next_try_at=late)
    assert log.held.due("milano", NOON) == []
    assert log.held.next_try_at("milano") == soon
    assert [piece.id for piece in log.held.due("milano", soon)] == [one]
    assert [piece.id for piece in log.held.due("porto", late)] == []
    await log.held.tried(one, reason="503 again", at=soon, next_try_at=None)
    await log.held.release([two])
    assert [(p.id, p.state, p.tries, p.reason) for p in log.held.pieces()] == [(one, "dead", 2, "503 again")]
    assert await log.held.requeue([one, two], late) == 1
    assert [piece.id for piece in log.held.due("milano", late)] == [one]
    assert await log.held.purge([one], late) == 1
    assert [(gap.reason, gap.readings) for gap in (await log._file.job(lambda store: store.gaps()))] == [("purged", 2)]
    await log.close()


async def test_the_table_is_bounded_dead_letters_go_first_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "MAX_PIECES", 3)
    log = await opened(tmp_path, CITY)
    columns = await page(log)
    ids = [
        await log.held.hold(
            "milano", f"urn:{n}", "d", columns, reason="r", at=NOON, next_try_at=NOON if n in (0, 2) else None
        )
        for n in range(5)
    ]
    assert [piece.id for piece in log.held.pieces()] == [ids[0], ids[2], ids[4]]
    assert log.given_up("milano") == 4
    status = log.status()
    assert (status["dropped"], status["state"]) == (4, "bad")
    assert "held" in status["remedy"]
    [gap] = await log._file.job(lambda store: store.gaps())
    assert (gap.reason, gap.readings, gap.owed) == ("held", 4, {"milano": 4})
    await log.close()


async def test_nothing_is_held_when_there_is_nothing_or_the_file_cannot_be_used(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    with pytest.raises(LogError, match="nothing to hold"):
        await log.held.hold("milano", "urn:x", "d", Columns(0), reason="r", at=NOON)
    columns = await page(log)
    store, log._file.store = log._file.store, None
    with pytest.raises(LogError):
        await log.held.hold("milano", "urn:x", "d", columns, reason="r", at=NOON)
    log._file.store = store
    await log.close()


async def test_a_choice_that_is_none_chooses_nothing(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    try:
        await log.held.hold("milano", "urn:x", "meter-1", await page(log), reason="400", at=NOON)
        verbs = console.verbs(log)

        wrong: tuple[dict[str, Any], ...] = (
            {"all": "no"}, {"all": 1}, {"ids": [True]}, {"ids": 0}, {"ids": "1"}, {"ids": []}, {"ids": {}},
        )  # fmt: skip
        for given in wrong:
            with pytest.raises(CitygateError):
                await verbs["buffer-purge"](given)
        assert await verbs["buffer-purge"]({"ids": [], "broker": "milano"}) == {"purged": 0}
        assert await verbs["buffer-purge"]({"ids": [1], "all": False}) == {"purged": 1}
    finally:
        await log.close()


async def test_what_the_card_would_not_release_is_still_there(tmp_path: Path) -> None:
    card = Card()
    log = await opened(tmp_path, CITY, connect=card.connect)
    columns = await page(log)
    number = await log.held.hold("milano", "urn:x", "meter-1", columns, reason="", at=NOON, next_try_at=NOON)
    card.refuse()
    with pytest.raises(LogError):
        await log.held.release([number])
    assert [piece.id for piece in log.held.due("milano", NOON)] == [number]
    card.work()
    await log.held.release([number])
    assert log.held.pieces() == []
    await log.close()


async def test_two_pieces_at_once_make_room_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "MAX_PIECES", 3)
    log = await opened(tmp_path, CITY)
    columns = await page(log)

    async def hold(entity: str) -> None:
        await log.held.hold("milano", entity, "meter-1", columns, reason="", at=NOON)

    for n in range(3):
        await hold(f"e{n}")
    await asyncio.gather(hold("e3"), hold("e4"))
    assert [piece.entity for piece in log.held.pieces()] == ["e2", "e3", "e4"]
    assert log.status()["lost"] == {"held": 4}
    await log.close()


async def join(
    log: Log, columns: Columns, *, joins: int = 0, entity: str = "e", next_try_at: datetime | None = NOON
) -> int:
    columns.seq = [1] * len(columns.seq)  # as who sets aside counts
    return await log.held.hold(
        "milano", entity, "d", columns, reason="", at=NOON, next_try_at=next_try_at, tries=0, joins=joins
    )


async def test_what_joins_a_piece_is_read_back_behind_it_also_after_a_restart(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    pages = [await page(log, n) for n in range(6)]
    wanted = [(us, value) for columns in pages[:3] for us, value in zip(columns.time_us, columns.value, strict=True)]
    first = await join(log, pages[0])
    assert await join(log, pages[1], joins=first) == first
    assert await join(log, pages[2], joins=first) == first
    others = [
        await join(log, pages[3], joins=first, entity="f"),
        await join(log, pages[4], joins=first, next_try_at=None),
        await join(log, pages[5], joins=99),
    ]
    assert len({first, *others}) == 4
    sizes = [row.size_bytes for row in log.held.rows()]
    await log.close()
    log = await opened(tmp_path, CITY)
    assert [piece.readings for piece in log.held.pieces()] == [6, 2, 2, 2]
    assert [row.size_bytes for row in log.held.rows()] == sizes
    found = await log.held.readings(first)
    assert list(zip(found.time_us, found.value, strict=True)) == wanted
    assert sorted(found.seq) == found.seq
    assert len(set(found.seq)) == 3
    await log.close()


async def test_a_piece_that_has_its_fill_takes_in_no_more_and_one_that_makes_room_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "MAX_JOINED", 4)
    monkeypatch.setattr(held, "MAX_PIECES", 2)
    log = await opened(tmp_path, CITY)
    pages = [await page(log, n) for n in range(7)]
    first = await join(log, pages[0])
    assert await join(log, pages[1], joins=first) == first
    second = await join(log, pages[2], joins=first)
    assert await join(log, pages[3], joins=second) == second  # as many pieces as before: none must go
    assert [piece.id for piece in log.held.pieces()] == [first, second]
    third = await join(log, pages[4], joins=first)
    assert [(piece.id, piece.readings) for piece in log.held.pieces()] == [(second, 4), (third, 2)]
    [gap] = await log._file.job(lambda store: store.gaps())
    assert (gap.readings, gap.reason) == (4, "held")
    monkeypatch.setattr(held, "MAX_BYTES", sum(row.size_bytes + 200 for row in log.held.rows()))
    fourth = await join(log, pages[5], joins=third)  # the older one's place is enough
    assert [(piece.id, piece.readings) for piece in log.held.pieces()] == [(third, 4)]
    monkeypatch.setattr(held, "MAX_JOINED", 6)
    monkeypatch.setattr(held, "MAX_BYTES", 250)
    assert fourth == third
    await join(log, pages[6], joins=fourth)  # there is room for nothing but itself
    assert [piece.readings for piece in log.held.pieces()] == [2]
    await log.close()
