"""One request's share of a connection: what waits in either direction, and how much may still flow.

Incoming                                          Outgoing
    delivered at once, and credited                   framed at once while every window is open
    held: kept, not credited, so that the peer        else it waits; above HIGH_BYTES the other side is
    stops at the stream's window                      held, below LOW_BYTES it goes on

A stream is `is_over` for its receiver before the connection has forgotten it: its late frames are dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.transport.codec.h2 import frames
from router.transport.codec.h2.hpack import write_fields
from router.transport.codec.h2.limits import LOW_BYTES, STREAM_WINDOW

if TYPE_CHECKING:
    from router.errors import ProxyError
    from router.http import Headers
    from router.transport.codec.h2.connection import H2Connection

_CREDIT_AT: Final = STREAM_WINDOW // 2
_JOIN_BYTES: Final = 4_096  # a larger payload is not copied behind its header
_NO_LENGTH: Final = -1
_EARNING_SHIFT: Final = 10  # a WINDOW_UPDATE for each KiB is honest, however large the frame was
# The first five bytes of small DATA frames, ready made: a streamed message is mostly one.
_DATA: Final = tuple(size.to_bytes(3, "big") + b"\0\0" for size in range(_JOIN_BYTES))
_LAST_DATA: Final = tuple(size.to_bytes(3, "big") + b"\0\x01" for size in range(_JOIN_BYTES))


class H2Stream:
    """Common state of `ServerStream` and `ClientStream`, which say what `deliver*` and `pause` mean."""

    __slots__ = (
        "_connection",
        "_credit",
        "_held",
        "_held_end",
        "_held_trailers",
        "_holds",
        "_progress",
        "_waiting",
        "_waiting_at",
        "_waiting_end",
        "_waiting_trailers",
        "blocked_since_s",
        "expected_bytes",
        "id",
        "id_bytes",
        "idle_s",
        "is_over",
        "is_paused",
        "is_tunnel",
        "moved_s",
        "receive_window",
        "received_end",
        "send_window",
        "sent_end",
        "takes_data",
        "waiting_bytes",
        "wants_tunnel",
    )

    def __init__(self, connection: H2Connection, stream_id: int, idle_s: float, now: float) -> None:
        self._connection = connection
        self.id = stream_id
        self.id_bytes = stream_id.to_bytes(4, "big")
        self.send_window = connection.initial_send_window
        self.receive_window = STREAM_WINDOW
        self.expected_bytes = _NO_LENGTH  # still to come of a declared length
        self.received_end = False
        self.sent_end = False
        self.is_over = False
        self.is_paused = False
        self.wants_tunnel = False
        self.is_tunnel = False
        self.moved_s = now
        self.idle_s = idle_s
        self.blocked_since_s = 0.0
        self.waiting_bytes = 0
        self._credit = 0
        self._holds = 0
        self._held: bytearray | None = None  # one buffer: a list of tiny frames would be forty times their size
        self._held_end = False
        self._held_trailers: Headers | None = None
        self.takes_data = True  # False while a head has to come first
        self._progress = 0  # bytes sent since `blocked_since_s`
        self._waiting: list[bytes] | None = None
        self._waiting_at = 0  # how much of the first of them is sent
        self._waiting_end = False
        self._waiting_trailers: Headers | None = None

    # -- what the roles say ---------------------------------------------------------------------------

    def deliver(self, data: bytes, end: bool) -> None:
        """Hand body bytes to the receiver."""
        raise NotImplementedError

    def deliver_trailers(self, trailers: Headers) -> None:
        """Hand trailers to the receiver."""
        raise NotImplementedError

    def pause(self) -> None:
        """Tell the receiver that the peer takes no more for now."""
        raise NotImplementedError

    def resume(self) -> None:
        """Tell the receiver that it does again."""
        raise NotImplementedError

    def lose(self, error: ProxyError) -> None:
        """Tell the receiver that the stream is gone; nothing more is sent on it."""
        raise NotImplementedError

    def follow(self, data: bytes, end: bool) -> bytes:
        """Return what of a tunnel's bytes is to be sent. For tunnels only."""
        return data

    def all_said(self) -> None:
        """Learn that the receiver's last word is here, though it still waits for a window."""

    def after_end(self) -> None:
        """Act on the last frame being queued."""
        raise NotImplementedError

    # -- in -------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes, end: bool) -> None:
        """Deliver, or keep what is held. The connection has counted windows and lengths."""
        connection = self._connection
        size = len(data)
        if self._holds or self._held is not None:
            if self._held is None:
                self._held = bytearray()
            self._held += data
            self._held_end = end
            if not connection.is_server:
                connection.credit += size  # a replica's connection is shared: who reads slowly stops himself alone
            return
        connection.credit += size
        self._credit += size
        if self._credit >= _CREDIT_AT and not self.received_end:
            self._return_credit()
        if not self.is_over:
            self.deliver(data, end)

    def receive_trailers(self, trailers: Headers) -> None:
        """Deliver behind everything held."""
        if self._holds or self._held is not None:
            if self._held is None:
                self._held = bytearray()
            self._held_trailers = trailers
        elif not self.is_over:
            self.deliver_trailers(trailers)

    def credit(self, size: int) -> None:
        """Let the peer send as much again, told in halves of a window (RFC 9113 §6.9)."""
        self._connection.credit += size
        self._credit_stream(size)

    def _credit_stream(self, size: int) -> None:
        self._credit += size
        if self._credit >= _CREDIT_AT and not self.received_end:
            self._return_credit()

    def _return_credit(self) -> None:
        self._connection.queue(frames.window_update(self.id, self._credit))
        self.receive_window += self._credit
        self._credit = 0

    def hold(self, why: int) -> None:
        """Deliver no more data; without credit the peer stops by itself."""
        self._holds |= why

    def release(self, why: int) -> None:
        """Take a reason back; what was held is delivered at the flush."""
        self._holds &= ~why
        if not self._holds and self._held is not None:
            self._connection.continue_held(self)

    def deliver_held(self) -> None:
        """Hand over what was kept while the stream was held, unless it is held again."""
        held = self._held
        if held is None or self._holds:
            return
        trailers = self._held_trailers
        data = bytes(held)
        ends = self._held_end
        self._held = self._held_trailers = None
        self._held_end = False
        if self._connection.is_server:
            self.credit(len(data))
        else:
            self._credit_stream(len(data))
        if self.is_over:
            return
        if data or ends:
            self.deliver(data, ends)
        if trailers is not None and not self.is_over:
            self.deliver_trailers(trailers)

    def let_go(self) -> None:
        """Hold nothing more: the receiver is through with it."""
        self._holds = 0

    def has_held(self) -> bool:
        """Whether something received was not delivered yet."""
        return self._held is not None

    def has_said_all(self) -> bool:
        """Whether the last word is here, and waits for a window."""
        return self._waiting is not None and self._waiting_end

    def drop_held(self) -> None:
        """Give the connection back what nobody will read."""
        held = self._held
        if held is not None:
            self._held = self._held_trailers = None
            if self._connection.is_server:
                self._connection.credit += len(held)
            self._connection.shell.touch()  # nothing else may be written, and the peer waits for it

    # -- out ------------------------------------------------------------------------------------------

    def send_data(self, data: bytes, end: bool) -> None:
        """Frame body bytes, or let them wait for a window."""
        if self.sent_end:
            return
        connection = self._connection
        if self.is_tunnel:
            data = self.follow(data, end)
        size = len(data)
        if (
            self._waiting is not None
            or size > self.send_window
            or size > connection.send_window
            or size > connection.frame_limit
            or connection.is_full
        ):
            self._wait(data, end)
            return
        self.send_window -= size
        connection.send_window -= size
        out = connection.out
        if not out:
            connection.shell.touch()
        if size < _JOIN_BYTES:
            out.append((_LAST_DATA if end else _DATA)[size] + self.id_bytes + data)
        else:
            out += (frames.header(size, frames.DATA, frames.END_STREAM if end else 0, self.id), data)
            connection.earned_credits += size >> _EARNING_SHIFT
        connection.moved.append(self)
        if end:
            self._end()

    def send_trailers(self, trailers: Headers) -> None:
        """Frame trailers behind everything that waits."""
        if self.sent_end:
            return
        if self._waiting is not None:
            self._waiting_trailers = trailers
            self.all_said()
            return
        self._write_trailers(trailers)

    def _write_trailers(self, trailers: Headers) -> None:
        if trailers:
            self._connection.queue_block(self.id, write_fields(trailers), frames.END_STREAM)
        else:  # nothing was left of them
            self._connection.queue(frames.frame(frames.DATA, frames.END_STREAM, self.id, b""))
        self._end()

    def _wait(self, data: bytes, end: bool) -> None:
        if self._waiting is None:
            self._waiting = []
            self._connection.block(self)
        if data:
            waiting = self._waiting
            if len(waiting) > 1 and len(waiting[-1]) + len(data) <= _JOIN_BYTES:
                waiting[-1] += data
            else:
                waiting.append(data)
            self.waiting_bytes += len(data)
        self._waiting_end = end
        if end:
            self.all_said()
        self._connection.want_pump()

    def send_waiting(self, limit: int) -> bool:
        """Frame up to `limit` bytes of what waits; whether anything moved."""
        waiting = self._waiting
        if waiting is None:
            return False
        limit = min(limit, self.send_window)
        if limit <= 0 and self.waiting_bytes:
            return False
        parts: list[bytes] = []
        size = 0
        used = 0
        at = self._waiting_at
        for part in waiting:
            room = limit - size
            left = len(part) - at
            if left > room:
                if room:  # an empty piece would mean the end of the connection to the shell
                    parts.append(part[at : at + room])  # the rest stays where it is: not copied for each frame
                    size += room
                    at += room
                break
            parts.append(part[at:] if at else part)
            size += left
            used += 1
            at = 0
        self._waiting_at = at
        del waiting[:used]
        connection = self._connection
        self.send_window -= size
        connection.send_window -= size
        self.waiting_bytes -= size
        trailers = self._waiting_trailers
        is_last = not waiting
        end = is_last and self._waiting_end and trailers is None
        if size or end:
            connection.queue(frames.header(size, frames.DATA, frames.END_STREAM if end else 0, self.id))
            connection.out += parts
            connection.earned_credits += size >> _EARNING_SHIFT
        connection.moved.append(self)
        self._progress += size
        if self._progress >= LOW_BYTES:  # slow, but it reads: time begins anew at the flush
            self._progress = 0
            self.blocked_since_s = 0.0
        if is_last:
            self._waiting = None
            self._progress = 0
            self.blocked_since_s = 0.0
            connection.unblock(self)
            if end:
                self._end()
            elif trailers is not None:
                self._waiting_trailers = None
                self._write_trailers(trailers)
        return True

    def stop_sending(self) -> None:
        """Send nothing more, for a peer that has answered and reads no further; take what is said, and drop it."""
        self.sent_end = True
        self.drop_waiting()
        self._connection.resume_sending(self)

    def drop_waiting(self) -> None:
        """Forget what a stream that is reset has not sent."""
        if self._waiting is not None:
            self._waiting = self._waiting_trailers = None
            self._waiting_at = 0
            self.waiting_bytes = 0
            self._connection.unblock(self)

    def _end(self) -> None:
        self.sent_end = True
        self.after_end()
