"""What leaves by HTTP: JSON of anything, without any secret that is known. A broker's error may say our own credential."""

from typing import Any

from gateway.encode import to_json
from gateway.hidden import all_hidden, says_secret


def told(value: Any) -> bytes:
    """The bytes of a JSON text."""
    body = to_json(value)
    return to_json(all_hidden(value)) if says_secret(body) else body
