"""When a broker is asked again how history is to be sent, and what its answers change, over outages and answers that are unsure."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest

from gateway.forward.broker import Broker, Probe
from gateway.forward.probing import PROBE_CAP_S, Mode, Probing
from gateway.forward.settings import ForwardSettings
from gateway.sdk.errors import BrokerUnavailable
from gateway.sdk.testing import ManualClock

SETTINGS = ForwardSettings(probe_again_s=10.0, unsure_s=60.0, held_every_s=1.0)
GONE = Probe(readable=True, temporal=False, sure=False)
THERE = Probe(readable=True, temporal=True)
AWAY = BrokerUnavailable("away")


class Answers:
    """A broker of which only the probe matters."""

    def __init__(self) -> None:
        self.answer: Probe | BrokerUnavailable = THERE

    async def probe(self) -> Probe:
        if isinstance(self.answer, BrokerUnavailable):
            raise self.answer
        return self.answer


class Asking:
    """Asks whenever it is due."""

    def __init__(self, **settings: Any) -> None:
        self.broker, self.clock = Answers(), ManualClock()
        self.probing = Probing(cast(Broker, self.broker), self.clock, replace(SETTINGS, **settings))

    async def asks(self, seconds: float, answer: Probe | BrokerUnavailable, mode: Mode = "temporal") -> list[float]:
        """When it asked in this time, each second looked at, and was answered so."""
        self.broker.answer, found = answer, []
        for second in range(1, round(seconds) + 1):
            self.clock.advance(1.0)
            if self.probing.due:
                found.append(float(second))
                await self.probing.again(mode)
        return found


async def test_a_brokers_own_word_stands_until_the_next_outage() -> None:
    asking = Asking()
    asking.probing.later(THERE)
    assert await asking.asks(7200, THERE) == []
    asking.probing.soon()
    assert len(await asking.asks(7200, THERE)) == 1


async def test_a_word_of_somebody_is_asked_for_again_ever_more_seldom_and_quickly_again_after_an_outage() -> None:
    asking = Asking()
    asking.probing.later(GONE)
    assert (await asking.asks(700, GONE, "in-order"))[:6] == [10, 30, 70, 150, 310, 630]
    asking.probing.soon()
    [first, second, third, *_] = await asking.asks(80, GONE, "in-order")
    assert (second - first, third - second) == (10, 20)


async def test_it_is_asked_at_least_every_hour_however_long_it_cannot_be_told() -> None:
    asking = Asking()
    asking.probing.soon()
    times = await asking.asks(30_000, AWAY)
    assert max(later - earlier for earlier, later in pairwise(times)) == PROBE_CAP_S
    assert asking.probing.wanted is None


async def test_a_history_that_was_missed_before_and_was_back_must_be_missed_for_as_long_again() -> None:
    asking = Asking()
    asking.probing.later(GONE)
    await asking.asks(50, GONE)
    assert asking.probing.wanted is None
    await asking.asks(60, replace(THERE, sure=False))
    missed = await asking.asks(40, GONE)
    assert len(missed) > 1
    assert asking.probing.wanted is None, "missed for a moment, twice"
    await asking.asks(60, GONE)
    assert asking.probing.wanted == "in-order"


async def test_what_is_wanted_is_wanted_no_longer_when_the_broker_is_as_it_was() -> None:
    asking = Asking()
    asking.probing.later(GONE)
    await asking.asks(120, GONE)
    assert asking.probing.wanted == "in-order"
    await asking.asks(60, THERE)
    assert asking.probing.wanted is None


@pytest.mark.parametrize("history", ["temporal", "in-order", "latest-only"])
async def test_what_the_operator_wants_is_never_asked_for(history: str) -> None:
    asking = Asking(history=history)
    asking.probing.later(GONE)
    asking.probing.soon()
    assert await asking.asks(7200, GONE) == []
