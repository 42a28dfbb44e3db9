"""What can be read and answered without a connection: headers of any version (RFC 8999), resets, negotiation.

A datagram is a range of a buffer that may hold many. Everything in it is a stranger's word: what is malformed is
None, and nothing here is larger than what it answers. Imports nothing; randomness is an argument (`noise`).
"""

from __future__ import annotations

from typing import Final

VERSION_1: Final = 1
VERSIONS: Final = (VERSION_1,)
"""The versions that are spoken, best first."""
NEGOTIATION: Final = 0
"""In the place of the version: a Version Negotiation packet."""

ID_BYTES: Final = 12
"""Of the connection ids we issue: all that tells how long the id of a short header is."""
MAX_ID_BYTES: Final = 20
"""Of version 1; other versions may have longer ones, which are only echoed (RFC 9000 §17.2)."""
MIN_CLIENT_ID_BYTES: Final = 8
"""Of the first id that a client makes up for its server (RFC 9000 §7.2)."""
MIN_INITIAL_BYTES: Final = 1_200
"""Of a datagram with an Initial packet of a client, and of one that is answered with Version Negotiation."""

INITIAL: Final = 0
EARLY: Final = 1
HANDSHAKE: Final = 2
RETRY: Final = 3

RESET_TOKEN_BYTES: Final = 16
MIN_RESET_BYTES: Final = 21
"""RFC 9000 §10.3: five bytes of what looks like a header, and the token."""
MAX_RESET_BYTES: Final = 43
"""Less than that could be told from a packet by its size (§10.3)."""


class LongHeader:
    """What every version has in common; of version 1 also the type. `rest_at`: what follows the ids."""

    __slots__ = ("destination_id", "kind", "rest_at", "source_id", "version")

    def __init__(self, version: int, kind: int, destination_id: bytes, source_id: bytes, rest_at: int) -> None:
        self.version = version
        self.kind = kind
        self.destination_id = destination_id
        self.source_id = source_id
        self.rest_at = rest_at


def is_long(data: bytes, at: int) -> bool:
    """Whether the packet that begins there has a long header. There must be a byte."""
    return data[at] >= 0x80


def short_id(data: bytes, at: int, end: int) -> bytes:
    """Return the connection id of ours that a short header names; empty if there is no room for one."""
    return data[at + 1 : at + 1 + ID_BYTES] if end - at > ID_BYTES else b""


def read_long(data: bytes, at: int, end: int) -> LongHeader | None:
    """Return a long header of whatever version (RFC 8999 §5.1); None if it is cut off."""
    if end - at < 7:
        return None
    version = int.from_bytes(data[at + 1 : at + 5], "big")
    source_at = at + 6 + data[at + 5]
    if source_at >= end:
        return None
    rest_at = source_at + 1 + data[source_at]
    if rest_at > end:
        return None
    return LongHeader(version, data[at] >> 4 & 3, data[at + 6 : source_at], data[source_at + 1 : rest_at], rest_at)


def initial_token(data: bytes, at: int, end: int) -> bytes | None:
    """Return the token of an Initial packet of version 1, whose ids end at `at`; None if it is cut off."""
    if at >= end:
        return None
    size = 1 << (data[at] >> 6)
    if at + size > end:
        return None
    length = int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
    at += size
    return data[at : at + length] if at + length <= end else None


def make_version_negotiation(header: LongHeader, noise: bytes) -> bytes:
    """Answer a packet of a version that is not spoken (RFC 9000 §6.1); the ids are its own, the other way round.

    Besides what is spoken it offers a version that nobody speaks (§6.3), so that nobody
    comes to rely on the list; never the one that was asked for.
    """
    spoken = list(VERSIONS)
    reserved = int.from_bytes(noise[1:5], "big") & 0xF0F0F0F0 | 0x0A0A0A0A
    spoken.insert(noise[0] % (len(spoken) + 1), reserved ^ 0x10101010 if reserved == header.version else reserved)
    return b"".join((
        bytes((0xC0 | (noise[5] & 0x3F),)), bytes(4),
        bytes((len(header.source_id),)), header.source_id,
        bytes((len(header.destination_id),)), header.destination_id,
        *(version.to_bytes(4, "big") for version in spoken),
    ))  # fmt: skip


def make_stateless_reset(token: bytes, size: int, noise: bytes) -> bytes:
    """Answer a packet of `size` bytes that belongs to no connection any more; empty if there is no room.

    It looks like a packet (RFC 9000 §10.3), and is smaller than what it answers (§10.3.3): two ends that both know
    nothing would else answer each other for ever. `noise` are 64 bytes.
    """
    size = min(size - 1, MAX_RESET_BYTES + noise[0] % 5)
    if size < MIN_RESET_BYTES:
        return b""
    return bytes((0x40 | (noise[1] & 0x3F),)) + noise[2 : size - RESET_TOKEN_BYTES + 1] + token
