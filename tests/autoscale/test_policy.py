"""How many replicas: tables of single moments, courses of time, and what holds whatever comes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.autoscale.policy import REFUSED_REPLICAS, Decider, Observation, Window
from router.routing.spec import ScalingSpec


def spec(target=8.0, **values):
    return ScalingSpec(target_concurrency=target, **({"max_replicas": 100, "scaledown_window_s": 60.0} | values))


def decide(seen, **values):
    """The decision on one moment, with nothing in the windows."""
    decider = Decider(spec(**({"scaledown_window_s": 0.0} | values)))
    decider.step(Observation(ready=seen.ready, held=seen.held), 0.0)
    return decider.step(seen, 1.0)


class Course:
    """A decider, whose decisions come true after `delay_s`."""

    def __init__(self, delay_s=0, **values):
        self.decider = Decider(spec(**values))
        self.now = 0.0
        self.delay_s = delay_s
        self.ready = 0
        self.coming = []
        self.changes = 0
        self.desired = 0

    def run(self, seconds, in_flight=0, **seen):
        """Each second the same; `in_flight` may be a function of the time. Return what was desired each time."""
        found = []
        for _ in range(seconds):
            self.now += 1.0
            self.ready += sum(at <= self.now for at in self.coming)
            self.coming = [at for at in self.coming if at > self.now]
            count = in_flight(self.now) if callable(in_flight) else in_flight
            seen_now = Observation(count, ready=self.ready, pending=len(self.coming), **seen)
            desired = self.decider.step(seen_now, self.now).desired
            self.changes += desired != self.desired
            self.desired = desired
            current = self.ready + len(self.coming)
            self.coming += [self.now + self.delay_s] * (desired - current)
            if desired < current:
                assert not self.coming, "nothing goes while something comes"
                self.ready = desired
            found.append(desired)
        return found


@pytest.mark.parametrize(
    ("in_flight", "ready", "desired"),
    [
        (0, 0, 0), (1, 0, 1), (8, 0, 1), (9, 0, 2), (80, 0, 10), (81, 0, 11),
        (8, 1, 1), (9, 1, 2),
        (88, 10, 10), (89, 10, 12), (72, 10, 10), (71, 10, 9),  # within and beyond a tenth
        (800, 10, 100), (8_000, 10, 100), (0, 10, 0),
    ],
)  # fmt: skip
def test_how_many_are_wanted(in_flight, ready, desired):
    assert decide(Observation(in_flight, ready=ready)).desired == desired


@pytest.mark.parametrize(("target", "in_flight", "desired"), [(0.7, 21, 30), (0.7, 42, 60), (0.3, 3, 10), (2.5, 11, 5)])
def test_a_target_that_is_no_whole_number(target, in_flight, desired):
    assert decide(Observation(in_flight), target=target).desired == desired


@pytest.mark.parametrize(
    ("values", "seen", "desired", "reason"),
    [
        ({"min_replicas": 2}, Observation(), 2, "min_replicas"),
        ({"min_replicas": 2}, Observation(in_flight=20), 3, "demand"),
        ({"max_replicas": 2}, Observation(in_flight=200), 2, "max_replicas"),
        ({"max_replicas": 2}, Observation(ready=5, in_flight=200), 2, "max_replicas"),
        ({"buffer_replicas": 3}, Observation(in_flight=1), 4, "demand"),
        ({"buffer_replicas": 3}, Observation(), 0, "no demand"),
        ({"buffer_replicas": 3}, Observation(in_flight=8, ready=4), 4, "within tolerance"),
        ({"buffer_replicas": 3, "max_replicas": 2}, Observation(in_flight=1), 2, "max_replicas"),
        ({}, Observation(ready=5, held=3), 3, "live sessions"),
        ({}, Observation(ready=3, held=3, sessions=3, room=1), 3, "sessions"),
        ({}, Observation(waiting=1, ready=3, held=3, sessions=3, room=1), 4, "sessions"),
        ({}, Observation(waiting=5, ready=3, held=3, sessions=3, room=4), 2 + 1, "live sessions"),
        ({}, Observation(in_flight=40, waiting=1, ready=3, sessions=3, room=1), 6, "demand"),
        ({}, Observation(ready=0, sessions=0, room=10), 0, "no demand"),
        ({"max_replicas": 3}, Observation(waiting=9, ready=3, held=3, sessions=3, room=1), 3, "max_replicas"),
        ({"max_replicas": 2}, Observation(ready=5, held=3), 3, "live sessions"),
        ({}, Observation(waiting=9), 2, "demand"),
        ({}, Observation(ready=2, pending=1), 3, "replicas are on their way"),
        ({}, Observation(ready=2, is_blind=True), 2, "a router is silent"),
        ({"max_replicas": 1}, Observation(ready=2, is_blind=True), 1, "max_replicas"),
        ({}, Observation(ready=2, in_flight=30, is_blind=True), 4, "demand"),
    ],
)
def test_bounds_buffer_and_sessions(values, seen, desired, reason):
    found = decide(seen, **values)
    assert (found.desired, found.reason) == (desired, reason)


def test_the_first_refused_request_starts_one_whatever_the_window():
    course = Course(scaleup_window_s=300.0)
    assert course.run(2) == [0, 0]
    assert course.run(1, unserved=1, arrivals=1) == [1]


def test_refusals_are_concurrency_by_the_time_that_requests_take():
    """Ten a second that take four seconds each, of which two a second found no room: eight more in flight."""
    course = Course(scaledown_window_s=600.0)
    course.ready = 4
    course.run(300, 32, arrivals=8)
    found = course.decider.step(Observation(32, arrivals=10, unserved=2, ready=4), 301.0)
    assert found.need == pytest.approx(40.0, rel=0.05)
    assert found.desired == 5


def test_refusals_alone_do_not_storm():
    """A hundred clients that try again each second for a minute, while nothing is there yet."""
    course = Course(delay_s=45)
    found = course.run(44, unserved=100, arrivals=100)
    assert max(found) == REFUSED_REPLICAS
    assert course.changes == 1


def test_up_at_once_and_down_after_the_window():
    course = Course()
    assert course.run(1, 40) == [5]
    assert set(course.run(60, 8)) == {5}
    assert course.run(3, 8)[-1] == 1


def test_a_peak_within_the_window_keeps_what_it_needed():
    course = Course()
    course.run(1, 40)
    for _ in range(5):
        assert set(course.run(50, 8)) == {5}
        course.run(1, 40)
    assert course.changes == 1


def test_with_a_scale_up_window_only_what_lasts_counts():
    course = Course(scaleup_window_s=30.0)
    course.run(40, 8)
    assert set(course.run(29, 80)) == {1}  # a burst that is shorter
    course.run(1, 8)
    assert set(course.run(29, 80)) == {1}
    assert course.run(3, 80)[-1] == 10
    assert course.changes == 2


def test_what_has_just_come_up_gets_a_window_of_its_own():
    """The window is shorter than a start: the replica must not go before anybody could have used it."""
    course = Course(delay_s=45, scaledown_window_s=20.0)
    course.run(1)
    course.run(1, unserved=1, arrivals=1)
    assert set(course.run(64)) == {1}
    assert course.run(3)[-1] == 0


def test_a_launch_that_failed_without_demand_is_not_repeated():
    decider = Decider(spec(scaledown_window_s=20.0))
    decider.step(Observation(), 0.0)
    assert decider.step(Observation(unserved=1, arrivals=1), 1.0).desired == 1
    for now in range(2, 300):
        assert decider.step(Observation(pending=1), float(now)).desired == 1
    assert decider.step(Observation(), 300.0).desired == 0


def test_a_decider_that_starts_anew_takes_nothing_down_before_a_window_has_passed():
    decider = Decider(spec())
    assert all(decider.step(Observation(ready=7), float(now)).desired == 7 for now in range(60))
    assert decider.step(Observation(ready=7), 61.0).desired == 0


def test_after_a_gap_nothing_is_taken_down_before_a_window_has_passed():
    """The store was away for an hour: routers have not told their demand again when it is first looked at."""
    decider = Decider(spec())
    for now in range(100):
        assert decider.step(Observation(40, ready=5), float(now)).desired == 5
    assert all(decider.step(Observation(0, ready=5), 3_700.0 + now).desired == 5 for now in range(60))
    assert decider.step(Observation(0, ready=5), 3_761.0).desired == 0


def test_a_spec_that_changes_counts_from_then_on():
    decider = Decider(spec())
    assert decider.step(Observation(40, ready=5), 0.0).desired == 5
    decider.spec = spec(target=4.0)
    assert decider.step(Observation(40, ready=5), 1.0).desired == 10
    decider.spec = spec(max_replicas=3)
    assert decider.step(Observation(40, ready=10), 2.0).desired == 3


# -- whatever comes ------------------------------------------------------------------------------------------

SEEN = st.builds(
    Observation, in_flight=st.integers(0, 300), waiting=st.integers(0, 9), arrivals=st.integers(0, 50),
    unserved=st.integers(0, 50), ready=st.integers(0, 40), pending=st.integers(0, 5), held=st.integers(0, 10),
)  # fmt: skip
SPECS = st.builds(
    lambda target, low, more, buffer, tolerance, up, down: ScalingSpec(
        target, low, max(low + more, 1), buffer, tolerance, up, down
    ),
    st.floats(0.1, 64.0), st.integers(0, 5), st.integers(0, 30), st.integers(0, 3), st.floats(0.0, 0.5),
    st.sampled_from([0.0, 5.0, 30.0]), st.sampled_from([0.0, 5.0, 30.0]),
)  # fmt: skip


@given(SPECS, st.lists(SEEN, min_size=1, max_size=30))
def test_it_stays_within_its_bounds_and_never_below_sessions(made, course):
    decider = Decider(made)
    for now, seen in enumerate(course):
        desired = decider.step(seen, float(now)).desired
        assert max(made.min_replicas, seen.held) <= desired <= max(made.max_replicas, seen.held)
        if seen.pending and desired < seen.current:
            assert desired == max(made.max_replicas, seen.held), "only a new maximum cuts what is on its way"


@given(SPECS, st.lists(SEEN, max_size=10), SEEN, st.integers(1, 200))
def test_more_in_flight_never_means_fewer(made, course, seen, more):
    import dataclasses

    found = []
    for in_flight in (seen.in_flight, seen.in_flight + more):
        decider = Decider(made)
        for now, before in enumerate(course):
            decider.step(before, float(now))
        last = dataclasses.replace(seen, in_flight=in_flight, unserved=0)
        found.append(decider.step(last, float(len(course))).desired)
    assert found[0] <= found[1]


@given(st.integers(2, 40), st.lists(st.floats(-0.1, 0.1), min_size=5, max_size=60), st.sampled_from([0.0, 30.0]))
def test_within_the_tolerance_nothing_changes(replicas, wobble, down_s):
    decider = Decider(spec(target=100.0, scaledown_window_s=down_s))
    for now, change in enumerate(wobble):
        in_flight = round(replicas * 100 * (1 + change * 0.999))
        assert decider.step(Observation(in_flight, ready=replicas), float(now)).desired == replicas


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=60), st.sampled_from([1, -1]))
@settings(max_examples=200)
def test_a_window_is_the_extreme_of_what_it_covers(course, sign):
    window, now, put = Window(sign), 0.0, []
    for value, step in course:
        now += step
        put.append((now, value))
        covered = [seen for at, seen in put if at >= now - 20.0]
        assert window.put(value, now, 20.0) == (max(covered) if sign > 0 else min(covered))
        assert len(window._kept) <= len(set(covered))
