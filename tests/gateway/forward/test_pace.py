"""A rate is a cap over any second, for both lanes; without one the past goes by how quick the answers are."""

import pytest

from gateway.forward.pace import DEBT_S, LOOK_S, QUICK_S, REST_S, SAVED_S, SHARES, UPDATES_A_REQUEST, Lane, Pace
from gateway.sdk.testing import ManualClock


class Paced:
    """A lane that always has updates of this many readings to send, and when what went."""

    def __init__(self, rate_per_s: float | None, *, size: int = 1) -> None:
        self.clock = ManualClock()
        self.pace = Pace(self.clock, rate_per_s)
        self.size = size
        self.went: list[tuple[float, Lane, int]] = []

    async def send(self, lane: Lane, most: int = 1000) -> int:
        """One request, as large as it may be; its readings."""
        if not self.pace.ready(lane):
            return 0
        readings = self.size * self.pace.fits(lane, [self.size] * most)
        if readings:
            await self.pace.before(readings)
            self.went.append((self.clock.monotonic_s(), lane, readings))
        return readings

    async def both(self, seconds: float, *lanes: Lane) -> dict[str, int]:
        """Send for so long, each lane what it may; readings of each."""
        until_s, before = self.clock.monotonic_s() + seconds, len(self.went)
        while self.clock.monotonic_s() < until_s:
            for lane in lanes:
                await self.send(lane)
            self.clock.advance(0.01)
        return {lane: sum(n for _, of, n in self.went[before:] if of == lane) for lane in lanes}

    def most_in(self, seconds: float) -> int:
        """The most readings in any stretch of so many seconds."""
        return max(sum(n for at, _, n in self.went if start <= at < start + seconds) for start, _, _ in self.went)


@pytest.mark.parametrize(("rate", "size"), [(80.0, 10), (80.0, 1), (500.0, 7), (1.0, 1), (0.5, 1)])
@pytest.mark.parametrize("lanes", [("state", "past"), ("state",), ("past",), ("both",)])
async def test_a_rate_is_reached_and_never_passed_whoever_sends(
    rate: float, size: int, lanes: tuple[Lane, ...]
) -> None:
    paced = Paced(rate, size=size)
    seconds = max(20.0, 20 / rate)
    sent = await paced.both(seconds, *lanes)
    assert sum(sent.values()) == pytest.approx(rate * seconds, rel=0.1, abs=2 * size)
    assert paced.most_in(1.0) <= rate * (1.0 + SAVED_S) + size * len(lanes)
    assert paced.most_in(10.0) <= rate * (10.0 + SAVED_S) + size * len(lanes)


async def test_when_both_lanes_want_all_each_has_its_share() -> None:
    sent = await Paced(100.0).both(60.0, "state", "past")
    assert sent["state"] == pytest.approx(6000 * SHARES["state"], rel=0.02)
    assert sent["past"] == pytest.approx(6000 * SHARES["past"], rel=0.02)


async def test_the_saved_shares_of_the_lanes_are_their_own() -> None:
    paced = Paced(100.0)
    assert await paced.send("past") == 12  # of 12.5
    assert await paced.send("state") == 37  # of 37.5
    assert await paced.send("both") == 1  # what is left of both
    assert await paced.send("past") == 0


async def test_a_quiet_hour_is_followed_by_no_burst() -> None:
    paced = Paced(100.0)
    await paced.send("both")
    paced.clock.advance(3600.0)
    assert await paced.send("both") == 50
    assert await paced.send("both") == 0
    paced.clock.advance(0.1)
    assert await paced.send("both") == 0  # not for each that fits a request of its own
    paced.clock.advance(0.15)
    assert await paced.send("both") == 25


async def test_an_update_larger_than_what_can_be_saved_goes_when_all_is_saved_and_is_paid_for() -> None:
    paced = Paced(10.0, size=100)
    assert await paced.send("state") == 100
    sent = await paced.both(60.0, "state", "past")
    assert sum(sent.values()) in (500, 600)


async def test_what_is_owed_is_bounded() -> None:
    paced = Paced(1.0, size=10_000)
    await paced.send("both")
    paced.size = 1
    assert await paced.both(DEBT_S - 2.0, "both") == {"both": 0}
    assert (await paced.both(4.0, "both"))["both"] > 0


async def test_a_repeat_waits_until_what_went_before_is_paid_for() -> None:
    paced = Paced(100.0)
    started_s = paced.clock.monotonic_s()
    await paced.send("state")  # 37
    for _ in range(4):  # halves of it, refused again and again
        await paced.pace.before(37)
        paced.went.append((paced.clock.monotonic_s(), "state", 37))
    assert paced.clock.monotonic_s() - started_s > 1.0
    assert paced.most_in(1.0) <= 100 * 1.5 + 37


async def test_a_repeat_of_one_lane_is_not_paid_for_by_the_other() -> None:
    paced = Paced(100.0)
    await paced.send("state")
    await paced.pace.before(30)
    assert await paced.send("past") == 12
    assert paced.pace.fits("state", [1]) == 0


async def test_what_fits_is_told_in_order_and_by_size() -> None:
    pace = Pace(ManualClock(), 100.0)  # 37.5 of the state
    assert pace.fits("state", []) == 0
    assert pace.fits("state", [30, 7, 1]) == 2
    assert pace.ready("state") is False
    assert pace.ready("past") is True
    assert pace.fits("state", [20, 30, 1]) == 1
    assert pace.fits("state", [40, 1]) == 1
    assert pace.fits("state", [37]) == 1


async def test_when_it_is_worth_asking_again_is_told() -> None:
    clock = ManualClock()
    pace = Pace(clock, 100.0)
    assert pace.fits("past", [10, 10]) == 1
    await pace.before(10)
    assert pace.next_s("past") == pytest.approx(clock.monotonic_s() + 0.075)  # 2.5 are there, 10 wanted
    clock.advance(0.074)
    assert not pace.ready("past")
    clock.advance(0.002)
    assert pace.ready("past")


async def test_without_a_rate_all_of_the_state_goes_and_of_the_past_a_request() -> None:
    paced = Paced(None)
    for _ in range(3):
        assert await paced.send("state") == 1000
        assert await paced.send("both") == 1000
        assert await paced.send("past") == UPDATES_A_REQUEST
    assert await paced.send("past", 7) == 7
    assert paced.pace.fits("past", []) == 0


async def test_slow_answers_let_the_past_rest_and_nobody_else() -> None:
    paced = Paced(None)
    paced.pace.answered(QUICK_S)
    assert paced.pace.ready("past")
    paced.pace.answered(QUICK_S + 0.5)
    assert not paced.pace.ready("past")
    assert paced.pace.ready("state")
    assert paced.pace.ready("both")
    paced.clock.advance(0.49)
    assert not paced.pace.ready("past")
    paced.clock.advance(0.02)
    assert paced.pace.ready("past")
    paced.pace.answered(100.0)
    paced.clock.advance(REST_S)
    assert paced.pace.ready("past")


async def test_the_past_asks_for_less_while_answers_are_long_and_for_more_again_when_they_are_quick() -> None:
    paced = Paced(None)
    asked = []
    for seconds in (1.0, 1.1, 1.1, 0.9, 0.26, 0.25, 0.1, 0.0):
        paced.pace.answered(seconds)
        asked.append(paced.pace.fits("past", [1] * 1000))
    assert asked == [100, 50, 25, 25, 25, 50, 100, 100]
    for _ in range(20):
        paced.pace.answered(60.0)
    assert paced.pace.fits("past", [1] * 1000) == 1
    assert paced.pace.fits("state", [1] * 1000) == 1000


@pytest.mark.parametrize(
    ("sent", "owed", "said"),
    [
        (100.0, 10.0, "110/s"),
        (100.0, 4.0, ""),  # 104: as good as enough
        (100.0, -1.0, ""),
        (40.0, 50.0, ""),  # an outage
        (100.0, 100.0, "200/s"),
    ],
)
async def test_a_rate_that_is_too_low_is_told_with_figures(sent: float, owed: float, said: str) -> None:
    clock = ManualClock()
    pace = Pace(clock, 100.0)
    pace.look(5000)
    await pace.before(round(sent * LOOK_S))
    clock.advance(LOOK_S - 1.0)
    pace.look(10**9)
    assert pace.warning == ""
    clock.advance(1.0)
    pace.look(5000 + round(owed * LOOK_S))
    assert (said in pace.warning) if said else not pace.warning
    assert ("rate: 100/s is too low" in pace.warning) is bool(said)


async def test_the_warning_ends_when_what_is_owed_grows_no_longer() -> None:
    clock = ManualClock()
    pace = Pace(clock, 10.0)
    pace.look(0)
    for owed, warned in ((9000, True), (18_000, True), (18_000, False), (30_000, True)):
        await pace.before(round(10 * LOOK_S))
        clock.advance(LOOK_S)
        pace.look(owed)
        assert bool(pace.warning) is warned


async def test_without_a_rate_nothing_is_too_low() -> None:
    clock = ManualClock()
    pace = Pace(clock)
    pace.look(0)
    clock.advance(LOOK_S)
    pace.look(10**9)
    assert pace.warning == ""
