"""H1Server: holding and bounding input, watermarks, deadlines with an explicit now."""

import pytest
from h1kit import GET, ServerBench, response

from router.errors import Kind
from router.stream import CLOSE_ABORT, CLOSE_FLUSH, CLOSE_LINGER, HOLD_NO_UPSTREAM, HOLD_PEER_FULL

POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


class TestHold:
    def test_without_an_upstream_reading_goes_on(self, cut):
        bench = ServerBench(hold=HOLD_NO_UPSTREAM)
        bench.feed(POST % 10 + b"hello", cut)
        assert bench.request.body == b""
        assert bench.codec.wants_read, "so that the client's end is still seen"
        bench.feed(b"world", cut)
        bench.request.release(HOLD_NO_UPSTREAM)
        bench.pump()
        assert (bench.request.body, bench.request.ended) == (b"helloworld", True)

    def test_a_full_peer_stops_reading(self, cut):
        bench = ServerBench(hold=HOLD_PEER_FULL)
        bench.feed(POST % 10, cut)
        assert not bench.codec.wants_read
        bench.feed(b"helloworld", cut)
        assert bench.inbox, "left in the kernel"
        bench.request.release(HOLD_PEER_FULL)
        bench.pump()
        assert bench.request.body == b"helloworld"
        assert bench.codec.wants_read

    def test_every_reason_must_be_released(self):
        bench = ServerBench(hold=HOLD_NO_UPSTREAM | HOLD_PEER_FULL)
        bench.feed(POST % 2 + b"ok")
        bench.request.release(HOLD_PEER_FULL)
        bench.pump()
        assert bench.request.body == b""
        bench.request.release(HOLD_NO_UPSTREAM)
        bench.pump()
        assert bench.request.body == b"ok"

    def test_held_within_a_delivery(self, cut):
        """The exchange holds from within `request_data`: the rest of what was read waits."""

        def stop(receiver, what):
            if what == "data" and not receiver.held:
                receiver.hold(HOLD_PEER_FULL)

        bench = ServerBench(stop)
        bench.feed(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"3\r\nabc\r\n" * 5
            + b"0\r\n\r\n",
            cut,
        )
        for _ in range(100):
            if bench.request.ended:
                break
            bench.request.release(HOLD_PEER_FULL)
            bench.pump()
        assert (bench.request.body, bench.request.ended) == (b"abc" * 5, True)

    @pytest.mark.parametrize("hold", [HOLD_NO_UPSTREAM, 0])
    def test_what_is_held_is_bounded(self, hold):
        """By a hold, or pipelined behind a request under way: reading stops, and goes on afterwards."""
        bench = ServerBench(hold=hold, max_held_bytes=1_000)
        body = b"x" * 5_000
        first = POST % 5_000 + body if hold else GET + POST % 5_000 + body
        bench.feed(first, lambda data: [data[i : i + 100] for i in range(0, len(data), 100)])
        assert not bench.codec.wants_read
        assert len(bench.inbox) * 100 >= len(first) - 1_000 - 300
        if hold:
            bench.request.release(hold)
            bench.pump()
        else:
            bench.answer()
        assert bench.codec.wants_read
        assert (bench.request.body, bench.request.ended) == (body, True)

    def test_a_reset_comes_through_a_hold(self):
        bench = ServerBench(hold=HOLD_NO_UPSTREAM)
        bench.feed(POST % 10 + b"hello")
        assert bench.eof() is False
        assert bench.request.error.kind is Kind.CLIENT_GONE
        assert bench.request.body == b""

    def test_a_held_last_request_survives_the_half_close(self, cut):
        bench = ServerBench(hold=HOLD_NO_UPSTREAM)
        bench.feed(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", cut)
        assert bench.eof() is True
        bench.request.release(HOLD_NO_UPSTREAM)
        bench.pump()
        assert (bench.request.body, bench.request.ended) == (b"hello", True)
        bench.answer()
        assert bench.codec.close == CLOSE_FLUSH

    def test_a_held_half_of_a_request_does_not(self, cut):
        bench = ServerBench(hold=HOLD_NO_UPSTREAM)
        bench.feed(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 9\r\n\r\nhello", cut)
        bench.eof()
        bench.request.release(HOLD_NO_UPSTREAM)
        bench.pump()
        assert bench.request.error.kind is Kind.CLIENT_GONE

    def test_a_hold_of_one_request_is_not_of_the_next(self):
        bench = ServerBench()
        bench.feed(GET)
        bench.codec.hold(HOLD_PEER_FULL)
        bench.answer()
        bench.codec.release(HOLD_PEER_FULL)
        bench.feed(POST % 2 + b"ok")
        assert bench.request.body == b"ok"


class TestFull:
    def test_the_exchange_is_told(self):
        bench = ServerBench()
        bench.feed(GET)
        bench.full(True)
        assert bench.request.paused
        bench.full(False)
        assert not bench.request.paused

    def test_no_further_request_while_the_answer_waits(self, cut):
        bench = ServerBench()
        bench.feed(GET)
        bench.answer()
        bench.full(True)
        bench.feed(GET, cut)
        assert len(bench.requests) == 1
        bench.full(False)
        assert len(bench.requests) == 2

    def test_reading_goes_on_after_a_flood_behind_a_full_answer(self):
        """More than is held came while the last answer was not taken: once it is, the connection lives on."""
        bench = ServerBench(max_held_bytes=1_000)
        bench.feed(GET)
        bench.answer()
        bench.full(True)
        bench.feed(POST % 5_000 + b"x" * 5_000, lambda data: [data[i : i + 500] for i in range(0, len(data), 500)])
        assert not bench.codec.wants_read
        bench.full(False)
        assert (len(bench.request.body), bench.request.ended) == (5_000, True)

    def test_a_reader_that_stalls_is_cut(self):
        bench = ServerBench(stall_s=60.0)
        bench.feed(GET)
        bench.codec.send_head(response(), False)
        bench.flush()
        bench.full(True)
        assert bench.expire() == pytest.approx(60.0)
        assert bench.request.error.kind is Kind.CLIENT_STALLED
        assert bench.codec.close == CLOSE_ABORT

    def test_also_behind_an_answer_that_is_complete(self):
        bench = ServerBench(stall_s=60.0)
        bench.feed(GET)
        bench.answer()
        bench.full(True)
        assert bench.expire() == pytest.approx(60.0)
        assert bench.codec.close == CLOSE_ABORT

    def test_also_behind_a_close(self):
        bench = ServerBench(stall_s=60.0)
        bench.feed(b"GET / HTTP/1.0\r\n\r\n")
        bench.answer()
        assert bench.codec.close == CLOSE_FLUSH
        bench.shell.unsent = 1_000
        began = bench.now
        while bench.codec.close == CLOSE_FLUSH:
            bench.expire()
        assert 60.0 <= bench.now - began <= 64.0
        assert bench.codec.close == CLOSE_ABORT

    @pytest.mark.parametrize("early", [True, False], ids=["early answer", "close"])
    def test_not_while_some_of_it_is_taken(self, early):
        bench = ServerBench(stall_s=60.0)
        bench.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n" if early else b"GET / HTTP/1.0\r\n\r\n")
        bench.answer()
        close = bench.codec.close
        for left in range(3_000_000, 0, -40_000):
            bench.shell.unsent = left
            bench.expire()
            assert bench.codec.close == close != CLOSE_ABORT


class TestDeadlines:
    def test_an_idle_connection_is_closed(self):
        bench = ServerBench(keep_alive_s=75.0)
        assert bench.expire() == pytest.approx(75.0)
        assert bench.codec.close == CLOSE_FLUSH
        assert bench.out == b""

    def test_also_after_a_request(self):
        bench = ServerBench(keep_alive_s=75.0)
        bench.feed(GET)
        bench.now += 50.0
        bench.answer()
        assert bench.expire() == pytest.approx(75.0)
        assert bench.codec.close == CLOSE_FLUSH

    @pytest.mark.parametrize(
        "start", [b"G", b"GET / HTTP/1.1\r\n", b"\r", b"GET / HTTP/1.1\r\nHost: a\r\n\r"]
    )
    def test_a_slow_head_is_answered_and_closed(self, start, cut):
        bench = ServerBench(head_s=10.0)
        bench.feed(start, cut)
        assert bench.shell.watches
        bench.now += 9.0  # another byte does not give it more time
        assert bench.expire() == pytest.approx(1.0)
        assert b"HTTP/1.1 408 " in bench.out
        assert bench.refused[0].kind is Kind.REQUEST_TIMEOUT

    def test_its_time_runs_from_its_first_byte(self, cut):
        bench = ServerBench(head_s=10.0)
        bench.feed(b"GET / HT")
        for byte in (b"T", b"P"):
            bench.now += 4.0
            bench.feed(byte)
        assert bench.codec.next_deadline() == pytest.approx(bench.now + 2.0)

    def test_a_pipelined_one_too(self, cut):
        bench = ServerBench(head_s=10.0)
        bench.feed(GET + b"GET / HTTP/1.1\r\n", cut)
        bench.now += 100.0
        bench.answer()
        assert bench.codec.next_deadline() == pytest.approx(bench.now + 10.0)

    def test_an_exchange_on_which_nothing_moves(self):
        bench = ServerBench(idle_s=100.0)
        bench.feed(POST % 10 + b"a")
        bench.now += 60.0
        bench.feed(b"b")
        assert bench.expire() == pytest.approx(100.0)
        assert bench.request.error.kind is Kind.IDLE_TIMEOUT
        assert bench.codec.next_deadline() > bench.now, "what the exchange says to it has time to leave"

    def test_output_moves_it_too(self):
        bench = ServerBench(idle_s=100.0)
        bench.feed(GET)
        bench.codec.send_head(response(), False)
        bench.flush()
        bench.now += 60.0
        bench.codec.send_data(b"x", False)
        bench.flush()
        assert bench.codec.next_deadline() == pytest.approx(bench.now + 100.0)

    def test_the_endpoints_limit_replaces_it_for_one_request(self):
        bench = ServerBench(idle_s=100.0, keep_alive_s=75.0)
        bench.feed(GET)
        before = bench.shell.watches
        bench.codec.limit_idle(5.0)
        assert bench.shell.watches > before, "the deadline moved earlier"
        assert bench.codec.next_deadline() == pytest.approx(bench.now + 5.0)
        bench.answer()
        bench.feed(GET)
        assert bench.codec.next_deadline() == pytest.approx(bench.now + 100.0)

    def test_a_lingering_connection_has_its_own(self):
        bench = ServerBench(linger_s=2.0)
        bench.feed(POST % 10)
        bench.answer()
        assert bench.codec.close == CLOSE_LINGER
        assert bench.codec.next_deadline() == pytest.approx(bench.now + 2.0)

    @pytest.mark.parametrize(("keep_alive_s", "is_watched"), [(5.0, True), (75.0, False)])
    def test_a_short_keep_alive_is_watched_at_once(self, keep_alive_s, is_watched):
        """The wheel looks at every connection once a turn; only a shorter deadline must be told."""
        bench = ServerBench(keep_alive_s=keep_alive_s)
        bench.feed(GET)
        before = bench.shell.watches
        bench.answer()
        assert (bench.shell.watches > before) is is_watched


def test_a_drain_between_head_and_end_of_an_answer():
    """The head could not say that the connection ends; it ends nevertheless."""
    bench = ServerBench()
    bench.feed(GET)
    bench.codec.send_head(response(), False)
    bench.flush()
    bench.codec.drain()
    assert bench.is_open
    bench.codec.send_data(b"ok", True)
    bench.pump()
    assert bench.out.endswith(b"0\r\n\r\n")
    assert bench.codec.close == CLOSE_FLUSH
