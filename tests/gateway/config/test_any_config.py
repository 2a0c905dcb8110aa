"""Whatever somebody does to a config, it loads or every problem has a place: never a traceback."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.explain import as_json, text
from gateway.plan import make_plan
from gateway.sdk.errors import ConfigError, Problem
from tests.support.bench_driver import BenchRegistry

GOOD = """\
version: 1
gateway: {id: gw-1, name: School roof, location: [9.1590, 45.5030], city: milano}
buffer: {path: /tmp/buffer.db, commit_every: 15 s, max_size: 1 GB, max_age: 30 d, keep: 0 s}
links:
  roof:
    driver: bench
    port: /dev/serial/by-id/usb-x
    baud_rate: 9600
    devices:
      meter-1:
        template: acme/meter
        unit_id: 1
        dev_eui: 0024124713123456
        mac: CB:B8:33:4C:88:4F
        every: 10 s
        enabled: true
        calibrate: {voltage: {gain: 1.02, offset: -1}}
        report: {voltage: {on_change: 0.5, at_least: 15 min}}
        entity: {static: {name: Roof meter}}
  air: {driver: bench, host: 192.0.2.1, devices: {air-1: {template: mine/air}}}
brokers:
  milano:
    use: cities/teststadt
    url: https://broker.example
    send: ["*"]
    from: oldest
    linger: 1 s
    rate: 500/s
publish: {licence: CC-BY-4.0, provider: Comune di Milano}
http: {listen: "127.0.0.1:8580"}
clock: {trust: auto}
"""
TEMPLATE = """\
extends: acme/air
description: with a point less
points: {pm10: null}
entity: {attributes: {pm10: null}}
"""
PROFILE = """\
city: milano
id: "urn:ngsi-ld:{Type}:{city}:{gateway}:{device}"
static: {areaServed: Milano}
broker: {tenant: air}
"""
FILES = {"citygate.yaml": GOOD, "templates/mine/air.yaml": TEMPLATE, "cities/teststadt.yaml": PROFILE}

NASTY = st.sampled_from(
    ["", "null", "NO", "012", "1:30", "[]", "{}", "[1, 2]", "{a: 1}", "*x", "&x 1", "!secret x", "!!python/object:os 1",
     "-1", "1e400", ".nan", "true", "'", '"', "\t", ": :", "- a", "x" * 300, "\u0000", "é€😀", "../../x", "{", "}", "#",
     "|", "%", "0x1F", "99999999999999999999", "<<: *x", "10 s", "1 GB", "acme/meter", "{device}"]
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, str]:
    """The files with one to four things done to them."""
    files = dict(FILES)
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(files)))
        lines = files[name].split("\n")
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        match draw(st.integers(0, 6)):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, line)
            case 2:
                lines[at] = line.partition(":")[0] + ": " + draw(NASTY)
            case 3:
                cut = draw(st.integers(0, len(line)))
                lines[at] = line[:cut] + draw(NASTY) + line[cut:]
            case 4:
                cut = draw(st.integers(0, len(line)))
                lines[at] = line[:cut] + line[cut + 1 :]
            case 5:
                lines[at] = draw(st.sampled_from(["  ", " ", ""])) + line.lstrip()
            case _:
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
        files[name] = "\n".join(lines)
    return files


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    return folder


def outcome(folder: Path) -> tuple[bool, tuple[Problem, ...]]:
    """Whether it loads, and what is said about it."""
    try:
        return True, make_plan(folder, BenchRegistry()).warnings
    except ConfigError as error:
        return False, error.problems


def test_the_unharmed_config_is_fine(tmp_path: Path) -> None:
    plan = make_plan(write(tmp_path, FILES), BenchRegistry())
    assert plan.warnings == ()
    device = plan.devices["meter-1"].config
    assert (device.dev_eui, device.mac) == ("0024124713123456", "CB:B8:33:4C:88:4F")  # type: ignore[attr-defined]
    assert list(plan.devices["air-1"].points) == ["pm2_5"]


def test_fragments_are_merged_in_the_order_of_their_names_and_hidden_files_are_not(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    fragment = (
        "x-meter{n}: &m {{template: acme/meter}}\nlinks: {{roof: {{devices: {{m-{n}: {{<<: *m, unit_id: 2}}}}}}}}\n"
    )
    names = {"b.yaml": 1, "a.yml": 2, ".hidden.yaml": 3, "c.yaml~": 4, "d.txt": 5}
    write(tmp_path, {f"conf.d/{name}": fragment.format(n=n) for name, n in names.items()})

    plan = make_plan(tmp_path, BenchRegistry())

    assert [file.name for file in plan.files] == ["citygate.yaml", "a.yml", "b.yaml"]
    assert list(plan.links["roof"].devices) == ["meter-1", "m-2", "m-1"]


@settings(max_examples=250)
@given(files=mutated())
def test_a_mutated_config_loads_or_every_problem_has_its_place(tmp_path: Path, files: dict[str, str]) -> None:
    loads, problems = outcome(write(tmp_path, files))

    assert loads != any(problem.severity == "error" for problem in problems)
    for problem in problems:
        assert problem.line >= 1, problem
        assert problem.column >= 1, problem
        content = Path(problem.file).read_bytes().decode("utf-8", "replace")
        assert problem.line <= max(len(content.splitlines()), 1), problem
        assert problem.message
        assert problem.code.replace("-", "").isalpha()
        assert text(problem).startswith(f"{problem.file}:{problem.line}:{problem.column}: {problem.severity}: ")
        assert as_json(problem)["path"] == ".".join(map(str, problem.path))


@pytest.mark.parametrize("name", FILES)
def test_each_file_may_be_missing(tmp_path: Path, name: str) -> None:
    write(tmp_path, FILES)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError):
        make_plan(tmp_path, BenchRegistry())
