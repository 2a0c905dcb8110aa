"""Which product answers, told by what it reveals to reads. A guess that nobody's page can make: else it stays unnamed.

What each reveals (nothing here blames anybody, and what is not told is no fault):

- Orion-LD: `/info/sourceIdentity` (since 2024) carries its version in `contextSourceExtras`, `/ngsi-ld/ex/v1/version` does always.
- Scorpio: calls an unknown tenant `TenantNotFound`; names the core context in `Link` whatever was asked; has no
  `/info/sourceIdentity` (then its server, Vert.x, says so with its own page), or one that tells its address alone.
- Stellio: has no `/info/sourceIdentity`: its gateway, Spring, says so with `requestId`; its problem reports name the `instance`.
- Orion: speaks NGSIv2 alone: `Fiware-Correlator`, `description`; `/version` tells which.

Sources: behaviour observed on Scorpio 5.0.3 and Orion 4.7.0; orionldGetInfo.cpp, orionldGetVersion.cpp; Scorpio's
InfoController.java; Stellio's ExceptionHandler.kt, TenantWebFilter.kt and application.yml of its api-gateway.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.forward.answer import Answer, words

Ask = Callable[[str, Mapping[str, str]], Awaitable[Answer]]

API = "/ngsi-ld/v1"
_VERTX = b"<html><body><h1>Resource not found</h1></body></html>"
_CORE = re.compile(r"<[^<>]*/ngsi-ld-core-context[^<>/]*>")
_ADDRESS = re.compile(r'"?(https?://[^\s"<>]{1,200})"?')


@dataclass(frozen=True, slots=True)
class Identity:
    """A product by its lower-case name ("": it does not tell) and its version as it writes it."""

    product: str = ""
    version: str = ""


NOBODY = Identity()


async def identify(read: Answer, ask: Ask) -> Identity:
    """Tell the product by a read that worked, or was refused by a broker, and at most two further ones.

    Args:
        read: of the current entities.
        ask: one more read, by its path from the host's root.
    """
    if is_orion(read):
        return _orion(await ask("/version", {}))
    if not read.by_broker:
        return NOBODY
    if read.problem is not None and read.problem.kind == "TenantNotFound":
        return Identity("scorpio")
    info = await ask(f"{API}/info/sourceIdentity", {})
    found = _of_info(read, info)
    if found.product:
        return found
    if _is_spring(info):
        return Identity("stellio") if _is_stellio(await ask(f"{API}/entities", {})) else NOBODY
    return _orion_ld((await ask("/ngsi-ld/ex/v1/version", {})).json)


def is_orion(answer: Answer) -> bool:
    """Whether an NGSIv2 broker says that it knows no NGSI-LD."""
    said = answer.json
    if answer.status not in (400, 404) or not isinstance(said, dict):
        return False
    return answer.correlated and isinstance(said.get("error"), str) and isinstance(said.get("description"), str)


def _of_info(read: Answer, info: Answer) -> Identity:
    said = info.json
    if info.status == 200 and isinstance(said, dict) and said.get("type") == "ContextSourceIdentity":
        if (found := _orion_ld(said.get("contextSourceExtras"))).product:
            return found
        alias = said.get("contextSourceAlias")
        of_address = isinstance(alias, str) and alias == said.get("id") and _ADDRESS.fullmatch(alias)
        return Identity("scorpio") if of_address and _names_core(read) else NOBODY
    bare = info.status == 200 and _ADDRESS.fullmatch(info.body[:300].decode("utf-8", "replace").strip())
    if (bare or (info.status == 404 and info.body.strip() == _VERTX)) and _names_core(read):
        return Identity("scorpio")
    return NOBODY


def _names_core(read: Answer) -> bool:
    return bool(_CORE.search(read.link))


def _is_spring(answer: Answer) -> bool:
    said = answer.json
    return answer.status == 404 and isinstance(said, dict) and {"timestamp", "path", "requestId"} <= said.keys()


def _is_stellio(refused: Answer) -> bool:
    """A query without any filter is refused; Stellio's report says for which address."""
    said = refused.json
    return refused.status == 400 and refused.problem is not None and said.get("instance") == f"{API}/entities"


def _orion_ld(said: Any) -> Identity:
    version = words(said.get("Orion-LD version")) if isinstance(said, dict) else ""
    return Identity("orion-ld", version[:40]) if version else NOBODY


def _orion(answer: Answer) -> Identity:
    said = answer.json.get("orion") if isinstance(answer.json, dict) else None
    return Identity("orion", words(said.get("version"))[:40] if isinstance(said, dict) else "")
