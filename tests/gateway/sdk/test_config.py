"""Where a link is: hosts and ports as people write them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk.config import parse_host, parse_serial_port


@pytest.mark.parametrize(
    "host",
    ["192.0.2.1", "meter", "meter-3.plant.example", "meter.local.", "_mb.example", "::1", "fe80::1%eth0", "2001:db8::7",
     "zähler.example", "a" * 63 + ".example"],
)  # fmt: skip
def test_a_name_or_an_address_is_a_host(host: str) -> None:
    assert parse_host(host) == host


def test_brackets_belong_to_urls_and_are_taken_off() -> None:
    assert parse_host("[2001:db8::7]") == "2001:db8::7"


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("192.0.2.1:502", "host: 192.0.2.1 and port: 502"),
        ("meter:502", "host: meter and port: 502"),
        ("[::1]:502", "host: ::1 and port: 502"),
        ("tcp://meter", "scheme or a path"),
        ("http://meter/", "scheme or a path"),
        ("meter/1", "scheme or a path"),
        ("me@meter", "login"),
        ("", "neither a host name nor an IP address"),
        ("a b", "neither"),
        ("a..b", "neither"),
        ("-a.example", "neither"),
        ("256.1.1.1", "neither"),
        ("10.0.0", "neither"),
        ("a" * 64, "neither"),
        ("meter\0", "neither"),
        ("meter:", "neither"),
        ("\ud800", "neither"),
    ],
)
def test_what_is_no_host_is_refused_with_what_to_write(host: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_host(host)


@pytest.mark.parametrize("port", ["/dev/ttyUSB0", "/dev/serial/by-id/usb-FTDI", "usb:0403:6001", "/tmp/pty"])
def test_a_path_or_a_usb_name_is_a_serial_port(port: str) -> None:
    assert parse_serial_port(port) == port


@given(st.text(max_size=40))
def test_any_text_is_a_place_or_refused(text: str) -> None:
    for parse in (parse_host, parse_serial_port):
        with contextlib.suppress(ValueError):
            assert parse(text)
