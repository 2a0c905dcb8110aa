"""`make fuzz SEED=… CASES=…`: every parser of `parsers/`; a short run of each is part of `make test`."""

import importlib
import os
from pathlib import Path

import pytest

from tests.fuzz.runner import Finding, Parser, mutate_bytes, mutate_json, run

SEED = int(os.environ.get("SEED", "1"))
CASES = int(os.environ.get("CASES", "1000000"))
FEW = 3000
PARSERS: dict[str, Parser] = {
    name: parser
    for file in sorted((Path(__file__).parent / "parsers").glob("*.py"))
    for name, parser in importlib.import_module(f"tests.fuzz.parsers.{file.stem}").PARSERS.items()
}


@pytest.mark.parametrize("name", PARSERS)
def test_its_own_examples_are_read(name: str) -> None:
    parser = PARSERS[name]
    for example in parser.seeds:
        parser.call(example)


@pytest.mark.parametrize("name", PARSERS)
def test_a_few_cases_are_read_or_refused(name: str) -> None:
    assert run(name, PARSERS[name], seed=SEED, cases=FEW) > 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", PARSERS)
def test_a_million_cases_are_read_or_refused(name: str) -> None:
    run(name, PARSERS[name], seed=SEED, cases=CASES)


@pytest.mark.parametrize("mutate", [mutate_bytes, mutate_json])
def test_a_parser_that_raises_something_else_is_found_and_the_seed_repeats_it(mutate: object) -> None:
    parser = Parser((b'{"a": 7, "b": [1, 2]}',), lambda case: case.decode(), mutate=mutate)  # type: ignore[arg-type]
    with pytest.raises(Finding, match="SEED=3 case") as first:
        run("text", parser, seed=3, cases=10_000)
    with pytest.raises(Finding) as again:
        run("text", parser, seed=3, cases=10_000)
    assert str(first.value) == str(again.value)
