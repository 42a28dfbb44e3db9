"""gRPC at the wire (grpc/grpc doc/PROTOCOL-HTTP2.md, doc/statuscodes.md) and HTTP/2 drains (RFC 9113 §6.8)."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import struct
import time
from urllib.parse import unquote_to_bytes

import pytest
from h2kit import (
    CANCEL,
    CONNECT_PROTOCOL,
    INTERNAL,
    MOST,
    NO_ERROR,
    REFUSED,
    H2Client,
    answer,
    data,
    echo,
    goaway,
    headers,
)
from wirekit import Router, until

pytest_plugins = ["h2fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

MESSAGE = b"\0\0\0\0\5hello"
UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
OK_TRAILERS = [(b"grpc-status", b"0"), (b"x-own-bin", b"AAEC/w")]


def call(*more, content_type=b"application/grpc", path=b"/pkg.Service/Method"):
    return [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"h"), (b"te", b"trailers"), (b"content-type", content_type), *more,
    ]  # fmt: skip


async def served(stream):
    """Script: echo the messages, then status 0."""
    await stream.done(None)
    if not stream.ended:
        return
    await stream.send_head([(b":status", b"200"), (b"content-type", b"application/grpc")])
    await stream.send(bytes(stream.body))
    stream.own_end = True
    await stream.link.send(headers(stream.id, OK_TRAILERS))


async def silent(stream):
    pass


async def ask(connect, *more, client=None, **options):
    client = client or await connect()
    stream = await client.open(call(*more, **options), end=False)
    await stream.send(MESSAGE, end=True)
    return stream


def seconds(timeout):
    match = re.fullmatch(rb"([0-9]{1,8})([HMSmun])", timeout)
    assert match, timeout
    return int(match[1]) * UNITS[match[2]]


def trailers_only(stream, *codes):
    """An error of the router's own in gRPC's form: one HEADERS with END_STREAM, 200, and a well-formed status."""
    assert stream.ended, (stream.reset, stream.link.describe())
    assert not stream.body and not stream.trailers
    assert stream.frames == 0
    assert stream.status == 200, stream.fields
    assert stream.get(b"content-type").startswith(b"application/grpc")
    assert int(stream.get(b"grpc-status")) in codes, stream.fields
    assert re.fullmatch(rb"(?:[\x20-\x24\x26-\x7e]|%[0-9A-F]{2})*", stream.get(b"grpc-message") or b"")
    assert stream.get(b"x-router-error")
    unquote_to_bytes(stream.get(b"grpc-message") or b"").decode()


async def test_a_call_passes_as_it_is(h2_h2_connect, h2_replica):
    h2_replica.script = served
    metadata = [(b"x-a-bin", b"AAEC/w=="), (b"x-a-bin", b"AAEC/w,AA"), (b"x-b", b"1"), (b"grpc-accept-encoding", b"gzip"), (b"user-agent", b"grpc-x/1"),
                (b"grpc-encoding", b"identity"), (b"x-b", b"2")]  # fmt: skip
    stream = await (await ask(h2_h2_connect, *metadata)).done()
    assert (stream.status, bytes(stream.body), stream.trailers[:2]) == (200, MESSAGE, OK_TRAILERS)
    (behind,) = h2_replica.seen
    got = [pair for pair in behind.fields if pair[0] in dict(metadata)]
    assert sorted(got) == sorted(metadata), "order between names may change, values and their order not"
    assert [value for name, value in got if name == b"x-a-bin"] == [b"AAEC/w==", b"AAEC/w,AA"]
    assert (behind.get(b"te"), behind.get(b"content-type")) == (b"trailers", b"application/grpc")
    assert bytes(behind.body) == MESSAGE
    assert behind.get(b"grpc-timeout") is None


@pytest.mark.parametrize("kind", [b"application/grpc", b"application/grpc+proto", b"application/grpc+json", b"application/grpc;charset=utf-8", b"application/grpc+x; y"])
async def test_content_types_pass(kind, h2_h2_connect, h2_replica):
    h2_replica.script = served
    stream = await (await ask(h2_h2_connect, content_type=kind)).done()
    assert stream.trailers[0] == (b"grpc-status", b"0")
    assert h2_replica.seen[0].get(b"content-type") == kind


async def test_trailers_only_of_the_replica(h2_h2_connect, h2_replica):
    fields = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"5"), (b"grpc-message", b"no%20such%E2%82%AC"), (b"x-own-bin", b"AA")]
    h2_replica.script = answer(lambda n: headers(n, fields))
    stream = await (await ask(h2_h2_connect)).done()
    assert stream.ended and not stream.trailers and not stream.body
    for name, value in fields:
        assert stream.get(name) == value
    assert stream.get(b"x-router-error") is None


@pytest.mark.parametrize("timeout", [b"99999999H", b"1H", b"90M", b"100S", b"100000m", b"99999999u", b"1000H"])
async def test_the_remainder_of_a_timeout_is_forwarded(timeout, h2_h2_connect, h2_replica):
    h2_replica.script = served
    stream = await (await ask(h2_h2_connect, (b"grpc-timeout", timeout))).done()
    assert stream.trailers[0] == (b"grpc-status", b"0")
    left = seconds(h2_replica.seen[0].get(b"grpc-timeout"))
    whole = seconds(timeout)
    # Never more than was given; a unit that is coarser may cut it, not make it up.
    assert 0 < left <= whole
    assert left >= whole * 0.9 - 1


@pytest.mark.parametrize("timeout", [b"100m", b"00000100m", b"100000u", b"99999999n", b"1u", b"1n", b"0m", b"0S"])
async def test_a_deadline_is_kept(timeout, h2_h2_connect, h2_replica):
    h2_replica.script = silent
    began = time.monotonic()
    stream = await (await ask(h2_h2_connect, (b"grpc-timeout", timeout))).done()
    trailers_only(stream, 4)
    assert time.monotonic() - began >= seconds(timeout) - 0.005
    assert time.monotonic() - began < seconds(timeout) + 1.5
    for behind in h2_replica.seen:
        assert await behind.was_reset() in {CANCEL, NO_ERROR} or behind.link.ended


@pytest.mark.parametrize("timeout", [b"", b"1", b"S", b"1s", b"1h", b"-1S", b"+1S", b" 1S", b"1 S", b"1.5S", b"123456789S", b"1SS", b"0x1S", b"1S,2S", b"\xd9\xa1S"])
async def test_a_malformed_timeout(timeout, h2_h2_connect, h2_replica):
    # PROTOCOL-HTTP2.md leaves what follows open: an error, or a call without that deadline; never one made up.
    h2_replica.script = served
    client = await h2_h2_connect()
    stream = await (await ask(h2_h2_connect, (b"grpc-timeout", timeout), client=client)).done()
    if stream.trailers:
        assert stream.trailers[0] == (b"grpc-status", b"0")
        assert h2_replica.seen[0].get(b"grpc-timeout") in {None, timeout}
    elif timeout.strip() == timeout:
        if stream.status == 200:
            trailers_only(stream, 3, 13)
        else:
            assert stream.status == 400
    assert client.goaways == []


async def test_two_timeouts(h2_h2_connect, h2_replica):
    h2_replica.script = silent
    stream = await ask(h2_h2_connect, (b"grpc-timeout", b"200m"), (b"grpc-timeout", b"1H"))
    await stream.done(5)
    assert stream.status == 200 or 400 <= stream.status < 500


async def test_no_replica_is_unavailable(start_router):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        router = start_router([f"h2c://127.0.0.1:{held.getsockname()[1]}"])
        client = await H2Client.connect(router.port)
        for kind in (b"application/grpc", b"application/grpc+proto", b"application/grpc; x=y"):
            stream = await client.open(call(content_type=kind), end=False)
            await stream.send(MESSAGE, end=True)
            trailers_only(await stream.done(), 14)
        # What is not gRPC gets HTTP's form.
        for kind in (b"application/grpc-web", b"application/grpcx", b"application/json", b"text/plain; application/grpc"):
            stream = await client.open(call(content_type=kind), end=False)
            await stream.send(MESSAGE, end=True)
            await stream.done()
            assert stream.status == 503 and stream.get(b"grpc-status") is None, (kind, stream.fields)
        client.close()
        router.check()


RESETS = {"refused": (REFUSED, {14}), "cancel": (CANCEL, {1, 14}), "internal": (INTERNAL, {13, 14}), "no-error": (NO_ERROR, {13, 14})}


@pytest.mark.parametrize("name", RESETS)
async def test_a_reset_before_the_head(name, h2_h2_connect, h2_replica):
    from h2kit import rst

    code, codes = RESETS[name]
    h2_replica.script = answer(lambda n: rst(n, code))
    trailers_only(await (await ask(h2_h2_connect)).done(), *codes)


@pytest.mark.parametrize("how", ["rst", "fin", "abort", "no-status"])
async def test_a_status_behind_the_head(how, h2_h2_connect, h2_replica):
    # Too late for a status of the head: trailers with one that is not 0, or RST_STREAM. Never a clean end.
    async def script(stream):
        await stream.done(None)
        await stream.send_head([(b":status", b"200"), (b"content-type", b"application/grpc")])
        await stream.send(MESSAGE)
        if how == "rst":
            await stream.cancel(INTERNAL)
        elif how == "fin":
            stream.link.finish()
        elif how == "abort":
            stream.link.close()
        else:
            await stream.send(b"", end=True)

    h2_replica.script = script
    stream = await (await ask(h2_h2_connect)).done()
    if how == "no-status":  # the client makes UNKNOWN of it by itself
        assert stream.ended or stream.reset is not None
    elif stream.reset is None:
        assert int(dict(stream.trailers)[b"grpc-status"]) in {13, 14, 1}, stream.trailers
        assert b"x-router-error" in dict(stream.trailers)


async def test_a_deadline_behind_the_head(h2_h2_connect, h2_replica):
    async def script(stream):
        await stream.send_head([(b":status", b"200"), (b"content-type", b"application/grpc")])
        await stream.send(MESSAGE)

    h2_replica.script = script
    stream = await (await ask(h2_h2_connect, (b"grpc-timeout", b"200m"))).done()
    assert bytes(stream.body) == MESSAGE
    assert stream.reset is not None or int(dict(stream.trailers)[b"grpc-status"]) == 4
    assert await h2_replica.seen[0].was_reset() is not None


async def test_cancellation_is_passed_on(h2_h2_connect, h2_replica):
    h2_replica.script = silent
    client = await h2_h2_connect()
    one, two = await ask(h2_h2_connect, client=client), await ask(h2_h2_connect, client=client)
    await until(lambda: len(h2_replica.seen) == 2, "both calls")
    await one.cancel()
    first = next(stream for stream in h2_replica.seen if True)
    await until(lambda: any(stream.reset is not None for stream in h2_replica.seen), "one is cancelled")
    cancelled = [stream for stream in h2_replica.seen if stream.reset is not None]
    assert [stream.reset for stream in cancelled] == [CANCEL] and first
    (left,) = [stream for stream in h2_replica.seen if stream.reset is None]
    await left.send_head([(b":status", b"200"), (b"content-type", b"application/grpc")])
    await left.link.send(headers(left.id, OK_TRAILERS))
    assert (await two.done()).trailers[0] == (b"grpc-status", b"0")


async def test_an_answer_that_is_not_grpc_passes(h2_h2_connect, h2_replica):
    async def script(stream):
        await stream.done(None)
        await stream.answer(b"busy", (b"content-type", b"text/html"), status=b"503")

    h2_replica.script = script
    stream = await (await ask(h2_h2_connect)).done()
    assert (stream.status, bytes(stream.body), stream.get(b"grpc-status")) == (503, b"busy", None)


async def test_messages_stream_both_ways_at_once(h2_h2_connect, h2_replica):
    async def script(stream):
        await stream.send_head([(b":status", b"200"), (b"content-type", b"application/grpc")])
        sent = 0
        while not stream.ended:
            await stream.link.wait(lambda at=sent: len(stream.body) > at or stream.ended, None)
            piece, sent = bytes(stream.body[sent:]), len(stream.body)
            await stream.send(piece)
        await stream.link.send(headers(stream.id, OK_TRAILERS))

    h2_replica.script = script
    client = await h2_h2_connect()
    stream = await client.open(call(), end=False)
    await stream.headed()  # before the first message: an initial head is not held back
    for i in range(10):
        await stream.send(MESSAGE)
        await stream.has(len(MESSAGE) * (i + 1))
    await stream.send(b"", end=True)
    assert (await stream.done()).trailers[0] == (b"grpc-status", b"0")


async def test_empty_data_frames_end_a_call(h2_h2_connect, h2_replica):
    h2_replica.script = served
    client = await h2_h2_connect()
    stream = await client.open(call(), end=False)
    await client.send(data(stream.id, MESSAGE) + data(stream.id) + data(stream.id, b"", end=True))
    assert (await stream.done()).trailers[0] == (b"grpc-status", b"0")


# --- drain --------------------------------------------------------------------------------------------------------------

DRAIN = ("--drain-settle-s", "0.3", "--drain-deadline-s", "1.5")


async def drainable(replica, tmp_path, flags=DRAIN):
    router = await asyncio.to_thread(Router, [f"h2c://127.0.0.1:{replica.port}"], flags, tmp_path / "stderr")
    return router, await H2Client.connect(router.port)


async def ended(router):
    return await asyncio.to_thread(router.process.wait, 15)


async def test_a_drain_says_goaway_twice_and_loses_nothing(h2_replica, tmp_path):
    # §6.8: GOAWAY(2^31-1), a round trip, GOAWAY(last); what crossed is served, what runs finishes, then the end.
    h2_replica.script = served
    router, client = await drainable(h2_replica, tmp_path)
    try:
        slow = await client.open(call(), end=False)
        await slow.send(MESSAGE)
        client.acks_pings = False
        router.process.send_signal(signal.SIGTERM)
        await client.wait(lambda: client.goaways)
        assert client.goaways[0][:2] == (MOST, NO_ERROR), client.goaways
        await client.wait(lambda: client.pings)
        crossed = await ask(None, client=client)  # on its way while GOAWAY was
        assert (await crossed.done()).trailers[0] == (b"grpc-status", b"0")
        for payload in client.pings:
            from h2kit import ACK, ping

            client.post(ping(payload, ACK))
        await client.wait(lambda: len(client.goaways) > 1)
        assert client.goaways[-1][:2] == (crossed.id, NO_ERROR), client.goaways
        late = await ask(None, client=client)
        await slow.send(b"", end=True)
        assert (await slow.done()).trailers[0] == (b"grpc-status", b"0")
        await client.ending()
        assert not client.violation and client.ended == "eof", client.describe()
        assert not late.fields, "§6.8: nothing above the last stream is served"
        assert await ended(router) == 0
        assert len(h2_replica.seen) == 2
    finally:
        client.close()
        if router.process.poll() is None:
            router.process.kill()
        router.process.wait()
        router.process.stdout.close()


@pytest.mark.slow
async def test_an_idle_client_is_let_go_at_once(h2_replica, tmp_path):
    router, client = await drainable(h2_replica, tmp_path, ("--drain-settle-s", "0", "--drain-deadline-s", "30"))
    try:
        assert (await client.get(b"/t")).status == 200
        router.process.send_signal(signal.SIGTERM)
        await client.ending(5)
        assert client.goaways[-1][:2] == (1, NO_ERROR)
        assert await ended(router) == 0
    finally:
        client.close()
        if router.process.poll() is None:
            router.process.kill()
        router.process.wait()
        router.process.stdout.close()


@pytest.mark.slow
async def test_a_client_deaf_to_ping_does_not_hold_a_drain(h2_replica, tmp_path):
    router, client = await drainable(h2_replica, tmp_path)
    try:
        client.acks_pings = False
        assert (await client.get(b"/t")).status == 200
        router.process.send_signal(signal.SIGTERM)
        assert await ended(router) in {0, 4}
    finally:
        client.close()
        if router.process.poll() is None:
            router.process.kill()
        router.process.wait()
        router.process.stdout.close()


@pytest.mark.slow
async def test_the_deadline_cuts_streams_and_closes_websockets_with_1012(h2_replica, tmp_path):
    h2_replica.settings = {CONNECT_PROTOCOL: 1}

    async def script(stream):
        if stream.method == b"CONNECT":
            await stream.send_head([(b":status", b"200")])

    h2_replica.script = script
    router, client = await drainable(h2_replica, tmp_path)
    try:
        ws = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http"), (b":path", b"/ws"), (b":authority", b"h"), (b"sec-websocket-version", b"13")]
        tunnel = await client.open(ws, end=False)
        await tunnel.headed()
        assert tunnel.status == 200
        hung = await ask(None, client=client)
        began = time.monotonic()
        router.process.send_signal(signal.SIGTERM)
        await client.wait(lambda: client.goaways)
        await tunnel.done()
        assert time.monotonic() - began > 1.2, "only at the deadline"
        assert tunnel.body[:1] == b"\x88" and struct.unpack(">H", tunnel.body[2:4]) == (1012,), bytes(tunnel.body)
        await hung.done()
        assert hung.reset is not None or hung.fields or client.ended
        assert await ended(router) == 4
    finally:
        client.close()
        if router.process.poll() is None:
            router.process.kill()
        router.process.wait()
        router.process.stdout.close()


async def test_a_replica_s_goaway_with_calls_on_it(h2_h2_connect, h2_replica):
    # max_connection_age of a gRPC server: calls that run finish, new ones go elsewhere.
    gate = asyncio.Event()

    async def script(stream):
        await gate.wait()
        await served(stream)

    h2_replica.script = script
    running = [await ask(h2_h2_connect) for _ in range(3)]
    await until(lambda: len(h2_replica.seen) == 3, "three calls")
    for link in h2_replica.live:
        link.post(goaway(MOST))
        assert await link.roundtrip()
    later = await ask(h2_h2_connect)
    await until(lambda: len(h2_replica.seen) == 4, "a fourth, elsewhere")
    assert h2_replica.seen[3].link not in {stream.link for stream in h2_replica.seen[:3]}
    gate.set()
    for stream in [*running, later]:
        assert (await stream.done()).trailers[0] == (b"grpc-status", b"0")
    h2_replica.script = echo


