"""What an HTTP/3 connection is besides its streams: faults and floods, when to look at it again, its own end.

A fault is of a stream (RESET_STREAM, STOP_SENDING) or of the connection (CONNECTION_CLOSE), as RFC 9114 §8 has it.
Deadlines: `look_s` is never later than the first of them. Whatever moves makes deadlines later, so it is enough to
look when `look_s` has passed, and to say so where something new could be due sooner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.transport.codec.h2.calm import Allowance
from router.transport.codec.h3 import frames
from router.transport.codec.h3.limits import (
    ANSWERS_PER_RESET,
    EARNED_PER_REQUEST,
    EMPTY_BURST,
    FRAMES_PER_S,
    IDLE_BURST,
    MAX_EARNED,
    RESET_BURST,
    RESETS_PER_S,
)
from router.transport.codec.quic.limits import HIGH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.transport.codec.h3.reader import Incoming
    from router.transport.codec.h3.stream import H3Stream
    from router.transport.codec.quic.seam import Bearer, Flow


class H3Connection:
    """State that streams share; `H3Server` adds the protocol on top."""

    __slots__ = (
        "_continued",
        "_earned",
        "_empties",
        "_idles",
        "_on_flood",
        "_resets",
        "_stall_s",
        "active",
        "answered",
        "bearer",
        "head_s",
        "is_closed",
        "last_moved_s",
        "look_s",
        "moved",
        "now",
        "peer_takes_datagrams",
        "saw_settings",
        "streams",
        "takes_sessions",
    )

    def __init__(
        self, bearer: Bearer, on_flood: Callable[[], None], head_s: float, stall_s: float, now: float
    ) -> None:
        self.bearer = bearer
        self.head_s = head_s
        self._stall_s = stall_s
        self.now = now
        self.look_s = now + head_s
        self.last_moved_s = now
        self.is_closed = False
        self.saw_settings = False
        self.peer_takes_datagrams = False
        self.takes_sessions = False  # of WebTransport
        self.streams: dict[int, H3Stream] = {}  # until the bearer is through with them
        self.active = 0  # of them, not over for us
        self.answered = 0  # ended whole, two of which pardon a reset
        self.moved: list[H3Stream] = []  # sent something since the last flush, which knows the time
        self._continued: list[H3Stream] = []  # released, with input that was held
        self._on_flood = on_flood
        self._earned = 0  # frames without meaning that requests have paid for
        self._resets = Allowance(RESET_BURST, RESETS_PER_S, now)
        self._empties = Allowance(EMPTY_BURST, FRAMES_PER_S, now)
        self._idles = Allowance(IDLE_BURST, FRAMES_PER_S, now)

    # -- what the role says ---------------------------------------------------------------------------

    def on_section(self, stream: H3Stream, block: bytes, end: bool) -> None:
        """Take the field section that begins a message."""
        raise NotImplementedError

    def on_trailers(self, stream: H3Stream, block: bytes) -> None:
        """Take the field section that ends one."""
        raise NotImplementedError

    def open_one_way(self, flow: Flow, kind: int) -> Incoming | None:
        """Find who reads a stream whose type is known now."""
        raise NotImplementedError

    def on_stream_over(self) -> None:
        """Learn that a stream is over, or gone: it may have been the last."""
        raise NotImplementedError

    def release_stream(self, stream: H3Stream) -> None:
        """Forget a stream that is a session's; `adopt` follows."""
        raise NotImplementedError

    def adopt(self, flow: Flow, session_id: int, data: bytes, end: bool) -> None:
        """Give a stream to the session that it names, with what follows the id, and the credit for that."""
        raise NotImplementedError

    # -- streams --------------------------------------------------------------------------------------

    def continue_held(self, stream: H3Stream) -> None:
        """Have the flush deliver what a stream held."""
        self._continued.append(stream)
        self.bearer.touch()

    def earn(self) -> None:
        """Let a request pay for a few frames without meaning."""
        self._earned = min(self._earned + EARNED_PER_REQUEST, MAX_EARNED)

    def may_idle(self) -> bool:
        """Count what means nothing to us; False, and the connection over, for a client that sends little else."""
        if self._earned:
            self._earned -= 1
        elif not self._idles.take(self.now):
            self.flood(b"frames without meaning")
            return False
        return True

    def may_be_empty(self) -> bool:
        """Count a DATA frame without a byte, likewise."""
        if self._earned:
            self._earned -= 1
        elif not self._empties.take(self.now):
            self.flood(b"empty DATA")
            return False
        return True

    def may_reset(self) -> bool:
        """Count a request that came to nothing by its client's doing, likewise."""
        if self.answered >= ANSWERS_PER_RESET:
            self.answered -= ANSWERS_PER_RESET
        elif not self._resets.take(self.now):
            self.flood(b"requests opened and given up")
            return False
        return True

    def fail_stream(self, stream: H3Stream, code: int) -> None:
        """Reset a stream for its peer's fault, which counts as one of the peer's own resets."""
        if self.may_reset():
            stream.abandon(code)
            stream.lose_peer()
            self.on_stream_over()

    # -- the connection's end -------------------------------------------------------------------------

    def flood(self, reason: bytes) -> None:
        """End the connection of a peer that wastes our time (RFC 9114 §10.5)."""
        if not self.is_closed:
            self._on_flood()
            self.fail(frames.EXCESSIVE_LOAD, reason)

    def fail(self, code: int, reason: bytes) -> None:
        """End the connection; every stream is lost."""
        if self.is_closed:
            return
        self.is_closed = True
        self.bearer.close(code, reason)
        self.lose_streams()

    def lose_streams(self) -> None:
        """Tell every exchange under way that its client is gone."""
        streams = list(self.streams.values())
        self.streams.clear()
        self.active = 0
        for stream in streams:
            stream.forget()
            stream.lose_peer()
        self.moved.clear()
        self._continued.clear()

    # -- time -----------------------------------------------------------------------------------------

    def look_by(self, at: float) -> None:
        """Have deadlines looked at no later than that."""
        if at < self.look_s:
            self.look_s = at
            self.bearer.watch()

    def begin_flush(self, now: float) -> None:
        """Deliver what was released, stamp what was sent, hold the other side of who does not read."""
        self.now = now
        if self._continued:
            continued = self._continued
            self._continued = []
            for stream in continued:
                stream.deliver_held()
        moved = self.moved
        if not moved:
            return
        self.moved = []
        self.last_moved_s = now
        for stream in moved:
            fresh = stream.fresh_bytes
            stream.fresh_bytes = 0
            stream.moved_s = now
            # What this flush finds may all leave with it: only what an earlier one left behind counts.
            behind = stream.flow.unsent_bytes - fresh
            if behind <= 0:
                stream.stuck_since_s = now
                stream.stuck_at = stream.left_bytes()
            elif behind > HIGH_BYTES and not stream.is_paused and not stream.is_over:
                stream.is_paused = True
                stream.pause()
        self.look_by(now + self._stall_s)
