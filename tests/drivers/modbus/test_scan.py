"""Scan, provision and solve on a line that nobody has set up yet."""

import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.modbus.codec.solve import solutions
from drivers.modbus.driver import DRIVER
from drivers.modbus.scan import identification_texts
from gateway.sdk.errors import CitygateError
from tests.drivers.modbus.test_templates import NAMES
from tests.support.modbus_config import shipped
from tests.support.modbus_field import FieldLine, Probe

TEMPLATES = {name: shipped(name) for name in NAMES}
READ_ONLY = {1, 2, 3, 4, 43}


async def all_of(events: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event async for event in events]


def climate(**its: Any) -> Probe:
    """An XY-MD02 as its vendor page describes it."""
    registers = {
        (4, 1): 215,
        (4, 2): 546,
        (3, 257): its.get("unit_id", 1),
        (3, 258): its.get("baud_rate", 9600),
        (3, 259): 0,
        (3, 260): 0,
    }
    return Probe(registers=registers, id_register=257, baud_register=258, **its)


def meter(unit_id: int, **its: Any) -> Probe:
    """An SDM120 at 230.4 V, 49.98 Hz."""
    registers = {(4, address): 0 for address in range(80)} | {(4, a): 0 for a in range(342, 346)}
    for address, value in ((0, 230.4), (70, 49.98)):
        registers[4, address], registers[4, address + 1] = struct.unpack(">HH", struct.pack(">f", value))
    return Probe(unit_id=unit_id, registers=registers, **its)


async def scan(line: FieldLine, **options: Any) -> list[dict[str, Any]]:
    events = await all_of(DRIVER.scan({"port": "/dev/x", "templates": TEMPLATES, **options}, line.context))
    return [event["found"] for event in events if "found" in event]


async def test_a_scan_finds_units_with_their_speed_and_names_their_templates() -> None:
    line = FieldLine(meter(3, baud_rate=2400), climate(unit_id=7, baud_rate=2400))

    found = await scan(line, units=range(1, 11))

    assert [(f["unit_id"], f["baud_rate"], f["parity"]) for f in found] == [(3, 2400, "N"), (7, 2400, "N")]
    assert "eastron/sdm120" in found[0]["templates"]
    assert found[1]["templates"] == ["sht20/xy-md02"]


async def test_a_scan_writes_nothing_and_stops_at_the_first_speed_that_answers() -> None:
    line = FieldLine(meter(1))

    await scan(line, units=range(1, 33))

    assert {request.function for request in line.requests} <= READ_ONLY
    assert line.opened == [(9600, "N")]


async def test_a_scan_says_how_far_it_is_and_is_bounded() -> None:
    line = FieldLine()
    events = await all_of(DRIVER.scan({"port": "/dev/x", "units": range(1, 33), "baud_rates": [9600]}, line.context))

    progress = [event["progress"] for event in events]
    assert progress[-1]["of"] == 96
    assert [p["done"] for p in progress] == sorted(p["done"] for p in progress)
    with pytest.raises(CitygateError, match="more than a scan does"):
        await all_of(DRIVER.scan({"port": "/dev/x", "units": range(1, 248), "baud_rates": range(50)}, line.context))


async def test_a_scan_gives_up_a_speed_at_which_there_is_only_noise() -> None:
    line = FieldLine(*(meter(n, baud_rate=2400) for n in range(1, 20)))

    events = await all_of(
        DRIVER.scan({"port": "/dev/x", "units": range(1, 20), "baud_rates": [9600, 2400]}, line.context)
    )

    assert [e["noise"]["baud_rate"] for e in events if "noise" in e] == [9600, 9600, 9600]
    assert sum("found" in e for e in events) == 19


async def test_what_a_device_says_of_itself_is_shown() -> None:
    line = FieldLine(Probe(identification=("Acme", "T-1000", "2.1")))

    [found] = await scan(line, units=[1])

    assert found["identification"] == ["Acme", "T-1000", "2.1"]
    assert found["templates"] == []


@given(st.binary(max_size=60))
def test_any_identification_is_texts_or_nothing(pdu: bytes) -> None:
    assert all(isinstance(text, str) for text in identification_texts(b"\x2b\x0e" + pdu))


async def provision(line: FieldLine, **options: Any) -> list[dict[str, Any]]:
    given_options = {"port": "/dev/x", "template": shipped("sht20/xy-md02"), **options}
    return await all_of(DRIVER.provision(given_options, line.context))


async def test_a_new_sensor_gets_its_id_and_speed_and_they_are_read_back() -> None:
    probe = climate()
    line = FieldLine(probe)

    events = await provision(line, new_unit_id=7, new_baud_rate=19200)

    assert (probe.unit_id, probe.baud_rate) == (7, 19200)
    assert events[-1]["done"] == {"port": "/dev/x", "baud_rate": 19200, "parity": "N", "stop_bits": 1, "unit_id": 7}
    assert line.opened == [(9600, "N"), (19200, "N")]


async def test_a_sensor_that_needs_a_restart_is_waited_for() -> None:
    probe = climate(at_once=False)
    line = FieldLine(probe)
    waited = False
    async for event in DRIVER.provision(
        {"port": "/dev/x", "template": shipped("sht20/xy-md02"), "new_unit_id": 7}, line.context
    ):
        if "wait" in event:
            waited = True
            probe.restart()

    assert waited
    assert probe.unit_id == 7


@pytest.mark.parametrize(
    ("probes", "options", "why"),
    [
        ([climate(), meter(7)], {"new_unit_id": 7}, "unit id 7 is taken"),
        ([climate(stubborn=True)], {"new_unit_id": 7}, "written, but unit 7 does not answer"),
        ([], {"new_unit_id": 7}, "does not answer at"),
        ([climate()], {}, "nothing to change"),
        ([climate()], {"new_unit_id": 250}, "outside"),
        ([climate()], {"new_baud_rate": 115200}, "does not fit"),
        ([meter(1)], {"new_unit_id": 7, "template": shipped("eastron/sdm630")}, "declares no register for its unit id"),
    ],
)
async def test_a_provision_that_cannot_be_says_why(probes: list[Probe], options: dict[str, Any], why: str) -> None:
    with pytest.raises(CitygateError, match=why):
        await provision(FieldLine(*probes), **options)


async def test_solve_names_the_registers_that_give_the_value_on_the_display() -> None:
    line = FieldLine(meter(1))

    events = await all_of(
        DRIVER.solve(
            {"port": "/dev/x", "unit_id": 1, "table": "input", "first": 0, "count": 120, "value": "230.4"}, line.context
        )
    )

    ways = [event["way"] for event in events if "way" in event]
    assert ways[0] == {"table": "input", "address": 0, "type": "float32", "value": pytest.approx(230.4)}
    assert any("unread" in event for event in events)


@settings(max_examples=60)
@given(
    st.sampled_from(["float32", "uint32", "int32", "uint16"]),
    st.sampled_from(["big", "little"]),
    st.sampled_from(["big", "little"]),
    st.integers(0, 6),
)
def test_solve_finds_every_encoding(kind: str, word_order: Any, byte_order: Any, place: int) -> None:
    from drivers.modbus.codec.registers import Encoding

    encoding = Encoding(kind, word_order=word_order, byte_order=byte_order, scale=1 if kind == "float32" else 0.1)  # type: ignore[arg-type]  # drawn from its names
    value = 230.5
    data = bytes(2 * place) + encoding.encode(value) + bytes(8)

    ways = solutions(data, 100, "230.5")

    start = 2 * place
    assert any(
        way.address == 100 + place
        and way.encoding.ordered(data[start : start + 2 * way.encoding.words])
        == encoding.ordered(encoding.encode(value))
        for way in ways
    )


@pytest.mark.parametrize("shown", ["", "abc", "nan", "Infinity"])
def test_what_no_display_shows_is_refused(shown: str) -> None:
    with pytest.raises(ValueError, match="not a number"):
        solutions(bytes(8), 0, shown)
