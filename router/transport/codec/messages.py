"""WebSocket messages as a client has them: whole ones out of a replica's frames, frames out of ours (RFC 6455 §5).

Sans I/O, for protocols that carry messages and whose replica speaks WebSocket. Frames of any size come in any
pieces; a message is bounded. Pings are answered in place.
"""

from __future__ import annotations

import os
from typing import Any, Final

_apply_mask: Any = None
try:
    from websockets.speedups import apply_mask

    _apply_mask = apply_mask
except ImportError:
    pass
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

NORMAL: Final = 1_000
PROTOCOL_ERROR: Final = 1_002
NO_STATUS: Final = 1_005
BAD_TEXT: Final = 1_007
TOO_LARGE: Final = 1_009

_MAX_CONTROL_BYTES: Final = 125
_KEY_BYTES: Final = 4


def write_frame(kind: int, payload: bytes) -> bytes:
    """Return a whole message in one frame, masked as a client has to (§5.3)."""
    key = os.urandom(_KEY_BYTES)
    return write_header(kind, len(payload)) + key + mask(payload, key)


def write_pieces(kind: int, payload: bytes) -> tuple[bytes, bytes]:
    """Return the same in two, so that a large payload is not copied behind its header."""
    key = os.urandom(_KEY_BYTES)
    return write_header(kind, len(payload)) + key, mask(payload, key)


def write_header(kind: int, size: int) -> bytes:
    """Return a final frame's header, up to the key."""
    if size < 126:
        return bytes((0x80 | kind, 0x80 | size))
    if size < 65_536:
        return bytes((0x80 | kind, 0xFE)) + size.to_bytes(2, "big")
    return bytes((0x80 | kind, 0xFF)) + size.to_bytes(8, "big")


def mask(payload: bytes, key: bytes) -> bytes:
    """Return the payload with the key over it.

    By `websockets`' C code where it is installed; else as one large integer, the fastest that the language has.
    """
    size = len(payload)
    if not size:
        return b""
    if _apply_mask is not None:
        masked: bytes = _apply_mask(payload, key)
        return masked
    keys = (key * (size // _KEY_BYTES + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(keys, "little")).to_bytes(size, "little")


def close_payload(code: int, reason: str) -> bytes:
    """Return the payload of a close frame; the reason is cut to fit."""
    return code.to_bytes(2, "big") + reason.encode()[: _MAX_CONTROL_BYTES - 2].decode("utf-8", "ignore").encode()


class Message:
    """One message, or a control frame; of a close `code` and the reason as `data`. `lane`: see `framing`."""

    __slots__ = ("code", "data", "kind", "lane")

    def __init__(self, kind: int, data: bytes, code: int = 0, lane: int = 0) -> None:
        self.kind = kind
        self.data = data
        self.code = code
        self.lane = lane


class MessageReader:
    """Takes a replica's bytes; `fault` is the close code for what it did wrong, 0 while it did nothing."""

    __slots__ = (
        "_first",
        "_frame_left",
        "_header",
        "_is_final",
        "_kind",
        "_max_bytes",
        "_more",
        "_size",
        "fault",
    )  # fmt: skip

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._header = b""  # of a frame that is not whole yet
        self._frame_left = 0
        self._is_final = False
        self._kind = 0  # of the message whose frames come, 0 between messages
        self._first = b""  # piece of a message: often it is all of it
        self._more: bytearray | None = None  # the others; a list of tiny ones would be forty times their size
        self._size = 0
        self.fault = 0

    def read(self, data: bytes) -> list[Message]:
        """Return the messages that are whole now, and control frames between them."""
        found: list[Message] = []
        at = 0
        size = len(data)
        while not self.fault:
            if self._frame_left:
                if at >= size:
                    return found
                part = data[at : at + self._frame_left]
                at += len(part)
                self._frame_left -= len(part)
                self._keep(part)
                if self._frame_left:
                    return found
                self._end_frame(found)
                continue
            if self._header:
                data = self._header + data[at:]
                self._header = b""
                at = 0
                size = len(data)
            header_bytes = self._read_header(data, at, size, found)
            if not header_bytes:
                self._header = data[at:]
                return found
            at += header_bytes
        return found

    def _keep(self, part: bytes) -> None:
        if self._more is not None:
            self._more += part
        elif self._first:
            self._more = bytearray(part)
        else:
            self._first = part

    def _read_header(self, data: bytes, at: int, size: int, found: list[Message]) -> int:
        """Begin a frame; return how long its header is, 0 if it is not whole yet."""
        left = size - at
        if left < 2:
            return 0
        first, second = data[at], data[at + 1]
        length = second & 0x7F
        header_bytes = 2 if length < 126 else 4 if length == 126 else 10
        if left < header_bytes:
            return 0
        if header_bytes > 2:
            length = int.from_bytes(data[at + 2 : at + header_bytes], "big")
        opcode = first & 0x0F
        is_control = opcode >= CLOSE
        is_known = opcode in (0, TEXT, BINARY, CLOSE, PING, PONG)
        # §5.1, §5.2, §5.4, §5.5: no extension was agreed on, servers do not mask, and order is kept.
        is_in_order = is_control or (opcode == 0) == bool(self._kind)
        is_whole = length <= _MAX_CONTROL_BYTES and bool(first & 0x80)
        if first & 0x70 or second & 0x80 or not is_known or not is_in_order or (is_control and not is_whole):
            self.fault = PROTOCOL_ERROR
        elif not is_control and self._size + length > self._max_bytes:
            self.fault = TOO_LARGE
        if self.fault:
            return header_bytes
        if is_control:
            if left < header_bytes + length:
                return 0
            self._take_control(opcode, data[at + header_bytes : at + header_bytes + length], found)
            return header_bytes + length
        if opcode:
            self._kind = opcode
        self._is_final = bool(first & 0x80)
        self._frame_left = length
        self._size += length
        if not length:
            self._end_frame(found)
        return header_bytes

    def _take_control(self, opcode: int, payload: bytes, found: list[Message]) -> None:
        if opcode != CLOSE:
            found.append(Message(opcode, payload))
            return
        if len(payload) == 1:
            self.fault = PROTOCOL_ERROR
            return
        code = int.from_bytes(payload[:2], "big") if payload else NO_STATUS
        found.append(Message(CLOSE, payload[2:], code))

    def _end_frame(self, found: list[Message]) -> None:
        if not self._is_final:
            return
        data = self._first if self._more is None else self._first + self._more
        kind = self._kind
        self._first = b""
        self._more = None
        self._size = 0
        self._kind = 0
        if kind == TEXT:
            try:
                data.decode()
            except UnicodeDecodeError:
                self.fault = BAD_TEXT
                return
        found.append(Message(kind, data))
