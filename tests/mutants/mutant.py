"""One mutant, as it is handed on and remembered."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one place.

    Attributes:
        module: path of the file, from the root of the project.
        function: `Class.method`; empty outside of functions.
        line: where it starts.
        was, becomes: the lines it touches, before and after, on one line each.
        number: which of those that look the same.
        last_line: where the changed part ends.
        start, end, text: the characters of the file it replaces, and by what.
        state: digest of the function, so that a verdict is forgotten when the function changes.
    """

    module: str
    function: str
    line: int
    last_line: int
    was: str
    becomes: str
    number: int
    start: int
    end: int
    text: str
    state: str

    @property
    def key(self) -> str:
        again = f" #{self.number}" if self.number else ""
        return f"{self.module}:{self.function}: {self.was} → {self.becomes}{again}"

    def applied(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]
