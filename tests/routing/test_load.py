"""A replica's load, penalty and latency; leases; the board the workers share; addresses."""

import math

import pytest
from routekit import T0, endpoint, occupy, pick

from router.routing.load import (
    LATENCY_DECAY_S,
    OUTCOME_BACKPRESSURE,
    OUTCOME_CANCELLED,
    OUTCOME_FAILED,
    OUTCOME_OK,
    PENALTY_CAP,
    Lease,
    LoadBoard,
    Replica,
    split_address,
)
from router.routing.spec import ReplicaSpec


def make(weight=1.0, board=None, slot=0):
    return Replica(ReplicaSpec("r", "http://h:1", weight, slot=slot), board)


class TestLoad:
    def test_formula(self):
        replica = make(weight=2.0)
        assert replica.load(T0) == 0.5
        occupy(replica, 3)
        assert replica.load(T0) == 2.0

    def test_a_penalty_counts_as_one_in_flight_and_decays(self):
        replica = make()
        replica.penalise(T0)
        assert replica.load(T0) == 2.0
        assert replica.load(T0 + math.log(2)) == pytest.approx(1.5)  # halves every 0.7 s
        assert replica.load(T0 + 10.0) == 1.0

    def test_penalties_add_up_to_a_cap(self):
        replica = make()
        for _ in range(3):
            replica.penalise(T0)
        assert replica.load(T0) == 4.0
        replica.penalise(T0 + math.log(2))
        assert replica.load(T0 + math.log(2)) == pytest.approx(3.5)
        for _ in range(200):
            replica.penalise(T0 + 1.0)
        assert replica.load(T0 + 1.0) == PENALTY_CAP + 1

    def test_fast_refusals_do_not_attract(self):
        """A replica that answers 503 at once never has anything in flight; the others take its share."""
        one = endpoint(2, policy="least_inflight")
        refusing, serving = one.replicas
        taken = 0
        now = T0
        for _ in range(100):
            lease = pick(one, now=now)
            if lease.replica is refusing:
                taken += 1
                lease.release(OUTCOME_BACKPRESSURE, now)
            else:
                lease.release(OUTCOME_OK, now)
            now += 0.01
        assert taken < 15
        assert (refusing.failures, refusing.backpressured, refusing.ejections) == (0, taken, 0)
        assert serving.requests == 100 - taken


class TestLatency:
    def test_a_slower_sample_counts_at_once(self):
        replica = make()
        for sample in (0.1, 0.5, 2.0):
            replica.observe_latency(sample, T0)
            assert replica.latency_s == sample

    def test_faster_ones_decay_it(self):
        replica = make()
        replica.observe_latency(1.0, T0)
        replica.observe_latency(0.0, T0 + LATENCY_DECAY_S)
        assert replica.latency_s == pytest.approx(1 / math.e)
        replica.observe_latency(0.0, T0 + 100 * LATENCY_DECAY_S)
        assert replica.latency_s == pytest.approx(0.0, abs=1e-9)

    def test_at_the_same_moment_it_stays(self):
        replica = make()
        replica.observe_latency(1.0, T0)
        replica.observe_latency(0.1, T0)
        assert replica.latency_s == 1.0

    def test_a_lease_feeds_it(self):
        replica = make()
        lease = Lease(replica, T0)
        lease.first_byte(T0 + 0.25)
        assert replica.latency_s == 0.25


class TestLease:
    def test_it_counts_until_released(self):
        replica = make()
        first, second = occupy(replica, 2)
        first.release(OUTCOME_OK, T0)
        assert replica.in_flight == 1
        second.release(OUTCOME_CANCELLED, T0)
        assert (replica.in_flight, replica.requests) == (0, 2)

    def test_exactly_once(self):
        lease = Lease(make(), T0)
        lease.release(OUTCOME_OK, T0)
        with pytest.raises(AssertionError, match="exactly once"):
            lease.release(OUTCOME_OK, T0)

    def test_outcomes(self):
        one = endpoint(1)
        replica = one.replicas[0]

        def end(outcome):
            pick(one).release(outcome, T0)
            return replica.failures, replica.failures_in_a_row, replica.backpressured

        assert end(OUTCOME_FAILED) == (1, 1, 0)
        assert end(OUTCOME_CANCELLED) == (1, 1, 0), "the client's doing says nothing"
        assert end(OUTCOME_BACKPRESSURE) == (1, 1, 1)
        assert end(OUTCOME_FAILED) == (2, 2, 1)
        assert end(OUTCOME_OK) == (2, 0, 1)


class TestBoard:
    def boards(self, workers=2, slots=4):
        cells = bytearray(workers * slots * 8)
        return [LoadBoard(memoryview(cells), worker, workers, slots) for worker in range(workers)]

    def test_each_sees_the_others(self):
        a, b, c = self.boards(3)
        a.publish(1, 5)
        b.publish(1, 7)
        b.publish(2, 9)
        assert (a.others(1), b.others(1), c.others(1)) == (7, 5, 12)
        assert (a.others(2), b.others(2), a.others(0), a.others(3)) == (9, 0, 0, 0)

    def test_two_workers_on_one_replica(self):
        a, b = (make(board=board, slot=3) for board in self.boards())
        leases = occupy(a, 2) + occupy(b, 3)
        assert a.total_in_flight() == b.total_in_flight() == 5
        assert a.load(T0) == b.load(T0) == 6.0
        for lease in leases:
            lease.release(OUTCOME_OK, T0)
        assert a.total_in_flight() == b.total_in_flight() == 0

    def test_limits_count_both(self):
        from routekit import build

        from router.errors import Kind
        from router.routing.spec import LimitSpec

        one, two = (
            build(1, board=board, limits=LimitSpec(max_concurrency=2)).endpoints["e"] for board in self.boards()
        )
        pick(one)
        pick(two)
        assert pick(one) is Kind.AT_CAPACITY
        assert pick(two) is Kind.AT_CAPACITY

    def test_a_dead_workers_row_is_cleared(self):
        a, b = self.boards()
        for slot in range(4):
            a.publish(slot, 2)
            b.publish(slot, 3)
        a.clear_row(1)
        assert [a.others(slot) for slot in range(4)] == [0] * 4
        assert [b.others(slot) for slot in range(4)] == [2] * 4

    def test_close(self):
        buffer = bytearray(64)
        board = LoadBoard(memoryview(buffer), 0, 2, 4)
        board.close()
        buffer.append(0)  # no view is left on it


class TestAddresses:
    @pytest.mark.parametrize(
        ("address", "parts"),
        [
            ("http://127.0.0.1:30000", ("http", "127.0.0.1", 30000)),
            ("http://host.example:80/", ("http", "host.example", 80)),
            ("http://[::1]:1", ("http", "::1", 1)),
            ("http://[fe80::1%25eth0]:65535", ("http", "fe80::1%25eth0", 65535)),
            ("http://a_b-c:0080", ("http", "a_b-c", 80)),
            ("https://h:8443", ("https", "h", 8443)),
            ("h2c://[::1]:50051", ("h2c", "::1", 50051)),
        ],
    )
    def test_taken(self, address, parts):
        assert split_address(address) == parts

    @pytest.mark.parametrize(
        ("address", "complaint"),
        [
            ("", "scheme"), ("127.0.0.1:80", "scheme"), ("ftp://h:1", "http, h2c or https"), ("HTTPS://h:1", "http, h2c or https"), ("HTTP://h:1", "HTTP"),
            ("http://", "form"), ("http://h", "form"), ("http://:80", "form"), ("http://::1:80", "form"), ("http://u@h:1", "form"),
            ("http://h/x:1", "form"), ("http://h:1/x", "port"), ("http://h:1?x", "port"), ("http://a b:1", "form"), ("http://a\n:1", "form"),
            ("http://h:0", "port"), ("http://h:65536", "port"), ("http://h:", "port"), ("http://h:-1", "port"), ("http://h:+1", "port"),
            ("http://a..b:1", "name server"), ("http://.a:1", "name server"), (f"http://{'a' * 254}:1", "name server"),
            ("http://h:8_0", "port"), ("http://h:\u0661", "port"), ("http://[::1]", "port"), ("http://[::1", "port"), ("http://[]:1", "form"),
        ],
    )  # fmt: skip
    def test_refused(self, address, complaint):
        with pytest.raises(ValueError, match=complaint):
            split_address(address)

    def test_a_bracket_is_followed_by_its_port(self):
        with pytest.raises(ValueError):
            split_address("http://[::1]80")
