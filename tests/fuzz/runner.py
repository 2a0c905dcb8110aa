"""Any input is read or refused: parsers fed with mutated examples, a million cases each, repeatable by seed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from gateway.sdk.errors import CitygateError, FrameError

MAX_BYTES = 4096  # of a mutated case; long enough to nest 2,000 deep

Mutate = Callable[[Random, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Parser:
    """One parser and what it is fed.

    Attributes:
        seeds: examples that it reads.
        call: the parser.
        allowed: what it may raise; anything else is a finding.
        mutate: how a case is made of an example.
    """

    seeds: tuple[bytes, ...]
    call: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...] = (FrameError,)
    mutate: Mutate = lambda random, seed: mutate_bytes(random, seed)


class Finding(AssertionError):
    """A case that something not allowed came of."""


def run(name: str, parser: Parser, *, seed: int, cases: int) -> int:
    """Feed so many cases; how many were read rather than refused.

    Raises:
        Finding: with seed, number and bytes of the case.
    """
    random, read = Random(f"{seed} {name}"), 0
    for n in range(cases):
        case = parser.mutate(random, random.choice(parser.seeds))[:MAX_BYTES]
        try:
            parser.call(case)
            read += 1
        except Exception as error:
            # what a gate for foreign bytes turned into an allowed error is a finding all the same
            inner = error if not isinstance(error, parser.allowed) else error.__cause__
            if inner is not None and not isinstance(inner, CitygateError):
                raise Finding(f"{name}: SEED={seed} case {n}: {type(inner).__name__} of {case!r}") from error
    return read


NASTY_BYTES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xed\xa0\xbd",
    b"\xf0\x9f\x98",
    b"\r\n",
    b"9" * 40,
    b"-",
    b"[" * 1200,
)


def mutate_bytes(random: Random, seed: bytes) -> bytes:
    """A few cuts, flips, repeats and nasty insertions."""
    case = bytearray(seed)
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(case))
        match random.randrange(5):
            case 0 if case:
                case[at % len(case)] ^= 1 << random.randrange(8)
            case 1:
                del case[at : at + random.randint(1, 8)]
            case 2:
                case[at:at] = random.choice(NASTY_BYTES)
            case 3:
                case[at:at] = case[at : at + random.randint(1, 32)]
            case _:
                case[at : at + 1] = random.randbytes(1)
    return bytes(case)


def _nested(depth: int, key: str | None = None) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if key is None else {key: value}
    return value


# dates at the ends of what can be told, halves of surrogate pairs, numbers beyond 64 bits and beyond floats, wrong kinds
NASTY_JSON: tuple[Any, ...] = (
    None, True, False, 0, -0.0, -1, 3.0, 1e308, -1e308, 5e-324, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63) - 1, 10**400,
    "", "0", "-1", "3.0", "NaN", "Infinity", "1e400", "9" * 400, "\x00", "\ud800", "a\udfffb", "٣", "²", "🙂", " ",
    "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59.999999999Z",
    "1969-12-31T23:59:59Z", "2026-02-30T00:00:00Z", "2026-06-01", "2026-06-01T12:00:00", "2026-06-01T24:00:00Z",
    "2026-06-01T12:00:00+23:59:59.999999", "24e124713d123456", "JOEkcT0SNFY=", "AAAA", "A", "====", [], {}, [None],
    [[]], [{}], {"": 1}, {"\ud800": "\udfff"}, {"a.b[0]": {"c": []}}, _nested(60), _nested(60, "a"),
)  # fmt: skip
DEEP = tuple(
    json.dumps(_nested(150, key)).replace("1", f"{o * 800}1{c * 800}")
    for key, o, c in ((None, "[", "]"), ("a", '{"a":', "}"))
)


def mutate_json(random: Random, seed: bytes) -> bytes:
    """A few values replaced, keys dropped, renamed or moved; now and then it is no JSON any more."""
    if random.random() < 0.1:
        return mutate_bytes(random, seed)
    tree = json.loads(seed)
    for _ in range(random.randint(1, 3)):
        tree = _mutated(random, tree)
    text = json.dumps(tree, ensure_ascii=random.random() < 0.9)
    if random.random() < 0.01:
        text = text.replace(random.choice(("1", '""', "null", "[]")), random.choice(DEEP), 1)
    return text.encode("utf-8", "surrogatepass")


def _mutated(random: Random, tree: Any) -> Any:
    """The tree with one change somewhere in it; the deeper, the rarer."""
    if not tree or not isinstance(tree, dict | list) or random.random() < 0.05:
        return random.choice(NASTY_JSON)
    if isinstance(tree, list):
        at = random.randrange(len(tree))
        if random.random() < 0.1:
            return [*tree, *tree[at:]]
        return [*tree[:at], _mutated(random, tree[at]), *tree[at + 1 :]]
    key = random.choice(tuple(tree))
    match random.randrange(8):
        case 0:
            return {k: v for k, v in tree.items() if k != key}
        case 1:
            return {**tree, random.choice(("\ud800", "", "a.b", key.upper(), key * 40)): tree[key]}
        case _:
            return {**tree, key: _mutated(random, tree[key])}
