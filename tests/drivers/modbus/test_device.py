"""One unit at work."""

from datetime import timedelta

from drivers.modbus.device import Unit
from gateway.sdk.reading import Reading, Reason
from gateway.sdk.testing import NOON
from tests.support.modbus_config import link, template


def test_a_read_beside_the_polls_confirms_no_count() -> None:
    """It may come a millisecond after the poll, while the meter still says 0."""
    meter = template(n={"address": 0, "rollover": 65536})
    device = link({"one": {"template": meter, "unit_id": 1}}).devices["one"]
    unit = Unit("one", device, timeout_s=1, start_s=0, grid_s=0, saved={})

    def reading(value: int, at_s: float) -> tuple[Reading]:
        return (Reading("n", value, NOON + timedelta(seconds=at_s)),)

    for at_s, value in enumerate([65400, 65410, 0]):
        polled = unit.finished(reading(value, at_s))
    saved = unit.state()
    shown = [unit.shown(reading(0, 2.001))[0] for _ in range(5)]

    assert polled[0].reason is Reason.OUT_OF_RANGE
    assert shown[0].value is not None or shown[0].reason is Reason.OUT_OF_RANGE
    assert unit.state() == saved
    assert unit.finished(reading(65420, 3))[0].value == 65420
