"""Who may attach under which name: tokens of the table with the scope `attach:NAME`, and those of --may-attach."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from router.transport.attached import is_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.core import Core
    from router.walltime import WallTime

MAX_TOKEN_BYTES: Final = 1_024


def hash_of(token: str) -> bytes:
    """Return what is kept of a token while its replica is attached."""
    shown = token.encode()
    return hashlib.sha256(shown).digest() if len(shown) <= MAX_TOKEN_BYTES else b""


class AttachGate:
    """Asked at a connection's beginning, and again and again: a token may be revoked, or expire."""

    __slots__ = ("_core", "_own", "_walltime")

    def __init__(self, own: Iterable[str], core: Core, walltime: WallTime) -> None:
        """`own`: `NAME=TOKEN` each."""
        pairs = [pair.partition("=") for pair in own]
        self._own = [(name, hashlib.sha256(token.encode()).digest()) for name, _, token in pairs]
        self._core = core
        self._walltime = walltime

    def refusal(self, name: str, digest: bytes, now: float) -> str:
        """Return why a replica may not attach under this name with the token of this hash; empty if it may."""
        if not is_name(name):
            return "the name is no label of letters, digits and hyphens"
        may = False
        for own_name, own_digest in self._own:  # no early exit: the time must not tell which token came close
            may |= hmac.compare_digest(digest, own_digest) and own_name == name
        if may:
            return ""
        found = self._core.table.credentials.hashed(digest)
        if found is None:
            return "the token is not known"
        if 0.0 < found.not_after_s <= self._walltime.at(now):
            return "the token has expired"
        return "" if name in found.attaches else f"the token has no scope attach:{name}"
