"""Replicas that die under load: what was on them fails, nothing else does."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest
import websockets
from websockets.asyncio.client import connect

pytestmark = pytest.mark.asyncio(loop_scope="session")

RATE = 300
SECONDS = 2.0


@dataclass
class Call:
    """One request of the generator; times are monotonic."""

    began_s: float
    ended_s: float = 0.0
    status: int = 0
    replica: str = ""
    retried: bool = False


class Generator:
    """Open loop at RATE for SECONDS, on kept connections; raw sockets, since httpx would take a core."""

    def __init__(self, port, head):
        self._port = port
        self._request = head
        self._idle = []
        self.calls = []

    async def run(self):
        begin_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for i in range(int(RATE * SECONDS)):
                await asyncio.sleep(max(0.0, begin_s + i / RATE - time.monotonic()))
                group.create_task(self._call())
        for _, writer in self._idle:
            writer.close()

    async def _call(self):
        call = Call(time.monotonic())
        self.calls.append(call)
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
        await reader.readexactly(int(fields["content-length"]))
        call.ended_s = time.monotonic()
        call.status = int(head[9:12])
        call.replica = fields.get("x-router-replica", "")
        if fields.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))


async def test_a_killed_replica_fails_only_what_was_on_it(start_router, start_engine, until):
    doomed, other = await start_engine(), await start_engine()
    router = await start_router(replicas=[doomed.url, other.url])
    load = Generator(
        router.port,
        b"POST /_sim/echo HTTP/1.1\r\nhost: h\r\nx-sim-fault: slow;ms=50\r\ncontent-length: 5\r\n\r\nhello",
    )
    running = asyncio.ensure_future(load.run())
    await until(lambda: sum(call.status == 200 for call in load.calls) > 200)
    killed_s = time.monotonic()
    await doomed.kill()
    dead_s = time.monotonic()
    await running
    failed = [call for call in load.calls if call.status != 200]
    in_flight = [call for call in load.calls if call.began_s <= dead_s and call.ended_s >= killed_s]
    # It may be that all of them were on the other one, but not that any of a later start failed.
    assert all(call.status == 502 for call in failed), {call.status for call in failed}
    assert all(call in in_flight for call in failed)
    assert len(failed) < len(in_flight)
    later = [call for call in load.calls if call.began_s > dead_s]
    assert len(later) > 50
    assert {call.replica for call in later} == {other.url.partition("://")[2]}
    await router.settled()
    row = await router.row(doomed.url)
    assert row["failures"] >= len(failed)
    records = await until(lambda: (found := router.records()) and len(found) == len(load.calls) and found)
    assert sum(record["status"] != 200 for record in records) == len(failed)
    assert all(record["reached"] == "maybe" for record in records if record["status"] == 502)


async def test_streams_on_the_killed_replica_say_so(start_router, start_engine, client):
    """Six streams on two replicas: three end with an error event, three to their end."""
    doomed, other = await start_engine(time_scale=1), await start_engine(time_scale=1)
    router = await start_router("--policy", "round_robin", replicas=[doomed.url, other.url])
    killed_id = doomed.url.partition("://")[2]
    began = asyncio.Semaphore(0)
    body = {"model": "sim", "stream": True, "max_tokens": 150, "messages": [{"role": "user", "content": "x"}]}

    async def stream():
        text, was_cut = b"", False
        async with client.stream("POST", f"{router.url}/v1/chat/completions", json=body) as response:
            try:
                async for piece in response.aiter_raw():
                    if not text:
                        began.release()
                    text += piece
            except Exception:
                was_cut = True
            return response.headers["x-router-replica"], text, was_cut

    streams = [asyncio.ensure_future(stream()) for _ in range(6)]
    for _ in streams:
        await began.acquire()
    await doomed.kill()
    on_doomed = 0
    for replica, text, was_cut in await asyncio.gather(*streams):
        if replica == killed_id:
            on_doomed += 1
            assert was_cut and b"event: error" in text and b"[DONE]" not in text
        else:
            assert not was_cut and text.endswith(b"data: [DONE]\n\n") and b"event: error" not in text
    assert on_doomed == 3
    await router.settled()


async def test_websockets_on_the_killed_replica_end(start_router, start_policy):
    doomed, other = await start_policy(), await start_policy()
    router = await start_router("--policy", "round_robin", replicas=[doomed.url, other.url])
    url = f"ws://127.0.0.1:{router.port}/echo"
    sockets = [await connect(url, compression=None, proxy=None, close_timeout=2) for _ in range(10)]
    doomed_id = doomed.url.partition("://")[2]
    dying = [socket for socket in sockets if socket.response.headers["x-router-replica"] == doomed_id]
    living = [socket for socket in sockets if socket not in dying]
    assert len(dying) == len(living) == 5
    for socket in sockets:
        await socket.send("before")
        assert await socket.recv() == "before"
    await doomed.kill()
    for socket in dying:
        with pytest.raises(websockets.ConnectionClosedError):
            await socket.recv()
        assert socket.close_code in (1006, 1011)
    for socket in living:
        await socket.send("after")
        assert await socket.recv() == "after"
    for _ in range(6):
        async with connect(url, compression=None, proxy=None) as socket:
            assert socket.response.headers["x-router-replica"] != doomed_id
            await socket.send("new")
            assert await socket.recv() == "new"
    for socket in living:
        await socket.close()
    await router.settled()


async def test_all_replicas_are_dead(start_router, start_engine, client):
    doomed = await start_engine()
    router = await start_router("--health-interval-s", 0.1, replicas=[doomed.url])
    assert (await client.get(f"{router.url}/_sim/echo")).status_code == 200
    await doomed.kill()
    response = await client.get(f"{router.url}/_sim/echo")
    assert response.status_code == 503
    assert response.headers["x-router-error"] in ("connect_failed", "no_replica")
    assert response.headers["x-router-upstream-reached"] == "no"
    assert int(response.headers["retry-after"]) >= 1
    await router.settled()
