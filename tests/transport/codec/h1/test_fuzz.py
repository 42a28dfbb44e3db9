"""Anything at all on the wire: nothing is raised, one message is never two, every exchange ends once."""

import hypothesis.strategies as st
from h1kit import CUT, FAILED, HANDSHAKE, ClientBench, ServerBench, request, response
from hypothesis import given, settings

from router.errors import Kind
from router.stream import CLOSE_NO, HOLD_NO_UPSTREAM, HOLD_PEER_FULL

REQUESTS = [
    b"GET /x HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nhello, world",
    b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7;a=b\r\n, world\r\n0\r\nX-Sum: 1\r\n\r\n",
    b"POST /x HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    HANDSHAKE + b"\x81\x85maskhello",
]
RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nabc",
]
# Never bytes of which a second request line could be made: that one message becomes two must be our doing.
BYTES = st.sampled_from(
    [
        b"\r",
        b"\n",
        b"\r\n",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"0",
        b"9",
        b"\x00",
        b"\xff",
        b"a",
        b"%",
        b"-",
        b"\r\n\r\n",
        b"x: y\r\n",
    ]
)
EDITS = st.lists(st.tuples(st.sampled_from("irds"), st.integers(0, 400), BYTES), min_size=0, max_size=4)
STEPS = st.lists(st.integers(1, 60), min_size=1, max_size=5)


def mutated(data, edits):
    for kind, place, piece in edits:
        at = place % (len(data) + 1)
        if kind == "i":
            data = data[:at] + piece + data[at:]
        elif kind == "r":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "d":
            data = data[:at] + data[at + len(piece) :]
        else:
            data = data[:at]
    return data


def cut_by(steps):
    def cut(data):
        pieces = []
        while data:
            size = steps[len(pieces) % len(steps)]
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    return cut


def give_up(receiver, what):
    """What every exchange does with a reset: nothing if the client is gone, else it answers or resets."""
    if what == "reset" and receiver.error.kind not in (Kind.CLIENT_GONE, Kind.CLIENT_STALLED):
        if getattr(receiver, "has_head", False):
            receiver.bench.codec.reset(receiver.error)
        else:
            receiver.bench.codec.send_head(response(receiver.error.wire.status, 0), True)


def answering(receiver, what):
    """A simple exchange: answers what is complete, takes tunnels, gives up what failed."""
    codec = receiver.bench.codec
    give_up(receiver, what)
    if what == "head" and receiver.head.shape.upgrade:
        receiver.has_head = True
        codec.send_head(response(tunnel=True), False)
    elif receiver.ended and what != "reset":
        if receiver.head.shape.upgrade is None:
            codec.send_head(response(200, 2), False)
            codec.send_data(b"ok", True)
        else:
            codec.send_data(b"", True)


def close_server(bench):
    """However it stands: an end of input, then the loss of the transport, end every exchange exactly once."""
    if bench.codec.wants_read:
        bench.eof()
    bench.lost()
    for receiver in bench.requests:
        assert receiver.ended or receiver.error is not None


@settings(max_examples=400, deadline=None)
@given(which=st.sampled_from(REQUESTS), edits=EDITS, steps=STEPS)
def test_one_request_is_never_two(which, edits, steps):
    bench = ServerBench(answering)
    bench.feed(mutated(which, edits), cut_by(steps))
    assert len(bench.requests) + len(bench.refused) <= 2
    assert len(bench.requests) <= 1
    assert len(bench.refused) <= 1
    if bench.refused:
        assert bench.codec.close != CLOSE_NO
    elif bench.requests and bench.request.ended and bench.request.head.shape.upgrade is None:
        assert bench.out.count(b"HTTP/1.1 200 OK") == 1
    assert bench.codec.next_deadline() is not None
    close_server(bench)


@settings(max_examples=300, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=200), st.lists(st.one_of(BYTES, st.sampled_from(REQUESTS)), max_size=8).map(b"".join)
    ),
    steps=STEPS,
)
def test_any_bytes_to_the_server(data, steps):
    bench = ServerBench(answering)
    bench.feed(data, cut_by(steps))
    close_server(bench)


@settings(max_examples=200, deadline=None)
@given(which=st.sampled_from(REQUESTS), edits=EDITS, steps=STEPS)
def test_pieces_make_no_difference(which, edits, steps):
    """The same bytes whole and in pieces: the same requests, bodies, refusals and answers; the wording may differ."""
    raw = mutated(which, edits)
    found = []
    for cut in (lambda data: [data] if data else [], cut_by(steps)):
        bench = ServerBench(answering)
        bench.feed(raw, cut)
        statuses = [line for line in bench.out.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        # A body that turned out to be malformed: what came before the fault may or may not have been delivered.
        found.append((
            [(r.head.shape.path, r.ended, r.trailers, r.body if r.ended else None, r.error and r.error.kind) for r in bench.requests],
            [error.kind for error in bench.refused],
            bench.codec.close,
            statuses,
        ))  # fmt: skip
    assert found[0] == found[1]


@settings(max_examples=300, deadline=None)
@given(
    which=st.sampled_from(RESPONSES),
    edits=EDITS,
    steps=STEPS,
    method=st.sampled_from([b"GET", b"HEAD", b"CONNECT"]),
    noise=st.binary(max_size=30),
)
def test_any_response(which, edits, steps, method, noise):
    bench = ClientBench()
    upgrade = b"websocket" if method == b"CONNECT" else None
    receiver = bench.start(request(method, upgrade=upgrade), end=upgrade is None)
    bench.feed(mutated(which, edits) + noise, cut_by(steps))
    assert bench.idle_calls <= 1
    if receiver.error is not None:
        assert bench.codec.close != CLOSE_NO
        assert bench.idle_calls == 0
    if bench.codec.is_idle:
        assert receiver.ended
    bench.eof()
    bench.lost()
    assert receiver.ended or receiver.error is not None


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.one_of(st.binary(min_size=1, max_size=30), st.sampled_from(REQUESTS))),
        st.tuples(st.sampled_from(["hold", "release"]), st.sampled_from([HOLD_NO_UPSTREAM, HOLD_PEER_FULL])),
        st.tuples(
            st.sampled_from(
                ["full", "empty", "answer", "head", "data", "finish", "reset", "expire", "eof", "drain", "retire", "cut"]
            ),
            st.none(),
        ),
    ),
    max_size=14,
)


def is_finished(receiver):
    """As the exchange sees it: failed, or answered; a tunnel only once both halves ended."""
    if receiver.error is not None or getattr(receiver, "was_reset", False):
        return True
    said_all = getattr(receiver, "said_all", False)
    return said_all and (receiver.ended or receiver.head.shape.upgrade is None)


@settings(max_examples=400, deadline=None)
@given(actions=ACTIONS)
def test_any_order_of_events_on_the_server(actions):
    """What the shell, the client and an exchange that keeps the seam's rules may do, in any order."""
    bench = ServerBench(give_up)
    is_lost = False
    for action, value in actions:
        receiver = bench.request if bench.requests else None
        is_live = receiver is not None and not is_finished(receiver)
        can_send = is_live and not getattr(receiver, "said_all", False)
        has_head = can_send and getattr(receiver, "has_head", False)
        if action == "feed":
            bench.feed(value)
        elif action == "eof" and not is_lost and not bench.inbox:
            if receiver is None or not receiver.held:
                is_lost = not bench.eof()
        elif action == "expire":
            bench.expire()
        elif action in ("full", "empty"):
            bench.full(action == "full")
        elif action == "drain":
            bench.codec.drain()
        elif action == "retire":
            bench.codec.retire(bench.now)
            bench.pump()
        elif action == "cut" and is_live:
            bench.codec.cut(CUT)
        elif action in ("hold", "release") and is_live:
            getattr(receiver, action)(value)
            bench.pump()
        elif action in ("answer", "head") and can_send and not has_head:
            is_tunnel = receiver.head.shape.upgrade is not None
            length = 2 if action == "answer" and not is_tunnel else None
            bench.codec.send_head(response(200, length, tunnel=is_tunnel), False)
            receiver.has_head = True
            if action == "answer":
                bench.codec.send_data(b"ok", True)
                receiver.said_all = True
            bench.pump()
        elif action in ("data", "finish") and has_head:
            bench.codec.send_data(b"x", action == "finish")
            receiver.said_all = action == "finish"
            bench.pump()
        elif action == "reset" and is_live:
            bench.codec.reset(FAILED)
            receiver.was_reset = True
            bench.pump()
    bench.lost()
    assert all(map(is_finished, bench.requests))
