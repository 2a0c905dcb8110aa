"""Where uplinks come in: an MQTT session that acknowledges only what is safe, and a UDP socket that bounds its work."""

import asyncio
import contextlib
import hashlib
import os
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivers.lora import broker_words
from drivers.lora.config import MqttLink, mqtt_address
from gateway.sdk.errors import LinkError, PortClosed
from gateway.sdk.libraries import missing

CONNECT_S = 15.0
SESSION_EXPIRY_S = 7 * 86400  # the broker keeps what we miss for so long
KEEPALIVE_S = 60
RECEIVE_BUFFER_BYTES = 1 << 20
DATAGRAMS_PER_TURN = 64  # then the loop has its turn, also under a flood


@dataclass(frozen=True, slots=True)
class Message:
    """One publication.

    Attributes:
        number: packet id, for the acknowledgement; 0 with QoS 0.
        redelivered: the broker says that it sent it before.
        retained: the broker had kept it and sends it because we subscribed: it was not published now.
    """

    topic: str
    body: bytes
    number: int
    qos: int
    redelivered: bool
    retained: bool = False


class MqttInbox:
    """A persistent session. Nothing is acknowledged by itself; the broker holds back what is beyond the window. At most
    a window of messages waits in memory; beyond it the socket is left unread, nothing is dropped.

    Network traffic runs in a thread of its own; messages cross to the event loop.
    """

    def __init__(self, config: MqttLink, protocol: str, client_id: str, *, persistent: bool = True) -> None:
        self._config, self._protocol, self._client_id, self._persistent = config, protocol, client_id, persistent
        self._queue: deque[Message] = deque()
        self._more = asyncio.Event()
        self._room = threading.Semaphore(config.receive_window)
        self._closing = threading.Event()
        self._lost: LinkError | None = None
        self._connected = False
        self._loop = asyncio.get_running_loop()
        self._client: Any = None
        self.session_present = False
        self.refused_topics: tuple[str, ...] = ()

    async def get(self) -> Message:
        """The next message.

        Raises:
            PortClosed: the connection is gone.
        """
        while True:
            if self._queue:
                self._room.release()
                return self._queue.popleft()
            if self._lost is not None:
                raise self._lost
            self._more.clear()
            await self._more.wait()

    def ack(self, number: int, qos: int) -> None:
        """Tell the broker that a message is safe; messages are to be acknowledged in the order of receipt."""
        if qos:
            self._client.ack(number, qos)

    @contextlib.asynccontextmanager
    async def open(self, topics: tuple[str, ...]) -> AsyncIterator["MqttInbox"]:
        """Connect and subscribe, QoS 1.

        Raises:
            LinkError: not reachable, refused, or the first topic refused; the message says which. Of the other topics,
                `refused_topics` has those that were.
        """
        try:
            import paho.mqtt.client as paho  # only who has such a link pays for it
        except ImportError as error:
            raise missing("paho") from error

        connected: asyncio.Future[tuple[bool, str]] = self._loop.create_future()
        subscribed: asyncio.Future[list[str]] = (
            self._loop.create_future()
        )  # why each topic is refused, "" when it is not
        self._client = client = self._make(paho)

        def on_connect(_c: Any, _u: Any, flags: Any, reason: Any, _p: Any = None) -> None:
            self._cross(_resolve, connected, (bool(flags.session_present), str(reason) if reason.is_failure else ""))

        def on_subscribe(_c: Any, _u: Any, _mid: int, reasons: Any, _p: Any = None) -> None:
            self._cross(_resolve, subscribed, [str(reason) if reason.is_failure else "" for reason in reasons])

        def on_disconnect(_c: Any, _u: Any, _flags: Any, reason: Any, _p: Any = None) -> None:
            self._cross(self._disconnected, str(reason))

        def on_message(_c: Any, _u: Any, m: Any) -> None:
            # a broker may ignore the window (mosquitto does when a session goes on): then the socket is not read
            while not self._room.acquire(timeout=0.5):
                if self._closing.is_set():
                    return  # not acknowledged: it comes again
            try:
                topic = m.topic
            except UnicodeDecodeError:  # against the protocol; an exception in here would end the thread
                topic = ""
            self._cross(self._put, Message(topic, bytes(m.payload), m.mid, m.qos, bool(m.dup), bool(m.retain)))

        client.on_connect, client.on_disconnect = on_connect, on_disconnect
        client.on_subscribe, client.on_message = on_subscribe, on_message
        try:
            await self._connect(paho)
            client.loop_start()
            self.session_present, failure = await self._within(connected, "answer the connect")
            if failure:
                raise LinkError(broker_words.refused(self._config.url, failure, self._client_id))
            self._connected = True
            client.subscribe([(topic, self._subscription(paho)) for topic in topics])
            answers = dict(zip(topics, await self._within(subscribed, "answer the subscription"), strict=False))
            if why := answers[topics[0]]:
                raise LinkError(broker_words.subscription_refused(self._config.url, topics[0], why))
            self.refused_topics = tuple(topic for topic, why in answers.items() if why)
            yield self
        finally:
            self._closing.set()
            client.disconnect()
            await asyncio.shield(asyncio.to_thread(client.loop_stop))

    def _make(self, paho: Any) -> Any:
        v5 = self._protocol == "5"
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if v5 else not self._persistent,
            protocol=paho.MQTTv5 if v5 else paho.MQTTv311,
            reconnect_on_failure=False,  # the supervisor restarts the link; one policy
            manual_ack=True,
        )
        config = self._config
        if config.username:
            client.username_pw_set(config.username, config.password or None)
        if config.url.startswith("mqtts:"):
            client.tls_set_context(broker_words.tls_context(config))
        return client

    async def _connect(self, paho: Any) -> None:
        """Connect in a thread: names, TCP and TLS block."""
        host, port = mqtt_address(self._config.url)
        more: dict[str, Any] = {}
        if self._protocol == "5":
            from paho.mqtt.packettypes import PacketTypes
            from paho.mqtt.properties import Properties

            properties = Properties(PacketTypes.CONNECT)
            properties.ReceiveMaximum = self._config.receive_window
            properties.SessionExpiryInterval = SESSION_EXPIRY_S if self._persistent else 0
            more = {"clean_start": not self._persistent, "properties": properties}
        abandoned = threading.Event()

        def connect() -> None:
            self._client.connect(host, port, KEEPALIVE_S, **more)
            if abandoned.is_set():
                self._client.disconnect()

        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.to_thread(connect)
        except TimeoutError:
            raise LinkError(f"broker {self._config.url} did not accept within {CONNECT_S:g} s") from None
        except (OSError, ValueError) as error:
            raise LinkError(broker_words.not_reached(self._config, error)) from error
        finally:
            abandoned.set()

    def _subscription(self, paho: Any) -> Any:
        if self._protocol != "5":
            return 1
        return paho.SubscribeOptions(qos=1, retainHandling=paho.SubscribeOptions.RETAIN_DO_NOT_SEND)

    async def _within(self, answer: "asyncio.Future[Any]", what: str) -> Any:
        """An answer of the broker, unless the connection or the time is gone first."""
        try:
            async with asyncio.timeout(CONNECT_S):
                while not answer.done():
                    if self._lost is not None:
                        raise self._lost
                    self._more.clear()
                    waiter = asyncio.ensure_future(self._more.wait())
                    try:
                        await asyncio.wait({answer, waiter}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        waiter.cancel()
                return answer.result()
        except TimeoutError:
            raise LinkError(f"broker {self._config.url} did not {what} within {CONNECT_S:g} s") from None

    def _cross(self, call: Any, *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call, *args)

    def _put(self, message: Message) -> None:
        self._queue.append(message)
        self._more.set()

    def _disconnected(self, reason: str) -> None:
        if self._connected:
            self._lose(broker_words.closed(self._config.url, reason, self._client_id))
        else:
            self._lose(broker_words.closed_unanswered(self._config.url, self._protocol, self._client_id))

    def _lose(self, why: str) -> None:
        self._lost = self._lost or PortClosed(why)
        self._more.set()


def _resolve(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():
        future.set_result(result)


def default_client_id(config: MqttLink, link: str) -> str:
    """The same over restarts, another on every box and for every link and application: who shares one shares a session,
    and takes and acknowledges the uplinks of the other."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = socket.gethostname()
    asked = f"{getattr(config, 'topic_prefix', '')} {getattr(config, 'application', '')}"
    identity = f"{machine} {config.driver} {config.url} {link} {asked}"
    return "citygate-" + hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


Address = tuple[str, int]


class UdpInbox:
    """A bound UDP socket, read in bounded turns."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    @property
    def address(self) -> Address:
        """Where it is bound."""
        host, port = self._sock.getsockname()[:2]
        return str(host), int(port)

    async def receive(self) -> list[tuple[bytes, Address]]:
        """At least one datagram, at most `DATAGRAMS_PER_TURN`."""
        while not (found := self._drain()):
            ready: asyncio.Future[None] = self._loop.create_future()
            self._loop.add_reader(self._sock.fileno(), _resolve, ready, None)
            try:
                await ready
            finally:
                self._loop.remove_reader(self._sock.fileno())
        return found

    def _drain(self) -> list[tuple[bytes, Address]]:
        found: list[tuple[bytes, Address]] = []
        while len(found) < DATAGRAMS_PER_TURN:
            try:
                found.append(self._sock.recvfrom(65_535))
            except BlockingIOError:
                break
            except OSError:  # an ICMP error of an earlier answer; nothing was received
                continue
        return found

    def send(self, data: bytes, address: Address) -> None:
        """Answer; what cannot be sent is lost, as on the wire."""
        with contextlib.suppress(OSError):
            self._sock.sendto(data, address)


@contextlib.asynccontextmanager
async def open_udp(host: str, port: int) -> AsyncIterator[UdpInbox]:
    """A bound socket.

    Raises:
        LinkError: the address is taken, not ours, or not permitted.
    """
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise LinkError(f"cannot listen at {host}:{port}: {error}") from error
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        try:
            sock.bind(where)
        except OSError as error:
            said = os.strerror(error.errno) if error.errno else str(error)
            raise LinkError(
                f"cannot listen at {host}:{port}: {said}; does another packet forwarder server run?"
            ) from error
        yield UdpInbox(sock)
    finally:
        sock.close()
