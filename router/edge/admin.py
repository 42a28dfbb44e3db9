"""The admin listener: probes, metrics, state and the few mutations, for operators and their tools.

It runs in the supervisor's process, so that it answers while a worker's loop is stalled, and speaks HTTP/1.1
through the same shell and server codec as the data path. It learns everything through `AdminSource` and
imports neither settings nor the supervisor. The owner of the reactor must turn its wheel: slow heads and
idle connections are cut by it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Protocol

from router.edge.admin_request import AdminRequest
from router.edge.admin_routes import AdminRoutes
from router.edge.connection import ServerConnection
from router.errors import Kind, ProxyError, Source

if TYPE_CHECKING:
    from router.demand import EndpointDemand
    from router.routing.explain import Asked
    from router.routing.spec import TableSpec
    from router.stream import DownstreamStream, RequestReceiver
    from router.telemetry import WorkerSnapshot
    from router.transport.codec.h1.limits import ServerLimits
    from router.transport.shell import Reactor

BACKLOG = 128
MAX_CONNECTIONS = 512


class AdminSource(Protocol):
    """What the supervisor tells the admin listener, and does for it."""

    async def snapshots(self) -> list[WorkerSnapshot]:
        """Ask every worker, each with a short limit; of a stalled one the last known snapshot is returned."""

    async def demand(self) -> dict[str, EndpointDemand]:
        """Return what each endpoint that was ever asked for anything is asked for, over all workers."""

    def table(self) -> TableSpec:
        """Return the table in force."""

    def health(self) -> list[dict[str, Any]]:
        """Return for each replica: endpoint, replica, address, is_healthy, reason, checked_ago_s (or None)."""

    def quarantine(self) -> list[dict[str, str]]:
        """Return the store's rows that cannot be used: table, key, reason; empty for a static table."""

    def accept_held(self) -> int:
        """Let through what the shrink guard holds; return how many ready replicas that takes out."""

    def settings(self) -> dict[str, Any]:
        """Return the effective settings, secrets masked."""

    def state(self) -> dict[str, Any]:
        """Return the daemon's state.

        `ready`, `reasons` (why not), `workers` (each `index`, `pid`, `state`, `restarts`, `stalled`, `stuck`,
        `overload`; it serves in the states `ready` and `draining`), `started_epoch_s`, `version`, `draining`,
        `last_reload` (`ok`, `error`, `at_epoch_s`; or None), `config_staleness_s` (0 for a static table), `config`
        (of the store, see `config.agent.ConfigAgent.status`; None for a static table), `demand` (see
        `config.demand.DemandPublisher.status`; None where it is not published), and that of upgrades.
        """

    async def explain(self, asked: Asked) -> dict[str, Any]:
        """Return what `routing.explain` says in a worker; without `route` when no worker answers."""

    async def robots(self, limit: int, session: str) -> dict[str, Any]:
        """Return the open robot sessions, or the one of that id: see `robot_views.merged_robots`."""

    def sessions(self, endpoint: str | None) -> list[dict[str, Any]]:
        """Return the open sticky sessions: session, endpoint, replica, idle_timeout_s, busy, idle_s."""

    async def end_session(self, session_id: str) -> str:
        """End one; return the code of the error, empty if it is over."""

    async def add_replica(self, url: str, endpoint: str | None, weight: float) -> dict[str, Any]:
        """Add a replica and return at least its `id`; ValueError `FIELD: what is wrong` for bad input."""

    async def remove_replica(self, replica_id: str) -> bool:
        """Take a replica out; False when there is none of that id."""

    async def drain(self) -> None:
        """Drain the whole daemon; may return long after, or never."""

    def upgrade(self) -> str:
        """Begin to start a new process that takes over; return why not, empty if it began."""

    def set_ready(self, ready: bool) -> None:
        """Fail or restore readiness by hand."""

    def set_log_level(self, level: str) -> None:
        """Change the log level (`DEBUG` … `CRITICAL`) in every process."""


class AdminListener:
    """Serves `source` on bound sockets, TCP or Unix. `token` empty or None: no authentication."""

    __slots__ = ("_connections", "_servers", "is_retiring", "limits", "reactor", "routes")

    def __init__(self, source: AdminSource, reactor: Reactor, limits: ServerLimits, token: str | None) -> None:
        self.reactor = reactor
        self.is_retiring = False
        self.limits = limits
        self.routes = AdminRoutes(source, token or "")
        self._connections: set[ServerConnection] = set()
        self._servers: list[asyncio.AbstractServer] = []

    async def listen(self, sockets: list[socket.socket]) -> None:
        """Start accepting on bound sockets, which the listener then owns."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            create: Any = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            self._servers.append(await create(lambda: ServerConnection(self), sock=sock, backlog=BACKLOG))

    def retire(self) -> None:
        """Stop accepting: another process does. Connections end with their next answer."""
        self.is_retiring = True
        self._close_servers()
        now = self.reactor.clock.read()
        for connection in list(self._connections):
            connection.codec.retire(now)
        self.reactor.outbox.flush()

    def close(self) -> None:
        """Stop accepting, end what is under way, close every connection."""
        self._close_servers()
        self.reactor.clock.read()
        for connection in list(self._connections):
            connection.codec.cut(ProxyError(Kind.DRAINING, Source.ROUTER))
        self.reactor.outbox.flush()

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    def admit(self, connection: ServerConnection) -> bool:
        """Keep a new connection; False when there are too many."""
        self._connections.add(connection)
        return len(self._connections) <= MAX_CONNECTIONS

    def receive(self, stream: DownstreamStream, connection: ServerConnection) -> RequestReceiver:
        """Hand a request to its route."""
        local = is_loopback(connection.transport.get_extra_info("sockname"))
        return AdminRequest(self.reactor, self.routes.handle, stream, is_loopback=local)

    def note_refused(self, error: ProxyError) -> None:
        """Count a malformed request."""
        self.reactor.counters.malformed_requests += 1

    def forget(self, connection: ServerConnection) -> None:
        """Drop a connection that is gone."""
        self._connections.discard(connection)


def is_loopback(sockname: object) -> bool:
    """Whether a connection's own address is a loopback one; False for a Unix socket."""
    if not isinstance(sockname, tuple):
        return False
    address = ipaddress.ip_address(str(sockname[0]).partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
