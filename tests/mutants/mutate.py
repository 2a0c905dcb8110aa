"""The mutants of a module: mutmut's operators without its texts, and two for states (a statement left out, a condition turned)."""

import ast
import hashlib
import itertools
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

from tests.mutants.mutant import Mutant

Found: TypeAlias = tuple[str, CodeRange | None, CodeRange, str]  # function, its range, the replaced range, the new text


def mutants_of(module: str, source: str) -> list[Mutant]:
    """All mutants of a file that are valid Python, in the order of the file."""
    finder = _Finder()
    MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True).visit(finder)
    offsets = [0, *itertools.accumulate(len(line) for line in source.splitlines(keepends=True))]
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for function, inside, where, text in dict.fromkeys(finder.found):
        start, end = (offsets[at.line - 1] + at.column for at in (where.start, where.end))
        text = _with_its_spaces(text, source[start:end])
        first, last = offsets[where.start.line - 1], offsets[where.end.line]
        head, tail = (offsets[inside.start.line - 1], offsets[inside.end.line]) if inside else (first, last)
        was, becomes = _one_line(source[first:last]), _one_line(source[first:start] + text + source[end:last])
        if was == becomes or not _is_python(source[head:start] + text + source[end:tail]):
            continue
        state = hashlib.sha256(source[head:tail].encode()).hexdigest()[:12]
        looks = f"{function}: {was} → {becomes}"
        number = seen[looks]
        seen[looks] += 1
        lines = where.start.line, where.end.line
        found.append(Mutant(module, function, *lines, was, becomes, number, start, end, text, state))
    return sorted(found, key=lambda mutant: (mutant.start, mutant.end))


def _with_its_spaces(text: str, was: str) -> str:
    """The range of an operator has its spaces or has not; so has the text that takes its place."""
    return was[: len(was) - len(was.lstrip())] + text.strip() + was[len(was.rstrip()) :]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_python(source: str) -> bool:
    try:
        ast.parse(textwrap.dedent(source))
    except SyntaxError:
        return False
    return True


class _Finder(cst.CSTVisitor):
    """Walks a module; what is for people alone (messages of a raise, events of the journal) is passed over."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Found] = []
        self._names: list[str] = []
        self._functions: list[CodeRange] = []
        self._module = cst.Module([])

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom) or _of_the_journal(node):
            return False
        if isinstance(node, cst.ClassDef | cst.FunctionDef):
            self._names.append(node.name.value)
            if isinstance(node, cst.FunctionDef):
                self._functions.append(self.get_metadata(PositionProvider, node))
        if self._functions or isinstance(node, cst.BaseNumber | cst.Name):  # outside of functions: constants
            for mutated in _mutated(node):
                self._add(node, mutated)
        for test, mutated in _turned(node):
            self._add(test, mutated)
        return not isinstance(node, cst.Raise)

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.ClassDef | cst.FunctionDef):
            self._names.pop()
            if isinstance(original_node, cst.FunctionDef):
                self._functions.pop()

    def _add(self, node: cst.CSTNode, mutated: cst.CSTNode) -> None:
        where = self.get_metadata(PositionProvider, node, None)
        if where is None:
            return
        text = self._module.code_for_node(mutated)
        inside = self._functions[0] if self._functions else None
        self.found.append((".".join(self._names) if inside else "", inside, where, text))


def _of_the_journal(node: cst.CSTNode) -> bool:
    match node:
        case cst.Expr(value=cst.Call(func=cst.Attribute(value=cst.Name(value="_events")))):
            return True
    return False


def _mutated(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, cst.Match):
        return  # a block: the rest works on what stands within lines
    for kind, operator in mutation_operators:
        if operator is not operator_string and isinstance(node, kind):
            yield from operator(node)
    yield from _left_out(node)


def _left_out(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """A call, a raise, a new value of a field: not made. One side of `and` and `or`: not asked."""
    match node:
        case cst.Expr(value=cst.Call() | cst.Await()) | cst.Raise() | cst.Del() | cst.AugAssign():
            yield cst.Pass()
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Attribute() | cst.Subscript()), *_]):
            yield cst.Pass()
        case cst.BooleanOperation():
            yield from (node.left, node.right)


def _turned(node: cst.CSTNode) -> Iterator[tuple[cst.BaseExpression, cst.BaseExpression]]:
    """The condition of `if`, `while` and a comprehension, and its opposite; comparisons have mutants of their own."""
    if isinstance(node, cst.If | cst.While | cst.CompIf) and not isinstance(
        node.test, cst.Comparison | cst.BooleanOperation | cst.UnaryOperation
    ):
        grouped = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.test, cst.UnaryOperation(cst.Not(), grouped)
