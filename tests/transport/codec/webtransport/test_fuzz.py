"""Whatever a client sends in whatever order, sessions keep their books, and nothing is raised."""

import hypothesis.strategies as st
from bearer import CONNECT as WEBSOCKET
from bearer import GET, data, headers
from hypothesis import given, settings
from robotsessionkit import RobotBench, said
from webtransportkit import CONNECT, SessionBench, capsule, one_way, two_way

from router.errors import Kind, ProxyError, Source
from router.transport.codec.quic.varint import varint
from router.transport.codec.robot import wire
from router.transport.codec.webtransport.codes import CLOSE_SESSION, to_http3

CLOSE = capsule(CLOSE_SESSION, (7).to_bytes(4, "big") + b"x")
PIECES = (
    headers(CONNECT), headers(GET), headers(WEBSOCKET), data(CLOSE), data(capsule(0, b"x")), data(b"\x68"), b"C", b"", b"x", b"\x40", b"\xff" * 9,
    two_way(0), two_way(4), two_way(8), two_way(1), one_way(0), one_way(4), one_way(12), two_way(0)[:2], said(wire.HELLO), said(wire.BYE),
    wire.state_header(1, 0) + b"state", wire.state_header(2, 1) + b"newer", wire.command_header(3, 0, is_text=False) + b"abc", bytes(300),
)  # fmt: skip
STREAMS = st.sampled_from([0, 4, 8, 12, 16, 6, 10, 14, 18])
ACTIONS = st.one_of(
    st.tuples(st.just("feed"), STREAMS, st.lists(st.sampled_from(PIECES), max_size=3), st.booleans()),
    st.tuples(st.just("reset"), STREAMS, st.sampled_from([to_http3(1), 0x10C])),
    st.tuples(st.just("stop"), st.sampled_from([0, 4, 8, 12]), st.just(to_http3(1))),
    st.tuples(st.just("datagram"), st.sampled_from([varint(0) + b"T\x01x", varint(1) + b"y", varint(2), varint(70) + b"z", b"\x40"])),
    st.tuples(st.sampled_from(["drain", "cut", "accept", "reply", "close", "wait", "lost"])),
)


def act(bench, kind, *more):
    if kind == "feed":
        stream_id, pieces, end = more
        flow = bench.open(stream_id)
        if bench.is_open and not flow.received_end and (pieces or end):
            bench.feed(stream_id, b"".join(pieces), end=end)
    elif kind in ("reset", "stop"):
        flow = bench.open(more[0])
        if bench.is_open and not (flow.received_end if kind == "reset" else flow.fin or flow.reset_code is not None):
            getattr(bench, kind)(*more)
    elif kind == "datagram":
        bench.datagram(*more)
    elif kind == "drain":
        bench.codec.drain()
    elif kind == "cut":
        bench.codec.cut(ProxyError(Kind.DRAINING, Source.ROUTER))
    elif kind == "lost":
        bench.lost()
    elif kind == "wait":
        bench.bearer.now += 0.7
        if bench.codec.next_deadline() is not None:
            bench.codec.handle_deadline(bench.now)
    else:
        play(bench, kind)
    bench.flush()


def play(bench, kind):
    """What replicas do."""
    for replica in getattr(bench.host, "replicas", [])[-2:]:
        if replica.is_over or replica.head is None or replica.stream._state == 2:
            continue
        if replica.stream._state == 0:
            replica.accept()
        elif kind == "reply":
            replica.binary(bytes(500))
        elif kind == "close":
            replica.close(1012)


def check(bench):
    lanes = bench.codec._lanes
    if lanes is None:
        assert not bench.is_open
        assert bench.open_sessions == 0
        return
    assert bench.open_sessions == len(lanes.sessions)
    assert lanes._waiting_bytes == sum(len(waiting.data) for waiting in lanes.waiting.values())
    assert bench.codec.active == sum(not stream.is_over for stream in bench.codec.streams.values())
    assert not lanes.by_flow.keys() & lanes.waiting.keys()
    for flow_id, session in lanes.by_flow.items():
        assert session.is_over or flow_id in session._flows


@given(st.lists(ACTIONS, max_size=25))
@settings(max_examples=400, deadline=None)
def test_sessions(actions):
    bench = SessionBench()
    for action in actions:
        if bench.is_open:
            act(bench, *action)
            check(bench)


@given(st.lists(ACTIONS, max_size=25), st.booleans())
@settings(max_examples=400, deadline=None)
def test_robots(actions, is_welcome):
    bench = RobotBench()
    if is_welcome:
        bench.welcome()
    for action in actions:
        if bench.is_open:
            act(bench, *action)
            check(bench)
    if bench.is_open:
        bench.lost()
    assert bench.host.counters.robot_sessions_open == 0 and bench.open_sessions == 0
    assert not bench.host.robots.parts, "no session is left behind"
    assert all(replica.is_over or replica.closed for replica in bench.host.replicas)
