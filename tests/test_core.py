"""Ids of requests: the worker's prefix and a count, each of them once."""

from router.clock import Clock
from router.core import Core
from router.deadlines import DeadlineWheel
from router.routing.stage import Stage


def make_core():
    clock = Clock(lambda: 0.0)
    return Core(Stage().table, None, None, clock, DeadlineWheel(clock.now), b"a1b2")


def test_ids_count_in_hex_across_every_carry():
    core = make_core()
    ids = [core.make_id() for _ in range(0x10_100)]
    assert ids == [b"a1b2-%08x" % count for count in range(1, 0x10_101)]


def test_ids_do_not_repeat_beyond_eight_digits():
    core = make_core()
    core._ids = 0xFFFF_FFFF
    assert [core.make_id() for _ in range(2)] == [b"a1b2-100000000", b"a1b2-100000001"]
