"""Robots' tunnels to replicas by lanes: a connection of QUIC each, to sidecars that take them.

    attached: ask the worker that has it --a place, a ticket--+--> dial --> HELLO
    in the table: its lanes' port --resolve-------------------+      |
                                                              +--no way, not up in time--> a WebSocket, as for all

A replica that attached is dialled from the very socket by which it did: whatever NAT it is behind has let that one
in already. All others are from a socket of this worker's own: what they answer to a listening one the kernel would
give to any worker, and that may be bound where no way leads to them. One that could not be reached is left in peace
for a while.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Final

from router.edge.quic_counters import LANE_NUMBERS
from router.edge.quic_dialled import dial
from router.errors import ProxyError
from router.stream import PendingStream, UpstreamStream
from router.transport.attached import name_of
from router.transport.codec.punch import place_of
from router.transport.codec.quic.config import QuicConfig
from router.transport.codec.robot.lane_stream import LaneStream, fits
from router.transport.codec.robot.wire import ALPN
from router.transport.tasks import spawn
from router.transport.upstream.opening import Lanes

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.edge.quic_dialled import DialledShell
    from router.edge.quic_listener import QuicListener
    from router.edge.rendezvous import Rendezvous
    from router.http import RequestHead
    from router.routing.load import Replica
    from router.routing.spec import DialSpec, LaneSpec
    from router.stream import ResponseReceiver
    from router.transport.codec.quic.seam import Application, Bearer
    from router.transport.udp import Address, UdpSocket

_log = logging.getLogger("router.robots")

SILENCE_S: Final = 3.0
"""Without a word from the sidecar, which is asked twice a second: it, or the way to it, is gone. A process that was
killed says no goodbye over UDP."""
AGAIN_S: Final = 30.0
"""For a replica that could not be reached by lanes; its robots get WebSockets meanwhile."""
MAX_AVOIDED: Final = 1_024
_NAME: Final = "localhost"  # in the certificate that a sidecar makes for itself; its authority is what counts


class LaneDials(Lanes):
    """One worker's."""

    def __init__(self, listener: QuicListener, rendezvous: Rendezvous) -> None:
        self.listener = listener
        self.rendezvous = rendezvous
        self.opened = 0
        self.failed = 0
        self._avoided: dict[tuple[str, int], float] = {}  # places, until when

    def numbers(self) -> dict[str, int]:
        """Return every count by name."""
        return dict(zip(LANE_NUMBERS, (self.opened, self.failed), strict=True))

    def leads_to(self, replica: Replica, head: RequestHead) -> bool:
        """Whether its sidecar takes robots, and was reached the last time; and such a request."""
        if replica.lanes is None and not name_of(replica.host):
            return False
        until_s = self._avoided.get(_place_of(replica))
        return (until_s is None or self.listener.reactor.clock.now >= until_s) and fits(head)

    def open(
        self,
        replica: Replica,
        receiver: ResponseReceiver,
        spec: DialSpec,
        instead: Callable[[ResponseReceiver], UpstreamStream | PendingStream | ProxyError],
    ) -> PendingStream:
        """Return a stream to be. See `Lanes`."""
        return PendingLanes(self, replica, receiver, spec.connect_s, instead)

    def note(self, place: tuple[str, int], *, is_up: bool, reason: str = "") -> None:
        """Count how it went."""
        if is_up:
            self.opened += 1
            self._avoided.pop(place, None)
            return
        self.failed += 1
        now = self.listener.reactor.clock.now
        if self._avoided.get(place, 0.0) <= now:  # not for each robot that tried at the same time
            _log.info("no lanes to %s, its robots get WebSockets: %s", place[0], reason)
        if len(self._avoided) >= MAX_AVOIDED:
            self._avoided.clear()
        self._avoided[place] = now + AGAIN_S


class PendingLanes(PendingStream):
    """One session that waits for its lanes, or for what comes instead."""

    def __init__(
        self,
        dials: LaneDials,
        replica: Replica,
        receiver: ResponseReceiver,
        limit_s: float,
        instead: Callable[[ResponseReceiver], UpstreamStream | PendingStream | ProxyError],
    ) -> None:
        """`limit_s`: for all of it."""
        self._dials = dials
        self._host = replica.host
        self._place = _place_of(replica)
        self._lanes = replica.lanes
        self._receiver: ResponseReceiver | None = receiver
        self._instead = instead
        self._other: PendingStream | None = None
        self._shell: DialledShell | None = None
        self._task = spawn(self._run(limit_s), f"lanes to {replica.host}")

    def cancel(self) -> None:
        """Wait no longer, for either way."""
        self._receiver = None
        if self._other is not None:
            self._other.cancel()
            return
        self._task.cancel()
        shell = self._shell
        if shell is not None and shell.application is None:
            shell.end()  # now: before the task wakes the handshake's last datagram may be read

    async def _run(self, limit_s: float) -> None:
        reason = ""
        try:
            async with asyncio.timeout(limit_s):
                reason = await self._try()
        except TimeoutError:
            reason = f"not up within {limit_s:g} s"
        except Exception as failure:  # whatever a resolver may raise: the exchange must hear of it
            _log.exception("no lanes to %s", self._host)
            reason = str(failure)
        finally:
            shell = self._shell
            if shell is not None and shell.application is None:
                shell.end()  # nothing where it has ended
            self._shell = None  # it knows us
        is_up = self._receiver is None  # maybe in the turn in which the time was over
        self._dials.note(self._place, is_up=is_up, reason=reason)
        if not is_up:
            self._fall_back()

    async def _try(self) -> str:
        """Return why there are no lanes; empty once there are and the exchange has them."""
        return await (self._find() if self._lanes is None else self._resolve(self._lanes))

    async def _find(self) -> str:
        """Ask where an attached replica is."""
        found, ticket = await self._dials.rendezvous.find(self._host, [])
        sock = self._dials.listener.socket_named(found.listener.encode())
        if not found.places or not found.certificate or sock is None:
            return "it is not attached, or lets nobody in"
        host, port = found.places[0]
        address = place_of(host, port, is_v6=sock.family == socket.AF_INET6, may_be_here=True)
        if address is None:
            return f"{host} port {port} is no place to dial"
        return await self._dial(address, sock, found.certificate, ticket)

    async def _resolve(self, lanes: LaneSpec) -> str:
        """Look up where the table says that it is."""
        listener = self._dials.listener
        try:
            preferred = listener.first_socket().family
            found = await asyncio.get_running_loop().getaddrinfo(self._host, lanes.port, type=socket.SOCK_DGRAM)
            family, address = best_of([(int(one[0]), one[4]) for one in found], preferred)
            sock = listener.dialling_socket(family)
        except OSError as failure:
            return failure.strerror or str(failure)
        return await self._dial(address, sock, lanes.certificate, "")

    async def _dial(self, address: Address, sock: UdpSocket, certificate: str, ticket: str) -> str:
        listener = self._dials.listener
        config = QuicConfig(is_server=False, alpn=[ALPN])
        config.server_name = _NAME
        config.ca = certificate.encode()
        config.idle_s = SILENCE_S
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def make(bearer: Bearer, now: float) -> Application:
            if not done.done():
                done.set_result("")
            return self._begin(bearer, ticket, now)

        def failed(reason: str) -> None:
            if not done.done():
                done.set_result(reason)

        self._shell = dial(listener, address, config, make, failed, sock)
        return "there is no room for a connection" if self._shell is None else await done

    def _begin(self, bearer: Bearer, ticket: str, now: float) -> Application:
        """Give the exchange its stream, which says HELLO: the sidecar has proven to be who it should be."""
        receiver = self._receiver
        assert receiver is not None, "who cancels ends the connection"
        self._receiver = None
        stream = LaneStream(bearer, receiver, ticket, now)
        receiver.upstream_ready(stream)
        assert stream.application is not None, "an exchange sends its head at once"
        return stream.application

    def _fall_back(self) -> None:
        """Open what any client would have."""
        receiver = self._receiver
        assert receiver is not None
        reactor = self._dials.listener.reactor
        reactor.clock.read()
        opened = self._instead(receiver)
        if isinstance(opened, ProxyError):
            receiver.upstream_failed(opened)
        elif isinstance(opened, PendingStream):
            self._other = opened
        else:
            receiver.upstream_ready(opened)
        reactor.outbox.flush()


def best_of(found: list[tuple[int, Address]], preferred: int) -> tuple[int, Address]:
    """Return the family and address by which a host is dialled: the first of the family that the listener has.

    Sidecars that listen on one alone do so as the routers in front of them. If it has none such, its first.
    """
    return next((one for one in found if one[0] == preferred), found[0])


def _place_of(replica: Replica) -> tuple[str, int]:
    """Return whose lanes they are: a host may have several replicas. One that attached has no port."""
    return replica.host, 0 if replica.lanes is None else replica.lanes.port
