"""One unit at work: what it is asked, how it is doing, when it is due."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType

from drivers.modbus.codec.blocks import Block, Field, Limits, plan
from drivers.modbus.codec.counters import Counter
from drivers.modbus.codec.frames import TABLES, Ask, Table, read_request
from drivers.modbus.codec.points import Rules, factor_name, finish, in_order
from drivers.modbus.codec.registers import Encoding
from drivers.modbus.config import ModbusDevice, ModbusTemplate, RegisterPoint
from drivers.modbus.pieces import FIRST_PAUSE_S, Pieces
from drivers.modbus.sunspec import Models, Search
from gateway.sdk.errors import CitygateError
from gateway.sdk.reading import Reading, Value

SILENT_CYCLES = 3  # then the unit is only probed
MIN_PROBE_S, MAX_PROBE_S = 5.0, 60.0
COSTLY_S, COST_SHARE, MAX_COSTLY_S = 0.5, 40, 600.0  # a silence that blocks a gateway so long is risked seldom
MAX_SEARCH_PAUSE_S = 600.0
NOWHERE: Mapping[int, int] = MappingProxyType({})
FACTOR = Encoding("int16", invalid=(-32768,))
Saved = Mapping[tuple[str, str], bytes]
MIN_TIMEOUT_S = 0.2  # slower than most devices ever are; the learned timeout is never shorter


class Patience:
    """How long to wait for one unit: learned from its answers, within bounds.

    Args:
        full_s: the configured timeout, the upper bound.
    """

    def __init__(self, full_s: float) -> None:
        self.full_s = full_s
        self._slowest_s: float | None = None

    @property
    def known(self) -> bool:
        """The unit has answered since the link was started."""
        return self._slowest_s is not None

    def answered(self, latency_s: float) -> None:
        """It took so long; slower counts at once, faster only slowly."""
        self._slowest_s = max(latency_s, 0.98 * self._slowest_s if self._slowest_s is not None else 0.0)

    def timeout_s(self, failures: int, *, again: bool = False) -> float:
        """What to wait now.

        A second try gets the full time, lest a slow day be taken for death. A unit that is only probed gets it now and
        then, so that dead units cost their neighbours little.

        Args:
            failures: polls in vain so far.
            again: this is the second try of one poll.
        """
        if self._slowest_s is None:
            short = failures >= SILENT_CYCLES and failures % 4
            return min(self.full_s, MIN_TIMEOUT_S) if short else self.full_s
        if again or failures % 8 == 7:
            return self.full_s
        return min(self.full_s, 4 * self._slowest_s + MIN_TIMEOUT_S)


class Unit:
    """The running state of one device.

    Attributes:
        pieces: its requests; they change when the device does not take a merged one.
        models: where its SunSpec models stand; None while that is not known.
        searching: some of them are still to be found.
        search_again_s: when to look for models again that are missing.
        lacking: what was not found of them, in words.
        absent: points that stand in no model of this device.
        due_s: when this poll was due (monotonic), on the grid of its period.
        again_s: when to ask again: the next poll, or a second try of this one.
        failures: polls in a row that brought nothing.
    """

    def __init__(
        self, name: str, device: ModbusDevice, *, timeout_s: float, start_s: float, grid_s: float, saved: Saved
    ) -> None:
        self.name = name
        self.unit_id = device.unit_id
        self.every_s = device.every_s
        self.patience = Patience(device.timeout_s or timeout_s)
        self.rest_s = device.template.read.gap_s
        self.points = tuple(device.template.points)
        # the first poll comes at once, that nobody waits an hour for a first value; the second falls on the grid
        self.due_s = grid_s - device.every_s if start_s < grid_s else grid_s
        self.again_s = start_s
        self.failures = 0
        self.retried = False
        self.template = device.template
        self.writes = device.writes
        self.rules = rules_of(device.template)
        self.counters = {point: self._counter(point, device, saved) for point in self.rules.rollover}
        self.search = Search()
        self.models: Models | None = None
        self._wanted = device.template.models
        self.searching = bool(self._wanted)
        self.search_again_s, self._search_pause_s = 0.0, 0.0
        self.lacking = ""
        self.absent: tuple[str, ...] = ()
        self.pieces = self._planned()

    def _counter(self, point: str, device: ModbusDevice, saved: Saved) -> Counter:
        rollover = self.rules.rollover[point]
        counts = rollover / abs(device.template.points[point].scale)
        counter = Counter.restored(saved.get((self.name, f"total.{point}"), b""), counts=counts)
        counter.correct(device.rounds.get(point), rollover)
        return counter

    def _planned(self) -> Pieces:
        its = self.models or Models()
        blocks = plan_of(self.template, its.bases, its.ends)
        if self._wanted:
            there = {f.point for block in blocks for f in block.fields}
            self.absent = tuple(point for point in self.points if point not in there)
        return Pieces(self.unit_id, blocks)

    def place(self, models: Models | None, now_s: float) -> None:
        """Its SunSpec models stand here, or none was found; what is missing is looked for again later."""
        of_use = models is not None and self._wanted & models.bases.keys()
        before, self.models = self.models, models if of_use else None
        there = (self.models or Models()).bases.keys()
        self.searching = not self._wanted <= there
        if before is None or self.models != before:
            self.pieces = self._planned()
        if not self.searching:
            self.lacking, self._search_pause_s = "", 0.0
            return
        missing = ", ".join(map(str, sorted(self._wanted - there)))
        self.lacking = f"no SunSpec model {missing}" if models is not None else "no SunSpec map in this device"
        if models is None or models.whole:
            self._search_pause_s = min(MAX_SEARCH_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._search_pause_s))
            self.search_again_s = now_s + self._search_pause_s

    def forget(self) -> None:
        """Another device may stand in its place: what was learned of its registers counts no more."""
        if self._wanted:
            self.models, self.search_again_s, self.search = None, 0.0, Search()
            self.searching = True
        self.pieces = self._planned()

    @property
    def probing(self) -> bool:
        """Silent for so long that it is only looked after now and then."""
        return self.failures >= SILENT_CYCLES

    def plan_next(self, now_s: float, *, costs_s: float = 0.0) -> int:
        """Set `again_s` to the next poll on the grid of the period; returns how many polls of the grid were missed.

        Args:
            costs_s: what its silence costs its neighbours each time: how long their gateway is busy with it.
        """
        self.due_s += self.every_s
        missed = max(0, math.ceil((now_s - self.due_s) / self.every_s))
        self.due_s += missed * self.every_s
        self.again_s = self.due_s
        pause_s = 0.0
        if self.probing:
            pause_s = min(MAX_PROBE_S, MIN_PROBE_S * 2 ** min(10, self.failures - SILENT_CYCLES))
        if self.failures and costs_s >= COSTLY_S:
            pause_s = max(pause_s, min(MAX_COSTLY_S, COST_SHARE * costs_s * min(self.failures, 3) / 3))
        if not pause_s:
            return missed
        probe_s = now_s + pause_s * random.uniform(0.5, 1.0)
        self.due_s += max(0, math.ceil((probe_s - self.due_s) / self.every_s)) * self.every_s
        self.again_s = self.due_s
        return 0

    def writable(self, point: str) -> Field:
        """Where a point stands that may be written. Raises CitygateError when it may not."""
        its = self.template.points.get(point)
        if its is None:
            raise CitygateError(f"{self.name} has no point {point}; there are {', '.join(self.points)}")
        if its.write is None:
            can = [name for name, its in self.template.points.items() if its.write is not None]
            raise CitygateError(
                f"{point} of {self.template.name} cannot be written; {', '.join(can) or 'no point'} can"
            )
        if point not in self.writes:
            raise CitygateError(f"writing is off: add writes: [{point}] to device {self.name} to allow it")
        return next(f for f in fields_of(self.template) if f.point == point)

    def encoded(self, point: str, value: Value | None) -> bytes:
        """The registers for a value. Raises CitygateError when it is outside the point's range or no step of it."""
        its = self.template.points[point]
        wanted = _as_value(value, text=bool(its.enum) or its.type == "string")
        rule = its.write.range if its.write is not None else None
        if rule is not None and not (isinstance(wanted, int | float) and rule[0] <= wanted <= rule[1]):
            raise CitygateError(f"{point}: {value} is outside {rule[0]:g} to {rule[1]:g}")
        try:
            return encoding_of(its).encode(wanted)
        except ValueError as error:
            raise CitygateError(f"{point}: {error}") from error

    def finished(self, readings: Sequence[Reading]) -> tuple[Reading, ...]:
        """The set of one poll, as the template lists the points."""
        if self.rules.plain:
            return in_order(readings, self.rules.order)
        return finish(readings, self.rules, self.counters)

    def shown(self, readings: Sequence[Reading]) -> tuple[Reading, ...]:
        """As `finished`, for a read beside the polls, which is logged nowhere: counters do not move."""
        if self.rules.plain:
            return in_order(readings, self.rules.order)
        return finish(readings, self.rules, {point: replace(counter) for point, counter in self.counters.items()})

    def state(self) -> dict[str, bytes] | None:
        """What of the counters must survive a restart."""
        if not self.counters:
            return None
        saved = {f"total.{point}": counter.saved() for point, counter in self.counters.items()}
        return {key: data for key, data in saved.items() if data} or None


def _as_value(value: Value | None, *, text: bool) -> Value:
    """What the command line gave, as number or flag where the point wants one."""
    if text or not isinstance(value, str):
        return value if value is not None else ""
    word = value.strip().lower()
    if word in ("on", "true", "off", "false"):
        return word in ("on", "true")
    try:
        return int(word) if word.lstrip("+-").isdecimal() else float(word)
    except ValueError:
        return value


def encoding_of(point: RegisterPoint) -> Encoding:
    """The codec's description of a point."""
    return Encoding(
        point.type,
        point.words,
        point.word_order,
        point.byte_order,
        point.bits,
        point.scale,
        point.offset,
        tuple(point.enum.items()),
        point.invalid,
        point.signed,
    )


def fields_of(
    template: ModbusTemplate, bases: Mapping[int, int] = NOWHERE, ends: Mapping[int, int] = NOWHERE
) -> tuple[Field, ...]:
    """Where the template's points and the scale factors they need stand.

    Args:
        bases: SunSpec model -> address of its ID register; points of models that are not there are left out.
        ends: model -> address behind it, where it is known; points beyond it would be those of the next model.
    """
    fields = []
    factors: dict[str, Field] = {}
    for name, point in template.points.items():
        if point.model is not None and point.model not in bases:
            continue
        base = bases[point.model] if point.model is not None else 0
        end = ends.get(point.model, 0x10000) if point.model is not None else 0x10000
        placed = Field(name, point.table, base + point.address, encoding_of(point), point.alone, point.model)
        if placed.end > end or (point.factor is not None and base + point.factor >= end):
            continue
        fields.append(placed)
        if point.factor is not None:
            hidden = _factor_name(point)
            factors[hidden] = Field(hidden, point.table, base + point.factor, FACTOR, model=point.model)
    return (*fields, *factors.values())


def _factor_name(point: RegisterPoint) -> str:
    return factor_name(point.factor or 0) + (f" of model {point.model}" if point.model is not None else "")


def rules_of(template: ModbusTemplate) -> Rules:
    """What the template's points need beyond scale and offset."""
    points = template.points
    return Rules(
        order=tuple(points),
        factors={name: _factor_name(point) for name, point in points.items() if point.factor is not None},
        rollover={name: point.rollover for name, point in points.items() if point.rollover is not None},
        status=(template.status.point, template.status.healthy) if template.status else None,
    )


def plan_of(
    template: ModbusTemplate, bases: Mapping[int, int] = NOWHERE, ends: Mapping[int, int] = NOWHERE
) -> tuple[Block, ...]:
    """The requests of one poll."""
    rules = template.read
    return plan(fields_of(template, bases, ends), Limits(rules.max_words, rules.max_bits, rules.max_hole))


def plan_lines(template: ModbusTemplate) -> tuple[str, ...]:
    """The requests of one poll in words: what is read, and which points it brings."""
    lines = []
    for block in plan_of(template, dict.fromkeys(template.models, 0)):
        ask = read_request(1, block.table, block.address, block.count)
        used = len({address for f in block.fields for address in range(f.address, f.end)})
        unit = "bits" if block.table in ("coil", "discrete") else "registers"
        points = ", ".join(f.point for f in block.fields if not f.point.startswith("@"))
        where = f" from the start of model {block.fields[0].model}" if block.fields[0].model is not None else ""
        lines.append(f"{ask.what}{where}: {block.count} {unit}, {used} used: {points}")
    return tuple(lines)


def readings_of(
    template: ModbusTemplate, ask: Ask, data: bytes, observed_at: datetime, bases: Mapping[int, int] = NOWHERE
) -> tuple[Reading, ...]:
    """Readings of a captured reply: the points that stand whole within what was asked."""
    table, address, count = _asked(ask)
    inside = tuple(
        f for f in fields_of(template, bases) if f.table == table and address <= f.address and f.end <= address + count
    )
    rules = rules_of(template)
    counters = {point: Counter() for point in rules.rollover}
    return finish(Block(table, address, count, inside).readings(data, observed_at), rules, counters)


def _asked(ask: Ask) -> tuple[Table, int, int]:
    return TABLES[ask.function], int.from_bytes(ask.pdu[1:3], "big"), int.from_bytes(ask.pdu[3:5], "big")
