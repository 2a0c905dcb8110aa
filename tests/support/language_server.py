"""The YAML language server that editors use, spoken to over its standard input and output (LSP)."""

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import Any, Self

WAIT_S = 60  # for an answer; a language server that is asked for its first completion loads the schema
SETTINGS = {
    "validate": True,
    "completion": True,
    "hover": True,
    "customTags": ["!secret scalar"],
    "schemaStore": {"enable": False},
}


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """What is underlined: 1-based, as our messages count."""

    line: int
    column: int
    message: str


class LanguageServer:
    """One server over one folder; documents are opened, asked about and closed.

    Args:
        server: its script, for Node.
        schemas: by address, the files (globs) that have no line of their own that names one.
    """

    def __init__(self, server: Path, folder: Path, schemas: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._settings = {**SETTINGS, "schemas": schemas or {}}
        self._process = subprocess.Popen(
            ["node", server, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._number = 0
        self._answers: dict[int, Queue[Any]] = {}
        self._diagnostics: dict[str, Queue[list[dict[str, Any]]]] = {}
        self._reader = threading.Thread(target=self._read, name="language-server", daemon=True)
        self._reader.start()
        self._ask(
            "initialize",
            processId=None,
            rootUri=folder.as_uri(),
            capabilities={
                "workspace": {"configuration": True},
                "textDocument": {"completion": {"completionItem": {"snippetSupport": True}}},
            },
        )
        self._tell("initialized")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def diagnostics(self, texts: Mapping[str, str]) -> dict[str, list[Diagnostic]]:
        """What it underlines in files of these texts, by path in the folder. It takes its time for each, so all are opened first."""
        with contextlib.ExitStack() as opened:
            uris = {path: opened.enter_context(self._open(text, path)) for path, text in texts.items()}
            return {
                path: list(map(_diagnostic, self._diagnostics[uri].get(timeout=WAIT_S))) for path, uri in uris.items()
            }

    def completions(self, text: str, folder: str = ".") -> set[str]:
        """What it offers at the `‸` of a file in a folder."""
        text, at = _at_caret(text)
        with self._open(text, f"{folder}/{len(self._diagnostics)}.yaml") as uri:
            answer = self._ask("textDocument/completion", textDocument={"uri": uri}, position=at)
        items = answer.get("items", ()) if isinstance(answer, dict) else answer or ()
        return {item["label"] for item in items}

    def hover(self, text: str) -> str:
        """What it says of the key at the `‸`."""
        text, at = _at_caret(text)
        with self._open(text) as uri:
            answer = self._ask("textDocument/hover", textDocument={"uri": uri}, position=at)
        return str(answer["contents"]["value"]) if answer else ""

    @contextlib.contextmanager
    def _open(self, text: str, path: str = "") -> Iterator[str]:
        """A document of its own name, as the server remembers what it parsed."""
        uri = (self._folder / (path or f"{len(self._diagnostics)}.yaml")).as_uri()
        self._diagnostics[uri] = Queue()
        self._tell("textDocument/didOpen", textDocument={"uri": uri, "languageId": "yaml", "version": 1, "text": text})
        yield uri
        self._tell("textDocument/didClose", textDocument={"uri": uri})

    def _ask(self, method: str, **params: Any) -> Any:
        self._number += 1
        answer = self._answers[self._number] = Queue()
        self._send({"id": self._number, "method": method, "params": params})
        return answer.get(timeout=WAIT_S)

    def _tell(self, method: str, **params: Any) -> None:
        self._send({"method": method, "params": params})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._process.stdin
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self._process.stdin.flush()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream
        while line := stream.readline():
            length = int(line.partition(b":")[2])
            while stream.readline().strip():
                pass
            self._take(json.loads(stream.read(length)))

    def _take(self, message: dict[str, Any]) -> None:
        method = message.get("method")
        if method is None:
            self._answers[message["id"]].put(message.get("result", message.get("error")))
        elif method == "textDocument/publishDiagnostics":
            self._diagnostics[message["params"]["uri"]].put(message["params"]["diagnostics"])
        elif method == "workspace/configuration":
            wanted = [self._settings if item["section"] == "yaml" else {} for item in message["params"]["items"]]
            self._send({"id": message["id"], "result": wanted})
        elif "id" in message:
            self._send({"id": message["id"], "result": None})


def _diagnostic(told: dict[str, Any]) -> Diagnostic:
    start = told["range"]["start"]
    return Diagnostic(start["line"] + 1, start["character"] + 1, told["message"])


def _at_caret(text: str) -> tuple[str, dict[str, int]]:
    """The text without its `‸`, and where that stood."""
    before, _, after = text.partition("‸")
    return before + after, {"line": before.count("\n"), "character": len(before) - before.rfind("\n") - 1}
