"""All streams of a connection: who may open how many, what may be sent and received in all, whose turn it is.

Streams that have something to send take turns, packet by packet. Closed ones are forgotten, and known by their
number: what comes late for one is dropped. Imports nothing but its neighbours.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from router.transport.codec.quic.flow import QuicFlow
from router.transport.codec.quic.limits import (
    FINAL_SIZE_ERROR,
    FLOW_CONTROL_ERROR,
    STREAM_LIMIT_ERROR,
    STREAM_STATE_ERROR,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BIDI: Final = 0
UNI: Final = 1


class Streams:
    """`window` is what each stream, `connection_window` what the connection may have received and not consumed."""

    __slots__ = (
        "_connection_window",
        "_consumed",
        "_fresh",
        "_is_server",
        "_limits",
        "_next_own",
        "_next_peers",
        "_on_gone",
        "_opened",
        "_own_limits",
        "_peers_open",
        "batch",
        "controls",
        "data_blocked",
        "drained",
        "flows",
        "fresh",
        "max_data",
        "max_data_due",
        "max_streams",
        "max_streams_due",
        "peer_limits",
        "peer_max_data",
        "queue",
        "received_bytes",
        "sent_bytes",
        "touch",
        "unsent_bytes",
        "window",
    )

    def __init__(
        self,
        *,
        is_server: bool,
        window: int,
        connection_window: int,
        limits: tuple[int, int],
        touch: Callable[[], None],
        on_gone: Callable[[QuicFlow], None],
    ) -> None:
        """`limits`: how many streams the peer may have open, two-way and one-way."""
        self._is_server = is_server
        self.window = window
        self._connection_window = connection_window
        self.touch = touch
        self._on_gone = on_gone
        self.flows: dict[int, QuicFlow] = {}
        self.queue: deque[QuicFlow] = deque()  # have something to send
        self.controls: list[QuicFlow] = []  # have a frame about themselves to send
        self.drained: list[QuicFlow] = []  # fell below the low mark: the application is to be told
        self.batch: list[QuicFlow] = []  # got something since the application was last told
        self.fresh: list[QuicFlow] = []  # opened by the peer since then
        # in
        self._limits = limits
        self.max_streams = [limits[BIDI], limits[UNI]]
        self.max_streams_due = [False, False]
        self._next_peers = [0, 0]
        self._peers_open = [0, 0]
        self.max_data = connection_window
        self.max_data_due = False
        self.received_bytes = 0
        self._consumed = 0
        # out
        self._next_own = [0, 0]
        self.peer_limits = [0, 0]
        self.peer_max_data = 0
        self.sent_bytes = 0
        self.unsent_bytes = 0
        self._own_limits = [0, 0, 0]  # initial credit of streams: ours two-way, the peer's two-way, ours one-way

    def let_go(self) -> None:
        """Forget all of them, and who is told."""
        self._on_gone = _tell_nobody
        for flow in self.flows.values():
            flow.let_go()
        self.flows.clear()
        self.queue.clear()
        for flows in (self.controls, self.drained, self.batch, self.fresh):
            flows.clear()

    def set_peer_limits(self, max_data: int, ours: int, peers: int, uni: int, streams: tuple[int, int]) -> None:
        """Take the peer's transport parameters; what was remembered of an earlier connection may only grow."""
        self.peer_max_data = max(self.peer_max_data, max_data)
        self._own_limits = [ours, peers, uni]
        for kind in (BIDI, UNI):
            self.peer_limits[kind] = max(self.peer_limits[kind], streams[kind])
        for flow in self.flows.values():
            flow.send_limit = max(flow.send_limit, self._initial_credit(flow.id))
            if flow.has_something():
                self.ready(flow)

    def forget_peer_limits(self) -> None:
        """Unlearn what an earlier connection promised: the peer refused early data."""
        self.peer_max_data = 0
        self.peer_limits = [0, 0]
        for flow in self.flows.values():
            flow.send_limit = 0

    def _initial_credit(self, stream_id: int) -> int:
        is_ours = (stream_id & 1) == self._is_server
        if stream_id & 2:
            return self._own_limits[2] if is_ours else 0
        return self._own_limits[0 if is_ours else 1]

    # -- opening --------------------------------------------------------------------------------------

    def open(self, *, unidirectional: bool) -> QuicFlow | None:
        """Open a stream of ours, if the peer allows another."""
        kind = UNI if unidirectional else BIDI
        number = self._next_own[kind]
        if number >= self.peer_limits[kind]:
            return None
        self._next_own[kind] = number + 1
        stream_id = number << 2 | (2 if unidirectional else 0) | (1 if self._is_server else 0)
        return self._make(stream_id, has_receiver=not unidirectional, has_sender=True)

    def _make(self, stream_id: int, *, has_receiver: bool, has_sender: bool) -> QuicFlow:
        flow = self.flows[stream_id] = QuicFlow(
            self,
            stream_id,
            self._initial_credit(stream_id),
            self.window,
            has_sender=has_sender,
            has_receiver=has_receiver,
        )
        return flow

    def find(self, stream_id: int, *, for_receiving: bool) -> QuicFlow | int | None:
        """Return the stream that a frame is about: None if it is gone, an error code if it cannot be.

        `for_receiving`: the frame is about what the peer sends on it.
        """
        flow = self.flows.get(stream_id)
        is_ours = (stream_id & 1) == self._is_server
        if stream_id & 2 and is_ours == for_receiving:
            return STREAM_STATE_ERROR  # RFC 9000 §19.8 and the other frames: not in this direction
        if flow is not None:
            return flow
        kind = UNI if stream_id & 2 else BIDI
        number = stream_id >> 2
        if is_ours:
            return STREAM_STATE_ERROR if number >= self._next_own[kind] else None
        if number < self._next_peers[kind]:
            return None
        if number >= self.max_streams[kind]:
            return STREAM_LIMIT_ERROR
        # RFC 9000 §3.2: all of its kind that come before it are open, too.
        for earlier in range(self._next_peers[kind], number + 1):
            flow = self._make(earlier << 2 | (stream_id & 3), has_receiver=True, has_sender=kind == BIDI)
            self.fresh.append(flow)
        self._peers_open[kind] += number + 1 - self._next_peers[kind]
        self._next_peers[kind] = number + 1
        return flow

    # -- in -------------------------------------------------------------------------------------------

    def receive(self, flow: QuicFlow, offset: int, data: bytes, *, end: bool) -> int:
        """Take a STREAM frame; return 0, an error code, or -1 if it cannot be kept."""
        last = offset + len(data)
        final_size = flow.final_size
        if final_size >= 0 and (last > final_size or (end and last != final_size)):
            return FINAL_SIZE_ERROR
        if last > flow.highest:
            code = self._grow(flow, last)
            if code:
                return code
        if end and final_size < 0:
            if last < flow.highest:
                return FINAL_SIZE_ERROR
            flow.final_size = last
            flow.max_data_due = False
            if flow.is_settled:
                flow.receive_over = True
                self.check_gone(flow)
        if not flow.receive(offset, data):
            return -1
        if not flow.in_batch and (flow.pieces or (flow.final_size >= 0 and flow.has_all())):
            flow.in_batch = True
            self.batch.append(flow)
        return 0

    def receive_reset(self, flow: QuicFlow, final_size: int) -> int:
        """Take a RESET_STREAM; return 0 or an error code."""
        if (flow.final_size >= 0 and flow.final_size != final_size) or final_size < flow.highest:
            return FINAL_SIZE_ERROR
        if final_size > flow.highest:
            code = self._grow(flow, final_size)
            if code:
                return code
        flow.final_size = final_size
        return 0

    def _grow(self, flow: QuicFlow, last: int) -> int:
        """Count bytes beyond the highest so far against both windows."""
        if last > flow.max_data:
            return FLOW_CONTROL_ERROR
        size = last - flow.highest
        self.received_bytes += size
        flow.highest = last
        if flow.is_settled:
            flow.consumed = last
            self.consume(size)
        return FLOW_CONTROL_ERROR if self.received_bytes > self.max_data else 0

    def consume(self, size: int) -> None:
        """Give credit of the connection back, told in halves of its window."""
        self._consumed += size
        window = self._connection_window
        if self._consumed + window - self.max_data >= window >> 1:
            self.max_data = self._consumed + window
            self.max_data_due = True
            self.touch()

    # -- out ------------------------------------------------------------------------------------------

    def room(self) -> int:
        """Return how many new bytes the peer takes on the connection."""
        return self.peer_max_data - self.sent_bytes

    def count_sent(self, size: int) -> None:
        """Count new bytes."""
        self.sent_bytes += size
        self.unsent_bytes -= size

    def ready(self, flow: QuicFlow) -> None:
        """Queue a stream that has something to send."""
        if not flow.is_ready:
            flow.is_ready = True
            self.queue.append(flow)
        self.touch()

    def control(self, flow: QuicFlow) -> None:
        """Queue a stream that has a frame about itself to send."""
        self.controls.append(flow)
        self.touch()

    def wake(self) -> None:
        """Queue every stream that the connection's credit held back."""
        for flow in self.flows.values():
            if flow.unsent_bytes and not flow.is_ready and flow.has_something():
                self.ready(flow)

    # -- ending ---------------------------------------------------------------------------------------

    def check_gone(self, flow: QuicFlow) -> None:
        """Forget a stream of which nothing more can come in either direction."""
        if not flow.receive_over or flow.untold or not flow.send_is_over() or flow.id not in self.flows:
            return
        del self.flows[flow.id]
        kind = UNI if flow.id & 2 else BIDI
        if (flow.id & 1) != self._is_server:
            self._peers_open[kind] -= 1
            allowed = self._next_peers[kind] - self._peers_open[kind] + self._limits[kind]
            if allowed - self.max_streams[kind] >= (self._limits[kind] + 3) >> 2:
                self.max_streams[kind] = allowed
                self.max_streams_due[kind] = True
                self.touch()
        self._on_gone(flow)


def _tell_nobody(flow: QuicFlow) -> None:
    """Stand for an owner that has let go."""
