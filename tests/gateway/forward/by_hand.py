"""Requests written by hand and sent as raw bytes, no client code involved."""

import asyncio
import contextlib
import json
from typing import Any

AIR = "https://raw.githubusercontent.com/smart-data-models/dataModel.Environment/master/context.jsonld"
LINK = f'Link: <{AIR}>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"'
JSON, JSON_LD = "Content-Type: application/json", "Content-Type: application/ld+json"
UPSERT = "/ngsi-ld/v1/entityOperations/upsert?options=update"
ID = "urn:ngsi-ld:AirQualityObserved:milano:gw:air-1"


def no2(**changes: Any) -> dict[str, Any]:
    attribute = {"type": "Property", "value": 31.5, "unitCode": "GQ", "observedAt": "2026-06-01T12:00:00Z"}
    return {key: value for key, value in {**attribute, **changes}.items() if value is not ...}


def entity(**changes: Any) -> dict[str, Any]:
    whole = {"id": ID, "type": "AirQualityObserved", "no2": no2()}
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


async def send(
    url: str, method: str, path: str, *headers: str, body: bytes = b"", length: bool = True
) -> tuple[int, Any]:
    """One request as bytes; the status and the parsed answer (None: no JSON)."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        answer = await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    if not answer:
        raise ConnectionResetError("closed without an answer")
    head, _, content = answer.partition(b"\r\n\r\n")
    try:
        parsed = json.loads(content)
    except ValueError:
        parsed = None
    return int(head.split()[1]), parsed
