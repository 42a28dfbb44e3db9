"""The little a router must know of RFC 6455: handshake values, frame boundaries, the close frame.

Messages pass untouched, whatever their size; frames are followed only far enough to know whether a close
frame of our own may stand at the end of what the client was sent.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Final

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_CLOSE: Final = 8


def make_key() -> bytes:
    """Return a fresh sec-websocket-key."""
    return base64.b64encode(os.urandom(16))


def accept_value(key: bytes) -> bytes:
    """Return the sec-websocket-accept that answers `key`."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def close_frame(code: int, reason: str) -> bytes:
    """Return an unmasked close frame, as a server sends it. The reason is cut to fit a control frame."""
    payload = code.to_bytes(2, "big") + reason.encode()[:123]
    return bytes((0x80 | _CLOSE, len(payload))) + payload


class FrameBoundary:
    """Follows unmasked frames on their way to a client, in whatever pieces they come."""

    __slots__ = ("_closed", "_header", "_remaining")

    def __init__(self) -> None:
        self._remaining = 0  # payload bytes still to come of the current frame
        self._header = b""  # an incomplete header
        self._closed = False

    @property
    def may_close(self) -> bool:
        """Whether the bytes so far end at a frame's end, and the peer has not closed already."""
        return not (self._remaining or self._header or self._closed)

    def follow(self, data: bytes) -> None:
        """Take the next piece. One small whole frame, the common case, costs three comparisons."""
        if not self._remaining and not self._header and len(data) == data[-1 if len(data) < 2 else 1] + 2 < 128:
            if data[0] & 0x0F == _CLOSE:
                self._closed = True
            return
        self._follow_pieces(data)

    def _follow_pieces(self, data: bytes) -> None:
        if self._remaining >= len(data):
            self._remaining -= len(data)
            return
        pos = self._remaining
        if self._header:
            data = self._header + data
            self._header = b""
        size = len(data)
        while pos < size:
            if size - pos < 2:
                break
            length = data[pos + 1] & 0x7F
            masked = 4 if data[pos + 1] & 0x80 else 0  # against RFC 6455 §5.1 from a server, yet followed
            header = 2 + masked + (0 if length < 126 else 2 if length == 126 else 8)
            if size - pos < header:
                break
            if length == 126:
                length = int.from_bytes(data[pos + 2 : pos + 4], "big")
            elif length == 127:
                length = int.from_bytes(data[pos + 2 : pos + 10], "big")
            if data[pos] & 0x0F == _CLOSE:
                self._closed = True
            pos += header + length
        if pos < size:
            self._header = data[pos:]
            self._remaining = 0
        else:
            self._remaining = pos - size
