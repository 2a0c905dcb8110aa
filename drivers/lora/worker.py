"""Vendor JavaScript in a process of its own that can be killed: limits on memory, time and output, no files, no network.

Each uplink gets a context of its own, as in The Things Stack and ChirpStack: what a program left in its variables must not
become the next uplink's value. It costs 0.12 ms and the loading of the program; quickjs-ng gives no bytecode to keep.
Parent and worker exchange one JSON object a line. A program that hangs or eats memory is cut off inside the worker; if
that fails the worker is killed and the next call starts a new one.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from drivers.lora.codec.uplink import MAX_DEPTH, plain, too_deep
from gateway.sdk.errors import CitygateError, FrameError

MEMORY_BYTES = 16 << 20  # of one program
STACK_BYTES = 256 << 10
TIME_S = 0.2  # of processor time, to load a program and again to call it
DEADLINE_S = 3.0  # of wall time, of one call
START_S = 30.0  # more for the first call of a worker: on a loaded box Python alone takes seconds
PROCESS_BYTES = 512 << 20  # address space of the worker
OUTPUT_BYTES = 64 << 10
PRINTED_CHARS = 500  # of what a program prints, shown with its fault
PROGRAMS = 64  # sources kept in the worker; the one unused longest goes
COMMAND = (sys.executable, "-I", "-m", "drivers.lora.worker")


class ProgramFault(FrameError):
    """The vendor's program failed on this payload: it threw, hung, ate memory or returned nonsense."""


@dataclass(frozen=True, slots=True)
class Program:
    """A codec in JavaScript.

    Attributes:
        name: of the template, for messages.
        form: the entry point, `decodeUplink` or `Decode`.
    """

    name: str
    source: str
    form: str = "decodeUplink"


class Worker:
    """One worker process, started at the first call."""

    def __init__(
        self, command: tuple[str, ...] = COMMAND, deadline_s: float = DEADLINE_S, *, start_s: float = START_S
    ) -> None:
        self._command = command
        self._deadline_s = deadline_s
        self._start_s = start_s
        self._process: asyncio.subprocess.Process | None = None
        self._known: set[Program] = set()
        self._lock = asyncio.Lock()
        self.kills = 0

    async def decode(
        self, program: Program, payload: bytes, port: int | None, received_at: datetime | None = None
    ) -> Any:
        """What the program makes of a payload.

        Args:
            received_at: what the program is told as `recvTime`; None: the time of the call.

        Raises:
            ProgramFault: the program failed; the worker lives on or was replaced.
            CitygateError: the worker cannot be started at all (quickjs-ng is not installed).
        """
        async with self._lock:  # one call at a time: a worker that hangs hangs for one call only
            answer = await self._ask(program, payload, port, received_at)
        return _result(program, payload, answer)

    async def close(self) -> None:
        """End the worker."""
        process, self._process = self._process, None
        self._known.clear()
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process is not None and process.stdin is not None:
            process.stdin.close()

    async def _ask(
        self, program: Program, payload: bytes, port: int | None, received_at: datetime | None
    ) -> dict[str, Any]:
        within_s = self._deadline_s if self._runs else self._start_s + self._deadline_s
        try:
            async with asyncio.timeout(within_s):
                process = await self._started()
                assert process.stdin is not None
                assert process.stdout is not None
                with_source = program not in self._known
                process.stdin.write(_request(program, payload, port, received_at, with_source=with_source))
                await process.stdin.drain()
                line = await process.stdout.readline()
        except asyncio.CancelledError:
            self._abandon()  # or its answer would go to the next call
            raise
        except TimeoutError:
            await self._kill()
            return {"fault": f"did not answer within {within_s:g} s; worker killed"}
        except (OSError, ValueError) as error:  # broken pipe; a line longer than the stream's limit
            await self._kill()
            return {"fault": f"worker lost: {error}"}
        if not line.endswith(b"\n"):
            await self._kill()
            return {"fault": "worker died"}
        self._known.add(program)
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            await self._kill()
            return {"fault": "worker lost: it talks nonsense"}
        if answer.get("forgot"):
            self._known.discard(program)
            return await self._ask(program, payload, port, received_at)
        return answer

    @property
    def _runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            await self.close()
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=4 * OUTPUT_BYTES
            )
        return self._process

    def _abandon(self) -> None:
        process, self._process = self._process, None
        self._known.clear()
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _kill(self) -> None:
        self.kills += 1
        await self.close()


def decode_once(program: Program, payload: bytes, port: int | None, received_at: datetime | None = None) -> Any:
    """One call in a worker of its own, blocking; for `decode` on the command line and for samples. What the program prints
    goes to standard error.

    Raises:
        ProgramFault, CitygateError: as `Worker.decode`.
    """
    try:
        done = subprocess.run(
            COMMAND,
            input=_request(program, payload, port, received_at, with_source=True),
            stdout=subprocess.PIPE,
            timeout=START_S + DEADLINE_S,
            check=False,
        )
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise ProgramFault(f"{program.name}: no answer; worker killed", frame=payload) from None
    if printed := answer.get("printed"):
        sys.stderr.write(f"{program.name} printed: {printed}\n")
    return _result(program, payload, answer)


def _result(program: Program, payload: bytes, answer: dict[str, Any]) -> Any:
    if "unavailable" in answer:
        raise CitygateError(f"{answer['unavailable']}; install citygate[javascript]")
    if "fault" in answer:
        printed = f"; it printed: {answer['printed']}" if answer.get("printed") else ""
        raise ProgramFault(f"{program.name}: {answer['fault']}{printed}", frame=payload)
    return answer.get("result")


def _request(
    program: Program, payload: bytes, port: int | None, received_at: datetime | None, *, with_source: bool
) -> bytes:
    request: dict[str, Any] = {"id": hash(program), "form": program.form, "bytes": list(payload), "port": port}
    if received_at is not None:
        request["at_ms"] = received_at.timestamp() * 1000
    if with_source:
        request["source"] = program.source
    return json.dumps(request).encode() + b"\n"


# --- the worker's side -------------------------------------------------------------------------------------------------

# Called as the servers call it: ChirpStack v3 `Decode`, The Things Stack v2 `Decoder`, all others `decodeUplink`.
_GLUE = """
function __run(text) {
  var given = JSON.parse(text), out;
  var input = {bytes: given.bytes, fPort: given.port, variables: {}};
  input.recvTime = given.at_ms === undefined ? new Date() : new Date(given.at_ms);
  if (given.form === "Decode") out = {data: Decode(input.fPort, input.bytes, input.variables)};
  else if (typeof decodeUplink !== "function" && typeof Decoder === "function") out = {data: Decoder(input.bytes, input.fPort)};
  else out = decodeUplink(input);
  return JSON.stringify(out === undefined ? null : out);
}
"""


@cache
def _offered(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _loaded(context: Any, source: str) -> Any:
    """The function that runs the program, in this new context."""
    context.set_memory_limit(MEMORY_BYTES)
    context.set_max_stack_size(STACK_BYTES)
    context.set_time_limit(TIME_S)
    context.eval(_offered("node_like.js"))
    if "Buffer" in source:
        context.eval(_offered("node_buffer.js"))
    context.eval(source)
    context.eval(_GLUE)
    return context.get("__run")


def _run(context: Any, request: dict[str, Any], source: str) -> dict[str, Any]:
    said = _loaded(context, source)(json.dumps(request))
    if not isinstance(said, str) or len(said) > OUTPUT_BYTES:
        return {"fault": f"no result, or more than {OUTPUT_BYTES} bytes of it"}
    result = json.loads(said, parse_constant=lambda name: None)
    if not isinstance(result, dict):
        return {"fault": "the result is no object"}
    if errors := result.get("errors"):
        return {"fault": plain(f"errors: {errors}")}
    if too_deep(result):
        return {"fault": f"its result is nested deeper than {MAX_DEPTH}"}
    if result.get("data") is None:  # values beside it, a Promise: the servers take nothing of it either
        return {"fault": "its result has no data"}
    return {"result": result["data"]}


def _printed(context: Any) -> dict[str, str]:
    """What the program wrote to `console`, bounded; it may have broken that as well."""
    try:
        text = plain(str(context.get("__printed"))[:PRINTED_CHARS])
    except Exception:  # noqa: BLE001 - whatever a foreign program did to its context
        return {}
    return {"printed": text} if text else {}


def _serve() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (PROCESS_BYTES, PROCESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sources: OrderedDict[int, str] = OrderedDict()
    for line in sys.stdin.buffer:
        answer = json.dumps(_answer(sources, json.loads(line))).encode()
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def _answer(sources: "OrderedDict[int, str]", request: dict[str, Any]) -> dict[str, Any]:
    number = request["id"]
    if "source" in request:
        sources[number] = request.pop("source")
        if len(sources) > PROGRAMS:
            sources.popitem(last=False)
    if number not in sources:
        return {"forgot": True}
    sources.move_to_end(number)
    try:
        import quickjs

        context = quickjs.Context()
    except (ImportError, MemoryError) as error:
        return {"unavailable" if isinstance(error, ImportError) else "fault": str(error) or "out of memory"}
    try:
        answer = _run(context, request, sources[number])
    except MemoryError:
        answer = {"fault": "out of memory"}
    except Exception as error:  # noqa: BLE001 - whatever a foreign program does, the worker answers
        answer = {"fault": plain(error)[:300] or type(error).__name__}
    return {**answer, **_printed(context)}


if __name__ == "__main__":
    _serve()
