"""Packet forwarders over UDP: copies, counters, keys, replays, junk; the simulator brings its own cryptography."""

import asyncio
import dataclasses
import random
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drivers.lora.concentrator import MERGE_S, Concentrators
from drivers.lora.config import SemtechUdpLink
from drivers.lora.driver import SEMTECH_UDP
from drivers.lora.inbox import UdpInbox
from drivers.lora.memory import STATE, unpack
from drivers.lora.receiver import Receiver
from drivers.lora.simulator import CONCENTRATORS, phy_payload, push_data, rxpk
from drivers.lora.simulator import SEMTECH_UDP as RADIO
from gateway.sdk.errors import LinkError
from gateway.sdk.reading import TimeSource
from gateway.sdk.testing import NOON, ManualClock
from tests.drivers.lora.support import (
    APP,
    NWK,
    TEMPLATES,
    HeldContext,
    counter_template,
    running,
    until,
    world,
)
from tests.support.box import free_port

ADDRESS = "49be7df1"
FIRST, SECOND = CONCENTRATORS


def device(
    dev_addr: str = ADDRESS, nwk: str = NWK, app: str = APP, f_cnt: int | None = None, **more: Any
) -> dict[str, Any]:
    abp = {"dev_addr": dev_addr, "nwk_s_key": nwk, "app_s_key": app, **({} if f_cnt is None else {"f_cnt": f_cnt})}
    return {"template": counter_template(), "activation": {"abp": abp}, **more}


def link(port: int = 1700, devices: dict[str, Any] | None = None, **more: Any) -> SemtechUdpLink:
    return SemtechUdpLink.model_validate(
        {"driver": "semtech-udp", "port": port, "devices": devices or {"node": device()}, **more}
    )


def uplink(n: int, dev_addr: str = ADDRESS, nwk: str = NWK, app: str = APP) -> bytes:
    """PHYPayload of the nth uplink, its payload the number n."""
    return phy_payload(dev_addr, bytes.fromhex(nwk), bytes.fromhex(app), n, 1, n.to_bytes(4, "big"))


class NoAnswers(UdpInbox):
    """Where acknowledgements go when a test feeds datagrams itself."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, data: bytes, address: tuple[str, int]) -> None:
        self.sent.append(data)


class Fed:
    """Concentrators fed datagram by datagram, on a clock that the test moves."""

    def __init__(self, config: SemtechUdpLink | None = None, state: dict[tuple[str, str], bytes] | None = None) -> None:
        self.recording = HeldContext(ManualClock())
        self.recording.automatic = True
        self.recording.state.update(state or {})
        config = config or link()
        self.receiver = Receiver(config.devices, self.recording.context)
        self.concentrators = Concentrators(config, self.recording.context, self.receiver)
        self.answers = NoAnswers()

    def packet(self, phy: bytes, gateway: str = FIRST, **fields: Any) -> None:
        self.datagram(push_data(1, gateway, [rxpk(phy, **fields)]))

    def datagram(self, data: bytes) -> None:
        self.concentrators.datagram(data, ("127.0.0.1", 9), self.answers)

    async def delivered(self) -> list[Any]:
        """Let the time for copies pass; all counts so far."""
        self.recording.clock.advance(MERGE_S)
        async with running(self.concentrators.deliver()):
            for _ in range(200):
                await asyncio.sleep(0)
        return self.counts()

    def counts(self) -> list[Any]:
        return [r.value for s in self.recording.sets for r in s.readings if r.point == "count"]


async def test_the_simulators_uplinks_come_through_value_by_value() -> None:
    config = link(free_port(socket.SOCK_DGRAM), {
        "bin": {**device("00000001"), "template": TEMPLATES["milesight/em400-udl"]},
        "soil": {**device("00000002"), "template": TEMPLATES["decentlab/dl-trs11"]},
    })  # fmt: skip
    context = HeldContext()
    context.automatic = True
    served: list[tuple[str, dict[str, float]]] = []
    async with running(SEMTECH_UDP.run(config, context.context), RADIO.run(config, world(served, junk=3))):
        await until(lambda: len(context.sets) >= 20)
    for name in ("bin", "soil"):
        got = [s for s in context.sets if s.device == name]
        want = [values for who, values in served if who == name]
        for readings, values in zip(got, want, strict=False):
            assert {point: float(readings.values()[point]) for point in values} == values
    assert context.total("copies") >= 15, "two concentrators heard each"
    assert {s.values()["rssi"] for s in context.sets} == {-60}, "the better copy counts"


async def test_copies_of_one_uplink_are_one_set_with_the_best_signal() -> None:
    fed = Fed()
    fed.packet(uplink(1), FIRST, rssi=-100, snr=-5)
    fed.packet(uplink(1), SECOND, rssi=-50, snr=8)
    fed.packet(uplink(1), FIRST, rssi=-70, snr=1)
    assert await fed.delivered() == [1]
    assert fed.recording.sets[0].values()["rssi"] == -50
    assert fed.recording.sets[0].values()["snr"] == 8

    fed.packet(uplink(1), SECOND)  # comes after the others were delivered
    fed.packet(uplink(2), SECOND)
    fed.packet(uplink(1), SECOND)  # and after the next one
    assert await fed.delivered() == [1, 2]
    assert fed.recording.total("copies_late") == 2


async def test_a_frame_played_again_after_a_restart_is_a_replay() -> None:
    fed = Fed()
    for n in (10, 11, 12):
        fed.packet(uplink(n))
    assert await fed.delivered() == [10, 11, 12]

    again = Fed(state=fed.recording.state)
    for n in (3, 9, 12, 11):
        fed.packet(uplink(n))
        again.packet(uplink(n))
    again.packet(uplink(13))
    assert await again.delivered() == [13]
    assert again.recording.total("replays") == 2
    assert again.recording.total("copies_late") == 2
    assert "replay" in str(again.recording.rejected[0])


@pytest.mark.parametrize(("said", "taken"), [(5, [13]), (12, [13]), (20, [21])])
async def test_the_counter_that_was_saved_and_the_one_in_the_file_the_higher_counts(
    said: int, taken: list[int]
) -> None:
    fed = Fed()
    fed.packet(uplink(12))
    assert await fed.delivered() == [12]

    again = Fed(link(devices={"node": device(f_cnt=said)}), state=fed.recording.state)
    for n in (6, 11, taken[0]):
        again.packet(uplink(n))
    assert await again.delivered() == taken
    assert again.recording.total("replays") == 2


async def test_the_counter_of_another_address_is_not_that_of_a_new_session() -> None:
    fed = Fed()
    fed.packet(uplink(500))
    assert await fed.delivered() == [500]

    again = Fed(link(devices={"node": device("00bcb929")}), state=fed.recording.state)
    for n in (0, 1):
        again.packet(uplink(n, "00bcb929"))
    assert await again.delivered() == [0, 1]


async def test_the_counter_goes_on_over_its_16_bits_with_restarts_in_between() -> None:
    fed, state = Fed(), {}
    got: list[Any] = []
    for n in range(64_000, 67_000, 7):
        if n % 500 < 7:  # the gateway is restarted
            got += await fed.delivered()
            state = fed.recording.state
            fed = Fed(state=state)
        fed.packet(uplink(n))
    got += await fed.delivered()
    assert got == list(range(64_000, 67_000, 7))
    assert unpack(fed.recording.state["node", STATE]).f_cnt == 66_996
    assert not fed.recording.rejected


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_seventy_thousand_uplinks_over_the_16_bit_counter_with_restarts_in_between() -> None:
    fed = Fed()
    seen = 0
    for n in range(70_000):
        fed.packet(uplink(n))
        if n % 200 == 199:
            counts = await fed.delivered()
            assert counts == list(range(n - 199, n + 1))
            seen += len(counts)
            fed = Fed(state=fed.recording.state) if n % 1000 == 999 else fed
            fed.recording.sets.clear()
    assert seen == 70_000
    assert not fed.recording.rejected


async def test_a_counter_that_starts_again_needs_permission() -> None:
    strict = Fed()
    strict.packet(uplink(5000))
    await strict.delivered()
    strict.packet(uplink(0))
    assert await strict.delivered() == [5000]
    assert strict.recording.total("replays") == 1

    lenient = Fed(link(devices={"node": device(counter_may_reset=True)}))
    lenient.packet(uplink(5000))
    await lenient.delivered()
    lenient.packet(uplink(0))
    lenient.packet(uplink(1))
    assert await lenient.delivered() == [5000, 0, 1]
    assert lenient.recording.total("counter_resets") == 1


async def test_devices_that_share_an_address_are_told_apart_by_their_keys() -> None:
    other = "00112233445566778899aabbccddeeff"
    fed = Fed(link(devices={"a": device(), "b": device(nwk=other, app=other)}))
    fed.packet(uplink(1))
    fed.packet(uplink(2, nwk=other, app=other))
    await fed.delivered()
    assert [(s.device, s.values()["count"]) for s in fed.recording.sets] == [("a", 1), ("b", 2)]


async def test_an_exported_session_goes_on_at_its_counter() -> None:
    fed = Fed(link(devices={"node": device(f_cnt=1_000_000)}))
    fed.packet(uplink(1_000_001))
    fed.packet(uplink(999_999))
    assert await fed.delivered() == [1_000_001]
    assert fed.recording.total("replays") == 1


async def test_bad_frames_are_counted_named_and_change_nothing() -> None:
    fed = Fed()
    good = uplink(1)
    fed.packet(good[:-1] + bytes((good[-1] ^ 1,)))  # MIC
    fed.packet(good[:7])  # truncated
    fed.packet(uplink(1, nwk="00" * 16))  # another key
    fed.packet(uplink(1, dev_addr="deadbeef"))  # unknown address
    fed.packet(b"\xe0\x00\x01\x02\x03\x04")  # proprietary
    fed.packet(bytes.fromhex("0039363463336913aa05693574323831330489c65b1304"))  # a join request
    fed.datagram(push_data(1, FIRST, [{**rxpk(good), "stat": -1}]))  # radio CRC
    fed.datagram(b"\x02\x00\x00\x00" + bytes.fromhex(FIRST) + b'{"rxpk": [{')
    fed.datagram(b"\x01\x00\x00\x00" + bytes.fromhex(FIRST) + b"{}")
    fed.datagram(b"\x02")
    assert await fed.delivered() == []
    counts = fed.recording.counts
    assert (counts["mic_errors"], counts["unknown_devices"], counts["other_frames"], counts["bad_packets"]) == (
        2,
        1,
        2,
        1,
    )
    assert len(fed.recording.rejected) == 7
    assert "deadbeef" in fed.receiver.heard.summary()

    fed.packet(good)
    assert await fed.delivered() == [1]


async def test_every_datagram_that_wants_it_is_acknowledged_at_once() -> None:
    fed = Fed()
    fed.datagram(b"\x02\xab\xcd\x00" + bytes.fromhex(FIRST) + b"{}")
    fed.datagram(b"\x02\x12\x34\x02" + bytes.fromhex(FIRST))
    fed.datagram(b"\x02\x12\x34\x05" + bytes.fromhex(FIRST))
    assert fed.answers.sent == [b"\x02\xab\xcd\x01", b"\x02\x12\x34\x04"]


async def test_concentrators_that_are_not_listed_are_not_heard() -> None:
    fed = Fed(link(gateways=[FIRST.upper()]))
    fed.packet(uplink(1), SECOND)
    fed.packet(uplink(2), FIRST)
    assert await fed.delivered() == [2]
    assert fed.recording.counts["foreign_gateways"] == 1
    assert len(fed.answers.sent) == 1


@pytest.mark.parametrize(
    ("at", "source"),
    [(None, TimeSource.GATEWAY), (NOON - timedelta(seconds=2), TimeSource.NETWORK), (NOON + timedelta(hours=1), TimeSource.GATEWAY),
     (datetime(1970, 1, 1, tzinfo=UTC), TimeSource.GATEWAY)],
)  # fmt: skip
async def test_the_concentrators_time_is_believed_only_near_our_own(at: datetime | None, source: TimeSource) -> None:
    fed = Fed()
    fed.packet(uplink(1), at=at)
    await fed.delivered()
    [reading] = [r for r in fed.recording.sets[0].readings if r.point == "count"]
    assert reading.time_source is source
    assert reading.observed_at == (at if source is TimeSource.NETWORK else NOON)


def gps(fed: Fed, n: int, ahead: timedelta, *, stat: int = 1, nwk: str = NWK, gateway: str = FIRST) -> datetime:
    """The nth uplink, with a GPS time so far ahead of our clock."""
    at = fed.recording.clock.now() + ahead
    tmms = round((at - datetime(1980, 1, 6, tzinfo=UTC)).total_seconds() * 1000) + 18_000
    fed.datagram(push_data(1, gateway, [{**rxpk(uplink(n, nwk=nwk)), "tmms": tmms, "stat": stat}]))
    return at


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(hours=3), timedelta(days=-20 * 365)])
async def test_gps_time_is_offered_when_a_second_signed_packet_agrees(ahead: timedelta) -> None:
    fed = Fed()
    gps(fed, 1, ahead)
    assert fed.recording.times == [], "one packet never suffices"
    fed.recording.clock.advance(60)
    second = gps(fed, 2, ahead)
    assert fed.recording.times == [(second, 1.0)]


async def test_gps_time_that_nobody_vouches_for_is_not_offered() -> None:
    fed = Fed()
    for n, (ahead, more) in enumerate((
        (timedelta(0), {}), (timedelta(seconds=1800), {}), (timedelta(days=7300), {}),  # each another time
        (timedelta(days=7300), {"stat": 0}), (timedelta(days=7300), {"stat": 0}),  # noise may look like a frame
        (timedelta(hours=1), {"nwk": "00" * 16}), (timedelta(hours=1), {"nwk": "00" * 16}),  # signed by none of our keys
        (timedelta(hours=2), {"gateway": SECOND}), (timedelta(hours=5), {"gateway": FIRST}),  # not by the same concentrator
    )):  # fmt: skip
        gps(fed, n, ahead, **more)  # type: ignore[arg-type]
        fed.recording.clock.advance(60)
    assert fed.recording.times == []


async def test_a_frame_heard_again_offers_no_time() -> None:
    fed = Fed()
    gps(fed, 1, timedelta(hours=3))
    await fed.delivered()
    fed.recording.clock.advance(60)
    gps(fed, 1, timedelta(hours=3))
    assert fed.recording.times == []


@pytest.mark.parametrize("ahead", [timedelta(minutes=30), timedelta(days=7300), timedelta(days=-7300)])
async def test_a_gps_time_far_from_ours_dates_no_uplink(ahead: timedelta) -> None:
    fed = Fed()
    gps(fed, 1, ahead)
    await fed.delivered()
    reading = fed.recording.sets[0].readings[0]
    assert (reading.observed_at, reading.time_source) == (NOON, TimeSource.GATEWAY)


POISON: list[dict[str, Any]] = [
    {"time": "0001-01-01T00:00:00+14:00"}, {"time": "9999-12-31T23:59:59-23:59"}, {"data": "\ud800"}, {"data": "a\udfff"},
    {"tmms": 2**53}, {"tmms": 10**400}, {"size": -1}, {"datr": "\ud800"}, {"freq": 1e308}, {"rsig": [[]]}, {"stat": []},
    {"rssi": "9" * 5000},
]  # fmt: skip


async def test_no_datagram_restarts_the_link() -> None:
    port = free_port(socket.SOCK_DGRAM)
    context = HeldContext()
    context.automatic = True
    async with running(SEMTECH_UDP.run(link(port), context.context)) as [task]:
        await until(lambda: context.ups)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for n, fields in enumerate(POISON):
                sock.sendto(push_data(n, FIRST, [{**rxpk(b"\x40"), **fields}]), ("127.0.0.1", port))
                sock.sendto(push_data(n, FIRST, [{**rxpk(uplink(2 * n)), **fields}]), ("127.0.0.1", port))
                sock.sendto(push_data(n, FIRST, [rxpk(uplink(2 * n + 1))]), ("127.0.0.1", port))
            sock.sendto(push_data(0, FIRST, [])[:12] + b"[" * 5000, ("127.0.0.1", port))
            await until(lambda: 2 * len(POISON) - 1 in [s.values()["count"] for s in context.sets])
        assert not task.done()
    assert {2 * n + 1 for n in range(len(POISON))} <= {s.values()["count"] for s in context.sets}


async def test_an_uplink_that_breaks_what_comes_behind_the_decoder_costs_itself() -> None:
    fed = Fed()
    real = fed.recording._emit

    async def emit(readings: Any) -> Any:
        if readings.values().get("count") == 2:
            raise TypeError("not expected")
        return await real(readings)

    fed.receiver._context = dataclasses.replace(fed.receiver._context, emit=emit)
    for n in (1, 2, 3):
        fed.packet(uplink(n))
    assert await fed.delivered() == [1, 3]
    [refused] = fed.recording.rejected
    assert isinstance(refused.__cause__, TypeError)


async def test_a_link_that_no_packet_forwarder_speaks_to_says_so_until_one_does() -> None:
    fed = Fed()
    fed.concentrators.look()
    assert fed.recording.notes == {}
    fed.recording.clock.advance(200)
    fed.datagram(b"\x01")  # junk is no packet forwarder
    fed.concentrators.look()
    assert "no packet forwarder speaks to 127.0.0.1:1700" in fed.recording.notes[""][0]
    fed.datagram(b"\x02\x12\x34\x02" + bytes.fromhex(FIRST))
    assert fed.recording.notes == {}


async def test_a_remark_about_the_counter_is_taken_back_when_it_has_gone_on() -> None:
    fed = Fed(link(devices={"node": device(counter_may_reset=True)}))
    for n in (500, 0, 1):
        fed.packet(uplink(n))
        await fed.delivered()
    assert "started again" in fed.recording.notes["node"][0]
    fed.recording.clock.advance(300)
    fed.packet(uplink(2))
    await fed.delivered()
    assert fed.recording.notes == {}


async def test_a_flood_of_strangers_leaves_room_for_a_concentrator_that_proved_itself() -> None:
    fed = Fed()
    fed.packet(uplink(0))
    for n in range(1, 3000):
        fed.datagram(push_data(1, f"{n % 50:016x}", [rxpk(random.randbytes(20))]))
        if n % 100 == 0:
            fed.packet(uplink(n))
    assert await fed.delivered() == [0, *range(100, 3000, 100)]
    assert fed.recording.counts["datagrams_over_rate"] > 2000


async def test_ten_thousand_junk_packets_a_second_do_not_keep_good_traffic_out() -> None:
    port = free_port(socket.SOCK_DGRAM)
    context = HeldContext()
    context.automatic = True
    junk = [
        push_data(1, f"{n:016x}", [rxpk(b"\x40" + bytes.fromhex(ADDRESS)[::-1] + random.randbytes(20))])
        for n in range(200)
    ]
    stop = threading.Event()
    sent = [0]

    def flood() -> None:
        """10,000 a second, in bursts of 100 every 10 ms; what a starved machine was late for is not made up for at once."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not stop.is_set():
                for data in junk[:100]:
                    sock.sendto(data, ("127.0.0.1", port))
                sent[0] += 100
                time.sleep(0.01)

    async with running(SEMTECH_UDP.run(link(port), context.context)):
        await asyncio.sleep(0.1)
        thread = threading.Thread(target=flood)
        thread.start()
        started_s, cpu_s = time.monotonic(), time.thread_time()
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for n in range(30):
                    sock.sendto(push_data(n, FIRST, [rxpk(uplink(n))]), ("127.0.0.1", port))
                    await asyncio.sleep(0.05)
        finally:
            stop.set()
            thread.join()
        spent = (time.thread_time() - cpu_s) / (time.monotonic() - started_s)
        await until(lambda: len(context.sets) >= 30)
    rate = sent[0] / (time.monotonic() - started_s)
    assert [s.values()["count"] for s in context.sets] == list(range(30))
    assert spent < 0.9, f"the loop had no air at {rate:.0f} junk packets a second"


async def test_what_a_bad_radio_does_is_counted_and_the_good_device_is_heard() -> None:
    port = free_port(socket.SOCK_DGRAM)
    other = "00112233445566778899aabbccddeeff"
    devices = {
        "good": device("00000001"),
        "lossy": device("00000002", nwk=other, app=other),
        "forged": device("00000003"),
        "replayed": device("00000004"),
    }
    config = link(port, devices)
    context = HeldContext()
    context.automatic = True
    served: list[tuple[str, dict[str, float]]] = []
    bad = world(served, bad_mic={"forged"}, replay={"replayed"}, junk=2, drift=True)
    async with running(SEMTECH_UDP.run(config, context.context), RADIO.run(config, bad)):
        await until(lambda: len([s for s in context.sets if s.device == "lossy"]) >= 3)
        bad.faults.extra["loss"] = {"lossy"}
        heard = context.counts["uplinks"]
        await until(lambda: context.counts["uplinks"] >= heard + 10)
        bad.faults.extra["loss"] = set()
        await until(lambda: context.total("lost_uplinks"))
    assert context.counts["mic_errors"] > 5
    assert context.total("replays") + context.total("copies_late") > 5
    assert "forged" not in {s.device for s in context.sets}
    assert [s.values()["count"] for s in context.sets if s.device == "good"][:10] == list(range(10))
    [gap] = {s.values()["lost_uplinks"] for s in context.sets if s.values().get("lost_uplinks")}
    assert gap == context.total("lost_uplinks")
    assert {r.time_source for s in context.sets for r in s.readings} == {TimeSource.GATEWAY}, (
        "the clocks were an hour off"
    )


async def test_an_address_that_is_taken_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(LinkError, match="another packet forwarder"):
            await SEMTECH_UDP.run(link(sock.getsockname()[1]), HeldContext().context)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev_addr": "123"}, "DevAddr has 8"),
        ({"nwk_s_key": "00" * 15}, "key has 32"),
        ({"app_s_key": "zz" * 16}, "key has 32"),
    ],
)
def test_keys_of_the_wrong_length_are_config_errors(changes: dict[str, str], message: str) -> None:
    node = device()
    node["activation"]["abp"].update(changes)
    with pytest.raises(ValueError, match=message):
        link(devices={"node": node})


async def test_a_scan_hears_addresses_and_joins() -> None:
    port = free_port(socket.SOCK_DGRAM)
    found: list[dict[str, Any]] = []

    async def scan() -> None:
        async for said in SEMTECH_UDP.scan({"port": port, "for_s": 0.6}, HeldContext().context):
            found.append(said)

    join = bytes.fromhex("0039363463336913aa05693574323831338ef1c1d5ec6c")
    async with running(scan()) as [task]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not task.done():
                sock.sendto(push_data(1, FIRST, [rxpk(uplink(1)), rxpk(join)]), ("127.0.0.1", port))
                await asyncio.sleep(0.05)
        await task
    assert {said["found"]["identity"] for said in found if "found" in said} == {ADDRESS, "3331383274356905"}
