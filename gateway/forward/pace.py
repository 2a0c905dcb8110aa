"""Pace: how fast one broker is sent to. The past waits for the present."""

from gateway.sdk.driver import Clock

AHEAD_S = 1.0  # so much may be sent at once


class Pace:
    """What was sent uses up time at the rate; while more than a second of it is used up, the past rests.

    Args:
        rate_per_s: most readings a second.
        readings_an_entity: how many readings an entity stands for, on average.
    """

    def __init__(self, clock: Clock, *, rate_per_s: float, readings_an_entity: float) -> None:
        self._clock = clock
        self._rate_per_s = rate_per_s
        self._readings_an_entity = readings_an_entity
        self._free_at_s = 0.0  # the rate is used up until then

    @property
    def used_up(self) -> bool:
        """Whether the past has to rest."""
        return self._free_at_s > self._clock.monotonic_s() + AHEAD_S

    def spend(self, entities: int) -> None:
        """So many were accepted."""
        start_s = max(self._clock.monotonic_s(), self._free_at_s)
        self._free_at_s = start_s + entities * self._readings_an_entity / self._rate_per_s
