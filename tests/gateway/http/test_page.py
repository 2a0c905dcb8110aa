"""The page: whole in itself, and nothing that a device or a broker says can run in it."""

import re

import pytest

from gateway.http.page import FILES
from tests.gateway.http.conftest import Start
from tests.support.fake_view import status


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
