"""At an attached replica: who may come directly, and the checks that open the NAT for it.

A robot shows a ticket that the router gave to both of us, good for one session: who comes again asks the router
first, which may know better by then. Without one nobody is served who comes over QUIC; what the router itself
forwards was let in there.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from router.core import Gate
from router.errors import Kind, ProxyError, Source
from router.routing.credentials import ANYBODY
from router.transport.codec.h2.calm import Allowance
from router.transport.codec.punch import CHECK_S, CHECKS_S, Checks
from router.transport.codec.robot import wire
from router.transport.codec.stun import MAX_USERNAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.continuity import Continuity
    from router.http import RequestHead
    from router.routing.credentials import Credential, Credentials
    from router.routing.table import Endpoint
    from router.transport.codec.attach import control
    from router.transport.udp import Address

MAX_TICKETS: Final = 1_024
"""Of robots that were announced, or have come; the one longest unused goes for a new one."""
TICKET_S: Final = 30.0
"""For a robot to come after it was announced."""
MAX_CHECKED: Final = 64
"""Robots that the NAT is being opened for."""
CHECKS_BURST: Final = 512
CHECKS_RATE: Final = 2_000.0
"""Checks a second, to all places of all robots: what others can have us send to whom they name."""
MIN_KEY_BYTES: Final = 16
MIN_TICKET_BYTES: Final = 16
"""Less could be guessed."""
_SPLICED: Final = frozenset((b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2"))
"""What the router's streams carry; everything else came over QUIC from somebody else."""
_MISSING: Final = ProxyError(Kind.UNAUTHENTICATED, Source.DOWNSTREAM)


class _Ticket:
    """Of a robot that was announced: until when it may come, and the session that it came with."""

    __slots__ = ("by_s", "continuity")

    def __init__(self, by_s: float) -> None:
        self.by_s = by_s
        self.continuity: Continuity | None = None


class DirectRobots:
    """One per sidecar. `send` writes a datagram from the listener's socket."""

    def __init__(self, send: Callable[[bytes, Address], None]) -> None:
        self._send = send
        self._tickets: OrderedDict[bytes, _Ticket] = OrderedDict()
        self._checks: dict[bytes, Checks] = {}
        self._loop = asyncio.get_running_loop()
        self._allowance = Allowance(CHECKS_BURST, CHECKS_RATE, self._loop.time())

    def expect(self, body: control.Punch, places: list[Address]) -> bool:
        """Let a robot in that will come from one of these; False if it cannot be told, or too many are expected."""
        user, ticket = body.user.encode(), body.ticket.encode()
        if user in self._checks or not 0 < len(user) <= MAX_USERNAME_BYTES:
            return False
        if places and len(self._checks) >= MAX_CHECKED:
            return False
        if len(body.key) < MIN_KEY_BYTES or len(ticket) < MIN_TICKET_BYTES or ticket in self._tickets:
            return False
        self._tickets[ticket] = _Ticket(self._loop.time() + TICKET_S)
        while len(self._tickets) > MAX_TICKETS:
            self._tickets.popitem(last=False)
        if places:  # a router that comes for its robots needs none: the NAT lets it in
            self._checks[user] = checks = Checks(user, body.key, places)
            self._check(checks, self._loop.time() + CHECKS_S)
        return True

    def _check(self, checks: Checks, until_s: float) -> None:
        now = self._loop.time()
        if now >= until_s:
            del self._checks[checks.user]
            return
        for request, place in checks.due():
            if self._allowance.take(now):
                self._send(request, place)
        self._loop.call_later(CHECK_S, self._check, checks, until_s)

    def take_check(self, user: bytes, data: bytes, address: Address) -> bytes:
        """Return the answer to a robot's check; empty for one that we do not know."""
        checks = self._checks.get(user)
        return b"" if checks is None else checks.take(data, address)

    def admits(self, ticket: bytes, continuity: Continuity | None) -> bool:
        """Whether a robot was announced with this ticket. It may ask for more in that session, and in no other."""
        found = self._tickets.get(ticket)
        if found is None or continuity is None:
            return False
        if found.continuity is None and self._loop.time() < found.by_s:
            found.continuity = continuity
        self._tickets.move_to_end(ticket)
        return found.continuity is continuity


class TicketGate(Gate):
    """Asks robots for tickets, leaves what the router forwards to the gate that there is, and refuses the rest."""

    __slots__ = ("_gate", "_robots")

    def __init__(self, gate: Gate, robots: DirectRobots) -> None:
        self._gate = gate
        self._robots = robots

    def check(
        self, head: RequestHead, endpoint: Endpoint | None, credentials: Credentials, now: float
    ) -> Credential | ProxyError:
        """See `core.Gate`."""
        shape = head.shape
        if shape.version in _SPLICED:
            return self._gate.check(head, endpoint, credentials, now)
        if shape.version != wire.VERSION:
            return _MISSING
        return ANYBODY if self._robots.admits(shape.known.get(b"x-router-key", b""), head.continuity) else _MISSING

    def check_session(
        self, head: RequestHead, endpoint: Endpoint, credentials: Credentials, minter: bytes, now: float
    ) -> Credential | ProxyError:
        """See `core.Gate`."""
        if head.shape.version in _SPLICED:
            return self._gate.check_session(head, endpoint, credentials, minter, now)
        return self.check(head, endpoint, credentials, now)

    def admit(self, found: Credential | ProxyError, endpoint: Endpoint, now: float) -> Credential | ProxyError:
        """See `core.Gate`."""
        return self._gate.admit(found, endpoint, now)
