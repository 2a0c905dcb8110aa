"""The server: who may ask, what stands when something is taken, what is left behind."""

import asyncio
import base64
import socket
import stat
from pathlib import Path

import pytest

from gateway.http.control import ask
from gateway.http.server import Server
from gateway.sdk.errors import CitygateError
from tests.gateway.http.conftest import Start
from tests.support.fake_view import FakeView


async def test_health_is_fine_while_the_box_is_not_ready(start: Start) -> None:
    view = FakeView()
    view.reasons = ("link roof: down: no port",)
    async with start(view) as running:
        assert (await running.get("/healthz")).status == 200
        ready = await running.get("/readyz")
        assert ready.status == 503
        assert await ready.json() == {"ready": False, "reasons": ["link roof: down: no port"]}


async def test_versions_of_libraries_are_not_told(start: Start) -> None:
    async with start() as running:
        assert (await running.get("/healthz")).headers["Server"] == "citygate"


async def test_ready_is_fine_when_there_is_no_reason_against_it(start: Start) -> None:
    async with start() as running:
        ready = await running.get("/readyz")
        assert ready.status == 200
        assert (await ready.json())["ready"] is True


async def test_a_name_that_is_not_ours_is_refused_so_that_dns_rebinding_reads_nothing(start: Start) -> None:
    async with start() as running:
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example"):
            assert (await running.get("/status", headers={"Host": host})).status == 421, host
        for host in ("localhost:9", "127.0.0.1", "[::1]:80", "192.168.1.4:8580", socket.gethostname()):
            assert (await running.get("/status", headers={"Host": host})).status == 200, host


async def test_with_a_token_only_who_has_it_gets_an_answer(start: Start) -> None:
    def basic(text: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    async with start(token="s3cret") as running:
        for path in ("/", "/status", "/metrics", "/ngsi-ld/v1/entities", "/readyz"):
            refused = await running.get(path)
            assert refused.status == 401, path
            assert refused.headers["WWW-Authenticate"].startswith("Basic ")
            assert (await running.get(path, headers={"Authorization": "Bearer s3cret"})).status == 200
            assert (await running.get(path, headers=basic("anybody:s3cret"))).status == 200
        for wrong in (
            {"Authorization": "Bearer nope"},
            basic("s3cret"),
            basic("a:"),
            {"Authorization": "Basic %%%"},
            {"Authorization": "Digest s3cret"},
        ):
            assert (await running.get("/status", headers=wrong)).status == 401, wrong
        assert (await running.get("/healthz")).status == 200


def test_listening_for_others_without_a_token_is_refused() -> None:
    with pytest.raises(CitygateError, match=r"http\.token"):
        Server(FakeView(), listen="0.0.0.0:8580")


async def test_the_verbs_are_on_the_socket_alone(start: Start) -> None:
    async with start() as running:
        refused = await running.session.post(running.server.url + "control/reload", data=b"{}")
        assert refused.status == 404
        assert running.view.asked == []
        assert (await ask(running.socket, "reload"))["changed"] == ["roof"]


async def test_only_user_and_group_may_use_the_socket_and_it_goes_with_the_server(start: Start) -> None:
    async with start() as running:
        assert stat.S_IMODE(running.socket.stat().st_mode) == 0o660
        path = running.socket
    assert not path.exists()


async def test_a_socket_left_behind_by_a_killed_daemon_is_replaced(start: Start, tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "control.sock"))
    left.close()
    async with start() as running:
        assert (await ask(running.socket, "status"))["gateway"]["id"] == "gw-1"


async def faulty(server: Server) -> str:
    """What a server says that cannot listen somewhere."""
    task = asyncio.create_task(server.run(), name="server")
    try:
        async with asyncio.timeout(60):
            while not server.fault:  # noqa: ASYNC110 - the server has no event for tests
                await asyncio.sleep(0.005)
        return server.fault
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_socket_on_which_another_daemon_answers_is_left_to_it(start: Start) -> None:
    async with start() as running:
        second = Server(FakeView(), listen="", control_socket=running.socket)
        assert "another daemon answers" in await faulty(second)
        assert (await ask(running.socket, "status"))["gateway"]["id"] == "gw-1"


async def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    server = Server(FakeView(), listen="", control_socket=tmp_path / ("x" * 110))
    assert "too long for a socket" in await faulty(server)


async def test_a_socket_that_cannot_be_made_leaves_the_page_standing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with start(control_socket=tmp_path / "file" / "control.sock") as running:
        assert (await running.get("/healthz")).status == 200
        assert "cannot listen at" in running.server.fault


async def test_a_taken_port_leaves_the_control_socket_standing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = tmp_path / "control.sock"
        server = Server(FakeView(), listen=f"127.0.0.1:{taken.getsockname()[1]}", control_socket=path)
        task = asyncio.create_task(server.run(), name="server")
        try:
            async with asyncio.timeout(60):
                while not server.fault:  # noqa: ASYNC110 - the server has no event for tests
                    await asyncio.sleep(0.005)
            assert "Address already in use" in server.fault
            assert (await ask(path, "status"))["gateway"]["id"] == "gw-1"
        finally:
            task.cancel()
            await asyncio.wait({task})
