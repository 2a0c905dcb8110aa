"""What only one part of a box may have: two that give it are an error of `check`, with the real drivers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.config import advice
from gateway.config.explain import text as told
from gateway.plan import make_plan
from gateway.registry import Registry
from gateway.sdk.config import Claim, LinkConfig
from gateway.sdk.errors import ConfigError, Problem
from tests.gateway.test_plan import BASE
from tests.support.bench_driver import BenchLink, BenchRegistry

HEAD = "version: 1\ngateway: {id: gw-1, city: milano, location: [9.1590, 45.5030]}\nlinks:\n"
BIN = "{template: milesight/em400-udl, container: {empty: 2 m}, dev_eui: %s}"
METER = "{template: eastron/sdm120, unit_id: %d}"
KEY, OTHER = "0f" * 16, "1e" * 16
NODE = "{template: milesight/em500-smtc, activation: {abp: {dev_addr: %s, nwk_s_key: %s, app_s_key: %s}}}"
EUI = "24e124713d123456"


def problems_of(tmp_path: Path, *links: str, more: str = "", registry: Any = None) -> tuple[Problem, ...]:
    """The errors about two that take the same, and the warning about a copied line."""
    (tmp_path / "citygate.yaml").write_text(HEAD + "".join(f"  {link}\n" for link in links) + more)
    try:
        found = make_plan(tmp_path, registry or Registry()).warnings
    except ConfigError as error:
        found = error.problems
    rest = [problem for problem in found if problem.severity == "error" and not problem.code.startswith("shared-")]
    assert rest == [], "\n".join(map(told, rest))
    return tuple(problem for problem in found if problem.code.startswith("shared-"))


def chirpstack(name: str, url: str, more: str = "", **devices: str) -> str:
    its = ", ".join(f"{device}: {BIN % eui}" for device, eui in devices.items())
    return f'{name}: {{driver: chirpstack, url: "{url}", {more}devices: {{{its}}}}}'


def modbus(name: str, where: str, **units: int) -> str:
    its = ", ".join(f"{device}: {METER % unit}" for device, unit in units.items())
    return f"{name}: {{driver: modbus, {where}, devices: {{{its}}}}}"


def concentrator(name: str, where: str = "", **sessions: tuple[str, str]) -> str:
    its = ", ".join(f"{device}: {NODE % (addr, key, KEY)}" for device, (addr, key) in sessions.items())
    return f"{name}: {{driver: semtech-udp, {where}devices: {{{its}}}}}"


def modem(name: str, setup: str, address: int) -> str:
    device = f"{name}-node: {{template: milesight/em500-smtc, address: {address}}}"
    return f"{name}: {{driver: lora-modem, port: /dev/{name}, modem: rylr, setup: [{setup}], devices: {{{device}}}}}"


URL = "mqtt://broker.example"
ID = "client_id: roof, "
SAME = {
    "client id": (chirpstack("a", URL, ID), chirpstack("b", URL, ID), "shared-session", "b.client_id"),
    "client id, one broker written differently": (
        chirpstack("a", URL, ID), chirpstack("b", "mqtt://BROKER.example.:1883", ID), "shared-session", "b.client_id",
    ),
    "client id, of two kinds of server": (
        chirpstack("a", "mqtt://[::1]", ID), f'b: {{driver: tts, url: "mqtt://[0:0::1]:1883", {ID}devices: {{}}}}',
        "shared-session", "b.client_id",
    ),
    "client id, localhost": (
        chirpstack("a", "mqtt://localhost", ID), chirpstack("b", "mqtt://127.0.0.1", ID), "shared-session", "b.client_id",
    ),
    "DevEUI at two servers": (
        chirpstack("a", URL, one=EUI), chirpstack("b", "mqtt://other.example", two="24:E1:24:71:3D:12:34:56"),
        "shared-device", "b.devices.two.dev_eui",
    ),
    "DevEUI within a link": (
        chirpstack("a", URL, one=EUI, two=EUI.upper()), "", "shared-device", "a.devices.two.dev_eui",
    ),
    "UDP port": (concentrator("a"), concentrator("b", "host: localhost, "), "shared-listener", "b"),
    "UDP port at every address": (
        concentrator("a", "port: 1701, "), concentrator("b", "host: 0.0.0.0, port: 1701, "), "shared-listener", "b.port",
    ),
    "session of the air": (
        concentrator("a", one=("260112ab", KEY)), concentrator("b", "port: 1701, ", two=("2601-12AB", KEY)),
        "shared-device", "b.devices.two.activation.abp.dev_addr",
    ),
    "session of the air within a link": (
        concentrator("a", one=("260112ab", KEY), two=("260112ab", KEY)), "",
        "shared-device", "a.devices.two.activation.abp.dev_addr",
    ),
    "sender of modems that are set up alike": (
        modem("a", "AT+NETWORKID=6", 5), modem("b", "at+networkid=6", 5), "shared-device", "b.devices.b-node.address",
    ),
    "unit": (
        modbus("a", "host: 192.0.2.17", one=1), modbus("b", "host: 192.0.2.17, port: 502", two=1, three=2),
        "shared-device", "b.devices.two.unit_id",
    ),
    "unit, host in capitals": (
        modbus("a", "host: PLC.example, framing: rtu, port: 4196", one=1),
        modbus("b", "host: plc.example, framing: rtu, port: 4196", two=1),
        "shared-device", "b.devices.two.unit_id",
    ),
    "unit, TLS": (
        modbus("a", "host: plc.example, tls: {}", one=1), modbus("b", "host: plc.example, port: 802", two=1),
        "shared-device", "b.devices.two.unit_id",
    ),
    "serial port of two drivers": (
        modbus("a", "port: /dev/ttyAMA0", one=1), "b: {driver: serial, port: /dev/../dev/ttyAMA0, devices: {two: {template: nova/sds011}}}",
        "shared-port", "b.port",
    ),
    "adapter by its numbers": (
        modbus("a", "port: usb:1a86:7523@1-1", one=1), modbus("b", "port: USB:1A86:7523@1-1", two=1), "shared-port", "b.port",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAME)
def test_what_two_take_is_one_error_at_the_second(tmp_path: Path, kind: str) -> None:
    one, other, code, path = SAME[kind]

    [problem] = problems_of(tmp_path, one, *([other] if other else []))

    assert (problem.code, problem.severity, ".".join(map(str, problem.path[1:]))) == (code, "error", path) or (
        kind == "UDP port" and problem.code == code
    )
    assert problem.line == (5 if other else 4)
    assert problem.remedy
    assert KEY not in told(problem)


DIFFERENT = {
    "the default client id": (chirpstack("a", URL), chirpstack("b", URL)),
    "one client id at two brokers": (chirpstack("a", URL, ID), chirpstack("b", "mqtt://other.example", ID)),
    "one client id at two ports": (chirpstack("a", URL, ID), chirpstack("b", f"{URL}:1884", ID)),
    "client ids by their capitals": (chirpstack("a", URL, ID), chirpstack("b", URL, "client_id: Roof, ")),
    "two addresses, one UDP port": (concentrator("a", "host: 127.0.0.1, "), concentrator("b", "host: 127.0.0.2, ")),
    "a DevAddr with two keys": (
        concentrator("a", one=("260112ab", KEY), three=("260112ab", OTHER)), concentrator("b", "port: 1701, ", two=("260112ab", "3c" * 16)),
    ),
    "modems of which nobody knows the network": (modem("a", "", 5), modem("b", "", 5)),
    "modems of two networks": (modem("a", "AT+NETWORKID=6", 5), modem("b", "AT+NETWORKID=7", 5)),
    "one gateway, two links, different units": (modbus("a", "host: 192.0.2.17", one=1), modbus("b", "host: 192.0.2.17", two=2)),
    "one unit id at two ports of a host": (modbus("a", "host: 192.0.2.17", one=1), modbus("b", "host: 192.0.2.17, port: 503", two=1)),
    "one unit id on two lines": (modbus("a", "port: /dev/ttyAMA0", one=1), modbus("b", "port: /dev/ttyAMA1", two=1)),
    "two adapters of one make": (modbus("a", "port: usb:1a86:7523@1-1", one=1), modbus("b", "port: usb:1a86:7523@1-2", two=1)),
    "UDP and TCP": (concentrator("a", "port: 8580, "), "b: {driver: semtech-udp, port: 8581}"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_is_not_the_same_is_left_alone(tmp_path: Path, kind: str) -> None:
    assert problems_of(tmp_path, *DIFFERENT[kind]) == ()


def test_keys_that_are_not_known_here_tell_devices_of_one_address_apart_by_their_names(tmp_path: Path) -> None:
    def found(*names: str) -> list[str]:
        link = concentrator("a", one=("01020304", f"!secret {names[0]}"), two=("01020304", f"!secret {names[1]}"))
        (tmp_path / "citygate.yaml").write_text(f"{HEAD}  {link}\n")
        try:
            return [
                p.code
                for p in make_plan(tmp_path, Registry(), with_secrets=False).warnings
                if p.code != "clear-text-secret"
            ]
        except ConfigError as error:
            return [problem.code for problem in error.problems if problem.code != "clear-text-secret"]

    assert (found("k1", "k2"), found("k1", "k1")) == ([], ["shared-device"])


def test_a_unit_that_two_templates_of_one_link_read_is_only_warned_about(tmp_path: Path) -> None:
    [problem] = problems_of(tmp_path, modbus("a", "host: 192.0.2.17", one=1, two=1))
    assert (problem.code, problem.severity) == ("shared-address", "warning")


def test_the_messages_name_device_link_and_what_happens(tmp_path: Path) -> None:
    [twice] = problems_of(tmp_path, chirpstack("a", URL, one=EUI), chirpstack("b", URL, two=EUI))
    [one_link] = problems_of(tmp_path, chirpstack("a", URL, one=EUI, two=EUI))
    [session] = problems_of(tmp_path, chirpstack("a", URL, ID), chirpstack("b", URL, ID))

    assert twice.message == f"DevEUI {EUI} is one of link a too: it would be read twice, under two names"
    assert one_link.message == f"DevEUI {EUI} is one too: only one of them would get what it sends"
    assert (
        session.message == "client id roof at broker.example:1883 is that of link a too: each would throw the other out"
    )


def test_three_that_take_the_same_are_two_errors(tmp_path: Path) -> None:
    found = problems_of(tmp_path, *(chirpstack(name, URL, **{f"d{name}": EUI}) for name in "abc"))
    assert [problem.path[1] for problem in found] == ["b", "c"]


URLS = {
    "mqtt://broker.example:0": "0",
    "mqtt://broker.example:65536": "65536",
    "mqtt://broker.example:99999": "99999",
    "mqtts://[::1]:88888": "88888",
    "mqtt://broker.example:x": "x",
    "mqtt://broker.example:1883:1883": "1883:1883",
    "mqtt://:1883": "host",
    "mqtt://[::1": "address",
    "mqtt://-broker-": "host name",
    "mqtt://1.2.3": "host name",
}


@pytest.mark.parametrize("url", URLS)
def test_an_address_that_no_broker_can_have_is_an_error(tmp_path: Path, url: str) -> None:
    (tmp_path / "citygate.yaml").write_text(f"{HEAD}  {chirpstack('a', url)}\n")
    with pytest.raises(ConfigError) as error:
        make_plan(tmp_path, Registry())
    [problem] = error.value.problems
    assert problem.path == ("links", "a", "url")
    assert URLS[url] in problem.message


def test_a_driver_that_cannot_say_what_it_takes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def claims(_self: object) -> Iterator[Claim]:
        yield Claim("port", "/dev/x", ("port",))
        raise KeyError("devices")

    monkeypatch.setattr(BenchLink, "claims", claims)
    (tmp_path / "citygate.yaml").write_text(BASE)
    with pytest.raises(ConfigError) as error:
        make_plan(tmp_path, BenchRegistry())
    assert ("driver-fault", ("links", "roof")) in {(problem.code, problem.path) for problem in error.value.problems}


def test_thousands_of_devices_are_compared_at_once(tmp_path: Path) -> None:
    class Many(LinkConfig):
        def claims(self) -> Iterator[Claim]:
            return (Claim("device", f"unit {n}", ("devices", str(n))) for n in range(100_000))

    found = list(advice._claims(_Nothing(), {name: list(Many(driver="x").claims()) for name in "ab"}))  # type: ignore[arg-type]
    assert len(found) == 100_000


class _Nothing:
    config = None
