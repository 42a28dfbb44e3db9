"""A robot's session in a WebTransport session, and the replicas that the test plays."""

from types import SimpleNamespace

import msgspec
from webtransportkit import Host, SessionBench, one_way, two_way

from router.transport.codec.robot import wire
from router.transport.codec.robot.counters import RobotCounters
from router.transport.codec.robot.server import RobotServer
from router.transport.codec.webtransport.codes import CLOSE_SESSION
from router.transport.codec.webtransport.host import Asked
from tests.transport.codec.robot.robotkit import Replica

ASKED = Asked(b"a.example", b"/arm?x=1", [(b"origin", b"https://page.example"), (b"user-agent", b"b")])


def said(kind, **body):
    return wire.write_frame(kind, msgspec.msgpack.encode(body))


class RobotHost(Host):
    def __init__(self):
        super().__init__()
        self.replicas = []
        self.refusals = []
        self.robots = RobotCounters()
        self.collected = []

    def collect(self, *told):
        self.collected.append(told)
        return True

    def begin_session(self, bearer, asked, now):
        part = self.robots.begin(lambda: "192.0.2.1:5000", "webtransport")
        self.begun.append(RobotServer(bearer, self._on_request, self.refusals.append, part, now, asked, None, self.collect))
        return self.begun[-1]

    @property
    def counters(self):
        return SimpleNamespace(**self.robots.numbers())

    def _on_request(self, stream):
        self.replicas.append(Replica(stream))
        return self.replicas[-1]


class RobotBench(SessionBench):
    """Control on stream 4, commands on stream 8, states from stream 6 on."""

    def __init__(self, cut=None, **options):
        super().__init__(**options)
        self.codec._lanes.host = self.host = RobotHost()
        self.cut = {} if cut is None else {"cut": cut}

    @property
    def replica(self):
        return self.host.replicas[-1]

    def lanes(self, **hello):
        self.feed(4, two_way(0) + said(wire.HELLO, **hello), **self.cut)
        self.feed(8, two_way(0) + b"C", **self.cut)
        return self

    def welcome(self, **hello):
        self.connect()
        self.lanes(**hello)
        self.replica.accept()
        self.flush()
        return self

    def state(self, stream_id, sequence, payload):
        self.feed(stream_id, one_way(0) + wire.state_header(sequence, 0) + payload, end=True, **self.cut)

    def told(self):
        return {frame.kind: msgspec.msgpack.decode(frame.body) for frame in wire.FrameReader().read(self.flow(4).sent)}

    def closed(self):
        ((kind, payload),) = self.capsules()
        assert kind == CLOSE_SESSION
        return int.from_bytes(payload[:4], "big")
