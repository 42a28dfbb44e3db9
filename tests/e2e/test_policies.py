"""How requests spread over three replicas, by policy and weight."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="session")

ENDPOINT = """
[[endpoint]]
name = "{name}"
hosts = ["{name}.test"]
policy = "{policy}"
health = {{ kind = "none" }}
replica = [
  {{ address = "{urls[0]}", id = "a", weight = {weights[0]} }},
  {{ address = "{urls[1]}", id = "b", weight = {weights[1]} }},
  {{ address = "{urls[2]}", id = "c", weight = {weights[2]} }},
]
"""
POLICIES = ["round_robin", "random", "p2c", "least_inflight"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(keep_router, keep_engine):
    urls = [(await keep_engine(time_scale=0)).url for _ in range(3)]
    toml = ""
    for policy in POLICIES:
        name = policy.replace("_", "-")
        toml += ENDPOINT.format(name=f"{name}-even", policy=policy, urls=urls, weights=(1, 1, 1))
        toml += ENDPOINT.format(name=f"{name}-weighted", policy=policy, urls=urls, weights=(1, 2, 3))
    return await keep_router(toml=toml)


@pytest.fixture
def spread(client, router):
    """Where `count` requests went: one after the other, or all at once and in flight together."""

    async def call(endpoint, fault=""):
        headers = {"host": f"{endpoint}.test"} | ({"x-sim-fault": fault} if fault else {})
        response = await client.get(f"{router.url}/_sim/echo", headers=headers)
        assert response.status_code == 200
        return response.headers["x-router-replica"]

    async def spread(endpoint, count, together=False):
        if together:
            return Counter(await asyncio.gather(*(call(endpoint, "slow;ms=1000") for _ in range(count))))
        return Counter([await call(endpoint) for _ in range(count)])

    return spread


async def test_round_robin_is_exact(spread):
    assert await spread("round-robin-even", 90) == {"a": 30, "b": 30, "c": 30}
    assert await spread("round-robin-weighted", 120) == {"a": 20, "b": 40, "c": 60}


async def test_random_follows_the_weights(spread):
    """Bounds of six standard deviations: once in 10^8 runs."""
    even = await spread("random-even", 300)
    assert all(51 <= even[name] <= 149 for name in "abc"), even
    weighted = await spread("random-weighted", 300)
    assert 98 <= weighted["c"] <= 202 and 11 <= weighted["a"] <= 89, weighted


@pytest.mark.slow
async def test_least_inflight_is_level(spread, router):
    assert await spread("least-inflight-even", 30, together=True) == {"a": 10, "b": 10, "c": 10}
    weighted = await spread("least-inflight-weighted", 30, together=True)
    assert all(abs(weighted[name] - want) <= 1 for name, want in (("a", 5), ("b", 10), ("c", 15))), weighted
    await router.settled()


@pytest.mark.slow
async def test_p2c_is_nearly_level(spread, router):
    even = await spread("p2c-even", 60, together=True)
    assert all(14 <= even[name] <= 26 for name in "abc"), even
    weighted = await spread("p2c-weighted", 60, together=True)
    assert weighted["a"] < weighted["b"] < weighted["c"], weighted
    await router.settled()


async def test_every_replica_is_used_when_idle(spread):
    for policy in ("p2c", "least-inflight"):
        used = await spread(f"{policy}-even", 100)
        # p2c prefers the faster of two that are both idle; it must not starve more than the slowest.
        assert len(used) >= 2, (policy, used)


async def test_a_replica_that_refuses_fast_draws_no_traffic(start_router, start_server, engine, client):
    """503s are the fastest answers there are; a policy that goes by load alone would send everything there."""

    async def refuse(reader, writer):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")

    refuser = await start_server(refuse)
    router = await start_router("--policy", "p2c", "--health", "none", replicas=[refuser, engine.url])
    users = asyncio.Semaphore(4)

    async def call():
        async with users:
            headers = {"x-sim-fault": "slow;ms=20"}
            return (await client.get(f"{router.url}/_sim/echo", headers=headers)).status_code

    answers = Counter(await asyncio.gather(*(call() for _ in range(200))))
    assert set(answers) == {200, 503}
    assert answers[503] < 60, answers
    row = await router.row(refuser)
    assert row["backpressured"] == answers[503] and row["failures"] == 0 and not row["is_ejected"]
