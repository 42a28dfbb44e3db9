"""What servers gave for the next connection, by server and by who vouched for it.

Tickets, by which the first message leaves with the first packet, and tokens, which prove our address. Bounded; kept
for as long as the process lives.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from aioquic.tls import SessionTicket

MAX_SERVERS: Final = 64
MAX_TICKETS: Final = 4

Trust: TypeAlias = tuple[str, int, str, str]


class _Gifts:
    __slots__ = ("tickets", "token")

    def __init__(self) -> None:
        self.tickets: list[SessionTicket] = []
        self.token = b""


class Memory:
    """Each ticket and each token is used once: who uses one twice can be followed."""

    def __init__(self) -> None:
        self._servers: OrderedDict[Trust, _Gifts] = OrderedDict()

    def add_ticket(self, trust: Trust, ticket: SessionTicket) -> None:
        """Keep a ticket; the oldest goes."""
        tickets = self._find(trust).tickets
        tickets.append(ticket)
        del tickets[:-MAX_TICKETS]

    def add_token(self, trust: Trust, token: bytes) -> None:
        """Keep a token, instead of the one before."""
        self._find(trust).token = token

    def take(self, trust: Trust) -> tuple[SessionTicket | None, bytes]:
        """Take the newest ticket that is still good, and the token."""
        gifts = self._servers.get(trust)
        if gifts is None:
            return None, b""
        token, gifts.token = gifts.token, b""
        while gifts.tickets:
            ticket = gifts.tickets.pop()
            if ticket.is_valid:
                return ticket, token
        return None, token

    def _find(self, trust: Trust) -> _Gifts:
        gifts = self._servers.setdefault(trust, _Gifts())
        self._servers.move_to_end(trust)
        if len(self._servers) > MAX_SERVERS:
            self._servers.popitem(last=False)
        return gifts


shared: Final = Memory()
