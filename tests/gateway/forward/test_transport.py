"""HTTP to a broker, for a dialect that is not ours: its reader says who spoke, the rest is the transport's."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from gateway.forward.answer import Answer, Problem, read_answer
from gateway.forward.auth import Way
from gateway.forward.broker import InDoubt, LoginFailed, NotOffered
from gateway.forward.transport import Transport, fault_of
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.raw import Raw, as_json, http

DATE = b"Date: Mon, 01 Jun 2026 12:00:00 GMT\r\n"


def read(status: int, headers: Mapping[str, str], body: bytes, *, now: datetime) -> Answer:
    """A dialect whose broker names its errors in a field of its own, and speaks so even when it takes something."""
    answer = read_answer(status, headers, body, now=now)
    said = answer.json.get("mine") if isinstance(answer.json, dict) else None
    return replace(answer, problem=Problem(said, None, said)) if said else answer


async def asked(raw: Raw, **more: Any) -> tuple[Answer, Transport]:
    async with raw.serve() as url:
        transport = Transport(url, Way(), read=read, **more)
        answer = await transport.request("POST", "/op/update", query={"a": "b"}, body=b"{}")
        await transport.close()
    return answer, transport


async def test_another_dialect_brings_its_reader_and_its_headers() -> None:
    raw = Raw(as_json(422, {"mine": "BadThing"}))
    answer, transport = await asked(raw, headers={"Fiware-Service": "milano"})

    assert answer.reason == "422 BadThing"
    assert raw.requests == ["POST /op/update?a=b"]
    assert transport.traffic.requests == 1
    assert transport.traffic.sent_bytes > len("Fiware-Service: milano")
    assert transport.traffic.received_bytes > len(answer.body)


@pytest.mark.parametrize(("document", "offers"), [({"mine": "Taken"}, 1), ({"somebody": "else"}, 0)])
async def test_the_time_is_taken_from_who_the_dialect_says_is_the_broker(document: Any, offers: int) -> None:
    offered: list[datetime] = []

    def offer(at: datetime, within_s: float) -> None:
        offered.append(at)

    await asked(Raw(as_json(200, document, headers=DATE)), offer_time=offer)

    assert len(offered) == offers


@pytest.mark.parametrize(
    ("status", "body", "faults"),
    [
        (200, b'{"mine": "Taken"}', 0),
        (404, b'{"mine": "NotThere"}', 0),
        (405, b"", 0),
        (500, b'{"mine": "InternalError"}', 1),
        (503, b"", 1),
        (503, b'{"mine": "LdContextNotAvailable"}', 0),
        (502, b"<html>", 1),
        (404, b"<html>no such service here", 1),
    ],
)
async def test_a_broker_that_may_be_another_process_by_now_is_a_fault_counted(
    status: int, body: bytes, faults: int
) -> None:
    _, transport = await asked(Raw(http(status, body)))
    assert transport.traffic.faults == faults


async def test_who_does_not_answer_is_a_fault_counted() -> None:
    raw = Raw(b"")
    async with raw.serve() as url:
        transport = Transport(url, Way(), read=read)
        with pytest.raises(BrokerUnavailable):
            await transport.request("GET", "/entities")
    assert transport.traffic.faults == 1
    with pytest.raises(BrokerUnavailable):  # nobody listens any more
        await transport.request("GET", "/entities")
    assert transport.traffic.faults == 2
    await transport.close()


@pytest.mark.parametrize(
    ("status", "body", "wrote", "kind"),
    [
        (401, b"", True, LoginFailed),
        (302, b"", True, BrokerUnavailable),
        (503, b"", True, InDoubt),
        (503, b"", False, BrokerUnavailable),
        (503, b'{"mine": "Busy"}', True, BrokerUnavailable),
        (404, b"", True, NotOffered),
        (408, b"", True, InDoubt),
        (200, b"<html/>", True, InDoubt),
        (429, b"", True, BrokerUnavailable),
    ],
)
async def test_what_blames_no_entity_says_what_to_do(status: int, body: bytes, wrote: bool, kind: type) -> None:
    answer, _ = await asked(Raw(http(status, body, kind="application/json")))

    assert type(fault_of(answer, wrote=wrote)) is kind


async def test_a_session_whose_closing_was_cut_short_is_not_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks within a time may be cancelled while the connections of a failed request are closed."""
    way = Way()
    session, closing = way.session, asyncio.Event()
    close = session.close

    async def slow() -> None:
        await close()
        closing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(session, "close", slow)
    renewing = asyncio.create_task(way.renew())
    await closing.wait()
    renewing.cancel()
    await asyncio.wait({renewing})
    assert session.closed
    assert not way.session.closed
    await way.close()
