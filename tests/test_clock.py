"""The time of a tick: it moves when it is read, and only then."""

from router.clock import Clock


def test_it_stands_between_two_reads():
    times = iter((1.0, 2.0, 3.0))
    clock = Clock(lambda: next(times))
    assert clock.now == clock.now == 1.0
    assert clock.read() == 2.0
    assert clock.now == 2.0


def test_the_real_one_is_monotonic():
    clock = Clock()
    before = clock.now
    assert clock.read() >= before
