"""Serve one link to a point-to-point LoRa modem on a serial port, in receive mode."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

from drivers.lora.codec.modem import MODEMS, Answer, Heard, Modem
from drivers.lora.codec.uplink import Uplink, key_of
from drivers.lora.config import LoraModemLink
from drivers.lora.receiver import Receiver, first_failure, one_message
from gateway.sdk.driver import Context
from gateway.sdk.errors import FrameError
from gateway.sdk.streams import ByteStream

BAUD_RATES = {"rylr": 115200, "rn2483": 57600, "e5": 9600}  # factory settings
COMMAND_PAUSE_S = 0.2  # none of them takes commands faster
LISTEN_AGAIN_S = 60.0  # a modem that was reset is told again to listen


async def serve(config: LoraModemLink, context: Context) -> None:
    """Serve until cancelled. Raises LinkError when the port is gone."""
    receiver = Receiver(config.devices, context)
    try:
        async with context.open_serial(config.port, config.baud_rate or BAUD_RATES[config.modem]) as port:
            line = _Line(config, context, receiver)
            await first_failure(
                asyncio.create_task(line.listen(port), name="lora modem"),
                asyncio.create_task(receiver.watch_silence(), name="lora silence"),
                asyncio.create_task(receiver.answer_requests(), name="lora requests"),
            )
    finally:
        await receiver.close()


class _Line:
    """The modem's line."""

    def __init__(self, config: LoraModemLink, context: Context, receiver: Receiver) -> None:
        self._config, self._context, self._receiver = config, context, receiver
        self._modem: Modem = MODEMS[config.modem]()
        self._by_address = {device.address: name for name, device in config.devices.items()}
        self._count = 0
        self._remarked = False

    async def listen(self, port: ByteStream) -> None:
        for command in (
            *self._modem.setup,
            *(f"{text}\r\n".encode() for text in self._config.setup),
            self._modem.listen,
        ):
            if command:
                await port.write(command)
                await self._context.sleep(COMMAND_PAUSE_S)
        self._context.up()
        while True:
            try:
                async with asyncio.timeout(LISTEN_AGAIN_S):
                    data = await port.read()
            except TimeoutError:
                await self._again(port)
                continue
            heard_at = self._context.now() - timedelta(seconds=port.age_s)  # they may have waited for us
            lines: list[Heard | Answer | FrameError] = []
            with one_message(self._context, "lines of the modem", data):
                lines += self._modem.feed(data)
            for said in lines:
                await self._said(said, heard_at, port)

    async def _said(self, said: "Heard | Answer | FrameError", heard_at: datetime, port: ByteStream) -> None:
        if isinstance(said, FrameError):
            self._context.reject(said)
        elif isinstance(said, Answer):
            await self._answered(said, port)
        else:
            await self._heard(said, heard_at)
            await self._again(port)

    async def _answered(self, answer: Answer, port: ByteStream) -> None:
        if answer.status == "timeout":
            await self._again(port)
        elif answer.status != "ok":
            self._context.count("modem_errors")
            self._remark(f"the modem says {answer.text}", "see its command reference; check `setup`")

    def _remark(self, text: str, remedy: str) -> None:
        if text or self._remarked:
            self._remarked = bool(text)
            self._context.note("", text, remedy)

    async def _again(self, port: ByteStream) -> None:
        if self._modem.listen:
            await port.write(self._modem.listen)

    async def _heard(self, heard: Heard, heard_at: datetime) -> None:
        name = self._by_address.get(heard.address)
        if name is None and len(self._config.devices) == 1 and None in self._by_address:
            name = self._by_address[None]
        self._count += 1  # these modems have no counter and repeat nothing: each packet is one of its own
        uplink = Uplink(
            key=key_of(heard_at, self._count),
            dev_addr=f"{heard.address:08x}" if heard.address is not None else "",
            f_port=heard.f_port,
            payload=heard.payload,
            heard_at=heard_at,
            rssi=heard.rssi,
            snr=heard.snr,
        )
        if name is None:
            self._context.count("unknown_devices")
            self._receiver.heard.add(str(heard.address), uplink)
            self._remark(self._receiver.heard.summary(), "add the address as a device")
            return
        self._remark("", "")
        if heard.f_port is None:
            uplink = replace(uplink, f_port=self._config.devices[name].f_port)
        with one_message(self._context, f"packet of {name}", heard.payload):
            await self._receiver.take(name, uplink)
