"""The agent against an embedded store that misbehaves: the table ends up right, and never goes wrong on the way."""

import asyncio
import contextlib
import random
import subprocess
import sys
import time as real_time
from time import monotonic
from types import SimpleNamespace

import pytest
from configkit import (
    Book,
    fresh,
    poll,
    put_endpoint,
    put_meta,
    put_replica,
    put_replicas,
    put_token,
    shape,
    snapshot,
)

from router.config import agent as module
from router.config import checkpoint
from router.config.agent import EXIT_NO_STORE, SchemaError, check_schema
from router.config.client import RpcError
from router.config.embedded.hooks import Cut, TestHooks
from router.config.embedded.limits import Settings as StoreSettings
from router.config.schema import STREAMED
from router.config.timestamps import parse_timestamp

FOREVER = 10**9
HOUR_S = 3_600.0


@pytest.fixture(autouse=True)
def quick_retry(monkeypatch):
    """What takes a person to mend is looked at again soon."""
    monkeypatch.setattr(module, "REFUSED_RETRY_S", 0.2)


async def filled(store, count=20, endpoint="e"):
    """An endpoint with replicas r0…; returns when they were committed."""
    return await store.write(
        put_endpoint(endpoint), put_replicas(endpoint, [f"r{i}" for i in range(count)])
    )  # fmt: skip


async def caught_up(agent, store):
    """Wait until the agent has what the store has; compare its table. A watermark would come a heartbeat later."""
    await store.write(put_meta("mark", str(random.random())))
    wanted = await snapshot(store.target)
    await poll(lambda: agent.rows == wanted, within_s=20)
    book = agent.agent._book
    assert shape(agent.image) == shape(fresh(book)[1])


def address_of(agent, replica, endpoint="e"):
    return agent.image.replicas[endpoint][replica].address


# -- bootstrap and follow ----------------------------------------------------------------------------------


async def test_it_reads_everything_and_follows(store, make_agent):
    at = await filled(store)
    agent = await make_agent(store).start().until_connected()
    assert len(agent.replicas()) == 20
    assert agent.status["source"] == "store"
    assert agent.status["bootstraps"] == 1
    assert parse_timestamp(agent.status["watermark"]) >= at
    at = await store.write(put_replica("e", "r0", address="10.0.0.9"), ("delete", "Replicas", ("e", "r1")))
    await poll(lambda: "r1" not in agent.replicas())
    assert address_of(agent, "r0") == "http://10.0.0.9:30000"
    assert agent.patches[-1].committed_us == at
    await caught_up(agent, store)


async def test_rows_of_records_and_of_reads_are_the_same(store, make_agent, folder):
    """JSON with blanks, numbers without a fraction, bytes, lists, nulls: a row is one value whichever way it came."""
    agent = await make_agent(store).start().until_connected()
    await store.write(
        put_endpoint("e", policy=' { "retries" : 1,\n "slow_start_s": 2.50 } ', health={"kind": "none"}),
        put_replica("e", "r", weight=2.0, capabilities='{"ü": [1, 1.0, 1e3, null, "\\u0041"], "a": {}}'),
        put_token("someone"),
        ("insert", "Regions", ("RegionId", "State", "Weight", "UpdatedAt"), ("eu", "READY", 1.0, "spanner.commit_timestamp()")),
    )
    await caught_up(agent, store)
    other = await make_agent(store, "other").start().until_connected()
    assert other.rows == agent.rows
    assert other.status["quarantined"] == 0


async def test_a_transaction_over_several_tables_comes_whole(store, make_agent):
    store.split()
    agent = await make_agent(store).start().until_connected()
    await poll(lambda: agent.status["partitions"] == 2)
    for i in range(30):
        await store.write(put_endpoint(f"e{i}"), put_replicas(f"e{i}", ("a", "b")), put_endpoint(f"f{i}"))
    await caught_up(agent, store)
    for patch in agent.patches:
        names = {change.name for change in patch.endpoints}
        assert {name[1:] for name in names if name[0] == "e"} == {name[1:] for name in names if name[0] == "f"}


@pytest.mark.parametrize("chunk_bytes", [1, 64])
async def test_rows_in_the_smallest_messages(store, make_agent, chunk_bytes):
    await filled(store, 5)
    await store.write(put_endpoint("f", policy={"retries": 3}), put_replica("f", "x", capabilities={"long": "ü" * 300}))
    store.hooks.chunk_bytes = chunk_bytes
    agent = await make_agent(store).start().until_connected()
    await caught_up(agent, store)
    assert agent.replicas() == {f"r{i}" for i in range(5)}


async def test_messages_of_many_megabytes(store, make_agent):
    wide = {"note": "x" * 900_000}
    await store.write(put_endpoint("e"), put_replicas("e", [f"r{i}" for i in range(6)], capabilities=wide))
    agent = await make_agent(store).start().until_connected()
    await store.write(put_replicas("e", [f"s{i}" for i in range(8)], capabilities=wide))
    await poll(lambda: len(agent.replicas()) == 14)
    assert agent.status["bootstraps"] == 1


async def test_a_large_table_is_put_in_force_in_slices(store, make_agent, monkeypatch):
    monkeypatch.setattr(module, "SLICE", 50)
    await filled(store, 400)
    agent = await make_agent(store).start().until_connected()
    assert len(agent.replicas()) == 400
    assert max(sum(len(change.upsert) for change in patch.endpoints) for patch in agent.patches) <= 50


async def test_the_clients_import_does_not_hold_the_loop():
    """Half a second of imports, in which a checkpoint is served already: beside the loop."""
    code = (
        "import asyncio, sys, threading, tempfile\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'grpc': print('main' if threading.current_thread() is threading.main_thread() else 'beside')\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from router.config.agent import ConfigAgent\n"
        "from router.config.settings import Settings\n"
        "async def main():\n"
        "    with tempfile.TemporaryDirectory() as folder:\n"
        "        agent = ConfigAgent(Settings(store=f'embedded:{folder}/s', state_dir=folder), print, print)\n"
        "        agent.start()\n"
        "        while not agent.status()['error']: await asyncio.sleep(0.01)\n"
        "        await agent.close()\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "beside\n", done


# -- breaks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 5)), 2, 3])
async def test_a_stream_that_is_cut_again_and_again_loses_and_repeats_nothing(store, make_agent, messages):
    await filled(store, 3)
    agent = await make_agent(store).start().until_connected()
    since = len(agent.patches)
    store.hooks.cuts.append(Cut("ExecuteStreamingSql", count=6, messages=messages, change_stream=True))
    await store.stop()  # the stream under way ends, those to come are cut
    await store.start()
    await store.write(put_endpoint("e"), put_replicas("e", ("r0", "r1", "r2")))
    for i in range(25):
        await store.write(put_replica("e", f"n{i}"), put_replica("e", "r0", address=f"10.1.0.{i + 1}"))
        await asyncio.sleep(0)
    at = await store.write(put_meta("mark", "1"))
    await agent.until_watermark(at, 30)
    assert agent.rows == await snapshot(store.target)
    assert agent.replicas() == {"r0", "r1", "r2", *(f"n{i}" for i in range(25))}
    moves = [r.address for patch in agent.patches[since:] for c in patch.endpoints for r in c.upsert if r.id == "r0"]
    assert len(moves) == len(set(moves)), "a change came into force twice"


@pytest.mark.slow
@pytest.mark.parametrize("messages", [1, 2, 4])
async def test_a_cut_keeps_the_place(make_store, make_agent, messages):
    """On one server: no snapshot is read again, and each change comes into force once."""
    store = await make_store(persistent=True)
    await filled(store, 3)
    agent = await make_agent(store).start().until_connected()
    await store.stop()
    store.hooks.cuts.append(Cut("ExecuteStreamingSql", count=8, messages=messages, change_stream=True))
    await store.start(init=False)
    since = len(agent.patches)
    for i in range(25):
        await store.write(put_replica("e", f"n{i}"))
    await caught_up(agent, store)
    assert agent.status["bootstraps"] == 1
    assert [r.id for p in agent.patches[since:] for c in p.endpoints for r in c.upsert] == [f"n{i}" for i in range(25)]
    assert agent.status["restarts"] >= 1 or not store.hooks.cuts


async def test_a_silent_stream_is_noticed_within_three_heartbeats(store, make_agent):
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    store.hooks.silent_streams = True
    began = monotonic()
    await agent.until_error("said nothing", within_s=6)
    assert monotonic() - began < 3 * 1.0 + 1.2  # the last heartbeat may just have come
    assert len(agent.replicas()) == 20
    assert not agent.status["connected"]
    store.hooks.silent_streams = False
    await store.write(put_replica("e", "new"))
    await poll(lambda: "new" in agent.replicas())
    await agent.until_connected()


async def test_a_hung_store_is_noticed_within_three_heartbeats_and_comes_back(store, make_agent):
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    store.hooks.hang()
    began = monotonic()
    await agent.until_error("said nothing", within_s=6)
    assert monotonic() - began < 3 * 1.0 + 1.2
    assert len(agent.replicas()) == 20
    store.hooks.resume()
    await store.write(put_replica("e", "new"))
    await poll(lambda: "new" in agent.replicas())
    assert agent.status["bootstraps"] == 1


async def test_a_stream_that_ends_without_children_is_read_on(store, make_agent):
    await filled(store, 3)
    agent = await make_agent(store).start().until_connected()
    store.hooks.end_streams = True
    await store.write(put_replica("e", "lost"))
    await agent.until_error("without naming who takes over")
    store.hooks.end_streams = False
    await store.write(put_replica("e", "later"))
    await poll(lambda: {"lost", "later"} <= agent.replicas())
    assert agent.status["bootstraps"] == 1


BOOTSTRAP_STEPS = {
    **{table.name: ("StreamingRead", i + 1, 0) for i, table in enumerate(STREAMED)},
    "in the middle of the replicas": ("StreamingRead", 4, 1),
    "partitions": ("ExecuteStreamingSql", 0, 0),
    "after the first partition": ("ExecuteStreamingSql", 0, 1),
}


@pytest.mark.parametrize("step", BOOTSTRAP_STEPS)
async def test_a_bootstrap_that_breaks_half_way_loses_no_row(store, make_agent, step):
    method, skip, messages = BOOTSTRAP_STEPS[step]
    store.split()
    await filled(store, 20)
    store.hooks.chunk_bytes = 200
    store.hooks.cuts.append(Cut(method, skip=skip, messages=messages))
    agent = await make_agent(store).start().until_connected()
    assert not store.hooks.cuts
    assert len(agent.replicas()) == 20
    await caught_up(agent, store)


async def test_a_store_that_goes_and_comes_back_is_taken_up_where_it_was(make_store, make_agent):
    store = await make_store(persistent=True)
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    await store.stop()
    await poll(lambda: not agent.status["connected"])
    assert len(agent.replicas()) == 20
    await agent.until_error("UNAVAILABLE")  # the stream's own end may have been CANCELLED
    await store.start(init=False)
    await store.write(put_replica("e", "new"))
    await poll(lambda: "new" in agent.replicas())
    assert agent.status["bootstraps"] == 1
    assert agent.status["error"] == ""
    await caught_up(agent, store)


# -- partitions --------------------------------------------------------------------------------------------


async def test_splits_and_merges_under_load(store, make_agent):
    agent = await make_agent(store).start().until_connected()
    await store.write(*(put_endpoint(f"e{i}") for i in range(8)))
    for i in range(60):
        await store.write(put_replica(f"e{i % 8}", f"r{i}"), put_replica(f"e{(i + 3) % 8}", "common", port=str(i + 1)))
        if i % 12 == 3:
            store.split(random.randrange(len(store.tokens())))
        if i % 12 == 9 and len(store.tokens()) > 1:
            store.merge(0, 1)
    await caught_up(agent, store)
    await poll(lambda: agent.status["partitions"] == len(store.tokens()))
    assert agent.status["bootstraps"] == 1
    assert sum(len(agent.replicas(f"e{i}")) for i in range(8)) == 68


async def test_splits_and_merges_while_nobody_reads(make_store, make_agent):
    store = await make_store(persistent=True)
    await filled(store, 3)
    agent = await make_agent(store).start().until_connected()
    await agent.close()
    for i in range(6):
        store.split(i % len(store.tokens()))
        await store.write(put_replica("e", f"n{i}"))
        if i % 3 == 2:
            store.merge()
            await store.write(put_replica("e", f"m{i}"))
    again = await make_agent(store).start().until_connected()
    await caught_up(again, store)
    assert again.status["bootstraps"] == 0


# -- the watermark -----------------------------------------------------------------------------------------


async def watermark_holds(store, agent, failures):
    """Compare what the agent has at its watermark with a read at that very time."""
    from google.protobuf.timestamp_pb2 import Timestamp

    inner = agent.agent
    at_us = inner._watermark.read(inner._transactions.oldest_us())
    mine = {name: dict(rows) for name, rows in inner._book.tables.items()}
    at = Timestamp(seconds=at_us // 1_000_000, nanos=at_us % 1_000_000 * 1_000)
    try:
        there = await snapshot(store.target, at)
    except RpcError:
        return False  # the store is away: nothing to compare with
    for name, rows in mine.items():
        wanted = there.get(name, {})
        for key in rows.keys() | wanted.keys():
            commit_us, row = rows.get(key, (0, None))
            if commit_us <= at_us and row != wanted.get(key):
                failures.append(f"{name}/{key} at {at_us}: {row} of {commit_us}, in the store {wanted.get(key)}")
    return True


async def churn(store, rng, until_s, faults):
    """Random transactions, and faults among them."""
    while monotonic() < until_s:
        writes, touched = [], set()
        for _ in range(rng.randint(1, 4)):
            name, other = f"e{rng.randrange(4)}", f"r{rng.randrange(4)}"
            if (name, other) in touched or (name,) in touched:
                continue
            touched.add((name, other))
            kind = rng.random()
            if kind < 0.55:
                writes += [put_endpoint(name), put_replica(name, other, port=str(rng.randint(1, 65_535)))]
            elif kind < 0.8:
                writes.append(("delete", "Replicas", (name, other)))
            elif (name,) not in touched:
                touched.add((name,))
                writes.append(put_endpoint(name, policy={"retries": rng.randrange(5)}))
        if rng.random() < 0.06:
            writes = [("delete", "Endpoints", (f"e{rng.randrange(4)}",))]
        with contextlib.suppress(RpcError):
            if writes:
                await store.write(*writes)
        if rng.random() < 0.12:
            await faults(rng)
        await asyncio.sleep(rng.random() * 0.01)


async def check_watermark_property(make_store, make_agent, seed, seconds):
    rng = random.Random(seed)
    store = await make_store(persistent=True)
    agent = await make_agent(store, shrink_guard=0.0).start().until_connected()
    failures, checks = [], 0
    counts = {"restarts": 0}

    async def faults(rng):
        kind = rng.random()
        if kind < 0.3:
            store.split(rng.randrange(len(store.tokens())))
        elif kind < 0.6 and len(store.tokens()) > 1:
            low = rng.randrange(len(store.tokens()) - 1)
            store.merge(low, low + 1)
        elif kind < 0.9:
            store.hooks.cuts.append(
                Cut("ExecuteStreamingSql", messages=rng.randrange(4), count=rng.randint(1, 3), change_stream=True)
            )
        else:
            counts["restarts"] += 1
            await store.stop()
            await store.start(init=False)

    until_s = monotonic() + seconds
    churning = asyncio.ensure_future(churn(store, rng, until_s, faults))
    while not churning.done():
        checks += await watermark_holds(store, agent, failures)
        await asyncio.sleep(0.005)
    await churning
    store.hooks.cuts.clear()
    await caught_up(agent, store)
    assert not failures, (seed, failures[:3])
    assert checks > 1
    watermarks = agent.status["watermark"]
    assert watermarks is not None


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_what_is_known_at_the_watermark_is_what_the_store_had_then(make_store, make_agent, seed):
    await check_watermark_property(make_store, make_agent, seed, 1.5)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(10, 22))
async def test_what_is_known_at_the_watermark_over_many_seeds(make_store, make_agent, seed):
    await check_watermark_property(make_store, make_agent, seed, 8.0)


# -- a place that is lost ----------------------------------------------------------------------------------


async def check_difference(agent, store, change):
    """After `change`, which loses the place, the table takes the difference and nothing else."""
    since = len(agent.patches)
    before = len(agent.replicas())
    await change()
    await caught_up(agent, store)
    assert agent.moved(since) == []
    assert min(agent.sizes[since:], default=before) >= before - 1
    return since


async def test_a_stream_that_is_dropped_and_made_again(store, make_agent):
    await filled(store)
    agent = await make_agent(store).start().until_connected()

    async def change():
        store.ddl("DROP CHANGE STREAM RouterStream")
        await store.write(put_replica("e", "unseen"), ("delete", "Replicas", ("e", "r3")))
        store.ddl(
            "CREATE CHANGE STREAM RouterStream FOR Meta, Regions, Endpoints, Replicas, RouteSets, Routes, Hosts, AuthTokens "
            "OPTIONS (retention_period='7d', value_capture_type='NEW_ROW')"
        )

    since = await check_difference(agent, store, change)
    assert agent.replicas() == {"unseen", *(f"r{i}" for i in range(20) if i != 3)}
    named = {r.id for p in agent.patches[since:] for c in p.endpoints for r in c.upsert}
    assert named == {"unseen"}


async def test_a_stream_that_stays_away_is_named_and_asked_for_patiently(store, make_agent, monkeypatch):
    monkeypatch.setattr(module, "REFUSED_RETRY_S", 1.0)
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    store.ddl("DROP CHANGE STREAM RouterStream")
    await agent.until_error("RouterStream", within_s=5)
    before = store.hooks.calls.get("CreateSession", 0)
    await asyncio.sleep(2.0)
    assert store.hooks.calls.get("CreateSession", 0) - before <= 10
    assert len(agent.replicas()) == 20


async def test_retention_that_ran_out_is_a_difference(make_store, make_agent):
    store = await make_store(persistent=True)
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    await agent.close()
    await store.write(("delete", "Replicas", ("e", "r0")), put_replica("e", "new"), put_replica("e", "r1", port="9"))
    at = store.database.safe()
    store.database.settings = StoreSettings(retention_s=0.05)
    await poll(lambda: store.database.safe() > at + 100_000)
    again = make_agent(store).start()
    assert len(again.replicas()) == 20  # of the checkpoint
    since = len(again.patches)
    await again.until_connected()
    await poll(lambda: "new" in again.replicas())
    assert again.status["bootstraps"] == 1
    assert again.replicas() == {"new", *(f"r{i}" for i in range(1, 20))}
    assert again.moved(since) == []
    assert {r.id for p in again.patches[since:] for c in p.endpoints for r in c.upsert} == {"new", "r1"}
    store.database.settings = StoreSettings()
    await caught_up(again, store)


async def test_a_place_that_is_lost_over_and_over_is_not_a_hot_loop(make_store, make_agent):
    class NeverFrom(TestHooks):
        """Partitions are named, and none can be read."""

        __test__ = False
        is_on = False

        def called(self, method, *, change_stream):
            found = super().called(method, change_stream=change_stream)
            if self.is_on and change_stream and self.calls[method] % 2 == 0:
                return Cut(code="OUT_OF_RANGE")
            return found

    store = await make_store(hooks=NeverFrom())
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    store.hooks.calls["ExecuteStreamingSql"] = 0
    store.hooks.is_on = True
    store.ddl("DROP CHANGE STREAM RouterStream")
    store.ddl(
        "CREATE CHANGE STREAM RouterStream FOR Meta, Regions, Endpoints, Replicas, RouteSets, Routes, Hosts, AuthTokens "
        "OPTIONS (retention_period='7d', value_capture_type='NEW_ROW')"
    )
    await poll(lambda: agent.status["bootstraps"] > 1)
    before = agent.status["bootstraps"]
    await asyncio.sleep(1.5)
    assert agent.status["bootstraps"] - before <= 8
    assert len(agent.replicas()) == 20


async def test_another_database_at_the_same_address_is_a_difference(make_store, make_agent):
    store = await make_store()
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    since = len(agent.patches)
    await store.stop()
    await store.start()  # in memory: a new one, with an identity of its own
    await filled(store, 18)
    await poll(lambda: len(agent.replicas()) in (0, 18, 20) and agent.status["connected"])
    await caught_up(agent, store)
    assert len(agent.replicas()) == 18
    assert agent.moved(since) == []


async def test_another_database_whose_clock_is_an_hour_behind_is_taken_over_as_well(make_store, make_agent, monkeypatch):
    from router.config.embedded import timestamps

    store = await make_store()
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    await store.stop()
    behind = SimpleNamespace(time_ns=lambda: real_time.time_ns() - int(HOUR_S * 1e9))
    monkeypatch.setattr(timestamps, "time", behind)
    await store.start()
    await filled(store, 15)
    await store.write(put_replica("e", "r0", address="10.9.9.9"))
    await poll(lambda: len(agent.replicas()) == 15)
    assert address_of(agent, "r0") == "http://10.9.9.9:30000"
    await caught_up(agent, store)


async def test_a_database_that_was_emptied_does_not_empty_the_table(make_store, make_agent):
    store = await make_store()
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    await store.stop()
    await store.start()
    await poll(lambda: agent.status["bootstraps"] == 2)
    await agent.until_connected()
    assert len(agent.replicas()) == 20
    assert agent.status["held"] >= 20
    assert agent.agent.accept_held() == 20
    assert agent.replicas() == set()


# -- held, and quarantined ---------------------------------------------------------------------------------


async def test_a_held_change_is_told_and_let_through_on_request(store, make_agent):
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    await store.write(("delete", "Replicas", *(("e", f"r{i}") for i in range(11))))
    await poll(lambda: agent.status["held"])
    assert len(agent.replicas()) == 20
    assert agent.agent.accept_held() == 11
    assert agent.replicas() == {f"r{i}" for i in range(11, 20)}
    assert agent.status["held"] == 0


async def test_a_held_change_is_still_held_after_a_restart(make_store, make_agent):
    store = await make_store(persistent=True)
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    await store.write(("delete", "Replicas", *(("e", f"r{i}") for i in range(11))))
    await poll(lambda: agent.status["held"])
    await agent.close()
    again = make_agent(store).start()
    await again.until_connected()
    assert len(again.replicas()) == 20, "a restart has accepted what nobody accepted"
    assert again.status["held"]


async def test_the_last_good_version_of_a_bad_row_survives_a_restart(make_store, make_agent):
    store = await make_store(persistent=True)
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    await store.write(put_endpoint("e", policy={"policy": "best"}))
    await poll(lambda: agent.status["quarantined"])
    assert len(agent.replicas()) == 20
    await agent.close()
    again = make_agent(store).start()
    await again.until_connected()
    assert len(again.replicas()) == 20


async def test_a_bad_row_is_named_and_mended(store, make_agent):
    await filled(store, 3)
    agent = await make_agent(store).start().until_connected()
    await store.write(put_replica("e", "r0", port="70000"), put_replica("e", "new", state="UP"))
    await poll(lambda: agent.status["quarantined"] == 2)
    reasons = {r["key"]: r["reason"] for r in agent.agent.quarantine()}
    assert "70000" in reasons["e/r0"]
    assert "State" in reasons["e/new"]
    assert address_of(agent, "r0").endswith(":30000")
    await store.write(put_replica("e", "r0", port="30001"), put_replica("e", "new"))
    await poll(lambda: agent.status["quarantined"] == 0)
    assert address_of(agent, "r0").endswith(":30001")
    assert "new" in agent.replicas()


# -- boot --------------------------------------------------------------------------------------------------


async def test_no_store_and_no_checkpoint_is_an_exit_code(make_agent, folder):
    agent = make_agent(f"embedded:{folder}/nobody", store_start_timeout_s=0.3).start()
    await poll(lambda: agent.ended)
    assert agent.ended == [EXIT_NO_STORE]
    assert not agent.status["has_table"]
    assert "UNAVAILABLE" in agent.status["error"]
    assert agent.patches == []


async def test_without_a_limit_it_waits_for_the_store(make_store, make_agent):
    store = await make_store()
    await filled(store)
    await store.stop()
    agent = make_agent(store, store_start_timeout_s=0.0).start()
    await agent.until_error("UNAVAILABLE")
    await store.start()
    await filled(store, 3)
    await poll(lambda: len(agent.replicas()) == 3)
    assert agent.ended == []


@pytest.mark.parametrize("spoil", [None, "newest", "newest cut"])
async def test_a_checkpoint_is_served_at_once_while_the_store_is_down(make_store, make_agent, spoil):
    store = await make_store(persistent=True)
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    path = agent.agent._path
    await agent.close()
    if spoil is not None:
        second = await make_agent(store).start().until_connected()
        await store.write(put_replica("e", "newer"))
        await poll(lambda: "newer" in second.replicas())
        await second.close()
        data = path.read_bytes()
        path.write_bytes(data[:-100] if spoil == "newest cut" else data[:-1] + bytes([data[-1] ^ 1]))
    await store.stop()
    again = make_agent(store, store_start_timeout_s=0.2).start()
    assert len(again.replicas()) == 20  # before the first await
    assert again.status["source"] == "checkpoint"
    assert again.status["has_table"]
    assert not again.status["connected"]
    await again.until_error("UNAVAILABLE")
    await asyncio.sleep(0.3)
    assert again.ended == []
    assert 0 < again.status["staleness_s"] < 60
    await store.start(init=False)
    await again.until_connected()
    await caught_up(again, store)
    assert again.status["bootstraps"] == 0
    assert again.moved() == []


async def test_checkpoints_that_are_all_spoilt_are_as_none(make_store, make_agent, caplog):
    store = await make_store(persistent=True)
    await filled(store)
    for _ in range(2):
        agent = await make_agent(store).start().until_connected()
        await store.write(put_meta("mark", str(monotonic())))
        await poll(lambda a=agent: a.agent._is_changed)
        await agent.close()
    path = agent.agent._path
    for file in (path, checkpoint.previous(path)):
        file.write_bytes(b"garbage")
    await store.stop()
    again = make_agent(store, store_start_timeout_s=0.3).start()
    assert "no checkpoint" in again.status["error"]
    assert sum("checkpoint not used" in record.message for record in caplog.records) == 2
    await poll(lambda: again.ended)
    assert again.ended == [EXIT_NO_STORE]
    await store.start(init=False)
    await again.until_connected()
    assert len(again.replicas()) == 20


async def test_a_resumed_place_needs_no_bootstrap(make_store, make_agent):
    store = await make_store(persistent=True)
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    await agent.close()
    await store.write(put_replica("e", "meanwhile"))
    store.hooks.calls.clear()
    again = await make_agent(store).start().until_connected()
    await poll(lambda: "meanwhile" in again.replicas())
    assert again.status["bootstraps"] == 0
    assert store.hooks.calls["StreamingRead"] == 1  # Meta alone
    await caught_up(again, store)


async def test_a_checkpoint_of_another_kind_of_row_is_not_used(make_store, make_agent):
    """One of an older or newer program, whose rows have other columns, must not end this one."""
    store = await make_store(persistent=True)
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    await agent.close()
    path = agent.agent._path
    found, _ = checkpoint.read(path, store.target.database)
    header = found.header
    header.schema += 1
    import msgspec

    blocks = [
        msgspec.msgpack.encode((table, [(key, at, row and row[:-1]) for key, at, row in rows])) for table, rows in found.blocks
    ]
    checkpoint.write(path, header, blocks)
    checkpoint.previous(path).unlink(missing_ok=True)
    again = make_agent(store).start()
    await again.until_connected()
    assert len(again.replicas()) == 20
    await caught_up(again, store)


async def test_checkpoints_are_written_again_and_again(make_store, make_agent, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_S", 0.05)
    store = await make_store(persistent=True)
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    await poll(lambda: agent.status["checkpoint_age_s"] is not None)
    await store.write(put_replica("e", "new"))

    def saved():
        found, complaints = checkpoint.read(agent.agent._path, store.target.database)
        assert complaints == []
        return found and ["e", "new"] in [list(key) for table, rows in found.blocks if table == "Replicas" for key, _, _ in rows]

    await poll(saved)


async def test_a_checkpoint_that_cannot_be_written_is_a_warning(store, make_agent, folder, caplog):
    (folder / "file").write_text("")
    await filled(store)
    agent = make_agent(store)
    agent.agent._path = folder / "file" / "x.checkpoint"
    await agent.start().until_connected()
    await agent.close()
    assert any("could not be written" in record.message for record in caplog.records)


# -- a database that is not ours ---------------------------------------------------------------------------


async def test_a_schema_that_is_too_new_is_named_at_start(store, make_agent):
    await filled(store)
    identity = (await snapshot(store.target))["Meta"][("schema",)][0]
    newer = {"version": 99, "oldest_client": 99, "identity": "x"}
    await store.write(put_meta("schema", newer))
    agent = make_agent(store, store_start_timeout_s=0.0).start()
    error = await agent.until_error("update it")
    assert "99" in error
    assert not agent.status["has_table"]
    assert agent.patches == []
    await store.write(put_meta("schema", identity))
    await agent.until_connected()
    assert len(agent.replicas()) == 20


async def test_a_schema_that_becomes_too_new_while_it_runs_leaves_the_last_good_table(store, make_agent):
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    before = (await snapshot(store.target))["Meta"][("schema",)][0]
    await store.write(put_meta("schema", {"version": 99, "oldest_client": 99, "identity": "x"}), put_replica("e", "r0", port="1"))
    await agent.until_error("update it")
    await store.write(put_replica("e", "not-for-us"))
    await asyncio.sleep(0.5)
    assert agent.replicas() == {f"r{i}" for i in range(20)}
    assert address_of(agent, "r0").endswith(":30000")
    assert not agent.status["connected"]
    await store.write(put_meta("schema", before))
    await agent.until_connected()
    await caught_up(agent, store)
    assert agent.moved() == []


async def test_a_newer_schema_that_still_knows_us_is_no_trouble(store, make_agent):
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    schema = (await snapshot(store.target))["Meta"][("schema",)][0]
    await store.write(put_meta("schema", schema.replace('"version":1', '"version":7')))
    await store.write(put_replica("e", "new"))
    await poll(lambda: "new" in agent.replicas())
    assert agent.status["error"] == ""


@pytest.mark.parametrize("value", ["{", "[]", "1", '"x"', "null", '{"oldest_client": "1"}', '{"oldest_client": 99}', None])
def test_a_row_of_meta_that_is_not_ours_is_refused_in_words(value):
    with pytest.raises(SchemaError) as refused:
        check_schema((value,))
    assert str(refused.value)


async def test_no_database_and_no_schema_name_what_to_do(make_store, make_agent):
    store = await make_store(init=False)
    agent = make_agent(store, store_start_timeout_s=0.0).start()
    assert "router store init" in await agent.until_error("NOT_FOUND")
    registry = store.server._registry
    instance, _, _ = store.target.database.rpartition("/databases/")
    registry.add_instance(instance, b"")
    registry.create(store.target.database)
    await poll(lambda: "Database not found" not in agent.status["error"])
    assert "router store init" in agent.status["error"]
    assert agent.ended == []
    await asyncio.to_thread(module_initialise, store.target)
    await filled(store, 2)
    await agent.until_connected()
    await poll(lambda: len(agent.replicas()) == 2)


def module_initialise(target):
    from router.config.setup import initialise

    return initialise(target)


async def test_a_column_that_is_added_upstream_is_no_trouble(store, make_agent):
    await filled(store, 3)
    agent = await make_agent(store).start().until_connected()
    store.ddl("ALTER TABLE Replicas ADD COLUMN Rack STRING(16)", "ALTER TABLE Endpoints ADD COLUMN Notes JSON")
    columns = ("EndpointId", "ReplicaId", "Rack", "State", "UpdatedAt")
    await store.write(("update", "Replicas", columns, ("e", "r0", "k7", "DRAINING", "spanner.commit_timestamp()")))
    await store.write(put_replica("e", "new"))
    await poll(lambda: "new" in agent.replicas())
    assert agent.image.replicas["e"]["r0"].state == "DRAINING"
    assert agent.status["quarantined"] == 0
    await caught_up(agent, store)


async def test_a_table_that_is_not_ours_may_be_in_the_stream(store, make_agent):
    await filled(store, 3)
    agent = await make_agent(store).start().until_connected()
    store.ddl(
        "CREATE TABLE Other (K STRING(8)) PRIMARY KEY (K)",
        "ALTER CHANGE STREAM RouterStream SET FOR Meta, Regions, Endpoints, Replicas, RouteSets, Routes, Hosts, AuthTokens, Other",
    )
    await store.write(("insert", "Other", ("K",), ("x",)), put_replica("e", "new"))
    await poll(lambda: "new" in agent.replicas())
    await caught_up(agent, store)


# -- storms and clocks -------------------------------------------------------------------------------------


async def attempts_in(seconds, read):
    before = read()
    await asyncio.sleep(seconds)
    return read() - before


def calls(store, method):
    return lambda: store.hooks.calls.get(method, 0)


async def test_a_store_that_is_away_is_asked_patiently(make_agent, folder):
    agent = make_agent(f"embedded:{folder}/nobody", store_start_timeout_s=0.0).start()
    await agent.until_error("UNAVAILABLE")
    spent = real_time.process_time()
    assert await attempts_in(2.0, lambda: agent.status["attempts"]) <= 8
    assert real_time.process_time() - spent < 2.0 * 0.2  # of all threads of this process


async def test_a_store_that_refuses_everything_is_asked_patiently(store, make_agent):
    store.hooks.cuts.append(Cut(count=FOREVER))
    agent = make_agent(store, store_start_timeout_s=0.0).start()
    await agent.until_error("UNAVAILABLE")
    assert await attempts_in(2.0, lambda: sum(store.hooks.calls.values())) <= 12


async def test_a_store_whose_bootstrap_never_ends_is_asked_patiently(store, make_agent):
    await filled(store)
    store.hooks.cuts.append(Cut(count=FOREVER, change_stream=True))
    agent = make_agent(store, store_start_timeout_s=0.0).start()
    await agent.until_error("UNAVAILABLE")
    assert await attempts_in(2.0, calls(store, "CreateSession")) <= 10
    store.hooks.cuts.clear()
    await agent.until_connected()


@pytest.mark.slow
async def test_a_stream_that_is_cut_after_each_message_is_asked_patiently(make_store, make_agent):
    store = await make_store(persistent=True)
    store.split()
    store.split()
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    store.hooks.cuts.append(Cut(count=FOREVER, messages=1, change_stream=True))
    await store.stop()
    await store.start(init=False)
    counted = asyncio.ensure_future(attempts_in(2.0, calls(store, "ExecuteStreamingSql")))
    i = 0
    while not counted.done():
        i += 1
        await store.write(put_replica("e", "r0", port=str(i + 1)), put_endpoint(f"x{i % 7}", policy={"retries": i}))
        await asyncio.sleep(0.02)
    # Three partitions: each is cut the moment it says something; 5 a second and a burst at the beginning.
    assert await counted <= 5 * 2 + 8
    store.hooks.cuts.clear()
    await caught_up(agent, store)


async def test_readers_beyond_the_limit_wait_for_their_turn(store, make_agent):
    await filled(store)
    first = await make_agent(store, "first").start().until_connected()
    store.hooks.max_readers = 1
    second = make_agent(store, "second").start()
    await second.until_error("max_readers")
    assert len(second.replicas()) == 20  # the bootstrap needs no place
    assert await attempts_in(1.5, calls(store, "ExecuteStreamingSql")) <= 8
    await first.close()
    await store.write(put_replica("e", "new"))
    await poll(lambda: "new" in second.replicas())


@pytest.mark.parametrize("shift_s", [-HOUR_S, HOUR_S])
async def test_a_clock_that_is_an_hour_off_changes_only_what_is_shown(make_store, make_agent, monkeypatch, shift_s):
    store = await make_store(persistent=True)
    await filled(store)
    monkeypatch.setattr(module, "time", lambda: real_time.time() + shift_s)
    agent = await make_agent(store).start().until_connected()
    assert agent.status["staleness_s"] < 5  # the store has told its own time
    await store.write(("delete", "Replicas", ("e", "r0")))
    await poll(lambda: "r0" not in agent.replicas())
    await agent.close()
    await store.stop()
    again = make_agent(store).start()
    assert len(again.replicas()) == 19
    assert again.status["has_table"]
    if shift_s > 0:
        assert again.status["staleness_s"] > HOUR_S - 5
    else:
        assert again.status["staleness_s"] == 0.0
    await store.start(init=False)
    await again.until_connected()
    assert again.status["bootstraps"] == 0
    assert again.status["staleness_s"] < 5
    await caught_up(again, store)


@pytest.mark.parametrize("shift_s", [-HOUR_S, HOUR_S])
async def test_a_store_whose_clock_jumps_an_hour_is_followed(store, make_agent, shift_s):
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    store.database.clock._wall_us = lambda: real_time.time_ns() // 1_000 + int(shift_s * 1e6)
    await store.write(put_replica("e", "new"), ("delete", "Replicas", ("e", "r0")))
    await poll(lambda: "new" in agent.replicas())
    assert "r0" not in agent.replicas()
    await caught_up(agent, store)
    assert agent.status["bootstraps"] == 1


async def test_staleness_grows_while_the_store_is_away_and_ends_with_its_return(make_store, make_agent):
    store = await make_store(persistent=True)
    await filled(store)
    agent = await make_agent(store).start().until_connected()
    await poll(lambda: agent.status["staleness_s"] < 1.5)
    await store.stop()
    first = agent.status["staleness_s"]
    await poll(lambda: agent.status["staleness_s"] > first + 0.5)
    await store.start(init=False)
    await agent.until_connected()
    await poll(lambda: agent.status["staleness_s"] < 1.5)


def test_the_kit_sees_what_it_is_to_see():
    """The comparison that the other tests rest on does tell two tables apart."""
    one, other = Book(), Book()
    one.put(("Endpoints", ("e",), ("main", None, None, "ACTIVE")))
    assert shape(one.image) != shape(other.image)
