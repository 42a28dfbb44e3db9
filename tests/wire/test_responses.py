"""Malformed and hostile heads and framings from the replica (RFC 9112 §4 to §7, RFC 9110 §15).

BAD: 502 of the router's own; the client may go on, and the connection to the replica is not used again.
CUT: the fault shows behind the head, so the client must see an unclean end: no last chunk, or too few bytes.
GOOD: what the client must have got. FIXED: good, or refused as BAD.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from wirekit import answer, echo, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

BAD, CUT, GOOD, FIXED = "bad", "cut", "good", "fixed"
OK = b"HTTP/1.1 200 OK\r\n"
TWO = b"content-length: 2\r\n\r\nok"
EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL"


@dataclass(frozen=True)
class Row:
    id: str
    data: bytes
    expect: str = BAD
    end: str = ""
    method: bytes = b"GET"
    body: bytes = b"ok"
    status: int = 200
    reused: bool | None = None  # whether the replica's connection may serve again; None: either
    fields: dict = field(default_factory=dict)


def chunked(body: bytes) -> bytes:
    return OK + b"transfer-encoding: chunked\r\n\r\n" + body


HEADS = [
    *(
        Row(f"status-{line!r}", line + b"\r\n" + TWO)
        for line in [
            b"garbage", b"", b"HTTP/1.1", b"HTTP/1.1 ", b"HTTP/1.1 abc OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 +20 OK",
            b"HTTP/1.1 2x0 OK", b"HTTP/1.1 -200 OK", b"HTTP/1.1 099 OK", b"HTTP/1.1 000 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1\t200 OK",
            b"HTTP/2.0 200 OK", b"HTTP/2 200", b"HTTP/0.9 200 OK", b"HTTP/3.0 200 OK", b"http/1.1 200 OK", b"HTTP/1.10 200 OK", b"HTTP/1 200 OK",
            b"ICY 200 OK", b"XHTTP/1.1 200 OK", b" HTTP/1.1 200 OK", b"HTTP/1.1 200\xa0OK", b"HTTP/1.1 200 O\0K", b"HTTP/1.1 2 0 OK",
            b"HTTP/1.1 \xb2\xb0\xb0 OK", b"GET / HTTP/1.1", b"200 OK",
        ]
    ),
    # RFC 9112 §4: the reason may be empty; without its space, or with CR in it, lenient reading is possible.
    Row("reason-empty", b"HTTP/1.1 200 \r\n" + TWO, GOOD),
    Row("reason-missing", b"HTTP/1.1 200\r\n" + TWO, FIXED),
    Row("reason-obs-text", b"HTTP/1.1 200 \xc3\xa9\r\n" + TWO, GOOD),
    Row("reason-cr", b"HTTP/1.1 200 O\rK\r\n" + TWO, FIXED),
    Row("version-1.2", b"HTTP/1.2 200 OK\r\n" + TWO, FIXED),
    Row("status-599", b"HTTP/1.1 599 X\r\n" + TWO, GOOD, status=599),
    Row("status-299", b"HTTP/1.1 299 X\r\n" + TWO, GOOD, status=299),
    Row("status-600", b"HTTP/1.1 600 X\r\n" + TWO, FIXED, status=600),  # RFC 9110 §15: as if it were 5xx
    Row("status-999", b"HTTP/1.1 999 X\r\n" + TWO, FIXED, status=999),
    # RFC 9112 §5.1: the proxy removes whitespace before a colon; §5.2: folds become SP or 502; §2.2: bare CR, LF.
    Row("space-colon", OK + b"x-a : b\r\n" + TWO, FIXED, fields={b"x-a": b"b"}),
    Row("space-colon-length", OK + b"content-length : 2\r\n\r\nok", FIXED),
    Row("fold", OK + b"x-a: b\r\n c\r\n" + TWO, FIXED),
    Row("fold-length", OK + b"content-length:\r\n 2\r\n\r\nok", FIXED),
    Row("lf-line", b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok", FIXED),
    Row("cr-value", OK + b"x-a: b\rx-b: c\r\n" + TWO, FIXED, fields={b"x-b": None}),
    Row("value-nul", OK + b"x-a: b\0c\r\n" + TWO, FIXED),
    Row("value-obs-text", OK + b"x-a: \xc3\xa9\r\n" + TWO, GOOD, fields={b"x-a": b"\xc3\xa9"}),
    *(Row(f"name-{b:02x}", OK + b"x%ca: b\r\n" % b + TWO) for b in [0, 0x0B, *b' "(),/;<=>?@[\\]{}', 0x7F, 0x80]),
    Row("name-empty", OK + b": b\r\n" + TWO),
    Row("name-missing", OK + b"b\r\n" + TWO),
    Row("head-100-kib", OK + b"x-a: " + b"b" * 100_000 + b"\r\n" + TWO),
    Row("head-endless", OK + b"x-a: " + b"b" * 1_000_000),
    Row("fields-2000", OK + b"x-a: b\r\n" * 2000 + TWO),
    Row("fields-80", OK + b"".join(b"x-%d: b\r\n" % i for i in range(80)) + TWO, GOOD, fields={b"x-79": b"b"}),
    Row("nothing", b"", end="fin"),
    Row("nothing-rst", b"", end="rst"),
    Row("cut-status", b"HTTP/1.1 20", end="fin"),
    Row("cut-head", OK + b"content-length: 2\r\n", end="fin"),
    Row("cut-head-rst", OK + b"content-length: 2\r\n", end="rst"),
    Row("http-0.9", b"hello", end="fin"),
    # RFC 9110 §15.2.2, §7.8: no switching that nobody asked for.
    Row("unasked-101", b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
    Row("unasked-101-bare", b"HTTP/1.1 101 X\r\n\r\n" + EVIL),
    Row("1xx-then-garbage", b"HTTP/1.1 103 X\r\n\r\ngarbage\r\n\r\n"),
    Row("1xx-then-end", b"HTTP/1.1 103 X\r\n\r\n", end="fin"),
]

FRAMINGS = [
    Row("length", OK + TWO, GOOD, reused=True),
    Row("length-zero", OK + b"content-length: 0\r\n\r\n", GOOD, body=b"", reused=True),
    # RFC 9112 §6.3 rule 5: an invalid length in a response is 502, and the connection is closed.
    Row("length-twice", OK + b"content-length: 3\r\n" + TWO, reused=False),
    Row("length-list", OK + b"content-length: 2, 3\r\n\r\nok", reused=False),
    Row("length-twice-equal", OK + b"content-length: 2\r\n" + TWO, FIXED),
    Row("length-list-equal", OK + b"content-length: 2, 2\r\n\r\nok", FIXED),
    *(
        Row(f"length-{value!r}", OK + b"content-length: " + value + b"\r\n\r\nok", reused=False)
        for value in [b"", b"+2", b"-2", b"0x2", b"2_0", b"2 ,", b"2.0", b"two", b"\xb2", b"2 2", b'"2"', b"2\0"]
    ),
    # RFC 9112 §6.3 rule 3: refused, or the coding wins and the length goes.
    Row("both", OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", FIXED),
    Row("both-swapped", OK + b"transfer-encoding: chunked\r\ncontent-length: 50\r\n\r\n2\r\nok\r\n0\r\n\r\n", FIXED),
    Row("chunked", chunked(b"2\r\nok\r\n0\r\n\r\n"), GOOD, reused=True),
    Row("chunked-upper", OK + b"Transfer-Encoding: CHUNKED\r\n\r\n2\r\nok\r\n0\r\n\r\n", GOOD, reused=True),
    Row("chunked-extension", chunked(b'2;a="b;c"\r\nok\r\n0;d\r\n\r\n'), GOOD),
    Row("chunked-empty", chunked(b"0\r\n\r\n"), GOOD, body=b""),
    *(
        Row(f"coding-{value!r}", OK + b"transfer-encoding: " + value + b"\r\n\r\n2\r\nok\r\n0\r\n\r\n", end="fin")
        for value in [b"chunked, chunked", b"gzip, chunked", b"chunked\0", b"chunked, gzip", b'"chunked"']
    ),
    Row("coding-1.0", b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", FIXED, reused=False),
    # RFC 9112 §6.3 rule 8: neither length nor coding: the body ends with the connection.
    Row("close", OK + b"\r\nok", GOOD, end="fin", reused=False),
    Row("close-empty", OK + b"\r\n", GOOD, end="fin", body=b"", reused=False),
    Row("close-1.0", b"HTTP/1.0 200 OK\r\n\r\nok", GOOD, end="fin", reused=False),
    Row("close-rst", OK + b"\r\nok", CUT, end="rst"),  # RFC 9112 §8: and not by an error
    # RFC 9112 §9.3: when the connection may be used again.
    Row("says-close", OK + b"connection: close\r\n" + TWO, GOOD, reused=False),
    Row("says-close-list", OK + b"connection: x, Close\r\n" + TWO, GOOD, reused=False),
    Row("1.0-length", b"HTTP/1.0 200 OK\r\n" + TWO, GOOD, reused=False),
    Row("1.0-keep-alive", b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n" + TWO, GOOD),
    # RFC 9110 §7.6.1: hop by hop the other way.
    Row("nominated", OK + b"connection: x-a\r\nx-a: b\r\nx-b: c\r\n" + TWO, GOOD, fields={b"x-a": None, b"x-b": b"c"}),
    Row(
        "hop-by-hop",
        OK + b"keep-alive: timeout=5\r\nproxy-connection: x\r\nupgrade: h2c\r\nx-b: c\r\n" + TWO,
        GOOD,
        fields={b"keep-alive": None, b"proxy-connection": None, b"upgrade": None, b"x-b": b"c"},
    ),
    Row("cookies", OK + b"set-cookie: a=b, c\r\nx: y\r\nset-cookie: d\r\n" + TWO, GOOD, fields={b"set-cookie": b"a=b, c, d"}),
    # RFC 9110 §6.4.1, §9.3.2, §15.3.5, §15.4.5: no content, whatever the fields say; bytes behind are nobody's.
    Row("204", b"HTTP/1.1 204 No Content\r\n\r\n", GOOD, status=204, body=b"", reused=True),
    Row("204-length", b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", FIXED, status=204, body=b""),
    Row("204-body", b"HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\nEVIL", FIXED, status=204, body=b"", reused=False),
    Row("204-chunked", b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n4\r\nEVIL\r\n0\r\n\r\n", FIXED, status=204, body=b"", reused=False),
    Row("304-length", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n", GOOD, status=304, body=b"", fields={b"content-length": b"99"}),
    Row("304-body", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\nEVIL", GOOD, status=304, body=b"", reused=False),
    Row("head-length", OK + b"content-length: 99\r\n\r\n", GOOD, method=b"HEAD", body=b"", fields={b"content-length": b"99"}, reused=True),
    Row("head-chunked", OK + b"transfer-encoding: chunked\r\n\r\n", GOOD, method=b"HEAD", body=b"", reused=True),
    Row("head-neither", OK + b"\r\n", GOOD, method=b"HEAD", body=b""),
    Row("head-body", OK + b"content-length: 4\r\n\r\nEVIL", GOOD, method=b"HEAD", body=b"", reused=False),
    Row("head-body-chunked", chunked(b"4\r\nEVIL\r\n0\r\n\r\n"), GOOD, method=b"HEAD", body=b"", reused=False),
    # RFC 9112 §9.2: bytes behind a response belong to no request.
    Row("extra", OK + TWO + b"EVIL", GOOD, reused=False),
    Row("extra-crlf", OK + TWO + b"\r\n", GOOD, reused=False),
    Row("extra-response", OK + TWO + EVIL, GOOD, reused=False),
    Row("extra-response-chunked", chunked(b"2\r\nok\r\n0\r\n\r\n") + EVIL, GOOD, reused=False),
    Row("extra-response-204", b"HTTP/1.1 204 X\r\n\r\n" + EVIL, GOOD, status=204, body=b"", reused=False),
    Row("extra-response-zero", OK + b"content-length: 0\r\n\r\n" + EVIL, GOOD, body=b"", reused=False),
]

BODIES = [
    # RFC 9112 §8: incomplete, so the client must not take it for complete.
    Row("length-cut", OK + b"content-length: 9\r\n\r\nok", CUT, end="fin"),
    Row("length-cut-rst", OK + b"content-length: 9\r\n\r\nok", CUT, end="rst"),
    Row("length-cut-at-once", OK + b"content-length: 9\r\n\r\n", CUT, end="fin"),
    Row("chunk-cut", chunked(b"9\r\nok"), CUT, end="fin"),
    Row("chunk-cut-rst", chunked(b"9\r\nok"), CUT, end="rst"),
    Row("chunk-cut-size", chunked(b"2\r\nok\r\n1"), CUT, end="fin"),
    Row("chunk-cut-between", chunked(b"2\r\nok\r\n"), CUT, end="fin"),
    Row("chunk-cut-at-once", chunked(b""), CUT, end="fin"),
    Row("chunk-cut-last", chunked(b"2\r\nok\r\n0\r\n"), CUT, end="fin"),
    Row("chunk-cut-trailer", chunked(b"2\r\nok\r\n0\r\nx-t: u\r\n"), CUT, end="fin"),
    *(
        Row(f"chunk-size-{size!r}", chunked(b"2\r\nok\r\n" + size + b"\r\nEVIL\r\n0\r\n\r\n"), CUT)
        for size in [b"", b"0x4", b"+4", b"-4", b"4_", b"_4", b" 4", b"g", b"4g", b"4 4", b"4\0", b"\xb2", b"f" * 17, b"f" * 1000, b"4\x0b"]
    ),
    Row("chunk-too-long", chunked(b"2\r\nokX\r\n0\r\n\r\n"), CUT),
    Row("chunk-no-crlf", chunked(b"2\r\nok0\r\n\r\n"), CUT),
    Row("chunk-lf", chunked(b"2\r\nok\n0\r\n\r\n"), CUT),
    Row("chunk-size-lf", chunked(b"2\nok\r\n0\r\n\r\n"), CUT),
    Row("chunk-extension-lf", chunked(b"2;a\nok\r\n0\r\n\r\n"), CUT),
    Row("chunk-extension-huge", chunked(b"2\r\nok\r\n4;a=" + b"b" * 500_000 + b"\r\nEVIL\r\n0\r\n\r\n"), CUT),
    Row("trailer-bad", chunked(b"2\r\nok\r\n0\r\nx t: u\r\n\r\n"), CUT),
    Row("trailer-response", chunked(b"2\r\nok\r\n0\r\n" + EVIL), CUT),
    Row("trailer-huge", chunked(b"2\r\nok\r\n0\r\nx-t: " + b"u" * 500_000 + b"\r\n\r\n"), CUT),
    Row("trailer-many", chunked(b"2\r\nok\r\n0\r\n" + b"x-t: u\r\n" * 5000 + b"\r\n"), CUT),
]


def rows(*groups):
    names = [row.id for row in groups]
    assert len(set(names)) == len(names)
    return [
        pytest.param(row, mode, id=f"{row.id}-{mode}")
        for row in groups
        for mode in ("whole", "bytes", "split")
        if mode != "bytes" or len(row.data) < 400
    ]


def used_again(replica) -> bool:
    link = replica.seen[0][0]
    return any(other is link for other, _ in replica.seen[1:])


@pytest.mark.parametrize(("row", "mode"), rows(*HEADS, *FRAMINGS, *BODIES))
async def test_response(row, mode, connect, replica):
    replica.script = answer(row.data, row.end, mode)
    client = await connect()
    await client.send(row.method + b" /first HTTP/1.1\r\nHost: h\r\n\r\n")
    response = await client.response(row.method)
    assert response, "an answer is due"
    own_502 = response.status == 502 and response.get(b"x-router-error") is not None
    if row.expect == BAD or (row.expect in {FIXED, CUT} and own_502):
        assert own_502, f"expected a 502 of the router's own, got {response}"
        assert response.complete
        assert b"EVIL" not in response.body
    elif row.expect == CUT:
        assert not response.complete, f"looks complete: {response}"
        assert row.body.startswith(response.body) or response.body.startswith(b"ok"), response.body
        assert b"EVIL" not in response.body
    else:
        assert response.complete, response
        assert (response.status, bytes(response.body)) == (row.status, row.body)
        for name, value in row.fields.items():
            assert response.get(name) == value, f"{name!r} at the client: {response.fields}"
    replica.script = echo
    lost = row.expect in {BAD, CUT} or row.reused is False
    if lost:
        # Before the next request, because bytes that come behind it would be taken for its answer by anyone.
        link = replica.seen[0][0]
        await until(lambda: link.ended is not None or link.shut, "the router closes the replica's connection")
    if not response.complete or (response.get(b"connection") or b"").lower() == b"close":
        await client.assert_closed()
        client = await connect()
    # Nothing of the first answer may reach the second request, on whichever connection it runs.
    for _ in range(3):
        assert (await client.get(b"/next")).body == b"/next"
    assert len(replica.seen) == 4, "the first request was sent once"
    if lost:
        assert not used_again(replica), "this connection has lost its framing"
    elif row.reused:
        assert used_again(replica), "this connection is as good as new"
