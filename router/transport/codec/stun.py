"""STUN Binding messages (RFC 8489): what address a peer sees us at, and whether there is a way (RFC 8445 §7).

Read strictly: what a header, a length, a FINGERPRINT or an integrity attribute contradicts is None, and so is a
message without integrity where a key is asked for. Of attributes that come twice the first counts (§14), what
follows an integrity attribute is not read (§9). Written without reason phrases, so that an answer is never more
than 24 bytes larger than its request. No asyncio, no clock, no chance: transactions are arguments.
"""

from __future__ import annotations

import hmac
import ipaddress
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Address = tuple[str, int]

BINDING_REQUEST: Final = 0x0001
BINDING_INDICATION: Final = 0x0011
BINDING_SUCCESS: Final = 0x0101
BINDING_ERROR: Final = 0x0111

BAD_REQUEST: Final = 400
UNAUTHENTICATED: Final = 401
UNKNOWN_ATTRIBUTE: Final = 420

HEADER_BYTES: Final = 20
TRANSACTION_BYTES: Final = 12
MAX_MESSAGE_BYTES: Final = 1_280
"""What every path takes (RFC 8489 §6.1); nobody has more to say."""
MAX_USERNAME_BYTES: Final = 508
"""RFC 8489 §14.3: fewer than 509."""
MAX_UNKNOWN: Final = 32
"""Attributes that are named as not understood; that there are more changes nothing."""
MAX_ADDED_BYTES: Final = 24
"""By which an answer is larger than its request at most: the address of an IPv6 client."""

_COOKIE: Final = b"\x21\x12\xa4\x42"
_FINGERPRINT_MASK: Final = 0x5354554E
_IPV4: Final = 1
_IPV6: Final = 2

_MAPPED_ADDRESS: Final = 0x0001
_USERNAME: Final = 0x0006
_INTEGRITY: Final = 0x0008
_ERROR_CODE: Final = 0x0009
_UNKNOWN_ATTRIBUTES: Final = 0x000A
_INTEGRITY_SHA256: Final = 0x001C
_XOR_MAPPED_ADDRESS: Final = 0x0020
_OPTIONAL: Final = 0x8000  # from here on what is not known may be ignored
_FINGERPRINT: Final = 0x8028
_KNOWN: Final = frozenset((
    _MAPPED_ADDRESS, _USERNAME, _INTEGRITY, _ERROR_CODE, _UNKNOWN_ATTRIBUTES, _INTEGRITY_SHA256,
    _XOR_MAPPED_ADDRESS,
))  # fmt: skip
_KINDS: Final = frozenset((BINDING_REQUEST, BINDING_INDICATION, BINDING_SUCCESS, BINDING_ERROR))


class Message:
    """What was read. `unknown`: attributes that are not understood and would have to be (§14), in their order.

    `has_integrity`: it carries such an attribute; where a key was asked for, that was the right one.
    """

    __slots__ = (
        "error_code",
        "has_fingerprint",
        "has_integrity",
        "is_sha1",
        "kind",
        "mapped",
        "transaction",
        "unknown",
        "username",
    )

    def __init__(self, kind: int, transaction: bytes) -> None:
        self.kind = kind
        self.transaction = transaction
        self.username = b""
        self.mapped: Address | None = None
        self.error_code = 0
        self.unknown: list[int] = []
        self.has_integrity = False
        self.is_sha1 = False  # its integrity is of the older kind, and so has to be the answer's (§9.1.3)
        self.has_fingerprint = False


def is_stun(data: bytes) -> bool:
    """Whether a datagram is STUN's, on a socket that QUIC has too (RFC 9443: its packets begin with 64 or more)."""
    size = len(data)
    return (
        size >= HEADER_BYTES
        and data[0] <= 3
        and data[4:8] == _COOKIE
        and size <= MAX_MESSAGE_BYTES
        and not size & 3
        and data[2] << 8 | data[3] == size - HEADER_BYTES
    )


def read_message(data: bytes, key: bytes | Callable[[bytes], bytes] = b"") -> Message | None:
    """Return a Binding message, or None if it is none, or not as it should be.

    With a key, or what finds one for a USERNAME (empty: nobody's), only what is authentic is returned.
    """
    if not is_stun(data):
        return None
    kind = data[0] << 8 | data[1]
    if kind not in _KINDS:
        return None
    found = Message(kind, data[8:HEADER_BYTES])
    sha1_at = sha256_at = 0
    at, end = HEADER_BYTES, len(data)
    while at < end:
        attribute = data[at] << 8 | data[at + 1]
        value_end = at + 4 + (data[at + 2] << 8 | data[at + 3])
        if value_end > end:
            return None
        value = data[at + 4 : value_end]
        following = (value_end + 3) & ~3  # padding may be anything (§14)
        if attribute == _FINGERPRINT:
            if following != end or int.from_bytes(value, "big") != _fingerprint(data[:at]) or len(value) != 4:
                return None  # the last one, if there is one (§14.7)
            found.has_fingerprint = True
        elif attribute == _INTEGRITY_SHA256 and not sha256_at:
            if not 16 <= len(value) <= 32 or len(value) & 3:
                return None
            sha256_at = at
        elif sha1_at or sha256_at:
            pass  # §9: nobody vouches for it
        elif attribute == _INTEGRITY:
            if len(value) != 20:
                return None
            sha1_at = at
        elif not _take(found, attribute, value, data):
            return None
        at = following
    found.has_integrity = bool(sha1_at or sha256_at)
    found.is_sha1 = bool(sha1_at) and not sha256_at
    if not key:
        return found
    known = key if isinstance(key, bytes) else key(found.username)
    return found if _is_authentic(found, data, sha1_at, sha256_at, known) else None


def _take(found: Message, attribute: int, value: bytes, data: bytes) -> bool:
    """Keep what the first attribute of a kind says; False if it is not as it should be."""
    if attribute == _USERNAME:
        if not found.username:
            found.username = value
        return 1 <= len(value) <= MAX_USERNAME_BYTES
    if attribute == _XOR_MAPPED_ADDRESS:
        if found.mapped is None:
            found.mapped = _read_address(value, data)
        return found.mapped is not None
    if attribute == _ERROR_CODE:
        if not found.error_code:
            found.error_code = _read_error(value)
        return found.error_code != 0
    unknown = found.unknown
    is_required = attribute < _OPTIONAL and attribute not in _KNOWN
    if is_required and len(unknown) < MAX_UNKNOWN and attribute not in unknown:
        unknown.append(attribute)
    return True


def binding_request(transaction: bytes, *, username: bytes = b"", key: bytes = b"") -> bytes:
    """Return a Binding request; with a key, a connectivity check."""
    assert len(transaction) == TRANSACTION_BYTES
    assert len(username) <= MAX_USERNAME_BYTES
    attributes = _attribute(_USERNAME, username) if username else b""
    return _write(BINDING_REQUEST, transaction, attributes, key, is_sha1=False, has_fingerprint=True)


def binding_success(request: Message, address: Sequence[object], *, key: bytes = b"") -> bytes:
    """Answer a request that came from there; `address` is as the socket module gives it."""
    mapped = _attribute(_XOR_MAPPED_ADDRESS, _write_address(address, request.transaction))
    return _write(
        BINDING_SUCCESS, request.transaction, mapped, key,
        is_sha1=request.is_sha1, has_fingerprint=request.has_fingerprint,
    )  # fmt: skip


def binding_error(request: Message, code: int, unknown: Sequence[int] = (), *, key: bytes = b"") -> bytes:
    """Refuse a request. `unknown`: with 420, what of it is not understood."""
    attributes = _attribute(_ERROR_CODE, bytes((0, 0, code // 100, code % 100)))
    if unknown:
        attributes += _attribute(_UNKNOWN_ATTRIBUTES, b"".join([number.to_bytes(2, "big") for number in unknown]))
    return _write(
        BINDING_ERROR, request.transaction, attributes, key,
        is_sha1=request.is_sha1, has_fingerprint=request.has_fingerprint,
    )  # fmt: skip


def _is_authentic(found: Message, data: bytes, sha1_at: int, sha256_at: int, key: bytes) -> bool:
    """Whether the message's best integrity is of this key; an empty key is nobody's."""
    at = sha256_at or sha1_at
    if not at or not key:
        return False
    size = data[at + 2] << 8 | data[at + 3]
    covered = _with_length(data[:at], at + 4 + size - HEADER_BYTES)
    made = hmac.digest(key, covered, "sha1" if found.is_sha1 else "sha256")
    return hmac.compare_digest(made[:size], data[at + 4 : at + 4 + size])


def _write(
    kind: int, transaction: bytes, attributes: bytes, key: bytes, *, is_sha1: bool, has_fingerprint: bool
) -> bytes:
    data = b"".join((kind.to_bytes(2, "big"), len(attributes).to_bytes(2, "big"), _COOKIE, transaction, attributes))
    if key:
        size = 20 if is_sha1 else 32
        covered = _with_length(data, len(attributes) + 4 + size)
        made = hmac.digest(key, covered, "sha1" if is_sha1 else "sha256")
        data = covered + _attribute(_INTEGRITY if is_sha1 else _INTEGRITY_SHA256, made)
    if has_fingerprint:
        data = _with_length(data, len(data) + 8 - HEADER_BYTES)
        data += _attribute(_FINGERPRINT, _fingerprint(data).to_bytes(4, "big"))
    return data


def _with_length(data: bytes, length: int) -> bytes:
    """Return a message whose header says another length: that with what is being computed (§14.5, §14.7)."""
    return data[:2] + length.to_bytes(2, "big") + data[4:]


def _fingerprint(data: bytes) -> int:
    return zlib.crc32(data) ^ _FINGERPRINT_MASK


def _attribute(number: int, value: bytes) -> bytes:
    return number.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value + bytes(-len(value) & 3)


def _read_error(value: bytes) -> int:
    """Return the code, 300 to 699 (§14.8); 0 if it is none."""
    if len(value) < 4 or not 3 <= value[2] & 7 <= 6 or value[3] > 99:
        return 0
    return (value[2] & 7) * 100 + value[3]


def _read_address(value: bytes, data: bytes) -> Address | None:
    if len(value) < 4 or len(value) != {_IPV4: 8, _IPV6: 20}.get(value[1], 0):
        return None
    port = int.from_bytes(value[2:4], "big") ^ int.from_bytes(_COOKIE[:2], "big")
    return str(ipaddress.ip_address(_mask(value[4:], data[8:HEADER_BYTES]))), port


def _write_address(address: Sequence[object], transaction: bytes) -> bytes:
    """Return the value of XOR-MAPPED-ADDRESS; IPv4 that an IPv6 socket has heard is IPv4."""
    ip = ipaddress.ip_address(str(address[0]))
    port = address[1]
    assert isinstance(port, int)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    family = _IPV4 if ip.version == 4 else _IPV6
    masked_port = port ^ int.from_bytes(_COOKIE[:2], "big")
    return bytes((0, family)) + masked_port.to_bytes(2, "big") + _mask(ip.packed, transaction)


def _mask(packed: bytes, transaction: bytes) -> bytes:
    """Hide an address from NATs that rewrite what looks like one (§14.2); the same undoes it."""
    mask = (_COOKIE + transaction)[: len(packed)]
    return (int.from_bytes(packed, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(packed), "big")
