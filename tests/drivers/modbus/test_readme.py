"""The README names every key an operator or a template's author can use."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from drivers.modbus import driver
from drivers.modbus.config import ModbusConfig, ModbusDevice, ReadRules, RegisterPoint
from gateway.sdk.config import DeviceConfig
from gateway.sdk.template import TemplatePoint

README = (Path(driver.__file__).parent / "README.md").read_text()


@pytest.mark.parametrize(
    "model", [ModbusConfig, ModbusDevice, RegisterPoint, ReadRules], ids=lambda model: model.__name__
)
def test_every_key_is_in_the_readme(model: type[BaseModel]) -> None:
    common = {*DeviceConfig.model_fields, *TemplatePoint.model_fields, "driver", "devices"} - {"template", "quantity"}
    keys = {its.alias or name for name, its in model.model_fields.items() if name not in common}

    assert {key for key in keys if f"`{key}`" not in README} == set()
