"""The way to a broker: TLS, proxy, login. Tokens are fetched, renewed before they end, and fetched anew once on a 401."""

import base64
import json
import os
import ssl
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.http_exceptions import HttpProcessingError

from gateway.forward.answer import words
from gateway.forward.broker import LoginFailed
from gateway.forward.dates import NO_CHECK_TIME, DatedConnector, Dates, fault_of_dates
from gateway.hidden import keep_passing_secret
from gateway.journal import event
from gateway.sdk.errors import BrokerUnavailable, FrameError, foreign
from gateway.sdk.files import check_regular

RENEW_BEFORE_S = 60.0
TOKEN_S = 300.0  # believed of a token whose server does not say how long it lasts
ANSWER_LIMIT_BYTES = 64 * 1024
TOKEN_LIMIT = 16 * 1024  # characters; a longer header line is taken by no server
# What a request may end with when the other end talks nonsense: bytes that are no HTTP, a body that is not what it says.
WIRE_FAULTS = (aiohttp.ClientError, HttpProcessingError, TimeoutError, OSError, ValueError, LookupError, zlib.error)


@dataclass(frozen=True, slots=True)
class Tls:
    """Files (PEM) by path; all optional.

    Attributes:
        ca: trusted instead of the system's.
        certificate, key: who we are, for mutual TLS.
        verify: False trusts anybody.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""
    verify: bool = True

    def stamp(self) -> tuple[float, ...]:
        """Changes when a file does: a renewed certificate is taken with the next connection."""
        times = []
        for name in (self.ca, self.certificate, self.key):
            try:
                times.append(os.stat(name).st_mtime if name else 0.0)
            except OSError:
                times.append(-1.0)
        return tuple(times)

    def context(self, *, dates: bool = True) -> ssl.SSLContext:
        """TLS 1.2 or newer, verified; without `dates` somebody else must judge those.

        Raises:
            BrokerUnavailable: a file cannot be read; it may come later.
        """
        try:
            check_regular(self.ca, self.certificate, self.key)
            context = ssl.create_default_context(cafile=self.ca or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key or None, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            names = ", ".join(name for name in (self.ca, self.certificate, self.key) if name)
            raise BrokerUnavailable(f"TLS files {names} cannot be used: {error}") from error
        if not dates:
            context.verify_flags |= NO_CHECK_TIME
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _no_password() -> str:
    """Else OpenSSL would ask at the terminal."""
    raise ValueError("the private key is encrypted; give it without a pass phrase, readable by the daemon alone")


class Login(Protocol):
    """Adds what identifies us to a request."""

    async def headers(self, session: aiohttp.ClientSession, proxy: str | None) -> Mapping[str, str]:
        """The headers to send now.

        Raises:
            LoginFailed: the identity server refuses us.
            BrokerUnavailable: it cannot be reached.
        """

    def rejected(self) -> bool:
        """The broker answered 401; True when another try may help (once)."""

    def worked(self) -> None:
        """The broker took it."""


class Static:
    """Headers that do not change: none, Basic, Bearer, any header."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)

    async def headers(self, session: aiohttp.ClientSession, proxy: str | None) -> Mapping[str, str]:
        return self._headers

    def rejected(self) -> bool:
        return False

    def worked(self) -> None:
        pass


def basic(user: str, password: str) -> Static:
    """HTTP Basic, UTF-8 (RFC 7617)."""
    login = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
    keep_passing_secret(login)
    return Static({"Authorization": f"Basic {login}"})


def bearer(token: str) -> Static:
    """A token that does not change."""
    return Static({"Authorization": f"Bearer {token}"})


@dataclass(frozen=True, slots=True)
class Grant:
    """What is asked of the token endpoint; with user and password the password grant (RFC 6749, 4.3 and 4.4)."""

    token_url: str
    client_id: str
    client_secret: str
    user: str = ""
    password: str = ""
    scope: str = ""
    header: str = "Authorization"

    def form(self) -> dict[str, str]:
        """The form body."""
        form = {"grant_type": "client_credentials"}
        if self.user:
            form = {"grant_type": "password", "username": self.user, "password": self.password}
        if self.scope:
            form["scope"] = self.scope
        return form


class OAuth2:
    """Tokens from an identity server, as Keyrock and others give them."""

    def __init__(self, grant: Grant) -> None:
        self._grant = grant
        self._token = ""
        self._good_until_s = 0.0
        self._fresh = False  # the token has not yet been of use

    async def headers(self, session: aiohttp.ClientSession, proxy: str | None) -> Mapping[str, str]:
        if not self._token or time.monotonic() >= self._good_until_s:
            await self._fetch(session, proxy)
        name = self._grant.header
        return {name: f"Bearer {self._token}" if name == "Authorization" else self._token}

    def rejected(self) -> bool:
        was_fresh, self._token = self._fresh, ""
        return not was_fresh

    def worked(self) -> None:
        """The broker took the token."""
        self._fresh = False

    async def _fetch(self, session: aiohttp.ClientSession, proxy: str | None) -> None:
        grant = self._grant
        login = basic(grant.client_id, grant.client_secret)  # as it is: Keyrock does not decode it
        headers = {"Accept": "application/json", **await login.headers(session, proxy)}
        asked_s = time.monotonic()
        try:
            async with session.post(
                grant.token_url, data=grant.form(), headers=headers, allow_redirects=False, proxy=proxy
            ) as response:
                content = await body_of(response, ANSWER_LIMIT_BYTES)
                status = response.status
        except WIRE_FAULTS as error:
            reason, remedy = fault_of_dates(error)
            said = reason or words(str(error)) or type(error).__name__
            raise BrokerUnavailable(f"token endpoint: {said}", remedy=remedy) from error
        self._take(status, content, asked_s)

    def _take(self, status: int, content: bytes, asked_s: float) -> None:
        try:
            with foreign("token", content):
                answer = json.loads(content)
        except FrameError:
            answer = None
        found = answer if isinstance(answer, dict) else {}
        if status == 401 or (status in (400, 403) and isinstance(found.get("error"), str)):  # RFC 6749, 5.2
            why = words(found.get("error_description")) or words(found.get("error"))
            raise LoginFailed(f"token endpoint: {status} {why}".rstrip())
        token = found.get("access_token")
        if status not in (200, 201) or not isinstance(token, str) or not _fits_a_header(token):
            raise BrokerUnavailable(f"token endpoint: {status} without a token (is token_url right; a proxy's page?)")
        lasts_s = _lasts_s(found.get("expires_in"))
        keep_passing_secret(token)
        self._token, self._fresh = token, True
        self._good_until_s = asked_s + max(lasts_s - RENEW_BEFORE_S, lasts_s / 2)


def _fits_a_header(token: str) -> bool:
    return 0 < len(token) <= TOKEN_LIMIT and token.isascii() and token.isprintable()


def _lasts_s(expires_in: object) -> float:
    """A number, or text as some servers send it."""
    try:
        seconds = float(expires_in) if isinstance(expires_in, int | float | str) else TOKEN_S
    except (ValueError, OverflowError):
        return TOKEN_S
    return seconds if 0 < seconds < 1e9 else TOKEN_S


async def body_of(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """The body, up to a bound: more than that is nobody's answer to us."""
    content = b""
    while chunk := await response.content.read(65536):
        content += chunk
        if len(content) > limit_bytes:
            response.close()
            break
    return content


class Way:
    """One HTTP session to one broker; opened when first used, and anew after `renew`.

    Args:
        proxy: address of an HTTP proxy, "" for none; the environment is not asked.
        resolver: of host names; default: the system's.
        dates: judges certificates where the system's clock cannot; None: that always does.
    """

    def __init__(
        self,
        *,
        login: Login | None = None,
        tls: Tls | None = None,
        proxy: str = "",
        timeout: aiohttp.ClientTimeout | None = None,
        resolver: Callable[[], AbstractResolver] | None = None,
        dates: Dates | None = None,
    ) -> None:
        self._resolver = resolver
        self._dates = dates
        self.login: Login = login or Static({})
        self._tls = tls or Tls()
        self.proxy = proxy or None
        self._timeout = timeout or aiohttp.ClientTimeout(total=90.0, sock_connect=10.0, sock_read=30.0)
        self._session: aiohttp.ClientSession | None = None
        self._context: ssl.SSLContext | None = None
        self._stamp: tuple[object, ...] = ()
        self.warning = "" if self._tls.verify else "TLS is not verified: anybody can read and forge what is sent"
        if not self._tls.verify:
            event("tls_not_verified", remedy="anybody can read and forge what is sent; remove tls: verify: false")

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session. Raises `BrokerUnavailable` when a TLS file cannot be used."""
        if self._session is None:
            dates = self._dates if self._tls.verify and self._dates is not None and self._dates.needed else None
            connector = self._connector() if dates is None else self._dated(dates)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            )
        return self._session

    def patient(self, silent_s: float) -> aiohttp.ClientTimeout:
        """The time-outs of one request that may take longer than usual."""
        usual = self._timeout
        if not silent_s:
            return usual
        return aiohttp.ClientTimeout(
            total=usual.total and max(usual.total, 1.5 * silent_s),
            sock_connect=usual.sock_connect,
            sock_read=usual.sock_read and max(usual.sock_read, silent_s),
        )

    def _connector(self) -> aiohttp.TCPConnector:
        # True: aiohttp's own, TLS 1.2 or newer, verified
        return aiohttp.TCPConnector(
            limit=2,
            ssl=True if self._tls == Tls() else self._tls_context(dates=True),
            keepalive_timeout=10.0,
            ttl_dns_cache=30,
            happy_eyeballs_delay=0.25,
            resolver=self._resolver() if self._resolver else None,
        )

    def _dated(self, dates: Dates) -> aiohttp.TCPConnector:
        return DatedConnector(
            dates,
            self._ask_time,
            limit=2,
            ssl=self._tls_context(dates=False),
            keepalive_timeout=10.0,
            ttl_dns_cache=30,
            happy_eyeballs_delay=0.25,
            resolver=self._resolver() if self._resolver else None,
        )

    async def _ask_time(self, origin: str, proxy: str | None) -> datetime | None:
        """The `Date` of a server whose chain and name are verified; nothing of ours is sent, not even a path."""
        connector = aiohttp.TCPConnector(
            ssl=self._tls_context(dates=False), resolver=self._resolver() if self._resolver else None
        )
        async with aiohttp.ClientSession(
            connector=connector, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        ) as session:
            try:
                async with session.head(origin, allow_redirects=False, proxy=proxy) as response:
                    at = parsedate_to_datetime(response.headers["Date"])
            except (aiohttp.ClientError, TimeoutError, OSError, KeyError, ValueError):
                return None
        return at if at.tzinfo else at.replace(tzinfo=UTC)

    def _tls_context(self, *, dates: bool) -> ssl.SSLContext:
        stamp = (*self._tls.stamp(), dates)
        if self._context is None or stamp != self._stamp:
            # 20 ms: the system's CAs are many
            self._context, self._stamp = self._tls.context(dates=dates), stamp
        return self._context

    async def renew(self) -> None:
        """Forget connections: the next request resolves the name again, and takes certificates that were renewed."""
        session, self._session = self._session, None  # whoever gives up while it closes must not meet it again
        if session is not None:
            await session.close()

    async def close(self) -> None:
        """Give connections back."""
        await self.renew()
