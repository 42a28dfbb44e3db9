"""Each fault once, as a client, the access log and the admin listener see it.

A row says what goes wrong and where; all rows share one router, whose endpoints differ in their limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass, field

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

pytestmark = pytest.mark.asyncio(loop_scope="session")

TABLE = """
[[endpoint]]
name = "plain"
hosts = ["plain.test"]
health = {{ kind = "none" }}
replica = [{{ address = "{engine}" }}]

[[endpoint]]
name = "hasty"
hosts = ["hasty.test"]
health = {{ kind = "none" }}
timeouts = {{ first_byte_s = 0.3 }}
replica = [{{ address = "{engine}" }}]

[[endpoint]]
name = "idle"
hosts = ["idle.test"]
health = {{ kind = "none" }}
timeouts = {{ idle_s = 0.6 }}
replica = [{{ address = "{engine}" }}]

[[endpoint]]
name = "short"
hosts = ["short.test"]
health = {{ kind = "none" }}
timeouts = {{ total_s = 0.5 }}
replica = [{{ address = "{engine}" }}]

[[endpoint]]
name = "small"
hosts = ["small.test"]
health = {{ kind = "none" }}
limits = {{ max_body_bytes = 1000 }}
replica = [{{ address = "{engine}" }}]

[[endpoint]]
name = "one"
hosts = ["one.test"]
health = {{ kind = "none" }}
limits = {{ max_concurrency = 1 }}
replica = [{{ address = "{engine}" }}]

[[endpoint]]
name = "refused"
hosts = ["refused.test"]
health = {{ kind = "none" }}
replica = [{{ address = "{refused}" }}]

[[endpoint]]
name = "full"
hosts = ["full.test"]
health = {{ kind = "none" }}
timeouts = {{ connect_s = 0.3 }}
replica = [{{ address = "{full}" }}]

[[endpoint]]
name = "draining"
hosts = ["draining.test"]
health = {{ kind = "none" }}
replica = [{{ address = "{engine}", state = "DRAINING" }}]

[[endpoint]]
name = "ill"
hosts = ["ill.test"]
health = {{ kind = "http", interval_s = 60 }}
replica = [{{ address = "{refused}" }}]

[[endpoint]]
name = "empty"
hosts = ["empty.test"]
"""


@dataclass(frozen=True)
class Row:
    """What is sent, and what must be seen. `code` empty: the answer is the replica's own."""

    name: str
    host: str
    status: int
    code: str = ""
    flag: str = ""
    reached: str = ""
    fault: str = ""
    call: dict | bytes | None = None  # JSON of a chat, raw bytes to the echo, or a plain GET
    fields: dict = field(default_factory=dict)
    retry_after: str = ""
    is_cut: bool = False  # the body ends uncleanly
    also: tuple = ()  # codes that are as good


CHAT = {"model": "sim", "max_tokens": 30, "messages": [{"role": "user", "content": "hello"}]}
SSE = {**CHAT, "stream": True}
POST = b"x" * 100

ROWS = [
    Row("refused", "refused.test", 503, "connect_failed", "UF", "no", call=POST, retry_after="1"),
    Row("connect timeout", "full.test", 503, "connect_timeout", "UF", "no", call=POST, retry_after="1"),
    Row("reset before head", "plain.test", 502, "upstream_reset", "UR", "maybe", "reset-before-head", POST),
    Row("reset before head, GET", "plain.test", 502, "upstream_reset", "UR", "maybe", "reset-before-head"),
    Row("close before head", "plain.test", 502, "upstream_closed", "UC", "maybe", "close-before-head", POST),
    Row("killed chat", "plain.test", 502, "upstream_reset", "UR", "maybe", "reset-before-head", SSE),
    Row("stall before head", "hasty.test", 504, "first_byte_timeout", "UT", "maybe", "stall-before-head", POST),
    Row("idle before head", "idle.test", 504, "idle_timeout", "SI", "maybe", "stall-before-head", POST),
    Row("die after head", "plain.test", 200, "upstream_closed", "UC", "yes", "die-mid-stream;after=0", POST, is_cut=True),
    Row("die mid body", "plain.test", 200, "upstream_closed", "UC", "yes", "die-mid-stream;after=1", CHAT, is_cut=True),
    Row("reset mid body", "plain.test", 200, "upstream_reset", "UR", "yes", "die-mid-stream;after=1;how=rst", CHAT,
        is_cut=True, also=("upstream_closed",)),
    Row("die mid SSE", "plain.test", 200, "upstream_closed", "UC", "yes", "die-mid-stream;after=3", SSE, is_cut=True),
    Row("reset mid SSE", "plain.test", 200, "upstream_reset", "UR", "yes", "die-mid-stream;after=3;how=rst", SSE,
        is_cut=True, also=("upstream_closed",)),
    Row("stall mid SSE", "idle.test", 200, "idle_timeout", "SI", "yes", "stall;after=3", SSE, is_cut=True),
    Row("stall mid body", "idle.test", 200, "idle_timeout", "SI", "yes", "stall;after=1", CHAT, is_cut=True),
    Row("replica's 503", "plain.test", 503, fault="status=503;retry-after=7", call=CHAT, retry_after="7"),
    Row("replica's 429", "plain.test", 429, fault="status=429;retry-after=9", call=CHAT, retry_after="9"),
    Row("replica's 500", "plain.test", 500, fault="status=500", call=CHAT),
    Row("no route", "nowhere.test", 404, "no_route", "NR", "no", call=POST),
    Row("draining", "draining.test", 503, "no_replica", "UH", "no", call=POST, retry_after="1"),
    Row("ill", "ill.test", 503, "no_replica", "UH", "no", call=POST, retry_after="1"),
    Row("empty", "empty.test", 503, "no_replica", "UH", "no", call=POST, retry_after="1"),
    Row("body too large", "small.test", 413, "body_too_large", "DPE", "no", call=b"x" * 1001),
    Row("body just right", "small.test", 200, call=b"x" * 1000),
    Row("deadline before head", "short.test", 504, "deadline", "DT", "maybe", "stall-before-head", POST),
    Row("deadline mid SSE", "short.test", 200, "deadline", "DT", "yes", "stall;after=2", SSE, is_cut=True),
    Row("client's own deadline", "plain.test", 504, "deadline", "DT", "maybe", "stall-before-head", POST,
        {"x-request-timeout-ms": "300"}),
    Row("bad deadline", "plain.test", 400, "bad_request", "DPE", "no", call=POST, fields={"x-request-timeout-ms": "x"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def full_backlog():
    """A URL whose connects are never answered: the accept queue is full and the kernel drops every SYN."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        where = listening.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(where)
        yield f"http://127.0.0.1:{where[1]}"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(keep_router, engine, full_backlog, until):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{held.getsockname()[1]}"
        router = await keep_router(toml=TABLE.format(engine=engine.url, refused=refused, full=full_backlog))

        async def ill_is_known():
            return any(row["endpoint"] == "ill" and not row["is_healthy"] for row in await router.rows())

        await until(ill_is_known)
        yield router


async def collect(client, router, row, name):
    """Send a row's request; return the response, its body, and whether it ended uncleanly."""
    headers = {"host": row.host, "x-request-id": name, **row.fields}
    if row.fault:
        headers["x-sim-fault"] = row.fault
    if isinstance(row.call, dict):
        request = client.build_request("POST", f"{router.url}/v1/chat/completions", json=row.call, headers=headers)
    else:
        method = "GET" if row.call is None else "POST"
        request = client.build_request(method, f"{router.url}/_sim/echo", content=row.call, headers=headers)
    response = await client.send(request, stream=True)
    body = b""
    try:
        async for piece in response.aiter_raw():
            body += piece
    except httpx.RemoteProtocolError:
        return response, body, True
    finally:
        await response.aclose()
    return response, body, False


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace(" ", "-"))
async def test_fault(client, router, row):
    name = "row-" + "".join(c if c.isalnum() else "-" for c in row.name)
    response, body, was_cut = await collect(client, router, row, name)
    assert response.status_code == row.status
    assert was_cut == row.is_cut
    assert response.headers["x-request-id"] == name
    assert response.headers.get("retry-after", "") == row.retry_after
    codes = (row.code, *row.also)
    if row.code and not row.is_cut:  # the router's own answer
        assert response.headers["x-router-error"] in codes
        assert response.headers["x-router-upstream-reached"] == row.reached
        error = json.loads(body)["error"]
        assert error["code"] == response.headers["x-router-error"]
        assert error["type"] and error["message"] and error["param"] is None
    else:
        assert "x-router-error" not in response.headers
        assert "x-router-upstream-reached" not in response.headers
        assert response.headers["x-router-replica"]
    if row.is_cut and isinstance(row.call, dict) and row.call.get("stream"):
        _, mark, event = body.partition(b"event: error\ndata: ")
        assert mark, body
        assert body.count(b"event: error") == 1 and event.endswith(b"\n\n")
        assert json.loads(event)["error"]["code"] in codes
        assert b"[DONE]" not in body
    elif row.status >= 400 and not row.code:
        assert b"SimulatedFault" in body
    record = await router.record(name)
    assert record["status"] == row.status
    assert record["code"] in codes
    if record["code"] == row.code:
        assert record["flags"] == row.flag
    if row.code:
        assert record["reached"] == row.reached
    await router.settled()
    alive = await client.get(f"{router.url}/_sim/echo", headers={"host": "plain.test"})
    assert alive.status_code == 200


async def test_backpressure_is_no_failure(client, router):
    async def plain():
        return next(row for row in await router.rows() if row["endpoint"] == "plain")

    before = await plain()
    for status in (503, 429):
        response = await client.post(
            f"{router.url}/v1/chat/completions", json=CHAT,
            headers={"host": "plain.test", "x-sim-fault": f"status={status}"},
        )  # fmt: skip
        assert response.status_code == status
    after = await plain()
    assert after["backpressured"] == before["backpressured"] + 2
    assert after["failures"] == before["failures"]


async def test_at_capacity(client, router):
    """The one place is taken by a stream that stalls; it is free again once its client is gone."""
    url, host = f"{router.url}/v1/chat/completions", {"host": "one.test"}
    stalled = client.build_request("POST", url, json=SSE, headers={**host, "x-sim-fault": "stall;after=1"})
    holder = await client.send(stalled, stream=True)
    assert holder.status_code == 200
    refused = await client.post(url, json=CHAT, headers={**host, "x-request-id": "at-capacity"})
    assert refused.status_code == 503
    assert refused.headers["x-router-error"] == "at_capacity"
    assert refused.headers["x-router-upstream-reached"] == "no"
    assert int(refused.headers["retry-after"]) >= 1
    record = await router.record("at-capacity")
    assert (record["status"], record["flags"], record["code"]) == (503, "UO", "at_capacity")
    await holder.aclose()
    await router.settled()
    assert (await client.post(url, json=CHAT, headers=host)).status_code == 200


HANDSHAKES = [
    ("nowhere.test", {}, 404, "no_route", "no"),
    ("draining.test", {}, 503, "no_replica", "no"),
    ("refused.test", {}, 503, "connect_failed", "no"),
    ("full.test", {}, 503, "connect_timeout", "no"),
    ("plain.test", {"x-sim-fault": "reset-before-head"}, 502, "upstream_reset", "maybe"),
    ("plain.test", {"x-sim-fault": "close-before-head"}, 502, "upstream_closed", "maybe"),
    ("hasty.test", {"x-sim-fault": "stall-before-head"}, 504, "first_byte_timeout", "maybe"),
    ("plain.test", {"x-sim-fault": "status=503;retry-after=7"}, 503, "", ""),
    ("plain.test", {}, 200, "", ""),
]


@pytest.mark.parametrize(
    ("host", "fields", "status", "code", "reached"),
    HANDSHAKES,
    ids=[f"{row[0]}-{row[2]}-{row[3]}" for row in HANDSHAKES],
)
async def test_a_websocket_handshake_that_fails(router, host, fields, status, code, reached):
    with pytest.raises(InvalidStatus) as refused:
        await connect(
            f"ws://{host}/_sim/echo", host="127.0.0.1", port=router.port, proxy=None, compression=None,
            additional_headers=fields,
        )  # fmt: skip
    response = refused.value.response
    assert response.status_code == status
    assert response.headers.get("x-router-error", "") == code
    assert response.headers.get("x-router-upstream-reached", "") == reached
    if status == 503:
        assert response.headers["retry-after"] == ("1" if code else "7")
    await router.settled()


async def test_a_chunked_body_grows_too_large(client, router):
    async def pieces():
        for _ in range(20):
            yield b"x" * 100

    headers = {"host": "small.test", "x-request-id": "grows"}
    response = await client.post(f"{router.url}/_sim/sink", content=pieces(), headers=headers)
    assert response.status_code == 413 and response.headers["x-router-error"] == "body_too_large"
    assert (await router.record("grows"))["flags"] == "DPE"
    await router.settled()


@pytest.mark.parametrize("when", ["before the head", "mid stream"])
async def test_client_gone(client, router, when, journal_of, engine):
    name = "gone-" + when.replace(" ", "-")
    fault = "stall-before-head" if when == "before the head" else "stall;after=2"
    headers = {"host": "plain.test", "x-request-id": name, "x-sim-fault": fault}
    request = client.build_request("POST", f"{router.url}/v1/chat/completions", json=SSE, headers=headers)
    if when == "mid stream":
        response = await client.send(request, stream=True)
        await anext(response.aiter_raw())
        await response.aclose()
    else:
        task = asyncio.ensure_future(client.send(request))

        async def is_there():
            found = (await client.get(f"{engine.url}/_sim/requests?limit=0")).json()["open"]
            return any(record["headers"].get("x-request-id") == name for record in found)

        while not await is_there():  # bounded by the test's own timeout
            assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    record = await router.record(name)
    assert (record["status"], record["flags"], record["code"]) == (499, "DC", "client_gone")
    assert (await journal_of(engine, name))["state"] in ("aborted", "failed")
    await router.settled()


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_replica_that_closes_on_accept(start_router, start_server, how):
    """As one that is out of files does. In bursts, so that the end arrives while the router is still connecting."""

    async def leave(reader, writer):
        if how == "fin":
            writer.close()
        else:
            writer.transport.abort()

    router = await start_router(
        "--health", "none", "--connect-timeout-s", 20, replicas=[await start_server(leave, backlog=400)]
    )

    async def call(i):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(
            b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello"
            if i % 2
            else b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"
        )
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 8)
        finally:
            writer.close()
        return head[9:12], b"x-router-error: " in head

    for _ in range(4):
        answers = await asyncio.gather(*(call(i) for i in range(200)), return_exceptions=True)
        hung = sum(isinstance(answer, TimeoutError) for answer in answers)
        assert not hung, f"{hung} of 200 requests were never answered"
        assert set(answers) <= {(b"502", True), (b"503", True)}
    await router.settled()


async def test_both_sides_leave_while_a_connection_is_made(start_router, start_server, until):
    """Upgrades take a connection of their own; client and replica give it up in about the same moment."""
    accepted = []

    async def leave(reader, writer):
        accepted.append(writer)
        writer.transport.abort()

    router = await start_router("--health", "none", replicas=[await start_server(leave)])
    for _ in range(10):
        writers = []
        for _ in range(40):
            _, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writers.append(writer)
            writer.write(
                b"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
                b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
        for writer in writers:
            writer.transport.abort()
        await router.settled()
    assert accepted
    assert "crashed" not in router.stderr()


async def test_the_same_limits_by_flag(start_router, engine, client):
    router = await start_router(
        "--first-byte-timeout-s", 0.5, "--idle-timeout-s", 1.0, "--request-timeout-s", 4,
        "--max-body-bytes", 500, "--health", "none", replicas=[engine.url],
    )  # fmt: skip
    rows = [
        Row("flag-first-byte", "any", 504, "first_byte_timeout", fault="stall-before-head", call=POST),
        Row("flag-body", "any", 413, "body_too_large", call=b"x" * 501),
        Row("flag-idle", "any", 200, fault="stall;after=2", call=SSE, is_cut=True),
    ]
    for row in rows:
        response, body, was_cut = await collect(client, router, row, row.name)
        assert (response.status_code, was_cut) == (row.status, row.is_cut)
        assert response.headers.get("x-router-error", "") == row.code
        if was_cut:
            assert b"idle_timeout" in body
    await router.settled()
