"""The dates of certificates, judged by this box's own clock: the system's may stand in 1970 while ours knows better.

OpenSSL asks the system's clock alone. Where that cannot be relied on, chain and name are verified as always, and the dates
here, before anything is sent. A clock that nobody vouches for cannot judge them either: then the other end is asked what
time it is, over a connection that carries nothing of ours (docs/decisions/0107).
"""

import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol

import aiohttp
from aiohttp.client_reqrep import ClientRequest

from gateway.clock import Trust
from gateway.journal import event

NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; the ssl module has no name for it
SYSTEM_WITHIN: Final = timedelta(seconds=60)  # closer to ours the system's clock judges well
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_…
CLOCK_REMEDY: Final = (
    "the clock of this box is the cause: give it a time source (NTP, GNSS, a LoRa gateway with GPS, a broker over http), "
    "a real-time clock with battery, or set it"
)
RENEW_REMEDY: Final = "renew the certificate there; if it is a good one, the clock of this box is wrong"

Ask = Callable[[], Awaitable[datetime | None]]


class TimeOf(Protocol):
    """What is asked of the clock."""

    def now(self) -> datetime: ...
    def monotonic_s(self) -> float: ...

    @property
    def trust(self) -> Trust: ...

    @property
    def earliest(self) -> datetime: ...


class Validity(NamedTuple):
    """Within these all certificates of a chain are valid."""

    begins: datetime
    ends: datetime

    def holds(self, at: datetime) -> bool:
        return self.begins <= at <= self.ends


class WrongDates(ssl.CertificateError):
    """The certificate is not valid at this time, or our clock cannot tell. `remedy` says what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        return str(self.args[0])


class Dates:
    """Judges dates for the connections to one broker.

    Args:
        clock: of the box; `earliest` is the time before which it cannot be.
    """

    def __init__(self, clock: TimeOf) -> None:
        self._clock = clock
        self._presumed: tuple[datetime, float] | None = None  # what the other end said, and when

    @property
    def needed(self) -> bool:
        """Whether the system's clock cannot judge: nobody vouches for it, or ours says otherwise."""
        clock = self._clock
        return not clock.trust.trusted or abs(clock.now() - datetime.now(UTC)) > SYSTEM_WITHIN

    def _now(self) -> datetime:
        clock = self._clock
        if clock.trust.trusted or self._presumed is None:
            return clock.now()
        told, then_s = self._presumed
        return told + timedelta(seconds=clock.monotonic_s() - then_s)

    async def check(self, valid: Validity, ask: Ask) -> None:
        """Let a chain pass.

        Raises:
            WrongDates: it is not valid now, or nobody knows.
        """
        at = self._now()
        if valid.holds(at):
            return
        if self._clock.trust.trusted:
            remedy = RENEW_REMEDY if at > valid.ends else CLOCK_REMEDY
            raise WrongDates(f"the certificate is valid {_span(valid)}, and it is {at:%Y-%m-%d}", remedy)
        earliest = self._clock.earliest
        if earliest > valid.ends:
            text = f"the certificate has expired on {valid.ends:%Y-%m-%d}; it is at least {earliest:%Y-%m-%d} now"
            raise WrongDates(text, RENEW_REMEDY)
        told = await ask()
        if told is None or told < earliest - timedelta(seconds=1) or not valid.holds(told):
            says = "it does not say what time it is" if told is None else f"it says that it is {told:%Y-%m-%d}"
            text = f"the certificate is valid {_span(valid)}, the clock of this box is not confirmed ({at:%Y-%m-%d}), and {says}"
            raise WrongDates(text, CLOCK_REMEDY)
        event("certificate_judged_by_its_owners_time", told=str(told), clock=str(at))
        self._presumed = told, self._clock.monotonic_s()


def _span(valid: Validity) -> str:
    return f"from {valid.begins:%Y-%m-%d} to {valid.ends:%Y-%m-%d}"


def validity(secured: Any) -> Validity:
    """Of a TLS connection: the time in which every certificate of its verified chain is valid."""
    chain = getattr(getattr(secured, "_sslobj", None), "get_verified_chain", None)  # public from 3.13 on, and as bytes
    infos = [certificate.get_info() for certificate in (chain() or ())] if chain is not None else []
    infos.append(secured.getpeercert())
    begins = max(ssl.cert_time_to_seconds(info["notBefore"]) for info in infos)
    ends = min(ssl.cert_time_to_seconds(info["notAfter"]) for info in infos)
    return Validity(datetime.fromtimestamp(begins, UTC), datetime.fromtimestamp(ends, UTC))


class DatedConnector(aiohttp.TCPConnector):
    """Gives no TLS connection away before the dates of its chain were judged."""

    def __init__(
        self, dates: Dates, ask: Callable[[str, str | None], Awaitable[datetime | None]], **settings: Any
    ) -> None:
        super().__init__(**settings)
        self._dates = dates
        self._ask = ask

    async def connect(self, req: ClientRequest, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:
        """As the base; raises `ClientConnectorCertificateError` for the dates."""
        connection = await super().connect(req, traces, timeout)
        secured = connection.transport.get_extra_info("ssl_object") if connection.transport else None
        if secured is None:
            return connection
        try:
            proxy = str(req.proxy) if req.proxy else None
            await self._dates.check(validity(secured), lambda: self._ask(str(req.url.origin()), proxy))
        except ssl.CertificateError as error:
            connection.close()
            raise aiohttp.ClientConnectorCertificateError(req.connection_key, error) from error
        except BaseException:
            connection.close()
            raise
        return connection


def fault_of_dates(error: BaseException) -> tuple[str, str]:
    """Reason and remedy when a certificate failed for its dates; else empty."""
    cause: Any = getattr(error, "certificate_error", error)
    if isinstance(cause, WrongDates):
        return f"TLS: {cause}", cause.remedy
    code = getattr(cause, "verify_code", 0)
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    if code == _NOT_YET_VALID:
        return f"TLS: the certificate is not valid yet by the system's clock, {now} UTC", CLOCK_REMEDY
    if code == _EXPIRED:
        return f"TLS: the certificate has expired by the system's clock, {now} UTC", RENEW_REMEDY
    return "", ""
