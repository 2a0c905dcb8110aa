"""Prometheus metrics, made from the status at each scrape: page, `status` and alarms have one source. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from gateway.encode import mended

CONTENT_TYPE = CONTENT_TYPE_LATEST
Row = tuple[tuple[str, ...], Mapping[str, Any]]

LINK_COUNTERS = {"restarts": "Times the link was restarted"}
DEVICE_TIMES = {"last_good_at": "When the device was last good", "last_set_at": "When the device was last heard"}
DEVICE_COUNTERS = {"sets": "Sets of readings", "readings": "Readings", "bad": "Readings without a good value"}
GONE_GAUGES = {
    "backlog": ("backlog_readings", "Readings owed to a broker that is no longer in the config"),
    "later": ("held_later", "Pieces held for it for a later try"),
    "dead": ("held_dead", "Pieces that it refused for good"),
}
GONE_DEVICE_GAUGES = {
    "backlog": ("backlog_readings", "Readings owed to a broker of a device that is no longer in the config"),
    "later": ("held_later", "Pieces of it held for a later try"),
    "dead": ("held_dead", "Pieces of it that the broker refused for good"),
}
BROKER_GAUGES = {
    "backlog": ("backlog_readings", "Readings owed to the broker"),
    "later": ("held_later", "Pieces (readings of one device for one entity) held for a later try"),
    "dead": ("held_dead", "Pieces that the broker refused for good: dead letters"),
    "refusing": ("refusing_entities", "Entities that the broker refused when they were last offered"),
    "contexts": ("missing_contexts", "Contexts that the broker cannot fetch"),
    "given_up": ("given_up_readings", "Readings that the broker will not get: dropped by a bound"),
    "month_bytes": ("month_bytes", "Bytes both ways in this calendar month, without TCP and TLS"),
}
BROKER_TIMES = {
    "oldest_unsent_at": "When the oldest reading owed was taken",
    "last_accepted_at": "When the broker last accepted something",
}
BROKER_COUNTERS = {
    "accepted": "Entities accepted",
    "refused": "Entities refused, each time counted",
    "requests": "Requests made",
    "sent_bytes": "Bytes sent",
    "received_bytes": "Bytes received",
    "late": "Updates not sent because the broker holds newer ones and has no temporal API",
    "skipped": "Updates not sent because latest-only is chosen",
    "unseen": "Points accepted that were never seen in the broker's history",
}


def render(status: Mapping[str, Any]) -> bytes:
    """The exposition of one status (its shape: `GatewayView.status`)."""
    try:
        return _exposed(status)
    except UnicodeEncodeError:  # half a surrogate pair in somebody's name
        return _exposed(mended(status))


def _exposed(status: Mapping[str, Any]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Status(status))
    return generate_latest(registry)


class _Status(Collector):
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        links: Mapping[str, Any] = self._status.get("links", {})
        link_rows: list[Row] = [((name,), link) for name, link in links.items()]
        device_rows: list[Row] = [
            ((name, device_name), device)
            for name, link in links.items()
            for device_name, device in link.get("devices", {}).items()
        ]
        broker_rows: list[Row] = [((name,), broker) for name, broker in self._status.get("brokers", {}).items()]
        yield from _gateway(self._status)
        yield _up("citygate_link", "1 while the link works", ("link",), link_rows)
        yield from _counters("citygate_link", ("link",), LINK_COUNTERS, link_rows)
        yield _events("citygate_link", ("link",), link_rows)
        yield _rejected(links)
        yield _up("citygate_device", "1 while the device's last set was good", ("link", "device"), device_rows)
        yield from _times("citygate_device", ("link", "device"), DEVICE_TIMES, device_rows)
        yield from _counters("citygate_device", ("link", "device"), DEVICE_COUNTERS, device_rows)
        yield _events("citygate_device", ("link", "device"), device_rows)
        yield _up("citygate_broker", "1 while the broker takes what it is sent", ("broker",), broker_rows)
        yield from _gauges("citygate_broker", ("broker",), BROKER_GAUGES, broker_rows)
        yield from _times("citygate_broker", ("broker",), BROKER_TIMES, broker_rows)
        yield from _counters("citygate_broker", ("broker",), BROKER_COUNTERS, broker_rows)
        gone: list[Row] = [((name,), its) for name, its in self._status.get("log", {}).get("gone", {}).items()]
        yield from _gauges("citygate_gone_broker", ("broker",), GONE_GAUGES, gone)
        devices = self._status.get("log", {}).get("gone_devices", {}).items()
        owed: list[Row] = [((name, to), row) for name, its in devices for to, row in its["brokers"].items()]
        yield from _gauges("citygate_gone_device", ("device", "broker"), GONE_DEVICE_GAUGES, owed)
        yield from _plain("citygate_log", self._status.get("log", {}))


def _gateway(status: Mapping[str, Any]) -> Iterator[Metric]:
    gateway = status.get("gateway", {})
    info = GaugeMetricFamily("citygate_info", "The box: always 1", labels=("gateway", "version"))
    info.add_metric((str(gateway.get("id", "")), str(gateway.get("version", ""))), 1)
    yield info
    yield GaugeMetricFamily("citygate_ready", "1 while the box does all of its work", int(not gateway.get("ready")))
    yield from _times("citygate", (), {"started_at": "When the daemon started"}, [((), gateway)])
    yield from _config(status.get("config"))
    clock = status.get("clock", {})
    if clock:
        trusted = clock.get("trusted", clock.get("state") == "ok")
        yield GaugeMetricFamily("citygate_clock_trusted", "1 while the clock is trusted", int(bool(trusted)))


def _config(config: Mapping[str, Any] | None) -> Iterator[Metric]:
    if config is None:
        return
    last_good, refused = config.get("using") == "last good", bool(config.get("problems"))
    yield GaugeMetricFamily("citygate_config_last_good", "1 while the last good config is at work", int(last_good))
    yield GaugeMetricFamily("citygate_config_refused", "1 while the config on disk is wrong", int(refused))
    waits = len(config.get("waiting", ()))
    yield GaugeMetricFamily("citygate_config_waiting", "Changes that wait for a restart of the daemon", waits)


def _up(prefix: str, text: str, labels: tuple[str, ...], rows: Iterable[Row]) -> Metric:
    family = GaugeMetricFamily(f"{prefix}_up", text, labels=labels)
    for names, record in rows:
        family.add_metric(names, int(record.get("state") == "ok"))
    return family


def _gauges(
    prefix: str, labels: tuple[str, ...], texts: Mapping[str, tuple[str, str]], rows: list[Row]
) -> Iterator[Metric]:
    for key, (name, text) in texts.items():
        family = GaugeMetricFamily(f"{prefix}_{name}", text, labels=labels)
        for names, record in rows:
            value = record.get(key)
            if value is not None:
                family.add_metric(names, float(len(value) if isinstance(value, list) else value))
        yield family


def _times(prefix: str, labels: tuple[str, ...], texts: Mapping[str, str], rows: list[Row]) -> Iterator[Metric]:
    """Times as seconds of the epoch; one that is not known yet is left out, so that an alarm can ask `absent`."""
    for key, text in texts.items():
        name = f"{prefix}_{key.removesuffix('_at')}_timestamp_seconds"
        family = GaugeMetricFamily(name, text, labels=labels)
        for names, record in rows:
            if record.get(key):
                family.add_metric(names, datetime.fromisoformat(record[key]).timestamp())
        yield family


def _counters(prefix: str, labels: tuple[str, ...], texts: Mapping[str, str], rows: list[Row]) -> Iterator[Metric]:
    for key, text in texts.items():
        family = CounterMetricFamily(f"{prefix}_{key}", text, labels=labels)
        for names, record in rows:
            family.add_metric(names, float(record.get(key) or 0))
        yield family


def _events(prefix: str, labels: tuple[str, ...], rows: Iterable[Row]) -> Metric:
    """What drivers count by their own names (`crc_errors`) goes into a label, so that the metric's name stays ours."""
    family = CounterMetricFamily(f"{prefix}_events", "Events counted by the driver", labels=(*labels, "event"))
    for names, record in rows:
        for event, count in record.get("counters", {}).items():
            family.add_metric((*names, str(event)), float(count))
    return family


def _rejected(links: Mapping[str, Any]) -> Metric:
    """Bounded: a link remembers few kinds. Numbers in a reason vary, so that they are left out of the label."""
    labels = ("link", "device", "reason")
    family = CounterMetricFamily("citygate_link_rejected", "Frames or messages that could not be read", labels=labels)
    for name, link in links.items():
        for row in link.get("rejected", ()):
            family.add_metric((name, row["device"], row["kind"]), float(row["count"]))
    return family


def _plain(prefix: str, record: Mapping[str, Any]) -> Iterator[Metric]:
    """A gauge for each number of a flat record."""
    for key, value in record.items():
        if isinstance(value, int | float):
            yield GaugeMetricFamily(f"{prefix}_{key}", f"Log: {key.replace('_', ' ')}", float(value))
