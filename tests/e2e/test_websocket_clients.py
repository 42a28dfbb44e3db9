"""The websockets library and the stock openpi client, through the router to a policy server."""

from __future__ import annotations

import asyncio
import zlib
from hashlib import sha256

import numpy as np
import pytest
import pytest_asyncio
import websockets
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.asyncio.client import connect

pytestmark = pytest.mark.asyncio(loop_scope="session")

# openpi-client opens its socket in a way that newer websockets deprecate.
stock_client = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["direct", "over-http2"])
async def router(request, keep_router, policy):
    """In front of the policy server; or of another router that is spoken to over HTTP/2 (RFC 8441)."""
    if request.param == "direct":
        return await keep_router(replicas=[policy.url])
    behind = await keep_router(replicas=[policy.url])
    return await keep_router(replicas=[f"h2c://127.0.0.1:{behind.port}"])


@pytest.fixture
def echo(router):
    """Open a WebSocket to the replica's /echo."""

    def open_echo(query="", **options):
        options = {"compression": None, "proxy": None, "max_size": None, "close_timeout": 5} | options
        return connect(f"ws://127.0.0.1:{router.port}/echo{query}", **options)

    return open_echo


@pytest.fixture
def seen_by_replica(client, policy, until):
    """What the policy server knows of the closed connection of this path."""

    async def find(path):
        async def closed():
            url = policy.url.replace("ws://", "http://")
            recent = (await client.get(f"{url}/_sim/connections")).json()["recent"]
            return next((opened for opened in recent if opened["path"] == path), None)

        return await until(closed)

    return find


async def test_messages_come_back(echo):
    async with echo() as socket:
        for message in ("text", "\N{SNOWMAN}" * 100, "", b"", b"binary", bytes(range(256)) * 300):
            await socket.send(message)
            assert await socket.recv() == message


async def test_a_message_of_10_mib(echo):
    message = bytes(range(256)) * (10 << 12)
    async with echo() as socket:
        await socket.send(message)
        assert sha256(await socket.recv()).digest() == sha256(message).digest()


async def test_fragments_and_pings_between_them(echo):
    async def fragments():
        yield b"one "
        pong = await socket.ping()
        yield b"two "
        await pong
        yield b"three"

    async with echo() as socket:
        await socket.send(fragments())
        assert await socket.recv() == b"one two three"
        await socket.send(["a", "b", "c"])
        assert await socket.recv() == "abc"


async def test_pings_pass_and_pongs_return(echo):
    async with echo() as socket:
        for i in range(20):
            await (await socket.ping(b"%d" % i))


async def test_subprotocol_and_fields_pass(echo, seen_by_replica):
    query = "?test=subprotocol"
    async with echo(query, subprotocols=["first", "second"], additional_headers={"X-Robot": "7"}) as socket:
        assert socket.subprotocol == "first"
        assert socket.response.headers["x-router-replica"]
    seen = await seen_by_replica(f"/echo{query}")
    assert seen["headers"]["x-robot"] == "7"
    assert set(seen["headers"]["x-forwarded-for"].split(", ")) == {"127.0.0.1"}
    assert seen["headers"]["host"]


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_the_clients_close_code_reaches_the_replica(echo, seen_by_replica, code):
    query = f"?code={code}"
    async with echo(query) as socket:
        await socket.close(code, "enough")
        assert socket.close_code == code
    assert (await seen_by_replica(f"/echo{query}"))["close_code"] == code


async def test_the_replicas_close_code_reaches_the_client(router):
    url = f"ws://127.0.0.1:{router.port}/"
    async with connect(url, compression=None, proxy=None) as socket:
        assert isinstance(await socket.recv(), bytes)
        await socket.send("this is no observation")
        assert "Traceback" in await socket.recv()
        with pytest.raises(websockets.ConnectionClosedError):
            await socket.recv()
        assert socket.close_code == 1011
        assert socket.close_reason.startswith("Internal server error")


async def test_a_replica_that_goes_away_says_so(start_router, start_policy):
    server = await start_policy()
    router = await start_router(replicas=[server.url])
    async with connect(f"ws://127.0.0.1:{router.port}/echo", compression=None, proxy=None) as socket:
        await socket.send("x")
        await socket.recv()
        stopping = asyncio.ensure_future(server.stop())
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1001
        await stopping


async def test_a_client_that_vanishes_is_noticed_by_the_replica(echo, seen_by_replica, router):
    query = "?test=vanish"
    async with echo(query) as socket:
        await socket.send("x")
        await socket.recv()
        socket.transport.abort()
    assert (await seen_by_replica(f"/echo{query}"))["close_code"] == 1006
    await router.settled()


async def test_a_replicas_refusal_passes(start_router, start_policy):
    server = await start_policy(api_key="secret")
    router = await start_router(replicas=[server.url])
    with pytest.raises(websockets.InvalidStatus) as refused:
        await connect(f"ws://127.0.0.1:{router.port}/", proxy=None)
    assert refused.value.response.status_code == 401
    assert "x-router-error" not in refused.value.response.headers
    await router.settled()


async def test_the_log_has_the_whole_conversation(echo, router, until):
    async with echo("?test=log") as socket:
        await socket.send(b"x" * 1000)
        await socket.recv()
        assert (await router.rows())[0]["in_flight"] == 1
    (record,) = await until(lambda: [r for r in router.records() if r["path"] == "/echo?test=log"])
    assert (record["status"], record["flags"]) == (101, "")
    assert record["bytes_received"] > 1000 and record["bytes_sent"] > 1000
    await router.settled()


@stock_client
@pytest.mark.parametrize("robots", [1, 4])
async def test_the_stock_openpi_client(router, robots):
    image = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    observation = {"images": {"left": image, "right": image}, "state": np.zeros(14), "prompt": "fold the towel"}
    crc = zlib.crc32(msgpack_numpy.packb(observation))

    def talk():
        robot = WebsocketClientPolicy("127.0.0.1", router.port)
        try:
            return robot.get_server_metadata(), [robot.infer(observation) for _ in range(5)]
        finally:
            robot._ws.close()

    for metadata, answers in await asyncio.gather(*(asyncio.to_thread(talk) for _ in range(robots))):
        assert metadata["action_horizon"] == 50
        for answer in answers:
            assert answer["actions"].shape == (50, 14) and answer["actions"][0][0] == crc
    await router.settled()
