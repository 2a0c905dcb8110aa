"""The local page: one file of HTML, one of CSS, one of JavaScript from `static/`, and `/status` that it polls."""

from importlib.resources import files

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.http.told import told
from gateway.http.view import VIEW

# Nothing from elsewhere, nothing inline: a device name that slips through escaping can still not run.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FILES = {
    "/": ("index.html", "text/html"),
    "/static/page.css": ("page.css", "text/css"),
    "/static/page.js": ("page.js", "text/javascript"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
}


def routes() -> list[web.RouteDef]:
    """For an application that has the key `VIEW`."""
    return [*(web.get(path, _file(*FILES[path])) for path in FILES), web.get("/status", status)]


async def status(request: web.Request) -> web.Response:
    """The status of everything, as `citygate status --json` prints it."""
    body = told(request.app[VIEW].status())
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})


def _file(name: str, media_type: str) -> Handler:
    body = files("gateway.http").joinpath("static", name).read_bytes()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=media_type, charset="utf-8", headers=HEADERS)

    return answer
