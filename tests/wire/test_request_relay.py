"""Which fields of a good request reach the replica (RFC 9110 §7.6, §7.8, §10.1; RFC 9112 §9)."""

from __future__ import annotations

import pytest
from outcomes import EITHER, SERVE, Case, check, table
from wirekit import values

pytestmark = pytest.mark.asyncio(loop_scope="session")

# RFC 9110 §7.6.1: what only this connection is about. `te: trailers` may be the router's own, see below.
HOP_BY_HOP = {b"keep-alive", b"proxy-connection", b"upgrade", b"http2-settings"}


def get(*fields: bytes) -> bytes:
    return b"\r\n".join([b"GET /t HTTP/1.1", b"Host: h", *fields, b"", b""])


def gone(*names: bytes, **kept: bytes) -> dict:
    return {"fields": {**dict.fromkeys(names), **{name.encode().replace(b"_", b"-"): value for name, value in kept.items()}}}


NOMINATED = [
    # RFC 9110 §7.6.1: each field that Connection names is removed, and then Connection itself.
    Case("one", get(b"Connection: x-foo", b"X-Foo: a", b"X-Bar: b"), SERVE, seen=gone(b"x-foo", x_bar=b"b")),
    Case("two", get(b"Connection: x-foo, X-BAR", b"X-Foo: a", b"x-bar: b", b"X-Baz: c"), SERVE, seen=gone(b"x-foo", b"x-bar", x_baz=b"c")),
    Case("with-keep-alive", get(b"Connection: keep-alive,x-foo", b"X-Foo: a"), SERVE, seen=gone(b"x-foo")),
    Case("with-close", get(b"Connection: close, x-foo", b"X-Foo: a"), SERVE, closes=True, seen=gone(b"x-foo")),
    Case("two-lines", get(b"Connection: x-foo", b"Connection: x-bar", b"X-Foo: a", b"X-Bar: b"), SERVE, seen=gone(b"x-foo", b"x-bar")),
    Case("two-lines-close", get(b"Connection: x-foo", b"Connection: Close", b"X-Foo: a"), SERVE, closes=True, seen=gone(b"x-foo")),
    Case("field-first", get(b"X-Foo: a", b"Connection: x-foo"), SERVE, seen=gone(b"x-foo")),
    Case("field-twice", get(b"X-Foo: a", b"Connection: x-foo", b"x-foo: b"), SERVE, seen=gone(b"x-foo")),
    Case("no-such-field", get(b"Connection: x-foo", b"X-Bar: b"), SERVE, seen=gone(x_bar=b"b")),
    Case("empty-elements", get(b"Connection: , ,x-foo,,", b"X-Foo: a"), SERVE, seen=gone(b"x-foo")),
    Case("empty", get(b"Connection:", b"X-Foo: a"), SERVE, seen=gone(x_foo=b"a")),
    Case("tabs", get(b"Connection: \tx-foo\t,\tclose", b"X-Foo: a"), SERVE, closes=True, seen=gone(b"x-foo")),
    Case("not-a-token", get(b"Connection: x foo;", b"X: a"), EITHER, seen=gone(x=b"a")),
    Case("prefix-only", get(b"Connection: x-fo", b"X-Foo: a"), SERVE, seen=gone(b"x-fo", x_foo=b"a")),
    # Nominating what a message cannot do without: refused, or ignored; the strict parser sees the rest.
    Case("host", get(b"Connection: host"), EITHER, seen=gone(host=b"h")),
    Case("length", b"POST /t HTTP/1.1\r\nHost: h\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello", EITHER, seen={"body": b"hello"}),
    Case(
        "coding",
        b"POST /t HTTP/1.1\r\nHost: h\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        EITHER,
        seen={"body": b"hello"},
    ),
    # The well-known ones go even if Connection does not name them.
    Case("keep-alive", get(b"Keep-Alive: timeout=5", b"X-A: b"), SERVE, seen=gone(b"keep-alive", x_a=b"b")),
    Case("proxy-connection", get(b"Proxy-Connection: keep-alive", b"X-A: b"), SERVE, seen=gone(b"proxy-connection", x_a=b"b")),
    Case("proxy-connection-close", get(b"Proxy-Connection: close"), SERVE, seen=gone(b"proxy-connection")),
    Case("upgrade-alone", get(b"Upgrade: foo/1", b"X-A: b"), SERVE, seen=gone(b"upgrade", x_a=b"b")),
    # RFC 9110 §10.1.4: only `trailers` may go on, named by Connection.
    Case("te-gzip", get(b"TE: gzip;q=0.5", b"Connection: TE"), SERVE),
    Case("te-both", get(b"TE: trailers, deflate", b"Connection: TE"), SERVE),
    Case("te-unnamed", get(b"TE: trailers"), SERVE),
    Case("te-trailers", get(b"TE: trailers", b"Connection: TE"), SERVE),
    # RFC 9113 §3.1: the upgrade to h2c is ignored.
    Case("h2c", get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"), EITHER, seen=gone(b"upgrade", b"http2-settings")),
    Case("h2c-no-connection", get(b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"), EITHER, seen=gone(b"upgrade", b"http2-settings")),
    Case("h2c-and-more", get(b"Connection: Upgrade", b"Upgrade: h2c, foo"), EITHER, seen=gone(b"upgrade")),
    Case("tls-upgrade", get(b"Connection: Upgrade", b"Upgrade: TLS/1.0"), EITHER, seen=gone(b"upgrade")),
    # End to end fields: untouched, and repeated ones in order.
    Case("repeated", get(b"X-A: 1", b"X-B: 2", b"x-a: 3", b"X-A: 4"), SERVE, seen=gone(x_a=b"1, 3, 4", x_b=b"2")),
    Case("cookies", get(b"Cookie: a=b", b"Cookie: c=d"), SERVE),
    Case("case", get(b"x-MiXeD: VaLuE"), SERVE, seen=gone(x_mixed=b"VaLuE")),
    Case("authorization", get(b"Authorization: Basic YTpi"), SERVE, seen=gone(authorization=b"Basic YTpi")),
    Case("accept-encoding", get(b"Accept-Encoding: gzip, br"), SERVE, seen=gone(accept_encoding=b"gzip, br")),
    Case("traceparent", get(b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), SERVE),
    Case("trailer-announced", get(b"Trailer: X-T"), SERVE),
    Case("close", get(b"Connection: close"), SERVE, closes=True),
    Case("close-upper", get(b"CONNECTION: CLOSE"), SERVE, closes=True),
    Case("close-not-quite", get(b"Connection: closed"), SERVE),
    # RFC 9110 §10.1.1: another expectation than 100-continue may get 417.
    Case("expect-other", get(b"Expect: something"), EITHER, frozenset({417})),
]


@pytest.mark.parametrize(("case", "mode"), table(*NOMINATED))
async def test_fields(case, mode, connect, replica):
    await check(case, mode, connect, replica)
    for request in replica.requests:
        assert not HOP_BY_HOP & request.names(), request.fields
        options = (request.get(b"connection") or b"").lower().replace(b" ", b"").split(b",")
        assert set(options) <= {b"", b"keep-alive", b"te"}, "only the router's own connection options"
        te = request.get(b"te")
        assert te is None or (te.lower() == b"trailers" and b"te" in options)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_close_is_said_to_the_client(version, connect, replica):
    # RFC 9112 §9.6: a server that closes after a response SHOULD say so in it.
    client = await connect()
    await client.send(b"GET /t HTTP/" + version + b"\r\nHost: h\r\nConnection: close\r\n\r\n")
    response = await client.response()
    assert response.get(b"connection").lower() == b"close"
    assert await client.assert_closed() == "eof"


async def test_fields_of_two_requests_do_not_mix(connect, replica):
    client = await connect()
    await client.get(b"/a", b"X-A: 1\r\nCookie: secret\r\n")
    await client.get(b"/b", b"X-B: 2\r\n")
    first, second = replica.requests
    assert first.get(b"cookie") == b"secret"
    assert not {b"x-a", b"cookie"} & second.names()


async def test_max_forwards_and_trace(connect, replica):
    # RFC 9110 §9.3.8, §7.6.2: served by the replica, refused, or answered here when Max-Forwards is 0.
    client = await connect()
    await client.send(b"TRACE /t HTTP/1.1\r\nHost: h\r\nMax-Forwards: 1\r\n\r\n")
    response = await client.response()
    assert response.complete
    assert response.status in {200, 400, 403, 405, 501}
    for request in replica.requests:
        assert request.get(b"max-forwards") in {b"0", b"1"}


async def test_methods_and_empty_bodies(connect, replica):
    # RFC 9110 §8.6: a POST without content says so upstream, where a GET need not.
    client = await connect()
    for method in [b"GET", b"DELETE", b"OPTIONS", b"POST", b"PUT", b"PATCH"]:
        await client.send(method + b" /t HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.response()).body == b"/t"
    assert [(bytes(r.body), r.trailers, r.framing or 0) for r in replica.requests] == [(b"", [], 0)] * 6
    assert all(len(values(r.fields, b"host")) == 1 for r in replica.requests)
