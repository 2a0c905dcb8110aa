"""The driver on a line in memory: polls, trouble, requests."""

import asyncio
from collections.abc import Callable

import pytest

from drivers.modbus.config import ModbusConfig
from drivers.modbus.driver import DRIVER
from gateway.sdk.driver import Request
from gateway.sdk.errors import CitygateError, FrameError
from gateway.sdk.reading import Quality, Reason
from tests.support import modbus_slave as slave
from tests.support.modbus_bench import Bench, served
from tests.support.modbus_config import link, shipped, template

TWO_WORDS = template(a={"address": 0}, b={"address": 1})


def two_devices(**its: object) -> ModbusConfig:
    return link(
        {
            "one": {"template": TWO_WORDS, "unit_id": 1, "every": "1 s"},
            "two": {"template": TWO_WORDS, "unit_id": 2, "every": "1 s"},
        },
        timeout="300 ms",
        **its,
    )


async def test_each_device_is_read_with_one_request_a_period() -> None:
    bench = Bench(two_devices(), served)

    await bench.run_for(9.9)

    assert bench.sets("one")[:-1] == [{"a": 100, "b": 101}] * 10
    assert bench.sets("two")[:-1] == [{"a": 200, "b": 201}] * 11  # one at once, then ten on its grid
    assert len(bench.asked) == 21


async def test_every_device_is_read_at_once_and_then_spread_over_the_period() -> None:
    bench = Bench(two_devices(), served)

    await bench.run_for(3)

    start_s = bench.line.written[0][0]
    polls = {unit: [when - start_s for when, frame in bench.line.written if frame[0] == unit] for unit in (1, 2)}
    assert polls[1][:3] == pytest.approx([0, 1, 2], abs=0.05)
    assert polls[2][:3] == pytest.approx([0, 0.5, 1.5], abs=0.05)


async def test_a_silent_device_has_no_values_and_its_neighbour_goes_on() -> None:
    bench = Bench(two_devices(), lambda request: served(request) if request.unit == 1 else [])

    await bench.run_for(60)

    assert len(bench.sets("one")) >= 58
    assert set(bench.reasons("two")[:-1]) == {Reason.TIMEOUT}
    assert {r.quality for s in bench.recorder.sets[:-2] if s.device == "one" for r in s.readings} == {Quality.GOOD}


async def test_a_silent_device_is_only_probed_after_a_while_and_is_back_when_it_answers() -> None:
    bench = Bench(two_devices(), lambda r: served(r) if r.unit == 1 or bench.clock.monotonic_s() > 1200 else [])

    await bench.run_for(200)
    probes = [request for request in bench.asked if request.unit == 2]
    assert len(probes) < 20
    await bench.run_for(120)

    assert bench.sets("two")[-2] == {"a": 200, "b": 201}


async def test_a_late_reply_becomes_no_other_requests_value() -> None:
    """Every reply comes 500 ms after the request; the timeout is 300 ms: no value may ever come out of it."""
    far_apart = template(a={"address": 0}, b={"address": 1000})
    config = link({"one": {"template": far_apart, "unit_id": 1, "every": "500 ms"}}, timeout="300 ms")
    bench = Bench(config, lambda r: [(0.5, piece) for _, piece in served(r)])

    await bench.run_for(60)

    assert bench.sets("one") == [{}] * len(bench.sets("one"))
    assert len(bench.asked) > 5


async def test_a_glitch_is_tried_once_more_before_it_counts() -> None:
    bench = Bench(two_devices(), lambda r: [] if len(bench.asked) == 3 else served(r))

    await bench.run_for(10)

    assert bench.reasons("one")[:-1] == [Reason.NONE] * (len(bench.reasons("one")) - 1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda frame: frame[:-1] + bytes((frame[-1] ^ 1,)),
        lambda frame: b"\x09" + frame[1:],
        lambda frame: slave.rtu(9, frame[1:-2]),
        lambda frame: slave.rtu(frame[0], b"\x04" + frame[2:-2]),
        lambda frame: slave.rtu(frame[0], b"\x03\x03" + frame[3:6]),
        lambda frame: frame[:4],
        lambda frame: b"\xff" * 300,
    ],
    ids=["bad crc", "bad unit", "other unit", "other function", "other length", "cut", "noise"],
)
async def test_what_is_no_reply_to_the_request_is_bad_frame_never_a_value(spoil: Callable[[bytes], bytes]) -> None:
    bench = Bench(two_devices(), lambda r: [(0.02, spoil(served(r)[0][1]))] if r.unit == 2 else served(r))

    await bench.run_for(20)

    assert set(bench.reasons("two")[:-1]) == {Reason.BAD_FRAME}
    assert len(bench.sets("one")) >= 18


async def test_a_reply_in_single_bytes_is_put_together() -> None:
    bench = Bench(two_devices(), lambda r: [(0.02 + 0.001 * n, bytes((b,))) for n, b in enumerate(served(r)[0][1])])

    await bench.run_for(3)

    assert bench.sets("one")[0] == {"a": 100, "b": 101}


@pytest.mark.parametrize("echo", [True, False])
async def test_an_echo_of_the_request_is_taken_off(echo: bool) -> None:
    bench = Bench(two_devices(echo=echo), lambda r: [(0.009, slave.rtu(r.unit, r.pdu)), *served(r)])

    await bench.run_for(3)

    assert bench.sets("one")[0] == {"a": 100, "b": 101}
    assert bench.recorder.counts["echoes"] == len(bench.asked)


async def test_busy_is_asked_again_and_no_value() -> None:
    def busy(request: slave.Request) -> list[tuple[float, bytes]]:
        return [(0.02, slave.rtu(request.unit, bytes((request.function | 0x80, 6))))]

    bench = Bench(two_devices(), lambda r: busy(r) if r.unit == 2 or len(bench.asked) % 2 else served(r))

    await bench.run_for(10)

    assert bench.sets("one")[0] == {"a": 100, "b": 101}
    assert set(bench.reasons("two")[:-1]) == {Reason.BUSY}


async def test_a_refused_block_is_asked_for_in_parts_from_then_on() -> None:
    def strict(request: slave.Request) -> list[tuple[float, bytes]]:
        if request.address < 5 <= request.address + request.count - 1:
            return [(0.02, slave.rtu(request.unit, bytes((request.function | 0x80, 2))))]
        return served(request)

    holed = template(a={"address": 0}, b={"address": 1}, c={"address": 9})
    bench = Bench(link({"one": {"template": holed, "unit_id": 1, "every": "1 s"}}), strict)

    await bench.run_for(4.5)

    assert bench.sets("one")[:-1] == [{"a": 100, "b": 101, "c": 109}] * 5
    assert [(r.address, r.count) for r in bench.asked][:5] == [(0, 10), (0, 2), (9, 1), (0, 2), (9, 1)]


async def test_a_register_the_device_refuses_is_named_and_the_others_are_read() -> None:
    def strict(request: slave.Request) -> list[tuple[float, bytes]]:
        if request.address <= 9 < request.address + request.count:
            return [(0.02, slave.rtu(request.unit, bytes((request.function | 0x80, 2))))]
        return served(request)

    holed = template(a={"address": 0}, c={"address": 9})
    bench = Bench(link({"one": {"template": holed, "unit_id": 1, "every": "1 s"}}), strict)

    await bench.run_for(2.5)

    assert bench.sets("one")[0] == {"a": 100}
    assert bench.recorder.sets[0].readings[1].reason is Reason.REFUSED
    assert "holding 9" in bench.recorder.notes["one"][0]


async def test_when_the_port_goes_every_device_is_down_and_the_link_restarts() -> None:
    bench = Bench(two_devices(), served)

    await bench.run_for(2)

    assert [s.device for s in bench.recorder.sets[-2:]] == ["one", "two"]
    assert {r.reason for s in bench.recorder.sets[-2:] for r in s.readings} == {Reason.LINK_DOWN}


async def test_a_one_shot_read_is_answered_between_polls() -> None:
    bench = Bench(two_devices(), served)
    request = Request("read", "two")
    bench.recorder.requests.put(request)

    await bench.run_for(1)

    exchange = await request.reply
    assert {r.point: r.value for r in exchange.readings} == {"a": 200, "b": 201}
    assert exchange.sent == slave.rtu(2, bytes.fromhex("0300000002"))
    assert exchange.received == slave.rtu(2, slave.words(3, [200, 201]))


async def test_a_one_shot_request_for_a_device_that_is_not_there_is_refused_and_the_link_goes_on() -> None:
    bench = Bench(two_devices(), served)
    request = Request("read", "nobody")
    bench.recorder.requests.put(request)

    await bench.run_for(3)

    with pytest.raises(CitygateError, match="no device nobody"):
        request.reply.result()
    assert len(bench.sets("one")) >= 3


async def test_tcp_replies_to_earlier_requests_are_stepped_over() -> None:
    def late_then_right(request: slave.Request) -> list[tuple[float, bytes]]:
        pdu = slave.words(request.function, [100 * request.unit, 100 * request.unit + 1])
        stale = slave.tcp(request.number - 1, request.unit, slave.words(3, [7, 7]))
        return [(0.01, stale), (0.02, slave.tcp(request.number, request.unit, pdu))]

    bench = Bench(two_devices(host="192.0.2.1"), late_then_right)

    await bench.run_for(3)

    assert bench.sets("one")[:-1] == [{"a": 100, "b": 101}] * 3


async def test_the_shipped_meter_is_read_with_two_requests() -> None:
    config = link({"meter": {"template": shipped("eastron/sdm120"), "unit_id": 1, "every": "1 s"}})
    bench = Bench(config, lambda r: [(0.02, slave.rtu(r.unit, slave.words(4, [0x4366, 0x8000] * (r.count // 2))))])

    await bench.run_for(0.9)

    assert [(r.address, r.count) for r in bench.asked] == [(0, 80), (342, 4)]
    assert set(bench.sets("meter")[0].values()) == {230.5}


def test_a_captured_reply_decodes_with_its_request() -> None:
    meter = shipped("eastron/sdm120")

    [reading] = DRIVER.decode(meter, bytes.fromhex("010404436680006fdf"), {"request": "01040000000271cb"})

    assert (reading.point, reading.value) == ("voltage", 230.5)


@pytest.mark.parametrize(
    ("frame", "why"),
    [("010404436680006fde", "neither"), ("018402c2c1", "illegal data address"), ("", "neither"), ("01", "neither")],
)
def test_a_captured_frame_that_is_no_reply_is_refused(frame: str, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        DRIVER.decode(shipped("eastron/sdm120"), bytes.fromhex(frame), {"request": "01040000000271cb"})


def test_cancelling_the_driver_leaves_nothing_behind() -> None:
    async def main() -> None:
        bench = Bench(two_devices(), served)
        task = asyncio.create_task(DRIVER.run(bench.config, bench.recorder.context))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


async def test_aligned_polls_fall_on_full_multiples_of_their_period() -> None:
    bench = Bench(two_devices(align=True), served)
    bench.clock.advance(0.37)

    await bench.run_for(5)

    good = [s.readings[0].observed_at.timestamp() % 1 for s in bench.recorder.sets if s.values()]
    assert max(good) < 0.2


def counting(counts: list[int], **device: object) -> Bench:
    """A meter of 16 bits whose register holds one count after the other, a poll each."""
    meter = template(n={"address": 0, "rollover": 65536})
    left = iter(counts)
    config = link({"one": {"template": meter, "unit_id": 1, "every": "1 s", **device}})
    return Bench(config, lambda r: [(0.02, slave.rtu(1, slave.words(3, [next(left)])))])


async def test_a_counter_that_restarts_goes_on_also_over_a_restart_of_the_gateway() -> None:
    bench = counting([65500, 65530, 20, 50, 80])

    await bench.run_for(3.5)
    await bench.run_for(0.5)

    assert [s.get("n") for s in bench.sets("one")] == [
        65500,
        65530,
        None,
        65586,
        None,
        65616,
        None,
    ]  # None: doubt, down
    assert bench.reasons("one")[2] is Reason.OUT_OF_RANGE


async def test_a_gateway_that_restarts_while_a_count_is_in_doubt_asks_again() -> None:
    bench = counting([30000, 30010, 0, 0, 30020])

    await bench.run_for(2.5)
    await bench.run_for(1.5)

    assert [s.get("n") for s in bench.sets("one")] == [30000, 30010, None, None, None, 30020, None]


async def test_the_rounds_in_the_config_put_a_total_right() -> None:
    bench = counting([30000, 30010], rounds={"n": 3})

    await bench.run_for(1.5)

    assert [s["n"] for s in bench.sets("one") if s] == [3 * 65536 + 30000, 3 * 65536 + 30010]


async def test_a_dead_tcp_connection_is_opened_anew() -> None:
    bench = Bench(two_devices(host="192.0.2.1"), lambda _: [])

    await bench.run_for(90)

    assert bench.recorder.counts["reconnects"] >= 1


@pytest.mark.parametrize("every", ["3 s", "10 min"])
async def test_a_port_that_is_unplugged_between_two_polls_is_noticed_at_once(every: str) -> None:
    bench = Bench(link({"m": {"template": template(a={"address": 0}), "unit_id": 1, "every": every}}), served)

    unplugged_s = bench.clock.monotonic_s() + 1.5
    await bench.run_for(1.5)

    assert bench.reasons("m") == [Reason.NONE, Reason.LINK_DOWN]
    assert bench.clock.monotonic_s() - unplugged_s < 4.5
