"""What both roles are besides frames: streams come and go, faults are answered, the connection ends.

A fault is of a stream (RST_STREAM) or of the connection (GOAWAY, then it closes), as RFC 9113 §5.4 has it. What a
client may waste is counted (§10.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.stream import CLOSE_ABORT, CLOSE_LINGER, CLOSE_NO
from router.transport.codec.ending import Ending
from router.transport.codec.h2 import frames
from router.transport.codec.h2.calm import Allowance
from router.transport.codec.h2.limits import (
    CONNECTION_WINDOW,
    MAX_BLOCK_BYTES,
    MAX_REMEMBERED_RESETS,
    RESET_BURST,
    RESETS_PER_S,
    STREAM_WINDOW,
)
from router.transport.codec.h2.sender import H2Sender

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.stream import Shell
    from router.transport.codec.h2.stream import H2Stream


class H2Connection(H2Sender):
    """Common state of `H2Server` and `H2Client`, but for what is being read."""

    __slots__ = (
        "_evicted_to",
        "_on_flood",
        "_reset_ids",
        "_resets",
        "answered",
        "ending",
        "goaway_sent",
        "is_server",
    )

    def __init__(self, shell: Shell, on_flood: Callable[[], None], now: float, *, is_server: bool) -> None:
        super().__init__(shell, now)
        self.is_server = is_server
        self.ending: Ending | None = None
        self.goaway_sent = False
        self.answered = 0  # streams that ended whole, two of which pardon a reset
        self._on_flood = on_flood
        # Streams that were reset, by us (True) or the peer: late frames of the first are nobody's fault.
        self._reset_ids: dict[int, bool] = {}
        self._evicted_to = 0  # up to here some are not remembered any more
        self._resets = Allowance(RESET_BURST, RESETS_PER_S, now)

    # -- what the roles say ---------------------------------------------------------------------------

    def on_reset(self, stream: H2Stream, code: int) -> None:
        """Learn that the peer reset a stream; it is forgotten already."""
        raise NotImplementedError

    def on_stream_gone(self) -> None:
        """Learn that a stream was forgotten: it may have been the last."""
        raise NotImplementedError

    def on_broken(self) -> None:
        """Learn that the connection failed: every stream is lost."""
        raise NotImplementedError

    def is_idle_id(self, stream_id: int) -> bool:
        """Whether a stream was never opened (RFC 9113 §5.1)."""
        raise NotImplementedError

    # -- streams --------------------------------------------------------------------------------------

    def forget(self, stream: H2Stream) -> None:
        """Take a stream out; whoever holds it may go on calling it, to no effect."""
        self.streams.pop(stream.id, None)
        stream.sent_end = stream.received_end = stream.is_over = True
        stream.drop_waiting()
        stream.drop_held()
        self._paused.pop(stream.id, None)

    def reset_stream(self, stream: H2Stream, code: int) -> None:
        """Send RST_STREAM and forget."""
        stream_id = stream.id
        self.forget(stream)
        self.remember_reset(stream_id, by_us=True)
        self.queue(frames.rst_stream(stream_id, code))

    def fail_stream(self, stream: H2Stream, code: int) -> None:
        """Reset a stream for its peer's fault, which counts as one of the peer's own resets."""
        if not self._may(self._resets):
            self.flood(b"streams opened and broken")
            return
        self.reset_stream(stream, code)
        self.on_reset(stream, code)

    def reset_id(self, stream_id: int, code: int) -> None:
        """Answer a fault on a stream that may not exist."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.fail_stream(stream, code)
        elif self._may(self._resets):
            self.remember_reset(stream_id, by_us=True)
            self.answer(frames.rst_stream(stream_id, code))
        else:
            self.flood(b"streams opened and broken")

    def remember_reset(self, stream_id: int, *, by_us: bool) -> None:
        """Note how a stream ended, for frames that come late."""
        reset_ids = self._reset_ids
        if len(reset_ids) >= MAX_REMEMBERED_RESETS:
            oldest = next(iter(reset_ids))
            del reset_ids[oldest]
            self._evicted_to = max(self._evicted_to, oldest)
        reset_ids[stream_id] = by_us

    def _may(self, allowance: Allowance) -> bool:
        """Use one of what a client may waste; a replica's resets and PINGs are bounded by what we ask of it."""
        return not self.is_server or allowance.take(self.now)

    def late(self, stream_id: int) -> None:
        """Judge a frame on a closed stream (RFC 9113 §5.1, "closed")."""
        by_us = self._reset_ids.get(stream_id)
        if not self.is_server or (by_us is None and stream_id <= self._evicted_to):
            return  # we open the streams, so there is nothing to gain from judging; or it was reset long ago
        if by_us is None:
            self.fail(frames.STREAM_CLOSED, b"a frame on a closed stream")
        elif not by_us:
            self.reset_id(stream_id, frames.STREAM_CLOSED)

    # -- the connection's end -------------------------------------------------------------------------

    def flood(self, reason: bytes) -> None:
        """End the connection of a peer that wastes our time (RFC 9113 §10.5)."""
        self._on_flood()
        self.fail(frames.ENHANCE_YOUR_CALM, reason)

    def fail(self, code: int, reason: bytes) -> None:
        """End the connection for a fault (RFC 9113 §5.4.1): GOAWAY, and every stream is lost."""
        if self.close:
            return
        self.send_goaway(self.last_peer_stream(), code, reason)
        self.end()

    def last_peer_stream(self) -> int:
        """Return the highest stream of the peer's that was taken up."""
        return 0

    def send_goaway(self, last_stream_id: int, code: int, reason: bytes) -> None:
        """Queue GOAWAY."""
        self.goaway_sent = True
        self.queue(frames.goaway(last_stream_id, code, reason))

    def end(self) -> None:
        """Lose every stream, shut the write side behind the output, drop input for a while."""
        if self.close == CLOSE_NO:
            self.close = CLOSE_LINGER
            self.needs_time = True
            self.wants_read = True
            self.on_broken()
            self.queue(b"")
            self.shell.watch()

    def begin_ending(self, now: float, grace_s: float) -> None:
        """Count from now on, when the last word is being written."""
        if self.close == CLOSE_LINGER and self.ending is None:
            self.ending = Ending(now, grace_s)
            self.shell.watch()

    def go_on_ending(self, grace_s: float, stall_s: float) -> None:
        """Give a peer that is still reading more time, or cut it off."""
        ending = self.ending
        if ending is None or not ending.goes_on(self.shell.unsent_bytes(), self.now, grace_s, stall_s):
            self.cut_off()

    def cut_off(self) -> None:
        """End at once, without a word."""
        self.close = CLOSE_ABORT
        self.on_broken()
        self.shell.touch()
        self.shell.watch()

    def overrun(self) -> None:
        """Cut off a peer that does not read what it makes us say."""
        self._on_flood()
        self.cut_off()


INITIAL_SETTINGS: Final = (
    (frames.INITIAL_WINDOW_SIZE, STREAM_WINDOW),
    (frames.MAX_HEADER_LIST_SIZE, MAX_BLOCK_BYTES),
)
"""What both roles say; the connection's own window is raised by the WINDOW_UPDATE behind it."""

OPEN_WINDOW: Final = frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
