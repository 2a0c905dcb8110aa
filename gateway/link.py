"""One link at work: the Context its driver sees, the one-shot requests in its queue, pause."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Literal

from gateway.claims import BACK, FOREVER, Reception, TimeGate
from gateway.driver_run import MAX_THREADS, DriverRun, RequestQueue, refuse
from gateway.gate import added, is_sound, mended, offered
from gateway.health import DeviceHealth, Health, LinkHealth
from gateway.intake import Intake, rules_of
from gateway.journal import bind, event, fault
from gateway.log.log import Log
from gateway.sdk.config import LinkConfig
from gateway.sdk.driver import Clock, Context, Driver, Exchange, Receipt, Request, answered
from gateway.sdk.errors import DRIVER_FAULT, ConfigError, FrameError, LinkError, said
from gateway.sdk.reading import Quality, Reading, ReadingSet, Reason, TimeSource, Value
from gateway.sdk.recording import MAX_BYTES, Chunk, Direction, written
from gateway.sdk.streams import Tap, open_serial, open_tcp, usb_path
from gateway.sdk.values import told

SILENT_AFTER_S = 120.0  # a driver loop that calls no `progress` for so long is restarted
REJECT_EVENT_EVERY_S = 60.0
MAX_FAULTS = 16  # tracebacks kept of a link's decoders, one of each place
TCP_PORT = 502  # where a link says none
ANY_HOST = {"0.0.0.0", "::"}
WRONG_TIME_SHOWN_S = 3600.0  # after the last time that was out of bounds


class _Settled:
    """The receipt of a set of which nothing had to be logged."""

    @property
    def durable(self) -> Awaitable[None]:
        return asyncio.sleep(0)


NOTHING_TO_LOG = _Settled()


def is_at(config: LinkConfig | None, place: Mapping[str, Any]) -> bool:
    """Whether a link has the wire at `port`, or at `host` and `port`."""
    host, port = getattr(config, "host", ""), getattr(config, "port", "")
    asked_host, asked_port = place.get("host") or "", place.get("port") or ""
    if host or asked_host:
        hosts = {host, asked_host}
        return str(port or TCP_PORT) == str(asked_port or TCP_PORT) and (len(hosts) == 1 or bool(hosts & ANY_HOST))
    return isinstance(port, str) and port != "" and _device_file(port) == _device_file(str(asked_port))


def _device_file(port: str) -> str:
    if port[:4].lower() == "usb:":
        with contextlib.suppress(LinkError):  # not plugged in: nobody has it open
            port = usb_path(port)
    return os.path.realpath(port)


class LinkService:
    """One link under supervision. It outlives the restarts of its driver."""

    silent_after_s: float | None = SILENT_AFTER_S

    def __init__(
        self, name: str, driver: Driver[Any], config: LinkConfig, *, log: Log, health: Health, clock: Clock
    ) -> None:
        self.name = f"link {name}"
        self.progress_at_s = clock.monotonic_s()
        self._link = name
        self._driver, self._config = driver, config
        self._log, self._clock = log, clock
        self._health = health
        self._record: LinkHealth = health.link(name, driver.name)
        self._intakes = {
            device: Intake(rules_of(its.template, its.report), _SALT) for device, its in config.devices.items()
        }
        longest = min(timedelta(seconds=log.settings.max_age_s), FOREVER)
        self._gates = {
            device: TimeGate(longest if its.template.keeps_history else BACK, longest)
            for device, its in config.devices.items()
        }
        self._wrong_times_s: dict[str, float] = {}  # device -> when one of its times was out of bounds last
        self._devices = {device: self._record.devices.setdefault(device, DeviceHealth()) for device in config.devices}
        for gone in set(self._record.devices) - set(config.devices):
            del self._record.devices[gone]
        self._notes: dict[str, tuple[str, str]] = {}  # remarks of the driver, by device; "" is the link
        self._unheard: set[str] = set()  # devices that were ok when the link went down
        self._rejected_event_s = -REJECT_EVENT_EVERY_S
        self._remedies = remedies(config)
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=self.name)
        self._run = DriverRun(self.name, self.emit, clock, self._threads)
        self.came_up = False
        self._heard_good = False  # in this run
        self._faults: set[tuple[str, str, int]] = (
            set()
        )  # places that failed on what came in; the traceback of each is kept once
        self.requests = RequestQueue()
        self.tap = Tap()

    async def run(self) -> None:
        """Run the driver until cancelled; its errors are the supervisor's business."""
        bind(link=self._link)
        self._progress()
        for device in tuple(self._notes):
            self._note(device, "", "")  # what an earlier run remarked; the driver says it again while it is true
        self.came_up = self._heard_good = False
        self._run = DriverRun(self.name, self.emit, self._clock, self._threads)
        await self._run.drive(self._driver.run(self._config, self._context()))

    def close(self) -> None:
        """The link is gone: its threads end, when they are idle; nobody comes to the requests that wait."""
        while (request := self.requests.get_nowait()) is not None:
            refuse(request, self.name)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def cut_off(self) -> None:
        """The driver ignores that it was cancelled: it is heard no more, and its port is free for the next run."""
        self._run.end()

    def failed(self, error: Exception) -> None:
        """The link is down and will be tried again."""
        self._record.restarts += 1
        remedy = "" if isinstance(error, LinkError) else DRIVER_FAULT
        self._set_link_state("down", said(error), remedy)
        self._lose_devices()

    def stopped(self, error: Exception) -> None:
        """The link is off until the config changes."""
        try:
            remedy = told(error.problems[0].remedy) if isinstance(error, ConfigError) else ""
        except Exception:  # noqa: BLE001 - a driver's own error may hold anything, or nothing
            remedy = DRIVER_FAULT
        self._health.set_state(self._record, self._link, "off", said(error), remedy)
        self._lose_devices()

    def _lose_devices(self) -> None:
        """Nobody hears them any more: that all was well is no longer true."""
        for device, record in self._devices.items():
            if record.state == "ok":
                record.state, record.reason, record.remedy = "bad", "link_down", _REMEDIES["link_down"]
                self._unheard.add(device)

    async def request(
        self, device: str, *, point: str = "", value: Value | None = None, timeout_s: float = 30.0
    ) -> Exchange:
        """One read (or write) in the link's own queue.

        Raises:
            Busy: too many requests wait.
            LinkError: the link is down, or its driver did not come to it within `timeout_s`.
            CitygateError: the driver refuses, fails at it, or answers with what is no exchange.
        """
        if self._record.state == "down":
            raise LinkError(f"link {self._link} is down: {self._record.reason}")
        kind: Literal["read", "write"] = "read" if value is None else "write"
        request = Request(kind, device, point, value)
        self.requests.put(request)
        try:
            await asyncio.wait({request.reply}, timeout=timeout_s)
            if not request.reply.done():
                raise LinkError(f"link {self._link} did not come to the request within {timeout_s:g} s")
            return answered(request.reply)
        finally:
            request.reply.cancel()  # nobody waits for it any more

    async def record(self, seconds: float) -> str:
        """What goes over the link's wire in the next `seconds`, as the text of a recording."""
        start_s, chunks, room = self._clock.monotonic_s(), list[Chunk](), MAX_BYTES
        full = asyncio.Event()

        def hear(direction: Direction, data: bytes) -> None:
            nonlocal room
            room -= 3 * len(data) + 16
            if room < 0:
                full.set()
            else:
                chunks.append(Chunk(self._clock.monotonic_s() - start_s, direction, data))

        remark = f"link {self._link}, {self._record.driver}, since {self._clock.now().isoformat()}"
        with self.tap.listen(hear), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await full.wait()
        return written(chunks, remark=remark)

    def pause(self, device: str, seconds: float) -> datetime:
        """What this device says for the next `seconds` reaches neither log nor city; 0 ends a pause. When it ends."""
        until = self._clock.now() + timedelta(seconds=seconds)
        record = self._devices[device]
        record.state, record.reason, record.remedy = "paused", "maintenance", "it ends by itself"
        record.paused_until, record.paused_until_s = until, self._clock.monotonic_s() + seconds
        event("device_paused", device=device, seconds=seconds)
        self._is_paused(device)
        return until

    def end_pauses(self) -> None:
        """End the pauses that are over, also of devices that say nothing."""
        for device in self._devices:
            self._is_paused(device)

    def _context(self) -> Context:
        run = self._run
        return Context(
            emit=run.emit,
            reject=run.heard(self._reject),
            count=run.heard(self._count),
            now=self._clock.now,
            monotonic_s=self._clock.monotonic_s,
            sleep=self._clock.sleep,
            progress=run.heard(self._progress),
            open_serial=run.opener(self.tap.through(open_serial)),
            open_tcp=run.opener(self.tap.through(open_tcp)),
            requests=run.requests(self.requests),
            offer_time=run.heard(self._offer_time),
            state={
                (device, key): value
                for device in self._config.devices
                for key, value in self._log.driver_state(device).items()
            },
            note=run.heard(self._note),
            up=run.heard(self._up),
            link=self._link,
        )

    async def emit(self, readings: ReadingSet) -> Receipt:
        """Intake and append: what a driver hands over, and what `once` has just read."""
        self._progress()
        if not is_sound(readings, self._devices):
            try:
                readings, remark = mended(readings, self._devices, self._log.driver_state)
            except FrameError as error:
                self._driver_fault(error.message)
                return NOTHING_TO_LOG
            self._driver_fault(remark, readings.device)
        record = self._devices[readings.device]
        if self._is_paused(readings.device):
            return NOTHING_TO_LOG
        gate, received_s, now = self._gates[readings.device], None, self._clock.now()
        if not gate.ordinary(readings.readings, now):
            readings, received_s = self._date(gate, readings, now)
        intake = self._intakes[readings.device]
        admitted = intake.admit(readings)
        record.undeclared = intake.undeclared
        checked = admitted.logged.readings if admitted.logged else ()
        self._note_set(readings.device, record, (*checked, *admitted.shown) if admitted.shown else checked, now)
        if record.state == "ok":
            self._record.rejected.good()
            if not self._heard_good or self._record.state != "ok":
                self._heard_good = True
                self._up()
        elif self._record.state in ("starting", "down") and _shows_connection(readings.readings):
            self._set_link_state("ok")
        for reading in admitted.shown:
            self._log.note_unreported(readings.device, reading, device_back=gate.device_back)
        if admitted.logged is None:
            return NOTHING_TO_LOG
        return await self._log.append(admitted.logged, device_back=gate.device_back, received_s=received_s)

    def _date(self, gate: TimeGate, readings: ReadingSet, now: datetime) -> tuple[ReadingSet, float | None]:
        """The set with times that can be; and when it came, if some of them cannot be judged yet."""
        device, replaced, unreadable = readings.device, gate.replaced, gate.unreadable
        log, now_s = self._log, self._clock.monotonic_s()
        readings, waits = gate.admit(readings, Reception(now, log.clock_confirmed, log.before_step()))
        counters = self._devices[device].counters
        if gate.unreadable > unreadable:
            counters["unreadable_times"] += gate.unreadable - unreadable
        if gate.replaced > replaced:
            counters["wrong_times"] += gate.replaced - replaced
            if device not in self._wrong_times_s:
                event("wrong_times", device=device, claimed=str(gate.wrong[0]), of=gate.wrong[1].value)
            self._wrong_times_s[device] = now_s
        return readings, now_s if waits else None

    def _note_set(self, device: str, record: DeviceHealth, readings: Sequence[Reading], now: datetime) -> None:
        """What a set says of its device's health; a driver's own remark goes with it."""
        record.sets += 1
        record.last_set_at = now
        if not readings:  # only what the driver remembers: it says nothing about the device
            return
        self._unheard.discard(device)
        bad = [reading for reading in readings if reading.quality is not Quality.GOOD]
        good = len(readings) - len(bad)
        record.readings += good
        record.bad += len(bad)
        if good:
            record.last_good_at = now
        if not bad:
            state, reason, remedy = "ok", "", ""
        else:
            reasons = sorted({reading.reason.value for reading in bad})
            reason, remedy = ", ".join(reasons), self._remedies.get(reasons[0], "")
            state = "ok" if good else "bad"
            if good:
                reason = f"{len(bad)} of {len(readings)} points without value: {reason}"
            elif record.state != "bad":
                event("device_bad", device=device, reason=reason)
        record.state = state
        record.reason, record.remedy = self._with_note(device, reason, remedy)

    def _with_note(self, name: str, reason: str, remedy: str) -> tuple[str, str]:
        if not self._notes and not self._wrong_times_s:
            return reason, remedy
        for text, what_now in filter(None, (self._notes.get(name), self._wrong_time(name))):
            reason, remedy = f"{reason}; {text}" if reason else text, what_now or remedy
        return reason, remedy

    def _wrong_time(self, device: str) -> tuple[str, str] | None:
        """Remark and remedy while times of this device were out of bounds not long ago."""
        at_s = self._wrong_times_s.get(device)
        if at_s is None:
            return None
        if self._clock.monotonic_s() - at_s >= WRONG_TIME_SHOWN_S:
            del self._wrong_times_s[device]
            return None
        claimed, source = self._gates[device].wrong
        return f"claims to be of {claimed:%Y-%m-%d %H:%M} UTC: the time of reception is taken", _TIME_REMEDIES[source]

    def _set_link_state(self, state: str, reason: str = "", remedy: str = "") -> None:
        self._health.set_state(self._record, self._link, state, *self._with_note("", reason, remedy))
        while state == "ok" and self._unheard:
            record = self._devices[self._unheard.pop()]
            if record.state == "bad":  # not if it was paused meanwhile
                record.state, record.reason, record.remedy = "waiting", "", ""

    def _is_paused(self, device: str) -> bool:
        record = self._devices[device]
        if record.paused_until_s is None:
            return False
        if self._clock.monotonic_s() < record.paused_until_s:
            return True
        record.state, record.reason, record.remedy = "waiting", "", ""
        record.paused_until = record.paused_until_s = None
        event("device_resumed", device=device)
        return False

    def _reject(self, error: FrameError, *, device: str = "", remedy: str = "") -> None:
        if not isinstance(error, FrameError):
            error = FrameError(said(error))
        device = device if self._of(device) is not None else ""
        remedy = ("" if remedy is None else told(remedy)) or self._remedies["bad_frame"]
        self._record.counters["rejected_frames"] += 1
        many_alike = self._record.rejected.add(error.message, device, remedy, self._clock.now())
        if many_alike and not self._heard_good and self._record.state in ("starting", "ok"):
            self._set_link_state("bad", f"nothing of what comes can be read: {error.message}", remedy)
        now_s = self._clock.monotonic_s()
        if now_s - self._rejected_event_s >= REJECT_EVENT_EVERY_S:
            self._rejected_event_s = now_s
            event("frame_rejected", link=self._link, device=device, reason=said(error))
        if error.__cause__ is not None:
            self._report_fault(error.__cause__)

    def _report_fault(self, error: BaseException) -> None:
        """A decoder failed on a frame instead of refusing it: its traceback, once."""
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        where = (last.tb_frame.f_code.co_filename, last.tb_lineno) if last else ("", 0)
        place = (type(error).__name__, *where)
        if place not in self._faults and len(self._faults) < MAX_FAULTS:
            self._faults.add(place)
            fault("frame_fault", error, link=self._link)

    def _up(self) -> None:
        self.came_up = True
        if self._record.state != "ok":
            self._set_link_state("ok")

    def _driver_fault(self, fault: str, device: str = "") -> None:
        """The driver handed over what cannot be taken: counted and told; "" is no fault."""
        if fault:
            (self._of(device) or self._record).counters["driver_faults"] += 1
            self._reject(FrameError(fault), device=device, remedy=DRIVER_FAULT)

    def _of(self, device: Any) -> DeviceHealth | LinkHealth | None:
        """The record that a driver means; "" is the link, None: it has no such device."""
        if not issubclass(type(device), str):
            return None
        return self._devices.get(device) if device else self._record

    def _count(self, name: str, n: int = 1, device: str = "") -> None:
        record = self._of(device)
        if record is None:
            self._driver_fault(f"counted for device {told(device)}, which this link does not have")
        elif fault := added(record.counters, name, n):
            self._driver_fault(fault, device)

    def _progress(self) -> None:
        self.progress_at_s = self._clock.monotonic_s()

    def _note(self, device: str, text: str, remedy: str) -> None:
        record = self._of(device)
        if record is None:
            self._driver_fault(f"a remark on device {told(device)}, which this link does not have")
            return
        if (old := self._notes.pop(device, None)) is not None:
            if record.reason == old[0]:
                record.reason, record.remedy = "", ""
            record.reason = record.reason.removesuffix(f"; {old[0]}")
        if text is not None and (remark := told(text)):
            self._notes[device] = remark, "" if remedy is None else told(remedy)
            record.reason, record.remedy = self._with_note(device, record.reason, record.remedy)

    def _offer_time(self, utc: datetime, uncertainty_s: float) -> None:
        if fault := offered(utc, uncertainty_s):
            self._driver_fault(fault)
            return
        offer = getattr(self._clock, "offer", None)
        if offer is not None:
            offer(utc, uncertainty_s, who=f"link {self._link}")


def _shows_connection(readings: Sequence[Reading]) -> bool:
    """Somebody was asked over the link, whatever became of it."""
    return any(reading.reason is not Reason.LINK_DOWN for reading in readings)


_REMEDIES = {
    "link_down": "see the link",
    "refused": "the device does not know what was asked: is it the model that the template is for?",
    "out_of_range": "the value is not plausible: check the sensor, or the range in the template",
    "not_available": "the device itself says that it has no value",
    "warming_up": "wait; the device is not ready yet",
    "wrong_type": "the value is of another kind than the template says: is it the right template, and its firmware's?",
    "bad_time": "the time that came with the value cannot be read: check the clock of the device or its server",
}
_TIME_REMEDIES = {
    TimeSource.GATEWAY: "the driver dates its readings wrongly: please report it",
    TimeSource.DEVICE: "set the clock of the device; a device that tells its history needs keeps_history in its template",
    TimeSource.NETWORK: "set the clock (NTP, GPS) of the radio gateway or network server that gives the time",
}
_REMEDIES_OF = {  # by what a link has: a port, a host or a url
    "port": {
        "timeout": "is it powered, and do address, baud rate and wiring (A/B) fit?",
        "bad_frame": "noise or a wrong baud rate; check wiring and termination",
    },
    "host": {
        "timeout": "is it powered and reachable, and is it the address that the gateway in between knows?",
        "bad_frame": "what came is of another protocol or device: check host, port, framing and template",
    },
    "url": {
        "timeout": "is it powered and in range, and does its server hear it?",
        "bad_frame": "what came is not what the template describes: is it the right template, and the server's format?",
    },
    "": {
        "timeout": "is it powered, and do address and wiring fit?",
        "bad_frame": "what came is not what the template describes: check wiring, device and template",
    },
}


def remedies(config: LinkConfig) -> Mapping[str, str]:
    """Reason -> what to do, for this kind of link."""
    kind = next(
        (
            key
            for key in ("url", "host", "port")
            if isinstance(getattr(config, key, None), str) and getattr(config, key)
        ),
        "",
    )
    return {**_REMEDIES, **_REMEDIES_OF[kind]}


_SALT = os.urandom(32)  # of this run, for hashes of personal data; never stored
