"""A Modbus slave that misbehaves in every way we know, and the truth about what it meant to say.

Every answer holds numbers that exist once, so a value that belongs to another request, unit or register is seen.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.modbus_slave import Request, rtu, tcp, words

Pieces = list[tuple[float, bytes]]
POINT_WORDS = 4  # a point is one uint64


@dataclass(slots=True)
class HostileSlave:
    """All units of one line.

    Attributes:
        truth: (unit, table function, address) -> what the last request for it should have brought.
        late_s: (least, most) delay of an answer that comes too late.
        did: how often each kind of misbehaviour was played.
    """

    seed: int
    framing: str = "rtu"
    late_s: tuple[float, float] = (0.31, 0.85)
    truth: dict[tuple[int, int, int], int] = field(default_factory=dict)
    did: dict[str, int] = field(default_factory=dict)
    good_share: float = 0.35
    _random: random.Random = field(init=False)
    _count: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def answer(self, request: Request) -> Pieces:
        """What comes back, and when."""
        self._count += 1
        pdu = self._good(request)
        name = "good" if self._random.random() < self.good_share else self._random.choice(sorted(self._tricks()))
        self.did[name] = self.did.get(name, 0) + 1
        return self._tricks()[name](request, pdu)

    def _good(self, request: Request) -> bytes:
        if request.function in (1, 2):
            bits = self._random.getrandbits(request.count)
            for offset in range(request.count):
                self.truth[request.unit, request.function, request.address + offset] = bits >> offset & 1
            size = (request.count + 7) // 8
            return bytes((request.function, size)) + bits.to_bytes(size, "little")
        registers: list[int] = []
        for place in range(0, request.count, POINT_WORDS):
            unique = self._count * 1_000_000 + request.unit * 10_000 + request.address + place
            self.truth[request.unit, request.function, request.address + place] = unique
            registers += [unique >> shift & 0xFFFF for shift in (48, 32, 16, 0)]
        return words(request.function, registers[: request.count])

    def _frame(self, request: Request, pdu: bytes, *, unit: int | None = None, number: int | None = None) -> bytes:
        unit = request.unit if unit is None else unit
        if self.framing == "tcp":
            return tcp(request.number if number is None else number, unit, pdu)
        return rtu(unit, pdu)

    def _tricks(self) -> dict[str, Callable[[Request, bytes], Pieces]]:
        shared = {
            "good": lambda r, pdu: [(0.01, self._frame(r, pdu))],
            "late": lambda r, pdu: [(self._random.uniform(*self.late_s), self._frame(r, pdu))],
            "silent": lambda r, pdu: [],
            "wrong function": lambda r, pdu: [(0.01, self._frame(r, bytes((pdu[0] ^ 7,)) + pdu[1:]))],
            "shorter": lambda r, pdu: [(0.01, self._frame(r, bytes((pdu[0], pdu[1] - 1)) + pdu[2:-1]))],
            "longer": lambda r, pdu: [(0.01, self._frame(r, bytes((pdu[0], pdu[1] + 2)) + pdu[2:] + b"\7\7"))],
            "wrong count": lambda r, pdu: [(0.01, self._frame(r, bytes((pdu[0], pdu[1] ^ 2)) + pdu[2:]))],
            "exception": lambda r, pdu: [
                (0.01, self._frame(r, bytes((pdu[0] | 0x80, self._random.choice((1, 2, 3, 4, 5, 6, 8, 10, 11))))))
            ],
            "other exception": lambda r, pdu: [(0.01, self._frame(r, bytes((0x80 | (pdu[0] ^ 7), 2))))],
            "cut": lambda r, pdu: [(0.01, self._frame(r, pdu)[: self._random.randrange(1, 6)])],
            "empty": lambda r, pdu: [(0.01, self._frame(r, pdu[:1]))],
        }
        return shared | (self._tcp_tricks() if self.framing == "tcp" else self._rtu_tricks())

    def _rtu_tricks(self) -> dict[str, Callable[[Request, bytes], Pieces]]:
        noise = self._random.randbytes
        return {
            "wrong unit": lambda r, pdu: [(0.01, self._frame(r, pdu, unit=r.unit % 24 + 1))],
            "split": lambda r, pdu: self._split(self._frame(r, pdu)),
            "bad crc": lambda r, pdu: [(0.01, self._flipped(self._frame(r, pdu)))],
            "noise": lambda r, pdu: [(0.01, noise(self._random.randrange(1, 60)))],
            "noise before": lambda r, pdu: [(0.005, noise(5)), (0.01, self._frame(r, pdu))],
            "noise after": lambda r, pdu: [(0.01, self._frame(r, pdu) + noise(3))],
            "much noise": lambda r, pdu: [(0.002 * n, noise(90)) for n in range(20)],
            "echo": lambda r, pdu: [(0.004, rtu(r.unit, r.pdu)), (0.012, self._frame(r, pdu))],
            "only echo": lambda r, pdu: [(0.004, rtu(r.unit, r.pdu))],
            "twice": lambda r, pdu: [(0.01, self._frame(r, pdu)), (0.0105, self._frame(r, pdu))],
        }

    def segment(self) -> int:
        """Bytes that the next read of a TCP stream brings: it may be cut anywhere, but never out of order."""
        return self._random.choice((1, 3, 7, 11, 1000))

    def _tcp_tricks(self) -> dict[str, Callable[[Request, bytes], Pieces]]:
        def other(request: Request) -> int:
            return (request.number - self._random.randrange(1, 30000)) % 65536  # never one still to come

        return {
            "other number": lambda r, pdu: [(0.01, self._frame(r, pdu, number=other(r)))],
            "other number first": lambda r, pdu: [
                (0.005, self._frame(r, words(pdu[0], [7] * ((len(pdu) - 2) // 2)), number=other(r))),
                (0.01, self._frame(r, pdu)),
            ],
            "twice": lambda r, pdu: [(0.01, self._frame(r, pdu)), (0.011, self._frame(r, pdu))],
            "very late": lambda r, pdu: [(self._random.uniform(1, 20), self._frame(r, pdu))],
        }

    def _split(self, frame: bytes) -> Pieces:
        return [(0.01 + 0.002 * place, frame[place : place + 1]) for place in range(len(frame))]

    def _flipped(self, frame: bytes) -> bytes:
        damaged = bytearray(frame)
        damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
        return bytes(damaged)
