"""Connections by replica, for whichever version of HTTP it speaks.

HTTP/1.1: keep-alive connections, last in, first out; a warm open is a pop from a list. Idle ones are retired
before the replica would close them, after a time learned from the replica itself: uvicorn cuts at 5.0 s, and a
request sent at that moment is lost.

HTTP/2: connections that are shared; a warm open is a stream on the first that has room, by the peer's limit as
it is at that moment. Nobody waits for room: where every connection is full and there may be no more, the
request is refused, and may go to another replica.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from router.errors import Kind, ProxyError, Retry, Source
from router.stream import PendingStream
from router.transport.attached import NOWHERE, AttachedSockets
from router.transport.codec.h2.limits import ASSUMED_STREAMS
from router.transport.codec.robot.wire import VERSION as ROBOT
from router.transport.upstream.dial import Dial, PendingConnect
from router.transport.upstream.opening import Lanes, Pool

if TYPE_CHECKING:
    from router.http import RequestHead
    from router.routing.load import Replica
    from router.routing.spec import DialSpec
    from router.stream import ResponseReceiver, UpstreamStream
    from router.transport.shell import Reactor
    from router.transport.upstream.connection import UpstreamConnection

DEFAULT_KEEP_S = 4.0  # below uvicorn's cut of 5.0 s
LEARNED_SHARE = 0.8  # of a cut that was seen
MIN_KEEP_S = 0.1
AGREEMENT_S = 0.1  # two cuts agree within this …
AGREEMENT_SHARE = 0.2  # … or within this share
FORGET_S = 300.0
MAX_IDLE: Final = 1_024  # idle connections kept to one replica
FLOOR_RETRY_S = 1.0  # between attempts to open a replica's floor of connections

_FULL: Final = ProxyError(
    Kind.AT_CAPACITY, Source.ROUTER, Retry.SAFE, "every connection to the replica carries all the streams it takes"
)


class Kept:
    """What is kept of one replica: its connections, and how long an idle one may stay."""

    __slots__ = ("cut_s", "dials", "idle", "is_h2", "keep_s", "learned_s", "max_streams", "retry", "shared")

    def __init__(self) -> None:
        self.idle: list[UpstreamConnection] = []  # HTTP/1.1
        self.shared: list[UpstreamConnection] = []  # HTTP/2
        self.dials: list[Dial] = []  # HTTP/2, under way
        self.retry: asyncio.TimerHandle | None = None  # of the floor: one, however often it was asked for
        self.max_streams = ASSUMED_STREAMS  # that it takes on a connection, as far as is known
        self.is_h2 = False  # it chose HTTP/2 when it was last asked
        self.keep_s = DEFAULT_KEEP_S
        self.cut_s = 0.0  # after how long the last idle connection was closed by the replica
        self.learned_s = 0.0  # when `keep_s` was lowered


class ConnectionPool(Pool):
    """Warm and fresh connections. Lives in one worker's event loop."""

    __slots__ = ("_is_closed", "_kept", "attached", "lanes", "reactor")

    def __init__(self, reactor: Reactor, attached: AttachedSockets = NOWHERE) -> None:
        self.reactor = reactor
        self.attached = attached
        self.lanes: Lanes | None = None  # where QUIC is listened on
        self._kept: dict[Replica, Kept] = {}
        self._is_closed = False

    def open(
        self, replica: Replica, receiver: ResponseReceiver, dial: DialSpec, head: RequestHead | None, *, fresh: bool
    ) -> UpstreamStream | PendingStream | ProxyError:
        """Return a stream at once, or connect, or say why not. See `Pool`."""
        lanes = self.lanes
        if lanes is not None and head is not None:
            shape = head.shape
            if shape.version == ROBOT and shape.upgrade is not None and lanes.leads_to(replica, head):
                return self._open_lanes(lanes, replica, receiver, dial)
        kept = self._kept.get(replica)
        if kept is None:
            if replica.scheme != "h2c":
                return self._connect(replica, receiver, dial)
            kept = self._keep(replica)
        for connection in kept.shared:
            h2 = connection.h2
            if h2 is not None and h2.room > 0:
                self.reactor.counters.upstream_reused += 1
                return h2.open(receiver, self.reactor.clock.now)
        if kept.shared or kept.is_h2 or replica.scheme == "h2c":
            return self._connect_shared(replica, kept, receiver, dial)
        if not fresh:
            idle = kept.idle
            now = self.reactor.clock.now
            if kept.learned_s and now - kept.learned_s > FORGET_S:
                kept.learned_s = 0.0
                kept.keep_s = DEFAULT_KEEP_S
            oldest_s = now - kept.keep_s
            while idle:
                connection = idle.pop()
                h1 = connection.h1
                if h1 is None or not h1.is_idle:
                    continue
                if h1.last_moved_s <= oldest_s:
                    connection.retire()  # last in, first out: all below it are older still
                    continue
                self.reactor.counters.upstream_reused += 1
                return connection.start(receiver, reused=True)
        return self._connect(replica, receiver, dial)

    def _open_lanes(
        self, lanes: Lanes, replica: Replica, receiver: ResponseReceiver, dial: DialSpec
    ) -> PendingStream:
        # On its own: a closure costs the function around it an object for every call.
        return lanes.open(
            replica, receiver, dial, lambda waiting: self.open(replica, waiting, dial, None, fresh=False)
        )

    def _connect(self, replica: Replica, receiver: ResponseReceiver, dial: DialSpec) -> PendingConnect:
        return Dial(self, replica, dial).wait(receiver)

    def _connect_shared(
        self, replica: Replica, kept: Kept, receiver: ResponseReceiver, dial: DialSpec
    ) -> PendingConnect | ProxyError:
        """Join a connection being made, or make one more."""
        for under_way in kept.dials:
            if len(under_way.waiting) < max(1, kept.max_streams):
                return under_way.wait(receiver)
        if len(kept.shared) + len(kept.dials) >= dial.connections.ceiling:
            return _FULL
        return self._dial_shared(replica, kept, dial).wait(receiver)

    def place(self, pending: PendingConnect, dial: Dial) -> None:
        """Find another stream for a request that waited in vain: the replica takes fewer than was thought."""
        receiver = pending.receiver
        assert receiver is not None
        pending.has_moved = True
        opened = self.open(dial.replica, receiver, dial.spec, None, fresh=True)
        if isinstance(opened, ProxyError):
            receiver.upstream_failed(opened)
        elif isinstance(opened, PendingConnect):
            opened.dial.adopt(pending, opened)
        else:
            assert not isinstance(opened, PendingStream)
            receiver.upstream_ready(opened)

    def _dial_shared(self, replica: Replica, kept: Kept, dial: DialSpec) -> Dial:
        under_way = Dial(self, replica, dial, is_shared=True)
        kept.dials.append(under_way)
        return under_way

    def dialled(self, dial: Dial, connection: UpstreamConnection | None) -> bool:
        """Learn how a dial ended; whether the connection is kept beyond the requests that wait for it.

        With `https` each of the first requests dials, since nobody knows yet that one could serve them all.
        """
        replica = dial.replica
        kept = self._kept.get(replica)
        if kept is not None and dial in kept.dials:
            kept.dials.remove(dial)
        if connection is None or connection.transport is None or replica.has_left or self._is_closed:
            return False
        if kept is None:
            kept = self._keep(replica)
        h2 = connection.h2
        kept.is_h2 = h2 is not None
        if h2 is not None:
            kept.max_streams = h2.peer_max_streams
        if kept.is_h2 and len(kept.shared) < dial.spec.connections.ceiling:
            kept.shared.append(connection)
            return True
        return False

    def keep_floor(self, replica: Replica) -> None:
        """Have as many HTTP/2 connections open to a replica as its endpoint says, now and when one is lost."""
        endpoint = replica.owner
        if endpoint is None or self._is_closed:
            return
        kept = self._kept.get(replica) or self._keep(replica)
        if replica.scheme == "http" or (kept.idle and not kept.is_h2):
            return  # HTTP/1.1: a connection that nobody uses would be retired at once
        if kept.retry is not None:
            return  # it is tried again soon enough
        missing = endpoint.dial.connections.floor - len(kept.shared) - len(kept.dials)
        for _ in range(missing):
            self._dial_shared(replica, kept, endpoint.dial)
        if missing > 0:
            kept.retry = asyncio.get_running_loop().call_later(FLOOR_RETRY_S, self._retry_floor, replica, kept)

    def _retry_floor(self, replica: Replica, kept: Kept) -> None:
        kept.retry = None
        if self._kept.get(replica) is kept:
            self.keep_floor(replica)

    def put(self, connection: UpstreamConnection) -> None:
        """Take an idle connection back, unless its replica left the table."""
        replica = connection.replica
        kept = self._kept.get(replica)
        if kept is None:
            if replica.has_left:
                connection.retire()
                return
            kept = self._keep(replica)
        idle = kept.idle
        if len(idle) >= MAX_IDLE:
            idle.pop(0).retire()
        idle.append(connection)

    def _keep(self, replica: Replica) -> Kept:
        kept = self._kept[replica] = Kept()
        return kept

    def forget(self, connection: UpstreamConnection) -> None:
        """Drop a connection that is gone, or takes nothing new."""
        kept = self._kept.get(connection.replica)
        if kept is None:
            return
        if connection in kept.idle:
            kept.idle.remove(connection)
        if connection in kept.shared:
            kept.shared.remove(connection)
            endpoint = connection.replica.owner
            if endpoint is not None and endpoint.dial.connections.floor:
                self.keep_floor(connection.replica)

    def idle_count(self, replica: Replica) -> int:
        """Return how many connections to `replica` a request would find."""
        kept = self._kept.get(replica)
        return 0 if kept is None else len(kept.idle) + len(kept.shared)

    def keep_s(self, replica: Replica) -> float:
        """Return how long a connection to `replica` may stay idle."""
        kept = self._kept.get(replica)
        return DEFAULT_KEEP_S if kept is None else kept.keep_s

    def learn_streams(self, replica: Replica, count: int) -> None:
        """Note how many streams the replica takes on a connection."""
        kept = self._kept.get(replica)
        if kept is not None:
            kept.max_streams = count

    def learn_idle_cut(self, replica: Replica, after_s: float) -> None:
        """Note that the replica closed a connection that was idle for `after_s`."""
        kept = self._kept.get(replica)
        if kept is None:
            return
        # Two that agree are a rule; one may be a restart. And a rule is forgotten: the next engine has another.
        if abs(after_s - kept.cut_s) <= max(AGREEMENT_S, after_s * AGREEMENT_SHARE):
            kept.keep_s = max(MIN_KEEP_S, min(kept.keep_s, after_s * LEARNED_SHARE))
            kept.learned_s = self.reactor.clock.now
        kept.cut_s = after_s

    def leave(self, replica: Replica) -> None:
        """Retire what is kept of a replica that left the table; what is in use is retired when it comes back."""
        kept = self._kept.pop(replica, None)
        if kept is not None:
            if kept.retry is not None:
                kept.retry.cancel()
            for connection in kept.idle + kept.shared:
                connection.retire()

    def close(self) -> None:
        """Retire everything."""
        self._is_closed = True
        for replica in list(self._kept):
            self.leave(replica)
