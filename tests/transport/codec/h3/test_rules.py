"""What RFC 9114, 9204, 9218, 9220 and 9297 forbid: bytes on a stream, and what becomes of the stream or the connection."""

import pytest
from bearer import CONNECT, GET, POST, ServerBench, data, frame, headers, section, settings
from h1kit import response

from router.errors import Kind
from router.transport.codec.h3 import frames
from router.transport.codec.h3.limits import (
    EMPTY_BURST,
    IDLE_BURST,
    MAX_BLOCK_BYTES,
    MAX_PRIORITY_BYTES,
    MAX_SETTINGS_BYTES,
    RESET_BURST,
)
from router.transport.codec.h3.oneway import ControlStream
from router.transport.codec.quic.limits import MAX_STREAMS
from router.transport.codec.quic.varint import varint

CREATION, CRITICAL, UNEXPECTED, FRAME, LOAD, ID, SETTINGS, MISSING = range(0x103, 0x10B)
REJECTED, CANCELLED, INCOMPLETE, MESSAGE = range(0x10B, 0x10F)
DECOMPRESSION, ENCODER, DECODER = range(0x200, 0x203)

GREASE = 0x1F * 7 + 0x21
BIG_GREASE = 0x1F * (1 << 50) + 0x21


def v(value):
    return varint(value)


CONTROL = {
    "nothing but SETTINGS": (settings(), None),
    "settings known and unknown": (settings((6, 1 << 40), (1, 4096), (7, 100), (8, 1), (0x33, 1), (GREASE, 5)), None),
    "grease behind SETTINGS": (settings() + frame(GREASE, b"x" * 50) + frame(BIG_GREASE), None),
    "SETTINGS in long forms": (b"\xc0\0\0\0\0\0\0\4\x80\0\0\x02\x21\0", None),
    "SETTINGS are missing": (frame(frames.GOAWAY, v(0)), MISSING),
    "grease in front of SETTINGS": (frame(GREASE) + settings(), MISSING),
    "DATA first": (data(b"x"), MISSING),
    "SETTINGS twice": (settings() + settings(), UNEXPECTED),
    "a setting twice": (settings((6, 1), (6, 1)), SETTINGS),
    "a setting of HTTP/2: 0": (settings((0, 1)), SETTINGS),
    "a setting of HTTP/2: ENABLE_PUSH": (settings((2, 0)), SETTINGS),
    "a setting of HTTP/2: MAX_CONCURRENT_STREAMS": (settings((3, 1)), SETTINGS),
    "a setting of HTTP/2: INITIAL_WINDOW_SIZE": (settings((4, 1)), SETTINGS),
    "a setting of HTTP/2: MAX_FRAME_SIZE": (settings((5, 1)), SETTINGS),
    "extended CONNECT out of range": (settings((8, 2)), SETTINGS),
    "datagrams out of range": (settings((0x33, 2)), SETTINGS),
    "SETTINGS end within a value": (frame(frames.SETTINGS, b"\x06\x80\0"), FRAME),
    "SETTINGS end within a name": (frame(frames.SETTINGS, b"\x40"), FRAME),
    "SETTINGS end without a value": (frame(frames.SETTINGS, b"\x06"), FRAME),
    "SETTINGS without end": (frame(frames.SETTINGS, length=MAX_SETTINGS_BYTES + 1), LOAD),
    "a thousand settings": (settings(*((GREASE + 0x1F * i, 1) for i in range(1_000))), LOAD),
    "DATA": (settings() + data(b"x"), UNEXPECTED),
    "HEADERS": (settings() + headers(GET), UNEXPECTED),
    "PUSH_PROMISE": (settings() + frame(frames.PUSH_PROMISE, v(0) + section(GET)), UNEXPECTED),
    "a frame of HTTP/2: PRIORITY": (settings() + frame(2, b"xxxxx"), UNEXPECTED),
    "a frame of HTTP/2: PING": (settings() + frame(6, b"12345678"), UNEXPECTED),
    "a frame of HTTP/2: WINDOW_UPDATE": (settings() + frame(8, b"1234"), UNEXPECTED),
    "a frame of HTTP/2: CONTINUATION": (settings() + frame(9, b""), UNEXPECTED),
    "MAX_PUSH_ID": (settings() + frame(0xD, v(5)) + frame(0xD, v(5)) + frame(0xD, v(1 << 40)), None),
    "MAX_PUSH_ID goes down": (settings() + frame(0xD, v(5)) + frame(0xD, v(4)), ID),
    "MAX_PUSH_ID empty": (settings() + frame(0xD), FRAME),
    "MAX_PUSH_ID with a tail": (settings() + frame(0xD, b"\x05x"), FRAME),
    "MAX_PUSH_ID cut short": (settings() + frame(0xD, b"\x80\0"), FRAME),
    "MAX_PUSH_ID too long": (settings() + frame(0xD, length=9), FRAME),
    "CANCEL_PUSH": (settings() + frame(3, v(0)), ID),
    "CANCEL_PUSH of what was allowed": (settings() + frame(0xD, v(5)) + frame(3, v(0)), ID),
    "GOAWAY": (settings() + frame(7, v(8)) + frame(7, v(8)) + frame(7, v(0)), None),
    "GOAWAY goes up": (settings() + frame(7, v(4)) + frame(7, v(8)), ID),
    "GOAWAY without an id": (settings() + frame(7), FRAME),
    "PRIORITY_UPDATE": (settings() + frame(0xF0700, v(0) + b"u=1, i") + frame(0xF0700, v(400)), None),
    "PRIORITY_UPDATE of a stream that is no request": (settings() + frame(0xF0700, v(2) + b"u=1"), ID),
    "PRIORITY_UPDATE without an id": (settings() + frame(0xF0700), FRAME),
    "PRIORITY_UPDATE of a push": (settings() + frame(0xF0701, v(0) + b"u=1"), ID),
    "PRIORITY_UPDATE without end": (settings() + frame(0xF0700, length=MAX_PRIORITY_BYTES + 1), LOAD),
}


@pytest.mark.parametrize(("stream", "code"), CONTROL.values(), ids=CONTROL)
def test_control_stream(stream, code, cut):
    bench = ServerBench(greet=False)
    bench.codec.connected()
    bench.feed(2, v(frames.CONTROL_STREAM) + stream, cut=cut)
    assert bench.close_code == code
    if code is None:
        assert bench.codec.saw_settings
        bench.feed(0, headers(GET), end=True)
        bench.answer()
        assert bench.status(0) == "200" and bench.all_credited()


CREDENTIALS = [("authorization", "x"), ("authorization", "y")]

# What comes on a request's stream, with a FIN behind it -> code of a connection's end, of a stream's, or a status.
REQUESTS = {
    "DATA first": (data(b"x"), "close", UNEXPECTED),
    "nothing": (b"", "reset", INCOMPLETE),
    "nothing but grease": (frame(GREASE, b"abc"), "reset", INCOMPLETE),
    "an end within a type": (b"\x40", "close", FRAME),
    "an end within a length": (b"\x01\x40", "close", FRAME),
    "an end within a head": (headers(GET)[:-1], "close", FRAME),
    "an end within DATA": (headers(POST) + frame(0, b"abc", length=4), "close", FRAME),
    "an end behind the header of DATA": (headers(POST) + b"\0\x04", "close", FRAME),
    "an end within grease": (headers(POST) + frame(GREASE, b"abc", length=4), "close", FRAME),
    "an end within trailers": (headers(POST) + headers([("a", "b")])[:-1], "close", FRAME),
    "SETTINGS": (headers(POST) + settings(), "close", UNEXPECTED),
    "SETTINGS first": (settings(), "close", UNEXPECTED),
    "GOAWAY": (headers(POST) + frame(7, v(0)), "close", UNEXPECTED),
    "MAX_PUSH_ID": (frame(0xD, v(0)), "close", UNEXPECTED),
    "CANCEL_PUSH": (frame(3, v(0)), "close", UNEXPECTED),
    "PUSH_PROMISE": (headers(GET) + frame(5, v(0) + section(GET)), "close", UNEXPECTED),
    "PRIORITY_UPDATE": (frame(0xF0700, v(0)), "close", UNEXPECTED),
    "a frame of HTTP/2: 2": (frame(2), "close", UNEXPECTED),
    "a frame of HTTP/2: 6": (headers(POST) + frame(6), "close", UNEXPECTED),
    "a frame of HTTP/2: 8": (headers(POST) + data(b"x") + frame(8), "close", UNEXPECTED),
    "a frame of HTTP/2: 9": (headers(POST) + frame(9), "close", UNEXPECTED),
    "DATA behind trailers": (headers(POST) + headers([("a", "b")]) + data(b"x"), "close", UNEXPECTED),
    "HEADERS behind trailers": (headers(POST) + headers([("a", "b")]) * 2, "close", UNEXPECTED),
    "a section without its prefix": (frame(1, b"\0"), "close", DECOMPRESSION),
    "an empty section": (frame(1, b""), "close", DECOMPRESSION),
    "a section without fields": (frame(1, b"\0\0"), "reset", MESSAGE),
    "a dynamic table": (frame(1, b"\x02\0\x80"), "close", DECOMPRESSION),
    "trailers with a dynamic table": (headers(POST) + frame(1, b"\0\0\x80"), "close", DECOMPRESSION),
    "Huffman": (frame(1, b"\0\0\x51\x82\xff\xff"), "close", DECOMPRESSION),
    "no method": (headers(GET[1:]), "reset", MESSAGE),
    "no scheme": (headers([GET[0], *GET[2:]]), "reset", MESSAGE),
    "no path": (headers(GET[:3]), "reset", MESSAGE),
    "an empty path": (headers([*GET[:3], (":path", "")]), "reset", MESSAGE),
    "no authority": (headers([*GET[:2], GET[3]]), "reset", MESSAGE),
    "host alone": (headers([*GET[:2], GET[3], ("host", "a.example")]), "ok", None),
    "host that agrees": (headers([*GET, ("host", "A.example")]), "ok", None),
    "host that does not": (headers([*GET, ("host", "b.example")]), "reset", MESSAGE),
    "an empty authority": (headers([*GET[:2], (":authority", ""), GET[3], ("host", "a")]), "reset", MESSAGE),
    "a pseudo-field twice": (headers([*GET, (":path", "/")]), "reset", MESSAGE),
    "an unknown pseudo-field": (headers([*GET, (":unknown", "x")]), "reset", MESSAGE),
    "a response's pseudo-field": (headers([*GET, (":status", "200")]), "reset", MESSAGE),
    "a pseudo-field behind another": (headers([*GET[:3], ("a", "b"), GET[3]]), "reset", MESSAGE),
    "a pseudo-field in trailers": (headers(POST) + headers([(":path", "/")]), "reset", MESSAGE),
    "capitals": (headers([*GET, ("A", "b")]), "reset", MESSAGE),
    "connection": (headers([*GET, ("connection", "close")]), "reset", MESSAGE),
    "transfer-encoding": (headers([*GET, ("transfer-encoding", "chunked")]), "reset", MESSAGE),
    "upgrade": (headers([*GET, ("upgrade", "websocket")]), "reset", MESSAGE),
    "te trailers": (headers([*GET, ("te", "trailers")]), "ok", None),
    "te gzip": (headers([*GET, ("te", "gzip")]), "reset", MESSAGE),
    "NUL": (headers([*GET, ("a", "b\0c")]), "reset", MESSAGE),
    "CR": (headers([*GET, ("a", "b\rc")]), "reset", MESSAGE),
    "a space in front": (headers([*GET, ("a", " b")]), "reset", MESSAGE),
    "two credentials": (headers([*GET, *CREDENTIALS]), "reset", MESSAGE),
    "connection in trailers": (headers(POST) + headers([("connection", "x")]), "reset", MESSAGE),
    "a length that is kept": (headers([*POST, ("content-length", "3")]) + data(b"a") + data(b"bc"), "ok", None),
    "a length of nothing": (headers([*POST, ("content-length", "0")]), "ok", None),
    "a length and nothing": (headers([*POST, ("content-length", "3")]), "reset", MESSAGE),
    "a length and less": (headers([*POST, ("content-length", "3")]) + data(b"ab"), "reset", MESSAGE),
    "a length and less, and trailers": (
        headers([*POST, ("content-length", "3")]) + data(b"ab") + headers([("a", "b")]), "reset", MESSAGE,
    ),
    "a length and more": (headers([*POST, ("content-length", "3")]) + data(b"abcd"), "reset", MESSAGE),
    "a length and more, later": (headers([*POST, ("content-length", "3")]) + data(b"abc") + data(b"d"), "reset", MESSAGE),
    "a length that is none": (headers([*POST, ("content-length", "-3")]), "reset", MESSAGE),
    "two lengths": (headers([*POST, ("content-length", "3"), ("content-length", "3")]) + data(b"abc"), "reset", MESSAGE),
    "CONNECT": (headers([(":method", "CONNECT"), (":authority", "a:1")]), "status", "501"),
    "CONNECT for WebTransport": (
        headers([*CONNECT[:4], (":protocol", "webtransport")]) + data(b"x"), "status", "501",
    ),
    "another version of WebSocket": (headers([*CONNECT[:5], ("sec-websocket-version", "8")]) + data(b"x"), "status", "426"),
    "a protocol without CONNECT": (headers([*GET, (":protocol", "websocket")]), "reset", MESSAGE),
    "a tunnel that ends where it begins": (headers(CONNECT), "ok", None),
    "too many fields": (headers([*GET, *((f"x-{i}", "y") for i in range(200))]), "status", "431"),
    "fields that are too large": (headers([*GET, *((f"x-{i}", "y" * 3_000) for i in range(22))]), "status", "431"),
    "a section that is too long": (frame(1, length=MAX_BLOCK_BYTES + 1), "status", "431"),
    "grease everywhere": (
        frame(GREASE, b"x" * 9) + headers(POST) + frame(GREASE) + data(b"abc") + frame(BIG_GREASE, b"y" * 300)
        + headers([("a", "b")]) + frame(GREASE, b"z"), "ok", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("lone_fin", [False, True], ids=["fin", "lone-fin"])
@pytest.mark.parametrize(("stream", "what", "code"), REQUESTS.values(), ids=REQUESTS)
def test_request_stream(stream, what, code, cut, lone_fin):
    bench = ServerBench()
    flow = bench.feed(0, stream, end=True, cut=cut, lone_fin=lone_fin)
    if what == "close":
        assert bench.close_code == code
        assert all(receiver.error.kind is Kind.CLIENT_GONE for receiver in bench.requests)
        return
    assert bench.is_open
    if what == "reset":
        assert flow.reset_code == code
        assert all(not receiver.ended and receiver.error is not None for receiver in bench.requests)
    elif what == "status":
        assert not bench.requests and bench.status(0) == code and len(bench.refused) == 1
        assert flow.fin and flow.reset_code is None
    else:
        assert bench.request.ended and bench.request.error is None
        bench.answer()
        assert bench.status(0) == "200"
    assert not bench.codec.active and bench.all_credited()
    bench.feed(4, headers(GET), end=True)
    bench.answer()
    assert bench.body(4) == b"ok", "the connection goes on"


ONE_WAY = {
    "push": (v(1) + v(0), CREATION),
    "a second control stream": (v(0) + settings(), CREATION),
    "an encoder that sets nothing": (v(2) + b"\x20\x20", None),
    "an encoder that sets a capacity": (v(2) + b"\x21", ENCODER),
    "an encoder that sets a large one": (v(2) + b"\x3f\x80\x01", ENCODER),
    "an encoder that inserts by a name": (v(2) + b"\xc1\x01a", ENCODER),
    "an encoder that inserts": (v(2) + b"\x41a\x01b", ENCODER),
    "an encoder that duplicates": (v(2) + b"\x00", ENCODER),
    "a decoder that cancels": (v(3) + b"\x40\x44\x7f\x80\x80\x01\x48", None),
    "a decoder that cancels for ever": (v(3) + b"\x7f" + b"\x80" * 30, DECODER),
    "a decoder that acknowledges": (v(3) + b"\x80", DECODER),
    "a decoder that counts": (v(3) + b"\x01", DECODER),
    "a decoder that counts nothing": (v(3) + b"\x00", DECODER),
}


@pytest.mark.parametrize(("stream", "code"), ONE_WAY.values(), ids=ONE_WAY)
def test_one_way_streams(stream, code, cut):
    bench = ServerBench()
    bench.feed(6, stream, cut=cut)
    assert bench.close_code == code
    if code is None:
        assert bench.all_credited()


@pytest.mark.parametrize("kind", [GREASE, BIG_GREASE, 0x54, 0x4, 0x1234])
@pytest.mark.parametrize("end", [False, True])
def test_streams_of_other_types_are_turned_away(kind, end, cut):
    """RFC 9114 §6.2: no fault of the connection."""
    bench = ServerBench()
    flow = bench.feed(6, v(kind) + b"whatever", end=end, cut=cut)
    if not end:
        assert flow.stop_code == CREATION
    assert bench.is_open and bench.all_credited()


@pytest.mark.parametrize("kind", [0, 2, 3])
@pytest.mark.parametrize("how", ["fin", "fin at once", "reset"])
def test_critical_streams_stay(kind, how):
    bench = ServerBench(greet=False)
    bench.codec.connected()
    head = v(kind) + (settings() if kind == 0 else b"")
    bench.feed(2, head, end=how == "fin at once")
    if how == "fin":
        bench.feed(2, end=True)
    elif how == "reset":
        bench.reset(2)
    assert bench.close_code == CRITICAL


@pytest.mark.parametrize("stream", [b"", b"\x40"])
@pytest.mark.parametrize("how", ["fin", "reset"])
def test_a_stream_may_end_before_its_type(stream, how):
    """RFC 9114 §6.2."""
    bench = ServerBench()
    bench.feed(6, stream, end=how == "fin")
    if how == "reset":
        bench.reset(6)
    assert bench.is_open


def test_our_control_stream_is_critical_too():
    bench = ServerBench()
    bench.stop(3)
    assert bench.close_code == CRITICAL


@pytest.mark.parametrize("kind", [2, 3])
def test_a_second_qpack_stream(kind):
    bench = ServerBench()
    bench.feed(6, v(kind))
    bench.feed(10, v(kind))
    assert bench.close_code == CREATION


class TestTunnels:
    @pytest.mark.parametrize("is_open", [False, True])
    @pytest.mark.parametrize("stream", [headers([("a", "b")]), settings(), frame(7, v(0))])
    def test_nothing_but_data(self, is_open, stream, cut):
        """RFC 9114 §4.4."""
        bench = ServerBench()
        bench.feed(0, headers(CONNECT))
        if is_open:
            bench.request.stream.send_head(response(200, tunnel=True), False)
        bench.feed(0, data(b"x") + stream, cut=cut)
        assert bench.close_code == UNEXPECTED and bench.request.error.kind is Kind.CLIENT_GONE


class TestFloods:
    def check(self, bench, feed, burst):
        """`feed(i)` wastes once; `burst` of them are allowed at once."""
        for i in range(int(burst) - 10):
            feed(i)
        assert bench.is_open, "too early"
        for i in range(int(burst) - 10, int(burst) + 50):
            if bench.is_open:
                feed(i)
        assert bench.close_code == LOAD and bench.floods == 1

    def test_rapid_reset(self):
        bench = ServerBench()

        def one(i):
            bench.feed(4 * i, headers(GET))
            bench.reset(4 * i)

        self.check(bench, one, RESET_BURST)
        assert all(receiver.error.kind is Kind.CLIENT_GONE for receiver in bench.requests)

    def test_rapid_stop(self):
        bench = ServerBench()

        def one(i):
            bench.feed(4 * i, headers(GET), end=True)
            bench.stop(4 * i)

        self.check(bench, one, RESET_BURST)

    def test_streams_that_say_nothing(self):
        bench = ServerBench()
        self.check(bench, lambda i: bench.feed(4 * i, end=True), RESET_BURST)

    def test_malformed_requests(self):
        bench = ServerBench()
        self.check(bench, lambda i: bench.feed(4 * i, headers(GET[1:]), end=True), RESET_BURST)

    def test_one_reset_counts_once(self):
        """Who cancels says both RESET_STREAM and STOP_SENDING."""
        bench = ServerBench()
        for i in range(int(RESET_BURST) - 10):
            bench.feed(4 * i, headers(POST))
            bench.reset(4 * i)
            bench.stop(4 * i)
        assert bench.is_open

    @pytest.mark.slow
    def test_answers_pardon_resets(self):
        bench = ServerBench()
        for i in range(0, 3 * 2_000, 3):
            for j in (0, 1):
                bench.feed(4 * (i + j), headers(GET), end=True)
                bench.answer()
            bench.feed(4 * (i + 2), headers(GET), end=True)
            bench.stop(4 * (i + 2))
        assert bench.is_open

    def test_empty_data(self):
        bench = ServerBench()
        bench.feed(0, headers(POST))
        self.check(bench, lambda i: bench.feed(0, data(b"")), EMPTY_BURST + 4)

    def test_unknown_frames(self):
        bench = ServerBench()
        bench.feed(0, headers(POST))
        self.check(bench, lambda i: bench.feed(0, frame(GREASE)), IDLE_BURST + 4)

    @pytest.mark.parametrize("one", [frame(GREASE), frame(0xF0700, v(0)), frame(7, v(0)), frame(0xD, v(0))])
    def test_a_control_stream_that_never_stops(self, one):
        bench = ServerBench()
        self.check(bench, lambda i: bench.feed(2, one), IDLE_BURST)

    def test_all_in_one_piece(self):
        bench = ServerBench()
        bench.feed(2, frame(GREASE) * 10_000)
        assert bench.close_code == LOAD and bench.floods == 1

    def test_streams_without_meaning(self):
        bench = ServerBench()
        self.check(bench, lambda i: bench.feed(4 * i + 6, v(GREASE)), IDLE_BURST)

    @pytest.mark.parametrize(("kind", "one"), [(2, b"\x20"), (3, b"\x44")])
    def test_qpack_instructions(self, kind, one):
        bench = ServerBench()
        bench.feed(6, v(kind))
        self.check(bench, lambda i: bench.feed(6, one), IDLE_BURST)

    def test_datagrams(self):
        bench = ServerBench()
        self.check(bench, lambda i: bench.codec.datagram(b"\0x"), IDLE_BURST)

    def test_requests_pay_for_a_little_grease(self):
        bench = ServerBench()
        for i in range(3_000):
            bench.feed(4 * i, headers(POST) + frame(GREASE, b"x") + data(b"") + data(b"") + frame(GREASE), end=True)
            bench.answer()
        assert bench.is_open

    def test_more_streams_than_are_allowed(self):
        """The engine keeps to the limit; should it not, we do."""
        bench = ServerBench()
        for i in range(MAX_STREAMS + 1):
            bench.feed(4 * i, headers(GET))
        assert len(bench.requests) == MAX_STREAMS and bench.flow(4 * MAX_STREAMS).reset_code == REJECTED
        assert bench.is_open

    def test_time_forgives(self):
        bench = ServerBench()
        for i in range(5_000):
            bench.bearer.now += 0.06
            bench.feed(2, frame(GREASE))
        assert bench.is_open


def test_no_payload_of_a_control_frame_is_passed_on():
    """`on_slice` is for what `on_frame` never asks."""
    with pytest.raises(AssertionError):
        ControlStream(ServerBench().codec).on_slice(b"", False)
