"""The share of a line's time that polls take follows from baud rate, registers and periods."""

from pathlib import Path

import pytest

from gateway.plan import make_plan
from gateway.registry import Registry
from gateway.sdk.driver import SharesLine

LINE = """\
version: 1
gateway: {{id: gw, city: milano, location: [9.1, 45.5]}}
links:
  roof:
    driver: modbus
    {where}
    devices:
      m1: {{template: mine/one, unit_id: 1, every: {every}}}
"""
TEMPLATE = """\
vendor: Mine
model: One
points: {v: {quantity: voltage, unit: VLT, table: input, address: 0, type: float32}}
samples: []
"""


def share(tmp_path: Path, where: str, every: str) -> float:
    (tmp_path / "templates" / "mine").mkdir(parents=True, exist_ok=True)
    (tmp_path / "templates" / "mine" / "one.yaml").write_text(TEMPLATE)
    (tmp_path / "citygate.yaml").write_text(LINE.format(where=where, every=every))
    link = make_plan(tmp_path, Registry()).links["roof"]
    driver = link.driver
    assert isinstance(driver, SharesLine)
    return driver.shares(link.config)["m1"]


def test_one_float_at_9600_baud(tmp_path: Path) -> None:
    # 8 bytes out and 9 back of 10 bits each, two silences of 3.5 characters, 10 ms of the unit's own: 35 ms
    assert share(tmp_path, "port: /dev/ttyAMA0", "1 s") == pytest.approx(
        17 * 10 / 9600 + 2 * 35 / 9600 + 0.010, rel=0.01
    )


@pytest.mark.parametrize(
    ("slower", "factor"),
    [("port: /dev/ttyAMA0\n    baud_rate: 4800", 1.7), ("port: /dev/ttyAMA0\n    framing: ascii", 1.5)],
)
def test_a_slower_line_or_longer_frames_take_more(tmp_path: Path, slower: str, factor: float) -> None:
    assert share(tmp_path, slower, "1 s") > factor * share(tmp_path, "port: /dev/ttyAMA0", "1 s")


def test_a_network_link_takes_only_the_units_own_time(tmp_path: Path) -> None:
    assert share(tmp_path, "host: 192.0.2.1", "1 s") == pytest.approx(0.010)


def test_a_longer_period_takes_less_and_too_much_is_warned_about(tmp_path: Path) -> None:
    assert share(tmp_path, "port: /dev/ttyAMA0", "10 s") < 0.01
    assert share(tmp_path, "port: /dev/ttyAMA0\n    baud_rate: 1200", "150 ms") > 1
    assert [problem.code for problem in make_plan(tmp_path, Registry()).warnings] == ["overloaded-link"]
