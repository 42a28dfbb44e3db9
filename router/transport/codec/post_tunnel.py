"""A replica that is asked by HTTP, for protocols of messages: each is a POST's body, the reply the answer's.

    IDLE --send--> ASKING --2xx and its body: tunnel_message--> IDLE
                     +--4xx: tunnel_refused; 429, 5xx, cut: tunnel_closed--> OVER

One at a time, so the protocol holds what comes meanwhile and keeps the newest alone if it may. Each request finds
its replica by itself, with the credentials and keys of the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.errors import WIRE, Kind, ProxyError, Source
from router.http import ResponseHead, ResponseShape
from router.stream import DownstreamStream
from router.transport.codec.framing import ANY_LANE
from router.transport.codec.head import read_request
from router.transport.codec.message_tunnel import MAX_BODY_BYTES, Tunnel, TunnelOwner, read_refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.continuity import Continuity
    from router.http import Headers, RequestHead
    from router.stream import RequestReceiver

_PSEUDO: Final = (b":method", b"POST"), (b":scheme", b"https")
_GONE: Final = ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM)
_TOO_LARGE: Final = ProxyError(Kind.UPSTREAM_PROTOCOL, Source.UPSTREAM, detail="the reply is too large")
_OURS: Final = frozenset((b"content-length", b"content-type", b"expect"))


class PostTunnel(Tunnel):
    """One session's requests, one after another."""

    __slots__ = (
        "_asked",
        "_continuity",
        "_fields",
        "_is_over",
        "_is_paused",
        "_max_bytes",
        "_on_request",
        "_owner",
        "_version",
        "failure",
    )

    def __init__(
        self, owner: TunnelOwner, max_message_bytes: int, continuity: Continuity | None = None
    ) -> None:
        """`continuity`: of the session whose requests they are."""
        self._owner = owner
        self._continuity = continuity
        self._max_bytes = max_message_bytes
        self._on_request: Callable[[DownstreamStream], RequestReceiver] | None = None
        self._fields: Headers = []
        self._version = b""
        self._asked: Post | None = None
        self._is_paused = False
        self._is_over = False
        self.failure = ""

    def open(
        self,
        on_request: Callable[[DownstreamStream], RequestReceiver],
        authority: bytes,
        path: bytes,
        headers: Headers,
        version: bytes,
    ) -> ProxyError | None:
        """Be open at once, if these make a request: nobody has been asked yet."""
        kept = [field for field in headers if field[0] not in _OURS]
        self._fields = [*_PSEUDO, (b":authority", authority), (b":path", path), *kept]
        self._version = version
        head = self._make_head(0, is_text=False)
        if isinstance(head, ProxyError):
            return head
        self._on_request = on_request
        self._owner.tunnel_open(ResponseHead(ResponseShape(200)))
        return None

    def _make_head(self, length: int, *, is_text: bool) -> RequestHead | ProxyError:
        kind = b"text/plain; charset=utf-8" if is_text else b"application/octet-stream"
        own = [(b"content-type", kind), (b"content-length", b"%d" % length)]
        head: RequestHead | ProxyError = read_request(self._fields + own, self._version)
        if not isinstance(head, ProxyError):
            head.continuity = self._continuity
        return head

    def is_full(self) -> bool:
        """Whether a message would have to wait for the answer to the one before."""
        return self._asked is not None or self._is_paused or self._is_over

    def send(self, data: bytes, *, is_text: bool = False, is_state: bool = False, deadline: int = 0) -> None:
        """Ask; only while it is not full."""
        head = self._make_head(len(data), is_text=is_text)
        on_request = self._on_request
        if isinstance(head, ProxyError) or on_request is None or self._is_over:
            return
        self._asked = asked = Post(self, data, self._max_bytes)
        asked.begin(on_request, head)

    def close(self, code: int, reason: str = "", *, waits: bool = True) -> None:
        """Give up what is being asked. The owner hears nothing more."""
        self._is_over = True
        asked = self._asked
        self._asked = None
        if asked is not None:
            asked.give_up()

    def abandon(self) -> None:
        """Give up what is being asked."""
        self.close(0)

    def pause(self) -> None:
        """Ask nothing more for now: the client does not take what there is."""
        self._is_paused = True

    def resume(self) -> None:
        """Go on."""
        self._is_paused = False
        self._owner.touch()

    def replica_host(self) -> str:
        """There is none for longer than a request."""
        return ""

    def flush(self) -> None:
        """Send what was held, or take the next message; at the end of a tick."""
        asked = self._asked
        if asked is not None:
            asked.flush()
        elif not self.is_full():
            self._owner.tunnel_ready()

    # -- for the request ------------------------------------------------------------------------------

    def touch(self) -> None:
        """Be flushed."""
        self._owner.touch()

    def answered(self, status: int, code: str, retry_after_s: int, body: bytes) -> None:
        """Pass the answer on, or the refusal."""
        if self._is_over:
            return
        self._asked = None
        if 200 <= status < 300:
            self._owner.touch()
            self._owner.tunnel_message(body, False, ANY_LANE)
        elif status >= 500 or status == 429:
            self.lost(code or f"status_{status}")
        else:
            self._is_over = True
            self._owner.tunnel_refused(status, code, retry_after_s, body)

    def lost(self, why: str) -> None:
        """Say that the replica is gone: another one, or the same a little later."""
        if self._is_over:
            return
        self._asked = None
        self._is_over = True
        self.failure = Kind.UPSTREAM_RESET.value
        self._owner.tunnel_closed(WIRE[Kind.UPSTREAM_RESET].close_code, why)


class Post(DownstreamStream):
    """One request."""

    __slots__ = (
        "_body", "_code", "_data", "_holds", "_is_over", "_max_bytes", "_more", "_receiver", "_retry_after_s",
        "_size", "_status", "_tunnel",
    )  # fmt: skip

    def __init__(self, tunnel: PostTunnel, data: bytes, max_bytes: int) -> None:
        self._tunnel = tunnel
        self._data = data
        self._max_bytes = max_bytes
        self._receiver: RequestReceiver | None = None
        self._holds = 0
        self._is_over = False
        self._status = 0
        self._code = ""
        self._retry_after_s = 0
        self._body = b""  # the first piece, which is often all of it
        self._more: bytearray | None = None  # a list of tiny pieces would be forty times their size
        self._size = 0

    def begin(self, on_request: Callable[[DownstreamStream], RequestReceiver], head: RequestHead) -> None:
        """Begin the exchange; the body follows at once unless it has to wait."""
        self._receiver = receiver = on_request(self)
        receiver.request_head(head, not self._data)
        self.flush()

    def flush(self) -> None:
        """Send the body."""
        receiver, data = self._receiver, self._data
        if receiver is not None and data and not self._holds and not self._is_over:
            self._data = b""
            receiver.request_data(data, True)

    def give_up(self) -> None:
        """End it: nobody waits for the answer."""
        receiver = self._receiver
        self._receiver = None
        if receiver is not None and not self._is_over:
            self._is_over = True
            receiver.request_reset(_GONE)

    # -- the stream, for the exchange -----------------------------------------------------------------

    def limit_idle(self, idle_s: float) -> None:
        """The endpoint's other limits see to a replica that does not answer."""

    def send_informational(self, head: ResponseHead) -> None:
        """Nobody waits for it."""

    def send_head(self, head: ResponseHead, end: bool) -> None:
        """Note how it went."""
        self._status = head.shape.status
        self._code, self._retry_after_s = read_refusal(head)
        if end:
            self._end()

    def send_data(self, data: bytes, end: bool) -> None:
        """Gather the reply, or the beginning of a refusal."""
        if self._is_over:
            return
        is_reply = 200 <= self._status < 300
        if self._size + len(data) <= (self._max_bytes if is_reply else MAX_BODY_BYTES):
            self._size += len(data)
            if self._more is not None:
                self._more += data
            elif self._body:
                self._more = bytearray(self._body)
                self._more += data
            else:
                self._body = data
        elif is_reply:
            receiver = self._receiver
            self._receiver = None
            self._is_over = True
            if receiver is not None and not end:  # the last piece ends the exchange by itself
                receiver.request_reset(_TOO_LARGE)
            self._tunnel.lost("the reply is too large")
            return
        if end:
            self._end()

    def send_trailers(self, trailers: Headers) -> None:
        """It is whole."""
        self._end()

    def reset(self, error: ProxyError) -> None:
        """Learn that it failed."""
        self._receiver = None
        if not self._is_over:
            self._is_over = True
            self._tunnel.lost(error.kind.value)

    def hold(self, why: int) -> None:
        """Let the body wait: there is no replica yet, or it takes no more."""
        self._holds |= why

    def release(self, why: int) -> None:
        """Go on at the flush."""
        self._holds &= ~why
        if not self._holds:
            self._tunnel.touch()

    def _end(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._receiver = None
        body = self._body if self._more is None else bytes(self._more)
        self._tunnel.answered(self._status, self._code, self._retry_after_s, body)
