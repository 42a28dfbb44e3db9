"""One session: to HTTP/3 the receiver of a CONNECT, to its application a bearer of streams and datagrams.

    CONNECT --200--> OPEN --CLOSE capsule, FIN, reset of the CONNECT stream, from either side--> OVER

The 200 is sent at once, since a browser opens no stream before it. Streams are the connection's own and are handed
on as they are: ids are unique and say the direction, but not which was a session's first. When the session is over
its streams are reset (draft-07 §5); its application hears nothing more, and finds that it can send nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.errors import Kind
from router.http import ResponseHead, ResponseShape
from router.stream import RequestReceiver
from router.transport.codec.h3 import frames
from router.transport.codec.h3.limits import HALF_OPEN_S
from router.transport.codec.quic.seam import Bearer
from router.transport.codec.quic.varint import varint
from router.transport.codec.webtransport import codes
from router.transport.codec.webtransport.capsules import CapsuleReader
from router.transport.codec.webtransport.host import Asked
from router.transport.codec.webtransport.limits import MAX_REASON_BYTES

if TYPE_CHECKING:
    from router.errors import ProxyError
    from router.http import Headers, RequestHead
    from router.transport.codec.h3.server_stream import ServerStream
    from router.transport.codec.quic.seam import Application, Flow
    from router.transport.codec.webtransport.lanes import Lanes

_DRAFT_ASKED: Final = b"sec-webtransport-http3-draft02"
_DRAFT: Final = (b"sec-webtransport-http3-draft", b"draft02")
_AVAILABLE: Final = b"wt-available-protocols"
_OURS: Final = frozenset((_DRAFT_ASKED, _AVAILABLE, b"host", b"capsule-protocol"))


class WebTransportSession(RequestReceiver, Bearer):
    """See the module. `id` is that of the CONNECT's stream."""

    __slots__ = (
        "_asked",
        "_capsules",
        "_flows",
        "_lanes",
        "_quarter",
        "_stream",
        "_terms",
        "alpn",
        "application",
        "id",
        "is_early",
        "is_over",
        "is_server",
        "now",
    )

    def __init__(self, lanes: Lanes, stream: ServerStream, fields: Headers, now: float) -> None:
        self._lanes = lanes
        self._stream = stream
        self._capsules = CapsuleReader(self)
        self._flows: dict[int, Flow] = {}
        self.id = stream.flow.id
        self._quarter = varint(self.id >> 2)  # what its datagrams begin with (RFC 9297 §2.1)
        self._terms = _agree(fields, lanes.host.protocol())
        kept = [field for field in fields if field[0][:1] != b":" and field[0] not in _OURS]
        self._asked = Asked(b"", b"/", kept)
        self.application: Application | None = None
        self.is_over = False
        self.now = now
        self.is_server = True
        self.is_early = False  # a CONNECT that may be a replay is refused
        self.alpn = "h3"

    # -- the CONNECT, from HTTP/3 ---------------------------------------------------------------------

    def request_head(self, head: RequestHead, end: bool) -> None:
        """Open."""
        shape = head.shape
        asked = self._asked
        asked.authority = shape.authority
        asked.path = shape.path
        answer = ResponseHead(ResponseShape(200))
        answer.shape.accepts_tunnel = True
        answer.added += self._terms
        self._stream.send_head(answer, False)
        self.application = application = self._lanes.host.begin_session(self, asked, self.now)
        application.connected()
        self._lanes.opened(self)

    def request_data(self, data: bytes, end: bool) -> None:
        """Read capsules; an end without one is a close with code 0 (draft-07 §5)."""
        capsules = self._capsules
        capsules.receive(data, end)
        if capsules.is_malformed:
            self._lanes.server.fail_stream(self._stream, frames.MESSAGE_ERROR)
        elif end:
            self.closed_by_peer(0, "")

    def request_trailers(self, trailers: Headers) -> None:
        """There can be none: HEADERS in a tunnel are a fault."""
        raise AssertionError

    def request_reset(self, error: ProxyError) -> None:
        """End: the client is gone, or is told that we are."""
        application = self.application
        if application is None:
            self._stream.reset(error)  # it has not ended its side in time
        elif error.kind is Kind.CLIENT_GONE:
            self._end()
            application.connection_lost(0, "", True)
        else:
            self.set_now()
            application.cut(error)

    def pause_response(self) -> None:
        """Nothing: a session says some hundred bytes here in its life."""

    def resume_response(self) -> None:
        """Likewise."""

    def closed_by_peer(self, code: int, reason: str) -> None:
        """End as the client says."""
        application = self.application
        if application is None:
            return
        self.set_now()
        self._end()
        self._stream.send_data(b"", True)
        self._await_end()
        application.connection_lost(code, reason, True)

    def may_idle(self) -> bool:
        """Count a capsule that means nothing."""
        return self._lanes.server.may_idle()

    # -- streams and datagrams, from the connection ---------------------------------------------------

    def set_now(self) -> None:
        """Take the time of the callback under way; it shows that the session is in use."""
        self._stream.moved_s = self.now = self._lanes.server.now

    def take_stream(self, flow: Flow) -> None:
        """Take a stream that the client opened in this session."""
        self._flows[flow.id] = flow
        application = self.application
        if application is not None:
            self.set_now()
            application.stream_opened(flow)

    def data(self, flow: Flow, data: bytes, end: bool) -> None:
        """Hand on bytes, whose credit is the application's to give."""
        application = self.application
        if application is not None:
            self.set_now()
            application.stream_data(flow, data, end)

    def stream_reset(self, flow: Flow, code: int) -> None:
        """Hand on that the client gave a stream up."""
        application = self.application
        if application is not None:
            self.set_now()
            application.stream_reset(flow, max(0, codes.from_http3(code)))

    def stream_stopped(self, flow: Flow, code: int) -> None:
        """Hand on that the client reads a stream no more."""
        application = self.application
        if application is not None:
            self.set_now()
            application.stream_stopped(flow, max(0, codes.from_http3(code)))

    def stream_drained(self, flow: Flow) -> None:
        """Hand on that there is room again."""
        application = self.application
        if application is not None:
            application.stream_drained(flow)

    def stream_gone(self, flow: Flow) -> None:
        """Hand on that a stream is over."""
        self._flows.pop(flow.id, None)
        application = self.application
        if application is not None:
            application.stream_gone(flow)

    def datagram(self, data: bytes) -> None:
        """Hand on a datagram."""
        application = self.application
        if application is not None:
            self.set_now()
            application.datagram(data)

    # -- the bearer, for the application --------------------------------------------------------------

    def open_stream(self, *, unidirectional: bool) -> Flow | None:
        """Open a stream of the session."""
        lanes = self._lanes
        if self.is_over:
            return None
        flow = lanes.server.bearer.open_stream(unidirectional=unidirectional)
        if flow is None:
            return None
        flow.send(varint(codes.ONE_WAY if unidirectional else codes.TWO_WAY) + varint(self.id), False)
        self._flows[flow.id] = flow
        lanes.by_flow[flow.id] = self
        return flow

    def send_datagram(self, data: bytes) -> bool:
        """Send a datagram, if the client takes any (RFC 9297 §2.1.1)."""
        server = self._lanes.server
        if self.is_over or not server.peer_takes_datagrams:
            return False
        return server.bearer.send_datagram(self._quarter + data)

    def waiting_datagrams(self) -> int:
        """Return how many were not sent yet, of all sessions."""
        return self._lanes.server.bearer.waiting_datagrams()

    def max_datagram_bytes(self) -> int:
        """Return the largest that the path takes now."""
        server = self._lanes.server
        if self.is_over or not server.peer_takes_datagrams:
            return 0
        return max(0, server.bearer.max_datagram_bytes() - len(self._quarter))

    def close(self, code: int, reason: bytes = b"") -> None:
        """End with a code; what streams have not delivered is lost, as with a connection."""
        if self.is_over:
            return
        self._end()
        text = reason[:MAX_REASON_BYTES].decode("utf-8", "ignore").encode()
        payload = (code & codes.MAX_CODE).to_bytes(4, "big") + text
        self._stream.send_data(codes.capsule(codes.CLOSE_SESSION, payload), True)
        self._await_end()

    def touch(self) -> None:
        """Be flushed at the end of this tick."""
        self._lanes.server.bearer.touch()

    def watch(self) -> None:
        """Have deadlines looked at."""
        self._lanes.server.bearer.watch()

    def unsent_bytes(self) -> int:
        """Return what of the session's streams waits."""
        return sum([flow.unsent_bytes for flow in self._flows.values()])

    # -- times and ends -------------------------------------------------------------------------------

    def before_send(self, now: float) -> None:
        """Flush the application."""
        self.now = now
        if self.application is not None:
            self.application.before_send(now)

    def drain(self) -> None:
        """Tell both that the end is near; whoever speaks here says when."""
        if self.application is not None:
            self._stream.send_data(codes.capsule(codes.DRAIN_SESSION, b""), False)
            self.application.drain()

    def retire(self, now: float) -> None:
        """Likewise, while what comes is still served."""
        if self.application is not None:
            self._stream.send_data(codes.capsule(codes.DRAIN_SESSION, b""), False)
            self.application.retire(now)

    def _await_end(self) -> None:
        """Give the client a moment to end its side."""
        stream = self._stream
        if not stream.is_over:
            stream.moved_s = self._lanes.server.now
            stream.limit_idle(HALF_OPEN_S)

    def _end(self) -> None:
        """Be over: nothing is handed on any more, and streams are given up."""
        self.is_over = True
        self.application = None
        self._capsules.let_go()
        self._lanes.over(self)
        flows, self._flows = self._flows, {}
        for flow in flows.values():
            flow.stop(codes.SESSION_GONE)
            flow.reset(codes.SESSION_GONE)


def _agree(fields: Headers, protocol: bytes) -> Headers:
    """Return what the 200 says of draft and protocol: what is asked for and spoken (draft-07 §3.4)."""
    terms: Headers = []
    for name, value in fields:
        if name == _DRAFT_ASKED:
            terms.append(_DRAFT)
        elif name == _AVAILABLE and b'"' + protocol + b'"' in [item.strip() for item in value.split(b",")]:
            terms.append((b"wt-protocol", b'"' + protocol + b'"'))
    return terms
