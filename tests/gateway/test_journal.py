"""What the journal says, and never says."""

import html
import io
import json
import logging
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import hidden as known
from gateway import journal
from gateway.forward.answer import words
from gateway.health import Rejections
from gateway.hidden import all_hidden, hidden, keep_passing_secret, keep_secret
from gateway.journal import event, fault
from gateway.sdk.testing import NOON

SECRET = "hunter2/and more"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    keep_secret(())
    known._passing.clear()


@pytest.fixture
def said() -> io.StringIO:
    stream = io.StringIO()
    journal.set_up(stream=stream)
    return stream


def test_a_known_secret_is_hidden_in_every_field_and_traceback(said: io.StringIO) -> None:
    keep_secret([SECRET])

    event("broker_down", reason=f"401: {SECRET} is not right", several=[SECRET, {"deep": SECRET}])
    try:
        raise ValueError(f"bad login {SECRET}")
    except ValueError as error:
        fault("chore_failed", error)

    assert SECRET not in said.getvalue()
    assert "is not right" in json.loads(said.getvalue().splitlines()[0])["reason"]


def test_what_a_library_says_is_an_event_and_hides_it_too(said: io.StringIO) -> None:
    keep_secret([SECRET])

    logging.getLogger("asyncio").error("lost %s", SECRET)
    try:
        raise ValueError(f"bad login {SECRET}")
    except ValueError:
        logging.getLogger("paho").exception("of a callback")

    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    assert SECRET not in said.getvalue()
    assert [(line["event"], line["library"]) for line in lines] == [
        ("library_error", its) for its in ("asyncio", "paho")
    ]
    assert "ValueError" in lines[1]["exception"]


@pytest.mark.parametrize("form", ["hunter2%2Fand%20more", "aHVudGVyMi9hbmQgbW9yZQ=="])
def test_a_secret_is_known_in_the_forms_in_which_it_goes_over_the_wire(form: str) -> None:
    keep_secret([SECRET])

    assert form not in hidden(f"GET /token?key={form} -> 401")


def test_secrets_follow_the_config_and_tokens_are_bounded() -> None:
    keep_secret(["of-the-old-config"])
    keep_secret(["of-the-new-config"])
    for n in range(100):
        keep_passing_secret(f"token-number-{n:03}")

    assert hidden("of-the-old-config of-the-new-config token-number-099") == "of-the-old-config ••• •••"
    assert len(known._passing) == 32


def test_a_token_server_cannot_spoil_times() -> None:
    keep_passing_secret("2026-06-01T1", "2026-06-01T12:00:00Z")

    assert all_hidden({"observed_at": "2026-06-01T12:00:00Z", "reason": "token 2026-06-01T12:00:00Z"}) == {
        "observed_at": "2026-06-01T12:00:00Z",
        "reason": "token •••",
    }


def test_short_texts_are_no_secrets_to_look_for() -> None:
    keep_secret(["", "a", "abc"])

    assert hidden("abc a") == "abc a"


def test_free_texts_of_any_json_value_are_hidden_in() -> None:
    keep_secret(["hunter2"])

    assert all_hidden({"reason": ["hunter2", 3, None, True, ("hunter2",)], "any": {"deep": ["it was hunter2"]}}) == {
        "reason": ["•••", 3, None, True, ["•••"]],
        "any": {"deep": ["it was •••"]},
    }


def test_a_password_like_a_name_or_a_year_spoils_neither_names_nor_times() -> None:
    keep_secret(["milano", "2026", "good"])
    status = {"city": "milano", "observed_at": "2026-06-01T12:00:00Z", "quality": "good", "milano": {"state": "ok"}}

    assert all_hidden(status) == status
    assert all_hidden({"reason": "milano is wrong"}) == {"reason": "••• is wrong"}


def test_a_password_that_is_a_word_takes_no_name_with_it_and_a_token_does() -> None:
    keep_secret(["state", "links", "Hunter2-and-some-More"])

    shown = all_hidden({"state": "ok", "links": {"links": {}}, "of Hunter2-and-some-More": 1})
    assert shown == {"state": "ok", "links": {"links": {}}, "of •••": 1}


SECRETS = (
    "Hunter2-and-some-More",
    "p@ss w/rd+\"'<&>\\",
    "Zm9/+29vYg==",
    "grün-Wég-am-7",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJndyJ9.c2lnbmF0dXJl",
)
WRITTEN: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "capitals": str.upper,
    "small": str.lower,
    "address": lambda secret: quote(secret, safe=""),
    "address, small hex": lambda secret: quote(secret, safe="").lower(),
    "form": quote_plus,
    "JSON": lambda secret: json.dumps({"a": secret}),
    "Python": repr,
    "HTML": html.escape,
    "base64": lambda secret: b64encode(secret.encode()).decode(),
    "base64 of an address": lambda secret: urlsafe_b64encode(secret.encode()).decode().rstrip("="),
    "base64 of a login": lambda secret: b64encode(f"gw-017:{secret}".encode()).decode(),
    "base64 of another login": lambda secret: b64encode(f"gw-17:{secret}".encode()).decode(),
    "base64 of a third login": lambda secret: b64encode(f"gw-7:{secret}".encode()).decode(),
}


@pytest.mark.parametrize("way", WRITTEN)
@pytest.mark.parametrize("secret", SECRETS)
def test_however_it_is_written_it_is_hidden(secret: str, way: str) -> None:
    keep_secret([secret])
    echo = f"401 token {WRITTEN[way](secret)} is not known here"

    shown = hidden(echo)

    assert shown.startswith("401 token ")
    assert shown.endswith(" is not known here")
    for size in range(6, len(secret)):
        assert WRITTEN[way](secret)[-size - 4 : -4] not in shown or way.startswith("base64 of")
    assert len(shown) < len("401 token  is not known here") + 20


@pytest.mark.parametrize("secret", [secret for secret in SECRETS if len(secret) >= 20])
def test_a_secret_that_was_cut_is_hidden_as_far_as_it_stands_there(secret: str) -> None:
    keep_secret([secret])
    half = max(len(secret) // 2, 16)

    for cut in range(half, len(secret)):
        assert hidden(f"token {secret[:cut]}… refused") == "token •••… refused"
        assert hidden(f"token …{secret[-cut:]} refused") == "token …••• refused"
    assert hidden(f"token {secret[:half]}…{secret[-half:]} refused") == "token •••…••• refused"


def test_one_secret_in_another_leaves_no_rest() -> None:
    keep_secret(["hunter2", "hunter2-hunter2-and-more", "2-and"])
    assert hidden("a hunter2-hunter2-and-more b hunter2 c") == "a ••• b ••• c"


def test_words_that_only_begin_like_a_secret_stay() -> None:
    keep_secret(["citygate-password-of-2026", "milano"])
    assert (
        hidden("citygate gave the password of citygate to citygate-p")
        == "citygate gave the password of citygate to citygate-p"
    )
    assert hidden("Milano is not porto") == "Milano is not porto"


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=40), max_size=4))
def test_any_text_is_hidden_in_with_any_secret(text: str, secrets: list[str]) -> None:
    keep_secret(secrets)
    shown = hidden(text + "".join(secrets) + text)
    for secret in secrets:
        assert len(secret) < 4 or secret not in shown or secret in "•••"


def test_a_broker_that_says_much_is_cut_only_after_hiding() -> None:
    keep_secret([SECRETS[0]])
    for before in range(260, 310):
        assert "Hunt" not in words("x" * before + SECRETS[0] + " and more")
    rejections = Rejections()
    for before in range(160, 210):
        rejections.add("é" * before + SECRETS[0], "", SECRETS[0], NOON)
    assert not any("Hunt" in row.reason + row.kind + row.remedy for row in rejections.newest_first())
