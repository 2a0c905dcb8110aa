"""What to tell a person when an MQTT broker does not let us in: what was seen, and what now."""

import socket
import ssl
from urllib.parse import urlsplit

from drivers.lora.config import MqttLink
from gateway.sdk.errors import LinkError
from gateway.sdk.files import check_regular

# of MQTT 5 and 3.1.1, as paho spells them
_REFUSALS = {
    "Unsupported protocol version": "set protocol to the MQTT version it speaks",
    "Client identifier not valid": "it does not like the client id {id}: set client_id",
    "Bad user name or password": "check username and password",
    "Not authorized": "it knows no such user, the password is wrong, or this user may not connect as {id}: check username "
    "and password, then its ACL",
    "Banned": "an administrator of the broker must lift the ban of {id}",
    "Server unavailable": "it is starting, or it keeps out clients for now",
    "Server busy": "it has too many clients for now",
    "Use another server": "set url to the server that its administrator names",
}
_DISPLACED = "Session taken over"

# X509_V_ERR_*
_UNTRUSTED, _NOT_YET, _EXPIRED, _OTHER_NAME = (2, 18, 19, 20, 21), 9, 10, (62, 64)


def refused(url: str, reason: str, client_id: str) -> str:
    """The broker answers the connect with a no."""
    remedy = _REFUSALS.get(reason, "check username, password, protocol")
    return f"broker {url} refuses: {reason}; {remedy.format(id=client_id)}"


def subscription_refused(url: str, topic: str, reason: str) -> str:
    """The broker lets us in but not at the events."""
    return f"broker {url} refuses {topic}: {reason}; its ACL must let this user read that topic"


def closed(url: str, reason: str, client_id: str) -> str:
    """The connection ended while all was well."""
    if reason == _DISPLACED:
        return f"broker {url}: {shared(client_id)}"
    return f"broker {url} closed the connection: {reason}"


def shared(client_id: str) -> str:
    """Two of one name: each connect ends the other's session, and each takes the other's uplinks."""
    return (
        f"another client connects with the client id {client_id} and takes over its session and its uplinks: two boxes "
        "made from one image, or two links; set another client_id in one of them"
    )


def closed_unanswered(url: str, protocol: str, client_id: str) -> str:
    """The broker takes the connection and closes it instead of answering."""
    doubt = (
        "whether it asks for a certificate (cert_file, key_file)"
        if _is_tls(url)
        else "whether it speaks TLS there (mqtts)"
    )
    return (
        f"broker {url} closed the connection without answering; check {doubt}, whether it speaks MQTT {protocol} "
        f"(protocol), and whether it lets in the client id {client_id}"
    )


def not_reached(config: MqttLink, error: Exception) -> str:
    """No connection came about."""
    host = urlsplit(config.url).hostname
    if isinstance(error, ssl.SSLCertVerificationError):
        what = f"certificate verify failed: {error.verify_message}; {_certificate(error.verify_code, str(host))}"
    elif isinstance(error, ssl.SSLError):
        what = f"{error.reason or error}; {_tls(str(error.reason or error))}"
    elif isinstance(error, socket.gaierror):
        what = f"the name {host} is not known: {error.strerror}; check the name and this box's DNS"
    elif isinstance(error, ConnectionResetError) and _is_tls(config.url):
        what = f"{error}; {_tls('')}"
    else:
        what = str(error)
    return f"cannot connect to broker {config.url}: {what}"


def _certificate(code: int, host: str) -> str:
    if code in _OTHER_NAME:
        return f"the broker's certificate is for another name than {host}: write the url with a name that is in it"
    if code in _UNTRUSTED:
        return "its certificate is signed by nobody this box knows: set ca_file to its authority"
    if code in (_NOT_YET, _EXPIRED):
        return "renew the broker's certificate, or set this box's clock if that is wrong"
    return "check the broker's certificate"


def _tls(reason: str) -> str:
    if "CERTIFICATE_REQUIRED" in reason or "BAD_CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        return "the broker wants a certificate of ours that it trusts: check cert_file and key_file"
    return "does the broker speak TLS at this port? without TLS the url begins with mqtt://"


def _is_tls(url: str) -> bool:
    return url.startswith("mqtts:")


def tls_context(config: MqttLink) -> ssl.SSLContext:
    """Who we trust and who we are.

    Raises:
        LinkError: a file is missing, no PEM, or encrypted with a password that is not given or wrong.
    """

    def password() -> str:
        """Asked for an encrypted key; without this OpenSSL would ask on the terminal."""
        if not config.key_password:
            raise LinkError(f"{config.key_file} is encrypted: give key_password, or a key without one")
        return str(config.key_password)

    try:
        check_regular(config.ca_file, config.cert_file, config.key_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if config.ca_file:
            context.load_verify_locations(config.ca_file)
        else:
            context.load_default_certs()
        if config.cert_file:
            context.load_cert_chain(config.cert_file, config.key_file, password)
    except (OSError, ssl.SSLError) as error:
        raise LinkError(f"certificate files of {config.url}: {error}") from None
    return context
