"""Verbs beside a daemon that was given what this shell was not: credentials, folders, the place of the log."""

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.box import control_socket
from gateway.config import place
from tests.gateway.cli.conftest import Command
from tests.support.box import Box, Process, eventually
from tests.support.rights import without_root

CONFIG = """\
version: 1
gateway: {{id: gw-1, city: milano, location: [9.159, 45.503]}}
buffer: {{path: "{folder}/state/buffer.db", max_size: 10 MB, max_age: 1 d}}
http: {{listen: "127.0.0.1:{port}", token: !secret page}}
clock: {{trust: system}}
links: {{}}
brokers:
  milano: {{url: "{url}", auth: {{bearer: !secret milano}}}}
"""
LOGIN = "only-the-daemon-knows-this-1"


class LiveBox(Box):
    """A box as the service manager starts it; the tests are a person's shell."""

    def put(self, name: str, text: str, *, folder: str = "credentials") -> None:
        """A secret in one of the places."""
        file = self.folder / folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o640)

    def serve(self, **environment: str) -> Process:
        """Its daemon, at work."""
        given = {
            "CREDENTIALS_DIRECTORY": str(self.folder / "credentials"),
            "STATE_DIRECTORY": str(self.folder / "state"),
        }
        daemon = self.start("daemon", "-m", "gateway", "run", "-c", str(self.config), **(given | environment))
        buffer = Path(environment.get("CITYGATE__BUFFER__PATH", self.folder / "state" / "buffer.db"))

        def listens() -> bool:
            assert daemon.popen.poll() is None, daemon.text()
            return (buffer.parent / "control.sock").exists()

        eventually("the daemon", listens)
        return daemon


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveBox]:
    box = LiveBox(tmp_path_factory.mktemp("live"))
    behave = json.dumps({"token": f"Bearer {LOGIN}"})
    broker = box.start("broker", "-m", "tests.support.strict_broker", "--port", "0", "--behave", behave)
    port = eventually("broker", lambda: broker.text().split()[-1:])[0]
    box.put("milano", LOGIN + "\n")
    box.put("page", "a-token-of-the-page\n", folder="secrets")
    box.write(CONFIG.format(folder=box.folder, port=box.port, url=f"http://127.0.0.1:{port}"))
    (box.folder / "state").mkdir()
    box.serve()
    yield box
    box.close()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[LiveBox]:
    """The same without its daemon."""
    box = LiveBox(tmp_path)
    box.write(CONFIG.format(folder=tmp_path, port=box.port, url="http://127.0.0.1:1"))
    (tmp_path / "state").mkdir()
    yield box
    box.close()


def test_what_only_the_daemon_has_is_no_error_of_the_file(live: LiveBox, citygate: Command) -> None:
    ended = citygate("check", "-c", str(live.folder), "--json")
    assert (ended.code, ended.json["problems"]) == (0, [])
    told = ended.json["secrets"]
    assert {name: (its["place"], its["state"]) for name, its in told.items()} == {
        "milano": ("", "ok"),
        "page": (str(live.folder / "secrets" / "page"), "ok"),
    }
    started_at = citygate("status", "-c", str(live.folder), "--json").json["gateway"]["started_at"]
    said = citygate("check", "-c", str(live.folder)).out
    where = live.folder / "credentials" / "milano"
    assert f"secret milano: only the daemon has it, from {where}, read at {started_at[:17]}" in said
    assert "`sudo systemctl restart citygate` takes up a new one" in said
    assert LOGIN not in ended.out + ended.err + said


def test_a_name_that_the_daemon_does_not_know_either_is_an_error_with_what_to_do(
    live: LiveBox, citygate: Command
) -> None:
    was = live.config.read_text()
    try:
        live.write(was + "  porto: {url: 'http://127.0.0.1:1', auth: {bearer: !secret porto}}\n")
        ended = citygate("check", "-c", str(live.folder), "--json")
    finally:
        live.write(was)
    [problem] = ended.json["problems"]
    assert (ended.code, problem["code"], problem["path"]) == (3, "missing-secret", "brokers.porto.auth.bearer")
    assert "the daemon does not have it either" in problem["remedy"]


def test_the_secrets_of_another_file_are_not_lent_to_this_one_and_it_is_said_whose_they_are(
    live: LiveBox, citygate: Command, tmp_path: Path
) -> None:
    (tmp_path / "citygate.yaml").write_text(live.config.read_text())
    ended = citygate("check", "-c", str(tmp_path), "--json")
    remedies = {problem["path"]: problem["remedy"] for problem in ended.json["problems"]}
    assert ended.code == 3
    assert set(remedies) == {"brokers.milano.auth.bearer", "http.token"}
    for remedy in remedies.values():
        assert f"the daemon here runs {live.config}, not this file, and has a secret" in remedy
    assert citygate("check", "-c", str(tmp_path), "--no-secrets").code == 0


def test_a_link_to_the_file_is_the_file(live: LiveBox, citygate: Command, tmp_path: Path) -> None:
    (tmp_path / "box").symlink_to(live.folder)
    assert citygate("check", "-c", str(tmp_path / "box")).code == 0


def test_a_verb_that_acts_refuses_a_file_that_the_daemon_does_not_run(
    live: LiveBox, citygate: Command, tmp_path: Path
) -> None:
    (tmp_path / "citygate.yaml").write_text(live.config.read_text())
    verbs = (
        ("reload",),
        ("reload", "--dry-run"),
        ("once",),
        ("pause", "meter-1", "--for", "1m"),
        ("write", "a", "b", "1"),
        ("buffer", "forget", "porto"),
        ("buffer", "forget", "--device", "meter-1"),
        ("buffer", "purge", "--all"),
        ("buffer", "requeue", "--all"),
    )
    for verb in verbs:
        ended = citygate(*verb, "-c", str(tmp_path))
        assert ended.code == 2, verb
        assert f"the daemon here runs {live.config}, not {tmp_path / 'citygate.yaml'}; nothing was done" in ended.err
    status = citygate("status", "-c", str(tmp_path))
    assert f"! the daemon here runs {live.config}, not {tmp_path / 'citygate.yaml'}" in status.err


def test_doctor_has_the_brokers_looked_at_by_who_has_the_login(live: LiveBox, citygate: Command) -> None:
    ended = citygate("doctor", "-c", str(live.folder), "--json")
    found = [finding for finding in ended.json if finding["check"] == "milano"]
    assert [finding["state"] for finding in found] == ["ok"] * 4, found
    assert "answers as NGSI-LD" in found[1]["message"]
    assert LOGIN not in ended.out


METER = "links: {plant: {driver: modbus, host: 127.0.0.1, port: 1, devices: {meter-1: {template: eastron/sdm120, unit_id: 1, every: 1 s}}}}"


def test_preview_of_a_file_that_the_daemon_does_not_run_is_made_of_that_file(
    live: LiveBox, citygate: Command, tmp_path: Path
) -> None:
    (tmp_path / "citygate.yaml").write_text(live.config.read_text().replace("links: {}", METER))
    ended = citygate("preview", "meter-1", "-c", str(tmp_path), "--json")
    assert list(ended.json) == ["milano"]
    assert f"! the daemon here runs {live.config}" in ended.err
    assert "from the sample frames" in ended.err


def test_preview_of_a_device_that_waits_for_a_reload_says_so(live: LiveBox, citygate: Command) -> None:
    was = live.config.read_text()
    try:
        live.write(was.replace("links: {}", METER))
        ended = citygate("preview", "meter-1", "-c", str(live.folder), "--json")
        unknown = citygate("preview", "meter-2", "-c", str(live.folder), "--json")
    finally:
        live.write(was)
    assert list(ended.json) == ["milano"]
    assert "the daemon at work does not know meter-1 yet: `citygate reload`" in ended.err
    assert unknown.code == 2


def test_once_sends_with_what_the_daemon_has(live: LiveBox, citygate: Command) -> None:
    ended = citygate("once", "-c", str(live.folder), "--json")
    assert (ended.code, ended.json["brokers"]["milano"]["state"]) == (0, "ok")


def test_what_has_changed_since_it_was_read_is_told_with_what_takes_it_up(live: LiveBox, citygate: Command) -> None:
    def said(name: str = "milano") -> tuple[str, str]:
        its = citygate("check", "-c", str(live.folder), "--json").json["secrets"][name]
        return its["state"], its["said"]

    live.put("milano", "another text, for a start that comes\n")  # of the unit
    try:
        assert said()[0] == "changed"
        assert "restart citygate" in said()[1]
        doctor = citygate("doctor", "-c", str(live.folder), "--json").json
        assert [its["state"] for its in doctor if its["check"] == "secrets"] == ["warn"]
        (live.folder / "credentials" / "milano").unlink()
        assert said()[0] == "gone"
    finally:
        live.put("milano", LOGIN + "\n")
    assert said()[0] == "ok"

    live.put("milano", LOGIN + "\n", folder="secrets")  # what the unit's credential is made of, changed since
    file, read = live.folder / "secrets" / "milano", live.folder / "secrets" / "page"
    try:

        def is_told() -> bool:
            for each in (file, read):
                each.chmod(0o640)  # changed again, until that is later than the second of the start
            return said()[0] == "changed"

        eventually("it is told", is_told)
        assert said()[1].startswith(f"{file} has changed since the daemon read its own from {live.folder}/credentials")
        assert "restart" in said()[1]
        assert said("page") == ("ok", ""), "touched, but its text is the one at work"
    finally:
        file.unlink()


def test_without_a_daemon_all_else_is_checked_and_it_is_said_who_has_the_secret(
    alone: LiveBox, citygate: Command
) -> None:
    alone.write(alone.config.read_text().replace("clock:", "clok:"))
    ended = citygate("check", "-c", str(alone.folder), "--json")
    problems = {problem["path"]: problem for problem in ended.json["problems"]}
    assert ended.code == 3
    assert set(problems) == {"brokers.milano.auth.bearer", "http.token", "clok"}
    assert "`sudo systemctl start citygate`, then again" in problems["http.token"]["remedy"]
    assert "--no-secrets" in problems["http.token"]["remedy"]


def test_without_a_daemon_doctor_goes_on_with_all_that_needs_no_login(alone: LiveBox, citygate: Command) -> None:
    ended = citygate("doctor", "-c", str(alone.folder), "--json")
    found = {finding["check"]: finding for finding in ended.json}
    assert (ended.code, found["config"]["state"], found["daemon"]["state"]) == (1, "bad", "warn")
    assert found["disk"]["message"].startswith(str(alone.folder / "state"))
    assert found["milano"]["state"] == "unreachable"


def test_a_broker_is_not_asked_with_a_login_that_is_not_known(alone: LiveBox, live: LiveBox, citygate: Command) -> None:
    alone.write(live.config.read_text().replace(str(live.folder), str(alone.folder)))
    ended = citygate("doctor", "-c", str(alone.folder), "--json")
    reached, login = (finding for finding in ended.json if finding["check"] == "milano")
    assert (reached["state"], login["state"]) == ("ok", "warn")
    assert login["message"] == "login not tried: its secret milano is not to be had"


def test_without_a_daemon_a_device_is_read_though_a_brokers_login_is_not_known(
    alone: LiveBox, citygate: Command
) -> None:
    lora = "lora: {driver: chirpstack, url: 'mqtt://127.0.0.1:1', username: gw, password: !secret lora, devices: {}}"
    alone.write(alone.config.read_text().replace("links: {}", METER.replace("{plant", f"{{{lora}, plant")))
    ended = citygate("read", "meter-1", "-c", str(alone.folder))
    assert (ended.code, "cannot connect to 127.0.0.1:1" in ended.err) == (4, True)


def test_without_a_daemon_a_link_is_not_opened_with_a_login_that_is_not_known(
    alone: LiveBox, citygate: Command
) -> None:
    bin_ = "bin: {template: milesight/am103, dev_eui: 24e124713d123456}"
    link = f"lora: {{driver: chirpstack, url: 'mqtt://127.0.0.1:1', username: gw, password: !secret lora, devices: {{{bin_}}}}}"
    alone.write(alone.config.read_text().replace("links: {}", f"links: {{{link}}}"))
    ended = citygate("read", "bin", "-c", str(alone.folder))
    assert ended.code == 4
    assert "link lora needs the secret lora" in ended.err
    assert "systemctl start citygate" in ended.err


def test_once_starts_no_daemon_where_that_of_another_user_has_its_log(
    alone: LiveBox, citygate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("milano", "page"):
        alone.put(name, "a-text-for-both-of-them\n", folder="secrets")
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(alone.folder).st_uid + 1)
    ended = citygate("once", "-c", str(alone.folder))
    assert ended.code == 4
    assert f"{alone.folder}/state belongs to the user of one" in ended.err
    assert list((alone.folder / "state").iterdir()) == []


def test_who_may_not_use_the_socket_is_told_what_to_do_by_each_verb(citygate: Command) -> None:
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as server:
        folder = Path(name)  # pytest's own is closed to others
        folder.chmod(0o755)
        (folder / "citygate.yaml").write_text(CONFIG.format(folder=folder, port=0, url="http://127.0.0.1:1"))
        citygate("status", "-c", name)  # what it needs is loaded before rights are given up
        (folder / "state").mkdir()
        server.bind(str(folder / "state" / "control.sock"))
        server.listen()
        (folder / "state" / "control.sock").chmod(0)
        with without_root():
            for verb in (("once",), ("status",), ("preview", "x"), ("reload",), ("buffer", "status")):
                ended = citygate(*verb, "-c", name, "--json")
                assert ended.code == 4, verb
                assert f"{folder}/state/control.sock" in ended.json["error"]
                assert "`sudo citygate …`" in ended.json["remedy"]
            check = citygate("check", "-c", name, "--json")
        assert check.code == 3
        assert {problem["code"] for problem in check.json["problems"]} == {"missing-secret"}
        assert all("the daemon may have it, but" in problem["remedy"] for problem in check.json["problems"])


def test_a_log_that_this_user_may_not_write_is_left_alone(citygate: Command) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)  # pytest's own is closed to others
        folder.chmod(0o755)
        log = folder / "buffer.db"
        log.write_bytes(b"")
        log.chmod(0o444)
        (folder / "citygate.yaml").write_text(f"version: 1\nbuffer: {{path: {log}}}\n")
        with without_root():
            for verb in ("status", "export"):
                ended = citygate("buffer", verb, "-c", name)
                assert ended.code == 4
                assert f"may not work on {log}" in ended.err
                assert "systemctl start citygate" in ended.err


def test_a_place_that_the_unit_alone_was_told_is_found_by_the_daemons_own_note(
    alone: LiveBox, citygate: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    services = tmp_path / "lib"
    monkeypatch.setattr(place, "_OF_SERVICES", services)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    for name in ("milano", "page"):
        alone.put(name, "a-text-for-both-of-them\n")
        alone.put(name, "a-text-for-both-of-them\n", folder="secrets")
    state = services / "citygate-roof"
    state.mkdir(parents=True)
    elsewhere = tmp_path / "card"
    elsewhere.mkdir()
    daemon = alone.serve(CITYGATE__BUFFER__PATH=str(elsewhere / "b.db"), STATE_DIRECTORY=str(state))
    assert control_socket(alone.folder) == elsewhere / "control.sock"
    secrets = citygate("check", "-c", str(alone.folder), "--json").json["secrets"]
    assert [its["state"] for its in secrets.values()] == ["ok", "ok"]  # older than the start
    assert f"; the daemon has its own from {alone.folder}/credentials/milano" in secrets["milano"]["said"]
    assert citygate("buffer", "status", "-c", str(alone.folder), "--json").json["path"] == str(elsewhere / "b.db")
    assert daemon.end() == 0
    stopped = citygate("buffer", "status", "-c", str(alone.folder), "--json")
    assert stopped.json["path"] == str(elsewhere / "b.db")
    assert f"had its log at {elsewhere / 'b.db'}, the file says {alone.folder}/state/buffer.db" in stopped.err
