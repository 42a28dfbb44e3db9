"""The instances and databases of one data directory, and the lock that makes it one process's.

    <data>/lock           held by flock, with the holder's pid inside
    <data>/store.sqlite   instances; databases and their files
    <data>/db-N.sqlite    one database each

Without a directory everything is in memory and ends with the process.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
from typing import TYPE_CHECKING, Final

from router.config.embedded.database import Database
from router.config.embedded.errors import StoreError, invalid, not_found
from router.config.embedded.sql.defaults import default_value
from router.config.embedded.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from router.config.embedded.limits import Settings

_DATABASE: Final = re.compile(
    r"(projects/[a-z0-9][a-z0-9.:-]{0,61}/instances/[a-z][a-z0-9-]{0,62}[a-z0-9]?)/databases/([a-z][a-z0-9_-]{0,28}[a-z0-9])",
    re.ASCII,
)
_INSTANCE: Final = re.compile(r"projects/[a-z0-9][a-z0-9.:-]{0,61}/instances/[a-z][a-z0-9-]{0,62}", re.ASCII)
_TABLES = """
CREATE TABLE IF NOT EXISTS instances(name TEXT PRIMARY KEY, message BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS databases(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
"""


class LockedError(RuntimeError):
    """Another process has the data directory; the text says which."""


class OpenDatabase:
    """A database that is being served."""

    def __init__(self, name: str, database: Database) -> None:
        self.name = name
        self.database = database
        self.transactions = Transactions(database)
        self.dropped = False


class Registry:
    """See the module. Raises LockedError, or OSError where the directory cannot be used."""

    def __init__(self, data_dir: Path | None, settings: Settings) -> None:
        self._dir = data_dir
        self._settings = settings
        self._lock: int | None = None
        if data_dir is not None:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _take_lock(data_dir / "lock")
        try:
            self._db = sqlite3.connect(data_dir / "store.sqlite" if data_dir else ":memory:", isolation_level=None)
            if data_dir is not None:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)
            self._instances: dict[str, bytes] = dict(self._db.execute("SELECT name,message FROM instances"))
            self._databases: dict[str, OpenDatabase] = {}
            for id_, name in self._db.execute("SELECT id,name FROM databases ORDER BY id").fetchall():
                self._databases[name] = self._open(name, id_)
        except BaseException:
            self._unlock()
            raise

    def _open(self, name: str, id_: int) -> OpenDatabase:
        path = None if self._dir is None else self._dir / f"db-{id_}.sqlite"
        return OpenDatabase(name, Database(path, self._settings, default=default_value))

    def close(self) -> None:
        """Close every database, then let go of the directory."""
        for served in self._databases.values():
            served.database.close()
        self._databases.clear()
        self._db.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- instances

    def instances(self, project: str) -> Iterator[bytes]:
        """Yield the messages of a project's instances."""
        for name, message in self._instances.items():
            if name.startswith(f"{project}/instances/"):
                yield message

    def instance(self, name: str) -> bytes:
        """Return an instance's message. NOT_FOUND."""
        message = self._instances.get(name)
        if message is None:
            raise not_found(f"Instance not found: {name[:256]}")
        return message

    def add_instance(self, name: str, message: bytes) -> None:
        """Add an instance. ALREADY_EXISTS, INVALID_ARGUMENT."""
        if _INSTANCE.fullmatch(name) is None:
            raise invalid(f"Invalid instance name: {name[:256]}")
        if name in self._instances:
            raise StoreError("ALREADY_EXISTS", f"Instance already exists: {name}")
        self._db.execute("INSERT INTO instances VALUES(?,?)", (name, message))
        self._instances[name] = message

    def drop_instance(self, name: str) -> None:
        """Delete an instance and its databases."""
        for served in list(self.databases(name)):
            self.drop(served.name)
        self._db.execute("DELETE FROM instances WHERE name=?", (name,))
        self._instances.pop(name, None)

    # -- databases

    def databases(self, instance: str) -> Iterator[OpenDatabase]:
        """Yield the databases of an instance."""
        for name, served in self._databases.items():
            if name.startswith(f"{instance}/databases/"):
                yield served

    def all(self) -> list[OpenDatabase]:
        """Return every database."""
        return list(self._databases.values())

    def database(self, name: str) -> OpenDatabase:
        """Return a database. NOT_FOUND."""
        served = self._databases.get(name)
        if served is None:
            raise not_found(f"Database not found: {name[:256]}")
        return served

    def of_session(self, session: str) -> OpenDatabase:
        """Return the database of a session's name: any name will do, so that sessions outlive the server."""
        name, slash, id_ = session.rpartition("/sessions/")
        served = self._databases.get(name)
        if served is not None and served.database.upstream is not None and not served.database.safe():
            raise StoreError("UNAVAILABLE", f"this relay has not caught up with {served.database.upstream} yet")
        if served is None or not slash or not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", id_):
            raise not_found(f"Session not found: {session[:256]}")
        return served

    def create(self, name: str) -> OpenDatabase:
        """Make a database. ALREADY_EXISTS, INVALID_ARGUMENT, NOT_FOUND for its instance."""
        form = _DATABASE.fullmatch(name)
        if form is None:
            raise invalid(f"Database ID not valid: {name[:256]}")
        self.instance(form[1])
        if name in self._databases:
            raise StoreError("ALREADY_EXISTS", f"Database already exists: {name}")
        id_ = self._db.execute("INSERT INTO databases(name) VALUES(?)", (name,)).lastrowid
        assert id_ is not None
        served = self._databases[name] = self._open(name, id_)
        return served

    def drop(self, name: str) -> None:
        """Delete a database and its file."""
        served = self._databases.pop(name, None)
        if served is None:
            return
        served.dropped = True
        for feed in served.database.feeds.all():
            feed.wake()
        id_ = self._db.execute("SELECT id FROM databases WHERE name=?", (name,)).fetchone()[0]
        self._db.execute("DELETE FROM databases WHERE id=?", (id_,))
        served.database.close()
        if self._dir is not None:
            for suffix in ("", "-wal", "-shm"):
                (self._dir / f"db-{id_}.sqlite{suffix}").unlink(missing_ok=True)


def _take_lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "?"
        os.close(lock)
        raise LockedError(f"{path.parent} is in use by the process with pid {holder}") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    return lock
