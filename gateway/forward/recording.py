"""Whether a broker records by itself what becomes current: told by who it is, else learned, and never finally "no"."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.journal import event

PRODUCTS: Final[Mapping[str, bool]] = {"scorpio": True, "stellio": False}  # that record by themselves: may they forget?
OTHERS: Final = frozenset({"orion-ld", "orion"})  # of whom it is not known


@dataclass(slots=True)
class Recording:
    """Whether a broker records by itself what becomes current.

    Attributes:
        by_itself: None while it is not known.
        why: the product's name, or "seen".
        forgets: what it accepted may be lost before it is in the history.
    """

    by_itself: bool | None = None
    why: str = ""
    forgets: bool = True

    @property
    def verified(self) -> bool:
        """Whether what was sent as state waits until it is seen."""
        return self.by_itself is None or (self.by_itself and self.forgets)

    @property
    def shown(self) -> str:
        """For status."""
        if self.by_itself is None:
            return "not known yet"
        return (f"yes ({self.why})" if self.why else "yes") if self.by_itself else "no"

    def named(self, product: str) -> None:
        """The broker told who it is, or the operator did."""
        if product in PRODUCTS:
            self._set(True, product, forgets=PRODUCTS[product])
        elif product in OTHERS and self.why in PRODUCTS:  # it was replaced
            self._set(None, "", forgets=True)

    def recall(self, shown: str) -> None:
        """What an earlier run learned, as it was shown; a product that is known by now is not asked for it."""
        if self.by_itself is None and shown == "no":
            self.by_itself = False
        elif self.by_itself is None and shown.startswith("yes (") and shown.endswith(")"):
            self.by_itself, self.why = True, shown[5:-1]
            self.forgets = PRODUCTS.get(self.why, True)

    def seen(self) -> None:
        """A point that was sent as state alone stands in the history, or one stands there twice."""
        if not self.by_itself:
            self._set(True, "seen", forgets=True)

    def not_seen(self) -> None:
        """Long enough looked for: it holds for what comes from now on, and until the contrary is seen."""
        self._set(False, "", forgets=True)

    def _set(self, by_itself: bool | None, why: str, *, forgets: bool) -> None:
        changed = (self.by_itself, self.why) != (by_itself, why)
        self.by_itself, self.why, self.forgets = by_itself, why, forgets
        if changed:
            event("history_recorded", by_itself=by_itself, why=why)
