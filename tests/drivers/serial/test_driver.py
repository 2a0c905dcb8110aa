"""The serial driver at a fake port and at the simulator's pty."""

import asyncio
import contextlib
import json
import os
import time
import tty
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from drivers.serial import driver
from drivers.serial.codec import sds011
from drivers.serial.config import SerialLink, SerialTemplate
from drivers.serial.driver import DRIVER
from drivers.serial.simulator import SIMULATOR, frame
from gateway.sdk.driver import Exchange, Request
from gateway.sdk.errors import CitygateError, FrameError, PortClosed
from gateway.sdk.reading import Quality, Reading, Reason
from gateway.sdk.simulator import Faults, World
from gateway.sdk.streams import open_serial
from gateway.sdk.testing import NOON, FakePort, ManualClock, RecordingContext

CASES = Path(__file__).parent / "cases"
TEMPLATE_FILE = DRIVER.templates / "nova" / "sds011.yaml"


def template(**changes: Any) -> SerialTemplate:
    return SerialTemplate.model_validate({**yaml.safe_load(TEMPLATE_FILE.read_text()), **changes})


def link(port: str = "/dev/fake", **changes: Any) -> SerialLink:
    return SerialLink.model_validate(
        {"driver": "serial", "port": port, "devices": {"air-1": {"template": template(**changes)}}}
    )


def recorded_cases() -> list[Any]:
    return [
        pytest.param(case, id=case["name"])
        for file in ("sds01x.json", "hostile_sds011.json")
        for case in json.loads((CASES / file).read_text())["cases"]
    ]


class RunningClock(ManualClock):
    """Wall time stands still, monotonic time is the machine's."""

    def monotonic_s(self) -> float:
        return time.monotonic()


class RealClock(RunningClock):
    """Both are the machine's."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class QuietPort(FakePort):
    """Plays its chunks and then says nothing more."""

    async def read(self) -> bytes:
        with contextlib.suppress(PortClosed):
            return await super().read()
        await asyncio.Event().wait()
        raise AssertionError


async def run_to_the_end(*chunks: bytes) -> RecordingContext:
    recording = RecordingContext(port=FakePort(*chunks))
    with pytest.raises(PortClosed):
        await DRIVER.run(link(), recording.context)
    down = recording.sets.pop()  # what a port that is gone leaves
    assert {r.reason for r in down.readings} == {Reason.LINK_DOWN}
    return recording


@contextlib.asynccontextmanager
async def running(*coroutines: Any) -> Any:
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - a condition of the recorder, which has no event
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("case", recorded_cases())
def test_recorded_frames_give_the_values_of_their_source(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["input_hex"])
    if "expect_error" in case:
        with pytest.raises(FrameError):
            DRIVER.decode(template(), data, {"received_at": NOON})
        return
    values = {r.point: r.value for r in DRIVER.decode(template(), data, {"received_at": NOON})}
    assert values == {"pm2_5": case["expect"]["pm25"]["value"], "pm10": case["expect"]["pm10"]["value"]}


@pytest.mark.parametrize("sample", template().samples, ids=lambda sample: sample.name)
def test_the_templates_samples_hold(sample: Any) -> None:
    readings = DRIVER.decode(template(), bytes.fromhex(sample.hex), {"received_at": NOON})
    assert {r.point: r.value for r in readings} == sample.expect


async def test_a_frame_split_across_two_reads_gives_one_set() -> None:
    wire = frame(123, 456)

    recording = await run_to_the_end(b"\x00\xff", wire[:3], wire[3:])

    [readings] = recording.sets
    assert readings.values() == {"pm2_5": 12.3, "pm10": 45.6}


async def test_a_damaged_frame_is_rejected_and_the_next_one_read() -> None:
    damaged = bytearray(frame(1, 2))
    damaged[3] ^= 1

    recording = await run_to_the_end(bytes(damaged) + frame(3, 4))

    assert len(recording.rejected) == 1
    assert [s.values() for s in recording.sets] == [{"pm2_5": 0.3, "pm10": 0.4}]


async def test_silence_gives_one_set_without_values_each_five_periods_and_ends_with_the_next_frame() -> None:
    recording = RecordingContext(port=QuietPort(frame(1, 1), b"\xaa\xc0 noise that is no frame"), clock=RunningClock())
    started_s = time.monotonic()
    async with running(DRIVER.run(link(period="20 ms"), recording.context)):
        await until(lambda: len(recording.sets) >= 4)
        elapsed_s = time.monotonic() - started_s

    bad = recording.sets[1:4]
    assert elapsed_s >= 0.3
    assert all({r.point for r in s.readings} == {"pm2_5", "pm10"} for s in bad)
    assert all(r.quality is Quality.BAD and r.reason is Reason.TIMEOUT for s in bad for r in s.readings)
    assert "air-1" in recording.notes


async def test_a_read_request_is_answered_by_the_next_frame_and_a_write_is_refused() -> None:
    recording = RecordingContext(port=QuietPort(frame(70, 80)), clock=RunningClock())
    read, write = Request("read", "air-1"), Request("write", "air-1", "pm10", 1.0)
    recording.requests.put(read)
    recording.requests.put(write)
    async with running(DRIVER.run(link(), recording.context)):
        exchange: Exchange = await asyncio.wait_for(read.reply, 5)
        with pytest.raises(CitygateError, match="only talks"):
            await asyncio.wait_for(write.reply, 5)

    assert exchange.received == frame(70, 80)
    assert {r.point: r.value for r in exchange.readings} == {"pm2_5": 7.0, "pm10": 8.0}


async def test_a_read_request_to_a_silent_device_is_answered_without_values() -> None:
    recording = RecordingContext(port=QuietPort(), clock=RunningClock())
    read = Request("read", "air-1")
    recording.requests.put(read)
    async with running(DRIVER.run(link(period="20 ms"), recording.context)):
        exchange = await asyncio.wait_for(read.reply, 5)

    assert exchange.received == b""
    assert {r.reason for r in exchange.readings} == {Reason.TIMEOUT}


async def test_the_simulators_values_come_through_a_pty_one_by_one(tmp_path: Path) -> None:
    served: list[dict[str, Any]] = []
    world = World(
        value=lambda device, point, n: n + (0.5 if point == "pm10" else 0.0),
        served=lambda device, values: served.append(values),
        faults=Faults(extra={"noise": {"air-1"}}),
        sleep=lambda seconds: asyncio.sleep(seconds / 100),
    )
    config = link(str(tmp_path / "air"))
    recording = RecordingContext(clock=RunningClock())
    context = recording.context
    object.__setattr__(context, "open_serial", open_serial)
    async with running(SIMULATOR.run(config, world)):
        await until((tmp_path / "air").is_symlink)
        async with running(DRIVER.run(config, context)):
            await until(lambda: len(recording.sets) >= 5)
            world.faults.extra["bad_checksum"] = {"air-1"}
            await until(lambda: recording.rejected)

    got = [s.values() for s in recording.sets]
    start = served.index(got[0])
    assert got == served[start : start + len(got)]
    assert all("checksum" in str(error) for error in recording.rejected)


@pytest.mark.parametrize("count", [0, 2])
def test_a_point_to_point_line_takes_exactly_one_device(count: int) -> None:
    devices = {f"air-{n}": {"template": template()} for n in range(count)}
    with pytest.raises(ValueError, match="devices"):
        SerialLink.model_validate({"driver": "serial", "port": "/dev/fake", "devices": devices})


def sent_by(device: str, pm2_5: int, pm10: int) -> bytes:
    """A frame of a sensor with this id, after the data sheet."""
    data = [pm2_5 % 256, pm2_5 // 256, pm10 % 256, pm10 // 256, *bytes.fromhex(device)]
    return bytes([0xAA, 0xC0, *data, sum(data) % 256, 0xAB])


OURS, ANOTHERS = "58d9", "1234"


async def test_a_sound_frame_that_began_inside_a_damaged_one_is_found() -> None:
    """The damaged one has head and tail at the right places, by chance."""
    good = sent_by("00ab", 30, 40)
    damaged = b"\xaa\xc0" + good[:8]
    assert damaged.endswith(b"\xab")

    recording = await run_to_the_end(damaged + good[8:] + sent_by("00ab", 31, 41))

    assert [s.values() for s in recording.sets] == [{"pm2_5": 3.0, "pm10": 4.0}, {"pm2_5": 3.1, "pm10": 4.1}]


async def test_one_frame_of_somebody_else_is_damage_and_two_are_another_sensor() -> None:
    recording = await run_to_the_end(
        sent_by(OURS, 10, 20), sent_by(ANOTHERS, 99, 99), sent_by(OURS, 11, 21),
        sent_by(ANOTHERS, 50, 60), sent_by(ANOTHERS, 51, 61), sent_by(ANOTHERS, 52, 62),
    )  # fmt: skip

    assert [s.values()["pm2_5"] for s in recording.sets] == [1.0, 1.1, 5.1, 5.2]
    assert all("damaged, or another device" in str(error) for error in recording.rejected)


async def test_what_the_sensor_cannot_measure_is_damage_that_the_sum_did_not_show() -> None:
    recording = await run_to_the_end(sent_by(OURS, 10_000, 5), sent_by(OURS, 9999, 9999))

    assert [s.values() for s in recording.sets] == [{"pm2_5": 999.9, "pm10": 999.9}]
    assert "the sensor ends at 999.9" in str(recording.rejected[0])


async def test_a_codec_that_fails_costs_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = sent_by(OURS, 10, 20)

    class Broken:
        """Its arithmetic fails at one value."""

        framer = staticmethod(sds011.framer)
        identity = staticmethod(sds011.identity)

        @staticmethod
        def decode(frame: bytes, *, received_at: datetime) -> tuple[Reading, ...]:
            assert 1 / (frame[2] - 66) is not None
            return sds011.decode(frame, received_at=received_at)

    monkeypatch.setattr(driver, "CODECS", {"sds011": Broken()})
    recording = await run_to_the_end(sent_by(OURS, 66, 20), wire)

    assert [s.values()["pm2_5"] for s in recording.sets] == [1.0]
    assert "ZeroDivisionError" in str(recording.rejected[0])


async def test_frames_are_dated_by_their_arrival_also_when_nobody_read_for_a_while() -> None:
    port = FakePort(sent_by(OURS, 10, 20))
    port.age_s = 40.0
    recording = RecordingContext(port=port)
    with pytest.raises(PortClosed):
        await DRIVER.run(link(), recording.context)

    assert {r.observed_at for r in recording.sets[0].readings} == {NOON - timedelta(seconds=40)}
    assert recording.sets[0].values() == {"pm2_5": 1.0, "pm10": 2.0}


async def test_frames_that_lay_in_the_kernel_while_the_process_stood_still_are_marked() -> None:
    port = FakePort(sent_by(OURS, 10, 20) + sent_by(OURS, 11, 21))
    port.age_doubt_s = 130.0
    recording = RecordingContext(port=port)
    with pytest.raises(PortClosed):
        await DRIVER.run(link(), recording.context)

    assert [s.values() for s in recording.sets] == [{}, {}, {}]
    assert {(r.quality, r.reason) for s in recording.sets[:2] for r in s.readings} == {
        (Quality.UNCERTAIN, Reason.BAD_TIME)
    }
    assert recording.device_counts["air-1"]["late_frames"] == 2


async def test_a_stall_of_the_process_dates_no_frame_wrong(tmp_path: Path) -> None:
    """A pty, and a loop that stands still while the sensor goes on speaking."""
    master, slave = os.openpty()
    tty.setraw(slave)
    recording = RecordingContext(clock=RealClock())
    context = recording.context
    object.__setattr__(context, "open_serial", open_serial)
    spoken: dict[float, datetime] = {}

    def speak(n: int) -> None:
        spoken[n / 10] = datetime.now(UTC)
        os.write(master, sent_by(OURS, n, n))

    try:
        async with running(DRIVER.run(link(os.ttyname(slave)), context)):
            await until(lambda: recording.progressed)
            speak(1)
            await until(lambda: len(recording.sets) >= 1)
            for n in range(2, 5):
                speak(n)
                time.sleep(1.0)  # noqa: ASYNC251 - the loop stands still
            await until(lambda: len(recording.sets) >= 2)
            while recording.sets[-1].readings[0].quality is not Quality.GOOD or len(spoken) < 5:
                speak(6)
                await asyncio.sleep(0.3)
    finally:
        os.close(master)
        os.close(slave)

    for readings in recording.sets:
        for value in set(readings.values().values()):
            assert isinstance(value, float)
            assert abs((readings.readings[0].observed_at - spoken[value]).total_seconds()) < 2.5
    assert recording.device_counts["air-1"]["late_frames"] >= 1


async def test_a_request_that_waits_when_the_port_goes_is_answered_at_once() -> None:
    recording = RecordingContext(port=FakePort(b"noise"))
    read = Request("read", "air-1")
    recording.requests.put(read)
    with pytest.raises(PortClosed):
        await DRIVER.run(link(), recording.context)

    assert {r.reason for r in (await read.reply).readings} == {Reason.LINK_DOWN}


@given(st.lists(st.one_of(st.binary(max_size=12), st.tuples(st.integers(0, 9999), st.integers(0, 9999))), max_size=8))
def test_every_whole_frame_is_found_in_any_noise_that_is_no_frame_itself(parts: list[Any]) -> None:
    """Noise may hold head, tail and beginnings of frames."""
    wires = [part if isinstance(part, bytes) else sent_by(OURS, *part) for part in parts]
    framer, found = sds011.framer(), []
    for candidate in framer.feed(b"".join(wires)):
        try:
            found.append(tuple(r.value for r in sds011.decode(candidate, received_at=NOON)))
        except FrameError:
            framer.give_back()
    sent = [(part[0] / 10, part[1] / 10) for part in parts if not isinstance(part, bytes)]
    left = iter(found)
    assert all(any(value == other for other in left) for value in sent)
