"""Which snapshot a request reads, from its TransactionSelector."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from router.config.embedded.errors import StoreError, invalid, precondition
from router.config.embedded.limits import MAX_DEADLINE_S
from router.config.embedded.messages import Transaction, timestamp, us_of
from router.config.embedded.timestamps import US_PER_S, wire_of_us
from router.config.embedded.transactions import ReadWrite, read_only_at, read_only_id

if TYPE_CHECKING:
    from router.config.embedded.registry import OpenDatabase

_YEAR_1_S, _YEAR_10000_S = -62_135_596_800, 253_402_300_800
_POLL_S = 0.005  # while a follower's watermark is behind the timestamp asked for


class Selected(NamedTuple):
    """`transaction` is a read-write one; `begun` is the message that tells of a transaction or its timestamp."""

    at: int
    transaction: ReadWrite | None = None
    begun: Any = None


async def select(served: OpenDatabase, selector: Any) -> Selected:
    """Return what to read, after waiting for a timestamp that lies ahead. Raises StoreError."""
    kind = selector.WhichOneof("selector")
    if kind is None:
        return Selected(served.database.safe())
    if kind == "id":
        return _known(served, selector.id)
    options = getattr(selector, kind)
    if options.WhichOneof("mode") in {"read_write", "partitioned_dml"}:
        if kind == "single_use":
            raise invalid("DML statements may not be performed in single-use transactions, to avoid replay.")
        transaction = begin_read_write(served, options)
        return Selected(transaction.at, transaction, Transaction(id=transaction.id))
    at = await _bounded(served, options.read_only, single_use=kind == "single_use")
    if kind == "begin":
        message = Transaction(id=read_only_id(at))
        if options.read_only.return_read_timestamp:
            message.read_timestamp.CopyFrom(timestamp(at))
        return Selected(at, None, message)
    begun = Transaction(read_timestamp=timestamp(at)) if options.read_only.return_read_timestamp else None
    return Selected(at, None, begun)


def begin_read_write(served: OpenDatabase, options: Any) -> ReadWrite:
    """Open a read-write transaction or one for partitioned DML."""
    if served.database.upstream is not None:
        raise precondition(f"this store follows {served.database.upstream}: transactions are to be sent there")
    transaction = served.transactions.begin(silent=options.exclude_txn_from_change_streams)
    transaction.partitioned = options.WhichOneof("mode") == "partitioned_dml"
    return transaction


async def begin(served: OpenDatabase, options: Any) -> Any:
    """Return the Transaction message of BeginTransaction."""
    mode = options.WhichOneof("mode")
    if mode is None:
        raise invalid("TransactionOptions must specify a transaction mode")
    if mode in {"read_write", "partitioned_dml"}:
        return Transaction(id=begin_read_write(served, options).id)
    at = await _bounded(served, options.read_only, single_use=False)
    message = Transaction(id=read_only_id(at))
    if options.read_only.return_read_timestamp:
        message.read_timestamp.CopyFrom(timestamp(at))
    return message


def _known(served: OpenDatabase, id_: bytes) -> Selected:
    at = read_only_at(id_)
    if at is None:
        transaction = served.transactions.get(id_)
        return Selected(transaction.at, transaction)
    if not 0 < at <= served.database.safe():
        raise invalid("Transaction id is not valid")
    served.database.check_readable(at)
    return Selected(at)


async def _bounded(served: OpenDatabase, read_only: Any, *, single_use: bool) -> int:
    database = served.database
    bound = read_only.WhichOneof("timestamp_bound")
    if bound in {"min_read_timestamp", "max_staleness"} and not single_use:
        raise invalid("min_read_timestamp and max_staleness are only allowed in single-use transactions")
    now = database.safe()
    if bound == "read_timestamp":
        at = _moment(read_only.read_timestamp)
    elif bound == "exact_staleness":
        at = max(0, now - _staleness(read_only.exact_staleness))
    elif bound == "min_read_timestamp":
        at = max(now, _moment(read_only.min_read_timestamp))
    elif bound == "max_staleness":
        _staleness(read_only.max_staleness)
        at = now
    else:
        at = now
    database.check_readable(at)
    if at > now:
        if at - now > MAX_DEADLINE_S * US_PER_S:
            raise StoreError(
                "DEADLINE_EXCEEDED",
                f"Read-only transaction timestamp {wire_of_us(at)} is more than 1 hour in future.",
            )
        await wait_until(served, at)
    return at


def _moment(message: Any) -> int:
    if not _YEAR_1_S <= message.seconds < _YEAR_10000_S:
        raise invalid("Invalid timestamp: it must lie in the years 1 to 9999")
    return us_of(message)


def _staleness(duration: Any) -> int:
    staleness = us_of(duration)
    if staleness < 0:
        raise invalid("Staleness must be non-negative")
    return staleness


async def wait_until(served: OpenDatabase, at: int) -> None:
    """Return when `at` is history."""
    while (now := served.database.safe()) < at:
        if served.database.upstream is not None:
            await asyncio.sleep(_POLL_S)
        else:
            await asyncio.sleep(min((at - now) / US_PER_S, 1.0))
