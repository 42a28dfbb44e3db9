"""Listening sockets of one worker, and the connections accepted on them.

Plain ones are uvloop's to accept on; where TLS or a PROXY header comes first, `arrivals` does.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from router.edge.arrivals import Arrivals
from router.edge.connection import ServerConnection
from router.edge.headcount import Headcount
from router.errors import WIRE, ProxyError
from router.exchange import Exchange

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from router.core import Core
    from router.edge.arrivals import TrustedPeers
    from router.http import Field
    from router.stream import DownstreamStream, RequestReceiver
    from router.transport.codec.h1.limits import ServerLimits
    from router.transport.shell import Reactor

BACKLOG = 4_096


class Listener:
    """Accepts until closed; drains its connections, or cuts them."""

    __slots__ = (
        "_arrivals",
        "_connections",
        "_context",
        "_proxies",
        "_servers",
        "alt_svc",
        "core",
        "headcount",
        "is_retiring",
        "limits",
        "reactor",
    )

    def __init__(
        self,
        core: Core,
        reactor: Reactor,
        limits: ServerLimits,
        max_connections: int,
        proxies: TrustedPeers | None = None,
        max_per_address: int = 0,
    ) -> None:
        """`proxies`: every connection begins with a PROXY header, and these may send one. See `Headcount`."""
        self.core = core
        self.reactor = reactor
        self.limits = limits
        self.is_retiring = False
        self.headcount = Headcount(reactor.counters, max_connections, max_per_address)
        self._connections: set[ServerConnection] = set()
        self._servers: list[asyncio.AbstractServer] = []
        self._proxies = proxies
        self._context: ssl.SSLContext | None = None
        self.alt_svc: Field | None = None  # on answers over TLS, where QUIC is served, too
        self._arrivals: Arrivals | None = None

    async def listen(self, sockets: list[socket.socket], tls_sockets: Sequence[socket.socket] = ()) -> None:
        """Start accepting on bound sockets, TCP or Unix, which the listener then owns."""
        loop = asyncio.get_running_loop()
        arrivals = self._arrivals = Arrivals(self, self._proxies)
        arrivals.context = self._context
        for sock in sockets:
            if self._proxies is not None:
                arrivals.listen(sock, is_tls=False)
                continue
            create: Any = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            self._servers.append(await create(lambda: ServerConnection(self), sock=sock, backlog=BACKLOG))
        for sock in tls_sockets:
            arrivals.listen(sock, is_tls=True)

    def set_context(self, context: ssl.SSLContext) -> None:
        """Give every TLS connection from now on this context; those there are keep theirs."""
        self._context = context
        if self._arrivals is not None:
            self._arrivals.context = context

    def admit(self, connection: ServerConnection) -> bool:
        """Count a new connection; False when there are too many."""
        self._connections.add(connection)
        if not self.headcount.enter(connection.peer.address):
            return False
        connection.is_counted = True
        if self.is_retiring:  # it was accepted before, and told to us only now
            connection.codec.retire(self.reactor.clock.now)
        return True

    def has_room(self, address: bytes) -> bool:
        """Whether a connection of that address would be taken, before a handshake is spent on it; counts if not."""
        return self.headcount.has_room(address)

    def forget(self, connection: ServerConnection) -> None:
        """Drop a connection that is gone."""
        self._connections.discard(connection)
        if connection.is_counted:
            connection.is_counted = False
            self.headcount.leave(connection.peer.address)

    def receive(self, stream: DownstreamStream, connection: ServerConnection) -> RequestReceiver:
        """Begin an exchange."""
        return Exchange(self.core, stream, connection.peer)

    def note_refused(self, error: ProxyError) -> None:
        """Count a request that was malformed or late before it had an exchange."""
        self.reactor.counters.malformed_requests += 1
        unrouted = self.core.unrouted
        status = WIRE[error.kind].status
        unrouted.requests += 1
        unrouted.statuses[status] = unrouted.statuses.get(status, 0) + 1
        unrouted.codes[error.kind.value] = unrouted.codes.get(error.kind.value, 0) + 1

    def stop_accepting(self) -> None:
        """Close the listening sockets of this process; the supervisor's copies stay."""
        self._close_servers()
        if self._arrivals is not None:
            self._arrivals.close()

    def retire(self) -> None:
        """Leave the listening sockets to another process, and lose no request of a client that cannot know.

        Idle connections are kept a little longer, since a request may be on its way; each answer from now on is its
        connection's last.
        """
        self.is_retiring = True
        self._close_servers()
        if self._arrivals is not None:
            self._arrivals.stop()
        now = self.reactor.clock.read()
        for connection in list(self._connections):
            connection.codec.retire(now)
        self.reactor.outbox.flush()

    def drain(self) -> None:
        """Close idle connections and have the others say `Connection: close`."""
        self.is_retiring = True
        for connection in list(self._connections):
            connection.codec.drain()
        self.reactor.outbox.flush()

    def cut(self, error: ProxyError) -> int:
        """End whatever is left, WebSockets with a close frame; return how many requests were cut."""
        cut = self.core.in_flight
        for connection in list(self._connections):
            connection.codec.cut(error)
        self.reactor.outbox.flush()
        return cut

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    @property
    def is_idle(self) -> bool:
        """Whether nobody is connected, or about to be."""
        return not self._connections and not (self._arrivals is not None and self._arrivals.waiting)

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)
