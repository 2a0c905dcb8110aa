"""What a city refuses is a reason, in words that name device, broker, why and what to do."""

from gateway.cli.operate import anything_bad, only
from gateway.cli.status_text import status_text
from gateway.health import MANY, BrokerState, Health
from tests.gateway.forward.scene import RealClock

ROW = {
    "entity": "urn:ngsi-ld:T:milano:gw:m-1",
    "device": "m-1",
    "reason": "400 no good: because",
    "since": "2026-06-01T12:00:00Z",
    "remedy": "correct it",
}


def health(*rows: dict[str, str], state: str = "ok") -> Health:
    found = Health(RealClock())
    broker = found.broker("city", "ngsi-ld")
    broker.state, broker.refusing = BrokerState(state), list(rows)
    return found


def test_a_refused_device_is_a_reason_and_an_accepted_one_is_none() -> None:
    [line] = health(ROW).bad()
    assert line == "broker city: refuses what device m-1 sends: 400 no good: because; correct it"
    assert health().bad() == []


def test_many_refused_devices_are_counted_and_a_config_fault_says_it_once() -> None:
    rows = [{**ROW, "device": f"m-{n}"} for n in range(MANY + 5)]
    assert len(health(*rows).bad()) == MANY + 1
    assert health(*rows).bad()[-1] == "broker city: refuses 5 more entities"
    assert len(health(*rows, state="config_fault").bad()) == 1


def test_each_device_of_a_shared_entity_is_told_who_refuses_it() -> None:
    found = health({**ROW, "device": "m-1, m-2"}).refused_by()
    assert found == {"m-1": {"city": ROW["reason"]}, "m-2": {"city": ROW["reason"]}}


def test_the_status_of_one_device_or_broker_says_it_too() -> None:
    device = {"state": "ok", "refused_by": {"city": ROW["reason"]}, "points": {}}
    links = {"plant": {"state": "ok", "devices": {"m-1": device, "m-2": {**device, "refused_by": {}}}}}
    status = {
        "gateway": {"ready": []},
        "links": links,
        "brokers": {"city": {"state": "ok", "refusing": [ROW], "given_up": 3}},
    }
    assert anything_bad(status)
    assert anything_bad(only(status, ["m-1"]))
    assert anything_bad(only(status, ["city"]))
    assert not anything_bad(only(status, ["m-2"]))
    said = status_text(status)
    for part in (
        "refuses urn:ngsi-ld:T:milano:gw:m-1 of m-1",
        "because",
        "correct it",
        "city refuses it",
        "3 readings given up",
    ):
        assert part in said
