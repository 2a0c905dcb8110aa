"""`!secret NAME`: where its text comes from, and keeping it out of everything shown."""

import hashlib
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gateway.config.tree import Entry, Items, Map, Node, Scalar, place_problem
from gateway.environment import SECRET, Environment
from gateway.hidden import HIDDEN, MIN_HIDDEN
from gateway.sdk.errors import Problem
from gateway.sdk.files import read_bytes

Held = Callable[[str], tuple[bool, str]]
"""Of a secret that cannot be had here: whether the daemon at work has it, and else what to do."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_SECRET_BYTES = 16 << 10

# Keys whose value is a secret whoever defines them; used only to hide source lines and to warn, never to find secrets.
SENSITIVE = re.compile(
    r"(?i)^(?:.*[_-])?(?:password|passwd|passphrase|secret|token|bearer|api_?key|app_?key|nwk_?key|key)$"
)
_MOST = 4096  # characters of a line; nobody is shown more
_IN_LINE = re.compile(  # counted repeats: a hostile line must not cost its length squared
    r"(?i)(?P<head>(?:password|passwd|passphrase|secret|token|bearer|key)['\"]?\s{0,16}:\s{1,16})"
    r"(?P<value>(?!!secret\b)(?:\"[^\"]*\"?|'[^']*'?|[^\s,{}\[\]#][^,{}\[\]#]*))"
)
_LOGIN = re.compile(r"(?<=://)[^/\s@\"']{1,1024}(?=@)")
_QUERY = re.compile(r"(?<=[?&])([^=&\s#\"']{1,64}=)([^&\s#\"']+)")

_LOOKS = re.compile(
    r"(?i:bearer|basic) +\S+|eyJ[\w-]{6,}.*|-----BEGIN .*|(?:NNSXS|ghp|gho|xox[bpas]|AKIA|sk)[._-]?[A-Za-z0-9._-]{12,}"
    r"|[0-9a-fA-F]{32,}",
    re.DOTALL,
)
_RANDOM = re.compile(r"[A-Za-z0-9+_=-]{24,}")  # and letters of both cases and digits, mixed as in no name
_MIXED = 0.45  # of neighbours are of different kinds; 0.6 in base64, to 0.4 in `GtfsTransitFeedFile2024Milano12`
_TOKEN = re.compile(  # in the middle of a line
    r"(?i:bearer|basic) +(?=[^\s]{0,200}[0-9=])[^\s,\"'{}\[\]]{8,}|eyJ[\w-]{6,}[\w.=-]*"
)
_MAY_BE = re.compile(r"(?<![\w.+/=-])[\w.+/=-]{16,}")  # is asked of `looks_secret`
_KEY_IN_HEX = re.compile(r"(?<![0-9a-zA-Z])[0-9a-fA-F]{32,}(?![0-9a-zA-Z])")
_SAYS_KEY = re.compile(r"(?i)key|secret|token|pass")


def looks_secret(text: str) -> bool:
    """Whether a value can be nothing but a key or token, whatever its key is called."""
    if _LOOKS.fullmatch(text):
        return True
    if not _RANDOM.fullmatch(text):
        return False
    kinds = [(letter.islower(), letter.isupper(), letter.isdigit()) for letter in text.rstrip("=") if letter.isalnum()]
    mixed = sum(one != other for one, other in itertools.pairwise(kinds))
    return len(set(kinds)) == 3 and mixed >= _MIXED * len(kinds)


@dataclass
class Secrets:
    """Looks names up: the service manager's credentials, then the folder `secrets/` beside the config, then the environment
    (`CITYGATE_SECRET_<NAME>`, upper case, `-` and `.` as `_`). What was handed out is known, to be hidden.

    Attributes:
        remembered: texts by name that a daemon at work has from before: better than none.
        held: who is asked of one that is nowhere and not remembered; its text stays where it is.
        texts: what was handed out, by name.
        found_at: where it was found, by name.
        open: names whose file every user of the box can read.
    """

    beside: Path
    environment: Environment
    remembered: Mapping[str, str] = field(default_factory=dict, repr=False)
    held: Held | None = None
    known: set[str] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict, repr=False)
    found_at: dict[str, str] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)

    def places(self, name: str) -> tuple[str, ...]:
        """Where a name is looked for, for the message when it is nowhere."""
        credentials = self.environment.credentials
        folders = (*((str(credentials),) if credentials else ()), str(self.beside))
        return (*(f"{folder}/{name}" for folder in folders), f"${_variable(name)}")

    def get(self, name: str) -> str:
        """The text of a secret, without the line end of its file.

        Raises:
            LookupError: there is none; the message says where it was looked for.
        """
        for place in self.places(name):
            text = self.environment.secret_texts.get(place[1:]) if place.startswith("$") else _from_file(Path(place))
            if text:
                if place == str(self.beside / name) and _readable_by_others(Path(place)):
                    self.open.add(name)
                self.found_at[name] = place
                return self._handed_out(name, text)
        raise LookupError(f"no secret {name}: looked in {', '.join(self.places(name))}")

    def before(self, name: str) -> str:
        """The text that it had when it was last read; "" when nobody knows."""
        text = self.remembered.get(name, "")
        return self._handed_out(name, text) if text else ""

    def _handed_out(self, name: str, text: str) -> str:
        self.known.add(text)
        self.texts[name] = text
        return text


def redacted(text: str, known: Iterable[str]) -> str:
    """The text with every known secret hidden."""
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= MIN_HIDDEN:
            text = text.replace(secret, HIDDEN)
    return text


def without_secrets(problem: Problem, known: Iterable[str]) -> Problem:
    """The problem as it may be told; its source line is hidden in the source."""

    def shown(text: str) -> str:
        return hide_tokens(redacted(text, known))

    path = tuple(shown(part) if isinstance(part, str) else part for part in problem.path)
    return replace(problem, path=path, message=shown(problem.message), remedy=shown(problem.remedy))


def hide_in_line(line: str) -> str:
    """A source line with clear-text secrets hidden as far as the words in it tell, at the same width so that a caret
    still fits. For what no tree was made of; `gateway.config.hiding` knows the rest by type and value."""
    known, rest = line[:_MOST], line[_MOST:]
    return hide_tokens(_IN_LINE.sub(lambda match: match["head"] + "•" * len(match["value"]), known)) + "•" * len(rest)


def hide_tokens(text: str) -> str:
    """The text with everything in it hidden that can be nothing but a token, whatever stands around it; logins too. A
    key in hex may as well be a frame, so something must say that it is a key."""
    text = _MAY_BE.sub(lambda match: _dots(match) if _is_token(match[0]) else match[0], _TOKEN.sub(_dots, text))
    if _SAYS_KEY.search(text):
        text = _KEY_IN_HEX.sub(_dots, text)
    return hide_logins(text)


def _is_token(text: str) -> bool:
    return looks_secret(text) and not _KEY_IN_HEX.fullmatch(text)


def _dots(match: re.Match[str]) -> str:
    return "•" * len(match[0])


def hide_logins(text: str) -> str:
    """The text with the login of every `scheme://user:password@host` hidden, and what stands behind `?` in it."""
    text = _LOGIN.sub(lambda match: "•" * len(match[0]), text)
    return _QUERY.sub(lambda match: match[1] + "•" * len(match[2]), text) if "://" in text else text


def _variable(name: str) -> str:
    return f"{SECRET}{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}"


def _from_file(path: Path) -> str | None:
    """None when there is no such file. Raises LookupError when it cannot be used."""
    try:
        data = read_bytes(path, MAX_SECRET_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LookupError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_SECRET_BYTES:
        raise LookupError(f"{path} is larger than {MAX_SECRET_BYTES >> 10} KiB: that is no secret")
    try:
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise LookupError(f"{path} is not UTF-8") from error
    if not text or "\0" in text:
        raise LookupError(f"{path} is empty or holds a NUL byte")
    return text


def _readable_by_others(path: Path) -> bool:
    return bool(os.stat(path).st_mode & (stat.S_IROTH | stat.S_IWOTH))


def resolve(
    root: Map, secrets: Secrets | None, problems: list[Problem]
) -> tuple[Map, dict[tuple[str | int, ...], str]]:
    """The tree with every `!secret` replaced by its text, and path -> name where none was found.

    Args:
        secrets: None does not look anything up: every path is among those without text. So are those that another has.
    """
    unknown: dict[tuple[str | int, ...], str] = {}

    def walk(node: Node, path: tuple[str | int, ...]) -> Node:
        if isinstance(node, Map):
            entries = {key: Entry(entry.key, walk(entry.node, (*path, key))) for key, entry in node.entries.items()}
            return Map(entries, node.place, node.dropped)
        if isinstance(node, Items):
            return Items(tuple(walk(item, (*path, index)) for index, item in enumerate(node.items)), node.place)
        return _text(node, path) if node.tag == "!secret" else node

    def _text(node: Scalar, path: tuple[str | int, ...]) -> Scalar:
        problem: Problem | None = None
        text = ""
        if not NAME.fullmatch(node.text) or looks_secret(node.text):
            problem = Problem("wrong-name", path, "!secret takes a name, not the secret itself", "as in !secret milano")
        elif secrets is not None:
            try:
                text = secrets.get(node.text)
            except LookupError as error:
                text = secrets.before(node.text)
                at_daemon, remedy = secrets.held(node.text) if secrets.held and not text else (False, "")
                if not at_daemon:
                    problem = _missing(path, str(error.args[0]), at_work=bool(text), remedy=remedy)
            if node.text in secrets.open:
                message = f"{secrets.beside / node.text} can be read by every user of this box"
                problem = Problem("open-secret", path, message, "chmod 640, and the group of the daemon", "warning")
        if problem is not None:
            problems.append(place_problem(problem, node.place))
        if not text:
            unknown[path] = node.text
        return Scalar(text or _instead(node.text), node.place, False, node.tag)

    resolved = walk(root, ())
    assert isinstance(resolved, Map)
    return resolved, unknown


def _instead(name: str) -> str:
    """In place of a text that is not known: fits where a text or a key in hex is asked for, and nobody logs in with it.

    Two secrets are two: devices of one address are told apart by their keys.
    """
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]


def _missing(path: tuple[str | int, ...], said: str, *, at_work: bool, remedy: str) -> Problem:
    if at_work:
        message = f"{said}; what is at work goes on with the text that it had, until the daemon ends"
        return Problem("missing-secret", path, message, "put it there, then `citygate reload`", "warning")
    return Problem("missing-secret", path, said, remedy or "put it there; `check --no-secrets` goes without")
