"""Harmonising in figures, beside orjson of ready dicts in the same run: compile at load, walk, dialects, check."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from gateway.harmonise.compile import Mapping, joined
from gateway.harmonise.dialects import key_values, ngsi_ld, ngsi_v2
from gateway.harmonise.entity import harmonise
from gateway.models.catalogue import catalogue
from gateway.models.validator import Validator
from tests.support.ngsi import compiled, device

pytestmark = pytest.mark.bench

DEVICES = 1000
BATCH = 200
NOON_US = 1_780_315_200_000_000
SAMPLES = Path(__file__).parents[2] / "config" / "mappings"


def best_us(work: Callable[[], Any], per: int, rounds: int = 7) -> float:
    """CPU microseconds for each of `per` items, the best of some rounds."""
    took = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        took.append(time.process_time() - begun)
    return min(took) / per * 1e6


def weather(name: str) -> Any:
    content = yaml.safe_load((SAMPLES / "WeatherObserved.yaml").read_text())
    return device(content["points"], content["entity"], name=name)


READINGS: dict[str, tuple[Any, int]] = {
    "temperature": (21.5, NOON_US), "humidity": (43.0, NOON_US), "pressure": (101325.0, NOON_US),
    "wind_speed": (7.2, NOON_US), "wind_direction": (135.0, NOON_US), "rain": (0.0, NOON_US), "snow": (0.2, NOON_US),
    "light": (1000.0, NOON_US), "uv": (1.0, NOON_US),
}  # fmt: skip


def test_compile_of_a_thousand_devices() -> None:
    catalogue()
    plans = [weather(f"station-{n}") for n in range(DEVICES)]
    begun = time.process_time()
    tables: dict[str, tuple[Mapping, ...]] = {}
    for plan in plans:
        tables[plan.name], problems = compiled(plan)
        assert problems == ()
    _, problems = joined(tables)
    took_s = time.process_time() - begun
    assert problems == ()
    print(f"\ncompile: {DEVICES} devices x {len(READINGS)} attributes in {took_s:.2f} s of CPU (aim 2 s)")
    assert took_s < 2.0


def test_a_batch_from_readings_to_bytes() -> None:
    [table], _ = compiled(weather("station-1"))
    batch = [READINGS] * BATCH
    entities = [harmonise(table, readings) for readings in batch]
    ready = [ngsi_ld(entity) for entity in entities]
    attributes = BATCH * len(READINGS)
    validator = Validator(catalogue())
    context = entities[0].context
    figures = {
        "orjson of ready dicts": best_us(lambda: orjson.dumps(ready), attributes),
        "walk": best_us(lambda: [harmonise(table, r) for r in batch], attributes),
        "to NGSI-LD": best_us(lambda: [ngsi_ld(e) for e in entities], attributes),
        "to NGSIv2": best_us(lambda: [ngsi_v2(e) for e in entities], attributes),
        "check": best_us(lambda: [validator.faults(key_values(e), context, whole=False) for e in entities], attributes),
        "walk, NGSI-LD, bytes": best_us(
            lambda: orjson.dumps([ngsi_ld(harmonise(table, r)) for r in batch]), attributes
        ),
    }
    print(f"\n{BATCH} entities x {len(READINGS)} measured attributes, µs of CPU per measured attribute:")
    for name, figure in figures.items():
        print(f"  {name:24} {figure:6.2f}  ({figure / figures['orjson of ready dicts']:.1f} x orjson)")
    assert figures["walk, NGSI-LD, bytes"] < 10.0
