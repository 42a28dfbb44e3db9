"""The client's role of HTTP/2: many requests at a time to one replica, each with its response.

    open --room?--> stream --send_head--> HEADERS … --response's end--> forgotten
    GOAWAY(n): streams above n reached nobody and may move; the others go on; no new ones; closed after the last

The peer's MAX_CONCURRENT_STREAMS is read at each `open`. A stream that ends before its request is reset, so
that the count of open streams is right on both sides whatever was cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.deadlines import NEVER, TURN_S
from router.errors import Kind, ProxyError, Retry, Source
from router.http import ResponseHead
from router.stream import CLOSE_NO, UpstreamStream
from router.transport.codec.h2 import frames
from router.transport.codec.h2.connection import INITIAL_SETTINGS, OPEN_WINDOW
from router.transport.codec.h2.fields import RESPONSE_TRAILERS
from router.transport.codec.h2.head import bad_response, read_response, read_trailers, write_request
from router.transport.codec.h2.limits import (
    ASSUMED_STREAMS,
    GOAWAY_LINGER_S,
    IDLE_CONNECTION_S,
    PING_LIMIT_S,
)
from router.transport.codec.h2.reader import H2Reader
from router.transport.codec.h2.stream import H2Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.http import Headers, RequestHead, ResponseShape
    from router.stream import ResponseReceiver, Shell

_PRELUDE: Final = (
    frames.PREFACE + frames.settings(((frames.ENABLE_PUSH, 0), *INITIAL_SETTINGS)) + OPEN_WINDOW
)
_PING: Final = frames.frame(frames.PING, 0, 0, b"alive?!?")
MAX_INFORMATIONAL = 16  # 1xx responses before the final one
CLOSE_LIMIT_S = 5.0  # for a replica to take what was written before a close
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


class H2Client(H2Reader):
    """One connection to a replica."""

    __slots__ = (
        "_deferred",
        "_ending",
        "_is_draining",
        "_is_untouched",
        "_max_streams",
        "_memo",
        "_next_id",
        "_on_gone",
        "_on_settings",
        "_ping_s",
        "_trailers",
        "authority",
        "scheme",
        "written_bytes",
    )

    def __init__(
        self,
        authority: bytes,
        scheme: bytes,
        ping_s: float,
        on_gone: Callable[[], None],
        on_settings: Callable[[], None],
        written_bytes: Callable[[], int],
        is_untouched: Callable[[int], bool],
        shell: Shell,
        now: float,
    ) -> None:
        super().__init__(shell, _ignore, now, is_server=False)
        self.authority = authority
        self.scheme = scheme
        self.written_bytes = written_bytes
        self.peer_max_streams = ASSUMED_STREAMS
        self._on_gone = on_gone
        self._on_settings = on_settings
        self._is_untouched = is_untouched
        self._ping_s = ping_s
        self._next_id = 1
        self._is_draining = False
        self._deferred: list[ClientStream] = []
        self._ending: list[ClientStream] = []  # over, but for END_STREAM of theirs or a window for ours
        self._memo: dict[bytes, ResponseShape] = {}
        self._trailers: dict[bytes, Headers] = {}
        self.queue(_PRELUDE)

    # -- for the pool ---------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it may take requests at all."""
        return not self._is_draining and self.close == CLOSE_NO

    @property
    def saw_settings(self) -> bool:
        """Whether it is known what the replica allows."""
        return self._saw_settings

    @property
    def room(self) -> int:
        """How many more requests it takes now."""
        if not self.is_open:
            return 0
        return self.peer_max_streams - len(self.streams) - len(self._deferred)

    def open(self, receiver: ResponseReceiver, now: float) -> ClientStream:
        """Return a stream for a request; the caller has looked at `room`."""
        if not self.streams:
            self.heard_s = now  # an answer is due from now on
        return ClientStream(self, receiver)

    def is_untouched(self, written_before: int) -> bool:
        """Whether nothing written since then was taken by the replica's kernel."""
        return self._is_untouched(written_before)

    # -- for its streams ------------------------------------------------------------------------------

    def enrol(self, stream: ClientStream) -> int:
        """Give a stream its id, in the order in which heads are sent (RFC 9113 §5.1.1)."""
        stream.id = stream_id = self._next_id
        stream.id_bytes = stream_id.to_bytes(4, "big")
        stream.send_window = self.initial_send_window
        self._next_id = stream_id + 2
        self.streams[stream_id] = stream
        if stream_id >= frames.MAX_WINDOW - 2:
            self._is_draining = True  # ids are used up
        if 0.0 < self._ping_s < TURN_S and len(self.streams) == 1:
            self.shell.watch()  # else the wheel looks soon enough by itself
        if self.is_full:
            stream.is_paused = True
            self._paused[stream_id] = stream
            stream.pause()
        return stream_id

    def await_end(self, stream: ClientStream) -> None:
        """Give a replica a moment for the END_STREAM, or the window, that it owes."""
        stream.moved_s = self.now
        stream.let_go()
        self._ending.append(stream)
        self.shell.watch()

    def defer(self, stream: ClientStream) -> None:
        """Have a stream wait for the flush, and for the replica's settings."""
        self._deferred.append(stream)
        self.needs_time = True
        self.shell.touch()

    def undefer(self, stream: ClientStream) -> None:
        """Give the place back of a stream that is cancelled before it was sent."""
        if stream in self._deferred:
            self._deferred.remove(stream)
            self.on_stream_gone()

    # -- from the replica -----------------------------------------------------------------------------

    def on_block(self, stream_id: int, block: bytes, end: bool) -> None:
        """Take a response's head or trailers."""
        stream = self.streams.get(stream_id)
        shape = self._memo.get(block)
        if shape is not None and isinstance(stream, ClientStream) and not stream.got_head:
            stream.moved_s = self.now
            stream.received_end = end
            if not stream.on_head(ResponseHead(shape), end):
                self._fail_response(stream, "a head is out of place")
            return
        known = self._trailers.get(block)
        if known is not None and isinstance(stream, ClientStream) and stream.got_head and not stream.received_end:
            self._on_trailers(stream, known, end)
            return
        fields = self.decoder.decode(block)
        if self.decoder.error:
            self.fail(frames.COMPRESSION_ERROR, self.decoder.error.encode())
            return
        if self.decoder.changed:
            self._memo.clear()
            self._trailers.clear()
        if not isinstance(stream, ClientStream):
            if self.is_idle_id(stream_id):
                self.fail(frames.PROTOCOL_ERROR, b"HEADERS on an idle stream")
            return
        stream.moved_s = self.now
        if self.decoder.is_too_large or stream.received_end:
            self._fail_response(stream, "its fields are too large, or come behind its end")
            return
        if stream.got_head:
            trailers = read_trailers(fields, RESPONSE_TRAILERS)
            if trailers is not None and self.may_remember(block, len(self._trailers)):
                self._trailers[block] = trailers
            self._on_trailers(stream, trailers, end)
            return
        head = read_response(fields, self.decoder.never_indexed)
        if isinstance(head, ProxyError):
            self._fail_response(stream, head.detail)
            return
        if head.length is None and self.may_remember(block, len(self._memo)):
            self._memo[block] = head.shape
        stream.received_end = end
        if not stream.on_head(head, end):
            self._fail_response(stream, "a head is out of place")

    def _on_trailers(self, stream: ClientStream, trailers: Headers | None, end: bool) -> None:
        if not end or trailers is None or stream.expected_bytes > 0 or stream.is_tunnel:  # RFC 9113 §8.1, §8.5
            self._fail_response(stream, "its trailers are malformed, or come before the body's end")
            return
        stream.received_end = True
        stream.receive_trailers(trailers)

    def _fail_response(self, stream: ClientStream, detail: str) -> None:
        self.reset_stream(stream, frames.PROTOCOL_ERROR)
        stream.lose(bad_response(detail))
        self.on_stream_gone()

    def on_early_data(self, stream: H2Stream) -> None:
        """Fail the response: its bytes would be taken for a head of the replica's making."""
        assert isinstance(stream, ClientStream)
        self._fail_response(stream, "DATA comes before its head")

    def on_reset(self, stream: H2Stream, code: int) -> None:
        """Tell the exchange; a refused stream reached nobody (RFC 9113 §8.7)."""
        retry = Retry.SAFE if code == frames.REFUSED_STREAM else Retry.NEVER
        stream.lose(ProxyError(Kind.UPSTREAM_RESET, Source.UPSTREAM, retry))
        self.on_stream_gone()

    def on_goaway(self, last_stream_id: int, code: int) -> None:
        """Move what the replica has not taken up; finish the rest; take nothing new."""
        self._leave_pool()
        refused = ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM, Retry.SAFE, "the replica goes away")
        for stream in list(self.streams.values()):
            if stream.id > last_stream_id:
                self.forget(stream)
                self.remember_reset(stream.id, by_us=True)
                stream.lose(refused)
        self._refuse_deferred(refused)
        self.on_stream_gone()

    def on_settings(self) -> None:
        """Tell the pool how many streams the replica takes."""
        self._on_settings()

    def before_output(self, now: float) -> None:
        """Begin lingering, or go on with what waited for the replica's settings."""
        self.begin_ending(now, GOAWAY_LINGER_S)
        if not self._deferred:
            return
        if not self._saw_settings:
            self.needs_time = True  # again at the next flush
            return
        deferred = self._deferred
        self._deferred = []
        for stream in deferred:
            stream.continue_deferred()

    def is_idle_id(self, stream_id: int) -> bool:
        """Whether we have not opened this stream; a server opens none."""
        return stream_id >= self._next_id or not stream_id & 1

    def on_broken(self) -> None:
        """Fail every stream."""
        self._lose_all(ProxyError(Kind.UPSTREAM_PROTOCOL, Source.UPSTREAM))

    def receive_eof(self, now: float) -> bool:
        """The replica ended the connection. What came whole, and is held for a slow client, is still delivered."""
        self.now = now
        self._lose_all(ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM, Retry.IF_REUSED), keep_whole=True)
        return bool(self.streams)

    def receive_lost(self, now: float) -> None:
        """The transport failed."""
        self.now = now
        self._lose_all(ProxyError(Kind.UPSTREAM_RESET, Source.UPSTREAM, Retry.IF_REUSED))

    def _lose_all(self, error: ProxyError, *, keep_whole: bool = False) -> None:
        self._leave_pool()
        for stream in list(self.streams.values()):
            if keep_whole and stream.received_end and stream.has_held():
                stream.stop_sending()
                continue
            self.forget(stream)
            stream.lose(error)
        self._refuse_deferred(error)

    def _leave_pool(self) -> None:
        """Take nothing new; said first, so that what moves on finds the place free."""
        self._is_draining = True
        self._on_gone()

    def _refuse_deferred(self, error: ProxyError) -> None:
        deferred = self._deferred
        self._deferred = []
        for stream in deferred:
            stream.lose(error)

    def on_stream_gone(self) -> None:
        """Close when draining and nothing is left."""
        if not self.streams and self._is_draining and self.close == CLOSE_NO and not self._deferred:
            if not self.goaway_sent:
                self.send_goaway(0, frames.NO_ERROR, b"")
            self.end()

    # -- time and ends --------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The first of: end of lingering, a PING's answer, the next PING, an idle connection."""
        if self.close:
            return self.ending.until_s if self.ending is not None else self.last_moved_s + CLOSE_LIMIT_S
        if self._ending:
            return self._ending[0].moved_s + CLOSE_LIMIT_S
        if self.ping_sent_s:
            return self.ping_sent_s + PING_LIMIT_S
        if self.streams:
            return self.heard_s + self._ping_s if self._ping_s else NEVER
        return self.last_moved_s + IDLE_CONNECTION_S

    def handle_deadline(self, now: float) -> None:
        """Act on whichever deadline passed."""
        self.now = now
        if self.close:
            self.go_on_ending(GOAWAY_LINGER_S, CLOSE_LIMIT_S)
        elif self._ending:
            self._stop_waiting(now)
        elif self.ping_sent_s:
            self._lose_all(ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM, detail="no answer to a PING"))
            self.cut_off()
        elif self.streams:
            self.ping_sent_s = now
            self.queue(_PING)
            self.shell.watch()
        else:
            self._refuse_deferred(ProxyError(Kind.UPSTREAM_CLOSED, Source.UPSTREAM, detail="it says nothing"))
            self.drain()

    def _stop_waiting(self, now: float) -> None:
        ending = self._ending
        self._ending = []
        for stream in ending:
            if stream.is_over:
                continue
            if stream.moved_s + CLOSE_LIMIT_S <= now:
                self.reset_stream(stream, frames.CANCEL)
            else:
                self._ending.append(stream)
        self.on_stream_gone()

    def drain(self) -> None:
        """Take nothing new, close after the last stream."""
        self._leave_pool()
        self.on_stream_gone()


def _accepted(head: ResponseHead) -> ResponseHead:
    """Return the canonical answer to an extended CONNECT."""
    shape = type(head.shape)(200)
    shape.accepts_tunnel = True
    shape.fields = head.shape.fields
    return ResponseHead(shape)


def _ignore() -> None:
    """A replica that floods us costs itself its connection, which is counted as a broken protocol."""
