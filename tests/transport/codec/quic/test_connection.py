"""Two connections of ours over a link in memory: streams, loss, credit, resets, migration, keys, early data, ends."""

import hashlib
import random

import pytest

from router.transport.codec.quic import limits
from router.transport.codec.quic.ids import PeerIds
from router.transport.codec.quic.keys import PacketKey
from router.transport.codec.quic.state import CLOSING, DRAINING, OPEN, OVER
from tests.transport.codec.quic.rig import CLIENT, Link, Rig


def upload(rig, data, *, unidirectional=False):
    flow = rig.client.connection.open_stream(unidirectional=unidirectional)
    flow.send(data, True)
    return flow


def noise(size, seed=5):
    return random.Random(seed).randbytes(size)


class TestHandshake:
    def test_takes_two_round_trips_until_both_have_confirmed(self):
        rig = Rig().connect()
        assert rig.now == pytest.approx(1_000.04)
        assert rig.client.app.said == ["connected"]
        assert rig.server.app.said == ["connected"]
        assert rig.server.connection.alpn == rig.client.connection.alpn == "test"

    @pytest.mark.parametrize("seed", range(12))
    def test_survives_loss_reordering_and_duplicates(self, seed):
        rig = Rig(
            Link(0.02, 0.02, loss=0.25, duplicate=0.1, seed=seed),
            Link(0.02, 0.02, loss=0.25, duplicate=0.1, seed=seed + 99),
        )
        assert rig.run(
            lambda: rig.client.connection.is_confirmed
            and rig.server.connection is not None
            and rig.server.connection.is_confirmed
        )

    def test_every_initial_datagram_of_the_client_is_large(self):
        sizes = []
        up = Link()
        up.drop = lambda data: sizes.append((data[0] & 0xF0, len(data)))
        Rig(up).connect()
        assert all(size >= 1_200 for kind, size in sizes if kind == 0xC0)

    def test_without_a_validated_address_the_server_sends_three_times_what_it_got(self):
        up = Link()
        got = []

        def only_the_first(data):
            got.append(len(data))
            return len(got) > 1

        up.drop = only_the_first
        rig = Rig(up, change=lambda config: setattr(config, "handshake_s", 60.0))
        rig.run(limit_s=8.0)
        assert rig.down.sent_bytes <= 3 * got[0]

    def test_no_common_protocol_is_an_alert(self):
        rig = Rig(server_change=lambda config: setattr(config, "alpn", ["other"]))
        rig.run(lambda: rig.client.connection.phase >= CLOSING)
        assert rig.client.connection.close_code == 0x100 + 120

    def test_a_name_that_the_certificate_has_not_is_refused(self):
        rig = Rig(change=lambda config: setattr(config, "server_name", "evil.test"))
        rig.run(lambda: rig.client.connection.phase >= CLOSING)
        assert rig.client.connection.close_code == 0x100 + 42

    def test_one_that_never_ends_is_given_up(self):
        down = Link(loss=1.0)
        rig = Rig(None, down)
        rig.run(limit_s=60.0)
        assert rig.client.connection.phase == OVER
        assert rig.server.connection.phase == OVER


class TestStreams:
    @pytest.mark.parametrize("unidirectional", [False, True])
    def test_carry_bytes_and_the_end(self, unidirectional):
        rig = Rig().connect()
        data = noise(600_000)
        flow = upload(rig, data, unidirectional=unidirectional)
        assert rig.run(lambda: flow.id in rig.server.app.ended)
        assert rig.server.app.data[flow.id] == data

    @pytest.mark.parametrize("seed", range(8))
    def test_arrive_whole_over_a_bad_link(self, seed):
        rig = Rig(
            Link(0.025, 0.01, loss=0.05, duplicate=0.05, seed=seed),
            Link(0.025, 0.01, loss=0.05, duplicate=0.05, seed=seed + 50),
        ).connect()
        flows = [upload(rig, noise(90_000, k)) for k in range(4)]
        assert rig.run(lambda: all(flow.id in rig.server.app.ended for flow in flows), limit_s=60)
        for k, flow in enumerate(flows):
            assert hashlib.sha256(rig.server.app.data[flow.id]).digest() == hashlib.sha256(noise(90_000, k)).digest()
        for flow in flows:
            rig.server.app.flows[flow.id].send(b"done", True)
        assert rig.run(lambda: all(flow.id in rig.client.app.ended for flow in flows), limit_s=60)
        rig.run(limit_s=3.0)
        assert rig.client.app.gone == rig.server.app.gone == {flow.id for flow in flows}
        assert not rig.client.connection.streams.flows
        assert not rig.server.connection.streams.flows

    def test_beyond_the_peers_limit_are_not_opened_until_it_moves(self):
        rig = Rig(server_change=lambda config: setattr(config, "max_streams", 2)).connect()
        first = upload(rig, b"a")
        second = upload(rig, b"b")
        assert rig.client.connection.open_stream(unidirectional=False) is None
        rig.run(lambda: second.id in rig.server.app.ended)
        for flow in (first, second):
            rig.server.app.flows[flow.id].send(b"", True)
        assert rig.run(lambda: "streams" in rig.client.app.said)
        assert rig.client.connection.open_stream(unidirectional=False) is not None

    def test_an_uploader_stops_where_nobody_reads_and_other_streams_go_on(self):
        rig = Rig().connect()
        rig.server.app.gives_credit = False
        stuck = upload(rig, noise(4_000_000))
        rig.run(limit_s=5.0)
        assert len(rig.server.app.data[stuck.id]) == limits.STREAM_WINDOW
        other = upload(rig, b"quick")
        assert rig.run(lambda: other.id in rig.server.app.ended)
        rig.server.app.gives_credit = True
        rig.server.app.flows[stuck.id].credit(limits.STREAM_WINDOW)
        assert rig.run(lambda: stuck.id in rig.server.app.ended)
        assert rig.server.app.data[stuck.id] == noise(4_000_000)

    def test_the_connections_window_bounds_them_all(self):
        rig = Rig().connect()
        rig.server.app.gives_credit = False
        for _ in range(12):
            upload(rig, noise(1_000_000))
        rig.run(limit_s=5.0)
        assert sum(map(len, rig.server.app.data.values())) == limits.CONNECTION_WINDOW

    def test_a_writer_is_told_when_there_is_room_again(self):
        rig = Rig().connect()
        flow = upload(rig, b"")
        flow = rig.client.connection.open_stream(unidirectional=False)
        flow.send(noise(limits.HIGH_BYTES * 2), False)
        rig.run(limit_s=3.0)
        assert ("drained", flow.id) in rig.client.app.said

    def test_reset_and_stop_are_heard_and_free_what_was_held(self):
        rig = Rig().connect()
        rig.server.app.gives_credit = False
        flow = rig.client.connection.open_stream(unidirectional=False)
        flow.send(noise(200_000), False)
        rig.run(lambda: len(rig.server.app.data.get(flow.id, b"")) == 200_000)
        flow.reset(77)
        assert rig.run(lambda: ("reset", flow.id, 77) in rig.server.app.said)
        served = rig.server.app.flows[flow.id]
        served.send(b"answer", False)
        rig.run(limit_s=0.1)
        flow.stop(78)
        assert rig.run(lambda: ("stopped", flow.id, 78) in rig.server.app.said)
        assert not served.can_send()
        rig.run(limit_s=2.0)
        assert flow.id in rig.client.app.gone
        assert flow.id in rig.server.app.gone
        streams = rig.server.connection.streams
        assert streams.max_data - streams.received_bytes > limits.CONNECTION_WINDOW // 2

    def test_a_stop_of_ours_ends_an_upload_and_returns_its_credit(self):
        rig = Rig().connect()
        rig.server.app.gives_credit = False
        flow = upload(rig, noise(3_000_000))
        rig.run(lambda: flow.id in rig.server.app.flows)
        rig.server.app.flows[flow.id].stop(9)
        assert rig.run(lambda: ("stopped", flow.id, 9) in rig.client.app.said)
        rig.run(limit_s=2.0)
        streams = rig.server.connection.streams
        assert streams.received_bytes - streams._consumed == 0

    def test_large_transfers_both_ways_at_once(self):
        rig = Rig(Link(loss=0.01), Link(loss=0.01, seed=4)).connect()
        flow = upload(rig, noise(1_500_000))
        rig.run(lambda: flow.id in rig.server.app.flows)
        rig.server.app.flows[flow.id].send(noise(1_500_000, 6), True)
        assert rig.run(lambda: flow.id in rig.server.app.ended and flow.id in rig.client.app.ended, limit_s=60)
        assert rig.client.app.data[flow.id] == noise(1_500_000, 6)


class TestDatagrams:
    def test_are_carried_and_may_be_lost(self):
        rig = Rig().connect()
        assert rig.client.connection.send_datagram(b"telemetry")
        assert rig.run(lambda: rig.server.app.datagrams == [b"telemetry"])

    def test_that_no_packet_can_carry_are_refused(self):
        rig = Rig().connect()
        rig.run(limit_s=2.0)
        largest = rig.client.connection.max_datagram_bytes()
        assert 1_300 < largest < 1_472
        assert rig.client.connection.send_datagram(bytes(largest))
        assert not rig.client.connection.send_datagram(bytes(largest + 1))
        assert rig.run(lambda: rig.server.app.datagrams == [bytes(largest)])

    @pytest.mark.parametrize("more", range(8))
    def test_what_a_path_that_shrank_does_not_carry_holds_up_nothing(self, more):
        rig = Rig().connect()
        rig.run(limit_s=2.0)
        connection = rig.client.connection
        size = connection.path.mtu.size
        connection.path.mtu.size = limits.MIN_DATAGRAM_BYTES
        largest = connection.max_datagram_bytes()
        connection.path.mtu.size = size
        assert connection.send_datagram(bytes(largest + more))
        assert connection.send_datagram(b"behind")
        connection.path.mtu.size = limits.MIN_DATAGRAM_BYTES
        assert rig.run(lambda: rig.server.app.datagrams[-1:] == [b"behind"], limit_s=1.0)

    def test_the_oldest_gives_way(self):
        rig = Rig(Link(0.05), Link(0.05)).connect()
        for k in range(limits.MAX_DATAGRAMS + 10):
            rig.client.connection.send_datagram(b"%04d" % k)
        rig.run(limit_s=3.0)
        assert rig.server.app.datagrams[0] == b"0010"
        assert len(rig.server.app.datagrams) == limits.MAX_DATAGRAMS


class TestPaths:
    def test_the_mtu_is_found(self):
        rig = Rig(Link(mtu=1_440), Link(mtu=9_000)).connect()
        rig.run(limit_s=5.0)
        assert rig.client.connection.path.mtu.size == 1_420
        assert rig.server.connection.path.mtu.size == 8_952

    def test_a_path_that_shrinks_is_noticed(self):
        rig = Rig(Link(mtu=9_000), Link(mtu=9_000)).connect()
        rig.run(limit_s=5.0)
        rig.up.mtu = 1_300
        flow = upload(rig, noise(300_000))
        assert rig.run(lambda: flow.id in rig.server.app.ended, limit_s=20)

    def test_a_client_that_moves_is_followed_within_two_round_trips(self):
        rig = Rig().connect()
        rig.run(limit_s=1.0)
        rig.client_address = (CLIENT[0], 41_111)
        started = rig.now
        flow = upload(rig, b"command")
        assert rig.run(lambda: flow.id in rig.server.app.ended)
        rig.server.app.flows[flow.id].send(b"chunk", True)
        assert rig.run(lambda: flow.id in rig.client.app.ended)
        assert rig.now - started <= 2 * 0.02 + 0.001
        assert rig.server.moves == [rig.client_address]
        rig.run(limit_s=2.0)
        assert rig.server.connection.path.is_validated
        assert len(rig.server.connection.paths) == 1

    def test_another_host_gets_little_until_it_has_answered(self):
        rig = Rig().connect()
        rig.run(limit_s=1.0)
        rig.client_address = ("203.0.113.9", 40_000)
        flow = upload(rig, b"x")
        rig.run(lambda: flow.id in rig.server.app.ended)
        assert not rig.server.connection.path.is_validated
        rig.server.app.flows[flow.id].send(noise(300_000), True)
        assert rig.run(lambda: flow.id in rig.client.app.ended)
        assert rig.server.connection.path.is_validated

    def test_an_address_that_never_answers_is_left_again(self):
        rig = Rig().connect()
        rig.run(limit_s=1.0)
        flow = rig.client.connection.open_stream(unidirectional=False)
        flow.send(b"stolen", False)
        rig._send(rig.client, rig.up, True)
        # somebody copies the packet and is faster, from elsewhere
        rig.queue = [(at, n, to, data, ("203.0.113.66", 6)) for at, n, to, data, _ in rig.queue]
        rig.run(lambda: rig.server.moves)
        rig.run(limit_s=3.0)
        assert rig.server.connection.path.address == CLIENT
        assert rig.server.connection.phase == OPEN
        flow.send(b" back", True)
        assert rig.run(lambda: rig.server.app.data.get(flow.id) == b"stolen back")

    def test_a_client_may_change_its_own_address(self):
        rig = Rig().connect()
        rig.run(limit_s=1.0)
        before = rig.client.connection.peer_ids.current
        rig.client_address = ("203.0.113.5", 5_000)
        rig.client.connection.local_address_changed(None)
        flow = upload(rig, noise(100_000))
        assert rig.run(lambda: flow.id in rig.server.app.ended)
        assert rig.client.connection.peer_ids.current != before
        rig.run(limit_s=2.0)
        assert len(rig.server.ids) == limits.ISSUED_IDS


class TestKeys:
    def test_change_under_traffic(self):
        rig = Rig(Link(jitter_s=0.01), Link(jitter_s=0.01)).connect()
        for k in range(6):
            flow = upload(rig, noise(100_000, k))
            mover = (rig.client if k & 1 else rig.server).connection
            mover.open_stream(unidirectional=True).send(b"to be acknowledged", True)
            assert rig.run(lambda mover=mover: mover.phase_acked)
            mover.update_keys()
            assert rig.run(lambda flow=flow: flow.id in rig.server.app.ended)
            assert rig.server.app.data[flow.id] == noise(100_000, k)
            rig.run(limit_s=0.2)
        assert rig.client.connection.key_phase == 0
        assert rig.server.connection.failed_opens == 0

    def test_forged_packets_are_counted_and_harmless(self):
        rig = Rig().connect()
        target = next(iter(rig.server.ids))
        for k in range(200):
            forged = bytes((0x40 | k & 0x3F,)) + target + noise(60, k)
            rig.server.connection.receive(forged, 0, CLIENT, None, rig.now)
        assert rig.server.connection.failed_opens == 200
        flow = upload(rig, b"still here")
        assert rig.run(lambda: flow.id in rig.server.app.ended)


class TestEarlyData:
    def again(self, first, **kwargs):
        def change(config):
            config.ticket = first.tickets[-1]

        def server_change(config):
            config.tickets = first.server_config.tickets
            config.identities = first.server_config.identities

        return Rig(change=change, server_change=server_change, **kwargs)

    def test_arrives_with_the_first_packet(self):
        first = Rig().connect()
        first.run(limit_s=1.0)
        rig = self.again(first)
        seen = []
        flow = upload(rig, b"observation")
        rig.run(lambda: rig.server.app is not None)
        rig.server.app.on_data = lambda *_: seen.append(rig.server.connection.is_early)
        assert rig.run(lambda: flow.id in rig.server.app.ended)
        assert rig.now <= 1_000.011
        assert rig.run(lambda: rig.client.connection.is_confirmed)
        assert rig.client.connection.was_early_refused is False
        assert rig.server.connection.handshake.is_resumed

    def test_a_ticket_works_once_and_the_rest_is_sent_again(self):
        first = Rig().connect()
        first.run(limit_s=1.0)
        once = self.again(first)
        flow = upload(once, b"one")
        assert once.run(lambda: once.server.app is not None and flow.id in once.server.app.ended)
        twice = self.again(first)
        flow = upload(twice, noise(20_000))
        assert twice.run(lambda: twice.server.app is not None and flow.id in twice.server.app.ended)
        assert twice.server.app.data[flow.id] == noise(20_000)
        assert twice.client.connection.was_early_refused
        assert not twice.server.connection.handshake.is_early_accepted

    def test_a_replayed_flight_is_not_read(self):
        first = Rig().connect()
        first.run(limit_s=1.0)
        rig = self.again(first)
        flow = upload(rig, b"launch")
        copies = []
        rig.up.drop = lambda data: copies.append(data)
        assert rig.run(lambda: rig.server.app is not None and flow.id in rig.server.app.ended)
        replay = self.again(first)
        replay.queue = [(1_000.0, k, True, data, ("203.0.113.66", 6)) for k, data in enumerate(copies[:2])]
        replay.client.connection.phase = OVER
        replay.run(limit_s=5.0)
        assert replay.server.connection is not None
        assert replay.server.app is None or not replay.server.app.data


class TestEnds:
    def test_a_close_is_heard_with_its_code(self):
        rig = Rig().connect()
        rig.client.connection.close(0x10C, b"that is all")
        assert rig.run(lambda: rig.server.app.lost is not None)
        assert rig.server.app.lost == (0x10C, "that is all", True)
        assert rig.client.app.lost is None
        assert rig.server.connection.phase == DRAINING
        rig.run(limit_s=5.0)
        assert rig.client.connection.is_over
        assert rig.server.connection.is_over

    def test_a_lost_close_is_repeated(self):
        rig = Rig().connect()
        rig.client.connection.close(5, b"")
        rig.up.drop = lambda data, left=[1]: left and left.pop()
        rig.run(limit_s=0.01)
        flow = rig.server.connection.open_stream(unidirectional=True)
        flow.send(b"hello?", True)
        assert rig.run(lambda: rig.server.app.lost is not None)

    def test_silence_ends_it_on_both_sides(self):
        rig = Rig(change=lambda config: setattr(config, "idle_s", 3.0)).connect()
        rig.run(limit_s=10.0)
        assert rig.client.connection.is_over
        assert rig.server.connection.is_over
        assert rig.client.app.lost == (0, "idle", False)

    def test_keep_alive_keeps_it(self):
        def change(config):
            config.idle_s, config.keep_alive_s = 3.0, 1.0

        rig = Rig(change=change).connect()
        rig.run(limit_s=10.0)
        assert rig.client.connection.phase == OPEN
        assert rig.server.connection.phase == OPEN

    def test_a_stateless_reset_is_understood(self):
        rig = Rig().connect()
        rig.run(limit_s=1.0)
        current = rig.client.connection.peer_ids.current
        reset = b"\x5a" + noise(30) + current[:4] * 4
        rig.client.connection.receive(reset, 0, ("192.0.2.1", 443), None, rig.now)
        assert rig.client.connection.is_over
        assert rig.client.app.lost[1].startswith("the peer has forgotten")


class TestRecovery:
    @pytest.mark.parametrize("seed", [1, 2])
    def test_packets_that_overtake_each_other_are_not_taken_for_lost_for_long(self, seed):
        def change(config):
            config.stream_window = config.connection_window = 1 << 24

        rig = Rig(Link(0.025, 0.01, seed=seed), Link(0.025, 0.01, seed=seed + 9), change=change, server_change=change)
        rig.connect()
        started = rig.now
        flow = upload(rig, noise(2_000_000))
        assert rig.run(lambda: flow.id in rig.server.app.ended)
        recovery = rig.client.connection.recovery
        assert recovery.packet_threshold > limits.PACKET_THRESHOLD
        assert recovery.spurious_packets > 0.9 * recovery.lost_packets
        assert rig.now - started < 2.0  # with a threshold of three: twenty seconds

    def test_what_was_sent_in_vain_is_repeated_once(self):
        rig = Rig(Link(0.025), Link(0.025)).connect()
        dropped = []
        rig.up.drop = lambda data: len(data) > 1_000 and len(dropped) < 3 and not dropped.append(data)
        flow = upload(rig, noise(100_000))
        assert rig.run(lambda: flow.id in rig.server.app.ended)
        assert len(dropped) == 3
        assert rig.client.connection.recovery.lost_packets <= 3 + 2  # probes of the MTU are not counted
        assert rig.client.connection.recovery.spurious_packets == 0


def test_stun_among_the_datagrams_of_a_connection_is_the_owners():
    """The kernel joins by addresses (GRO); what is not STUN and has no fixed bit is nobody's (RFC 9000 §17.3.1)."""
    rig = Rig().connect()
    rig.run(limit_s=0.5)
    stun = b"\x00\x01\x00\x50\x21\x12\xa4\x42" + bytes(12 + 80)
    other = b"\x00\x01\x00\x50\x21\x12\xa4\x43" + bytes(12 + 80)
    server = rig.server.connection
    before = server.received_packets
    server.receive(stun + other + stun[:40], 100, CLIENT, None, rig.now)
    assert rig.server.strays == [(stun, CLIENT)]
    assert server.received_packets == before and server.phase == OPEN


def packets_of(rig, data):
    """Return what the client sends for `data`, which the link does not get."""
    flow = rig.client.connection.open_stream(unidirectional=False)
    flow.send(data, True)
    bursts = rig.client.connection.datagrams_to_send(rig.now)
    return flow, [piece for burst in bursts for piece in burst.pieces]


@pytest.mark.parametrize("suite", ["AES", "CHACHA"])
def test_datagrams_that_were_read_together(suite, monkeypatch):
    """Their masks are made together where the cipher can; strays between them, and a short end, change nothing."""
    if suite == "CHACHA":
        monkeypatch.setattr(PacketKey, "masks", lambda key, samples: b"")
    rig = Rig().connect()
    rig.run(limit_s=0.5)
    flow, pieces = packets_of(rig, noise(20_000))
    size = len(pieces[0])
    assert len(pieces) > 10 and {len(piece) for piece in pieces[:-1]} == {size} and len(pieces[-1]) < size
    stray = b"\x40" + bytes(size - 1)
    broken = pieces[3][:40] + bytes(size - 40)
    server = rig.server.connection
    server.receive(b"".join([*pieces[:5], stray, broken, *pieces[5:]]), size, CLIENT, None, rig.now)
    assert rig.server.strays == [(stray, CLIENT)] and server.failed_opens == 1
    assert rig.server.app.data[flow.id] == noise(20_000) and flow.id in rig.server.app.ended


@pytest.mark.parametrize("end", ["closed", "closed by the peer", "another address"])
@pytest.mark.parametrize("is_long", [False, True])
def test_what_was_read_together_with_datagrams_that_are_dropped_is_not_lost(end, is_long):
    """A client's socket may carry several connections: one that is over takes none of the others' with it."""
    rig = Rig()
    if end == "another address":
        rig.run(lambda: rig.server.connection is not None)
    else:
        rig.connect().run(limit_s=0.5)
    server = rig.server.connection
    if end == "closed":
        server.close(0)
    elif end == "closed by the peer":
        rig.client.connection.close(0)
        assert rig.run(lambda: server.phase == DRAINING)
    own = b"\x40" + server.source_id + bytes(1_187)
    again = b"\xc0\0\0\0\1\x0c" + server.source_id + bytes(1_182)
    other = b"\xc0\0\0\0\1\x0c" + bytes(1_194) if is_long else b"\x40" + bytes(1_199)
    address = CLIENT if end != "another address" else (CLIENT[0], 40_001)
    server.receive(own + other + again + other[:700], 1_200, address, None, rig.now)
    assert rig.server.strays == [(other, address), (other[:700], address)]


def test_an_id_that_was_used_and_retired_is_not_taken_up_again():
    """Its NEW_CONNECTION_ID is repeated where acknowledgements are lost, as on the address that was left."""
    ids = PeerIds(b"first")
    for sequence in (1, 2, 3):
        assert ids.add(sequence, 0, b"id %d" % sequence, bytes((sequence,)) * 16) == 0
    assert ids.change() and ids.change() and ids.retiring == [0, 1]
    ids.retiring.clear()
    assert ids.add(1, 0, b"id 1", bytes((1,)) * 16) == 0
    assert (ids.current, ids.spare, ids.retiring) == (b"id 2", [b"id 3"], [])


def test_another_address_in_the_handshake_is_the_owners_to_judge():
    rig = Rig()
    hellos = []
    rig.up.drop = lambda data: not hellos.append(data) and False
    rig.run(lambda: rig.server.connection is not None)
    server = rig.server.connection
    server.receive(hellos[0] + hellos[0], 1_200, (CLIENT[0], 40_001), None, rig.now)
    assert rig.server.strays == [(hellos[0], (CLIENT[0], 40_001))], "once for all that were read"
    rig.connect()
    server.receive(hellos[0], 0, (CLIENT[0], 40_001), None, rig.now)
    assert len(rig.server.strays) == 1 and server.phase == OPEN


@pytest.mark.parametrize("cut", [1, 13, 20, 32, 33])
def test_a_read_whose_end_is_cut_short(cut):
    rig = Rig().connect()
    rig.run(limit_s=0.5)
    flow, pieces = packets_of(rig, noise(5_000))
    server = rig.server.connection
    server.receive(b"".join(pieces[:3]) + pieces[3][:cut], len(pieces[0]), CLIENT, None, rig.now)
    got = rig.server.app.data[flow.id]
    assert len(got) > 3_000 and noise(5_000).startswith(got)
    server.receive(pieces[2] + pieces[3], len(pieces[0]), CLIENT, None, rig.now)
    assert rig.server.app.data[flow.id] == noise(5_000), "nothing of the short end is left over"


def test_packets_of_a_stream_are_full_whatever_its_offset():
    """Of one size they leave in one system call; the header of a frame grows with its offset."""
    rig = Rig().connect()
    rig.run(limit_s=0.5)
    _, pieces = packets_of(rig, noise(36_000))
    assert {len(piece) for piece in pieces[:-1]} == {rig.client.connection.path.mtu.size}
