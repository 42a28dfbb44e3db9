"""WebSocket over HTTP/2 (RFC 8441; RFC 6455; RFC 9113 §8.5): handshakes, half-closes, resets, all four pairs but one."""

from __future__ import annotations

import asyncio
import base64
import hashlib

import pytest
import wirekit
from h2kit import CANCEL, CONNECT_PROTOCOL, INTERNAL, PROTOCOL, H2Client, echo, headers
from wirekit import until

pytest_plugins = ["h2fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
WS = [
    (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http"), (b":path", b"/ws?a=b"), (b":authority", b"h"),
    (b"sec-websocket-version", b"13"),
]  # fmt: skip
UPGRADE = b"GET /ws?a=b HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: " + KEY + b"\r\nSec-WebSocket-Version: 13\r\n"


def accept(key):
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


def switching(*fields, wrong=False):
    """Script of an HTTP/1.1 replica: 101, then raw bytes are the test's."""

    async def script(connection, request):
        key = request.get(b"sec-websocket-key")
        lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
        lines += [b"Sec-WebSocket-Accept: " + accept(b"x" if wrong else key), *fields, b"", b""]
        await connection.send(b"\r\n".join(lines))
        await connection.ending(None)

    return script


async def arrives(link, data):
    await link.wait(lambda: len(link.unread) >= len(data))
    assert bytes(link.unread[: len(data)]) == data
    del link.unread[: len(data)]


def shows(stream):
    """A failure that the client sees: RST_STREAM, or a Close frame of 1011 (RFC 6455 §7.4.1) of the router's own."""
    return stream.reset is not None or (stream.body[:1] == b"\x88" and stream.body[2:4] == b"\x03\xf3")


async def opened(connect, replica, *fields, script=None):
    replica.script = script or switching()
    client = await connect()
    assert client.peer.get(CONNECT_PROTOCOL) == 1, "RFC 8441 §3"
    stream = await client.open([*WS, *fields], end=False)
    await stream.headed()
    assert stream.status == 200, (stream.fields, stream.reset)
    return client, stream, replica.seen[-1][0]


async def taking(stream):
    """Script of an HTTP/2 replica: 200, then the stream is the test's."""
    await stream.send_head([(b":status", b"200"), (b"sec-websocket-protocol", b"chat")])


# --- HTTP/2 client, HTTP/1.1 replica -----------------------------------------------------------------------------------


async def test_the_handshake_becomes_an_upgrade(h2_connect, replica):
    client, stream, link = await opened(
        h2_connect, replica, (b"sec-websocket-protocol", b"chat, b"), (b"origin", b"http://o"), (b"cookie", b"a=1"),
        (b"sec-websocket-extensions", b"permessage-deflate"), script=switching(b"Sec-WebSocket-Protocol: chat", b"X-Own: v"),
    )  # fmt: skip
    (request,) = replica.requests
    assert (request.method, request.target, request.get(b"host")) == (b"GET", b"/ws?a=b", b"h")
    assert request.get(b"upgrade").lower() == b"websocket" and b"upgrade" in request.get(b"connection").lower()
    assert len(base64.b64decode(request.get(b"sec-websocket-key"), validate=True)) == 16
    assert request.get(b"sec-websocket-version") == b"13"
    assert (request.get(b"sec-websocket-protocol"), request.get(b"origin"), request.get(b"cookie")) == (b"chat, b", b"http://o", b"a=1")
    assert request.get(b"sec-websocket-extensions") == b"permessage-deflate"
    assert not {name for name in request.names() if name.startswith(b":")}
    assert (stream.get(b"sec-websocket-protocol"), stream.get(b"x-own")) == (b"chat", b"v")
    assert not stream.names() & {b"sec-websocket-accept", b"upgrade", b"connection"}  # RFC 8441 §5
    await stream.send(b"\x81\x85\1\2\3\4hello")
    await arrives(link, b"\x81\x85\1\2\3\4hello")
    await link.send(b"\x81\x02ok")
    await stream.has(4)
    assert bytes(stream.body) == b"\x81\x02ok"


async def test_keys_differ(h2_connect, replica):
    for _ in range(3):
        client, _, _ = await opened(h2_connect, replica)
        client.close()
    assert len({request.get(b"sec-websocket-key") for request in replica.requests}) == 3


async def test_mebibytes_each_way(h2_connect, replica):
    client, stream, link = await opened(h2_connect, replica)
    blob = bytes(range(256)) * 8192
    sending = [asyncio.ensure_future(stream.send(blob)), asyncio.ensure_future(link.send(blob))]
    await stream.has(len(blob))
    await arrives(link, blob)
    assert bytes(stream.body) == blob
    await asyncio.gather(*sending)
    assert (await client.get(b"/barrier")).status == 200, "the connection is not the tunnel's alone"


async def test_end_stream_of_the_client_is_the_end(h2_connect, replica):
    # RFC 8441 §5.1: END_STREAM is the TCP FIN; what the replica still says may come or not, an end does.
    client, stream, link = await opened(h2_connect, replica)
    await stream.send(b"last", end=True)
    await link.wait(lambda: link.ended)
    assert bytes(link.unread) == b"last"
    link.finish()
    await stream.done()
    assert stream.ended or stream.reset is not None


async def test_fin_of_the_replica_is_end_stream(h2_connect, replica):
    client, stream, link = await opened(h2_connect, replica)
    await link.send(b"last")
    link.finish()
    await stream.done()
    assert bytes(stream.body) == b"last"
    assert stream.ended
    assert (await client.get(b"/barrier")).status == 200


async def test_rst_of_either_end(h2_connect, replica):
    client, stream, link = await opened(h2_connect, replica)
    await stream.cancel()
    await link.ending()
    client, stream, link = await opened(h2_connect, replica)
    link.abort()
    await stream.done()
    assert shows(stream), "RFC 8441 §5.1: RST is RST_STREAM, not an orderly end"
    client, stream, link = await opened(h2_connect, replica)
    client.abort()
    await link.ending()


@pytest.mark.parametrize("status", [200, 204, 302, 401, 403, 404, 426, 503])
async def test_another_answer_is_passed_on(status, h2_connect, replica):
    async def script(connection, request):
        length = b"" if status == 204 else b"content-length: 2\r\n"
        await connection.send(b"HTTP/1.1 %d No\r\nx-own: v\r\n%s\r\n%s" % (status, length, b"" if status == 204 else b"no"))

    replica.script = script
    client = await h2_connect()
    stream = await (await client.open(WS, end=False)).done()
    # A 2xx without the switch is no tunnel, and must not be made one (RFC 8441 §5: 2xx accepts).
    if status < 300:
        assert stream.status >= 400, stream.fields
    else:
        assert (stream.status, stream.get(b"x-own"), bytes(stream.body)) == (status, b"v", b"no")
    assert (await client.get(b"/barrier")).status == 200


async def test_a_wrong_accept_is_502(h2_connect, replica):
    replica.script = switching(wrong=True)
    client = await h2_connect()
    stream = await (await client.open(WS, end=False)).done()
    assert stream.status == 502 and stream.get(b"x-router-error")


def changed(name, value, fields=WS):
    return [(key, value if key == name else old) for key, old in fields if key != name or value is not None]


SHAKES = {
    # RFC 8441 §4: with :protocol, :scheme and :path are needed.
    "no-scheme": changed(b":scheme", None), "no-path": changed(b":path", None), "empty-path": changed(b":path", b""),
    "no-authority": changed(b":authority", None), "get": changed(b":method", b"GET"), "post": changed(b":method", b"POST"),
    "protocol-twice": [WS[0], WS[1], *WS[1:]], "protocol-empty": changed(b":protocol", b""),
    "protocol-other": changed(b":protocol", b"connect-udp"), "protocol-prefix": changed(b":protocol", b"websockets"), "protocol-h2c": changed(b":protocol", b"h2c"),
    "protocol-crlf": changed(b":protocol", b"websocket\r\nx: y"),
    # RFC 6455 §4.4.
    "version-8": changed(b"sec-websocket-version", b"8"), "version-14": changed(b"sec-websocket-version", b"14"), "version-empty": changed(b"sec-websocket-version", b""),
    "connection": [*WS, (b"connection", b"upgrade")], "upgrade": [*WS, (b"upgrade", b"websocket")],
    "coding": [*WS, (b"transfer-encoding", b"chunked")],
}  # fmt: skip


@pytest.mark.parametrize("name", SHAKES)
async def test_what_is_no_handshake(name, h2_connect, replica):
    client = await h2_connect()
    stream = await client.open(SHAKES[name], end=False)
    await stream.done()
    assert 400 <= stream.status < 502 or stream.reset == PROTOCOL, (stream.status, stream.reset)
    if name == "version-8" and stream.status == 426:
        assert stream.get(b"sec-websocket-version") == b"13"
    assert (await client.get(b"/barrier")).status == 200
    assert not replica.seen


async def test_a_handshake_with_end_stream(h2_connect, replica):
    # A tunnel that is half-closed at birth: refused or opened and ended; never a plain request.
    replica.script = switching()
    client = await h2_connect()
    stream = await client.open(WS, end=True)
    await stream.headed()
    if stream.status == 200:
        await replica.seen[0][0].wait(lambda: replica.seen[0][0].ended)  # it is told
        replica.seen[0][0].finish()
    await stream.done()
    assert stream.status != 200 or stream.ended or stream.reset is not None
    assert not [r for r in replica.requests if b"upgrade" not in r.names()]
    for link, _ in replica.seen:
        link.finish()


# --- HTTP/2 client, HTTP/2 replica ---------------------------------------------------------------------------------------


async def opened_h2(connect, h2_replica, script=taking):
    h2_replica.settings = {CONNECT_PROTOCOL: 1}
    h2_replica.script = script
    client = await connect()
    stream = await client.open([*WS, (b"sec-websocket-protocol", b"chat")], end=False)
    await stream.headed()
    return client, stream


async def test_extended_connect_end_to_end(h2_h2_connect, h2_replica):
    client, stream = await opened_h2(h2_h2_connect, h2_replica)
    assert (stream.status, stream.get(b"sec-websocket-protocol")) == (200, b"chat")
    (behind,) = h2_replica.seen
    got = dict(behind.fields)
    assert (got[b":method"], got[b":protocol"], got[b":path"], got[b":authority"]) == (b"CONNECT", b"websocket", b"/ws?a=b", b"h")
    assert got[b"sec-websocket-version"] == b"13"
    assert b"sec-websocket-key" not in got and b"content-length" not in got
    await stream.send(b"one")
    await behind.has(3)
    await behind.send(b"two")
    await stream.has(3)
    # Half-closes, each way.
    await stream.send(b"end", end=True)
    await behind.has(6)
    await behind.done()
    if behind.ended:
        await behind.send(b"bye", end=True)
        await stream.done()
        assert stream.ended and bytes(stream.body) in {b"twobye", b"two"}


async def test_the_replica_half_closes_first(h2_h2_connect, h2_replica):
    client, stream = await opened_h2(h2_h2_connect, h2_replica)
    (behind,) = h2_replica.seen
    await behind.send(b"bye", end=True)
    await stream.done()
    assert (bytes(stream.body), stream.ended) == (b"bye", True)
    assert (await client.get(b"/barrier")).status == 200


@pytest.mark.parametrize("code", [CANCEL, INTERNAL, 10])
async def test_resets_are_passed_on(code, h2_h2_connect, h2_replica):
    client, stream = await opened_h2(h2_h2_connect, h2_replica)
    await h2_replica.seen[0].cancel(code)
    await stream.done()
    assert shows(stream)
    assert (await client.get(b"/barrier")).status == 200
    client, stream = await opened_h2(h2_h2_connect, h2_replica)
    await stream.cancel(code)
    assert await h2_replica.seen[1].was_reset() is not None
    assert (await client.get(b"/barrier")).status == 200


async def test_megabytes_over_two_hops_of_http_2(h2_h2_connect, h2_replica):
    client, stream = await opened_h2(h2_h2_connect, h2_replica)
    (behind,) = h2_replica.seen
    blob = bytes(range(256)) * 8192
    await asyncio.gather(stream.send(blob), behind.send(blob), stream.has(len(blob)), behind.has(len(blob)))
    assert bytes(stream.body) == bytes(behind.body) == blob


@pytest.mark.parametrize("status", [b"302", b"403", b"503"])
async def test_a_refusal_of_the_replica(status, h2_h2_connect, h1_h2_connect, h2_replica):
    async def script(stream):
        await stream.answer(b"no", status=status)

    client, stream = await opened_h2(h2_h2_connect, h2_replica, script)
    await stream.done()
    assert (stream.status, bytes(stream.body)) == (int(status), b"no")
    client = await h1_h2_connect()
    await client.send(UPGRADE + b"\r\n")
    response = await client.response()
    assert (response.status, bytes(response.body)) == (int(status), b"no")


async def test_a_replica_without_extended_connect(h2_h2_connect, h1_h2_connect, h2_replica):
    # RFC 8441 §3: :protocol must not be sent; the kit fails it if it is.
    client = await h2_h2_connect()
    assert (await client.get(b"/warm")).status == 200
    stream = await (await client.open(WS, end=False)).done()
    assert stream.status >= 500 and stream.get(b"x-router-error"), (stream.fields, stream.reset)
    client = await h1_h2_connect()
    await client.send(UPGRADE + b"\r\n")
    response = await client.response()
    assert response.status >= 500 and response.get(b"x-router-error")
    assert [behind.path for behind in h2_replica.seen] == [b"/warm"]


async def test_a_replica_without_it_on_a_fresh_connection(h2_h2_connect, h1_h2_connect, h2_replica):
    # Its SETTINGS are still on their way: wait for them.
    client = await h1_h2_connect()
    await client.send(UPGRADE + b"\r\n")
    response = await client.response()
    assert response.status >= 500 and response.get(b"x-router-error")
    assert not h2_replica.seen


# --- HTTP/1.1 client, HTTP/2 replica -------------------------------------------------------------------------------------


async def test_an_upgrade_becomes_extended_connect(h1_h2_connect, h2_replica):
    h2_replica.settings = {CONNECT_PROTOCOL: 1}
    h2_replica.script = taking
    client = await h1_h2_connect()
    await client.send(UPGRADE + b"Sec-WebSocket-Protocol: chat\r\nOrigin: http://o\r\n\r\n")
    response = await client.response()
    assert response.status == 101
    assert response.get(b"sec-websocket-accept") == accept(KEY)
    assert response.get(b"upgrade").lower() == b"websocket" and b"upgrade" in response.get(b"connection").lower()
    assert response.get(b"sec-websocket-protocol") == b"chat"
    (behind,) = h2_replica.seen
    got = dict(behind.fields)
    assert (got[b":method"], got[b":protocol"], got[b":path"], got[b"origin"]) == (b"CONNECT", b"websocket", b"/ws?a=b", b"http://o")
    assert not {b"sec-websocket-key", b"sec-websocket-accept"} & set(got)
    await client.send(b"hello")
    await behind.has(5)
    await behind.send(b"ok", end=True)
    await arrives(client, b"ok")
    await client.ending()


@pytest.mark.parametrize("how", ["abort", "reset", "close"])
async def test_ends_over_http_1_and_2(how, h1_h2_connect, h2_replica):
    h2_replica.settings = {CONNECT_PROTOCOL: 1}
    h2_replica.script = taking
    client = await h1_h2_connect()
    await client.send(UPGRADE + b"\r\n")
    assert (await client.response()).status == 101
    (behind,) = h2_replica.seen
    if how == "abort":
        client.abort()
        await behind.done()
        assert behind.reset is not None or behind.ended
    elif how == "reset":
        await behind.cancel(INTERNAL)
        assert await client.ending() in {"reset", "eof"}
    else:
        behind.link.close()
        assert await client.ending() in {"reset", "eof"}
    h2_replica.script = echo
    other = await h1_h2_connect()
    assert (await other.get(b"/barrier")).status == 200


async def test_other_streams_are_not_disturbed(h2_connect, replica, router):
    # Tunnels and requests on one connection; the kit watches order and windows.
    client = await H2Client.connect(router.port)
    replica.script = switching()
    tunnels = []
    for _ in range(5):
        stream = await client.open(WS, end=False)
        await stream.headed()
        tunnels.append((stream, replica.seen[-1][0]))
    replica.script = wirekit.echo
    for i in range(20):
        stream, link = tunnels[i % 5]
        await stream.send(b"%02d" % i)
        await arrives(link, b"%02d" % i)
        assert (await client.get(b"/%d" % i)).body == b"/%d" % i
    await client.send(headers(client.next, [(b":method", b"GET")]))  # malformed: its own affair
    client.stream()
    for stream, link in tunnels:
        await link.send(b"bye")
        link.finish()
        await stream.done()
        assert stream.ended and bytes(stream.body) == b"bye"
        await stream.send(b"", end=True)
    await until(lambda: all(link.ended for _, link in tunnels), "tunnels end")
    client.close()
