"""Recipes, other names for devices, and what goes with them: on the card together, whatever becomes of file and commit."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.log.log import Columns, Consumer, Log, LogSettings
from gateway.log.recipes import Change, Row
from gateway.log.store import MIGRATIONS
from gateway.sdk.errors import LogError
from gateway.sdk.reading import Reading, ReadingSet
from gateway.sdk.testing import NOON, ManualClock
from tests.gateway.log.scene import CITY, OTHER, a_set, at_rest, lose, on_card, settle
from tests.gateway.log.test_failed_commit import Card
from tests.gateway.log.test_files import _set_version


class Config:
    """Devices of a config; what was another device moves to it."""

    def __init__(self, *devices: str, brokers: tuple[str, ...] = ("milano",), said: str = "at", **was: str) -> None:
        self.said = said
        self.devices, self.brokers, self.was = set(devices), set(brokers), {old: new for new, old in was.items()}

    def __call__(self, known: Mapping[Row, bytes]) -> Change:
        own = {
            (device, broker): f"{device} {self.said} {broker}".encode()
            for device in self.devices
            for broker in self.brokers
        }
        kept = {row: body for row, body in known.items() if row[0] not in self.devices and row[0] not in self.was}
        entities = {(b, new, f"e:{old}"): f"e:{new}" for old, new in self.was.items() for b in self.brokers}
        return Change(self.devices, self.brokers, {**kept, **own}, self.was, self.was, entities)


BOTH = Config("a", "b")
RENAMED = Config("b", "c", c="a")


async def opened(folder: Path, config: Config, *consumers: Consumer, card: Card | None = None) -> Log:
    settings = LogSettings(folder / "buffer.db", commit_every_s=3600.0)
    return await Log.open(
        settings,
        clock=ManualClock(),
        consumers=consumers or (CITY,),
        devices=config,
        connect=card.connect if card else None,
    )


async def begun(folder: Path, card: Card | None = None) -> Log:
    """A log with sets of two devices, a held piece and driver state of one."""
    log = await opened(folder, BOTH, card=card)
    for n, device in enumerate("abab"):
        await log.append(a_set(n, device))
    columns = await log.read("milano", max_readings=1)
    assert columns is not None
    await log.held.hold("milano", "e:a", "a", columns, reason="later", at=NOON, next_try_at=NOON)
    await log.settle("milano", columns.last)
    await log.append(ReadingSet("a", (), {"frame": b"7"}))
    return log


async def told(log: Log) -> dict[str, list[int]]:
    """Device -> what the city is owed of it, held pieces last."""
    found: dict[str, list[int]] = {}
    after: int | None = None
    while (columns := await log.read("milano", after=after)) is not None:
        for device, count in by_device(log, columns):
            found.setdefault(device, []).append(count)
        after = columns.last
    for piece in log.held.pieces():
        for device, count in by_device(log, await log.held.readings(piece.id)):
            found.setdefault(f"{piece.device} {device} {piece.entity}", []).append(count)
    return found


def by_device(log: Log, columns: Columns) -> list[tuple[str, int]]:
    rows = [(log.series[number], value) for number, value in zip(columns.series, columns.value, strict=True)]
    return [(of.device, value) for of, value in rows if of.point == "count" and isinstance(value, int)]


AFTER = {"b": [1, 3], "c": [2], "c c e:c": [0]}


def states(log: Log) -> tuple[Mapping[str, bytes], Mapping[str, bytes]]:
    return log.driver_state("a"), log.driver_state("c")


async def test_a_device_that_is_called_otherwise_is_so_at_once_and_on_the_card(tmp_path: Path) -> None:
    log = await begun(tmp_path)
    await log.set_consumers([CITY], RENAMED)
    assert await told(log) == AFTER
    assert states(log) == ({}, {"frame": b"7"})
    await log.append(a_set(4, "c"))
    await log.commit()
    async with on_card(tmp_path, CITY) as found:  # by a command that knows no config
        assert await told(found) == {**AFTER, "c": [2, 4]}
        assert states(found) == ({}, {"frame": b"7"})
    await log.close()
    for _ in range(2):
        log = await opened(tmp_path, RENAMED)
        assert await told(log) == {**AFTER, "c": [2, 4]}
        assert len({(s.device, s.point) for s in log.series.values()}) == len(log.series) == 4
        await log.close()


async def test_a_name_that_was_left_is_a_new_device_when_it_comes_again(tmp_path: Path) -> None:
    log = await begun(tmp_path)
    await log.set_consumers([CITY], RENAMED)
    await log.set_consumers([CITY], Config("a", "b", "c"))
    await log.append(ReadingSet("a", a_set(5, "a").readings, {"frame": b"1"}))
    await log.close()
    log = await opened(tmp_path, Config("a", "b", "c"))
    assert await told(log) == {**AFTER, "a": [5]}
    assert states(log) == ({"frame": b"1"}, {"frame": b"7"})
    await log.close()


@pytest.mark.parametrize("written", [False, True])
async def test_a_commit_that_fails_leaves_it_for_the_next_one(tmp_path: Path, written: bool) -> None:
    card = Card()
    log = await begun(tmp_path, card)
    await log.commit()
    card.refuse("COMMIT" if written else "BEGIN")
    await log.set_consumers([CITY], RENAMED)
    with pytest.raises(LogError):
        await log.commit()
    assert await told(log) == AFTER
    card.work()
    await log.commit()
    async with on_card(tmp_path, CITY) as found:
        assert await told(found) == AFTER
        assert states(found) == ({}, {"frame": b"7"})
    await log.close()


async def test_what_a_commit_carried_of_a_device_that_is_called_otherwise_meanwhile_is_not_left_to_its_name(
    tmp_path: Path,
) -> None:
    card = Card()
    log = await begun(tmp_path, card)
    await at_rest(log)
    card.hold("BEGIN")
    commit = asyncio.create_task(log.commit())
    await card.has_reached()
    await log.set_consumers([CITY], RENAMED)
    card.refuse()
    card.release()
    with pytest.raises(LogError):
        await commit
    card.work()
    await log.commit()
    await log.close()
    log = await opened(tmp_path, Config("a", "b", "c"))
    assert states(log) == ({}, {"frame": b"7"})
    await log.close()


async def test_before_its_commit_a_kill_leaves_all_as_it_was_and_the_next_start_does_it(tmp_path: Path) -> None:
    card = Card()
    log = await begun(tmp_path, card)
    await log.commit()
    card.refuse()
    await log.set_consumers([CITY], RENAMED)
    async with on_card(tmp_path, CITY) as looked:
        assert await told(looked) == {"a": [2], "b": [1, 3], "a a e:a": [0]}
        await looked.close()
        found = await opened(looked.settings.path.parent, RENAMED)
        assert await told(found) == AFTER
        assert states(found) == ({}, {"frame": b"7"})
        await found.close()
    card.work()
    await log.close()


@pytest.mark.parametrize("running", [False, True])
async def test_it_outlives_damage(tmp_path: Path, running: bool) -> None:
    log = await begun(tmp_path)
    await log.set_consumers([CITY], RENAMED)
    if not running:
        await log.close()
        lose(tmp_path, "start")
        log = await opened(tmp_path, Config("b"))
        assert await told(log) == {"b": [1, 3], "c": [2], "c c e:c": [0]}
        assert log.recipe("c", "milano") == b"c at milano"
    else:
        await log.commit()
        for end in ("", "-wal", "-shm"):
            (tmp_path / f"buffer.db{end}").unlink()
        await log.append(a_set(4, "c"))
        await log.set_consumers([CITY], Config("b", "d", d="c"))
        await log.commit()
        await at_rest(log)
        await log.commit()
        assert await told(log) == {"b": [1, 3], "d": [2, 4], "d d e:d": [0]}
        async with on_card(tmp_path, CITY) as found:
            assert await told(found) == {"b": [1, 3], "d": [2, 4], "d d e:d": [0]}
    await log.close()


async def test_a_recipe_goes_when_nobody_is_owed_and_nothing_is_held(tmp_path: Path) -> None:
    config, gone = Config("a", "b", brokers=("milano", "porto")), Config("b", brokers=("milano", "porto"))
    log = await opened(tmp_path, config, CITY, OTHER)
    for n, device in enumerate("ab"):
        await log.append(a_set(n, device))
    await log.set_consumers([CITY, OTHER], gone)
    await log.append(a_set(2, "b"))
    await log.commit()
    assert log.gone() == {"a": ["milano", "porto"]}
    await settle(log, "milano")
    columns = await log.read("porto", max_readings=1)
    assert columns is not None
    piece = await log.held.hold("porto", "e:a", "a", columns, reason="no", at=NOON)
    await log.settle("porto", log.first_seq + 3)
    await log.commit()
    assert log.gone() == {"a": ["milano", "porto"]}, "one owes the set behind it, the other has a dead letter"
    await settle(log, "milano")
    await log.commit()
    assert log.gone() == {"a": ["porto"]}
    await log.close()
    log = await opened(tmp_path, gone, CITY, OTHER)
    await log.commit()
    assert log.gone() == {"a": ["porto"]}
    assert log.recipe("a", "milano") is None
    assert log.recipe("b", "porto") is None, "that of a device in the config is nobody's business"
    await log.held.release([piece])
    await log.commit()
    await log.close()
    log = await opened(tmp_path, gone, CITY, OTHER)
    assert log.gone() == {}
    await log.close()


async def test_a_later_change_of_the_config_keeps_no_recipe_longer(tmp_path: Path) -> None:
    log = await opened(tmp_path, BOTH)
    await log.append(a_set(0, "a"))
    for n in range(1, 3):
        await log.set_consumers([CITY], Config("b"))
        await log.append(a_set(n, "b"))
    await log.commit()
    assert log.gone() == {"a": ["milano"]}
    await settle(log, "milano")
    await log.commit()
    assert log.gone() == {}
    await log.close()


async def test_that_for_a_broker_that_is_gone_stays_until_it_is_forgotten(tmp_path: Path) -> None:
    both = Config("a", brokers=("milano", "porto"))
    log = await opened(tmp_path, both, CITY, OTHER)
    await log.append(a_set(0, "a"))
    await log.commit()
    await log.set_consumers([CITY], Config("b"))
    await settle(log, "milano")
    await log.append(a_set(1, "b"))
    await log.close()
    log = await opened(tmp_path, Config("b"))
    await settle(log, "milano")
    await log.commit()
    assert log.recipe("a", "milano") is None
    assert log.recipe("a", "porto") == b"a at porto"
    await log.forget("porto")
    await log.close()
    log = await opened(tmp_path, Config("b"))
    assert log.recipe("a", "porto") is None
    await log.close()


async def test_a_log_that_was_set_aside_is_taken_over_as_the_config_calls_its_devices(tmp_path: Path) -> None:
    path = tmp_path / "buffer.db"
    log = await begun(tmp_path)
    await log.close()
    _set_version(path, 99)
    log = await opened(tmp_path, Config("c", c="a"))
    await log.append(a_set(8, "other"))  # numbers of points are other ones here
    await log.append(a_set(9, "c"))
    await log.close()
    [aside] = tmp_path.glob("buffer.db.format-99-*")
    _set_version(aside, len(MIGRATIONS))
    aside.rename(aside.with_name(aside.name.replace("-99-", f"-{len(MIGRATIONS)}-")))
    log = await opened(tmp_path, Config("c", c="a"))
    assert log._adopting is not None
    await log._adopting
    assert list(tmp_path.glob("buffer.db.format-*")) == []
    async with on_card(tmp_path, CITY) as found:
        assert states(found) == ({}, {"frame": b"7"})
    assert await told(log) == {"other": [8], "c": [9, 2], "b": [1, 3], "c c e:c": [0]}
    assert log.recipe("b", "milano") == b"b at milano"
    assert states(log) == ({}, {"frame": b"7"})
    await settle(log, "milano", 5)
    await log.commit()
    assert log.recipe("b", "milano") is None
    await log.close()


async def test_a_recipe_stays_until_the_last_set_of_a_log_that_was_set_aside_has_its_number(tmp_path: Path) -> None:
    path, card = tmp_path / "buffer.db", Card()
    log = await opened(tmp_path, Config("a", said="was at"))
    for n in range(8):  # more than goes into one commit
        at = NOON + timedelta(seconds=n)
        await log.append(ReadingSet("a", tuple(Reading(f"p{i}", n, at) for i in range(300))))
    await log.close()
    aside = path.rename(tmp_path / "aside")
    log = await opened(tmp_path, BOTH)
    await log.append(a_set(9, "a"))
    await log.close()
    aside.rename(tmp_path / f"buffer.db.format-{len(MIGRATIONS)}-20260601T120000-0")
    card.hold("COMMIT")
    opening = asyncio.create_task(opened(tmp_path, Config("b"), card=card))
    await card.has_reached()
    card.release()
    log = await opening
    card.hold("INSERT INTO segment")
    await card.has_reached()
    card.release()
    while (columns := await log.read("milano")) is not None:
        await log.settle("milano", columns.last)
    assert log._adopting is not None
    await log._adopting
    assert log.recipe("a", "milano") == b"a at milano"
    await log.close()


async def test_a_command_that_only_looks_changes_none_of_it(tmp_path: Path) -> None:
    log = await begun(tmp_path)
    await log.close()
    log = await Log.open(LogSettings(tmp_path / "buffer.db"), clock=ManualClock(), consumers=[CITY])
    assert log.gone() == log.status()["gone_devices"] == {}, "it cannot know"
    await log.close()
    log = await opened(tmp_path, Config("b"))
    assert log.recipe("a", "milano") == b"a at milano"
    await log.close()


async def test_what_a_start_has_moved_stays_moved_when_the_config_says_it_no_more(tmp_path: Path) -> None:
    log = await begun(tmp_path)
    await log.close()
    for config in (RENAMED, Config("b", "c"), Config("b", "c")):
        log = await opened(tmp_path, config)
        assert await told(log) == AFTER
        assert states(log) == ({}, {"frame": b"7"})
        await log.close()


async def test_a_device_that_came_and_went_while_the_card_was_away_is_known_when_it_is_back(tmp_path: Path) -> None:
    (tmp_path / "buffer.db").mkdir()  # what cannot be opened
    log = await opened(tmp_path, BOTH)
    for n, device in enumerate("abab"):
        await log.append(a_set(n, device))
    await log.set_consumers([CITY], Config("b", "c", c="a"))
    await log.append(a_set(4, "c"))
    await log.set_consumers([CITY], Config("b"))
    assert log.recipe("c", "milano") == b"c at milano"
    assert log.gone() == {"c": ["milano"]}
    (tmp_path / "buffer.db").rmdir()
    await log.commit()
    assert await told(log) == {"b": [1, 3], "c": [0, 2, 4]}
    await settle(log, "milano")  # its numbers are others by now
    await log.commit()
    assert log.recipe("c", "milano") == b"c at milano"
    await log.close()
    log = await opened(tmp_path, Config("b"))
    assert await told(log) == {"b": [1, 3], "c": [2, 4]}
    assert log.recipe("c", "milano") == b"c at milano"
    await log.close()


async def test_states_of_its_own_stay_and_only_those_that_it_lacks_are_taken_over(tmp_path: Path) -> None:
    log = await opened(tmp_path, Config("a", "c"))
    await log.append(ReadingSet("a", (), {"frame": b"1", "both": b"old"}))
    await log.append(ReadingSet("c", (), {"both": b"own"}))
    await log.set_consumers([CITY], Config("c", c="a"))
    assert log.driver_state("c") == {"frame": b"1", "both": b"own"}
    await log.close()
    log = await opened(tmp_path, Config("c"))
    assert log.driver_state("c") == {"frame": b"1", "both": b"own"}
    await log.close()


async def test_recipes_that_a_failed_commit_carried_are_written_with_the_next(tmp_path: Path) -> None:
    card = Card()
    log = await begun(tmp_path, card)
    await log.commit()
    card.refuse()
    await log.set_consumers([CITY], Config("a", "b", "d"))
    with pytest.raises(LogError):
        await log.commit()
    card.work()
    await log.close()
    log = await opened(tmp_path, Config("b"))
    assert log.gone() == {"a": ["milano"], "d": ["milano"]}
    await log.close()


async def test_recipes_whose_table_is_lost_while_running_are_known_by_memory(tmp_path: Path) -> None:
    log = await begun(tmp_path)
    await log.commit()
    lose(tmp_path, "recipe", "cursor")
    await log.append(a_set(9, "b"))
    await settle(log, "milano")
    await log.commit()
    await at_rest(log)
    await log.close()
    log = await opened(tmp_path, Config("b"))
    assert log.recipe("a", "milano") == b"a at milano"
    await log.close()
