"""Each policy: its distribution within statistical bounds, weights, and what two choices are worth."""

import random
from collections import Counter

import pytest
from routekit import T0, endpoint, occupy, pick, weighted

from router.routing.load import OUTCOME_OK
from router.routing.policies import POLICIES
from router.routing.policies.round_robin import MAX_RATIO, MAX_TURNS


@pytest.fixture(autouse=True)
def seeded():
    random.seed(20_240_501)


def shares(one, picks):
    """Pick and release at once; return how often each was picked."""
    found = Counter()
    for _ in range(picks):
        lease = pick(one)
        found[lease.replica.id] += 1
        lease.release(OUTCOME_OK, T0)
    return [found[replica.id] for replica in one.replicas]


def within(counts, weights, picks, sigmas=5.0):
    total = sum(weights)
    for count, weight in zip(counts, weights, strict=True):
        share = weight / total
        bound = sigmas * (picks * share * (1 - share)) ** 0.5
        assert abs(count - picks * share) <= bound, (counts, weights)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_idle_equals_share_alike(policy):
    one = endpoint(5, policy=policy)
    within(shares(one, 5_000), [1] * 5, 5_000)


def test_random_follows_weights():
    weights = [1.0, 2.0, 0.5, 10.0]
    within(shares(endpoint(weighted(*weights), policy="random"), 20_000), weights, 20_000)


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, 1.0, 4.0), (0.1, 0.3), (5.0, 1.0, 1.0)])
def test_round_robin_is_exact(weights):
    one = endpoint(weighted(*weights), policy="round_robin")
    lightest = min(weights)
    turns = [round(weight / lightest) for weight in weights]
    assert shares(one, sum(turns) * 7) == [turn * 7 for turn in turns]


def test_round_robin_spreads_the_heavy_ones():
    """nginx's example: 5, 1, 1 gives a a b a c a a, never five in a row."""
    one = endpoint(weighted(5.0, 1.0, 1.0), policy="round_robin")
    sequence = "".join(pick(one).replica.id[1] for _ in range(70))
    assert "0" * 5 not in sequence
    assert "0" * 4 in sequence + sequence


def test_round_robin_bounds_its_sequence():
    one = endpoint(weighted(0.001, 1_000.0), policy="round_robin")
    assert shares(one, 17 * 10) == [10, MAX_RATIO * 10]
    many = endpoint(weighted(*[1.0, 16.0] * 300), policy="round_robin")
    assert len(many.picker.tiers[0]._chooser._turns) <= MAX_TURNS


def test_round_robin_starts_anywhere():
    assert len({pick(endpoint(8, policy="round_robin")).replica.id for _ in range(200)}) == 8


def test_least_inflight_is_exact():
    one = endpoint(6, policy="least_inflight")
    for i, replica in enumerate(one.replicas):
        occupy(replica, (3, 1, 4, 1, 5, 2)[i])
    for _ in range(12):
        least = min(replica.in_flight for replica in one.replicas)
        assert pick(one).replica.in_flight == least + 1
    assert min(replica.in_flight for replica in one.replicas) >= 4


def test_least_inflight_takes_turns_among_equals():
    assert shares(endpoint(4, policy="least_inflight"), 40) == [10] * 4


def test_least_inflight_weighs():
    one = endpoint(weighted(1.0, 3.0), policy="least_inflight")
    for _ in range(400):
        pick(one)
    light, heavy = (replica.in_flight for replica in one.replicas)
    assert heavy / light == pytest.approx(3.0, rel=0.05)


def test_p2c_never_takes_the_worst_of_all():
    one = endpoint(5, policy="p2c")
    occupy(one.replicas[2], 10)
    assert shares(one, 2_000)[2] == 0


def test_p2c_of_two_is_exact():
    one = endpoint(2, policy="p2c")
    occupy(one.replicas[0], 1)
    assert shares(one, 100) == [0, 100]


def test_p2c_breaks_ties_by_latency():
    one = endpoint(2, policy="p2c")
    one.replicas[0].observe_latency(0.5, T0)
    one.replicas[1].observe_latency(0.1, T0)
    assert shares(one, 100) == [0, 100]


def test_p2c_weighs():
    one = endpoint(weighted(1.0, 1.0, 4.0), policy="p2c")
    for _ in range(600):
        pick(one)
    loads = [replica.in_flight / replica.weight for replica in one.replicas]
    assert max(loads) / min(loads) < 1.15


def longest_queue(policy, replicas=50, requests=20_000):
    """Requests of random length at 90 % load; the longest queue seen on average."""
    rng = random.Random(7)
    one = endpoint(replicas, policy=policy)
    ends = []
    longest = samples = 0
    import heapq

    now = T0
    for i in range(requests):
        now += rng.expovariate(0.9 * replicas)
        while ends and ends[0][0] <= now:
            _, _, lease = heapq.heappop(ends)
            lease.release(OUTCOME_OK, now)
        lease = pick(one, now=now)
        # A replica serves one after another: its request ends after those before it.
        free_at = max(now, getattr(longest_queue, "free", {}).get(lease.replica, now))
        free_at += rng.expovariate(1.0)
        longest_queue.free[lease.replica] = free_at
        heapq.heappush(ends, (free_at, i, lease))
        if i > requests // 2 and i % 50 == 0:
            longest += max(replica.in_flight for replica in one.replicas)
            samples += 1
    return longest / samples


def test_two_choices_beat_one():
    """Mitzenmacher: the longest queue is log log n instead of log n; exact knowledge is better still."""
    longest_queue.free = {}
    found = {policy: longest_queue(policy) for policy in ("random", "p2c", "least_inflight")}
    assert found["p2c"] < 0.4 * found["random"]
    assert found["least_inflight"] <= found["p2c"]
