"""The listener on a real socket: accepting, its limit, what is counted, draining and cutting."""

import asyncio
import socket

import pytest_asyncio

from router.clock import Clock
from router.core import Core
from router.counters import WorkerCounters
from router.deadlines import DeadlineWheel
from router.edge.admission import AdmissionGate
from router.edge.listener import Listener
from router.errors import Kind, ProxyError, Source
from router.routing.credentials import RateBoard
from router.routing.spec import EndpointSpec, ReplicaSpec, RouteSpec, TableSpec
from router.routing.stage import build
from router.stream import PendingStream
from router.transport.codec.h1.limits import ServerLimits
from router.transport.outbox import Outbox
from router.transport.shell import Reactor
from router.walltime import WallTime

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CUT = ProxyError(Kind.DRAINING, Source.ROUTER)


class Never(PendingStream):
    """A connect that does not come to an end."""

    def cancel(self):
        pass


class NoPool:
    def open(self, replica, receiver, dial, head, *, fresh):
        return Never()


class Rig:
    """A listener with a table of no replicas at /, and one that never answers at /slow."""

    def __init__(self, max_connections=3):
        clock = Clock()
        self.counters = WorkerCounters()
        self.reactor = Reactor(clock, Outbox(clock), DeadlineWheel(clock.now), self.counters)
        spec = TableSpec(
            1,
            (EndpointSpec("none"), EndpointSpec("slow", (ReplicaSpec("r", "http://127.0.0.1:1"),))),
            (RouteSpec("*", "/", "none"), RouteSpec("*", "/slow", "slow")),
        )
        self.core = Core(
            build(spec, clock.now), AdmissionGate((), RateBoard(memoryview(bytearray(8))), WallTime()), NoPool(), clock, self.reactor.wheel, b"p"
        )
        self.listener = Listener(self.core, self.reactor, ServerLimits(), max_connections)
        self.clients = []

    async def start(self):
        sock = socket.create_server(("127.0.0.1", 0))
        self.address = sock.getsockname()
        await self.listener.listen([sock])

    async def connect(self):
        sock = socket.socket()
        sock.setblocking(False)
        self.clients.append(sock)
        await asyncio.get_running_loop().sock_connect(sock, self.address)
        return sock

    async def accepted(self, count):
        async with asyncio.timeout(5):
            while self.counters.connections_accepted < count:
                await asyncio.sleep(0)

    def close(self):
        self.listener.cut(CUT)
        self.listener.stop_accepting()
        for sock in self.clients:
            sock.close()


@pytest_asyncio.fixture
async def rig():
    rig = Rig()
    await rig.start()
    yield rig
    rig.close()
    await asyncio.sleep(0.01)


async def read(sock, until=b""):
    """Read until `until`, or to the end; ConnectionResetError is an end as well."""
    loop = asyncio.get_running_loop()
    data = b""
    async with asyncio.timeout(5):
        while not until or until not in data:
            try:
                piece = await loop.sock_recv(sock, 65_536)
            except ConnectionResetError:
                return data + b"<reset>"
            if not piece:
                return data
            data += piece
    return data


async def ask(sock, raw=GET):
    await asyncio.get_running_loop().sock_sendall(sock, raw)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_a_request_makes_an_exchange(rig):
    sock = await rig.connect()
    await ask(sock)
    assert (await read(sock, b"}}")).startswith(b"HTTP/1.1 503 ")
    await ask(sock)
    assert (await read(sock, b"}}")).startswith(b"HTTP/1.1 503 "), "on the same connection"
    assert rig.core.table.endpoints["none"].counters.requests == 2
    assert rig.counters.connections_accepted == 1


async def test_open_connections_are_counted(rig):
    first, second = await rig.connect(), await rig.connect()
    await rig.accepted(2)
    assert rig.listener.open_connections == rig.counters.connections_open == 2
    first.close()
    await until(lambda: rig.listener.open_connections == 1)
    assert rig.counters.connections_open == 1
    second.close()
    await until(lambda: rig.listener.open_connections == 0)


async def test_beyond_the_limit_they_are_refused(rig):
    held = [await rig.connect() for _ in range(3)]
    await rig.accepted(3)
    extra = await rig.connect()
    assert await read(extra) in (b"", b"<reset>")
    assert rig.counters.connections_refused == 1
    assert rig.counters.connections_accepted == 3
    await until(lambda: rig.listener.open_connections == 3)
    assert rig.counters.connections_open == 3
    held.pop().close()
    await until(lambda: rig.listener.open_connections == 2)
    another = await rig.connect()
    await ask(another)
    assert b"503" in await read(another, b"}}")


async def test_connections_of_one_address(rig):
    rig.listener.headcount.max_per_address = 2
    held = [await rig.connect() for _ in range(2)]
    await rig.accepted(2)
    assert await read(await rig.connect()) in (b"", b"<reset>")
    assert (rig.counters.refused_address, rig.counters.connections_refused) == (1, 0)
    assert rig.listener.headcount._by_client == {b"127.0.0.1": 2}, "who is refused is not counted"
    held.pop().close()
    await until(lambda: rig.listener.headcount._by_client == {b"127.0.0.1": 1})
    await ask(held[0])
    assert b"503" in await read(held[0], b"}}")
    another = await rig.connect()
    await ask(another)
    assert b"503" in await read(another, b"}}")
    for sock in (*held, another):
        sock.close()
    await until(lambda: rig.listener.open_connections == 0)
    assert not rig.listener.headcount._by_client, "nothing is remembered of who is gone"


async def test_without_memory_none_is_taken(rig):
    rig.listener.headcount.refuses = True
    assert await read(await rig.connect()) in (b"", b"<reset>")
    assert rig.counters.refused_memory == 1
    rig.listener.headcount.refuses = False
    sock = await rig.connect()
    await ask(sock)
    assert b"503" in await read(sock, b"}}")


async def test_a_share_is_shed_and_what_is_under_way_goes_on(rig):
    busy, sock = await rig.connect(), await rig.connect()
    await ask(busy, GET.replace(b"/ ", b"/slow "))
    await until(lambda: rig.core.in_flight == 1)
    rig.core.shed_share = 1.0
    await ask(sock, GET.replace(b"/ ", b"/slow "))
    answer = await read(sock, b"}}")
    assert answer.startswith(b"HTTP/1.1 503 ") and b"x-router-error: overloaded" in answer
    assert b"retry-after: 1" in answer and b"connection: close" not in answer
    assert rig.core.in_flight == 1 and rig.core.shed_requests == 1


async def test_a_malformed_request_is_counted_without_an_endpoint(rig):
    sock = await rig.connect()
    await ask(sock, b"nonsense\r\n\r\n")
    assert (await read(sock)).startswith(b"HTTP/1.1 400 ")
    assert rig.counters.malformed_requests == 1
    unrouted = rig.core.unrouted
    assert (unrouted.requests, unrouted.statuses, unrouted.codes) == (1, {400: 1}, {"bad_request": 1})


async def test_the_clients_address(rig):
    await rig.connect()
    await rig.accepted(1)
    (connection,) = rig.listener._connections
    assert connection.peer.address == b"127.0.0.1"


async def test_stop_accepting(rig):
    sock = await rig.connect()
    await rig.accepted(1)
    rig.listener.stop_accepting()
    await asyncio.sleep(0)
    await ask(sock)
    assert b"503" in await read(sock, b"}}"), "what was accepted is served on"
    try:
        await rig.connect()
    except ConnectionRefusedError:
        pass
    else:
        raise AssertionError("it still listens")


async def test_drain_closes_idle_ones_and_lets_the_others_finish(rig):
    idle, busy = await rig.connect(), await rig.connect()
    await ask(busy, GET.replace(b"/ ", b"/slow "))
    await rig.accepted(2)
    await until(lambda: rig.core.in_flight == 1)
    rig.listener.drain()
    assert await read(idle) == b""
    assert rig.core.in_flight == 1
    assert rig.listener.cut(CUT) == 1
    answer = await read(busy)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in answer
    assert b"x-router-error: draining" in answer
    assert rig.core.in_flight == 0
    await until(lambda: rig.listener.open_connections == 0)


async def test_retired_it_loses_no_request_of_whoever_connected_before(rig):
    """Another process has the sockets; what was accepted here is answered here, and then ends."""
    idle, fresh = await rig.connect(), await rig.connect()
    await ask(idle)
    await read(idle, b"}}")
    await rig.accepted(2)
    rig.listener.retire()
    assert not rig.listener.is_idle
    for sock in (idle, fresh):
        await ask(sock)
        answer = await read(sock)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"connection: close" in answer
    await until(lambda: rig.listener.is_idle)


async def test_retired_it_closes_who_says_nothing(rig):
    rig.listener.limits = ServerLimits(retire_s=0.05)
    sock = await rig.connect()
    await rig.accepted(1)
    rig.listener.retire()
    async with asyncio.timeout(5):
        while not rig.listener.is_idle:
            rig.reactor.wheel.turn(rig.reactor.clock.read())
            rig.reactor.outbox.flush()
            await asyncio.sleep(0.01)
    assert await read(sock) == b""


async def test_a_cut_counts_requests_not_connections(rig):
    await rig.connect()
    await rig.connect()
    await rig.accepted(2)
    assert rig.listener.cut(CUT) == 0
    await until(lambda: rig.listener.open_connections == 0)


async def test_a_client_that_leaves_ends_its_exchange(rig):
    sock = await rig.connect()
    await ask(sock, GET.replace(b"/ ", b"/slow "))
    await until(lambda: rig.core.in_flight == 1)
    sock.close()
    await until(lambda: rig.core.in_flight == 0)
    assert rig.core.table.endpoints["slow"].counters.codes == {"client_gone": 1}
