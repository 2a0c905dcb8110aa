"""Give a new sensor its own unit id and speed, by the registers that its template declares, with read-back.

All probes leave the factory as unit 1: two of them on one line answer at once. So each is given its id alone on the line.
"""

import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from drivers.modbus.codec.frames import DeviceException, read_request, write_request
from drivers.modbus.config import ModbusTemplate, Setting
from drivers.modbus.scan import IDENTIFY_TIMEOUT_S, Place
from drivers.modbus.transaction import Bus
from gateway.sdk.driver import Context
from gateway.sdk.errors import CitygateError, FrameError, NoAnswer

RESTART_WITHIN_S = 120.0
ASK_EVERY_S = 1.0


async def provision(options: Mapping[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
    """Set unit id and baud rate of the one new device on a line.

    Args:
        options: `port` (or `host` and `port`), `template`: a ModbusTemplate; `unit_id`, `baud_rate`, `parity`: as the
            device is now, default its factory settings; `new_unit_id`, `new_baud_rate`: what is wanted.

    Yields:
        `{"step": text}` for each thing done; `{"wait": text}` when somebody has to switch the device off and on;
        last `{"done": {place…, "unit_id"}}`.

    Raises:
        CitygateError: the template declares no such register, the wanted id is taken, or what was written does not
            read back. The message says in what state the device is now.
        LinkError: the port cannot be opened.
    """
    template: ModbusTemplate = options["template"]
    now = _Address(_place(options, template), int(options.get("unit_id") or template.serial.unit_id))
    wanted = _Address(
        replace(now.place, baud_rate=int(options.get("new_baud_rate") or now.place.baud_rate)),
        int(options.get("new_unit_id") or now.unit_id),
    )
    settings = template.settings
    changes = _changes(settings.unit_id, settings.baud_rate, now, wanted, template.name)
    async with now.place.open(context) as stream:
        bus = now.place.bus(stream, context)
        await _must_answer(bus, now)
        yield {"step": f"unit {now.unit_id} answers at {now}"}
        if wanted.unit_id != now.unit_id and await _answers(bus, wanted.unit_id):
            raise CitygateError(f"unit id {wanted.unit_id} is taken on this line; nothing was changed")
        unit_id = now.unit_id
        for what, setting, value in changes:
            await _write(bus, unit_id, setting, value, what)
            yield {"step": f"{what} {value} written"}
            if setting is settings.unit_id and await _answers(bus, wanted.unit_id):
                unit_id = wanted.unit_id  # takes effect at once
    async for event in _confirm(wanted, restart=settings.restart, context=context):
        yield event
    yield {"done": {**wanted.place.described(), "unit_id": wanted.unit_id}}


class _Address:
    """How a device is reached."""

    def __init__(self, place: Place, unit_id: int) -> None:
        if not 1 <= unit_id <= 255:
            raise CitygateError(f"unit id {unit_id} is outside 1–247 (0 is broadcast)")
        self.place, self.unit_id = place, unit_id

    def __str__(self) -> str:
        its = self.place
        return its.host or f"{its.port}, {its.baud_rate} baud {8}{its.parity}{its.stop_bits}"


def _place(options: Mapping[str, Any], template: ModbusTemplate) -> Place:
    if options.get("host"):
        return Place(host=options["host"], tcp_port=int(options.get("port") or 502))
    if not options.get("port"):
        raise CitygateError("where? give a serial port or a host")
    factory = template.serial
    return Place(
        port=options["port"],
        baud_rate=int(options.get("baud_rate") or factory.baud_rate),
        parity=options.get("parity") or factory.parity,
        stop_bits=factory.stop_bits,
    )


def _changes(
    unit_id: Setting | None, baud_rate: Setting | None, now: _Address, wanted: _Address, template: str
) -> list[tuple[str, Setting, int]]:
    changes = []
    if wanted.unit_id != now.unit_id:
        if unit_id is None:
            raise CitygateError(f"{template} declares no register for its unit id; see its manual")
        if wanted.unit_id > 247:
            raise CitygateError(f"unit id {wanted.unit_id} is outside 1–247")
        changes.append(("unit id", unit_id, wanted.unit_id))
    if wanted.place.baud_rate != now.place.baud_rate:
        if baud_rate is None:
            raise CitygateError(f"{template} declares no register for its baud rate; see its manual")
        if baud_rate.codes and wanted.place.baud_rate not in baud_rate.codes:
            raise CitygateError(
                f"{wanted.place.baud_rate} baud: {template} knows {', '.join(map(str, baud_rate.codes))}"
            )
        changes.append(("baud rate", baud_rate, wanted.place.baud_rate))
    for _, setting, value in changes:
        _registers(setting, value)  # what does not fit is found before anything is written
    if not changes:
        raise CitygateError("nothing to change: give another unit id or baud rate")
    return changes


def _registers(setting: Setting, value: int) -> bytes:
    if setting.type == "float32":
        return struct.pack(">f", value)
    code = setting.codes.get(value, value)
    if setting.type == "uint16" and code > 0xFFFF:
        raise CitygateError(f"{value} does not fit the register {setting.address}; nothing was changed")
    return struct.pack(">I" if setting.type == "uint32" else ">H", code)


async def _write(bus: Bus, unit_id: int, setting: Setting, value: int, what: str) -> None:
    data = _registers(setting, value)
    ask = write_request(unit_id, "holding", setting.address, data, multiple=setting.multiple)
    try:
        await bus.exchange(ask, timeout_s=IDENTIFY_TIMEOUT_S)
    except NoAnswer:
        return  # some answer with the new address or speed already; the confirmation decides
    except DeviceException as refusal:
        raise CitygateError(f"the device refuses the {what}: {refusal}") from refusal
    except FrameError:
        return


async def _must_answer(bus: Bus, address: _Address) -> None:
    if not await _answers(bus, address.unit_id):
        raise CitygateError(
            f"unit {address.unit_id} does not answer at {address}: power, A and B, and is it the factory speed?"
            " `citygate scan modbus` finds it"
        )


async def _answers(bus: Bus, unit_id: int) -> bool:
    for _ in range(2):
        try:
            await bus.exchange(read_request(unit_id, "holding", 0, 1), timeout_s=IDENTIFY_TIMEOUT_S)
        except DeviceException as answer:
            return answer.code not in (10, 11)
        except (NoAnswer, FrameError):
            continue
        return True
    return False


async def _confirm(wanted: _Address, *, restart: bool, context: Context) -> AsyncIterator[dict[str, Any]]:
    """Read back where the device should be now; it may need to be switched off and on."""
    deadline_s = context.monotonic_s() + RESTART_WITHIN_S
    asked = False
    while True:
        async with wanted.place.open(context) as stream:
            if await _answers(wanted.place.bus(stream, context), wanted.unit_id):
                yield {"step": f"unit {wanted.unit_id} answers at {wanted}"}
                return
        context.progress()
        if context.monotonic_s() >= deadline_s:
            raise CitygateError(
                f"written, but unit {wanted.unit_id} does not answer at {wanted}; it may be at its old address or speed:"
                " `citygate scan modbus` finds it"
            )
        if not asked:
            asked = True
            yield {
                "wait": "switch the device off and on again" + ("" if restart else ", if it does not show up by itself")
            }
        await context.sleep(ASK_EVERY_S)
