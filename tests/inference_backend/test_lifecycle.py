"""From the ready line to the exit code."""

import asyncio
import json
import signal
from time import monotonic

import httpx
import pytest

from inference_backend.launch import ReplicaProcess
from inference_backend.lifecycle import FORCED_EXIT

LONG = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 300, "stream": True}


async def test_starting_is_503_and_serves_already(eventually):
    async with (
        ReplicaProcess.simulate(time_scale=0, startup_s=0.3) as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
    ):
        for path in ("/ready", "/health"):
            assert (await client.get(path)).status_code == 503
        assert (await client.post("/v1/chat/completions", json=LONG)).status_code == 200

        async def is_ready():
            return (await client.get("/ready")).status_code == 200

        await eventually(is_ready)


async def test_health_of_an_idle_engine_takes_its_time():
    async with (
        ReplicaProcess.simulate(time_scale=0.2, health_s=0.2) as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
    ):
        assert (await client.get("/health")).elapsed.total_seconds() >= 0.2
        assert (await client.get("/ready")).elapsed.total_seconds() < 0.1


async def test_sigterm_drains(eventually):
    """/ready turns 503, a new request is served, the stream in flight finishes, the process exits with 0."""
    async with (
        ReplicaProcess.simulate(profile="tiny", keep_alive_s=30) as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
    ):
        async with client.stream("POST", "/v1/chat/completions", json=LONG) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            replica.send_signal(signal.SIGTERM)

            async def is_draining():
                return (await client.get("/ready")).status_code == 503

            await eventually(is_draining)
            assert (await client.get("/health")).status_code == 503
            late = await client.post("/v1/chat/completions", json=LONG | {"stream": False, "max_tokens": 1})
            assert late.status_code == 200
            frames = [line async for line in lines if line]
        assert frames[-1] == "data: [DONE]" and len(frames) == 302
        assert await replica.wait() == 0


async def test_drain_is_bounded():
    async with (
        ReplicaProcess.simulate(profile="tiny", drain_s=0.2) as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
        client.stream("POST", "/v1/chat/completions", json=LONG | {"max_tokens": 5_000}) as stream,
    ):
        lines = stream.aiter_lines()
        await anext(lines)
        begin = monotonic()
        assert await replica.stop() == 0
        assert 0.2 <= monotonic() - begin < 3
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in lines:
                pass


async def test_a_second_sigterm_does_not_wait():
    async with (
        ReplicaProcess.simulate(profile="tiny") as replica,
        httpx.AsyncClient(base_url=replica.url) as client,
        client.stream("POST", "/v1/chat/completions", json=LONG | {"max_tokens": 5_000}) as stream,
    ):
        lines = stream.aiter_lines()
        await anext(lines)
        replica.send_signal(signal.SIGTERM)
        while (await client.get("/ready")).status_code != 503:
            pass
        replica.send_signal(signal.SIGTERM)
        assert await replica.wait() == FORCED_EXIT


async def test_an_idle_engine_lingers_as_long_as_asked():
    async with ReplicaProcess.simulate(time_scale=0, linger_s=0.3) as replica:
        begin = monotonic()
        assert await replica.stop() == 0
        assert 0.3 <= monotonic() - begin < 2


@pytest.mark.parametrize("keep_alive_s", [0.4, 0.8])
async def test_an_idle_connection_is_closed_on_time(keep_alive_s):
    async with ReplicaProcess.simulate(time_scale=0, keep_alive_s=keep_alive_s) as replica:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(replica.url).port)
        await asyncio.sleep(keep_alive_s / 2)  # idle before its first request is not counted
        writer.write(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        begin = monotonic()
        assert await reader.read() == b""
        assert keep_alive_s - 0.01 <= monotonic() - begin < keep_alive_s + 0.15
        writer.close()
        await writer.wait_closed()


async def test_the_ready_line_is_all_that_stdout_gets():
    process = await asyncio.create_subprocess_exec(
        *_command(), stdout=asyncio.subprocess.PIPE, env={"SIM_TIME_SCALE": "0", "SIM_MODEL": "from-env"}
    )
    line = await process.stdout.readline()
    ready = json.loads(line)
    assert ready["event"] == "ready" and ready["pid"] == process.pid
    async with httpx.AsyncClient(base_url=ready["url"]) as client:
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "from-env"
        await client.post("/v1/chat/completions", json=LONG)
        await client.post("/v1/chat/completions", content=b"{")
    process.send_signal(signal.SIGTERM)
    assert await process.stdout.read() == b""
    assert await process.wait() == 0


def _command():
    import sys

    return sys.executable, "-m", "inference_backend", "simulate"
