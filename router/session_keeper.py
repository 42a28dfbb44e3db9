"""The supervisor's part in sticky sessions: gives new ones, and ends those that are idle.

`SessionKeeper` is what both kinds of table share; `LocalSessions` keeps the sessions of a static table, which are
this daemon's alone, `config.sessions` those of a store, which are the fleet's.
"""

from __future__ import annotations

import asyncio
import secrets
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from router.errors import Kind
from router.routing.spec import SessionEntry, TablePatch
from router.session_book import KEY_BYTES, SessionBook, make_id
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.routing.image import TableImage
    from router.session_book import SessionUse

TURN_S: Final = 0.25
MAX_SESSIONS: Final = 100_000  # open at once in one table


class Begun(NamedTuple):
    """A session that is kept, and since when: Unix seconds of the clock that the table goes by."""

    id: str
    at_s: int


class SessionKeeper:
    """What the supervisor asks. `start` and `end` answer for what is kept, not for what is meant to be."""

    def __init__(self, image: TableImage) -> None:
        self._image = image
        self.book = SessionBook()
        self.started: dict[str, int] = {}
        """By endpoint, since the daemon started."""
        self.ended: dict[tuple[str, str], int] = {}
        """By endpoint and reason."""

    def take(self, worker: int, uses: list[SessionUse]) -> None:
        """Take which sessions a worker began or ended requests of."""
        self.book.take(worker, uses, monotonic())

    async def start(self, endpoint: str, replica: str, idle_s: int) -> Begun | Kind:
        """Return a new session on a replica, or why there is none."""
        raise NotImplementedError

    async def end(self, session_id: str) -> Kind | None:
        """End a session; one that is not there is no error."""
        raise NotImplementedError

    def follow_predecessor(self, sessions: list[SessionEntry], ended: list[str], busy: list[str]) -> None:
        """Take what a predecessor that drains tells; of those of a store only what is under way is news."""
        self.book.set_elsewhere(busy, monotonic())

    def run(self) -> None:
        """Begin to end those that are idle."""
        raise NotImplementedError

    def retire(self) -> None:
        """Leave to a successor what only one may decide."""

    async def close(self) -> None:
        """Stop."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """Return how it goes: open ones of the table by endpoint; of this daemon those in use, begun and ended."""
        by_endpoint: dict[str, int] = {}
        for (endpoint, _), count in self._image.session_counts.items():
            by_endpoint[endpoint] = by_endpoint.get(endpoint, 0) + count
        return {
            "open": by_endpoint,
            "in_use": len(self.book.used),
            "started": dict(self.started),
            "ended": [[*name, count] for name, count in self.ended.items()],
            "error": "",
        }

    def shown(self, endpoint: str | None) -> list[dict[str, Any]]:
        """Return the open sessions, and what is known here of their use."""
        now = monotonic()
        found = []
        for entry in self._image.sessions.values():
            if endpoint in (None, entry.endpoint):
                used = self.book.used.get(entry.id)
                found.append({
                    "session": entry.id, "endpoint": entry.endpoint, "replica": entry.replica,
                    "idle_timeout_s": entry.idle_s, "busy": used is not None and bool(used.busy),
                    "idle_s": None if used is None else round(used.idle_s(now), 1),
                })  # fmt: skip
        return found

    def _refusal(self, endpoint: str, replica: str) -> Kind | None:
        """Return why a replica may have no session more, as far as the table tells."""
        spec = self._image.endpoints.get(endpoint)
        known = self._image.replicas.get(endpoint, {}).get(replica)
        if spec is None or spec.sessions is None or known is None or known.state != "READY":
            return Kind.NO_REPLICA
        count = self._image.session_counts.get((endpoint, replica), 0)
        if count >= spec.sessions.max_per_replica or len(self._image.sessions) >= MAX_SESSIONS:
            return Kind.AT_CAPACITY
        return None

    def _note_start(self, endpoint: str) -> None:
        self.started[endpoint] = self.started.get(endpoint, 0) + 1

    def _note_end(self, endpoint: str, reason: str) -> None:
        name = (endpoint, reason)
        self.ended[name] = self.ended.get(name, 0) + 1


class LocalSessions(SessionKeeper):
    """The sessions of a static table. They live as long as the daemon, and its successors by upgrade."""

    def __init__(self, image: TableImage, publish: Callable[[TablePatch], None]) -> None:
        super().__init__(image)
        self._publish = publish
        self._task: asyncio.Task[None] | None = None

    def first_patch(
        self,
        keys: tuple[bytes, ...] = (),
        sessions: tuple[SessionEntry, ...] = (),
        ended: tuple[str, ...] = (),
    ) -> TablePatch:
        """Return what the table begins with: a key of this daemon's own, or what a predecessor had."""
        now = monotonic()
        for entry in sessions:
            self.book.add(entry, now)
        keys = keys or (secrets.token_bytes(KEY_BYTES),)
        return TablePatch(0, sessions=sessions, ended=ended, session_keys=keys)

    def take(self, worker: int, uses: list[SessionUse]) -> None:
        """Take which sessions a worker began or ended requests of; not those that are over."""
        self.book.take(worker, [use for use in uses if use.id in self._image.sessions], monotonic())

    def follow_predecessor(self, sessions: list[SessionEntry], ended: list[str], busy: list[str]) -> None:
        """Take over what began and ended at a predecessor after it had described itself, and what is under way."""
        now, image = monotonic(), self._image
        over = frozenset(image.ended_sessions)
        begun = tuple(entry for entry in sessions if entry.id not in image.sessions and entry.id not in over)
        for entry in begun:
            self.book.add(entry, now)
        gone = tuple(session_id for session_id in ended if session_id not in over)
        if begun or gone:
            self._publish(TablePatch(0, sessions=begun))
            self._end(gone)
        self.book.set_elsewhere(busy, now)

    async def start(self, endpoint: str, replica: str, idle_s: int) -> Begun | Kind:
        """Return a new session on a replica, or why there is none."""
        refusal = self._refusal(endpoint, replica)
        if refusal is not None:
            return refusal
        entry = SessionEntry(make_id(), endpoint, replica, idle_s)
        self.book.add(entry, monotonic())
        self._publish(TablePatch(0, sessions=(entry,)))
        self._note_start(endpoint)
        return Begun(entry.id, int(time()))

    async def end(self, session_id: str) -> Kind | None:
        """End a session."""
        entry = self._image.sessions.get(session_id)
        self._end((session_id,))
        if entry is not None:
            self._note_end(entry.endpoint, "terminated")
        return None

    def run(self) -> None:
        """End those that are idle, from now on."""
        self._task = spawn(self._run(), "sessions")

    def retire(self) -> None:
        """End nothing any more: the successor knows what is in use there."""
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Stop."""
        self.retire()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            idle = self.book.idle(monotonic())
            for session_id in idle:
                self._note_end(self.book.used[session_id].entry.endpoint, "idle")
            if idle:
                self._end(tuple(idle))

    def _end(self, ids: tuple[str, ...]) -> None:
        for session_id in ids:
            self.book.used.pop(session_id, None)
        self._publish(TablePatch(0, ended=ids))
