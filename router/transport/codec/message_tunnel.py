"""A WebSocket to a replica, opened from inside: for protocols whose messages a replica takes as WebSocket's.

The exchange sees the client's side of one WebSocket request; the protocol sees messages. What the replica does not
take yet stays with the protocol: it asks `is_full` before it sends, and hears `tunnel_ready` when there is room.
A replica whose sidecar speaks robot sessions itself is reached by lanes instead: the head of its answer says so.

    CONNECTING --head 200--> OPEN --close frame, end, reset--> OVER
        +-----------any other head, reset---------------------->
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import trait

from router.errors import WIRE, Kind, ProxyError, Source
from router.stream import DownstreamStream
from router.transport.codec import messages
from router.transport.codec.framing import LaneFraming, WebSocketFraming
from router.transport.codec.head import read_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.continuity import Continuity
    from router.http import Headers, RequestHead, ResponseHead
    from router.stream import RequestReceiver
    from router.transport.codec.framing import Framing

MAX_BODY_BYTES: Final = 4_096
"""Of a refusal's body that is read; the message in it is shown to the client."""

MAX_ANSWERS: Final = 16
"""Pongs that wait for a replica that reads nothing."""

_CONNECTING: Final = 0
_OPEN: Final = 1
_OVER: Final = 2
_PSEUDO: Final = (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https")
_GONE: Final = ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM)
_MAY_BE_SAID: Final = frozenset((*range(1_000, 1_004), *range(1_007, 1_015), *range(3_000, 5_000)))  # RFC 6455 §7.4
_CLOSE_OF_STATUS: Final = {401: 1008, 403: 1008, 404: 1008, 410: 1008, 413: 1009, 429: 1013, 503: 1013}


@trait
class TunnelOwner:
    """The protocol."""

    __slots__ = ()

    def tunnel_open(self, head: ResponseHead) -> None:
        """A replica took the WebSocket."""
        raise NotImplementedError

    def tunnel_message(self, data: bytes, is_text: bool, lane: int) -> None:
        """The replica sent a message; `lane` as in `framing`."""
        raise NotImplementedError

    def tunnel_refused(self, status: int, code: str, retry_after_s: int, body: bytes) -> None:
        """There will be none but an HTTP answer: ours, with `code` as `x-router-error`, or the replica's."""
        raise NotImplementedError

    def tunnel_closed(self, code: int, reason: str) -> None:
        """It is over, with a WebSocket close code. The last word."""
        raise NotImplementedError

    def tunnel_ready(self) -> None:
        """The replica takes messages again."""
        raise NotImplementedError

    def touch(self) -> None:
        """Have `MessageTunnel.flush` called at the end of this tick."""
        raise NotImplementedError


@trait
class Tunnel:
    """The way to a replica, as the protocol sees it: a WebSocket, or requests one after another."""

    __slots__ = ()

    failure: str  # the kind of error that ended it; empty if the replica said goodbye

    def open(
        self,
        on_request: Callable[[DownstreamStream], RequestReceiver],
        authority: bytes,
        path: bytes,
        headers: Headers,
        version: bytes,
    ) -> ProxyError | None:
        """Begin; an error if these make no request. `headers` are lower-case, as HTTP has them."""
        raise NotImplementedError

    def is_full(self) -> bool:
        """Whether a message would have to wait: the replica is not there yet, or takes no more for now."""
        raise NotImplementedError

    def send(self, data: bytes, *, is_text: bool = False, is_state: bool = False, deadline: int = 0) -> None:
        """Send one message; only while it is not full.

        What follows is for a way that has lanes: `is_state`: a newer one may take its place; `deadline`: after it,
        by our clock in microseconds, it is of no use (0: always of use).
        """
        raise NotImplementedError

    def close(self, code: int, reason: str = "", *, waits: bool = True) -> None:
        """End it. The owner hears nothing more."""
        raise NotImplementedError

    def abandon(self) -> None:
        """End it without a word, and without waiting for one: the replica is free for others at once."""
        raise NotImplementedError

    def pause(self) -> None:
        """Have the replica stop sending: the client takes no more for now."""
        raise NotImplementedError

    def resume(self) -> None:
        """Let it go on."""
        raise NotImplementedError

    def replica_host(self) -> str:
        """Return the replica's host, as the table has it; empty while there is none."""
        raise NotImplementedError

    def flush(self) -> None:
        """Send what was held; at the end of a tick."""
        raise NotImplementedError

    def takes_datagrams(self) -> bool:
        """Whether it is open and leads to a sidecar that wants them."""
        return False

    def send_datagram(self, data: bytes) -> bool:
        """Send what may be lost, full or not; only if it `takes_datagrams`. False: it was not taken."""
        return False


class MessageTunnel(DownstreamStream, Tunnel):
    """One WebSocket."""

    __slots__ = (
        "_body",
        "_code",
        "_continuity",
        "_ends",
        "_framing",
        "_holds",
        "_owner",
        "_receiver",
        "_retry_after_s",
        "_state",
        "_status",
        "_takes_datagrams",
        "_waiting",
        "failure",
        "idle_s",
    )

    def __init__(
        self, owner: TunnelOwner, max_message_bytes: int, continuity: Continuity | None = None
    ) -> None:
        """`continuity`: of the session that it is for, if it may find back to its replica."""
        self._owner = owner
        self._continuity = continuity
        self._framing: Framing = WebSocketFraming(max_message_bytes)
        self._takes_datagrams = False
        self._receiver: RequestReceiver | None = None
        self._state = _CONNECTING
        self._holds = 0
        self._waiting: list[bytes] = []  # for the flush, since an exchange is not called back: pongs, the close
        self._ends = False  # behind them
        self._status = 0
        self._code = ""
        self._retry_after_s = 0
        self._body = b""
        self.idle_s = 0.0
        self.failure = ""  # the kind of error that ended it; empty if the replica said goodbye

    def open(
        self,
        on_request: Callable[[DownstreamStream], RequestReceiver],
        authority: bytes,
        path: bytes,
        headers: Headers,
        version: bytes,
    ) -> ProxyError | None:
        """Begin the exchange; an error if these make no request. `headers` are lower-case, as HTTP has them."""
        fields = [*_PSEUDO, (b":authority", authority), (b":path", path), (b"sec-websocket-version", b"13")]
        head: RequestHead | ProxyError = read_request(fields + headers, version)
        if isinstance(head, ProxyError):
            return head
        head.continuity = self._continuity
        self._receiver = receiver = on_request(self)
        receiver.request_head(head, False)
        return None

    # -- for the protocol -----------------------------------------------------------------------------

    def is_full(self) -> bool:
        """Whether a message would have to wait: the replica is not there yet, or takes no more for now."""
        return self._state != _OPEN or self._holds != 0 or bool(self._waiting)

    def send(self, data: bytes, *, is_text: bool = False, is_state: bool = False, deadline: int = 0) -> None:
        """Send one message; only while it is not full."""
        if self._receiver is not None:
            first, rest = self._framing.write(data, is_text, is_state, deadline)
            self._receiver.request_data(first, False)
            if rest and self._receiver is not None:
                self._receiver.request_data(rest, False)

    def close(self, code: int, reason: str = "", *, waits: bool = True) -> None:
        """End it: with a close frame if it is open. The owner hears nothing more.

        `waits`: a replica that said goodbye first gets its answer; else one that does not take it is let go now.
        """
        if self._ends and waits:
            return  # the answer to the replica's close is on its way
        state = self._state
        self._state = _OVER
        receiver = self._receiver
        self._receiver = None
        if receiver is None:
            return
        if state == _OPEN and not self._holds and not self._waiting:
            receiver.request_data(self._framing.write_close(code, reason), True)
        else:
            receiver.request_reset(_GONE)

    def abandon(self) -> None:
        """End it without a word: a close frame's answer would be waited for."""
        self._state = _OVER
        self._waiting.clear()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.request_reset(_GONE)

    def replica_host(self) -> str:
        """Return the replica's host, as the table has it; empty while there is none."""
        return "" if self._receiver is None else self._receiver.replica_host()

    def takes_datagrams(self) -> bool:
        """Whether it is open and leads to a sidecar that wants them."""
        return self._takes_datagrams and self._state == _OPEN

    def send_datagram(self, data: bytes) -> bool:
        """Send what may be lost, full or not; only if it `takes_datagrams`. False: it was not taken."""
        return self._receiver is not None and self._receiver.request_datagram(data)

    def pause(self) -> None:
        """Have the replica stop sending: the client takes no more for now."""
        if self._receiver is not None:
            self._receiver.pause_response()

    def resume(self) -> None:
        """Let it go on."""
        if self._receiver is not None:
            self._receiver.resume_response()

    def flush(self) -> None:
        """Send what was held; at the end of a tick."""
        receiver = self._receiver
        if self._holds or receiver is None or self._state == _CONNECTING:
            return
        waiting = self._waiting
        while waiting and not self._holds and self._receiver is receiver:
            frame = waiting.pop(0)
            receiver.request_data(frame, self._ends and not waiting)
        if self._ends and not waiting:
            self._receiver = None
        elif not self._holds and self._state == _OPEN:
            self._owner.tunnel_ready()

    def _answer(self, frame: bytes) -> None:
        if len(self._waiting) < MAX_ANSWERS:
            self._waiting.append(frame)
            self._owner.touch()

    # -- the stream, for the exchange -----------------------------------------------------------------

    def limit_idle(self, idle_s: float) -> None:
        """Keep the limit for the protocol, which knows what moves."""
        self.idle_s = idle_s

    def send_informational(self, head: ResponseHead) -> None:
        """Nobody waits for it."""

    def send_head(self, head: ResponseHead, end: bool) -> None:
        """Open, or learn why not."""
        shape = head.shape
        if shape.accepts_tunnel:
            self._state = _OPEN
            if shape.has_lanes:
                self._takes_datagrams = shape.takes_datagrams
                self._framing = LaneFraming()
            self._owner.tunnel_open(head)
            self._owner.touch()
            return
        self._status = shape.status
        self._code, self._retry_after_s = read_refusal(head)
        if end:
            self._refuse()

    def send_data(self, data: bytes, end: bool) -> None:
        """Take frames, or the body of a refusal."""
        if self._state == _CONNECTING:
            self._body = (self._body + data)[:MAX_BODY_BYTES]
            if end:
                self._refuse()
            return
        for message in self._framing.read(data):
            if self._state != _OPEN:
                return
            kind = message.kind
            if kind <= messages.BINARY:
                self._owner.tunnel_message(message.data, kind == messages.TEXT, message.lane)
            elif kind == messages.PING:
                self._answer(messages.write_frame(messages.PONG, message.data))
            elif kind == messages.CLOSE:
                self._end(message.code, message.data.decode("utf-8", "replace"))
        if self._state == _OPEN and self._framing.fault:
            self._end(self._framing.fault, Kind.UPSTREAM_PROTOCOL.value)
        elif self._state == _OPEN and end:
            self.failure = Kind.UPSTREAM_CLOSED.value
            self._end(1_006, self.failure)

    def send_trailers(self, trailers: Headers) -> None:
        """A refusal's end, or a tunnel's."""
        self.send_data(b"", True)

    def reset(self, error: ProxyError) -> None:
        """Learn that it failed."""
        self._receiver = None
        if self._state == _OVER:
            return
        was_open = self._state == _OPEN
        self._state = _OVER
        wire = WIRE[error.kind]
        if was_open:
            self.failure = error.kind.value
            self._owner.tunnel_closed(wire.close_code, error.kind.value)
        else:
            after_s = error.retry_after_s or wire.retry_after_s
            self._owner.tunnel_refused(wire.status, error.kind.value, after_s, b"")

    def hold(self, why: int) -> None:
        """Let messages wait with the protocol."""
        self._holds |= why

    def release(self, why: int) -> None:
        """Go on at the flush."""
        self._holds &= ~why
        if not self._holds:
            self._owner.touch()

    def _refuse(self) -> None:
        self._state = _OVER
        self._receiver = None
        self._owner.tunnel_refused(self._status, self._code, self._retry_after_s, self._body)

    def _end(self, code: int, reason: str) -> None:
        """Follow the replica's close: answer it, tell the protocol."""
        self._state = _OVER
        self._ends = True
        self._waiting.clear()
        self._answer(self._framing.write_close(code if code in _MAY_BE_SAID else messages.NORMAL, ""))
        self._owner.tunnel_closed(code, reason)


def read_refusal(head: ResponseHead) -> tuple[str, int]:
    """Return what a refusal says beside its status: `x-router-error`, and `retry-after` in seconds."""
    code, retry_after_s = "", 0
    shape = head.shape
    for name, value in (*shape.fields, *shape.known.items(), *head.added):
        if name == b"x-router-error":
            code = value.decode("ascii", "replace")
        elif name == b"retry-after" and value.isdigit():
            retry_after_s = int(value[:6])
    return code, retry_after_s


def close_code(status: int, code: str) -> int:
    """Return the WebSocket code that says the same as a refusal's status."""
    for kind, wire in WIRE.items():
        if kind.value == code:
            return wire.close_code
    return _CLOSE_OF_STATUS.get(status, 1_011)
