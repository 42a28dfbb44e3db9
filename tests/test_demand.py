"""Demand over workers that die, fall silent and come back: what only grows never falls, gauges are of the living."""

from hypothesis import given
from hypothesis import strategies as st

from router.counters import EndpointCounters
from router.demand import DemandBook, EndpointDemand, count_demand


def counters(requests=0, in_flight=0, **codes):
    made = EndpointCounters()
    made.requests, made.in_flight, made.codes = requests, in_flight, codes
    return made


def test_what_one_worker_counts():
    found = count_demand(counters(5, 2, no_replica=1, at_capacity=2, deadline=9))
    assert found == EndpointDemand(in_flight=2, arrivals=7, unserved=3)
    assert count_demand(counters()) is None


def test_who_is_not_let_in_is_no_demand():
    """They never reach an endpoint's counters; should they one day, they are not unserved."""
    assert count_demand(counters(2, 0, unauthenticated=1, forbidden=1)).unserved == 0


def test_workers_are_added_up():
    book = DemandBook()
    book.take(0, 10, {"e": EndpointDemand(1, 5, 2, 1)})
    book.take(1, 11, {"e": EndpointDemand(2, 7), "f": EndpointDemand(0, 1)})
    assert book.read() == {"e": EndpointDemand(3, 12, 2, 1), "f": EndpointDemand(0, 1)}


def test_sticky_sessions_are_demand_also_where_nothing_was_ever_asked_here():
    book = DemandBook()
    book.take(0, 10, {"e": EndpointDemand(0, 5)})
    found = book.read({"e": 3, "f": 1})
    assert found == {"e": EndpointDemand(0, 5, sessions=3), "f": EndpointDemand(sessions=1)}
    assert not found["f"].is_idle
    assert book.read() == {"e": EndpointDemand(0, 5)}


def test_a_worker_that_is_replaced_counts_on():
    book = DemandBook()
    book.take(0, 10, {"e": EndpointDemand(4, 9, 1)})
    book.keep_workers([])
    assert book.read() == {"e": EndpointDemand(0, 9, 1)}
    book.take(0, 12, {"e": EndpointDemand(1, 2, 1)})
    assert book.read() == {"e": EndpointDemand(1, 11, 2)}


def test_a_worker_that_was_only_silent_is_not_counted_twice():
    book = DemandBook()
    book.take(0, 10, {"e": EndpointDemand(4, 9, 1)})
    book.keep_workers([])
    book.take(0, 10, {"e": EndpointDemand(3, 10, 1)})
    assert book.read() == {"e": EndpointDemand(3, 10, 1)}


def test_an_endpoint_that_left_the_table_is_forgotten_and_may_come_back():
    book = DemandBook()
    book.take(0, 10, {"e": EndpointDemand(1, 5)})
    book.keep_endpoints({"f"})
    assert book.read() == {}
    book.take(0, 10, {"e": EndpointDemand(0, 2)})
    assert book.read() == {"e": EndpointDemand(0, 2)}


def test_an_endpoint_made_anew_between_two_looks_counts_from_zero():
    book = DemandBook()
    book.take(0, 10, {"e": EndpointDemand(0, 50, 7)})
    book.take(0, 10, {"e": EndpointDemand(0, 3, 1)})
    assert book.read() == {"e": EndpointDemand(0, 53, 8)}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 3), st.booleans()), max_size=40))
def test_totals_are_what_the_workers_served_and_never_fall(steps):
    book, true, counts, pids = DemandBook(), 0, [0, 0, 0], [1, 2, 3]
    before = EndpointDemand()
    for worker, arrived, in_flight, dies in steps:
        counts[worker] += arrived
        true += arrived
        if counts[worker]:
            book.take(worker, pids[worker], {"e": EndpointDemand(min(in_flight, counts[worker]), counts[worker])})
        if dies:
            counts[worker], pids[worker] = 0, pids[worker] + 3
            book.keep_workers({0, 1, 2} - {worker})
        now = book.read().get("e", EndpointDemand())
        assert now.arrivals == true >= before.arrivals
        before = now
