"""Publishing demand: what changed is written, a store that is away is neither waited for nor flooded."""

import asyncio
import logging

import pytest
from configkit import poll
from hypothesis import given
from hypothesis import strategies as st

from router.config import demand as module
from router.config.demand import BEAT_S, IDLE_BEAT_S, DemandPublisher, make_publisher
from router.config.embedded.hooks import Cut
from router.config.schema import MIGRATIONS
from router.config.settings import Settings
from router.config.setup import initialise
from router.demand import EndpointDemand


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "PERIOD_S", 0.02)


class Source:
    """What a daemon would say."""

    def __init__(self, **demand):
        self.demand = demand
        self.asked = 0

    async def read(self):
        self.asked += 1
        return dict(self.demand)


@pytest.fixture
async def publish(quick):
    publishers = []

    def start(store, source, name="me", region="eu"):
        publishers.append(DemandPublisher(store.target, name, region, source.read))
        publishers[-1].start()
        return publishers[-1]

    yield start
    for publisher in publishers:
        await publisher.close()


async def rows(store):
    async with store.writer() as writer:
        found = await writer.query(
            "SELECT EndpointId, RouterId, InFlight, Arrivals, Unserved, Waiting, Sessions, RegionId FROM Demand"
        )
    return {(e, r): (*map(int, counts), region) for e, r, *counts, region in found}


async def has(store, expected):
    async def same():
        return await rows(store) == expected

    await poll(same)


async def test_what_is_asked_for_is_in_the_store_and_gone_after_a_clean_stop(store, publish):
    source = Source(e=EndpointDemand(2, 5, 1, 3, 4))
    publisher = publish(store, source)
    other = publish(store, Source(e=EndpointDemand(0, 1)), "other", "")
    await has(store, {("e", "me"): (2, 5, 1, 3, 4, "eu"), ("e", "other"): (0, 1, 0, 0, 0, "")})
    source.demand["f"] = EndpointDemand(1, 1)
    await has(store, {
        ("e", "me"): (2, 5, 1, 3, 4, "eu"), ("f", "me"): (1, 1, 0, 0, 0, "eu"), ("e", "other"): (0, 1, 0, 0, 0, ""),
    })  # fmt: skip
    del source.demand["e"]  # its endpoint was deleted
    await has(store, {("f", "me"): (1, 1, 0, 0, 0, "eu"), ("e", "other"): (0, 1, 0, 0, 0, "")})
    await publisher.close()
    assert await rows(store) == {("e", "other"): (0, 1, 0, 0, 0, "")}
    await other.close()
    assert await rows(store) == {}


async def test_what_does_not_change_is_not_written(store, publish):
    source = Source(e=EndpointDemand(0, 5))
    publisher = publish(store, source)
    await has(store, {("e", "me"): (0, 5, 0, 0, 0, "eu")})
    asked = source.asked
    await poll(lambda: source.asked > asked + 5)
    assert publisher.status()["commits"] == 1


@pytest.mark.parametrize(("seen", "beat_s"), [(EndpointDemand(1, 5), BEAT_S), (EndpointDemand(0, 5), IDLE_BEAT_S)])
def test_a_row_is_written_again_before_it_would_be_ignored(seen, beat_s):
    publisher = DemandPublisher(None, "me", "", None)
    publisher._written["e"] = (seen, 100.0)
    assert not publisher._is_due("e", seen, 100.0 + beat_s)
    assert publisher._is_due("e", seen, 100.1 + beat_s)
    assert publisher._is_due("e", EndpointDemand(seen.in_flight, 6), 100.0)
    assert BEAT_S * 3 < 10  # what the autoscaler ignores
    assert IDLE_BEAT_S < 86_400 / 2  # what the store deletes


@given(st.integers(1, 50))
def test_of_too_many_rows_those_that_waited_longest_come_first(many):
    class Writer:
        async def write(self, mutations):
            written.extend(row[0] for row in mutations[0][3])

    async def turns():
        for _ in range(3):
            await publisher._turn(Writer())

    written = []
    source = Source(**{f"e{i}": EndpointDemand(1, 1) for i in range(many)})
    publisher = DemandPublisher(None, "me", "", source.read)
    limit, module.MAX_ROWS = module.MAX_ROWS, (many + 2) // 3
    try:
        asyncio.run(turns())
    finally:
        module.MAX_ROWS = limit
    assert set(written) == set(source.demand)


async def test_a_store_that_goes_away_and_comes_back(make_store, publish):
    store = await make_store(persistent=True)
    source = Source(e=EndpointDemand(1, 1))
    publisher = publish(store, source)
    await has(store, {("e", "me"): (1, 1, 0, 0, 0, "eu")})
    source.demand["idle"] = EndpointDemand(0, 4)
    await has(store, {("e", "me"): (1, 1, 0, 0, 0, "eu"), ("idle", "me"): (0, 4, 0, 0, 0, "eu")})
    await store.write(("delete", "Demand", ("idle", "me")))  # what comes back may be an older store
    await store.stop()
    source.demand["e"] = EndpointDemand(7, 9)
    await poll(lambda: publisher.status()["error"])
    await store.start(init=False)
    await has(store, {("e", "me"): (7, 9, 0, 0, 0, "eu"), ("idle", "me"): (0, 4, 0, 0, 0, "eu")})
    await poll(lambda: not publisher.status()["error"])


async def test_a_dead_store_is_not_flooded_and_does_not_hold_up_the_end(folder, publish):
    class Nowhere:
        target = Settings(store=f"embedded:{folder}/nobody")

    publisher = make_publisher(Nowhere.target, Source(e=EndpointDemand(1, 1)).read)
    publisher.start()
    began = asyncio.get_running_loop().time()
    await poll(lambda: publisher.status()["failures"] >= 4)
    # 0.05, 0.1, 0.2 s between them at the least, each a quarter less by chance
    assert asyncio.get_running_loop().time() - began > 0.2
    began = asyncio.get_running_loop().time()
    await publisher.close()
    assert asyncio.get_running_loop().time() - began < 1.0


async def test_a_commit_that_breaks_is_made_again(store, publish):
    store.hooks.cuts.append(Cut("Commit", count=3))
    publisher = publish(store, Source(e=EndpointDemand(1, 1)))
    await has(store, {("e", "me"): (1, 1, 0, 0, 0, "eu")})
    assert publisher.status()["failures"] == 3


async def test_a_store_at_schema_1_is_told_once_and_published_to_once_it_is_migrated(
    make_store, publish, monkeypatch, caplog
):
    monkeypatch.setattr(module, "OLD_SCHEMA_S", 0.05)
    store = await make_store(migrations=MIGRATIONS[:1])
    source = Source(e=EndpointDemand(1, 1))
    with caplog.at_level(logging.WARNING, "router.demand"):
        publisher = publish(store, source)
        await poll(lambda: "router store init" in publisher.status()["error"])
        caplog_count = len(caplog.records)
        await asyncio.to_thread(initialise, store.target)
        await has(store, {("e", "me"): (1, 1, 0, 0, 0, "eu")})
    assert caplog_count == len(caplog.records) == 1


async def test_a_source_that_fails_does_not_end_it(store, publish, caplog):
    source = Source(e=EndpointDemand(1, 1))
    good, broken = source.read, []

    async def read():
        if not broken:
            broken.append(1)
            raise RuntimeError("a bug")
        return await good()

    source.read = read
    publish(store, source)
    await has(store, {("e", "me"): (1, 1, 0, 0, 0, "eu")})
    assert "a bug" in caplog.text


def test_where_nothing_is_published(caplog):
    assert make_publisher(Settings(replica=["http://a:1"]), None) is None
    with caplog.at_level(logging.WARNING, "router.demand"):
        assert make_publisher(Settings(store="relay://h:1"), None) is None
    assert "--demand-store" in caplog.text
    assert make_publisher(Settings(store="relay://h:1", demand_store="emulator://h:1"), None) is not None
