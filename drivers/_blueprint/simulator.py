"""Plays a TH-2 on a pty. Builds its bytes from the description in the README, without the codec."""

import struct
from typing import Any

from gateway.sdk.config import LinkConfig
from gateway.sdk.simulator import World, open_pty

EVERY_S = 0.2  # a real one speaks every 10 s; tests have no time for that


class BlueprintSimulator:
    """Speaks at the port of the link's config."""

    name = "blueprint"

    async def run(self, config: LinkConfig, world: World) -> None:
        """Speak until cancelled."""
        its: Any = config
        [device] = its.devices
        n = 0
        async with open_pty(its.port) as pty:
            while True:
                await world.sleep(EVERY_S + world.faults.late_s.get(device, 0.0))
                if device in world.faults.silent:
                    continue
                raw = {
                    "temperature": round(world.value(device, "temperature", n) * 100),
                    "humidity": round(world.value(device, "humidity", n) * 2),
                    "battery": round(min(60.0, world.value(device, "battery", n)) * 1000),
                }
                body = struct.pack(">BBBhBH", 0xA5, 0x5A, 1, raw["temperature"], raw["humidity"], raw["battery"])
                pty.write(body + bytes((sum(body) % 256,)))
                world.served(
                    device,
                    {
                        "temperature": raw["temperature"] / 100,
                        "humidity": raw["humidity"] / 2,
                        "battery": raw["battery"] / 1000,
                    },
                )
                n += 1


SIMULATOR = BlueprintSimulator()
