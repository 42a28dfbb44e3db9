"""The shell around one QUIC connection of a client: its ids, its socket, its timers, the protocol on it.

The listener hands it datagrams; the outbox has it flushed at the end of the tick, when all that the tick produced
leaves in a few writes. Nothing is raised across a callback: an exception is our bug, is logged and costs this one
connection. Deadlines of the engine are the listener's timers', those of the application the wheel's.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

from router.core import Peer
from router.edge.quic_timers import Timed
from router.stream import Shell
from router.transport.codec.quic.invariants import RESET_TOKEN_BYTES
from router.transport.codec.quic.limits import CONNECTION_REFUSED, INTERNAL_ERROR, NO_ERROR
from router.transport.codec.quic.seam import Owner
from router.transport.codec.quic.state import HANDSHAKING, OPEN

if TYPE_CHECKING:
    from router.edge.quic_listener import QuicListener
    from router.errors import ProxyError
    from router.stream import DownstreamStream, RequestReceiver
    from router.transport.codec.quic.connection import QuicConnection
    from router.transport.codec.quic.seam import Application, Bearer
    from router.transport.udp import Address, UdpSocket

_log = logging.getLogger("router.quic")

_HTTPS: Final = b"https"


class QuicShell(Timed, Owner, Shell):
    """Owned by the listener from its first datagram until the engine says that it is over."""

    __slots__ = (
        "_is_flushing",
        "_is_touched",
        "_listener",
        "_local",
        "_told_handshake",
        "address",
        "application",
        "connection",
        "counted",
        "ids",
        "peer",
        "sock",
        "watch_tick",
    )

    def __init__(self, listener: QuicListener, sock: UdpSocket, address: Address, local: bytes) -> None:
        super().__init__()
        self._listener = listener
        self._local = local
        self._is_touched = False
        self._is_flushing = False
        self._told_handshake = False
        self.sock = sock
        self.address = address
        self.peer = Peer(host_of(address), _HTTPS)
        self.counted = self.peer.address  # as whose connection the listener counts it, wherever it moves
        self.ids: set[bytes] = set()
        self.connection: QuicConnection | None = None
        self.application: Application | None = None
        self.watch_tick = -1

    # -- for the listener -----------------------------------------------------------------------------

    def receive(
        self, data: bytes, segment_bytes: int, address: Address, local: bytes, now: float, ecn: int
    ) -> None:
        """Hand datagrams to the engine."""
        self._local = local
        connection = self.connection
        if connection is None:
            return
        try:
            connection.receive(data, segment_bytes, address, local, now, ecn)
        except Exception:
            self._crash()

    def is_reset(self, data: bytes) -> bool:
        """Whether the datagram is the peer's stateless reset of this connection (RFC 9000 §10.3.1)."""
        connection = self.connection
        return connection is not None and connection.peer_ids.is_reset(data[-RESET_TOKEN_BYTES:])

    def tell(self, what: str, now: float, error: ProxyError | None = None) -> None:
        """Have the application `drain`, `retire` or be `cut`; without one the connection is refused.

        What is cut is told to the client in the application's way, and closed once that is delivered.
        """
        application, connection = self.application, self.connection
        if connection is None:
            return
        try:
            if application is None:
                connection.abort(CONNECTION_REFUSED, "the server is going")
            elif what == "drain":
                application.drain()
            elif what == "retire":
                application.retire(now)
            elif error is not None:
                application.cut(error)
        except Exception:
            self._crash()
        self.touch()

    def end(self) -> None:
        """Say goodbye, if nobody has, and let go."""
        connection = self.connection
        if connection is not None and connection.phase <= OPEN:
            try:
                connection.abort(NO_ERROR, "the server ends")
            except Exception:
                self._crash()
            self.flush(self._listener.reactor.clock.now)
        self.let_go()

    # -- for the engine -------------------------------------------------------------------------------

    def touch(self) -> None:
        """Be flushed at the end of this tick; in a next turn of the loop if it is being flushed now."""
        if not self._is_touched:
            self._is_touched = True
            if self._is_flushing:
                self._listener.postpone(self)
            else:
                self._listener.touched.append(self)

    def watch(self) -> None:
        """Look at both deadlines: one of them moved to an earlier time."""
        if self.connection is not None and not self._is_flushing:
            self._listener.timers.watch(self)
        if self.application is not None:
            self._listener.wheel.watch(self)

    def make_id(self) -> bytes:
        """Return a new connection id that leads here."""
        return self._listener.make_id(self)

    def retire_id(self, retired: bytes) -> None:
        """Route this id no more."""
        self._listener.retire_id(self, retired)

    def reset_token(self, issued: bytes) -> bytes:
        """Return the stateless reset token of one of our ids."""
        return self._listener.keyring.reset_token(issued)

    def new_token(self, address: object) -> bytes:
        """Return a token that proves the client's address in a later connection."""
        assert isinstance(address, tuple)
        return self._listener.token_for(address)

    def make_application(self, bearer: Bearer, alpn: str) -> Application:
        """Return the protocol that the handshake chose."""
        self.application = made = self._listener.make_application(self, bearer, alpn)
        self._listener.wheel.watch(self)
        return made

    def stray(self, data: bytes, address: object) -> None:
        """Take back a datagram that is for another connection on the same addresses."""
        assert isinstance(address, tuple)
        ecn = 0 if self.connection is None else self.connection.ecn
        self._listener.take_stray(self, data, address, self._local, ecn)

    def peer_moved(self, address: object) -> None:
        """Tell requests from now on where the client is."""
        assert isinstance(address, tuple)
        self.address = address
        self.peer = self._listener.make_peer(host_of(address))
        self._listener.counters.quic_migrations += 1

    def on_request(self, stream: DownstreamStream) -> RequestReceiver:
        """Begin an exchange."""
        return self._listener.begin(stream, self.peer)

    # -- for the outbox, the timers and the wheel -----------------------------------------------------

    def flush(self, now: float) -> None:
        """Send all that is to be sent; see to timers, and to the end."""
        self._is_touched = False
        connection = self.connection
        if connection is None:
            return
        self._is_flushing = True
        try:
            for burst in connection.datagrams_to_send(now):
                local = burst.local if isinstance(burst.local, bytes) else b""
                self.sock.send(burst.pieces, burst.segment_bytes, local, burst.address)
            connection.deliver_drained()
        except Exception:
            self._crash()
        self._is_flushing = False
        self._settle()

    def unsent_bytes(self) -> int:
        """Return how much the engine has not sent yet."""
        return 0 if self.connection is None else self.connection.unsent_bytes()

    def has_input(self) -> bool:
        """It cannot be told: the socket is everybody's."""
        return False

    def timer_deadline(self) -> float | None:
        """Ask the engine."""
        return None if self.connection is None else self.connection.next_deadline()

    def timer_due(self, now: float) -> None:
        """Tell the engine; the timers flush."""
        connection = self.connection
        if connection is None:
            return
        try:
            connection.handle_deadline(now)
        except Exception:
            self._crash()
        if connection.is_over:
            self._settle()

    def next_deadline(self) -> float | None:
        """Ask the application; None once it is over."""
        return None if self.application is None else self.application.next_deadline()

    def handle_deadline(self, now: float) -> None:
        """Tell the application; the wheel's owner flushes."""
        if self.application is None:
            return
        try:
            self.application.handle_deadline(now)
        except Exception:
            self._crash()

    # -- ends -----------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """Whether anything may still begin or go on here: it has not been closed by either side."""
        return self.connection is not None and self.connection.phase <= OPEN

    @property
    def is_waited_for(self) -> bool:
        """Whether a process that drains has to wait for it."""
        return self.is_live and (self.application is None or not self.application.may_be_left())

    def _settle(self) -> None:
        """See how far the connection has come."""
        connection = self.connection
        if connection is None:
            return
        if not self._told_handshake and connection.phase != HANDSHAKING:
            self._told_handshake = True
            handshake = connection.handshake
            self._listener.note_handshake(is_done=handshake is not None and handshake.is_complete)
        if connection.is_over:
            self.let_go()
        else:
            self._listener.timers.watch(self)

    def discard(self) -> None:
        """Leave as if there had been nothing: the first packet was not authentic."""
        if not self._told_handshake:
            self._told_handshake = True
            self._listener.handshaking -= 1
        self.let_go()

    def let_go(self) -> None:
        """Leave the listener. Reference counts free the rest: engine and application know this shell."""
        connection = self.connection
        if connection is None:
            return
        self.connection = None
        self.application = None
        if not self._told_handshake:
            self._told_handshake = True
            self._listener.note_handshake(is_done=False)
        self._listener.forget(self, connection)

    def _crash(self) -> None:
        """Drop the connection: tell the application, say goodbye if that is still possible."""
        self._listener.reactor.counters.internal_errors += 1
        _log.exception("QUIC connection dropped by a bug in its engine, protocol or exchange")
        connection = self.connection
        if connection is None:
            return
        with contextlib.suppress(Exception):
            connection.abort(INTERNAL_ERROR, "internal error")
            for burst in connection.datagrams_to_send(self._listener.reactor.clock.now):
                local = burst.local if isinstance(burst.local, bytes) else b""
                self.sock.send(burst.pieces, burst.segment_bytes, local, burst.address)
        self.let_go()


def host_of(address: Address) -> bytes:
    """Return a client's host as requests and limits know it: an IPv4 address is one on whatever socket it came."""
    host = str(address[0])
    return host[7:].encode() if host.startswith("::ffff:") and "." in host else host.encode()
