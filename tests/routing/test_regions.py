"""Nearest region first, spill-over in the endpoint's order, and regions that take nothing."""

from collections import Counter

import pytest
from routekit import T0, Context

from router.errors import Kind
from router.routing.regions import NOWHERE, Geography
from router.routing.spec import EndpointSpec, LimitSpec, RegionSpec, ReplicaSpec, RouteSpec, TablePatch, TableSpec
from router.routing.stage import Stage, whole

PLACES = {"e1": "eu", "e2": "eu", "u1": "us", "a1": "asia", "x1": ""}


def stage(own="eu", regions=(), without=(), **endpoint):
    replicas = tuple(
        ReplicaSpec(name, f"http://{name}:1", region=region, slot=i)
        for i, (name, region) in enumerate(PLACES.items())
        if name not in without
    )
    spec = TableSpec(1, (EndpointSpec("e", replicas, **endpoint),), (RouteSpec("*", "/", "e"),), regions=tuple(regions))
    made = Stage(None, own)
    made.add(whole(spec), T0)
    return made


def picked(made, count=200, key=b""):
    one = made.table.endpoints["e"]
    return Counter(one.picker.pick(Context(affinity=key), T0).replica.id for _ in range(count))


def fail(made, *names):
    one = made.table.endpoints["e"]
    for replica in one.replicas:
        if replica.id in names:
            one.set_health(replica, is_healthy=False, now=T0)


@pytest.mark.parametrize("key", [b"", b"key"])
def test_the_own_region_comes_first_with_replicas_that_name_none(key):
    made = stage()
    assert set(picked(made, key=key)) <= {"e1", "e2", "x1"}
    assert made.table.endpoints["e"].counters.spilled == 0


@pytest.mark.parametrize("key", [b"", b"key"])
def test_it_spills_in_the_endpoints_order_and_counts_it(key):
    made = stage(failover=("asia", "us"))
    fail(made, "e1", "e2", "x1")
    assert set(picked(made, 50, key)) == {"a1"}
    assert made.table.endpoints["e"].counters.spilled == 50
    fail(made, "a1")
    assert set(picked(made, 50, key)) == {"u1"}


def test_a_region_that_the_order_does_not_name_is_never_used():
    made = stage(failover=("us",))
    fail(made, "e1", "e2", "x1", "u1")
    assert made.table.endpoints["e"].picker.pick(Context(), T0) is Kind.NO_REPLICA
    made = stage(failover=())
    fail(made, "e1", "e2", "x1")
    assert made.table.endpoints["e"].picker.pick(Context(), T0) is Kind.NO_REPLICA


def test_without_an_order_the_own_regions_row_says_it_and_without_one_anywhere():
    made = stage(regions=[RegionSpec("eu", failover=("us",))])
    fail(made, "e1", "e2", "x1")
    assert set(picked(made)) == {"u1"}
    made = stage()
    fail(made, "e1", "e2", "x1")
    assert set(picked(made)) == {"u1", "a1"}


def test_a_full_region_spills_too():
    made = stage(failover=("us",), limits=LimitSpec(max_concurrency=1), without=("x1",))
    one = made.table.endpoints["e"]
    assert [one.picker.pick(Context(), T0).replica.id in ("e1", "e2") for _ in range(2)] == [True, True]
    assert one.picker.pick(Context(), T0).replica.id == "u1"
    assert one.picker.pick(Context(), T0) is Kind.AT_CAPACITY


@pytest.mark.parametrize("state", ["DRAINING", "DOWN"])
def test_a_region_that_drains_takes_nothing_until_it_is_back(state):
    made = stage(without=("x1",))
    step = made.add(TablePatch(2, regions=(RegionSpec("eu", state),)), T0)
    assert step.departed == []
    assert set(picked(made)) == {"u1", "a1"}
    made.add(TablePatch(3, regions=(RegionSpec("eu"),)), T0)
    assert set(picked(made)) == {"e1", "e2"}


def test_no_weight_is_no_requests_and_weights_count_within_a_tier():
    made = stage(own="moon", regions=[RegionSpec("us", weight=0.0), RegionSpec("asia", weight=9.0)], without=("x1", "e2"), policy="random")
    shares = picked(made, 2_000)
    assert shares["u1"] == 0
    assert shares["a1"] / shares["e1"] == pytest.approx(9.0, rel=0.4)


def test_a_router_without_a_region_is_near_to_all():
    assert set(picked(stage(own=""), 500)) == set(PLACES)


def test_panic_is_of_all_regions_together():
    """Two of five failing is no panic, even though they are all that is near."""
    made = stage(without=("x1",), failover=("us", "asia"))
    one = made.table.endpoints["e"]
    for replica in one.replicas:
        if replica.region == "eu":
            replica.ejected_until_s = T0 + 10.0
    one.refresh(T0)
    assert set(picked(made)) == {"u1"}


def test_ranks():
    geography = Geography("eu")
    assert [geography.rank(r, ("us", "asia")) for r in ("eu", "", "us", "asia", "moon")] == [0, 0, 1, 2, NOWHERE]
    assert geography.rank("us", None) == 1
    assert geography.state("eu") == "READY"
