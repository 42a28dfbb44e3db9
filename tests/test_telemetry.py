"""Counters on their way out: histograms, quantiles, copies that do not move, garbage collections timed."""

import gc

import msgspec
import pytest

from router.counters import BOUNDS_S, WORKER_NUMBERS, EndpointCounters, Histogram, WorkerCounters
from router.telemetry import EndpointSnapshot, GcWatch, HistogramSnapshot, snapshot_endpoint, snapshot_histogram


def of(*seconds):
    histogram = Histogram()
    for value in seconds:
        histogram.observe(value)
    return snapshot_histogram(histogram)


class TestHistograms:
    def test_bounds_rise_from_below_our_overhead_to_a_long_generation(self):
        assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
        assert BOUNDS_S[0] == pytest.approx(1e-5)
        assert BOUNDS_S[-1] == 1_000.0

    @pytest.mark.parametrize("i", range(len(BOUNDS_S)))
    def test_a_bound_is_inclusive(self, i):
        """Prometheus: `le`."""
        assert of(BOUNDS_S[i]).counts[i] == 1
        assert of(BOUNDS_S[i] * 1.0001).counts[i + 1] == 1

    def test_extremes(self):
        assert of(0.0).counts[0] == 1
        assert of(1e9).counts[-1] == 1
        assert of(0.5, 0.25).sum_s == 0.75

    def test_quantiles(self):
        histogram = of(*[0.001] * 90, *[0.1] * 9, 5.0)
        assert histogram.quantile(0.5) == pytest.approx(0.001)
        assert histogram.quantile(0.9) == pytest.approx(0.001)
        assert histogram.quantile(0.99) == pytest.approx(0.1)
        assert histogram.quantile(1.0) == 5.0
        assert of().quantile(0.5) == 0.0
        assert of(1e9).quantile(0.5) == float("inf")

    def test_adding(self):
        one = of(0.001, 1.0)
        one.add(of(1.0, 2.0))
        assert sum(one.counts) == 4
        assert one.sum_s == pytest.approx(4.001)
        assert one.quantile(0.75) == 1.0

    def test_an_empty_one_is_as_long_as_a_full_one(self):
        assert len(HistogramSnapshot().counts) == len(of(1.0).counts)
        assert HistogramSnapshot().counts is not HistogramSnapshot().counts


class TestSnapshots:
    def test_every_counter_is_copied(self):
        counters = EndpointCounters()
        numbers = [name for name in EndpointCounters.__slots__ if isinstance(getattr(counters, name), int)]
        for i, name in enumerate(numbers):
            setattr(counters, name, i + 1)
        counters.statuses[200] = 7
        counters.codes["x"] = 8
        for name in ("duration", "overhead", "first_byte", "event_gap"):
            getattr(counters, name).observe(0.5)
        found = snapshot_endpoint(counters)
        assert [getattr(found, name) for name in numbers] == [i + 1 for i in range(len(numbers))]
        assert (found.statuses, found.codes) == ({200: 7}, {"x": 8})
        for name in ("duration", "overhead", "first_byte", "event_gap"):
            assert getattr(found, name).sum_s == 0.5
        assert set(EndpointSnapshot.__struct_fields__) == {name.lstrip("_") for name in EndpointCounters.__slots__}

    def test_it_does_not_move_with_what_it_copied(self):
        counters = EndpointCounters()
        found = snapshot_endpoint(counters)
        counters.statuses[200] = 1
        counters.codes["x"] = 1
        counters.duration.observe(1.0)
        assert (found.statuses, found.codes, sum(found.duration.counts)) == ({}, {}, 0)

    def test_there_and_back(self):
        found = snapshot_endpoint(EndpointCounters())
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=EndpointSnapshot) == found

    def test_every_workers_number_exists(self):
        counters = WorkerCounters()
        assert all(getattr(counters, name) == 0 for name in WORKER_NUMBERS)


def test_collections_are_timed():
    histogram = Histogram()
    watch = GcWatch(histogram)
    gc.collect()
    watch.close()
    count = sum(histogram.counts)
    assert count >= 1
    gc.collect()
    assert sum(histogram.counts) == count
