"""Settings of the log: the `buffer:` part of the operator's file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The `buffer:` part of the operator's file, and `clock: unconfirmed`.

    Attributes:
        commit_every_s: declared loss window; 0: `append` returns when the set is on the card.
        max_size_bytes: bound of the file; the oldest readings go first.
        keep_s: settled readings are kept that long.
        unconfirmed: `hold` readings back until their time is known, or hand them out marked.
        head_bytes: bound of the part in memory; at half of it a commit starts early.
        leave_foreign: a file that is no log of ours is left where it is, for a command that only looks.
    """

    path: Path
    commit_every_s: float = 15.0
    max_size_bytes: int = 1_000_000_000
    max_age_s: float = 90 * 86_400.0
    keep_s: float = 0.0
    unconfirmed: Literal["hold", "mark"] = "hold"
    head_bytes: int = 8 * 2**20
    leave_foreign: bool = False
