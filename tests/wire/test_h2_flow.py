"""Flow control, both ways and on both hops (RFC 9113 §5.2, §6.9, §6.5.3).

The kit counts what the router sends against every window it was given, and what the tests send against the router's.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import wirekit
from h2kit import DATA, END_STREAM, FLOW, INITIAL_WINDOW, MOST, PADDED, data, echo, frame, head, window
from wirekit import until

pytest_plugins = ["h2fixtures"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 1 << 20


def sending(size):
    """Script of an HTTP/1.1 replica: so many bytes, for any path but a short one."""

    async def script(connection, request):
        await connection.body_of(request, None)
        if request.target.startswith(b"/short"):
            await wirekit.echo(connection, request)
            return
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for at in range(0, size, 1 << 16):
            if not await connection.send(bytes(min(1 << 16, size - at))):
                return

    return script


def giving(size):
    """The same of an HTTP/2 replica."""

    async def script(stream):
        await stream.done(None)
        if stream.path.startswith(b"/short"):
            await stream.answer(stream.path)
            return
        await stream.send_head([(b":status", b"200"), (b"content-length", b"%d" % size)])
        for at in range(0, size, 1 << 16):
            if not await stream.send(bytes(min(1 << 16, size - at)), end=at + (1 << 16) >= size):
                return

    return script


@pytest.fixture(params=["h1", "h2"])
def behind(request, h2_connect, h2_h2_connect, replica, h2_replica):
    """`connect, set(size)` for a replica of either version behind an HTTP/2 client."""
    if request.param == "h1":
        return h2_connect, lambda size: setattr(replica, "script", sending(size)), replica
    return h2_h2_connect, lambda size: setattr(h2_replica, "script", giving(size)), h2_replica


async def stalls(link, stream, size):
    """It comes up to the window and no further; a PING proves that the router had its chance."""
    await stream.has(size)
    for _ in range(3):
        assert await link.roundtrip(), link.describe()
    assert len(stream.body) == size


@pytest.mark.parametrize("size", [0, 1, 100, 16_384, 65_535, 100_000])
async def test_the_window_of_a_stream(size, behind):
    connect, answers, _ = behind
    answers(300_000)
    client = await connect({INITIAL_WINDOW: size})
    client.refills = False
    client.recv_window += MIB
    await client.send(window(0, MIB))
    stream = await client.open(head(b"GET", b"/long"))
    await stream.headed()
    await stalls(client, stream, size)
    for step in (1, 5, 1000, 20_000):
        stream.recv_window += step
        await client.send(window(stream.id, step))
        size += step
        await stalls(client, stream, size)
    stream.recv_window += MIB
    await client.send(window(stream.id, MIB))
    await stream.done()
    assert stream.ended and len(stream.body) == 300_000


async def test_the_window_of_the_connection(behind):
    connect, answers, _ = behind
    answers(300_000)
    client = await connect({INITIAL_WINDOW: MIB})
    client.refills = False
    streams = [await client.open(head(b"GET", b"/long")) for _ in range(3)]
    await client.wait(lambda: client.recv_window == 0)
    for _ in range(3):
        assert await client.roundtrip(), client.describe()
    assert sum(len(stream.body) for stream in streams) == 65_535
    # An answer without a body needs no window, and heads are not counted.
    assert (await (await client.open(head(b"HEAD", b"/short"))).done()).status == 200
    client.recv_window += MIB
    await client.send(window(0, MIB))
    for stream in streams:
        await stream.done()
        assert len(stream.body) == 300_000


async def test_windows_of_one_byte(behind):
    connect, answers, _ = behind
    answers(300)
    client = await connect({INITIAL_WINDOW: 0})
    client.refills = False
    stream = await client.open(head(b"GET", b"/long"))
    for _ in range(300):
        stream.recv_window += 1
        await client.send(window(stream.id, 1))
    await stream.done()
    assert len(stream.body) == 300 and stream.ended


async def test_initial_window_changes_in_mid_stream(behind):
    # §6.9.2: by the difference, down to below zero; no DATA until it is positive again.
    connect, answers, _ = behind
    answers(400_000)
    client = await connect({INITIAL_WINDOW: 50_000})
    client.refills = False
    client.recv_window += MIB
    await client.send(window(0, MIB))
    stream = await client.open(head(b"GET", b"/long"))
    await stalls(client, stream, 50_000)
    client.post_settings({INITIAL_WINDOW: 10_000})
    await client.wait(lambda: not client.unacked)
    assert stream.recv_window == -40_000
    for step in (39_999, 1):
        stream.recv_window += step
        await client.send(window(stream.id, step))
        await stalls(client, stream, 50_000)
    stream.recv_window += 7
    await client.send(window(stream.id, 7))
    await stalls(client, stream, 50_007)
    client.post_settings({INITIAL_WINDOW: 20_000})
    await client.wait(lambda: not client.unacked)
    await stalls(client, stream, 60_007)
    client.post_settings({INITIAL_WINDOW: 0})
    await client.wait(lambda: not client.unacked)
    client.post_settings({INITIAL_WINDOW: 500_000})
    await stream.done()
    assert len(stream.body) == 400_000 and stream.ended


async def test_initial_window_goes_up_and_down_in_flight(behind):
    connect, answers, _ = behind
    answers(MIB)
    client = await connect()
    streams = [await client.open(head(b"GET", b"/long")) for _ in range(4)]
    for size in (1, 65_535, 0, 1000, 200_000, 5, 65_535):
        client.post_settings({INITIAL_WINDOW: size})
        assert await client.roundtrip(), client.describe()
    for stream in streams:
        # What was refilled frame by frame against a shrinking window is at least this again.
        stream.recv_window += 65_535
        await client.send(window(stream.id, 65_535))
    for stream in streams:
        await stream.done()
        assert len(stream.body) == MIB and stream.ended


async def test_a_slow_stream_does_not_stall_others(behind):
    connect, answers, _ = behind
    answers(2 * MIB)
    client = await connect({INITIAL_WINDOW: 20_000})
    client.refills = False
    client.recv_window += 8 * MIB
    await client.send(window(0, 8 * MIB))
    slow = [await client.open(head(b"GET", b"/long")) for _ in range(5)]
    for stream in slow:
        await stream.has(20_000)
    for i in range(20):
        assert (await client.get(b"/short-%d" % i)).body == b"/short-%d" % i
    for stream in slow:
        await stream.cancel()
    assert (await client.get(b"/short")).status == 200


async def test_padding_counts(behind):
    # §6.9.1: the whole payload, padding and its length; both windows come back.
    connect, _, replica = behind
    if not isinstance(replica, wirekit.Replica):  # one grant for all, so that only the client's windows are at stake
        replica.settings = {INITIAL_WINDOW: MIB}

        async def script(stream):
            stream.link.refills = False
            stream.link.recv_window += MIB
            await stream.link.send(window(0, MIB))
            await echo(stream)

        replica.script = script
    client = await connect()
    stream = await client.open(head(b"POST", b"/pad"), end=False)
    rounds = 3 * max(client.send_window, stream.send_window) // 257
    assert rounds * 257 < 64 * MIB
    for i in range(rounds):
        if min(stream.send_window, client.send_window) < 257:
            await client.wait(lambda: min(stream.send_window, client.send_window) >= 257)
        assert not client.ended, client.describe()
        stream.send_window -= 257
        client.send_window -= 257
        client.post(data(stream.id, b"x", pad=255))
        if i % 256 == 0:
            await asyncio.sleep(0)
    await stream.send(b"", end=True)
    assert (await stream.done()).status == 200
    body = replica.seen[-1][1].body if isinstance(replica, wirekit.Replica) else replica.seen[-1].body
    assert len(body) == rounds


async def test_a_large_upload_within_the_windows(behind):
    connect, _, replica = behind
    client = await connect()
    blob = bytes(range(256)) * (5 * MIB // 256)
    stream = await client.post_body(b"/up", blob)
    assert stream.status == 200
    body = replica.seen[-1][1].body if isinstance(replica, wirekit.Replica) else replica.seen[-1].body
    assert body == blob


@pytest.mark.parametrize("over", ["stream", "connection"])
async def test_data_beyond_the_router_s_window(over, h2_connect, replica):
    # §6.9.1: FLOW_CONTROL_ERROR, of the stream or the connection. The replica does not read, so nothing comes back.
    async def script(connection, request):
        if request.target == b"/deaf":
            connection.flowing.clear()
            await connection.ending(None)
        else:
            await wirekit.echo(connection, request)

    replica.script = script
    client = await h2_connect()
    streams = [await client.open(head(b"POST", b"/deaf"), end=False) for _ in range(1 if over == "stream" else 40)]
    for _ in range(4000):
        for stream in streams:
            if client.ended or stream.reset is not None:
                break
            client.post(data(stream.id, bytes(16_384)))
        await asyncio.sleep(0)
        if client.ended or any(stream.reset is not None for stream in streams):
            break
    resets = {stream.reset for stream in streams} - {None}
    if not resets:
        await client.ending()
        assert {code for _, code, _ in client.goaways} <= {FLOW}
    else:
        assert resets == {FLOW}
    for link in replica.connections:
        link.flowing.set()
    assert (await (await h2_connect()).get()).status == 200


async def test_a_replica_that_does_not_read(h2_router, h2_h2_connect, h2_replica):
    # The client's windows close; the router holds no more than they allow.
    async def script(stream):
        if stream.path == b"/deaf":
            stream.link.refills = False
        else:
            await echo(stream)

    h2_replica.script = script
    before = h2_router.memory_bytes()
    clients = [await h2_h2_connect() for _ in range(8)]
    for client in clients:
        stream = await client.open(head(b"POST", b"/deaf"), end=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await stream.send(bytes(64 * MIB))
        assert stream.send_window <= 0 or client.send_window <= 0 or stream.send_window < 16_384
    assert h2_router.memory_bytes() - before < 24 * MIB
    for client in clients:
        client.close()
    await until(lambda: all(stream.reset is not None or stream.link.ended for stream in h2_replica.seen), "the uploads are cancelled")
    assert (await (await h2_h2_connect()).get(b"/barrier")).status == 200


async def test_windows_do_not_leak_by_cancelled_uploads(behind):
    # §6.9: what was received counts for the connection's window even where the stream is gone.
    connect, _, _ = behind
    client = await connect()
    whole = client.send_window
    sent = 0
    for _ in range(80):
        stream = await client.open(head(b"POST", b"/cancelled"), end=False)
        size = min(stream.send_window, whole // 8)
        await stream.send(bytes(size))
        sent += size
        await stream.cancel()
        assert await client.roundtrip(), client.describe()
    assert sent > 2 * whole
    await client.wait(lambda: client.send_window >= whole // 2)
    assert (await client.post_body(b"/last", bytes(100_000))).status == 200


async def test_windows_do_not_leak_by_data_behind_a_reset(h2_connect, replica):
    # The router's own RST_STREAM crosses DATA, which counts for the connection still.
    client = await h2_connect()
    whole = client.send_window
    sent = 0
    rounds = 0
    while sent < 3 * whole:
        stream = await client.open([*head(b"POST"), (b"content-length", b"3")], end=False)
        for _ in range(4):
            stream.send_window -= 16_384
            client.send_window -= 16_384
            client.post(data(stream.id, bytes(16_384)))
            sent += 16_384
        await stream.done()
        rounds += 1
        if client.goaways or rounds > 60:  # so many faults may cost the connection
            return
        await client.roundtrip()
    assert (await client.post_body(b"/last", bytes(100_000))).status == 200


async def test_windows_to_the_replica_do_not_leak_by_cancelled_downloads(h2_h2_connect, h2_replica):
    # The router cancels; what the replica had sent until then goes back to its connection's window.
    async def script(stream):
        if stream.path == b"/barrier":
            return
        await stream.send_head([(b":status", b"200")])
        if stream.path == b"/last":
            await stream.send(bytes(MIB), end=True)
            return
        await stream.send(bytes(100_000))

    h2_replica.script = script
    for _ in range(60):
        client = await h2_h2_connect({INITIAL_WINDOW: 10})
        client.refills = False
        stream = await client.open(head(b"GET", b"/cancelled"))
        await stream.has(10)
        await stream.cancel()
        await client.roundtrip()
        client.close()
    client = await h2_h2_connect()
    stream = await (await client.open(head(b"GET", b"/last"))).done()
    assert len(stream.body) == MIB and stream.ended
    assert len({stream.link for stream in h2_replica.seen}) == 1, "one connection, whose window survived"


async def test_the_windows_of_the_replica_are_kept(h2_h2_connect, h2_replica):
    # The kit fails a byte beyond; here the replica's stream window is tiny and changes.
    h2_replica.settings = {INITIAL_WINDOW: 10}

    async def script(stream):
        stream.link.refills = False
        await stream.has(10)
        for size in (1, 100, 5_000):
            at = len(stream.body)
            stream.recv_window += size
            await stream.link.send(window(stream.id, size))
            await stream.has(at + size)
        stream.link.post_settings({INITIAL_WINDOW: 0})
        await stream.link.wait(lambda: not stream.link.unacked)
        assert stream.recv_window <= 0
        stream.link.post_settings({INITIAL_WINDOW: 100_000})
        stream.link.recv_window += MIB
        await stream.link.send(window(0, MIB))
        await stream.done()
        await stream.answer(b"%d" % len(stream.body))

    h2_replica.script = script
    client = await h2_h2_connect()
    assert (await client.get(b"/barrier")).status == 200
    stream = await client.post_body(b"/up", bytes(90_000))
    assert bytes(stream.body) == b"90000"


async def test_an_upload_through_a_small_frame_each(h2_connect, replica):
    client = await h2_connect()
    stream = await client.open(head(b"POST"), end=False)
    for i in range(2000):
        client.post(frame(DATA, 0, stream.id, b"%d" % (i % 10)))
    client.post(frame(DATA, END_STREAM | PADDED, stream.id, b"\1!\0"))
    stream.own_end = True
    assert (await stream.done()).status == 200
    assert len(replica.requests[-1].body) == 2001


async def test_the_largest_windows(behind):
    connect, answers, _ = behind
    answers(3 * MIB)
    client = await connect({INITIAL_WINDOW: MOST})
    await client.send(window(0, MOST - 65_535))
    client.recv_window = MOST
    client.refills = False
    streams = [await client.open(head(b"GET", b"/long")) for _ in range(3)]
    for stream in streams:
        await stream.done()
        assert len(stream.body) == 3 * MIB


async def test_an_answer_in_small_pieces_each_given_back(h2_connect, replica):
    # §6.9: a receiver may give back each frame at once, two WINDOW_UPDATE for a DATA of one byte; that is no flood.
    pieces = 5_000

    async def script(connection, request):
        await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(pieces):
            await connection.send(b"1\r\nx\r\n")
            await asyncio.sleep(0)
        await connection.send(b"0\r\n\r\n")

    replica.script = script
    client = await h2_connect()
    stream = await (await client.open(head())).done()
    assert stream.ended and len(stream.body) == pieces, client.describe()


async def test_an_upload_in_small_pieces_each_given_back(h2_h2_connect, h2_replica):
    client = await h2_h2_connect()
    stream = await client.open(head(b"POST"), end=False)
    for i in range(60_000):
        client.send_window -= 1
        stream.send_window -= 1
        client.post(data(stream.id, b"x"))
        if i % 64 == 0:
            await asyncio.sleep(0)
    await stream.send(b"", end=True)
    await stream.done()
    assert (stream.status, len(h2_replica.seen[0].body)) == (200, 60_000), [link.goaways for link in h2_replica.connections]
