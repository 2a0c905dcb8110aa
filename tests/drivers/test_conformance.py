"""Every driver of this tree passes the suite that third parties get."""

from pathlib import Path
from typing import Any

from drivers._blueprint.driver import DRIVER as BLUEPRINT
from drivers._blueprint.simulator import SIMULATOR as BLUEPRINT_SIMULATOR
from drivers.lora.driver import CHIRPSTACK, LORA_MODEM, TTS
from drivers.modbus.driver import DRIVER as MODBUS
from drivers.modbus.simulator import SIMULATOR as MODBUS_SIMULATOR
from drivers.serial.driver import DRIVER as SERIAL
from drivers.serial.simulator import SIMULATOR as SERIAL_SIMULATOR
from gateway.sdk.conformance import DriverConformance
from tests.support.box import free_port


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


class TestChirpstack(DriverConformance):
    driver = CHIRPSTACK

    def link(self, folder: Path) -> dict[str, Any]:
        devices = {"bin": {"template": "nwave/nps405", "dev_eui": "70b3d57ba0001234"}}
        return {"driver": "chirpstack", "url": f"mqtt://127.0.0.1:{free_port()}", "devices": devices}


class TestTts(DriverConformance):
    driver = TTS

    def link(self, folder: Path) -> dict[str, Any]:
        devices = {"air": {"template": "elsys/ers-co2", "dev_eui": "a81758fffe000001"}}
        return {"driver": "tts", "url": f"mqtt://127.0.0.1:{free_port()}", "username": "app@ttn", "devices": devices}


class TestLoraModem(DriverConformance):
    driver = LORA_MODEM  # its simulated nodes speak every 10 s, too seldom for this suite; its own tests wait for them

    def link(self, folder: Path) -> dict[str, Any]:
        devices = {"tank": {"template": "decentlab/dl-mbx", "address": 50, "container": {"empty": "3 m"}}}
        return {"driver": "lora-modem", "port": str(folder / "port"), "modem": "rylr", "devices": devices}
