"""Modbus links for tests, from Python values instead of the operator's file."""

from importlib.resources import files
from typing import Any

import yaml

from drivers.modbus.config import ModbusConfig, ModbusTemplate


def shipped(name: str) -> ModbusTemplate:
    """A template from the driver's folder."""
    text = (files("drivers.modbus") / "templates" / f"{name}.yaml").read_text()
    return ModbusTemplate.model_validate({**yaml.safe_load(text), "name": name})


def template(**points: dict[str, Any]) -> ModbusTemplate:
    """A made-up device; quantity `index` unless said."""
    return ModbusTemplate.model_validate(
        {
            "vendor": "test",
            "model": "test",
            "name": "test/test",
            "points": {name: {"quantity": "index", **its} for name, its in points.items()},
        }
    )


def link(devices: dict[str, dict[str, Any]], **its: Any) -> ModbusConfig:
    """A link; serial unless `host` is given."""
    place = {} if "host" in its else {"port": "/dev/none"}
    return ModbusConfig.model_validate({"driver": "modbus", **place, **its, "devices": devices})
