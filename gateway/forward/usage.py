"""What outlives a restart of one broker's forwarder: bytes of this month, what was learned of it, how far and how it was sent to."""

from collections.abc import Mapping
from typing import Protocol

from gateway.forward.broker import Traffic
from gateway.forward.recording import Recording
from gateway.sdk.driver import Clock
from gateway.sdk.reading import ReadingSet

NOTE_EVERY_S = 3600.0


class Kept(Protocol):
    """Where the log keeps it."""

    def driver_state(self, device: str) -> Mapping[str, bytes]: ...
    async def append(self, readings: ReadingSet) -> object: ...


class Usage:
    """Counts the bytes of a broker by month, and keeps what was learned of it.

    Args:
        city: which broker and tenant goes by the name now.

    Attributes:
        sent_upto: up to here all was sent, as an earlier run noted.
    """

    def __init__(
        self,
        name: str,
        traffic: Traffic,
        log: Kept,
        clock: Clock,
        recording: Recording | None = None,
        *,
        city: str = "",
    ) -> None:
        self._place = f"broker {name}"  # in the log; no device is called so, names have no space
        self._traffic = traffic
        self._log = log
        self._clock = clock
        self._recording = recording or Recording()
        self._city = city
        self.sent_upto = 0
        self._records = ""
        self._of_another: dict[str, bytes] = {}  # takes back what was noted
        self._month = "", 0
        self._counted_bytes = 0
        self._noted: dict[str, bytes] = {}
        self._due_s = clock.monotonic_s() + NOTE_EVERY_S

    @property
    def due(self) -> bool:
        """Whether it was not noted for long, or something was learned that is not learned soon again."""
        learned = self._recording.by_itself is not None and self._recording.shown != self._records
        return learned or self._clock.monotonic_s() >= self._due_s

    def recall(self) -> str:
        """Take up what an earlier run noted; returns its way of sending, "" when none was."""
        kept = {key: text.decode("ascii", "replace") for key, text in self._log.driver_state(self._place).items()}
        month, _, count = kept.get("month", "").partition(" ")
        self._month = month, int(count) if count.isdigit() else 0
        self._counted_bytes = 0
        if kept.get("city", self._city) != self._city:
            kept, self._of_another = {}, {"mode": b"", "records": b"", "sent": b""}  # all but the bytes
        batch = kept.get("batch", "")
        self._traffic.batch = int(batch) if batch.isdigit() else 0
        sent = kept.get("sent", "")
        self.sent_upto = int(sent) if sent.isdigit() else 0
        self._records = kept.get("records", "")
        self._recording.recall(self._records)
        return kept.get("mode", "")

    async def note(self, mode: str, sent_upto: int = 0) -> None:
        """Keep it, if it changed; without a way of sending the one noted before stands, and so for how far was sent.

        Raises:
            LogError: the log refuses.
        """
        self._due_s = self._clock.monotonic_s() + NOTE_EVERY_S
        count = self.month_bytes()
        state = {"month": f"{self._month[0]} {count}".encode(), "batch": str(self._traffic.batch).encode()}
        state |= self._of_another
        if self._city:
            state["city"] = self._city.encode()
        if mode:
            state["mode"] = mode.encode()
        if sent_upto:
            state["sent"] = str(sent_upto).encode()
        if self._recording.by_itself is not None:
            self._records = self._recording.shown
            state["records"] = self._records.encode()
        if state != self._noted:
            await self._log.append(ReadingSet(self._place, (), state))
            self._noted = state

    def month_bytes(self) -> int:
        """Both ways in this calendar month (UTC)."""
        total = self._traffic.sent_bytes + self._traffic.received_bytes
        month = self._clock.now().strftime("%Y-%m")
        count = self._month[1] if self._month[0] == month else 0
        self._month = month, count + total - self._counted_bytes
        self._counted_bytes = total
        return self._month[1]
