"""H3Server beyond the rules: requests and responses, flow both ways, tunnels, early data, drains, deadlines."""

import pytest
from bearer import (
    CONNECT,
    GET,
    HIGH,
    LOW,
    POST,
    WINDOW,
    FakeBearer,
    ServerBench,
    data,
    frame,
    headers,
    parse,
    settings,
)
from h1kit import FAILED, response

from router.errors import Kind, ProxyError, Source
from router.stream import HOLD_NO_UPSTREAM, HOLD_PEER_FULL
from router.transport.codec.h3 import frames
from router.transport.codec.h3.limits import DRAIN_ROUND_TRIP_S, MEMO_BLOCKS
from router.transport.codec.websocket import accept_value

CUT = ProxyError(Kind.DRAINING, Source.ROUTER)


class TestGreeting:
    def test_settings_come_first(self):
        bench = ServerBench(greet=False)
        bench.codec.connected()
        bench.flush()
        stream = bench.flow(3).sent
        assert stream[:1] == b"\0"
        ((kind, payload),) = parse(stream[1:])
        assert kind == frames.SETTINGS and payload == b"\x06\x80\x01\0\0\x08\x01"

    def test_they_are_said_once(self):
        bench = ServerBench()
        bench.codec.connected()
        bench.codec.streams_available()
        bench.flush()
        assert len(parse(bench.flow(3).sent[1:])) == 1 and bench.bearer.opened == 1

    def test_they_wait_for_a_stream(self):
        bench = ServerBench(greet=False)
        bench.bearer.may_open = 0
        bench.codec.connected()
        bench.feed(0, headers(GET), end=True)
        bench.answer()
        assert bench.body(0) == b"ok" and not bench.bearer.opened
        bench.bearer.may_open = 3
        bench.codec.streams_available()
        bench.flush()
        assert parse(bench.flow(3).sent[1:])[0][0] == frames.SETTINGS

    def test_requests_need_not_wait_for_the_clients(self):
        bench = ServerBench(greet=False)
        bench.feed(0, headers(GET), end=True)
        bench.answer()
        assert bench.body(0) == b"ok"


class TestRequests:
    def test_one(self, cut):
        bench = ServerBench()
        fields = [("content-length", "5"), ("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers"), ("x-request-id", "r")]
        bench.feed(0, headers([*POST, *fields]) + data(b"he") + data(b"llo"), end=True, cut=cut)
        receiver = bench.request
        assert (receiver.body, receiver.ended, receiver.head.length) == (b"hello", True, 5)
        shape = receiver.head.shape
        assert (shape.method, shape.path, shape.authority, shape.version) == (b"POST", b"/", b"a.example", b"HTTP/3")
        assert shape.sends_te and shape.takes_trailers and not shape.is_grpc
        assert shape.known == {b"x-request-id": b"r"} and shape.fields == [(b"cookie", b"a=1; b=2")]
        assert bench.all_credited()

    def test_an_end_is_told_with_what_it_came_with(self):
        bench = ServerBench()
        bench.feed(0, headers(GET), end=True)
        assert bench.request.ended and not bench.request.calls
        bench.feed(4, headers(POST) + data(b"x"), end=True)
        assert bench.request.ended and bench.request.calls == 1

    def test_the_same_section_is_decoded_once(self):
        bench = ServerBench()
        for i in range(3):
            bench.feed(4 * i, headers(GET), end=True)
        shapes = [receiver.head.shape for receiver in bench.requests]
        assert shapes[0] is shapes[1] is shapes[2]
        for i in range(2 * MEMO_BLOCKS):
            bench.feed(400 + 4 * i, headers([*GET, ("x-n", str(i))]), end=True)
            bench.answer()
        assert len(bench.codec._memo) <= MEMO_BLOCKS
        assert bench.requests[-1].head.shape.fields == [(b"x-n", b"%d" % (2 * MEMO_BLOCKS - 1))]

    def test_a_refused_head_is_not_remembered(self):
        bench = ServerBench()
        for i in range(2):
            bench.feed(4 * i, headers(GET[1:]), end=True)
            assert bench.flow(4 * i).reset_code == frames.MESSAGE_ERROR

    def test_trailers(self, cut):
        bench = ServerBench()
        forbidden = [("host", "evil"), ("x-router-error", "no"), ("authorization", "x"), ("x-router-key", "k"),
                     ("x-forwarded-for", "1.2.3.4"), ("content-length", "3")]  # fmt: skip
        stream = headers(POST) + data(b"x") + headers([("x-sum", "7"), *forbidden])
        bench.feed(0, stream, cut=cut)
        assert bench.request.trailers is None, "something may yet follow"
        bench.feed(0, end=True)
        assert bench.request.trailers == [(b"x-sum", b"7")] and bench.request.body == b"x"

    def test_a_large_body_is_handed_on_as_it_comes(self):
        bench = ServerBench()
        bench.feed(0, headers(POST) + frame(frames.DATA, length=1 << 30))
        seen = []
        bench.request.request_data = lambda data, end: seen.append(data)
        piece = b"x" * 65_536
        for _ in range(1_000):
            bench.feed(0, piece)
        assert len(seen) == 1_000 and all(data is piece for data in seen) and bench.all_credited()

    @pytest.mark.parametrize(
        ("content_type", "is_grpc"),
        [("application/grpc", True), ("application/grpc+proto", True), ("application/grpc-web", False)],
    )
    def test_grpc_is_known_by_its_type(self, content_type, is_grpc):
        bench = ServerBench()
        bench.feed(0, headers([*POST, ("content-type", content_type)]))
        assert bench.request.head.shape.is_grpc is is_grpc

    def test_streams_may_come_in_any_order(self):
        bench = ServerBench()
        for i in (8, 0, 4):
            bench.feed(i, headers(GET), end=True)
        assert len(bench.requests) == 3


class TestResponses:
    def test_in_any_order(self):
        bench = ServerBench()
        for i in (0, 4, 8):
            bench.feed(i, headers(GET), end=True)
        for i in (2, 0, 1):
            bench.answer(bench.requests[i], body=b"%d" % i)
        assert [bench.body(s) for s in (0, 4, 8)] == [b"0", b"1", b"2"]
        assert not bench.codec.streams and not bench.codec.active

    def test_a_shapes_section_is_made_once(self):
        bench = ServerBench()
        head = response(200, 2, [(b"content-type", b"application/json"), (b"x-a", b"b" * 200)])
        for i in range(2):
            bench.feed(4 * i, headers(GET), end=True)
            head.added = [(b"x-request-id", b"%d" % i)]
            bench.request.stream.send_head(head, True)
            bench.flush()
            assert bench.heads(4 * i) == [
                [(":status", "200"), ("content-type", "application/json"), ("x-a", "b" * 200), ("content-length", "2"),
                 ("x-request-id", str(i))]
            ]  # fmt: skip
        assert head.shape.h3_block and not head.shape.h2_block

    def test_informational_then_final_then_trailers(self):
        bench = ServerBench()
        bench.feed(0, headers(POST))
        stream = bench.request.stream
        stream.send_informational(response(100))
        stream.send_informational(response(103, fields=[(b"link", b"</a>")]))
        bench.feed(0, data(b"x"), end=True)
        stream.send_head(response(200), False)
        stream.send_data(b"message", False)
        stream.send_trailers([(b"grpc-status", b"0")])
        bench.flush()
        assert [dict(head) for head in bench.heads(0)] == [
            {":status": "100"}, {":status": "103", "link": "</a>"}, {":status": "200"}, {"grpc-status": "0"},
        ]  # fmt: skip
        assert bench.body(0) == b"message" and bench.flow(0).fin and not bench.codec.streams

    def test_trailers_of_which_nothing_is_left(self):
        bench = ServerBench()
        bench.feed(0, headers(POST), end=True)
        bench.request.stream.send_head(response(200), False)
        bench.request.stream.send_trailers([])
        bench.flush()
        assert len(bench.frames(0)) == 1 and bench.flow(0).fin

    def test_trailers_alone(self):
        """As gRPC answers a call that it refuses."""
        bench = ServerBench()
        bench.feed(0, headers([*POST, ("content-type", "application/grpc"), ("te", "trailers")]), end=True)
        bench.answer(body=b"", fields=[(b"content-type", b"application/grpc"), (b"grpc-status", b"14")])
        assert dict(bench.heads(0)[0])["grpc-status"] == "14" and bench.flow(0).fin and len(bench.frames(0)) == 1

    @pytest.mark.parametrize("size", [1, 63, 64, 4_095, 4_096, 16_384, 100_000])
    def test_bodies_of_every_size(self, size):
        bench = ServerBench()
        bench.feed(0, headers(GET), end=True)
        bench.answer(body=b"x" * size)
        assert len(bench.body(0)) == size and bench.flow(0).fin

    def test_no_body_for_head_and_304(self):
        bench = ServerBench()
        bench.feed(0, headers([(":method", "HEAD"), *GET[1:]]), end=True)
        bench.answer(body=b"not sent")
        bench.feed(4, headers(GET), end=True)
        bench.answer(status=304, body=b"not sent")
        assert bench.body(0) == bench.body(4) == b""
        assert dict(bench.heads(0)[0])["content-length"] == "8"
        assert not bench.codec.streams

    def test_no_body_for_a_head_that_is_refused(self):
        bench = ServerBench()
        bench.feed(0, headers([(":method", "HEAD"), *GET[1:], *((f"x-{i}", "y") for i in range(200))]), end=True)
        assert bench.status(0) == "431" and bench.body(0) == b""

    def test_nor_for_one_that_nobody_read(self):
        bench = ServerBench()
        flow = bench.feed(0, frame(frames.HEADERS, length=1 << 20))
        assert bench.status(0) == "431" and bench.body(0) == b"" and flow.fin and flow.stop_code == frames.NO_ERROR
        assert "content-length" not in dict(bench.heads(0)[0])

    def test_an_early_answer_stops_the_upload(self):
        bench = ServerBench()
        flow = bench.feed(0, headers(POST) + data(b"x"))
        bench.answer()
        assert flow.stop_code == frames.NO_ERROR and flow.reset_code is None and bench.body(0) == b"ok"
        bench.reset(0, frames.NO_ERROR)
        assert bench.request.error is None and not bench.codec.streams

    def test_an_early_answer_to_what_is_held(self):
        bench = ServerBench(hold=HOLD_NO_UPSTREAM)
        bench.feed(0, headers(POST) + data(b"x" * 1_000), end=True)
        bench.answer()
        assert bench.body(0) == b"ok" and not bench.codec.active and bench.all_credited()

    def test_a_failed_response_is_reset(self):
        bench = ServerBench()
        flow = bench.feed(0, headers(GET), end=True)
        bench.request.stream.send_head(response(200), False)
        bench.request.stream.reset(FAILED)
        bench.flush()
        assert flow.reset_code == 0x102 and flow.stop_code is None and not bench.codec.streams

    def test_a_failed_response_to_an_upload_stops_it_too(self):
        bench = ServerBench()
        flow = bench.feed(0, headers(POST))
        bench.request.stream.reset(FAILED)
        bench.flush()
        assert flow.reset_code == flow.stop_code == 0x102

    @pytest.mark.parametrize("how", ["reset", "stop", "lost"])
    def test_a_client_that_cancels(self, how):
        bench = ServerBench()
        bench.feed(0, headers(POST) + data(b"x"))
        if how == "lost":
            bench.lost()
        else:
            getattr(bench, how)(0)
            assert bench.flow(0).reset_code == frames.REQUEST_CANCELLED and bench.is_open
        assert bench.request.error.kind is Kind.CLIENT_GONE
        stream = bench.request.stream
        stream.send_informational(response(103))
        stream.send_head(response(200), False)
        stream.send_data(b"to nobody", False)
        stream.send_trailers([(b"a", b"b")])
        stream.reset(FAILED)
        stream.hold(HOLD_PEER_FULL)
        stream.release(HOLD_PEER_FULL)
        assert not bench.flow(0).queued and not bench.codec.active

    def test_a_client_that_stops_what_is_complete(self):
        bench = ServerBench()
        bench.feed(0, headers(GET), end=True)
        bench.flow(0).window = 0
        bench.answer()
        bench.stop(0)
        assert bench.request.error is None and bench.is_open and not bench.codec.streams


class TestFlowOut:
    def start(self, window=0):
        bench = ServerBench(stall_s=10.0)
        bench.feed(0, headers(GET), end=True)
        bench.flow(0).window = window
        bench.request.stream.send_head(response(200), False)
        return bench, bench.request

    def test_a_slow_reader_holds_its_replica(self):
        bench, receiver = self.start()
        receiver.stream.send_data(b"x" * (HIGH + 10), False)
        bench.flush()
        assert not receiver.paused, "all of it may leave with the flush that finds it"
        receiver.stream.send_data(b"y", False)
        assert not receiver.paused, "no send_* calls back"
        bench.flush()
        assert receiver.paused
        bench.allow(0, HIGH - LOW)
        assert receiver.paused
        bench.allow(0, 100)
        assert not receiver.paused
        bench.allow(0, 1 << 30)
        receiver.stream.send_data(b"z", True)
        bench.flush()
        assert len(bench.body(0)) == HIGH + 12 and not bench.codec.streams

    def test_a_fast_reader_never_does(self):
        bench, receiver = self.start(window=1 << 30)
        calls = []
        receiver.pause_response = lambda: calls.append(1)
        for _ in range(50):
            receiver.stream.send_data(b"x" * (4 * HIGH), False)
            bench.flush()
        assert not calls

    def test_other_streams_go_on(self):
        bench, slow = self.start()
        bench.feed(4, headers(GET), end=True)
        other = bench.request
        for _ in range(2):
            slow.stream.send_data(b"x" * HIGH, False)
            bench.flush()
        assert slow.paused and not other.paused
        bench.answer(other)
        assert bench.body(4) == b"ok"

    def test_a_reader_that_stops_is_cut_off(self):
        bench, receiver = self.start()
        receiver.stream.send_data(b"x" * 100_000, False)
        bench.flush()
        assert bench.expire() == pytest.approx(10.0)
        assert receiver.error.kind is Kind.CLIENT_STALLED
        assert bench.flow(0).reset_code == frames.REQUEST_CANCELLED and bench.is_open and not bench.codec.streams

    def test_one_that_is_slow_is_not(self):
        bench, receiver = self.start()
        receiver.stream.send_data(b"x" * 1_000_000, True)
        bench.flush()
        for _ in range(50):
            bench.bearer.now += 9.0
            bench.allow(0, 20_000)
            if bench.codec.next_deadline() <= bench.now:
                bench.codec.handle_deadline(bench.now)
        assert bench.flow(0).reset_code is None and receiver.error is None
        assert len(bench.flow(0).sent) >= 1_000_000

    def test_one_that_takes_a_byte_at_a_time_is(self):
        bench, receiver = self.start()
        receiver.stream.send_data(b"x" * 1_000_000, False)
        bench.flush()
        for _ in range(30):
            bench.bearer.now += 1.0
            bench.allow(0, 100)
            bench.codec.handle_deadline(bench.now)
        assert receiver.error.kind is Kind.CLIENT_STALLED

    def test_an_idle_stream_of_events_is_not_stalled(self):
        """A send long after the last begins a new span of time."""
        bench, receiver = self.start(window=1 << 20)
        for _ in range(10):
            receiver.stream.send_data(b"event", False)
            bench.flush()
            bench.bearer.now += 9.0
            bench.codec.handle_deadline(bench.now)
        bench.flow(0).window = 0
        receiver.stream.send_data(b"x" * 100, False)
        bench.flush()
        bench.bearer.now += 9.0
        bench.codec.handle_deadline(bench.now)
        assert receiver.error is None
        bench.bearer.now += 1.1
        bench.codec.handle_deadline(bench.now)
        assert receiver.error.kind is Kind.CLIENT_STALLED

    def test_what_was_said_whole_is_cut_off_too(self):
        bench, receiver = self.start()
        receiver.stream.send_data(b"x" * 100_000, True)
        bench.flush()
        assert not bench.codec.active and bench.codec.streams
        bench.expire()
        assert bench.flow(0).reset_code == frames.REQUEST_CANCELLED
        assert receiver.error is None and not bench.codec.streams


class TestFlowIn:
    def test_a_held_stream_gets_no_credit(self):
        bench = ServerBench(hold=HOLD_PEER_FULL)
        flow = bench.feed(0, headers(POST))
        head_bytes = flow.credited
        bench.feed(0, frame(frames.DATA, length=WINDOW))
        bench.feed(0, b"x" * (WINDOW - 100))
        assert bench.request.body == b"" and flow.credited == head_bytes
        bench.request.release(HOLD_PEER_FULL)
        assert bench.request.body == b"", "not before the flush"
        bench.flush()
        assert len(bench.request.body) == WINDOW - 100 and bench.all_credited()

    def test_every_reason_is_to_be_released(self):
        bench = ServerBench(hold=HOLD_PEER_FULL | HOLD_NO_UPSTREAM)
        bench.feed(0, headers(POST) + data(b"x"), end=True)
        bench.request.release(HOLD_PEER_FULL)
        bench.flush()
        assert bench.request.body == b""
        bench.request.release(HOLD_NO_UPSTREAM)
        bench.flush()
        assert bench.request.body == b"x" and bench.request.ended

    def test_nothing_is_missed_by_holding_after_every_piece(self, cut):
        held = []

        def hold(receiver, what):
            if what in ("head", "data"):
                receiver.hold(HOLD_PEER_FULL)
                held.append(receiver)

        bench = ServerBench(on_event=hold)
        stream = headers(POST) + data(b"hello") + frame(0x21, b"x") + data(b" world") + headers([("a", "b")])
        bench.feed(0, stream, end=True, cut=cut)
        while held:
            held.pop().release(HOLD_PEER_FULL)
            bench.flush()
        receiver = bench.request
        assert receiver.body == b"hello world" and receiver.ended and receiver.trailers == [(b"a", b"b")]
        assert bench.all_credited()

    def test_held_again_while_it_is_delivered(self):
        bench = ServerBench(hold=HOLD_PEER_FULL)
        bench.feed(0, headers(POST) + data(b"ab") + data(b"cd"), end=True)
        receiver = bench.request
        receiver.on_event = lambda receiver, what: what == "data" and receiver.hold(HOLD_PEER_FULL)
        receiver.release(HOLD_PEER_FULL)
        bench.flush()
        assert receiver.body == b"ab" and not receiver.ended
        receiver.release(HOLD_PEER_FULL)
        bench.flush()
        assert receiver.body == b"abcd" and receiver.ended

    def test_what_comes_between_a_release_and_its_flush_stays_in_order(self):
        bench = ServerBench(hold=HOLD_PEER_FULL)
        bench.feed(0, headers(POST) + data(b"1"))
        bench.request.release(HOLD_PEER_FULL)
        flow = bench.flow(0)
        flow.received += 3
        bench.codec.stream_data(flow, data(b"2"), True)
        assert bench.request.body == b""
        bench.flush()
        assert bench.request.body == b"12" and bench.request.ended

    @pytest.mark.parametrize("how", ["reset", "answer", "fault"])
    def test_what_a_stream_held_is_given_back(self, how):
        bench = ServerBench(hold=HOLD_PEER_FULL)
        bench.feed(0, headers(POST) + data(b"x" * 60_000))
        if how == "reset":
            bench.reset(0)
        elif how == "answer":
            bench.answer()
        else:
            bench.feed(0, settings())
            bench.request.release(HOLD_PEER_FULL)
            bench.flush()
            assert bench.close_code == frames.FRAME_UNEXPECTED
        assert bench.all_credited()

    def test_a_reset_is_told_through_a_hold(self):
        bench = ServerBench(hold=HOLD_PEER_FULL)
        bench.feed(0, headers(POST) + data(b"x"))
        bench.reset(0)
        assert bench.request.error.kind is Kind.CLIENT_GONE


class TestTunnels:
    def open(self, fields=()):
        bench = ServerBench()
        bench.feed(0, headers([*CONNECT, *fields]))
        shape = bench.request.head.shape
        assert shape.upgrade == b"websocket" and shape.success_is_tunnel
        bench.request.stream.send_head(response(200, tunnel=True), False)
        bench.flush()
        return bench

    def test_bytes_both_ways_and_two_ends(self, cut):
        bench = self.open()
        bench.feed(0, data(b"up"), cut=cut)
        bench.request.stream.send_data(b"\x82\x04down", False)
        bench.feed(0, end=True)
        assert bench.request.body == b"up" and bench.request.ended and bench.codec.active
        bench.request.stream.send_data(b"\x88\x00", False)
        bench.request.stream.send_data(b"", True)
        bench.flush()
        assert bench.body(0) == b"\x82\x04down\x88\x00" and not bench.codec.streams
        assert bench.flow(0).reset_code is None and bench.flow(0).stop_code is None

    def test_an_end_with_the_head_waits_for_the_handshake(self):
        bench = ServerBench(hold=HOLD_NO_UPSTREAM)
        bench.feed(0, headers(CONNECT), end=True)
        assert not bench.request.ended
        bench.request.stream.send_head(response(200, tunnel=True), False)
        bench.request.release(HOLD_NO_UPSTREAM)
        bench.flush()
        assert bench.request.ended and bench.status(0) == "200"

    def test_the_replica_may_end_first(self):
        bench = self.open()
        bench.request.stream.send_data(b"\x88\x00", False)
        bench.request.stream.send_data(b"", True)
        bench.feed(0, data(b"late"))
        assert bench.request.body == b"late" and bench.codec.active
        bench.feed(0, end=True)
        assert not bench.codec.streams

    def test_a_handshake_of_http1_carried_through(self):
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        bench = self.open([("sec-websocket-key", key)])
        assert dict(bench.heads(0)[0])["sec-websocket-accept"] == accept_value(key.encode()).decode()

    def test_a_reset_closes_as_websocket_does(self):
        bench = self.open()
        bench.request.stream.reset(CUT)
        bench.flush()
        assert bench.body(0) == b"\x88\x0a\x03\xf4draining" and bench.flow(0).fin
        bench.expire()  # for the client's own end
        assert bench.flow(0).stop_code == frames.REQUEST_CANCELLED and bench.flow(0).reset_code is None
        assert not bench.codec.active

    def test_a_replica_that_ends_without_a_close_frame_gets_one(self):
        bench = self.open()
        bench.request.stream.send_data(b"\x82\x01x", False)
        bench.request.stream.send_data(b"", True)
        bench.flush()
        assert bench.body(0).startswith(b"\x82\x01x\x88")

    def test_no_close_frame_within_a_message(self):
        bench = self.open()
        bench.request.stream.send_data(b"\x82\x7fhalf", False)
        bench.request.stream.reset(FAILED)
        bench.flush()
        assert bench.flow(0).reset_code == 0x102

    def test_refused(self):
        bench = ServerBench()
        bench.feed(0, headers(CONNECT))
        bench.answer(status=403, body=b"no")
        assert bench.status(0) == "403" and bench.body(0) == b"no" and bench.flow(0).stop_code == frames.NO_ERROR


class TestEarlyData:
    def feed(self, method, fields=(), is_early=True, body=b""):
        bench = ServerBench(greet=False)
        bench.bearer.is_early = is_early
        bench.feed(0, headers([(":method", method), *GET[1:], *fields]) + body, end=True)
        return bench

    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
    def test_what_can_be_repeated_is_served_and_marked(self, method, cut):
        bench = self.feed(method)
        assert bench.request.head.added == [(b"early-data", b"1")]
        bench.bearer.is_early = False
        bench.codec.connected()
        bench.feed(4, headers([(":method", method), *GET[1:]]), end=True, cut=cut)
        assert bench.request.head.added == []
        assert bench.requests[0].head.shape is bench.requests[1].head.shape, "the mark is not remembered"

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
    def test_what_cannot_is_too_early(self, method):
        bench = self.feed(method, body=data(b"x"))
        assert not bench.requests and bench.status(0) == "425"
        assert dict(bench.heads(0)[0])["x-router-error"] == "early_data"
        assert bench.refused[0].kind is Kind.EARLY_DATA
        bench.bearer.is_early = False  # a packet of the handshake came behind it
        bench.feed(4, headers([(":method", method), *GET[1:]]), end=True)
        assert not bench.requests, "it is not complete"
        bench.codec.connected()
        bench.feed(8, headers([(":method", method), *GET[1:]]), end=True)
        assert bench.requests

    def test_what_the_engine_calls_early_is(self):
        bench = ServerBench()
        bench.bearer.is_early = True
        bench.feed(0, headers(POST), end=True)
        assert bench.status(0) == "425"

    def test_tunnels_are_too_early(self):
        bench = ServerBench(greet=False)
        bench.bearer.is_early = True
        bench.feed(0, headers(CONNECT))
        assert bench.status(0) == "425"

    def test_a_mark_of_a_proxy_stays_and_is_not_doubled(self):
        """RFC 8470 §5.1: it must not be removed."""
        bench = self.feed("GET", [("early-data", "1")])
        head = bench.request.head
        assert (b"early-data", b"1") in head.shape.fields and head.added == []

    def test_our_settings_leave_before_the_handshake_ends(self):
        bench = self.feed("GET")
        assert bench.flow(3).sent[:2] == b"\0\x04"


class TestDrain:
    def test_two_steps(self):
        bench = ServerBench()
        bench.feed(0, headers(GET), end=True)
        bench.codec.drain()
        bench.codec.drain()
        bench.flush()
        assert bench.goaways() == [frames.LAST_STREAM]
        bench.feed(4, headers(GET), end=True)  # was on its way
        assert bench.expire() == pytest.approx(DRAIN_ROUND_TRIP_S)
        assert bench.goaways() == [frames.LAST_STREAM, 8]
        bench.feed(8, headers(GET), end=True)
        assert len(bench.requests) == 2 and bench.flow(8).reset_code == frames.REQUEST_REJECTED
        for receiver in bench.requests:
            assert bench.is_open
            bench.answer(receiver)
        assert bench.close_code == frames.NO_ERROR and bench.body(0) == bench.body(4) == b"ok"
        assert all(receiver.error is None for receiver in bench.requests)

    def test_a_request_that_overtook_another_is_not_its_end(self):
        bench = ServerBench()
        bench.feed(4, headers(GET), end=True)
        bench.codec.retire(bench.now)
        bench.flush()
        bench.expire()
        assert bench.goaways()[-1] == 8
        bench.feed(0, headers(GET), end=True)
        assert len(bench.requests) == 2

    def test_the_last_id_is_behind_the_highest(self):
        bench = ServerBench()
        for stream_id in (8, 0, 4):
            bench.feed(stream_id, headers(GET), end=True)
        bench.codec.drain()
        bench.flush()
        bench.expire()
        assert bench.goaways()[-1] == 12

    def test_an_idle_connection_hears_the_last_id_before_it_ends(self):
        """A close in the same flush would overtake the GOAWAY: what the client sends then, it may send elsewhere."""
        bench = ServerBench()
        bench.codec.drain()
        bench.flush()
        bench.expire()
        assert bench.is_open and bench.goaways() == [frames.LAST_STREAM, 0]
        bench.feed(0, headers(GET), end=True)
        assert not bench.requests and bench.flow(0).reset_code == frames.REQUEST_REJECTED and bench.is_open
        assert bench.expire() <= DRAIN_ROUND_TRIP_S
        assert bench.close_code == frames.NO_ERROR

    def test_a_late_request_that_was_refused_is_not_waited_for_longer(self):
        bench = ServerBench()
        bench.codec.drain()
        bench.flush()
        bench.expire()
        bench.feed(0, headers(GET), end=True)
        assert bench.flow(0).reset_code == frames.REQUEST_REJECTED and bench.is_open
        bench.codec.stream_gone(bench.flow(0))
        assert bench.close_code == frames.NO_ERROR

    def test_the_last_answer_is_delivered_first(self):
        bench = ServerBench(linger_s=2.0, stall_s=10.0)
        bench.feed(0, headers(GET), end=True)
        bench.flow(0).window = 0
        bench.codec.drain()
        bench.flush()
        bench.bearer.now += DRAIN_ROUND_TRIP_S
        bench.codec.handle_deadline(bench.now)
        bench.answer(body=b"x" * 100_000)
        for _ in range(5):
            bench.bearer.now += 2.1
            bench.allow(0, 19_000)
            bench.codec.handle_deadline(bench.now)
            assert bench.is_open
        bench.allow(0, 10_000)
        assert bench.close_code == frames.NO_ERROR and len(bench.body(0)) == 100_000

    def test_a_reader_that_stops_does_not_keep_it(self):
        bench = ServerBench(linger_s=2.0, stall_s=10.0)
        bench.feed(0, headers(GET), end=True)
        bench.flow(0).window = 0
        bench.answer(body=b"x" * 100_000)
        bench.codec.drain()
        bench.flush()
        for _ in range(10):
            if bench.is_open:
                bench.expire()
        assert bench.close_code == frames.NO_ERROR and bench.now < 1_000 + 30

    def test_a_drain_before_the_greeting(self):
        bench = ServerBench(greet=False)
        bench.codec.drain()
        bench.codec.connected()
        bench.flush()
        assert bench.goaways() == [frames.LAST_STREAM]

    def test_a_last_word_before_the_greeting(self):
        bench = ServerBench(greet=False)
        bench.bearer.may_open = 0
        bench.codec.connected()
        bench.feed(0, headers(GET), end=True)
        bench.codec.drain()
        bench.flush()
        bench.bearer.now += DRAIN_ROUND_TRIP_S
        bench.codec.handle_deadline(bench.now)
        bench.bearer.may_open = 3
        bench.codec.streams_available()
        bench.flush()
        assert bench.goaways() == [4]

    def test_cut(self):
        bench = ServerBench(
            on_event=lambda receiver, what: what == "reset" and receiver.stream.reset(receiver.error)
        )
        bench.feed(0, headers(GET), end=True)
        bench.feed(4, headers(CONNECT))
        bench.request.stream.send_head(response(200, tunnel=True), False)
        bench.feed(8, headers(POST)[:3])
        bench.codec.cut(CUT)
        bench.flush()
        assert [receiver.error for receiver in bench.requests] == [CUT, CUT]
        assert bench.flow(0).reset_code == frames.REQUEST_REJECTED
        assert bench.body(4) == b"\x88\x0a\x03\xf4draining"
        assert bench.flow(8).reset_code == frames.REQUEST_REJECTED and bench.goaways() == [12]
        assert bench.expire() <= bench.limits.linger_s + 0.1
        assert bench.close_code == frames.NO_ERROR

    def test_cut_with_answers(self):
        def answer(receiver, what):
            if what == "reset":
                receiver.stream.send_head(response(503, 2), False)
                receiver.stream.send_data(b"no", True)

        bench = ServerBench(on_event=answer)
        bench.feed(0, headers(GET), end=True)
        bench.codec.cut(CUT)
        bench.flush()
        assert bench.status(0) == "503" and bench.body(0) == b"no"
        assert bench.close_code == frames.NO_ERROR


class TestDeadlines:
    def test_a_client_that_says_nothing(self):
        bench = ServerBench(greet=False, head_s=10.0)
        bench.codec.connected()
        assert bench.expire() == pytest.approx(10.0)
        assert bench.goaways() == [frames.LAST_STREAM]
        assert bench.expire() == pytest.approx(DRAIN_ROUND_TRIP_S)
        assert bench.goaways() == [frames.LAST_STREAM, 0]
        assert bench.expire() == pytest.approx(DRAIN_ROUND_TRIP_S)
        assert bench.close_code == frames.NO_ERROR

    def test_an_idle_connection(self):
        bench = ServerBench(keep_alive_s=75.0)
        bench.feed(0, headers(GET), end=True)
        bench.answer()
        assert bench.expire() == pytest.approx(75.0)
        assert bench.goaways() == [frames.LAST_STREAM]
        bench.feed(4, headers(GET), end=True)  # was on its way
        assert bench.expire() == pytest.approx(DRAIN_ROUND_TRIP_S)
        bench.answer()
        assert bench.body(4) == b"ok" and bench.close_code == frames.NO_ERROR

    def test_one_in_use_is_not(self):
        bench = ServerBench(keep_alive_s=5.0, idle_s=1_000.0)
        bench.feed(0, headers(GET), end=True)
        assert bench.expire() == pytest.approx(1_000.0)
        assert bench.request.error.kind is Kind.IDLE_TIMEOUT and bench.is_open

    @pytest.mark.parametrize("stream", [b"", b"\x01", headers(GET)[:-1], frame(0x21, length=1 << 40)])
    def test_a_slow_head(self, stream):
        bench = ServerBench(head_s=10.0)
        flow = bench.feed(0, stream)
        for _ in range(3):
            bench.bearer.now += 3.0
            if len(stream) > 8:
                bench.feed(0, b"\0" if stream[:1] != b"\x01" else b"")
        assert bench.expire() <= 1.1
        assert bench.status(0) == "408" and flow.stop_code == frames.NO_ERROR and bench.is_open
        assert bench.refused[0].kind is Kind.REQUEST_TIMEOUT and not bench.codec.active

    def test_slow_trailers(self):
        bench = ServerBench(head_s=10.0)
        bench.feed(0, headers(POST) + data(b"x") + headers([("a", "b")])[:-1])
        assert bench.expire() == pytest.approx(10.0)
        assert bench.request.error.kind is Kind.REQUEST_TIMEOUT
        assert bench.flow(0).reset_code == frames.REQUEST_CANCELLED

    def test_trailers_that_came_are_not_slow(self):
        bench = ServerBench(head_s=10.0)
        bench.feed(0, headers(POST) + headers([("a", "b")]), end=True)
        bench.bearer.now += 60.0
        bench.codec.handle_deadline(bench.now)
        assert bench.request.error is None
        bench.answer()
        assert bench.body(0) == b"ok"

    def looked(self, **limits):
        """A bench with one request under way, of which nothing is due for long."""
        bench = ServerBench(head_s=10.0, idle_s=1_000.0, **limits)
        bench.feed(0, headers(POST))
        bench.bearer.now += 20.0
        bench.codec.handle_deadline(bench.now)
        assert bench.codec.next_deadline() > bench.now + 900.0
        return bench

    def test_a_wait_for_trailers_is_looked_at_in_time(self):
        bench = self.looked()
        watches = bench.bearer.watches
        bench.feed(0, headers([("a", "b")])[:-1])
        assert bench.bearer.watches > watches and bench.codec.next_deadline() <= bench.now + 10.0

    def test_a_reader_is_looked_at_in_time(self):
        bench = self.looked(stall_s=30.0)
        watches = bench.bearer.watches
        bench.request.stream.send_head(response(200), False)
        bench.flush()
        assert bench.bearer.watches > watches and bench.codec.next_deadline() <= bench.now + 30.0

    def test_half_a_tunnel_is_looked_at_in_time(self):
        bench = ServerBench(idle_s=1_000.0)
        bench.feed(0, headers(CONNECT))
        bench.request.stream.send_head(response(200, tunnel=True), False)
        bench.flush()
        bench.bearer.now += 100.0
        bench.codec.handle_deadline(bench.now)
        bench.feed(0, data(b"x"))
        bench.request.stream.reset(CUT)
        assert bench.codec.next_deadline() <= bench.now + 1.0

    def test_a_connection_that_is_still_read_is_not_idle(self):
        bench = ServerBench(keep_alive_s=5.0, stall_s=60.0)
        bench.feed(0, headers(GET), end=True)
        bench.flow(0).window = 0
        bench.answer(body=b"x" * 100_000)
        for _ in range(3):
            bench.bearer.now += 6.0
            bench.codec.handle_deadline(bench.now)
            bench.flush()
        assert not bench.codec.active and not bench.goaways()

    def test_a_slow_body_is_not_a_slow_head(self):
        bench = ServerBench(head_s=10.0, idle_s=100.0)
        bench.feed(0, headers(POST))
        for _ in range(10):
            bench.bearer.now += 50.0
            bench.feed(0, data(b"x"))
            bench.codec.handle_deadline(bench.now)
        assert bench.request.error is None and bench.request.body == b"x" * 10

    def test_an_idle_request(self):
        bench = ServerBench(idle_s=100.0)
        bench.feed(0, headers(GET), end=True)
        bench.bearer.now += 90.0
        bench.request.stream.send_head(response(200), False)
        bench.flush()
        assert bench.expire() == pytest.approx(100.0), "a write moves it, too"
        assert bench.request.error.kind is Kind.IDLE_TIMEOUT

    def test_a_limit_of_its_own(self):
        bench = ServerBench(idle_s=1_000.0)
        bench.feed(0, headers(GET), end=True)
        watches = bench.bearer.watches
        bench.request.stream.limit_idle(2.0)
        assert bench.bearer.watches > watches
        assert bench.expire() == pytest.approx(2.0)
        assert bench.request.error.kind is Kind.IDLE_TIMEOUT

    def test_a_closed_connection_has_none(self):
        bench = ServerBench()
        bench.feed(2, data(b"x"))
        assert not bench.is_open and bench.codec.next_deadline() is None

    def test_looking_is_rare(self):
        """`next_deadline` is one attribute: a thousand requests move it no further than the first asked for."""
        bench = ServerBench()
        watches = bench.bearer.watches
        for i in range(1_000):
            bench.bearer.now += 0.001
            bench.feed(4 * i, headers(GET), end=True)
            bench.answer()
        assert bench.bearer.watches - watches <= 2


class TestEnds:
    def test_nothing_is_heard_behind_the_close(self):
        bench = ServerBench()
        bench.feed(0, headers(POST))
        bench.feed(2, data(b"x"))
        flow = bench.flow(0)
        flow.received += 5
        bench.codec.stream_data(flow, data(b"abc"), True)
        bench.codec.stream_reset(flow, 1)
        bench.codec.stream_stopped(flow, 1)
        bench.codec.stream_opened(FakeBearer().open_stream(unidirectional=True))
        bench.codec.datagram(b"x")
        bench.codec.drain()
        bench.codec.cut(CUT)
        bench.codec.before_send(bench.now)
        bench.codec.handle_deadline(bench.now)
        assert bench.request.body == b"" and bench.request.error.kind is Kind.CLIENT_GONE

    def test_a_lost_connection_is_told_once(self):
        bench = ServerBench()
        for i in (0, 4):
            bench.feed(i, headers(POST))
        bench.lost()
        assert all(receiver.error.kind is Kind.CLIENT_GONE for receiver in bench.requests)
        bench.codec.cut(CUT)

    def test_the_refused_are_counted(self):
        bench = ServerBench()
        bench.feed(0, headers(GET[1:]), end=True)
        bench.feed(4, headers([*CONNECT[:4], (":protocol", "x")]))
        assert [error.kind for error in bench.refused] == [Kind.BAD_REQUEST, Kind.NOT_IMPLEMENTED]
