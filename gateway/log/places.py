"""Places: what lies between a consumer's cursor and the end of what it is owed, and what nobody is owed. Pure."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

END: Final = 1 << 62  # of what a consumer of the config is owed: above every number
Stretch = tuple[int, int]  # after, up to


def stretches(cursors: Mapping[str, int], ends: Mapping[str, int]) -> list[Stretch]:
    """What is owed to somebody, ascending, none touching another.

    Args:
        cursors: consumer -> settled up to.
        ends: what a removed one is owed ends here. Without any other all is owed to whoever comes.
    """
    owed = [(cursor, ends.get(name, END)) for name, cursor in cursors.items()]
    if all(name in ends for name in cursors):
        owed.append((0, END))
    found: list[Stretch] = []
    for after, upto in sorted(owed):
        if after >= upto:
            continue
        if found and after <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], upto)
        else:
            found.append((after, upto))
    return found


def between(owed: Sequence[Stretch]) -> list[Stretch]:
    """What lies between those, owed to nobody."""
    return [(one[1], two[0]) for one, two in pairwise(owed)]
