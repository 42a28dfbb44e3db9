"""Where keys belong: how many move, who takes over, and that nobody attracts what it refuses."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from routekit import T0, Context, build, specs

from router.errors import Kind
from router.routing.load import OUTCOME_BACKPRESSURE, OUTCOME_FAILED, OUTCOME_OK
from router.routing.ring import MAX_WALK, POINTS, Ring
from router.routing.spec import LimitSpec, OutlierSpec, ReplicaSpec

KEYS = [b"session-%d" % i for i in range(4_000)]


def endpoint_of(table):
    return table.endpoints["e"]


def owners(endpoint, keys=KEYS, now=T0):
    """Where each key goes while nothing is in flight."""
    found = {}
    for key in keys:
        lease = endpoint.picker.pick(Context(affinity=key), now)
        lease.release(OUTCOME_OK, now)
        found[key] = lease.replica.id
    return found


@pytest.mark.parametrize("size", [2, 3, 10, 50])
def test_a_replica_more_takes_its_part_of_the_keys_and_nobody_elses_move(size):
    before = build(size)
    first = owners(endpoint_of(before))
    second = owners(endpoint_of(build(size + 1, before=before)))
    moved = [key for key in KEYS if first[key] != second[key]]
    assert all(second[key] == f"r{size}" for key in moved), "a key moved between replicas that stayed"
    ideal = len(KEYS) / (size + 1)
    assert 0.6 * ideal <= len(moved) <= 1.4 * ideal


@pytest.mark.parametrize("size", [3, 10, 50])
def test_a_replica_less_gives_its_keys_to_many_and_nobody_elses_move(size):
    before = build(size)
    first = owners(endpoint_of(before))
    second = owners(endpoint_of(build(size - 1, before=before)))
    moved = [key for key in KEYS if first[key] != second[key]]
    assert {first[key] for key in moved} == {f"r{size - 1}"}
    assert len({second[key] for key in moved}) >= min(size - 1, 8)


def test_every_router_puts_a_key_at_the_same_place_whatever_it_saw_before():
    grown = build(2)
    for size in (9, 4, 7, 30, 12):
        grown = build(size, before=grown)
        owners(endpoint_of(grown), KEYS[:50])
    fresh = build(list(reversed(specs(12))))
    assert owners(endpoint_of(grown)) == owners(endpoint_of(fresh))


def test_keys_are_spread_evenly_enough():
    shares = Counter(owners(endpoint_of(build(10))).values())
    assert len(shares) == 10
    assert max(shares.values()) <= 1.5 * len(KEYS) / 10
    assert min(shares.values()) >= 0.5 * len(KEYS) / 10


def test_weights_count():
    replicas = [ReplicaSpec("light", "http://a:1"), ReplicaSpec("heavy", "http://b:1", weight=3.0)]
    shares = Counter(owners(endpoint_of(build(replicas))).values())
    assert 2.0 <= shares["heavy"] / shares["light"] <= 4.5


def test_a_replica_at_another_address_keeps_its_keys():
    before = build(5)
    first = owners(endpoint_of(before))
    moved = [ReplicaSpec(f"r{i}", f"http://10.9.9.{i + 1}:80", slot=i) for i in range(5)]
    assert owners(endpoint_of(build(moved, before=before))) == first


def test_the_load_of_one_key_is_bounded():
    """1.25 times the mean, as the endpoint says: a key that everybody uses does not sink its replica."""
    one = endpoint_of(build(10))
    leases = []
    for _ in range(200):
        one.counters.in_flight += 1
        leases.append(one.picker.pick(Context(affinity=b"hot"), T0))
    counts = Counter(lease.replica.id for lease in leases)
    assert max(counts.values()) <= 1.25 * 200 / 10 + 1
    home = owners(endpoint_of(build(10)), [b"hot"])[b"hot"]
    assert counts[home] == max(counts.values())


def test_few_requests_of_one_key_stay_together():
    one = endpoint_of(build(10))
    replicas = set()
    for _ in range(4):
        one.counters.in_flight += 1
        replicas.add(one.picker.pick(Context(affinity=b"agent"), T0).replica.id)
    assert len(replicas) == 1


@pytest.mark.parametrize("outcome", [OUTCOME_BACKPRESSURE, OUTCOME_FAILED])
def test_no_503_attractor(outcome):
    """A replica that refuses fast is always idle. By plain hashing it would be sent all of its keys for ever."""
    one = endpoint_of(build(10, outlier=OutlierSpec(consecutive_failures=0)))  # passive ejection would hide it
    homes = owners(one)
    bad = homes[KEYS[0]]
    hers = [key for key in KEYS if homes[key] == bad]
    plain = guarded = 0
    now = T0
    for i in range(2_000):
        now += 0.01
        key = hers[i % len(hers)]
        plain += homes[key] == bad
        lease = one.picker.pick(Context(affinity=key), now)
        refused = lease.replica.id == bad
        guarded += refused
        lease.release(outcome if refused else OUTCOME_OK, now)
    assert plain == 2_000, "plain hashing is the attractor"
    assert guarded <= 8, "20 s: tried again after 1, 2, 4 and 8 seconds"
    now += 60.0
    lease = one.picker.pick(Context(affinity=hers[0]), now)
    assert lease.replica.id == bad, "it is tried again"
    lease.release(OUTCOME_OK, now)
    assert owners(one, hers[:20], now) == dict.fromkeys(hers[:20], bad), "and has its keys back when it works"


def test_who_is_ejected_unhealthy_or_draining_is_passed_over_and_gets_its_keys_back():
    before = build(5)
    one = endpoint_of(before)
    homes = owners(one)
    bad = next(replica for replica in one.replicas if replica.id == homes[KEYS[0]])
    one.set_health(bad, is_healthy=False, now=T0)
    assert bad.id not in owners(one).values()
    assert {key: home for key, home in owners(one).items() if homes[key] != bad.id} == {
        key: home for key, home in homes.items() if home != bad.id
    }
    one.set_health(bad, is_healthy=True, now=T0)
    assert owners(one) == homes


def test_a_full_replica_is_passed_over_and_all_full_is_at_capacity():
    one = endpoint_of(build(2, limits=LimitSpec(max_concurrency=1)))
    picked = [one.picker.pick(Context(affinity=b"k"), T0) for _ in range(3)]
    assert {lease.replica.id for lease in picked[:2]} == {"r0", "r1"}
    assert picked[2] is Kind.AT_CAPACITY


def test_what_was_tried_is_not_tried_again():
    one = endpoint_of(build(3))
    first = one.picker.pick(Context(affinity=b"k"), T0).replica
    second = one.picker.pick(Context(first, affinity=b"k"), T0).replica
    third = one.picker.pick(Context(first, second, affinity=b"k"), T0).replica
    assert len({first, second, third}) == 3
    assert one.picker.pick(Context(first, second, third, affinity=b"k"), T0) is Kind.NO_REPLICA


@pytest.mark.parametrize("size", [10, 1_000])
def test_a_look_up_looks_at_few_replicas_whatever_their_number(size, monkeypatch):
    one = endpoint_of(build(size))
    looked_at = 0
    tier = type(one.picker.tiers[0])
    real = tier.takes_affine

    def counted(self, replica, now):
        nonlocal looked_at
        looked_at += 1
        return real(self, replica, now)

    monkeypatch.setattr(tier, "takes_affine", counted)
    owners(one, KEYS[:100])
    assert looked_at == 100


def test_a_change_of_one_replica_keeps_the_other_points():
    ring = Ring()
    members = endpoint_of(build(100)).replicas
    ring.follow(members[:99])
    before = set(ring._points)
    ring.follow(members)
    assert before < set(ring._points)
    assert len(ring._points) == 100 * POINTS
    ring.follow(members[:99])
    assert set(ring._points) == before
    assert ring._points == sorted(ring._points)


def test_the_walk_is_bounded():
    """With nobody to take a key the policy decides, after a bounded look."""
    one = endpoint_of(build(1_000))
    for replica in one.replicas[:999]:
        replica.avoid_until_s = T0 + 10.0
    counted = 0
    tier = one.picker.tiers[0]

    class Nobody:
        def takes_affine(self, replica, now):
            nonlocal counted
            counted += 1
            return False

    assert one.picker.ring(tier).find(b"k", Nobody(), (), T0) is None
    assert counted <= MAX_WALK
    assert not isinstance(one.picker.pick(Context(affinity=b"k"), T0), Kind)


@given(st.lists(st.dictionaries(st.integers(0, 5), st.sampled_from([0.5, 1.0, 2.0, 4.0]), max_size=6), min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_whatever_became_of_weights_and_members_the_ring_is_as_one_made_afresh(steps):
    """Replicas stay the same objects, and their weights change in place."""
    table = None
    for step in steps:
        wanted = [ReplicaSpec(f"r{i}", f"http://10.0.0.{i}:80", weight=w, slot=i) for i, w in sorted(step.items())]
        table = build(wanted, before=table)
        one, fresh = endpoint_of(table), endpoint_of(build(wanted))
        if not wanted:
            continue
        ring, new = one.picker.ring(one.picker.tiers[0]), fresh.picker.ring(fresh.picker.tiers[0])
        assert ring._points == new._points
        assert {p: r.id for p, r in ring._owners.items()} == {p: r.id for p, r in new._owners.items()}
        assert not any(replica.has_left for replica in ring._owners.values())


def test_a_replica_that_left_takes_no_key_even_where_somebody_still_holds_it():
    before = build(3)
    gone = endpoint_of(before).replicas[2]
    picker = endpoint_of(before).picker
    build(2, before=before)
    assert all(picker.choose(key, None, (), T0) is not gone for key in KEYS[:300])
