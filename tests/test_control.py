"""Control messages: every kind there and back, in whatever pieces; oversize is refused."""

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from router.control import (
    MAX_MESSAGE_BYTES,
    AboutSessions,
    AboutTakeovers,
    Accept,
    Alive,
    Ask,
    AskDemand,
    AskRobots,
    Built,
    CameAgain,
    Counted,
    Demanded,
    Drain,
    Drained,
    EarlierEnded,
    EndEarlier,
    EndSession,
    EngineLoads,
    Explain,
    Explained,
    FromWorker,
    HasLeft,
    Health,
    IsHere,
    KnownTo,
    Patch,
    Ready,
    ReopenLogs,
    Robots,
    SessionAnswer,
    SessionsUsed,
    SetLogLevel,
    SetTls,
    Start,
    StartSession,
    TakenOver,
    ToWorker,
    Unpacker,
    from_worker,
    pack,
    to_worker,
)
from router.demand import EndpointDemand
from router.overload import OverloadLimits
from router.routing.explain import Asked
from router.routing.spec import EndpointPatch, EndpointSpec, LimitSpec, ReplicaSpec, RouteSpec, TablePatch
from router.session_book import SessionUse
from router.telemetry import EndpointSnapshot, ReplicaSnapshot, WorkerSnapshot
from router.transport.codec.h1.limits import ServerLimits
from router.transport.codec.robot.shown import ShownRobot
from router.transport.server_tls import CertificatePair, ServerTls

PATCH = TablePatch(
    7,
    (
        EndpointPatch(
            "e",
            EndpointSpec("e", (), policy="random", slow_start_s=1.0, retries=0, limits=LimitSpec(5, 6)),
            (ReplicaSpec("r", "http://[::1]:1", 2.5, "DOWN", 3),),
            ("gone",),
        ),
        EndpointPatch("f"),
    ),
    ("g",),
    (RouteSpec("*.a", "/v1", "e", 5),),
    more=True,
    committed_us=1,
)
SNAPSHOT = WorkerSnapshot(
    0, 1, 7, True, 3, {"a": 1}, {}, {"e": EndpointSnapshot(requests=2, statuses={200: 2}, codes={"x": 1})},
    [ReplicaSnapshot("e", "r", "http://h:1", "READY", True, True, False, 1.0, 1, 2, 3, 4, 5, 0.25, 6)],
)  # fmt: skip
ROBOT = ShownRobot(
    "s", 1, "192.0.2.1:5", "h", "/p", "e", "r", 2, "websocket", "quic", 1.5, 9, 8, 7, 6, 5, 4, 3, 2, None, 1, -1, [0, 1], 1, 2, 3, 4, 5,
    6, 7, 8,
)  # fmt: skip
TLS = ServerTls((CertificatePair("/c", b"cert", b"key", ("a", "*.b"), 1.5),), b"ca", "1.3")
TO_WORKER = [
    Start(1, 2, ServerLimits(head_s=1.0), 10, ["t"], 1, TLS, ["::1/128"], 2, "-", 0.5, "DEBUG", OverloadLimits(0.2, 5, 3)),
    SetTls(TLS),
    Patch(PATCH),
    Patch(TablePatch(1)),
    Health("e", "r", False),
    Accept(),
    Drain(5.0),
    Drain(5.0, is_handed_over=True),
    Ask(1),
    EngineLoads("e", {"a": 1.5, "b": 0.0}),
    Explain(2, Asked("host", "/path", "key", "model", "environment", "r1")),
    AskDemand(3),
    AskRobots(6, 50, "s"),
    SetLogLevel("INFO"),
    ReopenLogs(),
    SessionAnswer(4, "id", 1_790_000_000),
    SessionAnswer(4, refusal="at_capacity"),
    KnownTo(1.5),
    EndEarlier(1, 7, "s", "a", 3, 2),
    TakenOver(7),
    TakenOver(7, 2),
]
FROM_WORKER = [
    Built(),
    Alive("lag 120 ms"),
    Ready(1),
    Counted(1, SNAPSHOT),
    Demanded(3, 9, {"e": EndpointDemand(1, 5, 2, 0, 1)}),
    Explained(2, msgspec.Raw(msgspec.msgpack.encode({"a": [1, None]}))),
    Robots(6, 2, [ROBOT]),
    Drained(0),
    StartSession(4, "e", "r", 600),
    EndSession(5, "id"),
    SessionsUsed([SessionUse("id", "e", "r", 600, True)]),
    IsHere("s"),
    HasLeft("s"),
    CameAgain(7, "s", "a"),
    EarlierEnded(1, 7, 2),
]


def plain(message):
    return msgspec.msgpack.encode(message)


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda message: type(message).__name__)
def test_to_the_worker_and_back(message):
    (body,) = Unpacker().feed(pack(message))
    assert to_worker.decode(body) == message


@pytest.mark.parametrize("message", FROM_WORKER, ids=lambda message: type(message).__name__)
def test_from_the_worker_and_back(message):
    (body,) = Unpacker().feed(pack(message))
    found = from_worker.decode(body)
    assert type(found) is type(message)
    assert plain(found) == plain(message)


def test_no_kind_is_missing_here():
    assert {type(message) for message in TO_WORKER} == set(ToWorker.__args__)
    assert {type(message) for message in FROM_WORKER} == set(FromWorker.__args__)
    assert {type(message) for message in FROM_WORKER} > set(AboutSessions.__args__)


def test_one_directions_messages_are_not_the_others():
    for message in FROM_WORKER:
        with pytest.raises(msgspec.ValidationError):
            to_worker.decode(plain(message))


@settings(deadline=None)
@given(
    which=st.lists(st.sampled_from(range(len(TO_WORKER))), max_size=8),
    steps=st.lists(st.integers(1, 200), min_size=1, max_size=5),
)
def test_in_any_pieces(which, steps):
    wire = b"".join(pack(TO_WORKER[i]) for i in which)
    unpacker = Unpacker()
    found = []
    turn = 0
    while wire:
        size = steps[turn % len(steps)]
        found += [to_worker.decode(body) for body in unpacker.feed(wire[:size])]
        wire = wire[size:]
        turn += 1
    assert found == [TO_WORKER[i] for i in which]


def test_an_incomplete_one_waits():
    unpacker = Unpacker()
    wire = pack(Ask(1))
    assert list(unpacker.feed(wire[:-1])) == []
    assert list(unpacker.feed(b"")) == []
    assert len(list(unpacker.feed(wire[-1:] + wire[:3]))) == 1


@pytest.mark.parametrize("size", [MAX_MESSAGE_BYTES - 3, 2**32 - 1])
def test_oversize_is_refused_before_it_is_read(size):
    with pytest.raises(ValueError, match=str(size)):
        list(Unpacker().feed(size.to_bytes(4, "big")))


def test_the_largest_is_awaited():
    assert list(Unpacker().feed((MAX_MESSAGE_BYTES - 4).to_bytes(4, "big"))) == []


def test_a_large_table_fits():
    replicas = tuple(
        ReplicaSpec(f"replica-{i}", f"http://10.0.{i // 256 % 256}.{i % 256}:30000", slot=i) for i in range(2_000)
    )
    size = len(pack(Patch(TablePatch(1, (EndpointPatch("e", EndpointSpec("e"), replicas),)))))
    assert size * 50 < MAX_MESSAGE_BYTES, "100,000 replicas"
    assert {type(message) for message in FROM_WORKER} > set(AboutTakeovers.__args__)
