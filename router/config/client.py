"""The store's client: raw stubs of google.spanner.v1 on one grpc.aio channel, with no retries of its own.

The high-level client retries UNAVAILABLE without a pause (10,000 attempts in 6 s were seen) and puts an hour's
deadline on a stream; what runs for months beside a store that comes and goes needs its own pace. Message types
are the official package's. Imported late and never by a worker: the imports take half a second, in which a
router already serves from its checkpoint.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from random import random
from typing import TYPE_CHECKING, Any, TypeVar

# Its handlers around fork are for programs that use it on both sides; ours only start others.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import grpc
import grpc.aio
from google.cloud.spanner_v1 import types
from google.protobuf import empty_pb2, struct_pb2

from router.config.schema import STREAM
from router.config.timestamps import format_timestamp, to_micros
from router.config.wire import RowAssembler, WireError, change_records, plain

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from router.config.schema import StreamedTable
    from router.config.target import Target
    from router.config.wire import Key, Record, Row

RpcError = grpc.aio.AioRpcError
Status = grpc.StatusCode

CALL_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 120.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A peer that hangs is noticed by pings too, not only by the tail's watchdog.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_SERVICE = "/google.spanner.v1.Spanner/"
_CHANGES = f"SELECT ChangeRecord FROM READ_{STREAM}(@start, @end, @token, @heartbeat)"  # noqa: S608 - ours
_TYPES = {
    "start": types.TypeCode.TIMESTAMP,
    "end": types.TypeCode.TIMESTAMP,
    "token": types.TypeCode.STRING,
    "heartbeat": types.TypeCode.INT64,
}


def _message(kind: Any) -> Any:
    """Return the protobuf class behind one of proto-plus, which costs ten times as much per message."""
    return type(kind.pb(kind()))


_CreateSession = _message(types.CreateSessionRequest)
_Session = _message(types.Session)
_Begin = _message(types.BeginTransactionRequest)
_Transaction = _message(types.Transaction)
_Read = _message(types.ReadRequest)
_Sql = _message(types.ExecuteSqlRequest)
_Partial = _message(types.PartialResultSet)
_ResultSet = _message(types.ResultSet)
_Commit = _message(types.CommitRequest)
_Committed = _message(types.CommitResponse)
_Rollback = _message(types.RollbackRequest)
# Releases of the official package differ in what they call the field `all`.
_ALL_KEYS = "all_" if "all_" in _message(types.KeySet).DESCRIPTOR.fields_by_name else "all"


Mutation = tuple[str, str, Sequence[str], Sequence[Sequence[Any]]]
"""insert, update, insert_or_update or delete; table; columns; rows. Integers and times are texts, as on the
wire; a delete has keys for rows and no columns. `COMMIT_TIME` stands for the time of the commit."""

Parameter = str | float | bool | int | None
Result = TypeVar("Result")
COMMIT_TIME = "spanner.commit_timestamp()"
MAX_ABORTS = 12
_CODES = {
    str: types.TypeCode.STRING, bool: types.TypeCode.BOOL, int: types.TypeCode.INT64,
    float: types.TypeCode.FLOAT64, type(None): types.TypeCode.STRING,
}  # fmt: skip


class Transaction:
    """A read-write transaction under way: read, then say what to write."""

    def __init__(self, client: StoreClient, transaction_id: bytes) -> None:
        self._client = client
        self._id = transaction_id
        self._sequence = 0
        self.mutations: list[Mutation] = []

    async def execute(self, sql: str, params: Mapping[str, Parameter] | None = None) -> tuple[list[list[Any]], int]:
        """Run a statement that sees what the transaction's statements before it wrote."""
        self._sequence += 1
        return await self._client.execute(sql, params, self._id, self._sequence)

    def write(self, operation: str, table: str, columns: Sequence[str], *rows: Sequence[Any]) -> None:
        """Note a mutation, made when the transaction commits."""
        self.mutations.append((operation, table, columns, rows))


class StoreClient:
    """One channel and one session. Every method raises `RpcError` as it comes."""

    def __init__(self, target: Target) -> None:
        self._database = target.database
        self._metadata = (("google-cloud-resource-prefix", target.database),)
        self._session = ""
        self._channel = _open(target)
        self._create_session = self._unary("CreateSession", _Session)
        self._begin = self._unary("BeginTransaction", _Transaction)
        self._read = self._stream("StreamingRead")
        self._execute = self._stream("ExecuteStreamingSql")
        self._query = self._unary("ExecuteSql", _ResultSet)
        self._commit = self._unary("Commit", _Committed)
        self._rollback = self._unary("Rollback", empty_pb2.Empty)

    async def close(self) -> None:
        """Close the channel; calls under way end with CANCELLED."""
        await self._channel.close()

    async def open_session(self) -> None:
        """Make the session that all calls name."""
        request = _CreateSession(database=self._database)
        request.session.multiplexed = True
        answer = await self._create_session(request, metadata=self._metadata, timeout=CALL_TIMEOUT_S)
        self._session = answer.name

    async def read_time(self) -> Any:
        """Return the server's time of now, as a protobuf timestamp at which everything may be read."""
        request = _Begin(session=self._session)
        request.options.read_only.strong = True
        request.options.read_only.return_read_timestamp = True
        answer = await self._begin(request, metadata=self._metadata, timeout=CALL_TIMEOUT_S)
        return answer.read_timestamp

    async def read_table(self, table: StreamedTable, at: Any) -> AsyncGenerator[list[tuple[Key, Row]], None]:
        """Yield the rows of a table as of `at` (see `read_time`), some thousands at a time."""
        request = _Read(session=self._session, table=table.name, columns=table.all_columns)
        request.transaction.single_use.read_only.read_timestamp.CopyFrom(at)
        setattr(request.key_set, _ALL_KEYS, True)
        rows = RowAssembler()
        split = len(table.keys)
        call = self._read(request, metadata=self._metadata, timeout=READ_TIMEOUT_S)
        async for message in call:
            found: list[tuple[Key, Row]] = []
            for values in rows.feed(message):
                row = tuple(map(plain, values))
                found.append((row[:split], row[split:]))
            if found:
                yield found

    async def changes(
        self, start_us: int, token: str | None, heartbeat_ms: int
    ) -> AsyncGenerator[list[Record], None]:
        """Yield the records of one partition from `start_us` on; without a token, the partitions there are then."""
        request = _Sql(session=self._session, sql=_CHANGES)
        request.transaction.single_use.read_only.strong = True
        request.params["start"] = format_timestamp(start_us)
        request.params["end"] = None
        request.params["token"] = token
        request.params["heartbeat"] = str(heartbeat_ms)
        for name, code in _TYPES.items():
            request.param_types[name].code = code
        rows = RowAssembler()
        call = self._execute(request, metadata=self._metadata)  # no deadline: a tail has no end
        try:
            async for message in call:
                for values in rows.feed(message):
                    if len(values) != 1:
                        raise WireError(f"a change record of {len(values)} columns")
                    yield list(change_records(values[0]))
        finally:
            call.cancel()

    # -- writing ----------------------------------------------------------------------------------------

    async def write(self, mutations: Sequence[Mutation]) -> int:
        """Commit mutations blindly; return the commit timestamp in microseconds."""
        request = _Commit(session=self._session)
        request.single_use_transaction.read_write.SetInParent()
        return await self._send_commit(request, mutations)

    async def transact(self, work: Callable[[Transaction], Awaitable[Result]]) -> Result:
        """Run `work` in a read-write transaction, again while others abort it; return what it returned.

        An exception of `work` rolls back and goes through.
        """
        delay_s = 0.01
        for attempt in range(MAX_ABORTS):
            request = _Begin(session=self._session)
            request.options.read_write.SetInParent()
            begun = await self._begin(request, metadata=self._metadata, timeout=CALL_TIMEOUT_S)
            transaction = Transaction(self, begun.id)
            try:
                result = await work(transaction)
                request = _Commit(session=self._session, transaction_id=begun.id)
                await self._send_commit(request, transaction.mutations)
            except RpcError as failure:
                if failure.code() is not Status.ABORTED or attempt == MAX_ABORTS - 1:
                    await self._roll_back(begun.id)
                    raise
            except BaseException:
                await self._roll_back(begun.id)
                raise
            else:
                return result
            await asyncio.sleep(delay_s * (0.5 + random()))
            delay_s = min(delay_s * 2, 1.0)
        raise AssertionError("the last attempt raises")

    async def _roll_back(self, transaction: bytes) -> None:
        """Let go of what the transaction holds; a store that is away lets go by itself."""
        request = _Rollback(session=self._session, transaction_id=transaction)
        with suppress(RpcError):
            await self._rollback(request, metadata=self._metadata, timeout=CALL_TIMEOUT_S)

    async def execute(
        self, sql: str, params: Mapping[str, Parameter] | None = None, transaction: bytes = b"", sequence: int = 0
    ) -> tuple[list[list[Any]], int]:
        """Run one statement; return its rows as plain values and the number of rows a DML changed."""
        request = _Sql(session=self._session, sql=sql, seqno=sequence)
        if transaction:
            request.transaction.id = transaction
        for name, value in (params or {}).items():
            is_int = isinstance(value, int) and not isinstance(value, bool)
            request.params[name] = str(value) if is_int else value
            request.param_types[name].code = _CODES[type(value)]
        answer = await self._query(request, metadata=self._metadata, timeout=CALL_TIMEOUT_S)
        rows = [[plain(value) for value in row.values] for row in answer.rows]
        return rows, answer.stats.row_count_exact

    async def _send_commit(self, request: Any, mutations: Sequence[Mutation]) -> int:
        for operation, table, columns, rows in mutations:
            written = request.mutations.add()
            if operation == "delete":
                written.delete.table = table
                for row in rows:
                    written.delete.key_set.keys.add().extend(row)
                continue
            write = getattr(written, operation)
            write.table = table
            write.columns.extend(columns)
            for row in rows:
                write.values.append(_list(row))
        answer = await self._commit(request, metadata=self._metadata, timeout=CALL_TIMEOUT_S)
        return to_micros(answer.commit_timestamp)

    def _unary(self, name: str, answer: Any) -> Any:
        return self._channel.unary_unary(
            _SERVICE + name, request_serializer=_serialize, response_deserializer=answer.FromString
        )

    def _stream(self, name: str) -> Any:
        return self._channel.unary_stream(
            _SERVICE + name, request_serializer=_serialize, response_deserializer=_Partial.FromString
        )


def _list(row: Sequence[Any]) -> Any:
    values = struct_pb2.ListValue()
    values.extend([str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in row])
    return values


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _open(target: Target) -> grpc.aio.Channel:
    if not target.is_secure:
        return grpc.aio.insecure_channel(target.address, options=_OPTIONS)
    import google.auth  # noqa: PLC0415 - of Cloud Spanner alone
    import google.auth.transport.grpc  # noqa: PLC0415
    import google.auth.transport.requests  # noqa: PLC0415

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/spanner.data"])
    session = google.auth.transport.requests.Request()
    plugin = google.auth.transport.grpc.AuthMetadataPlugin(credentials, session)  # type: ignore[no-untyped-call]
    secure = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(), grpc.metadata_call_credentials(plugin)
    )
    return grpc.aio.secure_channel(target.address, secure, options=_OPTIONS)
