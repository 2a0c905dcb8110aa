"""decode, read, add, templates check and preview apply the rules of the daemon's intake, and no decoder breaks them."""

import textwrap
from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Command

DRIVER = """
import importlib.resources, pathlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Literal
from gateway.sdk.config import DeviceConfig, LinkConfig
from gateway.sdk.driver import SDK_VERSION, Decoded, Exchange
from gateway.sdk.errors import FrameError
from gateway.sdk.reading import Reading
from gateway.sdk.template import Template

AT = datetime(2026, 6, 1, 12, tzinfo=UTC)

def made(**values):
    return tuple(Reading(point, value, AT) for point, value in values.items())

class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no text")

def raised(error):
    raise error

DECODED = {
    1: lambda: 1 / 0,
    2: lambda: "\\ud83d".encode(),
    3: lambda: raised(Odd()),
    4: lambda: raised(ValueError("x" * 10_000_000)),
    5: lambda: None,
    6: lambda: iter(made(t=20.0)),
    7: lambda: (1, 2),
    8: lambda: raised(FrameError("cut short: 1 byte left, 2 needed", readings=made(t=20.0))),
    9: lambda: Decoded(made(t=20.0), "3 bytes behind the last field"),
    10: lambda: made(t=20.0, n=3.0, open=1, name="hall"),
    11: lambda: made(t=900.0, n=2.5, open=2, name="\\ud83d"),
    12: lambda: made(t=-2.4e-41, n=10**400, open="yes", name=7),
    14: lambda: (Reading("t", 20.0, datetime(2026, 6, 1)), Reading("n", 3, None), Reading("open", True, "noon"),
        Reading("name", "hall", datetime.min.replace(tzinfo=timezone(timedelta(hours=14))))),
    13: lambda: made(t="21.50", n="3", secret=7, **{"\\ud83d": 1}),
}

class Link(LinkConfig):
    driver: Literal["odd"]
    does: int = 10
    answers: str = "exchange"
    devices: dict[str, DeviceConfig]

class Driver:
    name = "odd"
    sdk_version = SDK_VERSION
    config_model = Link
    template_model = Template
    templates = pathlib.Path(__file__).parent / "templates"

    async def run(self, config, context):
        if config.answers == "crash":
            1 / 0
        while True:
            request = await context.requests.get()
            if config.answers == "error":
                request.reply.set_exception(ZeroDivisionError("oops"))
            elif config.answers == "cancel":
                request.reply.cancel()
            elif config.answers == "none":
                request.reply.set_result(None)
            elif config.answers == "no bytes":
                request.reply.set_result(Exchange("sent", None, ()))
            else:
                request.reply.set_result(Exchange(b"", b"x", self.decode(None, bytes((config.does,)), {})))

    def decode(self, template, frame, context):
        return DECODED[frame[0]]()

DRIVER = Driver()
"""
TEMPLATE = """
vendor: Acme
model: odd
points:
  t: {quantity: air_temperature}
  n: {quantity: people_count}
  open: {quantity: door_open}
  name: {quantity: text}
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A third party's driver `odd`, installed for this test."""
    place = tmp_path / "site"
    (place / "templates" / "acme").mkdir(parents=True)
    (place / "templates" / "acme" / "odd.yaml").write_text(TEMPLATE)
    (place / "odd_driver.py").write_text(textwrap.dedent(DRIVER))
    info = place / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[citygate.drivers]\nodd = odd_driver:DRIVER\n")
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(__import__("sys").modules, "odd_driver", raising=False)
    return place


def decode(citygate: Command, number: int, *more: str) -> tuple[int, str, str]:
    ended = citygate("decode", "acme/odd", f"{number:02x}", "--driver", "odd", *more)
    return ended.code, ended.out, ended.err


@pytest.mark.parametrize("number", range(1, 8))
def test_whatever_a_decoder_does_is_one_error_and_exit_1(citygate: Command, number: int) -> None:
    code, out, err = decode(citygate, number)
    assert code == 1
    assert "driver odd" in err
    assert "Traceback" not in err
    assert len(err) < 1000
    assert out == ""


def rows(citygate: Command, number: int) -> dict[str, tuple[object, str, str]]:
    ended = citygate("decode", "acme/odd", f"{number:02x}", "--driver", "odd", "--json")
    return {row["point"]: (row["value"], row["quality"], row["reason"]) for row in ended.json}


def test_values_are_those_that_the_daemon_would_log(citygate: Command) -> None:
    assert rows(citygate, 10) == {
        "t": (20.0, "good", ""),
        "n": (3, "good", ""),
        "open": (True, "good", ""),
        "name": ("hall", "good", ""),
    }
    assert rows(citygate, 11) == {
        "t": (None, "bad", "out_of_range"),
        "n": (None, "bad", "wrong_type"),
        "open": (None, "bad", "wrong_type"),
        "name": (None, "bad", "wrong_type"),
    }
    assert rows(citygate, 12) == {
        "t": (None, "bad", "out_of_range"),
        "n": (None, "bad", "out_of_range"),
        "open": (None, "bad", "wrong_type"),
        "name": (None, "bad", "wrong_type"),
    }
    assert decode(citygate, 11)[0] == 1
    assert rows(citygate, 14) == dict.fromkeys(("t", "n", "open", "name"), (None, "bad", "bad_time"))


def test_what_is_not_declared_is_named_and_has_no_value(citygate: Command) -> None:
    assert rows(citygate, 13) == {
        "t": (21.5, "good", ""),
        "n": (3, "good", ""),
        "secret": (None, "bad", "undeclared"),
        "\ufffd": (None, "bad", "undeclared"),
    }
    _, out, _ = decode(citygate, 13)
    assert "secret" in out
    assert "the template does not declare it" in out


def test_a_frame_that_is_cut_short_fails_and_shows_what_was_read(citygate: Command) -> None:
    code, out, err = decode(citygate, 8)
    assert (code, "20 °C" in out, "cut short: 1 byte left, 2 needed" in err) == (1, True, True)
    ended = citygate("decode", "acme/odd", "08", "--driver", "odd", "--json")
    assert ended.code == 1
    assert "cut short" in ended.json["error"]
    assert [row["value"] for row in ended.json["readings"]] == [20.0]


def test_what_was_left_over_is_said(citygate: Command) -> None:
    code, out, err = decode(citygate, 9)
    assert (code, "20 °C" in out, "3 bytes behind the last field" in err) == (0, True, True)


def test_a_lora_payload_or_a_serial_stream_that_is_cut_short_is_no_success(citygate: Command) -> None:
    port = ("--context", '{"f_port": 85}')
    whole = citygate("decode", "milesight/em310-udl", "01755c03824408040001", *port)
    cut = citygate("decode", "milesight/em310-udl", "01755c038244", *port)
    assert (whole.code, cut.code) == (0, 1)
    assert "needed" in cut.err
    over = citygate("decode", "nova/sds011", "aac00600060058d93dab" + "aac006")
    assert over.code == 0
    assert "3 of 13 bytes" in over.err


@pytest.mark.parametrize(
    ("number", "expect", "says"),
    [
        (10, "{t: 20.0, n: 3, open: true, name: hall}", ""),
        (11, "{t: 900.0}", "t is 900.0, which the gateway drops as out_of_range"),
        (11, "{n: 2.5}", "n is 2.5, which the gateway drops as wrong_type"),
        (11, "{t: null, n: null, open: null, name: null}", ""),
        (13, "{t: 21.5}", "secret"),
        (1, "{t: 20.0}", "division by zero"),
        (5, "{t: 20.0}", "no tuple of readings"),
        (8, "{t: 20.0}", "cut short"),
    ],
)
def test_a_sample_fails_where_the_daemon_would_drop_what_it_expects(
    citygate: Command, tmp_path: Path, number: int, expect: str, says: str
) -> None:
    folder = tmp_path / "templates" / "mine"
    folder.mkdir(parents=True)
    sample = f"samples: [{{name: one, hex: '{number:02x}', expect: {expect}, source: made up}}]\n"
    (folder / "odd.yaml").write_text(TEMPLATE + sample)

    ended = citygate("templates", "check", "mine/odd", "--driver", "odd", "-c", str(tmp_path))

    assert (ended.code, "Traceback" in ended.err) == (1 if says else 0, False), ended.err
    assert says in ended.err


def config(folder: Path, **link: object) -> Path:
    keys = "".join(f", {key}: {value}" for key, value in link.items())
    (folder / "citygate.yaml").write_text(f"""\
version: 1
gateway: {{id: gw-1, city: milano, location: [9.1, 45.5]}}
buffer: {{path: {folder}/buffer.db}}
links:
  odd:
    driver: odd{keys.replace(", ", chr(10) + "    ")}
    devices:
      one: {{template: acme/odd}}
""")
    return folder


def test_a_real_read_shows_what_the_daemon_would_log(citygate: Command, tmp_path: Path) -> None:
    ended = citygate("read", "one", "-c", str(config(tmp_path, does=13)), "--json")
    assert {row["point"]: (row["value"], row["reason"]) for row in ended.json} == {
        "t": (21.5, ""),
        "n": (3, ""),
        "secret": (None, "undeclared"),
        "\ufffd": (None, "undeclared"),
    }
    assert citygate("read", "one", "-c", str(config(tmp_path, does=11))).code == 1


@pytest.mark.parametrize("answers", ["crash", "error", "cancel", "none", "no bytes"])
def test_a_driver_that_fails_at_a_read_is_one_error(citygate: Command, tmp_path: Path, answers: str) -> None:
    ended = citygate("read", "one", "-c", str(config(tmp_path, answers=answers)))
    assert ended.code == 1
    assert "driver" in ended.err
    assert "Traceback" not in ended.err


def test_a_device_whose_values_would_all_be_dropped_is_not_added(citygate: Command, tmp_path: Path) -> None:
    box = config(tmp_path, does=11)
    before = (box / "citygate.yaml").read_text()
    ended = citygate("add", "odd", "two", "acme/odd", "-c", str(box))
    assert ended.code == 1
    assert "out_of_range" in ended.err
    assert (box / "citygate.yaml").read_text() == before


def test_a_preview_of_samples_leaves_out_what_the_daemon_would_drop(citygate: Command, tmp_path: Path) -> None:
    own = tmp_path / "templates" / "mine"
    own.mkdir(parents=True)
    sample = "samples: [{name: one, hex: '0b', expect: {t: null}, source: made up}]\n"
    entity = "entity: {type: WeatherObserved, attributes: {temperature: t}}\n"
    (own / "odd.yaml").write_text(TEMPLATE + entity + sample)
    box = config(tmp_path)
    text = (box / "citygate.yaml").read_text().replace("acme/odd", "mine/odd")
    (box / "citygate.yaml").write_text(text)

    ended = citygate("preview", "one", "-c", str(box), "--json")
    assert "temperature" not in str(ended.json)
