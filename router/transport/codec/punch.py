"""Checks of ways between two hosts that are each behind a NAT, as RFC 8445 §7 makes them (a small part of it).

Both send authenticated Binding requests to every place where the other may be, from the very socket that is to be
used, until one is answered: each request also opens the sender's own NAT for what comes from there. A request from
a place that nobody named (a NAT that maps each destination anew) makes it one more.

Sans I/O: who uses this sends what `due` returns every `CHECK_S` for `CHECKS_S`, and hands in what arrives.
"""

from __future__ import annotations

import os
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


class Checks:
    """One side. `found` is the first place that was shown to work: an answer came from there."""

    def __init__(self, user: bytes, key: bytes, places: Sequence[Address]) -> None:
        """`user` and `key` are the same on both sides."""
        self.user = user
        self._key = key
        self._places = list(dict.fromkeys(places))[:MAX_PLACES]
        self._transactions: set[bytes] = set()
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
            if message.username != self.user or message.unknown:
                return b""
            if address not in self._places and len(self._places) < MAX_PLACES:
                self._places.append(address)
            return binding_success(message, address, key=self._key)
        if message.kind == BINDING_SUCCESS and message.transaction in self._transactions and self.found is None:
            self.found = address
        return b""
