"""The frames of a packet that was opened, one method a kind (RFC 9000 §19, 9221 §4).

All that is decided here is checked against what the epoch and the role allow (§12.4); faults end the connection.
A packet that is dropped half way, for want of room, is as good as lost: what it had is taken again when it is
repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.quic.ack_frequency import ACK_FREQUENCY, IMMEDIATE_ACK
from router.transport.codec.quic.flow import QuicFlow
from router.transport.codec.quic.limits import (
    CRYPTO_BUFFER_EXCEEDED,
    CRYPTO_BYTES,
    FLOW_CONTROL_ERROR,
    FRAME_ENCODING_ERROR,
    MAX_DATAGRAMS,
    PROTOCOL_VIOLATION,
)
from router.transport.codec.quic.packet import DATA, EARLY, HANDSHAKE, INITIAL
from router.transport.codec.quic.state import CLOSING, DRAINING, ConnectionState
from router.transport.codec.quic.varint import MAX_VARINT, Cursor

if TYPE_CHECKING:
    from router.transport.codec.quic.path import Path

PADDING: Final = 0x00
PING: Final = 0x01
ACK: Final = 0x02
ACK_ECN: Final = 0x03
RESET_STREAM: Final = 0x04
STOP_SENDING: Final = 0x05
CRYPTO: Final = 0x06
NEW_TOKEN: Final = 0x07
STREAM: Final = 0x08
STREAM_LAST: Final = 0x0F
MAX_DATA: Final = 0x10
MAX_STREAM_DATA: Final = 0x11
MAX_STREAMS_BIDI: Final = 0x12
MAX_STREAMS_UNI: Final = 0x13
DATA_BLOCKED: Final = 0x14
STREAM_DATA_BLOCKED: Final = 0x15
STREAMS_BLOCKED_BIDI: Final = 0x16
STREAMS_BLOCKED_UNI: Final = 0x17
NEW_CONNECTION_ID: Final = 0x18
RETIRE_CONNECTION_ID: Final = 0x19
PATH_CHALLENGE: Final = 0x1A
PATH_RESPONSE: Final = 0x1B
CLOSE: Final = 0x1C
CLOSE_APPLICATION: Final = 0x1D
HANDSHAKE_DONE: Final = 0x1E
DATAGRAM: Final = 0x30
DATAGRAM_SIZED: Final = 0x31

MAX_STREAM_COUNT: Final = 1 << 60
_IN_HANDSHAKE: Final = frozenset((PADDING, PING, ACK, ACK_ECN, CRYPTO, CLOSE))
_NOT_EARLY: Final = frozenset(
    (ACK, ACK_ECN, CRYPTO, NEW_TOKEN, PATH_RESPONSE, RETIRE_CONNECTION_ID, HANDSHAKE_DONE, IMMEDIATE_ACK,
     ACK_FREQUENCY)
)
_NOT_ELICITING: Final = frozenset((PADDING, ACK, ACK_ECN, CLOSE, CLOSE_APPLICATION))
_PROBING: Final = frozenset((PADDING, NEW_CONNECTION_ID, PATH_CHALLENGE, PATH_RESPONSE))  # RFC 9000 §9.1
_MAX_TOKEN_BYTES: Final = 512

# What became of a packet's frames.
TAKEN: Final = 1  # with these bits beside it
ELICITING: Final = 2
NOT_PROBING: Final = 4
DROPPED: Final = 0


class FrameReader(ConnectionState):
    """Takes frames."""

    __slots__ = ()

    def receive_crypto(self, epoch: int, data: bytes) -> None:
        """Hand bytes of the handshake to TLS."""
        raise NotImplementedError

    def on_confirmed(self) -> None:
        """The handshake is confirmed: the peer has our last word of it (RFC 9001 §4.1.2)."""
        raise NotImplementedError

    def on_new_token(self, token: bytes) -> None:
        """Keep a token for the next connection."""
        raise NotImplementedError

    def read_frames(self, epoch: int, payload: bytes, used_id: bytes, path: Path) -> int:
        """Take all frames; return what became of them, `DROPPED` also where the connection failed."""
        size = len(payload)
        if not size:
            self.fail(PROTOCOL_VIOLATION, "a packet without frames")
            return DROPPED
        cursor = Cursor(payload, 0, size)
        result = TAKEN
        while cursor.at < size:
            at = cursor.at
            kind = payload[at]
            if STREAM <= kind <= STREAM_LAST and epoch & EARLY:  # early and data epochs are odd
                cursor.at = at + 1
                if not self._on_stream(kind, cursor):
                    return DROPPED
                result |= ELICITING | NOT_PROBING
                continue
            if kind == PADDING:
                cursor.at = _skip_padding(payload, at, size)
                continue
            if kind < 0x40:
                cursor.at = at + 1
            else:
                kind = cursor.varint()
                if kind < 0x40 and not cursor.is_short():
                    self.fail(PROTOCOL_VIOLATION, "a frame type is not encoded shortest")
                    return DROPPED
            if not self._on_frame(kind, epoch, cursor, used_id, path):
                return DROPPED
            if kind not in _NOT_ELICITING:
                result |= ELICITING
            if kind not in _PROBING:
                result |= NOT_PROBING
        return result

    def _on_frame(self, kind: int, epoch: int, cursor: Cursor, used_id: bytes, path: Path) -> bool:
        """Take one frame other than STREAM and PADDING; whether to go on."""
        if epoch in (INITIAL, HANDSHAKE):
            allowed = kind in _IN_HANDSHAKE
        else:
            allowed = epoch == DATA or kind not in _NOT_EARLY
        if not allowed:
            self.fail(PROTOCOL_VIOLATION, "a frame that its packet may not carry", kind)
            return False
        if kind in (ACK, ACK_ECN):
            self._on_ack(kind, epoch, cursor)
        elif kind == CRYPTO:
            self._on_crypto(epoch, cursor)
        elif kind in (DATAGRAM, DATAGRAM_SIZED):
            self._on_datagram(kind, cursor)
        elif kind in (MAX_DATA, MAX_STREAM_DATA):
            self._on_credit(kind, cursor)
        elif kind in (RESET_STREAM, STOP_SENDING):
            self._on_stream_end(kind, cursor)
        elif MAX_STREAMS_BIDI <= kind <= STREAMS_BLOCKED_UNI:
            self._on_limits(kind, cursor)
        elif kind in (NEW_CONNECTION_ID, RETIRE_CONNECTION_ID):
            self._on_ids(kind, cursor, used_id)
        elif kind in (PATH_CHALLENGE, PATH_RESPONSE):
            self._on_path(kind, cursor, path)
        elif kind in (CLOSE, CLOSE_APPLICATION):
            self._on_close(kind, cursor)
        elif kind == HANDSHAKE_DONE:
            if self.is_server:
                self.fail(PROTOCOL_VIOLATION, "a client confirmed the handshake", kind)
            else:
                self.on_confirmed()
        elif kind == NEW_TOKEN:
            token = cursor.take(cursor.varint())
            if self.is_server or not token:
                self.fail(PROTOCOL_VIOLATION if self.is_server else FRAME_ENCODING_ERROR, "a bad NEW_TOKEN", kind)
            elif len(token) <= _MAX_TOKEN_BYTES:
                self.on_new_token(token)
        elif kind in (ACK_FREQUENCY, IMMEDIATE_ACK):
            self._on_ack_frequency(kind, cursor)
        elif kind != PING:
            self.fail(FRAME_ENCODING_ERROR, "an unknown frame", kind)
        if cursor.is_short():
            self.fail(FRAME_ENCODING_ERROR, "a frame is cut off", kind)
        return self.phase < CLOSING

    # -- streams --------------------------------------------------------------------------------------

    def _on_stream(self, kind: int, cursor: Cursor) -> bool:
        stream_id = cursor.varint()
        offset = cursor.varint() if kind & 4 else 0
        data = cursor.take(cursor.varint() if kind & 2 else cursor.end - cursor.at)
        if cursor.is_short() or offset + len(data) > MAX_VARINT:
            self.fail(FRAME_ENCODING_ERROR, "a STREAM frame is cut off, or beyond all offsets", kind)
            return False
        streams = self.streams
        flow = streams.flows.get(stream_id)
        if flow is None or not flow.has_receiver:
            found = streams.find(stream_id, for_receiving=True)
            if found is None:
                return True
            if not isinstance(found, QuicFlow):
                self.fail(found, "a stream that cannot be received on", kind)
                return False
            flow = found
        code = streams.receive(flow, offset, data, end=bool(kind & 1))
        if code > 0:
            self.fail(
                code, "more than a stream may have" if code == FLOW_CONTROL_ERROR else "a final size changed", kind
            )
        return code == 0

    def _on_stream_end(self, kind: int, cursor: Cursor) -> None:
        stream_id = cursor.varint()
        code = cursor.varint()
        final_size = cursor.varint() if kind == RESET_STREAM else 0
        if cursor.is_short():
            return
        found = self.streams.find(stream_id, for_receiving=kind == RESET_STREAM)
        if found is None:
            return
        if not isinstance(found, QuicFlow):
            self.fail(found, "a stream that cannot be ended", kind)
            return
        if kind == STOP_SENDING:
            if not found.stopped_by_peer:
                found.stopped_by_peer = True
                if not found.send_is_over():
                    found.reset(code)  # RFC 9000 §3.5
                    found.untold += 1
                    self.stops.append((found, code))
            return
        fault = self.streams.receive_reset(found, final_size)
        if fault:
            self.fail(fault, "a RESET_STREAM that does not fit", kind)
        elif not found.receive_over:
            was_wanted = found.stop_code < 0
            found.lose_input()
            if was_wanted:
                found.untold += 1
                self.resets.append((found, code))
            else:
                self.streams.check_gone(found)

    def _on_credit(self, kind: int, cursor: Cursor) -> None:
        streams = self.streams
        if kind == MAX_DATA:
            limit = cursor.varint()
            if limit > streams.peer_max_data:
                was_shut = streams.room() <= 0
                streams.peer_max_data = limit
                if was_shut:
                    streams.wake()
                    self.owner.touch()
            return
        stream_id = cursor.varint()
        limit = cursor.varint()
        if cursor.is_short():
            return
        found = streams.find(stream_id, for_receiving=False)
        if found is None:
            return
        if not isinstance(found, QuicFlow):
            self.fail(found, "credit for a stream that has no sender", kind)
        elif limit > found.send_limit:
            found.send_limit = limit
            if found.has_something():
                streams.ready(found)

    def _on_limits(self, kind: int, cursor: Cursor) -> None:
        """Take MAX_STREAMS; the kinds of BLOCKED only inform."""
        if kind == STREAM_DATA_BLOCKED:
            stream_id = cursor.varint()
            cursor.varint()
            found = None if cursor.is_short() else self.streams.find(stream_id, for_receiving=True)
            if found is not None and not isinstance(found, QuicFlow):
                self.fail(found, "a stream that cannot be blocked", kind)
            return
        limit = cursor.varint()
        if kind == DATA_BLOCKED:
            return
        if limit > MAX_STREAM_COUNT:
            self.fail(FRAME_ENCODING_ERROR, "more streams than there are numbers", kind)
        elif kind in (MAX_STREAMS_BIDI, MAX_STREAMS_UNI):
            which = kind - MAX_STREAMS_BIDI
            if limit > self.streams.peer_limits[which]:
                self.streams.peer_limits[which] = limit
                if self.application is not None:
                    self.application.streams_available()

    def _on_datagram(self, kind: int, cursor: Cursor) -> None:
        at = cursor.at
        data = cursor.take(cursor.varint() if kind == DATAGRAM_SIZED else cursor.end - cursor.at)
        if cursor.is_short():
            return
        if not self.config.datagram_bytes or cursor.at - at + 1 > self.config.datagram_bytes:
            self.fail(PROTOCOL_VIOLATION, "a DATAGRAM that was not allowed", kind)
        elif len(self.datagrams_in) < MAX_DATAGRAMS:
            self.datagrams_in.append(data)

    # -- the connection -------------------------------------------------------------------------------

    def _on_ack(self, kind: int, epoch: int, cursor: Cursor) -> None:
        largest = cursor.varint()
        delay = cursor.varint()
        count = cursor.varint()
        low = largest - cursor.varint()
        if cursor.is_short() or count > cursor.end - cursor.at:
            cursor.at = cursor.end + 1
            return
        ranges = [(low, largest)]
        for _ in range(count):
            high = low - cursor.varint() - 2
            low = high - cursor.varint()
            ranges.append((low, high))
        if kind == ACK_ECN:
            for _ in range(3):
                cursor.varint()
        if cursor.is_short():
            return
        if low < 0:
            self.fail(FRAME_ENCODING_ERROR, "an ACK below zero", kind)
            return
        recovery = self.recovery
        space = recovery.spaces[epoch]
        if largest >= space.next_number:
            self.fail(PROTOCOL_VIOLATION, "an ACK of what was never sent", kind)
            return
        delay_s = (delay << self.peer.number(0x0A)) / 1e6 if epoch == DATA and delay < 1 << 32 else 0.0
        acked = recovery.on_ack(epoch, largest, ranges, delay_s, self.now)
        if not acked:
            return
        if epoch == HANDSHAKE:
            recovery.is_peer_validated = True
        if epoch == DATA and not self.phase_acked and largest >= self.phase_sent:
            self.phase_acked = True
        for packet in acked:
            if packet.is_probe and self.path.mtu.acked(packet.size):
                recovery.congestion.set_mtu(self.path.mtu.size)
        self.settle_lost(recovery.find_lost(epoch, self.now))
        self.settle_acked(acked)
        self.paced_until_s = 0.0
        self.owner.touch()

    def _on_ack_frequency(self, kind: int, cursor: Cursor) -> None:
        if kind == IMMEDIATE_ACK:
            if not self.is_over_budget():  # else as for a PING: the draft's §5 lets us
                self.recovery.spaces[DATA].is_ack_due = True
            return
        sequence = cursor.varint()
        threshold = cursor.varint()
        delay_us = cursor.varint()
        reordering = cursor.varint()
        if not cursor.is_short() and not self.ack_frequency.receive(sequence, threshold, delay_us, reordering):
            self.fail(PROTOCOL_VIOLATION, "an acknowledgement is asked for sooner than we can", kind)

    def _on_crypto(self, epoch: int, cursor: Cursor) -> None:
        offset = cursor.varint()
        data = cursor.take(cursor.varint())
        if cursor.is_short():
            return
        reorder = self.crypto[epoch].reorder
        if offset + len(data) > reorder.offset + CRYPTO_BYTES:
            self.fail(CRYPTO_BUFFER_EXCEEDED, "too much of a handshake", CRYPTO)
            return
        ready = reorder.add(offset, data)
        if ready is None:
            self.fail(CRYPTO_BUFFER_EXCEEDED, "too many pieces of a handshake", CRYPTO)
        elif ready:
            self.receive_crypto(epoch, ready)

    def _on_ids(self, kind: int, cursor: Cursor, used_id: bytes) -> None:
        sequence = cursor.varint()
        if self.is_over_budget():
            self.fail(PROTOCOL_VIOLATION, "too many connection ids", kind)
            return
        if kind == RETIRE_CONNECTION_ID:
            if not cursor.is_short():
                code = self.own_ids.retire(sequence, used_id)
                if code:
                    self.fail(code, "a connection id that cannot be retired", kind)
                elif self.own_ids.due:
                    self.owner.touch()
            return
        retire_below = cursor.varint()
        size = cursor.take(1)
        new = cursor.take(size[0] if size else -1)
        token = cursor.take(16)
        if cursor.is_short():
            return
        code = self.peer_ids.add(sequence, retire_below, new, token)
        if code:
            self.fail(code, "a connection id that cannot be taken", kind)
        elif self.peer_ids.retiring:
            self.owner.touch()

    def _on_path(self, kind: int, cursor: Cursor, path: Path) -> None:
        data = cursor.take(8)
        if cursor.is_short():
            return
        if kind == PATH_CHALLENGE:
            self.challenges_seen += 1
            if self.is_over_budget():
                self.fail(PROTOCOL_VIOLATION, "too many path challenges", kind)
            elif len(path.answers) < MAX_ANSWERS:
                path.answers.append(data)
                self.owner.touch()
            return
        # RFC 9000 §8.2.3: an answer may come over another path than its challenge went.
        for candidate in self.paths:
            if candidate.challenge and candidate.challenge == data:
                candidate.challenge = b""
                candidate.challenge_s = 0.0
                candidate.is_validated = True
                self.on_path_validated(candidate)

    def on_path_validated(self, path: Path) -> None:
        """Use a path without limits, and forget the others."""
        raise NotImplementedError

    def _on_close(self, kind: int, cursor: Cursor) -> None:
        code = cursor.varint()
        if kind == CLOSE:
            cursor.varint()
        reason = cursor.take(cursor.varint())
        if cursor.is_short():
            return
        # RFC 9000 §10.2.2: nothing is sent any more.
        self.phase = DRAINING
        self.close_code = code
        self.close_is_application = kind == CLOSE_APPLICATION
        self.closed_by_peer = True
        self.deadline_s = self.now + self.recovery.close_s()
        self.owner.watch()
        self.lose(code, reason.decode("utf-8", "replace"), by_peer=True)


MAX_ANSWERS: Final = 4
"""Challenges of one path that wait for our answer; a peer repeats what gets none."""


def _skip_padding(payload: bytes, at: int, size: int) -> int:
    """Return where the padding ends; a datagram is mostly padded at its end."""
    rest = payload[at:size]
    return size - len(rest.lstrip(b"\0"))
