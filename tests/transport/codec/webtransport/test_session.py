"""A WebTransport session's life: settings, CONNECT, streams both ways, datagrams, capsules, times, ends."""

import pytest
from bearer import GET, POST, data, headers, parse, settings
from webtransportkit import CONNECT, SessionBench, capsule, one_way, two_way

from router.errors import Kind, ProxyError, Source
from router.transport.codec.h3 import frames
from router.transport.codec.h3.limits import DRAIN_ROUND_TRIP_S, HALF_OPEN_S
from router.transport.codec.quic.varint import varint
from router.transport.codec.webtransport.codes import (
    BUFFERED_STREAM_REJECTED,
    CLOSE_SESSION,
    DRAIN_SESSION,
    SESSION_GONE,
    to_http3,
)
from router.transport.codec.webtransport.limits import MAX_REASON_BYTES, MAX_SESSIONS

CUT = ProxyError(Kind.DRAINING, Source.ROUTER)
CLOSE = capsule(CLOSE_SESSION, (7).to_bytes(4, "big") + "grüß".encode())


class TestConnect:
    def test_settings(self):
        bench = SessionBench()
        ((kind, payload),) = parse(bench.flow(3).sent[1:])
        pairs = varint(0x33) + varint(1) + varint(0x2B603742) + varint(1) + varint(0xC671706A) + varint(MAX_SESSIONS)
        assert kind == frames.SETTINGS and payload.endswith(pairs)

    def test_it_is_answered_at_once(self, cut):
        bench = SessionBench()
        spoken = bench.connect(cut=cut)
        assert dict(bench.heads(0)[0]) == {":status": "200", "sec-webtransport-http3-draft": "draft02"}
        assert spoken.told == ["connected"] and not bench.requests
        assert (spoken.asked.authority, spoken.asked.path) == (b"a.example", b"/arm?x=1")
        assert spoken.asked.fields == [(b"origin", b"https://page.example")]
        assert not bench.flow(0).fin

    @pytest.mark.parametrize(
        ("offered", "answer"),
        [('"test/1"', '"test/1"'), ('"a", "test/1" , "b"', '"test/1"'), ('"test/2"', None), ("test/1", None)],
    )
    def test_a_protocol_by_name(self, offered, answer):
        bench = SessionBench()
        bench.connect(0, ("wt-available-protocols", offered), fields=[f for f in CONNECT if "draft02" not in f[0]])
        assert dict(bench.heads(0)[0]).get("wt-protocol") == answer
        assert "sec-webtransport-http3-draft" not in dict(bench.heads(0)[0])

    def test_one_after_another_with_the_same_head(self):
        bench = SessionBench()
        first, second = bench.connect(0), bench.connect(4)
        assert first is not second and first.asked.fields == second.asked.fields != []

    def test_more_than_there_may_be(self):
        bench = SessionBench()
        for i in range(MAX_SESSIONS):
            bench.connect(4 * i)
        late = 4 * MAX_SESSIONS
        bench.feed(late, headers(CONNECT))
        assert bench.flow(late).reset_code == frames.REQUEST_REJECTED and bench.is_open
        bench.say(CLOSE, end=True)
        bench.connect(late + 4)
        assert bench.open_sessions == MAX_SESSIONS and bench.status(late + 4) == "200"

    def test_early_it_may_be_a_replay(self):
        bench = SessionBench(greet=False)
        bench.bearer.is_early = True
        bench.feed(0, headers(CONNECT))
        assert bench.status(0) == "425" and not bench.host.begun

    def test_another_protocol_is_not_served(self):
        bench = SessionBench()
        bench.feed(0, headers([*CONNECT[:4], (":protocol", "connect-udp")]))
        assert bench.status(0) == "501"

    def test_requests_go_on_beside_it(self, cut):
        bench = SessionBench()
        bench.connect()
        bench.feed(4, headers(POST) + data(b"body"), end=True, cut=cut)
        bench.answer()
        assert bench.request.body == b"body" and bench.body(4) == b"ok" and bench.open_sessions == 1


class TestStreams:
    def test_one_way_of_the_client(self, cut):
        bench = SessionBench()
        spoken = bench.connect()
        bench.feed(6, one_way(0) + b"hello", end=True, cut=cut)
        assert spoken.got == {6: b"hello"} and spoken.ends == {6}
        assert bench.all_credited()

    def test_two_ways(self, cut):
        bench = SessionBench()
        spoken = bench.connect()
        bench.feed(4, two_way(0) + b"hello", cut=cut)
        spoken.flows[4].send(b"answer", True)
        bench.feed(4, b" again", end=True, cut=cut)
        assert spoken.got[4] == b"hello again" and spoken.ends == {4}
        assert bench.flow(4).sent == b"answer" and bench.flow(4).fin
        assert ("gone", 4) in spoken.told and bench.all_credited()
        assert not bench.codec.streams.keys() - {0} and bench.codec.active == 1

    def test_an_end_right_behind_the_id(self, cut):
        bench = SessionBench()
        spoken = bench.connect()
        bench.feed(6, one_way(0), end=True, cut=cut)
        bench.feed(4, two_way(0), end=True, cut=cut, lone_fin=True)
        assert spoken.got == {6: b"", 4: b""} and spoken.ends == {4, 6}

    def test_ids_in_long_forms(self, cut):
        bench = SessionBench()
        spoken = bench.connect()
        bench.feed(6, b"\xc0\0\0\0\0\0\0\x54\xc0\0\0\0\0\0\0\0x", end=True, cut=cut)
        bench.feed(4, b"\x80\0\0\x41\xc0\0\0\0\0\0\0\0y", cut=cut)
        assert spoken.got == {6: b"x", 4: b"y"}

    def test_credit_is_the_applications(self):
        bench = SessionBench()
        spoken = bench.connect()
        spoken.gives_credit = False
        bench.feed(6, one_way(0) + b"hello")
        bench.feed(4, two_way(0) + b"hello")
        assert bench.flow(6).received - bench.flow(6).credited == 5
        assert bench.flow(4).received - bench.flow(4).credited == 5

    def test_ours(self):
        bench = SessionBench()
        spoken = bench.connect(4)
        flow = spoken.bearer.open_stream(unidirectional=True)
        flow.send(b"state", True)
        bench.flush()
        assert bench.flow(flow.id).sent == one_way(4) + b"state"
        assert spoken.told[-1] == ("gone", flow.id) and not bench.codec._lanes.by_flow

    def test_none_while_the_client_allows_no_more(self):
        bench = SessionBench()
        spoken = bench.connect()
        bench.bearer.may_open = 1
        assert spoken.bearer.open_stream(unidirectional=True) is None
        bench.codec.streams_available()
        assert spoken.told[-1] == "available"

    def test_what_waits_is_the_sessions(self):
        bench = SessionBench()
        one, other = bench.connect(), bench.connect(4)
        flow = one.bearer.open_stream(unidirectional=True)
        bench.flow(flow.id).window = 0
        flow.send(b"x" * 1000, False)
        assert one.bearer.unsent_bytes() == 1000 + len(one_way(0)) and other.bearer.unsent_bytes() == 0

    def test_of_several_sessions(self, cut):
        bench = SessionBench()
        one, other = bench.connect(), bench.connect(4)
        bench.feed(6, one_way(4) + b"b", end=True, cut=cut)
        bench.feed(10, one_way(0) + b"a", end=True, cut=cut)
        assert one.got == {10: b"a"} and other.got == {6: b"b"}

    def test_resets_and_stops_with_their_codes(self):
        bench = SessionBench()
        spoken = bench.connect()
        bench.feed(6, one_way(0) + b"x")
        bench.reset(6, to_http3(77))
        bench.feed(4, two_way(0) + b"x")
        bench.stop(4, to_http3(1000))
        bench.feed(10, one_way(0) + b"x")
        bench.reset(10, frames.REQUEST_CANCELLED)
        assert spoken.told[1:] == [("reset", 6, 77), ("gone", 6), ("stopped", 4, 1000), ("reset", 10, 0), ("gone", 10)]

    def test_room_again(self):
        bench = SessionBench()
        spoken = bench.connect()
        bench.feed(4, two_way(0) + b"x")
        bench.flow(4).window = 0
        spoken.flows[4].send(b"x" * 300_000, False)
        bench.flush()
        bench.allow(4, 300_000)
        assert ("drained", 4) in spoken.told


class TestDatagrams:
    def test_both_ways(self):
        bench = SessionBench()
        spoken = bench.connect(4)
        bench.datagram(varint(1) + b"ping")
        assert spoken.told[-1] == ("datagram", b"ping")
        assert spoken.bearer.send_datagram(b"pong") and bench.bearer.datagrams == [b"\x01pong"]
        assert spoken.bearer.max_datagram_bytes() == 1_199
        assert not spoken.bearer.send_datagram(bytes(1_200))

    def test_an_empty_one(self):
        bench = SessionBench()
        spoken = bench.connect()
        bench.datagram(varint(0))
        assert spoken.told[-1] == ("datagram", b"")

    def test_in_a_capsule(self, cut):
        bench = SessionBench()
        spoken = bench.connect()
        bench.say(capsule(0, b"hello") + capsule(0), cut=cut)
        assert spoken.told[1:] == [("datagram", b"hello"), ("datagram", b"")]

    def test_none_go_to_who_takes_none(self):
        bench = SessionBench(greet=False)
        bench.codec.connected()
        spoken = bench.connect()
        assert not spoken.bearer.send_datagram(b"x") and spoken.bearer.max_datagram_bytes() == 0
        bench.feed(2, varint(frames.CONTROL_STREAM) + settings((0x33, 1)))
        assert spoken.bearer.send_datagram(b"x")


class TestBeforeItsConnect:
    """QUIC's streams overtake each other."""

    def test_streams_wait(self, cut):
        bench = SessionBench()
        bench.feed(6, one_way(4) + b"state", end=True, cut=cut)
        bench.feed(8, two_way(4) + b"contr", cut=cut)
        bench.feed(8, b"ol", cut=cut)
        assert bench.flow(6).received - bench.flow(6).credited == 5, "no credit for who waits"
        spoken = bench.connect(4, cut=cut)
        assert spoken.got == {6: b"state", 8: b"control"} and spoken.ends == {6}
        bench.feed(8, b"!", end=True)
        assert spoken.got[8] == b"control!" and bench.all_credited() and not bench.host.rejected

    def test_streams_wait_for_a_head_that_has_begun(self):
        bench = SessionBench()
        head = headers(CONNECT)
        bench.feed(0, head[:10])
        bench.feed(6, one_way(0) + b"state", end=True)
        bench.feed(0, head[10:])
        assert bench.spoken.got == {6: b"state"}

    def test_datagrams_wait(self):
        bench = SessionBench()
        bench.datagram(varint(1) + b"x")
        bench.datagram(varint(0) + b"y")
        one, other = bench.connect(0), bench.connect(4)
        assert ("datagram", b"y") in one.told and ("datagram", b"x") in other.told

    def test_what_was_given_up_meanwhile(self):
        bench = SessionBench()
        bench.feed(6, one_way(8) + b"state")
        bench.reset(6, to_http3(1))
        bench.feed(4, two_way(8) + b"x")
        bench.reset(4, to_http3(2))
        spoken = bench.connect(8)
        assert spoken.got == {4: b"x"} and ("reset", 4, 2) in spoken.told

    def test_not_for_ever(self):
        bench = SessionBench()
        bench.feed(6, one_way(4) + b"state")
        bench.datagram(varint(1) + b"x")
        assert bench.expire() == pytest.approx(bench.limits.head_s)
        assert bench.flow(6).stop_code == BUFFERED_STREAM_REJECTED and bench.host.rejected == 1
        assert ("datagram", b"x") not in bench.connect(4).told

    def test_not_for_a_request(self):
        bench = SessionBench()
        bench.feed(6, one_way(0) + b"state")
        bench.feed(8, two_way(0) + b"x")
        bench.datagram(varint(0) + b"x")
        bench.feed(0, headers(GET), end=True)
        assert bench.flow(6).stop_code == BUFFERED_STREAM_REJECTED
        assert bench.flow(8).stop_code == bench.flow(8).reset_code == BUFFERED_STREAM_REJECTED
        bench.answer()
        assert bench.body(0) == b"ok" and not bench.codec._lanes._datagrams

    def test_an_application_that_ends_at_once(self):
        bench = SessionBench()
        bench.feed(6, one_way(4) + b"a", end=True)
        bench.feed(10, one_way(4) + b"b", end=True)
        begin = bench.host.begin_session

        def begin_session(bearer, asked, now):
            spoken = begin(bearer, asked, now)
            spoken.on_data = lambda flow: bearer.close(1008, b"")
            return spoken

        bench.host.begin_session = begin_session
        spoken = bench.connect(4)
        assert spoken.got == {6: b"a"} and bench.open_sessions == 0 and bench.is_open


class TestEnds:
    def test_the_clients_capsule(self, cut):
        bench = SessionBench()
        spoken = bench.connect()
        bench.feed(6, one_way(0) + b"x")
        bench.feed(4, two_way(0) + b"x")
        flow = spoken.bearer.open_stream(unidirectional=True)
        bench.say(CLOSE, end=True, cut=cut)
        assert spoken.told == ["connected", ("lost", 7, "grüß", True)] and bench.host.over == 1
        assert bench.flow(0).fin and not bench.capsules() and bench.is_open
        assert bench.flow(6).stop_code == bench.flow(4).stop_code == SESSION_GONE
        assert bench.flow(4).reset_code == bench.flow(flow.id).reset_code == SESSION_GONE
        assert not bench.codec.streams and not bench.codec._lanes.sessions
        flow.send(b"late", True)
        assert spoken.bearer.open_stream(unidirectional=True) is None and not spoken.bearer.send_datagram(b"x")

    def test_the_clients_fin_alone(self):
        bench = SessionBench()
        spoken = bench.connect()
        bench.feed(0, end=True)
        assert spoken.told[-1] == ("lost", 0, "", True) and bench.flow(0).fin and bench.host.over == 1

    def test_a_fin_behind_the_head(self):
        bench = SessionBench()
        bench.feed(0, headers(CONNECT), end=True)
        assert bench.spoken.told == ["connected", ("lost", 0, "", True)] and bench.status(0) == "200"

    def test_a_capsule_whose_fin_never_comes(self):
        bench = SessionBench()
        bench.connect()
        bench.bearer.now += 30
        bench.say(CLOSE)
        assert bench.flow(0).fin and bench.host.over == 1
        assert bench.expire() == pytest.approx(HALF_OPEN_S)
        assert bench.flow(0).stop_code is not None and bench.is_open

    @pytest.mark.parametrize("how", ["reset", "stop"])
    def test_a_reset(self, how):
        bench = SessionBench()
        spoken = bench.connect()
        getattr(bench, how)(0)
        assert spoken.told[-1] == ("lost", 0, "", True) and bench.host.over == 1 and bench.is_open

    def test_the_connection_is_lost(self):
        bench = SessionBench()
        one, other = bench.connect(0), bench.connect(4)
        bench.lost()
        assert one.told[-1] == other.told[-1] == ("lost", 0, "", True) and bench.host.over == 2
        assert bench.codec._lanes is None, "nothing leads back to the connection"

    def test_ours(self):
        bench = SessionBench()
        spoken = bench.connect()
        bench.feed(6, one_way(0) + b"x")
        spoken.bearer.close(1013, "ä".encode() * MAX_REASON_BYTES)
        spoken.bearer.close(1000)
        bench.flush()
        ((kind, payload),) = bench.capsules()
        assert kind == CLOSE_SESSION and payload[:4] == (1013).to_bytes(4, "big")
        assert payload[4:].decode() == "ä" * (MAX_REASON_BYTES // 2)
        assert bench.flow(0).fin and bench.flow(6).stop_code == SESSION_GONE
        assert not any(told[0] == "lost" for told in spoken.told) and bench.host.over == 1
        bench.feed(0, end=True)
        assert not bench.codec.streams

    def test_ours_in_the_middle_of_a_stream(self, cut):
        bench = SessionBench()
        spoken = bench.connect()
        spoken.on_data = lambda flow: spoken.bearer.close(1002, b"")
        bench.feed(4, two_way(0) + b"hello", cut=cut)
        assert spoken.got[4] and bench.flow(4).reset_code == SESSION_GONE and bench.is_open

    def test_streams_of_a_session_that_is_gone(self, cut):
        bench = SessionBench()
        bench.connect()
        bench.say(CLOSE)
        bench.feed(6, one_way(0) + b"late", cut=cut)
        bench.feed(4, two_way(0) + b"late", cut=cut)
        assert bench.flow(6).stop_code == bench.flow(4).stop_code == bench.flow(4).reset_code == SESSION_GONE
        bench.feed(0, end=True)
        bench.feed(10, one_way(0) + b"later", cut=cut)
        assert bench.flow(10).stop_code == SESSION_GONE and bench.host.rejected == 3 and bench.is_open
        bench.datagram(varint(0) + b"late")
        assert bench.spoken.told[-1] == ("lost", 7, "grüß", True)


class TestDrains:
    def test_sessions_are_told_and_go_on(self, cut):
        bench = SessionBench()
        spoken = bench.connect()
        bench.codec.drain()
        bench.flush()
        assert spoken.told[-1] == "drain" and bench.capsules() == [(DRAIN_SESSION, b"")]
        assert bench.expire() == pytest.approx(DRAIN_ROUND_TRIP_S) and bench.goaways() == [frames.LAST_STREAM, 4]
        bench.feed(6, one_way(0) + b"a", end=True, cut=cut)
        bench.feed(4, two_way(0) + b"b", cut=cut)
        assert spoken.got == {6: b"a", 4: b"b"}, "streams are no requests"
        bench.feed(8, headers(GET), end=True)
        assert bench.flow(8).reset_code == frames.REQUEST_REJECTED and not bench.requests
        bench.feed(12, headers(CONNECT))
        assert bench.flow(12).reset_code == frames.REQUEST_REJECTED and bench.open_sessions == 1
        bench.say(CLOSE, end=True)
        bench.expire()
        assert bench.close_code == frames.NO_ERROR

    def test_a_stream_that_waits_when_the_last_session_ends(self):
        bench = SessionBench()
        bench.connect()
        bench.codec.drain()
        bench.flush()
        bench.expire()
        bench.feed(4, two_way(0)[:1])
        bench.say(CLOSE, end=True)
        assert bench.is_open
        bench.feed(4, two_way(0)[1:] + b"x")
        bench.flush()
        assert bench.close_code == frames.NO_ERROR, "nobody is left"

    def test_a_late_request_when_the_last_session_has_ended(self):
        bench = SessionBench()
        bench.connect()
        bench.codec.drain()
        bench.flush()
        bench.expire()
        bench.feed(4, headers(GET)[:3])
        bench.say(CLOSE, end=True)
        bench.feed(4, headers(GET)[3:])
        bench.flush()
        bench.expire()
        assert bench.close_code == frames.NO_ERROR

    def test_without_sessions_late_streams_are_not_looked_at(self):
        bench = SessionBench()
        bench.feed(0, headers(POST))
        bench.codec.drain()
        bench.flush()
        bench.expire()
        bench.feed(4, two_way(0))
        assert bench.flow(4).reset_code == frames.REQUEST_REJECTED

    def test_retire(self):
        bench = SessionBench()
        spoken = bench.connect()
        bench.codec.retire(bench.now)
        bench.flush()
        assert spoken.told[-1] == "retire" and bench.capsules() == [(DRAIN_SESSION, b"")]

    def test_one_that_begins_in_a_drain_is_told(self):
        bench = SessionBench()
        bench.feed(0, headers(POST))
        bench.codec.drain()
        bench.flush()
        assert bench.connect(4).told == ["connected", "retire"]

    def test_a_cut(self):
        bench = SessionBench()
        spoken = bench.connect()
        bench.codec.cut(CUT)
        bench.flush()
        assert spoken.told[-1] == ("cut", "draining")
        assert bench.capsules() == [(CLOSE_SESSION, (1012).to_bytes(4, "big") + b"cut")]
        assert bench.host.over == 1


class TestTimes:
    def test_deadlines_are_the_connections(self):
        bench = SessionBench()
        spoken = bench.connect()
        spoken.deadline = bench.now + 3
        assert bench.codec.next_deadline() <= bench.now + 3
        bench.bearer.now += 4
        bench.codec.handle_deadline(bench.now)
        assert spoken.told[-1] == "deadline"

    def test_the_flush_knows_the_time(self):
        bench = SessionBench()
        spoken = bench.connect()
        bench.bearer.now += 9
        bench.flush()
        assert spoken.times[-1] == spoken.bearer.now == bench.now

    def test_callbacks_know_the_time(self):
        bench = SessionBench()
        spoken = bench.connect()
        bench.bearer.now += 9
        seen = []
        spoken.on_data = lambda flow: seen.append(spoken.bearer.now)
        bench.feed(6, one_way(0) + b"x")
        assert seen == [bench.now]

    def test_one_in_use_is_not_idle(self):
        bench = SessionBench(idle_s=100.0)
        bench.connect()
        for _ in range(4):
            bench.bearer.now += 60
            bench.datagram(varint(0) + b"x")
            bench.codec.handle_deadline(bench.now)
        assert bench.open_sessions == 1
        bench.bearer.now += 101
        bench.codec.handle_deadline(bench.now)
        bench.flush()
        assert bench.spoken.told[-1] == ("cut", "idle_timeout") and bench.open_sessions == 0
        assert bench.capsules()[0][0] == CLOSE_SESSION
