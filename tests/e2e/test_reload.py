"""SIGHUP: a good file is put in force, a bad one changes nothing, the access log is opened anew."""

from __future__ import annotations

import asyncio
import signal

import httpx
import pytest
from websockets.asyncio.client import connect

pytestmark = pytest.mark.asyncio(loop_scope="session")


def table(*urls, more=""):
    replicas = ", ".join(f'{{ address = "{url.replace("ws://", "http://")}" }}' for url in urls)
    return f'[[endpoint]]\nname = "main"\npolicy = "round_robin"\nreplica = [{replicas}]\n{more}'


def id_of(url):
    return url.partition("://")[2]


@pytest.fixture
def reload(until):
    """Write a file, send SIGHUP, and wait for the verdict on it."""

    async def reload(router, text):
        before = (await router.ask("/config_dump")).json()["last_reload"]["at_epoch_s"]
        router.toml_path.write_text(text)
        router.send_signal(signal.SIGHUP)

        async def judged():
            dump = (await router.ask("/config_dump")).json()
            return dump if dump["last_reload"]["at_epoch_s"] != before else None

        return await until(judged)

    return reload


async def used(client, router, count=6):
    return {(await client.get(f"{router.url}/_sim/echo")).headers.get("x-router-replica", "") for _ in range(count)}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_good_file(start_router, start_engine, client, until, reload, workers):
    old, kept, new = [await start_engine(time_scale=1) for _ in range(3)]
    router = await start_router(toml=table(old.url, kept.url), workers=workers)
    assert await used(client, router) == {id_of(old.url), id_of(kept.url)}
    body = {"model": "sim", "stream": True, "max_tokens": 300, "messages": [{"role": "user", "content": "x"}]}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        while True:  # until it is on the one that leaves
            request = http.build_request("POST", f"{router.url}/v1/chat/completions", json=body)
            stream = await http.send(request, stream=True)
            if stream.headers["x-router-replica"] == id_of(old.url):
                break
            await stream.aclose()
        pieces = stream.aiter_raw()
        text = await anext(pieces)
        version = (await router.ask("/config_dump")).json()["table"]["version"]
        dump = await reload(router, table(kept.url, new.url))
        assert dump["last_reload"]["ok"] and dump["table"]["version"] == version + 1

        async def everywhere():
            workers = (await router.ask("/config_dump")).json()["workers"]
            return {worker["table_version"] for worker in workers} == {version + 1}

        await until(everywhere)
        assert await used(client, router) == {id_of(kept.url), id_of(new.url)}
        async for piece in pieces:
            text += piece
        await stream.aclose()
    assert text.endswith(b"data: [DONE]\n\n") and b"event: error" not in text
    assert {row["id"] for row in await router.rows()} == {id_of(kept.url), id_of(new.url)}
    await router.settled()


async def test_a_websocket_outlives_its_replicas_place_in_the_table(start_router, policy, start_policy, reload):
    router = await start_router(toml=table(policy.url))
    other = await start_policy()
    async with connect(f"ws://127.0.0.1:{router.port}/echo", compression=None, proxy=None) as robot:
        await robot.send("before")
        assert await robot.recv() == "before"
        assert (await reload(router, table(other.url)))["last_reload"]["ok"]
        await robot.send("after")
        assert await robot.recv() == "after"
        async with connect(f"ws://127.0.0.1:{router.port}/echo", compression=None, proxy=None) as next_robot:
            assert next_robot.response.headers["x-router-replica"] == id_of(other.url)
    await router.settled()


BAD = [
    ("[[endpoint", "TOML"),
    (table("http://127.0.0.1:9", more="colour = 1\n"), "colour"),
    (table("gopher://127.0.0.1:9"), "endpoint[0].replica[0].address"),
    (table("http://127.0.0.1:9").replace("round_robin", "fastest"), "endpoint[0].policy"),
]


async def test_a_bad_file_changes_nothing(start_router, engine, client, reload):
    router = await start_router(toml=table(engine.url))
    version = (await router.ask("/config_dump")).json()["table"]["version"]
    for text, named in BAD:
        dump = await reload(router, text)
        assert not dump["last_reload"]["ok"]
        assert named in dump["last_reload"]["error"]
        assert named in router.stderr()
        assert dump["table"]["version"] == version
        assert await used(client, router, 2) == {id_of(engine.url)}
        assert (await router.ask("/readyz")).status_code == 200
    dump = await reload(router, table(engine.url))
    assert dump["last_reload"] | {"at_epoch_s": 0} == {"ok": True, "error": "", "at_epoch_s": 0}


async def test_an_empty_file_is_not_taken_for_a_table(start_router, engine, client, reload):
    """A file that was just truncated by an editor must not take everything down."""
    router = await start_router(toml=table(engine.url))
    dump = await reload(router, "")
    assert not dump["last_reload"]["ok"]
    assert await used(client, router, 2) == {id_of(engine.url)}


async def test_states_and_weights_change_in_place(start_router, start_engine, client, reload):
    first, second = await start_engine(), await start_engine()
    router = await start_router(toml=table(first.url, second.url))
    draining = table(first.url, second.url).replace(f'"{second.url}" }}', f'"{second.url}", state = "DRAINING" }}')
    assert (await reload(router, draining))["last_reload"]["ok"]
    assert await used(client, router) == {id_of(first.url)}
    assert (await router.row(second.url))["state"] == "DRAINING"
    assert (await reload(router, table(first.url, second.url)))["last_reload"]["ok"]
    assert await used(client, router) == {id_of(first.url), id_of(second.url)}


async def test_no_request_fails_while_tables_change(start_router, start_engine, client, reload):
    urls = [(await start_engine()).url for _ in range(3)]
    router = await start_router(toml=table(*urls))
    statuses, is_over = [], asyncio.Event()

    async def user():
        while not is_over.is_set():
            statuses.append((await client.post(f"{router.url}/_sim/echo", content=b"hello")).status_code)

    users = [asyncio.ensure_future(user()) for _ in range(4)]
    for i in range(12):
        left = [url for j, url in enumerate(urls) if j != i % 3]
        assert (await reload(router, table(*left)))["last_reload"]["ok"]
    is_over.set()
    await asyncio.gather(*users)
    assert set(statuses) == {200} and len(statuses) > 50
    await router.settled()


async def test_the_access_log_is_opened_anew(start_router, engine, client, until):
    router = await start_router(replicas=[engine.url], workers=2)

    async def call(i):
        headers = {"x-request-id": f"log-{i}", "connection": "close"}
        assert (await client.get(f"{router.url}/_sim/bytes?n=1", headers=headers)).status_code == 200

    for i in range(10):
        await call(i)
    await router.record("log-9")
    rotated = router.log_path.with_suffix(".1")
    router.log_path.rename(rotated)
    for i in range(10, 15):  # still into the old file, under its new name
        await call(i)
    await until(lambda: len(router.records(rotated)) == 15)
    router.send_signal(signal.SIGHUP)
    await until(router.log_path.exists)
    # Each worker opens it for itself: go on until both write to the new one.
    for i in range(15, 60):
        await call(i)

    def both():
        return len(router.records(rotated)) + len(router.records()) == 60

    await until(both)
    workers = {record["request_id"] for record in router.records()}
    assert len(workers) >= 40
    assert "refused" not in router.stderr()


async def test_sighup_with_replicas_by_flag(start_router, engine, client, until):
    """There is no file to read: the log is reopened, the table stays, the daemon lives."""
    router = await start_router(replicas=[engine.url])
    router.send_signal(signal.SIGHUP)
    await until(lambda: "reload" in router.stderr())
    assert (await router.ask("/config_dump")).json()["last_reload"]["ok"]
    assert (await client.get(f"{router.url}/_sim/echo")).status_code == 200
