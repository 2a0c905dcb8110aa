"""What comes over wires: replies in each Modbus framing, the frames of a talking instrument; and payloads of any template."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from drivers.lora.codec import cayenne
from drivers.lora.codec.payload import Received, decode_layout, read_object
from drivers.lora.driver import CHIRPSTACK
from drivers.lora.layout import LayoutCodec
from drivers.lora.scan import load_templates
from drivers.modbus.codec.frames import (
    AsciiFraming,
    DeviceException,
    Framing,
    RtuFraming,
    TcpFraming,
    read_request,
    reply_data,
)
from drivers.serial.codec import sds011
from gateway.sdk.errors import FrameError
from gateway.sdk.testing import NOON
from tests.fuzz.runner import Parser, mutate_bytes, mutate_json

ASK = read_request(1, "holding", 0, 4)
PDU = bytes((3, 8)) + bytes(range(8))
RECEIVED = Received(NOON)


def _reply(framing: Framing) -> Callable[[bytes], object]:
    """The reply that is found, at first sight and at the last, in two cuts."""

    def call(case: bytes) -> object:
        found = None
        for last in (False, True):
            with suppress(FrameError):  # the bus resynchronises; the next cut must be read as well
                found = framing.find(ASK, 7, case, last=last) or found
        framing.looks_cut(case)
        framing.replies(case)
        with suppress(DeviceException):
            return reply_data(ASK, found[0]) if found else None
        return None

    return call


def _wire(framing: Framing) -> tuple[bytes, ...]:
    """A reply, an exception, a reply of another unit; made of a request, whose frame differs in its PDU alone."""
    return tuple(framing.frame(replace(ASK, pdu=pdu), 7) for pdu in (PDU, b"\x83\x02"))


LAYOUTS = tuple(its for its in load_templates(CHIRPSTACK.templates).values() if isinstance(its.codec, LayoutCodec))
SAMPLES = tuple(  # number of the template, port, payload
    bytes((number, int(sample.context.get("f_port", sample.context.get("fport", 0))))) + bytes.fromhex(sample.hex)
    for number, its in enumerate(LAYOUTS)
    for sample in its.samples
    if sample.hex
)


def _layout(case: bytes) -> object:
    number, port = (*case[:2], 0, 0)[:2]
    codec = LAYOUTS[number % len(LAYOUTS)].codec
    assert isinstance(codec, LayoutCodec)
    return decode_layout(codec, case[2:], port or None, RECEIVED)


def _object(case: bytes) -> object:
    try:
        decoded = json.loads(case)
    except (ValueError, RecursionError):
        raise FrameError("no JSON") from None
    return read_object(decoded, {"a": "a", "b": "values.temp", "c": "probes[0].t"}, RECEIVED)


def _frames(case: bytes) -> object:
    framer = sds011.framer()
    found = []
    for cut in (case[:5], case[5:]):
        for frame in framer.feed(cut):
            with suppress(FrameError):
                found.append(sds011.decode(frame, received_at=NOON))
    return found


OBJECT = b'{"a": 21.5, "values": {"temp": "20.70000001"}, "probes": [{"t": 3.0}, {"t": null}], "flag": true}'
SDS = bytes.fromhex("aac00600060058d93dab")

PARSERS = {
    "modbus-rtu": Parser(_wire(RtuFraming()), _reply(RtuFraming()), mutate=mutate_bytes),
    "modbus-tcp": Parser(_wire(TcpFraming()), _reply(TcpFraming()), mutate=mutate_bytes),
    "modbus-ascii": Parser(_wire(AsciiFraming()), _reply(AsciiFraming()), mutate=mutate_bytes),
    "sds011": Parser((SDS, SDS * 3), _frames, mutate=mutate_bytes),
    "layouts": Parser(SAMPLES, _layout, mutate=mutate_bytes),
    "object": Parser((OBJECT,), _object, mutate=mutate_json),
    "cayenne-fields": Parser(
        (bytes.fromhex("03670110056700ff"),),
        lambda case: cayenne.decode(case, {"t": "temperature_3"}, RECEIVED),
        mutate=mutate_bytes,
    ),
}
