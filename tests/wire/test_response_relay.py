"""Good responses in unusual order: interim ones, early ones, trailers, ends (RFC 9110 §6.5, §10.1.1, §15.2)."""

from __future__ import annotations

import asyncio

import pytest
from wirekit import answer, echo, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n"
UPLOAD = b"POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"


@pytest.mark.parametrize("mode", ["whole", "bytes", "split"])
@pytest.mark.parametrize(
    ("interim", "statuses"),
    [(HINTS, [103]), (HINTS * 3, [103] * 3), (b"HTTP/1.1 102 X\r\n\r\n" + HINTS, [102, 103]), (b"HTTP/1.1 150 X\r\n\r\n", [150])],
)
async def test_interim_responses_are_passed_on(interim, statuses, mode, connect, replica):
    # RFC 9110 §15.2: a proxy MUST forward 1xx responses.
    replica.script = answer(interim + OK, mode=mode)
    client = await connect()
    response = await client.get()
    assert [message.status for message in response.interim] == statuses
    assert all(message.get(b"link") == b"</a>; rel=preload" for message in response.interim if message.status == 103)
    assert response.body == b"ok"
    assert response.get(b"link") is None
    replica.script = echo
    assert (await client.get(b"/next")).body == b"/next"


@pytest.mark.parametrize("interim", [CONTINUE, HINTS, HINTS * 3 + CONTINUE])
async def test_interim_responses_never_reach_http_1_0(interim, connect, replica):
    # RFC 9110 §15.2: a server MUST NOT send 1xx to an HTTP/1.0 client.
    replica.script = answer(interim + OK)
    client = await connect()
    await client.send(b"GET /t HTTP/1.0\r\nHost: h\r\n\r\n")
    response = await client.response()
    assert response.interim == []
    assert response.body == b"ok"
    await client.assert_closed()


async def test_interim_comes_before_the_final_response_does(connect, replica):
    go = asyncio.Event()

    async def script(connection, request):
        await connection.send(HINTS)
        await go.wait()
        await connection.send(OK)

    replica.script = script
    client = await connect()
    await client.send(b"GET /t HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await client.head()).status == 103
    go.set()
    assert (await client.response()).body == b"ok"


async def test_interim_flood_is_bounded_or_passed_on(connect, replica):
    replica.script = answer(HINTS * 20_000 + OK)
    client = await connect()
    await client.send(b"GET /t HTTP/1.1\r\nHost: h\r\n\r\n")
    response = await client.response()
    assert response.status in {200, 502}
    assert response.complete
    replica.script = echo
    assert (await (await connect()).get(b"/next")).body == b"/next"


async def test_expect_continue_is_asked_and_answered_by_the_replica(connect, replica):
    # RFC 9110 §10.1.1: a proxy passes Expect on; the client holds its body back until the 100.
    asked = asyncio.Event()

    async def script(connection, request):
        assert request.get(b"expect").lower() == b"100-continue"
        assert not connection.unread
        asked.set()
        await connection.send(CONTINUE)
        await connection.body_of(request)
        await connection.send(OK)

    replica.script = script
    client = await connect()
    await client.send(UPLOAD)
    first = await client.head()
    assert first.status == 100
    assert asked.is_set(), "the 100 is the replica's"
    await client.send(b"hello")
    assert (await client.response()).body == b"ok"
    assert replica.requests[0].body == b"hello"
    replica.script = echo
    assert (await client.get(b"/next")).body == b"/next"


async def test_expect_and_a_body_at_once(connect, replica):
    # RFC 9110 §10.1.1: a client need not wait.
    replica.script = answer(OK)
    client = await connect()
    await client.send(UPLOAD + b"hello")
    assert (await client.response()).body == b"ok"
    assert replica.requests[0].body == b"hello"
    replica.script = echo
    assert (await client.get(b"/next")).body == b"/next"


async def test_expect_and_a_final_answer(connect, replica):
    # RFC 9110 §10.1.1: 417 instead of 100. What comes next on this connection is either the body or a request,
    # so the router closes it, or takes exactly the body first.
    replica.script = answer(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n", early=True)
    client = await connect()
    await client.send(UPLOAD)
    response = await client.response()
    assert response.status == 417
    assert response.complete
    replica.script = echo
    await client.send(b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
    client.finish()
    second = await client.response()
    assert second is None or second.status == 400
    assert all(b"smuggled" not in request.target for request in replica.requests)


async def test_expect_of_http_1_0_is_ignored(connect, replica):
    # RFC 9110 §10.1.1: a server that gets 100-continue in HTTP/1.0 MUST ignore it.
    replica.script = answer(CONTINUE + OK)
    client = await connect()
    await client.send(UPLOAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"hello")
    response = await client.response()
    assert response.interim == []
    assert response.body == b"ok"


@pytest.mark.parametrize("coding", ["length", "chunked"])
async def test_early_final_response_during_the_upload(coding, connect, replica):
    # RFC 9112 §9.5, RFC 9110 §15.5.14: the answer arrives, whole; the connection ends; nothing is reused.
    replica.script = answer(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig", early=True)
    client = await connect()
    head, piece = {
        "length": (b"Content-Length: 1000000", b"x" * 1000),
        "chunked": (b"Transfer-Encoding: chunked", b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
    }[coding]
    await client.send(b"POST /up HTTP/1.1\r\nHost: h\r\n" + head + b"\r\n\r\n" + piece)
    response = await client.response()
    assert (response.status, response.complete, response.body) == (413, True, b"big")
    client.finish()
    await client.assert_closed()
    link = replica.seen[0][0]
    await until(lambda: link.ended is not None, "the replica's connection ends")
    replica.script = echo
    other = await connect()
    assert (await other.get(b"/next")).body == b"/next"
    assert replica.seen[1][0] is not link


async def test_early_final_response_and_a_client_that_goes_on_uploading(connect, replica):
    # RFC 9112 §9.5, §9.6: the answer arrives; then the rest is read to its end, or the connection ends.
    replica.script = answer(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig", early=True)
    client = await connect()
    await client.send(b"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 4000000\r\n\r\n")
    upload = asyncio.ensure_future(client.send(b"x" * 4_000_000))
    response = await client.response()
    assert (response.status, response.complete, response.body) == (413, True, b"big")
    await asyncio.wait([upload], timeout=10)
    assert upload.done(), "the upload hangs"
    replica.script = echo
    if client.ended is None and await client.send(b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n"):
        second = await client.response()
        assert second is None or second.body == b"/next"


async def test_early_final_response_of_a_replica_that_reads_no_more(connect, replica):
    # RFC 9110 §15.5.14: the connection may be closed to stop the client. Here it has to be, or the upload hangs.
    async def script(connection, request):
        connection.flowing.clear()
        await connection.send(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig")

    replica.script = script
    client = await connect()
    await client.send(b"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n")
    upload = asyncio.ensure_future(client.send(b"x" * 100_000_000))
    try:
        response = await client.response()
        assert (response.status, response.complete, response.body) == (413, True, b"big")
        await client.ending()
    finally:
        upload.cancel()


async def test_answer_before_the_end_of_the_upload_with_the_body_read_to_its_end(connect, replica):
    # A bidirectional exchange: the response starts first and both bodies run to their ends.
    async def script(connection, request):
        await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await connection.body_of(request)
        await connection.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(request.body), bytes(request.body)))

    replica.script = script
    client = await connect()
    await client.send(b"POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n")
    head = await client.head()
    assert head.status == 200
    head.framing = b"chunked"
    await client.send(b"hello")
    await client.body_of(head)
    assert (bytes(head.body), head.complete) == (b"hello", True)


TRAILED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n2\r\nok\r\n0\r\n%s\r\n"


@pytest.mark.parametrize("mode", ["whole", "bytes", "split"])
@pytest.mark.parametrize(("fields", "passed"), [(b"TE: trailers\r\nConnection: TE\r\n", True), (b"", False), (b"TE: gzip\r\nConnection: TE\r\n", False)])
async def test_trailers_go_to_who_asked(fields, passed, mode, connect, replica):
    # RFC 9110 §6.5.1: an intermediary MAY drop trailers where the client has not said TE: trailers.
    replica.script = answer(TRAILED % b"X-T: u\r\nX-U: v\r\n", mode=mode)
    client = await connect()
    response = await client.get(fields=fields)
    assert response.body == b"ok"
    assert [(name.lower(), value) for name, value in response.trailers if name.lower() in {b"x-t", b"x-u"}] == (
        [(b"x-t", b"u"), (b"x-u", b"v")] if passed else []
    )
    assert response.get(b"x-t") is None
    replica.script = echo
    assert (await client.get(b"/next")).body == b"/next"


async def test_forbidden_trailers_are_not_passed_on(connect, replica):
    # RFC 9110 §6.5.1: no framing and no routing in trailers.
    replica.script = answer(TRAILED % b"Content-Length: 9\r\nTransfer-Encoding: x\r\nX-T: u\r\n")
    client = await connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
    response = await client.response()
    assert not response.complete or not {b"content-length", b"transfer-encoding"} & {name.lower() for name, _ in response.trailers}


@pytest.mark.parametrize("mode", ["whole", "bytes", "split"])
@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-t: u\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
    ids=["close", "chunked", "trailers", "length"],
)
async def test_bodies_for_http_1_0(data, mode, connect, replica):
    # RFC 9112 §6.1: no transfer coding for an HTTP/1.0 client; the body ends with the connection, cleanly.
    replica.script = answer(data, "fin", mode)
    client = await connect()
    await client.send(b"GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n")
    response = await client.response()
    assert response.framing in {b"close", 2}
    assert (bytes(response.body), response.complete) == (b"ok", True)


async def test_close_delimited_body_is_chunked_for_http_1_1(connect, replica):
    # RFC 9112 §6.3: or the client could not tell its end from a cut, or use the connection again.
    replica.script = answer(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000, "fin")
    client = await connect()
    response = await client.get()
    assert response.framing == b"chunked"
    assert response.body == b"x" * 300_000
    replica.script = echo
    assert (await client.get(b"/next")).body == b"/next"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_cut_chunked_body_ends_uncleanly(version, end, connect, replica):
    # RFC 9112 §8. For HTTP/1.0 there is no framing left, so nothing but a reset tells a cut from an end.
    replica.script = answer(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", end)
    client = await connect()
    await client.send(b"GET / HTTP/" + version + b"\r\nHost: h\r\n\r\n")
    response = await client.response()
    assert not response.complete or (response.status == 502 and response.get(b"x-router-error"))


@pytest.mark.parametrize("junk", [b"EVIL", b"\0", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL", b"HTTP/1.1 408 X\r\ncontent-length: 0\r\n\r\n"])
async def test_bytes_on_an_idle_connection_are_nobodys_answer(junk, connect, replica):
    # RFC 9112 §9.2: unasked bytes mean that the connection is out of step; it is closed.
    client = await connect()
    await client.get(b"/first")
    link = replica.seen[0][0]
    await until(lambda: not link.busy, "the replica is idle")
    await link.send(junk)
    await link.ending()
    assert (await client.get(b"/next")).body == b"/next"
    assert replica.seen[1][0] is not link


async def test_a_big_body_in_many_pieces(connect, replica):
    pieces = [b"%x\r\n%s\r\n" % (size, b"y" * size) for size in [1, 2, 15, 16, 17, 255, 256, 4095, 4096, 4097, 65535, 65536, 65537, 200_000] * 4]
    replica.script = answer(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"".join(pieces) + b"0\r\n\r\n", mode="split")
    client = await connect()
    response = await client.get()
    assert response.body == b"y" * sum(int(piece.partition(b"\r\n")[0], 16) for piece in pieces)
    replica.script = echo
    assert (await client.get(b"/next")).body == b"/next"
