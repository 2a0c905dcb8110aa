"""Vendor JavaScript in a process of its own that can be killed: limits on memory, time and output, no files, no network.

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
from typing import Any

from gateway.sdk.errors import CitygateError, FrameError

MEMORY_BYTES = 16 << 20  # of one program
STACK_BYTES = 256 << 10
TIME_S = 0.2  # of processor time, of one call
DEADLINE_S = 3.0  # of wall time, of one call, worker start included
PROCESS_BYTES = 512 << 20  # address space of the worker
OUTPUT_BYTES = 64 << 10
PROGRAMS = 64  # kept ready; the one unused longest goes
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

    def __init__(self, command: tuple[str, ...] = COMMAND, deadline_s: float = DEADLINE_S) -> None:
        self._command = command
        self._deadline_s = deadline_s
        self._process: asyncio.subprocess.Process | None = None
        self._known: set[Program] = set()
        self._lock = asyncio.Lock()
        self.kills = 0

    async def decode(self, program: Program, payload: bytes, port: int | None) -> Any:
        """What the program makes of a payload.

        Raises:
            ProgramFault: the program failed; the worker lives on or was replaced.
            CitygateError: the worker cannot be started at all (quickjs-ng is not installed).
        """
        async with self._lock:  # one call at a time: a worker that hangs hangs for one call only
            answer = await self._ask(program, payload, port)
        if "fault" in answer:
            raise ProgramFault(f"{program.name}: {answer['fault']}", frame=payload)
        if "unavailable" in answer:
            raise CitygateError(f"{answer['unavailable']}; install citygate[javascript]")
        return answer.get("result")

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

    async def _ask(self, program: Program, payload: bytes, port: int | None) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._deadline_s):
                process = await self._started()
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(_request(program, payload, port, with_source=program not in self._known))
                await process.stdin.drain()
                line = await process.stdout.readline()
        except asyncio.CancelledError:
            self._abandon()  # or its answer would go to the next call
            raise
        except TimeoutError:
            await self._kill()
            return {"fault": f"did not answer within {self._deadline_s:g} s; worker killed"}
        except (OSError, ValueError) as error:  # broken pipe; a line longer than the stream's limit
            await self._kill()
            return {"fault": f"worker lost: {error}"}
        if not line.endswith(b"\n"):
            await self._kill()
            return {"fault": "worker died"}
        self._known.add(program)
        answer = json.loads(line)
        if answer.get("forgot"):
            self._known.discard(program)
            return await self._ask(program, payload, port)
        return answer if isinstance(answer, dict) else {"fault": "worker talks nonsense"}

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


def decode_once(program: Program, payload: bytes, port: int | None) -> Any:
    """One call in a worker of its own, blocking; for `decode` on the command line and for samples.

    Raises:
        ProgramFault, CitygateError: as `Worker.decode`.
    """
    try:
        done = subprocess.run(
            COMMAND,
            input=_request(program, payload, port, with_source=True),
            stdout=subprocess.PIPE,
            timeout=DEADLINE_S,
            check=False,
        )
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise ProgramFault(f"{program.name}: no answer; worker killed", frame=payload) from None
    if "unavailable" in answer:
        raise CitygateError(f"{answer['unavailable']}; install citygate[javascript]")
    if "fault" in answer:
        raise ProgramFault(f"{program.name}: {answer['fault']}", frame=payload)
    return answer.get("result")


def _request(program: Program, payload: bytes, port: int | None, *, with_source: bool) -> bytes:
    request: dict[str, Any] = {"id": hash(program), "form": program.form, "bytes": list(payload), "port": port}
    if with_source:
        request["source"] = program.source
    return json.dumps(request).encode() + b"\n"


# --- the worker's side -------------------------------------------------------------------------------------------------

_GLUE = """
function __run(text) {
  var input = JSON.parse(text), out;
  if (input.form === "Decode") out = {data: Decode(input.fPort, input.bytes, {})};
  else out = decodeUplink({bytes: input.bytes, fPort: input.fPort, variables: {}});
  return JSON.stringify(out === undefined ? null : out);
}
"""


def _compile(source: str) -> Any:
    import quickjs

    context = quickjs.Context()
    context.set_memory_limit(MEMORY_BYTES)
    context.set_max_stack_size(STACK_BYTES)
    context.set_time_limit(TIME_S)
    context.eval(source)
    context.eval(_GLUE)
    return context.get("__run")


def _run(function: Any, request: dict[str, Any]) -> dict[str, Any]:
    said = function(json.dumps({"form": request["form"], "bytes": request["bytes"], "fPort": request["port"]}))
    if not isinstance(said, str) or len(said) > OUTPUT_BYTES:
        return {"fault": f"no result, or more than {OUTPUT_BYTES} bytes of it"}
    result = json.loads(said, parse_constant=lambda name: None)
    if not isinstance(result, dict):
        return {"fault": "the result is no object"}
    if errors := result.get("errors"):
        return {"fault": f"errors: {errors}"[:500]}
    return {"result": result.get("data")}


def _serve() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (PROCESS_BYTES, PROCESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    programs: OrderedDict[int, Any] = OrderedDict()
    for line in sys.stdin.buffer:
        answer = json.dumps(_answer(programs, json.loads(line))).encode()
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def _answer(programs: "OrderedDict[int, Any]", request: dict[str, Any]) -> dict[str, Any]:
    number = request["id"]
    try:
        if number not in programs:
            if "source" not in request:
                return {"forgot": True}
            programs[number] = _compile(request["source"])
            if len(programs) > PROGRAMS:
                programs.popitem(last=False)
        programs.move_to_end(number)
        return _run(programs[number], request)
    except ImportError as error:
        return {"unavailable": str(error)}
    except MemoryError:
        programs.pop(number, None)
        return {"fault": "out of memory"}
    except Exception as error:  # noqa: BLE001 - whatever a foreign program does, the worker answers
        programs.pop(number, None)  # a program that was cut off may be in any state
        return {"fault": (" ".join(str(error).split()) or type(error).__name__)[:300]}


if __name__ == "__main__":
    _serve()
