"""`citygate`: arguments, exit codes, `--json`. Each group of verbs is a module with `add_verbs`: a new one is one word."""

import argparse
import difflib
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NoReturn

from gateway.cli import outside
from gateway.cli.terminal import colour, complain, say_json, width
from gateway.cli.verbs import EXIT_CODES, Verbs
from gateway.http.outcome import USAGE, Refused, exit_code
from gateway.sdk.errors import CitygateError, ConfigError

# Title -> modules with their verbs. A module is loaded when one of its verbs is asked for; all are for the help, and for a
# verb that is in no row.
GROUPS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "try it without hardware": {"demo": ("demo",), "simulate": ("simulate",)},
    "set up a box": {"configure": ("init", "schema", "check"), "adding": ("add",)},
    "look at a device": {
        "devices": ("decode", "read", "preview"),
        "wire": ("scan", "provision", "solve", "write", "record", "case"),
    },
    "run the box": {"operate": ("run", "status", "watch", "reload", "once", "pause"), "buffer": ("buffer",)},
    "prove that it works": {"doctor": ("doctor",), "commission": ("commission",), "reports": ("bundle",)},
    "add what is missing": {"extend": ("drivers", "templates"), "models": ("models",)},
}
INTERRUPTED = 130  # as a shell reports SIGINT

ABOUT = "Edge gateway for city sensors: any sensor in, harmonised NGSI entities out, nothing lost in between."
FIRST_STEPS = (
    "The first minute: `citygate demo`. A new box: `citygate init`, `check`, `run`; then `status` says how it is. "
    "`citygate VERB --help` has examples."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    try:
        with outside.read():
            words = sys.argv[1:] if arguments is None else arguments
            return _run(parser(*words[:1]).parse_args(words))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `citygate … | head`; not every argparse catches it when it prints the help
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(given: argparse.Namespace) -> int:
    try:
        code: int = given.run(given)
        sys.stdout.flush()
    except CitygateError as error:
        _explain(error, as_json=given.json)
        return exit_code(error)
    return code


class _Top(argparse.ArgumentParser):
    """The parser whose help is the map of all verbs."""

    sections: Sequence[tuple[str, Verbs]] = ()

    def format_help(self) -> str:
        columns = min(width(), 110)
        lines = ["usage: citygate VERB …", "", *textwrap.wrap(ABOUT, columns)]
        longest = max(len(name) for _, verbs in self.sections for name in verbs.texts)
        for title, verbs in self.sections:
            lines += ["", f"{title}:"]
            for name, text in verbs.texts.items():
                first, *more = textwrap.wrap(text, max(columns - longest - 4, 20))
                lines += [f"  {name.ljust(longest)}  {first}", *(" " * (longest + 4) + line for line in more)]
        lines += [
            "",
            *textwrap.wrap(FIRST_STEPS, columns),
            "",
            *textwrap.wrap(EXIT_CODES, columns, break_on_hyphens=False),
        ]
        return "\n".join(lines) + "\n"

    def error(self, message: str) -> NoReturn:
        """Wrong use: which verb was probably meant, where to look."""
        word = re.search(r"invalid choice: '([^']*)'", message)
        if word is not None:
            known = [name for _, verbs in self.sections for name in verbs.texts]
            near = difflib.get_close_matches(word[1], known, n=1, cutoff=0.5)
            message = f"no verb {word[1]}{f'; did you mean {near[0]}?' if near else ''}"
        self.exit(USAGE, f"usage: citygate VERB …\ncitygate: {message}\n`citygate --help` lists the verbs\n")


def parser(verb: str = "") -> argparse.ArgumentParser:
    """All verbs with their help, or at least this one."""
    top = _Top(prog="citygate", allow_abbrev=False)
    subparsers = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=argparse.ArgumentParser)
    known = any(verb in names for modules in GROUPS.values() for names in modules.values())
    sections = []
    for title, modules in GROUPS.items():
        verbs = Verbs(subparsers)
        for module, names in modules.items():
            if verb in names or not known:
                import_module(f"gateway.cli.{module}").add_verbs(verbs)
        sections.append((title, verbs))
    top.sections = sections
    return top


def _explain(error: CitygateError, *, as_json: bool) -> None:
    """What went wrong and what now; never a traceback for an error we raise on purpose."""
    said = error.body if isinstance(error, Refused) else {}
    if isinstance(error, ConfigError):
        from gateway.config import explain

        problems = explain.in_order(error.problems)
        said = {
            "problems": [explain.as_json(problem) for problem in problems],
            "text": "\n".join(explain.text(problem) for problem in problems),
        }
    remedy = str(getattr(error, "remedy", "") or said.get("remedy", ""))
    if as_json:
        body = {"error": str(error), "remedy": remedy, "problems": said.get("problems")}
        say_json({key: value for key, value in body.items() if value})
        return
    complain(said.get("text") or f"{colour('error', 'red', sys.stderr)}: {error}")
    if remedy:
        complain(f"    → {remedy}")
