"""Connections between their accept and their first byte for a codec: PROXY header, then TLS, in bounded time.

Listeners that speak neither hand their sockets to uvloop, and nothing of this is on their way. Here each connection
is a task until it is ready: the header is peeked at, so that exactly it is taken from the socket, and the
handshake is given the context in force at that moment, so that new certificates, and new authorities of clients,
need no new listener. Who is slow loses the connection when `head_s` is over; who fails is counted, and logged at
debug only. When too many are waiting the one that came first goes: an honest client is long through by then.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from router.core import Peer
from router.edge.connection import ServerConnection
from router.transport.codec.proxy_protocol import (
    MAX_HEADER_BYTES,
    ProxyProtocolError,
    client_address,
    header_end,
)
from router.transport.tasks import spawn

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from router.edge.listener import Listener

_log = logging.getLogger("router.arrivals")

MAX_ARRIVALS = 4_096  # a worker's connections that are not ready yet
BACKLOG = 4_096
ACCEPT_BATCH = 64  # accepted in one turn of the loop; requests come between
ACCEPT_PAUSE_S = 0.5  # when the process has no descriptor left


class TrustedPeers:
    """Who may send a PROXY header: networks, and whoever may open a Unix socket."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ip_network(network) for network in networks)

    def has(self, address: str) -> bool:
        """Whether a peer at `address`, empty for a Unix socket's, is one of them."""
        if not address:
            return True
        found = ip_address(address.partition("%")[0])
        found = getattr(found, "ipv4_mapped", None) or found
        return any(found in network for network in self._networks)


class Arrival:
    """One connection that is not ready yet."""

    __slots__ = ("connection", "sock", "task")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.connection: ServerConnection | None = None
        self.task: asyncio.Task[None] | None = None

    def cut(self) -> None:
        """Give it up, unless it became ready in this moment: its owner knows it then."""
        if self.task is not None and (self.connection is None or self.connection.transport is None):
            self.task.cancel()


class Arrivals:
    """Accepts on its sockets for one owner. `context` is what new TLS connections are given."""

    __slots__ = ("_listening", "_loop", "_owner", "_proxies", "_waiting", "context")

    def __init__(self, owner: Listener, proxies: TrustedPeers | None) -> None:
        self._owner = owner
        self._proxies = proxies
        self._loop = asyncio.get_running_loop()
        self._listening: list[socket.socket] = []
        self._waiting: dict[Arrival, None] = {}
        self.context: ssl.SSLContext | None = None

    @property
    def waiting(self) -> int:
        """How many are not ready yet."""
        return len(self._waiting)

    def listen(self, sock: socket.socket, *, is_tls: bool) -> None:
        """Accept on a bound socket, which is closed by `close`."""
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._listening.append(sock)
        self._loop.add_reader(sock.fileno(), self._accept, sock, is_tls)

    def close(self) -> None:
        """Accept no more; those who are not ready have sent no request and are let go."""
        self.stop()
        for arrival in list(self._waiting):
            arrival.cut()

    def stop(self) -> None:
        """Accept no more; those who are not ready may still become so."""
        for sock in self._listening:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._listening.clear()

    def _accept(self, listening: socket.socket, is_tls: bool) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, name = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as failure:
                _log.error("accepting: %s; trying again in %g s", failure, ACCEPT_PAUSE_S)
                self._loop.remove_reader(listening.fileno())
                self._loop.call_later(ACCEPT_PAUSE_S, self._resume, listening, is_tls)
                return
            sock.setblocking(False)
            if len(self._waiting) >= MAX_ARRIVALS:
                self._owner.reactor.counters.connections_refused += 1
                oldest = next(iter(self._waiting))
                del self._waiting[oldest]
                oldest.cut()
            arrival = Arrival(sock)
            self._waiting[arrival] = None
            host = str(name[0]) if isinstance(name, tuple) else ""
            arrival.task = spawn(self._welcome(arrival, host, is_tls=is_tls), "arrival")

    def _resume(self, listening: socket.socket, is_tls: bool) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening.fileno(), self._accept, listening, is_tls)

    async def _welcome(self, arrival: Arrival, host: str, *, is_tls: bool) -> None:
        """Bring one connection to its codec, or close it."""
        limits, counters, sock = self._owner.limits, self._owner.reactor.counters, arrival.sock
        ends_s = self._loop.time() + limits.head_s
        try:
            address = host.encode() or b"unix"
            if self._proxies is not None:
                address = await self._take_header(sock, host, ends_s) or address
            if is_tls and not self._owner.has_room(address):
                return  # a handshake is the dearest thing that a client can ask for
            peer = Peer(address, b"https", self._owner.alt_svc) if is_tls else Peer(address)
            connection = arrival.connection = ServerConnection(self._owner, peer)
            more: dict[str, Any] = {}
            if is_tls:
                more["ssl"] = self.context
                more["ssl_handshake_timeout"] = max(0.001, ends_s - self._loop.time())
                more["ssl_shutdown_timeout"] = limits.stall_s  # it covers what is still to be written
            try:
                accept: Any = self._loop.connect_accepted_socket  # takes any protocol, whatever its type says
                await accept(lambda: connection, sock, **more)
            except (OSError, ValueError) as failure:  # SSLError among them
                if not is_tls:
                    raise
                counters.tls_handshake_failures += 1
                _log.debug("TLS handshake with %s: %s", address.decode(), failure)
            else:
                counters.tls_handshakes += is_tls
        except (ProxyProtocolError, TimeoutError) as failure:
            counters.proxy_headers_refused += 1
            _log.debug("PROXY header from %s: %s", host or "a Unix socket", failure or "not in time")
        except OSError as failure:
            _log.debug("%s left: %s", host or "a Unix socket's peer", failure)
        finally:
            self._waiting.pop(arrival, None)
            if arrival.connection is None:
                sock.close()

    async def _take_header(self, sock: socket.socket, host: str, ends_s: float) -> bytes:
        """Take the PROXY header off the socket, nothing beyond it; return the client's address, if it tells one."""
        assert self._proxies is not None
        if not self._proxies.has(host):
            raise ProxyProtocolError("the peer is none that may send one")
        head = b""
        async with asyncio.timeout_at(ends_s):
            while True:
                try:
                    peeked = sock.recv(MAX_HEADER_BYTES, socket.MSG_PEEK)
                except (BlockingIOError, InterruptedError):
                    await self._readable(sock)
                    continue
                if not peeked:
                    raise ConnectionResetError("it ended before its header")
                end = header_end(head + peeked)
                # What is not known to end is header as far as it goes. Taken, it wakes nobody again.
                head += sock.recv((end or len(head) + len(peeked)) - len(head))
                if end:
                    return client_address(head)

    async def _readable(self, sock: socket.socket) -> None:
        ready = self._loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_reader(sock.fileno(), wake)
        try:
            await ready
        finally:
            with suppress(OSError, ValueError):
                self._loop.remove_reader(sock.fileno())
