"""Metrics, read back with the official parser."""

from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from gateway.http.metrics import render
from tests.gateway.http.conftest import Start
from tests.support.fake_view import device_status, status

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def of(shown: Mapping[str, Any]) -> Samples:
    return samples(render(shown).decode())


async def test_the_endpoint_speaks_the_text_format(start: Start) -> None:
    async with start() as running:
        response = await running.get("/metrics")
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        assert one(samples(await response.text()), "citygate_ready") == 1


def test_how_the_box_stands_with_its_file_can_raise_an_alarm() -> None:
    names = ("last_good", "refused", "waiting")

    def config(**its: Any) -> tuple[float, ...]:
        found = of(status(config={"using": "file", "problems": [], "waiting": [], **its}))
        return tuple(one(found, f"citygate_config_{name}") for name in names)

    assert config() == (0, 0, 0)
    assert config(using="last good", problems=[{}, {}]) == (1, 1, 0)
    assert config(problems=[{}]) == (0, 1, 0)
    assert config(waiting=[{}, {}]) == (0, 0, 2)


def test_links_devices_and_brokers_have_their_states_and_counts() -> None:
    found = of(status())
    assert one(found, "citygate_info", gateway="gw-1", version="0.1.0") == 1
    assert one(found, "citygate_link_up", link="roof") == 1
    assert one(found, "citygate_link_restarts_total", link="roof") == 1
    assert one(found, "citygate_link_events_total", link="roof", event="requests") == 7
    assert one(found, "citygate_device_readings_total", link="roof", device="meter-12") == 3
    assert one(found, "citygate_device_last_good_timestamp_seconds", link="roof", device="meter-12") == 1780315200
    assert one(found, "citygate_broker_accepted_total", broker="milano") == 5
    assert one(found, "citygate_broker_backlog_readings", broker="milano") == 0
    assert one(found, "citygate_log_size_bytes") == 4096
    assert one(found, "citygate_clock_trusted") == 1


def test_a_bad_device_is_not_up_and_what_is_unknown_is_absent() -> None:
    shown = status()
    shown["links"]["roof"]["devices"] = {"meter-12": device_status(state="bad", last_good_at=None)}
    shown["gateway"]["ready"] = ["device meter-12: timeout"]
    found = of(shown)
    assert one(found, "citygate_device_up", link="roof", device="meter-12") == 0
    assert one(found, "citygate_ready") == 0
    assert not [key for key in found if key[0] == "citygate_device_last_good_timestamp_seconds"]


def test_a_clock_that_nobody_confirms_is_not_trusted() -> None:
    for clock, trusted in (({"state": "ok"}, 1), ({"state": "unconfirmed"}, 0), ({"trusted": False}, 0)):
        assert one(of(status(clock=clock)), "citygate_clock_trusted") == trusted


def test_names_with_quotes_and_line_ends_stay_labels() -> None:
    shown = status()
    shown["links"]["roof"]["counters"] = {'a"b\nc\\d': 2}
    assert one(of(shown), "citygate_link_events_total", link="roof", event='a"b\nc\\d') == 2


def test_an_empty_status_is_still_an_exposition() -> None:
    assert one(of({}), "citygate_ready") == 1


def test_rejections_are_counted_by_reason_and_device() -> None:
    shown = status()
    row = {"kind": "crc # does not fit", "reason": "crc 12 does not fit", "device": "meter-12", "count": 4}
    shown["links"]["roof"]["rejected"] = [row]

    assert b'citygate_link_rejected_total{device="meter-12",link="roof",reason="crc # does not fit"} 4.0' in render(
        shown
    )
