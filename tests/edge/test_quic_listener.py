"""Datagrams to connections by id, life and end of connections, what is counted; with an engine that does nothing."""

import asyncio
import socket
import struct

import pytest
import pytest_asyncio
from quickit import CLOSING, HANDSHAKING, OVER, FakeApplication, FakeEngine, Rig, answered, initial, short
from udpkit import until

from router.edge.quic_shell import QuicShell
from router.errors import Kind, ProxyError, Source

CUT = ProxyError(Kind.DRAINING, Source.ROUTER)


@pytest_asyncio.fixture
async def rig():
    rig = Rig().start()
    yield rig
    rig.close()


class TestRouting:
    async def test_an_initial_begins_a_connection_and_its_ids_lead_there(self, rig):
        client, engine, own_id = await rig.connected()
        assert engine.phase == HANDSHAKING and len(own_id) == 12 and own_id[:2] == b"\x00\x07"
        assert engine.retry_id == b"" and engine.is_validated is False
        client.send(short(own_id))
        await answered(client)
        client.send(initial(destination=engine.original_id))
        await answered(client)
        client.send(initial(destination=own_id, kind=2))
        await answered(client)
        assert len(engine.received) == 4 and len(rig.engines) == 1
        assert rig.listener.open_connections == rig.counters.connections_open == 1

    async def test_a_buffer_of_one_connection_goes_there_whole(self, rig):
        client, engine, own_id = await rig.connected()
        data = short(own_id, size=100) * 10
        client.sendmsg([data], [(17, 103, struct.pack("H", 100))])
        await until(lambda: len(engine.received) == 2)
        assert engine.received[1][:2] == (data, 100)

    async def test_a_buffer_of_several_is_sorted(self, rig):
        """A client's sockets may carry several connections; the kernel joins by addresses."""
        client, first, first_id = await rig.connected()
        _, second, second_id = await rig.connected(client)
        unknown = b"\xff" * 12
        order = [unknown, unknown, first_id, second_id, second_id, first_id]
        data = b"".join(short(i, size=50) for i in order)
        client.sendmsg([data], [(17, 103, struct.pack("H", 50))])
        await until(lambda: len(first.received) == 3)
        assert [len(data) for data, *_ in first.received[1:]] == [50, 50]
        assert [(len(data), size) for data, size, *_ in second.received[1:]] == [(100, 50)]
        assert rig.count("drop_unknown") == 1, "a run of the same is looked at once"

    async def test_a_client_hello_of_two_datagrams_begins_one_connection(self, rig):
        """A key share that withstands quantum computers makes it so long, and the kernel joins the two."""
        client = rig.client()
        hello = [initial(destination=b"a client", body=body) for body in (b"first", b"second")]
        client.sendmsg(hello, [(17, 103, struct.pack("H", 1_200))])
        await until(lambda: sum(len(engine.received) for engine in rig.engines) == 2)
        (engine,) = rig.engines
        assert [data for data, *_ in engine.received] == hello
        assert rig.listener.open_connections == rig.listener.handshaking == 1
        engine.phase = OVER
        client.send(hello[0])
        await until(lambda: rig.listener.open_connections == 0)
        assert not rig.listener._by_id and rig.headcount.open == 0

    async def test_a_reset_finds_the_one_of_several_that_were_dialled_to_one_place(self, rig):
        server = rig.client()
        place = server.getsockname()
        for n in range(3):
            shell = QuicShell(rig.listener, rig.listener.first_socket(), place, b"")
            assert rig.listener.dial(shell, lambda now, shell=shell: FakeEngine(shell, now, place, b"", b"", b"", False))
            rig.engines.append(shell.connection)
            shell.connection.reset_token = bytes((n,)) * 16
        server.sendto(short(b"\xee" * 12, size=30) + bytes((1,)) * 16, rig.address)
        await until(lambda: rig.engines[1].received)
        server.sendto(short(b"\xee" * 12, size=30) + bytes((9,)) * 16, rig.address)
        await until(lambda: rig.count("drop_unknown") + rig.count("resets") == 1)
        assert [len(engine.received) for engine in rig.engines] == [0, 1, 0]

    async def test_strays_of_a_buffer_are_taken_back(self, rig):
        _, first, first_id = await rig.connected()
        _, second, second_id = await rig.connected()
        first.owner.stray(short(second_id), first.address)
        assert second.received[-1][0] == short(second_id)
        first.owner.stray(short(b"\xee" * 12), first.address)
        assert rig.count("drop_unknown") == 1
        first.owner.stray(short(first_id), first.address)
        assert len(first.received) == 1, "it said that it is not its own"

    async def test_a_retired_id_leads_nowhere(self, rig):
        client, engine, own_id = await rig.connected()
        engine.owner.retire_id(own_id)
        engine.owner.retire_id(own_id)
        client.send(short(own_id))
        await until(lambda: rig.count("drop_reset_limit") == 1)
        assert len(engine.received) == 1
        made = engine.owner.make_id()
        client.send(short(made))
        await until(lambda: len(engine.received) == 2)

    async def test_every_listening_address_answers_for_itself(self, rig):
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        other.bind(("127.0.0.1", 0))
        where = other.getsockname()
        rig.listener.listen([other])
        client = rig.client()
        client.connect(where)
        _, engine, _ = await rig.connected(client)
        assert client.getpeername() == where and engine.received


class TestEnds:
    async def test_what_is_not_authentic_leaves_nothing(self, rig):
        client = rig.client()
        for _ in range(50):
            client.send(initial(body=b"junk"))
        await until(lambda: rig.count("drop_junk") == 50)
        assert rig.count("handshake_failures") == 0
        assert rig.listener.open_connections == rig.listener.handshaking == rig.counters.connections_open == 0
        assert not rig.listener._by_id and rig.headcount.open == 0

    async def test_over_is_forgotten(self, rig):
        client, engine, own_id = await rig.connected()
        engine.complete()
        engine.phase = OVER
        client.send(short(own_id))
        await until(lambda: rig.listener.open_connections == 0)
        assert not rig.listener._by_id and rig.counters.connections_open == 0
        assert (rig.count("handshakes"), rig.count("handshake_failures")) == (1, 0)
        assert sum(rig.listener.counters.rtt.counts) == 1
        await answered(client)
        client.send(short(own_id, size=100))
        assert (await answered(client))[-16:] == rig.keyring.reset_token(own_id)

    async def test_a_handshake_that_comes_to_nothing(self, rig):
        client, engine, own_id = await rig.connected()
        assert rig.listener.handshaking == 1
        engine.phase = CLOSING
        client.send(short(own_id))
        await until(lambda: rig.count("handshake_failures") == 1)
        assert rig.listener.handshaking == 0 and rig.listener.open_connections == 1, "it may have to repeat itself"

    @pytest.mark.parametrize("where", ["receive", "send"])
    async def test_a_bug_costs_one_connection(self, rig, where, caplog):
        client, engine, own_id = await rig.connected()
        other, healthy, other_id = await rig.connected()
        engine.fails = where
        client.send(short(own_id))
        await until(lambda: rig.counters.internal_errors == 1)
        assert rig.listener.open_connections == 1 and engine.aborted == 1
        other.send(short(other_id))
        assert await answered(other)
        assert "as the test wants" in caplog.text
        if where == "receive":
            assert await answered(client) == b"bye!"

    async def test_a_bug_in_a_deadline(self, rig, caplog):
        client, engine, own_id = await rig.connected()

        def fail(now):
            raise RuntimeError("as the test wants")

        engine.handle_deadline = fail
        engine.deadline_s = rig.reactor.clock.now + 0.01
        engine.owner.watch()
        await until(lambda: rig.counters.internal_errors == 1)
        assert rig.listener.open_connections == 0


class TestTime:
    async def test_an_engines_deadline_is_kept(self, rig):
        client, engine, own_id = await rig.connected()
        asked = rig.reactor.clock.read() + 0.02
        engine.deadline_s = asked
        engine.owner.watch()
        await until(lambda: engine.due)
        assert 0 <= engine.due[0] - asked < 0.5

    async def test_an_end_by_deadline_is_seen(self, rig):
        client, engine, own_id = await rig.connected()
        engine.handle_deadline = lambda now: setattr(engine, "phase", OVER)
        engine.deadline_s = rig.reactor.clock.read() + 0.01
        engine.owner.watch()
        await until(lambda: rig.listener.open_connections == 0)

    async def test_an_applications_deadline_is_the_wheels(self, rig):
        client, engine, own_id = await rig.connected()
        engine.complete()
        engine.application.deadline_s = rig.reactor.clock.now + 0.05
        engine.owner.watch()
        rig.reactor.wheel.turn(rig.reactor.clock.now + 0.2)
        assert engine.application.told == ["deadline"]

    async def test_marks_of_congestion_are_the_engines(self, rig):
        client, engine, own_id = await rig.connected()
        for size, ecn in ((0, 3), (len(short(own_id)), 2), (0, 0)):
            data = short(own_id) * (2 if size else 1)
            rig.listener.receive(engine.owner.sock, data, size, client.getsockname(), b"", ecn)
            assert engine.ecn == ecn

    async def test_who_has_more_to_send_lets_the_others_go_first(self, rig):
        client, engine, own_id = await rig.connected()
        engine.more = 3
        rig.listener.receive(engine.owner.sock, short(own_id), 0, client.getsockname(), b"", 0)
        rig.listener.received()
        assert engine.more == 2, "one share in this turn of the loop"
        assert (await answered(client)).startswith(b"pong")
        for _ in range(3):
            assert await answered(client) == b"more"
        assert engine.more == 0


class TestDrain:
    async def two(self, rig):
        """One connection whose handshake is done, and one that is in the midst of it."""
        _, done, done_id = await rig.connected()
        done.complete()
        client, new, new_id = await rig.connected()
        return client, done, done_id, new, new_id

    async def test_drain_and_cut(self, rig):
        client, done, _, new, _ = await self.two(rig)
        rig.listener.stop_accepting()
        rig.listener.drain()
        assert done.application.told == ["drain"] and not rig.listener.is_idle
        rig.listener.cut(CUT)
        assert done.application.told == ["drain", "cut"]
        assert (done.aborted, new.aborted) == (None, 2), "the application closes when its last words are delivered"
        assert not rig.listener.is_idle
        done.phase = CLOSING
        assert rig.listener.is_idle and rig.listener.open_connections == 2, "nobody waits for those that are closing"
        client.send(initial())
        await until(lambda: rig.count("refused") == 1)

    async def test_a_handshake_that_ends_only_now_is_drained(self, rig):
        _, _, _, new, _ = await self.two(rig)
        rig.listener.stop_accepting()
        rig.listener.drain()
        new.complete()
        assert new.application.told == ["drain"]

    async def test_who_is_left_in_the_end_is_told(self, rig):
        _, done, _, _, _ = await self.two(rig)
        rig.listener.close()
        assert done.aborted == 0
        assert await answered(rig.clients[0]) == b"bye!"
        assert rig.listener.open_connections == 0 and rig.headcount.open == 0

    async def test_retired_it_reads_no_more_and_still_sends(self, rig):
        client, done, done_id, new, _ = await self.two(rig)
        rig.listener.retire()
        assert done.application.told == ["retire"]
        client.send(initial())
        await asyncio.sleep(0)
        done.out.append(b"a last word")
        done.owner.touch()
        rig.reactor.outbox.flush()
        assert await answered(rig.clients[0]) == b"a last word"
        assert len(rig.engines) == 2
        new.complete()
        assert new.application.told == ["retire"], "a handshake that ends only now"


class TestLimits:
    async def test_the_limit_is_the_one_of_tcp(self):
        rig = Rig(max_connections=2).start()
        try:
            rig.headcount.enter(b"192.0.2.1")
            await rig.connected()
            refused = rig.client()
            refused.send(initial())
            await until(lambda: rig.count("refused") == 1)
            assert rig.counters.connections_refused == 1 and len(rig.engines) == 1
            rig.headcount.leave(b"192.0.2.1")
            await rig.connected()
        finally:
            rig.close()

    async def test_one_address(self, rig):
        rig.headcount.max_per_address = 1
        await rig.connected()
        rig.client().send(initial())
        await until(lambda: rig.counters.refused_address == 1)

    async def test_without_memory(self, rig):
        rig.headcount.refuses = True
        rig.client().send(initial())
        await until(lambda: rig.counters.refused_memory == 1)
        assert not rig.engines


class TestPeer:
    async def test_requests_know_where_the_client_has_moved_to(self, rig):
        _, engine, _ = await rig.connected()
        assert engine.owner.peer.address == b"127.0.0.1" and engine.owner.peer.forwarded_proto[1] == b"https"
        engine.owner.peer_moved(("::ffff:192.0.2.9", 5, 0, 0))
        assert engine.owner.peer.address == b"192.0.2.9" and rig.count("migrations") == 1
        engine.owner.peer_moved(("2001:db8::1", 5, 0, 0))
        assert engine.owner.peer.forwarded_for == (b"x-forwarded-for", b"2001:db8::1")

    async def test_the_application_is_the_protocols(self, rig):
        _, engine, _ = await rig.connected()
        engine.complete()
        assert isinstance(engine.application, FakeApplication) and engine.application.shell is engine.owner


async def test_each_flush_tells_who_has_room_again(rig):
    """Else who was told to hold back, above a stream's high mark, would do so for ever."""
    client, engine, own_id = await rig.connected()
    before = engine.told_room
    client.send(short(own_id))
    await answered(client)
    assert engine.told_room > before


async def test_numbers_include_the_living_and_the_gone(rig):
    client, engine, own_id = await rig.connected()
    client.send(short(own_id))
    await answered(client)
    found = rig.listener.numbers()
    assert (found["quic_connections_open"], found["quic_packets_received"], found["quic_packets_sent"]) == (1, 2, 2)
    assert found["udp_datagrams_received"] == 2 and found["udp_datagrams_sent"] == 2
    engine.owner.let_go()
    found = rig.listener.numbers()
    assert (found["quic_connections_open"], found["quic_packets_received"], found["quic_packets_sent"]) == (0, 2, 2)
