"""What this command was told from outside: `main` reads it once, and verbs ask for it where they need a corner of it."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from gateway.environment import Environment

_READ: ContextVar[Environment | None] = ContextVar("environment", default=None)


def environment() -> Environment:
    """That of the command at work; a function of a verb that is called by itself reads it."""
    return _READ.get() or Environment()


@contextlib.contextmanager
def read() -> Iterator[None]:
    """Read it for as long as the command is at work."""
    token = _READ.set(Environment())
    try:
        yield
    finally:
        _READ.reset(token)
