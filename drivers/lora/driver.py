"""Drivers `chirpstack`, `tts`, `semtech-udp`, `lora-modem`: four ways in, one way from an uplink to readings."""

import importlib.resources
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources.abc import Traversable
from typing import Any

from drivers.lora import concentrator, modems, scan, servers
from drivers.lora.codec.payload import Received, read_object
from drivers.lora.config import ChirpstackLink, LoraModemLink, LoraTemplate, SemtechUdpLink, TtsLink
from drivers.lora.layout import JavaScriptCodec
from drivers.lora.receiver import decode_plain, program_of
from drivers.lora.worker import decode_once
from gateway.sdk.config import LinkConfig
from gateway.sdk.driver import SDK_VERSION, Context
from gateway.sdk.errors import FrameError
from gateway.sdk.reading import Reading
from gateway.sdk.template import Template


@dataclass(frozen=True, slots=True)
class LoraDriver:
    """See `gateway.sdk.driver.Driver`; the four differ in their config and in how uplinks come in."""

    name: str
    config_model: type[LinkConfig]
    serve: Callable[[Any, Context], Awaitable[None]]
    sdk_version: int = SDK_VERSION
    template_model: type[Template] = LoraTemplate

    @property
    def templates(self) -> Traversable:
        return importlib.resources.files("drivers.lora") / "templates"

    async def run(self, config: LinkConfig, context: Context) -> None:
        """Serve one link until cancelled; `LinkError` asks for a restart."""
        await self.serve(config, context)

    def decode(self, template: Template, frame: bytes, context: Mapping[str, Any]) -> tuple[Reading, ...]:
        """Readings of one decrypted payload.

        Args:
            context: `f_port` (or `fport`), `received_at`; `object` for templates that take the server's decoding.

        Raises:
            FrameError: it cannot be read, or not wholly; `readings` has what could be.
        """
        assert isinstance(template, LoraTemplate)
        codec = template.codec
        received = Received(context.get("received_at") or datetime.now(UTC))
        port = context.get("f_port", context.get("fport"))
        if isinstance(codec, JavaScriptCodec):
            result = decode_once(program_of(codec, template.name), frame, port, received.at)
            decoded = read_object(result, codec.fields, received)
        else:
            decoded = decode_plain(codec, frame, port, received, context.get("object"))
        if decoded.problem:
            raise FrameError(decoded.problem, frame=frame, offset=decoded.at, readings=decoded.readings)
        return decoded.readings

    async def scan(self, options: Mapping[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        """Listen for a while and report devices that are heard; see `drivers.lora.scan`."""
        async for found in scan.listen(self.name, self.config_model, options, context, self.templates):
            yield found


CHIRPSTACK = LoraDriver("chirpstack", ChirpstackLink, servers.serve_chirpstack)
TTS = LoraDriver("tts", TtsLink, servers.serve_tts)
SEMTECH_UDP = LoraDriver("semtech-udp", SemtechUdpLink, concentrator.serve)
LORA_MODEM = LoraDriver("lora-modem", LoraModemLink, modems.serve)
