"""Read-write transactions: a snapshot, what was read of it, and an overlay of what DML changed.

    begun → reading, writing (in its own overlay) → committed | rolled back | aborted

Optimistic: nothing is locked. All reads are of the snapshot at the first read; at commit, if anything that was read
has changed since, by row or by key range, the transaction is ABORTED and the client runs it again. One that is left
alone for `TRANSACTION_IDLE_S` is dropped. A commit that is repeated, since its answer was lost, gets the same
answer.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from router.config.embedded import limits
from router.config.embedded.errors import StoreError, invalid
from router.config.embedded.values import COMMIT_TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from router.config.embedded.catalog import Index, Table
    from router.config.embedded.database import Database
    from router.config.embedded.keys import Range
    from router.config.embedded.storage import Row
    from router.config.embedded.workspace import Workspace

_READ_ONLY = struct.Struct(">2sq6s")
_REMEMBERED: Final = 10_000  # answers to commits


class ReadWrite:
    """One read-write transaction; also the `workspace.Base` of its own overlay."""

    def __init__(self, database: Database, *, silent: bool = False) -> None:
        self.id = b"rw" + secrets.token_bytes(14)
        self.database = database
        self.silent = silent  # exclude_txn_from_change_streams
        self.partitioned = False
        # A constraint that DML ran into: whatever follows fails alike, as on Spanner.
        self.broken: StoreError | None = None
        self.used_at = time.monotonic()
        self.results: dict[int, list[bytes]] = {}  # DML by seqno, so that a repeated request is not run twice
        self._at = 0
        self._reads: dict[int, tuple[set[bytes], list[Range]]] = {}
        self._workspace: Workspace | None = None
        self._catalog = database.catalog

    @property
    def at(self) -> int:
        """The snapshot, taken at the first read."""
        if not self._at:
            self._at = self.database.safe()
        return self._at

    @property
    def workspace(self) -> Workspace:
        """The overlay, made by the first DML statement."""
        if self._workspace is None:
            assert self.at
            self._workspace = self.database.workspace(self)
        return self._workspace

    @property
    def written(self) -> Workspace | None:
        """The overlay, if there is one."""
        return self._workspace

    def note(self, table: Table, ranges: list[Range]) -> None:
        """Remember that key ranges were read."""
        assert self.at
        self._reads.setdefault(table.id, (set(), []))[1].extend(ranges)

    def get(self, table: Table, key: bytes) -> Row | None:
        """Return a row of the snapshot."""
        at = self.at
        self._reads.setdefault(table.id, (set(), []))[0].add(key)
        return self.database.rows(table).get_at(key, at)

    def scan(self, table: Table, start: bytes, end: bytes) -> Iterator[tuple[bytes, Row]]:
        """Yield rows of the snapshot."""
        self.note(table, [(start, end)])
        yield from self.database.scan(table, [(start, end)], self.at)

    def entries(self, index: Index, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield index entries of the snapshot. Uniqueness is checked once more at commit, so nothing is noted."""
        yield from self.database.entries(index, [(start, end)], self.at)

    def valid(self) -> bool:
        """Tell whether everything that was read is still so."""
        if self._catalog is not self.database.catalog and (self._reads or self._workspace):
            return False
        return not self._reads or not self.database.recent.changed(self.at, self._reads)


class Transactions:
    """The open read-write transactions of a database, and the answers to those committed lately."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open: OrderedDict[bytes, ReadWrite] = OrderedDict()  # least recently used first
        self._committed: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._open)

    def begin(self, *, silent: bool = False) -> ReadWrite:
        """Open a transaction. RESOURCE_EXHAUSTED at `MAX_TRANSACTIONS`."""
        self.sweep()
        if len(self._open) >= limits.MAX_TRANSACTIONS:
            raise StoreError(
                "RESOURCE_EXHAUSTED",
                f"limit MAX_TRANSACTIONS: {limits.MAX_TRANSACTIONS} read-write transactions are open",
            )
        transaction = ReadWrite(self._database, silent=silent)
        self._open[transaction.id] = transaction
        return transaction

    def sweep(self) -> None:
        """Drop transactions that nobody used for a while."""
        horizon = time.monotonic() - limits.TRANSACTION_IDLE_S
        while self._open and next(iter(self._open.values())).used_at < horizon:
            self._open.popitem(last=False)

    def get(self, id_: bytes) -> ReadWrite:
        """Return an open transaction. ABORTED, so that the client begins anew, if there is none."""
        transaction = self._open.get(id_)
        if transaction is None:
            if id_ in self._committed:
                raise StoreError("FAILED_PRECONDITION", "This transaction has already been committed.")
            if id_[:2] != b"rw":
                raise invalid("Transaction id is not valid")
            raise StoreError(
                "ABORTED", "Transaction not found: it was rolled back, idle for too long, or lost in a restart"
            )
        if transaction.broken is not None:
            raise transaction.broken
        transaction.used_at = time.monotonic()
        self._open.move_to_end(id_)
        return transaction

    def end(self, id_: bytes) -> None:
        """Forget a transaction."""
        self._open.pop(id_, None)

    def committed(self, id_: bytes) -> int | None:
        """Return the timestamp of a transaction that was committed."""
        return self._committed.get(id_)

    def commit(self, transaction: ReadWrite, fill: Callable[[Workspace, int], None], tag: str) -> int:
        """Validate and commit; return the timestamp. However it ends, the transaction is over."""
        self.end(transaction.id)
        if not transaction.valid():
            raise StoreError("ABORTED", "Transaction was aborted: what it read has been changed since.")
        at = self._database.commit(fill, transaction.written, tag, silent=transaction.silent)
        self._committed[transaction.id] = at
        if len(self._committed) > _REMEMBERED:
            self._committed.popitem(last=False)
        return at


def read_only_id(at: int) -> bytes:
    """Return the id of a multi-use read-only transaction. It says all there is to know, so nothing is kept."""
    return _READ_ONLY.pack(b"ro", at, secrets.token_bytes(6))


def read_only_at(id_: bytes) -> int | None:
    """Return the snapshot of a read-only transaction's id, None if it is not one."""
    if len(id_) != _READ_ONLY.size or id_[:2] != b"ro":
        return None
    at: int = _READ_ONLY.unpack(id_)[1]
    return at


def check_pending(table: Table, name: str, value: Any) -> None:
    """Refuse to read a commit timestamp before there is one, as Spanner does."""
    if value == COMMIT_TIMESTAMP:
        raise invalid(
            f"Column {name} of {table.name} cannot be accessed because it, or its associated index, has a pending "
            "CommitTimestamp"
        )
