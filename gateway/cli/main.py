"""`citygate`: arguments, exit codes, `--json`. Each group of verbs is a module with `add_verbs`: a new one is one line."""

import argparse
import os
import sys
from collections.abc import Sequence

from gateway.cli import configure, demo, devices, extend, operate, simulate
from gateway.cli.terminal import colour, complain, say_json
from gateway.cli.verbs import EXIT_CODES, Verbs
from gateway.http.outcome import Refused, exit_code
from gateway.sdk.errors import CitygateError, ConfigError

GROUPS = (demo, simulate, configure, devices, operate, extend)
INTERRUPTED = 130  # as a shell reports SIGINT

ABOUT = """\
Edge gateway for city sensors: any sensor in, harmonised NGSI entities out, nothing lost in between.

The first minute: `citygate demo`. A new box: `citygate check`, then `citygate run`; `citygate status` shows how it is.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = parser().parse_args(arguments)
    try:
        code: int = given.run(given)
        sys.stdout.flush()
    except CitygateError as error:
        _explain(error, as_json=given.json)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `citygate … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def parser() -> argparse.ArgumentParser:
    """All verbs with their help."""
    top = argparse.ArgumentParser(
        prog="citygate",
        description=ABOUT,
        epilog=f"`citygate VERB --help` has examples. {EXIT_CODES[0].upper()}{EXIT_CODES[1:]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = Verbs(top)
    for group in GROUPS:
        group.add_verbs(verbs)
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
