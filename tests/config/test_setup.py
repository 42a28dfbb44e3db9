"""`router store init`: what is missing is made, and repeating it does no harm."""

import asyncio
import json

import pytest
from configkit import put_endpoint, put_meta, put_replica, snapshot

from router.config.errors import StoreError, StoreUnavailableError
from router.config.schema import (
    BY_NAME,
    CLIENT_VERSION,
    MIGRATIONS,
    SCHEMA_KEY,
    SESSION_KEY,
    STREAMED,
    STREAMED_VERSION,
)
from router.config.setup import initialise, reach
from router.config.target import Target


async def init(store, *arguments, **named):
    return await asyncio.to_thread(initialise, store.target, *arguments, **named)


async def schema(store):
    return json.loads((await snapshot(store.target))["Meta"][(SCHEMA_KEY,)][0])


async def test_it_makes_instance_database_and_schema(make_store):
    store = await make_store(init=False)
    said = []
    assert await init(store, said.append) == len(MIGRATIONS)
    assert len(said) == 2 + len(MIGRATIONS)
    found = await schema(store)
    assert (found["version"], found["oldest_client"]) == (len(MIGRATIONS), STREAMED_VERSION)
    assert len(MIGRATIONS) == CLIENT_VERSION
    assert len(found["identity"]) == 32


async def test_the_stores_of_the_other_tests_have_what_it_makes(store, make_store):
    real = await make_store("real", init=False)
    await init(real)
    assert real.database.storage.ddl() and store.database.storage.ddl()
    assert [text for _, text in real.database.storage.ddl()] == [text for _, text in store.database.storage.ddl()]
    kinds = [{name: type(value) for name, value in (await schema(one)).items()} for one in (real, store)]
    assert kinds[0] == kinds[1]


async def test_repeating_it_does_no_harm(store):
    await store.write(put_endpoint("e"))
    before = await snapshot(store.target)
    said = []
    assert await init(store, said.append) == len(MIGRATIONS)
    assert said == []
    assert await snapshot(store.target) == before


async def test_two_at_once_make_one(make_store):
    store = await make_store(init=False)
    found = await asyncio.gather(init(store), init(store), return_exceptions=True)
    assert len(MIGRATIONS) in found
    assert all(f == len(MIGRATIONS) or isinstance(f, StoreError) for f in found), found
    assert await init(store) == len(MIGRATIONS)


async def test_a_later_migration_is_made_once_and_keeps_the_identity(store):
    identity = (await schema(store))["identity"]
    later = (*MIGRATIONS, ("ALTER TABLE Regions ADD COLUMN Notes STRING(64)",))
    assert await init(store, migrations=later) == len(later)
    assert await init(store, migrations=later) == len(later)
    found = await schema(store)
    assert (found["version"], found["identity"]) == (len(later), identity)
    assert found["oldest_client"] <= CLIENT_VERSION


async def test_a_newer_schema_is_left_as_it_is(store):
    later = (*MIGRATIONS, ("ALTER TABLE Regions ADD COLUMN Notes STRING(64)",))
    assert await init(store, migrations=later) == len(later)
    before = await snapshot(store.target)
    said = []
    assert await init(store, said.append) == len(later)
    assert "newer" in said[0]
    assert await snapshot(store.target) == before


async def test_the_oldest_client_that_somebody_set_is_kept(store):
    """An operator (or a later migration) locks old clients out; an init by hand must not let them in again."""
    found = await schema(store)
    await store.write(put_meta(SCHEMA_KEY, found | {"oldest_client": 99}))
    await init(store)
    assert (await schema(store))["oldest_client"] == 99


async def test_an_init_that_broke_off_before_it_said_so_is_finished(store):
    await store.write(("delete", "Meta", (SCHEMA_KEY,)))
    assert await init(store) == len(MIGRATIONS)
    assert (await schema(store))["version"] == len(MIGRATIONS)


async def test_a_migration_that_broke_off_before_it_said_so_is_finished(store):
    found = await schema(store)
    await store.write(put_meta(SCHEMA_KEY, found | {"version": 1}))
    assert await init(store) == len(MIGRATIONS)
    assert (await schema(store))["version"] == len(MIGRATIONS)


async def test_a_store_of_schema_1_is_migrated_and_keeps_its_rows(make_store):
    store = await make_store(init=False)
    assert await init(store, migrations=MIGRATIONS[:1]) == 1
    await store.write(put_endpoint("e"), put_replica("e", "r"))
    before = await snapshot(store.target, schema=1)
    assert await init(store) == len(MIGRATIONS)
    after = await snapshot(store.target)
    assert {name: after[name] for name in ("Endpoints", "Replicas")} == {
        name: before[name] for name in ("Endpoints", "Replicas")
    }
    async with store.writer() as writer:
        assert await writer.query("SELECT * FROM Demand") == await writer.query("SELECT * FROM Sessions") == []
    assert after["Meta"].keys() == {(SCHEMA_KEY,), (SESSION_KEY,)}
    streamed = store.database.catalog.streams["routerstream"]
    assert "demand" not in {name.lower() for name in streamed.tables}
    assert "sessions" in {name.lower() for name in streamed.tables}


async def test_a_schema_that_is_half_made_is_named(make_store):
    store = await make_store(init=False)
    with pytest.raises(StoreError):
        await init(store, migrations=((MIGRATIONS[0][0], "CREATE INDEX Broken ON Nowhere(X)"),))
    with pytest.raises(StoreError, match="half made"):
        await init(store)


async def test_a_store_that_is_not_there_is_named_soon(folder):
    target = Target("embedded", f"unix:{folder}/nobody")
    with pytest.raises(StoreUnavailableError, match="router store"):
        await asyncio.to_thread(reach, target, 0.3)


async def test_every_streamed_table_is_in_the_schema_with_the_columns_that_are_read(store):
    catalog = store.database.catalog
    for table in STREAMED:
        known = catalog.table(table.name)
        assert set(table.all_columns) <= {column.name for column in known.columns.values()}
        assert [part.name for part in known.key] == list(table.keys)
        assert BY_NAME[table.name] is table
    stream = catalog.streams["routerstream"]
    assert stream.retention_s == 7 * 86_400
