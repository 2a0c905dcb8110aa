"""What one broker refuses now, by entity: told once when it begins and once when it ends, and shown for as long as it lasts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from gateway.forward.broker import Outcome
from gateway.journal import event
from gateway.log.held import HeldPiece
from gateway.sdk.driver import Clock

Way = Literal["state", "past"]
WRITTEN_WITHIN_S = 60.0  # until then a refused set is among the dead letters of the table
LASTS_S = 20.0  # who was put off once is tried again by itself; put off again after this long, it is shown
REMEDY = "correct the device's entity: or the city's rule (`citygate preview DEVICE` shows what is sent)"
LATER_REMEDY = "see what the broker says; it is offered again by itself"
REQUEUE = "; then `citygate buffer requeue --broker {broker}`, or purge"


@dataclass(slots=True)
class _Refused:
    reason: str
    since: datetime
    remedy: str = REMEDY


class Refusals:
    """Entities that the broker refused when they were last offered.

    Args:
        devices: by entity id, the devices that feed it.
    """

    def __init__(self, broker: str, clock: Clock, devices: Mapping[str, str]) -> None:
        self._broker = broker
        self._clock = clock
        self._devices = devices
        self._now: dict[tuple[str, Way], _Refused] = {}
        self._put_off: dict[str, _Refused] = {}  # as state, not shown yet: the history shows what it holds
        self._accepted: set[str] = set()  # in this run

    def note(self, way: Way, outcome: Outcome) -> None:
        """What became of one request: of the state lane, or of the past."""
        for entity_id, reason in outcome.refused.items():
            self._refused(entity_id, way, _Refused(reason, self._clock.now()))
        if way == "state" and outcome.fault is None:
            self._note_later(outcome.later)
        for entity_id in outcome.accepted if way == "state" else ():
            self._put_off.pop(entity_id, None)
        self._accepted |= outcome.accepted
        if self._now:
            for entity_id in outcome.accepted:
                if self._now.pop((entity_id, way), None) is not None:
                    event("entity_accepted_again", broker=self._broker, entity=entity_id, way=way)

    def _refused(self, entity_id: str, way: Way, refused: _Refused) -> None:
        known = self._now.get((entity_id, way))
        if known is not None:
            known.reason, known.remedy = refused.reason, refused.remedy
            return
        self._now[entity_id, way] = refused
        event("entity_refused", broker=self._broker, entity=entity_id, way=way, reason=refused.reason)

    def _note_later(self, later: Mapping[str, str]) -> None:
        """The broker works but puts these off: again and again is as good as refused."""
        now = self._clock.now()
        for entity_id, said in later.items():
            reason = f"put off: {said}"
            first = self._put_off.setdefault(entity_id, _Refused(reason, now, LATER_REMEDY))
            if (now - first.since).total_seconds() >= LASTS_S:
                self._refused(entity_id, "state", _Refused(reason, first.since, LATER_REMEDY))

    def now(self, dead: Mapping[str, HeldPiece]) -> list[dict[str, Any]]:
        """One row an entity: `{entity, device, reason, since, remedy}`.

        Args:
            dead: the newest dead letter of each entity. One of an earlier run counts until the entity is accepted.
        """
        if not self._now and not dead:
            return []
        at = self._clock.now()
        for (entity_id, way), refused in list(self._now.items()):
            # purged, or requeued: whether it is taken now shows when it is offered again
            if way == "past" and entity_id not in dead and (at - refused.since).total_seconds() > WRITTEN_WITHIN_S:
                del self._now[entity_id, way]
        found = {
            entity_id: _Refused(piece.reason, piece.first_at)
            for entity_id, piece in dead.items()
            if entity_id in self._devices and entity_id not in self._accepted
        }
        found |= {entity_id: refused for (entity_id, _), refused in self._now.items()}
        return [
            {
                "entity": entity_id,
                "device": self._devices.get(entity_id, ""),
                "reason": refused.reason,
                "since": refused.since.isoformat().replace("+00:00", "Z"),
                "remedy": refused.remedy + (REQUEUE.format(broker=self._broker) if entity_id in dead else ""),
            }
            for entity_id, refused in sorted(found.items())
        ]
