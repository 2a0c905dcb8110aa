"""HTTP to one broker, as every kind over HTTP needs it: request, login, timeouts, what came of it, bytes, its Date. No dialect."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

import aiohttp

from gateway.config.auth import AuthConfig
from gateway.config.model import BrokerConfig
from gateway.forward.answer import Answer, words
from gateway.forward.auth import WIRE_FAULTS, Grant, Login, OAuth2, Static, Tls, Way, basic, bearer, body_of
from gateway.forward.broker import InDoubt, LoginFailed, NotOffered, Traffic
from gateway.forward.dates import Dates, fault_of_dates
from gateway.sdk.errors import BrokerUnavailable

ANSWER_LIMIT_BYTES = 4 * 2**20  # a 207 for a full batch is far smaller; a captive portal may send anything
DATE_WITHIN_S = 1.0  # an HTTP date has whole seconds
LINE_BYTES = 80  # of a request's head, beside address and headers

OfferTime = Callable[[datetime, float], object]


class Read(Protocol):
    """How a dialect reads an answer: above all, who spoke. Never raises."""

    def __call__(self, status: int, headers: Mapping[str, str], body: bytes, *, now: datetime) -> Answer: ...


class Transport:
    """Requests to one broker, one after the other.

    Args:
        read: the dialect's reader of answers.
        headers: sent with each request.
        offer_time: takes the `Date` of an answer that the broker itself gave, and how exact it is.
    """

    def __init__(
        self,
        base: str,
        way: Way,
        *,
        read: Read,
        headers: Mapping[str, str] | None = None,
        offer_time: OfferTime | None = None,
    ) -> None:
        self._base = base
        self._way = way
        self._read = read
        self._headers = {"Accept": "application/json", **(headers or {})}
        self._offer_time = offer_time
        self.traffic = Traffic(warning=way.warning)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        tells: bool = True,
        patience_s: float = 0.0,
    ) -> Answer:
        """What came, whatever it is.

        Args:
            tells: an answer that is no context broker's counts as a fault.
            patience_s: so long it may be silent, where that is longer than usual.

        Raises:
            BrokerUnavailable: nothing came; `InDoubt` when it may have been carried out all the same.
        """
        sent = {**self._headers, **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        answer = await self._once(method, self._base + path, query, body, sent, patience_s)
        if answer.status == 401 and self._way.login.rejected():  # the token was revoked, or ended early
            answer = await self._once(method, self._base + path, query, body, sent, patience_s)
        if tells and answer.is_fault:
            self.traffic.faults += 1
        if answer.status != 401:
            self._way.login.worked()
        if self._offer_time is not None and answer.date is not None and answer.status < 300 and answer.by_broker:
            self._offer_time(answer.date, DATE_WITHIN_S)
        return answer

    async def _once(
        self,
        method: str,
        url: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str],
        patience_s: float,
    ) -> Answer:
        way, traffic = self._way, self.traffic
        login = await way.login.headers(way.session, way.proxy)
        traffic.requests += 1
        traffic.sent_bytes += len(body or b"") + _size(headers) + _size(login) + len(url) + LINE_BYTES
        try:
            async with way.session.request(
                method,
                url,
                params=query,
                data=body,
                headers={**headers, **login},
                allow_redirects=False,
                proxy=way.proxy,
                timeout=way.patient(patience_s),
            ) as response:
                content = await body_of(response, ANSWER_LIMIT_BYTES)
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            traffic.faults += 1
            await way.renew()
            raise BrokerUnavailable(_cause(error), remedy=fault_of_dates(error)[1]) from error
        except WIRE_FAULTS as error:
            traffic.faults += 1
            await way.renew()  # a half-open connection is not used again
            raise (InDoubt if body is not None else BrokerUnavailable)(_cause(error)) from error
        traffic.received_bytes += len(content) + sum(len(k) + len(v) + 4 for k, v in response.raw_headers)
        return self._read(response.status, response.headers, content, now=datetime.now(UTC))

    async def close(self) -> None:
        """Give connections back."""
        await self._way.close()


URL_REMEDY = "is the url right? It ends before /ngsi-ld/v1; nothing is lost meanwhile, it is tried again by itself"


def fault_of(answer: Answer, *, wrote: bool = False) -> BrokerUnavailable:
    """What to raise for an answer that blames no entity. What somebody on the way says of a write may have been carried out behind."""
    if answer.status in (401, 403, 407):
        return LoginFailed(answer.reason)
    if 300 <= answer.status < 400:
        return BrokerUnavailable(f"redirect to {answer.location or 'nowhere'} refused; put the final address into url")
    wait_s = answer.retry_after_s
    if wrote and answer.problem is None and (answer.status < 300 or answer.status == 408 or answer.status >= 500):
        return InDoubt(answer.reason, retry_after_s=wait_s)
    if answer.status in (404, 405, 501):
        return NotOffered(answer.reason, retry_after_s=wait_s, remedy="" if answer.by_broker else URL_REMEDY)
    return BrokerUnavailable(answer.reason, retry_after_s=wait_s)


def _size(headers: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers.items())


def _cause(error: BaseException) -> str:
    if reason := fault_of_dates(error)[0]:
        return reason
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return f"TLS: {words(str(error))}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"name not found: {error.host}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return "no answer in time"
    return words(str(error)) or type(error).__name__


def way_of(config: BrokerConfig, dates: Dates | None = None) -> Way:
    """Login, TLS, proxy and timeouts of one entry of the operator's file."""
    timeout = aiohttp.ClientTimeout(
        total=3 * config.timeout_s, sock_connect=min(10.0, config.timeout_s), sock_read=config.timeout_s
    )
    tls = Tls(config.tls.ca or "", config.tls.certificate or "", config.tls.key or "", config.tls.verify)
    return Way(login=_login(config.auth), tls=tls, proxy=config.proxy or "", timeout=timeout, dates=dates)


def _login(auth: AuthConfig) -> Login:
    if auth.basic is not None:
        return basic(auth.basic.user, auth.basic.password)
    if auth.bearer is not None:
        return bearer(auth.bearer)
    if auth.header is not None:
        return Static({auth.header.name: auth.header.value})
    if auth.oauth2 is not None:
        o = auth.oauth2
        return OAuth2(
            Grant(o.token_url, o.client_id, o.client_secret, o.user or "", o.password or "", o.scope or "", o.header)
        )
    return Static({})
