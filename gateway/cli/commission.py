"""Verb commission: the acceptance report that a technician leaves behind: what this box proved before they left."""

import argparse
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.cli import box
from gateway.cli.doctor import findings
from gateway.cli.status_text import counted, shown_value, time_of
from gateway.cli.terminal import colour, complain, printable, say, say_json
from gateway.cli.verbs import Verbs, duration
from gateway.health import BrokerState
from gateway.http.outcome import FINE, PROBLEM, Refused
from gateway.sdk.errors import CitygateError

DEFAULT_S = 120.0
WORST_BAD_SHARE = 0.05  # of the readings in the time watched; a good line has none
UNSENT_WITHIN_S = 120.0  # a broker that is further behind does not keep up


@dataclass(frozen=True, slots=True)
class Proof:
    """One thing that was looked at."""

    what: str
    passed: bool
    said: str


def add_verbs(verbs: Verbs) -> None:
    """commission."""
    verb = verbs.add(
        "commission",
        commission,
        help="acceptance report: watch the running box for a while, then say what it proved",
        about="Watch the running daemon for a while, then write a report: every device with its readings and the share of bad "
        "ones, its place and its entity, every broker with what it took, clock, disk and ports. Ends with 1 when "
        "something did not pass. A device that speaks rarely needs a longer time.",
        examples=(
            "citygate commission",
            "citygate commission --for 30m --output acceptance.md",
            "citygate commission --json",
        ),
    )
    verb.add_argument("--for", dest="seconds", metavar="TIME", type=duration, default=DEFAULT_S, help="default: 2m")
    verb.add_argument("--output", "-o", metavar="FILE", type=Path, help="write the report there, as Markdown")


def commission(given: argparse.Namespace) -> int:
    """`citygate commission`."""
    before = box.ask(given.config, "status")
    if not given.json:
        complain(f"watching for {given.seconds:g} s …")
    time.sleep(given.seconds)
    after = box.ask(given.config, "status")
    proofs = [*_box(given.config, after), *_devices(given.config, before, after), *_brokers(before, after)]
    passed = all(proof.passed for proof in proofs)
    report = _markdown(given.config, before, after, proofs)
    if given.output:
        try:
            given.output.write_text(report)
        except OSError as error:
            raise CitygateError(f"cannot write {given.output}: {error.strerror}") from error
    if given.json:
        span = {"from": before["gateway"]["now"], "to": after["gateway"]["now"]}
        body = {"gateway": after["gateway"]["id"], **span, "passed": passed}
        say_json({**body, "proofs": [asdict(proof) for proof in proofs]})
    elif given.output:
        for proof in proofs:
            say(f"{_sign(proof.passed)} {proof.what}: {printable(proof.said)}")
    else:
        say(report)
    return FINE if passed else PROBLEM


def _sign(passed: bool) -> str:
    return colour("●", "green") if passed else colour("✗", "red")


def _box(config: Path, status: Mapping[str, Any]) -> Iterator[Proof]:
    for finding in findings(config):
        if finding["check"] not in (*status["links"], *status["brokers"], "daemon"):  # judged below, by what they did
            yield Proof(finding["check"], finding["state"] in ("ok", "warn"), finding["message"])
    log = status.get("log", {})
    yield Proof(
        "log",
        log.get("state", "ok") == "ok" and not log.get("dropped"),
        str(log.get("reason") or "works, nothing dropped"),
    )


def _devices(config: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Proof]:
    for link_name, link in after["links"].items():
        for name, device in link["devices"].items():
            earlier = before["links"].get(link_name, {}).get("devices", {}).get(name, {})
            yield _readings(name, earlier, device)
            yield _entity(config, name)


def _readings(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Proof:
    sets, good, bad = (after[key] - before.get(key, 0) for key in ("sets", "readings", "bad"))
    share = bad / (good + bad) if good + bad else 1.0
    said = f"{counted(sets, 'set')}, {counted(good, 'good reading')}, {share:.1%} bad" if good + bad else "said nothing"
    if after["state"] != "ok":
        said += f"; {after['state']}: {after['reason']}".rstrip(": ")
    return Proof(f"{name} reads", after["state"] == "ok" and good > 0 and share <= WORST_BAD_SHARE, said)


def _entity(config: Path, name: str) -> Proof:
    """Complete, allowed by its model, and somewhere on the map."""
    try:
        found = box.ask(config, "preview", device=name)
    except Refused as error:
        return Proof(f"{name} entity", False, str(error))
    entities = [entity for its in found["brokers"].values() for entity in its]
    faults = list(found.get("remarks", ()))
    faults += [f"{entity['id']} has no location" for entity in entities if "location" not in entity]
    if not entities:
        faults.append("no broker gets an entity of it")
    if not found["source"].startswith("last values"):
        faults.append("no value of its own yet")
    said = "; ".join(dict.fromkeys(faults)) or ", ".join(sorted({str(entity["id"]) for entity in entities}))
    return Proof(f"{name} entity", not faults, said)


def _brokers(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Proof]:
    now = time_of(after["gateway"]["now"])
    for name, broker in after["brokers"].items():
        earlier = before["brokers"].get(name, {})
        accepted, refused = (broker[key] - earlier.get(key, 0) for key in ("accepted", "refused"))
        oldest = time_of(broker.get("oldest_unsent_at"))
        late_s = (now - oldest).total_seconds() if now and oldest and broker["backlog"] else 0.0
        said = (
            f"{broker['state']}, accepted {accepted}, refused {refused}, {counted(broker['backlog'], 'reading')} owed"
        )
        passed = broker["state"] == BrokerState.OK and accepted > 0 and not refused and late_s <= UNSENT_WITHIN_S
        yield Proof(f"broker {name}", passed, f"{said}; {broker['reason']}".rstrip("; "))


def _markdown(config: Path, before: Mapping[str, Any], after: Mapping[str, Any], proofs: list[Proof]) -> str:
    gateway = after["gateway"]
    failed = [proof for proof in proofs if not proof.passed]
    verdict = "**passed**" if not failed else f"**not passed**: {counted(len(failed), 'point')} open"
    lines = [
        f"# Acceptance of {_cell(gateway['name'] or gateway['id'])}",
        "",
        f"Gateway `{gateway['id']}` in {gateway['city']}, citygate {gateway['version']}. Watched from {before['gateway']['now']} to "
        f"{gateway['now']}: {verdict}.",
        "",
        f"Config `{config}`, SHA-256 `{_fingerprint(config)}`. Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        "",
        "| | what | found |",
        "|---|---|---|",
        *(f"| {'ok' if proof.passed else 'OPEN'} | {_cell(proof.what)} | {_cell(proof.said)} |" for proof in proofs),
        "",
        "## Values at the end",
        "",
        "| device | point | value | at |",
        "|---|---|---|---|",
    ]
    for link in after["links"].values():
        for name, device in link["devices"].items():
            lines += [
                f"| {_cell(name)} | {_cell(point)} | {_cell(shown_value(row))} | {row['observed_at'] or ''} |"
                for point, row in device["points"].items()
            ]
    return "\n".join([*lines, "", "Technician: ______________________    Date: ______________", ""])


def _cell(text: str) -> str:
    return printable(str(text)).replace("|", "\\|")


def _fingerprint(config: Path) -> str:
    """Of main file, fragments and bases, so that a later change shows."""
    from gateway.config.loader import files_of

    digest = hashlib.sha256()
    for file in files_of(config):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
