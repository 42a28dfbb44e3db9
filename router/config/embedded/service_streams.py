"""Change stream queries: which partitions there are, and the records of one, pushed as they are committed.

    no token     one child_partitions_record per partition at `start`, then the end
    a token      data change records in order; a heartbeat after each quiet interval; then, when the partition has
    ended,
                 its children's records, or at `end` a heartbeat, and the end

A resume token is the position of the last record sent: the query is continued by a server that never saw it.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from router.config.embedded import wire
from router.config.embedded.changes import TOKEN, child_record, heartbeat_record, record_message
from router.config.embedded.errors import StoreError, invalid, not_found
from router.config.embedded.limits import MAX_HEARTBEAT_MS, MIN_HEARTBEAT_MS
from router.config.embedded.messages import change_record_metadata
from router.config.embedded.selection import wait_until
from router.config.embedded.timestamps import FOREVER, US_PER_S, wire_of_us

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from router.config.embedded.catalog import ChangeStream
    from router.config.embedded.feeds import Feed, Record
    from router.config.embedded.hooks import TestHooks
    from router.config.embedded.limits import Settings
    from router.config.embedded.partitions import Partition
    from router.config.embedded.registry import OpenDatabase
    from router.config.embedded.stream_query import StreamQuery

_MAX_AHEAD_S: Final = 600  # a start further in the future is OUT_OF_RANGE
_PAGE: Final = 200
_JOINED_BYTES: Final = 256 << 10  # records joined to one message while a reader catches up
_METADATA: Final = wire.metadata(change_record_metadata())


class Streams:
    """All change stream queries of a server."""

    def __init__(self, settings: Settings, hooks: TestHooks | None) -> None:
        self._settings = settings
        self._hooks = hooks
        self.open = 0

    def check(self, request: Any) -> None:
        """Refuse a query in anything but a strong single-use read-only transaction. INVALID_ARGUMENT."""
        kind = request.transaction.WhichOneof("selector")
        if kind is None:
            return
        if kind != "single_use":
            raise invalid("Change stream queries are not supported for multi use transactions.")
        mode = request.transaction.single_use.WhichOneof("mode")
        if mode != "read_only":
            raise invalid("Change stream queries need a read-only transaction.")
        if request.transaction.single_use.read_only.WhichOneof("timestamp_bound") not in {None, "strong"}:
            raise invalid("Change stream queries must be strong reads.")

    async def run(self, served: OpenDatabase, query: StreamQuery, resume: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the messages of a query. Raises StoreError."""
        if self.open >= self._settings.max_streams:
            raise StoreError("RESOURCE_EXHAUSTED", f"limit max_streams: {self.open} change stream queries are open")
        stream = served.database.catalog.streams.get(query.stream.lower())
        if stream is None:
            raise invalid(f"Table-valued function not found: READ_{query.stream}")
        start = _check(served, stream, query)
        self.open += 1
        try:
            if query.token is None:
                await wait_until(served, start)
                for message in _initial(served, stream, start):
                    yield message
                return
            partition = _partition(served, stream, query.token, start)
            position = (start, -1)
            if resume:
                if len(resume) != TOKEN.size or resume[:1] != b"p":
                    raise invalid("Invalid resume_token.")
                position = TOKEN.unpack(resume)[1:]
                if not 0 < position[0] <= max(start, served.database.safe()):
                    raise invalid("Invalid resume_token.")
            async with aclosing(self._follow(served, stream, partition, query, position)) as messages:
                async for message in messages:
                    yield message
        finally:
            self.open -= 1

    def _max_readers(self) -> int | None:
        if self._hooks is not None and self._hooks.max_readers is not None:
            return self._hooks.max_readers
        return self._settings.max_readers

    async def _follow(
        self,
        served: OpenDatabase,
        stream: ChangeStream,
        partition: Partition,
        query: StreamQuery,
        position: tuple[int, int],
    ) -> AsyncGenerator[bytes, None]:
        database = served.database
        feed = database.open_feed(partition)
        limit = self._max_readers()
        if limit is not None and feed.readers >= limit:
            raise StoreError(
                "RESOURCE_EXHAUSTED", f"limit max_readers: {limit} queries read the partition {partition.token}"
            )
        feed.readers += 1
        try:
            async with aclosing(self._records(served, stream, partition, query, position, feed)) as messages:
                async for message in messages:
                    yield message
        finally:
            feed.readers -= 1
            database.feeds.close(partition.id, feed)

    async def _records(
        self,
        served: OpenDatabase,
        stream: ChangeStream,
        partition: Partition,
        query: StreamQuery,
        position: tuple[int, int],
        feed: Feed,
    ) -> AsyncGenerator[bytes, None]:
        database, hooks = served.database, self._hooks
        until = FOREVER if query.end is None else query.end
        assert query.heartbeat_ms is not None
        interval_s = query.heartbeat_ms / 1000
        head = _METADATA
        sent_at = time.monotonic()
        while True:
            if served.dropped or stream.id not in {other.id for other in database.catalog.streams.values()}:
                raise not_found(f"Change stream not found: {stream.name}")
            records = feed.after(position)
            if records is None:
                _check_kept(served, stream, position[0])
                found = database.storage.records(partition.id, position, until, _PAGE)
                records = [(at, id_, record_message(record, (at, id_))) for at, id_, record in found]
            elif records and records[-1][0] > until:
                records = [record for record in records if record[0] <= until]
            # From here to the next await nothing can be committed: what is safe now is all there is.
            if records:
                if hooks is not None and hooks.end_streams:
                    return
                quiet = hooks is not None and hooks.silent_streams
                for joined in [] if quiet else _joined(records):
                    yield head + joined if head else joined
                    head = b""
                position = records[-1][:2]
                sent_at = time.monotonic()
                continue
            safe = database.safe()
            if partition.ended is not None and partition.ended <= min(until, safe):
                for sequence, token in enumerate(partition.children):
                    child = served.database.partitions.get(stream.id, token)
                    parents = child.parents if child is not None else [partition.token]
                    tokens = wire.array([wire.text(parent) for parent in parents])
                    record = child_record(partition.ended, sequence, token, tokens)
                    yield head + record_message(record, (partition.ended, FOREVER + sequence))
                    head = b""
                return
            if safe >= until:
                yield head + record_message(heartbeat_record(until), (until, FOREVER))
                return
            left_s = sent_at + interval_s - time.monotonic()
            if left_s <= 0:
                if hooks is not None and hooks.end_streams:
                    return
                position = (safe, FOREVER)
                sent_at = time.monotonic()
                if hooks is None or not hooks.silent_streams:
                    yield head + record_message(heartbeat_record(safe), position)
                    head = b""
                continue
            if query.end is not None:
                left_s = min(left_s, max(0.001, (query.end - safe) / US_PER_S))
            await feed.wait(left_s)


def _joined(records: list[Record]) -> list[bytes]:
    """Join messages: fields of one message may follow each other, and the last resume token wins."""
    if len(records) == 1:
        return [records[0][2]]
    out: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    for record in records:
        batch.append(record[2])
        size += len(record[2])
        if size >= _JOINED_BYTES:
            out.append(b"".join(batch))
            batch, size = [], 0
    if batch:
        out.append(b"".join(batch))
    return out


def _initial(served: OpenDatabase, stream: ChangeStream, start: int) -> list[bytes]:
    head = _METADATA
    out: list[bytes] = []
    for sequence, partition in enumerate(served.database.partitions.at(stream.id, start)):
        record = child_record(start, sequence, partition.token, wire.array([]))
        out.append(head + record_message(record, (start, sequence)))
        head = b""
    return out


def _earliest(served: OpenDatabase, stream: ChangeStream) -> int:
    retention = int(served.database.retention_s(stream) * US_PER_S)
    return max(served.database.safe() - retention, served.database.stream_created(stream))


def _check_kept(served: OpenDatabase, stream: ChangeStream, at: int) -> None:
    earliest = _earliest(served, stream)
    if at < earliest:
        raise StoreError(
            "OUT_OF_RANGE",
            "Specified start_timestamp is too far in the past. Please specify a start_timestamp within the "
            f"earliest read timestamp: {wire_of_us(earliest)}. Received start_timestamp: {wire_of_us(at)}.",
        )


def _check(served: OpenDatabase, stream: ChangeStream, query: StreamQuery) -> int:
    if query.start is None:
        raise invalid("start_timestamp must not be null.")
    if query.heartbeat_ms is None:
        raise invalid("heartbeat_milliseconds must not be null.")
    if not MIN_HEARTBEAT_MS <= query.heartbeat_ms <= MAX_HEARTBEAT_MS:
        raise StoreError(
            "OUT_OF_RANGE",
            f"heartbeat_milliseconds must be within min {MIN_HEARTBEAT_MS} and max {MAX_HEARTBEAT_MS}. "
            f"Received heartbeat_milliseconds: {query.heartbeat_ms}.",
        )
    if query.end is not None and query.start > query.end:
        raise invalid(
            "If end_timestamp is specified, start_timestamp must be <= end_timestamp. Received start_timestamp: "
            f"{wire_of_us(query.start)}, end_timestamp: {wire_of_us(query.end)}."
        )
    _check_kept(served, stream, query.start)
    latest = served.database.safe() + _MAX_AHEAD_S * US_PER_S
    if query.start > latest:
        raise StoreError(
            "OUT_OF_RANGE",
            "Specified start_timestamp is too far in the future. "
            f"Received start_timestamp: {wire_of_us(query.start)}.",
        )
    return query.start


def _partition(served: OpenDatabase, stream: ChangeStream, token: str, start: int) -> Partition:
    partition = served.database.partitions.get(stream.id, token)
    if partition is None:
        raise invalid(
            "Specified partition_token is invalid, as it does not belong to the Change Stream associated with the "
            f"TVF. Received partition_token: {token[:256]}."
        )
    if start < partition.started or (partition.ended is not None and start > partition.ended):
        ended = partition.ended if partition.ended is not None else served.database.safe()
        raise StoreError(
            "OUT_OF_RANGE",
            "Specified start_timestamp is invalid for the partition. Please specify a start_timestamp within "
            f"{wire_of_us(partition.started)} and {wire_of_us(ended)}. "
            f"Received start_timestamp: {wire_of_us(start)}.",
        )
    return partition
