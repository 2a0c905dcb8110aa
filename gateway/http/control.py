"""Verbs on the control socket: what the daemon answers and how the command asks, side by side so that they change
together. `POST /control/VERB` with a JSON object of arguments; the answer is JSON, an error carries its exit code."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import orjson
from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.web import RequestPayloadError

from gateway.config.explain import as_json, text
from gateway.encode import to_json
from gateway.http.outcome import PROBLEM, UNREACHABLE, NoDaemon, Refused, UnknownName, exit_code
from gateway.http.told import told
from gateway.http.view import VIEW, GatewayView
from gateway.http.who import closed
from gateway.journal import fault
from gateway.sdk.errors import CitygateError, ConfigError

PREFIX = "/control"
CONFIG_HEADER = "Citygate-Config"  # of every answer: the main file of the daemon
CONNECT_TIMEOUT_S = 3.0
BODY_WITHIN_S = 10.0


# --- the daemon's side ---------------------------------------------------------------------------------------------


def routes() -> list[web.RouteDef]:
    """For the application on the Unix socket alone."""
    return [web.post(f"{PREFIX}/{{verb}}", _serve)]


async def _status(view: GatewayView, _: Mapping[str, Any]) -> Any:
    return view.status()


_VERBS: Mapping[str, Callable[[GatewayView, Mapping[str, Any]], Awaitable[Any]]] = {
    "status": _status,
    "read": lambda view, given: view.read(_text(given, "device")),
    "pause": lambda view, given: view.pause(_text(given, "device"), _seconds(given)),
    "reload": lambda view, given: view.reload(dry_run=given.get("dry_run") is True),
    "once": lambda view, _: view.once(),
    "preview": lambda view, given: view.preview(_text(given, "device")),
}


async def _serve(request: web.Request) -> web.Response:
    view = request.app[VIEW]
    response = await _answer(view, request)
    response.headers[CONFIG_HEADER] = quote(view.config_file)
    return response


async def _answer(view: GatewayView, request: web.Request) -> web.Response:
    name = request.match_info["verb"]
    try:
        given = _arguments(await _body(request))
        if name in _VERBS:
            result = await _VERBS[name](view, given)
        elif name in view.verbs:
            result = await view.verbs[name](given)
        else:
            known = ", ".join(sorted({*_VERBS, *view.verbs}))
            raise UnknownName(f"this daemon has no verb {name}; it has {known}")
    except CitygateError as error:
        return _json(_error_body(error), status=422)
    except ConnectionError:
        raise  # who asked has gone
    except Exception as error:  # noqa: BLE001 - our bug; the command ends, the daemon and its traceback stay
        fault("verb_crashed", error, verb=name)
        said = f"{type(error).__name__}: {error}"
        return _json(
            {"error": f"the daemon failed at this ({said}); its journal has more", "exit": PROBLEM}, status=500
        )
    return _json(result)


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            return await request.read()
    except TimeoutError:
        raise UnknownName(f"the arguments did not come within {BODY_WITHIN_S:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise UnknownName("the arguments are too long: verbs take names and numbers") from None
    except (HttpProcessingError, RequestPayloadError, zlib.error) as error:
        raise UnknownName(f"the arguments cannot be read: {' '.join(str(error).split())[:200]}") from None


def _arguments(body: bytes) -> Mapping[str, Any]:
    try:
        given = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise UnknownName(f"arguments are not JSON: {error}") from error
    if not isinstance(given, dict):
        raise UnknownName("arguments are not a JSON object")
    return given


def _text(given: Mapping[str, Any], name: str) -> str:
    if not isinstance(given.get(name), str):
        raise UnknownName(f"argument {name} is missing or not a text")
    return str(given[name])


def _seconds(given: Mapping[str, Any]) -> float:
    seconds = given.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 7 * 86400:
        raise UnknownName("argument seconds must be a number from 0 to 604800 (7 days)")
    return float(seconds)


def _error_body(error: CitygateError) -> dict[str, Any]:
    body: dict[str, Any] = {"error": str(error), "exit": exit_code(error)}
    if isinstance(error, ConfigError):
        body["problems"] = [as_json(problem) for problem in error.problems]
        body["text"] = "\n".join(text(problem) for problem in error.problems)
    if getattr(error, "remedy", ""):
        body["remedy"] = error.remedy  # type: ignore[attr-defined]  # DriverUnavailable and its like
    return body


def _json(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=told(body), status=status, content_type="application/json")


# --- the command's side --------------------------------------------------------------------------------------------


Heard = Callable[[Path], None]


async def ask(
    path: Path,
    verb: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = 30.0,
    heard: Heard | None = None,
) -> Any:
    """Ask the daemon at this socket.

    Args:
        heard: is told the main file of the daemon that answers.

    Returns:
        What the verb returned, as JSON gives it.

    Raises:
        NoDaemon: nobody listens there, or we may not connect; the message says which.
        Refused: the daemon refused, with its exit code.
    """
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(path)),
                timeout=aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_TIMEOUT_S),
            ) as session,
            session.post(f"http://citygate{PREFIX}/{verb}", data=to_json(dict(arguments or {}))) as response,
        ):
            body = orjson.loads(await response.read())
            status, config = response.status, response.headers.get(CONFIG_HEADER, "")
    except TimeoutError as error:
        raise Refused(f"the daemon did not answer within {timeout_s:g} s", UNREACHABLE, {}) from error
    except (aiohttp.ClientConnectorError, OSError) as error:
        if _not_permitted(error):
            said, remedy = closed(path)
            raise Refused(said, UNREACHABLE, {"remedy": remedy}) from error
        raise NoDaemon(
            f"no daemon answers at {path}; start one with `citygate run` or `systemctl start citygate`"
        ) from error
    except (aiohttp.ClientError, orjson.JSONDecodeError) as error:
        raise Refused(f"the daemon's answer broke off: {error}", PROBLEM, {}) from error
    if heard is not None and config:
        heard(Path(unquote(config)))
    if status != 200:
        raise Refused(str(body.get("error", status)), int(body.get("exit", PROBLEM)), body)
    return body


def _not_permitted(error: Exception) -> bool:
    return isinstance(error, PermissionError) or isinstance(getattr(error, "os_error", None), PermissionError)


def ask_now(
    path: Path,
    verb: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = 30.0,
    heard: Heard | None = None,
) -> Any:
    """`ask` for who has no loop."""
    return asyncio.run(ask(path, verb, arguments, timeout_s=timeout_s, heard=heard))
