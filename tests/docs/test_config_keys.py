"""docs/config-keys.md: every key there is, as the schema says it, and what applies a change as the gateway does it."""

import re
from pathlib import Path

from gateway.changes import DAEMON_PARTS
from gateway.cli.editor import Editor
from gateway.config.page import APPLIED
from gateway.config.schema import file_schema, key_paths
from gateway.registry import Registry
from tests.support.box import REPOSITORY

TEXT = (REPOSITORY / "docs" / "config-keys.md").read_text()


def test_the_page_is_what_the_code_says(tmp_path: Path) -> None:
    assert Editor(tmp_path).page() + "\n" == TEXT, "make docs writes it anew"


def test_every_key_has_a_line_with_a_meaning() -> None:
    registry = Registry()
    drivers = {name: registry.driver(name) for name in registry.names()}
    named = {path[-1] for path in key_paths(file_schema(drivers)) if path[-1] != "*"} - set(APPLIED)
    lines = re.findall(r"^\| `(\S+)` \|(?:(?:[^|\\]|\\.)*\|){3} (.*) \|$", TEXT, re.MULTILINE)
    assert named - {key.rpartition(".")[2] for key, _ in lines} == set()
    assert [key for key, meaning in lines if not meaning.strip()] == []


def test_what_a_change_restarts_is_what_the_daemon_restarts() -> None:
    parts = {path[0] for path in key_paths(file_schema({})) if len(path) == 1}
    assert parts | {"devices"} == set(APPLIED)
    waits = {part for part, text in APPLIED.items() if "restart of the daemon" in text}
    assert waits == set(DAEMON_PARTS)


def test_units_defaults_and_bounds_are_in_the_words_of_the_file() -> None:
    for line in (
        "| `commit_every` | duration | `15 s` | 0 s to 1 h |",
        "| `max_size` | size | `1 GB` | at least 1 MB |",
        "| `rate` | rate |  | above 0/s |",
        "| `baud_rate` | whole number | `9600` | 50 to 4000000 |",
        '| `send` | list of text | `["*"]` |  |',
        "| `auth.basic.password` | secret | needed |  |",
        "| `from` | `oldest`, `now` or time | `oldest` |  |",
        "| `calibrate.POINT.gain` | number | `1` |  |",
    ):
        assert line in TEXT
    assert "•" not in TEXT
