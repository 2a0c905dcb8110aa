"""A device is put into the file: it is there afterwards, all else is as it was, comments included."""

import os
from concurrent.futures import ThreadPoolExecutor
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
        "version: 1\n...\n",
        "version: 1\n...\n# behind the end\n",
        "links:\n  roof:\n    driver: bench\n    devices:\n      a:\n        template: x\n        note:\n# the end\n",
        "links:\n  roof:\n    driver: bench\n    devices:\n      a:\n        template: x\n        note:\nhttp: {}\n",
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


@pytest.mark.parametrize("text", ["NO", "true", "null", "~", "0x1F", "1e3", "12:30", ".inf", "y", "0 s", "a: b", ""])
def test_a_text_that_could_be_misread_is_quoted(text: str) -> None:
    assert in_yaml(text) == (text if text == "0 s" else f'"{text}"')


def test_a_fragment_that_has_the_link_without_devices_gets_them(tmp_path: Path) -> None:
    (tmp_path / "citygate.yaml").write_text(BASE)
    (tmp_path / "conf.d").mkdir()
    fragment = tmp_path / "conf.d" / "plant.yaml"
    fragment.write_text("links:\n  plant:\n    driver: bench\n")

    assert put_device(tmp_path, "plant", "p-1", {"template": "acme/air"}) == fragment
    assert set(make_plan(tmp_path, BenchRegistry()).links["plant"].devices) == {"p-1"}


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


ROOF = "links:\n  roof:\n    driver: bench\n    devices:\n"
LINES = ["      new:", "        template: acme/meter", "        unit_id: 7", "        every: 10 s"]
IN_FLOW = "new: {template: acme/meter, unit_id: 7, every: 10 s}"


def block(*, indent: int = 6, end: str = "\n") -> str:
    return "".join(" " * indent + line[6:] + end for line in LINES)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (ROOF + "      a: {key: !secret key}\n", "http: {token: !secret t}\n"),
        ("x-m: &m {template: x}\n" + ROOF + "      a: {template: y}\n      b: *m\n", "# end\n"),
        ("x-m: &m {template: x}\n" + ROOF + "      b:\n        unit_id: 1\n        <<: *m\n", "  other: {}\n"),
        (ROOF + "      a: {template: x}\t# a\ttab\n", "\n"),
        (ROOF + "      a: {template: x}\n", "# \x85  # s\n  cellar: {}\n"),
        ("# 🌡️ ünïcödé\n" + ROOF + "      'ä 🌡️': {name: '🌡️'} # 🌡️\n", "# 🌡️"),
        (ROOF + "      a:\n        note: |+\n          x\n\n\n", "# end\n"),
        (ROOF + '      a:\n        note: "long\n\n          text # x"   # c\n', "  b: 1\n"),
        (ROOF + "      a:\n        l:\n        - 1\n        - b: 2\n          c:\n", "  z: 1\n"),
        (ROOF + "      a:\n", "   # z\n"),
        (ROOF, "    # none yet\n"),
        ("links:\n  roof:\n    driver: bench\n    devices:   # none yet\n", "    port: /x\n"),
        ("---\n" + ROOF + "      a: {}\n", "...\n"),
        ("%YAML 1.1\n---\n" + ROOF + "      a: {}\n", ""),
    ],
)
def test_only_lines_are_added(before: str, behind: str) -> None:
    assert with_device(before + behind, "roof", "new", DEVICE) == before + block() + behind
    windows = (before + behind).replace("\n", "\r\n")
    assert with_device(windows, "roof", "new", DEVICE) == (
        before.replace("\n", "\r\n") + block(end="\r\n") + behind.replace("\n", "\r\n")
    )


@pytest.mark.parametrize(
    "text",
    [
        "x-m: &m {template: x}\nlinks: {roof: {devices: {b: *m@}}}\n",
        "links: {roof: {devices: {a: {template: x}@, # one\n }}}\n",
        '{"links": {"roof": {"devices": {"a": {"template": "x"}@}}}}\n',
        "links: {roof: {driver: b, devices: &a {!}}}\n",
        "links: {roof: {devices: {! # none\n }}}\n",
    ],
)
def test_in_braces_it_stands_behind_the_last_one(text: str) -> None:
    before = text.replace("@", "").replace("!", "")
    assert with_device(before, "roof", "new", DEVICE) == text.replace("@", f", {IN_FLOW}").replace("!", IN_FLOW)


def test_devices_that_stand_at_an_anchor_kept_aside_grow_there() -> None:
    aside = "x-meters: &meters\n  a: {template: x}\n"
    links = "links:\n  roof: {driver: bench, devices: *meters}\n"
    assert with_device(aside + links, "roof", "new", DEVICE) == aside + block(indent=2) + links
    base = "x-base: &base\n  driver: bench\n  devices:\n    a: {template: x}\n"
    links = "links:\n  roof:\n    <<: *base\n    port: /x\n"
    assert with_device(base + links, "roof", "new", DEVICE) == base + block(indent=4) + links


def test_an_anchor_that_two_links_share_is_not_touched() -> None:
    text = "links:\n  roof: {driver: b, devices: &all {a: {}}}\n  cellar: {driver: c, devices: *all}\n"
    with pytest.raises(ConfigError, match="without changing other parts"):
        with_device(text, "roof", "new", DEVICE)


@pytest.mark.parametrize("null", ["", " ~", " null", "  # none yet", " ~  # none yet"])
@pytest.mark.parametrize("path", ["links", "links.roof", "links.roof.devices"])
def test_a_key_with_nothing_behind_it_becomes_a_map(path: str, null: str) -> None:
    keys = path.split(".")
    text = "".join(f"{'  ' * depth}{key}:{null if key == keys[-1] else ''}\n" for depth, key in enumerate(keys))
    after = with_device(text + "http: {}  # last\n", "roof", "new", DEVICE, {"driver": "bench"})
    assert yaml.safe_load(after)["links"]["roof"]["devices"] == {"new": DEVICE}
    assert after.endswith("        every: 10 s\nhttp: {}  # last\n")
    assert ("# none yet" in after) == ("# none yet" in null)


def test_several_documents_are_refused_with_words() -> None:
    with pytest.raises(ConfigError, match="a second YAML document in one file"):
        with_device(ROOF + "---\nversion: 1\n", "roof", "new", DEVICE)


def test_the_file_keeps_line_ends_mode_owner_and_the_link_to_it(tmp_path: Path) -> None:
    real = tmp_path / "git" / "box.yaml"
    real.parent.mkdir()
    real.write_bytes((ROOF + "      a: {}\n").replace("\n", "\r\n").encode())
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 4711, 4712)
    owner = (real.stat().st_uid, real.stat().st_gid)
    (tmp_path / "citygate.yaml").symlink_to(real)

    put_device(tmp_path, "roof", "new", DEVICE)

    assert (tmp_path / "citygate.yaml").is_symlink()
    assert real.read_bytes().decode() == (ROOF + "      a: {}\n").replace("\n", "\r\n") + block(end="\r\n")
    assert real.stat().st_mode & 0o777 == 0o640
    assert (real.stat().st_uid, real.stat().st_gid) == owner
    assert [file.name for file in real.parent.iterdir()] == ["box.yaml"]


def test_a_link_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "citygate.yaml").write_text(ROOF)
    with pytest.raises(ConfigError, match=r"no link attic \(there are roof\); a new one is made with --link"):
        put_device(tmp_path, "attic", "new", DEVICE)
    with pytest.raises(ConfigError, match="link roof is there already"):
        put_device(tmp_path, "roof", "new", DEVICE, {"driver": "bench"})
    (tmp_path / "citygate.yaml").write_bytes(b"links: {}\nname: \xe4\n")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        put_device(tmp_path, "roof", "new", DEVICE, {"driver": "bench"})


def test_those_that_add_at_once_each_add_to_what_the_others_wrote(tmp_path: Path) -> None:
    (tmp_path / "citygate.yaml").write_text(ROOF + "      a: {}\n")
    names = [f"new-{number}" for number in range(12)]

    with ThreadPoolExecutor(len(names)) as persons:
        list(persons.map(lambda name: put_device(tmp_path, "roof", name, DEVICE), names))

    written = yaml.safe_load((tmp_path / "citygate.yaml").read_text())["links"]["roof"]["devices"]
    assert written.keys() == {"a", *names}
    assert [file.name for file in tmp_path.iterdir()] == ["citygate.yaml"]
