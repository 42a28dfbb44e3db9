"""A pool on real loopback sockets: replicas that do as they are told, receivers that wait."""

import asyncio
import socket
import struct

from router.clock import Clock
from router.counters import WorkerCounters
from router.deadlines import DeadlineWheel
from router.http import RequestHead, RequestShape
from router.routing.load import Replica
from router.routing.spec import ConnectionSpec, DialSpec, ReplicaSpec, TlsSpec
from router.stream import PendingStream
from router.transport.outbox import Outbox
from router.transport.shell import Reactor
from router.transport.upstream.pool import ConnectionPool

HEAD = RequestHead(RequestShape(b"GET", b"/", b"a"))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def make_reactor():
    clock = Clock()
    return Reactor(clock, Outbox(clock), DeadlineWheel(clock.now), WorkerCounters())


class FakeReplica:
    """A listening socket, whose connections a test drives by hand."""

    def __init__(self, backlog=16):
        self.server = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self.server.setblocking(False)
        self.port = self.server.getsockname()[1]
        self.connections = []

    def spec(self, name="r"):
        return Replica(ReplicaSpec(name, f"http://127.0.0.1:{self.port}"))

    async def accept(self):
        sock, _ = await asyncio.get_running_loop().sock_accept(self.server)
        sock.setblocking(False)
        self.connections.append(sock)
        return sock

    async def serve(self, sock, answer=OK):
        """Read one head and answer."""
        loop = asyncio.get_running_loop()
        data = b""
        while b"\r\n\r\n" not in data:
            piece = await loop.sock_recv(sock, 65_536)
            assert piece, "closed before a request"
            data += piece
        await loop.sock_sendall(sock, answer)
        return data

    def close(self):
        self.server.close()
        for sock in self.connections:
            sock.close()


def send_rst(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Receiver:
    """The exchange, waiting for its end; answers nothing."""

    def __init__(self):
        self.stream = None
        self.error = None
        self.body = b""
        self.done = asyncio.get_running_loop().create_future()
        self.ready = asyncio.get_running_loop().create_future()
        self.untouched = None

    def upstream_ready(self, stream):
        self.stream = stream
        if not self.ready.done():
            self.ready.set_result(stream)

    def upstream_failed(self, error):
        self.error = error
        for waiter in (self.ready, self.done):
            if not waiter.done():
                waiter.set_result(None)

    def response_informational(self, head):
        pass

    def response_head(self, head, end):
        self.status = head.shape.status
        if end:
            self._finish()

    def response_data(self, data, end):
        self.body += data
        if end:
            self._finish()

    def response_trailers(self, trailers):
        self._finish()

    def response_reset(self, error):
        self.error = error
        self.untouched = self.stream.is_untouched()
        self._finish()

    def _finish(self):
        if not self.done.done():
            self.done.set_result(None)

    def pause_request(self):
        pass

    resume_request = pause_request


class PoolBench:
    """A pool and one replica."""

    def __init__(self):
        self.reactor = make_reactor()
        self.pool = ConnectionPool(self.reactor)
        self.server = FakeReplica()
        self.replica = self.server.spec()

    def open(self, replica=None, fresh=False, connect_s=5.0):
        """Return the receiver, and the pending stream or None if it was warm."""
        receiver = Receiver()
        self.reactor.clock.read()
        found = self.pool.open(replica or self.replica, receiver, DialSpec(connect_s, ConnectionSpec(), TlsSpec()), HEAD, fresh=fresh)
        if isinstance(found, PendingStream):
            return receiver, found
        receiver.upstream_ready(found)
        return receiver, None

    def send(self, receiver):
        receiver.stream.send_head(HEAD, True)
        self.reactor.outbox.flush()

    async def connect(self):
        """Open a fresh stream; return its receiver and the replica's socket."""
        receiver, _ = self.open(fresh=True)
        sock = await self.server.accept()
        await receiver.ready
        return receiver, sock

    async def exchange(self, receiver, sock, answer=OK):
        self.send(receiver)
        await self.server.serve(sock, answer)
        await receiver.done

    def leave(self):
        """The replica leaves the table, as a step of `Stage` and the worker have it."""
        self.replica.leave()
        self.pool.leave(self.replica)

    async def idle(self, count=1):
        """Make so many idle connections; return the replica's sockets, the first one idle first."""
        opened = [await self.connect() for _ in range(count)]
        for receiver, sock in opened:
            await self.exchange(receiver, sock)
        return [sock for _, sock in opened]

    async def settle(self):
        for _ in range(20):
            await asyncio.sleep(0)

    async def close(self):
        self.pool.close()
        self.reactor.outbox.flush()
        await self.settle()
        self.server.close()
