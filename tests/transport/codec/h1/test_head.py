"""Whole heads, parsed and written: targets, framing, connection options, what is refused (RFC 9112)."""

import pytest

from router.errors import Kind, ProxyError
from router.http import RequestHead, RequestShape, ResponseHead, ResponseShape
from router.transport.codec.h1.connection import HEAD_BARE_LF, HEAD_INCOMPLETE, HEAD_TOO_LONG, find_head_end
from router.transport.codec.h1.head import (
    CHUNKED,
    HTTP_10,
    KEEP_ALIVE,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    parse_request,
    parse_response,
    write_request,
    write_response,
)

HOST = b"\r\nHost: a"


def parsed(*lines):
    found = parse_request(b"\r\n".join(lines))
    assert not isinstance(found, ProxyError), found
    return found


def refused(*lines):
    found = parse_request(b"\r\n".join(lines))
    assert isinstance(found, ProxyError), found[0].shape.fields
    return found.kind


class TestRequestLine:
    @pytest.mark.parametrize(
        ("line", "method", "path", "authority"),
        [
            (b"GET / HTTP/1.1", b"GET", b"/", b"a"),
            (b"get /x?y=/z&%41 HTTP/1.1", b"get", b"/x?y=/z&%41", b"a"),
            (b'M-SEARCH /"<>\\^`{|} HTTP/1.1', b"M-SEARCH", b'/"<>\\^`{|}', b"a"),
            (b"OPTIONS * HTTP/1.1", b"OPTIONS", b"*", b"a"),
            (b"GET http://B:80/x HTTP/1.1", b"GET", b"/x", b"b:80"),
            (b"GET HTTPS://b?q HTTP/1.1", b"GET", b"/?q", b"b"),
            (b"GET http://b HTTP/1.1", b"GET", b"/", b"b"),
            (b"OPTIONS http://b HTTP/1.1", b"OPTIONS", b"*", b"b"),  # RFC 9112 §3.2.4
            (b"GET http://[::1]:8/ HTTP/1.1", b"GET", b"/", b"[::1]:8"),
            (b"GET //b/x HTTP/1.1", b"GET", b"//b/x", b"a"),
        ],
    )  # fmt: skip
    def test_taken(self, line, method, path, authority):
        head, bits, key = parsed(line + HOST)
        shape = head.shape
        assert (shape.method, shape.path, shape.authority) == (method, path, authority)
        assert bits == KEEP_ALIVE
        assert key == b""

    @pytest.mark.parametrize(
        ("line", "kind"),
        [
            (b"", Kind.BAD_REQUEST),
            (b"GET /", Kind.BAD_REQUEST),
            (b"GET  / HTTP/1.1", Kind.BAD_REQUEST),
            (b" GET / HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET / HTTP/1.1 ", Kind.BAD_REQUEST),
            (b"GET /a b HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET\t/ HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET /\x00 HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET /\xc3\xa4 HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET /#x HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET x HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET * HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET ftp://b/ HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET http:///x HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET http://:80/x HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET http://u@b/x HTTP/1.1", Kind.BAD_REQUEST),
            (b"G(T / HTTP/1.1", Kind.BAD_REQUEST),
            (b"GET / http/1.1", Kind.BAD_REQUEST),
            (b"GET / HTTP/11", Kind.BAD_REQUEST),
            (b"GET / HTTP/1.2", Kind.VERSION_UNSUPPORTED),
            (b"GET / HTTP/2.0", Kind.VERSION_UNSUPPORTED),
            (b"GET / HTTP/0.9", Kind.VERSION_UNSUPPORTED),
            (b"CONNECT a:1 HTTP/1.1", Kind.NOT_IMPLEMENTED),
            (b"X" * 65 + b" / HTTP/1.1", Kind.BAD_REQUEST),
        ],
    )
    def test_refused(self, line, kind):
        assert refused(line + HOST) is kind


class TestRequestFraming:
    GET = b"POST / HTTP/1.1" + HOST

    def test_a_length(self):
        assert parsed(self.GET, b"Content-Length: 0017")[0].length == 17
        assert parsed(self.GET, b"CONTENT-LENGTH:   7  ")[0].length == 7

    @pytest.mark.parametrize(
        "lines",
        [
            [b"Content-Length: -1"], [b"Content-Length: +1"], [b"Content-Length: 1.0"], [b"Content-Length: 0x1"], [b"Content-Length: "],
            [b"Content-Length: 1, 1"], [b"Content-Length: 1 1"], [b"Content-Length: 1_0"], [b"Content-Length: \xb2"], [b"Content-Length: " + b"9" * 19],
            [b"Content-Length: 1", b"Content-Length: 1"], [b"Content-Length: 1", b"content-length: 2"],
            [b"Content-Length: 1", b"Transfer-Encoding: chunked"], [b"Transfer-Encoding: chunked", b"Content-Length: 1"],
            [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], [b"Transfer-Encoding: chunked, chunked"],
            [b"Transfer-Encoding: chunked, gzip"], [b"Transfer-Encoding: xchunked"], [b'Transfer-Encoding: "chunked"'], [b"Transfer-Encoding:"],
            [b"Transfer-Encoding : chunked"], [b"Host: b"], [b"Authorization: a", b"Authorization: b"], [b"A: b\rc"], [b" folded"],
        ],
    )  # fmt: skip
    def test_refused(self, lines):
        assert refused(self.GET, *lines) is Kind.BAD_REQUEST

    def test_unknown_codings(self):
        assert refused(self.GET, b"Transfer-Encoding: gzip, chunked") is Kind.NOT_IMPLEMENTED

    def test_chunked(self):
        assert parsed(self.GET, b"Transfer-Encoding: Chunked")[1] == KEEP_ALIVE | CHUNKED

    def test_http_10(self):
        head, bits, _ = parsed(b"GET / HTTP/1.0")
        assert (bits, head.shape.authority, head.shape.version) == (HTTP_10, b"", b"HTTP/1.0")
        assert parsed(b"GET / HTTP/1.0", b"Connection: Keep-Alive")[1] == HTTP_10 | KEEP_ALIVE
        assert refused(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked") is Kind.BAD_REQUEST
        assert not parsed(b"POST / HTTP/1.0", b"Expect: 100-continue")[0].shape.expects_continue

    def test_a_host_is_asked_for_once(self):
        assert refused(b"GET / HTTP/1.1") is Kind.BAD_REQUEST
        assert refused(b"GET http://b/ HTTP/1.1") is Kind.BAD_REQUEST  # RFC 9112 §3.2
        assert refused(b"GET / HTTP/1.0", b"Host: a", b"Host: a") is Kind.BAD_REQUEST

    def test_the_number_of_fields(self):
        assert parsed(self.GET, *[b"A: b"] * (MAX_FIELDS - 1))
        assert refused(self.GET, *[b"A: b"] * MAX_FIELDS) is Kind.HEAD_TOO_LARGE


class TestConnection:
    def test_close_beats_keep_alive(self):
        assert not parsed(b"GET / HTTP/1.1" + HOST, b"Connection: keep-alive, close")[1] & KEEP_ALIVE

    def test_hop_by_hop_fields_are_taken_out_with_what_they_name(self):
        head, _, _ = parsed(
            b"GET / HTTP/1.1" + HOST, b"X-Hop: 1", b"Connection: X-Hop, x-request-id", b"X-Request-Id: 7", b"Keep-Alive: 5",
            b"Proxy-Connection: x", b"TE: trailers", b"Trailer: x", b"Upgrade: h2c", b"HTTP2-Settings: x", b"X-Kept: 1",
        )  # fmt: skip
        assert head.shape.fields == [(b"x-kept", b"1")]
        assert head.shape.known == {}
        assert head.shape.takes_trailers

    def test_naming_what_frames_the_message_changes_nothing(self):
        head, _, _ = parsed(b"POST / HTTP/1.1" + HOST, b"Connection: content-length, host", b"Content-Length: 5")
        assert (head.length, head.shape.authority) == (5, b"a")

    def test_known_fields_are_handed_over_by_name_and_joined(self):
        head, _, _ = parsed(
            b"GET / HTTP/1.1" + HOST, b"X-Forwarded-For: 1", b"X-Forwarded-For: 2", b"X-Router-Key: k"
        )
        assert head.shape.fields == []
        assert head.shape.known == {b"x-forwarded-for": b"1, 2", b"x-router-key": b"k"}

    def test_authorization_is_forwarded_too(self):
        head, _, _ = parsed(b"GET / HTTP/1.1" + HOST, b"Authorization: Bearer x")
        assert head.shape.authorization == b"Bearer x"
        assert head.shape.fields == [(b"authorization", b"Bearer x")]
        assert head.shape.without_authorization().fields == []


class TestHandshake:
    LINES = (
        b"GET /ws HTTP/1.1" + HOST,
        b"Upgrade: WebSocket",
        b"Connection: keep-alive, Upgrade",
        b"Sec-WebSocket-Version: 13",
    )
    KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="

    def test_taken(self):
        head, _, key = parsed(*self.LINES, self.KEY, b"Sec-WebSocket-Protocol: x", b"Content-Length: 0")
        assert key == b"dGhlIHNhbXBsZSBub25jZQ=="
        assert (head.shape.method, head.shape.upgrade, head.length) == (b"CONNECT", b"websocket", None)
        assert head.shape.fields == [(b"sec-websocket-protocol", b"x")]

    @pytest.mark.parametrize(
        ("lines", "kind"),
        [
            ([], Kind.BAD_REQUEST),
            ([b"Sec-WebSocket-Key: short=="], Kind.BAD_REQUEST),
            ([b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR=="], Kind.BAD_REQUEST),
            ([KEY, KEY], Kind.BAD_REQUEST),
            ([KEY, b"Content-Length: 1"], Kind.BAD_REQUEST),
            ([KEY, b"Transfer-Encoding: chunked"], Kind.BAD_REQUEST),
        ],
    )
    def test_refused(self, lines, kind):
        assert refused(*self.LINES, *lines) is kind

    def test_another_version(self):
        assert refused(*self.LINES[:-1], b"Sec-WebSocket-Version: 8", self.KEY) is Kind.UPGRADE_UNSUPPORTED

    @pytest.mark.parametrize("missing", [1, 2])
    def test_half_of_an_offer_is_ignored(self, missing):
        lines = [line for i, line in enumerate(self.LINES) if i != missing]
        head, _, key = parsed(*lines, self.KEY)
        assert (head.shape.method, key) == (b"GET", b"")

    def test_http_10_cannot(self):
        assert parsed(b"GET / HTTP/1.0", *self.LINES[1:], self.KEY)[0].shape.upgrade is None


class TestResponses:
    @pytest.mark.parametrize(
        "line",
        [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.1 200 OK \xff\t"],
        ids=["empty", "bare", "space", "odd"],
    )
    def test_the_status_line(self, line):
        found = parse_response(line)
        if line:
            assert (found[0].shape.status, found[1]) == (200, KEEP_ALIVE)
        else:
            assert found.kind is Kind.UPSTREAM_PROTOCOL

    @pytest.mark.parametrize(
        "line",
        [
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 099 X",
            b"HTTP/1.1  200 OK",
            b"HTTP/1.1 2000 OK",
            b"http/1.1 200 OK",
            b"HTTP/2 200",
        ],
    )
    def test_a_broken_status_line(self, line):
        assert parse_response(line).kind is Kind.UPSTREAM_PROTOCOL

    @pytest.mark.parametrize(
        ("value", "is_stream"),
        [(b"text/event-stream", True), (b"Text/Event-Stream; charset=utf-8", True), (b"text/plain", False)],
    )
    def test_event_streams(self, value, is_stream):
        assert parse_response(b"HTTP/1.1 200 OK\r\nContent-Type: " + value)[0].shape.is_event_stream is is_stream

    def test_what_the_router_says_itself_is_taken_out(self):
        head, bits, _ = parse_response(
            b"HTTP/1.1 200 OK\r\nServer-Timing: a\r\nX-Router-Error: no\r\nKeep-Alive: 5\r\nConnection: close\r\nB: c"
        )
        assert head.shape.fields == [(b"b", b"c")]
        assert head.shape.known == {b"server-timing": b"a", b"x-router-error": b"no"}
        assert not bits & KEEP_ALIVE


class TestWriting:
    def test_a_shape_is_written_once_and_the_rest_each_time(self):
        shape = RequestShape(b"POST", b"/", b"a")
        shape.fields = [(b"b", b"c")]
        first, second = RequestHead(shape, 3), RequestHead(shape, None)
        second.added = [(b"x-request-id", b"1")]
        assert (
            write_request(first, False, b"r", b"")
            == b"POST / HTTP/1.1\r\nhost: a\r\nb: c\r\ncontent-length: 3\r\n\r\n"
        )
        assert (
            write_request(second, False, b"r", b"")
            == b"POST / HTTP/1.1\r\nhost: a\r\nb: c\r\ntransfer-encoding: chunked\r\nx-request-id: 1\r\n\r\n"
        )

    def test_a_shape_without_authority_names_each_replica_anew(self):
        shape = RequestShape(b"GET", b"/", b"")
        for replica in (b"r1:1", b"r2:2"):
            assert (
                write_request(RequestHead(shape), True, replica, b"")
                == b"GET / HTTP/1.1\r\nhost: " + replica + b"\r\n\r\n"
            )

    def test_trailers_are_asked_for_by_name(self):
        shape = RequestShape(b"GET", b"/", b"a")
        shape.sends_te = True
        assert b"connection: te\r\nte: trailers\r\n" in write_request(
            RequestHead(shape), True, b"r", b""
        )  # RFC 9110 §10.1.4

    def test_a_response(self):
        head = ResponseHead(ResponseShape(404))
        head.added = [(b"a", b"b")]
        for _ in range(2):
            assert (
                write_response(head, b"content-length: 0\r\n")
                == b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\na: b\r\n\r\n"
            )
        assert write_response(head, b"", 101).startswith(b"HTTP/1.1 101 ")


class TestEnd:
    @pytest.mark.parametrize(
        ("data", "found"),
        [
            (b"GET / HTTP/1.1\r\nA: b\r\n\r\nbody\n", 20),
            (b"GET / HTTP/1.1\r\nA: b\r\n\r", HEAD_INCOMPLETE),
            (b"GET / HTTP/1.1\nA: b", HEAD_BARE_LF),
            (b"\n", HEAD_BARE_LF),
            (b"x" * (MAX_HEAD_BYTES + 4), HEAD_TOO_LONG),
            (b"x" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n", HEAD_TOO_LONG),
            (b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", MAX_HEAD_BYTES),
        ],
    )
    def test_it_is_found_however_much_was_searched(self, data, found):
        for searched in {0, 1, len(data) - 4, len(data) - 3, len(data) - 2, len(data) - 1}:
            before = data[:searched]
            if 0 <= searched and b"\r\n\r\n" not in before and before.count(b"\n") == before.count(b"\r\n"):
                assert find_head_end(data, searched) == found

    def test_a_head_of_exactly_the_bound(self):
        assert find_head_end(b"x" * MAX_HEAD_BYTES + b"\r\n\r", 0) == HEAD_INCOMPLETE
