"""Events for the journal: `snake_case` facts with fields, not sentences."""

import base64
import functools
import json
import logging
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, TextIO
from urllib.parse import quote

import structlog

HIDDEN = "•••"
FREE = frozenset(
    ("reason", "reasons", "remedy", "error", "text", "message", "kind", "said", "doubt", "exception", "stack")
)
MIN_HIDDEN = 4  # a shorter secret would blank out half of every text
_secrets: frozenset[str] = frozenset()  # those of the config, and what they look like on the wire
_passing: deque[str] = deque(maxlen=32)  # tokens of this run; the newest are the ones that can still be said


def keep_secret(texts: Iterable[str]) -> None:
    """From now on these, and no others of before, are hidden in whatever is shown."""
    global _secrets
    _secrets = frozenset(form for text in texts if len(text) >= MIN_HIDDEN for form in _forms(text))


def keep_passing_secret(*texts: str) -> None:
    """Hide these too: a token of this run, a login as it is sent."""
    _passing.extend(text for text in texts if len(text) >= MIN_HIDDEN and text not in _passing)


def hidden(text: str) -> str:
    """The text without any secret that is known: a broker may say ours in its error."""
    for secrets in (_secrets, _passing):
        for secret in secrets:
            if secret in text:
                text = text.replace(secret, HIDDEN)
    return text


def all_hidden(value: Any, key: str = "reason") -> Any:
    """The same for every free text in a JSON value. Names, times and words of ours stay as they are: a password may be
    like one of them."""
    if isinstance(value, str):
        return hidden(value) if key in FREE or " " in value else value
    if isinstance(value, Mapping):
        return {name: all_hidden(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [all_hidden(item, key) for item in value]
    return value


def says_secret(body: bytes) -> bool:
    """Whether a JSON text holds a secret that is known; quicker than looking into every text of it."""
    return any(form in body for secret in (*_secrets, *_passing) for form in _in_json(secret))


@functools.lru_cache(maxsize=256)
def _in_json(secret: str) -> frozenset[bytes]:
    return frozenset(json.dumps(secret, ensure_ascii=plain)[1:-1].encode("utf-8", "replace") for plain in (True, False))


def _forms(secret: str) -> Iterable[str]:
    yield secret
    yield quote(secret, safe="")
    yield base64.b64encode(secret.encode("utf-8", "replace")).decode()


def _hide_secrets(_: Any, __: str, fields: Any) -> Any:
    return all_hidden(fields)


def set_up(*, debug: bool = False, stream: TextIO | None = None) -> None:
    """Events to standard error: coloured columns on a terminal, JSON lines for the journal."""
    out = stream or sys.stderr
    renderer: Any = structlog.dev.ConsoleRenderer() if out.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _hide_secrets,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if debug else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    # Libraries log through the standard library; theirs is noise unless it is an error.
    logging.basicConfig(level=logging.ERROR, stream=out, force=True)


def bind(**fields: str) -> None:
    """Fields (`link=`, `device=`, `broker=`) for every later event of this task."""
    structlog.contextvars.bind_contextvars(**fields)


def event(name: str, **fields: Any) -> None:
    """One fact."""
    structlog.get_logger().info(name, **fields)


def fault(name: str, error: BaseException | None = None, **fields: Any) -> None:
    """One fact that should not be; with `error`, its traceback is kept."""
    structlog.get_logger().error(name, exc_info=error, **fields)
