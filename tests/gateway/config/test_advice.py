"""Warnings beyond the cases: what depends on the box, and what must stay silent."""

from pathlib import Path

import pytest

from gateway.config import advice
from gateway.plan import make_plan
from gateway.sdk.errors import Problem
from tests.gateway.test_plan import BASE
from tests.support.bench_driver import BenchDriver, BenchRegistry


def warnings_of(tmp_path: Path, text: str) -> dict[str, Problem]:
    (tmp_path / "citygate.yaml").write_text(text)
    return {problem.code: problem for problem in make_plan(tmp_path, BenchRegistry()).warnings}


def test_the_stable_path_of_a_port_that_is_plugged_in_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_id = tmp_path / "by-id"
    by_id.mkdir()
    (by_id / "usb-FTDI_A50285BI-if00-port0").symlink_to("/dev/ttyUSB96")
    (by_id / "usb-other").symlink_to("/dev/ttyUSB95")
    monkeypatch.setattr(advice, "_BY_ID", by_id)

    found = warnings_of(tmp_path, BASE.replace("/dev/serial/by-id/usb-x", "/dev/ttyUSB96"))

    assert found["unstable-port"].remedy == f"{by_id}/usb-FTDI_A50285BI-if00-port0 stays the same after a replug"


@pytest.mark.parametrize("port", ["/dev/ttyAMA0", "/dev/ttyS0", "/tmp/pty", "/dev/serial/by-path/x"])
def test_ports_that_keep_their_name_are_not_warned_about(tmp_path: Path, port: str) -> None:
    assert warnings_of(tmp_path, BASE.replace("/dev/serial/by-id/usb-x", port)) == {}


def test_the_days_of_the_buffer_follow_from_points_and_periods(tmp_path: Path) -> None:
    # three points each second and one each 2 s, 12 bytes each: 42 B/s; 100 MB are 27.6 days
    text = BASE.replace("unit_id: 1}", "unit_id: 1, every: 2 s}").replace("unit_id: 2,", "unit_id: 2, every: 1 s,")
    text = text.replace("template: acme/air}", "template: acme/air, every: 1 s}")

    enough = text.replace("/buffer.db}", "/buffer.db, max_size: 100 MB, max_age: 27 d}")
    short = text.replace("/buffer.db}", "/buffer.db, max_size: 100 MB, max_age: 30 d}")

    assert warnings_of(tmp_path, enough) == {}
    assert "about 28 days of 3.5 readings a second" in warnings_of(tmp_path, short)["small-buffer"].message


@pytest.mark.parametrize("what", ["shares", "warnings"])
def test_a_driver_that_breaks_when_it_is_asked_is_warned_about_and_the_rest_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def broken(_self: object, _config: object) -> None:
        raise KeyError("devices")

    monkeypatch.setattr(BenchDriver, what, broken, raising=False)
    found = warnings_of(tmp_path, BASE.replace("/dev/serial/by-id/usb-x", "/dev/ttyUSB96"))
    assert found["driver-fault"].message == f"driver bench: its {what} fail: KeyError: 'devices'"
    assert found["driver-fault"].severity == "warning"
    assert "unstable-port" in found


def test_a_gateway_without_brokers_is_not_told_that_nothing_is_sent(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, BASE[: BASE.index("brokers:")]) == {}


@pytest.mark.parametrize(("rate", "warned"), [("", False), (", rate: 5/s", False), (", rate: 4/s", True)])
def test_only_a_rate_that_is_given_can_be_too_low(tmp_path: Path, rate: str, warned: bool) -> None:
    text = BASE.replace("unit_id: 1}", "unit_id: 1, every: 2 s}").replace("unit_id: 2,", "unit_id: 2, every: 1 s,")
    text = text.replace("template: acme/air}", "template: acme/air, every: 1 s}")  # 3.5 readings a second
    text = text.replace('"https://broker.example", send: ["meter-*"]', f'"https://broker.example"{rate}')
    assert ("slow-rate" in warnings_of(tmp_path, text)) is warned
