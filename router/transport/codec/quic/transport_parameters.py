"""What each side says about itself in the handshake (RFC 9000 §18, 9221 §3, the ACK frequency draft)."""

from __future__ import annotations

from typing import Final

from router.transport.codec.quic.limits import ACK_DELAY_EXPONENT, MAX_DATAGRAM_BYTES, MIN_DATAGRAM_BYTES
from router.transport.codec.quic.varint import Cursor, varint

ORIGINAL_ID: Final = 0x00
IDLE_TIMEOUT: Final = 0x01
RESET_TOKEN: Final = 0x02
MAX_PAYLOAD: Final = 0x03
MAX_DATA: Final = 0x04
MAX_DATA_BIDI_LOCAL: Final = 0x05
MAX_DATA_BIDI_REMOTE: Final = 0x06
MAX_DATA_UNI: Final = 0x07
MAX_STREAMS_BIDI: Final = 0x08
MAX_STREAMS_UNI: Final = 0x09
DELAY_EXPONENT: Final = 0x0A
MAX_ACK_DELAY: Final = 0x0B
NO_MIGRATION: Final = 0x0C
PREFERRED_ADDRESS: Final = 0x0D
ID_LIMIT: Final = 0x0E
INITIAL_SOURCE_ID: Final = 0x0F
RETRY_SOURCE_ID: Final = 0x10
MAX_DATAGRAM: Final = 0x20
MIN_ACK_DELAY: Final = 0xFF04DE1B
"""In microseconds, unlike the largest delay; whoever has it takes ACK_FREQUENCY frames."""

_NUMBERS: Final = frozenset(
    (IDLE_TIMEOUT, MAX_PAYLOAD, MAX_DATA, MAX_DATA_BIDI_LOCAL, MAX_DATA_BIDI_REMOTE, MAX_DATA_UNI,
     MAX_STREAMS_BIDI, MAX_STREAMS_UNI, DELAY_EXPONENT, MAX_ACK_DELAY, ID_LIMIT, MAX_DATAGRAM, MIN_ACK_DELAY)
)  # fmt: skip
_BYTES: Final = frozenset((ORIGINAL_ID, RESET_TOKEN, INITIAL_SOURCE_ID, RETRY_SOURCE_ID, PREFERRED_ADDRESS))
_SERVERS_ONLY: Final = frozenset((ORIGINAL_ID, RESET_TOKEN, PREFERRED_ADDRESS, RETRY_SOURCE_ID))
_MAX_STREAMS: Final = 1 << 60


class Parameters:
    """One side's parameters, with the defaults of the RFC. Times in milliseconds as on the wire."""

    __slots__ = ("ids", "no_migration", "numbers")

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {
            MAX_PAYLOAD: MAX_DATAGRAM_BYTES,
            DELAY_EXPONENT: ACK_DELAY_EXPONENT,
            MAX_ACK_DELAY: 25,
            ID_LIMIT: 2,
        }
        self.ids: dict[int, bytes] = {}
        self.no_migration = False

    def number(self, which: int) -> int:
        """Return a number, 0 where it was not given and has no default."""
        return self.numbers.get(which, 0)

    def encode(self) -> bytes:
        """Return the extension's body."""
        parts: list[bytes] = []
        for which, value in self.numbers.items():
            body = varint(value)
            parts.append(varint(which) + varint(len(body)) + body)
        for which, opaque in self.ids.items():
            parts.append(varint(which) + varint(len(opaque)) + opaque)
        if self.no_migration:
            parts.append(varint(NO_MIGRATION) + b"\0")
        return b"".join(parts)


def read_parameters(data: bytes, *, from_client: bool) -> Parameters | str:
    """Return the peer's parameters, or what is wrong with them."""
    found = Parameters()
    cursor = Cursor(data, 0, len(data))
    seen: set[int] = set()
    while cursor.at < cursor.end:
        which = cursor.varint()
        body = cursor.take(cursor.varint())
        if cursor.is_short():
            return "truncated transport parameters"
        if which in seen:
            return "a transport parameter is repeated"
        seen.add(which)
        if from_client and which in _SERVERS_ONLY:
            return "a client sent a parameter that only servers have"
        if which in _NUMBERS:
            inner = Cursor(body, 0, len(body))
            value = inner.varint()
            if inner.is_short() or inner.at != len(body):
                return "a transport parameter is no number"
            found.numbers[which] = value
        elif which == NO_MIGRATION:
            if body:
                return "disable_active_migration has a value"
            found.no_migration = True
        elif which in _BYTES:
            found.ids[which] = body
    return _fault(found) or found


def _fault(found: Parameters) -> str:
    """Return which value RFC 9000 §18.2 forbids, empty if none."""
    if found.number(MAX_PAYLOAD) < MIN_DATAGRAM_BYTES:
        return "max_udp_payload_size is too small"
    if found.number(DELAY_EXPONENT) > 20:
        return "ack_delay_exponent is too large"
    if found.number(MAX_ACK_DELAY) >= 1 << 14:
        return "max_ack_delay is too large"
    if found.number(MIN_ACK_DELAY) > 1_000 * found.number(MAX_ACK_DELAY):
        return "min_ack_delay is larger than max_ack_delay"
    if found.number(ID_LIMIT) < 2:
        return "active_connection_id_limit is too small"
    if max(found.number(MAX_STREAMS_BIDI), found.number(MAX_STREAMS_UNI)) > _MAX_STREAMS:
        return "too many streams"
    token = found.ids.get(RESET_TOKEN)
    if token is not None and len(token) != 16:
        return "stateless_reset_token is not 16 bytes"
    if any(len(found.ids.get(which, b"")) > 20 for which in (ORIGINAL_ID, INITIAL_SOURCE_ID, RETRY_SOURCE_ID)):
        return "a connection id is too long"
    return ""
