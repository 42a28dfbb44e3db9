"""A QUIC listener on real sockets with an engine that only keeps what it is given, and packets to send to it."""

import asyncio
import os
import socket

from udpkit import until

from router.clock import Clock
from router.core import Core
from router.counters import WorkerCounters
from router.deadlines import DeadlineWheel
from router.edge.admission import AdmissionGate
from router.edge.headcount import Headcount
from router.edge.quic_forwarding import NEXT, Forwarding, make_pair
from router.edge.quic_listener import Protocols, QuicListener
from router.routing.credentials import RateBoard
from router.routing.spec import TableSpec
from router.routing.stage import build
from router.transport.codec.quic.keyring import Keyring
from router.transport.codec.quic.seam import Application
from router.transport.outbox import Outbox
from router.transport.shell import Reactor
from router.walltime import WallTime

SECRET = bytes(range(32))
HANDSHAKING, OPEN, CLOSING, OVER = 0, 1, 2, 4


class Burst:
    def __init__(self, address, local, pieces):
        self.address, self.local, self.pieces = address, local, pieces
        self.segment_bytes = len(pieces[0])


class FakeRtt:
    has_sample = True
    smoothed_s = 0.02


class FakeRecovery:
    rtt = FakeRtt()
    lost_packets = 0


class FakeEngine:
    """Answers each datagram with `say`, as `pong <first bytes>`; a datagram of b"junk" in it is not authentic."""

    def __init__(self, owner, now, address, local, original_id, retry_id, is_validated):
        self.owner, self.address, self.local = owner, address, local
        self.original_id, self.retry_id, self.is_validated = original_id, retry_id, is_validated
        self.phase = HANDSHAKING
        self.handshake = None
        self.received = []
        self.out = []
        self.deadline_s = None
        self.due = []
        self.aborted = None
        self.application = None
        self.received_packets = self.sent_packets = 0
        self.recovery = FakeRecovery()
        self.fails = None
        self.more = 0
        self.told_room = 0
        self.ecn = 0
        self.id = owner.make_id()
        self.peer_ids = self  # of which only this is asked
        self.reset_token = b""

    def is_reset(self, tail):
        return tail == self.reset_token

    def receive(self, data, segment_bytes, address, local, now, ecn):
        if self.fails == "receive":
            raise RuntimeError("as the test wants")
        self.received.append((data, segment_bytes, address, local))
        if b"junk" in data:
            return
        self.received_packets += 1
        self.address, self.local, self.ecn = address, local, ecn
        self.out.append(b"pong" + self.id)
        self.owner.touch()

    def datagrams_to_send(self, now):
        if self.fails == "send":
            raise RuntimeError("as the test wants")
        if self.application is not None:
            self.application.before_send(now)
        out, self.out = self.out, []
        if self.more:
            self.more -= 1
            self.out = [b"more"]
            self.owner.touch()
        self.sent_packets += len(out)
        return [Burst(self.address, self.local, [piece]) for piece in out]

    def deliver_drained(self):
        self.told_room += 1

    def next_deadline(self):
        return self.deadline_s

    def handle_deadline(self, now):
        self.due.append(now)
        self.deadline_s = None
        self.owner.touch()

    def abort(self, code, reason):
        self.aborted = code
        self.phase = CLOSING
        self.out.append(b"bye!")

    def complete(self, alpn="h3"):
        """End the handshake."""
        self.phase = OPEN
        self.handshake = type("Done", (), {"is_complete": True})()
        self.application = self.owner.make_application(self, alpn)

    def let_go(self):
        self.application = None

    def unsent_bytes(self):
        return sum(map(len, self.out))

    @property
    def is_over(self):
        return self.phase == OVER


class FakeApplication(Application):
    def __init__(self, shell):
        self.shell = shell
        self.told = []
        self.deadline_s = None

    def before_send(self, now):
        pass

    def next_deadline(self):
        return self.deadline_s

    def handle_deadline(self, now):
        self.told.append("deadline")
        self.deadline_s = None

    def drain(self):
        self.told.append("drain")

    def retire(self, now):
        self.told.append("retire")

    def cut(self, error):
        self.told.append("cut")


class FakeProtocols(Protocols):
    def __init__(self):
        self.engines = []

    def connect(self, shell, now, address, local, first_id, original_id, *, is_validated):
        retry_id = first_id if first_id != original_id else b""
        self.engines.append(FakeEngine(shell, now, address, local, original_id, retry_id, is_validated))
        return self.engines[-1]

    def make_application(self, shell, bearer, alpn, now):
        return FakeApplication(shell)


class Rig:
    """One worker's listener on loopback. `ways` are the forwarding pairs of its daemon, by (incarnation, worker)."""

    def __init__(self, worker=0, incarnation=7, ways=None, receivers=None, max_connections=1_000_000, secret=SECRET, protocols=None):
        clock = Clock()
        self.counters = WorkerCounters()
        self.reactor = Reactor(clock, Outbox(clock), DeadlineWheel(clock.now), self.counters)
        self.core = Core(build(TableSpec(1, (), ()), clock.now), AdmissionGate((), RateBoard(memoryview(bytearray(8))), WallTime()), None, clock, self.reactor.wheel, b"p")
        self.headcount = Headcount(self.counters, max_connections)
        self.protocols = protocols(self) if protocols else FakeProtocols()
        self.keyring = Keyring(secret)
        self.walltime = WallTime()
        self.forwarding = Forwarding(receivers or [], ways or {})
        self.listener = QuicListener(
            self.core, self.reactor, self.headcount, self.protocols, self.keyring, worker, incarnation,
            self.forwarding, self.walltime,
        )
        self.clients = []

    def start(self, sock=None):
        if sock is None:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
        self.address = sock.getsockname()
        self.listener.listen([sock])
        return self

    @property
    def engines(self):
        return self.protocols.engines

    def count(self, name):
        return getattr(self.listener.counters, "quic_" + name)

    def client(self):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.connect(self.address)
        sock.setblocking(False)
        self.clients.append(sock)
        return sock

    async def connected(self, client=None):
        """Begin a connection; return its client's socket, its engine and the id that was issued."""
        client = client or self.client()
        before = len(self.engines)
        client.send(initial())
        await until(lambda: len(self.engines) > before)
        answer = await answered(client)
        return client, self.engines[-1], answer[4:]

    def close(self):
        for shell in list(self.listener._shells):
            if isinstance(shell.connection, FakeEngine):
                shell.connection.fails = None
        self.listener.close()
        for client in self.clients:
            client.close()


def daemon(incarnations, workers=1):
    """Return the pairs of one host: receiving and sending ends by (incarnation, worker), NEXT among them."""
    receivers, senders = {}, {}
    for incarnation in incarnations:
        for worker in (*range(workers), NEXT):
            receivers[incarnation, worker], senders[incarnation, worker] = make_pair()
    return receivers, senders


def copies(senders):
    return {key: sock.dup() for key, sock in senders.items()}


async def answered(client, limit_s=5.0):
    async with asyncio.timeout(limit_s):
        return await asyncio.get_running_loop().sock_recv(client, 2_000)


def varint(value):
    return (value | 0x4000).to_bytes(2, "big")


def initial(destination=None, source=b"src", token=b"", size=1_200, version=1, body=b"hello", kind=0):
    """A client's first packet, as far as a listener looks."""
    destination = os.urandom(8) if destination is None else destination
    data = (
        bytes((0xC0 | kind << 4,)) + version.to_bytes(4, "big")
        + bytes((len(destination),)) + destination + bytes((len(source),)) + source
    )  # fmt: skip
    if kind == 0:
        data += varint(len(token)) + token
    data += varint(max(0, size - len(data) - 2)) + body
    return data + bytes(max(0, size - len(data)))


def short(connection_id, body=b"data", size=0):
    data = b"\x41" + connection_id + body
    return data + bytes(max(0, size - len(data)))
