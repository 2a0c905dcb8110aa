"""The last good config as a file: whole or not at all, never one that cannot be trusted, nobody else's to read."""

import os
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.config.last_good import MAX_OWN_BYTES, LastGood, NotKept, Snapshot, Unpacked, place_of, snapshot
from gateway.sdk.errors import Problem
from tests.support.rights import run_on_a_card, without_root

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
FOUND = Snapshot("citygate.yaml", {"citygate.yaml": "version: 1\n", "conf.d/a.yaml": "x-a: ä\n"}, ("models/x.json",))


def kept(folder: Path) -> LastGood:
    """One that is kept."""
    its = LastGood(folder / "last-good.json")
    assert its.write(FOUND, config="/etc/citygate/citygate.yaml", at=NOON)
    return its


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    its = kept(tmp_path).read()

    assert (its.at, its.config, its.snapshot) == (NOON, "/etc/citygate/citygate.yaml", FOUND)
    assert os.listdir(tmp_path) == ["last-good.json"]


def test_the_group_may_read_it_whatever_the_umask_says_and_nobody_else(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        its = kept(tmp_path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(its.file.stat().st_mode) == 0o640


def test_the_same_again_does_not_touch_the_card(tmp_path: Path) -> None:
    its = kept(tmp_path)
    before = its.file.stat()

    assert not its.write(FOUND, config="/etc/citygate/citygate.yaml", at=datetime.now(UTC))

    assert (its.file.stat().st_ino, its.file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert its.write(FOUND, config="/etc/other/citygate.yaml", at=NOON), "secrets are beside the config it came from"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: b"", "it is damaged"),
        (lambda data: data[: len(data) // 2], "it is damaged"),
        (lambda data: b"\0" * len(data), "it is damaged"),
        (lambda data: b"[]", "it is damaged"),
        (lambda data: data.replace(b"version: 1", b"version: 2"), "it is not as it was written"),
        (lambda data: data.replace(b'"format": 1', b'"format": 2'), "its format is 2, this citygate reads 1"),
        (lambda data: data.replace(b'"files"', b'"fils"'), "it is damaged"),
    ],
)
def test_one_that_cannot_be_trusted_is_none_and_is_written_anew(tmp_path: Path, spoil: Any, said: str) -> None:
    its = kept(tmp_path)
    its.file.write_bytes(spoil(its.file.read_bytes()))

    with pytest.raises(NotKept, match=said):
        its.read()

    assert its.write(FOUND, config="/etc/citygate/citygate.yaml", at=NOON)
    assert its.read().snapshot == FOUND


@pytest.mark.parametrize("name", ["../evil.yaml", "/tmp/evil.yaml", "conf.d/../../evil.yaml"])
@pytest.mark.parametrize("of", ["a file", "the main file"])
def test_a_name_that_leads_out_of_it_is_refused(tmp_path: Path, name: str, of: str) -> None:
    its = LastGood(tmp_path / "last-good.json")
    found = Snapshot("citygate.yaml", {name: ""}) if of == "a file" else Snapshot(name, {"citygate.yaml": ""})
    its.write(found, config="x", at=NOON)

    with pytest.raises(NotKept, match="is outside of it"):
        its.read()


def test_what_is_no_regular_file_is_none(tmp_path: Path) -> None:
    its = LastGood(tmp_path / "last-good.json")
    with pytest.raises(NotKept, match="there is no last good config yet"):
        its.read()
    os.mkfifo(its.file)
    with pytest.raises(NotKept, match="it is no regular file"):
        its.read()


def test_a_write_that_was_cut_off_leaves_the_old_one_and_is_no_hindrance(tmp_path: Path) -> None:
    its = kept(tmp_path)
    (tmp_path / ".last-good.json.new").write_bytes(b'{"format": 1, "cut')

    assert its.read().snapshot == FOUND
    other = Snapshot("citygate.yaml", {"citygate.yaml": "version: 1\n# new\n"})
    assert its.write(other, config="x", at=NOON)
    assert its.read().snapshot == other
    assert os.listdir(tmp_path) == ["last-good.json"]


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    its, other = LastGood(tmp_path / "last-good.json"), tmp_path / "passwd"
    other.write_text("root:x:0:0\n")
    (tmp_path / ".last-good.json.new").symlink_to(other)

    with pytest.raises(NotKept, match="cannot be written"):
        its.write(FOUND, config="x", at=NOON)

    assert other.read_text() == "root:x:0:0\n"
    assert its.write(FOUND, config="x", at=NOON), "it is gone by then"


def test_a_folder_that_may_not_be_written_keeps_the_old_one_and_is_told(tmp_path: Path) -> None:
    its = kept(tmp_path)
    tmp_path.chmod(0o555)
    with without_root(), pytest.raises(NotKept, match="cannot be written: Permission denied"):
        LastGood(its.file).write(Snapshot("citygate.yaml", {}), config="x", at=NOON)
    tmp_path.chmod(0o755)
    assert its.read().snapshot == FOUND


FULL = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from gateway.config.last_good import LastGood, NotKept, Snapshot
folder = Path(sys.argv[1])
its = LastGood(folder / "last-good.json")
its.write(Snapshot("a", {"a": "small"}), config="x", at=datetime.now(UTC))
with (folder / "rest").open("wb", buffering=0) as rest:
    try:
        while True:
            rest.write(b"x" * 4096)
    except OSError:
        pass
try:
    its.write(Snapshot("a", {"a": "large" * 20000}), config="x", at=datetime.now(UTC))
except NotKept as error:
    assert "No space left" in str(error), error
else:
    raise SystemExit("it was written")
assert its.read().snapshot.files == {"a": "small"}
assert sorted(f.name for f in folder.iterdir()) == ["last-good.json", "rest"]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system of its own")
def test_a_full_card_keeps_the_old_one(tmp_path: Path) -> None:
    run_on_a_card(tmp_path, "256k", FULL)


def test_a_snapshot_has_all_that_the_config_is_made_of_and_no_secret(tmp_path: Path) -> None:
    files = {
        "box.yaml": "version: 1\n",
        "conf.d/a.yaml": "x-a: 1\n",
        "templates/acme/own.yaml": "vendor: acme\n",
        "cities/own.yaml": "city: x\n",
        "models/dataModel.Own/Own/schema.json": "{}",
        "secrets/milano": "hunter2hunter2",
        "notes.txt": "mine",
        "templates/acme/README.md": "how it was made",
        "other.yaml": "another box\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "templates" / "acme" / "odd.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "models" / "index.json").write_bytes(b" " * (8 << 20))

    found = snapshot(tmp_path / "box.yaml")

    assert (found.main, sorted(found.files)) == ("box.yaml", sorted(list(files)[:5]))
    assert found.left_out == ("templates/acme/odd.yaml", "models/index.json")


@pytest.mark.parametrize("more", [0, 1])
def test_what_is_kept_of_ones_own_models_has_a_bound(tmp_path: Path, more: int) -> None:
    (tmp_path / "citygate.yaml").write_text("version: 1\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.json").write_bytes(b" " * (MAX_OWN_BYTES + more))
    assert snapshot(tmp_path).left_out == (("models/x.json",) if more else ())


def test_a_copy_is_there_as_long_as_it_is_needed_and_its_problems_name_it(tmp_path: Path) -> None:
    copy = Unpacked(kept(tmp_path).read())
    assert (copy.folder / "conf.d" / "a.yaml").read_text() == "x-a: ä\n"
    assert stat.S_IMODE(copy.folder.stat().st_mode) == 0o700
    problem = copy.shown(Problem("x", (), "wrong", "", file=str(copy.folder / "conf.d" / "a.yaml")))
    assert problem.file == "last good config: conf.d/a.yaml"
    copy.close()
    assert not copy.folder.exists()


def test_it_is_in_the_services_own_folder_else_beside_the_buffer(tmp_path: Path) -> None:
    buffer = Path("/data/b.db")
    assert place_of(buffer, {"STATE_DIRECTORY": "/var/lib/citygate:/x"}) == Path("/var/lib/citygate/last-good.json")
    assert place_of(buffer, {}) == Path("/data/last-good.json")
