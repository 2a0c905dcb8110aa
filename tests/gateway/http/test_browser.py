"""The page in a real browser: values, alarms, and hostile names that stay text."""

import asyncio
import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.http.conftest import Start
from tests.support.fake_view import FakeView, device_status

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


async def seen(url: str, profile: Path, *, after_s: int = 5) -> str:
    """The page's document after some seconds of its own time."""
    process = await asyncio.create_subprocess_exec(
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        f"--virtual-time-budget={after_s * 1000}",
        "--dump-dom",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    return out.decode()


async def test_values_stand_on_the_page_with_unit_and_age(start: Start, tmp_path: Path) -> None:
    view, owed = FakeView(), {"backlog": 912, "oldest_unsent_at": None, "later": 0, "dead": 3}
    view.shown["log"]["gone"] = {"porto": owed}
    view.shown["log"]["gone_devices"] = {"meter-9": owed | {"backlog": None, "brokers": {"milano": owed}}}
    async with start(view) as running:
        page = await seen(running.server.url, tmp_path)
    text = re.sub(r"<[^>]+>", " ", page)
    for words in ("School roof", "meter-12", "230.50", "all is well", "milano"):
        assert words in text, words
    for card, told in (
        ("gone-broker-porto", ("912 readings", "forget porto")),
        ("gone-device-meter-9", ("being counted", "refused for good", "--device 'meter-9'")),
    ):
        its = page.partition(f'id="{card}"')[2].partition("</article>")[0]
        assert 'class="state wait"' in its  # it needs nobody
        assert all(said in its for said in told)
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


async def test_the_page_follows_what_changes(start: Start, tmp_path: Path) -> None:
    view = FakeView()
    asked = view.status
    count = itertools.count(1)

    def next_status() -> dict[str, Any]:
        shown = asked()
        shown["links"]["roof"]["devices"]["meter-12"]["points"]["voltage"]["value"] = next(count)
        return shown

    view.status = next_status  # type: ignore[method-assign]
    async with start(view) as running:
        text = re.sub(r"<[^>]+>", " ", await seen(running.server.url, tmp_path, after_s=9))
    last = next(count) - 1
    assert last >= 3
    assert re.search(rf"voltage\s+({last}|{last - 1})\s+V", text)


async def test_a_box_that_falls_silent_is_told_in_red(start: Start, tmp_path: Path) -> None:
    view = FakeView()
    answers = [view.status()]
    view.status = answers.pop  # type: ignore[method-assign]
    async with start(view) as running:
        page = await seen(running.server.url, tmp_path, after_s=20)
    assert "No answer from the box for" in page
    assert 'id="lost" role="status" hidden' not in page
    assert "230.50" in page  # what was seen last stays, and is called old
