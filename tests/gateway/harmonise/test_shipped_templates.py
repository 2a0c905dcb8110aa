"""Every template that ships: its sample frames run through to entities that the official schemas accept."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from gateway.config.model import CityProfile
from gateway.harmonise.compile import compile_device
from gateway.harmonise.dialects import key_values, ngsi_ld
from gateway.harmonise.entity import harmonise
from gateway.registry import Registry
from gateway.sdk.config import DeviceConfig
from gateway.sdk.driver import Driver
from gateway.sdk.quantities import quantities
from gateway.sdk.reading import Point, Quality
from gateway.sdk.template import Template
from tests.support.ngsi import Device, expand, schema_errors

NOON = datetime(2026, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC)
NOON_US = int(NOON.timestamp() * 1_000_000)


def shipped() -> Iterator[tuple[str, Driver[Any], Template]]:
    registry = Registry()
    for driver_name in registry.names():
        driver = registry.driver(driver_name)
        for vendor in sorted(driver.templates.iterdir(), key=lambda f: f.name):
            for file in sorted(vendor.iterdir(), key=lambda f: f.name) if vendor.is_dir() else ():
                if file.name.endswith(".yaml"):
                    name = f"{vendor.name}/{file.name.removesuffix('.yaml')}"
                    raw = {**yaml.safe_load(file.read_text()), "name": name}
                    yield f"{driver_name}:{name}", driver, driver.template_model.model_validate(raw)


SHIPPED = list(shipped())


def planned(template: Template) -> Device:
    points = {p: Point(p, t.quantity, t.unit or quantities()[t.quantity].unit) for p, t in template.points.items()}
    config = DeviceConfig.model_construct(template=template, location=None, entity=None, calibrate={}, report={})
    return Device("dev-1", "link", config, template, points, (9.159, 45.503))


def test_templates_are_shipped() -> None:
    assert {"modbus:eastron/sdm120", "serial:nova/sds011"} <= {name for name, _, _ in SHIPPED}


@pytest.mark.parametrize(("name", "driver", "template"), SHIPPED, ids=[name for name, _, _ in SHIPPED])
def test_a_shipped_template_compiles_and_its_samples_become_valid_entities(
    name: str, driver: Driver[Any], template: Template
) -> None:
    tables, problems = compile_device(planned(template), gateway_id="gw-1", city="milano", profile=CityProfile())
    assert problems == ()
    for sample in template.samples:
        readings = driver.decode(template, bytes.fromhex(sample.hex), {**sample.context, "received_at": NOON})
        good = {r.point: (r.value, NOON_US) for r in readings if r.quality is Quality.GOOD}
        for table in tables:
            mine = {point: value for point, value in good.items() if point in table.slots}
            if not mine or table.missing(set(good)):
                continue
            entity = harmonise(table, mine)
            assert schema_errors(key_values(entity)) == []
            expanded = expand(ngsi_ld(entity), entity.context)
            assert not [iri for iri in expanded if "default-context" in iri]
            assert expanded["@type"] != [entity.type], "the type must have become an IRI"
