"""What clients do with a connection: HTTP/1.0, pipelining, half-close, going away, reading and writing slowly."""

from __future__ import annotations

import asyncio
import time

import pytest
from wirekit import answer, echo, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

GONE_S = 0.25  # 50 ms are asked for; the rest is for a machine under load
GROWTH_BYTES = 24 << 20
BIG = 48 << 20


async def test_http_1_0_ends_with_the_answer(connect, replica):
    # RFC 9112 §9.3
    client = await connect()
    await client.send(b"GET /t HTTP/1.0\r\nHost: h\r\n\r\n")
    response = await client.response()
    assert response.body == b"/t"
    assert await client.assert_closed() == "eof"
    assert replica.requests[0].start == (b"GET", b"/t", b"HTTP/1.1"), "RFC 9112 §2.3: the router's own version"


async def test_http_1_0_keep_alive(connect, replica):
    # RFC 9112 §9.3, appendix C.2.2: kept only if the response says so too.
    client = await connect()
    for target in [b"/a", b"/b", b"/c"]:
        if not await client.send(b"GET " + target + b" HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n"):
            break
        response = await client.response()
        assert response.body == target
        if (response.get(b"connection") or b"").lower() != b"keep-alive":
            await client.assert_closed()
            break


async def test_http_1_0_head_and_post(connect, replica):
    for data, body in [
        (b"HEAD /t HTTP/1.0\r\nHost: h\r\n\r\n", b""),
        (b"POST /t HTTP/1.0\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", b"/t"),
    ]:
        client = await connect()
        await client.send(data)
        response = await client.response(data[:4])
        assert (response.status, response.body) == (200, body)
        await client.assert_closed()
    assert [bytes(request.body) for request in replica.requests] == [b"", b"hello"]


@pytest.mark.parametrize("mode", ["whole", "split"])
async def test_pipelining_fifty(mode, connect, replica):
    # RFC 9112 §9.3.2: in the order of the requests.
    async def script(connection, request):
        if request.target.endswith(b"0"):
            await asyncio.sleep(0.005)  # the slow ones must not be overtaken
        await echo(connection, request)

    replica.script = script
    client = await connect()
    kinds = [
        b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        b"PUT /%d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HEAD /%d HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n",
    ]
    await client.send(b"".join(kinds[i % 5] % i for i in range(50)), mode)
    for i in range(50):
        response = await client.response(kinds[i % 5].partition(b" ")[0])
        assert response.complete
        assert response.body == (b"" if i % 5 == 3 else b"/%d" % i)
    assert (await client.get(b"/next")).body == b"/next"


async def test_pipelining_ends_at_close(connect, replica):
    # RFC 9112 §9.6: what comes behind `close` is not served.
    client = await connect()
    await client.send(
        b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
    )
    assert (await client.response()).body == b"/a"
    assert (await client.response()).body == b"/b"
    await client.assert_closed()
    assert [request.target for request in replica.requests] == [b"/a", b"/b"]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("size", [2, 3_000_000])
async def test_half_close_behind_a_last_request(version, size, connect, replica):
    # RFC 9112 §9.6: the client has said that it sends no more, and still reads.
    go = asyncio.Event()

    async def script(connection, request):
        await connection.body_of(request)
        await go.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"z" * size)

    replica.script = script
    client = await connect()
    await client.send(b"POST /t HTTP/" + version + b"\r\nHost: h\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")
    client.finish()
    await until(lambda: bool(replica.requests), "the request arrives")
    asyncio.get_running_loop().call_later(0.05, go.set)  # the FIN is seen well before the answer
    response = await client.response()
    assert response.complete
    assert response.body == b"z" * size
    assert await client.assert_closed() == "eof"


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("when", ["before-head", "in-body", "in-upload", "in-upload-chunked"])
async def test_a_client_that_goes_away_frees_the_replica(when, how, connect, replica):
    async def script(connection, request):
        if when == "in-body":
            await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        await connection.ending(None)

    replica.script = script
    client = await connect()
    await client.send({
        "in-upload": b"POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nx",
        "in-upload-chunked": b"POST /t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
    }.get(when, b"GET /t HTTP/1.1\r\nHost: h\r\n\r\n"))  # fmt: skip
    if when == "in-body":
        assert (await client.head()).status == 200
        await until(lambda: b"a" in client.unread, "the first piece")
    await until(lambda: bool(replica.seen), "the request arrives")
    link = replica.seen[0][0]
    began = time.monotonic()
    if how == "rst":
        client.abort()
    else:
        client.close()
    await link.ending()
    assert link.ended_at - began < GONE_S
    assert not replica.requests[0].complete or when in {"before-head", "in-body"}


async def test_every_byte_of_an_upload_goes_on_at_once(connect, replica):
    # RFC 9112 §7.1: no waiting for a whole body or buffer.
    client = await connect()
    await client.send(b"POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n")
    for size in range(1, 21):
        await client.send(b"x")
        await until(lambda size=size: bool(replica.seen) and len(replica.requests[0].body) == size, f"byte {size}")
    assert (await client.response()).body == b"/t"


async def test_every_chunk_of_a_response_goes_on_at_once(connect, replica):
    step = asyncio.Event()

    async def script(connection, request):
        await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for i in range(20):
            await connection.send(b"1\r\n%c\r\n" % (97 + i))
            await step.wait()
            step.clear()
        await connection.send(b"0\r\n\r\n")

    replica.script = script
    client = await connect()
    await client.send(b"GET /t HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await client.head()).status == 200
    for i in range(20):
        await until(lambda i=i: b"\r\n%c\r\n" % (97 + i) in client.unread, f"piece {i}")
        step.set()
    await until(lambda: client.unread.endswith(b"0\r\n\r\n"), "the last chunk")


async def stalled(progress) -> None:
    """Until a count has stood still for 0.4 s, having moved before."""
    last, since = -1, time.monotonic()
    deadline = since + 30
    while time.monotonic() - since < 0.4 or last <= 0:
        assert time.monotonic() < deadline
        if progress() != last:
            last, since = progress(), time.monotonic()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("coding", ["length", "chunked", "close"])
async def test_a_slow_reader_does_not_fill_the_router(coding, connect, replica, router):
    sent = 0
    piece = b"z" * 65536
    head, before, after, last = {
        "length": (b"content-length: %d\r\n" % BIG, b"", b"", b""),
        "chunked": (b"transfer-encoding: chunked\r\n", b"10000\r\n", b"\r\n", b"0\r\n\r\n"),
        "close": (b"", b"", b"", b""),
    }[coding]

    async def script(connection, request):
        nonlocal sent
        await connection.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
        for _ in range(BIG // len(piece)):
            await connection.send(before + piece + after)
            sent += len(piece)
        await connection.send(last)
        if coding == "close":
            connection.finish()

    replica.script = script
    client = await connect(receive_buffer=65536)
    client.flowing.clear()
    base = router.memory_bytes()
    await client.send(b"GET /t HTTP/1.1\r\nHost: h\r\n\r\n")
    await stalled(lambda: sent)
    assert sent < BIG, "the replica feels that the client does not read"
    assert router.memory_bytes() - base < GROWTH_BYTES
    client.flowing.set()
    response = await client.response(timeout_s=30)
    assert response.complete
    assert len(response.body) == BIG
    assert response.body.count(b"z") == BIG


async def test_a_replica_that_reads_slowly_does_not_fill_the_router(connect, replica, router):
    async def script(connection, request):
        connection.flowing.clear()
        await go.wait()
        connection.flowing.set()
        await connection.body_of(request, 30)
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    go = asyncio.Event()
    replica.script = script
    client = await connect()
    base = router.memory_bytes()
    await client.send(b"POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % BIG)
    sent = 0

    async def upload():
        nonlocal sent
        for _ in range(BIG // 65536):
            await client.send(b"y" * 65536)
            sent += 65536

    writing = asyncio.ensure_future(upload())
    await stalled(lambda: sent)
    assert sent < BIG
    assert router.memory_bytes() - base < GROWTH_BYTES
    go.set()
    assert (await client.response(timeout_s=30)).status == 200
    await writing
    assert len(replica.requests[0].body) == BIG


async def test_many_slow_readers_do_not_fill_the_router(connect, replica, router):
    replica.script = answer(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (16 << 20) + b"z" * (16 << 20))
    clients = [await connect(receive_buffer=65536) for _ in range(10)]
    base = router.memory_bytes()
    for client in clients:
        client.flowing.clear()
        await client.send(b"GET /t HTTP/1.1\r\nHost: h\r\n\r\n")
    await stalled(lambda: len(replica.seen))
    assert len(replica.seen) == 10
    assert router.memory_bytes() - base < 10 * (4 << 20), "4 MiB for each at most"
    assert (await (await connect()).get(b"/barrier")).body == b"/barrier", "others are served meanwhile"


async def test_a_flood_of_pipelined_requests_does_not_fill_the_router(connect, replica, router):
    go = asyncio.Event()

    async def script(connection, request):
        await go.wait()
        await echo(connection, request)

    replica.script = script
    client = await connect()
    base, sent = router.memory_bytes(), 0
    batch = b"GET /%07d HTTP/1.1\r\nHost: h\r\nX-A: b\r\n\r\n"

    async def flood():
        nonlocal sent
        while await client.send(b"".join(batch % i for i in range(sent, sent + 1000))):
            sent += 1000

    flooding = asyncio.ensure_future(flood())
    await stalled(lambda: sent)
    assert router.memory_bytes() - base < GROWTH_BYTES
    go.set()
    for i in range(200):
        assert (await client.response()).body == b"/%07d" % i
    flooding.cancel()


async def test_a_request_that_was_given_up_does_not_eat_the_next(connect, replica):
    # A replica that waits for the rest of a body would take another client's request for it.
    for _ in range(20):
        client = await connect()
        await client.send(b"POST /cut HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\npart")
        await until(lambda: any(r.target == b"/cut" and r.body == b"part" for r in replica.requests), "the part arrives")
        client.close()
        assert (await (await connect()).get(b"/next")).body == b"/next"
        assert all(bytes(r.body) in {b"", b"part"} for r in replica.requests)
        replica.seen.clear()
