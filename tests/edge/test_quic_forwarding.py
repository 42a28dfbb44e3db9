"""Datagrams between the processes of a host: to their owner, as it would have read them, bounded, never in circles."""

import asyncio
import os

import pytest
import pytest_asyncio
from quickit import Rig, answered, copies, daemon, initial, short
from udpkit import until

from router.edge import quic_forwarding
from router.edge.quic_forwarding import FULL, GONE, MAX_HOPS, NEXT, SENT, Forwarding, ForwardReceiver, make_pair


class Kept(ForwardReceiver):
    def __init__(self):
        self.taken = []

    def receive_forwarded(self, listener, data, segment_bytes, address, local, ecn, hops):
        self.taken.append((listener, data, segment_bytes, address, local, ecn, hops))

    def received(self):
        pass


@pytest.fixture
async def way():
    receiving, sending = make_pair()
    near, far = Forwarding([], {(1, 0): sending}), Forwarding([receiving], {})
    kept = Kept()
    far.listen(kept)
    yield near, far, kept
    near.close()
    far.close()


class TestWay:
    @pytest.mark.parametrize(
        ("address", "local"),
        [
            (("192.0.2.1", 443), b""),
            (("192.0.2.1", 65_535), b"l" * 12),
            (("fe80::1%lo", 1, 7, 1), b"l" * 20),
        ],
    )
    async def test_all_that_the_owner_needs(self, way, address, local):
        near, _, kept = way
        data = os.urandom(64_000)
        assert near.send(1, 0, b"0.0.0.0|443", data, 1_200, address, local, 3, 2) == SENT
        await until(lambda: kept.taken)
        assert kept.taken == [(b"0.0.0.0|443", data, 1_200, address, local, 3, 2)]

    async def test_a_full_way_says_so(self, way):
        near, far, kept = way
        outcomes = [near.send(1, 0, b"", bytes(60_000), 0, ("192.0.2.1", 1), b"", 0, 0) for _ in range(1_000)]
        assert outcomes[0] == SENT and outcomes[-1] == FULL
        await until(lambda: len(kept.taken) == outcomes.count(SENT))
        assert near.send(1, 0, b"", b"x", 0, ("192.0.2.1", 1), b"", 0, 0) == SENT

    async def test_it_holds_more_than_the_short_queue_of_unix_datagrams(self, way):
        near, _, kept = way
        outcomes = [near.send(1, 0, b"", b"x" * 1_200, 0, ("192.0.2.1", 1), b"", 0, 0) for _ in range(64)]
        assert set(outcomes) == {SENT}

    async def test_nobody_there(self, way):
        near, far, _ = way
        assert near.send(2, 0, b"", b"x", 0, ("192.0.2.1", 1), b"", 0, 0) == GONE
        far.close()
        assert near.send(1, 0, b"", b"x", 0, ("192.0.2.1", 1), b"", 0, 0) == GONE

    async def test_what_cannot_be_read_is_counted(self, way):
        near, far, kept = way
        sock = near._senders[1, 0]
        for message in (b"", b"x", bytes(100), b"\x01" * 18, b"\x01" + b"\xff" * 60):
            sock.send(message)
        near.send(1, 0, b"", b"x", 0, ("192.0.2.1", 1), b"", 0, 0)
        await until(lambda: kept.taken)
        assert far.malformed == 4 and len(kept.taken) == 1


@pytest_asyncio.fixture
async def host():
    """Make workers of one host's daemons, all on one address as far as clients know."""
    rigs, ends = [], []

    def make(incarnations, workers=1):
        receivers, senders = daemon(incarnations, workers)
        ends.extend((*receivers.values(), *senders.values()))
        found = {}
        for incarnation in incarnations:
            for worker in range(workers):
                older = {key: s for key, s in senders.items() if key[0] <= incarnation and key[1] != NEXT}
                own = {(incarnation, NEXT): senders[incarnation, NEXT]}
                reads = [receivers[incarnation, worker].dup()]
                if not worker and (incarnation - 1, NEXT) in receivers:
                    reads.append(receivers[incarnation - 1, NEXT].dup())
                rig = Rig(worker, incarnation, ways=copies(older | own), receivers=reads)
                rigs.append(rig)
                if rigs[0] is rig:
                    rig.start()
                else:
                    rig.start(rigs[0].listener._sockets[name_of(rigs[0])]._sock.dup())
                for sock in rig.listener._sockets.values():
                    sock.stop_reading()  # the test says who reads
                found[incarnation, worker] = rig
        for end in (*receivers.values(), *senders.values()):
            end.close()
        return found

    yield make
    for rig in rigs:
        rig.close()


def name_of(rig):
    return next(iter(rig.listener._sockets))


def read(rig, data, client, ecn=0):
    """Have this worker read a datagram."""
    sock = rig.listener._sockets[name_of(rig)]
    rig.listener.receive(sock, data, 0, client.getsockname(), b"", ecn)
    rig.listener.received()


async def begin(rig, client):
    read(rig, initial(), client)
    return rig.engines[-1], (await answered(client))[4:]


async def test_a_sibling_gets_what_is_its_own_and_answers_itself(host):
    rigs = host([7], workers=2)
    one, two = rigs[7, 0], rigs[7, 1]
    client = one.client()
    engine, own_id = await begin(two, client)
    assert own_id[:2] == b"\x01\x07"
    moved = one.client()
    read(one, short(own_id), moved, ecn=3)
    assert (await answered(moved)).startswith(b"pong")
    assert engine.received[-1] == (short(own_id), 0, moved.getsockname(), b"")
    assert engine.ecn == 3, "its mark comes along"
    assert (one.count("forwarded"), two.count("taken_over")) == (1, 1)


async def test_a_buffer_travels_whole(host):
    rigs = host([7], workers=2)
    one, two = rigs[7, 0], rigs[7, 1]
    client = one.client()
    engine, own_id = await begin(two, client)
    sock = one.listener._sockets[name_of(one)]
    data = short(own_id, size=100) * 20
    one.listener.receive(sock, data, 100, client.getsockname(), b"", 0)
    await until(lambda: len(engine.received) == 2)
    assert engine.received[1][:2] == (data, 100) and one.count("forwarded") == 1


async def test_a_handshake_goes_on_where_it_began(host):
    rigs = host([7], workers=2)
    one, two = rigs[7, 0], rigs[7, 1]
    client = one.client()
    engine, own_id = await begin(two, client)
    for kind in (0, 2):
        read(one, initial(destination=own_id, kind=kind), client)
        await answered(client)
    assert len(engine.received) == 3 and not one.engines


async def test_a_workers_successor_knows_nothing_and_says_so(host):
    """The worker died with its connections; another reads what their clients send."""
    rigs = host([7], workers=2)
    one, two = rigs[7, 0], rigs[7, 1]
    client = one.client()
    gone = two.keyring.make_id(1, 7)
    read(one, short(gone, size=100), client)
    assert (await answered(client))[-16:] == two.keyring.reset_token(gone)
    assert two.count("resets") == 1


class TestSuccession:
    async def test_old_connections_are_the_predecessors(self, host):
        rigs = host([7, 8])
        old, new = rigs[7, 0], rigs[8, 0]
        client = old.client()
        engine, own_id = await begin(old, client)
        old.listener.retire()
        read(new, short(own_id), client)
        assert (await answered(client)).startswith(b"pong") and len(engine.received) == 2
        fresh, fresh_id = await begin(new, client)
        assert fresh_id[:2] == b"\x00\x08" and fresh is new.engines[0]

    async def test_while_both_read_nothing_is_lost(self, host):
        rigs = host([7, 8], workers=2)
        old, new = rigs[7, 0], rigs[8, 1]
        client = old.client()
        engine, own_id = await begin(new, client)
        read(old, short(own_id), client)
        assert (await answered(client)).startswith(b"pong") and len(engine.received) == 2
        assert rigs[8, 0].count("forwarded") == 1, "its first worker reads what the predecessor passes on"

    async def test_an_initial_that_only_looks_like_a_predecessors(self, host):
        rigs = host([7, 8])
        old, new = rigs[7, 0], rigs[8, 0]
        old.listener.retire()
        client = old.client()
        chance = old.keyring.make_id(0, 7)
        read(new, initial(destination=chance), client)
        assert (await answered(client)).startswith(b"pong")
        assert new.engines[0].original_id == chance and not old.engines

    async def test_over_three_generations(self, host):
        rigs = host([7, 8, 9])
        client = rigs[7, 0].client()
        oldest, own_id = await begin(rigs[7, 0], client)
        for incarnation in (7, 8):
            rigs[incarnation, 0].listener.retire()
        read(rigs[9, 0], short(own_id), client)
        await answered(client)
        assert len(oldest.received) == 2
        read(rigs[9, 0], initial(destination=rigs[7, 0].keyring.make_id(0, 7)), client)
        await answered(client)
        assert len(rigs[9, 0].engines) == 1, "by way of both that are retired"

    async def test_when_the_predecessor_has_ended_its_connections_are_reset(self, host):
        rigs = host([7, 8])
        old, new = rigs[7, 0], rigs[8, 0]
        client = old.client()
        _, own_id = await begin(old, client)
        old.close()
        client = new.client()
        read(new, short(own_id, size=100), client)
        assert (await answered(client))[-16:] == new.keyring.reset_token(own_id)
        assert new.count("drop_forward_gone") == 1

    async def test_incarnations_go_round(self):
        receiving, sending = make_pair()
        rig = Rig(0, 255, ways={(255, NEXT): sending}).start()
        packet = short(rig.keyring.make_id(0, 0))
        read(rig, packet, rig.client())
        assert rig.count("forwarded") == 1, "the successor of 255 is 0"
        assert receiving.recv(2_000).endswith(packet)
        receiving.close()
        rig.close()


async def test_not_in_circles(host):
    rigs = host([7], workers=2)
    one = rigs[7, 0]
    address = one.client().getsockname()
    for hops, name in ((MAX_HOPS - 1, "forwarded"), (MAX_HOPS, "drop_forward_hops")):
        one.listener.receive_forwarded(name_of(one), short(one.keyring.make_id(1, 7)), 0, address, b"", 0, hops)
        assert one.count(name) == 1


async def test_a_full_way_drops(host):
    rigs = host([7], workers=2)
    one, two = rigs[7, 0], rigs[7, 1]
    client = one.client()
    _, own_id = await begin(two, client)
    sock = one.listener._sockets[name_of(one)]
    for _ in range(500):
        one.listener.receive(sock, short(own_id, size=1_200) * 50, 1_200, client.getsockname(), b"", 0)
    assert one.count("drop_forward_full") > 0 and one.count("forwarded") > 0
    assert one.count("drop_forward_full") + one.count("forwarded") == 500


async def test_for_an_address_that_is_not_listened_on(host):
    rigs = host([7])
    one = rigs[7, 0]
    one.listener.receive_forwarded(b"192.0.2.1|1", initial(), 0, ("192.0.2.9", 9), b"", 0, 1)
    assert one.count("drop_forward_gone") == 1 and not one.engines
    await asyncio.sleep(0)
    assert quic_forwarding.READ_BYTES > 65_535
