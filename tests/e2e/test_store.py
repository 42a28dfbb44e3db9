"""Routers on a store in a process of its own: its rows under traffic, its death, its absence."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from inference_backend.ports import free_port

sys.path.insert(0, str(Path(__file__).parent))

from loadkit import lineage  # noqa: E402
from storekit import StoreProcess, Traffic, stamp, table_of  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def folder():
    """A directory with a short path: that of a Unix socket ends at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="r") as name:
        yield Path(name)


@pytest_asyncio.fixture(loop_scope="session")
async def store(folder):
    found = StoreProcess(folder)
    try:
        await found.start()
        yield found
    finally:
        await asyncio.to_thread(found.end)


@pytest_asyncio.fixture(loop_scope="session")
async def serve(start_router, store, folder):
    """`await serve(*flags, workers=1, state="a")`: a router on the store."""

    async def start(*flags, workers=1, state="a"):
        return await start_router(
            "--store", store.setting, "--state-dir", folder / state, "--drain-settle-s", 0, *flags, workers=workers
        )

    return start


@pytest_asyncio.fixture(loop_scope="session")
async def engines(start_engine):
    return [await start_engine(time_scale=0) for _ in range(2)]


def place(engine):
    parts = urlsplit(engine.url)
    return {"address": parts.hostname, "port": parts.port}


async def fill(store, engines, names=None):
    """Endpoint e for any host, with a replica for each engine."""
    async with store.writer() as writer:
        await writer.put_endpoint("e", create=True, unauthenticated=True, hosts=("*",))
        for i, engine in enumerate(engines):
            await writer.put_replica("e", f"r{i}", create=True, **place(engine))


async def serves(router, client, host="h"):
    answer = await client.post(router.url + "/_sim/echo", content=b"x", headers={"host": host})
    return answer.status_code == 200


async def ready(router, until, count=2):
    async def has():
        return len(table_of((await router.ask("/config_dump")).json()).get("e", ())) == count

    await until(has)


# -- the store's absence -----------------------------------------------------------------------------------


async def test_a_router_starts_from_its_checkpoint_while_the_store_is_down(store, serve, engines, client, until):
    await fill(store, engines)
    router = await serve()
    await ready(router, until)
    await router.stop()
    store.kill()
    router = await serve()
    assert await serves(router, client)
    dump = (await router.ask("/config_dump")).json()
    assert dump["config"]["source"] == "checkpoint"
    assert not dump["config"]["connected"]
    assert dump["config_staleness_s"] > 0
    assert (await router.ask("/readyz")).status_code == 200
    async with Traffic(router.port) as traffic:
        await store.start(init=False)
        async with store.writer() as writer:
            await writer.delete_replica("e", "r0")
        await ready(router, until, 1)
    assert traffic.failures == []
    assert traffic.done
    dump = (await router.ask("/config_dump")).json()
    assert dump["config"]["bootstraps"] == 0


async def test_without_store_and_checkpoint_it_ends_with_its_own_code(run_router, folder):
    done = await run_router(
        "serve", "--store", f"embedded:{folder}/nobody", "--state-dir", folder, "--store-start-timeout-s", "0.5",
        "--listen", "127.0.0.1:0", "--admin", "none",
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "no table" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
async def test_without_a_schema_it_says_what_to_do(run_router, folder):
    bare = StoreProcess(folder)
    await bare.start(init=False)
    try:
        done = await run_router(
            "serve", "--store", bare.setting, "--state-dir", folder, "--store-start-timeout-s", "0.5",
            "--listen", "127.0.0.1:0", "--admin", "none",
        )  # fmt: skip
    finally:
        await asyncio.to_thread(bare.end)
    assert done.returncode == 5, done.stderr
    assert "router store init" in done.stderr


@pytest.mark.slow
async def test_a_router_that_waits_is_not_ready_and_says_why(start_router, folder, client, engines, until):
    store = StoreProcess(folder)
    router = await start_router("--store", store.setting, "--state-dir", folder, "--store-start-timeout-s", "0")
    try:

        async def reason():
            answer = await router.ask("/readyz")
            return answer.status_code == 503 and "UNAVAILABLE" in answer.text

        await until(reason)
        await store.start()
        await fill(store, engines)
        await ready(router, until)
        assert (await router.ask("/readyz")).status_code == 200
        assert await serves(router, client)
    finally:
        await asyncio.to_thread(store.end)


async def test_the_store_killed_under_traffic_fails_no_request(store, serve, engines, client, until):
    await fill(store, engines)
    router = await serve(workers=2)
    await ready(router, until)
    async with Traffic(router.port) as traffic:
        await until(lambda: traffic.done > 100)
        store.kill()

        async def is_told():
            return not (await router.ask("/config_dump")).json()["config"]["connected"]

        await until(is_told)
        before = traffic.done
        await until(lambda: traffic.done > before + 200)
        await store.start(init=False)
        async with store.writer() as writer:
            await writer.put_replica("e", "r0", create=False, state="DOWN")
        await ready(router, until, 1)
        await stamp(router, client)
        before = traffic.done
        await until(lambda: traffic.done > before + 200)
    assert traffic.failures == []
    dump = (await router.ask("/config_dump")).json()
    assert dump["config"]["bootstraps"] == 1
    assert dump["config"]["error"] == ""


# -- rows --------------------------------------------------------------------------------------------------


async def test_a_commit_reaches_every_worker(store, serve, engines, client, until):
    await fill(store, engines)
    router = await serve(workers=3)
    await ready(router, until)
    async with store.writer() as writer:
        for i in range(5):
            await writer.put_replica("e", f"x{i}", create=True, **place(engines[0]))
            began = monotonic()
            await ready(router, until, 3 + i)
            dump = await stamp(router, client)
            assert monotonic() - began < 2.0
            assert f"x{i}" in table_of(dump)["e"]
    # And one that is started later has them as well.
    (first, *_) = await router.workers()
    import psutil

    psutil.Process(first["pid"]).kill()

    async def is_back():
        workers = await router.workers()
        return workers[0]["pid"] != first["pid"] and workers[0]["state"] == "ready"

    await until(is_back)
    await stamp(router, client)


@pytest.mark.slow
async def test_rows_that_churn_under_traffic_fail_no_request(store, serve, engines, client, until):
    await fill(store, engines)
    router = await serve(workers=2)
    await ready(router, until)
    async with Traffic(router.port, count=12, fault="slow;ms=10") as traffic, store.writer() as writer:
        await until(lambda: traffic.done > 50)
        ends = monotonic() + 3.0
        turn = 0
        while monotonic() < ends:
            turn += 1
            name = f"t{turn % 5}"
            rows = {row["replica"] for row in await writer.replicas("e")}
            if name in rows:
                await writer.delete_replica("e", name)
            else:
                await writer.put_replica("e", name, create=True, **place(engines[turn % 2]))
            await writer.put_replica("e", "r0", create=False, weight=1.0 + turn % 3, state=("READY", "DRAINING")[turn % 2])
            if turn % 7 == 0:
                await writer.put_endpoint("e", create=False, policy=f'{{"retries": {turn % 4 + 1}, "unauthenticated": true}}')
            if turn % 11 == 0:
                await writer.put_endpoint(f"other{turn}", create=True, unauthenticated=True, hosts=(f"other{turn}.example",))
        await stamp(router, client)
    assert traffic.failures == []
    assert traffic.done > 500
    assert turn > 50
    assert len([name for name in traffic.replicas if name.startswith("t")]) == 5


async def test_a_paused_endpoint_and_its_routes(store, serve, engines, client, until):
    await fill(store, engines)
    router = await serve()
    await ready(router, until)
    async with store.writer() as writer:
        await writer.put_endpoint("f", create=True, unauthenticated=True, hosts=("f.example",))
        await writer.put_replica("f", "r", create=True, **place(engines[1]))
        await writer.delete_route("*", "/")
        await writer.put_endpoint("e", create=False, hosts=("e.example",))

        async def only(host):
            return await serves(router, client, host) and not await serves(router, client, "nobody.example")

        await until(lambda: only("e.example"))
        await until(lambda: only("f.example"))
        await writer.put_endpoint("e", create=False, state="PAUSED")

        async def is_out():
            return not await serves(router, client, "e.example")

        await until(is_out)
        assert await serves(router, client, "f.example")
        await writer.put_endpoint("e", create=False, state="ACTIVE")
        await until(lambda: serves(router, client, "e.example"))


async def test_bad_rows_are_shown_and_the_last_good_ones_serve(store, serve, engines, client, until):
    await fill(store, engines)
    router = await serve()
    await ready(router, until)
    async with store.writer() as writer:
        # As another program might write it: the writer of ours refuses this.
        await writer.query("SELECT 1")

        async def spoil(t):
            t.write("update", "Replicas", ("EndpointId", "ReplicaId", "Port", "UpdatedAt"),
                    ("e", "r0", "70000", "spanner.commit_timestamp()"))  # fmt: skip
            t.write("update", "Endpoints", ("EndpointId", "Policy", "UpdatedAt"),
                    ("e", '{"policy": "best"}', "spanner.commit_timestamp()"))  # fmt: skip

        await writer.transact(spoil)

    async def shown():
        return (await router.ask("/config_dump")).json()["quarantine"]

    await until(shown)
    found = {row["table"]: row for row in await shown()}
    assert found["Replicas"]["key"] == "e/r0"
    assert "70000" in found["Replicas"]["reason"]
    assert "Policy.policy" in found["Endpoints"]["reason"]
    assert await serves(router, client)
    metrics = (await router.ask("/metrics")).text
    assert "router_config_quarantined_rows 2" in metrics
    async with store.writer() as writer:
        await writer.put_endpoint("e", create=False, policy='{"unauthenticated": true}')
        await writer.put_replica("e", "r0", create=False, **place(engines[0]))

    async def is_mended():
        return not await shown()

    await until(is_mended)


async def test_a_loss_of_most_replicas_is_held_until_it_is_accepted(store, serve, engines, client, until):
    await fill(store, engines)
    async with store.writer() as writer:
        for i in range(10):
            await writer.put_replica("e", f"x{i}", create=True, **place(engines[0]))
        router = await serve(workers=2)
        await ready(router, until, 12)

        async def clear(t):
            t.write("delete", "Replicas", (), *(("e", name) for name in [f"x{i}" for i in range(10)]))

        await writer.transact(clear)

    async def held():
        return (await router.ask("/config_dump")).json()["config"]["held"]

    assert await until(held) == 10
    assert len(table_of(await stamp(router, client))["e"]) == 12
    answer = await router.ask("/config/accept", method="POST")
    assert answer.json() == {"accepted": True, "removed_ready_replicas": 10}
    await ready(router, until, 2)
    await stamp(router, client)
    assert await serves(router, client)
    assert (await router.ask("/config/accept", method="POST")).json()["removed_ready_replicas"] == 0
    assert (await router.ask("/config/accept")).status_code == 405


@pytest.mark.slow
async def test_what_is_done_by_hand_is_refused_beside_a_store(store, serve, engines, client, until):
    await fill(store, engines)
    router = await serve()
    await ready(router, until)
    answer = await router.ask("/workers", method="POST", json={"url": engines[0].url})
    assert answer.status_code == 400
    assert "router replica create" in answer.text


async def test_a_routers_own_settings_may_be_checked_beside_a_store(run_router, folder):
    done = await run_router("serve", "--store", f"embedded:{folder}/s", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_table_that_comes_from_two_places_is_refused(run_router, folder):
    done = await run_router("serve", "--store", f"embedded:{folder}/s", "--replica", "http://127.0.0.1:1")
    assert done.returncode == 2
    assert "--store" in done.stderr


# -- relays ------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_router_behind_a_relay(store, start_router, engines, folder, client, until):
    await fill(store, engines)
    (folder / "relay").mkdir()
    relay = StoreProcess(folder / "relay")
    await relay.start("--follow", store.setting, init=False)
    try:
        router = await start_router("--store", f"relay:{relay.path}", "--state-dir", folder / "b", "--drain-settle-s", 0)
        await ready(router, until)
        async with Traffic(router.port) as traffic:
            async with store.writer() as writer:
                await writer.put_replica("e", "new", create=True, **place(engines[0]))
            await ready(router, until, 3)
            relay.kill()
            before = traffic.done
            await until(lambda: traffic.done > before + 50)
            await relay.start("--follow", store.setting, init=False)
            async with store.writer() as writer:
                await writer.delete_replica("e", "new")
            await ready(router, until, 2)
            store.kill()
            before = traffic.done
            await until(lambda: traffic.done > before + 50)
        assert traffic.failures == []
    finally:
        await asyncio.to_thread(relay.end)


# -- drain -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_draining_a_replica_by_command_waits_for_what_is_on_it(
    store, serve, engines, run_router, folder, client, until
):
    await fill(store, engines[:1])
    admins = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    routers = [await serve("--admin", admin, state=f"s{i}") for i, admin in enumerate(admins)]
    for router in routers:
        await ready(router, until, 1)
    slow = asyncio.ensure_future(
        client.get(routers[1].url + "/_sim/echo", headers={"host": "h", "x-sim-fault": "slow;ms=3000"})
    )

    async def is_under_way():
        return (await routers[1].rows())[0]["in_flight"] == 1

    await until(is_under_way)
    words = ("replica", "drain", "e", "r0", "--store", store.setting, "--wait", "--admin", admins[0], "--admin", admins[1])
    early = await run_router(*words, "--wait-s", "0.3")
    assert early.returncode == 1 and f"{admins[1]}: 1 requests on it" in early.stderr, early.stderr
    done = await run_router(*words)
    assert done.returncode == 0 and "DRAINING" in done.stdout, done.stderr
    assert slow.done() and slow.result().status_code == 200
    assert not await serves(routers[0], client)
    assert (await run_router("replica", "undrain", "e", "r0", "--store", store.setting)).returncode == 0

    async def is_back():
        return await serves(routers[0], client)

    await until(is_back)


# -- upgrades ------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_an_upgrade_while_rows_change_loses_neither_requests_nor_rows(
    store, serve, engines, folder, until, gone
):
    await fill(store, engines)
    router = await serve(workers=2)
    await ready(router, until)
    async with lineage(router, until, gone) as line, Traffic(router.port) as traffic:
        for number in range(3):
            async with store.writer() as writer:
                await writer.put_endpoint(f"x{number}", create=True, hosts=(f"x{number}",))
            upgrading = asyncio.ensure_future(line.upgrade())
            async with store.writer() as writer:
                await writer.put_replica(f"x{number}", "r", create=True, **place(engines[0]))
            info = await upgrading
            assert info["config"]["source"] in ("checkpoint", "store")
            await ready(router, until)

            async def is_here(number=number):
                return table_of((await router.ask("/config_dump")).json()).get(f"x{number}")

            await until(is_here)
        await line.settled()
        dump = (await router.ask("/config_dump")).json()
        assert dump["config"]["bootstraps"] == 0, "it went on where its predecessor's checkpoint ends"
    assert traffic.failures == [] and traffic.done
    assert not list((folder / "a").glob("*.new")), "no half of a checkpoint"


@pytest.mark.slow
async def test_an_upgrade_while_the_store_is_down(store, serve, engines, until, gone):
    await fill(store, engines)
    router = await serve()
    await ready(router, until)
    async with lineage(router, until, gone) as line, Traffic(router.port) as traffic:
        store.kill()
        info = await line.upgrade()
        assert info["config"]["source"] == "checkpoint" and not info["config"]["connected"]
        await store.start(init=False)
        async with store.writer() as writer:
            await writer.delete_replica("e", "r0")
        await ready(router, until, 1)
        await line.settled()
    assert traffic.failures == [] and traffic.done


@pytest.mark.slow
async def test_a_successor_knows_which_replicas_are_ill_before_it_serves(store, serve, engines, until, gone):
    await fill(store, engines)
    router = await serve()
    await ready(router, until)
    await engines[0].kill()

    async def ill():
        return sum(row["is_healthy"] for row in await router.rows()) == 1

    await until(ill)
    async with lineage(router, until, gone) as line, Traffic(router.port) as traffic:
        await line.upgrade()
        assert await ill(), "at once"
        await line.settled()
    assert traffic.failures == [] and traffic.done
