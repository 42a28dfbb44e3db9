"""One field line: grammar (RFC 9112 §5), marks, and what the memos keep."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from router.http import HOP_BY_HOP, KNOWN_REQUEST
from router.transport.codec.grammar import split_list
from router.transport.codec.h1 import fields
from router.transport.codec.h1.fields import (
    MEMO_LINE_BYTES,
    MEMO_LINES,
    REQUEST_FIELDS,
    REQUEST_MARKS,
    RESPONSE_FIELDS,
    FieldReader,
    write_lines,
)


@pytest.fixture(autouse=True)
def cold():
    REQUEST_FIELDS.memo.clear()
    RESPONSE_FIELDS.memo.clear()


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"A: b", (b"a", b"b")),
        (b"A:b", (b"a", b"b")),
        (b"A:", (b"a", b"")),
        (b"A: \t ", (b"a", b"")),
        (b"A:\t b \t", (b"a", b"b")),
        (b"X-Long: a, b\tc", (b"x-long", b"a, b\tc")),
        (b"a: b: c", (b"a", b"b: c")),
        (b"a: \xff\x80", (b"a", b"\xff\x80")),
        (b"!#$%&'*+-.^_`|~09Az: x", (b"!#$%&'*+-.^_`|~09az", b"x")),
        (b"Host: EXAMPLE.com:80", (b"host", b"example.com:80")),
        (b"Host: [::1]:80", (b"host", b"[::1]:80")),
        (b"Host:", (b"host", b"")),
    ],
)
def test_taken(line, field):
    mark, found = REQUEST_FIELDS.read(line)
    assert found == field
    assert mark == REQUEST_MARKS.get(field[0], fields.PLAIN)


@pytest.mark.parametrize(
    "line",
    [
        b"", b"a", b": b", b" a: b", b"a : b", b"a\t: b", b"a b: c", b"\ta: b", b"a(: b", b'a": b', b"a\x00: b", b"\xe4: b",
        b"a: b\r", b"a: b\n", b"a: b\rc", b"a: \nb", b"a: b\x00", b"a: \x7f", b"a: \x0b", b"a:\r\n b",
        b"Host: a b", b"Host: a/b", b"Host: a@b", b"Host: a:b", b"Host: a:123456", b"Host: [::1", b'Host: a,b"', b"Host: a?b", b"Host: a#b",
    ],
)  # fmt: skip
def test_refused(line):
    assert REQUEST_FIELDS.read(line) is None
    assert line not in REQUEST_FIELDS.memo


def test_every_hop_by_hop_and_known_field_is_marked():
    assert not {
        name for name in HOP_BY_HOP | KNOWN_REQUEST if REQUEST_MARKS.get(name, fields.PLAIN) == fields.PLAIN
    }


@pytest.mark.parametrize("line", [b"Accept: x", b"Host: a", b"Connection: close"])
def test_a_line_is_remembered(line):
    assert REQUEST_FIELDS.read(line) is REQUEST_FIELDS.memo[line]


@pytest.mark.parametrize(
    "name",
    [b"Authorization", b"Cookie", b"Set-Cookie", b"X-Router-Key", b"Proxy-Authorization", b"Sec-WebSocket-Key", b"X-Request-Id", b"Traceparent", b"Content-Length"],
)  # fmt: skip
def test_secrets_and_what_never_repeats_are_not(name):
    for reader in (REQUEST_FIELDS, RESPONSE_FIELDS):
        assert reader.read(name + b": 5") is not None
        assert not reader.memo


def test_the_memos_are_bounded():
    reader = FieldReader({})
    for i in range(MEMO_LINES * 2 + 10):
        reader.read(b"a: %d" % i)
        assert len(reader.memo) <= MEMO_LINES
    reader.memo.clear()
    reader.read(b"a: " + b"b" * MEMO_LINE_BYTES)
    assert not reader.memo


@settings(deadline=None)
@given(
    name=st.from_regex(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,20}", fullmatch=True),
    value=st.from_regex(rb"([!-~\x80-\xff]([\t -~\x80-\xff]{0,20}[!-~\x80-\xff])?)?", fullmatch=True),
)
def test_round_trip(name, value):
    field = (name.lower(), value)
    (line,) = write_lines([field])
    assert line.endswith(b"\r\n")
    found = FieldReader({}).read(line[:-2])
    assert found == (fields.PLAIN, field)


@settings(deadline=None)
@given(line=st.binary(max_size=60))
def test_no_line_is_taken_that_could_be_two(line):
    found = FieldReader({}).read(line)
    if found is not None:
        name, value = found[1]
        assert not set(name + value) & set(b"\r\n\x00")
        assert value == value.strip(b" \t")
        assert name == name.lower()
        assert name


@pytest.mark.parametrize(
    ("value", "elements"),
    [
        (b"", []),
        (b"close", [b"close"]),
        (b"Keep-Alive, X-A", [b"keep-alive", b"x-a"]),
        (b" , a ,,\tb,", [b"a", b"b"]),
    ],
)
def test_lists(value, elements):
    assert split_list(value) == elements
