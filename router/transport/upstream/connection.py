"""One connection to a replica, in the version of HTTP that its scheme or the TLS handshake says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Final

from router.transport.codec.h1.client import H1Client
from router.transport.codec.h2.client import H2Client
from router.transport.shell import TcpShell
from router.transport.sockets import keep_alive

if TYPE_CHECKING:
    from router.routing.load import Replica
    from router.routing.spec import DialSpec
    from router.stream import ResponseReceiver
    from router.transport.shell import Reactor
    from router.transport.upstream.pool import ConnectionPool

# Where Linux's struct tcp_info has the 64-bit counters bytes_acked, bytes_received (since 4.1), bytes_sent (4.19).
_BYTES_ACKED_AT: Final = 120
_BYTES_SENT_AT: Final = 200
_TCP_INFO_BYTES: Final = 208

GREETING_LIMIT_S: Final = 0.5  # for a replica's SETTINGS; then it is given what RFC 9113 assumes


class UpstreamConnection(TcpShell):
    """Belongs to a pool. With HTTP/1.1 it serves one exchange after another, with HTTP/2 many at a time.

    `h1` or `h2` is its codec; with `https` neither is there before the handshake has chosen.
    """

    __slots__ = ("_dial", "_greeted", "_pool", "_read_bytes", "_written_before", "h1", "h2", "replica")

    def __init__(self, reactor: Reactor, replica: Replica, pool: ConnectionPool, dial: DialSpec) -> None:
        super().__init__(reactor)
        self.replica = replica
        self._pool = pool
        self._dial = dial
        self._written_before = 0
        self._read_bytes = 0
        self._greeted: asyncio.Future[None] | None = None
        self.h1: H1Client | None = None
        self.h2: H2Client | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Choose the codec, count the connection."""
        tls = transport.get_extra_info("ssl_object")
        protocol = tls.selected_alpn_protocol() if tls is not None else None
        if protocol == "h2" or self.replica.scheme == "h2c":
            self._speak_h2()
        else:
            self._speak_h1()
        self.reactor.counters.upstream_open += 1
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError, ValueError):  # gone in the moment it was made
                keep_alive(sock)
        super().connection_made(transport)
        if self.h2 is not None:
            self.reactor.outbox.flush()  # the preface, before any request

    def start(self, receiver: ResponseReceiver, *, reused: bool) -> H1Client:
        """Bind it to the exchange whose request comes next, and return the stream. HTTP/1.1 only."""
        h1 = self.h1
        assert h1 is not None
        self._written_before = self.written_bytes
        h1.may_be_untouched = reused
        h1.start(receiver)
        return h1

    async def greeting(self) -> None:
        """Wait for the replica's SETTINGS, which say how many streams it takes, or the end of the connection."""
        h2 = self.h2
        if h2 is None or h2.saw_settings or self.transport is None:
            return
        self._greeted = asyncio.get_running_loop().create_future()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GREETING_LIMIT_S):
                await self._greeted

    @property
    def is_usable(self) -> bool:
        """Whether a request may be sent on it."""
        h1, h2 = self.h1, self.h2
        if self.transport is None:
            return False
        return h2.is_open if h2 is not None else h1 is not None and h1.is_idle

    def retire(self) -> None:
        """Close when idle, or after the requests under way."""
        self.codec.drain()

    def on_lost(self) -> None:
        """Leave the pool."""
        self.reactor.counters.upstream_open -= 1
        self._end_greeting()
        self._pool.forget(self)

    def let_go(self) -> None:
        """Forget the codec under each of its names."""
        super().let_go()
        self.h1 = self.h2 = None

    def eof_received(self) -> bool:
        """Learn the replica's idle cut from an end of input that no request asked for."""
        h1 = self.h1
        if h1 is not None and h1.is_idle:
            self._pool.learn_idle_cut(self.replica, self._clock.read() - h1.last_moved_s)
        return super().eof_received()

    def data_received(self, data: bytes) -> None:
        """Count input, for `_is_untouched`."""
        self._read_bytes += len(data)
        super().data_received(data)

    def _speak_h1(self) -> None:
        self.codec = self.h1 = H1Client(
            self._authority(), self._keep_s, self._on_idle, self._is_current_untouched, self, self._clock.now
        )

    def _speak_h2(self) -> None:
        scheme = b"http" if self.replica.scheme == "h2c" else b"https"
        self.codec = self.h2 = H2Client(
            self._authority(),
            scheme,
            self._dial.connections.ping_s,
            self._on_gone,
            self._on_settings,
            self._count_written,
            self._is_untouched,
            self,
            self._clock.now,
        )

    def _authority(self) -> bytes:
        replica = self.replica
        host = f"[{replica.host}]" if ":" in replica.host else replica.host
        return f"{host}:{replica.port}".encode()

    def _on_idle(self) -> None:
        self._pool.put(self)

    def _on_gone(self) -> None:
        self._pool.forget(self)

    def _on_settings(self) -> None:
        assert self.h2 is not None
        self._pool.learn_streams(self.replica, self.h2.peer_max_streams)
        self._end_greeting()

    def _end_greeting(self) -> None:
        greeted = self._greeted
        if greeted is not None and not greeted.done():
            greeted.set_result(None)

    def _keep_s(self) -> float:
        return self._pool.keep_s(self.replica)

    def _count_written(self) -> int:
        return self.written_bytes

    def _is_current_untouched(self) -> bool:
        return self._is_untouched(self._written_before)

    def _is_untouched(self, written_before: int) -> bool:
        """Whether the peer had ended the connection before a byte written after `written_before` reached it.

        Proven if nothing of the request left this machine, since the connection was dead when it was written.
        Or if the peer's FIN arrived (the kernel counts it as one received byte more than was read) while
        nothing of the request was acknowledged, which that FIN would have done had the peer's kernel held any
        of it. A bare RST proves nothing: a server may read a request and then abort. `bytes_acked` counts
        the SYN of an active open as one byte. Over TLS the kernel counts other bytes than we do: no proof.
        """
        transport = self.transport
        sock: socket.socket | None = transport.get_extra_info("socket") if transport is not None else None
        if sock is None or self._is_tls:
            return False
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return False
        if len(info) < _TCP_INFO_BYTES:
            return False
        acknowledged, received = struct.unpack_from("=QQ", info, _BYTES_ACKED_AT)
        (sent,) = struct.unpack_from("=Q", info, _BYTES_SENT_AT)
        if sent <= written_before:
            return True
        has_fin = received > self._read_bytes
        return bool(has_fin and acknowledged <= written_before + 1)
