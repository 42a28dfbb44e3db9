"""Several workers: connections spread, the dead are replaced, the stalled do not stall the admin listener."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from statistics import median

import httpx
import psutil
import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIVEZ_S = 0.2


@pytest_asyncio.fixture(loop_scope="session")
async def router(start_router, engine):
    return await start_router(replicas=[engine.url], workers=2)


@pytest.fixture
def fresh(router):
    """One request on a connection of its own."""

    async def call(path="/_sim/echo", **options):
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            return await http.get(router.url + path, headers={"connection": "close"}, **options)

    return call


async def test_both_workers_are_there_and_serve(router, fresh):
    workers = await router.workers()
    assert len({worker["pid"] for worker in workers}) == 2
    assert {worker["state"] for worker in workers} == {"ready"}
    assert {child.pid for child in psutil.Process(router.pid).children()} == {w["pid"] for w in workers}
    responses = [await fresh() for _ in range(40)]
    assert {response.status_code for response in responses} == {200}
    # The first half of a request id is the worker's own.
    spread = [response.headers["x-request-id"].partition("-")[0] for response in responses]
    assert len(set(spread)) == 2 and min(spread.count(name) for name in set(spread)) >= 4
    await router.settled()
    assert (await router.rows())[0]["requests"] == 40


async def test_a_killed_worker_is_replaced(router, fresh, until, gone):
    before = await router.workers()
    victim = before[0]["pid"]
    os.kill(victim, signal.SIGKILL)

    async def replaced():
        now = await router.workers()
        return now[0]["pid"] != victim and now[0]["state"] == "ready" and now

    now = await until(replaced)
    assert (now[0]["restarts"], now[1]["restarts"]) == (1, 0)
    assert now[1]["pid"] == before[1]["pid"]
    assert gone(victim)
    responses = [await fresh() for _ in range(40)]
    assert {response.status_code for response in responses} == {200}
    assert len({response.headers["x-request-id"].partition("-")[0] for response in responses}) == 2
    assert (await router.ask("/readyz")).status_code == 200
    metrics = (await router.ask("/metrics")).text
    assert "restarts" in metrics
    await router.settled()


async def test_connections_wait_for_the_replacement(start_router, engine, until):
    """The only worker dies: what connects meanwhile waits in the accept queue and is served by the next."""
    router = await start_router(replicas=[engine.url], workers=1)
    victim = await router.worker_pid()
    os.kill(victim, signal.SIGKILL)

    async def is_noticed():
        return (await router.workers())[0]["pid"] != victim or (await router.workers())[0]["state"] != "ready"

    await until(is_noticed)
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        assert (await http.get(f"{router.url}/_sim/echo")).status_code == 200


async def test_a_dead_workers_requests_are_not_counted_for_ever(start_router, start_engine, client, until):
    """In-flight counts are shared; those of a dead worker must not fill the replica's limit."""
    engine = await start_engine(time_scale=1)
    router = await start_router("--max-concurrency", 2, replicas=[engine.url], workers=2)
    body = {"model": "sim", "stream": True, "max_tokens": 50, "messages": [{"role": "user", "content": "x"}]}
    headers = {"x-sim-fault": "stall;after=1"}
    request = client.build_request("POST", f"{router.url}/v1/chat/completions", json=body, headers=headers)
    holders = [await client.send(request, stream=True) for _ in range(2)]
    assert {holder.status_code for holder in holders} == {200}
    refused = await client.get(f"{router.url}/_sim/echo")
    assert refused.headers.get("x-router-error") == "at_capacity"
    for worker in await router.workers():
        os.kill(worker["pid"], signal.SIGKILL)

    async def restarted():
        return all(worker["restarts"] == 1 and worker["state"] == "ready" for worker in await router.workers())

    await until(restarted)
    for holder in holders:
        await holder.aclose()
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        assert (await http.get(f"{router.url}/_sim/echo")).status_code == 200


async def test_admin_answers_while_a_worker_is_stopped(router, until, record_property):
    pid = (await router.workers())[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        took_s = []
        for path in ("/livez", "/readyz") * 5:
            began_s = time.monotonic()
            assert (await router.ask(path)).status_code == 200
            took_s.append(time.monotonic() - began_s)
        record_property("livez_ms", round(median(took_s) * 1e3, 1))
        print("livez_ms", round(median(took_s) * 1e3, 1), round(max(took_s) * 1e3, 1))
        assert median(took_s) < LIVEZ_S

        async def is_seen():
            await router.ask("/clusters")  # asks the workers, and so finds out
            return (await router.workers())[0]["stalled"]

        await until(is_seen)
        assert "stalled" in (await router.ask("/readyz?verbose")).text
        assert (await router.ask("/metrics")).status_code == 200
    finally:
        os.kill(pid, signal.SIGCONT)

    async def recovered():
        await router.ask("/clusters")
        return not (await router.workers())[0]["stalled"]

    await until(recovered)
    assert {worker["restarts"] for worker in await router.workers()} == {0}


async def test_workers_end_with_a_killed_supervisor(router, until, gone):
    pids = [worker["pid"] for worker in await router.workers()]
    router.send_signal(signal.SIGKILL)
    assert await router.wait() == -signal.SIGKILL
    try:
        await until(lambda: all(gone(pid) for pid in pids))
    finally:
        for pid in pids:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


async def test_all_workers_share_one_view_of_a_limit(start_router, engine, until):
    """max_concurrency counts for the host, not for each worker."""
    router = await start_router("--max-concurrency", 4, "--health", "none", replicas=[engine.url], workers=2)
    release = asyncio.Event()

    async def hold():
        async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
            body = {"model": "sim", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
            headers = {"x-sim-fault": "stall;after=1"}
            async with http.stream("POST", f"{router.url}/v1/chat/completions", json=body, headers=headers) as held:
                await asyncio.wait_for(release.wait(), 20)
                return held.status_code

    holders = [asyncio.ensure_future(hold()) for _ in range(4)]

    async def all_held():
        return (await router.rows())[0]["in_flight"] == 4

    await until(all_held)
    for _ in range(10):  # on connections of their own, so that both workers are asked
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            refused = await http.get(f"{router.url}/_sim/echo")
            assert refused.headers.get("x-router-error") == "at_capacity"
    release.set()
    assert set(await asyncio.gather(*holders)) == {200}
    await router.settled()
