"""How a verb is added to the command: its arguments, its help with examples, and the function that does it."""

import argparse
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

from gateway.cli.outside import environment
from gateway.cli.terminal import width
from gateway.environment import DEFAULT_CONFIG

Run = Callable[[argparse.Namespace], int]
EXIT_CODES = (
    "exit codes: 0 fine · 1 problem found · 2 wrong use · 3 config invalid · 4 device, broker or daemon unreachable"
)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Argument names in one column, as far as they fit."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(width(), 100))


class Verbs:
    """Some verbs of the command, in the order they are added; `texts` has their one line of help."""

    def __init__(self, subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        self._subparsers = subparsers
        self.texts: dict[str, str] = {}

    def add(
        self, name: str, run: Run, *, help: str, about: str = "", examples: tuple[str, ...] = (), config: bool = True
    ) -> argparse.ArgumentParser:
        """A verb with `--json`, and `-c` unless it needs no config.

        Args:
            run: does it; returns the exit code. CitygateErrors are printed and turned into exit codes by `main`.
            help: one line for the list of verbs.
            about: what somebody wants to know before using it.
            examples: complete command lines, tested.
        """
        self.texts[name] = help
        columns = min(width(), 100)
        ends = textwrap.fill(EXIT_CODES, columns, break_on_hyphens=False)
        shown = "".join(f"  {example}\n" for example in examples)
        verb = self._subparsers.add_parser(
            name,
            help=help,
            description=textwrap.fill(about or f"{help[0].upper()}{help[1:]}.", columns, break_on_hyphens=False),
            epilog=f"examples:\n{shown}\n{ends}" if examples else ends,
            formatter_class=_Help,
            allow_abbrev=False,
        )
        if config:
            verb.add_argument(
                "-c",
                "--config",
                metavar="FILE|DIR",
                type=Path,
                default=environment().config,
                help=f"config file, or the folder of citygate.yaml and conf.d/ (default: $CITYGATE_CONFIG or {DEFAULT_CONFIG})",
            )
        verb.add_argument("--json", action="store_true", help="one JSON object or list on standard output")
        verb.set_defaults(run=run)
        return verb

    def group(self, name: str, *, help: str) -> "Verbs":
        """Verbs under a word of their own, as in `buffer status`."""
        self.texts[name] = help
        about = f"{help[0].upper()}{help[1:]}."
        parser = self._subparsers.add_parser(name, help=help, description=about, allow_abbrev=False)
        return Verbs(parser.add_subparsers(dest=f"{name}_verb", metavar="VERB", title="verbs", required=True))


def duration(text: str) -> float:
    """Seconds of `20s`, `30m`, `2h`, `15 min`; for arguments, where `m` means minutes."""
    from gateway.sdk.config import parse_duration_s

    try:
        return parse_duration_s(re.sub(r"(?<=[0-9 ])m$", "min", text.strip()))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
