"""Heads that never come to their end (RFC 9110 §15.5.9), with a head timeout of one second."""

from __future__ import annotations

import asyncio
import time

import pytest

ROUTER_FLAGS = ("--head-timeout-s", "1")
pytestmark = pytest.mark.asyncio(loop_scope="session")


async def cut(client, began: float) -> None:
    response = await client.response()
    assert response is None or response.status == 408
    await client.assert_closed()
    taken = time.monotonic() - began
    assert 0.9 < taken < 5, f"cut after {taken:.1f} s"


async def test_heads_that_stop(connect, replica):
    async def stop(data):
        client = await connect()
        began = time.monotonic()
        await client.send(data)
        await cut(client, began)

    heads = [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r", b"\r"]
    await asyncio.gather(*map(stop, heads))
    assert not replica.seen


async def test_a_head_that_drips(connect, replica):
    # The clock runs from the first byte: another one every now and then does not wind it up again.
    client = await connect()
    began = time.monotonic()

    async def drip():
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n")
        while await client.send(b"X-A: b\r\n"):
            await asyncio.sleep(0.1)

    dripping = asyncio.ensure_future(drip())
    await cut(client, began)
    dripping.cancel()
    assert not replica.seen


async def test_a_second_head_that_stops(connect, replica):
    client = await connect()
    began = time.monotonic()
    await client.send(b"GET /t HTTP/1.1\r\nHost: h\r\n\r\nGET / HT")
    assert (await client.response()).body == b"/t"
    await cut(client, began)


async def test_other_pauses_are_no_slow_heads(connect, replica):
    # An idle connection, a body that takes its time, and a head timer that ran before.
    idle, uploading = await connect(), await connect()
    await idle.get(b"/first")
    await uploading.send(b"POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 16\r\n\r\n")
    for _ in range(16):
        await asyncio.sleep(0.1)  # together longer than the head timeout
        assert await uploading.send(b"x")
    assert (await uploading.response()).body == b"/t"
    assert (await idle.get(b"/second")).body == b"/second"
