"""What the command itself says of a broker that quotes our credential: as little of it as the daemon does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gateway import hidden
from tests.gateway.cli.conftest import Command

SECRET = "Brk-Tok3n-of-Milano-99xyz"


class Echo(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"message": self.headers.get("Authorization", "") * 2}).encode()
        self.send_response(403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
    hidden.keep_secret(())


@pytest.mark.parametrize("verb", [("doctor",), ("doctor", "--json")])
def test_doctor_shows_no_credential_that_a_broker_says(
    citygate: Command, tmp_path: Path, echo: str, verb: tuple[str, ...]
) -> None:
    (tmp_path / "citygate.yaml").write_text(
        f"version: 1\ngateway: {{id: gw-1, city: milano, location: [9.159, 45.503]}}\nbuffer: {{path: {tmp_path}/buffer.db}}\n"
        f"brokers: {{milano: {{url: '{echo}', auth: {{bearer: !secret milano}}}}}}\n"
    )
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/milano").write_text(SECRET)

    said = citygate(*verb[:1], "-c", str(tmp_path), *verb[1:])

    text = said.out + said.err
    assert "milano" in text
    assert SECRET[:8] not in text
