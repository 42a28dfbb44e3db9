"""Sticky sessions: started and used over every protocol, by every way to show the token, through every router.

Two regions with a router each, and one store. Nothing here waits for a table: what a start was answered with must be
good at once, everywhere.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

import grpckit  # noqa: E402
import sessionkit as kit  # noqa: E402
from fleetkit import fleet_of  # noqa: E402
from sessionkit import COOKIE, OF_HTTP, PROTOCOLS, SERVER, START, TERMINATE, WAYS  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]
protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
ways = pytest.mark.parametrize("way", WAYS)
of_http = pytest.mark.parametrize("protocol", OF_HTTP)
SESSIONED: dict[str, Any] = {"sessions": {}}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fleet(keep_router: Any) -> AsyncIterator[Any]:
    async with fleet_of(keep_router) as found:
        yield found


async def sessioned(fleet: Any, protocol: str = "http1", regions: tuple[str, ...] = ("",), **more: Any) -> str:
    """Make an endpoint that anybody may call; return its host."""
    policy = SESSIONED | more.pop("policy", {})
    more = {"unauthenticated": True} | more
    return f"{await fleet.endpoint(SERVER.get(protocol, protocol), regions, policy=policy, **more)}.example"


def name_of(host: str) -> str:
    return host.removesuffix(".example")


# -- start -----------------------------------------------------------------------------------------------


@of_http
@pytest.mark.parametrize("path", ["", "/v1/chat/completions", "/a/b%2Fc"])
async def test_a_start_is_answered_and_its_row_is_there(fleet: Any, protocol: str, path: str) -> None:
    host = await sessioned(fleet)
    seen = set()
    for router in fleet.routers:
        session = await kit.opened(router, host, path=path, protocol=protocol)
        row = (await kit.rows(fleet.store, name_of(host)))[session.id]
        assert (row["ReplicaId"], row["State"]) == (session.replica, "OPEN")
        assert int(row["IdleTimeoutS"]) == session.idle_timeout_s == 600
        seen |= {session.id, session.token}
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["x-router-session-idle-timeout", "modal-session-idle-timeout"])
async def test_the_idle_timeout_is_the_clients_within_bounds(fleet: Any, name: str) -> None:
    host = await sessioned(fleet, policy={"sessions": {"idle_timeout_s": 7, "max_idle_timeout_s": 90}})
    assert (await kit.opened(fleet.eu, host)).idle_timeout_s == 7
    for good in ("1", "90"):
        assert (await kit.opened(fleet.eu, host, [(name, good)])).idle_timeout_s == int(good)
    before = await kit.rows(fleet.store, name_of(host))
    for bad in ("0", "-1", "91", "1.5", "1e1", "x", "0x10", "1 2", "9" * 30, "\u0663".encode().decode("latin-1")):
        answer = await kit.start(fleet.eu, host, [(name, bad)])
        assert (answer.status, answer.error) == (400, "bad_request"), bad
    assert (await kit.rows(fleet.store, name_of(host))).keys() == before.keys()


@of_http
@pytest.mark.parametrize("path", [START, TERMINATE])
async def test_other_methods_are_405_and_other_paths_are_not_a_start(fleet: Any, protocol: str, path: str) -> None:
    host = await sessioned(fleet)
    session = await kit.opened(fleet.eu, host)
    async with kit.http_client(protocol) as client:
        for method in ("GET", "PUT", "DELETE", "HEAD", "PATCH"):
            fields = kit.shown(session.token, "header")
            answer = await kit.send(client, fleet.eu, host, path, fields, method, None)
            assert (answer.status, answer.replica) == (405, ""), method
            assert "POST" in answer.get("allow")
        for near in (f"/x{path[1:]}", f"{path}/", f"{path}ed", path.upper(), path[len("/_router") :]):
            assert (await kit.send(client, fleet.eu, host, near)).error == "session_required", near
    assert (await kit.use("http1", fleet.eu, host, session.token)).replica == session.replica


@of_http
async def test_a_start_with_a_body_and_a_query_leaves_its_connection_whole(fleet: Any, protocol: str) -> None:
    host = await sessioned(fleet)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"POST /x HTTP/1.1\r\n" * 100

    async with kit.http_client(protocol) as client:
        for content in (None, b"{}", b"x" * 200_000, pieces()):
            answer = await kit.send(client, fleet.eu, host, f"{START}?a=1", content=content)
            session = kit.read_session(answer, host)
            answer = await kit.send(client, fleet.eu, host, "/_sim/echo", kit.shown(session.token, "header"))
            assert (answer.status, answer.replica, json.loads(answer.body)["length"]) == (200, session.replica, 1)


async def test_a_start_is_answered_to_who_waits_for_a_hundred(fleet: Any) -> None:
    """As curl does with a body of some size."""
    host = await sessioned(fleet)
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.eu.port)
    try:
        writer.write(f"POST {START} HTTP/1.1\r\nhost: {host}\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n".encode())
        async with asyncio.timeout(10):
            first = await reader.readuntil(b"\r\n\r\n")
            if first.startswith(b"HTTP/1.1 100"):
                writer.write(b"hello")
                first = await reader.readuntil(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 200"), first
    finally:
        writer.close()


async def test_a_start_asks_for_no_token_and_takes_no_notice_of_one(fleet: Any) -> None:
    host = await sessioned(fleet)
    first = await kit.opened(fleet.eu, host)
    assert (await kit.terminate(fleet.eu, first)).error == ""
    for token in (first.token, "nonsense"):
        for way in ("modal", "header", "cookie"):
            again = await kit.opened(fleet.eu, host, kit.shown(token, way))
            assert again.id != first.id
            assert (await kit.use("http1", fleet.eu, host, again.token)).replica == again.replica


# -- use -------------------------------------------------------------------------------------------------


@protocols
@ways
async def test_a_session_stays_where_it_was_started_through_every_router(fleet: Any, protocol: str, way: str) -> None:
    host = await sessioned(fleet, protocol, ("eu", "us", "eu", "us"))
    for first, second in ((fleet.eu, fleet.us), (fleet.us, fleet.eu)):
        session = await kit.opened(first, host)
        for i, router in enumerate((second, first, second, second, first, first)):  # the other one at once
            answer = await kit.follow(protocol, router, session, way, [("modal-session-id", f"{i}")])
            assert (answer.error, answer.replica) == ("", session.replica)


@protocols
async def test_many_sessions_at_once_do_not_mix(fleet: Any, protocol: str) -> None:
    host = await sessioned(fleet, protocol, ("eu", "us", "eu", "us"))
    sessions = await asyncio.gather(*(kit.opened(fleet.routers[i % 2], host) for i in range(12)))
    assert len({session.id for session in sessions}) == len({session.token for session in sessions}) == 12
    assert len({session.replica for session in sessions}) > 1
    found = await asyncio.gather(
        *(kit.use(protocol, router, host, session.token) for session in sessions for router in fleet.routers)
    )
    assert [answer.replica for answer in found] == [session.replica for session in sessions for _ in fleet.routers]


async def test_hundreds_at_once_are_all_good(fleet: Any) -> None:
    host = await sessioned(fleet, regions=("eu", "us", "eu", "us"))

    async def one(i: int) -> kit.Session:
        session = await kit.opened(fleet.routers[i % 2], host)
        answer = await kit.use("http1", fleet.routers[(i + 1) % 2], host, session.token)
        assert (answer.error, answer.replica) == ("", session.replica)
        return session

    sessions = await asyncio.gather(*(one(i) for i in range(200)))
    assert {session.id for session in sessions} == (await kit.rows(fleet.store, name_of(host))).keys()


async def test_the_servers_themselves_are_not_mixed_up_and_see_no_start(fleet: Any, start_server: Any) -> None:
    """Replicas that say who they are: the router's word for it is not asked."""
    targets: list[str] = []

    def replica(name: str) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                targets.append(head.split(" ", 2)[1])
                body = json.dumps({"me": name, "head": head}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

        return serve

    host = await sessioned(fleet, regions=())
    async with fleet.store.writer() as writer:
        for name in ("a", "b"):
            port = int((await start_server(replica(name))).rpartition(":")[2])
            await writer.put_replica(name_of(host), name, create=True, address="127.0.0.1", port=port)
    for router in fleet.routers:
        await fleet.has(router, name_of(host), 2)
    sessions = [await kit.opened(fleet.routers[i % 2], host) for i in range(16)]
    assert {session.replica for session in sessions} == {"a", "b"}
    async with kit.http_client() as client:
        for session in sessions:
            for router in fleet.routers:
                fields = kit.shown(session.token, "header")
                answer = await kit.send(client, router, host, "/who", fields, "GET", None)
                said = json.loads(answer.body)
                assert said["me"] == answer.replica == session.replica
                assert session.token not in said["head"]
        for session in sessions:
            await kit.terminate(fleet.eu, session)
    assert set(targets) == {"/who"}


@protocols
async def test_the_first_way_of_the_order_counts_and_an_empty_one_is_absent(fleet: Any, protocol: str) -> None:
    host = await sessioned(fleet, protocol, ("",) * 3)
    session = await kit.opened(fleet.eu, host)
    in_order = [way for way in kit.IN_ORDER if way != "query" or protocol not in OF_HTTP]  # HTTP redirects from a query
    for i, way in enumerate(in_order):
        for later in in_order[i + 1 :]:
            for token, other, error in ((session.token, "nonsense", ""), ("nonsense", session.token, "session_invalid")):
                path = kit.with_query(kit.PATHS[protocol], other) if later == "query" else ""
                fields = kit.shown(other, later)  # none for the query
                answer = await kit.use(protocol, fleet.us, host, token, way, fields, path)
                assert answer.error == error, (way, later, token)
            path = kit.with_query(kit.PATHS[protocol], "") if way == "query" else ""
            answer = await kit.use(protocol, fleet.us, host, session.token, later, kit.shown("", way), path)
            assert (answer.error, answer.replica) == ("", session.replica), (way, later)
        if way != "query":
            assert (await kit.use(protocol, fleet.us, host, fields=kit.shown("", way))).error == "session_required"


# -- what the replica sees ---------------------------------------------------------------------------------


async def seen_by_replica(fleet: Any, protocol: str, answer: kit.Answer, mark: str, client: Any) -> dict[str, Any]:
    """Return path and headers of the call as the server got them, several of one name joined."""
    if protocol in OF_HTTP:
        found = json.loads(answer.body)
        pairs = found["headers"]
    elif protocol == "grpc":
        found = await grpckit.seen(fleet.server("grpc")[0]["port"], mark)
        pairs = found["metadata"]
    else:
        place, _ = fleet.server("websocket")
        told = (await client.get(f"http://{place['address']}:{place['port']}/_sim/connections")).json()
        (found,) = [each for each in told["open"] + told["recent"] if each["headers"].get("kit-id") == mark]
        pairs = found["headers"].items()
    headers: dict[str, str] = {}
    for name, value in pairs:
        headers[name.lower()] = "; ".join(filter(None, (headers.get(name.lower()), value)))
    return {"path": found.get("path"), "headers": headers}


@protocols
@ways
async def test_nothing_of_it_reaches_the_replica(fleet: Any, protocol: str, way: str, client: Any) -> None:
    host = await sessioned(fleet, protocol)
    session = await kit.opened(fleet.eu, host)
    mark = f"{protocol}-{way}"
    fields = [
        ("kit-id", mark), ("authorization", "Bearer sk-engine"), ("x-own", "stays"),
        ("cookie", f"a=1; x{COOKIE}=keep; session_token=keep"),
    ]  # fmt: skip
    path = f"{kit.PATHS[protocol]}?b=%20+x&my_session_token=keep&c&b=2" if protocol != "grpc" else ""
    if way == "query" and protocol in OF_HTTP:
        found = await kit.use(protocol, fleet.eu, host, session.token, way, fields, path)
        assert found.get("location") == path
        answer = await kit.use(protocol, fleet.eu, host, session.token, "cookie", fields, found.get("location"))
    else:
        answer = await kit.use(protocol, fleet.eu, host, session.token, way, fields, path)
    assert (answer.error, answer.replica) == ("", session.replica)
    seen = await seen_by_replica(fleet, protocol, answer, mark, client)
    assert session.token not in json.dumps(seen) and session.token not in answer.body.decode()
    headers = seen["headers"]
    assert headers["authorization"] == "Bearer sk-engine" and headers["x-own"] == "stays"
    assert not headers.keys() & {"modal-authorization", "x-router-session"}
    assert [part.strip() for part in headers["cookie"].split(";")] == ["a=1", f"x{COOKIE}=keep", "session_token=keep"]
    if protocol != "grpc":
        assert seen["path"] == path
    assert COOKIE.lower() not in answer.get("set-cookie").lower()


@protocols
async def test_nothing_reaches_the_replica_of_ways_that_did_not_count(fleet: Any, protocol: str, client: Any) -> None:
    host = await sessioned(fleet, protocol)
    session = await kit.opened(fleet.eu, host)
    mark = f"{protocol}-all"
    fields = [("kit-id", mark)]
    fields += [*kit.shown("secret-2", "header"), *kit.shown("secret-3", "cookie"), *kit.shown("secret-4", "cookie")]
    path = "" if protocol in OF_HTTP else f"{kit.PATHS[protocol]}?session_token=secret-5&session_token={session.token}"
    answer = await kit.use(protocol, fleet.eu, host, session.token, "modal", fields, path)
    assert (answer.error, answer.replica) == ("", session.replica)
    seen = json.dumps(await seen_by_replica(fleet, protocol, answer, mark, client))
    assert "secret-" not in seen and session.token not in seen and "session_token" not in seen and COOKIE not in seen


@of_http
@pytest.mark.parametrize(
    ("sent", "left"),
    [
        (["{}"], []),
        (["a=1; {}"], ["a=1"]),
        (["{}; b=2"], ["b=2"]),
        (["a=1; {}; b=2"], ["a=1", "b=2"]),
        (["a=1;{};b=2"], ["a=1", "b=2"]),
        (["a=1", "{}", "b=2"], ["a=1", "b=2"]),  # as HTTP/2 clients split them
        (["a=1; {}", "{}; b=2"], ["a=1", "b=2"]),
        (["{}; {}"], []),
        (["a=b={}; b"], None),  # a value that looks like it: no cookie of ours
        ([f"x{COOKIE}=1; {{}}; {COOKIE}x=2"], [f"x{COOKIE}=1", f"{COOKIE}x=2"]),
        ([f"{COOKIE.lower()}=1; {{}}"], [f"{COOKIE.lower()}=1"]),  # names of cookies are case-sensitive
        ([f"{COOKIE}=; {{}}"], []),
    ],
)
async def test_the_cookie_is_taken_out_and_the_others_stay(
    fleet: Any, protocol: str, sent: list[str], left: list[str] | None
) -> None:
    host = await sessioned(fleet)
    session = await kit.opened(fleet.eu, host)
    fields = [("cookie", text.replace("{}", f"{COOKIE}={session.token}")) for text in sent]
    answer = await kit.use(protocol, fleet.us, host, fields=fields)
    if left is None:
        assert answer.error == "session_required"
        return
    assert answer.replica == session.replica
    assert session.token not in answer.body.decode()
    got = [value for name, value in json.loads(answer.body)["headers"] if name.lower() == "cookie"]
    assert [part.strip() for value in got for part in value.split(";") if part.strip()] == left


async def test_the_token_is_in_no_log_and_on_no_page(fleet: Any) -> None:
    host = await sessioned(fleet)
    session = await kit.opened(fleet.us, host)
    ids = []
    for way in WAYS:
        answer = await kit.use("http1", fleet.us, host, session.token, way)
        ids.append(answer.get("x-request-id"))
    answer = await kit.use("http1", fleet.us, host, f"{session.token}x", "query")
    ids.append(answer.get("x-request-id"))
    assert all(ids)
    for request_id in ids:
        record = await fleet.us.record(request_id)
        assert session.token not in json.dumps(record)
    for path in ("/sessions", "/config_dump", "/server_info", "/metrics", "/clusters", "/v1/demand", "/"):
        assert session.token not in (await fleet.us.ask(path)).text, path
    assert session.token not in fleet.us.stderr()
    assert session.token not in fleet.us.log_path.read_text()


# -- terminate -------------------------------------------------------------------------------------------


@of_http
@ways
async def test_a_terminate_holds_at_every_router(fleet: Any, protocol: str, way: str) -> None:
    host = await sessioned(fleet)
    for first, second in ((fleet.eu, fleet.us), (fleet.us, fleet.eu)):
        session, other = await kit.opened(first, host), await kit.opened(first, host)
        answer = await kit.terminate(second, session, way, protocol) if way != "query" else await _by_query(second, session)
        assert answer.error == ""
        await asyncio.gather(*(kit.answers("http1", router, session, "session_gone", 2.0) for router in (first, second)))
        for router in (first, second) * 4:  # and stays so, with every worker
            assert (await kit.use("http1", router, host, session.token)).error == "session_gone"
        assert (await kit.terminate(first, session)).error == "session_gone"
        assert session.id not in await kit.rows(fleet.store, name_of(host))
        assert (await kit.use("http1", first, host, other.token)).replica == other.replica


async def _by_query(router: kit.Router, session: kit.Session) -> kit.Answer:
    """Terminate with the token in the query: directly, or by way of the redirect."""
    async with kit.http_client() as client:
        answer = await kit.send(client, router, session.host, kit.with_query(TERMINATE, session.token), content=None)
        if answer.status == 307:
            assert answer.get("location") == TERMINATE
            cookie = answer.get("set-cookie").partition(";")[0]
            answer = await kit.send(client, router, session.host, TERMINATE, [("cookie", cookie)], content=None)
    assert (answer.status, json.loads(answer.body)) == (200, {"session_id": session.id})
    return answer


@pytest.mark.parametrize("protocol", ["http1", "http2", "grpc", "websocket"])
async def test_what_is_under_way_outlives_a_terminate(fleet: Any, protocol: str) -> None:
    host = await sessioned(fleet, protocol)
    session = await kit.opened(fleet.eu, host)
    async with kit.holding(protocol, fleet.us, session) as replica:
        assert replica == session.replica
        assert (await kit.terminate(fleet.eu, session)).error == ""
        for router in fleet.routers:
            await kit.answers(protocol, router, session, "session_gone")
        if protocol in OF_HTTP:
            assert (await fleet.us.row(session.replica))["in_flight"] == 1
    # `holding` has talked over what it held, after the end of the session.


async def test_what_is_slow_is_answered_after_a_terminate(fleet: Any) -> None:
    host = await sessioned(fleet)
    session = await kit.opened(fleet.eu, host)
    slow = asyncio.ensure_future(kit.use("http1", fleet.us, host, session.token, fields=[("x-sim-fault", "slow;ms=1000")]))

    async def is_under_way() -> bool:
        return bool((await fleet.us.row(session.replica))["in_flight"])

    await kit.until(is_under_way)
    await kit.terminate(fleet.eu, session)
    assert not slow.done()
    assert ((await slow).error, (await slow).replica) == ("", session.replica)
    await kit.answers("http1", fleet.us, session, "session_gone")


# -- who may ---------------------------------------------------------------------------------------------


@protocols
async def test_a_credential_starts_and_the_token_alone_is_used(fleet: Any, protocol: str) -> None:
    host = await sessioned(fleet, protocol, environment="own", unauthenticated=False)
    _, credential = await fleet.token("own")
    _, colleague = await fleet.token("own")
    _, stranger = await fleet.token("other")
    mine, wrong = list(credential.items()), list((credential | {"modal-secret": "ws-wrong"}).items())
    for router in fleet.routers:
        for fields in (mine, list(colleague.items())):
            await kit.may_start(router, host, fields)

        async def is_known(router: Any = router) -> bool:  # of another environment, so it starts nothing
            return (await kit.start(router, host, list(stranger.items()))).error == "forbidden"

        await kit.until(is_known)
    for fields, error in (([], "unauthenticated"), (wrong, "unauthenticated"), (list(stranger.items()), "forbidden")):
        assert (await kit.start(fleet.eu, host, fields)).error == error
        assert (await kit.use(protocol, fleet.eu, host, fields=fields)).error in (error, "session_required")
    assert (await kit.use(protocol, fleet.eu, host, fields=mine)).error == "session_required"
    session = await kit.opened(fleet.eu, host, mine)
    for router in fleet.routers:
        for fields in ([], mine, list(colleague.items())):
            answer = await kit.use(protocol, router, host, session.token, fields=fields)
            assert (answer.error, answer.replica) == ("", session.replica)
        assert (await kit.use(protocol, router, host, session.token, fields=wrong)).error == "unauthenticated"
        assert (await kit.use(protocol, router, host, session.token, fields=list(stranger.items()))).error == "forbidden"


async def test_a_credentials_scopes_limit_what_it_starts(fleet: Any) -> None:
    one, other = await sessioned(fleet, unauthenticated=False), await sessioned(fleet, unauthenticated=False)
    _, credential = await fleet.token(scopes=(f"endpoint:{name_of(one)}",))
    mine = list(credential.items())
    await kit.may_start(fleet.eu, one, mine)
    assert (await kit.start(fleet.eu, other, mine)).error == "forbidden"


async def test_an_endpoint_without_sessions_is_as_it_was(fleet: Any) -> None:
    name = await fleet.endpoint("http1", regions=("", ""), unauthenticated=True)
    async with kit.http_client() as client:
        for target in ("/_sim/echo?session_token=abc&a=1", "/_sim/echo/_router?a"):
            answer = await kit.send(client, fleet.eu, f"{name}.example", target)
            assert answer.status == 200 and json.loads(answer.body)["path"] == target
        fields = [("cookie", "a=1"), ("modal-session-id", "k")]
        found = {(await kit.send(client, fleet.eu, f"{name}.example", "/_sim/echo", fields)).replica for _ in range(6)}
    assert len(found) == 1
