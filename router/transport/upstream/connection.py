"""One TCP connection to a replica."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from router.transport.codec.h1.client import H1Client
from router.transport.shell import TcpShell
from router.transport.sockets import keep_alive

if TYPE_CHECKING:
    import asyncio

    from router.routing.load import Replica
    from router.stream import ResponseReceiver
    from router.transport.shell import Reactor
    from router.transport.upstream.pool import ConnectionPool

# Where Linux's struct tcp_info has the 64-bit counters bytes_acked, bytes_received (since 4.1), bytes_sent (4.19).
_BYTES_ACKED_AT = 120
_BYTES_SENT_AT = 200
_TCP_INFO_BYTES = 208


class UpstreamConnection(TcpShell):
    """Belongs to a pool, serves one exchange after another."""

    __slots__ = ("_pool", "_read_bytes", "_written_before", "h1", "replica")

    def __init__(self, reactor: Reactor, replica: Replica, pool: ConnectionPool) -> None:
        super().__init__(reactor)
        self.replica = replica
        self._pool = pool
        self._written_before = 0
        self._read_bytes = 0
        authority = f"[{replica.host}]" if ":" in replica.host else replica.host
        self.h1 = H1Client(
            f"{authority}:{replica.port}".encode(),
            self._keep_s,
            self._on_idle,
            self._is_untouched,
            self,
            reactor.clock.now,
        )
        self.codec = self.h1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it."""
        self.reactor.counters.upstream_open += 1
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError, ValueError):  # gone in the moment it was made
                keep_alive(sock)
        super().connection_made(transport)

    def start(self, receiver: ResponseReceiver, *, reused: bool) -> None:
        """Bind it to the exchange whose request comes next."""
        self._written_before = self.written_bytes
        self.h1.reused = reused
        self.h1.start(receiver)

    def retire(self) -> None:
        """Close when idle, or after the request under way."""
        self.codec.drain()

    def on_lost(self) -> None:
        """Leave the pool."""
        self.reactor.counters.upstream_open -= 1
        self._pool.forget(self)

    def _on_idle(self) -> None:
        self._pool.put(self)

    def eof_received(self) -> bool:
        """Learn the replica's idle cut from an end of input that no request asked for."""
        if self.h1.is_idle:
            self._pool.learn_idle_cut(self.replica, self._clock.read() - self.h1.last_moved_s)
        return super().eof_received()

    def _keep_s(self) -> float:
        return self._pool.keep_s(self.replica)

    def data_received(self, data: bytes) -> None:
        """Count input, for `_is_untouched`."""
        self._read_bytes += len(data)
        super().data_received(data)

    def _is_untouched(self) -> bool:
        """Whether the peer had ended the connection before a byte of this request reached it.

        Proven if nothing of the request left this machine, since the connection was dead when it was written.
        Or if the peer's FIN arrived (the kernel counts it as one received byte more than was read) while
        nothing of the request was acknowledged, which that FIN would have done had the peer's kernel held any
        of it. A bare RST proves nothing: a server may read a request and then abort. `bytes_acked` counts
        the SYN of an active open as one byte.
        """
        transport = self.transport
        sock: socket.socket | None = transport.get_extra_info("socket") if transport is not None else None
        if sock is None:
            return False
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return False
        if len(info) < _TCP_INFO_BYTES:
            return False
        acknowledged, received = struct.unpack_from("=QQ", info, _BYTES_ACKED_AT)
        (sent,) = struct.unpack_from("=Q", info, _BYTES_SENT_AT)
        if sent <= self._written_before:
            return True
        has_fin = received > self._read_bytes
        return bool(has_fin and acknowledged <= self._written_before + 1)
