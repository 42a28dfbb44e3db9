"""The table on disk, so that a router starts while the store is down.

    magic · length and header · length and rows, again and again · SHA-256 of all before it

The header says of which store the rows are and up to when; rows come in blocks of msgpack. A file is written
beside the old one, synced and renamed over it, and the one before is kept: where the newer does not check out,
the older is read. Reading never raises for a bad file: it says what is wrong.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from router.config.projection import Kept
from router.config.schema import BY_NAME, STREAMED_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from router.config.reduce import RowBook
    from router.config.wire import Key, Row

MAGIC = b"router-checkpoint\n"
FORMAT = 3  # with sessions, which a program that reads 2 does not know
READABLE = (2, FORMAT)
BLOCK_ROWS = 2_000
MAX_FILE_BYTES = 2 * 1024 * 1024 * 1024

_Block = tuple[str, list[tuple[list[str], int, list[Any] | None]]]


class Header(msgspec.Struct):
    """Of which database, up to when, and where each partition is to be read on.

    `schema` is what the rows look like, `of_schema` what the database's was: it says which tables are here.
    """

    format: int
    schema: int
    database: str
    identity: str
    watermark_us: int
    positions: dict[str, int]
    kept: Kept = msgspec.field(default_factory=Kept)
    of_schema: int = 2


class Checkpoint(msgspec.Struct):
    """What was read: the header, and the rows in blocks."""

    header: Header
    blocks: list[_Block]

    def restore(self, book: RowBook) -> None:
        """Put the rows into an empty book."""
        for table, rows in self.blocks:
            known = book.tables.get(table)
            if known is None:  # of a later version of ours
                continue
            for key, commit_us, row in rows:
                known[tuple(key)] = (commit_us, None if row is None else tuple(row))
        book.remember_deletions()


_header: msgspec.msgpack.Decoder[Header] = msgspec.msgpack.Decoder(Header)
_block: msgspec.msgpack.Decoder[_Block] = msgspec.msgpack.Decoder(_Block)


def blocks_of(book: RowBook) -> Iterator[bytes]:
    """Return the rows as they are now, to be encoded a block at a time; the book may change meanwhile."""
    return _encoded([(table, list(rows.items())) for table, rows in book.tables.items()])


def _encoded(tables: list[tuple[str, list[tuple[Key, tuple[int, Row | None]]]]]) -> Iterator[bytes]:
    for table, items in tables:
        for begin in range(0, len(items), BLOCK_ROWS):
            block = [(key, commit_us, row) for key, (commit_us, row) in items[begin : begin + BLOCK_ROWS]]
            yield msgspec.msgpack.encode((table, block))


def write(path: Path, header: Header, blocks: list[bytes]) -> None:
    """Replace the file; the old one stays as `.1`. OSError if the disk does not take it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: another router of this user, or a write that a stop overtook, may be at it as well.
    new = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.new")
    digest = hashlib.sha256()
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in (MAGIC, *map(_framed, (msgspec.msgpack.encode(header), *blocks))):
                digest.update(piece)
                file.write(piece)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            path.replace(previous(path))
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def previous(path: Path) -> Path:
    """Return where the checkpoint before the newest is kept."""
    return path.with_suffix(".1")


def read(path: Path, database: str) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint of `database` that checks out, or None; and what is wrong with the others."""
    complaints: list[str] = []
    for candidate in (path, previous(path)):
        try:
            checkpoint = _read(candidate, database)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, msgspec.DecodeError) as failure:
            complaints.append(f"{candidate}: {failure}")
            continue
        return checkpoint, complaints
    return None, complaints


def _read(path: Path, database: str) -> Checkpoint:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError("it is larger than any checkpoint of ours")
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        raise ValueError("it is no checkpoint")
    if len(data) < len(MAGIC) + 36 or hashlib.sha256(memoryview(data)[:-32]).digest() != data[-32:]:
        raise ValueError("it is damaged: the checksum does not match")
    pieces = _pieces(memoryview(data)[len(MAGIC) : -32])
    header = _header.decode(next(pieces))
    if header.format not in READABLE:
        raise ValueError(f"its format is {header.format}; this router reads {FORMAT}")
    if header.database != database:
        raise ValueError(f"it is of {header.database}, not of {database}")
    if header.schema != STREAMED_VERSION:
        raise ValueError(f"its rows are of schema {header.schema}; this router reads {STREAMED_VERSION}")
    blocks = [_block.decode(piece) for piece in pieces]
    for name, rows in blocks:
        table = BY_NAME.get(name)
        if table is None:
            raise ValueError(f"it has rows of a table {name!r}")
        keys, columns = len(table.keys), len(table.columns)
        if any(len(key) != keys or (row is not None and len(row) != columns) for key, _, row in rows):
            raise ValueError(f"it has rows of table {name} of another width")
    return Checkpoint(header, blocks)


def _framed(piece: bytes) -> bytes:
    return len(piece).to_bytes(4, "big") + piece


def _pieces(data: memoryview) -> Iterator[memoryview]:
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            raise ValueError("a block is cut short")
        yield data[at + 4 : end]
        at = end
