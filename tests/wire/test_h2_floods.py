"""Floods and starvation by an HTTP/2 client (RFC 9113 §10.5; CVE-2019-9511…9518, CVE-2023-44487, CVE-2025-8671).

Each attack costs its sender the connection, or nothing but what it sends; a client beside it is served all the while,
and the worker's memory stays within a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time

import h2kit
import pytest
import wirekit
from h2kit import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW,
    MAX_STREAMS,
    MOST,
    PREFACE,
    block,
    data,
    frame,
    goaway,
    head,
    headers,
    headers_split,
    literal,
    ping,
    rst,
    settings,
    window,
)
from wirekit import until

pytest_plugins = ["h2fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

ROUTER_FLAGS = ("--head-timeout-s", "1", "--keep-alive-s", "2", "--stall-timeout-s", "1.5")
MEMORY_BYTES = 24 << 20
WAIT_S = 2.5  # the longest that a request of the client beside may take on a loaded machine
GET = block(head())
POST = block(head(b"POST"))


class Beside:
    """A client of each version that goes on meanwhile; the memory's peak."""

    def __init__(self, router):
        self.router = router
        self.served, self.slowest, self.failures = 0, 0.0, []
        self.before = self.peak = router.memory_bytes()

    async def __aenter__(self):
        self.clients = [await h2kit.H2Client.connect(self.router.port), await wirekit.Client.connect(self.router.port)]
        self.going = True
        self.tasks = [asyncio.ensure_future(self._go_on(client)) for client in self.clients]
        self.tasks.append(asyncio.ensure_future(self._watch()))
        return self

    async def _go_on(self, client):
        while self.going:
            began = time.monotonic()
            answer = await client.get(b"/beside")
            self.slowest = max(self.slowest, time.monotonic() - began)
            if answer.status != 200 or bytes(answer.body) != b"/beside":
                self.failures.append((answer.status, answer.body))
            self.served += 1
            await asyncio.sleep(0.005)

    async def _watch(self):
        while self.going:
            self.peak = max(self.peak, self.router.memory_bytes())
            await asyncio.sleep(0.05)

    async def __aexit__(self, *_):
        so_far = self.served
        with contextlib.suppress(TimeoutError):
            await until(lambda: self.served > so_far + 4, "the client beside is served")
        self.going = False
        try:
            await asyncio.gather(*self.tasks)
        finally:
            for client in self.clients:
                client.close()
        assert not self.failures, self.failures
        assert self.slowest < WAIT_S, f"a client beside waited {self.slowest} s"
        self.peak = max(self.peak, self.router.memory_bytes())
        assert self.peak - self.before < MEMORY_BYTES, f"{(self.peak - self.before) >> 20} MiB"


def rapid_reset(n):
    return b"".join(frame(HEADERS, END_HEADERS | END_STREAM, s, GET) + rst(s) for s in range(1, 2 * n, 2))


def made_you_reset(n, fault):
    return b"".join(frame(HEADERS, END_HEADERS | END_STREAM, s, GET) + fault(s) for s in range(1, 2 * n, 2))


def malformed(n):
    bad = block([*head(), (b"connection", b"x")])
    return b"".join(frame(HEADERS, END_HEADERS | END_STREAM, s, bad) for s in range(1, 2 * n, 2))


OPEN = frame(HEADERS, END_HEADERS, 1, POST)
ENDS = {
    # The connection must end: what is sent is work for the router, and no client of good will sends it.
    "rapid-reset": rapid_reset(10_000),
    "made-you-reset-window-0": made_you_reset(10_000, lambda s: window(s, 0)),
    "made-you-reset-window-overflow": made_you_reset(10_000, lambda s: window(s, MOST)),
    "made-you-reset-data": made_you_reset(10_000, lambda s: data(s, b"x")),
    "made-you-reset-headers": made_you_reset(10_000, lambda s: frame(HEADERS, END_HEADERS | END_STREAM, s, GET)),
    "made-you-reset-priority": made_you_reset(10_000, lambda s: frame(2, 0, s, b"x")),
    "made-you-reset-length": b"".join(
        headers(s, [*head(b"POST"), (b"content-length", b"5")], end=False) + data(s, b"longer than that") for s in range(1, 20_000, 2)
    ),
    "malformed": malformed(10_000),
    "continuation": frame(HEADERS, END_STREAM, 1, GET) + frame(CONTINUATION, 0, 1, literal(b"x", b"v" * 16_000)) * 1000,
    "continuation-small": frame(HEADERS, END_STREAM, 1, GET) + frame(CONTINUATION, 0, 1, literal(b"x", b"v")) * 200_000,
    "continuation-empty": frame(HEADERS, END_STREAM, 1, GET) + frame(CONTINUATION, 0, 1) * 200_000,
    "headers-empty-then-continuation": frame(HEADERS, END_STREAM, 1) + frame(CONTINUATION, 0, 1) * 200_000,
    "settings": settings({INITIAL_WINDOW: 70_000}) * 50_000,
    "settings-empty": settings() * 50_000,
    "ping": ping() * 50_000,
    "data-empty": OPEN + data(1) * 200_000,
    "data-padding": OPEN + frame(DATA, 8, 1, b"\0") * 100_000,
}


@pytest.mark.parametrize("reads", [True, False], ids=["reading", "deaf"])
@pytest.mark.parametrize("name", ENDS)
async def test_a_flood_costs_the_connection(name, reads, router, replica, h2_connect):
    if not reads and name not in {"settings", "ping", "rapid-reset", "made-you-reset-window-0"}:
        pytest.skip("nothing comes back that one could refuse to read")
    async with Beside(router):
        attacker = await h2_connect()
        attacker.raw_settings = attacker.raw_pings = True
        if not reads:
            attacker.flowing.clear()
        for at in range(0, len(ENDS[name]), 1 << 18):
            if attacker.ended or not await attacker.send(ENDS[name][at : at + (1 << 18)]):
                break
        attacker.flowing.set()
        await attacker.ending(4)
        assert not attacker.violation, attacker.violation
        # The code may be lost with what the router did not read; where it came it says why.
        assert attacker.ended == "reset" or attacker.goaways
        assert all(code != 0 for _, code, _ in attacker.goaways), attacker.goaways
    await until(lambda: all(request.complete or link.ended for link, request in replica.seen), "cut requests end")


STAYS = {
    # Bounded whatever becomes of the connection.
    "headers-end-nothing": OPEN + frame(HEADERS, END_HEADERS, 1, block([(b"x", b"y")])) * 10_000,
    "priority": frame(2, 0, 1, b"\0\0\0\0\1") * 100_000,
    "priority-idle": b"".join(frame(2, 0, s, b"\0\0\0\0\1") for s in range(1, 200_000, 2)),
    "priority-update": b"".join(frame(0x10, 0, 0, struct.pack(">I", s) + b"u=1" * 20) for s in range(1, 100_000, 2)),
    "window": window(0, 1) * 100_000,
    "window-stream": OPEN + window(1, 1) * 100_000,
    "unknown": frame(0x77, 0xFF, 0, b"hello") * 200_000,
    "unknown-large": frame(0x77, 0xFF, 0, bytes(16_384)) * 1000,
    "goaway": goaway(0) * 100_000,
    "goaway-large": goaway(0, 0, bytes(16_000)) * 1000,
    "ping-ack": ping(flags=1) * 100_000,
    "settings-large": frame(4, 0, 0, struct.pack(">HI", 4, 70_000) * 2700) * 100,
    "hpack-bomb": frame(HEADERS, END_HEADERS | END_STREAM, 1, GET + literal(b"x", b"v" * 4000, 0x40) + b"\xbe" * 12_000)
    + b"".join(frame(HEADERS, END_HEADERS | END_STREAM, s, GET + b"\xbe" * 16_000) for s in range(3, 200, 2)),
    "hpack-updates": b"".join(frame(HEADERS, END_HEADERS | END_STREAM, s, b"\x20\x3f\xe1\x1f" * 4000 + GET) for s in range(1, 40, 2)),
    "huffman-bomb": b"".join(
        frame(HEADERS, END_HEADERS | END_STREAM, s, GET + b"\0\x01x" + h2kit.integer(15_000, 7, 0x80) + b"\x00" * 15_000) for s in range(1, 200, 2)
    ),
    "streams-beyond-the-limit": b"".join(frame(HEADERS, END_HEADERS, s, POST) for s in range(1, 20_000, 2)),
    "data-on-reset-stream": OPEN + rst(1) + data(1, b"x") * 50_000,
    "data-beyond-the-window": OPEN + data(1, bytes(16_000)) * 2000,
    "large-heads": b"".join(headers_split(s, GET + b"".join(literal(b"x-%d" % i, b"v" * 4000) for i in range(20))) for s in range(1, 400, 2)),
}


@pytest.mark.parametrize("name", STAYS)
async def test_a_flood_is_bounded(name, router, replica, h2_connect):
    async with Beside(router):
        attacker = await h2_connect()
        attacker.raw_settings = attacker.raw_pings = True
        for at in range(0, len(STAYS[name]), 1 << 18):
            if attacker.ended or not await attacker.send(STAYS[name][at : at + (1 << 18)]):
                break
        await attacker.roundtrip()
        assert not attacker.violation, attacker.violation
    attacker.close()
    await until(lambda: all(request.complete or link.ended for link, request in replica.seen), "cut requests end")


@pytest.mark.parametrize("name", ["size", "size-split", "count", "one-value", "one-name", "trailers"])
async def test_a_head_too_large_is_refused_alone(name, h2_connect, replica):
    # §10.5.1, RFC 6585 §5: 431 or a stream error; other streams go on.
    many = {
        "size": [(b"x-%d" % i, b"v" * 4000) for i in range(20)],
        "size-split": [(b"x-%d" % i, b"v" * 500) for i in range(126)] + [(b"y", b"v" * 9000)],
        "count": [(b"x-%d" % i, b"v") for i in range(500)],
        "one-value": [(b"x", b"v" * 70_000)],
        "one-name": [(b"x" * 70_000, b"v")],
        "trailers": [(b"x-%d" % i, b"v" * 4000) for i in range(20)],
    }[name]
    client = await h2_connect()
    stream = client.stream()
    if name == "trailers":
        await client.send(frame(HEADERS, END_HEADERS, stream.id, POST) + data(stream.id, b"hello") + headers_split(stream.id, block(many)))
    else:
        await client.send(headers_split(stream.id, GET + block(many), 9_000))
    await stream.done()
    assert stream.status in {431, 400, 413} or stream.reset in {1, 11} or client.goaways, client.describe()
    if not client.goaways:
        assert (await client.get(b"/after")).status == 200
    assert not any(r.complete for r in replica.requests if r.target != b"/after")
    assert (await (await h2_connect()).get()).status == 200


SLOW = {
    "nothing": (b"", 3),
    "half-preface": (PREFACE[:10], 2.5),
    "preface": (PREFACE, 4),
    "preface-and-settings": (PREFACE + settings(), 4),
    "half-a-frame-head": (PREFACE + settings() + b"\0\0\x08\6", 4),
    "half-a-frame": (PREFACE + settings() + ping()[:-3], 4),
    "half-a-head": (PREFACE + settings() + frame(HEADERS, END_STREAM, 1, GET), 2.5),
    "half-a-headers-frame": (PREFACE + settings() + headers(1, head())[:-3], 4),
    "half-a-continuation": (PREFACE + settings() + frame(HEADERS, END_STREAM, 1, GET[:5]) + frame(CONTINUATION, 4, 1, GET[5:])[:-3], 2.5),
}


@pytest.mark.parametrize("name", SLOW)
async def test_silence_costs_the_connection(name, router, replica, h2_connect):
    # §10.5: --head-timeout-s 1 and --keep-alive-s 2 here.
    data, within_s = SLOW[name]
    if name == "half-preface":  # HTTP/1.1 may be said as well
        clients = [await wirekit.Client.connect(router.port) for _ in range(3)]
    else:
        clients = [await h2_connect(bare=True) for _ in range(3)]
    for client in clients:
        client.raw_settings, client.acks_settings = True, False
        await client.send(data)
    try:
        for client in clients:
            await client.ending(within_s + 1)
            assert not getattr(client, "violation", None)
    finally:
        for client in clients:
            client.close()
    assert not replica.seen


TRICKLES = {
    "continuation": frame(HEADERS, END_STREAM, 1, GET) + frame(CONTINUATION, 0, 1, literal(b"x", b"v" * 100)) * 100,
    "headers": headers(1, GET + literal(b"x", b"v" * 10_000)),
    "settings": frame(4, 0, 0, bytes(6_000)),
    "unknown": frame(0x77, 0, 0, bytes(6_000)),
}


@pytest.mark.parametrize("name", TRICKLES)
async def test_a_frame_that_trickles_costs_the_connection(name, router, replica, h2_connect):
    # A byte now and then must renew neither the time for a head nor that of an idle connection.
    client = await h2_connect()
    whole = TRICKLES[name]
    prompt = whole[:64]
    await client.send(prompt)
    began = time.monotonic()
    for i in range(len(prompt), len(whole)):
        if client.ended or not await client.send(whole[i : i + 1]):
            break
        with contextlib.suppress(TimeoutError):
            await client.ending(0.05)
        assert time.monotonic() - began < 4, "a trickled frame is waited for"
    assert client.ended
    assert not replica.seen


def large(size):
    async def script(connection, request):
        await connection.body_of(request, None)
        if request.target == b"/beside":
            await wirekit.echo(connection, request)
            return
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            if not await connection.send(bytes(1 << 16)):
                return

    return script


@pytest.mark.slow
@pytest.mark.parametrize("how", ["zero-window", "zero-connection-window", "deaf", "one-byte-windows"])
async def test_answers_that_are_not_taken(how, router, replica, h2_connect):
    # CVE-2019-9517, CVE-2019-9511: what waits is bounded, and --stall-timeout-s ends it where nothing is ever taken.
    replica.script = large(4 << 20)
    async with Beside(router):
        clients = []
        for _ in range(3):
            values = {INITIAL_WINDOW: 0} if how == "zero-window" else {INITIAL_WINDOW: MOST} if how == "deaf" else {}
            client = await h2_connect(values, receive_buffer=4096 if how == "deaf" else 0)
            client.refills = False
            if how == "deaf":
                await client.send(window(0, MOST - 65_535))
                client.recv_window = MOST
                client.flowing.clear()
            clients.append(client)
            for _ in range(60):
                await client.open(head(b"GET", b"/large"))
        if how == "one-byte-windows":
            for _ in range(200):
                for client in clients:
                    stream = client.streams[1]
                    stream.recv_window += 1
                    client.recv_window += 1
                    await client.send(window(1, 1) + window(0, 1))
        else:
            # Each costs the attacker his streams or his connection; nothing waits for ever.
            for client in clients:
                if how == "deaf":
                    client.flowing.set()
                await client.wait(lambda c=client: all(s.reset is not None or s.ended for s in c.streams.values()), 6)
        for client in clients:
            client.close()
    await until(lambda: all(link.ended or not link.busy for link, _ in replica.seen), "the replica's connections end")


async def test_uploads_that_are_opened_and_left(router, replica, h2_connect):
    client = await h2_connect()
    async with Beside(router):
        for _ in range(client.peer[MAX_STREAMS]):
            await (await client.open(head(b"POST", b"/left"), end=False)).send(b"x" * 100)
        await client.roundtrip()
        client.abort()
        await until(lambda: all(request.complete or link.ended for link, request in replica.seen), "the replica is told")


async def test_many_connections_that_only_begin(router, replica, h2_connect):
    async with Beside(router):
        clients = [await h2_connect(bare=True) for _ in range(300)]
        for client in clients:
            client.raw_settings = True
            await client.send(PREFACE + settings() + frame(HEADERS, END_STREAM, 1, GET))
        for client in clients:
            await client.ending(6)
            client.close()
