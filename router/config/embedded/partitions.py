"""Partitions of a change stream: who holds which part of the key space, from when to when.

The key space of a stream is the 32-bit hash of a row's root key, so that a row and all that is
interleaved in it change in one partition, and a split in the middle halves the load. The open partitions of a
stream cover it without gap or overlap at every timestamp; a split or a merge ends partitions at T and starts their
children at T: records of commits <= T are the parents', later ones the children's.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.config.embedded.storage import Storage

SPACE: Final = 1 << 32


@dataclass(slots=True)
class Partition:
    """Holds [low, high) for commits with started < T <= ended (the first ones: started <= T)."""

    id: int
    stream: int
    token: str
    low: int
    high: int
    started: int
    ended: int | None
    parents: list[str]
    children: list[str]


def position(root: int, root_key: bytes) -> int:
    """Return where a row lies in the key space, from the id of its root table and its root key."""
    return int.from_bytes(blake2b(root_key, digest_size=4, key=root.to_bytes(8)).digest())


class Partitions:
    """The partitions of all streams of a database, in memory as on disk. Mutators run inside a transaction."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._by_token: dict[str, Partition] = {}
        self._by_stream: dict[int, list[Partition]] = {}
        self.load()

    def load(self) -> None:
        """Read everything anew, also after a transaction that failed."""
        self._by_token.clear()
        self._by_stream.clear()
        for row in self._storage.db.execute(
            "SELECT id,stream,token,low,high,started,ended,parents,children FROM partitions ORDER BY id"
        ):
            id_, stream, token, low, high, started, ended, parents, children = row
            self._remember(
                Partition(
                    id_, stream, token, low, high, started, ended, json.loads(parents), json.loads(children or "[]")
                )
            )

    def _remember(self, partition: Partition) -> None:
        self._by_token[partition.token] = partition
        self._by_stream.setdefault(partition.stream, []).append(partition)

    def get(self, stream: int, token: str) -> Partition | None:
        """Return the stream's partition of that token."""
        partition = self._by_token.get(token)
        return partition if partition is not None and partition.stream == stream else None

    def of(self, stream: int) -> list[Partition]:
        """Return every partition that is known of a stream, oldest first."""
        return self._by_stream.get(stream, [])

    def open(self, stream: int) -> list[Partition]:
        """Return the partitions that take today's records, in the order of their key space."""
        return sorted((p for p in self.of(stream) if p.ended is None), key=lambda p: p.low)

    def at(self, stream: int, at: int) -> list[Partition]:
        """Return the partitions whose records a reader that starts at `at`, inclusive, must begin with."""
        found = [p for p in self.of(stream) if p.started <= at and (p.ended is None or at <= p.ended)]
        # At the very moment of a split both generations qualify; the children follow from their parents.
        tokens = {p.token for p in found}
        return sorted((p for p in found if not tokens & set(p.parents)), key=lambda p: p.low)

    def start(self, stream: int, at: int, count: int) -> None:
        """Give a new stream its first partitions."""
        edges = [SPACE * part // count for part in range(count + 1)]
        for low, high in pairwise(edges):
            self._add(stream, low, high, at, [])

    def _add(self, stream: int, low: int, high: int, at: int, parents: list[str]) -> Partition:
        token = secrets.token_urlsafe(24)
        cursor = self._storage.db.execute(
            "INSERT INTO partitions(stream,token,low,high,started,parents) VALUES(?,?,?,?,?,?)",
            (stream, token, low, high, at, json.dumps(parents)),
        )
        assert cursor.lastrowid is not None
        partition = Partition(cursor.lastrowid, stream, token, low, high, at, None, parents, [])
        self._remember(partition)
        return partition

    def _end(self, partition: Partition, at: int, children: list[str]) -> None:
        partition.ended, partition.children = at, children
        self._storage.db.execute(
            "UPDATE partitions SET ended=?,children=? WHERE id=?", (at, json.dumps(children), partition.id)
        )

    def split(self, partition: Partition, at: int) -> list[Partition]:
        """Replace an open partition by its halves."""
        if partition.ended is not None or partition.high - partition.low < 2:
            raise ValueError(f"partition {partition.token} cannot be split")
        middle = (partition.low + partition.high) // 2
        halves = [
            self._add(partition.stream, partition.low, middle, at, [partition.token]),
            self._add(partition.stream, middle, partition.high, at, [partition.token]),
        ]
        self._end(partition, at, [half.token for half in halves])
        return halves

    def merge(self, parts: Sequence[Partition], at: int) -> Partition:
        """Replace open neighbours by one partition."""
        parts = sorted(parts, key=lambda p: p.low)
        if len(parts) < 2 or any(p.ended is not None for p in parts):
            raise ValueError("a merge takes two or more open partitions")
        if any(left.high != right.low for left, right in pairwise(parts)):
            raise ValueError("a merge takes neighbours")
        whole = self._add(parts[0].stream, parts[0].low, parts[-1].high, at, [p.token for p in parts])
        for part in parts:
            self._end(part, at, [whole.token])
        return whole

    def drop(self, stream: int) -> None:
        """Forget a stream's partitions and their records."""
        for partition in self._by_stream.pop(stream, []):
            self._storage.db.execute("DELETE FROM log WHERE partition=?", (partition.id,))
            del self._by_token[partition.token]
        self._storage.db.execute("DELETE FROM partitions WHERE stream=?", (stream,))

    def forget(self, partition: Partition) -> None:
        """Forget a partition that ended before anything that may still be read."""
        self._storage.db.execute("DELETE FROM partitions WHERE id=?", (partition.id,))
        self._by_stream[partition.stream].remove(partition)
        del self._by_token[partition.token]
