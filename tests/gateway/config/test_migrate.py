"""Old spellings are read with a warning; older versions are brought up to date."""

from pathlib import Path

from gateway.config.migrate import Renamed, migrate
from gateway.config.tree import Entry, Map, Scalar, find, read_tree
from gateway.sdk.errors import Problem

OLD = "version: 1\nlinks:\n  a: {serial_port: /dev/x}\n  b: {serial_port: /dev/y, port: /dev/z}\n  c: 3\n"


def read(tmp_path: Path) -> Map:
    file = tmp_path / "old.yaml"
    file.write_text(OLD)
    return read_tree(file, [])


def test_a_renamed_key_is_read_under_its_new_name_with_a_warning_at_its_place(tmp_path: Path) -> None:
    problems: list[Problem] = []

    tree = migrate(read(tmp_path), problems, renamed=[Renamed(("links", "*", "serial_port"), "port")])

    assert find(tree, ("links", "a", "port")).missing is None
    [problem] = problems
    assert (problem.code, problem.severity, problem.line, problem.column) == ("deprecated-key", "warning", 3, 7)
    assert problem.remedy == "write port"


def test_with_both_spellings_the_new_one_counts_and_the_old_one_is_left_to_be_refused(tmp_path: Path) -> None:
    tree = migrate(read(tmp_path), [], renamed=[Renamed(("links", "*", "serial_port"), "port")])

    kept = find(tree, ("links", "b")).node
    assert isinstance(kept, Map)
    assert list(kept.entries) == ["serial_port", "port"]


def test_an_older_version_goes_through_every_migration_in_turn(tmp_path: Path) -> None:
    def with_mark(mark: str) -> "type[Map] | object":
        def change(root: Map) -> Map:
            place = root.place
            return Map({**root.entries, mark: Entry(place, Scalar(str(len(root.entries)), place))}, place)

        return change

    steps = {1: with_mark("first"), 2: with_mark("second")}

    tree = migrate(read(tmp_path), [], migrations=steps, version=3)  # type: ignore[arg-type]

    assert list(tree.entries) == ["version", "links", "first", "second"]
    version = tree.get("version")
    assert isinstance(version, Scalar)
    assert version.text == "3"
