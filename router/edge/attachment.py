"""Keeps a replica attached to a router: dials from the QUIC listener's socket, and again whenever it has to.

    dial --ATTACHED--> serving --LEAVING--> dial anew, while what is under way there goes on
      ^----- refused, lost, no answer: after a pause that grows -----+

From the listener's socket, because a NAT then maps this connection and those that robots make to one address.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from random import random
from typing import TYPE_CHECKING, Final

from router.core import Peer
from router.edge.attach_client import AttachCalls, AttachClient
from router.edge.quic_dialled import dial
from router.edge.quic_shell import host_of
from router.transport.codec.attach import control
from router.transport.codec.punch import is_loopback, place_of
from router.transport.codec.quic.config import QuicConfig
from router.transport.quic_identities import ServedIdentity
from router.transport.tasks import spawn
from router.transport.udp import find_local_host, resolve

if TYPE_CHECKING:
    from router.control import AttachStart
    from router.edge.direct_robots import DirectRobots
    from router.edge.listener import Listener
    from router.edge.quic_listener import QuicListener
    from router.transport.codec.quic.seam import Application, Bearer
    from router.transport.udp import Address

_log = logging.getLogger("router.attach")

MAX_STREAMS: Final = 4_096
"""Connections that the router may have to us at a time."""
KEEP_ALIVE_S: Final = 2.0
"""NATs forget UDP after 15 s at the earliest; but so long a replica is out whose router's worker was killed."""
SILENCE_S: Final = 8.0
"""Without a word from the router: it, or the way to it, is gone."""
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
REPLACED_PAUSE_S: Final = 30.0
"""After another one attached under our name: two that play this game should not play it fast."""
GOOD_S: Final = 10.0
"""After so long attached the next pause is the first again."""


class Attachment:
    """To one router. Made in the worker that listens; `begin` once it does."""

    def __init__(
        self,
        start: AttachStart,
        where: tuple[str, int],
        quic: QuicListener,
        listener: Listener,
        robots: DirectRobots,
    ) -> None:
        self._robots = robots
        self._identity = None if start.identity is None else ServedIdentity(start.identity)
        self._address: Address = ()
        self._start = start
        self._where = where
        self._quic = quic
        self._listener = listener
        self._shown = f"{where[0]}:{where[1]}"
        self._again = asyncio.Event()
        self._current: AttachClient | None = None
        self._left: AttachClient | None = None
        self._dialled = 0  # connections so far: what an older one says of its end is of no consequence
        self._pause_s = FIRST_PAUSE_S
        self._attached_s = 0.0
        self.is_attached = False

    def begin(self) -> None:
        """Dial, and go on for as long as the listener takes what is new."""
        self._task = spawn(self._run(), f"attach to {self._shown}")

    def close(self) -> None:
        """Dial no more; the connection there is belongs to the listener, which drains it."""
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            self._again.clear()
            try:
                self._address = address = await resolve(self._quic.first_socket(), *self._where)
            except OSError as failure:
                self._lost(self._dialled, control.DONE, failure.strerror or str(failure))
            else:
                self._dialled += 1
                self._dial(address, self._dialled)
            await self._again.wait()
            await asyncio.sleep(self._pause_s * (0.5 + random()))
            self._pause_s = max(self._pause_s, FIRST_PAUSE_S)

    def _dial(self, address: Address, number: int) -> None:
        def make(bearer: Bearer, now: float) -> Application:
            start = self._start
            hello = control.Attach(start.name, start.token, start.certificate)
            calls = AttachCalls(
                self._attached,
                self._leaving,
                lambda code, reason: self._lost(number, code, reason),
                self._punch,
            )
            peer = Peer(host_of(self._where))
            self._current = client = AttachClient(bearer, hello, self._listener, peer, calls, now)
            return client

        def failed(reason: str) -> None:
            self._lost(number, control.DONE, reason)

        if dial(self._quic, address, self._config(), make, failed) is None:
            failed("there is no room for a connection")

    def _config(self) -> QuicConfig:
        start = self._start
        config = QuicConfig(is_server=False, alpn=[control.ALPN])
        config.server_name = self._where[0]
        config.ca = start.ca
        config.verify = not start.insecure
        config.identity = self._identity
        config.max_streams = MAX_STREAMS
        config.keep_alive_s = KEEP_ALIVE_S
        config.idle_s = SILENCE_S
        return config

    # -- from the protocol ----------------------------------------------------------------------------

    def _attached(self, body: control.Attached) -> None:
        self.is_attached = True
        self._attached_s = self._quic.reactor.clock.now
        if self._left is not None:
            self._left.leave(self._quic.reactor.clock.now)  # what is under way there goes on; nothing new comes
            self._left = None
        _log.info("attached to %s as %s; it sees us at %s port %d", self._shown, self._start.name, *body.address)

    def _leaving(self) -> None:
        _log.info("%s is leaving; attaching anew", self._shown)
        self._dialled += 1
        self._left, self._current = self._current, None
        # A router that is replaced leaves once; one that leaves whenever we come is not asked faster than others.
        self._pause_s = 0.0 if self._has_lasted() else FIRST_PAUSE_S
        self.is_attached = False
        self._again.set()

    def _has_lasted(self) -> bool:
        return self.is_attached and self._quic.reactor.clock.now - self._attached_s > GOOD_S

    def _lost(self, number: int, code: int, reason: str) -> None:
        """Try again after a pause."""
        if number != self._dialled:
            return  # one that was left
        _log.warning("not attached to %s: %s", self._shown, reason)
        if code == control.REPLACED:
            self._pause_s = REPLACED_PAUSE_S
        elif self._has_lasted():
            self._pause_s = FIRST_PAUSE_S
        else:
            self._pause_s = min(2.0 * self._pause_s, LONGEST_PAUSE_S)
        self.is_attached = False
        self._again.set()

    def _punch(self, body: control.Punch) -> control.Punching:
        """Expect a robot, and say where we are: the router adds from where it sees us."""
        sock = self._quic.first_socket()
        is_v6 = sock.family == socket.AF_INET6
        try:
            own = find_local_host(sock.family, self._address).removeprefix("::ffff:")
        except OSError:  # the network is just gone
            return control.Punching(body.n, [])
        may_be_here = is_loopback(own)  # the router is here: so may its robots be
        named = [place_of(host, port, is_v6=is_v6, may_be_here=may_be_here) for host, port in body.places]
        if not self._robots.expect(body, [place for place in named if place is not None]):
            return control.Punching(body.n, [])
        return control.Punching(body.n, [(own, int(sock.address()[1]))])
