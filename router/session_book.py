"""Which sticky sessions are in use at one router: what its workers tell, put together.

A session is idle from the end of its last request on, in whichever worker that was. Pure; times are monotonic.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from router.routing.spec import SessionEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

ID_BYTES: Final = 16
KEY_BYTES: Final = 32
_ELSEWHERE: Final = -1  # in place of a worker's number: a predecessor that still has requests of it


class SessionUse(msgspec.Struct, array_like=True):
    """A session of which requests began or ended; `is_busy`: one is under way."""

    id: str
    endpoint: str
    replica: str
    idle_s: int
    is_busy: bool


class Used:
    """One session in use at this router. `told_s`: until when the store knows of its use."""

    __slots__ = ("busy", "entry", "told_s", "used_s")

    def __init__(self, entry: SessionEntry, now: float, told_s: float) -> None:
        self.entry = entry
        self.busy: set[int] = set()
        self.used_s = now
        self.told_s = told_s

    def idle_s(self, now: float) -> float:
        """Return for how long nothing has been under way here."""
        return 0.0 if self.busy else now - self.used_s


class SessionBook:
    """Sessions that were used here, by id, until they end or others are known to use them."""

    def __init__(self) -> None:
        self.used: dict[str, Used] = {}

    def add(self, entry: SessionEntry, now: float, told_s: float = 0.0) -> None:
        """Begin to watch a session; `told_s` 0: the store knows nothing of its use."""
        self.used[entry.id] = Used(entry, now, told_s)

    def take(self, worker: int, uses: Iterable[SessionUse], now: float) -> None:
        """Take what a worker tells."""
        for use in uses:
            seen = self.used.get(use.id)
            if seen is None:
                entry = SessionEntry(use.id, use.endpoint, use.replica, use.idle_s)
                seen = self.used[use.id] = Used(entry, now, 0.0)
            seen.used_s = now
            if use.is_busy:
                seen.busy.add(worker)
            else:
                seen.busy.discard(worker)

    def drop_worker(self, worker: int, now: float) -> None:
        """Note that a worker is gone, with all it had under way."""
        for seen in self.used.values():
            if worker in seen.busy:
                seen.busy.discard(worker)
                seen.used_s = now

    def set_elsewhere(self, busy: Iterable[str], now: float) -> None:
        """Take over which sessions have requests at a predecessor."""
        self.drop_worker(_ELSEWHERE, now)
        for session_id in busy:
            if session_id in self.used:
                self.used[session_id].busy.add(_ELSEWHERE)

    def busy(self) -> list[str]:
        """Return the sessions with requests under way."""
        return [session_id for session_id, seen in self.used.items() if seen.busy]

    def idle(self, now: float, slack_s: float = 0.0) -> list[str]:
        """Return the sessions whose time is up, as far as is known here."""
        return [name for name, seen in self.used.items() if seen.idle_s(now) >= seen.entry.idle_s + slack_s]

    def counts(self) -> dict[str, int]:
        """Return how many each endpoint has."""
        found: dict[str, int] = {}
        for seen in self.used.values():
            name = seen.entry.endpoint
            found[name] = found.get(name, 0) + 1
        return found


def make_id() -> str:
    """Return the id of a session that nobody guesses."""
    return secrets.token_urlsafe(ID_BYTES)
