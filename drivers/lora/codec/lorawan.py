"""LoRaWAN 1.0.x frames: PHYPayload, MIC, decryption, 32-bit counters. Source: LoRaWAN 1.0.4 specification, sections 4, 6.

On air DevAddr and counters are little-endian; people write them big-endian.
"""

import hmac
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC

from gateway.sdk.errors import FrameError, foreign

JOIN_REQUEST, JOIN_ACCEPT, UNCONFIRMED_UP, UNCONFIRMED_DOWN, CONFIRMED_UP, CONFIRMED_DOWN, REJOIN, PROPRIETARY = range(
    8
)
MTYPES = ("JoinRequest", "JoinAccept", "UnconfirmedDataUp", "UnconfirmedDataDown", "ConfirmedDataUp",
          "ConfirmedDataDown", "RejoinRequest", "Proprietary")  # fmt: skip
UP, DOWN = 0, 1
MIC_BYTES = 4
MIN_DATA_BYTES = 12  # MHDR, DevAddr, FCtrl, FCnt, MIC
MAX_PHY_BYTES = 256
FIRST_WINDOWS = 8  # upper halves tried for a session whose counter we do not know yet
_HEAD = struct.Struct("<BIBH")


@dataclass(frozen=True, slots=True)
class DataFrame:
    """A data frame as on air, payload still encrypted.

    Attributes:
        dev_addr: 8 hex digits, as printed.
        f_cnt: the 16 bits on air.
        f_port: None when the frame has neither port nor payload.
        signed: what the MIC covers.
    """

    mtype: int
    dev_addr: str
    adr: bool
    ack: bool
    f_cnt: int
    f_opts: bytes
    f_port: int | None
    payload: bytes
    mic: bytes
    signed: bytes

    @property
    def uplink(self) -> bool:
        return self.mtype in (UNCONFIRMED_UP, CONFIRMED_UP)


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """A join request; we do no joins, but a scan shows who asks."""

    join_eui: str
    dev_eui: str
    dev_nonce: int
    mic: bytes
    signed: bytes


def mtype_of(phy: bytes) -> int:
    """Message type of a PHYPayload.

    Raises:
        FrameError: empty, too long, or a major version other than 0 (LoRaWAN R1).
    """
    if not phy:
        raise FrameError("empty PHYPayload", frame=phy)
    if len(phy) > MAX_PHY_BYTES:
        raise FrameError(f"PHYPayload of {len(phy)} bytes, at most {MAX_PHY_BYTES}", frame=phy)
    if phy[0] & 0x03 and phy[0] >> 5 != PROPRIETARY:
        raise FrameError(f"major version {phy[0] & 3}, expected 0", frame=phy)
    return phy[0] >> 5


@foreign("PHYPayload")
def parse(phy: bytes) -> DataFrame:
    """Cut a data frame into its fields. Decrypts and checks nothing.

    Raises:
        FrameError: no data frame, truncated, or FOpts together with port 0.
    """
    mtype = mtype_of(phy)
    if mtype not in (UNCONFIRMED_UP, UNCONFIRMED_DOWN, CONFIRMED_UP, CONFIRMED_DOWN):
        raise FrameError(f"{MTYPES[mtype]} is no data frame", frame=phy)
    if len(phy) < MIN_DATA_BYTES:
        raise FrameError(f"{len(phy)} bytes, a data frame has at least {MIN_DATA_BYTES}", frame=phy, offset=len(phy))
    _, address, control, f_cnt = _HEAD.unpack_from(phy)
    port_at = _HEAD.size + (control & 0x0F)
    body_end = len(phy) - MIC_BYTES
    if port_at > body_end:
        raise FrameError(f"FOpts of {control & 0x0F} bytes do not fit", frame=phy, offset=_HEAD.size)
    f_opts = phy[_HEAD.size : port_at]
    f_port = phy[port_at] if port_at < body_end else None
    if f_port == 0 and f_opts:
        raise FrameError("MAC commands in FOpts and on port 0", frame=phy, offset=port_at)
    return DataFrame(
        mtype=mtype,
        dev_addr=f"{address:08x}",
        adr=bool(control & 0x80),
        ack=bool(control & 0x20),
        f_cnt=f_cnt,
        f_opts=f_opts,
        f_port=f_port,
        payload=phy[port_at + 1 : body_end],
        mic=phy[body_end:],
        signed=phy[:body_end],
    )


def parse_join_request(phy: bytes) -> JoinRequest:
    """Cut a join request into its fields.

    Raises:
        FrameError: another message type or length.
    """
    if mtype_of(phy) != JOIN_REQUEST or len(phy) != 23:
        raise FrameError("no join request", frame=phy)
    return JoinRequest(phy[8:0:-1].hex(), phy[16:8:-1].hex(), int.from_bytes(phy[17:19], "little"), phy[19:], phy[:19])


def cmac(key: bytes, data: bytes) -> bytes:
    """AES-CMAC, its first 4 bytes."""
    mac = CMAC(algorithms.AES(key))
    mac.update(data)
    return mac.finalize()[:MIC_BYTES]


def _block(first: int, direction: int, dev_addr: str, f_cnt: int, last: int) -> bytes:
    """The block A_i or B_0 of section 4.3.3 and 4.4."""
    return struct.pack("<B4xBIIxB", first, direction, int(dev_addr, 16), f_cnt, last)


def data_mic(frame: DataFrame, nwk_s_key: bytes, f_cnt: int) -> bytes:
    """MIC of a data frame under a 32-bit counter."""
    direction = UP if frame.uplink else DOWN
    return cmac(nwk_s_key, _block(0x49, direction, frame.dev_addr, f_cnt, len(frame.signed)) + frame.signed)


def data_mic_1_1(
    frame: DataFrame,
    f_nwk_s_int_key: bytes,
    s_nwk_s_int_key: bytes,
    f_cnt: int,
    *,
    conf_f_cnt: int,
    tx_dr: int,
    tx_ch: int,
) -> bytes:
    """MIC of a 1.1 uplink: two bytes under each of the two network keys.

    Args:
        conf_f_cnt: counter of the downlink that the frame acknowledges; 0 without ACK.
        tx_dr, tx_ch: data rate and channel it was sent with.
    """
    length = len(frame.signed)
    acknowledged = conf_f_cnt if frame.ack else 0
    block = struct.pack(
        "<BHBBBIIxB", 0x49, acknowledged & 0xFFFF, tx_dr, tx_ch, UP, int(frame.dev_addr, 16), f_cnt, length
    )
    own = cmac(s_nwk_s_int_key, block + frame.signed)
    forwarding = cmac(f_nwk_s_int_key, _block(0x49, UP, frame.dev_addr, f_cnt, length) + frame.signed)
    return own[:2] + forwarding[:2]


def mic_fits(frame: DataFrame, nwk_s_key: bytes, f_cnt: int) -> bool:
    """Whether the frame was signed with this key and counter."""
    return hmac.compare_digest(data_mic(frame, nwk_s_key, f_cnt), frame.mic)


def decrypt(frame: DataFrame, nwk_s_key: bytes, app_s_key: bytes, f_cnt: int) -> bytes:
    """Payload in clear: port 0 under the network key, all others under the application key."""
    key = nwk_s_key if frame.f_port == 0 else app_s_key
    return crypt(frame.payload, key, UP if frame.uplink else DOWN, frame.dev_addr, f_cnt)


def crypt(data: bytes, key: bytes, direction: int, dev_addr: str, f_cnt: int) -> bytes:
    """Encrypt or decrypt a payload (the same operation). An AppSKey that is wrong gives garbage, not an error."""
    if not data:
        return b""
    blocks = b"".join(_block(0x01, direction, dev_addr, f_cnt, i + 1) for i in range((len(data) + 15) // 16))
    stream = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)
    return bytes(a ^ b for a, b in zip(data, stream, strict=False))


def session_key(kind: int, root_key: bytes, join_nonce: bytes, net_id: bytes, dev_nonce: bytes) -> bytes:
    """A session key from a join; nonces and NetID in the order of the air (little-endian).

    Args:
        kind: 1 NwkSKey (1.1: FNwkSIntKey), 2 AppSKey, 3 SNwkSIntKey, 4 NwkSEncKey.
    """
    block = (bytes((kind,)) + join_nonce + net_id + dev_nonce).ljust(16, b"\0")
    return Cipher(algorithms.AES(root_key), modes.ECB()).encryptor().update(block)


def join_request_mic(request: JoinRequest, app_key: bytes) -> bytes:
    """MIC of a join request."""
    return cmac(app_key, request.signed)


def clear_join_accept(phy: bytes, app_key: bytes) -> bytes:
    """A join accept in clear, MIC included: the network "encrypts" with AES decryption."""
    return phy[:1] + Cipher(algorithms.AES(app_key), modes.ECB()).encryptor().update(phy[1:])


@dataclass(frozen=True, slots=True)
class Session:
    """Keys and counter of one device.

    Attributes:
        last: the highest counter accepted so far, 32 bit; None before the first.
        may_reset: accept a counter that starts again at 0 (ABP devices do after power loss).
    """

    dev_addr: str
    nwk_s_key: bytes
    app_s_key: bytes
    last: int | None = None
    may_reset: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """A frame belongs to a session.

    Attributes:
        f_cnt: full counter.
        verdict: `new` accept it; `repeat` the same frame again; `replay` an older one; `reset` accept, counter restarted.
    """

    f_cnt: int
    verdict: str


def match(frame: DataFrame, session: Session) -> Match | None:
    """Whether an uplink belongs to this session, and how its counter stands; None when the MIC fits no window.

    At most `FIRST_WINDOWS` MICs are computed.
    """
    for f_cnt, verdict in _windows(frame.f_cnt, session):
        if mic_fits(frame, session.nwk_s_key, f_cnt):
            return Match(f_cnt, verdict)
    return None


def _windows(on_air: int, session: Session) -> Iterator[tuple[int, str]]:
    """Full counters that the 16 bits on air may stand for, the likeliest first, with what each would mean."""
    last = session.last
    if last is None:
        yield from ((upper << 16 | on_air, "new") for upper in range(FIRST_WINDOWS))
        return
    upper = last >> 16
    for window in dict.fromkeys((upper, upper + 1, upper - 1, 0)):  # upper + 1: the bits on air rolled over
        f_cnt = window << 16 | on_air
        if not 0 <= window <= 0xFFFF:
            continue
        if f_cnt > last:
            yield f_cnt, "new"
        elif f_cnt == last:
            yield f_cnt, "repeat"
        else:
            yield f_cnt, "reset" if session.may_reset and window == 0 else "replay"
