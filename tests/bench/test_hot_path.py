"""What the hot path costs, in a unit that no noisy machine changes: Python calls per request and per event.

A budget here is a ratchet: when a change needs more calls, the figure in the commit says why.
"""

import sys

import pytest

from router.clock import Clock
from router.core import Core
from router.counters import WorkerCounters
from router.deadlines import DeadlineWheel
from router.edge.admission import AdmissionGate
from router.edge.connection import ServerConnection
from router.edge.listener import Listener
from router.routing.spec import EndpointSpec, ReplicaSpec, RouteSpec, TableSpec
from router.routing.stage import build
from router.transport.codec.h1.limits import ServerLimits
from router.transport.codec.h2 import frames
from router.transport.codec.h2.hpack import write_fields
from router.transport.outbox import Outbox
from router.transport.shell import Reactor
from router.transport.upstream.connection import UpstreamConnection
from router.transport.upstream.pool import ConnectionPool

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


def make_pair(address):
    clock = Clock()
    wheel = DeadlineWheel(clock.now)
    reactor = Reactor(clock, Outbox(clock), wheel, WorkerCounters())
    spec = TableSpec(
        1, (EndpointSpec("e", (ReplicaSpec("r", address),)),), (RouteSpec("*", "/", "e"),)
    )
    table = build(spec, clock.now)
    pool = ConnectionPool(reactor)
    core = Core(table, AdmissionGate(), pool, clock, wheel, b"p", lambda record: None)
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


@pytest.fixture
def pair():
    return make_pair("http://127.0.0.1:1")


@pytest.fixture
def h2_pair():
    return make_pair("h2c://127.0.0.1:1")


def calls(work):
    """How many Python functions `work` calls; the least of three, since a collection may call finalizers in between."""
    return min(count_calls(work) for _ in range(3))


def count_calls(work):
    count = 0

    def on_event(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(on_event)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_a_warm_request_stays_within_its_budget(pair):
    client, replica = pair

    def request():
        client.data_received(REQUEST)
        replica.data_received(RESPONSE)

    for _ in range(3):
        request()
    assert client.transport.last.endswith(b"\r\n\r\nok")
    assert calls(request) <= 72
    client.transport.writes = replica.transport.writes = 0
    request()
    assert (client.transport.writes, replica.transport.writes) == (1, 1), "one write per connection and tick"


def test_an_event_stays_within_its_budget(pair):
    client, replica = pair
    client.data_received(REQUEST)
    replica.data_received(STREAM + EVENT)
    assert calls(lambda: replica.data_received(EVENT)) <= 17
    client.transport.writes = 0
    replica.data_received(EVENT)
    assert client.transport.last == EVENT
    assert client.transport.writes == 1


# A gRPC call as grpcio sends it once its tables are warm: every field an index.
H2_SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
H2_CALL = write_fields(
    [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s.S/M"), (b":authority", b"h"),
     (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"user-agent", b"x")]
)  # fmt: skip
H2_HEAD = write_fields([(b":status", b"200"), (b"content-type", b"application/grpc")])
H2_TRAILERS = write_fields([(b"grpc-status", b"0")])
MESSAGE = b"\0\0\0\0\x05hello"


def test_a_grpc_call_stays_within_its_budget(h2_pair):
    client, replica = h2_pair
    client.data_received(frames.PREFACE + H2_SETTINGS)
    replica.data_received(H2_SETTINGS)
    stream = -1

    def call():
        nonlocal stream
        stream += 2
        client.data_received(frames.frame(frames.HEADERS, 4, stream, H2_CALL) + frames.frame(0, 1, stream, MESSAGE))
        replica.data_received(
            frames.frame(frames.HEADERS, 4, stream, H2_HEAD)
            + frames.frame(frames.DATA, 0, stream, MESSAGE)
            + frames.frame(frames.HEADERS, 5, stream, H2_TRAILERS)
        )

    for _ in range(3):
        call()
    assert client.transport.last.endswith(H2_TRAILERS)
    assert calls(call) <= 141
    client.transport.writes = replica.transport.writes = 0
    call()
    assert (client.transport.writes, replica.transport.writes) == (1, 1), "one write per connection and tick"


def test_a_streamed_message_stays_within_its_budget(h2_pair):
    client, replica = h2_pair
    client.data_received(frames.PREFACE + H2_SETTINGS)
    client.data_received(frames.frame(frames.HEADERS, 5, 1, H2_CALL))
    replica.data_received(H2_SETTINGS + frames.frame(frames.HEADERS, 4, 1, H2_HEAD))
    message = frames.frame(frames.DATA, 0, 1, MESSAGE)
    replica.data_received(message)
    assert calls(lambda: replica.data_received(message)) <= 14
    client.transport.writes = 0
    replica.data_received(message)
    assert client.transport.last == message
    assert client.transport.writes == 1
