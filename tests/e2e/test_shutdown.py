"""How the daemon ends: SIGTERM drains, SIGINT does not wait, the exit code tells whether anything was cut."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time

import httpx
import psutil
import pytest
import websockets
from websockets.asyncio.client import connect

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUICK_S = 5.0  # "at once", on a machine under load


def chat(max_tokens):
    return {
        "model": "sim",
        "stream": True,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "x"}],
    }


class Stream:
    """A chat stream that is read in the background; `began` once its first bytes are there."""

    def __init__(self, url, max_tokens, fault=""):
        self.began = asyncio.Event()
        self.text = b""
        self.was_cut = False
        self.task = asyncio.ensure_future(self._read(url, max_tokens, fault))

    async def _read(self, url, max_tokens, fault):
        headers = {"x-sim-fault": fault} if fault else {}
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            try:
                async with http.stream(
                    "POST", f"{url}/v1/chat/completions", json=chat(max_tokens), headers=headers
                ) as response:
                    self.status = response.status_code
                    async for piece in response.aiter_raw():
                        self.text += piece
                        self.began.set()
            except (httpx.RemoteProtocolError, httpx.ReadError):
                self.was_cut = True


async def test_drain_finishes_what_is_under_way(start_router, engine, client, until):
    router = await start_router("--drain-settle-s", 2, "--drain-deadline-s", 30, replicas=[engine.url], workers=2)
    streams = [Stream(router.url, 400) for _ in range(4)]  # 2.7 s each
    for stream in streams:
        await stream.began.wait()
    async with httpx.AsyncClient(trust_env=False, timeout=20) as kept:
        assert (await kept.get(f"{router.url}/_sim/echo")).status_code == 200
        router.send_signal(signal.SIGTERM)

        async def not_ready():
            return (await router.ask("/readyz")).status_code == 503

        await until(not_ready)
        assert "draining" in (await router.ask("/readyz?verbose")).text
        assert (await router.ask("/livez")).status_code == 200
        # While load balancers learn of it, it serves as before.
        assert (await kept.get(f"{router.url}/_sim/echo")).status_code == 200
        await asyncio.gather(*(stream.task for stream in streams))
    for stream in streams:
        assert not stream.was_cut and stream.text.endswith(b"data: [DONE]\n\n")
    assert await router.wait() == 0
    assert sum(record["status"] == 200 for record in router.records()) == 6
    with pytest.raises(httpx.ConnectError):
        await client.get(router.url)


@pytest.mark.slow
async def test_sigterm_to_every_process_drains_all_the_same(start_router, engine):
    """As `systemctl stop` does it: the workers leave it to the supervisor."""
    router = await start_router("--drain-settle-s", 0, "--drain-deadline-s", 30, replicas=[engine.url], workers=2)
    stream = Stream(router.url, 200)
    await stream.began.wait()
    for worker in await router.workers():
        os.kill(worker["pid"], signal.SIGTERM)
    router.send_signal(signal.SIGTERM)
    await stream.task
    assert not stream.was_cut and stream.text.endswith(b"data: [DONE]\n\n")
    assert await router.wait() == 0


async def test_a_worker_that_dies_in_the_drain_counts_as_cut(start_router, engine):
    router = await start_router("--drain-settle-s", 0, "--drain-deadline-s", 20, replicas=[engine.url])
    stream = Stream(router.url, 600)
    await stream.began.wait()
    pid = await router.worker_pid()
    router.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    assert await router.wait() == 4
    await stream.task
    assert stream.was_cut


@pytest.mark.slow
async def test_new_connections_are_refused_after_the_settling(start_router, engine, until):
    router = await start_router("--drain-settle-s", 0, "--drain-deadline-s", 30, replicas=[engine.url])
    stream = Stream(router.url, 400)
    await stream.began.wait()
    router.send_signal(signal.SIGTERM)

    async def refused():
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", router.port)
        except OSError:
            return True
        writer.close()
        return False

    await until(refused)
    assert not stream.task.done()  # and so it was not the daemon's end
    await stream.task
    assert stream.text.endswith(b"data: [DONE]\n\n")
    assert await router.wait() == 0


async def test_an_idle_daemon_drains_at_once(start_router, engine, client):
    router = await start_router("--drain-settle-s", 0, replicas=[engine.url], workers=2)
    async with httpx.AsyncClient(trust_env=False) as kept:
        await kept.get(f"{router.url}/_sim/echo")  # leaves an idle connection open
        began_s = time.monotonic()
        router.send_signal(signal.SIGTERM)
        assert await router.wait() == 0
        assert time.monotonic() - began_s < QUICK_S


async def test_the_deadline_cuts_what_is_stuck(start_router, engine, policy, until):
    toml = (
        f'[[endpoint]]\nname = "chat"\nreplica = [{{ address = "{engine.url}" }}]\n'
        f'[[endpoint]]\nname = "robot"\nhosts = ["robot.test"]\n'
        f'replica = [{{ address = "{policy.url.replace("ws", "http", 1)}" }}]\n'
    )
    router = await start_router("--drain-settle-s", 0, "--drain-deadline-s", 0.5, toml=toml)
    stream = Stream(router.url, 30, "stall;after=2")
    await stream.began.wait()
    async with connect(
        "ws://robot.test/echo", host="127.0.0.1", port=router.port, compression=None, proxy=None, close_timeout=3
    ) as robot:
        await robot.send("hello")
        assert await robot.recv() == "hello"
        router.send_signal(signal.SIGTERM)
        with pytest.raises(websockets.ConnectionClosed):
            await robot.recv()
        assert robot.close_code == 1012
    await stream.task
    assert stream.was_cut and b"[DONE]" not in stream.text
    assert b"event: error" in stream.text and b'"draining"' in stream.text
    assert await router.wait() == 4
    records = {record["path"]: record for record in router.records()}
    assert records["/v1/chat/completions"]["code"] == "draining"
    assert records["/v1/chat/completions"]["flags"] == "LR"
    assert "/echo" in records


async def test_websockets_live_on_until_the_deadline(start_router, policy):
    """A robot that says goodbye in time is not cut, and the daemon goes with it."""
    router = await start_router("--drain-settle-s", 0, "--drain-deadline-s", 30, replicas=[policy.url])
    async with connect(f"ws://127.0.0.1:{router.port}/echo", compression=None, proxy=None) as robot:
        await robot.send("before")
        assert await robot.recv() == "before"
        router.send_signal(signal.SIGTERM)
        for i in range(50):
            await robot.send(f"{i}")
            assert await robot.recv() == f"{i}"
        assert router.process.poll() is None
    assert await router.wait() == 0


@pytest.mark.slow
async def test_a_kept_connection_is_told_to_close(start_router, start_engine):
    """A response that is under way when the drain begins says `Connection: close`."""
    engine = await start_engine()
    router = await start_router("--drain-settle-s", 0, "--drain-deadline-s", 30, replicas=[engine.url])
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"GET /_sim/echo HTTP/1.1\r\nhost: h\r\nx-sim-fault: slow;ms=1500\r\n\r\n")
    while (await router.rows())[0]["in_flight"] != 1:  # bounded by the test's own timeout
        pass
    router.send_signal(signal.SIGTERM)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200") and b"connection: close" in head
    await reader.read()  # ends
    writer.close()
    assert await router.wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_sigint_does_not_wait(start_router, engine, workers):
    router = await start_router("--drain-settle-s", 30, replicas=[engine.url], workers=workers)
    stream = Stream(router.url, 30, "stall;after=2")
    await stream.began.wait()
    children = psutil.Process(router.pid).children(recursive=True)
    assert len(children) == workers
    began_s = time.monotonic()
    router.send_signal(signal.SIGINT)
    assert await router.wait() == 130
    assert time.monotonic() - began_s < QUICK_S
    await stream.task
    assert stream.was_cut and b"[DONE]" not in stream.text
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


async def test_a_second_sigterm_does_not_wait(start_router, engine, until):
    router = await start_router("--drain-settle-s", 0, "--drain-deadline-s", 300, replicas=[engine.url])
    stream = Stream(router.url, 30, "stall;after=2")
    await stream.began.wait()
    router.send_signal(signal.SIGTERM)

    async def is_draining():
        return (await router.ask("/server_info")).json()["draining"]

    await until(is_draining)
    began_s = time.monotonic()
    router.send_signal(signal.SIGTERM)
    assert await router.wait() == 4
    assert time.monotonic() - began_s < QUICK_S
    await stream.task
    assert stream.was_cut


async def test_sigint_ends_a_drain(start_router, engine, until):
    router = await start_router("--drain-settle-s", 300, replicas=[engine.url])
    router.send_signal(signal.SIGTERM)

    async def is_draining():
        return (await router.ask("/server_info")).json()["draining"]

    await until(is_draining)
    router.send_signal(signal.SIGINT)
    assert await router.wait() == 130


async def test_drain_by_the_admin_listener(start_router, engine):
    router = await start_router("--drain-settle-s", 0, replicas=[engine.url])
    stream = Stream(router.url, 100)
    await stream.began.wait()
    assert (await router.ask("/drain_listeners", "POST")).status_code == 202
    await stream.task
    assert stream.text.endswith(b"data: [DONE]\n\n")
    assert await router.wait() == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
async def test_a_drain_lets_slow_readers_have_what_was_sent(start_router, start_server, version):
    """The end of an answer is in the kernel's buffer long before its client has read it."""
    size = 3_000_000

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        await writer.drain()

    router = await start_router(
        "--health", "none", "--drain-settle-s", 0, "--drain-deadline-s", 30, replicas=[await start_server(serve)]
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        relay = await start_slow_relay(listening, router.port, 700_000)
        curl = await asyncio.create_subprocess_exec(
            "curl", "-s", version, "-o", "/dev/null", "-w", "%{size_download} %{http_code}", "--max-time", "30",
            f"http://127.0.0.1:{listening.getsockname()[1]}/", stdout=subprocess.PIPE,
        )  # fmt: skip
        await asyncio.sleep(0.5)
        router.send_signal(signal.SIGTERM)
        out, _ = await curl.communicate()
        relay.cancel()
    assert (out.decode(), curl.returncode) == (f"{size} 200", 0)
    assert await router.wait() == 0


async def start_slow_relay(listening, port, bytes_per_s):
    """Hand one connection on to `port`; what comes back is read at so many bytes a second."""
    loop = asyncio.get_running_loop()
    listening.setblocking(False)

    async def relay():
        near, _ = await loop.sock_accept(listening)
        with near, socket.socket() as far:
            near.setblocking(False)
            far.setblocking(False)
            await loop.sock_connect(far, ("127.0.0.1", port))

            async def up():
                while data := await loop.sock_recv(near, 65_536):
                    await loop.sock_sendall(far, data)

            async with asyncio.TaskGroup() as group:
                uploading = group.create_task(up())
                while data := await loop.sock_recv(far, bytes_per_s // 20):
                    await loop.sock_sendall(near, data)
                    await asyncio.sleep(len(data) / bytes_per_s)
                near.shutdown(socket.SHUT_WR)
                uploading.cancel()

    return asyncio.create_task(relay())
