"""What is said to who may not use a socket."""

import grp
import os
from pathlib import Path

from gateway.http.who import closed, user

NOGROUP = 65534


def test_the_group_is_that_of_the_nearest_folder_that_can_be_seen(tmp_path: Path) -> None:
    if os.getuid() == 0:  # what root makes is of no group that helps
        assert closed(tmp_path / "control.sock") == (
            f"user {user()} may not use {tmp_path}/control.sock",
            "`sudo citygate …`",
        )
        os.chown(tmp_path, -1, NOGROUP)
    group = grp.getgrgid(os.stat(tmp_path).st_gid).gr_name
    said, remedy = closed(tmp_path / "run" / "control.sock")
    assert said == f"user {user()} is not in the group {group}, which may use {tmp_path}/run/control.sock"
    assert f"`sudo usermod -aG {group} {user()}`, then log in again" in remedy
