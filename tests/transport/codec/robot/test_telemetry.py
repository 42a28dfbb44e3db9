"""Telemetry from the robot to where it ends: what is passed on, what is collected, what is dropped and counted."""

import pytest

from router.errors import Kind, ProxyError, Source
from router.transport.codec.robot import wire
from router.transport.codec.robot.client import LEAVING
from router.transport.codec.robot.ending import OPEN
from router.transport.codec.robot.limits import MAX_TELEMETRY_WAITING, TELEMETRY_BURST, TELEMETRY_RATE
from tests.transport.codec.robot.lanekit import Lanes
from tests.transport.codec.robot.robotkit import Robot

OUTCOMES = ("relayed", "collected", "unused", "dropped_rate", "dropped_lanes", "dropped_collector")


class Collector:
    """What the operator has, while `takes`."""

    def __init__(self, *, takes=True):
        self.takes = takes
        self.got = []

    def __call__(self, session, authority, sequence, payload, now):
        self.got.append((session, authority, sequence, payload))
        return self.takes


def outcomes(rig):
    """Return every count that is not 0; they add up to what arrived."""
    counters = rig.session.counters
    found = {name: getattr(counters, f"robot_telemetry_{name}") for name in OUTCOMES}
    assert sum(found.values()) == counters.robot_telemetry_in
    return {name: number for name, number in found.items() if number}


def send(robot, *payloads, first=1):
    for number, payload in enumerate(payloads, first):
        assert robot.client.connection.send_datagram(wire.telemetry(number, payload))
    robot.run(limit_s=0.1)


class TestWhereItEnds:
    @pytest.mark.parametrize("sequence", [1, 63, 64, 16_384, (1 << 62) - 1])
    def test_the_collector_gets_session_authority_sequence_and_payload(self, sequence):
        collector = Collector()
        robot = Robot(collect=collector).welcome()
        send(robot, b"", b"40 C", first=sequence) if sequence < 1 << 20 else send(robot, b"", first=sequence)
        session = dict(robot.heard)[wire.WELCOME].session
        assert collector.got[0] == (session, b"robots.test", sequence, b"")
        assert collector.got[1:] in ([], [(session, b"robots.test", sequence + 1, b"40 C")])
        assert outcomes(robot) == {"collected": len(collector.got)}
        assert robot.ended is None

    def test_nobody_collects(self):
        robot = Robot().welcome()
        send(robot, b"x", b"y")
        assert outcomes(robot) == {"unused": 2}

    def test_a_collector_that_takes_nothing(self):
        robot = Robot(collect=Collector(takes=False)).welcome()
        send(robot, b"x")
        assert outcomes(robot) == {"dropped_collector": 1}

    def test_before_welcome_nobody_knows_whose_it_is(self):
        collector = Collector()
        robot = Robot(auto=False, collect=collector)
        robot.hello()
        send(robot, b"early")
        assert (collector.got, outcomes(robot)) == ([], {"unused": 1})
        robot.replica.accept()
        send(robot, b"now", first=2)
        assert [told[2:] for told in collector.got] == [(2, b"now")], "nothing was kept"

    def test_between_two_replicas(self):
        collector = Collector()
        robot = Robot(collect=collector).welcome()
        robot.auto = False
        robot.replica.close(1012)
        robot.run(limit_s=0.1)
        assert len(robot.replicas) == 2
        send(robot, b"x")
        assert outcomes(robot) == {"collected": 1}

    def test_by_post_nobody_has_let_it_in_before_a_replica_has_answered(self):
        """WELCOME comes before anybody has looked at credentials: a stranger has one, too."""
        collector = Collector()
        robot = Robot(collect=collector).welcome(upstream="post")
        send(robot, b"whose?")
        robot.state(b"observation")
        assert robot.run(lambda: robot.replicas and robot.replica.messages, limit_s=1)
        send(robot, b"still", first=2)
        assert (collector.got, outcomes(robot)) == ([], {"unused": 2})
        robot.replica.answer(b"action")
        send(robot, b"now", first=3)
        assert [told[2:] for told in collector.got] == [(3, b"now")]
        robot.state(b"another")
        assert robot.run(lambda: len(robot.replicas) == 2 and robot.replica.messages, limit_s=1)
        robot.replica.answer(b"no", 503)
        send(robot, b"and on", first=4)
        assert [told[2] for told in collector.got] == [3, 4], "who was let in stays so between two replicas"

    def test_by_post_who_is_refused_has_told_the_collector_nothing(self):
        collector = Collector()
        robot = Robot(collect=collector).welcome(upstream="post")
        robot.state(b"observation")
        assert robot.run(lambda: robot.replicas and robot.replica.messages, limit_s=1)
        send(robot, b"x")
        robot.replica.answer(b"no", 401)
        send(robot, b"y", first=2)
        assert collector.got == []
        assert robot.run(lambda: robot.ended is not None, limit_s=5)


class TestEarlyData:
    """What came before the handshake was complete may be a replay: of another session, for all that is known."""

    def again(self, **kwargs):
        first = Robot().welcome()
        first.run(lambda: first.tickets, limit_s=1.0)

        def change(config):
            config.ticket = first.tickets[-1]

        def server_change(config):
            config.tickets = first.server_config.tickets
            config.identities = first.server_config.identities

        return Robot(change=change, server_change=server_change, **kwargs)

    @pytest.mark.parametrize("completes", [False, True])
    def test_it_is_told_to_nobody(self, completes):
        collector = Collector()
        robot = self.again(collect=collector)
        robot.hello()
        robot.down.drop = lambda _: True
        assert robot.run(lambda: robot.replicas and robot.session.phase == OPEN, limit_s=1)
        robot.client.connection.max_peer_datagram = 1_200  # other clients remember what a server takes (RFC 9221 §3)
        send(robot, b"early")
        assert not robot.session.is_connected
        assert (collector.got, outcomes(robot)) == ([], {"unused": 1})
        if completes:
            robot.down.drop = None
            assert robot.run(lambda: robot.session.is_connected, limit_s=5)
            send(robot, b"now", first=2)
            assert [told[2:] for told in collector.got] == [(2, b"now")]


class TestRate:
    def test_a_kilohertz_passes(self):
        collector = Collector()
        robot = Robot(collect=collector).welcome()
        for number in range(200):
            send_at = robot.now
            for k in range(5):
                assert robot.client.connection.send_datagram(wire.telemetry(5 * number + k + 1, b"x"))
            robot.run(limit_s=send_at + 0.005 - robot.now)
        robot.run(limit_s=0.1)
        assert [told[2] for told in collector.got] == list(range(1, 1_001))

    def test_of_a_flood_the_rate_passes_however_many_come(self):
        """Each that is refused costs nothing, or a robot that sends a little too fast would be silenced for good."""
        collector = Collector()
        robot = Robot(collect=collector).welcome()
        flood = int(TELEMETRY_BURST) + 5_000
        for number in range(flood):
            robot.session.datagram(wire.telemetry(number + 1, b"x"))
        assert outcomes(robot) == {"collected": TELEMETRY_BURST, "dropped_rate": 5_000}
        began_s = robot.session.bearer.now
        robot.run(limit_s=0.25)
        robot.state(b"anything")
        robot.run(limit_s=0.1)
        passed = (robot.session.bearer.now - began_s) * TELEMETRY_RATE
        for number in range(1_000):
            robot.session.datagram(wire.telemetry(flood + number + 1, b"x"))
        assert len(collector.got) == pytest.approx(TELEMETRY_BURST + min(TELEMETRY_BURST, passed), abs=2)
        assert robot.ended is None


class TestByLanes:
    def lanes(self, **kwargs):
        self.collector = Collector()
        return Lanes(collect=self.collector, is_sidecar=True, **kwargs).opened()

    def test_the_sidecar_gets_it_as_the_robot_sent_it(self):
        lanes = self.lanes()
        assert lanes.tunnel.takes_datagrams()
        for number in (7, 9, 10_000):
            assert lanes.tunnel.send_datagram(wire.telemetry(number, b"%d" % number))
        lanes.run(limit_s=0.1)
        own = lanes.continuity.id, b"robots.test"
        assert self.collector.got == [(*own, 7, b"7"), (*own, 9, b"9"), (*own, 10_000, b"10000")]
        assert outcomes(lanes) == {"collected": 3}

    def test_the_router_says_which_session_it_is(self):
        lanes = self.lanes()
        assert lanes.session.counters.seen.id == lanes.continuity.id

    def test_it_waits_behind_nothing(self):
        """Commands that the engine does not take hold it up as little as it holds up anything."""
        lanes = self.lanes()
        lanes.tunnel.hold(2)
        assert lanes.tunnel.is_full()
        assert lanes.tunnel.send_datagram(wire.telemetry(1, b"x"))
        lanes.run(limit_s=0.1)
        assert len(self.collector.got) == 1

    def test_no_queue_grows_and_pings_keep_their_place(self):
        lanes = self.lanes()
        bearer = lanes.stream.application._bearer
        taken = [lanes.tunnel.send_datagram(wire.telemetry(n + 1, bytes(200))) for n in range(1_000)]
        assert taken == [True] * MAX_TELEMETRY_WAITING + [False] * (1_000 - MAX_TELEMETRY_WAITING)
        waiting = list(bearer.datagrams_out)
        for _ in range(64):
            assert bearer.send_datagram(b"ping")
        assert list(bearer.datagrams_out)[: len(waiting)] == waiting
        lanes.run(limit_s=1.0)
        assert [told[2] for told in self.collector.got] == list(range(1, MAX_TELEMETRY_WAITING + 1))
        assert lanes.tunnel.send_datagram(wire.telemetry(1_001, b"x")), "there is room again"

    def test_what_is_larger_than_the_second_path_takes(self):
        lanes = self.lanes()
        assert not lanes.tunnel.send_datagram(wire.telemetry(1, bytes(60_000)))
        assert lanes.tunnel.send_datagram(wire.telemetry(2, b"x"))

    def test_none_goes_to_a_sidecar_that_is_left(self):
        lanes = self.lanes()
        lanes.tunnel.close(1_000)
        assert not lanes.tunnel.takes_datagrams()
        assert not lanes.tunnel.send_datagram(wire.telemetry(1, b"x"))
        assert lanes.stream.application.phase >= LEAVING
        assert not lanes.stream.send_datagram(wire.telemetry(1, b"x"))
        lanes.stream.reset(ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM))
        assert not lanes.stream.send_datagram(wire.telemetry(1, b"x"))

    def test_none_goes_before_the_sidecar_is_there(self):
        lanes = Lanes(auto=False)
        assert lanes.run(lambda: lanes.replicas)
        assert not lanes.tunnel.takes_datagrams()

    def test_none_goes_to_a_sidecar_that_collects_none(self):
        lanes = Lanes(is_sidecar=True).opened()
        assert not lanes.tunnel.takes_datagrams()
        lanes.send_command(b"by lanes all the same")
        lanes.run(limit_s=0.1)
        assert lanes.replica.messages


class TestWelcome:
    @pytest.mark.parametrize("collect", [None, Collector()])
    def test_it_says_whether_telemetry_is_kept(self, collect):
        robot = Robot(collect=collect).welcome()
        assert dict(robot.heard)[wire.WELCOME].collects is (collect is not None)


class TestWhoseItIs:
    @pytest.mark.parametrize(
        ("is_sidecar", "hello", "is_believed"),
        [
            (True, {"relayed": True, "session": "0123456789abcdef"}, True),
            (False, {"relayed": True, "session": "0123456789abcdef"}, False),
            (True, {"session": "0123456789abcdef"}, False),
            (True, {"relayed": True}, False),
        ],
        ids=["a router to a sidecar", "to a router", "a robot", "an older router"],
    )
    def test_who_may_say_so(self, is_sidecar, hello, is_believed):
        collector = Collector()
        robot = Robot(is_sidecar=is_sidecar, collect=collector).welcome(**hello)
        send(robot, b"x")
        own = dict(robot.heard)[wire.WELCOME].session
        assert own not in ("", "0123456789abcdef"), "nobody is given a token for it"
        session = "0123456789abcdef" if is_believed else own
        assert collector.got[0][0] == robot.session.counters.seen.id == session

    @pytest.mark.parametrize("session", ["a" * 65, "../x", "a b", "ä", "a\n", 5, None])
    def test_what_is_no_id(self, session):
        robot = Robot(is_sidecar=True)
        robot.hello(relayed=True, session=session)
        assert robot.run(lambda: robot.ended is not None)
        assert robot.ended == wire.BROKEN
