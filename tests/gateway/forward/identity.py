"""For tests of logins: an identity server, and certificates of a CA of our own."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class IdentityServer:
    """`POST /oauth2/token` as RFC 6749 has it; keeps what it was asked."""

    def __init__(self) -> None:
        self.tokens: list[str] = ["token-1"]  # given one after the other, the last one again and again
        self.expires_in: object = 3600
        self.takes_s = 0.0  # for each answer
        self.status = 200
        self.headers: dict[str, str] = {}  # of an answer that is no token
        self.echo = False  # its refusals repeat what it was asked with
        self.asked: list[tuple[str, dict[str, list[str]]]] = []  # (Authorization, form)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Yields the address of the token endpoint."""
        app = web.Application()
        app.router.add_post("/oauth2/token", self._token)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/oauth2/token"
        finally:
            await runner.cleanup()

    async def _token(self, request: web.Request) -> web.Response:
        form = parse_qs((await request.read()).decode())
        self.asked.append((request.headers.get("Authorization", ""), form))
        await asyncio.sleep(self.takes_s)
        if self.status != 200:
            said = {"error_description": f"unknown: {self.asked[-1]}"} if self.echo else {}
            return web.json_response({"error": "invalid_client", **said}, status=self.status, headers=self.headers)
        token = self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]
        return web.json_response({"access_token": token, "token_type": "Bearer", "expires_in": self.expires_in})


class Authority:
    """A CA that signs server and client certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        self.ca = folder / "ca.pem"
        signed = certificate.sign(self._key, hashes.SHA256())
        self.ca.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: tuple[int, int] = (-1, 30)
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
        )

    def issue(self, name: str, *, days: tuple[int, int] = (-1, 30)) -> tuple[Path, Path]:
        """Certificate and key files for an IP address or a host name, valid from .. to in days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key, days).add_extension(
            x509.SubjectAlternativeName([alternative]), critical=False
        )
        stem = f"{name}-{days[1]}"
        certificate_file, key_file = self._folder / f"{stem}.pem", self._folder / f"{stem}.key"
        signed = builder.sign(self._key, hashes.SHA256())
        certificate_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate_file, key_file

    def server(self, name: str, *, days: tuple[int, int] = (-1, 30), clients: bool = False) -> ssl.SSLContext:
        """A server's context; `clients`: only with a client certificate of this CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(name, days=days))
        if clients:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
