"""What is spoken over QUIC, by ALPN, and with which certificates. Imported only where QUIC is listened on.

New certificates are for new connections. Tickets of earlier ones are forgotten with them, so that an authority that
was withdrawn holds for resumptions too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.edge.attach_server import AttachServer
from router.edge.quic_listener import Protocols
from router.edge.quic_shell import host_of
from router.edge.rendezvous import Rendezvous
from router.transport.codec.attach.control import ALPN as ATTACH
from router.transport.codec.attach.control import MAX_PLACES
from router.transport.codec.h3.server import H3Server
from router.transport.codec.portal.server import PortalServer
from router.transport.codec.quic.config import QuicConfig
from router.transport.codec.quic.handshake import Tickets
from router.transport.codec.quic.server import ServerConnection
from router.transport.codec.robot.counters import RobotCounters
from router.transport.codec.robot.server import RobotServer
from router.transport.codec.robot.wire import ALPN as ROBOT
from router.transport.codec.webtransport.host import SessionHost
from router.transport.quic_identities import ServedIdentities

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.counters import WorkerCounters
    from router.edge.attach_server import AttachedReplicas
    from router.edge.quic_shell import QuicShell
    from router.errors import ProxyError
    from router.transport.codec.attach.control import Place
    from router.transport.codec.h1.limits import ServerLimits
    from router.transport.codec.quic.connection import QuicConnection
    from router.transport.codec.quic.seam import Application, Bearer
    from router.transport.codec.robot.control import Offer
    from router.transport.codec.webtransport.host import Asked
    from router.transport.server_tls import ServerTls
    from router.transport.udp import Address

H3: Final = "h3"


def _finder_of(shell: QuicShell) -> Callable[[], str]:
    """Return how to learn where a client is, which may move."""

    def find() -> str:
        host = host_of(shell.address).decode()
        return f"[{host}]:{shell.address[1]}" if ":" in host else f"{host}:{shell.address[1]}"

    return find


class RobotHost(SessionHost):
    """Robots in the WebTransport sessions of one connection."""

    __slots__ = ("_collect", "_note_refused", "_robots", "_shell")

    def __init__(
        self,
        shell: QuicShell,
        note_refused: Callable[[ProxyError], None],
        robots: RobotCounters,
        collect: Callable[[str, bytes, int, bytes, float], bool] | None = None,
    ) -> None:
        self._collect = collect
        self._shell = shell
        self._note_refused = note_refused
        self._robots = robots

    def protocol(self) -> bytes:
        """Return the name of robot sessions."""
        return ROBOT.encode()

    def begin_session(self, bearer: Bearer, asked: Asked, now: float) -> Application:
        """Return a robot's session."""
        self._robots.webtransport_sessions += 1
        counters = self._robots.begin(_finder_of(self._shell), "webtransport")
        return RobotServer(
            bearer, self._shell.on_request, self._note_refused, counters, now, asked, None, self._collect
        )

    def session_over(self) -> None:
        """Count it."""
        self._robots.webtransport_sessions -= 1

    def stream_rejected(self) -> None:
        """Count it."""
        self._robots.webtransport_rejected += 1


class ServedProtocols(Protocols):
    """HTTP/3, robots; and clients of quic-portal, who name no protocol, where a host is set for them."""

    __slots__ = (
        "_attached", "_collect", "_config", "_counters", "_is_sidecar", "_limits", "_note_refused", "_portal",
        "_tickets", "rendezvous", "robots",
    )  # fmt: skip

    def __init__(
        self,
        tls: ServerTls,
        limits: ServerLimits,
        counters: WorkerCounters,
        note_refused: Callable[[ProxyError], None],
        attached: AttachedReplicas,
        portal: tuple[str, str] | None = None,
        collect: Callable[[str, bytes, int, bytes, float], bool] | None = None,
        *,
        is_sidecar: bool = False,
    ) -> None:
        """`note_refused` learns of requests that were malformed or late before they had an exchange.

        `portal`: host and path of what clients of quic-portal ask for; None: there are none. `collect` and
        `is_sidecar` as of `RobotServer`.
        """
        self._collect = collect
        self._is_sidecar = is_sidecar
        self._portal = portal
        self._attached = attached
        self.rendezvous = Rendezvous(attached.sockets, attached.reactor)
        self._limits = limits
        self._counters = counters
        self._note_refused = note_refused
        self.robots = RobotCounters()
        self._tickets = Tickets()
        self._config = self._make_config(tls)

    def set_tls(self, tls: ServerTls) -> None:
        """Serve other certificates from now on."""
        self._tickets.clear()
        self._config = self._make_config(tls)

    def connect(
        self, shell: QuicShell, now: float, address: Address, local: bytes, first_id: bytes, original_id: bytes,
        *, is_validated: bool,
    ) -> QuicConnection:  # fmt: skip
        """Return the server's side of a new connection."""
        return ServerConnection(self._config, shell, now, address, local, first_id, original_id, is_validated)

    def make_application(self, shell: QuicShell, bearer: Bearer, alpn: str, now: float) -> Application:
        """Return what speaks this protocol."""
        if self._portal is not None and not alpn:
            host, path = self._portal
            return PortalServer(bearer, shell.on_request, host.encode(), path.encode())
        if alpn == ROBOT:
            find = self._finder(shell)
            counters = self.robots.begin(_finder_of(shell), "quic")
            return RobotServer(
                bearer, shell.on_request, self._note_refused, counters, now, None, find, self._collect,
                is_sidecar=self._is_sidecar,
            )  # fmt: skip
        if alpn == ATTACH:
            return AttachServer(bearer, self._attached, lambda: shell.address, now, shell.sock.name.decode())
        assert alpn == H3, "nothing else was offered"
        robots = RobotHost(shell, self._note_refused, self.robots, self._collect)
        return H3Server(bearer, shell.on_request, self._note_refused, self._on_flood, self._limits, now, robots)

    def _finder(
        self, shell: QuicShell
    ) -> Callable[[str, list[Place], Callable[[Offer], None]], None]:
        """Return how a robot's replica is asked, with where we see the robot before what it says of itself."""

        def find(host: str, places: list[Place], answer: Callable[[Offer], None]) -> None:
            seen = host_of(shell.address).decode(), int(shell.address[1])
            self.rendezvous.ask(host, [seen, *places][:MAX_PLACES], answer)

        return find

    def _make_config(self, tls: ServerTls) -> QuicConfig:
        config = QuicConfig(is_server=True, alpn=[H3, ROBOT, ATTACH])
        config.identities = ServedIdentities(tls)
        config.tickets = self._tickets
        config.takes_no_alpn = self._portal is not None
        return config

    def _on_flood(self) -> None:
        self._counters.floods += 1
