"""The pool on real sockets: last in first out, staleness, learned cuts, retiring, pending connects."""

import asyncio
import socket

import pytest
from upkit import HEAD, OK, FakeReplica

from router.errors import Kind, Retry
from router.routing.load import Replica
from router.routing.spec import ReplicaSpec
from router.transport.upstream import pool as pool_module
from router.transport.upstream.connection import UpstreamConnection
from router.transport.upstream.pool import DEFAULT_KEEP_S, FORGET_S, LEARNED_SHARE, MIN_KEEP_S


async def is_closed(sock):
    """Whether the router ended the connection."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5):
        try:
            return await loop.sock_recv(sock, 100) == b""
        except ConnectionResetError:
            return True


def peer_of(receiver):
    """The router's own address of the connection behind a stream."""
    return receiver.stream._shell.transport.get_extra_info("sockname")


class TestWarm:
    async def test_a_cold_open_connects_and_a_warm_one_does_not(self, bench):
        receiver, sock = await bench.connect()
        assert not receiver.stream.may_be_untouched
        await bench.exchange(receiver, sock)
        assert receiver.body == b"ok"
        assert bench.pool.idle_count(bench.replica) == 1
        second, pending = bench.open()
        assert pending is None
        assert second.stream.may_be_untouched
        await bench.exchange(second, sock)
        counters = bench.reactor.counters
        assert (counters.upstream_connects, counters.upstream_reused, counters.upstream_open) == (1, 1, 1)

    async def test_last_in_first_out(self, bench):
        socks = await bench.idle(3)
        for sock in reversed(socks):
            receiver, _ = bench.open()
            assert peer_of(receiver) == sock.getpeername()
            bench.send(receiver)
        assert bench.pool.idle_count(bench.replica) == 0

    async def test_fresh_forbids_pooled_ones(self, bench):
        await bench.idle()
        receiver, pending = bench.open(fresh=True)
        assert pending is not None
        await bench.server.accept()
        await receiver.ready
        assert not receiver.stream.may_be_untouched
        assert bench.pool.idle_count(bench.replica) == 1

    async def test_each_replica_has_its_own(self, bench):
        await bench.idle()
        _, pending = bench.open(replica=bench.server.spec("other"))
        assert pending is not None
        pending.cancel()


class TestStaleness:
    async def test_too_old_is_retired_and_not_given_out(self, bench):
        (sock,) = await bench.idle()
        clock = bench.reactor.clock
        clock.now += DEFAULT_KEEP_S + 0.01
        receiver = type("R", (), {})()
        found = bench.pool.open(bench.replica, receiver, 5.0, HEAD, fresh=False)
        found.cancel()
        bench.reactor.outbox.flush()
        assert await is_closed(sock)
        assert bench.pool.idle_count(bench.replica) == 0

    async def test_all_below_it_go_too(self, bench):
        socks = await bench.idle(3)
        bench.reactor.clock.now += DEFAULT_KEEP_S + 0.01
        bench.pool.open(bench.replica, object(), 5.0, HEAD, fresh=False).cancel()
        bench.reactor.outbox.flush()
        assert all([await is_closed(sock) for sock in socks])

    async def test_one_that_the_replica_closed_is_not_given_out(self, bench):
        (sock,) = await bench.idle()
        sock.close()
        while bench.pool.idle_count(bench.replica):
            await asyncio.sleep(0)
        assert bench.reactor.counters.upstream_open == 0

    async def test_unasked_bytes_end_it(self, bench):
        (sock,) = await bench.idle()
        await asyncio.get_running_loop().sock_sendall(sock, OK)
        while bench.pool.idle_count(bench.replica):
            await asyncio.sleep(0)

    async def test_the_wheel_retires_it(self, bench):
        (sock,) = await bench.idle()
        (connection,) = bench.pool._kept[bench.replica].idle
        deadline = connection.next_deadline()
        assert deadline == pytest.approx(bench.reactor.clock.now + DEFAULT_KEEP_S, abs=0.5)
        connection.handle_deadline(deadline)
        bench.reactor.outbox.flush()
        assert await is_closed(sock)


class TestLearning:
    async def test_a_cut_is_learned(self, bench):
        """From two that agree: one may be a restart."""
        for learned_s in (DEFAULT_KEEP_S, 2.0 * LEARNED_SHARE):
            (sock,) = await bench.idle()
            (connection,) = bench.pool._kept[bench.replica].idle
            connection.h1.last_moved_s -= 2.0
            sock.close()
            while bench.pool.idle_count(bench.replica):
                await asyncio.sleep(0)
            assert bench.pool.keep_s(bench.replica) == pytest.approx(learned_s, abs=0.2)

    async def test_one_early_close_teaches_nothing_and_a_lesson_is_forgotten(self, bench):
        await bench.idle()
        bench.pool.learn_idle_cut(bench.replica, 1.0)
        bench.pool.learn_idle_cut(bench.replica, 0.3)
        assert bench.pool.keep_s(bench.replica) == DEFAULT_KEEP_S
        bench.pool.learn_idle_cut(bench.replica, 0.31)
        assert bench.pool.keep_s(bench.replica) == pytest.approx(0.31 * LEARNED_SHARE)
        bench.pool._kept[bench.replica].learned_s -= FORGET_S + 1.0
        bench.open()
        assert bench.pool.keep_s(bench.replica) == DEFAULT_KEEP_S

    async def test_within_bounds(self, bench):
        await bench.idle()
        assert bench.pool.keep_s(bench.replica) == DEFAULT_KEEP_S
        bench.pool.learn_idle_cut(bench.replica, 100.0)
        bench.pool.learn_idle_cut(bench.replica, 100.0)
        assert bench.pool.keep_s(bench.replica) == DEFAULT_KEEP_S
        bench.pool.learn_idle_cut(bench.replica, 0.0)
        bench.pool.learn_idle_cut(bench.replica, 0.0)
        assert bench.pool.keep_s(bench.replica) == MIN_KEEP_S
        other = bench.server.spec("other")
        bench.pool.learn_idle_cut(other, 0.0)
        assert bench.pool.keep_s(other) == DEFAULT_KEEP_S

    async def test_a_close_within_a_request_teaches_nothing(self, bench):
        receiver, sock = await bench.connect()
        bench.send(receiver)
        sock.close()
        await receiver.done
        assert bench.pool.keep_s(bench.replica) == DEFAULT_KEEP_S


class TestRetiring:
    async def test_a_replica_that_left_the_table(self, bench):
        socks = await bench.idle(2)
        bench.leave()
        bench.reactor.outbox.flush()
        assert all([await is_closed(sock) for sock in socks])
        assert bench.pool.idle_count(bench.replica) == 0

    async def test_one_that_stayed_keeps_its_own(self, bench):
        await bench.idle()
        bench.pool.leave(Replica(ReplicaSpec("other", "http://127.0.0.1:1")))
        assert bench.pool.idle_count(bench.replica) == 1

    async def test_a_request_under_way_finishes_first(self, bench):
        receiver, sock = await bench.connect()
        bench.send(receiver)
        bench.leave()
        bench.reactor.outbox.flush()
        await bench.server.serve(sock)
        await receiver.done
        assert receiver.body == b"ok"
        assert bench.pool.idle_count(bench.replica) == 0
        assert await is_closed(sock)

    async def test_no_more_than_so_many(self, bench, monkeypatch):
        monkeypatch.setattr(pool_module, "MAX_IDLE", 2)
        oldest, *_ = await bench.idle(3)
        assert bench.pool.idle_count(bench.replica) == 2
        assert await is_closed(oldest)


class TestConnecting:
    async def test_refused(self, bench):
        gone = FakeReplica()
        replica = gone.spec()
        gone.close()
        receiver, _ = bench.open(replica=replica)
        await receiver.ready
        assert (receiver.error.kind, receiver.error.retry) == (Kind.CONNECT_FAILED, Retry.SAFE)
        assert "refused" in receiver.error.detail
        assert bench.reactor.counters.upstream_open == 0

    async def test_a_name_without_an_address(self, bench):
        receiver, _ = bench.open(
            replica=Replica(ReplicaSpec("r", "http://no-such-name.invalid:80")), connect_s=20.0
        )
        await receiver.ready
        assert receiver.error.retry is Retry.SAFE
        assert receiver.error.kind in (Kind.CONNECT_FAILED, Kind.CONNECT_TIMEOUT)

    async def test_a_timeout(self, bench):
        """The backlog is full, so that the kernel answers no further SYN."""
        full = FakeReplica(backlog=0)
        fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", full.port))
            fillers.append(filler)
        receiver, _ = bench.open(replica=full.spec(), connect_s=0.05)
        await receiver.ready
        assert (receiver.error.kind, receiver.error.retry) == (Kind.CONNECT_TIMEOUT, Retry.SAFE)
        full.close()
        for filler in fillers:
            filler.close()

    @pytest.mark.parametrize("failure", [UnicodeError("label too long"), RuntimeError("odd"), ValueError("odd")])
    async def test_whatever_a_resolver_raises_the_exchange_hears_of_it(self, bench, monkeypatch, failure):
        async def create_connection(*arguments, **options):
            raise failure

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "create_connection", create_connection, raising=False)
        receiver, _ = bench.open()
        async with asyncio.timeout(5):
            await receiver.ready
        assert (receiver.error.kind, receiver.error.retry) == (Kind.CONNECT_FAILED, Retry.SAFE)

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
    async def test_a_cancel_is_safe_at_any_moment(self, bench, turns):
        receiver, pending = bench.open()
        for _ in range(turns):
            await asyncio.sleep(0)
        was_ready = receiver.ready.done()
        if not was_ready:
            pending.cancel()
        sock = None
        for _ in range(50):
            await asyncio.sleep(0)
        if not was_ready:
            assert receiver.stream is receiver.error is None
            assert bench.pool.idle_count(bench.replica) == 0
            try:
                sock, _ = bench.server.server.accept()
            except BlockingIOError:
                pass
            else:
                sock.setblocking(False)
                assert await is_closed(sock)
                sock.close()

    async def test_cancelled_between_connection_made_and_its_hand_over(self, bench, monkeypatch):
        made = UpstreamConnection.connection_made

        def cancel_at_once(connection, transport):
            made(connection, transport)
            pending.cancel()

        monkeypatch.setattr(UpstreamConnection, "connection_made", cancel_at_once)
        _, pending = bench.open()
        sock = await bench.server.accept()
        assert await is_closed(sock)
        for _ in range(100):
            await asyncio.sleep(0)
        assert bench.reactor.counters.upstream_connects == 1
        assert bench.reactor.counters.upstream_open == 0

    @pytest.mark.parametrize("first", [b"", OK], ids=["closed on accept", "bytes nobody asked for"])
    async def test_one_that_is_useless_at_once(self, bench, monkeypatch, first):
        """The end, or bytes, come before the connection is handed over: the request is safe to send elsewhere."""
        made = UpstreamConnection.connection_made

        def spoil(connection, transport):
            made(connection, transport)
            if first:
                connection.data_received(first)
            else:
                connection.eof_received()

        monkeypatch.setattr(UpstreamConnection, "connection_made", spoil)
        receiver, _ = bench.open()
        await bench.server.accept()
        await receiver.ready
        assert receiver.stream is None
        assert (receiver.error.kind, receiver.error.retry) == (Kind.CONNECT_FAILED, Retry.SAFE)
        for _ in range(50):
            await asyncio.sleep(0)
        assert bench.reactor.counters.upstream_open == 0

    async def test_cancelled_twice(self, bench):
        _, pending = bench.open()
        pending.cancel()
        pending.cancel()
        await bench.settle()


@pytest.mark.parametrize("scheme", ["http", "h2c"])
async def test_a_replica_that_leaves_while_it_is_dialled_still_serves_who_waited(bench, scheme):
    replica = Replica(ReplicaSpec("r", bench.replica.address.replace("http", scheme)))
    receiver, pending = bench.open(replica=replica)
    assert pending is not None
    replica.leave()
    bench.pool.leave(replica)
    await bench.server.accept()
    async with asyncio.timeout(5):
        await receiver.ready
    assert receiver.stream is not None
    assert bench.pool.idle_count(replica) == 0
