"""The box's own HTTP: page, read API, metrics and health on TCP (loopback unless told otherwise); the same and the
verbs on the Unix control socket."""

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import os
import socket
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web import RequestPayloadError

from gateway.config.model import is_loopback, parse_listen
from gateway.hidden import all_hidden
from gateway.http import control, page, read_api
from gateway.http.door import Door
from gateway.http.told import told
from gateway.http.view import VIEW, GatewayView
from gateway.journal import event, fault
from gateway.sdk.errors import CitygateError

RETRY_LISTEN_S = 10.0
MAX_BODY_BYTES = 64 * 1024  # verbs carry names and numbers
MAX_PAGES, MAX_VERBS = 64, 32  # connections at once, by TCP and on the control socket
MAX_REST_S = 1.0  # after an answer; one that took longer was held up by others
STOP_S = 1.0  # open answers get this long when the daemon stops
SOCKET_MODE = 0o660  # the daemon's group may use the verbs
MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un
OPEN_PATHS = frozenset({"/healthz"})  # asked by supervisors that hold no token; says nothing but "alive"


class Server:
    """Serves one gateway's view until cancelled; a service for `supervise`.

    Args:
        view: what is shown.
        listen: `host:port` for TCP, port 0 for a free one; "" for no TCP at all.
        control_socket: path of the Unix socket; None for none.
        token: asked for on TCP as bearer token or as password of any user; required when not on loopback.

    Attributes:
        url: where the page is, once TCP listens; "" before.
    """

    name = "http"
    silent_after_s: float | None = None
    progress_at_s = 0.0
    came_up = False

    def __init__(
        self, view: GatewayView, *, listen: str, control_socket: Path | None = None, token: str | None = None
    ) -> None:
        self._view = view
        self._host, self._port = parse_listen(listen) if listen else ("", 0)
        self._control_socket = control_socket
        self._token = token
        self.url = ""
        self._faults: dict[str, str] = {}
        self._turn = asyncio.Lock()
        if self._host and not token and not is_loopback(self._host):
            raise CitygateError(
                f"http.listen {listen} can be reached from outside; set http.token, or listen on 127.0.0.1"
            )

    @property
    def fault(self) -> str:
        """Why something here does not listen; "" when all does."""
        return "; ".join(self._faults.values())

    async def run(self) -> None:
        """Serve until cancelled. Socket and TCP stand for themselves: what cannot listen is tried again for ever."""
        async with asyncio.TaskGroup() as group:
            if self._control_socket is not None:
                group.create_task(self._keep("control", self._on_socket(self._control_socket)), name="http control")
            if self._host:
                group.create_task(self._keep("page", self._on_tcp), name="http page")

    def failed(self, error: Exception) -> None:
        """It failed and will be restarted."""
        self._faults["server"] = str(error)

    def stopped(self, error: Exception) -> None:
        """It cannot be helped by a restart."""
        self.failed(error)

    async def _keep(self, name: str, serve: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        while True:
            try:
                async with serve():
                    self._faults.pop(name, None)
                    self._faults.pop("server", None)
                    await asyncio.Event().wait()
            except (CitygateError, OSError) as error:
                if self._faults.get(name) != str(error):
                    event("http_not_listening", part=name, reason=str(error))
                self._faults[name] = str(error)
                await asyncio.sleep(RETRY_LISTEN_S)

    def _on_socket(self, path: Path) -> Callable[[], AbstractAsyncContextManager[None]]:
        @contextlib.asynccontextmanager
        async def serve() -> AsyncIterator[None]:
            async with self._serving(MAX_VERBS, control.routes()) as protocol, _unix_server(protocol, path):
                yield

        return serve

    @contextlib.asynccontextmanager
    async def _on_tcp(self) -> AsyncIterator[None]:
        async with self._serving(MAX_PAGES, [], self._in_turn, self._guard) as protocol:
            try:
                server = await asyncio.get_running_loop().create_server(protocol, self._host, self._port)
            except OSError as error:
                said = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
                raise CitygateError(f"cannot listen on {self._host}:{self._port}: {said}") from error
            port = next((its.getsockname()[1] for its in server.sockets), self._port)
            self.url = f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{port}/"
            try:
                yield
            finally:
                self.url = ""
                server.close()

    @contextlib.asynccontextmanager
    async def _serving(
        self, most: int, extra: list[web.RouteDef], *guards: Middleware
    ) -> AsyncIterator[Callable[[], asyncio.Protocol]]:
        """The application behind a door, as a protocol factory."""
        door = Door(most)
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[door.middleware, *guards])
        app[VIEW] = self._view
        app.on_response_prepare.append(_sign)
        app.add_routes([*page.routes(), *read_api.routes(), *_plain_routes(), *extra])
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=STOP_S, logger=_log())
        await runner.setup()
        assert runner.server is not None
        try:
            async with door.watched():
                yield door.through(runner.server)
        finally:
            await runner.cleanup()

    @web.middleware
    async def _in_turn(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """One answer at a time, and after each the loop is the links' for as long as it took: a page, whoever asks for it
        how often, takes at most half of the box."""
        if request.path in OPEN_PATHS:
            return await handler(request)
        await self._turn.acquire()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            if request.transport is None:
                raise ConnectionResetError("who asked has gone")
            return await handler(request)
        finally:
            loop.call_later(min(loop.time() - began_s, MAX_REST_S), self._turn.release)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_ours(request.host):
            # A web site whose name is made to point at 127.0.0.1 must not read the box through somebody's browser.
            raise web.HTTPMisdirectedRequest(text=f"ask by address or as localhost, not as {request.host!r}\n")
        if self._token and request.path not in OPEN_PATHS and not _knows(request, self._token):
            raise web.HTTPUnauthorized(
                text="the token of this box, please: as bearer token, or as the password of any user\n",
                headers={"WWW-Authenticate": 'Basic realm="citygate", charset="UTF-8"'},
            )
        return await handler(request)


def _is_ours(host_header: str) -> bool:
    """An address, localhost, or this machine's own name: what a rebound DNS name can never be."""
    host = host_header.rpartition("]")[0].lstrip("[") if "]" in host_header else host_header.partition(":")[0]
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    own = socket.gethostname().lower()
    return host.lower() in {"localhost", own, f"{own.partition('.')[0]}.local"}


def _knows(request: web.Request, token: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            given = b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:  # no base64, no UTF-8
            return False
    elif scheme.lower() != "bearer":
        return False
    # header bytes that are no UTF-8 come as lone surrogates
    return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())


class _Faults(logging.Handler):
    """What aiohttp says of its work: that a request was none is its sender's fault and said to it, not to the journal,
    which anybody could fill so; the rest is ours."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError | RequestPayloadError | ConnectionError):
            fault("http_failed", error, said=record.getMessage())


def _log() -> logging.Logger:
    logger = logging.Logger("gateway.http", logging.WARNING)
    logger.addHandler(_Faults())
    return logger


@contextlib.asynccontextmanager
async def _unix_server(protocol: Callable[[], asyncio.Protocol], path: Path) -> AsyncIterator[None]:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise CitygateError(
            f"{path} is too long for a socket ({MAX_SOCKET_PATH_BYTES} bytes); use a shorter buffer.path"
        )
    if _answers(path):
        raise CitygateError(f"another daemon answers at {path}; stop it first (`systemctl stop citygate`)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # left behind by a killed daemon
        server = await asyncio.get_running_loop().create_unix_server(protocol, sock=_bound(path))
    except OSError as error:
        raise CitygateError(f"cannot listen at {path}: {error.strerror}; is its folder the daemon's own?") from error
    inode = path.stat().st_ino
    try:
        yield
    finally:
        server.close()
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode:
                path.unlink()


def _bound(path: Path) -> socket.socket:
    """Bound with its mode from the first moment: nobody else can connect in between."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    old = os.umask(0o777 & ~SOCKET_MODE)
    try:
        sock.bind(str(path))
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(old)
    return sock


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect(str(path))
        except OSError:
            return False
        return True


async def _sign(_: web.Request, response: web.StreamResponse) -> None:
    """Who answers, without the versions of its parts; and nobody guesses another media type than ours."""
    response.headers["Server"] = "citygate"
    response.headers["X-Content-Type-Options"] = "nosniff"


def _plain_routes() -> list[web.RouteDef]:
    return [web.get("/healthz", _healthz), web.get("/readyz", _readyz), web.get("/metrics", _metrics)]


async def _healthz(_: web.Request) -> web.Response:
    """200 while the daemon lives, degraded or not."""
    return web.Response(text="ok\n")


async def _readyz(request: web.Request) -> web.Response:
    """200 when the box does all of its work, 503 with the reasons when not."""
    reasons = request.app[VIEW].ready()
    body = told({"ready": not reasons, "reasons": list(reasons)})
    return web.Response(body=body, status=503 if reasons else 200, content_type="application/json")


async def _metrics(request: web.Request) -> web.Response:
    from gateway.http import metrics  # 1 MB and 25 ms that only a scraped box pays

    body = metrics.render(all_hidden(request.app[VIEW].status()))
    return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})
