"""docs/command.md names every verb, every metric and every path there is."""

import re
from pathlib import Path

from gateway.cli.main import parser
from gateway.http.metrics import render
from gateway.http.outcome import CONFIG, FINE, PROBLEM, UNREACHABLE, USAGE
from tests.support.fake_view import status

TEXT = (Path(__file__).parents[2] / "docs" / "command.md").read_text()


def test_every_verb_is_described() -> None:
    [action] = [action for action in parser()._actions if action.dest == "verb"]
    assert isinstance(action.choices, dict)
    missing = [verb for verb in action.choices if not re.search(rf"`{verb}\b", TEXT)]
    assert not missing


def test_every_metric_is_listed() -> None:
    names = set(re.findall(r"^(citygate_\w+)", render(status()).decode(), re.MULTILINE))
    missing = [name for name in names if f"`{name}`" not in TEXT and not name.startswith("citygate_log_")]
    assert not missing


def test_every_exit_code_has_its_line() -> None:
    codes = [int(code) for code in re.findall(r"^\| (\d) \|", TEXT, re.MULTILINE)]
    assert codes == [FINE, PROBLEM, USAGE, CONFIG, UNREACHABLE]


def test_the_status_shape_names_every_key() -> None:
    shape = TEXT[TEXT.index("## The status") : TEXT.index("## The control socket")]
    link = status()["links"]["roof"]
    device = link["devices"]["meter-12"]
    broker = status()["brokers"]["milano"]
    for record in (status(), status()["gateway"], link, device, device["points"]["voltage"], broker):
        for key in record:
            assert re.search(rf"\b{key}\b", shape), key
