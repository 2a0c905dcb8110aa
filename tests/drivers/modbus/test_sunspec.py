"""SunSpec maps as devices have them: ended in any way, at any base, with models longer or shorter than they should be."""

import pytest

from gateway.sdk.reading import Reason
from tests.support import modbus_slave as slave
from tests.support.modbus_bench import Bench
from tests.support.modbus_config import link, template

Pieces = list[tuple[float, bytes]]
INVERTER = template(
    power={"address": 4, "model": 103, "type": "int16"},
    state={"address": 40, "model": 103},
    stored={"address": 3, "model": 802},
)
ONE_MODEL = template(power={"address": 4, "model": 103, "type": "int16"}, state={"address": 40, "model": 103})


class Inverter:
    """A map of models (number, length); register n of a model holds 1000 x its number + n, modulo 65536."""

    def __init__(self, *models: tuple[int, int], base: int = 40000, end: tuple[int, ...] = (0xFFFF, 0)) -> None:
        self.registers = dict(zip(range(base, base + 2), (0x5375, 0x6E53), strict=True))
        at = base + 2
        for number, length in models:
            self.registers |= {at + n: (1000 * number + n) % 65536 for n in range(2, 2 + length)}
            self.registers |= {at: number, at + 1: length}
            at += 2 + length
        self.registers |= {at + n: word for n, word in enumerate(end)}
        self.missing = "exception 2"
        self.silent: set[int] = set()

    def answer(self, request: slave.Request) -> Pieces:
        wanted = [self.registers.get(request.address + n) for n in range(request.count)]
        pdu = b""
        if not self.silent & set(range(request.address, request.address + request.count)):
            if None not in wanted:
                pdu = slave.words(request.function, wanted)  # type: ignore[arg-type]  # no None in it
            elif self.missing != "silence":
                pdu = bytes((request.function | 0x80, int(self.missing.split()[1])))
        return [(0.01, slave.tcp(request.number, request.unit, pdu))] if pdu else []


def bench_of(inverter: Inverter, its: object = ONE_MODEL, every: str = "3 s") -> Bench:
    device = {"template": its, "unit_id": 1, "every": every}
    return Bench(link({"inverter": device}, host="192.0.2.1", timeout="300 ms"), inverter.answer)


POWER, STATE = (1000 * 103 + 4) % 65536 - 65536, (1000 * 103 + 40) % 65536
GOOD = {"power": POWER if POWER >= -32768 else POWER + 65536, "state": STATE}


@pytest.mark.parametrize("missing", ["exception 1", "exception 2", "exception 3", "exception 4", "silence"])
@pytest.mark.parametrize("end", [(0xFFFF, 0), (), (0,), (0, 0, 0, 0), (0xFFFF,)], ids=str)
@pytest.mark.parametrize("base", [40000, 0, 50000])
async def test_the_models_are_found_however_the_list_ends(base: int, end: tuple[int, ...], missing: str) -> None:
    inverter = Inverter((1, 66), (103, 50), base=base, end=end)
    inverter.missing = missing
    bench = bench_of(inverter)

    await bench.run_for(25)

    assert bench.sets("inverter")[-2] == GOOD


@pytest.mark.parametrize("missing", ["exception 2", "silence"])
async def test_what_is_found_is_read_although_a_model_is_missing_and_that_is_named(missing: str) -> None:
    inverter = Inverter((1, 66), (103, 50), end=())
    inverter.missing = missing
    bench = bench_of(inverter, INVERTER)

    await bench.run_for(60)

    assert bench.sets("inverter")[-2] == GOOD
    [stored] = [r for r in bench.recorder.sets[-2].readings if r.point == "stored"]
    assert stored.reason is Reason.NOT_AVAILABLE
    assert bench.recorder.notes["inverter"][0] == "no SunSpec model 802"


async def test_a_model_behind_a_passing_fault_is_found_later() -> None:
    inverter = Inverter((1, 66), (103, 50), (802, 20))
    fault = {40002 + 68 + 52}
    inverter.silent = fault
    bench = bench_of(inverter, INVERTER)

    await bench.run_for(12)
    assert bench.sets("inverter")[-2] == GOOD
    inverter.silent = set()
    await bench.run_for(40)

    assert bench.sets("inverter")[-2] == {**GOOD, "stored": (1000 * 802 + 3) % 65536}


@pytest.mark.parametrize("length", [3, 30, 38, 39, 50, 51, 60])
async def test_points_beyond_a_shorter_model_are_not_those_of_the_next(length: int) -> None:
    bench = bench_of(Inverter((1, 65), (103, length), (64000, 60)))

    await bench.run_for(10)

    assert bench.sets("inverter")[-2] == (GOOD if length >= 39 else {"power": GOOD["power"]})


async def test_a_list_without_end_costs_a_bounded_walk_and_seldom_another() -> None:
    inverter = Inverter(*((7000 + n, 1) for n in range(5000)))
    bench = bench_of(inverter)

    await bench.run_for(300)

    assert len(bench.asked) <= 66 * 7
    assert {s.readings[0].reason for s in bench.recorder.sets[:-1]} == {Reason.NOT_AVAILABLE}


async def test_a_device_replaced_by_another_one_is_searched_anew() -> None:
    old, new = Inverter((1, 66), (103, 50)), Inverter((103, 50), base=0)
    bench = bench_of(old)
    await bench.run_for(10)
    assert bench.sets("inverter")[-2] == GOOD

    def answer(request: slave.Request) -> Pieces:
        return (old if bench.clock.monotonic_s() < start_s + 10 else new).answer(request)

    bench = Bench(bench.config, answer)
    start_s = bench.clock.monotonic_s()
    await bench.run_for(60)

    assert bench.sets("inverter")[-2] == GOOD
    assert any(not values for values in bench.sets("inverter")[:-1]), "in between it was another map"
