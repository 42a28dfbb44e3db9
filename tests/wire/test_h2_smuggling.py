"""Injection and smuggling between versions (RFC 9113 §8.2.1, §8.3.1, §10.3; RFC 9112 §11; RFC 9110 §5.5, §7.6.1).

From HTTP/2 clients to an HTTP/1.1 replica, whose parser takes only the grammar, and from HTTP/1.1 clients to an HTTP/2
replica. What is refused never reaches the replica; what is served is exactly one request, with its fields as sent.
"""

from __future__ import annotations

import pytest
from h2kit import PROTOCOL, block, data, head, headers, headers_split
from wirekit import until

pytest_plugins = ["h2fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

INJECTED = b"\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
INJECTIONS = {
    "crlf": b"\r\nx-injected: 1", "lf": b"\nx-injected: 1", "cr": b"\rx-injected: 1", "nul": b"\0x", "request": INJECTED,
    "chunked": b"\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", "crlf-end": b"\r\n", "lf-end": b"\n",
}  # fmt: skip
PLACES = ["value", "name", "path", "method", "authority", "scheme", "host", "cookie", "trailer-name", "trailer-value", "request-id", "traceparent"]


def place(where, text):
    fields = head(b"POST")
    trailers = []
    if where in {"path", "method", "authority", "scheme"}:
        name = b":" + where.encode()
        fields = [(key, value + text if key == name else value) for key, value in fields]
    elif where == "name":
        fields.append((b"x-a" + text, b"v"))
    elif where.startswith("trailer"):
        trailers = [(b"x-t" + (text if where == "trailer-name" else b""), b"v" + (text if where == "trailer-value" else b""))]
    else:
        name = {"value": b"x-a", "request-id": b"x-request-id"}.get(where, where.encode())
        if name == b"host":
            fields = [pair for pair in fields if pair[0] != b":authority"]
        fields.append((name, b"h" + text))
    return fields, trailers


async def refused(client, stream, replica, connect):
    await stream.done()
    assert stream.reset == PROTOCOL or 400 <= stream.status < 500 or client.goaways, (stream.status, stream.reset)
    assert (await (await connect()).get(b"/after")).status == 200
    assert not [request for request in replica.requests if request.complete and request.target != b"/after"]
    assert not any(link.unread for link in replica.connections)
    await until(lambda: all(request.complete or link.ended for link, request in replica.seen), "cut requests end")


@pytest.mark.parametrize("text", INJECTIONS)
@pytest.mark.parametrize("where", PLACES)
async def test_line_ends_do_not_get_through(where, text, h2_connect, replica):
    client = await h2_connect()
    fields, trailers = place(where, INJECTIONS[text])
    stream = client.stream()
    out = headers(stream.id, fields, end=False) + data(stream.id, b"hello", end=not trailers)
    await client.send(out + (headers(stream.id, trailers) if trailers else b""))
    await refused(client, stream, replica, h2_connect)


LIES = {
    "length-and-coding": [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
    "coding": [(b"transfer-encoding", b"chunked")],
    "coding-upper": [(b"Transfer-Encoding", b"chunked")],
    "coding-space": [(b"transfer-encoding ", b"chunked")],
    "coding-tab": [(b"transfer-encoding\t", b"chunked")],
    "coding-colon": [(b"transfer-encoding:", b"chunked")],
    "length-more": [(b"content-length", b"50")],
    "length-less": [(b"content-length", b"4")],
    "length-twice": [(b"content-length", b"5"), (b"content-length", b"0")],
    "length-list": [(b"content-length", b"5, 0")],
    "length-plus": [(b"content-length", b"+5")],
    "connection-length": [(b"connection", b"content-length"), (b"content-length", b"5")],
    "connection-close": [(b"connection", b"close")],
    "upgrade": [(b"upgrade", b"websocket")],
    "http2-settings": [(b"connection", b"upgrade, http2-settings"), (b"upgrade", b"h2c"), (b"http2-settings", b"AAMAAABkAAQAAP__")],
    "name-colon": [(b"x-a: b\r\nx-b", b"v")],
    "name-colon-only": [(b"host: other", b"v")],
    "method-in-name": [(b"GET /smuggled HTTP/1.1", b"v")],
}


@pytest.mark.parametrize("name", LIES)
async def test_lies_about_framing(name, h2_connect, replica):
    # §8.1.1, §8.2.2. The body is one of HTTP/1.1's, should anybody read it as such.
    client = await h2_connect()
    stream = client.stream()
    body = b"5\r\nhello\r\n0\r\n\r\n" if name.startswith("coding") else b"hello"
    await client.send(headers(stream.id, [*head(b"POST"), *LIES[name]], end=False) + data(stream.id, body, end=True))
    await refused(client, stream, replica, h2_connect)


BODIES = [b"", b"hello", b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"]


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("length", [True, False], ids=["length", "none"])
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE", b"OPTIONS", b"PUT"])
async def test_a_body_stays_a_body(method, body, length, pieces, h2_connect, replica):
    client = await h2_connect()
    fields = [*head(method), *([(b"content-length", b"%d" % len(body))] if length else [])]
    stream = await client.open(fields, end=False)
    for at in range(0, len(body), pieces if pieces > 1 else len(body) + 1):
        await client.send(data(stream.id, body[at : at + (pieces if pieces > 1 else len(body))]))
    await client.send(data(stream.id, b"", end=True))
    stream.own_end = True
    assert (await stream.done()).status == 200
    (request,) = replica.requests
    assert bytes(request.body) == body
    assert request.complete
    assert (await client.get(b"/after")).status == 200


PATHS = [
    b"/", b"//", b"///a", b"/a/../b", b"/./a", b"/%2e%2e/%2f", b"/%0d%0aX:y", b"/%00", b"/a%20b", b"/a+b", b"/a;b=c", b"/?", b"/??", b"/?a=/../b", b"/?a=%zz",
    b"/a:b@c", b"/@h", b"/%", b"/~!$&'()*+,;=:@-._", b"/a?b?c", b"/http://other/", b"//other/a", b"/" + b"a" * 8000,
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p[:20].decode())
async def test_paths_are_passed_on_as_they_are(path, h2_connect, h1_h2_connect, replica, h2_replica):
    client = await h2_connect()
    assert (await client.get(path)).status == 200
    assert replica.requests[-1].target == path
    client = await h1_h2_connect()
    assert (await client.get(path)).status == 200
    assert h2_replica.seen[-1].path == path


async def test_an_absolute_target_of_http_1_becomes_authority_and_path(h1_h2_connect, h2_replica):
    # RFC 9112 §3.2.2: the target's authority counts, and Host is replaced.
    client = await h1_h2_connect()
    await client.send(b"GET http://other:81/a?b HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await client.response()).status == 200
    (stream,) = h2_replica.seen
    assert (stream.get(b":authority"), stream.path) == (b"other:81", b"/a?b")
    assert stream.get(b"host") in {None, b"other:81"}


async def test_authority_becomes_host_and_back(h2_connect, h1_h2_connect, h2_h2_connect, replica, h2_replica):
    # §8.3.1.
    for authority in (b"h", b"h:80", b"A.Example", b"[::1]:8080"):
        client = await h2_connect()
        await (await client.open(head(authority=authority))).done()
        assert replica.requests[-1].get(b"host").lower() == authority.lower()  # a host has no case (RFC 3986 §6.2.2.1)
        client = await h1_h2_connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: " + authority + b"\r\n\r\n")
        assert (await client.response()).status == 200
        client = await h2_h2_connect()
        await (await client.open(head(authority=authority))).done()
        for stream in h2_replica.seen:
            assert stream.get(b":authority").lower() == authority.lower()
        h2_replica.seen.clear()


async def test_host_alone_serves_as_authority(h2_connect, h2_h2_connect, replica, h2_replica):
    fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/t"), (b"host", b"only.example")]
    client = await h2_connect()
    assert (await (await client.open(fields)).done()).status == 200
    assert replica.requests[-1].get(b"host") == b"only.example"
    client = await h2_h2_connect()
    assert (await (await client.open(fields)).done()).status == 200
    assert b"only.example" in {h2_replica.seen[-1].get(b":authority"), h2_replica.seen[-1].get(b"host")}


async def test_cookies_are_joined_for_http_1(h2_connect, replica):
    # §8.2.3: one field, "; " between.
    client = await h2_connect()
    await client.get(b"/t", (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2; c=3"), (b"cookie", b"d=4"))
    assert [value for name, value in replica.requests[-1].fields if name.lower() == b"cookie"] == [b"a=1; b=2; c=3; d=4"]


async def test_cookies_of_http_1_to_http_2(h1_h2_connect, h2_replica):
    client = await h1_h2_connect()
    await client.get(b"/t", b"Cookie: a=1; b=2\r\n")
    assert b"; ".join(value for name, value in h2_replica.seen[-1].fields if name == b"cookie") == b"a=1; b=2"


async def test_te_is_passed_on_as_trailers_alone(h2_connect, h2_h2_connect, h1_h2_connect, replica, h2_replica):
    client = await h2_connect()
    assert (await client.get(b"/t", (b"te", b"trailers"))).status == 200
    te, connection = replica.requests[-1].get(b"te"), replica.requests[-1].get(b"connection") or b""
    assert te is None or (te == b"trailers" and b"te" in connection.lower()), "RFC 9110 §10.1.4"
    client = await h2_h2_connect()
    await client.get(b"/t", (b"te", b"trailers"))
    client = await h1_h2_connect()
    await client.get(b"/t", b"TE: gzip;q=0.5, trailers\r\nConnection: TE\r\n")
    await client.get(b"/t", b"TE: gzip\r\nConnection: TE\r\n")
    assert [stream.get(b"te") for stream in h2_replica.seen][0] == b"trailers"
    assert h2_replica.seen[1].get(b"te") in {None, b"trailers"}
    assert h2_replica.seen[2].get(b"te") is None


async def test_connection_fields_of_http_1_stay_there(h1_h2_connect, h2_replica):
    # §8.2.2; RFC 9110 §7.6.1: what Connection names as well. The kit refuses the others.
    client = await h1_h2_connect()
    fields = b"Connection: keep-alive, X-Hop, x-other\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nX-OTHER: 2\r\nX-End: 3\r\nProxy-Connection: keep-alive\r\n"
    assert (await client.get(b"/t", fields)).status == 200
    (stream,) = h2_replica.seen
    assert stream.get(b"x-end") == b"3"
    assert not stream.names() & {b"x-hop", b"x-other"}


@pytest.mark.parametrize("named", [b"content-length", b"host", b":path", b":authority", b"authorization", b"x-request-id", b"cookie"])
async def test_connection_cannot_name_what_the_message_needs(named, h1_h2_connect, h2_replica):
    client = await h1_h2_connect()
    await client.send(b"POST /t HTTP/1.1\r\nHost: h\r\nConnection: " + named + b"\r\nContent-Length: 5\r\n\r\nhello")
    response = await client.response()
    assert response.status in {200, 400}
    if response.status == 200:
        assert bytes(h2_replica.seen[-1].body) == b"hello"
        assert h2_replica.seen[-1].get(b":authority") == b"h"


async def test_upgrade_of_http_1_is_not_passed_on(h1_h2_connect, h2_replica):
    client = await h1_h2_connect()
    fields = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    assert (await client.get(b"/t", fields)).status == 200
    assert not h2_replica.seen[-1].names() & {b"upgrade", b"http2-settings", b"connection"}


@pytest.mark.parametrize("body", [b"5\r\nhello\r\n0\r\n\r\n", b"1\r\nh\r\n4\r\nello\r\n0\r\nX-T: v\r\n\r\n"], ids=["plain", "trailers"])
async def test_chunks_become_data(body, h1_h2_connect, h2_replica):
    client = await h1_h2_connect()
    await client.send(b"POST /t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + body, "split")
    assert (await client.response()).status == 200
    (stream,) = h2_replica.seen
    assert bytes(stream.body) == b"hello"
    assert b"content-length" not in stream.names()


async def test_expect_of_either_version(h1_h2_connect, h2_connect, replica, h2_replica):
    # RFC 9110 §10.1.1.
    client = await h1_h2_connect()
    await client.send(b"POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    await until(lambda: h2_replica.seen or client.unread, "the head or 100")
    await client.send(b"hello")
    assert (await client.response()).status == 200
    client = await h2_connect()
    stream = await client.open([*head(b"POST"), (b"expect", b"100-continue"), (b"content-length", b"5")], end=False)
    await stream.send(b"hello", end=True)
    assert (await stream.done()).status == 200
    assert bytes(replica.requests[-1].body) == b"hello"


FORBIDDEN = [b"content-length", b"transfer-encoding", b"host", b"authorization", b"connection", b"te", b"trailer", b"content-type", b"x-forwarded-for", b"cookie", b"set-cookie"]


@pytest.mark.parametrize("name", FORBIDDEN)
async def test_trailers_do_not_become_what_they_must_not(name, h2_connect, h2_h2_connect, replica, h2_replica):
    # RFC 9110 §6.5.1: refused, dropped, or kept as trailers; never framing, routing or the head.
    for connect, seen in ((h2_connect, lambda: replica.requests), (h2_h2_connect, lambda: h2_replica.seen)):
        client = await connect()
        stream = client.stream()
        await client.send(headers(stream.id, head(b"POST"), end=False) + data(stream.id, b"hello") + headers(stream.id, [(name, b"evil")]))
        await stream.done()
        if stream.status != 200:
            assert stream.reset == PROTOCOL or 400 <= stream.status < 500 or client.goaways
            continue
        request = seen()[-1]
        assert b"evil" not in (request.get(name) or b"")
        assert bytes(request.body) == b"hello"
        if name in {b"content-length", b"transfer-encoding", b"host", b"connection"}:
            assert not [key for key, _ in request.trailers if key.lower() == name]


async def test_values_are_untouched(h2_connect, h2_h2_connect, h1_h2_connect, replica, h2_replica):
    values = [b"a  b", b"caf\xe9", b"\x01\x7f", b'"quoted, list"', b"v" * 30_000, b"", b"a\tb", b"%0d%0a"]
    fields = [(b"x-%d" % i, value) for i, value in enumerate(values)]
    for connect, seen in ((h2_connect, lambda: replica.requests), (h2_h2_connect, lambda: h2_replica.seen)):
        client = await connect()
        stream = client.stream()
        await client.send(headers_split(stream.id, block([*head(), *fields])))
        await stream.done()
        if stream.status == 200:
            for name, value in fields:
                assert seen()[-1].get(name) == value
        else:  # the control characters may be refused
            assert 400 <= stream.status < 500 or stream.reset == PROTOCOL
    client = await h1_h2_connect()
    await client.get(b"/t", b"".join(b"%s: %s\r\n" % pair for pair in fields if pair[1] != b"\x01\x7f"))
    for name, value in fields:
        assert h2_replica.seen[-1].get(name) == (value if value != b"\x01\x7f" else None)


async def test_a_response_cannot_be_split(h2_connect, replica):
    # HTTP/1.1 to HTTP/2: odd but legal bytes of a reason and of values; the kit checks what comes.
    from wirekit import answer

    replica.script = answer(b"HTTP/1.1 200 caf\xe9 \t\r\nX-A: b \r\nx-b:\r\nConnection: x-c, close\r\nX-C: 1\r\nContent-Length: 2\r\n\r\nok", "fin")
    client = await h2_connect()
    stream = await client.get()
    assert (stream.get(b"x-a"), stream.get(b"x-b"), stream.get(b"x-c"), bytes(stream.body)) == (b"b", b"", None, b"ok")


@pytest.mark.parametrize("whole", [True, False])
async def test_a_cut_answer_of_http_1_is_a_reset(whole, h2_connect, replica):
    # §8.1.1: an end must not look like END_STREAM unless the message is whole.
    from wirekit import answer

    for raw in (b"Content-Length: 9\r\n\r\nhello" + b"1234" * whole, b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" + b"0\r\n\r\n" * whole):
        replica.script = answer(b"HTTP/1.1 200 OK\r\n" + raw, "fin")
        client = await h2_connect()
        stream = await (await client.open(head())).done()
        assert stream.status == 200
        assert stream.ended == whole
        assert (stream.reset is None) == whole
