"""Frames of one stream, in whatever pieces its bytes come (RFC 9114 §7.1).

    header --on_frame--> STOP, or
                         PASS: slices as they come --on_slice
                         GATHER: the whole payload --on_payload
                         SKIP: nothing

Only headers and what is to be gathered are kept between pieces; a large DATA frame is never copied together.
Reading stops in front of the next byte as soon as `may_read` is taken back, by whatever a callback led to.
"""

from __future__ import annotations

from typing import Final

from router.transport.codec.h3.frames import read_varint, varint_bytes

STOP: Final = -1  # nothing more is read
SKIP: Final = 0
PASS: Final = 1
GATHER: Final = 2

_MAX_HEADER_BYTES: Final = 16  # a type and a length of eight bytes each


class Incoming:
    """What a bearer's stream has as its `user`: whoever takes what the peer does on it."""

    __slots__ = ()

    def receive(self, data: bytes, end: bool) -> None:
        """Take the next bytes."""
        raise NotImplementedError

    def peer_reset(self, code: int) -> None:
        """Learn that the peer gave up its side."""
        raise NotImplementedError

    def peer_stopped(self, code: int) -> None:
        """Learn that the peer wants no more of ours."""
        raise NotImplementedError


class FrameReader(Incoming):
    """See the module."""

    __slots__ = ("_gathered", "_header", "_kind", "_left", "_mode", "may_read")

    def __init__(self) -> None:
        self.may_read = True
        self._kind = 0
        self._mode = SKIP
        self._left = 0  # of the payload of the frame under way
        self._header = b""  # one that is not whole
        self._gathered: bytearray | None = None

    def on_frame(self, kind: int, length: int) -> int:
        """Judge a frame by its header; return what becomes of the payload."""
        raise NotImplementedError

    def on_payload(self, kind: int, payload: bytes, end: bool) -> None:
        """Take a gathered payload; `end`: the stream ends right behind it."""
        raise NotImplementedError

    def on_slice(self, data: bytes, end: bool) -> None:
        """Take a part of a payload that is passed on, empty only if the frame is."""
        raise NotImplementedError

    def is_within_frame(self) -> bool:
        """Whether a frame has begun and is not whole."""
        return self._left > 0 or self._header != b""

    def feed(self, data: bytes, end: bool) -> int:
        """Read on; return how many bytes were used, fewer than all if reading was stopped."""
        pos = 0
        size = len(data)
        while pos < size and self.may_read:
            if not self._left:
                if not self._header and size - pos >= 3 and data[pos] < 0x40 and data[pos + 1] < 0x80:
                    kind = data[pos]  # nearly every header
                    length = data[pos + 1]
                    pos += 2
                    if length >= 0x40:
                        length = (length & 0x3F) << 8 | data[pos]
                        pos += 1
                else:
                    used = self._read_header(data, pos)
                    if used < 0:
                        return size
                    pos += used
                    kind = self._kind
                    length = self._left
                self._kind = kind
                self._left = 0
                mode = self.on_frame(kind, length)
                if mode == STOP:
                    return pos
                self._mode = mode
                self._left = length
                if not length:
                    self._end_empty(kind, mode, end and pos == size)
                continue
            room = size - pos
            left = self._left
            if left > room:
                self._left = left - room
                if self._mode == PASS:
                    self.on_slice(data[pos:] if pos else data, False)
                elif self._mode == GATHER:
                    self._keep(data[pos:])
                return size
            stop = pos + left
            self._left = 0
            last = end and stop == size
            mode = self._mode
            if mode == PASS:
                self.on_slice(data[pos:stop], last)
            elif mode == GATHER:
                gathered = self._gathered
                if gathered is None:
                    self.on_payload(self._kind, data[pos:stop], last)
                else:
                    gathered += data[pos:stop]
                    self._gathered = None
                    self.on_payload(self._kind, bytes(gathered), last)
            pos = stop
        return pos

    def _end_empty(self, kind: int, mode: int, end: bool) -> None:
        if mode == PASS:
            self.on_slice(b"", end)
        elif mode == GATHER:
            self.on_payload(kind, b"", end)

    def _keep(self, data: bytes) -> None:
        if self._gathered is None:
            self._gathered = bytearray()
        self._gathered += data

    def _read_header(self, data: bytes, pos: int) -> int:
        """Read a header into `_kind` and `_left`; return how many bytes that took, -1 if it is not whole."""
        before = len(self._header)
        header = self._header + data[pos : pos + _MAX_HEADER_BYTES - before]
        kind = read_varint(header, 0)
        if kind >= 0:
            at = varint_bytes(header[0])
            length = read_varint(header, at)
            if length >= 0:
                self._header = b""
                self._kind = kind
                self._left = length
                return at + varint_bytes(header[at]) - before
        self._header = header
        return -1
