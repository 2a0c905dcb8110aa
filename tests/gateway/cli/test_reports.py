"""bundle: complete, readable by its maker alone, and without a secret wherever it may have got to."""

import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Command
from tests.support.fake_view import FakeView

SECRET, CLEAR, LOGIN = "s3cr3t-from-a-file", "clear-text-token", "user:hunter2"


@pytest.fixture
def box(folder: Path) -> Path:
    (folder / "secrets").mkdir(mode=0o700)
    (folder / "secrets" / "porto").write_text(SECRET + "\n")
    (folder / "citygate.yaml").write_text(
        f"version: 1\ngateway: {{id: gw-1, city: milano}}\nbuffer: {{path: {folder}/buffer.db}}\n"
        "brokers:\n  porto:\n    url: https://porto.example\n    auth: {oauth2: {token_url: https://idm.example/t, "
        "client_id: gw, client_secret: !secret porto}}\n"
        f"http:\n  listen: 127.0.0.1:8580\n  token: {CLEAR}\n"
    )
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "a.yaml").write_text(f"# once mqtt://{LOGIN}@broker.example was here\n")
    return folder


def contents(file: Path) -> dict[str, str]:
    """Name -> text of an archive, its folder left out."""
    with tarfile.open(file) as archive:
        return {
            member.name.partition("/")[2]: archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in archive.getmembers()
        }


def test_a_bundle_has_what_support_asks_for(citygate: Command, daemon: FakeView, box: Path) -> None:
    ended = citygate("bundle", "-c", str(box), "--output", str(box / "b.tar.gz"), "--json")
    assert ended.code == 0
    found = contents(box / "b.tar.gz")
    assert sorted(found) == ended.json["contents"]
    assert {"about.json", "check.json", "doctor.json", "status.json", "metrics.txt", "journal.txt"} <= set(found)
    assert {"config/citygate.yaml", "config/conf.d/a.yaml"} <= set(found)
    assert json.loads(found["status.json"])["links"]["roof"]["devices"]["meter-12"]["state"] == "ok"
    assert "citygate_device_up" in found["metrics.txt"]
    assert json.loads(found["about.json"])["packages"]["citygate"]


def test_no_secret_is_in_it_wherever_it_was_said(citygate: Command, daemon: FakeView, box: Path) -> None:
    daemon.shown["brokers"]["milano"]["reason"] = f"401 for {SECRET} at https://{LOGIN}@idm.example, header {CLEAR}"
    assert citygate("bundle", "-c", str(box), "--output", str(box / "b.tar.gz")).code == 0
    for name, text in contents(box / "b.tar.gz").items():
        for secret in (SECRET, CLEAR, "hunter2"):
            assert secret not in text, name
        assert not name.startswith("config/secrets")


def test_the_base_of_a_box_is_in_it_without_its_secrets_too(citygate: Command, box: Path, tmp_path: Path) -> None:
    (box.parent / "fleet").mkdir()
    (box.parent / "fleet" / "base.yaml").write_text("publish: {licence: CC0-1.0}\nhttp: {token: older-clear-text}\n")
    (box / "citygate.yaml").write_text(f"base: ../fleet/base.yaml\n{(box / 'citygate.yaml').read_text()}")
    assert citygate("bundle", "-c", str(box), "--output", str(box / "b.tar.gz")).code == 0
    found = contents(box / "b.tar.gz")
    [base] = [name for name in found if name.endswith("/base.yaml")]
    assert found[base] == f"publish: {{licence: CC0-1.0}}\nhttp: {{token: {'•' * 16}}}\n"
    assert "older-clear-text" not in "".join(found.values())


def test_the_last_good_config_is_not_in_it(citygate: Command, box: Path) -> None:
    (box / "last-good.json").write_text('{"files": {"citygate.yaml": "a file of its own"}}')
    citygate("bundle", "-c", str(box), "--output", str(box / "b.tar.gz"))
    found = contents(box / "b.tar.gz")
    assert "config/citygate.yaml" in found
    assert not any("last-good" in name or "a file of its own" in text for name, text in found.items())


def test_it_is_readable_by_its_maker_alone_and_never_replaces_a_file(citygate: Command, box: Path) -> None:
    file = box / "b.tar.gz"
    assert citygate("bundle", "-c", str(box), "--output", str(file)).code == 0
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    before = file.read_bytes()
    again = citygate("bundle", "-c", str(box), "--output", str(file))
    assert again.code == 1
    assert "File exists" in again.err
    assert file.read_bytes() == before


def test_without_a_daemon_the_rest_is_there(citygate: Command, box: Path) -> None:
    assert citygate("bundle", "-c", str(box), "--output", str(box / "b.tar.gz")).code == 0
    found = contents(box / "b.tar.gz")
    assert "not available: no daemon answers" in found["status.json"]
    assert "gw-1" in found["config/citygate.yaml"]
