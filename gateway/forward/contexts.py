"""Contexts that one broker cannot fetch now: what is sent with them waits, by itself; all else goes on."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from gateway.backoff import Backoff
from gateway.journal import event
from gateway.models.refresh import served_at
from gateway.sdk.errors import BrokerUnavailable

REMEDY = (
    "the broker must be able to fetch it, served as application/ld+json; else put contexts: of this broker (or of its city "
    "profile) to an address where it can: `citygate models contexts` writes the files"
)


_TOLD = "asked for, as another one is missing"


@dataclass(slots=True)
class _Missing:
    """One that was missed.

    Attributes:
        half: somebody answered who could not tell; the next request with it does.
    """

    reason: str
    since_s: float
    backoff: Backoff
    next_s: float = 0.0
    half: bool = False


@dataclass(slots=True)
class Contexts:
    """Which contexts a broker misses, since when, and when it is asked for each again. Keys are the models' own addresses.

    Attributes:
        prefix: where the city serves those of the published models; "": where they are published.
        used: entities that this box sends with each.
        ask: asks the broker for nothing but a context; whether that worked, None when it cannot be told.
    """

    prefix: str = ""
    used: Mapping[str, int] = field(default_factory=dict)
    ask: Callable[[str], Awaitable[bool | None]] | None = None
    backoff: Callable[[], Backoff] = lambda: Backoff(0.5, 60.0, quick_cap_s=5.0, quick_for_s=300.0)
    now_s: Callable[[], float] = time.monotonic
    _missing: dict[str, _Missing] = field(default_factory=dict)
    _one_serves: bool = True  # something was carried out since a context was first missed

    def address(self, context: str) -> str:
        """Where the broker is told to find it."""
        return served_at(context, self.prefix)

    def away(self, context: str) -> bool:
        """Whether nothing is sent with it now."""
        missing = self._missing.get(context)
        return missing is not None and not missing.half

    @property
    def all_away(self) -> bool:
        """Nothing can be sent at all."""
        return bool(self._missing) and all(map(self.away, self.used or self._missing))

    def missed(self, context: str, reason: str) -> None:
        """The broker says that it cannot fetch it."""
        missing = self._missing.get(context)
        if missing is None:
            missing = self._missing[context] = _Missing(reason, self.now_s(), self.backoff())
            self._one_serves = False
            event("context_missing", context=self.address(context), reason=reason)
        missing.reason, missing.half = reason, False
        missing.next_s = self.now_s() + missing.backoff.next_s()

    def found(self, context: str) -> None:
        """It served."""
        self._one_serves = True
        if self._missing.pop(context, None) is not None:
            event("context_found", context=self.address(context))

    async def look(self) -> bool:
        """Ask for those whose time has come; whether any may be used again.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        again = False
        for context, missing in list(self._missing.items()):
            if missing.half or self.ask is None or missing.next_s > self.now_s():
                continue
            served = await self.ask(context)
            if served:
                self.found(context)
            elif served is False:
                self.missed(context, missing.reason)
                await self._ask_others(self.ask)
            missing.half = served is None
            again = again or served is not False
        return again

    async def _ask_others(self, ask: Callable[[str], Awaitable[bool | None]]) -> None:
        """Of a context that is seldom sent with, only this tells whether any is to be had at all."""
        for context in self.used:
            if self._one_serves:
                return
            if context not in self._missing:
                if await ask(context) is False:
                    self.missed(context, _TOLD)
                else:
                    self._one_serves = True

    def fault(self) -> BrokerUnavailable:
        """Why nothing can be sent."""
        context, missing = next(iter(self._missing.items()))
        return BrokerUnavailable(f"it cannot fetch {self.address(context)}: {missing.reason}", remedy=REMEDY)

    def rows(self, now: datetime) -> list[dict[str, Any]]:
        """One row a context that is missed: `{context, since, entities, reason, remedy}`."""
        now_s = self.now_s()
        return [
            {
                "context": self.address(context),
                "since": (now - timedelta(seconds=now_s - missing.since_s)).isoformat().replace("+00:00", "Z"),
                "entities": self.used.get(context, 0),
                "reason": missing.reason,
                "remedy": REMEDY,
            }
            for context, missing in self._missing.items()
        ]
