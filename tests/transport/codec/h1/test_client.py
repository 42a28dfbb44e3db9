"""H1Client: requests out and responses in, as playbooks (RFC 9112, RFC 9110)."""

import pytest
from h1kit import FAILED, ClientBench, Receiver, request

from router.errors import Kind, Retry
from router.stream import CLOSE_ABORT, CLOSE_FLUSH, HOLD_PEER_FULL

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def begun(**kwargs):
    bench = ClientBench()
    receiver = bench.start(**kwargs)
    bench.taken()
    return bench, receiver


class TestRequests:
    def sent(self, head, end):
        bench = ClientBench()
        bench.start(head, end)
        return bench, bench.taken()

    def test_without_a_body(self):
        _, out = self.sent(request(fields=[(b"accept", b"*/*")]), True)
        assert out == b"GET / HTTP/1.1\r\nhost: a.example\r\naccept: */*\r\n\r\n"

    def test_a_post_without_a_body_says_so(self):
        _, out = self.sent(request(b"POST"), True)
        assert out.endswith(b"content-length: 0\r\n\r\n")

    def test_no_authority_names_the_replica(self):
        _, out = self.sent(request(authority=b""), True)
        assert b"host: replica:80\r\n" in out

    def test_a_length(self):
        bench, out = self.sent(request(b"POST", length=5), False)
        assert out.endswith(b"content-length: 5\r\n\r\n")
        bench.codec.send_data(b"he", False)
        bench.codec.send_data(b"llo", True)
        bench.flush()
        assert bench.out == b"hello"
        assert bench.writes == 2

    def test_chunks_and_trailers(self):
        bench, out = self.sent(request(b"POST"), False)
        assert out.endswith(b"transfer-encoding: chunked\r\n\r\n")
        bench.codec.send_data(b"abc", False)
        bench.codec.send_data(b"y" * 4_096, False)
        bench.codec.send_trailers([(b"x-sum", b"7")])
        bench.flush()
        assert bench.out == b"3\r\nabc\r\n1000\r\n" + b"y" * 4_096 + b"\r\n0\r\nx-sum: 7\r\n\r\n"

    def test_trailers_of_a_known_length_have_no_room(self):
        bench, _ = self.sent(request(b"POST", length=3), False)
        bench.codec.send_data(b"abc", False)
        bench.codec.send_trailers([(b"x-sum", b"7")])
        bench.flush()
        assert bench.out == b"abc"
        bench.feed(OK)
        assert bench.codec.is_idle


class TestResponses:
    def test_a_length(self, cut):
        bench, receiver = begun()
        bench.feed(OK, cut)
        assert (receiver.body, receiver.ended, receiver.head.length) == (b"hello", True, 5)
        assert bench.idle_calls == 1
        assert bench.is_open

    def test_chunks(self, cut):
        bench, receiver = begun()
        bench.feed(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n06;a=b\r\n world\r\n0\r\n\r\n", cut
        )
        assert (receiver.body, receiver.ended) == (b"hello world", True)
        assert bench.codec.is_idle

    def test_trailers(self, cut):
        bench, receiver = begun()
        bench.feed(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n",
            cut,
        )
        assert (receiver.body, receiver.trailers) == (b"hello", [(b"x-sum", b"1")])
        assert bench.codec.is_idle

    @pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
    def test_until_close(self, version, cut):
        bench, receiver = begun()
        bench.feed(version + b" 200 OK\r\nContent-Type: text/plain\r\n\r\nhello", cut)
        assert not receiver.ended
        assert bench.eof() is False
        assert (receiver.body, receiver.ended) == (b"hello", True)
        assert bench.codec.close == CLOSE_FLUSH
        assert bench.idle_calls == 0

    @pytest.mark.parametrize(
        ("method", "raw"),
        [
            (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
            (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
            (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
            (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ],
    )
    def test_without_a_body(self, method, raw, cut):
        bench, receiver = begun(head=request(method))
        bench.feed(raw, cut)
        assert receiver.ended
        assert receiver.body == b""
        assert bench.codec.is_idle

    def test_informational_ones(self, cut):
        bench, receiver = begun()
        bench.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK, cut)
        assert receiver.informational == [100, 103]
        assert receiver.body == b"hello"

    def test_a_flood_of_informational_ones(self, cut):
        bench, receiver = begun()
        bench.feed(b"HTTP/1.1 102 Processing\r\n\r\n" * 20, cut)
        assert receiver.error.kind is Kind.UPSTREAM_PROTOCOL
        assert len(receiver.informational) == 16
        assert bench.codec.close == CLOSE_ABORT

    @pytest.mark.parametrize(
        "raw",
        [
            b"garbage\r\n\r\n",
            b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
            b"HTTP/2.0 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ],
    )
    def test_malformed(self, raw, cut):
        bench, receiver = begun()
        bench.feed(raw, cut)
        assert receiver.error.kind is Kind.UPSTREAM_PROTOCOL
        assert receiver.error.retry is Retry.NEVER
        assert bench.codec.close == CLOSE_ABORT
        assert bench.idle_calls == 0

    def test_a_malformed_chunk(self, cut):
        bench, receiver = begun()
        bench.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX", cut)
        assert receiver.error.kind is Kind.UPSTREAM_PROTOCOL
        assert not receiver.ended


class TestReuse:
    def test_one_request_after_another(self, cut):
        bench = ClientBench()
        for count in (1, 2, 3):
            receiver = bench.start()
            bench.feed(OK, cut)
            assert receiver.body == b"hello"
            assert bench.idle_calls == count

    @pytest.mark.parametrize(
        "raw",
        [
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ],
    )
    def test_not_when_the_replica_closes(self, raw, cut):
        bench, receiver = begun()
        bench.feed(raw, cut)
        assert receiver.ended
        assert bench.idle_calls == 0
        assert bench.codec.close == CLOSE_FLUSH

    def test_http_10_may_keep(self, cut):
        bench, _ = begun()
        bench.feed(b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 5\r\n\r\nhello", cut)
        assert bench.codec.is_idle

    def test_not_when_something_follows(self):
        bench, receiver = begun()
        bench.feed(OK + b"HTTP/1.1 200 OK\r\n")
        assert receiver.body == b"hello"
        assert bench.idle_calls == 0
        assert not bench.codec.is_idle

    def test_bytes_that_no_request_asked_for_end_it(self):
        bench, _ = begun()
        bench.feed(OK)
        bench.feed(OK)
        assert bench.codec.close == CLOSE_ABORT
        assert not bench.codec.is_idle

    def test_not_when_the_upload_is_not_complete(self, cut):
        bench, receiver = begun(head=request(b"POST", length=10), end=False)
        bench.codec.send_data(b"abc", False)
        bench.flush()
        bench.feed(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno", cut)
        assert receiver.ended
        assert bench.idle_calls == 0
        assert bench.codec.close == CLOSE_ABORT

    def test_idle_before_the_end_is_told(self):
        """The pool has it back when the exchange hears the end, so that a new request may take it there."""
        bench, receiver = begun()
        receiver.on_event = lambda receiver, what: seen.append((what, bench.codec.is_idle))
        seen = []
        bench.feed(OK)
        assert seen == [("head", False), ("end", True)]

    def test_drain(self):
        bench, _ = begun()
        bench.feed(OK)
        bench.codec.drain()
        assert bench.codec.close == CLOSE_FLUSH

    def test_drain_within_a_request(self, cut):
        """`Codec.drain`: finish what is under way, start nothing new."""
        bench, receiver = begun()
        bench.codec.drain()
        assert bench.is_open
        bench.feed(OK, cut)
        assert receiver.body == b"hello"
        assert not bench.codec.is_idle
        assert bench.codec.close == CLOSE_FLUSH


class TestEnds:
    @pytest.mark.parametrize("how", ["eof", "lost"])
    @pytest.mark.parametrize(
        ("raw", "retry"),
        [
            (b"", Retry.IF_REUSED),
            (b"H", Retry.NEVER),
            (b"HTTP/1.1 100 Continue\r\n\r\n", Retry.NEVER),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", Retry.NEVER),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", Retry.NEVER),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Retry.NEVER),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n", Retry.NEVER),
        ],
        ids=["nothing", "in the head", "after a 1xx", "after the head", "in a body", "in chunks", "in trailers"],
    )
    def test_too_early(self, how, raw, retry, cut):
        bench, receiver = begun()
        bench.feed(raw, cut)
        getattr(bench, how)()
        kind = Kind.UPSTREAM_CLOSED if how == "eof" else Kind.UPSTREAM_RESET
        assert (receiver.error.kind, receiver.error.retry) == (kind, retry)
        assert not receiver.ended
        bench.lost()
        assert bench.codec.close == CLOSE_ABORT

    def test_until_close_and_lost_is_not_whole(self, cut):
        bench, receiver = begun()
        bench.feed(b"HTTP/1.1 200 OK\r\n\r\nhel", cut)
        bench.lost()
        assert receiver.error.kind is Kind.UPSTREAM_RESET
        assert not receiver.ended

    def test_of_an_idle_connection(self):
        bench, receiver = begun()
        bench.feed(OK)
        assert bench.eof() is False
        assert receiver.error is None
        assert not bench.codec.is_idle

    @pytest.mark.parametrize(
        "raw", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe"]
    )
    def test_a_cancelled_request_closes(self, raw, cut):
        bench, receiver = begun()
        bench.feed(raw, cut)
        before = receiver.body
        bench.codec.reset(FAILED)
        bench.flush()
        bench.feed(b"more")
        bench.eof()
        bench.lost()
        assert receiver.error is None
        assert receiver.body == before
        assert bench.codec.close == CLOSE_ABORT


class TestFlow:
    def test_hold_and_release(self, cut):
        bench, receiver = begun()
        receiver.hold(HOLD_PEER_FULL)
        bench.feed(OK, cut)
        assert receiver.body == b""
        receiver.release(HOLD_PEER_FULL)
        bench.pump()
        assert (receiver.body, receiver.ended) == (b"hello", True)
        assert bench.codec.wants_read

    def test_a_hold_does_not_outlive_its_request(self):
        bench, receiver = begun()

        def stop(receiver, what):
            if what == "end":
                bench.codec.hold(HOLD_PEER_FULL)

        receiver.on_event = stop
        bench.feed(OK)
        bench.codec.release(HOLD_PEER_FULL)
        second = bench.start()
        bench.feed(OK)
        assert second.body == b"hello"

    @pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"])
    def test_an_end_behind_held_input(self, head):
        """`Stream.hold`: no data reach the receiver until every reason is released; what came whole stays whole."""
        bench, receiver = begun()
        bench.feed(head)
        receiver.hold(HOLD_PEER_FULL)
        bench.codec.receive(b"hello", bench.now)  # read in the same tick, before the transport was stopped
        bench.codec.receive_eof(bench.now)
        bench.flush()
        receiver.release(HOLD_PEER_FULL)
        bench.pump()
        assert (receiver.body, receiver.ended) == (b"hello", True)

    def test_the_exchange_is_told_of_watermarks(self):
        bench, receiver = begun(head=request(b"POST", length=5), end=False)
        bench.full(True)
        assert receiver.paused
        bench.full(False)
        assert not receiver.paused
        bench.codec.reset(FAILED)
        bench.full(True)

    def test_an_idle_connection_is_retired(self):
        bench, _ = begun()
        assert bench.codec.next_deadline() > bench.now + 1e6
        bench.feed(OK)
        assert bench.expire() == pytest.approx(4.0)
        assert bench.codec.close == CLOSE_FLUSH
        assert not bench.codec.is_idle

    def test_a_deadline_within_a_request_does_nothing(self):
        bench, receiver = begun()
        bench.codec.handle_deadline(bench.now + 1e6)
        assert bench.is_open
        bench.feed(OK)
        assert receiver.body == b"hello"


class TestEarlyAnswers:
    def test_what_waits_in_the_kernel_is_read_before_more_is_written(self):
        """The replica may have closed behind its answer: one more write would fail, and nothing be read after it."""
        bench = ClientBench()
        receiver = bench.start(request(b"POST", length=10), end=False)
        bench.taken()
        bench.shell.input_waits = True
        bench.codec.send_data(b"hello", False)
        bench.flush()
        assert bench.out == b""
        bench.feed(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        assert receiver.head.shape.status == 413 and receiver.ended
        assert bench.codec.close == CLOSE_ABORT

    def test_an_upload_goes_on_behind_it(self):
        bench = ClientBench()
        receiver = bench.start(request(b"POST", length=10), end=False)
        bench.taken()
        bench.shell.input_waits = True
        bench.codec.send_data(b"hello", False)
        bench.flush()
        bench.shell.input_waits = False
        bench.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert bench.out == b"hello" and receiver.informational == [100]

    def test_an_upload_is_not_held_back_for_a_body(self):
        """A replica that answers while it reads may always have more waiting."""
        bench = ClientBench()
        bench.start(request(b"POST", length=10), end=False)
        bench.taken()
        bench.shell.input_waits = True
        bench.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhe")
        bench.codec.send_data(b"hello", False)
        bench.flush()
        assert bench.out == b"hello"

    def test_an_upload_is_not_held_back_while_nothing_is_read(self):
        bench = ClientBench()
        receiver = bench.start(request(b"POST", length=10), end=False)
        bench.taken()
        bench.shell.input_waits = True
        bench.codec.send_data(b"hello", False)
        bench.flush()
        assert bench.out == b""
        receiver.hold(HOLD_PEER_FULL)
        bench.flush()
        assert bench.out == b"hello"

    def test_a_request_that_is_whole_at_once_asks_nobody(self):
        bench = ClientBench()
        bench.shell.input_waits = True
        bench.codec.start(Receiver(bench))
        bench.codec.send_head(request(b"POST", length=5), False)
        bench.codec.send_data(b"hello", True)
        bench.flush()
        assert bench.out.endswith(b"hello")


@pytest.mark.parametrize("end", ["data", "trailers"])
def test_a_refused_handshake_is_followed_by_nothing_and_not_kept(end):
    bench = ClientBench()
    bench.start(request(b"CONNECT", b"/ws", upgrade=b"websocket"), end=False)
    bench.taken()
    bench.feed(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\n")
    if end == "data":
        bench.codec.send_data(b"GET /evil HTTP/1.1\r\n\r\n", True)
    else:
        bench.codec.send_trailers([(b"a", b"b")])
    bench.feed(b"nope")
    assert bench.out == b"" and not bench.idle_calls and bench.codec.close == CLOSE_ABORT
