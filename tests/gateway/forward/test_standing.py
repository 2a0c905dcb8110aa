"""How it stands with a broker, as it is shown."""

from datetime import timedelta

import pytest
import structlog

from gateway.forward.broker import LoginFailed, Outcome
from gateway.forward.standing import REMEDIES, Standing
from gateway.health import BrokerHealth, BrokerState
from gateway.sdk.errors import BrokerUnavailable
from gateway.sdk.testing import ManualClock
from tests.gateway.forward.scene import START


@pytest.fixture
def record() -> BrokerHealth:
    return BrokerHealth()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def standing(record: BrokerHealth, clock: ManualClock) -> Standing:
    return Standing("city", record, clock)


def test_each_request_adds_up(standing: Standing, record: BrokerHealth, clock: ManualClock) -> None:
    standing.count(Outcome(refused={"a": "no"}))
    assert (record.accepted, record.refused, record.last_accepted_at) == (0, 1, None)
    standing.count(Outcome(accepted=frozenset({"a", "b"}), refused={"c": "no", "d": "no"}, later={"e": "busy"}))
    clock.advance(5.0)
    standing.count(Outcome(accepted=frozenset({"a"})))
    clock.advance(5.0)
    standing.count(Outcome())
    assert (record.accepted, record.refused) == (3, 3)
    assert record.last_accepted_at == START + timedelta(seconds=5)


def test_what_fails_is_shown_with_a_remedy_until_it_works(
    standing: Standing, record: BrokerHealth, clock: ManualClock
) -> None:
    with structlog.testing.capture_logs() as events:
        standing.fails(BrokerUnavailable("503"))
    assert [event["broker"] for event in events] == ["city"]
    standing.try_in(7.0)
    assert (record.state, record.reason, record.remedy) == (BrokerState.DOWN, "503", REMEDIES[BrokerState.DOWN])
    assert record.next_try_at == START + timedelta(seconds=7)
    assert record.since == START
    clock.advance(1.0)
    standing.works("its clock is wrong")
    assert (record.state, record.reason, record.remedy) == (BrokerState.OK, "its clock is wrong", "")
    assert record.next_try_at is None
    assert record.since == START + timedelta(seconds=1)


def test_a_fault_tells_the_state_unless_another_is_said(standing: Standing, record: BrokerHealth) -> None:
    standing.fails(LoginFailed("401"), of="history: ")
    assert (record.state, record.reason, record.remedy) == (
        BrokerState.LOGIN,
        "history: 401",
        REMEDIES[BrokerState.LOGIN],
    )
    standing.fails(LoginFailed("no such type"), BrokerState.CONFIG_FAULT)
    assert (record.state, record.reason) == (BrokerState.CONFIG_FAULT, "no such type")
    assert record.remedy == REMEDIES[BrokerState.CONFIG_FAULT]


def test_a_fault_that_knows_its_remedy_tells_it(standing: Standing, record: BrokerHealth) -> None:
    standing.fails(BrokerUnavailable("a redirect", remedy="set url: to it"))
    assert record.remedy == "set url: to it"
