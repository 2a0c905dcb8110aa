"""Templates: own ones first, variants without copying, sample frames as tests."""

from pathlib import Path

import pytest

from gateway.config.explain import text
from gateway.config.templates import LoadedTemplate
from gateway.plan import check_template
from gateway.sdk.errors import Problem
from tests.support.bench_driver import BenchDriver


def check(tmp_path: Path, name: str, **files: str) -> tuple[LoadedTemplate, tuple[Problem, ...]]:
    for stem, content in files.items():
        file = tmp_path / "mine" / f"{stem}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    return check_template(BenchDriver(), name, tmp_path)


def test_shipped_templates_are_found_with_their_name_and_file(tmp_path: Path) -> None:
    loaded, problems = check(tmp_path, "acme/meter")
    assert problems == ()
    assert loaded.template is not None
    assert loaded.template.name == "acme/meter"
    assert loaded.file.endswith("acme/meter.yaml")


def test_a_variant_says_only_what_differs(tmp_path: Path) -> None:
    loaded, problems = check(
        tmp_path, "mine/half", half="extends: acme/air\nmodel: Half\npoints: {pm10: null}\nentity: {attributes: {pm10: null}}\n"
        "samples:\n  - {name: one byte, hex: '0a', expect: {pm2_5: 10}, source: made up}\n"
    )  # fmt: skip
    assert problems == ()
    assert loaded.template is not None
    assert (loaded.template.vendor, loaded.template.model) == ("Acme", "Half")
    assert list(loaded.template.points) == ["pm2_5"]


def test_a_variant_that_takes_away_what_is_not_there_is_a_problem(tmp_path: Path) -> None:
    _, problems = check(tmp_path, "mine/a", a="extends: acme/air\npoints: {pm1: null}\n")
    assert [(problem.path, problem.line) for problem in problems] == [(("points", "pm1"), 2)]


def test_a_variant_of_a_variant_and_one_that_takes_the_place_of_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "air.yaml").write_text("extends: acme/air\ndescription: ours\n")
    loaded, problems = check(tmp_path, "mine/b", b="extends: acme/air\nmodel: B\n")
    assert problems == ()
    assert loaded.template is not None
    assert (loaded.template.description, loaded.template.model) == ("ours", "B")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "extends: mine/a\n"}, "no template mine/a"),
        ({"a": "extends: mine/b\n", "b": "extends: mine/a\n"}, "mine/a is a variant of this one"),
        ({"a": "extends: mine/nowhere\n"}, "no template mine/nowhere"),
        ({"a": "extends: ../../etc\n"}, "no template ../../etc"),
        ({"a": "extends: [acme/air]\n"}, "no template (empty)"),
    ],
)
def test_a_variant_of_nothing_or_of_itself_is_a_problem_at_its_place(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    loaded, problems = check(tmp_path, "mine/a", **files)
    assert loaded.template is None
    [problem] = problems
    assert (problem.code, problem.message, problem.line) == ("unknown-template", message, 1)


def test_a_mistake_in_what_a_variant_inherits_is_shown_in_the_file_it_stands_in(tmp_path: Path) -> None:
    base = "vendor: Mine\nmodel: A\npoints: {x: {quantity: nonsense}}\n"
    _, problems = check(tmp_path, "mine/b", a=base, b="extends: mine/a\nmodel: B\n")
    [problem] = problems
    assert problem.file.endswith("mine/a.yaml")


HEAD = "extends: acme/air\nsamples:\n"


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ("hex: '0a14', expect: {pm2_5: 11, pm10: 20}", "pm2_5 is 10, expected 11"),
        ("hex: '0a14', expect: {pm2_5: null}", "pm2_5 is 10, expected None"),
        ("hex: '0a14', expect: {pm2_5: true}", "pm2_5 is 10, expected True"),
        ("hex: '0a14', expect: {pm1: 3}", "pm1 is None, expected 3"),
        ("hex: '0a', expect: {pm2_5: 10}", "refused: 1 bytes, expected 2"),
        ("hex: 'xy', expect: {pm2_5: 10}", "hex is not hexadecimal"),
        ("hex: '0a14', context: {received_at: 3}, expect: {pm2_5: 10}", ""),
    ],
)
def test_a_sample_frame_is_the_templates_test(tmp_path: Path, sample: str, said: str) -> None:
    _, problems = check(tmp_path, "mine/a", a=f"{HEAD}  - {{name: s, source: made up, {sample}}}\n")
    if not said:
        assert problems == ()
        return
    [problem] = problems
    assert problem.code == "sample-failed"
    assert said in problem.message
    assert problem.line == 3
    assert "mine/a.yaml:3:5: error: samples.0: s: " in text(problem)


def test_a_template_without_samples_is_warned_about(tmp_path: Path) -> None:
    _, problems = check(tmp_path, "mine/a", a="extends: acme/air\nsamples: []\n")
    assert [(problem.code, problem.severity) for problem in problems] == [("no-samples", "warning")]


def test_the_default_mapping_is_checked_with_the_template(tmp_path: Path) -> None:
    _, problems = check(tmp_path, "mine/a", a="extends: acme/air\nentity: {attributes: {pm25: pm2}}\n")
    [problem] = problems
    assert problem.code == "mapping-point"
    assert problem.line == 2
