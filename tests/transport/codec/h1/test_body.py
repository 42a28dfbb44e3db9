"""The chunked coding: a table of what is taken and what is not (RFC 9112 §7.1), and a round trip."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from router.transport.codec.h1.body import (
    MAX_EXTENSION_BYTES,
    MAX_SIZE_LINE_BYTES,
    MAX_TRAILER_BYTES,
    MAX_TRAILERS,
    ChunkedReader,
    write_trailers,
)


def read(data, cut):
    """Read to the end, an error or the end of input; return the payload and the reader."""
    reader = ChunkedReader()
    payload = b""
    pieces = cut(data)
    while pieces and not reader.error and not reader.is_done:
        payload += reader.read(pieces.pop(0))
    if reader.is_done:
        reader.rest += b"".join(pieces)
    return payload, reader


@pytest.mark.parametrize(
    ("data", "payload", "trailers"),
    [
        (b"0\r\n\r\n", b"", []),
        (b"1\r\nx\r\n0\r\n\r\n", b"x", []),
        (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789", []),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", []),
        (b"00000a\r\n0123456789\r\n0000\r\n\r\n", b"0123456789", []),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n", []),
        (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n", []),
        (b"1;a\r\nx\r\n0;z\r\n\r\n", b"x", []),
        (b'1;a=b;c="d;e"\r\nx\r\n0\r\n\r\n', b"x", []),
        (b"1 ; a = b\r\nx\r\n0\r\n\r\n", b"x", []),
        (b"1\r\nx\r\n0\r\nA: b\r\n\r\n", b"x", [(b"a", b"b")]),
        (b"0\r\nA: b\r\nC:d\r\nA:  e \r\n\r\n", b"", [(b"a", b"b"), (b"c", b"d"), (b"a", b"e")]),
        (b"0\r\nTransfer-Encoding: chunked\r\nHost: x\r\nX-Forwarded-For: 1\r\nok: 1\r\n\r\n", b"", [(b"ok", b"1")]),
    ],
)  # fmt: skip
def test_taken(data, payload, trailers, cut):
    found, reader = read(data + b"GET /", cut)
    assert reader.error == ""
    assert (found, reader.trailers, reader.is_done) == (payload, trailers, True)
    assert reader.rest == b"GET /"


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n", b" 1\r\nx\r\n", b"g\r\n", b"-1\r\n", b"+1\r\nx\r\n", b"0x1\r\nx\r\n", b"1_0\r\n", b"\xef\xbc\x91\r\nx\r\n",
        b"1\nx\n0\n\n", b"1\r\nx\n0\r\n\r\n", b"1\r\nxy\r\n", b"1\rx\r\n", b"1\r\nx\rz",
        b"1;a\x00\r\nx\r\n", b"1;a\nb\r\nx\r\n", b"1;\x7f\r\nx\r\n", b"1 a\r\nx\r\n", b"1,2\r\nx\r\n",
        b"1000000000000000\r\n", b"ffffffffffffffffffffffff\r\n",
        b"0\r\nno field\r\n\r\n", b"0\r\nA : b\r\n\r\n", b"0\r\n folded\r\n\r\n", b"0\r\nA: b\n\r\n", b"0\r\nA: \x00\r\n\r\n", b"0\r\n\n",
    ],
)  # fmt: skip
def test_refused(data, cut):
    _, reader = read(data, cut)
    assert reader.error
    assert not reader.is_done


@pytest.mark.parametrize(
    "data",
    [b"", b"1", b"1\r", b"1\r\n", b"1\r\nx", b"1\r\nx\r", b"1\r\nx\r\n", b"0\r\n", b"0\r\n\r", b"0\r\nA: b\r\n"],
)
def test_incomplete(data, cut):
    _, reader = read(data, cut)
    assert not reader.error
    assert not reader.is_done


class TestBounds:
    def test_a_size_line(self, cut):
        _, reader = read(b"1;" + b"e" * MAX_SIZE_LINE_BYTES, cut)
        assert reader.error

    def test_extensions_of_a_message(self, cut):
        chunk = b"1;" + b"e" * 100 + b"\r\nx\r\n"
        fits = MAX_EXTENSION_BYTES // 101
        assert not read(chunk * fits, cut)[1].error
        assert read(chunk * (fits + 1), cut)[1].error

    def test_trailers(self, cut):
        assert read(b"0\r\n" + b"A: b\r\n" * (MAX_TRAILERS + 1) + b"\r\n", cut)[1].error
        assert not read(b"0\r\n" + b"A: b\r\n" * MAX_TRAILERS + b"\r\n", cut)[1].error
        assert read(b"0\r\nA: " + b"b" * MAX_TRAILER_BYTES + b"\r\n\r\n", lambda data: [data])[1].error

    @pytest.mark.parametrize(
        "data",
        [
            b"1;" + b"e" * (MAX_SIZE_LINE_BYTES - 2) + b"\r\nx\r\n",
            b"0\r\n"
            + b"\r\n".join(b"A: " + b"b" * 1_021 for _ in range(15))
            + b"\r\nA: "
            + b"b" * (MAX_TRAILER_BYTES - 15 * 1_026 - 3)
            + b"\r\n\r\n",
        ],
        ids=["size line", "trailers"],
    )
    def test_do_not_depend_on_the_pieces(self, data):
        """A line of exactly the bound: however it comes, it is taken or it is not."""
        errors = {
            bool(read(data, cut)[1].error)
            for cut in (lambda data: [data], lambda data: [data[i : i + 1] for i in range(len(data))])
        }
        assert len(errors) == 1


@settings(deadline=None)
@given(
    bodies=st.lists(st.binary(min_size=1, max_size=60) | st.integers(4_090, 4_100).map(bytes), max_size=5),
    trailers=st.lists(
        st.tuples(st.from_regex(rb"x-[a-z]{1,8}", fullmatch=True), st.from_regex(rb"[!-~]{0,8}", fullmatch=True)),
        max_size=3,
    ),
    rest=st.binary(max_size=10),
    steps=st.lists(st.integers(1, 40), min_size=1, max_size=10),
)
def test_round_trip(bodies, trailers, rest, steps):
    wire = b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies) + write_trailers(trailers) + rest

    def cut(data):
        pieces = []
        while data:
            size = steps[len(pieces) % len(steps)]
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    payload, reader = read(wire, cut)
    assert (payload, reader.trailers, reader.rest, reader.error) == (b"".join(bodies), trailers, rest, "")
