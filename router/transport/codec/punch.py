"""Checks of ways between two hosts that are each behind a NAT, as RFC 8445 §7 makes them (a small part of it).

Both send authenticated Binding requests to every place where the other may be, from the very socket that is to be
used, until one is answered: each request also opens the sender's own NAT for what comes from there. A request from
a place that nobody named (a NAT that maps each destination anew) makes it one more.

Sans I/O: who uses this sends what `due` returns every `CHECK_S` for `CHECKS_S`, and hands in what arrives.
"""

from __future__ import annotations

import os
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final

from router.transport.codec.stun import (
    BINDING_REQUEST,
    BINDING_SUCCESS,
    TRANSACTION_BYTES,
    binding_request,
    binding_success,
    read_message,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

Address = tuple[Any, ...]

CHECK_S: Final = 0.05
CHECKS_S: Final = 2.5
"""For one that has to ask the way round the world first; then it is relayed as before."""
MAX_PLACES: Final = 8
"""That are tried: what somebody asks us to send there is bounded by it, and by the time."""
MAX_ANSWERS: Final = 512
"""Of one side to the other. Nobody asks more often than all places for all the time; who has the key, and says to
be where others are, has so many sent there and no more."""


def is_loopback(host: str) -> bool:
    """Whether an address, as sockets give it, is one of this host's to itself."""
    return ip_address(host.removeprefix("::ffff:")).is_loopback


def place_of(host: str, port: int, *, is_v6: bool, may_be_here: bool) -> Address | None:
    """Return a place that somebody else named as sockets of this family have it; None if nothing may be sent there.

    `may_be_here`: this host itself may be meant, as where the one who names it is here, too.
    """
    if "%" in host or not 0 < port < 65_536:
        return None  # a scope is for the host that has it to know
    try:
        found = ip_address(host)
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if found.is_multicast or found.is_unspecified or str(found) == "255.255.255.255":
        return None
    if found.is_loopback and not may_be_here:
        return None
    if is_v6:
        return (str(found) if found.version == 6 else f"::ffff:{found}", port, 0, 0)
    return (str(found), port) if found.version == 4 else None


class Checks:
    """One side. `found` is the first place that was shown to work: an answer came from there."""

    def __init__(self, user: bytes, key: bytes, places: Sequence[Address]) -> None:
        """`user` and `key` are the same on both sides."""
        self.user = user
        self._key = key
        self._places = list(dict.fromkeys(places))[:MAX_PLACES]
        self._transactions: set[bytes] = set()
        self._answers = 0
        self.found: Address | None = None

    def due(self) -> list[tuple[bytes, Address]]:
        """Return a request for each place."""
        transaction = os.urandom(TRANSACTION_BYTES)
        self._transactions.add(transaction)
        request = binding_request(transaction, username=self.user, key=self._key)
        return [(request, place) for place in self._places]

    def take(self, data: bytes, address: Address) -> bytes:
        """Take a STUN message that came from there; return the answer to send back, empty for none."""
        message = read_message(data, self._key)
        if message is None:
            return b""
        if message.kind == BINDING_REQUEST:
            if message.username != self.user or message.unknown or self._answers >= MAX_ANSWERS:
                return b""
            self._answers += 1
            if address not in self._places and len(self._places) < MAX_PLACES:
                self._places.append(address)
            return binding_success(message, address, key=self._key)
        if message.kind == BINDING_SUCCESS and message.transaction in self._transactions and self.found is None:
            self.found = address
        return b""
