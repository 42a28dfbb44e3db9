"""A robot that has come again: its earlier session lets the replica go at once, and tells who still listens."""

import pytest

from router.takeovers import Takeovers
from router.transport.codec.robot import wire
from router.transport.codec.robot.ending import OPEN, OVER
from tests.transport.codec.robot.clientkit import Pair
from tests.transport.codec.robot.robotkit import Robot
from tests.transport.codec.robot.test_resume import Rooted


class Kept(Rooted):
    """Behind an exchange that keeps sessions while they last, and believes tokens when it is asked."""

    takeovers = None

    def request_head(self, head, end):
        super().request_head(head, end)
        continuity = head.continuity
        if continuity is not None and continuity.shown.startswith(b"token "):
            continuity.id = continuity.shown.split()[2].decode()
            self.takeovers.take_over(continuity, lambda: None)

    def accept(self, name="r1"):
        if self.head.continuity is not None:
            self.takeovers.enter(self.head.continuity)
        super().accept(name)


class Keeping(Robot):
    kind = Kept

    def __init__(self, takeovers, **options):
        self.takeovers = takeovers
        super().__init__(**options)

    def _on_request(self, stream):
        replica = self.kind(stream)
        replica.takeovers = self.takeovers
        self.replicas.append(replica)
        return replica


class KeepingPair(Pair):
    def __init__(self, takeovers, **options):
        self.takeovers = takeovers
        super().__init__(**options)

    _on_request = Keeping._on_request
    kind = Kept


def token_of(robot):
    (welcome,) = [body for kind, body in robot.heard if kind == wire.WELCOME]
    return welcome.token


def open_ids(takeovers):
    return list(takeovers._open)


def test_the_replica_is_free_before_the_next_is_asked_for():
    takeovers = Takeovers()
    earlier = Keeping(takeovers).welcome()
    earlier.state(b"x")
    earlier.run(limit_s=0.1)
    seen = []

    class Asked(Kept):
        def request_head(self, head, end):
            super().request_head(head, end)
            seen.append(earlier.replica.error is not None)

    again = Keeping(takeovers)
    again.kind = Asked
    again.welcome(resume=token_of(earlier))
    assert seen == [True]
    assert earlier.replica.closed is None, "no close frame, whose answer would be waited for"
    assert (again.counters.robot_resumed, again.counters.robot_superseded) == (1, 0)
    found = earlier.counters.numbers()
    assert (found["robot_superseded"], found["robot_sessions_open"], found["robot_faults"]) == (1, 0, 0)


def test_who_still_listens_is_told():
    takeovers = Takeovers()
    pair = KeepingPair(takeovers).welcomed()
    (session,) = open_ids(takeovers)
    takeovers.end(session, "")
    assert pair.run(lambda: pair.closed, limit_s=1)
    assert pair.closed[:3] == (wire.NOT_ALLOWED, "superseded", True)
    assert open_ids(takeovers) == []


def test_in_the_middle_of_everything():
    """What waits, is under way or comes meanwhile is dropped, and is no fault."""
    takeovers = Takeovers()
    robot = Keeping(takeovers).welcome()
    robot.replica.binary(b"y" * 500_000)
    robot.order(b"z" * 100_000)
    robot.state(b"x" * 100_000)
    robot.run(limit_s=0.001)
    (session,) = open_ids(takeovers)
    takeovers.end(session, "")
    robot.order(b"more")
    assert robot.run(lambda: robot.ended, limit_s=5)
    assert robot.ended == wire.NOT_ALLOWED
    assert robot.session.phase == OVER
    assert robot.counters.robot_faults == 0
    assert len(robot.replicas) == 1


def test_while_it_looks_for_another_replica():
    takeovers = Takeovers()
    robot = Keeping(takeovers).welcome()
    robot.auto = False
    robot.replica.close(1012)
    assert robot.run(lambda: len(robot.replicas) == 2)
    (session,) = open_ids(takeovers)
    takeovers.end(session, "")
    assert robot.replica.error is not None
    assert robot.run(lambda: robot.ended == wire.NOT_ALLOWED)
    robot.run(limit_s=10)
    assert len(robot.replicas) == 2, "none is looked for any more"


def test_one_that_waits_for_its_replica_is_taken_over_too():
    takeovers = Takeovers()
    first = Keeping(takeovers, auto=False)
    first.hello(resume="token r1 0123456789abcdef 3")
    assert first.run(lambda: first.replicas)
    again = Keeping(takeovers).welcome(resume="token r1 0123456789abcdef 3")
    assert first.replica.error is not None
    assert first.run(lambda: first.ended == wire.NOT_ALLOWED)
    assert again.session.phase < OVER


def test_connections_of_one_attempt_leave_each_other_alone():
    takeovers = Takeovers()
    shown = {"resume": "token r1 0123456789abcdef 3", "attempt": "a"}
    one, two = Keeping(takeovers).welcome(**shown), Keeping(takeovers).welcome(**shown)
    assert one.replica.error is two.replica.error is None
    next_time = Keeping(takeovers).welcome(**shown | {"attempt": "b"})
    assert one.replica.error is not None
    assert two.replica.error is not None
    assert next_time.replica.error is None


@pytest.mark.parametrize("how", ["bye", "lost", "cut", "refused"])
def test_one_that_is_over_is_not_kept(how):
    takeovers = Takeovers()
    robot = Keeping(takeovers, auto=how != "refused")
    if how == "refused":
        robot.hello(resume="token r1 0123456789abcdef 3")
        assert robot.run(lambda: robot.replicas)
        assert open_ids(takeovers) == ["0123456789abcdef"]
        robot.replica.refuse(403)
    else:
        robot.welcome()
        assert len(open_ids(takeovers)) == 1
        if how == "bye":
            robot.say(wire.BYE)
        elif how == "lost":
            robot.client.connection.abort(0, "")
            robot.session.connection_lost(0, "", False)
        else:
            robot.session.shut(wire.DRAINING, "", wire.DRAINING)
    robot.run(limit_s=1)
    assert open_ids(takeovers) == []
    assert robot.counters.numbers()["robot_superseded"] == 0


@pytest.mark.parametrize(
    ("code", "relayed", "to_the_engine"),
    [(wire.GOING, True, None), (wire.DONE, True, wire.DONE), (wire.GOING, False, wire.GOING)],
)
def test_only_what_a_router_cuts_is_cut_at_the_engine(code, relayed, to_the_engine):
    """A robot that goes by itself is said goodbye for: engines note who was cut off as lost."""
    robot = Robot().welcome(relayed=relayed)
    robot.client.connection.close(code)
    assert robot.run(lambda: robot.replica.is_over, limit_s=1)
    assert (robot.replica.closed, robot.replica.error is None) == (to_the_engine, to_the_engine is not None)


def test_a_post_session_is_none_to_take_over():
    takeovers = Takeovers()
    robot = Keeping(takeovers)
    robot.hello(upstream="post")
    assert robot.run(lambda: wire.WELCOME in robot.kinds())
    assert open_ids(takeovers) == []


@pytest.mark.parametrize("attempt", ["x" * 33, 7])
def test_an_attempt_is_short(attempt):
    robot = Robot()
    robot.hello(attempt=attempt)
    assert robot.run(lambda: robot.ended == wire.BROKEN)


class TestEarly:
    """What comes early may have been held back by somebody, and sent when the session goes on elsewhere."""

    def again(self, takeovers, **options):
        first = Keeping(takeovers)
        first.connect()
        assert first.run(lambda: first.tickets)

        def change(config):
            config.ticket = first.tickets[-1]

        def server_change(config):
            config.tickets = first.server_config.tickets
            config.identities = first.server_config.identities

        return Keeping(takeovers, change=change, server_change=server_change, **options)

    def test_nobody_is_ended_before_the_handshake_is_complete(self):
        takeovers = Takeovers()
        earlier = Keeping(takeovers).welcome()
        robot = self.again(takeovers)
        robot.hello(resume=token_of(earlier))
        robot.state(b"observation")
        robot.down.drop = lambda _: True
        robot.run(limit_s=30)
        assert not robot.session.is_connected
        assert robot.replicas == []
        assert earlier.replica.error is None

    def test_behind_it_all_is_as_usual(self):
        takeovers = Takeovers()
        earlier = Keeping(takeovers).welcome()
        robot = self.again(takeovers)
        robot.hello(resume=token_of(earlier))
        robot.state(b"observation")
        robot.order(b"move")
        assert robot.run(lambda: robot.replicas and len(robot.replica.messages) == 2, limit_s=1)
        assert robot.client.connection.was_early_refused is False
        assert sorted(robot.replica.messages) == [b"move", b"observation"]
        assert (b"early-data", b"1") not in robot.replica.head.shape.fields
        assert earlier.replica.error is not None

    def test_one_that_asks_by_post_takes_nobody_over_and_waits_for_nothing(self):
        robot = self.again(Takeovers())
        robot.hello(resume="token r1 0123456789abcdef 3", upstream="post")
        robot.down.drop = lambda _: True
        assert robot.run(lambda: hasattr(robot, "session") and robot.session.phase == OPEN, limit_s=0.5)
        assert not robot.session.is_connected

    def test_a_second_hello_is_one_meanwhile(self):
        robot = self.again(Takeovers())
        robot.hello(resume="token r1 0123456789abcdef 3")
        robot.say(wire.HELLO, authority="robots.test")
        assert robot.run(lambda: hasattr(robot, "session") and robot.session.phase == OVER, limit_s=5)
        assert robot.counters.robot_faults == 1
        assert robot.replicas == []

    def test_a_router_that_drains_refuses_it(self):
        robot = self.again(Takeovers())
        robot.hello(resume="token r1 0123456789abcdef 3")
        robot.down.drop = lambda _: True
        robot.run(limit_s=0.3)
        robot.session.drain()
        robot.down.drop = lambda _: False
        assert robot.run(lambda: robot.ended, limit_s=5)
        assert robot.replicas == []
