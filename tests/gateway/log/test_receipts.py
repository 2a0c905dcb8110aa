"""Receipts: durable when the set is, never before; of what was given up they fail, also for who asks later."""

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from gateway.log.log import Log, SetReceipt
from gateway.sdk.errors import LogError
from gateway.sdk.reading import ReadingSet
from tests.gateway.log.scene import CITY, OTHER, a_set, at_rest, everything, opened, settle
from tests.gateway.log.test_failed_commit import Card, Late, poisoned, refused, resting
from tests.gateway.log.test_poison import POISON


class Asked:
    """Receipts of some sets, asked for their sets' durability at once."""

    def __init__(self, receipts: list[SetReceipt]) -> None:
        self.receipts = receipts
        self.first = [asyncio.ensure_future(receipt.durable) for receipt in receipts]

    async def state(self) -> str:
        """A letter a set: durable, failed, open; whoever asks now is told the same."""
        await asyncio.sleep(0)
        now = [asyncio.ensure_future(receipt.durable) for receipt in self.receipts]
        await asyncio.sleep(0)
        told = "".join(map(_letter, self.first))
        assert told == "".join(map(_letter, now))
        for future in now:
            future.cancel()
        return told


def _letter(future: "asyncio.Future[None]") -> str:
    return "." if not future.done() else "F" if future.exception() else "D"


async def test_a_receipt_waits_over_commits_that_fail_and_resolves_with_the_one_that_works(tmp_path: Path) -> None:
    card = Card()
    log = await opened(tmp_path, CITY, connect=card.connect)
    asked = Asked([await log.append(a_set(n)) for n in range(2)])
    for stage in ("BEGIN", "INSERT INTO segment", "COMMIT", "after COMMIT"):
        card.refuse(stage)
        await refused(log)
        assert await asked.state() == ".."
    card.work()
    await log.commit()
    assert await asked.state() == "DD"
    await log.close()


async def test_a_set_that_came_while_a_commit_was_written_waits_for_the_next(tmp_path: Path) -> None:
    card = Card()
    log = await opened(tmp_path, CITY, connect=card.connect)
    await at_rest(log)
    before = Asked([await log.append(a_set(0))])
    card.hold("COMMIT")
    commit = asyncio.create_task(log.commit())
    await card.has_reached()
    meanwhile = Asked([await log.append(a_set(1))])
    assert (await before.state(), await meanwhile.state()) == (".", ".")
    card.release()
    await commit
    assert (await before.state(), await meanwhile.state()) == ("D", ".")
    await log.commit()
    assert await meanwhile.state() == "D"
    await log.close()


@pytest.mark.parametrize("keep_s", [0.0, 3600.0])
async def test_a_receipt_resolves_when_the_last_consumer_has_settled_its_set_and_not_before(
    tmp_path: Path, keep_s: float
) -> None:
    log = await opened(tmp_path, CITY, OTHER, keep_s=keep_s)
    asked = Asked([await log.append(a_set(n)) for n in range(4)])
    await settle(log, "milano", 3)
    assert await asked.state() == "...."
    await settle(log, "porto", 2)
    assert await asked.state() == "DD.."
    await log.set_consumers([CITY])  # the one that was behind is gone: what it is owed has to be on the card
    assert await asked.state() == "DD.."
    await log.append(a_set(4))
    later = Asked([await log.append(a_set(5))])
    await settle(log, "milano", 3)
    assert (await asked.state(), await later.state()) == ("DD..", ".")
    await log.commit()
    assert (await asked.state(), await later.state()) == ("DDDD", "D")
    after = Asked([await log.append(a_set(6))])
    await settle(log, "milano")  # that is none of its
    assert await after.state() == "D"
    await log.close()


async def test_no_set_is_settled_by_all_when_there_is_nobody(tmp_path: Path) -> None:
    card = Card()
    log = await opened(tmp_path, connect=card.connect)
    await at_rest(log)
    asked = Asked([await log.append(a_set(0))])
    card.hold("BEGIN")
    await log.set_consumers([])
    assert await asked.state() == "."
    card.release()
    await log.commit()
    assert await asked.state() == "D"
    await log.close()


async def test_of_sets_that_were_given_up_the_receipts_fail_and_of_their_neighbours_none(tmp_path: Path) -> None:
    card = Card()
    log = await opened(tmp_path, CITY, connect=card.connect, head_bytes=5000)
    receipts = [await log.append(a_set(0)), await log.append(ReadingSet("d", POISON["no time"]))]
    receipts += [await log.append(ReadingSet("d", POISON["a list"])), await log.append(a_set(3))]
    asked = Asked(receipts)
    assert await asked.state() == ".F.."  # the third cannot be written, and that is not known yet
    await log.commit()
    assert await asked.state() == "DFFD"

    card.refuse()
    await refused(log)
    later = Asked([await asyncio.wait_for(log.append(a_set(10 + n)), 5) for n in range(14)])
    dropped = log.status()["lost"]["memory"] // 2
    assert 0 < dropped < 10
    assert await later.state() == "F" * dropped + "." * (14 - dropped)
    assert "memory is full" in str(later.first[0].exception())
    assert await asked.state() == "DFFD"
    card.work()
    await log.commit()
    assert await later.state() == "F" * dropped + "D" * (14 - dropped)
    await log.close()


async def test_a_piece_that_cannot_be_written_takes_no_receipt_back(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    asked = Asked([await log.append(a_set(0))])
    await log.commit()
    for _ in range(2):
        assert await asked.state() == "D"
        await log.append(ReadingSet("node", (), {"\ud800": b"1"}))
        await log.commit()
        assert "given up" in log.status()["reason"]
    await log.close()


async def test_a_set_without_readings_is_as_durable_as_the_one_before(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    empty = ReadingSet("node", (), {"fcnt": b"1"})
    receipts = [await log.append(empty), await log.append(a_set(0)), await log.append(empty)]
    asked = Asked(receipts)
    assert await asked.state() == "D.."
    await settle(log, "milano")
    assert await asked.state() == "DDD"
    await poisoned(log)
    assert await Asked([await log.append(empty)]).state() == "F"
    await log.close()


async def test_the_receipts_of_a_thousand_sets_given_up_are_remembered_one_by_one(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    receipts = []
    for n in range(1000):
        receipts.append(await log.append(ReadingSet("d", POISON["no time"])))
        if n in (0, 998):
            receipts.append(await log.append(a_set(n)))
    await log.commit()
    told = await Asked(receipts).state()
    assert told == "FD" + "F" * 998 + "DF"
    await log.close()


async def test_receipts_of_a_log_that_ends_without_its_card_fail_with_what_is_not_written(tmp_path: Path) -> None:
    card = Card()
    log = await opened(tmp_path, CITY, connect=card.connect)
    asked = Asked([await log.append(a_set(0))])
    await log.commit()
    never = Asked([await log.append(a_set(1))])
    card.refuse()
    with pytest.raises(LogError):
        await log.close()
    assert (await asked.state(), await never.state()) == ("D", "F")
    assert "was closed before the set was written" in str(never.first[0].exception())
    with pytest.raises(LogError, match="closed"):
        await log.append(a_set(2))


async def test_who_asks_while_the_log_is_closed_is_told_so(tmp_path: Path) -> None:
    card = Card()
    log = await resting(tmp_path, CITY, connect=card.connect)
    receipts = [await log.append(a_set(0))]
    await log.commit()
    receipts.append(await log.append(a_set(1)))
    card.hold("COMMIT")
    closing = asyncio.create_task(log.close())
    await card.has_reached()
    assert await Asked(receipts).state() == "DF"
    with pytest.raises(LogError, match="was closed before the set was written"):
        await receipts[1].durable
    card.release()
    await closing


async def test_who_was_told_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody has to ask what came of it, either."""
    log = await opened(tmp_path, CITY)
    receipts = [await log.append(a_set(0)), await log.append(ReadingSet("d", POISON["a list"]))]
    futures = [asyncio.ensure_future(receipt.durable) for receipt in receipts]
    there = [weakref.ref(future) for future in futures]
    await log.commit()
    assert all(future.done() for future in futures)
    futures.clear()
    gc.collect()
    assert [ref() for ref in there] == [None, None]
    assert "never retrieved" not in caplog.text
    await log.close()


@pytest.mark.parametrize("settled", [0, 1, 3])
async def test_receipts_of_before_the_file_was_open_keep_to_their_sets(tmp_path: Path, settled: int) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(0))
    await log.close()
    card = Late()
    log = await opened(tmp_path, CITY, connect=card.connect)
    await log.append(ReadingSet("d", POISON["no time"]))
    asked = Asked([await log.append(a_set(n)) for n in range(1, 4)])
    bad = Asked([await log.append(ReadingSet("d", POISON["no time"]))])
    await settle(log, "milano", settled)
    assert await asked.state() == "D" * settled + "." * (3 - settled)
    card.open()
    card.hold("COMMIT")
    commit = asyncio.create_task(log.commit())
    await card.has_reached()
    assert await bad.state() == "F"
    if not settled:
        assert await asked.state() == "..."
    card.release()
    await commit
    assert await asked.state() == "DDD"
    assert await bad.state() == "F"
    await log.close()


async def test_a_receipt_of_before_the_file_was_open_is_none_of_an_earlier_start(tmp_path: Path) -> None:
    log = await opened(tmp_path, CITY)
    await log.append(a_set(0))
    await settle(log, "milano")
    await log.close()
    card = Late()
    log = await opened(tmp_path, CITY, connect=card.connect)
    asked = Asked([await log.append(a_set(1))])
    card.open()
    card.hold("INSERT INTO segment")
    commit = asyncio.create_task(log.commit())
    await card.has_reached()
    await log.set_consumers([CITY])  # looks who is done by now
    assert await asked.state() == "."
    card.release()
    await commit
    assert await asked.state() == "D"
    await log.close()


async def test_with_commit_every_0_only_a_card_that_refuses_lets_go_of_what_is_not_written(tmp_path: Path) -> None:
    card = Card()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect, commit_every_s=0.0)
    at_once = asyncio.create_task(log.append(a_set(9)))
    await at_rest(log)
    assert at_once.done()
    card.hold("COMMIT")
    appending = asyncio.create_task(log.append(a_set(0)))
    await card.has_reached()
    second = asyncio.create_task(log.append(a_set(1)))
    await asyncio.sleep(0)
    assert not appending.done()
    card.release()
    first = await asyncio.wait_for(appending, 5)
    assert await Asked([first, await asyncio.wait_for(second, 5)]).state() == "DD"
    card.refuse("COMMIT")
    third = await asyncio.wait_for(log.append(a_set(2)), 5)
    asked = Asked([first, third])
    assert await asked.state() == "D."
    await at_rest(log)
    card.work()
    await asyncio.wait_for(third.durable, 3)  # who asks for it sets off a commit
    card.refuse("COMMIT")
    third = await asyncio.wait_for(log.append(a_set(4)), 5)
    asked = Asked([first, third])
    card.work()
    fourth = await asyncio.wait_for(log.append(a_set(3)), 5)
    await asyncio.wait_for(asyncio.gather(third.durable, fourth.durable), 5)
    assert await asked.state() == "DD"
    await log.close()


async def test_with_commit_every_0_a_set_that_all_have_settled_by_then_holds_nobody(tmp_path: Path) -> None:
    """It is never written, so no commit makes it durable."""
    card = Card()
    log = await opened(tmp_path, CITY, OTHER, connect=card.connect, commit_every_s=0.0)
    card.hold("COMMIT")
    appending = [asyncio.create_task(log.append(a_set(n))) for n in range(2)]
    await card.has_reached()
    for name in ("milano", "porto"):
        await settle(log, name, 2)
    card.release()
    receipts = await asyncio.wait_for(asyncio.gather(*appending), 5)
    assert await Asked(receipts).state() == "DD"
    await at_rest(log)
    commits = log.status()["commits"]
    await at_rest(log)
    assert log.status()["commits"] == commits
    await log.close()


async def filled(log: Log) -> None:
    """Sets of 500 bytes up to the bound."""
    for n in range(10):
        await log.append(a_set(n))


async def waits_for_room(log: Log) -> "asyncio.Task[SetReceipt]":
    """The next set, which is not taken yet."""
    appending = asyncio.create_task(log.append(a_set(10)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not appending.done()
    return appending


async def test_memory_that_is_full_waits_for_the_commit_at_work_though_the_one_before_failed(tmp_path: Path) -> None:
    card = Card()
    log = await opened(tmp_path, CITY, connect=card.connect, head_bytes=5000)
    card.refuse()
    await filled(log)
    await refused(log)
    card.work()
    card.hold("COMMIT")
    commit = asyncio.create_task(log.commit())
    await card.has_reached()
    appending = await waits_for_room(log)
    card.release()
    await commit
    await asyncio.wait_for(appending, 5)
    assert log.status()["lost"] == {}
    assert await everything(log, "milano") == list(range(11))
    await log.close()


async def test_sets_that_come_faster_than_a_commit_can_begin_wait_for_it(tmp_path: Path) -> None:
    log = await resting(tmp_path, CITY, head_bytes=5000)
    for n in range(50):
        await log.append(a_set(n))  # nobody else has a turn in between
    assert log.status()["lost"] == {}
    assert await everything(log, "milano") == list(range(50))
    await log.close()


async def test_who_waits_for_room_goes_on_when_the_commit_at_work_fails(tmp_path: Path) -> None:
    card = Card()
    log = await resting(tmp_path, CITY, connect=card.connect, head_bytes=5000)
    card.hold("COMMIT")
    await filled(log)
    await card.has_reached()
    appending = await waits_for_room(log)
    card.refuse("COMMIT")
    card.release()
    await asyncio.wait_for(appending, 5)
    assert log.status()["lost"] == {"memory": 2}
    assert await everything(log, "milano") == list(range(1, 11))
    card.work()
    await log.commit()
    await log.close()


async def test_who_waits_for_room_goes_on_when_a_commit_that_was_asked_for_fails(tmp_path: Path) -> None:
    card = Card()
    log = await resting(tmp_path, CITY, connect=card.connect, head_bytes=5000)
    card.refuse()
    await filled(log)
    await refused(log)
    card.hold("BEGIN")
    commit = asyncio.create_task(refused(log))
    await card.has_reached()
    appending = await waits_for_room(log)
    card.release()
    await commit
    await asyncio.wait_for(appending, 3)  # and not when it is tried again
    assert log.status()["lost"] == {"memory": 2}
    card.work()
    await log.close()


async def test_who_waits_for_room_goes_on_when_all_have_settled_what_is_in_memory(tmp_path: Path) -> None:
    card = Card()
    log = await resting(tmp_path, CITY, connect=card.connect, head_bytes=5000)
    card.hold("COMMIT")
    await filled(log)
    await card.has_reached()
    appending = await waits_for_room(log)
    await settle(log, "milano", 2)
    await asyncio.wait_for(appending, 5)  # though the card is at it
    card.release()
    await log.commit()
    assert await everything(log, "milano") == list(range(2, 11))
    await log.close()
