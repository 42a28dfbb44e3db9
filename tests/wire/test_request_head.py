"""Malformed, lenient and unusual request heads (RFC 9112 §2 to §5, RFC 9110 §4, §5, §7)."""

from __future__ import annotations

import pytest
from outcomes import CLOSE, EITHER, SERVE, Case, barrier, check, followed, table
from wirekit import values

pytestmark = pytest.mark.asyncio(loop_scope="session")

VERSION = frozenset({400, 505})
TOO_LARGE = frozenset({431, 414, 400})


def line(request_line: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join([request_line, *fields, b"Host: h", b"", b""])


def field(*fields: bytes) -> bytes:
    return b"\r\n".join([b"GET /t HTTP/1.1", b"Host: h", *fields, b"", b""])


def host(*fields: bytes) -> bytes:
    return b"\r\n".join([b"GET /t HTTP/1.1", *fields, b"X-A: b", b"", b""])


LINE_ENDS = [
    # RFC 9112 §2.2: a lone LF MAY end a line. Either way no LF goes on.
    Case("lf-request-line", b"GET /t HTTP/1.1\nHost: h\r\n\r\n", EITHER, seen={"target": b"/t"}),
    Case("lf-field", b"GET /t HTTP/1.1\r\nHost: h\nX-A: b\r\n\r\n", EITHER, seen={"fields": {b"x-a": b"b"}}),
    Case("lf-last-field", b"GET /t HTTP/1.1\r\nHost: h\r\nX-A: b\n\r\n", EITHER, seen={"target": b"/t"}),
    Case("lf-empty-line", b"GET /t HTTP/1.1\r\nHost: h\r\n\n", EITHER, seen={"target": b"/t"}),
    Case("lf-all", b"GET /t HTTP/1.1\nHost: h\n\n", EITHER, seen={"target": b"/t"}),
    # RFC 9112 §2.2: a bare CR is invalid, or replaced with SP before the element is processed.
    Case("cr-in-target", line(b"GET /t\r HTTP/1.1")),
    Case("cr-in-target-2", line(b"GET /t\rx HTTP/1.1")),
    Case("cr-in-method", line(b"G\rET /t HTTP/1.1")),
    Case("cr-after-version", line(b"GET /t HTTP/1.1\r"), EITHER),
    Case("cr-in-name", field(b"X\rA: b")),
    Case("cr-in-value", field(b"X-A: b\rc"), EITHER, seen={"fields": {b"x-a": b"b c"}}),
    Case("cr-framing-in-value", field(b"X-A: b\rTransfer-Encoding: chunked"), EITHER),
    Case("cr-cr-lf", field(b"X-A: b\r"), EITHER),
    Case("cr-only", b"GET /t HTTP/1.1\rHost: h\r\r"),
    # RFC 9112 §2.2: at least one empty line before the request line SHOULD be ignored.
    Case("crlf-first", b"\r\n" + field(), SERVE, seen={"target": b"/t"}),
    Case("crlf-crlf-first", b"\r\n\r\n" + field(), EITHER, seen={"target": b"/t"}),
    Case("lf-first", b"\n" + field(), EITHER, seen={"target": b"/t"}),
    Case("cr-first", b"\r" + field(), EITHER),
    # RFC 9112 §5.2: obs-fold is refused, or replaced with SP.
    Case("obs-fold-sp", field(b"X-A: b", b" c"), EITHER),
    Case("obs-fold-tab", field(b"X-A: b", b"\tc"), EITHER),
    Case("obs-fold-framing", field(b"X-A: b", b" Transfer-Encoding: chunked"), EITHER),
    Case("obs-fold-colon-less", field(b"X-A:", b" Content-Length: 5"), EITHER),
    # RFC 9112 §2.2: whitespace between the start line and the first field: refused or not processed.
    Case("space-first-field", b"GET /t HTTP/1.1\r\n X-A: b\r\nHost: h\r\n\r\n", EITHER, seen={"fields": {b"x-a": None}}),
    Case("tab-first-field", b"GET /t HTTP/1.1\r\n\tX-A: b\r\nHost: h\r\n\r\n", EITHER, seen={"fields": {b"x-a": None}}),
    Case("space-before-host", b"GET /t HTTP/1.1\r\n Host: h\r\n\r\n"),
]

NAMES = [
    # RFC 9112 §5.1: whitespace between name and colon MUST be refused with 400.
    Case("space-colon", field(b"X-A : b")),
    Case("tab-colon", field(b"X-A\t: b")),
    Case("space-colon-host", host(b"Host : h")),
    Case("space-colon-length", field(b"Content-Length : 5") + b"hello"),
    Case("space-colon-te", field(b"Transfer-Encoding : chunked") + b"0\r\n\r\n"),
    # RFC 9110 §5.1: a field name is a token.
    Case("name-empty", field(b": b")),
    Case("name-missing", field(b"b")),
    Case("name-colons", field(b":: b")),
    *(
        Case(f"name-{byte:02x}", field(b"X%cA: b" % byte))
        for byte in [0, 1, 7, 8, 9, 0x0B, 0x0C, 0x1B, 0x1F, *b' "(),/;<=>?@[\\]{}', 0x7F, 0x80, 0xFF]
    ),
    Case("name-nul-end", field(b"X-A\0: b")),
    Case("name-te-nul", field(b"Transfer-Encoding\0: chunked") + b"0\r\n\r\n"),
    Case("name-te-nbsp", field(b"Transfer-Encoding\xa0: chunked") + b"0\r\n\r\n"),
    Case("name-all-tchar", field(b"!#$%&'*+-.^_`|~09azAZ: b"), SERVE, seen={"fields": {b"!#$%&'*+-.^_`|~09azAZ": b"b"}}),
    # RFC 9110 §5.5: NUL is refused or replaced with SP; other controls MAY be retained; obs-text is opaque.
    Case("value-nul", field(b"X-A: b\0c"), EITHER, seen={"fields": {b"x-a": b"b c"}}),
    *(Case(f"value-{byte:02x}", field(b"X-A: b%cc" % byte), EITHER) for byte in [1, 8, 0x0B, 0x0C, 0x1B, 0x1F, 0x7F]),
    Case("value-obs-text", field(b"X-A: \xc3\xa9\x80\xff"), SERVE, seen={"fields": {b"x-a": b"\xc3\xa9\x80\xff"}}),
    Case("value-empty", field(b"X-A:"), SERVE, seen={"fields": {b"x-a": b""}}),
    Case("value-ows", field(b"X-A: \t b \t c \t "), SERVE, seen={"fields": {b"x-a": b"b \t c"}}),
    Case("value-no-ows", field(b"X-A:b"), SERVE, seen={"fields": {b"x-a": b"b"}}),
    Case("value-colons", field(b"X-A: :b:"), SERVE, seen={"fields": {b"x-a": b":b:"}}),
]

REQUEST_LINES = [
    # RFC 9110 §9.1: the method is a token and case-sensitive. An unknown one is the replica's business, or 501.
    Case("method-lower", line(b"get /t HTTP/1.1"), EITHER, frozenset({400, 405, 501}), seen={"method": b"get"}),
    Case("method-unknown", line(b"BREW /t HTTP/1.1"), SERVE, seen={"method": b"BREW"}),
    Case("method-tchar", line(b"M-S!#$%&'*+.^_`|~9 /t HTTP/1.1"), SERVE, seen={"method": b"M-S!#$%&'*+.^_`|~9"}),
    Case("method-empty", line(b" /t HTTP/1.1")),
    *(Case(f"method-{b:02x}", line(b"GE%cT /t HTTP/1.1" % b)) for b in [0, 1, 0x0B, 0x1F, *b'"(),/:;<=>?@[\\]{}', 0x7F, 0x80]),
    # RFC 9112 §3: lenient parsing on other whitespace MAY be done.
    Case("tabs", line(b"GET\t/t\tHTTP/1.1"), EITHER, seen={"target": b"/t"}),
    Case("two-spaces-method", line(b"GET  /t HTTP/1.1"), EITHER, seen={"target": b"/t"}),
    Case("two-spaces-target", line(b"GET /t  HTTP/1.1"), EITHER, seen={"target": b"/t"}),
    Case("space-end", line(b"GET /t HTTP/1.1 "), EITHER, seen={"target": b"/t"}),
    Case("space-start", line(b" GET /t HTTP/1.1"), EITHER, seen={"method": b"GET"}),
    Case("vt-separator", line(b"GET\x0b/t HTTP/1.1"), EITHER, seen={"target": b"/t"}),
    # RFC 9112 §3.2: no whitespace is allowed in the target.
    Case("space-in-target", line(b"GET /t x HTTP/1.1")),
    Case("space-smuggled-version", line(b"GET /t HTTP/1.1 HTTP/1.1")),
    Case("method-only", line(b"GET")),
    Case("target-missing", line(b"GET HTTP/1.1")),
    # RFC 9112 §2.3, RFC 9110 §2.5, §15.6.6.
    Case("http-0.9", b"GET /t\r\n\r\n", statuses=VERSION | {CLOSE}),
    Case("http-0.9-named", line(b"GET /t HTTP/0.9"), statuses=VERSION | {CLOSE}),
    Case("http-1.2", line(b"GET /t HTTP/1.2"), EITHER, VERSION, seen={"start": (b"GET", b"/t", b"HTTP/1.1")}),
    Case("http-2.0", line(b"GET /t HTTP/2.0"), statuses=VERSION),
    Case("http-3.0", line(b"GET /t HTTP/3.0"), statuses=VERSION),
    *(
        Case(f"version-{version!r}", line(b"GET /t " + version), statuses=VERSION)
        for version in [
            b"http/1.1", b"Http/1.1", b"HTTP/1.10", b"HTTP/11.1", b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"HTTP/1.1x",
            b"HTTP/1,1", b"HTTP/+1.1", b"HTTP/1.+1", b"HTTPS/1.1", b"HTTP1.1", b"HTTP//1.1", b"HTTP/1.1\0",
            b"HTTP/\xb9.1", b"ICY/1.1", b"\x0bHTTP/1.1",
        ]
    ),
    # RFC 9112 §3.2: a target with anything else than the grammar has SHOULD get 400.
    *(Case(f"target-{b:02x}", line(b"GET /t%cx HTTP/1.1" % b)) for b in [0, 1, 0x0B, 0x0C, 0x1F, 0x7F, 0x80, 0xC3, 0xFF]),
    *(
        Case(f"target-{b:02x}", line(b"GET /t%cx HTTP/1.1" % b), EITHER, seen={"target": b"/t%cx" % b})
        for b in b'"<>[\\]^`{|}'
    ),
    Case("target-fragment", line(b"GET /t#f HTTP/1.1")),
    Case("target-no-slash", line(b"GET t HTTP/1.1")),
    Case("target-query-only", line(b"GET ?q HTTP/1.1")),
    Case("target-bad-percent", line(b"GET /%zz%0 HTTP/1.1"), EITHER, seen={"target": b"/%zz%0"}),
    Case("target-percent-crlf", line(b"GET /%0d%0aX:%20y HTTP/1.1"), SERVE, seen={"target": b"/%0d%0aX:%20y"}),
    Case("target-percent-nul", line(b"GET /%00 HTTP/1.1"), EITHER, seen={"target": b"/%00"}),
    Case("target-slashes", line(b"GET //a//b HTTP/1.1"), SERVE, seen={"target": b"//a//b"}),
    Case("target-query", line(b"GET /t?a=b&c=//d?e HTTP/1.1"), SERVE, seen={"target": b"/t?a=b&c=//d?e"}),
    Case("target-reserved", line(b"GET /!$&'()*+,;=:@-._~ HTTP/1.1"), SERVE, seen={"target": b"/!$&'()*+,;=:@-._~"}),
    # RFC 9112 §3.2.4: the asterisk form is for OPTIONS alone.
    Case("asterisk-options", line(b"OPTIONS * HTTP/1.1"), SERVE, seen={"target": b"*"}),
    Case("asterisk-get", line(b"GET * HTTP/1.1")),
    Case("asterisk-more", line(b"OPTIONS *x HTTP/1.1")),
    # RFC 9112 §3.2.2, RFC 9110 §7.2: the target's authority replaces Host; an origin server gets the origin form.
    Case("absolute", line(b"GET http://auth.test:81/t?q HTTP/1.1"), SERVE, seen={"target": b"/t?q", "fields": {b"host": b"auth.test:81"}}),
    Case("absolute-upper", line(b"GET HTTP://auth.test/t HTTP/1.1"), SERVE, seen={"target": b"/t", "fields": {b"host": b"auth.test"}}),
    Case("absolute-no-path", line(b"GET http://auth.test HTTP/1.1"), SERVE, seen={"target": b"/", "fields": {b"host": b"auth.test"}}),
    Case("absolute-query", line(b"GET http://auth.test?q HTTP/1.1"), SERVE, seen={"target": b"/?q", "fields": {b"host": b"auth.test"}}),
    # RFC 9112 §3.2.4: the last proxy turns this one into the asterisk form; a gateway need not.
    Case("absolute-options", line(b"OPTIONS http://auth.test HTTP/1.1"), SERVE, seen={"fields": {b"host": b"auth.test"}}),
    Case("absolute-options-slash", line(b"OPTIONS http://auth.test/ HTTP/1.1"), SERVE, seen={"target": b"/"}),
    Case("absolute-no-host", b"GET http://auth.test/t HTTP/1.1\r\nX-A: b\r\n\r\n"),
    Case("absolute-empty-host", line(b"GET http:///t HTTP/1.1")),  # RFC 9110 §4.2.1
    Case("absolute-port-only", line(b"GET http://:80/t HTTP/1.1")),
    Case("absolute-userinfo", line(b"GET http://u:p@auth.test/t HTTP/1.1")),  # RFC 9110 §4.2.4
    Case("absolute-fragment", line(b"GET http://auth.test/t#f HTTP/1.1")),
    Case("absolute-bad-port", line(b"GET http://auth.test:8x/t HTTP/1.1")),
    Case("absolute-ftp", line(b"GET ftp://auth.test/t HTTP/1.1"), statuses=frozenset({400, 421, 501})),
    Case("absolute-one-slash", line(b"GET http:/auth.test/t HTTP/1.1")),
    Case("authority-get", line(b"GET auth.test:80 HTTP/1.1")),
]

HOSTS = [
    # RFC 9112 §3.2: missing, repeated or invalid Host MUST get 400.
    Case("host-missing", host()),
    Case("host-twice", host(b"Host: h", b"Host: i")),
    Case("host-twice-equal", host(b"Host: h", b"Host: h")),
    Case("host-twice-cases", host(b"Host: h", b"hOST: h")),
    *(
        Case(f"host-{value!r}", host(b"Host: " + value))
        for value in [
            b"a b", b"a/b", b"a@b", b"u:p@b", b"a, b", b"a?b", b"a#b", b"[::1", b"::1", b"[::1]x", b"a:b", b"a:80:80", b"a:+80",
            b"a:-1", b"\x80", b"a\\b", b"<a>", b'"a"', b"a\0", b"a\x0bb", b"a\tb", b"a|b", b"{a}", b"a^b", b"a`b", b"http://a", b"[]",
        ]
    ),
    Case("host-port-only", host(b"Host: :80"), EITHER),
    Case("host-comma", host(b"Host: a,b"), EITHER, seen={"fields": {b"host": b"a,b"}}),  # a sub-delim of reg-name
    Case("host-bad-percent", host(b"Host: a%zz"), EITHER),
    Case("host-empty", host(b"Host:"), EITHER),  # the grammar has it, for targets without an authority
    Case("host-huge-port", host(b"Host: a:99999"), EITHER, seen={"fields": {b"host": b"a:99999"}}),
    Case("host-empty-port", host(b"Host: a:"), EITHER, frozenset({400}), seen={"target": b"/t"}),
    Case("host-ipv6", host(b"Host: [::1]:8000"), SERVE, seen={"fields": {b"host": b"[::1]:8000"}}),
    Case("host-underscore", host(b"Host: a_b-c.d~e"), SERVE, seen={"fields": {b"host": b"a_b-c.d~e"}}),
    Case("host-sub-delims", host(b"Host: a!$&'()*+;=b"), EITHER, seen={"fields": {b"host": b"a!$&'()*+;=b"}}),
    Case("host-last", host(b"X-B: c", b"HOST:h"), SERVE, seen={"fields": {b"host": b"h"}}),
]

LIMITS = [
    # RFC 9110 §5.4, RFC 6585 §5, RFC 9112 §3: an error is due, not a silent cut.
    Case("value-70-kib", field(b"X-A: " + b"a" * 70_000), statuses=TOO_LARGE),
    Case("name-70-kib", field(b"a" * 70_000 + b": b"), statuses=TOO_LARGE),
    Case("target-70-kib", line(b"GET /" + b"a" * 70_000 + b" HTTP/1.1"), statuses=TOO_LARGE),
    Case("method-70-kib", line(b"G" * 70_000 + b" / HTTP/1.1"), statuses=TOO_LARGE | {501}),
    Case("fields-70-kib", field(*[b"X-%d: %s" % (i, b"a" * 1000) for i in range(70)]), statuses=TOO_LARGE),
    Case("fields-300", field(*[b"X-%d: a" % i for i in range(300)]), statuses=TOO_LARGE),
    Case("fields-5000-short", field(*[b"a:"] * 5000), statuses=TOO_LARGE),
    Case("head-without-end", b"GET /t HTTP/1.1\r\nHost: h\r\nX-A: " + b"a" * 200_000, statuses=TOO_LARGE),
    Case("line-without-end", b"G" * 200_000, statuses=TOO_LARGE | {501}),
    Case("crlf-flood", b"\r\n" * 100_000, EITHER, frozenset({400, 431, CLOSE})),
    Case("fields-100", field(*[b"X-%d: a" % i for i in range(100)]), SERVE, seen={"fields": {b"x-99": b"a"}}),
    Case("value-16-kib", field(b"X-A: " + b"a" * 16_000), SERVE, seen={"fields": {b"x-a": b"a" * 16_000}}),
    Case("target-8-kib", line(b"GET /" + b"a" * 8000 + b" HTTP/1.1"), SERVE, seen={"target": b"/" + b"a" * 8000}),
]


@pytest.mark.parametrize(("case", "mode"), table(*map(followed, LINE_ENDS + NAMES + REQUEST_LINES + HOSTS + LIMITS)))
async def test_head(case, mode, connect, replica):
    await check(case, mode, connect, replica)


async def test_host_is_not_needed_in_http_1_0(connect, replica):
    # RFC 9112 §3.2 asks it of HTTP/1.1; what the router sends on is HTTP/1.1 and has one.
    client = await connect()
    await client.send(b"GET /t HTTP/1.0\r\n\r\n")
    response = await client.response()
    assert response.status == 200
    assert response.body == b"/t"
    await client.assert_closed()
    assert len(values(replica.requests[0].fields, b"host")) == 1


async def test_connect_is_no_tunnel(connect, replica):
    # RFC 9110 §9.3.6: no 2xx, or what follows would be a tunnel.
    client = await connect()
    await client.send(b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n")
    response = await client.response(b"CONNECT")
    assert response.status in {400, 403, 404, 405, 501}
    await barrier(connect, replica)
    assert not replica.requests


async def test_http_2_preface_is_no_http_1_request(connect, replica):
    # RFC 9113 §3.4: refused, or answered in HTTP/2 with SETTINGS. "SM" is no request in any case.
    client = await connect()
    await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    await client.wait(lambda: len(client.unread) >= 9)
    if client.unread[3:4] != b"\x04":
        response = await client.response()
        assert response is None or response.status in {400, 505}
        await client.assert_closed()
    await barrier(connect, replica)
    assert not replica.requests
