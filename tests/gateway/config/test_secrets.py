"""`!secret`: where it is looked for, in which order, and that its text is shown nowhere."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from gateway.config.explain import text
from gateway.config.loader import load
from gateway.config.secrets import Secrets, hide_in_line, redacted
from gateway.environment import NOTHING, Environment
from gateway.plan import make_plan
from gateway.registry import Registry
from gateway.sdk.errors import ConfigError
from tests.support.bench_driver import BenchDriver, BenchRegistry

CONFIG = """\
version: 1
gateway: {id: gw-1, city: milano, location: [9.1590, 45.5030]}
links:
  roof:
    driver: bench
    devices:
      meter-1: {template: acme/meter, key: !secret lora-key}
"""


@pytest.fixture
def box(tmp_path: Path) -> Path:
    (tmp_path / "citygate.yaml").write_text(CONFIG)
    (tmp_path / "secrets").mkdir()
    return tmp_path


def key_of(box: Path, **told: Any) -> str:
    loaded = load(box, lambda _: BenchDriver(), environment=NOTHING.model_copy(update=told))
    assert not loaded.problems
    assert loaded.config is not None
    key = loaded.config.links["roof"].devices["meter-1"].key  # type: ignore[attr-defined]
    assert isinstance(key, SecretStr)
    return key.get_secret_value()


def put(folder: Path, content: str | bytes) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / "lora-key"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    file.chmod(0o600)


def test_credentials_of_the_service_manager_come_before_the_folder_and_the_environment(box: Path) -> None:
    texts = {"CITYGATE_SECRET_LORA_KEY": "from-environment"}
    assert key_of(box, secret_texts=texts) == "from-environment"
    put(box / "secrets", "from-folder\n")
    assert key_of(box, secret_texts=texts) == "from-folder"
    put(box / "credentials", "from-credentials\n")
    assert key_of(box, secret_texts=texts, credentials=box / "credentials") == "from-credentials"


@pytest.mark.parametrize(
    ("content", "text"), [("a b \n", "a b "), ("two\nlines\n", "two\nlines"), ("dos\r\n", "dos"), ("0123\n", "0123")]
)
def test_only_the_line_end_of_the_file_is_dropped_and_digits_stay_a_text(box: Path, content: str, text: str) -> None:
    put(box / "secrets", content)
    assert key_of(box) == text


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"a\0b", b"x" * 20_000])
def test_a_file_that_cannot_be_a_secret_is_a_problem(box: Path, content: bytes) -> None:
    put(box / "secrets", content)
    with pytest.raises(ConfigError) as caught:
        make_plan(box, BenchRegistry())
    assert [problem.code for problem in caught.value.problems] == ["missing-secret"]


def test_an_empty_variable_is_no_secret(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITYGATE_SECRET_LORA_KEY", "")
    loaded = load(box, lambda _: BenchDriver(), environment=Environment())
    assert [problem.code for problem in loaded.problems] == ["missing-secret"]


def test_who_has_a_secret_that_is_not_here_is_asked_and_without_its_text_all_else_is_there(box: Path) -> None:
    asked = []

    def held(name: str) -> tuple[bool, str]:
        asked.append(name)
        return True, ""

    plan = make_plan(box, BenchRegistry(), held=held)
    assert (asked, plan.warnings, plan.secret_texts) == (["lora-key"], (), {})
    assert plan.untold == {("links", "roof", "devices", "meter-1", "key"): "lora-key"}
    assert list(plan.devices) == ["meter-1"]

    put(box / "secrets", "hunter2hunter2")
    plan = make_plan(box, BenchRegistry(), held=held)
    assert (len(asked), plan.untold) == (1, {})
    assert plan.secret_places == {"lora-key": str(box / "secrets" / "lora-key")}


def test_who_does_not_have_it_says_what_to_do(box: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(box, BenchRegistry(), held=lambda name: (False, f"ask for {name} elsewhere"))
    assert [problem.remedy for problem in caught.value.problems] == ["ask for lora-key elsewhere"]


def test_a_key_in_hex_that_is_not_told_takes_no_device_with_it(tmp_path: Path) -> None:
    keys = "abp: {dev_addr: 49be7df1, nwk_s_key: !secret nwk, app_s_key: !secret app}"
    device = f"{{template: milesight/am103, activation: {{{keys}}}}}"
    (tmp_path / "citygate.yaml").write_text(
        "version: 1\ngateway: {id: gw-1, city: milano, location: [9.1, 45.5]}\n"
        f"links: {{lora: {{driver: semtech-udp, devices: {{soil: {device}}}}}}}\n"
    )
    plan = make_plan(tmp_path, Registry(), with_secrets=False)
    assert list(plan.devices) == ["soil"]


def test_a_secret_that_everybody_can_read_is_a_warning(box: Path) -> None:
    put(box / "secrets", "hunter2")
    os.chmod(box / "secrets" / "lora-key", 0o644)
    [warning] = make_plan(box, BenchRegistry()).warnings
    assert (warning.code, warning.severity, warning.line) == ("open-secret", "warning", 7)


def test_a_check_without_secrets_does_not_look_for_them(box: Path) -> None:
    assert make_plan(box, BenchRegistry(), with_secrets=False).warnings == ()


def test_a_wrong_secret_is_explained_without_being_shown(box: Path) -> None:
    put(box / "secrets", "hunter2hunter2")
    (box / "citygate.yaml").write_text(CONFIG.replace("key: !secret", "dev_eui: !secret"))

    with pytest.raises(ConfigError) as caught:
        make_plan(box, BenchRegistry())

    said = "".join(text(problem) for problem in caught.value.problems) + str(caught.value)
    assert "the secret has not the form" in said
    assert "hunter2" not in said


def test_a_secret_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    (tmp_path / "citygate.yaml").write_text(CONFIG.replace("!secret lora-key", "!secret ../outside"))
    with pytest.raises(ConfigError) as caught:
        make_plan(tmp_path, BenchRegistry())
    assert [problem.code for problem in caught.value.problems] == ["wrong-name"]


def test_a_plan_does_not_print_its_secrets(box: Path) -> None:
    put(box / "secrets", "hunter2hunter2")
    assert "hunter2" not in repr(make_plan(box, BenchRegistry()))


def test_known_secrets_are_hidden_in_any_text(tmp_path: Path) -> None:
    texts = {"CITYGATE_SECRET_A": "hunter2", "CITYGATE_SECRET_B": "hunter2hunter2"}
    secrets = Secrets(tmp_path, NOTHING.model_copy(update={"secret_texts": texts}))
    secrets.get("a")
    secrets.get("b")
    assert redacted("login hunter2hunter2 failed, hunter2 too", secrets.known) == "login ••• failed, ••• too"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  client_secret: hunter2  # x", "  client_secret: •••••••••# x"),
        ("  a: {password: 'hun ter', b: 1}", "  a: {password: •••••••••, b: 1}"),
        ("  token: !secret milano", "  token: !secret milano"),
        ("  url: https://me:hunter2@b.example", "  url: https://••••••••••@b.example"),
        ("  monkey_business: 3", "  monkey_business: 3"),
    ],
)
def test_a_source_line_is_shown_without_its_secrets_at_the_same_width(line: str, shown: str) -> None:
    assert hide_in_line(line) == shown
    assert len(shown) == len(line)


@given(st.text(max_size=40))
def test_hiding_keeps_the_width_of_any_line(line: str) -> None:
    assert len(hide_in_line(line)) == len(line)
