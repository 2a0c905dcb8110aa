"""Points: what the log knows of each by name, its number, newest reading and statistics, and of each device the driver's state."""

import secrets
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final

from gateway.log.condition import Condition
from gateway.log.isolate import Unwritable
from gateway.log.last_values import LastValues
from gateway.log.pending import Pending
from gateway.log.segment import LAST_VALUES, Columns, Entry, Series, entries_of, microseconds
from gateway.log.stamps import WEAK, Stamps
from gateway.log.stats import HOUR_US, Statistics
from gateway.log.store import Batch, Loaded
from gateway.sdk.driver import Clock
from gateway.sdk.reading import Reading, ReadingSet

_STATE_BYTES: Final = 4096  # of one value; what is longer would wear the card with every uplink
_STATE_KEYS: Final = 1000  # of one device
_LATE_SERIES: Final = 1 << 30  # series made while the file could not be read get numbers from here on


class Names(dict[int, Series]):
    """Series by number. One whose name was lost with a damaged record has none: nobody takes it, nobody stumbles over it."""

    def __missing__(self, number: int) -> Series:
        return Series(number, "", "")


class Points:
    """Every point ever logged, and the states of the drivers.

    Attributes:
        series: every point by its number; grows.
        ids: device -> point -> number.
        last_values: newest readings by number.
        statistics: expected, got, bad, latency per point and hour.
    """

    def __init__(self, clock: Clock, stamps: Stamps, pending: Pending, condition: Condition) -> None:
        self.series: dict[int, Series] = Names()
        self.ids: dict[str, dict[str, int]] = {}
        self.last_values = LastValues(self.series, stamps.boots)
        hour = microseconds(clock.now()) // HOUR_US
        self.statistics = Statistics(self.series, hour=hour, up_s=clock.monotonic_s())
        self._clock = clock
        self._stamps = stamps
        self._pending = pending
        self._condition = condition
        self._next = _LATE_SERIES + secrets.randbelow(2**20) * 1000
        self._states: dict[str, dict[str, bytes]] = {}

    # Numbers

    def numbers_of(self, readings: ReadingSet) -> tuple[int, ...]:
        """The numbers of a set's points, given now to those that are new."""
        return tuple(self.number_of(readings.device, reading.point) for reading in readings.readings)

    def number_of(self, device: str, point: str) -> int:
        """The number of a point, given now when it is new."""
        ids = self.ids.setdefault(device, {})
        if point not in ids:
            number = ids[point] = self._next
            self._next += 1
            self.series[number] = Series(number, device, point)
            self._pending.series[number] = (device, point)
        return ids[point]

    def take_names(self, loaded: Loaded) -> dict[int, int]:
        """The file is open: its numbers hold; returns what those made before it could be read are called there."""
        self.series.update((number, Series(number, *name)) for number, name in loaded.series.items())
        known, made = self.ids, {}
        self.ids, self._pending.series = {}, {}
        for number, (device, point) in loaded.series.items():
            self.ids.setdefault(device, {})[point] = number
        self._next = max(loaded.series, default=0) + 1
        for device, points in known.items():
            for point, number in points.items():
                made[number] = self.number_of(device, point)
        return made

    def take_rest(self, loaded: Loaded, head: Iterable[Entry], *, late: bool) -> None:
        """What else the file knows; `late`: sets came before it was open, those that are left are in the head."""
        points = {number: series.point for number, series in self.series.items()}
        self.last_values.start(self._stamps.boots)
        for header, columns in loaded.last_values:
            entries = entries_of(columns, header.stamp, points)
            self.last_values.restore(entries, header.sealed_us, saved=header.kind == LAST_VALUES)
        if late:
            self.last_values.unchanged()
        for entry in head:
            self.last_values.note(entry, self._stamps.future())
        self.statistics.load(loaded.statistics)
        for (device, key), value in loaded.states.items():
            self._states.setdefault(device, {}).setdefault(key, value)

    def move(self, moves: Mapping[str, str]) -> None:
        """Devices are called otherwise from now on: their numbers stay."""
        if not moves:
            return
        for number, of in self.series.items():
            if of.device in moves:
                self.series[number] = Series(number, moves[of.device], of.point)
                self._pending.moved[number] = moves[of.device]
        for device in moves:
            self.ids.pop(device, None)
        for number, of in self.series.items():  # of two with one name the newest is given on
            if of.device in moves.values():
                self.ids.setdefault(of.device, {})[of.point] = number

    def call_as_card(self, readings: Columns) -> dict[int, tuple[str, str]]:
        """Readings taken before the file could be read get the numbers that it knows; returns whose numbers there are."""
        now = {}
        for number in set(readings.series) & self.series.keys():
            of = self.series[number]
            now[number] = self.ids.get(of.device, {}).get(of.point, number) if number >= _LATE_SERIES else number
        readings.series = [now.get(number, number) for number in readings.series]
        return {number: (self.series[number].device, self.series[number].point) for number in now.values()}

    def note_unreported(self, device: str, reading: Reading, device_back: timedelta) -> None:
        """A reading that thinning keeps from the log: page and status show it."""
        stamps, claim = self._stamps, None
        if stamps.current.source <= WEAK:
            claim = stamps.claim((reading,), stamps.current, device_back, self._clock.monotonic_s())
        series = self.number_of(device, reading.point)
        self.last_values.note_unreported(series, reading, stamps.current, claim, stamps.future())

    # The state of drivers

    def note_state(self, device: str, state: Mapping[str, bytes]) -> None:
        known = self._states.setdefault(device, {})
        if not self._pending.states:
            self._pending.states_since_s = self._clock.monotonic_s()
        for key, value in state.items():
            wrong = _wrong_state(key, value) or (
                "too many keys" if key not in known and len(known) >= _STATE_KEYS else ""
            )
            if wrong:
                self._condition.note_unwritable(f"driver state of {device}: {wrong}")
                continue
            known[key] = value
            self._pending.states[device, key] = value

    def state_of(self, device: str) -> Mapping[str, bytes]:
        """The newest driver state of a device, by key."""
        return self._states.get(device, {})

    def move_states(self, moves: Mapping[str, str]) -> None:
        """The states of these devices' drivers are another's from now on, but for those that it has itself."""
        for old, new in moves.items():
            self._move_state(old, new, self._states_left(old), self._states.setdefault(new, {}))

    def forget_states(self, device: str) -> None:
        """Nothing is kept for this one any more."""
        if self._states_left(device):
            self._pending.stateless.append(device)

    def _states_left(self, device: str) -> dict[str, bytes]:
        """What was kept for one that is to have nothing."""
        pending = self._pending.states
        self._pending.states = {place: value for place, value in pending.items() if place[0] != device}
        return self._states.pop(device, {})

    def move_loaded_states(self, loaded: Loaded, moves: Mapping[str, str]) -> None:
        """The same for what the file holds, before it is taken over."""
        for old, new in moves.items():
            states, known = (
                {key: value for (of, key), value in loaded.states.items() if of == device} for device in (old, new)
            )
            self._move_state(old, new, states, known)
            loaded.states = {place: value for place, value in loaded.states.items() if place[0] != old}
            loaded.states.update({(new, key): value for key, value in known.items()})

    def _move_state(self, old: str, new: str, states: Mapping[str, bytes], known: dict[str, bytes]) -> None:
        if states:
            self._pending.stateless.append(old)
        for key, value in states.items():
            if known.setdefault(key, value) is value:
                if not self._pending.states:
                    self._pending.states_since_s = self._clock.monotonic_s()
                self._pending.states.setdefault((new, key), value)

    # For the commit

    def keep_house(self, batch: Batch, *, max_age_s: float) -> None:
        """Last values and statistics, for the housekeeping commit."""
        now_s, now_us = self._clock.monotonic_s(), batch.now_us
        batch.up_us = int(now_s * 1e6)
        try:
            self.last_values.confirm(self._stamps.future())
            self.statistics.turn(now_us // HOUR_US, now_s)
            last_values, statistics = self.last_values.saved(), self.statistics.to_save()
            batch.last_values, batch.statistics = last_values, statistics
            batch.statistics_from = (now_us - int(max_age_s * 1e6)) // HOUR_US
            self._condition.note_housekeeping(None)
        except Exception as error:  # noqa: BLE001  sets and cursors do not wait for it
            self._condition.note_housekeeping(error)

    def owe_all(self) -> None:
        """The file was made anew: names and states go into it with the next commit."""
        self._pending.series.update((s.id, (s.device, s.point)) for s in self.series.values())
        for device, state in self._states.items():
            for key, value in state.items():
                self._pending.states[device, key] = value

    def forget(self, found: Unwritable) -> None:
        """What cannot be written."""
        self.last_values.forget(number for e in (*found.entries, *found.last_values) for number in e.series)
        self.statistics.forget(found.statistics)
        for number in found.series:
            lost = self.series.pop(number, None)
            if lost is not None:
                self.ids.get(lost.device, {}).pop(lost.point, None)
        for device, key in found.states:
            self._states.get(device, {}).pop(key, None)


def _wrong_state(key: object, value: object) -> str:
    """Why a driver's state cannot be kept, "" when it can."""
    if not isinstance(key, str) or not isinstance(value, bytes):
        return f"{type(key).__name__} and {type(value).__name__} where text and bytes are meant"
    return f"{len(value)} bytes, at most {_STATE_BYTES} are kept" if len(value) > _STATE_BYTES else ""
