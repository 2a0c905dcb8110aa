"""Serve one link to a network server's MQTT broker: ChirpStack or The Things Stack."""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable

from drivers.lora.codec import chirpstack, tts
from drivers.lora.codec.uplink import Event, Notice, Status, Uplink
from drivers.lora.config import ChirpstackLink, TtsLink
from drivers.lora.inbox import Message, MqttInbox, default_client_id
from drivers.lora.receiver import Receiver, first_failure
from gateway.sdk.driver import Context, Receipt
from gateway.sdk.errors import CitygateError, FrameError

Decode = Callable[[str, bytes], Event]


def chirpstack_topics(config: ChirpstackLink) -> tuple[str, ...]:
    """v4 and v3 events, and the older v3 topics."""
    root = f"{config.topic_prefix}application/{config.application}/device/+"
    return (f"{root}/event/+", f"{root}/rx", f"{root}/status", f"{root}/error")


def tts_topics(_: TtsLink) -> tuple[str, ...]:
    """Uplinks and joins; the user name already limits them to one application."""
    return ("v3/+/devices/+/up", "v3/+/devices/+/join")


async def serve_chirpstack(config: ChirpstackLink, context: Context) -> None:
    """Serve until cancelled. Raises LinkError when the broker is gone."""
    await _Server(config, config.protocol, chirpstack_topics(config), chirpstack.decode, context).run()


async def serve_tts(config: TtsLink, context: Context) -> None:
    """Serve until cancelled. Raises LinkError when the broker is gone."""
    await _Server(config, config.protocol, tts_topics(config), tts.decode, context).run()


class _Server:
    """One link while it is connected."""

    def __init__(
        self,
        config: ChirpstackLink | TtsLink,
        protocol: str,
        topics: tuple[str, ...],
        decode: Decode,
        context: Context,
    ) -> None:
        self._topics, self._decode, self._context = topics, decode, context
        self._by_eui = {device.dev_eui: name for name, device in config.devices.items()}
        self._receiver = Receiver(config.devices, context)
        self._inbox = MqttInbox(config, protocol, config.client_id or default_client_id(config))
        self._owed: deque[tuple[int, int, Receipt | None]] = deque()  # bounded by the log's head
        self._new = asyncio.Event()
        self._noted = ""

    async def run(self) -> None:
        try:
            async with self._inbox.open(self._topics):
                self._context.count("connects")
                self._note()
                await first_failure(
                    asyncio.create_task(self._take(), name="lora uplinks"),
                    asyncio.create_task(self._acknowledge(), name="lora acknowledgements"),
                    asyncio.create_task(self._receiver.watch_silence(), name="lora silence"),
                    asyncio.create_task(self._receiver.answer_requests(), name="lora requests"),
                )
        finally:
            await self._receiver.close()

    async def _take(self) -> None:
        while True:
            message = await self._inbox.get()
            receipt = await self._handle(message)
            if message.qos:
                self._owed.append((message.number, message.qos, receipt))
                self._new.set()

    async def _acknowledge(self) -> None:
        """In the order of receipt, each when its set is durable."""
        while True:
            while not self._owed:
                self._new.clear()
                await self._new.wait()
            number, qos, receipt = self._owed[0]
            if receipt is not None:
                try:
                    await receipt.durable
                except CitygateError:  # the log gave the set up and counted it: sending it again would not help
                    self._context.count("given_up")
            self._inbox.ack(number, qos)
            self._owed.popleft()

    async def _handle(self, message: Message) -> Receipt | None:
        try:
            event = self._decode(message.topic, message.body)
        except FrameError as error:
            self._context.reject(error)  # it would not be better the next time: acknowledged and counted
            return None
        device = self._by_eui.get(event.dev_eui)
        if device is None:
            self._stranger(event)
            return None
        if isinstance(event, Uplink):
            self._note_qos(message)
            return await self._receiver.take(device, event, redelivered=message.redelivered)
        if isinstance(event, Status):
            return await self._receiver.take_status(device, event)
        self._notice(device, event)
        return None

    def _stranger(self, event: Event) -> None:
        self._context.count("unknown_devices")
        if isinstance(event, Uplink):
            self._receiver.heard.add(event.dev_eui, event)
            self._note()

    def _notice(self, device: str, event: Notice) -> None:
        self._context.count(f"events_{event.event[:20]}")
        if event.event in ("log", "error"):
            self._context.note(device, f"the network server says: {event.text}", "see the device in the network server")

    def _note_qos(self, message: Message) -> None:
        if message.qos == 0:
            self._context.count("without_acknowledgement")

    def _note(self) -> None:
        summary = self._receiver.heard.summary()
        if summary != self._noted:
            self._noted = summary
            self._context.note("", summary, "`citygate scan lora` guesses their templates" if summary else "")


async def listen(
    config: ChirpstackLink | TtsLink, topics: tuple[str, ...], decode: Decode, take: Callable[[str, Uplink], None]
) -> None:
    """Hear uplinks in a session that ends with the connection: the gateway's own session stays as it is."""
    inbox = MqttInbox(config, config.protocol, f"citygate-scan-{secrets.token_hex(4)}", persistent=False)
    async with inbox.open(topics):
        while True:
            message = await inbox.get()
            with contextlib.suppress(FrameError):
                event = decode(message.topic, message.body)
                if isinstance(event, Uplink):
                    take(event.dev_eui, event)
            inbox.ack(message.number, message.qos)
