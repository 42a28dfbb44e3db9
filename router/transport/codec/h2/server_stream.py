"""One request of a client over HTTP/2, and its response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.deadlines import TURN_S
from router.errors import WIRE, Kind
from router.stream import DownstreamStream
from router.transport.codec.h2 import frames
from router.transport.codec.h2.head import write_response
from router.transport.codec.h2.limits import GOAWAY_LINGER_S
from router.transport.codec.h2.stream import H2Stream
from router.transport.codec.websocket import FrameBoundary, accept_value, close_frame

if TYPE_CHECKING:
    from router.errors import ProxyError
    from router.http import Headers, RequestHead, ResponseHead
    from router.stream import RequestReceiver
    from router.transport.codec.h2.server import H2Server


class ServerStream(H2Stream, DownstreamStream):
    """One request of a client and its response."""

    __slots__ = ("_frames", "_websocket_key", "is_head_request", "receiver")

    def __init__(self, connection: H2Server, stream_id: int, idle_s: float, now: float) -> None:
        super().__init__(connection, stream_id, idle_s, now)
        self.receiver: RequestReceiver | None = None
        self._frames: FrameBoundary | None = None
        self.is_head_request = False
        self._websocket_key = b""

    def begin(self, receiver: RequestReceiver, head: RequestHead, end: bool) -> None:
        """Bind the stream to its exchange and hand over the head."""
        self.receiver = receiver
        self.received_end = end
        self.is_head_request = head.shape.method == b"HEAD"
        if head.length is not None:
            self.expected_bytes = head.length
        if head.shape.upgrade is not None:
            self.wants_tunnel = True
            self._websocket_key = head.shape.known.get(b"sec-websocket-key", b"")
        receiver.request_head(head, end)

    # -- from the client ------------------------------------------------------------------------------

    def deliver(self, data: bytes, end: bool) -> None:
        """Hand body bytes to the exchange."""
        receiver = self.receiver
        if receiver is not None:
            receiver.request_data(data, end)
        if end:
            self._forget_if_over()

    def deliver_trailers(self, trailers: Headers) -> None:
        """Hand trailers to the exchange."""
        receiver = self.receiver
        if receiver is not None:
            receiver.request_trailers(trailers)
        self._forget_if_over()

    def lose(self, error: ProxyError) -> None:
        """Tell the exchange that its client is gone."""
        receiver = self.receiver
        self.receiver = None
        if receiver is not None:
            receiver.request_reset(error)

    def pause(self) -> None:
        """Hold the replica."""
        if self.receiver is not None:
            self.receiver.pause_response()

    def resume(self) -> None:
        """Let the replica go on."""
        if self.receiver is not None:
            self.receiver.resume_response()

    # -- the stream -----------------------------------------------------------------------------------

    def limit_idle(self, idle_s: float) -> None:
        """Replace the general limit for this request."""
        self.idle_s = idle_s
        if idle_s < TURN_S:
            self._connection.shell.watch()  # else the wheel looks soon enough by itself

    def send_informational(self, head: ResponseHead) -> None:
        """Queue a 1xx."""
        if not self.sent_end:
            self._connection.queue_block(self.id, write_response(head), 0)

    def send_head(self, head: ResponseHead, end: bool) -> None:
        """Queue the final head."""
        if self.sent_end:
            return
        shape = head.shape
        if shape.accepts_tunnel:
            self.is_tunnel = True
            self._frames = FrameBoundary()
            if self._websocket_key:  # of a client that carries an HTTP/1.1 handshake through HTTP/2, as Envoy does
                head.added.append((b"sec-websocket-accept", accept_value(self._websocket_key)))
        elif self.is_head_request or shape.status in (204, 304):
            end = True  # whatever its length says, no body follows (RFC 9110 §6.4.1); one of our own is dropped
        connection = self._connection
        connection.queue_block(self.id, write_response(head), frames.END_STREAM if end else 0)
        connection.moved.append(self)
        if end:
            self._end()

    def follow(self, data: bytes, end: bool) -> bytes:
        """Keep track of frames, and end none that has no close frame: RFC 6455 §7.1.1 forbids it."""
        boundary = self._frames
        if boundary is None:
            return data  # a close frame of ours
        if data:
            boundary.follow(data)
        if end and boundary.may_close:
            self._frames = None
            data += close_frame(WIRE[Kind.UPSTREAM_CLOSED].close_code, Kind.UPSTREAM_CLOSED.value)
        return data

    def all_said(self) -> None:
        """Let the exchange go: it is finished, whenever the client reads the rest. A tunnel has another half."""
        if not self.is_tunnel:
            self.receiver = None

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
        self._connection.reset_stream(self, WIRE[error.kind].h2)
        self._connection.on_stream_gone()

    def after_end(self) -> None:
        """Forget a stream that ended both ways; stop the upload that an early answer makes pointless."""
        if self.is_tunnel:
            if self.received_end and not self.has_held():
                self._forget_if_over()
            elif self.receiver is None:
                self.idle_s = min(self.idle_s, GOAWAY_LINGER_S)  # for the client's own end, which nobody awaits
                self._connection.shell.watch()
        elif self.received_end:
            self._forget_if_over()
        else:
            self.receiver = None
            self._connection.reset_stream(self, frames.NO_ERROR)  # RFC 9113 §8.1
            self._connection.on_stream_gone()

    def _forget_if_over(self) -> None:
        if self.sent_end and not self.is_over:
            self.receiver = None
            self._connection.answered += 1
            self._connection.forget(self)
            self._connection.on_stream_gone()
