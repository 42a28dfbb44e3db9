"""H1Server: requests in and responses out, as playbooks (RFC 9112, RFC 9110)."""

import pytest
from h1kit import CUT, FAILED, GET, ServerBench, response, split_response

from router.errors import Kind
from router.stream import CLOSE_ABORT, CLOSE_FLUSH, CLOSE_LINGER, CLOSE_NO


def post(body, length=None):
    return (
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (length if length is not None else len(body))
        + body
    )


def answer_at_end(receiver, what):
    """Answer each request with what it sent, as soon as it is complete."""
    if receiver.ended and what in ("head", "end"):
        receiver.bench.codec.send_head(response(200, len(receiver.body)), not receiver.body)
        if receiver.body:
            receiver.bench.codec.send_data(receiver.body, True)


class TestRequests:
    def test_one_without_a_body(self, cut):
        bench = ServerBench()
        bench.feed(GET, cut)
        assert bench.request.ended
        assert bench.request.head.shape.authority == b"a.example"
        bench.answer(body=b"hello")
        assert bench.out == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
        assert bench.is_open

    def test_a_length(self, cut):
        bench = ServerBench()
        bench.feed(post(b"hello"), cut)
        assert (bench.request.body, bench.request.ended, bench.request.head.length) == (b"hello", True, 5)

    def test_a_length_of_nothing(self, cut):
        bench = ServerBench()
        bench.feed(post(b""), cut)
        assert bench.request.ended
        assert bench.request.head.length == 0
        assert bench.request.calls == 0

    def test_chunks(self, cut):
        bench = ServerBench()
        bench.feed(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
            cut,
        )
        assert (bench.request.body, bench.request.ended, bench.request.head.length) == (
            b"abc0123456789",
            True,
            None,
        )

    def test_trailers(self, cut):
        bench = ServerBench()
        bench.feed(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\nHost: evil\r\n\r\n",
            cut,
        )
        assert bench.request.body == b"abc"
        assert bench.request.trailers == [(b"x-sum", b"7")]

    def test_pipelined(self, cut):
        bench = ServerBench(answer_at_end)
        bench.feed(post(b"one") + GET + post(b"three") + GET, cut)
        assert [r.body for r in bench.requests] == [b"one", b"", b"three", b""]
        assert bench.out == b"".join(
            b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            for body in (b"one", b"", b"three", b"")
        )

    def test_pipelined_ones_wait_for_the_answer_before(self, cut):
        bench = ServerBench()
        bench.feed(GET + post(b"two"), cut)
        assert len(bench.requests) == 1
        bench.answer()
        assert [r.body for r in bench.requests] == [b"", b"two"]

    def test_blank_lines_before_a_request(self, cut):
        bench = ServerBench()
        bench.feed(b"\r\n\r\n" + GET, cut)
        assert bench.request.ended

    def test_too_many_blank_lines(self, cut):
        bench = ServerBench()
        bench.feed(b"\r\n" * 50 + GET, cut)
        assert not bench.requests
        assert bench.refused[0].kind is Kind.BAD_REQUEST

    @pytest.mark.parametrize(
        ("raw", "kind", "status"),
        [
            (b"GET / HTTP/1.1\nHost: a\n\n", Kind.BAD_REQUEST, 400),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", Kind.BAD_REQUEST, 400),
            (b"GET / HTTP/1.1\r\n\r\n", Kind.BAD_REQUEST, 400),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Kind.VERSION_UNSUPPORTED, 505),
            (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", Kind.NOT_IMPLEMENTED, 501),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 66_000, Kind.HEAD_TOO_LARGE, 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 130 + b"\r\n", Kind.HEAD_TOO_LARGE, 431),
        ],
        ids=["bare LF", "space before colon", "no host", "h2 preface", "CONNECT", "long head", "many fields"],
    )
    def test_refused(self, raw, kind, status, cut):
        if len(raw) > 10_000 and len(cut(b"xx")) == 2:
            pytest.skip("quadratic by nature")
        bench = ServerBench()
        bench.feed(raw, cut)
        assert not bench.requests
        assert [error.kind for error in bench.refused] == [kind]
        first, fields, body = split_response(bench.out)
        assert first.split(b" ")[1] == b"%d" % status
        assert (b"connection", b"close") in fields
        assert (b"x-router-error", kind.value.encode()) in fields
        assert dict(fields)[b"content-length"] == b"%d" % len(body)
        assert bench.codec.close == CLOSE_LINGER

    def test_a_malformed_chunk_is_a_reset_of_its_exchange(self, cut):
        bench = ServerBench()
        bench.feed(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n" + GET, cut
        )
        assert bench.request.error.kind is Kind.BAD_REQUEST
        assert not bench.request.ended
        assert len(bench.requests) == 1

    def test_the_method_before_does_not_shape_the_refusal_after(self):
        """A refusal of a malformed head after a HEAD has its body: nothing of the request before counts."""
        bench = ServerBench()
        bench.feed(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        bench.answer()
        bench.taken()
        bench.feed(b"GET / HTTP/1.1\r\n\r\n")
        _, fields, body = split_response(bench.out)
        assert dict(fields)[b"content-length"] == b"%d" % len(body)


class TestResponses:
    def start(self, raw=GET):
        bench = ServerBench()
        bench.feed(raw)
        return bench

    def test_chunked_when_the_length_is_unknown(self):
        bench = self.start()
        bench.codec.send_head(response(), False)
        bench.codec.send_data(b"abc", False)
        bench.codec.send_data(b"x" * 5_000, False)
        bench.codec.send_data(b"", True)
        bench.pump()
        assert bench.out == (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1388\r\n"
            + b"x" * 5_000
            + b"\r\n0\r\n\r\n"
        )
        assert bench.is_open
        assert bench.writes == 1, "one write a tick"

    def test_trailers_need_chunks(self):
        bench = self.start()
        bench.codec.send_head(response(), False)
        bench.codec.send_trailers([(b"x-sum", b"7")])
        bench.pump()
        assert bench.out.endswith(b"\r\n\r\n0\r\nx-sum: 7\r\n\r\n")
        bench = self.start()
        bench.codec.send_head(response(length=2), False)
        bench.codec.send_data(b"ok", False)
        bench.codec.send_trailers([(b"x-sum", b"7")])
        bench.pump()
        assert bench.out.endswith(b"\r\n\r\nok")
        assert bench.is_open

    @pytest.mark.parametrize("status", [204, 304])
    def test_statuses_without_a_body(self, status):
        bench = self.start()
        bench.codec.send_head(response(status, 7), True)
        bench.pump()
        assert (b"content-length: 7" in bench.out) is (status == 304)  # RFC 9110 §8.6
        assert b"transfer-encoding" not in bench.out
        assert bench.out.endswith(b"\r\n\r\n")
        assert bench.is_open

    @pytest.mark.parametrize("length", [7, None])
    def test_head_has_no_body(self, length):
        bench = self.start(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        bench.codec.send_head(response(200, length), False)
        bench.codec.send_data(b"ignored", True)
        bench.pump()
        assert bench.out.endswith(b"\r\n\r\n")
        assert b"ignored" not in bench.out
        assert bench.is_open

    def test_an_empty_one_says_so(self):
        bench = self.start()
        bench.codec.send_head(response(), True)
        bench.pump()
        assert bench.out == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

    def test_informational_ones_come_before(self):
        bench = self.start()
        bench.codec.send_informational(response(103, fields=[(b"link", b"</a>")]))
        bench.answer()
        assert bench.out.startswith(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n")

    def test_a_status_without_a_name(self):
        bench = self.start()
        bench.answer(status=299)
        assert bench.out.startswith(b"HTTP/1.1 299 \r\n")

    def test_expect_is_the_replicas_to_answer(self, cut):
        bench = ServerBench()
        bench.feed(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n", cut)
        assert bench.request.head.shape.expects_continue
        assert bench.out == b""
        bench.codec.send_informational(response(100))
        bench.feed(b"ok", cut)
        assert bench.out == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert bench.request.ended


class TestKeepAlive:
    def test_close_is_honoured(self, cut):
        bench = ServerBench()
        bench.feed(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", cut)
        bench.answer()
        assert b"connection: close\r\n" in bench.out
        assert bench.codec.close == CLOSE_FLUSH

    def test_what_follows_a_last_request_is_dropped(self, cut):
        bench = ServerBench()
        bench.feed(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET, cut)
        bench.answer()
        assert len(bench.requests) == 1
        assert bench.codec.close == CLOSE_LINGER, "a close with unread input would reset the answer away"

    def test_http_10_closes(self, cut):
        bench = ServerBench()
        bench.feed(b"GET / HTTP/1.0\r\n\r\n", cut)
        bench.answer()
        assert bench.out.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n")
        assert bench.codec.close == CLOSE_FLUSH

    def test_http_10_may_ask_to_keep(self, cut):
        bench = ServerBench()
        bench.feed(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", cut)
        bench.answer()
        assert b"connection: keep-alive\r\n" in bench.out
        assert bench.is_open

    def test_http_10_has_neither_chunks_nor_informational(self, cut):
        bench = ServerBench()
        bench.feed(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", cut)
        bench.codec.send_informational(response(103))
        bench.codec.send_head(response(), False)
        bench.codec.send_data(b"abc", True)
        bench.pump()
        assert bench.out == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"
        assert bench.codec.close == CLOSE_FLUSH


class TestEarlyAnswers:
    def test_before_the_upload_ended(self, cut):
        bench = ServerBench()
        bench.feed(post(b"abc", 10), cut)
        bench.answer(413, b"no")
        assert b"connection: close\r\n" in bench.out
        assert bench.half_closed
        assert bench.codec.close == CLOSE_LINGER
        bench.feed(b"defg", cut)
        bench.feed(GET, cut)
        assert bench.request.body == b"abc"
        assert len(bench.requests) == 1
        assert bench.codec.wants_read
        assert bench.expire() == pytest.approx(bench.limits.linger_s)
        assert bench.codec.close == CLOSE_ABORT

    def test_the_client_ends_the_lingering(self, cut):
        bench = ServerBench()
        bench.feed(post(b"abc", 10), cut)
        bench.answer(413)
        assert bench.eof() is False

    @pytest.mark.parametrize("waited_s", [0.0, 1.0, 30.0])
    def test_lingering_lasts_from_the_answer_on(self, waited_s):
        """`linger_s`: input is read and dropped after the last answer (RFC 9112 §9.6), however long it took."""
        bench = ServerBench()
        bench.feed(post(b"abc", 10))
        bench.now += waited_s
        bench.answer(413)
        assert bench.codec.next_deadline() >= bench.now + bench.limits.linger_s

    def test_lingering_lasts_after_a_slow_head(self):
        bench = ServerBench()
        bench.feed(b"GET / HTTP/1.1\r\n")
        bench.expire()
        assert b" 408 " in bench.out
        assert bench.codec.next_deadline() >= bench.now + bench.limits.linger_s

    def test_an_answer_within_the_delivery_of_data(self, cut):
        """The exchange may answer from within `request_data`: the rest of that read is dropped."""

        def refuse(receiver, what):
            if what == "data" and not receiver.bench.out and receiver.calls == 1:
                receiver.bench.codec.send_head(response(413, 0), True)

        bench = ServerBench(refuse)
        bench.feed(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\nX: y\r\n\r\n"
            + GET,
            cut,
        )
        first, *others = bench.requests
        assert first.trailers is None
        assert first.calls == 1
        assert bench.out.count(b"HTTP/1.1") == 1
        assert [other.head.shape.method for other in others] in ([], [b"GET"]), (
            "only if the upload was read to its end"
        )


class TestEnds:
    def test_half_close_after_a_last_request_still_gets_the_answer(self, cut):
        bench = ServerBench()
        bench.feed(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", cut)
        assert bench.eof() is True
        bench.answer()
        assert bench.out.endswith(b"ok")
        assert bench.codec.close == CLOSE_FLUSH

    def test_half_close_of_a_kept_connection_is_a_client_gone(self, cut):
        bench = ServerBench()
        bench.feed(GET, cut)
        assert bench.eof() is False
        assert bench.request.error.kind is Kind.CLIENT_GONE

    def test_half_close_within_a_body(self, cut):
        bench = ServerBench()
        bench.feed(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabc", cut)
        assert bench.eof() is False
        assert bench.request.error.kind is Kind.CLIENT_GONE
        assert not bench.request.ended

    def test_half_close_of_an_idle_connection(self):
        bench = ServerBench()
        assert bench.eof() is False

    @pytest.mark.parametrize("sent", [b"", GET, post(b"ab", 5), GET + GET])
    def test_a_lost_connection_is_told_once(self, sent, cut):
        bench = ServerBench()
        bench.feed(sent, cut)
        bench.lost()
        bench.lost()
        if sent:
            assert bench.requests[0].error.kind is Kind.CLIENT_GONE
        assert len(bench.requests) == (1 if sent else 0)

    @pytest.mark.parametrize(
        ("length", "raw", "close"),
        [
            (10, GET, CLOSE_FLUSH),  # short of its length: RFC 9112 §8
            (None, GET, CLOSE_FLUSH),  # without the last chunk
            (None, b"GET / HTTP/1.0\r\n\r\n", CLOSE_ABORT),  # a FIN would end it as if whole
        ],
        ids=["length", "chunked", "until close"],
    )
    def test_a_reset_shows_that_the_body_is_not_whole(self, length, raw, close):
        bench = ServerBench()
        bench.feed(raw)
        bench.codec.send_head(response(200, length), False)
        bench.codec.send_data(b"abc", False)
        bench.codec.reset(FAILED)
        bench.pump()
        assert bench.out.endswith((b"abc", b"abc\r\n"))
        assert bench.codec.close == close

    def test_a_reset_before_the_head_aborts(self):
        bench = ServerBench()
        bench.feed(GET)
        bench.codec.reset(FAILED)
        bench.pump()
        assert bench.out == b""
        assert bench.codec.close == CLOSE_ABORT

    def test_after_a_reset_input_is_dropped(self, cut):
        bench = ServerBench()
        bench.feed(post(b"abc", 10))
        bench.codec.reset(FAILED)
        bench.feed(b"defghij" + GET, cut)
        assert len(bench.requests) == 1
        assert bench.request.body == b"abc"

    def test_drain_when_idle(self):
        bench = ServerBench()
        bench.codec.drain()
        bench.pump()
        assert bench.codec.close == CLOSE_FLUSH

    def test_drain_within_a_request(self, cut):
        bench = ServerBench()
        bench.feed(GET + GET, cut)
        bench.codec.drain()
        assert bench.is_open
        bench.answer()
        assert b"connection: close\r\n" in bench.out
        assert len(bench.requests) == 1, "nothing new is begun"
        assert bench.codec.close != CLOSE_NO

    def test_retired_when_idle_the_next_request_is_served_and_the_last(self, cut):
        bench = ServerBench(keep_alive_s=75.0, retire_s=5.0)
        bench.feed(GET)
        bench.answer()
        bench.taken()
        bench.now += 60.0
        bench.codec.retire(bench.now)
        bench.pump()
        assert bench.is_open, "a request may be on its way"
        bench.feed(GET, cut)
        bench.answer()
        assert b"connection: close\r\n" in bench.out and bench.out.endswith(b"ok")
        assert bench.codec.close == CLOSE_FLUSH

    def test_retired_when_idle_it_closes_a_little_later(self):
        bench = ServerBench(keep_alive_s=75.0, retire_s=5.0)
        bench.now += 60.0
        bench.codec.retire(bench.now)
        assert bench.expire() == 5.0
        assert bench.codec.close == CLOSE_FLUSH and bench.out == b""

    def test_retired_within_a_request(self):
        bench = ServerBench()
        bench.feed(GET)
        bench.codec.retire(bench.now)
        bench.answer()
        assert b"connection: close\r\n" in bench.out
        assert bench.codec.close == CLOSE_FLUSH

    def test_retired_between_head_and_end_one_more_is_served(self):
        bench = ServerBench()
        bench.feed(GET)
        bench.codec.send_head(response(200, 2), False)
        bench.codec.retire(bench.now)
        bench.codec.send_data(b"ok", True)
        bench.pump()
        assert bench.is_open and b"connection: close" not in bench.taken()
        bench.feed(GET)
        bench.answer()
        assert b"connection: close\r\n" in bench.out

    def test_cut(self):
        idle = ServerBench()
        idle.codec.cut(CUT)
        assert idle.codec.close == CLOSE_FLUSH
        busy = ServerBench()
        busy.feed(GET)
        busy.codec.cut(CUT)
        assert busy.request.error is CUT
