"""Acknowledgements as rare as the sender of the data wants them, as the draft has it, and within our limits."""

import pytest

from router.transport.codec.quic import ack_frequency, limits
from router.transport.codec.quic.ack_frequency import AckFrequency
from router.transport.codec.quic.frames_out import ConnectionFrame
from router.transport.codec.quic.recovery import Space
from router.transport.codec.quic.server import ServerConnection
from router.transport.codec.quic.state import OPEN
from router.transport.codec.quic.transport_parameters import MIN_ACK_DELAY, Parameters, read_parameters
from router.transport.codec.quic.varint import Cursor, varint
from tests.transport.codec.quic.rig import CLIENT, Link, Rig

MTU = 1_200


def frame(*fields):
    return b"".join(varint(field) for field in (0xAF, *fields))


def take(space, number, *, every=100, reordering=1, now=1.0):
    space.note_received(
        number, now, is_eliciting=True, every=every, delay_s=0.025, reordering=reordering
    )
    due = space.is_ack_due
    if due:
        space.ack_sent()
    return due


class TestAsked:
    def test_what_is_asked_for_is_done(self):
        one = AckFrequency()
        assert (one.every, one.delay_s, one.reordering) == (2, limits.MAX_ACK_DELAY_S, 1)
        assert one.receive(0, 9, 50_000, 3)
        assert (one.every, one.delay_s, one.reordering) == (10, 0.05, 3)
        assert one.receive(5, 0, 1_000, 0)
        assert (one.every, one.delay_s, one.reordering) == (1, 0.001, 0)

    def test_what_is_overtaken_is_ignored(self):
        one = AckFrequency()
        assert one.receive(5, 9, 50_000, 3)
        for sequence in (5, 4, 0):
            assert one.receive(sequence, 1, 25_000, 1)
            assert one.every == 10

    def test_a_delay_below_what_we_announce_is_refused(self):
        one = AckFrequency()
        assert not one.receive(0, 1, ack_frequency.MIN_ACK_DELAY_US - 1, 1)
        assert one.receive(0, 1, ack_frequency.MIN_ACK_DELAY_US, 1)

    def test_limits(self):
        one = AckFrequency()
        assert one.receive((1 << 62) - 1, (1 << 62) - 1, (1 << 62) - 1, (1 << 62) - 1)
        assert one.every == ack_frequency.MAX_ASKED_EVERY
        assert one.delay_s == ack_frequency.MAX_ASKED_DELAY_S


class TestReordering:
    """The tables of the draft's §6.2.1; acknowledgements are due by reordering alone."""

    @pytest.mark.parametrize(("reordering", "numbers", "due"), [
        (1, [0, 1, 3, 2, 4], [3, 2]),
        (3, [0, 1, 3, 4, 5, 8, 9, 10], [5, 9, 10]),
        (5, [0, 1, 3, 5, 6, 7, 8, 9], [7, 9]),
        (3, [1, 2, 3, 4, 5], [3]),  # the first of all is missing
        (0, [0, 1, 3, 4, 5, 8, 9, 10, 30], []),
        ((1 << 62) - 1, [0, 1, 3, 400], []),
    ])  # fmt: skip
    def test_of_the_draft(self, reordering, numbers, due):
        space = Space()
        assert [number for number in numbers if take(space, number, reordering=reordering)] == due

    def test_a_gap_behind_what_the_peer_knows_we_have(self):
        space = Space()
        for number in range(8):
            take(space, number, every=8)
        space.received.drop_below(8)
        space.received_floor = 8
        assert [number for number in (9, 10, 11, 12) if take(space, number, reordering=3)] == [11]

    def test_by_count_and_by_time(self):
        space = Space()
        assert [number for number in range(30) if take(space, number, every=10)] == [9, 19, 29]
        assert space.ack_due_s == 0.0
        take(space, 30, every=10, now=7.0)
        assert space.ack_due_s == pytest.approx(7.025)


class TestAsking:
    def test_eight_acknowledgements_a_window(self):
        one = AckFrequency()
        one.consider(160 * MTU, MTU, 100 * MTU)
        assert one.is_due and one.asked_every == 20
        data = one.write(25_000, 3)
        cursor = Cursor(data, 0, len(data))
        assert [cursor.varint() for _ in range(5)] == [0xAF, 0, 19, 25_000, 3] and cursor.at == len(data)
        assert not one.is_due and one.sequence == 0

    @pytest.mark.parametrize(("packets", "unsent", "every"), [
        (32, 100, 4), (24, 100, 2), (1_000_000, 100, 64), (160, 15, 2), (160, 16, 20),
    ])  # fmt: skip
    def test_only_where_it_pays(self, packets, unsent, every):
        one = AckFrequency()
        one.consider(packets * MTU, MTU, unsent * MTU)
        assert one.asked_every == every and one.is_due == (every != 2)

    def test_a_window_that_shrinks_takes_it_back_at_once(self):
        one = AckFrequency()
        one.consider(400 * MTU, MTU, 100 * MTU)
        one.write(25_000, 3)
        one.consider(220 * MTU, MTU, 100 * MTU)
        assert not one.is_due, "half of it or twice as much is worth a frame"
        one.consider(2 * MTU, MTU, 1)
        assert one.is_due and one.asked_every == limits.ACK_EVERY


def upload(rig, size):
    flow = rig.client.connection.open_stream(unidirectional=True)
    flow.send(bytes(size), True)
    assert rig.run(lambda: flow.id in rig.server.app.ended)
    rig.run(limit_s=0.5)


class TestTogether:
    def acknowledgements(self, *, extension, drop=None):
        rig = Rig(Link(spacing_s=0.0001), Link()).connect()
        rig.run(limit_s=0.5)
        rig.client.connection.takes_ack_frequency = extension
        rig.up.drop = drop
        before = rig.down.sent
        upload(rig, 3_000_000)
        assert rig.client.connection.phase == rig.server.connection.phase == OPEN
        return rig, rig.down.sent - before

    def test_they_become_fewer(self):
        _, usual = self.acknowledgements(extension=False)
        rig, fewer = self.acknowledgements(extension=True)
        assert rig.server.connection.ack_frequency.every >= 16
        assert fewer < usual / 4 and usual > 900
        assert rig.client.connection.recovery.lost_packets == 0

    def test_loss_is_noticed_as_soon(self):
        def once(number):
            sent = iter(range(1 << 30))
            return lambda data: next(sent) == number

        rig, _ = self.acknowledgements(extension=True, drop=once(1_500))
        usual, _ = self.acknowledgements(extension=False, drop=once(1_500))
        recovery = rig.client.connection.recovery
        assert rig.server.connection.ack_frequency.every >= 16
        assert recovery.lost_packets == 1 and recovery.spurious_packets == 0
        assert rig.now == pytest.approx(usual.now, abs=0.02)

    @pytest.mark.parametrize(("reordering", "answers"), [(3, 0), (1, 14)])
    def test_what_is_only_overtaken_is_not_reported(self, reordering, answers):
        rig = Rig().connect()
        rig.run(limit_s=0.5)
        server = rig.server.connection
        assert server.ack_frequency.receive(0, 100, 25_000, reordering)
        rig.client.connection.open_stream(unidirectional=True).send(bytes(35_000), True)
        pieces = [piece for burst in rig.client.connection.datagrams_to_send(rig.now) for piece in burst.pieces]
        said = 0
        for at in range(14):
            server.receive(pieces[at ^ 1], 0, CLIENT, None, rig.now)
            said += bool(server.datagrams_to_send(rig.now))
        assert said == answers

    def test_a_frame_that_is_lost_is_said_again_unless_it_is_overtaken(self):
        rig = Rig().connect()
        rig.run(limit_s=0.5)
        connection = rig.client.connection
        connection.ack_frequency.asked_every = 10
        connection.ack_frequency.is_due = True
        connection.open_stream(unidirectional=True).send(b"with data", False)
        connection.datagrams_to_send(rig.now)  # to nobody
        frames = [frame for packet in connection.space(3).sent.values() for frame in packet.frames]
        (said,) = [frame for frame in frames if isinstance(frame, ConnectionFrame)]
        assert connection.ack_frequency.sequence == 0 and not connection.ack_frequency.is_due
        said.on_lost()
        assert connection.ack_frequency.is_due
        connection.ack_frequency.write(25_000, 3)
        said.on_lost()
        assert not connection.ack_frequency.is_due, "a later one says what holds"

    def test_the_mtu_grows_by_a_step_each_round_trip(self):
        """An acknowledgement of a probe would come 25 ms late without IMMEDIATE_ACK."""
        rig = Rig(Link(delay_s=0.001, mtu=65_535), Link(delay_s=0.001, mtu=65_535)).connect()
        began = rig.now
        mtu = rig.client.connection.path.mtu
        assert rig.run(lambda: mtu.size == 16_332)
        assert rig.now - began < 0.025

    def test_a_peer_that_does_not_know_of_it_is_not_asked(self, monkeypatch):
        both = Rig().connect()
        assert both.client.connection.takes_ack_frequency and both.server.connection.takes_ack_frequency
        usual = ServerConnection.own_parameters

        def unaware(connection):
            own = usual(connection)
            del own.numbers[MIN_ACK_DELAY]
            return own

        monkeypatch.setattr(ServerConnection, "own_parameters", unaware)
        rig = Rig(Link(loss=0.02), Link()).connect()
        upload(rig, 1_000_000)
        assert rig.client.connection.ack_frequency.sequence == -1
        assert rig.server.connection.ack_frequency.every == limits.ACK_EVERY
        assert rig.server.connection.phase == OPEN


class TestParameter:
    @pytest.mark.parametrize(("micros", "is_right"), [(0, True), (25_000, True), (25_001, False)])
    def test_it_is_no_more_than_the_largest_delay(self, micros, is_right):
        given = Parameters()
        given.numbers[MIN_ACK_DELAY] = micros
        found = read_parameters(given.encode(), from_client=True)
        assert isinstance(found, Parameters) == is_right
