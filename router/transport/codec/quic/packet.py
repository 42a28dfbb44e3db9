"""Headers of version 1: where a packet begins and ends, its number; nothing is decrypted here (RFC 9000 §17)."""

from __future__ import annotations

from typing import Final

from router.transport.codec.quic.limits import ID_BYTES, VERSION_1
from router.transport.codec.quic.varint import Cursor

# Epochs, which are also the packet number spaces but for early data, which shares the last one.
INITIAL: Final = 0
EARLY: Final = 1
HANDSHAKE: Final = 2
DATA: Final = 3
RETRY: Final = 4

_KINDS: Final = (INITIAL, EARLY, HANDSHAKE, RETRY)  # by the two type bits
FIRST_BYTE: Final = tuple(bytes((value,)) for value in range(256))
_LONG: Final = {INITIAL: 0xC0, EARLY: 0xD0, HANDSHAKE: 0xE0}


class LongHeader:
    """A long header of version 1. `number_at` is where the protected packet number stands, `end` the packet's."""

    __slots__ = ("destination", "end", "kind", "number_at", "source", "token")

    def __init__(self, kind: int, destination: bytes, source: bytes) -> None:
        self.kind = kind
        self.destination = destination
        self.source = source
        self.token = b""
        self.number_at = 0
        self.end = 0


def read_long(data: bytes, at: int, end: int) -> LongHeader | None:
    """Return the header that begins at `at`; None of another version, and if it is malformed."""
    if at + 7 > end or not data[at] & 0x40 or data[at + 1 : at + 5] != b"\0\0\0\x01":
        return None
    kind = _KINDS[data[at] >> 4 & 3]
    cursor = Cursor(data, at + 5, end)
    destination = _read_id(cursor)
    source = _read_id(cursor)
    header = LongHeader(kind, destination, source)
    if kind == RETRY:
        header.token = data[cursor.at : end]
        header.end = end
        return None if cursor.is_short() else header
    if kind == INITIAL:
        header.token = cursor.take(cursor.varint())
    size = cursor.varint()
    header.number_at = cursor.at
    header.end = cursor.at + size
    return None if cursor.is_short() or header.end > end or size < 0 else header


def _read_id(cursor: Cursor) -> bytes:
    size = cursor.take(1)
    return cursor.take(size[0] if size and size[0] <= 20 else -1)


def write_long(kind: int, destination: bytes, source: bytes, token: bytes, number_bytes: int) -> bytes:
    """Return a long header up to where its length stands."""
    header = (
        FIRST_BYTE[_LONG[kind] | (number_bytes - 1)]
        + VERSION_1.to_bytes(4, "big")
        + FIRST_BYTE[len(destination)]
        + destination
        + FIRST_BYTE[len(source)]
        + source
    )
    if kind == INITIAL:
        return header + (0x4000 | len(token)).to_bytes(2, "big") + token
    return header


def whole_number(truncated: int, bits: int, expected: int) -> int:
    """Return the packet number nearest to the expected one that ends in these bits (RFC 9000 §A.3)."""
    window = 1 << bits
    candidate = (expected & ~(window - 1)) | truncated
    if candidate <= expected - (window >> 1) and candidate < (1 << 62) - window:
        return candidate + window
    if candidate > expected + (window >> 1) and candidate >= window:
        return candidate - window
    return candidate


def short_id(data: bytes, at: int) -> bytes:
    """Return the connection id of ours that a short header names."""
    return data[at + 1 : at + 1 + ID_BYTES]
