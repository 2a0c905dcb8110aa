"""The requests of one unit: merged where the device takes it, in parts where it does not, merged again when it does.

A device may answer a merged request that covers a hole in its map in any way: with an exception, with silence, with a
short reply, by closing the connection. Whatever it was, the parts are tried before the points are given up. What is
learned so stays true only for a while: a fault of the device looks the same. So each cut is tried merged again, after
pauses that grow while the cut proves right, and a cut that brought nothing is undone at once.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from drivers.modbus.codec.blocks import Block
from drivers.modbus.codec.frames import Ask, read_request
from gateway.sdk.reading import Reason

FIRST_PAUSE_S, MAX_PAUSE_S = 10.0, 3600.0


@dataclass(slots=True, eq=False)
class Piece:
    """One request, and what is known of it.

    Attributes:
        parts: what it was cut into, once it was.
        parted: its parts are asked, not itself.
        pause_s, again_s: when parted: when to try it merged again (monotonic). When not: not to be parted before; a
            single field that stays silent is not asked before.
        reason: why it brought nothing when last asked.
    """

    block: Block
    ask: Ask
    parts: tuple["Piece", ...] = ()
    parted: bool = False
    pause_s: float = 0.0
    again_s: float = 0.0
    reason: Reason = Reason.NONE

    @property
    def single(self) -> bool:
        return len(self.block.fields) == 1

    def leaves(self) -> Iterator["Piece"]:
        """What is asked instead of this piece: itself, or its parts' leaves."""
        if not self.parted:
            yield self
            return
        for part in self.parts:
            yield from part.leaves()

    def wait(self, now_s: float, *, still: bool = False) -> None:
        """The next pause: twice the last one, but short again after a long time without trouble.

        Args:
            still: what was known before has just been found true again, however long ago it was looked at.
        """
        calm = not still and now_s - self.again_s > 4 * self.pause_s
        self.pause_s = FIRST_PAUSE_S if calm else min(MAX_PAUSE_S, max(FIRST_PAUSE_S, 2 * self.pause_s))
        self.again_s = now_s + self.pause_s


class Pieces:
    """All requests of one unit. Polls and one-shot reads share it: whoever cuts a piece first, the other finds it cut.

    Attributes:
        leaves: the requests of a poll; those that brought nothing last time come last, so that one that stays silent
            costs the others nothing.
        calm: nothing is cut and nothing failed, there is nothing to look after.
    """

    def __init__(self, unit_id: int, blocks: Iterable[Block]) -> None:
        self._unit_id = unit_id
        self._roots = tuple(self._piece(block) for block in blocks)
        self._probes = random.randrange(
            1 << 16
        )  # a restart must not always begin with the one field that is not answered
        self.calm = True
        self.leaves: Sequence[Piece] = self._roots

    def _piece(self, block: Block) -> Piece:
        return Piece(block, read_request(self._unit_id, block.table, block.address, block.count))

    def probe(self) -> Piece | None:
        """One field by itself, another one each time, to see whether anybody is there; None when there is only one."""
        fields = [field for piece in self.leaves for field in piece.block.fields]
        if len(fields) < 2:
            return None
        field = fields[self._probes % len(fields)]
        self._probes += 1
        return self._piece(Block(field.table, field.address, field.encoding.words, (field,)))

    def part(self, piece: Piece, now_s: float) -> tuple[Piece, ...]:
        """What to ask instead of a piece that brought nothing; () when it cannot be cut, or not yet again."""
        if piece.parted:
            return tuple(piece.leaves())  # another read has found it out while this one waited
        if piece.single or piece.again_s > now_s:
            return ()
        piece.parts = piece.parts or tuple(self._piece(block) for block in piece.block.split())
        piece.parted = True
        piece.wait(now_s)
        self.calm = False
        self._list()
        return piece.parts

    def settle(self, worked: Iterable[Piece], failed: Iterable[Piece], now_s: float) -> None:
        """Take in what one poll has shown: cuts under which nothing works are undone.

        Args:
            worked, failed: pieces that were asked.
        """
        good, bad = set(worked), set(failed)
        for root in self._roots:
            self._undo(root, good, bad, now_s)
        self._list()
        self.calm = not any(piece.parted or piece.reason for root in self._roots for piece in (root, *root.leaves()))

    def _undo(self, piece: Piece, good: set[Piece], bad: set[Piece], now_s: float) -> bool:
        """Whether anything in this piece works, or may."""
        if not piece.parted:
            return piece in good or piece not in bad
        work = [self._undo(part, good, bad, now_s) for part in piece.parts]
        if any(work):
            return True
        piece.parted = False
        piece.wait(now_s)  # parted in vain: not again for a while
        return False

    def due(self, now_s: float) -> Piece | None:
        """A cut that is to be tried merged again, the widest first."""
        if self.calm:
            return None
        waiting, found = list(self._roots), list[Piece]()
        while waiting:
            piece = waiting.pop()
            if piece.parted:
                waiting += piece.parts
                if piece.again_s <= now_s:
                    found.append(piece)
        return max(found, key=lambda piece: len(piece.block.fields), default=None)

    def tried(self, piece: Piece, now_s: float, *, worked: bool) -> None:
        """A cut was asked merged again."""
        if not worked:
            piece.wait(now_s, still=True)
            return
        piece.parted, piece.again_s, piece.reason = False, now_s, Reason.NONE
        self._list()

    def _list(self) -> None:
        leaves = [leaf for root in self._roots for leaf in root.leaves()]
        self.leaves = sorted(leaves, key=lambda leaf: bool(leaf.reason))
