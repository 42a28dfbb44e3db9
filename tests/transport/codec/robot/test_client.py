"""The robot's client against the router's side, over two engines in memory and a link as bad as a test wants."""

import pytest

from router.transport.codec.robot import control, wire
from router.transport.codec.robot.client import OVER
from router.transport.codec.robot.limits import CONTROL_BURST, GOODBYE_S
from tests.transport.codec.quic.rig import Link
from tests.transport.codec.robot.clientkit import Pair


def noise(size, seed=0):
    return bytes((n * 31 + seed * 7) & 0xFF for n in range(size))


def frame(kind, body):
    return wire.write_frame(kind, body)


class Overheard:
    """A bearer that counts the PONGs that go by DATAGRAM."""

    def __init__(self, bearer):
        self._bearer = bearer
        self.pongs = 0

    def __getattr__(self, name):
        return getattr(self._bearer, name)

    def send_datagram(self, data):
        self.pongs += data[:1] == b"\x03"
        return self._bearer.send_datagram(data)


class TestSession:
    @pytest.mark.parametrize("bytewise", [False, True])
    def test_hello_lanes_and_goodbye(self, bytewise):
        rig = Pair(bytewise=bytewise, client_bytewise=bytewise, hello=control.Hello("robots.test", "/p", [("X-A", "1")]))
        rig.welcomed()
        assert rig.welcomes[0].epoch == 1
        assert rig.welcomes[0].replica == "r1"
        assert rig.replica.head.shape.path == b"/p"
        rig.replica.binary(b"metadata")
        assert rig.run(lambda: rig.messages == [(wire.COMMAND, 0, b"metadata")])
        assert rig.state_in(noise(20_000))
        assert rig.command_in(b"first")
        assert rig.command_in(b"second", is_text=True)
        assert rig.run(lambda: len(rig.replica.messages) == 3)
        assert sorted(rig.replica.messages, key=len) == [b"first", "second", noise(20_000)]
        rig.replica.binary(b"reply 1")
        rig.replica.text("a traceback")
        assert rig.run(lambda: len(rig.messages) == 3)
        assert (wire.STATE, 1, b"reply 1") in rig.messages
        assert (wire.COMMAND, 0, "a traceback") in rig.messages
        rig.robot.leave(rig.now)
        assert rig.run(lambda: rig.closed is not None)
        assert rig.closed == (1_000, "", True, None)
        assert rig.replica.closed == 1_000
        assert rig.counters.robot_faults == 0

    def test_replies_on_the_command_lane(self):
        rig = Pair(hello=control.Hello("robots.test", replies="command")).welcomed()
        for number in range(5):
            rig.replica.binary(b"%d" % number)
        assert rig.run(lambda: len(rig.messages) == 5)
        assert rig.messages == [(wire.COMMAND, 0, b"%d" % number) for number in range(5)]

    def test_a_refusal_is_told_with_all_it_says(self):
        rig = Pair(auto=False)
        rig.run(lambda: rig.replicas)
        rig.replica.refuse(503, "no_replica", 7, b"there is none")
        assert rig.run(lambda: rig.closed is not None)
        code, _, by_peer, refused = rig.closed
        assert (code, by_peer) == (1_013, True)
        assert (refused.code, refused.status, refused.message, refused.retry_after_s) == ("no_replica", 503, "there is none", 7)

    def test_a_replica_goes_and_the_next_is_told(self):
        rig = Pair().welcomed()
        rig.replica.close(1_012)
        assert rig.run(lambda: rig.epochs)
        assert (rig.epochs[0].epoch, rig.epochs[0].replica) == (2, "r2")
        assert rig.command_in(b"for the second")
        assert rig.run(lambda: rig.replicas[1].messages == [b"for the second"])

    def test_the_routers_end_is_told(self):
        rig = Pair().welcomed()
        rig.replica.close(4_001, "battery")
        assert rig.run(lambda: rig.closed is not None)
        assert rig.closed[:3] == (4_001, "battery", True)

    def test_a_lost_connection_is_told(self):
        rig = Pair(change=lambda config: setattr(config, "idle_s", 3.0)).welcomed()
        rig.down.drop = lambda data: True
        assert rig.run(lambda: rig.closed is not None)
        assert rig.closed[:3] == (0, "idle", False)
        assert not rig.state_in(b"x")
        assert not rig.command_in(b"x")
        assert not rig.robot.send_telemetry(b"x")

    def test_a_message_sent_before_the_welcome_is_kept_by_the_router(self):
        rig = Pair(auto=False, early=b"first of all")
        rig.run(lambda: rig.replicas)
        rig.replica.accept()
        assert rig.run(lambda: rig.replica.messages == [b"first of all"])

    def test_the_first_message_of_a_resumption_leaves_with_the_first_packets(self):
        """One way after HELLO, where a fresh connection takes another round trip."""
        first = Pair()
        first.welcomed()
        first.run(lambda: first.tickets, limit_s=1.0)

        def again(config):
            config.ticket = first.tickets[-1]

        took = {}
        for name, change in (("fresh", None), ("resumed", again)):
            rig = Pair(
                Link(0.05), Link(0.05), change=change, early=b"now",
                server_change=lambda config: setattr(config, "tickets", first.server_config.tickets),
            )
            began_s = rig.now
            assert rig.run(lambda: rig.replicas and rig.replica.messages == [b"now"])
            took[name] = rig.now - began_s
        assert took["resumed"] == pytest.approx(0.05, abs=0.002)
        assert took["fresh"] == pytest.approx(0.15, abs=0.002)

    def test_early_commands_wait_for_the_handshake_and_come_once(self):
        first = Pair()
        first.welcomed()
        first.run(lambda: first.tickets, limit_s=1.0)
        rig = Pair(
            Link(0.05), Link(0.05), change=lambda config: setattr(config, "ticket", first.tickets[-1]),
            server_change=lambda config: setattr(config, "tickets", first.server_config.tickets),
        )
        assert rig.command_in(b"go")
        began_s = rig.now
        assert rig.run(lambda: rig.replicas and rig.replica.messages)
        assert rig.now - began_s >= 0.149
        assert rig.replica.messages == [b"go"]

    def test_a_message_too_large_is_the_callers_fault(self):
        rig = Pair().welcomed()
        with pytest.raises(ValueError, match="at most 16777216"):
            rig.state_in(bytes(wire.MAX_MESSAGE_BYTES + 1))


class TestGoodbye:
    def test_no_command_is_lost_by_it(self):
        """A tenth of all packets is lost, the goodbye follows at once: BYE waits until the lane is acknowledged."""
        for seed in range(10):
            rig = Pair(Link(0.02, loss=0.1, seed=seed), Link(0.02, loss=0.1, seed=seed + 50)).welcomed()
            for number in range(50):
                assert rig.command_in(b"%d" % number + bytes(3_000))
            rig.robot.leave(rig.now)
            assert not rig.command_in(b"too late")
            assert rig.run(lambda: rig.closed is not None)
            assert len(rig.replica.messages) == 50
            assert rig.closed[0] == 1_000

    def test_a_router_that_does_not_answer_is_left(self):
        rig = Pair().welcomed()
        rig.down.drop = lambda data: True
        began_s = rig.now
        rig.robot.leave(rig.now)
        assert rig.run(lambda: rig.closed is not None)
        assert rig.closed[:3] == (1_000, "", False)
        assert rig.now - began_s == pytest.approx(2 * GOODBYE_S, abs=0.1)

    def test_before_the_welcome_it_is_at_once(self):
        rig = Pair(auto=False)
        rig.run(lambda: rig.replicas)
        rig.robot.leave(rig.now)
        assert rig.closed[0] == 1_000


class TestNewestWins:
    def test_only_the_newest_of_a_burst_is_sent(self):
        rig = Pair(change=lambda config: setattr(config, "initial_window", 40_000)).welcomed()
        for number in range(20):
            rig.state_in(b"%02d" % number + bytes(200_000))
        assert rig.run(lambda: rig.replica.messages and rig.replica.messages[-1][:2] == b"19")
        assert len(rig.replica.messages) <= 2
        assert rig.meter.stale >= 18

    def test_a_link_too_slow_for_them_delivers_some_all_the_same(self):
        """100 KB each 20 ms where a message takes several of them: resetting each would deliver none."""
        rig = Pair(Link(0.025), Link(0.025), change=lambda config: setattr(config, "initial_window", 30_000)).welcomed()
        rig.up.loss = 0.02
        begin_s = rig.now
        rig.at([begin_s + n * 0.02 for n in range(200)], lambda n: rig.state_in(b"%03d" % n + bytes(100_000)))
        rig.run(limit_s=1.0)
        numbers = [int(message[:3]) for message in rig.replica.messages]
        assert len(numbers) >= 10
        assert numbers == sorted(set(numbers))
        assert numbers[-1] >= 198

    def test_messages_faster_than_a_round_trip_arrive_though_packets_are_lost(self):
        """250 packets each, 1 % lost, a message each 20 ms, a round trip of 50: most need a retransmission."""
        rig = Pair(Link(0.025, loss=0.01), Link(0.025), change=lambda config: setattr(config, "initial_window", 4 << 20)).welcomed()
        begin_s = rig.now
        rig.at([begin_s + n * 0.02 for n in range(50)], lambda n: rig.state_in(b"%03d" % n + bytes(100_000)))
        rig.run(limit_s=1.0)
        assert len(rig.replica.messages) >= 15

    def test_stale_replies_are_not_delivered(self):
        rig = Pair(Link(0.01), Link(0.01, jitter_s=0.05, loss=0.05, seed=4)).welcomed()
        rig.replica.binary(b"metadata")
        begin_s = rig.now
        rig.at([begin_s + n * 0.01 for n in range(100)], lambda n: rig.replica.binary(noise(5_600, n)))
        rig.run(limit_s=1.0)
        sequences = [sequence for lane, sequence, _ in rig.messages if lane == wire.STATE]
        assert sequences == sorted(set(sequences))
        assert rig.messages[-1][2] == noise(5_600, 99)
        assert len(sequences) < 100
        assert rig.meter.stale > 0


class TestDeadlines:
    def test_what_is_late_does_not_begin(self):
        rig = Pair().welcomed()
        past = int((rig.now - 0.001) * 1e6)
        assert not rig.state_in(b"x", past)
        assert not rig.command_in(b"x", past)
        assert rig.meter.late == 2

    def test_what_becomes_late_on_the_way_is_given_up(self):
        rig = Pair(change=lambda config: setattr(config, "initial_window", 20_000)).welcomed()
        rig.run(limit_s=2.0)
        rig.state_in(bytes(2_000_000), int((rig.now + 0.05) * 1e6))
        rig.run(limit_s=3.0)
        assert rig.replica.messages == []
        assert rig.meter.late == 1
        assert rig.client.connection.unsent_bytes() == 0

    def test_the_router_drops_what_comes_late(self):
        """By its own measurement of how far the clocks are apart: here they are the same."""
        rig = Pair(Link(0.05), Link(0.05)).welcomed()
        rig.run(limit_s=2.0)
        assert rig.state_in(b"in time", int((rig.now + 0.06) * 1e6))
        rig.run(limit_s=1.0)
        assert rig.state_in(b"late", int((rig.now + 0.04) * 1e6))
        assert rig.command_in(b"late, too", int((rig.now + 0.04) * 1e6))
        rig.run(limit_s=1.0)
        assert rig.replica.messages == [b"in time"]
        assert rig.counters.robot_late_in >= 1

    def test_a_late_reply_is_dropped(self):
        """Routers set no deadlines yet; who does is obeyed, once the clocks are compared."""
        rig = Pair(Link(0.05), Link(0.05)).welcomed()
        rig.run(limit_s=2.0)
        out = rig.session.state_out
        now_us = int(rig.now * 1e6)
        out.send(b"late", now_us + 40_000)
        rig.run(limit_s=0.5)
        out.send(b"in time", int((rig.now + 0.06) * 1e6))
        rig.run(limit_s=0.5)
        assert rig.messages == [(wire.STATE, 2, b"in time")]
        assert rig.meter.late == 1 or rig.session.state_out.late == 1


class TestLink:
    def test_pings_go_by_datagram_and_tell_of_loss(self):
        rig = Pair(Link(0.02, loss=0.05, seed=3), Link(0.02, loss=0.05, seed=9)).welcomed()
        rig.run(limit_s=30.0)
        meter = rig.meter
        assert meter.answered > 100
        assert meter.rtt_s == pytest.approx(0.04, abs=0.002)
        assert 0.03 < meter.loss < 0.2  # two ways of 5 %: 9.75 %
        assert meter.lost > 5
        assert len(rig.pongs) == meter.answered
        assert meter.clock.is_known
        assert abs(meter.clock.offset_us) < 2_000

    def test_without_loss_none_is_lost(self):
        rig = Pair().welcomed()
        rig.run(limit_s=20.0)
        assert rig.meter.loss == 0.0
        assert rig.meter.jitter_s < 0.001

    def test_where_no_datagrams_go_pings_go_by_stream(self):
        rig = Pair(server_change=lambda config: setattr(config, "datagram_bytes", 0)).welcomed()
        rig.run(limit_s=5.0)
        assert 3 <= rig.meter.answered <= 7
        assert rig.meter.loss == 0.0
        assert rig.closed is None

    def test_reports_reach_the_routers_histograms(self):
        rig = Pair(Link(0.02), Link(0.02)).welcomed()
        rig.replica.binary(b"metadata")
        for _ in range(30):
            rig.state_in(b"x")
            rig.replica.binary(b"y")
            rig.run(limit_s=0.1)
        assert sum(rig.counters.robot_rtt.counts) >= 2
        assert 0.03 < rig.counters.robot_rtt.sum_s / sum(rig.counters.robot_rtt.counts) < 0.05
        assert rig.counters.robot_gap.sum_s > 0.1

    def test_telemetry_is_counted(self):
        rig = Pair().welcomed()
        assert rig.robot.send_telemetry(b"42 C")
        assert not rig.robot.send_telemetry(bytes(65_000))
        rig.run(limit_s=1.0)
        assert rig.counters.robot_telemetry_in == 1


class TestAddressChange:
    def test_commands_go_on_within_two_round_trips_and_none_is_lost(self):
        rig = Pair(Link(0.025), Link(0.025)).welcomed()
        rig.run(limit_s=1.0)
        arrived_s = {}
        sent_s = {}

        def send(number):
            sent_s[number] = rig.now
            if number == 50:
                rig.client_address = ("203.0.113.9", 50_001)
                rig.client.connection.now = rig.now
                rig.client.connection.local_address_changed(b"")
            assert rig.command_in(b"%03d" % number)

        original = rig._act

        def act():
            original()
            for message in rig.replica.messages:
                arrived_s.setdefault(int(message), rig.now)

        rig._act = act
        begin_s = rig.now
        rig.at([begin_s + n * 0.01 for n in range(100)], send)
        rig.run(limit_s=1.0)
        assert [int(message) for message in rig.replica.messages] == list(range(100))
        assert max(arrived_s[n] - sent_s[n] for n in range(100)) <= 0.1
        assert rig.closed is None
        assert rig.server.connection.migrations == 1


class TestHostile:
    """What a router must not do: the connection ends with the right code."""

    def say(self, rig, data):
        rig.session.control.send(data, False)
        rig.run(lambda: rig.closed is not None, limit_s=5.0)
        return rig.closed

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (frame(wire.WELCOME, b"\xc1"), 1_002),
            (control.encode(control.Welcome("again", 1)), 1_002),
            (control.encode(control.Hello("me")), 1_002),
            (control.encode(control.Bye()), 1_002),
            (b"\x11" + (0x8000_0000 | 20_000).to_bytes(4, "big"), 1_009),
            (control.encode(control.Ping(1, 1)) * (int(CONTROL_BURST) + 10), 1_008),
        ],
    )
    def test_on_the_control_stream(self, data, code):
        rig = Pair().welcomed()
        assert self.say(rig, data)[:1] == (code,)
        assert not rig.closed[2]
        assert rig.robot.phase == OVER

    def test_unknown_frames_are_ignored(self):
        rig = Pair().welcomed()
        assert self.say(rig, frame(0x77, b"what?")) is None

    def test_epoch_before_welcome(self):
        rig = Pair(auto=False)
        rig.run(lambda: rig.replicas)
        assert self.say(rig, control.encode(control.Epoch(2)))[0] == 1_002

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"\x05\x02\x00hello", 1_002),
            (b"\x02\x01\x00\xff\xff", 1_007),
            ((0xC000_0000_0000_0000 | wire.MAX_MESSAGE_BYTES + 1).to_bytes(8, "big") + b"\0\0", 1_009),
        ],
    )
    def test_on_the_command_lane(self, data, code):
        rig = Pair().welcomed()
        rig.session.command_out.flow.send(data, False)
        assert rig.run(lambda: rig.closed is not None)
        assert rig.closed[0] == code

    @pytest.mark.parametrize("data", [b"X", b"S\0\0", b"S\x01"])
    def test_a_reply_that_is_none(self, data):
        rig = Pair().welcomed()
        rig.server.connection.open_stream(unidirectional=True).send(data, True)
        assert rig.run(lambda: rig.closed is not None)
        assert rig.closed[0] == 1_002

    def test_a_two_way_stream(self):
        rig = Pair().welcomed()
        rig.server.connection.open_stream(unidirectional=False).send(b"x", False)
        assert rig.run(lambda: rig.closed is not None)
        assert rig.closed[0] == 1_002

    @pytest.mark.parametrize("which", ["control", "command"])
    def test_a_lane_that_is_reset(self, which):
        rig = Pair().welcomed()
        rig.replica.binary(b"metadata")
        rig.run(limit_s=0.5)
        (rig.session.control if which == "control" else rig.session.command_out.flow).reset(7)
        assert rig.run(lambda: rig.closed is not None)
        assert rig.closed[0] == 1_002

    def test_datagrams_that_are_nothing_are_ignored(self):
        rig = Pair().welcomed()
        for data in (b"", b"\x02", b"\x03\xc1", b"\x03" + b"\x81" * 900, b"\x11\x80", b"T\x01x"):
            rig.server.connection.send_datagram(data)
        rig.run(limit_s=1.0)
        assert rig.closed is None

    def test_a_flood_of_pings_is_answered_within_bounds(self):
        rig = Pair().welcomed()
        said = rig.robot._bearer = Overheard(rig.robot._bearer)
        for number in range(10):
            for _ in range(200):
                rig.server.connection.send_datagram(control.encode_datagram(control.Ping(number, 1)))
            rig.run(limit_s=0.01)
        assert 60 <= said.pongs <= 80
        assert rig.closed is None


class TestServerPings:
    """PINGs in DATAGRAMs at the router's side: answered as they came, within a bound, ignored if malformed."""

    def rig(self):
        rig = Pair().welcomed()
        rig.robot.ping_every_s = 1_000.0
        rig.run(limit_s=1.0)
        return rig

    def test_more_than_the_bound_stay_without_an_answer(self):
        rig = self.rig()
        said = rig.session.bearer = Overheard(rig.session.bearer)
        for _ in range(200):
            rig.client.connection.send_datagram(control.encode_datagram(control.Ping(1, 1)))
        rig.run(limit_s=0.5)
        assert 64 <= said.pongs <= 80
        assert rig.closed is None

    def test_a_stream_ping_is_answered_on_the_stream(self):
        rig = self.rig()
        said = rig.session.bearer = Overheard(rig.session.bearer)
        rig.robot._say(rig.meter.ask(rig.now, may_be_lost=False))
        before = rig.meter.answered
        assert rig.run(lambda: rig.meter.answered == before + 1)
        assert said.pongs == 0

    def test_malformed_ones_are_ignored(self):
        rig = self.rig()
        for data in (b"\x02", b"\x02\x80", b"\x02\xc1", b"\x02" + b"\x91" * 1_000, b"\x04\x80", b""):
            rig.client.connection.send_datagram(data)
        rig.run(limit_s=1.0)
        assert rig.closed is None
        assert rig.counters.robot_faults == 0


def test_a_session_without_a_hello_stream_waits_for_it():
    """A router that allows no streams at first gets HELLO when it allows them."""
    rig = Pair(server_change=lambda config: setattr(config, "max_streams", 1))
    rig.run(limit_s=1.0)
    assert rig.welcomes
    assert not rig.command_in(b"there is no lane")
