"""Who is in the rotation: active checks, passive ejection, the safe retry, connections cut when idle."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from random import Random

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHECKED = """
[[endpoint]]
name = "checked"
policy = "round_robin"
health = {{ kind = "http", interval_s = 0.1, unhealthy_after = 2 }}
replica = [{replicas}]
"""


def table(*urls):
    return CHECKED.format(replicas=", ".join(f'{{ address = "{url}" }}' for url in urls))


@pytest.fixture
def hammer(client):
    """Call without pause from several users, until told to stop; returns (status, replica) pairs."""

    class Hammer:
        def __init__(self, router, users=4):
            self.answers = []
            self._stopped = False
            self._users = [asyncio.ensure_future(self._call(router)) for _ in range(users)]

        async def _call(self, router):
            while not self._stopped:
                response = await client.post(f"{router.url}/_sim/echo", content=b"hello")
                self.answers.append((response.status_code, response.headers.get("x-router-replica", "")))
                await asyncio.sleep(0.002)

        async def stop(self):
            self._stopped = True
            await asyncio.gather(*self._users)
            return self.answers

    return Hammer


@pytest.mark.slow
async def test_a_draining_replica_leaves_and_comes_back_unnoticed(start_router, start_engine, hammer, until):
    leaving = await start_engine(linger_s=3, drain_s=10)
    staying = await start_engine()
    router = await start_router(toml=table(leaving.url, staying.url))
    load = hammer(router)

    async def health(is_healthy):
        return (await router.row(leaving.url))["is_healthy"] is is_healthy

    await until(lambda: len({replica for _, replica in load.answers}) == 2)
    leaving.send_signal(signal.SIGTERM)
    await until(lambda: health(False))
    seen = len(load.answers)
    await until(lambda: len(load.answers) > seen + 50)
    # What was in flight when the verdict came is among the first of these.
    assert {replica for _, replica in load.answers[seen + 10 :]} == {staying.url.partition("://")[2]}
    assert await leaving.wait() == 0
    again = await start_engine(port=int(leaving.url.rpartition(":")[2]))
    assert again.url == leaving.url
    await until(lambda: health(True))
    seen = len(load.answers)
    await until(lambda: len({replica for _, replica in load.answers[seen:]}) == 2)
    answers = await load.stop()
    assert Counter(status for status, _ in answers) == {200: len(answers)}
    await router.settled()


@pytest.mark.slow
async def test_a_starting_replica_is_not_used_before_it_is_ready(start_router, start_engine, client, until):
    ready = await start_engine()
    starting = await start_engine(startup_s=4)  # longer than the router takes to start
    router = await start_router(toml=table(starting.url, ready.url))

    async def row_of_starting():
        return await router.row(starting.url)

    first = await until(lambda: _checked(row_of_starting))
    assert not first["is_healthy"] and "503" in first["health_reason"]
    for _ in range(6):
        response = await client.get(f"{router.url}/_sim/echo")
        assert response.status_code == 200

    async def is_healthy():
        return (await row_of_starting())["is_healthy"]

    await until(is_healthy)
    used = {(await client.get(f"{router.url}/_sim/echo")).headers["x-router-replica"] for _ in range(4)}
    assert len(used) == 2


async def _checked(row):
    found = await row()
    return found if found["checked_ago_s"] is not None else None


async def test_health_fallback_path(start_router, start_server, client, until):
    """SGLang's Rust front end has no /ready: 404 there, and /health is asked."""
    asked = []

    async def serve(reader, writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            asked.append(path)
            status = b"404 Not Found" if path == "/ready" else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")

    url = await start_server(serve)
    router = await start_router("--health", "http", "--health-interval-s", 0.1, replicas=[url])
    await until(lambda: asked.count("/health") >= 3)
    assert (await router.row(url))["is_healthy"]
    assert (await client.get(router.url)).status_code == 200


async def test_refused_connects_move_on_and_eject(start_router, engine, closed_port, client):
    router = await start_router("--policy", "round_robin", "--health", "none", replicas=[closed_port, engine.url])
    for i in range(30):
        response = await client.post(
            f"{router.url}/_sim/echo", content=b"hello", headers={"x-request-id": f"retry-{i}"}
        )
        assert response.status_code == 200
        assert response.headers["x-router-replica"] == engine.url.partition("://")[2]
        assert response.json()["length"] == 5
    await router.record("retry-29")
    retries = Counter(record["retries"] for record in router.records())
    assert set(retries) == {0, 1} and retries[1] == 5  # ejected after five in a row
    row = await router.row(closed_port)
    assert row["is_ejected"] and row["ejections"] == 1 and row["failures"] == 5 and row["in_flight"] == 0
    assert (await router.row(engine.url))["failures"] == 0
    assert "failed_outlier_check" in (await router.ask("/clusters")).text
    await router.settled()


async def test_gateway_errors_eject_but_4xx_do_not(start_router, start_server, engine, client):
    answer = [b"502 Bad Gateway"]

    async def serve(reader, writer):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 " + answer[0] + b"\r\ncontent-length: 0\r\n\r\n")

    bad = await start_server(serve)
    router = await start_router("--policy", "round_robin", "--health", "none", replicas=[bad, engine.url])

    async def statuses():
        return Counter([(await client.get(f"{router.url}/_sim/echo")).status_code for _ in range(20)])

    answer[0] = b"400 Bad Request"
    assert await statuses() == {200: 10, 400: 10}
    assert not (await router.row(bad))["is_ejected"]
    answer[0] = b"502 Bad Gateway"
    found = await statuses()
    assert found[502] == 5 and found[200] == 15
    assert (await router.row(bad))["is_ejected"]


@pytest.mark.slow
async def test_no_request_is_lost_to_a_keep_alive_cut(start_router, start_engine, client):
    """Engines that cut idle connections after 0.5 s, and users who pause for about that long."""
    urls = [(await start_engine(keep_alive_s=0.5)).url for _ in range(2)]
    router = await start_router("--health", "none", replicas=urls)
    rng = Random(7)

    async def user(pauses):
        statuses = []
        for pause_s in pauses:
            response = await client.post(f"{router.url}/_sim/echo", content=b"hello")
            statuses.append((response.status_code, response.headers.get("x-router-error", "")))
            await asyncio.sleep(pause_s)
        return statuses

    users = [user([rng.uniform(0.46, 0.54) for _ in range(8)]) for _ in range(30)]
    answers = Counter(answer for statuses in await asyncio.gather(*users) for answer in statuses)
    assert answers == {(200, ""): 240}
    await router.settled()


async def test_replicas_by_the_admin_listener(start_router, start_engine, client, until):
    first, second = await start_engine(), await start_engine()
    router = await start_router("--policy", "round_robin", "--health-interval-s", 0.1, replicas=[first.url])
    added = await router.ask("/workers", "POST", json={"url": second.url})
    assert added.status_code == 202

    async def used():
        return {(await client.get(f"{router.url}/_sim/echo")).headers["x-router-replica"] for _ in range(4)}

    ids = {engine.url.partition("://")[2] for engine in (first, second)}

    async def both():
        return await used() == ids

    await until(both)
    removed = await router.ask(f"/workers/{first.url.partition('://')[2]}", "DELETE")
    assert removed.status_code == 200

    async def one():
        return await used() == {second.url.partition("://")[2]}

    await until(one)


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_checks_of_a_replica_that_speaks_http2_alone(start_router, start_grpc, until, kind):
    """grpcio answers gRPC's own health service, and resets a plain GET."""
    kit = await start_grpc()
    router = await start_router("--health", kind, "--health-interval-s", "0.1", replicas=[kit.url])

    async def is_healthy(wanted):
        (row,) = await router.rows()
        return row["is_healthy"] is wanted

    await until(lambda: is_healthy(kind == "grpc"))
    if kind == "grpc":
        await asyncio.to_thread(kit.kill)
        await until(lambda: is_healthy(False))
