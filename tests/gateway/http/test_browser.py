"""The page in a real browser: values, alarms, and hostile names that stay text."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from tests.gateway.http.conftest import Start
from tests.support.fake_view import FakeView, device_status

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


async def seen(url: str, profile: Path) -> str:
    """The page's document after five seconds of its own time."""
    process = await asyncio.create_subprocess_exec(
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=5000",
        "--dump-dom",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    return out.decode()


async def test_values_stand_on_the_page_with_unit_and_age(start: Start, tmp_path: Path) -> None:
    async with start() as running:
        page = await seen(running.server.url, tmp_path)
    text = re.sub(r"<[^>]+>", " ", page)
    for words in ("School roof", "meter-12", "230.50", "all is well", "milano"):
        assert words in text, words
    assert re.search(r"good \s*\d+ s ago", text)


async def test_what_is_wrong_stands_first_and_hostile_names_stay_text(start: Start, tmp_path: Path) -> None:
    view = FakeView()
    view.shown["links"]["roof"]["devices"] = {
        HOSTILE: device_status(state="bad", reason=HOSTILE, remedy=HOSTILE, template=HOSTILE),
    }
    view.shown["brokers"]["milano"] |= {"state": "login", "reason": HOSTILE, "url": "javascript:alert(1)"}
    view.shown["gateway"]["name"] = HOSTILE
    async with start(view) as running:
        page = await seen(running.server.url, tmp_path)
    assert "2 things need somebody" in page
    assert page.index("2 things need somebody") < page.index('id="broker-milano"')
    assert page.count("&lt;img src=x") >= 5
    assert not re.search(r"<img|javascript:[^<]*\"", page)
    assert "<title>owned" not in page
