"""What may be sent twice: nothing that a replica may have begun (RFC 9110 §9.2.2, RFC 9112 §9.3.1, §9.5)."""

from __future__ import annotations

import socket

import pytest
from wirekit import Client, answer, echo, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REQUESTS = {
    "get": b"GET /t HTTP/1.1\r\nHost: h\r\n\r\n",
    "post": b"POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    "post-chunked": b"POST /t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
}


async def pooled(connect, replica):
    """A client, and the one connection to the replica that its next request may use."""
    client = await connect()
    await client.get(b"/first")
    used = replica.seen[0][0]
    for link in replica.connections:
        if link is not used and not link.ended:
            link.abort()
    await until(lambda: not used.busy, "idle")
    replica.seen.clear()
    return client, used


async def emptied(connect, replica):
    """A client in front of an empty pool."""
    client, used = await pooled(connect, replica)
    used.finish()
    await used.ending()
    return client


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_connection_that_ended_before_the_request(how, kind, connect, replica):
    client, used = await pooled(connect, replica)
    if how == "fin":
        used.finish()
        await used.ending()  # the router has seen it
    else:
        used.abort()
    await client.send(REQUESTS[kind])
    response = await client.response()
    if how == "fin" or kind == "get":
        assert response.status == 200
    assert response.status in {200, 502}  # RST may cross the request; a POST is then not to be repeated
    assert len(replica.seen) == (response.status == 200)


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_connection_that_ends_while_the_request_comes(kind, connect, replica):
    # The keep-alive race, as close as two calls in a row can make it: no request is lost or doubled.
    for _ in range(25):
        client, used = await pooled(connect, replica)
        used.close()
        client.sock.send(REQUESTS[kind])
        response = await client.response()
        assert response.complete
        if kind == "get":
            assert response.status == 200
        else:
            assert response.status in {200, 502}
        assert len(replica.seen) == (response.status == 200)
        client.close()
        replica.reset()


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "pooled"])
async def test_a_replica_that_reads_the_request_and_ends(fresh, how, kind, connect, replica):
    # It may have acted on it: 502, and never a second time.
    client = await emptied(connect, replica) if fresh else (await pooled(connect, replica))[0]
    replica.seen.clear()
    replica.script = answer(b"", how)
    await client.send(REQUESTS[kind])
    response = await client.response()
    replica.script = echo
    assert len(replica.seen) == 1, "sent twice"
    assert response.status == 502
    assert response.get(b"x-router-error")
    assert response.get(b"x-router-upstream-reached") in {b"yes", b"maybe"}


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "pooled"])
async def test_a_replica_that_ends_inside_the_upload(fresh, how, connect, replica):
    async def script(connection, request):
        await connection.wait(lambda: len(connection.unread) >= 5)
        if how == "rst":
            connection.abort()
        else:
            connection.close()

    client = await emptied(connect, replica) if fresh else (await pooled(connect, replica))[0]
    replica.seen.clear()
    replica.script = script
    await client.send(b"POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello")
    response = await client.response()
    assert response.status == 502
    assert len(replica.seen) == 1
    assert response.get(b"x-router-upstream-reached") in {b"yes", b"maybe"}


async def test_a_replica_that_ends_inside_the_head_it_reads(connect, replica):
    # Even a part of a request is a part that was accepted; a large head makes sure of more than one segment.
    client = await emptied(connect, replica)
    replica.seen.clear()
    replica.script = answer(b"", "rst", early=True)
    await client.send(b"POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 1000)
    response = await client.response()
    assert response.status == 502
    assert len(replica.seen) == 1


async def test_a_408_on_an_idle_connection_answers_nobody(connect, replica):
    # RFC 9110 §15.5.9: a server may send it before it closes an idle connection.
    client, used = await pooled(connect, replica)
    await used.send(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    used.finish()
    await used.ending()
    response = await client.get(b"/next")
    assert (response.status, response.body) == (200, b"/next")


@pytest.fixture
def closed_port():
    """A port that refuses, and that nobody else takes meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


async def test_a_refused_connection_is_503_and_says_that_nothing_was_reached(closed_port, start_router):
    router = start_router([f"http://127.0.0.1:{closed_port}"])
    for data in REQUESTS.values():
        client = await Client.connect(router.port)
        await client.send(data)
        response = await client.response()
        client.close()
        assert response.status == 503
        assert response.complete
        assert response.get(b"x-router-error")
        assert response.get(b"x-router-upstream-reached") == b"no"
    router.check()


async def test_a_refused_connection_moves_on_to_another_replica(closed_port, replica, start_router):
    router = start_router([f"http://127.0.0.1:{closed_port}", f"http://127.0.0.1:{replica.port}"])
    for i in range(20):
        client = await Client.connect(router.port)
        await client.send(b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" % i)
        response = await client.response()
        client.close()
        assert (response.status, bytes(response.body)) == (200, b"/%d" % i)
    assert [bytes(request.body) for request in replica.requests] == [b"hello"] * 20
    router.check()
