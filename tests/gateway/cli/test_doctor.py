"""doctor: what it finds on a box, elsewhere, and how it ends."""

import asyncio
import os
import socket
import ssl
import tty
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.cli import doctor
from gateway.reach import certificate as certificate_of
from tests.gateway.cli.conftest import Command
from tests.support.box import Process, eventually, free_port
from tests.support.fake_view import FakeView


def config(folder: Path, links: str = "{}", brokers: str = "{}") -> Path:
    (folder / "citygate.yaml").write_text(
        "version: 1\ngateway: {id: gw-1, city: milano, location: [9.1, 45.5]}\n"
        f"buffer: {{path: {folder}/buffer.db, max_size: 10 MB}}\nlinks: {links}\nbrokers: {brokers}\nclock: {{trust: system}}\n"
    )
    return folder


def found(citygate: Command, folder: Path) -> tuple[int, dict[str, list[dict[str, str]]]]:
    ended = citygate("doctor", "-c", str(folder), "--json")
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in ended.json:
        assert set(finding) == {"check", "state", "message", "remedy"}
        by_check.setdefault(finding["check"], []).append(finding)
    return ended.code, by_check


def test_a_box_that_is_well_ends_with_0(citygate: Command, daemon: FakeView, folder: Path) -> None:
    code, findings = found(citygate, config(folder))
    assert code == 0, findings
    assert findings["daemon"][0]["message"].startswith("runs, version 0.1.0")
    assert findings["clock"][0]["state"] == "ok"


def test_a_clock_that_the_daemon_has_from_elsewhere_is_taken_at_its_word(
    citygate: Command, daemon: FakeView, folder: Path
) -> None:
    (folder / "citygate.yaml").write_text((config(folder) / "citygate.yaml").read_text().replace("clock:", "x-clock:"))
    daemon.shown["clock"] = {"state": "ok", "source": "gnss", "correction_s": 3600.0}
    _, findings = found(citygate, folder)
    [clock] = findings["clock"]
    assert clock["state"] == "ok"
    assert "as the daemon has it from gnss; the system's is 3600 s behind" in clock["message"]
    daemon.shown["clock"] = {"state": "unconfirmed", "source": "", "correction_s": 0.0}
    _, findings = found(citygate, folder)
    assert "daemon" not in findings["clock"][0]["message"]


def test_what_the_daemon_has_open_is_not_opened_beside_it(citygate: Command, daemon: FakeView, folder: Path) -> None:
    meters = "devices: {m: {template: eastron/sdm120, unit_id: 1, every: 1 s}}"
    links = f"{{roof: {{driver: modbus, host: 127.0.0.1, port: {free_port()}, {meters}}}}}"
    daemon.shown["links"]["roof"].update(state="bad", reason="nothing can be read", remedy="another speed")
    daemon.shown["log"]["path"] = str(folder / "card" / "buffer.db")
    (folder / "card").mkdir()
    code, findings = found(citygate, config(folder, links))
    [roof] = findings["roof"]
    assert (code, roof["state"], roof["remedy"]) == (0, "warn", "another speed")
    assert "in use by the daemon, link bad: nothing can be read" in roof["message"]
    assert findings["disk"][-1]["message"].startswith(str(folder / "card"))

    daemon.shown["links"]["roof"].update(state="down", reason="no answer", remedy="")
    code, findings = found(citygate, config(folder, links))
    assert (code, findings["roof"][0]["state"]) == (4, "unreachable")

    daemon.config_file = "/etc/another/citygate.yaml"  # its links of the same name are other links
    daemon.shown["links"]["roof"].update(state="ok", reason="", remedy="")

    async def reach(_: object) -> object:
        return {"milano": [{"check": "milano", "state": "ok", "message": "", "remedy": ""}]}

    daemon.verbs = {"reach": reach}
    broker = f"{{milano: {{url: 'http://127.0.0.1:{free_port()}'}}}}"
    code, findings = found(citygate, config(folder, links, broker))
    assert (code, findings["roof"][0]["state"], findings["daemon"][0]["state"]) == (4, "unreachable", "warn")
    assert findings["milano"][0]["state"] == "unreachable", "nor are its brokers"
    assert findings["disk"][-1]["message"].startswith(f"{folder}:")


def test_a_box_without_its_daemon_is_warned_about(citygate: Command, folder: Path) -> None:
    _, findings = found(citygate, config(folder))
    assert findings["daemon"][0]["state"] == "warn"
    assert "systemctl start" in findings["daemon"][0]["remedy"]


def test_a_broken_config_is_bad_and_the_box_is_looked_at_all_the_same(citygate: Command, tmp_path: Path) -> None:
    (tmp_path / "citygate.yaml").write_text("version: 1\n")
    code, findings = found(citygate, tmp_path)
    assert code == 1
    assert findings["config"][0]["state"] == "bad"
    assert "clock" in findings
    assert "daemon" in findings


def test_what_is_elsewhere_and_away_ends_with_4(citygate: Command, folder: Path) -> None:
    links = f"{{plant: {{driver: modbus, host: 127.0.0.1, port: {free_port()}, devices: {{m: {{template: eastron/sdm120, unit_id: 1, every: 1 s}}}}}}}}"
    brokers = f"{{milano: {{kind: ngsi-ld, url: 'http://127.0.0.1:{free_port()}'}}}}"
    code, findings = found(citygate, config(folder, links, brokers))
    assert code == 4
    for name in ("plant", "milano"):
        assert findings[name][0]["state"] == "unreachable"
        assert "refused" in findings[name][0]["message"]


def test_what_is_elsewhere_and_there_is_fine(citygate: Command, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        links = f"{{plant: {{driver: modbus, host: 127.0.0.1, port: {port}, devices: {{m: {{template: eastron/sdm120, unit_id: 1, every: 1 s}}}}}}}}"
        code, findings = found(citygate, config(folder, links))
    assert (code, findings["plant"][0]["state"]) == (0, "ok")


@pytest.fixture
def broker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a strict broker; of a product when the test names one."""
    more = ["--profile", request.param] if hasattr(request, "param") else []
    process = Process(tmp_path / "broker.out", "-m", "tests.support.strict_broker", "--port", "0", *more)
    yield f"http://127.0.0.1:{eventually('broker', lambda: process.text().split()[-1:])[0]}"
    process.end()


def test_a_broker_that_answers_is_told_with_what_it_can_do(citygate: Command, folder: Path, broker: str) -> None:
    code, findings = found(citygate, config(folder, brokers=f"{{milano: {{kind: ngsi-ld, url: '{broker}'}}}}"))
    assert code == 0
    assert [finding["state"] for finding in findings["milano"]] == ["ok"] * 4
    _, who, history, contexts = (finding["message"] for finding in findings["milano"])
    assert who == "a broker that does not tell its name answers as NGSI-LD; entities may be read"
    assert history == "history: a temporal API; whether it records by itself is found out at work"
    assert contexts == "fetches 1 context (where they are published)"


@pytest.mark.parametrize(
    ("broker", "more", "who", "history"),
    [
        ("scorpio", "", "Scorpio answers as NGSI-LD", "a temporal API; it records by itself, and what it forgot"),
        ("scorpio", ", tenant: new", "Scorpio answers as NGSI-LD", "shows with the first write, which makes the tenant new"),
        ("stellio", "", "Stellio answers as NGSI-LD", "a temporal API; it records by itself"),
        ("stellio", ", history: latest-only", "Stellio answers as NGSI-LD", "latest-only, as history: says"),
        ("orion-ld", "", "Orion-LD 1.8.0 answers as NGSI-LD", "in-order, as there is no temporal API"),
    ],
    indirect=["broker"],
)  # fmt: skip
def test_product_version_history_and_contexts_are_named(
    citygate: Command, folder: Path, broker: str, more: str, who: str, history: str
) -> None:
    code, findings = found(citygate, config(folder, brokers=f"{{milano: {{url: '{broker}'{more}}}}}"))
    messages = [finding["message"] for finding in findings["milano"]]
    assert code == 0, messages
    assert messages[1].startswith(who)
    assert messages[2].startswith(f"history: {history}")
    assert "1 context (where they are published)" in messages[3]


@pytest.mark.parametrize("broker", ["orion"], indirect=True)
def test_an_ngsiv2_broker_is_named_with_what_to_do(citygate: Command, folder: Path, broker: str) -> None:
    code, findings = found(citygate, config(folder, brokers=f"{{milano: {{url: '{broker}'}}}}"))
    [_, finding] = findings["milano"]
    assert (code, finding["state"]) == (4, "unreachable")
    assert finding["message"] == "Orion 4.7.0-next speaks NGSIv2, not NGSI-LD: 400 Service not found"
    assert "NGSI-LD broker" in finding["remedy"]


@pytest.mark.parametrize("broker", ["stellio"], indirect=True)
@pytest.mark.parametrize("of_city", [False, True])
def test_a_context_that_the_broker_cannot_fetch_is_told_with_its_setting(
    citygate: Command, folder: Path, broker: str, of_city: bool
) -> None:
    raw = "https://raw.githubusercontent.com/milano/contexts/main"  # raw file hosts serve text/plain
    entry = "use: cities/milano" if of_city else f"contexts: '{raw}/'"
    if of_city:
        (folder / "cities").mkdir()
        (folder / "cities" / "milano.yaml").write_text(f"city: milano\ncontexts: {raw}\n")
    code, findings = found(citygate, config(folder, brokers=f"{{milano: {{url: '{broker}', {entry}}}}}"))
    finding = findings["milano"][-1]
    assert (code, finding["state"]) == (4, "unreachable")
    assert finding["message"] == f"cannot fetch the context {raw}/dataModel.Device/context.jsonld"
    assert "contexts:" in finding["remedy"]


def test_a_login_that_fails_is_told_apart_and_without_the_secret(citygate: Command, folder: Path, broker: str) -> None:
    auth = f"{{oauth2: {{token_url: '{broker}/no-such-token', client_id: gw, client_secret: s3cr3t-text}}}}"
    ended = citygate(
        "doctor", "-c", str(config(folder, brokers=f"{{milano: {{kind: ngsi-ld, url: '{broker}', auth: {auth}}}}}"))
    )
    assert ended.code == 4
    assert "s3cr3t-text" not in ended.out + ended.err


def test_a_serial_port_that_is_not_there_is_bad(tmp_path: Path) -> None:
    [finding] = doctor.serial_port("air", tmp_path / "ttyUSB7", running=False)
    assert finding.state == "bad"
    assert "does not exist" in finding.message
    assert "there are" in finding.remedy


def test_a_file_is_no_serial_port(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    [finding] = doctor.serial_port("air", tmp_path / "x", running=False)
    assert (finding.state, "not a serial port" in finding.message) == ("bad", True)


def test_a_free_port_can_be_opened_and_one_held_by_another_names_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        port = Path(os.ttyname(slave))
        [finding] = doctor.serial_port("air", port, running=False)
        assert finding.state == "ok"  # we hold it ourselves
        monkeypatch.setattr(os, "getpid", lambda: 0)
        [finding] = doctor.serial_port("air", port, running=False)
        assert finding.state == "bad"
        assert "is held by" in finding.message
        [finding] = doctor.serial_port("air", port, running=True)
        assert (finding.state, "in use by the daemon" in finding.message) == ("ok", True)
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize(("word", "state"), [("0x0", "ok"), ("0x50000", "warn"), ("0x50005", "bad"), ("50001", "bad")])
def test_a_weak_supply_is_told_where_the_board_knows(tmp_path: Path, word: str, state: str) -> None:
    file = tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled"
    file.parent.mkdir(parents=True)
    file.write_text(word + "\n")
    assert [finding.state for finding in doctor._power(tmp_path)] == [state]


def test_a_board_that_says_nothing_of_its_supply_is_not_judged(tmp_path: Path) -> None:
    assert list(doctor._power(tmp_path)) == []


@pytest.mark.parametrize(
    ("words", "state"), [("0x01 0x02", "ok"), ("0x08 0x01", "warn"), ("0x01 0x0b", "bad"), ("0x00 0x00", None)]
)
def test_worn_flash_is_told_where_it_knows(tmp_path: Path, words: str, state: str | None) -> None:
    file = tmp_path / "sys/block/mmcblk0/device/life_time"
    file.parent.mkdir(parents=True)
    file.write_text(words + "\n")
    states = [finding.state for finding in doctor._wear("/dev/mmcblk0p2", tmp_path)]
    assert states == ([state] if state else [])


def test_a_buffer_in_memory_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mounts").write_text(f"/dev/mmcblk0p2 / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n")
    findings = list(doctor._disk(tmp_path / "buffer.db", 1000, tmp_path))
    assert any(f.state == "warn" and "tmpfs" in f.message for f in findings)


def test_a_folder_that_is_missing_is_bad_with_the_line_that_makes_it(tmp_path: Path) -> None:
    [finding] = doctor._disk(tmp_path / "no" / "buffer.db", 1000)
    assert (finding.state, "install -d" in finding.remedy) == ("bad", True)


def test_a_buffer_larger_than_the_disk_is_warned_about(tmp_path: Path) -> None:
    findings = list(doctor._disk(tmp_path / "buffer.db", 10**18))
    assert any(f.state == "warn" and "less than buffer.max_size" in f.message for f in findings)


def certificate(folder: Path, days: int) -> tuple[Path, Path]:
    """(certificate, key) of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days, hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "c.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "k.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "c.pem", folder / "k.pem"


@pytest.mark.parametrize(
    ("days", "trusted", "state"), [(90, True, "ok"), (7, True, "warn"), (90, False, "unreachable")]
)
async def test_a_certificate_is_judged_by_its_issuer_and_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, trusted: bool, state: str
) -> None:
    cert, key = certificate(tmp_path, days)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        finding = await certificate_of("milano", "localhost", server.sockets[0].getsockname()[1])
    assert finding.state == state, finding
    assert ("days" in finding.message) == trusted
