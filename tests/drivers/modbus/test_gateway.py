"""A TCP gateway in front of a line: one request at a time, and a patience of its own with units that are not there."""

import pytest

from gateway.sdk.reading import Reason
from tests.support import modbus_slave as slave
from tests.support.modbus_bench import Bench
from tests.support.modbus_config import link, template

Pieces = list[tuple[float, bytes]]
TWO_WORDS = template(a={"address": 0}, b={"address": 1})


class Behind:
    """Units behind a gateway that works off its requests in order.

    Attributes:
        dead: units that do not answer.
        wait_s: how long it waits for one of them.
        tells: it then answers with exception 11; else with nothing.
        closes: it then closes the connection instead.
    """

    def __init__(
        self,
        dead: set[int],
        wait_s: float,
        *,
        tells: bool = True,
        closes: bool = False,
        every: str = "2 s",
        count: int = 4,
    ) -> None:
        self.dead, self.wait_s, self.tells, self.closes = dead, wait_s, tells, closes
        self.free_at_s = 0.0
        self.said = ("", "")  # of the link, while it was asked: the end of the line may take it back
        devices = {f"u{n}": {"template": TWO_WORDS, "unit_id": n, "every": every} for n in range(1, count + 1)}
        self.bench = Bench(link(devices, host="192.0.2.1"), self.answer)

    def answer(self, request: slave.Request) -> Pieces:
        now_s = self.bench.clock.monotonic_s()
        self.said = self.bench.recorder.notes.get("", self.said)
        dead = request.unit in self.dead
        self.free_at_s = max(now_s, self.free_at_s) + (self.wait_s if dead else 0.05)
        pdu = slave.words(3, [7] * request.count)
        if dead and self.closes:
            self.bench.line.hang_up(self.wait_s)
            return []
        if dead:
            pdu = bytes((request.function | 0x80, 11)) if self.tells else b""
        return [(self.free_at_s - now_s, slave.tcp(request.number, request.unit, pdu))] if pdu else []

    def shares(self, seconds: float, every_s: float) -> dict[int, float]:
        """Good polls of each unit that lives, by how many there should be."""
        living = [unit for unit in range(1, len(self.bench.config.devices) + 1) if unit not in self.dead]
        return {unit: sum(bool(s) for s in self.bench.sets(f"u{unit}")) * every_s / seconds for unit in living}


@pytest.mark.parametrize("tells", [True, False], ids=["exception 11", "nothing"])
@pytest.mark.parametrize("wait_s", [0.2, 1.5, 3.0, 5.0])
@pytest.mark.parametrize("dead", [{4}, {1}, {2, 3}], ids=str)
async def test_units_beside_a_dead_one_keep_their_readings(dead: set[int], wait_s: float, tells: bool) -> None:
    behind = Behind(dead, wait_s, tells=tells, count=6)

    await behind.bench.run_for(600)

    shares = behind.shares(600, 2)
    assert min(shares.values()) >= (0.95 if wait_s <= 3 else 0.92), shares
    living = [f"u{unit}" for unit in shares]
    timeouts = sum(reason is not Reason.NONE for name in living for reason in behind.bench.reasons(name)[:-1])
    assert timeouts <= 2, "a neighbour's wait is not its own silence"


@pytest.mark.parametrize("wait_s", [0.2, 1.5, 3.0])
@pytest.mark.parametrize("dead", [{4}, {1}, {2, 3}], ids=str)
async def test_a_gateway_may_give_a_unit_up_by_closing_the_connection(dead: set[int], wait_s: float) -> None:
    behind = Behind(dead, wait_s, closes=True, count=6)

    await behind.bench.run_for(600)

    shares = behind.shares(600, 2)
    assert min(shares.values()) >= 0.94, shares
    assert behind.bench.runs == 1, "it is no outage"


@pytest.mark.parametrize("wait_s", [1.5, 3.0])
async def test_a_gateway_that_waits_longer_than_we_do_is_named_and_forgotten_when_all_answer(wait_s: float) -> None:
    behind = Behind({4}, wait_s)

    await behind.bench.run_for(60)
    said = behind.said
    behind.dead = set()
    await behind.bench.run_for(400)

    assert f"the gateway waits {wait_s:.1f} s" in said[0]
    assert "timeout" in said[1]
    assert "" not in behind.bench.recorder.notes
    assert behind.bench.sets("u4")[-2] == {"a": 7, "b": 7}


async def test_a_gateway_whose_patience_is_shortened_costs_less_again() -> None:
    behind = Behind({4}, 3.0, tells=False)
    await behind.bench.run_for(200)
    behind.wait_s = 0.1

    await behind.bench.run_for(1200)

    asked = [when for when, frame in behind.bench.line.written if frame[6] == 4]
    assert max(later - earlier for earlier, later in zip(asked[-4:], asked[-3:], strict=False)) < 90


async def test_a_unit_that_dies_later_costs_its_neighbours_little() -> None:
    behind = Behind(set(), 3.0)
    await behind.bench.run_for(30)
    before = len(behind.bench.sets("u1"))
    behind.dead = {4}

    await behind.bench.run_for(300)

    assert (len([s for s in behind.bench.sets("u1")[before:] if s])) * 2 / 300 >= 0.95
