"""H2Client: streams on one connection to a replica, and what becomes of them when it misbehaves or leaves."""

import hyperframe.frame as hf
import pytest
from h1kit import FAILED, request
from h2bench import CANCEL, OK, PROTOCOL, REFUSED, ClientBench, raw, rst, settings, window_update

from router.errors import Kind, Retry
from router.stream import HOLD_PEER_FULL
from router.transport.codec.h2.limits import ASSUMED_STREAMS, PING_LIMIT_S, STREAM_WINDOW


def goaway(last, code=0):
    return raw(7, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big"))


class TestRequests:
    def test_the_wire(self, cut):
        bench = ClientBench(greet=False)
        bench.flush()
        assert bench.out.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        receiver = bench.start(request(b"POST", b"/x", length=5, fields=[(b"x-a", b"b")]), end=False)
        receiver.stream.send_data(b"hello", True)
        bench.flush()
        (head,) = bench.of(hf.HeadersFrame)
        assert head.fields == [
            (":scheme", "http"), (":method", "POST"), (":path", "/x"), (":authority", "a.example"), ("x-a", "b"),
            ("content-length", "5"),
        ]  # fmt: skip
        assert bench.body(1) == b"hello"
        bench.feed(settings() + bench.headers(1, [*OK, ("x-c", "d")], end=False) + bench.data(1, b"ok", True), cut)
        assert (receiver.head.shape.status, receiver.body, receiver.ended) == (200, b"ok", True)
        assert not bench.codec.streams and bench.is_open

    def test_informational_final_and_trailers(self, cut):
        bench = ClientBench()
        receiver = bench.start()
        bench.feed(bench.headers(1, [(":status", "103")], end=False) + bench.headers(1, OK, end=False), cut)
        bench.feed(bench.data(1, b"x") + bench.headers(1, [("grpc-status", "0"), ("x-bin", "AA")]), cut)
        assert receiver.informational == [103] and receiver.body == b"x"
        assert receiver.trailers == [(b"grpc-status", b"0"), (b"x-bin", b"AA")]

    def test_trailers_only(self):
        bench = ClientBench()
        receiver = bench.start()
        bench.feed(bench.headers(1, [*OK, ("content-type", "application/grpc"), ("grpc-status", "5")]))
        assert receiver.ended and receiver.head.shape.grpc_status == 5

    def test_a_head_request(self):
        bench = ClientBench()
        receiver = bench.start(request(b"HEAD"))
        bench.feed(bench.headers(1, [*OK, ("content-length", "99")]))
        assert receiver.ended and receiver.head.length == 99 and receiver.error is None

    @pytest.mark.parametrize(("method", "status"), [(b"HEAD", "200"), (b"GET", "204"), (b"GET", "304")])
    def test_an_end_that_comes_by_itself(self, method, status):
        bench = ClientBench()
        first, second = bench.start(request(method)), bench.start(request(method))
        bench.feed(bench.headers(1, [(":status", status)], end=False) + bench.headers(3, [(":status", status)], end=False))
        assert first.ended and second.ended
        bench.feed(bench.data(1, b"", True))
        assert list(bench.codec.streams) == [3] and bench.rst_code(1) is None
        assert bench.expire() == 5.0
        assert bench.rst_code(3) == CANCEL and not bench.codec.streams

    def test_an_end_that_comes_to_a_held_stream(self):
        bench = ClientBench()
        receiver = bench.start(request(b"HEAD"))
        receiver.hold(HOLD_PEER_FULL)
        bench.feed(bench.headers(1, OK, end=False) + bench.data(1, b"", True))
        assert receiver.ended and not bench.codec.streams and bench.rst_code(1) is None

    def test_a_body_where_none_may_be(self):
        bench = ClientBench()
        receiver = bench.start(request(b"HEAD"))
        bench.feed(bench.headers(1, OK, end=False) + bench.data(1, b"body", True))
        assert receiver.ended and receiver.body == b"" and bench.rst_code(1) == PROTOCOL

    @pytest.mark.parametrize(
        "answer",
        [
            [(":status", "101")], [(":status", "20")], [(":status", "abc")], [("x", "y")], [*OK, *OK],
            [("x", "y"), *OK], [*OK, (":path", "/")], [*OK, ("connection", "close")], [*OK, ("Upper", "x")],
            [*OK, ("x", "a\r\nb")], [*OK, ("content-length", "3")], [*OK, ("content-length", "x")],
            [*OK, ("transfer-encoding", "chunked")],
        ],
    )  # fmt: skip
    def test_a_malformed_answer_costs_its_stream_alone(self, answer, cut):
        bench = ClientBench()
        receiver, other = bench.start(), bench.start()
        bench.feed(bench.headers(1, answer) + bench.headers(3, OK), cut)
        assert receiver.error.kind is Kind.UPSTREAM_PROTOCOL and receiver.error.retry is Retry.NEVER
        assert bench.rst_code(1) == PROTOCOL and other.ended

    def test_pushes_are_refused(self):
        bench = ClientBench()
        receiver = bench.start()
        bench.feed(raw(5, 4, 1, b"\0\0\0\2" + bench.encoder.encode(OK)))
        assert bench.goaway_code() == PROTOCOL and receiver.error.kind is Kind.UPSTREAM_PROTOCOL

    def test_an_early_answer_ends_the_upload(self):
        bench = ClientBench()
        receiver = bench.start(request(b"POST"), end=False)
        bench.feed(bench.headers(1, OK))
        assert receiver.ended and bench.rst_code(1) == CANCEL and not bench.codec.streams


class TestCounts:
    def test_the_peers_limit_at_each_open(self):
        bench = ClientBench(greet=False)
        assert bench.codec.room == ASSUMED_STREAMS
        bench.feed(settings(MAX_CONCURRENT_STREAMS=2))
        bench.start()
        assert bench.codec.room == 1
        bench.start()
        assert bench.codec.room == 0
        bench.feed(settings(MAX_CONCURRENT_STREAMS=1))
        assert bench.codec.room < 0
        bench.feed(bench.headers(1, OK) + bench.headers(3, OK))
        assert bench.codec.room == 1

    @pytest.mark.parametrize("when", ["head", "body", "answer", "held"])
    def test_cancelled_streams_give_their_place_back(self, when):
        bench = ClientBench(MAX_CONCURRENT_STREAMS=1)
        for i in range(50):
            stream = 2 * i + 1
            receiver = bench.start(request(b"POST"), end=when == "answer")
            if when == "body":
                receiver.stream.send_data(b"x", False)
            elif when == "answer":
                bench.feed(bench.headers(stream, OK, end=False))
            elif when == "held":
                receiver.hold(HOLD_PEER_FULL)
                bench.feed(bench.headers(stream, OK, end=False) + bench.data(stream, b"x" * 16_000))
            receiver.stream.reset(FAILED)
            bench.feed(bench.data(stream, b"late") if when != "head" else b"")
            assert bench.rst_code(stream) == CANCEL
            assert bench.codec.room == 1 and bench.is_open

    def test_windows_out(self):
        bench = ClientBench(INITIAL_WINDOW_SIZE=4)
        receiver = bench.start(request(b"POST"), end=False)
        receiver.stream.send_data(b"0123456789", True)
        bench.flush()
        assert bench.body(1) == b"0123"
        bench.feed(window_update(1, 100))
        assert bench.body(1) == b"0123456789"

    def test_credit_for_each_small_frame(self):
        """A replica gives each byte back at once, for the stream and the connection; and all of it comes late."""
        bench = ClientBench()
        receiver = bench.start(request(b"POST"), end=False)
        for _ in range(10_000):
            receiver.stream.send_data(b"x", False)
            bench.flush()
            bench.taken()
        for _ in range(10_000):
            bench.feed(window_update(1, 1) + window_update(0, 1))
        assert bench.is_open and receiver.error is None

    def test_credit_in_small_steps_for_large_frames(self):
        """Go's server gives back 4 KiB at a time, whatever the size of the frame that brought them."""
        bench = ClientBench(MAX_FRAME_SIZE=1 << 20, INITIAL_WINDOW_SIZE=1 << 30)
        bench.feed(window_update(0, 1 << 30))
        receiver = bench.start(request(b"POST"), end=False)
        for _ in range(500):
            receiver.stream.send_data(b"x" * 65_536, False)
            bench.flush()
            bench.taken()
            bench.feed((window_update(1, 4_096) + window_update(0, 4_096)) * 16)
        assert bench.is_open and receiver.error is None

    def test_a_slow_client_does_not_take_the_connections_window(self):
        bench = ClientBench()
        for stream in range(1, 101, 2):
            receiver = bench.start()
            receiver.hold(HOLD_PEER_FULL)
            bench.feed(bench.headers(stream, OK, end=False))
            for _ in range(STREAM_WINDOW // 16_384):
                bench.feed(bench.data(stream, b"x" * 16_384))
        returned = sum(frame.window_increment for frame in bench.of(hf.WindowUpdateFrame, 0))
        assert bench.is_open and returned >= 50 * STREAM_WINDOW
        other = bench.start()
        bench.feed(bench.headers(101, OK, end=False) + bench.data(101, b"x" * 16_384, True))
        assert other.ended

    def test_windows_in(self):
        bench = ClientBench()
        receiver = bench.start()
        receiver.hold(HOLD_PEER_FULL)
        bench.feed(bench.headers(1, OK, end=False))
        for _ in range(STREAM_WINDOW // 16_384):
            bench.feed(bench.data(1, b"x" * 16_384))
        assert receiver.body == b"" and bench.is_open and not bench.of(hf.WindowUpdateFrame, 1)
        receiver.release(HOLD_PEER_FULL)
        bench.pump()
        assert len(receiver.body) == STREAM_WINDOW and bench.of(hf.WindowUpdateFrame, 1)


class TestFailures:
    def test_a_refused_stream_may_move(self):
        bench = ClientBench()
        receiver = bench.start()
        bench.feed(rst(1, REFUSED))
        assert receiver.error.retry is Retry.SAFE
        other = bench.start()
        bench.feed(rst(3, 2))
        assert other.error.retry is Retry.NEVER and other.error.kind is Kind.UPSTREAM_RESET

    @pytest.mark.parametrize("end", [lambda bench: bench.feed(goaway(0)), lambda bench: bench.eof()])
    def test_what_moves_on_finds_the_connection_out_of_the_pool(self, end):
        bench = ClientBench()
        receiver = bench.start()
        seen = []
        receiver.on_event = lambda receiver, what: seen.append((what, bench.gone > 0))
        end(bench)
        assert seen == [("reset", True)]

    def test_a_reset_behind_a_whole_response_takes_nothing_of_it(self):
        """RFC 9113 §8.1: a server that needs no more of an upload answers and says NO_ERROR."""
        bench = ClientBench(INITIAL_WINDOW_SIZE=0)
        receiver = bench.start(request(b"POST"), end=False)
        receiver.stream.send_data(b"x" * 100_000, False)
        bench.flush()
        assert receiver.paused
        receiver.hold(HOLD_PEER_FULL)
        bench.feed(bench.headers(1, OK, end=False) + bench.data(1, b"all of it", True) + rst(1, 0))
        assert receiver.error is None and not receiver.paused, "the client may go on, to be able to read"
        receiver.stream.send_data(b"more", False)
        receiver.release(HOLD_PEER_FULL)
        bench.pump()
        assert receiver.body == b"all of it" and receiver.ended and not bench.codec.streams
        assert not bench.body(1) and bench.rst_code(1) is None

    def test_a_reset_behind_half_a_response_fails_it(self):
        bench = ClientBench()
        receiver = bench.start()
        receiver.hold(HOLD_PEER_FULL)
        bench.feed(bench.headers(1, OK, end=False) + bench.data(1, b"half") + rst(1, 0))
        assert receiver.error is not None and not bench.codec.streams

    def test_goaway_moves_what_was_not_taken_up(self):
        bench = ClientBench()
        first, second, third = (bench.start() for _ in range(3))
        bench.feed(goaway(2**31 - 1))
        assert bench.codec.room == 0 and bench.gone == 1
        assert first.error is second.error is third.error is None
        bench.feed(goaway(1))
        assert first.error is None
        assert second.error.retry is Retry.SAFE and third.error.retry is Retry.SAFE
        bench.feed(bench.headers(3, OK) + bench.headers(1, OK))
        assert first.ended and bench.half_closed

    @pytest.mark.parametrize("how", ["eof", "lost"])
    def test_the_connections_end(self, how):
        bench = ClientBench()
        receiver = bench.start()
        getattr(bench, how)()
        assert receiver.error.retry is Retry.IF_REUSED
        assert receiver.stream.is_untouched() is True
        assert bench.gone and bench.codec.room == 0

    def test_what_came_whole_before_the_end_is_still_delivered(self):
        bench = ClientBench()
        held, cut = bench.start(), bench.start()
        held.hold(HOLD_PEER_FULL)
        bench.feed(bench.headers(1, OK, end=False) + bench.data(1, b"all of it", True) + bench.headers(3, OK, end=False))
        assert bench.eof() is True
        assert cut.error is not None and held.error is None
        held.release(HOLD_PEER_FULL)
        bench.pump()
        assert held.body == b"all of it" and held.ended and bench.half_closed

    def test_a_stream_that_was_answered_was_not_untouched(self):
        bench = ClientBench()
        receiver = bench.start()
        bench.feed(bench.headers(1, OK, end=False))
        bench.lost()
        assert receiver.stream.is_untouched() is False

    def test_a_ping_that_is_not_answered(self):
        bench = ClientBench(ping_s=10.0)
        receiver = bench.start()
        assert bench.expire() == 10.0
        (ping,) = bench.of(hf.PingFrame)
        bench.feed(raw(6, 1, 0, ping.opaque_data))
        assert bench.expire() == 10.0 and receiver.error is None
        assert bench.expire() == PING_LIMIT_S
        assert receiver.error.kind is Kind.UPSTREAM_CLOSED and not bench.is_open

    def test_a_ping_is_due_however_much_is_sent(self):
        """What counts is when the replica was heard, else traffic to a dead host would hide its death."""
        bench = ClientBench(ping_s=10.0)
        bench.now += 100.0
        bench.start()
        for _ in range(3):
            bench.now += 3.0
            bench.start()
        assert not bench.of(hf.PingFrame)
        assert bench.expire() == pytest.approx(1.0)
        assert bench.of(hf.PingFrame)

    def test_an_idle_connection_is_closed_without_pings(self):
        bench = ClientBench(ping_s=10.0)
        assert bench.expire() == 300.0
        assert not bench.of(hf.PingFrame) and bench.goaway_code() == 0

    @pytest.mark.parametrize(
        "early", [lambda b: b.data(1, b"HTTP/1.1 200 OK\r\n\r\n"), lambda b: b.data(1, b"", True),
                  lambda b: b.headers(1, [(":status", "103")], end=False) + b.data(1, b"x")],
    )  # fmt: skip
    def test_data_before_its_head(self, early):
        bench = ClientBench()
        receiver = bench.start()
        bench.feed(early(bench))
        assert receiver.error.kind is Kind.UPSTREAM_PROTOCOL and receiver.body == b""
        assert bench.rst_code(1) == PROTOCOL and bench.is_open

    def test_it_may_not_allow_pushes_to_itself(self):
        bench = ClientBench(greet=False)
        bench.feed(settings(ENABLE_PUSH=1))
        assert bench.goaway_code() == PROTOCOL

    def test_refusals_do_not_count_against_it(self):
        bench = ClientBench(MAX_CONCURRENT_STREAMS=100_000)
        lasting = bench.start()
        for i in range(2_000):
            bench.start()
            bench.feed(rst(2 * i + 3, REFUSED))
        assert bench.is_open and lasting.error is None

    def test_frames_that_come_late_on_however_many_streams(self):
        bench = ClientBench(MAX_CONCURRENT_STREAMS=100_000)
        lasting = bench.start()
        for _ in range(2_000):
            bench.start().stream.reset(FAILED)
        for i in range(2_000):
            bench.feed(bench.headers(2 * i + 3, OK, end=False) + bench.data(2 * i + 3, b"late", True))
        assert bench.is_open and lasting.error is None

    def test_credit_of_streams_that_were_left_comes_back(self):
        bench = ClientBench()
        for i in range(40):
            receiver = bench.start()
            receiver.hold(HOLD_PEER_FULL)
            bench.feed(bench.headers(2 * i + 1, OK, end=False))
            for _ in range(STREAM_WINDOW // 16_384):
                bench.feed(bench.data(2 * i + 1, b"x" * 16_384))
            receiver.stream.reset(FAILED)
            bench.flush()
        told = sum(f.window_increment for f in bench.of(hf.WindowUpdateFrame, 0))
        assert told - (8_388_608 - 65_535) >= 40 * STREAM_WINDOW - 4_194_304

    def test_a_replica_that_floods(self):
        bench = ClientBench()
        receiver = bench.start()
        for _ in range(1_000):
            bench.feed(settings())
        assert receiver.error.kind is Kind.UPSTREAM_PROTOCOL and not bench.is_open

    def test_draining(self):
        bench = ClientBench()
        receiver = bench.start()
        bench.codec.drain()
        bench.flush()
        assert bench.codec.room == 0 and bench.is_open
        bench.feed(bench.headers(1, OK))
        assert receiver.ended and bench.half_closed


class TestTunnels:
    def websocket(self):
        return request(b"CONNECT", b"/ws", upgrade=b"websocket")

    def test_the_last_bytes_wait_for_a_slow_client(self):
        bench = ClientBench(ENABLE_CONNECT_PROTOCOL=1)
        receiver = bench.start(self.websocket(), end=False)
        bench.feed(bench.headers(1, OK, end=False))
        receiver.hold(HOLD_PEER_FULL)
        bench.feed(bench.data(1, b"last words", True))
        receiver.stream.send_data(b"", True)
        bench.flush()
        assert receiver.body == b""
        receiver.release(HOLD_PEER_FULL)
        bench.pump()
        assert receiver.body == b"last words" and receiver.ended and not bench.codec.streams

    @pytest.mark.parametrize("end", [True, False])
    def test_trailers_are_a_fault(self, end):
        """RFC 9113 §8.5: nothing but DATA."""
        bench = ClientBench(ENABLE_CONNECT_PROTOCOL=1)
        receiver = bench.start(self.websocket(), end=False)
        bench.feed(bench.headers(1, OK, end=False) + bench.headers(1, [("x", "y")], end=end))
        assert receiver.error.kind is Kind.UPSTREAM_PROTOCOL and bench.rst_code(1) == PROTOCOL
        assert bench.is_open and not bench.codec.streams

    def test_a_length_says_nothing(self):
        """RFC 9110 §9.3.6."""
        bench = ClientBench(ENABLE_CONNECT_PROTOCOL=1)
        receiver = bench.start(self.websocket(), end=False)
        bench.feed(bench.headers(1, [*OK, ("content-length", "0")], end=False) + bench.data(1, b"frames"))
        assert receiver.body == b"frames" and receiver.error is None

    @pytest.mark.parametrize("ours_first", [True, False])
    def test_one_that_is_over_does_not_wait_for_a_window_for_ever(self, ours_first):
        bench = ClientBench(ENABLE_CONNECT_PROTOCOL=1, INITIAL_WINDOW_SIZE=0)
        receiver = bench.start(self.websocket(), end=False)
        bench.feed(bench.headers(1, OK, end=False))
        ends = [lambda: receiver.stream.send_data(b"bye", True), lambda: bench.feed(bench.data(1, b"", True))]
        for end in ends if ours_first else reversed(ends):
            end()
            bench.flush()
        assert bench.codec.streams
        assert bench.expire() <= 5.0
        assert bench.rst_code(1) == CANCEL and not bench.codec.streams and bench.is_open

    def test_one_cancelled_before_the_settings_gives_its_place_back(self):
        bench = ClientBench(greet=False)
        for _ in range(10):
            bench.start(self.websocket(), end=False).stream.reset(FAILED)
        assert bench.codec.room == ASSUMED_STREAMS

    def test_waits_for_the_settings(self):
        bench = ClientBench(greet=False)
        receiver = bench.start(self.websocket(), end=False)
        assert not bench.of(hf.HeadersFrame)
        bench.feed(settings(ENABLE_CONNECT_PROTOCOL=1))
        (head,) = bench.of(hf.HeadersFrame)
        assert (":protocol", "websocket") in head.fields and (":method", "CONNECT") in head.fields
        bench.feed(bench.headers(1, [*OK, ("sec-websocket-protocol", "p")], end=False) + bench.data(1, b"down"))
        assert receiver.head.shape.accepts_tunnel and receiver.body == b"down"
        bench.feed(bench.data(1, b"", True))
        assert receiver.ended and bench.codec.streams
        receiver.stream.send_data(b"up", False)
        receiver.stream.send_data(b"", True)
        bench.flush()
        assert bench.body(1) == b"up" and not bench.codec.streams

    def test_a_replica_that_takes_none(self):
        bench = ClientBench()
        receiver = bench.start(self.websocket(), end=False)
        assert receiver.error.kind is Kind.NOT_IMPLEMENTED and bench.codec.room == ASSUMED_STREAMS

    def test_a_refused_one(self):
        bench = ClientBench(ENABLE_CONNECT_PROTOCOL=1)
        receiver = bench.start(self.websocket(), end=False)
        bench.feed(bench.headers(1, [(":status", "403")]))
        assert receiver.ended and not receiver.head.shape.accepts_tunnel

    def test_cancelled_before_it_was_sent(self):
        bench = ClientBench(greet=False)
        receiver = bench.start(self.websocket(), end=False)
        receiver.stream.reset(FAILED)
        bench.feed(settings(ENABLE_CONNECT_PROTOCOL=1))
        assert not bench.of(hf.HeadersFrame) and bench.codec.room > 0
