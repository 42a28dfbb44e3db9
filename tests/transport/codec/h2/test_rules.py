"""The rules of RFC 9113 as a table: what a client sends, and the error it gets for it."""

import hpack
import hyperframe.frame as hf
import pytest
from h2bench import (
    CALM,
    CLOSED,
    COMPRESSION,
    FLOW,
    GET,
    POST,
    PREFACE,
    PROTOCOL,
    REFUSED,
    SIZE,
    ServerBench,
    raw,
    rst,
    settings,
    window_update,
)

from router.errors import Kind
from router.transport.codec.h2.limits import MAX_STREAMS, STREAM_WINDOW

E, H, P, PR = 0x1, 0x4, 0x8, 0x20  # END_STREAM, END_HEADERS, PADDED, PRIORITY


def block(fields):
    return hpack.Encoder().encode(fields)


B = block(GET)
OPEN = raw(1, H, 1, block(POST))  # stream 1, its body to come
ENDED = raw(1, H | E, 1, B)


def with_field(*fields, base=GET):
    return raw(1, H | E, 1, block([*base, *fields]))


def without(name):
    return raw(1, H | E, 1, block([f for f in GET if f[0] != name]))


CONNECTION_FAULTS = [
    ("§4.2 a frame beyond the limit", raw(0, 0, 1, b"x" * 16_385), SIZE),
    ("§4.3 a broken block", raw(1, H | E, 1, b"\xbe"), COMPRESSION),
    ("§5.1 DATA on an idle stream", raw(0, E, 1, b"x"), PROTOCOL),
    ("§5.1 RST_STREAM on an idle stream", rst(1), PROTOCOL),
    ("§5.1 WINDOW_UPDATE on an idle stream", window_update(1, 1), PROTOCOL),
    ("§5.1 CONTINUATION on an idle stream", raw(9, H, 1, B), PROTOCOL),
    ("§5.1.1 an even stream", raw(1, H | E, 2, B), PROTOCOL),
    ("§5.1.1 a stream below one that was opened", raw(1, H | E, 5, B) + raw(1, H | E, 3, B), PROTOCOL),
    ("§6.1 DATA on stream 0", raw(0, 0, 0, b"x"), PROTOCOL),
    ("§6.1 padding as long as its frame", OPEN + raw(0, P, 1, b"\x03abc"[:3]), PROTOCOL),
    ("§6.1 no pad length", OPEN + raw(0, P, 1), SIZE),
    ("§6.2 HEADERS on stream 0", raw(1, H | E, 0, B), PROTOCOL),
    ("§6.2 padding longer than HEADERS", raw(1, H | E | P, 1, b"\xff" + B), PROTOCOL),
    ("§6.2 no room for the priority", raw(1, H | E | PR, 1, b"abc"), SIZE),
    ("§6.2 a block interrupted by another stream", raw(1, E, 1, B) + raw(1, H | E, 3, B), PROTOCOL),
    ("§6.2 a block interrupted by PING", raw(1, E, 1, B) + raw(6, 0, 0, b"12345678"), PROTOCOL),
    ("§6.2 a block interrupted by an unknown frame", raw(1, E, 1, B) + raw(0xF0, 0, 0, b"x"), PROTOCOL),
    ("§6.3 PRIORITY on stream 0", raw(2, 0, 0, b"\0\0\0\x01\x10"), PROTOCOL),
    ("§6.4 RST_STREAM on stream 0", rst(0), PROTOCOL),
    ("§6.4 RST_STREAM of another size", OPEN + raw(3, 0, 1, b"\0\0\0"), SIZE),
    ("§6.5 SETTINGS on a stream", raw(4, 0, 1), PROTOCOL),
    ("§6.5 an ACK with a payload", raw(4, 1, 0, b"\0\1\0\0\0\0"), SIZE),
    ("§6.5 not a multiple of six", raw(4, 0, 0, b"\0\1\0"), SIZE),
    ("§6.5.2 ENABLE_PUSH 2", raw(4, 0, 0, b"\0\2\0\0\0\2"), PROTOCOL),
    ("§6.5.2 INITIAL_WINDOW_SIZE 2^31", raw(4, 0, 0, b"\0\4\x80\0\0\0"), FLOW),
    ("§6.5.2 MAX_FRAME_SIZE 16383", raw(4, 0, 0, b"\0\5\0\0\x3f\xff"), PROTOCOL),
    ("§6.5.2 MAX_FRAME_SIZE 2^24", raw(4, 0, 0, b"\0\5\1\0\0\0"), PROTOCOL),
    ("RFC 9218 §2.1 NO_RFC7540_PRIORITIES 2", raw(4, 0, 0, b"\0\x09\0\0\0\2"), PROTOCOL),
    ("RFC 8441 §3 ENABLE_CONNECT_PROTOCOL 2", raw(4, 0, 0, b"\0\x08\0\0\0\2"), PROTOCOL),
    ("§6.6 PUSH_PROMISE of a client", raw(5, H, 1, b"\0\0\0\2" + B), PROTOCOL),
    ("§6.7 PING on a stream", raw(6, 0, 1, b"12345678"), PROTOCOL),
    ("§6.7 PING of another size", raw(6, 0, 0, b"1234567"), SIZE),
    ("§6.8 GOAWAY on a stream", raw(7, 0, 1, b"\0" * 8), PROTOCOL),
    ("§6.8 GOAWAY too short", raw(7, 0, 0, b"\0" * 7), SIZE),
    ("§6.9 WINDOW_UPDATE of 0", window_update(0, 0), PROTOCOL),
    ("§6.9 WINDOW_UPDATE of another size", raw(8, 0, 0, b"\0\0\1"), SIZE),
    ("§6.9.1 the window beyond 2^31-1", window_update(0, 2**31 - 1) * 2, FLOW),
    ("§6.9.2 a setting takes a stream's window beyond", OPEN + window_update(1, 2**31 - 1 - 65_535)
     + raw(4, 0, 0, b"\0\4\0\1\xff\xff"), FLOW),
    ("§6.10 CONTINUATION without HEADERS", OPEN + raw(9, H, 1, b""), PROTOCOL),
    ("§6.10 CONTINUATION of another stream", raw(1, E, 1, B[:2]) + raw(9, H, 3, B[2:]), PROTOCOL),
    ("§6.10 CONTINUATION behind the end", ENDED + raw(9, H, 1, B), PROTOCOL),
    ("RFC 9218 §7.1 PRIORITY_UPDATE on a stream", raw(16, 0, 1, b"\0\0\0\1u=1"), PROTOCOL),
]  # fmt: skip

STREAM_FAULTS = [
    ("§5.1 DATA on a half-closed stream", ENDED + raw(0, E, 1, b"x"), CLOSED),
    ("§5.1 HEADERS on a half-closed stream", ENDED + raw(1, H | E, 1, B), CLOSED),
    ("§6.3 PRIORITY of another size", OPEN + raw(2, 0, 1, b"\0\0\0\0"), SIZE),
    ("§6.9 WINDOW_UPDATE of 0", OPEN + window_update(1, 0), PROTOCOL),
    ("§6.9.1 the window beyond 2^31-1", OPEN + window_update(1, 2**31 - 1) * 2, FLOW),
    ("§8.1 trailers that do not end the stream", OPEN + raw(1, H, 1, block([("a", "b")])), PROTOCOL),
    ("§8.1 a pseudo-field in trailers", OPEN + raw(1, H | E, 1, block([(":path", "/")])), PROTOCOL),
    ("§8.1.1 more than its length", raw(1, H, 1, block([*POST, ("content-length", "1")])) + raw(0, E, 1, b"ab"), PROTOCOL),
    ("§8.1.1 less than its length", raw(1, H, 1, block([*POST, ("content-length", "3")])) + raw(0, E, 1, b"ab"), PROTOCOL),
    ("§8.1.1 less than its length, trailers", raw(1, H, 1, block([*POST, ("content-length", "3")]))
     + raw(1, H | E, 1, block([("a", "b")])), PROTOCOL),
    ("§8.1.1 a length and no body", with_field(("content-length", "3")), PROTOCOL),
    ("two lengths", with_field(("content-length", "3"), ("content-length", "3")), PROTOCOL),
    ("a length that is no number", with_field(("content-length", "+3")), PROTOCOL),
    ("§8.2 a capital letter", with_field(("X-A", "b")), PROTOCOL),
    ("§8.2.1 a line break in a value", with_field(("x-a", "b\r\nc: d")), PROTOCOL),
    ("§8.2.1 a NUL in a value", with_field(("x-a", "b\0")), PROTOCOL),
    ("§8.2.1 white space before a value", with_field(("x-a", " b")), PROTOCOL),
    ("§8.2.1 white space behind a value", with_field(("x-a", "b\t")), PROTOCOL),
    ("§8.2.1 a colon in a name", with_field(("x:a", "b")), PROTOCOL),
    ("§8.2.1 an empty name", with_field(("", "b")), PROTOCOL),
    ("§8.2.1 a space in a name", with_field(("x a", "b")), PROTOCOL),
    *((f"§8.2.2 {name}", with_field((name, value)), PROTOCOL) for name, value in [
        ("connection", "close"), ("proxy-connection", "x"), ("keep-alive", "1"), ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"), ("te", "gzip"), ("te", "trailers, deflate"),
    ]),
    ("§8.3 an unknown pseudo-field", with_field((":x", "b"), base=[]), PROTOCOL),
    ("§8.3 a response's pseudo-field", raw(1, H | E, 1, block([*GET, (":status", "200")])), PROTOCOL),
    ("§8.3 a pseudo-field behind a field", raw(1, H | E, 1, block([*GET[:3], ("a", "b"), GET[3]])), PROTOCOL),
    ("§8.3 one behind a cookie", raw(1, H | E, 1, block([*GET[:3], ("cookie", "b"), GET[3]])), PROTOCOL),
    *((f"§8.3.1 no {name}", without(name), PROTOCOL) for name in (":method", ":scheme", ":path")),
    *((f"§8.3.1 {field[0]} twice", raw(1, H | E, 1, block([*GET, field])), PROTOCOL) for field in GET),
    ("§8.3.1 an empty path", raw(1, H | E, 1, block([*GET[:2], (":path", ""), GET[3]])), PROTOCOL),
    ("§8.3.1 a path without a slash", raw(1, H | E, 1, block([*GET[:2], (":path", "x"), GET[3]])), PROTOCOL),
    ("§8.3.1 a star that is no OPTIONS", raw(1, H | E, 1, block([*GET[:2], (":path", "*"), GET[3]])), PROTOCOL),
    ("§8.3.1 a fragment", raw(1, H | E, 1, block([*GET[:2], (":path", "/a#b"), GET[3]])), PROTOCOL),
    ("§8.3.1 a user in the authority", raw(1, H | E, 1, block([*GET[:3], (":authority", "u@a")])), PROTOCOL),
    ("§8.3.1 an empty authority", raw(1, H | E, 1, block([*GET[:3], (":authority", "")])), PROTOCOL),
    ("§8.3.1 a host that is another", with_field(("host", "b.example")), PROTOCOL),
    ("a space in the path", raw(1, H | E, 1, block([*GET[:2], (":path", "/a b"), GET[3]])), PROTOCOL),
    ("another scheme", raw(1, H | E, 1, block([GET[0], (":scheme", "ftp"), *GET[2:]])), PROTOCOL),
    ("a method that is no token", raw(1, H | E, 1, block([(":method", "GE T"), *GET[1:]])), PROTOCOL),
    ("RFC 8441 §4 a protocol without CONNECT", raw(1, H | E, 1, block([*GET, (":protocol", "websocket")])), PROTOCOL),
]  # fmt: skip


@pytest.mark.parametrize(("why", "sent", "code"), CONNECTION_FAULTS, ids=[row[0] for row in CONNECTION_FAULTS])
def test_a_fault_of_the_connection(why, sent, code, cut):
    bench = ServerBench()
    bench.feed(sent, cut)
    assert bench.goaway_code() == code
    assert bench.half_closed and not bench.is_open
    for receiver in bench.requests:
        assert receiver.error.kind is Kind.CLIENT_GONE
    bench.expire()
    assert bench.codec.close == 3


@pytest.mark.parametrize(("why", "sent", "code"), STREAM_FAULTS, ids=[row[0] for row in STREAM_FAULTS])
def test_a_fault_of_one_stream(why, sent, code, cut):
    bench = ServerBench()
    bench.feed(sent, cut)
    assert bench.rst_code(1) == code
    assert bench.goaway_code() is None and bench.is_open
    for receiver in bench.requests:
        assert receiver.error is not None
    bench.feed(raw(1, H | E, 3, b"\x82\x86\x84\x01\x01a"))
    assert bench.request.ended and bench.request.error is None


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" + b"x" * 20, PROTOCOL),
        (PREFACE + raw(6, 0, 0, b"12345678"), PROTOCOL),
        (PREFACE + raw(4, 1, 0), PROTOCOL),
    ],
    ids=["no preface", "no SETTINGS", "an ACK first"],
)
def test_what_comes_first(sent, code, cut):
    bench = ServerBench(greet=False)
    bench.feed(sent, cut)
    assert bench.goaway_code() == code and not bench.is_open


def test_a_frame_on_a_stream_that_was_ended(cut):
    bench = ServerBench()
    bench.feed(ENDED)
    bench.answer()
    bench.feed(raw(1, H | E, 1, B), cut)
    assert bench.goaway_code() == CLOSED


def test_frames_that_come_late_on_streams_that_were_reset(cut):
    """RFC 9113 §5.1: what was on its way when we reset the stream is nobody's fault."""
    bench = ServerBench()
    bench.feed(OPEN)
    bench.answer()  # early: the upload is stopped
    assert bench.rst_code(1) == 0
    bench.feed(raw(0, 0, 1, b"x" * 10_000) + raw(0, E, 1, b"x") + window_update(1, 5) + rst(1), cut)
    assert bench.is_open and bench.goaway_code() is None
    bench.feed(raw(1, H, 3, B), cut)
    bench.feed(rst(3) + raw(0, 0, 3, b"x"), cut)
    assert bench.rst_code(3) == CLOSED and bench.is_open


def test_streams_reset_long_ago_are_not_judged():
    bench = ServerBench()
    for i in range(1_000):
        bench.now += 0.1
        bench.feed(bench.headers(2 * i + 1, POST, end=False))
        bench.answer()  # early, so that the stream is reset
    bench.feed(raw(0, 0, 1, b"late") + raw(0, 0, 1_999, b"late"))
    assert bench.is_open


def test_unknown_frames_and_priorities_are_ignored(cut):
    bench = ServerBench()
    bench.feed(
        raw(0xF0, 0xFF, 7, b"x" * 30) + raw(2, 0, 9, b"\0\0\0\x01\x10") + raw(16, 0, 0, b"\0\0\0\x01u=1")
        + raw(4, 0, 0, b"\0\x99\0\0\0\1") + raw(1, H | E | PR, 1, b"\0\0\0\0\x10" + B), cut,
    )  # fmt: skip
    assert bench.request.ended and bench.is_open


def test_one_stream_too_many():
    bench = ServerBench()
    for i in range(MAX_STREAMS + 1):
        bench.feed(bench.headers(2 * i + 1, GET))
    assert len(bench.requests) == MAX_STREAMS
    assert bench.rst_code(2 * MAX_STREAMS + 1) == REFUSED
    bench.answer(bench.requests[0])
    bench.feed(bench.headers(2 * MAX_STREAMS + 3, GET))
    assert len(bench.requests) == MAX_STREAMS + 1


def test_windows_are_kept():
    bench = ServerBench(hold=2)
    bench.feed(OPEN)
    for _ in range(STREAM_WINDOW // 16_384):
        bench.feed(raw(0, 0, 1, b"x" * 16_384))
    assert bench.is_open and bench.rst_code(1) is None
    bench.feed(raw(0, 0, 1, b"x"))
    assert bench.rst_code(1) == FLOW


FLOODS = {
    "reset": lambda bench, i: bench.headers(2 * i + 1, GET, end=False) + rst(2 * i + 1),
    "faults of streams": lambda bench, i: bench.headers(2 * i + 1, GET, end=False) + window_update(2 * i + 1, 0),
    "refused streams": lambda bench, i: bench.headers(2 * i + 1, GET),
    "ping": lambda bench, i: raw(6, 0, 0, b"12345678"),
    "settings": lambda bench, i: settings(),
    "priority": lambda bench, i: raw(2, 0, 9, b"\0\0\0\x01\x10"),
    "priority update": lambda bench, i: raw(16, 0, 0, b"\0\0\0\x01u=1"),
    "unknown": lambda bench, i: raw(0xF0, 0, 0, b""),
    "credit": lambda bench, i: window_update(0, 1),
    "empty data": lambda bench, i: bench.headers(1, GET, end=False) if not i else raw(0, 0, 1),
    "empty continuation": lambda bench, i: raw(1, 0, 1, B[:1]) if not i else raw(9, 0, 1),
    "long continuation": lambda bench, i: raw(1, 0, 1, B) if not i else raw(9, 0, 1, b"\x00\x01a\x7f\x00" * 1000),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_costs_its_sender_the_connection(kind):
    bench = ServerBench()
    for i in range(10_000):
        bench.feed(FLOODS[kind](bench, i))
        if not bench.is_open:
            break
    assert bench.goaway_code() == CALM
    assert bench.floods == 1
    assert all(receiver.error is not None for receiver in bench.requests)


def test_a_peer_that_does_not_read_is_not_answered_for_ever():
    bench = ServerBench()
    bench.full(True)
    assert not bench.codec.wants_read
    for _ in range(2_000):  # what was read already
        bench.codec._earned_pings += 1
        bench.codec.receive(raw(6, 0, 0, b"12345678"), bench.now)
    assert not bench.is_open and bench.floods == 1


def test_heads_that_are_not_served_are_answered(cut):
    bench = ServerBench()
    encode = hpack.Encoder().encode
    bench.feed(raw(1, H | E, 1, encode([(":method", "CONNECT"), (":authority", "a:1")])), cut)
    websocket = [(":method", "CONNECT"), *GET[1:], (":protocol", "websocket")]
    bench.feed(raw(1, H, 3, encode([*websocket, ("sec-websocket-version", "8")])), cut)
    bench.feed(raw(1, H, 5, encode([*websocket[:4], (":protocol", "connect-udp")])), cut)
    many = encode([*GET, *((f"x-{i}", "y") for i in range(130))])
    bench.feed(raw(1, H | E, 7, many), cut)
    big = encode([*GET, *((f"x-{i}", "y" * 4000) for i in range(20))], huffman=False)
    bench.feed(raw(1, E, 9, big[:16_000]), cut)
    for at in range(16_000, len(big) if len(big) < 65_000 else 60_000, 16_000):
        bench.feed(raw(9, 0, 9, big[at : at + 16_000]), cut)
    assert [dict(f.fields)[":status"] for f in bench.of(hf.HeadersFrame)] == ["501", "426", "501", "431"]
    assert not bench.requests
    assert [error.kind for error in bench.refused] == [
        Kind.NOT_IMPLEMENTED, Kind.UPGRADE_UNSUPPORTED, Kind.NOT_IMPLEMENTED, Kind.HEAD_TOO_LARGE,
    ]  # fmt: skip
