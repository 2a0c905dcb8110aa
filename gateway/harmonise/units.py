"""One step from a point's value to an attribute's: calibration, unit, direction range and rounding, fixed at load."""

import math
import sys
from dataclasses import dataclass

from gateway.sdk.quantities import REFERENCE_PRESSURE_PA, REFERENCE_TEMPERATURE_K, Quantity, conversion, gas_conversion

_LARGEST = sys.float_info.max
SIGNIFICANT_STEPS = 6  # a converted value keeps steps a million times finer than one of the source


@dataclass(frozen=True, slots=True)
class Step:
    """attribute = point * scale + offset, brought into wrap_from .. wrap_from + 360 if `wrap_from` is given.

    Attributes:
        digits: decimals kept, so that 43 % becomes 0.43 and not 0.43000000000000005; None = as it comes.
        whole: the model wants an integer.
        low, high: what the model allows; a value outside is refused, and so are NaN and infinities.
    """

    scale: float = 1.0
    offset: float = 0.0
    digits: int | None = None
    whole: bool = False
    wrap_from: float | None = None
    low: float = -_LARGEST
    high: float = _LARGEST

    def apply(self, value: float) -> float | int | None:
        """The attribute's value; None when the model does not allow it."""
        if self.scale != 1.0 or self.offset != 0.0:
            value = value * self.scale + self.offset
        if self.wrap_from is not None and not 0 <= value - self.wrap_from <= 360 and math.isfinite(value):
            value = round((value - self.wrap_from) % 360.0 + self.wrap_from, SIGNIFICANT_STEPS)
        if not self.low <= value <= self.high:
            return None
        if self.whole:
            return round(value)
        return value if self.digits is None else round(value, self.digits)

    @property
    def changes(self) -> bool:
        """Whether anything but the bounds is at work."""
        return self != Step(low=self.low, high=self.high)


def convert(
    quantity: Quantity,
    from_code: str,
    to_code: str,
    *,
    gain: float = 1.0,
    shift: float = 0.0,
    temperature_k: float = REFERENCE_TEMPERATURE_K,
    pressure_pa: float = REFERENCE_PRESSURE_PA,
) -> tuple[float, float]:
    """(scale, offset) from a point's raw value, calibrated by gain and shift (in its own unit), to `to_code`.

    Raises:
        ValueError: not convertible; says which dimensions meet.
    """
    if quantity.molar_mass:
        scale, offset = gas_conversion(
            from_code, to_code, quantity.molar_mass, temperature_k=temperature_k, pressure_pa=pressure_pa
        )
    else:
        scale, offset = conversion(from_code, to_code)
    return gain * scale, shift * scale + offset


def decimals(scale: float) -> int:
    """Decimals worth keeping after a conversion by `scale`."""
    return SIGNIFICANT_STEPS + max(0, -math.floor(math.log10(abs(scale)))) if scale else SIGNIFICANT_STEPS
