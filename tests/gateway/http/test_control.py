"""Verbs on the control socket: arguments, answers, errors with their exit codes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.http.control import ask
from gateway.http.outcome import NoDaemon, Refused
from gateway.http.shapes import socket_path
from gateway.sdk.errors import BrokerUnavailable, Busy, CitygateError, ConfigError, LinkError, NoAnswer, Problem
from tests.gateway.http.conftest import Start
from tests.support.fake_view import FakeView


async def test_each_verb_reaches_the_gateway_with_its_arguments(start: Start) -> None:
    async with start() as running:
        assert (await ask(running.socket, "read", {"device": "meter-12"}))["sent"] == "0104"
        assert (await ask(running.socket, "pause", {"device": "meter-12", "seconds": 1800}))["device"] == "meter-12"
        await ask(running.socket, "once")
        await ask(running.socket, "preview", {"device": "meter-12"})
        assert running.view.asked == [
            ("read", "meter-12"),
            ("pause", "meter-12", 1800.0),
            ("once",),
            ("preview", "meter-12"),
        ]


async def test_verbs_of_other_parts_are_found_by_name(start: Start) -> None:
    async with start() as running:
        assert await ask(running.socket, "echo", {"a": [1, 2]}) == {"given": {"a": [1, 2]}}


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("nonsense", {}),
        ("read", {}),
        ("read", {"device": 3}),
        ("pause", {"device": "meter-12"}),
        ("pause", {"device": "meter-12", "seconds": "30"}),
        ("pause", {"device": "meter-12", "seconds": True}),
        ("pause", {"device": "meter-12", "seconds": -1}),
        ("pause", {"device": "meter-12", "seconds": 8 * 86400}),
        ("preview", {"device": "no-such"}),
    ],
)
async def test_wrong_use_is_told_apart(start: Start, verb: str, arguments: dict[str, Any]) -> None:
    async with start() as running:
        with pytest.raises(Refused) as caught:
            await ask(running.socket, verb, arguments)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff"])
async def test_a_body_that_is_no_object_is_refused(start: Start, body: bytes) -> None:
    async with start() as running:
        connector = aiohttp.UnixConnector(str(running.socket))
        async with aiohttp.ClientSession(connector=connector) as session:
            response = await session.post("http://citygate/control/read", data=body)
            assert response.status == 422
            assert (await response.json())["exit"] == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LinkError("link roof is down: no port"), 4),
        (NoAnswer("no answer"), 4),
        (BrokerUnavailable("away"), 4),
        (Busy("too many"), 1),
        (CitygateError("something"), 1),
        (ConfigError("broken"), 3),
    ],
)
async def test_an_error_brings_its_exit_code_and_words(start: Start, error: CitygateError, code: int) -> None:
    view = FakeView()
    view.error = error
    async with start(view) as running:
        with pytest.raises(Refused, match=str(error)) as caught:
            await ask(running.socket, "read", {"device": "meter-12"})
        assert caught.value.exit_code == code


async def test_a_refused_reload_brings_every_problem_with_its_place(start: Start) -> None:
    view = FakeView()
    place = {"file": "citygate.yaml", "line": 3, "column": 5}
    view.error = ConfigError((Problem("unknown-key", ("links", "a"), "one", **place), Problem("x", (), "two")))  # type: ignore[arg-type]
    async with start(view) as running:
        with pytest.raises(Refused) as caught:
            await ask(running.socket, "reload")
    problems = caught.value.body["problems"]
    assert [problem["message"] for problem in problems] == ["one", "two"]
    assert (problems[0]["file"], problems[0]["line"], problems[0]["column"]) == ("citygate.yaml", 3, 5)


async def test_a_bug_in_the_daemon_ends_the_verb_and_not_the_daemon(start: Start) -> None:
    view = FakeView()

    async def broken(_: Mapping[str, Any]) -> Any:
        raise ZeroDivisionError("oh")

    view.verbs = {"broken": broken}
    async with start(view) as running:
        with pytest.raises(Refused, match="ZeroDivisionError: oh") as caught:
            await ask(running.socket, "broken")
        assert caught.value.exit_code == 1
        assert (await ask(running.socket, "status"))["gateway"]["id"] == "gw-1"


async def test_without_a_daemon_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="citygate run"):
        await ask(tmp_path / "control.sock", "status")


def test_the_socket_follows_from_the_buffers_path() -> None:
    assert socket_path(Path("/var/lib/citygate/buffer.db")) == Path("/run/citygate/control.sock")
    assert socket_path(Path("/var/lib/citygate/two/buffer.db")) == Path("/run/citygate/two/control.sock")
    assert socket_path(Path("/home/x/box/buffer.db")) == Path("/home/x/box/control.sock")
    assert socket_path(Path("/var/lib/buffer.db")) == Path("/var/lib/control.sock")
