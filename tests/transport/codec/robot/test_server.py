"""The router's side of a robot's session, over two engines in memory: each rule of `router/client/PROTOCOL.md`."""

import pytest

from router.errors import WIRE, Kind, ProxyError, Source
from router.transport.codec.robot import limits, wire
from router.transport.codec.robot.ending import ENDING, OVER
from tests.transport.codec.quic.rig import Link
from tests.transport.codec.robot.robotkit import RESET, Robot

DRAIN = ProxyError(Kind.DRAINING, Source.ROUTER)


@pytest.fixture(params=[False, True], ids=["whole", "bytewise"])
def robot(request):
    return Robot(bytewise=request.param)


class TestHello:
    def test_becomes_a_request_and_a_welcome(self, robot):
        robot.hello(path="/policy?a=b", headers=[("Authorization", "Api-Key k"), ("X-Router-Session", "s")])
        robot.welcome()
        shape = robot.replica.head.shape
        assert (shape.authority, shape.path, shape.upgrade) == (b"robots.test", b"/policy?a=b", b"websocket")
        assert shape.authorization == b"Api-Key k"
        assert shape.known[b"x-router-session"] == b"s"
        assert shape.version == b"ROBOT/1"
        ((_, welcome),) = robot.heard
        assert (welcome.epoch, welcome.replica, welcome.max_message_bytes) == (1, "r1", wire.MAX_MESSAGE_BYTES)
        assert len(welcome.session) == 16
        assert robot.counters.robot_sessions == robot.counters.robot_sessions_open == 1

    def test_leaves_out_what_is_between_the_router_and_the_replica(self, robot):
        robot.hello(headers=[("Sec-WebSocket-Extensions", "permessage-deflate"), ("sec-websocket-protocol", "p")])
        robot.welcome()
        assert [name for name, _ in robot.replica.head.shape.fields] == [b"sec-websocket-protocol"]

    @pytest.mark.parametrize(
        "hello",
        [
            {"headers": [(":path", "/other")]},
            {"headers": [("bad name", "x")]},
            {"headers": [("x", "a\r\nb: c")]},
            {"headers": [("connection", "close")]},
            {"headers": [("host", "other.test")]},
            {"path": "no-slash"},
            {"authority": ""},
            {"authority": "a b"},
        ],
        ids=str,
    )
    def test_that_makes_no_request_is_refused_by_the_rules_of_http(self, robot, hello):
        robot.hello(**hello)
        assert robot.run(lambda: robot.ended is not None)
        ((kind, refused),) = robot.heard
        assert (kind, refused.code, refused.status) == (wire.REFUSED, "bad_request", 400)
        assert robot.ended == WIRE[Kind.BAD_REQUEST].close_code
        assert [error.kind for error in robot.refusals] == [Kind.BAD_REQUEST]
        assert not robot.replicas
        assert robot.counters.robot_sessions_open == 0

    def test_is_waited_for_so_long(self, robot):
        robot.connect()
        began_s = robot.now
        assert robot.run(lambda: robot.ended is not None)
        assert robot.ended == WIRE[Kind.REQUEST_TIMEOUT].close_code
        assert limits.HELLO_LIMIT_S - 0.1 <= robot.now - began_s <= limits.HELLO_LIMIT_S + 0.1

    def test_comes_once(self, robot):
        robot.welcome().hello()
        assert robot.run(lambda: robot.ended is not None)
        assert robot.ended == wire.BROKEN
        assert robot.replica.closed == wire.GOING
        assert robot.counters.robot_sessions_open == 0
        assert robot.counters.robot_faults == 1

    def test_a_refusal_says_why_and_is_delivered_before_the_close(self, robot):
        robot.auto = False
        robot.hello()
        assert robot.run(lambda: robot.replicas)
        robot.replica.refuse(503, "no_replica", 3, b"later")
        assert robot.run(lambda: robot.ended is not None)
        ((kind, refused),) = robot.heard
        assert (kind, refused.code, refused.status, refused.retry_after_s) == (wire.REFUSED, "no_replica", 503, 3)
        assert refused.message == "later"
        assert robot.ended == wire.NO_ROOM
        assert robot.counters.robot_refused == 1

    def test_a_refusal_is_not_waited_for_beyond_the_goodbye(self, robot):
        robot.auto = False
        robot.hello()
        assert robot.run(lambda: robot.replicas)
        robot.down.drop = lambda _: True
        robot.replica.refuse(503, "no_replica")
        began_s = robot.now
        robot.run(lambda: robot.session.phase == OVER)
        assert robot.now - began_s == pytest.approx(limits.GOODBYE_S, abs=0.1)


class TestStateUp:
    def test_arrives(self, robot):
        robot.welcome()
        for payload in (b"one", b"", b"three" * 300):
            robot.state(payload)
            assert robot.run(lambda: robot.replica.messages[-1:] == [payload], limit_s=2)  # noqa: B023
        assert robot.counters.robot_state_in == 3

    def test_of_600_kb_fits_the_windows_again_and_again(self):
        robot = Robot().welcome()
        for k in range(30):
            payload = bytes((k,)) * 600_000
            robot.state(payload)
            assert robot.run(lambda: robot.replica.messages and robot.replica.messages.pop() == payload)  # noqa: B023

    def test_an_older_one_is_stopped_once_a_newer_one_is_whole(self, robot):
        robot.welcome()
        old = robot.state(b"old", end=False)
        robot.run(limit_s=0.1)
        robot.state(b"new")
        assert robot.run(lambda: robot.replica.messages == [b"new"])
        assert robot.run(lambda: ("stopped", old.id, wire.STALE) in robot.app.said)
        old.send(b" end", True)
        robot.run(limit_s=0.2)
        assert robot.replica.messages == [b"new"]
        assert robot.counters.robot_stale_in == 1

    def test_an_incomplete_newer_one_does_not_cost_the_older_one(self, robot):
        robot.welcome()
        old = robot.state(b"old", end=False)
        robot.state(b"new", end=False)
        robot.run(limit_s=0.1)
        old.send(b"", True)
        assert robot.run(lambda: robot.replica.messages == [b"old"])
        assert robot.counters.robot_stale_in == 0

    def test_an_older_one_that_comes_later_is_not_delivered(self, robot):
        robot.welcome()
        robot.state(b"new", sequence=7)
        robot.run(limit_s=0.1)
        robot.state(b"old", sequence=6)
        robot.state(b"same", sequence=7)
        robot.run(limit_s=0.1)
        assert robot.replica.messages == [b"new"]
        assert robot.counters.robot_stale_in == 2

    def test_given_up_by_the_robot_is_counted(self, robot):
        robot.welcome()
        robot.state(b"x", end=False).reset(wire.STALE)
        old = robot.state(b"y", end=False)
        robot.run(limit_s=0.1)
        old.reset(wire.STALE)
        robot.run(limit_s=0.1)
        assert robot.counters.robot_stale_in >= 1
        assert robot.ended is None

    def test_of_those_that_the_replica_does_not_take_only_the_newest_stays(self, robot):
        robot.welcome()
        robot.replica.stream.hold(1)
        for k in range(5):
            robot.state(b"%d" % k)
            robot.run(limit_s=0.1)
        assert robot.replica.messages == []
        robot.replica.stream.release(1)
        assert robot.run(lambda: robot.replica.messages == [b"4"])
        assert robot.counters.robot_stale_in == 4

    def test_before_the_welcome_waits_alone(self, robot):
        robot.auto = False
        robot.hello()
        for k in range(3):
            robot.state(b"%d" % k)
        robot.run(limit_s=0.2)
        robot.replica.accept()
        assert robot.run(lambda: robot.replica.messages == [b"2"])

    def test_before_the_welcome_gets_no_credit(self):
        robot = Robot(auto=False)
        robot.hello()
        flow = robot.state(b"x" * 3_000_000)
        robot.run(limit_s=1.0)
        assert flow.unsent_bytes > 1_900_000
        robot.replica.accept()
        assert robot.run(lambda: [len(one) for one in robot.replica.messages] == [3_000_000])

    def test_messages_before_the_welcome_that_were_whole_cost_no_credit_for_ever(self):
        robot = Robot(auto=False)
        robot.hello()
        robot.run(limit_s=0.1)
        for _ in range(12):  # more than the connection's window
            flow = robot.state(b"x" * 900_000)
            assert robot.run(lambda: not flow.unsent_bytes)  # noqa: B023
        robot.replica.accept()
        assert robot.run(lambda: [len(one) for one in robot.replica.messages] == [900_000])

    def test_incomplete_ones_are_bounded_together(self):
        robot = Robot().welcome()
        unknown = robot.client.connection.open_stream(unidirectional=True)
        unknown.send(b"S", False)
        flows = [robot.state(b"x" * 6_000_000, end=False) for _ in range(3)]
        assert robot.run(lambda: robot.counters.robot_stale_in == 1, limit_s=60)
        assert robot.session.state_in.gathered <= limits.MAX_GATHERED_BYTES
        assert robot.run(lambda: ("stopped", flows[0].id, wire.STALE) in robot.app.said)
        flows[2].send(b"", True)
        assert robot.run(lambda: len(robot.replica.messages) == 1, limit_s=60)
        unknown.send(b"\x09\x00newest", True)
        assert robot.run(lambda: robot.replica.messages[-1] == b"newest", limit_s=1)


class TestCommandsUp:
    def test_arrive_in_order_as_what_they_are(self, robot):
        robot.welcome()
        robot.order(b"\x00go")
        robot.order("grüß".encode(), is_text=True)
        robot.order(b"")
        robot.order(b"y" * 2_000)
        assert robot.run(lambda: len(robot.replica.messages) == 4)
        assert robot.replica.messages == [b"\x00go", "grüß", b"", b"y" * 2_000]
        assert robot.counters.robot_command_in == 4

    def test_wait_for_the_welcome(self, robot):
        robot.auto = False
        robot.hello()
        robot.order(b"a")
        robot.order(b"b")
        robot.run(limit_s=0.2)
        robot.replica.accept()
        assert robot.run(lambda: robot.replica.messages == [b"a", b"b"])

    def test_before_the_welcome_get_no_credit(self):
        robot = Robot(auto=False)
        robot.hello()
        for _ in range(40):
            robot.order(b"z" * 100_000)
        robot.run(limit_s=1.0)
        assert robot.command.unsent_bytes >= 2_900_000
        robot.replica.accept()
        assert robot.run(lambda: len(robot.replica.messages) == 40)

    def test_are_felt_by_the_robot_while_the_replica_takes_none_and_none_is_lost(self):
        robot = Robot().welcome()
        robot.replica.stream.hold(2)
        for k in range(60):
            robot.order(bytes((k,)) * 100_000)
        robot.run(limit_s=1.0)
        assert robot.command.unsent_bytes > 3_000_000
        assert robot.session.command_in.waiting_bytes <= limits.MAX_WAITING_BYTES + 1_048_576 + 200_000
        robot.replica.stream.release(2)
        assert robot.run(lambda: len(robot.replica.messages) == 60)
        assert [one[0] for one in robot.replica.messages] == list(range(60))

    def test_empty_ones_are_not_for_nothing(self):
        robot = Robot().welcome()
        robot.replica.stream.hold(2)
        robot.command.send(wire.command_header(0, 0, is_text=False) * 700_000, False)
        robot.run(limit_s=1.0)
        assert robot.command.unsent_bytes > 0

    def test_come_before_the_state_that_waits_with_them(self, robot):
        robot.welcome()
        robot.replica.stream.hold(1)
        robot.state(b"state")
        robot.order(b"command")
        robot.run(limit_s=0.1)
        robot.replica.stream.release(1)
        assert robot.run(lambda: robot.replica.messages == [b"command", b"state"])


class TestDeadlines:
    @pytest.mark.parametrize("skew_us", [0, 86_400_000_000, -600_000_000])
    def test_are_of_the_robots_clock_and_what_is_late_is_dropped(self, robot, skew_us):
        robot.skew_us = skew_us
        robot.welcome()
        robot.run(limit_s=2.5)  # some PINGs
        late, soon = robot.clock_us() + 5_000, robot.clock_us() + 500_000  # the link takes 10 ms
        robot.state(b"late", deadline=late)
        robot.order(b"late", deadline=late)
        robot.run(limit_s=0.1)
        assert robot.replica.messages == []
        robot.state(b"soon", deadline=soon)
        robot.order(b"soon", deadline=soon)
        assert robot.run(lambda: len(robot.replica.messages) == 2, limit_s=1)
        assert robot.counters.robot_late_in == 2

    def test_nothing_is_late_while_the_clock_is_not_known(self, robot):
        robot.answers_pings = False
        robot.welcome()
        robot.run(limit_s=2.5)
        robot.state(b"x", deadline=1)
        assert robot.run(lambda: robot.replica.messages == [b"x"], limit_s=1)
        assert robot.counters.robot_late_in == 0

    def test_hold_while_a_message_waits_for_the_replica(self, robot):
        robot.welcome()
        robot.run(limit_s=1.5)
        robot.replica.stream.hold(1)
        robot.state(b"s", deadline=robot.clock_us() + 100_000)
        robot.order(b"c", deadline=robot.clock_us() + 100_000)
        robot.order(b"ever")
        robot.run(limit_s=0.5)
        robot.replica.stream.release(1)
        assert robot.run(lambda: robot.replica.messages == [b"ever"], limit_s=1)
        robot.run(limit_s=0.1)
        assert robot.counters.robot_late_in == 2

    def test_a_late_message_does_not_cost_the_one_that_waits_in_time(self, robot):
        robot.welcome()
        robot.run(limit_s=1.5)
        robot.replica.stream.hold(1)
        robot.state(b"in time")
        robot.run(limit_s=0.1)
        robot.state(b"late", deadline=robot.clock_us() + 1)
        robot.run(limit_s=0.1)
        robot.replica.stream.release(1)
        assert robot.run(lambda: robot.replica.messages == [b"in time"], limit_s=1)
        assert robot.counters.robot_late_in == 1

    def test_what_is_late_already_is_stopped_before_it_is_whole(self, robot):
        robot.welcome()
        robot.run(limit_s=1.5)
        flow = robot.state(b"x" * 100, deadline=robot.clock_us() - 1_000_000, end=False)
        assert robot.run(lambda: ("stopped", flow.id, wire.STALE) in robot.app.said, limit_s=1)
        assert robot.counters.robot_late_in == 1

    def test_an_answer_to_no_question_says_nothing_of_the_clock(self, robot):
        robot.answers_pings = False
        robot.welcome()
        robot.run(limit_s=1.5)
        first = robot.pings[0]
        robot.say(wire.PONG, n=first["n"] + 1_000, t=first["t"], r=1 << 60, s=1 << 60)
        robot.say(wire.PONG, n=first["n"], t=first["t"] + 1, r=1 << 60, s=1 << 60)
        robot.state(b"x", deadline=1)
        assert robot.run(lambda: robot.replica.messages == [b"x"], limit_s=1)


class TestReplies:
    def test_come_on_the_state_lane_but_the_first_and_texts(self, robot):
        robot.welcome()
        robot.replica.binary(b"metadata")
        robot.run(limit_s=0.1)
        for k in range(3):
            robot.replica.binary(b"action %d" % k)
            robot.run(limit_s=0.1)
        robot.replica.text("Traceback")
        robot.run(limit_s=0.1)
        assert robot.commands == [b"metadata", "Traceback"]
        assert robot.states == [(1, b"action 0"), (2, b"action 1"), (3, b"action 2")]
        assert robot.counters.robot_state_out == 3
        assert robot.counters.robot_command_out == 2

    def test_come_on_the_command_lane_where_that_is_wanted(self, robot):
        robot.hello(replies="command")
        robot.welcome()
        for k in range(4):
            robot.replica.binary(b"%d" % k)
        assert robot.run(lambda: robot.commands == [b"0", b"1", b"2", b"3"])
        assert robot.states == []

    def test_a_newer_one_resets_the_older_one(self):
        robot = Robot().welcome()
        robot.replica.binary(b"metadata")
        robot.replica.binary(b"old" * 1_000_000)  # more than a window
        robot.run(limit_s=0.05)
        robot.replica.binary(b"new")
        assert robot.run(lambda: (2, b"new") in robot.states)
        assert any(said[0] == "reset" and said[2] == wire.STALE for said in robot.app.said)
        assert robot.counters.robot_stale_out == 1

    def test_one_that_was_sent_whole_is_not_counted_as_stale(self):
        robot = Robot().welcome()
        robot.replica.binary(b"metadata")
        for k in range(5):
            robot.replica.binary(b"%d" % k)
            robot.run(limit_s=0.012)  # longer than the way, shorter than the round trip
        robot.run(limit_s=0.1)
        assert [payload for _, payload in robot.states] == [b"%d" % k for k in range(5)]
        assert robot.counters.robot_stale_out == 0

    def test_never_pile_up_where_the_robot_allows_no_streams(self):
        robot = Robot(change=lambda config: setattr(config, "max_uni_streams", 1)).welcome()
        robot.replica.binary(b"metadata")
        robot.run(limit_s=0.05)
        for k in range(50):
            robot.replica.binary(b"%d" % k)
        robot.run(limit_s=1.0)
        assert robot.states[-1][1] == b"49"
        assert robot.counters.robot_stale_out >= 40

    def test_wait_for_the_lane_to_be_opened_and_the_replica_with_them(self, robot):
        robot.open_lanes(command=b"")
        robot.welcome(hello=robot.hello())
        robot.replica.binary(b"metadata")
        robot.run(limit_s=0.1)
        assert robot.replica.paused
        robot.command.send(b"C", False)
        assert robot.run(lambda: robot.commands == [b"metadata"])
        assert not robot.replica.paused

    def test_a_lane_that_is_full_pauses_the_replica_until_it_is_read(self):
        robot = Robot().welcome(replies="command")
        robot.reads_commands = False
        robot.run(limit_s=0.1)
        sent = 0
        while not robot.replica.paused:
            robot.replica.binary(b"r" * 100_000)
            sent += 1
            robot.run(limit_s=0.02)
            assert sent < 100
        robot.reads_commands = True
        robot.client.connection.streams.flows[4].credit(len(robot.app.data[4]))
        assert robot.run(lambda: len(robot.commands) == sent)
        assert not robot.replica.paused
        robot.run(limit_s=limits.STALL_S + 2)
        assert robot.ended is None

    def test_who_does_not_read_is_closed(self):
        robot = Robot().welcome(replies="command")
        robot.reads_commands = False
        robot.run(limit_s=0.1)
        while not robot.replica.paused:
            robot.replica.binary(b"r" * 100_000)
            robot.run(limit_s=0.02)
        began_s = robot.now
        robot.run(limit_s=limits.STALL_S / 2)
        robot.replica.binary(b"was on its way")
        assert robot.run(lambda: robot.ended is not None)
        assert robot.ended == wire.NOT_ALLOWED
        assert robot.now - began_s == pytest.approx(limits.STALL_S, abs=0.2)
        assert robot.counters.robot_stalled == 1
        assert robot.replica.is_over


class TestEpochs:
    @pytest.mark.parametrize("code", [1001, 1012, 1013])
    def test_a_replica_that_goes_is_followed_by_another(self, robot, code):
        robot.welcome()
        first = robot.replica
        first.close(code)
        assert robot.run(lambda: wire.EPOCH in robot.kinds(), limit_s=1)
        epoch = robot.heard[-1][1]
        assert (epoch.epoch, epoch.replica) == (2, "r2")
        assert first.closed == code  # the closing handshake was answered
        assert first.ended
        assert robot.replica.head.shape.path == first.head.shape.path
        robot.state(b"go on")
        assert robot.run(lambda: robot.replica.messages == [b"go on"])
        assert robot.counters.robot_epochs == 1
        assert robot.counters.robot_sessions == robot.counters.robot_sessions_open == 1

    @pytest.mark.parametrize("end", ["reset", "eof"])
    def test_so_is_one_that_is_lost(self, robot, end):
        robot.welcome()
        if end == "reset":
            robot.replica.stream.reset(RESET)
        else:
            robot.replica.stream.send_data(b"", True)
        assert robot.run(lambda: wire.EPOCH in robot.kinds(), limit_s=1)

    def test_messages_wait_meanwhile(self, robot):
        robot.welcome()
        robot.auto = False
        robot.replica.close(1012)
        robot.state(b"old")
        robot.order(b"one")
        robot.order(b"two")
        assert robot.run(lambda: len(robot.replicas) == 2, limit_s=1)
        robot.state(b"new")
        robot.run(limit_s=0.2)
        robot.replica.accept()
        assert robot.run(lambda: robot.replica.messages == [b"one", b"two", b"new"], limit_s=1)

    def test_the_first_message_of_each_comes_on_the_command_lane(self, robot):
        robot.welcome()
        robot.replica.binary(b"metadata 1")
        robot.run(limit_s=0.1)
        robot.replica.close(1001)
        assert robot.run(lambda: wire.EPOCH in robot.kinds(), limit_s=1)
        robot.replica.binary(b"metadata 2")
        robot.run(limit_s=0.1)
        robot.replica.binary(b"action")
        robot.run(limit_s=0.1)
        assert robot.commands == [b"metadata 1", b"metadata 2"]
        assert [payload for _, payload in robot.states] == [b"action"]

    def test_tries_are_paced_and_end(self, robot):
        robot.welcome()
        robot.auto = False
        times = []
        robot.replica.close(1001)
        began_s = robot.now
        for tried in range(2, 2 + limits.EPOCH_TRIES):
            assert robot.run(lambda: len(robot.replicas) == tried, limit_s=5)  # noqa: B023
            times.append(robot.now - began_s)
            robot.replica.refuse(503, "no_replica", 1)
        assert times == pytest.approx([0.0, 0.1, 0.5, 1.5], abs=0.1)
        assert robot.run(lambda: robot.ended is not None, limit_s=5)
        assert robot.ended == wire.NO_ROOM
        kind, refused = robot.heard[-1]
        assert (kind, refused.code, refused.retry_after_s) == (wire.REFUSED, "no_replica", 1)
        assert len(robot.replicas) == 1 + limits.EPOCH_TRIES

    def test_a_replica_that_takes_and_drops_is_no_replica(self, robot):
        robot.welcome()
        for _ in range(limits.EPOCH_TRIES):
            seen = len(robot.replicas)
            robot.replica.close(1001)
            assert robot.run(lambda: len(robot.replicas) > seen and robot.kinds()[-1] == wire.EPOCH, limit_s=5)  # noqa: B023
            robot.run(limit_s=0.1)
        robot.replica.close(1001)
        assert robot.run(lambda: robot.ended is not None, limit_s=5)
        assert robot.ended == wire.NO_ROOM

    def test_one_that_stays_begins_a_new_row(self, robot):
        robot.welcome()
        for _ in range(limits.EPOCH_TRIES + 3):
            robot.run(limit_s=limits.EPOCH_GOOD_S + 1)
            epochs = robot.counters.robot_epochs
            robot.replica.close(1001)
            assert robot.run(lambda: robot.counters.robot_epochs > epochs, limit_s=1)  # noqa: B023
        assert robot.ended is None

    def test_a_refusal_for_good_ends_the_session(self, robot):
        robot.welcome()
        robot.auto = False
        robot.replica.close(1012)
        assert robot.run(lambda: len(robot.replicas) == 2)
        robot.replica.refuse(403, "forbidden")
        assert robot.run(lambda: robot.ended is not None, limit_s=5)
        assert robot.ended == wire.NOT_ALLOWED

    def test_one_that_does_not_take_our_answer_to_its_close_is_let_go(self, robot):
        robot.welcome()
        first = robot.replica
        first.stream.hold(2)
        first.close(1001)
        assert robot.run(lambda: wire.EPOCH in robot.kinds(), limit_s=1)
        assert first.error is not None

    def test_none_is_taken_for_a_robot_that_has_said_goodbye(self, robot):
        robot.welcome()
        robot.replica.stream.hold(2)
        robot.order(b"x")
        robot.run(limit_s=0.1)
        robot.say(wire.BYE)
        robot.run(limit_s=0.1)
        robot.replica.close(1001)
        assert robot.run(lambda: robot.ended is not None, limit_s=1)
        assert robot.ended == wire.DONE
        assert len(robot.replicas) == 1

    def test_a_lane_that_is_full_holds_the_next_replica_too(self):
        robot = Robot().welcome(replies="command")
        robot.reads_commands = False
        robot.run(limit_s=0.1)
        while not robot.replica.paused:
            robot.replica.binary(b"r" * 100_000)
            robot.run(limit_s=0.02)
        robot.replica.close(1001)
        assert robot.run(lambda: robot.counters.robot_epochs == 1, limit_s=1)
        assert robot.replica.paused


class TestEnds:
    @pytest.mark.parametrize(("code", "seen"), [(1000, 1000), (1005, 1000), (1011, 1011), (4321, 4321), (9999, 1011)])
    def test_a_replica_that_is_done_ends_the_session_after_its_last_word(self, robot, code, seen):
        robot.welcome()
        robot.replica.binary(b"metadata")
        robot.run(limit_s=0.1)
        robot.replica.binary(b"action")
        robot.replica.text("the last word")
        began_s = robot.now
        if code in (1005, 9999):
            robot.replica._send(8, b"" if code == 1005 else code.to_bytes(2, "big"))
        else:
            robot.replica.close(code, "because")
        assert robot.run(lambda: robot.ended is not None, limit_s=5)
        assert robot.ended == seen
        assert robot.now - began_s < 0.1
        assert robot.commands[-1] == "the last word"
        assert [payload for _, payload in robot.states] == [b"action"]
        assert robot.replica.ended
        assert robot.counters.robot_sessions_open == 0

    def test_of_the_last_word_on_a_bad_link(self):
        robot = Robot(Link(0.02, 0.01, loss=0.1, seed=3), Link(0.02, 0.01, loss=0.1, seed=4)).welcome()
        robot.replica.binary(b"metadata")
        robot.replica.binary(b"a" * 100_000)
        robot.replica.close(1011, "because")
        assert robot.run(lambda: robot.ended is not None, limit_s=10)
        assert robot.commands == [b"metadata"]
        assert robot.states == [(1, b"a" * 100_000)]
        assert robot.ended == 1011

    def test_a_replica_that_does_not_take_our_answer_to_its_close_is_let_go(self, robot):
        robot.welcome()
        robot.replica.stream.hold(2)
        robot.replica.close(1011)
        assert robot.run(lambda: robot.ended is not None, limit_s=5)
        assert robot.replica.error is not None

    def test_messages_that_begin_behind_a_goodbye_are_not_kept(self, robot):
        robot.welcome()
        robot.run(limit_s=0.1)
        robot.down.drop = lambda _: True
        robot.replica.close(1011)
        robot.run(limit_s=0.1)
        robot.state(b"x", end=False)
        robot.run(limit_s=0.1)
        assert robot.session.phase == ENDING
        assert not robot.session.state_in._readers

    def test_bye(self, robot):
        robot.welcome()
        robot.say(wire.BYE)
        assert robot.run(lambda: robot.ended is not None, limit_s=1)
        assert robot.ended == wire.DONE
        assert robot.replica.closed == wire.DONE
        assert robot.counters.robot_sessions_open == 0

    def test_bye_waits_for_commands_that_the_replica_is_to_take(self, robot):
        robot.welcome()
        robot.replica.stream.hold(2)
        robot.order(b"stop the arm")
        robot.run(limit_s=0.1)
        robot.say(wire.BYE)
        robot.run(limit_s=0.5)
        assert robot.ended is None
        robot.replica.stream.release(2)
        assert robot.run(lambda: robot.ended is not None, limit_s=1)
        assert robot.replica.messages == [b"stop the arm"]
        assert robot.replica.closed == wire.DONE

    def test_but_not_for_ever(self, robot):
        robot.welcome()
        robot.replica.stream.hold(2)
        robot.order(b"stop the arm")
        robot.run(limit_s=0.1)
        robot.say(wire.BYE)
        began_s = robot.now
        assert robot.run(lambda: robot.ended is not None, limit_s=5)
        assert robot.now - began_s == pytest.approx(limits.GOODBYE_S, abs=0.2)
        assert robot.replica.is_over

    @pytest.mark.parametrize(("code", "seen"), [(1000, 1000), (0, 1001)])
    def test_a_robot_that_closes_lets_the_replica_go(self, robot, code, seen):
        robot.welcome()
        robot.client.connection.close(code)
        assert robot.run(lambda: robot.replica.is_over, limit_s=1)
        assert robot.replica.closed == seen
        assert robot.counters.robot_sessions_open == 0

    def test_a_robot_that_is_silent_lets_the_replica_go(self):
        robot = Robot().welcome()
        robot.up.drop = lambda _: True
        assert robot.run(lambda: robot.replica.is_over, limit_s=120)

    def test_drain_lets_a_robot_work_until_it_is_cut(self, robot):
        robot.welcome()
        robot.session.drain()
        robot.state(b"on")
        assert robot.run(lambda: robot.replica.messages == [b"on"], limit_s=1)
        robot.session.cut(DRAIN)
        assert robot.run(lambda: robot.ended is not None, limit_s=1)
        assert robot.ended == wire.DRAINING
        assert robot.replica.closed == wire.DRAINING

    def test_drain_lets_nobody_in(self, robot):
        robot.connect()
        robot.session.drain()
        assert robot.run(lambda: robot.ended is not None, limit_s=1)
        assert robot.ended == wire.DRAINING

    @pytest.mark.parametrize("how", ["drain", "retire"])
    def test_a_router_that_ends_takes_no_further_replica(self, robot, how):
        robot.welcome()
        robot.session.drain() if how == "drain" else robot.session.retire(robot.now)
        robot.replica.close(1001)
        assert robot.run(lambda: robot.ended is not None, limit_s=5)
        assert robot.ended == wire.DRAINING
        assert len(robot.replicas) == 1

    def test_retire_lets_in_who_could_not_know(self, robot):
        robot.connect()
        robot.session.retire(robot.now)
        robot.welcome()

    def test_cut_while_the_replica_is_looked_for(self, robot):
        robot.auto = False
        robot.hello()
        assert robot.run(lambda: robot.replicas)
        robot.session.cut(DRAIN)
        assert robot.run(lambda: robot.ended is not None, limit_s=1)
        assert robot.ended == wire.DRAINING
        assert robot.replica.error is not None


class TestHostile:
    def closes(self, robot, code):
        assert robot.run(lambda: robot.ended is not None, limit_s=3)
        assert robot.ended == code
        assert robot.counters.robot_faults == 1
        assert all(replica.is_over for replica in robot.replicas)
        assert robot.counters.robot_sessions_open == 0

    @pytest.mark.parametrize(
        "body", [b"", b"\x80", b"\xc0", b"\x91\x01", b"\xff" * 8, b"\x81\xa9authority\x01", b"\x91" * 9_000, b"\x81\xa1\xff\x01"],
        ids=["empty", "no authority", "nil", "list", "garbage", "a number", "deep", "no text"],
    )  # fmt: skip
    def test_a_hello_that_is_none(self, robot, body):
        robot.open_lanes()
        robot.control.send(wire.write_frame(wire.HELLO, body), False)
        self.closes(robot, wire.BROKEN)
        assert not robot.replicas
        assert [error.kind for error in robot.refusals] == [Kind.BAD_REQUEST]

    @pytest.mark.parametrize("kind", [wire.PING, wire.PONG, wire.LINK])
    def test_other_frames_that_are_none(self, robot, kind):
        robot.welcome()
        robot.control.send(wire.write_frame(kind, b"\x81\xa1n\xa1x" if kind != wire.LINK else b"\x81\xa6rtt_us\xd0\xff"), False)
        self.closes(robot, wire.BROKEN)

    def test_a_frame_of_the_routers(self, robot):
        robot.welcome().say(wire.EPOCH, epoch=2)
        self.closes(robot, wire.BROKEN)

    def test_a_frame_that_is_too_large_is_not_waited_for(self, robot):
        robot.open_lanes()
        robot.control.send(b"\x01\x80\x00\x40\x01", False)
        self.closes(robot, wire.TOO_LARGE)

    def test_unknown_frames_and_keys_are_ignored(self, robot):
        robot.hello(colour="red")
        robot.say(0x77, x=1)
        robot.welcome()
        assert robot.ended is None

    def test_too_many_control_frames(self, robot):
        robot.welcome()
        for k in range(int(limits.CONTROL_BURST) + 10):
            robot.say(wire.PING, n=k, t=k)
        self.closes(robot, wire.NOT_ALLOWED)

    def test_as_many_as_a_client_sends_for_a_minute(self, robot):
        robot.welcome()
        for k in range(60):
            robot.say(wire.PING, n=k, t=k)
            robot.say(wire.LINK, rtt_us=1)
            robot.run(limit_s=1.0)
        assert robot.ended is None
        assert robot.kinds().count(wire.PONG) == 60

    def test_who_does_not_read_control(self):
        robot = Robot(change=lambda config: setattr(config, "stream_window", 2_000)).welcome()
        robot.reads_commands = False
        for k in range(3_000):
            robot.say(wire.PING, n=1 << 61, t=k)
            robot.run(limit_s=0.2)
            if robot.ended is not None:
                break
        assert robot.ended == wire.NOT_ALLOWED
        assert k > 400

    def test_half_a_frame_at_the_end(self, robot):
        robot.welcome()
        robot.control.send(b"\x02\x10", True)
        self.closes(robot, wire.BROKEN)

    def test_the_end_of_control_is_a_bye(self, robot):
        robot.welcome()
        robot.control.send(b"", True)
        assert robot.run(lambda: robot.ended == wire.DONE, limit_s=2)

    def test_a_third_two_way_stream(self, robot):
        robot.welcome()
        robot.client.connection.open_stream(unidirectional=False).send(b"x", False)
        self.closes(robot, wire.BROKEN)

    @pytest.mark.parametrize(
        ("start", "code"),
        [
            (b"X", wire.BROKEN),
            (b"S\x00\x00x", wire.BROKEN),
            (b"T\x01\x00x", wire.BROKEN),
        ],
        ids=["unknown", "sequence 0", "another's"],
    )
    def test_a_one_way_stream_that_is_no_state(self, robot, start, code):
        robot.welcome()
        robot.client.connection.open_stream(unidirectional=True).send(start, False)
        self.closes(robot, code)

    @pytest.mark.parametrize("cut", [b"", b"S", b"S\x01", b"S\x40"])
    def test_a_state_message_that_ends_in_its_header(self, robot, cut):
        robot.welcome()
        robot.client.connection.open_stream(unidirectional=True).send(cut, True)
        self.closes(robot, wire.BROKEN)

    def test_a_state_message_that_is_too_large(self):
        robot = Robot().welcome()
        flow = robot.state(b"x" * wire.MAX_MESSAGE_BYTES, end=False)
        assert robot.run(lambda: not flow.unsent_bytes)
        assert robot.ended is None
        flow.send(b"x", False)
        self.closes(robot, wire.TOO_LARGE)

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"C\x02\x02\x00ab", wire.BROKEN),
            (b"C\x02\x01\x00\xff\xff", wire.BAD_TEXT),
            (b"C\x81\x00\x00\x01\x00\x00", wire.TOO_LARGE),
            (b"X\x01\x00\x00a", wire.BROKEN),
        ],
        ids=["flag", "text", "size", "lane"],
    )
    def test_a_command_that_is_none(self, robot, data, code):
        robot.open_lanes(command=b"")
        robot.hello()
        robot.welcome()
        robot.command.send(data, False)
        self.closes(robot, code)
        assert robot.replica.messages == []

    def test_half_a_command_at_the_end(self, robot):
        robot.welcome()
        robot.command.send(wire.command_header(5, 0, is_text=False) + b"abc", True)
        self.closes(robot, wire.BROKEN)

    def test_the_end_of_commands_is_no_end_of_the_session(self, robot):
        robot.welcome()
        robot.command.send(b"", True)
        robot.run(limit_s=0.2)
        robot.state(b"on")
        assert robot.run(lambda: robot.replica.messages == [b"on"], limit_s=1)

    @pytest.mark.parametrize("lane", ["control", "command"])
    @pytest.mark.parametrize("how", ["reset", "stop"])
    def test_a_lane_that_is_given_up(self, robot, lane, how):
        robot.welcome()
        robot.run(limit_s=0.1)
        getattr(getattr(robot, lane), how)(0)
        self.closes(robot, wire.BROKEN)

    def test_datagrams_of_any_kind_harm_nobody(self, robot):
        robot.welcome()
        for data in (b"", b"X", b"T", b"T\x00", b"T\xc0", b"T\x05payload"):
            robot.client.connection.send_datagram(data)
        robot.run(limit_s=0.1)
        assert robot.counters.robot_telemetry_in == 1
        assert robot.ended is None

    def test_hundreds_of_unfinished_messages(self):
        robot = Robot().welcome()
        sent = 0
        for k in range(500):
            flow = robot.client.connection.open_stream(unidirectional=True)
            if flow is None:
                break
            flow.send(wire.state_header(k + 1, 0) + b"x", False)
            sent += 1
        assert sent <= 64
        robot.run(limit_s=0.5)
        robot.sequence = 1_000
        final = robot.client.connection.open_stream(unidirectional=True)
        assert final is None


class TestReports:
    def test_are_counted_by_their_growth(self, robot):
        robot.welcome()
        robot.say(wire.LINK, rtt_us=20_000, loss_ppm=10_000, jitter_us=1_500, gap_us=80_000, late=3, stale=5)
        robot.say(wire.LINK, rtt_us=20_000, late=4, stale=5)
        robot.say(wire.LINK, late=2, stale=(1 << 61))
        robot.run(limit_s=0.1)
        counters = robot.counters
        assert sum(counters.robot_rtt.counts) == 2
        assert counters.robot_rtt.sum_s == pytest.approx(0.04)
        assert counters.robot_loss.sum_s == pytest.approx(0.01)
        assert counters.robot_gap.sum_s == pytest.approx(0.08)
        assert counters.robot_reported_late == 4
        assert counters.robot_reported_stale == 5 + limits.MAX_REPORTED


class TestPosts:
    def test_the_newest_waits_while_one_is_asked(self):
        robot = Robot()
        robot.hello(upstream="post")
        assert robot.run(lambda: robot.heard)
        assert robot.heard[0][0] == wire.WELCOME
        for n in range(3):
            robot.state(b"observation %d" % n)
            robot.run(limit_s=0.05)
        assert [replica.messages for replica in robot.replicas] == [[b"observation 0"]]
        robot.replica.answer(b"actions 0")
        assert robot.run(lambda: len(robot.replicas) == 2, limit_s=1)
        assert robot.replica.messages == [b"observation 2"]
        assert robot.counters.robot_stale_in == 1

    def test_commands_are_asked_in_order(self):
        robot = Robot()
        robot.hello(upstream="post", replies="command")
        for n in range(3):
            robot.order(b"%d" % n)
        for n in range(3):
            assert robot.run(lambda n=n: len(robot.replicas) == n + 1, limit_s=1)
            assert robot.replica.messages == [b"%d" % n]
            robot.replica.answer(b"done %d" % n)

    @pytest.mark.parametrize(("status", "ends"), [(503, False), (429, False), (404, True), (400, True)])
    def test_a_refusal_ends_it_or_is_an_epoch(self, status, ends):
        robot = Robot()
        robot.hello(upstream="post")
        robot.state(b"observation")
        assert robot.run(lambda: robot.replicas, limit_s=1)
        robot.replica.answer(b"no", status)
        wanted = wire.REFUSED if ends else wire.EPOCH
        assert robot.run(lambda: any(frame[0] == wanted for frame in robot.heard), limit_s=3)
        if not ends:
            robot.state(b"again")
            assert robot.run(lambda: len(robot.replicas) == 2, limit_s=3)

    def test_what_is_asked_is_given_up_with_the_robot(self):
        robot = Robot()
        robot.hello(upstream="post")
        robot.state(b"observation")
        assert robot.run(lambda: robot.replicas, limit_s=1)
        robot.client.connection.close(wire.DONE)
        assert robot.run(lambda: robot.replica.error is not None, limit_s=3)


class TestEarlyData:
    def again(self, **kwargs):
        first = Robot().welcome()
        first.run(limit_s=1.0)

        def change(config):
            config.ticket = first.tickets[-1]

        def server_change(config):
            config.tickets = first.server_config.tickets
            config.identities = first.server_config.identities

        return Robot(change=change, server_change=server_change, **kwargs)

    def test_state_goes_to_the_replica_at_once_and_a_command_waits_for_the_handshake(self):
        robot = self.again()
        robot.hello()
        robot.state(b"observation")
        robot.order(b"move")
        assert robot.run(lambda: robot.replicas and robot.replica.messages)
        assert robot.replica.messages == [b"observation"]
        assert robot.now <= 1_000.02
        assert not robot.session.is_connected
        assert (b"early-data", b"1") in robot.replica.head.shape.fields
        assert robot.run(lambda: robot.replica.messages == [b"observation", b"move"], limit_s=1)
        assert robot.session.is_connected
        assert robot.client.connection.was_early_refused is False
        assert robot.heard[0][0] == wire.WELCOME

    def test_nothing_is_posted_that_may_be_a_replay(self):
        robot = self.again()
        robot.hello(upstream="post")
        robot.state(b"observation")
        robot.order(b"move")
        assert robot.run(lambda: robot.replicas, limit_s=1)
        assert robot.session.is_connected
        assert robot.replica.messages == [b"move"]
        assert (b"early-data", b"1") not in robot.replica.head.shape.fields

    def test_who_never_completes_the_handshake_commands_nothing(self):
        robot = self.again()
        robot.hello()
        robot.order(b"move")
        robot.down.drop = lambda _: True
        robot.run(lambda: robot.replicas and robot.replica.is_over, limit_s=60)
        assert robot.replica.is_over
        assert robot.replica.messages == []


@pytest.mark.parametrize("seed", range(6))
def test_on_a_bad_link_the_newest_comes_and_no_command_is_lost(seed):
    robot = Robot(
        Link(0.025, 0.01, loss=0.03, duplicate=0.02, seed=seed), Link(0.025, 0.01, loss=0.03, seed=seed + 50)
    ).welcome(replies="command")
    for k in range(100):
        robot.order(b"c%d" % k)
        robot.state(b"s%03d" % k + b"x" * 2_000)
        robot.run(limit_s=0.02)
    assert robot.run(lambda: any(one[:4] == b"s099" for one in robot.replica.messages))
    assert robot.run(lambda: b"c99" in robot.replica.messages)
    assert [one for one in robot.replica.messages if one[:1] == b"c"] == [b"c%d" % k for k in range(100)]
    seen = [one[:4] for one in robot.replica.messages if one[:1] == b"s"]
    assert seen == sorted(seen)
    assert len(seen) + robot.counters.robot_stale_in == 100
