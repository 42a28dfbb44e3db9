"""Connections that are not ready yet: how many, how long, and who is let go."""

import asyncio
import socket
import sys
from pathlib import Path

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))
from test_listener import GET, Rig, read, until

from router.edge import arrivals
from router.edge.arrivals import TrustedPeers
from router.edge.listener import Listener
from router.transport.codec.h1.limits import ServerLimits

HEADER = b"PROXY TCP4 198.51.100.7 127.0.0.1 5000 80\r\n"


@pytest.mark.parametrize(
    ("address", "is_one"),
    [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("192.0.2.1", False), ("2001:db8::1", True), ("::1", False),
     ("2001:db8::1%eth0", True), ("", True)],
)  # fmt: skip
def test_who_may_send_a_header(address, is_one):
    assert TrustedPeers(["10.0.0.0/8", "2001:db8::/32"]).has(address) is is_one


@pytest_asyncio.fixture
async def rig():
    rig = Rig()
    rig.listener = Listener(rig.core, rig.reactor, ServerLimits(head_s=0.3), 3, TrustedPeers(["127.0.0.0/8"]))
    await rig.start()
    yield rig
    rig.close()
    await asyncio.sleep(0.01)


async def send(sock, data):
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def test_who_is_slow_loses_the_connection(rig):
    began = asyncio.get_running_loop().time()
    sock = await rig.connect()
    await send(sock, HEADER[:10])
    assert await read(sock) == b""
    assert 0.2 < asyncio.get_running_loop().time() - began < 3
    assert rig.counters.proxy_headers_refused == 1
    assert rig.counters.connections_accepted == 0


async def test_when_too_many_wait_the_oldest_goes(rig, monkeypatch):
    monkeypatch.setattr(arrivals, "MAX_ARRIVALS", 2)
    first, second, third = [await rig.connect() for _ in range(3)]
    assert await read(first) in (b"", b"<reset>")
    assert rig.counters.connections_refused == 1
    for sock in (second, third):
        await send(sock, HEADER + GET)
        assert (await read(sock, b"}}")).startswith(b"HTTP/1.1 503 ")


async def test_the_limit_of_connections_holds_behind_it(rig):
    socks = [await rig.connect() for _ in range(4)]
    for sock in socks:
        await send(sock, HEADER)
    await until(lambda: rig.counters.connections_refused == 1)
    assert rig.counters.connections_open == 3


async def test_who_is_not_ready_is_let_go_by_a_drain_and_the_others_are_served_on(rig):
    waiting, ready = await rig.connect(), await rig.connect()
    await send(ready, HEADER)
    await rig.accepted(1)
    await until(lambda: rig.listener._arrivals.waiting == 1)
    rig.listener.stop_accepting()
    assert await read(waiting) in (b"", b"<reset>")
    await send(ready, GET)
    assert b"503" in await read(ready, b"}}")
    assert rig.listener._arrivals.waiting == 0


async def test_retired_it_still_takes_who_is_not_ready(rig):
    sock = await rig.connect()
    await until(lambda: rig.listener._arrivals.waiting == 1)
    rig.listener.retire()
    assert not rig.listener.is_idle
    await send(sock, HEADER + GET)
    answer = await read(sock)
    assert answer.startswith(b"HTTP/1.1 503 ") and b"connection: close" in answer


async def test_without_descriptors_it_waits_and_goes_on(rig, monkeypatch, caplog):
    monkeypatch.setattr(arrivals, "ACCEPT_PAUSE_S", 0.01)
    (listening,) = rig.listener._arrivals._listening

    class Poor:
        failures = 1

        def accept(self):
            if self.failures:
                self.failures -= 1
                raise OSError(24, "Too many open files")
            return listening.accept()

        def fileno(self):
            return listening.fileno()

        def close(self):
            listening.close()

    loop, own = asyncio.get_running_loop(), rig.listener._arrivals
    loop.remove_reader(listening.fileno())
    poor = Poor()
    own._listening[:] = [poor]
    loop.add_reader(listening.fileno(), own._accept, poor, False)
    sock = await rig.connect()
    await send(sock, HEADER + GET)
    assert b"503" in await read(sock, b"}}")
    assert "Too many open files" in caplog.text


async def test_nothing_is_left_of_those_who_go_away(rig):
    for data in (b"", HEADER[:20]):
        sock = await rig.connect()
        await send(sock, data)
        sock.close()
    await until(lambda: rig.listener._arrivals.waiting == 0)
    sock = socket.socket()
    sock.close()
    assert rig.listener.open_connections == 0
