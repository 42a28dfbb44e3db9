"""What is read of a store: growth of counters, freshness by the store's clock, live sessions, who is scaled."""

import json

import pytest
from configkit import put_endpoint, put_meta, put_replica

from router.autoscale.follow import FRESH_S, SILENT_S, Follower
from router.config.errors import StoreError
from router.config.schema import MIGRATIONS, SCHEMA_KEY
from router.config.timestamps import format_timestamp

COMMIT = "spanner.commit_timestamp()"
SCALED = {"scaling": {"target_concurrency": 4}}


def demand(endpoint, router, in_flight=0, arrivals=0, unserved=0, waiting=0, sessions=0, at=COMMIT):
    columns = (
        "EndpointId", "RouterId", "InFlight", "Arrivals", "Unserved", "Waiting", "Sessions", "RegionId", "UpdatedAt",
    )  # fmt: skip
    row = (endpoint, router, *map(str, (in_flight, arrivals, unserved, waiting, sessions)), "", at)
    return ("insert_or_update", "Demand", columns, row)


def session(name, replica, *, state="OPEN", idle_s=600, at=COMMIT, endpoint="e"):
    columns = ("SessionId", "EndpointId", "ReplicaId", "State", "IdleTimeoutS", "LastUsedAt", "UpdatedAt")
    return ("insert_or_update", "Sessions", columns, (name, endpoint, replica, state, str(idle_s), at, COMMIT))


def ago(store, seconds):
    return format_timestamp(store.database.safe() - int(seconds * 1e6))


async def look(store, follower=None):
    follower = follower or Follower(None)
    async with store.writer() as writer:
        return await follower.read(writer)


async def test_demand_of_all_routers_is_added_up_and_growth_counts_from_the_first_look(store):
    await store.write(put_endpoint("e", policy=SCALED), demand("e", "a", 3, 100, 7), demand("e", "b", 2, 10, 0, 1, 4))
    follower = Follower(None)
    view = (await look(store, follower))["e"]
    assert (view.in_flight, view.waiting, view.sessions) == (5, 1, 4)
    assert (view.arrivals, view.unserved) == (0, 0)  # nobody's demand any more
    await store.write(demand("e", "a", 1, 105, 9))
    view = (await look(store, follower))["e"]
    assert (view.in_flight, view.arrivals, view.unserved) == (3, 5, 2)
    view = (await look(store, follower))["e"]
    assert (view.arrivals, view.unserved) == (0, 0)


async def test_a_router_that_appears_later_counts_whole_and_one_that_began_anew_too(store):
    await store.write(put_endpoint("e", policy=SCALED), demand("e", "a", 0, 100, 7))
    follower = Follower(None)
    await look(store, follower)
    await store.write(demand("e", "new", 0, 1, 1), demand("e", "a", 0, 2, 1))
    view = (await look(store, follower))["e"]
    assert (view.arrivals, view.unserved) == (3, 2)


async def test_rows_that_nobody_renews_are_ignored_by_the_stores_clock(store):
    import time

    store.database.clock._wall_us = lambda: time.time_ns() // 1_000 + 3_600_000_000
    await store.write(
        put_endpoint("e", policy=SCALED), demand("e", "here", 1), demand("e", "gone", 50, at=ago(store, FRESH_S + 1))
    )
    assert (await look(store))["e"].in_flight == 1


@pytest.mark.parametrize(
    ("counts", "seconds", "is_blind"),
    [({"in_flight": 1}, FRESH_S + 1, True), ({"waiting": 1}, SILENT_S - 5, True), ({"sessions": 1}, SILENT_S + 5, False),
     ({"arrivals": 9}, FRESH_S + 1, False), ({"in_flight": 1}, 0, False)],
)  # fmt: skip
async def test_a_router_that_had_requests_and_is_silent_may_be_cut_off(store, counts, seconds, is_blind):
    await store.write(put_endpoint("e", policy=SCALED), demand("e", "a", **counts, at=ago(store, seconds)))
    assert (await look(store))["e"].is_blind is is_blind


async def test_a_router_that_was_idle_when_first_looked_at_is_no_burst_later(store):
    await store.write(put_endpoint("e", policy=SCALED), demand("e", "a", 0, 500, 100, at=ago(store, 600)))
    follower = Follower(None)
    await look(store, follower)
    await store.write(demand("e", "a", 1, 501, 100))
    view = (await look(store, follower))["e"]
    assert (view.arrivals, view.unserved) == (1, 0)


async def test_live_sessions_hold_their_replica(store):
    await store.write(
        put_endpoint("e", policy=SCALED), put_replica("e", "a"), put_replica("e", "b", state="DRAINING"),
        put_replica("e", "c"), put_replica("e", "d"), put_endpoint("unscaled"),
    )  # fmt: skip
    await store.write(
        session("1", "a"), session("2", "a"), session("3", "b", idle_s=1, at=ago(store, 60)),
        session("4", "c", state="ENDED"), session("5", "d", idle_s=120, at=ago(store, 60)),
        session("6", "x", endpoint="unscaled"),
    )  # fmt: skip
    view = (await look(store))["e"]
    assert (view.held, view.open_sessions, view.room) == ({"a", "d"}, 3, 0)
    await store.write(put_endpoint("e", policy={**SCALED, "sessions": {"max_per_replica": 5}}), session("7", "left"))
    view = (await look(store))["e"]
    assert (view.open_sessions, view.room) == (3, 5), "of replicas that are there"
    assert view.replicas == {"a": "READY", "b": "DRAINING", "c": "READY", "d": "READY"}


async def test_who_is_scaled_and_why_others_are_not(store):
    await store.write(
        put_endpoint("e", policy=SCALED), put_endpoint("paused", policy=SCALED, state="PAUSED"), put_endpoint("plain"),
        put_endpoint("bad", policy={"scaling": {"target_concurrency": -1}}), put_replica("plain", "r"),
    )  # fmt: skip
    follower = Follower(None)
    views = await look(store, follower)
    assert list(views) == ["e"]
    assert views["e"].scaling.target_concurrency == 4
    assert follower.skipped["paused"] == "it is paused"
    assert "target_concurrency" in follower.skipped["bad"]
    assert "plain" not in follower.skipped
    assert follower.there == {"e", "paused", "plain", "bad"}
    follower = Follower(["plain", "nobody", "e"])
    assert list(await look(store, follower)) == ["e"]
    assert follower.skipped == {"plain": "its policy has no scaling", "nobody": "there is no such endpoint"}


async def test_many_endpoints_are_read_in_parts(store):
    names = [f"e{i}" for i in range(250)]
    await store.write(*(put_endpoint(name, policy=SCALED) for name in names))
    await store.write(*(put_replica(name, "r") for name in names))
    views = await look(store)
    assert set(views) == set(names)
    assert all(view.replicas == {"r": "READY"} for view in views.values())


async def test_a_store_without_the_tables_says_what_to_do(make_store):
    store = await make_store(migrations=MIGRATIONS[:1])
    async with store.writer() as writer:
        with pytest.raises(StoreError, match="router store init"):
            await Follower(None).check(writer)
        await store.write(put_meta(SCHEMA_KEY, json.dumps({"version": 99, "oldest_client": 99})))
        with pytest.raises(StoreError, match="update it"):
            await Follower(None).check(writer)
