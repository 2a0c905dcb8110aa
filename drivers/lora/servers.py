"""Serve one link to a network server's MQTT broker: ChirpStack or The Things Stack."""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable

from drivers.lora import broker_words
from drivers.lora.codec import chirpstack, tts
from drivers.lora.codec.uplink import Event, NoJson, Notice, Status, Uplink
from drivers.lora.config import ChirpstackLink, TtsLink
from drivers.lora.inbox import Message, MqttInbox, default_client_id
from drivers.lora.quiet import Quiet
from drivers.lora.receiver import REMARK_S, SILENT_AFTER, Receiver, first_failure, one_message
from gateway.sdk.driver import Context, Receipt
from gateway.sdk.errors import CitygateError, FrameError, PortClosed

Decode = Callable[[str, bytes], Event]

QUIET_S = 600.0  # or longer, when the devices themselves speak more rarely
RETAINED_S = 86_400.0  # a retained event that is older says nothing about now
SHORT_S = 60.0  # a session that is closed sooner was hardly ended by a restart of the broker
SHORT_SESSIONS = 3  # so many in a row: another client has our id, though MQTT 3.1.1 has no word for it
NO_JSON = {
    "chirpstack": "the server writes another format than JSON: set json = true in [integration.mqtt] of chirpstack.toml "
    '(v3: marshaler = "json_v3" in chirpstack-application-server.toml)',
    "tts": "The Things Stack's own MQTT server writes JSON: is this its url?",
}
_short_sessions: dict[str, int] = {}  # client id -> how many in a row; outlives the restarts of its link


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
        self._no_json = NO_JSON[config.driver]
        self._by_eui = {device.dev_eui: name for name, device in config.devices.items()}
        self._receiver = Receiver(config.devices, context)
        kept = bool(context.link)  # a read without a daemon must not acknowledge what waits for the daemon
        own_id = config.client_id or default_client_id(config, context.link)
        self._client_id = own_id if kept else f"citygate-read-{secrets.token_hex(4)}"
        self._inbox = MqttInbox(config, protocol, self._client_id, persistent=kept)
        silent_s = min(
            (device.every_s * SILENT_AFTER for device in config.devices.values() if device.every_s), default=0.0
        )
        self._quiet = Quiet(
            context,
            max(QUIET_S, silent_s),
            f"subscribed to {topics[0]}, but nothing was published there",
            "check application and topic_prefix, the server's MQTT integration, and that this user may read the topic",
            lambda text, remedy: self._remark("quiet", text, remedy),
        )
        self._remarks: dict[str, tuple[str, str]] = {}
        self._owed: deque[tuple[int, int, Receipt | None]] = deque()  # bounded by the log's head
        self._new = asyncio.Event()

    async def run(self) -> None:
        up_s: float | None = None
        try:
            async with self._inbox.open(self._topics):
                up_s = self._context.monotonic_s()
                self._context.count("connects")
                self._context.up()
                self._quiet.heard()
                await first_failure(
                    asyncio.create_task(self._take(), name="lora uplinks"),
                    asyncio.create_task(self._acknowledge(), name="lora acknowledgements"),
                    asyncio.create_task(self._receiver.watch_silence(self._quiet.look), name="lora silence"),
                    asyncio.create_task(self._receiver.answer_requests(), name="lora requests"),
                )
        except PortClosed as error:
            raise self._displaced(error, up_s) from None
        finally:
            await self._receiver.close()

    def _displaced(self, error: PortClosed, up_s: float | None) -> PortClosed:
        """The loss of the connection, with what it means when sessions are short again and again."""
        if up_s is None:
            return error
        short = self._context.monotonic_s() - up_s < SHORT_S
        count = _short_sessions[self._client_id] = _short_sessions.get(self._client_id, 0) + 1 if short else 0
        words = broker_words.shared(self._client_id)
        if count < SHORT_SESSIONS or words in str(error):
            return error
        return PortClosed(f"{error}, {count} times in a row within {SHORT_S:g} s; maybe {words}")

    async def _take(self) -> None:
        while True:
            message = await self._inbox.get()
            self._quiet.heard()
            receipt = None  # what is refused would not be better the next time: counted, and acknowledged
            with one_message(self._context, f"message at {message.topic[:80]}", message.body):
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
        except NoJson as error:
            self._context.reject(error, remedy=self._no_json)
            return None
        if message.retained and not self._is_of_today(event):
            return None
        device = self._by_eui.get(event.dev_eui)
        if device is None:
            self._stranger(event)
            return None
        if isinstance(event, Uplink):
            self._note_qos(message)
            return await self._receiver.take(device, event, redelivered=message.redelivered, retained=message.retained)
        if isinstance(event, Status):
            return await self._receiver.take_status(device, event, retained=message.retained)
        self._notice(device, event)
        return None

    def _is_of_today(self, event: Event) -> bool:
        """Whether a retained event is worth its own time. It was published at any time before we came, so without a time
        of its own nobody knows what it says, and an old one is history that was told when it was new."""
        at = None if isinstance(event, Notice) else event.time
        if at is not None and (self._context.now() - at).total_seconds() <= RETAINED_S:
            return True
        if not isinstance(event, Notice):
            self._context.count("retained_left_out")
            self._remark(
                "retained",
                "retained events without a time or older than a day are left out",
                "the server need not retain events: set retain_events = false",
            )
        return False

    def _stranger(self, event: Event) -> None:
        self._context.count("unknown_devices")
        if isinstance(event, Uplink):
            self._receiver.heard.add(event.dev_eui, event)
            self._remark("strangers", self._receiver.heard.summary(), "`citygate scan lora` guesses their templates")

    def _notice(self, device: str, event: Notice) -> None:
        self._context.count(f"events_{event.event[:20]}")
        if event.event in ("log", "error"):
            self._receiver.remark(
                device,
                f"the network server says: {event.text}",
                "see the device in the network server",
                for_s=REMARK_S,
            )

    def _note_qos(self, message: Message) -> None:
        if message.qos == 0:
            self._context.count("without_acknowledgement")

    def _remark(self, about: str, text: str, remedy: str) -> None:
        """One of the link's remarks, which status shows as one; "" takes it back."""
        before = dict(self._remarks)
        if text:
            self._remarks[about] = (text, remedy)
        else:
            self._remarks.pop(about, None)
        if self._remarks != before:
            texts, remedies = zip(*self._remarks.values(), strict=True) if self._remarks else (("",), ("",))
            self._context.note("", "; ".join(texts), remedies[0])


async def listen(
    config: ChirpstackLink | TtsLink, topics: tuple[str, ...], decode: Decode, take: Callable[[str, Uplink], None]
) -> None:
    """Hear uplinks in a session that ends with the connection: the gateway's own session stays as it is."""
    inbox = MqttInbox(config, config.protocol, f"citygate-scan-{secrets.token_hex(4)}", persistent=False)
    async with inbox.open(topics):
        while True:
            message = await inbox.get()
            with contextlib.suppress(FrameError):  # decoders raise nothing else
                event = decode(message.topic, message.body)
                if isinstance(event, Uplink):
                    take(event.dev_eui, event)
            inbox.ack(message.number, message.qos)
