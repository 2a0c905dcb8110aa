"""How history is to be sent: asked by reads alone, and asked again when that may have changed."""

from typing import Literal

from gateway.forward.broker import Broker, Probe
from gateway.forward.settings import ForwardSettings
from gateway.sdk.driver import Clock
from gateway.sdk.errors import BrokerUnavailable

Mode = Literal["temporal", "in-order", "latest-only"]
PROBE_CAP_S = 3600.0
FORBIDDEN = "its history may not be read ({}), so it is sent in order, and what is late is not: allow GET /temporal/entities, or set history: of this broker"


def mode_of(wanted: str, probe: Probe) -> Mode:
    """The mode that the operator wants, or that fits what the broker can do."""
    if wanted == "auto":
        return "temporal" if probe.temporal else "in-order"
    if wanted == "temporal" and probe.temporal is False:
        raise BrokerUnavailable("history: temporal is asked for, but the broker offers no temporal API to read")
    return "in-order" if wanted == "in-order" else "latest-only" if wanted == "latest-only" else "temporal"


class Probing:
    """What a probe settled may change: a broker is replaced, an ingress had no route yet.

    Attributes:
        wanted: another mode than the one in use, which is to be taken up between two stretches of the log.
        product: as the broker named itself when it was last asked.
        warning: what status must say of it, "" for nothing.
    """

    def __init__(self, broker: Broker, clock: Clock, settings: ForwardSettings) -> None:
        self._broker = broker
        self._clock = clock
        self._settings = settings
        self.wanted: Mode | None = None
        self.product = ""
        self.warning = ""
        self._at_s: float | None = None  # when it is asked again
        self._asked_s = 0.0
        self._wait_s = settings.probe_again_s
        self._unsure_since_s: float | None = None

    @property
    def due(self) -> bool:
        """Whether the broker is to be asked again."""
        return self._at_s is not None and self._clock.monotonic_s() >= self._at_s

    def later(self, probe: Probe | None) -> None:
        """A broker's own word stands until the next outage; anything else is asked for again."""
        if probe is not None:
            self.product = probe.product
            self.warning = (
                FORBIDDEN.format(probe.forbidden) if probe.forbidden and self._settings.history == "auto" else ""
            )
        if self._settings.history != "auto" or (probe is not None and probe.sure):
            self._at_s, self._wait_s = None, self._settings.probe_again_s
            return
        self._at_s = self._clock.monotonic_s() + self._wait_s
        self._wait_s = min(2 * self._wait_s, PROBE_CAP_S)

    def soon(self) -> None:
        """After an outage, or when the way of sending is refused as such."""
        if self._settings.history == "auto":
            self._at_s = self._asked_s + 5 * self._settings.held_every_s
            self._wait_s = self._settings.probe_again_s

    async def again(self, mode: Mode) -> None:
        """Ask once more. What cannot be told changes nothing: the lanes will notice whether the broker is there.

        Args:
            mode: the one in use.
        """
        self._asked_s = now_s = self._clock.monotonic_s()
        try:
            probe = await self._broker.probe()
        except BrokerUnavailable:
            self.later(None)
            return
        found = mode if probe.temporal is None else mode_of("auto", probe)
        if found == mode:
            self.wanted = self._unsure_since_s = None
        elif probe.sure:
            self.wanted, self._unsure_since_s = found, None
        else:
            since_s = self._unsure_since_s = now_s if self._unsure_since_s is None else self._unsure_since_s
            self.wanted = found if now_s - since_s >= self._settings.unsure_s else None
            self._wait_s = min(self._settings.probe_again_s, self._settings.unsure_s / 4)
        self.later(probe)
