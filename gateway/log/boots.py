"""Boots: what the clock of each boot was worth, and the true time of what was read under it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from gateway.log.segment import Columns, Stamp, TimeState
from gateway.sdk.reading import TimeSource

STEP_US: Final = 1_000_000  # a wall clock that moved further than this against boot time was set, not disciplined
FUTURE_US: Final = 300 * 1_000_000


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

    def correct(self, columns: Columns, start: int, stamp: Stamp, now_us: int | None) -> None:
        """Make the times from index `start` on true, and fill `time_state`.

        Args:
            now_us: the present time when it is trusted, else None: then nothing can be called future.
        """
        shift_us, state = self.resolve(stamp)
        times, sources = columns.time_us, columns.time_source
        count = len(times) - start
        if shift_us:
            for i in range(start, len(times)):
                if sources[i] is TimeSource.GATEWAY:
                    times[i] += shift_us
        if state is TimeState.SURE:
            columns.time_state += [state] * count
        else:
            columns.time_state += [
                state if source is TimeSource.GATEWAY else TimeState.SURE for source in sources[start:]
            ]
        if now_us is not None and count and max(times[start:]) > now_us + FUTURE_US:
            for i in range(start, len(times)):
                if times[i] > now_us + FUTURE_US:
                    columns.time_state[i] = TimeState.FUTURE

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
