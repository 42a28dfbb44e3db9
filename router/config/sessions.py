"""Keeps sticky sessions in the store, where the whole fleet sees them: an open session is a row of `Sessions`.

A start is answered when its row is committed, so that no session is given which an autoscaler or another router
knows nothing of; an end when its row is deleted. The change stream brings both to every router. What it does not
bring is `LastUsedAt`: each router writes it for the sessions used there, at least three times in an idle timeout,
and by the store's clock. Whoever used a session last deletes it when its time is up, in a transaction that looks
whether another router has used it since; those of routers that are gone are the reaper's (`reap_orphans`).
While the store is away nothing begins or ends, and every session goes on. Imports gRPC late, as the agent does.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from contextlib import suppress
from functools import partial
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from router.config.agent import SchemaError, check_schema
from router.config.errors import StoreError
from router.config.pace import Pace
from router.config.schema import SCHEMA_KEY, SESSION_VERSION
from router.config.target import parse_target
from router.config.timestamps import format_timestamp, parse_timestamp
from router.errors import Kind
from router.routing.spec import SessionEntry
from router.session_book import make_id
from router.session_keeper import TURN_S, Begun, SessionKeeper
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from router.config.client import Transaction
    from router.config.settings import Settings
    from router.config.target import Target
    from router.config.writer import Writer
    from router.routing.image import TableImage
    from router.session_book import SessionUse, Used

_log = logging.getLogger("router.sessions")

CLOSE_S: Final = 1.0  # for telling the last use at the end
OLD_SCHEMA_S: Final = 10.0  # between looks whether somebody migrated the store
STORE_LIMIT_S: Final = 2.0  # for the store to take a start or an end
REFRESHES: Final = 3  # in one idle timeout …
REFRESH_CEILING_S: Final = 60.0  # … and no less often
SLACK_S: Final = 1.0  # in which another router may have used a session, and not said so yet
ORPHAN_SLACK_S: Final = 120.0  # a router tells the last use each minute, and the store may be away for one
MAX_ROWS: Final = 100  # in one transaction
MAX_UNWANTED: Final = 1_000  # deleted in one commit
MAX_REAPS: Final = 20
COLUMNS: Final = ("SessionId", "EndpointId", "ReplicaId", "State", "IdleTimeoutS", "LastUsedAt", "UpdatedAt")
_PAIR = "EndpointId = @endpoint AND ReplicaId = @replica"
_IDLE_ROWS = (
    "SELECT SessionId FROM Sessions WHERE TIMESTAMP_ADD(LastUsedAt, INTERVAL IdleTimeoutS SECOND) < "  # noqa: S608
    f"TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL {ORPHAN_SLACK_S:.0f} SECOND) LIMIT {MAX_ROWS}"
)


class OldSchemaError(StoreError):
    """The store has no sessions."""


class StoreSessions(SessionKeeper):
    """The sessions of a store."""

    def __init__(self, image: TableImage, target: Target) -> None:
        super().__init__(image)
        self._target = target
        self._pace = Pace()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._starts: dict[str, tuple[SessionEntry, asyncio.Future[Kind | None]]] = {}
        self._ends: dict[str, asyncio.Future[Kind | None]] = {}
        self._unwanted: set[str] = set()  # may have been written, and nobody has them
        self._begun_s: dict[str, int] = {}  # by the store's clock, until whoever waits for it takes it
        self._error = "not connected yet"
        self._turn_s = 0.0

    # -- what the supervisor asks ------------------------------------------------------------------------

    async def start(self, endpoint: str, replica: str, idle_s: int) -> Begun | Kind:
        """Return a new session on a replica, or why there is none."""
        refusal = self._refusal(endpoint, replica)
        if refusal is not None:
            return refusal
        entry = SessionEntry(make_id(), endpoint, replica, idle_s)
        future: asyncio.Future[Kind | None] = asyncio.get_running_loop().create_future()
        self._starts[entry.id] = (entry, future)
        refusal = await self._outcome(future)
        begun_s = self._begun_s.pop(entry.id, 0)
        if refusal is not None:
            if self._starts.pop(entry.id, None) is None and refusal is Kind.SESSION_UNAVAILABLE:
                self._unwanted.add(entry.id)  # on its way, or there: who knows
            return refusal
        now = monotonic()
        self.book.add(entry, now, now)
        self._note_start(endpoint)
        return Begun(entry.id, begun_s)

    async def end(self, session_id: str) -> Kind | None:
        """End a session."""
        entry = self._image.sessions.get(session_id)
        future = self._ends.get(session_id)
        if future is None:
            future = self._ends[session_id] = asyncio.get_running_loop().create_future()
        refusal = await self._outcome(future)
        used = self.book.used.pop(session_id, None) if refusal is None else None
        known = entry or (None if used is None else used.entry)
        if refusal is None and known is not None:
            self._note_end(known.endpoint, "terminated")
        return refusal

    def take(self, worker: int, uses: list[SessionUse]) -> None:
        """Take which sessions a worker began or ended requests of."""
        super().take(worker, uses)
        self._wake.set()

    def run(self) -> None:
        """Write in the background."""
        self._task = spawn(self._run(), "sessions")

    async def close(self) -> None:
        """Stop; the store is told of the last use, so that the reaper counts from it."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._error and self.book.used:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._tell_all()

    def status(self) -> dict[str, Any]:
        """Return how it goes."""
        return super().status() | {"error": self._error}

    async def _outcome(self, future: asyncio.Future[Kind | None]) -> Kind | None:
        """Wait for the store; whoever waits for the same goes on waiting when this one gives up."""
        self._wake.set()
        done, _ = await asyncio.wait([future], timeout=STORE_LIMIT_S)
        return future.result() if done else Kind.SESSION_UNAVAILABLE

    # -- the store -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await asyncio.to_thread(importlib.import_module, "router.config.writer")
        from router.config.writer import open_writer  # noqa: PLC0415

        await self._wake.wait()  # most routers have nothing to do with sessions
        while True:
            try:
                async with open_writer(self._target) as writer:
                    await check_sessions(writer)
                    self._say("")
                    while True:
                        await self._turn(writer)
                        self._pace.succeeded()
                        with suppress(TimeoutError):
                            async with asyncio.timeout(TURN_S):  # wait_for may swallow the cancellation
                                await self._wake.wait()
            except OldSchemaError as failure:
                self._say(str(failure))
                self._refuse_all()
                await asyncio.sleep(OLD_SCHEMA_S)
            except StoreError as failure:
                self._say(str(failure))
            except Exception as failure:  # a bug must not end it, nor the daemon
                _log.exception("sessions could not be kept")
                self._say(f"{type(failure).__name__}: {failure}")
            self._refuse_all()
            await self._pace.wait()

    def _say(self, error: str) -> None:
        if error != self._error:
            if error:
                _log.warning("%s: sessions neither begin nor end: %s", self._target, error)
            else:
                _log.info("%s: sessions are kept", self._target)
        self._error = error

    def _refuse_all(self) -> None:
        """Answer those who wait: the store is away."""
        _answer([*(future for _, future in self._starts.values()), *self._ends.values()], Kind.SESSION_UNAVAILABLE)
        self._starts.clear()
        self._ends.clear()

    async def _turn(self, writer: Writer) -> None:
        self._wake.clear()
        await self._write_asked(writer)
        now = monotonic()
        if now - self._turn_s < TURN_S:
            return
        self._turn_s = now
        due = [name for name, seen in self.book.used.items() if _is_due(seen, now)]
        due = list(dict.fromkeys([*self.book.idle(now, SLACK_S), *due]))
        for begin in range(0, len(due), MAX_ROWS):
            await self._tell(writer, due[begin : begin + MAX_ROWS])
            await self._write_asked(writer)  # who waits does not wait for all of them

    async def _write_asked(self, writer: Writer) -> None:
        """Commit what was asked for since the last time, all at once."""
        starts, self._starts = self._starts, {}
        ends, self._ends = self._ends, {}
        gone = [*ends, *islice(self._unwanted, MAX_UNWANTED)]  # who asked for an end is told that it is so
        if not starts and not gone:
            return
        entries = [entry for entry, _ in starts.values()]
        refused: dict[str, Kind] = {}
        begun_s = 0
        futures = [*(future for _, future in starts.values()), *ends.values()]
        try:
            if entries:
                refused, begun_s = await writer.transact(lambda t: _begin(t, entries, gone, self._room))
            else:
                await writer.write([("delete", "Sessions", (), [(session_id,) for session_id in gone])])
        except BaseException:
            self._unwanted.update(starts)
            _answer(futures, Kind.SESSION_UNAVAILABLE)
            raise
        self._unwanted.difference_update(gone)
        for session_id, refusal in refused.items():
            _answer([starts[session_id][1]], refusal)
        self._begun_s.update(dict.fromkeys(starts.keys() - self._unwanted - refused.keys(), begun_s))
        _answer(futures, None)

    def _room(self, endpoint: str) -> int:
        """Return how many sessions a replica of an endpoint may have."""
        spec = self._image.endpoints.get(endpoint)
        return 0 if spec is None or spec.sessions is None else spec.sessions.max_per_replica

    async def _tell(self, writer: Writer, ids: list[str]) -> None:
        """Write when sessions were used last, and delete those that nobody has used for long enough."""
        now = monotonic()
        ages = {name: self.book.used[name].idle_s(now) for name in ids if name in self.book.used}
        if not ages:
            return
        there, ended = await writer.transact(lambda t: _judge(t, ages))
        for name in ages:
            seen = self.book.used.get(name)
            if seen is None:
                continue
            if name in ended:
                self._note_end(seen.entry.endpoint, "idle")
            seen.told_s = now
            is_over = name not in there or name in ended
            if not seen.busy and (is_over or seen.idle_s(now) >= seen.entry.idle_s + SLACK_S):
                del self.book.used[name]  # ended, or another router has it

    async def _tell_all(self) -> None:
        from router.config.writer import open_writer  # noqa: PLC0415

        async with open_writer(self._target) as writer:
            ids = [name for name, seen in self.book.used.items() if seen.busy or seen.used_s > seen.told_s]
            for begin in range(0, len(ids), MAX_ROWS):
                await self._tell(writer, ids[begin : begin + MAX_ROWS])


def make_keeper(settings: Settings, image: TableImage) -> StoreSessions:
    """Return the keeper of a daemon with a store; behind a relay, which takes no writes, of the store it names."""
    return StoreSessions(image, parse_target(settings.demand_store or settings.store, settings.state_dir))


async def check_sessions(writer: Writer) -> None:
    """StoreError where the store's schema has no sessions."""
    rows = await writer.query("SELECT V FROM Meta WHERE K = @key", {"key": SCHEMA_KEY})
    try:
        version = check_schema(tuple(rows[0]) if rows else None).version
    except SchemaError as refusal:
        raise StoreError(str(refusal)) from None
    if version < SESSION_VERSION:
        raise OldSchemaError(f"its schema is {version}; `router store init` makes it {SESSION_VERSION}")


async def reap_orphans(writer: Writer) -> int:
    """Delete sessions that no router has used for longer than any would keep them; return how many."""
    count = 0
    for _ in range(MAX_REAPS):
        rows = await writer.query(_IDLE_ROWS)
        ids = [row[0] for row in rows]
        if ids:
            ages = dict.fromkeys(ids, float("inf"))
            _, ended = await writer.transact(partial(_judge, ages=ages))
            count += len(ended)
        if len(ids) < MAX_ROWS:
            break
    return count


def _answer(futures: Iterable[asyncio.Future[Kind | None]], refusal: Kind | None) -> None:
    """Tell those who have not been told."""
    for future in futures:
        if not future.done():
            future.set_result(refusal)


async def _begin(
    t: Transaction, entries: list[SessionEntry], gone: list[str], room_of: Callable[[str], int]
) -> tuple[dict[str, Kind], int]:
    """Insert sessions; return those for which there is no place, and the store's time in Unix seconds.

    Both were read in this transaction: whoever drains the replica, or fills it, sees the row, or this sees that.
    """
    from router.config.client import COMMIT_TIME  # noqa: PLC0415

    refused: dict[str, Kind] = {}
    left: dict[tuple[str, str], int] = {}
    for pair in {(entry.endpoint, entry.replica) for entry in entries}:
        params = {"endpoint": pair[0], "replica": pair[1]}
        rows, _ = await t.execute(f"SELECT State FROM Replicas WHERE {_PAIR}", params)  # noqa: S608 - of ours
        if rows and rows[0][0] == "READY":
            ((count,),), _ = await t.execute(f"SELECT COUNT(*) FROM Sessions WHERE {_PAIR}", params)  # noqa: S608
            left[pair] = room_of(pair[0]) - int(count)
    for e in entries:
        room = left.get((e.endpoint, e.replica))
        if room is None:
            refused[e.id] = Kind.NO_REPLICA
        elif room <= 0:
            refused[e.id] = Kind.AT_CAPACITY
        else:
            left[e.endpoint, e.replica] = room - 1
            row = (e.id, e.endpoint, e.replica, "OPEN", e.idle_s, COMMIT_TIME, COMMIT_TIME)
            t.write("insert", "Sessions", COLUMNS, row)
    if gone:
        t.write("delete", "Sessions", (), *((session_id,) for session_id in gone))
    ((now,),), _ = await t.execute("SELECT CURRENT_TIMESTAMP()")
    return refused, parse_timestamp(now) // 1_000_000


async def _judge(t: Transaction, ages: dict[str, float]) -> tuple[set[str], set[str]]:
    """Return which sessions there are, and which of them ended now; note the use of the others.

    `ages`: for how many seconds each has been idle at this router.
    """
    from router.config.client import COMMIT_TIME  # noqa: PLC0415

    params = {f"i{n}": session_id for n, session_id in enumerate(ages)}
    rows, _ = await t.execute(
        "SELECT SessionId, IdleTimeoutS, LastUsedAt, CURRENT_TIMESTAMP() FROM Sessions "  # noqa: S608 - of ours
        f"WHERE SessionId IN ({', '.join(f'@{name}' for name in params)})",
        params,
    )
    there, ended = set[str](), set[str]()
    for session_id, idle, last, now in rows:
        there.add(session_id)
        now_us, last_us = parse_timestamp(now), parse_timestamp(last)
        age_s = min(ages[session_id], 1e9)
        used_us = max(last_us, now_us - int(age_s * 1e6))
        if age_s > 0.0 and now_us - used_us >= int(idle) * 1_000_000:
            ended.add(session_id)
            t.write("delete", "Sessions", (), (session_id,))
        elif used_us > last_us:
            columns = ("SessionId", "LastUsedAt", "UpdatedAt")
            t.write("update", "Sessions", columns, (session_id, format_timestamp(used_us), COMMIT_TIME))
    return there, ended


def _is_due(seen: Used, now: float) -> bool:
    """Whether a session was used since the store was told, and that is long ago."""
    is_new = now - seen.idle_s(now) > seen.told_s
    return is_new and now - seen.told_s >= min(REFRESH_CEILING_S, seen.entry.idle_s / REFRESHES)
