"""Capsules on the stream of a session's CONNECT, in whatever pieces they come (RFC 9297 §3.2, draft-07 §5).

They have the form of HTTP/3's frames, and the same reader. Unknown ones are skipped, and cost the client what
frames without meaning do. Behind CLOSE nothing may follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.h3.reader import GATHER, SKIP, STOP, FrameReader
from router.transport.codec.webtransport import codes
from router.transport.codec.webtransport.limits import MAX_CAPSULE_BYTES, MAX_REASON_BYTES

if TYPE_CHECKING:
    from router.transport.codec.webtransport.session import WebTransportSession

_CODE_BYTES: Final = 4


class CapsuleReader(FrameReader):
    """Hands capsules to its session. `is_malformed`: the message is (RFC 9297 §3.3)."""

    __slots__ = ("_session", "is_closed", "is_malformed")

    def __init__(self, session: WebTransportSession) -> None:
        super().__init__()
        self._session: WebTransportSession | None = session
        self.is_closed = False
        self.is_malformed = False

    def receive(self, data: bytes, end: bool) -> None:
        """Read on."""
        if self.is_closed and data:
            self.is_malformed = True  # draft-07 §5
        elif not self.is_malformed:
            used = self.feed(data, False)
            if self.is_closed and used < len(data):
                self.is_malformed = True
        if end and self.is_within_frame():
            self.is_malformed = True

    def peer_reset(self, code: int) -> None:
        """The stream's owner hears of it."""

    def peer_stopped(self, code: int) -> None:
        """The stream's owner hears of it."""

    def on_frame(self, kind: int, length: int) -> int:
        """Judge a capsule by its type and length."""
        if kind == codes.CLOSE_SESSION:
            is_right = _CODE_BYTES <= length <= _CODE_BYTES + MAX_REASON_BYTES
        elif kind == codes.DATAGRAM:
            is_right = length <= MAX_CAPSULE_BYTES
        elif kind == codes.DRAIN_SESSION:
            is_right = length == 0
        else:
            session = self._session
            return SKIP if session is None or session.may_idle() else STOP
        if not is_right:
            self.is_malformed = True
            self.may_read = False
        return GATHER if is_right else STOP

    def on_payload(self, kind: int, payload: bytes, end: bool) -> None:
        """Take a capsule that is whole."""
        session = self._session
        if session is None:
            return
        if kind == codes.CLOSE_SESSION:
            self.is_closed = True
            self.may_read = False
            reason = payload[_CODE_BYTES:].decode("utf-8", "replace")
            session.closed_by_peer(int.from_bytes(payload[:_CODE_BYTES], "big"), reason)
        elif kind == codes.DATAGRAM:
            session.datagram(payload)
        # DRAIN: who speaks in the session ends it when it wants to.

    def let_go(self) -> None:
        """Forget the session, which is over."""
        self._session = None

    def on_slice(self, data: bytes, end: bool) -> None:
        """Never asked for."""
        raise AssertionError
