"""Serve one link to packet forwarders over UDP: copies merged, keys tried, counters kept, junk bounded."""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, replace

from drivers.lora.codec import lorawan
from drivers.lora.codec.lorawan import DataFrame, Session
from drivers.lora.codec.semtech import PUSH_DATA, Datagram, Packet, parse_datagram, parse_push
from drivers.lora.codec.uplink import Uplink, key_of
from drivers.lora.config import RadioDevice, SemtechUdpLink
from drivers.lora.inbox import Address, UdpInbox, open_udp
from drivers.lora.memory import Memory
from drivers.lora.quiet import Quiet
from drivers.lora.receiver import REMARK_S, Receiver, first_failure, network_time_or_none, one_message
from gateway.sdk.driver import Context
from gateway.sdk.errors import FrameError

MERGE_S = 0.2  # copies of other concentrators come within this time
MAX_MERGING = 1024  # uplinks waiting for copies; beyond it the oldest goes at once
MAX_QUEUED = 2048  # uplinks waiting for the log
MAX_SESSIONS_TRIED = 64  # devices that may share one DevAddr
KNOWN_PER_S, STRANGERS_PER_S = (
    1000.0,
    200.0,
)  # bodies parsed each second: per concentrator that proved itself, of all others
MAX_CONCENTRATORS = 256
TIME_UNCERTAINTY_S = 1.0
TIMES_AGREE_S = 2.0  # two packets of a concentrator, by its GPS and by our monotonic clock
QUIET_S = 120.0  # a packet forwarder asks for downlinks every 10 s or so


@dataclass(slots=True)
class _Bucket:
    """Lets through so many a second, a second's worth at once."""

    per_s: float
    left: float
    at_s: float

    def take(self, now_s: float) -> bool:
        self.left = min(self.per_s, self.left + (now_s - self.at_s) * self.per_s)
        self.at_s = now_s
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(slots=True)
class _Merging:
    """An uplink that waits for better copies of itself."""

    device: str
    uplink: Uplink
    due_s: float


async def serve(config: SemtechUdpLink, context: Context) -> None:
    """Serve until cancelled. Raises LinkError when the address is taken."""
    receiver = Receiver(config.devices, context)
    try:
        async with open_udp(config.host, config.port) as inbox:
            context.up()
            concentrators = Concentrators(config, context, receiver)
            await first_failure(
                asyncio.create_task(concentrators.receive(inbox), name="lora datagrams"),
                asyncio.create_task(concentrators.deliver(), name="lora uplinks"),
                asyncio.create_task(receiver.watch_silence(concentrators.look), name="lora silence"),
                asyncio.create_task(receiver.answer_requests(), name="lora requests"),
            )
    finally:
        await receiver.close()


class Concentrators:
    """All concentrators of one link, and the sessions of its devices."""

    def __init__(self, config: SemtechUdpLink, context: Context, receiver: Receiver) -> None:
        self._context, self._receiver = context, receiver
        self._allowed = frozenset(config.gateways)
        self._may_reset = {name: device.counter_may_reset for name, device in config.devices.items()}
        self._sessions: dict[str, list[str]] = {}
        self._session: dict[str, Session] = {}
        for name, device in config.devices.items():
            session = _session(device, receiver.memory(name))
            self._session[name] = session
            self._sessions.setdefault(session.dev_addr, []).append(name)
        self._dev_eui = {name: getattr(device, "dev_eui", "") or "" for name, device in config.devices.items()}
        self._merging: OrderedDict[bytes, _Merging] = OrderedDict()
        self._ready: deque[_Merging] = deque()
        self._wake = asyncio.Event()
        self._gps: OrderedDict[str, tuple[float, float]] = OrderedDict()  # of proven ones: (GPS time, when) in seconds
        now_s = context.monotonic_s()
        self._quiet = Quiet(context, QUIET_S, f"no packet forwarder speaks to {config.host}:{config.port}",
                            "set server_address and port of its global_conf.json to this box; check the firewall")  # fmt: skip
        self._strangers = _Bucket(STRANGERS_PER_S, STRANGERS_PER_S, now_s)
        self._proven: OrderedDict[str, _Bucket] = OrderedDict()
        for gateway in config.gateways:
            self._proven[gateway] = _Bucket(KNOWN_PER_S, KNOWN_PER_S, now_s)

    async def receive(self, inbox: UdpInbox) -> None:
        """Take datagrams until cancelled."""
        while True:
            for data, sender in await inbox.receive():
                self.datagram(data, sender, inbox)
            await asyncio.sleep(0)  # a flood must not keep the others from the loop

    def look(self) -> None:
        """Say it when nobody speaks to us."""
        self._quiet.look()

    def datagram(self, data: bytes, sender: Address, inbox: UdpInbox) -> None:
        """Take one datagram: answer at once, then look into it as far as its sender's share allows."""
        with one_message(self._context, "datagram", data):
            self._datagram(parse_datagram(data), sender, inbox)

    def _datagram(self, datagram: Datagram, sender: Address, inbox: UdpInbox) -> None:
        if self._allowed and datagram.gateway and datagram.gateway not in self._allowed:
            self._context.count("foreign_gateways")
            return
        self._quiet.heard()
        if datagram.ack:
            inbox.send(datagram.ack, sender)
        if datagram.kind != PUSH_DATA:
            return
        if not (self._proven.get(datagram.gateway) or self._strangers).take(self._context.monotonic_s()):
            self._context.count("datagrams_over_rate")
            return
        packets, refused, _ = parse_push(datagram.body)
        for bad in refused:
            self._context.count("bad_packets")
            self._context.reject(bad)
        for packet in packets:
            with one_message(self._context, "packet", packet.phy):
                self._packet(packet, datagram.gateway)

    def _packet(self, packet: Packet, gateway: str) -> None:
        waiting = self._merging.get(packet.phy)
        if waiting is not None:
            self._merge(waiting, packet, gateway)
        elif lorawan.mtype_of(packet.phy) not in (lorawan.UNCONFIRMED_UP, lorawan.CONFIRMED_UP):
            self._context.count("other_frames")  # joins, downlinks of neighbours, proprietary
        else:
            self._frame(lorawan.parse(packet.phy), packet, gateway)

    def _frame(self, frame: DataFrame, packet: Packet, gateway: str) -> None:
        names = self._sessions.get(frame.dev_addr)
        if not names:
            self._stranger(frame, packet, gateway)
            return
        for name in names[:MAX_SESSIONS_TRIED]:
            found = lorawan.match(frame, self._session[name])
            if found is not None:
                self._proved(gateway)
                self._accept(name, frame, packet, gateway, found)
                return
        self._context.count("mic_errors")
        self._context.reject(FrameError(f"no key of {frame.dev_addr} fits the MIC", frame=packet.phy))

    def _accept(self, name: str, frame: DataFrame, packet: Packet, gateway: str, found: lorawan.Match) -> None:
        session = self._session[name]
        key = key_of(packet.phy.hex(), found.f_cnt)
        if found.verdict == "repeat" or key in self._receiver.memory(name).keys:
            self._context.count("copies_late", device=name)
            return
        if found.verdict == "replay":
            self._context.count("replays", device=name)
            self._context.reject(
                FrameError(f"{name}: counter {found.f_cnt} after {session.last}: replay", frame=packet.phy)
            )
            return
        if found.verdict == "reset":
            self._context.count("counter_resets", device=name)
            self._receiver.remark(
                name,
                f"its frame counter started again at {found.f_cnt}",
                "power loss, or a replayed frame",
                for_s=REMARK_S,
            )
        self._offer_time(packet, gateway)
        self._session[name] = replace(session, last=found.f_cnt)
        uplink = self._uplink(packet, gateway)
        uplink = replace(
            uplink,
            key=key,
            dev_eui=self._dev_eui[name],
            dev_addr=frame.dev_addr,
            f_port=frame.f_port,
            f_cnt=found.f_cnt,
            payload=lorawan.decrypt(frame, session.nwk_s_key, session.app_s_key, found.f_cnt),
        )
        self._merging[packet.phy] = _Merging(name, uplink, self._context.monotonic_s() + MERGE_S)
        if len(self._merging) > MAX_MERGING:
            self._queue(self._merging.popitem(last=False)[1])
        self._wake.set()

    def _queue(self, merged: _Merging) -> None:
        if len(self._ready) >= MAX_QUEUED:  # the log is stuck and the radio does not wait
            self._context.count("dropped_uplinks")
            return
        self._ready.append(merged)

    def _uplink(self, packet: Packet, gateway: str) -> Uplink:
        now = self._context.now()
        uplink = Uplink(
            key=b"",
            time=packet.time,
            heard_at=now,
            rssi=packet.rssi,
            snr=packet.snr,
            spreading_factor=packet.spreading_factor,
            frequency_hz=packet.frequency_hz,
            gateway=gateway,
        )
        return network_time_or_none(uplink, now.timestamp())

    def _offer_time(self, packet: Packet, gateway: str) -> None:
        """GPS time of a new frame that a key of ours signed. Its time is not signed, so one packet never suffices: a second
        one through the same concentrator must be as much later by GPS as by our monotonic clock."""
        if not packet.gps or packet.time is None or not packet.crc_ok:
            return
        now_s, gps_s = self._context.monotonic_s(), packet.time.timestamp()
        before = self._gps.pop(gateway, None)
        self._gps[gateway] = (gps_s, now_s)
        if len(self._gps) > MAX_CONCENTRATORS:
            self._gps.popitem(last=False)
        if before is not None and abs((gps_s - before[0]) - (now_s - before[1])) <= TIMES_AGREE_S:
            self._context.offer_time(packet.time, TIME_UNCERTAINTY_S)

    def _merge(self, waiting: _Merging, packet: Packet, gateway: str) -> None:
        self._context.count("copies", device=waiting.device)
        kept = waiting.uplink
        if packet.rssi is not None and (kept.rssi is None or packet.rssi > kept.rssi):
            kept = replace(
                kept, rssi=packet.rssi, snr=packet.snr, spreading_factor=packet.spreading_factor, gateway=gateway
            )
        waiting.uplink = replace(kept, copies=kept.copies + 1)

    def _stranger(self, frame: DataFrame, packet: Packet, gateway: str) -> None:
        self._context.count("unknown_devices")
        uplink = replace(self._uplink(packet, gateway), dev_addr=frame.dev_addr, f_port=frame.f_port, f_cnt=frame.f_cnt)
        self._receiver.heard.add(frame.dev_addr, uplink)

    def _proved(self, gateway: str) -> None:
        """A frame with a good MIC came through it: it gets a share of its own, which junk of others cannot use up."""
        if gateway in self._proven:
            self._proven.move_to_end(gateway)
            return
        self._proven[gateway] = _Bucket(KNOWN_PER_S, KNOWN_PER_S, self._context.monotonic_s())
        if len(self._proven) > MAX_CONCENTRATORS:
            self._proven.popitem(last=False)

    async def deliver(self) -> None:
        """Hand over what has waited long enough for copies."""
        while True:
            while self._ready:
                await self._hand_over(self._ready.popleft())
            if not self._merging:
                self._wake.clear()
                await self._wake.wait()
                continue
            phy, first = next(iter(self._merging.items()))
            left_s = first.due_s - self._context.monotonic_s()
            if left_s > 0:
                await self._context.sleep(left_s)
                continue
            del self._merging[phy]
            self._queue(first)

    async def _hand_over(self, merged: _Merging) -> None:
        with one_message(self._context, f"uplink of {merged.device}", merged.uplink.payload):
            await self._receiver.take(merged.device, merged.uplink)


def _session(device: RadioDevice, memory: Memory) -> Session:
    """The session as configured, with the counter as saved; another address is another session."""
    abp = device.activation.abp
    last = memory.f_cnt if memory.dev_addr == abp.dev_addr else None
    if abp.f_cnt is not None:
        last = max(abp.f_cnt, -1 if last is None else last)
    return Session(
        abp.dev_addr, bytes.fromhex(abp.nwk_s_key), bytes.fromhex(abp.app_s_key), last, device.counter_may_reset
    )
