"""Ejection with growing periods, its cap, panic, and the slow start of a new replica."""

import pytest
from routekit import T0, build, endpoint

from router.routing.load import OUTCOME_BACKPRESSURE, OUTCOME_CANCELLED, OUTCOME_FAILED, OUTCOME_OK, Lease
from router.routing.spec import OutlierSpec


def fail(one, replica, count=5, now=T0, outcome=OUTCOME_FAILED):
    for _ in range(count):
        Lease(replica, now).release(outcome, now)


def eligible(one):
    return "".join(replica.id[1:] for replica in one.picker.eligible)


class TestEjection:
    def test_after_so_many_in_a_row(self):
        one = endpoint(4)
        fail(one, one.replicas[0], 4)
        assert eligible(one) == "0123"
        fail(one, one.replicas[0], 1)
        assert eligible(one) == "123"
        assert one.replicas[0].ejected_until_s == T0 + 5.0

    def test_a_success_begins_the_count_anew(self):
        one = endpoint(4)
        for _ in range(10):
            fail(one, one.replicas[0], 4)
            fail(one, one.replicas[0], 1, outcome=OUTCOME_OK)
        assert eligible(one) == "0123"

    @pytest.mark.parametrize("outcome", [OUTCOME_BACKPRESSURE, OUTCOME_CANCELLED])
    def test_neither_backpressure_nor_cancels_eject(self, outcome):
        one = endpoint(4)
        fail(one, one.replicas[0], 100, outcome=outcome)
        assert eligible(one) == "0123"

    def test_zero_turns_it_off(self):
        one = endpoint(4, outlier=OutlierSpec(consecutive_failures=0))
        fail(one, one.replicas[0], 100)
        assert eligible(one) == "0123"

    def test_periods_grow_up_to_a_maximum(self):
        one = endpoint(4, outlier=OutlierSpec(base_ejection_s=5.0, max_ejection_s=12.0))
        replica = one.replicas[0]
        now = T0
        for period_s in (5.0, 10.0, 12.0, 12.0):
            fail(one, replica, now=now)
            assert replica.ejected_until_s == now + period_s
            now = replica.ejected_until_s
            assert one.next_deadline() == now
            one.handle_deadline(now)
            assert eligible(one) == "0123"
        assert replica.ejections == 4

    def test_failures_while_ejected_do_not_lengthen_it(self):
        one = endpoint(4)
        fail(one, one.replicas[0])
        fail(one, one.replicas[0], 20, now=T0 + 1.0)
        assert one.replicas[0].ejected_until_s == T0 + 5.0
        assert one.replicas[0].ejections == 1

    @pytest.mark.parametrize(("count", "ejected"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5)])
    def test_never_more_than_half(self, count, ejected):
        one = endpoint(count)
        for replica in one.replicas:
            fail(one, replica)
        assert sum(replica.ejected_until_s > T0 for replica in one.replicas) == ejected
        assert len(eligible(one)) == count - ejected

    def test_half_of_the_ready_ones(self):
        one = endpoint(4)
        for replica in one.replicas[:2]:
            one.set_health(replica, is_healthy=False, now=T0)
        for replica in one.replicas[2:]:
            fail(one, replica)
        assert len(eligible(one)) == 1

    def test_panic_ignores_ejections(self):
        one = endpoint(4, outlier=OutlierSpec(max_ejected_share=1.0))
        for replica in one.replicas[:2]:
            fail(one, replica)
        assert eligible(one) == "23"
        fail(one, one.replicas[2])
        assert eligible(one) == "0123", "fewer than half are left: the fault is more likely ours"

    def test_panic_never_brings_back_what_is_not_ready(self):
        one = endpoint(4, outlier=OutlierSpec(max_ejected_share=1.0))
        one.set_health(one.replicas[3], is_healthy=False, now=T0)
        for replica in one.replicas[:3]:
            fail(one, replica)
        assert eligible(one) == "012"

    def test_a_verdict_of_health_ends_it(self):
        one = endpoint(4)
        fail(one, one.replicas[0])
        one.set_health(one.replicas[0], is_healthy=False, now=T0 + 1)
        one.set_health(one.replicas[0], is_healthy=True, now=T0 + 2)
        assert eligible(one) == "0123"

    def test_a_verdict_that_is_no_news_changes_nothing(self):
        one = endpoint(4)
        picker = one.picker
        one.set_health(one.replicas[0], is_healthy=True, now=T0)
        assert one.picker is picker


class TestSlowStart:
    def start(self, **kwargs):
        before = build(2, **kwargs)
        return build(3, before=before, now=T0, **kwargs).endpoints["e"]

    def test_the_first_table_is_warm(self):
        one = endpoint(3, slow_start_s=10.0)
        assert [replica.weight for replica in one.replicas] == [1.0] * 3
        assert one.next_deadline() is None

    def test_a_new_one_ramps_up(self):
        one = self.start(slow_start_s=10.0)
        new = one.replicas[2]
        seen = []
        now = T0
        while (deadline := one.next_deadline()) is not None:
            seen.append(new.weight)
            assert now < deadline <= now + 1.0 + 1e-9
            now = deadline
            one.handle_deadline(now)
        assert seen[0] == pytest.approx(0.1)
        assert seen == sorted(seen)
        assert new.weight == 1.0
        assert now == pytest.approx(T0 + 10.0, abs=1.1)
        assert [replica.weight for replica in one.replicas[:2]] == [1.0, 1.0]

    def test_without_it_a_new_one_is_at_once_whole(self):
        one = self.start()
        assert one.replicas[2].weight == 1.0
        assert one.next_deadline() is None

    def test_one_that_comes_back_starts_slowly(self):
        one = endpoint(2, slow_start_s=10.0)
        one.set_health(one.replicas[0], is_healthy=False, now=T0)
        one.set_health(one.replicas[0], is_healthy=True, now=T0 + 1)
        assert one.replicas[0].weight == pytest.approx(0.1)

    def test_also_after_an_ejection(self):
        one = endpoint(4, slow_start_s=10.0)
        fail(one, one.replicas[0])
        one.handle_deadline(one.next_deadline())
        assert one.replicas[0].weight == pytest.approx(0.1)

    def test_the_picker_is_made_anew_at_each_step(self):
        one = self.start(slow_start_s=10.0, policy="random")
        before = one.picker
        one.handle_deadline(one.next_deadline())
        assert one.picker is not before


def test_the_wheel_is_told():
    told = []
    one = endpoint(4)
    one.watch_again = told.append
    fail(one, one.replicas[0])
    assert told == [one]
