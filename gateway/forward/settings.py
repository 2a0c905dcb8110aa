"""How to forward to one broker."""

from dataclasses import dataclass

from gateway.config.model import BrokerConfig
from gateway.forward.aside import GATHER_S
from gateway.forward.greetings import city_of


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """How to forward to one broker.

    Attributes:
        linger_s: wait so long for more, so that one request carries many.
        history: `auto` asks the broker.
        rate_per_s: most readings a second; None: what the broker takes.
        records: whether a broker with a temporal API records by itself what becomes current; None = look.
        records_within_s: how long that takes at most, at one that does not forget.
        product: what the operator says that the broker is, "" for nothing.
        look_s: the history is looked at for what was accepted at most so often.
        look_updates, look_within_s: as soon as so many updates of an entity wait, or one for so long.
        unseen_s, unseen_points: what waits for longer, or is more, waits no longer.
        learn_s: so long a broker must be there, and show nothing, until it is taken for one that does not record.
        gather_s: what is refused is gathered so long before it is written to the card.
        held_every_s: how often held pieces are looked at.
        probe_again_s: what somebody on the way may have said is asked again after this, then less and less often.
        unsure_s: so long a temporal API must be missed until that is believed, when the broker does not say so itself.
        retry_quick_s: while an outage is young, tries are at most this far apart.
        retry_cap_s: later on, at most this far.
        city: which broker and tenant it is: what was noted of another one does not hold.
    """

    linger_s: float = 1.0
    history: str = "auto"
    rate_per_s: float | None = None
    records: bool | None = None
    records_within_s: float = 10.0
    product: str = ""
    look_s: float = 5.0
    look_updates: int = 20
    look_within_s: float = 3600.0
    unseen_s: float = 7200.0
    unseen_points: int = 50_000
    learn_s: float = 600.0
    gather_s: float = GATHER_S
    held_every_s: float = 1.0
    probe_again_s: float = 10.0
    unsure_s: float = 60.0
    retry_first_s: float = 0.5
    retry_quick_s: float = 5.0
    retry_quick_for_s: float = 300.0
    retry_cap_s: float = 60.0
    max_readings: int = 5000
    city: str = ""


def settings_of(config: BrokerConfig) -> ForwardSettings:
    """How to forward to the broker of one entry of the operator's file."""
    product = "" if config.preset == "auto" else config.preset
    return ForwardSettings(
        linger_s=config.linger_s,
        history=config.history,
        rate_per_s=config.rate_per_s,
        product=product,
        city=city_of(config.url, config.tenant),
    )
