"""Vendor JavaScript: right answers, and no way to hang, eat or leave the worker."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from drivers.lora.codec.uplink import Uplink
from drivers.lora.config import ServerDevice
from drivers.lora.driver import CHIRPSTACK
from drivers.lora.receiver import Receiver
from drivers.lora.worker import Program, ProgramFault, Worker
from gateway.sdk.errors import CitygateError
from gateway.sdk.testing import NOON
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
    "returns errors": "function decodeUplink(i) { return {errors: ['unknown FPort']}; }",
    "is no program": "function (",
    "wants files": "function decodeUplink(i) { return {data: require('fs').readFileSync('/etc/passwd')}; }",
    "wants modules": "import('os'); function decodeUplink(i) { return {data: {x: os.getcwd()}}; }",
    "breaks JSON": "JSON.stringify = null; function decodeUplink(i) { return {data: 1}; }",
}


@pytest.fixture
async def worker() -> Any:
    made = Worker()
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
    started_s = time.monotonic()
    with pytest.raises(ProgramFault, match=name):
        await worker.decode(Program(name, EVIL[name]), b"\x01\x04", 3)
    assert time.monotonic() - started_s < 3
    assert await worker.decode(Program("a", GOOD), b"\x01\x04", 3) == {"t": 26, "port": 3}


async def test_programs_share_nothing(worker: Worker) -> None:
    leak = "var kept = 0; function decodeUplink(i) { globalThis.kept = 41; return {data: {kept: kept}}; }"
    look = "function decodeUplink(i) { return {data: {kept: typeof kept}}; }"
    await worker.decode(Program("leak", leak), b"", 1)
    assert await worker.decode(Program("look", look), b"", 1) == {"kept": "undefined"}


@pytest.mark.parametrize(
    ("code", "message"),
    [("import time; time.sleep(60)", "killed"), ("pass", "died"), ("import sys; sys.stdin.readline(); print('x' * 10**6)", "lost"),
     ("import sys; sys.stdin.readline(); sys.stdout.write('half'); sys.exit()", "died")],
)  # fmt: skip
async def test_a_worker_that_hangs_dies_or_floods_is_replaced(code: str, message: str) -> None:
    worker = Worker((sys.executable, "-c", code), deadline_s=0.8)
    with pytest.raises(ProgramFault, match=message):
        await worker.decode(Program("a", GOOD), b"\x01\x04", 3)
    worker._command = Worker()._command
    worker._deadline_s = 5
    assert await worker.decode(Program("a", GOOD), b"\x01\x04", 3) == {"t": 26, "port": 3}
    assert worker.kills == 1
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


async def test_a_device_whose_program_hangs_does_not_slow_its_neighbours_for_long() -> None:
    context = HeldContext()
    context.automatic = True
    devices = {"evil": javascript(EVIL["loops"]), "good": javascript(GOOD)}
    receiver = Receiver(devices, context.context)
    started_s = time.monotonic()
    for n in range(30):
        for name in devices:
            await receiver.take(name, Uplink(bytes([n] * 8), f_port=1, payload=b"\x01\x04", time=NOON))
    await receiver.close()
    good = [s.values() for s in context.sets if s.device == "good"]
    assert good == [{"t": 26, "port": 1}] * 30
    assert [s.values() for s in context.sets if s.device == "evil"] == [{}] * 30, "the uplinks themselves are kept"
    assert context.total("programs_rested") == 1
    assert time.monotonic() - started_s < 6
    assert "evil" in str(context.rejected[0])


async def test_a_program_in_a_file_is_read_and_a_missing_file_hurts_its_device_alone(tmp_path: Path) -> None:
    (tmp_path / "codec.js").write_text(GOOD)
    context = HeldContext()
    context.automatic = True
    devices = {"there": javascript(file=str(tmp_path / "codec.js")), "gone": javascript(file=str(tmp_path / "gone.js"))}
    receiver = Receiver(devices, context.context)
    for name in devices:
        await receiver.take(name, Uplink(b"12345678", f_port=1, payload=b"\x01\x04", time=NOON))
    await receiver.close()
    assert [s.values() for s in context.sets] == [{"t": 26, "port": 1}, {}]
    assert "gone.js" in str(context.rejected[0])


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
