"""The picker's rules: tried ones, limits, who is left; and explain, which must agree with it."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from routekit import T0, Context, build, endpoint, occupy, pick, weighted

from router.errors import Kind
from router.routing.explain import Asked, explain
from router.routing.load import OUTCOME_FAILED, OUTCOME_OK, Lease
from router.routing.policies import POLICIES
from router.routing.spec import EndpointSpec, LimitSpec, OutlierSpec, ReplicaSpec, RouteSpec, TableSpec
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


def preferred(one, name, *tried):
    return one.picker.pick_preferred(one.find(name), Context(*tried), T0)


def test_a_preferred_one_is_found_in_any_tier_and_counts_as_far_if_it_is():
    one = endpoint(3, policy="random", limits=LIMIT_1)
    a, b, c = one.replicas
    b.rank = 1
    lease = preferred(one, b.key)
    assert lease.replica is b
    assert (b.in_flight, one.counters.spilled) == (1, 1)
    assert preferred(one, b.key) is None, "it is full"
    assert preferred(one, c.key, c) is None, "it was tried"
    assert preferred(one, b"nobody") is None
    one.set_health(c, is_healthy=False, now=T0)
    assert preferred(one, c.key) is None
    a.avoid(T0)
    assert preferred(one, a.key) is None
    assert one.picker.pick_preferred(a, Context(), T0 + 60.0).replica is a
    assert endpoint(0).picker.pick_preferred(a, Context(), T0 + 60.0) is None


class TestExplain:
    def test_no_route(self):
        table = build_table(TableSpec(1), T0)
        found = explain(table, Asked("a"), T0)
        assert (found["route"], found["error"]) == (None, "no_route")

    def test_it_takes_no_lease(self):
        table = build(2)
        found = explain(table, Asked("A.Example"), T0)
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
        found = explain(table, Asked("a"), T0)
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
        reasons = [candidate["excluded"] for candidate in explain(table, Asked("a"), T0)["candidates"]]
        assert reasons == [
            "active health checks fail",
            "ejected for another 5.0 s",
            "at its limit of 2 in flight",
            None,
        ]


def test_explain_shows_weights():
    found = explain(build(weighted(1.0, 4.0)), Asked("a"), T0)
    assert [candidate["load"] for candidate in found["candidates"]] == [1.0, 0.25]


class TestWhatIf:
    def test_without_a_replica_its_keys_go_where_they_then_would(self):
        table = build(5)
        one = table.endpoints["e"]
        home = explain(table, Asked("a", key="agent"), T0)["choice"]
        second = explain(table, Asked("a", key="agent", without=home), T0)
        assert second["choice"] not in (None, home)
        assert next(c for c in second["candidates"] if c["replica"] == home)["excluded"] == "left out, as was asked"
        assert explain(table, Asked("a", key="agent"), T0)["choice"] == home, "nothing has changed"
        gone = next(replica for replica in one.replicas if replica.id == home)
        one.set_health(gone, is_healthy=False, now=T0)
        assert pick(one, affinity=b"agent").replica.id == second["choice"], "it is what happens then"

    def test_without_the_last_one(self):
        found = explain(build(1), Asked("a", without="r0"), T0)
        assert (found["choice"], found["error"], found["tiers"]) == (None, "no_replica", [])

    def test_of_nobody_it_is_the_same(self):
        table = build(3)
        assert explain(table, Asked("a", key="k", without="nobody"), T0) == explain(table, Asked("a", key="k"), T0)

    def test_asking_moves_no_policy_and_counts_nothing(self):
        table = build(3, policy="round_robin")
        one = table.endpoints["e"]
        before = one.picker.tiers[0]._chooser._next
        for _ in range(7):
            explain(table, Asked("a", key="k"), T0)
        assert one.picker.tiers[0]._chooser._next == before
        turns = [pick(one).replica.id for _ in range(3)]
        assert len(set(turns)) == 3
        assert (one.counters.keyed, one.counters.spilled, one.counters.in_flight) == (0, 0, 0)


class TestExplainKeys:
    def test_it_says_whom_a_key_passes_over_and_why(self):
        table = build(4)
        one = table.endpoints["e"]
        home = pick(one, affinity=b"agent").replica
        occupy(home, 9)
        found = explain(table, Asked("a", key="agent"), T0)
        assert found["key"]["home"] == home.id
        assert found["key"]["passed_over"][0] == home.id
        shown = next(c for c in found["candidates"] if c["replica"] == home.id)
        assert "loaded beyond its part" in shown["key_excluded"]
        assert shown["excluded"] is None
        assert pick(one, affinity=b"agent").replica.id == found["choice"]

    def test_a_key_is_not_for_who_just_failed(self):
        table = build(4)
        one = table.endpoints["e"]
        home = pick(one, affinity=b"agent").replica
        one.note(home, OUTCOME_FAILED, T0)
        found = explain(table, Asked("a", key="agent"), T0)
        shown = next(c for c in found["candidates"] if c["replica"] == home.id)
        assert shown["key_excluded"] == "failed or refused; not for routing keys for another 1.0 s"
        assert found["choice"] != home.id

    def test_regions_and_tiers(self):
        replicas = [
            ReplicaSpec("near", "http://a:1", region="eu"), ReplicaSpec("far", "http://b:1", region="us"),
            ReplicaSpec("never", "http://c:1", region="asia"),
        ]  # fmt: skip
        spec = EndpointSpec("e", tuple(replicas), failover=("us",))
        table = build_table(TableSpec(1, (spec,), (RouteSpec("*", "/", "e"),)), T0, None, "eu")
        found = explain(table, Asked("a"), T0)
        assert [(tier["rank"], tier["regions"]) for tier in found["tiers"]] == [(0, ["eu"]), (1, ["us"])]
        assert [c["tier"] for c in found["candidates"]] == [0, 1, None]
        assert "region asia is not used" in found["candidates"][2]["excluded"]
        assert found["choice"] == "near"

    def test_by_model(self):
        spec = EndpointSpec("e", (ReplicaSpec("r", "http://a:1"),), environment="team", models=("org/m",))
        table = build_table(TableSpec(1, (spec,), (RouteSpec("*", "/", "", by_model=True),)), T0)
        assert explain(table, Asked("a", model="org/m", environment="team"), T0)["choice"] == "r"
        assert explain(table, Asked("a", model="org/m"), T0)["error"] == "model_not_found"
        assert explain(table, Asked("a"), T0)["error"] == "model_missing"

    def test_a_full_endpoint(self):
        table = build(2, limits=LimitSpec(endpoint_concurrency=1))
        table.endpoints["e"].counters.in_flight = 1
        found = explain(table, Asked("a"), T0)
        assert (found["choice"], found["error"]) == (None, "at_capacity")
