"""How entities share requests: sizes, the first write, suspects, and when a broker that fails inside is searched for a culprit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gateway.forward.batches import SEARCH_AFTER, Batches, json_bytes
from gateway.forward.broker import BatchRefused, InDoubt, Outcome, Traffic
from gateway.harmonise.entity import Entity
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.scene import measured

MANY = [measured(f"air-{n}", no2=n) for n in range(12)]
IDS = [entity.id for entity in MANY]


class Wire:
    """A broker behind batches: answers each request by status, as who is in it wants."""

    def __init__(self, *, entities: int = 4, size_bytes: int = 10_000, learned: int = 0) -> None:
        self.traffic = Traffic(batch=learned)
        self.batches = Batches(self.traffic, entities=entities, size_bytes=size_bytes)
        self.batches.greeted = True
        self.status: dict[str, int] = {}  # of whoever has it, all in the request get the worst
        self.broker = 200
        self.seconds = 0.1
        self.sent: list[list[int]] = []

    async def send(self, part: Sequence[Entity]) -> Outcome:
        self.sent.append([IDS.index(entity.id) for entity in part])
        status = max([self.broker, *(self.status.get(entity.id, 200) for entity in part)])
        if status == 0:
            self.batches.unanswered(len(part))
            raise BrokerUnavailable("no answer")
        self.batches.answered(len(part), status, self.seconds)
        if status == 500 and self.batches.blame_for_500():
            raise BatchRefused("500 inside", permanent=False)
        if status in (400, 413):
            raise BatchRefused(str(status), permanent=status == 400)
        if status >= 500:
            raise (InDoubt if status == 503 else BrokerUnavailable)(f"{status} inside")
        return Outcome(accepted=frozenset(entity.id for entity in part))

    async def __call__(self, *numbers: int, size: int = 10) -> tuple[Outcome, list[list[int]]]:
        """Send these; what became of them, and who shared a request."""
        self.sent.clear()
        outcome = await self.batches.send_all([(MANY[n], b"x" * size) for n in numbers], self.send)
        return outcome, list(self.sent)


def ids(*numbers: int) -> set[str]:
    return {IDS[n] for n in numbers}


async def test_batches_are_cut_by_count_and_by_bytes_and_the_size_is_told() -> None:
    wire = Wire()
    outcome, sent = await wire(*range(10))
    assert sent == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]  # the next smaller size of the ladder
    assert outcome.accepted == ids(*range(10))
    assert wire.traffic.batch == 2
    wire = Wire(entities=10, size_bytes=2 + 3 * 11)
    assert (await wire(*range(7)))[1] == [[0, 1, 2], [3, 4, 5], [6]]
    assert (await wire(0, 1, size=100))[1] == [[0], [1]]
    assert (await wire(0, 1, 2, size=11))[1] == [[0, 1], [2]]
    assert (await wire())[1] == []
    assert (await Wire(entities=10, size_bytes=1 + 3 * 11)(*range(3)))[1] == [[0, 1], [2]]


async def test_a_request_begins_with_what_was_learned_before() -> None:
    assert (await Wire(entities=10, learned=5)(*range(7)))[1] == [[0, 1, 2, 3, 4], [5, 6]]
    assert (await Wire(entities=5)(*range(7)))[1] == [[0, 1, 2, 3, 4], [5, 6]]


async def test_each_context_has_requests_of_its_own() -> None:
    wire = Wire(entities=5)
    other = {n: replace(MANY[n], context="https://example.org/context.jsonld") for n in (1, 3)}
    encoded = [(other.get(n, MANY[n]), b"x") for n in range(5)]
    await wire.batches.send_all(encoded, wire.send)
    assert wire.sent == [[0, 2, 4], [1, 3]]


async def test_the_first_write_goes_alone_once() -> None:
    wire = Wire(entities=5)
    wire.batches = Batches(wire.traffic, entities=5, size_bytes=10_000)
    assert (await wire(*range(7)))[1] == [[0], [1, 2, 3, 4, 5], [6]]
    assert (await wire(3))[1] == [[3]]
    assert (await wire())[1] == []
    wire.batches.greeted = True
    assert (await wire(0, 1))[1] == [[0, 1]]


@pytest.mark.parametrize(("status", "refused"), [(400, True), (413, False)])
async def test_who_spoils_a_request_goes_alone_until_it_is_accepted(status: int, refused: bool) -> None:
    wire = Wire(entities=5)
    wire.status = {IDS[1]: status}
    outcome, sent = await wire(0, 1, 2, 3)
    assert sent[0] == [0, 1, 2, 3]
    assert outcome.accepted == ids(0, 2, 3)
    assert (outcome.refused if refused else outcome.later).keys() == ids(1)
    for _ in range(2):
        outcome, sent = await wire(0, 1, 2, 3)
        assert sent[-1] == [1]
        assert sorted(n for part in sent[:-1] for n in part) == [0, 2, 3]
        assert outcome.accepted == ids(0, 2, 3)
    wire.status = {}
    await wire(1)
    wire.batches.greeted = True
    assert [1] not in (await wire(0, 1))[1]


async def test_one_that_spoils_a_request_does_not_free_another() -> None:
    wire = Wire(entities=5)
    wire.status = {IDS[1]: 400}
    await wire(0, 1, 3)
    wire.status[IDS[2]] = 400
    await wire(0, 2, 3)
    assert (await wire(0, 1, 2, 3))[1] == [[0, 3], [1], [2]]


async def test_the_first_write_of_two_goes_alone_too() -> None:
    wire = Wire(entities=5)
    wire.batches = Batches(wire.traffic, entities=5, size_bytes=10_000)
    assert (await wire(0, 1))[1] == [[0], [1]]


async def test_one_of_two_that_spoils_their_request_goes_alone_too() -> None:
    wire = Wire(entities=5)
    wire.status = {IDS[1]: 400}
    await wire(0, 1)
    assert (await wire(0, 1))[1] == [[0], [1]]


async def test_who_is_named_by_an_answer_spoils_nothing() -> None:
    wire = Wire(entities=5)
    for verdict in (Outcome(refused={IDS[1]: "no"}), Outcome(later={IDS[1]: "no"})):

        async def named(part: Sequence[Entity], verdict: Outcome = verdict) -> Outcome:
            done = await wire.send(part)
            return replace(verdict, accepted=done.accepted - ids(1))

        for _ in range(2):
            wire.sent.clear()
            outcome = await wire.batches.send_all([(MANY[n], b"x") for n in range(3)], named)
            assert wire.sent == [[0, 1, 2]]
            assert outcome.accepted == ids(0, 2)


async def test_who_waits_because_the_broker_failed_in_the_search_is_no_suspect() -> None:
    wire = Wire(entities=5)
    wire.status = {IDS[0]: 400, IDS[3]: 503}
    outcome, _ = await wire(0, 1, 2, 3)
    assert outcome.fault is not None
    wire.status = {}
    assert (await wire(0, 1, 2, 3))[1] == [[0, 1, 2, 3]]


async def test_one_that_was_sent_alone_is_no_suspect() -> None:
    wire = Wire(entities=5)
    wire.status = {IDS[1]: 400}
    await wire(1)
    wire.status = {}
    assert (await wire(0, 1))[1] == [[0, 1]]


async def test_a_broker_that_fails_ends_it_and_what_was_not_sent_is_in_no_doubt() -> None:
    wire = Wire(entities=2)
    wire.status = {IDS[2]: 503}
    outcome, sent = await wire(*range(6))
    assert sent == [[0, 1], [2, 3]]
    assert outcome.accepted == ids(0, 1)
    assert outcome.later == dict.fromkeys(ids(2, 3, 4, 5), "503 inside")
    assert outcome.doubtful == ids(2, 3)
    assert outcome.fault is not None
    assert str(outcome.fault) == "503 inside"


async def test_a_refusal_for_size_an_answer_that_does_not_come_and_a_slow_one_make_requests_smaller() -> None:
    for status, seconds in ((413, 0.1), (0, 0.1), (200, 6.0)):
        wire = Wire(entities=5)
        assert len((await wire(*range(5)))[1]) == 1
        if status:
            wire.batches.answered(5, status, seconds)
        else:
            wire.batches.unanswered(5)
        assert (await wire(*range(5)))[1] == [[0, 1], [2, 3], [4]]
    Wire().batches.unanswered(5)  # nothing was sent yet


@pytest.mark.parametrize("status", [300, 400, 409])
async def test_what_is_refused_says_nothing_of_the_size(status: int) -> None:
    wire = Wire(entities=5)
    await wire(*range(12))  # two full ones
    for _ in range(8):
        wire.batches.answered(5, status, 0.1)
    assert (await wire(*range(5)))[1] == [list(range(5))]
    for _ in range(4):
        wire.batches.answered(5, 299, 0.1)
    assert len((await wire(*range(5)))[1]) > 1  # a smaller one is on trial
    assert wire.traffic.batch == 5


def test_an_answer_before_the_first_batch_is_no_reason_to_fail() -> None:
    Wire().batches.answered(1, 200, 0.1)


async def test_a_500_is_the_brokers_until_it_repeats_and_then_the_culprit_is_found() -> None:
    wire = Wire(entities=5)
    wire.status = {IDS[2]: 500}
    for _ in range(SEARCH_AFTER - 1):
        outcome, sent = await wire(0, 1, 2, 3)
        assert (len(sent), str(outcome.fault)) == (1, "500 inside")
    outcome, sent = await wire(0, 1, 2, 3)
    assert outcome.fault is None
    assert outcome.accepted == ids(0, 1, 3)
    assert outcome.later == {IDS[2]: "500 inside"}
    assert sent[-1] == [2]  # asked once more: the broker may have come back in the middle
    for _ in range(6):  # known by now, it is no reason to search
        outcome, sent = await wire(0, 1, 2, 3)
        assert (outcome.fault, sent[-1]) == (None, [2])
        assert all(2 not in part for part in sent[:-1])
        assert outcome.later.keys() == ids(2)
    wire.status = {IDS[0]: 500}
    for n in range(SEARCH_AFTER):
        outcome, _ = await wire(0, 1, 3)
        assert (outcome.fault is None) is (n == SEARCH_AFTER - 1)
    assert outcome.later.keys() == ids(0)


async def test_a_broker_that_comes_back_in_the_middle_of_the_search_has_no_culprit() -> None:
    wire = Wire(entities=5)
    wire.broker = 500
    for _ in range(SEARCH_AFTER - 1):
        await wire(0, 1, 2, 3)
    answers = iter([500, 500, 500, 200, 200, 200, 200, 200])

    async def send(part: Sequence[Entity]) -> Outcome:
        wire.broker = next(answers)
        return await wire.send(part)

    outcome = await wire.batches.send_all([(MANY[n], b"x") for n in range(4)], send)
    assert outcome.accepted == ids(0, 1, 2, 3)
    assert (outcome.later, outcome.refused, outcome.fault) == ({}, {}, None)
    wire.broker = 200
    wire.sent.clear()
    assert (await wire(0, 1, 2, 3))[1] == [[0, 1, 2, 3]]  # nobody is suspected


async def after_two(wire: Wire, statuses: Sequence[int]) -> tuple[Outcome, list[list[int]]]:
    """The broker failed inside twice; then it answers so."""
    wire.broker = 500
    for _ in range(SEARCH_AFTER - 1):
        await wire(0, 1, 2, 3)
    answers = iter(statuses)

    async def send(part: Sequence[Entity]) -> Outcome:
        wire.broker = next(answers)
        return await wire.send(part)

    wire.sent.clear()
    outcome = await wire.batches.send_all([(MANY[n], b"x") for n in range(4)], send)
    return outcome, list(wire.sent)


async def test_a_search_asks_nothing_more_when_nobody_failed_again_or_the_broker_went_away() -> None:
    outcome, sent = await after_two(Wire(entities=5), [500, 200, 200])
    assert outcome.accepted == ids(0, 1, 2, 3)
    assert sent == [[0, 1, 2, 3], [0, 1], [2, 3]]
    outcome, sent = await after_two(Wire(entities=5), [500, 200, 503])
    assert sent == [[0, 1, 2, 3], [0, 1], [2, 3]]
    assert outcome.accepted == ids(0, 1)
    assert outcome.later.keys() == ids(2, 3)
    assert outcome.fault is not None


async def test_a_search_that_finds_somebody_refused_is_no_failure_of_the_broker() -> None:
    outcome, _ = await after_two(Wire(entities=5), [500, 500, 500, 400, 500, 500, 500])
    assert outcome.fault is None
    assert outcome.refused.keys() == ids(1)
    assert outcome.later.keys() == ids(0, 2, 3)


async def test_after_a_search_it_is_counted_from_the_beginning() -> None:
    wire = Wire(entities=5)
    wire.status = {IDS[2]: 500}
    for _ in range(SEARCH_AFTER):
        await wire(0, 1, 2, 3)
    wire.status[IDS[0]] = 500
    faults = [(await wire(0, 1))[0].fault is not None for _ in range(SEARCH_AFTER)]
    assert faults == [True, True, False]


async def test_when_all_parts_fail_it_is_the_broker_and_the_next_search_waits_for_longer() -> None:
    wire = Wire(entities=15)
    wire.broker = 500
    searches = []
    for n in range(1, 26):
        outcome, sent = await wire(*range(12))
        assert str(outcome.fault) == "500 inside"
        assert outcome.later.keys() == ids(*range(12))
        if len(sent) > 1:
            searches.append(n)
    assert searches == [3, 6, 12, 24]
    wire.broker = 200
    await wire(0, 1)
    wire.status = {IDS[1]: 500}
    outcomes = [(await wire(0, 1))[0] for _ in range(SEARCH_AFTER)]
    assert [outcome.fault is None for outcome in outcomes] == [False, False, True]
    assert outcomes[-1].accepted == ids(0)


async def test_any_other_answer_shows_that_the_broker_does_not_fail_inside() -> None:
    wire = Wire(entities=5)
    for _ in range(3):
        wire.broker = 500
        for _ in range(SEARCH_AFTER - 1):
            assert len((await wire(0, 1))[1]) == 1
        wire.broker = 400
        await wire(0)
        wire.broker = 503
        await wire(0)
        wire.broker = 200


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\0b", b'"ab"'),
        (["\0", {"k": "\0x"}, ("y\0",)], b'["",{"k":"x"},["y"]]'),
        ({"k": 1, "l": None}, b'{"k":1,"l":null}'),
        ("a\\u0000b", b'"a\\\\u0000b"'),
    ],
)
def test_nul_never_goes_out(value: Any, expected: bytes) -> None:
    assert json_bytes({"v": value}) == b'{"v":' + expected + b"}"


async def test_a_size_that_failed_is_not_used_for_the_rest() -> None:
    wire = Wire(entities=5)
    wire.seconds = 6.0
    assert (await wire(*range(12)))[1] == [[0, 1, 2, 3, 4], [5, 6], [7], [8], [9], [10], [11]]
    assert wire.traffic.batch == 1


async def test_what_each_context_has_to_send_is_its_own() -> None:
    wire = Wire(entities=5)
    wire.seconds = 6.0
    other = {n: replace(MANY[n], context="https://example.org/context.jsonld") for n in (3, 4)}
    await wire.batches.send_all([(other.get(n, MANY[n]), b"x") for n in range(5)], wire.send)
    assert wire.sent == [[0, 1, 2], [3, 4]]
    await wire.batches.send_all([(other.get(n, MANY[n]), b"x") for n in range(5)], wire.send)
    assert wire.sent[2:] == [[0], [1], [2], [3], [4]]


async def test_who_goes_alone_for_being_suspect_says_nothing_of_the_size() -> None:
    wire = Wire(entities=2)
    wire.status = {IDS[1]: 413}
    await wire(0, 1, 2)
    learned = wire.traffic.batch
    for _ in range(10):
        await wire(1)
    assert wire.traffic.batch == learned
