"""A device is put into the file: it is there afterwards, all else is as it was, comments included."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.edit import in_yaml, put_device, with_device
from gateway.config.tree import Scalar, read_tree
from gateway.plan import make_plan
from gateway.sdk.errors import ConfigError
from tests.gateway.test_plan import BASE
from tests.support.bench_driver import BenchRegistry

DEVICE = {"template": "acme/meter", "unit_id": 7, "every": "10 s"}

BLOCK = """\
# the roof
links:   # all of them
  roof:
    driver: bench
    devices:
      # meters come first
      meter-1: {template: acme/meter}  # the old one
      meter-2:
        template: acme/meter
        # its period is long
        every: 5 min

  # the cellar
  cellar: {driver: bench, devices: {a: {template: acme/air}}}
# the end
"""


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_a_device_is_added_after_the_last_one_with_its_indentation() -> None:
    changed = with_device(BLOCK, "roof", "meter-3", DEVICE)

    assert changed == BLOCK.replace(
        "        every: 5 min\n",
        "        every: 5 min\n      meter-3:\n        template: acme/meter\n        unit_id: 7\n        every: 10 s\n",
    )


def test_a_device_is_added_inside_braces() -> None:
    changed = with_device(BLOCK, "cellar", "b", {"template": "acme/air"})
    assert "  cellar: {driver: bench, devices: {a: {template: acme/air}, b: {template: acme/air}}}\n" in changed


def test_a_new_link_comes_after_the_others_and_the_links_after_everything() -> None:
    changed = with_device(BLOCK, "attic", "x", {"template": "acme/air"}, {"driver": "bench", "port": "/dev/ttyAMA0"})
    assert yaml.safe_load(changed)["links"]["attic"] == {
        "driver": "bench",
        "port": "/dev/ttyAMA0",
        "devices": {"x": {"template": "acme/air"}},
    }
    assert list(yaml.safe_load(changed)["links"]) == ["roof", "cellar", "attic"]
    fresh = with_device("version: 1\n# nothing yet\n", "attic", "x", {"template": "acme/air"}, {"driver": "bench"})
    assert fresh.startswith("version: 1\n# nothing yet\nlinks:\n  attic:\n    driver: bench\n    devices:\n      x:\n")


@pytest.mark.parametrize(
    "text",
    [
        BLOCK,
        BLOCK.replace("\n", "\r\n"),
        "links: {roof: {driver: bench, devices: {}}}\n",
        "links:\n  roof:\n    devices: {\n      a: {template: x},  # one\n    }\n    driver: bench\n",
        "links:\n  roof:\n    driver: bench\n    devices:\n      a:\n        template: |\n          long\n\n          text\nhttp: {}\n",
        "links:\n  roof:\n    driver: bench\n",
        "links:\n  roof:\n    driver: bench\n    devices:\n      a: {template: x}",
        "version: 1\n",
        "",
    ],
)
def test_everything_else_stays_as_it_was(text: str) -> None:
    before = yaml.safe_load(text) or {}
    after = yaml.safe_load(with_device(text, "roof", "new", DEVICE, {"driver": "bench"}))
    assert after["links"]["roof"]["devices"].pop("new") == DEVICE
    kept = [line for line in lines_of(text) if "{" not in line]
    remaining = iter(lines_of(with_device(text, "roof", "new", DEVICE, {"driver": "bench"})))
    assert all(line in remaining for line in kept)  # in their order
    if before.get("links", {}).get("roof", {}).get("devices") is not None:
        assert after == before


@pytest.mark.parametrize(
    "text", ["links: []\n", "- a\n", "links: {roof: 3}\n", "links: &x {roof: {devices: *x}}\n", "a: [\n"]
)
def test_a_file_that_cannot_be_added_to_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        with_device(text, "roof", "new", DEVICE)


def test_the_fragment_that_has_the_link_is_written_and_the_result_is_a_plan(tmp_path: Path) -> None:
    (tmp_path / "citygate.yaml").write_text(BASE)
    (tmp_path / "conf.d").mkdir()
    fragment = tmp_path / "conf.d" / "plant.yaml"
    fragment.write_text("links:\n  plant:\n    driver: bench\n    devices:\n      p-1: {template: acme/air}\n")
    fragment.chmod(0o640)

    assert put_device(tmp_path, "plant", "p-2", {"template": "acme/air"}) == fragment

    assert fragment.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "citygate.yaml").read_text() == BASE
    assert set(make_plan(tmp_path, BenchRegistry()).links["plant"].devices) == {"p-1", "p-2"}
    with pytest.raises(ConfigError, match="already"):
        put_device(tmp_path, "plant", "p-1", {"template": "acme/air"})
    with pytest.raises(ConfigError, match="no link"):
        put_device(tmp_path, "nowhere", "p-3", {"template": "acme/air"})


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20))
def test_any_text_is_written_so_that_it_is_read_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "in.yaml"
    file.write_text(f"a: {in_yaml(text)}\n", encoding="utf-8")
    node = read_tree(file, []).get("a")
    assert isinstance(node, Scalar)
    assert node.text == text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab:,{}#", max_size=4),
        lambda inner: st.lists(inner, max_size=3),
    )
)
def test_any_value_is_written_so_that_it_is_read_back_by_any_yaml_reader(value: Any) -> None:
    assert yaml.safe_load(in_yaml({"a": value})) == {"a": value}
