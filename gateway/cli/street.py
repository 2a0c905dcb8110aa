"""What a street's sensors would say: usual values by quantity, in its canonical unit, for demo and simulation. Pure."""

import math
from collections.abc import Callable, Mapping

STEPS = 60  # values of one slow wave
GOLDEN_ANGLE = 2.399963  # does not repeat

# Middle and swing of what simply swings.
USUAL: Mapping[str, tuple[float, float]] = {
    "frequency": (50.0, 0.03),
    "air_temperature": (16.5, 2.5),
    "temperature": (16.5, 2.5),
    "internal_temperature": (28.0, 4.0),
    "humidity": (57.0, 9.0),
    "atmospheric_pressure": (1013.0, 4.0),
    "pm1": (6.0, 3.0),
    "pm25": (11.0, 5.0),
    "pm4": (14.0, 6.0),
    "pm10": (19.0, 8.0),
    "co2": (480.0, 60.0),
    "no2": (24.0, 12.0),
    "o3": (48.0, 20.0),
    "noise_level": (58.0, 8.0),
    "illuminance": (9000.0, 3000.0),
    "wind_speed": (2.4, 1.6),
    "soil_moisture": (27.0, 3.0),
    "battery_voltage": (3.6, 0.03),
}


def wave(n: int, pace: int) -> float:
    """The nth value of a slow wave with some noise, within -1 and 1."""
    return 0.94 * math.sin(2 * math.pi * n * pace / (5 * STEPS)) + 0.06 * math.sin(n * GOLDEN_ANGLE + pace)


def value(quantity: str, pace: int, n: int) -> float | None:
    """The nth value of this quantity in its canonical unit, None when we do not know what is usual.

    Args:
        pace: 1 to 5, of the device; its values fit each other (power = voltage × current × power factor).
    """
    if quantity in USUAL:
        middle, swing = USUAL[quantity]
        return middle + swing * wave(n, pace)
    electric = ELECTRIC.get(quantity)
    return None if electric is None else electric(pace, n)


def _voltage(pace: int, n: int) -> float:
    return 230.0 + 2.0 * wave(n + 17, pace)


def _current(pace: int, n: int) -> float:
    return 2.8 + 1.3 * wave(n, pace + 1)


def _factor(pace: int, n: int) -> float:
    return 0.93 + 0.04 * wave(n + 31, pace)


def _apparent(pace: int, n: int) -> float:
    return _voltage(pace, n) * _current(pace, n)


def _active(pace: int, n: int) -> float:
    return _apparent(pace, n) * _factor(pace, n)


def _reactive(pace: int, n: int) -> float:
    return math.sqrt(_apparent(pace, n) ** 2 - _active(pace, n) ** 2)


def _counter(start: float, step: float) -> Callable[[int, int], float]:
    """A meter's register: it only grows."""
    return lambda pace, n: start * pace + step * n


ELECTRIC: Mapping[str, Callable[[int, int], float]] = {
    "voltage": _voltage,
    "current": _current,
    "power_factor": _factor,
    "apparent_power": _apparent,
    "active_power": _active,
    "reactive_power": _reactive,
    "active_energy": _counter(1204.5, 0.0011),
    "active_energy_import": _counter(1190.3, 0.0010),
    "active_energy_export": _counter(14.2, 0.0001),
    "reactive_energy": _counter(411.9, 0.0004),
    "reactive_energy_import": _counter(402.6, 0.0003),
    "reactive_energy_export": _counter(9.3, 0.0001),
}
