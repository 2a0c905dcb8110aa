"""Hosts of JSON-LD contexts, as a broker sees them that fetches what an entity names. Nothing goes over a network."""

import re

from tests.support.broker_parts import Json

JSON_LD = "application/ld+json"
_RAW_HOSTS = re.compile(r"https?://(raw\.githubusercontent\.com|gist\.githubusercontent\.com)/")


class Contexts:
    """What each address serves. Unless told otherwise raw file hosts serve `text/plain`, all others `application/ld+json`.

    Attributes:
        offline: nothing can be reached.
        fetched: addresses in order, tries that failed included.
    """

    def __init__(self) -> None:
        self.offline = False
        self.fetched: list[str] = []
        self._served: dict[str, str | None] = {}

    def serve(self, url: str, media_type: str = JSON_LD) -> None:
        """From now on this address answers, with that type."""
        self._served[url] = media_type

    def away(self, url: str) -> None:
        """From now on nobody answers there."""
        self._served[url] = None

    def fetch(self, url: str) -> str | None:
        """The media type that comes back; None when nobody answers."""
        self.fetched.append(url)
        if self.offline:
            return None
        return self._served.get(url, "text/plain" if _RAW_HOSTS.match(url) else JSON_LD)


def addresses(context: Json) -> list[str]:
    """What has to be fetched for a context: a context that stands in the body itself needs nothing."""
    parts = context if isinstance(context, list) else [context]
    return [part for part in parts if isinstance(part, str)]
