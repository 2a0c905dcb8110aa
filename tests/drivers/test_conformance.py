"""Every driver of this tree that stands on a serial line or on TCP passes the suite that third parties get."""

from pathlib import Path
from typing import Any

from drivers._blueprint.driver import DRIVER as BLUEPRINT
from drivers._blueprint.simulator import SIMULATOR as BLUEPRINT_SIMULATOR
from drivers.modbus.driver import DRIVER as MODBUS
from drivers.modbus.simulator import SIMULATOR as MODBUS_SIMULATOR
from drivers.serial.driver import DRIVER as SERIAL
from drivers.serial.simulator import SIMULATOR as SERIAL_SIMULATOR
from gateway.sdk.conformance import DriverConformance


class TestBlueprint(DriverConformance):
    driver = BLUEPRINT
    simulator = BLUEPRINT_SIMULATOR

    def link(self, folder: Path) -> dict[str, Any]:
        return {"driver": "blueprint", "port": str(folder / "port"), "devices": {"node": {"template": "acme/th-2"}}}


class TestModbus(DriverConformance):
    driver = MODBUS
    simulator = MODBUS_SIMULATOR

    def link(self, folder: Path) -> dict[str, Any]:
        devices = {
            "meter": {"template": "eastron/sdm120", "unit_id": 1, "every": "200 ms"},
            "soil": {"template": "sn-3000/soil-4in1", "unit_id": 2, "every": "200 ms"},
        }
        return {"driver": "modbus", "port": str(folder / "port"), "baud_rate": 115200, "devices": devices}


class TestSerial(DriverConformance):
    driver = SERIAL
    simulator = SERIAL_SIMULATOR

    def link(self, folder: Path) -> dict[str, Any]:
        return {"driver": "serial", "port": str(folder / "port"), "devices": {"air": {"template": "nova/sds011"}}}
