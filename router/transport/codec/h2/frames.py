"""Frames of HTTP/2 on the wire: types, flags, error codes, settings, and how to write one (RFC 9113 §4, §6)."""

from __future__ import annotations

from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9
PRIORITY_UPDATE: Final = 16  # RFC 9218 §7.1

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
INTERNAL_ERROR: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6
ENABLE_CONNECT_PROTOCOL: Final = 0x8  # RFC 8441 §3
NO_RFC7540_PRIORITIES: Final = 0x9  # RFC 9218 §2.1

DEFAULT_WINDOW: Final = 65_535
MIN_FRAME_SIZE: Final = 16_384  # what SETTINGS_MAX_FRAME_SIZE starts with and may not go below
LARGEST_FRAME_SIZE: Final = 16_777_215
MAX_WINDOW: Final = 0x7FFFFFFF
LAST_STREAM: Final = 0x7FFFFFFF

SETTINGS_ACK: Final = b"\0\0\0\x04\x01\0\0\0\0"


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Return one whole frame."""
    return header(len(payload), kind, flags, stream_id) + payload


def header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Return a frame's first nine bytes."""
    return (length << 48 | kind << 40 | flags << 32 | stream_id).to_bytes(9, "big")


def rst_stream(stream_id: int, code: int) -> bytes:
    """Return RST_STREAM."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def window_update(stream_id: int, increment: int) -> bytes:
    """Return WINDOW_UPDATE; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def goaway(last_stream_id: int, code: int, reason: bytes) -> bytes:
    """Return GOAWAY; `reason` is our own text, for who reads a trace."""
    return frame(GOAWAY, 0, 0, last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + reason)


def settings(pairs: tuple[tuple[int, int], ...]) -> bytes:
    """Return SETTINGS with these values."""
    return frame(SETTINGS, 0, 0, b"".join([k.to_bytes(2, "big") + v.to_bytes(4, "big") for k, v in pairs]))
