"""Answers of brokers and of who stands before them, tokens, times that are read back."""

import json
from datetime import UTC, datetime
from typing import Any

from gateway.backoff import retry_after_s
from gateway.forward.answer import http_date, per_entity, read_answer, wire_moment
from gateway.forward.auth import Grant, OAuth2
from gateway.forward.ngsild import points_of
from gateway.sdk.errors import BrokerUnavailable, FrameError
from tests.fuzz.runner import Parser, mutate_bytes, mutate_json

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
IDS = [f"urn:ngsi-ld:AirQualityObserved:milano:gw:air-{n}" for n in range(3)]
PROBLEM = {
    "type": "https://uri.etsi.org/ngsi-ld/errors/BadRequestData", "title": "bad", "detail": "no2", "status": 400,
}  # fmt: skip
HEADERS = {
    "Content-Type": "application/json",
    "Date": "Mon, 01 Jun 2026 12:00:00 GMT",
    "Retry-After": "5",
    "Server": "x",
}
BODIES: tuple[Any, ...] = (
    {"success": IDS[1:], "errors": [{"entityId": IDS[0], "error": PROBLEM}]},
    {"success": [], "errors": [{"id": None, "ProblemDetails": PROBLEM}]},
    {"success": IDS, "error": []},
    PROBLEM,
    IDS,
    {"message": "no Route matched with those values"},
    [{"id": IDS[0], "type": "T", "no2": [{"type": "Property", "value": 1, "observedAt": "2026-06-01T12:00:00Z", "datasetId": "urn:d"}]}],
)  # fmt: skip
STATUSES = (200, 201, 204, 207, 400, 404, 409, 422, 500, 503)


def _loads(case: bytes) -> Any:
    try:
        return json.loads(case)
    except (ValueError, RecursionError):
        return None


def _answer(case: bytes) -> object:
    """`{"status", "headers", "body"}`; what is no such thing is a body by itself."""
    given = _loads(case)
    given = given if isinstance(given, dict) else {}
    status, headers = given.get("status"), given.get("headers")
    body = json.dumps(given["body"]).encode() if "body" in given else case
    answer = read_answer(
        status if isinstance(status, int) else STATUSES[len(case) % len(STATUSES)],
        {k: v for k, v in headers.items() if isinstance(v, str)} if isinstance(headers, dict) else {},
        body,
        now=NOW,
    )
    json.dumps([answer.reason, answer.location, answer.server]).encode()
    assert answer.reason.isprintable(), answer.reason
    assert answer.retry_after_s is None or 0 <= answer.retry_after_s <= 3600
    if answer.is_entities:
        return [list(points_of(item)) for item in answer.json]
    if answer.result is None:
        return answer.by_broker
    outcome, unclear = per_entity(IDS, answer.result)
    sorted_ids = [*outcome.accepted, *outcome.refused, *outcome.later, *unclear]
    assert sorted(sorted_ids) == IDS, sorted_ids
    return outcome


def _token(case: bytes) -> object:
    login = OAuth2(Grant("http://idm.example/token", "gw", "secret"))
    login._take(400 if b'error": "' in case else 200, case, 0.0)
    return login._token


def _header(case: bytes) -> object:
    text = case.decode("utf-8", "surrogateescape")
    seconds, at, moment = retry_after_s(text, NOW), http_date(text), wire_moment(text)
    assert seconds is None or 0 <= seconds <= 3600
    assert all(found is None or found.tzinfo is UTC for found in (at, moment))
    return seconds


PARSERS = {
    "broker answer": Parser(
        tuple(json.dumps({"status": 207, "headers": HEADERS, "body": body}).encode() for body in BODIES),
        _answer,
        (FrameError,),
        mutate_json,
    ),
    "broker token": Parser(
        (b'{"access_token": "abc", "expires_in": 3600}', b'{"access_token": "d", "expires_in": "60", "error": null}'),
        _token,
        (BrokerUnavailable,),
        mutate_json,
    ),
    "broker header": Parser(
        (b"Mon, 01 Jun 2026 12:00:00 GMT", b"120", b"2026-06-01T12:00:00.123Z"), _header, (FrameError,), mutate_bytes
    ),
}
