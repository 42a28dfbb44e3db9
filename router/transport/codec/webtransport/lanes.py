"""All of WebTransport on one connection: its sessions, whose each stream is, and what overtook its CONNECT.

    a stream or datagram names a session's id --> open: it is the session's
                                              --> may yet be one: it waits, not credited, for a while
                                              --> gone, or a request: turned away

An id that no stream of the client can have, now or soon, is the connection's end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.deadlines import NEVER
from router.transport.codec.h3 import frames
from router.transport.codec.h3.reader import Incoming
from router.transport.codec.quic.limits import MAX_STREAMS
from router.transport.codec.webtransport import codes
from router.transport.codec.webtransport.limits import (
    MAX_SESSIONS,
    MAX_WAITING_BYTES,
    MAX_WAITING_DATAGRAMS,
    MAX_WAITING_STREAMS,
)
from router.transport.codec.webtransport.session import WebTransportSession

if TYPE_CHECKING:
    from router.http import Headers, RequestHead
    from router.transport.codec.h3.server import H3Server
    from router.transport.codec.h3.server_stream import ServerStream
    from router.transport.codec.quic.seam import Flow
    from router.transport.codec.webtransport.host import SessionHost

_TWO_BITS: Final = 0x3
_MAX_QUARTER: Final = (1 << 60) - 1  # RFC 9297 §2.1
_STEP: Final = 4  # between the ids of a client's two-way streams
_MAX_INTEGER_BYTES: Final = 8


class Waiting:
    """A stream that waits for its session, with what it brought."""

    __slots__ = ("data", "end", "flow", "is_gone", "reset_code", "session_id", "until_s")

    def __init__(self, flow: Flow, session_id: int, until_s: float) -> None:
        self.flow = flow
        self.session_id = session_id
        self.until_s = until_s
        self.data = bytearray()
        self.end = False
        self.is_gone = False  # it is whole: the bearer is through with it
        self.reset_code = -1


class Lanes:
    """See the module. `by_flow`: open streams of sessions, until the bearer is through with them."""

    __slots__ = (
        "_datagrams",
        "_datagrams_until_s",
        "_waiting_bytes",
        "by_flow",
        "host",
        "server",
        "sessions",
        "waiting",
    )

    def __init__(self, server: H3Server, host: SessionHost) -> None:
        self.server = server
        self.host = host
        self.sessions: dict[int, WebTransportSession] = {}
        self.by_flow: dict[int, WebTransportSession] = {}
        self.waiting: dict[int, Waiting] = {}  # by the stream's id
        self._waiting_bytes = 0
        self._datagrams: list[tuple[int, bytes]] = []  # by session's id
        self._datagrams_until_s = NEVER

    # -- sessions -------------------------------------------------------------------------------------

    def begin(self, stream: ServerStream, head: RequestHead, fields: Headers, *, is_late: bool) -> None:
        """Open a session for a CONNECT, or refuse it. `is_late`: the connection drains."""
        server = self.server
        if len(self.sessions) >= MAX_SESSIONS:  # draft-07 §3.1
            stream.abandon(frames.REQUEST_REJECTED)
            self.settled(stream.flow.id)
            server.may_reset()
            server.on_stream_over()
            return
        server.earn()
        session = self.sessions[stream.flow.id] = WebTransportSession(self, stream, fields, server.now)
        stream.begin(session, head, False)
        if is_late:
            session.retire(server.now)

    def opened(self, session: WebTransportSession) -> None:
        """Hand over what came before the CONNECT."""
        for waiting in [waiting for waiting in self.waiting.values() if waiting.session_id == session.id]:
            if session.is_over:
                self._reject(waiting.flow, codes.SESSION_GONE)
                continue
            flow = waiting.flow
            self._forget(waiting)
            self.by_flow[flow.id] = session
            session.take_stream(flow)
            if waiting.data or waiting.end:
                session.data(flow, bytes(waiting.data), waiting.end)
            if waiting.reset_code >= 0:
                session.stream_reset(flow, waiting.reset_code)
            if waiting.is_gone:
                self.gone(flow)
        kept, self._datagrams = self._datagrams, []
        for session_id, data in kept:
            if session_id == session.id:
                session.datagram(data)
            else:
                self._datagrams.append((session_id, data))

    def over(self, session: WebTransportSession) -> None:
        """Learn that a session is over."""
        if self.sessions.pop(session.id, None) is not None:
            self.host.session_over()

    def settled(self, stream_id: int) -> None:
        """Learn that a stream is no CONNECT of a session: turn away what waited for it."""
        if self.waiting:
            for waiting in [waiting for waiting in self.waiting.values() if waiting.session_id == stream_id]:
                self._reject(waiting.flow, codes.BUFFERED_STREAM_REJECTED)
        if self._datagrams:
            self._datagrams = [kept for kept in self._datagrams if kept[0] != stream_id]

    # -- streams --------------------------------------------------------------------------------------

    def adopt(self, flow: Flow, session_id: int) -> None:
        """Take a stream of the client that names its session; its bytes follow."""
        server = self.server
        if session_id & _TWO_BITS or self._is_impossible(session_id):
            server.fail(frames.ID_ERROR, b"an id that no session can have")
            return
        session = self.sessions.get(session_id)
        if session is not None:
            self.by_flow[flow.id] = session
            session.take_stream(flow)
        elif not server.may_be_session(session_id):
            is_request = session_id in server.streams and not server.streams[session_id].is_session
            self._reject(flow, codes.BUFFERED_STREAM_REJECTED if is_request else codes.SESSION_GONE)
        elif len(self.waiting) >= MAX_WAITING_STREAMS:
            self._reject(flow, codes.BUFFERED_STREAM_REJECTED)
        else:
            until_s = server.now + server.head_s
            self.waiting[flow.id] = Waiting(flow, session_id, until_s)
            server.look_by(until_s)

    def data(self, flow: Flow, data: bytes, end: bool) -> bool:
        """Take bytes; False if the stream is no session's."""
        session = self.by_flow.get(flow.id)
        if session is not None:
            session.data(flow, data, end)
            return True
        waiting = self.waiting.get(flow.id)
        if waiting is None:
            return False
        self._waiting_bytes += len(data)
        waiting.data += data
        waiting.end = end
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._reject(flow, codes.BUFFERED_STREAM_REJECTED)
        return True

    def reset(self, flow: Flow, code: int) -> bool:
        """Take a reset, likewise."""
        session = self.by_flow.get(flow.id)
        if session is not None:
            session.stream_reset(flow, code)
            return True
        waiting = self.waiting.get(flow.id)
        if waiting is None:
            return False
        waiting.reset_code = code
        if not flow.id & 2:
            return True  # a session's fault, if there is one
        self._forget(waiting)  # it came to nothing
        return self.server.may_reset() or True

    def stopped(self, flow: Flow, code: int) -> bool:
        """Take a STOP_SENDING, likewise."""
        session = self.by_flow.get(flow.id)
        if session is not None:
            session.stream_stopped(flow, code)
            return True
        waiting = self.waiting.get(flow.id)
        if waiting is not None:
            waiting.reset_code = code
        return waiting is not None

    def drained(self, flow: Flow) -> None:
        """Tell whose it is that there is room again."""
        session = self.by_flow.get(flow.id)
        if session is not None:
            session.stream_drained(flow)

    def gone(self, flow: Flow) -> None:
        """Forget a stream."""
        session = self.by_flow.pop(flow.id, None)
        if session is not None:
            session.stream_gone(flow)
        waiting = self.waiting.get(flow.id)
        if waiting is not None:
            waiting.is_gone = True

    def _reject(self, flow: Flow, code: int) -> None:
        waiting = self.waiting.get(flow.id)
        if waiting is not None:
            self._forget(waiting)
        flow.stop(code)
        if not flow.id & 2:
            flow.reset(code)
        self.host.stream_rejected()
        self.server.may_reset()

    def _forget(self, waiting: Waiting) -> None:
        if self.waiting.pop(waiting.flow.id, None) is not None:
            self._waiting_bytes -= len(waiting.data)

    def _is_impossible(self, session_id: int) -> bool:
        """Whether a client's stream with this id would be beyond what it may open."""
        return session_id >= self.server.next_id + _STEP * MAX_STREAMS

    # -- datagrams ------------------------------------------------------------------------------------

    def datagram(self, data: bytes) -> None:
        """Hand a datagram to its session (RFC 9297 §2.1)."""
        server = self.server
        quarter = frames.read_varint(data, 0)
        if not 0 <= quarter <= _MAX_QUARTER:
            server.fail(codes.DATAGRAM_ERROR, b"a datagram without the id of a stream")
            return
        session_id = quarter * _STEP
        session = self.sessions.get(session_id)
        if session is not None:
            session.datagram(data[frames.varint_bytes(data[0]) :])
        elif self._is_impossible(session_id):
            server.fail(frames.ID_ERROR, b"a datagram of a stream that cannot be")
        elif server.may_idle() and server.may_be_session(session_id):
            if len(self._datagrams) >= MAX_WAITING_DATAGRAMS:
                return
            self._datagrams.append((session_id, data[frames.varint_bytes(data[0]) :]))
            self._datagrams_until_s = server.now + server.head_s
            server.look_by(self._datagrams_until_s)

    # -- the connection's times -----------------------------------------------------------------------

    def streams_available(self) -> None:
        """Tell every session."""
        for session in list(self.sessions.values()):
            if session.application is not None:
                session.set_now()
                session.application.streams_available()

    def before_send(self, now: float) -> None:
        """Flush every session."""
        for session in list(self.sessions.values()):
            session.before_send(now)

    def next_deadline(self) -> float:
        """When the first session wants to be called."""
        first = NEVER
        for session in self.sessions.values():
            due = session.application.next_deadline() if session.application is not None else None
            if due is not None and due < first:
                first = due
        return first

    def handle_deadline(self, now: float) -> float:
        """Act on sessions' deadlines; turn away what waited too long; return until when the rest may."""
        for session in list(self.sessions.values()):
            application = session.application
            due = application.next_deadline() if application is not None else None
            if application is not None and due is not None and due <= now:
                session.now = now
                application.handle_deadline(now)
        first = NEVER
        for waiting in list(self.waiting.values()):
            if waiting.until_s <= now:
                self._reject(waiting.flow, codes.BUFFERED_STREAM_REJECTED)
            else:
                first = min(first, waiting.until_s)
        if not self._datagrams:
            return first
        if self._datagrams_until_s <= now:
            self._datagrams.clear()
            return first
        return min(first, self._datagrams_until_s)

    def drain(self) -> None:
        """Tell every session."""
        for session in list(self.sessions.values()):
            session.drain()

    def retire(self, now: float) -> None:
        """Likewise."""
        for session in list(self.sessions.values()):
            session.retire(now)

    def lost(self) -> None:
        """Learn that the connection is over, and all sessions with it by now."""
        self.by_flow.clear()
        self.waiting.clear()
        self._waiting_bytes = 0
        self._datagrams.clear()


class SessionIdReader(Incoming):
    """A one-way stream of a session, whose id is not whole yet. A stream that ends before is no fault."""

    __slots__ = ("_flow", "_head", "_server")

    def __init__(self, server: H3Server, flow: Flow) -> None:
        self._server = server
        self._flow = flow
        self._head = b""

    def receive(self, data: bytes, end: bool) -> None:
        """Read the id, then hand the stream over."""
        before = len(self._head)
        head = self._head + data[: _MAX_INTEGER_BYTES - before]
        session_id = frames.read_varint(head, 0)
        if session_id < 0:
            self._head = head
            return
        used = frames.varint_bytes(head[0]) - before
        self._server.adopt(self._flow, session_id, data[used:], end)

    def peer_reset(self, code: int) -> None:
        """It meant nothing yet."""

    def peer_stopped(self, code: int) -> None:
        """We say nothing on it."""
