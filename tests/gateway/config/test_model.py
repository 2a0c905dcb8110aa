"""Fields with rules of their own: addresses, times, tokens, secrets, durations."""

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.config.auth import AuthConfig
from gateway.config.model import BrokerConfig, HttpConfig, parse_listen, parse_time
from gateway.sdk.config import Secret, parse_duration_s, parse_rate_per_s, parse_size_bytes


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("127.0.0.1:8580", "127.0.0.1", 8580), ("[::1]:0", "::1", 0), ("localhost:65535", "localhost", 65535)],
)
def test_where_to_listen_is_host_and_port(listen: str, host: str, port: int) -> None:
    assert parse_listen(listen) == (host, port)


@pytest.mark.parametrize(
    "listen", ["8580", "127.0.0.1", "::1:80", "a b:80", "127.0.0.1:65536", "127.0.0.1:-1", ":80", "[x:80"]
)
def test_anything_else_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        parse_listen(listen)


@pytest.mark.parametrize(
    "url", ["https://b.example", "http://127.0.0.1:1026/", "http://[::1]:9090/base", "https://b/x/ngsi-ld/v1"]
)
def test_addresses_of_brokers(url: str) -> None:
    assert BrokerConfig.model_validate({"url": url}).url == url.rstrip("/")


@pytest.mark.parametrize(
    "url", ["b.example", "ftp://b", "https://", "https://u:p@b", "https://b?x=1", "https://b/ x", "HTTPS//b"]
)
def test_what_is_no_address_of_a_broker_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        BrokerConfig.model_validate({"url": url})


def test_a_time_has_a_zone() -> None:
    assert parse_time("2026-06-01T02:00:00+02:00") == datetime(2026, 6, 1, tzinfo=UTC)
    for wrong in ("2026-06-01", "2026-06-01T00:00:00", "yesterday", "1", 1, None):
        with pytest.raises(ValueError, match="write it as in"):
            parse_time(wrong)


def test_a_secret_hides_itself_and_works_as_a_text() -> None:
    auth = AuthConfig.model_validate({"basic": {"user": "me", "password": "hunter2"}})
    assert auth.basic is not None
    assert isinstance(auth.basic.password, Secret)
    assert auth.basic.password == "hunter2"
    assert "hunter2" not in repr(auth) + str(auth) + str(auth.model_dump()) + auth.model_dump_json()
    assert auth == AuthConfig.model_validate({"basic": {"user": "me", "password": "hunter2"}})
    assert auth != AuthConfig.model_validate({"basic": {"user": "me", "password": "hunter3"}})


@pytest.mark.parametrize("token", ["short", "with blank in it", "täglich-neu", "x" * 300])
def test_a_token_that_a_header_cannot_carry_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HttpConfig.model_validate({"token": token})
    assert "8 to 256 printable" in str(caught.value.errors(include_input=False))


@given(st.text(max_size=12) | st.from_regex(r"\A[0-9]{1,400}(\.[0-9]+)? ?(s|d|GB|/s)\Z"))
def test_any_text_is_a_finite_duration_size_or_rate_or_refused(text: str) -> None:
    for parse in (parse_duration_s, parse_size_bytes, parse_rate_per_s):
        with contextlib.suppress(ValueError):
            assert 0 <= parse(text) < 1e30


@given(st.integers(0, 10**6))
def test_durations_are_worth_their_unit(count: int) -> None:
    assert parse_duration_s(f"{count} min") == 60 * count
    assert parse_duration_s(f"{count}ms") == pytest.approx(count / 1000)
    assert parse_size_bytes(f"{count} KiB") == 1024 * count
    assert parse_rate_per_s(f"{count}/min") == pytest.approx(count / 60)
