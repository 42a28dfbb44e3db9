"""Read and StreamingRead: rows of a snapshot by key, encoded in chunks, resumable at any of them.

A resume token says the snapshot, how many rows are still wanted and after which key, so a stream is continued by a
server that knows nothing of its beginning.
"""

from __future__ import annotations

import struct
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from router.config.embedded import keys
from router.config.embedded.errors import invalid, unsupported
from router.config.embedded.transactions import check_pending
from router.config.embedded.values import encoder
from router.config.embedded.workspace import index_entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from router.config.embedded.catalog import Column, Index, Table
    from router.config.embedded.database import Database
    from router.config.embedded.datatypes import Type
    from router.config.embedded.keys import Range
    from router.config.embedded.storage import Row
    from router.config.embedded.transactions import ReadWrite

_TOKEN = struct.Struct(">cqq")
_MANY: Final = 1 << 62
_MAX_PAGE: Final = 4_096
_FIRST_PAGE: Final = 64


class Chunk(NamedTuple):
    """`values`: bytes of PartialResultSet.values of `rows` rows; `token` resumes after them."""

    values: bytes
    rows: int
    token: bytes


class Position(NamedTuple):
    """Where a read stands: its snapshot, the rows still wanted, and the last key sent."""

    at: int
    left: int
    after: bytes | None

    def token(self) -> bytes:
        """Return the resume token."""
        return _TOKEN.pack(b"r", self.at, self.left) + (self.after or b"")


def parse_token(token: bytes) -> Position:
    """Return the position of a resume token. INVALID_ARGUMENT."""
    if len(token) < _TOKEN.size or token[:1] != b"r":
        raise invalid("Invalid resume_token.")
    _, at, left = _TOKEN.unpack(token[: _TOKEN.size])
    return Position(at, left, token[_TOKEN.size :])


class Read:
    """One read request, checked: what to read, of which snapshot."""

    def __init__(self, database: Database, request: Any, at: int, transaction: ReadWrite | None) -> None:
        catalog = database.catalog
        self._database = database
        self.table: Table = catalog.table(request.table)
        self.columns: list[Column] = [self.table.column(name) for name in request.columns]
        self.index: Index | None = catalog.index(request.index, self.table) if request.index else None
        if request.partition_token:
            raise unsupported("a partitioned read")
        if request.limit < 0:
            raise invalid("limit must not be negative")
        if self.index is None:
            self.ranges = keys.ranges_of(self.table.key, request.key_set, self.table.name)
        else:
            parts = self.index.full
            self.ranges = keys.ranges_of(parts, request.key_set, self.index.name, len(self.index.parts))
        self._transaction = transaction
        position = Position(at, request.limit or _MANY, None)
        if request.resume_token:
            position = parse_token(request.resume_token)
            if transaction is None:
                database.check_resumed(position.at)
        self.position = position
        self._page_rows = _FIRST_PAGE
        if transaction is not None:
            self._note(transaction)

    @property
    def types(self) -> list[Type]:
        """The types of the columns."""
        return [column.type for column in self.columns]

    def _note(self, transaction: ReadWrite) -> None:
        # By index, any write to the table may add or remove an entry: the whole table counts as read.
        transaction.note(self.table, self.ranges if self.index is None else [keys.ALL])

    def chunks(self, target: int) -> Iterator[Chunk]:
        """Yield chunks of about `target` bytes; between two the caller may let others run. At least one."""
        encoders = [encoder(type_) for type_ in self.types]
        position = self.position
        ranges = self.ranges if position.after is None else clip(self.ranges, position.after)
        sent = False
        for row_keys, rows in self._pages(ranges, position.at):
            done = 0
            while done < len(rows) and position.left > 0:
                part = rows[done : done + min(self._page_rows, position.left)]
                done += len(part)
                data = encode_rows(encoders, part)
                position = Position(position.at, position.left - len(part), row_keys[done - 1])
                yield Chunk(data, len(part), position.token())
                sent = True
                fitting = target * len(part) // max(1, len(data))
                self._page_rows = max(1, min(_MAX_PAGE, fitting, self._page_rows * 8))
            if position.left <= 0:
                break
        if not sent:
            yield Chunk(b"", 0, position.token())

    def _pages(self, ranges: list[Range], at: int) -> Iterator[tuple[list[bytes], list[Row]]]:
        if self.index is not None:
            yield from self._gather(self._index_rows(self.index, ranges, at))
        elif self._transaction is not None and self._transaction.written is not None:
            yield from self._gather(self._overlaid_rows(ranges))
        else:
            yield from self._table_pages(ranges, at)

    def _table_pages(self, ranges: list[Range], at: int) -> Iterator[tuple[list[bytes], list[Row]]]:
        for start, end in ranges:
            low = start
            while True:
                limit = self._page_rows
                found = self._database.page(self.table, low, end, at, limit, self.columns)
                if found:
                    yield [row[0] for row in found], [row[1:] for row in found]
                if len(found) < limit:
                    break
                low = found[-1][0] + b"\x00"

    def _gather(self, rows: Iterator[tuple[bytes, Row]]) -> Iterator[tuple[list[bytes], list[Row]]]:
        batch: list[Row] = []
        row_keys: list[bytes] = []
        for key, row in rows:
            batch.append(row)
            row_keys.append(key)
            if len(batch) >= self._page_rows:
                yield row_keys, batch
                batch, row_keys = [], []
        if batch:
            yield row_keys, batch

    def _pick(self, row: Row) -> Row:
        positions = self.table.positions()
        picked = tuple(row[positions[column.name.lower()]] for column in self.columns)
        if self._transaction is not None:
            for column, value in zip(self.columns, picked, strict=True):
                check_pending(self.table, column.name, value)
        return picked

    def _overlaid_rows(self, ranges: list[Range]) -> Iterator[tuple[bytes, Row]]:
        assert self._transaction is not None
        for start, end in ranges:
            for key, row in self._transaction.workspace.scan(self.table, start, end):
                yield key, self._pick(row)

    def _index_rows(self, index: Index, ranges: list[Range], at: int) -> Iterator[tuple[bytes, Row]]:
        relation = self._database.rows(self.table)
        changes = {}
        if self._transaction is not None and self._transaction.written is not None:
            changes = self._transaction.written.changes.get(self.table.name.lower(), {})
        if not changes:
            for entry, key in self._database.entries(index, ranges, at):
                row = relation.get_at(key, at)
                assert row is not None, "an index entry without its row"
                yield entry, self._pick(row)
            return
        found = [
            (entry, relation.get_at(key, at))
            for entry, key in self._database.entries(index, ranges, at)
            if key not in changes
        ]
        for change in changes.values():
            if change.after is not None:
                entry_of = index_entry(self.table, index, change.after)
                if entry_of is not None and keys.overlaps(ranges, entry_of):
                    found.append((entry_of, change.after))
        for entry, row in sorted(found, key=lambda item: item[0]):
            assert row is not None, "an index entry without its row"
            yield entry, self._pick(row)


def clip(ranges: Sequence[Range], after: bytes) -> list[Range]:
    """Return what is left of sorted ranges above a key."""
    low = after + b"\x00"
    return [(max(start, low), end) for start, end in ranges if end > low]


def encode_rows(encoders: Sequence[Any], rows: Sequence[Row]) -> bytes:
    """Return rows as bytes of PartialResultSet.values, one column at a time: the calls are the cost."""
    if not encoders:
        return b""
    columns = [map(one, column) for one, column in zip(encoders, zip(*rows, strict=True), strict=True)]
    return b"".join(chain.from_iterable(zip(*columns, strict=True)))
