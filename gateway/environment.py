"""What the process is told from outside: every environment variable that means something to it, in one place.

`main` reads it once and hands it on; nobody else asks the environment.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, PlainValidator, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

OVERRIDE = "CITYGATE__"
SECRET = "CITYGATE_SECRET_"
OVERRIDES, SECRETS = f"{OVERRIDE}…", f"{SECRET}…"  # as people are told of them
OWN = "CITYGATE"  # what begins so is meant for us
CONFIG, DEFAULT_CONFIG = "CITYGATE_CONFIG", "/etc/citygate"
_MAX_USEC = 2**63 - 1
_LEAST_EVERY_S = 0.1  # more often nobody means it


def _as_it_is(value: Any) -> Any:
    return value


def _path(text: str) -> Path:
    return Path(text)


def _first_folder(text: str) -> Path:
    """systemd parts several with colons; each is whole."""
    folder = text.partition(":")[0]
    if not folder.startswith("/"):
        raise ValueError("is no whole path")
    return Path(folder)


def _address(text: str) -> str:
    if not text.startswith(("/", "@")):
        raise ValueError("is no address of a Unix socket: it begins with / or @")
    return text


def _number(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text[:20]) <= _MAX_USEC):
        raise ValueError("is no number above 0")
    return int(text)


# Paths and texts are taken byte for byte: pydantic's own refuse a name that is not UTF-8.
_AnyPath = Annotated[Path, PlainValidator(_path)]
_AnyText = Annotated[str, PlainValidator(_as_it_is)]
_Folder = Annotated[Path, PlainValidator(_first_folder)]
_Named = Annotated[Mapping[str, str], PlainValidator(_as_it_is), NoDecode]  # our texts are no JSON


class Environment(BaseSettings):
    """The variables by what they mean. One that is empty is as one that is not set; one that makes no sense is left aside.

    Attributes:
        wrong: variables that were left aside -> what is the matter.
        others: further names that begin with CITYGATE in any case: probably misspelt.
    """

    model_config = SettingsConfigDict(
        frozen=True, case_sensitive=True, env_ignore_empty=True, extra="ignore", validate_default=False
    )

    config: _AnyPath = Field(
        Path(DEFAULT_CONFIG),
        validation_alias=CONFIG,
        description="config file or folder, where `-c` is not given",
    )
    overrides: _Named = Field(
        {},
        validation_alias=OVERRIDES,
        repr=False,
        description="one value of the config, in place of what the files say",
    )
    secret_texts: _Named = Field(
        {},
        validation_alias=SECRETS,
        repr=False,
        description="text of a secret that neither the service manager nor `secrets/` beside the config has",
    )
    credentials: _AnyPath | None = Field(
        None,
        validation_alias="CREDENTIALS_DIRECTORY",
        description="folder of secrets, one file each: `LoadCredential=` of systemd",
    )
    state: _Folder | None = Field(
        None,
        validation_alias="STATE_DIRECTORY",
        description="folder of the last good config and of the note where the buffer is: `StateDirectory=` of systemd",
    )
    user_state: _Folder | None = Field(
        None,
        validation_alias="XDG_STATE_HOME",
        description="without `STATE_DIRECTORY`: the note is in `citygate/` in it",
    )
    home: _Folder | None = Field(
        None, validation_alias="HOME", description="without both: the note is in `.local/state/citygate/` in it"
    )
    runtime: _Folder | None = Field(
        None,
        validation_alias="RUNTIME_DIRECTORY",
        description="folder in memory, where a last good config is unpacked: `RuntimeDirectory=` of systemd; else that for temporary files",
    )
    service_manager: Annotated[str, PlainValidator(_address)] = Field(
        "", validation_alias="NOTIFY_SOCKET", description="where systemd hears that the daemon is ready, and how it is"
    )
    watchdog_usec: Annotated[int, PlainValidator(_number)] | None = Field(
        None,
        validation_alias="WATCHDOG_USEC",
        description="microseconds within which systemd wants to hear from the daemon: `WatchdogSec=`",
    )
    watchdog_pid: Annotated[int, PlainValidator(_number)] | None = Field(
        None,
        validation_alias="WATCHDOG_PID",
        description="of which process it wants to: when that is another, nobody is watched",
    )
    no_color: _AnyText = Field("", validation_alias="NO_COLOR", description="any text: no colours in a terminal")
    terminal: _AnyText = Field("", validation_alias="TERM", description="`dumb`: no colours in a terminal")

    wrong: _Named = Field({}, repr=False)
    others: Annotated[tuple[str, ...], PlainValidator(_as_it_is), NoDecode] = ()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment alone: no `.env` file of whatever folder somebody stands in."""
        return init_settings, _Variables(settings_cls)

    @model_validator(mode="wrap")
    @classmethod
    def _leave_aside(cls, told: dict[str, Any], validated: ModelWrapValidatorHandler[Self]) -> Self:
        """A variable that makes no sense stops nobody."""
        try:
            return validated(told)
        except ValidationError as error:
            wrong = {str(its["loc"][0]): str(its["ctx"]["error"]) for its in error.errors()}
            return validated({**{name: its for name, its in told.items() if name not in wrong}, "wrong": wrong})

    @property
    def noted_in(self) -> Path | None:
        """The folder of what a box notes of itself: systemd names it to the daemon, else it is the user's; None: there is none."""
        if self.state is not None:
            return self.state
        if self.user_state is not None:
            return self.user_state / "citygate"
        return self.home / ".local/state/citygate" if self.home is not None else None

    def watchdog_every_s(self, pid: int) -> float | None:
        """How often systemd wants to hear from this process, at most; None when it does not watch it."""
        if self.watchdog_usec is None or self.watchdog_pid not in (None, pid):
            return None
        return max(self.watchdog_usec / 1e6, _LEAST_EVERY_S)


class _Variables(EnvSettingsSource):
    """Also those of which only the beginning is known; as they are, since an empty one may be meant."""

    def __call__(self) -> dict[str, Any]:
        ours = {name: text for name, text in os.environ.items() if name.upper().startswith(OWN) and name != CONFIG}
        overrides = {name: text for name, text in ours.items() if name.startswith(OVERRIDE)}
        secrets = {name: text for name, text in ours.items() if name.startswith(SECRET)}
        return {
            **super().__call__(),
            OVERRIDES: overrides,
            SECRETS: secrets,
            "others": tuple(sorted(ours.keys() - overrides.keys() - secrets.keys())),
            "wrong": {},
        }


NOTHING = Environment.model_construct()  # a process that is told nothing
