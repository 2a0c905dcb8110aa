"""Whatever a broker, or somebody on the way to it, answers: who spoke decides what it may do. Bytes on a socket, every kind of
request against every kind of answer."""

import asyncio
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.forward.answer import per_entity, read_answer
from gateway.forward.auth import Grant, OAuth2, Way
from gateway.forward.broker import InDoubt, LoginFailed, NotOffered, Outcome, ReadRefused
from gateway.forward.ngsild import NgsiLdBroker, NgsiLdSettings
from gateway.sdk.errors import BrokerUnavailable
from tests.gateway.forward.raw import ERRORS, Raw, as_json, http, problem
from tests.gateway.forward.scene import START, entity_id, measured

IDS = [entity_id(f"air-{n}") for n in range(3)]
ENTITIES = [measured(f"air-{n}", no2=n) for n in range(3)]
SHORT = aiohttp.ClientTimeout(total=1.5, sock_connect=1.0, sock_read=1.0)
HTML = b"<html><head><title>Bad</title></head><body>nginx</body></html>"
DEEP = b"[" * 100_000

PROXIES: dict[str, bytes] = {
    "html 400": http(400, HTML, kind="text/html"),
    "html 400 that says it is JSON": http(400, HTML, kind="application/json"),
    "html 403 of a firewall": http(403, HTML, kind="text/html"),
    "html 404": http(404, HTML, kind="text/html", headers=b"Server: nginx/1.22\r\n"),
    "html 405": http(405, HTML, kind="text/html"),
    "html 406": http(406, HTML, kind="text/html"),
    "html 422": http(422, HTML, kind="text/html"),
    "html 429": http(429, HTML, kind="text/html"),
    "html 500": http(500, HTML, kind="text/html"),
    "html 501": http(501, HTML, kind="text/html"),
    "html 502": http(502, HTML, kind="text/html"),
    "html 504": http(504, HTML, kind="text/html"),
    "html 200": http(200, HTML, kind="text/html"),
    "html 200 without a type": http(200, HTML),
    "html 201": http(201, HTML, kind="text/html"),
    "html 207": http(207, HTML, kind="text/html"),
    "text 400": http(400, b"Bad Request", kind="text/plain"),
    "text 404": http(404, b"404 page not found\n", kind="text/plain; charset=utf-8"),  # Traefik
    "text 503": http(503, b"upstream connect error or disconnect/reset before headers", kind="text/plain"),  # Envoy
    "empty 400": http(400),
    "empty 422": http(422),
    "empty 404": http(404),
    "empty 500": http(500),
    "empty 200": http(200),
    "empty 207": http(207),
    "kong": as_json(404, {"message": "no Route matched with those values"}),
    "kong 400": as_json(400, {"message": "Bad request", "request_id": "1"}),
    "apisix": as_json(404, {"error_msg": "404 Route Not Found"}),
    "apisix 400": as_json(400, {"error_msg": 'property "x" is required'}),
    "aws": as_json(403, {"message": "Missing Authentication Token"}),
    "aws 400": as_json(400, {"message": "Invalid request body"}),
    "azure": as_json(400, {"statusCode": 400, "message": "Body of the request is not valid"}),
    "spring": as_json(404, {"timestamp": "2026-06-01", "status": 404, "error": "Not Found", "path": "/ngsi-ld/v1"}),
    "spring 400": as_json(400, {"timestamp": "2026-06-01", "status": 400, "error": "Bad Request", "path": "/"}),
    "cloudflare": as_json(400, {"success": False, "errors": [{"code": 7003, "message": "no route"}], "result": None}),
    "json:api": as_json(400, {"errors": [{"id": "a1", "status": "400", "title": "bad"}]}),
    "graphql": as_json(400, {"errors": [{"message": "syntax error"}]}),
    "oauth proxy": as_json(400, {"error": "invalid_request", "error_description": "no token"}),
    "rfc 9457 of somebody": as_json(
        400, {"type": "about:blank", "title": "Bad Request", "status": 400}, kind="application/problem+json"
    ),
    "rfc 9457 of asp.net": as_json(
        400,
        {"type": "https://tools.ietf.org/html/rfc9110#section-15.5.1", "title": "One or more errors", "status": 400},
    ),
    "rfc 9457 with a number": as_json(400, {"type": 5, "title": "x"}),
    "an NGSIv2 broker": as_json(400, {"error": "BadRequest", "description": "Service not found"}),
    "json 200": as_json(200, {"hello": "world"}),
    "json 201": as_json(201, {"hello": "world"}),
    "json true": http(200, b"true", kind="application/json"),
    "json number 400": http(400, b"400", kind="application/json"),
    "json text 400": http(400, b'"bad"', kind="application/json"),
    "json list 400": http(400, b"[]", kind="application/json"),
    "a list of numbers": http(200, b"[1,2]", kind="application/json"),
    "301": http(301, headers=b"Location: https://x.example/\r\n"),
    "302 nowhere": http(302),
    "302 oddly": http(302, headers=b"Location: \xff\xfe javascript:\x01\r\n"),
    "304": http(304),
    "300": http(300, HTML, kind="text/html"),
    "413 html": http(413, HTML, kind="text/html"),
    "401 html": http(401, HTML, kind="text/html"),
    "407": http(407),
    "103 and then nothing": b"HTTP/1.1 103 Early\r\n\r\n",
    "999": http(999, b"x"),
    "418": http(418, b"x"),
}
UNREADABLE: dict[str, bytes] = {
    "success is a number": as_json(207, {"success": 5, "errors": [{"entityId": IDS[0], "error": problem()}]}),
    "success is a number alone": as_json(207, {"success": 5}),
    "success holds numbers": as_json(207, {"success": [5], "errors": [{"entityId": IDS[0], "error": problem()}]}),
    "an id is a list": as_json(207, {"success": [], "errors": [{"entityId": [IDS[0]], "error": problem()}]}),
    "an id is an object": as_json(207, {"success": [], "errors": [{"id": {}, "ProblemDetails": problem()}]}),
    "an id is a number": as_json(400, {"errors": [{"id": 5, "ProblemDetails": problem()}]}),
    "errors are an object": as_json(207, {"success": [], "errors": {"a": 1}}),
    "errors are a text": as_json(207, {"success": [], "errors": "none"}),
    "errors are a number": as_json(400, {"success": [], "errors": 1}),
    "errors hold texts": as_json(207, {"success": [], "errors": ["bad"]}),
    "errors about others": as_json(207, {"success": [], "errors": [{"entityId": "urn:x:1", "error": problem()}]}),
    "ids of others": as_json(201, ["urn:x:1", "urn:x:2"]),
    "nothing in a 207": as_json(207, {}),
    "deep": http(207, b'{"success": ' + DEEP, kind="application/json"),
    "deep and sound": http(207, b'{"success": ' + b"[" * 900 + b"]" * 900 + b"}", kind="application/json"),
    "a deep problem": http(400, b'{"type": ' + b"[" * 900 + b"]" * 900 + b"}", kind="application/json"),
    "not UTF-8": http(400, b'{"type": "' + ERRORS.encode() + b'BadRequestData", "title": "\xff\xfe"}'),
    "a lone surrogate": http(400, b'{"type": "' + ERRORS.encode() + b'BadRequestData", "title": "\\ud800"}'),
    "UTF-16": http(400, json.dumps(problem()).encode("utf-16"), kind="application/json; charset=utf-16"),
    "5 MB": http(400, b'{"type": "' + b"x" * 5_000_000 + b'"}', kind="application/json"),
    "a number of 5000 digits": http(400, b'{"type": ' + b"9" * 5000 + b"}", kind="application/json"),
    "short of its length": http(201, length="100"),
    "a body short of its length": http(400, json.dumps(problem()).encode(), length="9999"),
    "a negative length": http(200, b"[]", length="-1"),
    "a length that is no number": http(200, b"[]", length="many"),
    "two lengths": http(200, b"[]", headers=b"Content-Length: 3\r\n"),
    "broken chunks": http(200, b"zz\r\n[]\r\n0\r\n\r\n", length="", headers=b"Transfer-Encoding: chunked\r\n"),
    "chunks without end": http(200, b"2\r\n[]\r\n", length="", headers=b"Transfer-Encoding: chunked\r\n"),
    "broken gzip": http(200, b"\x1f\x8bnot gzip", headers=b"Content-Encoding: gzip\r\n"),
    "cut gzip": http(200, gzip.compress(b"[]" * 500)[:20], headers=b"Content-Encoding: gzip\r\n"),
    "unknown coding": http(400, b"\x00\x01", headers=b"Content-Encoding: br\r\n"),
    "a header of 100 kB": http(200, b"[]", headers=b"X: " + b"a" * 100_000 + b"\r\n"),
    "a header of no sense": b"HTTP/1.1 200 OK\r\n\x00\xff: \r\n\r\n[]",
    "a status line of no sense": b"HTTP/9 abc\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x28",
    "nothing": b"",
    "NULs": b"\0" * 4096,
}
ODD_HEADERS = (
    b"Date: Fri, 31 Dec 9999 23:59:59 -2359\r\n",
    b"Date: Mon, 01 Jan 0001 00:00:00 +2359\r\n",
    b"Date: Sat, 28 Nov 2026 19:00:00\r\n",
    b"Date: never\r\n",
    b"Date: \xff\xfe\r\n",
    b"Date: Sat, 28 Nov 99999999999999999999 19:00:00 GMT\r\n",
    b"Retry-After: -5\r\n",
    b"Retry-After: 1e400\r\n",
    b"Retry-After: 99999999999999999999999\r\n",
    b"Retry-After: Fri, 31 Dec 9999 23:59:59 -2359\r\n",
    b"Retry-After: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
    "Retry-After: ٣\r\n".encode(),
    b"Server: \xff\x1b[31m\r\n",
    b"Content-Type: \xff/\xfe; charset=\xff\r\n",
    b"Set-Cookie: \xff=;;;=\r\n",
)


async def asked(broker: NgsiLdBroker, kind: str) -> Outcome | BrokerUnavailable:
    """What one kind of request ends with; a read or a probe that worked ends with an empty outcome."""
    try:
        if kind == "state":
            return await broker.state(ENTITIES)
        if kind == "history":
            return await broker.history(ENTITIES[:1])
        if kind == "read back":
            await broker.read_back(ENTITIES)
        elif kind == "history back":
            await broker.history_back(ENTITIES)
        else:
            await broker.probe()
    except BrokerUnavailable as fault:
        return fault
    return Outcome()


async def answered(raw: Raw, kind: str) -> Outcome | BrokerUnavailable:
    async with raw.serve() as url, asyncio.timeout(60):
        broker = NgsiLdBroker(NgsiLdSettings(url), Way(timeout=SHORT))
        broker._batches.greeted = True  # the first write alone is another test's
        try:
            return await asked(broker, kind)
        finally:
            await broker.close()


def told(fault: BrokerUnavailable | None) -> str:
    """The words of a fault: one line that any page, journal and JSON can carry."""
    assert fault is not None
    text = str(fault)
    assert text
    assert text.isprintable()
    assert len(text) < 600
    orjson.dumps(text)
    assert fault.retry_after_s is None or 0.0 <= fault.retry_after_s <= 3600.0
    return text


KINDS = ("state", "history", "read back", "history back", "probe")
HELD_ALONE = {"413 html"}  # too large: parts are tried, and one that is still too large waits by itself


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*PROXIES, *UNREADABLE])
async def test_who_is_no_broker_blames_nobody_and_settles_nothing(name: str, kind: str) -> None:
    answer = {**PROXIES, **UNREADABLE}[name]
    if kind != "state" and name == "ids of others":
        pytest.skip("of a batch")
    found = await answered(Raw(answer), kind)

    if isinstance(found, BrokerUnavailable):
        told(found)
        assert not isinstance(found, ReadRefused) or answer.startswith(
            (b"HTTP/1.1 403", b"HTTP/1.1 405", b"HTTP/1.1 501")
        )
        return
    assert kind in ("state", "history"), "taken for an answer"
    assert found.refused == {}
    assert found.accepted == frozenset()
    assert found.later.keys() == set(IDS if kind == "state" else IDS[:1])
    if name not in HELD_ALONE:
        told(found.fault)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("header", ODD_HEADERS)
@pytest.mark.parametrize("status", [204, 503])
async def test_headers_of_no_sense_change_nothing(status: int, header: bytes, kind: str) -> None:
    body = as_json(503, problem("InternalError", 503), headers=header) if status == 503 else http(204, headers=header)
    found = await answered(Raw(body), kind)
    if status == 204 and kind in ("state", "history") and isinstance(found, Outcome):
        assert found.accepted == set(IDS if kind == "state" else IDS[:1])
    else:
        told(found if isinstance(found, BrokerUnavailable) else found.fault)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("head", "more"), [(b"", b"<p>" * 10_000), (b"Content-Encoding: identity\r\n", b" " * 30_000)])
async def test_a_body_without_end_is_cut(head: bytes, more: bytes, kind: str) -> None:
    found = await answered(Raw(http(200, length="", headers=head), endless=more), kind)
    told(found if isinstance(found, BrokerUnavailable) else found.fault)


async def test_a_body_that_drips_for_ever_ends_with_the_time_out() -> None:
    found = await answered(Raw(http(200, length=""), endless=b" ", pause_s=0.05), "state")
    assert isinstance(found, Outcome)
    assert isinstance(found.fault, InDoubt)


WRITES_IN_DOUBT = (
    "html 502",
    "html 504",
    "text 503",
    "html 200",
    "html 201",
    "json 200",
    "empty 500",
    "short of its length",
)


@pytest.mark.parametrize("kind", ["state", "history"])
@pytest.mark.parametrize("name", WRITES_IN_DOUBT)
async def test_what_a_proxy_says_of_a_write_leaves_it_in_doubt(name: str, kind: str) -> None:
    found = await answered(Raw({**PROXIES, **UNREADABLE}[name]), kind)
    assert isinstance(found, Outcome)
    assert found.doubtful == set(IDS if kind == "state" else IDS[:1])


SPOKEN: dict[str, tuple[bytes, Callable[[Outcome], bool]]] = {
    "204": (http(204), lambda o: o.accepted == set(IDS)),
    "201": (http(201), lambda o: o.accepted == set(IDS)),
    "201 with the new": (as_json(201, IDS[:1]), lambda o: o.accepted == set(IDS)),
    "207 with one bad": (
        as_json(207, {"success": IDS[1:], "errors": [{"entityId": IDS[0], "error": problem()}]}),
        lambda o: o.refused == {IDS[0]: "no good: because"} and o.accepted == set(IDS[1:]),
    ),
    "one id as done and as failed": (
        as_json(207, {"success": IDS, "errors": [{"entityId": IDS[0], "error": problem()}]}),
        lambda o: o.later.keys() == {IDS[0]} == o.doubtful and o.accepted == set(IDS[1:]) and o.fault is None,
    ),
    "an error without a report": (
        as_json(207, {"success": IDS[1:], "errors": [{"entityId": IDS[0], "error": None}]}),
        lambda o: o.later.keys() == {IDS[0]} and not o.refused,
    ),
    "a report that is a text": (
        as_json(207, {"success": IDS[1:], "errors": [{"entityId": IDS[0], "error": "bad"}]}),
        lambda o: o.later.keys() == {IDS[0]} and not o.refused,
    ),
    "a report that is a list": (
        as_json(207, {"success": IDS[1:], "errors": [{"id": IDS[0], "ProblemDetails": [problem()]}]}),
        lambda o: o.later.keys() == {IDS[0]} and not o.refused,
    ),
    "a report with a status of no sense": (
        as_json(207, {"success": IDS[1:], "errors": [{"id": IDS[0], "ProblemDetails": problem(status="²")}]}),  # type: ignore[arg-type]
        lambda o: o.refused.keys() == {IDS[0]},
    ),
    "an error with a status of success": (
        as_json(207, {"success": IDS[1:], "errors": [{"id": IDS[0], "ProblemDetails": problem(status=200)}]}),
        lambda o: o.later.keys() == {IDS[0]},
    ),
    "a context that is not available": (
        as_json(207, {"success": IDS[1:], "errors": [{"id": IDS[0], "ProblemDetails": {"type": ERRORS + "LdContextNotAvailable"}}]}),
        lambda o: o.later.keys() == {IDS[0]},
    ),
    "400 for all": (as_json(400, problem()), lambda o: o.refused.keys() == set(IDS)),
    "400 as a problem+json": (as_json(400, problem(), kind="application/problem+json"), lambda o: o.refused.keys() == set(IDS)),
    "400 as ld+json": (as_json(400, problem(), kind="application/ld+json"), lambda o: o.refused.keys() == set(IDS)),
    "400 with the bare name": (as_json(400, problem(type="BadRequestData")), lambda o: o.refused.keys() == set(IDS)),
    "400 of a tenant": (as_json(400, problem("NonexistentTenant")), lambda o: o.fault is not None and not o.refused),
    "400 of a context": (as_json(400, problem("LdContextNotAvailable")), lambda o: o.fault is not None and not o.refused),
    "403": (as_json(403, problem("Forbidden", 403)), lambda o: isinstance(o.fault, LoginFailed)),
    "404": (as_json(404, problem("NonexistentTenant", 404)), lambda o: isinstance(o.fault, NotOffered)),
    "503": (as_json(503, problem("InternalError", 503)), lambda o: o.fault is not None and not o.doubtful),
}  # fmt: skip


NAMES_NOTHING: dict[str, bytes] = {
    "200 []": as_json(200, []),
    "201 []": as_json(201, []),
    "207 of nothing": as_json(207, {"success": [], "errors": []}),
    "207 without errors": as_json(207, {"success": []}),
    "207 of a stranger": as_json(207, {"success": ["urn:x:1"], "errors": []}),
    "200 with success of a stranger": as_json(200, {"success": ["urn:x:1"]}),
    "201 of a stranger": as_json(201, ["urn:x:1"]),
}


@pytest.mark.parametrize("kind", ["state", "history"])
@pytest.mark.parametrize("name", NAMES_NOTHING)
async def test_an_answer_about_nothing_that_was_sent_is_no_success(name: str, kind: str) -> None:
    outcome = await answered(Raw(NAMES_NOTHING[name]), kind)

    assert isinstance(outcome, Outcome)
    assert outcome.accepted == frozenset()
    assert outcome.refused == {}
    assert isinstance(outcome.fault, InDoubt)
    assert outcome.doubtful == outcome.later.keys()
    assert outcome.later


@pytest.mark.parametrize(
    ("status", "errors"),
    [
        (207, []),
        (200, []),
        (207, [{"entityId": IDS[2], "error": problem()}]),
        (400, [{"id": IDS[2], "error": problem()}]),
    ],
)
async def test_an_entity_that_an_answer_forgets_is_not_done_but_in_doubt(status: int, errors: list[Any]) -> None:
    done = IDS[:1] if status != 400 else []
    outcome = await answered(Raw(as_json(status, {"success": done, "errors": errors})), "state")

    assert isinstance(outcome, Outcome)
    forgotten = set(IDS) - set(done) - outcome.refused.keys()
    assert outcome.accepted == set(done)
    assert outcome.refused.keys() == {error.get("entityId", error.get("id")) for error in errors}
    assert outcome.later.keys() == outcome.doubtful == forgotten
    assert outcome.fault is None


@pytest.mark.parametrize("name", SPOKEN)
async def test_a_context_brokers_word_counts(name: str) -> None:
    answer, holds = SPOKEN[name]
    found = await answered(Raw(answer), "state")
    assert isinstance(found, Outcome)
    assert holds(found), found
    assert found.accepted | found.refused.keys() | found.later.keys() == set(IDS)


async def test_a_proxy_in_the_middle_of_the_search_for_a_culprit_leaves_the_rest_for_later() -> None:
    answers = iter([as_json(400, problem()), http(204), http(400, HTML, kind="text/html")])
    found = await answered(Raw(lambda _: next(answers)), "state")
    assert isinstance(found, Outcome)
    assert found.accepted == {IDS[0]}
    assert found.refused == {}
    assert "text/html" in told(found.fault)


READ = [{"id": IDS[0], "type": "T", "no2": {"type": "Property", "value": 1, "observedAt": "2026-06-01T12:00:00Z"}}]


@pytest.mark.parametrize(
    "observed_at",
    [5, None, [], {}, "", "now", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-23:59", "2026-06-01T25:00:00Z", "٣", "x" * 9999],
)  # fmt: skip
async def test_a_time_of_no_sense_that_is_read_back_is_none(observed_at: Any) -> None:
    entity = {
        **READ[0],
        "pm25": {"value": 1, "observedAt": observed_at, "datasetId": []},
        "x": [[], 5, {"observedAt": 1}],
    }
    async with Raw(as_json(200, [entity, {"id": 5}, {"id": "urn:other:1"}, {}])).serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url))
        found = await broker.read_back(ENTITIES)
        points = await broker.history_back(ENTITIES)
        await broker.close()
    assert found[IDS[0]] == {"no2": START, "pm25": None, "x": None}
    assert points == {(IDS[0], "no2", START)}


TOKENS: dict[str, tuple[bytes, bool]] = {
    "plain": (as_json(200, {"access_token": "abc", "expires_in": 3600}), True),
    "expires as text": (as_json(200, {"access_token": "abc", "expires_in": "3600"}), True),
    "expires never": (as_json(200, {"access_token": "abc", "expires_in": None}), True),
    "expires before": (as_json(200, {"access_token": "abc", "expires_in": -1}), True),
    "expires at infinity": (http(200, b'{"access_token": "abc", "expires_in": 1e400}'), True),
    "expires as a list": (as_json(200, {"access_token": "abc", "expires_in": [1]}), True),
    "expires as a long number": (http(200, b'{"access_token": "abc", "expires_in": ' + b"9" * 4000 + b"}"), True),
    "expires as a long text": (as_json(200, {"access_token": "abc", "expires_in": "9" * 5000}), True),
    "in pieces": (
        http(200, b'1\r\n{\r\n17\r\n"access_token": "abc" }\r\n0\r\n\r\n', length="", headers=b"Transfer-Encoding: chunked\r\n"),
        True,
    ),
    "a number": (as_json(200, {"access_token": 5}), False),
    "a list": (as_json(200, {"access_token": ["abc"]}), False),
    "empty": (as_json(200, {"access_token": ""}), False),
    "with a second header": (as_json(200, {"access_token": "abc\r\nX-Evil: 1"}), False),
    "with a NUL": (as_json(200, {"access_token": "abc\0"}), False),
    "not ASCII": (as_json(200, {"access_token": "ä"}), False),
    "of 60 kB": (as_json(200, {"access_token": "a" * 60_000}), False),
    "html": (http(200, HTML, kind="text/html"), False),
    "html 400": (http(400, HTML, kind="text/html"), False),
    "a list of all": (as_json(200, ["abc"]), False),
    "deep": (http(200, DEEP), False),
    "an error of no sense": (http(400, b'{"error": ' + b"[" * 900 + b"]" * 900 + b"}"), False),
    "broken gzip": (http(200, b"\x1f\x8bnot gzip", headers=b"Content-Encoding: gzip\r\n"), False),
    "no HTTP": (b"\x15\x03\x01\x00\x02", False),
    "302": (http(302, headers=b"Location: /\r\n"), False),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
async def test_a_token_is_one_or_is_asked_for_again(name: str) -> None:
    answer, good = TOKENS[name]
    async with Raw(answer).serve() as url, aiohttp.ClientSession(timeout=SHORT) as session:
        login = OAuth2(Grant(url, "gw", "secret"))
        if good:
            assert await login.headers(session, None) == {"Authorization": "Bearer abc"}
            return
        with pytest.raises(BrokerUnavailable) as caught:
            await login.headers(session, None)
    told(caught.value)
    assert not isinstance(caught.value, LoginFailed)


@pytest.mark.parametrize(
    ("status", "body"), [(401, HTML), (400, b'{"error": "invalid_client"}'), (403, b'{"error": "access_denied"}')]
)
async def test_a_login_that_the_identity_server_refuses_is_told_as_such(status: int, body: bytes) -> None:
    async with Raw(http(status, body)).serve() as url, aiohttp.ClientSession(timeout=SHORT) as session:
        with pytest.raises(LoginFailed):
            await OAuth2(Grant(url, "gw", "secret")).headers(session, None)


def probing(entities: bytes, temporal: bytes) -> Callable[[str], bytes]:
    return lambda what: temporal if "/temporal/" in what else entities


LIST = as_json(200, [])
PROBES: dict[str, tuple[bytes, bytes, tuple[bool, bool | None, bool] | type[BrokerUnavailable]]] = {
    "all there": (LIST, LIST, (True, True, True)),
    "no temporal, says the broker": (LIST, as_json(404, problem("ResourceNotFound", 404)), (True, False, True)),
    "no temporal, empty 501": (LIST, http(501), (True, False, True)),
    "no temporal, a page says": (LIST, http(404, HTML, kind="text/html"), (True, False, False)),
    "no temporal, a proxy says": (LIST, PROXIES["kong"], (True, False, False)),
    "no tenant": (as_json(404, problem("NonexistentTenant", 404)), LIST, (True, None, True)),
    "no leave to read, says the broker": (as_json(403, problem("Forbidden", 403)), as_json(403, problem("Forbidden", 403)), (False, False, False)),
    "404 of an ingress": (PROXIES["html 404"], PROXIES["html 404"], BrokerUnavailable),
    "404 of kong": (PROXIES["kong"], PROXIES["kong"], BrokerUnavailable),
    "404 of an ingress, history works": (PROXIES["html 404"], LIST, BrokerUnavailable),
    "403 of a firewall": (PROXIES["html 403 of a firewall"], PROXIES["html 403 of a firewall"], ReadRefused),
    "403 of a firewall for history": (LIST, PROXIES["html 403 of a firewall"], ReadRefused),
    "405 page": (LIST, PROXIES["html 405"], BrokerUnavailable),
    "400 page": (LIST, PROXIES["html 400"], BrokerUnavailable),
    "NGSIv2": (PROXIES["an NGSIv2 broker"], PROXIES["an NGSIv2 broker"], BrokerUnavailable),
    "502 for history": (LIST, PROXIES["html 502"], BrokerUnavailable),
    "portal": (PROXIES["html 200"], PROXIES["html 200"], BrokerUnavailable),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBES)
async def test_only_a_context_broker_settles_how_history_is_sent(name: str) -> None:
    entities, temporal, wanted = PROBES[name]
    async with Raw(probing(entities, temporal)).serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url), Way(timeout=SHORT))
        try:
            if isinstance(wanted, type):
                with pytest.raises(wanted) as caught:
                    await broker.probe()
                told(caught.value)
            else:
                probe = await broker.probe()
                assert (probe.readable, probe.temporal, probe.sure) == wanted
        finally:
            await broker.close()


async def test_a_firewall_that_comes_between_does_not_end_reading_back() -> None:
    answers = iter([LIST, http(403, HTML, kind="text/html"), as_json(403, problem("Forbidden", 403))])
    async with Raw(lambda _: next(answers)).serve() as url:
        broker = NgsiLdBroker(NgsiLdSettings(url), Way(timeout=SHORT))
        assert await broker.read_back(ENTITIES) == {}
        with pytest.raises(LoginFailed):  # later: it was allowed before
            await broker.read_back(ENTITIES)
        with pytest.raises(ReadRefused):  # the broker's own word
            await broker.read_back(ENTITIES)
        await broker.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_entity_named_with_two_errors_gets_one_verdict_and_the_milder(order: tuple[int, int]) -> None:
    errors = [{"entityId": IDS[0], "error": problem()}, {"entityId": IDS[0], "error": 0}]
    body = orjson.dumps({"success": IDS[1:], "errors": [errors[n] for n in order]})
    answer = read_answer(207, {"Content-Type": "application/json"}, body, now=datetime(2026, 6, 1, tzinfo=UTC))
    assert answer.result is not None

    outcome, unclear = per_entity(IDS, answer.result)

    assert (outcome.accepted, set(outcome.refused), set(outcome.later)) == (frozenset(IDS[1:]), set(), {IDS[0]})
    assert not unclear
