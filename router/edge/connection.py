"""One connection that was accepted: the TCP shell with a server codec. Who owns it decides what requests mean.

The data listener makes an exchange of each request, the admin listener a handler's call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from router.core import Peer
from router.transport.codec.h1.server import H1Server
from router.transport.codec.h2.server import H2Server
from router.transport.codec.preface import Preface
from router.transport.shell import TcpShell

if TYPE_CHECKING:
    import asyncio

    from router.errors import ProxyError
    from router.stream import Codec, DownstreamStream, RequestReceiver
    from router.transport.codec.h1.limits import ServerLimits
    from router.transport.shell import Reactor


_UNKNOWN: Final = Peer(b"")


class ConnectionOwner(Protocol):
    """A listener, as its connections see it."""

    reactor: Reactor
    limits: ServerLimits
    is_retiring: bool  # another process accepts in its place: connections end when their clients can know

    def admit(self, connection: ServerConnection) -> bool:
        """Keep a new connection; False when there are too many."""

    def forget(self, connection: ServerConnection) -> None:
        """Drop a connection that is gone."""

    def receive(self, stream: DownstreamStream, connection: ServerConnection) -> RequestReceiver:
        """Return who takes the request that begins on `stream`."""

    def note_refused(self, error: ProxyError) -> None:
        """Learn of a request that was malformed or late before it had a receiver."""


class ServerConnection(TcpShell):
    """Accepted by its owner, which knows all of its connections."""

    __slots__ = ("_is_retiring", "_owner", "is_counted", "peer")

    def __init__(self, owner: ConnectionOwner, peer: Peer | None = None) -> None:
        super().__init__(owner.reactor)
        self._delivers_rest = False  # a request of a client that is gone is of no use
        self._owner = owner
        self._is_retiring = False
        self.is_counted = False  # by the owner, as its peer's
        self.peer = peer or _UNKNOWN
        self.codec = Preface(self._choose, owner.limits, self, owner.reactor.clock.read())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the client's address, unless it is known already; refuse beyond the owner's limit.

        What the TLS handshake chose is final (RFC 7301 §3.2); otherwise the client's first bytes decide.
        """
        tls = transport.get_extra_info("ssl_object")
        protocol = tls.selected_alpn_protocol() if tls is not None else None
        if protocol is not None:
            self._choose(protocol == "h2")
        super().connection_made(transport)
        if self.peer is _UNKNOWN:
            name = transport.get_extra_info("peername")
            self.peer = Peer(name[0].encode() if isinstance(name, tuple) and name else b"unix")
        if not self._owner.admit(self):
            self.abort()
        elif protocol is not None:
            self._outbox.flush()  # SETTINGS, without waiting for the client's

    def retire(self, now: float) -> None:
        """Have the next answer be the last, as if the owner were retiring."""
        self._is_retiring = True
        self.codec.retire(now)

    def on_lost(self) -> None:
        """Leave the owner."""
        self._owner.forget(self)

    def _on_request(self, stream: DownstreamStream) -> RequestReceiver:
        return self._owner.receive(stream, self)

    def _choose(self, is_http2: bool) -> Codec:
        """Go on with the codec of the version that the client speaks."""
        owner = self._owner
        now = self._clock.now
        codec: Codec
        if is_http2:
            codec = H2Server(self._on_request, owner.note_refused, self._on_flood, owner.limits, self, now)
        else:
            codec = H1Server(self._on_request, owner.note_refused, owner.limits, self, now)
        self.codec = codec
        if owner.is_retiring or self._is_retiring:
            codec.retire(now)
        return codec

    def _on_flood(self) -> None:
        self.reactor.counters.floods += 1
