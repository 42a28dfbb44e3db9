"""One message pair on one stream of the bearer: what is held in either direction, and the order of its frames.

Incoming                                          Outgoing
    DATA is handed on in the slices it came in,       framed at once; what the bearer cannot send it keeps,
    and credited behind that                          and above HIGH_BYTES the other side is held
    held: the bytes are kept as they came, not
    read and not credited, so the peer stops

    HEAD --HEADERS--> BODY --DATA*--> --HEADERS--> TRAILERS --FIN--> the message's end (RFC 9114 §4.1)

A stream `is_over` once neither side has anything more to say; the bearer may still be sending the rest of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.h3 import frames
from router.transport.codec.h3.head import write_trailers
from router.transport.codec.h3.limits import MAX_BLOCK_BYTES
from router.transport.codec.h3.reader import GATHER, PASS, SKIP, STOP, FrameReader
from router.transport.codec.webtransport.codes import TWO_WAY

if TYPE_CHECKING:
    from router.http import Headers
    from router.transport.codec.h3.connection import H3Connection
    from router.transport.codec.quic.seam import Flow

HEAD: Final = 0
BODY: Final = 1
TRAILERS: Final = 2

NO_LENGTH: Final = -1
_ON_OTHER_STREAMS: Final = (
    frames.CANCEL_PUSH,
    frames.SETTINGS,
    frames.PUSH_PROMISE,
    frames.GOAWAY,
    frames.MAX_PUSH_ID,
    frames.PRIORITY_UPDATE,
    frames.PRIORITY_UPDATE_PUSH,
)


class H3Stream(FrameReader):
    """Common to both roles, which say what `deliver*`, `pause` and `lose_peer` mean."""

    __slots__ = (
        "_connection",
        "_held",
        "_held_end",
        "_holds",
        "_phase",
        "_saw_frame",
        "_sent_bytes",
        "_trailers",
        "expected_bytes",
        "flow",
        "fresh_bytes",
        "idle_s",
        "is_over",
        "is_paused",
        "is_session",
        "is_tunnel",
        "moved_s",
        "received_end",
        "section_since_s",
        "sent_end",
        "session_id",
        "stuck_at",
        "stuck_since_s",
        "wants_tunnel",
    )

    def __init__(self, connection: H3Connection, flow: Flow, idle_s: float, now: float) -> None:
        super().__init__()
        self._connection = connection
        self.flow = flow
        self.idle_s = idle_s
        self.moved_s = now
        self.section_since_s = now  # when the wait for a field section began; 0 while none is awaited
        self.expected_bytes = NO_LENGTH  # still to come of a declared length
        self.session_id = -1  # whose stream it is, if it is a session's and no request
        self.received_end = False
        self.sent_end = False
        self.is_over = False
        self.is_paused = False
        self.wants_tunnel = False
        self.is_tunnel = False
        self.is_session = False  # a CONNECT of WebTransport
        self.fresh_bytes = 0  # sent since the last flush
        self.stuck_since_s = 0.0  # since when less than LOW_BYTES have left …
        self.stuck_at = 0  # … behind this many
        self._phase = HEAD
        self._saw_frame = False  # in front of the head
        self._holds = 0
        self._held: bytearray | None = None  # one buffer: a list of tiny pieces would be forty times their size
        self._held_end = False
        self._trailers: Headers | None = None  # until the end of the stream shows that nothing else follows
        self._sent_bytes = 0

    # -- what the roles say ---------------------------------------------------------------------------

    def deliver(self, data: bytes, end: bool) -> None:
        """Hand body bytes to the receiver."""
        raise NotImplementedError

    def deliver_trailers(self, trailers: Headers) -> None:
        """Hand trailers to the receiver."""
        raise NotImplementedError

    def pause(self) -> None:
        """Tell the receiver that the peer takes no more for now."""
        raise NotImplementedError

    def resume(self) -> None:
        """Tell the receiver that it does again."""
        raise NotImplementedError

    def lose_peer(self) -> None:
        """Tell the receiver that the peer is gone; nothing more is sent on the stream."""
        raise NotImplementedError

    def follow(self, data: bytes, end: bool) -> bytes:
        """Return what of a tunnel's bytes is to be sent. For tunnels only."""
        raise NotImplementedError

    def after_end(self) -> None:
        """Act on the last byte being queued."""
        raise NotImplementedError

    def refuse_section(self) -> None:
        """Act on a field section that is longer than anybody may send."""
        raise NotImplementedError

    def is_incomplete(self) -> None:
        """Act on a stream that ended before it said anything."""
        raise NotImplementedError

    # -- in -------------------------------------------------------------------------------------------

    def receive(self, data: bytes, end: bool) -> None:
        """Read on, or keep what comes while the stream is held."""
        if self.is_over:
            if data:
                self.flow.credit(len(data))
            return
        self.moved_s = self._connection.now
        if self._held is not None or self._holds:
            if self._held is None:
                self._held = bytearray()
            self._held += data
            self._held_end = end
            return
        self._read(data, end)

    def _read(self, data: bytes, end: bool) -> None:
        size = len(data)
        used = self.feed(data, end)
        if self.is_over:
            if self.session_id >= 0:
                self.flow.credit(used)
                self._connection.adopt(self.flow, self.session_id, data[used:], end)
                return
            used = size
        elif used < size or (end and self._holds and not self.received_end):
            self._held = bytearray(data[used:] if used else data)
            self._held_end = end
        if used:
            self.flow.credit(used)
        if end and self._held is None and not self.received_end:
            self._read_end()

    def _read_end(self) -> None:
        """Act on a FIN that came behind everything else."""
        if self.is_over:
            return
        connection = self._connection
        if self.is_within_frame():  # RFC 9114 §7.1
            connection.fail(frames.FRAME_ERROR, b"a stream ends within a frame")
        elif self._phase == HEAD:
            self.received_end = True
            self.is_incomplete()
        elif self.expected_bytes > 0:  # RFC 9114 §4.1.2
            self.received_end = True
            connection.fail_stream(self, frames.MESSAGE_ERROR)
        elif self._trailers is not None:
            self._end_with(self._trailers)
        else:
            self.received_end = True
            self.deliver(b"", True)

    def _end_with(self, trailers: Headers) -> None:
        self.received_end = True
        self._trailers = None
        self.deliver_trailers(trailers)

    def begin_body(self, length: int | None, end: bool) -> None:
        """Expect a body behind the head, or nothing."""
        self._phase = BODY
        self.section_since_s = 0.0
        self.received_end = end
        if length is not None:
            self.expected_bytes = length

    def on_frame(self, kind: int, length: int) -> int:
        """Judge a frame by its type and its place (RFC 9114 §4.1, §7.2)."""
        connection = self._connection
        if kind == frames.DATA:
            if self._phase != BODY:
                connection.fail(frames.FRAME_UNEXPECTED, b"DATA in front of a head or behind trailers")
                return STOP
            if 0 <= self.expected_bytes < length:  # RFC 9114 §4.1.2
                connection.fail_stream(self, frames.MESSAGE_ERROR)
                return STOP
            return PASS
        if kind == frames.HEADERS:
            if self._phase == TRAILERS or self.wants_tunnel:  # RFC 9114 §4.1, §4.4
                connection.fail(frames.FRAME_UNEXPECTED, b"HEADERS behind trailers or in a tunnel")
                return STOP
            if length > MAX_BLOCK_BYTES:
                self.refuse_section()
                return STOP
            if not self.section_since_s:
                self.section_since_s = connection.now
                connection.look_by(connection.now + connection.head_s)
            return GATHER
        if kind in _ON_OTHER_STREAMS or frames.belongs_to_http2(kind):
            connection.fail(frames.FRAME_UNEXPECTED, b"a frame that belongs on another stream, or nowhere")
            return STOP
        if kind == TWO_WAY and connection.takes_sessions:
            if self._phase != HEAD or self._saw_frame:  # draft-ietf-webtrans-http3-07 §4.2
                connection.fail(frames.FRAME_ERROR, b"WEBTRANSPORT_STREAM does not come first")
            else:
                self.session_id = length
                connection.release_stream(self)
            return STOP
        self._saw_frame = True
        return SKIP if connection.may_idle() else STOP  # RFC 9114 §9

    def on_payload(self, kind: int, payload: bytes, end: bool) -> None:
        """Take a field section."""
        if self._phase == HEAD:
            self._connection.on_section(self, payload, end)
            return
        self.section_since_s = 0.0
        if self.expected_bytes > 0:
            self._connection.fail_stream(self, frames.MESSAGE_ERROR)
            return
        self._connection.on_trailers(self, payload)
        trailers = self._trailers
        if end and trailers is not None and not self.is_over:
            self._end_with(trailers)

    def take_trailers(self, trailers: Headers) -> None:
        """Keep trailers until the stream ends."""
        self._phase = TRAILERS
        self._trailers = trailers

    def on_slice(self, data: bytes, end: bool) -> None:
        """Hand on what came of a DATA frame."""
        size = len(data)
        if self.expected_bytes >= 0:
            self.expected_bytes -= size
            if end and self.expected_bytes:  # RFC 9114 §4.1.2
                self._connection.fail_stream(self, frames.MESSAGE_ERROR)
                return
        if end:
            self.received_end = True
        elif not size:
            self._connection.may_be_empty()
            return
        self.deliver(data, end)

    def hold(self, why: int) -> None:
        """Deliver no more data; without credit the peer stops by itself."""
        self._holds |= why
        self.may_read = False

    def release(self, why: int) -> None:
        """Take a reason back; what was held is delivered at the flush."""
        self._holds &= ~why
        if self._holds or self.is_over:
            return
        self.may_read = True
        if self._held is not None:
            self._connection.continue_held(self)

    def deliver_held(self) -> None:
        """Read what was kept while the stream was held, unless it is held again."""
        held = self._held
        if held is None or self._holds or self.is_over:
            return
        ends = self._held_end
        self._held = None
        self._held_end = False
        self._read(bytes(held), ends)

    def awaits_head(self) -> bool:
        """Whether it is not known yet what the stream is for."""
        return self._phase == HEAD

    def has_held(self) -> bool:
        """Whether something received was not delivered yet."""
        return self._held is not None

    # -- out ------------------------------------------------------------------------------------------

    def left_bytes(self) -> int:
        """Return how much has been sent of what there was to send."""
        return self._sent_bytes - self.flow.unsent_bytes

    def send(self, data: bytes, end: bool) -> None:
        """Queue bytes on the bearer."""
        self.flow.send(data, end)
        size = len(data)
        self._sent_bytes += size
        if not self.fresh_bytes:
            self._connection.moved.append(self)
        self.fresh_bytes += size or 1  # a FIN alone is something, too

    def send_data(self, data: bytes, end: bool) -> None:
        """Frame body bytes."""
        if self.sent_end:
            return
        if self.is_tunnel:
            data = self.follow(data, end)
        size = len(data)
        if not size:
            self.send(b"", end)
        elif size < frames.MAX_SMALL_BYTES:
            self.send(frames.data_header(size) + data, end)
        else:
            self.send(frames.data_header(size), False)
            self.send(data, end)
        if end:
            self._end()

    def send_trailers(self, trailers: Headers) -> None:
        """Frame trailers."""
        if self.sent_end:
            return
        self.send(write_trailers(trailers) if trailers else b"", True)
        self._end()

    def _end(self) -> None:
        self.sent_end = True
        self.after_end()

    def let_go_on(self) -> None:
        """Let the other side go on: the bearer has little left of what was sent."""
        if self.is_paused:
            self.is_paused = False
            if not self.is_over:
                self.resume()

    # -- the end --------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Take no more, say no more; whoever holds the stream may go on calling it, to no effect."""
        self.is_over = self.sent_end = self.received_end = True
        self.may_read = False
        self.section_since_s = 0.0
        self._trailers = None
        held = self._held
        if held is not None:
            self._held = None
            if held:
                self.flow.credit(len(held))  # on the connection, at least, somebody else may use it

    def finish(self) -> None:
        """Have the stream over: everything is said, and what else the peer says is not wanted."""
        if not self.is_over:
            self._connection.active -= 1
            self.forget()

    def abandon(self, code: int) -> None:
        """End both sides at once."""
        if not self.is_over:
            if not self.sent_end:
                self.flow.reset(code)
            if not self.received_end:
                self.flow.stop(code)
            self.finish()
