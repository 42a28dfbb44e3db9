"""The index of open sessions: what the table says counts, what is young or was ended is told apart, counts never drift."""

import random

import pytest

from router.errors import Kind, ProxyError
from router.routing.session_token import SessionClaim, SessionKeys
from router.routing.sessions import BEGUN_S, COMMIT_S, ENDED_S, MAX_ENDED, MAX_VERIFIED, Session, SessionIndex
from router.routing.spec import EndpointSpec, ReplicaSpec, RouteSpec, SessionEntry, StickySpec, TableSpec
from router.routing.stage import build

KEY = b"k" * 32


class FixedTime:
    """A wall clock that is the monotonic one."""

    def at(self, now):
        return now


def endpoint(*weights):
    replicas = tuple(ReplicaSpec(f"r{i}", f"http://h:{i + 1}", weight) for i, weight in enumerate(weights))
    spec = EndpointSpec("e", replicas, sessions=StickySpec())
    return build(TableSpec(1, (spec,), (RouteSpec("*", "/", "e"),)), 0.0).endpoints["e"]


@pytest.fixture
def index():
    made = SessionIndex(FixedTime())
    made.set_keys((KEY,))
    return made


def token(session_id="a", issued_s=0, endpoint="e", environment="main"):
    return SessionKeys((KEY,)).sign(SessionClaim(session_id, endpoint, environment, "r0", 60, issued_s))


def entry(session_id, replica="r0", name="e"):
    return SessionEntry(session_id, name, replica, 60)


def kind(found):
    return found.kind if isinstance(found, ProxyError) else None


def test_what_the_table_does_not_have_yet_and_what_it_does_not_have_any_more(index):
    e = endpoint(1)
    index.known_to_s = 100.0
    for issued_s, gone in ((96, Kind.SESSION_GONE), (97, None), (100, None), (150, None)):
        assert kind(index.find(token(issued_s=issued_s), e, 100.0)) is gone, issued_s
    index.change((entry("a"),), (), 0.0)
    assert kind(index.find(token(issued_s=1), e, 1e6)) is None


def test_a_table_of_ones_own_is_always_whole(index):
    e = endpoint(1)
    assert kind(index.find(token(issued_s=100), e, 100.0)) is None
    assert kind(index.find(token(issued_s=100), e, 101.0 + COMMIT_S)) is Kind.SESSION_GONE


def test_an_end_counts_from_the_moment_it_is_known_and_is_not_remembered_for_ever(index):
    e = endpoint(1)
    index.change((entry("a"),), (), 10.0)
    index.change((), ("a",), 10.0)
    assert kind(index.find(token(issued_s=10), e, 10.0)) is Kind.SESSION_GONE
    index.change((), tuple(f"s{i}" for i in range(100)), 10.0 + ENDED_S + 1)
    index.change((), ("z",), 10.0 + 3 * ENDED_S)
    assert len(index._ended) == 1, "what is older than any token that is believed is forgotten"
    index.begin(entry("z"), 10.0 + 3 * ENDED_S)
    assert "z" not in index.open, "an answer behind the end"
    assert kind(index.find(token(issued_s=10), e, 10.0 + 3 * ENDED_S)) is Kind.SESSION_GONE


def test_while_the_store_is_silent_what_began_since_is_believed_and_what_ended_is_not(index):
    e = endpoint(1)
    index.known_to_s = 1_000.0
    assert kind(index.find(token(issued_s=5_000), e, 9_000.0)) is None
    assert kind(index.find(token(issued_s=990), e, 9_000.0)) is Kind.SESSION_GONE, "known to be over"
    index.change((), ("a",), 5_000.0)
    index.change((), tuple(f"s{i}" for i in range(10)), 9_000.0)
    assert kind(index.find(token(issued_s=5_000), e, 9_000.0)) is Kind.SESSION_GONE, "an end is not forgotten"


def test_a_token_from_the_future_is_believed_by_the_table_alone(index):
    e = endpoint(1)
    assert kind(index.find(token(issued_s=150), e, 100.0)) is None
    assert kind(index.find(token(issued_s=161), e, 100.0)) is Kind.SESSION_GONE
    index.change((entry("a"),), (), 0.0)
    assert kind(index.find(token(issued_s=161), e, 100.0)) is None


def test_no_more_ends_are_remembered_than_may_be(index, monkeypatch):
    monkeypatch.setattr("router.routing.sessions.MAX_ENDED", MAX_ENDED)
    index._ended = dict.fromkeys(map(str, range(MAX_ENDED)), 0.0)
    index.change((), ("a",), 0.0)
    assert len(index._ended) == MAX_ENDED
    assert "a" in index._ended


def test_a_token_of_another_endpoint_or_environment(index):
    e = endpoint(1)
    for other in (token(endpoint="f"), token(environment="x")):
        for _ in range(2):  # also once it was verified
            assert kind(index.find(other, e, 0.0)) is Kind.FORBIDDEN
    assert kind(index.find(b"rs1.x.y", e, 0.0)) is Kind.SESSION_INVALID


def test_a_key_that_is_gone_is_no_key_also_for_tokens_that_were_seen(index):
    e = endpoint(1)
    assert kind(index.find(token(), e, 0.0)) is None
    index.set_keys((b"n" * 32,))
    assert kind(index.find(token(), e, 0.0)) is Kind.SESSION_INVALID


def test_only_verified_tokens_are_remembered_and_not_without_end(index, monkeypatch):
    e = endpoint(1)
    for i in range(100):
        index.find(b"rs1.%d.x" % i, e, 0.0)
    assert index._verified == {}
    monkeypatch.setattr("router.routing.sessions.MAX_VERIFIED", MAX_VERIFIED)
    index._verified = {b"%d" % i: None for i in range(MAX_VERIFIED)}
    index.find(token(), e, 0.0)
    assert len(index._verified) == 1


def test_counts_never_drift(index):
    rng = random.Random(7)
    there = {}
    for step in range(2_000):
        opened = tuple(entry(f"s{rng.randrange(30)}", f"r{rng.randrange(3)}") for _ in range(rng.randrange(3)))
        opened = tuple({e.id: e for e in opened if e.id not in there}.values())
        ended = tuple({f"s{rng.randrange(40)}" for _ in range(rng.randrange(3))} - {e.id for e in opened})
        index.change(opened, ended, float(step))
        there.update({e.id: e for e in opened})
        for session_id in ended:
            there.pop(session_id, None)
        wanted = {}
        for e in there.values():
            wanted[e.endpoint, e.replica] = wanted.get((e.endpoint, e.replica), 0) + 1
        assert index.counts == wanted
        assert index.open == there


def test_a_row_that_comes_again_counts_once_and_one_that_moves_counts_where_it_is(index):
    index.change((entry("a"),), (), 0.0)
    index.change((entry("a"),), (), 0.0)
    assert index.counts == {("e", "r0"): 1}
    index.change((entry("a", "r1"),), (), 0.0)
    assert index.counts == {("e", "r1"): 1}


def test_one_that_began_here_counts_at_once_and_is_let_go_if_the_table_never_has_it(index):
    index.begin(entry("a"), 10.0)
    index.begin(entry("b"), 11.0)
    index.begin(entry("b"), 12.0)
    assert index.counts == {("e", "r0"): 2}
    index.change((entry("a"),), (), 12.0)
    assert index.counts == {("e", "r0"): 2}
    index.settle(10.0 + BEGUN_S)
    assert index.counts == {("e", "r0"): 2}
    index.settle(11.0 + BEGUN_S)
    assert index.counts == {("e", "r0"): 1}
    assert set(index.open) == {"a"}
    index.begin(entry("c"), 100.0)
    index.change((), ("c",), 100.0)
    index.settle(1_000.0)
    assert index.counts == {("e", "r0"): 1}


def test_fewest_for_the_weight_within_the_limit(index):
    e = endpoint(1, 3)
    chosen = []
    for i in range(8):
        replica = index.choose(e.picker, "e", 1_000)
        chosen.append(replica.id)
        index.change((entry(str(i), replica.id),), (), 0.0)
    assert (chosen.count("r0"), chosen.count("r1")) == (2, 6)
    assert index.choose(e.picker, "e", 6).id == "r0", "the other is full"
    assert index.choose(e.picker, "e", 2) is Kind.AT_CAPACITY
    assert index.choose(endpoint().picker, "e", 2) is Kind.NO_REPLICA


def test_use_is_told_once_and_ends_with_the_last_request(index):
    session = Session(SessionClaim("a", "e", "main", "r0", 60, 0))
    index.enter(session)
    assert index.take_touched() == [(session, True)]
    index.enter(session)
    index.leave(session)
    assert index.take_touched() == [(session, True)]
    index.leave(session)
    assert index.take_touched() == [(session, False)]
    assert index.take_touched() == []
    assert index._in_flight == {}
