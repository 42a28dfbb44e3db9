"""ECN marks of what came are counted and told (RFC 9000 §13.4.1); of congestion the sender hears at once."""

import pytest

from router.transport.codec.quic.frames_out import write_ack
from router.transport.codec.quic.recovery import CONGESTION, ECT_0
from router.transport.codec.quic.varint import Cursor
from tests.transport.codec.quic.rig import CLIENT, SERVER, Rig

ECT_1 = 1


@pytest.fixture
def rig():
    made = Rig().connect()
    made.run(limit_s=0.5)
    return made


def said(space):
    """Return type and counts of the ACK that a space would send."""
    data = write_ack(space, 0.0, 0)
    cursor = Cursor(data, 0, len(data))
    kind, *_ = [cursor.varint() for _ in range(5)]
    counts = [cursor.varint() for _ in range(3)] if kind == 3 else []
    assert cursor.at == len(data)
    return kind, counts


def pieces_of(rig, count):
    rig.client.connection.open_stream(unidirectional=True).send(bytes(1_400 * count), False)
    return [piece for burst in rig.client.connection.datagrams_to_send(rig.now) for piece in burst.pieces]


def test_counts(rig):
    server, pieces = rig.server.connection, pieces_of(rig, 14)
    server.receive(pieces[0], 0, CLIENT, None, rig.now)
    assert said(server.space(3)) == (2, [])
    server.receive(b"".join(pieces[1:6]), len(pieces[0]), CLIENT, None, rig.now, ECT_0)
    assert said(server.space(3)) == (3, [5, 0, 0])
    server.receive(pieces[6], 0, CLIENT, None, rig.now, ECT_1)
    server.receive(pieces[7], 0, CLIENT, None, rig.now, CONGESTION)
    server.receive(pieces[8], 0, CLIENT, None, rig.now)
    assert said(server.space(3)) == (3, [5, 1, 1])
    server.receive(pieces[7], 0, CLIENT, None, rig.now, CONGESTION)  # a duplicate
    server.receive(pieces[9][:-1] + b"?", 0, CLIENT, None, rig.now, ECT_0)  # forged
    assert said(server.space(3)) == (3, [5, 1, 1])


def test_what_came_before_its_keys_keeps_its_mark(rig):
    server, (piece, *_) = rig.server.connection, pieces_of(rig, 1)
    space = server.space(3)
    key, space.receive_key = space.receive_key, None
    server.receive(piece, 0, CLIENT, None, rig.now, ECT_0)
    assert not space.is_marked
    space.receive_key = key
    server.receive(b"\x40", 0, CLIENT, None, rig.now)
    assert said(space) == (3, [1, 0, 0])


def test_congestion_is_told_at_once(rig):
    server, pieces = rig.server.connection, pieces_of(rig, 14)
    assert server.ack_frequency.receive(0, 100, 25_000, 0)
    for at, ecn in enumerate((ECT_0, ECT_0, 0, CONGESTION, ECT_0)):
        server.receive(pieces[at], 0, CLIENT, None, rig.now, ecn)
        assert bool(server.datagrams_to_send(rig.now)) == (ecn == CONGESTION)


class Marked(Rig):
    """Every datagram is marked."""

    def _deliver(self, to_server, data, address):
        end = self.server if to_server else self.client
        if end.connection is None:
            forged = data[:-1] + bytes((data[-1] ^ 1,))
            super()._deliver(to_server, forged, address)  # makes the connection
        end.connection.receive(data, 0, address if to_server else SERVER, None, self.now, ECT_0)


@pytest.mark.parametrize("jitter_s", [0.0, 0.02])
def test_all_are_counted_from_the_first_packet_on(jitter_s):
    """A sender gives marks up at the first acknowledgement without counts; those that came too early have theirs."""
    rig = Marked()
    rig.up.jitter_s = rig.down.jitter_s = jitter_s
    rig.connect()
    pieces_of(rig, 3)
    rig.run(limit_s=1.0)
    for end in (rig.client, rig.server):
        connection = end.connection
        counted = sum(connection.space(epoch).ect0_packets for epoch in (0, 2, 3))
        assert counted == connection.received_packets > 5
