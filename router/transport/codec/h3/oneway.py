"""What a client says on streams of one direction: control and QPACK (RFC 9114 §6.2, RFC 9204 §4.2).

    OneWay --type--> ControlStream | EncoderStream | DecoderStream | not wanted

The three live as long as the connection does, whose end their end is. Streams of other types are turned away
without harm to the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.h3 import frames
from router.transport.codec.h3.limits import MAX_PRIORITY_BYTES, MAX_SETTINGS_BYTES
from router.transport.codec.h3.reader import GATHER, SKIP, STOP, FrameReader, Incoming
from router.transport.codec.webtransport.codes import ENABLE_WEBTRANSPORT

if TYPE_CHECKING:
    from router.transport.codec.h3.connection import H3Connection
    from router.transport.codec.quic.seam import Flow

_MAX_INTEGER_BYTES: Final = 8
_MAX_CANCELLATION_BYTES: Final = 10  # of 62 bits in sevens, behind a prefix


class CriticalStream(Incoming):
    """One that may not end while the connection lives (RFC 9114 §6.2.1, RFC 9204 §4.2); ours is one, too."""

    __slots__ = ("_connection",)

    def __init__(self, connection: H3Connection) -> None:
        self._connection = connection

    def peer_reset(self, code: int) -> None:
        """It may not be."""
        self._fail()

    def peer_stopped(self, code: int) -> None:
        """It may not be."""
        self._fail()

    def _fail(self) -> None:
        self._connection.fail(frames.CLOSED_CRITICAL_STREAM, b"a critical stream is closed")


class OneWay(Incoming):
    """A stream whose type is not known yet."""

    __slots__ = ("_connection", "_flow", "_head")

    def __init__(self, connection: H3Connection, flow: Flow) -> None:
        self._connection = connection
        self._flow = flow
        self._head = b""

    def receive(self, data: bytes, end: bool) -> None:
        """Read the type, then hand the stream over. One that ends before is no fault (RFC 9114 §6.2)."""
        before = len(self._head)
        head = self._head + data[: _MAX_INTEGER_BYTES - before]
        kind = frames.read_varint(head, 0)
        if kind < 0:
            self._head = head
            return
        used = frames.varint_bytes(head[0]) - before
        found = self._connection.open_one_way(self._flow, kind)
        if found is not None:
            if used < len(data) or end:
                found.receive(data[used:], end)
        elif not end:
            self._flow.stop(frames.STREAM_CREATION_ERROR)

    def peer_reset(self, code: int) -> None:
        """It meant nothing yet (RFC 9114 §6.2)."""

    def peer_stopped(self, code: int) -> None:
        """We say nothing on it."""


class ControlStream(FrameReader):
    """The client's control stream (RFC 9114 §7.2)."""

    __slots__ = ("_connection", "_max_push_id", "_went_away_at")

    def __init__(self, connection: H3Connection) -> None:
        super().__init__()
        self._connection = connection
        self._max_push_id = 0
        self._went_away_at = -1

    def receive(self, data: bytes, end: bool) -> None:
        """Read on."""
        self.feed(data, False)
        if end:
            self.peer_reset(0)

    def peer_reset(self, code: int) -> None:
        """It may not be (RFC 9114 §6.2.1)."""
        self._fail(frames.CLOSED_CRITICAL_STREAM, b"the control stream is closed")

    def peer_stopped(self, code: int) -> None:
        """We say nothing on it."""

    def _fail(self, code: int, reason: bytes) -> int:
        self.may_read = False
        self._connection.fail(code, reason)
        return STOP

    def _flood(self, reason: bytes) -> int:
        self.may_read = False
        self._connection.flood(reason)
        return STOP

    def on_frame(self, kind: int, length: int) -> int:
        """Judge a frame by its type and its place (RFC 9114 §6.2.1, §7.2)."""
        connection = self._connection
        if kind == frames.SETTINGS:
            if connection.saw_settings:  # RFC 9114 §7.2.4
                return self._fail(frames.FRAME_UNEXPECTED, b"a second SETTINGS")
            return GATHER if length <= MAX_SETTINGS_BYTES else self._flood(b"too many settings")
        if not connection.saw_settings:
            return self._fail(frames.MISSING_SETTINGS, b"SETTINGS does not come first")
        if kind in (frames.DATA, frames.HEADERS, frames.PUSH_PROMISE) or frames.belongs_to_http2(kind):
            return self._fail(frames.FRAME_UNEXPECTED, b"a frame that belongs on another stream, or nowhere")
        if not connection.may_idle():
            return STOP
        if kind in (frames.PRIORITY_UPDATE, frames.PRIORITY_UPDATE_PUSH):
            return GATHER if length <= MAX_PRIORITY_BYTES else self._flood(b"PRIORITY_UPDATE is too long")
        if kind in (frames.GOAWAY, frames.MAX_PUSH_ID, frames.CANCEL_PUSH):
            if not 1 <= length <= _MAX_INTEGER_BYTES:
                return self._fail(frames.FRAME_ERROR, b"a frame of one integer is too short or too long")
            return GATHER
        return SKIP  # RFC 9114 §9

    def on_payload(self, kind: int, payload: bytes, end: bool) -> None:
        """Take a frame that is whole."""
        if kind == frames.SETTINGS:
            self._read_settings(payload)
            return
        value = frames.read_varint(payload, 0)
        is_alone = value >= 0 and frames.varint_bytes(payload[0]) == len(payload)
        if value < 0 or (kind < frames.PRIORITY_UPDATE and not is_alone):
            self._fail(frames.FRAME_ERROR, b"an integer is not whole")
        elif kind == frames.PRIORITY_UPDATE:
            if value & 0x3:  # RFC 9218 §7.2: no request
                self._fail(frames.ID_ERROR, b"PRIORITY_UPDATE of no request")
        elif kind == frames.GOAWAY:
            if 0 <= self._went_away_at < value:  # RFC 9114 §5.2; of pushes, and there are none
                self._fail(frames.ID_ERROR, b"GOAWAY goes up")
            self._went_away_at = value
        elif kind == frames.MAX_PUSH_ID:
            if value < self._max_push_id:  # RFC 9114 §7.2.7
                self._fail(frames.ID_ERROR, b"MAX_PUSH_ID goes down")
            self._max_push_id = value
        else:  # CANCEL_PUSH, or PRIORITY_UPDATE of a push (RFC 9114 §7.2.3, RFC 9218 §7.2)
            self._fail(frames.ID_ERROR, b"no push was promised")

    def on_slice(self, data: bytes, end: bool) -> None:
        """Never asked for."""
        raise AssertionError

    def _read_settings(self, payload: bytes) -> None:
        seen: set[int] = set()
        at = 0
        while at < len(payload):
            name = frames.read_varint(payload, at)
            at += frames.varint_bytes(payload[at])
            value = frames.read_varint(payload, at)
            if name < 0 or value < 0:  # RFC 9114 §7.1
                self._fail(frames.FRAME_ERROR, b"SETTINGS ends within a setting")
                return
            at += frames.varint_bytes(payload[at])
            is_flag = name in (frames.ENABLE_CONNECT_PROTOCOL, frames.H3_DATAGRAM, ENABLE_WEBTRANSPORT)
            # RFC 9114 §7.2.4, §7.2.4.1, RFC 8441 §3, RFC 9297 §2.1.1, draft-ietf-webtrans-http3-02 §8.2
            if name in seen or name in frames.HTTP2_SETTINGS or (is_flag and value > 1):
                self._fail(frames.SETTINGS_ERROR, b"a setting is repeated, reserved or out of range")
                return
            seen.add(name)
            if name == frames.H3_DATAGRAM:
                self._connection.peer_takes_datagrams = value == 1
        self._connection.saw_settings = True


class EncoderStream(CriticalStream):
    """Instructions for a dynamic table whose capacity we gave as 0 (RFC 9204 §4.3)."""

    __slots__ = ()

    def receive(self, data: bytes, end: bool) -> None:
        """Allow what sets a capacity of 0, which is one byte; insert nothing (RFC 9204 §3.2.3)."""
        for byte in data:
            if byte != 0x20:
                self._connection.fail(frames.QPACK_ENCODER_STREAM_ERROR, b"there is no dynamic table")
                return
            if not self._connection.may_idle():
                return
        if end:
            self._fail()


class DecoderStream(CriticalStream):
    """What the client's decoder made of our sections, none of which needs an answer (RFC 9204 §4.4)."""

    __slots__ = ("_within_bytes",)

    def __init__(self, connection: H3Connection) -> None:
        super().__init__(connection)
        self._within_bytes = 0  # of a cancellation that is not whole

    def receive(self, data: bytes, end: bool) -> None:
        """Allow cancellations; nothing was inserted that could be acknowledged or counted."""
        for byte in data:
            if self._within_bytes:
                self._within_bytes = self._within_bytes + 1 if byte >= 0x80 else 0
                is_fault = self._within_bytes > _MAX_CANCELLATION_BYTES
            else:
                is_fault = byte & 0xC0 != 0x40  # RFC 9204 §4.4.1, §4.4.3
                self._within_bytes = 1 if byte & 0x3F == 0x3F else 0
                if not is_fault and not self._connection.may_idle():
                    return
            if is_fault:
                self._connection.fail(frames.QPACK_DECODER_STREAM_ERROR, b"nothing was inserted")
                return
        if end:
            self._fail()


class OwnControl(CriticalStream):
    """Our control stream, which nobody says anything on."""

    __slots__ = ()

    def receive(self, data: bytes, end: bool) -> None:
        """Take nothing: the stream has one direction."""
