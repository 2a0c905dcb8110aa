"""When to try again: full jitter, `Retry-After`, breaker. Pure: time and chance come as arguments."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRY_AFTER_CAP_S = 3600.0  # a broken proxy may say "next year"; an hour is as long as we believe it
FLOOR_S = 0.05  # full jitter may draw nearly nothing; a loop must never spin


class Backoff:
    """Waits that grow by doubling, each drawn evenly from zero to its bound, so that a thousand boxes do not stampede.

    Args:
        first_s: bound of the first wait.
        cap_s: bound that no wait exceeds.
        quick_cap_s, quick_for_s: while fewer than `quick_for_s` seconds of waiting have been handed out, the bound is
            `quick_cap_s`: a short outage is noticed to be over soon, a long one is not hammered.
    """

    def __init__(
        self,
        first_s: float = 0.5,
        cap_s: float = 60.0,
        *,
        quick_cap_s: float | None = None,
        quick_for_s: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self.first_s = first_s
        self.cap_s = cap_s
        self.quick_cap_s = cap_s if quick_cap_s is None else min(quick_cap_s, cap_s)
        self.quick_for_s = quick_for_s
        self._rng = rng or random.Random()
        self.tries = 0
        self._handed_out_s = 0.0

    def next_s(self, retry_after_s: float | None = None, *, hurry: bool = True) -> float:
        """Seconds to wait now. What the other side asked for is a lower bound, with jitter on top.

        Args:
            hurry: whether the quick bound holds; not for a peer that takes us in only to throw us out.
        """
        bound_s = min(self.first_s * 2.0 ** min(self.tries, 30), self._cap_now_s() if hurry else self.cap_s)
        self.tries += 1
        wait_s = max(FLOOR_S, self._rng.uniform(0.0, bound_s))
        if retry_after_s is not None:
            wait_s += min(max(retry_after_s, 0.0), RETRY_AFTER_CAP_S)
        self._handed_out_s += wait_s
        return wait_s

    def reset(self) -> None:
        """It worked: start from the first wait again."""
        self.tries = 0
        self._handed_out_s = 0.0

    def _cap_now_s(self) -> float:
        return self.quick_cap_s if self._handed_out_s < self.quick_for_s else self.cap_s


class Breaker:
    """Closed, or open until a moment: then one try decides. Seconds are those of a monotonic clock.

    Args:
        backoff: how long to stay open after each failure in a row.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self.open_until_s: float | None = None

    @property
    def closed(self) -> bool:
        """Whether the last try worked (or none was made)."""
        return self.open_until_s is None

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next try may be made; 0 when it may be made now."""
        return 0.0 if self.open_until_s is None else max(0.0, self.open_until_s - now_s)

    def failed(self, now_s: float, retry_after_s: float | None = None) -> float:
        """A try failed; returns the seconds to wait."""
        wait_s = self._backoff.next_s(retry_after_s)
        self.open_until_s = now_s + wait_s
        return wait_s

    def worked(self) -> None:
        """A try worked: closed again."""
        self._backoff.reset()
        self.open_until_s = None


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number or an HTTP date (RFC 9110, 10.2.3).

    Returns:
        None when there is no header or it cannot be read; at least 0, at most `RETRY_AFTER_CAP_S`.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_CAP_S)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return min(max(0.0, (at - now).total_seconds()), RETRY_AFTER_CAP_S)
