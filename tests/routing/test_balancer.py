"""The picker's rules: tried ones, limits, who is left; and explain, which must agree with it."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from routekit import T0, build, endpoint, occupy, pick, weighted

from router.errors import Kind
from router.routing.explain import explain
from router.routing.load import OUTCOME_FAILED, OUTCOME_OK, Lease
from router.routing.policies import POLICIES
from router.routing.spec import LimitSpec, OutlierSpec, TableSpec
from router.routing.stage import build as build_table

LIMIT_1 = LimitSpec(max_concurrency=1)


@pytest.fixture(params=sorted(POLICIES))
def policy(request):
    return request.param


def test_nobody(policy):
    assert pick(endpoint(0, policy=policy)) is Kind.NO_REPLICA


def test_a_pick_is_a_lease(policy):
    one = endpoint(1, policy=policy)
    lease = pick(one)
    assert isinstance(lease, Lease)
    assert (lease.replica.in_flight, lease.replica.requests) == (1, 1)


def test_tried_ones_are_passed_over_for_the_least_loaded_of_the_rest(policy):
    one = endpoint(4, policy=policy)
    a, b, c, d = one.replicas
    occupy(b, 2)
    occupy(c, 1)
    occupy(d, 3)
    for _ in range(20):
        lease = pick(one, a)
        assert lease.replica is c
        lease.release(OUTCOME_OK, T0)
        assert pick(one, a, b, c).replica is d
    assert pick(one, a, b, c, d) is Kind.NO_REPLICA


def test_a_full_one_is_passed_over(policy):
    one = endpoint(3, policy=policy, limits=LIMIT_1)
    picked = [pick(one).replica for _ in range(3)]
    assert set(picked) == set(one.replicas)
    assert pick(one) is Kind.AT_CAPACITY


def test_the_others_tried_and_the_rest_full_is_at_capacity(policy):
    one = endpoint(2, policy=policy, limits=LIMIT_1)
    a, b = one.replicas
    occupy(b, 1)
    assert pick(one, a) is Kind.AT_CAPACITY
    assert pick(one, a, b) is Kind.NO_REPLICA


def test_no_limit_is_no_limit(policy):
    one = endpoint(1, policy=policy)
    occupy(one.replicas[0], 10_000)
    assert isinstance(pick(one), Lease)


def test_one_that_is_not_ready_is_never_picked(policy):
    one = endpoint(3, policy=policy)
    one.set_health(one.replicas[0], is_healthy=False, now=T0)
    assert {pick(one).replica.id for _ in range(60)} <= {"r1", "r2"}
    one.set_health(one.replicas[1], is_healthy=False, now=T0)
    one.set_health(one.replicas[2], is_healthy=False, now=T0)
    assert pick(one) is Kind.NO_REPLICA


class TestExplain:
    def test_no_route(self):
        table = build_table(TableSpec(1), T0)
        found = explain(table, "a", "/", T0)
        assert (found["route"], found["error"]) == (None, "no_route")

    def test_it_takes_no_lease(self):
        table = build(2)
        found = explain(table, "A.Example", "/", T0)
        assert found["error"] is None
        assert found["ready"] == 2
        assert all(replica.in_flight == replica.requests == 0 for _, replica in table.replicas())

    @settings(deadline=None)
    @given(
        states=st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=5),
        limit=st.integers(0, 2),
    )
    def test_it_agrees_with_pick(self, states, limit):
        """Health, ejection and load in any mixture: what explain lets pass is what a pick may take, and no other."""
        table = build(
            len(states), limits=LimitSpec(max_concurrency=limit), outlier=OutlierSpec(consecutive_failures=1)
        )
        one = table.endpoints["e"]
        for replica, (is_healthy, fails, load) in zip(one.replicas, states, strict=True):
            if fails:
                one.note(replica, OUTCOME_FAILED, T0)
            one.set_health(replica, is_healthy=is_healthy, now=T0)
            occupy(replica, load)
        found = explain(table, "a", "/", T0)
        open_now = {candidate["replica"] for candidate in found["candidates"] if candidate["excluded"] is None}
        picked = set()
        for _ in range(40):
            lease = pick(one)
            if isinstance(lease, Kind):
                assert found["error"] == lease.value
                break
            picked.add(lease.replica.id)
            lease.release(OUTCOME_OK, T0)
        assert picked <= open_now
        assert bool(picked) == bool(open_now)
        if open_now:
            assert found["error"] is None
            tried = tuple(
                replica for replica in one.replicas if replica.id not in open_now and replica in one.picker.eligible
            )
            assert pick(one, *tried).replica.id in open_now
            least = next(
                candidate for candidate in found["candidates"] if candidate["replica"] == found["least_loaded"]
            )
            assert least["load"] == min(c["load"] for c in found["candidates"] if c["excluded"] is None)

    def test_reasons(self):
        table = build(4, limits=LimitSpec(max_concurrency=2), outlier=OutlierSpec(consecutive_failures=1))
        one = table.endpoints["e"]
        one.set_health(one.replicas[0], is_healthy=False, now=T0)
        one.note(one.replicas[1], OUTCOME_FAILED, T0)
        occupy(one.replicas[2], 2)
        reasons = [candidate["excluded"] for candidate in explain(table, "a", "/", T0)["candidates"]]
        assert reasons == [
            "active health checks fail",
            "ejected for another 5.0 s",
            "at its limit of 2 in flight",
            None,
        ]


def test_explain_shows_weights():
    found = explain(build(weighted(1.0, 4.0)), "a", "/", T0)
    assert [candidate["load"] for candidate in found["candidates"]] == [1.0, 0.25]
