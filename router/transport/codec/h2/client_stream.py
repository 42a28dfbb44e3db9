"""One request to a replica over HTTP/2, and its response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.deadlines import NEVER
from router.errors import Kind, ProxyError, Source
from router.http import ResponseHead
from router.stream import UpstreamStream
from router.transport.codec.h2 import frames
from router.transport.codec.h2.head import write_request
from router.transport.codec.h2.stream import H2Stream

if TYPE_CHECKING:
    from router.http import Headers, RequestHead
    from router.stream import ResponseReceiver
    from router.transport.codec.h2.client import H2Client

MAX_INFORMATIONAL = 16  # 1xx responses before the final one
_NO_TUNNELS: Final = ProxyError(
    Kind.NOT_IMPLEMENTED, Source.UPSTREAM, detail="the replica takes no WebSockets over HTTP/2"
)


class ClientStream(H2Stream, UpstreamStream):
    """One request to a replica and its response. Has an id once its head is sent."""

    __slots__ = (
        "_client",
        "_deferred",
        "_got_head",
        "_informational",
        "_is_head_request",
        "_receiver",
        "_written_before",
        "may_be_untouched",
    )

    def __init__(self, client: H2Client, receiver: ResponseReceiver) -> None:
        super().__init__(client, 0, NEVER, client.now)
        self._client = client
        self._receiver: ResponseReceiver | None = receiver
        self._is_head_request = False
        self._got_head = False
        self._informational = 0
        self._deferred: RequestHead | None = None
        self._written_before = 0
        self.may_be_untouched = True
        self.takes_data = False

    # -- the stream -----------------------------------------------------------------------------------

    def send_head(self, head: RequestHead, end: bool) -> None:
        """Queue the request's head; for a tunnel not before the replica said that it takes one."""
        client = self._client
        self._is_head_request = head.shape.method == b"HEAD"
        if head.shape.upgrade is not None:
            self.wants_tunnel = True
            self._deferred = head
            client.defer(self)
            return
        self._send_now(head, end)

    def _send_now(self, head: RequestHead, end: bool) -> None:
        """Queue the head, which gives the stream its id."""
        client = self._client
        self._written_before = client.written_bytes()
        stream_id = client.enrol(self)
        client.queue_block(
            stream_id, write_request(head, client.scheme, client.authority), frames.END_STREAM if end else 0
        )
        if end:
            self.sent_end = True

    def continue_deferred(self) -> None:
        """Send the head that waited for the replica's settings, if they allow it (RFC 8441 §3)."""
        head = self._deferred
        self._deferred = None
        if head is None:
            return  # cancelled by what became of one before it
        if self._client.peer_takes_connect:
            self._send_now(head, False)
        else:
            self.lose(_NO_TUNNELS)
            self._client.on_stream_gone()

    def reset(self, error: ProxyError) -> None:
        """Cancel this request alone."""
        self._receiver = None
        if self._deferred is not None:
            self._deferred = None
            self._client.undefer(self)
        if not self.is_over and self.id:
            self._client.reset_stream(self, frames.CANCEL)
            self._client.on_stream_gone()
        self.is_over = True

    def is_untouched(self) -> bool:
        """Whether the replica's kernel took no byte of this request."""
        return not self._got_head and self._client.is_untouched(self._written_before)

    def all_said(self) -> None:
        """Limit the time of a tunnel that is over for both sides, and only waits for a window."""
        if self.is_tunnel and self.received_end and not self.has_held():
            self._receiver = None
            self._client.await_end(self)

    def after_end(self) -> None:
        """Forget a tunnel that ended both ways; any other stream its response ends."""
        if self.is_tunnel and self.received_end and not self.has_held() and not self.is_over:
            self._receiver = None
            self._client.forget(self)
            self._client.on_stream_gone()

    # -- from the replica -----------------------------------------------------------------------------

    def on_head(self, fields: ResponseHead, end: bool) -> bool:
        """Take a 1xx or the final head; False if it is out of place."""
        receiver = self._receiver
        status = fields.shape.status
        if status < 200:
            self._informational += 1
            if end or self._informational > MAX_INFORMATIONAL:
                return False
            if receiver is not None:
                receiver.response_informational(fields)
            return True
        self._got_head = self.takes_data = True
        if self.wants_tunnel and status < 300:
            if end:
                return False
            self.is_tunnel = True
            if receiver is not None:
                receiver.response_head(_accepted(fields), False)
            return True
        if fields.length is not None and not self._is_head_request and status not in (204, 304):
            if end and fields.length:
                return False
            self.expected_bytes = fields.length
        if not end and (self._is_head_request or status in (204, 304)):
            # No body, and many servers say so in an empty DATA of its own: the exchange need not wait for it.
            self.expected_bytes = 0
            self._receiver = None
            self._client.await_end(self)
            if receiver is not None:
                receiver.response_head(fields, True)
            return True
        if end:
            self._finish()
        if receiver is not None:
            receiver.response_head(fields, end)
        return True

    @property
    def got_head(self) -> bool:
        """Whether the final head came: what follows are trailers."""
        return self._got_head

    def deliver(self, data: bytes, end: bool) -> None:
        """Hand body bytes to the exchange."""
        receiver = self._receiver
        if end:
            self._finish()
        if receiver is not None:
            receiver.response_data(data, end)

    def deliver_trailers(self, trailers: Headers) -> None:
        """Hand trailers to the exchange."""
        receiver = self._receiver
        self._finish()
        if receiver is not None:
            receiver.response_trailers(trailers)

    def _finish(self) -> None:
        """End the stream before its last event is handed on: there may be room for another one."""
        if self.is_tunnel and not self.sent_end:
            if self.has_said_all():
                self._receiver = None
                self._client.await_end(self)
            return  # the client's half goes on
        self._receiver = None
        client = self._client
        if self.sent_end:
            client.forget(self)
        else:
            client.reset_stream(self, frames.CANCEL)  # what is left of an upload nobody wants
        client.on_stream_gone()

    def lose(self, error: ProxyError) -> None:
        """Tell the exchange that the replica failed this stream."""
        receiver = self._receiver
        self._receiver = None
        if receiver is not None:
            receiver.response_reset(error)

    def pause(self) -> None:
        """Hold the client."""
        if self._receiver is not None:
            self._receiver.pause_request()

    def resume(self) -> None:
        """Let the client go on."""
        if self._receiver is not None:
            self._receiver.resume_request()


def _accepted(head: ResponseHead) -> ResponseHead:
    """Return the canonical answer to an extended CONNECT."""
    shape = type(head.shape)(200)
    shape.accepts_tunnel = True
    shape.fields = head.shape.fields
    return ResponseHead(shape)
