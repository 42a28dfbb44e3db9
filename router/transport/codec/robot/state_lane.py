"""The state lane, where newest wins: one stream a message, in and out. For both roles.

In: messages are gathered side by side; the first that is whole makes all older ones stale. Out: a message resets
the one before it unless that was acknowledged, and waits, alone, while the peer allows no more streams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.transport.codec.robot import wire
from router.transport.codec.robot.limits import MAX_GATHERED_BYTES
from router.transport.codec.robot.wire import StateReader

if TYPE_CHECKING:
    from router.transport.codec.quic.seam import Bearer, Flow


class StateIn:
    """What comes. `fault` is a close code for what the peer did wrong."""

    __slots__ = ("_flows", "_gives_credit", "_owed", "_readers", "fault", "gathered", "newest", "stale")

    def __init__(self, *, gives_credit: bool) -> None:
        """`gives_credit`: for messages that are not whole; else not before `allow`."""
        self._readers: dict[int, StateReader] = {}
        self._flows: dict[int, Flow] = {}
        self._gives_credit = gives_credit
        self._owed: dict[int, int] = {}  # credit that is withheld
        self.newest = 0  # sequence of the newest that was whole
        self.gathered = 0  # bytes of messages that are not
        self.stale = 0
        self.fault = 0

    def open(self, flow: Flow) -> None:
        """Begin a message."""
        self._readers[flow.id] = StateReader()
        self._flows[flow.id] = flow

    def read(self, flow: Flow, data: bytes, end: bool) -> StateReader | None:
        """Take bytes of a message; return it once it is whole."""
        reader = self._readers.get(flow.id)
        if reader is None:
            return None
        if self._gives_credit:
            flow.credit(len(data))
        else:
            self._owed[flow.id] = self._owed.get(flow.id, 0) + len(data)
        before = reader.size
        if not reader.read(data) or (end and not reader.sequence):
            self.fault = reader.fault or wire.BROKEN
            return None
        self.gathered += reader.size - before
        if reader.sequence and reader.sequence <= self.newest:
            self.stale += 1
            self.drop(flow)
            return None
        if end:
            flow.credit(self._owed.get(flow.id, 0))
            self._forget(flow.id)
            self.newest = reader.sequence
            for flow_id in [key for key, other in self._readers.items() if 0 < other.sequence < reader.sequence]:
                self.stale += 1
                self.drop(self._flows[flow_id])
            return reader
        while self.gathered > MAX_GATHERED_BYTES:
            self._drop_oldest()
        return None

    def allow(self) -> None:
        """Give credit from now on, and what was withheld."""
        self._gives_credit = True
        for flow_id, size in self._owed.items():
            self._flows[flow_id].credit(size)
        self._owed.clear()

    def peek(self, flow: Flow) -> int:
        """Return the deadline of a message that is not whole yet; 0 for none, or while it is not known."""
        reader = self._readers.get(flow.id)
        return 0 if reader is None else reader.deadline

    def drop(self, flow: Flow) -> None:
        """Want no more of a message."""
        self._forget(flow.id)
        flow.stop(wire.STALE)

    def lose(self, flow: Flow) -> None:
        """Learn that the peer gave a message up: it has a newer one."""
        if self._forget(flow.id):
            self.stale += 1

    def _drop_oldest(self) -> None:
        _, oldest = min([(reader.sequence, key) for key, reader in self._readers.items() if reader.size])
        self.stale += 1
        self.drop(self._flows[oldest])

    def _forget(self, flow_id: int) -> bool:
        reader = self._readers.pop(flow_id, None)
        if reader is None:
            return False
        del self._flows[flow_id]
        self._owed.pop(flow_id, None)
        self.gathered -= reader.size
        return True


class StateOut:
    """What goes."""

    __slots__ = ("_bearer", "_deadline", "_waiting", "last", "sent", "sequence", "stale")

    def __init__(self, bearer: Bearer) -> None:
        self._bearer = bearer
        self._waiting: bytes | None = None
        self._deadline = 0  # of what waits
        self.last: Flow | None = None  # what is under way
        self.sequence = 0
        self.sent = 0
        self.stale = 0  # never sent whole

    def send(self, payload: bytes, deadline: int = 0) -> None:
        """Send a message instead of the one before."""
        last = self.last
        if last is not None:
            if last.unsent_bytes:
                self.stale += 1
            last.reset(wire.STALE)
            self.last = None
        if self._waiting is not None:
            self.stale += 1
        self._waiting = payload
        self._deadline = deadline
        self.send_waiting()

    def send_waiting(self) -> None:
        """Send what waits for a stream, if there is one now."""
        payload = self._waiting
        if payload is None:
            return
        flow = self._bearer.open_stream(unidirectional=True)
        if flow is None:
            return
        self._waiting = None
        self.sequence += 1
        self.sent += 1
        self.last = flow
        flow.send(wire.state_header(self.sequence, self._deadline), False)
        flow.send(payload, True)

    def gone(self, flow: Flow) -> None:
        """Learn that a stream was acknowledged or given up."""
        if flow is self.last:
            self.last = None
