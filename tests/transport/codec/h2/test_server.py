"""H2Server beyond the rules: requests and responses, flow both ways, tunnels, drains, deadlines."""

import hyperframe.frame as hf
import pytest
from h1kit import FAILED, response
from h2bench import CANCEL, GET, INTERNAL, POST, PREFACE, ServerBench, raw, rst, settings, window_update

from router.errors import Kind, ProxyError, Source
from router.stream import CLOSE_ABORT, CLOSE_LINGER, HOLD_NO_UPSTREAM, HOLD_PEER_FULL
from router.transport.codec.h2.limits import CONNECTION_WINDOW, HIGH_BYTES, LOW_BYTES, STREAM_WINDOW

WEBSOCKET = [
    (":method", "CONNECT"), (":scheme", "http"), (":path", "/ws"), (":authority", "a"), (":protocol", "websocket"),
    ("sec-websocket-version", "13"),
]  # fmt: skip


def fill(bench, stream, size, end=False):
    while size:
        piece = min(size, 16_384)
        size -= piece
        bench.feed(bench.data(stream, b"x" * piece, end and not size))


class TestRequests:
    def test_one(self, cut):
        bench = ServerBench()
        fields = [("content-length", "5"), ("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers"), ("x-request-id", "r")]
        bench.feed(bench.headers(1, [*POST, *fields], end=False) + bench.data(1, b"he") + bench.data(1, b"llo", True), cut)
        receiver = bench.request
        assert (receiver.body, receiver.ended, receiver.head.length) == (b"hello", True, 5)
        shape = receiver.head.shape
        assert (shape.method, shape.path, shape.authority, shape.version) == (b"POST", b"/", b"a.example", b"HTTP/2")
        assert shape.sends_te and shape.takes_trailers and not shape.is_grpc
        assert shape.known == {b"x-request-id": b"r"} and shape.fields == [(b"cookie", b"a=1; b=2")]

    def test_the_same_block_is_decoded_once(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, GET))
        first, again = (bench.headers(i, GET) for i in (3, 5))
        assert first[9:] == again[9:]
        bench.feed(first + again + bench.headers(7, [*GET, ("new", "entry")]) + bench.headers(9, GET))
        shapes = [receiver.head.shape for receiver in bench.requests]
        assert shapes[1] is shapes[2] and shapes[3] is not shapes[2]
        assert shapes[4].fields == [] and shapes[4] is not shapes[2]  # the table moved on in between

    def test_trailers(self, cut):
        bench = ServerBench()
        bench.feed(bench.headers(1, POST, end=False) + bench.data(1, b"x"), cut)
        forbidden = [("host", "evil"), ("x-router-error", "no"), ("authorization", "x"), ("x-router-key", "k"),
                     ("x-forwarded-for", "1.2.3.4"), ("content-length", "3")]  # fmt: skip
        bench.feed(bench.headers(1, [("x-sum", "7"), *forbidden]), cut)
        assert bench.request.trailers == [(b"x-sum", b"7")] and bench.request.body == b"x"

    def test_padding_counts_and_is_dropped(self, cut):
        bench = ServerBench()
        bench.feed(bench.headers(1, POST, end=False) + raw(0, 0x8 | 0x1, 1, b"\x03ab" + b"\0\0\0"), cut)
        assert bench.request.body == b"ab" and bench.request.ended

    def test_continuations(self, cut):
        bench = ServerBench()
        block = bench.encoder.encode([*GET, ("x-long", "y" * 500)])
        bench.feed(raw(1, 1, 1, block[:10]) + raw(9, 0, 1, block[10:200]) + raw(9, 4, 1, block[200:]), cut)
        assert bench.request.head.shape.fields == [(b"x-long", b"y" * 500)]

    @pytest.mark.parametrize(
        ("content_type", "is_grpc"),
        [("application/grpc", True), ("application/grpc+proto", True), ("application/grpc;x", True),
         ("application/grpc-web", False), ("text/plain", False)],
    )  # fmt: skip
    def test_grpc_is_known_by_its_type(self, content_type, is_grpc):
        bench = ServerBench()
        bench.feed(bench.headers(1, [*POST, ("content-type", content_type)]))
        assert bench.request.head.shape.is_grpc is is_grpc


class TestResponses:
    def test_in_any_order(self):
        bench = ServerBench()
        bench.feed(b"".join(bench.headers(i, GET) for i in (1, 3, 5)))
        for i in (2, 0, 1):
            bench.answer(bench.requests[i], body=b"%d" % i)
        assert [bench.body(s) for s in (1, 3, 5)] == [b"0", b"1", b"2"]
        assert not bench.codec.streams

    def test_what_one_tick_makes_is_one_write(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, GET))
        writes = bench.writes
        stream = bench.request.stream
        stream.send_head(response(200), False)
        stream.send_data(b"a", False)
        stream.send_data(b"b", False)
        stream.send_trailers([(b"grpc-status", b"0")])
        bench.flush()
        assert bench.writes == writes + 1
        heads = bench.of(hf.HeadersFrame)
        assert heads[1].fields == [("grpc-status", "0")] and "END_STREAM" in heads[1].flags

    def test_no_body_for_a_head_that_is_refused(self):
        bench = ServerBench()
        head = [(":method", "HEAD"), *GET[1:], *((f"x-{i}", "y") for i in range(200))]
        bench.feed(bench.headers(1, head))
        assert dict(bench.of(hf.HeadersFrame)[0].fields)[":status"] == "431" and not bench.of(hf.DataFrame)

    def test_no_body_for_head_and_304(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, [(":method", "HEAD"), *GET[1:]]))
        bench.answer(body=b"not sent")
        bench.feed(bench.headers(3, GET))
        bench.answer(status=304, body=b"not sent")
        assert not bench.of(hf.DataFrame)
        assert dict(bench.of(hf.HeadersFrame)[0].fields)["content-length"] == "8"
        assert not bench.codec.streams

    def test_an_early_answer_stops_the_upload(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, POST, end=False) + bench.data(1, b"x"))
        bench.answer()
        assert bench.rst_code(1) == 0  # RFC 9113 §8.1

    def test_a_failed_response_is_reset(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, GET))
        bench.request.stream.send_head(response(200), False)
        bench.request.stream.reset(FAILED)
        bench.flush()
        assert bench.rst_code(1) == INTERNAL

    def test_a_client_that_cancels(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, GET) + rst(1))
        assert bench.request.error.kind is Kind.CLIENT_GONE
        bench.request.stream.send_data(b"to nobody", True)
        bench.flush()
        assert not bench.of(hf.DataFrame) and bench.is_open

    def test_a_large_head_is_cut_into_frames(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, GET))
        bench.answer(fields=[(b"x-%d" % i, b"y" * 4_000) for i in range(10)])
        bench.frames()
        kinds = [type(frame).__name__ for frame in bench.parsed]
        assert kinds.count("ContinuationFrame") == 2

    def test_a_table_made_smaller_is_acknowledged_in_the_next_block(self):
        """RFC 7541 §4.2."""
        bench = ServerBench()
        bench.feed(settings(HEADER_TABLE_SIZE=0) + bench.headers(1, GET))
        bench.answer()
        bench.decoder.max_allowed_table_size = 0
        bench.decoder.header_table_size = 4096
        assert dict(bench.of(hf.HeadersFrame)[0].fields)[":status"] == "200"


class TestFlowOut:
    @pytest.mark.parametrize("window", [1, 16_383, 16_384, 16_385, 65_535, 65_536])
    def test_no_empty_piece_is_written(self, window):
        """To the shell it is the end of the connection."""
        bench = ServerBench()
        bench.feed(settings(INITIAL_WINDOW_SIZE=window) + window_update(0, 1 << 20) + bench.headers(1, GET))
        bench.request.stream.send_head(response(200), False)
        bench.request.stream.send_data(b"x" * 70_000, False)
        bench.request.stream.send_data(b"y" * 70_000, True)
        for _ in range(200):
            bench.feed(window_update(1, 1))
            assert not bench.half_closed
        bench.feed(window_update(1, 1 << 20))
        assert len(bench.body(1)) == 140_000 and not bench.half_closed

    def test_a_stream_waits_for_its_window(self):
        bench = ServerBench(greet=False)
        bench.feed(PREFACE + settings(INITIAL_WINDOW_SIZE=10) + bench.headers(1, GET))
        bench.answer(body=b"0123456789abcdef")
        assert bench.body(1) == b"0123456789" and bench.codec.streams
        bench.feed(window_update(1, 3))
        assert bench.body(1) == b"0123456789abc"
        bench.feed(settings(INITIAL_WINDOW_SIZE=100))
        assert bench.body(1) == b"0123456789abcdef"
        assert "END_STREAM" in bench.of(hf.DataFrame)[-1].flags and not bench.codec.streams

    def test_a_window_below_nothing(self):
        """RFC 9113 §6.9.2: a setting may take a window below zero."""
        bench = ServerBench()
        bench.feed(bench.headers(1, GET))
        stream = bench.request.stream
        stream.send_head(response(200), False)
        stream.send_data(b"x" * 1_000, False)
        bench.feed(settings(INITIAL_WINDOW_SIZE=100))
        stream.send_data(b"y", True)
        bench.feed(window_update(1, 900))
        assert bench.body(1) == b"x" * 1_000
        bench.feed(window_update(1, 1))
        assert bench.body(1) == b"x" * 1_000 + b"y"

    def test_the_connection_is_shared_in_turn(self):
        bench = ServerBench()
        bench.feed(settings(INITIAL_WINDOW_SIZE=1 << 20) + b"".join(bench.headers(i, GET) for i in (1, 3)))
        for receiver in bench.requests:
            receiver.stream.send_head(response(200), False)
            receiver.stream.send_data(b"x" * 60_000, True)
        bench.flush()
        assert len(bench.body(1)) + len(bench.body(3)) == 65_535
        assert abs(len(bench.body(1)) - len(bench.body(3))) <= 16_384
        bench.feed(window_update(0, 1 << 20))
        assert len(bench.body(1)) == len(bench.body(3)) == 60_000

    def test_a_window_of_a_frame_at_a_time_is_shared(self):
        bench = ServerBench(stall_s=5.0)
        bench.feed(settings(INITIAL_WINDOW_SIZE=1 << 30) + b"".join(bench.headers(i, GET) for i in (1, 3, 5)))
        for receiver in bench.requests:
            receiver.stream.send_head(response(200), False)
            receiver.stream.send_data(b"x" * 300_000, True)
        bench.flush()
        for _ in range(30):
            bench.now += 1.0
            bench.feed(window_update(0, 16_384))
            if bench.codec.next_deadline() <= bench.now:
                bench.codec.handle_deadline(bench.now)
        assert all(receiver.error is None for receiver in bench.requests)
        sizes = [len(bench.body(stream)) for stream in (1, 3, 5)]
        assert max(sizes) - min(sizes) <= 2 * 16_384

    def test_a_slow_stream_holds_its_replica_alone(self):
        bench = ServerBench()
        bench.feed(settings(INITIAL_WINDOW_SIZE=1) + b"".join(bench.headers(i, GET) for i in (1, 3)))
        slow, other = bench.requests
        slow.stream.send_head(response(200), False)
        slow.stream.send_data(b"x" * (HIGH_BYTES + 2), False)
        assert not slow.paused  # not before the flush
        bench.flush()
        assert slow.paused and not other.paused
        bench.feed(window_update(1, HIGH_BYTES - LOW_BYTES))
        assert slow.paused
        bench.feed(window_update(1, 2))
        assert not slow.paused

    def test_trailers_come_behind_what_waits(self):
        bench = ServerBench()
        bench.feed(settings(INITIAL_WINDOW_SIZE=0) + bench.headers(1, GET))
        stream = bench.request.stream
        stream.send_head(response(200), False)
        stream.send_data(b"message", False)
        stream.send_trailers([(b"grpc-status", b"0")])
        bench.flush()
        assert not bench.of(hf.DataFrame)
        bench.feed(window_update(1, 7))
        kinds = [type(f).__name__ for f in bench.frames() if f.stream_id == 1]
        assert kinds == ["HeadersFrame", "DataFrame", "HeadersFrame"]

    def test_a_full_transport_holds_everyone(self):
        bench = ServerBench()
        bench.feed(b"".join(bench.headers(i, GET) for i in (1, 3)))
        bench.full(True)
        assert all(receiver.paused for receiver in bench.requests) and not bench.codec.wants_read
        bench.requests[0].stream.send_head(response(200), False)
        bench.requests[0].stream.send_data(b"kept", True)
        bench.flush()
        assert not bench.of(hf.DataFrame)
        bench.full(False)
        assert bench.body(1) == b"kept" and bench.codec.wants_read and not bench.requests[1].paused

    def test_small_pieces_that_wait_leave_joined(self):
        bench = ServerBench()
        bench.feed(settings(INITIAL_WINDOW_SIZE=0) + bench.headers(1, GET))
        stream = bench.request.stream
        stream.send_head(response(200), False)
        for i in range(100):
            stream.send_data(b"%02d" % i, False)
        bench.feed(window_update(1, 1_000))
        assert len(bench.of(hf.DataFrame)) == 1


class TestFlowIn:
    def test_credit_comes_back_by_the_half_window(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, POST, end=False))
        fill(bench, 1, STREAM_WINDOW // 2 - 1)
        assert not bench.of(hf.WindowUpdateFrame, 1)
        fill(bench, 1, 1)
        assert [f.window_increment for f in bench.of(hf.WindowUpdateFrame, 1)] == [STREAM_WINDOW // 2]

    def test_100_mib_leave_nothing_behind(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, POST, end=False))
        bench.request._take_data = None
        bench.request.body = b""
        seen = 0

        def count(data, end):
            nonlocal seen
            seen += len(data)

        bench.request.request_data = count
        for _ in range(100):
            for _ in range(64):
                bench.feed(bench.data(1, b"x" * 16_384))
            bench.taken()
        assert seen == 100 << 20 and bench.is_open

    def test_a_held_stream_gets_none_and_keeps_at_most_a_window(self):
        bench = ServerBench(hold=HOLD_PEER_FULL)
        bench.feed(bench.headers(1, POST, end=False))
        fill(bench, 1, STREAM_WINDOW)
        assert bench.request.body == b"" and not bench.of(hf.WindowUpdateFrame, 1)
        bench.request.release(HOLD_PEER_FULL)
        bench.pump()
        assert len(bench.request.body) == STREAM_WINDOW
        assert sum(f.window_increment for f in bench.of(hf.WindowUpdateFrame, 1)) == STREAM_WINDOW

    def test_held_streams_do_not_stop_others(self):
        bench = ServerBench()
        for i in range(8):
            bench.feed(bench.headers(2 * i + 1, POST, end=False))
            bench.request.hold(HOLD_PEER_FULL)
            fill(bench, 2 * i + 1, STREAM_WINDOW)
        bench.feed(bench.headers(101, POST, end=False) + bench.data(101, b"through", True))
        assert bench.request.body == b"through"

    def test_what_a_cancelled_stream_held_is_given_back(self):
        bench = ServerBench()
        for i in range(2 * CONNECTION_WINDOW // STREAM_WINDOW):
            bench.feed(bench.headers(2 * i + 1, POST, end=False))
            bench.request.hold(HOLD_PEER_FULL)
            fill(bench, 2 * i + 1, STREAM_WINDOW)
            bench.feed(rst(2 * i + 1))
        assert bench.is_open and bench.goaway_code() is None

    def test_end_and_trailers_wait_with_the_data(self, cut):
        bench = ServerBench(hold=HOLD_PEER_FULL)
        bench.feed(bench.headers(1, POST, end=False) + bench.data(1, b"a") + bench.headers(1, [("x", "y")]), cut)
        assert bench.request.body == b"" and not bench.request.ended
        bench.request.release(HOLD_PEER_FULL)
        bench.pump()
        assert bench.request.body == b"a" and bench.request.trailers == [(b"x", b"y")]


class TestTunnels:
    def open(self, cut=None):
        bench = ServerBench()
        bench.feed(bench.headers(1, WEBSOCKET, end=False))
        assert bench.request.head.shape.upgrade == b"websocket"
        bench.request.stream.send_head(response(200, tunnel=True), False)
        return bench

    def test_bytes_both_ways_and_two_ends(self):
        bench = self.open()
        bench.feed(bench.data(1, b"up"))
        bench.request.stream.send_data(b"\x82\x04down", False)
        bench.feed(bench.data(1, b"", True))
        assert bench.request.body == b"up" and bench.request.ended and bench.codec.streams
        bench.request.stream.send_data(b"\x88\x00", False)
        bench.request.stream.send_data(b"", True)
        bench.flush()
        assert bench.body(1) == b"\x82\x04down\x88\x00" and not bench.codec.streams
        assert bench.rst_code(1) is None

    @pytest.mark.parametrize("switched", [True, False])
    def test_trailers_are_a_fault(self, switched):
        """RFC 9113 §8.5: nothing but DATA."""
        bench = self.open() if switched else ServerBench(hold=HOLD_NO_UPSTREAM)
        if not switched:
            bench.feed(bench.headers(1, WEBSOCKET, end=False))
        bench.feed(bench.headers(1, [("x", "y")]))
        assert bench.request.error.kind is Kind.CLIENT_GONE
        assert not bench.codec.streams and bench.is_open

    def test_the_replica_may_end_first(self):
        bench = self.open()
        bench.request.stream.send_data(b"\x88\x00", False)
        bench.request.stream.send_data(b"", True)
        bench.feed(bench.data(1, b"late"))
        assert bench.request.body == b"late" and bench.codec.streams
        bench.feed(bench.data(1, b"", True))
        assert not bench.codec.streams

    def test_a_reset_closes_as_websocket_does(self):
        bench = self.open()
        bench.request.stream.reset(ProxyError(Kind.DRAINING, Source.ROUTER))
        bench.flush()
        assert bench.body(1) == b"\x88\x0a\x03\xf4draining"
        assert bench.of(hf.DataFrame)[-1].flags >= {"END_STREAM"}
        bench.expire()
        assert bench.rst_code(1) == CANCEL

    def test_a_handshake_that_ends_at_once(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, WEBSOCKET, end=True))
        assert bench.rst_code(1) == 1 and not bench.requests

    def test_one_close_frame_however_it_ends(self):
        bench = ServerBench()
        bench.feed(settings(INITIAL_WINDOW_SIZE=0) + bench.headers(1, WEBSOCKET, end=False))
        bench.request.stream.send_head(response(200, tunnel=True), False)
        bench.request.stream.send_data(b"\x82\x01x", True)
        bench.request.stream.reset(ProxyError(Kind.IDLE_TIMEOUT, Source.ROUTER))
        bench.feed(window_update(1, 1_000))
        assert bench.body(1).count(b"\x88") <= 1

    def test_no_close_frame_within_a_message(self):
        bench = self.open()
        bench.request.stream.send_data(b"\x82\x7fhalf", False)
        bench.request.stream.reset(FAILED)
        bench.flush()
        assert bench.rst_code(1) == INTERNAL


class TestEnds:
    def test_a_slow_reader_gets_what_was_sent(self):
        """The kernel holds megabytes: while some of it is taken, the connection is not cut."""
        bench = ServerBench(linger_s=2.0, stall_s=10.0)
        bench.feed(raw(6, 0, 1, b"12345678"))
        assert bench.half_closed
        for left in range(3_000_000, 0, -100_000):
            bench.shell.unsent = left
            assert bench.expire() == pytest.approx(2.0) and bench.codec.close == CLOSE_LINGER
        bench.shell.unsent = 0
        assert bench.expire() == pytest.approx(2.0) and bench.codec.close == CLOSE_LINGER, "to read the last of it"
        bench.expire()
        assert bench.codec.close == CLOSE_ABORT

    def test_one_that_takes_nothing_is_cut(self):
        bench = ServerBench(linger_s=2.0, stall_s=10.0)
        bench.feed(raw(6, 0, 1, b"12345678"))
        bench.shell.unsent = 1_000
        began = bench.now
        while bench.codec.close == CLOSE_LINGER:
            bench.expire()
        assert bench.now - began == pytest.approx(12.0)

    def test_a_reset_that_crosses_ours_is_no_flood(self):
        """As grpc-go sends one for each call that we end before it did."""
        bench = ServerBench()
        for stream in range(1, 6_001, 2):
            bench.feed(bench.headers(stream, POST, end=False))
            bench.answer()
            assert bench.rst_code(stream) == 0
            bench.feed(rst(stream, CANCEL))
            bench.parsed.clear()
        assert bench.is_open and not bench.floods

    def test_held_uploads_leave_the_rest_of_the_window_to_others(self):
        bench = ServerBench(hold=HOLD_PEER_FULL)
        opened = range(1, 61, 2)
        for stream in opened:
            bench.feed(bench.headers(stream, POST, end=False))
            for _ in range(STREAM_WINDOW // 16_384):
                bench.feed(bench.data(stream, b"x" * 16_384))
        bench.hold_all = 0
        for stream in range(61, 161, 2):
            bench.feed(bench.headers(stream, POST, end=False) + bench.data(stream, b"x" * 16_384, True))
            assert bench.request.ended
            bench.answer()
        assert bench.is_open

    def test_a_drain_in_two_steps(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, GET))
        bench.codec.drain()
        bench.flush()
        (goaway,) = bench.of(hf.GoAwayFrame)
        assert (goaway.last_stream_id, goaway.error_code) == (2**31 - 1, 0)
        (ping,) = bench.of(hf.PingFrame)
        bench.feed(bench.headers(3, GET))  # was on its way
        assert len(bench.requests) == 2
        bench.feed(raw(6, 1, 0, ping.opaque_data))
        assert bench.of(hf.GoAwayFrame)[-1].last_stream_id == 3
        bench.feed(bench.headers(5, GET) + bench.headers(7, POST, end=False) + bench.data(7, b"x", True))
        assert len(bench.requests) == 2 and bench.is_open
        bench.answer(bench.requests[0])
        assert bench.is_open
        bench.answer(bench.requests[1])
        assert bench.half_closed

    def test_a_drain_without_an_answer(self):
        bench = ServerBench()
        bench.codec.drain()
        bench.flush()
        bench.expire()
        assert [f.last_stream_id for f in bench.of(hf.GoAwayFrame)] == [2**31 - 1, 0] and bench.half_closed

    def test_a_cut(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, GET))
        bench.request.on_event = lambda receiver, what: bench.answer(receiver, 503) if what == "reset" else None
        bench.codec.cut(ProxyError(Kind.DRAINING, Source.ROUTER))
        bench.flush()
        assert bench.request.error.kind is Kind.DRAINING and bench.body(1) == b"ok"
        assert bench.goaway_code() == 0 and bench.half_closed

    def test_an_idle_connection_is_told(self):
        bench = ServerBench(keep_alive_s=7.0)
        assert bench.expire() == 7.0
        assert bench.goaway_code() == 0 and bench.half_closed

    def test_a_slow_block(self):
        bench = ServerBench(head_s=3.0)
        bench.feed(raw(1, 1, 1, b"\x82"))
        bench.now += 2.0
        bench.feed(raw(9, 0, 1, b"\x86"))
        assert bench.expire() == 1.0
        assert not bench.is_open and bench.refused[0].kind is Kind.REQUEST_TIMEOUT

    @pytest.mark.parametrize("kind", [1, 4, 0xF0])
    def test_a_frame_that_trickles(self, kind):
        bench = ServerBench(head_s=3.0)
        sent = raw(kind, 5, 1, b"x" * 40)
        bench.feed(sent[:2])
        for byte in range(2, 7):
            bench.now += 0.5
            bench.feed(sent[byte : byte + 1])
        assert bench.expire() == 0.5 and not bench.is_open

    def test_a_slow_upload_is_no_trickle(self):
        bench = ServerBench(head_s=3.0)
        bench.feed(bench.headers(1, POST, end=False) + raw(0, 0, 1, b"x" * 40)[:20])
        assert bench.codec.next_deadline() > bench.now + 1_000

    def test_a_slow_preface(self):
        bench = ServerBench(greet=False, head_s=3.0)
        bench.feed(PREFACE)
        assert bench.expire() == 3.0 and not bench.is_open

    def test_an_idle_stream_by_its_own_limit(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, GET) + bench.headers(3, GET))
        bench.requests[0].stream.limit_idle(2.0)
        assert bench.expire() == 2.0
        assert bench.requests[0].error.kind is Kind.IDLE_TIMEOUT and bench.requests[1].error is None

    def test_what_moves_is_not_idle(self):
        bench = ServerBench()
        bench.feed(bench.headers(1, GET))
        stream = bench.request.stream
        stream.limit_idle(2.0)
        stream.send_head(response(200), False)
        for _ in range(5):
            bench.now += 1.5
            stream.send_data(b"event", False)
            bench.flush()
            assert bench.codec.next_deadline() == bench.now + 2.0

    def test_a_window_that_stays_shut(self):
        bench = ServerBench(stall_s=5.0)
        bench.feed(settings(INITIAL_WINDOW_SIZE=0) + bench.headers(1, GET) + bench.headers(3, GET))
        bench.requests[0].stream.send_head(response(200), False)
        bench.requests[0].stream.send_data(b"x", False)
        bench.flush()
        assert bench.expire() == 5.0
        assert bench.requests[0].error.kind is Kind.CLIENT_STALLED and bench.rst_code(1) == CANCEL
        assert bench.requests[1].error is None and bench.is_open

    def test_a_client_that_reads_slowly_is_left_alone(self):
        bench = ServerBench(stall_s=5.0)
        bench.feed(settings(INITIAL_WINDOW_SIZE=0) + bench.headers(1, GET))
        bench.request.stream.send_head(response(200), False)
        bench.request.stream.send_data(b"x" * 250_000, False)
        bench.flush()
        for _ in range(10):
            bench.now += 4.0
            bench.feed(window_update(1, 20_000) + window_update(0, 20_000))
            bench.codec.handle_deadline(bench.now)
            bench.flush()
        assert bench.request.error is None and len(bench.body(1)) == 200_000

    def test_many_clients_behind_one_connection_may_cancel(self):
        bench = ServerBench()
        for i in range(4_000):
            stream = 2 * i + 1
            if i % 4:
                bench.feed(bench.headers(stream, GET))
                bench.answer()
            else:
                bench.feed(bench.headers(stream, GET, end=False) + rst(stream))
            bench.taken()
        assert bench.is_open

    def test_pings_that_measure_the_path(self):
        """grpc-go sends one for each DATA it gets, thousands a second."""
        bench = ServerBench()
        bench.feed(bench.headers(1, GET))
        stream = bench.request.stream
        stream.send_head(response(200), False)
        for _ in range(5_000):
            stream.send_data(b"x", False)
            bench.feed(raw(6, 0, 0, b"12345678") + window_update(1, 1) + window_update(0, 1))
            bench.taken()
        assert bench.is_open

    def test_a_client_that_reads_nothing(self):
        bench = ServerBench(stall_s=5.0)
        bench.feed(bench.headers(1, GET))
        bench.full(True)
        assert bench.expire() == 5.0
        assert bench.request.error.kind is Kind.CLIENT_STALLED and bench.codec.close == CLOSE_ABORT

    @pytest.mark.parametrize("how", ["eof", "lost"])
    def test_a_client_that_is_gone(self, how):
        bench = ServerBench()
        bench.feed(bench.headers(1, GET) + bench.headers(3, GET))
        getattr(bench, how)()
        assert [receiver.error.kind for receiver in bench.requests] == [Kind.CLIENT_GONE] * 2
