"""A tree as an instance of a model, or the problems with their places."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gateway.config.explain import from_pydantic
from gateway.config.tree import Entry, Items, Map, Node, Scalar, find, is_surprise, place_problem, plain_value
from gateway.sdk.config import PlacedText
from gateway.sdk.errors import Problem

ModelT = TypeVar("ModelT", bound=BaseModel)
KeyPath = tuple[str | int, ...]

# What a scalar means depends on its field: `0123` is a DevEUI in a text field and a trap in a number field. So numbers
# are handed over as numbers and doubtful scalars as opaque nodes; where the model asks for a text, the next round gives
# it the text as written. A flag is handed over as one only where no number is asked for: to pydantic `true` is also 1.
_TEXT_ERRORS = frozenset(
    (
        "string_type",
        "literal_error",
        "enum",
        "string_sub_type",
        "url_type",
        "uuid_type",
        "datetime_type",
        "date_type",
        "time_type",
    )
)


def validate(
    model: type[ModelT],
    node: Node,
    prefix: tuple[str, ...] = (),
    given: Mapping[KeyPath, Any] | None = None,
    entry: Entry | None = None,
) -> tuple[ModelT | None, list[Problem]]:
    """A tree as an instance of a model, or the problems with their places.

    Args:
        prefix: path of `node` in the whole file.
        given: values that stand ready, by path in `node` (a device's template).
        entry: where `node` stands, so that what is missing in it is shown at its key.
    """
    given = given or {}
    written: set[KeyPath] = set()
    flags: set[KeyPath] = set()
    errors: list[ErrorDetails] = []
    while True:  # each round hands over more as text or flag, so it ends; two or three are usual
        doubtful: set[KeyPath] = set()
        more: set[KeyPath] = set()
        data = _data(node, (), written, flags, given, doubtful)
        try:
            instance = model.model_validate(data)
            if not doubtful:
                return instance, []
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
        except Exception as error:  # noqa: BLE001 - a driver's validator may raise anything on strange input
            if unseen := _as_flags(node, [], doubtful):
                flags |= unseen
                continue
            # it may have expected a text: give it texts, the doubtful ones last, as they would then pass as numbers
            more = (set(_numbers(node, ())) - written) or doubtful
            if not more:
                return None, [_driver_bug(model, error, prefix, entry, node)]
        else:
            errors, more = [], doubtful
        new_flags = _as_flags(node, errors, doubtful)
        more = (more or _as_text(node, errors, doubtful) - written) - new_flags
        if not more and not new_flags:
            break
        written |= more
        flags |= new_flags
    return None, [_at_key(problem, prefix, entry) for problem in from_pydantic(errors, model, node, prefix)]


def _numbers(node: Node, path: KeyPath) -> Iterator[KeyPath]:
    """Where a scalar is handed over as something else than a text."""
    if isinstance(node, Map):
        for key, entry in node.entries.items():
            yield from _numbers(entry.node, (*path, key))
    elif isinstance(node, Items):
        for index, item in enumerate(node.items):
            yield from _numbers(item, (*path, index))
    elif not isinstance(plain_value(node), str | None):
        yield path


def _as_text(node: Node, errors: list[ErrorDetails], doubtful: set[KeyPath]) -> set[KeyPath]:
    """The scalars to be handed over as written in the next round."""
    kinds = _kinds(node, errors)
    texts = {path for path, types in kinds.items() if types & _TEXT_ERRORS}
    numbers = {
        path for path, types in kinds.items() if all(kind.startswith(("int_", "float_", "bool_")) for kind in types)
    }
    return texts | (doubtful - numbers)


def _as_flags(node: Node, errors: list[ErrorDetails], doubtful: set[KeyPath]) -> set[KeyPath]:
    """Those of the scalars `true` and `false` that are flags: one is asked for there, or anything."""
    kinds = _kinds(node, errors)
    return {
        path
        for path in doubtful
        if isinstance(its := find(node, path).node, Scalar)
        and isinstance(plain_value(its), bool)
        and (path not in kinds or any(kind.startswith("bool_") for kind in kinds[path]))
    }


def _kinds(node: Node, errors: list[ErrorDetails]) -> dict[KeyPath, set[str]]:
    """What is said of each scalar."""
    kinds: dict[KeyPath, set[str]] = {}
    for error in errors:
        found = find(node, error["loc"])
        if isinstance(found.node, Scalar) and plain_value(found.node) is not None:
            kinds.setdefault(found.path, set()).add(error["type"])
    return kinds


def _data(
    node: Node,
    path: KeyPath,
    written: set[KeyPath],
    flags: set[KeyPath],
    given: Mapping[KeyPath, Any],
    doubtful: set[KeyPath],
) -> Any:
    if path in given:
        return given[path]
    if isinstance(node, Map):
        return {
            key: _data(entry.node, (*path, key), written, flags, given, doubtful) for key, entry in node.entries.items()
        }
    if isinstance(node, Items):
        return [_data(item, (*path, index), written, flags, given, doubtful) for index, item in enumerate(node.items)]
    if path not in written:
        value = plain_value(node)
        if is_surprise(node) or (isinstance(value, bool) and path not in flags):
            doubtful.add(path)
            return node
    else:
        value = node.text
    folder = node.place.source.folder
    return PlacedText.at(folder, value) if folder is not None and isinstance(value, str) else value


def _at_key(problem: Problem, prefix: KeyPath, entry: Entry | None) -> Problem:
    """What concerns the node as a whole is shown at its key in the file, not at its first line."""
    whole = len(problem.path) - (problem.code == "missing-key") <= len(prefix)
    return place_problem(problem, entry.key) if entry and whole else problem


def _driver_bug(model: type[BaseModel], error: Exception, prefix: KeyPath, entry: Entry | None, node: Node) -> Problem:
    problem = Problem(
        "driver-fault",
        prefix,
        f"{model.__module__}.{model.__qualname__} cannot check this: {type(error).__name__}: {error}",
        "a fault of the driver's package: report it to its author",
    )
    return place_problem(problem, entry.key if entry else node.place)
