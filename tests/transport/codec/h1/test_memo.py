"""A memo hit equals a cold parse of the same bytes, and the memos stay within their bounds."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from router.errors import ProxyError
from router.transport.codec.grammar import MAX_LENGTH_DIGITS
from router.transport.codec.h1 import fields, head
from router.transport.codec.h1.memo import MAX_SHAPE_BYTES, MAX_SHAPES, ShapeMemo


def clear():
    for memo in (head._requests, head._responses):
        memo._shapes.clear()
        memo._whole.clear()
        memo._spelling = 0
    fields.REQUEST_FIELDS.memo.clear()
    fields.RESPONSE_FIELDS.memo.clear()


@pytest.fixture(autouse=True)
def cold():
    clear()


def seen(found):
    """Everything a codec reads from what a parser returned."""
    if isinstance(found, ProxyError):
        return found
    message, bits, key = found
    shape = message.shape
    names = sorted({name for kind in type(shape).__mro__ for name in getattr(kind, "__slots__", ())} - {"h1_lines"})
    return message.length, bits, key, message.added, {name: getattr(shape, name) for name in names}


SPELLINGS = [
    b"content-length: ",
    b"Content-Length: ",
    b"CONTENT-LENGTH: ",
    b"Content-length:",
    b"content-length:\t",
    b"content-length : ",
    b"X-Content-Length: ",
]
VALUES = st.one_of(
    st.integers(0, 200).map(lambda n: b"%d" % n),
    st.sampled_from(
        [b"", b"007", b"+1", b"-1", b"1 ", b" 1", b"1,1", b"\xb2", b"9" * 18, b"9" * 19, b"1\r", b"0x1"]
    ),
)
OTHERS = st.sampled_from(
    [
        b"Accept: */*", b"X-Note: content-length: 5", b"X-Note: \tContent-Length: 5", b"content-length", b"Transfer-Encoding: chunked",
        b"Connection: close", b"Connection: content-length", b"Authorization: Bearer x", b"X-Request-Id: 1", b"Expect: 100-continue", b"Host: b",
        b"TE: trailers", b"Content-Type: text/event-stream", b"Sec-WebSocket-Accept: x", b"", b"bad line",
    ]
)  # fmt: skip
LENGTHS = st.builds(lambda name, value: name + value, st.sampled_from(SPELLINGS), VALUES)
LINES = st.lists(st.one_of(OTHERS, LENGTHS), max_size=5)
REQUESTS = st.builds(
    lambda first, lines: b"\r\n".join((first, *lines)),
    st.sampled_from(
        [b"POST / HTTP/1.1\r\nHost: a", b"GET /content-length:%205 HTTP/1.1\r\nHost: a", b"GET / HTTP/1.0"]
    ),
    LINES,
)
RESPONSES = st.builds(
    lambda first, lines: b"\r\n".join((first, *lines)),
    st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 404 content-length: 5", b"HTTP/1.1 101 X"]),
    LINES,
)


def check(parse, raws):
    """Parse all of them three times in a row with warm memos; each must say what a cold parse says."""
    cold_ones = []
    for raw in raws:
        clear()
        cold_ones.append(seen(parse(raw)))
    clear()
    for _ in range(3):
        for raw, wanted in zip(raws, cold_ones, strict=True):
            assert seen(parse(raw)) == wanted, raw


A = b"POST / HTTP/1.1\r\nHost: a\r\n"


@settings(max_examples=400, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=5))
@example([A + b"content-length: 5", A + b"content-length: ", A + b"content-length: 6"])
@example([A + b"content-length: 5\r\nContent-Length: ", A + b"content-length: 5\r\nContent-Length: 5"])
@example(
    [
        A + b"Content-Length: 5\r\ncontent-length: ",
        A + b"Content-Length: 5\r\ncontent-length: 5",
        A + b"Content-Length: 5",
    ]
)
@example([A + b"X: y", A + b"X: y\r\ncontent-length: 1", A + b"X: y\r\ncontent-length: 0"])
@example([A + b"content-length: 1\r\nX: y", A + b"content-length: 1X: y"])
@example([A + b"content-length: 5\r\nTransfer-Encoding: chunked", A + b"Transfer-Encoding: chunked"])
def test_requests(raws):
    check(head.parse_request, raws)


@settings(max_examples=200, deadline=None)
@given(st.lists(RESPONSES, min_size=1, max_size=5))
def test_responses(raws):
    check(head.parse_response, raws)


@settings(deadline=None)
@given(
    lines=LINES,
    lengths=st.lists(VALUES, min_size=2, max_size=6),
    spelling=st.sampled_from(SPELLINGS[:3]),
    at=st.integers(0, 5),
)
def test_one_head_with_many_lengths(lines, lengths, spelling, at):
    """What clients do: the same head again, with other digits."""
    raws = []
    for value in lengths:
        varied = list(lines)
        varied.insert(at, spelling + value)
        raws.append(b"\r\n".join((b"POST / HTTP/1.1\r\nHost: a", *varied)))
    check(head.parse_request, raws)


def test_a_hit_shares_the_shape_and_not_the_message():
    first, _, _ = head.parse_request(A + b"content-length: 5")
    second, _, _ = head.parse_request(A + b"content-length: 77")
    again, _, _ = head.parse_request(A + b"content-length: 77")
    assert first.shape is second.shape is again.shape
    assert (first.length, second.length, again.length) == (5, 77, 77)
    second.added.append((b"a", b"b"))
    assert again.added == []


def test_a_handshake_is_never_stored():
    """Its key differs each time, and must be read each time."""
    raw = (
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    )
    for _ in range(3):
        assert head.parse_request(raw)[2] == b"dGhlIHNhbXBsZSBub25jZQ=="
    assert not head._requests._shapes


def test_what_is_refused_is_never_stored():
    for raw in (A + b"content-length: x", A + b"bad", b"bad", A + b"content-length: 1\r\ncontent-length: 1"):
        head.parse_request(raw)
    assert not head._requests._shapes
    assert not head._requests._whole


class TestBounds:
    def test_shapes_and_whole_heads(self):
        for i in range(MAX_SHAPES * 2 + 10):
            for _ in range(2):
                head.parse_request(A + b"X: %d\r\ncontent-length: %d" % (i, i))
            assert len(head._requests._shapes) <= MAX_SHAPES
            assert len(head._requests._whole) <= MAX_SHAPES

    def test_many_lengths_of_one_head(self):
        for i in range(MAX_SHAPES * 2 + 10):
            head.parse_request(A + b"content-length: %d" % i)
        assert len(head._requests._shapes) == 1
        assert len(head._requests._whole) <= MAX_SHAPES

    def test_long_heads_are_not_kept(self):
        for _ in range(3):
            head.parse_request(A + b"X: " + b"y" * MAX_SHAPE_BYTES)
        assert not head._requests._shapes
        assert not head._requests._whole

    def test_digits(self):
        memo = ShapeMemo()
        raw = b"a\r\ncontent-length: "
        assert memo.look_up(raw + b"9" * MAX_LENGTH_DIGITS)[1] == int("9" * MAX_LENGTH_DIGITS)
        assert memo.look_up(raw + b"9" * (MAX_LENGTH_DIGITS + 1))[1] is None
