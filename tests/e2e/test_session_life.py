"""How long a sticky session lives, and what stands in its way: idle time, room, replicas that come and go, credentials.

Two regions with a router each, and one store. "Never too early" is looked at by ways that are no use of the session: its
row, and the list of the admin listener.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

import sessionkit as kit  # noqa: E402
from fleetkit import fleet_of  # noqa: E402
from sessionkit import PROTOCOLS, SERVER  # noqa: E402

from router.config.token_admin import change_token  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]
protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
HELD = ("http1", "http2", "grpc", "websocket")
LATE_S = 6.0
"""What an end may take beyond the idle time: the two seconds promised, and a machine that does other things."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fleet(keep_router: Any) -> AsyncIterator[Any]:
    async with fleet_of(keep_router) as found:
        yield found


async def sessioned(fleet: Any, protocol: str = "http1", regions: tuple[str, ...] = ("",), *, sessions: dict[str, Any] | None = None,
                    **more: Any) -> str:  # fmt: skip
    """Make an endpoint that anybody may call; return its name."""
    policy = {"sessions": sessions or {}} | more.pop("policy", {})
    more = {"unauthenticated": True} | more
    name: str = await fleet.endpoint(SERVER.get(protocol, protocol), regions, policy=policy, **more)
    return name


async def is_open(fleet: Any, session: kit.Session) -> bool:
    """Whether it has a row; that is no use of it."""
    return session.id in await kit.rows(fleet.store, session.host.removesuffix(".example"))


async def always(condition: Callable[[], Awaitable[bool]], for_s: float) -> None:
    """Look again and again for a while: it must be so each time."""
    ends = monotonic() + for_s
    while monotonic() < ends:
        assert await condition(), f"no more, {ends - monotonic():.1f} s before the time"
        await asyncio.sleep(0.1)


async def gone_after(fleet: Any, session: kit.Session, since: float, idle_s: float) -> None:
    """Wait for the end of a session that was last used at `since`: not before its time, and soon behind it."""

    async def is_over() -> bool:
        return not await is_open(fleet, session)

    await kit.until(is_over, since + idle_s + LATE_S - monotonic())
    assert monotonic() - since >= idle_s - 0.05
    for router in fleet.routers:
        await kit.answers("http1", router, session, "session_gone", 2.0)
        assert not await kit.is_listed(router, session)


# -- idle ------------------------------------------------------------------------------------------------


async def test_one_that_nobody_uses_ends_in_time_at_every_router(fleet: Any) -> None:
    host = f"{await sessioned(fleet)}.example"
    began = monotonic()
    short, used, long = [await kit.opened(fleet.eu, host, idle_s=idle_s) for idle_s in (1, 2, 60)]
    await gone_after(fleet, short, began, 1)
    # The other one was started here, and is used there alone.
    last = monotonic()
    while monotonic() - began < 5:
        assert (await kit.use("http1", fleet.us, host, used.token)).error == "", "it has not been idle"
        last = monotonic()
        await asyncio.sleep(0.25)
    await gone_after(fleet, used, last, 2)
    assert await is_open(fleet, long)
    assert (await kit.use("http1", fleet.eu, host, long.token)).replica == long.replica


@pytest.mark.parametrize("protocol", HELD)
async def test_what_is_open_keeps_it_and_then_it_ends(fleet: Any, protocol: str) -> None:
    host = f"{await sessioned(fleet, protocol)}.example"
    session = await kit.opened(fleet.eu, host, idle_s=1)
    async with kit.holding(protocol, fleet.us, session):

        async def is_kept() -> bool:
            return await is_open(fleet, session) and await kit.is_listed(fleet.eu, session)

        await always(is_kept, 4.5)
        closed = monotonic()
    await gone_after(fleet, session, closed, 1)


async def test_each_use_is_a_new_beginning_and_moves_the_row(fleet: Any) -> None:
    name = await sessioned(fleet)
    session = await kit.opened(fleet.eu, f"{name}.example", idle_s=3)
    before = (await kit.rows(fleet.store, name))[session.id]["LastUsedAt"]

    async def has_moved() -> bool:
        assert (await kit.use("http1", fleet.us, session.host, session.token)).error == ""
        return bool((await kit.rows(fleet.store, name))[session.id]["LastUsedAt"] > before)

    await kit.until(has_moved)


# -- room ------------------------------------------------------------------------------------------------


async def test_sessions_fill_replicas_one_after_another_and_no_more_is_given(fleet: Any) -> None:
    host = f"{await sessioned(fleet, regions=('eu', 'us'), sessions={'max_per_replica': 2, 'start_wait_s': 1})}.example"
    given = [await kit.opened(fleet.routers[i % 2], host) for i in range(4)]
    assert sorted(Counter(session.replica for session in given).values()) == [2, 2]
    for router in fleet.routers:
        began = monotonic()
        answer = await kit.start(router, host)
        assert (answer.status, answer.error) == (503, "at_capacity")
        assert 1.0 <= monotonic() - began < 4.0
    assert (await kit.terminate(fleet.us, given[0])).error == ""
    assert (await kit.opened(fleet.eu, host)).replica == given[0].replica


async def test_no_more_are_given_to_many_at_once_than_there_is_room_for(fleet: Any) -> None:
    host = f"{await sessioned(fleet, regions=('eu', 'us'), sessions={'max_per_replica': 2, 'start_wait_s': 1})}.example"
    found = await asyncio.gather(*(kit.start(fleet.routers[i % 2], host) for i in range(8)))
    given = [kit.read_session(answer, host) for answer in found if not answer.error]
    refused = [answer for answer in found if answer.error]
    assert {answer.error for answer in refused} == {"at_capacity"}
    assert sorted(Counter(session.replica for session in given).values()) == [2, 2]


async def waiting_start(fleet: Any, router: Any, host: str, name: str) -> asyncio.Task[kit.Answer]:
    """Begin a start that must wait; return once the router says that it does."""
    task = asyncio.ensure_future(kit.start(router, host))

    async def waits() -> bool:
        assert not task.done(), task.result()
        rows = (await router.ask("/v1/demand")).json()["endpoints"]
        return any(row["endpoint"] == name and row["waiting"] for row in rows)

    try:
        await kit.until(waits)
    except BaseException:
        task.cancel()
        raise
    return task


@pytest.mark.parametrize("how", ["here", "there", "by hand", "idle"])
async def test_a_start_that_waits_gets_the_room_of_one_that_ends(fleet: Any, how: str) -> None:
    name = await sessioned(fleet, sessions={"max_per_replica": 1, "start_wait_s": 20})
    host = f"{name}.example"
    session = await kit.opened(fleet.eu, host, idle_s=2 if how == "idle" else None)
    task = await waiting_start(fleet, fleet.eu, host, name)
    began = monotonic()
    if how == "by hand":
        assert (await fleet.us.ask(f"/sessions/{session.id}", method="DELETE")).status_code == 200
    elif how != "idle":
        assert (await kit.terminate(fleet.eu if how == "here" else fleet.us, session)).error == ""
    async with asyncio.timeout(15):
        again = kit.read_session(await task, host)
    assert (again.replica, again.id != session.id) == (session.replica, True)
    assert monotonic() - began < (2 + LATE_S if how == "idle" else 3.0), "as soon as there is room"
    assert (await kit.use("http1", fleet.us, host, again.token)).replica == again.replica


@pytest.mark.parametrize("regions", [(), ("us",)])
async def test_a_start_that_waits_gets_the_room_of_a_new_replica(fleet: Any, regions: tuple[str, ...]) -> None:
    """How many go where is for `test_no_more_are_given_to_many_at_once_than_there_is_room_for`."""
    name = await sessioned(fleet, regions=regions, sessions={"max_per_replica": 1, "start_wait_s": 20})
    host = f"{name}.example"
    for _ in regions:
        await kit.opened(fleet.us, host)
    tasks = [await waiting_start(fleet, router, host, name) for router in fleet.routers]
    place, _ = fleet.server("http1")
    async with fleet.store.writer() as writer:
        for i in range(2):
            await writer.put_replica(name, f"late{i}", create=True, **place)
    async with asyncio.timeout(10):
        found = [kit.read_session(await task, host) for task in tasks]
    for session in found:
        assert session.replica in ("late0", "late1")
        for router in fleet.routers:
            assert (await kit.use("http1", router, host, session.token)).replica == session.replica


async def test_a_start_without_any_replica_is_503_and_counts_as_demand(fleet: Any) -> None:
    name = await sessioned(fleet, regions=(), sessions={"start_wait_s": 1}, unauthenticated=False)
    host = f"{name}.example"
    _, credential = await fleet.token()
    mine = list(credential.items())

    async def demand() -> dict[str, Any]:
        found = (await fleet.us.ask("/v1/demand")).json()["endpoints"]
        return next(row for row in found if row["endpoint"] == name)

    other = await sessioned(fleet, unauthenticated=False)
    await kit.may_start(fleet.us, f"{other}.example", mine)
    assert (await kit.start(fleet.us, host)).error == "unauthenticated"
    before = await demand()
    assert (before["unserved"], before["waiting"]) == (0, 0), "who is not let in asks for nothing"
    began = monotonic()
    answer = await kit.start(fleet.us, host, mine)
    assert (answer.status, answer.error) == (503, "no_replica")
    assert 1.0 <= monotonic() - began < 5.0
    assert (await demand())["unserved"] >= 1

    async def is_published() -> bool:
        async with fleet.store.writer() as writer:
            found = await writer.query("SELECT Unserved FROM Demand WHERE EndpointId = @e", {"e": name})
        return any(int(row[0]) for row in found)

    await kit.until(is_published)


async def test_a_start_is_refused_at_once_where_enough_wait_or_nobody_may(fleet: Any) -> None:
    name = await sessioned(fleet, regions=(), sessions={"start_wait_s": 20, "max_waiting": 2})
    host = f"{name}.example"
    tasks = [asyncio.ensure_future(kit.start(fleet.us, host)) for _ in range(2)]

    async def both_wait() -> bool:
        rows = (await fleet.us.ask("/v1/demand")).json()["endpoints"]
        return any(row["endpoint"] == name and row["waiting"] == 2 for row in rows)

    try:
        await kit.until(both_wait)
        async with asyncio.timeout(5):
            assert (await kit.start(fleet.us, host)).status == 503  # one worker
    finally:
        for task in tasks:  # clients that go away wait no more
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def nobody_waits() -> bool:
        rows = (await fleet.us.ask("/v1/demand")).json()["endpoints"]
        return any(row["endpoint"] == name and row["waiting"] == 0 for row in rows)

    await kit.until(nobody_waits)
    place, _ = fleet.server("http1")
    async with fleet.store.writer() as writer:
        await writer.put_replica(name, "late", create=True, **place)
    await fleet.has(fleet.us, name, 1)
    await kit.opened(fleet.us, host)
    assert len(await kit.rows(fleet.store, name)) == 1, "who went away has none"


# -- replicas --------------------------------------------------------------------------------------------


@protocols
async def test_draining_serves_down_waits_and_deleted_is_the_end(fleet: Any, protocol: str) -> None:
    name = await sessioned(fleet, protocol, ("", ""), sessions={"start_wait_s": 1})
    session = await kit.opened(fleet.eu, f"{name}.example")
    other = next(f"{name}-r{i}" for i in range(2) if f"{name}-r{i}" != session.replica)
    async with fleet.store.writer() as writer:
        await writer.put_replica(name, session.replica, create=False, state="DRAINING")
        for router in fleet.routers:
            await _draining(router, name, session.replica)
            for _ in range(4):
                assert (await kit.use(protocol, router, session.host, session.token)).replica == session.replica
            assert (await kit.opened(router, session.host)).replica == other, "nothing new goes there"
        for state in ("DOWN", "STARTING"):
            await writer.put_replica(name, session.replica, create=False, state=state)
            for router in fleet.routers:
                await kit.answers(protocol, router, session, "no_replica")
        await writer.put_replica(name, session.replica, create=False, state="READY")
        for router in fleet.routers:
            assert (await kit.answers(protocol, router, session, "")).replica == session.replica
        await writer.delete_replica(name, session.replica)
        for router in fleet.routers:
            await kit.answers(protocol, router, session, "session_gone")


async def test_a_session_whose_replica_is_dead_goes_to_no_other(fleet: Any, start_engine: Any) -> None:
    """Not by a retry either, nor once the dead one is ejected."""
    name = await sessioned(fleet, regions=())
    alive, dead = await start_engine(time_scale=0), await start_engine(time_scale=0)
    async with fleet.store.writer() as writer:
        for replica, engine in (("alive", alive), ("dead", dead)):
            port = int(engine.url.rpartition(":")[2])
            await writer.put_replica(name, replica, create=True, address="127.0.0.1", port=port)
    for router in fleet.routers:
        await fleet.has(router, name, 2)
    sessions = [await kit.opened(fleet.us, f"{name}.example") for _ in range(12)]
    of_dead = next(session for session in sessions if session.replica == "dead")
    of_alive = next(session for session in sessions if session.replica == "alive")
    assert (await kit.use("http1", fleet.us, of_dead.host, of_dead.token)).replica == "dead"
    await dead.kill()
    for i in range(16):
        router = fleet.routers[i % 2]
        answer = await kit.use("http1", router, of_dead.host, of_dead.token)
        assert answer.error in ("connect_failed", "no_replica"), answer
        assert (await kit.use("http1", router, of_alive.host, of_alive.token)).replica == "alive"
    async with fleet.store.writer() as writer:  # it comes back elsewhere, by the same name
        place, _ = fleet.server("http1")
        await writer.put_replica(name, "dead", create=False, **place)
    for router in fleet.routers:
        assert (await kit.answers("http1", router, of_dead, "")).replica == "dead"


async def _draining(router: Any, name: str, replica: str) -> None:
    async def is_so() -> bool:
        found = (await router.ask("/config_dump")).json()["table"]["endpoints"]
        states = {row["id"]: row["state"] for each in found if each["name"] == name for row in each["replicas"]}
        workers = (await router.ask("/config_dump")).json()
        versions = {worker["table_version"] for worker in workers["workers"]}
        return states.get(replica) == "DRAINING" and versions == {workers["table"]["version"]}

    await kit.until(is_so)


async def test_a_start_does_not_go_where_all_drain(fleet: Any) -> None:
    name = await sessioned(fleet, sessions={"start_wait_s": 0.5})
    session = await kit.opened(fleet.us, f"{name}.example")
    async with fleet.store.writer() as writer:
        await writer.put_replica(name, session.replica, create=False, state="DRAINING")
        await _draining(fleet.us, name, session.replica)
        assert (await kit.start(fleet.us, session.host)).error == "no_replica"
        await writer.delete_endpoint(name)


@protocols
async def test_a_replica_at_its_limit_refuses_and_the_session_does_not_move(fleet: Any, protocol: str) -> None:
    name = await sessioned(fleet, protocol, ("", ""), policy={"limits": {"max_concurrency": 1}})
    session = await kit.opened(fleet.us, f"{name}.example")
    async with kit.holding(SERVER.get(protocol, protocol), fleet.us, session):
        for _ in range(3):
            assert (await kit.use(protocol, fleet.us, session.host, session.token)).error == "at_capacity"
    assert (await kit.answers(protocol, fleet.us, session, "")).replica == session.replica


# -- credentials -------------------------------------------------------------------------------------------


async def credential(fleet: Any, name: str, **more: Any) -> tuple[str, kit.Fields]:
    """Make a credential that both routers have; return its key and the fields that show it."""
    made, shown = await fleet.token(**more)
    fields = list(shown.items())
    for router in fleet.routers:
        await kit.may_start(router, f"{name}.example", fields)
    return made["key"], fields


@protocols
@pytest.mark.parametrize("how", ["revoke", "delete"])
async def test_the_end_of_a_credential_is_the_end_of_its_sessions_use(fleet: Any, protocol: str, how: str) -> None:
    name = await sessioned(fleet, protocol, unauthenticated=False)
    key, mine = await credential(fleet, name)
    _, others = await credential(fleet, name)
    session = await kit.opened(fleet.eu, f"{name}.example", mine)
    stays = await kit.opened(fleet.eu, f"{name}.example", others)
    async with fleet.store.writer() as writer:
        await change_token(writer, key, delete=how == "delete")
    for router in fleet.routers:
        await kit.answers(protocol, router, session, "unauthenticated")
        assert (await kit.use(protocol, router, stays.host, stays.token)).replica == stays.replica


async def test_an_expired_credential_ends_its_sessions_use(fleet: Any) -> None:
    name = await sessioned(fleet, unauthenticated=False)
    ends = datetime.now(UTC) + timedelta(seconds=4)
    _, mine = await credential(fleet, name, not_after=ends.strftime("%Y-%m-%dT%H:%M:%SZ"))
    session = await kit.opened(fleet.eu, f"{name}.example", mine)
    for router in fleet.routers:
        await kit.answers("http1", router, session, "unauthenticated")
    assert datetime.now(UTC) >= ends.replace(microsecond=0)


@protocols
async def test_the_rate_of_the_credential_counts_for_its_sessions(fleet: Any, protocol: str) -> None:
    name = await sessioned(fleet, protocol, unauthenticated=False)
    _, shown = await fleet.token(rate=json.dumps({"per_s": 0.05, "burst": 8}))
    session = await kit.may_start(fleet.us, f"{name}.example", list(shown.items()))
    errors = [(await kit.use(protocol, fleet.us, session.host, session.token)).error for _ in range(10)]
    assert "rate_limited" in errors
    assert 1 <= errors.index("rate_limited") <= 8, errors
    assert set(errors) == {"", "rate_limited"}
