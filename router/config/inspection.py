"""What `router store status` tells: the store as a reader of it sees it, asked once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from time import perf_counter
from typing import TYPE_CHECKING, Any

from router.config.agent import SchemaError, check_schema
from router.config.client import RpcError, Status, StoreClient
from router.config.duty import AUTOSCALER, REAPER, read_duty
from router.config.errors import StoreError
from router.config.schema import SCHEMA_KEY, STREAMED, streamed
from router.config.timestamps import format_timestamp, parse_timestamp, to_micros
from router.config.wire import Child, DataRecord, Heartbeat
from router.config.writer import in_words

if TYPE_CHECKING:
    from router.config.target import Target
    from router.config.wire import Key, Row

HEARTBEAT_MS = 100
PARTITION_S = 3.0
READERS_SQL = "SELECT SUM(READERS) FROM SPANNER_SYS.CHANGE_STREAM_READERS"
"""Of the embedded store alone."""


async def inspect(target: Target) -> dict[str, Any]:
    """Return what is to be known; StoreError if the store does not answer or is not ours."""
    client = StoreClient(target)
    try:
        with in_words(target):
            await client.open_session()
            return await _inspect(client, target)
    finally:
        await client.close()


async def _inspect(client: StoreClient, target: Target) -> dict[str, Any]:
    began_s = perf_counter()
    at = await client.read_time()
    answered_s = perf_counter() - began_s
    meta: dict[Key, Row] = {}
    async with aclosing(client.read_table(STREAMED[0], at)) as blocks:
        async for block in blocks:
            meta.update(block)
    try:
        schema = check_schema(meta.get((SCHEMA_KEY,)))
    except SchemaError as refusal:
        raise StoreError(f"{target}: {refusal}") from None
    now_us = to_micros(at)
    positions = await _positions(client, now_us)
    watermark_us = min(positions.values(), default=now_us)
    rows = {}
    for table in streamed(schema.version):
        counted, _ = await client.execute(f"SELECT COUNT(*) FROM {table.name}")  # noqa: S608 - names of ours
        rows[table.name] = int(counted[0][0])
    nodes, _ = await client.execute("SELECT LeaseExpiresAt FROM Nodes")
    lapsed = sum(parse_timestamp(expires) < now_us for (expires,) in nodes)
    later_us = to_micros(await client.read_time())
    return {
        "store": str(target),
        "database": target.database,
        "schema": schema.version,
        "identity": schema.identity,
        "answered_ms": round(answered_s * 1e3, 2),
        "now": format_timestamp(later_us),
        "watermark": format_timestamp(watermark_us),
        "staleness_s": round(max(0, now_us - watermark_us) / 1e6, 3),
        "partitions": len(positions),
        "readers": await _readers(client),
        "rows": rows,
        "nodes": len(nodes),
        "lapsed_nodes": lapsed,
        "reaper": _on_duty(meta, REAPER, now_us),
        "autoscaler": _on_duty(meta, AUTOSCALER, now_us),
    }


def _on_duty(meta: dict[Key, Row], key: str, now_us: int) -> str | None:
    duty = read_duty((meta.get((key,)) or (None,))[0])
    return duty.owner if duty is not None and duty.until_us > now_us else None


async def _positions(client: StoreClient, start_us: int) -> dict[str, int]:
    """Follow every partition until its first heartbeat; one that says nothing is where it started."""
    positions: dict[str, int] = {}
    async with aclosing(client.changes(start_us, None, HEARTBEAT_MS)) as stream:
        async for records in stream:
            positions.update({record.token: start_us for record in records if isinstance(record, Child)})

    async def follow(token: str) -> None:
        async with aclosing(client.changes(start_us, token, HEARTBEAT_MS)) as stream:
            async for records in stream:
                for record in records:
                    if isinstance(record, Heartbeat):
                        positions[token] = record.at_us
                        return
                    if isinstance(record, DataRecord):
                        positions[token] = record.commit_us

    try:
        async with asyncio.timeout(PARTITION_S):
            await asyncio.gather(*map(follow, positions))
    except TimeoutError:
        pass
    return positions


async def _readers(client: StoreClient) -> int | None:
    """Return how many readers follow the stream, or None where the store does not tell."""
    try:
        rows, _ = await client.execute(READERS_SQL)
    except RpcError as failure:
        if failure.code() in (Status.INVALID_ARGUMENT, Status.NOT_FOUND, Status.UNIMPLEMENTED):
            return None
        raise
    return int(rows[0][0] or 0)
