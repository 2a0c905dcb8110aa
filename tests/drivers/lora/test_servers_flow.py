"""ChirpStack and The Things Stack over a real mosquitto: what was published is in the sets, once, whatever breaks."""

import asyncio
import ipaddress
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from drivers.lora.config import ChirpstackLink, TtsLink
from drivers.lora.driver import CHIRPSTACK, TTS
from drivers.lora.simulator import CHIRPSTACK as SERVER
from drivers.lora.simulator import TTS as TTS_SERVER
from drivers.lora.simulator import _Sent, chirpstack_event, publisher
from gateway.sdk.errors import LinkError
from gateway.sdk.reading import Reason, TimeSource
from gateway.sdk.testing import NOON
from tests.drivers.lora.support import (
    TEMPLATES,
    HeldContext,
    counter_template,
    running,
    supervised,
    template,
    until,
    world,
)
from tests.support.box import free_port
from tests.support.mosquitto import Mosquitto, mosquitto

EUI = "24e124713d123456"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path) as running_broker:
        yield running_broker


def link(broker: Mosquitto, devices: dict[str, Any] | None = None, **more: Any) -> ChirpstackLink:
    devices = devices or {"node": {"template": counter_template(), "dev_eui": EUI}}
    return ChirpstackLink.model_validate(
        {"driver": "chirpstack", "url": broker.url, "client_id": "test", "devices": devices, **more}
    )


def event(n: int, eui: str = EUI, **changes: Any) -> tuple[str, bytes]:
    """The nth uplink of a device, its payload the number n."""
    topic, body = chirpstack_event(_Sent(eui, n, 1, n.to_bytes(4, "big"), NOON + timedelta(seconds=n)))
    return topic, json.dumps({**json.loads(body), **changes}).encode()


async def publish(broker: Mosquitto, *events: tuple[str, bytes]) -> None:
    async with publisher(broker.url) as talk:
        for topic, body in events:
            await talk.publish(topic, body)


def counts(context: HeldContext) -> list[Any]:
    """The numbers of all uplinks that became sets, in order."""
    return [r.value for s in context.sets for r in s.readings if r.point == "count"]


@pytest.mark.parametrize(
    ("driver", "server", "model"), [(CHIRPSTACK, SERVER, ChirpstackLink), (TTS, TTS_SERVER, TtsLink)]
)
async def test_what_a_server_published_is_in_the_sets_value_by_value(
    driver: Any, server: Any, model: Any, broker: Mosquitto
) -> None:
    devices = {
        "bin": {"template": TEMPLATES["milesight/em400-udl"], "dev_eui": "24e124713d000001"},
        "park": {"template": TEMPLATES["nwave/nps405"], "dev_eui": "24e124713d000002"},
        "soil": {"template": TEMPLATES["decentlab/dl-trs11"], "dev_eui": "24e124713d000003"},
    }
    config = model.model_validate({"driver": driver.name, "url": broker.url, "client_id": "t", "devices": devices})
    context = HeldContext()
    context.automatic = True
    served: list[tuple[str, dict[str, float]]] = []
    async with running(driver.run(config, context.context)):
        await until(lambda: context.counts["connects"])
        async with running(server.run(config, world(served, twice={"bin"}, junk={"park"}))):
            await until(lambda: len(context.sets) >= 30)

    got = [(s.device, s.values()) for s in context.sets if s.readings]
    assert len(got) >= 15
    for (device, values), (from_device, want) in zip(got, served, strict=False):
        assert device == from_device
        assert {point: float(values[point]) for point in want} == want
    assert context.total("duplicates") > 0
    assert len(context.rejected) > 0
    assert {r.time_source for s in context.sets for r in s.readings} == {TimeSource.NETWORK}


async def test_an_uplink_is_acknowledged_only_when_it_is_durable(broker: Mosquitto) -> None:
    first = HeldContext()
    async with running(CHIRPSTACK.run(link(broker), first.context)):
        await until(lambda: first.counts["connects"])
        await publish(broker, *(event(n) for n in range(5)))
        await until(lambda: len(first.sets) == 5)
        first.commit(2)
        await asyncio.sleep(0.2)  # the acknowledgements of two are on their way, of three must not be

    second = HeldContext()  # a new process: what was not durable is forgotten
    for readings in first.durable:
        second.state.update({(readings.device, key): value for key, value in (readings.state or {}).items()})
    async with running(CHIRPSTACK.run(link(broker), second.context)):
        await until(lambda: len(second.sets) >= 3)
        await publish(broker, event(5))
        await until(lambda: len(counts(second)) >= 4)

    assert counts(second) == [2, 3, 4, 5]


async def test_an_uplink_that_was_durable_but_not_acknowledged_is_not_taken_twice(broker: Mosquitto) -> None:
    first = HeldContext()
    async with running(CHIRPSTACK.run(link(broker), first.context)):
        await until(lambda: first.counts["connects"])
        await publish(broker, *(event(n) for n in range(40)))  # more than the identities that are kept
        await until(lambda: len(first.sets) == 40)

    second = HeldContext()  # all forty were written to disk, the power failed before the first acknowledgement
    second.state.update(first.state)
    second.automatic = True
    async with running(CHIRPSTACK.run(link(broker), second.context)):
        await until(lambda: second.total("duplicates") == 40)
        await publish(broker, event(40))
        await until(lambda: counts(second))
        await asyncio.sleep(0.3)  # for the acknowledgements to leave
    assert counts(second) == [40]

    third = HeldContext()
    third.state.update(second.state)
    async with running(CHIRPSTACK.run(link(broker), third.context)):
        await until(lambda: third.counts["connects"])
        await publish(broker, event(41))
        await until(lambda: third.sets)
    assert counts(third) == [41], "the duplicates were acknowledged"


async def test_a_duplicate_is_not_acknowledged_before_the_first_one_is_durable(broker: Mosquitto) -> None:
    context = HeldContext()
    async with running(CHIRPSTACK.run(link(broker), context.context)):
        await until(lambda: context.counts["connects"])
        await publish(broker, event(1), event(1))
        await until(lambda: context.total("duplicates") == 1)
        await asyncio.sleep(0.1)

    again = HeldContext()  # neither was durable: both come again
    async with running(CHIRPSTACK.run(link(broker), again.context)):
        await until(lambda: len(again.sets) == 2)
    assert counts(again) == [1]


async def test_a_broker_restart_loses_nothing(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    failures: list[str] = []

    async def run() -> None:
        try:
            await CHIRPSTACK.run(link(broker), context.context)
        except LinkError as error:
            failures.append(str(error))
            raise

    async with running(supervised(run)):
        await until(lambda: context.counts["connects"] == 1)
        await publish(broker, *(event(n) for n in range(20)))
        await until(lambda: len(counts(context)) >= 10)
        await asyncio.to_thread(broker.stop)
        await until(lambda: failures)
        await asyncio.to_thread(broker.start)
        await until(lambda: context.counts["connects"] == 2)
        await publish(broker, *(event(n) for n in range(20, 30)))
        await until(lambda: len(counts(context)) >= 30)

    await publish(broker, *(event(n) for n in range(30, 35)))  # nobody is there, and the broker is restarted as well
    await asyncio.to_thread(broker.stop)
    await asyncio.to_thread(broker.start)
    async with running(supervised(run)):
        await until(lambda: len(counts(context)) >= 35)

    assert counts(context) == list(range(35))
    assert "127.0.0.1" in failures[0]


async def test_the_window_bounds_what_is_taken_and_nothing_is_dropped(broker: Mosquitto) -> None:
    context = HeldContext()
    async with running(CHIRPSTACK.run(link(broker, receive_window=10), context.context)):
        await until(lambda: context.counts["connects"])
        await publish(broker, *(event(n) for n in range(50)))
        await until(lambda: len(context.sets) == 10)
        await asyncio.sleep(0.2)
        assert len(context.sets) == 10, "the broker holds back what is beyond the window"
        for _ in range(10):
            context.commit()
            await asyncio.sleep(0.05)
        context.automatic = True
        context.commit()
        await until(lambda: len(context.sets) == 50)
    assert counts(context) == list(range(50))


async def test_an_uplink_that_came_while_we_were_away_comes_later(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    async with running(CHIRPSTACK.run(link(broker), context.context)):
        await until(lambda: context.counts["connects"])
    await publish(broker, *(event(n) for n in range(3)))
    async with running(CHIRPSTACK.run(link(broker), context.context)):
        await until(lambda: len(context.sets) == 3)
    assert counts(context) == [0, 1, 2]


async def test_a_backlog_far_beyond_the_window_is_taken_whole_and_in_order(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    config = link(broker, receive_window=20)
    async with running(CHIRPSTACK.run(config, context.context)):
        await until(lambda: context.counts["connects"])
    await publish(broker, *(event(n) for n in range(1500)))  # mosquitto sends them at once when the session goes on
    async with running(CHIRPSTACK.run(config, context.context)):
        await until(lambda: len(context.sets) >= 1500)
    assert counts(context) == list(range(1500))
    assert context.counts["connects"] == 2


async def test_bad_messages_are_counted_and_the_next_good_one_is_taken(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    topic = f"application/sim/device/{EUI}/event/up"
    bad = [
        b"{",
        b"",
        b"\xff\xfe",
        b"[1]",
        b'{"devEUI": 1}',
        b"x" * 300_000,
        b'{"deviceInfo": {"devEui": "' + EUI.encode() + b'"}, "data": "?"}',
    ]
    async with running(CHIRPSTACK.run(link(broker), context.context)):
        await until(lambda: context.counts["connects"])
        await publish(broker, *((topic, body) for body in bad), event(7))
        await until(lambda: context.sets)
    assert counts(context) == [7]
    assert len(context.rejected) == len(bad)


async def test_lost_uplinks_are_counted_by_the_gap_of_the_counter(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    async with running(CHIRPSTACK.run(link(broker), context.context)):
        await until(lambda: context.counts["connects"])
        await publish(broker, event(10), event(11), event(15), event(2))
        await until(lambda: len(context.sets) == 4)
    lost = [s.values().get("lost_uplinks") for s in context.sets]
    assert lost == [None, 0, 3, None], "the first has no predecessor, the last starts a session anew"
    assert context.total("lost_uplinks") == 3
    assert context.total("sessions_restarted") == 1
    assert context.sets[0].values()["rssi"] == -60
    assert context.sets[0].values()["spreading_factor"] == 7


async def test_test_frames_and_simulated_events_never_become_readings(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    async with running(CHIRPSTACK.run(link(broker), context.context)):
        await until(lambda: context.counts["connects"])
        await publish(broker, event(1, fPort=224), event(2))
        await until(lambda: context.sets)
    assert counts(context) == [2]
    assert context.total("simulated") == 1


async def test_a_status_event_gives_the_battery_and_an_error_a_note(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    info = {"deviceInfo": {"devEui": EUI}, "time": "2026-06-01T12:00:00Z"}
    root = f"application/sim/device/{EUI}/event"
    async with running(CHIRPSTACK.run(link(broker), context.context)):
        await until(lambda: context.counts["connects"])
        await publish(
            broker,
            (
                f"{root}/status",
                json.dumps({**info, "deduplicationId": "a", "batteryLevel": 88.3, "margin": 10}).encode(),
            ),
            (f"{root}/log", json.dumps({**info, "level": "ERROR", "code": "UPLINK_MIC"}).encode()),
        )
        await until(lambda: context.notes.get("node"))
    assert [s.values() for s in context.sets] == [{"battery_level": 88.3}]
    assert "UPLINK_MIC" in context.notes["node"][0]


async def test_devices_that_are_not_configured_are_counted_and_named(broker: Mosquitto) -> None:
    context = HeldContext()
    async with running(CHIRPSTACK.run(link(broker), context.context)):
        await until(lambda: context.counts["connects"])
        await publish(broker, event(1, "a840410000000001"), event(2, "a840410000000001"))
        await until(lambda: context.counts["unknown_devices"] == 2)
    assert "a840410000000001 (2x)" in context.notes[""][0]
    assert context.sets == []


async def test_a_payload_that_cannot_be_read_keeps_the_uplink_and_names_the_device(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    async with running(CHIRPSTACK.run(link(broker), context.context)):
        await until(lambda: context.counts["connects"])
        await publish(broker, event(1, data="AQ=="), event(2))
        await until(lambda: len(context.sets) == 2)
    assert set(context.sets[0].values()) == {"rssi", "snr", "spreading_factor"}
    assert counts(context) == [2]
    assert "node" in str(context.rejected[0])
    assert context.total("payload_errors") == 1


async def test_the_servers_own_decoding_is_taken_where_the_template_says_so(broker: Mosquitto) -> None:
    made = template({"kind": "object", "fields": {"t": "probes[0].temp"}}, t="temperature", humidity="humidity")
    context = HeldContext()
    context.automatic = True
    async with running(CHIRPSTACK.run(link(broker, {"n": {"template": made, "dev_eui": EUI}}), context.context)):
        await until(lambda: context.counts["connects"])
        await publish(broker, event(1, object={"probes": [{"temp": 21.5}], "humidity": None, "other": "x"}))
        await until(lambda: context.sets)
    [readings] = context.sets
    assert readings.values() | {} == {"t": 21.5, "other": "x", "rssi": -60, "snr": 9.5, "spreading_factor": 7}
    [missing] = [r for r in readings.readings if r.point == "humidity"]
    assert (missing.value, missing.reason) == (None, Reason.NOT_AVAILABLE)


async def test_a_level_becomes_how_full_the_container_is(broker: Mosquitto) -> None:
    device = {
        "template": TEMPLATES["milesight/em400-udl"],
        "dev_eui": EUI,
        "container": {"empty": "2.0 m", "full": "500 mm"},
    }
    context = HeldContext()
    context.automatic = True
    async with running(CHIRPSTACK.run(link(broker, {"bin": device}), context.context)):
        await until(lambda: context.counts["connects"])
        payloads = [b"\x04\x82" + mm.to_bytes(2, "little") for mm in (2000, 1250, 500, 100, 3000)]
        await publish(broker, *(chirpstack_event(_Sent(EUI, n, 85, p, NOON)) for n, p in enumerate(payloads)))
        await until(lambda: len(context.sets) == 5)
    assert [s.values()["fill_level"] for s in context.sets] == [0.0, 50.0, 100.0, 100.0, 0.0]


async def test_a_device_that_should_have_spoken_is_reported_silent(broker: Mosquitto) -> None:
    device = {"template": counter_template(), "dev_eui": EUI, "every": "10 s"}

    class Ahead(HeldContext):
        pass

    context = Ahead()
    context.automatic = True
    start_s = context.clock.monotonic_s()
    fast = context.context
    object.__setattr__(fast, "monotonic_s", lambda: start_s + (context.clock.monotonic_s() - start_s) * 300)
    object.__setattr__(fast, "sleep", lambda seconds: asyncio.sleep(min(seconds, 0.02)))
    async with running(CHIRPSTACK.run(link(broker, {"node": device}), fast)):
        await until(lambda: context.sets)
    [silence] = context.sets[:1]
    assert {r.reason for r in silence.readings} == {Reason.TIMEOUT}
    assert "node" in context.notes


async def test_without_a_broker_the_link_says_where_it_looked() -> None:
    config = ChirpstackLink.model_validate(
        {"driver": "chirpstack", "url": f"mqtt://127.0.0.1:{free_port()}", "devices": {}}
    )
    with pytest.raises(LinkError, match="cannot connect to broker mqtt://127"):
        await CHIRPSTACK.run(config, HeldContext().context)


async def test_a_broker_that_refuses_the_login_is_named(tmp_path: Path) -> None:
    refusing = mosquitto(tmp_path, "allow_anonymous false\n")
    with refusing as broker, pytest.raises(LinkError, match=r"refuses.*check username"):
        await CHIRPSTACK.run(link(broker), HeldContext().context)


# paho leaves the socket of a failed handshake to the garbage collector, which closes it at once
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
async def test_a_broker_with_mutual_tls_is_served_and_without_a_certificate_refused(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    tls = f"cafile {tmp_path}/ca.pem\ncertfile {tmp_path}/server.pem\nkeyfile {tmp_path}/server.key\nrequire_certificate true\n"
    files: dict[str, Any] = {
        "ca_file": f"{tmp_path}/ca.pem",
        "cert_file": f"{tmp_path}/client.pem",
        "key_file": f"{tmp_path}/client.key",
    }
    with mosquitto(tmp_path, tls) as broker:
        url = broker.url.replace("mqtt:", "mqtts:")
        context = HeldContext()
        async with running(CHIRPSTACK.run(link(broker, url=url, **files), context.context)):
            await until(lambda: context.counts["connects"])
        with pytest.raises(LinkError, match="mqtts://127"):
            await CHIRPSTACK.run(link(broker, url=url, ca_file=files["ca_file"]), HeldContext().context)
        with pytest.raises(LinkError, match=r"(?i)certificate"):
            await CHIRPSTACK.run(link(broker, url=url), HeldContext().context)
        with pytest.raises(LinkError, match="certificate files"):
            await CHIRPSTACK.run(link(broker, url=url, ca_file="/nowhere.pem"), HeldContext().context)


def make_certificates(folder: Path) -> None:
    """ca.pem, and server and client certificates signed by it, for 127.0.0.1."""
    ca_key, ca_name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")]),
    )
    now = datetime.now(UTC)

    def certificate(name: x509.Name, key: Any, *, ca: bool) -> x509.Certificate:
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(alternative, critical=False)
            .sign(ca_key, hashes.SHA256())
        )

    (folder / "ca.pem").write_bytes(certificate(ca_name, ca_key, ca=True).public_bytes(serialization.Encoding.PEM))
    for who in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who)])
        (folder / f"{who}.pem").write_bytes(certificate(name, key, ca=False).public_bytes(serialization.Encoding.PEM))
        (folder / f"{who}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


async def test_a_scan_reports_who_is_heard_and_guesses_the_template(broker: Mosquitto) -> None:
    found: list[dict[str, Any]] = []

    async def scan() -> None:
        async for said in CHIRPSTACK.scan({"url": broker.url, "for_s": 0.8}, HeldContext().context):
            found.append(said)

    async with running(scan()) as [task]:
        payload = bytes.fromhex("01755c0367010104824408050001")
        end = asyncio.get_running_loop().time() + 5
        n = 0
        while not task.done() and asyncio.get_running_loop().time() < end:
            n += 1
            await publish(broker, chirpstack_event(_Sent(EUI, n, 85, payload, NOON)))
            await asyncio.sleep(0.05)
        await task

    assert "progress" in found[0]
    [device] = [said["found"] for said in found if "found" in said]
    assert (device["dev_eui"], device["rssi"], device["f_port"]) == (EUI, -60, 85)
    assert device["count"] >= 2
    assert device["templates"][0] == "milesight/em400-udl"
