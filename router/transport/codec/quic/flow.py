"""One stream: what waits to be sent, what was sent and may be lost, what came (RFC 9000 §2, §3, §4).

Out                                               In
    queued --packet--> under way --ACK--> gone        in order: gathered, handed on once for all that was read
              ^            |                          early: kept at its place
              +-- lost ----+                          credit is what the application says it has consumed

A stream is gone once both directions are: ours when the FIN and every byte, or the RESET_STREAM, is acknowledged;
the peer's when its final size is known and all of it handed on, or reset, or not wanted.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from router.transport.codec.quic.limits import HIGH_BYTES, LOW_BYTES
from router.transport.codec.quic.recovery import SentFrame
from router.transport.codec.quic.reorder import Reorder
from router.transport.codec.quic.seam import Flow

if TYPE_CHECKING:
    from router.transport.codec.quic.streams import Streams

UNKNOWN: int = -1


class StreamChunk(SentFrame):
    """Bytes of a stream in one packet."""

    __slots__ = ("data", "end", "flow", "offset")

    def __init__(self, flow: QuicFlow, offset: int, data: bytes, end: bool) -> None:
        self.flow = flow
        self.offset = offset
        self.data = data
        self.end = end

    def on_acked(self) -> None:
        """Its bytes are the peer's."""
        self.flow.chunk_acked(self)

    def on_lost(self) -> None:
        """Its bytes go first when there is room."""
        self.flow.chunk_lost(self)


class QuicFlow(Flow):
    """Made by `Streams`, which knows what the connection as a whole may send and receive."""

    __slots__ = (
        "_acked_bytes",
        "_fin_acked",
        "_head_at",
        "_is_high",
        "_lost",
        "_queue",
        "_reorder",
        "_streams",
        "consumed",
        "end_queued",
        "end_sent",
        "final_size",
        "has_receiver",
        "has_sender",
        "highest",
        "id",
        "in_batch",
        "is_ready",
        "is_reset_acked",
        "is_settled",
        "max_data",
        "max_data_due",
        "pieces",
        "receive_over",
        "reset_code",
        "reset_due",
        "send_limit",
        "sent_bytes",
        "stop_code",
        "stop_due",
        "stopped_by_peer",
        "unsent_bytes",
        "untold",
        "was_told_end",
    )

    def __init__(
        self,
        streams: Streams,
        stream_id: int,
        send_limit: int,
        window: int,
        *,
        has_sender: bool,
        has_receiver: bool,
    ) -> None:
        self._streams = streams
        self.id = stream_id
        self.has_sender = has_sender
        self.has_receiver = has_receiver
        # out
        self._queue: deque[bytes] = deque()
        self._head_at = 0  # how much of the first of them was sent
        self._lost: list[StreamChunk] = []
        self._acked_bytes = 0
        self._fin_acked = False
        self._is_high = False
        self.is_ready = False  # stands in the queue of streams that have something to send
        self.unsent_bytes = 0
        self.sent_bytes = 0  # the offset of what is new
        self.send_limit = send_limit
        self.end_queued = False
        self.end_sent = False
        self.reset_code = UNKNOWN
        self.reset_due = False
        self.is_reset_acked = False
        self.stopped_by_peer = False
        # in
        self._reorder = Reorder()
        self.consumed = 0  # what the application has given credit for
        self.is_settled = False  # nobody will consume anything any more: all counts as consumed
        self.highest = 0
        self.final_size = UNKNOWN
        self.max_data = window
        self.max_data_due = False
        self.pieces: list[bytes] = []
        self.in_batch = False
        self.was_told_end = False
        self.receive_over = not has_receiver
        self.stop_code = UNKNOWN
        self.stop_due = False
        self.untold = 0  # ends that the application is yet to hear of: that it is gone comes behind them

    # -- out, for the application ---------------------------------------------------------------------

    def send(self, data: bytes, end: bool) -> None:
        """Queue bytes, and the end."""
        if self.end_queued or self.reset_code >= 0 or not self.has_sender:
            return
        size = len(data)
        if size:
            self._queue.append(data)
            self.unsent_bytes += size
            self._streams.unsent_bytes += size
            if self.unsent_bytes > HIGH_BYTES:
                self._is_high = True
        if end:
            self.end_queued = True
        if size or end:
            self._streams.ready(self)

    def can_send(self) -> bool:
        """Whether our side is still open."""
        return self.has_sender and not self.end_queued and self.reset_code < 0 and not self.stopped_by_peer

    def reset(self, code: int) -> None:
        """Give up our side."""
        if self.reset_code >= 0 or not self.has_sender or (self.end_sent and self._is_all_acked()):
            return
        self.reset_code = code
        self.reset_due = True
        self._drop_queue()
        self._streams.control(self)

    def stop(self, code: int) -> None:
        """Want no more of the peer's."""
        if self.stop_code >= 0 or not self.has_receiver:
            return
        self.stop_code = code
        streams = self._streams
        self.settle()
        if self.final_size >= 0:
            self.receive_over = True
        else:
            self.stop_due = True
            streams.control(self)
        streams.check_gone(self)

    def settle(self) -> None:
        """Count all that came, and will come, as consumed: nobody reads it."""
        if self.is_settled:
            return
        self.is_settled = True
        self._reorder.clear()
        self.pieces.clear()
        self.max_data_due = False
        self._streams.consume(self.highest - self.consumed)
        self.consumed = self.highest

    def credit(self, size: int) -> None:
        """Count bytes as consumed; the peer is told in halves of the window."""
        if self.is_settled:
            return
        self.consumed += size
        assert self.consumed <= self.highest
        streams = self._streams
        streams.consume(size)
        if self.final_size < 0 and self.consumed + streams.window - self.max_data >= streams.window >> 1:
            self.max_data = self.consumed + streams.window
            self.max_data_due = True
            streams.control(self)

    # -- out, for the writer --------------------------------------------------------------------------

    def has_something(self) -> bool:
        """Whether anything could be put into a packet now."""
        if self.reset_code >= 0:
            return False
        if self._lost:
            return True
        if self.unsent_bytes:
            return self.sent_bytes < self.send_limit and self._streams.room() > 0
        return self.end_queued and not self.end_sent

    def next_offset(self) -> int:
        """Return where `take_chunk` will begin."""
        return self._lost[-1].offset if self._lost else self.sent_bytes

    def take_chunk(self, room: int) -> StreamChunk | None:
        """Return the next bytes for a packet, at most `room`; lost ones first."""
        lost = self._lost
        if lost:
            chunk = lost[-1]
            if len(chunk.data) <= room:
                lost.pop()
                return chunk
            first = StreamChunk(self, chunk.offset, chunk.data[:room], False)
            chunk.data = chunk.data[room:]
            chunk.offset += room
            return first
        offset = self.sent_bytes
        size = min(room, self.unsent_bytes, self.send_limit - offset, self._streams.room())
        if size > 0:
            data = self._take(size)
            self.sent_bytes = offset + size
            self.unsent_bytes -= size
            self._streams.count_sent(size)
            if self._is_high and self.unsent_bytes <= LOW_BYTES:
                self._is_high = False
                self._streams.drained.append(self)
        elif self.unsent_bytes or self.end_sent or not self.end_queued:
            return None
        else:
            data = b""
        end = self.end_queued and not self.unsent_bytes
        self.end_sent = end
        return StreamChunk(self, offset, data, end)

    def _take(self, size: int) -> bytes:
        queue = self._queue
        first = queue[0]
        at = self._head_at
        left = len(first) - at
        if left > size:
            self._head_at = at + size
            return first[at : at + size]
        if left == size:
            queue.popleft()
            self._head_at = 0
            return first[at:] if at else first
        parts = [first[at:] if at else first]
        queue.popleft()
        self._head_at = 0
        size -= left
        while size:
            first = queue[0]
            if len(first) > size:
                parts.append(first[:size])
                self._head_at = size
                break
            parts.append(first)
            size -= len(first)
            queue.popleft()
        return b"".join(parts)

    def chunk_acked(self, chunk: StreamChunk) -> None:
        """Count what arrived."""
        self._acked_bytes += len(chunk.data)
        if chunk.end:
            self._fin_acked = True
        if self._fin_acked and self._is_all_acked():
            self._streams.check_gone(self)

    def chunk_lost(self, chunk: StreamChunk) -> None:
        """Queue it again."""
        if self.reset_code >= 0:
            return
        lost = self._lost
        lost.append(chunk)
        if len(lost) > 1 and lost[-2].offset < chunk.offset:
            lost.sort(key=_by_offset, reverse=True)  # the first bytes are what the peer waits for
        self._streams.ready(self)

    def reset_acked(self) -> None:
        """The peer knows that our side was given up."""
        self.is_reset_acked = True
        self._streams.check_gone(self)

    def say_again(self, *, reset: bool, stop: bool, credit: bool) -> None:
        """Queue frames about this stream that were lost."""
        self.reset_due |= reset
        self.stop_due |= stop
        self.max_data_due |= credit
        self._streams.control(self)

    def send_is_over(self) -> bool:
        """Whether nothing of our side can be lost any more."""
        return not self.has_sender or self.is_reset_acked or (self._fin_acked and self._is_all_acked())

    def _is_all_acked(self) -> bool:
        return self._acked_bytes >= self.sent_bytes and not self.unsent_bytes and self._fin_acked

    def let_go(self) -> None:
        """Forget what leads back here."""
        self._lost.clear()

    def _drop_queue(self) -> None:
        self._queue.clear()
        self._lost.clear()
        self._head_at = 0
        self._streams.unsent_bytes -= self.unsent_bytes
        self.unsent_bytes = 0
        self._is_high = False

    # -- in, for the reader ---------------------------------------------------------------------------

    def receive(self, offset: int, data: bytes) -> bool:
        """Gather bytes within the limits that the reader has checked; False if they cannot be kept."""
        if self.is_settled or self.receive_over:
            return True
        ready = self._reorder.add(offset, data)
        if ready is None:
            return False
        if ready:
            self.pieces.append(ready)
        return True

    def has_all(self) -> bool:
        """Whether everything up to the peer's FIN is here."""
        return self._reorder.offset == self.final_size

    def take_pieces(self) -> bytes:
        """Return all that became readable since it was last asked."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def lose_input(self) -> None:
        """Take the peer's RESET_STREAM: what was not handed on is dropped, and consumed."""
        self.receive_over = True
        self.settle()


def _by_offset(chunk: StreamChunk) -> int:
    return chunk.offset
