"""NGSI-LD read API over the last values: a broker in small for the box's own neighbours; read only.

Source: ETSI GS CIM 009 V1.9.1, 5.5.2 (errors), 5.7.1 and 5.7.2 (retrieve, query), 6.3.5 and 6.3.6 (media types, Link).
With `application/json` one Link header has to do for entities of several models, so the box serves one context document
that lists all contexts in use.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from gateway.encode import to_json
from gateway.harmonise.dialects import concise, key_values, ngsi_ld
from gateway.harmonise.entity import Attribute, Entity
from gateway.http.view import VIEW
from gateway.models.catalogue import CORE_CONTEXT

PREFIX = "/ngsi-ld/v1"
CONTEXT_PATH = f"{PREFIX}/jsonldContexts/citygate"
CONTEXT_RELATION = '; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"'
JSON, JSON_LD, GEO_JSON = "application/json", "application/ld+json", "application/geo+json"
MEDIA_TYPES = (JSON, JSON_LD, GEO_JSON)
LOCATION = "location"
OLDEST = datetime.min.replace(tzinfo=UTC)
DEFAULT_LIMIT, MAX_LIMIT = 20, 1000
SIMPLIFIED = frozenset({"keyValues", "simplified"})
WRITERS: Mapping[str, Callable[[Entity], dict[str, Any]]] = {
    "normalized": ngsi_ld,
    "concise": concise,
    "simplified": key_values,
}
FORMS = SIMPLIFIED | {"normalized", "concise"}
QUERY_PARAMETERS = frozenset({"type", "id", "attrs", "limit", "offset", "count", "options", "format", "local"})
RETRIEVE_PARAMETERS = frozenset({"attrs", "options", "format", "local"})


class Refused(Exception):
    """A request that the specification refuses; becomes ProblemDetails."""

    def __init__(self, status: int, name: str, detail: str) -> None:
        self.status, self.name, self.detail = status, name, detail
        super().__init__(detail)


def routes() -> list[web.RouteDef]:
    """For an application that has the key `VIEW`."""
    return [
        web.get(f"{PREFIX}/entities", _problems(query)),
        web.get(f"{PREFIX}/entities/{{id}}", _problems(retrieve)),
        web.get(CONTEXT_PATH, context),
    ]


async def query(request: web.Request) -> web.Response:
    """`GET /entities`: all, or those of `type`, `id`, `attrs`; pages by `limit` and `offset`, ordered by id."""
    asked = _checked(request, QUERY_PARAMETERS)
    media, form = _media_type(request), _form(asked)
    limit, offset = _number(asked, "limit", DEFAULT_LIMIT, MAX_LIMIT), _number(asked, "offset", 0, 10**9)
    found = sorted(_selected(request.app[VIEW].entities(), asked), key=lambda entity: entity.id)
    page = found[offset : offset + limit]
    headers = [("NGSILD-Results-Count", str(len(found)))] if asked.get("count") == "true" else []
    if page and offset + limit < len(found):
        onward = request.rel_url.update_query({"offset": offset + limit, "limit": limit})
        headers.append(("Link", f'<{onward}>; rel="next"; type="{media}"'))
    bodies = [_body(entity, form, _names(asked, "attrs")) for entity in page]
    whole: Any = bodies
    if media == GEO_JSON:
        whole = {
            "type": "FeatureCollection",
            "features": [_feature(body, entity) for body, entity in zip(bodies, page, strict=True)],
        }
    return _answer(request, bodies, page, media, headers, whole=whole)


async def retrieve(request: web.Request) -> web.Response:
    """`GET /entities/{id}`: one entity, 404 when there is none."""
    asked = _checked(request, RETRIEVE_PARAMETERS)
    media, form = _media_type(request), _form(asked)
    wanted = request.match_info["id"]
    entity = next((entity for entity in _whole(request.app[VIEW].entities()) if entity.id == wanted), None)
    if entity is None:
        raise Refused(404, "ResourceNotFound", f"no entity {wanted} (yet); GET {PREFIX}/entities lists those there are")
    body = _body(entity, form, _names(asked, "attrs"))
    whole = _feature(body, entity) if media == GEO_JSON else body
    return _answer(request, [body], [entity], media, [], whole=whole)


async def context(request: web.Request) -> web.Response:
    """The context document that lists every context in use, subjects first, the core last (it must win)."""
    subjects = sorted({entity.context for entity in request.app[VIEW].entities() if entity.context})
    return _json({"@context": [*subjects, CORE_CONTEXT]}, JSON_LD)


def _problems(handler: Any) -> Any:
    async def answer(request: web.Request) -> web.Response:
        try:
            response: web.Response = await handler(request)
        except Refused as refused:
            kind = f"https://uri.etsi.org/ngsi-ld/errors/{refused.name}"
            body = {"type": kind, "title": refused.name, "detail": refused.detail, "status": refused.status}
            return _json(body, JSON, status=refused.status)
        return response

    return answer


def _checked(request: web.Request, known: frozenset[str]) -> Mapping[str, str]:
    """The parameters. One we do not know is refused: ignoring `q=` would answer another question than was asked."""
    unknown = sorted(set(request.query) - known)
    if unknown:
        raise Refused(
            400,
            "InvalidRequest",
            f"{', '.join(unknown)}: not supported here; this read API knows {', '.join(sorted(known))}",
        )
    return request.query


def _media_type(request: web.Request) -> str:
    """The best of the media types we write by the weights of `Accept`; JSON when it says nothing, or both alike."""
    accept = request.headers.get("Accept", "*/*").lower()
    weights: dict[str, float] = {}
    for part in accept.split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        weights[media] = next((_weight(value[2:]) for value in parameters if value.startswith("q=")), 1.0)
    any_weight = weights.get("application/*", weights.get("*/*", 0.0))
    best = max(MEDIA_TYPES, key=lambda media: weights.get(media, any_weight))  # the first of equals
    if weights.get(best, any_weight) == 0.0:
        raise Refused(406, "InvalidRequest", f"Accept: {accept[:100]}; this read API writes {', '.join(MEDIA_TYPES)}")
    return best


def _weight(text: str) -> float:
    return float(text) if re.fullmatch(r"1(\.0*)?|0(\.[0-9]{0,3})?", text) else 0.0


def _form(asked: Mapping[str, str]) -> str:
    forms = _names(asked, "options") | _names(asked, "format") or {"normalized"}
    if forms - FORMS or len(forms - SIMPLIFIED) > (0 if forms & SIMPLIFIED else 1):
        raise Refused(400, "BadRequestData", f"{', '.join(sorted(forms))}: take one of {', '.join(sorted(FORMS))}")
    return "simplified" if forms & SIMPLIFIED else forms.pop()


def _number(asked: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = asked.get(name, str(default))
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > most:
        raise Refused(400, "BadRequestData", f"{name}={text}: take a whole number from 0 to {most}")
    return int(text)


def _names(asked: Mapping[str, str], name: str) -> set[str]:
    return {part.strip() for part in asked.get(name, "").split(",") if part.strip()}


def _whole(entities: Iterable[Entity]) -> Iterable[Entity]:
    """One entity for each id: what several devices know of it, newest first."""
    found: dict[str, Entity] = {}
    for entity in entities:
        known = found.setdefault(entity.id, entity)
        if known is not entity:
            found[entity.id] = replace(known, attributes=_newest(known.attributes, entity.attributes))
    return found.values()


def _newest(one: Mapping[str, Attribute], other: Mapping[str, Attribute]) -> dict[str, Attribute]:
    merged = dict(one)
    for name, attribute in other.items():
        known = merged.get(name)
        if known is None or (attribute.observed_at or OLDEST) > (known.observed_at or OLDEST):
            merged[name] = attribute
    return merged


def _selected(entities: Iterable[Entity], asked: Mapping[str, str]) -> Iterable[Entity]:
    types, ids, attributes = _names(asked, "type"), _names(asked, "id"), _names(asked, "attrs")
    for entity in _whole(entities):
        if types and entity.type not in types:
            continue
        if ids and entity.id not in ids:
            continue
        if attributes and attributes.isdisjoint(name.partition(" ")[0] for name in entity.attributes):
            continue
        yield entity


def _body(entity: Entity, form: str, attributes: set[str]) -> dict[str, Any]:
    body = WRITERS[form](entity)
    return {key: body[key] for key in body if not attributes or key in attributes or key in ("id", "type")}


def _feature(body: dict[str, Any], entity: Entity) -> dict[str, Any]:
    """A GeoJSON feature for a map (4.5.16): where the entity is, and all the rest as its properties."""
    place = entity.attributes.get(LOCATION)
    properties = {key: value for key, value in body.items() if key != "id"}
    return {"id": body["id"], "type": "Feature", "geometry": place.value if place else None, "properties": properties}


def _answer(
    request: web.Request,
    bodies: Sequence[dict[str, Any]],
    entities: Sequence[Entity],
    media: str,
    headers: list[tuple[str, str]],
    *,
    whole: Any,
) -> web.Response:
    """JSON and GeoJSON with the context as a Link, or JSON-LD with the context in each entity (6.3.5); never both."""
    if media == JSON_LD:
        for body, entity in zip(bodies, entities, strict=True):
            body["@context"] = [entity.context, CORE_CONTEXT] if entity.context else CORE_CONTEXT
        return _json(whole, JSON_LD, headers=headers)
    return _json(whole, media, headers=[*headers, ("Link", f"<{_context_url(request, entities)}>{CONTEXT_RELATION}")])


def _context_url(request: web.Request, entities: Sequence[Entity]) -> str:
    contexts = {entity.context for entity in entities if entity.context}
    if len(contexts) == 1:
        return contexts.pop()
    return str(request.url.with_path(CONTEXT_PATH).with_query(None)) if contexts else CORE_CONTEXT


def _json(body: Any, media: str, *, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> web.Response:
    response = web.Response(body=to_json(body), status=status, content_type=media)
    for name, value in headers:
        response.headers.add(name, value)
    return response
