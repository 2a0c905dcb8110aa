"""How to log in at a broker, and whom to trust there."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from gateway.sdk.config import ConfigModel, FilePath, Secret

_ADDRESS = r"https?://(?:[^/?#\s@:${}<>]+|\[[0-9a-fA-F:.]+\])(?::([0-9]+))?(?:/[^#\s]*)?"


def _check_url(url: str) -> str:
    match = re.fullmatch(_ADDRESS, url)
    if not match:
        raise ValueError(f"{url!r} is not an http or https address (a login does not belong into it)")
    if match[1] and not 1 <= int(match[1]) <= 65535:
        raise ValueError(f"{match[1]} is no port; ports go from 1 to 65535")
    return url


Url = Annotated[str, AfterValidator(_check_url), WithJsonSchema({"type": "string", "pattern": f"^{_ADDRESS}$"})]


class BasicAuth(ConfigModel):
    """HTTP Basic."""

    user: str = Field(description="user name")
    password: Secret = Field(description="write !secret NAME")


class HeaderAuth(ConfigModel):
    """Any static header, such as X-Auth-Token or an API key."""

    name: str = Field(pattern=r"^[A-Za-z0-9-]+$", description="of the header, e.g. X-Auth-Token")
    value: Secret = Field(description="write !secret NAME")


class OAuth2(ConfigModel):
    """A token by OAuth2: client credentials, or with user and password (as Keyrock wants it)."""

    token_url: Url = Field(description="e.g. https://idm.example/oauth2/token")
    client_id: str = Field(description="as registered with the identity server")
    client_secret: Secret = Field(description="write !secret NAME")
    user: str | None = Field(None, description="with password: the password grant instead of client credentials")
    password: Secret | None = Field(None, description="write !secret NAME")
    scope: str | None = Field(None, description="what the token is to be good for, if the server asks")
    header: str = Field(
        "Authorization", pattern=r"^[A-Za-z0-9-]+$", description="Authorization sends Bearer TOKEN, another name TOKEN"
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> "OAuth2":
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password come together")
        return self


class AuthConfig(ConfigModel):
    """One way to log in; none of them: no login."""

    basic: BasicAuth | None = Field(None, description="user and password")
    bearer: Secret | None = Field(None, description="a token that does not change; write !secret NAME")
    header: HeaderAuth | None = Field(None, description="a static header")
    oauth2: OAuth2 | None = Field(None, description="tokens from an identity server")

    @field_validator("bearer", mode="after")
    @classmethod
    def _token_alone(cls, token: Secret | None) -> Secret | None:
        """As people copy it from a header: the word is added when it is sent."""
        return token and Secret(re.sub("^Bearer +", "", token, flags=re.IGNORECASE))

    @model_validator(mode="after")
    def _one(self) -> "AuthConfig":
        ways = [name for name in ("basic", "bearer", "header", "oauth2") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} are two ways to log in; choose one")
        return self


class TlsConfig(ConfigModel):
    """Whom we trust, and who we are (mutual TLS)."""

    ca: FilePath | None = Field(
        None, description="file with the city's own CA certificates (PEM), instead of the system's"
    )
    certificate: FilePath | None = Field(None, description="file with our certificate (PEM), for mutual TLS")
    key: FilePath | None = Field(
        None, description="file with its private key (PEM); default: in the certificate's file"
    )
    verify: bool = Field(True, description="false trusts anybody; for a trial only: status says so all the time")
