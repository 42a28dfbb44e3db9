"""Lag and memory with virtual time: when new requests are refused, how large a share, and when no more."""

import pytest

from router.core import Core
from router.overload import (
    FALL,
    FLOOR,
    LATE_TICKS,
    MEMORY_LOOK_S,
    RISE,
    TRIM_GAP_S,
    Overload,
    OverloadLimits,
    read_memory,
)

TICK_S = 0.025
MIB = 1 << 20


class Rig:
    def __init__(self, lag_s=0.1, memory_bytes=0):
        self.memory = 0
        self.released = 0
        self.freed = 0
        self.now = 1000.0
        self.overload = Overload(OverloadLimits(lag_s, memory_bytes), lambda: self.memory, self.release)

    def release(self):
        self.released += 1
        self.memory -= self.freed

    def tick(self, lag_s=0.0, count=1):
        for _ in range(count):
            self.now += TICK_S + lag_s
            self.overload.tick(lag_s, self.now)
        return self.overload.share


class TestLag:
    def test_one_long_pause_is_no_load(self):
        rig = Rig()
        assert rig.tick(60.0) == 0
        assert rig.tick(count=100) == 0
        assert rig.overload.describe() == ""

    def test_a_loop_that_is_late_again_and_again_sheds_more_and_more(self):
        rig = Rig()
        assert rig.tick(0.3, LATE_TICKS - 1) == 0
        shares = [rig.tick(0.3) for _ in range(20)]
        assert shares == sorted(shares) and 0 < shares[0] <= RISE
        assert shares[-1] > 0.95, "three times the limit: everything"
        assert rig.overload.describe().startswith("lag 300 ms, ")

    def test_in_between_it_sheds_a_part(self):
        rig = Rig()
        assert rig.tick(0.2, 100) == pytest.approx(0.5, abs=0.01)

    def test_below_the_limit_it_sheds_nothing(self):
        assert Rig().tick(0.099, 1000) == 0

    def test_it_ends_well_below_the_limit_and_slowly(self):
        rig = Rig()
        share = rig.tick(0.3, 30)
        assert rig.tick(0.0) == pytest.approx(share - FALL)
        assert rig.tick(0.08, 200) == FLOOR, "not yet well below: as little as can be"
        assert rig.overload.reason == "lag"
        assert rig.tick(0.0, 20) == 0
        assert rig.overload.reason == "" and rig.overload.describe() == ""

    def test_it_finds_the_load_that_can_be_carried(self):
        """A loop whose lag follows what it takes on: the share settles instead of swinging between all and nothing."""
        rig = Rig()
        shares = [rig.tick(0.4 * (1 - rig.overload.share)) for _ in range(2000)]
        last = shares[-200:]
        assert max(last) - min(last) < 0.05
        assert 0.3 < last[-1] < 0.9

    def test_none_is_watched_for_without_a_limit(self):
        assert Rig(lag_s=0).tick(10.0, 100) == 0


class TestMemory:
    def rig(self, **options):
        return Rig(lag_s=0, memory_bytes=1000 * MIB, **options)

    def look(self, rig, mib):
        rig.memory = mib * MIB
        return rig.tick(count=int(MEMORY_LOOK_S / TICK_S) + 60)

    def test_from_nine_tenths_on(self):
        rig = self.rig()
        assert self.look(rig, 890) == 0
        assert self.look(rig, 950) == pytest.approx(0.5)
        assert not rig.overload.refuses_connections
        assert rig.overload.describe() == "memory 950 of 1000 MiB, 50% of new requests refused"
        assert self.look(rig, 1001) == 1.0
        assert rig.overload.refuses_connections
        assert self.look(rig, 980) == pytest.approx(0.8) and rig.overload.refuses_connections
        self.look(rig, 960)
        assert not rig.overload.refuses_connections
        assert self.look(rig, 100) == 0

    def test_what_was_freed_is_given_back_first_and_not_too_often(self):
        rig = self.rig()
        rig.freed = 300 * MIB
        assert self.look(rig, 1000) == 0
        assert rig.released == 1
        rig.freed = 0
        self.look(rig, 1000)
        assert rig.released == 1, f"once in {TRIM_GAP_S} s"
        rig.tick(count=int(TRIM_GAP_S / TICK_S))
        assert rig.released == 2

    def test_the_larger_share_counts(self):
        rig = Rig(lag_s=0.1, memory_bytes=1000 * MIB)
        rig.memory = 920 * MIB
        assert rig.tick(0.3, 50) > 0.9
        assert rig.overload.reason == "lag"
        assert rig.tick(0.0, 100) == pytest.approx(0.2)
        assert rig.overload.reason == "memory"

    def test_this_process_has_some(self):
        assert 5 * MIB < read_memory() < 10_000 * MIB


def test_the_share_is_spread_evenly():
    core = Core(None, None, None, None, None, b"p")
    core.shed_share = 0.25
    assert [core.sheds() for _ in range(8)] == [False, False, False, True] * 2
    assert core.shed_requests == 2
    core.shed_share = 1.0
    assert all(core.sheds() for _ in range(100))
