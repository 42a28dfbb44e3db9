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
from router.stream import CLOSE_NO
from router.transport.codec.fields import RESPONSE_TRAILERS
from router.transport.codec.h2 import frames
from router.transport.codec.h2.client_stream import ClientStream
from router.transport.codec.h2.connection import INITIAL_SETTINGS, OPEN_WINDOW
from router.transport.codec.h2.limits import (
    ASSUMED_STREAMS,
    GOAWAY_LINGER_S,
    IDLE_CONNECTION_S,
    PING_LIMIT_S,
)
from router.transport.codec.h2.reader import H2Reader
from router.transport.codec.head import bad_response, read_response, read_trailers

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.http import Headers, ResponseShape
    from router.stream import ResponseReceiver, Shell
    from router.transport.codec.h2.stream import H2Stream

_PRELUDE: Final = (
    frames.PREFACE + frames.settings(((frames.ENABLE_PUSH, 0), *INITIAL_SETTINGS)) + OPEN_WINDOW
)
_PING: Final = frames.frame(frames.PING, 0, 0, b"alive?!?")
CLOSE_LIMIT_S = 5.0  # for a replica to take what was written before a close


class H2Client(H2Reader):
    """One connection to a replica."""

    __slots__ = (
        "_deferred",
        "_ending",
        "_is_draining",
        "_is_untouched",
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


def _ignore() -> None:
    """A replica that floods us costs itself its connection, which is counted as a broken protocol."""
