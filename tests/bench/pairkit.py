"""A client's connection and a replica's, joined by the whole data path, on transports that only count writes."""

from router.clock import Clock
from router.core import Core
from router.counters import WorkerCounters
from router.deadlines import DeadlineWheel
from router.edge.admission import AdmissionGate
from router.edge.connection import ServerConnection
from router.edge.listener import Listener
from router.routing.credentials import RateBoard
from router.routing.spec import EndpointSpec, ReplicaSpec, RouteSpec, TableSpec
from router.routing.stage import build
from router.transport.codec.h1.limits import ServerLimits
from router.transport.codec.h2.hpack import write_fields
from router.transport.outbox import Outbox
from router.transport.shell import Reactor
from router.transport.upstream.connection import UpstreamConnection
from router.transport.upstream.pool import ConnectionPool
from router.walltime import WallTime

FIELDS = b"".join(b"x-field-%d: value %d\r\n" % (i, i) for i in range(8))
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n" + FIELDS + b"Content-Length: 5\r\n\r\nhello"
RESPONSE = b"HTTP/1.1 200 OK\r\n" + FIELDS + b"Content-Length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'f\r\ndata: {"a": 1}\n\r\n'


class Transport:
    """Counts writes, and keeps the last."""

    def __init__(self):
        self.writes = 0
        self.last = b""

    def get_extra_info(self, name):
        return ("127.0.0.1", 1) if name == "peername" else None

    def write(self, data):
        self.writes += 1
        self.last = data

    def is_closing(self):
        return False

    def abort(self):
        """Called for what is cut; `connection_lost` is up to the test."""

    close = abort


def make_pair(address):
    clock = Clock()
    wheel = DeadlineWheel(clock.now)
    reactor = Reactor(clock, Outbox(clock), wheel, WorkerCounters())
    spec = TableSpec(
        1, (EndpointSpec("e", (ReplicaSpec("r", address),)),), (RouteSpec("*", "/", "e"),)
    )
    table = build(spec, clock.now)
    pool = ConnectionPool(reactor)
    core = Core(table, AdmissionGate((), RateBoard(memoryview(bytearray(8))), WallTime()), pool, clock, wheel, b"p", lambda record: None)
    client = ServerConnection(Listener(core, reactor, ServerLimits(), 10))
    client.connection_made(Transport())
    endpoint = table.endpoints["e"]
    replica = UpstreamConnection(reactor, endpoint.replicas[0], pool, endpoint.dial)
    replica.connection_made(Transport())
    if replica.h2 is None:
        pool.put(replica)
    else:
        pool._keep(endpoint.replicas[0]).shared.append(replica)
    return client, replica


# A gRPC call as grpcio sends it once its tables are warm: every field an index.
H2_SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
H2_CALL = write_fields(
    [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s.S/M"), (b":authority", b"h"),
     (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"user-agent", b"x")]
)  # fmt: skip
H2_HEAD = write_fields([(b":status", b"200"), (b"content-type", b"application/grpc")])
H2_TRAILERS = write_fields([(b"grpc-status", b"0")])
MESSAGE = b"\0\0\0\0\x05hello"
