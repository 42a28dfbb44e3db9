"""SQLite: rows with validity intervals, the change log, partitions, meta. Knows keys as bytes and values at rest.

A relation (a table or an index) is two SQLite tables, made of its id and its columns' ids: `live_N` has the current
row of each key `k` with its commit timestamp `f`; `old_N` has what was there before, valid in [f, t). So the
present is scanned without its past, a snapshot a little back adds the few rows of `old_N` with a later `t`, and
garbage is found by `t`. Every statement's text is made of integers here; values are always bound.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

Row = tuple[Any, ...]
FORMAT: Final = 1
_FEW = 2_000  # newer versions up to which a snapshot finds its old rows by their end instead of by their key
_TABLES = """
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ddl(seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, statement TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS partitions(
    id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, token TEXT NOT NULL UNIQUE, low INTEGER NOT NULL,
    high INTEGER NOT NULL, started INTEGER NOT NULL, ended INTEGER, parents TEXT NOT NULL, children TEXT);
CREATE TABLE IF NOT EXISTS log(
    id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, at INTEGER NOT NULL, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS log_by_partition ON log(partition, at, id);
"""


class Relation:
    """The rows of one table, or the entries of one index, whose only column is the row's key."""

    def __init__(self, db: sqlite3.Connection, id_: int, columns: Sequence[str], changed_at: int) -> None:
        self._db = db
        self.id = id_
        self.columns = tuple(columns)
        # No row began or ended after this: a later snapshot is the present.
        self.changed_at = changed_at
        names = ",".join(columns)
        marks = ",".join("?" * len(columns))
        live, old = f"live_{id_}", f"old_{id_}"
        self._get = f"SELECT {names} FROM {live} WHERE k=?"  # noqa: S608 -- integers only, here and below
        self._get_old = (
            f"SELECT {names} FROM {live} WHERE k=?1 AND f<=?2 "  # noqa: S608
            f"UNION ALL SELECT {names} FROM {old} WHERE k=?1 AND f<=?2 AND t>?2 LIMIT 1"
        )
        self._retire = (
            f"INSERT INTO {old}(k,f,t,{names}) "  # noqa: S608
            f"SELECT k,f,?1,{names} FROM {live} WHERE k=?2 AND f<?1"
        )
        self._delete = f"DELETE FROM {live} WHERE k=?"  # noqa: S608
        self._put = f"INSERT INTO {live}(k,f,{names}) VALUES(?,?,{marks})"

    def get(self, key: bytes) -> Row | None:
        """Return the current row."""
        row: Row | None = self._db.execute(self._get, (key,)).fetchone()
        return row

    def get_at(self, key: bytes, at: int) -> Row | None:
        """Return the row of a snapshot."""
        if at >= self.changed_at:
            return self.get(key)
        row: Row | None = self._db.execute(self._get_old, (key, at)).fetchone()
        return row

    def scan(
        self,
        start: bytes,
        end: bytes,
        at: int,
        limit: int,
        columns: Sequence[str] | None = None,
        *,
        backwards: bool = False,
    ) -> list[Row]:
        """Return up to `limit` rows (k, columns…) of a snapshot with start <= k < end, in the order of k."""
        names = ",".join(("k", *(self.columns if columns is None else columns)))
        order = "k DESC" if backwards else "k"
        live = f"SELECT {names} FROM live_{self.id} WHERE k>=?1 AND k<?2"  # noqa: S608
        if at >= self.changed_at:
            return self._db.execute(f"{live} ORDER BY {order} LIMIT ?3", (start, end, limit)).fetchall()
        newer = self._db.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM old_{self.id} WHERE t>? LIMIT {_FEW})",  # noqa: S608
            (at,),
        ).fetchone()[0]
        by = f"INDEXED BY old_{self.id}_t" if newer < _FEW else ""
        return self._db.execute(
            f"{live} AND f<=?4 UNION ALL SELECT {names} FROM old_{self.id} {by} "  # noqa: S608
            f"WHERE k>=?1 AND k<?2 AND f<=?4 AND t>?4 ORDER BY {order} LIMIT ?3",
            (start, end, limit, at),
        ).fetchall()

    def write(self, ended: Iterable[bytes], begun: Iterable[Row], at: int) -> None:
        """End the current rows of the keys `ended`, then begin the rows (k, f=at, columns…)."""
        ended = list(ended)
        if ended:
            self._db.executemany(self._retire, [(at, key) for key in ended])
            self._db.executemany(self._delete, [(key,) for key in ended])
        self._db.executemany(self._put, begun)
        self.changed_at = max(self.changed_at, at)

    def collect(self, horizon: int, most: int) -> int:
        """Delete up to `most` versions that ended at or before the horizon; return how many."""
        done = self._db.execute(
            f"DELETE FROM old_{self.id} WHERE (k,f) IN "  # noqa: S608
            f"(SELECT k,f FROM old_{self.id} WHERE t<=? LIMIT ?)",
            (horizon, most),
        )
        return done.rowcount

    def create(self) -> None:
        """Make the SQLite tables."""
        names = ",".join(self.columns)
        self._db.execute(
            f"CREATE TABLE live_{self.id}(k BLOB PRIMARY KEY,f INTEGER NOT NULL,{names}) WITHOUT ROWID"
        )
        self._db.execute(
            f"CREATE TABLE old_{self.id}(k BLOB NOT NULL,f INTEGER NOT NULL,t INTEGER NOT NULL,{names},"
            "PRIMARY KEY(k,f)) WITHOUT ROWID"
        )
        self._db.execute(f"CREATE INDEX old_{self.id}_t ON old_{self.id}(t)")

    def add_column(self, name: str) -> None:
        """Add a column, NULL in every row there is."""
        self._db.execute(f"ALTER TABLE live_{self.id} ADD COLUMN {name}")
        self._db.execute(f"ALTER TABLE old_{self.id} ADD COLUMN {name}")

    def drop(self) -> None:
        """Delete the relation and its past."""
        self._db.execute(f"DROP TABLE live_{self.id}")
        self._db.execute(f"DROP TABLE old_{self.id}")


class Storage:
    """One database file. Not thread safe; used from the loop's thread alone."""

    def __init__(self, path: Path | None, *, durable: bool) -> None:
        # isolation_level None: transactions are ours alone to begin and end.
        self.db = sqlite3.connect(path or ":memory:", isolation_level=None, cached_statements=512)
        if path is not None:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        self.db.execute("PRAGMA cache_size=-65536")
        self.db.execute("PRAGMA temp_store=MEMORY")
        self.db.executescript(_TABLES)
        found = self.meta("format")
        if found is None:
            self.set_meta("format", FORMAT)
        elif found != FORMAT:
            raise RuntimeError(f"{path} has format {found}; this version reads format {FORMAT}")

    def close(self) -> None:
        """Close the file; SQLite folds the write-ahead log into it."""
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. On return the writes survive a kill of the process."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        try:
            self.db.execute("COMMIT")
        except BaseException:  # disk full: nothing was committed
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    def meta(self, name: str) -> Any:
        """Return a value of the meta table, or None."""
        row = self.db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return row[0] if row else None

    def set_meta(self, name: str, value: float | str) -> None:
        """Set a value of the meta table, in the transaction that is open if one is."""
        self.db.execute(
            "INSERT INTO meta VALUES(?,?) ON CONFLICT(name) DO UPDATE SET value=excluded.value", (name, value)
        )

    def add_ddl(self, at: int, statement: str) -> None:
        """Append to the history of the schema."""
        self.db.execute("INSERT INTO ddl(at,statement) VALUES(?,?)", (at, statement))

    def ddl(self) -> list[tuple[int, str]]:
        """Return the history of the schema: when, and the statement."""
        return self.db.execute("SELECT at,statement FROM ddl ORDER BY seq").fetchall()

    def append(self, records: Iterable[tuple[int, int, int, bytes]]) -> None:
        """Add (id, partition, at, record) to the change log."""
        self.db.executemany("INSERT INTO log VALUES(?,?,?,?)", records)

    def last_record(self) -> int:
        """Return the greatest id of a record, 0 without one."""
        return self.db.execute("SELECT max(id) FROM log").fetchone()[0] or 0

    def records(
        self, partition: int, after: tuple[int, int], until: int, limit: int
    ) -> list[tuple[int, int, bytes]]:
        """Return (at, id, record) of a partition with (at, id) > after and at <= until, in order."""
        return self.db.execute(
            "SELECT at,id,record FROM log WHERE partition=? AND (at,id)>(?,?) AND at<=? ORDER BY at,id LIMIT ?",
            (partition, *after, until, limit),
        ).fetchall()

    def collect_records(self, partition: int, horizon: int, most: int) -> int:
        """Delete up to `most` records of a partition from before the horizon; return how many."""
        return self.db.execute(
            "DELETE FROM log WHERE id IN (SELECT id FROM log WHERE partition=? AND at<? ORDER BY at,id LIMIT ?)",
            (partition, horizon, most),
        ).rowcount
