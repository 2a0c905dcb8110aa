"""Composition root: a Plan in, one TaskGroup out; reload, stop. Read this first."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gateway.backoff import Backoff
from gateway.changes import changes, waiting
from gateway.clock import Source, SystemClock
from gateway.config.explain import as_json
from gateway.config.last_good import LastGood
from gateway.config.place import last_place, note_place
from gateway.driver_run import SharedLoop, owned_task
from gateway.environment import NOTHING, Environment
from gateway.fates import foretell
from gateway.forward.broker import Broker
from gateway.forward.checked import SAMPLE_OF, Checked
from gateway.forward.dates import Dates
from gateway.forward.forwarder import Forwarder
from gateway.forward.greetings import Greetings, city_of
from gateway.forward.ngsild import broker_of
from gateway.forward.settings import settings_of
from gateway.forward.updates import Told
from gateway.harmonise.devices import box_set, sensor_set
from gateway.harmonise.entity import Entity, harmonise
from gateway.health import BrokerHealth, BrokerState, Health, LinkHealth, notify, set_state
from gateway.hidden import keep_secret
from gateway.http.outcome import UnknownName
from gateway.http.preview import Good, previewed, sample_values
from gateway.http.server import Server
from gateway.http.shapes import exchange_row, reading_rows, socket_path, utc
from gateway.http.view import Verb
from gateway.journal import bind, event, fault
from gateway.link import LinkService, is_at
from gateway.log import console
from gateway.log.log import Consumer, Log, LogSettings
from gateway.log.moved import bring_along
from gateway.models.validator import Validator
from gateway.plan import BrokerPlan, DevicePlan, Difference, LinkPlan, Plan, difference
from gateway.reach import lacking_secret, look_at
from gateway.recipes import Devices, devices_of, gone_tables
from gateway.registry import Registry
from gateway.sdk.errors import CitygateError, ConfigError
from gateway.sdk.quantities import units
from gateway.sdk.reading import Quality, ReadingSet
from gateway.sdk.values import told
from gateway.standing import Standing
from gateway.supervisor import Interrupted, LagMonitor, Service, supervise

STOP_WITHIN_S = 5.0
LEAVE_WITHIN_S = 1.0  # everything is committed by then
TELL_FIRST_S = 60.0  # after the start there is little to tell
HOUSEKEEPING_S = 2.0
CHANGES_TOLD = 50  # of a reload, in the journal
LEND_S = 60.0  # a port; who needs it longer asks again
WRITER_STUCK_S = 60.0  # a card may take long; longer than this systemd may restart us
LINK_RETRY_FIRST_S, LINK_RETRY_CAP_S = 1.0, 60.0
LINK_RETRY_QUICK_S, LINK_RETRY_QUICK_FOR_S = 5.0, 300.0  # an outage is noticed to be over soon, while it is young


class Daemon:
    """One box at work. `run` serves until SIGTERM; everything else is what page, metrics and verbs ask of it.

    Args:
        path: the operator's file or its folder.
        environment: what the process is told from outside.
        last_good: file that keeps the last config that worked; None keeps none.
        fall_back: start with that one when the operator's file is wrong.

    Raises:
        ConfigError: from the constructor, with every problem; nothing was touched.
    """

    def __init__(
        self,
        path: Path,
        environment: Environment = NOTHING,
        *,
        registry: Registry | None = None,
        clock: SystemClock | None = None,
        last_good: Path | None = None,
        fall_back: bool = False,
    ) -> None:
        self._path = path
        kept = LastGood(last_good) if last_good is not None else None
        self._environment = environment
        self._notify = partial(notify, environment.service_manager)
        self._standing = Standing(path, registry or Registry(), kept, lambda: datetime.now(UTC), environment)
        self.plan: Plan = self._standing.start(fall_back=fall_back)
        keep_secret(self.plan.secrets)
        self._clock = clock or SystemClock(trust=self.plan.config.clock.trust)
        self._standing.now = self._clock.now
        self._health = Health(self._clock)
        self._links: dict[str, LinkService] = {}
        self._forwarders: dict[str, Forwarder] = {}
        self._greetings = Greetings()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stop = asyncio.Event()
        self._reload_asked = asyncio.Event()
        self._reload_lock = asyncio.Lock()
        self._log: Log
        self._group: asyncio.TaskGroup
        self.server: Server | None = None
        self._lent: dict[str, float] = {}  # link -> until when a command has its port
        self._left_behind = ""  # what another place still owes

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `stop` is called or SIGTERM or SIGINT comes; SIGHUP reloads.

        Raises:
            LogError: the log cannot be used, or another daemon holds it.
        """
        for name, what in self._environment.wrong.items():
            event("variable_ignored", variable=name, reason=what)
        config = self.plan.config
        devices = devices_of(self.plan)
        path = Path(config.buffer.path)
        if (before := last_place(self._path, self._environment)) is not None and before != path.absolute():
            self._left_behind = await asyncio.to_thread(bring_along, before, path, self._clock)
        if not self._left_behind:
            note_place(self._path, path, self._environment)
        self._log = await Log.open(
            _log_settings(self.plan),
            clock=self._clock,
            consumers=[_consumer(b, devices) for b in self.plan.brokers.values()],
            devices=devices,
        )
        try:
            async with asyncio.TaskGroup() as self._group:
                self.server = Server(
                    self,
                    listen=config.http.listen,
                    control_socket=socket_path(Path(config.buffer.path)),
                    token=config.http.token,
                )
                self._handle_signals()
                self._start("http", self.server)
                self._start("lag-monitor", Chore("lag-monitor", lambda: LagMonitor(self._blocked).run()))
                self._start("reload", Chore("reload", self._reload_when_asked))
                self._start("housekeeping", Chore("housekeeping", self._housekeep))
                self._start("devices", Chore("devices", self._tell_of_devices))
                self._start("last-good", Chore("last-good", self._standing.keep))
                for link in self.plan.links.values():
                    self._start_link(link)
                for broker in self.plan.brokers.values():
                    self._start_broker(broker)
                event("started", gateway=config.gateway.id, links=len(self.plan.links), brokers=len(self.plan.brokers))
                self._notify("READY=1")
                self._standing.good()
                await self._stop.wait()
                self._notify("STOPPING=1")
                await self._stop_all()
        finally:
            await self._log.close()
            self._standing.close()
            event("stopped")

    def stop(self) -> None:
        """Stop cleanly: no more polls, everything committed."""
        self._stop.set()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)

    def _spawn(self, name: str, work: Any) -> None:
        self._tasks[name] = self._group.create_task(work, name=name)

    def _start(self, name: str, service: Service, cut_off: Callable[[], None] | None = None) -> None:
        backoff = Backoff(
            LINK_RETRY_FIRST_S, LINK_RETRY_CAP_S, quick_cap_s=LINK_RETRY_QUICK_S, quick_for_s=LINK_RETRY_QUICK_FOR_S
        )
        self._spawn(name, supervise(service, backoff=backoff, clock=self._clock, cut_off=cut_off))

    async def _end(self, *names: str) -> None:
        """Cancel these tasks and wait until they are gone, at most `STOP_WITHIN_S`."""
        tasks = {self._tasks.pop(name) for name in names if name in self._tasks}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_WITHIN_S)

    async def _stop_all(self) -> None:
        # Links first: what they emit until then is still committed.
        await self._end(*(name for name in self._tasks if name.startswith("link ")))
        await self._end(*self._tasks)
        for link in self._links.values():
            link.close()

    def _start_link(self, plan: LinkPlan) -> None:
        self._lent.pop(plan.name, None)
        record = self._health.link(plan.name, plan.driver_name)
        record.driver = plan.driver_name
        if plan.driver is None or plan.config is None or plan.fault:
            self._health.set_state(record, plan.name, "off", plan.fault, plan.remedy)
            record.devices.clear()
            return
        for device in plan.devices.values():
            self._log.statistics.expect(device.name, getattr(device.config, "every_s", None))
        service = LinkService(
            plan.name, plan.driver, plan.config, log=self._log, health=self._health, clock=self._clock
        )
        self._links[plan.name] = service
        self._health.set_state(record, plan.name, "starting")  # what an earlier run said of itself is over
        self._start(service.name, service, service.cut_off)

    def _start_broker(self, plan: BrokerPlan, told: Told | None = None) -> None:
        record = self._health.broker(plan.name, plan.config.kind)
        record.kind = plan.config.kind
        if plan.fault:
            set_state(record, plan.name, BrokerState.OFF, plan.fault, plan.remedy, at=self._clock.now())
            return
        set_state(record, plan.name, BrokerState.STARTING, at=self._clock.now())

        async def forward() -> None:
            bind(broker=plan.name)
            offer_time = partial(self._clock.offer, source=Source.BROKER, who=f"broker {plan.name}")
            turns = self._greetings.of(plan.config.url)
            broker: Broker = broker_of(plan.config, offer_time=offer_time, dates=Dates(self._clock), turns=turns)
            every = SAMPLE_OF if plan.config.check == "sampled" else 1
            models = self.plan.models
            validator = None if plan.config.check == "off" else Validator(models)
            broker = Checked(broker, validator, every=every, left_out=record.left_out)
            last = self._forwarders.get(plan.name)  # it failed
            forwarder = Forwarder(
                plan.name,
                broker,
                plan.mappings,
                log=self._log,
                health=record,
                clock=self._clock,
                settings=settings_of(plan.config),
                recipes=lambda device: gone_tables(device, self._log.recipe(device, plan.name), models),
                before=told if last is None else last.told(),
            )
            self._forwarders[plan.name] = forwarder
            await forwarder.run()

        def failed(error: Exception) -> None:
            reason, remedy = f"internal: {error}", "please report it with the journal"
            set_state(record, plan.name, BrokerState.DOWN, reason, remedy, at=self._clock.now())

        name = f"broker {plan.name}"
        self._start(name, Chore(name, forward, failed))

    def _blocked(self, task: str, seconds: float) -> None:
        name = task.removeprefix("link ")
        record = self._health.links.get(name)
        if record is not None:
            record.counters["blocked_the_loop"] += 1

    async def _housekeep(self) -> None:
        """Feed the watchdog while loop and writer live, and keep log and clock in the health records."""
        every_s = min(HOUSEKEEPING_S, (self._environment.watchdog_every_s(os.getpid()) or 60.0) / 3)
        while True:
            for link in self._links.values():
                link.end_pauses()
            self._take_back_ports()
            self._health.log = self._log.status()
            self._health.clock = self._clock.status()
            if self._health.log.get("writer_busy_s", 0) < WRITER_STUCK_S:
                self._notify("WATCHDOG=1")
            self._look_at_brokers()
            bad = [*self._standing.reasons(), *self._health.bad()]
            self._notify(f"STATUS={told(bad[0]) if bad else 'all is well'}")
            await asyncio.sleep(every_s)

    async def _tell_of_devices(self) -> None:
        """Log at a slow period how box and sensors are; their Device entities are made of it like any other."""
        await self._clock.sleep(min(TELL_FIRST_S, self.plan.config.publish.devices_s or TELL_FIRST_S))
        while True:
            every_s = self.plan.config.publish.devices_s
            if every_s:
                for readings in self._told(self._clock.now()):
                    await self._log.append(readings)
            await self._clock.sleep(every_s or TELL_FIRST_S)

    def _told(self, now: datetime) -> Iterable[ReadingSet]:
        newest: datetime | None = None
        for name, plan in self.plan.devices.items():
            link = self._health.links.get(plan.link)
            record = link.devices.get(name) if link else None
            seen = record.last_good_at if record else None
            newest = max(filter(None, (newest, seen)), default=None)
            latest = {point: value for point, (value, _) in self._good(name).items()}
            state, reason = (record.state, record.reason) if record else ("waiting", "")
            yield sensor_set(plan, latest, state=state, reason=reason, last_value_at=seen, now=now)
        bad = self._health.bad()
        state, reason = ("degraded", bad[0]) if bad else ("ok", "")
        yield box_set(state=state, reason=reason, last_value_at=newest, now=now)

    # --- reload ----------------------------------------------------------------------------------------------------

    async def _reload_when_asked(self) -> None:
        """SIGHUP reloads; systemd is told when it begins and ends."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            self._notify(f"RELOADING=1\nMONOTONIC_USEC={int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6)}")
            try:
                await self.reload()
            except ConfigError:
                pass  # told and shown
            finally:
                self._notify("READY=1")

    async def reload(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Validate, then restart only what changed. See `GatewayView.reload`."""
        async with self._reload_lock:
            try:
                new = await asyncio.to_thread(self._standing.read, self.plan)
                devices = await asyncio.to_thread(devices_of, new)
            except Exception as error:
                if not dry_run:
                    event("reload_refused")
                    self._standing.refused(error)
                raise
            shown = await self._shown(new, devices)
            if dry_run:
                return shown
            keep_secret(self.plan.secrets | new.secrets)  # what goes is still said until it is gone
            change = difference(self.plan, new)
            links = sorted({*change.links, *self._given_up()})
            for name in links:
                await self._end_link(name)
            told: dict[str, Told | None] = {}
            renamed = {its.config.was: name for name, its in new.brokers.items()}
            for name in change.brokers:
                said, now = await self._end_broker(name), renamed.get(name, name)
                if name in self.plan.brokers and _is_same(self.plan.brokers[name], new.brokers.get(now)):
                    told[now] = said
            await self._log.set_consumers([_consumer(b, devices) for b in new.brokers.values()], devices)
            if self._stop.is_set():  # what is started now, nobody would end
                raise CitygateError("the daemon is being stopped")
            old, self.plan = self.plan, new  # from here in one go: who asks meanwhile sees the old plan or the new one
            self._standing.at_work(new)
            self._standing.taken()
            for name in self._health.links.keys() - new.links.keys():
                del self._health.links[name]
            for name in self._health.brokers.keys() - new.brokers.keys():
                del self._health.brokers[name]
            for name in links:
                if name in new.links:
                    self._start_link(new.links[name])
            for name in change.brokers:
                if name in new.brokers:
                    self._start_broker(new.brokers[name], told.get(name))
            if old.config.publish.devices_s != new.config.publish.devices_s:
                await self._end("devices")
                self._start("devices", Chore("devices", self._tell_of_devices))
            event("reloaded", links=links, brokers=list(change.brokers), changed=shown["changed"][:CHANGES_TOLD])
            return {**shown, "restarted": [*links, *change.brokers]}

    async def _end_broker(self, name: str) -> Told | None:
        """Stop forwarding to a broker; what the next forwarder is to know."""
        await self._end(f"broker {name}")
        ended = self._forwarders.pop(name, None)
        return None if ended is None else ended.told()

    async def _forget(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `Console.forget`; who has read anything of a device that is forgotten begins anew."""
        forget = console.verbs(self._log)["buffer-forget"]
        async with self._reload_lock:
            device = self._log.gone_devices().get(str(given.get("device") or ""), {"brokers": {}})
            told = {name: await self._end_broker(name) for name in device["brokers"] if name in self.plan.brokers}
            try:
                found: dict[str, Any] = await forget(given)
            finally:
                for name, said in told.items() if not self._stop.is_set() else ():
                    self._start_broker(self.plan.brokers[name], said)
            return found

    async def _shown(self, new: Plan, devices: Devices) -> dict[str, Any]:
        """What a new plan changes, in words; see `GatewayView.reload`."""
        found = difference(self.plan, new)
        waits = [row.path for row in waiting(self._standing.opened or self.plan.config, new.config, new.secrets)]
        rows = changes(self.plan, new, found, set(waits))
        links = sorted({*found.links, *self._given_up()})
        return {
            "changed": [row.text for row in rows],
            "changes": [dataclasses.asdict(row) for row in rows],
            "restarts": {"links": links, "brokers": list(found.brokers)},
            "restarted": [],
            "waiting": waits,
            **await self._owed(found, new, devices),
            "warnings": [as_json(problem) for problem in new.warnings],
        }

    async def _owed(self, found: Difference, new: Plan, after: Devices) -> dict[str, Any]:
        """How many readings a change concerns, those that brokers are still to get, and of devices which; what becomes of them."""
        log, known = self._log, self._log.recipes
        backlogs = {name: log.backlog(name)[0] for name in self.plan.brokers}
        told = await foretell(
            log,
            new,
            after(known),
            there={device for device, _ in known if log.is_there(device)},
            cities={name: _city(broker) for name, broker in self.plan.brokers.items()},
            also=set(found.devices),
        )
        sums: dict[str, dict[str, int]] = {}
        for (device, broker), points in told.counts.items():
            if device in found.devices:
                sums.setdefault(device, {})[broker] = sum(points.values())
        return {
            "owed": {
                "brokers": {name: backlogs[name] for name in found.brokers if backlogs.get(name)},
                "devices": sums,
                "all_counted": told.whole,
            },
            "becomes": [dataclasses.asdict(fate) for fate in told.fates],
        }

    def _given_up(self) -> Iterable[str]:
        """Links at which a restart did not help: what was wrong may have been put right outside of the file."""
        return (name for name in self._links if self._health.links[name].state == "off")

    # --- what page, metrics and verbs ask ----------------------------------------------------------------------------

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """Verbs of parts that bring their own."""
        return {
            **console.verbs(self._log),
            "write": self._write,
            "record": self._record,
            "secrets": self._secrets,
            "reach": self._reach,
            "lend": self._lend,
            "buffer-forget": self._forget,
        }

    @property
    def config_file(self) -> str:
        """See `GatewayView.config_file`."""
        return str(self._standing.file)

    async def _secrets(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Which secrets are at work; see `Standing.secrets`."""
        return await asyncio.to_thread(self._standing.secrets, self.plan)

    async def _reach(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """What can be said of the brokers of the file as it is now, by who has their logins: `{NAME: [finding]}`."""
        async with self._reload_lock:
            new = await asyncio.to_thread(self._standing.read, self.plan)
            keep_secret(self.plan.secrets | new.secrets)

        async def looked(plan: BrokerPlan) -> list[dict[str, str]]:
            found = look_at(plan.name, plan, lacking_secret(new, plan.name))
            return [dataclasses.asdict(finding) async for finding in found]

        return dict(zip(new.brokers, await asyncio.gather(*map(looked, new.brokers.values())), strict=True))

    async def _lend(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Leave the wire of a link to a command for `seconds`, until it asks again; 0 ends it, and so does the time. By `port`, or
        `host` and `port`: `{link}`, "" where no link of ours is at work."""
        seconds = given.get("seconds")
        if not isinstance(seconds, int | float) or not 0 <= seconds <= LEND_S:
            raise UnknownName(f"a port is lent for up to {LEND_S:g} s")
        async with self._reload_lock:
            name = next(
                (its.name for its in self.plan.links.values() if not its.fault and is_at(its.config, given)), ""
            )
            if self._stop.is_set():
                raise CitygateError("the daemon is being stopped")
            if name and seconds:
                await self._leave(name)
                self._lent[name] = self._clock.monotonic_s() + seconds
            elif name in self._lent:
                self._lent[name] = 0.0
        self._take_back_ports()
        return {"link": name}

    async def _end_link(self, name: str) -> None:
        await self._end(f"link {name}")
        if name in self._links:
            self._links.pop(name).close()

    async def _leave(self, name: str) -> None:
        await self._end_link(name)
        self._health.set_state(self._health.links[name], name, "paused", "a command has its port", "it ends by itself")

    def _take_back_ports(self) -> None:
        """Start the links whose time is over; a reload in the middle of its work starts none twice."""
        if self._stop.is_set() or self._reload_lock.locked():
            return
        for name in [name for name, until_s in self._lent.items() if until_s <= self._clock.monotonic_s()]:
            del self._lent[name]
            if name in self.plan.links:
                self._start_link(self.plan.links[name])

    async def _write(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Write one allow-listed point: `device`, `point`, `value`; answers as `read` does."""
        plan = self._device(str(given.get("device")))
        value = given.get("value")
        if not isinstance(value, str | int | float):
            raise UnknownName("argument value is missing")
        exchange = await self._service(plan).request(plan.name, point=str(given.get("point")), value=value)
        event("point_written", device=plan.name, point=given.get("point"), value=value)
        return exchange_row(plan.template, exchange)

    async def _record(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What goes over the wire of `link` in the next `seconds`: `{recording: text}`."""
        name, seconds = str(given.get("link")), given.get("seconds", 0)
        if name not in self._links:
            raise UnknownName(f"no link {name} at work; there are {', '.join(sorted(self._links)) or 'none'}")
        if not isinstance(seconds, int | float) or not 0 < seconds <= 600:
            raise UnknownName("a recording takes up to 600 s")
        return {"recording": await self._links[name].record(float(seconds))}

    def ready(self) -> tuple[str, ...]:
        """Why the box does not do all of its work now."""
        self._look_at_brokers()
        reasons = [*self._standing.reasons(), *self._health.bad()]
        for part, its in (("log", self._log.status()), ("clock", self._clock.status())):
            if its["state"] != "ok":
                since = f" since {utc(its['since'])}" if its.get("since") else ""
                reasons.append(f"{part}: {its.get('reason') or its['state']}{since}; {its['remedy']}")
        if self._left_behind:
            remedy = "set buffer.path back until that is sent, or delete that file to give it up"
            reasons.append(f"log: {self._left_behind}; {remedy}")
        if self.server is not None and self.server.fault:
            reasons.append(f"http: {self.server.fault}")
        return tuple(reasons)

    def status(self) -> dict[str, Any]:
        """See `GatewayView.status`."""
        config, ready = self.plan.config, list(self.ready())  # this looks at everything
        return {
            "gateway": {
                "id": config.gateway.id,
                "name": config.gateway.name,
                "city": config.gateway.city,
                "version": version("citygate"),
                "config": str(self._path),
                "url": self.server.url if self.server else "",
                "pid": os.getpid(),
                "started_at": utc(self._health.started_at),
                "now": utc(self._clock.now()),
                "ready": ready,
            },
            "links": {name: self._link_status(name) for name in self.plan.links},
            "brokers": {
                name: {**_plain(record), "url": self.plan.brokers[name].config.url} for name, record in self._brokers()
            },
            "config": self._standing.status(),
            "log": _texts(self._log.status()),
            "clock": _texts(self._clock.status()),
        }

    def _link_status(self, name: str) -> dict[str, Any]:
        record, plan = self._health.links[name], self.plan.links[name]
        refused = self._health.refused_by()
        devices = {
            device: {
                **_plain(record.devices[device]),
                "template": its.template.name,
                "refused_by": refused.get(device, {}),
                "points": self._point_status(its),
            }
            for device, its in plan.devices.items()
            if device in record.devices
        }
        rejected = [_texts(dataclasses.asdict(row)) for row in record.rejected.newest_first()]
        return {**_plain(record), "rejected": rejected, "devices": devices}

    def _point_status(self, device: DevicePlan) -> dict[str, Any]:
        last = self._log.last_values.device(device.name)
        rows = {}
        for name, point in device.points.items():
            value = last.get(name)
            rows[name] = {
                "quantity": point.quantity,
                "value": value.value if value else None,
                "unit": point.unit,
                "symbol": units()[point.unit].symbol if point.unit else "",
                "quality": value.quality.value if value else "",
                "reason": value.reason.value if value else "",
                "observed_at": utc(_time(value.time_us)) if value else None,
                "time_source": value.time_source.value if value else "",
            }
        return rows

    def entities(self) -> Iterable[Entity]:
        """See `GatewayView.entities`."""
        for device, mappings in self.plan.read_api.items():
            good = self._good(device)
            for mapping in mappings:
                if good and not mapping.missing(set(good)):
                    yield harmonise(mapping, good)

    def _good(self, device: str) -> dict[str, tuple[Any, int]]:
        """Point -> (value, time in µs) of the latest good readings of a device."""
        return {
            point: (last.value, last.time_us)
            for point, last in self._log.last_values.device(device).items()
            if last.quality is Quality.GOOD
        }

    def _device(self, name: str) -> DevicePlan:
        if name not in self.plan.devices:
            raise UnknownName(f"no device {name}; there are {', '.join(sorted(self.plan.devices)) or 'none'}")
        return self.plan.devices[name]

    def _service(self, device: DevicePlan) -> LinkService:
        service = self._links.get(device.link)
        if service is None:
            record = self._health.links.get(device.link, LinkHealth(state="gone"))
            raise CitygateError(f"link {device.link} is {record.state}: {record.reason}")
        return service

    async def read(self, device: str) -> dict[str, Any]:
        """See `GatewayView.read`."""
        plan = self._device(device)
        exchange = await self._service(plan).request(device)
        return exchange_row(plan.template, exchange)

    async def pause(self, device: str, seconds: float) -> dict[str, Any]:
        """See `GatewayView.pause`."""
        return {"device": device, "until": utc(self._service(self._device(device)).pause(device, seconds))}

    def _brokers(self) -> Iterator[tuple[str, BrokerHealth]]:
        """Their records as things are at this moment: a forwarder that waits has not looked since."""
        self._look_at_brokers()
        yield from self._health.brokers.items()

    def _look_at_brokers(self) -> None:
        for name, forwarder in self._forwarders.items():
            with contextlib.suppress(KeyError):  # in the middle of a reload
                forwarder.show()
            self._health.brokers[name].given_up = self._log.given_up(name)
        for name, record in self._health.brokers.items():
            if record.state == BrokerState.OFF:  # nobody looks after it, and it is owed all the same
                record.backlog, record.oldest_unsent_at = self._log.backlog(name)

    async def once(self) -> dict[str, Any]:
        """See `GatewayView.once`. Sending goes on by itself; who asks watches the backlog."""
        devices = {name: await self._once(plan) for name, plan in self.plan.devices.items()}
        return {"devices": devices, "brokers": {name: _plain(record) for name, record in self._brokers()}}

    async def _once(self, device: DevicePlan) -> dict[str, Any]:
        try:
            service = self._service(device)
            exchange = await service.request(device.name)
            await service.emit(ReadingSet(device.name, exchange.readings))
        except CitygateError as error:
            return {"readings": 0, "error": str(error)}
        good = sum(row["quality"] == "good" for row in reading_rows(device.template, exchange.readings))
        return {"readings": good, "error": "" if good else "no good reading"}

    async def preview(self, device: str) -> dict[str, Any]:
        """See `GatewayView.preview`."""
        plan = self._device(device)
        driver = self.plan.links[plan.link].driver
        good: Good = self._good(device)
        source = "last values"
        if not good and driver is not None:
            good = sample_values(driver, plan.template, now=self._clock.now())
            source = f"sample frames of template {plan.template.name}"
        tables = {name: (its.config.kind, its.mappings.get(device, ())) for name, its in self.plan.brokers.items()}
        tables = tables or {"read API": ("ngsi-ld", self.plan.read_api.get(device, ()))}
        return previewed(source, good, tables, Validator(self.plan.models))


class Chore:
    """Work that is restarted when it fails, so that no fault of ours ends the daemon."""

    silent_after_s: float | None = None
    progress_at_s = 0.0
    came_up = False

    def __init__(
        self, name: str, work: Callable[[], Awaitable[None]], failed: Callable[[Exception], None] | None = None
    ) -> None:
        self.name = name
        self._work = work
        self._failed = failed

    async def run(self) -> None:
        """Do the work."""
        await self._work()

    def failed(self, error: Exception) -> None:
        """It will be done again."""
        event("chore_failed", chore=self.name, reason=str(error))
        if self._failed is not None:
            self._failed(error)

    def stopped(self, error: Exception) -> None:
        """Only a config can cure it."""
        self.failed(error)


_NOT_SHOWN = ("devices", "rejected", "paused_until_s")


def _is_same(old: BrokerPlan, new: BrokerPlan | None) -> bool:
    """Whether it is the same broker, with the same tenant: only that one has what it was told."""
    if new is None:
        return False
    return _city(old) == _city(new)


def _city(broker: BrokerPlan) -> str:
    return city_of(broker.config.url, broker.config.tenant)


def _plain(record: Any) -> dict[str, Any]:
    """A health record as JSON, its devices and rejections left out."""
    fields = (field.name for field in dataclasses.fields(record) if field.name not in _NOT_SHOWN)
    return _texts({name: getattr(record, name) for name in fields})


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Times as text."""
    return {name: utc(value) if isinstance(value, datetime) else value for name, value in row.items()}


def _time(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC) + timedelta(microseconds=time_us % 1_000_000)


def _taken(broker: BrokerPlan) -> dict[str, set[str]]:
    """Device -> points that a broker gets."""
    return {device: {point for its in mappings for point in its.slots} for device, mappings in broker.mappings.items()}


def _consumer(broker: BrokerPlan, devices: Devices) -> Consumer:
    taken = _taken(broker)

    def takes(device: str, point: str) -> bool:
        return point in taken.get(device, ()) or devices.gone_takes(broker.name, device, point)

    return Consumer(broker.name, broker.config.start, was=broker.config.was or "", takes=takes, city=_city(broker))


def _log_settings(plan: Plan) -> LogSettings:
    buffer = plan.config.buffer
    return LogSettings(
        path=Path(buffer.path),
        commit_every_s=buffer.commit_every_s,
        max_size_bytes=buffer.max_size_bytes,
        max_age_s=buffer.max_age_s,
        keep_s=buffer.keep_s,
        unconfirmed=plan.config.clock.unconfirmed,
    )


def serve(
    path: Path, environment: Environment = NOTHING, *, last_good: Path | None = None, fall_back: bool = False
) -> None:
    """Run the daemon of this config until it is told to stop; then nothing that a driver left behind can hold it.

    Args:
        environment, last_good, fall_back: see `Daemon`.

    Raises:
        ConfigError: with every problem; nothing was touched.
        LogError: the log cannot be used, or another daemon holds it.
        CitygateError: something in this process has ended it that had no right to; a new start helps.
    """
    daemon = Daemon(path, environment, last_good=last_good, fall_back=fall_back)
    with asyncio.Runner(loop_factory=SharedLoop) as runner:
        loop = runner.get_loop()
        loop.set_task_factory(owned_task)
        main = loop.create_task(daemon.run(), name="daemon")
        while True:
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    loop.run_until_complete(main)
                break
            except (SystemExit, KeyboardInterrupt, Interrupted, RuntimeError) as error:  # RuntimeError: it was stopped
                if main.done() or loop.is_closed():
                    raise
                # from a callback or a task of a driver's own; the loop goes on where it was
                fault("exit_refused", error)
        unasked = main.cancelled()
        if unasked:
            event("cancelled_unasked")
        _leave(loop, code=int(unasked))
    if unasked:
        raise CitygateError("a driver has cancelled the tasks of the gateway; all that was taken is committed")


def _leave(loop: asyncio.AbstractEventLoop, *, code: int) -> None:
    """End the process where a driver would keep it: by a task that ignores cancel, or a thread that never ends."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        _, left = loop.run_until_complete(asyncio.wait(left, timeout=LEAVE_WITHIN_S))
    loop.run_until_complete(asyncio.wait({loop.create_task(loop.shutdown_default_executor())}, timeout=LEAVE_WITHIN_S))
    until_s = time.monotonic() + LEAVE_WITHIN_S
    others = [its for its in threading.enumerate() if not its.daemon and its is not threading.main_thread()]
    for its in others:  # those that are idle end at once
        its.join(max(0.0, until_s - time.monotonic()))
    threads = [its.name for its in others if its.is_alive()]
    if left or threads:
        event("left_behind", tasks=sorted(task.get_name() for task in left), threads=threads)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
