"""What goes to the terminal: JSON for programs, text for people, colour only where somebody looks."""

import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import orjson

from gateway.cli.outside import environment
from gateway.encode import to_json
from gateway.hidden import ANY_CASE, all_hidden, hidden

COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def say(text: str = "") -> None:
    """A line on standard output."""
    text = hidden(text, least=ANY_CASE)
    try:
        sys.stdout.write(f"{text}\n")
    except UnicodeEncodeError:  # half a surrogate pair, or a terminal that is not UTF-8
        encoding = sys.stdout.encoding
        sys.stdout.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def complain(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"{hidden(text, least=ANY_CASE)}\n")
    sys.stderr.flush()


def say_json(value: Any, *, line: bool = False) -> None:
    """One object or list; on one line when it is one of a stream or goes to a program."""
    pretty = not line and sys.stdout.isatty()
    say(to_json(all_hidden(value), option=orjson.OPT_INDENT_2 if pretty else 0).decode())


def colour(text: str, name: str, stream: TextIO | None = None) -> str:
    """The text in a colour, plain where the stream is no terminal or `NO_COLOR` is set."""
    out = stream or sys.stdout
    if not out.isatty() or (told := environment()).no_color or told.terminal == "dumb":
        return text
    return f"\033[{COLOURS[name]}m{text}\033[0m"


def printable(text: str) -> str:
    """Without control characters: what a device or a broker says must not steer the terminal."""
    return "".join(c if c.isprintable() else "�" for c in text)


def table(rows: Iterable[Sequence[str]], *, indent: str = "", right: frozenset[int] = frozenset()) -> list[str]:
    """Lines with aligned columns, cut to the terminal's width; `right` columns are flush right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if not rows:
        return []
    widths = [max(len(row[n]) if n < len(row) else 0 for row in rows) for n in range(max(map(len, rows)))]
    lines = []
    for row in rows:
        cells = [cell.rjust(widths[n]) if n in right else cell.ljust(widths[n]) for n, cell in enumerate(row)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def width() -> int:
    """Columns of the terminal; 100 when there is none."""
    return shutil.get_terminal_size((100, 40)).columns
