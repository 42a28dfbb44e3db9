"""HTTP/3 on the wire: types of frames and streams, codes, settings, and how to write them (RFC 9114 §7, §8)."""

from __future__ import annotations

from typing import Final

from router.transport.codec.quic.varint import varint

DATA: Final = 0x0
HEADERS: Final = 0x1
CANCEL_PUSH: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
GOAWAY: Final = 0x7
MAX_PUSH_ID: Final = 0xD
PRIORITY_UPDATE: Final = 0xF0700  # of a request, RFC 9218 §7.2
PRIORITY_UPDATE_PUSH: Final = 0xF0701

# Frames of HTTP/2 that have no meaning here and must not come (RFC 9114 §7.2.8).
_HTTP2_FRAMES: Final = (0x2, 0x6, 0x8, 0x9)

CONTROL_STREAM: Final = 0x0
PUSH_STREAM: Final = 0x1
ENCODER_STREAM: Final = 0x2  # RFC 9204 §4.2
DECODER_STREAM: Final = 0x3

MAX_FIELD_SECTION_SIZE: Final = 0x6
ENABLE_CONNECT_PROTOCOL: Final = 0x8  # RFC 9220 §3
H3_DATAGRAM: Final = 0x33  # RFC 9297 §2.1.1
# Settings of HTTP/2 that must not come (RFC 9114 §7.2.4.1, §11.2.2).
HTTP2_SETTINGS: Final = (0x0, 0x2, 0x3, 0x4, 0x5)

NO_ERROR: Final = 0x100
STREAM_CREATION_ERROR: Final = 0x103
CLOSED_CRITICAL_STREAM: Final = 0x104
FRAME_UNEXPECTED: Final = 0x105
FRAME_ERROR: Final = 0x106
EXCESSIVE_LOAD: Final = 0x107
ID_ERROR: Final = 0x108
SETTINGS_ERROR: Final = 0x109
MISSING_SETTINGS: Final = 0x10A
REQUEST_REJECTED: Final = 0x10B
REQUEST_CANCELLED: Final = 0x10C
REQUEST_INCOMPLETE: Final = 0x10D
MESSAGE_ERROR: Final = 0x10E
QPACK_DECOMPRESSION_FAILED: Final = 0x200  # RFC 9204 §6
QPACK_ENCODER_STREAM_ERROR: Final = 0x201
QPACK_DECODER_STREAM_ERROR: Final = 0x202

LAST_STREAM: Final = (1 << 62) - 4
"""No request can have a higher id: a GOAWAY with it only warns (RFC 9114 §5.2)."""

MAX_SMALL_BYTES: Final = 4_096
"""DATA frames up to this size have their header ready made; and are copied behind it."""


def frame(kind: int, payload: bytes) -> bytes:
    """Return one whole frame."""
    return varint(kind) + varint(len(payload)) + payload


def settings(pairs: tuple[tuple[int, int], ...]) -> bytes:
    """Return SETTINGS with these values."""
    return frame(SETTINGS, b"".join([varint(name) + varint(value) for name, value in pairs]))


def goaway(stream_id: int) -> bytes:
    """Return GOAWAY: requests from this id on are not served."""
    return frame(GOAWAY, varint(stream_id))


def read_varint(data: bytes, at: int) -> int:
    """Return the integer that stands at `at`; -1 if it is not all there. It is `varint_bytes` long."""
    if at >= len(data):
        return -1
    first = data[at]
    if first < 0x40:
        return first
    end = at + varint_bytes(first)
    if end > len(data):
        return -1
    return int.from_bytes(data[at:end], "big") & ((1 << 8 * (end - at) - 2) - 1)


def varint_bytes(first: int) -> int:
    """Return how long an integer is, by its first byte."""
    return 1 << (first >> 6)


def belongs_to_http2(kind: int) -> bool:
    """Whether a type of frame must not come for its meaning in HTTP/2."""
    return kind in _HTTP2_FRAMES


_DATA_HEADERS: Final = tuple(b"\0" + varint(size) for size in range(MAX_SMALL_BYTES))


def data_header(size: int) -> bytes:
    """Return the header of a DATA frame."""
    return _DATA_HEADERS[size] if size < MAX_SMALL_BYTES else b"\0" + varint(size)
