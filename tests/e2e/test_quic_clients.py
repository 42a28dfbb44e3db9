"""QUIC clients that nobody here wrote, against the daemon: curl over ngtcp2, and quic-portal over quinn."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import pytest_asyncio
import quic_portal
import websockets.asyncio.server
from curl_cffi import CurlHttpVersion, requests

from inference_backend.ports import free_port

sys.path.insert(0, str(Path(__file__).parent))

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(90)]


def flags(files, *more):
    pair = ("--tls-cert", files / "local.pem", "--tls-key", files / "local.key")
    return ("--listen-quic", "127.0.0.1:0", *pair, "--health", "none", *more)


def port_of(router):
    (url,) = [url for url in router.listen if url.startswith("quic://")]
    return int(url.rpartition(":")[2])


async def test_curl(start_router, engine, files):
    router = await start_router(*flags(files), replicas=[engine.url])
    base = f"https://localhost:{port_of(router)}"

    def ask():
        body = {"model": "sim", "max_tokens": 4, "messages": [{"role": "user", "content": "hello " * 20_000}]}
        with requests.Session(verify=str(files / "ca.pem"), http_version=CurlHttpVersion.V3ONLY) as session:
            small = [session.get(base + "/_sim/bytes?n=10") for _ in range(5)]
            large = session.post(base + "/v1/chat/completions", json=body)
            lost = session.get(base + "/nowhere")
        return small, large, lost

    small, large, lost = await asyncio.to_thread(ask)
    assert {(one.status_code, one.http_version) for one in small} == {(200, CurlHttpVersion.V3)}
    assert large.status_code == 200
    assert large.json()["choices"][0]["message"]["content"]
    assert lost.status_code == 404
    assert large.headers["x-router-replica"]


@pytest_asyncio.fixture(loop_scope="session")
async def policy():
    """A policy server in openpi's manner: it speaks first, then answers what it is sent."""

    async def serve(connection):
        await connection.send(b"metadata")
        async for message in connection:
            if message == b"fail":
                await connection.send("Traceback: no")
                await connection.close(1011, "failed")
                return
            await connection.send(message[:5_000])

    async with websockets.asyncio.server.serve(serve, "127.0.0.1", 0, max_size=None, compression=None) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_quic_portal(start_router, policy, files):
    router = await start_router(*flags(files, "--quic-portal", "policy.test"), replicas=[policy])
    port = port_of(router)

    def talk():
        portal = quic_portal.Portal()
        portal.connect("127.0.0.1", port, free_port())
        portal.send(b"first")
        answers = [portal.recv(timeout_ms=5_000), portal.recv(timeout_ms=5_000)]
        for size in (1, 200, 70_000, 600_000):
            portal.send(bytes(size))
            answers.append(portal.recv(timeout_ms=5_000))
        portal.send(b"fail")
        answers.append(portal.recv(timeout_ms=5_000))
        return answers

    answers = await asyncio.to_thread(talk)
    assert answers == [b"metadata", b"first", bytes(1), bytes(200), bytes(5_000), bytes(5_000), b"Traceback: no"]


async def test_quic_portal_is_refused_where_nobody_serves_it(start_router, policy, files):
    router = await start_router(*flags(files), replicas=[policy])
    port = port_of(router)

    def talk():
        portal = quic_portal.Portal()
        portal.connect("127.0.0.1", port, free_port())

    with pytest.raises(Exception, match=r".+"):
        await asyncio.to_thread(talk)
