"""A client's QUIC connection on a UDP socket: datagrams, timers, another socket if the network changes.

    start -> [heard] -> application's callbacks ... -> on_over
    rebind: a new socket, and the connections on it go on from there (RFC 9000 §9)

All that a tick produced leaves in as few writes as the kernel allows. Nothing is raised across a callback of the
loop: an exception is our bug, is logged and costs this connection. Compiled with the engine, so it is told what to
make and whom to tell by callables.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final

from router.client.port import ClientPort, PortUser
from router.clock import Clock
from router.transport.codec.quic.client import ClientConnection
from router.transport.codec.quic.invariants import ID_BYTES
from router.transport.codec.quic.limits import INTERNAL_ERROR
from router.transport.codec.quic.seam import Owner
from router.transport.codec.quic.state import OPEN
from router.transport.udp import find_local_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioquic.tls import SessionTicket

    from router.transport.codec.quic.config import QuicConfig
    from router.transport.codec.quic.seam import Application, Bearer
    from router.transport.udp import Address

_log = logging.getLogger("router.client")

_GRAIN_S: Final = 0.001  # what the timers of event loops resolve


def _nothing(*_: object) -> None:
    """Stand for who does not want to know."""


class QuicEndpoint(Owner, PortUser):
    """One connection. `on_over` is called once, when nothing more will be sent."""

    __slots__ = (
        "_address",
        "_config",
        "_family",
        "_is_busy",
        "_is_told",
        "_is_touched",
        "_loop",
        "_make",
        "_timer",
        "_timer_s",
        "application",
        "clock",
        "connection",
        "local_host",
        "on_failed",
        "on_over",
        "on_ticket",
        "on_token",
        "port",
    )

    def __init__(
        self,
        config: QuicConfig,
        family: int,
        address: Address,
        make: Callable[[Bearer, float], Application],
        port: ClientPort | None = None,
    ) -> None:
        """`make` returns the protocol, which is the one that `config` asks for; set `on_…` before `start`.

        `port`: of another connection, whose socket is used, too.
        """
        self.port = port or ClientPort(family)
        self._config = config
        self._family = family
        self._address = address
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._is_busy = False  # inside a callback that ends with a flush
        self._is_touched = False
        self._is_told = False
        self.application: Application | None = None
        self.connection: ClientConnection | None = None
        self.clock = Clock()
        self.local_host = ""  # which of this host's addresses leads to the server
        self.on_failed: Callable[[int, str], None] = _nothing  # before there was an application: code, reason
        self.on_over: Callable[[], None] = _nothing
        self.on_ticket: Callable[[SessionTicket], None] = _nothing
        self.on_token: Callable[[bytes], None] = _nothing

    def start(self, token: bytes = b"") -> None:
        """Open the socket and say hello. OSError if there is no way to the address."""
        self.local_host = find_local_host(self._family, self._address)
        self.port.join(self, self._address)
        now = self.clock.read()
        self.connection = ClientConnection(
            self._config, self, now, self._address, token, on_ticket=self.on_ticket, on_token=self.on_token
        )
        self.touch()

    @property
    def place(self) -> tuple[int, Address]:
        """Where the server is: family and address."""
        return self._family, self._address

    @property
    def is_heard(self) -> bool:
        """Whether the server has answered: UDP is not blocked."""
        return self.connection is not None and self.connection.received_packets > 0

    @property
    def is_live(self) -> bool:
        """Whether it was closed by neither side."""
        return self.connection is not None and self.connection.phase <= OPEN

    @property
    def last_heard_s(self) -> float:
        """When the server was heard last, monotonic seconds."""
        return self.connection.last_heard_s if self.connection is not None else 0.0

    def rebind(self) -> None:
        """Go on from a new socket: the network, or what a NAT remembers of us, has changed. May raise OSError."""
        if self.connection is not None:
            find_local_host(self._family, self._address)
            self.port.rebind()

    def moved(self) -> None:
        """Go on from the new socket."""
        connection = self.connection
        if connection is None:
            return
        with contextlib.suppress(OSError):  # else what it was: the next look sees another one
            self.local_host = find_local_host(self._family, self._address)
        connection.now = self.clock.read()
        connection.local_address_changed(b"")
        self.touch()

    def close(self) -> None:
        """Stop at once. Close the connection before, and flush, if the server is to know."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_s = 0.0
        self.port.leave(self)
        connection = self.connection
        if connection is None:
            return
        self.connection = None
        self.application = None
        connection.let_go()
        self.on_over()

    # -- for the port ---------------------------------------------------------------------------------

    def receive(self, data: bytes, segment_bytes: int, address: Address, ecn: int) -> None:
        """Hand datagrams to the engine."""
        connection = self.connection
        if connection is None:
            return
        self._is_busy = True
        try:
            connection.receive(data, segment_bytes, address, None, self.clock.read(), ecn)
        except Exception:
            self._crash()

    def received(self) -> None:
        """Send what came of it."""
        self._is_busy = False
        self.flush()

    # -- for the engine -------------------------------------------------------------------------------

    def touch(self) -> None:
        """Be flushed at the end of this tick."""
        if not self._is_touched:
            self._is_touched = True
            if not self._is_busy:
                self._loop.call_soon(self.flush)

    def watch(self) -> None:
        """Look at the deadlines, at the end of this tick."""
        self.touch()

    def make_id(self) -> bytes:
        """Return a new connection id; whatever comes to this socket is for us."""
        return os.urandom(ID_BYTES)

    def retire_id(self, retired: bytes) -> None:
        """Nothing is routed by ids here."""

    def reset_token(self, issued: bytes) -> bytes:
        """Return what nobody can use: a client has nothing to reset when it is gone."""
        return os.urandom(16)

    def new_token(self, address: object) -> bytes:
        """Give none: servers do."""
        return b""

    def make_application(self, bearer: Bearer, alpn: str) -> Application:
        """Return the protocol."""
        self.application = made = self._make(bearer, self.clock.now)
        return made

    def stray(self, data: bytes, address: object) -> None:
        """Drop it: there is no other connection on this socket."""

    def peer_moved(self, address: object) -> None:
        """Cannot be: servers do not move."""

    # -- the end of a tick ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Send all that is to be sent, tell of room, and set the timer."""
        connection = self.connection
        sock = self.port.sock
        if connection is None or sock is None:
            return
        self._is_touched = False
        self._is_busy = True
        try:
            for burst in connection.datagrams_to_send(self.clock.read()):
                sock.send(burst.pieces, burst.segment_bytes, b"", burst.address)
            connection.deliver_drained()
        except Exception:
            self._crash()
        self._is_busy = False
        if self.connection is None:
            return
        if connection.phase > OPEN and self.application is None and not self._is_told:
            # An application hears of the end itself; this one ended before there was one.
            self._is_told = True
            self.on_failed(connection.close_code, connection.close_reason.decode("utf-8", "replace"))
        if connection.is_over:
            self.close()
            return
        if self._is_touched:
            self._loop.call_soon(self.flush)
        self._arm()

    def _deadline(self) -> float:
        connection, application = self.connection, self.application
        if connection is None:
            return 0.0
        first = connection.next_deadline()
        if application is not None and connection.phase <= OPEN:
            other = application.next_deadline()
            if other is not None and (first is None or other < first):
                first = other
        return first or 0.0

    def _arm(self) -> None:
        when_s = self._deadline()
        if when_s == self._timer_s:
            return
        if self._timer is not None:
            # A deadline that moves later, as the probe timer's with each packet, moves nothing: it is asked again.
            if self._timer_s <= when_s:
                return
            self._timer.cancel()
            self._timer = None
        self._timer_s = when_s
        if when_s:
            delay_s = max(_GRAIN_S, when_s - self.clock.now + _GRAIN_S / 2)
            self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_s = 0.0
        connection = self.connection
        if connection is None:
            return
        now = self.clock.read()
        self._is_busy = True
        try:
            first = connection.next_deadline()
            if first is not None and first <= now:
                connection.handle_deadline(now)
            application = self.application
            if application is not None and connection.phase <= OPEN:
                other = application.next_deadline()
                if other is not None and other <= now:
                    connection.now = now
                    application.handle_deadline(now)
        except Exception:
            self._crash()
        self._is_busy = False
        self.flush()

    def _crash(self) -> None:
        """End the connection: its engine or protocol has a bug."""
        _log.exception("connection dropped by a bug in its engine or protocol")
        connection = self.connection
        if connection is None:
            return
        try:
            connection.abort(INTERNAL_ERROR, "internal error")
        except Exception:
            _log.exception("and could not be ended in order")
        self.close()
