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


@pytest.fixture
def pair():
    clock = Clock()
    wheel = DeadlineWheel(clock.now)
    reactor = Reactor(clock, Outbox(clock), wheel, WorkerCounters())
    spec = TableSpec(
        1, (EndpointSpec("e", (ReplicaSpec("r", "http://127.0.0.1:1"),)),), (RouteSpec("*", "/", "e"),)
    )
    table = build(spec, clock.now)
    pool = ConnectionPool(reactor)
    core = Core(table, AdmissionGate(), pool, clock, wheel, b"p", lambda record: None)
    client = ServerConnection(Listener(core, reactor, ServerLimits(), 10))
    client.connection_made(Transport())
    replica = UpstreamConnection(reactor, table.endpoints["e"].replicas[0], pool)
    replica.connection_made(Transport())
    pool.put(replica)
    return client, replica


def calls(work):
    """How many Python functions `work` calls."""
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
    client.transport.writes = replica.transport.writes = 0
    assert calls(request) <= 72
    assert (client.transport.writes, replica.transport.writes) == (1, 1), "one write per connection and tick"


def test_an_event_stays_within_its_budget(pair):
    client, replica = pair
    client.data_received(REQUEST)
    replica.data_received(STREAM + EVENT)
    client.transport.writes = 0
    assert calls(lambda: replica.data_received(EVENT)) <= 17
    assert client.transport.last == EVENT
    assert client.transport.writes == 1
