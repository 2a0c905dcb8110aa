"""Events for the journal: `snake_case` facts with fields, not sentences."""

import logging
import sys
from typing import Any, TextIO

import structlog

from gateway.hidden import all_hidden


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
    logging.basicConfig(level=logging.ERROR, handlers=[_OfLibraries()], force=True)


class _OfLibraries(logging.Handler):
    """What a library says is an event as well: it may quote a request, and with it a secret."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = record.getMessage()
        except (TypeError, ValueError):
            said = str(record.msg)
        fault("library_error", record.exc_info[1] if record.exc_info else None, library=record.name, said=said)


def bind(**fields: str) -> None:
    """Fields (`link=`, `device=`, `broker=`) for every later event of this task."""
    structlog.contextvars.bind_contextvars(**fields)


def event(name: str, **fields: Any) -> None:
    """One fact."""
    structlog.get_logger().info(name, **fields)


def fault(name: str, error: BaseException | None = None, **fields: Any) -> None:
    """One fact that should not be; with `error`, its traceback is kept."""
    structlog.get_logger().error(name, exc_info=error, **fields)
