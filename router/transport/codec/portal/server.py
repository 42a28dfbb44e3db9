"""The server's side of a `quic-portal` client: its messages are a WebSocket's to the replica, and back.

    u32 length, payload --> binary message            one at a time; credit as the replica takes them
    message             --> u32 length, payload

The client hears why it ends by an application error code that is WebSocket's (1013: no room, try later).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from router.errors import WIRE
from router.transport.codec.message_tunnel import MessageTunnel, TunnelOwner, close_code
from router.transport.codec.messages import NORMAL, PROTOCOL_ERROR, TOO_LARGE
from router.transport.codec.quic.limits import HIGH_BYTES
from router.transport.codec.quic.seam import Application

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.errors import ProxyError
    from router.http import ResponseHead
    from router.stream import DownstreamStream, RequestReceiver
    from router.transport.codec.quic.seam import Bearer, Flow

MAX_MESSAGE_BYTES: Final = 67_108_864
"""64 MiB of one message; `quic-portal` itself would take 4 GiB."""
MAX_WAITING_BYTES: Final = 1_048_576
"""Of whole messages that the replica does not take yet; then the client gets no more credit."""
GOODBYE_S: Final = 2.0
"""For the client to acknowledge the last it was sent."""
_LENGTH_BYTES: Final = 4
_UNKNOWN_S: Final = -1.0
_TINY_BYTES: Final = 1_024
_VERSION: Final = b"QUIC"


class PortalServer(Application, TunnelOwner):
    """One client's connection."""

    __slots__ = (
        "_bearer",
        "_early",
        "_flow",
        "_goodbye",
        "_goodbye_s",
        "_got",
        "_is_over",
        "_length",
        "_on_request",
        "_owed",
        "_parts",
        "_size",
        "_tunnel",
        "_waiting",
        "_waiting_bytes",
        "authority",
        "path",
    )

    def __init__(
        self,
        bearer: Bearer,
        on_request: Callable[[DownstreamStream], RequestReceiver],
        authority: bytes,
        path: bytes,
    ) -> None:
        self._bearer = bearer
        self._on_request = on_request
        self.authority = authority
        self.path = path
        self._tunnel = MessageTunnel(self, MAX_MESSAGE_BYTES)
        self._flow: Flow | None = None
        self._length = b""  # of the message that is coming, as far as it is here
        self._parts: list[bytes] = []  # of the message
        self._got = 0
        self._size = -1  # of that message, unknown before its length is here
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._owed = 0  # credit that is withheld until the replica takes what waits
        self._early: list[bytes] = []  # said by the replica before the client opened its stream
        self._is_over = False
        self._goodbye = (NORMAL, b"")
        self._goodbye_s = 0.0

    # -- the connection -------------------------------------------------------------------------------

    def connected(self) -> None:
        """Look for a replica: it may have the first word."""
        error = self._tunnel.open(self._on_request, self.authority, self.path, [], _VERSION)
        if error is not None:
            self._end(WIRE[error.kind].close_code, error.kind.value)

    def stream_opened(self, flow: Flow) -> None:
        """Take the first two-way stream as the one."""
        if self._flow is None and not flow.id & 2:
            self._flow = flow
            for framed in self._early:
                flow.send(framed, False)
            if self._early:
                self._early.clear()
                self._tunnel.resume()
        else:
            self._end(PROTOCOL_ERROR, "a second stream")

    def stream_data(self, flow: Flow, data: bytes, end: bool) -> None:
        """Gather messages."""
        if flow is not self._flow or self._is_over:
            return
        at = 0
        size = len(data)
        while at < size or self._size == self._got:
            if self._size < 0:
                at = self._read_length(data, at)
                if at < 0:
                    return
                continue
            part = data[at : at + self._size - self._got]
            at += len(part)
            self._got += len(part)
            if part:
                self._keep(part)
            if self._got == self._size:
                parts = self._parts
                self._take(parts[0] if len(parts) == 1 else b"".join(parts))
                parts.clear()
                self._got = 0
                self._size = -1
        self._owed += len(data)
        self._return_credit()
        if end:
            self._end(NORMAL, "")

    def _read_length(self, data: bytes, at: int) -> int:
        """Gather a message's length; return where to go on, -1 if it is more than is taken."""
        missing = _LENGTH_BYTES - len(self._length)
        self._length += data[at : at + missing]
        if len(self._length) == _LENGTH_BYTES:
            self._size = int.from_bytes(self._length, "big")
            self._length = b""
            if self._size > MAX_MESSAGE_BYTES:
                self._end(TOO_LARGE, "message_too_large")
                return -1
        return at + missing

    def _keep(self, part: bytes) -> None:
        """Keep a piece; tiny ones are joined, since a list of them would cost many times their size."""
        parts = self._parts
        if len(parts) > 1 and len(part) < _TINY_BYTES and len(parts[-1]) < _TINY_BYTES:
            parts[-1] += part
        else:
            parts.append(part)

    def _take(self, message: bytes) -> None:
        if self._waiting or self._tunnel.is_full():
            self._waiting.append(message)
            self._waiting_bytes += len(message)
        else:
            self._tunnel.send(message)

    def _return_credit(self) -> None:
        """Let the client go on, unless whole messages wait: then it is felt."""
        if self._owed and self._flow is not None and self._waiting_bytes <= MAX_WAITING_BYTES:
            self._flow.credit(self._owed)
            self._owed = 0

    def stream_reset(self, flow: Flow, code: int) -> None:
        """The client has gone."""
        self._end(NORMAL, "")

    def stream_stopped(self, flow: Flow, code: int) -> None:
        """The client reads no more."""
        self._end(NORMAL, "")

    def stream_drained(self, flow: Flow) -> None:
        """Let the replica go on."""
        self._tunnel.resume()

    def stream_gone(self, flow: Flow) -> None:
        """Close: the client has all that it was sent."""
        if self._is_over:
            self._close()

    def datagram(self, data: bytes) -> None:
        """These clients send none."""

    def streams_available(self) -> None:
        """None is opened here."""

    def before_send(self, now: float) -> None:
        """Let the tunnel say what it kept; begin a goodbye's time, since the replica's tick has not ours."""
        self._tunnel.flush()
        if self._goodbye_s == _UNKNOWN_S:
            self._goodbye_s = now + GOODBYE_S
            self._bearer.watch()

    def connection_lost(self, code: int, reason: str, by_peer: bool) -> None:
        """Let the replica go."""
        if not self._is_over:
            self._is_over = True
            self._tunnel.close(NORMAL)
        self._goodbye_s = 0.0

    def next_deadline(self) -> float | None:
        """When a goodbye is not waited for any longer; an idle connection is ended by QUIC."""
        return self._goodbye_s if self._goodbye_s > 0.0 else None

    def handle_deadline(self, now: float) -> None:
        """Close."""
        if 0.0 < self._goodbye_s <= now:
            self._close()

    def drain(self) -> None:
        """Go on: a robot at work is not interrupted before the deadline."""

    def retire(self, now: float) -> None:
        """Go on."""

    def cut(self, error: ProxyError) -> None:
        """End now."""
        self._tunnel.close(WIRE[error.kind].close_code, error.kind.value)
        self._end(WIRE[error.kind].close_code, error.kind.value)

    # -- the replica ----------------------------------------------------------------------------------

    def touch(self) -> None:
        """Be flushed."""
        self._bearer.touch()

    def tunnel_open(self, head: ResponseHead) -> None:
        """Messages that came before go at the flush."""

    def tunnel_ready(self) -> None:
        """Hand on what waited."""
        waiting = self._waiting
        while waiting and not self._tunnel.is_full():
            message = waiting.popleft()
            self._waiting_bytes -= len(message)
            self._tunnel.send(message)
        self._return_credit()

    def tunnel_message(self, data: bytes, is_text: bool, lane: int) -> None:
        """Pass a message on."""
        flow = self._flow
        framed = len(data).to_bytes(_LENGTH_BYTES, "big") + data
        if flow is None:
            self._early.append(framed)
            self._tunnel.pause()
            return
        flow.send(framed, False)
        if flow.unsent_bytes > HIGH_BYTES:
            self._tunnel.pause()

    def tunnel_refused(self, status: int, code: str, retry_after_s: int, body: bytes) -> None:
        """Say why by the code of the connection's end."""
        self._end(close_code(status, code), code or f"status {status}")

    def tunnel_closed(self, code: int, reason: str) -> None:
        """End as the replica did, once what it said is sent."""
        self._end(code, reason)

    def _end(self, code: int, reason: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._tunnel.close(NORMAL)
        self._goodbye = (code, reason.encode())
        flow = self._flow
        if flow is None or not flow.can_send():
            self._close()
            return
        # A close would cut off what was not acknowledged yet: the stream ends first, both ways.
        flow.send(b"", True)
        flow.stop(code)
        self._goodbye_s = _UNKNOWN_S
        self._bearer.touch()

    def _close(self) -> None:
        self._goodbye_s = 0.0
        self._bearer.close(*self._goodbye)
