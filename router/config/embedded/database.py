"""One database: its clock, its catalog, its rows and its change log. The only place that writes.

A commit is one SQLite transaction without an await: rows, index entries, change records and the timestamp are on
disk together or not at all, and whoever runs next sees all of it. `safe()` is therefore a promise that costs
nothing.

    stand-alone   timestamps come from `CommitClock`
    follower      after `follow`: `apply_at` and `advance_to` bring the timestamps of an upstream, and `safe()` is
    the
                  upstream's watermark; clients' commits and DDL are FAILED_PRECONDITION
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from router.config.embedded import keys, schema
from router.config.embedded.catalog import Catalog
from router.config.embedded.changes import Origin, capture, record_message
from router.config.embedded.ddl import parse
from router.config.embedded.errors import invalid, precondition
from router.config.embedded.feeds import Feeds
from router.config.embedded.limits import MAX_DDL_STATEMENTS, Settings
from router.config.embedded.partitions import Partitions
from router.config.embedded.storage import Relation, Row, Storage
from router.config.embedded.timestamps import US_PER_S, CommitClock, text_of_us, wire_of_us
from router.config.embedded.validation import RecentCommits
from router.config.embedded.values import COMMIT_TIMESTAMP
from router.config.embedded.workspace import Workspace, index_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from router.config.embedded.catalog import ChangeStream, Column, Index, Table
    from router.config.embedded.feeds import Feed
    from router.config.embedded.keys import Range
    from router.config.embedded.partitions import Partition
    from router.config.embedded.values import Stored
    from router.config.embedded.workspace import Change

_PAGE: Final = 512  # rows fetched at a time where a scan may stop early


class RowChange(NamedTuple):
    """One row as an upstream committed it: `row` at rest in the order of the columns, None if it was deleted."""

    table: str
    key: Sequence[Stored]
    row: Row | None


class Present:
    """`workspace.Base` over what is committed now."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, table: Table, key: bytes) -> Row | None:
        """Return the current row."""
        return self._database.rows(table).get(key)

    def scan(self, table: Table, start: bytes, end: bytes) -> Iterator[tuple[bytes, Row]]:
        """Yield current rows."""
        yield from self._database.scan(table, [(start, end)], self._database.clock.last())

    def entries(self, index: Index, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield current index entries."""
        yield from self._database.entries(index, [(start, end)], self._database.clock.last())


class Database:
    """See the module. `path` None: in memory."""

    def __init__(
        self,
        path: Path | None,
        settings: Settings | None = None,
        wall_us: Callable[[], int] | None = None,
        default: Callable[[Column, int], Stored] | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.storage = Storage(path, durable=self.settings.durable)
        self.clock = CommitClock(self.storage.meta("clock") or 0, self._store_clock, wall_us)
        self.partitions = Partitions(self.storage)
        self.feeds = Feeds()
        self.catalog = Catalog()
        self.upstream: str | None = self.storage.meta("upstream")
        self._watermark: int = self.storage.meta("watermark") or 0
        self._default = default
        self._relations: dict[int, Relation] = {}
        self._created: dict[int, int] = {}  # stream id → when
        self._next_record = self.storage.last_record() + 1
        self._latest = 0
        self.recent = RecentCommits(self.clock.last())
        self._load()
        self.created_at: int = self.storage.meta("created") or 0
        if not self.created_at:
            self.created_at = self.clock.safe()
            self.storage.set_meta("created", self.created_at)

    def _load(self) -> None:
        for at, statement in self.storage.ddl():
            after = schema.apply(self.catalog, parse(statement), lambda _: None)
            for stream in after.streams.values():
                self._created.setdefault(stream.id, at)
            self.catalog = after
        for table in self.catalog.tables.values():
            self._relations[table.id] = self._relation(table)
        for index in self.catalog.indexes.values():
            self._relations[index.id] = Relation(self.storage.db, index.id, ("r",), self.clock.last())

    def _relation(self, table: Table) -> Relation:
        known = self._relations.get(table.id)
        changed_at = known.changed_at if known else self.clock.last()
        return Relation(self.storage.db, table.id, [c.at_rest for c in table.columns.values()], changed_at)

    def _store_clock(self, bound: int) -> None:
        self.storage.set_meta("clock", bound)

    def close(self) -> None:
        """Stop cleanly."""
        self.clock.settle()
        self.storage.close()

    # -- time

    def safe(self) -> int:
        """Return a timestamp at which reads are exact and below which nothing will be committed any more."""
        return self._watermark if self.upstream is not None else self.clock.safe()

    def earliest(self) -> int:
        """Return the earliest timestamp that may be read."""
        horizon = self.safe() - int(self.settings.version_retention_s * US_PER_S)
        return max(horizon, self.storage.meta("collected") or 0)

    def check_resumed(self, at: int) -> None:
        """Refuse a snapshot that a token names unless it is history, and still there."""
        if not 0 < at <= self.safe():
            raise invalid("Invalid resume_token.")
        self.check_readable(at)

    def check_readable(self, at: int) -> None:
        """Refuse a timestamp whose versions may be gone."""
        if at < self.earliest():
            raise precondition(
                f"Read-only transaction timestamp {wire_of_us(at)} has exceeded the maximum timestamp staleness"
            )

    # -- reading

    def rows(self, table: Table) -> Relation:
        """Return the rows of a table."""
        return self._relations[table.id]

    def relations(self) -> list[Relation]:
        """Return the rows of every table and the entries of every index."""
        return list(self._relations.values())

    def page(
        self, table: Table, start: bytes, end: bytes, at: int, limit: int, columns: Sequence[Column] | None = None
    ) -> list[Row]:
        """Return up to `limit` rows (key, columns…) of a snapshot."""
        names = None if columns is None else [column.at_rest for column in columns]
        return self._relations[table.id].scan(start, end, at, limit, names)

    def scan(self, table: Table, ranges: Sequence[Range], at: int) -> Iterator[tuple[bytes, Row]]:
        """Yield (key, row) of a snapshot.

        The caller may stop, await and go on: pages are read as they are needed.
        """
        for start, end in ranges:
            low = start
            while rows := self._relations[table.id].scan(low, end, at, _PAGE):
                for row in rows:
                    yield row[0], row[1:]
                if len(rows) < _PAGE:
                    break
                low = rows[-1][0] + b"\x00"

    def entries(self, index: Index, ranges: Sequence[Range], at: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield (entry, row key) of an index in a snapshot."""
        for start, end in ranges:
            low = start
            while rows := self._relations[index.id].scan(low, end, at, _PAGE):
                for row in rows:
                    yield row[0], row[1]
                if len(rows) < _PAGE:
                    break
                low = rows[-1][0] + b"\x00"

    # -- the schema

    def apply_ddl(self, statements: Sequence[str]) -> list[int]:
        """Apply statements, each in its own transaction, and return when each took effect.

        The first that fails raises; those before it stay, as in Spanner.
        """
        self._check_leader("schema changes are")
        if len(statements) > MAX_DDL_STATEMENTS:
            raise invalid(f"more than {MAX_DDL_STATEMENTS} statements in one schema change")
        return [self._apply_statement(text) for text in statements]

    def _apply_statement(self, text: str, at: int | None = None) -> int:
        statement = parse(text)
        before = self.catalog
        after = schema.apply(before, statement, self._check_default)
        if after is before:
            return self.clock.safe()
        relations = dict(self._relations)
        if at is None:
            at = self.clock.next()  # outside: a rollback must not undo what the clock has stored
        try:
            with self.storage.transaction():
                self.catalog = after
                self._follow_catalog(before, after, at)
                self.storage.add_ddl(at, text)
        except BaseException:
            self.catalog = before
            self._relations = relations
            self.partitions.load()
            raise
        self.recent.note(at, 0, [])
        for feed in self.feeds.all():
            feed.wake()
        return at

    def _check_default(self, column: Column) -> None:
        if self._default is None:
            raise precondition("DEFAULT is not available")
        self._default(column, 0)

    def _follow_catalog(self, before: Catalog, after: Catalog, at: int) -> None:
        kinds: tuple[dict[str, Any], ...] = (before.tables, before.indexes, before.streams)
        old = {item.id: item for kind in kinds for item in kind.values()}
        for table in after.tables.values():
            was = old.pop(table.id, None)
            if was is None:
                self._relations[table.id] = relation = self._relation(table)
                relation.create()
            elif was is not table:
                self._alter(was, table)
        for index in after.indexes.values():
            if old.pop(index.id, None) is None:
                self._fill(index, at)
        for stream in after.streams.values():
            if old.pop(stream.id, None) is None:
                self._created[stream.id] = at
                self.partitions.start(stream.id, at, 1)
        for gone in old:
            relation_gone = self._relations.pop(gone, None)
            if relation_gone is not None:
                relation_gone.drop()
            else:
                self.partitions.drop(gone)

    def _alter(self, was: Table, table: Table) -> None:
        relation = self._relations[table.id]
        for name, column in table.columns.items():
            previous = was.columns.get(name)
            if previous is None or previous.id != column.id:
                relation.add_column(column.at_rest)
            elif previous != column:
                self._check_values(table, previous, column)
        # A dropped column's values stay where they are, under an id that nothing refers to.
        self._relations[table.id] = self._relation(table)

    def _check_values(self, table: Table, previous: Column, column: Column) -> None:
        shorter = column.type.length and (not previous.type.length or column.type.length < previous.type.length)
        if not shorter and (previous.not_null or not column.not_null):
            return
        at = table.positions()[column.name.lower()]
        for _, row in self.scan(table, [keys.ALL], self.clock.last()):
            value = row[at]
            if value is None and column.not_null:
                raise precondition(
                    f"Adding a NOT NULL constraint on a column {table.name}.{column.name} is not allowed "
                    "because it contains a NULL value."
                )
            if shorter and isinstance(value, str | bytes) and len(value) > column.type.length:
                raise precondition(f"{table.name}.{column.name} has a value longer than {column.type.length}.")

    def _fill(self, index: Index, at: int) -> None:
        relation = Relation(self.storage.db, index.id, ("r",), at)
        relation.create()
        self._relations[index.id] = relation
        table = self.catalog.table(index.table)
        begun: list[Row] = []
        seen: set[bytes] = set()
        for key, row in self.scan(table, [keys.ALL], self.clock.last()):
            entry = index_entry(table, index, row)
            if entry is None:
                continue
            if index.unique:
                positions = table.positions()
                unique = keys.encode(index.parts, [row[positions[part.name.lower()]] for part in index.parts])
                if unique in seen:
                    raise precondition(f"Found uniqueness violation on index {index.name}.")
                seen.add(unique)
            begun.append((entry, at, key))
        relation.write((), begun, at)

    def stream_created(self, stream: ChangeStream) -> int:
        """Return since when a stream records."""
        return self._created[stream.id]

    # -- writing

    def commit(
        self,
        fill: Callable[[Workspace, int], None],
        workspace: Workspace | None = None,
        tag: str = "",
        *,
        system: bool = False,
        silent: bool = False,
    ) -> int:
        """Commit and return the timestamp.

        `workspace` has a transaction's effects so far, validated by the caller; `fill` adds the mutations, and is
        given the commit timestamp. `silent` leaves the change streams out. Raises StoreError, and then nothing
        happened.
        """
        self._check_leader("commits are")
        at = self.clock.next()  # outside: a rollback must not undo what the clock has stored
        with self.storage.transaction():
            if workspace is None:
                workspace = Workspace(self.catalog, Present(self), self._default_at(at))
            else:
                workspace.base = Present(self)
            fill(workspace, at)
            self._put_timestamp(workspace, at)
            workspace.check_unique()
            records = self._write(workspace, Origin(at, str(at), tag, system), silent=silent)
        self._publish(records)
        return at

    def _default_at(self, at: int) -> Callable[[Column], Stored] | None:
        default = self._default
        return None if default is None else lambda column: default(column, at)

    def workspace(self, base: Any) -> Workspace:
        """Return an empty workspace over a snapshot, for DML."""
        return Workspace(self.catalog, base, self._default_at(0))

    def _put_timestamp(self, workspace: Workspace, at: int) -> None:
        text = text_of_us(at)
        for name, changes in workspace.changes.items():
            places = [
                place
                for place, column in enumerate(self.catalog.tables[name].columns.values())
                if column.commit_timestamp
            ]
            if not places:
                continue
            for change in changes.values():
                row = change.after
                if row is not None and any(row[place] == COMMIT_TIMESTAMP for place in places):
                    filled = list(row)
                    for place in places:
                        if filled[place] == COMMIT_TIMESTAMP:
                            filled[place] = text
                    change.after = tuple(filled)

    def _write(
        self, workspace: Workspace, origin: Origin, *, silent: bool = False
    ) -> list[tuple[Partition, int, bytes]]:
        at = origin.at
        for name, changes in workspace.changes.items():
            table = self.catalog.tables[name]
            real = {key: change for key, change in changes.items() if change.kind() is not None}
            if not real:
                continue
            ended = [key for key, change in real.items() if change.before is not None]
            begun = [(key, at, *change.after) for key, change in real.items() if change.after is not None]
            self._relations[table.id].write(ended, begun, at)
            for index in self.catalog.indexes_of(table):
                self._write_index(table, index, real, at)
            self.recent.note(at, table.id, list(real))
        records: list[tuple[Partition, int, bytes]] = []
        if not silent:
            for stream in self.catalog.streams.values():
                opened = self.partitions.open(stream.id)
                for partition, record in capture(self.catalog, stream, opened, workspace.changes, origin):
                    records.append((partition, self._next_record, record))
                    self._next_record += 1
        self.storage.append([(id_, partition.id, at, record) for partition, id_, record in records])
        self._latest = at
        return records

    def _write_index(self, table: Table, index: Index, changes: dict[bytes, Change], at: int) -> None:
        ended: list[bytes] = []
        begun: list[Row] = []
        for key, change in changes.items():
            old = None if change.before is None else index_entry(table, index, change.before)
            new = None if change.after is None else index_entry(table, index, change.after)
            if old == new:
                continue
            if old is not None:
                ended.append(old)
            if new is not None:
                begun.append((new, at, key))
        self._relations[index.id].write(ended, begun, at)

    def open_feed(self, partition: Partition) -> Feed:
        """Return the feed of a partition for a new reader."""
        return self.feeds.open(partition.id, (self.clock.last(), self._next_record - 1))

    def _publish(self, records: list[tuple[Partition, int, bytes]]) -> None:
        at = self._latest
        touched = {}
        for partition, id_, record in records:
            feed = self.feeds.get(partition.id)
            if feed is not None:
                touched[partition.id] = feed
                feed.append([(at, id_, record_message(record, (at, id_)))])
        for feed in touched.values():
            feed.wake()

    # -- partitions

    def split(self, stream: str, token: str) -> list[str]:
        """Split a partition now; return the children's tokens. ValueError."""
        found = self.partitions.get(self.catalog.streams[stream.lower()].id, token)
        if found is None:
            raise ValueError(f"no partition {token}")
        at = self._moment()
        with self.storage.transaction():
            children = self.partitions.split(found, at)
        self._wake([found])
        return [child.token for child in children]

    def merge(self, stream: str, tokens: Sequence[str]) -> str:
        """Merge neighbours now; return the child's token. ValueError."""
        stream_id = self.catalog.streams[stream.lower()].id
        found = [part for part in (self.partitions.get(stream_id, token) for token in tokens) if part is not None]
        at = self._moment()
        with self.storage.transaction():
            child = self.partitions.merge(found, at)
        self._wake(found)
        return child.token

    def _moment(self) -> int:
        return self._watermark if self.upstream is not None else self.clock.next()

    def _wake(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            feed = self.feeds.get(partition.id)
            if feed is not None:
                feed.wake()

    # -- following an upstream

    def follow(self, upstream: str, schema_statements: Sequence[str] = ()) -> None:
        """Take commits from `upstream` alone from now on.

        The statements make the schema at the beginning of time: whatever this host's clock says, the upstream's
        commits come after it. Data that follows already gets those that it does not have, as of what it knows.
        """
        there = {text for _, text in self.storage.ddl()}
        for at, text in enumerate(schema_statements, 1):
            if text not in there:
                self._apply_statement(text, max(at, self._watermark))
        self.storage.set_meta("upstream", upstream)
        self.upstream = upstream

    def apply_at(self, at: int, rows: Sequence[RowChange], tag: str = "", transaction_id: str = "") -> None:
        """Apply a transaction of the upstream with its own timestamp: above the watermark, never decreasing.

        Two transactions may share a timestamp. Readers see it at once; reads see it when `advance_to` reaches it.
        """
        if self.upstream is None:
            raise RuntimeError("apply_at without follow")
        if at <= self._watermark or at < self._latest:
            raise ValueError(
                f"a commit at {wire_of_us(at)} comes after the watermark {wire_of_us(self._watermark)}"
            )
        self.clock.raise_to(at)
        with self.storage.transaction():
            workspace = Workspace(self.catalog, Present(self))
            for change in rows:
                table = self.catalog.table(change.table)
                key = keys.encode(table.key, change.key)
                if change.row is None:
                    workspace.delete(table, key)
                else:
                    workspace.put(table, key, change.row)
            records = self._write(workspace, Origin(at, transaction_id or str(at), tag))
        self._publish(records)

    def advance_to(self, watermark: int) -> None:
        """Everything of the upstream up to `watermark` has been applied."""
        if self.upstream is None:
            raise RuntimeError("advance_to without follow")
        if watermark <= self._watermark:
            return
        self._watermark = watermark
        self.clock.raise_to(watermark)
        self.storage.set_meta("watermark", watermark)

    def _check_leader(self, what: str) -> None:
        if self.upstream is not None:
            raise precondition(f"this store follows {self.upstream}: {what} to be sent there")

    def retention_s(self, stream: ChangeStream) -> float:
        """Return how long a stream's records are kept."""
        return stream.retention_s if self.settings.retention_s is None else self.settings.retention_s
