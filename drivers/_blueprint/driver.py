"""Driver `blueprint`: copy this folder, rename it, and change what the comments name. Kept green by the conformance suite."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from drivers._blueprint.codec import decode, framer
from drivers._blueprint.config import TH2Config, TH2Template
from gateway.sdk.driver import SDK_VERSION, Context
from gateway.sdk.errors import FrameError
from gateway.sdk.reading import Reading, ReadingSet, Reason, no_values
from gateway.sdk.template import Template

SILENT_S = 60.0  # the node speaks every 10 s; after six missed frames it counts as silent


class BlueprintDriver:
    """See `gateway.sdk.driver.Driver` for what each part is."""

    name = "blueprint"  # as in `driver:` of the operator's file, and as the entry point
    sdk_version = SDK_VERSION
    config_model = TH2Config
    template_model = TH2Template

    @property
    def templates(self) -> Traversable:
        return files("drivers._blueprint") / "templates"

    async def run(self, config: TH2Config, context: Context) -> None:
        """Read the receiver of one link until cancelled; `PortClosed` asks for a restart."""
        [(device, its)] = config.devices.items()
        points = tuple(its.template.points)
        frames = framer()
        async with context.open_serial(config.port, config.baud_rate) as port:
            while True:
                data = await port.read_within(SILENT_S)
                context.progress()  # a quiet wire is no fault; a loop that does not turn is
                if not data:
                    await context.emit(no_values(device, points, Reason.TIMEOUT, observed_at=context.now()))
                received_at = context.now() - timedelta(seconds=port.age_s)  # they may have waited for us
                for frame in frames.feed(data):
                    try:
                        readings = decode(frame, received_at=received_at)
                    except FrameError as error:
                        context.reject(error)  # noise is normal: counted, reported sparingly
                        frames.give_back()
                        continue
                    await context.emit(ReadingSet(device, readings))

    def decode(self, template: Template, frame: bytes, context: Mapping[str, Any]) -> tuple[Reading, ...]:
        """Readings of one captured frame; the door of `citygate decode` and of the templates' samples."""
        return decode(frame, received_at=context.get("received_at") or datetime.now(UTC))


DRIVER = BlueprintDriver()
