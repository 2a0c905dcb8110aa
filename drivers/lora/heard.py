"""Devices that are heard but not configured: bounded, with a guess which template fits."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from drivers.lora.codec.payload import Received, decode_layout
from drivers.lora.codec.uplink import Uplink
from drivers.lora.config import LoraTemplate
from drivers.lora.layout import LayoutCodec
from gateway.sdk.errors import FrameError

MAX_STRANGERS = 512
_SOME_TIME = Received(datetime(2020, 1, 1, tzinfo=UTC))


@dataclass(slots=True)
class Stranger:
    """One device heard but not configured.

    Attributes:
        identity: DevEUI, or DevAddr where that is all the air tells.
        uplink: the latest.
    """

    identity: str
    count: int
    uplink: Uplink


class Heard:
    """The strangers of a link; of too many the one silent longest is forgotten."""

    def __init__(self) -> None:
        self._strangers: OrderedDict[str, Stranger] = OrderedDict()

    def add(self, identity: str, uplink: Uplink) -> None:
        """Count one more uplink of a stranger."""
        stranger = self._strangers.pop(identity, None) or Stranger(identity, 0, uplink)
        stranger.count += 1
        stranger.uplink = uplink
        self._strangers[identity] = stranger
        if len(self._strangers) > MAX_STRANGERS:
            self._strangers.popitem(last=False)

    def strangers(self) -> list[Stranger]:
        """All of them, the loudest speaker first."""
        return sorted(self._strangers.values(), key=lambda stranger: -stranger.count)

    def summary(self) -> str:
        """One line for status; "" when there is none."""
        strangers = self.strangers()
        if not strangers:
            return ""
        shown = ", ".join(f"{s.identity} ({s.count}x)" for s in strangers[:5])
        return f"heard but not configured: {shown}" + (f" and {len(strangers) - 5} more" if len(strangers) > 5 else "")


def finding(stranger: Stranger, templates: Mapping[str, LoraTemplate]) -> dict[str, Any]:
    """What a scan reports of a stranger."""
    uplink = stranger.uplink
    return {
        "identity": stranger.identity,
        "dev_eui": uplink.dev_eui,
        "dev_addr": uplink.dev_addr,
        "count": stranger.count,
        "rssi": uplink.rssi,
        "snr": uplink.snr,
        "spreading_factor": uplink.spreading_factor,
        "f_port": uplink.f_port,
        "payload": uplink.payload.hex(),
        "templates": guess(uplink, templates.values()),
    }


def guess(uplink: Uplink, templates: Iterable[LoraTemplate]) -> list[str]:
    """Templates that may fit, the likeliest first: the maker's part of the DevEUI counts most, then a payload that the
    whole layout reads."""
    scored = ((_score(uplink, template), template.name) for template in templates)
    return [name for score, name in sorted(scored, key=lambda pair: (-pair[0], pair[1])) if score >= 2][:5]


def _score(uplink: Uplink, template: LoraTemplate) -> int:
    prefixes = template.fingerprint.get("dev_eui", ())
    score = 2 if uplink.dev_eui and any(uplink.dev_eui.startswith(str(p).lower()) for p in prefixes) else 0
    if not uplink.payload or not isinstance(template.codec, LayoutCodec):
        return score
    try:
        decoded = decode_layout(template.codec, uplink.payload, uplink.f_port, _SOME_TIME)
    except FrameError:
        return score - 1
    return score + (1 if decoded.problem else 2)
