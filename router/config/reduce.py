"""From records to rows: last writer wins per key, transactions whole, one axis of commit timestamps.

Pure: no clock, no I/O. Records may come twice, late, and in any order between partitions; the rows are the
same in the end. Two transactions share a commit timestamp only on disjoint rows, so comparing timestamps per
key is exact. A deletion leaves a tombstone, so that a late record of an older write does not bring the row back.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from router.config.schema import STREAMED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from router.config.wire import DataRecord, Key, Row

TOMBSTONE_US = 600_000_000
"""How far the watermark must have passed a deletion before it is forgotten."""

Change = tuple[str, "Key", "Row | None"]
"""Table, key, and the row that is there now."""


class RowBook:
    """The rows of every streamed table, each with the commit timestamp of its last write."""

    __slots__ = ("_tombstones", "tables")

    def __init__(self) -> None:
        self.tables: dict[str, dict[Key, tuple[int, Row | None]]] = {table.name: {} for table in STREAMED}
        self._tombstones: deque[tuple[int, str, Key]] = deque()

    def write(self, table: str, key: Key, row: Row | None, commit_us: int) -> bool:
        """Take one write; return whether the row is now another than before."""
        rows = self.tables[table]
        known = rows.get(key)
        if known is not None and known[0] >= commit_us:
            return False
        rows[key] = (commit_us, row)
        if row is None:
            self._tombstones.append((commit_us, table, key))
        return row is not None if known is None else known[1] != row

    def take(self, records: Iterable[DataRecord]) -> list[Change]:
        """Take the records of one transaction; return what changed."""
        return [
            (record.table, key, row)
            for record in records
            if record.table in self.tables
            for key, row in record.rows
            if self.write(record.table, key, row, record.commit_us)
        ]

    def is_known(self, record: DataRecord) -> bool:
        """Whether every write of the record was seen already: a stream that was restarted repeats itself."""
        rows = self.tables.get(record.table)
        if rows is None:
            return True
        return all(key in rows and rows[key][0] >= record.commit_us for key, _ in record.rows)

    def replace(self, table: str, snapshot: dict[Key, Row], read_us: int) -> list[Change]:
        """Take a whole table as it was at `read_us`; return the difference. Newer rows stay."""
        rows = self.tables[table]
        changes: list[Change] = [
            (table, key, row) for key, row in snapshot.items() if self.write(table, key, row, read_us)
        ]
        gone = [
            key
            for key, (commit_us, row) in rows.items()
            if row is not None and commit_us <= read_us and key not in snapshot
        ]
        changes += [(table, key, None) for key in gone if self._delete(table, key, read_us)]
        return changes

    def _delete(self, table: str, key: Key, at_us: int) -> bool:
        self.tables[table][key] = (at_us, None)
        self._tombstones.append((at_us, table, key))
        return True

    def remember_deletions(self) -> None:
        """Note the tombstones of rows that were put into the tables directly."""
        deleted = [
            (commit_us, table, key)
            for table, rows in self.tables.items()
            for key, (commit_us, row) in rows.items()
            if row is None
        ]
        self._tombstones = deque(sorted(deleted))

    def forget(self, watermark_us: int) -> None:
        """Drop tombstones that the watermark has left far behind."""
        tombstones = self._tombstones
        while tombstones and tombstones[0][0] < watermark_us - TOMBSTONE_US:
            commit_us, table, key = tombstones.popleft()
            if self.tables[table].get(key) == (commit_us, None):
                del self.tables[table][key]

    def forget_times(self) -> None:
        """Let any row replace those that are there: the times of another database say nothing of this one's."""
        for rows in self.tables.values():
            for key in [key for key, (_, row) in rows.items() if row is None]:
                del rows[key]
            for key, (_, row) in rows.items():
                rows[key] = (0, row)
        self._tombstones.clear()

    def rows(self) -> Iterator[Change]:
        """Yield every row that is there, tables in the order of the schema."""
        for table, rows in self.tables.items():
            for key, (_, row) in rows.items():
                if row is not None:
                    yield table, key, row


class Pending:
    """Records of one transaction of which more are to come."""

    __slots__ = ("commit_us", "records", "since_s")

    def __init__(self, commit_us: int, since_s: float) -> None:
        self.commit_us = commit_us
        self.since_s = since_s
        self.records: list[DataRecord] = []


class Transactions:
    """Joins records to transactions. One of which a part stays away is let go as it is after a while."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: dict[tuple[int, str], Pending] = {}

    def add(self, record: DataRecord, now_s: float) -> list[DataRecord]:
        """Take a record; return those of its transaction once all are there, else none."""
        if record.records <= 1:
            return [record]
        name = (record.commit_us, record.transaction)
        pending = self._pending.get(name)
        if pending is None:
            pending = self._pending[name] = Pending(record.commit_us, now_s)
        if record in pending.records:
            return []
        pending.records.append(record)
        if len(pending.records) < record.records:
            return []
        del self._pending[name]
        return pending.records

    def overdue(self, before_s: float) -> Iterator[list[DataRecord]]:
        """Let go of those whose first record came before `before_s`."""
        for name in [name for name, pending in self._pending.items() if pending.since_s <= before_s]:
            yield self._pending.pop(name).records

    def first_s(self) -> float | None:
        """When the first record of the oldest came, or None if none is incomplete."""
        return min((pending.since_s for pending in self._pending.values()), default=None)

    def oldest_us(self) -> int | None:
        """Commit timestamp of the oldest incomplete one."""
        return min((pending.commit_us for pending in self._pending.values()), default=None)


class Watermark:
    """Positions of the open partitions, and the time up to which everything is known. Never moves back."""

    __slots__ = ("_complete", "_ended", "_reached_us", "positions")

    def __init__(self, reached_us: int = 0, positions: dict[str, int] | None = None) -> None:
        self._reached_us = reached_us
        self._complete: dict[str, int] = dict(positions or {})
        self._ended: dict[str, int] = {}
        self.positions: dict[str, int] = dict(positions or {})

    def open(self, token: str, start_us: int) -> bool:
        """Begin to follow a partition; False if it is or was followed: both parents of a merge name the child."""
        if token in self.positions or token in self._ended:
            return False
        self.positions[token] = self._complete[token] = start_us
        return True

    def move(self, token: str, to_us: int, *, is_record: bool = False) -> None:
        """Note that the partition said everything up to `to_us`, where it is to be read on from.

        After a record another of the same time may follow: everything is known up to just before it.
        """
        self.positions[token] = max(self.positions[token], to_us)
        complete_us = to_us - 1 if is_record else to_us
        self._complete[token] = max(self._complete[token], complete_us)

    def end(self, token: str) -> None:
        """The partition has handed over to its children, which are open already."""
        self._ended[token] = self.positions.pop(token, 0)
        self._complete.pop(token, None)
        for old in [old for old, at_us in self._ended.items() if at_us < self._reached_us - TOMBSTONE_US]:
            del self._ended[old]

    def read(self, oldest_pending_us: int | None = None) -> int:
        """Return microseconds up to which every change is applied."""
        if self.positions:
            reached = min(self._complete.values())
            if oldest_pending_us is not None:
                reached = min(reached, oldest_pending_us - 1)
            self._reached_us = max(self._reached_us, reached)
        return self._reached_us

    def safe_to_apply(self, oldest_pending_us: int | None = None) -> int:
        """Return the time before which no commit is still to come: one at that very time may be."""
        reached = min(self.positions.values(), default=self._reached_us)
        return reached if oldest_pending_us is None else min(reached, oldest_pending_us - 1)
