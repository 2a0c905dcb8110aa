"""What fits every model and cannot be meant: places far from the box, times to come, files and variables that do nothing."""

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import asin, cos, radians, sin, sqrt
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from gateway.config.loader import Loaded, LoadedLink
from gateway.config.model import Config
from gateway.config.tree import OVERRIDE
from gateway.sdk.errors import Problem
from gateway.sdk.files import read_bytes

EARTH_KM = 6371.0
FAR_KM = 1000.0  # a box and its sensors are in one city
TOO_FAR_KM = 4000.0
_SWAPPED_KM = 200.0  # nearer ones may be right either way
_FILES = frozenset(("ca", "certificate", "key", "ca_file", "cert_file", "key_file"))
_MAX_PEM_BYTES = 1 << 20

PathOf = tuple[str | int, ...]


def doubts(loaded: Loaded, environment: Mapping[str, str] | None = None) -> Iterator[Problem]:
    """Problems without a place, except those that have none in the file."""
    for link in loaded.links.values():
        yield from _far_devices(loaded, link)
    if loaded.config is not None:
        yield from _starts(loaded, loaded.config)
        yield from _buffer_place(loaded, loaded.config)
        if loaded.with_secrets:  # elsewhere its files are not there either
            yield from _files(loaded.config, ())
    yield from _variables(os.environ if environment is None else environment)


def distance_km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Along the earth, between two places as longitude, latitude."""
    (lon, lat), (other_lon, other_lat) = ([radians(its) for its in place] for place in (one, other))
    half = sin((lat - other_lat) / 2) ** 2 + cos(lat) * cos(other_lat) * sin((lon - other_lon) / 2) ** 2
    return 2 * EARTH_KM * asin(min(sqrt(half), 1.0))


def _far_devices(loaded: Loaded, link: LoadedLink) -> Iterator[Problem]:
    box = loaded.gateway.location if loaded.gateway else None
    if box is None or link.config is None:
        return
    for name, device in link.config.devices.items():
        if device.location is None:
            continue
        path: PathOf = ("links", link.name, "devices", name, "location")
        far = distance_km(box, device.location)
        longitude, latitude = device.location
        swapped = abs(longitude) <= 90 and distance_km(box, (latitude, longitude)) < far / 10
        message = f"{far:,.0f} km from the gateway".replace(",", " ")
        if far > _SWAPPED_KM and swapped:
            remedy = f"longitude comes first: [{latitude:g}, {longitude:g}]; or is it the gateway's that is swapped?"
            yield Problem("far-device", path, f"{message}: latitude and longitude are swapped", remedy)
        elif far >= FAR_KM:
            severity: Literal["error", "warning"] = "error" if far >= TOO_FAR_KM else "warning"
            remedy = "longitude first, then latitude, in degrees with a decimal point; is the gateway's right?"
            yield Problem("far-device", path, message, remedy, severity)


def _starts(loaded: Loaded, config: Config) -> Iterator[Problem]:
    try:
        written = datetime.fromtimestamp(max(file.stat().st_mtime for file in loaded.files), UTC)
    except OSError:
        written = datetime.now(UTC)
    now = max(datetime.now(UTC), written)  # a box that has just got power may be years behind
    for name, broker in config.brokers.items():
        if isinstance(broker.start, datetime) and broker.start > now + timedelta(days=1):
            message = "this is still to come: until then nothing is sent to this broker"
            yield Problem(
                "future-start", ("brokers", name, "from"), message, "now, oldest, or a time that was", "warning"
            )


def _buffer_place(loaded: Loaded, config: Config) -> Iterator[Problem]:
    """What lies there and is no log would be set aside at the start, be it this config."""
    place, path = Path(config.buffer.path), ("buffer", "path")
    remedy = "the name of a file of its own, as in buffer.db"
    if os.path.realpath(place) in {os.path.realpath(file) for file in loaded.files}:
        yield Problem("wrong-place", path, f"{place} is a file of this config", remedy)
    elif os.path.isdir(place):
        remedy = f"the name of a file in it, as in {place / 'buffer.db'}"
        yield Problem(
            "wrong-place", path, f"{place} is a folder: nothing would be kept over a restart", remedy, "warning"
        )


def _files(value: Any, path: PathOf) -> Iterator[Problem]:
    """Certificates and keys that are named and cannot be had."""
    if isinstance(value, BaseModel):
        for name, info in type(value).model_fields.items():
            its = getattr(value, name)
            if name in _FILES and isinstance(its, str) and its:
                yield from _pem(Path(its), (*path, info.alias or name))
            elif name != "template":
                yield from _files(its, (*path, info.alias or name))
    elif isinstance(value, Mapping):
        for key, its in value.items():
            yield from _files(its, (*path, str(key)))


def _pem(file: Path, path: PathOf) -> Iterator[Problem]:
    remedy = "without it no connection is made; put it there, readable for the daemon's group"
    try:
        if b"-----BEGIN " not in read_bytes(file, _MAX_PEM_BYTES):
            message = f"{file} is no PEM file: it has no line -----BEGIN …"
            yield Problem(
                "missing-file", path, message, "openssl x509 -inform der -in FILE makes one of DER", "warning"
            )
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        yield Problem("missing-file", path, f"{file} cannot be read: {said}", remedy, "warning")


def _variables(environment: Mapping[str, str]) -> Iterator[Problem]:
    """`CITYGATE_HTTP_LISTEN` does nothing: two underscores part the keys."""
    single = OVERRIDE.removesuffix("_")
    for name in sorted(environment):
        if not name.upper().startswith(single) or name.startswith(OVERRIDE):
            continue
        part, _, rest = name[len(single) :].strip("_").partition("_")
        if part.lower() in Config.model_fields and rest:
            meant = f"{OVERRIDE}{part}__{rest.strip('_')}".upper()
            message = f"{name} is set and changes nothing"
            yield Problem("ignored-variable", (), message, f"two underscores part the keys: {meant}", "warning",
                          file=f"environment {name}")  # fmt: skip
