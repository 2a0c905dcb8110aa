"""Libraries that only who has such a link pays for, and the words for when one of them is not installed."""

import importlib.util

from gateway.sdk.errors import LinkError

_LIBRARIES = {"serial": ("pyserial", "serial lines", "serial"), "paho": ("paho-mqtt", "MQTT", "lora")}


def missing(module: str) -> LinkError:
    """What a link says that needs this one."""
    return LinkError("; ".join(words(module)))


def words(module: str) -> tuple[str, str]:
    """What is wrong and what to do."""
    package, purpose, extra = _LIBRARIES[module]
    return (
        f"{package}, which {purpose} need{'s' * (purpose == 'MQTT')}, is not installed",
        f"pip install 'citygate[{extra}]'",
    )


def lacking(config: object) -> tuple[str, str]:
    """Words for the library that a link of this config needs and that is not there; ("", "") when none is missing."""
    url, port = getattr(config, "url", None), getattr(config, "port", None)
    needed = (
        "paho"
        if str(url or "").startswith("mqtt")
        else "serial"
        if isinstance(port, str) and port and not getattr(config, "host", None)
        else ""
    )
    return words(needed) if needed and not _is_there(needed) else ("", "")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
