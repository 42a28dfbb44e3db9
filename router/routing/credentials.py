"""Who may call: the tokens of the table, as a request's gate looks them up, and their rate limits.

A token is known by the SHA-256 of its two halves and found by that hash, so that the time a look-up takes says
nothing of any secret. One index serves every version of the table: a token that was revoked is refused at once,
also by a request that began with an older table. A rate limit holds for all workers of a host together, through
cells of shared memory; without a lock, so that two workers in the same 100 ns may both take the last one.
"""

from __future__ import annotations

import hashlib
from hmac import compare_digest
from typing import Final

from router.routing.spec import TokenSpec

_ENDPOINT_SCOPE: Final = "endpoint:"
_PIN: Final = "pin"
_ATTACH_SCOPE: Final = "attach:"
_NS: Final = 1e9
MAX_TOLERANCE_NS: Final = 2**61  # a cell has 63 bits


class RateBoard:
    """The time at which each limited token's next request is due, in monotonic ns; cells of a shared buffer."""

    __slots__ = ("_cells",)

    def __init__(self, buffer: memoryview) -> None:
        self._cells = buffer.cast("q")

    def take(self, slot: int, interval_ns: int, tolerance_ns: int, now_ns: int) -> int:
        """Count one request, or return how many ns it came too early (the generic cell rate algorithm)."""
        due_ns = self._cells[slot]
        # A cell may hold what another token left there: further ahead than this one can ever be.
        if due_ns < now_ns or due_ns - now_ns > tolerance_ns + interval_ns:
            due_ns = now_ns
        early_ns = due_ns - now_ns - tolerance_ns
        if early_ns > 0:
            return early_ns
        self._cells[slot] = due_ns + interval_ns
        return 0


class Credential:
    """Whose request it is, and what it may do. `endpoints`: those it is limited to, None for no such limit."""

    __slots__ = (
        "_interval_ns",
        "_slot",
        "_tolerance_ns",
        "attaches",
        "can_pin",
        "digest",
        "endpoints",
        "environment",
        "is_operator",
        "is_revoked",
        "key",
        "mark",
        "not_after_s",
    )

    def __init__(self, spec: TokenSpec, *, is_operator: bool = False) -> None:
        self.is_operator = is_operator  # every endpoint is open to it
        self.is_revoked = False  # or replaced by what the table says of it now
        self.digest = spec.digest
        self.mark = mark_of(spec.digest) if spec.digest else b""
        """What stands for it in the session tokens it was given."""
        self.key = spec.key.encode()
        self.environment = spec.environment
        names = frozenset(s.removeprefix(_ENDPOINT_SCOPE) for s in spec.scopes if s.startswith(_ENDPOINT_SCOPE))
        self.attaches = frozenset(
            s.removeprefix(_ATTACH_SCOPE) for s in spec.scopes if s.startswith(_ATTACH_SCOPE)
        )
        """Names under which it lets a replica attach; it is then for no endpoint that it does not name."""
        self.endpoints = names if names or self.attaches else None
        self.can_pin = _PIN in spec.scopes
        self.not_after_s = spec.not_after_us / 1e6
        self._slot = spec.slot if spec.rate_per_s else -1
        self._interval_ns = int(_NS / spec.rate_per_s) if spec.rate_per_s else 0
        self._tolerance_ns = min(self._interval_ns * (spec.burst - 1), MAX_TOLERANCE_NS)

    def may_call(self, endpoint: str, environment: str) -> bool:
        """Whether an endpoint that asks for a token is open to it."""
        return self.is_operator or (
            self is not ANYBODY
            and environment == self.environment
            and (self.endpoints is None or endpoint in self.endpoints)
        )

    def wait_s(self, board: RateBoard, now: float) -> float:
        """Count one request against the rate limit; return the seconds it came too early, 0 for in time."""
        if self._slot < 0:
            return 0.0
        return board.take(self._slot, self._interval_ns, self._tolerance_ns, int(now * _NS)) / _NS


def mark_of(digest: bytes) -> bytes:
    """Return what tells a token by its hash from all others, and gives nothing of the hash away."""
    return hashlib.sha256(b"router mark\0" + digest).digest()[:16]


ANYBODY: Final = Credential(TokenSpec(b"", ""))
"""Of whom nothing is known, since nothing was asked or shown."""


def operator(digest: bytes) -> Credential:
    """Return who shows a token of --auth-token, whose hash this is."""
    return Credential(TokenSpec(digest, "auth-token", scopes=(_PIN,)), is_operator=True)


class Credentials:
    """The tokens by their hash."""

    __slots__ = ("_by_digest", "_by_mark")

    def __init__(self) -> None:
        self._by_digest: dict[bytes, Credential] = {}
        self._by_mark: dict[bytes, Credential] = {}

    def __len__(self) -> int:
        return len(self._by_digest)

    def put(self, spec: TokenSpec) -> None:
        """Add a token, or take over what changed of it."""
        self.revoke(spec.digest)
        self._by_digest[spec.digest] = credential = Credential(spec)
        self._by_mark[credential.mark] = credential

    def revoke(self, digest: bytes) -> None:
        """Take a token out; who was found before and has not been let in yet is not any more."""
        credential = self._by_digest.pop(digest, None)
        if credential is not None:
            credential.is_revoked = True
            self._by_mark.pop(credential.mark, None)

    def marked(self, mark: bytes) -> Credential | None:
        """Return the token of a mark."""
        return self._by_mark.get(mark)

    def find(self, key_and_secret: bytes) -> Credential | None:
        """Return the token of `KEY.SECRET`."""
        return self.hashed(hashlib.sha256(key_and_secret).digest())

    def hashed(self, digest: bytes) -> Credential | None:
        """Return the token whose hash this is."""
        found = self._by_digest.get(digest)
        return found if found is not None and compare_digest(found.digest, digest) else None
