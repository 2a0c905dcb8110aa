"""The rules of a device's points, as its link makes them of the template."""

import pytest

from gateway.intake import rules_of
from gateway.sdk.config import DeviceConfig
from gateway.sdk.template import Template


def test_a_gas_in_ppb_keeps_the_plausible_range_of_its_quantity() -> None:
    points = {"no2": {"quantity": "no2", "unit": "61"}, "t": {"quantity": "air_temperature", "unit": "FAH"}}
    template = Template.model_validate({"vendor": "Acme", "model": "Gas", "points": points})
    config = DeviceConfig.model_construct(template=template, report={}, calibrate={}, entity=None, location=None)
    rules = rules_of(config.template, config.report)
    assert (rules["no2"].low, rules["no2"].high) == pytest.approx((0.0, 26150), rel=1e-3)
    assert (rules["t"].low, rules["t"].high) == pytest.approx((-76.0, 185.0))
