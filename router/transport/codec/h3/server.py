"""The server's role of HTTP/3: many requests at a time from one client, each on a stream of its own.

    HEADERS --> memo or decoder --> head --> exchange
    --drain, idle--> GOAWAY(2^62-4) --a round trip--> GOAWAY(next request) --none left, all delivered--> closed

In between a client's requests on their way are still served; later ones it knows were not (RFC 9114 §5.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.deadlines import NEVER
from router.errors import Kind, ProxyError, Source
from router.http import RequestHead
from router.local_reply import local_reply
from router.transport.codec.ending import Ending
from router.transport.codec.fields import REQUEST_TRAILERS
from router.transport.codec.h3 import frames
from router.transport.codec.h3.connection import H3Connection
from router.transport.codec.h3.head import VERSION
from router.transport.codec.h3.limits import DRAIN_ROUND_TRIP_S, MAX_BLOCK_BYTES, MEMO_BLOCK_BYTES, MEMO_BLOCKS
from router.transport.codec.h3.oneway import ControlStream, DecoderStream, EncoderStream, OneWay, OwnControl
from router.transport.codec.h3.qpack import QpackDecoder
from router.transport.codec.h3.server_stream import ServerStream
from router.transport.codec.head import WEBTRANSPORT, bad_request, read_request, read_trailers
from router.transport.codec.quic.limits import MAX_STREAMS
from router.transport.codec.quic.seam import Application
from router.transport.codec.quic.varint import varint
from router.transport.codec.webtransport.codes import ENABLE_WEBTRANSPORT, MAX_SESSIONS_SETTING, ONE_WAY
from router.transport.codec.webtransport.lanes import Lanes, SessionIdReader
from router.transport.codec.webtransport.limits import MAX_SESSIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.http import Headers, RequestShape
    from router.stream import DownstreamStream, RequestReceiver
    from router.transport.codec.h1.limits import ServerLimits
    from router.transport.codec.h3.reader import Incoming
    from router.transport.codec.h3.stream import H3Stream
    from router.transport.codec.quic.seam import Bearer, Flow
    from router.transport.codec.webtransport.host import SessionHost

# QPACK's table and its blocked streams stay at 0, which is what they are without a word (RFC 9204 §5). For the same
# reason we open no QPACK streams of our own (§4.2).
_SETTINGS: Final = ((frames.MAX_FIELD_SECTION_SIZE, MAX_BLOCK_BYTES), (frames.ENABLE_CONNECT_PROTOCOL, 1))
_OF_SESSIONS: Final = ((frames.H3_DATAGRAM, 1), (ENABLE_WEBTRANSPORT, 1), (MAX_SESSIONS_SETTING, MAX_SESSIONS))
_GREETING: Final = varint(frames.CONTROL_STREAM) + frames.settings(_SETTINGS)
_GREETING_WITH_SESSIONS: Final = varint(frames.CONTROL_STREAM) + frames.settings(_SETTINGS + _OF_SESSIONS)
_CLIENT_BIDIRECTIONAL: Final = 4  # between one request's stream id and the next (RFC 9000 §2.1)
_ONE_WAY: Final = 0x2
_REPEATABLE: Final = (b"GET", b"HEAD", b"OPTIONS")  # what may be a replay and does no harm (RFC 8470 §4)
_EARLY: Final = (b"early-data", b"1")

# How far a drain has come.
_SERVING: Final = 0
_ANNOUNCED: Final = 1
_LAST_SAID: Final = 2


class H3Server(H3Connection, Application):
    """One client's connection."""

    __slots__ = (
        "_control",
        "_decoder",
        "_drain_phase",
        "_drain_until_s",
        "_ending",
        "_fields",
        "_handed_bytes",
        "_is_connected",
        "_is_ending",
        "_kinds",
        "_lanes",
        "_limits",
        "_memo",
        "_on_refused",
        "_on_request",
        "_one_ways",
        "next_id",
    )

    def __init__(
        self,
        bearer: Bearer,
        on_request: Callable[[DownstreamStream], RequestReceiver],
        on_refused: Callable[[ProxyError], None],
        on_flood: Callable[[], None],
        limits: ServerLimits,
        now: float,
        host: SessionHost | None = None,
    ) -> None:
        """`host`: of WebTransport's sessions; None: there are none."""
        super().__init__(bearer, on_flood, limits.head_s, limits.stall_s, now)
        self._on_request = on_request
        self._on_refused = on_refused
        self._limits = limits
        self._control: Flow | None = None
        self._decoder = QpackDecoder()
        self._memo: dict[bytes, tuple[RequestShape, int | None]] = {}
        self.next_id = 0  # behind the last request that was taken up: what a GOAWAY says
        self._one_ways: dict[int, Incoming] = {}  # streams of one direction; ours among them
        self._kinds: set[int] = set()  # types of which the client has opened its one
        self._drain_phase = _SERVING
        self._drain_until_s = NEVER
        self._is_connected = False
        self._is_ending = False
        self._ending: Ending | None = None
        self._fields: Headers = []  # of the head that was decoded last
        self._handed_bytes = 0  # of what a stream brought, whose credit is a session's to give
        self._lanes = None if host is None else Lanes(self, host)
        self.takes_sessions = host is not None

    # -- streams --------------------------------------------------------------------------------------

    def connected(self) -> None:
        """Say our settings; what comes from now on is no replay."""
        self._is_connected = True
        self._greet()

    def streams_available(self) -> None:
        """Say them now, if the client left no room for it before."""
        self._greet()
        if self._lanes is not None and not self.is_closed:
            self.now = self.bearer.now
            self._lanes.streams_available()

    def _greet(self) -> None:
        if self._control is not None or self.is_closed:
            return
        control = self._control = self.bearer.open_stream(unidirectional=True)
        if control is None:
            return
        self._one_ways[control.id] = OwnControl(self)
        control.send(_GREETING if self._lanes is None else _GREETING_WITH_SESSIONS, False)
        if self._drain_phase == _ANNOUNCED:
            control.send(frames.goaway(frames.LAST_STREAM), False)
        elif self._drain_phase == _LAST_SAID:
            control.send(frames.goaway(self.next_id), False)

    def stream_opened(self, flow: Flow) -> None:
        """Begin to wait for a head, or for the type of a stream of one direction."""
        self.now = now = self.bearer.now
        if self.is_closed:
            return
        stream_id = flow.id
        if stream_id & _ONE_WAY:
            self._one_ways[stream_id] = OneWay(self, flow)
            return
        if self._control is None:
            self._greet()  # early data comes before the handshake's end
        is_late = self._drain_phase == _LAST_SAID and stream_id >= self.next_id
        if (is_late and not self._has_sessions()) or self.active >= MAX_STREAMS:
            flow.stop(frames.REQUEST_REJECTED)  # the client was told that it is not served
            flow.reset(frames.REQUEST_REJECTED)
            self.may_reset()
            return
        if stream_id >= self.next_id and not is_late:
            self.next_id = stream_id + _CLIENT_BIDIRECTIONAL
        stream = ServerStream(self, flow, self._limits.idle_s, now)
        self.streams[stream_id] = stream
        self.active += 1
        self.look_by(now + self.head_s)

    def stream_data(self, flow: Flow, data: bytes, end: bool) -> None:
        """Read on."""
        self.now = self.last_moved_s = self.bearer.now
        if self.is_closed:
            return
        stream = self.streams.get(flow.id)
        if stream is not None:
            stream.receive(data, end)
            return
        lanes = self._lanes
        if lanes is not None and lanes.data(flow, data, end):
            return
        one_way = self._one_ways.get(flow.id)
        if one_way is not None:
            self._handed_bytes = 0
            one_way.receive(data, end)
            flow.credit(len(data) - self._handed_bytes)
        else:
            flow.credit(len(data))

    def stream_reset(self, flow: Flow, code: int) -> None:
        """Tell who reads the stream."""
        found = self._find(flow)
        if found is not None:
            found.peer_reset(code)
        elif self._lanes is not None and not self.is_closed:
            self._lanes.reset(flow, code)

    def stream_stopped(self, flow: Flow, code: int) -> None:
        """Tell who writes it."""
        found = self._find(flow)
        if found is not None:
            found.peer_stopped(code)
        elif self._lanes is not None and not self.is_closed:
            self._lanes.stopped(flow, code)

    def _find(self, flow: Flow) -> Incoming | None:
        self.now = self.bearer.now
        if self.is_closed:
            return None
        return self.streams.get(flow.id) or self._one_ways.get(flow.id)

    def stream_drained(self, flow: Flow) -> None:
        """Let the replica go on."""
        stream = self.streams.get(flow.id)
        if stream is not None:
            stream.let_go_on()
        elif self._lanes is not None and not self.is_closed:
            self._lanes.drained(flow)

    def stream_gone(self, flow: Flow) -> None:
        """Forget it; it may have been the last."""
        stream = self.streams.pop(flow.id, None)
        if stream is None:
            self._one_ways.pop(flow.id, None)
            if self._lanes is not None:
                self._lanes.gone(flow)
            if self._is_ending and not self.streams and not flow.id & _ONE_WAY:
                self._close(frames.NO_ERROR)  # a late request: its client has read that it is refused
            return
        stream.finish()
        stream.lose_peer()
        if self._lanes is not None:
            self._lanes.settled(flow.id)
        self.on_stream_over()

    def datagram(self, data: bytes) -> None:
        """Find its session; drop it where there are none: we never said that we take any (RFC 9297 §2.1.1)."""
        self.now = self.bearer.now
        if self.is_closed:
            return
        if self._lanes is not None:
            self._lanes.datagram(data)
        else:
            self.may_idle()

    def open_one_way(self, flow: Flow, kind: int) -> Incoming | None:
        """Find who reads a stream of this type; None if nobody does (RFC 9114 §6.2)."""
        del self._one_ways[flow.id]
        if kind == ONE_WAY and self._lanes is not None:
            reader = self._one_ways[flow.id] = SessionIdReader(self, flow)
            return reader
        if kind > frames.DECODER_STREAM:
            self.may_idle()
            return None
        if kind == frames.PUSH_STREAM or kind in self._kinds:
            self.fail(frames.STREAM_CREATION_ERROR, b"a second stream of its type, or a push by a client")
            return None
        self._kinds.add(kind)
        found: Incoming
        if kind == frames.CONTROL_STREAM:
            found = ControlStream(self)
        else:
            found = EncoderStream(self) if kind == frames.ENCODER_STREAM else DecoderStream(self)
        self._one_ways[flow.id] = found
        return found

    # -- sessions -------------------------------------------------------------------------------------

    def _has_sessions(self) -> bool:
        return self._lanes is not None and bool(self._lanes.sessions)

    def may_be_session(self, stream_id: int) -> bool:
        """Whether a stream's head is yet to come."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            return not stream.is_over and stream.awaits_head()
        return stream_id >= self.next_id and self._drain_phase != _LAST_SAID

    def release_stream(self, stream: H3Stream) -> None:
        """Forget a stream that is a session's."""
        assert self._lanes is not None
        stream.finish()
        del self.streams[stream.flow.id]
        self._lanes.settled(stream.flow.id)

    def adopt(self, flow: Flow, session_id: int, data: bytes, end: bool) -> None:
        """Give a stream to the session that it names."""
        lanes = self._lanes
        if lanes is None:
            return  # the connection has ended with the turning away of what waited for this stream
        self._one_ways.pop(flow.id, None)
        self._handed_bytes = len(data)
        lanes.adopt(flow, session_id)
        if not self.is_closed and (data or end):
            lanes.data(flow, data, end)
        self.on_stream_over()

    # -- requests -------------------------------------------------------------------------------------

    def on_section(self, stream: H3Stream, block: bytes, end: bool) -> None:
        """Begin a request, or refuse one."""
        assert isinstance(stream, ServerStream)
        if self._drain_phase == _LAST_SAID and stream.flow.id >= self.next_id:
            stream.abandon(frames.REQUEST_REJECTED)  # let in, since it could have been a session's
            self.may_reset()
            self.on_stream_over()
            return
        known = self._memo.get(block)
        if known is not None:
            head: RequestHead | ProxyError = RequestHead(known[0], known[1])
        else:
            head = self._decode(stream, block)
            if self.is_closed:
                return
        if not isinstance(head, ProxyError):
            if end and head.length:  # RFC 9114 §4.1.2
                head = bad_request("a length without a body")
            elif (self.bearer.is_early or not self._is_connected) and not _admit_early(head):
                head = ProxyError(Kind.EARLY_DATA, Source.DOWNSTREAM)
            elif head.shape.upgrade == WEBTRANSPORT:
                assert self._lanes is not None
                self._lanes.begin(stream, head, self._fields, is_late=self._drain_phase != _SERVING)
                return
        if self._lanes is not None:
            self._lanes.settled(stream.flow.id)
        if isinstance(head, ProxyError):
            stream.received_end = end
            self.refuse(stream, head)
            return
        self.earn()
        # The end of a tunnel is told behind its head, as if it had come later: the handshake goes on without it.
        stream.begin(self._on_request(stream), head, end and head.shape.upgrade is None)

    def _decode(self, stream: ServerStream, block: bytes) -> RequestHead | ProxyError:
        decoder = self._decoder
        fields = decoder.decode(block)
        if decoder.error:
            self.fail(frames.QPACK_DECOMPRESSION_FAILED, decoder.error.encode())
            return bad_request(decoder.error)
        stream.is_head_request = (b":method", b"HEAD") in fields  # in case it is refused
        if decoder.is_too_large:
            return bad_request("its fields are too large", Kind.HEAD_TOO_LARGE)
        head = read_request(fields, VERSION, decoder.never_indexed, takes_sessions=self.takes_sessions)
        self._fields = fields
        if isinstance(head, ProxyError) or head.shape.upgrade == WEBTRANSPORT:
            return head
        if len(block) <= MEMO_BLOCK_BYTES:
            if len(self._memo) >= MEMO_BLOCKS:
                self._memo.clear()
            self._memo[block] = (head.shape, head.length)
        return head

    def on_trailers(self, stream: H3Stream, block: bytes) -> None:
        """Read trailers, which end a request."""
        fields = self._decoder.decode(block)
        if self._decoder.error:
            self.fail(frames.QPACK_DECOMPRESSION_FAILED, self._decoder.error.encode())
            return
        trailers = None if self._decoder.is_too_large else read_trailers(fields, REQUEST_TRAILERS)
        if trailers is None:
            self.fail_stream(stream, frames.MESSAGE_ERROR)
        else:
            stream.take_trailers(trailers)

    def refuse(self, stream: ServerStream, error: ProxyError, *, has_body: bool = True) -> None:
        """Answer or reset a request that led to no exchange; without a body to one whose method is not known."""
        self._on_refused(error)
        if error.kind is Kind.BAD_REQUEST:  # malformed: RFC 9114 §4.1.2
            self.fail_stream(stream, frames.MESSAGE_ERROR)
            return
        head, body = local_reply(error, b"no", b"")
        if not has_body:
            head.length = None
        stream.send_head(head, not has_body)
        if has_body:
            stream.send_data(body, True)

    def on_stream_over(self) -> None:
        """Close when draining, and nothing is left to be said."""
        if self._drain_phase != _LAST_SAID or self.active or self.is_closed:
            return
        if not self.streams:
            self._close(frames.NO_ERROR)
        elif not self._is_ending:  # the last answers are on their way, and the close would overtake them
            self._is_ending = True
            self.bearer.touch()  # the flush knows the time

    # -- draining -------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Say that no further requests are served, in two steps, and close after the last one."""
        if self._announce() and self._lanes is not None:
            self._lanes.drain()

    def _announce(self) -> bool:
        if self._drain_phase != _SERVING or self.is_closed:
            return False
        self._drain_phase = _ANNOUNCED
        self._drain_until_s = NEVER  # counted from when it is written
        self._say_goaway(frames.LAST_STREAM)
        self.bearer.touch()
        return True

    def retire(self, now: float) -> None:
        """Drain: what a client sends that has not read the first GOAWAY is served anyway."""
        if self._announce() and self._lanes is not None:
            self._lanes.retire(now)

    def _say_goaway(self, stream_id: int) -> None:
        if self._control is not None:
            self._control.send(frames.goaway(stream_id), False)

    def _say_last(self) -> None:
        self._drain_phase = _LAST_SAID
        self._say_goaway(self.next_id)
        if self.streams:
            self.on_stream_over()
        else:  # the close would overtake it, and what the client sends meanwhile would not be known to be unserved
            self._is_ending = True
            self.bearer.touch()

    def cut(self, error: ProxyError) -> None:
        """End now: every exchange is told, and answers or resets; what it said is delivered, if it is taken."""
        if self.is_closed:
            return
        if self._drain_phase != _LAST_SAID:
            self._drain_phase = _LAST_SAID
            self._say_goaway(self.next_id)
        for stream in list(self.streams.values()):
            assert isinstance(stream, ServerStream)
            stream.lose(error)
            if stream.sent_end:
                stream.finish()  # the other half of a tunnel is not waited for
            else:
                stream.abandon(frames.REQUEST_REJECTED)  # it was never taken up
        self.on_stream_over()

    def _close(self, code: int) -> None:
        self.is_closed = True
        self.bearer.close(code)
        self.lose_streams()

    def connection_lost(self, code: int, reason: str, by_peer: bool) -> None:
        """Cancel every exchange."""
        self.now = self.bearer.now
        self.is_closed = True
        self.lose_streams()

    def lose_streams(self) -> None:
        """Tell everybody that the client is gone."""
        super().lose_streams()
        self._one_ways.clear()
        lanes = self._lanes
        if lanes is not None:
            self._lanes = None  # it leads back here
            lanes.lost()

    # -- flow and time --------------------------------------------------------------------------------

    def before_send(self, now: float) -> None:
        """Deliver what was released, look at what was sent, begin a drain's round trip."""
        if self.is_closed:
            return
        self.now = now
        if self._lanes is not None:
            self._lanes.before_send(now)
        self.begin_flush(now)
        if self._drain_phase == _ANNOUNCED and self._drain_until_s == NEVER:
            self._drain_until_s = now + DRAIN_ROUND_TRIP_S
            self.look_by(self._drain_until_s)
        if self._is_ending and self._ending is None:
            self._ending = Ending(now, self._limits.linger_s if self.streams else DRAIN_ROUND_TRIP_S)
            self.look_by(self._ending.until_s)

    def next_deadline(self) -> float | None:
        """When to look at deadlines again: never later than the first of them."""
        if self.is_closed:
            return None
        return self.look_s if self._lanes is None else min(self.look_s, self._lanes.next_deadline())

    def handle_deadline(self, now: float) -> None:
        """Act on whichever deadlines passed, and find the next."""
        self.now = now
        if self.is_closed:
            return
        if self._drain_phase == _ANNOUNCED and self._drain_until_s <= now:
            self._say_last()
        self.look_s = NEVER
        first = NEVER if self._lanes is None else self._lanes.handle_deadline(now)
        for stream in list(self.streams.values()):
            assert isinstance(stream, ServerStream)
            first = min(first, self._look_at(stream, now))
        self.look_s = min(first, self.look_s, self._look_at_connection(now, is_quiet=first >= NEVER))

    def _look_at(self, stream: ServerStream, now: float) -> float:
        """Act on one stream's deadlines; return its next."""
        stall_s = self._limits.stall_s
        if stream.section_since_s and stream.section_since_s + self.head_s <= now:
            error = ProxyError(Kind.REQUEST_TIMEOUT, Source.DOWNSTREAM)
            if stream.receiver is None:
                self.refuse(stream, error, has_body=False)  # its method may not be known
            elif self.may_reset():
                stream.abandon(frames.REQUEST_CANCELLED)
                stream.lose(error)
                self.on_stream_over()
        elif stream.is_stalled(now, stall_s):
            stream.flow.reset(frames.REQUEST_CANCELLED)  # whatever was said before, nobody takes it
            stream.stuck_since_s = 0.0
            stream.abandon(frames.REQUEST_CANCELLED)
            stream.lose(ProxyError(Kind.CLIENT_STALLED, Source.DOWNSTREAM))
            self.on_stream_over()
        elif not stream.is_over and stream.moved_s + stream.idle_s <= now:
            stream.moved_s = now
            receiver = stream.receiver
            if receiver is not None:
                receiver.request_reset(ProxyError(Kind.IDLE_TIMEOUT, Source.ROUTER))
            else:
                stream.abandon(frames.REQUEST_CANCELLED)
                self.on_stream_over()
        return stream.next_deadline(stall_s)

    def _look_at_connection(self, now: float, *, is_quiet: bool) -> float:
        """Close a connection that has ended, or that nobody uses; return when to ask again."""
        limits = self._limits
        ending = self._ending
        if self.is_closed:
            return NEVER
        if ending is not None:
            if ending.until_s > now or ending.goes_on(
                self.bearer.unsent_bytes(), now, limits.linger_s, limits.stall_s
            ):
                return ending.until_s
            self._close(frames.NO_ERROR)
            return NEVER
        first = self._drain_until_s if self._drain_phase == _ANNOUNCED else NEVER
        if self.active or not is_quiet:
            return first
        idle_at = self.last_moved_s + (limits.keep_alive_s if self.saw_settings else limits.head_s)
        if idle_at > now:
            return min(first, idle_at)
        self.drain()  # in two steps, since a request may be on its way
        return first


def _admit_early(head: RequestHead) -> bool:
    """Whether a request that may be a replay can be served; says so to the replica (RFC 8470 §5.1)."""
    if head.shape.method not in _REPEATABLE:
        return False
    for name, _ in head.shape.fields:
        if name == b"early-data":
            return True  # a proxy's before us, which may not be taken out; one is as good as two
    head.added.append(_EARLY)
    return True
