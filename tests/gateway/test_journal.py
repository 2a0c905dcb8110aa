"""What the journal says, and never says."""

import io
import json
from collections.abc import Iterator

import pytest

from gateway import journal
from gateway.journal import all_hidden, event, fault, hidden, keep_passing_secret, keep_secret

SECRET = "hunter2/and more"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    keep_secret(())
    journal._passing.clear()


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
    assert len(journal._passing) == 32


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
