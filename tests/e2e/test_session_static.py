"""Sticky sessions of a static table: they are in the daemon, for all of its workers, and outlive reloads and upgrades."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from inference_backend.ports import free_port

sys.path.insert(0, str(Path(__file__).parent))

import sessionkit as kit  # noqa: E402
from loadkit import lineage  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]
FLAGS = ("--drain-settle-s", 0, "--drain-deadline-s", 20)
HOST = "e.example"
workers = pytest.mark.parametrize("workers", [1, 2])


def table(urls: Sequence[str], **sessions: Any) -> str:
    """Write a table of one sessioned endpoint."""
    places = ", ".join(f'{{ address = "{url.replace("ws://", "http://")}" }}' for url in urls)
    settings = "".join(f"{field} = {value}\n" for field, value in sessions.items())
    return f'[[endpoint]]\nname = "e"\nhosts = ["{HOST}"]\nhealth = {{ kind = "none" }}\nreplica = [{places}]\n[endpoint.sessions]\n{settings}'


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engines(keep_engine: Any) -> list[str]:
    return [(await keep_engine(time_scale=0)).url for _ in range(2)]


async def used(router: Any, session: kit.Session, count: int = 6) -> None:
    """Use it on connections of their own, so that each worker is asked."""
    for _ in range(count):
        answer = await kit.use("http1", router, session.host, session.token)
        assert (answer.error, answer.replica) == ("", session.replica)


@workers
async def test_sessions_are_known_to_every_worker_at_once(start_router: Any, engines: list[str], workers: int) -> None:
    router = await start_router(*FLAGS, toml=table(engines, max_per_replica=3, start_wait_s=1), workers=workers)
    given = await asyncio.gather(*(kit.opened(router, HOST) for _ in range(6)))
    assert sorted(session.replica for session in given).count(given[0].replica) == 3
    assert (await kit.start(router, HOST)).error == "at_capacity"
    for session in given:
        await used(router, session, 4)
    assert await kit.metric(router, "router_sessions", endpoint="e") == 6
    assert await kit.metric(router, "router_sessions_started_total", endpoint="e") == 6
    assert await kit.is_listed(router, given[0])
    assert (await kit.terminate(router, given[0])).error == ""
    for _ in range(8):
        await kit.answers("http1", router, given[0], "session_gone", 1.0)
    again = await kit.opened(router, HOST)
    assert again.replica == given[0].replica
    assert (await router.ask(f"/sessions/{again.id}", method="DELETE")).status_code == 200
    for _ in range(8):
        await kit.answers("http1", router, again, "session_gone", 1.0)
    assert await kit.metric(router, "router_sessions", endpoint="e") == 5
    assert (await kit.use("http1", router, HOST)).error == "session_required"


@workers
async def test_idle_sessions_end_and_one_with_a_websocket_does_not(start_router: Any, policy: Any, workers: int) -> None:
    router = await start_router(*FLAGS, toml=table([policy.url]), workers=workers)
    held, idle = [await kit.opened(router, HOST, idle_s=1) for _ in range(2)]
    began = monotonic()
    async with kit.holding("websocket", router, held):

        async def is_over() -> bool:
            assert await kit.is_listed(router, held)
            return not await kit.is_listed(router, idle)

        await kit.until(is_over, 6.0)
        assert monotonic() - began >= 1.0
        await kit.answers("websocket", router, idle, "session_gone", 1.0)
        while monotonic() - began < 4:
            assert await kit.is_listed(router, held)
            await asyncio.sleep(0.1)
    closed = monotonic()

    async def is_unlisted() -> bool:
        return not await kit.is_listed(router, held)

    await kit.until(is_unlisted, 6.0)
    assert monotonic() - closed >= 0.95
    await kit.answers("websocket", router, held, "session_gone", 1.0)
    assert await kit.metric(router, "router_sessions_ended_total", endpoint="e", reason="idle") == 2


async def test_another_daemon_has_another_key(start_router: Any, engines: list[str]) -> None:
    toml = table(engines)
    one, other = await start_router(*FLAGS, toml=toml), await start_router(*FLAGS, toml=toml)
    session = await kit.opened(one, HOST)
    assert (await kit.use("http1", other, HOST, session.token)).error == "session_invalid"
    await used(one, session, 1)


async def test_the_credential_of_a_daemon_starts_and_the_token_alone_is_used(start_router: Any, engines: list[str]) -> None:
    router = await start_router(*FLAGS, "--auth-token", "secret", toml=table(engines), workers=2)
    mine = [("authorization", "Bearer secret")]
    assert (await kit.start(router, HOST)).error == "unauthenticated"
    session = await kit.opened(router, HOST, mine)
    await used(router, session)
    answer = await kit.use("http1", router, HOST, session.token, fields=mine)
    assert answer.replica == session.replica and b"secret" not in answer.body
    assert (await kit.use("http1", router, HOST, session.token, fields=[("x-router-key", "wrong")])).error == "unauthenticated"
    assert (await kit.use("http1", router, HOST, fields=mine)).error == "session_required"


async def test_a_reload_keeps_sessions_until_their_replica_leaves(start_router: Any, engines: list[str]) -> None:
    router = await start_router(*FLAGS, toml=table(engines), workers=2)
    found = [await kit.opened(router, HOST) for _ in range(12)]
    first, second = (next(s for s in found if s.replica == url.partition("://")[2]) for url in engines)

    async def reload(text: str) -> None:
        before = (await router.ask("/config_dump")).json()["last_reload"]["at_epoch_s"]
        router.toml_path.write_text(text)
        router.send_signal(signal.SIGHUP)

        async def is_taken() -> bool:
            last = (await router.ask("/config_dump")).json()["last_reload"]
            return bool(last["at_epoch_s"] != before and last["ok"])

        await kit.until(is_taken)

    await reload(table(engines, max_per_replica=50))
    for session in (first, second):
        await used(router, session)
    await reload(table(engines[:1]))
    for _ in range(6):
        await kit.answers("http1", router, second, "session_gone")
    await used(router, first)


async def test_a_worker_that_is_killed_takes_no_session_along(start_router: Any, engines: list[str], until: Any) -> None:
    router = await start_router(*FLAGS, toml=table(engines), workers=2)
    sessions = [await kit.opened(router, HOST) for _ in range(6)]
    for worker in await router.workers():
        os.kill(worker["pid"], signal.SIGKILL)

    async def are_back() -> bool:
        return all(worker["restarts"] == 1 and worker["state"] == "ready" for worker in await router.workers())

    await until(are_back)
    for session in sessions:
        await used(router, session, 4)
    await used(router, await kit.opened(router, HOST))


async def test_what_has_ended_stays_so_in_a_worker_that_comes_later(start_router: Any, engines: list[str]) -> None:
    router = await start_router(*FLAGS, toml=table(engines), workers=1)
    ended = await kit.opened(router, HOST)
    assert (await kit.terminate(router, ended)).error == ""
    await kit.answers("http1", router, ended, "session_gone", 1.0)
    os.kill(await router.worker_pid(), signal.SIGKILL)

    async def is_back() -> bool:
        (worker,) = await router.workers()
        return bool(worker["restarts"] == 1 and worker["state"] == "ready")

    await kit.until(is_back)
    await kit.answers("http1", router, ended, "session_gone", 2.0)


async def test_what_has_ended_stays_so_after_an_upgrade(start_router: Any, policy: Any, until: Any, gone: Any) -> None:
    """Neither served nor, once it is shown again, taken for one that goes on."""
    router = await start_router(*FLAGS, toml=table([policy.url]), workers=2)
    ended, idle = await kit.opened(router, HOST), await kit.opened(router, HOST, idle_s=1)
    assert (await kit.terminate(router, ended)).error == ""

    async def is_over() -> bool:
        return not await kit.is_listed(router, idle)

    await kit.until(is_over, 6.0)
    async with lineage(router, until, gone) as line:
        await line.upgrade()
        for session in (ended, idle):
            answer = await kit.use("websocket", router, HOST, session.token)
            if not answer.error:  # it is served: is it open again, too?
                async with kit.holding("websocket", router, session):
                    with contextlib.suppress(AssertionError):
                        await kit.until(lambda session=session: kit.is_listed(router, session), 2.0)  # type: ignore[misc]
            assert (answer.error, await kit.is_listed(router, session)) == ("session_gone", False)


async def test_a_killed_workers_websocket_keeps_nothing(start_router: Any, policy: Any, until: Any) -> None:
    """What it had in flight is gone with it: the session is idle from then on."""
    router = await start_router(*FLAGS, toml=table([policy.url]), workers=1)
    session = await kit.opened(router, HOST, idle_s=1)
    held = kit.holding("websocket", router, session)
    await held.__aenter__()
    try:
        os.kill(await router.worker_pid(), signal.SIGKILL)

        async def is_over() -> bool:
            return not await kit.is_listed(router, session)

        await kit.until(is_over, 15.0)
    finally:
        with pytest.raises(Exception, match="close frame"):  # its connection died
            await held.__aexit__(None, None, None)


# -- upgrades ----------------------------------------------------------------------------------------------


@workers
@pytest.mark.parametrize("how", ["signal", "command"])
async def test_sessions_outlive_an_upgrade(
    start_router: Any, engines: list[str], run_router: Any, until: Any, gone: Any, tmp_path: Path, workers: int, how: str
) -> None:
    flags = ("--pid-file", tmp_path / "pid", "--admin", f"127.0.0.1:{free_port()}")
    router = await start_router(*FLAGS, *flags, toml=table(engines, max_per_replica=4, start_wait_s=1), workers=workers)
    sessions = [await kit.opened(router, HOST) for _ in range(5)]
    brief = await kit.opened(router, HOST, idle_s=3)
    async with lineage(router, until, gone) as line:
        for _ in range(2):
            if how == "signal":
                await line.upgrade()
            else:
                done = await run_router("serve", "--upgrade", "--config", router.toml_path, *flags)
                assert done.returncode == 0, done.stderr
                line.pids.append((await line.info())["pid"])
            for session in sessions:
                await used(router, session, 2)
        await line.settled()
        listed = (await router.ask("/sessions")).json()
        assert all(kit.row_of(session, listed) for session in sessions)

        async def is_over() -> bool:
            return not await kit.is_listed(router, brief)

        await kit.until(is_over, 10.0)
        assert await kit.metric(router, "router_sessions", endpoint="e") == 5
        given = [await kit.opened(router, HOST) for _ in range(3)]  # the places that are left
        assert (await kit.start(router, HOST)).error == "at_capacity"
        assert (await kit.terminate(router, sessions[0])).error == ""
        for _ in range(4):
            await kit.answers("http1", router, sessions[0], "session_gone", 2.0)
        for session in (*given, *sessions[1:]):
            await used(router, session, 1)


async def test_sessions_started_used_and_ended_during_upgrades_are_all_accounted_for(
    start_router: Any, engines: list[str], until: Any, gone: Any
) -> None:
    router = await start_router(*FLAGS, toml=table(engines), workers=2)
    is_done = asyncio.Event()
    alive: list[kit.Session] = []
    ended: list[kit.Session] = []
    failures: list[object] = []

    async def client() -> None:
        while not is_done.is_set():
            try:
                session = await kit.opened(router, HOST)
                await used(router, session, 2)
                stays = await kit.opened(router, HOST)
                assert (await kit.terminate(router, session)).error == ""
                alive.append(stays)
                ended.append(session)
            except Exception as failure:  # each is counted
                failures.append(repr(failure))
            await asyncio.sleep(0.01)

    async with lineage(router, until, gone) as line:
        clients = [asyncio.ensure_future(client()) for _ in range(8)]
        for _ in range(2):
            await line.upgrade()
        await line.settled()
        is_done.set()
        await asyncio.gather(*clients)
        assert not failures, (len(failures), failures[:3])
        assert len(alive) > 10
        for session in alive:
            await used(router, session, 1)
        listed: Any = []

        async def is_settled() -> bool:
            nonlocal listed
            listed = (await router.ask("/sessions")).json()
            return all(kit.row_of(s, listed) for s in alive) and not any(kit.row_of(s, listed) for s in ended)

        with contextlib.suppress(AssertionError):
            await kit.until(is_settled, 3.0)
        assert not [session.id for session in alive if not kit.row_of(session, listed)], "given, and lost"
        assert not [session.id for session in ended if kit.row_of(session, listed)], "ended, and back"


async def test_a_websocket_of_the_old_process_keeps_its_session_in_the_new_one(
    start_router: Any, policy: Any, until: Any, gone: Any
) -> None:
    router = await start_router(*FLAGS, toml=table([policy.url]))
    session = await kit.opened(router, HOST, idle_s=1)
    async with lineage(router, until, gone) as line:
        async with kit.holding("websocket", router, session):
            await line.upgrade()
            began = monotonic()
            while monotonic() - began < 4:
                assert await kit.is_listed(router, session), f"gone after {monotonic() - began:.1f} s"
                await asyncio.sleep(0.1)
            await kit.answers("websocket", router, session, "", 1.0)
        await kit.answers("websocket", router, session, "", 0.9)

        async def is_over() -> bool:
            return not await kit.is_listed(router, session)

        await kit.until(is_over, 8.0)
        await line.settled()


async def test_a_start_is_routed_as_any_path_is(start_router: Any, engines: list[str]) -> None:
    one, other = (table([url]).replace('name = "e"', f'name = "{name}"\npath_prefixes = ["/{name}"]') for url, name in zip(engines, "ab", strict=True))
    router = await start_router(*FLAGS, toml=one + other)
    mine, theirs = await kit.opened(router, HOST, path="/a"), await kit.opened(router, HOST, path="/b/v1/x")
    assert (mine.replica, theirs.replica) == tuple(url.partition("://")[2] for url in engines)
    assert (await kit.start(router, HOST)).error == "no_route"
    assert (await kit.use("http1", router, HOST, mine.token, path="/b/x")).error == "forbidden"
    answer = await kit.use("http1", router, HOST, mine.token, path="/a/x")
    assert (answer.error, answer.replica) == ("", mine.replica)
    async with kit.http_client() as client:
        answer = await kit.send(client, router, HOST, f"/b{kit.TERMINATE}", kit.shown(theirs.token, "header"))
        assert answer.status == 200
    await kit.answers("http1", router, mine, "no_route", 1.0)  # the kit's own path leads nowhere here
