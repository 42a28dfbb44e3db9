"""google.spanner.v1.Spanner: one method per RPC. Unary methods return a message, streaming ones yield bytes.

Session names carry no state: any name of a database that exists is good, also one that an earlier process gave out,
since the client never replaces a multiplexed session that was lost.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from google.protobuf import empty_pb2

from router.config.embedded import mutations, selection, stream_query, wire
from router.config.embedded.chunking import split_values
from router.config.embedded.errors import CODES, StoreError, invalid, not_found, precondition, unsupported
from router.config.embedded.limits import MAX_SESSIONS
from router.config.embedded.messages import PartialResultSet, ResultSet, Session, Spanner, metadata, raw, timestamp
from router.config.embedded.reads import Read
from router.config.embedded.service_sql import Statements

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from router.config.embedded.hooks import TestHooks
    from router.config.embedded.limits import Settings
    from router.config.embedded.reads import Chunk
    from router.config.embedded.registry import OpenDatabase, Registry
    from router.config.embedded.service_streams import Streams
    from router.config.embedded.workspace import Workspace

_Response = raw(Spanner.CommitResponse)
_BatchSessions = raw(Spanner.BatchCreateSessionsResponse)
_ListSessions = raw(Spanner.ListSessionsResponse)
_BatchDml = raw(Spanner.ExecuteBatchDmlResponse)

REQUESTS = {
    "CreateSession": raw(Spanner.CreateSessionRequest),
    "BatchCreateSessions": raw(Spanner.BatchCreateSessionsRequest),
    "GetSession": raw(Spanner.GetSessionRequest),
    "ListSessions": raw(Spanner.ListSessionsRequest),
    "DeleteSession": raw(Spanner.DeleteSessionRequest),
    "ExecuteSql": raw(Spanner.ExecuteSqlRequest),
    "ExecuteBatchDml": raw(Spanner.ExecuteBatchDmlRequest),
    "Read": raw(Spanner.ReadRequest),
    "BeginTransaction": raw(Spanner.BeginTransactionRequest),
    "Commit": raw(Spanner.CommitRequest),
    "Rollback": raw(Spanner.RollbackRequest),
    "PartitionQuery": raw(Spanner.PartitionQueryRequest),
    "PartitionRead": raw(Spanner.PartitionReadRequest),
}
STREAM_REQUESTS = {
    "ExecuteStreamingSql": raw(Spanner.ExecuteSqlRequest),
    "StreamingRead": raw(Spanner.ReadRequest),
    "BatchWrite": raw(Spanner.BatchWriteRequest),
}


class SpannerService:
    """See the module. Every method may raise StoreError."""

    def __init__(self, registry: Registry, settings: Settings, streams: Streams, hooks: TestHooks | None) -> None:
        self._registry = registry
        self._settings = settings
        self._streams = streams
        self._hooks = hooks
        self._sessions: OrderedDict[str, Any] = OrderedDict()
        self._deleted: OrderedDict[str, None] = OrderedDict()

    # -- sessions

    async def CreateSession(self, request: Any) -> Any:  # noqa: N802 -- RPC names, here and below
        """Return a new session of a database."""
        return self._session(request.database, request.session)

    async def BatchCreateSessions(self, request: Any) -> Any:  # noqa: N802
        """Return new sessions, up to a hundred, as Spanner."""
        count = min(max(request.session_count, 1), 100)
        return _BatchSessions(
            session=[self._session(request.database, request.session_template) for _ in range(count)]
        )

    def _session(self, database: str, template: Any) -> Any:
        served = self._registry.database(database)
        session = Session()
        session.CopyFrom(template)
        session.name = f"{database}/sessions/{secrets.token_urlsafe(18)}"
        session.create_time.CopyFrom(timestamp(served.database.safe()))
        session.approximate_last_use_time.CopyFrom(session.create_time)
        self._sessions[session.name] = session
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return session

    async def GetSession(self, request: Any) -> Any:  # noqa: N802
        """Return a session; one this process never saw is made up."""
        self._registry.of_session(request.name)
        if request.name in self._deleted:
            raise not_found(f"Session not found: {request.name}")
        return self._sessions.get(request.name) or Session(name=request.name)

    async def ListSessions(self, request: Any) -> Any:  # noqa: N802
        """Return the sessions this process remembers, all on one page."""
        self._registry.database(request.database)
        start = f"{request.database}/sessions/"
        return _ListSessions(sessions=[s for name, s in self._sessions.items() if name.startswith(start)])

    async def DeleteSession(self, request: Any) -> Any:  # noqa: N802
        """Forget a session."""
        self._registry.of_session(request.name)
        self._sessions.pop(request.name, None)
        self._deleted[request.name] = None
        if len(self._deleted) > MAX_SESSIONS:
            self._deleted.popitem(last=False)
        return empty_pb2.Empty()

    def _served(self, session: str) -> OpenDatabase:
        served = self._registry.of_session(session)
        if session in self._deleted:
            raise not_found(f"Session not found: {session}")
        return served

    # -- transactions

    async def BeginTransaction(self, request: Any) -> Any:  # noqa: N802
        """Return a Transaction."""
        return await selection.begin(self._served(request.session), request.options)

    async def Commit(self, request: Any) -> Any:  # noqa: N802
        """Apply mutations, after the transaction's DML, and return the timestamp."""
        served = self._served(request.session)
        kind = request.WhichOneof("transaction")

        def fill(workspace: Workspace, at: int) -> None:
            mutations.apply(workspace, request.mutations, at)

        tag = request.request_options.transaction_tag
        if kind == "transaction_id":
            before = served.transactions.committed(request.transaction_id)
            at = before if before is not None else self._commit(served, request.transaction_id, fill, tag)
        elif kind == "single_use_transaction":
            options = request.single_use_transaction
            if options.WhichOneof("mode") != "read_write":
                raise invalid("Cannot commit a transaction that is not read-write")
            silent = options.exclude_txn_from_change_streams
            at = served.database.commit(fill, tag=tag, silent=silent)
        else:
            raise invalid("Commit needs a transaction")
        response = _Response(commit_timestamp=timestamp(at))
        if request.return_commit_stats:
            response.commit_stats.mutation_count = mutations.count(request.mutations)
        return response

    def _commit(self, served: OpenDatabase, id_: bytes, fill: Callable[[Workspace, int], None], tag: str) -> int:
        transaction = served.transactions.get(id_)
        if transaction.partitioned:
            raise precondition("Cannot commit a Partitioned DML transaction")
        return served.transactions.commit(transaction, fill, tag)

    async def Rollback(self, request: Any) -> Any:  # noqa: N802
        """Drop a transaction; one that is unknown is dropped already."""
        self._served(request.session).transactions.end(request.transaction_id)
        return empty_pb2.Empty()

    # -- reads

    async def StreamingRead(self, request: Any) -> AsyncGenerator[bytes, None]:  # noqa: N802
        """Yield the rows of a table or an index, in the order of their keys."""
        served = self._served(request.session)
        selected = await selection.select(served, request.transaction)
        read = Read(served.database, request, selected.at, selected.transaction)
        names = [(name, type_) for name, type_ in zip(request.columns, read.types, strict=True)]
        async for message in self._send(read.chunks(self._chunk_bytes()), metadata(names, selected.begun)):
            yield message

    async def Read(self, request: Any) -> Any:  # noqa: N802
        """Return the same in one message."""
        return await fold(self.StreamingRead(request))

    def _chunk_bytes(self) -> int:
        if self._hooks is not None and self._hooks.chunk_bytes is not None:
            return self._hooks.chunk_bytes
        return self._settings.chunk_bytes

    async def _send(self, chunks: Iterator[Chunk], described: bytes) -> AsyncGenerator[bytes, None]:
        head = wire.metadata(described)
        for chunk in chunks:
            tail = wire.resume_token(chunk.token)
            if self._hooks is not None and self._hooks.chunk_bytes is not None:
                for piece in split_values(chunk.values, self._hooks.chunk_bytes, tail):
                    yield head + piece
                    head = b""
            else:
                yield head + chunk.values + tail if head else chunk.values + tail
                head = b""
            await asyncio.sleep(0)  # others' turn

    async def PartitionRead(self, request: Any) -> Any:  # noqa: N802
        """Not here."""
        raise unsupported("PartitionRead")

    async def PartitionQuery(self, request: Any) -> Any:  # noqa: N802
        """Not here."""
        raise unsupported("PartitionQuery")

    async def BatchWrite(self, request: Any) -> AsyncGenerator[bytes, None]:  # noqa: N802
        """Not here."""
        for _ in ():
            yield b""
        raise unsupported("BatchWrite")

    # -- SQL

    async def ExecuteStreamingSql(self, request: Any) -> AsyncGenerator[bytes, None]:  # noqa: N802
        """Yield the rows of a query, the effects of a DML statement, or the records of a change stream."""
        served = self._served(request.session)
        if request.partition_token:
            raise unsupported("a partitioned query")
        query = None
        if stream_query.is_stream_query(request.sql):
            query = stream_query.parse(request.sql, request.params.fields)
        if query is not None:
            self._streams.check(request)
            messages = self._streams.run(served, query, request.resume_token)
        else:
            selected = await selection.select(served, request.transaction)
            messages = Statements(served, selected).run(request, self._chunk_bytes())
        async with aclosing(messages):
            async for message in messages:
                if self._hooks is not None and self._hooks.chunk_bytes is not None:
                    for piece in resplit(message, self._hooks.chunk_bytes):
                        yield piece
                else:
                    yield message

    async def ExecuteSql(self, request: Any) -> Any:  # noqa: N802
        """Return the same in one message."""
        if stream_query.is_stream_query(request.sql) and stream_query.parse(request.sql, request.params.fields):
            raise invalid("Change stream queries are only possible with ExecuteStreamingSql.")
        return await fold(self.ExecuteStreamingSql(request))

    async def ExecuteBatchDml(self, request: Any) -> Any:  # noqa: N802
        """Run DML statements until one fails, whose error is in the response's status."""
        served = self._served(request.session)
        if not request.statements:
            raise invalid("No statements in batch DML request.")
        selected = await selection.select(served, request.transaction)
        statements = Statements(served, selected)
        response = _BatchDml()
        for number, statement in enumerate(request.statements):
            try:
                one = await statements.dml(statement, None)
            except StoreError as error:
                if number == 0 and selected.begun is not None:
                    raise
                response.status.code = CODES[error.code]
                response.status.message = f"Statement {number}: {error.text}"
                break
            result = response.result_sets.add()
            result.CopyFrom(one)
            if number:
                result.metadata.ClearField("transaction")
        return response


def resplit(message: bytes, limit: int) -> list[bytes]:
    """Split a PartialResultSet that is larger than a test wants."""
    if len(message) <= limit:
        return [message]
    parsed = PartialResultSet.FromString(message)
    values = b"".join(wire.in_values(value.SerializeToString()) for value in parsed.values)
    tail = wire.resume_token(parsed.resume_token) if parsed.resume_token else b""
    if parsed.HasField("stats"):
        tail += wire.stats(parsed.stats.SerializeToString())
    pieces = split_values(values, limit, tail)
    if parsed.HasField("metadata"):
        pieces[0] = wire.metadata(parsed.metadata.SerializeToString()) + pieces[0]
    return pieces


async def fold(messages: AsyncGenerator[bytes, None]) -> Any:
    """Return the ResultSet of a stream whose values are not split between messages."""
    result = ResultSet()
    values: list[Any] = []
    async for data in messages:
        message = PartialResultSet.FromString(data)
        if message.HasField("metadata"):
            result.metadata.CopyFrom(message.metadata)
        if message.HasField("stats"):
            result.stats.CopyFrom(message.stats)
        values.extend(message.values)
    width = len(result.metadata.row_type.fields)
    for start in range(0, len(values), width or 1):
        result.rows.add().values.extend(values[start : start + width])
    return result
