"""Sticky sessions in a store: what is answered is kept, use by any router counts, and nobody's are reaped."""

import asyncio
import contextlib
import time
from types import SimpleNamespace

import pytest
from configkit import put_endpoint, put_replica

from router.config import sessions as module
from router.config.errors import StoreError
from router.config.schema import MIGRATIONS
from router.config.session_admin import end_session, rotate_key, sessions
from router.config.sessions import StoreSessions, reap_orphans
from router.errors import Kind
from router.routing.image import TableImage
from router.routing.spec import EndpointPatch, EndpointSpec, ReplicaSpec, SessionEntry, StickySpec, TablePatch
from router.session_book import SessionUse
from router.session_keeper import Begun


class Router:
    """A keeper, and the image that the stream would keep current."""

    def __init__(self, store, max_per_replica=2):
        self.image = TableImage()
        spec = EndpointSpec("e", sessions=StickySpec(max_per_replica=max_per_replica))
        self.image.apply(TablePatch(0, (EndpointPatch("e", spec, (ReplicaSpec("r", "http://h:1"),)),)))
        self.keeper = StoreSessions(self.image, store.target)
        self.keeper.run()

    def use(self, session_id, *, busy, idle_s=60):
        self.keeper.take(0, [SessionUse(session_id, "e", "r", idle_s, busy)])


@pytest.fixture
async def routers(store):
    await store.write(put_endpoint("e", policy={"sessions": {}}), put_replica("e", "r"))
    made = []

    def make(**options):
        made.append(Router(store, **options))
        return made[-1]

    yield make
    for router in made:
        await router.keeper.close()


async def rows(store):
    async with store.writer() as writer:
        found = await writer.query("SELECT SessionId, ReplicaId, State, IdleTimeoutS, LastUsedAt FROM Sessions")
    return {row[0]: SimpleNamespace(replica=row[1], state=row[2], idle_s=int(row[3]), used=row[4]) for row in found}


async def until(condition, seconds=8.0):
    ends = time.monotonic() + seconds
    while not (found := await condition()):
        assert time.monotonic() < ends
        await asyncio.sleep(0.03)
    return found


async def test_the_row_is_there_before_the_answer(routers, store):
    router = routers()
    session_id, at_s = await router.keeper.start("e", "r", 60)
    assert abs(at_s - time.time()) < 5, "by the store's clock"
    found = (await rows(store))[session_id]
    assert (found.replica, found.state, found.idle_s) == ("r", "OPEN", 60)
    assert await router.keeper.end(session_id) is None
    assert await rows(store) == {}
    assert router.keeper.status()["started"] == {"e": 1}
    assert router.keeper.status()["ended"] == [["e", "terminated", 1]]


async def test_no_more_than_there_is_room_for_also_before_the_stream_tells(routers):
    router = routers(max_per_replica=3)
    found = await asyncio.gather(*(router.keeper.start("e", "r", 60) for _ in range(10)))
    begun = [each for each in found if isinstance(each, Begun)]
    assert len(begun) == 3
    assert found.count(Kind.AT_CAPACITY) == 7
    await router.keeper.end(begun[0].id)
    assert isinstance(await router.keeper.start("e", "r", 60), Begun)


async def test_every_end_that_is_answered_is_one(routers, store, monkeypatch):
    monkeypatch.setattr(module, "MAX_UNWANTED", 2)
    router = routers(max_per_replica=10)
    begun = await asyncio.gather(*(router.keeper.start("e", "r", 60) for _ in range(6)))
    assert await asyncio.gather(*(router.keeper.end(each.id) for each in begun)) == [None] * 6
    assert await rows(store) == {}


async def test_several_routers_never_give_more_than_there_is_room_for(routers, store):
    fleet = [routers(max_per_replica=5) for _ in range(3)]
    found = await asyncio.gather(*(router.keeper.start("e", "r", 60) for router in fleet for _ in range(5)))
    assert sum(isinstance(each, Begun) for each in found) == len(await rows(store)) == 5
    assert found.count(Kind.AT_CAPACITY) == 10


async def test_a_replica_that_is_being_drained_gets_none(routers, store):
    router = routers()
    await store.write(put_replica("e", "r", state="DRAINING"))  # its image does not know yet
    assert await router.keeper.start("e", "r", 60) is Kind.NO_REPLICA
    assert await rows(store) == {}


async def test_who_is_idle_here_and_everywhere_ends_on_time(routers, store, monkeypatch):
    monkeypatch.setattr(module, "SLACK_S", 0.2)
    router = routers()
    session_id, _ = await router.keeper.start("e", "r", 1)
    router.use(session_id, busy=True, idle_s=1)
    await asyncio.sleep(1.6)
    assert session_id in await rows(store), "a request is under way"
    router.use(session_id, busy=False, idle_s=1)
    began_s = time.monotonic()

    async def is_gone():
        return session_id not in await rows(store)

    await until(is_gone)
    assert 0.9 < time.monotonic() - began_s < 3.0
    assert router.keeper.book.used == {}
    assert router.keeper.ended == {("e", "idle"): 1}


@pytest.mark.slow
async def test_use_at_another_router_counts(routers, store, monkeypatch):
    monkeypatch.setattr(module, "SLACK_S", 0.3)
    one, other = routers(), routers()
    session_id, _ = await one.keeper.start("e", "r", 2)
    ends = time.monotonic() + 4.0
    while time.monotonic() < ends:
        other.use(session_id, busy=True, idle_s=2)
        other.use(session_id, busy=False, idle_s=2)
        await asyncio.sleep(0.2)
    assert session_id in await rows(store)
    assert one.keeper.book.used == {}, "the first one leaves it to the other"

    async def is_gone():
        return session_id not in await rows(store)

    await until(is_gone)
    assert (one.keeper.ended, other.keeper.ended) == ({}, {("e", "idle"): 1})


async def test_use_does_not_bring_back_what_was_ended(routers, store):
    one, other = routers(), routers()
    session_id, _ = await one.keeper.start("e", "r", 3)
    other.use(session_id, busy=True, idle_s=3)
    await one.keeper.end(session_id)
    other.use(session_id, busy=False, idle_s=3)

    async def is_forgotten():
        return not other.keeper.book.used

    await until(is_forgotten)
    assert await rows(store) == {}


async def test_the_last_use_is_told_at_the_end(routers, store):
    router = routers()
    session_id, _ = await router.keeper.start("e", "r", 600)
    before = (await rows(store))[session_id].used
    await asyncio.sleep(0.4)
    router.use(session_id, busy=True, idle_s=600)
    router.use(session_id, busy=False, idle_s=600)
    await router.keeper.close()
    assert (await rows(store))[session_id].used > before


async def test_a_store_that_is_away_is_said_soon_and_nothing_is_left(routers, store, monkeypatch):
    monkeypatch.setattr(module, "STORE_LIMIT_S", 0.5)
    router = routers()
    session_id, _ = await router.keeper.start("e", "r", 60)
    await store.stop()
    began_s = time.monotonic()
    assert await router.keeper.start("e", "r", 60) is Kind.SESSION_UNAVAILABLE
    assert await router.keeper.end(session_id) is Kind.SESSION_UNAVAILABLE
    assert time.monotonic() - began_s < 4.0
    assert router.keeper.status()["error"]
    assert router.keeper._starts == {}


async def test_a_start_given_up_leaves_no_row(routers, store, monkeypatch):
    router = routers()
    await router.keeper.start("e", "r", 600)
    gate = asyncio.Event()
    real = module._begin

    async def slow(*asked):
        await gate.wait()
        return await real(*asked)

    monkeypatch.setattr(module, "_begin", slow)
    monkeypatch.setattr(module, "STORE_LIMIT_S", 0.2)
    assert await router.keeper.start("e", "r", 600) is Kind.SESSION_UNAVAILABLE
    gate.set()

    async def is_one():
        return len(await rows(store)) == 1 and not router.keeper._unwanted

    await until(is_one)


async def test_those_of_routers_that_are_gone(routers, store, monkeypatch):
    router = routers()
    kept, _ = await router.keeper.start("e", "r", 600)
    columns = ("SessionId", "EndpointId", "ReplicaId", "State", "IdleTimeoutS", "LastUsedAt", "UpdatedAt")
    old = "2020-01-01T00:00:00Z"
    async with store.writer() as writer:
        lost = [(f"s{i}", "e", "r", "OPEN", 60, old, "spanner.commit_timestamp()") for i in range(150)]
        await writer.write([("insert", "Sessions", columns, lost)])
        monkeypatch.setattr(module, "MAX_REAPS", 1)
        assert await reap_orphans(writer) == 100
        monkeypatch.setattr(module, "MAX_REAPS", 20)
        assert await reap_orphans(writer) == 50
        assert await reap_orphans(writer) == 0
    assert set(await rows(store)) == {kept}


async def test_a_store_of_an_older_schema(make_store):
    store = await make_store(init=False)
    await store._init(MIGRATIONS[:2])
    router = Router(store)
    try:
        assert await router.keeper.start("e", "r", 60) is Kind.SESSION_UNAVAILABLE
        assert "store init" in router.keeper.status()["error"]
        async with store.writer() as writer:
            with pytest.raises(StoreError, match="store init"):
                await sessions(writer)
    finally:
        await router.keeper.close()


async def test_what_operators_do(routers, store):
    router = routers()
    session_id, _ = await router.keeper.start("e", "r", 60)
    async with store.writer() as writer:
        (shown,) = await sessions(writer, "e")
        assert (shown["session"], shown["replica"], shown["idle_timeout_s"]) == (session_id, "r", 60)
        assert await sessions(writer, "other") == []
        await end_session(writer, session_id)
        assert await sessions(writer) == []
        with pytest.raises(StoreError, match="not there"):
            await end_session(writer, session_id)


async def test_a_new_key_verifies_everywhere_before_it_signs(store, make_agent):
    agent = await make_agent(store).start().until_connected()
    image = agent.image
    (first,) = image.session_keys
    async with store.writer() as writer:
        turning = asyncio.ensure_future(rotate_key(writer, 0.5))

        async def has_two():
            return len(image.session_keys) == 2

        await until(has_two)
        assert image.session_keys[0] == first
        second = image.session_keys[1]
        assert await turning == 2

        async def is_turned():
            return image.session_keys == (second, first)

        await until(is_turned)
        assert await rotate_key(writer, 0.0) == 2

    async def is_gone():
        return first not in image.session_keys

    await until(is_gone)


async def test_the_stream_tells_who_began_and_who_ended_and_not_who_was_used(routers, store, make_agent):
    agent = await make_agent(store).start().until_connected()
    router = routers()
    session_id, _ = await router.keeper.start("e", "r", 3)

    async def is_open():
        return session_id in agent.image.sessions

    await until(is_open)
    assert agent.image.sessions[session_id] == SessionEntry(session_id, "e", "r", 3)
    version = agent.image.version
    before = (await rows(store))[session_id].used
    router.use(session_id, busy=True, idle_s=3)

    async def is_told():
        return (await rows(store))[session_id].used > before

    await until(is_told)
    assert agent.image.version == version
    await router.keeper.end(session_id)

    async def is_over():
        return session_id not in agent.image.sessions

    await until(is_over)
    assert session_id in agent.image.ended_sessions


async def test_a_fleet_that_is_migrated_while_it_runs(make_store, make_agent):
    store = await make_store(init=False)
    await store._init(MIGRATIONS[:2])
    agent = await make_agent(store).start().until_connected()
    assert agent.image.session_keys == ()
    columns = ("SessionId", "EndpointId", "ReplicaId", "State", "IdleTimeoutS", "LastUsedAt", "UpdatedAt")
    commit = "spanner.commit_timestamp()"
    async with store.writer() as writer:
        await writer.write([("insert", "Sessions", columns, [("old", "e", "r", "OPEN", 600, commit, commit)])])
    from router.config.setup import initialise

    await asyncio.to_thread(initialise, store.target)

    async def has_key():
        return bool(agent.image.session_keys) and "old" in agent.image.sessions

    await until(has_key)
    await agent.close()
    with contextlib.suppress(StoreError):
        async with store.writer() as writer:
            await writer.write([("delete", "Sessions", (), [("old",)])])
    again = await make_agent(store).start().until_connected()  # from the checkpoint

    async def is_over():
        return "old" not in again.image.sessions and bool(again.image.session_keys)

    await until(is_over)
