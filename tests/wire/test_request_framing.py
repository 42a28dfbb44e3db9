"""Where a request ends: smuggling by lengths, codings and chunks (RFC 9112 §6, §7, §11.2)."""

from __future__ import annotations

import asyncio

import pytest
from outcomes import CLOSE, EITHER, SERVE, SMUGGLED, Case, barrier, check, followed, table

pytestmark = pytest.mark.asyncio(loop_scope="session")

CODING = frozenset({400, 501})
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
BODY = {"body": b"hello"}


def post(*fields: bytes, body: bytes = b"hello", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"POST /t HTTP/" + version, b"Host: h", *fields, b"", body])


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


def after(body: bytes, **options) -> dict:
    """A fault behind a good head: the replica may know of the request, and never sees it end."""
    return {"data": chunked(body), "partial": True, **options}


LENGTHS = [
    # RFC 9112 §6.3: refused; or, for the same valid value again, sent on as one.
    Case("length", post(b"Content-Length: 5"), SERVE, seen=BODY),
    Case("length-ows", post(b"Content-Length: \t5 \t"), SERVE, seen=BODY),
    Case("length-zero", post(b"Content-Length: 0", body=b""), SERVE, seen={"body": b""}),
    Case("length-get", b"GET /t HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", SERVE, seen=BODY),
    Case("length-leading-zeros", post(b"Content-Length: 0005"), EITHER, seen=BODY),
    Case("length-twice-equal", post(b"Content-Length: 5", b"Content-Length: 5"), EITHER, seen=BODY),
    Case("length-list-equal", post(b"Content-Length: 5, 5"), EITHER, seen=BODY),
    Case("length-twice-spelled", post(b"Content-Length: 5", b"Content-Length: 05"), EITHER, seen=BODY),
    Case("length-twice", post(b"Content-Length: 5", b"Content-Length: 6")),
    Case("length-twice-swapped", post(b"Content-Length: 6", b"Content-Length: 5")),
    Case("length-twice-zero", post(b"Content-Length: 0", b"Content-Length: 5")),
    Case("length-twice-empty", post(b"Content-Length:", b"Content-Length: 5")),
    Case("length-twice-apart", post(b"Content-Length: 5", b"X-A: b", b"content-length: 6")),
    Case("length-list", post(b"Content-Length: 5, 6")),
    Case("length-list-bad", post(b"Content-Length: 5, x")),
    *(
        Case(f"length-{value!r}", post(b"Content-Length: " + value))
        for value in [
            b"", b"+5", b"-5", b"-0", b"0x5", b"5_0", b"0_5", b"_5", b"5_", b"5 0", b"5.0", b"5e0", b"5,", b",5", b"5;", b"'5'", b'"5"',
            b"5h", b"five", b"\xd9\xa5", b"\xb2", b"5\0", b"\x0b5", b"5\x0c", b"5\xa0", b"0b101", b"0o5", b"(5)", b"=5",
        ]
    ),
    # RFC 9110 §8.6: a large number must not wrap around. The rest of the connection is its body at most.
    *(
        Case(f"length-{value}", post(b"Content-Length: %d" % value), statuses=frozenset({400, 413, CLOSE}), partial=True, half_close=True)
        for value in [2**32 + 5, 2**63, 2**64 + 5, 10**30]
    ),
    Case("length-5000-digits", post(b"Content-Length: " + b"9" * 5000), statuses=frozenset({400, 413, CLOSE}), partial=True, half_close=True),
    # RFC 9112 §6.3: no length, no body. What follows is the next request, and no valid one.
    Case("length-too-short", post(b"Content-Length: 99"), statuses=frozenset({400, CLOSE}), partial=True, half_close=True),
]

# RFC 9112 §6.1, §6.3: both is refused, or the coding wins, the length is removed and the connection ends.
BOTH = [
    Case("length-then-chunked", post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=HELLO), EITHER, closes=True, seen=BODY),
    Case("chunked-then-length", post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=HELLO), EITHER, closes=True, seen=BODY),
    Case("both-long-length", post(b"Content-Length: 50", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED), EITHER, closes=True),
    Case("both-zero-length", post(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=HELLO), EITHER, closes=True, seen=BODY),
    Case("both-upper", post(b"CONTENT-LENGTH: 5", b"TRANSFER-ENCODING: CHUNKED", body=HELLO), EITHER, closes=True, seen=BODY),
    Case("both-bad-length", post(b"Content-Length: x", b"Transfer-Encoding: chunked", body=HELLO), EITHER, closes=True, seen=BODY),
    # RFC 9112 §6.1: a coding in HTTP/1.0 is faulty framing.
    Case("chunked-1.0", post(b"Transfer-Encoding: chunked", body=HELLO, version=b"1.0"), EITHER, closes=True, seen=BODY),
    Case(
        "chunked-1.0-keep-alive",
        post(b"Connection: keep-alive", b"Transfer-Encoding: chunked", body=HELLO + SMUGGLED, version=b"1.0"),
        EITHER,
        closes=True,
        seen=BODY,
    ),
    Case("both-1.0", post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=HELLO, version=b"1.0"), EITHER, closes=True, seen=BODY),
]

CODINGS = [
    # RFC 9112 §7: names of codings are case-insensitive.
    *(
        Case(f"coding-{value!r}", post(b"Transfer-Encoding:" + value, body=HELLO), SERVE, seen=BODY)
        for value in [b"chunked", b" Chunked", b" CHUNKED", b"\tchunked\t", b"  chunked  "]
    ),
    Case("coding-get", b"GET /t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO, SERVE, seen=BODY),
    # RFC 9110 §5.6.1: empty elements of a list are to be parsed and ignored.
    Case("coding-list-empty-first", post(b"Transfer-Encoding: , chunked", body=HELLO), EITHER, CODING, seen=BODY),
    Case("coding-list-empty-last", post(b"Transfer-Encoding: chunked,", body=HELLO), EITHER, CODING, seen=BODY),
    # RFC 9112 §6.1: chunked not last is 400, an unknown coding 501.
    *(
        Case(f"coding-{value!r}", post(b"Transfer-Encoding: " + value, body=HELLO), statuses=CODING)
        for value in [
            b"", b"chunked, chunked", b"chunked,chunked", b"xchunked", b"chunkedx", b"chunked, identity", b"identity, chunked", b"identity",
            b"gzip, chunked", b"gzip", b"chunked, gzip", b"chunked;q=1", b'"chunked"', b"'chunked'", b"\x0bchunked", b"chunked\x0b",
            b"\x0cchunked", b"\xa0chunked", b"chunked\xa0", b"\x01chunked", b"chunked\0", b"\0chunked", b"chun ked", b"chunked chunked",
            b"[chunked]", b"chunk", b"c", b"trailers", b"chunked, ;", b"chunk\xc3\xa9d", b"chun\xe2\x84\xaaed",
        ]
    ),
    Case("coding-twice", post(*[b"Transfer-Encoding: chunked"] * 2, body=HELLO), statuses=CODING),
    Case("coding-then-identity", post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=HELLO), statuses=CODING),
    Case("identity-then-coding", post(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked", body=HELLO), statuses=CODING),
    Case("coding-then-empty", post(b"Transfer-Encoding: chunked", b"Transfer-Encoding:", body=HELLO), EITHER, CODING, seen=BODY),
    Case("coding-apart", post(b"Transfer-Encoding: chunked", b"X-A: b", b"transfer-encoding: x", body=HELLO), statuses=CODING),
    Case("identity-and-length", post(b"Transfer-Encoding: identity", b"Content-Length: 5"), statuses=CODING),
    Case("xchunked-and-length", post(b"Transfer-Encoding: xchunked", b"Content-Length: 5"), statuses=CODING),
    Case("coding-empty-and-length", post(b"Transfer-Encoding:", b"Content-Length: 5"), EITHER, CODING, closes=True, seen=BODY),
    # Other fields that only look like it: either theirs to pass on, or refused; never framing.
    Case("coding-underscore", post(b"Transfer_Encoding: chunked", b"Content-Length: 5"), EITHER, seen=BODY),
    Case("length-underscore", post(b"Content_Length: 99", b"Content-Length: 5"), EITHER, seen=BODY),
    Case("coding-x-name", post(b"X-Transfer-Encoding: chunked", b"Content-Length: 5"), SERVE, seen=BODY),
]

CHUNKS = [
    # RFC 9112 §7.1.
    Case("chunks", chunked(b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), SERVE, seen=BODY),
    Case("chunk-hex-cases", chunked(b"a\r\n0123456789\r\nB\r\n0123456789x\r\n0\r\n\r\n"), SERVE, seen={"body": b"01234567890123456789x"}),
    Case("chunk-data-crlf", chunked(b"4\r\n\r\n\r\n\r\n0\r\n\r\n"), SERVE, seen={"body": b"\r\n\r\n"}),
    Case("chunk-data-chunk", chunked(b"b\r\n0\r\n\r\n5\r\nabc\r\n0\r\n\r\n"), SERVE, seen={"body": b"0\r\n\r\n5\r\nabc"}),
    Case("chunk-leading-zero", chunked(b"0005\r\nhello\r\n000\r\n\r\n"), SERVE, seen=BODY),
    Case("chunk-many-zeros", chunked(b"0" * 100 + b"5\r\nhello\r\n0\r\n\r\n"), EITHER, partial=True, seen=BODY),
    *(
        Case(f"chunk-size-{size!r}", **after(size + b"\r\nhello\r\n0\r\n\r\n"))
        for size in [
            b"", b"0x5", b"0X5", b"x5", b"+5", b"-5", b"-0", b"5_", b"0_5", b"_5", b" 5", b"\t5", b"\x0b5", b"5\x0b", b"5\x0c", b"g", b"5g",
            b"5.", b"5h", b"\xd9\xa5", b"5\xa0", b"5\0", b"\x005", b"5 5", b"5,5", b"\x015", b'"5"', b"$5", b"5\x80",
        ]
    ),
    Case("chunk-size-sp", chunked(b"5 \r\nhello\r\n0\r\n\r\n"), EITHER, partial=True, seen=BODY),
    Case("chunk-size-tab", chunked(b"5\t\r\nhello\r\n0\r\n\r\n"), EITHER, partial=True, seen=BODY),
    # RFC 9112 §7.1: large numbers must not overflow.
    *(
        Case(f"chunk-size-{size}", **after(size.encode() + b"\r\nhello\r\n0\r\n\r\n", statuses=frozenset({400, 413, CLOSE}), half_close=True))
        for size in ["100000005", "7fffffffffffffff", "8000000000000005", "ffffffffffffffff", "fffffffffffffffb", "10000000000000005", "f" * 40]
    ),
    Case("chunk-size-endless", **after(b"0" * 200_000, statuses=frozenset({400, 413, 431}))),
    Case("chunk-size-5000-digits", **after(b"f" * 5000 + b"\r\nhello", statuses=frozenset({400, 413, 431}))),
    Case("chunk-data-longer", **after(b"5\r\nhelloX\r\n0\r\n\r\n")),
    Case("chunk-data-longer-by-crlf", **after(b"5\r\nhello\r\n\r\n0\r\n\r\n")),
    Case("chunk-data-no-crlf", **after(b"5\r\nhello0\r\n\r\n")),
    Case("chunk-data-lf", **after(b"5\r\nhello\n0\r\n\r\n")),
    Case("chunk-data-cr", **after(b"5\r\nhello\r0\r\n\r\n")),
    Case("chunk-data-lf-cr", **after(b"5\r\nhello\n\r0\r\n\r\n")),
    Case("chunk-data-cr-x", **after(b"5\r\nhello\rX0\r\n\r\n")),
    Case("chunk-data-x-lf", **after(b"5\r\nhelloX\n0\r\n\r\n")),
    Case("chunk-size-lf", **after(b"5\nhello\r\n0\r\n\r\n")),
    Case("chunk-size-cr", **after(b"5\rhello\r\n0\r\n\r\n")),
    Case("chunk-size-cr-cr", **after(b"5\r\r\nhello\r\n0\r\n\r\n")),
    Case("chunk-last-lf", **after(b"5\r\nhello\r\n0\n\r\n")),
    Case("chunk-last-lf-lf", **after(b"5\r\nhello\r\n0\n\n")),
    Case("chunk-empty-line", **after(b"\r\n5\r\nhello\r\n0\r\n\r\n")),
    Case("chunk-nothing", **after(b"", statuses=frozenset({400, CLOSE}), half_close=True)),
    Case("chunk-cut", **after(b"5\r\nhel", statuses=frozenset({400, CLOSE}), half_close=True)),
    Case("chunk-no-last", **after(b"5\r\nhello\r\n", statuses=frozenset({400, CLOSE}), half_close=True)),
    Case("chunk-no-end", **after(b"5\r\nhello\r\n0\r\n", statuses=frozenset({400, CLOSE}), half_close=True)),
    # RFC 9112 §7.1.1: an extension that is not understood is ignored; it is hop by hop.
    *(
        Case(f"extension-{ext!r}", chunked(b"5" + ext + b"\r\nhello\r\n0" + ext + b"\r\n\r\n"), SERVE, seen=BODY)
        for ext in [b";a", b";a=b", b";a=b;c=d", b';a="b;c"', b';a=""', b";0=0"]
    ),
    *(
        Case(f"extension-{ext!r}", chunked(b"5" + ext + b"\r\nhello\r\n0\r\n\r\n"), EITHER, partial=True, seen=BODY)
        for ext in [b";", b";;", b" ;a", b"\t;a=b", b"; a = b", b';a="\\""', b';a="b', b";a=\xff", b";a=\x01", b";a=\0", b";=b", b";a\rb"]
    ),
    # RFC 9112 §7.1.1 has no line end in an extension, quoted or not; §2.2 speaks of lines of the head alone.
    Case("extension-lf", **after(b"5;a\nhello\r\n0\r\n\r\n")),
    Case("extension-lf-twice", **after(b"5;\nxx\r\nhello\r\n0\r\n\r\n")),
    Case("extension-last-lf", **after(b"5\r\nhello\r\n0;a\n\r\n")),
    Case("extension-quoted-crlf", **after(b'5;a="\r\nb"\r\nhello\r\n0\r\n\r\n')),
    Case("extension-huge", **after(b"5;a=" + b"b" * 200_000 + b"\r\nhello\r\n0\r\n\r\n", statuses=frozenset({400, 413, 431}))),
    Case("extension-1-kib", chunked(b"5;a=" + b"b" * 1000 + b"\r\nhello\r\n0\r\n\r\n"), EITHER, frozenset({400, 413, 431}), partial=True, seen=BODY),
    # §7.1.1: the total of extensions is to be limited; with it, one byte at a time for a kibibyte each is no upload.
    Case("extension-flood", **after((b"1;a=" + b"b" * 1000 + b"\r\nx\r\n") * 2000 + b"0\r\n\r\n", statuses=frozenset({400, 413, 431}))),
    Case("extension-flood-short", chunked(b"1;a\r\nx\r\n" * 20_000 + b"0\r\n\r\n"), EITHER, frozenset({400, 413, 431}), partial=True, seen={"body": b"x" * 20_000}),
    Case("chunk-flood", chunked(b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"), SERVE, seen={"body": b"x" * 20_000}),
]

FORBIDDEN = dict.fromkeys([b"content-length", b"authorization", b"connection"])
TRAILERS = [
    # RFC 9110 §6.5.1: never merged into the head where their definition does not allow it; they may be dropped.
    Case("trailer", chunked(b"5\r\nhello\r\n0\r\nX-T: u\r\n\r\n"), SERVE, seen={**BODY, "fields": {b"x-t": None}}),
    Case("trailer-length", chunked(b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n"), EITHER, partial=True, seen={**BODY, "trailers": []}),
    Case("trailer-coding", chunked(b"5\r\nhello\r\n0\r\nTransfer-Encoding: x\r\n\r\n"), EITHER, partial=True, seen={**BODY, "trailers": []}),
    Case("trailer-host", chunked(b"5\r\nhello\r\n0\r\nHost: i\r\n\r\n"), EITHER, partial=True, seen={**BODY, "trailers": [], "fields": {b"host": b"h"}}),
    Case("trailer-auth", chunked(b"5\r\nhello\r\n0\r\nAuthorization: b\r\n\r\n"), EITHER, partial=True, seen={**BODY, "trailers": [], "fields": FORBIDDEN}),
    Case("trailer-connection", chunked(b"5\r\nhello\r\n0\r\nConnection: x\r\n\r\n"), EITHER, partial=True, seen={**BODY, "trailers": []}),
    Case("trailer-te", chunked(b"5\r\nhello\r\n0\r\nTE: trailers\r\n\r\n"), EITHER, partial=True, seen={**BODY, "trailers": []}),
    Case("trailer-upgrade", chunked(b"5\r\nhello\r\n0\r\nUpgrade: websocket\r\n\r\n"), EITHER, partial=True, seen={**BODY, "trailers": []}),
    Case("trailer-space-colon", **after(b"5\r\nhello\r\n0\r\nX-T : u\r\n\r\n")),
    Case("trailer-no-colon", **after(b"5\r\nhello\r\n0\r\nX-T\r\n\r\n")),
    Case("trailer-empty-name", **after(b"5\r\nhello\r\n0\r\n: u\r\n\r\n")),
    Case("trailer-name-nul", **after(b"5\r\nhello\r\n0\r\nX\0: u\r\n\r\n")),
    Case("trailer-value-nul", chunked(b"5\r\nhello\r\n0\r\nX-T: \0\r\n\r\n"), EITHER, partial=True, seen=BODY),
    Case("trailer-is-request", **after(b"5\r\nhello\r\n0\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n")),
    # A trailer section is made of field lines, so RFC 9112 §2.2 and §5.2 leave the choice.
    Case("trailer-lf", chunked(b"5\r\nhello\r\n0\r\nX-T: u\n\r\n"), EITHER, partial=True, seen=BODY),
    Case("trailer-end-lf", chunked(b"5\r\nhello\r\n0\r\n\n"), EITHER, partial=True, seen=BODY),
    Case("trailer-cr", chunked(b"5\r\nhello\r\n0\r\nX-T: u\rv\r\n\r\n"), EITHER, partial=True, seen=BODY),
    Case("trailer-fold", chunked(b"5\r\nhello\r\n0\r\nX-T: u\r\n v\r\n\r\n"), EITHER, partial=True, seen=BODY),
    Case("trailer-fold-first", **after(b"5\r\nhello\r\n0\r\n X-T: u\r\n\r\n")),
    Case("trailer-huge", **after(b"0\r\nX-T: " + b"u" * 200_000 + b"\r\n\r\n", statuses=frozenset({400, 413, 431}))),
    Case("trailer-endless", **after(b"0\r\nX-T: " + b"u" * 200_000, statuses=frozenset({400, 413, 431}))),
    Case("trailer-many", **after(b"0\r\n" + b"X-T: u\r\n" * 5000 + b"\r\n", statuses=frozenset({400, 413, 431}))),
]


@pytest.mark.parametrize(("case", "mode"), table(*map(followed, LENGTHS + BOTH + CODINGS + CHUNKS + TRAILERS)))
async def test_framing(case, mode, connect, replica):
    await check(case, mode, connect, replica)


@pytest.mark.parametrize("mode", ["whole", "bytes", "split"])
@pytest.mark.parametrize(
    "garbage",
    [b"o", b"hello\r\n\r\n", b"\0\0\0\0", b"GET /smuggled\r\n\r\n", b"GET /smuggled HTTP/1.1\r\n\r\n", b"{}", b"\r\n\r\n\r\nX"],
    ids=repr,
)
async def test_garbage_after_a_complete_request(garbage, mode, connect, replica):
    # RFC 9112 §9.3.2, §2.2: the good request is answered; what follows is refused, and no request.
    client = await connect()
    writing = asyncio.ensure_future(client.send(post(b"Content-Length: 5") + garbage, mode))
    assert (await client.response()).body == b"/t"
    await writing
    client.finish()
    second = await client.response()
    assert second is None or second.status in {400, 505, 408}
    await client.assert_closed()
    await barrier(connect, replica)
    assert [bytes(request.body) for request in replica.requests] == [b"hello"]


@pytest.mark.parametrize("mode", ["whole", "bytes", "split"])
async def test_the_second_of_two_is_malformed(mode, connect, replica):
    # RFC 9112 §9.3.2: the answers come in order, the good one first, and the third is never served.
    client = await connect()
    bad = b"GET /bad HTTP/1.1\r\nHost : h\r\n\r\n"
    writing = asyncio.ensure_future(client.send(b"GET /good HTTP/1.1\r\nHost: h\r\n\r\n" + bad + SMUGGLED, mode))
    assert (await client.response()).body == b"/good"
    assert (await client.response()).status == 400
    await client.assert_closed()
    await writing
    await barrier(connect, replica)
    assert [request.target for request in replica.requests] == [b"/good"]


async def test_bytes_behind_a_length_are_the_next_request(connect, replica):
    # RFC 9112 §6.3 rule 6: exactly so many bytes are the body, and the connection goes on behind them.
    client = await connect()
    await client.send(post(b"Content-Length: 5", body=b"helloGET /next HTTP/1.1\r\nHost: h\r\n\r\n"))
    assert (await client.response()).body == b"/t"
    assert (await client.response()).body == b"/next"
    assert [bytes(request.body) for request in replica.requests] == [b"hello", b""]
