"""Tokens of sticky sessions: the redirect that takes one out of a URL, and whatever is not a token of ours.

A redirect must stay on the same origin whatever the path is, set one cookie and nothing beside it, and forget no
parameter. What is forged, cut, moved to another endpoint or sent a hundred times is refused by its code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

import sessionkit as kit  # noqa: E402
from fleetkit import fleet_of  # noqa: E402
from sessionkit import COOKIE, OF_HTTP, PROTOCOLS, SERVER, START, TERMINATE, WAYS  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]
protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
of_http = pytest.mark.parametrize("protocol", OF_HTTP)
SESSIONED: dict[str, Any] = {"sessions": {}}
MAX_TOKEN_BYTES = 2_048


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fleet(keep_router: Any) -> AsyncIterator[Any]:
    async with fleet_of(keep_router) as found:
        yield found


async def started(fleet: Any, protocol: str = "http1", regions: tuple[str, ...] = ("",), **more: Any) -> kit.Session:
    """Start a session on an open endpoint of its own."""
    server = SERVER.get(protocol, protocol)
    name = await fleet.endpoint(server, regions, policy=SESSIONED, unauthenticated=True, **more)
    return await kit.opened(fleet.eu, f"{name}.example")


def cookie_of(token: str) -> str:
    return f"{COOKIE}={token}; Path=/; Secure; HttpOnly; SameSite=Lax"


# -- the redirect ----------------------------------------------------------------------------------------


@of_http
@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/_sim/echo?session_token={}", "/_sim/echo"),
        ("/?session_token={}", "/"),
        ("/_sim/echo?a=1&session_token={}&b=2", "/_sim/echo?a=1&b=2"),
        ("/_sim/echo?session_token={}&z=1&a=2&z=3", "/_sim/echo?z=1&a=2&z=3"),
        ("/_sim/echo?a=%20+%2B%26x&session_token={}&c&d=&=e&%C3%A9=%ff", "/_sim/echo?a=%20+%2B%26x&c&d=&=e&%C3%A9=%ff"),
        ("/_sim/echo?session_token={}&session_token={}", "/_sim/echo"),
        ("/_sim/echo?session_token={}&a=1&session_token=", "/_sim/echo?a=1"),
        ("/_sim/echo?my_session_token=1&session_token={}&session_tokens=2&x=session_token", "/_sim/echo?my_session_token=1&session_tokens=2&x=session_token"),
        ("/_sim/echo?next=https://evil.example/?session_token=x&session_token={}", "/_sim/echo?next=https://evil.example/?session_token=x"),
        ("/a%2Fb/%E2%82%AC;x=1/%2e%2e/c:d@e?session_token={}", "/a%2Fb/%E2%82%AC;x=1/%2e%2e/c:d@e"),
        ("/_sim/echo?session_token={%}&a=1", "/_sim/echo?a=1"),
    ],
)  # fmt: skip
async def test_a_query_token_becomes_a_cookie(fleet: Any, protocol: str, target: str, location: str) -> None:
    session = await started(fleet)
    sent = target.replace("{}", session.token).replace("{%}", kit.percent(session.token))
    async with kit.http_client(protocol) as client:
        for router, method in ((fleet.eu, "GET"), (fleet.us, "POST"), (fleet.us, "HEAD")):
            answer = await kit.send(client, router, session.host, sent, method=method)
            assert (answer.status, answer.error) == (307, ""), answer
            assert answer.get("location") == location
            assert answer.get("set-cookie") == cookie_of(session.token)
            assert answer.get("cache-control") == "no-store"
            assert answer.get("referrer-policy") == "no-referrer"
            assert session.token not in answer.body.decode()
    answer = await kit.use(protocol, fleet.us, session.host, fields=[("cookie", cookie_of(session.token).partition(";")[0])])
    assert answer.replica == session.replica


@of_http
async def test_an_empty_query_token_is_none(fleet: Any, protocol: str) -> None:
    session = await started(fleet)
    for query in ("session_token=", "session_token", "a=1&session_token=&b=2"):
        assert (await kit.use(protocol, fleet.eu, session.host, path=f"/_sim/echo?{query}")).error == "session_required"
    answer = await kit.use(protocol, fleet.eu, session.host, session.token, path="/_sim/echo?a=1&session_token=&b=2")
    if answer.status != 307:  # a token in a header comes first, whether or not the address is mended as well
        assert (answer.replica, json.loads(answer.body)["path"]) == (session.replica, "/_sim/echo?a=1&b=2")


@of_http
async def test_a_header_beside_a_query_token_leaks_neither(fleet: Any, protocol: str) -> None:
    session = await started(fleet)
    for query in (session.token, "nonsense"):
        path = f"/_sim/echo?a=1&session_token={query}&b=2"
        for way in WAYS[:3]:
            answer = await kit.use(protocol, fleet.eu, session.host, session.token, way, path=path)
            if way == "cookie" and query != session.token:  # a link comes before what a browser kept
                assert answer.error == "session_invalid" or answer.get("set-cookie") == cookie_of(query)
                continue
            assert answer.error == ""
            if answer.status == 307:
                assert answer.get("location") == "/_sim/echo?a=1&b=2"
                assert answer.get("set-cookie") == cookie_of(session.token)
            else:
                assert json.loads(answer.body)["path"] == "/_sim/echo?a=1&b=2"


def is_same_origin(location: str) -> bool:
    """Whether a browser stays where it is: it drops tabs and newlines, and takes a backslash for a slash."""
    seen = location.translate({9: None, 10: None, 13: None}).strip().replace("\\", "/")
    return seen.startswith("/") and not seen.startswith("//")


@of_http
@pytest.mark.parametrize(
    "path",
    [
        "//evil.example", "//", "///evil.example", "////evil.example/", "//evil.example/%2e%2e", "//user@evil.example:1/x",
        "/\\evil.example", "/\\/evil.example", "/\\\\evil.example", "/\t/evil.example", "\\\\evil.example", "\\/evil.example",
    ],
)  # fmt: skip
async def test_no_path_leads_to_another_origin(fleet: Any, protocol: str, path: str) -> None:
    session = await started(fleet)
    target = f"{path}?a=1&session_token={session.token}"
    if protocol == "http1":
        status, fields = await raw(fleet.eu, f"GET {target} HTTP/1.1\r\nhost: {session.host}\r\n\r\n")
    else:
        status, fields = 400, []
        async with kit.http_client(protocol) as client:
            with contextlib.suppress(httpx.RemoteProtocolError):  # the stream is reset: this was no path at all
                answer = await kit.send(client, fleet.eu, session.host, target, method="GET", content=None)
                status, fields = answer.status, answer.fields
    locations = [value for name, value in fields if name == "location"]
    assert all(is_same_origin(location) for location in locations), locations
    if path.startswith(("//", "/\\")):
        assert (status, locations) == (400, [])
        assert not [value for name, value in fields if name == "set-cookie"]
    assert (await kit.use(protocol, fleet.eu, session.host, session.token)).replica == session.replica


async def test_an_absolute_target_leads_to_a_path(fleet: Any) -> None:
    session = await started(fleet)
    line = f"GET http://{session.host}/_sim/echo?a=1&session_token={session.token} HTTP/1.1\r\nhost: {session.host}\r\n\r\n"
    status, fields = await raw(fleet.eu, line)
    assert (status, dict(fields).get("location")) == (307, "/_sim/echo?a=1")
    line = line.replace("/_sim/echo", "//evil.example")
    status, fields = await raw(fleet.eu, line)
    assert (status, dict(fields).get("location")) == (400, None)


@of_http
async def test_a_query_token_that_is_not_ours_writes_nothing_of_its_own(fleet: Any, protocol: str) -> None:
    session = await started(fleet)
    for tail in ("%0d%0aset-cookie:%20evil=1", "%0aset-cookie:%20evil=1", "%3bDomain=evil.example", ";Domain=evil.example",
                 "%00", "%", "%zz", "%20x", ",x", "%22"):  # fmt: skip
        for token in (f"{session.token}{tail}", f"x{tail}", tail):
            answer = await kit.use(protocol, fleet.eu, session.host, token, "query")
            assert answer.error == "session_invalid" or answer.status == 307, tail
            cookies = [value for name, value in answer.fields if name == "set-cookie"]
            if answer.status == 307:  # refused when it comes back as a cookie
                assert len(cookies) == 1
                value = cookies[0].partition("=")[2].partition(";")[0]
                assert cookies[0] == cookie_of(value)
                assert not set(value) & set(' ",;\\\r\n\0')
                answer = await kit.use(protocol, fleet.eu, session.host, fields=[("cookie", f"{COOKIE}={value}")])
                assert answer.error == "session_invalid"
            else:
                assert cookies == []


async def raw(router: kit.Router, text: str) -> tuple[int, kit.Fields]:
    """Send bytes; return status and fields of the answer's head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    try:
        writer.write(text.encode("latin-1"))
        async with asyncio.timeout(10):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    finally:
        writer.close()
    first, *lines = head.split("\r\n")[:-2]
    return int(first.split()[1]), [(line.partition(":")[0].lower(), line.partition(":")[2].strip()) for line in lines]


# -- not ours --------------------------------------------------------------------------------------------


@protocols
async def test_no_token_and_one_that_is_none(fleet: Any, protocol: str) -> None:
    session = await started(fleet, protocol)
    for router in fleet.routers:
        assert (await kit.use(protocol, router, session.host)).error == "session_required"
        for way in WAYS if protocol not in OF_HTTP else WAYS[:3]:
            for token in ("nonsense", session.id, session.token[:-1], session.token * 2, f"{session.token}A"):
                assert (await kit.use(protocol, router, session.host, token, way)).error == "session_invalid", (way, token)


async def test_terminate_asks_for_a_token_of_the_endpoint(fleet: Any) -> None:
    session, other = await started(fleet), await started(fleet)
    async with kit.http_client() as client:
        for token, error in (("", "session_required"), ("nonsense", "session_invalid"), (other.token, "forbidden")):
            fields = kit.shown(token, "header") if token else []
            assert (await kit.send(client, fleet.eu, session.host, TERMINATE, fields)).error == error
    for each in (session, other):
        assert (await kit.use("http1", fleet.us, each.host, each.token)).replica == each.replica


@protocols
async def test_a_token_longer_than_the_limit_is_401(fleet: Any, protocol: str) -> None:
    session = await started(fleet, protocol)
    for length in (MAX_TOKEN_BYTES, MAX_TOKEN_BYTES + 1, 3 * MAX_TOKEN_BYTES):
        for token in ("A" * length, session.token + "A" * (length - len(session.token))):
            assert (await kit.use(protocol, fleet.eu, session.host, token)).error == "session_invalid", length


@protocols
async def test_a_token_of_another_endpoint_or_environment_is_403(fleet: Any, protocol: str) -> None:
    here, there = await started(fleet, protocol), await started(fleet, protocol)
    elsewhere = await started(fleet, protocol, environment="elsewhere")
    for router in fleet.routers:
        for token in (there.token, elsewhere.token):
            assert (await kit.use(protocol, router, here.host, token)).error == "forbidden"
        for session in (here, there, elsewhere):
            assert (await kit.use(protocol, router, session.host, session.token)).replica == session.replica


@pytest.mark.parametrize("way", WAYS[:3])
async def test_no_byte_of_a_token_may_be_changed_cut_or_swapped(fleet: Any, way: str) -> None:
    session = await started(fleet)
    other = await kit.opened(fleet.eu, session.host)
    wrong = kit.forged(session.token, other.token)
    assert len(wrong) > 4 * len(session.token)
    sample = wrong if way == "header" else dict(list(wrong.items())[:: 7 if way == "modal" else 11])
    async with kit.http_client() as client:
        for what, token in sample.items():
            if way == "cookie" and set(token) & set(' ;",\t'):
                continue  # not of one cookie
            answer = await kit.send(client, fleet.us, session.host, "/_sim/echo", kit.shown(token, way))
            assert answer.error == "session_invalid", (what, token, answer)
    for each in (session, other):
        assert (await kit.use("http1", fleet.us, each.host, each.token)).replica == each.replica


@pytest.mark.parametrize("protocol", PROTOCOLS[2:])
async def test_a_sample_of_the_forged_in_other_protocols(fleet: Any, protocol: str) -> None:
    session = await started(fleet, protocol)
    other = await kit.opened(fleet.eu, session.host)
    for what, token in list(kit.forged(session.token, other.token).items())[::37]:
        for way in ("header", "query"):
            if way == "query" and set(token) & set(' ;&%#"\t'):
                continue
            answer = await kit.use(protocol, fleet.us, session.host, token, way)
            assert answer.error == "session_invalid", (what, token, way)
    assert (await kit.use(protocol, fleet.us, session.host, session.token)).replica == session.replica


# -- floods ----------------------------------------------------------------------------------------------


@of_http
@pytest.mark.parametrize("way", WAYS[:3])
async def test_a_field_repeated_reaches_no_replica_and_leads_to_no_other(fleet: Any, protocol: str, way: str) -> None:
    one = await started(fleet, regions=("",) * 4)
    two = await kit.opened(fleet.eu, one.host)
    for tokens in ((one, one), (one, two), (two, one, two)):
        fields = [field for session in tokens for field in kit.shown(session.token, way)]
        answer = await kit.use(protocol, fleet.us, one.host, fields=fields)
        assert answer.error in ("", "session_invalid", "bad_request")
        if not answer.error:
            assert answer.replica in {session.replica for session in tokens}
            assert not any(session.token in answer.body.decode() for session in tokens)
    many = [field for token in ["nonsense"] * 60 for field in kit.shown(token, way)]
    for fields in ([*many, *kit.shown(one.token, way)], [*kit.shown(one.token, way), *many]):
        answer = await kit.use(protocol, fleet.us, one.host, fields=fields)
        assert answer.error in ("", "session_invalid", "bad_request")
        assert one.token not in answer.body.decode() and "nonsense" not in answer.body.decode()
    for session in (one, two):
        assert (await kit.use(protocol, fleet.us, one.host, session.token)).replica == session.replica


@of_http
async def test_a_flood_of_fields_and_a_cookie_of_hundreds(fleet: Any, protocol: str) -> None:
    session = await started(fleet)
    flood = kit.shown(session.token, "header") * 200
    assert (await kit.use(protocol, fleet.eu, session.host, fields=flood)).error == "head_too_large"
    assert (await kit.start(fleet.eu, session.host, flood, protocol=protocol)).error == "head_too_large"
    crumbs = "; ".join(f"c{i}={i}" for i in range(400))  # what the engine takes
    async with asyncio.timeout(5):
        for text in (f"{crumbs}; {COOKIE}={session.token}", f"{COOKIE}={session.token}; {crumbs}"):
            answer = await kit.use(protocol, fleet.eu, session.host, fields=[("cookie", text)])
            assert answer.replica == session.replica
            assert ["cookie", crumbs] in [[name.lower(), value] for name, value in json.loads(answer.body)["headers"]]
        query = "&".join(f"q{i}={i}" for i in range(1_000))
        answer = await kit.use(protocol, fleet.eu, session.host, path=f"/_sim/echo?{query}&session_token={session.token}&{query}")
        assert (answer.status, answer.get("location")) == (307, f"/_sim/echo?{query}&{query}")
    assert (await kit.use(protocol, fleet.eu, session.host, session.token)).replica == session.replica


async def test_a_flood_of_garbage_starts_and_ends_nothing(fleet: Any) -> None:
    session = await started(fleet)
    name = session.host.removesuffix(".example")
    before = await kit.rows(fleet.store, name)

    async def flood(router: kit.Router, i: int) -> str:
        path = ("/_sim/echo", TERMINATE)[i % 2]
        return (await kit.use("http1", router, session.host, f"{i:0150}", path=path)).error

    errors = await asyncio.gather(*(flood(fleet.routers[i % 3 % 2], i) for i in range(200)))
    assert set(errors) == {"session_invalid"}
    assert (await kit.start(fleet.eu, session.host, method="GET")).status == 405
    assert (await kit.rows(fleet.store, name)).keys() == before.keys()
    assert START not in (await fleet.eu.ask("/metrics")).text  # no label is made of what clients send
    assert (await kit.use("http1", fleet.us, session.host, session.token)).replica == session.replica
