"""Devices that are heard but not configured: the newest word of each, and whom to forget of too many."""

from drivers.lora.codec.uplink import Uplink
from drivers.lora.heard import MAX_STRANGERS, Heard


def uplink(n: int) -> Uplink:
    return Uplink(n.to_bytes(8, "big"), f_cnt=n)


def test_each_is_counted_and_shown_by_its_latest_uplink_the_loudest_first() -> None:
    heard = Heard()
    assert heard.summary() == ""
    for n, who in enumerate("abbab"):
        heard.add(who, uplink(n))

    assert [(its.identity, its.count, its.uplink.f_cnt) for its in heard.strangers()] == [("b", 3, 4), ("a", 2, 3)]
    assert heard.summary() == "heard but not configured: b (3x), a (2x)"
    for n in range(5):
        heard.add(f"x{n}", uplink(n))
    assert heard.summary().endswith("x2 (1x) and 2 more")


def test_of_too_many_the_one_that_was_silent_longest_is_forgotten_and_not_the_one_heard_first() -> None:
    heard = Heard()
    for n in range(MAX_STRANGERS):
        heard.add(f"d{n}", uplink(n))
    heard.add("d0", uplink(1000))
    heard.add("new", uplink(1001))

    known = {its.identity for its in heard.strangers()}
    assert len(known) == MAX_STRANGERS
    assert {"d0", "new"} <= known
    assert "d1" not in known
    heard.add("d1", uplink(1002))
    assert next(its for its in heard.strangers() if its.identity == "d1").count == 1
