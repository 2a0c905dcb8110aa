"""Errors: a class stands for what the caller does next, the message carries the evidence."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from gateway.sdk.reading import Reading
from gateway.sdk.values import told


class CitygateError(Exception):
    """Everything we raise on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the operator's file, a template or a mapping, with its place and remedy.

    Attributes:
        code: stable, kebab-case, listed in docs/config-errors.md.
        path: keys from the root, e.g. ("links", "roof", "devices", "meter-12", "unit_id").
        message: what is wrong, with the evidence.
        remedy: what to do now; "" when the message says it all.
        at: whether key or value is to be underlined.
        file, line, column: 1-based; 0 while not yet located.
    """

    code: str
    path: tuple[str | int, ...]
    message: str
    remedy: str = ""
    severity: Literal["error", "warning"] = "error"
    at: Literal["key", "value"] = "value"
    file: str = ""
    line: int = 0
    column: int = 0
    source: str = ""
    width: int = 1


DRIVER_FAULT = "this is a fault of the driver: please report it with the journal"  # the remedy of it
MAX_MESSAGE_CHARACTERS = 500  # of a FrameError
MAX_TOLD = 10  # problems in an error's own text; `problems` has them all


class ConfigError(CitygateError):
    """The config is not applied; the working one stays. Carries every problem at once.

    Attributes:
        found: how many links, devices and brokers its files have; "" when that was not asked.
    """

    def __init__(self, problems: tuple[Problem, ...] | str, found: str = "") -> None:
        if isinstance(problems, str):
            problems = (Problem(code="config", path=(), message=problems),)
        self.problems, self.found = problems, found
        errors = [problem for problem in problems if problem.severity == "error"]
        told = [f"{'.'.join(map(str, p.path))}: {p.message}" if p.path else p.message for p in errors[:MAX_TOLD]]
        super().__init__("; ".join(told) + (f"; and {len(errors) - MAX_TOLD} more" if len(errors) > MAX_TOLD else ""))


class LinkError(CitygateError):
    """The link itself is gone: it restarts with backoff, the others run on."""


class PortClosed(LinkError):
    """Port unplugged or connection lost."""


class NoAnswer(CitygateError):
    """A device did not answer in time. Never leaves the driver: quality and reason for that device."""


class Busy(CitygateError):
    """A device says that it is busy. Never leaves the driver."""


class FrameError(CitygateError):
    """Bytes that are not the frame they should be: count it, next frame.

    Args:
        message: what is wrong, e.g. "payload version 7, expected 1". It may quote what came in: it is kept printable and short.
        frame: the bytes as received.
        offset: byte at which it shows.
        readings: what was read before it showed; `decode` shows it, and fails all the same.
    """

    def __init__(
        self, message: str, *, frame: bytes = b"", offset: int = 0, readings: tuple[Reading, ...] = ()
    ) -> None:
        self.message = told(message, MAX_MESSAGE_CHARACTERS)
        self.frame = bytes(frame) if isinstance(frame, bytes | bytearray | memoryview) else b""
        self.offset = offset if type(offset) is int else 0
        self.readings = tuple(reading for reading in readings if type(reading) is Reading)
        shown = self.frame[:32].hex(" ") + (" …" if len(self.frame) > 32 else "")
        super().__init__(f"{self.message} at byte {self.offset} of [{shown}]")


@contextmanager
def foreign(what: str, frame: bytes = b"") -> Iterator[None]:
    """The gate for foreign bytes: whatever a parser raises inside is the fault of what came in, and leaves as `FrameError`.

    Put it round pure parsing alone (also as a decorator), never round an `await` or a write: a fault of ours in there
    would be blamed on the sender.

    Args:
        what: what was being read, for the message, e.g. "uplink event".
        frame: the bytes as received.
    """
    try:
        yield
    except CitygateError:
        raise
    except Exception as error:
        raise FrameError(f"{what}: {type(error).__name__}: {said(error)}", frame=frame) from error


def said(error: BaseException) -> str:
    """The text of a foreign exception as it can be shown, whatever is in it; its kind where there is none."""
    try:
        text = told(str(error), MAX_MESSAGE_CHARACTERS)
    except Exception:  # noqa: BLE001 - its own text may raise, too
        text = ""
    return text or told(type(error).__name__)


class BrokerUnavailable(CitygateError):
    """The whole batch later: the broker could not be reached or could not work.

    Args:
        retry_after_s: what the broker asked for, if it did.
        remedy: what to do now, where that is known better than from the state alone.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, remedy: str = "") -> None:
        self.retry_after_s = retry_after_s
        self.remedy = remedy
        super().__init__(message)


class LogError(CitygateError):
    """The log's file cannot be used as asked; the message says which file, why, and what now."""
