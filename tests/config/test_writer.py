"""What operators and sidecars write: checked as routers will read it, fenced, and in words when it fails."""

import asyncio
import json

import pytest
from configkit import put_endpoint, put_replica, refused, snapshot

from router.config.embedded.hooks import Cut
from router.config.errors import StoreError, StoreUnavailableError
from router.config.target import Target
from router.config.writer import FencedError, open_writer


@pytest.fixture
async def writer(store):
    async with store.writer() as writer:
        yield writer


async def row(store, table, *key):
    return (await snapshot(store.target)).get(table, {}).get(key)


# -- endpoints ---------------------------------------------------------------------------------------------


async def test_an_endpoint_from_its_making_to_its_end(store, writer):
    made = await writer.put_endpoint(
        "e", create=True, environment="prod", policy='{"retries": 1}', health='{"kind": "none"}', hosts=("H.example", "*.x"),
        prefixes=("/a", "/b"),
    )  # fmt: skip
    assert made == {"endpoint": "e", "environment": "prod", "policy": {"retries": 1}, "health": {"kind": "none"}, "state": "ACTIVE"}
    assert {(r["host"], r["path_prefix"], r["endpoint"]) for r in await writer.routes()} == {
        (host, prefix, "e") for host in ("h.example", "*.x") for prefix in ("/a", "/b")
    }
    changed = await writer.put_endpoint("e", create=False, state="PAUSED")
    assert (changed["state"], changed["environment"], changed["policy"]) == ("PAUSED", "prod", {"retries": 1})
    await writer.put_replica("e", "r", create=True, address="10.0.0.1", port=1)
    await writer.put_replica("e", "s", create=True, address="10.0.0.1", port=1, state="DOWN")
    (listed,) = await writer.endpoints()
    assert (listed["replicas"], listed["ready"]) == (2, 1)
    await writer.delete_endpoint("e")
    assert await writer.endpoints() == []
    assert await writer.replicas() == []
    assert await writer.routes() == []


async def test_an_endpoint_that_is_there_and_one_that_is_not(writer):
    await refused(writer.put_endpoint("e", create=False), "endpoint 'e' is not there")
    await writer.put_endpoint("e", create=True)
    await refused(writer.put_endpoint("e", create=True), "endpoint 'e' is there already", "update")
    await refused(writer.delete_endpoint("f"), "endpoint 'f' is not there")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"policy": "{"}, "Policy"), ({"policy": '{"policy": "best"}'}, "Policy.policy"), ({"policy": "[]"}, "Policy"),
        ({"health": '{"interval_s": 0}'}, "Health.interval_s"), ({"state": "GONE"}, "GONE"), ({"hosts": ("a b",)}, "--host"),
        ({"hosts": ("h",), "prefixes": ("x",)}, "path_prefix"),
    ],
)  # fmt: skip
async def test_what_routers_would_put_into_quarantine_is_refused_with_the_field(store, writer, changes, field):
    await refused(writer.put_endpoint("e", create=True, **changes), field)
    assert await row(store, "Endpoints", "e") is None
    assert "Hosts" not in await snapshot(store.target)


@pytest.mark.parametrize("name", ["", "e e", "e\n", "ü", "e" * 129])
async def test_names_that_cannot_be_used(writer, name):
    await refused(writer.put_endpoint(name, create=True), "EndpointId")


async def test_an_endpoint_of_another_program_is_listed_though_it_is_broken(store, writer):
    await store.write(put_endpoint("e", policy='{"a": {"b": 1}}'))
    ((listed),) = await writer.endpoints()
    assert listed["policy"] == {"a": {"b": 1}}


async def test_who_may_call_is_not_changed_in_passing(writer):
    await writer.put_endpoint("e", create=True, unauthenticated=True)
    changed = await writer.put_endpoint("e", create=False, policy='{"retries": 1}')
    assert changed["policy"] == {"retries": 1, "unauthenticated": True}
    changed = await writer.put_endpoint("e", create=False, state="PAUSED")
    assert changed["policy"]["unauthenticated"] is True
    changed = await writer.put_endpoint("e", create=False, policy='{"unauthenticated": false}')
    assert changed["policy"] == {"unauthenticated": False}
    changed = await writer.put_endpoint("e", create=False, unauthenticated=True)
    assert changed["policy"] == {"unauthenticated": True}
    for unusable in ("not json", "5"):
        await refused(writer.put_endpoint("e", create=False, policy=unusable), "Policy")
    await refused(writer.put_endpoint("e", create=False, policy="[]", unauthenticated=False), "Policy")


# -- replicas ----------------------------------------------------------------------------------------------


async def test_a_replica_from_its_making_to_its_end(writer):
    await refused(writer.put_replica("e", "r", create=True, address="10.0.0.1", port=1), "endpoint 'e' is not there", "router endpoint create e")
    await writer.put_endpoint("e", create=True)
    made = await writer.put_replica("e", "r", create=True, address="::1", port=30_000, weight=2.0, zone="z", capabilities='{"a": 1}')
    assert made == {
        "endpoint": "e", "replica": "r", "node": "", "region": "", "zone": "z", "address": "::1", "port": 30_000,
        "weight": 2.0, "state": "READY", "generation": 1, "capabilities": {"a": 1},
    }  # fmt: skip
    assert await writer.replicas("e", "r") == [made]
    changed = await writer.put_replica("e", "r", create=False, state="DRAINING")
    assert changed == made | {"state": "DRAINING"}
    await refused(writer.put_replica("e", "r", create=True, address="h", port=1), "replica 'e/r' is there already")
    await refused(writer.put_replica("e", "x", create=False, state="DOWN"), "replica 'e/x' is not there")
    await writer.delete_replica("e", "r")
    await refused(writer.delete_replica("e", "r"), "replica 'e/r' is not there")
    assert await writer.replicas("e") == []


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("r", {"port": 0}, "port"), ("r", {"port": 70_000}, "port"), ("r", {"address": "a b"}, "Address"),
        ("r", {"weight": 0.0}, "Weight"), ("r", {"weight": float("nan")}, "Weight"), ("r", {"state": "UP"}, "State"),
        ("r", {"capabilities": "{"}, "Capabilities"), ("r\n", {}, "ReplicaId"), ("", {}, "ReplicaId"),
    ],
)  # fmt: skip
async def test_a_replica_that_routers_could_not_use_is_refused(store, writer, name, changes, field):
    await writer.put_endpoint("e", create=True)
    await refused(writer.put_replica("e", name, create=True, **({"address": "10.0.0.1", "port": 1} | changes)), field)
    assert "Replicas" not in await snapshot(store.target)


# -- sidecars ----------------------------------------------------------------------------------------------

PLACE = {"node": "n", "region": "eu", "zone": "z", "address": "10.0.0.1", "port": 30_000, "weight": 1.0}


async def test_a_sidecars_row_from_register_to_withdraw(store, writer):
    await refused(writer.register("e", "r", 1, **PLACE), "endpoint 'e' is not there")
    await writer.put_endpoint("e", create=True)
    await refused(writer.set_state("e", "r", 1, "READY"), "e/r is not registered")
    await writer.register("e", "r", 1, **PLACE)
    await writer.register("e", "r", 1, **PLACE)
    (found,) = await writer.replicas()
    assert (found["state"], found["generation"], found["node"]) == ("STARTING", 1, "n")
    await writer.set_state("e", "r", 1, "READY")
    assert (await writer.replicas())[0]["state"] == "READY"
    assert await writer.generation("e", "r") == 1
    assert await writer.generation("e", "x") == 0
    await writer.withdraw("e", "r", 1)
    await writer.withdraw("e", "r", 1)
    assert await writer.replicas() == []


async def test_a_newer_incarnation_fences_the_older(writer):
    await writer.put_endpoint("e", create=True)
    await writer.register("e", "r", 2, **PLACE)
    await writer.set_state("e", "r", 2, "READY")
    before = await writer.replicas()
    for call in (
        writer.register("e", "r", 1, **PLACE | {"port": 1}), writer.set_state("e", "r", 1, "DOWN"), writer.withdraw("e", "r", 1),
    ):  # fmt: skip
        with pytest.raises(FencedError, match="generation 2"):
            await call
    assert await writer.replicas() == before
    await writer.register("e", "r", 3, **PLACE)
    assert (await writer.replicas())[0]["generation"] == 3


async def test_two_incarnations_that_register_at_once_leave_the_newer(store):
    async with store.writer() as one, store.writer() as other:
        await one.put_endpoint("e", create=True)
        for turn in range(10):
            older, newer = 2 * turn + 1, 2 * turn + 2
            found = await asyncio.gather(
                one.register("e", "r", older, **PLACE), other.register("e", "r", newer, **PLACE), return_exceptions=True
            )
            assert all(f is None or isinstance(f, FencedError) for f in found), found
            assert found[1] is None
            assert await one.generation("e", "r") == newer


# -- routes ------------------------------------------------------------------------------------------------


async def test_routes_from_their_making_to_their_end(store, writer):
    await refused(writer.put_route("*", "/", "e", 0, create=True), "endpoint 'e' is not there")
    await writer.put_endpoint("e", create=True)
    await writer.put_endpoint("f", create=True)
    await writer.put_route("H.example", "/", "e", 0, create=True)
    await writer.put_route("h.example", "/v1", "f", 5, create=True)
    await refused(writer.put_route("h.example", "/", "f", 0, create=True), "there already")
    await refused(writer.put_route("h.example", "/v2", "f", 0, create=False), "is not there")
    assert [(r["path_prefix"], r["endpoint"], r["priority"]) for r in await writer.routes("H.EXAMPLE")] == [
        ("/v1", "f", 5), ("/", "e", 0),
    ]  # fmt: skip
    await writer.put_route("h.example", "/", "f", -1, create=False)
    await writer.delete_route("h.example", "/v1")
    assert [r["path_prefix"] for r in await writer.routes()] == ["/"]
    await writer.delete_route("h.example", "/")
    assert await writer.routes() == []
    found = await snapshot(store.target)
    assert not {"Hosts", "RouteSets", "Routes"} & set(found)
    await refused(writer.delete_route("h.example", "/"), "is not there")


@pytest.mark.parametrize(("host", "prefix", "field"), [("a b", "/", "HOST"), ("h", "x", "path_prefix"), ("h", "/a b", "path_prefix")])
async def test_routes_that_routers_could_not_use_are_refused(writer, host, prefix, field):
    await writer.put_endpoint("e", create=True)
    await refused(writer.put_route(host, prefix, "e", 0, create=True), field)
    assert await writer.routes() == []


async def test_a_priority_beyond_64_bits_is_refused(writer):
    await writer.put_endpoint("e", create=True)
    await refused(writer.put_route("h", "/", "e", 2**63, create=True))


async def test_routes_of_a_deleted_endpoint_go_and_those_of_others_stay(writer):
    await writer.put_endpoint("e", create=True, hosts=("e.x",))
    await writer.put_endpoint("f", create=True, hosts=("f.x",))
    await writer.put_route("f.x", "/e", "e", 0, create=True)
    await writer.delete_endpoint("e")
    assert [(r["host"], r["endpoint"]) for r in await writer.routes()] == [("f.x", "f")]


async def test_a_host_that_leads_elsewhere_is_not_taken_over_unasked(writer):
    """`route create` refuses it, and the static table does; `endpoint create --host` must not do it in passing."""
    await writer.put_endpoint("e", create=True, hosts=("*",))
    await refused(writer.put_endpoint("f", create=True, hosts=("*",)), "'e'")
    assert [r["endpoint"] for r in await writer.routes()] == ["e"]


# -- regions -----------------------------------------------------------------------------------------------


async def test_regions(writer):
    await writer.put_region("eu", create=True, state=None, weight=None, failover=("us", "ap"))
    assert await writer.regions() == [{"region": "eu", "state": "READY", "weight": 1.0, "failover": ["us", "ap"]}]
    changed = await writer.put_region("eu", create=False, state="DRAINING", weight=0.0, failover=())
    assert changed == {"region": "eu", "state": "DRAINING", "weight": 0.0, "failover": ["us", "ap"]}
    await writer.put_endpoint("e", create=True)
    await writer.put_replica("e", "r", create=True, address="h", port=1, region="eu")
    await refused(writer.delete_region("eu"), "1 replicas")
    await writer.delete_replica("e", "r")
    await writer.delete_region("eu")
    await refused(writer.delete_region("eu"), "is not there")


# -- when it cannot be -------------------------------------------------------------------------------------


async def test_a_store_that_is_not_there_is_named_with_what_to_do(folder):
    target = Target("embedded", f"unix:{folder}/nobody")
    with pytest.raises(StoreUnavailableError, match="router store"):
        async with open_writer(target):
            raise AssertionError("unreachable")


async def test_a_store_without_a_schema_is_named_with_what_to_do(make_store):
    bare = await make_store(init=False)
    with pytest.raises(StoreError, match="router store init") as failure:
        async with bare.writer() as writer:
            await writer.endpoints()
    assert not isinstance(failure.value, StoreUnavailableError)


async def test_a_store_that_goes_away_in_the_middle(store, writer):
    store.hooks.cuts.append(Cut("Commit"))
    with pytest.raises(StoreUnavailableError):
        await writer.put_endpoint("e", create=True)
    await writer.put_endpoint("e", create=True)


async def test_others_that_abort_a_transaction_are_outlived(store, writer, monkeypatch):
    from router.config import client

    monkeypatch.setattr(client, "MAX_ABORTS", 7)
    store.hooks.cuts.append(Cut("Commit", count=5, code="ABORTED"))
    await writer.put_endpoint("e", create=True)
    assert store.hooks.calls["Commit"] >= 6
    store.hooks.cuts.append(Cut("Commit", count=100, code="ABORTED"))
    await refused(writer.put_endpoint("f", create=True))
    store.hooks.cuts.clear()


async def test_what_is_wrong_leaves_no_transaction_behind(store, writer):
    for _ in range(3):
        await refused(writer.delete_endpoint("nobody"))
    open_ones = store.server._registry.database(store.target.database).transactions
    assert not open_ones._open


async def test_writers_of_one_row_do_not_lose_each_others_changes(store):
    await store.write(put_endpoint("e"), put_replica("e", "r"))
    async with store.writer() as one, store.writer() as other:
        for i in range(5):
            await asyncio.gather(
                one.put_replica("e", "r", create=False, weight=1.0 + i), other.put_replica("e", "r", create=False, zone=f"z{i}")
            )
            (found,) = await one.replicas()
            assert (found["weight"], found["zone"]) == (1.0 + i, f"z{i}")


def test_items_can_be_told_as_json():
    assert json.dumps({"a": 1.0})
