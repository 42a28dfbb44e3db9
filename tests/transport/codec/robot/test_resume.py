"""Sessions that outlive connections: what a robot is given, what it shows, what it is told when it comes again."""

import pytest

from router.continuity import RENEW_S
from router.transport.codec.robot import control, wire
from router.transport.codec.robot.limits import PING_S
from tests.transport.codec.robot.clientkit import Pair
from tests.transport.codec.robot.robotkit import Replica, Robot


class Rooted(Replica):
    """A replica behind an exchange that believes the tokens that it signed: `token NAME ID EPOCH`."""

    def accept(self, name="r1"):
        continuity = self.head.continuity
        if continuity is not None:
            words = continuity.shown.decode().split(" ")
            continuity.shown = b""
            if words[0] == "token" and len(words) == 4:
                continuity.is_resumed = True
                continuity.replica, continuity.id, continuity.base = words[1].encode(), words[2], int(words[3])
            continuity.sign = lambda session, epoch, now: f"token {name} {session} {epoch}".encode()
        super().accept(name)


class Resuming(Robot):
    def _on_request(self, stream):
        replica = Rooted(stream)
        self.replicas.append(replica)
        return replica

    def told(self, kind):
        return [body for heard, body in self.heard if heard == kind]


class ResumingPair(Pair):
    _on_request = Resuming._on_request


def test_a_new_session_is_given_a_token():
    robot = Resuming().welcome()
    (welcome,) = robot.told(wire.WELCOME)
    assert welcome.epoch == 1
    assert welcome.token == f"token r1 {welcome.session} 1"
    assert robot.counters.robot_resumed == robot.counters.robot_resume_ignored == 0


def test_it_goes_on_where_it_was():
    robot = Resuming().welcome(resume="token r7 0123456789abcdef 3")
    (welcome,) = robot.told(wire.WELCOME)
    assert (welcome.session, welcome.epoch) == ("0123456789abcdef", 4)
    assert welcome.token == "token r1 0123456789abcdef 4"
    assert robot.counters.robot_resumed == 1
    assert robot.counters.robot_sessions == robot.counters.robot_sessions_open == 1
    assert robot.counters.robot_epochs == 0
    robot.replica.close(1012)
    assert robot.run(lambda: wire.EPOCH in robot.kinds())
    (epoch,) = robot.told(wire.EPOCH)
    assert (epoch.epoch, epoch.token) == (5, "token r2 0123456789abcdef 5")
    assert robot.replica.head.continuity is robot.replicas[0].head.continuity
    assert robot.counters.robot_resumed == 1, "of one session"


@pytest.mark.parametrize("resume", ["nonsense", "token", "rr1.AAAA.BBBB", "ä" * 4_000, "\0"])
def test_what_does_not_hold_is_ignored_and_counted(resume):
    robot = Resuming().welcome(resume=resume)
    (welcome,) = robot.told(wire.WELCOME)
    assert (welcome.epoch, len(welcome.session)) == (1, 16)
    assert (robot.counters.robot_resumed, robot.counters.robot_resume_ignored) == (0, 1)


def test_where_nobody_signs_there_is_no_token():
    robot = Robot().welcome(resume="token r1 0123456789abcdef 3")
    ((_, welcome),) = robot.heard
    assert (welcome.token, welcome.epoch) == ("", 1)
    robot.run(limit_s=RENEW_S + 5)
    assert wire.TOKEN not in robot.kinds()


def test_a_post_session_has_no_replica_to_go_back_to():
    robot = Resuming()
    robot.hello(upstream="post", resume="token r1 0123456789abcdef 3")
    assert robot.run(lambda: wire.WELCOME in robot.kinds())
    (welcome,) = robot.told(wire.WELCOME)
    assert (welcome.token, welcome.epoch) == ("", 1)
    robot.state(b"x")
    assert robot.run(lambda: robot.replicas)
    continuity = robot.replica.head.continuity
    assert (continuity.shown, continuity.is_resumed, continuity.replica) == (b"", False, b"")
    assert robot.counters.robot_resume_ignored == 0


def test_another_token_comes_in_time():
    robot = Resuming().welcome()
    began_s = robot.now
    assert robot.run(lambda: wire.TOKEN in robot.kinds(), limit_s=RENEW_S + 5)
    assert RENEW_S <= robot.now - began_s <= RENEW_S + 2 * PING_S
    ((_, welcome), (_, token)) = robot.heard
    assert token.token == welcome.token
    robot.run(limit_s=60)
    assert robot.kinds().count(wire.TOKEN) == 1


def test_the_client_hears_of_each():
    pair = ResumingPair(hello=control.Hello("robots.test", resume="token r7 0123456789abcdef 3"))
    heard = []
    pair.connect()
    assert pair.run(lambda: pair.welcomes)
    assert (pair.welcomes[0].session, pair.welcomes[0].epoch) == ("0123456789abcdef", 4)
    pair.robot._calls.token = heard.append
    assert pair.run(lambda: heard, limit_s=RENEW_S + 5)
    assert heard == ["token r1 0123456789abcdef 4"]
    assert pair.closed is None
