"""One client connection: the TCP shell with a server codec, and an exchange for each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.exchange import Exchange, Peer
from router.transport.codec.h1.server import H1Server
from router.transport.shell import TcpShell

if TYPE_CHECKING:
    import asyncio

    from router.edge.listener import Listener
    from router.errors import ProxyError
    from router.stream import DownstreamStream, RequestReceiver


class ClientConnection(TcpShell):
    """Accepted by a listener, which knows all of its connections."""

    __slots__ = ("_core", "_listener", "_peer", "h1")

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener.reactor)
        self._listener = listener
        self._core = listener.core
        self._peer = Peer(b"")
        self.h1 = H1Server(
            self._on_request, self._on_refused, listener.limits, self, listener.reactor.clock.read()
        )
        self.codec = self.h1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the client's address; refuse beyond the listener's limit."""
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        self._peer = Peer(name[0].encode() if isinstance(name, tuple) and name else b"unix")
        if not self._listener.admit(self):
            self.abort()

    def on_lost(self) -> None:
        """Leave the listener."""
        self._listener.forget(self)

    def _on_request(self, stream: DownstreamStream) -> RequestReceiver:
        return Exchange(self._core, stream, self._peer)

    def _on_refused(self, error: ProxyError) -> None:
        self._listener.note_refused(error)

    def cut(self, error: ProxyError) -> None:
        """End the request under way as failed, then the connection."""
        self.h1.cut(error)
