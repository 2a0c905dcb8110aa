"""A driver that talks to nothing: the shapes that a real one has, for tests of config and plan."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, model_validator

from gateway.registry import DriverUnavailable
from gateway.sdk.config import DeviceConfig, Duration, LinkConfig
from gateway.sdk.driver import SDK_VERSION, Context, Driver
from gateway.sdk.errors import FrameError
from gateway.sdk.reading import Reading
from gateway.sdk.template import Template
from gateway.sdk.testing import NOON

TEMPLATES = Path(__file__).parents[1] / "config" / "templates"


class BenchTemplate(Template):
    """One byte a point, in the order of the points."""

    order: Literal["big", "little"] = Field("big", description="order of the bytes")


class BenchDevice(DeviceConfig):
    """A unit with an address of each kind."""

    unit_id: int | None = Field(None, ge=1, le=247, description="1-247, 0 is broadcast")
    dev_eui: str = Field("", pattern="^([0-9a-fA-F]{16})?$", description="16 hexadecimal digits")
    mac: str = ""
    key: SecretStr | None = Field(None, description="application key")
    every_s: Annotated[Duration, Field(gt=0)] = Field(10.0, alias="every", description="poll period")
    enabled: bool = True


class BenchLink(LinkConfig):
    """A link with port or host."""

    driver: Literal["bench"]
    port: str = Field("", description="path of the port")
    host: str = ""
    baud_rate: int = Field(9600, ge=300, le=115200, description="bits per second")
    devices: dict[str, BenchDevice] = Field(min_length=1, description="the devices by name")

    @model_validator(mode="after")
    def _check(self) -> "BenchLink":
        if self.port and self.host:
            raise ValueError("port and host exclude each other; a serial link has port, a network link has host")
        for name, device in self.devices.items():
            if device.unit_id == 13:
                raise ValueError(f"devices.{name}.unit_id: 13 is taken by the head of the line")
        return self


class BenchDriver:
    """See the module."""

    name = "bench"
    sdk_version = SDK_VERSION
    config_model = BenchLink
    template_model = BenchTemplate
    templates = TEMPLATES

    async def run(self, config: BenchLink, context: Context) -> None:
        raise NotImplementedError("it talks to nothing")

    def decode(self, template: Template, frame: bytes, context: Mapping[str, Any]) -> tuple[Reading, ...]:
        if len(frame) != len(template.points):
            raise FrameError(f"{len(frame)} bytes, expected {len(template.points)}", frame=frame)
        at = context.get("received_at", NOON)
        return tuple(Reading(point, byte, at) for point, byte in zip(template.points, frame, strict=True))

    def shares(self, config: BenchLink) -> Mapping[str, float]:
        """Each poll takes a tenth of a second."""
        return {name: 0.1 / device.every_s for name, device in config.devices.items()}


class BenchRegistry:
    """A registry with the bench driver and one whose package is broken."""

    def driver(self, name: str) -> Driver[Any]:
        if name == "bench":
            return BenchDriver()
        if name == "broken":
            raise DriverUnavailable("driver broken cannot be imported: no module named nowhere", "install nowhere")
        raise DriverUnavailable(f"no driver named {name}", "installed: bench, broken", unknown=True)

    def names(self) -> tuple[str, ...]:
        return ("bench", "broken")
