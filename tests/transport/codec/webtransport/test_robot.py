"""RobotServer in a WebTransport session: lanes that overtake each other, what HELLO may leave out, codes, ends."""

import msgspec
import pytest
from robotsessionkit import ASKED, RobotBench, said
from webtransportkit import one_way, two_way

from router.errors import Kind, ProxyError, Source
from router.transport.codec.h3.limits import HALF_OPEN_S
from router.transport.codec.quic.varint import varint
from router.transport.codec.robot import wire
from router.transport.codec.robot.asked import make_request
from router.transport.codec.robot.control import Hello
from router.transport.codec.robot.limits import GOODBYE_S, HELLO_LIMIT_S, PAGE_S
from router.transport.codec.webtransport.codes import CLOSE_SESSION, SESSION_GONE, to_http3
from router.transport.codec.webtransport.host import Asked


@pytest.fixture
def bench(cut):
    return RobotBench(cut)


class TestLanes:
    def test_all_of_them(self, bench):
        bench.welcome()
        assert bench.told()[wire.WELCOME]["replica"] == "r1"
        bench.state(6, 1, b"observation")
        bench.feed(8, wire.command_header(4, 0, is_text=True) + b"stop", **bench.cut)
        assert bench.replica.messages == [b"observation", "stop"]
        bench.replica.binary(b"metadata")
        bench.replica.binary(b"action")
        bench.flush()
        assert bench.flow(8).sent == wire.command_header(8, 0, is_text=False) + b"metadata"
        assert bench.flow(7).sent == one_way(0) + wire.state_header(1, 0) + b"action"
        bench.datagram(varint(0) + wire.telemetry(1, b"hot"))
        bench.datagram(varint(0) + bytes((wire.PING,)) + msgspec.msgpack.encode({"n": 1, "t": 5}))
        ((session, authority, sequence, payload, _),) = bench.host.collected
        assert (session, authority) == (bench.told()[wire.WELCOME]["session"], ASKED.authority)
        assert (sequence, payload) == (1, b"hot")
        assert bench.host.counters.robot_telemetry_in == 1 and bench.bearer.datagrams[0][:2] == bytes((0, wire.PONG))

    def test_commands_may_overtake_control(self, bench):
        bench.connect()
        bench.feed(8, two_way(0) + b"C" + wire.command_header(4, 0, is_text=True) + b"stop", **bench.cut)
        assert not bench.host.replicas
        bench.feed(4, two_way(0) + said(wire.HELLO), **bench.cut)
        bench.replica.accept()
        bench.flush()
        assert bench.replica.messages == ["stop"]

    def test_all_may_overtake_the_connect(self, bench):
        bench.feed(6, one_way(12) + wire.state_header(1, 0) + b"state", end=True, **bench.cut)
        bench.feed(4, two_way(12) + b"C", **bench.cut)
        bench.feed(8, two_way(12) + said(wire.HELLO), **bench.cut)
        bench.connect(12)
        bench.replica.accept()
        bench.flush()
        assert bench.replica.messages == [b"state"] and bench.flow(8).sent

    def test_an_older_state_is_stopped_with_the_code_of_http3(self, bench):
        bench.welcome()
        bench.feed(6, one_way(0) + wire.state_header(1, 0) + b"half", **bench.cut)
        bench.state(10, 2, b"whole")
        assert bench.replica.messages == [b"whole"] and bench.flow(6).stop_code == to_http3(wire.STALE)

    def test_a_reply_that_is_given_up(self, bench):
        bench.welcome()
        bench.replica.binary(b"metadata")
        bench.replica.binary(bytes(100_000))
        bench.flow(7).window = 0
        bench.replica.binary(b"newer")
        bench.flush()
        assert bench.flow(7).reset_code == to_http3(wire.STALE) and bench.flow(11).sent.endswith(b"newer")

    @pytest.mark.parametrize("first", [said(wire.BYE), b"C", b"\x40"])
    def test_a_third_two_way_stream(self, bench, first):
        bench.welcome()
        bench.feed(12, two_way(0) + first, **bench.cut)
        assert bench.closed() == wire.BROKEN and bench.host.counters.robot_faults == 1
        assert bench.flow(12).reset_code == SESSION_GONE and bench.is_open

    def test_two_sessions_on_one_connection(self, bench):
        bench.welcome()
        bench.connect(12)
        bench.feed(16, two_way(12) + said(wire.HELLO, path="/other"), **bench.cut)
        one, other = bench.host.replicas
        other.accept()
        bench.flush()
        bench.feed(6, one_way(12) + wire.state_header(1, 0) + b"x", end=True)
        assert (one.messages, other.messages) == ([], [b"x"]) and other.head.shape.path == b"/other"
        assert bench.host.counters.robot_sessions_open == 2


class TestEnds:
    def test_a_bye(self, bench):
        bench.welcome()
        bench.feed(4, said(wire.BYE), **bench.cut)
        assert bench.closed() == wire.DONE and bench.replica.closed == wire.DONE
        assert bench.host.counters.robot_sessions_open == 0 and bench.host.over == 1

    def test_the_clients_close(self, bench):
        bench.welcome()
        bench.say(b"\x68\x43\x04" + (1000).to_bytes(4, "big"), end=True, **bench.cut)
        assert bench.replica.closed == wire.DONE and bench.host.counters.robot_sessions_open == 0

    def test_a_page_that_is_gone(self, bench):
        bench.welcome()
        bench.reset(0)
        assert bench.replica.closed == wire.GOING and bench.host.counters.robot_sessions_open == 0

    def test_a_replicas_close_comes_behind_what_it_said(self, bench):
        bench.welcome()
        bench.flow(8).window = 0
        bench.replica.binary(b"last words")
        bench.replica.close(4_001, "enough")
        bench.flush()
        assert not bench.flow(0).fin
        bench.allow(8, 1_000)
        bench.reset(4)  # what a client answers to STOP_SENDING
        bench.reset(8)
        assert not bench.capsules(), "the page may not have read it yet"
        assert bench.expire() == pytest.approx(PAGE_S)
        assert bench.flow(8).sent.endswith(b"last words") and bench.closed() == 4_001

    def test_a_page_that_has_come_again_gets_a_moment_to_read_and_its_replica_is_free(self, bench):
        bench.welcome()
        (session,) = bench.host.begun
        bench.replica.binary(b"last words")
        session.continuity.supersede()
        assert bench.replica.error.kind is Kind.CLIENT_GONE
        bench.flush()
        assert not bench.capsules()
        assert bench.expire() == pytest.approx(PAGE_S)
        assert bench.closed() == wire.NOT_ALLOWED and bench.capsules()[0][1][4:] == b"superseded"
        assert bench.host.counters.robot_superseded == 1 and bench.is_open

    def test_a_client_that_does_not_take_them(self, bench):
        bench.welcome()
        bench.flow(8).window = 0
        bench.replica.binary(b"last words")
        bench.replica.close(1_011)
        bench.flush()
        assert bench.expire() == pytest.approx(GOODBYE_S)
        assert bench.closed() == 1_011

    def test_no_hello(self):
        bench = RobotBench()
        bench.connect()
        assert bench.expire() == pytest.approx(HELLO_LIMIT_S)
        assert bench.closed() == wire.BROKEN
        assert bench.expire() <= HALF_OPEN_S

    def test_a_drain(self, bench):
        bench.connect()
        bench.codec.drain()
        bench.flush()
        bench.expire()
        kinds = [kind for kind, _ in bench.capsules()]
        assert kinds[-1] == CLOSE_SESSION and bench.capsules()[-1][1][:4] == (1012).to_bytes(4, "big")

    def test_a_drain_lets_a_robot_work_on(self, bench):
        bench.welcome()
        bench.codec.drain()
        bench.flush()
        bench.state(6, 1, b"on")
        assert bench.replica.messages == [b"on"]
        bench.codec.cut(ProxyError(Kind.DRAINING, Source.ROUTER))
        bench.flush()
        assert bench.capsules()[-1][1][:4] == (1012).to_bytes(4, "big")

    def test_refused(self, bench):
        bench.connect()
        bench.lanes()
        bench.replica.refuse(401, "unauthorized")
        bench.flush()
        assert bench.told()[wire.REFUSED]["status"] == 401
        bench.reset(4)
        bench.reset(8)
        assert bench.expire() == pytest.approx(GOODBYE_S), "a page closes by itself, and only then"
        assert bench.closed() == 1008


class TestHello:
    def test_leaves_out_what_the_connect_said(self, bench):
        bench.connect(0, ("x-more", "1"))
        bench.lanes(headers=[("Authorization", "Bearer t")])
        shape = bench.replica.head.shape
        assert (shape.authority, shape.path, shape.authorization) == (b"a.example", b"/arm?x=1", b"Bearer t")
        assert (b"origin", b"https://page.example") in shape.fields and (b"x-more", b"1") in shape.fields
        assert not any(name.startswith(b"sec-webtransport") for name, _ in shape.fields)

    def test_that_is_malformed(self, bench):
        bench.connect()
        bench.lanes(headers=[("bad name", "x")])
        assert bench.told()[wire.REFUSED]["status"] == 400 and bench.host.refusals

    def request(self, asked=ASKED, **hello):
        return make_request(Hello(**hello), asked)

    def test_overrules_the_connect(self):
        authority, path, fields = self.request(authority="A.example", path="/x", headers=[("User-Agent", "mine")])
        assert (authority, path) == (b"A.example", b"/x")
        assert fields == [(b"origin", b"https://page.example"), (b"user-agent", b"mine")]

    def test_a_page_says_nothing_for_its_browser(self):
        forged = [("Origin", "https://bank.example"), ("cookie", "a=b"), ("sec-fetch-site", "none"), ("proxy-x", "y")]
        _, _, fields = self.request(headers=[*forged, ("referer", "x"), ("host", "y"), ("x-mine", "z")])
        assert fields == [*ASKED.fields, (b"x-mine", b"z")]

    def test_who_is_no_page_says_what_it_likes(self):
        asked = Asked(b"a.example", b"/", [(b"user-agent", b"b")])
        _, _, fields = self.request(asked, headers=[("origin", "x"), ("cookie", "a=b")])
        assert fields == [(b"user-agent", b"b"), (b"origin", b"x"), (b"cookie", b"a=b")]

    def test_for_another_authority_has_nothing_of_the_connect_but_its_origin(self):
        asked = Asked(b"a.example", b"/", [*ASKED.fields, (b"cookie", b"secret"), (b"authorization", b"secret")])
        _, _, fields = self.request(asked, authority="b.example")
        assert fields == [(b"origin", b"https://page.example")]

    def test_on_a_connection_of_its_own(self):
        assert self.request(None, authority="b.example", headers=[("Origin", "x")]) == (b"b.example", b"/", [(b"origin", b"x")])
