"""Choosing by what engines say: fresh readings decide, stale ones are of engines that are full."""

from collections import Counter

from routekit import T0, build, occupy, pick

from router.routing.policies.engine_load import STALE_S


def endpoint(*loads, at=T0):
    one = build(len(loads), policy="engine_load").endpoints["e"]
    for replica, load in zip(one.replicas, loads, strict=True):
        if load is not None:
            replica.note_engine_load(load, at)
    return one


def shares(one, now=T0, count=300):
    found = Counter()
    for _ in range(count):
        lease = pick(one, now=now)
        found[lease.replica.id] += 1
        lease.release(0, now)
    return found


def test_the_engine_with_less_to_do():
    assert shares(endpoint(9.0, 1.0)) == {"r1": 300}
    worst = shares(endpoint(1.0, 2.0, 3.0, 30.0))
    assert worst["r3"] == 0


def test_what_was_sent_since_counts():
    one = endpoint(5.0, 0.0)
    taken = [pick(one).replica.id for _ in range(20)]
    assert 11 <= taken.count("r1") <= 13


def test_weights_count():
    one = endpoint(4.0, 2.0)
    one.replicas[0].weight = 10.0
    assert shares(one) == {"r0": 300}


def test_a_stale_reading_is_of_a_full_engine():
    one = endpoint(0.0, 50.0)
    one.replicas[1].note_engine_load(50.0, T0 + STALE_S + 1.0)
    assert shares(one, T0 + STALE_S + 1.0) == {"r1": 300}


def test_one_that_never_answered_is_full():
    assert shares(endpoint(None, 50.0)) == {"r1": 300}


def test_without_readings_it_is_p2c():
    one = endpoint(None, None, None)
    occupy(one.replicas[0], 20)
    assert shares(one)["r0"] == 0
    assert set(shares(one)) == {"r1", "r2"}


def test_one_alone():
    assert shares(endpoint(None)) == {"r0": 300}
