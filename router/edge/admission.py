"""The gate: who may be served. Decided from memory in microseconds.

A static table is open on loopback; elsewhere a token is asked for. The token is taken as
`Authorization: Bearer TOKEN`, or as `x-router-key: TOKEN` so that an engine's own Authorization can pass.
Only hashes are kept, compared in constant time; a credential of ours is never forwarded.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from router.errors import Kind, ProxyError, Source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.core import Peer
    from router.http import RequestHead

_MISSING = ProxyError(Kind.UNAUTHENTICATED, Source.DOWNSTREAM)


class AdmissionGate:
    """Checks each request's head."""

    __slots__ = ("_digests",)

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        # With none the gate is open.
        self._digests = tuple(hashlib.sha256(token.encode()).digest() for token in tokens)

    def check(self, head: RequestHead, peer: Peer) -> ProxyError | None:
        """Return why the request is refused, or None; see `core.Gate`."""
        if self._digests:
            return self._authenticate(head)
        return None

    def _authenticate(self, head: RequestHead) -> ProxyError | None:
        shape = head.shape
        key = shape.known.get(b"x-router-key")
        if key is not None:
            return None if self._is_ours(key) else _MISSING
        scheme, _, token = shape.authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not self._is_ours(token.strip(b" ")):
            return _MISSING
        head.shape = shape.without_authorization()
        return None

    def _is_ours(self, token: bytes) -> bool:
        if not token:
            return False
        digest = hashlib.sha256(token).digest()
        # No early exit: the time taken must not tell which token came close.
        return any([hmac.compare_digest(digest, ours) for ours in self._digests])  # noqa: C419
