"""What became of the history, to the last point."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.support.broker_parts import Key


@dataclass(frozen=True, slots=True)
class Verdict:
    """Served against kept, as multisets.

    Attributes:
        missing: points that should be there (as often as they are missing).
        doubled: points that are there more often than they should be (by how much).
        invented: points that nobody served.
    """

    missing: Counter[Key]
    doubled: Counter[Key]
    invented: Counter[Key]

    @property
    def clean(self) -> bool:
        return not (self.missing or self.doubled or self.invented)

    def __str__(self) -> str:
        parts = {"missing": self.missing, "doubled": self.doubled, "invented": self.invented}
        return ", ".join(f"{found.total()} {what}" for what, found in parts.items())


def judge(kept: Mapping[Key, int], served: Iterable[Key]) -> Verdict:
    """Each point that was served should be kept once. Attributes that are in none of them (static, derived) are let be."""
    wanted = Counter(served)
    names = {attribute for _, attribute, _, _ in wanted}
    found = Counter({key: count for key, count in kept.items() if key[1] in names})
    more = found - wanted
    return Verdict(
        missing=wanted - found,
        doubled=Counter({key: count for key, count in more.items() if key in wanted}),
        invented=Counter({key: count for key, count in more.items() if key not in wanted}),
    )
