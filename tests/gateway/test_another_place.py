"""`buffer.path` names another place: at the next start the log goes there whole, or what the old file owes is named."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from gateway.cli import box
from gateway.config.place import last_place
from gateway.log.moved import bring_along
from gateway.log.store import PAGE_BYTES
from gateway.sdk.errors import LogError
from gateway.sdk.testing import ManualClock
from tests.gateway.log.scene import CITY, OTHER, a_set, everything, opened, settle
from tests.gateway.test_brokers_that_go import cities, points
from tests.support.rights import without_root


async def old_log(folder: Path) -> Path:
    folder.mkdir()
    log = await opened(folder, CITY, OTHER)
    for n in range(5):
        await log.append(a_set(n))
        await log.commit()
    await settle(log, "milano", 2)
    await log.close()
    return folder / "buffer.db"


async def owed(folder: Path) -> dict[str, list[int]]:
    log = await opened(folder, CITY, OTHER)
    found = {name: await everything(log, name) for name in ("milano", "porto")}
    await log.close()
    return found


OWED = {"milano": [2, 3, 4], "porto": [0, 1, 2, 3, 4]}


async def test_the_log_goes_along_and_the_old_file_is_set_aside(tmp_path: Path) -> None:
    old, new = await old_log(tmp_path / "a"), tmp_path / "b" / "buffer.db"
    assert bring_along(old, new, ManualClock()) == ""
    assert not old.exists()
    assert [
        file.name.startswith("buffer.db.moved-") for file in old.parent.glob("buffer.db.*") if ".lock" not in file.name
    ] == [True]
    assert await owed(new.parent) == OWED
    assert os.stat(new).st_mode & 0o007 == 0
    assert bring_along(new, old, ManualClock()) == ""  # and back
    assert await owed(old.parent) == OWED


async def test_a_copy_cut_short_is_made_again_and_a_whole_one_is_not_taken_twice(tmp_path: Path) -> None:
    old, new = await old_log(tmp_path / "a"), tmp_path / "b" / "buffer.db"
    new.parent.mkdir()
    part = new.with_name("buffer.db.moving")
    part.write_bytes(old.read_bytes()[:5000])  # power went in the middle of it
    kept = old.read_bytes()
    assert bring_along(old, new, ManualClock()) == ""
    assert not part.exists()
    assert await owed(new.parent) == OWED
    old.write_bytes(kept)  # power went before the old one was set aside
    assert bring_along(old, new, ManualClock()) == ""
    assert not old.exists()
    assert await owed(new.parent) == OWED


async def test_where_there_is_a_log_already_nothing_is_touched_and_what_is_owed_is_told(tmp_path: Path) -> None:
    old, new = await old_log(tmp_path / "a"), await old_log(tmp_path / "b")
    log = await opened(new.parent, CITY, OTHER, clock=ManualClock())
    await log.close()
    before = old.read_bytes()
    other = ManualClock()
    other.advance(5)
    log = await opened(old.parent, CITY, OTHER, clock=other)  # a start that the new one knows nothing of
    await log.close()
    assert bring_along(old, new, ManualClock()) == f"{old} still owes 10 readings"
    assert old.exists()
    assert before
    assert await owed(new.parent) == OWED


async def test_an_old_log_that_owes_nothing_is_left_beside_without_a_word(tmp_path: Path) -> None:
    old, new = await old_log(tmp_path / "a"), await old_log(tmp_path / "b")
    clock = ManualClock()
    clock.advance(5)
    log = await opened(old.parent, CITY, OTHER, clock=clock)
    for name, consumer in (("milano", 3), ("porto", 5)):
        await settle(log, name, consumer)
    await log.close()
    assert bring_along(old, new, ManualClock()) == ""
    assert old.exists()


async def test_held_pieces_are_owed_too(tmp_path: Path) -> None:
    old, new = await old_log(tmp_path / "a"), await old_log(tmp_path / "b")
    clock = ManualClock()
    clock.advance(5)
    log = await opened(old.parent, CITY, OTHER, clock=clock)
    columns = await log.read("porto")
    assert columns is not None
    await log.held.hold("porto", "e", "meter-1", columns, reason="no", at=clock.now())
    for name in ("milano", "porto"):
        await log.settle(name, columns.last)
    await log.close()
    assert bring_along(old, new, ManualClock()) == f"{old} still owes 10 readings"


async def test_what_everybody_has_is_not_owed_there(tmp_path: Path) -> None:
    old, new = await old_log(tmp_path / "a"), await old_log(tmp_path / "b")
    clock = ManualClock()
    clock.advance(5)
    log = await opened(old.parent, CITY, OTHER, clock=clock, keep_s=3600.0)
    await settle(log, "porto", 3)
    await log.close()
    for end in ("though it is kept", "and it is gone"):
        assert bring_along(old, new, ManualClock()) == f"{old} still owes 6 readings", end
        log = await opened(old.parent, CITY, OTHER, clock=clock)
        await log.close()


@pytest.mark.parametrize("page", [1, 3])
async def test_a_damaged_log_stays_and_is_named(tmp_path: Path, page: int) -> None:
    old, new = await old_log(tmp_path / "a"), tmp_path / "b" / "buffer.db"
    with old.open("r+b") as file:
        file.seek(page * PAGE_BYTES)
        file.write(b"\xff" * PAGE_BYTES)
    assert f"{old} could not be brought along: database disk image is malformed" in bring_along(old, new, ManualClock())
    assert old.exists()
    assert not list(new.parent.glob("buffer.db*"))


async def test_a_log_in_use_is_not_taken(tmp_path: Path) -> None:
    old, new = await old_log(tmp_path / "a"), tmp_path / "b" / "buffer.db"
    log = await opened(old.parent, CITY, OTHER)
    assert "is in use" in bring_along(old, new, ManualClock())
    assert not new.exists()
    await log.close()


@pytest.mark.parametrize("what", ["nothing", "a folder", "a text", "the same by a link"])
async def test_what_is_no_other_log_is_left_alone(tmp_path: Path, what: str) -> None:
    old, new = tmp_path / "a" / "buffer.db", tmp_path / "b" / "buffer.db"
    if what == "the same by a link":
        await old_log(tmp_path / "a")
        new.parent.mkdir()
        new.symlink_to(old)
    elif what == "a folder":
        old.mkdir(parents=True)
    elif what == "a text":
        old.parent.mkdir()
        old.write_text("a text\n" * 200)
    assert bring_along(old, new, ManualClock()) == ""
    assert old.exists() is (what != "nothing")
    assert new.exists() is (what == "the same by a link")


async def test_a_place_that_this_user_may_not_enter_is_told_and_stops_nobody() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        with without_root():
            old, closed = await old_log(Path(name) / "old"), Path(name) / "closed"
            closed.mkdir(mode=0)
            new = closed / "deeper" / "buffer.db"
            config = Path(name) / "citygate.yaml"
            config.write_text(f"buffer: {{path: {new}}}")

            said = bring_along(old, new, ManualClock())
            log = await opened(new.parent, CITY)

            assert said == f"{old} could not be brought along: [Errno 13] Permission denied: '{new}'"
            assert f"the right to write {new}" in log.status()["remedy"]
            assert box.control_socket(config) == new.with_name("control.sock")
            with pytest.raises(LogError):
                await log.close()
            assert await owed(old.parent) == OWED
        closed.chmod(0o700)


async def test_a_box_whose_buffer_moves_sends_all_and_the_command_finds_it_meanwhile(tmp_path: Path) -> None:
    async with cities(tmp_path) as scene:
        its = scene.its
        async with its.at_work():
            await scene.owes("memory")
            assert last_place(its.path) == tmp_path / "buffer.db"
            said = await its.reload((f"{tmp_path}/buffer.db", "elsewhere/buffer.db"))
            assert [line for line in said["changed"] if line.startswith("buffer")]
            assert box.control_socket(its.path) == tmp_path / "control.sock"  # until it is restarted
            (tmp_path / "elsewhere").mkdir()
            with socket.socket(socket.AF_UNIX) as left:  # by a daemon that was killed there once
                left.bind(str(tmp_path / "elsewhere" / "control.sock"))
            assert box.control_socket(its.path) == tmp_path / "control.sock"
        async with its.at_work():
            await its.until(lambda: box.control_socket(its.path) == tmp_path / "elsewhere" / "control.sock")
            scene.porto.behaviour.fault = ""
            await scene.porto.until(lambda: points(scene.porto) == {1.0: 1, 2.0: 1, 3.0: 1})
            assert not (tmp_path / "buffer.db").exists()
            assert not its.daemon.ready()
