"""Numbers of WebTransport over HTTP/3: settings, first bytes of streams, capsules, codes (draft-07 §4, §5, §9).

An application's code for a stream is 32 bits wide and has a place among HTTP/3's codes, past those that are
reserved for grease; a session's own code travels in a capsule as it is.
"""

from __future__ import annotations

from typing import Final

from router.transport.codec.quic.varint import varint

ENABLE_WEBTRANSPORT: Final = 0x2B603742  # a setting of draft-02 …
MAX_SESSIONS_SETTING: Final = 0xC671706A  # … and of draft-07

TWO_WAY: Final = 0x41
"""In the place of a frame's type, before the session's id: a two-way stream is a session's."""
ONE_WAY: Final = 0x54
"""The type of a one-way stream that is a session's; its id follows."""

DATAGRAM: Final = 0x00  # RFC 9297 §3.5
CLOSE_SESSION: Final = 0x2843
DRAIN_SESSION: Final = 0x78AE

DATAGRAM_ERROR: Final = 0x33  # RFC 9297 §5.2
BUFFERED_STREAM_REJECTED: Final = 0x3994BD84
SESSION_GONE: Final = 0x170D7B68

MAX_CODE: Final = 0xFFFFFFFF
_FIRST: Final = 0x52E4A40FA8DB
_LAST: Final = 0x52E5AC983162


def to_http3(code: int) -> int:
    """Return an application's code for a stream as HTTP/3 has it."""
    return _FIRST + code + code // 0x1E


def from_http3(code: int) -> int:
    """Return the application's code; -1 if it is none of an application's."""
    if not _FIRST <= code <= _LAST or (code - 0x21) % 0x1F == 0:
        return -1
    shifted = code - _FIRST
    return shifted - shifted // 0x1F


def capsule(kind: int, payload: bytes) -> bytes:
    """Return one whole capsule."""
    return varint(kind) + varint(len(payload)) + payload
