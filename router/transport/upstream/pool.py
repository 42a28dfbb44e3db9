"""Keep-alive connections by replica: last in, first out, no lock, no scan.

A warm open is a pop from a list. Idle connections are retired before the replica would close them, after a
time learned from the replica itself: uvicorn cuts at 5.0 s, and a request sent at that moment is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.transport.upstream.dial import PendingConnect

if TYPE_CHECKING:
    from router.routing.load import Replica
    from router.stream import PendingStream, ResponseReceiver, UpstreamStream
    from router.transport.shell import Reactor
    from router.transport.upstream.connection import UpstreamConnection

DEFAULT_KEEP_S = 4.0  # below uvicorn's cut of 5.0 s
LEARNED_SHARE = 0.8  # of a cut that was seen
MIN_KEEP_S = 0.1
AGREEMENT_S = 0.1  # two cuts agree within this …
AGREEMENT_SHARE = 0.2  # … or within this share
FORGET_S = 300.0
MAX_IDLE = 1_024  # idle connections kept to one replica


class Kept:
    """What is kept of one replica: idle connections, and how long they may stay so."""

    __slots__ = ("cut_s", "idle", "keep_s", "learned_s")

    def __init__(self) -> None:
        self.idle: list[UpstreamConnection] = []
        self.keep_s = DEFAULT_KEEP_S
        self.cut_s = 0.0  # after how long the last idle connection was closed by the replica
        self.learned_s = 0.0  # when `keep_s` was lowered


class ConnectionPool:
    """Opens streams on pooled or fresh connections. Lives in one worker's event loop."""

    __slots__ = ("_kept", "reactor")

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self._kept: dict[Replica, Kept] = {}

    def open(
        self, replica: Replica, receiver: ResponseReceiver, connect_s: float, *, fresh: bool
    ) -> UpstreamStream | PendingStream:
        """Return an idle connection's stream at once, or connect. See `core.Pool`."""
        kept = self._kept.get(replica)
        if kept is not None and not fresh:
            idle = kept.idle
            now = self.reactor.clock.now
            if kept.learned_s and now - kept.learned_s > FORGET_S:
                kept.learned_s = 0.0
                kept.keep_s = DEFAULT_KEEP_S
            oldest_s = now - kept.keep_s
            while idle:
                connection = idle.pop()
                codec = connection.h1
                if not codec.is_idle:
                    continue
                if codec.last_moved_s <= oldest_s:
                    connection.retire()  # last in, first out: all below it are older still
                    continue
                self.reactor.counters.upstream_reused += 1
                connection.start(receiver, reused=True)
                return codec
        return PendingConnect(self, replica, receiver, connect_s)

    def put(self, connection: UpstreamConnection) -> None:
        """Take an idle connection back, unless its replica left the table."""
        replica = connection.replica
        kept = self._kept.get(replica)
        if kept is None:
            if replica.has_left:
                connection.retire()
                return
            kept = self._kept[replica] = Kept()
        idle = kept.idle
        if len(idle) >= MAX_IDLE:
            idle.pop(0).retire()
        idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """Drop a connection that is gone."""
        kept = self._kept.get(connection.replica)
        if kept is not None and connection in kept.idle:
            kept.idle.remove(connection)

    def idle_count(self, replica: Replica) -> int:
        """Return how many idle connections there are to `replica`."""
        kept = self._kept.get(replica)
        return 0 if kept is None else len(kept.idle)

    def keep_s(self, replica: Replica) -> float:
        """Return how long a connection to `replica` may stay idle."""
        kept = self._kept.get(replica)
        return DEFAULT_KEEP_S if kept is None else kept.keep_s

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
            for connection in kept.idle:
                connection.retire()

    def close(self) -> None:
        """Retire everything idle."""
        for replica in list(self._kept):
            self.leave(replica)
