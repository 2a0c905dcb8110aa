"""Verbs of the operator's file: check."""

import argparse

from gateway.cli.terminal import complain, say, say_json
from gateway.cli.verbs import Verbs
from gateway.config import explain
from gateway.http.outcome import CONFIG, FINE
from gateway.sdk.errors import ConfigError, Problem


def add_verbs(verbs: Verbs) -> None:
    """check."""
    check_verb = verbs.add(
        "check",
        check,
        help="find every problem of a config, with place and remedy; no network",
        about="Read config, templates and mappings as `run` would, and list every problem with its place and remedy. "
        "Touches no network and no port. Warnings alone end with 0.",
        examples=("citygate check", "citygate check -c ./my-box --no-secrets", "citygate check --json | jq .problems"),
    )
    check_verb.add_argument("--no-secrets", action="store_true", help="do not look up secrets (on a laptop, in CI)")


def check(given: argparse.Namespace) -> int:
    """`citygate check`."""
    from gateway.plan import make_plan
    from gateway.registry import Registry

    problems: tuple[Problem, ...]
    try:
        problems = make_plan(given.config, Registry(), with_secrets=not given.no_secrets).warnings
    except ConfigError as error:
        problems = error.problems
    found = explain.report(problems)
    if given.json:
        say_json(found)
    else:
        for problem in explain.in_order(problems):
            complain(explain.text(problem))
        say(_summary(problems))
    return FINE if found["ok"] else CONFIG


def _summary(problems: tuple[Problem, ...]) -> str:
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    counted = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((errors, "error"), (warnings, "warning")) if n]
    return ", ".join(counted) if counted else "fine: no problem found"
