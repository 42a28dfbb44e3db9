"""A relay: its readers see what the upstream has, in its order, with its timestamps, and never an empty table."""

import asyncio
import random
import time

import pytest
from configkit import Store, poll, put_endpoint, put_meta, put_replica, put_replicas, snapshot

from router.config import agent as agent_module
from router.config import relay as module
from router.config.embedded.hooks import Cut
from router.config.errors import StoreError
from router.config.relay import Relay


@pytest.fixture(autouse=True)
def quick_retry(monkeypatch):
    monkeypatch.setattr(module, "REFUSED_RETRY_S", 0.2)
    monkeypatch.setattr(agent_module, "REFUSED_RETRY_S", 0.2)


class RelayedStore(Store):
    """A store that follows another."""

    def __init__(self, folder, upstream, data=None):
        super().__init__(folder, data, kind="relay")
        self.upstream = upstream
        self.relay = None

    async def start(self, *, init=False):
        await super().start(init=False)
        self.relay = Relay(self.server, self.upstream.target)
        await self.relay.start()
        return self

    async def stop(self):
        if self.relay is not None:
            relay, self.relay = self.relay, None
            await relay.close()
        await super().stop()


@pytest.fixture
async def make_relay(folder):
    """`await make_relay(upstream, name="r", persistent=False)`; stopped before its upstream."""
    relays = []

    async def make(upstream, name="relay", *, persistent=False):
        place = folder / name
        place.mkdir(exist_ok=True)
        relay = RelayedStore(place, upstream, place / "data" if persistent else None)
        relays.append(relay)
        return await relay.start()

    yield make
    for relay in reversed(relays):
        await relay.stop()


@pytest.fixture
async def upstream(make_store):
    return await make_store("up", persistent=True)


async def reaches(relay, at_us, within_s=10.0):
    await poll(lambda: relay.database.safe() >= at_us, within_s)


async def same(relay, upstream):
    at = await upstream.write(put_meta("mark", str(random.random())))
    await reaches(relay, at)
    assert await snapshot(relay.target) == await snapshot(upstream.target)


async def test_readers_see_the_same_rows_at_the_same_times(upstream, make_relay, make_agent):
    await upstream.write(put_endpoint("e"), put_replicas("e", ("a", "b")))
    relay = await make_relay(upstream)
    direct = await make_agent(upstream, "direct").start().until_connected()
    behind = await make_agent(f"relay:{relay.address.removeprefix('unix:')}", "behind").start().until_connected()
    commits = [
        await upstream.write(put_replica("e", f"n{i}"), ("delete", "Replicas", ("e", f"n{i - 1}"))) for i in range(10)
    ]
    await poll(lambda: "n9" in direct.replicas() and "n9" in behind.replicas())
    assert direct.rows == behind.rows
    await same(relay, upstream)

    def told(agent):
        return [patch.committed_us for patch in agent.patches if patch.committed_us in commits]

    assert told(behind) == told(direct) == commits
    at_rest = {key: at for key, (at, _) in behind.agent._book.tables["Replicas"].items()}
    assert at_rest[("e", "n9")] == commits[9]


async def test_a_read_at_an_upstream_time_is_the_upstreams(upstream, make_relay):
    from google.protobuf.timestamp_pb2 import Timestamp

    relay = await make_relay(upstream)
    await same(relay, upstream)  # its history begins where it began
    commits = [await upstream.write(put_endpoint(f"e{i}")) for i in range(5)]
    await reaches(relay, commits[-1])
    for at_us in commits:
        at = Timestamp(seconds=at_us // 1_000_000, nanos=at_us % 1_000_000 * 1_000)
        assert await snapshot(relay.target, at) == await snapshot(upstream.target, at)


async def test_several_partitions_are_applied_in_the_order_of_commits(upstream, make_relay, make_agent):
    upstream.split()
    upstream.split(0)
    relay = await make_relay(upstream)
    agent = await make_agent(f"relay:{relay.address.removeprefix('unix:')}").start().until_connected()
    commits = []
    for i in range(60):
        commits.append(await upstream.write(put_endpoint(f"e{i % 9}", policy={"retries": i})))
        if i == 20:
            upstream.split(1)
        if i == 40:
            upstream.merge(0, 1)
    await reaches(relay, commits[-1])
    await agent.until_watermark(commits[-1])
    seen = [patch.committed_us for patch in agent.patches if patch.committed_us]
    assert seen == commits
    await same(relay, upstream)


@pytest.mark.parametrize("messages", [0, 1, 3])
async def test_streams_that_are_cut_lose_nothing(upstream, make_relay, messages):
    """Of one partition the records are there and wait for the others' heartbeats while its neighbour breaks."""
    upstream.split()
    relay = await make_relay(upstream)
    for i in range(40):
        await upstream.write(put_endpoint(f"e{i}"), put_replica(f"e{i}", "r"))
        if i % 8 == 4:
            upstream.hooks.cuts.append(Cut("ExecuteStreamingSql", count=3, messages=messages, change_stream=True))
    upstream.hooks.cuts.clear()
    await same(relay, upstream)


async def test_what_waits_for_the_watermark_survives_a_place_that_is_lost(upstream, make_relay):
    """Taken from one partition and not yet applied, when the stream is dropped and everything is read anew."""
    upstream.split()
    relay = await make_relay(upstream)
    await reaches(relay, await upstream.write(put_endpoint("e")))
    for i in range(30):
        await upstream.write(put_replica("e", f"r{i}"), put_endpoint(f"x{i}"))
    upstream.ddl("DROP CHANGE STREAM RouterStream")
    upstream.ddl(
        "CREATE CHANGE STREAM RouterStream FOR Meta, Regions, Endpoints, Replicas, RouteSets, Routes, Hosts, AuthTokens "
        "OPTIONS (retention_period='7d', value_capture_type='NEW_ROW')"
    )
    await same(relay, upstream)


@pytest.mark.parametrize("step", [("StreamingRead", 3), ("StreamingRead", 6), ("ExecuteStreamingSql", 0)], ids=str)
async def test_a_bootstrap_that_breaks_half_way_loses_no_row(upstream, make_relay, step):
    await upstream.write(put_endpoint("e"), put_replicas("e", [f"r{i}" for i in range(20)]))
    method, skip = step
    upstream.hooks.cuts.append(Cut(method, skip=skip))
    relay = await make_relay(upstream)
    await same(relay, upstream)


async def test_writes_and_schema_changes_are_refused_with_the_upstreams_name(upstream, make_relay):
    relay = await make_relay(upstream)
    await same(relay, upstream)
    async with relay.writer() as writer:
        with pytest.raises(StoreError, match="follows") as failure:
            await writer.put_endpoint("e", create=True)
    assert upstream.address in str(failure.value)
    with pytest.raises(Exception, match="follows"):
        relay.ddl("CREATE TABLE X (K STRING(8)) PRIMARY KEY (K)")
    await same(relay, upstream)


async def test_an_agent_behind_a_relay_that_is_replaced_never_sees_an_empty_table(upstream, make_relay, make_agent):
    await upstream.write(put_endpoint("e"), put_replicas("e", [f"r{i}" for i in range(12)]))
    relay = await make_relay(upstream)
    agent = await make_agent(f"relay:{relay.address.removeprefix('unix:')}").start().until_connected()
    await poll(lambda: len(agent.replicas()) == 12)
    since = len(agent.patches)
    await relay.stop()
    await upstream.write(put_replica("e", "meanwhile"), ("delete", "Replicas", ("e", "r0")))
    await relay.start()  # in memory: it begins with nothing
    await poll(lambda: "meanwhile" in agent.replicas(), 20)
    await poll(lambda: "r0" not in agent.replicas())
    assert min(agent.sizes[since:]) >= 12
    assert agent.moved(since) == []
    assert agent.status["held"] == 0
    await same(relay, upstream)


async def test_a_relay_that_is_restarted_goes_on_from_its_data(upstream, make_relay, make_agent):
    await upstream.write(put_endpoint("e"), put_replicas("e", [f"r{i}" for i in range(12)]))
    relay = await make_relay(upstream, persistent=True)
    await same(relay, upstream)
    agent = await make_agent(f"relay:{relay.address.removeprefix('unix:')}").start().until_connected()
    since = len(agent.patches)
    for turn in range(2):
        await relay.stop()
        await upstream.write(put_replica("e", f"new{turn}"), ("delete", "Replicas", ("e", f"r{turn}")))
        await relay.start()
        await poll(lambda turn=turn: f"new{turn}" in agent.replicas())
        await same(relay, upstream)
    await poll(lambda: not {"r0", "r1"} & agent.replicas())
    assert agent.moved(since) == []
    assert min(agent.sizes[since:]) >= 12


async def test_an_upstream_that_is_down_leaves_what_was_served(upstream, make_relay, make_agent):
    await upstream.write(put_endpoint("e"), put_replicas("e", ("a", "b")))
    relay = await make_relay(upstream, persistent=True)
    await same(relay, upstream)
    await upstream.stop()
    await poll(lambda: relay.relay.trouble)
    agent = await make_agent(f"relay:{relay.address.removeprefix('unix:')}").start().until_connected()
    assert agent.replicas() == {"a", "b"}
    await relay.stop()
    await relay.start()  # still down: what it has on disk is served
    await poll(lambda: agent.status["connected"])
    assert agent.replicas() == {"a", "b"}
    await upstream.start(init=False)
    await upstream.write(put_replica("e", "c"))
    await poll(lambda: "c" in agent.replicas())
    await same(relay, upstream)


async def test_an_agent_that_starts_on_a_relay_that_has_nothing_yet_gets_no_empty_table(make_store, make_relay, make_agent):
    """The upstream was never reached: there is nothing to serve, and a reader must not take that for a table."""
    upstream = await make_store("up", persistent=True)
    await upstream.write(put_endpoint("e"), put_replicas("e", ("a", "b")))
    await upstream.stop()
    relay = await make_relay(upstream)
    agent = make_agent(f"relay:{relay.address.removeprefix('unix:')}", store_start_timeout_s=0.0).start()
    await asyncio.sleep(0.5)
    assert not agent.status["has_table"]
    assert "router store init" not in agent.status["error"], "that is not what is wrong, nor would it work"
    await upstream.start(init=False)
    await poll(lambda: agent.replicas() == {"a", "b"}, 25)


async def test_an_upstream_whose_clock_is_an_hour_behind(make_store, make_relay):
    """The relay's own schema has timestamps of its own clock: they must not bar the upstream's."""
    from router.config.embedded import timestamps

    with pytest.MonkeyPatch.context() as patched:
        import types

        patched.setattr(timestamps, "time", types.SimpleNamespace(time_ns=lambda: time.time_ns() - 3_600 * 10**9))
        upstream = await make_store("up")
        upstream.database.clock._wall_us = lambda: time.time_ns() // 1_000 - 3_600_000_000
        await upstream.write(put_endpoint("e"))
    relay = await make_relay(upstream)
    await same(relay, upstream)
    await upstream.write(put_endpoint("f"))
    await same(relay, upstream)


async def test_data_of_another_upstream_is_refused(upstream, make_relay, make_store):
    relay = await make_relay(upstream, persistent=True)
    await same(relay, upstream)
    await relay.stop()
    relay.upstream = await make_store("other")
    with pytest.raises(StoreError, match="another --data"):
        await relay.start()


async def test_a_relay_behind_a_relay(upstream, make_relay):
    first = await make_relay(upstream, "one")
    second = await make_relay(first, "two")
    await upstream.write(put_endpoint("e"), put_replicas("e", ("a", "b")))
    await same(first, upstream)
    await same(second, upstream)


async def test_an_upstream_without_a_schema_is_named(make_store, make_relay):
    bare = await make_store("bare", init=False)
    relay = await make_relay(bare)
    await poll(lambda: relay.relay.trouble)
    assert "NOT_FOUND" in relay.relay.trouble or "router store init" in relay.relay.trouble


async def test_a_relay_asks_a_lost_upstream_patiently(upstream, make_relay):
    relay = await make_relay(upstream)
    await same(relay, upstream)
    upstream.hooks.cuts.append(Cut("ExecuteStreamingSql", count=10**9, change_stream=True, code="OUT_OF_RANGE"))
    upstream.ddl("DROP CHANGE STREAM RouterStream")
    await asyncio.sleep(0.3)
    before = sum(upstream.hooks.calls.values())
    await asyncio.sleep(1.5)
    assert sum(upstream.hooks.calls.values()) - before < 150  # 11 calls are one attempt


async def test_a_difference_of_many_slices_is_one_table(upstream, make_relay, make_agent, monkeypatch):
    monkeypatch.setattr(module, "SLICE", 10)
    await upstream.write(put_endpoint("e"), put_replicas("e", [f"r{i}" for i in range(95)]))
    relay = await make_relay(upstream)
    await same(relay, upstream)
    agent = await make_agent(f"relay:{relay.address.removeprefix('unix:')}").start().until_connected()
    assert len(agent.replicas()) == 95
