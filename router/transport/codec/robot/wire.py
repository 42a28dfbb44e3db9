"""The bytes of `router-robot/1`, for both roles: what stands before a frame and a message, how large they may be.

    control    type, length, msgpack map                           both ways; see `control.py` for the maps
    state      0x53, sequence, deadline, payload to the FIN        a stream for each message
    command    0x43 once, from the client; then length, flags, deadline, payload
    telemetry  0x54, sequence, payload                             a DATAGRAM

Bytes come in any pieces; what is wrong with them is a `fault`, a WebSocket close code, and the end of reading.
Imports nothing but QUIC's integers.
"""

from __future__ import annotations

from typing import Final

from router.transport.codec.quic.varint import MAX_VARINT, Cursor, varint

ALPN: Final = "router-robot/1"

# Types of control frames.
HELLO: Final = 0x01
PING: Final = 0x02
PONG: Final = 0x03
LINK: Final = 0x04
BYE: Final = 0x05
DIRECT: Final = 0x06
WELCOME: Final = 0x11
REFUSED: Final = 0x12
EPOCH: Final = 0x13
OFFER: Final = 0x14
TOKEN: Final = 0x15

# First bytes of lanes.
COMMAND: Final = 0x43
STATE: Final = 0x53
TELEMETRY: Final = 0x54

CONTROL_ID: Final = 0
COMMAND_ID: Final = 4
"""Ids of the client's first and second two-way stream (RFC 9000 §2.1)."""

VERSION: Final = b"ROBOT/1"
"""Of the request that a session makes, where others have that of HTTP."""

FLAG_TEXT: Final = 1
"""The only flag there is. Another one is a fault: who does not know it cannot know what the message means."""

# How a session ends: codes of RFC 6455 §7.4, in CONNECTION_CLOSE.
DONE: Final = 1_000
GOING: Final = 1_001
BROKEN: Final = 1_002
BAD_TEXT: Final = 1_007
NOT_ALLOWED: Final = 1_008
TOO_LARGE: Final = 1_009
FAILED: Final = 1_011
DRAINING: Final = 1_012
NO_ROOM: Final = 1_013

SUPERSEDED: Final = "superseded"
"""The reason beside NOT_ALLOWED for a session whose robot, or who shows its token, has come again."""

STALE: Final = 1
"""Of RESET_STREAM and STOP_SENDING: a newer state message is there, or this one is too late."""

MAX_FRAME_BYTES: Final = 16_384
"""Of a control frame's map."""
MAX_MESSAGE_BYTES: Final = 16_777_216
"""Of one message: some thirty times a policy's largest observation."""
MAX_HEADER_BYTES: Final = 24
"""Of what stands before a frame or a message: three integers."""


class Frame:
    """One control frame; `body` is its map, not decoded yet."""

    __slots__ = ("body", "kind")

    def __init__(self, kind: int, body: bytes) -> None:
        self.kind = kind
        self.body = body


class FrameReader:
    """Takes the bytes of the control stream."""

    __slots__ = ("_buffer", "fault")

    def __init__(self) -> None:
        self._buffer = b""
        self.fault = 0

    def read(self, data: bytes) -> list[Frame]:
        """Return the frames that are whole now."""
        found: list[Frame] = []
        if self.fault:
            return found
        data = self._buffer + data if self._buffer else data
        cursor = Cursor(data, 0, len(data))
        at = 0
        while True:
            kind = cursor.varint()
            size = cursor.varint()
            if cursor.is_short():
                break
            if size > MAX_FRAME_BYTES:
                self.fault = TOO_LARGE
                break
            body = cursor.take(size)
            if cursor.is_short():
                break
            found.append(Frame(kind, body))
            at = cursor.at
        self._buffer = data[at:]
        return found

    @property
    def is_between(self) -> bool:
        """Whether no frame has begun and is not whole."""
        return not self._buffer


def write_frame(kind: int, body: bytes) -> bytes:
    """Return a control frame."""
    return varint(kind) + varint(len(body)) + body


class StateReader:
    """Takes the bytes of one state message. `sequence` is 0 while it is not known."""

    __slots__ = ("_first", "_more", "deadline", "fault", "sequence", "size")

    def __init__(self) -> None:
        self.sequence = 0
        self.deadline = 0
        self.size = 0  # of the payload so far
        self.fault = 0
        self._first = b""  # of the header, and then of the payload: often it is all of it
        self._more: bytearray | None = None  # a list of tiny pieces would be forty times their size

    def read(self, data: bytes) -> bool:
        """Take bytes; False if there is a fault."""
        if not self.sequence:
            data = self._first + data
            self._first = b""
            data = self._read_header(data)
        self.size += len(data)
        if self.size > MAX_MESSAGE_BYTES:
            self.fault = TOO_LARGE
        if self.fault:
            self._first = b""
            self._more = None
            return False
        if self._more is not None:
            self._more += data
        elif self._first:
            if self.sequence:
                self._more = bytearray(self._first)
                self._more += data
                self._first = b""
        elif self.sequence:
            self._first = data
        return True

    def _read_header(self, data: bytes) -> bytes:
        """Return what follows the header; while that is not whole keep it, and return nothing."""
        if data and data[0] != STATE:
            self.fault = BROKEN
            return b""
        cursor = Cursor(data, 1, len(data))
        sequence = cursor.varint()
        deadline = cursor.varint()
        if cursor.is_short():
            self._first = data
            return b""
        if not sequence:
            self.fault = BROKEN
            return b""
        self.sequence = sequence
        self.deadline = deadline
        return data[cursor.at :]

    def payload(self) -> bytes:
        """Return the message: the stream has ended."""
        return self._first if self._more is None else bytes(self._more)


def state_header(sequence: int, deadline: int) -> bytes:
    """Return what stands before a state message."""
    return b"S" + varint(sequence) + varint(deadline)


class Command:
    """One message of the command lane."""

    __slots__ = ("data", "deadline", "flags", "is_text")

    def __init__(self, data: bytes, deadline: int, is_text: bool, flags: int = 0) -> None:
        """`flags`: all of them, of a reader that takes more than the lane has."""
        self.data = data
        self.deadline = deadline
        self.is_text = is_text
        self.flags = flags


class CommandReader:
    """Takes the bytes of the command lane. `from_client`: the lane's own byte comes first; `known`: flags."""

    __slots__ = ("_deadline", "_first", "_flags", "_has_lane", "_known", "_left", "_more", "fault")

    def __init__(self, *, from_client: bool, known: int = FLAG_TEXT) -> None:
        self._has_lane = not from_client
        self._known = known
        self._left = -1  # of the message whose header was read
        self._flags = 0
        self._deadline = 0
        self._first = b""  # of a header, or of a message
        self._more: bytearray | None = None
        self.fault = 0

    def read(self, data: bytes) -> list[Command]:
        """Return the messages that are whole now."""
        found: list[Command] = []
        if not self._has_lane and data and not self.fault:
            if data[0] != COMMAND:
                self.fault = BROKEN
                return found
            self._has_lane = True
            data = data[1:]
        at = 0
        while not self.fault:
            if self._left < 0:
                header = self._first + data[at : at + MAX_HEADER_BYTES]
                used = self._read_header(header)
                if used < 0:
                    self._first = header
                    return found
                at += used - len(self._first)
                self._first = b""
                continue
            part = data[at : at + self._left]
            at += len(part)
            self._left -= len(part)
            self._keep(part)
            if self._left:
                return found
            message = self._take()
            if not self.fault:
                found.append(message)
        return found

    def _read_header(self, header: bytes) -> int:
        """Return how long the header is, -1 while it is not whole."""
        cursor = Cursor(header, 0, len(header))
        size = cursor.varint()
        flags = cursor.varint()
        deadline = cursor.varint()
        if size > MAX_MESSAGE_BYTES:
            self.fault = TOO_LARGE
            return 0
        if cursor.is_short():
            return -1
        if flags & ~self._known:
            self.fault = BROKEN
            return 0
        self._left = size
        self._flags = flags
        self._deadline = deadline
        return cursor.at

    def _keep(self, part: bytes) -> None:
        if self._more is not None:
            self._more += part
        elif self._first:
            self._more = bytearray(self._first)
            self._more += part
        else:
            self._first = part

    def _take(self) -> Command:
        data = self._first if self._more is None else bytes(self._more)
        self._first = b""
        self._more = None
        self._left = -1
        is_text = bool(self._flags & FLAG_TEXT)
        if is_text:
            try:
                data.decode()
            except UnicodeDecodeError:
                self.fault = BAD_TEXT
        return Command(data, self._deadline, is_text, self._flags)

    @property
    def is_between(self) -> bool:
        """Whether no message has begun and is not whole."""
        return self._left < 0 and not self._first


def command_header(size: int, deadline: int, *, is_text: bool) -> bytes:
    """Return what stands before a message of the command lane."""
    return varint(size) + (b"\x01" if is_text else b"\0") + varint(deadline)


def telemetry(sequence: int, payload: bytes) -> bytes:
    """Return a telemetry DATAGRAM."""
    return b"T" + varint(sequence) + payload


def read_telemetry(data: bytes) -> int:
    """Return a telemetry DATAGRAM's sequence; 0 if it is none."""
    if not data or data[0] != TELEMETRY:
        return 0
    cursor = Cursor(data, 1, len(data))
    sequence = cursor.varint()
    return 0 if cursor.is_short() else sequence


def telemetry_payload(data: bytes) -> bytes:
    """Return the payload of a telemetry DATAGRAM, of which `read_telemetry` has found the sequence."""
    return data[1 + (1 << (data[1] >> 6)) :]  # RFC 9000 §16


def clamp(value: int) -> int:
    """Return the value as far as it can be said in an integer of QUIC."""
    return min(max(value, 0), MAX_VARINT)
