"""`router store status`: the store as a reader sees it."""

import asyncio
from contextlib import aclosing

import pytest

from router.config.client import StoreClient
from router.config.errors import StoreError, StoreUnavailableError
from router.config.inspection import inspect
from router.config.lease import renew
from router.config.reaper import Reaper
from router.config.schema import CLIENT_VERSION
from router.config.target import Target
from router.config.timestamps import parse_timestamp, to_micros
from router.config.wire import Child


async def test_what_is_told(store):
    found = await inspect(store.target)
    assert (found["schema"], found["partitions"], found["readers"], found["nodes"]) == (CLIENT_VERSION, 1, 0, 0)
    assert found["reaper"] is None
    assert found["rows"]["Meta"] == 2  # the schema, and the key of session tokens
    assert parse_timestamp(found["watermark"]) <= parse_timestamp(found["now"])
    assert found["staleness_s"] < 1


async def test_readers_nodes_and_who_reaps(store):
    async with store.writer() as writer:
        await renew(writer, "n", "here")
        await Reaper(store.target, "me").turn(writer)
    client = StoreClient(store.target)
    await client.open_session()
    now_us = to_micros(await client.read_time())
    tokens = []
    async with aclosing(client.changes(now_us, None, 1_000)) as stream:
        async for records in stream:
            tokens += [record.token for record in records if isinstance(record, Child)]
    async with aclosing(client.changes(now_us, tokens[0], 100)) as stream:
        await anext(stream)
        found = await inspect(store.target)
    await client.close()
    assert (found["readers"], found["nodes"], found["lapsed_nodes"], found["reaper"]) == (1, 1, 0, "me")


async def test_a_store_that_is_away_or_has_no_schema_is_named(store, tmp_path):
    with pytest.raises(StoreUnavailableError, match="router store"):
        await inspect(Target("embedded", f"unix:{tmp_path}/none"))
    other = Target(store.target.kind, store.target.address, "projects/a/instances/b/databases/other")
    with pytest.raises(StoreError, match="router store init"):
        async with asyncio.timeout(10):
            await inspect(other)
