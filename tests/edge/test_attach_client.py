"""The replica's side: when it says its token, what a router may not do, and how it ends."""

import asyncio

import pytest
import pytest_asyncio
from attachfakes import FakeBearer, FakeFlow, make_reactor, until

from router.core import Peer
from router.edge import attach_client, attach_side
from router.edge.attach_client import ATTACH_LIMIT_S, AttachCalls, AttachClient
from router.transport.codec.attach import control
from router.transport.codec.robot.wire import FrameReader, write_frame

pytestmark = pytest.mark.asyncio


class FakeListener:
    def __init__(self):
        self.reactor = make_reactor()


class Echo(asyncio.Protocol):
    """In the place of the listener's connection."""

    made = ()

    def __init__(self, listener, peer):
        Echo.made = (*Echo.made, self)

    retired = False

    def connection_made(self, transport):
        self.transport = transport

    def retire(self, now):
        self.retired = True

    def data_received(self, data):
        self.transport.write(data.upper())


class Rig:
    def __init__(self):
        self.told = []
        self.bearer = FakeBearer(0)
        calls = AttachCalls(
            lambda body: self.told.append(("attached", body.address)),
            lambda: self.told.append(("leaving",)),
            lambda code, reason: self.told.append(("lost", code, reason)),
            lambda punch: control.Punching(punch.n, [("192.0.2.1", 7)]),
        )
        hello = control.Attach("gpu-7", "secret", "pem")
        self.client = AttachClient(self.bearer, hello, FakeListener(), Peer(b"192.0.2.9"), calls, 0.0)

    def connect(self):
        self.client.connected()
        (self.control,) = self.bearer.flows
        return self

    def say(self, body, end=False):
        data = body if isinstance(body, bytes) else control.encode(body)
        self.client.stream_data(self.control, data, end)

    def heard(self):
        return [control.decode(frame) for frame in FrameReader().read(self.control.sent)]


@pytest_asyncio.fixture
async def rig(monkeypatch):
    monkeypatch.setattr(attach_client, "ServerConnection", Echo)
    rig = Rig()
    yield rig
    if not any(what[0] == "lost" for what in rig.told):
        rig.client.connection_lost(0, "over", by_peer=False)
    for made in Echo.made:
        if hasattr(made, "transport"):
            made.transport.abort()
    Echo.made = ()
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - connections under way
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.005)


async def test_it_says_who_it_is_once_the_router_has_proven_itself(rig):
    assert not rig.bearer.flows
    assert rig.connect().heard() == [control.Attach("gpu-7", "secret", "pem")]
    rig.say(control.Attached(("192.0.2.5", 4)))
    assert rig.told == [("attached", ("192.0.2.5", 4))]
    assert rig.client.next_deadline() is None


async def test_a_router_that_does_not_answer(rig):
    rig.connect()
    assert rig.client.next_deadline() == ATTACH_LIMIT_S
    rig.client.handle_deadline(ATTACH_LIMIT_S)
    assert rig.bearer.closed[0] == control.BROKEN
    assert rig.told[-1][0] == "lost"


async def test_a_stream_is_a_connection_of_the_listener(rig):
    rig.connect()
    flow = FakeFlow(1)
    rig.client.stream_opened(flow)
    rig.client.stream_data(flow, b"before it is connected, ", False)
    assert flow.credited == 0
    await until(lambda: flow.sent)
    rig.client.stream_data(flow, b"and after", False)
    await until(lambda: flow.sent == b"BEFORE IT IS CONNECTED, AND AFTER")
    assert flow.credited == 33
    rig.client.stream_data(flow, b"", True)
    await until(lambda: flow.ended)


async def test_a_stream_that_ends_before_it_is_connected(rig):
    rig.connect()
    flow = FakeFlow(1)
    rig.client.stream_opened(flow)
    rig.client.stream_reset(flow, 0)
    await until(lambda: flow.reset_code is not None or flow.ended)


async def test_what_a_router_may_not_do(rig):
    rig.connect()
    rig.client.stream_opened(FakeFlow(3))
    assert rig.bearer.closed[0] == control.BROKEN


@pytest.mark.parametrize(
    ("data", "end"),
    [(write_frame(0x11, b"\xc1"), False), (control.encode(control.Attach("a", "b")), False), (b"", True),
     (b"\x01\x80\xff\xff\xff" + bytes(100), False)],
    ids=["malformed", "ours", "end", "large"],
)  # fmt: skip
async def test_what_breaks_the_protocol(rig, data, end):
    rig.connect()
    rig.say(data, end)
    assert rig.bearer.closed[0] == control.BROKEN
    assert [what[0] for what in rig.told] == ["lost"]


async def test_control_that_is_reset(rig):
    rig.connect()
    rig.client.stream_reset(rig.control, 0)
    assert rig.bearer.closed[0] == control.BROKEN


async def test_a_router_that_leaves(rig):
    rig.connect()
    rig.say(control.Leaving())
    assert rig.told == [("leaving",)]
    assert rig.bearer.closed is None


async def test_a_robot_is_announced(rig):
    rig.connect()
    rig.say(control.Punch(5, "u", b"k", "t", []))
    assert rig.heard()[-1] == control.Punching(5, [("192.0.2.1", 7)])


async def test_it_drains(rig):
    rig.connect()
    flow = FakeFlow(1)
    rig.client.stream_opened(flow)
    await until(lambda: Echo.made and hasattr(Echo.made[0], "transport"))
    rig.client.drain()
    assert rig.bearer.closed is None
    Echo.made[0].transport.close()
    await until(lambda: flow.ended)
    rig.client.stream_data(flow, b"", True)
    rig.client.stream_gone(flow)
    assert rig.bearer.closed == (control.DONE, "draining")


async def test_a_router_says_once_that_it_leaves(rig):
    """More often it would have us dial as often."""
    rig.connect()
    for _ in range(100):
        rig.say(control.Leaving())
    assert rig.told == [("leaving",)]


async def test_a_router_that_takes_no_answers_is_left(rig):
    rig.connect()
    rig.control.unsent_bytes = attach_side.MAX_UNREAD_BYTES + 1
    rig.say(control.Punch(5, "u", b"k", "t", []))
    assert rig.bearer.closed[0] == control.BROKEN


async def test_what_the_router_keeps_for_the_next_request_moves_to_the_better_way(rig):
    """Workers of the router keep connections here: as long as they are used, the one that is left would never end."""
    rig.connect()
    kept, gone, late = FakeFlow(1), FakeFlow(5), FakeFlow(9)
    rig.client.stream_opened(kept)
    rig.client.stream_opened(gone)
    await until(lambda: len(Echo.made) == 2 and all(hasattr(made, "transport") for made in Echo.made))
    rig.client.stream_reset(gone, 1)
    await until(lambda: gone.reset_code is not None)
    rig.client.stream_gone(gone)
    rig.client.leave(0.0)
    rig.client.stream_opened(late)  # was on its way
    assert [made.retired for made in Echo.made] == [True, False, True]
    assert rig.bearer.closed is None
    for flow in (kept, late):
        rig.client.stream_reset(flow, 1)
        rig.client.stream_gone(flow)
    assert rig.bearer.closed == (control.DONE, "draining")
