"""LoRa in figures: processor time for each uplink by codec kind and input, and what a thousand devices cost the card.

Ratios are to `json.loads` of one ChirpStack event in the same run: the least that an uplink over MQTT can cost.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from drivers.lora.codec import chirpstack, lorawan, tts
from drivers.lora.codec.payload import Received
from drivers.lora.codec.semtech import parse_datagram, parse_push
from drivers.lora.codec.uplink import Uplink, key_of
from drivers.lora.config import LoraTemplate, ServerDevice
from drivers.lora.layout import LayoutCodec
from drivers.lora.receiver import Receiver, decode_plain
from drivers.lora.simulator import _Sent, chirpstack_event, phy_payload, push_data, rxpk, tts_message
from drivers.lora.worker import Program, Worker
from gateway.clock import SystemClock
from gateway.log.log import Consumer, Log, LogSettings
from gateway.sdk.testing import NOON, RecordingContext
from tests.drivers.lora.support import APP, NWK, TEMPLATES, template

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

EVERY_S, COMMITS = 0.2, 60
JAVASCRIPT = "function decodeUplink(i) { return {data: {t: (i.bytes[0] << 8 | i.bytes[1]) / 10, h: i.bytes[2] / 2}}; }"


def best_us(work: Callable[[], Any], times: int = 2000) -> float:
    """Processor µs of one call, the best of some rounds."""
    took = []
    for _ in range(5):
        begun = time.process_time()
        for _ in range(times):
            work()
        took.append(time.process_time() - begun)
    return min(took) / times * 1e6


def show(what: str, us: float, floor_us: float) -> None:
    print(f"{what:48} {us:8.1f} µs {us / floor_us:8.2f} x")


def test_processor_time_by_codec_and_input() -> None:
    event = chirpstack_event(_Sent("24e124713d123456", 7, 85, bytes.fromhex("01755c0367010104824408050001"), NOON))
    message = tts_message(_Sent("24e124713d123456", 7, 85, bytes.fromhex("01755c0367010104824408050001"), NOON))
    floor_us = best_us(lambda: json.loads(event[1]))
    print()
    show("json.loads of one event", floor_us, floor_us)
    show("ChirpStack event -> uplink", best_us(lambda: chirpstack.decode(*event)), floor_us)
    show("The Things Stack message -> uplink", best_us(lambda: tts.decode(*message)), floor_us)

    received = Received(NOON)
    for name, port in (("milesight/am307", 85), ("decentlab/dl-atm41g2", 1), ("dragino/lse01", 2), ("nwave/nps405", 1)):
        made = TEMPLATES[name]
        assert isinstance(made.codec, LayoutCodec)
        codec, sample = made.codec, bytes.fromhex(made.samples[0].hex)
        count = len(decode_plain(codec, sample, port, received, None).readings)
        us = best_us(lambda c=codec, s=sample, p=port: decode_plain(c, s, p, received, None))  # type: ignore[misc]
        show(f"layout {name}, {count} values", us, floor_us)
    cayenne = TEMPLATES["generic/cayenne"]
    lpp = bytes.fromhex(cayenne.samples[0].hex)
    show("Cayenne LPP, 4 values", best_us(lambda: plain(cayenne, lpp, received)), floor_us)
    made = template({"kind": "object", "fields": {"t": "a.t"}}, t="temperature")
    decoded = {"a": {"t": 21.5, "h": 40}, "battery": 3.6}
    show("decoded object, 3 values", best_us(lambda: plain(made, b"", received, decoded)), floor_us)

    phy = phy_payload("49be7df1", bytes.fromhex(NWK), bytes.fromhex(APP), 7, 1, bytes(16))
    session = lorawan.Session("49be7df1", bytes.fromhex(NWK), bytes.fromhex(APP), 6)
    datagram = push_data(1, "0016c001f153a14c", [rxpk(phy)])

    def radio() -> bytes:
        frame = lorawan.parse(phy)
        found = lorawan.match(frame, session)
        assert found is not None
        return lorawan.decrypt(frame, session.nwk_s_key, session.app_s_key, found.f_cnt)

    show("datagram -> packet", best_us(lambda: parse_push(parse_datagram(datagram).body)), floor_us)
    show("PHYPayload: MIC and decryption of 16 bytes", best_us(radio), floor_us)


def plain(made: LoraTemplate, payload: bytes, received: Received, decoded: Any = None) -> Any:
    return decode_plain(made.codec, payload, 1, received, decoded)  # type: ignore[arg-type]


async def test_javascript_in_its_worker() -> None:
    worker = Worker()
    program = Program("bench", JAVASCRIPT)
    await worker.decode(program, b"\x01\x04\x50", 1)
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in range(2000):
        await worker.decode(program, b"\x01\x04\x50", 1)
    wall_us, cpu_us = (time.perf_counter() - begun_s) / 2000 * 1e6, (time.process_time() - cpu_s) / 2000 * 1e6
    print(f"\nJavaScript in its worker: {wall_us:.0f} µs a call, {cpu_us:.0f} µs of them in the gateway's process")
    await worker.close()


@pytest.mark.parametrize(("devices", "per_commit"), [(1000, 66), (1000, 6), (25, 6)])
async def test_the_way_from_uplinks_to_the_card(devices: int, per_commit: int, tmp_path: Path) -> None:
    """Without a broker, so that everything is written. 66 uplinks a commit: a thousand devices every 4 min, commits of 15 s;
    6 with about 8 readings each: 200 readings a minute, the pace of the log's own figures (aim there: 320 B a reading)."""
    links = {
        f"bin-{n}": ServerDevice.model_validate({"template": TEMPLATES["milesight/em400-udl"], "dev_eui": f"{n:016x}"})
        for n in range(devices)
    }
    log = await Log.open(
        LogSettings(tmp_path / "log.db", commit_every_s=EVERY_S), clock=SystemClock("system"), consumers=[Consumer("c")]
    )
    recording = RecordingContext()
    context = recording.context
    object.__setattr__(context, "emit", log.append)
    receiver = Receiver(links, context)
    payload = bytes.fromhex("01755c0367010104824408050001")

    async def take(n: int) -> None:
        uplink = Uplink(key_of(n), f"{n % devices:016x}", "49be7df1", 85, n // devices, payload, time=NOON + timedelta(seconds=n / 10),
                        rssi=-60, snr=9.5, spreading_factor=7)  # fmt: skip
        await receiver.take(f"bin-{n * 7919 % devices}", uplink)

    for n in range(devices):  # all are known
        await take(n)
    await log.commit()
    before, commits, written, cpu_s = log.status()["appended"], log.status()["commits"], disk_bytes(), 0.0
    for turn in range(COMMITS):
        begun = time.process_time()
        for n in range(per_commit):
            await take(devices + turn * per_commit + n)
        cpu_s += time.process_time() - begun
        await asyncio.sleep(EVERY_S)
    written = disk_bytes() - written
    readings, commits = log.status()["appended"] - before, log.status()["commits"] - commits
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    total = log.status()["appended"]
    await log.close()
    await receiver.close()
    print(
        f"\n{devices} devices, {readings / commits:.0f} readings a commit: {cpu_s / COMMITS / per_commit * 1e6:.0f} µs of CPU an uplink; "
        f"written {written / readings:.0f} B a reading, {written / commits / 1024:.0f} KiB a commit; file {size / total:.0f} B a reading"
    )


def disk_bytes() -> int:
    """Bytes this process caused to be written to disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


async def test_events_through_a_real_broker(tmp_path: Path) -> None:
    """10,000 events from mosquitto to sets, acknowledged each."""
    from drivers.lora.config import ChirpstackLink
    from drivers.lora.driver import CHIRPSTACK
    from drivers.lora.simulator import publisher
    from tests.drivers.lora.support import HeldContext, running, until
    from tests.support.mosquitto import mosquitto

    with mosquitto(tmp_path, "autosave_on_changes false\n") as broker:
        devices = {"bin": {"template": TEMPLATES["milesight/em400-udl"], "dev_eui": "24e124713d123456"}}
        config = ChirpstackLink.model_validate(
            {"driver": "chirpstack", "url": broker.url, "client_id": "b", "devices": devices}
        )
        context = HeldContext()
        context.automatic = True
        async with running(CHIRPSTACK.run(config, context.context)):
            await until(lambda: context.counts["connects"])
        payload = bytes.fromhex("01755c0367010104824408050001")
        async with publisher(broker.url) as talk:
            for n in range(10_000):
                await talk.publish(*chirpstack_event(_Sent("24e124713d123456", n, 85, payload, NOON)))
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        await drained(lambda: CHIRPSTACK.run(config, context.context), lambda: context.counts["uplinks"] >= 10_000)
        wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
    print(f"\n10,000 queued events drained: {10_000 / wall_s:.0f} uplinks/s, {cpu_s / 10_000 * 1e6:.0f} µs of CPU each")


async def drained(run: Callable[[], Awaitable[None]], done: Callable[[], bool]) -> None:
    task = asyncio.ensure_future(run())
    while not done() and not task.done():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    assert not task.done(), "the link ended before it was drained"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
