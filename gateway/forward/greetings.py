"""The first write of a tenant makes it, slowly: brokers of one address take turns at that, for of several made at once some stay half-made for ever."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from hashlib import blake2b
from ipaddress import ip_address
from urllib.parse import urlsplit

from gateway.sdk.errors import BrokerUnavailable

PATIENCE_S = 60.0  # Scorpio took 4 to 20 s; while it makes the tenant it is silent
TURN_WITHIN_S = 120.0  # so long another one may take: its request, with what an answer may trickle


class Turns:
    """Who greets next at one address."""

    def __init__(self, within_s: float = TURN_WITHIN_S) -> None:
        self._lock = asyncio.Lock()
        self._within_s = within_s

    @property
    def taken(self) -> bool:
        """Whether another one is at it."""
        return self._lock.locked()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Alone at this address; at most for the time of a turn.

        Raises:
            BrokerUnavailable: another one takes too long, or this one did.
        """
        try:
            async with asyncio.timeout(self._within_s):
                await self._lock.acquire()
        except TimeoutError:
            raise BrokerUnavailable(
                "another tenant of this broker is being made: it is this one's turn later"
            ) from None
        try:
            yield
        finally:
            self._lock.release()


def place_of(url: str) -> tuple[str, int | None, str]:
    """Host, port and path of an address; two spellings of one place are equal, as far as that can be told without asking."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    with contextlib.suppress(ValueError):
        host = ip_address(host).compressed
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return _LOOPBACK.get(host, host), port, parts.path.rstrip("/")


def city_of(url: str, tenant: str | None) -> str:
    """One broker and tenant in a few letters: what one was told, another one does not know."""
    return blake2b(repr((place_of(url), tenant or "")).encode(), digest_size=6).hexdigest()


_LOOPBACK = {"::1": "localhost", "127.0.0.1": "localhost"}


class Greetings:
    """The turns at each address, for all brokers of one box."""

    def __init__(self) -> None:
        self._turns: dict[tuple[str, int | None], Turns] = {}

    def of(self, url: str) -> Turns:
        """Those of the host and port of an address."""
        host, port, _ = place_of(url)
        return self._turns.setdefault((host, port), Turns())
