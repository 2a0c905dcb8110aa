"""Pace: how fast one broker is sent to. An operator's rate is a cap for all that goes out; without one its answers set it."""

from collections.abc import Sequence
from typing import Literal

from gateway.sdk.driver import Clock

Lane = Literal["state", "past", "both"]
SHARES = {"state": 0.75, "past": 0.25}  # of the rate, when both want it; what one does not use is the other's
SAVED_S = 0.5  # so much of the rate is saved up at most: a quiet minute is followed by no burst
DEBT_S = 60.0  # so much is owed at most: one update larger than the rate is followed by no hole of minutes
UPDATES_A_REQUEST = 100  # in a request of the past: a live request waits behind one such at most
QUICK_S = 0.25  # beyond it the past rests for as long again
LONG_S = 1.0  # and asks for less
REST_S = 5.0
LOOK_S = 300.0  # so long is looked at whether the rate is enough
ENOUGH = 1.05  # beyond it what is to be sent is more than may be sent


class Pace:
    """What each lane may send now.

    With a rate, each lane saves up its share of it and spends it by the readings that go out, repeats too. Without one
    the broker's answers count: one request at a time is its own pace, and while its answers are slow the past asks for
    less and rests between its requests.

    Args:
        rate_per_s: most readings a second; None: what the broker takes.
    """

    def __init__(self, clock: Clock, rate_per_s: float | None = None) -> None:
        self._clock = clock
        self._rate_per_s = rate_per_s
        self._saved = {lane: self._most(lane) for lane in SHARES}  # readings; below zero: owed
        self._at_s = clock.monotonic_s()
        self._lane: Lane = "both"  # whose is what goes out next
        self._next_s = {"state": 0.0, "past": 0.0, "both": 0.0}
        self._updates = UPDATES_A_REQUEST
        self._sent = 0
        self._looked: tuple[float, int, int] | None = None  # when, what was sent by then, what was owed
        self.warning = ""  # the rate is too low for what is to be sent

    def next_s(self, lane: Lane) -> float:
        """Monotonic time from which on it is worth asking how much may go."""
        return self._next_s[lane]

    def ready(self, lane: Lane) -> bool:
        """Whether it is worth asking."""
        return self._clock.monotonic_s() >= self._next_s[lane]

    def fits(self, lane: Lane, sizes: Sequence[int]) -> int:
        """How many of these updates may go now, in this order; what goes out next counts as this lane's.

        Args:
            sizes: readings of each.
        """
        self._lane = lane
        most = self._updates if lane == "past" else len(sizes)
        if self._rate_per_s is None or not sizes:
            return min(most, len(sizes))
        left = self._left(lane)
        if sizes[0] > left >= self._full(lane):
            return 1  # it never fits: it goes when all is saved up that can be
        count, total = 0, 0.0
        while count < len(sizes) and count < most and total + sizes[count] <= left:
            total += sizes[count]
            count += 1
        if count < min(most, len(sizes)):  # not for each that fits a request of its own
            wanted = max(min(sizes[count], self._full(lane)), self._full(lane) / 2)
            self._next_s[lane] = self._clock.monotonic_s() + max(0.0, (wanted - left + total) / self._rate_per_s)
        return count

    async def before(self, readings: int) -> None:
        """A request with so many is about to go out: the first of what fits at once, a repeat when it is time."""
        self._sent += readings
        rate, lane = self._rate_per_s, self._lane
        if rate is None:
            return
        while (left := self._left(lane)) < 0:
            await self._clock.sleep(max(0.01, -left / rate))
        for of in SHARES if lane == "both" else (lane,):
            part = SHARES[of] if lane == "both" else 1.0
            self._saved[of] = max(self._saved[of] - part * readings, -DEBT_S * rate * SHARES[of])

    def answered(self, seconds: float) -> None:
        """A request of the past took so long."""
        if seconds > QUICK_S:
            self._next_s["past"] = self._clock.monotonic_s() + min(seconds - QUICK_S, REST_S)
        if seconds > LONG_S:
            self._updates = max(1, self._updates // 2)
        elif seconds <= QUICK_S:
            self._updates = min(UPDATES_A_REQUEST, 2 * self._updates)

    def look(self, owed: int) -> None:
        """Find out now and then whether the rate is enough.

        Args:
            owed: readings not sent yet.
        """
        rate, now_s = self._rate_per_s, self._clock.monotonic_s()
        if rate is None:
            return
        if self._looked is None:
            self._looked = now_s, self._sent, owed
        since_s, sent, was = self._looked
        if now_s - since_s < LOOK_S:
            return
        self._looked = now_s, self._sent, owed
        needed = (self._sent - sent + owed - was) / (now_s - since_s)
        self.warning = ""
        if owed > was and needed > ENOUGH * rate:
            self.warning = f"rate: {rate:.4g}/s is too low: to send what its devices give takes {needed:.4g}/s, and what is owed grows"

    def _most(self, lane: str) -> float:
        return 0.0 if self._rate_per_s is None else SHARES[lane] * SAVED_S * self._rate_per_s

    def _full(self, lane: Lane) -> float:
        """What can be saved up, but for the rounding."""
        return 0.999 * (sum(map(self._most, SHARES)) if lane == "both" else self._most(lane))

    def _left(self, lane: Lane) -> float:
        """What a lane has saved up by now. What does not fit into its share goes to the other."""
        now_s, saved = self._clock.monotonic_s(), self._saved
        new = (self._rate_per_s or 0.0) * (now_s - self._at_s)
        self._at_s = now_s
        for of, other in (("state", "past"), ("past", "state")):
            saved[of] += SHARES[of] * new
            over = max(0.0, saved[of] - self._most(of))
            saved[of] -= over
            saved[other] += over
        saved["state"] = min(saved["state"], self._most("state"))
        return sum(saved.values()) if lane == "both" else saved[lane]
