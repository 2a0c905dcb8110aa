"""No secret is shown, whatever its key is called and however it is written; and nothing else is hidden."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.explain import as_json, text
from gateway.config.hiding import shown_lines
from gateway.config.loader import Loaded, load
from gateway.config.secrets import hide_in_line, looks_secret
from gateway.environment import Environment
from gateway.plan import find_driver, make_plan
from gateway.sdk.errors import ConfigError
from tests.support.bench_driver import BenchRegistry

SECRET = "Hunter2-and-some-More"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJndyJ9.c2lnbmF0dXJl"
HEAD = """version: 1
gateway: {id: gw-1, city: milano, location: [9.1590, 45.5030]}
"""
BROKER = "brokers:\n  milano:\n    url: https://b.example\n"
WAYS = {
    "bearer": BROKER + f"    auth: {{bearer: {SECRET}}}\n",
    "header value": BROKER + f"    auth: {{header: {{name: X-Auth-Token, value: {SECRET}}}}}\n",
    "password": BROKER + f"    auth:\n      basic:\n        user: me\n        password: {SECRET}\n",
    "quoted": BROKER + f'    auth: {{bearer: "{SECRET}"}}\n',
    "block": BROKER + f"    auth:\n      bearer: |\n        {SECRET}\n        {SECRET}\n",
    "folded": BROKER + f"    auth:\n      bearer: >-\n        {SECRET}\n",
    "plain of two lines": BROKER + f"    auth:\n      bearer: x\n        {SECRET}\n",
    "anchor": f"x-all: {{one: &one {SECRET}}}\n" + BROKER + "    auth: {bearer: *one}\n",
    "anchor in place": BROKER + f"    auth: {{bearer: &one {SECRET}}}\n",
    "merged": f"x-all: &all {{bearer: {SECRET}}}\n" + BROKER + "    auth:\n      <<: *all\n",
    "given twice": BROKER + f"    auth:\n      bearer: abcdefgh\n      bearer: {SECRET}\n",
    "mistyped": BROKER + f"    auth: {{baerer: {SECRET}}}\n",
    "mistyped above": BROKER + f"    ath: {{baerer: {SECRET}}}\n",
    "mistyped password": BROKER + f"    auth: {{basic: {{user: me, pasword: {SECRET}}}}}\n",
    "a map for a text": BROKER + f"    auth: {{bearer: {{a: {SECRET}}}}}\n",
    "a list for a text": BROKER + f"    auth: {{bearer: [{SECRET}]}}\n",
    "query": BROKER + "    auth: {oauth2: {token_url: 'https://idm.example/t?apikey=" + SECRET + "&x=" + SECRET
    + "', client_id: a, client_secret: abcdefgh}}\n",
    "login": BROKER.replace("//b", f"//me:{SECRET}@b"),
    "behind !secret": BROKER + f"    auth: {{bearer: !secret {JWT}}}\n",
    "no name behind !secret": BROKER + f'    auth: {{bearer: !secret "{SECRET} {SECRET}"}}\n',
    "by value": f"x-note: {JWT}\n" + BROKER,
    "by value under an unknown key": HEAD[:0] + f"nonsense: {{deep: [{JWT}]}}\n" + BROKER,
    "of a driver": "links:\n  l:\n    driver: bench\n    port: /dev/x\n    devices:\n"
    f"      d: {{template: acme/meter, key: {SECRET}}}\n",
    "of a driver that is not there": f"links:\n  l: {{driver: nowhere, devices: {{d: {{app_key: {SECRET}}}}}}}\n",
    "http token": f"http: {{token: {SECRET}}}\n",
    "comment": BROKER + f"    # password: {SECRET}\n",
    "no YAML": BROKER + f"    auth: {{bearer: {SECRET}\n  : ]\n",
    "no YAML, by value": BROKER + f"    send:\n      - {JWT}\n  ]]\n",
    "no YAML, within": BROKER + f"    sendx-{JWT}\n  ]]\n",
    "no YAML, behind a colon": BROKER + f"    send:{JWT}: [\n",
    "a key": f"x-{JWT}: 1\n" + BROKER + f"    baererx-{JWT}:\n",
    "a tag": BROKER + f"    auth: {{bearer: !{JWT} x}}\n",
    "a name": f"links:\n  {JWT}: {{}}\n" + BROKER,
    "comment by value": BROKER + f"    # it was {JWT}\n",
    "comment with a header": BROKER + "    # Authorization: Basic aHVudGVyMjpIdW50ZXIyLWFuZA==\n",
    "comment in PEM": BROKER + "    # -----BEGIN PRIVATE KEY-----\n    # Hunter2/and+some/More\n    # -----END PRIVATE KEY-----\n",
    "no YAML, PEM": BROKER + "    it: |\n-----BEGIN PRIVATE KEY-----\nHunter2/and+some/More\n-----END PRIVATE KEY-----\n",
    "no YAML, block": BROKER + f"    auth:\n      bearer: |\n        {SECRET}\n  ]]\n",
}  # fmt: skip


def loaded(folder: Path, body: str) -> Loaded:
    (folder / "citygate.yaml").write_text(HEAD + body)
    return load(folder, lambda name: find_driver(BenchRegistry(), name))


def said(folder: Path, body: str) -> str:
    """Everything that is said of a config: problems in both forms, warnings, and the file as it goes into a bundle."""
    its = loaded(folder, body)
    try:
        problems = make_plan(folder, BenchRegistry()).warnings
    except ConfigError as error:
        problems = error.problems
    shown = [text(problem) + str(as_json(problem)) for problem in (*problems, *its.problems)]
    return "\n".join([*shown, *(line for source in its.sources.values() for line in shown_lines(source))])


@pytest.mark.parametrize("way", WAYS)
def test_a_secret_in_clear_is_shown_nowhere(tmp_path: Path, way: str) -> None:
    shown = said(tmp_path, WAYS[way])

    for secret in (SECRET, JWT, "Hunter2", JWT[:20], "aHVudGVy"):
        assert secret not in shown


@pytest.mark.parametrize(
    "way",
    [way for way in WAYS if not way.startswith(("no YAML", "comment", "query", "login", "a key", "a tag", "a name"))],
)
def test_what_stands_in_clear_is_known_from_then_on(tmp_path: Path, way: str) -> None:
    known = loaded(tmp_path, WAYS[way]).secrets

    if "!secret" not in way:
        assert any(SECRET in secret or JWT in secret for secret in known)


def test_nothing_else_is_hidden(tmp_path: Path) -> None:
    body = (
        BROKER
        + "    evry: 10 s\n    tenant: synchronicity\n    tls: {key: /etc/citygate/key.pem}\n"
        + "    auth: {oauth2: {token_url: https://idm.example/token, client_id: gw-017, client_secret: !secret milano}}\n"
        + "links:\n  roof:\n    driver: bench\n    port: /dev/serial/by-id/usb-FTDI_FT232R_A50285BI-if00-port0\n"
        + "    devices: {m: {template: acme/meter, dev_eui: 24e124713d123456}}\n"
    )
    its = loaded(tmp_path, body)

    assert its.sources[str(tmp_path / "citygate.yaml")].lines == (HEAD + body).splitlines()


def test_the_caret_still_fits_what_is_hidden(tmp_path: Path) -> None:
    [shown] = [
        text(problem)
        for problem in loaded(tmp_path, BROKER + f"    auth: {{baerer: {SECRET}, header: 1}}\n").problems
        if problem.code == "unknown-key"
    ]

    line, caret = shown.splitlines()[1:3]
    assert line[caret.index("^") :].startswith("baerer: •••")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (JWT, True),
        ("Bearer abc", True),
        ("NNSXS.ABCDEFGHIJKLMNOP.QRSTUVWXYZ", True),
        ("-----BEGIN PRIVATE KEY-----\nabc", True),
        ("8c8b3f0d5e6a49b1a2c3d4e5f6071829", True),
        ("Zm9vYmFyMTIzNDU2Nzg5QUJDREVGRw==", True),
        ("24e124713d123456", False),
        ("Bovisa-Scuola-Piano-2-Stanza-12", False),
        ("Milano-Roof-RS485-Line2-Meter017", False),
        ("usb-FTDI_FT232R_A50285BI-if00-port0", False),
        ("GtfsTransitFeedFile2024Milano12", False),
        ("milesight/em400-udl", False),
        ("/dev/serial/by-id/usb-FTDI_FT232R_A50285BI-if00-port0", False),
        ("usb:0403:6001:A50285BI", False),
        ("urn:ngsi-ld:Device:milano:gw-1:meter-12", False),
        ("WaterConsumptionObserved", False),
        ("2026-06-01T00:00:00Z", False),
    ],
)
def test_what_looks_like_a_secret(text: str, secret: bool) -> None:
    assert looks_secret(text) is secret


@given(st.text(max_size=200))
def test_any_text_can_be_asked(value: str) -> None:
    looks_secret(value)


@pytest.mark.parametrize("piece", ["password", "password ", "key:", "a-", 'token: "', "://", "?a=", "-----BEGIN "])
def test_a_hostile_line_costs_its_length_and_no_more(piece: str) -> None:
    started_s = time.process_time()
    hide_in_line(piece * (200_000 // len(piece)))
    looks_secret(piece * (200_000 // len(piece)))

    assert time.process_time() - started_s < 1.0


@pytest.mark.parametrize("place", ["citygate.yaml", "conf.d/a.yaml", "templates/acme/meter.yaml", "secrets/porto"])
def test_a_pipe_in_place_of_a_file_is_a_problem_and_keeps_nobody_waiting(tmp_path: Path, place: str) -> None:
    body = (
        HEAD
        + "http: {token: !secret porto}\nlinks: {l: {driver: bench, port: /dev/x, devices: {d: {template: acme/meter}}}}\n"
    )
    (tmp_path / "citygate.yaml").write_text(body)
    pipe = tmp_path / place
    pipe.parent.mkdir(parents=True, exist_ok=True)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)

    problems = load(tmp_path, lambda name: find_driver(BenchRegistry(), name)).problems

    # a template that cannot be read is looked for among the shipped ones, as one that is not there
    assert place.startswith("templates") or any("no regular file" in problem.message for problem in problems)


def test_a_secret_that_a_variable_gives_has_no_line_to_be_hidden_in_and_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "citygate.yaml").write_text(HEAD + "http: {listn: 127.0.0.1:1}\n")
    monkeypatch.setenv("CITYGATE__HTTP__TOKEN", SECRET)
    loaded = load(tmp_path, lambda name: find_driver(BenchRegistry(), name), environment=Environment())
    assert SECRET in loaded.secrets
    assert [problem.code for problem in loaded.problems] == ["unknown-key"]
