"""Point-to-point modems on a pty and at a fake port."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from drivers.lora.config import LoraModemLink
from drivers.lora.driver import LORA_MODEM
from drivers.lora.simulator import LORA_MODEM as MODEM
from gateway.sdk.driver import Request
from gateway.sdk.errors import CitygateError
from gateway.sdk.streams import open_serial
from gateway.sdk.testing import FakePort
from tests.drivers.lora.support import HeldContext, counter_template, running, until, world


def link(modem: str, port: str = "/dev/fake", **devices: Any) -> LoraModemLink:
    devices = {name: {"template": counter_template(), **its} for name, its in (devices or {"node": {}}).items()}
    return LoraModemLink.model_validate({"driver": "lora-modem", "port": port, "modem": modem, "devices": devices})


class Port(FakePort):
    """Plays its chunks, then is quiet."""

    async def read(self) -> bytes:
        if self._chunks:
            return await super().read()
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("modem", ["rylr", "rn2483", "e5"])
async def test_the_simulators_packets_come_through_a_pty_one_by_one(modem: str, tmp_path: Path) -> None:
    config = link(modem, str(tmp_path / "modem"), node={"address": 7} if modem == "rylr" else {})
    context = HeldContext()
    context.automatic = True
    sdk = context.context
    object.__setattr__(sdk, "open_serial", open_serial)
    served: list[tuple[str, dict[str, float]]] = []
    async with running(MODEM.run(config, world(served, noise={"node"}))):
        await until((tmp_path / "modem").is_symlink)
        async with running(LORA_MODEM.run(config, sdk)):
            await until(lambda: len(context.sets) >= 10)
    got = [s.values()["count"] for s in context.sets]
    assert got == list(range(int(got[0]), int(got[0]) + len(got)))
    assert context.rejected


async def test_senders_are_told_apart_by_address_and_strangers_named() -> None:
    context = HeldContext()
    context.automatic = True
    context.port = Port(
        b"+RCV=1,4,\0\0\0\x0b,-9,1\r\n+RCV=2,4,\0\0\0\x16,-9,1\r\n+RCV=3,4,\0\0\0\x21,-9,1\r\n+ERR=4\r\n"
    )
    config = link("rylr", a={"address": 1}, b={"address": 2})
    async with running(LORA_MODEM.run(config, context.context)):
        await until(lambda: context.counts["modem_errors"])
    assert [(s.device, s.values()["count"]) for s in context.sets] == [("a", 11), ("b", 22)]
    assert context.counts["unknown_devices"] == 1


async def test_a_modem_whose_window_ended_is_told_to_listen_again() -> None:
    port = Port(b"ok\r\n", b"radio_err\r\n", b"radio_rx  00000005\r\n")
    context = HeldContext()
    context.automatic, context.port = True, port
    async with running(LORA_MODEM.run(link("rn2483"), context.context)):
        await until(lambda: context.sets and len(port.written) >= 4)
    assert port.written == [b"mac pause\r\n", *[b"radio rx 0\r\n"] * 3]


async def test_equal_packets_are_separate_measurements() -> None:
    context = HeldContext()
    context.automatic = True
    context.port = Port(b"+RCV=1,4,\0\0\0\x05,-9,1\r\n" * 3)
    async with running(LORA_MODEM.run(link("rylr"), context.context)):
        await until(lambda: len(context.sets) == 3)
    assert [s.values()["count"] for s in context.sets] == [5, 5, 5]


async def test_a_read_request_waits_for_a_device_that_was_not_heard_yet() -> None:
    context = HeldContext()
    context.automatic = True
    early, other = Request("read", "node"), Request("read", "silent")
    context.requests.put(early)
    context.requests.put(other)
    context.port = Port(b"+RCV=1,4,\0\0\0\x05,-9,1\r\n")
    config = link("rylr", node={"address": 1}, silent={"address": 2})
    sdk = context.context
    start_s = context.clock.monotonic_s()
    object.__setattr__(sdk, "monotonic_s", lambda: start_s + (context.clock.monotonic_s() - start_s) * 100)
    object.__setattr__(sdk, "sleep", lambda seconds: asyncio.sleep(min(seconds, 0.02)))
    async with running(LORA_MODEM.run(config, sdk)):
        exchange = await asyncio.wait_for(early.reply, 5)
        with pytest.raises(CitygateError, match="not heard within"):
            await asyncio.wait_for(other.reply, 5)
    assert exchange.received == b"\0\0\0\x05"


async def test_a_read_request_gets_the_latest_uplink_and_a_write_is_refused() -> None:
    context = HeldContext()
    context.automatic = True
    context.port = Port(b"+RCV=1,4,\0\0\0\x05,-9,1\r\n")
    async with running(LORA_MODEM.run(link("rylr"), context.context)):
        await until(lambda: context.sets)
        read, write = Request("read", "node"), Request("write", "node", "count", 1)
        context.requests.put(read)
        context.requests.put(write)
        exchange = await asyncio.wait_for(read.reply, 5)
        with pytest.raises(CitygateError, match="downlinks"):
            await asyncio.wait_for(write.reply, 5)
    assert exchange.received == b"\0\0\0\x05"
    assert ("count", 5) in {(r.point, r.value) for r in exchange.readings}


@pytest.mark.parametrize(
    ("modem", "devices", "message"),
    [("e5", {"a": {}, "b": {}}, "exactly one"), ("rylr", {"a": {}, "b": {"address": 1}}, "an address each"),
     ("rylr", {"a": {"address": 1}, "b": {"address": 1}}, "an address each")],
)  # fmt: skip
def test_senders_that_cannot_be_told_apart_are_config_errors(modem: str, devices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        link(modem, **devices)
