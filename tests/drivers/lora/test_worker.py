"""Vendor JavaScript: right answers, and no way to hang, eat or leave the worker."""

import asyncio
import base64
import math
import os
import struct
import sys
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from drivers.lora.codec.uplink import Uplink
from drivers.lora.config import ServerDevice
from drivers.lora.driver import CHIRPSTACK
from drivers.lora.receiver import COSTLY_FAULTS, REST_S, Receiver
from drivers.lora.worker import Program, ProgramFault, Worker
from gateway.sdk.errors import CitygateError
from gateway.sdk.testing import NOON, ManualClock
from tests.drivers.lora.support import HeldContext, template

GOOD = "function decodeUplink(input) { return {data: {t: (input.bytes[0] << 8 | input.bytes[1]) / 10, port: input.fPort}}; }"
EVIL = {
    "loops": "function decodeUplink(i) { while (true) {} }",
    "loops at load": "while (true) {}",
    "allocates": "function decodeUplink(i) { var a = []; while (true) a.push(new Array(100000).fill(1)); }",
    "throws": "function decodeUplink(i) { throw new Error('no'); }",
    "recurses": "function decodeUplink(i) { return decodeUplink(i); }",
    "backtracks": "function decodeUplink(i) { return {data: /^(a+)+$/.test('a'.repeat(40) + 'b')}; }",
    "returns a megabyte": "function decodeUplink(i) { return {data: 'x'.repeat(1e6)}; }",
    "returns nothing": "function decodeUplink(i) { }",
    "returns values beside data": "function decodeUplink(i) { return {t: 1}; }",
    "returns a promise": "async function decodeUplink(i) { return {data: {t: 1}}; }",
    "returns null": "function decodeUplink(i) { return {data: null, warnings: ['w']}; }",
    "returns errors": "function decodeUplink(i) { return {errors: ['unknown FPort']}; }",
    "is no program": "function (",
    "wants files": "function decodeUplink(i) { return {data: require('fs').readFileSync('/etc/passwd')}; }",
    "wants modules": "import('os'); function decodeUplink(i) { return {data: {x: os.getcwd()}}; }",
    "nests deep": "function decodeUplink(i) { var x = 1; for (var n = 0; n < 900; n++) x = [x]; return {data: {x: x}}; }",
    "nests objects": "function decodeUplink(i) { var x = 1; for (var n = 0; n < 100; n++) x = {x: x}; return {data: x}; }",
    "throws half a pair": "function decodeUplink(i) { throw new Error('\\ud800'); }",
    "returns a big integer": "function decodeUplink(i) { return {data: {x: 10n ** 400n}}; }",
    "breaks its console": "__printed = {toString: null}; console = null; function decodeUplink(i) { console.log(1); }",
    "breaks JSON": "JSON.stringify = null; function decodeUplink(i) { return {data: 1}; }",
}


@pytest.fixture
async def worker() -> Any:
    made = Worker(deadline_s=60)  # what a program may take is counted in processor time
    yield made
    await made.close()


async def test_a_program_decodes_bytes_and_port(worker: Worker) -> None:
    assert await worker.decode(Program("a", GOOD), b"\x01\x04", 3) == {"t": 26, "port": 3}


async def test_the_form_of_chirpstack_v3_is_called_too(worker: Worker) -> None:
    source = "function Decode(fPort, bytes, variables) { return {x: bytes[0] + fPort}; }"
    assert await worker.decode(Program("a", source, "Decode"), b"\x05", 2) == {"x": 7}


async def test_not_a_number_becomes_no_value(worker: Worker) -> None:
    source = "function decodeUplink(i) { return {data: {a: NaN, b: 1 / 0}}; }"
    assert await worker.decode(Program("a", source), b"\x05", 2) == {"a": None, "b": None}


@pytest.mark.parametrize("name", EVIL)
async def test_a_program_that_misbehaves_is_cut_off_and_its_neighbour_answers(name: str, worker: Worker) -> None:
    with pytest.raises(ProgramFault, match=name):
        await asyncio.wait_for(worker.decode(Program(name, EVIL[name]), b"\x01\x04", 3), 30)
    assert await worker.decode(Program("a", GOOD), b"\x01\x04", 3) == {"t": 26, "port": 3}


async def test_nothing_of_an_uplink_is_left_for_the_next(worker: Worker) -> None:
    """Declared once, kept for ever: so an old temperature would be published under a new time."""
    for keeps in (
        "var last = {}; function decodeUplink(i) { if (i.bytes.length) last.t = i.bytes[0]; return {data: last}; }",
        "let last = {}; function decodeUplink(i) { if (i.bytes.length) last.t = i.bytes[0]; return {data: last}; }",
        "function decodeUplink(i) { if (i.bytes.length) seen = {t: i.bytes[0]}; return {data: typeof seen === 'undefined' ? {} : seen}; }",
        "function decodeUplink(i) { if (i.bytes.length) Array.prototype.t = i.bytes[0]; return {data: {t: [].t}}; }",
        "function decodeUplink(i) { var d = decodeUplink; if (i.bytes.length) d.t = i.bytes[0]; return {data: {t: d.t}}; }",
    ):
        program = Program("keeps", keeps)
        assert await worker.decode(program, b"\x07", 1) == {"t": 7}
        assert await worker.decode(program, b"", 1) == {}


async def test_a_program_that_was_cut_off_once_answers_the_next_time(worker: Worker) -> None:
    moody = Program("moody", "function decodeUplink(i) { while (i.bytes[0]); return {data: {x: 1}}; }")
    with pytest.raises(ProgramFault):
        await worker.decode(moody, b"\x01", 1)
    assert await worker.decode(moody, b"\x00", 1) == {"x": 1}
    assert worker.kills == 0


async def test_a_program_is_told_when_the_uplink_was_received(worker: Worker) -> None:
    source = """function decodeUplink(input) { return {data: {
        at: input.recvTime.toISOString(), date: input.recvTime instanceof Date, variables: JSON.stringify(input.variables)}}; }"""
    at = datetime(2026, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC)
    said = await worker.decode(Program("a", source), b"", 1, at)
    assert said == {"at": "2026-06-01T12:00:00.250Z", "date": True, "variables": "{}"}
    assert (await worker.decode(Program("a", source), b"", 1))["at"] > "2026"


async def test_the_form_of_the_things_stack_v2_is_called_when_it_is_the_only_one(worker: Worker) -> None:
    old = "function Decoder(bytes, port) { return {x: bytes[0] + port}; }"
    assert await worker.decode(Program("a", old), b"\x05", 2) == {"x": 7}
    both = old + "function decodeUplink(i) { return {data: Decoder(i.bytes, 100)}; }"
    assert await worker.decode(Program("b", both), b"\x05", 2) == {"x": 105}


async def test_what_a_program_prints_does_not_disturb_and_is_shown_with_its_fault(worker: Worker) -> None:
    talks = "console.log('hello', {a: 1}, undefined); console.warn([1]); console.error(null); function decodeUplink(i) { console.info(i.fPort); %s }"
    assert await worker.decode(Program("a", talks % "return {data: {x: 1}};"), b"", 9) == {"x": 1}
    with pytest.raises(ProgramFault, match=r"""no .*; it printed: hello \{"a":1\} undefined \[1\] null 9"""):
        await worker.decode(Program("b", talks % "throw new Error('no');"), b"", 9)
    endless = "function decodeUplink(i) { for (var n = 0; n < 5000; n++) console.log('x'.repeat(1000)); throw new Error('no'); }"
    with pytest.raises(ProgramFault) as fault:
        await worker.decode(Program("c", endless), b"", 9)
    assert len(fault.value.message) < 1000


async def buffer(worker: Worker, data: bytes, *expressions: str) -> list[Any]:
    """What these expressions about `b`, a Buffer of the data, give."""
    tried = ", ".join(f"(() => {{ try {{ return {e}; }} catch (e) {{ return e.name; }} }})()" for e in expressions)
    source = f"function decodeUplink(i) {{ var b = Buffer.from(i.bytes); return {{data: {{all: [{tried}]}}}}; }}"
    result: list[Any] = (await worker.decode(Program(str(expressions), source), data, 1))["all"]
    return result


async def test_a_buffer_reads_numbers_as_struct_does(worker: Worker) -> None:
    random = Random(1)
    for length in range(8, 48):
        await _reads_as_struct(worker, random.randbytes(length), random.randrange(length))


async def _reads_as_struct(worker: Worker, data: bytes, offset: int) -> None:
    formats = {
        "Int8": "b",
        "UInt8": "B",
        "Int16": "h",
        "UInt16": "H",
        "Int32": "i",
        "UInt32": "I",
        "Float": "f",
        "Double": "d",
    }
    cases = [
        (f"b.read{name}{order if size > 1 else ''}({offset})", struct.Struct(("<" if order == "LE" else ">") + code))
        for name, code in formats.items()
        for order in ("BE", "LE")
        if (size := struct.calcsize("=" + code))
    ]

    answers = await buffer(worker, data, *(expression for expression, _ in cases))
    for (expression, kind), got in zip(cases, answers, strict=True):
        if offset + kind.size > len(data):
            assert got == "RangeError", expression
            continue
        [want] = kind.unpack_from(data, offset)
        assert got == (want if math.isfinite(want) else None) or got == pytest.approx(want), expression


async def test_a_buffer_does_what_codecs_ask_of_nodes(worker: Worker) -> None:
    data = "h€llo\x00ÿ".encode()
    asked = {
        "b.toString('hex')": data.hex(),
        "b.toString('base64')": base64.b64encode(data).decode(),
        "b.toString()": data.decode(),
        "b.toString('utf8', 0, 4)": "h€",
        "b.slice(1, 3).toString('latin1')": data[1:3].decode("latin1"),
        "b.length + b.slice(-2).length": len(data) + 2,
        "Buffer.from('68656c', 'hex').toString('ascii')": "hel",
        "Buffer.from(b.toString('base64'), 'base64').equals(b)": True,
        "new Buffer([1, 300, -1]).toString('hex')": "012cff",
        "Buffer.concat([Buffer.from([1]), b.slice(0, 1), Buffer.alloc(2, 7)]).toString('hex')": "01680707",
        "b.readUIntBE(1, 3)": int.from_bytes(data[1:4], "big"),
        "b.readUIntLE(1, 6)": int.from_bytes(data[1:7], "little"),
        "b.readIntLE(1, 3)": int.from_bytes(data[1:4], "little", signed=True),
        "b.readUIntBE(0, 7)": "RangeError",
        "b.readUInt16BE(1.5)": "TypeError",
        "b.readInt16LE(-1)": "RangeError",
        "Buffer.isBuffer(b.subarray(1)) && !Buffer.isBuffer([1])": True,
        "b[0] === 104 && b instanceof Uint8Array": True,
        "JSON.stringify(Buffer.from([1, 2]))": '{"type":"Buffer","data":[1,2]}',
        "b.indexOf('llo') + b.indexOf(0) * 10 + b.indexOf('no')": 4 + 70 - 1,
        "Buffer.byteLength('€') + Buffer.compare(Buffer.from([1]), Buffer.from([2]))": 2,
        "(() => { var c = Buffer.alloc(4); c.writeUInt16BE(258, 1); c.write('z', 3); return c.toString('hex'); })()": "0001027a",
        "Number(Buffer.from([0, 0, 0, 0, 0, 0, 1, 2]).readBigUInt64BE())": 258,
        "Buffer.from([0xc3, 0x28, 0xe2, 0x82]).toString()": "\ufffd(\ufffd\ufffd",
        "Buffer.from('x', 'utf-16')": "TypeError",
        "Array.from(b.map(x => x)).length": len(data),
    }  # fmt: skip
    got = await buffer(worker, data, *asked)
    assert dict(zip(asked, got, strict=True)) == asked


async def test_programs_share_nothing(worker: Worker) -> None:
    leak = "var kept = 0; function decodeUplink(i) { globalThis.kept = 41; return {data: {kept: kept}}; }"
    look = "function decodeUplink(i) { return {data: {kept: typeof kept}}; }"
    await worker.decode(Program("leak", leak), b"", 1)
    assert await worker.decode(Program("look", look), b"", 1) == {"kept": "undefined"}


@pytest.mark.parametrize(
    ("code", "deadline_s", "message"),
    [("import time; time.sleep(60)", 0.8, "killed"), ("pass", 60, "died"), ("import sys; sys.stdin.readline(); print('x' * 10**6)", 60, "lost"),
     ("import sys; sys.stdin.readline(); sys.stdout.write('half'); sys.exit()", 60, "died")],
)  # fmt: skip
async def test_a_worker_that_hangs_dies_or_floods_is_replaced(code: str, deadline_s: float, message: str) -> None:
    worker = Worker((sys.executable, "-c", code), deadline_s, start_s=0)
    with pytest.raises(ProgramFault, match=message):
        await worker.decode(Program("a", GOOD), b"\x01\x04", 3)
    worker._command = Worker()._command
    worker._deadline_s = 60
    assert await worker.decode(Program("a", GOOD), b"\x01\x04", 3) == {"t": 26, "port": 3}
    assert worker.kills == 1
    await worker.close()


async def test_only_the_first_call_may_take_as_long_as_a_start() -> None:
    answers_once = (
        "import sys, time; sys.stdin.readline(); time.sleep(1.2); print('{\"result\": 1}', flush=True); time.sleep(60)"
    )
    worker = Worker((sys.executable, "-c", answers_once), 1.0, start_s=60)
    assert await worker.decode(Program("a", GOOD), b"", 1) == 1
    with pytest.raises(ProgramFault, match="within 1 s; worker killed"):
        await worker.decode(Program("a", GOOD), b"", 1)
    await worker.close()


async def test_more_programs_than_are_kept_still_answer(worker: Worker) -> None:
    programs = [Program(f"p{n}", f"function decodeUplink(i) {{ return {{data: {{n: {n}}}}}; }}") for n in range(70)]
    for program in [*programs, *programs[:10]]:
        assert await worker.decode(program, b"", 1) == {"n": int(program.name[1:])}
    assert worker.kills == 0


def javascript(source: str = "", **more: Any) -> ServerDevice:
    codec = {"kind": "javascript", "source": source, **more}
    made = template({k: v for k, v in codec.items() if v}, t="temperature", port="count")
    return ServerDevice.model_validate({"template": made, "dev_eui": "01" * 8})


def patient(devices: dict[str, ServerDevice], context: HeldContext) -> Receiver:
    """A receiver whose worker may take its time to start."""
    receiver = Receiver(devices, context.context)
    receiver._worker = Worker(deadline_s=60)
    return receiver


async def test_a_device_whose_program_hangs_does_not_slow_its_neighbours_for_long() -> None:
    context = HeldContext()
    context.automatic = True
    devices = {"evil": javascript(EVIL["loops"]), "good": javascript(GOOD)}
    receiver = patient(devices, context)
    for n in range(30):
        for name in devices:
            await receiver.take(name, Uplink(bytes([n] * 8), f_port=1, payload=b"\x01\x04", time=NOON))
    await receiver.close()
    good = [s.values() for s in context.sets if s.device == "good"]
    assert good == [{"t": 26, "port": 1}] * 30
    assert [s.values() for s in context.sets if s.device == "evil"] == [{}] * 30, "the uplinks themselves are kept"
    assert context.total("programs_rested") == 1
    assert sum("rests" in str(error) for error in context.rejected) == 30 - COSTLY_FAULTS
    assert "evil" in str(context.rejected[0])


async def test_a_program_that_rested_is_run_again_and_its_faults_are_counted_anew() -> None:
    context = HeldContext(ManualClock())
    context.automatic = True
    source = "function decodeUplink(i) { if (!i.bytes[0]) return {data: {t: 7}}; SLOW; throw new Error('moody'); }"
    moody = javascript(source.replace("SLOW", "var end = Date.now() + 120; while (Date.now() < end)"))
    receiver = Receiver({"moody": moody}, context.context)

    async def told(*payloads: bytes) -> list[bool]:
        """Whether each payload gave a value."""
        before = len(context.sets)
        for payload in payloads:
            key = len(context.sets).to_bytes(8, "big")
            await receiver.take("moody", Uplink(key, f_port=1, payload=payload, time=NOON))
        return ["t" in s.values() for s in context.sets[before:]]

    fails, works = b"\x01", b"\x00"
    try:
        assert (
            await told(*[fails] * (COSTLY_FAULTS - 1), works, *[fails] * (COSTLY_FAULTS - 1), works)
            == ([False] * (COSTLY_FAULTS - 1) + [True]) * 2
        )
        assert context.total("programs_rested") == 0
        assert await told(*[fails] * COSTLY_FAULTS, works) == [False] * (COSTLY_FAULTS + 1)
        assert context.total("programs_rested") == 1
        assert context.notes["moody"][0]

        context.clock.advance(REST_S)
        assert await told(works, fails, works) == [True, False, True]
        assert context.total("programs_rested") == 1
        assert "moody" not in context.notes or not context.notes["moody"][0]
    finally:
        await receiver.close()


async def test_a_program_in_a_file_is_read_and_a_missing_file_hurts_its_device_alone(tmp_path: Path) -> None:
    (tmp_path / "codec.js").write_text(GOOD)
    context = HeldContext()
    context.automatic = True
    (tmp_path / "large.js").write_text(GOOD + " " * 200_001)
    os.mkfifo(tmp_path / "pipe.js")
    files = {"there": "codec.js", "gone": "gone.js", "large": "large.js", "pipe": "pipe.js"}
    devices = {name: javascript(file=str(tmp_path / file)) for name, file in files.items()}
    devices["endless"] = javascript(file="/dev/zero")
    receiver = patient(devices, context)
    for name in devices:
        await receiver.take(name, Uplink(b"12345678", f_port=1, payload=b"\x01\x04", time=NOON))
    await receiver.close()
    assert [s.values() for s in context.sets] == [{"t": 26, "port": 1}, {}, {}, {}, {}]
    for said, file in zip(context.rejected, ["gone.js", "large.js", "pipe.js", "/dev/zero"], strict=True):
        assert file in str(said)


def test_decode_runs_a_program_once() -> None:
    device = javascript(GOOD)
    readings = CHIRPSTACK.decode(device.template, b"\x01\x04", {"f_port": 2})
    assert {r.point: r.value for r in readings} == {"t": 26, "port": 2}
    with pytest.raises(CitygateError):
        CHIRPSTACK.decode(javascript(EVIL["throws"]).template, b"\x01\x04", {"f_port": 2})


async def test_cancelling_a_call_does_not_give_its_answer_to_the_next(worker: Worker) -> None:
    await worker.decode(Program("a", GOOD), b"\x01\x04", 3)
    call = asyncio.create_task(worker.decode(Program("b", EVIL["loops"]), b"", 1))
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert await worker.decode(Program("a", GOOD), b"\x00\x0a", 4) == {"t": 1, "port": 4}
