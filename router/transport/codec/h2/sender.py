"""The outgoing half of a connection: what is queued, what waits for a window, what the peer is given back.

    streams --> out, at the flush: what waited and may flow now, in turn, then credit, then one write

Knows nothing of what frames mean. `now` is the time of the callback under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.stream import CLOSE_NO, Codec
from router.transport.codec.h2 import frames
from router.transport.codec.h2.limits import (
    CONNECTION_WINDOW,
    CREDITS_PER_FRAME,
    HIGH_BYTES,
    LOW_BYTES,
    MAX_BACKLOG,
)

if TYPE_CHECKING:
    from router.stream import Shell
    from router.transport.codec.h2.stream import H2Stream


class H2Sender(Codec):
    """See the module."""

    __slots__ = (
        "_answers",
        "_backlog",
        "_blocked",
        "_continued",
        "_earned_pings",
        "_paused",
        "_progress",
        "_progressed_s",
        "_receive_window",
        "_table_reduced",
        "_wants_pump",
        "credit",
        "earned_credits",
        "frame_limit",
        "full_since_s",
        "initial_send_window",
        "is_full",
        "last_moved_s",
        "moved",
        "needs_time",
        "now",
        "out",
        "send_window",
        "shell",
        "streams",
    )

    def __init__(self, shell: Shell, now: float) -> None:
        super().__init__()
        self.shell = shell
        self.now = now
        self.out: list[bytes] = []
        self.streams: dict[int, H2Stream] = {}
        self.send_window = frames.DEFAULT_WINDOW
        self.initial_send_window = frames.DEFAULT_WINDOW
        self.frame_limit = frames.MIN_FRAME_SIZE
        self.is_full = False
        self.full_since_s = 0.0
        self.last_moved_s = now
        self.moved: list[H2Stream] = []  # sent something since the last flush, which knows the time
        self.needs_time = False  # `before_output` is to be called
        self.credit = 0  # bytes read and not yet given back to the peer's window
        self._receive_window = CONNECTION_WINDOW
        self._blocked: dict[int, H2Stream] = {}  # have something that waits for a window, in turn
        self._paused: dict[int, H2Stream] = {}  # whose other side is held meanwhile
        self._continued: list[H2Stream] = []  # released, with input that was held
        self._progress = 0  # bytes that left after waiting, since …
        self._progressed_s = now
        self._wants_pump = False
        self._table_reduced = False
        self._backlog = 0  # answers queued while the transport is full
        # Of what our frames entitle a peer to, without bound: what it may answer them with by WINDOW_UPDATE, and
        # by PING: grpc-go measures the path with one for each DATA it gets.
        self.earned_credits = 0
        self._earned_pings = 0
        self._answers = 0  # of what is queued, said because the peer made us

    def before_output(self, now: float) -> None:
        """Do what waited for the flush, which knows the time."""
        raise NotImplementedError

    def overrun(self) -> None:
        """Cut off a peer that does not read what it makes us say."""
        raise NotImplementedError

    def queue(self, piece: bytes) -> None:
        """Queue one piece of output."""
        if not self.out:
            self.shell.touch()
        self.out.append(piece)

    def queue_block(self, stream_id: int, block: bytes, flags: int) -> None:
        """Queue HEADERS, in more than one frame where the peer's limit asks for it."""
        if self._table_reduced:
            self._table_reduced = False
            block = b"\x20" + block
        size = len(block)
        if size <= self.frame_limit:
            self.queue(frames.frame(frames.HEADERS, flags | frames.END_HEADERS, stream_id, block))
            return
        limit = self.frame_limit
        self.queue(frames.frame(frames.HEADERS, flags, stream_id, block[:limit]))
        for at in range(limit, size, limit):
            ends = frames.END_HEADERS if at + limit >= size else 0
            self.queue(frames.frame(frames.CONTINUATION, ends, stream_id, block[at : at + limit]))

    def answer(self, piece: bytes) -> None:
        """Queue what the peer made us say; a peer that does not read it is not answered for ever."""
        if self.is_full:
            self._backlog += 1
            if self._backlog > MAX_BACKLOG:
                self.overrun()
                return
        self._answers += 1
        self.queue(piece)

    def block(self, stream: H2Stream) -> None:
        """Note that a stream has something waiting."""
        self._blocked[stream.id] = stream

    def unblock(self, stream: H2Stream) -> None:
        """Note that nothing of it waits any more."""
        self._blocked.pop(stream.id, None)

    def resume_sending(self, stream: H2Stream) -> None:
        """Let the other side of a stream go on, which is stopped for want of a window."""
        if stream.is_paused:
            stream.is_paused = False
            self._paused.pop(stream.id, None)
            stream.resume()

    def want_pump(self) -> None:
        """Have the flush look at what waits."""
        self._wants_pump = True
        self.shell.touch()

    def continue_held(self, stream: H2Stream) -> None:
        """Have the flush deliver what a stream held."""
        self._continued.append(stream)
        self.has_held_input = True
        self.shell.touch()

    def _return_credit(self) -> None:
        """Let the peer send as much again on the connection (RFC 9113 §6.9).

        Told in halves of what is not held, so that what is left of the window never waits for what is held.
        """
        if self.credit and self.close == CLOSE_NO:
            self.queue(frames.window_update(0, self.credit))
            self._receive_window += self.credit
            self.credit = 0

    def take_output(self, now: float) -> list[bytes]:
        """Hand over the output: first let flow what may."""
        self.now = now
        if self.needs_time:
            self.needs_time = False
            self.before_output(now)
        if self._wants_pump:
            self._wants_pump = False
            self._pump()
        if self.credit >= self._receive_window:
            self._return_credit()
        out = self.out
        if out:
            self.out = []
            self.last_moved_s = now
            if self.moved:
                for stream in self.moved:
                    stream.moved_s = now
                self.moved = []
            said = len(out) - self._answers
            self._answers = 0
            self.earned_credits += CREDITS_PER_FRAME * said
            self._earned_pings += said
        return out

    def _pump(self) -> None:
        """Give each stream that waits a frame in turn, until all is sent or no window is open."""
        blocked = self._blocked
        moved = True
        while blocked and moved and not self.is_full:
            moved = False
            for stream in list(blocked.values()):
                limit = min(self.frame_limit, self.send_window)
                if limit <= 0 and stream.waiting_bytes:
                    continue
                window = self.send_window
                if stream.send_waiting(limit):
                    moved = True
                    self._progress += window - self.send_window
                    if stream.id in blocked:  # behind the others: a window may be a frame's worth at a time
                        del blocked[stream.id]
                        blocked[stream.id] = stream
        if self._progress >= LOW_BYTES:
            self._progress = 0
            self._progressed_s = self.now
        paused = self._paused
        for stream in list(blocked.values()):
            if not stream.blocked_since_s:
                stream.blocked_since_s = self.now
                self.shell.watch()
            if stream.waiting_bytes > HIGH_BYTES and not stream.is_paused:
                stream.is_paused = True
                paused[stream.id] = stream
                stream.pause()
        if paused and not self.is_full:
            for stream in list(paused.values()):
                if stream.waiting_bytes <= LOW_BYTES:
                    self.resume_sending(stream)

    def transport_full(self, full: bool, now: float) -> None:
        """Hold every stream's other side while the transport takes no more."""
        self.now = now
        self.is_full = full
        if not full:
            self.full_since_s = 0.0
            self._backlog = 0
            self.want_pump()
            return
        self.full_since_s = now
        for stream in list(self.streams.values()):
            if not stream.is_paused:
                stream.is_paused = True
                self._paused[stream.id] = stream
                stream.pause()
        self.shell.watch()

    def stalled_since(self, stream: H2Stream) -> float:
        """Return since when a stream that waits has got nowhere.

        One that waits for the connection's window alone gets on as long as the connection does.
        """
        if stream.send_window > 0:
            return max(stream.blocked_since_s, self._progressed_s)
        return stream.blocked_since_s

    def first_stream_deadline(self, stall_s: float) -> float:
        """Return when the first stream is idle or blocked for too long; 0 if there is none."""
        first = 0.0
        for stream in self.streams.values():
            at = stream.moved_s + stream.idle_s
            if stream.blocked_since_s:
                at = min(at, self.stalled_since(stream) + stall_s)
            if not first or at < first:
                first = at
        return first
