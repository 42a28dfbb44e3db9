"""WebSocket through the router (RFC 6455; RFC 9110 §7.8): handshakes, tunnels, ends."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import time

import pytest
from outcomes import barrier
from wirekit import answer, drained, echo, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
GONE_S = 0.25
PLAIN = "plain"


def accept(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


def handshake(*fields: bytes, start: bytes = b"GET /ws HTTP/1.1", key: bytes = KEY, version: bytes = b"13") -> bytes:
    base = [start, b"Host: h", b"Connection: Upgrade", b"Upgrade: websocket"]
    return b"\r\n".join([*base, b"Sec-WebSocket-Key: " + key, b"Sec-WebSocket-Version: " + version, *fields, b"", b""])


def raw(*fields: bytes, start: bytes = b"GET /ws HTTP/1.1") -> bytes:
    return b"\r\n".join([start, b"Host: h", *fields, b"", b""])


def frame(payload: bytes, opcode: int = 2, *, masked: bool = False, final: bool = True) -> bytes:
    """RFC 6455 §5.2."""
    size, mask = len(payload), 0x80 if masked else 0
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        head += bytes([mask | size])
    elif size < 1 << 16:
        head += bytes([mask | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([mask | 127]) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    key = b"\x11\x22\x33\x44"
    repeated = (key * (size // 4 + 1))[:size]
    masked_payload = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
    return head + key + masked_payload


def switching(request, *fields: bytes) -> bytes:
    base = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
    return b"\r\n".join([*base, b"Sec-WebSocket-Accept: " + accept(request.get(b"sec-websocket-key")), *fields, b"", b""])


class Tunnel:
    """Both ends behind a handshake that succeeded; the replica's script stays until its connection ends."""

    @classmethod
    async def open(cls, connect, replica, behind: bytes = b""):
        self = cls()

        async def script(connection, request):
            await connection.send(switching(request) + behind)
            await connection.ending(None)

        replica.script = script
        self.client = await connect()
        await self.client.send(handshake())
        response = await self.client.response()
        assert response.status == 101
        assert response.get(b"sec-websocket-accept") == accept(KEY)
        self.replica = replica.seen[-1][0]
        return self


async def arrives(link, data: bytes) -> None:
    await link.wait(lambda: len(link.unread) >= len(data), 20)
    assert bytes(link.unread[: len(data)]) == data, "bytes of a tunnel are not the router's to change"
    del link.unread[: len(data)]


# --- handshakes of the client --------------------------------------------------------------------------------

REFUSED = {
    # RFC 6455 §4.2.1, §4.2.2: not a valid handshake, so 400; another version is 426 and names the known one.
    "key-missing": (raw(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"), 400),
    "key-empty": (handshake(key=b""), 400),
    "key-short": (handshake(key=base64.b64encode(b"x" * 15)), 400),
    "key-long": (handshake(key=base64.b64encode(b"x" * 17)), 400),
    "key-no-base64": (handshake(key=b"!" * 24), 400),
    "key-unpadded": (handshake(key=KEY[:-2]), 400),
    "key-twice": (handshake(b"Sec-WebSocket-Key: " + KEY), 400),
    "key-twice-different": (handshake(b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 400),
    "version-8": (handshake(version=b"8"), 426),
    "version-14": (handshake(version=b"14"), 426),
    "version-0": (handshake(version=b"0"), 426),
    "version-list": (handshake(version=b"8, 13"), {400, 426}),
    "version-empty": (handshake(version=b""), {400, 426}),
    "version-missing": (raw(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: " + KEY), {400, 426}),
    # RFC 6455 §4.1: a GET of HTTP/1.1 or higher. Else it is no handshake: refused, or a plain request.
    "post": (handshake(b"Content-Length: 0", start=b"POST /ws HTTP/1.1"), {400, 405, PLAIN}),
    "head": (handshake(start=b"HEAD /ws HTTP/1.1"), {400, 405, PLAIN}),
    "lower-get": (handshake(start=b"get /ws HTTP/1.1"), {400, 405, 501, PLAIN}),
    "http-1.0": (handshake(start=b"GET /ws HTTP/1.0"), {400, 426, 505, PLAIN}),
    "with-length": (handshake(b"Content-Length: 5") + b"hello", {400, PLAIN}),
    "with-chunks": (handshake(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", {400, PLAIN}),
    # RFC 9110 §7.8: Upgrade counts only where Connection names it.
    "no-connection": (raw(b"Upgrade: websocket", b"Sec-WebSocket-Key: " + KEY, b"Sec-WebSocket-Version: 13"), PLAIN),
    "connection-other": (
        raw(b"Connection: keep-alive", b"Upgrade: websocket", b"Sec-WebSocket-Key: " + KEY, b"Sec-WebSocket-Version: 13"),
        PLAIN,
    ),
    "no-upgrade": (raw(b"Connection: Upgrade", b"Sec-WebSocket-Key: " + KEY, b"Sec-WebSocket-Version: 13"), PLAIN),
    "upgrade-other": (raw(b"Connection: Upgrade", b"Upgrade: websockets", b"Sec-WebSocket-Key: " + KEY), {400, 501, PLAIN}),
}


@pytest.mark.parametrize("mode", ["whole", "bytes", "split"])
@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_no_handshake(name, mode, connect, replica):
    data, allowed = REFUSED[name]
    allowed = allowed if isinstance(allowed, set) else {allowed}
    client = await connect()
    await client.send(data, mode)
    response = await client.response(data.partition(b" ")[0])
    if PLAIN in allowed and replica.seen:
        assert response.status == 200
        assert not {b"upgrade", b"sec-websocket-accept"} & response.names()
        assert b"upgrade" not in replica.requests[0].names()
        assert b"upgrade" not in (replica.requests[0].get(b"connection") or b"").lower()
        return
    assert response.status in allowed, response
    if response.status == 426:
        assert response.get(b"sec-websocket-version") == b"13"
    await barrier(connect, replica)
    assert not replica.seen


@pytest.mark.parametrize("mode", ["whole", "bytes", "split"])
@pytest.mark.parametrize(
    "data",
    [
        handshake(),
        handshake().replace(b"Upgrade: websocket", b"UPGRADE: WebSocket").replace(b"Connection: Upgrade", b"connection: keep-alive, UPGRADE"),
        handshake().replace(b"Connection: Upgrade", b"Connection: keep-alive\r\nConnection: upgrade"),
        handshake(start=b"GET http://h/ws HTTP/1.1"),
    ],
    ids=["plain", "cases", "two-lines", "absolute"],
)
async def test_good_handshakes(data, mode, connect, replica):
    async def script(connection, request):
        await connection.send(switching(request), mode)
        await connection.ending(None)

    replica.script = script
    client = await connect()
    await client.send(data, mode)
    response = await client.response()
    assert response.status == 101
    # RFC 6455 §4.2.2, RFC 9110 §7.8
    assert response.get(b"upgrade").lower() == b"websocket"
    assert b"upgrade" in response.get(b"connection").lower()
    assert response.get(b"sec-websocket-accept") == accept(KEY)
    link, request = replica.seen[0]
    assert (request.target, request.get(b"upgrade").lower(), request.get(b"sec-websocket-version")) == (b"/ws", b"websocket", b"13")
    assert b"upgrade" in request.get(b"connection").lower()
    await client.send(frame(b"hello", masked=True), mode)
    await arrives(link, frame(b"hello", masked=True))


async def test_subprotocol_and_extensions_are_negotiated_through(connect, replica):
    async def script(connection, request):
        await connection.send(switching(request, b"Sec-WebSocket-Protocol: b", b"Sec-WebSocket-Extensions: permessage-deflate"))
        await connection.ending(None)

    replica.script = script
    client = await connect()
    extensions = b"permessage-deflate; client_max_window_bits, x"
    fields = [b"Sec-WebSocket-Protocol: a, b", b"Sec-WebSocket-Extensions: " + extensions, b"Origin: http://o", b"Cookie: c=d"]
    await client.send(handshake(*fields))
    response = await client.response()
    request = replica.requests[0]
    assert (request.get(b"sec-websocket-protocol"), request.get(b"sec-websocket-extensions")) == (b"a, b", extensions)
    assert (request.get(b"origin"), request.get(b"cookie")) == (b"http://o", b"c=d")
    assert response.get(b"sec-websocket-protocol") == b"b"
    assert response.get(b"sec-websocket-extensions") == b"permessage-deflate"


# --- answers of the replica ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["whole", "bytes", "split"])
async def test_bytes_behind_the_handshake_wait_for_the_101(mode, connect, replica):
    # RFC 6455 §4.1: a client must wait. One that does not is heard only once there is a tunnel, and in order.
    early = b"".join(frame(b"early-%d" % i, masked=True) for i in range(5))

    async def script(connection, request):
        await barrier(connect, replica)  # what the router had to say by now has come
        before.append(bytes(connection.unread))
        await connection.send(switching(request))
        await connection.ending(None)

    before = []
    replica.script = script
    client = await connect()
    await client.send(handshake() + early, mode)
    assert (await client.response()).status == 101
    assert before == [b""]
    await client.send(frame(b"late", masked=True))
    await arrives(replica.seen[0][0], early + frame(b"late", masked=True))


@pytest.mark.parametrize("mode", ["whole", "bytes", "split"])
async def test_a_handshake_pipelined_behind_a_request(mode, connect, replica):
    # RFC 9110 §7.8, RFC 9112 §9.3.2: the switch comes behind the first answer.
    async def script(connection, request):
        if request.target == b"/ws":
            await connection.send(switching(request))
            await connection.ending(None)
        else:
            await echo(connection, request)

    replica.script = script
    client = await connect()
    data = frame(b"early", masked=True)
    await client.send(b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n" + handshake() + data, mode)
    assert (await client.response()).body == b"/first"
    assert (await client.response()).status == 101
    await arrives(replica.seen[1][0], data)


async def test_bytes_in_front_of_the_101_do_not_fill_the_router(connect, replica, router):
    go = asyncio.Event()

    async def script(connection, request):
        await go.wait()
        await connection.send(switching(request))
        await connection.ending(None)

    replica.script = script
    client = await connect()
    base, data = router.memory_bytes(), frame(b"y" * (48 << 20), masked=True)
    await client.send(handshake())
    sending = asyncio.ensure_future(client.send(data))
    await until(lambda: bool(replica.seen), "the handshake arrives")
    for _ in range(20):
        await barrier(connect, replica)  # time in which the router could have taken more
    assert router.memory_bytes() - base < 24 << 20
    assert not sending.done(), "the client feels that nobody reads"
    go.set()
    assert (await client.response()).status == 101
    await arrives(replica.seen[0][0], data)
    assert await sending


async def test_bytes_right_behind_the_101_reach_the_client(connect, replica):
    tunnel = await Tunnel.open(connect, replica, behind=frame(b"welcome"))
    await arrives(tunnel.client, frame(b"welcome"))


BROKEN_101 = {
    # RFC 6455 §4.1: what a client, and so the router on its behalf, must not take.
    "wrong-accept": b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "no-accept": b"Upgrade: websocket\r\nConnection: Upgrade",
    "no-upgrade": b"Connection: Upgrade\r\nSec-WebSocket-Accept: %s",
    "other-upgrade": b"Upgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s",
    "no-connection": b"Upgrade: websocket\r\nSec-WebSocket-Accept: %s",
    "other-connection": b"Upgrade: websocket\r\nConnection: close\r\nSec-WebSocket-Accept: %s",
    "two-accepts": b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\nSec-WebSocket-Accept: %s",
}


@pytest.mark.parametrize("name", BROKEN_101)
async def test_a_broken_101_is_502(name, connect, replica):
    async def script(connection, request):
        fields = BROKEN_101[name].replace(b"%s", accept(request.get(b"sec-websocket-key")))
        await connection.send(b"HTTP/1.1 101 X\r\n" + fields + b"\r\n\r\n" + frame(b"EVIL"))
        await connection.ending(None)

    replica.script = script
    client = await connect()
    await client.send(handshake() + frame(b"early", masked=True))
    response = await client.response()
    assert response.status == 502
    assert response.get(b"x-router-error")
    link = replica.seen[0][0]
    await link.ending()
    assert not link.unread, "nothing of the client goes to a replica that has not switched"


@pytest.mark.parametrize("status", [b"403 Forbidden", b"200 OK", b"404 X", b"503 X", b"426 X"])
async def test_another_answer_is_passed_on_and_ends_it(status, connect, replica):
    replica.script = answer(b"HTTP/1.1 " + status + b"\r\ncontent-length: 6\r\nx-a: b\r\n\r\nsorry!")
    client = await connect()
    await client.send(handshake() + frame(b"early", masked=True) + b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
    response = await client.response()
    assert (response.status, bytes(response.body), response.get(b"x-a")) == (int(status[:3]), b"sorry!", b"b")
    client.finish()
    second = await client.response()  # the frame is no request
    assert second is None or second.status == 400
    await barrier(connect, replica)
    assert len(replica.seen) == 1
    assert not any(link.unread for link in replica.connections)


# --- tunnels -------------------------------------------------------------------------------------------------


async def test_ten_mebibytes_each_way_at_once(connect, replica):
    tunnel = await Tunnel.open(connect, replica)
    dice = random.Random(1)
    up = b"".join(frame(dice.randbytes(size), masked=True) for size in [1, 125, 126, 65535, 65536, 3 << 20, 7 << 20])
    down = b"".join(frame(dice.randbytes(size)) for size in [1, 125, 126, 65535, 65536, 3 << 20, 7 << 20])
    await asyncio.gather(
        tunnel.client.send(up), tunnel.replica.send(down), arrives(tunnel.replica, up), arrives(tunnel.client, down)
    )
    await tunnel.client.send(frame(b"x", masked=True))
    await arrives(tunnel.replica, frame(b"x", masked=True))


async def test_control_frames_and_fragments_are_untouched(connect, replica):
    tunnel = await Tunnel.open(connect, replica)
    up = [
        frame(b"ping", 9, masked=True), frame(b"", 10, masked=True), frame(b"a", 1, masked=True, final=False), frame(b"in between", 9, masked=True),
        frame(b"b", 0, masked=True), frame(b"", 2, masked=True),
    ]  # fmt: skip
    down = [frame(b"ping", 9), frame(b"pong", 10), frame(b"a", 1, final=False), frame(b"", 9), frame(b"b", 0), bytes([0xC2]) + frame(b"rsv1")[1:]]
    for data in up:
        await tunnel.client.send(data, "bytes")
        await arrives(tunnel.replica, data)
    for data in down:
        await tunnel.replica.send(data, "bytes")
        await arrives(tunnel.client, data)
    await barrier(connect, replica)
    assert not tunnel.client.unread, "the router answers no ping of its own"
    assert not tunnel.replica.unread


BYE = frame((1000).to_bytes(2, "big"), 8)
MASKED_BYE = frame((1000).to_bytes(2, "big"), 8, masked=True)


async def test_half_close_by_the_client(connect, replica):
    tunnel = await Tunnel.open(connect, replica)
    await tunnel.client.send(MASKED_BYE)
    tunnel.client.finish()
    await arrives(tunnel.replica, MASKED_BYE)
    await tunnel.replica.send(frame(b"z" * 100_000) + BYE)
    tunnel.replica.finish()
    await arrives(tunnel.client, frame(b"z" * 100_000) + BYE)
    assert await tunnel.client.assert_closed() == "eof"


async def test_half_close_by_the_replica(connect, replica):
    tunnel = await Tunnel.open(connect, replica)
    await tunnel.replica.send(BYE)
    tunnel.replica.finish()
    await arrives(tunnel.client, BYE)
    await tunnel.client.send(frame(b"z" * 100_000, masked=True) + MASKED_BYE)
    tunnel.client.finish()
    await arrives(tunnel.replica, frame(b"z" * 100_000, masked=True) + MASKED_BYE)
    await tunnel.replica.ending()
    assert await tunnel.client.assert_closed() == "eof"


async def test_an_abrupt_end_of_the_client(connect, replica):
    tunnel = await Tunnel.open(connect, replica)
    await tunnel.client.send(frame(b"x", masked=True))
    await arrives(tunnel.replica, frame(b"x", masked=True))
    began = time.monotonic()
    tunnel.client.abort()
    await tunnel.replica.ending()
    assert tunnel.replica.ended_at - began < GONE_S


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_the_replica_dies_between_frames(how, connect, replica):
    # RFC 6455 §7.4.1: 1011, an unexpected condition; not a silent end that looks like the network's.
    tunnel = await Tunnel.open(connect, replica)
    await tunnel.replica.send(frame(b"x" * 300))
    await arrives(tunnel.client, frame(b"x" * 300))
    if how == "rst":
        tunnel.replica.abort()
    else:
        tunnel.replica.close()
    await tunnel.client.ending()
    data = bytes(tunnel.client.unread)
    assert data[:1] == b"\x88", f"a close frame, unmasked and final: {data!r}"
    assert data[1] == len(data) - 2
    assert data[2:4] == (1011).to_bytes(2, "big")
    assert len(data) <= 127
    data[4:].decode()


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("cut", [1, 3, 100])
async def test_the_replica_dies_inside_a_frame(cut, how, connect, replica):
    # A close frame here would be taken for payload.
    tunnel = await Tunnel.open(connect, replica)
    data = frame(b"x" * 300)[:cut]
    await tunnel.replica.send(data)
    await drained(tunnel.replica.sock)
    if how == "rst":
        tunnel.replica.abort()
    else:
        tunnel.replica.close()
    await tunnel.client.ending()
    assert bytes(tunnel.client.unread) in {data, b""}


async def test_a_tunnel_does_not_fill_the_router(connect, replica, router):
    tunnel = await Tunnel.open(connect, replica)
    tunnel.client.flowing.clear()
    await tunnel.client.send(frame(b"", 9, masked=True))  # lets a read that is already waiting return
    base, piece, sent = router.memory_bytes(), frame(b"y" * 65000), 0

    async def flood():
        nonlocal sent
        while await tunnel.replica.send(piece):
            sent += len(piece)

    flooding = asyncio.ensure_future(flood())
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 0.4 and sent < 64 << 20:
        if sent != last:
            last, since = sent, time.monotonic()
        await asyncio.sleep(0.02)
    assert sent < 64 << 20, "the replica feels that the client does not read"
    assert router.memory_bytes() - base < 24 << 20
    tunnel.client.abort()
    await flooding


async def test_a_closed_tunnel_leaves_nothing_for_the_next_request(connect, replica):
    tunnel = await Tunnel.open(connect, replica)
    tunnel.client.close()
    await tunnel.replica.ending()
    replica.script = echo
    assert (await (await connect()).get(b"/next")).body == b"/next"
    assert replica.seen[1][0] is not tunnel.replica
    await until(lambda: bool(replica.seen), "done")
