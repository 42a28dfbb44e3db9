"""ExecuteSql and its kin, from request to messages.

A query's resume token says its snapshot, its CURRENT_TIMESTAMP and how many rows were sent: it is run again, which
gives the same rows, and so many are left out. A DML statement that is repeated with its seqno is answered from
memory.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any, Final

from router.config.embedded import wire
from router.config.embedded.errors import StoreError, invalid, precondition, unsupported
from router.config.embedded.messages import PartialResultSet, ResultSet, Stats, metadata
from router.config.embedded.reads import encode_rows
from router.config.embedded.sql import ast
from router.config.embedded.sql.dml import Change, Result
from router.config.embedded.sql.expressions import Context
from router.config.embedded.sql.parser import parse
from router.config.embedded.sql.select import Query
from router.config.embedded.sql.sources import View
from router.config.embedded.sql.typed import Params
from router.config.embedded.timestamps import text_of_us
from router.config.embedded.values import encoder

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from router.config.embedded.registry import OpenDatabase
    from router.config.embedded.selection import Selected

_TOKEN = struct.Struct(">cqqq")
_CONSTRAINTS: Final = frozenset({"ALREADY_EXISTS", "NOT_FOUND", "FAILED_PRECONDITION"})
_BATCH: Final = 256  # rows encoded together


class Statements:
    """The statements of one request, in the transaction that it selected."""

    def __init__(self, served: OpenDatabase, selected: Selected) -> None:
        self._served = served
        self._selected = selected

    async def run(self, request: Any, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield the messages of a query or a DML statement. StoreError."""
        if request.query_mode != 0:
            raise unsupported("a query mode other than NORMAL")
        statement = parse(request.sql)
        if isinstance(statement, ast.Select):
            async for message in self._query(statement, request, chunk_bytes):
                yield message
            return
        for message in await self._dml(statement, request, request.seqno):
            yield message

    async def dml(self, statement: Any, seqno: int | None) -> Any:
        """Return the ResultSet of one statement of a batch. StoreError."""
        parsed = parse(statement.sql)
        if isinstance(parsed, ast.Select):
            raise invalid("Only DML statements are allowed in a batch.")
        (message,) = await self._dml(parsed, statement, seqno)
        part = PartialResultSet.FromString(message)
        result = ResultSet(metadata=part.metadata, stats=part.stats)
        width = len(part.metadata.row_type.fields)
        for start in range(0, len(part.values), width or 1):
            result.rows.add().values.extend(part.values[start : start + width])
        return result

    def _context(self, request: Any, now: int) -> Context:
        return Context(Params(request.params.fields, request.param_types), text_of_us(now))

    # -- queries

    async def _query(self, select: ast.Select, request: Any, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        database, selected = self._served.database, self._selected
        at, now, skip = selected.at, max(selected.at, database.safe()), 0
        if request.resume_token:
            at, now, skip = _parse_token(request.resume_token)
            if selected.transaction is None:
                database.check_resumed(at)
        query = Query(View(database, at, selected.transaction), select, self._context(request, now))
        encoders = [encoder(type_) for _, type_ in query.fields]
        head = wire.metadata(metadata(query.fields, selected.begun))
        batch: list[Any] = []
        parts: list[bytes] = []
        size, sent = 0, 0
        for row in query.rows():
            if row is None:
                await asyncio.sleep(0)  # others' turn
                continue
            sent += 1
            if sent <= skip:
                continue
            batch.append(row)
            if len(batch) == _BATCH:
                parts.append(encode_rows(encoders, batch))
                size += len(parts[-1])
                batch.clear()
                if size >= chunk_bytes:
                    yield b"".join((head, *parts, wire.resume_token(_TOKEN.pack(b"q", at, now, sent))))
                    head, size = b"", 0
                    parts.clear()
                    await asyncio.sleep(0)
        parts.append(encode_rows(encoders, batch) if batch else b"")
        yield b"".join((head, *parts, wire.resume_token(_TOKEN.pack(b"q", at, now, sent))))

    # -- DML

    async def _dml(self, statement: Any, request: Any, seqno: int | None) -> list[bytes]:
        transaction = self._selected.transaction
        if transaction is None:
            if request_is_single_use(request):
                raise invalid("DML statements may not be performed in single-use transactions, to avoid replay.")
            raise precondition(
                "DML statements can only be performed in a read-write or partitioned-dml transaction."
            )
        if seqno and seqno in transaction.results:
            return transaction.results[seqno]
        if transaction.partitioned and (isinstance(statement, ast.Insert) or statement.returning):
            raise invalid("Partitioned DML only supports UPDATE and DELETE without THEN RETURN.")
        database = self._served.database
        view = View(database, transaction.at, transaction)
        result = None
        transaction.workspace.begin_statement()
        try:
            for step in Change(view, statement, self._context(request, max(transaction.at, database.safe()))).run():
                if isinstance(step, Result):
                    result = step
                else:
                    await asyncio.sleep(0)  # others' turn
        except StoreError as error:
            transaction.workspace.undo_statement()
            if error.code in _CONSTRAINTS:
                transaction.broken = StoreError(error.code, error.text)
            raise
        assert result is not None
        if transaction.partitioned:
            self._served.transactions.commit(transaction, lambda _workspace, _at: None, "")
            stats = Stats(row_count_lower_bound=result.changed)
        else:
            stats = Stats(row_count_exact=result.changed)
        encoders = [encoder(type_) for _, type_ in result.fields]
        message = (
            wire.metadata(metadata(result.fields, self._selected.begun))
            + (encode_rows(encoders, result.rows) if result.rows else b"")
            + wire.stats(stats.SerializeToString())
            + wire.resume_token(_TOKEN.pack(b"d", 0, 0, seqno or 0))
        )
        if seqno:
            transaction.results[seqno] = [message]
        return [message]


def request_is_single_use(request: Any) -> bool:
    """Tell whether a request has no transaction beyond itself."""
    return request.transaction.WhichOneof("selector") in {None, "single_use"}


def _parse_token(token: bytes) -> tuple[int, int, int]:
    if len(token) != _TOKEN.size or token[:1] != b"q":
        raise invalid("Invalid resume_token.")
    _, at, now, sent = _TOKEN.unpack(token)
    return at, now, sent
