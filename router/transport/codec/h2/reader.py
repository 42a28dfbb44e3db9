"""The incoming half of a connection: frames, in the order in which they may come, and what each does.

    receive --> frame by frame --> _on_data, _on_headers … --> stream, or the role's `on_block`

The section of RFC 9113 stands at each branch that it causes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.stream import CLOSE_NO
from router.transport.codec.h2 import frames
from router.transport.codec.h2.calm import Allowance
from router.transport.codec.h2.connection import H2Connection
from router.transport.codec.h2.hpack import HpackDecoder
from router.transport.codec.h2.limits import (
    ANSWERS_PER_RESET,
    CREDIT_BURST,
    EMPTY_BURST,
    FRAMES_PER_S,
    IDLE_BURST,
    MAX_BLOCK_BYTES,
    MAX_CONTINUATIONS,
    MAX_SENT_FRAME,
    MEMO_BLOCK_BYTES,
    MEMO_BLOCKS,
    PING_BURST,
    SETTINGS_BURST,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.stream import Shell
    from router.transport.codec.h2.stream import H2Stream


class H2Reader(H2Connection):
    """What `H2Server` and `H2Client` are made of."""

    __slots__ = (
        "_block",
        "_block_flags",
        "_block_frames",
        "_block_since_s",
        "_block_stream_id",
        "_credits",
        "_empties",
        "_idles",
        "_partial_since_s",
        "_pings",
        "_saw_settings",
        "_settings_frames",
        "_stash",
        "decoder",
        "heard_s",
        "peer_max_streams",
        "peer_takes_connect",
        "ping_sent_s",
    )

    def __init__(self, shell: Shell, on_flood: Callable[[], None], now: float, *, is_server: bool) -> None:
        super().__init__(shell, on_flood, now, is_server=is_server)
        self.peer_max_streams = frames.MAX_WINDOW
        self.peer_takes_connect = False
        self.heard_s = now  # when input came last
        self.ping_sent_s = 0.0  # when a PING of ours left that nothing has answered
        self.decoder = HpackDecoder()
        self._stash = b""
        self._saw_settings = False
        self._block: list[bytes] = []  # of a field block whose end has not come
        self._block_stream_id = 0
        self._block_flags = 0
        self._block_frames = 0
        self._block_since_s = 0.0
        self._partial_since_s = 0.0  # when a frame began that is not whole, and is not DATA
        self._pings = Allowance(PING_BURST, FRAMES_PER_S, now)
        self._settings_frames = Allowance(SETTINGS_BURST, FRAMES_PER_S, now)
        self._empties = Allowance(EMPTY_BURST, FRAMES_PER_S, now)
        self._credits = Allowance(CREDIT_BURST, FRAMES_PER_S, now)
        self._idles = Allowance(IDLE_BURST, FRAMES_PER_S, now)

    # -- what the roles say ---------------------------------------------------------------------------

    def on_block(self, stream_id: int, block: bytes, end: bool) -> None:
        """Take a whole field block."""
        raise NotImplementedError

    def on_early_data(self, stream: H2Stream) -> None:
        """Take DATA before a head."""
        raise NotImplementedError

    def on_goaway(self, last_stream_id: int, code: int) -> None:
        """Learn that the peer takes no further streams."""
        raise NotImplementedError

    def on_settings(self) -> None:
        """Learn that the peer's settings are in force."""

    def on_ping_ack(self, payload: bytes) -> None:
        """Learn that a PING of ours came back."""

    # -- bytes in -------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Take input, or continue with what was held when `data` is empty."""
        self.now = now
        if self.has_held_input:
            self.has_held_input = False
            continued = self._continued
            self._continued = []
            for stream in continued:
                stream.deliver_held()
        if not data:
            if self.credit >= self._receive_window:
                self._return_credit()
            return
        self.last_moved_s = self.heard_s = now
        self.ping_sent_s = 0.0  # any input shows that the peer lives
        if self.close != CLOSE_NO:
            return  # nothing more is understood on it
        if self._stash:
            data = self._stash + data
            self._stash = b""
        pos = 0
        size = len(data)
        while size - pos >= 9:
            length = data[pos] << 16 | data[pos + 1] << 8 | data[pos + 2]
            if length > frames.MIN_FRAME_SIZE:  # all that our settings allow (RFC 9113 §4.2)
                self.fail(frames.FRAME_SIZE_ERROR, b"a frame is too long")
                return
            start = pos + 9
            end = start + length
            if end > size:
                break
            kind = data[pos + 3]
            flags = data[pos + 4]
            stream_id = (data[pos + 5] & 0x7F) << 24 | data[pos + 6] << 16 | data[pos + 7] << 8 | data[pos + 8]
            if self._block_stream_id or not self._saw_settings:
                self._on_expected(kind, flags, stream_id, data[start:end])
            elif kind == frames.DATA:
                self._on_data(flags, stream_id, data, start, end)
            elif kind == frames.HEADERS:
                self._on_headers(flags, stream_id, data[start:end])
            else:
                self._on_other(kind, flags, stream_id, data[start:end])
            if self.close:
                return
            pos = end
        if pos < size:
            self._stash = data[pos:]
            self._note_partial(data, pos, size)
        elif self._partial_since_s:
            self._partial_since_s = 0.0
        if self.credit >= self._receive_window:
            self._return_credit()

    def _note_partial(self, data: bytes, pos: int, size: int) -> None:
        """Limit the time of a frame that is not whole. DATA takes as long as its path needs."""
        if size - pos >= 4 and data[pos + 3] == frames.DATA:
            self._partial_since_s = 0.0
        elif pos or not self._partial_since_s:
            self._partial_since_s = self.now
            self.shell.watch()

    def _on_expected(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Take a frame where only one kind may come: SETTINGS first, CONTINUATION within a block."""
        if not self._saw_settings:
            # RFC 9113 §3.4
            if kind != frames.SETTINGS or flags & frames.ACK:
                self.fail(frames.PROTOCOL_ERROR, b"SETTINGS does not come first")
                return
            self._saw_settings = True
            self._on_settings_frame(flags, stream_id, payload)
            return
        # RFC 9113 §6.10
        if kind != frames.CONTINUATION or stream_id != self._block_stream_id:
            self.fail(frames.PROTOCOL_ERROR, b"a field block is interrupted")
            return
        self._block_frames += 1
        self._block.append(payload)
        if self._block_frames > MAX_CONTINUATIONS or sum(map(len, self._block)) > MAX_BLOCK_BYTES:
            self.flood(b"a field block is too long")
            return
        if flags & frames.END_HEADERS:
            self._end_block(b"".join(self._block))

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        length = end - start
        self._receive_window -= length
        if self._receive_window < 0:  # RFC 9113 §6.9
            self.fail(frames.FLOW_CONTROL_ERROR, b"the connection's window is exceeded")
            return
        stream = self.streams.get(stream_id)
        if stream is None or stream.received_end:
            self.credit += length
            self._on_closed(stream_id, stream)
            return
        if not stream.takes_data:
            self.credit += length
            self.on_early_data(stream)
            return
        stream.receive_window -= length
        if stream.receive_window < 0:
            self.credit += length
            self.fail_stream(stream, frames.FLOW_CONTROL_ERROR)
            return
        if flags & frames.PADDED:
            if not length:  # RFC 9113 §4.2: no room for the pad's own length
                self.fail(frames.FRAME_SIZE_ERROR, b"no pad length")
                return
            pad = data[start]
            if pad >= length:  # RFC 9113 §6.1
                self.fail(frames.PROTOCOL_ERROR, b"padding is longer than its frame")
                return
            start += 1
            end -= pad
            stream.credit(length - (end - start))
            length = end - start
        ends = flags & frames.END_STREAM != 0
        if not length and not ends and not self._empties.take(self.now):
            self.flood(b"empty DATA")
            return
        expected = stream.expected_bytes
        if expected >= 0:
            # RFC 9113 §8.1.1: a length that is not kept makes the message malformed.
            stream.expected_bytes = expected = expected - length
            if expected < 0 or (ends and expected):
                self.credit += length
                self.fail_stream(stream, frames.PROTOCOL_ERROR)
                return
        stream.moved_s = self.now
        if ends:
            stream.received_end = True
        if length or ends:
            stream.receive_data(data[start:end], ends)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:  # RFC 9113 §6.2
            self.fail(frames.PROTOCOL_ERROR, b"HEADERS on stream 0")
            return
        if flags & (frames.PADDED | frames.HAS_PRIORITY):
            start = (1 if flags & frames.PADDED else 0) + (5 if flags & frames.HAS_PRIORITY else 0)
            if len(payload) < start:  # RFC 9113 §4.2
                self.fail(frames.FRAME_SIZE_ERROR, b"HEADERS without its mandatory fields")
                return
            pad = payload[0] if flags & frames.PADDED else 0
            if flags & frames.HAS_PRIORITY:
                depends_on = int.from_bytes(payload[start - 5 : start - 1], "big") & 0x7FFFFFFF
                if depends_on == stream_id:  # RFC 7540 §5.3.1: a stream cannot depend on itself
                    self.fail(frames.PROTOCOL_ERROR, b"a stream depends on itself")
                    return
            if start + pad > len(payload):
                self.fail(frames.PROTOCOL_ERROR, b"padding is longer than its frame")
                return
            payload = payload[start : len(payload) - pad]
        self._block_stream_id = stream_id
        self._block_flags = flags
        if flags & frames.END_HEADERS:
            self._end_block(payload)
            return
        self._block = [payload]
        self._block_frames = 0
        self._block_since_s = self.now
        self.shell.watch()

    def _end_block(self, block: bytes) -> None:
        stream_id = self._block_stream_id
        self._block_stream_id = 0
        self._block_since_s = 0.0
        self._block = []
        self.on_block(stream_id, block, self._block_flags & frames.END_STREAM != 0)

    def _on_other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        if kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._on_rst_stream(stream_id, payload)
        elif kind == frames.SETTINGS:
            self._on_settings_frame(flags, stream_id, payload)
        elif kind == frames.PING:
            if stream_id or size != 8:  # RFC 9113 §6.7
                self.fail(frames.PROTOCOL_ERROR if stream_id else frames.FRAME_SIZE_ERROR, b"PING")
            elif flags & frames.ACK:
                self.on_ping_ack(payload)
            else:
                self._on_ping(payload)
        elif kind == frames.GOAWAY:
            if stream_id or size < 8:  # RFC 9113 §6.8
                self.fail(frames.PROTOCOL_ERROR if stream_id else frames.FRAME_SIZE_ERROR, b"GOAWAY")
            else:
                last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
                self.on_goaway(last, int.from_bytes(payload[4:8], "big"))
        elif kind == frames.PRIORITY:
            self._on_priority(stream_id, payload)
        elif kind in (frames.PUSH_PROMISE, frames.CONTINUATION):
            # RFC 9113 §6.6, §6.10: we never allow pushes, and no block is open.
            self.fail(frames.PROTOCOL_ERROR, b"PUSH_PROMISE or CONTINUATION out of place")
        elif kind == frames.PRIORITY_UPDATE and (stream_id or size < 4):  # RFC 9218 §7.1
            self.fail(frames.PROTOCOL_ERROR if stream_id else frames.FRAME_SIZE_ERROR, b"PRIORITY_UPDATE")
        elif not self._idles.take(self.now):  # of a type unknown to us: ignored (RFC 9113 §4.1)
            self.flood(b"frames without meaning")

    def _on_ping(self, payload: bytes) -> None:
        if self._earned_pings:
            self._earned_pings -= 1
            self.answer(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif self._may(self._pings):
            self.answer(frames.frame(frames.PING, frames.ACK, 0, payload))
        else:
            self.flood(b"PING")

    def _on_priority(self, stream_id: int, payload: bytes) -> None:
        if not stream_id:  # RFC 9113 §6.3
            self.fail(frames.PROTOCOL_ERROR, b"PRIORITY on stream 0")
        elif len(payload) != 5:
            self._on_bad_priority(stream_id, frames.FRAME_SIZE_ERROR)
        elif int.from_bytes(payload[:4], "big") & 0x7FFFFFFF == stream_id:
            self._on_bad_priority(stream_id, frames.PROTOCOL_ERROR)
        elif not self._idles.take(self.now):
            self.flood(b"PRIORITY")

    def _on_bad_priority(self, stream_id: int, code: int) -> None:
        """Reset the stream; one that is idle cannot be (RFC 9113 §6.4)."""
        if self.is_idle_id(stream_id):
            self.fail(code, b"PRIORITY")
        else:
            self.reset_id(stream_id, code)

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:  # RFC 9113 §6.9
            self.fail(frames.FRAME_SIZE_ERROR, b"WINDOW_UPDATE")
            return
        if self.earned_credits:
            self.earned_credits -= 1
        elif not self._may(self._credits):
            self.flood(b"WINDOW_UPDATE")
            return
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if not stream_id:
            self.send_window += increment
            if not increment or self.send_window > frames.MAX_WINDOW:  # RFC 9113 §6.9, §6.9.1
                code = frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR
                self.fail(code, b"WINDOW_UPDATE")
                return
        else:
            stream = self.streams.get(stream_id)
            if stream is None:
                if self.is_idle_id(stream_id):  # RFC 9113 §5.1
                    self.fail(frames.PROTOCOL_ERROR, b"WINDOW_UPDATE on an idle stream")
                return
            stream.send_window += increment
            if not increment or stream.send_window > frames.MAX_WINDOW:
                self.fail_stream(stream, frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR)
                return
        if self._blocked:
            self.want_pump()

    def _on_rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:  # RFC 9113 §6.4
            self.fail(frames.FRAME_SIZE_ERROR, b"RST_STREAM")
            return
        if not stream_id or self.is_idle_id(stream_id):
            self.fail(frames.PROTOCOL_ERROR, b"RST_STREAM on an idle stream")
            return
        stream = self.streams.get(stream_id)
        if stream is not None and self.answered >= ANSWERS_PER_RESET:
            self.answered -= ANSWERS_PER_RESET
        elif stream is None and self._reset_ids.get(stream_id):
            self._reset_ids[stream_id] = False  # crosses ours, or answers it, as grpc-go does: once
            return
        elif not self._may(self._resets if stream is not None else self._idles):
            self.flood(b"streams opened and reset")
            return
        if stream is None:
            return
        self.remember_reset(stream_id, by_us=False)
        if not self.is_server and stream.received_end and stream.has_held():
            stream.stop_sending()  # RFC 9113 §8.1: the response is whole, and stays so
            return
        self.forget(stream)
        self.on_reset(stream, int.from_bytes(payload, "big"))

    def _on_settings_frame(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        if stream_id or size % 6 or (flags & frames.ACK and size):  # RFC 9113 §6.5
            self.fail(frames.PROTOCOL_ERROR if stream_id else frames.FRAME_SIZE_ERROR, b"SETTINGS")
            return
        if flags & frames.ACK:
            return
        if not self._settings_frames.take(self.now):
            self.flood(b"SETTINGS")
            return
        window = self.initial_send_window
        for at in range(0, size, 6):
            name = int.from_bytes(payload[at : at + 2], "big")
            value = int.from_bytes(payload[at + 2 : at + 6], "big")
            code = self._apply(name, value)
            if name == frames.INITIAL_WINDOW_SIZE:
                window = value
            if code:
                self.fail(code, b"a setting is out of range")
                return
        if window != self.initial_send_window and not self._apply_window(window):
            self.fail(frames.FLOW_CONTROL_ERROR, b"a stream's window is exceeded")
            return
        self.answer(frames.SETTINGS_ACK)
        self.on_settings()
        if self._blocked:
            self.want_pump()

    def _apply(self, name: int, value: int) -> int:
        """Put one setting of the peer in force; return the code of a fault (RFC 9113 §6.5.2)."""
        if name == frames.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                return frames.FLOW_CONTROL_ERROR
        elif name == frames.MAX_FRAME_SIZE:
            if not frames.MIN_FRAME_SIZE <= value <= frames.LARGEST_FRAME_SIZE:
                return frames.PROTOCOL_ERROR
            self.frame_limit = min(value, MAX_SENT_FRAME)
        elif name == frames.HEADER_TABLE_SIZE:
            # Ours stays empty; a peer that shrinks its table still has to be told so (RFC 7541 §4.2).
            self._table_reduced = True
        elif name == frames.MAX_CONCURRENT_STREAMS:
            self.peer_max_streams = value
        elif name in (frames.ENABLE_PUSH, frames.NO_RFC7540_PRIORITIES):
            # RFC 9113 §6.5.2, RFC 9218 §2.1; a server never says that it may be pushed to.
            if value > 1 or (value and name == frames.ENABLE_PUSH and not self.is_server):
                return frames.PROTOCOL_ERROR
        elif name == frames.ENABLE_CONNECT_PROTOCOL:
            if value > 1 or (self.peer_takes_connect and not value):  # RFC 8441 §3
                return frames.PROTOCOL_ERROR
            self.peer_takes_connect = value == 1
        return 0

    def _apply_window(self, window: int) -> bool:
        """Put INITIAL_WINDOW_SIZE in force, once a frame; False if it takes a stream's window too far (§6.9.2)."""
        change = window - self.initial_send_window
        self.initial_send_window = window
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > frames.MAX_WINDOW:
                return False
        return True

    def _on_closed(self, stream_id: int, stream: H2Stream | None) -> None:
        """Take DATA for a stream that takes none."""
        if not stream_id or (stream is None and self.is_idle_id(stream_id)):
            self.fail(frames.PROTOCOL_ERROR, b"DATA on an idle stream")  # RFC 9113 §5.1, §6.1
        elif stream is not None:
            self.fail_stream(stream, frames.STREAM_CLOSED)
        else:
            self.late(stream_id)

    # -- field blocks ---------------------------------------------------------------------------------

    def may_remember(self, block: bytes, remembered: int) -> bool:
        """Whether what a block decoded to may be looked up by its bytes: as long as the table stays as it is."""
        return not self.decoder.changed and len(block) <= MEMO_BLOCK_BYTES and remembered < MEMO_BLOCKS
