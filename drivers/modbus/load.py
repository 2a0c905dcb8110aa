"""How much of a line's time the polls of its units take, when all goes well. Pure."""

from drivers.modbus.codec.blocks import Block
from drivers.modbus.config import ModbusConfig, ModbusDevice
from drivers.modbus.device import plan_of
from drivers.modbus.transaction import Timing

TURNAROUND_S = 0.01  # a unit's own time before it answers; slow ones take ten times that
REQUEST_BYTES, REPLY_BYTES = 8, 5  # RTU frames of a read: address, function, CRC, and what goes with them


def shares(config: ModbusConfig) -> dict[str, float]:
    """Unit -> part of the line's time that its polls take; 0.2 is a fifth."""
    timing = Timing(character_s=config.character_s, rest_s=config.gap_s)
    return {name: poll_s(config, timing, unit) / unit.every_s for name, unit in config.devices.items()}


def poll_s(config: ModbusConfig, timing: Timing, unit: ModbusDevice) -> float:
    """Time of one poll of a unit: every request, its answer, and the silences around them."""
    rest_s = 2 * timing.gap_s + unit.template.read.gap_s + TURNAROUND_S
    blocks = plan_of(unit.template)
    return sum(_characters(config, block) * timing.character_s + rest_s for block in blocks)


def _characters(config: ModbusConfig, block: Block) -> int:
    data = (block.count + 7) // 8 if block.table in ("coil", "discrete") else 2 * block.count
    frame = REQUEST_BYTES + REPLY_BYTES + data
    # ASCII: two characters for each byte, an LRC of one byte instead of the CRC, colon and line end around it
    return frame if config.wire == "rtu" else 2 * (frame - 2) + 6
