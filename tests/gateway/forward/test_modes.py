"""How history is sent is what the broker said last: it changes both ways in the middle of a backlog, over outages and restarts,
and nothing is lost, sent twice or sent back."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.forward.history_lane import LATE
from gateway.health import BrokerHealth
from tests.gateway.forward.raw import as_json, http, problem
from tests.gateway.forward.scene import entity_id, measured_only, wire
from tests.gateway.forward.test_two_lanes import FAST, Box, assert_exact, live
from tests.support.broker_profiles import Scorpio
from tests.support.strict_broker import StrictBroker

QUICK = replace(FAST, probe_again_s=0.1, unsure_s=0.3, held_every_s=0.02, records=True)
PAGE = http(404, b"<html>default backend - 404</html>", kind="text/html")


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


class Ingress:
    """In front of the broker: answers by itself what `answer` wants, passes everything else on."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.answer: Callable[[str], bytes | None] = lambda _: None

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(length[0].partition(b":")[2])) if length else b""
            own = self.answer(head.decode("latin-1").partition(" HTTP/")[0])
            if own is None:
                own = await self._passed(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
            writer.write(own)
            await writer.drain()
        writer.close()

    async def _passed(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(request)
        found = await reader.read(-1)
        writer.close()
        return found.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


@contextlib.asynccontextmanager
async def ingress(strict: StrictBroker) -> AsyncIterator[tuple[Ingress, str]]:
    async with strict.serve() as url:
        front = Ingress(int(url.rsplit(":", 1)[1]))
        async with front.serve() as outside:
            yield front, outside


async def arrived(strict: StrictBroker, box: Box) -> None:
    await strict.until(lambda: box.settled)
    await strict.until(lambda: len(measured_only(strict.temporal_history())) >= len(box.expected))


async def held(box: Box) -> Counter[tuple[str, str, str, object]]:
    """The points that are set aside."""
    assert box.log is not None
    found: Counter[tuple[str, str, str, object]] = Counter()
    for piece in box.log.held.pieces("city"):
        columns = await box.log.held.readings(piece.id)
        for number, time_us, value in zip(columns.series, columns.time_us, columns.value, strict=True):
            series = box.log.series[number]
            found[entity_id(series.device), series.point, wire(time_us / 1e6 - 1780315200.0), value] += 1
    return found


async def test_an_ingress_without_a_route_settles_nothing(box: Box) -> None:
    strict = StrictBroker()
    async with ingress(strict) as (front, url), box.running(url, QUICK) as health:
        front.answer = lambda _: PAGE
        await live(box, 0, 10)
        await strict.until(lambda: health.state == "down")
        assert health.history == ""
        assert "404 with text/html" in health.reason
        front.answer = lambda _: None
        await live(box, 10, 20)
        await arrived(strict, box)
        assert health.history == "temporal"
    assert_exact(strict, box)


async def test_a_route_to_the_history_that_comes_later_is_found_and_used(box: Box) -> None:
    """Nothing failed meanwhile: the answer was not a broker's, so it is asked for again."""
    strict = StrictBroker()
    async with ingress(strict) as (front, url), box.running(url, QUICK) as health:
        front.answer = lambda what: PAGE if "/temporal/" in what else None
        await live(box, 0, 15)
        await strict.until(lambda: health.history == "in-order" and box.settled)
        front.answer = lambda _: None
        n = 15
        while health.history != "temporal":
            await live(box, n, n + 1, pause_s=0.03)
            n += 1
            assert n < 200
        await live(box, n, n + 10)
        await arrived(strict, box)
    assert_exact(strict, box)


async def test_a_history_that_may_not_be_read_is_told_until_it_may(box: Box) -> None:
    strict = StrictBroker()
    async with ingress(strict) as (front, url), box.running(url, QUICK) as health:
        no = as_json(403, problem("AccessDenied", 403))
        front.answer = lambda what: no if "/temporal/" in what else None
        await live(box, 0, 5)
        await strict.until(lambda: health.history == "in-order" and box.settled)
        assert (health.state, health.reason.partition(" (403")[0]) == ("ok", "its history may not be read")
        front.answer = lambda _: None
        n = 5
        while health.history != "temporal" or health.reason:
            await live(box, n, n + 1, pause_s=0.03)
            n += 1
            assert n < 200
        await arrived(strict, box)
    assert_exact(strict, box)


@pytest.mark.parametrize("own_word", [True, False])
async def test_a_history_that_is_gone_after_an_outage_and_comes_back(box: Box, own_word: bool) -> None:
    """What had been overtaken by the present is held while there is no history, and sent when there is one again."""
    strict = StrictBroker()
    gone = as_json(404, problem("ResourceNotFound", 404)) if own_word else PAGE
    async with ingress(strict) as (front, url), box.running(url, QUICK) as health:
        await live(box, 0, 10)
        await arrived(strict, box)
        strict.behaviour.fault = "503"
        await live(box, 10, 30)
        await strict.until(lambda: health.state == "down")
        front.answer = lambda what: gone if "/temporal/" in what else None
        strict.behaviour.fault = ""
        await strict.until(lambda: health.history == "in-order")
        await live(box, 30, 40)
        await strict.until(lambda: box.settled)
        found = Counter(measured_only(strict.temporal_history()))
        put_aside = await held(box)
        assert set(found) | set(put_aside) == box.expected, "lost"
        assert set(found) & set(put_aside) == set()
        assert max(found.values()) == max(put_aside.values()) == 1
        assert {piece.reason for piece in box.log.held.pieces()} == {LATE}  # type: ignore[union-attr]
        assert health.late > 0

        front.answer = lambda _: None
        strict.behaviour.fault = "503"
        await live(box, 40, 45)
        await strict.until(lambda: health.state == "down")
        strict.behaviour.fault = ""
        await strict.until(lambda: health.history == "temporal")
        await live(box, 45, 50)
        await arrived(strict, box)
        await strict.until(lambda: health.dead == 0)
    assert_exact(strict, box)


async def test_what_was_late_where_no_history_was_goes_to_the_one_that_the_next_run_finds(box: Box) -> None:
    strict = StrictBroker()
    gone = as_json(404, problem("ResourceNotFound", 404))
    async with ingress(strict) as (front, url):
        front.answer = lambda what: gone if "/temporal/" in what else None
        async with box.running(url, QUICK) as health:
            await live(box, 0, 10)
            await strict.until(lambda: box.settled)
            await box.put("air-0", 0.5, no2=0.5)
            await strict.until(lambda: health.dead == 1)
        front.answer = lambda _: None
        async with box.running(url, QUICK) as health:
            await arrived(strict, box)
            await strict.until(lambda: health.history == "temporal" and health.dead == health.later == 0)
    assert_exact(strict, box)


async def test_what_was_sent_before_a_reload_is_not_late_when_the_operator_wants_it_in_order(box: Box) -> None:
    """It was not seen in the history yet, so the log has it still."""
    strict = StrictBroker(profile=Scorpio(batch_s=None))
    async with strict.serve() as url, strict.neighbour(every_s=0.01), box.open():
        async with box.forwarding(url, QUICK):
            await live(box, 0, 10)
            await strict.until(lambda: box.settled)
        async with box.forwarding(url, replace(QUICK, history="in-order")) as health:
            await live(box, 10, 15)
            await strict.until(lambda: health.history == "in-order" and box.settled)
            assert (health.late, health.dead) == (0, 0)
    assert {point[3] for point in strict.history() if point in box.expected} >= set(range(10, 15))
    assert strict.backwards == []


async def test_a_history_that_the_broker_itself_no_longer_knows_is_asked_for_without_any_outage(box: Box) -> None:
    strict = StrictBroker()
    gone = as_json(404, problem("ResourceNotFound", 404))
    async with ingress(strict) as (front, url), box.running(url, QUICK) as health:
        await live(box, 0, 5)
        await arrived(strict, box)
        assert health.history == "temporal"
        front.answer = lambda what: gone if "/temporal/" in what else None
        await box.put("air-0", 0.5, no2=0.5)  # late: into the history alone
        await strict.until(lambda: health.history == "in-order")
        assert health.state != "down"


async def test_a_short_absence_of_the_history_changes_nothing(box: Box) -> None:
    strict = StrictBroker()
    modes: set[str] = set()
    patient = replace(QUICK, unsure_s=30.0)
    async with ingress(strict) as (front, url), box.running(url, patient) as health:
        await live(box, 0, 5)
        await arrived(strict, box)
        front.answer = lambda what: PAGE if "/temporal/" in what else None
        for n in range(5, 25):
            await live(box, n, n + 1)
            await live(box, n, n)
            modes.add(health.history)
        await box.put("air-0", 0.5, no2=0.5)  # late: into the history alone
        await strict.until(lambda: "history: 404" in health.reason)
        front.answer = lambda _: None
        await live(box, 25, 30)
        await arrived(strict, box)
        await strict.until(lambda: health.state == "ok")
    assert modes == {"temporal"}
    assert_exact(strict, box)


async def test_a_restart_into_another_mode_loses_nothing_in_silence(box: Box) -> None:
    """The first run sent the present ahead of the past; the second finds no history: older is not the same as known."""
    strict = StrictBroker()
    async with ingress(strict) as (front, url):
        front.answer = lambda what: PAGE if what.startswith("POST") and "/temporal/" in what else None
        async with box.running(url, replace(QUICK, unsure_s=60.0)) as health:
            await strict.until(lambda: health.history == "temporal")
            strict.behaviour.fault = "503"
            await live(box, 0, 20)
            await strict.until(lambda: health.state == "down")
            strict.behaviour.fault = ""
            await strict.until(lambda: strict.current(entity_id("air-5"), "no2") == 19)
        front.answer = lambda what: PAGE if "/temporal/" in what else None
        async with box.running(url, QUICK) as health:
            await live(box, 20, 30)
            await strict.until(lambda: box.settled and health.history == "in-order")
            found = Counter(measured_only(strict.temporal_history()))
            assert set(found) | set(await held(box)) == box.expected, "lost"
        front.answer = lambda _: None
        async with box.running(url, QUICK) as health:
            await live(box, 30, 35)
            await strict.until(lambda: health.history == "temporal" and box.settled)
            found = Counter(measured_only(strict.temporal_history()))
            assert set(found) | set(await held(box)) == box.expected, "lost"
    assert max(found.values()) == 1
    assert strict.backwards == []


async def test_a_run_in_order_after_one_in_order_knows_what_it_sent(box: Box) -> None:
    strict = StrictBroker()
    strict.behaviour.temporal = False
    async with strict.serve() as url:
        for n in range(3):
            async with box.running(url, QUICK) as health:
                await live(box, 10 * n, 10 * n + 10)
                await strict.until(lambda: box.settled and health.history == "in-order")
                assert health.dead == 0
    assert_exact(strict, box)


async def turns(front: Ingress, strict: StrictBroker, health: BrokerHealth, turn: int) -> None:
    """One of the ways in which a city's entrance changes."""
    front.answer = (lambda what: PAGE if "/temporal/" in what else None) if turn % 2 == 0 else (lambda _: None)
    if turn % 3 == 0:
        strict.behaviour.fault = "503"
        await strict.until(lambda: health.state == "down")
        strict.behaviour.fault = ""


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_mode_that_goes_to_and_fro_under_live_data_ends_with_everything_once(box: Box) -> None:
    strict = StrictBroker()
    async with ingress(strict) as (front, url), box.running(url, QUICK) as health:
        for turn in range(12):
            await asyncio.gather(turns(front, strict, health, turn), live(box, 40 * turn, 40 * turn + 40, pause_s=0.02))
        front.answer, strict.behaviour.fault = (lambda _: None), "503"
        await live(box, 480, 490)
        await strict.until(lambda: health.state == "down")
        strict.behaviour.fault = ""
        await strict.until(
            lambda: health.history == "temporal" and health.dead == 0 and health.later == 0, timeout_s=30
        )
        await arrived(strict, box)
    assert_exact(strict, box)
