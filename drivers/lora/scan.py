"""Listen for a while and tell who is heard, and which template may fit. Sends nothing, changes no session."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import replace
from importlib.resources.abc import Traversable
from typing import Any

from drivers.lora import servers
from drivers.lora.codec import chirpstack, lorawan, tts
from drivers.lora.codec.semtech import PUSH_DATA, Packet, parse_datagram, parse_push
from drivers.lora.codec.uplink import Uplink
from drivers.lora.config import ChirpstackLink, LoraTemplate, SemtechUdpLink, TtsLink
from drivers.lora.heard import Heard, finding
from drivers.lora.inbox import open_udp
from gateway.sdk.config import LinkConfig
from gateway.sdk.driver import Context
from gateway.sdk.errors import CitygateError, FrameError

DEFAULT_S = 60.0
REPORT_EVERY_S = 5.0

Take = Callable[[str, Uplink], None]


async def listen(
    name: str, config_model: type[LinkConfig], options: Mapping[str, Any], context: Context, templates: Traversable
) -> AsyncIterator[dict[str, Any]]:
    """Progress (`{"progress": {heard, left_s}}`) every few seconds, at the end `{"found": …}` for each device.

    Args:
        options: the link's own keys (`url`, `host`, `port`, …) as in the file, and `for_s`, how long.

    Raises:
        LinkError: the broker is not reachable, or the address is taken (a running daemon holds it: its status then
            lists who is heard).
        CitygateError: this driver cannot scan.
    """
    heard = Heard()
    config = config_model.model_validate({**{k: v for k, v in options.items() if k != "for_s"}, "driver": name})
    listening = asyncio.create_task(_listener(config, heard.add), name="lora scan")
    left_s = float(options.get("for_s", DEFAULT_S))
    try:
        while left_s > 0:
            done, _ = await asyncio.wait({listening}, timeout=min(REPORT_EVERY_S, left_s))
            if done:
                listening.result()
            left_s -= REPORT_EVERY_S
            context.progress()
            yield {"progress": {"heard": len(heard.strangers()), "left_s": max(0.0, left_s)}}
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
    known = load_templates(templates)
    for stranger in heard.strangers():
        yield {"found": finding(stranger, known)}


def load_templates(folder: Traversable) -> dict[str, LoraTemplate]:
    """All templates that ship with the driver, by name."""
    import yaml

    found = {}
    for vendor in folder.iterdir():
        for file in vendor.iterdir() if vendor.is_dir() else ():
            if file.name.endswith(".yaml"):
                name = f"{vendor.name}/{file.name.removesuffix('.yaml')}"
                template = LoraTemplate.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
                found[name] = template.model_copy(update={"name": name})
    return found


def _listener(config: LinkConfig, take: Take) -> Coroutine[Any, Any, None]:
    if isinstance(config, ChirpstackLink):
        return servers.listen(config, servers.chirpstack_topics(config), chirpstack.decode, take)
    if isinstance(config, TtsLink):
        return servers.listen(config, servers.tts_topics(config), tts.decode, take)
    if isinstance(config, SemtechUdpLink):
        return _hear_concentrators(config, take)
    raise CitygateError("a point-to-point modem is not scanned: its link's status lists the senders it hears")


async def _hear_concentrators(config: SemtechUdpLink, take: Take) -> None:
    async with open_udp(config.host, config.port) as inbox:
        while True:
            for data, sender in await inbox.receive():
                with contextlib.suppress(FrameError):
                    datagram = parse_datagram(data)
                    if datagram.ack:
                        inbox.send(datagram.ack, sender)
                    if datagram.kind == PUSH_DATA:
                        for packet in parse_push(datagram.body)[0]:
                            _hear(packet, datagram.gateway, take)
            await asyncio.sleep(0)


def _hear(packet: Packet, gateway: str, take: Take) -> None:
    """The air tells a DevAddr with data, a DevEUI only with a join request; payloads are encrypted."""
    uplink = Uplink(
        key=b"",
        time=packet.time,
        rssi=packet.rssi,
        snr=packet.snr,
        spreading_factor=packet.spreading_factor,
        gateway=gateway,
    )
    with contextlib.suppress(FrameError):
        if lorawan.mtype_of(packet.phy) == lorawan.JOIN_REQUEST:
            dev_eui = lorawan.parse_join_request(packet.phy).dev_eui
            take(dev_eui, replace(uplink, dev_eui=dev_eui))
            return
        frame = lorawan.parse(packet.phy)
        if frame.uplink:
            take(frame.dev_addr, replace(uplink, dev_addr=frame.dev_addr, f_port=frame.f_port, f_cnt=frame.f_cnt))
