"""What one side of an exchange does to the other: refused tunnels, early answers, full and leaving replicas, slow readers."""

from __future__ import annotations

import asyncio

import pytest
import wirekit
from h2kit import (
    CONNECT_PROTOCOL,
    INITIAL_WINDOW,
    MAX_STREAMS,
    NO_ERROR,
    REFUSED,
    goaway,
    head,
    headers,
    rst,
    window,
)
from h2kit import echo as h2_echo
from wirekit import until

pytest_plugins = ["h2fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

WS = [
    (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http"), (b":path", b"/ws"), (b":authority", b"h"),
    (b"sec-websocket-version", b"13"),
]  # fmt: skip
EVIL = b"GET /evil HTTP/1.1\r\nHost: internal\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


# --- tunnels that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [b"200 OK", b"302 Found", b"403 Forbidden", b"503 Busy"])
@pytest.mark.parametrize("when", ["with the handshake", "behind the head"])
async def test_a_refused_tunnel_carries_no_request(h2_connect, replica, status, when):
    """RFC 9112 §11.2: what stands behind a handshake that is not accepted would be read as a request."""
    head_is_there = asyncio.Event()

    async def refusing(connection, request):
        await connection.send(b"HTTP/1.1 %b\r\nContent-Length: 4\r\n\r\n" % status)
        head_is_there.set()
        await asyncio.sleep(0.05)
        await connection.send(b"nope")

    replica.script = refusing
    client = await h2_connect()
    stream = await client.open(WS, end=False)
    if when == "behind the head":
        await head_is_there.wait()
    await stream.send(EVIL, end=True)
    await stream.done()
    assert stream.status in {int(status[:3]), 502}
    replica.script = wirekit.echo
    others = [await h2_connect() for _ in range(3)]
    for other in others:
        assert bytes((await other.get(b"/victim")).body) == b"/victim"
    assert {request.target for request in replica.requests} == {b"/ws", b"/victim"}


@pytest.mark.parametrize("when", ["with the handshake", "behind the head"])
async def test_a_refused_upgrade_carries_no_request(connect, replica, when):
    head_is_there = asyncio.Event()

    async def refusing(connection, request):
        await connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\n")
        head_is_there.set()
        await asyncio.sleep(0.05)
        await connection.send(b"nope")

    replica.script = refusing
    client = await connect()
    await client.send(UPGRADE + (EVIL if when == "with the handshake" else b""))
    if when == "behind the head":
        await head_is_there.wait()
        await client.send(EVIL)
    assert (await client.response()).status == 403
    replica.script = wirekit.echo
    assert {request.target for request in replica.requests} == {b"/ws"}


async def test_trailers_of_the_client_end_its_tunnel(h2_h2_connect, h2_replica):
    """RFC 9113 §8.5; and nothing of it stays counted."""

    async def script(stream):
        await stream.send_head([(b":status", b"200")])

    h2_replica.settings = {CONNECT_PROTOCOL: 1, MAX_STREAMS: 2}
    h2_replica.script = script
    client = await h2_h2_connect()
    for _ in range(20):
        stream = await client.open(WS, end=False)
        await stream.headed()
        await client.send(headers(stream.id, [(b"x", b"y")]))
        assert await stream.was_reset() is not None
    h2_replica.script = h2_echo
    assert (await client.get(b"/after")).status == 200


async def test_trailers_of_the_replica_end_its_tunnel_alone(h2_h2_connect, h2_replica):
    async def script(stream):
        await stream.send_head([(b":status", b"200")])
        await stream.link.send(headers(stream.id, [(b"x", b"y")]))

    h2_replica.settings = {CONNECT_PROTOCOL: 1}
    h2_replica.script = script
    client = await h2_h2_connect()
    stream = await client.open(WS, end=False)
    await stream.headed()
    await stream.send(b"\x82\x01x", size=3)
    await stream.done()
    h2_replica.script = h2_echo
    assert (await client.get(b"/after")).status == 200
    assert not client.goaways


# --- answers before the request's end ----------------------------------------------------------------------------------


async def test_an_early_answer_of_a_replica_that_closes_is_not_lost(connect, replica):
    """RFC 9112 §9.5: it closes with unread input, so that its RST comes right behind its answer."""

    async def closing(connection, request):
        await connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        connection.close()

    replica.script = closing
    statuses = []
    for _ in range(30):
        client = await connect()
        await client.send(b"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 8000000\r\n\r\n")
        for _ in range(100):
            if client.unread or not await client.send(b"x" * 16_384):
                break
            await asyncio.sleep(0)
        statuses.append((await client.response()).status)
        client.abort()
    assert statuses == [413] * 30


async def test_no_error_behind_a_whole_answer_loses_nothing_of_it(h2_h2_connect, h2_replica):
    """RFC 9113 §8.1, and the client is slow."""

    async def script(stream):
        await stream.send_head([(b":status", b"200")])
        await stream.send(b"x" * 150_000, end=True)
        await stream.cancel(NO_ERROR)

    h2_replica.script = script
    client = await h2_h2_connect({INITIAL_WINDOW: 1_000})
    client.refills = False
    stream = await client.open(head(b"POST"), end=False)
    await stream.has(1_000)
    assert await h2_replica.seen[0].link.roundtrip()
    client.refills = True
    stream.recv_window += 200_000
    client.recv_window += 200_000
    await client.send(window(stream.id, 200_000) + window(0, 200_000))
    await stream.done()
    assert len(stream.body) == 150_000 and stream.reset in {None, NO_ERROR}


# --- replicas that are full or leave -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings_late_s", [0.0, 0.1])
async def test_a_burst_onto_a_replica_that_takes_few_streams(h2_h2_connect, h2_replica, settings_late_s):
    """There may be eight connections, and a refused stream is moved to another (RFC 9113 §8.7)."""

    def opening(link):
        async def late():
            await asyncio.sleep(settings_late_s)
            link.post_settings({MAX_STREAMS: 5})

        link.acks_settings = False  # SETTINGS come first (§3.4)
        link.greeting = asyncio.ensure_future(late())

    async def script(stream):
        await stream.done(None)
        if sum(other.open for other in stream.link.streams.values()) > 5:
            await stream.cancel(REFUSED)
            return
        await asyncio.sleep(0.05)
        await stream.answer(b"ok")

    h2_replica.opening = opening
    h2_replica.script = script
    client = await h2_h2_connect()
    for _ in range(2):
        opened = [await client.open(head(b"GET", b"/%d" % i)) for i in range(40)]
        assert [(await stream.done()).status for stream in opened] == [200] * 40


async def test_a_websocket_moves_from_a_replica_that_leaves(h2_h2_connect, h2_replica):
    async def script(stream):
        if len(h2_replica.seen) == 1:
            await stream.link.send(goaway(0))
        else:
            await stream.send_head([(b":status", b"200")])

    h2_replica.settings = {CONNECT_PROTOCOL: 1}
    h2_replica.script = script
    client = await h2_h2_connect()
    stream = await client.open(WS, end=False)
    await stream.headed()
    assert stream.status == 200 and len(h2_replica.seen) == 2


@pytest.mark.parametrize("streams", [25, 60])
async def test_slow_readers_leave_the_replicas_connection_to_others(h2_h2_connect, h2_replica, streams):
    async def script(stream):
        if stream.path == b"/slow":
            await stream.send_head([(b":status", b"200")])
            await stream.send(b"x" * 1_000_000, end=True)
        else:
            await stream.answer(b"y" * 500_000)

    h2_replica.script = script
    slow = await h2_h2_connect({INITIAL_WINDOW: 1})
    slow.refills = False
    for _ in range(streams):
        await slow.open(head(b"GET", b"/slow"))
    await until(lambda: len(h2_replica.seen) == streams, "all of them began")
    other = await h2_h2_connect()
    for _ in range(3):
        stream = await other.get(b"/quick")
        assert len(stream.body) == 500_000
    assert len({stream.link for stream in h2_replica.seen}) == 1, "on one connection"


# --- resets that cross ------------------------------------------------------------------------------------------------


async def test_a_reset_for_each_answer_that_came_early_is_no_flood(h2_connect, replica):
    """grpc-go sends one for every call that ends before its client closed its half."""
    replica.script = wirekit.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", early=True)
    client = await h2_connect()
    for _ in range(1_500):
        stream = await client.open(head(b"POST"), end=False)
        await stream.was_reset()
        assert stream.status == 200
        await client.send(rst(stream.id, NO_ERROR))
    assert await client.roundtrip() and not client.goaways
