"""How it stands with one broker, as status shows it. Its state is set here alone."""

from datetime import timedelta

from gateway.forward.broker import LoginFailed, Outcome
from gateway.health import BrokerHealth, BrokerState, set_state
from gateway.sdk.driver import Clock
from gateway.sdk.errors import BrokerUnavailable

REMEDIES = {
    BrokerState.LOGIN: "check auth: of this broker and its clock; a changed secret is read at reload",
    BrokerState.DOWN: "nothing is lost; it is tried again by itself",
    BrokerState.CONFIG_FAULT: "the broker refuses every entity: check tenant, types and the city's rules; one entity is tried again by itself",
}


class Standing:
    """State, next try and counts in the record of one broker."""

    def __init__(self, name: str, record: BrokerHealth, clock: Clock) -> None:
        self._name = name
        self._record = record
        self._clock = clock

    def count(self, outcome: Outcome) -> None:
        """What became of one request."""
        self._record.accepted += len(outcome.accepted)
        self._record.refused += len(outcome.refused)
        if outcome.accepted:
            self._record.last_accepted_at = self._clock.now()

    def works(self, warning: str) -> None:
        """It takes what is sent."""
        self._record.next_try_at = None
        self._set(BrokerState.OK, warning)

    def fails(self, fault: BrokerUnavailable, state: BrokerState | None = None, *, of: str = "") -> None:
        """It does not, for this reason.

        Args:
            state: default: what the fault says.
            of: the part that does not work, when others do.
        """
        state = state or (BrokerState.LOGIN if isinstance(fault, LoginFailed) else BrokerState.DOWN)
        self._set(state, f"{of}{fault}", fault.remedy or REMEDIES[state])

    def try_in(self, wait_s: float) -> None:
        """When it is tried again."""
        self._record.next_try_at = self._clock.now() + timedelta(seconds=wait_s)

    def _set(self, state: BrokerState, reason: str, remedy: str = "") -> None:
        set_state(self._record, self._name, state, reason, remedy, at=self._clock.now())
