"""The page: whole in itself, and nothing that a device or a broker says can run in it."""

import re

import pytest

from gateway.harmonise.entity import Attribute, Entity
from gateway.hidden import keep_secret
from gateway.http.control import ask
from gateway.http.page import FILES
from tests.gateway.http.conftest import Start
from tests.support.fake_view import NOON, FakeView, device_status, status


@pytest.mark.parametrize("path", FILES)
async def test_each_file_is_there_with_its_media_type_and_policy(start: Start, path: str) -> None:
    async with start() as running:
        response = await running.get(path)
        assert response.status == 200
        assert response.content_type == FILES[path][1]
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "unsafe" not in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_page_asks_nobody_else(start: Start) -> None:
    async with start() as running:
        for path in FILES:
            text = await (await running.get(path)).text()
            addresses = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text))
            assert addresses <= {"http://www.w3.org"}, f"{path}: {addresses}"  # the name of SVG, never asked


async def test_the_pages_script_makes_text_never_html(start: Start) -> None:
    async with start() as running:
        script = await (await running.get("/static/page.js")).text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|DOMParser", script)


async def test_nothing_inline_would_need_a_weaker_policy(start: Start) -> None:
    async with start() as running:
        page = await (await running.get("/")).text()
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", page)


async def test_the_page_gets_the_same_status_as_the_command(start: Start) -> None:
    async with start() as running:
        response = await running.get("/status")
        assert response.headers["Cache-Control"] == "no-store"
        assert await response.json() == status()


HALF = "a\ud83d\0\x1b[2J"


async def test_a_text_that_an_older_version_let_in_closes_no_door(start: Start) -> None:
    device = device_status(state="bad", reason=HALF, remedy=HALF, undeclared={HALF: 3}, counters={HALF: 1})
    device["points"] |= {HALF: device["points"]["voltage"], "text": {**device["points"]["voltage"], "value": HALF}}
    device["points"]["count"] = {**device["points"]["voltage"], "value": 10**30}
    link = {"state": "down", "reason": HALF, "remedy": HALF, "counters": {HALF: 2}, "devices": {HALF: device}}
    named = Entity("urn:x:1", "Device", "", {"name": Attribute("property", HALF, observed_at=NOON)}, "d")
    view = FakeView(named)
    view.shown = status(links={"roof": link})
    view.reasons = (HALF,)
    async with start(view) as running:
        for path in ("/status", "/metrics", "/readyz", "/ngsi-ld/v1/entities?type=Device"):
            answer = await running.get(path)
            assert answer.status == (503 if path == "/readyz" else 200), path
            (await answer.read()).decode()
        shown = await ask(running.socket, "status")
    [asked] = shown["links"]["roof"]["devices"].values()
    assert asked["points"]["text"]["value"].startswith("a\ufffd")


async def test_our_own_credential_in_a_brokers_error_is_shown_nowhere(start: Start) -> None:
    secret = 'hunter2"and\\more é'
    view = FakeView()
    view.shown["brokers"]["milano"]["reason"] = f"401: Bearer {secret} is not right"
    view.reasons = (f"broker milano: login: {secret}",)
    keep_secret([secret])
    try:
        async with start(view) as running:
            for path in ("/status", "/readyz", "/metrics"):
                body = await (await running.get(path)).text()
                assert "hunter2" not in body, path
            assert "hunter2" not in str(await ask(running.socket, "status"))
    finally:
        keep_secret(())
