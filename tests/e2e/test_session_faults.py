"""Sticky sessions when something goes away: all routers, one of them, the store; and an autoscaler that would take a replica."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

import sessionkit as kit  # noqa: E402
from storekit import StoreProcess  # noqa: E402
from test_autoscale import SHORT, Autoscaler, sidecars, with_signal  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]
NAME, HOST = "e", "e.example"
ORPHANED_S = 180.0
"""What the end of a session may take that nobody uses and whose router is gone."""


@pytest_asyncio.fixture(loop_scope="session")
async def store() -> AsyncIterator[Any]:
    with tempfile.TemporaryDirectory(prefix="r") as name:
        found = StoreProcess(Path(name))
        try:
            await found.start()
            yield found
        finally:
            await asyncio.to_thread(found.end)


@pytest.fixture
def serve(start_router: Any, store: Any) -> Callable[..., Awaitable[Any]]:
    """`await serve(state, **more)`: a router of the store, with a state directory of that name."""

    async def start(state: str, *flags: str, **more: Any) -> Any:
        return await start_router(
            "--store", store.setting, "--state-dir", store.folder / state, "--drain-settle-s", 0, *flags, **more
        )

    return start


async def sessioned(store: Any, url: str = "", replicas: int = 2, **policy: Any) -> None:
    """Make the endpoint, with so many replicas at `url`."""
    host, _, port = url.partition("://")[2].partition(":")
    async with store.writer() as writer:
        text = json.dumps({"sessions": {}} | policy)
        await writer.put_endpoint(
            NAME, create=True, unauthenticated=True, hosts=(HOST,), policy=text, health='{"kind": "none"}'
        )
        for i in range(replicas):
            await writer.put_replica(NAME, f"r{i}", create=True, address=host, port=int(port))


async def knows(router: Any, replicas: int) -> None:
    """Wait until every worker has the endpoint with so many replicas."""

    async def has() -> bool:
        dump = (await router.ask("/config_dump")).json()
        found = [each for each in dump["table"]["endpoints"] if each["name"] == NAME]
        versions = {worker["table_version"] for worker in dump["workers"]}
        return bool(found) and len(found[0]["replicas"]) == replicas and versions == {dump["table"]["version"]}

    await kit.until(has)


async def used(router: Any, session: kit.Session) -> None:
    answer = await kit.use("http1", router, session.host, session.token)
    assert (answer.error, answer.replica) == ("", session.replica)


# -- routers -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_of_all_routers_loses_no_session(store: Any, serve: Any, engine: Any, number: int) -> None:
    await sessioned(store, engine.url)
    before = [await serve("a", workers=2), await serve("b")]
    for router in before:
        await knows(router, 2)
    sessions = [await kit.opened(before[i % 2], HOST) for i in range(6)]
    for router in before:
        router.send_signal(number)
    for router in before:
        assert await router.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert {session.id for session in sessions} <= (await kit.rows(store, NAME)).keys()
    after = [await serve("a", workers=2), await serve("new")]  # one with what it had on disk, and a new host
    for router in after:
        await knows(router, 2)
        for session in sessions:
            await used(router, session)
    for session in sessions[:3]:
        assert (await kit.terminate(after[1], session)).error == ""
        await kit.answers("http1", after[0], session, "session_gone", 2.0)
    assert (await kit.rows(store, NAME)).keys() == {session.id for session in sessions[3:]}


@pytest.mark.slow
async def test_one_whose_router_is_gone_ends_by_another(store: Any, serve: Any, engine: Any) -> None:
    await sessioned(store, engine.url)
    before = await serve("a")
    await knows(before, 2)
    brief, stays = await kit.opened(before, HOST, idle_s=1), await kit.opened(before, HOST)
    before.send_signal(signal.SIGTERM)
    assert await before.wait() == 0
    after = await serve("a")
    await knows(after, 2)

    async def is_over() -> bool:
        return brief.id not in await kit.rows(store, NAME)

    await kit.until(is_over, ORPHANED_S)
    await kit.answers("http1", after, brief, "session_gone", 2.0)
    assert (await kit.rows(store, NAME)).keys() == {stays.id}
    await used(after, stays)


@pytest.mark.slow
async def test_what_has_ended_stays_so_at_a_router_that_comes_later(store: Any, serve: Any, engine: Any) -> None:
    await sessioned(store, engine.url)
    router = await serve("a")
    await knows(router, 2)
    ended, idle = await kit.opened(router, HOST), await kit.opened(router, HOST, idle_s=1)
    assert (await kit.terminate(router, ended)).error == ""

    async def is_over() -> bool:
        return not await kit.rows(store, NAME)

    await kit.until(is_over, 8.0)
    for session in (ended, idle):
        await kit.answers("http1", router, session, "session_gone", 2.0)
    late = await serve("late", workers=2)
    await knows(late, 2)
    for session in (ended, idle):
        for _ in range(4):
            await kit.answers("http1", late, session, "session_gone", 2.0)
    os.kill((await late.workers())[0]["pid"], signal.SIGKILL)

    async def is_back() -> bool:
        worker = (await late.workers())[0]
        return bool(worker["restarts"] == 1 and worker["state"] == "ready")

    await kit.until(is_back)
    for _ in range(8):
        await kit.answers("http1", late, ended, "session_gone", 2.0)


@pytest.mark.slow
async def test_a_router_restarted_without_the_store_has_its_sessions(store: Any, serve: Any, engine: Any) -> None:
    await sessioned(store, engine.url)
    before = await serve("a")
    await knows(before, 2)
    sessions = [await kit.opened(before, HOST) for _ in range(4)]
    before.send_signal(signal.SIGTERM)
    assert await before.wait() == 0
    store.kill()
    try:
        after = await serve("a")
        for session in sessions:
            await used(after, session)
    finally:
        await store.start(init=False)
    for session in sessions:
        await used(after, session)


@pytest.mark.slow
async def test_behind_a_relay_sessions_are_in_the_store_that_it_follows(store: Any, serve: Any, start_router: Any, engine: Any) -> None:
    await sessioned(store, engine.url)
    direct = await serve("a")
    with tempfile.TemporaryDirectory(prefix="r") as name:
        relay = StoreProcess(Path(name))
        try:
            await relay.start("--follow", store.setting, init=False)
            behind = await start_router(
                "--store", f"relay:{relay.path}", "--demand-store", store.setting, "--state-dir", Path(name) / "state",
                "--drain-settle-s", 0,
            )  # fmt: skip
            for router in (direct, behind):
                await knows(router, 2)
            one, other = await kit.opened(behind, HOST), await kit.opened(direct, HOST)
            assert {one.id, other.id} == (await kit.rows(store, NAME)).keys()
            for session in (one, other):
                for router in (direct, behind):
                    await used(router, session)
            assert (await kit.terminate(direct, one)).error == ""
            assert (await kit.terminate(behind, other)).error == ""
            for session in (one, other):
                for router in (direct, behind):
                    await kit.answers("http1", router, session, "session_gone", 3.0)
            await behind.stop()
        finally:
            await asyncio.to_thread(relay.end)


@pytest.mark.slow
async def test_what_a_killed_router_had_open_keeps_nothing_for_ever(store: Any, serve: Any, policy: Any, gone: Any) -> None:
    await sessioned(store, policy.url, 1)
    stays, dies = await serve("a"), await serve("b")
    for router in (stays, dies):
        await knows(router, 1)
    session = await kit.opened(stays, HOST, idle_s=1)
    held = kit.holding("websocket", dies, session)
    await held.__aenter__()
    try:
        began = monotonic()
        while monotonic() - began < 3:
            assert session.id in await kit.rows(store, NAME)
            await asyncio.sleep(0.1)
        pids = [dies.pid, *(worker["pid"] for worker in await dies.workers())]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await dies.wait()

        async def is_over() -> bool:
            return session.id not in await kit.rows(store, NAME)

        await kit.until(is_over, ORPHANED_S)
        await kit.answers("websocket", stays, session, "session_gone", 2.0)
    finally:
        with pytest.raises(Exception, match="close frame"):  # its connection died
            await held.__aexit__(None, None, None)


@pytest.mark.slow
async def test_an_upgrade_beside_a_store_loses_no_session(store: Any, serve: Any, engine: Any, until: Any, gone: Any) -> None:
    from loadkit import lineage

    await sessioned(store, engine.url)
    router = await serve("a", "--drain-deadline-s", "20", workers=2)
    await knows(router, 2)
    sessions = [await kit.opened(router, HOST) for _ in range(4)]
    async with lineage(router, until, gone) as line:
        await line.upgrade()
        for session in sessions:
            await used(router, session)
        new = await kit.opened(router, HOST)
        await used(router, new)
        assert (await kit.terminate(router, sessions[0])).error == ""
        await line.settled()
        for _ in range(4):
            await kit.answers("http1", router, sessions[0], "session_gone", 2.0)
        for session in (new, *sessions[1:]):
            await used(router, session)


# -- the store ---------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_without_the_store_sessions_are_used_and_none_starts_or_ends(store: Any, serve: Any, engine: Any) -> None:
    await sessioned(store, engine.url, sessions={"start_wait_s": 1})
    routers = [await serve("a", workers=2), await serve("b")]
    for router in routers:
        await knows(router, 2)
    session, brief = await kit.opened(routers[0], HOST), await kit.opened(routers[0], HOST, idle_s=1)
    for router in routers:
        await used(router, session)
    store.kill()
    for router in routers:
        async with asyncio.timeout(15):
            answer = await kit.start(router, HOST)
        assert (answer.status, answer.error) == (503, "session_unavailable")
        async with asyncio.timeout(15):
            assert (await kit.terminate(router, session)).error == "session_unavailable"
        for _ in range(4):
            await used(router, session)
    await store.start(init=False)
    again: kit.Answer | None = None

    async def starts() -> bool:
        nonlocal again
        again = await kit.start(routers[1], HOST)
        return not again.error

    await kit.until(starts, 20.0)
    assert again is not None
    fresh = kit.read_session(again, HOST)
    for router in routers:
        await used(router, fresh)
        await used(router, session)

    async def is_over() -> bool:
        return brief.id not in await kit.rows(store, NAME)

    await kit.until(is_over, 20.0)
    assert (await kit.terminate(routers[0], session)).error == ""
    for router in routers:
        await kit.answers("http1", router, session, "session_gone", 5.0)


# -- the autoscaler ------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="session")
async def autoscale(store: Any) -> AsyncIterator[Any]:
    """`autoscale(*flags)`: one autoscaler of the store; it and the replicas that it leaves end with the test."""
    started: list[Any] = []

    def start(*flags: str) -> Any:
        started.append(Autoscaler(store, store.folder, len(started)))
        return started[-1].start(*flags)

    yield start
    for each in started:
        await asyncio.to_thread(each.end)
    left = [psutil.Process(pid) for pid in sidecars(store).values()]
    for _ in range(2):
        for process in left:
            with_signal(process.pid, signal.SIGTERM)
    _, alive = await asyncio.to_thread(psutil.wait_procs, left, 15)
    for process in alive:
        process.kill()
    assert not alive


@pytest.mark.slow
async def test_a_start_brings_a_replica_up_and_holds_it_until_it_ends(store: Any, serve: Any, autoscale: Any, until: Any) -> None:
    router = await serve("a")
    await sessioned(store, replicas=0, scaling=SHORT, sessions={"start_wait_s": 60, "max_per_replica": 1})
    keeper = autoscale("--endpoint", NAME)
    await keeper.told(until, "desired")
    await knows(router, 0)
    async with asyncio.timeout(45):
        first, second = await asyncio.gather(*(_patient(router) for _ in range(2)))
    assert first.replica != second.replica
    for session in (first, second):
        await used(router, session)

    async def ready() -> set[str]:
        async with store.writer() as writer:
            return {row["replica"] for row in await writer.replicas(NAME) if row["state"] == "READY"}

    assert (await kit.terminate(router, first)).error == ""

    async def is_down_to_one() -> bool:
        return await ready() == {second.replica}

    await kit.until(is_down_to_one, 30.0)
    # Well beyond the window of two seconds, with nothing in flight.
    ends = monotonic() + 6
    while monotonic() < ends:
        assert second.replica in await ready()
        await asyncio.sleep(0.2)
    await used(router, second)
    assert "sessions" in keeper.events("desired")[-1]["reason"]
    assert (await kit.terminate(router, second)).error == ""

    async def is_empty() -> bool:
        return not await ready()

    await kit.until(is_empty, 30.0)


async def _patient(router: Any) -> kit.Session:
    async with kit.http_client() as client:
        client.timeout = 45
        return kit.read_session(await kit.send(client, router, HOST, kit.START, content=None), HOST)
