"""The server's role of HTTP/2: many requests at a time from one client.

    block of a new stream --> memo or decoder --> head --> exchange
    --drain--> PING + GOAWAY(2^31-1) --its answer--> GOAWAY(last stream) --no streams left--> closed

In between a client's requests on their way are still served; later ones it knows were not (RFC 9113 §6.8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.deadlines import NEVER
from router.errors import Kind, ProxyError, Source
from router.http import RequestHead
from router.local_reply import local_reply
from router.stream import CLOSE_FLUSH, CLOSE_NO
from router.transport.codec.fields import REQUEST_TRAILERS
from router.transport.codec.h2 import frames
from router.transport.codec.h2.connection import INITIAL_SETTINGS, OPEN_WINDOW
from router.transport.codec.h2.head import VERSION
from router.transport.codec.h2.limits import (
    DRAIN_ROUND_TRIP_S,
    MAX_SKIPPED,
    MAX_STREAMS,
)
from router.transport.codec.h2.reader import H2Reader
from router.transport.codec.h2.server_stream import ServerStream
from router.transport.codec.head import bad_request, read_request, read_trailers

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.http import RequestShape
    from router.stream import DownstreamStream, RequestReceiver, Shell
    from router.transport.codec.h1.limits import ServerLimits
    from router.transport.codec.h2.stream import H2Stream

_SETTINGS: Final = (
    frames.settings(
        (
            (frames.MAX_CONCURRENT_STREAMS, MAX_STREAMS),
            *INITIAL_SETTINGS,
            (frames.ENABLE_CONNECT_PROTOCOL, 1),
            (frames.NO_RFC7540_PRIORITIES, 1),
        )
    )
    + OPEN_WINDOW
)
_DRAIN_PING: Final = b"draining"
_GONE: Final = ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM)

# How far a drain has come.
_SERVING: Final = 0
_ANNOUNCED: Final = 1
_LAST_SAID: Final = 2


class H2Server(H2Reader):
    """One client's connection."""

    __slots__ = (
        "_drain_phase",
        "_drain_until_s",
        "_is_head_request",
        "_last_id",
        "_limits",
        "_memo",
        "_on_refused",
        "_on_request",
        "_preface",
        "_skipped",
        "_taken_id",
    )

    def __init__(
        self,
        on_request: Callable[[DownstreamStream], RequestReceiver],
        on_refused: Callable[[ProxyError], None],
        on_flood: Callable[[], None],
        limits: ServerLimits,
        shell: Shell,
        now: float,
    ) -> None:
        super().__init__(shell, on_flood, now, is_server=True)
        self._on_request = on_request
        self._on_refused = on_refused
        self._limits = limits
        self._last_id = 0  # the highest opened
        self._taken_id = 0  # the highest that was not turned away: what a GOAWAY says
        self._skipped: list[tuple[int, int]] = []
        self._memo: dict[bytes, tuple[RequestShape, int | None]] = {}
        self._preface = b""
        self._is_head_request = False  # what was decoded last, in case it is refused
        self._drain_phase = _SERVING
        self._drain_until_s = 0.0
        self.queue(_SETTINGS)

    # -- bytes in -------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Take input; the first of it is the client's preface (RFC 9113 §3.4)."""
        preface = self._preface
        if len(preface) < len(frames.PREFACE) and data:
            need = len(frames.PREFACE) - len(preface)
            self._preface = preface = preface + data[:need]
            if not frames.PREFACE.startswith(preface):
                self.now = now
                self.fail(frames.PROTOCOL_ERROR, b"no preface")
                return
            data = data[need:]
            self.last_moved_s = now
            if not data:
                return
        super().receive(data, now)

    def on_block(self, stream_id: int, block: bytes, end: bool) -> None:
        """Begin a request, or end one with trailers."""
        if stream_id <= self._last_id or not stream_id & 1:
            self._on_known(stream_id, block, end)
            return
        if stream_id != self._last_id + 2 and self._last_id + 1 != stream_id and len(self._skipped) < MAX_SKIPPED:
            self._skipped.append((self._last_id, stream_id))
        self._last_id = stream_id
        known = self._memo.get(block)
        if known is not None:
            head: RequestHead | ProxyError = RequestHead(known[0], known[1])
        else:
            head = self._decode(block)
            if self.close:
                return
        if self._drain_phase == _LAST_SAID:
            self.remember_reset(stream_id, by_us=True)  # the client was told that it is not served
            return
        self._taken_id = stream_id
        if len(self.streams) >= MAX_STREAMS:
            self.reset_id(stream_id, frames.REFUSED_STREAM)  # RFC 9113 §5.1.2
            return
        stream = ServerStream(self, stream_id, self._limits.idle_s, self.now)
        self.streams[stream_id] = stream
        if isinstance(head, ProxyError):
            self._refuse(stream, head, end)
            return
        if end and (head.length or head.shape.upgrade is not None):  # RFC 9113 §8.1.1, RFC 8441 §5
            self._refuse(stream, bad_request("a length without a body, or a tunnel that ends where it begins"), end)
            return
        stream.begin(self._on_request(stream), head, end)

    def _decode(self, block: bytes) -> RequestHead | ProxyError:
        decoder = self.decoder
        fields = decoder.decode(block)
        if decoder.error:
            self.fail(frames.COMPRESSION_ERROR, decoder.error.encode())
            return bad_request(decoder.error)
        if decoder.changed:
            self._memo.clear()
        self._is_head_request = (b":method", b"HEAD") in fields
        if decoder.is_too_large:
            return bad_request("its fields are too large", Kind.HEAD_TOO_LARGE)
        head = read_request(fields, VERSION, decoder.never_indexed)
        if not isinstance(head, ProxyError):
            if len(self._memo) and not self.may_remember(block, len(self._memo)):
                self._memo.clear()
            if self.may_remember(block, len(self._memo)):
                self._memo[block] = (head.shape, head.length)
        return head

    def _on_known(self, stream_id: int, block: bytes, end: bool) -> None:
        """Take a block on a stream that is not new: trailers, or a fault."""
        fields = self.decoder.decode(block)
        if self.decoder.error:
            self.fail(frames.COMPRESSION_ERROR, self.decoder.error.encode())
            return
        if self.decoder.changed:
            self._memo.clear()
        stream = self.streams.get(stream_id)
        if stream is None:
            was_skipped = any(low < stream_id < high for low, high in self._skipped)
            if not stream_id & 1 or was_skipped:  # RFC 9113 §5.1.1
                self.fail(frames.PROTOCOL_ERROR, b"a stream id that may not be opened")
            else:
                self.late(stream_id)
            return
        if stream.received_end:  # RFC 9113 §5.1, "half-closed (remote)"
            self.fail_stream(stream, frames.STREAM_CLOSED)
            return
        trailers = None if self.decoder.is_too_large else read_trailers(fields, REQUEST_TRAILERS)
        is_misplaced = not end or stream.expected_bytes > 0 or stream.wants_tunnel  # RFC 9113 §8.1, §8.5
        if is_misplaced or trailers is None:
            self.fail_stream(stream, frames.PROTOCOL_ERROR)
            return
        stream.moved_s = self.now
        stream.received_end = True
        stream.receive_trailers(trailers)

    def _refuse(self, stream: ServerStream, error: ProxyError, end: bool) -> None:
        """Answer or reset a request that led to no exchange."""
        self._on_refused(error)
        stream.received_end = end
        stream.is_head_request = self._is_head_request
        if error.kind is Kind.BAD_REQUEST:  # malformed: RFC 9113 §8.1.1
            self.fail_stream(stream, frames.PROTOCOL_ERROR)
            return
        head, body = local_reply(error, b"no", b"")
        stream.send_head(head, False)
        stream.send_data(body, True)

    def receive_eof(self, now: float) -> bool:
        """The client ended its side: whoever waits for an answer on it cannot be told from one who left."""
        self.now = now
        self.on_broken()
        self.close = max(self.close, CLOSE_FLUSH)
        return False

    def receive_lost(self, now: float) -> None:
        """The transport is gone."""
        self.now = now
        self.on_broken()

    def is_idle_id(self, stream_id: int) -> bool:
        """Whether no stream with this id was opened yet; a client opens odd ones."""
        return stream_id > self._last_id or not stream_id & 1

    def last_peer_stream(self) -> int:
        """Return the highest stream taken up."""
        return self._taken_id

    def on_early_data(self, stream: H2Stream) -> None:
        """Cannot be: a client's stream begins with its head."""
        raise AssertionError

    def on_goaway(self, last_stream_id: int, code: int) -> None:
        """Nothing to do: we open no streams, and those of the client go on."""

    def on_reset(self, stream: H2Stream, code: int) -> None:
        """Cancel the exchange, then see whether a drain is over."""
        stream.lose(_GONE)
        self.on_stream_gone()

    def on_broken(self) -> None:
        """Cancel every exchange."""
        streams = list(self.streams.values())
        for stream in streams:
            self.forget(stream)
            stream.lose(_GONE)

    # -- draining -------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Say that no further requests are served, in two steps, and close after the last one."""
        if self._drain_phase != _SERVING or self.close:
            return
        self._drain_phase = _ANNOUNCED
        # The PING goes first, since clients there are (h2's) that take nothing more behind a GOAWAY. What such a
        # client sends between the two arrives behind its answer: it will know that it was not served.
        self.queue(frames.frame(frames.PING, 0, 0, _DRAIN_PING))
        self.send_goaway(frames.LAST_STREAM, frames.NO_ERROR, b"draining")
        self._drain_until_s = NEVER  # counted from when it is written
        self.needs_time = True

    def retire(self, now: float) -> None:
        """Drain: what a client sends that has not read the first GOAWAY is served anyway."""
        self.drain()

    def on_ping_ack(self, payload: bytes) -> None:
        """The client has read the first GOAWAY: what it sends from now on it knows to be refused."""
        if payload == _DRAIN_PING and self._drain_phase == _ANNOUNCED:
            self._say_last()

    def _say_last(self) -> None:
        self._drain_phase = _LAST_SAID
        self.send_goaway(self._taken_id, frames.NO_ERROR, b"draining")
        self.on_stream_gone()

    def on_stream_gone(self) -> None:
        """Close when draining and nothing is left."""
        if self._drain_phase == _LAST_SAID and not self.streams:
            self.end()

    def cut(self, error: ProxyError) -> None:
        """End now: every exchange is told, and answers or resets."""
        for stream in list(self.streams.values()):
            stream.lose(error)
        self._drain_phase = _LAST_SAID
        if self.close == CLOSE_NO:
            self.send_goaway(self._taken_id, frames.NO_ERROR, b"closing")
            self.end()

    # -- flow and time --------------------------------------------------------------------------------

    def transport_full(self, full: bool, now: float) -> None:
        """Take no further requests while answers cannot be written."""
        super().transport_full(full, now)
        self.wants_read = not full or self.close != CLOSE_NO

    def before_output(self, now: float) -> None:
        """Begin a drain's round trip, or lingering."""
        if self._drain_until_s == NEVER:
            self._drain_until_s = now + DRAIN_ROUND_TRIP_S
        self.begin_ending(now, self._limits.linger_s)
        self.shell.watch()

    def next_deadline(self) -> float | None:
        """The first of: end of lingering, stalled reader, slow block, drain, idle streams, idle connection."""
        limits = self._limits
        if self.close:
            return self.ending.until_s if self.ending is not None else self.last_moved_s + limits.linger_s
        first = NEVER
        if self.full_since_s:
            first = self.full_since_s + limits.stall_s
        if self._block_since_s:
            first = min(first, self._block_since_s + limits.head_s)
        if self._partial_since_s:
            first = min(first, self._partial_since_s + limits.head_s)
        if self._drain_phase == _ANNOUNCED:
            first = min(first, self._drain_until_s)
        if self.streams:
            return min(first, self.first_stream_deadline(limits.stall_s))
        limit_s = limits.keep_alive_s if self._saw_settings else limits.head_s
        return min(first, self.last_moved_s + limit_s)

    def handle_deadline(self, now: float) -> None:
        """Act on whichever deadlines passed."""
        self.now = now
        limits = self._limits
        if self.close:
            self.go_on_ending(limits.linger_s, limits.stall_s)
        elif self.full_since_s and self.full_since_s + limits.stall_s <= now:
            # Nothing can be said to a client that does not read.
            error = ProxyError(Kind.CLIENT_STALLED, Source.DOWNSTREAM)
            for stream in list(self.streams.values()):
                self.forget(stream)
                stream.lose(error)
            self.cut_off()
        elif self._is_slow(self._block_since_s, now) or self._is_slow(self._partial_since_s, now):
            self._on_refused(ProxyError(Kind.REQUEST_TIMEOUT, Source.DOWNSTREAM))
            self.fail(frames.ENHANCE_YOUR_CALM, b"a frame or a field block took too long")
        elif self._drain_phase == _ANNOUNCED and self._drain_until_s <= now:
            self._say_last()
        elif self.streams:
            self._end_late_streams(now)
        elif self.last_moved_s + (limits.keep_alive_s if self._saw_settings else limits.head_s) <= now:
            self.send_goaway(self._taken_id, frames.NO_ERROR, b"idle")
            self.end()

    def _is_slow(self, since_s: float, now: float) -> bool:
        return since_s > 0.0 and since_s + self._limits.head_s <= now

    def _end_late_streams(self, now: float) -> None:
        for stream in list(self.streams.values()):
            assert isinstance(stream, ServerStream)
            if stream.blocked_since_s and self.stalled_since(stream) + self._limits.stall_s <= now:
                self.reset_stream(stream, frames.CANCEL)  # its window stays shut
                stream.lose(ProxyError(Kind.CLIENT_STALLED, Source.DOWNSTREAM))
            elif stream.moved_s + stream.idle_s <= now:
                stream.moved_s = now
                receiver = stream.receiver
                if receiver is None:
                    self.reset_stream(stream, frames.CANCEL)
                else:
                    receiver.request_reset(ProxyError(Kind.IDLE_TIMEOUT, Source.ROUTER))
        self.on_stream_gone()
