"""A request of a session that was served before: the replica it prefers is a first choice among the eligible, no more."""

import pytest
from exchangekit import GOES_AWAY, REFUSED, Bench, FakeStream
from test_exchange_session import STICKY, shown

from router.continuity import RESUME_S, Continuity
from router.core import Peer
from router.errors import Kind, ProxyError, Source
from router.exchange import Exchange
from router.exchange_entry import TAKEOVER_S
from router.http import ResponseHead, ResponseShape
from router.routing.credentials import Credential
from router.routing.resumption import go_on, resume
from router.routing.spec import EndpointPatch, HoldSpec, LimitSpec, ReplicaSpec, TokenSpec
from router.stream import HOLD_NO_UPSTREAM

KEY = bytes(32)
NAMES = ("r0", "r1", "r2")


def bench(busy="r2", **options):
    """By the policy alone nobody would go to the replica that is busy."""
    made = Bench(**({"replicas": 3, "policy": "least_inflight"} | options))
    made.change(session_keys=(KEY,))
    if busy:
        replica_of(made, busy).in_flight = 1
    return made


def wish(made, replica="r1", credential=None):
    """What a client shows that was with this replica."""
    before = Continuity()
    go_on(before, made.core.table.sessions, made.endpoint, replica, credential or made.gate.credential)
    return Continuity(before.token(4, made.now))


def ask(made, continuity, **options):
    made.head(upgrade=b"websocket", continuity=continuity, **options)
    return [replica.id for replica, _ in made.pool.opened]


def replica_of(made, name):
    (found,) = [one for one in made.endpoint.replicas if one.id == name]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_replica_of_before_serves_again(name):
    made = bench(name)
    continuity = wish(made, name)
    assert ask(made, continuity) == [name]
    assert continuity.is_resumed
    assert continuity.base == 4


@pytest.mark.parametrize("name", NAMES)
def test_without_a_token_it_is_who_suits_best(name):
    assert ask(bench(name), Continuity()) != [name]


def test_the_token_is_of_who_is_let_in():
    made = bench()
    continuity = wish(made, "r2", Credential(TokenSpec(b"d" * 32, "key", "main")))
    assert ask(made, continuity) != ["r2"]
    assert not continuity.is_resumed


@pytest.mark.parametrize("why", ["unhealthy", "draining", "gone", "full", "failing"])
def test_one_that_takes_nobody_is_not_gone_back_to(why):
    made = bench(limits=LimitSpec(max_concurrency=2))
    continuity = wish(made, "r2")
    if why == "unhealthy":
        made.endpoint.set_health(replica_of(made, "r2"), is_healthy=False, now=made.now)
    elif why == "draining":
        made.change((EndpointPatch("e", upsert=(ReplicaSpec("r2", "http://10.0.0.3:80", state="DRAINING"),)),))
    elif why == "gone":
        made.patch(2)
    elif why == "full":
        replica_of(made, "r2").in_flight = 2
    else:
        replica_of(made, "r2").avoid(made.now)
    first = ask(made, continuity)
    assert first in (["r0"], ["r1"])
    assert continuity.is_resumed, "it goes on elsewhere"


def test_limits_of_the_endpoint_hold():
    made = bench(limits=LimitSpec(max_concurrency=1))
    for replica in made.endpoint.replicas:
        replica.in_flight = 1
    continuity = wish(made, "r2")
    assert ask(made, continuity) == []
    assert made.flags[1] == "at_capacity"


@pytest.mark.parametrize("how", ["not reached", "leaving"])
def test_one_that_was_tried_is_passed_over(how):
    made = bench()
    continuity = wish(made, "r2")
    if how == "leaving":
        made.warm()
    assert ask(made, continuity) == ["r2"]
    if how == "leaving":
        made.exchange.response_reset(GOES_AWAY)
    else:
        made.exchange.upstream_failed(REFUSED)
    assert len(made.pool.opened) == 2
    assert made.pool.opened[1][0].id != "r2"


def test_one_that_is_not_there_yet_is_waited_for_as_any_is():
    made = bench(hold=HoldSpec(wait_s=5.0, max_waiting=2))
    for replica in made.endpoint.replicas:
        made.endpoint.set_health(replica, is_healthy=False, now=made.now)
    continuity = wish(made, "r2")
    assert ask(made, continuity) == []
    for replica in made.endpoint.replicas:
        made.endpoint.set_health(replica, is_healthy=True, now=made.now)
    made.pass_time(1.0)
    assert [replica.id for replica, _ in made.pool.opened] == ["r2"]


def test_who_may_name_a_replica_gets_that_one():
    made = bench()
    assert ask(made, wish(made, "r2"), known={b"x-router-replica": b"r0"}) == ["r0"]


def test_a_sticky_session_stays_where_it_is():
    made = bench(sessions=STICKY)
    made.core.table.sessions.known_to_s = made.now - 1.0
    assert ask(made, wish(made, "r2"), known=shown(made)) == ["r1"]


def test_a_preferred_replica_comes_before_a_routing_key():
    keyed = {b"x-routing-key": b"somewhere"}
    home = bench("").pick_of(keyed)
    made = bench("")
    other = next(name for name in NAMES if name != home)
    assert ask(made, wish(made, other), known=keyed) == [other]


def test_once_it_is_served_it_can_be_resumed():
    made = bench()
    continuity = Continuity()
    (name,) = ask(made, continuity)
    assert continuity.token(1, made.now) == b"", "nobody serves yet"
    made.connected()
    head = ResponseHead(ResponseShape(200))
    head.shape.accepts_tunnel = True
    made.exchange.response_head(head, False)
    again = Continuity(continuity.token(1, made.now))
    resume(again, made.core.table.sessions, made.endpoint, made.gate.credential, made.now)
    assert (again.id, again.base, again.replica) == (continuity.id, 1, name.encode())


def test_refused_there_is_nothing_to_resume():
    made = bench()
    continuity = Continuity()
    ask(made, continuity)
    made.connected()
    made.exchange.response_head(ResponseHead(ResponseShape(403)), True)
    assert continuity.sign is None


class Beside:
    """The client's earlier session, whose lease is the replica's only one: another exchange of the same worker."""

    def __init__(self, made, name="r2", **options):
        self.made = made
        self.ended = 0
        self.continuity = Continuity(b"", "", self.end)
        self.exchange = made.exchange
        replica_of(made, name).avoid_until_s = 0.0
        others = [one for one in made.endpoint.replicas if one.id != name]
        for one in others:
            one.in_flight += 5
        assert ask(made, self.continuity, **options) == [name]
        for one in others:
            one.in_flight -= 5
        made.connected()
        head = ResponseHead(ResponseShape(200))
        head.shape.accepts_tunnel = True
        made.exchange.response_head(head, False)
        made.pool.opened.clear()
        made.records.clear()
        made.exchange = Exchange(made.core, FakeStream(), Peer(b"192.0.2.1"))

    def end(self):
        self.ended += 1
        self.continuity.over()
        self.exchange.request_reset(ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM))
        self.made.records.clear()

    def token(self, epoch=1):
        return self.continuity.token(epoch, self.made.now)


class OtherWorkers:
    """Implements `Elsewhere`; answers when the test says so."""

    def __init__(self):
        self.said = []
        self.then = None

    def came_again(self, session, attempt, then):
        self.said.append(("came again", session, attempt))
        self.then = then
        return 1

    def is_here(self, session):
        self.said.append(("is here", session))

    def has_left(self, session):
        self.said.append(("has left", session))


ONE_EACH = LimitSpec(max_concurrency=1)


def test_the_earlier_session_gives_its_replica_up_first():
    made = bench("", limits=ONE_EACH)
    earlier = Beside(made)
    again = Continuity(earlier.token())
    assert ask(made, again) == ["r2"]
    assert earlier.ended == 1
    assert again.id == earlier.continuity.id
    assert replica_of(made, "r2").in_flight == 1


def test_and_its_part_of_the_endpoint():
    made = bench("", limits=LimitSpec(endpoint_concurrency=1))
    earlier = Beside(made)
    assert ask(made, Continuity(earlier.token())) == ["r2"]
    assert made.endpoint.counters.in_flight == 1


@pytest.mark.parametrize("shown", ["nothing", "forged", "another's", "another endpoint's", "late"])
def test_what_does_not_hold_ends_nobody(shown):
    made = bench("", limits=ONE_EACH)
    earlier = Beside(made)
    token = earlier.token()
    if shown == "nothing":
        token = b""
    elif shown == "forged":
        token = token[:-8] + b"AAAAAAAA"
    elif shown == "another's":
        made.gate.credential = Credential(TokenSpec(b"e" * 32, "key", "main"))
    elif shown == "another endpoint's":
        go_on(earlier.continuity, made.core.table.sessions, Stranger, "r2", made.gate.credential)
        token = earlier.token()
    else:
        made.now += RESUME_S
        made.clock.read()
    others = made.core.takeovers.elsewhere = OtherWorkers()
    assert ask(made, Continuity(token)) in (["r0"], ["r1"])
    assert earlier.ended == 0
    assert others.said == []


class Stranger:
    name = "somewhere"
    environment = "main"


def test_an_older_token_of_the_same_session_is_taken():
    made = bench("", limits=ONE_EACH)
    earlier = Beside(made)
    earlier.token(7)
    assert ask(made, Continuity(earlier.token(1))) == ["r2"]
    assert earlier.ended == 1


def test_connections_of_one_attempt_leave_each_other_alone():
    made = bench("", limits=ONE_EACH)
    earlier = Beside(made)
    earlier.continuity.attempt = "a1"
    beside = Continuity(earlier.token(), "a1")
    assert ask(made, beside) in (["r0"], ["r1"])
    assert earlier.ended == 0


def waits_for_others(**options):
    """A request whose client was elsewhere, where its session still holds the replica."""
    made = bench(limits=ONE_EACH, **options)
    others = made.core.takeovers.elsewhere = OtherWorkers()
    continuity = wish(made, "r2")
    continuity.attempt = "a1"
    assert ask(made, continuity) == []
    assert others.said == [("came again", continuity.id, "a1")]
    assert made.endpoint.counters.in_flight == 0
    assert made.exchange.watch_tick > 0, "the wheel has it: an answer may never come"
    assert made.exchange._downstream.holds == HOLD_NO_UPSTREAM
    return made, others


def test_other_workers_are_waited_for():
    made, others = waits_for_others()
    replica_of(made, "r2").in_flight = 0
    others.then()
    assert [replica.id for replica, _ in made.pool.opened] == ["r2"]
    others.then()
    made.pass_time(1.0)
    assert len(made.pool.opened) == 1


def test_but_not_for_long():
    made, others = waits_for_others()
    made.pass_time(TAKEOVER_S)
    (first,) = [replica.id for replica, _ in made.pool.opened]
    assert first in ("r0", "r1"), "it goes on elsewhere"
    others.then()
    assert len(made.pool.opened) == 1
    made.connected()
    made.pass_time(0.01)
    made.exchange.response_head(ResponseHead(ResponseShape(403)), True)
    assert made.endpoint.counters.in_flight == 0
    assert made.endpoint.counters.duration.sum_s > TAKEOVER_S
    assert made.endpoint.counters.overhead.sum_s < TAKEOVER_S / 2, "the wait is not what the router added"


@pytest.mark.parametrize("how", ["the client leaves", "the endpoint leaves", "it is full", "it waits for a start"])
def test_what_may_happen_meanwhile(how):
    made, others = waits_for_others(**({"hold": HoldSpec(wait_s=5.0, max_waiting=2)} if how == "it waits for a start" else {}))
    if how == "the client leaves":
        made.exchange.request_reset(ProxyError(Kind.CLIENT_GONE, Source.DOWNSTREAM))
        others.then()
        assert made.finished()
        assert made.pool.opened == []
    elif how == "the endpoint leaves":
        made.change(routes=(), gone=("e",))
        others.then()
        assert made.flags[1] == "no_route"
    else:
        for replica in made.endpoint.replicas:
            replica.in_flight = 1
            if how == "it waits for a start":
                made.endpoint.set_health(replica, is_healthy=False, now=made.now)
        others.then()
        if how == "it is full":
            assert made.flags[1] == "at_capacity"
            return
        assert made.endpoint.counters.waiting == 1
        for replica in made.endpoint.replicas:
            replica.in_flight = 0
            made.endpoint.set_health(replica, is_healthy=True, now=made.now)
        others.then()
        made.pass_time(1.0)
        assert [replica.id for replica, _ in made.pool.opened] == ["r2"]
        assert made.endpoint.counters.waiting == 0


def test_others_are_told_of_what_they_could_end():
    made = bench("")
    others = made.core.takeovers.elsewhere = OtherWorkers()
    earlier = Beside(made)
    session = earlier.continuity.id
    assert others.said == [("is here", session)]
    earlier.end()
    assert others.said == [("is here", session), ("has left", session)]


def test_who_cannot_be_given_a_token_is_not_kept():
    made = Bench(replicas=1)
    others = made.core.takeovers.elsewhere = OtherWorkers()
    made.head(upgrade=b"websocket", continuity=Continuity(b"", "", list))
    made.connected()
    head = ResponseHead(ResponseShape(200))
    head.shape.accepts_tunnel = True
    made.exchange.response_head(head, False)
    assert others.said == []
