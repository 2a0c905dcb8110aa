"""How history is to be sent is asked again when that may have changed, less and less often, and believed when it is sure."""

from dataclasses import replace

import pytest

from gateway.forward.broker import Probe
from gateway.forward.probing import PROBE_CAP_S, Probing, mode_of
from gateway.forward.settings import ForwardSettings
from gateway.sdk.errors import BrokerUnavailable
from gateway.sdk.testing import ManualClock
from tests.gateway.forward.test_verdicts import Scripted

SETTINGS = ForwardSettings(probe_again_s=10.0, unsure_s=60.0, held_every_s=2.0)
GONE, THERE, UNKNOWN = (Probe(readable=True, temporal=temporal) for temporal in (False, True, None))
MAYBE_GONE = replace(GONE, sure=False)


class Asked:
    """Probing of a broker by script."""

    def __init__(self, settings: ForwardSettings = SETTINGS) -> None:
        self.broker, self.clock = Scripted(), ManualClock()
        self.probing = Probing(self.broker, self.clock, settings)

    async def says(self, *probes: Probe) -> str | None:
        for probe in probes:
            self.broker.probes = [probe]
            await self.probing.again("temporal")
        return self.probing.wanted

    def due_in(self) -> float:
        """Seconds until it is asked again."""
        for seconds in range(10_000):
            if self.probing.due:
                self.clock.advance(-seconds)
                return seconds
            self.clock.advance(1.0)
        raise AssertionError("it is not asked again")


@pytest.mark.parametrize(
    ("wanted", "probe", "mode"),
    [
        ("auto", THERE, "temporal"),
        ("auto", GONE, "in-order"),
        ("temporal", THERE, "temporal"),
        ("temporal", UNKNOWN, "temporal"),
        ("in-order", THERE, "in-order"),
        ("in-order", GONE, "in-order"),
        ("latest-only", THERE, "latest-only"),
        ("latest-only", GONE, "latest-only"),
    ],
)
def test_the_operator_says_how_or_the_broker(wanted: str, probe: Probe, mode: str) -> None:
    assert mode_of(wanted, probe) == mode


def test_a_history_that_is_not_there_cannot_be_had() -> None:
    with pytest.raises(BrokerUnavailable, match="no temporal API"):
        mode_of("temporal", GONE)


def test_a_brokers_own_word_stands() -> None:
    asked = Asked()
    assert not asked.probing.due
    asked.probing.later(MAYBE_GONE)
    assert asked.due_in() == 10
    asked.probing.later(THERE)
    assert not asked.probing.due
    asked.clock.advance(PROBE_CAP_S)
    assert not asked.probing.due
    assert asked.probing.wanted is None
    assert Probe(readable=True, temporal=True).sure


def test_what_somebody_on_the_way_said_is_asked_again_less_and_less_often() -> None:
    asked = Asked()
    waits = []
    for probe in (None, MAYBE_GONE, None, None, None, None, None, None, None, None, None, None):
        asked.probing.later(probe)
        waits.append(asked.due_in())
    assert waits == [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]
    asked.probing.later(THERE)
    asked.probing.later(None)
    assert asked.due_in() == 10  # and then from the beginning


@pytest.mark.parametrize("history", ["temporal", "in-order", "latest-only"])
def test_where_the_operator_said_how_nobody_is_asked(history: str) -> None:
    asked = Asked(replace(SETTINGS, history=history))
    asked.probing.later(MAYBE_GONE)
    asked.probing.soon()
    asked.clock.advance(PROBE_CAP_S)
    assert not asked.probing.due


async def test_after_an_outage_it_is_asked_soon_but_not_at_each_of_many() -> None:
    asked = Asked()
    asked.clock.advance(-asked.clock.monotonic_s())  # the box has just started
    asked.probing.soon()
    assert asked.due_in() == 10
    await asked.says(THERE)
    asked.clock.advance(2.0)
    asked.probing.soon()
    assert asked.due_in() == 8
    for _ in range(3):
        asked.probing.later(None)
    asked.probing.soon()
    asked.probing.later(None)
    assert asked.due_in() == 10


async def test_a_sure_answer_is_taken_up_and_taken_back() -> None:
    asked = Asked()
    assert await asked.says(GONE) == "in-order"
    assert not asked.probing.due
    assert await asked.says(THERE) is None
    assert await asked.says(GONE, UNKNOWN) is None  # it cannot be told: the mode stays


async def test_who_cannot_be_asked_changes_nothing_and_is_asked_again() -> None:
    asked = Asked()
    await asked.says(GONE)
    asked.broker.fault = BrokerUnavailable("away")
    await asked.probing.again("temporal")
    assert asked.probing.wanted == "in-order"
    assert asked.due_in() == 10


async def test_an_unsure_answer_must_stand_for_a_while() -> None:
    asked = Asked()
    assert await asked.says(MAYBE_GONE) is None
    assert asked.due_in() == 10
    asked.clock.advance(59.0)
    assert await asked.says(MAYBE_GONE) is None
    assert asked.due_in() == 10  # as often as before, so that it is not missed
    asked.clock.advance(1.0)
    assert await asked.says(MAYBE_GONE) == "in-order"


async def test_while_it_is_unsure_it_is_asked_four_times() -> None:
    asked = Asked(replace(SETTINGS, unsure_s=20.0))
    await asked.says(MAYBE_GONE)
    assert asked.due_in() == 5


@pytest.mark.parametrize("between", [THERE, GONE])
async def test_another_answer_between_ends_the_doubt(between: Probe) -> None:
    asked = Asked()
    await asked.says(MAYBE_GONE)
    asked.clock.advance(50.0)
    await asked.says(between)
    asked.clock.advance(10.0)
    assert await asked.says(MAYBE_GONE) is None
    asked.clock.advance(59.0)
    assert await asked.says(MAYBE_GONE) is None
    asked.clock.advance(1.0)
    assert await asked.says(MAYBE_GONE) == "in-order"
