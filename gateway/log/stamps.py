"""Stamps: under which clock a set was read, and what was learned of the true time of this boot."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from gateway.claims import AHEAD, FOREVER, Claim
from gateway.clock import BoxClock, Source
from gateway.log.boots import STEP_US, Boot, Boots
from gateway.log.pending import Pending
from gateway.log.segment import Stamp, TimeState, microseconds, wall_time
from gateway.log.store import Loaded
from gateway.sdk.driver import Clock
from gateway.sdk.reading import Reading, TimeSource

FUTURE: Final = AHEAD
WEAK: Final = int(Source.RTC)  # up to this rank what the clock says may still turn out quite wrong
_STEP_GRACE_S: Final = 600.0  # how long after a step a reading may still carry a time of before
_NO_BOOT: Final = Boot(1, "")


class Stamps:
    """What the clock is worth now, and was a moment ago.

    Attributes:
        boots: the true time of each boot, as far as it is known.
        current: the stamp of now.
        epoch: counts what was learned about time.
        learned_anew: called when something waits in `pending.boots` to be written.
    """

    def __init__(self, clock: Clock, pending: Pending, *, max_age_s: float) -> None:
        self.learned_anew: Callable[[], None]
        self.boots = Boots([_NO_BOOT], _NO_BOOT.id)
        self.epoch = 0
        self._clock = clock
        self._box = clock if isinstance(clock, BoxClock) else None  # asked once: looking at a protocol is slow
        self._pending = pending
        self._network_s = min(int(max_age_s), int(FOREVER.total_seconds()))
        self._before_step: tuple[Stamp, float] | None = None
        self.current = self._of_now()

    def take(self, loaded: Loaded) -> None:
        """The file is open: it knows the boots before this one, and how they are numbered."""
        if loaded.newest_us and self._box is not None:
            self._box.raise_floor(wall_time(loaded.newest_us))
        self.boots = Boots(loaded.boots, loaded.boot)
        self.current = self._of_now()
        self._pending.boots = []  # of before the file told
        if self._before_step is not None:
            old, stepped_s = self._before_step
            self._before_step = replace(old, boot=self.boots.current), stepped_s

    @property
    def boot_name(self) -> str:
        """The kernel's id of this boot."""
        return "unknown" if self._box is None else self._box.boot_id

    def source(self) -> int:
        """Rank of who vouches for the present time."""
        return 7 if self._box is None else int(self._box.trust.source)

    def _of_now(self) -> Stamp:
        offset_us = microseconds(self._clock.now()) - int(self._clock.monotonic_s() * 1e6)
        return Stamp(self.boots.current, offset_us, self.source())

    # What time a set belongs to

    def of(self, reading: Reading, now: datetime, now_s: float) -> Stamp:
        """The stamp a set belongs under; a new one when the clock was set or is worth something else."""
        stamp, source = self.current, self.source()
        offset_us = microseconds(now) - int(now_s * 1e6)
        if source != stamp.source or abs(offset_us - stamp.offset_us) > STEP_US:
            self._before_step = (stamp, now_s) if abs(offset_us - stamp.offset_us) > STEP_US else None
            stamp = self.current = Stamp(self.boots.current, offset_us, source)
            self.learn()
        if self._before_step is not None and reading.time_source is TimeSource.GATEWAY:
            return self._by_time(reading, now, now_s)
        return stamp

    def _by_time(self, reading: Reading, now: datetime, now_s: float) -> Stamp:
        """Just after a step a reading may still carry a time of the clock before: whichever now it is nearer to."""
        assert self._before_step is not None
        old, stepped_s = self._before_step
        if now_s - stepped_s > _STEP_GRACE_S:
            self._before_step = None
            return self.current
        then = now + timedelta(microseconds=old.offset_us - self.current.offset_us)
        nearer_now = abs(reading.observed_at - now) <= abs(reading.observed_at - then)
        return self.current if nearer_now else old

    def claim(
        self, readings: Sequence[Reading], stamp: Stamp, device_back: timedelta, received_s: float
    ) -> Claim | None:
        """How the claimed times of a set are judged once the time is known; None when it has none."""
        if all(reading.time_source is TimeSource.GATEWAY for reading in readings):
            return None
        received_us = int(received_s * 1e6) + stamp.offset_us
        return Claim(received_us, int(device_back.total_seconds()), self._network_s)

    # What was learned of the clock

    def before_step(self) -> datetime | None:
        """What the clock would show now that was set a moment ago; None when it was not."""
        self.look()
        if self._before_step is None:
            return None
        return wall_time(int(self._clock.monotonic_s() * 1e6) + self._before_step[0].offset_us)

    def look(self) -> None:
        """The clock may have become trusted while nothing was appended."""
        now = self._of_now()
        if now.source != self.current.source or abs(now.offset_us - self.current.offset_us) > STEP_US:
            self._before_step = (self.current, self._clock.monotonic_s())
            self.current = now
            self.learn()

    def learn(self) -> None:
        """Persist what the present stamp says of this boot's true time; used from that commit on."""
        self._pending.boots += self.boots.learned(self.current)
        if self._pending.boots:
            self.learned_anew()

    def use(self, boots: Sequence[Boot]) -> bool:
        """From here on times are corrected by these, too; whether there are any."""
        if not boots:
            return False
        self.boots.take(boots)
        self.epoch += 1
        return True

    @property
    def confirmed(self) -> bool:
        """Whether somebody vouches for the present time."""
        return self.source() > 1

    def unconfirmed(self, stamp: Stamp) -> bool:
        """Whether the true time of what was read under this stamp is still unknown."""
        return self.boots.resolve(stamp)[1] is TimeState.UNCONFIRMED

    def trusted_now_us(self) -> int | None:
        """The present time; None while nobody vouches for it."""
        return microseconds(self._clock.now()) if self.confirmed else None

    def future(self) -> datetime | None:
        """Times from here on are not believed; None while that cannot be said."""
        return self._clock.now() + FUTURE if self.confirmed else None
