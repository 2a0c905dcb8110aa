"""The README names every key an operator or a template's author can use."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from drivers.modbus import driver
from drivers.modbus.config import ModbusConfig, ModbusDevice, ReadRules, RegisterPoint
from gateway.sdk.config import DeviceConfig

README = (Path(driver.__file__).parent / "README.md").read_text()


@pytest.mark.parametrize(
    "model", [ModbusConfig, ModbusDevice, RegisterPoint, ReadRules], ids=lambda model: model.__name__
)
def test_every_key_is_in_the_readme(model: type[BaseModel]) -> None:
    common = set(DeviceConfig.model_fields) | {"driver", "devices", "description", "range", "privacy", "blur_to"}
    keys = {its.alias or name for name, its in model.model_fields.items() if name not in common - {"template"}}

    assert {key for key in keys if f"`{key}`" not in README} == set()
