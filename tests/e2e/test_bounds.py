"""What one client may cost: memory of slow readers and uploads, idle WebSockets, slow heads, connections."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from base64 import b64encode
from hashlib import sha1
from pathlib import Path
from statistics import median

import httpx
import psutil
import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 1 << 20
RSS_LIMIT = 64 * MIB
WEBSOCKET_BYTES = 12 * 1024
HANDSHAKE = (
    b"GET /echo HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-accept: %b\r\n\r\n"
)
KEY = re.compile(rb"sec-websocket-key: *([^\r]+)", re.IGNORECASE)


def accept_head(head):
    """The answer to a handshake (RFC 6455 §4.2.2)."""
    digest = sha1(KEY.search(head)[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return ACCEPTED % b64encode(digest)


def memory(pid, key="VmRSS"):
    """Resident bytes of a process now, or at its peak with `VmHWM`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(key)


@pytest_asyncio.fixture(loop_scope="session")
async def connection():
    """`await connection(port, receive_bytes)`: a socket that takes little unasked; closed with the test."""
    opened = []

    async def open_socket(port, receive_bytes=16_384):
        sock = socket.socket()
        opened.append(sock)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return sock

    yield open_socket
    for sock in opened:
        sock.close()


async def download(sock, size, pause_s):
    """Read the body of /_sim/bytes: a little, nothing for a while, then all of it. Its length."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"GET /_sim/bytes?n=%d HTTP/1.0\r\nhost: h\r\n\r\n" % size)
    data = await loop.sock_recv(sock, 65_536)
    while b"\r\n\r\n" not in data:
        data += await loop.sock_recv(sock, 65_536)
    length = len(data.partition(b"\r\n\r\n")[2])
    for _ in range(50):
        length += len(await loop.sock_recv(sock, 65_536))
    await asyncio.sleep(pause_s)  # the subject of the test: nobody reads
    while piece := await loop.sock_recv(sock, MIB):
        length += len(piece)
    return length


@pytest.mark.slow
@pytest.mark.parametrize(
    "size",
    [pytest.param(256 * MIB, id="256MiB"), pytest.param(1024 * MIB, id="1GiB")],
)
async def test_a_slow_reader_costs_no_memory(start_router, engine, connection, size, record_property):
    router = await start_router(replicas=[engine.url])
    pid = await router.worker_pid()
    before = memory(pid)
    assert await download(await connection(router.port), size, 1.5) == size
    peak = memory(pid, "VmHWM")
    record_property("peak_mib", round(peak / MIB, 1))
    print(f"slow reader: {before / MIB:.1f} MiB before, peak {peak / MIB:.1f} MiB")
    assert peak < RSS_LIMIT
    await router.settled()


@pytest.mark.slow
async def test_many_readers_that_stopped(start_router, engine, connection, until, record_property):
    """Each may hold what its watermark allows, and no more, of the 64 MiB that it asked for."""
    router = await start_router(replicas=[engine.url])
    pid = await router.worker_pid()
    loop = asyncio.get_running_loop()
    before = memory(pid)
    for _ in range(40):
        sock = await connection(router.port)
        await loop.sock_sendall(sock, b"GET /_sim/bytes?n=%d HTTP/1.1\r\nhost: h\r\n\r\n" % (64 * MIB))

    seen = []

    async def is_steady():
        seen.append((memory(pid), (await router.rows())[0]["in_flight"]))
        return len(seen) > 40 and seen[-1][1] == 40 and seen[-1][0] - seen[-20][0] < MIB

    await until(is_steady)
    each = (memory(pid, "VmHWM") - before) / 40
    record_property("stopped_reader_kib", round(each / 1024, 1))
    print(f"stopped reader: {each / 1024:.1f} KiB each")
    assert each < MIB


async def test_a_slow_upload_costs_no_memory(start_router, engine, client, record_property):
    router = await start_router(replicas=[engine.url])
    pid = await router.worker_pid()
    piece, count = bytes(256 * 1024), 640  # 160 MiB, at some 40 MB/s

    async def body():
        for _ in range(count):
            yield piece

    response = await client.post(f"{router.url}/_sim/sink?delay_ms=1", content=body())
    assert response.json()["length"] == count * len(piece)
    peak = memory(pid, "VmHWM")
    record_property("peak_mib", round(peak / MIB, 1))
    print(f"slow upload: peak {peak / MIB:.1f} MiB")
    assert peak < RSS_LIMIT
    await router.settled()


class Idle(asyncio.Protocol):
    """One end of an idle WebSocket: the replica's end accepts, the client's waits for that."""

    __slots__ = ("data", "open", "transport")

    def __init__(self, accepted=None):
        self.open = accepted
        self.data = b""

    def connection_made(self, transport):
        self.transport = transport
        if self.open is not None:
            transport.write(HANDSHAKE)

    def data_received(self, data):
        self.data += data
        if not self.data.endswith(b"\r\n\r\n"):
            return
        if self.open is None:
            self.transport.write(accept_head(self.data))
        elif not self.open.done():
            self.open.set_result(self.data[:12])
        self.data = b""

    def connection_lost(self, exc):
        if self.open is not None and not self.open.done():
            self.open.set_exception(exc or ConnectionError("closed"))


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_idle_websockets_are_cheap(start_router, raise_file_limit, until, record_property):
    """10,000 of them, or as many as the limit on open files allows: both of this process and of the worker."""
    loop = asyncio.get_running_loop()
    count = min(10_000, (raise_file_limit(21_000) - 400) // 2)
    assert count >= 300, "the limit on open files allows too few for a measurement"
    ends = []

    def accept():
        ends.append(Idle())
        return ends[-1]

    server = await loop.create_server(accept, "127.0.0.1", 0, backlog=4_096)
    replica = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    clients = []
    try:
        router = await start_router("--health", "none", replicas=[replica])
        pid = await router.worker_pid()

        async def open_many(number):
            opened = [loop.create_future() for _ in range(number)]
            for future in opened:
                _, protocol = await loop.create_connection(
                    lambda future=future: Idle(future), "127.0.0.1", router.port
                )
                clients.append(protocol)
            assert set(await asyncio.gather(*opened)) == {b"HTTP/1.1 101"}

        await open_many(100)  # whatever the first ones load and build is not theirs
        before = memory(pid)
        for _ in range((count - 100) // 100):
            await open_many(100)
        each = (memory(pid) - before) / (len(clients) - 100)
        record_property("websocket_kib", round(each / 1024, 2))
        print(f"{len(clients)} idle WebSockets: {each / 1024:.2f} KiB each")
        assert (await router.rows())[0]["in_flight"] == len(clients)
        assert each <= WEBSOCKET_BYTES
        assert not any(protocol.transport.is_closing() for protocol in clients)
    finally:
        for protocol in (*clients, *ends):
            protocol.transport.abort()
        server.close()
        await server.wait_closed()
    await until(lambda: psutil.Process(pid).num_fds() < 100, 20)
    await router.settled()


async def test_slow_heads_disturb_nobody_and_are_closed(start_router, engine, client, record_property, until):
    router = await start_router("--head-timeout-s", 1.5, replicas=[engine.url])
    pid = await router.worker_pid()
    fds = psutil.Process(pid).num_fds()
    began_s = time.monotonic()
    slow = []
    for _ in range(200):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"POST /_sim/echo HTTP/1.1\r\nhost: h\r\nx-slow: ")
        slow.append((reader, writer))
    took_s, dripped = [], 0
    while time.monotonic() - began_s < 1.0:
        for _, writer in slow[dripped % 10 :: 10]:  # each moves a little: that must not prolong it
            writer.write(b"x")
        dripped += 1
        sent_s = time.monotonic()
        assert (await client.get(f"{router.url}/_sim/echo")).status_code == 200
        took_s.append(time.monotonic() - sent_s)
    assert median(took_s) < 0.1
    ends = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in slow)), 15)
    all_closed_s = time.monotonic() - began_s
    record_property("slow_heads_closed_s", round(all_closed_s, 2))
    print(f"slow heads: all closed after {all_closed_s:.2f} s; others {median(took_s) * 1e3:.1f} ms")
    assert all(end == b"" or end.startswith(b"HTTP/1.1 408 ") for end in ends)
    for _, writer in slow:
        writer.close()
    await until(lambda: psutil.Process(pid).num_fds() <= fds + 5)


async def test_idle_connections_are_closed(start_router, engine):
    router = await start_router("--keep-alive-s", 0.5, replicas=[engine.url])
    fresh = await asyncio.open_connection("127.0.0.1", router.port)
    used = await asyncio.open_connection("127.0.0.1", router.port)
    used[1].write(b"GET /_sim/bytes?n=2&length=1 HTTP/1.1\r\nhost: h\r\n\r\n")
    assert (await used[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    for reader, writer in (fresh, used):
        await asyncio.wait_for(reader.read(), 10)  # to the end of the stream
        writer.close()


async def test_a_reader_that_stops_for_good_is_cut(start_router, engine, connection, until):
    router = await start_router("--stall-timeout-s", 1, replicas=[engine.url])
    sock = await connection(router.port)
    request = b"GET /_sim/bytes?n=%d HTTP/1.1\r\nhost: h\r\nx-request-id: stopped\r\n\r\n" % (64 * MIB)
    await asyncio.get_running_loop().sock_sendall(sock, request)
    record = await router.record("stopped")
    assert record["code"] == "client_stalled" and record["flags"] == "DC"
    assert record["bytes_sent"] < 64 * MIB
    await router.settled()


async def test_the_limit_on_connections(start_router, engine, until):
    router = await start_router("--max-connections", 10, replicas=[engine.url])
    url = f"{router.url}/_sim/bytes?n=1"
    async with contextlib.AsyncExitStack() as stack:

        async def user():
            http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=10))
            assert (await http.get(url)).status_code == 200
            return http

        users = [await user() for _ in range(10)]
        for _ in range(3):
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)):
                await user()
        for http in users:
            assert (await http.get(url)).status_code == 200
        await users.pop().aclose()

        async def has_room():
            try:
                return await user()
            except httpx.TransportError:
                return None

        await until(has_room)
    assert (await router.ask("/livez")).status_code == 200
