"""Plays a Nova SDS011 on a pty. Bytes after the data sheet (SDS011 V1.3): AA C0, PM2.5 low, high, PM10 low, high,
id 1, id 2, sum of the six bytes before, AB."""

from drivers.serial.config import SerialLink
from gateway.sdk.config import LinkConfig
from gateway.sdk.errors import CitygateError
from gateway.sdk.simulator import World, open_pty

PERIOD_S = 1.0  # data sheet: "output data: 1 per second"
DEVICE_ID = (0x58, 0xD9)
MAX_TENTHS = 9999  # data sheet: measures up to 999.9 µg/m³


def _tenths(value: float) -> int:
    return min(max(round(value * 10), 0), MAX_TENTHS)


def frame(pm2_5_tenths: int, pm10_tenths: int) -> bytes:
    """One measurement of the SDS011, values in 0.1 µg/m³."""
    data = [pm2_5_tenths % 256, pm2_5_tenths // 256, pm10_tenths % 256, pm10_tenths // 256, *DEVICE_ID]
    return bytes([0xAA, 0xC0, *data, sum(data) % 256, 0xAB])


class SerialSimulator:
    """See `gateway.sdk.simulator.Simulator`. Own faults (`faults.extra`): `bad_checksum`, `noise`: sets of devices."""

    name = "serial"

    async def run(self, config: LinkConfig, world: World) -> None:
        """Speak once a second at the link's port until cancelled."""
        assert isinstance(config, SerialLink)
        [(device, settings)] = config.devices.items()
        if getattr(settings.template, "codec", "") != "sds011":
            raise CitygateError(f"{device}: no simulator for template {settings.template.name}")
        async with open_pty(config.port) as line:
            n = 0
            while True:
                if device not in world.faults.silent:
                    line.write(_spoken(device, n, world))
                    n += 1
                await world.sleep(PERIOD_S + world.faults.late_s.get(device, 0.0))


def _spoken(device: str, n: int, world: World) -> bytes:
    """The bytes of measurement `n`, faults included; tells the world what a reader can learn from them."""
    pm2_5, pm10 = (_tenths(world.value(device, point, n)) for point in ("pm2_5", "pm10"))
    data = frame(pm2_5, pm10)
    if device in world.faults.extra.get("bad_checksum", ()):
        return data[:8] + bytes([(data[8] + 1) % 256]) + data[9:]
    world.served(device, {"pm2_5": pm2_5 / 10, "pm10": pm10 / 10})
    if device in world.faults.extra.get("noise", ()):
        return b"\x00\xff\xaa" + data
    return data


SIMULATOR = SerialSimulator()
