"""Protobuf bytes by hand, for messages that are made by the thousand: google.protobuf.Value and PartialResultSet.

A PartialResultSet is the concatenation of its fields, so a row or a change record is encoded once and joined to a
resume token, without a message object between. Field numbers from google/spanner/v1/result_set.proto and
google/protobuf/struct.proto.
"""

from __future__ import annotations

import struct
from typing import Final

NULL: Final = b"\x08\x00"  # Value.null_value = 0
TRUE: Final = b"\x20\x01"
FALSE: Final = b"\x20\x00"
CHUNKED: Final = b"\x18\x01"  # PartialResultSet.chunked_value = true
_DOUBLE = struct.Struct("<Bd")


def varint(number: int) -> bytes:
    """Return a base-128 varint of a number >= 0."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(tag: int, payload: bytes) -> bytes:
    """Return a length-delimited field; `tag` is its number << 3 | 2, below 128."""
    return bytes((tag,)) + varint(len(payload)) + payload


def string(payload: bytes) -> bytes:
    """Return a Value with a string, given as UTF-8."""
    return b"\x1a" + varint(len(payload)) + payload


def text(value: str) -> bytes:
    """Return a Value with a string."""
    return string(value.encode())


def number(value: float) -> bytes:
    """Return a Value with a finite number."""
    return _DOUBLE.pack(0x11, value)


def boolean(value: object) -> bytes:
    """Return a Value with a bool."""
    return TRUE if value else FALSE


def array(values: list[bytes]) -> bytes:
    """Return a Value with a list of Values."""
    return field(0x32, b"".join([field(0x0A, value) for value in values]))


def in_values(value: bytes) -> bytes:
    """Return a Value as an element of PartialResultSet.values."""
    return field(0x12, value)


def metadata(message: bytes) -> bytes:
    """Return ResultSetMetadata as a field of PartialResultSet."""
    return field(0x0A, message)


def resume_token(token: bytes) -> bytes:
    """Return the token as a field of PartialResultSet."""
    return field(0x22, token)


def stats(message: bytes) -> bytes:
    """Return ResultSetStats as a field of PartialResultSet."""
    return field(0x2A, message)


def precommit_token(message: bytes) -> bytes:
    """Return MultiplexedSessionPrecommitToken as a field of PartialResultSet."""
    return field(0x42, message)
