"""What the daemon's processes prove to themselves with: keys for ids, resets, tokens, from one secret they share.

The secret is the daemon's: every worker has it, a successor gets it, and with a state directory a restart finds it.
A connection id says whose it is: byte 0 the worker, byte 1 the incarnation of the daemon, eight random bytes and a
mark of two, by which an id of ours is told from a stranger's: without it one in 256 ids that clients make up
would name a daemon that is being replaced. Imports nothing of the project but `invariants`.
"""

from __future__ import annotations

import hmac
import os
from typing import Final

from router.transport.codec.quic.invariants import ID_BYTES, RESET_TOKEN_BYTES

SECRET_BYTES: Final = 32
MARK_BYTES: Final = 2
_RANDOM_BYTES: Final = ID_BYTES - 2 - MARK_BYTES


class Keyring:
    """Keys derived from the secret, each for one purpose."""

    __slots__ = ("_ids", "_resets", "tickets", "tokens")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError("the secret has another length")
        self._ids = hmac.digest(secret, b"connection ids", "sha256")
        self._resets = hmac.digest(secret, b"stateless resets", "sha256")
        self.tokens = hmac.digest(secret, b"address tokens", "sha256")
        self.tickets = hmac.digest(secret, b"session tickets", "sha256")

    def make_id(self, worker: int, incarnation: int) -> bytes:
        """Return a new connection id."""
        made = bytes((worker, incarnation)) + os.urandom(_RANDOM_BYTES)
        return made + self._mark(made)

    def is_ours(self, found: bytes) -> bool:
        """Whether a process that has this secret made the id, whichever."""
        made = found[: ID_BYTES - MARK_BYTES]
        return len(found) == ID_BYTES and found[ID_BYTES - MARK_BYTES :] == self._mark(made)

    def reset_token(self, connection_id: bytes) -> bytes:
        """Return the token by which a peer knows that we know nothing of this id any more (RFC 9000 §10.3.2)."""
        return hmac.digest(self._resets, connection_id, "sha256")[:RESET_TOKEN_BYTES]

    def _mark(self, made: bytes) -> bytes:
        return hmac.digest(self._ids, made, "sha256")[:MARK_BYTES]
