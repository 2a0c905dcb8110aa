"""The schemas under the language server that editors use: what it offers, what it says, what it underlines, and what not."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from gateway.cli.editor import Editor
from gateway.config.known import Known
from gateway.config.schema import file_schema
from gateway.config.templates import Templates
from gateway.models.extension import read_brief, write_model
from gateway.plan import make_plan
from gateway.sdk.errors import ConfigError, Problem
from gateway.sdk.template import Template
from tests.docs.test_docs import DOCUMENTS, HEAD, SAMPLES, _examples
from tests.gateway.config.test_cases import CASES
from tests.support.bench_driver import BenchDriver, BenchRegistry
from tests.support.box import REPOSITORY
from tests.support.language_server import Diagnostic, LanguageServer

pytestmark = pytest.mark.editor

SERVER = REPOSITORY / ".editor" / "node_modules" / "yaml-language-server" / "bin" / "yaml-language-server"
BRIEF = REPOSITORY / "config" / "models" / "BenchObserved.yaml"
TOP = "# yaml-language-server: $schema=./citygate.schema.json\n"
BOX = f"{TOP}version: 1\ngateway:\n  id: gw-1\n  city: milano\n  location: [9.1, 45.5]\n"
LINK = BOX + "links:\n  l:\n    driver: {driver}\n"
DEVICE = LINK + "    devices:\n      d:\n        template: {template}\n"
AIR = DEVICE.format(driver="serial", template="mine/dust")
METER = DEVICE.format(driver="modbus", template="eastron/sdm120")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box with a template, a model and a city of its own, and fresh schemas."""
    folder = tmp_path_factory.mktemp("box")
    for name in ("conf.d", "cities", "templates/mine", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "templates" / "mine" / "dust.yaml").write_text("extends: nova/sds011\npoints: {fine: {quantity: pm25}}\n")
    (folder / "cities" / "turin.yaml").write_text("city: turin\n")
    write_model(read_brief(BRIEF), folder / "models", BRIEF.read_text())
    Editor(folder).write()
    return folder


@pytest.fixture(scope="module")
def server(box: Path) -> Iterator[LanguageServer]:
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    if not SERVER.exists():
        pytest.skip("the language server is not installed in .editor/; `make editor` does it where npm can")
    cases = {(box / f"{name}.schema.json").as_uri(): f"**/{name}/**" for name in ("cases", "based")}
    for name in ("cases", "based"):
        (box / f"{name}.schema.json").write_bytes(orjson.dumps(bench_schema(fragment=name == "based")))
    with LanguageServer(SERVER, box, cases) as server:
        yield server


def bench_schema(*, fragment: bool) -> dict[str, object]:
    """Of the config that the cases are for, with all templates that any of them has."""
    folders = [*CASES.glob("*/templates"), CASES / "none"]
    driver = BenchDriver()
    templates: dict[str, Template | None] = {}
    for folder in folders:
        found = Templates([folder], [])
        templates |= {name: found.load(driver, name).template for name in found.names(driver)}
    return file_schema({"bench": driver, "broken": None}, Known({"bench": templates}), fragment=fragment)


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        (TOP + "‸", {"version", "gateway", "links", "brokers", "buffer", "publish", "http", "clock"}),
        (BOX + "clock:\n  trust: ‸", {"auto", "system"}),
        (BOX + "buffer:\n  commit_every: ‸", {"15 s", "15 min"}),
        (BOX + "links:\n  l:\n    driver: ‸", {"modbus", "serial", "chirpstack", "tts", "semtech-udp", "lora-modem"}),
        (LINK.format(driver="modbus") + "    ‸", {"port", "host", "baud_rate", "parity", "devices"}),
        (LINK.format(driver="chirpstack") + "    ‸", {"url", "username", "application", "devices"}),
        (LINK.format(driver="modbus") + "    parity: ‸", {"N", "E", "O"}),
        (LINK.format(driver="serial") + "    devices:\n      d:\n        template: ‸", {"nova/sds011", "mine/dust"}),
        (METER + "        ‸", {"unit_id", "every", "calibrate", "report", "entity", "location", "writes"}),
        (AIR + "        calibrate:\n          ‸", {"fine", "pm10", "pm2_5"}),
        (AIR + "        calibrate:\n          fine:\n            ‸", {"gain", "offset", "valid_from", "previous"}),
        (METER + "        report:\n          ‸", {"voltage", "current", "active_power"}),
        (AIR + "        entity:\n          type: ‸", {"AirQualityObserved", "WeatherObserved", "BenchObserved"}),
        (AIR + "        entity:\n          attributes:\n            ‸", {"pm25", "pm10", "no2", "address.addressLocality"}),
        (AIR + "        entity:\n          type: BenchObserved\n          attributes:\n            ‸", {"seatedPeople", "charging.usb"}),
        (AIR + "        entity:\n          attributes:\n            pm25: ‸", {"fine", "pm10", "pm2_5"}),
        (AIR + "        entity:\n          static:\n            ‸", {"areaServed", "name", "refPointOfInterest"}),
        (BOX + "brokers:\n  b:\n    ‸", {"kind", "url", "use", "tenant", "auth", "history"}),
        (BOX + "brokers:\n  b:\n    kind: ‸", {"ngsi-ld"}),
        (BOX + "brokers:\n  b:\n    use: ‸", {"cities/milano", "cities/turin"}),
        (BOX + "brokers:\n  b:\n    use: cities/turin\n    history: ‸", {"auto", "temporal", "in-order", "latest-only"}),
        (BOX + "brokers:\n  b:\n    from: ‸", {"oldest", "now"}),
    ],
    ids=lambda its: its.removeprefix(BOX)[-40:] if isinstance(its, str) else "",
)  # fmt: skip
def test_what_fits_is_offered(server: LanguageServer, text: str, offered: set[str]) -> None:
    found = server.completions(text)
    assert offered - found == set()
    # nothing from elsewhere, and no name of ours
    assert {its for its in found if its in ("unit_id", "NAME") or its.endswith(("Config", "Link"))} <= offered


def test_what_does_not_fit_is_not_offered(server: LanguageServer) -> None:
    assert "fine" not in server.completions(METER + "        calibrate:\n          ‸")
    assert "eastron/sdm120" not in server.completions(
        LINK.format(driver="serial") + "    devices:\n      d:\n        template: ‸"
    )
    assert "baud_rate" not in server.completions(LINK.format(driver="chirpstack") + "    ‸")
    assert "pm25" not in server.completions(
        AIR + "        entity:\n          type: BenchObserved\n          attributes:\n            ‸"
    )


def test_fragments_templates_and_cities_are_completed_too(server: LanguageServer, box: Path) -> None:
    def offered(folder: str, schema: str, text: str) -> set[str]:
        return server.completions(f"# yaml-language-server: $schema={schema}\n{text}", folder)

    beside = "./citygate.schema.json"
    device = "links:\n  l:\n    devices:\n      d:\n        "
    assert {"unit_id", "dev_eui", "template"} <= offered("conf.d", beside, device + "‸")
    assert {"voltage", "current"} <= offered(
        "conf.d", beside, device + "template: eastron/sdm120\n        calibrate:\n          ‸"
    )
    assert {"city", "types", "broker", "static"} <= offered("cities", beside, "‸")
    assert {"AirQualityObserved", "BenchObserved"} <= offered("cities", beside, "types:\n  ‸")
    assert {"kind", "tenant", "auth"} <= offered("cities", beside, "broker:\n  ‸")
    serial = "../serial.schema.json"
    assert {"vendor", "model", "points", "entity", "extends"} <= offered("templates/mine", serial, "‸")
    assert {"pm25", "air_temperature"} <= offered("templates/mine", serial, "points:\n  p:\n    quantity: ‸")
    assert {"GQ", "CEL"} <= offered("templates/mine", serial, "points:\n  p:\n    unit: ‸")
    assert {"BenchObserved"} <= offered("templates/mine", serial, "entity:\n  type: ‸")
    assert {"nova/sds011"} <= offered("templates/mine", serial, "extends: ‸")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("buffer:\n  comm‸it_every: 15 s\n", "declared loss window at a power cut; 0 s commits each set\n\nduration · default `15 s` · 0 s to 1 h"),
        ("clock:\n  tru‸st: auto\n", "system takes the system's word (containers, tests)\n\ndefault `auto`\n\nAllowed Values:\n\n* `auto`\n* `system`"),
        ("links:\n  l:\n    driver: modbus\n    ba‸ud_rate: 9600\n", "#### modbus link\n\nbits per second; all units of a line have the same\n\nwhole number · default `9600` · 50 to 4000000"),
        ("links:\n  l:\n    driver: modbus\n    devices:\n      d:\n        temp‸late: mine/x\n", "* `eastron/sdm120`: Single-phase energy meter, 45 A, RS-485"),
        ("brokers:\n  b:\n    ra‸te: 500/s\n", "without it what the broker takes\n\nrate · above 0/s"),
        ("brokers:\n  b:\n    url: https://b.example\n    auth:\n      oauth2:\n        token_‸url: https://i.example\n", "must be given"),
        ("gate‸way:\n  id: gw\n", "This box."),
    ],
)  # fmt: skip
def test_a_key_is_explained(server: LanguageServer, text: str, said: str) -> None:
    assert said in server.hover(TOP + text)


def test_nothing_is_underlined_in_what_loads(server: LanguageServer) -> None:
    """The samples of the drivers, the example, the config that `init` writes, and what the documents show."""
    texts = {file.relative_to(REPOSITORY).as_posix(): file.read_text() for file in SAMPLES}
    texts["example"] = (REPOSITORY / "config" / "citygate.example.yaml").read_text()
    texts["fragment"] = (REPOSITORY / "config" / "conf.d" / "plant.yaml").read_text()
    parts = ("gateway", "links", "brokers", "publish", "http", "clock", "buffer")
    for document in DOCUMENTS:
        for example in _examples(document):
            text = str(example.values[0])
            keys = {line.partition(":")[0] for line in text.splitlines()}
            if keys & set(parts):
                texts[str(example.id)] = "".join(part for key, part in HEAD.items() if key not in keys) + text
    texts["secrets"] = (
        BOX + "http: {token: !secret page}\nbrokers: {b: {url: 'https://b.example', auth: {bearer: !secret b}}}\n"
    )
    asked = {}
    for number, (name, text) in enumerate(texts.items()):
        schema = "./conf.d/citygate.schema.json" if name == "fragment" else "./citygate.schema.json"
        asked[f"loads-{number}.yaml"] = f"# yaml-language-server: $schema={schema}\n{text.removeprefix(TOP)}"
    found = server.diagnostics(asked)
    assert len(asked) > 10
    assert {name: its for name, its in zip(texts, found.values(), strict=True) if its} == {}


# What is said of the form of a file, and a word that the language server then says; "" for any.
FORM = {
    "unknown-key": "is not allowed", "missing-key": "Missing property", "unknown-choice": "Value ", "wrong-type": "Incorrect type",
    "out-of-range": "the m", "wrong-form": "pattern", "wrong-length": "", "invalid-value": "", "missing-value": "", "yaml-surprise": "",
    "unknown-driver": "Valid values", "unknown-template": "Valid values", "unknown-point": "Value is not accepted", "wrong-name": "pattern",
    "duplicate-key": "unique", "unknown-alias": "", "unknown-tag": "tag", "wrong-key": "", "yaml-syntax": "", "unfinished-file": "", "merge-conflict": "",
}  # fmt: skip
# What a schema cannot say: two keys that exclude or need each other, numbers inside texts, what YAML 1.2 reads otherwise than 1.1, and
# what another file gives.
CHECK_ALONE = {
    "calibration-ends-before-it-begins", "driver-blames-a-device", "driver-blames-the-link", "listen-everywhere-without-token", "two-ways-to-log-in",
    "bound-of-a-duration", "bound-of-a-size", "rate-of-zero", "broker-port-too-large", "nan", "octal", "cr-line-ends", "merge-of-a-text", "secret-in-the-name",
    "calibration-new-one-without-its-day", "errors-of-fields-and-of-the-whole-link",
    "a-base-and-another-way-to-log-in", "a-base-and-nothing-behind-a-key", "a-base-with-other-names",
}  # fmt: skip


def test_what_check_says_of_the_form_of_a_file_is_underlined_on_that_line(server: LanguageServer) -> None:
    said = {case.name: problems_of(case) for case in sorted(CASES.iterdir())}
    texts = {name: text for name in said if (text := _text(CASES / name / "citygate.yaml"))}
    based = {name for name, text in texts.items() if re.search("^base:", text, re.MULTILINE)}
    found = server.diagnostics(
        {f"{'based' if name in based else 'cases'}/{name}.yaml": text for name, text in texts.items()}
    )

    alarms, missed, compared = {}, {}, 0
    for name, its in zip(texts, found.values(), strict=True):
        errors = [problem for problem in said[name] if problem.severity == "error"]
        if its and not errors:
            alarms[name] = its
        for problem in errors:
            if problem.code in FORM and problem.file.endswith("citygate.yaml") and name not in CHECK_ALONE:
                compared += 1
                if not _agree(problem, its):
                    missed[name] = problem, its
    assert alarms == {}
    assert missed == {}
    assert compared > 90


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except (OSError, ValueError):
        return ""  # not there, or no text: an editor says so itself


def _agree(problem: Problem, found: list[Diagnostic]) -> bool:
    about = (
        1 if problem.code in ("yaml-syntax", "unfinished-file") else 0
    )  # what comes of it is seen a line before or after
    return any(abs(its.line - problem.line) <= about and FORM[problem.code] in its.message for its in found)


def problems_of(case: Path) -> tuple[Problem, ...]:
    try:
        return make_plan(case, BenchRegistry()).warnings
    except ConfigError as error:
        return error.problems
