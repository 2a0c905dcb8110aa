"""The operator's side of a serial link, and what a template adds to say how a serial device talks."""

from typing import Annotated, Literal

from pydantic import Field

from gateway.sdk.config import BaudRate, DeviceConfig, Duration, LinkConfig, SerialPort
from gateway.sdk.template import Template


class SerialTemplate(Template):
    """A device that talks by itself on its own serial line."""

    codec: Literal["sds011"] = Field(description="frame format")
    baud_rate: BaudRate = Field(description="factory setting")
    period_s: Annotated[Duration, Field(gt=0)] = Field(alias="period", description="one frame comes in this time")


class SerialDevice(DeviceConfig):
    """The one device on the line; it has no address."""


class SerialLink(LinkConfig):
    """A point-to-point serial line: exactly one device."""

    driver: Literal["serial"] = Field(description="serial: an instrument on its own serial line")
    port: SerialPort = Field(description="path of the port; /dev/serial/by-id/… stays the same after a replug")
    baud_rate: BaudRate | None = Field(None, description="default: the template's")
    devices: dict[str, SerialDevice] = Field(
        min_length=1, max_length=1, description="exactly one device; a line with several is a bus: driver modbus"
    )
