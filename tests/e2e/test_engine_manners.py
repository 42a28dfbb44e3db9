"""SGLang's bad manners, turned into good ones where the endpoint asks for it."""

import asyncio
import json

import httpx
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")

FULL = b'data: {"error": {"object":"error","message":"The request queue is full.","code":503}}\n\ndata: [DONE]\n\n'
FINE = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\ndata: [DONE]\n\n'
BAD = b'data: {"error":{"message":"too long","code":400}}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


async def read_request(reader):
    """Head as text, and the body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = [int(line.split(":")[1]) for line in head.lower().splitlines() if line.startswith("content-length:")]
    return head, await reader.readexactly(length[0]) if length else b""


def chunked(*pieces):
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def answering(*pieces):
    async def serve(reader, writer):
        while True:
            await read_request(reader)
            writer.write(HEAD)
            for piece in pieces:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")

    return serve


async def post(client, router):
    return await client.post(f"{router.url}/v1/chat/completions", json={"stream": True})


@pytest.mark.parametrize("pieces", [(FULL,), tuple(bytes([byte]) for byte in FULL)], ids=["at once", "byte by byte"])
async def test_a_stream_refused_in_its_first_event_is_a_503(start_router, start_server, client, pieces):
    router = await start_router("--engine", "sglang", replicas=[await start_server(answering(*pieces))])
    for _ in range(3):
        answer = await post(client, router)
        assert answer.status_code == 503
        assert answer.headers["x-router-error"] == "at_capacity"
        assert "retry-after" in answer.headers
        assert b"queue is full" not in answer.content
    (row,) = await router.rows()
    assert row["backpressured"] == 3 and row["failures"] == 0
    await router.settled()


@pytest.mark.parametrize("body", [FINE, BAD, b": ping\n\n" + FULL, b""], ids=["fine", "400", "a comment first", "empty"])
async def test_other_streams_pass_as_they_are(start_router, start_server, client, body):
    pieces = (body,) if body else ()
    router = await start_router("--engine", "sglang", replicas=[await start_server(answering(*pieces))])
    answer = await post(client, router)
    assert (answer.status_code, answer.content) == (200, body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    await router.settled()


async def test_it_is_left_alone_where_nobody_asks(start_router, start_server, client):
    router = await start_router(replicas=[await start_server(answering(FULL))])
    assert (await post(client, router)).content == FULL


async def test_one_that_ends_before_its_first_event_is_a_502(start_router, start_server, client):
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(HEAD + b"20\r\ndata: {")
        await writer.drain()
        writer.transport.abort()

    router = await start_router("--engine", "sglang", replicas=[await start_server(serve)])
    answer = await post(client, router)
    assert answer.status_code == 502


async def test_an_engine_is_told_to_stop_when_the_client_of_a_whole_answer_has_gone(start_router, start_server):
    asked = asyncio.Event()
    aborted = asyncio.get_running_loop().create_future()
    rids = []

    async def serve(reader, writer):
        head, body = await read_request(reader)
        if head.startswith("POST /abort_request "):
            aborted.set_result(json.loads(body)["rid"])
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return
        rids.extend(line.split(": ")[1] for line in head.splitlines() if line.lower().startswith("x-override-rid"))
        asked.set()
        await reader.read()  # generates until it is told

    router = await start_router("--engine", "sglang", replicas=[await start_server(serve)])
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        request = asyncio.ensure_future(client.post(f"{router.url}/v1/completions", json={"prompt": "x"}))
        await asyncio.wait_for(asked.wait(), 5)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    assert await asyncio.wait_for(aborted, 5) == rids[0]
    await router.settled()
