"""Messages that hurt, brokers that refuse, sessions that are shared: what the link does and what a person is told."""

import asyncio
import contextlib
import dataclasses
import json
import os
import pty
import select
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from drivers.lora.config import ChirpstackLink, TtsLink
from drivers.lora.driver import CHIRPSTACK, TTS
from drivers.lora.inbox import default_client_id
from gateway.sdk.driver import Context
from gateway.sdk.errors import LinkError
from gateway.sdk.reading import TimeSource
from gateway.sdk.testing import NOON
from tests.drivers.lora.support import HeldContext, counter_template, running, supervised, template, until
from tests.drivers.lora.test_servers_flow import EUI, broker, counts, event, link, make_certificates, publish
from tests.support.mosquitto import Mosquitto, mosquitto

__all__ = ["broker"]  # a fixture

UP = f"application/sim/device/{EUI}/event/up"
TIMES = ["0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "1969-12-31T23:59:59Z"]


def poison() -> list[tuple[str, bytes]]:
    """Messages of a configured device, each of a kind that once ended a link."""
    changed: list[dict[str, Any]] = [
        *({"time": at} for at in TIMES), *({"time": None, "rxInfo": [{"time": at}]} for at in TIMES),
        {"deduplicationId": "\ud800"}, {"deduplicationId": ["\udfff"] * 9}, {"devAddr": "\ud800"}, {"fCnt": 2**64}, {"fCnt": -1},
        {"rxInfo": [[[]]]}, {"txInfo": 7}, {"data": "\ud800"}, {"object": {"\ud800": "\udfff"}}, {"fPort": 10**400}, {"rxInfo": [{"rssi": "9" * 5000}]},
    ]  # fmt: skip
    bodies = [event(9000 + n, **fields)[1] for n, fields in enumerate(changed)]
    deep = b'{"devEUI": "%s", "object": %s}' % (EUI.encode(), b"[" * 980 + b"]" * 980)
    return [(UP, body) for body in (*bodies, deep, b"[" * 100_000, b'{"fCnt": %s}' % (b"9" * 5000))]


async def test_poison_costs_itself_and_is_acknowledged(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    messages = poison()
    async with running(CHIRPSTACK.run(link(broker), context.context)) as [task]:
        await until(lambda: context.ups)
        for n, message in enumerate(messages):
            await publish(broker, message, event(n))
        await until(lambda: counts(context)[-1:] == [len(messages) - 1])
        assert not task.done()
        await asyncio.sleep(0.2)  # for the acknowledgements to leave
    assert [n for n in counts(context) if n < 9000] == list(range(len(messages)))
    assert context.counts["connects"] == 1

    again = HeldContext()
    async with running(CHIRPSTACK.run(link(broker), again.context)):
        await until(lambda: again.ups)
        await publish(broker, event(len(messages)))
        await until(lambda: again.sets)
    assert counts(again) == [len(messages)], "nothing is delivered again"


async def test_what_breaks_behind_the_decoder_costs_one_message_and_is_acknowledged(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    real = context.context

    async def emit(readings: Any) -> Any:
        if readings.values().get("count") in (2, 3):
            raise TypeError("not expected")
        return await real.emit(readings)

    async with running(CHIRPSTACK.run(link(broker), dataclasses.replace(real, emit=emit))):
        await until(lambda: context.ups)
        await publish(broker, *(event(n) for n in range(6)))
        await until(lambda: counts(context) == [0, 1, 4, 5])
        await asyncio.sleep(0.2)  # for the acknowledgements to leave
    assert [type(refused.__cause__) for refused in context.rejected] == [TypeError] * 2
    assert EUI in context.rejected[0].message

    again = HeldContext()
    async with running(CHIRPSTACK.run(link(broker), again.context)):
        await until(lambda: again.ups)
        await publish(broker, event(6))
        await until(lambda: again.sets)
    assert counts(again) == [6]


@pytest.mark.parametrize(("driver", "model"), [(CHIRPSTACK, ChirpstackLink), (TTS, TtsLink)])
async def test_a_server_that_writes_protobuf_is_named_with_the_remedy(
    driver: Any, model: Any, broker: Mosquitto
) -> None:
    devices = {"node": link(broker).devices["node"]}
    config = model.model_validate({"driver": driver.name, "url": broker.url, "client_id": "pb", "devices": devices})
    topic = UP if driver is CHIRPSTACK else "v3/app@ttn/devices/d/up"
    context = HeldContext()
    async with running(driver.run(config, context.context)):
        await until(lambda: context.ups)
        await publish(broker, *((topic, bytes.fromhex("0a2435666563") + os.urandom(40)) for _ in range(5)))
        await until(lambda: len(context.rejected) == 5)
    assert {refused.message for refused in context.rejected} == {"not JSON"}
    [remedy] = set(context.remedies)
    assert "json = true" in remedy if driver is CHIRPSTACK else "JSON" in remedy


# --- retained


async def retain(broker: Mosquitto, topic: str, body: bytes) -> None:
    import paho.mqtt.publish

    port = broker.port
    await asyncio.to_thread(paho.mqtt.publish.single, topic, body, qos=1, retain=True, hostname="127.0.0.1", port=port)


def at_its_time(n: int, at: datetime | None) -> bytes:
    """The nth uplink, received at `at`, or without any time."""
    body = {**json.loads(event(n)[1]), "time": at.isoformat() if at else None}
    for heard in body.get("rxInfo", ()):
        heard.pop("time", None)
        heard.pop("gwTime", None)
    return json.dumps(body).encode()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("ago", [None, timedelta(days=2), timedelta(days=7000)])
async def test_a_retained_uplink_of_another_day_is_never_published_as_now(
    ago: timedelta | None, protocol: str, broker: Mosquitto
) -> None:
    await retain(broker, UP, at_its_time(1, NOON - ago if ago else None))
    context = HeldContext()
    context.automatic = True
    for n in (1, 2):  # 3.1.1 sends it at every subscription
        async with running(CHIRPSTACK.run(link(broker, protocol=protocol), context.context)):
            await until(lambda: context.ups)
            await publish(broker, event(2))
            await until(lambda n=n: context.total("duplicates") >= n - 1 and context.sets)  # type: ignore[misc]
            if protocol == "3.1.1":
                await until(lambda n=n: context.counts["retained_left_out"] == n)  # type: ignore[misc]
    assert counts(context) == [2]
    if protocol == "3.1.1":
        assert "retained events" in context.notes[""][0]


async def test_a_retained_uplink_of_today_counts_once_with_its_own_time_over_restarts(broker: Mosquitto) -> None:
    at = NOON - timedelta(hours=3)
    await retain(broker, UP, at_its_time(1, at))
    context = HeldContext()
    context.automatic = True
    for n in range(3):
        async with running(CHIRPSTACK.run(link(broker, protocol="3.1.1"), context.context)):
            await until(lambda n=n: context.total("duplicates") >= n and context.sets)  # type: ignore[misc]
        later = HeldContext()
        later.state.update(context.state)
    first = context.sets[0].readings[0]
    assert counts(context) == [1]
    assert (first.observed_at, first.time_source) == (at, TimeSource.NETWORK)


async def test_a_retained_uplink_older_than_what_was_had_is_a_repeat_however_many_came_since(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    config = link(broker, protocol="3.1.1")
    async with running(CHIRPSTACK.run(config, context.context)):
        await until(lambda: context.ups)
        await publish(broker, *(event(n) for n in range(50)))
        await until(lambda: len(counts(context)) == 50)
        await retain(broker, UP, event(30)[1])
        await until(lambda: context.total("duplicates"))
        await asyncio.sleep(0.2)  # for the acknowledgements to leave
    again = HeldContext()
    again.state.update(context.state)
    again.automatic = True
    async with running(CHIRPSTACK.run(config, again.context)):
        await until(lambda: again.total("duplicates"))
        await publish(broker, event(50))
        await until(lambda: counts(again))
    assert counts(again) == [50]
    [readings] = [s for s in again.sets if s.readings]
    assert readings.values()["lost_uplinks"] == 0


# --- remarks


def hurried(context: HeldContext, times: float) -> Context:
    """The context on a clock that runs so many times as fast."""
    start_s = context.clock.monotonic_s()
    return dataclasses.replace(
        context.context,
        monotonic_s=lambda: start_s + (context.clock.monotonic_s() - start_s) * times,
        sleep=lambda seconds: asyncio.sleep(min(seconds, 0.02)),
    )


async def test_a_link_that_is_subscribed_and_hears_nothing_says_so_until_it_does(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    async with running(CHIRPSTACK.run(link(broker, application="a1"), hurried(context, 2000))):
        await until(lambda: context.notes.get(""))
        assert context.ups == 1, "the link itself works"
        text, remedy = context.notes[""]
        assert "application/a1/device/+/event/+" in text
        assert "nothing was published" in text
        assert "application" in remedy
        topic, body = event(1)
        await publish(broker, (topic.replace("application/sim", "application/a1"), body))
        await until(lambda: context.sets)
        await until(lambda: "nothing was published" not in context.notes.get("", ("",))[0])


async def test_a_remark_about_a_payload_is_taken_back_by_the_next_that_is_read(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    async with running(CHIRPSTACK.run(link(broker), context.context)):
        await until(lambda: context.ups)
        await publish(broker, event(1, data="AQ=="))
        await until(lambda: "not (wholly) read" in context.notes.get("node", ("",))[0])
        await publish(broker, event(2))
        await until(lambda: not context.notes)


async def test_what_the_server_says_of_a_device_stands_a_while_and_then_goes(broker: Mosquitto) -> None:
    context = HeldContext()
    context.automatic = True
    info = {"deviceInfo": {"devEui": EUI}, "level": "ERROR", "code": "UPLINK_CODEC\n\ud800"}
    async with running(CHIRPSTACK.run(link(broker), hurried(context, 100))):
        await until(lambda: context.ups)
        await publish(broker, (UP.replace("/up", "/log"), json.dumps(info).encode()), event(1))
        await until(lambda: context.sets)
        assert context.notes["node"][0] == "the network server says: ERROR UPLINK_CODEC ?"
        await asyncio.sleep(1)
        await publish(broker, event(2))
        await until(lambda: not context.notes)


# --- sessions


def test_the_default_client_id_is_stable_and_shared_by_no_two_links(broker: Mosquitto) -> None:
    def made(name: str = "roof", **more: Any) -> str:
        return default_client_id(link(broker, client_id="", **more), name)

    others = [
        made("cellar"),
        made(application="a1"),
        made(application="b1"),
        made(topic_prefix="eu868/"),
        made(url="mqtt://other"),
    ]
    assert made() == made()
    assert len({made(), *others}) == 1 + len(others)


async def test_two_links_without_a_client_id_do_not_take_each_others_uplinks(broker: Mosquitto) -> None:
    other = "24e124713d999999"
    one, two = HeldContext(), HeldContext()
    one.automatic = two.automatic = True
    first, second = (
        link(broker, {"node": {"template": counter_template(), "dev_eui": eui}}, client_id="") for eui in (EUI, other)
    )
    async with running(
        CHIRPSTACK.run(first, dataclasses.replace(one.context, link="one")),
        CHIRPSTACK.run(second, dataclasses.replace(two.context, link="two")),
    ):
        await until(lambda: one.ups and two.ups)
        await publish(broker, *(event(n, eui) for n in range(20) for eui in (EUI, other)))
        await until(lambda: len(counts(one)) == 20 and len(counts(two)) == 20)


async def test_a_read_without_a_daemon_takes_nothing_from_the_daemons_session(broker: Mosquitto) -> None:
    daemon = HeldContext()
    daemon.automatic = True
    async with running(CHIRPSTACK.run(link(broker), daemon.context)):
        await until(lambda: daemon.ups)
    strangers = [event(n, "24e124713d999999") for n in range(3)]
    await publish(broker, event(1), *strangers, event(2))
    reader = HeldContext()
    async with running(CHIRPSTACK.run(link(broker), dataclasses.replace(reader.context, link=""))):
        await until(lambda: reader.ups)
        await publish(broker, event(3))
        await until(lambda: reader.sets)
    assert counts(reader) == [3]
    async with running(CHIRPSTACK.run(link(broker), daemon.context)):
        await until(lambda: counts(daemon)[-1:] == [3])
    assert counts(daemon) == [1, 2, 3]
    assert daemon.counts["unknown_devices"] == 3


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_client_id_that_two_share_is_named(protocol: str, broker: Mosquitto) -> None:
    said: dict[str, list[str]] = {"one": [], "two": []}

    def served(name: str) -> Callable[[], Awaitable[None]]:
        context = HeldContext()

        async def run() -> None:
            try:
                await CHIRPSTACK.run(link(broker, client_id=f"shared-{protocol}", protocol=protocol), context.context)
            except LinkError as error:
                said[name].append(str(error))
                raise

        return run

    async with running(supervised(served("one")), supervised(served("two"))):
        await until(lambda: any("another client" in text for texts in said.values() for text in texts))
    named = next(text for texts in said.values() for text in texts if "another client" in text)
    assert f"client id shared-{protocol}" in named
    assert "set another client_id" in named


async def test_a_broker_that_restarts_once_is_no_second_client(broker: Mosquitto) -> None:
    context = HeldContext()
    served = asyncio.create_task(CHIRPSTACK.run(link(broker, client_id="alone"), context.context))
    await until(lambda: context.ups)
    await asyncio.to_thread(broker.stop)
    with pytest.raises(LinkError, match="closed the connection") as lost:
        await served
    assert "another client" not in str(lost.value)


# --- brokers that refuse


@contextlib.asynccontextmanager
async def fake_broker(*answers: bytes | None) -> AsyncIterator[str]:
    """A broker that answers each packet with the next of these bytes; None closes. Its url."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for answer in answers:
                if answer is None or not await reader.read(4096):
                    return
                writer.write(answer)
            await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"


OK5, OK3 = bytes((0x20, 3, 0, 0, 0)), bytes((0x20, 2, 0, 0))


@pytest.mark.parametrize(
    ("protocol", "answers", "words"),
    [
        ("5", [None], "closed the connection without answering.*mqtts.*MQTT 5.*client id test"),
        ("3.1.1", [None], "closed the connection without answering.*MQTT 3.1.1"),
        ("5", [bytes((0x20, 3, 0, 0x86, 0))], "Bad user name or password; check username and password$"),
        ("3.1.1", [bytes((0x20, 2, 0, 4))], "Bad user name or password; check username and password$"),
        ("5", [bytes((0x20, 3, 0, 0x87, 0))], "Not authorized; it knows no such user.*ACL"),
        ("3.1.1", [bytes((0x20, 2, 0, 5))], "Not authorized; it knows no such user"),
        ("3.1.1", [bytes((0x20, 2, 0, 2))], "identifier not valid; .*set client_id"),
        ("3.1.1", [bytes((0x20, 2, 0, 1))], "whether it speaks MQTT 3.1.1"),
        ("5", [bytes((0x20, 3, 0, 0x8A, 0))], "Banned; an administrator"),
        ("5", [OK5, bytes((0x90, 7, 0, 1, 0, 0x87, 1, 1, 1))], r"refuses application/\+/device/\+/event/\+: Not authorized; its ACL"),
        ("3.1.1", [OK3, bytes((0x90, 6, 0, 1, 0x80, 1, 1, 1))], "its ACL must let this user read"),
        ("5", [OK5, bytes((0x90, 7, 0, 1, 0, 1, 1, 1, 1)) + bytes((0xE0, 2, 0x8E, 0))], "another client connects with the client id test"),
        ("5", [b"\x20\x7f" + b"\xff" * 127], "MQTT"),
        ("5", [OK3], "whether it speaks MQTT 5"),
        ("5", [OK5, bytes((0x90, 2, 0, 1))], "closed the connection: Protocol error"),
        ("5", [b"HTTP/1.1 400 Bad Request\r\n\r\n", None], "whether it speaks MQTT 5"),
    ],
)  # fmt: skip
async def test_what_a_broker_refuses_is_said_with_a_remedy(
    protocol: str, answers: list[bytes | None], words: str
) -> None:
    async with fake_broker(*answers) as url, asyncio.timeout(60):
        config = link(_At(url), protocol=protocol)  # type: ignore[arg-type]
        with pytest.raises(LinkError, match=words):
            await CHIRPSTACK.run(config, HeldContext().context)


@dataclasses.dataclass
class _At:
    url: str


async def test_a_refused_topic_of_an_older_server_does_not_stop_the_link() -> None:
    context = HeldContext()
    answers = (OK5, bytes((0x90, 7, 0, 1, 0, 1, 0x87, 0x87, 0x87)))
    async with fake_broker(*answers) as url, running(CHIRPSTACK.run(link(_At(url)), context.context)):  # type: ignore[arg-type]
        await until(lambda: context.ups)


async def test_a_topic_that_is_no_text_costs_its_message() -> None:
    context = HeldContext()
    bad_topic = bytes((0x32, 7, 0, 1, 0xFF, 0, 7, 0, 0x61))
    answers = (OK5, bytes((0x90, 7, 0, 1, 0, 1, 1, 1, 1)) + bad_topic + bad_topic)
    async with fake_broker(*answers) as url, running(CHIRPSTACK.run(link(_At(url)), context.context)):  # type: ignore[arg-type]
        await until(lambda: len(context.rejected) == 2)


async def test_a_wrong_password_and_an_unknown_user_are_told_apart_from_a_missing_right(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("user nobody\ntopic read other/#\n")
    with mosquitto(tmp_path, f"acl_file {tmp_path}/acl\n") as broker:
        context = HeldContext()
        async with running(CHIRPSTACK.run(link(broker), hurried(context, 2000))):
            await until(lambda: context.notes.get(""))  # mosquitto lets us subscribe and keeps the events back
            assert "may read the topic" in context.notes[""][1]


# --- TLS


pytest_tls = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")


def certificate(folder: Path, *, name: str, days: tuple[int, int]) -> str:
    """mosquitto's lines for a server certificate of this name, valid from and until so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "own.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "own.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return f"certfile {folder}/own.pem\nkeyfile {folder}/own.key\n"


@pytest_tls
@pytest.mark.parametrize(
    ("name", "days", "trusted", "words"),
    [
        ("localhost", (-2, 9), True, None),
        ("other.example", (-2, 9), True, "is for another name than localhost: write the url"),
        ("localhost", (-9, -2), True, "expired; renew"),
        ("localhost", (2, 9), True, "not yet valid; renew.*clock"),
        ("localhost", (-2, 9), False, "signed by nobody this box knows: set ca_file"),
    ],
)
async def test_what_is_wrong_with_a_certificate_is_said(
    name: str, days: tuple[int, int], trusted: bool, words: str | None, tmp_path: Path
) -> None:
    with mosquitto(tmp_path, certificate(tmp_path, name=name, days=days)) as broker:
        ca: dict[str, Any] = {"ca_file": f"{tmp_path}/own.pem"} if trusted else {}
        config = link(broker, url=f"mqtts://localhost:{broker.port}", **ca)
        context = HeldContext()
        if words is None:
            async with running(CHIRPSTACK.run(config, context.context)):
                await until(lambda: context.ups)
            return
        with pytest.raises(LinkError, match=words):
            await CHIRPSTACK.run(config, context.context)


@pytest_tls
async def test_tls_at_a_port_that_speaks_none_and_the_reverse_are_said(broker: Mosquitto, tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="does the broker speak TLS at this port"):
        await CHIRPSTACK.run(link(broker, url=broker.url.replace("mqtt:", "mqtts:")), HeldContext().context)
    (tmp_path / "tls").mkdir()
    secured = mosquitto(tmp_path / "tls", certificate(tmp_path / "tls", name="localhost", days=(-2, 9)))
    with secured as secure, pytest.raises(LinkError, match="without answering; check whether it speaks TLS there"):
        await CHIRPSTACK.run(link(secure), HeldContext().context)


def encrypted(folder: Path) -> dict[str, Any]:
    """A client certificate whose key needs the password `let me in`."""
    make_certificates(folder)
    key = serialization.load_pem_private_key((folder / "client.key").read_bytes(), None)
    (folder / "locked.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"let me in"),
        )
    )
    return {"cert_file": f"{folder}/client.pem", "key_file": f"{folder}/locked.key", "ca_file": f"{folder}/ca.pem"}


@pytest_tls
async def test_an_encrypted_key_needs_its_password_and_nothing_is_asked_on_a_terminal(tmp_path: Path) -> None:
    files = encrypted(tmp_path)
    tls = f"cafile {tmp_path}/ca.pem\ncertfile {tmp_path}/server.pem\nkeyfile {tmp_path}/server.key\nrequire_certificate true\n"
    with mosquitto(tmp_path, tls) as broker:
        url = broker.url.replace("mqtt:", "mqtts:")
        with pytest.raises(ValidationError, match="is encrypted: give key_password"):
            link(broker, url=url, **files)
        config = link(broker, url=url, **files, key_password="let me in")
        context = HeldContext()
        async with running(CHIRPSTACK.run(config, context.context)):
            await until(lambda: context.ups)
        with pytest.raises(LinkError, match="certificate files"):
            await CHIRPSTACK.run(link(broker, url=url, **files, key_password="wrong"), HeldContext().context)
        with pytest.raises(LinkError, match="is encrypted: give key_password"):  # encrypted after the config was loaded
            await CHIRPSTACK.run(config.model_copy(update={"key_password": ""}), HeldContext().context)


def test_a_terminal_is_never_asked_for_a_password(tmp_path: Path) -> None:
    files = encrypted(tmp_path)
    script = (
        "from drivers.lora.broker_words import tls_context\nfrom drivers.lora.config import ChirpstackLink\n"
        "from gateway.sdk.errors import LinkError\n"
        f"config = ChirpstackLink.model_construct(url='mqtts://x', key_password='', **{files!r})\n"
        "try:\n    tls_context(config)\nexcept LinkError as error:\n    print('SAID', error)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", script])
    seen = b""
    with contextlib.suppress(OSError):
        while select.select([terminal], [], [], 20)[0] and (data := os.read(terminal, 4096)):
            seen += data
            assert b"pass phrase" not in seen
    os.waitpid(pid, 0)
    os.close(terminal)
    assert b"SAID" in seen


def test_the_servers_own_check_of_names_is_on(tmp_path: Path) -> None:
    from drivers.lora.broker_words import tls_context

    context = tls_context(
        ChirpstackLink.model_construct(driver="chirpstack", url="mqtts://x", ca_file="", cert_file="", key_file="")
    )
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)


async def test_an_object_of_the_servers_older_marshaler_reaches_its_points(broker: Mosquitto) -> None:
    made = template({"kind": "object", "fields": {"t": "temperature"}}, t="temperature")
    context = HeldContext()
    context.automatic = True
    async with running(CHIRPSTACK.run(link(broker, {"n": {"template": made, "dev_eui": EUI}}), context.context)):
        await until(lambda: context.ups)
        await publish(broker, event(1, objectJSON=json.dumps({"temperature": 21.5})))
        await until(lambda: context.sets)
    assert context.sets[0].values()["t"] == 21.5
