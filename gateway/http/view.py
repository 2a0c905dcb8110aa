"""What page, read API, metrics and verbs see of the running gateway; `Daemon` implements it, tests fake it."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from aiohttp import web

from gateway.harmonise.entity import Entity

Verb = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""One more verb of the control socket: JSON arguments in, something orjson can write out. Raises CitygateError."""


class GatewayView(Protocol):
    """The gateway as seen from outside. All methods but the async ones answer at once, from memory."""

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """Verbs beside those below, by name as in `POST /control/NAME` (`buffer-held-list`)."""

    @property
    def config_file(self) -> str:
        """The operator's main file, from the root."""

    def status(self) -> dict[str, Any]:
        """The status of everything, in the shape of docs/command.md; times are RFC 3339 UTC.

        `{gateway: {id, name, city, version, config, started_at, now, ready: [reason]}, config: {path, using, since,
        refused_at, problems, waiting, last_good}, links: {NAME: LinkHealth +
        devices: {NAME: DeviceHealth + {template, paused_until, points: {NAME: {quantity, value, unit, symbol, quality,
        reason, observed_at, time_source}}}}}, brokers: {NAME: BrokerHealth + {kind, url}}, log: {…}, clock: {…}}`,
        where LinkHealth and so on are the fields of the records in `gateway.health`. No secret is in it.
        """

    def ready(self) -> tuple[str, ...]:
        """Why the box does not do all of its work now; empty when it does."""

    def entities(self) -> Iterable[Entity]:
        """The entities of all devices as of now, from the last good values; those still incomplete are left out."""

    async def read(self, device: str) -> dict[str, Any]:
        """One real read through the link's own queue: `{sent, received, readings}`.

        `sent` and `received` are hexadecimal, `readings` as `gateway.http.shapes.reading_rows` makes them.

        Raises:
            UnknownName: no such device.
            LinkError: the link is down or does not take one-shot reads; the message says which.
        """

    async def pause(self, device: str, seconds: float) -> dict[str, Any]:
        """Maintenance: what the device says for `seconds` never reaches a city; 0 ends it. `{device, until}`."""

    async def reload(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Validate the files, then apply what changed; a dry run only says what would be.

        `{changed: [line], changes: [{path, old, new, applies}], restarts: {links, brokers}, restarted: [name], waiting:
        [path], owed: {brokers: {NAME: n}, devices: {NAME: {BROKER: n}}, all_counted}, becomes: [{of, readings, lost,
        text}], warnings: [problem]}`: `waiting` needs a restart of the daemon, `owed` are the readings that the changes
        concern, `becomes` says what becomes of them, and of entities that get another id. No secret is in it.

        Raises:
            ConfigError: nothing was changed.
        """

    async def once(self) -> dict[str, Any]:
        """One full cycle: each device read, then everything owed sent: `{devices: {NAME: n readings}, brokers: {…}}`."""

    async def preview(self, device: str) -> dict[str, Any]:
        """The exact entities per broker, nothing sent: `{source: "last values"|"sample", brokers: {NAME: [entity]}}`."""


VIEW: web.AppKey[GatewayView] = web.AppKey("view", GatewayView)
