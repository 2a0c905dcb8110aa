"""Find a type by words: in its name, its attributes' names, and what the published schemas say of them."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from gateway.models.catalogue import Catalogue, EntityType
from gateway.sdk.files import read_text

MAX_ATTRIBUTES = 6


@dataclass(frozen=True, slots=True)
class Hit:
    """A type that has to do with the words, and the attributes that say so, best first."""

    type: str
    subject: str
    attributes: tuple[str, ...]
    score: int


def search(models: Catalogue, words: Sequence[str]) -> list[Hit]:
    """Types in which every word occurs, best first."""
    wanted = [
        re.compile(rf"\b{re.escape(word.lower())}") for word in words
    ]  # beginnings of words: no "bin" in "cabinet"
    hits = (_hit(name, model, wanted) for name in models.names() if (model := models.type(name)) is not None)
    return sorted((hit for hit in hits if hit is not None), key=lambda hit: (-hit.score, hit.type))


def _hit(name: str, model: EntityType, wanted: Sequence[re.Pattern[str]]) -> Hit | None:
    texts = dict(_descriptions(model))
    title = f"{_plain(name)} {name.lower()} {texts.get('', '').lower()}"
    scores: dict[str, int] = {}
    for attribute in model.attributes:
        words = f"{_plain(attribute)} {attribute.lower()}"
        text = texts.get(attribute, "").lower()
        score = sum(4 if word.search(words) else 1 if word.search(text) else 0 for word in wanted)
        if score and all(word.search(f"{words} {text} {title}") for word in wanted):
            scores[attribute] = score
    in_title = sum(6 for word in wanted if word.search(_plain(name))) + sum(2 for word in wanted if word.search(title))
    if not scores and not all(word.search(title) for word in wanted):
        return None
    best = sorted(scores, key=lambda attribute: (-scores[attribute], attribute))
    best += [name for name, spec in model.attributes.items() if spec.unit and name not in scores]  # what it measures
    return Hit(name, model.subject, tuple(best[:MAX_ATTRIBUTES]), in_title + sum(sorted(scores.values())[-3:]))


def _plain(name: str) -> str:
    """`soilMoistureVwc` -> `soil moisture vwc`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


def _descriptions(model: EntityType) -> Iterator[tuple[str, str]]:
    """(attribute, text) of the shipped schema; ("", text) of the type."""
    file = files("gateway.models") / "schemas" / model.subject / model.name / "schema.json"
    if not file.is_file():
        return
    schema = json.loads(read_text(file))
    yield "", str(schema.get("description", ""))
    for part in [schema, *schema.get("allOf", [])]:
        properties: dict[str, Any] = part.get("properties", {})
        for name, spec in properties.items():
            yield name, str(spec.get("description", ""))
