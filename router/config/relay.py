"""`router store --follow UPSTREAM`: the same tables again, for many readers.

Spanner lets twenty read a partition at a time; a relay reads as one of them and serves hundreds. It applies the
upstream's transactions in the order of their commit timestamps, with those timestamps, and says of no time that
all is known before the upstream has said so. With one partition upstream that holds nothing back; with
several, a transaction waits for the others' heartbeats, a tenth of a second apart.

Where its place upstream is lost, as after a restart, it reads everything and applies the difference: its own
readers see changes, not an empty table. Commits of clients are refused, with the upstream's name.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from router.config.agent import SchemaError, check_schema
from router.config.client import RpcError, StoreClient
from router.config.embedded import keys
from router.config.embedded.database import RowChange
from router.config.embedded.errors import StoreError as EngineError
from router.config.embedded.values import decoder
from router.config.errors import StoreError
from router.config.pace import Pace
from router.config.reduce import RowBook, Transactions, Watermark
from router.config.schema import BY_NAME, MIGRATIONS, SCHEMA_KEY, STREAMED, streamed
from router.config.setup import connect, make_database
from router.config.tail import LostPlaceError, Tail
from router.config.target import Target
from router.config.timestamps import to_micros
from router.config.wire import Child
from router.transport.tasks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from router.config.embedded.database import Database
    from router.config.embedded.server import StoreServer
    from router.config.reduce import Change
    from router.config.schema import StreamedTable
    from router.config.wire import DataRecord, Key, Row

_log = logging.getLogger("router.relay")

HEARTBEAT_MS = 100
SLICE = 1_000  # rows of a difference that are applied at a time
REFUSED_RETRY_S = 10.0
NOW_US = 1 << 62  # later than anything that was applied


class Relay:
    """Fills `server`, which is started, from `upstream`."""

    def __init__(self, server: StoreServer, upstream: Target) -> None:
        self._server = server
        self._upstream = upstream
        self._own = Target("relay", server.address, upstream.database)
        self._book = RowBook()
        self._watermark = Watermark()
        self._transactions = Transactions()
        self._pace = Pace()
        self._ready: list[tuple[int, int, list[Change]]] = []  # by commit timestamp, waiting for the watermark
        self._taken = 0
        self._streamed = STREAMED
        self._encoders: dict[str, Callable[[Key, Row | None, int], RowChange]] = {}
        self._task: asyncio.Task[None] | None = None
        self.trouble = ""

    async def start(self) -> None:
        """Make the schema, or take up what the last run left; then follow in the background."""
        if not self._has_database():
            await asyncio.to_thread(lambda: make_database(connect(self._own), self._own))
        database = self._database()
        if database.upstream is None and database.catalog.tables:
            raise StoreError("this data is a store's own, not a relay's: give another --data")
        if database.upstream not in (None, str(self._upstream)):
            raise StoreError(f"this data follows {database.upstream}, not {self._upstream}: give another --data")
        database.follow(str(self._upstream), [statement for step in MIGRATIONS for statement in step])
        self._task = spawn(self._run(), "relay")

    async def close(self) -> None:
        """Stop following; what was applied stays served."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _has_database(self) -> bool:
        try:
            self._database()
        except EngineError:
            return False
        return True

    def _database(self) -> Database:
        return self._server.database(self._own.database)

    async def _run(self) -> None:
        while True:
            client = StoreClient(self._upstream)
            try:
                await self._follow(client)
            except LostPlaceError as reason:
                _log.warning("reading the upstream anew: %s", reason)
                await self._pace.wait()
            except RpcError as failure:
                self._say(f"{failure.code().name}: {failure.details()}")
                await self._pace.wait()
            except SchemaError as refusal:
                self._say(str(refusal))
                await asyncio.sleep(REFUSED_RETRY_S)
            except Exception:
                _log.exception("the relay failed and starts again")
                await asyncio.sleep(REFUSED_RETRY_S)
            finally:
                with suppress(Exception):
                    await client.close()

    async def _follow(self, client: StoreClient) -> None:
        await client.open_session()
        await self._bootstrap(client)
        self._say("")
        tail = Tail(
            client, self._pace, self._watermark, self._transactions, self._take, self._say,
            heartbeat_ms=HEARTBEAT_MS, on_progress=self._release,
        )  # fmt: skip
        await tail.run()

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            _log.warning("%s: %s", self._upstream, trouble)
        self.trouble = trouble

    async def _bootstrap(self, client: StoreClient) -> None:
        """Bring everything to one time of the upstream, as a difference."""
        at = await client.read_time()
        read_us = to_micros(at)
        tables: dict[str, dict[Key, Row]] = {table.name: {} for table in STREAMED}
        await self._read(client, STREAMED[0], at, tables)
        self._streamed = streamed(check_schema(tables["Meta"].get((SCHEMA_KEY,))).version)
        for table in self._streamed[1:]:
            await self._read(client, table, at, tables)
        tokens: dict[str, int] = {}
        async with aclosing(client.changes(read_us, None, HEARTBEAT_MS)) as stream:
            async for records in stream:
                tokens.update({r.token: max(r.start_us, read_us) for r in records if isinstance(r, Child)})
        if not tokens:
            raise LostPlaceError("the change stream has no partitions")
        # What was taken and not applied is in what was read now, or was undone again.
        self._book, self._transactions, self._ready = RowBook(), Transactions(), []
        self._watermark = Watermark(0, tokens)
        differing = 0
        for name, rows in tables.items():
            self._book.replace(name, rows, read_us)
            changes = self._difference(name, rows, read_us)
            differing += len(changes)
            for begin in range(0, len(changes), SLICE):
                self._database().apply_at(read_us, changes[begin : begin + SLICE])
                await asyncio.sleep(0)
        self._database().advance_to(read_us)
        _log.info("%s: %d rows differed", self._upstream, differing)

    async def _read(
        self, client: StoreClient, table: StreamedTable, at: Any, tables: dict[str, dict[Key, Row]]
    ) -> None:
        async with aclosing(client.read_table(table, at)) as blocks:
            async for block in blocks:
                tables[table.name].update(block)

    def _difference(self, name: str, rows: dict[Key, Row], read_us: int) -> list[RowChange]:
        """Return what makes the table, as it is on disk, the one that was read."""
        database = self._database()
        table = database.catalog.table(name)
        encode = self._encoder(name)
        written_at = {at for at, column in enumerate(table.columns.values()) if column.commit_timestamp}
        present = dict(database.scan(table, [keys.ALL], NOW_US))
        changes = []
        for key, row in rows.items():
            change = encode(key, row, read_us)
            assert change.row is not None
            before = present.pop(keys.encode(table.key, change.key), None)
            if before is None or _without(before, written_at) != _without(change.row, written_at):
                changes.append(change)
        positions = [list(table.columns).index(part.name.lower()) for part in table.key]
        changes += [RowChange(name, tuple(row[at] for at in positions), None) for row in present.values()]
        return changes

    def _take(self, records: list[DataRecord]) -> None:
        for record in records:
            if record.table == "Meta":
                for key, row in record.rows:
                    if key == (SCHEMA_KEY,) and streamed(check_schema(row).version) != self._streamed:
                        raise LostPlaceError("another schema streams other tables")
        changes = self._book.take(records)
        if changes:
            self._taken += 1
            heappush(self._ready, (records[0].commit_us, self._taken, changes))

    def _release(self) -> None:
        """Apply, in order, what no earlier commit can come before any more."""
        oldest_us = self._transactions.oldest_us()
        # Readers get a commit at once; that its time is over is said only when nothing of it can come any more.
        safe_us, watermark_us = self._watermark.safe_to_apply(oldest_us), self._watermark.read(oldest_us)
        ready = self._ready
        while ready and ready[0][0] <= safe_us:
            commit_us, _, changes = heappop(ready)
            self._apply(commit_us, changes)
        self._book.forget(watermark_us)
        self._database().advance_to(watermark_us)

    def _apply(self, commit_us: int, changes: list[Change]) -> None:
        rows = [self._encoder(table)(key, row, commit_us) for table, key, row in changes]
        self._database().apply_at(commit_us, rows)

    def _encoder(self, name: str) -> Callable[[Key, Row | None, int], RowChange]:
        """Return what turns a row of the wire into one at rest; columns that are not streamed are empty."""
        known = self._encoders.get(name)
        if known is None:
            known = self._encoders[name] = _make_encoder(self._database(), name)
        return known


def _without(row: Sequence[Any], left_out: set[int]) -> list[Any]:
    return [value for at, value in enumerate(row) if at not in left_out]


def _make_encoder(database: Database, name: str) -> Callable[[Key, Row | None, int], RowChange]:
    streamed = BY_NAME[name]
    table = database.catalog.table(name)
    columns = [column.name for column in table.columns.values()]
    stamps = [column.name for column in table.columns.values() if column.commit_timestamp]
    decode = {column: decoder(table.column(column).type) for column in streamed.all_columns}

    def encode(key: Key, row: Row | None, commit_us: int) -> RowChange:
        stored: dict[str, Any] = {column: decode[column](v) for column, v in zip(streamed.keys, key, strict=True)}
        at_rest_key = tuple(stored.values())
        if row is None:
            return RowChange(name, at_rest_key, None)
        stored |= dict.fromkeys(stamps, commit_us)
        stored |= {column: decode[column](v) for column, v in zip(streamed.columns, row, strict=True)}
        return RowChange(name, at_rest_key, tuple(stored.get(column) for column in columns))

    return encode
