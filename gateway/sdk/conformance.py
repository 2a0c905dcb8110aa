"""What every driver must do, as tests: subclass `DriverConformance` in a test module and pytest runs them.

    class TestMine(DriverConformance):
        driver = DRIVER
        simulator = SIMULATOR

        def link(self, folder: Path) -> dict[str, Any]:
            return {"driver": "mine", "port": str(folder / "port"), "devices": {"a": {"template": "acme/th-2"}}}

Nothing here knows a protocol. `drivers/_blueprint` is the smallest driver that passes.
"""

import ast
import asyncio
import contextlib
import dataclasses
import inspect
import random
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from pydantic import ValidationError

from gateway.sdk.config import LinkConfig
from gateway.sdk.driver import SDK_VERSION, Context, Driver, Receipt
from gateway.sdk.errors import FrameError, LinkError
from gateway.sdk.quantities import plausible_range, quantities
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason
from gateway.sdk.simulator import Faults, Simulator, World
from gateway.sdk.streams import open_serial, open_tcp
from gateway.sdk.template import Template
from gateway.sdk.testing import NOON, ManualClock, RecordingContext
from gateway.sdk.values import value_of

WITHIN_S = 8.0  # for a first set of each device
ALLOWED = ("gateway.sdk",)


class DriverConformance:
    """The suite. See the module."""

    driver: ClassVar[Driver[Any]]
    simulator: ClassVar[Simulator | None] = None

    def link(self, folder: Path) -> dict[str, Any]:
        """A link as in the operator's file, at a place in `folder` that does not exist yet, devices answering quickly."""
        raise NotImplementedError

    # --- what it is

    def test_it_says_what_it_is(self) -> None:
        assert self.driver.name == self.driver.name.lower().strip()
        assert self.driver.sdk_version == SDK_VERSION
        assert issubclass(self.driver.config_model, LinkConfig)
        assert issubclass(self.driver.template_model, Template)
        assert "devices" in self.driver.config_model.model_fields

    def test_unknown_keys_are_errors(self, tmp_path: Path) -> None:
        link = self._resolved(self.link(tmp_path))
        self.driver.config_model.model_validate(link)
        with pytest.raises(ValidationError):
            self.driver.config_model.model_validate({**link, "surprise": 1})
        for name, device in link["devices"].items():
            with pytest.raises(ValidationError):
                self.driver.config_model.model_validate({**link, "devices": {name: {**device, "surprise": 1}}})

    def test_every_key_has_a_default_or_is_needed_and_has_a_meaning(self) -> None:
        fields = self.driver.config_model.model_fields
        unexplained = [name for name, field in fields.items() if not field.description and field.annotation is str]
        assert not unexplained, f"keys without description: {unexplained}"

    # --- its folder

    def test_its_readme_and_sample_are_there_and_the_sample_loads(self) -> None:
        folder = Path(inspect.getfile(type(self.driver))).parent
        assert (folder / "README.md").stat().st_size > 200
        for name, link in yaml.safe_load((folder / "sample.yaml").read_text())["links"].items():
            if link["driver"] == self.driver.name:
                assert self.driver.config_model.model_validate(self._resolved(link)).devices, name

    def test_it_sees_nothing_of_the_gateway_but_the_sdk(self) -> None:
        package = inspect.getmodule(type(self.driver)).__name__.rpartition(".")[0]  # type: ignore[union-attr]  # a class has one
        folder = Path(inspect.getfile(type(self.driver))).parent
        for file in folder.rglob("*.py"):
            for module in _imported(file):
                outside = module.split(".")[0] == "gateway" and not module.startswith(ALLOWED)
                assert not outside, f"{file.name} imports {module}"
                other = module.startswith("drivers.") and not module.startswith(package)
                assert not other, f"{file.name} leans on {module}"

    def test_the_codec_does_no_io(self) -> None:
        folder = Path(inspect.getfile(type(self.driver))).parent
        files = [*folder.glob("codec.py"), *folder.glob("codec/**/*.py")]
        assert files, "a driver has a codec: bytes to readings without port and clock"
        for file in files:
            assert not set(_imported(file)) & {"asyncio", "socket", "time", "threading", "serial", "subprocess"}, file

    # --- its templates

    def test_its_templates_are_sound(self) -> None:
        for name, template in self._templates():
            assert template.sources, f"{name} names no source"
            for point, its in template.points.items():
                assert its.quantity in quantities(), f"{name}.{point}: {its.quantity} is not in the closed list"
                if its.unit:
                    plausible_range(quantities()[its.quantity], its.unit)  # raises when they do not measure the same

    def test_samples_decode_as_they_say(self) -> None:
        for name, template in self._templates():
            for sample in template.samples:
                context = {**sample.context, "received_at": NOON}
                readings = self.driver.decode(template, bytes.fromhex(sample.hex), context)
                values = {reading.point: reading.value for reading in readings}
                for point, value in sample.expect.items():
                    if value is None and values[point] is not None:
                        assert not _plausible(template, point, values[point]), f"{name}: {sample.name}: {point}"
                        continue  # the gateway drops what is out of range
                    expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
                    assert values[point] == expected, f"{name}: {sample.name}: {point}"
                assert {reading.observed_at for reading in readings if reading.time_source == "gateway"} <= {NOON}

    def test_any_bytes_are_readings_or_refused(self) -> None:
        """Nothing but FrameError leaves `decode`, and what it gives are values of the declared kinds or none at all."""
        chance = random.Random(1)
        for _, template in self._templates():
            samples = [(bytes.fromhex(sample.hex), sample.context) for sample in template.samples] or [(b"", {})]
            for frame, context in samples:
                for damaged in _damaged(frame, chance):
                    self._decode_or_refuse(template, damaged, context)
            for hostile in _HOSTILE:
                self._decode_or_refuse(template, hostile, samples[0][1])

    def _decode_or_refuse(self, template: Template, frame: bytes, context: Mapping[str, Any]) -> None:
        try:
            readings = self.driver.decode(template, frame, {**context, "received_at": NOON})
        except FrameError as error:
            readings = error.readings
        assert isinstance(readings, tuple), readings
        for reading in readings:
            assert type(reading) is Reading, reading
            assert (type(reading.quality), type(reading.reason)) == (Quality, Reason), reading
            assert reading.observed_at.utcoffset() == timedelta(0), f"{reading}: times are aware, in UTC"
            assert (reading.value is None) == (reading.quality is Quality.BAD), reading
            assert reading.value is None or reading.value == reading.value, "NaN is no value"
            if reading.value is not None and reading.point in template.points:
                kind = quantities()[template.points[reading.point].quantity].kind
                assert value_of(kind, reading.value) is not None, f"{reading} is no {kind}"

    # --- its loop

    def test_an_absent_port_is_a_link_error(self, tmp_path: Path) -> None:
        recorder = RecordingContext()
        with pytest.raises(LinkError):
            asyncio.run(self._run_within(self._config(tmp_path), self._context(recorder), 5))

    def test_it_reads_what_its_simulator_serves(self, tmp_path: Path) -> None:
        async def work() -> None:
            bench = _Bench(self, tmp_path)
            async with bench.at_work():
                for device, template in bench.templates.items():
                    readings = await bench.first_set(device)
                    assert {r.point for r in readings.readings} <= set(template.points), device
                    for reading in readings.readings:
                        served = bench.served.get(device, {}).get(reading.point, [])
                        if isinstance(reading.value, int | float) and not isinstance(reading.value, bool):
                            assert any(reading.value == pytest.approx(value, rel=1e-5) for value in served), reading
            assert bench.recorder.progressed or len(bench.recorder.sets) > 0

        if self.simulator is None:
            pytest.skip("it has no simulator")
        asyncio.run(work())

    def test_it_ends_without_leaving_anything_behind(self, tmp_path: Path) -> None:
        async def work() -> None:
            bench = _Bench(self, tmp_path)
            async with bench.at_work():
                await bench.first_set(next(iter(bench.templates)))
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        if self.simulator is None:
            pytest.skip("it has no simulator")
        asyncio.run(work())

    # --- helpers

    async def _run_within(self, config: Any, context: Context, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            await self.driver.run(config, context)

    def _config(self, folder: Path) -> Any:
        return self.driver.config_model.model_validate(self._resolved(self.link(folder)))

    def _context(self, recorder: RecordingContext) -> Context:
        return dataclasses.replace(
            recorder.context,
            open_serial=open_serial,
            open_tcp=open_tcp,
            sleep=asyncio.sleep,
            monotonic_s=time.monotonic,
        )

    def _templates(self) -> list[tuple[str, Template]]:
        found = [(name, self._template(name)) for name in _template_names(self.driver.templates)]
        assert found, "a driver ships at least one template"
        return found

    def _template(self, name: str) -> Template:
        file = self.driver.templates.joinpath(*f"{name}.yaml".split("/"))
        return self.driver.template_model.model_validate({**yaml.safe_load(file.read_text()), "name": name})

    def _resolved(self, link: Mapping[str, Any]) -> dict[str, Any]:
        """With templates in place of their names, as the loader does it."""
        devices = {name: {**its, "template": self._template(its["template"])} for name, its in link["devices"].items()}
        return {**link, "devices": devices}


class _Bench:
    """Driver and simulator of one link at work."""

    def __init__(self, suite: DriverConformance, folder: Path) -> None:
        self._suite = suite
        self._config = suite._config(folder)
        self.templates: dict[str, Template] = {name: its.template for name, its in self._config.devices.items()}
        self.served: dict[str, dict[str, list[float]]] = {}
        self.recorder = RecordingContext(clock=ManualClock())
        self._more = asyncio.Event()
        self._world = World(value=self._value, served=self._note, faults=Faults())

    def _value(self, device: str, point: str, n: int) -> float:
        """A plausible value that moves, in the point's unit."""
        its = self.templates[device].points[point]
        low, high = its.range or quantities()[its.quantity].range or (0.0, 100.0)
        return min(high, max(low, 20.0)) + n % 8

    def _note(self, device: str, values: dict[str, float]) -> None:
        for point, value in values.items():
            self.served.setdefault(device, {}).setdefault(point, []).append(value)

    @contextlib.asynccontextmanager
    async def at_work(self) -> Any:
        assert self._suite.simulator is not None
        simulator = asyncio.create_task(self._suite.simulator.run(self._config, self._world))
        await asyncio.sleep(0.05)  # a listening socket needs a turn of the loop or two
        context = dataclasses.replace(self._suite._context(self.recorder), emit=self._emit)
        driver = asyncio.create_task(self._suite.driver.run(self._config, context))
        self._tasks = (simulator, driver)
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _emit(self, readings: ReadingSet) -> Receipt:
        receipt = await self.recorder.context.emit(readings)
        self._more.set()
        return receipt

    async def first_set(self, device: str) -> ReadingSet:
        """The first set of this device that holds a value."""
        deadline_s = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline_s:
            for task in self._tasks:
                if task.done():
                    task.result()
            for readings in self.recorder.sets:
                assert readings.device in self.templates, f"a set of {readings.device}, which is not configured"
                if readings.device == device and readings.values():
                    return readings
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._more.wait(), 0.2)
        raise AssertionError(f"no values of {device} within {WITHIN_S:g} s; sets: {self.recorder.sets[:3]}")


def _template_names(folder: Traversable) -> Iterator[str]:
    for vendor in sorted(folder.iterdir(), key=lambda found: found.name):
        if vendor.is_dir():
            for file in sorted(vendor.iterdir(), key=lambda found: found.name):
                if file.name.endswith(".yaml"):
                    yield f"{vendor.name}/{file.name.removesuffix('.yaml')}"


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


# Floats that are none or absurd, texts that are none, counters at their ends, and more than any frame holds.
_HOSTILE = (
    b"\0" * 64,
    b"\xff" * 64,
    b"\x7f\x80\0\0" * 16,
    b"\x80\0" * 32,
    b"\0\0\0\x01" * 16,
    b"\xed\xa0\x80" * 20,
    b"\xff" * 70_000,
)


def _plausible(template: Template, point: str, value: Any) -> bool:
    its = template.points[point]
    quantity = quantities()[its.quantity]
    bounds = its.range or plausible_range(quantity, its.unit or quantity.unit)
    return bounds is None or min(bounds) <= value <= max(bounds)


def _damaged(frame: bytes, chance: random.Random) -> Iterator[bytes]:
    yield frame
    yield b""
    for _ in range(30):
        yield chance.randbytes(chance.randrange(1, 80))
        if frame:
            place = chance.randrange(len(frame))
            yield frame[:place]
            yield frame[:place] + bytes((frame[place] ^ (1 << chance.randrange(8)),)) + frame[place + 1 :]
            yield frame + chance.randbytes(3)
