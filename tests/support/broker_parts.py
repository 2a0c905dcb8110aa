"""What the strict broker and its profiles have in common: requests, answers, refusals, values, how it is told to behave."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Any
Key = tuple[str, str, str | None, Json]  # entity, attribute, observedAt, value
CORE_CONTEXT = "https://uri.etsi.org/ngsi-ld/v1/ngsi-ld-core-context.jsonld"
ERRORS = "https://uri.etsi.org/ngsi-ld/errors/"


class Refusal(Exception):
    """A request, or one entity, that the specification refuses."""

    def __init__(self, status: int, title: str, detail: str = "", kind: str = "BadRequestData") -> None:
        self.status, self.title, self.detail, self.kind = status, title, detail, kind
        super().__init__(f"{status} {title}: {detail}")

    def problem(self) -> dict[str, Json]:
        return {"type": ERRORS + self.kind, "title": self.title, "detail": self.detail, "status": self.status}


@dataclass(frozen=True, slots=True)
class Value:
    """One stored value: what the oracle compares."""

    entity: str
    type: str
    attribute: str
    observed_at: str | None
    value: Json
    unit: str | None
    dataset: str | None
    context: str
    tenant: str
    via: str  # state | temporal
    request: int
    at: float  # unix seconds of arrival

    @property
    def key(self) -> Key:
        """Entity, attribute, observedAt, value; values that cannot be hashed as JSON text."""
        return self.entity, self.attribute, self.observed_at, hashable(self.value)


@dataclass(slots=True)
class Behaviour:
    """How it answers. Faults strike requests whose path contains `path`, `times` of them (None: until told otherwise).

    Attributes:
        fault: "" | status (a plain error of that number) | html200 | redirect | hang | hang_stored | reset | reset_stored |
            truncated | slow. `*_stored`: the request is carried out, its answer does not arrive.
        spelling: of partial answers: spec | old (`error`, 200) | scorpio | scorpio_null | orion-ld | orion-ld-207 | stellio.
        refuse: regular expression of entity ids that are refused one by one; refuse_status: with this inner status.
        verdicts: inner status by regular expression of an entity as JSON text; for those of which one is to be refused.
        whole: a batch with a refused entity is refused whole: "" | naming | silent | 500.
        max_bytes, max_entities: larger requests get 413.
        readable: GET of entities is allowed. temporal: there is a temporal API.
        records: history is recorded by itself from current-state writes, `records_after_s` later.
        tenants: None = made by the first write, else those that exist.
    """

    fault: str = ""
    path: str = ""
    times: int | None = None
    retry_after: str = ""
    delay_s: float = 0.0
    spelling: str = "spec"
    refuse: str = ""
    refuse_status: int = 400
    verdicts: dict[str, int] = field(default_factory=dict)
    whole: str = ""
    max_bytes: int = 10 * 2**20
    max_entities: int = 1000
    readable: bool = True
    temporal: bool = True
    records: bool = True
    records_after_s: float = 0.0
    tenants: list[str] | None = None
    token: str = ""
    location: str = "https://login.example/"


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]  # lower-case names
    body: bytes


@dataclass(slots=True)
class Reply:
    status: int
    body: Json = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # instead of body


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the history, to be written now or later."""

    tenant: str
    entity: str
    type: Json
    name: str
    instance: dict[str, Json]
    value: Value


@dataclass(slots=True)
class Tenant:
    entities: dict[str, dict[str, Json]] = field(default_factory=dict)  # id -> entity with arrays of instances
    temporal: dict[str, dict[str, Json]] = field(
        default_factory=dict
    )  # id -> {type, attribute: [(visible_at, instance)]}


def hashable(value: Json) -> Json:
    """What cannot be hashed as JSON text."""
    return value if isinstance(value, str | int | float | bool) else json.dumps(value, sort_keys=True)
