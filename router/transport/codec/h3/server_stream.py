"""One request of a client over HTTP/3, and its response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.deadlines import NEVER
from router.errors import WIRE, Kind, ProxyError, Source
from router.stream import DownstreamStream
from router.transport.codec.h3 import frames
from router.transport.codec.h3.head import write_response
from router.transport.codec.h3.limits import HALF_OPEN_S, LOW_BYTES
from router.transport.codec.h3.stream import HEAD, H3Stream
from router.transport.codec.head import WEBTRANSPORT, bad_request
from router.transport.codec.websocket import FrameBoundary, accept_value, close_frame

if TYPE_CHECKING:
    from router.http import Headers, RequestHead, ResponseHead
    from router.stream import RequestReceiver
    from router.transport.codec.h3.server import H3Server
    from router.transport.codec.quic.seam import Flow

_GONE: Final = ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM)


class ServerStream(H3Stream, DownstreamStream):
    """See the module. A stream without a receiver led to no exchange, or is through with it."""

    __slots__ = ("_frames", "_server", "_websocket_key", "is_head_request", "receiver")

    def __init__(self, server: H3Server, flow: Flow, idle_s: float, now: float) -> None:
        super().__init__(server, flow, idle_s, now)
        self._server = server
        self.receiver: RequestReceiver | None = None
        self.is_head_request = False
        self._frames: FrameBoundary | None = None
        self._websocket_key = b""

    def begin(self, receiver: RequestReceiver, head: RequestHead, end: bool) -> None:
        """Bind the stream to its exchange and hand over the head."""
        self.receiver = receiver
        self.begin_body(head.length, end)
        shape = head.shape
        self.is_head_request = shape.method == b"HEAD"
        if shape.upgrade is not None:
            self.wants_tunnel = True
            self.is_session = shape.upgrade == WEBTRANSPORT
            self._websocket_key = shape.known.get(b"sec-websocket-key", b"")
        receiver.request_head(head, end)

    # -- from the client ------------------------------------------------------------------------------

    def deliver(self, data: bytes, end: bool) -> None:
        """Hand body bytes to the exchange."""
        receiver = self.receiver
        if receiver is not None:
            receiver.request_data(data, end)
        if end:
            self._finish_if_over()

    def deliver_trailers(self, trailers: Headers) -> None:
        """Hand trailers to the exchange."""
        receiver = self.receiver
        if receiver is not None:
            receiver.request_trailers(trailers)
        self._finish_if_over()

    def lose(self, error: ProxyError) -> None:
        """Tell the exchange that its client is gone, or that we are."""
        receiver = self.receiver
        self.receiver = None
        if receiver is not None:
            receiver.request_reset(error)

    def lose_peer(self) -> None:
        """Tell the exchange that its client is gone."""
        self.lose(_GONE)

    def peer_reset(self, code: int) -> None:
        """Cancel: the rest of the request will not come (RFC 9114 §4.1.1)."""
        self._give_up()

    def peer_stopped(self, code: int) -> None:
        """Cancel: nobody reads the answer."""
        self._give_up()

    def _give_up(self) -> None:
        if not self.is_over and self._server.may_reset():
            self.abandon(frames.REQUEST_CANCELLED)
            self.lose(_GONE)
            self._server.on_stream_over()

    def pause(self) -> None:
        """Hold the replica."""
        if self.receiver is not None:
            self.receiver.pause_response()

    def resume(self) -> None:
        """Let the replica go on."""
        if self.receiver is not None:
            self.receiver.resume_response()

    def is_incomplete(self) -> None:
        """Reset: nothing was asked (RFC 9114 §4.1)."""
        self._server.fail_stream(self, frames.REQUEST_INCOMPLETE)

    def refuse_section(self) -> None:
        """Answer a head that nobody needs to read, or reset for trailers of that size."""
        if self._phase == HEAD:
            self._server.refuse(self, bad_request("its fields are too large", Kind.HEAD_TOO_LARGE), has_body=False)
        else:
            self._server.fail_stream(self, frames.MESSAGE_ERROR)

    # -- the stream -----------------------------------------------------------------------------------

    def limit_idle(self, idle_s: float) -> None:
        """Replace the general limit for this request."""
        self.idle_s = idle_s
        self._server.look_by(self.moved_s + idle_s)

    def send_informational(self, head: ResponseHead) -> None:
        """Queue a 1xx."""
        if not self.sent_end:
            self.send(write_response(head), False)

    def send_head(self, head: ResponseHead, end: bool) -> None:
        """Queue the final head."""
        if self.sent_end:
            return
        shape = head.shape
        if shape.accepts_tunnel:
            self.is_tunnel = True
            if not self.is_session:
                self._frames = FrameBoundary()
            if self._websocket_key:  # of a client that carries an HTTP/1.1 handshake through HTTP/3
                head.added.append((b"sec-websocket-accept", accept_value(self._websocket_key)))
        elif self.is_head_request or shape.status in (204, 304):
            end = True  # whatever its length says, no body follows (RFC 9110 §6.4.1); one of our own is dropped
        self.send(write_response(head), end)
        if end:
            self._end()

    def follow(self, data: bytes, end: bool) -> bytes:
        """Keep track of frames, and end none that has no close frame: RFC 6455 §7.1.1 forbids it."""
        boundary = self._frames
        if boundary is None:
            return data  # a close frame of ours, or capsules
        if data:
            boundary.follow(data)
        if end and boundary.may_close:
            self._frames = None
            data += close_frame(WIRE[Kind.UPSTREAM_CLOSED].close_code, Kind.UPSTREAM_CLOSED.value)
        return data

    def reset(self, error: ProxyError) -> None:
        """End a response that cannot be completed."""
        self.receiver = None
        if self.is_over:
            return
        boundary = self._frames
        if boundary is not None and boundary.may_close and not self.sent_end:
            self._frames = None
            self.send_data(close_frame(WIRE[error.kind].close_code, error.kind.value), True)
            return
        self.abandon(WIRE[error.kind].h3)
        self._server.on_stream_over()

    def after_end(self) -> None:
        """Have a stream over that ended both ways; stop the upload that an early answer makes pointless."""
        if self.is_tunnel:
            if self.received_end:
                self._finish_if_over()
            elif self.receiver is None:
                self.idle_s = min(self.idle_s, HALF_OPEN_S)  # for the client's own end, which nobody awaits
                self._server.look_by(self._server.now + self.idle_s)
            return
        self.receiver = None
        if self.received_end:
            self._server.answered += 1
        else:
            self.flow.stop(frames.NO_ERROR)  # RFC 9114 §4.1
        self.finish()
        self._server.on_stream_over()

    def _finish_if_over(self) -> None:
        if self.sent_end and not self.is_over:
            self.receiver = None
            self._server.answered += 1
            self.finish()
            self._server.on_stream_over()

    # -- time -----------------------------------------------------------------------------------------

    def next_deadline(self, stall_s: float) -> float:
        """The first of: a slow head, a client that does not read, nothing that moves. NEVER if nothing is due."""
        first = NEVER
        if self.section_since_s:
            first = self.section_since_s + self._server.head_s
        if self.flow.unsent_bytes:
            first = min(first, self.stuck_since_s + stall_s)
        if not self.is_over:
            first = min(first, self.moved_s + self.idle_s)
        return first

    def is_stalled(self, now: float, stall_s: float) -> bool:
        """Whether too little has left for too long; begins a new span where enough has."""
        if not self.flow.unsent_bytes or self.stuck_since_s + stall_s > now:
            return False
        left = self.left_bytes()
        if left - self.stuck_at >= LOW_BYTES:  # slow, but it reads
            self.stuck_since_s = now
            self.stuck_at = left
            return False
        return True
