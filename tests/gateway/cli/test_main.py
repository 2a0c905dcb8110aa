"""The command as a whole: help, wrong use, errors without tracebacks."""

import re
import shlex
import subprocess
import sys

import pytest

from gateway.cli.main import GROUPS, parser
from gateway.cli.verbs import duration
from tests.gateway.cli.conftest import Command


def verbs() -> dict[str, str]:
    """Verb -> its help text."""
    [action] = [action for action in parser()._actions if action.dest == "verb"]
    assert isinstance(action.choices, dict)
    return {name: verb.format_help() for name, verb in action.choices.items()}


def test_help_lists_every_verb_with_what_it_does(citygate: Command) -> None:
    ended = citygate("--help")
    assert ended.code == 0
    for name in verbs():
        assert re.search(rf"^  {name}\s", ended.out, re.MULTILINE), name


@pytest.mark.parametrize("verb", [name for name, text in verbs().items() if "VERB" not in text])
def test_each_verb_has_json_exit_codes_and_an_example_that_parses(verb: str) -> None:
    text = verbs()[verb]
    assert "--json" in text
    assert "exit codes: 0 fine" in text
    examples = [line.strip() for line in text.splitlines() if line.startswith("  citygate ")]
    assert examples, f"{verb} has no example"
    for example in examples:
        words = shlex.split(re.split(" [|>] ", example)[0])[1:]
        parser().parse_args(words)


@pytest.mark.parametrize(
    "arguments", [(), ("no-such-verb",), ("status", "--no-such-option"), ("decode",), ("demo", "--for", "20")]
)
def test_wrong_use_ends_with_2_and_says_why(citygate: Command, arguments: tuple[str, ...]) -> None:
    ended = citygate(*arguments)
    assert ended.code == 2
    assert "usage:" in ended.err


def test_output_into_a_closed_pipe_is_no_error() -> None:
    shell = f"{sys.executable} -m gateway --help | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False, timeout=30)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("20s", 20.0), ("30m", 1800.0), ("15 min", 900.0), ("1.5 h", 5400.0), ("200 ms", 0.2)]
)
def test_durations_are_taken_as_people_write_them(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


def test_a_verb_whose_module_is_loaded_alone_is_the_same() -> None:
    rows = {name: names for modules in GROUPS.values() for names in modules.values() for name in names}
    for verb, text in verbs().items():
        [action] = [action for action in parser(verb)._actions if action.dest == "verb"]
        assert isinstance(action.choices, dict)
        assert tuple(action.choices) == rows[verb], "its row in GROUPS"
        assert action.choices[verb].format_help() == text


def test_a_verb_loads_no_other_module_than_its_own() -> None:
    code = "import sys; from gateway.cli.main import main; main(['status', '-c', '/nowhere']); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    loaded = set(ended.stdout.split())
    assert "gateway.cli.operate" in loaded
    assert not {"gateway.cli.demo", "gateway.config.edit", "gateway.plan", "gateway.daemon"} & loaded
