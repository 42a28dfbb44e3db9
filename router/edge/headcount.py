"""How many clients are connected, over whatever they came: one limit for all, one for each address, one for memory.

Invariant: `leave` is called once for each `enter` that was allowed, with the same address.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.counters import WorkerCounters


class Headcount:
    """One per worker. `max_per_address`: connections of one client, 0 for any number; see `client_of`."""

    __slots__ = ("_by_client", "_counters", "max_connections", "max_per_address", "open", "refuses")

    def __init__(self, counters: WorkerCounters, max_connections: int, max_per_address: int = 0) -> None:
        self._counters = counters
        self._by_client: dict[bytes, int] = {}  # never more than there are connections
        self.max_connections = max_connections
        self.max_per_address = max_per_address
        self.open = 0
        self.refuses = False  # new ones, for want of memory

    def enter(self, address: bytes) -> bool:
        """Count a new connection; False, counted by reason, when there are too many."""
        counters = self._counters
        if self.open >= self.max_connections:
            counters.connections_refused += 1
            return False
        if not self.has_room(address):
            return False
        if self.max_per_address:
            client = client_of(address)
            if client:
                self._by_client[client] = self._by_client.get(client, 0) + 1
        self.open += 1
        counters.connections_accepted += 1
        counters.connections_open = self.open
        return True

    def has_room(self, address: bytes) -> bool:
        """Whether a connection of that address would be taken, before a handshake is spent on it; counts if not."""
        counters = self._counters
        if self.refuses:
            counters.refused_memory += 1
            return False
        if self.max_per_address and self._by_client.get(client_of(address), 0) >= self.max_per_address:
            counters.refused_address += 1
            return False
        return True

    def leave(self, address: bytes) -> None:
        """Forget a connection that was counted."""
        self.open -= 1
        self._counters.connections_open = self.open
        client = client_of(address) if self.max_per_address else b""
        if client:
            left = self._by_client[client] - 1
            if left:
                self._by_client[client] = left
            else:
                del self._by_client[client]

    @property
    def clients(self) -> int:
        """Return how many addresses are told apart."""
        return len(self._by_client)


def client_of(address: bytes) -> bytes:
    """Return what one client's connections are counted by: an IPv4 address, or the /64 that an IPv6 one is of.

    Empty for a Unix socket, whose clients have none.
    """
    if address == b"unix":
        return b""
    if b":" not in address:
        return address
    found = IPv6Address(address.decode().partition("%")[0])
    mapped = found.ipv4_mapped
    return found.packed[:8] if mapped is None else str(mapped).encode()
