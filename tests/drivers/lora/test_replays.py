"""Uplinks that come again, late, out of turn or after a restart: each counts once, and the counter goes on from there."""

import asyncio
from datetime import timedelta

import pytest

from drivers.lora.concentrator import KNOWN_PER_S, MAX_CONCENTRATORS, MAX_MERGING, MERGE_S, STRANGERS_PER_S
from drivers.lora.memory import KEYS, SAVED_KEYS, STATE, unpack
from drivers.lora.simulator import CONCENTRATORS, phy_payload, push_data, rxpk
from tests.drivers.lora.support import APP, NWK, running
from tests.drivers.lora.test_concentrator import ADDRESS, Fed, device, gps, link, uplink

FIRST, SECOND = CONCENTRATORS


def restarted(fed: Fed, **more: object) -> Fed:
    """The gateway after a restart, with what was saved."""
    return Fed(link(devices={"node": device(**more)}), state=fed.recording.state)  # type: ignore[arg-type]


@pytest.mark.parametrize("last", [0xFFFE, 0x1FFFE, 0xFFFF_FFFD])
@pytest.mark.parametrize("restart", [False, True])
async def test_the_counter_goes_on_over_its_end_and_what_came_before_is_no_new_frame(last: int, restart: bool) -> None:
    fed = Fed(link(devices={"node": device(f_cnt=last - 1)}))
    numbers = [n for n in range(last, last + 6) if n <= 0xFFFF_FFFF]
    for n in numbers:
        fed.packet(uplink(n))
        await fed.delivered()
    if restart:
        fed = restarted(fed)

    before = fed.counts()
    for n in numbers:
        fed.packet(uplink(n))
    assert await fed.delivered() == before
    late, replays = fed.recording.total("copies_late"), fed.recording.total("replays")
    assert (late + replays, late) == (len(numbers), len(numbers) if not restart else min(SAVED_KEYS, len(numbers)))
    assert not fed.recording.counts["mic_errors"]
    assert unpack(fed.recording.state["node", STATE]).f_cnt == numbers[-1]


@pytest.mark.parametrize("may_reset", [False, True])
async def test_a_late_copy_of_an_earlier_uplink_is_no_replay_and_no_reset(may_reset: bool) -> None:
    fed = Fed(link(devices={"node": device(counter_may_reset=may_reset)}))
    for n in range(1, KEYS):
        fed.packet(uplink(n))
    await fed.delivered()

    for n in range(1, KEYS):
        fed.packet(uplink(n), SECOND)
    fed.packet(uplink(KEYS), SECOND)

    assert await fed.delivered() == list(range(1, KEYS + 1))
    assert fed.recording.total("copies_late") == KEYS - 1
    assert (fed.recording.total("replays"), fed.recording.total("counter_resets")) == (0, 0)
    assert fed.recording.total("lost_uplinks") == 0


async def test_after_a_reset_a_late_copy_of_the_old_count_does_not_bring_it_back() -> None:
    fed = Fed(link(devices={"node": device(counter_may_reset=True)}))
    fed.packet(uplink(5000))
    await fed.delivered()
    fed.packet(uplink(0))
    await fed.delivered()

    fed.packet(uplink(5000), SECOND)
    fed.packet(uplink(1))
    assert await fed.delivered() == [5000, 0, 1]
    assert fed.recording.total("counter_resets") == 1
    assert fed.recording.total("copies_late") == 1

    again = restarted(fed, counter_may_reset=True)
    again.packet(uplink(2))
    again.packet(uplink(0))
    assert await again.delivered() == [2]
    assert again.recording.total("counter_resets") == 0


async def test_the_same_counter_with_other_bytes_is_no_second_uplink() -> None:
    fed = Fed()
    fed.packet(uplink(7))
    await fed.delivered()
    other = phy_payload(ADDRESS, bytes.fromhex(NWK), bytes.fromhex(APP), 7, 1, (99).to_bytes(4, "big"))

    fed.packet(other)
    fed.packet(uplink(8))

    assert await fed.delivered() == [7, 8]


async def test_each_set_carries_the_counter_of_its_own_uplink_however_many_wait() -> None:
    fed = Fed()
    for n in (1, 2, 5):
        fed.packet(uplink(n))
    await fed.delivered()

    saved = [unpack((s.state or {})[STATE]).f_cnt for s in fed.recording.sets]
    assert saved == [1, 2, 5]
    assert [s.values()["count"] for s in fed.recording.sets] == [1, 2, 5]
    assert [s.values().get("lost_uplinks") for s in fed.recording.sets] == [None, 0, 2]


async def test_what_was_heard_but_not_taken_before_a_restart_is_new_after_it() -> None:
    fed = Fed()
    fed.packet(uplink(1))
    await fed.delivered()
    fed.packet(uplink(2))  # still waits for copies: it was never in the log

    again = restarted(fed)
    again.packet(uplink(2))
    again.packet(uplink(1))

    assert await again.delivered() == [2]


@pytest.mark.parametrize(("saved", "given", "first"), [(100, 50, 101), (100, 200, 201), (None, 200, 201)])
async def test_the_higher_of_the_saved_and_the_exported_counter_counts(
    saved: int | None, given: int, first: int
) -> None:
    fed = Fed()
    for n in range(saved - 12, saved + 1) if saved is not None else ():
        fed.packet(uplink(n))
    await fed.delivered()
    again = restarted(fed, f_cnt=given)

    again.packet(uplink(first - 10))  # longer ago than the identities that are saved
    again.packet(uplink(first - 1))
    again.packet(uplink(first))

    assert await again.delivered() == [first]


async def test_another_address_is_another_session_whose_counter_begins_anew() -> None:
    fed = Fed()
    fed.packet(uplink(5000))
    await fed.delivered()

    again = Fed(link(devices={"node": device("00000007")}), state=fed.recording.state)
    again.packet(uplink(3, "00000007"))
    again.packet(uplink(4, "00000007"))

    assert await again.delivered() == [3, 4]
    assert again.recording.total("lost_uplinks") == 0
    assert unpack(again.recording.state["node", STATE]).dev_addr == "00000007"


async def test_more_uplinks_than_can_wait_for_copies_go_in_their_order() -> None:
    fed = Fed()
    numbers = list(range(1, MAX_MERGING + 10))
    for n in numbers:
        fed.packet(uplink(n))
        fed.recording.clock.advance(1 / KNOWN_PER_S)

    fed.packet(uplink(MAX_MERGING), SECOND)
    async with running(fed.concentrators.deliver()):
        for _ in range(3000):
            await asyncio.sleep(0)
    assert fed.counts()[:9] == numbers[:9]
    assert await fed.delivered() == numbers
    assert fed.recording.total("copies") == 1


async def test_copies_that_go_on_coming_put_off_no_uplink() -> None:
    fed = Fed()
    fed.packet(uplink(1), FIRST)
    fed.recording.clock.advance(0.75 * MERGE_S)
    fed.packet(uplink(1), SECOND)
    fed.recording.clock.advance(0.25 * MERGE_S)
    async with running(fed.concentrators.deliver()):
        for _ in range(20):
            await asyncio.sleep(0)
            if fed.counts():
                break
    assert fed.counts() == [1]
    assert fed.recording.clock.monotonic_s() == pytest.approx(1000.0 + MERGE_S)


async def test_a_copy_that_is_only_as_good_changes_nothing() -> None:
    fed = Fed()
    fed.packet(uplink(1), FIRST, rssi=-50, snr=8)
    fed.packet(uplink(1), SECOND, rssi=-50, snr=-3)
    await fed.delivered()

    assert fed.recording.sets[0].values()["snr"] == 8


async def test_a_gps_that_was_wrong_once_is_believed_when_two_later_packets_agree() -> None:
    fed = Fed()
    gps(fed, 1, timedelta(hours=5))
    fed.recording.clock.advance(60)
    gps(fed, 2, timedelta(0))
    assert fed.recording.times == []
    fed.recording.clock.advance(60)

    third = gps(fed, 3, timedelta(0))

    assert fed.recording.times == [(third, 1.0)]


def junk(fed: Fed, count: int) -> int:
    """So many datagrams of strangers at once; how many of them were over the rate."""
    before = fed.recording.counts["datagrams_over_rate"]
    for n in range(count):
        fed.datagram(push_data(1, f"aa{n % 50:014x}", [rxpk(b"\xe0" + bytes(12))]))
    return int(fed.recording.counts["datagrams_over_rate"]) - before


async def test_the_share_of_strangers_grows_back_by_time_alone_and_never_beyond_a_second() -> None:
    fed = Fed()
    share = int(STRANGERS_PER_S)
    assert junk(fed, 3 * share) == 2 * share
    for _ in range(5):
        fed.recording.clock.advance(0.1)
        assert junk(fed, share) == share - share // 10
    fed.recording.clock.advance(100)
    assert junk(fed, 3 * share) == 2 * share
    assert len(fed.answers.sent) == 3 * share + 5 * share + 3 * share, "each is acknowledged"


async def test_asking_often_makes_no_share_grow_faster() -> None:
    fed = Fed()
    junk(fed, 2 * int(STRANGERS_PER_S))
    over = 0
    for _ in range(1000):  # a second, in steps that are worth a fifth of a datagram
        fed.recording.clock.advance(0.001)
        over += junk(fed, 1)

    assert 1000 - over == pytest.approx(STRANGERS_PER_S, abs=2)


async def test_of_too_many_concentrators_the_one_that_was_silent_longest_loses_its_share() -> None:
    fed = Fed()
    fed.packet(uplink(0), FIRST)
    fed.packet(uplink(1), SECOND)
    for n in range(2, MAX_CONCENTRATORS + 1):
        fed.packet(uplink(n), f"{n:016x}")
        fed.recording.clock.advance(0.01)
        if n == 100:
            fed.packet(uplink(9000), FIRST)
    last = MAX_CONCENTRATORS + 9000
    fed.packet(uplink(last), "ff" * 8)
    junk(fed, 2 * int(STRANGERS_PER_S))

    fed.packet(uplink(last + 1), SECOND)
    fed.packet(uplink(last + 2), FIRST)

    counts = await fed.delivered()
    assert (last + 1 in counts, last + 2 in counts) == (False, True)


async def test_a_concentrator_that_proved_itself_has_a_share_that_is_refilled() -> None:
    fed, burst = Fed(), int(KNOWN_PER_S) + 200
    fed.packet(uplink(0))
    over = []
    for pause_s in (0.0, 1.0, 0.5):
        fed.recording.clock.advance(pause_s)
        before = fed.recording.counts["datagrams_over_rate"]
        for _ in range(burst):
            fed.packet(uplink(0))
        over.append(fed.recording.counts["datagrams_over_rate"] - before)

    assert over == [200, 200, 700]
