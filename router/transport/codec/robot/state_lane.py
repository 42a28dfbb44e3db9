"""The state lane, where newest wins: one stream a message, in and out. For both roles.

In: messages are gathered side by side; the first that is whole makes all older ones stale. Out: a message gives up
the one before it if much of that was not sent yet, but never two in a row that had begun: else a link that takes
longer for one than there is between two would deliver none. What was sent whole is left to be repeated where
packets were lost. The newest alone waits, for a stream or for the one that is being sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.transport.codec.robot import wire
from router.transport.codec.robot.limits import MAX_GATHERED_BYTES, MAX_UNDER_WAY, NEARLY_BYTES
from router.transport.codec.robot.wire import StateReader

if TYPE_CHECKING:
    from router.transport.codec.quic.seam import Bearer, Flow


class StateIn:
    """What comes. `fault` is a close code for what the peer did wrong."""

    __slots__ = (
        "_flows",
        "_gives_credit",
        "_owed",
        "_readers",
        "_stale_code",
        "fault",
        "gathered",
        "newest",
        "stale",
    )  # fmt: skip

    def __init__(self, *, gives_credit: bool, stale: int = wire.STALE) -> None:
        """`gives_credit`: for messages that are not whole; else not before `allow`. `stale`: the code of a stop."""
        self._stale_code = stale
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
        flow.stop(self._stale_code)

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

    __slots__ = (
        "_bearer",
        "_deadline",
        "_gave_up",
        "_last_bytes",
        "_stale_code",
        "_under_way",
        "_waiting",
        "last",
        "late",
        "sent",
        "sequence",
        "stale",
    )  # fmt: skip

    def __init__(self, bearer: Bearer, *, stale: int = wire.STALE) -> None:
        """`stale`: the code to reset with."""
        self._bearer = bearer
        self._stale_code = stale
        self._waiting: bytes | None = None
        self._deadline = 0  # of what waits
        self._under_way: list[tuple[Flow, int]] = []  # with deadlines, the oldest first
        self._gave_up = False  # the message before `last`, though it had begun
        self._last_bytes = 0
        self.last: Flow | None = None  # the newest that is under way
        self.sequence = 0
        self.sent = 0
        self.stale = 0  # never sent whole, or not wanted any more
        self.late = 0  # given up since their time had passed

    def send(self, payload: bytes, deadline: int = 0) -> None:
        """Send a message; `deadline` is a time of our clock in microseconds, 0 for none."""
        if self._waiting is not None:
            self.stale += 1
        self._waiting = payload
        self._deadline = deadline
        last = self.last
        if last is not None:
            unsent = last.unsent_bytes
            if unsent >= self._last_bytes:  # it has not begun: nothing is wasted, however often that happens
                gave_up = self._gave_up
                self._give_up_last()
                self._gave_up = gave_up
            elif unsent > self._nearly() and not self._gave_up:
                self._give_up_last()
        self.send_waiting()

    def send_waiting(self) -> None:
        """Send what waits, if there is a stream for it and the one before it is as good as sent."""
        payload = self._waiting
        if payload is None:
            return
        last = self.last
        if last is not None:
            if last.unsent_bytes > self._nearly():
                return
            self._gave_up = False
        under_way = self._under_way
        if len(under_way) >= MAX_UNDER_WAY:
            self.stale += 1
            self._forget(0).reset(self._stale_code)
        flow = self._bearer.open_stream(unidirectional=True)
        if flow is None:
            return
        self._waiting = None
        self.sequence += 1
        self.sent += 1
        self.last = flow
        under_way.append((flow, self._deadline))
        header = wire.state_header(self.sequence, self._deadline)
        self._last_bytes = len(header) + len(payload)
        flow.send(header, False)
        flow.send(payload, True)

    def _nearly(self) -> int:
        """Return how little of the newest may be left for it to be as good as sent."""
        return min(NEARLY_BYTES, self._last_bytes >> 2)

    def hurry(self) -> None:
        """Send what waits now: nothing comes behind it."""
        if self._waiting is not None and self.last is not None:
            self._give_up_last()
        self.send_waiting()

    def expire(self, now_us: int) -> None:
        """Give up what is too late."""
        if self._waiting is not None and 0 < self._deadline <= now_us:
            self._waiting = None
            self.late += 1
        for at in range(len(self._under_way) - 1, -1, -1):
            if 0 < self._under_way[at][1] <= now_us:
                self.late += 1
                self._forget(at).reset(self._stale_code)

    def next_deadline(self) -> int:
        """Return when the first of all is too late; 0 if none ever is."""
        first = self._deadline if self._waiting is not None else 0
        for _, deadline in self._under_way:
            if deadline and (not first or deadline < first):
                first = deadline
        return first

    def is_settled(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return self._waiting is None and not self._under_way

    def take_waiting(self) -> tuple[bytes, int] | None:
        """Take back what waits, with its deadline: the connection is over."""
        payload = self._waiting
        self._waiting = None
        return None if payload is None else (payload, self._deadline)

    def stopped(self, flow: Flow) -> None:
        """Learn that the peer wants a message no more: it has a newer one."""
        if self.gone(flow):
            self.stale += 1

    def gone(self, flow: Flow) -> bool:
        """Learn that a stream was acknowledged or given up; whether it was under way."""
        for at in range(len(self._under_way)):
            if self._under_way[at][0] is flow:
                self._forget(at)
                return True
        return False

    def _give_up_last(self) -> None:
        """Reset the newest: much of it is not sent yet."""
        last = self._forget(len(self._under_way) - 1)
        self.stale += 1
        last.reset(self._stale_code)
        self._gave_up = True

    def _forget(self, at: int) -> Flow:
        flow, _ = self._under_way.pop(at)
        if flow is self.last:
            self.last = None
            self._gave_up = False
        return flow
