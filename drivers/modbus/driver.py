"""Modbus over serial lines and TCP: the units of one link polled in turn, one-shot reads in between."""

import asyncio
import heapq
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from drivers.modbus import diagnosis
from drivers.modbus.codec.blocks import Block
from drivers.modbus.codec.frames import (
    ABSENT_EXCEPTIONS,
    BUSY_EXCEPTIONS,
    AsciiFraming,
    Ask,
    DeviceException,
    Framing,
    RtuFraming,
    Table,
    TcpFraming,
    ascii_body,
    ask_of,
    read_request,
    reply_data,
    rtu_sound,
    write_request,
)
from drivers.modbus.config import ModbusConfig, ModbusTemplate, Tls
from drivers.modbus.device import SILENT_CYCLES, Unit, plan_lines, plan_of, readings_of
from drivers.modbus.diagnosis import Evidence
from drivers.modbus.load import shares
from drivers.modbus.pieces import Piece
from drivers.modbus.transaction import CLOCK_STEP_S, Answered, Bus, Connection, Timing
from gateway.sdk.driver import SDK_VERSION, Context, Exchange, Request
from gateway.sdk.errors import Busy, CitygateError, FrameError, LinkError, NoAnswer, Problem
from gateway.sdk.files import check_regular
from gateway.sdk.reading import Reading, ReadingSet, Reason, no_values
from gateway.sdk.streams import ByteStream
from gateway.sdk.template import Template

if TYPE_CHECKING:
    import ssl

BUSY_TRIES, BUSY_PAUSE_S = 4, 0.1
IDLE_S = 30.0  # the loop shows that it lives at least this often
LOOK_S = 2.0  # a port at rest is looked after this often: an unplugged one is not to look well until the next poll
MAX_VAIN = 12  # refused requests in a row, from a device that answers none, after which no more are parted
MAX_SILENT = 3  # requests in one poll that may go unanswered by a unit that answers others
LAST_UNIT = 247  # serial line 2.2
UNKNOWN = ("?", "")  # a remark of an earlier run may stand

FRAMINGS: Mapping[str, type[Framing]] = {"rtu": RtuFraming, "ascii": AsciiFraming, "tcp": TcpFraming}


class _Link:
    """One link while it runs."""

    def __init__(self, config: ModbusConfig, context: Context) -> None:
        self._config, self._context = config, context
        self._timing = Timing(
            character_s=config.character_s,
            rest_s=config.gap_s,
            quiet_s=config.quiet_s if config.quiet_s is not None else 3 * config.timeout_s,
            echo=config.echo,
        )
        self._units = {name: self._unit(name, place) for place, name in enumerate(config.devices)}
        self._evidence = Evidence()
        self._noted: dict[str, tuple[str, str]] = dict.fromkeys(("", *config.devices), UNKNOWN)
        self._bus: Bus

    def _unit(self, name: str, place: int) -> Unit:
        """A unit whose polls are spread over its period, or fall on full multiples of it by the clock."""
        its, now_s = self._config, self._context.monotonic_s()
        device = its.devices[name]
        grid_s = now_s + device.every_s * place / len(its.devices)
        if its.align:
            grid_s = now_s + device.every_s - self._context.now().timestamp() % device.every_s
        start_s = grid_s if its.align else now_s
        return Unit(name, device, timeout_s=its.timeout_s, start_s=start_s, grid_s=grid_s, saved=self._context.state)

    def open(self) -> AbstractAsyncContextManager[ByteStream]:
        """The link's stream."""
        its = self._config
        if its.host and its.tls is not None:
            return self._context.open_tcp(
                its.host, its.tcp_port, tls=_secured(its.tls), server_name=its.tls.server_name
            )
        if its.host:
            return self._context.open_tcp(its.host, its.tcp_port)
        return self._context.open_serial(
            its.port, its.baud_rate, parity=its.parity, stop_bits=its.stop_bits, data_bits=its.data_bits
        )

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Bus]:
        """The bus on the link's port; behind TCP it opens the connection when it is needed."""
        its, framing = self._config, FRAMINGS[self._config.wire]()
        if not its.host:
            async with self.open() as stream:
                yield Bus(stream, framing, self._timing, self._context, self._evidence)
            return
        connection = Connection(self.open, its.connect_pause_s, self._context)
        try:
            yield Bus(None, framing, self._timing, self._context, self._evidence, connection=connection)
        finally:
            await connection.close()

    async def serve(self) -> None:
        """Poll and answer requests until the link is gone: LinkError."""
        lost: Exception | None = None
        self._cut_short: Request | None = None  # what somebody asked for when the link was lost
        async with self._opened() as self._bus:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._poll_units(), name="modbus polls")
                    tasks.create_task(self._answer_requests(), name="modbus requests")
            except* LinkError as group:
                lost = group.exceptions[0]
            finally:
                if self._cut_short is not None and not self._cut_short.reply.done():
                    why = lost or LinkError("the link was restarted meanwhile")
                    self._cut_short.reply.set_exception(why)
        if lost is not None:
            if self._bus.hung_up:
                self._note("", diagnosis.of_hang_ups(self._config.wire))
            raise lost

    async def mark_down(self) -> None:
        """No device can be read: say so for each."""
        now = self._context.now()
        for unit in self._units.values():
            await self._context.emit(no_values(unit.name, unit.points, Reason.LINK_DOWN, observed_at=now))

    async def _poll_units(self) -> None:
        queue = [(unit.again_s, place, unit) for place, unit in enumerate(self._units.values())]
        heapq.heapify(queue)
        while True:
            due_s, place, unit = queue[0]
            now_s = self._context.monotonic_s()
            due_s = max(due_s, self._bus.free_at_s(unit.unit_id))
            if due_s - now_s > CLOCK_STEP_S:
                heapq.heapreplace(queue, (due_s, place, unit))
                if queue[0][2] is unit:
                    if not self._config.keep_open:
                        await self._bus.hang_up()
                    await self._rest(due_s - now_s)
                continue
            await self._poll(unit)
            heapq.heapreplace(queue, (unit.again_s, place, unit))

    async def _rest(self, left_s: float) -> None:
        """Wait for the next poll, or a part of it. Raises PortClosed when the port is unplugged meanwhile."""
        most_s = IDLE_S if self._config.host else LOOK_S
        await self._context.sleep(min(left_s, most_s))
        self._context.progress()
        if left_s > most_s:
            await self._bus.look()

    async def _poll(self, unit: Unit) -> None:
        """Read one unit and hand the set over."""
        polled = self._told_absent(unit) if unit.retried else None
        if polled is None:
            polled = await self._read(unit)
        if polled.silent and not unit.failures and not unit.retried:
            unit.retried = True  # a request lost to a glitch; tried once more before it counts
            unit.again_s = self._context.monotonic_s()
            return
        unit.retried = False
        unit.failures = unit.failures + 1 if polled.silent else 0
        if unit.failures == SILENT_CYCLES:
            unit.forget()
        await self._context.emit(ReadingSet(unit.name, unit.finished(polled.readings), unit.state()))
        self._diagnose(unit, polled)
        pieces = unit.pieces
        if not (polled.silent or pieces.calm) and (piece := pieces.due(self._context.monotonic_s())) is not None:
            await self._try_merged(unit, piece)
        costs_s = self._costs_s() if unit.failures else 0.0
        missed = unit.plan_next(self._context.monotonic_s(), costs_s=costs_s)
        if missed:
            self._context.count("missed_polls", missed, device=unit.name)

    def _costs_s(self) -> float:
        """What the silence of all that are silent costs their neighbours each round."""
        if len(self._units) < 2:
            return 0.0
        return self._bus.gateway.busy_s * sum(bool(unit.failures) for unit in self._units.values())

    def _told_absent(self, unit: Unit) -> "_Polled | None":
        """The second try of a unit of which its gateway has said meanwhile that it does not answer, and that was never
        heard of: it would only keep its neighbours waiting once more."""
        if unit.patience.known or unit.unit_id not in self._bus.absent:
            return None
        polled = _Polled()
        polled.readings = list(
            no_values(unit.name, unit.points, Reason.TIMEOUT, observed_at=self._context.now()).readings
        )
        return polled

    async def _try_merged(self, unit: Unit, piece: Piece) -> None:
        """What was cut is asked whole once more, after the poll, so that nothing depends on it."""
        try:
            await self._ask(unit, piece.ask)
        except (DeviceException, FrameError, NoAnswer):
            unit.pieces.tried(piece, self._context.monotonic_s(), worked=False)
        except Busy:
            pass  # it says nothing about the piece
        else:
            unit.pieces.tried(piece, self._context.monotonic_s(), worked=True)
            self._context.count("merged_again", device=unit.name)

    def _diagnose(self, unit: Unit, polled: "_Polled") -> None:
        """Tell status in words what is wrong, once it is known, and take it back when it is no longer true."""
        seen = self._evidence
        twice = seen.twice[unit.unit_id]
        if not (polled.silent or polled.refusal or self._noted or seen.echoes or twice):
            return
        its = self._config
        # a gateway's patience matters while somebody waits for it
        busy_s = self._bus.gateway.busy_s if any(its.failures for its in self._units.values()) else 0.0
        words = diagnosis.of_link(
            seen,
            baud_rate=0 if its.host else its.baud_rate,
            echo=its.echo,
            wire=its.wire,
            busy_s=busy_s if len(self._units) > 1 and busy_s > its.timeout_s else 0.0,
        )
        self._note("", words)
        words = "", ""
        if polled.silent or twice:
            words = diagnosis.of_unit(seen, unit.unit_id, timeout_s=unit.patience.full_s, serial=not its.host)
        elif polled.refusal:
            words = polled.refusal, "is it the model that the template is for? see its manual"
        self._note(unit.name, words)  # after the set, which has put its reasons there

    def _note(self, device: str, words: tuple[str, str]) -> None:
        if words == self._noted.get(device, ("", "")):
            return
        self._context.note(device, *words)
        if words[0]:
            self._noted[device] = words
        else:
            del self._noted[device]

    async def _answer_requests(self) -> None:
        while True:
            request = await self._context.requests.get()
            if request.reply.done():
                continue
            try:
                exchange = await self._one_shot(request)
            except asyncio.CancelledError:
                self._cut_short = request
                raise
            except CitygateError as error:
                if not request.reply.done():
                    request.reply.set_exception(error)
                if isinstance(error, LinkError):
                    raise
            else:
                if not request.reply.done():
                    request.reply.set_result(exchange)
            if not self._config.keep_open:
                await self._bus.hang_up()

    async def _one_shot(self, request: Request) -> Exchange:
        unit = self._units.get(request.device)
        if unit is None:
            raise CitygateError(f"no device {request.device} on this link; there are {', '.join(self._units)}")
        if request.kind == "write":
            return await self._write(unit, request)
        polled = await self._read(unit)
        self._diagnose(unit, polled)
        return Exchange(polled.sent, polled.received, unit.shown(polled.readings))

    async def _write(self, unit: Unit, request: Request) -> Exchange:
        """Write one allow-listed point and read it back.

        Raises:
            CitygateError: not allowed, out of range, refused by the device, or read back as something else.
        """
        field = unit.writable(request.point)
        data = unit.encoded(request.point, request.value)
        rule = unit.template.points[request.point].write
        multiple = rule is not None and rule.multiple
        ask = write_request(unit.unit_id, field.table, field.address, data, multiple=multiple)
        written = await self._ask(unit, ask)
        check = await self._ask(unit, read_request(unit.unit_id, field.table, field.address, field.encoding.words))
        exchange = Exchange(
            written.sent + check.sent,
            written.received + check.received,
            tuple(
                Block(field.table, field.address, field.encoding.words, (field,)).readings(
                    check.data, self._context.now()
                )
            ),
        )
        if check.data[: len(data)] != data:
            raise CitygateError(
                f"{unit.name}.{request.point}: {request.value} was written, but {exchange.readings[0].value} reads back"
            )
        self._context.count("writes", device=unit.name)
        return exchange

    async def _read(self, unit: Unit) -> "_Polled":
        """All points of one unit. A piece that is not answered is asked in parts, see `pieces`."""
        polled = _Polled()
        if unit.searching and not await self._find_models(unit, polled):
            return polled
        pieces = unit.pieces
        todo = list(pieces.leaves)
        if (unit.failures or unit.retried) and (probe := pieces.probe()) is not None:
            todo.insert(0, probe)  # is it there at all? a merged request may be what it does not answer
        vain = silent = 0
        while todo:
            piece = todo.pop(0)
            if piece.reason and piece.single and piece.again_s > self._context.monotonic_s():
                polled.readings += piece.block.without_values(piece.reason, self._context.now())
                continue
            try:
                answered = await self._ask(unit, piece.ask)
            except (DeviceException, Busy, FrameError, NoAnswer) as error:
                reason = self._why(unit, error, polled)
            else:
                polled.add(piece, answered, self._context.now())
                vain = 0
                continue
            now_s = self._context.monotonic_s()
            parts: tuple[Piece, ...] = ()
            if reason is Reason.REFUSED:
                vain += 1
                if vain < MAX_VAIN:
                    parts = pieces.part(piece, now_s)
                    if not parts:  # the widest next: what works there shows soonest
                        todo.sort(key=lambda its: -len(its.block.fields))
            elif reason is Reason.BUSY:
                if piece.reason is Reason.BUSY:  # for so long: it may be what is asked for
                    parts = pieces.part(piece, now_s)
            else:
                silent += 1
                if not polled.silent:
                    parts = pieces.part(piece, now_s)
                    if piece.single:
                        piece.wait(now_s)
            if parts:
                self._context.count("split_blocks")
                todo[:0] = parts
            else:
                polled.failed.append(piece)
                polled.readings += piece.block.without_values(reason, self._context.now())
                piece.reason = reason
            if silent and (polled.silent or silent >= MAX_SILENT or self._bus.free_at_s(unit.unit_id) > now_s):
                for rest in todo:  # a dead unit costs one timeout, not one per piece
                    polled.readings += rest.block.without_values(reason, self._context.now())
                break
        if polled.failed or not pieces.calm:
            self._settle(unit, polled)
        if unit.absent:
            polled.readings += no_values(
                unit.name, unit.absent, Reason.NOT_AVAILABLE, observed_at=self._context.now()
            ).readings
            polled.refusal = polled.refusal or unit.lacking
        return polled

    def _settle(self, unit: Unit, polled: "_Polled") -> None:
        if polled.silent:
            return  # nobody was there: nothing is learned about the pieces
        now_s = self._context.monotonic_s()
        unit.pieces.settle(polled.worked, polled.failed, now_s)
        if unit.template.models and not polled.worked and now_s >= unit.search_again_s:
            unit.forget()  # another device, or another firmware, keeps its models elsewhere

    def _why(self, unit: Unit, error: Exception, polled: "_Polled") -> Reason:
        """Why a piece has brought nothing."""
        if isinstance(error, DeviceException):
            polled.silent = False
            self._context.count(f"exception_{error.code}", device=unit.name)
            polled.refusal = str(error)
            return Reason.REFUSED
        if isinstance(error, Busy):
            polled.silent = False
            return Reason.BUSY
        if isinstance(error, FrameError):
            self._context.reject(error, device=unit.name)
            self._context.count("bad_frames", device=unit.name)
            return Reason.BAD_FRAME
        self._context.count("timeouts", device=unit.name)
        return Reason.TIMEOUT

    async def _find_models(self, unit: Unit, polled: "_Polled") -> bool:
        """Find where a SunSpec device keeps its models; False, with readings that say why, when none can be read."""
        now_s = self._context.monotonic_s()
        reason = Reason.NOT_AVAILABLE
        if unit.search_again_s <= now_s:
            try:
                models = await unit.search.models(
                    lambda table, address, count: self._words(unit, table, address, count), unit.template.models
                )
            except (NoAnswer, FrameError) as error:
                reason = Reason.TIMEOUT if isinstance(error, NoAnswer) else Reason.BAD_FRAME
            except Busy:
                polled.silent, reason = False, Reason.BUSY
            else:
                polled.silent = False
                unit.place(models, self._context.monotonic_s())
        elif unit.models is None:
            polled.silent = False  # it has answered that there is none; asked again later
        if unit.models is not None:
            return True
        polled.refusal = unit.lacking
        polled.readings = list(no_values(unit.name, unit.points, reason, observed_at=self._context.now()).readings)
        return False

    async def _words(self, unit: Unit, table: Table, address: int, count: int) -> bytes:
        answered = await self._ask(unit, read_request(unit.unit_id, table, address, count))
        return answered.data

    async def _ask(self, unit: Unit, ask: Ask) -> Answered:
        """One block; a busy unit is asked again.

        Raises:
            NoAnswer, Busy, FrameError, DeviceException, LinkError.
        """
        timeout_s = unit.patience.timeout_s(unit.failures, again=unit.retried)
        for left in range(BUSY_TRIES - 1, -1, -1):
            try:
                answered = await self._bus.exchange(
                    ask, timeout_s=timeout_s, rest_s=unit.rest_s, expected=not unit.failures
                )
                unit.patience.answered(answered.latency_s)
                self._context.count("answers", device=unit.name)
                self._context.count("latency_ms", round(answered.latency_s * 1000), device=unit.name)
                return answered
            except DeviceException as answer:
                if answer.code in ABSENT_EXCEPTIONS:
                    raise NoAnswer(str(answer)) from answer
                if answer.code not in BUSY_EXCEPTIONS:
                    raise
                self._context.count("busy", device=unit.name)
                if not left:
                    raise Busy(str(answer)) from answer
            await self._context.sleep(BUSY_PAUSE_S)
        raise AssertionError("unreachable")


def _secured(tls: Tls) -> "ssl.SSLContext":
    """Raises LinkError when a file is missing or is no certificate: it may be put right while we run."""
    import ssl  # only who encrypts pays for it

    try:
        check_regular(tls.ca, tls.certificate, tls.key)
        context = ssl.create_default_context(cafile=tls.ca or None)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key or None, _no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join(file for file in (tls.ca, tls.certificate, tls.key) if file)
        raise LinkError(f"cannot use the certificates in {files}: {error}") from error
    return context


def _no_password() -> str:
    """Else OpenSSL would ask at the terminal."""
    raise ValueError("the private key is encrypted; give it without a pass phrase, readable by the daemon alone")


class _Polled:
    """What one poll brought.

    Attributes:
        silent: the unit gave no sound answer to anything.
        refusal: what the unit refused, in words.
        worked, failed: the pieces that were asked.
    """

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self.worked: list[Piece] = []
        self.failed: list[Piece] = []
        self.silent = True
        self.refusal = ""
        self.sent = b""
        self.received = b""

    def add(self, piece: Piece, answered: Answered, now: datetime) -> None:
        """What one piece brought."""
        self.sent += answered.sent
        self.received += answered.received
        self.readings += piece.block.readings(answered.data, now)
        self.silent = False
        self.worked.append(piece)
        if piece.reason:
            piece.reason = Reason.NONE


class ModbusDriver:
    """See README.md beside this file."""

    name = "modbus"
    sdk_version = SDK_VERSION
    config_model = ModbusConfig
    template_model = ModbusTemplate

    @property
    def templates(self) -> Traversable:
        return files("drivers.modbus") / "templates"

    async def run(self, config: ModbusConfig, context: Context) -> None:
        """Serve one link until cancelled. Raises LinkError when port or connection is gone."""
        link = _Link(config, context)
        try:
            await link.serve()
        except LinkError:
            await link.mark_down()
            raise

    def plan(self, template: Template) -> tuple[str, ...]:
        """The requests of one poll, in words."""
        assert isinstance(template, ModbusTemplate)
        return plan_lines(template)

    def scan(self, options: Mapping[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        """See `drivers.modbus.scan.scan`."""
        from drivers.modbus import scan  # a daemon never needs it

        return scan.scan(options, context)

    def provision(self, options: Mapping[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        """See `drivers.modbus.provision.provision`."""
        from drivers.modbus import provision  # a daemon never needs it

        return provision.provision(options, context)

    def solve(self, options: Mapping[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        """See `drivers.modbus.scan.solve`."""
        from drivers.modbus import scan  # a daemon never needs it

        return scan.solve(options, context)

    def shares(self, config: ModbusConfig) -> Mapping[str, float]:
        """See `SharesLine`."""
        return shares(config)

    def warnings(self, config: ModbusConfig) -> Iterator[Problem]:
        """Unit ids that the specification keeps back on a line; some devices have one of them all the same."""
        for name, device in config.devices.items():
            if config.wire != "tcp" and device.unit_id > LAST_UNIT:
                yield Problem(
                    "reserved-unit-id",
                    ("devices", name, "unit_id"),
                    f"{device.unit_id} is reserved (1-{LAST_UNIT} are for devices); some use it as an address that"
                    " every unit answers",
                    "fine when it is the only unit of the line and its manual says so",
                )

    def decode(self, template: Template, frame: bytes, context: Mapping[str, Any]) -> tuple[Reading, ...]:
        """Readings of one captured reply (RTU, ASCII or TCP).

        Args:
            context: `request`: the request's frame in hexadecimal, since a reply does not say which registers it
                holds. Without it the template's own requests are tried, and exactly one must fit.

                `models`: SunSpec model -> address of its ID register.

        Raises:
            FrameError: no sound reply, or not to be told which registers it holds.
        """
        assert isinstance(template, ModbusTemplate)
        unit, pdu = unwrap(frame)
        observed_at = context.get("received_at") or datetime.now(UTC)
        bases = {int(model): int(address) for model, address in context.get("models", {}).items()}
        if "request" in context:
            asked, request = unwrap(bytes.fromhex(context["request"]))
            if asked != unit:
                raise FrameError(f"unit {unit} answers, asked was {asked}", frame=frame)
            ask = ask_of(unit, request)
        else:
            ask = _only_fit(template, bases, unit, pdu, frame)
        try:
            return readings_of(template, ask, reply_data(ask, pdu), observed_at, bases)
        except DeviceException as refusal:
            raise FrameError(str(refusal), frame=frame, offset=1) from refusal


def unwrap(frame: bytes) -> tuple[int, bytes]:
    """Unit and PDU of one captured frame, whatever it travelled in. Raises FrameError."""
    if rtu_sound(frame):  # before TCP: an RTU request of address 0 has zeros where TCP has its protocol number
        return frame[0], frame[1:-2]
    if len(frame) >= 8 and frame[2:4] == b"\0\0" and int.from_bytes(frame[4:6], "big") == len(frame) - 6:
        return frame[6], frame[7:]
    if not (frame.startswith(b":") and frame.endswith(b"\r\n")):
        raise FrameError("neither Modbus TCP nor RTU with a right CRC", frame=frame, offset=max(0, len(frame) - 2))
    body = ascii_body(frame[1:-2])
    if not body:
        raise FrameError("no digits with a right LRC", frame=frame)
    return body[0], body[1:]


def _only_fit(template: ModbusTemplate, bases: Mapping[int, int], unit: int, pdu: bytes, frame: bytes) -> Ask:
    asks = [read_request(unit, block.table, block.address, block.count) for block in plan_of(template, bases)]
    fits = [ask for ask in asks if pdu.startswith(ask.reply_head) and len(pdu) == ask.reply_size]
    if len(fits) != 1:
        raise FrameError("the reply alone does not say which registers it holds; give the request too", frame=frame)
    return fits[0]


DRIVER = ModbusDriver()
