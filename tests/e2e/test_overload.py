"""Too much to do: new requests are refused first, connections next, a loop that stands still is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
import time
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
import websockets
from certkit import Authority
from websockets.asyncio.client import connect

sys.path.insert(0, str(Path(__file__).parent))

import loadkit  # noqa: E402
from grpckit import aio_stubs  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="session")

GET = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"
MIB = 1 << 20


async def metric(router, line):
    """The value of one sample; 0 if it is not there."""
    for found in (await router.ask("/metrics")).text.splitlines():
        if found.startswith(line + " "):
            return float(found.rpartition(" ")[2])
    return 0.0


async def ask(port):
    """One request on a connection of its own; empty if there was no answer."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return b""
    try:
        writer.write(GET)
        return (await loadkit.read_answer(reader))[0]
    except (OSError, asyncio.IncompleteReadError):
        return b""
    finally:
        writer.close()


@asynccontextmanager
async def made_late(pid):
    """Stop the process most of the time, so that every timer of its loop comes late, whatever the machine."""
    is_over = False

    async def stop_and_go():
        while not is_over:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.06)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.02)

    task = asyncio.ensure_future(stop_and_go())
    try:
        yield
    finally:
        is_over = True
        await task


@pytest.mark.slow
async def test_a_loop_that_is_late_refuses_what_is_new_and_goes_on_with_the_rest(
    start_router, start_server, start_grpc, policy, until
):
    toml = (
        f'[[endpoint]]\nname = "http"\nhealth = {{ kind = "none" }}\n'
        f'replica = [{{ address = "{await start_server(loadkit.replica)}" }}]\n'
        f'[[endpoint]]\nname = "robot"\nhosts = ["robot.test"]\n'
        f'replica = [{{ address = "{policy.url.replace("ws", "http", 1)}" }}]\n'
        f'[[endpoint]]\nname = "grpc"\npath_prefixes = ["/kit.Kit"]\nreplica = [{{ address = "{(await start_grpc()).url}" }}]\n'
    )
    router = await start_router("--lag-limit-ms", 15, toml=toml)
    pid = await router.worker_pid()
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"GET /events HTTP/1.1\r\nhost: h\r\n\r\n")
    await reader.readuntil(b"data: 0")

    async def suffers():
        return "overloaded: lag " in (await router.ask("/readyz?verbose")).text

    async with made_late(pid):
        await until(suffers)

        async def refused():
            head = await ask(router.port)
            return head if head.startswith(b"http/1.1 503 ") else None

        head = await until(refused)
        assert b"x-router-error: overloaded" in head and b"retry-after: 1" in head
        assert b"x-router-upstream-reached: no" in head

        async def handshake_refused():
            try:
                async with connect("ws://robot.test/echo", host="127.0.0.1", port=router.port, proxy=None):
                    return False
            except websockets.InvalidStatus as failure:
                return failure.response.status_code == 503

        await until(handshake_refused)
        async with aio_stubs(router.port) as kit:

            async def call_refused():
                try:
                    await kit.unary(b"x", timeout=5)
                except grpc.RpcError as failure:
                    return failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                return False

            await until(call_refused)
        assert (await router.ask("/readyz")).status_code == 200
        assert (await reader.readuntil(b"0\r\n\r\n")).count(b"data: ") == loadkit.EVENTS - 1, "it goes on"
    writer.close()

    async def recovered():
        return not await suffers() and (await ask(router.port)).startswith(b"http/1.1 200 ")

    await until(recovered)
    assert await metric(router, 'router_shed_total{reason="lag"}') >= 3
    assert await metric(router, 'router_shed_total{reason="memory"}') == 0
    assert await metric(router, 'router_responses_total{endpoint="-",status="503"}') >= 2
    assert {record["flags"] for record in router.records() if record["status"] == 503} == {"OM"}


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_memory_short_sheds_first_and_comes_back(start_router, start_server, until):
    async def serve(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = 4 * MIB if head.startswith(b"GET /large") else 2
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
            await writer.drain()

    replicas = [await start_server(serve)]
    probe = await start_router("--health", "none", replicas=replicas)
    used = psutil.Process(await probe.worker_pid()).memory_info().rss // MIB
    limit = used + 20
    router = await start_router("--health", "none", "--memory-limit-mb", limit, replicas=replicas)
    kept_reader, kept_writer = await asyncio.open_connection("127.0.0.1", router.port)
    slow = []
    try:
        for _ in range(400):  # each leaves what its client does not read with the router, as much as it may
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port, limit=1024)
            writer.transport.pause_reading()
            writer.write(b"GET /large HTTP/1.1\r\nhost: h\r\n\r\n")
            slow.append(writer)

        async def shed():
            kept_writer.write(GET)
            head, _ = await loadkit.read_answer(kept_reader)
            return b"x-router-error: overloaded" in head

        await until(shed, 30)
        assert "overloaded: memory " in (await router.ask("/readyz?verbose")).text
        await until(lambda: metric(router, 'router_shed_total{reason="memory"}'))
    finally:
        for writer in slow:
            writer.transport.abort()

    async def back():
        kept_writer.write(GET)
        head, _ = await loadkit.read_answer(kept_reader)
        return head.startswith(b"http/1.1 200 ") and (await ask(router.port)).startswith(b"http/1.1 200 ")

    await until(back, 40)
    kept_writer.close()


async def test_without_memory_connections_are_refused_and_said(start_router, engine, until):
    router = await start_router("--memory-limit-mb", 5, replicas=[engine.url])

    async def refused():
        return await ask(router.port) == b"" and await metric(router, 'router_connections_refused_total{reason="memory"}')

    await until(refused)
    assert (await router.ask("/livez")).status_code == 200

    async def said():
        return "of 5 MiB, 100% of new requests refused" in (await router.ask("/readyz?verbose")).text

    await until(said)


async def test_connections_of_one_address(start_router, start_server, until):
    router = await start_router(
        "--health", "none", "--max-connections-per-address", 3, replicas=[await start_server(loadkit.replica)]
    )
    held = [await asyncio.open_connection("127.0.0.1", router.port) for _ in range(3)]
    for reader, writer in held:
        writer.write(GET)
        assert (await loadkit.read_answer(reader))[0].startswith(b"http/1.1 200 ")
    assert await ask(router.port) == b""
    assert await metric(router, 'router_connections_refused_total{reason="address"}') == 1
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port, local_addr=("127.0.0.2", 0))
    writer.write(GET)
    assert (await loadkit.read_answer(reader))[0].startswith(b"http/1.1 200 "), "another address has its own"
    writer.close()
    held.pop()[1].close()

    async def served():
        return (await ask(router.port)).startswith(b"http/1.1 200 ")

    await until(served)
    for _, writer in held:
        writer.close()


async def test_connections_of_one_address_behind_a_proxy_and_over_tls(start_router, start_server, tmp_path, until):
    authority = Authority()
    authority.sign("localhost", "127.0.0.1").write(tmp_path, "local")
    context = ssl.create_default_context(cadata=authority.cert.decode())
    router = await start_router(
        "--health", "none", "--max-connections-per-address", 1, "--proxy-protocol", "--listen-tls", "127.0.0.1:0",
        "--tls-cert", tmp_path / "local.pem", "--tls-key", tmp_path / "local.key",
        replicas=[await start_server(loadkit.replica)],
    )  # fmt: skip
    tls_port = httpx.URL(next(url for url in router.listen if url.startswith("https"))).port

    def come(client, port=router.port, tls=None):
        """Connect as a proxy for `client`, and ask; empty if there was no answer."""
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        try:
            sock.sendall(b"PROXY TCP6 %b ::1 5000 80\r\n" % client)
            if tls is not None:
                sock = stack.enter_context(tls.wrap_socket(sock, server_hostname="localhost"))
            sock.sendall(GET)
            return sock.recv(13)
        except OSError:  # of TLS, too
            return b""

    with ExitStack() as stack:
        assert await asyncio.to_thread(come, b"2001:db8::1", tls_port, context) == b"HTTP/1.1 200 "
        assert await asyncio.to_thread(come, b"2001:db8::2") == b"", "it is of the same /64"
        assert await asyncio.to_thread(come, b"2001:db8::3", tls_port, context) == b""
        assert await metric(router, "router_tls_handshakes_total") == 1, "refused before its handshake"
        assert await asyncio.to_thread(come, b"2001:db8:0:1::1") == b"HTTP/1.1 200 "
        assert await metric(router, 'router_connections_refused_total{reason="address"}') == 2


@pytest.mark.slow
async def test_a_worker_that_stands_still_is_replaced(start_router, start_server, until, gone):
    router = await start_router(
        "--health", "none", "--stuck-worker-s", 1.5, replicas=[await start_server(loadkit.replica)], workers=2
    )
    (victim, other) = [worker["pid"] for worker in await router.workers()]
    clients = [await asyncio.open_connection("127.0.0.1", router.port) for _ in range(24)]
    for reader, writer in clients:
        writer.write(GET)
        assert (await loadkit.read_answer(reader))[0].startswith(b"http/1.1 200 ")
    os.kill(victim, signal.SIGSTOP)
    began_s = time.monotonic()
    for _, writer in clients:
        writer.write(GET)

    async def outcome(reader):
        try:
            return (await loadkit.read_answer(reader))[0][:13]
        except (OSError, asyncio.IncompleteReadError):
            return "ended"

    async with asyncio.timeout(8):
        found = [await outcome(reader) for reader, _ in clients]
    assert set(found) == {b"http/1.1 200 ", "ended"}, "the other goes on; nobody hangs"
    for _, writer in clients:
        writer.close()

    async def replaced():
        now = await router.workers()
        return now if now[0]["state"] == "ready" and now[0]["pid"] != victim else None

    now = await until(replaced)
    assert time.monotonic() - began_s < 8 and gone(victim)
    assert (now[0]["stuck"], now[0]["restarts"], now[1]["pid"]) == (1, 1, other)
    assert await metric(router, 'router_worker_stuck_total{worker="0"}') == 1
    assert f"(process {victim}) said nothing for 1.5 s and is ended" in router.stderr()
    answers = [await ask(router.port) for _ in range(20)]
    assert all(answer.startswith(b"http/1.1 200 ") for answer in answers)


async def test_an_aborted_worker_says_where_it_was(start_router, engine, until):
    router = await start_router(replicas=[engine.url])
    pid = await router.worker_pid()
    os.kill(pid, signal.SIGABRT)

    async def replaced():
        (worker,) = await router.workers()
        return worker["state"] == "ready" and worker["pid"] != pid

    await until(replaced)
    assert "Fatal Python error: Aborted" in router.stderr() and "router/worker.py" in router.stderr()
