"""The box's clock: who is believed, what `now` is while nobody is, and that it never runs before the floor."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest

from gateway.clock import BUILT_AT, Box, BoxClock, Source, SystemClock, synchronised, this_box

TODAY = BUILT_AT + timedelta(days=100)
S = 10**9


def ns(at: datetime) -> int:
    return int((at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * S


@dataclass
class FakeBox:
    wall: datetime = TODAY
    boot_s: int = 100
    synchronised: bool = False
    rtc: datetime | None = None
    asked: list[str] = field(default_factory=list)

    def clock(self, trust: Literal["auto", "system"] = "auto") -> SystemClock:
        return SystemClock(
            trust,
            Box(
                boot_id=lambda: "boot-1",
                wall_ns=lambda: ns(self.wall),
                boot_ns=lambda: self.boot_s * S,
                synchronised=lambda: self.synchronised,
                rtc_s=lambda: None if self.rtc is None else ns(self.rtc) // S,
            ),
        )

    def advance(self, seconds: int) -> None:
        self.wall += timedelta(seconds=seconds)
        self.boot_s += seconds


def test_a_plausible_time_without_a_source_is_not_trusted() -> None:
    clock = FakeBox().clock()
    assert clock.now() == TODAY
    assert clock.trust.source is Source.NONE
    assert not clock.trust.trusted
    assert clock.status()["remedy"]


def test_system_takes_the_systems_word() -> None:
    clock = FakeBox(wall=datetime(1970, 1, 1, tzinfo=UTC)).clock("system")
    assert clock.trust.source is Source.SYSTEM
    assert clock.now() == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_1970_boot_starts_at_the_floor_and_goes_on_from_there() -> None:
    box = FakeBox(wall=datetime(1970, 1, 1, tzinfo=UTC))
    clock = box.clock()
    assert clock.now() == BUILT_AT
    clock.raise_floor(TODAY)
    box.advance(30)
    assert clock.now() == TODAY + timedelta(seconds=30)
    assert clock.trust.source is Source.FLOOR
    clock.raise_floor(BUILT_AT)  # an older one changes nothing
    assert clock.now() == TODAY + timedelta(seconds=30)


def test_kernel_synchronisation_is_noticed_and_outlives_the_network() -> None:
    box = FakeBox(wall=datetime(1970, 1, 1, tzinfo=UTC))
    clock = box.clock()
    box.wall, box.synchronised = TODAY, True
    assert not clock.trust.trusted  # asked a moment ago
    box.advance(6)
    assert clock.trust.source is Source.KERNEL
    assert clock.trust.since == TODAY + timedelta(seconds=6)
    box.synchronised = False
    box.advance(86400)
    assert clock.trust.source is Source.KERNEL


def test_a_synchronised_kernel_before_the_floor_is_not_believed() -> None:
    clock = FakeBox(wall=datetime(2001, 1, 1, tzinfo=UTC), synchronised=True).clock()
    assert not clock.trust.trusted


@pytest.mark.parametrize(("rtc", "source"), [(TODAY, Source.RTC), (datetime(1970, 1, 2, tzinfo=UTC), Source.NONE)])
def test_a_hardware_clock_counts_when_it_survived_the_power_cut(rtc: datetime, source: Source) -> None:
    assert FakeBox(rtc=rtc).clock().trust.source is source


def test_an_offer_that_agrees_confirms_and_does_not_move_the_time() -> None:
    clock = FakeBox().clock()
    assert clock.offer(TODAY + timedelta(seconds=1), 1.0, Source.BROKER)
    assert clock.trust.source is Source.BROKER
    assert clock.now() == TODAY


def test_an_offer_that_disagrees_moves_the_time_which_then_follows_boot_time() -> None:
    box = FakeBox()
    clock = box.clock()
    true = TODAY + timedelta(days=3)
    assert clock.offer(true, 0.1, Source.GNSS)
    box.boot_s += 60
    box.wall -= timedelta(days=9)  # somebody sets the system's clock: ours no longer asks it
    assert clock.now() == true + timedelta(seconds=60)
    assert clock.status()["correction_s"] > 0


def test_lower_ranks_vague_and_impossible_offers_are_not_listened_to() -> None:
    clock = FakeBox().clock()
    assert clock.offer(TODAY, 0.1, Source.GNSS)
    assert not clock.offer(TODAY + timedelta(days=1), 1.0, Source.BROKER)
    assert not clock.offer(TODAY, 60.0, Source.GNSS)
    assert not clock.offer(BUILT_AT - timedelta(days=1), 0.1, Source.GNSS)
    assert not clock.offer(TODAY + timedelta(days=1), 0.1, Source.SYSTEM)
    assert clock.now() == TODAY


def test_the_real_clock_has_whole_milliseconds_and_answers_the_protocol() -> None:
    clock = SystemClock("system", this_box())
    assert isinstance(clock, BoxClock)
    assert clock.now().microsecond % 1000 == 0
    assert clock.now().tzinfo is UTC
    assert clock.monotonic_s() > 0
    assert synchronised() in (True, False)
    assert len(clock.boot_id) == 36
