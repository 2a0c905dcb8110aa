"""How a verb ends: the errors that page, socket and command share, and the exit codes of the command. Pure."""

from collections.abc import Mapping
from typing import Any

from gateway.sdk.errors import BrokerUnavailable, CitygateError, ConfigError, LinkError, NoAnswer

FINE, PROBLEM, USAGE, CONFIG, UNREACHABLE = 0, 1, 2, 3, 4
START = "`sudo systemctl start citygate`"  # the remedy where only its daemon has what is needed


class UnknownName(CitygateError):
    """A verb names a device, link, broker or verb that is not there; the message lists those that are."""


class NoDaemon(CitygateError):
    """Nobody listens at the control socket."""


class Refused(CitygateError):
    """The daemon refused or could not do it.

    Args:
        message: as the daemon wrote it.
        exit_code: how the command ends.
        body: the whole answer, e.g. with `problems`.
    """

    def __init__(self, message: str, exit_code: int, body: Mapping[str, Any]) -> None:
        self.exit_code, self.body = exit_code, body
        self.remedy = str(body.get("remedy") or "")
        super().__init__(message)


def exit_code(error: CitygateError) -> int:
    """The exit code of the command that ends with this error."""
    if isinstance(error, Refused):
        return error.exit_code
    if isinstance(error, UnknownName):
        return USAGE
    if isinstance(error, ConfigError):
        return CONFIG
    if isinstance(error, LinkError | NoAnswer | BrokerUnavailable | NoDaemon):
        return UNREACHABLE
    return PROBLEM
