"""What stands in the operator's file for a TH-2 link, and in its template."""

from typing import Literal

from pydantic import Field, SerializeAsAny

from gateway.sdk.config import DeviceConfig, LinkConfig
from gateway.sdk.template import Template


class TH2Template(Template):
    """A device type of this driver; a driver for one device needs nothing beyond the common part."""


class TH2Device(DeviceConfig):
    """The node on the line."""

    template: SerializeAsAny[TH2Template] = Field(description="device type, e.g. acme/th-2")


class TH2Config(LinkConfig):
    """A TH-2 receiver on a serial port: point to point, so there is exactly one device."""

    driver: Literal["blueprint"]
    port: str = Field(description="serial port, best from /dev/serial/by-id")
    baud_rate: int = Field(9600, ge=1200, le=1_000_000)
    devices: dict[str, TH2Device] = Field(min_length=1, max_length=1)
