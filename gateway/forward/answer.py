"""Answers of a broker: foreign bytes, read at one door. Who spoke, what became of each entity, or words why that is open.

A context broker shows itself by what only one sends: a list of ids or entities, a BatchOperationResult, a problem report
that names an error of NGSI-LD, or the empty body that the specification gives to a success. Anything else on the way
(proxy, balancer, firewall, portal) may look alike in status and even in JSON; it may blame no entity and settle nothing.

Sources: ETSI GS CIM 009 V1.9.1 clauses 5.5.2 (errors), 5.2.17 (BatchOperationResult), 6.3; spellings observed on Scorpio
5.0.3 and Stellio, read from the sources of Orion-LD.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from gateway.backoff import retry_after_s
from gateway.forward.broker import Outcome
from gateway.hidden import hidden
from gateway.sdk.errors import FrameError, foreign

REASON_CHARS = 300
UNREADABLE = "a batch result that cannot be read"
_ERRORS = "ngsi-ld/errors/"
_ERROR_NAMES = frozenset(
    {
        "InvalidRequest",
        "BadRequestData",
        "AlreadyExists",
        "OperationNotSupported",
        "ResourceNotFound",
        "InternalError",
        "TooComplexQuery",
        "TooManyResults",
        "LdContextNotAvailable",
        "NoMultiTenantSupport",
        "NonexistentTenant",
        "TenantNotFound",
        "Conflict",
    }
)
_NOT_THE_ENTITY = re.compile(r"InternalError|NotAvailable|Unavailable|Tenant|OperationNotSupported|TooMany|TooComplex")
_RETRYABLE = frozenset({401, 403, 408, 409, 413, 425, 429})
_RESULTS = frozenset({200, 207, 400, 404, 409, 503})  # statuses under which brokers send a BatchOperationResult


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem report (RFC 9457 as NGSI-LD uses it).

    Attributes:
        kind: last part of its `type`.
        status: of this entity, if it says so.
        reason: title and detail, printable.
    """

    kind: str
    status: int | None
    reason: str

    @property
    def blames(self) -> bool:
        """Whether the entity is at fault: sent again as it is, it would be refused again."""
        if _NOT_THE_ENTITY.search(self.kind):
            return False
        return self.status is None or (400 <= self.status < 500 and self.status not in _RETRYABLE)


@dataclass(frozen=True, slots=True)
class Result:
    """A BatchOperationResult as it stands: an id is None where the broker names none, a problem where it gives none."""

    success: frozenset[str]
    errors: tuple[tuple[str | None, Problem | None], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, read as far as it can be.

    Attributes:
        json: None when the body is empty or no JSON.
        problem: the report, when it is one of a context broker.
        result: of a batch, when it is one.
        fault: why a body that should be a result cannot be read, "".
    """

    status: int
    body: bytes
    json: Any
    content_type: str
    location: str
    retry_after_s: float | None
    date: datetime | None
    server: str
    problem: Problem | None
    result: Result | None
    fault: str

    @property
    def is_ids(self) -> bool:
        """A list of ids (or of nothing)."""
        return isinstance(self.json, list) and all(isinstance(item, str) for item in self.json)

    @property
    def is_entities(self) -> bool:
        """A list of objects (or of nothing)."""
        return isinstance(self.json, list) and all(isinstance(item, dict) for item in self.json)

    @property
    def by_broker(self) -> bool:
        """Whether a context broker spoke."""
        if self.problem is not None or self.result is not None:
            return True
        if not self.body.strip():
            return self.status in (201, 204)
        return 200 <= self.status < 300 and (self.is_ids or self.is_entities)

    @property
    def is_empty_refusal(self) -> bool:
        """405 and 501 have no body (6.3.2); a broker's look like anybody's."""
        return self.status in (405, 501) and not self.body.strip()

    @property
    def is_fault(self) -> bool:
        """Whether it is no broker's, or that of one that failed: it may not be the process that it was."""
        if self.problem is not None and self.problem.kind == "LdContextNotAvailable":
            return False
        return self.status >= 500 or not (self.by_broker or self.is_empty_refusal)

    @property
    def reason(self) -> str:
        """Status and what it says; who seems to speak, when it is no context broker."""
        if self.problem is not None:
            return f"{self.status} {self.problem.reason}".strip()
        if self.fault:
            return f"{self.status}: {self.fault}"
        if not self.body.strip():
            return f"{self.status} without a body{self._from}"
        return f"{self.status} with {self.content_type or 'no content type'}: {self._who}"

    @property
    def _from(self) -> str:
        return f" (server {self.server})" if self.server else ""

    @property
    def _who(self) -> str:
        if isinstance(self.json, dict):
            if isinstance(self.json.get("description"), str) and "error" in self.json:
                return f"it answers as an NGSIv2 broker, not as NGSI-LD: {words(self.json['description'])}"
            said = next((words(self.json[key]) for key in _SAYS if isinstance(self.json.get(key), str)), "")
            told = f' ("{said[:100]}")' if said else ""
            return f"not a context broker's answer{told}; a proxy or gateway on the way{self._from}?"
        return f"not a context broker's answer (a captive portal, or a proxy's page?){self._from}"


_SAYS = ("message", "Message", "error_description", "error", "error_msg", "title", "detail", "fault")


def words(text: object) -> str:
    """Foreign text as one printable line of bounded length; "" for what is neither text nor number."""
    if isinstance(text, int | float):
        text = str(text) if abs(text) < 1e15 else ""
    if not isinstance(text, str):
        return ""
    line = " ".join(hidden(text[: 100 * REASON_CHARS])[: 4 * REASON_CHARS].split())
    return "".join(letter if letter.isprintable() else "�" for letter in line)[:REASON_CHARS]


def read_answer(status: int, headers: Mapping[str, str], body: bytes, *, now: datetime) -> Answer:
    """Read what came, whatever it is. Never raises.

    Args:
        body: decompressed, cut at a bound.
        now: for a `Retry-After` that is a date, when the answer has no date of its own.
    """
    date = http_date(headers.get("Date"))
    json = _json(body)
    problem = result = None
    fault = ""
    try:
        with foreign("answer", body):
            problem = _report(json)
            result = _result(json) if status in _RESULTS and problem is None else None
    except FrameError as error:
        fault = words(error.message)
    content_type = words(headers.get("Content-Type", "").partition(";")[0].strip().lower())[:60]
    return Answer(
        status=status,
        body=body,
        json=json,
        content_type=content_type,
        location=words(headers.get("Location", ""))[:200],
        retry_after_s=retry_after_s(headers.get("Retry-After"), date or now),
        date=date,
        server=words(headers.get("Server", ""))[:40],
        problem=problem,
        result=result,
        fault=fault,
    )


def http_date(header: str | None) -> datetime | None:
    """UTC; None when there is none, or none that is a moment."""
    if header is None:
        return None
    try:
        with foreign("date"):
            at = parsedate_to_datetime(header)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except FrameError:
        return None


def wire_moment(text: object) -> datetime | None:
    """An `observedAt` that came back, in UTC; None when it is no moment."""
    if not isinstance(text, str):
        return None
    try:
        with foreign("observedAt"):
            at = datetime.fromisoformat(text)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except FrameError:
        return None


def per_entity(ids: Sequence[str], result: Result) -> tuple[Outcome, frozenset[str]]:
    """The outcome of each id, matched by id, never by position.

    Second: ids that an error without an id may mean.

    Raises:
        FrameError: the result is about entities that were not sent, or about none: it belongs to another request.
    """
    known = frozenset(ids)
    strangers = [entity_id for entity_id, _ in result.errors if entity_id is not None and entity_id not in known]
    if strangers:
        raise FrameError(f"the answer is about {words(strangers[0])[:100]}, which was not sent")
    succeeded = result.success & known
    if not succeeded and not result.errors:
        raise FrameError("the answer is about nothing that was sent")
    refused: dict[str, str] = {}
    later: dict[str, str] = {}
    anonymous: list[Problem | None] = [problem for entity_id, problem in result.errors if entity_id is None]
    for entity_id, problem in result.errors:
        if entity_id is not None:
            _sort(entity_id, problem, refused, later)
    both = succeeded & (refused.keys() | later.keys())
    for entity_id in both:
        said = refused.pop(entity_id, "") or later.get(entity_id, "")
        later[entity_id] = f"named as done and as failed at once: {said}"
    unnamed = known - succeeded - refused.keys() - later.keys()
    unclear: frozenset[str] = frozenset()
    if anonymous and len(unnamed) == 1:  # it can only mean this one
        _sort(next(iter(unnamed)), anonymous[-1], refused, later)
    elif anonymous:
        unclear = unnamed
    else:  # forgotten is not done
        both |= unnamed
        later.update(dict.fromkeys(unnamed, "the answer does not say what became of it"))
    return Outcome(succeeded - both, refused, later, doubtful=frozenset(both)), unclear


def _sort(entity_id: str, problem: Problem | None, refused: dict[str, str], later: dict[str, str]) -> None:
    """One verdict an entity: of several errors the one that does not condemn it."""
    said = "an error without a readable reason" if problem is None else problem.reason or problem.kind
    if problem is not None and problem.blames and entity_id not in later:
        refused[entity_id] = said
    else:
        refused.pop(entity_id, None)
        later[entity_id] = said


def _json(body: bytes) -> Any:
    try:
        with foreign("JSON", body):
            return orjson.loads(body) if body.strip() else None
    except FrameError:
        return None


def _report(json: Any) -> Problem | None:
    """A problem report whose `type` names an error of NGSI-LD; a proxy's has another, or `about:blank`."""
    if not isinstance(json, dict) or not isinstance(json.get("type"), str):
        return None
    kind = json["type"].rpartition("/")[2]
    return _problem(json) if _ERRORS in json["type"] or kind in _ERROR_NAMES else None


def _problem(json: Any) -> Problem | None:
    """What stands beside an entity, where it is clear who speaks."""
    if not isinstance(json, dict):
        return None
    kind = words(json.get("type")).rpartition("/")[2]
    said = ": ".join(text for key in ("title", "detail") if (text := words(json.get(key))))[:REASON_CHARS]
    return Problem(kind, _status(json.get("status")), said or kind) if said or kind else None


def _status(status: Any) -> int | None:
    if isinstance(status, str) and re.fullmatch(r"[1-5][0-9][0-9]", status):
        status = int(status)
    if isinstance(status, float) and status.is_integer():
        status = int(status)
    return status if type(status) is int and 100 <= status < 600 else None


def _result(json: Any) -> Result | None:
    """A BatchOperationResult: `errors` or, in older documents, `error`; None when it is something else.

    Raises:
        FrameError: it is meant to be one and cannot be read.
    """
    if not isinstance(json, dict) or not ("success" in json or "errors" in json or "error" in json):
        return None
    errors = json.get("errors", json.get("error"))
    success = json.get("success")
    items = [] if errors is None else errors
    if not isinstance(items, list) or not all(_names(item) for item in items):
        if not isinstance(success, list):
            return None
        raise FrameError(f"{UNREADABLE}: errors are no list of errors")
    if success is not None and not (isinstance(success, list) and all(isinstance(item, str) for item in success)):
        if not items:
            return None
        raise FrameError(f"{UNREADABLE}: success is no list of ids")
    if success is None and not items:
        return None
    return Result(frozenset(success or ()), tuple((_id(item), _problem(_beside(item))) for item in items))


def _names(item: Any) -> bool:
    """An error of a batch: a report, and an id even if null (or a report that is NGSI-LD's). `{"code", "message"}` is a gateway's."""
    if not isinstance(item, dict) or not any(key in item for key in _BESIDE):
        return False
    if "entityId" not in item and "id" not in item:
        return _report(_beside(item)) is not None
    return _id_of(item) is None or isinstance(_id_of(item), str)


_BESIDE = ("error", "ProblemDetails", "problemDetails")


def _beside(item: Mapping[str, Any]) -> Any:
    return next(item[key] for key in _BESIDE if key in item)


def _id_of(item: Mapping[str, Any]) -> Any:
    return item.get("entityId", item.get("id"))


def _id(item: Mapping[str, Any]) -> str | None:
    found = _id_of(item)
    return found if isinstance(found, str) and found else None
