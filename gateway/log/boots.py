"""Boots: what the clock of each boot was worth, and the true time of what was read under it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from gateway.claims import AHEAD_US, EARLIEST_US, FOREVER, Claim
from gateway.log.segment import Columns, Stamp, TimeState
from gateway.sdk.reading import TimeSource

STEP_US: Final = 1_000_000  # a wall clock that moved further than this against boot time was set, not disciplined
FUTURE_US: Final = AHEAD_US
_FOREVER_S: Final = int(FOREVER.total_seconds())


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot of the box.

    Attributes:
        name: the kernel's boot id.
        offset_us: true wall time minus boot time, so the true time at which it started; None while nobody told.
        source: rank of who told.
        up_us: boot time when it was last seen alive.
        estimate_us, margin_us: of a boot that never learned the time: `offset_us` as placed between its neighbours, ± margin.
    """

    id: int
    name: str
    offset_us: int | None = None
    source: int = 0
    up_us: int = 0
    estimate_us: int | None = None
    margin_us: int = 0


class Boots:
    """The boot table, and the correction of times at read.

    A correction never changes once it was used: the same reading must carry the same `observedAt` when it is sent again.
    """

    def __init__(self, boots: Iterable[Boot], current: int) -> None:
        self._boots = {boot.id: boot for boot in boots}
        self.current = current

    @property
    def confirmed(self) -> bool:
        """Whether the true time of the present boot is known."""
        return self._boots[self.current].offset_us is not None

    def rows(self) -> list[Boot]:
        """The table as it is to be persisted."""
        return list(self._boots.values())

    def learned(self, stamp: Stamp) -> list[Boot]:
        """Rows to persist, then `take`, when this stamp tells something new about the true time of the present boot."""
        boot = self._boots[self.current]
        if not stamp.trusted or stamp.source <= boot.source:
            return []
        boot = replace(boot, offset_us=stamp.offset_us, source=stamp.source)
        return [boot, *self._estimated({**self._boots, boot.id: boot})]

    def take(self, boots: Iterable[Boot]) -> None:
        """Use what was learned from now on."""
        self._boots.update((boot.id, boot) for boot in boots)

    def resolve(self, stamp: Stamp) -> tuple[int, TimeState]:
        """Microseconds to add to gateway times taken under this stamp, and what they are then worth."""
        boot = self._boots.get(stamp.boot)
        if boot is None or boot.offset_us is None or boot.source <= stamp.source:
            if stamp.trusted:
                return 0, TimeState.SURE
            if boot is None:
                return 0, TimeState.ESTIMATED  # its row was lost with a damaged file
            if boot.estimate_us is not None:
                return boot.estimate_us - stamp.offset_us, TimeState.ESTIMATED
            return 0, TimeState.UNCONFIRMED
        shift_us = boot.offset_us - stamp.offset_us
        if stamp.trusted and abs(shift_us) <= STEP_US:
            shift_us = 0
        return shift_us, TimeState.SURE

    def judge(self, stamp: Stamp, claim: Claim, time_us: int, source: TimeSource) -> tuple[int, TimeSource, TimeState]:
        """A claimed time as far as it can be believed by now: itself, or the time of reception when that cannot be.

        A boot that never learned the time is known to lie between its neighbours: the bounds are wider by as much.
        """
        shift_us, state = self.resolve(stamp)
        boot = self._boots.get(stamp.boot)
        if state is TimeState.UNCONFIRMED or boot is None:
            return time_us, source, state
        margin_us = boot.margin_us if state is TimeState.ESTIMATED else 0
        if claim.holds(time_us, source, shift_us=shift_us, margin_us=margin_us):
            return time_us, source, TimeState.SURE
        return claim.received_us + shift_us, TimeSource.GATEWAY, state

    def correct(
        self, columns: Columns, start: int, stamp: Stamp, now_us: int | None, sealed_us: int | None = None
    ) -> None:
        """Make the times from index `start` on true, and fill `time_state`.

        Args:
            now_us: the present time when it is trusted, else None: then nothing can be called future.
            sealed_us: when the segment was written, as stamped: nothing in it was received later. None: in the head.
        """
        shift_us, state = self.resolve(stamp)
        times, sources = columns.time_us, columns.time_source
        claims, columns.claims = columns.claims, []
        count = len(times) - start
        columns.time_state += [state] * count
        if not count:
            return
        newest_us, oldest_us = max(times[start:]), min(times[start:])
        if shift_us:
            for i in range(start, len(times)):
                if sources[i] is TimeSource.GATEWAY:
                    times[i] += shift_us
        for first, end, claim in claims:
            self._judge_all(columns, range(first, end), stamp, claim)
        if sealed_us is not None and state is not TimeState.UNCONFIRMED:
            received_us = sealed_us if now_us is None else min(sealed_us, now_us - shift_us)
            latest_us = received_us + min(shift_us, 0) + AHEAD_US
            if state is not TimeState.SURE or newest_us > latest_us or oldest_us < EARLIEST_US:
                judged = {i for first, end, _ in claims for i in range(first, end)}
                rest = [i for i in range(start, len(times)) if i not in judged]
                # of an earlier citygate, or the clock was corrected since: what is known of its reception
                self._judge_all(columns, rest, stamp, Claim(received_us, _FOREVER_S, _FOREVER_S))
        if now_us is not None and max(times[start:]) > now_us + FUTURE_US:
            for i in range(start, len(times)):
                if times[i] > now_us + FUTURE_US:
                    columns.time_state[i] = TimeState.FUTURE

    def _judge_all(self, columns: Columns, places: Iterable[int], stamp: Stamp, claim: Claim) -> None:
        times, sources, states = columns.time_us, columns.time_source, columns.time_state
        for i in places:
            if sources[i] is not TimeSource.GATEWAY:
                times[i], sources[i], states[i] = self.judge(stamp, claim, times[i], sources[i])

    def _estimated(self, known: dict[int, Boot]) -> list[Boot]:
        """Boots that never learned the time, placed between their neighbours that did."""
        boots = [known[number] for number in sorted(known)]
        placed = []
        for index, boot in enumerate(boots):
            if boot.offset_us is not None or boot.estimate_us is not None or boot.id == self.current:
                continue
            up_us = boot.up_us
            for after in boots[index + 1 :]:
                if after.offset_us is not None:
                    latest_us = after.offset_us - up_us
                    earliest_us = _earliest_us(boots[:index], latest_us)
                    middle_us = (earliest_us + latest_us) // 2
                    placed.append(replace(boot, estimate_us=middle_us, margin_us=latest_us - middle_us))
                    break
                up_us += after.up_us
        return placed


def _earliest_us(boots: list[Boot], latest_us: int) -> int:
    """When the boot after `boots` can have started at the earliest; without a witness: when it did at the latest."""
    up_us = 0
    for boot in reversed(boots):
        up_us += boot.up_us
        if boot.offset_us is not None:
            return min(boot.offset_us + up_us, latest_us)
    return latest_us
