"""A counter that restarts from 0 at its end: how far it has come in all. See docs/decisions/0503-counters-in-doubt.md."""

from dataclasses import dataclass, replace

VERSION = "2"  # of the saved form; the former one was `base last`
FASTER = 10.0  # so much more than ever before may be counted before it is doubted
HALF_LIFE_S = 7 * 86400.0  # a rate that was not reached again counts half after a week
NOISE = 1 / 65536  # of a round: a step that is never doubted, a dip that is none
NEAR = 1 / 64  # of a round: near its end, near its start; a step in the dark
CONFIRMED = 2  # readings in a row that agree
NEW_COUNT = 3  # readings after which a count that begins anew is believed, once it has moved
NEW_COUNT_S = 60.0  # or stood still for so long: a meter that restarts says 0 for seconds
TRIES = 3  # readings in doubt of which no two agree; then any step up is agreement
FORMER_COUNTS = 1e8  # no round of so many counts was ever gone through while the former version was in use


@dataclass(frozen=True, slots=True)
class Track:
    """A count that goes on.

    Attributes:
        base: what its earlier rounds add up to.
        last: where it stood.
        at_s: when, in seconds since 1970.
    """

    base: float
    last: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Doubt:
    """A count that does not go on from the believed one.

    Attributes:
        first, first_at_s: where it was seen first.
        last, last_at_s: and last.
        seen: readings that agree with it.
        tries: readings since anything was believed.
    """

    first: float
    first_at_s: float
    last: float
    last_at_s: float
    seen: int = 1
    tries: int = 1


@dataclass(slots=True)
class Counter:
    """The running total of one point.

    A value that does not go on from the last one by what can have been counted in between is doubted: no total until
    the next readings tell whether the old count goes on (a glitch) or another one does (a new round, a reset, another
    meter). The count that was given up is remembered: when it comes back it is believed again.

    Attributes:
        track: the count that is believed; None before the first value.
        rate: the most that was counted per second; None until something was.
        former: the count that was given up for `track`, or that it made a wide step from; forgotten when that has moved
            on.
        former_rate: `rate` before that step.
        since: where `track` stood when it was believed.
        doubt: what is seen instead of `track`.
        rounds: what the operator last said of the rounds gone through; None: nothing.
    """

    track: Track | None = None
    rate: float | None = None
    former: Track | None = None
    since: float = 0.0
    former_rate: float | None = None
    doubt: Doubt | None = None
    rounds: int | None = None

    def take(self, value: float, rollover: float, at_s: float) -> float | None:
        """The running total.

        Args:
            value: as read, 0 up to `rollover`.
            at_s: when, in seconds since 1970; may step.

        Returns:
            None while it is in doubt, and for a value that this counter cannot have.
        """
        if not 0 <= value < rollover:  # also NaN
            return None
        track = self.track
        if track is None:
            self.track = Track((self.rounds or 0) * rollover, value, at_s)
            return _total(self.track)
        if self._goes_on(track, value, rollover, at_s):
            if value - track.last > NEAR * rollover:  # possible, but it may be a glitch all the same
                self.former, self.since, self.former_rate = track, value, self.rate
            elif value - self.since > NEAR * rollover:
                self.former = None
            self._learn(value - track.last, at_s - track.at_s)
            self.track = Track(track.base, value, at_s)
            self.doubt = None
            return _total(self.track)
        self.doubt = doubt = self._doubted(value, rollover, at_s)
        base = self._settled(track, doubt, rollover)
        if base is None:
            return None
        if 0 < doubt.first - track.last <= NEAR * rollover:
            self._learn(doubt.first - track.last, doubt.first_at_s - track.at_s)
        self._learn(value - doubt.first, at_s - doubt.first_at_s)
        self.former, self.track, self.since, self.doubt = track, Track(base, value, at_s), value, None
        return _total(self.track)

    def correct(self, rounds: int | None, rollover: float) -> None:
        """The operator says how many rounds lie behind; what was said before is not done again."""
        if rounds is not None and rounds != self.rounds and self.track is not None:
            self.track, self.former, self.doubt = replace(self.track, base=rounds * rollover), None, None
        self.rounds = rounds

    def _can_count(self, elapsed_s: float, rollover: float) -> float:
        """The most that is believed to be counted in this time."""
        if self.rate is None:
            return NEAR * rollover
        return max(NOISE * rollover, FASTER * self.rate * max(0.0, elapsed_s))

    def _goes_on(self, track: Track, value: float, rollover: float, at_s: float) -> bool:
        return -NOISE * rollover <= value - track.last <= self._can_count(at_s - track.at_s, rollover)

    def _learn(self, step: float, elapsed_s: float) -> None:
        if elapsed_s <= 0:
            return
        if self.rate is not None:
            self.rate = max(self.rate * 0.5 ** (elapsed_s / HALF_LIFE_S), step / elapsed_s)
        elif step > 0:
            self.rate = step / elapsed_s

    def _doubted(self, value: float, rollover: float, at_s: float) -> Doubt:
        """This reading put to the doubted count, or as a doubted one of its own."""
        doubt = self.doubt
        if doubt is None:
            return Doubt(value, at_s, value, at_s)
        most = max(NEAR * rollover, self._can_count(at_s - doubt.last_at_s, rollover))
        if not self.rate or doubt.tries >= TRIES:
            most = rollover / 2
        if -NOISE * rollover <= value - doubt.last <= most:
            return replace(doubt, last=value, last_at_s=at_s, seen=doubt.seen + 1, tries=doubt.tries + 1)
        return Doubt(value, at_s, value, at_s, tries=doubt.tries + 1)

    def _settled(self, track: Track, doubt: Doubt, rollover: float) -> float | None:
        """What the rounds before the doubted count add up to, once it is believed."""
        if doubt.seen < CONFIRMED:
            return None
        if self.former is not None and self._goes_on(self.former, doubt.last, rollover, doubt.last_at_s):
            self.rate = self.former_rate or self.rate  # what was learned by a glitch is none
            return self.former.base
        fall = track.last - doubt.first
        if fall <= NEAR * rollover:  # a jump up, or counts that the meter had not saved when its power failed
            return track.base
        if self._is_next_round(track, doubt, rollover):
            return track.base + rollover
        if self.former is not None and self._is_next_round(self.former, doubt, rollover):
            return self.former.base + rollover  # the glitch came at the end of a round
        stood_s = doubt.last_at_s - doubt.first_at_s
        if doubt.seen >= NEW_COUNT and (doubt.last > doubt.first or stood_s >= NEW_COUNT_S):
            return 0.0
        return None

    def _is_next_round(self, track: Track, doubt: Doubt, rollover: float) -> bool:
        """It stood so near the end, and stands so near the start, that this can have been counted in between. After an
        absence in which several rounds fit, one is assumed: nobody can know how many there were."""
        if self.rate is None:
            return False
        elapsed_s = doubt.first_at_s - track.at_s
        step = rollover - track.last + doubt.first
        if step > max(NEAR * rollover, self._can_count(elapsed_s, rollover)):
            return False
        return step < rollover / 2 or self.rate * elapsed_s >= rollover

    def saved(self) -> bytes:
        """For the driver's state; what is in doubt is asked again after a restart."""
        if self.track is None:
            return b""
        tracks = (self.track,) if self.former is None else (self.track, self.former)
        numbers = [number for its in tracks for number in (its.base, its.last, its.at_s)]
        return " ".join(map(str, (VERSION, self.rate, self.rounds, self.since, *numbers))).encode()

    @classmethod
    def restored(cls, data: bytes, *, counts: float = 0.0) -> "Counter":
        """From `saved`, also of the former version; a new one when it is not readable.

        Args:
            counts: how many counts a round has. The former version took a single 0 for a new round; a total that it
                saved with rounds of `FORMER_COUNTS` or more is put right.
        """
        try:
            version, *rest = data.decode("ascii").split()
            if version != VERSION or len(rest) < 6:
                base, last = float(version), float(*rest)
                return cls(Track(0.0 if counts >= FORMER_COUNTS else _sane(base), _sane(last), 0.0), rate=0.0)
            rate, rounds = (None if text == "None" else _sane(float(text)) for text in rest[:2])
            since, *numbers = map(_sane, map(float, rest[2:]))
            tracks = [Track(*numbers[at : at + 3]) for at in range(0, len(numbers), 3)]
        except (ValueError, TypeError):
            return cls()
        former = tracks[1] if len(tracks) > 1 else None
        return cls(tracks[0], rate, former, since, rounds=None if rounds is None else int(rounds))


def _sane(number: float) -> float:
    """Raises ValueError for what no counter ever saved."""
    if not 0 <= number < 1e300:
        raise ValueError(f"{number} in a saved counter")
    return number


def _total(track: Track) -> float:
    if not track.base:
        return track.last
    return float(f"{track.base + track.last:.15g}")  # 4294967.296 + 12.345 without the noise of the addition
