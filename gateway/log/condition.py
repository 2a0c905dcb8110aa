"""Condition of the log: what is wrong with it, what a person can do about it, and what was given up. Told once, not every time."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from gateway.log.held import DROPPED, WANTED
from gateway.log.refusal import KEPT, Refusal
from gateway.log.salvage import Report
from gateway.log.store import Gap
from gateway.sdk.driver import Clock
from gateway.sdk.errors import LogError

_KEEPS_AGAIN_AFTER_S: Final = 600.0  # a full file drops some with every few commits: that is one state, not many
_GAPS_KEPT: Final = 1000
_UNCONFIRMED: Final = "the clock is not confirmed: readings are held back"
_events = structlog.get_logger()


class Condition:
    """One state with reason and remedy, out of all that can be wrong at a time.

    Attributes:
        failure: why the file cannot be used now; "" when it can.
        failed_s: when that was found the last time.
        in_doubt: whether a commit that failed may have been written after all.
        unkept: what of the housekeeping cannot be made; "" when all can.
        gaps: what was given up, oldest first; the newest thousand.
        closed: no set is taken, and no commit starts by itself: it would meet a closed file.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.failure = ""
        self.failed_s = 0.0
        self.in_doubt = False
        self.gaps: list[Gap] = []
        self.closed = False
        self._clock = clock
        self._opened_s = clock.monotonic_s()
        self._bad_since = clock.now()
        self._remedy = ""
        self._salvaged: Report | None = None
        self._not_adopted = ""
        self.unkept = ""
        self._unwritable = ""
        self._dropping = ""
        self._dropped_s = 0.0

    # What comes in

    def failed(self, error: Exception) -> None:
        """The file cannot be used now."""
        self.failed_s = self._clock.monotonic_s()
        if not isinstance(error, Refusal):
            told = isinstance(error, LogError)
            said = str(error) if told else f"{self.path}: {type(error).__name__}: {error}"
            error = Refusal(said, KEPT if told else f"please report it with the journal; {KEPT}")
        if not self.failure:
            self._bad_since = self._clock.now()
            _events.error("log_write_failed", path=str(self.path), error=str(error), remedy=error.remedy)
        self.failure, self._remedy = f"not written: {error}", error.remedy
        self.in_doubt = True

    def worked(self) -> None:
        """A commit was written."""
        if self.failure:
            _events.info("log_writes_again", path=str(self.path))
        self.failure = self._remedy = ""

    def note_gaps(self, gaps: Sequence[Gap]) -> None:
        """Readings were given up."""
        self.gaps += gaps
        del self.gaps[:-_GAPS_KEPT]
        reason = gaps[-1].reason
        if reason in WANTED:  # a person did it
            return
        self._dropped_s = self._clock.monotonic_s()
        if reason != self._dropping:
            self._dropping = reason
            self._bad_since = self._clock.now()
            _events.warning("log_gives_up_readings", path=str(self.path), reason=reason)

    def note_unwritable(self, what: str) -> None:
        """A piece, and not the file, is to blame."""
        if what != self._unwritable:
            _events.error("log_unwritable", path=str(self.path), what=what)
        if not self._unwritable:
            self._bad_since = self._clock.now()
        self._unwritable = what
        self._dropped_s = self._clock.monotonic_s()

    def note_kept(self) -> None:
        """A commit gave nothing up: after a while that is over."""
        if (
            (self._dropping or self._unwritable)
            and not self.failure
            and self._clock.monotonic_s() - self._dropped_s >= _KEEPS_AGAIN_AFTER_S
        ):
            self._dropping = self._unwritable = ""
            _events.info("log_keeps_everything_again", path=str(self.path))

    def note_housekeeping(self, error: Exception | None) -> None:
        """Last values and statistics were made ready for the commit, or could not be."""
        if error is None:
            self.unkept = ""
            return
        if not self.unkept:
            self._bad_since = self._clock.now()
        self.unkept = f"last values and statistics cannot be saved: {type(error).__name__}: {error}"
        _events.error("log_housekeeping_failed", path=str(self.path), error=self.unkept)

    def note_salvage(self, report: Report) -> None:
        """The file was damaged or gone, and made anew."""
        self._salvaged = report
        self._bad_since = self._clock.now()
        _events.error("log_salvaged", path=str(self.path), report=str(report))

    def note_not_adopted(self, file: Path, error: Exception) -> None:
        """A log that an older citygate had to set aside stays there."""
        self._not_adopted = f"{file} could not be taken over: {error}"
        self._bad_since = self._clock.now()
        _events.error("log_not_adopted", path=str(file), error=str(error))

    # What is shown

    @property
    def salvaged(self) -> str:
        """What was saved of a damaged file; "" when none was."""
        return str(self._salvaged) if self._salvaged else ""

    def lost(self) -> dict[str, int]:
        """Readings that were given up, by reason."""
        lost = Counter[str]()
        for gap in self.gaps:
            lost[gap.reason] += gap.readings
        return dict(lost)

    def given_up(self, consumer: str) -> int:
        """Readings that bounds of size, age, memory and of what is held took from a consumer; purged ones not."""
        return sum(gap.owed.get(consumer, 0) for gap in self.gaps if gap.reason not in WANTED)

    def shown(self, *, held_back: bool) -> dict[str, Any]:
        """State, reason, remedy, and since when; `held_back`: readings wait for their time to be confirmed."""
        state, reason, remedy = self._worst(held_back=held_back)
        since = None if state == "ok" else self._unconfirmed_since() if reason == _UNCONFIRMED else self._bad_since
        return {"state": state, "reason": reason, "remedy": remedy, "since": since}

    def _worst(self, *, held_back: bool) -> tuple[str, str, str]:
        if self.failure:
            return "bad", self.failure, self._remedy
        if self.unkept:
            return "bad", self.unkept, "readings are stored; please report it with the journal"
        if self._unwritable:
            return (
                "bad",
                f"given up, since it cannot be written: {self._unwritable}",
                "a driver hands over what is no reading",
            )
        if self._dropping == DROPPED:
            return (
                "bad",
                "gives up the oldest of what brokers refused: too much is held",
                "see `citygate buffer held list`; correct what is refused, then requeue, or purge",
            )
        if self._dropping:
            return (
                "bad",
                f"gives up the oldest readings ({self._dropping})",
                "reach the brokers, or raise buffer.max_size",
            )
        if self._not_adopted:
            return "bad", self._not_adopted, "it is tried again at the next start"
        if self._salvaged:
            return "bad", str(self._salvaged), self._salvaged.remedy
        if held_back:
            return "bad", _UNCONFIRMED, "see the clock: its remedy is this one's"
        return "ok", "", ""

    def _unconfirmed_since(self) -> datetime:
        """When this log was opened, by what is the time now: the clock of then knew less."""
        return self._clock.now() - timedelta(seconds=self._clock.monotonic_s() - self._opened_s)
