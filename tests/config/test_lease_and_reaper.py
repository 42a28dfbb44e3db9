"""Node leases and the reaper: by the store's clock alone, one at a time, and never most of an endpoint."""

import asyncio
import json
from datetime import UTC, datetime

import pytest
from configkit import poll, put_endpoint, put_meta, put_replica, put_replicas, snapshot

from router.config import lease as lease_module
from router.config import reaper as module
from router.config.embedded.hooks import Cut
from router.config.lease import NodeLease, renew
from router.config.reaper import DUTY_KEY, Reaper
from router.config.timestamps import format_timestamp, parse_timestamp
from router.transport.tasks import spawn

HOUR_US = 3_600_000_000


async def put_node(store, node, expires_us, shard=3):
    columns = ("NodeId", "Shard", "RegionId", "Generation", "LeaseExpiresAt", "UpdatedAt")
    row = (node, str(shard), "", "1", format_timestamp(expires_us), "spanner.commit_timestamp()")
    await store.write(("insert_or_update", "Nodes", columns, row))


async def lapsed(store, node, ago_s=5.0):
    await put_node(store, node, store.database.safe() - int(ago_s * 1e6))


async def held(store, node):
    await put_node(store, node, store.database.safe() + HOUR_US)


async def nodes(store):
    async with store.writer() as writer:
        rows = await writer.query("SELECT NodeId, LeaseExpiresAt FROM Nodes")
    return {node: parse_timestamp(expires) for node, expires in rows}


async def states(store, endpoint="e"):
    rows = (await snapshot(store.target)).get("Replicas", {})
    return {key[1]: row[6] for key, row in rows.items() if key[0] == endpoint}


async def turn(store, reaper=None, **options):
    reaper = reaper or Reaper(store.target, "me", **options)
    async with store.writer() as writer:
        await reaper.turn(writer)
    return reaper


# -- leases ------------------------------------------------------------------------------------------------


async def test_a_lease_runs_from_the_stores_now(store):
    async with store.writer() as writer:
        before = store.database.safe()
        assert await renew(writer, "n", "eu", 10.0)  # was not there
        (expires,) = (await nodes(store)).values()
        assert before + 10_000_000 <= expires <= store.database.safe() + 10_000_000
        assert not await renew(writer, "n", "eu", 10.0)  # held
        assert (await nodes(store))["n"] > expires
        await lapsed(store, "n", 0.001)
        assert await renew(writer, "n", "eu", 10.0)  # had run out
        assert not await renew(writer, "n", "eu", 10.0)


async def test_a_lease_by_a_store_whose_clock_is_an_hour_ahead(store):
    import time

    store.database.clock._wall_us = lambda: time.time_ns() // 1_000 + HOUR_US
    async with store.writer() as writer:
        await renew(writer, "n", "eu", 10.0)
    (expires,) = (await nodes(store)).values()
    assert expires > datetime.now(UTC).timestamp() * 1e6 + HOUR_US


async def test_a_node_keeps_its_lease_and_says_when_it_had_lapsed(store):
    told = []
    lease = NodeLease(store.target, "n", "eu", lambda: told.append(lease.renewals), lease_s=0.3)
    task = spawn(lease.run(), "lease")
    try:
        await poll(lambda: lease.renewals >= 4)
        assert told == [1]  # it was not there at first
        assert (await nodes(store))["n"] > store.database.safe()
        await lapsed(store, "n")
        await poll(lambda: len(told) == 2)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_store_that_is_away_lets_the_lease_lapse_and_it_is_restored(make_store):
    store = await make_store(persistent=True)
    told = []
    lease = NodeLease(store.target, "n", "eu", lambda: told.append(1), lease_s=0.3)
    task = spawn(lease.run(), "lease")
    try:
        await poll(lambda: lease.renewals >= 2)
        await store.stop()
        await poll(lambda: lease.trouble)
        assert "does not answer" in lease.trouble
        renewals = lease.renewals
        await asyncio.sleep(0.4)
        assert lease.renewals == renewals
        await store.start(init=False)
        await poll(lambda: len(told) == 2)
        assert lease.trouble == ""
        assert (await nodes(store))["n"] > store.database.safe()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_renewal_that_breaks_is_tried_again_soon(store):
    lease = NodeLease(store.target, "n", "eu", lambda: None, lease_s=30.0)
    store.hooks.cuts.append(Cut("Commit", count=3))
    task = spawn(lease.run(), "lease")
    try:
        await poll(lambda: lease.renewals == 1)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_lease_is_renewed_three_times_in_its_length():
    assert lease_module.LEASE_S == 10.0


async def test_two_processes_of_one_node_share_its_lease(store):
    async with store.writer() as one, store.writer() as other:
        found = await asyncio.gather(*(renew(w, "n", "eu") for w in (one, other) * 5))
    assert sum(found) == 1
    assert list(await nodes(store)) == ["n"]


# -- the reaper --------------------------------------------------------------------------------------------


async def test_replicas_of_a_lapsed_node_go_down_and_the_others_stay(store):
    await store.write(
        put_endpoint("e"), put_endpoint("f"), put_replica("e", "dead", node="gone"), put_replica("f", "dead", node="gone"),
        put_replica("e", "starting", node="gone", state="STARTING"), put_replica("e", "alive", node="here"),
        put_replica("e", "by-hand"), put_replica("e", "unknown", node="never-registered"),
    )  # fmt: skip
    await lapsed(store, "gone")
    await held(store, "here")
    reaper = await turn(store)
    assert reaper.is_on_duty
    assert reaper.reaped == 3
    assert await states(store) == {
        "dead": "DOWN", "starting": "DOWN", "alive": "READY", "by-hand": "READY", "unknown": "READY",
    }  # fmt: skip
    assert await states(store, "f") == {"dead": "DOWN"}
    assert set(await nodes(store)) == {"gone", "here"}
    await turn(store, reaper)
    assert reaper.reaped == 3


async def test_what_has_been_down_for_a_while_is_deleted(store):
    await store.write(put_endpoint("e"), put_replica("e", "dead", node="gone"), put_replica("e", "alive", node="here"))
    await lapsed(store, "gone", ago_s=120.0)
    await held(store, "here")
    reaper = await turn(store)
    assert await states(store) == {"dead": "DOWN", "alive": "READY"}  # never deleted before it was DOWN
    await turn(store, reaper)
    assert await states(store) == {"alive": "READY"}
    assert set(await nodes(store)) == {"here"}


async def test_it_is_not_deleted_before_its_time(store):
    await store.write(put_endpoint("e"), put_replica("e", "dead", node="gone"))
    await lapsed(store, "gone", ago_s=30.0)
    reaper = await turn(store)
    await turn(store, reaper)
    assert await states(store) == {"dead": "DOWN"}


async def test_a_node_that_comes_back_keeps_its_rows(store):
    await store.write(put_endpoint("e"), put_replica("e", "r", node="n"))
    await lapsed(store, "n", ago_s=120.0)
    reaper = await turn(store)
    async with store.writer() as writer:
        assert await renew(writer, "n", "")
    await turn(store, reaper)
    assert await states(store) == {"r": "DOWN"}  # its sidecar was told, and says READY again
    assert set(await nodes(store)) == {"n"}


async def spread(store, per_node, nodes, endpoint="e"):
    await store.write(
        put_endpoint(endpoint),
        *(put_replicas(endpoint, [f"{node}-{i}" for i in range(per_node)], node=node) for node in nodes),
    )


@pytest.mark.parametrize(("gone", "is_reaped"), [(3, True), (4, False), (10, False)])
async def test_more_than_thirty_percent_of_an_endpoint_is_left_alone_and_named(store, gone, is_reaped):
    names = [f"n{i}" for i in range(10)]
    await spread(store, 2, names)
    for i, name in enumerate(names):
        await (lapsed if i < gone else held)(store, name)
    reaper = await turn(store)
    down = [name for name, state in (await states(store)).items() if state == "DOWN"]
    assert len(down) == (2 * gone if is_reaped else 0)
    assert reaper.refused == ({} if is_reaped else {"e": 2 * gone})
    if not is_reaped:
        await held(store, names[0])
        for name in names[3:]:
            await held(store, name)
        await turn(store, reaper)
        assert reaper.refused == {}
        assert len([s for s in (await states(store)).values() if s == "DOWN"]) == 4


async def test_a_small_endpoint_may_lose_its_only_node(store):
    await spread(store, 9, ["n"])
    await lapsed(store, "n")
    await turn(store)
    assert set((await states(store)).values()) == {"DOWN"}


async def test_one_endpoint_that_is_left_alone_does_not_save_another(store):
    await spread(store, 20, ["n"], "big")
    await spread(store, 2, ["n"], "small")
    await lapsed(store, "n")
    reaper = await turn(store)
    assert reaper.refused == {"big": 20}
    assert set((await states(store, "big")).values()) == {"READY"}
    assert set((await states(store, "small")).values()) == {"DOWN"}


async def test_what_was_spared_is_not_deleted_later_either(store):
    await spread(store, 20, ["n"])
    await lapsed(store, "n", ago_s=500.0)
    reaper = await turn(store)
    await turn(store, reaper)
    assert set((await states(store)).values()) == {"READY"}
    assert len(await states(store)) == 20
    assert set(await nodes(store)) == {"n"}


async def test_of_two_reapers_one_is_on_duty(store):
    one, other = Reaper(store.target, "one"), Reaper(store.target, "other")
    await turn(store, one)
    await turn(store, other)
    assert (one.is_on_duty, other.is_on_duty) == (True, False)
    await store.write(put_endpoint("e"), put_replica("e", "r", node="n"))
    await lapsed(store, "n")
    await turn(store, other)
    assert await states(store) == {"r": "READY"}
    await turn(store, one)
    assert await states(store) == {"r": "DOWN"}


async def test_two_that_take_the_duty_up_at_once_are_one(store):
    reapers = [Reaper(store.target, f"r{i}") for i in range(6)]
    for _ in range(3):
        await asyncio.gather(*(turn(store, reaper) for reaper in reapers))
        assert sum(reaper.is_on_duty for reaper in reapers) == 1


async def test_a_duty_that_lapsed_is_taken_over(store, monkeypatch):
    one, other = Reaper(store.target, "one"), Reaper(store.target, "other")
    await turn(store, one)
    past = format_timestamp(store.database.safe() - 1_000)
    await store.write(put_meta(DUTY_KEY, json.dumps({"owner": "one", "until": past})))
    await turn(store, other)
    assert other.is_on_duty
    await turn(store, one)
    assert not one.is_on_duty


@pytest.mark.parametrize("value", ["{}", "[]", "{", "1", '{"owner": "x"}', '{"owner": "x", "until": "soon"}', None])
async def test_a_duty_row_that_is_broken_does_not_stop_reaping_for_ever(store, value):
    await store.write(put_meta(DUTY_KEY, None))
    if value is None or value != "{":  # the store itself refuses JSON that is none
        await store.write(put_meta(DUTY_KEY, value))
    reaper = await turn(store)
    assert reaper.is_on_duty


async def test_a_renewal_between_reading_and_writing_aborts_the_reaper(store):
    await store.write(put_endpoint("e"), put_replica("e", "r", node="n"))
    await lapsed(store, "n")
    reaper = Reaper(store.target, "me")
    attempts = []
    async with store.writer() as writer, store.writer() as sidecar:
        await writer.transact(reaper._take_duty)
        suspects = await reaper._suspects(writer)

        async def work(t):
            found = await reaper._reap(t, suspects)
            attempts.append(found[0])
            if len(attempts) == 1:
                assert await renew(sidecar, "n", "")
            return found

        down, deleted, refused = await writer.transact(work)
    assert attempts == [1, 0]
    assert (down, deleted, refused) == (0, 0, {})
    assert await states(store) == {"r": "READY"}


async def test_a_replica_that_becomes_ready_in_between_aborts_the_reaper_too(store):
    await store.write(put_endpoint("e"), put_replica("e", "r", node="n"))
    await lapsed(store, "n")
    reaper = Reaper(store.target, "me")
    attempts = []
    async with store.writer() as writer, store.writer() as sidecar:
        suspects = await reaper._suspects(writer)

        async def work(t):
            found = await reaper._reap(t, suspects)
            attempts.append(found[0])
            if len(attempts) == 1:
                await sidecar.delete_replica("e", "r")
            return found

        await writer.transact(work)
    assert attempts == [1, 0]
    assert await states(store) == {}


async def test_it_runs_by_itself_and_outlives_the_store(make_store, monkeypatch):
    monkeypatch.setattr(module, "PERIOD_S", 0.05)
    store = await make_store(persistent=True)
    await store.write(put_endpoint("e"), put_replica("e", "a", node="n"), put_replica("e", "b", node="m"))
    await held(store, "m")
    reaper = Reaper(store.target, "me")
    task = spawn(reaper.run(), "reaper")
    try:
        await lapsed(store, "n")
        await poll(lambda: reaper.reaped == 1)
        await store.stop()
        await poll(lambda: not reaper.is_on_duty)
        await store.start(init=False)
        await poll(lambda: reaper.is_on_duty)
        await lapsed(store, "m")
        await poll(lambda: reaper.reaped == 2)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_after_an_outage_longer_than_a_lease_nodes_get_the_time_of_a_lease_to_come_back(store, monkeypatch):
    """All leases have lapsed, the reaper's too: it is the store that was away, and whoever renews first is a race."""
    monkeypatch.setattr(module, "DUTY_S", 0.2)
    await store.write(put_endpoint("e"), *(put_replica("e", f"r{i}", node=f"n{i}") for i in range(3)))
    for i in range(3):
        await held(store, f"n{i}")
    reaper = await turn(store)
    assert reaper.is_on_duty
    until = store.database.safe() + 300_000  # nobody could write for longer than the duty
    await poll(lambda: store.database.safe() > until)
    for i in range(3):
        await lapsed(store, f"n{i}", ago_s=0.1)
    await turn(store, reaper)
    await turn(store)
    assert set((await states(store)).values()) == {"READY"}


async def test_an_outage_shorter_than_the_duty_but_longer_than_a_lease_has_left_is_waited_out_too(store):
    """The duty is 12 s, a lease has 6.7 s left when the store goes: what counts is how long nobody reaped."""
    await store.write(put_endpoint("e"), put_replica("e", "r", node="n"))
    await held(store, "n")
    reaper = await turn(store)
    until = format_timestamp(store.database.safe() + int((module.DUTY_S - module.STEADY_S - 1) * 1e6))
    duty = {"owner": "me", "until": until, "from": "1970-01-01T00:00:00Z"}
    await store.write(put_meta(DUTY_KEY, json.dumps(duty)))  # as after seven seconds without a turn
    await lapsed(store, "n", ago_s=0.1)
    await turn(store, reaper)
    assert reaper.is_on_duty
    assert set((await states(store)).values()) == {"READY"}
