"""Sticky sessions as an operator sees them: commands, the admin listener, metrics, rows; and settings that are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from router.config.errors import StoreError

sys.path.insert(0, str(Path(__file__).parent))

import sessionkit as kit  # noqa: E402
from fleetkit import fleet_of  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fleet(keep_router: Any) -> AsyncIterator[Any]:
    async with fleet_of(keep_router) as found:
        yield found


@pytest.fixture
def ask(fleet: Any, run_router: Any) -> Callable[..., Awaitable[Any]]:
    """`await ask(*words)`: the JSON of a command that must go well."""

    async def run(*words: str) -> Any:
        done = await run_router(*words, "--json", "--store", fleet.store.setting)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def fail(fleet: Any, run_router: Any) -> Callable[..., Awaitable[str]]:
    """`await fail(*words)`: the complaint of a command that must be refused with exit code 1."""

    async def run(*words: str) -> str:
        done = await run_router(*words, "--store", fleet.store.setting)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert "Traceback" not in done.stderr
        complaint: str = done.stderr
        return complaint

    return run


async def sessioned(fleet: Any, **sessions: Any) -> str:
    """Make an open endpoint of two replicas; return its name."""
    name: str = await fleet.endpoint("http1", ("eu", "us"), policy={"sessions": sessions}, unauthenticated=True)
    return name


# -- commands --------------------------------------------------------------------------------------------


async def test_an_endpoint_is_sessioned_by_a_flag(fleet: Any, ask: Any) -> None:
    made = await ask("endpoint", "create", "flagged", "--sessioned", "--unauthenticated", "--host", "flagged.example")
    assert isinstance(made["policy"]["sessions"], dict)
    more = await ask("endpoint", "create", "both", "--sessioned", "--policy", '{"retries": 1}')
    assert more["policy"]["retries"] == 1 and isinstance(more["policy"]["sessions"], dict)
    plain = await ask("endpoint", "create", "plain", "--policy", '{"retries": 1}')
    assert "sessions" not in plain["policy"]
    place, _ = fleet.server("http1")
    async with fleet.store.writer() as writer:
        await writer.put_replica("flagged", "r", create=True, **place)
    await fleet.has(fleet.eu, "flagged", 1)
    session = await kit.opened(fleet.eu, "flagged.example")
    assert session.idle_timeout_s == 600
    assert (await kit.use("http1", fleet.eu, session.host)).error == "session_required"
    assert (await kit.use("http1", fleet.eu, session.host, session.token)).replica == "r"


async def test_sessions_are_listed(fleet: Any, ask: Any, run_router: Any) -> None:
    one, other = await sessioned(fleet), await sessioned(fleet)
    mine = [await kit.opened(fleet.routers[i % 2], f"{one}.example") for i in range(3)]
    theirs = await kit.opened(fleet.eu, f"{other}.example")
    listed = await ask("session", "list", "--endpoint", one)
    assert len(listed) == 3
    for session in mine:
        row = kit.row_of(session, listed)
        assert row is not None and {one, session.replica} <= {str(value) for value in row.values()}
    everything = await ask("session", "list")
    assert all(kit.row_of(session, everything) for session in (*mine, theirs))
    assert await ask("session", "list", "--endpoint", "nobody") == []
    shown = (await run_router("session", "list", "--endpoint", one, "--store", fleet.store.setting)).stdout
    for session in mine:
        assert session.id in shown and session.replica in shown
        assert session.token not in shown + json.dumps(everything)
    assert theirs.id not in shown


async def test_a_session_is_terminated_by_command(fleet: Any, run_router: Any, fail: Any, ask: Any) -> None:
    name = await sessioned(fleet)
    session, stays = [await kit.opened(fleet.eu, f"{name}.example") for _ in range(2)]
    done = await run_router("session", "terminate", session.id, "--store", fleet.store.setting)
    assert done.returncode == 0, done.stderr
    for router in fleet.routers:
        await kit.answers("http1", router, session, "session_gone", 5.0)
        assert (await kit.use("http1", router, stays.host, stays.token)).replica == stays.replica
    assert list(await kit.rows(fleet.store, name)) == [stays.id]
    for unknown in (session.id, "nobody"):
        assert unknown in await fail("session", "terminate", unknown)
    assert kit.row_of(stays, await ask("session", "list"))


async def test_a_key_is_rotated_and_sessions_of_the_one_before_go_on(fleet: Any, run_router: Any) -> None:
    name = await sessioned(fleet)
    before = await kit.opened(fleet.eu, f"{name}.example")
    done = await run_router("session", "rotate-key", "--store", fleet.store.setting)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    after = []
    for _ in range(10):  # whichever key was in force: what is given is good, here at once and there at last
        session = await kit.opened(fleet.eu, before.host)
        assert (await kit.use("http1", fleet.eu, session.host, session.token)).replica == session.replica
        after.append(session)
    for session in (before, *after):
        for router in fleet.routers:
            assert (await kit.answers("http1", router, session, "", 5.0)).replica == session.replica
    newest = await kit.opened(fleet.us, before.host)
    assert (await kit.answers("http1", fleet.eu, newest, "")).replica == newest.replica
    forged = kit.forged(before.token, newest.token)
    async with kit.http_client() as client:
        for what in ("byte 3", f"byte {len(before.token) - 1}", "40 of one, the rest of the other"):
            fields = kit.shown(forged[what], "header")
            assert (await kit.send(client, fleet.us, before.host, "/_sim/echo", fields)).error == "session_invalid"
    assert (await kit.terminate(fleet.us, before)).error == ""
    for router in fleet.routers:
        await kit.answers("http1", router, before, "session_gone")


async def test_help_and_usage(run_router: Any) -> None:
    shown = (await run_router("session", "--help")).stdout
    assert all(word in shown for word in ("list", "terminate", "rotate-key"))
    assert "session" in (await run_router("--help")).stdout
    shown = (await run_router("session", "list", "--help")).stdout
    assert all(word in shown for word in ("--endpoint", "--json", "--store"))
    assert "--sessioned" in (await run_router("endpoint", "create", "--help")).stdout
    assert (await run_router("session", "terminate")).returncode == 2
    assert (await run_router("session", "list", "--no-such")).returncode == 2


# -- the admin listener ------------------------------------------------------------------------------------


async def test_the_admin_listener_lists_and_terminates(fleet: Any) -> None:
    name = await sessioned(fleet)
    session, stays = [await kit.opened(fleet.eu, f"{name}.example") for _ in range(2)]
    for router in fleet.routers:

        async def both_listed(router: Any = router) -> bool:
            return await kit.is_listed(router, session) and await kit.is_listed(router, stays)

        await kit.until(both_listed, 5.0)
    row = kit.row_of(session, (await fleet.eu.ask("/sessions")).json())
    assert row is not None and {name, session.replica} <= {str(value) for value in row.values()}
    # Reads change nothing, and no other method ends a session.
    assert (await fleet.eu.ask(f"/sessions/{session.id}", method="POST")).status_code == 405
    assert (await fleet.eu.ask("/sessions", method="DELETE")).status_code == 405
    assert (await kit.use("http1", fleet.us, session.host, session.token)).error == ""
    answer = await fleet.us.ask(f"/sessions/{session.id}", method="DELETE")
    assert answer.status_code == 200, answer.text
    for router in fleet.routers:
        await kit.answers("http1", router, session, "session_gone", 5.0)

        async def is_unlisted(router: Any = router) -> bool:
            return not await kit.is_listed(router, session) and await kit.is_listed(router, stays)

        await kit.until(is_unlisted, 5.0)
    for unknown in (session.id, "nobody", "a%2Fb"):
        assert (await fleet.us.ask(f"/sessions/{unknown}", method="DELETE")).status_code == 404
    assert (await kit.use("http1", fleet.eu, stays.host, stays.token)).replica == stays.replica


async def test_sessions_are_counted(fleet: Any) -> None:
    name = await sessioned(fleet)
    host = f"{name}.example"
    eu, us = fleet.routers
    sessions = [await kit.opened(router, host) for router in (eu, eu, us)]
    brief = await kit.opened(us, host, idle_s=1)

    def started(router: Any) -> Any:
        return kit.metric(router, "router_sessions_started_total", endpoint=name)

    async def ended(reason: str) -> float:
        found = [await kit.metric(r, "router_sessions_ended_total", endpoint=name, reason=reason) for r in (eu, us)]
        return sum(found)

    assert (await started(eu), await started(us)) == (2, 2)
    await kit.answers("http1", eu, sessions[0], "")

    async def idle_ended() -> bool:
        return await ended("idle") == 1

    await kit.until(idle_ended, 8.0)
    await kit.answers("http1", us, brief, "session_gone", 3.0)
    for session in sessions[:2]:
        assert (await kit.terminate(eu, session)).error == ""
    assert await kit.metric(eu, "router_sessions_ended_total", endpoint=name, reason="terminated") == 2
    assert (await ended("terminated"), await ended("idle")) == (2, 1)
    for router in (eu, us):

        async def one_left(router: Any = router) -> bool:
            return await kit.metric(router, "router_sessions", endpoint=name) == 1

        await kit.until(one_left, 5.0)

    async def is_demand() -> bool:
        told = [row for r in (eu, us) for row in (await r.ask("/v1/demand")).json()["endpoints"]]
        return any(row["endpoint"] == name and row["sessions"] == 1 for row in told)

    await kit.until(is_demand)
    text = (await eu.ask("/metrics")).text
    assert not any(session.id in text or session.token in text for session in sessions)


async def test_refusals_are_in_the_access_log_and_no_demand(fleet: Any) -> None:
    name = await sessioned(fleet)
    session = await kit.opened(fleet.us, f"{name}.example")
    await kit.terminate(fleet.us, session)

    async def unserved() -> int:
        rows = (await fleet.us.ask("/v1/demand")).json()["endpoints"]
        return next(int(row["unserved"]) for row in rows if row["endpoint"] == name)

    before = await unserved()
    for token, status in (("", 401), ("nonsense", 401), (session.token, 410)):
        answer = await kit.use("http1", fleet.us, session.host, token)
        record = await fleet.us.record(answer.get("x-request-id"))
        assert (record["status"], record["replica"]) == (status, "")
        assert record["flags"]
    assert await unserved() == before


# -- settings ----------------------------------------------------------------------------------------------

DEFAULTS = {"idle_timeout_s": 600, "max_idle_timeout_s": 86_400, "max_per_replica": 1_000, "start_wait_s": 60, "max_waiting": 256}
BAD: list[tuple[str, Any]] = [
    ("idle_timeout_s", 0), ("idle_timeout_s", -1), ("idle_timeout_s", 1.5), ("idle_timeout_s", "600"), ("idle_timeout_s", 86_401),
    ("idle_timeout_s", 10**12), ("max_idle_timeout_s", 0), ("max_idle_timeout_s", 599), ("max_idle_timeout_s", 10**12),
    ("max_per_replica", 0), ("max_per_replica", -1), ("max_per_replica", 1.5), ("max_per_replica", 10**12),
    ("start_wait_s", -1), ("start_wait_s", "1"), ("start_wait_s", 10**9), ("max_waiting", -1), ("max_waiting", 10**9),
    ("max_waiting", 0.5), ("no_such", 1),
]  # fmt: skip
bad = pytest.mark.parametrize(("field", "value"), BAD, ids=[f"{field}={value}" for field, value in BAD])


def named(field: str) -> str:
    """Return what must be said of a field; of two that contradict each other either may be named."""
    return field.removeprefix("max_") if "idle_timeout_s" in field else field


@bad
async def test_a_file_out_of_bounds_is_refused_by_its_field(run_router: Any, tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "router.toml"
    text = '[[endpoint]]\nname = "one"\nreplica = [{ address = "http://127.0.0.1:9" }]\n[endpoint.sessions]\n'
    path.write_text(f"{text}{field} = {json.dumps(value)}\n")
    done = await run_router("serve", "--check", "--config", path)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert "endpoint[0].sessions" in done.stderr and named(field) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@bad
async def test_a_policy_out_of_bounds_is_refused_by_its_field(fleet: Any, field: str, value: Any) -> None:
    async with fleet.store.writer() as writer:
        with pytest.raises(StoreError) as refused:
            await writer.put_endpoint("refused", create=True, policy=json.dumps({"sessions": {field: value}}))
        assert "Policy.sessions" in str(refused.value) and named(field) in str(refused.value)
        assert await writer.endpoints("refused") == []


async def test_good_settings_and_the_defaults(run_router: Any, tmp_path: Path, fail: Any) -> None:
    path = tmp_path / "router.toml"
    text = '[[endpoint]]\nname = "one"\nreplica = [{ address = "http://127.0.0.1:9" }]\n[endpoint.sessions]\n'
    for more in ("", "".join(f"{field} = {value}\n" for field, value in DEFAULTS.items()),
                 "idle_timeout_s = 1\nmax_idle_timeout_s = 1\nmax_per_replica = 1\nstart_wait_s = 0\nmax_waiting = 1\n"):  # fmt: skip
        path.write_text(text + more)
        done = await run_router("serve", "--check", "--config", path)
        assert done.returncode == 0, done.stderr
    complaint = await fail("endpoint", "create", "x", "--policy", '{"sessions": {"idle_timeout_s": 0}}')
    assert "Policy.sessions.idle_timeout_s" in complaint


async def test_nan_is_no_wait(run_router: Any, tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    text = '[[endpoint]]\nname = "one"\nreplica = [{ address = "http://127.0.0.1:9" }]\n[endpoint.sessions]\n'
    for value in ("nan", "inf"):
        path.write_text(f"{text}start_wait_s = {value}\n")
        done = await run_router("serve", "--check", "--config", path)
        assert done.returncode == 2 and "start_wait_s" in done.stderr
