"""A request of a session that was served before: the replica it prefers is a first choice among the eligible, no more."""

import pytest
from exchangekit import GOES_AWAY, REFUSED, Bench
from test_exchange_session import STICKY, shown

from router.continuity import Continuity
from router.http import ResponseHead, ResponseShape
from router.routing.credentials import Credential
from router.routing.resumption import go_on, resume
from router.routing.spec import EndpointPatch, HoldSpec, LimitSpec, ReplicaSpec, TokenSpec

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
