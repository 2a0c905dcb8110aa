"""A pipe, a folder, a device or a loop in place of any file that is read: a problem or a link that is down, and nobody waits."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from drivers.lora.broker_words import tls_context
from drivers.lora.config import ChirpstackLink
from drivers.modbus.config import Tls
from drivers.modbus.driver import _secured
from gateway.cli.box import buffer_path
from gateway.forward.auth import Tls as BrokerTls
from gateway.plan import make_plan
from gateway.registry import Registry
from gateway.sdk.errors import BrokerUnavailable, ConfigError, LinkError
from gateway.sdk.files import read_bytes

KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
}
CONFIG = "version: 1\ngateway: {id: gw-1, city: milano, location: [9.159, 45.503]}\n"
PLACES = ("citygate.yaml", "conf.d/a.yaml", "templates/eastron/sdm120.yaml", "cities/milano.yaml", "secrets/milano", "models/index.json",
          "models/dataModel.X/Thing/schema.json", "models/dataModel.X/context.jsonld")  # fmt: skip


@pytest.mark.timeout(90)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_beside_the_config_keeps_anybody_waiting(tmp_path: Path, place: str, kind: str) -> None:
    (tmp_path / "citygate.yaml").write_text(
        CONFIG + "links: {l: {driver: modbus, port: /dev/x, devices: {d: {template: eastron/sdm120, unit_id: 1}}}}\n"
        "brokers: {m: {use: cities/milano, url: 'https://b.example', auth: {bearer: !secret milano}}}\n"
    )
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    KINDS[kind](path)

    with pytest.raises(ConfigError):
        make_plan(tmp_path, Registry())
    assert buffer_path(tmp_path) == Path("/var/lib/citygate/buffer.db")


@pytest.mark.timeout(90)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", [0, 1])
def test_no_certificate_file_keeps_the_daemon_waiting(tmp_path: Path, kind: str, which: int) -> None:
    path = tmp_path / "x.pem"
    KINDS[kind](path)
    ca, cert = (str(path), "")[which], ("", str(path))[which]

    link = ChirpstackLink.model_validate(
        {"driver": "chirpstack", "url": "mqtts://h", "ca_file": ca, "cert_file": cert, "key_file": cert}
    )
    with pytest.raises(LinkError):
        tls_context(link)
    with pytest.raises(LinkError):
        _secured(Tls(ca=ca, certificate=cert))
    with pytest.raises(BrokerUnavailable):
        BrokerTls(ca=ca, certificate=cert).context()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "x")
    with pytest.raises(OSError, match=r"regular|symbolic|directory"):
        read_bytes(tmp_path / "x", 100)


@pytest.mark.timeout(90)
def test_an_encrypted_key_of_a_modbus_device_is_an_error_and_asks_nobody(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"abcd")
    )
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "cert.pem").write_bytes(key)

    with pytest.raises(LinkError, match=r"encrypted|key\.pem"):
        _secured(Tls(certificate=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem")))
