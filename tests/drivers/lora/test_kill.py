"""The real daemon behind a real broker: kill -9 between receive and commit, and no uplink is lost or doubled."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from drivers.lora.simulator import _Sent, chirpstack_event, publisher
from gateway.clock import SystemClock
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.reading import Reading, ReadingSet
from tests.support.box import Box, eventually, get_json
from tests.support.mosquitto import Mosquitto, mosquitto

EUI = "24e124713d123456"
TEMPLATE = """
vendor: test
model: counter
points: {count: {quantity: count, unit: C62}}
codec: {kind: layout, frames: [{read: [{type: u32, point: count, integer: true}]}]}
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    (tmp_path / "templates" / "test").mkdir(parents=True)
    (tmp_path / "templates" / "test" / "counter.yaml").write_text(TEMPLATE)
    yield made
    for process in made.processes:
        if process.popen.poll() is None:
            process.kill()


def config(box: Box, broker: Mosquitto) -> str:
    return f"""
version: 1
gateway: {{id: gw-1, city: milano, location: [9.1, 45.5]}}
buffer: {{path: {box.folder}/buffer.db, commit_every: 1 s}}
clock: {{trust: system}}
http: {{listen: "127.0.0.1:{box.port}"}}
links:
  site:
    driver: chirpstack
    url: "{broker.url}"
    receive_window: 100
    devices: {{node: {{template: test/counter, dev_eui: {EUI}}}}}
"""


async def logged(path: Path) -> list[int]:
    """The numbers in the log, in order."""
    log = await Log.open(LogSettings(path), clock=SystemClock("system"), consumers=[Consumer("test")])
    numbers: list[int] = []
    after: int | None = None
    while (columns := await log.read("test", after=after)) is not None:
        after = columns.last
        numbers += [
            int(value)
            for series, value in zip(columns.series, columns.value, strict=True)
            if log.series[series].point == "count" and value is not None
        ]
    await log.close()
    return numbers


async def publish(broker: Mosquitto, stop: asyncio.Event) -> int:
    """Publish uplinks, each with its number, until told to stop; how many."""
    n = 0
    async with publisher(broker.url) as talk:
        while not stop.is_set():
            await talk.publish(*chirpstack_event(_Sent(EUI, n, 1, n.to_bytes(4, "big"), datetime.now(UTC))))
            n += 1
            await asyncio.sleep(0.002)
    return n


def uplinks(box: Box) -> int:
    status = get_json(f"{box.url}/status")
    return int(status["links"]["site"]["counters"].get("uplinks", 0)) if status else 0


async def test_no_uplink_is_lost_or_doubled_when_the_daemon_is_killed_between_receive_and_commit(
    box: Box, tmp_path: Path
) -> None:
    (tmp_path / "broker").mkdir()
    with mosquitto(tmp_path / "broker") as broker:
        box.write(config(box, broker))
        daemon = await asyncio.to_thread(box.start_daemon)
        await asyncio.to_thread(eventually, "connected", lambda: _connected(box))
        stop = asyncio.Event()
        publishing = asyncio.create_task(publish(broker, stop))
        for _ in range(2):
            await asyncio.to_thread(eventually, "uplinks came", lambda: uplinks(box) >= 100)
            daemon.kill()
            daemon = await asyncio.to_thread(box.start_daemon)
        stop.set()
        count = await publishing
        await asyncio.to_thread(eventually, "the last one came", lambda: _last(box) == count - 1)
        assert daemon.end() == 0
    numbers = await logged(box.folder / "buffer.db")
    assert sorted(numbers) == list(range(count))


def _connected(box: Box) -> bool:
    status = get_json(f"{box.url}/status")
    return bool(status and status["links"]["site"]["counters"].get("connects"))


def _last(box: Box) -> object:
    status = get_json(f"{box.url}/status")
    return status and status["links"]["site"]["devices"]["node"]["points"]["count"]["value"]


async def test_a_set_of_state_alone_is_durable_no_earlier_than_what_came_before_it(tmp_path: Path) -> None:
    log = await Log.open(
        LogSettings(tmp_path / "log.db", commit_every_s=60.0), clock=SystemClock("system"), consumers=[Consumer("c")]
    )
    before = (await log.append(ReadingSet("node", (), {"k": b"0"}))).durable
    await asyncio.wait_for(before, 20)
    await log.append(ReadingSet("node", (Reading("count", 1, datetime.now(UTC)),), {"k": b"1"}))
    repeat = asyncio.ensure_future((await log.append(ReadingSet("node", (), {"k": b"1"}))).durable)
    await asyncio.sleep(0.05)
    assert not repeat.done()
    await log.close()
    assert repeat.done()


async def test_driver_state_is_never_on_the_card_before_its_set(tmp_path: Path) -> None:
    clock = SystemClock("system")
    settings = LogSettings(tmp_path / "log.db", commit_every_s=3600.0)
    log = await Log.open(settings, clock=clock, consumers=[Consumer("city")])
    await log.append(ReadingSet("node", (Reading("count", 7, datetime.now(UTC)),), {"k": b"7"}))
    await log._committer.commit(sets=False)  # what the housekeeping of the hour does, while the set is young
    copied = tmp_path / "copy.db"  # what a power cut would leave
    for suffix in ("", "-wal"):
        if (file := Path(f"{settings.path}{suffix}")).exists():
            Path(f"{copied}{suffix}").write_bytes(file.read_bytes())
    await log.close()

    after = await Log.open(LogSettings(copied), clock=clock, consumers=[Consumer("city")])
    state, columns = after.driver_state("node"), await after.read("city")
    await after.close()
    assert (dict(state), columns and columns.value) in [({}, None), ({"k": b"7"}, [7])]
