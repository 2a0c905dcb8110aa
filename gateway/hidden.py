"""Secrets that are known, and hiding them in whatever is shown: journal, status, page, verbs, the command's own output."""

import base64
import functools
import html
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

HIDDEN = "•••"
FREE = frozenset(
    ("reason", "reasons", "remedy", "error", "text", "message", "kind", "said", "doubt", "exception", "stack")
)
MIN_HIDDEN = 4  # a shorter secret would blank out half of every text
ANY_CASE = 8  # characters from which on capitals do not matter; shorter ones would hide too many words
A_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(?:Z|[+-][0-9]{2}:[0-9]{2})"
)  # whoever makes tokens must not spoil ours
IN_KEYS = 12  # of a map: a password that is a word, as `state`, must not take the names of things with it
PIECE = 16  # so many characters of a secret in a row are taken for it: who quotes us may cut


class _Form(NamedTuple):
    """One way in which a secret may be written.

    Attributes:
        text: as it is looked for.
        pieces: parts of it, with where they begin; one of them is in every longer part.
        of: length of the secret.
    """

    text: str
    pieces: tuple[tuple[int, str], ...]
    of: int


_secrets: frozenset[str] = frozenset()  # those of the config
_forms: tuple[_Form, ...] = ()
_passing: deque[tuple[str, tuple[_Form, ...]]] = deque(maxlen=32)  # tokens of this run; the newest can still be said


def keep_secret(texts: Iterable[str]) -> None:
    """From now on these, and no others of before, are hidden in whatever is shown."""
    global _secrets, _forms
    _secrets = frozenset(text for text in texts if len(text) >= MIN_HIDDEN)
    _forms = tuple(form for text in _secrets for form in _forms_of(text))


def keep_passing_secret(*texts: str) -> None:
    """Hide these too: a token of this run, a login as it is sent."""
    known = {text for text, _ in _passing}
    _passing.extend((text, _forms_of(text)) for text in texts if len(text) >= MIN_HIDDEN and text not in known)


def hidden(text: str, *, least: int = MIN_HIDDEN) -> str:
    """The text without any secret that is known, in any way of writing it: a broker may say ours in its error. To be asked
    before a text is cut to a length: of a secret that is cut, too little may be left to know it.

    Args:
        least: characters of a secret that is looked for.
    """
    lower = text.lower()
    if len(lower) != len(text):  # few letters have a longer small one
        lower = "".join(small if len(small := letter.lower()) == 1 else letter for letter in text)
    spans = [
        span
        for forms in (_forms, *(its for _, its in _passing))
        for form in forms
        if form.of >= least
        for span in _spans(lower if form.of >= ANY_CASE else text, form)
    ]
    shown, end = [], 0
    for first, last in sorted(spans):
        if first >= end:
            shown += [text[end:first], HIDDEN]
        end = max(end, last)
    return "".join((*shown, text[end:])) if spans else text


def _spans(text: str, form: _Form) -> Iterator[tuple[int, int]]:
    """Where it stands, or a part of it that no chance explains."""
    for begins, piece in form.pieces:
        at = text.find(piece)
        while at >= 0:
            first, last = at, at + len(piece)
            before, after = begins, begins + len(piece)
            while first and before and text[first - 1] == form.text[before - 1]:
                first, before = first - 1, before - 1
            while last < len(text) and after < len(form.text) and text[last] == form.text[after]:
                last, after = last + 1, after + 1
            yield first, last
            at = text.find(piece, last)


def all_hidden(value: Any, key: str = "reason") -> Any:
    """The same for every free text in a JSON value. Names, times and words of ours stay as they are, a password may be like
    one of them; but not where it is so long that it is none."""
    if isinstance(value, str):
        if key in FREE or " " in value:
            return hidden(value)
        return value if A_TIME.fullmatch(value) else hidden(value, least=IN_KEYS)
    if isinstance(value, Mapping):
        return {
            hidden(name, least=IN_KEYS) if isinstance(name, str) else name: all_hidden(item, str(name))
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [all_hidden(item, key) for item in value]
    return value


def says_secret(body: bytes) -> bool:
    """Whether a JSON text holds a secret that is known; quicker than looking into every text of it."""
    return any(form in body for secret in (*_secrets, *(text for text, _ in _passing)) for form in _in_json(secret))


@functools.lru_cache(maxsize=1024)
def _in_json(secret: str) -> frozenset[bytes]:
    aligned = _base64(secret)
    forms = {json.dumps(secret, ensure_ascii=plain)[1:-1] for plain in (True, False)} | {
        quote(secret, safe="", errors="replace"),
        aligned[0],
    }
    ends = {piece for form in forms for piece in (_pieces(form)[0], _pieces(form)[-1])}
    return frozenset(piece.encode("utf-8", "replace") for _, piece in ends)


def _forms_of(secret: str) -> tuple[_Form, ...]:
    """As it is, as JSON, Python, HTML and addresses write it, and in base64 wherever it begins there."""
    quoted = (
        quote(secret, safe="", errors="replace"),
        quote(secret, errors="replace"),
        quote_plus(secret, errors="replace"),
    )
    escaped = (*(json.dumps(secret, ensure_ascii=plain)[1:-1] for plain in (True, False)), repr(secret)[1:-1])
    forms = {secret, *quoted, *escaped, html.escape(secret), *_base64(secret)}
    forms |= {form.replace("+", "-").replace("/", "_") for form in _base64(secret)}
    if len(secret) >= ANY_CASE:
        forms = {lower if len(lower := form.lower()) == len(form) else form for form in forms}
    return tuple(_Form(form, _pieces(form), len(secret)) for form in forms)


def _pieces(form: str) -> tuple[tuple[int, str], ...]:
    if len(form) < PIECE:
        return ((0, form),)
    size = PIECE if len(form) >= 2 * PIECE else len(form) // 2
    starts = (*range(0, len(form) - size, size), len(form) - size)
    return tuple((start, form[start : start + size]) for start in starts)


def _base64(secret: str) -> tuple[str, ...]:
    """By itself, and what of it does not depend on what stands before and behind (`user:password`)."""
    data = secret.encode("utf-8", "replace")
    inner = [
        base64.b64encode(bytes(before) + data).decode()[-(-8 * before // 6) : 8 * (before + len(data)) // 6]
        for before in range(3)
    ]
    return (base64.b64encode(data).decode(), *(form for form in inner if len(form) >= ANY_CASE))
