"""The shell around a connection of ours that begins at a socket of the listener's: a client there, not a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.edge.quic_shell import QuicShell
from router.transport.codec.quic.client import ClientConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.edge.quic_listener import QuicListener
    from router.transport.codec.quic.config import QuicConfig
    from router.transport.codec.quic.seam import Application, Bearer
    from router.transport.udp import Address, UdpSocket


class DialledShell(QuicShell):
    """`make` returns the protocol; `on_failed` is told why there was none. One of the two is called, once."""

    __slots__ = ("_dials", "_make", "_on_failed")

    def __init__(
        self,
        listener: QuicListener,
        sock: UdpSocket,
        address: Address,
        make: Callable[[Bearer, float], Application],
        on_failed: Callable[[str], None],
    ) -> None:
        super().__init__(listener, sock, address, b"")
        # No client came: it is no connection of that address, and no stranger's handshake.
        self.counted = b""
        self._told_handshake = True
        self._dials = listener
        self._make = make
        self._on_failed: Callable[[str], None] | None = on_failed

    def make_application(self, bearer: Bearer, alpn: str) -> Application:
        """Return the protocol."""
        self._on_failed = None
        self.application = made = self._make(bearer, self._dials.reactor.clock.now)
        self._dials.wheel.watch(self)
        self._dials.tell_end(made)
        return made

    def new_token(self, address: object) -> bytes:
        """Give none."""
        return b""

    @property
    def is_waited_for(self) -> bool:
        """Not before there is a protocol: whoever drains wants no new one."""
        return self.application is not None and super().is_waited_for

    def peer_moved(self, address: object) -> None:
        """Cannot be: servers do not move."""

    def let_go(self) -> None:
        """Tell who waits for a protocol that there will be none."""
        connection, on_failed = self.connection, self._on_failed
        self._on_failed = None
        super().let_go()
        if connection is not None and on_failed is not None:
            said = connection.close_reason.decode("utf-8", "replace") or f"code {connection.close_code:#x}"
            on_failed(said if connection.received_packets else "no answer")


def dial(
    listener: QuicListener,
    address: Address,
    config: QuicConfig,
    make: Callable[[Bearer, float], Application],
    on_failed: Callable[[str], None],
    sock: UdpSocket | None = None,
) -> DialledShell | None:
    """Begin a connection to a server from a socket of the listener's, its first if not said; None: no room."""
    shell = DialledShell(listener, sock or listener.first_socket(), address, make, on_failed)
    is_begun = listener.dial(shell, lambda now: ClientConnection(config, shell, now, address))
    return shell if is_begun else None
