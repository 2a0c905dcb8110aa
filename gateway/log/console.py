"""What an operator asks of the log: JSON in, JSON out. The daemon serves it on the control socket; without one the command
opens the file and asks here. Long work comes in pages, so that the writer is never kept from its commits for long."""

from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any, Final

from gateway.log.held import HeldPiece
from gateway.log.log import Columns, Log
from gateway.log.segment import wall_time
from gateway.sdk.errors import CitygateError

Verb = Callable[[Mapping[str, Any]], Coroutine[Any, Any, Any]]
_PAGE_READINGS: Final = 2000
_GAPS_SHOWN: Final = 20
_LARGEST: Final = 2**63 - 1  # what SQLite can compare


def verbs(log: Log) -> dict[str, Verb]:
    """Every verb by its name on the control socket."""
    console = Console(log)
    return {
        "buffer-status": console.status,
        "buffer-held-list": console.held_list,
        "buffer-held-show": console.held_show,
        "buffer-requeue": console.requeue,
        "buffer-purge": console.purge,
        "buffer-export": console.export,
        "buffer-verify": console.verify,
        "buffer-forget": console.forget,
    }


class Console:
    """The verbs of one log. Arguments are JSON; a wrong one is a `CitygateError`."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """The log's status, what was given up, what is held, how the points did in the last 24 hours."""
        log = self._log
        await log.counted()
        pieces = log.held.pieces()
        return {
            **(status := log.status()),
            "since": _text(status["since"]),
            "held": {"later": sum(p.state == "later" for p in pieces), "dead": sum(p.state == "dead" for p in pieces)},
            "newest_gaps": [
                {
                    "at": _utc(gap.at_us),
                    "from": _utc(gap.from_us),
                    "to": _utc(gap.to_us),
                    "readings": gap.readings,
                    "reason": gap.reason,
                    "owed": dict(gap.owed),
                }
                for gap in log.gaps[-_GAPS_SHOWN:]
            ],
            "points": [
                {
                    "device": device,
                    "point": point,
                    "expected": round(quality.expected),
                    "got": quality.got,
                    "bad": quality.bad,
                    "latency_p50_s": quality.latency_s(0.5),
                    "latency_p95_s": quality.latency_s(0.95),
                }
                for (device, point), quality in sorted(log.statistics.of().items())
            ],
        }

    async def held_list(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Held pieces: of `broker`, `entity`, `device`, as far as given."""
        return [_piece(piece) for piece in self._pieces(given)]

    async def held_show(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """One piece (`id`) with its readings."""
        pieces = self._pieces({"ids": [_whole(given, "id")]})
        if not pieces:
            raise CitygateError(f"nothing is held under {given.get('id')}; `citygate buffer held list` shows what is")
        [piece] = pieces
        return {**_piece(piece), "content": self._rows(await self._log.held.readings(piece.id), {})}

    async def requeue(self, given: Mapping[str, Any]) -> dict[str, int]:
        """Try these pieces again at once: `ids`, or all that match `broker`, `entity`, `device`."""
        return {"requeued": await self._log.held.requeue(self._chosen(given), self._log.now())}

    async def purge(self, given: Mapping[str, Any]) -> dict[str, int]:
        """Give these pieces up; chosen as for `requeue`."""
        return {"purged": await self._log.held.purge(self._chosen(given), self._log.now())}

    def _pieces(self, given: Mapping[str, Any]) -> list[HeldPiece]:
        pieces = self._log.held.pieces(
            _name(given, "broker"), entity=_name(given, "entity"), device=_name(given, "device")
        )
        ids = given.get("ids")
        if ids is None:
            return pieces
        if not isinstance(ids, list) or not all(type(number) is int for number in ids):
            raise CitygateError("ids must be a list of whole numbers")
        return [piece for piece in pieces if piece.id in ids]

    def _chosen(self, given: Mapping[str, Any]) -> list[int]:
        if not isinstance(given.get("all", False), bool):
            raise CitygateError("all must be true or false")
        if not any(given.get(name) for name in ("ids", "broker", "entity", "device", "all")):
            raise CitygateError("say which: ids, broker, entity, device, or all")
        return [piece.id for piece in self._pieces(given)]

    async def export(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A page of the log from `after` on: `{rows, next, done, total}`; `next` is None behind the last page.

        `device`, `point`, `from`, `to` (RFC 3339) choose; settled readings are there while the file still has them.
        """
        after = _whole(given, "after", -1)
        columns = await self._log.scan(after, _PAGE_READINGS)
        done, total = await self._log.progress(columns.last if columns else after)
        rows = self._rows(columns, given) if columns else []
        return {"rows": rows, "next": columns.last if columns else None, "done": done, "total": total}

    def _rows(self, columns: Columns, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        device, point = _name(given, "device"), _name(given, "point")
        first, last = _time(given, "from"), _time(given, "to")
        rows = []
        for i, number in enumerate(columns.series):
            series = self._log.series.get(number)
            at = wall_time(columns.time_us[i])
            if series is None or device not in (None, series.device) or point not in (None, series.point):
                continue
            if (first is not None and at < first) or (last is not None and at >= last):
                continue
            rows.append(
                {
                    "seq": columns.seq[i],
                    "device": series.device,
                    "point": series.point,
                    "observed_at": _utc(columns.time_us[i]),
                    "value": columns.value[i],
                    "quality": columns.quality[i].value,
                    "reason": columns.reason[i].value,
                    "time_source": columns.time_source[i].value,
                    "time_state": columns.time_state[i].value,
                }
            )
        return rows

    async def verify(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A page of segments from `after` on: `{segments, readings, damaged: [text], next, done, total}`."""
        after = _whole(given, "after", -1)
        segments, readings, damaged, following = await self._log.verify(after)
        done, total = await self._log.progress(following if following is not None else 1 << 62)
        return {
            "segments": segments,
            "readings": readings,
            "damaged": damaged,
            "next": following,
            "done": done,
            "total": total,
        }

    async def forget(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Give up all that a `consumer` (a broker) is owed, or that is owed of a `device`, that is no longer in the config.

        Returns `{forgotten, readings, held}`.
        """
        await self._log.counted()
        if device := _name(given, "device"):
            return await self._forget_device(device)
        name = _name(given, "consumer") or ""
        owed = self._log.gone_consumers().get(name, {"backlog": 0, "later": 0, "dead": 0})
        if not await self._log.forget(name):
            gone = ", ".join(self._log.gone_consumers()) or "none"
            meant = "; for a device, say --device" if name in self._log.gone() else ""
            raise CitygateError(f"no broker {name} that was removed from the config; there are: {gone}{meant}")
        return {"forgotten": name, "readings": owed["backlog"], "held": owed["later"] + owed["dead"]}

    async def _forget_device(self, device: str) -> dict[str, Any]:
        before, held = len(self._log.gaps), len(self._log.held.pieces(device=device))
        if not await self._log.forget_device(device):
            gone = ", ".join(self._log.gone_devices()) or "none"
            meant = "; for a broker, leave --device out" if device in self._log.gone_consumers() else ""
            raise CitygateError(f"no device {device} that was removed from the config; there are: {gone}{meant}")
        return {
            "forgotten": device,
            "readings": self._log.gaps[-1].readings if len(self._log.gaps) > before else 0,
            "held": held,
        }


def _piece(piece: HeldPiece) -> dict[str, Any]:
    return {
        "id": piece.id,
        "broker": piece.broker,
        "entity": piece.entity,
        "device": piece.device,
        "state": piece.state,
        "reason": piece.reason,
        "first_at": _text(piece.first_at),
        "last_at": _text(piece.last_at),
        "tries": piece.tries,
        "next_try_at": _text(piece.next_try_at),
        "readings": piece.readings,
    }


def _name(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise CitygateError(f"{name} must be a text")
    return value or None


def _whole(given: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = given.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CitygateError(f"{name} must be a whole number")
    if not -_LARGEST <= value <= _LARGEST:
        raise CitygateError(f"{name} is no number of this log: {value}")
    return value


def _time(given: Mapping[str, Any], name: str) -> datetime | None:
    text = _name(given, name)
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise CitygateError(f"{name}: {text} is not a time; write it as in 2026-06-01T12:00:00Z") from error
    if at.tzinfo is None:
        raise CitygateError(f"{name}: {text} has no time zone; write it as in 2026-06-01T12:00:00Z")
    return at


def _utc(time_us: int | None) -> str | None:
    return None if time_us is None else _text(wall_time(time_us))


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")
