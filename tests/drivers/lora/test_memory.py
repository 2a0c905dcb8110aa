"""What a link remembers of a device: packed small, unpacked the same, and never mistaken about a new uplink."""

from collections import deque
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from drivers.lora.codec.uplink import Uplink, key_of
from drivers.lora.memory import KEYS, MAX_GAP, SAVED_KEYS, Memory, unpack
from gateway.sdk.testing import NOON

ADDRESSES = st.sampled_from(["", "00bcb929", "49be7df1"])


def uplink(n: int, address: str = "49be7df1", *, key: int | None = None, late_s: float = 0) -> Uplink:
    return Uplink(
        key_of(address, n if key is None else key), dev_addr=address, f_cnt=n, time=NOON + timedelta(seconds=n - late_s)
    )


@given(
    st.integers(-1, 2**50), st.none() | st.integers(0, 2**32 - 1), ADDRESSES,
    st.lists(st.binary(min_size=8, max_size=8), max_size=40),
)  # fmt: skip
def test_what_is_packed_is_unpacked_and_small(last_us: int, f_cnt: int | None, address: str, keys: list[bytes]) -> None:
    memory = Memory(last_us, f_cnt, address, deque(keys, maxlen=KEYS))
    packed = memory.pack()
    again = unpack(packed)
    assert len(packed) <= 64
    assert (again.last_us, again.f_cnt, again.dev_addr) == (last_us, f_cnt, address)
    assert list(again.keys) == keys[-SAVED_KEYS:] if keys else not again.keys


@given(st.binary(max_size=80))
def test_any_bytes_are_a_memory_or_an_empty_one(state: bytes) -> None:
    unpack(state)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=60, unique=True))
def test_redelivered_uplinks_are_known_and_new_ones_are_not(numbers: list[int]) -> None:
    memory = Memory()
    for n in sorted(numbers):
        assert not memory.known(uplink(n), redelivered=False)
        memory.remember(uplink(n))
    saved = unpack(memory.pack())
    assert all(saved.known(uplink(n), redelivered=True) for n in numbers)
    assert not saved.known(uplink(501), redelivered=True)


def test_a_device_that_starts_its_counter_again_is_not_taken_for_a_repeat() -> None:
    memory = Memory()
    memory.remember(uplink(100))
    again = Uplink(key_of("x"), dev_addr="49be7df1", f_cnt=0, time=NOON + timedelta(seconds=200))
    assert not memory.known(again, redelivered=False)
    assert not memory.known(again, redelivered=True), "its time has gone on"


def test_what_is_sent_again_of_another_session_is_not_had_by_the_counter_of_this_one() -> None:
    memory = Memory()
    memory.remember(uplink(100))
    assert memory.known(uplink(50), redelivered=True)
    assert not memory.known(uplink(50, "00bcb929"), redelivered=True)
    assert not memory.known(uplink(50), redelivered=False)


def test_gaps_are_counted_within_a_session_only() -> None:
    memory = Memory()
    assert memory.lost_before(uplink(5)) is None
    memory.remember(uplink(5))
    assert memory.lost_before(uplink(6)) == 0
    assert memory.lost_before(uplink(9)) == 3
    assert memory.lost_before(uplink(2)) is None
    assert memory.lost_before(uplink(9, "00bcb929")) is None


def test_a_leap_of_the_counter_is_no_loss_and_the_next_uplink_counts_again() -> None:
    memory = Memory()
    memory.remember(uplink(5))
    assert memory.lost_before(uplink(5 + MAX_GAP)) == MAX_GAP - 1
    assert memory.lost_before(uplink(2**32 - 1)) is None
    memory.remember(Uplink(key_of("forged"), dev_addr="49be7df1", f_cnt=2**32 - 1, time=NOON.replace(year=9999)))
    assert memory.lost_before(uplink(6)) is None
    assert not memory.known(uplink(6), redelivered=False)
    memory.remember(uplink(6))
    assert memory.lost_before(uplink(8)) == 1
    anew = Uplink(key_of("anew"), dev_addr="49be7df1", f_cnt=0, time=NOON + timedelta(seconds=200))
    assert not unpack(memory.pack()).known(anew, redelivered=True), "one time in the future did not stand for good"


def test_a_retained_uplink_is_new_only_when_it_is_newer_than_what_was_had() -> None:
    memory = Memory()
    assert not memory.known(uplink(5), redelivered=False, retained=True)
    for n in range(5, 50):
        memory.remember(uplink(n))
    saved = unpack(memory.pack())
    assert saved.known(uplink(5), redelivered=False, retained=True)
    assert saved.known(uplink(49), redelivered=False, retained=True)
    assert not saved.known(uplink(50), redelivered=False, retained=True)
